//! Where a range can be split: one pass over its data, outside of the store's loop, and what a keyspace allows.
//!
//! A keyspace's boundary says what must stay together. Groups of keys under it are contiguous, and the group
//! that a key belongs to begins at [`aligned`]: such a key never has members of one group on both of its sides.

use std::ops::ControlFlow;

use bytes::Bytes;
use flotilla_proto::{KeyspaceId, v1};

use crate::keys;
use crate::storage::{self, Direction, Family, Read, StorageError};
use crate::store::{SplitKeys, SplitKeysWanted};

/// Candidates that are remembered; beyond, every other one goes.
const CANDIDATES_MAX: usize = 8_192;
/// The characters that keys are cut by where there is no data to go by, in order.
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The start of the group that a key belongs to: the last allowed split key that is not behind it.
pub fn aligned<'a>(key: &'a [u8], boundary: &v1::SplitBoundary) -> &'a [u8] {
    use v1::split_boundary::Rule;
    match boundary.rule {
        None => key,
        Some(Rule::PrefixLen(length)) => &key[..key.len().min(length as usize)],
        Some(Rule::AfterDelimiter(delimiter)) => {
            let at = key.iter().position(|byte| u32::from(*byte) == delimiter);
            at.map_or(key, |at| &key[..=at])
        }
    }
}

/// Why a range cannot be split at a key; the words say what would be allowed.
pub fn check(range: &v1::RangeDescriptor, key: &[u8], boundary: &v1::SplitBoundary) -> Result<(), String> {
    let shown = key.escape_ascii();
    if key.len() > flotilla_proto::limits::KEY_BYTES_MAX {
        let max = flotilla_proto::limits::KEY_BYTES_MAX;
        return Err(format!("a split key of {} bytes: keys have at most {max}", key.len()));
    }
    if key == &range.start[..] {
        return Err(format!("the range begins at \"{shown}\" already: choose a key behind it"));
    }
    if key < &range.start[..] || (!range.end.is_empty() && key >= &range.end[..]) {
        let (start, end) = (range.start.escape_ascii(), range.end.escape_ascii());
        let end = if range.end.is_empty() { "the end of the keyspace".into() } else { format!("\"{end}\"") };
        return Err(format!(
            "\"{shown}\" lies outside of range {}: choose a key behind \"{start}\" and below {end}",
            range.range_id
        ));
    }
    let allowed = aligned(key, boundary);
    if allowed != key {
        let allowed = allowed.escape_ascii();
        return Err(format!(
            "the keyspace keeps together what \"{shown}\" would cut: the nearest allowed key is \"{allowed}\""
        ));
    }
    Ok(())
}

/// Looks for keys that cut a range into parts of about equal size. The error says why there are none.
pub fn find<R: Read + ?Sized>(storage: &R, wanted: &SplitKeysWanted) -> Result<SplitKeys, String> {
    let range = &wanted.descriptor;
    let scanned = scan(storage, wanted).map_err(|error| error.to_string())?;
    let mut keys = scanned.choose(wanted.parts);
    if wanted.by_hand && keys.len() + 1 < wanted.parts as usize {
        let even = even_keys(&range.start, &range.end, wanted.parts, &wanted.boundary);
        keys = if even.len() > keys.len() { even } else { keys };
    }
    if keys.is_empty() {
        return Err(format!("range {} holds {} bytes, and nothing in it may be cut", range.range_id, scanned.bytes));
    }
    Ok(SplitKeys { keys, bytes: scanned.bytes })
}

struct Scanned {
    bytes: u64,
    /// (bytes before it, group start), thinned out.
    candidates: Vec<(u64, Bytes)>,
}

fn scan<R: Read + ?Sized>(storage: &R, wanted: &SplitKeysWanted) -> storage::Result<Scanned> {
    let range = &wanted.descriptor;
    let mut found = Scanned { bytes: 0, candidates: Vec::new() };
    let (mut step, mut group, mut failed) = (1, Bytes::new(), None);
    let (first, last) = keys::data_span(KeyspaceId(range.keyspace_id), &range.start, &range.end);
    storage.scan(Family::State, &first, &last, Direction::Forward, &mut |key, value| {
        let Some(user_key) = keys::user_key(key) else {
            failed = Some(StorageError::Corrupt { what: format!("data key {key:02x?} cannot be read") });
            return ControlFlow::Break(());
        };
        let start = aligned(&user_key, &wanted.boundary);
        if group != start {
            group = user_key.slice(..start.len());
            let far = found.candidates.last().is_none_or(|(at, _)| found.bytes - at >= step);
            if found.bytes > 0 && far && group > range.start {
                found.candidates.push((found.bytes, group.clone()));
            }
        }
        if found.candidates.len() > CANDIDATES_MAX {
            step *= 2;
            let mut last = None;
            found.candidates.retain(|(at, _)| {
                let keep = last.is_none_or(|last| at - last >= step);
                last = if keep { Some(*at) } else { last };
                keep
            });
        }
        found.bytes += (key.len() + value.len()) as u64;
        ControlFlow::Continue(())
    })?;
    failed.map_or(Ok(found), Err)
}

impl Scanned {
    /// The candidates nearest to where equal parts would begin.
    fn choose(&self, parts: u32) -> Vec<Bytes> {
        let mut keys: Vec<Bytes> = Vec::new();
        for part in 1..u64::from(parts) {
            let ideal = self.bytes / u64::from(parts) * part;
            let after = self.candidates.partition_point(|(at, _)| *at < ideal);
            let near = [after.checked_sub(1), Some(after)].into_iter().flatten();
            let near = near.filter_map(|at| self.candidates.get(at)).min_by_key(|(at, _)| at.abs_diff(ideal));
            if let Some((_, key)) = near
                && keys.last().is_none_or(|last| last < key)
            {
                keys.push(key.clone());
            }
        }
        keys
    }
}

