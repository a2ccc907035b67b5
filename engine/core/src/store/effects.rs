//! What the store wants done: filled by [`super::Store::on`] and [`super::Store::end_turn`], carried out by
//! whoever drives the store (threads in flotilla-node, the scheduler in flotilla-sim).
//!
//! Order: publish [`Effects::views`] first, since a view that ends a lease must be seen before
//! the message that lets another replica lead leaves the node. Everything else may be done in any
//! order and at any time later; within one field the order is to be kept.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_proto::{Error, NodeId, RangeId, v1};
use raft::eraftpb::Entry;

use super::input::{Envelope, Token};
use crate::apply::ApplyTask;
use crate::expiry::ExpiryWanted;
use crate::load::Tally;
use crate::snapshot::SnapshotData;
use crate::time::BootTime;

/// What became of a leader transfer: the new leader and its term.
pub type TransferAnswer = Result<(NodeId, u64), Error>;

/// What became of a split: the range and its children, in key order.
pub type SplitAnswer = Result<Vec<v1::RangeDescriptor>, Error>;

/// What became of a merge: the range that took the other one in.
pub type MergeAnswer = Result<v1::RangeDescriptor, Error>;

/// A check that every replica of a range carries out when it applies this entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckStarted {
    /// Names the check.
    pub check_id: u64,
    /// The entry's index.
    pub index: u64,
}

/// Keys to split a range at are wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct SplitKeysWanted {
    /// The range, as it is now.
    pub descriptor: Arc<v1::RangeDescriptor>,
    /// Into how many parts.
    pub parts: u32,
    /// Where a split may fall.
    pub boundary: v1::SplitBoundary,
    /// Whether a person asked: then a range that holds little is cut all the same.
    pub by_hand: bool,
}

/// Everything the store wants done after a turn.
#[derive(Debug, Default)]
pub struct Effects {
    /// What readers may see of each range from now on.
    pub views: Vec<Arc<ReadView>>,
    /// Ranges that can no longer be read here, not even stale: before the messages, like the views.
    pub views_gone: Vec<RangeId>,
    /// To be made durable; answered by [`super::Input::Persisted`]. Write it with
    /// [`crate::log_writer::fill`], then sync; one sync may cover several batches.
    pub log: Option<LogBatch>,
    /// To be sent, in this order for each node. None of them needs to wait for [`Effects::log`]:
    /// the store holds back what must.
    pub messages: Vec<Envelope>,
    /// Nodes that are to be told that this one lives ([`super::Input::Beat`]), or that it stops.
    pub beats: Vec<Beat>,
    /// Committed entries for the apply stage; answered by [`super::Input::Applied`].
    pub applies: Vec<ApplyTask>,
    /// Answers to writes.
    pub writes: Vec<(Token, Result<WriteAnswer, Error>)>,
    /// Answers to read barriers: on success the range may be read now.
    pub barriers: Vec<(Token, Result<Arc<ReadView>, Error>)>,
    /// Answers to leader transfers: the new leader and its term.
    pub transfers: Vec<(Token, TransferAnswer)>,
    /// Answers to splits.
    pub splits: Vec<(Token, SplitAnswer)>,
    /// Answers to merges.
    pub merges: Vec<(Token, MergeAnswer)>,
    /// Answers to checks.
    pub checks: Vec<(Token, Result<CheckStarted, Error>)>,
    /// Answers to orders to go on without a majority.
    pub recoveries: Vec<(Token, Result<Recovered, Error>)>,
    /// Keys to be looked for ([`crate::split_keys::find`]); answered by [`super::Input::SplitKeys`].
    pub split_keys_wanted: Vec<SplitKeysWanted>,
    /// Passes over expiry indexes ([`crate::expiry::find`]); answered by [`super::Input::ExpiriesFound`].
    pub expiries_wanted: Vec<ExpiryWanted>,
    /// Ids for new ranges run short.
    pub range_ids_wanted: bool,
    /// What this node measures of itself, every half second: all other nodes are to be told, by whatever goes to them
    /// next ([`super::Input::Health`] there). The newest counts.
    pub health: Option<v1::NodeHealth>,
    /// Answers to status questions.
    pub statuses: Vec<(Token, Result<v1::GetRangeResponse, Error>)>,
    /// Entries to be read from disk; answered by [`super::Input::LogFetched`].
    pub fetches: Vec<FetchLog>,
    /// Snapshots to be made ([`crate::snapshot::make_staged`]); answered by [`super::Input::SnapshotMade`].
    pub snapshots_wanted: Vec<RangeId>,
    /// Large snapshots that are to take the place of what a replica has ([`crate::snapshot::install()`]); each is
    /// answered by [`super::Input::Ingested`]. All log batches of the replica that came before are durable, and none
    /// comes before the answer.
    pub ingests: Vec<LogItem>,
    /// What happened, for logs, metrics and checkers.
    pub events: Vec<Event>,
    /// The store cannot go on: stop the process, and say this.
    pub fatal: Option<String>,
}

