//! The stages behind the store's loop, on simulated time: log writer, apply, reads of old entries,
//! snapshots. What they do to the disk is the production code's doing; when, is decided here.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use flotilla_engine::apply::{Applied, ApplyRefusal, ApplyWork, Checkpoint, RangeChange};
use flotilla_engine::snapshot::{Limits, Receiver, Step};
use flotilla_engine::storage::{self, Storage, StorageError};
use flotilla_engine::store::{FetchLog, Input, LogBatch, LogItem, SnapshotData, SplitKeysWanted};
use flotilla_engine::{checksum, log_writer, recover, snapshot, split_keys};
use flotilla_proto::RangeId;

use crate::clock::ms;
use crate::cluster::Cluster;
use crate::disk::SimDisk;
use crate::expiring::ends_keys;
use crate::faults::CrashPoint;
use crate::marks::Mark;
use crate::schedule::{Event, Inner, Life};

/// What a check found: records and checksum of a range at an index.
type Checked = (RangeId, u64, storage::Result<(u64, u32)>);

impl Cluster {
    /// The log writer takes all that is queued, writes it, and begins a sync.
    pub(crate) fn log_write(&mut self, life: Life) {
        let sync = self.nodes[life.node].slow_sync.unwrap_or(self.knobs.sync);
        let node = &mut self.nodes[life.node];
        let Some(process) = &mut node.process else { return };
        process.log_written.extend(process.log_queue.drain(..));
        if process.log_written.len() > 1 {
            self.marks.hit(Mark::GroupSync);
        }
        let (mut written, mut verdict) = (Ok(()), Ok(()));
        let (mut installs, mut destroys, mut ends) = (false, false, false);
        for batch in &process.log_written {
            let mut storage_batch = node.disk.batch();
            written = log_writer::fill(&mut storage_batch, batch).and_then(|()| node.disk.write(storage_batch));
            if written.is_err() {
                break;
            }
            verdict = verdict.and(self.invariants.territory.written(life.node, batch));
            forget_ended(&mut process.applied_written, batch);
            installs |= batch.items.iter().any(|item| item.snapshot.is_some());
            ends |= batch.items.iter().any(|item| !item.ends.is_empty());
            destroys |= batch.items.iter().any(|item| item.destroy.is_some());
        }
        self.check(verdict);
        if let Err(error) = written {
            return self.disk_failed(life.node, &error, Mark::WriteFailed);
        }
        if ends {
            self.marks.hit(Mark::SnapshotOverMerged);
        }
        if installs && self.crash_if_armed(life.node, CrashPoint::AfterSnapshotWrite)
            || destroys && self.crash_if_armed(life.node, CrashPoint::AfterDestroy)
        {
            return;
        }
        if self.crash_if_armed(life.node, CrashPoint::BeforeSync) {
            return;
        }
        // A sync may be durable long before it is reported.
        if self.rng.chance(300)
            && let Err(error) = self.nodes[life.node].disk.sync()
        {
            return self.disk_failed(life.node, &error, Mark::SyncFailed);
        }
        let at = self.now + self.rng.delay(sync);
        self.nodes[life.node].disk_busy_until = at;
        self.schedule.at(at, Event::Inner(life, Inner::LogSynced));
    }

    /// The sync is done; the store hears of it.
    pub(crate) fn log_synced(&mut self, life: Life) {
        let node = &mut self.nodes[life.node];
        if let Err(error) = node.disk.sync() {
            return self.disk_failed(life.node, &error, Mark::SyncFailed);
        }
        if self.crash_if_armed(life.node, CrashPoint::AfterSync) {
            return;
        }
        let Some(process) = &mut self.nodes[life.node].process else { return };
        self.tally.syncs += 1;
        let batches = std::mem::take(&mut process.log_written);
        let more = !process.log_queue.is_empty();
        process.log_busy = more;
        let applied = self.applied_on_disk(life.node);
        self.invariants.persisted(life.node, &batches, applied);
        for item in batches.iter().flat_map(|batch| &batch.items).filter(|item| item.recovers.is_some()) {
            self.goes_on(life.node, item.range);
        }
        if let Some(last) = batches.last() {
            self.trace.note(self.now, "persisted", &[life.node as u64 + 1, last.sequence]);
            self.give(life.node, Input::Persisted { sequence: last.sequence });
        }
        if more {
            self.schedule_log_write(life);
        }
    }

