//! One replica: its Raft group and everything about the range that must not be decided twice.
//!
//! Flow: [`Range::write`], [`Range::barrier`], [`Range::message`] and [`Range::tick`] put things in;
//! at the end of the turn [`Range::propose`] turns queued writes into entries and `ready.rs` collects
//! what Raft wants: entries to the log writer, messages to the network, committed entries to apply.
//! What must be durable before a message leaves is held back here until it is.
//!
//! Safety rests on these, each checked by the simulation:
//! - a follower's messages (append and vote responses) leave only after what they say is durable;
//! - a store that restarted grants no vote, and does not campaign, for one maximal lease plus drift;
//! - proposals are made only by a leader that is not handing over, and stamped with its term.

mod absorb;
mod admit;
mod barriers;
mod change;
mod expiry;
mod heartbeat;
mod install;
#[cfg(feature = "mutants")]
mod late;
mod lease;
mod load;
mod log;
mod merge;
mod offer;
mod order;
mod proposals;
mod ready;
mod received;
mod recovery;
mod removal;
mod setup;
mod shared;
mod sleep;
mod sleeper;
mod slow;
mod split;
mod status;
mod transfer;
mod truncate;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use flotilla_mutants::Mutant;
use flotilla_proto::{Error, NodeId, RangeId, v1};
use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use raft::{RawNode, StateRole};

use crate::bootstrap::INITIAL_TERM;
use crate::command;
use crate::config::Config;
use crate::load::Load;
use crate::membership;
use crate::read;
use crate::recover::RangeBoot;
use crate::store::{ReadBarrier, ReadView, SnapshotData, TransferLeader};
use crate::time::BootTime;
use absorb::Ending;
use barriers::Barriers;
pub(crate) use change::Asker;
use change::PendingChange;
use expiry::Expiry;
use install::Ingest;
use lease::Lease;
use log::RangeLog;
pub(crate) use log::conf_state;
use merge::Standstill;
use offer::SnapshotsSent;
use proposals::Proposals;
use removal::Doom;
pub(crate) use removal::joined;
use setup::{discard, initial_view, raft_config, silence};
pub(crate) use shared::{Born, RangeIds, Shared, Turn};
use sleep::Rest;
pub(crate) use sleeper::{Reaches, Sleeper};
use split::{Finding, Size};
use transfer::ToldToLead;

/// What waits until a log batch is durable.
struct Unpersisted {
    sequence: u64,
    ready: u64,
    messages: Vec<Message>,
    snapshot: Option<SnapshotData>,
    /// It makes a new term, or a vote, durable.
    new_term: bool,
}

