//! Keys on disk: the only place that knows their bytes. Layout and reasons: docs/disk_format.md.
//!
//! ```text
//! family log:    0x01 | range_id                  Raft state
//!                0x02 | range_id | index          log entry
//! family state:  0x01 | range_id | what           range state
//!                0x02 | keyspace_id | user key    data, the user key order-preserving
//!                0x03 | keyspace_id | user key    expiry index, in the order of the data
//!                0x04, 0x05                       reserved: index by revision, locks
//! family meta:   0x01 | what                      the store's own
//! ```
//! Integers are big-endian, ids and indexes 8 bytes, keyspace ids 4, so that order of bytes is order
//! of values. A user key has each 0x00 written as 0x00 0xFF and ends in 0x00 0x01: no encoded key is
//! a prefix of another, the order stays that of the user keys, and a suffix (a revision, later) may
//! follow. The bloom prefix of a data key is everything up to and including that end.

use bytes::{BufMut, Bytes};
use flotilla_proto::{KeyspaceId, RangeId};

use crate::storage::Family;

const RAFT_STATE: u8 = 0x01;
const LOG_ENTRY: u8 = 0x02;
const RANGE_STATE: u8 = 0x01;
const DATA: u8 = 0x02;
const EXPIRY: u8 = 0x03;
const META: u8 = 0x01;

const ESCAPE: u8 = 0x00;
const ESCAPED_ZERO: u8 = 0xFF;
const END_OF_KEY: u8 = 0x01;
const DATA_HEAD_BYTES: usize = 1 + 4;

/// What a range keeps about itself in the family `state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RangeRecord {
    /// [`flotilla_proto::v1::RangeDescriptor`]
    Descriptor = 0x01,
    /// [`flotilla_proto::v1::AppliedState`]
    Applied = 0x02,
    /// [`flotilla_proto::v1::Tombstone`]: of replicas that were destroyed. Outlives the others.
    Tombstone = 0x03,
    /// [`flotilla_proto::v1::SnapshotIntent`]: the range's state is being replaced. Gone before the store starts.
    Intent = 0x04,
    /// [`flotilla_proto::v1::Splits`]: absent until the range is split.
    Splits = 0x05,
    /// [`flotilla_proto::v1::MergeState`]: absent until the range takes part in a merge.
    Merge = 0x06,
    /// [`flotilla_proto::v1::RangeRecoveries`]: absent unless the range went on after the loss of its majority. Stays with
    /// the replica that it went on with.
    Recoveries = 0x20,
}

impl RangeRecord {
    /// Those that exist as long as the replica does.
    pub const OF_A_REPLICA: [Self; 5] = [Self::Descriptor, Self::Applied, Self::Splits, Self::Merge, Self::Recoveries];
}

/// What a store keeps about itself in the family `meta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MetaRecord {
    /// [`flotilla_proto::v1::StoreIdentity`]
    Identity = 0x01,
    /// [`flotilla_proto::v1::KnownNodes`]
    KnownNodes = 0x02,
    /// [`flotilla_proto::v1::KnownStores`]
    KnownStores = 0x03,
}

/// Key of a range's Raft state, in the family `log`.
pub fn raft_state(range: RangeId) -> [u8; 9] {
    let mut key = [RAFT_STATE; 9];
    key[1..].copy_from_slice(&range.0.to_be_bytes());
    key
}

/// Span of all Raft states, in the family `log`.
pub fn raft_states() -> ([u8; 1], [u8; 1]) {
    ([RAFT_STATE], [RAFT_STATE + 1])
}

/// Key of a log entry, in the family `log`.
pub fn log_entry(range: RangeId, index: u64) -> [u8; 17] {
    let mut key = [LOG_ENTRY; 17];
    key[1..9].copy_from_slice(&range.0.to_be_bytes());
    key[9..].copy_from_slice(&index.to_be_bytes());
    key
}

/// The index in a log entry's key; `None` if it is no such key.
pub fn log_entry_index(key: &[u8]) -> Option<(RangeId, u64)> {
    let (head, rest) = key.split_first()?;
    if *head != LOG_ENTRY || rest.len() != 16 {
        return None;
    }
    let (range, index) = rest.split_at(8);
    Some((RangeId(u64::from_be_bytes(range.try_into().ok()?)), u64::from_be_bytes(index.try_into().ok()?)))
}