    /// Applied index of each range whose apply batches the sync that just ended has covered.
    fn applied_on_disk(&self, index: usize) -> BTreeMap<RangeId, u64> {
        let Some(process) = &self.nodes[index].process else { return BTreeMap::new() };
        process.applied_written.clone()
    }

    /// The apply stage takes all that is queued.
    pub(crate) fn apply(&mut self, life: Life) {
        let node = &mut self.nodes[life.node];
        let Some(process) = &mut node.process else { return };
        process.apply_due = false;
        let tasks = std::mem::take(&mut process.apply_queue);
        if self.knobs.ttl_per_mille > 0 && tasks.iter().any(ends_keys) {
            self.marks.hit(Mark::TtlEnded);
        }
        for task in &tasks {
            match &task.work {
                ApplyWork::Replaced { applied, .. } => drop(process.applied_written.insert(task.range, applied.index)),
                ApplyWork::Removed => drop(process.applied_written.remove(&task.range)),
                ApplyWork::Entries(_) | ApplyWork::Recovered { .. } => {}
            }
        }
        let mut seen = Vec::new();
        let mut show = |disk: &SimDisk, at: Checkpoint| {
            let range = RangeId(at.descriptor.range_id);
            let spans = checksum::of_range(&disk.copy(), &at.descriptor);
            seen.push((range, at.index, spans.map(|spans| checksum::total(&spans))));
        };
        let done = match process.apply.apply(&node.disk, tasks, &mut show) {
            Ok(done) => done,
            Err(flotilla_engine::apply::ApplyError::Storage(error)) => {
                return self.disk_failed(life.node, &error, Mark::WriteFailed);
            }
            Err(error) => return self.check(Err(format!("n{}: {error}", life.node + 1))),
        };
        for applied in &done {
            process.applied_written.insert(applied.range, applied.index);
        }
        self.compare_checkpoints(life.node, seen);
        for applied in &done {
            self.trace.note(
                self.now,
                "applied",
                &[life.node as u64 + 1, applied.range.0, applied.index, u64::from(applied.checksum)],
            );
            for entry in &applied.results {
                match entry.requests {
                    Err(ApplyRefusal::Stamp) => self.marks.hit(Mark::StampRefused),
                    Err(ApplyRefusal::Epoch) => self.marks.hit(Mark::EpochRefused),
                    Ok(_) | Err(ApplyRefusal::Change) => {}
                }
            }
            let verdict = self.invariants.applied(life.node, applied);
            self.check(verdict);
            if !self.is_outcast(life.node) {
                self.check_removals(applied);
                self.note_records(applied);
            }
        }
        // The crash loses none of what the disk has taken: a sole voter's change may be seen nowhere else.
        for applied in &done {
            if self.crash_after_change(life.node, applied) {
                return;
            }
        }
        if !done.is_empty() && self.crash_if_armed(life.node, CrashPoint::AfterApply) {
            self.marks.hit(Mark::CrashMidApply);
            return;
        }
        for applied in done {
            self.give(life.node, Input::Applied(applied));
        }
    }

    /// Notes what entries have changed about a range; true: the node crashes, as planned for such a moment.
    fn crash_after_change(&mut self, index: usize, done: &Applied) -> bool {
        for change in &done.changes {
            let point = match &change.outcome {
                Ok(RangeChange::Split { children, .. }) => {
                    if let Some(process) = &mut self.nodes[index].process {
                        let born = children.iter().filter(|child| child.born);
                        let ids = born.map(|child| (RangeId(child.descriptor.range_id), child.applied.index));
                        process.applied_written.extend(ids);
                    }
                    CrashPoint::AfterSplit
                }
                Ok(RangeChange::Replicas { removed: true, .. }) => CrashPoint::AfterRemoval,
                Ok(RangeChange::Replicas { .. }) => CrashPoint::AfterReplicas,
                Ok(RangeChange::Checksum { .. }) => continue,
                Ok(RangeChange::Frozen { .. }) => CrashPoint::AfterFreeze,
                Ok(RangeChange::Merged { source, .. }) => {
                    let border = (source.start.clone(), source.range_id);
                    self.recorder.borders_gone.entry(border).or_insert(self.now);
                    if let Some(process) = &mut self.nodes[index].process {
                        process.applied_written.remove(&RangeId(source.range_id));
                    }
                    CrashPoint::AfterMerge
                }
                Ok(RangeChange::Thawed { .. } | RangeChange::Abandoned { .. }) => CrashPoint::AfterThaw,
                Err(ApplyRefusal::Epoch) => {
                    self.marks.hit(Mark::ChangeOfOldEpoch);
                    continue;
                }
                Err(_) => {
                    self.marks.hit(Mark::ChangeRefusedAtApply);
                    continue;
                }
            };
            let of_merge = matches!(point, CrashPoint::AfterFreeze | CrashPoint::AfterMerge | CrashPoint::AfterThaw);
            match &change.outcome {
                Ok(RangeChange::Frozen { .. }) => self.marks.hit(Mark::RangeFrozen),
                Ok(RangeChange::Merged { .. }) => self.marks.hit(Mark::RangeMerged),
                Ok(RangeChange::Thawed { .. }) => self.marks.hit(Mark::RangeThawed),
                Ok(RangeChange::Abandoned { .. }) => self.marks.hit(Mark::MergeAbandoned),
                _ => {}
            }
            if self.crash_if_armed(index, point) {
                if of_merge {
                    self.marks.hit(Mark::CrashMidMerge);
                }
                return true;
            }
        }
        false
    }

