//! Installs a snapshot that came in table files: a large one, which no batch could hold.
//!
//! ```text
//! staged ─▶ intent ─▶ old spans deleted ─▶ flush, ingest ─▶ finish: records, Raft state, log,
//!           (synced)                        (durable)        intent cleared (one batch, synced)
//! ```
//! Why it is safe: what is ingested is durable ahead of the log, so no order of single steps could be atomic. The
//! intent makes them one: before it is synced the replica has its old state, and the files are nobody's; after it a
//! restart does all steps again from the files ([`resume`]), whichever of them had been done, before anything of the
//! replica is read. Redoing is harmless: deleting the spans also deletes what was ingested, and the files stay until
//! the finishing batch is durable. Until then the replica acknowledges nothing of the snapshot, and its Raft state on
//! disk is the old one.
//!
//! The caller keeps everything else away from the replica meanwhile: its earlier log batches are durable, nothing
//! of it is being applied, and no other range's span overlaps those that are replaced.

use std::ops::ControlFlow;
use std::sync::Arc;

use flotilla_mutants::Mutant;
use flotilla_proto::{RangeId, v1};
use raft::eraftpb::Entry;

use super::{Chunks, corrupt, fill_destroy, spans};
use crate::keys::{self, RangeRecord};
use crate::merges;
use crate::record;
use crate::splits;
use crate::storage::{self, Direction, Family, Staging, StorageError, WriteBatch};
use crate::store::{Destroy, LogItem};

/// The steps of an installation; a crash after each is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The files are whole and durable; nothing refers to them.
    Staged,
    /// The intent is durable: from here on a restart goes forward.
    IntentSynced,
    /// The spans that the replica held are empty.
    SpansDeleted,
    /// The files are part of the store.
    Ingested,
    /// The replica is what the snapshot says, durably.
    Finished,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Staged, Self::IntentSynced, Self::SpansDeleted, Self::Ingested, Self::Finished];
}

/// What a restart found of installations that had not ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resumed {
    /// Replicas whose installation was done again.
    pub finished: Vec<RangeId>,
    /// Files that nothing referred to.
    pub removed_files: usize,
}

/// Carries out what [`crate::store::Effects::ingests`] asks for. Takes as long as the disk does: call it where that
/// is no harm. An error means that the store must stop; a restart then goes on from here.
///
/// `at` hears of each step after it, and may break off there, as a crash would: for tests.
pub fn install<S: Staging>(
    storage: &S,
    item: &LogItem,
    mut at: impl FnMut(Step) -> ControlFlow<()>,
) -> storage::Result<ControlFlow<()>> {
    let (intent, tables) = intent_of(item)?;
    let steps = |at: &mut dyn FnMut(Step) -> ControlFlow<()>| -> storage::Result<ControlFlow<()>> {
        if at(Step::Staged).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        tables.pin(true);
        let mut batch = storage.batch();
        if !Mutant::IngestWithoutIntent.is_on() {
            batch.put(Family::State, &keys::range_record(item.range, RangeRecord::Intent), &record::encode(&intent));
        }
        storage.write(batch)?;
        storage.sync()?;
        if at(Step::IntentSynced).is_break() || carry_out(storage, &intent, &item.entries, at)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        // The files go with the last handle on them.
        tables.pin(false);
        Ok(at(Step::Finished))
    };
    steps(&mut at)
}

fn intent_of(item: &LogItem) -> storage::Result<(v1::SnapshotIntent, &super::Tables)> {
    let Some((data, Chunks::Tables(tables))) = item.snapshot.as_ref().map(|data| (data, &data.chunks)) else {
        return Err(corrupt("only a snapshot in table files can be ingested"));
    };
    let (Some(descriptor), Some(applied)) = (&data.header.descriptor, data.header.applied) else {
        return Err(corrupt("snapshot without descriptor or applied state"));
    };
    let state = item.raft_state.ok_or_else(|| corrupt("a snapshot comes with a Raft state"))?;
    let intent = v1::SnapshotIntent {
        descriptor: Some(descriptor.clone()),
        applied: Some(applied),
        replaces: item.replaces.as_deref().cloned(),
        files: tables.files().to_vec(),
        raft_state: Some(state),
        splits: data.header.splits.clone(),
        merge: data.header.merge.clone(),
        ends: item.ends.iter().map(ended).collect(),
    };
    Ok((intent, tables))
}

fn ended(destroy: &Destroy) -> v1::EndedReplica {
    v1::EndedReplica { descriptor: Some((*destroy.descriptor).clone()), tombstone: Some(destroy.tombstone) }
}

/// The steps after the intent.
fn carry_out<S: Staging>(
    storage: &S,
    intent: &v1::SnapshotIntent,
    entries: &[Entry],
    at: &mut dyn FnMut(Step) -> ControlFlow<()>,
) -> storage::Result<ControlFlow<()>> {
    let descriptor = intent.descriptor.as_ref().ok_or_else(|| corrupt("snapshot intent without a descriptor"))?;
    let mut batch = storage.batch();
    let ended = intent.ends.iter().filter_map(|of| of.descriptor.as_ref());
    for (start, end) in intent.replaces.iter().chain(ended).chain([descriptor]).flat_map(spans) {
        if holds_anything(storage, &start, &end)? {
            batch.delete_range(Family::State, &start, &end);
        }
    }
    storage.write(batch)?;
    if at(Step::SpansDeleted).is_break() {
        return Ok(ControlFlow::Break(()));
    }
    // Deletions in memory only would win over what is ingested after a crash replays them from the log.
    storage.flush(Family::State)?;
    storage.ingest(Family::State, &intent.files)?;
    if at(Step::Ingested).is_break() {
        return Ok(ControlFlow::Break(()));
    }
    finish(storage, descriptor, intent, entries)?;
    Ok(ControlFlow::Continue(()))
}

