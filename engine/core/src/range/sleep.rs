//! Ranges with nothing to do sleep: no ticks, no messages, and of the replica a small record in place of everything else.
//!
//! ```text
//! leader                                                follower
//!   │ nothing to do for `idle_ticks`; all others level    │
//!   │ heartbeat with the word: I sleep (log ends at i, t) ▶ its log ends there, all of it applied?
//!   ▼ asleep (Sleeper)                                    ▼ asleep (Sleeper)
//!
//!   request, message, a key's end ▶ awake: leads on in the same term, without a lease; its next message wakes the others
//!   leader's node dead, or started anew ▶ followers wake, some with each tick, and campaign (store/sleepers.rs)
//! ```
//! **Falling asleep.** A leader does so when nothing is queued, proposed, asked or under way, all of its log is durable and
//! applied, and every other replica has just acknowledged all of it; but for those on nodes that are dead
//! ([`crate::store`]'s liveness), as long as a quorum is left. One dead node does not keep its ranges awake
//! (tikv#19070). A follower does so only by its leader's word. Who hears the word and has still to apply something
//! stays awake until then, and does not campaign meanwhile. Where the word is lost the follower's election timer
//! runs on; it asks for votes in advance (pre-vote), which wakes the leader, and nobody is deposed.
//!
//! **What a sleeper keeps** is all that Raft must not forget (term, vote, the log's terms, the commit index), whether it
//! leads or whom it follows, and when it fell asleep. What it drops can be made anew: entries are on disk, and asked for by
//! Raft when a follower needs them; the others' progress is that all are level.
//!
//! **Why this is safe.** Raft's own promises (one vote in a term, what is committed stays) rest on term, vote and log, which
//! are kept. A leader that wakes leads on in its term: nobody else can have led in it. What remains are leases.
//! - *The leader's*: it ends when the leader falls asleep, in the view that readers go by, too. After it wakes only what
//!   others acknowledge of messages sent since counts ([`super::lease::Lease::restart`]); and a lease that is void for
//!   its term stays so. Until then its reads pay a round to a quorum, which shows if another one leads.
//! - *The follower's promise*: no vote for another one until an election time-out after it last heard its leader. It is
//!   kept by the clock: a sleeper knows when it fell asleep, which is later than that, and one that wakes sooner follows the
//!   same leader on, its timer at nothing. It hears no more of its leader later than that: nothing that nodes say to
//!   each other on behalf of all ranges prolongs or ends a promise. If it wakes later, it has none.
//! - *A store's silence after its start*: until when is noted in every sleeper.
//!
//! **Why no range is lost.** A follower's timer stands still while its leader sleeps and that one's node lives, as the same
//! process; and it refuses candidates: the leader could be asked. A leader that has stepped down is awake, and
//! has a timer of its own: when it asks for a vote, whoever followed it knows that it leads no more, and wakes. One
//! that was removed left others behind that lead, and whose messages wake. So whatever leads nothing any more is either
//! dead as a node, or campaigns.

use std::sync::Arc;

use flotilla_mutants::Mutant;
use flotilla_proto::{NodeId, v1};
use raft::StateRole;
use raft::eraftpb::MessageType;

use super::{Range, Shared, Turn};
use crate::config::Config;
use crate::membership;
use crate::store::Envelope;
use crate::time::BootTime;

/// Others have acknowledged everything since the last heartbeat but so many ticks.
const HEARD_TICKS: usize = 2;
/// A range does not fall asleep for less than so many times as long as it was idle before.
const WORTH_IDLE: u32 = 2;
/// A replica that found no leader within so many election time-outs finds none soon.
const SEEKING_TIMEOUTS: usize = 3;

/// How close an awake replica is to sleep.
#[derive(Debug, Default)]
pub(super) struct Rest {
    /// For so many ticks there was nothing to do.
    idle_ticks: usize,
    /// It woke in its turn, only to find out who leads, and nobody has asked it for anything since: it need not wait for
    /// more.
    in_passing: bool,
    /// For so many ticks it was awake and knew no leader.
    leaderless_ticks: usize,
    pub word: Option<Word>,
    /// When it woke as a leader. That the others are still there it does not know then: it sleeps again when it has heard of
    /// them, or of nobody for so long that it leads no more.
    pub woke: BootTime,
    /// It falls asleep, and of a leader: the replicas that it does without.
    pub asleep: bool,
    pub absent: Vec<u64>,
}

