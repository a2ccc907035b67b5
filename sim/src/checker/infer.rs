//! What follows from the answers alone, before any search: open operations that must have happened,
//! and values behind versions. It turns most guesses of the search into facts.
//!
//! Each rule holds in every linearization, and takes no linearization away:
//!
//! 1. *A value that was seen was written.* If exactly one operation of the key writes x, and a definite
//!    operation saw x, then the writer took effect, before that operation returned, under the version
//!    that was shown. If the writer is open (unknown outcome), it becomes a definite operation whose
//!    interval ends there. (Without the condition on uniqueness the rule would be wrong: another writer
//!    may have been the one.) What such a writer needs itself, it saw.
//! 2. *A version belongs to one write*, so all who speak of it speak of the same value: "exists,
//!    version n" means the value that another answer, or the write's own, shows for n.
//! 3. *A value written by one definite operation alone has that operation's version* wherever it is seen
//!    or expected.
//!
//! An open write that nobody saw is not removed here: a delete or a put-if-absent may have noticed
//! its presence, or a swap its version, without showing the value. [`super::chains`] deals with those.
//!
//! Contradictory answers (one version shown with two values) may make a rule pick either; the operations
//! concerned stay in the problem, so it stays a contradiction.

use std::collections::{BTreeMap, BTreeSet};

use super::history::{Moment, Version};
use super::model::{Need, Then, ValueId};
use super::problem::Op;

/// Who saw a value.
struct Sight {
    version: Option<Version>,
    /// The earliest end of an operation that saw it.
    until: Moment,
}

/// Applies the rules until nothing follows any more. Operations move from `open` to `definite`.
pub(super) fn settle(definite: &mut Vec<Op>, open: &mut Vec<Op>) {
    let written_once = written_once(definite, open);
    loop {
        name_versions(definite, open, &written_once);
        let seen = sights(definite);
        let before = open.len();
        let mut still_open = Vec::new();
        for mut op in open.drain(..) {
            let Then::Write(Some(value), _) = op.action.then else {
                still_open.push(op);
                continue;
            };
            match seen.get(&value) {
                Some(sight) if written_once.contains(&value) => {
                    op.action.then = Then::Write(Some(value), sight.version);
                    op.returned = sight.until;
                    definite.push(op);
                }
                _ => still_open.push(op),
            }
        }
        *open = still_open;
        if open.len() == before {
            return;
        }
    }
}

/// The values that one operation alone writes.
fn written_once(definite: &[Op], open: &[Op]) -> BTreeSet<ValueId> {
    let mut writers: BTreeMap<ValueId, usize> = BTreeMap::new();
    for op in definite.iter().chain(open) {
        if let Then::Write(Some(value), _) = op.action.then {
            *writers.entry(value).or_default() += 1;
        }
    }
    writers.into_iter().filter(|(_, count)| *count == 1).map(|(value, _)| value).collect()
}

fn sights(definite: &[Op]) -> BTreeMap<ValueId, Sight> {
    let mut seen: BTreeMap<ValueId, Sight> = BTreeMap::new();
    for op in definite {
        let (value, version) = match op.action.need {
            Need::Value(value) => (value, None),
            Need::Exactly(value, version) => (value, Some(version)),
            _ => continue,
        };
        let sight = seen.entry(value).or_insert(Sight { version, until: op.returned });
        sight.version = sight.version.or(version);
        sight.until = sight.until.min(op.returned);
    }
    seen
}

/// Rules 2 and 3.
fn name_versions(definite: &mut [Op], open: &mut [Op], written_once: &BTreeSet<ValueId>) {
    let mut value_of: BTreeMap<Version, Option<ValueId>> = BTreeMap::new();
    let mut version_of: BTreeMap<ValueId, Version> = BTreeMap::new();
    for op in definite.iter() {
        if let Need::Exactly(value, version) = op.action.need {
            value_of.insert(version, Some(value));
        }
        if let Then::Write(value, Some(version)) = op.action.then {
            value_of.insert(version, value);
            if let Some(value) = value.filter(|value| written_once.contains(value)) {
                version_of.insert(value, version);
            }
        }
    }
    for op in definite.iter_mut().chain(open) {
        op.action.need = match op.action.need {
            Need::Version(version) => match value_of.get(&version) {
                Some(Some(value)) => Need::Exactly(*value, version),
                Some(None) => Need::Never,
                None => Need::Version(version),
            },
            Need::Value(value) => {
                let version = version_of.get(&value);
                version.map_or(Need::Value(value), |version| Need::Exactly(value, *version))
            }
            need => need,
        };
    }
}
