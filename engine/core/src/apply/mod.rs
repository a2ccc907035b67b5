//! The apply stage: committed entries become data.
//!
//! Deterministic: what an entry does depends on the log and on the range's state alone, never on
//! time, node or memory, so that equal applied indexes mean equal data on every replica. A rolling
//! checksum over all that was applied proves it. Data, version counter, applied index and checksum
//! of a range change in one batch; all ranges of a turn share that batch.
//!
//! A compare-and-swap is evaluated here, so nothing but the range's own log is on its path. What
//! cannot be decoded stops the store: skipping it would make this replica differ.

mod change;
mod expiry;
mod merge;
mod ops;

use std::collections::BTreeMap;
use std::sync::Arc;

use flotilla_mutants::Mutant;
use flotilla_proto::{RangeId, v1};
use raft::eraftpb::{Entry, EntryType};

use crate::command::{self, CommandError};
use crate::keys::{self, RangeRecord};
use crate::membership;
use crate::record;
use crate::recover::Boot;
use crate::storage::{Family, Storage, StorageError, WriteBatch};
pub use change::{ChangeApplied, Child, RangeChange, initial_applied, initial_raft_state};
pub(crate) use change::{own_replica, put_range};
pub use expiry::{ExpiryApplied, ExpiryChange};
use ops::Pass;

/// Something for the apply stage to do, in one range.
#[derive(Clone, Debug, PartialEq)]
pub struct ApplyTask {
    /// The range.
    pub range: RangeId,
    /// What to do.
    pub work: ApplyWork,
}

/// See [`ApplyTask`].
#[derive(Clone, Debug, PartialEq)]
pub enum ApplyWork {
    /// Committed entries, in order.
    Entries(Vec<Entry>),
    /// A snapshot has replaced the range's state on disk: go on from this.
    Replaced {
        /// The range as the snapshot has it.
        descriptor: Arc<v1::RangeDescriptor>,
        /// The snapshot's applied state.
        applied: v1::AppliedState,
        /// What the snapshot says of merges.
        merge: Option<Box<v1::MergeState>>,
    },
    /// The replica goes on without the others: the range is this from now on. Nothing of what was applied changes.
    Recovered {
        /// The range.
        descriptor: Arc<v1::RangeDescriptor>,
    },
    /// The replica is gone.
    Removed,
}

/// An index at which every replica computes its checksum. The storage holds just what was applied up to it while
/// [`ApplyStage::apply`] shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Names the check.
    pub check_id: u64,
    /// The range as it is there.
    pub descriptor: Arc<v1::RangeDescriptor>,
    /// The index.
    pub index: u64,
}

/// What applying a task did. The data can be read; it is durable only after a later sync.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// The range.
    pub range: RangeId,
    /// The last index applied.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// The range's rolling checksum at that index.
    pub checksum: u32,
    /// The outcome of each entry that carried requests.
    pub results: Vec<EntryResults>,
    /// The outcome of each entry that changed the range itself.
    pub changes: Vec<ChangeApplied>,
    /// What became of keys with a ttl.
    pub expiry: ExpiryApplied,
    /// About how many bytes were written.
    pub bytes: u64,
}

/// The outcome of one entry.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryResults {
    /// The entry.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Its requests' results, in their order; an error refuses all of them.
    pub requests: Result<Vec<Vec<v1::WriteResult>>, ApplyRefusal>,
}

/// Why an entry was skipped, by all replicas alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApplyRefusal {
    /// Its stamp names another term or range than the one it stands in.
    Stamp,
    /// The range's version has changed since it was evaluated.
    Epoch,
    /// A change of the range that does not follow from what the range is.
    Change,
}

/// Why the apply stage cannot go on. Fatal for the store.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ApplyError {
    /// The disk failed.
    #[error("applying: {0}")]
    Storage(#[from] StorageError),
    /// An entry cannot be understood.
    #[error("applying range {range}, index {index}: {error}")]
    Command {
        /// The range.
        range: RangeId,
        /// The entry.
        index: u64,
        /// Why.
        error: CommandError,
    },
}

/// The apply stage of a store: what each range has applied.
#[derive(Debug)]
pub struct ApplyStage {
    node: u64,
    ranges: BTreeMap<RangeId, RangeApply>,
    /// Part of a split that `replayed-split-overwrites` writes with the next pass.
    #[cfg(feature = "mutants")]
    late: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug)]
struct RangeApply {
    descriptor: Arc<v1::RangeDescriptor>,
    applied: v1::AppliedState,
    /// Its splits; absent: not read yet.
    splits: Option<v1::Splits>,
    /// Absent: it never took part in a merge.
    merge: Option<Box<v1::MergeState>>,
    /// It was removed: what comes behind is none of its business.
    removed: bool,
}

impl ApplyStage {
    /// The stage as recovery found it.
    pub fn new(boot: &Boot) -> Self {
        let ranges = boot.ranges.iter().map(|range| {
            let id = RangeId(range.descriptor.range_id);
            (id, RangeApply::new(range.descriptor.clone(), range.applied, range.merge.clone()))
        });
        Self {
            node: boot.identity.node_id,
            ranges: ranges.collect(),
            #[cfg(feature = "mutants")]
            late: Vec::new(),
        }
    }

