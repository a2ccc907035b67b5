//! Makes a violation readable: the few operations that contradict one another, and the dead end.
//!
//! The core is found by weakening: an answer is forgotten (a write becomes one of unknown outcome, a
//! read vanishes), and if the rest is still a contradiction, it stays forgotten. The history is cut after
//! the earliest return that makes it contradictory; then reads are forgotten, then what is far from the
//! end, then anything: by halves, quarters and so on down to single answers (Zeller's delta debugging,
//! without its refinement).
//!
//! Invariant: whatever the budget, the returned core is a contradiction by itself. A search that was
//! not decided counts as none.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::history::{History, Key, OpId, Outcome};
use super::model::{Need, State, Then};
use super::problem::{self, Ends, Problem};
use super::render;
use super::search::{Found, Furthest, Search};

/// A small set of operations whose answers contradict one another, in the order of invocation.
pub(super) fn core(history: &History, ids: &[OpId], steps: u64) -> Vec<OpId> {
    let mut known: Vec<OpId> =
        ids.iter().copied().filter(|id| matches!(history.operation(*id).outcome, Outcome::Ok(_))).collect();
    known.sort_by_key(|id| history.returned_at(*id));
    let mut oracle = Oracle { history, ids, steps_left: steps, steps_each: steps / 50 };

    // Linearizability is closed under prefixes, so the length can be bisected.
    let (mut fine, mut broken) = (0, known.len());
    while fine + 1 < broken {
        let middle = fine.midpoint(broken);
        if oracle.contradicts(&known[..middle]) {
            broken = middle;
        } else {
            fine = middle;
        }
    }
    known.truncate(broken);

    // What had no effect goes first: without it, but with all writes known, the rest is easy to judge.
    let reads = known.iter().copied().filter(|id| !had_effect(history, *id)).collect();
    known = oracle.forget(known, reads);

    // The last one is guilty; its accomplices are mostly not far before it.
    let mut recent = 2;
    while recent < known.len() {
        let suffix = &known[known.len() - recent..];
        if oracle.contradicts(suffix) {
            known = suffix.to_vec();
            break;
        }
        recent *= 2;
    }
    let all = known.clone();
    known = oracle.forget(known, all);
    known.sort_by_key(|id| history.invoked_at(*id));
    known
}

fn had_effect(history: &History, id: OpId) -> bool {
    matches!(&history.operation(id).outcome, Outcome::Ok(output) if problem::had_effect(output))
}

struct Oracle<'a> {
    history: &'a History,
    ids: &'a [OpId],
    steps_left: u64,
    /// No single question may use up the budget: some weakened histories are hard.
    steps_each: u64,
}

impl Oracle<'_> {
    fn contradicts(&mut self, known: &[OpId]) -> bool {
        if self.steps_left == 0 || known.is_empty() {
            return false;
        }
        let known: BTreeSet<OpId> = known.iter().copied().collect();
        let problem = Problem::new(self.history, self.ids, |id| known.contains(&id), Ends::OfAny);
        let steps = self.steps_left.min(self.steps_each);
        let mut search = Search::new(&problem, steps);
        let found = search.run();
        self.steps_left = self.steps_left.saturating_sub(steps.saturating_sub(search.steps_left()).max(1));
        matches!(found, Found::Contradiction(_))
    }
}

impl Oracle<'_> {
    /// Forgets as many of the candidates as it can: halves of them, then quarters, down to single ones.
    fn forget(&mut self, mut known: Vec<OpId>, mut candidates: Vec<OpId>) -> Vec<OpId> {
        let mut size = candidates.len().div_ceil(2);
        while size > 0 && !candidates.is_empty() {
            let mut start = 0;
            while start < candidates.len() {
                let end = (start + size).min(candidates.len());
                let dropped: BTreeSet<OpId> = candidates[start..end].iter().copied().collect();
                let rest: Vec<OpId> = known.iter().copied().filter(|id| !dropped.contains(id)).collect();
                if self.contradicts(&rest) {
                    known = rest;
                    candidates.drain(start..end);
                } else {
                    start = end;
                }
            }
            size = if size == 1 { 0 } else { size.div_ceil(2) };
        }
        known
    }
}

/// The whole message about a violation.
pub(super) fn text(history: &History, key: &Key, problem: &Problem, core: &[OpId], furthest: &Furthest) -> String {
    let mut text = format!(
        "key {}: not linearizable ({} operations answered, {} open)\n\
         these answers contradict one another, whatever the others were:\n{}",
        render::short(key),
        problem.definite,
        problem.ops.len() - problem.definite,
        render::lines(history, core)
    );
    let tail: String = furthest.tail.iter().map(|at| step_text(history, problem, *at)).collect();
    let _ = write!(
        text,
        "the longest order found explains {} of {} answers and ends with:\n{}\
         the key then holds {}, and none of these can come next:\n",
        furthest.placed,
        problem.definite,
        tail,
        state_text(problem, furthest.state),
    );
    for &at in &furthest.stuck {
        let id = problem.ops[at].id;
        let line = render::line(id, history.operation(id));
        let _ = writeln!(text, "  {line}: {}", obstacle(problem, furthest.state, at));
    }
    text
}

fn step_text(history: &History, problem: &Problem, at: usize) -> String {
    let op = &problem.ops[at];
    if op.ends {
        return format!("  the end of what #{} wrote, by its ttl\n", op.id.0);
    }
    render::lines(history, &[op.id])
}

fn state_text(problem: &Problem, state: State) -> String {
    match state.value {
        None => format!("nothing (versions up to {} are used)", state.last),
        Some(value) => {
            let name = problem.name(value).map_or("a value nobody names".to_owned(), render::short);
            let relation = if state.exact { "version" } else { "an unknown version, at least" };
            format!("{name}, {relation} {}", state.last)
        }
    }
}

/// Why an operation cannot come next.
fn obstacle(problem: &Problem, state: State, at: usize) -> String {
    let action = problem.ops[at].action;
    let Some(bound) = action.need.bind(state) else {
        return match action.need {
            Need::Never => "the answer contradicts the question".to_owned(),
            Need::Absent => "the key is not absent".to_owned(),
            Need::Present => "the key is absent".to_owned(),
            Need::Version(version) => format!("version {version} is not there"),
            Need::Anything | Need::Value(_) | Need::Exactly(..) => "that value is not there".to_owned(),
        };
    };
    match action.then {
        Then::Write(_, Some(version)) if version <= bound.last => {
            format!("version {version} is not above {}", bound.last)
        }
        _ => "possible, but what remains cannot follow".to_owned(),
    }
}
