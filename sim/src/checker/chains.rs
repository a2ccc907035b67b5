//! Which open operations can have made a definite operation possible.
//!
//! Trying every subset of the open operations (unknown outcome) at every point is what makes
//! checkers blow up: n timed-out writes give 2^n subsets. This file holds the rule that avoids it:
//! **open operations are placed only as a chain directly before a definite operation that could not
//! have happened without them**, and the chain is found backwards from what that operation needs.
//!
//! Why nothing is missed. Suppose that the history has a linearization; take one with the fewest
//! open operations. (An open operation that has no effect counts as never placed.) Removing open
//! operations never hurts the real-time order, since they never have to have ended, and never hurts
//! versions, since it can only lower the bounds of those that follow. Let C = c1..ck be a maximal
//! run of open operations in it, s the state before C, o what follows.
//!
//! 1. Nothing follows, or o is a put (needs nothing): C can be removed. So o needs something.
//! 2. If o was possible in s with the same state after it (up to a lower bound): C can be removed.
//!    The state after o is fixed by o itself, with one exception, put-if-absent answered `Exists`:
//!    it shows a version but not the value, so it may bind either the value in s, if that value's
//!    version is not known, or another one. For it chains are tried as well ([`Want::Other`]),
//!    but never for a value that no operation names: keeping s is at least as good then.
//! 3. Otherwise ck established what o needs:
//!    - *value v* (with or without a version): ck writes v.
//!    - *version n*: ck writes some value.
//!    - *absent*: ck deletes. If ck is a plain delete then s is not absent (2), so ck alone is enough.
//!    - *present*: s is absent (2), so c1 is an operation possible on an absent key, that is, one that
//!      needs nothing or absence; it alone is enough.
//! 4. What ck needs itself was established by c1..c(k-1), or holds in s, in which case those
//!    can be removed; so the same rule applies backwards.
//! 5. The same need never arises twice in a chain: what lies between could be removed.
//!
//! Three exchanges thin out what is left: of open operations that could be used right here with the same
//! result only the least versatile is tried ([`versatility`]); of a class only the earliest unused member
//! ([`super::problem::Class`]); and nothing but a plain put or delete where those cannot run out
//! ([`Chains::enough`]). Each replaces a choice by one that leaves as much for later; made from the start of
//! a linearization to its end, they do not disturb one another.
//!
//! All of this holds from any point of the search on, for its state and for what is not placed yet.

use std::collections::BTreeMap;

use super::history::Moment;
use super::model::{Action, Need, State, Then, UNNAMED};
use super::problem::Problem;

/// How a chain is looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// Any will do that makes the need hold: what follows fixes the state after it.
    Need,
    /// The need does not hold, and which value makes it hold may matter later (see rule 2).
    Value,
    /// The need holds, but may hold of another value as well (see rule 2).
    Other,
}

/// A point of the search.
#[derive(Clone, Copy)]
pub(super) struct Point<'a> {
    pub problem: &'a Problem,
    /// Which operations are placed already.
    pub placed: &'a [bool],
    /// How many definite operations are not.
    pub definite_left: usize,
    /// Only what was invoked before this can be placed now.
    pub horizon: Moment,
    pub state: State,
}

/// Finds the chains for one point of the search.
pub(super) struct Chains<'a> {
    point: Point<'a>,
    /// How many more candidates may be looked at.
    pub steps_left: u64,
    needs: Vec<Need>,
    reversed: Vec<usize>,
    found: Vec<Vec<usize>>,
}

impl<'a> Chains<'a> {
    /// The chains of one point of the search.
    pub(super) fn at(point: Point<'a>, steps_left: u64) -> Self {
        let (needs, reversed, found) = (Vec::new(), Vec::new(), Vec::new());
        Self { point, steps_left, needs, reversed, found }
    }

    /// All chains after which `action` may be possible, each in the order of taking effect. The
    /// caller steps through them, which also rules out those whose versions do not fit.
    pub(super) fn before(&mut self, action: Action, want: Want) -> Vec<Vec<usize>> {
        self.establish(action.need, want);
        std::mem::take(&mut self.found)
    }