/// A replica that was empty gets no range deletion, which later reads would have to look at.
fn holds_anything<S: Staging>(storage: &S, start: &[u8], end: &[u8]) -> storage::Result<bool> {
    let mut any = false;
    storage.scan(Family::State, start, end, Direction::Forward, &mut |_, _| {
        any = true;
        ControlFlow::Break(())
    })?;
    Ok(any)
}

fn finish<S: Staging>(
    storage: &S,
    descriptor: &v1::RangeDescriptor,
    intent: &v1::SnapshotIntent,
    entries: &[Entry],
) -> storage::Result<()> {
    let range = RangeId(descriptor.range_id);
    let (Some(applied), Some(mut state)) = (&intent.applied, intent.raft_state) else {
        return Err(corrupt("snapshot intent without applied or Raft state"));
    };
    // Entries behind the snapshot are not in the intent: after a restart the log ends with it, and no one was told
    // that there was more.
    state.commit = state.commit.min(entries.last().map_or(applied.index, |last| last.index));
    let mut batch = storage.batch();
    let record = |what| keys::range_record(range, what);
    batch.put(Family::State, &record(RangeRecord::Descriptor), &record::encode(descriptor));
    batch.put(Family::State, &record(RangeRecord::Applied), &record::encode(applied));
    splits::put(&mut batch, range, &intent.splits);
    merges::put(&mut batch, range, intent.merge.as_ref());
    for of in intent.ends.iter().filter(|_| !Mutant::MergedOutlivesSnapshot.is_on()) {
        let (Some(descriptor), Some(tombstone)) = (&of.descriptor, of.tombstone) else {
            return Err(corrupt("snapshot intent that ends a replica without naming it"));
        };
        // Its data is gone: what stands in its span now is the snapshot's.
        let descriptor = Arc::new(descriptor.clone());
        fill_destroy(&mut batch, &Destroy { descriptor, tombstone, keeps_data: true });
    }
    batch.delete(Family::State, &record(RangeRecord::Intent));
    batch.delete_range(Family::Log, &keys::log_entry(range, 0), &keys::log_entry(range, u64::MAX));
    for entry in entries {
        batch.put(Family::Log, &keys::log_entry(range, entry.index), &record::encode_entry(entry));
    }
    batch.put(Family::Log, &keys::raft_state(range), &record::encode(&state));
    storage.write(batch)?;
    storage.sync()
}

/// Ends what a crash interrupted, and removes all other staged files. To be called before
/// [`crate::recover::load`], which refuses a store with an intent in it.
pub fn resume<S: Staging>(storage: &S) -> storage::Result<Resumed> {
    resume_until(storage, &mut |_| ControlFlow::Continue(())).map(Option::unwrap_or_default)
}

/// [`resume`], broken off where `at` says so; `None`: it was.
pub(super) fn resume_until<S: Staging>(
    storage: &S,
    at: &mut dyn FnMut(Step) -> ControlFlow<()>,
) -> storage::Result<Option<Resumed>> {
    let mut resumed = Resumed::default();
    for intent in intents(storage)? {
        let range = RangeId(intent.descriptor.as_ref().map_or(0, |descriptor| descriptor.range_id));
        for file in &intent.files {
            storage.verify(file).map_err(|error| damaged(range, file, &error))?;
        }
        if carry_out(storage, &intent, &[], at)?.is_break() {
            return Ok(None);
        }
        let area = storage.area();
        intent.files.iter().for_each(|file| area.remove(&file.name));
        resumed.finished.push(range);
    }
    let (area, left) = (storage.area(), storage.staged()?);
    left.iter().for_each(|name| area.remove(name));
    resumed.removed_files = left.len();
    Ok(Some(resumed))
}

fn damaged(range: RangeId, file: &v1::StagedFile, error: &StorageError) -> StorageError {
    corrupt(format!(
        "a snapshot was taking the place of range {range}'s state, and its file {} cannot be used ({error}): the replica \
         can neither go on nor back; replace this node by one with a new node id",
        file.name
    ))
}

fn intents<S: Staging>(storage: &S) -> storage::Result<Vec<v1::SnapshotIntent>> {
    let (mut intents, mut failed) = (Vec::new(), None);
    let (start, end) = keys::range_records();
    storage.scan(Family::State, &start, &end, Direction::Forward, &mut |key, value| {
        if keys::range_record_parts(key).is_some_and(|(_, what)| what == RangeRecord::Intent as u8) {
            match record::decode(value, "snapshot intent") {
                Ok(intent) => intents.push(intent),
                Err(error) => {
                    failed = Some(error);
                    return ControlFlow::Break(());
                }
            }
        }
        ControlFlow::Continue(())
    })?;
    failed.map_or(Ok(intents), Err)
}
