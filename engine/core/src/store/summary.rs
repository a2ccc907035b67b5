//! What a replica is doing, told to those who watch it: metrics, checkers, placement, and a person who recovers it.

use std::sync::Arc;

use flotilla_proto::{NodeId, RangeId, v1};

use crate::time::BootTime;

/// What a replica is doing, for metrics and checkers.
#[derive(Clone, Debug, PartialEq)]
pub struct RangeSummary {
    /// The range.
    pub range: RangeId,
    /// The range as this replica has it.
    pub descriptor: Arc<v1::RangeDescriptor>,
    /// The leader's node, as far as it is known.
    pub leader: Option<NodeId>,
    /// Whether this replica leads.
    pub leads: bool,
    /// Whether it leads, or has lately heard of who does.
    pub hears_leader: bool,
    /// Its term.
    pub term: u64,
    /// The replica it voted for in that term; 0: none.
    pub vote: u64,
    /// Its commit index.
    pub commit: u64,
    /// Its applied index.
    pub applied: u64,
    /// Its rolling checksum there.
    pub applied_checksum: u32,
    /// Its last index.
    pub last_index: u64,
    /// The term of the entry there.
    pub last_term: u64,
    /// The term of the entry at the commit index; 0: not known any more.
    pub commit_term: u64,
    /// Its truncated index.
    pub truncated: u64,
    /// Until when its lease runs; zero: none.
    pub lease_until: BootTime,
    /// Bytes of writes under way.
    pub proposal_bytes: usize,
    /// Bytes of its log.
    pub log_bytes: u64,
    /// Its replica's id.
    pub replica_id: u64,
    /// About how many bytes of data it holds.
    pub data_bytes: u64,
    /// Of a leader: how much it is asked for, as it is told: steady, and nothing where it is next to nothing.
    pub load: Option<v1::RangeLoad>,
    /// Of a leader: nodes whose replicas it does not hear from.
    pub silent_nodes: Vec<u64>,
    /// Of a leader: nodes whose replicas hold all that is committed, or nearly.
    pub level_nodes: Vec<u64>,
    /// The order that it carries out; 0: none.
    pub order_id: u64,
    /// Why the order's next step cannot be taken now; empty: it can, or there is none.
    pub order_waits: String,
    /// It stands still, to be merged into its left neighbour.
    pub frozen: Option<v1::FrozenRange>,
    /// Whether a crash cannot undo that the range began here by placement's word. Before that placement must not be
    /// told of it: it would take the range for born, and not let it begin again.
    pub is_lasting: bool,
    /// Whether it sleeps.
    pub asleep: bool,
}

impl RangeSummary {
    /// What placement is told of the replica, which is on this node.
    pub fn report(&self, node: NodeId) -> v1::RangeReport {
        let leader = if self.leads { Some(node) } else { self.leader };
        v1::RangeReport {
            descriptor: Some((*self.descriptor).clone()),
            replica_id: self.replica_id,
            term: self.term,
            leader_node_id: leader.unwrap_or_default().0,
            data_bytes: self.data_bytes,
            silent_nodes: self.silent_nodes.clone(),
            level_nodes: self.level_nodes.clone(),
            order_id: self.order_id,
            order_waits: self.order_waits.clone(),
            frozen: self.frozen.clone(),
            load: self.load,
        }
    }

    /// What an operator's survey is told of the replica, which is on this node ([`super::Input::Survey`]).
    pub fn surveyed(&self, node: NodeId) -> v1::SurveyedReplica {
        let leader = if self.leads { Some(node) } else { self.leader.filter(|_| self.hears_leader) };
        v1::SurveyedReplica {
            descriptor: Some((*self.descriptor).clone()),
            replica_id: self.replica_id,
            term: self.term,
            last_term: self.last_term,
            last_index: self.last_index,
            commit_index: self.commit,
            commit_term: self.commit_term,
            applied_index: self.applied,
            leader_node_id: leader.unwrap_or_default().0,
            data_bytes: self.data_bytes,
            frozen_for_range_id: self.frozen.as_ref().map_or(0, |frozen| frozen.target_range_id),
        }
    }
}
