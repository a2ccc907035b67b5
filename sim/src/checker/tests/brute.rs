//! A checker that tries everything, for tiny histories. It shares no code with the real one: versions
//! of unknown writes are guessed as numbers, and every order of every subset of operations is tried.

use super::*;

#[derive(Clone)]
struct Register {
    current: Option<(bytes::Bytes, Version)>,
    last: Version,
    /// When what it holds may end by itself.
    ends_ns: Option<u64>,
}

/// Whether some order explains the history. Guesses for versions that nobody was told range up to
/// `limit`, the highest in the history; above it one guess, the next number, is as good as any.
pub(super) fn linearizable(operations: &[Operation], limit: Version) -> bool {
    let left: Vec<&Operation> = operations.iter().filter(|op| op.outcome != Outcome::NotApplied).collect();
    explains(&left, &Register { current: None, last: 0, ends_ns: None }, limit)
}

fn explains(left: &[&Operation], register: &Register, limit: Version) -> bool {
    if left.iter().all(|op| op.outcome == Outcome::Unknown) {
        return true;
    }
    if ends(left, register, limit) {
        return true;
    }
    (0..left.len()).any(|at| {
        let next = left[at];
        let overtakes =
            |other: &&Operation| matches!(other.outcome, Outcome::Ok(_)) && other.returned_ns < Some(next.invoked_ns);
        if left.iter().any(overtakes) {
            return false;
        }
        let rest: Vec<&Operation> = [&left[..at], &left[at + 1..]].concat();
        for version in register.last + 1..=limit.max(register.last + 1) {
            let mut after = register.clone();
            let answer = apply(&mut after, &next.input, version);
            if after.last != register.last {
                let kept = after.current.is_some() && next.ttl_ns > 0;
                after.ends_ns = kept.then_some(next.invoked_ns + next.ttl_ns);
            }
            let fits = match &next.outcome {
                Outcome::Ok(output) => same(output, &answer),
                _ => true,
            };
            if fits && explains(&rest, &after, limit) {
                return true;
            }
            if after.last == register.last {
                // Nothing was written: another version would change nothing.
                break;
            }
        }
        false
    })
}

/// Whether the history is explained by the end of the value that is there, now.
fn ends(left: &[&Operation], register: &Register, limit: Version) -> bool {
    let Some(ends_ns) = register.ends_ns else { return false };
    let overtaken = |other: &&Operation| matches!(other.outcome, Outcome::Ok(_)) && other.returned_ns < Some(ends_ns);
    !left.iter().any(overtaken)
        && (register.last + 1..=limit.max(register.last + 1))
            .any(|version| explains(left, &Register { current: None, last: version, ends_ns: None }, limit))
}

/// Equality, but for the version of a deletion that was not reported.
fn same(told: &Output, answer: &Output) -> bool {
    match (told, answer) {
        (Output::Delete { existed: told, version: None }, Output::Delete { existed, .. }) => told == existed,
        _ => told == answer,
    }
}

/// An ordinary register.
fn apply(register: &mut Register, input: &Input, version: Version) -> Output {
    let current = &register.current.clone();
    let mut write = |value: Option<bytes::Bytes>| {
        register.last = version;
        register.current = value.map(|value| (value, version));
        Output::Applied { version }
    };
    match input {
        Input::Get => Output::Get(current.clone()),
        Input::Put(value) => {
            write(Some(value.clone()));
            Output::Put { version }
        }
        Input::PutIfAbsent(value) => match current {
            Some((_, version)) => Output::Exists { version: *version },
            None => write(Some(value.clone())),
        },
        Input::Delete if current.is_none() => Output::Delete { existed: false, version: None },
        Input::Delete => {
            write(None);
            Output::Delete { existed: true, version: Some(version) }
        }
        Input::CompareAndSwap { expect, new } => {
            let holds = match (expect, current) {
                (Expect::Absent, None) => true,
                (Expect::Value(expected), Some((value, _))) => expected == value,
                (Expect::Version(expected), Some((_, version))) => expected == version,
                _ => false,
            };
            if holds { write(new.clone()) } else { Output::Failed { current: current.clone() } }
        }
    }
}
