//! What stays of a replica that sleeps, and how it becomes a replica again. When it may sleep, and why nothing is lost by it:
//! `sleep.rs`.
//!
//! Invariants: all of its log is durable and applied; it holds whatever Raft must not forget; it is small, for a node has a
//! hundred thousand of them.

use std::sync::Arc;

use flotilla_proto::{NodeId, RangeId, v1};
use raft::StateRole;
use raft::eraftpb::MessageType;

use super::sleep::Word;
use super::split::Size;
use super::{Range, Shared, initial_view, silence};
use crate::config::Config;
use crate::load::Load;
use crate::membership;
use crate::recover::RangeBoot;
use crate::store::{RangeSummary, ReadView};
use crate::time::BootTime;

/// See the module.
#[derive(Debug)]
pub(crate) struct Sleeper {
    view: Arc<ReadView>,
    raft: v1::RaftState,
    /// (first index, term), as in the boot record.
    terms: Box<[(u64, u64)]>,
    entry_bytes: Box<[u32]>,
    /// Index and term of the last entry, which is applied.
    last: (u64, u64),
    checksum: u32,
    leads: bool,
    /// This leader has no lease in the rest of its term.
    lease_is_void: bool,
    /// Nobody leads it, as far as is known here.
    orphan: bool,
    replica: u64,
    /// The replica that it follows; 0: none is known.
    leader: u64,
    leader_stamp: u64,
    since: BootTime,
    silent_until: BootTime,
    campaigns: u64,
    size: Size,
    range_time_ms: u64,
    next_expiry_ms: u64,
    rare: Option<Box<Rare>>,
}

/// What most sleepers do without.
#[derive(Debug, Default, PartialEq)]
struct Rare {
    /// Ranges that it ever took in.
    absorbed: Vec<u64>,
    /// When it went on without its majority: hardly ever.
    recoveries: Vec<v1::RangeRecovery>,
    no_merge_before: BootTime,
    too_large_to_split: u64,
    /// Of a leader: when it began to count the range's time, and from what on.
    reign: Option<(BootTime, u64)>,
    /// Of a leader: replicas that it sleeps without.
    absent: Vec<u64>,
}

impl Rare {
    /// It, unless it says nothing.
    fn kept(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }
}

/// What a message is to a sleeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaches {
    /// Nothing follows from it.
    Nothing,
    /// It wakes.
    Wakes,
    /// It wakes, and follows nobody any more: its leader asks for votes.
    WakesAlone,
}

impl Range {
    /// What stays of it, and when it is to be woken for keys that end.
    pub(crate) fn into_sleeper(self, now: BootTime, config: &Config) -> (Sleeper, Option<BootTime>) {
        let leads = self.leads();
        let alarm = if leads { self.next_alarm(config) } else { None };
        let raft = v1::RaftState { commit: self.applied.0, ..self.raft_state() };
        let log = self.raft.store();
        let (terms, entry_bytes) = (log.terms().collect(), log.sizes().collect());
        let rare = Rare {
            absorbed: self.absorbed,
            recoveries: self.recoveries,
            no_merge_before: self.no_merge_before,
            too_large_to_split: self.too_large_to_split,
            reign: self.expiry.reign_began(),
            absent: self.rest.absent,
        };
        let sleeper = Sleeper {
            raft,
            terms,
            entry_bytes,
            last: self.applied,
            checksum: self.checksum,
            leads,
            lease_is_void: leads && self.lease.is_void(),
            orphan: false,
            replica: self.replica,
            leader: self.raft.raft.leader_id,
            leader_stamp: self.leader_stamp.1,
            since: now,
            silent_until: self.silent_until,
            campaigns: self.campaigns,
            size: self.size,
            range_time_ms: self.expiry.time_ms(),
            next_expiry_ms: self.expiry.bound_ms(),
            rare: rare.kept(),
            view: self.view,
        };
        (sleeper, alarm)
    }
}

