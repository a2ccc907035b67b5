//! What a replica tells about itself.

use raft::{ProgressState, StateRole};

use flotilla_proto::v1;

use super::Range;
use crate::config::Config;
use crate::store::RangeSummary;
use crate::time::BootTime;

fn role_name(role: StateRole) -> &'static str {
    match role {
        StateRole::Follower => "follower",
        StateRole::PreCandidate => "pre-candidate",
        StateRole::Candidate => "candidate",
        StateRole::Leader => "leader",
    }
}

fn progress_name(state: ProgressState) -> &'static str {
    match state {
        ProgressState::Probe => "probe",
        ProgressState::Replicate => "replicate",
        ProgressState::Snapshot => "snapshot",
    }
}

impl Range {
    /// The replica's state, for people.
    pub(crate) fn status(&self, node: u64, now: BootTime) -> v1::GetRangeResponse {
        let raft = &self.raft.raft;
        let mut followers: Vec<v1::FollowerProgress> = Vec::new();
        if self.leads() {
            let others = raft.prs().iter().filter(|(id, _)| **id != self.replica);
            followers.extend(others.map(|(id, progress)| v1::FollowerProgress {
                node_id: self.node_of(*id).unwrap_or_default().0,
                replica_id: *id,
                matched_index: progress.matched,
                state: progress_name(progress.state).into(),
                recently_active: progress.recent_active,
            }));
            followers.sort_by_key(|follower| follower.replica_id);
        }
        let (order_id, order_waits) = self.order_state();
        let replica = v1::ReplicaStatus {
            node_id: node,
            replica_id: self.replica,
            role: role_name(raft.state).into(),
            term: raft.term,
            commit_index: raft.raft_log.committed,
            applied_index: self.applied.0,
            last_index: raft.raft_log.last_index(),
            truncated_index: self.raft.store().truncated().0,
            lease_remaining_ms: u64::try_from(self.view.lease_until.since(now).as_millis()).unwrap_or(u64::MAX),
            followers,
            proposal_bytes: self.proposals.bytes() as u64,
            applied_checksum: self.checksum,
            order_id,
            order_waits: order_waits.into(),
            recoveries: self.recoveries().to_vec(),
        };
        v1::GetRangeResponse {
            status: Some(v1::RangeStatus {
                descriptor: Some((*self.descriptor).clone()),
                leader_node_id: self.leader().unwrap_or_default().0,
                term: raft.term,
                data_bytes: self.size.bytes(),
                load: self.load.as_ref().map(|load| load.rates()),
            }),
            replica: Some(replica),
        }
    }

    /// The replica's state, for metrics and checkers.
    pub(crate) fn summary(&self, now: BootTime, config: &Config) -> RangeSummary {
        let raft = &self.raft.raft;
        let others = self.descriptor.replicas.iter().filter(|of| self.leads() && of.replica_id != self.replica);
        let silent = |of: &&v1::ReplicaDescriptor| {
            let heard = self.heard.get(&of.replica_id).copied().unwrap_or_default();
            now.since(heard) > config.election_timeout()
        };
        let nodes = |of: &v1::ReplicaDescriptor| of.node_id;
        let (order_id, order_waits) = self.order_state();
        RangeSummary {
            range: self.id,
            descriptor: self.descriptor.clone(),
            leader: self.leader(),
            leads: self.leads(),
            hears_leader: self.hears_leader(),
            term: raft.term,
            vote: raft.vote,
            commit: raft.raft_log.committed,
            applied: self.applied.0,
            applied_checksum: self.checksum,
            last_index: raft.raft_log.last_index(),
            last_term: raft.raft_log.last_term(),
            commit_term: raft.raft_log.term(raft.raft_log.committed).unwrap_or_default(),
            truncated: self.raft.store().truncated().0,
            lease_until: self.view.lease_until,
            proposal_bytes: self.proposals.bytes(),
            log_bytes: self.raft.store().log_bytes(),
            replica_id: self.replica,
            data_bytes: self.size.bytes(),
            load: self.load.as_ref().and_then(|load| load.told()),
            silent_nodes: others.clone().filter(silent).map(nodes).collect(),
            level_nodes: others.filter(|of| self.is_level(of.replica_id)).map(nodes).collect(),
            order_id,
            order_waits: order_waits.into(),
            frozen: self.frozen_report(now),
            is_lasting: true,
            asleep: false,
        }
    }
}