impl Effects {
    /// Whether nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.views.is_empty()
            && self.log.is_none()
            && self.messages.is_empty()
            && self.beats.is_empty()
            && self.applies.is_empty()
            && self.writes.is_empty()
            && self.barriers.is_empty()
            && self.transfers.is_empty()
            && self.statuses.is_empty()
            && self.views_gone.is_empty()
            && self.splits.is_empty()
            && self.merges.is_empty()
            && self.checks.is_empty()
            && self.recoveries.is_empty()
            && self.split_keys_wanted.is_empty()
            && self.expiries_wanted.is_empty()
            && !self.range_ids_wanted
            && self.health.is_none()
            && self.fetches.is_empty()
            && self.snapshots_wanted.is_empty()
            && self.ingests.is_empty()
            && self.events.is_empty()
            && self.fatal.is_none()
    }
}

/// Items that an emptied buffer may have room for.
const ROOM_KEPT: usize = 1_024;

impl Effects {
    /// Gives back the room that a turn of very much work took: a node that woke a hundred thousand ranges is to be small
    /// again when they sleep. For the empty.
    pub fn give_back_room(&mut self) {
        self.views.shrink_to(ROOM_KEPT);
        self.messages.shrink_to(ROOM_KEPT);
        self.writes.shrink_to(ROOM_KEPT);
        self.barriers.shrink_to(ROOM_KEPT);
        self.fetches.shrink_to(ROOM_KEPT);
        self.events.shrink_to(ROOM_KEPT);
    }
}

/// A sign of life for a node that shares sleeping ranges with this one; the caller adds
/// [`crate::config::Config::boot_id`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// The node.
    pub to: NodeId,
    /// This process stops.
    pub leaving: bool,
    /// Nothing was heard of that node for an election time-out.
    pub hears_nothing: bool,
}

/// What one turn wants in the log: atomic, and durable before anything that depends on it leaves.
#[derive(Clone, Debug, PartialEq)]
pub struct LogBatch {
    /// Counts the batches of this store, from 1.
    pub sequence: u64,
    /// One for each range that changed.
    pub items: Vec<LogItem>,
}

/// One range's part of a [`LogBatch`].
#[derive(Clone, Debug, PartialEq)]
pub struct LogItem {
    /// The range.
    pub range: RangeId,
    /// The Raft state, if it changed.
    pub raft_state: Option<v1::RaftState>,
    /// Entries to be written; they replace what is there at their indexes.
    pub entries: Vec<Entry>,
    /// Indexes `[from, to)` of entries that are replaced by a shorter log, or truncated.
    pub remove: Vec<(u64, u64)>,
    /// A snapshot that replaces the range's whole state and log.
    pub snapshot: Option<SnapshotData>,
    /// With a snapshot: the range as the replica knew it before, whose data goes.
    pub replaces: Option<Arc<v1::RangeDescriptor>>,
    /// With a snapshot: replicas on this store that end with it, for its range has taken theirs in. Before it, in the
    /// same step.
    pub ends: Vec<Destroy>,
    /// With a snapshot: the replica's data is what the snapshot holds, and stays untouched.
    pub keeps_data: bool,
    /// The range begins with this replica: its first records.
    pub begins: Option<Arc<v1::RangeDescriptor>>,
    /// The replica is no more: everything of it goes but the tombstone.
    pub destroy: Option<Destroy>,
    /// The replica is its range's only one from now on.
    pub recovers: Option<Recovers>,
}

