//! Leader transfer: by order, and when the node stops.
//!
//! Raft brings the target level, then tells it to campaign at once (MsgTimeoutNow). While that is under
//! way nothing is proposed. The order is answered when the target leads; a transfer that did not
//! happen within an election time-out is given up by Raft, and the range goes on as before, without
//! a lease for the rest of the term.
//!
//! ```text
//! leader                                target
//!   │ joint configuration committed ──────▶ │ to be applied
//!   │ MsgTimeoutNow ──────────────────────▶ │ cannot campaign yet: remembered (told_to_lead)
//!   │ writes come, and wait                 │ applied ▸ campaigns
//!   │ ◀──────────────── asked for its vote, │ leads
//!   │ ◀────────────────────── first append  │
//!   ▼ waiting writes are told who leads
//! ```
//! - The target may not have applied yet what makes it a voter, or may have a change of voters to apply: Raft does not let
//!   it campaign then, and forgets that it was told to. It is remembered here, within the term. That takes nothing
//!   from the lease's safety: who has sent MsgTimeoutNow has no lease in that term, however late it is followed.
//! - The message is sent again with each tick: one that is lost would cost an election time-out of writes.
//! - Writes that come meanwhile, and those for the child of a split that is not led yet, wait until it is known who
//!   leads, or the transfer has ended; after `HOLD_TICKS` they are refused. They are queued, never proposed: whatever
//!   is refused is surely not applied.

use std::cmp::Reverse;
use std::time::Duration;

use flotilla_proto::{Error, NodeId, v1};
use raft::StateRole;
use raft::eraftpb::{Message, MessageType};

use super::{Range, Shared, Turn};
use crate::store::TransferLeader;
use crate::time::BootTime;

/// For so many ticks writes wait for a new leader.
const HOLD_TICKS: u32 = 2;

/// A leader's word that this replica is to lead, which it could not follow at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct ToldToLead {
    by: u64,
    term: u64,
    at: BootTime,
}

/// What a write is told that cannot wait for the end of a transfer.
pub(super) fn busy() -> Error {
    Error::ServerBusy { reason: "the range is being handed over".into(), retry_after_ms: 50 }
}

impl Range {
    /// Takes an order, or answers it with a refusal.
    pub(crate) fn transfer_leader(&mut self, turn: &mut Turn<'_>, order: TransferLeader) {
        if let Some(answer) = self.begin_transfer(turn, order) {
            turn.effects.transfers.push((order.token, answer));
        }
    }

    fn begin_transfer(&mut self, turn: &Turn<'_>, order: TransferLeader) -> Option<Result<(NodeId, u64), Error>> {
        if !self.leads() {
            return Some(Err(self.not_leader()));
        }
        if order.to == turn.shared.node {
            return Some(Ok((order.to, self.term())));
        }
        let Some(target) = self.replica_on(order.to).filter(|replica| replica.role() == v1::ReplicaRole::Voter) else {
            let nodes: Vec<String> = self.descriptor.replicas.iter().map(|of| of.node_id.to_string()).collect();
            return Some(Err(Error::invalid(
                format!("range {} has no voting replica on node {}", self.id.0, order.to.0),
                format!("choose one of the nodes {}", nodes.join(", ")),
            )));
        };
        if self.transfer.is_some() {
            let reason = "another transfer of this range is under way".into();
            return Some(Err(Error::ServerBusy { reason, retry_after_ms: 100 }));
        }
        let target = target.replica_id;
        self.transfer = Some((order, self.term()));
        self.begin_hand_over(turn, target);
        None
    }

    /// Lets another replica lead.
    pub(super) fn begin_hand_over(&mut self, turn: &Turn<'_>, target: u64) {
        self.raft.transfer_leader(target);
        *self.hand_overs.entry(target).or_default() += 1;
        self.handed_over_at = turn.now;
        if self.raft.raft.lead_transferee.is_some() {
            self.leader_due.get_or_insert(turn.now);
        }
    }

    /// Whether the range is about to have another leader: it is being handed over, or was, and it is not known here yet who
    /// leads; or it was born here, to be led by this replica, which still asks for the votes.
    pub(super) fn changes_hands(&self) -> bool {
        if self.leads() { self.raft.raft.lead_transferee.is_some() } else { self.leader_due.is_some() }
    }

    /// Whether a write may wait for the new leader's name: for a moment only, and not beyond its deadline.
    pub(super) fn may_wait_for_leader(&self, turn: &Turn<'_>, deadline: BootTime) -> Result<(), Error> {
        let end = self.leader_due.map(|since| since + hold(turn.shared));
        match end {
            Some(end) if turn.now < end && end < deadline => Ok(()),
            _ if self.leads() => Err(busy()),
            _ => Err(self.not_leader()),
        }
    }

