//! Snapshots: a range's whole state at one index, on its way to a replica that cannot get there by log.
//!
//! ```text
//! make ─▶ offered to Raft ─▶ sent in chunks ─▶ receive ─▶ check ─▶ Raft restores ─▶ small: one log batch (fill)
//!  └ in memory, or a file                        └ in memory, or table files       └ large: install
//! ```
//! Made on a thread of its own from one consistent view, while the range goes on. A small one is held in memory, and
//! put in place of everything the range had, together with its Raft state, in one atomic batch. A large one never
//! stands in memory, on neither side: see [`install()`] for how it takes its place.
//!
//! Here too: what is left of a replica that is destroyed, since that is the same list of spans.

mod check;
mod chunk;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod data;
#[cfg(test)]
mod hostile;
mod install;
mod make;
mod receive;

use flotilla_mutants::Mutant;
use flotilla_proto::{KeyspaceId, RangeId, v1};

pub use check::check;
pub(crate) use check::check_header;
pub use data::{ChunkFile, Chunks, SnapshotData, Tables};
pub use install::{Resumed, Step, install, resume};
pub use make::{make, make_staged};
pub use receive::{Limits, Receiver};

use chunk::for_each_record;

use crate::keys::{self, RangeRecord};
use crate::merges;
use crate::record;
use crate::splits;
use crate::storage::{self, Family, StorageError, WriteBatch};
use crate::store::Destroy;

/// Largest snapshot that is taken in one batch, whatever the settings say: RocksDB's batches end at 4 GiB.
pub const BATCH_BYTES_MAX: u64 = 512 << 20;

fn corrupt(what: impl Into<String>) -> StorageError {
    StorageError::Corrupt { what: what.into() }
}

/// The spans of the family `state` that hold a range's data, in order.
pub fn spans(descriptor: &v1::RangeDescriptor) -> Vec<(Vec<u8>, Vec<u8>)> {
    keys::range_spans(KeyspaceId(descriptor.keyspace_id), &descriptor.start, &descriptor.end)
}

/// Adds to a batch: what the replica held goes, the snapshot's state comes. `replaces`: the range as the replica
/// knew it before, whose span may have been another one. `keeps_data`: only records, Raft state and log are replaced.
pub fn fill<B: WriteBatch>(
    batch: &mut B,
    data: &SnapshotData,
    replaces: Option<&v1::RangeDescriptor>,
    keeps_data: bool,
) -> storage::Result<()> {
    let (Some(descriptor), Some(applied)) = (&data.header.descriptor, &data.header.applied) else {
        return Err(corrupt("snapshot without descriptor or applied state"));
    };
    let range = RangeId(descriptor.range_id);
    if !keeps_data {
        fill_data(batch, data, replaces.into_iter().chain([descriptor]))?;
    }
    batch.put(Family::State, &keys::range_record(range, RangeRecord::Descriptor), &record::encode(descriptor));
    batch.put(Family::State, &keys::range_record(range, RangeRecord::Applied), &record::encode(applied));
    splits::put(batch, range, &data.header.splits);
    merges::put(batch, range, data.header.merge.as_ref());
    Ok(())
}

fn fill_data<'a, B: WriteBatch>(
    batch: &mut B,
    data: &SnapshotData,
    replaces: impl Iterator<Item = &'a v1::RangeDescriptor>,
) -> storage::Result<()> {
    for (start, end) in replaces.filter(|_| !Mutant::SnapshotKeepsOldKeys.is_on()).flat_map(spans) {
        batch.delete_range(Family::State, &start, &end);
    }
    let Chunks::Memory(chunks) = &data.chunks else {
        return Err(corrupt("a snapshot in files does not go into one batch"));
    };
    for chunk in chunks.iter() {
        for_each_record(chunk, |key, value| {
            batch.put(Family::State, key, value);
            Ok(())
        })?;
    }
    Ok(())
}

/// Adds to a batch: the replica goes, with its log, its Raft state and, but for a merge, all its data; the tombstone stays.
pub fn fill_destroy<B: WriteBatch>(batch: &mut B, destroy: &Destroy) {
    let range = RangeId(destroy.descriptor.range_id);
    let spans = if destroy.keeps_data { Vec::new() } else { spans(&destroy.descriptor) };
    for (start, end) in spans {
        batch.delete_range(Family::State, &start, &end);
    }
    for what in RangeRecord::OF_A_REPLICA {
        batch.delete(Family::State, &keys::range_record(range, what));
    }
    batch.delete(Family::Log, &keys::raft_state(range));
    batch.delete_range(Family::Log, &keys::log_entry(range, 0), &keys::log_entry(range, u64::MAX));
    if !Mutant::TombstoneApart.is_on() {
        let key = keys::range_record(range, RangeRecord::Tombstone);
        batch.put(Family::State, &key, &record::encode(&destroy.tombstone));
    }
}
