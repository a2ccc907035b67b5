//! Two cheap checks that share nothing with the linearizability search but the history.
//!
//! They are weaker (they would accept many histories that are not linearizable), cost one pass over the
//! history, and read no state machine: what they report stands by itself, and a mistake in the search
//! cannot hide it.
//!
//! - [`nothing_lost`]: what was acknowledged last is what a final read finds, or something newer.
//! - [`nothing_invented`]: whatever was read had been written, under that version, by an operation
//!   invoked before the read returned; and no version was given out twice for a key.

use std::collections::BTreeMap;
use std::fmt;

use super::history::{Expect, History, Input, Key, Moment, OpId, Outcome, Output, Value, Version, Versioned};
use super::render;

/// Something that an audit found to be wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The key.
    pub key: Key,
    /// The operations concerned.
    pub operations: Vec<OpId>,
    /// What is wrong, for the reader.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {}: {}", render::short(&self.key), self.what)
    }
}

/// What [`nothing_lost`] came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct LossAudit {
    /// Acknowledged writes that are gone.
    pub findings: Vec<Finding>,
    /// How many keys had acknowledged writes and a final read to compare them with.
    pub keys_compared: usize,
    /// Keys with acknowledged writes but no get after all of them: nothing is known of these.
    pub keys_without_final_read: Vec<Key>,
}

/// A write that may have happened.
struct Write<'a> {
    id: OpId,
    /// `None` for a deletion.
    value: Option<&'a Value>,
    /// `None` if the version is not known.
    version: Option<Version>,
    acknowledged: bool,
    /// When it had surely happened, if it ever does.
    until: Moment,
    /// When what it wrote may end by itself.
    ends: Option<Moment>,
}

/// Compares each key's final read (a get invoked after every acknowledged write had returned) with
/// the acknowledged write of the highest version.
pub fn nothing_lost(history: &History) -> LossAudit {
    let mut audit = LossAudit::default();
    for (key, ids) in history.by_key() {
        let writes = writes(history, &ids);
        let acknowledged = || writes.iter().filter(|write| write.acknowledged);
        let Some(quiet) = acknowledged().map(|write| history.returned_at(write.id)).max() else {
            continue;
        };
        let final_reads = ids.iter().copied().filter(|id| history.invoked_at(*id) > quiet);
        let mut compared = false;
        for (id, found) in final_reads.filter_map(|id| read_by_get(history, id)) {
            compared = true;
            if let Some(what) = lost(history, &writes, id, found) {
                let operations = acknowledged().map(|write| write.id).chain([id]).collect();
                let what = format!("{what}, by {}", render::line(id, history.operation(id)));
                audit.findings.push(Finding { key: key.clone(), operations, what });
            }
        }
        if compared {
            audit.keys_compared += 1;
        } else {
            audit.keys_without_final_read.push(key.clone());
        }
    }
    audit
}

fn read_by_get(history: &History, id: OpId) -> Option<(OpId, Option<&Versioned>)> {
    match &history.operation(id).outcome {
        Outcome::Ok(Output::Get(found)) => Some((id, found.as_ref())),
        _ => None,
    }
}

/// What is missing in a final read, if anything.
fn lost(history: &History, writes: &[Write<'_>], read: OpId, found: Option<&Versioned>) -> Option<String> {
    let newest = writes.iter().filter(|write| write.acknowledged).max_by_key(|write| write.version.unwrap_or(0))?;
    let newest_version = newest.version.unwrap_or(0);
    // The newest, or one that may be newer still: a deletion, or a value whose ttl may have been over.
    let may_be_last = |write: &&Write<'_>| {
        write.id == newest.id || (write.version.is_none() && write.until > history.invoked_at(newest.id))
    };
    let leaves_nothing =
        |write: &Write<'_>| write.value.is_none() || write.ends.is_some_and(|ends| ends <= history.returned_at(read));
    match found {
        None if writes.iter().filter(may_be_last).any(leaves_nothing) => None,
        None => Some(format!("acknowledged version {newest_version} is gone, nothing was found")),
        Some((_, version)) if *version < newest_version => {
            Some(format!("acknowledged version {newest_version} is gone, older version {version} was found"))
        }
        Some((value, version)) if *version == newest_version && newest.value != Some(value) => {
            Some(format!("version {version} was acknowledged with another value than was found"))
        }
        Some(_) => None,
    }
}

fn writes<'a>(history: &'a History, ids: &[OpId]) -> Vec<Write<'a>> {
    let mut writes = Vec::new();
    for &id in ids {
        let operation = history.operation(id);
        let value = match &operation.input {
            Input::Get => continue,
            Input::Put(value) | Input::PutIfAbsent(value) => Some(value),
            Input::Delete => None,
            Input::CompareAndSwap { new, .. } => new.as_ref(),
        };
        let (version, acknowledged) = match &operation.outcome {
            Outcome::NotApplied => continue,
            Outcome::Unknown => (None, false),
            Outcome::Ok(Output::Put { version } | Output::Applied { version }) => (Some(*version), true),
            Outcome::Ok(Output::Delete { existed: true, version }) => (*version, true),
            Outcome::Ok(Output::Delete { existed: false, version: Some(version) }) => (Some(*version), true),
            Outcome::Ok(_) => continue,
        };
        let (until, ends) = (history.returned_at(id), history.ends_at(id).filter(|_| value.is_some()));
        writes.push(Write { id, value, version, acknowledged, until, ends });
    }
    writes
}

/// Looks for values that nobody wrote (or only later), versions that do not belong to them, and
/// versions that were given out twice.
pub fn nothing_invented(history: &History) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, ids) in history.by_key() {
        let writes = writes(history, &ids);
        let mut by_version: BTreeMap<Version, OpId> = BTreeMap::new();
        for write in &writes {
            let Some(version) = write.version else { continue };
            if let Some(other) = by_version.insert(version, write.id) {
                findings.push(Finding {
                    key: key.clone(),
                    operations: vec![other, write.id],
                    what: format!("version {version} was given to two writes"),
                });
            }
        }
        let mut by_value: BTreeMap<&Value, Vec<&Write<'_>>> = BTreeMap::new();
        for write in &writes {
            if let Some(value) = write.value {
                by_value.entry(value).or_default().push(write);
            }
        }
        for &id in &ids {
            let Some((value, version)) = seen(history, id) else { continue };
            let fits = |write: &&Write<'_>| {
                history.invoked_at(write.id) < history.returned_at(id)
                    && write.id != id
                    && (version.is_none() || write.version.is_none() || write.version == version)
            };
            if by_value.get(value).is_none_or(|writes| !writes.iter().any(fits)) {
                let line = render::line(id, history.operation(id));
                findings.push(Finding {
                    key: key.clone(),
                    operations: vec![id],
                    what: format!("nobody had written what was seen by {line}"),
                });
            }
        }
    }
    findings
}

/// The value, and version if shown, that an operation's answer proves to have been there.
fn seen(history: &History, id: OpId) -> Option<(&Value, Option<Version>)> {
    let operation = history.operation(id);
    match (&operation.input, &operation.outcome) {
        (_, Outcome::Ok(Output::Get(Some((value, version)))))
        | (_, Outcome::Ok(Output::Failed { current: Some((value, version)) })) => Some((value, Some(*version))),
        (Input::CompareAndSwap { expect: Expect::Value(value), .. }, Outcome::Ok(Output::Applied { .. })) => {
            Some((value, None))
        }
        _ => None,
    }
}