impl Sleeper {
    /// A replica as recovery found it: asleep, if nothing of its log is left to be applied.
    pub(crate) fn at_start(shared: &mut Shared, boot: &RangeBoot, now: BootTime) -> Option<Self> {
        let own = boot.descriptor.replicas.iter().find(|replica| replica.node_id == shared.node.0)?;
        let joint = membership::is_joint(&boot.descriptor);
        let merge = boot.merge.as_deref().cloned().unwrap_or_default();
        if merge.frozen.is_some()
            || boot.last_index != boot.applied.index
            || boot.last_index == 0
            || joint
            || shared.config.idle_ticks == 0
        {
            return None;
        }
        let replica = own.replica_id;
        let recoveries = boot.recoveries.recoveries.clone();
        let rare = Rare { absorbed: merge.absorbed, recoveries, ..Rare::default() };
        shared.incarnations += 1;
        Some(Self {
            view: Arc::new(ReadView { asleep: true, ..initial_view(shared, boot) }),
            raft: v1::RaftState { commit: boot.applied.index, ..boot.raft },
            terms: boot.terms.clone().into_boxed_slice(),
            entry_bytes: boot.entry_bytes.clone().into_boxed_slice(),
            last: (boot.applied.index, boot.applied.term),
            checksum: boot.applied.checksum,
            leads: false,
            lease_is_void: false,
            orphan: true,
            replica,
            leader: 0,
            leader_stamp: 0,
            since: BootTime::default(),
            silent_until: silence(shared, boot, replica, now),
            campaigns: 0,
            size: Size::default(),
            range_time_ms: boot.applied.range_time_ms,
            next_expiry_ms: boot.applied.next_expiry_ms,
            rare: rare.kept(),
        })
    }

    /// Of a leader: the replicas that it sleeps without.
    fn absent(&self) -> &[u64] {
        self.rare.as_ref().map_or(&[], |rare| &rare.absent)
    }

    pub(crate) fn descriptor(&self) -> &Arc<v1::RangeDescriptor> {
        &self.view.descriptor
    }

    pub(crate) fn view(&self) -> &Arc<ReadView> {
        &self.view
    }

    pub(crate) fn replica(&self) -> u64 {
        self.replica
    }

    pub(crate) fn leads(&self) -> bool {
        self.leads
    }

    /// Whether nobody leads it, as far as is known here.
    pub(crate) fn is_orphan(&self) -> bool {
        self.orphan
    }

    /// Whether it sleeps as a leader without its replica on this node.
    pub(crate) fn sleeps_without(&self, node: NodeId) -> bool {
        self.leads
            && self
                .view
                .descriptor
                .replicas
                .iter()
                .any(|of| of.node_id == node.0 && self.absent().contains(&of.replica_id))
    }

