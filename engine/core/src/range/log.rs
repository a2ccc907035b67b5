//! One replica's log as Raft sees it: cached entries, the terms of all others, and requests for what
//! is only on disk.
//!
//! Nothing here reads a disk. Terms are kept for the whole log as runs (they never fall), so that
//! Raft's questions about terms are answered from memory; entries that are not applied are always
//! cached, because Raft asks for them where it cannot wait; older ones that a follower still needs
//! are asked for by an effect, and Raft is told to try again when they have come (raft-rs:
//! `LogTemporarilyUnavailable`, `on_entries_fetched`).

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};

use flotilla_proto::v1;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};

use crate::recover::RangeBoot;
use crate::store::SnapshotData;
use crate::wire;

/// Bytes that an entry counts for beyond its data.
const ENTRY_OVERHEAD_BYTES: usize = 48;

/// A replica's log.
pub(crate) struct RangeLog {
    hard_state: HardState,
    conf_state: ConfState,
    truncated_index: u64,
    truncated_term: u64,
    last_index: u64,
    /// (first index, term) of each run of equal terms above the truncated index.
    terms: VecDeque<(u64, u64)>,
    /// Size on disk of each entry above the truncated index.
    sizes: VecDeque<u32>,
    log_bytes: u64,
    /// The newest entries, without a gap up to `last_index`.
    cache: VecDeque<Entry>,
    cache_bytes: usize,
    fetches: RefCell<Fetches>,
    snapshot: RefCell<Option<SnapshotData>>,
    snapshot_wanted: Cell<bool>,
    /// Replicas that are to get no snapshot for now.
    snapshots_paused: RefCell<BTreeSet<u64>>,
}

/// Reads of old entries: asked for, under way, and come back.
#[derive(Default)]
struct Fetches {
    next_id: u64,
    open: Vec<Fetch>,
    fetched: Option<Vec<Entry>>,
}

struct Fetch {
    id: u64,
    low: u64,
    high: u64,
    bytes_max: u64,
    asked: bool,
    contexts: Vec<GetEntriesContext>,
}

/// A read of old entries, to be made an effect.
pub(crate) struct WantedFetch {
    pub id: u64,
    pub low: u64,
    pub high: u64,
    pub bytes_max: u64,
}

fn entry_bytes(entry: &Entry) -> usize {
    entry.data.len() + ENTRY_OVERHEAD_BYTES
}

/// The configuration that a descriptor stands for.
pub(crate) fn conf_state(descriptor: &v1::RangeDescriptor) -> ConfState {
    let of_role = |role: v1::ReplicaRole| -> Vec<u64> {
        descriptor.replicas.iter().filter(|replica| replica.role() == role).map(|replica| replica.replica_id).collect()
    };
    let voters = [of_role(v1::ReplicaRole::Voter), of_role(v1::ReplicaRole::VoterIncoming)].concat();
    let outgoing = of_role(v1::ReplicaRole::VoterOutgoing);
    let mut conf = ConfState::from((voters, of_role(v1::ReplicaRole::Learner)));
    // raft-rs: not joint as long as the outgoing set is empty. Those who stay vote in both.
    if !outgoing.is_empty() || conf.voters.len() > of_role(v1::ReplicaRole::Voter).len() {
        conf.voters_outgoing = [of_role(v1::ReplicaRole::Voter), outgoing].concat();
    }
    conf
}

impl RangeLog {
    pub(crate) fn new(boot: &RangeBoot, incarnation: u64) -> Self {
        let hard_state = HardState {
            term: boot.raft.term,
            vote: boot.raft.vote,
            // Commit is not synced with each change; what was applied was committed.
            commit: boot.raft.commit.max(boot.applied.index),
            ..Default::default()
        };
        let mut log = Self {
            hard_state,
            conf_state: conf_state(&boot.descriptor),
            truncated_index: boot.raft.truncated_index,
            truncated_term: boot.raft.truncated_term,
            last_index: boot.last_index,
            terms: boot.terms.iter().copied().collect(),
            sizes: boot.entry_bytes.iter().copied().collect(),
            log_bytes: boot.entry_bytes.iter().map(|bytes| u64::from(*bytes)).sum(),
            cache: VecDeque::new(),
            cache_bytes: 0,
            // What was asked for a former replica of the range must not answer for this one (tikv#17469).
            fetches: RefCell::new(Fetches { next_id: incarnation << 32, ..Fetches::default() }),
            snapshot: RefCell::default(),
            snapshot_wanted: Cell::new(false),
            snapshots_paused: RefCell::default(),
        };
        for entry in &boot.entries {
            log.cache_bytes += entry_bytes(entry);
            log.cache.push_back(entry.clone());
        }
        log
    }

