//! The apply stage: committed entries become data.
//!
//! Deterministic: what an entry does depends on the log and on the range's state alone, never on
//! time, node or memory, so that equal applied indexes mean equal data on every replica. A rolling
//! checksum over all that was applied proves it. Data, version counter, applied index and checksum
//! of a range change in one batch; all ranges of a turn share that batch.
//!
//! A compare-and-swap is evaluated here, so nothing but the range's own log is on its path. What
//! cannot be decoded stops the store: skipping it would make this replica differ.

mod ops;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use flotilla_proto::{RangeId, v1};
use raft::eraftpb::{Entry, EntryType};

use crate::command::{self, CommandError};
use crate::keys::{self, RangeRecord};
use crate::record;
use crate::recover::Boot;
use crate::storage::{Family, Storage, StorageError, WriteBatch};
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
    },
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
    ranges: BTreeMap<RangeId, RangeApply>,
}

#[derive(Debug)]
struct RangeApply {
    descriptor: Arc<v1::RangeDescriptor>,
    applied: v1::AppliedState,
}

impl ApplyStage {
    /// The stage as recovery found it.
    pub fn new(boot: &Boot) -> Self {
        let ranges = boot.ranges.iter().map(|range| {
            let id = RangeId(range.descriptor.range_id);
            (id, RangeApply { descriptor: range.descriptor.clone(), applied: range.applied })
        });
        Self { ranges: ranges.collect() }
    }

    /// Carries tasks out, in their order, with one write of the storage. After an error the store must
    /// stop: what was computed was not written.
    pub fn apply<S: Storage>(&mut self, storage: &S, tasks: Vec<ApplyTask>) -> Result<Vec<Applied>, ApplyError> {
        let mut pass = Pass { storage, batch: storage.batch(), overlay: HashMap::new() };
        let mut done = Vec::with_capacity(tasks.len());
        for task in tasks {
            let range = match task.work {
                ApplyWork::Replaced { descriptor, applied } => {
                    self.ranges.insert(task.range, RangeApply { descriptor, applied });
                    continue;
                }
                ApplyWork::Entries(entries) => {
                    let range = self.ranges.get_mut(&task.range).expect("tasks are only made for ranges of this store");
                    done.push(range.apply(&mut pass, task.range, entries)?);
                    range
                }
            };
            let key = keys::range_record(task.range, RangeRecord::Applied);
            pass.batch.put(Family::State, &key, &record::encode(&range.applied));
        }
        let batch = pass.batch;
        if !batch.is_empty() {
            storage.write(batch)?;
        }
        Ok(done)
    }
}

impl RangeApply {
    fn apply<S: Storage>(
        &mut self,
        pass: &mut Pass<'_, S>,
        range: RangeId,
        entries: Vec<Entry>,
    ) -> Result<Applied, ApplyError> {
        let mut results = Vec::with_capacity(entries.len());
        for entry in entries {
            assert_eq!(entry.index, self.applied.index + 1, "entries of {range} are applied in order, each once");
            let (index, term) = (entry.index, entry.term);
            if entry.get_entry_type() != EntryType::EntryNormal {
                return Err(ApplyError::Command { range, index, error: CommandError::UnknownEntryType });
            }
            // A new leader's first entry is empty.
            if !entry.data.is_empty() {
                let requests = self.apply_command(pass, range, entry)?;
                results.push(EntryResults { index, term, requests });
            }
            self.applied.index = index;
            self.applied.term = term;
            self.mix(&index.to_be_bytes());
            self.mix(&term.to_be_bytes());
        }
        let v1::AppliedState { index, term, checksum, .. } = self.applied;
        Ok(Applied { range, index, term, checksum, results })
    }

    /// Adds to the rolling checksum.
    fn mix(&mut self, bytes: &[u8]) {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.applied.checksum);
        hasher.update(bytes);
        self.applied.checksum = hasher.finalize();
    }

    fn apply_command<S: Storage>(
        &mut self,
        pass: &mut Pass<'_, S>,
        range: RangeId,
        entry: Entry,
    ) -> Result<Result<Vec<Vec<v1::WriteResult>>, ApplyRefusal>, ApplyError> {
        let (index, term) = (entry.index, entry.term);
        let (command, crc) =
            command::decode(entry.data).map_err(|error| ApplyError::Command { range, index, error })?;
        self.mix(&crc.to_be_bytes());
        let stamp_holds = command.range_id == range.0 && command.term == term;
        if !stamp_holds && !cfg!(feature = "mutant-no-term-stamp-check") {
            return Ok(Err(ApplyRefusal::Stamp));
        }
        if command.epoch_version != self.descriptor.epoch.unwrap_or_default().version {
            return Ok(Err(ApplyRefusal::Epoch));
        }
        let mut results = Vec::with_capacity(command.requests.len());
        for request in &command.requests {
            results.push(self.apply_request(pass, request)?);
        }
        Ok(Ok(results))
    }
}