    /// Lets writes go that have waited for a new leader: its name is known, or they have waited for long enough. Where
    /// this replica leads on, they are proposed.
    pub(super) fn follow_hand_over(&mut self, turn: &mut Turn<'_>) {
        let Some(since) = self.leader_due else { return };
        let late = turn.now.since(since) >= hold(turn.shared);
        let over = if self.leads() { !self.changes_hands() } else { late || self.leader().is_some() };
        if over {
            self.leader_due = None;
        }
        let error = match self.leads() {
            true if over || !late => return,
            true => busy(),
            false if !over => return,
            false => self.not_leader(),
        };
        let before = self.proposals.bytes();
        self.proposals.refuse_queued(&error, &mut turn.effects.writes);
        self.release_bytes(turn, before);
    }

    /// Tells the target once more that it is to lead: it may not have heard.
    pub(super) fn repeat_hand_over(&mut self) {
        let last = self.raft.raft.raft_log.last_index();
        if let Some(target) = self.raft.raft.lead_transferee
            && self.matched(target) == last
        {
            self.raft.raft.send_timeout_now(target);
        }
    }

    /// Remembers that the leader wants this replica to lead, if it does not campaign at once.
    pub(super) fn note_told_to_lead(&mut self, turn: &Turn<'_>, by: u64, term: u64) {
        if term == self.term() && self.raft.raft.state == StateRole::Follower {
            self.told_to_lead = Some(ToldToLead { by, term, at: turn.now });
        }
    }

    /// Campaigns as it was told to, if what was in the way is applied now.
    pub(super) fn lead_as_told(&mut self, turn: &Turn<'_>) {
        let Some(told) = self.told_to_lead.take() else { return };
        let stale = turn.now.since(told.at) >= turn.shared.config.election_timeout();
        let may = told.term == self.term() && self.raft.raft.state == StateRole::Follower && !stale;
        if !may || turn.shared.draining || self.installs_snapshot() {
            return;
        }
        let mut message = Message { from: told.by, to: self.replica, term: told.term, ..Default::default() };
        message.set_msg_type(MessageType::MsgTimeoutNow);
        // One that Raft refuses is as good as lost.
        drop(self.raft.step(message));
        if self.term() == told.term {
            self.told_to_lead = Some(told);
        }
    }

    /// Looks whether a transfer under way has come to its end.
    pub(super) fn follow_transfer(&mut self, turn: &mut Turn<'_>) {
        let Some((order, begun_in)) = self.transfer else { return };
        if self.term() > begun_in
            && let Some(leader) = self.leader()
        {
            self.transfer = None;
            let answer = if leader == order.to { Ok((leader, self.term())) } else { Err(self.not_leader()) };
            turn.effects.transfers.push((order.token, answer));
        }
    }

    pub(super) fn expire_transfer(&mut self, turn: &mut Turn<'_>) {
        let Some((order, _)) = self.transfer else { return };
        let given_up = self.leads() && self.raft.raft.lead_transferee.is_none();
        if given_up || order.deadline <= turn.now {
            self.transfer = None;
            let reason = format!("node {} did not take the range over in time; it may be down or behind", order.to.0);
            turn.effects.transfers.push((order.token, Err(Error::Unavailable { reason })));
        }
    }

    /// Hands the range over because the node is to end, if this replica leads and somebody else can.
    pub(crate) fn hand_over(&mut self, turn: &Turn<'_>) {
        if !self.leads() || self.raft.raft.lead_transferee.is_some() {
            return;
        }
        let fast = |id: &u64| !self.is_slow_there(turn, *id);
        if let Some(target) = self.best_voter(turn, fast).or_else(|| self.best_voter(turn, |_| true)) {
            self.begin_hand_over(turn, target);
        }
    }

    /// Of the voters that were heard of and are `fit`, the one that was asked least often to lead, and is furthest: one that
    /// refuses, because it is to end itself, is not asked again before the others were.
    ///
    /// What Raft says of who is active is no help: it forgets that with each check of its quorum, and a transfer that
    /// fails ends with such a check. The next attempt comes a tick later, and would pass over whoever was not heard of just
    /// then: where answers come less often than ticks, it would ask the same voter in vain again and again, or nobody.
    pub(super) fn best_voter(&self, turn: &Turn<'_>, fit: impl Fn(&u64) -> bool) -> Option<u64> {
        let may = |id: &u64| *id != self.replica && self.voters.contains(id) && self.is_heard(turn, *id) && fit(id);
        let candidates = self.raft.raft.prs().iter().filter(|(id, _)| may(id));
        let asked = |id: &u64| self.hand_overs.get(id).copied().unwrap_or_default();
        // By id where equally far: the order of Raft's map is not that of the seed.
        let best = candidates
            .max_by_key(|(id, progress)| (Reverse(asked(id)), self.voted_before(**id), progress.matched, **id));
        best.map(|(id, _)| *id)
    }
}

fn hold(shared: &Shared) -> Duration {
    shared.config.tick * HOLD_TICKS
}