/// The range id in a Raft state's key; `None` if it is no such key.
pub fn raft_state_range(key: &[u8]) -> Option<RangeId> {
    let (head, rest) = key.split_first()?;
    (*head == RAFT_STATE).then_some(())?;
    Some(RangeId(u64::from_be_bytes(rest.try_into().ok()?)))
}

/// Key of one of a range's records, in the family `state`.
pub fn range_record(range: RangeId, what: RangeRecord) -> [u8; 10] {
    let mut key = [RANGE_STATE; 10];
    key[1..9].copy_from_slice(&range.0.to_be_bytes());
    key[9] = what as u8;
    key
}

/// Span of all ranges' records, in the family `state`.
pub fn range_records() -> ([u8; 1], [u8; 1]) {
    ([RANGE_STATE], [RANGE_STATE + 1])
}

/// The range and the kind of a key of [`range_records`].
pub fn range_record_parts(key: &[u8]) -> Option<(RangeId, u8)> {
    let (head, rest) = key.split_first()?;
    if *head != RANGE_STATE || rest.len() != 9 {
        return None;
    }
    Some((RangeId(u64::from_be_bytes(rest[..8].try_into().ok()?)), rest[8]))
}

/// Keys from this one on are of kinds that this version does not know.
pub fn first_unknown(family: Family) -> [u8; 2] {
    match family {
        Family::Log => [LOG_ENTRY + 1, 0],
        Family::State => [EXPIRY + 1, 0],
        Family::Meta => [META, MetaRecord::KnownStores as u8 + 1],
    }
}

/// Key of one of the store's own records, in the family `meta`.
pub fn meta(what: MetaRecord) -> [u8; 2] {
    [META, what as u8]
}

/// Whether there can be keys of this keyspace: its id, and the one after it, which ends its span, have four bytes.
pub fn is_keyspace(id: KeyspaceId) -> bool {
    id.0 < u64::from(u32::MAX)
}

fn head(tag: u8, keyspace: KeyspaceId, capacity: usize) -> Vec<u8> {
    let mut key = Vec::with_capacity(DATA_HEAD_BYTES + capacity);
    key.push(tag);
    let id = u32::try_from(keyspace.0).expect("keyspace ids are allocated below 2^32");
    key.put_u32(id);
    key
}

/// Key of a user key's current value, in the family `state`.
pub fn data(keyspace: KeyspaceId, user_key: &[u8]) -> Vec<u8> {
    tagged(DATA, keyspace, user_key)
}

/// Key of a user key's record in the expiry index, in the family `state`.
pub fn expiry(keyspace: KeyspaceId, user_key: &[u8]) -> Vec<u8> {
    tagged(EXPIRY, keyspace, user_key)
}

fn tagged(tag: u8, keyspace: KeyspaceId, user_key: &[u8]) -> Vec<u8> {
    let mut key = head(tag, keyspace, user_key.len() + 8);
    append_escaped(&mut key, user_key);
    key.push(ESCAPE);
    key.push(END_OF_KEY);
    key
}

fn append_escaped(key: &mut Vec<u8>, user_key: &[u8]) {
    let mut rest = user_key;
    while let Some(at) = rest.iter().position(|byte| *byte == ESCAPE) {
        key.extend_from_slice(&rest[..at]);
        key.extend_from_slice(&[ESCAPE, ESCAPED_ZERO]);
        rest = &rest[at + 1..];
    }
    key.extend_from_slice(rest);
}

/// Span on disk of the user keys `[start, end)`; an empty `end` is the end of the keyspace.
pub fn data_span(keyspace: KeyspaceId, start: &[u8], end: &[u8]) -> (Vec<u8>, Vec<u8>) {
    span(DATA, keyspace, start, end)
}

/// Span of the expiry index of the user keys `[start, end)`; an empty `end` is the end of the keyspace.
pub fn expiry_span(keyspace: KeyspaceId, start: &[u8], end: &[u8]) -> (Vec<u8>, Vec<u8>) {
    span(EXPIRY, keyspace, start, end)
}

fn span(tag: u8, keyspace: KeyspaceId, start: &[u8], end: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let first = if start.is_empty() { head(tag, keyspace, 0) } else { tagged(tag, keyspace, start) };
    let last = if end.is_empty() { head(tag, KeyspaceId(keyspace.0 + 1), 0) } else { tagged(tag, keyspace, end) };
    (first, last)
}

/// All spans of the family `state` that hold what belongs to the user keys `[start, end)`, in order: what a snapshot
/// carries and replaces, what goes with a replica, what counts as its size.
pub fn range_spans(keyspace: KeyspaceId, start: &[u8], end: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    vec![data_span(keyspace, start, end), expiry_span(keyspace, start, end)]
}