/// A replica. See the module.
pub(crate) struct Range {
    id: RangeId,
    descriptor: Arc<v1::RangeDescriptor>,
    /// What was last split off it.
    siblings: Arc<[v1::RangeDescriptor]>,
    replica: u64,
    voters: Vec<u64>,
    /// In a joint configuration, those who vote in the old one.
    old_voters: Vec<u64>,
    change: Option<PendingChange>,
    order: Option<v1::RangeOrder>,
    order_waits: String,
    finding: Option<Finding>,
    size: Size,
    /// Of a leader: how much the range is asked for; and what a split has left to a replica that is to lead.
    load: Option<Box<Load>>,
    inherited_load: Option<v1::RangeLoad>,
    /// About how large it was when it could not be split.
    too_large_to_split: u64,
    level_lag: u64,
    /// When this leader last heard of each other replica.
    heard: BTreeMap<u64, BootTime>,
    /// Nodes of replicas that this one has not heard of by its log yet.
    strangers: BTreeMap<u64, NodeId>,
    /// It waits for a snapshot, and nothing of it is on disk: it has no view.
    unborn: bool,
    /// It is no part of its range any more; what is to stay of it.
    doomed: Option<Doom>,
    /// The range is to be taken in by its left neighbour.
    standstill: Option<Box<Standstill>>,
    /// Ids of the ranges that it ever took in, ascending.
    absorbed: Vec<u64>,
    /// Other replicas that end with the snapshot that waits.
    ending: Option<Box<Ending>>,
    /// After a merge that was given up, no order begins another one before this time.
    no_merge_before: BootTime,
    /// Since when placement says that it is gone.
    told_to_go: Option<BootTime>,
    /// Tasks that the apply stage has not answered.
    applies_open: usize,
    raft: RawNode<RangeLog>,
    lease: Lease,
    proposals: Proposals,
    barriers: Barriers,
    expiry: Expiry,
    transfer: Option<(TransferLeader, u64)>,
    /// Since when another leader is due: this replica hands the range over, or has; or it was just born and campaigns.
    leader_due: Option<BootTime>,
    told_to_lead: Option<ToldToLead>,
    /// How often this leader has asked each voter to take over, and when last.
    hand_overs: BTreeMap<u64, u32>,
    handed_over_at: BootTime,
    unpersisted: VecDeque<Unpersisted>,
    /// What came with snapshot messages, until Raft has taken or refused them.
    incoming_snapshots: Vec<SnapshotData>,
    /// A large snapshot that is being installed: nothing else happens to the replica.
    ingest: Option<Ingest>,
    /// What must be durable before that can begin.
    ingest_after: Option<u64>,
    /// Of [`ReadView::incarnation`].
    incarnation: u64,
    /// The readers were told that there is nothing to read.
    view_is_gone: bool,
    applied: (u64, u64),
    checksum: u32,
    /// Last index that the apply stage was given.
    apply_scheduled: u64,
    apply_bytes: VecDeque<(u64, usize)>,
    /// (sequence, applied index): what the sync of this log batch makes durable.
    applied_marks: VecDeque<(u64, u64)>,
    applied_durable: u64,
    /// Newest stamp heard from the leader of this term.
    leader_stamp: (u64, u64),
    /// No vote and no campaign before this time.
    silent_until: BootTime,
    /// How often this replica has campaigned: a new time-out is drawn each time.
    campaigns: u64,
    role: StateRole,
    view: Arc<ReadView>,
    written_state: v1::RaftState,
    snapshot_asked: bool,
    snapshots_sent: SnapshotsSent,
    snapshot_age_ticks: u32,
    /// When it went on without its majority: hardly ever.
    recoveries: Vec<v1::RangeRecovery>,
    rest: Rest,
    /// Where the log ended at the last tick.
    last_at_tick: u64,
    #[cfg(feature = "mutants")]
    late: Vec<(u64, Vec<v1::WriteRequest>)>,
}

