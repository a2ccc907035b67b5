//! The search for an order of one key's operations that explains every answer.
//!
//! Wing and Gong, "Testing and Verifying Concurrent Objects" (1993), with the memory of visited
//! (placed operations, state) pairs of Lowe, "Testing for linearizability" (2017), as in Porcupine and
//! Knossos. What is added for this model:
//!
//! - *Versions order the search.* Once the newest version is n, no operation that speaks of a version
//!   below n can follow, so nothing is placed that would overtake one.
//! - *What changes nothing is placed at once.* A definite operation that is possible now and leaves the
//!   state as it is can be moved here from wherever a linearization has it; no branch is needed.
//! - *Open operations come in chains* before what needs them: see [`super::chains`].
//! - *What is included in something visited* is not visited. That is so if the same definite operations
//!   were placed, at most the same open ones (they never have to be placed, so having them left is
//!   never worse), and the state was the same or less bound ([`State::includes`]).
//!
//! The set of placed definite operations is remembered as a 128-bit sum of fixed random numbers, one per
//! operation. Two different sets among N visited collide with probability below N^2 / 2^128.
//!
//! Invariant: the verdict `Linearizable` means that all definite operations were placed, each step
//! checked by the model; `Contradiction` that every branch was tried; anything else is `OutOfBudget`.

use std::collections::{BTreeMap, BTreeSet};

use super::chains::{Chains, Point, Want};
use super::history::Moment;
use super::model::{Need, State, Then, ValueId};
use super::problem::Problem;

/// How many placed operations before the dead end are kept for the message.
const TAIL: usize = 8;

/// What a search came to.
pub(super) enum Found {
    Linearizable,
    Contradiction(Furthest),
    OutOfBudget(Furthest),
}

/// The longest order that was found.
#[derive(Clone)]
pub(super) struct Furthest {
    /// How many definite operations it holds.
    pub placed: usize,
    /// Its last operations.
    pub tail: Vec<usize>,
    pub state: State,
    /// The definite operations one of which would have to come next.
    pub stuck: Vec<usize>,
}

/// First places in the problem's orders that are not placed yet.
#[derive(Clone, Copy, Default)]
struct Cursor {
    invoke: usize,
    ret: usize,
    version: usize,
}

/// What else is remembered of a visited point: the open operations used (ascending), and the state.
struct Visited {
    used: Vec<usize>,
    state: State,
}

impl Visited {
    fn includes(&self, other: &Self) -> bool {
        self.state.includes(&other.state) && is_subset(&self.used, &other.used)
    }
}

struct Move {
    ops: Vec<usize>,
    after: State,
}

struct Frame {
    /// How many operations were placed before the move that led here.
    before: usize,
    cursor: Cursor,
    /// The moves from here, best last.
    moves: Vec<Move>,
}

/// One run of the search over one key.
pub(super) struct Search<'a> {
    problem: &'a Problem,
    placed: Vec<bool>,
    /// The sum of the marks of the definite operations that are placed.
    placed_sum: u128,
    /// The open operations that are placed.
    used: BTreeSet<usize>,
    definite_placed: usize,
    order: Vec<usize>,
    visited: BTreeMap<(u128, Option<ValueId>), Vec<Visited>>,
    furthest: Furthest,
    steps_left: u64,
}

impl<'a> Search<'a> {
    /// Prepares a search that looks at no more than `steps` candidates.
    pub(super) fn new(problem: &'a Problem, steps: u64) -> Self {
        let furthest = Furthest { placed: 0, tail: Vec::new(), state: State::EMPTY, stuck: Vec::new() };
        Self {
            problem,
            placed: vec![false; problem.ops.len()],
            placed_sum: 0,
            used: BTreeSet::new(),
            definite_placed: 0,
            order: Vec::new(),
            visited: BTreeMap::new(),
            furthest,
            steps_left: steps.max(1),
        }
    }

    /// Searches; `steps_left` afterwards tells the cost.
    pub(super) fn run(&mut self) -> Found {
        let mut stack: Vec<Frame> = Vec::new();
        let mut next = Some((Cursor::default(), Move { ops: Vec::new(), after: State::EMPTY }));
        loop {
            if let Some((cursor, step)) = next.take() {
                let before = self.order.len();
                for at in step.ops {
                    self.place(at);
                }
                let (cursor, horizon) = self.settle(cursor, step.after);
                if self.definite_placed == self.problem.definite {
                    return Found::Linearizable;
                }
                let moves = if self.visit(step.after) {
                    self.note_progress(cursor, horizon, step.after);
                    self.moves(cursor, horizon, step.after)
                } else {
                    Vec::new()
                };
                stack.push(Frame { before, cursor, moves });
            }
            if self.steps_left == 0 {
                return Found::OutOfBudget(self.furthest.clone());
            }
            let Some(frame) = stack.last_mut() else {
                return Found::Contradiction(self.furthest.clone());
            };
            if let Some(step) = frame.moves.pop() {
                next = Some((frame.cursor, step));
            } else {
                let before = frame.before;
                stack.pop();
                self.take_back(before);
            }
        }
    }

    /// What `run` has not used of its budget.
    pub(super) fn steps_left(&self) -> u64 {
        self.steps_left
    }

