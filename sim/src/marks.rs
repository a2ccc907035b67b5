//! Coverage marks: the rare branches that runs observed, and those that none did.
//!
//! The list is closed, so that a mark which is never hit shows in every summary; and CI's seeds together must hit every
//! mark of the swarm ([`Marks::missing`]). Two classes are not the swarm's:
//! - what only proposals that come late bring about, which is a fault that no sound store has: the control run with the
//!   mutant `late-proposals` must hit it;
//! - second lines of defence, which something else makes unnecessary as long as it holds: see [`Mark::class`].

use std::collections::BTreeMap;

use flotilla_mutants::Mutant;

macro_rules! marks {
    ($($name:ident: $text:literal),+ $(,)?) => {
        /// Something rare that a run is to reach.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Mark { $($name),+ }

        impl Mark {
            const ALL: &'static [Self] = &[$(Self::$name),+];

            fn text(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }
        }
    };
}

marks! {
    LeaderElected: "a leader is elected",
    LeaderSteppedDown: "a leader steps down",
    CheckQuorumStepDown: "a leader without a quorum steps down in its own term",
    PreVoteRefused: "a pre-vote is refused",
    VoteRefused: "a vote is refused",
    SplitVote: "two candidates share a term",
    VoteSilence: "a restarted store refuses to vote",
    MessageRefused: "a message is refused for another reason",
    TransferDone: "a leader transfer succeeds",
    TransferFailed: "a leader transfer fails",
    TimeoutNowSent: "MsgTimeoutNow is sent",
    LateTimeoutNow: "MsgTimeoutNow arrives in an older term",
    LogTruncated: "a log is truncated",
    SnapshotSent: "a snapshot is sent",
    SnapshotLost: "a snapshot is lost on its way",
    SnapshotApplied: "a snapshot replaces a replica's state",
    SnapshotMade: "a snapshot is made",
    SnapshotSuperseded: "a snapshot is overtaken on its way, by a newer one or by the log",
    SnapshotWhileApplying: "a snapshot arrives while entries wait for the apply stage",
    LogFetched: "entries are read back from disk for a follower",
    LogFetchEmpty: "entries to be read back are gone",
    EntryOverwritten: "an unpersisted or persisted entry is replaced by another leader's",
    AppendRefused: "a follower refuses an append",
    StampRefused: "apply skips an entry with a foreign stamp (only by late-proposals)",
    EpochRefused: "apply skips an entry of another epoch",
    SplitApplied: "a split is applied",
    SplitDone: "a split by hand succeeds",
    SplitFailed: "a split by hand is refused or fails",
    ChangeOfOldEpoch: "apply skips a change of the range itself for its epoch (a second line of defence)",
    SplitWithLearner: "a range with a learner is split",
    CannotSplit: "a range is too large and cannot be split",
    EarlyMessage: "a message comes for a child before its split",
    EarlyVote: "a vote is asked of a child before its split",
    SnapshotIngested: "a large snapshot is ingested",
    CrashMidIngest: "a crash falls between the steps of an ingestion",
    IngestResumed: "a restart ends an ingestion",
    SplitLeapt: "a snapshot leaps over a split",
    RangeSleeps: "a range sleeps",
    WordToSleep: "a leader tells a follower that it sleeps",
    NodeLeaves: "a node says that it stops, for its sleeping ranges",
    AllAsleep: "all ranges sleep, and nothing is said about them",
    SnapshotOverlap: "a snapshot is refused: another range holds part of its span",
    MergeOrdered: "placement orders a merge",
    RangeFrozen: "a range is frozen",
    RangeMerged: "a range takes its neighbour in",
    RangeThawed: "a frozen range goes on",
    MergeAbandoned: "a range decides not to take its neighbour in",
    CrashMidMerge: "a crash falls right behind a step of a merge",
    Outwaited: "who asks for a merge waits for an answer longer than for the merge",
    LeftBehind: "a node is cut off just before what it holds is merged",
    FrozenAtStart: "a restart finds a frozen range",
    MergedAtStart: "a restart finds what is left of a range that was merged away",
    MergedToldSo: "a replica is told that its range was merged away",
    SnapshotOverMerged: "a snapshot ends replicas of ranges that its own has taken in",
    JointEntered: "a joint configuration is entered",
    JointLeftByNewLeader: "a joint configuration is left by another leader than the one that entered it",
    ReplicasChanged: "a range's replicas change, joint configurations aside",
    ChangeRefusedAtApply: "apply skips a change of replicas",
    OrderGiven: "placement gives an order",
    OrderReplaced: "an order is replaced under way",
    OrderCancelled: "an order is taken back under way",
    LearnerRolledBack: "a learner without an order is removed",
    ReplicaBorn: "a replica begins",
    ReplicaRemoved: "a replica leaves its store",
    ReplicaReturns: "a range comes back to a store that it had left",
    RemovedToldSo: "a removed replica is told so",
    RemovalOfNothing: "a removal comes for a replica that was never here",
    RemovedByPlacement: "placement has a replica removed",
    TombstoneRefuses: "a tombstone, or a later replica, refuses a message",
    GoneTellsCommit: "a tombstone tells a candidate what is committed",
    SuccessorWaits: "a snapshot for a later replica waits for the former one to go",
    DoomedWhileApplying: "a replica is doomed while entries wait for the apply stage",
    DoomedSeen: "a restart finds a removed replica's data",
    NodeJoined: "a node joins",
    JoinRepeated: "a join is tried again",
    JoinedAndNeverCame: "a node is given an id and never comes",
    NodeLost: "a node is lost for good",
    AskedElsewhere: "placement is asked of a node that does not lead the system range",
    ReportRefused: "a report is refused by a service that does not know the node",
    RoutesFromAnother: "a node without placement asks another one for routes",
    RangeIdsGiven: "placement gives ids for new ranges",
    BirthSent: "placement lets a range begin",
    OrderWritten: "placement's service writes an order",
    OrderGivenUp: "placement's service gives an order up",
    ServiceLoaded: "placement's service is loaded",
    ServiceReloaded: "placement's service stops, to be loaded anew",
    ServiceFenced: "a write of a former placement service is refused",
    ServiceWriteUnknown: "the outcome of placement's write is unknown",
    KeyspaceCreated: "a keyspace is created",
    KeyspaceReady: "whoever created a keyspace is told that it is ready",
    KeyspaceDropped: "a keyspace is dropped",
    MoveAsked: "a replica is moved by hand",
    MergeAsked: "two ranges are merged by hand",
    DrainAsked: "a node is drained by hand",
    DecommissionAsked: "a node is to be decommissioned",
    NodeRemoved: "a decommissioned node is empty, and is removed for good",
    MaintenanceAsked: "a node is put into maintenance",
    AwayInMaintenance: "a node in maintenance is away",
    MergeByItself: "placement merges two ranges without being asked",
    PeopleUncertain: "people are left without an outcome",
    PeopleRefused: "people ask for what is refused",
    MajorityLost: "the majority of a range is lost for good",
    SystemMajorityLost: "the majority of the system range is lost for good",
    SurvivorsUneven: "survivors of a lost majority have unequal logs",
    RecoveryPlanned: "a person has a plan of recovery",
    RecoveryCompared: "a recovery chooses between several voters",
    RecoveredWithoutVoter: "a range goes on with a replica that is no voter",
    RangeWentOn: "a range goes on with one replica",
    SystemWentOn: "the system range goes on with one replica",
    UncommittedKept: "a range goes on with entries that were not known to be committed",
    RangeBeganAgain: "a range of which nothing is left begins again, empty",
    RecoveryRefused: "an order of a recovery is refused",
    RecoveryRepeated: "an order of a recovery is carried out once more",
    RecoveryRecorded: "placement is told of a recovery",
    RecoveryGaps: "a recovery leaves spans that no range holds",
    LostReturns: "a lost node returns before it is given up",
    OutcastReturns: "a node returns that was given up for good",
    OutcastEnds: "a node hears that it was given up, and ends",
    PlacementRests: "placement comes to rest",
    AncientMessage: "a message arrives seconds late",
    CheckStarted: "a check begins",
    CheckFailed: "a check is refused or fails",
    CheckEqual: "a check finds equal data on two replicas",
    RangeMissing: "a request is for a range that is not here",
    WriteBusy: "a write is refused as busy",
    WriteNotLeader: "a write is refused by a follower",
    WriteAmbiguous: "a write is answered as ambiguous",
    WriteTimeout: "a write times out before it was proposed",
    WriteOverwritten: "a proposed write is told that it was not applied",
    WriteDiskFull: "a write is refused for lack of disk space",
    LeaseRead: "a read is answered by the lease",
    LeaseLost: "a lease ends between a read's two checks",
    BarrierRead: "a read is answered behind a barrier",
    BarrierRefused: "a read barrier is refused",
    BarrierTimeout: "a read barrier times out",
    GrayNode: "an apply stage lags, or a link loses messages in one direction",
    SlowNode: "a node finds out that it is slow against the others",
    SlowNodeJudged: "placement judges a node slow",
    SlowNodeWell: "placement judges a slow node well again",
    CrashUnsynced: "a crash loses unsynced writes",
    CrashMidSync: "a crash falls between a log write and its sync",
    CrashMidApply: "a crash loses applied state that is replayed",
    SyncFailed: "a sync fails and the node stops",
    WriteFailed: "a disk write fails and the node stops",
    ReadFailed: "a read of the disk fails",
    RotMet: "a record rots: whoever reads it is told so, and the store ends",
    ApplyStalled: "nothing is applied for a while",
    WallClockLeaps: "a wall clock leaps",
    Swizzled: "nodes are cut off one after the other, and come back in another order",
    PromisesTried: "followers restart while their leader is cut off, and another one wants to lead",
    GroupSync: "one sync covers several log batches",
    Drained: "a node hands its ranges over and stops",
    RouteRefresh: "a client learns its routes anew",
    ClientUnknown: "a client is left without an outcome",
    ScanResumed: "a scan goes on from its token",
    SpanDeleted: "a span is deleted",
    SpanDeletedInPart: "a span is deleted in part",
    SpanDeleteFailed: "a delete of a span fails",
    ExpiryLookedFor: "a leader looks through the expiry index",
    TtlEnded: "an entry ends keys by their ttl",
    PairSeen: "a scan sees an atomic batch's keys",
}