    fn compare_checkpoints(&mut self, index: usize, seen: Vec<Checked>) {
        for (range, at, found) in seen {
            let verdict = match found {
                Ok(found) => self.invariants.checkpoint(index, range, at, found),
                Err(error) => Err(format!("n{} {range}: checking the data: {error}", index + 1)),
            };
            if verdict == Ok(true) {
                self.marks.hit(Mark::CheckEqual);
            }
            self.check(verdict.map(|_| ()));
        }
    }

    pub(crate) fn find_split_keys(&mut self, index: usize, wanted: &SplitKeysWanted) {
        let range = RangeId(wanted.descriptor.range_id);
        let found = split_keys::find(&self.nodes[index].disk, wanted);
        self.give(index, Input::SplitKeys { range, found });
    }

    pub(crate) fn fetch(&mut self, index: usize, fetch: FetchLog) {
        let disk = &self.nodes[index].disk;
        match recover::read_log(disk, fetch.range, fetch.low, fetch.high, fetch.bytes_max) {
            Ok(entries) => {
                if entries.is_empty() {
                    self.marks.hit(Mark::LogFetchEmpty);
                }
                self.give(index, Input::LogFetched { range: fetch.range, id: fetch.id, entries });
            }
            Err(error) if self.is_disk_fault(index, &error) => self.disk_failed(index, &error, Mark::WriteFailed),
            Err(error) => self.check(Err(format!("n{}: reading the log back: {error}", index + 1))),
        }
    }

    pub(crate) fn make_snapshot(&mut self, index: usize, range: RangeId) {
        // It may have been removed since it was asked for.
        if !self.invariants.territory.on_store(index).any(|held| held.range_id == range.0) {
            return self.give(index, Input::SnapshotMade { range, snapshot: None });
        }
        let most = self.knobs.config.snapshot_batch_bytes_max;
        match snapshot::make_staged(&self.nodes[index].disk, range, most, |_| ControlFlow::Continue(())) {
            Ok(snapshot) => {
                self.marks.hit(Mark::SnapshotMade);
                self.give(index, Input::SnapshotMade { range, snapshot: Some(snapshot) });
            }
            // No room for its file.
            Err(StorageError::NoSpace { .. }) => self.give(index, Input::SnapshotMade { range, snapshot: None }),
            Err(error) if self.nodes[index].disk.is_poisoned() => self.disk_failed(index, &error, Mark::WriteFailed),
            Err(error) if self.is_disk_fault(index, &error) => {
                self.give(index, Input::SnapshotMade { range, snapshot: None });
            }
            Err(error) => self.check(Err(format!("n{}: making a snapshot: {error}", index + 1))),
        }
    }

    /// A snapshot arrives, chunk by chunk; `None`: the sender's file is gone, or there is no room here.
    pub(crate) fn receive(&self, index: usize, data: &SnapshotData) -> Option<SnapshotData> {
        let limits = Limits::from(&self.knobs.config);
        let disk = &self.nodes[index].disk;
        let mut receiver = Receiver::new(limits, data.header.clone()).ok()?;
        for at in 0..data.chunks.count() {
            receiver.push(disk, data.chunks.read(at).ok()?).ok()?;
        }
        receiver.finish(disk).ok()
    }