    fn establish(&mut self, need: Need, want: Want) {
        let problem = self.point.problem;
        if matches!(need, Need::Version(version) | Need::Exactly(_, version) if version <= self.point.state.last) {
            // Whatever comes next has a higher one.
            return;
        }
        let enough = match need {
            Need::Present => self.enough(problem.plain_put),
            Need::Version(_) if want == Want::Need => self.enough(problem.plain_put),
            Need::Absent if self.point.state.value.is_some() => self.enough(problem.plain_delete),
            _ => None,
        };
        if let Some(at) = enough {
            self.add(at);
            return;
        }
        self.needs.push(need);
        match need {
            Need::Anything | Need::Never => {}
            Need::Value(value) | Need::Exactly(value, _) => {
                self.extend(problem.writers[value as usize].iter());
            }
            Need::Version(_) if want == Want::Other => {
                self.extend(problem.writers[UNNAMED as usize + 1..].iter().flatten());
            }
            Need::Version(_) => self.extend(problem.writers.iter().flatten()),
            Need::Absent => self.extend(problem.deleters.iter()),
            Need::Present => self.establish_present(),
        }
        self.needs.pop();
    }

    /// The next member of a class that cannot run out: a chain holds at most one plain put (it makes
    /// all before it needless) and one plain delete (rule 5), and there are at most as many chains as
    /// definite operations left. With that many members at hand, nothing else need be tried where one
    /// of them will do, since it could take the place of whatever a linearization has there.
    fn enough(&self, class: Option<usize>) -> Option<usize> {
        let members = &self.point.problem.classes[class?].members;
        let at = self.next_member(class?)?;
        let first = members.iter().position(|member| *member == at)?;
        let last = *members.get(first + self.point.definite_left)?;
        (self.point.problem.ops[last].invoked <= self.point.horizon).then_some(at)
    }

    /// A write of a value that nobody names is good for nothing but making a key present, so one of
    /// those is taken before any put of another value.
    fn establish_present(&mut self) {
        let problem = self.point.problem;
        let possible = |class: &&usize| matches!(problem.classes[**class].action.need, Need::Anything | Need::Absent);
        let blind = |class: &&usize| problem.classes[**class].action.need == Need::Anything;
        let unnamed = problem.writers[UNNAMED as usize].iter();
        let has_unnamed_put = unnamed.clone().filter(blind).any(|class| self.next_member(*class).is_some());
        let named = problem.writers[UNNAMED as usize + 1..].iter().flatten();
        let named = named.filter(possible).filter(|class| !(has_unnamed_put && blind(class)));
        self.extend(unnamed.filter(possible).chain(named));
    }

    /// Puts a member of each of the classes at the front of the chain, and before it what it needs.
    fn extend<'b>(&mut self, classes: impl Iterator<Item = &'b usize>) {
        let mut usable_here: BTreeMap<Then, (u8, usize)> = BTreeMap::new();
        for &class in classes {
            self.steps_left = self.steps_left.saturating_sub(1);
            if self.steps_left == 0 {
                return;
            }
            let Some(at) = self.next_member(class) else { continue };
            let Action { need, then } = self.point.problem.classes[class].action;
            if need.bind(self.point.state).is_none() {
                if !self.needs.contains(&need) {
                    self.reversed.push(at);
                    self.establish(need, Want::Need);
                    self.reversed.pop();
                }
            } else if let Some(rank) = versatility(need, self.point.state) {
                let best = usable_here.entry(then).or_insert((rank, at));
                *best = (*best).min((rank, at));
            } else {
                self.add(at);
            }
        }
        for (_, at) in usable_here.into_values() {
            self.add(at);
        }
    }

    fn add(&mut self, first: usize) {
        let chain = std::iter::once(first).chain(self.reversed.iter().rev().copied());
        self.found.push(chain.collect());
    }

    /// The earliest member that is not used yet, if it can be used now.
    fn next_member(&self, class: usize) -> Option<usize> {
        let members = self.point.problem.classes[class].members.iter().copied();
        let next = { members }.find(|at| !self.point.placed[*at] && !self.reversed.contains(at))?;
        (self.point.problem.ops[next].invoked <= self.point.horizon).then_some(next)
    }
}

/// Ranks open operations that are possible in `state` and write the same. Where a linearization uses a
/// more versatile one here, and a less versatile one later or never, exchanging them keeps it valid:
/// the later place satisfies the stricter need, so the laxer one too. An operation that needs the
/// present version is never possible again, so it is the first to be used. (`None`: not to be compared,
/// because using it binds a version that is not known.)
fn versatility(need: Need, state: State) -> Option<u8> {
    match need {
        Need::Version(_) | Need::Exactly(..) => state.exact.then_some(0),
        Need::Value(_) => Some(1),
        Need::Absent | Need::Present => Some(2),
        Need::Anything => Some(3),
        Need::Never => None,
    }
}
