//! Snapshots, the small form: a range's whole state in memory, written in one batch.
//!
//! Made on a thread of its own from one consistent view, while the range goes on; received whole,
//! checked, and put in place of everything the range had, together with its Raft state, in one atomic
//! batch. So there is no half-applied snapshot to resume. A range above [`SNAPSHOT_BYTES_MAX`]
//! cannot be sent this way: its leader keeps the log for a follower that is behind instead.
//!
//! Here too: what is left of a replica that is destroyed, since that is the same list of spans.

mod check;
mod chunk;

use std::ops::ControlFlow;
use std::sync::Arc;

use flotilla_proto::{KeyspaceId, RangeId, v1};

pub use check::check;
use chunk::{Chunks, for_each_record};

use crate::keys::{self, RangeRecord};
use crate::record;
use crate::storage::{self, Direction, Family, Read, Storage, StorageError, WriteBatch};
use crate::store::{Destroy, SnapshotData};

/// Largest snapshot that is made or accepted, in bytes of keys and values.
pub const SNAPSHOT_BYTES_MAX: usize = 256 << 20;

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
        for (start, end) in spans(&descriptor) {
            view.scan(Family::State, &start, &end, Direction::Forward, &mut |key, value| {
                chunks.push(key, value);
                if chunks.bytes > SNAPSHOT_BYTES_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
        }
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

/// The spans of the family `state` that hold a range's data, in order.
pub fn spans(descriptor: &v1::RangeDescriptor) -> Vec<(Vec<u8>, Vec<u8>)> {
    keys::range_spans(KeyspaceId(descriptor.keyspace_id), &descriptor.start, &descriptor.end)
}

/// Adds to a batch: what the replica held goes, the snapshot's state comes. `replaces`: the range as the replica
/// knew it before, whose span may have been another one.
pub fn fill<B: WriteBatch>(
    batch: &mut B,
    data: &SnapshotData,
    replaces: Option<&v1::RangeDescriptor>,
) -> storage::Result<()> {
    let (Some(descriptor), Some(applied)) = (&data.header.descriptor, &data.header.applied) else {
        return Err(corrupt("snapshot without descriptor or applied state"));
    };
    let range = RangeId(descriptor.range_id);
    for (start, end) in replaces.into_iter().chain([descriptor]).flat_map(spans) {
        batch.delete_range(Family::State, &start, &end);
    }
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

/// Adds to a batch: the replica goes, with all its data, its log and its Raft state; the tombstone stays.
pub fn fill_destroy<B: WriteBatch>(batch: &mut B, destroy: &Destroy) {
    let range = RangeId(destroy.descriptor.range_id);
    for (start, end) in spans(&destroy.descriptor) {
        batch.delete_range(Family::State, &start, &end);
    }
    for what in RangeRecord::OF_A_REPLICA {
        batch.delete(Family::State, &keys::range_record(range, what));
    }
    batch.delete(Family::Log, &keys::raft_state(range));
    batch.delete_range(Family::Log, &keys::log_entry(range, 0), &keys::log_entry(range, u64::MAX));
    if !cfg!(feature = "mutant-tombstone-apart") {
        let key = keys::range_record(range, RangeRecord::Tombstone);
        batch.put(Family::State, &key, &record::encode(&destroy.tombstone));
    }
}