/// The user key in a data key; `None` if it is not one.
pub fn user_key(key: &[u8]) -> Option<Bytes> {
    untagged(DATA, key)
}

/// The user key in a key of the expiry index; `None` if it is not one.
pub fn expiry_user_key(key: &[u8]) -> Option<Bytes> {
    untagged(EXPIRY, key)
}

fn untagged(tag: u8, key: &[u8]) -> Option<Bytes> {
    if key.len() < DATA_HEAD_BYTES + 2 || key[0] != tag {
        return None;
    }
    let mut rest = &key[DATA_HEAD_BYTES..];
    let mut plain = Vec::with_capacity(rest.len());
    loop {
        let at = rest.iter().position(|byte| *byte == ESCAPE)?;
        plain.extend_from_slice(&rest[..at]);
        match *rest.get(at + 1)? {
            ESCAPED_ZERO => plain.push(ESCAPE),
            END_OF_KEY if at + 2 == rest.len() => return Some(plain.into()),
            _ => return None,
        }
        rest = &rest[at + 2..];
    }
}

/// Length of the bloom prefix of a key of the family `state`: up to and including the end of the
/// user key. `None`: the key is no data key and has no such prefix.
pub fn bloom_prefix_len(key: &[u8]) -> Option<usize> {
    if key.len() < DATA_HEAD_BYTES || key[0] != DATA {
        return None;
    }
    let mut at = DATA_HEAD_BYTES;
    loop {
        at += key[at..].iter().position(|byte| *byte == ESCAPE)?;
        match key.get(at + 1)? {
            &END_OF_KEY => return Some(at + 2),
            _ => at += 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: KeyspaceId = KeyspaceId(1);

    #[test]
    fn golden() {
        assert_eq!(raft_state(RangeId(2)), [1, 0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!(log_entry(RangeId(2), 258), [2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(range_record(RangeId(2), RangeRecord::Applied), [1, 0, 0, 0, 0, 0, 0, 0, 2, 2]);
        assert_eq!(data(K, b"a\0b"), [2, 0, 0, 0, 1, b'a', 0, 0xFF, b'b', 0, 1]);
        assert_eq!(data(K, b""), [2, 0, 0, 0, 1, 0, 1]);
        assert_eq!(data_span(K, b"", b""), (vec![2, 0, 0, 0, 1], vec![2, 0, 0, 0, 2]));
        assert_eq!(expiry(K, b"a\0b"), [3, 0, 0, 0, 1, b'a', 0, 0xFF, b'b', 0, 1]);
        assert_eq!(expiry_span(K, b"", b""), (vec![3, 0, 0, 0, 1], vec![3, 0, 0, 0, 2]));
    }

    #[test]
    fn order_is_that_of_the_user_keys_and_decoding_gives_them_back() {
        let alphabet = [0u8, 1, 2, 0xFE, 0xFF];
        let mut keys = vec![vec![]];
        for length in 1..=4usize {
            let count = alphabet.len().pow(length as u32);
            keys.extend((0..count).map(|number| {
                let mut rest = number;
                (0..length)
                    .map(|_| {
                        let byte = alphabet[rest % alphabet.len()];
                        rest /= alphabet.len();
                        byte
                    })
                    .collect::<Vec<u8>>()
            }));
        }
        keys.sort();
        for pair in keys.windows(2) {
            assert!(data(K, &pair[0]) < data(K, &pair[1]), "{pair:?}");
        }
        let (first, last) = data_span(K, b"", b"");
        for key in &keys {
            let encoded = data(K, key);
            assert_eq!(user_key(&encoded).as_deref(), Some(&key[..]));
            assert_eq!(bloom_prefix_len(&encoded), Some(encoded.len()));
            assert!(first <= encoded && encoded < last);
            let indexed = expiry(K, key);
            assert_eq!(expiry_user_key(&indexed).as_deref(), Some(&key[..]));
            assert!(
                indexed[1..] == encoded[1..] && user_key(&indexed).is_none() && expiry_user_key(&encoded).is_none()
            );
        }
    }

    #[test]
    fn foreign_bytes_are_no_user_key() {
        for bytes in [&b""[..], &[2, 0, 0, 0, 1], &[2, 0, 0, 0, 1, 0], &[2, 0, 0, 0, 1, 0, 7], &[1; 12]] {
            assert_eq!(user_key(bytes), None, "{bytes:?}");
        }
    }
}