    /// The log for a replica that goes on with it; everything of it has been written.
    pub(crate) fn copy_into(&self, boot: &mut RangeBoot) {
        boot.terms = self.terms.iter().copied().collect();
        boot.last_index = self.last_index;
        boot.entry_bytes = self.sizes.iter().copied().collect();
        boot.entries = self.cache.iter().filter(|entry| entry.index > boot.applied.index).cloned().collect();
    }

    pub(crate) fn truncated(&self) -> (u64, u64) {
        (self.truncated_index, self.truncated_term)
    }

    /// Index of the last entry that was taken from Raft, to be written.
    pub(crate) fn handed_over(&self) -> u64 {
        self.last_index
    }

    /// Whether entries were asked for that have not come yet.
    pub(crate) fn is_fetching(&self) -> bool {
        !self.fetches.borrow().open.is_empty()
    }

    /// The log's terms, as a boot record has them.
    pub(crate) fn terms(&self) -> impl Iterator<Item = (u64, u64)> {
        self.terms.iter().copied()
    }

    /// The sizes of the log's entries, as a boot record has them.
    pub(crate) fn sizes(&self) -> impl Iterator<Item = u32> {
        self.sizes.iter().copied()
    }

    pub(crate) fn log_bytes(&self) -> u64 {
        self.log_bytes
    }

    fn cache_first(&self) -> u64 {
        self.last_index + 1 - self.cache.len() as u64
    }

    /// Takes new entries; they replace what was there from their first index on. Returns the indexes
    /// `[from, to)` of old entries behind the new ones, which are to be removed from disk.
    pub(crate) fn append(&mut self, entries: &[Entry]) -> Option<(u64, u64)> {
        let first = entries.first()?.index;
        assert!(first > self.truncated_index && first <= self.last_index + 1, "Raft appends without a gap");
        let old_last = self.last_index;
        self.cut_from(first);
        for entry in entries {
            if self.terms.back().is_none_or(|(_, term)| *term != entry.term) {
                self.terms.push_back((entry.index, entry.term));
            }
            let bytes = entry_bytes(entry);
            self.cache_bytes += bytes;
            self.log_bytes += bytes as u64;
            self.sizes.push_back(u32::try_from(bytes).unwrap_or(u32::MAX));
            self.cache.push_back(entry.clone());
            self.last_index = entry.index;
        }
        (old_last > self.last_index).then_some((self.last_index + 1, old_last + 1))
    }

    /// Drops the entries from `first` on.
    fn cut_from(&mut self, first: u64) {
        while self.last_index >= first {
            if let Some(entry) = self.cache.pop_back() {
                self.cache_bytes -= entry_bytes(&entry);
            }
            self.log_bytes -= self.sizes.pop_back().map_or(0, u64::from);
            self.last_index -= 1;
        }
        while self.terms.back().is_some_and(|(from, _)| *from >= first) {
            self.terms.pop_back();
        }
        // Entries read for a follower may be among those that are gone.
        self.fetches.borrow_mut().fetched = None;
    }

    /// Forgets cached entries up to `applied`, oldest first, until the cache is within its bounds.
    pub(crate) fn shrink_cache(&mut self, applied: u64, bytes_max: usize) {
        while self.cache_bytes > bytes_max && self.cache.front().is_some_and(|entry| entry.index <= applied) {
            if let Some(entry) = self.cache.pop_front() {
                self.cache_bytes -= entry_bytes(&entry);
            }
        }
    }

    /// The highest index up to which the log may go, so that at most `bytes` and `count` stay behind.
    pub(crate) fn truncation_point(&self, bytes: u64, count: u64) -> u64 {
        let (mut at, mut left_bytes, mut left) = (self.truncated_index, self.log_bytes, self.sizes.len() as u64);
        for size in &self.sizes {
            if left_bytes <= bytes && left <= count {
                break;
            }
            left_bytes -= u64::from(*size);
            left -= 1;
            at += 1;
        }
        at
    }

