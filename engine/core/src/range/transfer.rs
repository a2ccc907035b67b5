//! Leader transfer: by order, and when the node stops.
//!
//! Raft brings the target level, then tells it to campaign at once (MsgTimeoutNow). While that is under
//! way nothing is proposed. The order is answered when the target leads; a transfer that did not
//! happen within an election time-out is given up by Raft, and the range goes on as before, without
//! a lease for the rest of the term.

use flotilla_proto::{Error, NodeId, v1};

use super::{Range, Turn};
use crate::store::TransferLeader;

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
        self.raft.transfer_leader(target);
        None
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

    /// Hands the range over to the voter that is furthest and alive, if this replica leads.
    pub(crate) fn hand_over(&mut self) {
        if !self.leads() || self.raft.raft.lead_transferee.is_some() {
            return;
        }
        let candidates = self
            .raft
            .raft
            .prs()
            .iter()
            .filter(|(id, progress)| **id != self.replica && progress.recent_active && self.voters.contains(id));
        // By id where equally far: the order of Raft's map is not that of the seed.
        let best = candidates.max_by_key(|(id, progress)| (progress.matched, **id)).map(|(id, _)| *id);
        if let Some(target) = best {
            self.raft.transfer_leader(target);
        }
    }
}