    /// Places all that changes nothing; returns the cursor and the time before which whatever comes
    /// next must have been invoked.
    fn settle(&mut self, mut cursor: Cursor, state: State) -> (Cursor, Moment) {
        loop {
            let horizon = self.advance(&mut cursor);
            let mut placed_any = false;
            for at in self.window(cursor, horizon) {
                let action = self.problem.ops[at].action;
                if action.then == Then::Keep && action.need.bind(state) == Some(state) {
                    self.place(at);
                    placed_any = true;
                }
            }
            if !placed_any {
                return (cursor, horizon);
            }
        }
    }

    fn advance(&self, cursor: &mut Cursor) -> Moment {
        let problem = self.problem;
        while cursor.invoke < problem.definite && self.placed[cursor.invoke] {
            cursor.invoke += 1;
        }
        while problem.by_return.get(cursor.ret).is_some_and(|at| self.placed[*at]) {
            cursor.ret += 1;
        }
        while problem.by_version.get(cursor.version).is_some_and(|(_, at)| self.placed[*at]) {
            cursor.version += 1;
        }
        let first_to_return = problem.by_return.get(cursor.ret);
        first_to_return.map_or((u64::MAX, u64::MAX), |at| problem.ops[*at].returned)
    }

    /// The definite operations that are not placed and were invoked before the horizon.
    fn window(&self, cursor: Cursor, horizon: Moment) -> Vec<usize> {
        (cursor.invoke..self.problem.definite)
            .take_while(|at| self.problem.ops[*at].invoked <= horizon)
            .filter(|at| !self.placed[*at])
            .collect()
    }

    /// Whether this state is worth visiting; remembers it if so.
    fn visit(&mut self, state: State) -> bool {
        // Memory is what these cost most, so the budget bounds it.
        self.steps_left = self.steps_left.saturating_sub(1 + self.used.len() as u64);
        let point = Visited { used: self.used.iter().copied().collect(), state };
        let seen = self.visited.entry((self.placed_sum, state.value)).or_default();
        if seen.iter().any(|other| other.includes(&point)) {
            return false;
        }
        seen.retain(|other| !point.includes(other));
        seen.push(point);
        true
    }

    fn note_progress(&mut self, cursor: Cursor, horizon: Moment, state: State) {
        if self.definite_placed < self.furthest.placed
            || (self.definite_placed == self.furthest.placed && !self.furthest.stuck.is_empty())
        {
            return;
        }
        self.furthest = Furthest {
            placed: self.definite_placed,
            tail: self.order[self.order.len().saturating_sub(TAIL)..].to_vec(),
            state,
            stuck: self.window(cursor, horizon),
        };
    }

    /// All that can come next, most promising last.
    fn moves(&mut self, cursor: Cursor, horizon: Moment, state: State) -> Vec<Move> {
        let mut moves = Vec::new();
        for at in self.window(cursor, horizon) {
            self.steps_left = self.steps_left.saturating_sub(1);
            let action = self.problem.ops[at].action;
            let limit = self.limit_besides(cursor, at);
            if matches!(action.then, Then::Write(_, Some(version)) if version > limit) {
                continue;
            }
            let direct = action.step(state);
            if let Some(after) = direct
                && after.last <= limit
            {
                moves.push(Move { ops: vec![at], after });
            }
            let shows_no_value = matches!(action.need, Need::Version(_)) && action.then == Then::Keep;
            let want = match direct {
                None if shows_no_value => Want::Value,
                None => Want::Need,
                Some(_) if shows_no_value && !state.exact => Want::Other,
                Some(_) => continue,
            };
            let point = Point {
                problem: self.problem,
                placed: &self.placed,
                definite_left: self.problem.definite - self.definite_placed,
                horizon,
                state,
            };
            let mut chains = Chains::at(point, self.steps_left);
            let found = chains.before(action, want);
            self.steps_left = chains.steps_left;
            for mut ops in found {
                ops.push(at);
                let after = ops.iter().try_fold(state, |state, at| self.problem.ops[*at].action.step(state));
                if let Some(after) = after
                    && after.last <= limit
                {
                    moves.push(Move { ops, after });
                }
            }
        }
        moves.reverse();
        moves.sort_by_key(|step| std::cmp::Reverse(step.ops.len()));
        moves
    }

    /// The highest version that the key may have after `at`, for all others to remain possible.
    fn limit_besides(&self, cursor: Cursor, at: usize) -> u64 {
        self.problem.by_version[cursor.version..]
            .iter()
            .find(|(_, other)| *other != at && !self.placed[*other])
            .map_or(u64::MAX, |(version, _)| *version)
    }

    fn place(&mut self, at: usize) {
        self.placed[at] = true;
        self.order.push(at);
        if at < self.problem.definite {
            self.placed_sum ^= mark(at);
            self.definite_placed += 1;
        } else {
            self.used.insert(at);
        }
    }

    fn take_back(&mut self, length: usize) {
        for at in self.order.drain(length..) {
            self.placed[at] = false;
            if at < self.problem.definite {
                self.placed_sum ^= mark(at);
                self.definite_placed -= 1;
            } else {
                self.used.remove(&at);
            }
        }
    }
}

/// Whether the ascending list `few` is contained in the ascending list `many`.
fn is_subset(few: &[usize], many: &[usize]) -> bool {
    let mut rest = many.iter();
    few.len() <= many.len() && few.iter().all(|at| rest.any(|other| other == at))
}

/// The fixed random number that stands for an operation.
fn mark(at: usize) -> u128 {
    let low = mix(2 * at as u64 + 1);
    let high = mix(2 * at as u64 + 2);
    (u128::from(high) << 64) | u128::from(low)
}

/// The output function of SplitMix64.
fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
