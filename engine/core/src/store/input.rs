//! What the store is told: requests, messages, time, and what became of its effects.

use bytes::Bytes;
use flotilla_proto::{NodeId, RangeId, v1};
use raft::eraftpb::Entry;

use crate::apply::Applied;
use crate::expiry::ExpiryFound;
use crate::snapshot::SnapshotData;
use crate::time::BootTime;

/// Names a request until its answer; chosen by the caller, never seen by others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// One thing that happened. Each goes through [`super::Store::on`]; what follows from it is
/// gathered until [`super::Store::end_turn`].
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "messages are most of the inputs: a box would be an allocation for each")]
pub enum Input {
    /// A client's write. Answered by [`super::Effects::writes`].
    Write(Write),
    /// A read that found no lease: asks whether this replica still leads (ReadIndex). Answered by
    /// [`super::Effects::barriers`]; the caller then reads.
    ReadBarrier(ReadBarrier),
    /// An order to hand a range's leadership over. Answered by [`super::Effects::transfers`].
    TransferLeader(TransferLeader),
    /// Asks for one replica's state. Answered by [`super::Effects::statuses`].
    Status {
        /// The asker.
        token: Token,
        /// The range asked about.
        range: RangeId,
    },
    /// A message from another node.
    Message(Envelope),
    /// Another node lives, or stops: [`super::Effects::beats`] of its store.
    Beat {
        /// The node.
        from: NodeId,
        /// Its process.
        boot_id: u64,
        /// It stops.
        leaving: bool,
        /// It has heard nothing of this node for an election time-out.
        hears_nothing: bool,
    },
    /// A range was read here by the leader's lease since the last tick: it is not idle.
    Read {
        /// The range.
        range: RangeId,
    },
    /// Somebody asked for a range here, and was told that this replica does not lead: if nobody leads, it is time to.
    Wanted {
        /// The range.
        range: RangeId,
    },
    /// Time has passed; at least every [`crate::config::Config::tick`].
    Tick,
    /// Every log batch up to this sequence number is durable.
    Persisted {
        /// The [`super::LogBatch::sequence`] of the last of them.
        sequence: u64,
    },
    /// The apply stage has carried out a task; its results can be read.
    Applied(Applied),
    /// Entries asked for by [`super::Effects::fetches`].
    LogFetched {
        /// The range.
        range: RangeId,
        /// The answered [`super::FetchLog::id`].
        id: u64,
        /// The entries, beginning with the first one asked for; empty if they are gone.
        entries: Vec<Entry>,
    },
    /// A snapshot asked for by [`super::Effects::snapshots_wanted`] is made; `None`: it could not be.
    SnapshotMade {
        /// The range.
        range: RangeId,
        /// The snapshot.
        snapshot: Option<SnapshotData>,
    },
    /// What [`super::Effects::ingests`] asked for is done, and durable.
    Ingested {
        /// The range.
        range: RangeId,
    },
    /// What became of a message with a snapshot in it.
    SnapshotSent {
        /// The range.
        range: RangeId,
        /// The replica it was for.
        to_replica: u64,
        /// Whether all of it reached the other node.
        ok: bool,
    },
    /// The connection to a node broke, or could not be made.
    Unreachable {
        /// The node.
        node: NodeId,
    },
    /// Whether this node's disk has room above its margin.
    DiskSpace {
        /// Whether it has.
        has_room: bool,
    },
    /// What another node says of itself.
    Health {
        /// The node.
        from: NodeId,
        /// What it measured.
        health: v1::NodeHealth,
    },
    /// About how many bytes of data a range has; told every few seconds.
    RangeSize {
        /// The range.
        range: RangeId,
        /// Its size.
        bytes: u64,
    },
    /// Hand every range over that this node leads, and campaign no more: the process is to end.
    Drain,
    /// An order to split a range. Answered by [`super::Effects::splits`].
    Split(Split),
    /// An order to merge a range into its left neighbour. Answered by [`super::Effects::merges`].
    Merge(Merge),
    /// What a pass over an expiry index found, asked for by [`super::Effects::expiries_wanted`].
    ExpiriesFound(ExpiryFound),
    /// Keys to split a range at, asked for by [`super::Effects::split_keys_wanted`].
    SplitKeys {
        /// The range.
        range: RangeId,
        /// What was found; the error says why nothing was.
        found: Result<SplitKeys, String>,
    },
    /// What placement wants of a range that this node leads; the newest stays in force. One with id 0 takes it back.
    Order(v1::RangeOrder),
    /// Proof from placement that replicas of a range up to this id are no part of it any more.
    Remove {
        /// The range.
        range: RangeId,
        /// The highest id among them.
        replica_id: u64,
    },
    /// Ranges that begin here, with this node's replica as their only one: decided by placement. One that is here
    /// already, or was, is left alone.
    Births(Vec<v1::RangeDescriptor>),
    /// The settings of all keyspaces.
    Keyspaces(Vec<v1::Keyspace>),
    /// Ids for new ranges, which nobody else has.
    RangeIds {
        /// The first one.
        first: u64,
        /// How many.
        count: u64,
    },
    /// An order to go on with this node's replica of a range alone: its majority is lost for good. Answered by
    /// [`super::Effects::recoveries`], when it is durable.
    Recover {
        /// The asker.
        token: Token,
        /// The order.
        order: Box<v1::RecoverReplica>,
    },
    /// What became of the ranges here is asked because a majority may be lost: a leader that sleeps without one wakes, and
    /// finds out.
    Survey,
    /// What another survivor of a range that lost its majority knows to be committed.
    Committed(v1::CommittedEntry),
    /// Every replica of a range is to compute its checksum at one index. Answered by [`super::Effects::checks`].
    Check {
        /// The asker.
        token: Token,
        /// The range.
        range: RangeId,
        /// When the caller stops waiting.
        deadline: BootTime,
    },
}