/// Up to `parts - 1` keys between `start` and `end`, as even as keys made of letters and digits allow.
fn even_keys(start: &[u8], end: &[u8], parts: u32, boundary: &v1::SplitBoundary) -> Vec<Bytes> {
    let shared = start.iter().zip(end).take_while(|(a, b)| a == b).count();
    let wanted = (parts as usize).saturating_sub(1);
    let mut best = Vec::new();
    for digits in 1..=4 {
        let mut found: Vec<Bytes> = Vec::new();
        for number in 1..ALPHABET.len().pow(digits) {
            let mut key = start[..shared].to_vec();
            let (mut rest, base) = (number, ALPHABET.len().pow(digits - 1));
            let mut base = base;
            for _ in 0..digits {
                key.push(ALPHABET[rest / base]);
                rest %= base;
                base = (base / ALPHABET.len()).max(1);
            }
            let key = aligned(&key, boundary);
            let within = key > start && (end.is_empty() || key < end);
            if within && found.last().is_none_or(|last| &last[..] < key) {
                found.push(Bytes::copy_from_slice(key));
            }
        }
        let enough = found.len() >= wanted * 4 || digits == 4;
        best = found;
        if enough {
            break;
        }
    }
    if best.len() <= wanted {
        return best;
    }
    let count = best.len();
    let mut keys: Vec<Bytes> = (1..=wanted).map(|part| best[part * count / (wanted + 1)].clone()).collect();
    keys.dedup();
    keys
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::storage::rows::Rows;

    fn rows(keys: impl IntoIterator<Item = String>) -> Rows {
        Rows(keys.into_iter().map(|key| (keys::data(KeyspaceId(1), key.as_bytes()), vec![0; 100])).collect())
    }

    fn boundary(rule: v1::split_boundary::Rule) -> v1::SplitBoundary {
        v1::SplitBoundary { rule: Some(rule) }
    }

    fn wanted(start: &str, end: &str, parts: u32, boundary: v1::SplitBoundary, by_hand: bool) -> SplitKeysWanted {
        let descriptor = v1::RangeDescriptor {
            range_id: 2,
            keyspace_id: 1,
            start: Bytes::copy_from_slice(start.as_bytes()),
            end: Bytes::copy_from_slice(end.as_bytes()),
            ..Default::default()
        };
        SplitKeysWanted { descriptor: Arc::new(descriptor), parts, boundary, by_hand }
    }

    #[test]
    fn parts_are_about_equal() {
        let rows = rows((0..1_000).map(|at| format!("key{at:04}")));
        let found = find(&rows, &wanted("", "", 4, v1::SplitBoundary::default(), false)).expect("it can be cut");
        assert_eq!(found.keys, ["key0250", "key0500", "key0750"].map(Bytes::from));
    }

    #[test]
    fn groups_stay_together_and_one_that_is_all_there_is_is_reported() {
        use v1::split_boundary::Rule;
        let names = |at: usize| format!("{}/{}", ["a", "b", "c"][at / 40 % 3], at % 40);
        let mut keys: Vec<String> = (0..120).map(names).collect();
        keys.sort();
        let rows = rows(keys);
        for rule in [Rule::AfterDelimiter(u32::from(b'/')), Rule::PrefixLen(2)] {
            let found = find(&rows, &wanted("", "", 2, boundary(rule), false)).expect("it can be cut");
            assert!(found.keys == ["b/"] || found.keys == ["c/"], "{found:?}");
            assert!(find(&rows, &wanted("b/", "c/", 2, boundary(rule), false)).is_err());
        }
        assert!(find(&rows, &wanted("b/", "c/", 2, v1::SplitBoundary::default(), false)).is_ok());
    }

    #[test]
    fn what_is_empty_is_cut_by_hand_alone() {
        let empty = Rows(Vec::new());
        assert!(find(&empty, &wanted("", "", 16, v1::SplitBoundary::default(), false)).is_err());
        for (start, end, parts) in [("", "", 16), ("", "", 1_000), ("user1", "user3", 30), ("k", "", 100)] {
            let found = find(&empty, &wanted(start, end, parts, v1::SplitBoundary::default(), true)).expect("by hand");
            assert_eq!(found.keys.len(), parts as usize - 1, "{start} {end}");
            assert!(found.keys.windows(2).all(|pair| pair[0] < pair[1]));
            let descriptor = wanted(start, end, 1, v1::SplitBoundary::default(), true).descriptor;
            assert!(found.keys.iter().all(|key| check(&descriptor, key, &v1::SplitBoundary::default()).is_ok()));
        }
    }

    #[test]
    fn a_key_that_does_not_fit_is_refused_in_words() {
        use v1::split_boundary::Rule;
        let range = wanted("b", "m", 2, v1::SplitBoundary::default(), true).descriptor;
        let any = v1::SplitBoundary::default();
        let words = |key: &str, boundary| check(&range, key.as_bytes(), boundary).expect_err("it does not fit");
        assert!(words("b", &any).contains("begins at"));
        assert!(words("a", &any).contains("outside") && words("m", &any).contains("below \"m\""));
        let by_slash = boundary(Rule::AfterDelimiter(u32::from(b'/')));
        assert!(words("c/d", &by_slash).contains("\"c/\""));
        assert_eq!(check(&range, b"c/", &by_slash), Ok(()));
        assert_eq!(check(&range, b"cd", &boundary(Rule::PrefixLen(2))), Ok(()));
    }
}