    /// A large snapshot takes the place of what a replica has.
    pub(crate) fn ingest(&mut self, life: Life, item: LogItem) {
        let node = &mut self.nodes[life.node];
        let armed = node.armed.map(|(point, ..)| point);
        let at = |step: Step| match armed {
            Some(CrashPoint::AfterIngestStep(point)) if point == step => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        };
        let range = item.range;
        match snapshot::install(&node.disk, &item, at) {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => {
                self.marks.hit(Mark::CrashMidIngest);
                if let Some(CrashPoint::AfterIngestStep(step)) = armed {
                    self.crash_if_armed(life.node, CrashPoint::AfterIngestStep(step));
                }
                return;
            }
            Err(error) => return self.disk_failed(life.node, &error, Mark::WriteFailed),
        }
        self.marks.hit(Mark::SnapshotIngested);
        if !item.ends.is_empty() {
            self.marks.hit(Mark::SnapshotOverMerged);
        }
        let batch = LogBatch { sequence: 0, items: vec![item] };
        let verdict = self.invariants.territory.written(life.node, &batch);
        self.check(verdict);
        let applied = self.applied_on_disk(life.node);
        self.invariants.persisted(life.node, std::slice::from_ref(&batch), applied);
        self.give(life.node, Input::Ingested { range });
    }

    /// Whether the fault plan is behind what a read says.
    fn is_disk_fault(&self, index: usize, error: &StorageError) -> bool {
        matches!(error, StorageError::Io { .. }) || self.nodes[index].disk.rot_was_met()
    }

    /// A store that comes upon what rots does not go on for long.
    pub(crate) fn end_if_rotten(&mut self, index: usize) {
        let life = self.nodes[index].life();
        let met = self.nodes[index].disk.rot_was_met();
        if let Some(process) = self.nodes[index].process.as_mut().filter(|process| met && !process.ends) {
            process.ends = true;
            let at = self.now + self.rng.delay(ms(20));
            self.schedule.at(at, Event::Inner(life, Inner::Ends));
        }
    }

    /// What rots is made good before the node starts again: nothing was served of it.
    pub(crate) fn mend_what_rots(&mut self, index: usize) {
        if self.nodes[index].disk.rot_was_met() {
            self.marks.hit(Mark::RotMet);
            self.trace.say(self.now, || format!("n{}: its disk rots", index + 1));
            self.nodes[index].disk.mend();
        }
    }

    /// The disk failed: the process ends for good, and is started again after a while.
    fn disk_failed(&mut self, index: usize, error: &StorageError, mark: Mark) {
        self.marks.hit(mark);
        self.trace.say(self.now, || format!("n{} stops: {error}", index + 1));
        let down = self.nodes[index].down_after_failure;
        self.crash_for(index, down, true);
    }
}

/// Takes out of what is applied the replicas that end with a batch. The apply stage hears of their end later than the
/// disk, and syncs until then are none of theirs: the next replica of the range may begin with less, if the range has
/// gone back with the loss of a majority.
fn forget_ended(applied: &mut BTreeMap<RangeId, u64>, batch: &LogBatch) {
    for item in &batch.items {
        if item.destroy.is_some() {
            applied.remove(&item.range);
        }
        for ended in &item.ends {
            applied.remove(&RangeId(ended.descriptor.range_id));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flotilla_engine::store::Destroy;
    use flotilla_proto::v1;

    use super::*;

    #[test]
    fn of_replicas_that_end_nothing_is_applied_any_more() {
        let destroy = |range_id: u64| Destroy {
            descriptor: Arc::new(v1::RangeDescriptor { range_id, ..Default::default() }),
            tombstone: v1::Tombstone { replica_id: 4, ..Default::default() },
            keeps_data: false,
        };
        let ends = LogItem { destroy: Some(destroy(5)), ..LogItem::new(RangeId(5)) };
        let takes_in = LogItem { ends: vec![destroy(6)], ..LogItem::new(RangeId(7)) };
        let mut applied: BTreeMap<RangeId, u64> = (5..=8).map(|range| (RangeId(range), 19)).collect();
        forget_ended(&mut applied, &LogBatch { sequence: 1, items: vec![ends, takes_in] });
        assert_eq!(applied.into_keys().collect::<Vec<_>>(), [RangeId(7), RangeId(8)]);
    }
}