/// See [`Input::Split`].
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// The asker.
    pub token: Token,
    /// The range.
    pub range: RangeId,
    /// Where.
    pub at: SplitAt,
    /// When the caller stops waiting.
    pub deadline: BootTime,
}

/// See [`Input::Merge`]. Taken by the node that leads the range which ends. Placement orders the same by
/// `merge_into` of a [`v1::RangeOrder`], without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    /// The asker.
    pub token: Token,
    /// The range that ends.
    pub range: RangeId,
    /// Its left neighbour, which takes it in.
    pub target: RangeId,
    /// When the caller stops waiting.
    pub deadline: BootTime,
}

/// Where a range is to be split.
#[derive(Clone, Debug, PartialEq)]
pub enum SplitAt {
    /// At these keys: each becomes the start of a range.
    Keys(Vec<Bytes>),
    /// Into so many parts of about equal size.
    Parts(u32),
}

/// What looking for split keys has found.
#[derive(Clone, Debug, PartialEq)]
pub struct SplitKeys {
    /// The keys, in order; each within the range, behind its start, and where the keyspace allows it. Fewer than
    /// were asked for, where what must stay together leaves no more.
    pub keys: Vec<Bytes>,
    /// Bytes of keys and values that the range holds.
    pub bytes: u64,
}

/// A client's write: one request, evaluated as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// The asker.
    pub token: Token,
    /// The range that the caller believes holds all its keys.
    pub range: RangeId,
    /// The range's epoch as the caller knows it.
    pub epoch: v1::Epoch,
    /// The operations; checked against the limits by the caller.
    pub request: v1::WriteRequest,
    /// When the caller stops waiting.
    pub deadline: BootTime,
}

/// See [`Input::ReadBarrier`].
#[derive(Clone, Debug, PartialEq)]
pub struct ReadBarrier {
    /// The asker.
    pub token: Token,
    /// The range to be read.
    pub range: RangeId,
    /// The range's epoch as the caller knows it.
    pub epoch: v1::Epoch,
    /// When the caller stops waiting.
    pub deadline: BootTime,
}

/// See [`Input::TransferLeader`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferLeader {
    /// The asker.
    pub token: Token,
    /// The range.
    pub range: RangeId,
    /// The node whose replica is to lead.
    pub to: NodeId,
    /// When the caller stops waiting.
    pub deadline: BootTime,
}

/// One message between two nodes, about one range.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// The sender.
    pub from: NodeId,
    /// The receiver.
    pub to: NodeId,
    /// The Raft message, with range and stamps.
    pub message: v1::PeerMessage,
    /// The sender's disk is at its margin.
    pub disk_full: bool,
    /// With a snapshot message: what it holds.
    pub snapshot: Option<SnapshotData>,
}