    /// Carries tasks out, in their order, with one write of the storage, or one more for each checkpoint among
    /// them. After an error the store must stop: what was computed was not written.
    pub fn apply<S: Storage>(
        &mut self,
        storage: &S,
        tasks: Vec<ApplyTask>,
        show: &mut dyn FnMut(&S, Checkpoint),
    ) -> Result<Vec<Applied>, ApplyError> {
        let mut pass = Pass::new(storage);
        #[cfg(feature = "mutants")]
        for (key, value) in self.late.drain(..) {
            pass.batch.put(Family::State, &key, &value);
        }
        let mut done = Vec::with_capacity(tasks.len());
        for task in tasks {
            match task.work {
                ApplyWork::Replaced { descriptor, applied, merge } => {
                    self.ranges.insert(task.range, RangeApply::new(descriptor, applied, merge));
                }
                ApplyWork::Recovered { descriptor } => {
                    if let Some(range) = self.ranges.get_mut(&task.range) {
                        range.descriptor = descriptor;
                        range.merge.iter_mut().for_each(|merge| merge.frozen = None);
                    }
                }
                ApplyWork::Removed => drop(self.ranges.remove(&task.range)),
                ApplyWork::Entries(entries) => done.push(self.apply_entries(&mut pass, task.range, entries, show)?),
            }
        }
        pass.flush()?;
        Ok(done)
    }

    fn apply_entries<S: Storage>(
        &mut self,
        pass: &mut Pass<'_, S>,
        id: RangeId,
        entries: Vec<Entry>,
        show: &mut dyn FnMut(&S, Checkpoint),
    ) -> Result<Applied, ApplyError> {
        let node = self.node;
        let range = self.ranges.get_mut(&id).expect("tasks are only made for ranges of this store");
        let mut done = Applied {
            range: id,
            index: range.applied.index,
            term: range.applied.term,
            checksum: range.applied.checksum,
            results: Vec::with_capacity(entries.len()),
            changes: Vec::new(),
            expiry: ExpiryApplied::default(),
            bytes: 0,
        };
        if range.removed {
            return Ok(done);
        }
        let mut before = pass.size_bytes();
        let (mut born, mut ended) = (Vec::new(), Vec::new());
        for entry in entries {
            let changed = range.apply(pass, node, id, entry, &mut done)?;
            match changed {
                None => {}
                Some(RangeChange::Split { children, .. }) => born.extend(children),
                Some(RangeChange::Checksum { check_id }) => {
                    range.write_applied(pass, id)?;
                    done.bytes += (pass.size_bytes() - before) as u64;
                    pass.flush()?;
                    before = 0;
                    let (descriptor, index) = (range.descriptor.clone(), range.applied.index);
                    show(pass.storage, Checkpoint { check_id, descriptor, index });
                }
                // Nothing behind its own removal concerns this replica.
                Some(RangeChange::Replicas { removed: true, .. }) => {
                    range.removed = true;
                    break;
                }
                Some(RangeChange::Merged { source, .. }) => ended.push(RangeId(source.range_id)),
                Some(
                    RangeChange::Replicas { .. }
                    | RangeChange::Frozen { .. }
                    | RangeChange::Thawed { .. }
                    | RangeChange::Abandoned { .. },
                ) => {}
            }
        }
        range.write_applied(pass, id)?;
        done.bytes += pass.size_bytes().saturating_sub(before) as u64;
        (done.index, done.term, done.checksum) = (range.applied.index, range.applied.term, range.applied.checksum);
        done.expiry = range.expiry_applied(pass);
        #[cfg(feature = "mutants")]
        if Mutant::ReplayedSplitOverwrites.is_on() && !born.is_empty() {
            let parent = self.ranges.get(&id).expect("it was just applied to");
            self.late = parent.records(id);
            for (key, _) in &self.late {
                let old = pass.storage.get(Family::State, key)?.unwrap_or_default();
                pass.batch.put(Family::State, key, &old);
            }
        }
        for child in born.into_iter().filter(|child| child.born) {
            let range = RangeApply::new(child.descriptor.clone(), child.applied, None);
            self.ranges.insert(RangeId(child.descriptor.range_id), range);
        }
        // What was committed behind the freeze is of no use any more.
        for id in ended {
            if let Some(range) = self.ranges.get_mut(&id) {
                range.removed = true;
            }
        }
        Ok(done)
    }
}

impl RangeApply {
    fn new(
        descriptor: Arc<v1::RangeDescriptor>,
        applied: v1::AppliedState,
        merge: Option<Box<v1::MergeState>>,
    ) -> Self {
        Self { descriptor, applied, splits: None, merge, removed: false }
    }