impl Range {
    pub(crate) fn new(shared: &mut Shared, boot: &RangeBoot, now: BootTime) -> Result<Self, String> {
        let id = RangeId(boot.descriptor.range_id);
        let own = boot.descriptor.replicas.iter().find(|replica| replica.node_id == shared.node.0);
        let replica = own.ok_or_else(|| format!("{} has no replica of range {id}", shared.node))?.replica_id;
        shared.incarnations += 1;
        let log = RangeLog::new(boot, shared.incarnations);
        let voters = membership::voters(&boot.descriptor.replicas);
        let raft = RawNode::new(&raft_config(&shared.config, replica, boot), log, &discard())
            .map_err(|error| format!("range {id}: {error}"))?;
        let silent_until = silence(shared, boot, replica, now);
        let view = initial_view(shared, boot);
        let merge = boot.merge.as_deref().cloned().unwrap_or_default();
        let mut range = Self {
            id,
            descriptor: boot.descriptor.clone(),
            siblings: Arc::default(),
            replica,
            voters,
            old_voters: membership::old_voters(&boot.descriptor.replicas),
            change: None,
            order: None,
            order_waits: String::new(),
            finding: None,
            size: Size::default(),
            load: None,
            inherited_load: None,
            too_large_to_split: 0,
            level_lag: shared.config.level_lag_entries,
            heard: BTreeMap::new(),
            strangers: BTreeMap::new(),
            unborn: boot.last_index == 0,
            doomed: None,
            standstill: merge.frozen.map(|frozen| Box::new(Standstill::new(frozen, now))),
            absorbed: merge.absorbed,
            ending: None,
            no_merge_before: BootTime::default(),
            told_to_go: None,
            applies_open: 0,
            raft,
            lease: Lease::default(),
            proposals: Proposals::default(),
            barriers: Barriers::default(),
            expiry: Expiry::new(&boot.applied, shared.incarnations),
            transfer: None,
            leader_due: None,
            told_to_lead: None,
            hand_overs: BTreeMap::new(),
            handed_over_at: BootTime::default(),
            unpersisted: VecDeque::new(),
            incoming_snapshots: Vec::new(),
            ingest: None,
            ingest_after: None,
            incarnation: shared.incarnations,
            view_is_gone: false,
            applied: (boot.applied.index, boot.applied.term),
            checksum: boot.applied.checksum,
            apply_scheduled: boot.applied.index,
            apply_bytes: VecDeque::new(),
            applied_marks: VecDeque::new(),
            // What recovery found was on disk, and the log writer's first sync covers all before it;
            // truncation waits for that sync.
            applied_durable: boot.raft.truncated_index,
            leader_stamp: (0, 0),
            silent_until,
            campaigns: 0,
            role: StateRole::Follower,
            view: Arc::new(view),
            written_state: boot.raft,
            snapshot_asked: false,
            snapshots_sent: SnapshotsSent::default(),
            snapshot_age_ticks: 0,
            recoveries: boot.recoveries.recoveries.clone(),
            rest: Rest::default(),
            last_at_tick: 0,
            #[cfg(feature = "mutants")]
            late: Vec::new(),
        };
        range.applied_marks.push_back((1, boot.applied.index));
        range.draw_election_timeout(&shared.config);
        Ok(range)
    }

    /// It begins here: leads, if it is to, as soon as the others let it.
    pub(crate) fn begin(&mut self, turn: &Turn<'_>, campaigns: bool, bytes: u64, load: Option<v1::RangeLoad>) {
        self.size.set(bytes);
        self.inherited_load = load.filter(|_| campaigns);
        if campaigns && !turn.shared.draining {
            self.leader_due = Some(turn.now);
            self.campaign_at_once();
        }
    }

    /// The process begins with this replica. A sole voter has nobody to wait for: it leads again at once.
    pub(crate) fn lead_if_alone(&mut self, boot: &RangeBoot) {
        if is_alone(boot, self.replica) {
            self.campaign_at_once();
        }
    }

    /// Asks for votes without asking first whether it would get them: nobody can lead whom that would depose.
    fn campaign_at_once(&mut self) {
        let mut message = Message { from: self.replica, to: self.replica, ..Default::default() };
        message.set_msg_type(MessageType::MsgTimeoutNow);
        // Refused: then it is elected like any other, after its time-out.
        drop(self.raft.step(message));
    }

    pub(crate) fn view(&self) -> &Arc<ReadView> {
        &self.view
    }

    pub(crate) fn leads(&self) -> bool {
        self.raft.raft.state == StateRole::Leader
    }

    fn term(&self) -> u64 {
        self.raft.raft.term
    }

    fn node_of(&self, replica: u64) -> Option<NodeId> {
        let known = self.descriptor.replicas.iter().find(|of| of.replica_id == replica).map(|of| NodeId(of.node_id));
        known.or_else(|| self.strangers.get(&replica).copied())
    }

    fn replica_on(&self, node: NodeId) -> Option<&v1::ReplicaDescriptor> {
        self.descriptor.replicas.iter().find(|of| of.node_id == node.0)
    }

    pub(crate) fn leader(&self) -> Option<NodeId> {
        self.node_of(self.raft.raft.leader_id)
    }