/// The leader's word that it sleeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word {
    /// Of the leader's process.
    pub boot_id: u64,
    pub stamp: u64,
    /// Where its log ends.
    pub last: (u64, u64),
}

impl Range {
    /// Something is under way in the range: it is not idle.
    pub(super) fn stir(&mut self) {
        self.rest.idle_ticks = 0;
    }

    /// Somebody asked the range for something, and may ask again.
    pub(crate) fn is_asked(&mut self) {
        self.stir();
        self.rest.in_passing = false;
    }

    /// It wakes in its turn, and not because anybody asked.
    pub(crate) fn wakes_in_passing(&mut self) {
        self.rest.in_passing = true;
    }

    /// Whether it looks for a leader, and has not done so for long: elections that fail again and again, for there is no
    /// majority, are not to hold up the others for ever.
    pub(crate) fn is_seeking(&self, config: &Config) -> bool {
        self.raft.raft.leader_id == 0 && self.rest.leaderless_ticks < config.election_ticks * SEEKING_TIMEOUTS
    }

    pub(super) fn count_leaderless(&mut self) {
        let led = self.raft.raft.leader_id != 0;
        self.rest.leaderless_ticks = if led { 0 } else { self.rest.leaderless_ticks.saturating_add(1) };
    }

    /// Whether it falls asleep now: then it has told the others and the readers, and [`Range::into_sleeper`] follows.
    pub(crate) fn falls_asleep(&mut self, turn: &mut Turn<'_>) -> bool {
        let config = &turn.shared.config;
        let (wanted, tick) = (config.idle_ticks, config.tick);
        if wanted == 0 || !self.has_nothing_to_do(turn.shared) {
            self.rest.idle_ticks = 0;
            return false;
        }
        self.rest.idle_ticks += 1;
        let idle = self.rest.in_passing || self.rest.idle_ticks >= wanted;
        let absent = match self.raft.raft.state {
            StateRole::Leader if idle => self.all_but_absent_are_level(turn),
            StateRole::Follower => self.may_sleep_by_word(turn.shared).then(Vec::new),
            _ => None,
        };
        let Some(absent) = absent else { return false };
        if self.leads() {
            let worth = tick * u32::try_from(wanted).unwrap_or(u32::MAX).saturating_mul(WORTH_IDLE);
            if self.next_alarm(&turn.shared.config).is_some_and(|at| at <= turn.now + worth) {
                return false;
            }
            self.say_good_night(turn, &absent);
            self.rest.absent = absent;
            self.lease.end();
        }
        self.siblings = Arc::default();
        self.load = None;
        self.rest.asleep = true;
        self.publish(turn);
        true
    }

    /// Whether nothing of it is under way, whatever its role.
    fn has_nothing_to_do(&self, shared: &Shared) -> bool {
        let log = &self.raft.raft.raft_log;
        let level = log.last_index() == self.applied.0 && log.committed == self.applied.0;
        let nobody_waits = self.proposals.is_empty()
            && self.barriers.is_empty()
            && self.transfer.is_none()
            && self.leader_due.is_none()
            && self.told_to_lead.is_none()
            && self.change.is_none()
            && self.finding.is_none()
            && self.standstill.is_none()
            && self.ending.is_none();
        let stays = self.doomed.is_none() && self.told_to_go.is_none() && !self.unborn && !shared.draining;
        level
            && nobody_waits
            && stays
            && self.order.is_none()
            && self.unpersisted.is_empty()
            && self.applies_open == 0
            && !self.installs_snapshot()
            && self.incoming_snapshots.is_empty()
            && !self.snapshot_asked
            && !self.raft.store().is_fetching()
            && self.raft.store().handed_over() == self.applied.0
            && !membership::is_joint(&self.descriptor)
            && !self.raft.has_ready()
    }

