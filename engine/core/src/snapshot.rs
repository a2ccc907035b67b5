//! Snapshots, the small form: a range's whole state in memory, written in one batch.
//!
//! Made on a thread of its own from one consistent view, while the range goes on; received whole,
//! checked, and put in place of everything the range had, together with its Raft state, in one atomic
//! batch. So there is no half-applied snapshot to resume. A range above [`SNAPSHOT_BYTES_MAX`]
//! cannot be sent this way: its leader keeps the log for a follower that is behind instead.
//!
//! A chunk is a sequence of records: key length (4 bytes, big-endian), value length, key, value, with
//! the crc32 of all that in front. Keys and values are those of the family `state`, data only.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use flotilla_proto::{KeyspaceId, RangeId, v1};
use raft::eraftpb::{ConfState, SnapshotMetadata};

use crate::keys::{self, RangeRecord};
use crate::record;
use crate::storage::{self, Direction, Family, Read, Storage, StorageError, WriteBatch};
use crate::store::SnapshotData;

/// Largest snapshot that is made or accepted, in bytes of keys and values.
pub const SNAPSHOT_BYTES_MAX: usize = 256 << 20;
/// Bytes after which a chunk is full.
const CHUNK_BYTES: usize = 1 << 20;
const CRC_BYTES: usize = 4;

fn corrupt(what: impl Into<String>) -> StorageError {
    StorageError::Corrupt { what: what.into() }
}