    /// The nodes of all voters.
    fn voting_nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        let voters = self.view.descriptor.replicas.iter().filter(|of| of.role() == v1::ReplicaRole::Voter);
        voters.map(|of| NodeId(of.node_id))
    }

    /// Whether it leads on this node, which is slow, and somebody else could.
    pub(crate) fn is_to_leave(&self, shared: &Shared, now: BootTime) -> bool {
        self.leads && shared.could_lead(now, self.voting_nodes().filter(|node| *node != shared.node))
    }

    /// Whether it leads, for all it knows, and not all of those who vote are alive. A replica may be gone from a node that
    /// lives, so that even one that is missing may be one too many.
    pub(crate) fn is_in_doubt(&self, shared: &Shared) -> bool {
        let alive = |node: NodeId| node == shared.node || shared.liveness.is_live(node);
        self.leads && !self.voting_nodes().all(alive)
    }

    /// The node of the leader that it follows.
    pub(crate) fn followed_node(&self) -> Option<NodeId> {
        let leader = self.view.descriptor.replicas.iter().find(|of| of.replica_id == self.leader);
        leader.filter(|_| !self.leads).map(|of| NodeId(of.node_id))
    }

    /// Its leader's process is gone: it has none until it is woken.
    pub(crate) fn lose_leader(&mut self) {
        self.orphan = true;
    }

    /// This store stops: it leads no more, and gives readers nothing to go by. Others may have its vote as ever.
    pub(crate) fn step_down(&mut self) -> Option<Arc<ReadView>> {
        if !std::mem::take(&mut self.leads) {
            return None;
        }
        (self.leader, self.orphan) = (0, true);
        if let Some(rare) = &mut self.rare {
            rare.absent.clear();
        }
        self.view = Arc::new(ReadView { leader: None, serves: false, ..(*self.view).clone() });
        Some(self.view.clone())
    }

    /// Which of those who vote is to campaign first when the replica on `dead` led: one of the others in turn, by the
    /// range's id, so that they share the work. `None`: it is not known who led.
    pub(crate) fn is_first_to_campaign(&self, own: NodeId, dead: Option<NodeId>) -> bool {
        let voters: Vec<_> = self.voting_nodes().filter(|node| Some(*node) != dead).collect();
        let turn = self.view.descriptor.range_id % (voters.len().max(1) as u64);
        voters.get(usize::try_from(turn).unwrap_or(0)).is_some_and(|node| *node == own)
    }

    /// Takes a size; whether it is to be woken, because it leads and has grown too large.
    pub(crate) fn told_size(&mut self, bytes: u64, limit: u64) -> bool {
        self.size.measured(bytes);
        self.is_too_large(limit)
    }

    /// Whether it leads a range that is larger than its keyspace allows.
    pub(crate) fn is_too_large(&self, limit: u64) -> bool {
        let bytes = self.size.bytes();
        self.leads
            && limit != 0
            && bytes > limit
            && bytes / 2 >= self.rare.as_ref().map_or(0, |rare| rare.too_large_to_split)
    }

    /// What a message is to it.
    pub(crate) fn reaches(&self, message: &v1::PeerMessage) -> Reaches {
        let is = |kind: MessageType| message.message_type == kind as u32;
        if message.to_replica != self.replica || message.removed.is_some() {
            return Reaches::Wakes;
        }
        let same_term = message.term == self.raft.term;
        let asks = is(MessageType::MsgRequestVote) || is(MessageType::MsgRequestPreVote);
        let from_leader = message.from_replica == self.leader && !self.leads;
        if asks && !self.orphan && !self.leads {
            // While its leader's node lives it would refuse; a transfer is another thing.
            let ignores = message.context.is_empty() && !from_leader;
            let newer = message.term > self.raft.term;
            return match (from_leader && newer, ignores) {
                (true, _) => Reaches::WakesAlone,
                (false, true) => Reaches::Nothing,
                (false, false) => Reaches::Wakes,
            };
        }
        let answer = is(MessageType::MsgHeartbeatResponse) || is(MessageType::MsgAppendResponse);
        if self.leads && answer && same_term && !message.reject && !self.absent().contains(&message.from_replica) {
            // Late: what it says was known before.
            return Reaches::Nothing;
        }
        let of_leader = is(MessageType::MsgHeartbeat) || is(MessageType::MsgAppend);
        let old = message.stamp <= self.leader_stamp || message.sleep_boot_id != 0;
        if of_leader && same_term && from_leader && !self.orphan && old && message.index <= self.last.0 {
            return Reaches::Nothing;
        }
        Reaches::Wakes
    }

    /// The replica, awake. `alone`: it follows nobody any more, whatever it knew.
    pub(crate) fn wake(self, shared: &mut Shared, now: BootTime, sequence: u64, alone: bool) -> Result<Range, String> {
        let applied = v1::AppliedState {
            index: self.last.0,
            term: self.last.1,
            checksum: self.checksum,
            range_time_ms: self.range_time_ms,
            next_expiry_ms: self.next_expiry_ms,
            ..Default::default()
        };
        let rare = self.rare.as_deref();
        let (absorbed, recoveries) =
            rare.map_or((&[][..], &[][..]), |rare| (rare.absorbed.as_slice(), rare.recoveries.as_slice()));
        let boot = RangeBoot {
            descriptor: self.view.descriptor.clone(),
            raft: self.raft,
            applied,
            terms: self.terms.to_vec(),
            last_index: self.last.0,
            entry_bytes: self.entry_bytes.to_vec(),
            entries: Vec::new(),
            merge: (!absorbed.is_empty())
                .then(|| Box::new(v1::MergeState { frozen: None, absorbed: absorbed.to_vec() })),
            recoveries: v1::RangeRecoveries { recoveries: recoveries.to_vec() },
        };
        let mut range = Range::new(shared, &boot, now)?;
        range.incarnation = self.view.incarnation;
        range.silent_until = self.silent_until;
        range.campaigns = self.campaigns;
        range.size = self.size;
        if let Some(rare) = rare {
            range.no_merge_before = rare.no_merge_before;
            range.too_large_to_split = rare.too_large_to_split;
        }
        // What was applied is durable with the next sync at the latest.
        range.applied_marks = [(sequence, self.last.0)].into();
        range.view = self.view.clone();
        if self.leads {
            self.lead_on(&mut range, now);
        } else {
            self.follow_on(&mut range, shared, now, alone);
        }
        range.draw_election_timeout(&shared.config);
        Ok(range)
    }

    /// Leads on in the same term: all that it takes is to know that the others are level.
    fn lead_on(&self, range: &mut Range, now: BootTime) {
        let raft = &mut range.raft.raft;
        raft.state = StateRole::Leader;
        raft.leader_id = self.replica;
        for (id, progress) in raft.mut_prs().iter_mut() {
            if !self.absent().contains(id) {
                progress.matched = self.last.0;
                progress.become_replicate();
                progress.recent_active = true;
                range.heard.insert(*id, now);
            }
        }
        range.rest.woke = now;
        range.role = StateRole::Leader;
        range.load = Some(Box::new(Load::new(now, v1::RangeLoad::default())));
        range.lease.begin(self.raft.term);
        range.lease.restart(now);
        if self.lease_is_void {
            range.lease.void();
        }
        let reign = self.rare.as_ref().and_then(|rare| rare.reign);
        range.expiry.lead_on(self.raft.term, range.descriptor.epoch.unwrap_or_default().version, reign);
    }

    /// Follows on, or nobody if there is nobody to follow. A promise that was given to the last leader is kept.
    fn follow_on(&self, range: &mut Range, shared: &Shared, now: BootTime, alone: bool) {
        let promised = now.since(self.since) < shared.config.election_timeout();
        let follows = self.leader != 0 && (promised || !(self.orphan || alone));
        if !follows {
            return;
        }
        range.raft.raft.become_follower(self.raft.term, self.leader);
        range.leader_stamp = (self.raft.term, self.leader_stamp);
        let boot_id = self.followed_node().and_then(|node| shared.liveness.boot_id(node));
        if let Some(boot_id) = boot_id.filter(|_| !self.orphan && !alone) {
            range.rest.word = Some(Word { boot_id, stamp: self.leader_stamp, last: self.last });
        }
    }

    /// What it says for metrics and checkers.
    pub(crate) fn summary(&self) -> RangeSummary {
        let others = self.view.descriptor.replicas.iter().filter(|of| self.leads && of.replica_id != self.replica);
        let (silent, level): (Vec<_>, Vec<_>) = others.partition(|of| self.absent().contains(&of.replica_id));
        let nodes = |of: Vec<&v1::ReplicaDescriptor>| of.into_iter().map(|of| of.node_id).collect();
        RangeSummary {
            range: RangeId(self.view.descriptor.range_id),
            descriptor: self.view.descriptor.clone(),
            leader: self.view.leader,
            leads: self.leads,
            hears_leader: !self.orphan,
            term: self.raft.term,
            vote: self.raft.vote,
            commit: self.last.0,
            applied: self.last.0,
            applied_checksum: self.checksum,
            last_index: self.last.0,
            last_term: self.last.1,
            commit_term: self.last.1,
            truncated: self.raft.truncated_index,
            lease_until: BootTime::default(),
            proposal_bytes: 0,
            log_bytes: self.entry_bytes.iter().map(|bytes| u64::from(*bytes)).sum(),
            replica_id: self.replica,
            data_bytes: self.size.bytes(),
            silent_nodes: nodes(silent),
            level_nodes: nodes(level),
            order_id: 0,
            order_waits: String::new(),
            is_lasting: true,
            load: None,
            frozen: None,
            asleep: true,
        }
    }

    fn follower(&self, of: &v1::ReplicaDescriptor) -> v1::FollowerProgress {
        let level = !self.absent().contains(&of.replica_id);
        v1::FollowerProgress {
            node_id: of.node_id,
            replica_id: of.replica_id,
            matched_index: if level { self.last.0 } else { 0 },
            state: if level { "asleep" } else { "absent" }.into(),
            recently_active: level,
        }
    }

    /// What it says for people.
    pub(crate) fn status(&self, node: u64) -> v1::GetRangeResponse {
        let others = self.view.descriptor.replicas.iter().filter(|of| self.leads && of.replica_id != self.replica);
        let replica = v1::ReplicaStatus {
            node_id: node,
            replica_id: self.replica,
            role: if self.leads { "leader" } else { "follower" }.into(),
            term: self.raft.term,
            commit_index: self.last.0,
            applied_index: self.last.0,
            last_index: self.last.0,
            truncated_index: self.raft.truncated_index,
            applied_checksum: self.checksum,
            followers: others.map(|of| self.follower(of)).collect(),
            recoveries: self.rare.as_ref().map(|rare| rare.recoveries.clone()).unwrap_or_default(),
            ..Default::default()
        };
        v1::GetRangeResponse {
            status: Some(v1::RangeStatus {
                descriptor: Some((*self.view.descriptor).clone()),
                leader_node_id: self.view.leader.unwrap_or_default().0,
                term: self.raft.term,
                data_bytes: self.size.bytes(),
                load: None,
            }),
            replica: Some(replica),
        }
    }
}