impl LogItem {
    /// One that changes nothing yet.
    pub fn new(range: RangeId) -> Self {
        Self {
            range,
            raft_state: None,
            entries: Vec::new(),
            remove: Vec::new(),
            snapshot: None,
            replaces: None,
            ends: Vec::new(),
            keeps_data: false,
            begins: None,
            destroy: None,
            recovers: None,
        }
    }

    /// Whether there is anything in it to be written.
    pub fn is_empty(&self) -> bool {
        self.raft_state.is_none()
            && self.entries.is_empty()
            && self.remove.is_empty()
            && self.snapshot.is_none()
            && self.destroy.is_none()
            && self.recovers.is_none()
    }
}

/// A replica that goes on without the others: what changes on disk, together with the Raft state.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovers {
    /// The range from now on: one replica.
    pub descriptor: Arc<v1::RangeDescriptor>,
    /// The span of the range that another one has by now, and that goes: empty, as a rule.
    pub gone: Option<(Bytes, Bytes)>,
    /// What is kept on record, that of former times included.
    pub recoveries: v1::RangeRecoveries,
    /// Which ranges it has taken in; it is frozen no more.
    pub merge: Option<Box<v1::MergeState>>,
}

/// What became of an order to go on without the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovered {
    /// It is durable.
    Done,
    /// It was so before.
    Before,
}

/// A replica that is to be destroyed.
#[derive(Clone, Debug, PartialEq)]
pub struct Destroy {
    /// The range as the replica knows it: its spans are emptied, but for a merge.
    pub descriptor: Arc<v1::RangeDescriptor>,
    /// What stays, written in the same batch: so that no late message brings the replica back.
    pub tombstone: v1::Tombstone,
    /// The data stays: the range that took this one in stands here with it.
    pub keeps_data: bool,
}

/// What readers may know of a range without asking the store. Published as a whole; the newest wins.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadView {
    /// The node of this replica.
    pub own_node: NodeId,
    /// The range.
    pub descriptor: Arc<v1::RangeDescriptor>,
    /// The ranges that it was last split into, itself left out: told to those who ask with an older epoch.
    pub siblings: Arc<[v1::RangeDescriptor]>,
    /// This replica's term.
    pub term: u64,
    /// The leader, as far as it is known.
    pub leader: Option<NodeId>,
    /// Whether this replica leads and has applied an entry of its own term.
    pub serves: bool,
    /// Whether it sleeps.
    pub asleep: bool,
    /// Until when a read here sees every write acknowledged before; zero: no lease.
    pub lease_until: BootTime,
    /// The range's own time, which keys end by.
    pub clock: RangeClock,
    /// Which of the store's replicas this is of: a later one of the same range has a larger number, and so has one whose
    /// state was replaced while nothing of it could be read.
    pub incarnation: u64,
    /// Where reads are counted while this replica leads.
    pub tally: Option<Arc<Tally>>,
    /// The range is being merged into its neighbour: nothing of it is to be read, not even stale.
    pub frozen: bool,
}

/// A range's own time, as a replica knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeClock {
    /// What it was at `at`, in milliseconds.
    pub ms: u64,
    /// From then on it runs; at the end of all times: it stands, for this replica does not lead.
    pub at: BootTime,
}

impl RangeClock {
    /// The range's time; good enough to show how long a key still lives.
    pub fn read(&self, now: BootTime) -> u64 {
        self.ms.saturating_add(u64::try_from(now.since(self.at).as_millis()).unwrap_or(u64::MAX))
    }
}