    /// Bytes of the entries above `index`.
    pub(crate) fn bytes_above(&self, index: u64) -> u64 {
        let skip = usize::try_from(index.saturating_sub(self.truncated_index)).unwrap_or(usize::MAX);
        self.sizes.iter().skip(skip).map(|size| u64::from(*size)).sum()
    }

    /// Cuts the log off up to `index`, which must be applied; returns the removed indexes `[from, to)`.
    pub(crate) fn truncate(&mut self, index: u64) -> Option<(u64, u64)> {
        if index <= self.truncated_index {
            return None;
        }
        let term = self.term(index).ok()?;
        let from = self.truncated_index + 1;
        while self.truncated_index < index {
            self.log_bytes -= self.sizes.pop_front().map_or(0, u64::from);
            self.truncated_index += 1;
        }
        self.truncated_term = term;
        while self.terms.get(1).is_some_and(|(next, _)| *next <= index + 1) {
            self.terms.pop_front();
        }
        match self.terms.front_mut() {
            Some(run) if run.0 <= index => run.0 = index + 1,
            _ => {}
        }
        if index == self.last_index {
            self.terms.clear();
        }
        while self.cache.front().is_some_and(|entry| entry.index <= index) {
            if let Some(entry) = self.cache.pop_front() {
                self.cache_bytes -= entry_bytes(&entry);
            }
        }
        Some((from, index + 1))
    }

    /// A snapshot takes the place of the whole log; returns the removed indexes `[from, to)`.
    pub(crate) fn install(&mut self, snapshot: &Snapshot) -> Option<(u64, u64)> {
        let meta = snapshot.get_metadata();
        let removed = (self.truncated_index + 1, self.last_index + 1);
        self.truncated_index = meta.index;
        self.truncated_term = meta.term;
        self.last_index = meta.index;
        self.conf_state = meta.get_conf_state().clone();
        self.terms.clear();
        self.sizes.clear();
        self.log_bytes = 0;
        self.cache.clear();
        self.cache_bytes = 0;
        // Ids go on: the answer to a read of the old log must not be taken for one of the new.
        let fetches = self.fetches.get_mut();
        fetches.open.clear();
        fetches.fetched = None;
        self.snapshot.replace(None);
        (removed.0 < removed.1).then_some(removed)
    }

    /// Whether Raft asked for a snapshot since the last call.
    pub(crate) fn take_snapshot_wanted(&self) -> bool {
        self.snapshot_wanted.take()
    }

    /// Gives Raft a snapshot to send; `None` takes it away.
    pub(crate) fn offer_snapshot(&self, snapshot: Option<SnapshotData>) {
        self.snapshot.replace(snapshot);
    }

    /// Sets who is to get no snapshot for now.
    pub(crate) fn pause_snapshots(&self, replicas: BTreeSet<u64>) {
        self.snapshots_paused.replace(replicas);
    }

    /// The snapshot that was offered.
    pub(crate) fn offered_snapshot(&self) -> Option<SnapshotData> {
        self.snapshot.borrow().clone()
    }

    /// Reads that Raft waits for and that nobody was asked for yet.
    pub(crate) fn take_wanted_fetches(&self) -> Vec<WantedFetch> {
        let mut fetches = self.fetches.borrow_mut();
        let unasked = fetches.open.iter_mut().filter(|fetch| !fetch.asked);
        unasked
            .map(|fetch| {
                fetch.asked = true;
                WantedFetch { id: fetch.id, low: fetch.low, high: fetch.high, bytes_max: fetch.bytes_max }
            })
            .collect()
    }

    /// Takes entries that were read; returns what Raft is to be told, one by one.
    pub(crate) fn fetched(&mut self, id: u64, entries: Vec<Entry>) -> Vec<GetEntriesContext> {
        let mut fetches = self.fetches.borrow_mut();
        let Some(at) = fetches.open.iter().position(|fetch| fetch.id == id) else { return Vec::new() };
        let fetch = fetches.open.swap_remove(at);
        fetches.fetched = (!entries.is_empty()).then_some(entries);
        fetch.contexts
    }