    pub(crate) fn not_leader(&self) -> Error {
        Error::NotLeader { range: self.id, leader: self.leader(), descriptors: self.known_descriptors() }
    }

    pub(crate) fn told_size(&mut self, bytes: u64) {
        self.size.measured(bytes);
    }

    /// raft-rs draws election time-outs from a thread's generator; ours come from the seed, so that a
    /// simulation can be repeated. They differ by replica, term and attempt.
    fn draw_election_timeout(&mut self, config: &Config) {
        let base = config.election_ticks;
        let first = self.descriptor.replicas.first().is_some_and(|replica| replica.replica_id == self.replica);
        let ticks = if self.term() == INITIAL_TERM && self.campaigns == 0 {
            // A range is born with its first replica as the leader, if that one is up.
            if first { base } else { base + base / 2 + self.draw(config.seed) % (base - base / 2) }
        } else {
            base + self.draw(config.seed) % base
        };
        self.raft.raft.set_randomized_election_timeout(ticks);
    }

    fn draw(&self, seed: u64) -> usize {
        let mut state = seed;
        for part in [self.id.0, self.replica, self.term(), self.campaigns] {
            // splitmix64 (Steele, Lea, Flood 2014)
            state = state.wrapping_add(part).wrapping_add(0x9E37_79B9_7F4A_7C15);
            state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            state ^= state >> 31;
        }
        (state >> 33) as usize
    }

    /// Takes a read that needs a barrier, or answers it with a refusal.
    pub(crate) fn barrier(&mut self, turn: &mut Turn<'_>, barrier: ReadBarrier) {
        let refusal = match read::check_epoch(&self.descriptor, &self.siblings, Some(&barrier.epoch)) {
            Err(error) => Some(error),
            Ok(()) if !self.leads() => Some(self.not_leader()),
            Ok(()) => self.check_not_frozen().err(),
        };
        match refusal {
            Some(error) => turn.effects.barriers.push((barrier.token, Err(error))),
            None => {
                self.is_asked();
                self.barriers.ask(barrier);
            }
        }
    }

    /// Turns queued writes into log entries.
    pub(crate) fn propose(&mut self, turn: &mut Turn<'_>) {
        if self.doomed.is_some() {
            return;
        }
        if self.barriers.has_waiting() && self.leads() && self.raft.raft.commit_to_current_term() {
            let context = self.barriers.begin(turn.now);
            if Mutant::ReadWithoutQuorum.is_on() {
                self.barriers.confirm(&context, self.raft.raft.raft_log.committed);
            }
            self.raft.read_index(context);
        }
        #[cfg(feature = "mutants")]
        self.propose_late();
        if !self.proposals.has_queued() || self.holds_writes_back() || self.changes_hands() {
            return;
        }
        let before = self.proposals.bytes();
        let mut refusal = None;
        while refusal.is_none() {
            let target = turn.shared.config.entry_bytes_target;
            let Some(gathered) = self.proposals.gather(turn.now, target, &mut turn.effects.writes) else { break };
            let time_ms = self.carried_time(turn, &gathered.requests);
            if let Err(error) = self.propose_entry(gathered.requests, time_ms) {
                self.proposals.dropped(gathered.bytes);
                let refused = gathered.waiting.into_iter().map(|(token, _)| (token, Err(error.clone())));
                turn.effects.writes.extend(refused);
                refusal = Some(error);
            } else {
                let index = self.raft.raft.raft_log.last_index();
                self.proposals.proposed(index, self.term(), gathered.bytes, gathered.waiting);
            }
        }
        if let Some(error) = refusal {
            self.proposals.refuse_queued(&error, &mut turn.effects.writes);
        }
        self.release_bytes(turn, before);
    }

    fn propose_entry(&mut self, requests: Vec<v1::WriteRequest>, range_time_ms: u64) -> Result<(), Error> {
        if !self.leads() || self.raft.raft.lead_transferee.is_some() {
            return Err(self.not_leader());
        }
        #[cfg(feature = "mutants")]
        self.remember_for_late(&requests);
        self.propose_stamped(self.term(), v1::Command { requests, range_time_ms, ..Default::default() })
    }

