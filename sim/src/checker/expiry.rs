//! Values with a ttl: what is promised of them, and the check that they do not outlive it.
//!
//! What is promised to clients:
//! 1. *Never early.* A value that was written with a ttl is there at least until the ttl has passed since the request was
//!    made, unless somebody writes or deletes. No change of leaders, restart, move, split or drift of clocks shortens it.
//! 2. *A write takes the end away with the value.* A later put without a ttl stays, one with a ttl has its own time, and a
//!    write that was refused (a swap that failed, a put-if-absent of a key that was there) renews nothing.
//! 3. *The end is a deletion like any other*, replicated and with a version of its own: what was seen gone, or noticed by
//!    a write that needs absence, stays gone until somebody writes. Reads hide nothing: a value that is due is there
//!    until its end is applied, for reads and conditions alike.
//! 4. *Not long after.* A leader that can commit ends a key within a second of the time that it counts, and its clock
//!    is made to run slow by the drift that is allowed for. Time without a leader does not count, and a change of
//!    leaders repeats what was counted since it was last noted in the log. So under faults there is no bound; and from
//!    any moment on, as long as leaders stay in place and can commit, a value ends within its ttl (as the slowest clock
//!    counts it) and that second, however much of the ttl had passed before. A merge of two ranges may turn back the time
//!    that one of them counts by, by ten seconds at the most: as if so much of the ttl had not passed.
//!
//! The first three are part of the main check: the end of a value is an operation of unknown outcome that begins when
//! the ttl may be over ([`super::model`]). The fourth is this file's: [`nothing_outlives`] is told the calm times.

use super::audit::Finding;
use super::history::{Expect, History, Input, OpId, Outcome, Output, Value, Version};
use super::render;

/// When values had to end in time, and what "in time" is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calm {
    /// From when until when all that promise 4 asks for was given.
    pub spans: Vec<(u64, u64)>,
    /// How much true time may pass while a unit of a ttl is counted.
    pub slowest: f64,
    /// How long after the ttl a value may still be seen.
    pub late_ns: u64,
}

/// Looks for values that were seen long after their ttl was over.
pub fn nothing_outlives(history: &History, calm: &Calm) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, ids) in history.by_key() {
        if calm.spans.is_empty() || ids.iter().all(|id| history.operation(*id).ttl_ns == 0) {
            continue;
        }
        let sights: Vec<Sight<'_>> = ids.iter().filter_map(|id| sight(history, *id)).collect();
        for seen in &sights {
            let asked = history.operation(seen.id).invoked_ns;
            let Some(over) = over(history, calm, &ids, &sights, seen, asked) else { continue };
            if asked > over {
                let line = render::line(seen.id, history.operation(seen.id));
                let what = format!("its ttl was over {} us before it was seen by {line}", (asked - over) / 1_000);
                findings.push(Finding { key: key.clone(), operations: vec![seen.id], what });
            }
        }
    }
    findings
}

/// An answer that proves that a value was there.
struct Sight<'a> {
    id: OpId,
    value: &'a Value,
    version: Option<Version>,
    until_ns: u64,
}

fn sight(history: &History, id: OpId) -> Option<Sight<'_>> {
    let operation = history.operation(id);
    let (value, version) = match (&operation.input, &operation.outcome) {
        (_, Outcome::Ok(Output::Get(Some((value, version))) | Output::Failed { current: Some((value, version)) })) => {
            (value, Some(*version))
        }
        (Input::CompareAndSwap { expect: Expect::Value(value), .. }, Outcome::Ok(Output::Applied { .. })) => {
            (value, None)
        }
        _ => return None,
    };
    Some(Sight { id, value, version, until_ns: history.returned_at(id).0 })
}

/// From when on nobody may see what was seen any more; `None`: it need not have ended.
fn over(
    history: &History,
    calm: &Calm,
    ids: &[OpId],
    sights: &[Sight<'_>],
    seen: &Sight<'_>,
    asked_ns: u64,
) -> Option<u64> {
    let (from, _) = calm.spans.iter().find(|(from, to)| (*from..=*to).contains(&asked_ns))?;
    let writers = writers(history, ids, seen);
    if writers.iter().any(|id| history.operation(*id).ttl_ns == 0) {
        return None;
    }
    // It was surely written when its writer was told so, or when somebody had seen what this writer alone writes.
    let same = sights.iter().filter(|other| writers.len() == 1 && other.value == seen.value);
    let first_seen = same.map(|other| other.until_ns).min().unwrap_or(u64::MAX);
    let over = |id: &OpId| {
        let written = history.returned_at(*id).0.min(first_seen).max(*from);
        let counted = (history.operation(*id).ttl_ns as f64 * calm.slowest) as u64;
        written.saturating_add(counted).saturating_add(calm.late_ns)
    };
    writers.iter().map(over).max()
}

/// Those that may have written what was seen.
fn writers(history: &History, ids: &[OpId], seen: &Sight<'_>) -> Vec<OpId> {
    let mut writers = Vec::new();
    for &id in ids {
        let operation = history.operation(id);
        let (Input::Put(value) | Input::PutIfAbsent(value) | Input::CompareAndSwap { new: Some(value), .. }) =
            &operation.input
        else {
            continue;
        };
        let version = match &operation.outcome {
            Outcome::NotApplied => continue,
            Outcome::Ok(Output::Put { version } | Output::Applied { version }) => Some(*version),
            Outcome::Ok(_) => continue,
            Outcome::Unknown => None,
        };
        let other = version.is_some() && seen.version.is_some() && version != seen.version;
        if value != seen.value || other {
            continue;
        }
        writers.push(id);
    }
    writers
}