    /// Forgets what was fetched, once Raft has taken it.
    pub(crate) fn drop_fetched(&mut self) {
        self.fetches.borrow_mut().fetched = None;
    }

    fn cached(&self, low: u64, high: u64, bytes_max: Option<u64>) -> Vec<Entry> {
        let from = (low - self.cache_first()) as usize;
        let to = (high - self.cache_first()) as usize;
        limited(self.cache.range(from..to), bytes_max)
    }

    /// Entries out of the last read, if they begin where Raft asks.
    fn take_fetched(&self, low: u64, high: u64, bytes_max: Option<u64>) -> Option<Vec<Entry>> {
        let fetches = self.fetches.borrow();
        let fetched = fetches.fetched.as_ref()?;
        let first = fetched.first()?.index;
        if low < first || low >= first + fetched.len() as u64 {
            return None;
        }
        let upto = fetched.iter().filter(|entry| entry.index >= low && entry.index < high);
        Some(limited(upto, bytes_max))
    }

    fn want(&self, low: u64, high: u64, bytes_max: Option<u64>, context: GetEntriesContext) {
        let mut fetches = self.fetches.borrow_mut();
        if let Some(open) = fetches.open.iter_mut().find(|fetch| fetch.low == low) {
            open.contexts.push(context);
            return;
        }
        fetches.next_id += 1;
        let id = fetches.next_id;
        let bytes_max = bytes_max.unwrap_or(u64::MAX);
        fetches.open.push(Fetch { id, low, high, bytes_max, asked: false, contexts: vec![context] });
    }
}

fn limited<'a>(entries: impl Iterator<Item = &'a Entry>, bytes_max: Option<u64>) -> Vec<Entry> {
    let bytes_max = bytes_max.unwrap_or(u64::MAX);
    let mut bytes = 0;
    let mut taken = Vec::new();
    for entry in entries {
        bytes += entry_bytes(entry) as u64;
        if bytes > bytes_max && !taken.is_empty() {
            break;
        }
        taken.push(entry.clone());
    }
    taken
}

impl Storage for RangeLog {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(RaftState { hard_state: self.hard_state.clone(), conf_state: self.conf_state.clone() })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        let max_size = max_size.into();
        if low <= self.truncated_index {
            return Err(Error::Store(StorageError::Compacted));
        }
        assert!(high <= self.last_index + 1, "Raft asks for no entry behind the last");
        if low >= high {
            return Ok(Vec::new());
        }
        if low >= self.cache_first() {
            return Ok(self.cached(low, high, max_size));
        }
        if let Some(entries) = self.take_fetched(low, high, max_size) {
            return Ok(entries);
        }
        assert!(context.can_async(), "entries that are not applied are always cached");
        // No further than to what is cached: the rest on disk is applied and will not change, whenever it is read.
        self.want(low, high.min(self.cache_first()), max_size, context);
        Err(Error::Store(StorageError::LogTemporarilyUnavailable))
    }

    fn term(&self, index: u64) -> Result<u64> {
        if index == self.truncated_index {
            return Ok(self.truncated_term);
        }
        if index < self.truncated_index {
            return Err(Error::Store(StorageError::Compacted));
        }
        if index > self.last_index {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let at = self.terms.partition_point(|(from, _)| *from <= index);
        Ok(self.terms[at - 1].1)
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.truncated_index + 1)
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last_index)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> Result<Snapshot> {
        if self.snapshots_paused.borrow().contains(&to) {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        let offered = self.snapshot.borrow();
        let usable = offered.as_ref().and_then(|data| {
            let applied = data.header.applied?;
            let descriptor = data.header.descriptor.as_ref()?;
            let covers = applied.index >= request_index && applied.index >= self.truncated_index;
            covers.then(|| snapshot_of(descriptor, applied))
        });
        usable.ok_or_else(|| {
            self.snapshot_wanted.set(true);
            Error::Store(StorageError::SnapshotTemporarilyUnavailable)
        })
    }
}

fn snapshot_of(descriptor: &v1::RangeDescriptor, applied: v1::AppliedState) -> Snapshot {
    let conf = conf_state(descriptor);
    wire::snapshot(&v1::SnapshotMeta {
        index: applied.index,
        term: applied.term,
        voters: conf.voters,
        learners: conf.learners,
        voters_outgoing: conf.voters_outgoing,
    })
}