    fn propose_stamped(&mut self, term: u64, command: v1::Command) -> Result<(), Error> {
        let command = v1::Command {
            range_id: self.id.0,
            replica_id: self.replica,
            term,
            epoch_version: self.descriptor.epoch.unwrap_or_default().version,
            ..command
        };
        let entry = Entry { data: command::encode(&command), ..Default::default() };
        let mut message = Message { from: self.replica, ..Default::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(vec![entry].into());
        // raft-rs refuses beyond max_uncommitted_size: surely not in the log.
        self.raft.step(message).map_err(|_| Error::ServerBusy {
            reason: "the range has as many uncommitted bytes as it may".into(),
            retry_after_ms: 50,
        })
    }

    /// Gives bytes back to the node's budget that were counted before.
    fn release_bytes(&self, turn: &mut Turn<'_>, before: usize) {
        turn.shared.proposal_bytes -= before - self.proposals.bytes();
    }

    /// Time has passed by one tick.
    pub(crate) fn tick(&mut self, turn: &mut Turn<'_>) {
        if self.doomed.is_some() {
            return;
        }
        self.count_leaderless();
        let silent = turn.now < self.silent_until || turn.shared.draining || self.installs_snapshot();
        if self.leader_sleeps(turn.shared) {
            // The leader could be asked: no campaign, and no vote for another.
            self.raft.raft.election_elapsed = 0;
        } else if self.leads() || !(silent || self.lets_others_lead(turn)) {
            self.raft.tick();
            self.ping_if_missed(turn);
            self.draw_election_timeout(&turn.shared.config);
        } else {
            // No campaign; but the promise to the last leader heard runs out as ever, and others may be voted for.
            self.raft.raft.election_elapsed += 1;
        }
        let election = turn.shared.config.election_timeout();
        let before = self.proposals.bytes();
        // Without the lead it takes no further writes, and may wait for a quorum for ever.
        let own = if self.leads() { self.raft.raft.raft_log.last_index() } else { 0 };
        self.proposals.expire(turn.now, own, &mut turn.effects.writes);
        self.release_bytes(turn, before);
        self.barriers.expire(turn.now, election, &mut turn.effects.barriers);
        self.expire_transfer(turn);
        self.expire_change(turn);
        self.age_snapshot(turn.now);
        self.consider_truncation(turn);
        if self.leads() {
            self.repeat_hand_over();
            self.consider_split(turn);
            self.consider_load(turn);
            self.pursue_order(turn);
            self.pursue_expiry(turn);
        }
        self.pursue_merge(turn);
    }

    /// Whether anything is left to do for this range at the end of a turn.
    pub(crate) fn wants_turn(&self) -> bool {
        self.raft.has_ready()
            || self.renews_lease()
            || self.leader_due.is_some()
            || self.change.is_some()
            || self.standstill.is_some()
            || !self.proposals.is_empty()
            || !self.barriers.is_empty()
            || self.transfer.is_some()
            || self.doomed.is_some()
    }

    /// The connection to a node is gone.
    pub(crate) fn unreachable(&mut self, node: NodeId) {
        if self.leads()
            && let Some(replica) = self.replica_on(node).map(|replica| replica.replica_id)
        {
            self.raft.report_unreachable(replica);
        }
    }
}

/// Whether this replica is the only one that votes, and no change is on its way that could give others a vote: one would be
/// in its log, for it could not be committed without it.
fn is_alone(boot: &RangeBoot, replica: u64) -> bool {
    membership::voters(&boot.descriptor.replicas)[..] == [replica]
        && !membership::is_joint(&boot.descriptor)
        && boot.entries.iter().all(|entry| entry.get_entry_type() == EntryType::EntryNormal)
}
