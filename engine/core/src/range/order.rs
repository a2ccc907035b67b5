//! Placement's orders, carried out by the range's leader.
//!
//! Each step follows from the descriptor of the moment: learners are added, promoted when they are level, together
//! with the going of those that they replace (a joint configuration), the joint configuration is left. So an order
//! can be given again, to another leader too, and goes on where it stands; a joint configuration that a leader
//! finds is left without any order. The leader has the last word: no step is taken that would leave the range
//! without a quorum of voters that are alive and level.

use flotilla_mutants::Mutant;
use flotilla_proto::{Error, NodeId, RangeId, v1};
use raft::ProgressState;

use super::change::Kind;
use super::{Range, Turn};
use crate::membership;
use crate::store::Wish;

/// The next thing to do for an order.
enum Step {
    /// Change the replicas to these; the number is the next replica's id.
    Change(Vec<v1::ReplicaDescriptor>, u64),
    /// Let this replica lead.
    HandOver(u64),
    /// Merge the range into this one.
    Merge(RangeId),
    /// Nothing can be done now; the words say why.
    Wait(String),
    /// The order is fulfilled.
    Done,
}

/// Why a leader does not ask again at once: without a pause no write would get through.
const ASKED_IN_VAIN: &str = "a replica was asked to lead and did not; it is asked again in a moment";

impl Range {
    /// Takes an order; a newer one replaces it. Only a leader has any: what a former one was told may have been
    /// taken back since.
    pub(crate) fn order(&mut self, order: v1::RangeOrder) {
        // Placement repeats its orders with each answer.
        if self.order.as_ref() == Some(&order) {
            return;
        }
        self.forget_order();
        let contradicts_itself = order.add_nodes.iter().any(|node| order.remove_nodes.contains(node));
        if self.leads() && order.order_id != 0 && !contradicts_itself {
            self.order = Some(order);
        }
    }

    pub(super) fn forget_order(&mut self) {
        self.order = None;
        self.order_waits.clear();
    }

    /// The order in force, and what it waits for.
    pub(crate) fn order_state(&self) -> (u64, &str) {
        (self.order.as_ref().map_or(0, |order| order.order_id), &self.order_waits)
    }

    /// Takes the next step that can be taken.
    pub(super) fn pursue_order(&mut self, turn: &mut Turn<'_>) {
        let idle = self.order.is_none() && !membership::is_joint(&self.descriptor);
        if idle || self.may_change(turn).is_err() {
            return;
        }
        let waits = match self.next_step(turn) {
            Step::Change(replicas, next_replica_id) => self.propose_replicas(turn, replicas, next_replica_id).err(),
            Step::HandOver(replica) => {
                self.begin_hand_over(turn, replica);
                None
            }
            Step::Merge(target) => return turn.wishes.push(Wish::Begin { source: self.id, target }),
            Step::Wait(reason) => Some(reason),
            Step::Done => None,
        };
        self.order_waits = waits.unwrap_or_default();
    }

    /// What became of an order to merge.
    pub(crate) fn note_merge_order(&mut self, begun: Result<(), Error>) {
        self.order_waits = begun.err().map(|error| error.to_string()).unwrap_or_default();
    }

    fn propose_replicas(
        &mut self,
        turn: &Turn<'_>,
        replicas: Vec<v1::ReplicaDescriptor>,
        next_replica_id: u64,
    ) -> Result<(), String> {
        self.check_quorum_of(turn, &membership::voters(&replicas))?;
        self.check_quorum_of(turn, &membership::old_voters(&replicas))?;
        let conf_ver = self.descriptor.epoch.unwrap_or_default().conf_ver;
        let change = v1::ChangeReplicas { conf_ver, replicas, next_replica_id };
        self.propose_change(v1::command::Change::Replicas(change), Kind::Replicas, None)
            .map_err(|error| error.to_string())
    }