/// Makes a snapshot of what the range has applied. Takes as long as reading the range; call it where
/// that is no harm.
pub fn make<S: Storage>(storage: &S, range: RangeId) -> storage::Result<SnapshotData> {
    storage.with_view(|view| {
        let applied = range_record::<v1::AppliedState>(view, range, RangeRecord::Applied)?;
        let descriptor = range_record::<v1::RangeDescriptor>(view, range, RangeRecord::Descriptor)?;
        let mut chunks = Chunks::default();
        let (start, end) = data_span(&descriptor);
        view.scan(Family::State, &start, &end, Direction::Forward, &mut |key, value| {
            chunks.push(key, value);
            if chunks.bytes > SNAPSHOT_BYTES_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if chunks.bytes > SNAPSHOT_BYTES_MAX {
            return Err(StorageError::Io {
                operation: "making a snapshot",
                cause: format!("range {range} is larger than {SNAPSHOT_BYTES_MAX} bytes"),
            });
        }
        let records = chunks.records;
        let header = v1::SnapshotHeader { descriptor: Some(descriptor), applied: Some(applied), records };
        Ok(SnapshotData { header, chunks: Arc::new(chunks.finish()) })
    })
}

fn range_record<M: prost::Message + Default>(view: &dyn Read, range: RangeId, what: RangeRecord) -> storage::Result<M> {
    let bytes = view
        .get(Family::State, &keys::range_record(range, what))?
        .ok_or_else(|| corrupt(format!("range {range} has no {what:?}")))?;
    record::decode(&bytes, &format!("{what:?} of range {range}"))
}

fn data_span(descriptor: &v1::RangeDescriptor) -> (Vec<u8>, Vec<u8>) {
    keys::data_span(KeyspaceId(descriptor.keyspace_id), &descriptor.start, &descriptor.end)
}

#[derive(Default)]
struct Chunks {
    done: Vec<Bytes>,
    open: Vec<u8>,
    bytes: usize,
    records: u64,
}

impl Chunks {
    fn push(&mut self, key: &[u8], value: &[u8]) {
        if self.open.is_empty() {
            self.open.put_u32(0);
        }
        self.open.put_u32(u32::try_from(key.len()).expect("keys have at most 8 KiB"));
        self.open.put_u32(u32::try_from(value.len()).expect("values have at most 1 MiB"));
        self.open.extend_from_slice(key);
        self.open.extend_from_slice(value);
        self.bytes += key.len() + value.len();
        self.records += 1;
        if self.open.len() >= CHUNK_BYTES {
            self.close();
        }
    }

    fn close(&mut self) {
        let mut chunk = std::mem::take(&mut self.open);
        let crc = crc32fast::hash(&chunk[CRC_BYTES..]);
        chunk[..CRC_BYTES].copy_from_slice(&crc.to_be_bytes());
        self.done.push(chunk.into());
    }

    fn finish(mut self) -> Vec<Bytes> {
        if !self.open.is_empty() {
            self.close();
        }
        self.done
    }
}

/// Shows the records of a chunk, after checking all of its bytes.
fn for_each_record(chunk: &Bytes, mut visit: impl FnMut(&[u8], &[u8]) -> storage::Result<()>) -> storage::Result<()> {
    let mut rest = &chunk[..];
    if rest.len() < CRC_BYTES || rest.get_u32() != crc32fast::hash(&chunk[CRC_BYTES..]) {
        return Err(corrupt("snapshot chunk: its crc32 does not match"));
    }
    while !rest.is_empty() {
        if rest.len() < 8 {
            return Err(corrupt("snapshot chunk: cut short"));
        }
        let (key_bytes, value_bytes) = (rest.get_u32() as usize, rest.get_u32() as usize);
        if rest.len() < key_bytes.saturating_add(value_bytes) {
            return Err(corrupt("snapshot chunk: a record is cut short"));
        }
        let (key, after) = rest.split_at(key_bytes);
        let (value, after) = after.split_at(value_bytes);
        visit(key, value)?;
        rest = after;
    }
    Ok(())
}

/// Checks that a received snapshot is whole, is what its message says, and stays within its range as
/// replica `own` knows it. Called before Raft hears of it: what Raft has accepted must be written.
pub fn check(
    data: &SnapshotData,
    meta: &SnapshotMetadata,
    range: &v1::RangeDescriptor,
    own: u64,
) -> Result<(), String> {
    let descriptor = data.header.descriptor.as_ref().ok_or("the snapshot has no descriptor")?;
    let applied = data.header.applied.as_ref().ok_or("the snapshot has no applied state")?;
    if (applied.index, applied.term) != (meta.index, meta.term) {
        return Err("the snapshot's data is of another index than its message".into());
    }
    let span = |of: &v1::RangeDescriptor| (of.range_id, of.keyspace_id, of.start.clone(), of.end.clone());
    if span(descriptor) != span(range) {
        return Err("the snapshot is of another range, or of another span of it".into());
    }
    check_members(descriptor, meta.get_conf_state(), own)?;
    if data.size_bytes() > 2 * SNAPSHOT_BYTES_MAX {
        return Err(format!("the snapshot has {} bytes", data.size_bytes()));
    }
    check_records(data, descriptor)
}

/// raft-rs cannot go on from members that contradict each other.
fn check_members(descriptor: &v1::RangeDescriptor, conf: &ConfState, own: u64) -> Result<(), String> {
    let ids: BTreeSet<u64> = descriptor.replicas.iter().map(|replica| replica.replica_id).collect();
    if ids.len() != descriptor.replicas.len() || !ids.contains(&own) {
        return Err("the snapshot names a replica twice, or not the one it is for".into());
    }
    if *conf != crate::range::conf_state(descriptor) || conf.voters.is_empty() {
        return Err("the snapshot's message names other members than its descriptor".into());
    }
    Ok(())
}

fn check_records(data: &SnapshotData, descriptor: &v1::RangeDescriptor) -> Result<(), String> {
    let (start, end) = data_span(descriptor);
    let mut records = 0;
    for chunk in data.chunks.iter() {
        for_each_record(chunk, |key, _| {
            records += 1;
            if key < &start[..] || key >= &end[..] {
                return Err(corrupt("snapshot: a key lies outside of its range"));
            }
            Ok(())
        })
        .map_err(|error| error.to_string())?;
    }
    if records != data.header.records {
        return Err(format!("the snapshot has {records} records, its header says {}", data.header.records));
    }
    Ok(())
}

/// Adds to a batch: the range's old data goes, the snapshot's state comes.
pub fn fill<B: WriteBatch>(batch: &mut B, data: &SnapshotData) -> storage::Result<()> {
    let (Some(descriptor), Some(applied)) = (&data.header.descriptor, &data.header.applied) else {
        return Err(corrupt("snapshot without descriptor or applied state"));
    };
    let range = RangeId(descriptor.range_id);
    let (start, end) = data_span(descriptor);
    batch.delete_range(Family::State, &start, &end);
    for chunk in data.chunks.iter() {
        for_each_record(chunk, |key, value| {
            batch.put(Family::State, key, value);
            Ok(())
        })?;
    }
    batch.put(Family::State, &keys::range_record(range, RangeRecord::Descriptor), &record::encode(descriptor));
    batch.put(Family::State, &keys::range_record(range, RangeRecord::Applied), &record::encode(applied));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let mut chunks = Chunks::default();
        chunks.push(b"key", b"va");
        chunks.push(b"k", b"");
        let chunk =
            [&[0xf3, 0xad, 0x7c, 0xbf][..], &[0, 0, 0, 3, 0, 0, 0, 2], b"keyva", &[0, 0, 0, 1, 0, 0, 0, 0], b"k"]
                .concat();
        assert_eq!(chunks.finish(), [Bytes::from(chunk.clone())]);
        let mut records = Vec::new();
        for_each_record(&chunk.into(), |key, value| {
            records.push((key.to_vec(), value.to_vec()));
            Ok(())
        })
        .expect("it is whole");
        assert_eq!(records, [(b"key".to_vec(), b"va".to_vec()), (b"k".to_vec(), Vec::new())]);
    }
}
