//! What the nodes say: asked one by one, over connections of the supervisor's own.
//!
//! The client library would answer from any node; here each node's own view counts. A range has a
//! leader when a node that answers says so of itself.

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_proto::v1;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use v1::admin_client::AdminClient;

use super::plan::{NodePlan, Plan};
use crate::cli::failure::{Failure, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_millis(200);
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// Range -> the node that leads it, by the leader's own word; `None`: no node says so.
pub type Leaders = BTreeMap<u64, Option<u64>>;

/// The nodes' answers at one time.
#[derive(Clone, Debug, Default)]
pub struct Views {
    /// Node -> range -> leader, as that node knows it (0: it knows none).
    pub nodes: BTreeMap<u64, BTreeMap<u64, u64>>,
    /// Range -> replicas with a lasting vote, by the newest descriptor that any node knows.
    pub voters: BTreeMap<u64, ((u64, u64), usize)>,
}

impl Views {
    /// Who leads what.
    pub fn leaders(&self) -> Leaders {
        let mut leaders = Leaders::new();
        for (node, ranges) in &self.nodes {
            for (range, leader) in ranges {
                let known = leaders.entry(*range).or_default();
                if leader == node {
                    *known = Some(*node);
                }
            }
        }
        leaders
    }

    /// Whether every range has so many replicas with a vote.
    pub fn replicated(&self, replicas: usize) -> bool {
        self.voters.values().all(|(_, voters)| *voters >= replicas)
    }

    fn note(&mut self, node: u64, ranges: Vec<v1::RangeStatus>) {
        let leaders = self.nodes.entry(node).or_default();
        for status in ranges {
            let Some(descriptor) = status.descriptor else { continue };
            leaders.insert(descriptor.range_id, status.leader_node_id);
            let epoch = descriptor.epoch.unwrap_or_default();
            let voters = descriptor.replicas.iter().filter(|replica| replica.role() == v1::ReplicaRole::Voter).count();
            let seen = ((epoch.version, epoch.conf_ver), voters);
            let known = self.voters.entry(descriptor.range_id).or_insert(seen);
            *known = seen.max(*known);
        }
    }

    /// Whether all these nodes answer, and every range has a leader.
    pub fn complete(&self, nodes: usize) -> bool {
        let leaders = self.leaders();
        self.nodes.len() == nodes && !leaders.is_empty() && leaders.values().all(Option::is_some)
    }
}

/// Connections to all nodes.
#[derive(Clone, Debug)]
pub struct Nodes {
    admins: BTreeMap<u64, AdminClient<Channel>>,
}

impl Nodes {
    /// Connections that are made when they are first used, and again after they broke.
    pub fn new(plan: &Plan) -> Result<Self> {
        let mut admins = BTreeMap::new();
        for node in &plan.nodes {
            admins.insert(node.id, connection(node)?);
        }
        Ok(Self { admins })
    }

    /// One more.
    pub fn add(&mut self, node: &NodePlan) -> Result {
        self.admins.insert(node.id, connection(node)?);
        Ok(())
    }

    /// Which node answers where `node` belongs.
    pub async fn identify(&self, node: u64) -> Option<u64> {
        let mut admin = self.admins.get(&node)?.clone();
        let status = admin.node_status(v1::NodeStatusRequest {}).await.ok()?.into_inner();
        Some(status.node?.node_id)
    }

    /// Asks these nodes for their ranges; who does not answer is left out.
    pub async fn views(&self, nodes: impl IntoIterator<Item = u64>) -> Views {
        let mut asked = JoinSet::new();
        for node in nodes {
            let Some(mut admin) = self.admins.get(&node).cloned() else { continue };
            asked.spawn(async move {
                let mut request = v1::ListRangesRequest::default();
                let mut ranges: Vec<v1::RangeStatus> = Vec::new();
                loop {
                    let part = admin.list_ranges(request.clone()).await.ok()?.into_inner();
                    ranges.extend(part.ranges);
                    let last = ranges.last().and_then(|route| route.descriptor.as_ref()).filter(|_| part.more);
                    let Some(last) = last else { return Some((node, ranges)) };
                    let place = v1::RangePlace { keyspace_id: last.keyspace_id, start: last.start.clone() };
                    request.after = Some(place);
                }
            });
        }
        let mut views = Views::default();
        while let Some(joined) = asked.join_next().await {
            if let Ok(Some((node, ranges))) = joined {
                views.note(node, ranges);
            }
        }
        views
    }

    /// A node's own state, if it answers and is the node that belongs there.
    pub async fn status(&self, node: u64) -> Option<v1::NodeStatusResponse> {
        let mut admin = self.admins.get(&node)?.clone();
        let status = admin.node_status(v1::NodeStatusRequest {}).await.ok()?.into_inner();
        (status.node.as_ref()?.node_id == node).then_some(status)
    }

    /// A range as its replica on `node` sees it.
    pub async fn replica(&self, node: u64, range_id: u64) -> Option<v1::ReplicaStatus> {
        let mut admin = self.admins.get(&node)?.clone();
        admin.get_range(v1::GetRangeRequest { range_id, local: true }).await.ok()?.into_inner().replica
    }
}

fn connection(node: &NodePlan) -> Result<AdminClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{}", node.client))
        .map_err(|error| Failure::failed(format!("address {}: {error}", node.client)))?;
    Ok(AdminClient::new(endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(ANSWER_TIMEOUT).connect_lazy()))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Each node's leaders, in order of the ranges from 2.
    pub fn views(nodes: &[(u64, &[u64])]) -> Views {
        let mut views = Views::default();
        for (node, leaders) in nodes {
            views.note(*node, leaders.iter().zip(2..).map(|(leader, range)| status(range, 1, 3, *leader)).collect());
        }
        views
    }

    fn status(range_id: u64, conf_ver: u64, voters: u64, leader_node_id: u64) -> v1::RangeStatus {
        let replica = |node_id| v1::ReplicaDescriptor { node_id, replica_id: node_id, ..Default::default() };
        let epoch = Some(v1::Epoch { conf_ver, version: 1 });
        let replicas = (1..=voters).map(replica).collect();
        let descriptor = Some(v1::RangeDescriptor { range_id, epoch, replicas, ..Default::default() });
        v1::RangeStatus { descriptor, leader_node_id, ..Default::default() }
    }

    #[test]
    fn the_newest_descriptor_says_how_many_replicas_there_are() {
        let mut seen = Views::default();
        seen.note(1, vec![status(2, 3, 3, 1), status(3, 1, 1, 1)]);
        seen.note(2, vec![status(2, 2, 1, 1)]);
        assert!(seen.replicated(1) && !seen.replicated(2));
        seen.note(2, vec![status(3, 5, 3, 1)]);
        assert!(seen.replicated(3));
    }

    #[test]
    fn a_leader_is_one_by_its_own_word() {
        // Node 1 still takes node 3 for the leader of range 3, node 2 leads it by now.
        let seen = views(&[(1, &[1, 3]), (2, &[1, 2])]);
        assert_eq!(seen.leaders(), Leaders::from([(2, Some(1)), (3, Some(2))]));
        let rumour = views(&[(1, &[1, 3]), (2, &[1, 3])]);
        assert_eq!(rumour.leaders(), Leaders::from([(2, Some(1)), (3, None)]));
        assert!(seen.complete(2) && !rumour.complete(2) && !seen.complete(3));
        assert!(!views(&[(1, &[]), (2, &[])]).complete(2));
    }
}
