//! Heartbeats: when a leader sends them, and how most of them are taken.
//!
//! ```text
//! tick   1     2     3     4     5     6          (an election time-out of ten ticks)
//!        │     │     ♥     │     │     ♥          nothing is missed: Raft's own, with every third of them
//!        ♥     ♥     ♥     ♥     ♥     ♥          somebody lags, a read waits for a quorum, the lease runs short
//! ```
//! A range that is awake, and asked for now and then, does little else than sending and answering heartbeats; and a node
//! has thousands of such ranges. One that tells its receiver nothing new changes nothing in Raft but a timer, or a mark:
//! that is done here, without a turn of the range. What follows for the lease follows with the next tick. Anything else
//! goes the way of all messages (`received.rs`). A commit index is no news that a heartbeat would be sent for: followers
//! learn it with what comes next.

use flotilla_mutants::Mutant;
use flotilla_proto::v1;
use raft::StateRole;
use raft::eraftpb::MessageType;

use super::{Range, Shared, Turn};
use crate::config::Config;
use crate::store::Envelope;
use crate::time::BootTime;

/// A lease that ends within so many ticks does not wait for the next one to be drawn anew.
const LEASE_TICKS_LEFT: u32 = 2;

impl Range {
    /// Between the heartbeats that are due anyway a leader sends one if it lacks others' answers, or they what it has sent.
    pub(super) fn ping_if_missed(&mut self, turn: &Turn<'_>) {
        let last = self.raft.raft.raft_log.last_index();
        let sent = std::mem::replace(&mut self.last_at_tick, last);
        // Raft's own heartbeat has just been sent where nothing has elapsed since.
        if !self.leads() || self.raft.raft.heartbeat_elapsed() == 0 {
            return;
        }
        let config = &turn.shared.config;
        let next = config.tick.saturating_mul(u32::try_from(config.heartbeat_ticks()).unwrap_or(u32::MAX));
        let lease_runs_short = !self.lease.is_void() && self.lease.until() < turn.now + next;
        let lags = |of: &v1::ReplicaDescriptor| of.replica_id != self.replica && self.matched(of.replica_id) < sent;
        if lease_runs_short || !self.barriers.is_empty() || self.descriptor.replicas.iter().any(lags) {
            self.raft.ping();
        }
    }

    /// Takes a heartbeat, or an answer to one, that says nothing new; false: it is none, and was not taken.
    pub(crate) fn takes_beat(
        &mut self,
        now: BootTime,
        shared: &Shared,
        envelope: &Envelope,
        answers: &mut Vec<Envelope>,
    ) -> bool {
        let message = &envelope.message;
        let from = message.from_replica;
        let known = self.descriptor.replicas.iter().any(|of| of.replica_id == from && of.node_id == envelope.from.0);
        let to_this = message.to_replica == self.replica && message.term == self.term();
        if !known || from == self.replica || !to_this || self.doomed.is_some() || !is_bare(envelope) {
            return false;
        }
        if message.message_type == MessageType::MsgHeartbeat as u32 {
            let Some(message) = self.takes_heartbeat(message) else { return false };
            let disk_full = shared.full_nodes.contains(&shared.node);
            answers.push(Envelope { from: shared.node, to: envelope.from, message, disk_full, snapshot: None });
            return true;
        }
        message.message_type == MessageType::MsgHeartbeatResponse as u32
            && self.takes_answer(now, &shared.config, message)
    }

    /// The answer, if the heartbeat says nothing new.
    fn takes_heartbeat(&mut self, message: &v1::PeerMessage) -> Option<v1::PeerMessage> {
        let leader = message.from_replica;
        let raft = &self.raft.raft;
        let follows = raft.state == StateRole::Follower && raft.leader_id == leader;
        // An answer promises what came before it, and leaves behind it.
        let answers_at_once = self.unpersisted.is_empty() && !self.installs_snapshot() && !self.raft.has_ready();
        if !follows || !answers_at_once || message.commit != raft.raft_log.committed {
            return None;
        }
        let (term, commit) = (raft.term, message.commit);
        self.raft.raft.election_elapsed = 0;
        self.heard_leader(term, message.stamp, None);
        Some(v1::PeerMessage {
            range_id: self.id.0,
            from_replica: self.replica,
            to_replica: leader,
            message_type: MessageType::MsgHeartbeatResponse as u32,
            term,
            commit,
            ack_stamp: self.leader_stamp.1,
            ..Default::default()
        })
    }

    fn takes_answer(&mut self, now: BootTime, config: &Config, message: &v1::PeerMessage) -> bool {
        let last = self.raft.raft.raft_log.last_index();
        let lease_waits = !self.lease.is_void() && self.lease.until() < now + config.tick * LEASE_TICKS_LEFT;
        if !self.leads() || lease_waits {
            return false;
        }
        let Some(progress) = self.raft.raft.mut_prs().get_mut(message.from_replica) else { return false };
        if progress.matched != last || progress.ins.full() || progress.pending_request_snapshot != 0 {
            return false;
        }
        progress.update_committed(message.commit);
        progress.recent_active = true;
        progress.resume();
        self.heard_follower(now, message.from_replica, message.ack_stamp);
        true
    }

    /// Whether this leader's lease may run longer than it was last drawn. One that is alone has nobody to hear, and renews it
    /// with each turn.
    pub(super) fn renews_lease(&self) -> bool {
        self.leads() && (self.lease.is_to_be_drawn() || self.voters.len() == 1)
    }

    /// The leader of this term was heard.
    pub(super) fn heard_leader(&mut self, term: u64, stamp: u64, sleep: Option<(u64, (u64, u64))>) {
        self.heard_of_sleep(stamp, sleep);
        let known = if self.leader_stamp.0 == term { self.leader_stamp.1 } else { 0 };
        self.leader_stamp = (term, stamp.max(known));
    }

    /// This leader has heard another replica in its term.
    pub(super) fn heard_follower(&mut self, now: BootTime, replica: u64, ack_stamp: u64) {
        self.heard.insert(replica, now);
        if ack_stamp > 0 {
            let heard = if Mutant::LeaseFromReceipt.is_on() { now } else { BootTime(ack_stamp) };
            self.lease.acknowledged(replica, self.term(), heard);
        }
    }
}

/// Whether nothing is in a message but what each heartbeat has: what is anything else is to be looked at, or refused.
fn is_bare(envelope: &Envelope) -> bool {
    let message = &envelope.message;
    let numbers = [message.index, message.log_term, message.commit_term, message.reject_hint, message.request_snapshot];
    message.sleep_boot_id == 0
        && message.frozen == 0
        && !message.reject
        && numbers == [0; 5]
        && message.context.is_empty()
        && message.entries.is_empty()
        && message.removed.is_none()
        && envelope.snapshot.is_none()
}