    /// Of a leader: the replicas that it would sleep without, if all others have just acknowledged all of the log and a
    /// quorum is among them.
    fn all_but_absent_are_level(&self, turn: &Turn<'_>) -> Option<Vec<u64>> {
        if !self.serves()
            || self.raft.raft.lead_transferee.is_some()
            || !self.expiry.is_idle()
            || self.wants_split(turn)
            || self.is_to_leave(turn)
        {
            return None;
        }
        let config = &turn.shared.config;
        let ticks = u32::try_from(config.heartbeat_ticks() + HEARD_TICKS).unwrap_or(u32::MAX);
        let recent = config.tick.saturating_mul(ticks);
        let mut absent = Vec::new();
        for of in self.descriptor.replicas.iter().filter(|of| of.replica_id != self.replica) {
            let heard = self.heard.get(&of.replica_id).copied().unwrap_or_default();
            let live = turn.shared.liveness.is_live(NodeId(of.node_id));
            let level = self.matched(of.replica_id) == self.applied.0 || Mutant::SleepWithOneBehind.is_on();
            if live && level && turn.now.since(heard) <= recent && heard > self.rest.woke {
                continue;
            }
            // What a snapshot under way rests on (the log behind it, and the patience with it) is not kept in sleep.
            if live || self.snapshots_sent.under_way(of.replica_id, turn.now).is_some() {
                return None;
            }
            absent.push(of.replica_id);
        }
        let level = self.voters.iter().filter(|voter| !absent.contains(voter)).count();
        (level > self.voters.len() / 2).then_some(absent)
    }

    /// Tells the others that they may sleep.
    fn say_good_night(&mut self, turn: &mut Turn<'_>, absent: &[u64]) {
        let (index, log_term) = self.applied;
        let shared = &turn.shared;
        for of in self.descriptor.replicas.iter().filter(|of| of.replica_id != self.replica) {
            if absent.contains(&of.replica_id) {
                continue;
            }
            let message = v1::PeerMessage {
                range_id: self.id.0,
                from_replica: self.replica,
                to_replica: of.replica_id,
                message_type: MessageType::MsgHeartbeat as u32,
                term: self.raft.raft.term,
                commit: index,
                index,
                log_term,
                stamp: turn.now.0,
                sleep_boot_id: shared.config.boot_id,
                ..Default::default()
            };
            let disk_full = shared.full_nodes.contains(&shared.node);
            let to = NodeId(of.node_id);
            turn.effects.messages.push(Envelope { from: shared.node, to, message, disk_full, snapshot: None });
        }
    }

    /// Notes what a message of the leader of this term says about its sleep; `sleep` is its boot id and where its log
    /// ends, if it sleeps. What was sent before the word, and comes after it, does not take it back.
    pub(super) fn heard_of_sleep(&mut self, stamp: u64, sleep: Option<(u64, (u64, u64))>) {
        match sleep {
            Some((boot_id, last)) if stamp >= self.leader_stamp.1 => {
                self.rest.word = Some(Word { boot_id, stamp, last });
            }
            Some(_) => {}
            None => self.rest.word = self.rest.word.filter(|word| stamp <= word.stamp),
        }
    }

    /// The leader sleeps no more, or leads no more.
    pub(super) fn forget_word(&mut self) {
        self.rest.word = None;
    }

    /// Whether this replica's leader sleeps, and its node lives: then no timer of an election runs here.
    pub(super) fn leader_sleeps(&mut self, shared: &Shared) -> bool {
        let follows = self.raft.raft.state == StateRole::Follower && self.raft.raft.leader_id != 0;
        let node = self.leader().filter(|_| follows);
        self.rest.word =
            self.rest.word.filter(|word| node.is_some_and(|node| shared.liveness.is_same(node, word.boot_id)));
        self.rest.word.is_some()
    }

    fn may_sleep_by_word(&mut self, shared: &Shared) -> bool {
        self.leader_sleeps(shared) && self.rest.word.is_some_and(|word| word.last == self.applied)
    }

    /// When a leader has next something to do for keys with a ttl.
    pub(super) fn next_alarm(&self, config: &Config) -> Option<BootTime> {
        self.expiry.next_alarm(config.expiry_clock_drift)
    }

    /// Asks for votes, if nobody leads: a request waits for it, or it is this replica's turn. A sole voter has nobody
    /// to ask.
    pub(crate) fn seek_leader(&mut self, turn: &Turn<'_>) {
        let silent = turn.now < self.silent_until || turn.shared.draining;
        // A slow node lets the others campaign first.
        if silent
            || self.lets_others_lead(turn)
            || self.raft.raft.leader_id != 0
            || self.raft.raft.state != StateRole::Follower
        {
            return;
        }
        self.leader_due = Some(turn.now);
        if self.voters[..] == [self.replica] {
            return self.campaign_at_once();
        }
        // Refused: then it is elected like any other, after its time-out.
        drop(self.raft.campaign());
    }
}
