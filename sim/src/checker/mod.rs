//! Checkers of client histories: what clients asked and were told, judged after the run.
//!
//! They know nothing of the engine or of the simulator, so that tests with real processes use the same
//! ones. Flow: a workload records a [`History`]; [`check`] decides whether every key is linearizable;
//! [`nothing_lost`] and [`nothing_invented`] look again, in a cheaper and independent way; [`nothing_outlives`] sees to it
//! that values with a ttl end in time. Losses that were announced: [`Chapters`].
//!
//! ```
//! use flotilla_sim::checker::{Budget, History, Input, Outcome, Output, check};
//!
//! let mut history = History::new();
//! let key = bytes::Bytes::from("k");
//! let put = history.invoke(1, 100, key.clone(), Input::Put("a".into()));
//! history.complete(put, 250, Outcome::Ok(Output::Put { version: 1 }));
//! let get = history.invoke(2, 300, key, Input::Get);
//! history.complete(get, 400, Outcome::Ok(Output::Get(None)));
//! // A read that began after the write was acknowledged did not see it.
//! let verdict = check(&history, Budget::default());
//! assert!(!verdict.is_ok());
//! println!("{verdict}");
//! ```
//!
//! Limits: an atomic batch is checked key by key, a scan not at all; every key starts out absent.
//! Workloads should write each value once per key: the checker does not rely on it, but with few values
//! and many unknown outcomes it may come out undecided.

mod audit;
mod chains;
mod chapters;
mod expiry;
mod explain;
mod history;
mod infer;
mod linearizability;
mod model;
mod problem;
mod render;
mod search;
#[cfg(test)]
mod tests;

pub use audit::{Finding, LossAudit, nothing_invented, nothing_lost};
pub use chapters::Chapters;
pub use expiry::{Calm, nothing_outlives};
pub use history::{Expect, History, Input, Key, OpId, Operation, Outcome, Output, Value, Version, Versioned};
pub use linearizability::{Budget, Checked, Verdict, Violation, check};
pub use render::{line, lines, timeline};