impl ReadView {
    /// Whether the lease covers `now`.
    pub fn lease_covers(&self, now: BootTime) -> bool {
        self.serves && now < self.lease_until
    }

    /// The range's id.
    pub fn range(&self) -> RangeId {
        RangeId(self.descriptor.range_id)
    }
}

/// A write that was decided: applied, or refused by its conditions.
#[derive(Clone, Debug, PartialEq)]
pub struct WriteAnswer {
    /// The term it was evaluated in.
    pub term: u64,
    /// One for each operation, in that order.
    pub results: Vec<v1::WriteResult>,
}

/// Entries that a follower needs and the cache no longer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchLog {
    /// The range.
    pub range: RangeId,
    /// Names this read in its answer.
    pub id: u64,
    /// First index.
    pub low: u64,
    /// Index after the last.
    pub high: u64,
    /// At most so many bytes, but one entry at least.
    pub bytes_max: u64,
}

/// What happened in a range.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// This replica became the leader.
    BecameLeader {
        /// The range.
        range: RangeId,
        /// Its new term.
        term: u64,
    },
    /// This replica no longer leads.
    SteppedDown {
        /// The range.
        range: RangeId,
        /// The term that ended.
        term: u64,
    },
    /// The replica learned of another leader.
    LeaderChanged {
        /// The range.
        range: RangeId,
        /// The term.
        term: u64,
        /// The leader's node, if there is one.
        leader: Option<NodeId>,
    },
    /// A snapshot replaced this replica's state.
    SnapshotApplied {
        /// The range.
        range: RangeId,
        /// Its index.
        index: u64,
    },
    /// The log was cut off below `index`.
    LogTruncated {
        /// The range.
        range: RangeId,
        /// The new truncated index.
        index: u64,
    },
    /// The range was split: it and its children, in key order.
    Split {
        /// The range.
        range: RangeId,
        /// All of them, as they are now.
        ranges: Vec<Arc<v1::RangeDescriptor>>,
    },
    /// The range stands still, to be taken in by its left neighbour.
    Frozen {
        /// The range.
        range: RangeId,
        /// The neighbour.
        into: RangeId,
    },
    /// It was not taken in, and goes on.
    Thawed {
        /// The range.
        range: RangeId,
        /// The neighbour.
        into: RangeId,
    },
    /// It was taken in by its left neighbour, and is no more.
    Merged {
        /// The range.
        range: RangeId,
        /// The neighbour, as it is now.
        into: Arc<v1::RangeDescriptor>,
    },
    /// A range holds more than it should, and nothing in it may be cut.
    CannotSplit {
        /// The range.
        range: RangeId,
        /// Bytes that it holds.
        bytes: u64,
    },
    /// A range is asked for more than it should be, and is not split for it.
    LoadStays {
        /// The range.
        range: RangeId,
        /// Requests in a second.
        requests_per_s: u64,
        /// Why, in words.
        why: String,
    },
    /// The range's replicas have changed.
    ReplicasChanged {
        /// The range, as it is now.
        descriptor: Arc<v1::RangeDescriptor>,
    },
    /// A replica begins to be here: by a split, a snapshot, or placement's word.
    Born {
        /// The range, as it is now.
        descriptor: Arc<v1::RangeDescriptor>,
    },
    /// The range goes on with this replica alone: its majority was lost for good, and a person decided so.
    Recovered {
        /// The range, as it is now.
        descriptor: Arc<v1::RangeDescriptor>,
        /// What is kept on record.
        record: Box<v1::RangeRecovery>,
    },
    /// The replica is no part of its range any more, and has left this store.
    Removed {
        /// The range.
        range: RangeId,
        /// The replica.
        replica_id: u64,
    },
    /// A message was refused.
    MessageRefused {
        /// The sender.
        from: NodeId,
        /// The range it was about.
        range: RangeId,
        /// Why.
        reason: String,
    },
}