    /// Applies one entry. What it changes about the range is returned, if it does, and noted in `done` as well.
    fn apply<S: Storage>(
        &mut self,
        pass: &mut Pass<'_, S>,
        node: u64,
        range: RangeId,
        entry: Entry,
        done: &mut Applied,
    ) -> Result<Option<RangeChange>, ApplyError> {
        assert_eq!(entry.index, self.applied.index + 1, "entries of {range} are applied in order, each once");
        let (index, term) = (entry.index, entry.term);
        let mut changed = None;
        let kind = entry.get_entry_type();
        // A new leader's first entry is empty.
        if !entry.data.is_empty() || kind != EntryType::EntryNormal {
            let failed = |error| ApplyError::Command { range, index, error };
            let data = match kind {
                EntryType::EntryNormal => entry.data,
                EntryType::EntryConfChangeV2 if !entry.data.is_empty() => {
                    membership::context(entry.data).map_err(failed)?
                }
                _ => return Err(failed(CommandError::UnknownEntryType)),
            };
            let (command, crc) = command::decode(data).map_err(failed)?;
            self.mix(&crc.to_be_bytes());
            let refusal = self.refusal(&command, range, term);
            if command.change.is_none() {
                let requests = match refusal {
                    Some(refusal) => Err(refusal),
                    None => Ok(self.apply_requests(pass, &command)?),
                };
                done.results.push(EntryResults { index, term, requests });
            } else {
                let outcome = match refusal {
                    Some(refusal) => Err(refusal),
                    None => self.apply_change(pass, node, &command)?,
                };
                changed = outcome.as_ref().ok().cloned();
                done.changes.push(ChangeApplied { index, term, outcome });
            }
        }
        self.applied.index = index;
        self.applied.term = term;
        self.mix(&index.to_be_bytes());
        self.mix(&term.to_be_bytes());
        Ok(changed)
    }

    /// Adds to the rolling checksum.
    fn mix(&mut self, bytes: &[u8]) {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.applied.checksum);
        hasher.update(bytes);
        self.applied.checksum = hasher.finalize();
    }

    fn write_applied<S: Storage>(&self, pass: &mut Pass<'_, S>, range: RangeId) -> Result<(), StorageError> {
        let (key, value) = (keys::range_record(range, RangeRecord::Applied), record::encode(&self.applied));
        if Mutant::AppliedIndexApart.is_on() {
            let mut apart = pass.storage.batch();
            apart.put(Family::State, &key, &value);
            return pass.storage.write(apart);
        }
        pass.batch.put(Family::State, &key, &value);
        Ok(())
    }

    #[cfg(feature = "mutants")]
    fn records(&self, range: RangeId) -> Vec<(Vec<u8>, Vec<u8>)> {
        vec![
            (keys::range_record(range, RangeRecord::Descriptor).to_vec(), record::encode(&*self.descriptor)),
            (keys::range_record(range, RangeRecord::Applied).to_vec(), record::encode(&self.applied)),
        ]
    }

    /// Why a command is skipped, by all replicas alike.
    fn refusal(&self, command: &v1::Command, range: RangeId, term: u64) -> Option<ApplyRefusal> {
        let stamp_holds = command.range_id == range.0 && command.term == term;
        if !stamp_holds && !Mutant::NoTermStampCheck.is_on() {
            return Some(ApplyRefusal::Stamp);
        }
        // Replicas change without a change of the keys served: conf_ver is theirs alone.
        let of_replicas = matches!(command.change, Some(v1::command::Change::Replicas(_)));
        let epoch_holds = command.epoch_version == self.descriptor.epoch.unwrap_or_default().version;
        if !epoch_holds && !of_replicas && !Mutant::NoEpochCheck.is_on() {
            return Some(ApplyRefusal::Epoch);
        }
        // Changes of replicas above all: they name no version.
        let thaws = matches!(command.change, Some(v1::command::Change::Thaw(_)));
        (self.frozen().is_some() && !thaws).then_some(ApplyRefusal::Epoch)
    }

    fn apply_requests<S: Storage>(
        &mut self,
        pass: &mut Pass<'_, S>,
        command: &v1::Command,
    ) -> Result<Vec<Vec<v1::WriteResult>>, StorageError> {
        self.advance_time(command);
        if let Some(expire) = &command.expire {
            self.apply_expire(pass, expire)?;
        }
        command.requests.iter().map(|request| self.apply_request(pass, request)).collect()
    }

    fn apply_change<S: Storage>(
        &mut self,
        pass: &mut Pass<'_, S>,
        node: u64,
        command: &v1::Command,
    ) -> Result<Result<RangeChange, ApplyRefusal>, StorageError> {
        use v1::command::Change;
        match &command.change {
            Some(Change::Split(split)) => self.apply_split(pass, node, split, command.term),
            Some(Change::Replicas(change)) => Ok(self.apply_replicas(pass, node, change, command.term)),
            Some(Change::Checksum(check)) => Ok(Ok(RangeChange::Checksum { check_id: check.check_id })),
            Some(Change::Freeze(freeze)) => Ok(self.apply_freeze(pass, command, freeze)),
            Some(Change::Thaw(thaw)) => Ok(self.apply_thaw(pass, *thaw)),
            Some(Change::Merge(merge)) => self.apply_merge(pass, command, merge),
            Some(Change::Abandon(abandon)) => Ok(self.apply_abandon(pass, abandon)),
            None => Ok(Err(ApplyRefusal::Change)),
        }
    }
}