    fn next_step(&self, turn: &Turn<'_>) -> Step {
        let next = self.descriptor.next_replica_id;
        if membership::is_joint(&self.descriptor) {
            return self.leave_joint(turn);
        }
        let Some(order) = &self.order else { return Step::Done };
        let role_on = |node: &u64| self.replica_on(NodeId(*node)).map(v1::ReplicaDescriptor::role);
        if let Some(node) = order.add_nodes.iter().find(|node| role_on(node).is_none()) {
            let learner =
                v1::ReplicaDescriptor { replica_id: next, node_id: *node, role: v1::ReplicaRole::Learner.into() };
            let replicas = self.descriptor.replicas.iter().copied().chain([learner]);
            return Step::Change(replicas.collect(), next + 1);
        }
        let goes = |of: &v1::ReplicaDescriptor| order.remove_nodes.contains(&of.node_id);
        let learners = |of: &&v1::ReplicaDescriptor| of.role() == v1::ReplicaRole::Learner;
        if let Some(gone) = self.descriptor.replicas.iter().filter(learners).find(|of| goes(of)) {
            let rest = self.descriptor.replicas.iter().filter(|of| of.replica_id != gone.replica_id);
            return Step::Change(rest.copied().collect(), next);
        }
        let promote: Vec<_> = self
            .descriptor
            .replicas
            .iter()
            .filter(learners)
            .filter(|of| order.add_nodes.contains(&of.node_id))
            .collect();
        let demote: Vec<u64> = self.descriptor.replicas.iter().filter(|of| goes(of)).map(|of| of.node_id).collect();
        let early = Mutant::RemoveBeforeVoter.is_on() && !demote.is_empty();
        let promote = if early { Vec::new() } else { promote };
        if let Some(behind) = promote.iter().find(|of| !self.is_level(of.replica_id)) {
            return Step::Wait(format!("the replica on node {} is not level yet", behind.node_id));
        }
        if promote.is_empty() && demote.is_empty() {
            if let Some(into) = &order.merge_into {
                return match turn.now < self.no_merge_before {
                    true => Step::Wait("a merge was given up a moment ago".into()),
                    false => Step::Merge(RangeId(into.range_id)),
                };
            }
            return self.hand_over_as_ordered(turn, order);
        }
        let promote: Vec<u64> = promote.iter().map(|of| of.node_id).collect();
        let replicas = membership::joint(&self.descriptor, &promote, &demote);
        // The order may be older than what the range has become.
        let fewest = self.voters.len().min(order.replicas as usize).max(1);
        if membership::voters(&replicas).len() < fewest && !early {
            return Step::Wait(format!("fewer than {fewest} voters would be left"));
        }
        Step::Change(replicas, next)
    }

    /// A leader that is to go leads over to one that stays, which then leaves the joint configuration.
    fn leave_joint(&self, turn: &Turn<'_>) -> Step {
        let stays = self.voters.contains(&self.replica);
        if stays {
            return Step::Change(membership::left(&self.descriptor), self.descriptor.next_replica_id);
        }
        // A slow one as the last resort: somebody must end this.
        let level = |id: &u64| self.is_level(*id);
        let fast = |id: &u64| level(id) && !self.is_slow_there(turn, *id);
        match self.best_voter(turn, fast).or_else(|| self.best_voter(turn, level)) {
            Some(replica) if self.may_ask_again(turn) => Step::HandOver(replica),
            Some(_) => Step::Wait(ASKED_IN_VAIN.into()),
            None => Step::Wait("none of the new voters is level and alive".into()),
        }
    }

    fn hand_over_as_ordered(&self, turn: &Turn<'_>, order: &v1::RangeOrder) -> Step {
        if order.leader_node_id == 0 || order.leader_node_id == turn.shared.node.0 {
            return Step::Done;
        }
        match self.replica_on(NodeId(order.leader_node_id)) {
            Some(of) if !self.voters.contains(&of.replica_id) => Step::Wait("the node to lead has no voter".into()),
            Some(of) if !self.is_level(of.replica_id) || !self.is_heard(turn, of.replica_id) => {
                Step::Wait("the replica that is to lead is not level and alive".into())
            }
            Some(of) if self.is_slow_there(turn, of.replica_id) => Step::Wait("the node to lead is slow".into()),
            Some(_) if !self.may_ask_again(turn) => Step::Wait(ASKED_IN_VAIN.into()),
            Some(of) => Step::HandOver(of.replica_id),
            None => Step::Wait(format!("node {} has no replica", order.leader_node_id)),
        }
    }

    /// Whether a replica has a vote that it does not owe to a change still under way. One that has just come may be on a node
    /// that not all others know yet: its campaign would be lost.
    pub(super) fn voted_before(&self, replica: u64) -> bool {
        self.old_voters.is_empty() || self.old_voters.contains(&replica)
    }

    pub(super) fn matched(&self, replica: u64) -> u64 {
        self.raft.raft.prs().get(replica).map_or(0, |progress| progress.matched)
    }

    /// Whether a replica holds all that is committed, or nearly. One that is probed does, if it acknowledged it: in a
    /// range without writes, nothing ends a probe that began with a broken connection.
    pub(super) fn is_level(&self, replica: u64) -> bool {
        let committed = self.raft.raft.raft_log.committed;
        self.raft.raft.prs().get(replica).is_some_and(|progress| {
            let near = progress.matched + self.level_lag >= committed && progress.matched > 0;
            replica == self.replica || (near && progress.state != ProgressState::Snapshot)
        })
    }

    /// Whether a replica was heard of within an election time-out.
    pub(super) fn is_heard(&self, turn: &Turn<'_>, replica: u64) -> bool {
        let heard = self.heard.get(&replica).copied().unwrap_or_default();
        replica == self.replica || turn.now.since(heard) < turn.shared.config.election_timeout()
    }

    /// Whether a quorum of these voters is alive and level; an empty set has nothing to say.
    fn check_quorum_of(&self, turn: &Turn<'_>, voters: &[u64]) -> Result<(), String> {
        let well = voters.iter().filter(|id| self.is_level(**id) && self.is_heard(turn, **id)).count();
        if voters.is_empty() || well > voters.len() / 2 {
            return Ok(());
        }
        Err(format!("{well} of {} voters would be alive and level, which is no quorum", voters.len()))
    }
}
