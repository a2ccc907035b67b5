//! Operations as text, for messages that a person reads after a failure.
//!
//! One line per operation: client, interval in microseconds, question, answer. Values are
//! shortened; nothing is left out otherwise.

use std::fmt::Write as _;

use bytes::Bytes;

use super::history::{Expect, History, Input, OpId, Operation, Outcome, Output, Versioned};

/// Values longer than this are cut in messages.
const SHOWN_BYTES: usize = 32;

/// The operations of one key in the order of their invocation, one a line.
pub fn timeline(history: &History, key: &Bytes) -> String {
    let mut ids: Vec<OpId> = history.operations().filter(|(_, op)| op.key == *key).map(|(id, _)| id).collect();
    ids.sort_by_key(|id| history.invoked_at(*id));
    lines(history, &ids)
}

/// The given operations, one a line, in the given order.
pub fn lines(history: &History, ids: &[OpId]) -> String {
    let mut text = String::new();
    for id in ids {
        let _ = writeln!(text, "  {}", line(*id, history.operation(*id)));
    }
    text
}

/// One operation: `#12 c3 [1.000 .. 2.500 us] put "a" -> v7`.
pub fn line(id: OpId, operation: &Operation) -> String {
    let mut text = format!("#{} c{} [{} .. ", id.0, operation.client, micros(operation.invoked_ns));
    match (&operation.outcome, operation.returned_ns) {
        (Outcome::Unknown, _) | (_, None) => text.push('?'),
        (_, Some(time)) => text.push_str(&micros(time)),
    }
    let _ = write!(text, " us] {}", question(&operation.input));
    if operation.ttl_ns > 0 {
        let _ = write!(text, " for {} us", micros(operation.ttl_ns));
    }
    text.push_str(" -> ");
    match &operation.outcome {
        Outcome::Ok(output) => text.push_str(&answer(output)),
        Outcome::NotApplied => text.push_str("surely not applied"),
        Outcome::Unknown => text.push_str("unknown"),
    }
    text
}

/// A value or key, quoted and shortened.
pub(super) fn short(bytes: &Bytes) -> String {
    let shown = &bytes[..bytes.len().min(SHOWN_BYTES)];
    if shown.len() == bytes.len() {
        format!("\"{}\"", shown.escape_ascii())
    } else {
        format!("\"{}...\"({} bytes)", shown.escape_ascii(), bytes.len())
    }
}

fn micros(time_ns: u64) -> String {
    format!("{}.{:03}", time_ns / 1_000, time_ns % 1_000)
}

fn question(input: &Input) -> String {
    match input {
        Input::Get => "get".to_owned(),
        Input::Put(value) => format!("put {}", short(value)),
        Input::PutIfAbsent(value) => format!("put-if-absent {}", short(value)),
        Input::Delete => "delete".to_owned(),
        Input::CompareAndSwap { expect, new } => {
            let expected = match expect {
                Expect::Value(value) => short(value),
                Expect::Version(version) => format!("v{version}"),
                Expect::Absent => "nothing".to_owned(),
            };
            let new = new.as_ref().map_or_else(|| "nothing".to_owned(), short);
            format!("cas {expected} => {new}")
        }
    }
}

fn answer(output: &Output) -> String {
    match output {
        Output::Get(found) => versioned(found.as_ref()),
        Output::Put { version } => format!("v{version}"),
        Output::Delete { existed, version } => {
            let existed = if *existed { "existed" } else { "was absent" };
            version.map_or_else(|| existed.to_owned(), |version| format!("{existed}, v{version}"))
        }
        Output::Applied { version } => format!("applied v{version}"),
        Output::Exists { version } => format!("exists v{version}"),
        Output::Failed { current } => format!("failed, found {}", versioned(current.as_ref())),
    }
}

fn versioned(found: Option<&Versioned>) -> String {
    found.map_or_else(|| "nothing".to_owned(), |(value, version)| format!("{} v{version}", short(value)))
}
