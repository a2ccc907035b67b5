//! The main checker: is every key's history linearizable (invariant I12)?
//!
//! Keys are checked one by one, which is sound and complete for operations on single keys
//! (linearizability is local, Herlihy and Wing 1990). Atomic batches are recorded as one operation
//! for each key, so what is checked of them is each key alone, not that they are atomic.
//!
//! Flow: [`super::history`] -> `problem` (one key, prepared) -> `search` (with `chains` and `model`)
//! -> `explain` (what contradicts what) -> [`Verdict`].
//!
//! Invariant: never a silent pass. Whatever was not decided within the budget is
//! [`Verdict::Undecided`], which callers must treat as a failure of the test.

use std::fmt;

use super::explain;
use super::history::{History, Key, OpId, Outcome};
use super::problem::{Ends, Problem};
use super::render;
use super::search::{Found, Search};

/// Bounds on the work for one key.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// How many candidates the search may look at; each takes well below a microsecond and at most
    /// about 100 bytes.
    pub search_steps: u64,
    /// How many more may be spent on making the explanation of a violation small.
    pub explain_steps: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { search_steps: 5_000_000, explain_steps: 10_000_000 }
    }
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Every key is linearizable.
    Ok(Checked),
    /// This key is not.
    Violation(Box<Violation>),
    /// No violation was found, but this key was not decided.
    Undecided {
        /// The first such key.
        key: Key,
        /// Why it was given up.
        reason: String,
    },
}

/// What was looked at; shows whether a pass means anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Keys.
    pub keys: usize,
    /// Operations with a known answer.
    pub definite: usize,
    /// Operations of unknown outcome.
    pub unknown: usize,
    /// Operations that surely were not applied.
    pub not_applied: usize,
}

/// A key whose history has no explanation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The key.
    pub key: Key,
    /// Operations whose answers contradict one another, whatever the answers to all others were.
    pub core: Vec<OpId>,
    /// For the reader.
    pub explanation: String,
}

impl Verdict {
    /// Whether everything was checked and is linearizable.
    pub fn is_ok(&self) -> bool {
        matches!(self, Self::Ok(_))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok(checked) => write!(
                f,
                "linearizable: {} keys, {} operations answered, {} of unknown outcome, {} not applied",
                checked.keys, checked.definite, checked.unknown, checked.not_applied
            ),
            Self::Violation(violation) => f.write_str(&violation.explanation),
            Self::Undecided { key, reason } => {
                write!(f, "key {}: not decided: {reason}", render::short(key))
            }
        }
    }
}

/// Checks all keys. The first violation, in the order of keys, is reported; failing that, the first
/// key that was not decided.
pub fn check(history: &History, budget: Budget) -> Verdict {
    let mut checked = Checked::default();
    let mut undecided = None;
    for (key, ids) in history.by_key() {
        match check_key(history, key, &ids, budget) {
            Verdict::Ok(more) => {
                checked.keys += more.keys;
                checked.definite += more.definite;
                checked.unknown += more.unknown;
                checked.not_applied += more.not_applied;
            }
            violation @ Verdict::Violation(_) => return violation,
            verdict @ Verdict::Undecided { .. } => {
                undecided.get_or_insert(verdict);
            }
        }
    }
    undecided.unwrap_or(Verdict::Ok(checked))
}

fn check_key(history: &History, key: &Key, ids: &[OpId], budget: Budget) -> Verdict {
    let mut problem = Problem::new(history, ids, |_| true, Ends::OfTheirOwn);
    let mut found = Search::new(&problem, budget.search_steps).run();
    if matches!(found, Found::OutOfBudget(_)) {
        // A contradiction may be found sooner where ends are easier to place. (If none is, nothing is known.)
        let loose = Problem::new(history, ids, |_| true, Ends::OfAny);
        if let contradiction @ Found::Contradiction(_) = Search::new(&loose, budget.search_steps).run() {
            (problem, found) = (loose, contradiction);
        }
    }
    match found {
        Found::Linearizable => Verdict::Ok(count(history, ids)),
        Found::Contradiction(furthest) => {
            let core = explain::core(history, ids, budget.explain_steps);
            let explanation = explain::text(history, key, &problem, &core, &furthest);
            Verdict::Violation(Box::new(Violation { key: key.clone(), core, explanation }))
        }
        Found::OutOfBudget(furthest) => Verdict::Undecided {
            key: key.clone(),
            reason: format!(
                "{} operations ({} of unknown outcome) took more than {} steps; the longest order found \
                 explains {} of {}",
                ids.len(),
                count(history, ids).unknown,
                budget.search_steps,
                furthest.placed,
                problem.definite
            ),
        },
    }
}

fn count(history: &History, ids: &[OpId]) -> Checked {
    let mut checked = Checked { keys: 1, ..Checked::default() };
    for id in ids {
        match history.operation(*id).outcome {
            Outcome::Ok(_) => checked.definite += 1,
            Outcome::NotApplied => checked.not_applied += 1,
            Outcome::Unknown => checked.unknown += 1,
        }
    }
    checked
}
