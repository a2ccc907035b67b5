//! The client library's types, and how they look on the wire.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use flotilla_proto::{Error, v1};
use v1::batch_result::Outcome;
use v1::write_op::Op;

/// A key's current value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The key.
    pub key: Bytes,
    /// Its value; empty in a scan of keys only.
    pub value: Bytes,
    /// Its version: never repeats for this key, says nothing across keys.
    pub version: u64,
    /// About how long the key still lives; `None`: until it is deleted.
    pub ttl: Option<Duration>,
}

/// What must hold for a compare-and-swap to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key has this value.
    Value(Bytes),
    /// The key has this version.
    Version(u64),
    /// The key is not there.
    Absent,
}

/// One write of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteOp {
    /// Write the key.
    Put {
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
    },
    /// Write the key, to end by itself.
    PutWithTtl {
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
        /// How long it lives.
        ttl: Duration,
    },
    /// Write the key if it is not there.
    PutIfAbsent {
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
    },
    /// Delete the key, if it is there.
    Delete {
        /// The key.
        key: Bytes,
    },
    /// Write or delete the key if the condition holds.
    CompareAndSwap {
        /// The key.
        key: Bytes,
        /// The condition.
        expect: Expect,
        /// The new value; `None`: delete the key.
        new_value: Option<Bytes>,
    },
}

/// What a write did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteResult {
    /// False: the condition did not hold, and nothing was written.
    pub applied: bool,
    /// Applied: the version that this write gave the key. Otherwise the key's current version, 0 if
    /// it is not there.
    pub version: u64,
    /// Deletes and conditional writes: whether the key was there before.
    pub existed: bool,
    /// Of a compare-and-swap that was not applied: what is there.
    pub current: Option<Record>,
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// It sees every write acknowledged before it began.
    #[default]
    Linearizable,
    /// Whatever the replica asked has applied: any replica may answer.
    Stale,
}

/// What to scan. The default is the whole keyspace, in pages of the node's default size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanOptions {
    /// First key.
    pub start: Bytes,
    /// First key after the span; empty: to the end of the keyspace.
    pub end: Bytes,
    /// From the end to the start.
    pub reverse: bool,
    /// At most so many records in a page; 0: 1,000, or all where they are only counted.
    pub limit: u32,
    /// At most so many bytes of keys and values in a page; 0: 1 MiB; at most 2 MiB. One record is
    /// returned even if it is larger.
    pub limit_bytes: u32,
    /// Leave the values out.
    pub keys_only: bool,
    /// Only count; no records are returned.
    pub count_only: bool,
    /// From an earlier page: goes on there, and replaces start, end and reverse.
    pub token: Bytes,
}

impl ScanOptions {
    /// The whole keyspace.
    pub fn all() -> Self {
        Self::default()
    }

    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let end = after_prefix(&start);
        Self { start, end, ..Self::default() }
    }

    /// The keys from `start` up to, and without, `end`; empty: to the end of the keyspace.
    pub fn span(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Self { start: start.into(), end: end.into(), ..Self::default() }
    }
}

/// The first key after all those with this prefix; empty if there is none.
fn after_prefix(prefix: &[u8]) -> Bytes {
    let kept = prefix.iter().rposition(|byte| *byte != u8::MAX).map_or(0, |last| last + 1);
    let mut end = BytesMut::with_capacity(kept);
    end.put_slice(&prefix[..kept]);
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.freeze()
}

/// A part of a scan's records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanPage {
    /// In key order, or backwards.
    pub records: Vec<Record>,
    /// Records in this page, or counted.
    pub count: u64,
    /// Where the next page begins; empty: the span is done.
    pub next_token: Bytes,
}

impl Consistency {
    pub(super) fn to_wire(self) -> i32 {
        match self {
            Self::Linearizable => v1::ReadConsistency::Linearizable.into(),
            Self::Stale => v1::ReadConsistency::Stale.into(),
        }
    }
}

impl From<v1::Record> for Record {
    fn from(record: v1::Record) -> Self {
        let ttl = (record.ttl_remaining_ms != 0).then(|| Duration::from_millis(record.ttl_remaining_ms));
        Self { key: record.key, value: record.value, version: record.version, ttl }
    }
}

/// A record of an answer that leaves the key out, because the request names it.
pub(super) fn with_key(key: &Bytes, record: v1::Record) -> Record {
    Record { key: key.clone(), ..record.into() }
}

/// A ttl in whole milliseconds. On the wire 0 means that the key stays, so what is shorter becomes one;
/// what is too long is refused with the limit.
pub(super) fn ttl_ms(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1)
}

pub(super) fn swap(key: Bytes, expect: Expect, new_value: Option<Bytes>, ttl_ms: u64) -> v1::CompareAndSwap {
    let expect = match expect {
        Expect::Value(value) => v1::compare_and_swap::Expect::Value(value),
        Expect::Version(version) => v1::compare_and_swap::Expect::Version(version),
        Expect::Absent => v1::compare_and_swap::Expect::Absent(true),
    };
    v1::CompareAndSwap { key, expect: Some(expect), new_value, ttl_ms }
}

impl WriteOp {
    /// The key that it writes.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. }
            | Self::PutWithTtl { key, .. }
            | Self::PutIfAbsent { key, .. }
            | Self::Delete { key }
            | Self::CompareAndSwap { key, .. } => key,
        }
    }

    pub(super) fn into_wire(self) -> v1::WriteOp {
        let op = match self {
            Self::Put { key, value } => Op::Put(v1::Put { key, value, if_absent: false, ttl_ms: 0 }),
            Self::PutWithTtl { key, value, ttl } => {
                Op::Put(v1::Put { key, value, if_absent: false, ttl_ms: ttl_ms(ttl) })
            }
            Self::PutIfAbsent { key, value } => Op::Put(v1::Put { key, value, if_absent: true, ttl_ms: 0 }),
            Self::Delete { key } => Op::Delete(v1::Delete { key }),
            Self::CompareAndSwap { key, expect, new_value } => Op::CompareAndSwap(swap(key, expect, new_value, 0)),
        };
        v1::WriteOp { op: Some(op) }
    }
}

/// A write's result; the answer must have one.
pub(super) fn written(key: &Bytes, result: Option<v1::WriteResult>) -> Result<WriteResult, Error> {
    let result = result.ok_or_else(|| Error::Ambiguous { reason: "the answer has no result".into() })?;
    let v1::WriteResult { applied, version, existed, current } = result;
    Ok(WriteResult { applied, version, existed, current: current.map(|record| with_key(key, record)) })
}

pub(super) fn outcome(key: &Bytes, result: v1::BatchResult) -> Result<WriteResult, Error> {
    match result.outcome {
        Some(Outcome::Error(error)) => Err(error.into()),
        Some(Outcome::Result(result)) => written(key, Some(result)),
        None => written(key, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_where_the_next_one_begins() {
        for (prefix, end) in [
            (&b"ab"[..], &b"ac"[..]),
            (b"a\xff", b"b"),
            (b"a\xff\xff", b"b"),
            (b"\xff\xff", b""),
            (b"", b""),
            (b"\xfe", b"\xff"),
        ] {
            assert_eq!(ScanOptions::prefix(prefix.to_vec()).end, end, "{prefix:?}");
        }
    }
}
