//! What a [`LogBatch`] is on disk.
//!
//! The log writer gathers every batch that is queued, writes them in order, syncs once, and reports
//! the last sequence number: one sync for all ranges of the node, however many batches collected
//! while the one before was under way. The threads and the queue are the caller's.

use flotilla_mutants::Mutant;
use flotilla_proto::{KeyspaceId, RangeId};

use crate::apply;
use crate::keys::{self, RangeRecord};
use crate::merges;
use crate::record;
use crate::snapshot;
use crate::storage::{self, Family, WriteBatch};
use crate::store::{LogBatch, LogItem, Recovers};

/// From this many entries on, a removal is one range deletion instead of a deletion for each.
const POINT_DELETES_MAX: u64 = 1_024;

/// Adds a log batch to a storage batch. The batches of one store must be filled in their sequence's
/// order. An error means that a snapshot in it cannot be read; nothing may be written then.
pub fn fill<B: WriteBatch>(batch: &mut B, log: &LogBatch) -> storage::Result<()> {
    for item in &log.items {
        fill_item(batch, item)?;
    }
    Ok(())
}

/// The Raft state goes with it, in the same batch.
fn fill_recovers<B: WriteBatch>(batch: &mut B, range: RangeId, recovers: &Recovers) {
    let key = |what| keys::range_record(range, what);
    batch.put(Family::State, &key(RangeRecord::Descriptor), &record::encode(&*recovers.descriptor));
    batch.put(Family::State, &key(RangeRecord::Recoveries), &record::encode(&recovers.recoveries));
    merges::put(batch, range, recovers.merge.as_deref());
    if let Some((from, to)) = &recovers.gone {
        for (start, end) in keys::range_spans(KeyspaceId(recovers.descriptor.keyspace_id), from, to) {
            batch.delete_range(Family::State, &start, &end);
        }
    }
}

fn fill_item<B: WriteBatch>(batch: &mut B, item: &LogItem) -> storage::Result<()> {
    for (from, to) in &item.remove {
        if to - from > POINT_DELETES_MAX {
            batch.delete_range(Family::Log, &keys::log_entry(item.range, *from), &keys::log_entry(item.range, *to));
        } else {
            for index in *from..*to {
                batch.delete(Family::Log, &keys::log_entry(item.range, index));
            }
        }
    }
    if let Some(descriptor) = &item.begins {
        apply::put_range(batch, descriptor, &apply::initial_applied(), &apply::initial_raft_state());
    }
    if !Mutant::MergedOutlivesSnapshot.is_on() {
        item.ends.iter().for_each(|ended| snapshot::fill_destroy(batch, ended));
    }
    if let Some(data) = &item.snapshot {
        snapshot::fill(batch, data, item.replaces.as_deref(), item.keeps_data)?;
    }
    for entry in &item.entries {
        batch.put(Family::Log, &keys::log_entry(item.range, entry.index), &record::encode_entry(entry));
    }
    if let Some(state) = &item.raft_state {
        batch.put(Family::Log, &keys::raft_state(item.range), &record::encode(state));
    }
    if let Some(recovers) = &item.recovers {
        fill_recovers(batch, item.range, recovers);
    }
    if let Some(destroy) = &item.destroy {
        snapshot::fill_destroy(batch, destroy);
    }
    Ok(())
}