/// Which runs must hit a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Swarm,
    LateProposals,
    SecondLine,
}

impl Mark {
    fn class(self) -> Class {
        match self {
            Self::StampRefused => Class::LateProposals,
            // A leader proposes one change of its range at a time, and none before it has applied all entries of earlier
            // terms: whatever raises the version is applied before the next change is proposed under it.
            Self::ChangeOfOldEpoch => Class::SecondLine,
            _ => Class::Swarm,
        }
    }
}

/// How often each mark was hit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks(BTreeMap<Mark, u64>);

impl Marks {
    pub(crate) fn hit(&mut self, mark: Mark) {
        *self.0.entry(mark).or_default() += 1;
    }

    pub(crate) fn count(&self, mark: Mark) -> u64 {
        self.0.get(&mark).copied().unwrap_or(0)
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (mark, count) in &other.0 {
            *self.0.entry(*mark).or_default() += count;
        }
    }

    /// Those that a run like this one, with enough seeds, must hit, and that were not hit.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let class = if Mutant::LateProposals.is_on() { Class::LateProposals } else { Class::Swarm };
        let missing = Mark::ALL.iter().filter(|mark| mark.class() == class && self.count(**mark) == 0);
        missing.map(|mark| mark.text()).collect()
    }

    /// (text, hits) of all marks.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Mark::ALL.iter().map(|mark| (mark.text(), self.count(*mark)))
    }
}
