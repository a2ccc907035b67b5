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
    /// The fewest voters that any node knows any range to have.
    pub voters_min: usize,
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

    /// Whether all these nodes answer, and every range has a leader and so many replicas.
    pub fn complete(&self, nodes: usize, replicas: usize) -> bool {
        let leaders = self.leaders();
        let whole = self.nodes.len() == nodes && self.voters_min >= replicas;
        whole && !leaders.is_empty() && leaders.values().all(Option::is_some)
    }
}

fn voters(range: &v1::RangeDescriptor) -> usize {
    range.replicas.iter().filter(|replica| replica.role() == v1::ReplicaRole::Voter).count()
}

/// Connections to all nodes.
#[derive(Clone, Debug)]
pub struct Nodes {
    admins: BTreeMap<u64, AdminClient<Channel>>,
}

impl Nodes {
    /// Connections that are made when they are first used, and again after they broke.
    pub fn new(plan: &Plan) -> Result<Self> {
        let mut nodes = Self { admins: BTreeMap::new() };
        plan.nodes.iter().try_for_each(|node| nodes.add(node))?;
        Ok(nodes)
    }

    /// One more.
    pub fn add(&mut self, node: &NodePlan) -> Result {
        let endpoint = Endpoint::from_shared(format!("http://{}", node.client))
            .map_err(|error| Failure::failed(format!("address {}: {error}", node.client)))?;
        let channel = endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(ANSWER_TIMEOUT).connect_lazy();
        self.admins.insert(node.id, AdminClient::new(channel));
        Ok(())
    }

    /// Asks these nodes for their ranges; who does not answer is left out.
    pub async fn views(&self, nodes: impl IntoIterator<Item = u64>) -> Views {
        let mut asked = JoinSet::new();
        for node in nodes {
            let Some(mut admin) = self.admins.get(&node).cloned() else { continue };
            asked.spawn(async move {
                let answer = admin.list_ranges(v1::ListRangesRequest::default()).await.ok()?.into_inner();
                let voters = answer.ranges.iter().filter_map(|status| status.descriptor.as_ref()).map(voters).min();
                let ranges = answer.ranges.into_iter();
                let leaders = ranges.filter_map(|status| Some((status.descriptor?.range_id, status.leader_node_id)));
                Some((node, leaders.collect(), voters.unwrap_or(0)))
            });
        }
        let mut views = Views { voters_min: usize::MAX, ..Views::default() };
        while let Some(joined) = asked.join_next().await {
            if let Ok(Some((node, leaders, voters))) = joined {
                views.voters_min = views.voters_min.min(voters);
                views.nodes.insert(node, leaders);
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

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Each node's leaders, in order of the ranges from 2.
    pub fn views(nodes: &[(u64, &[u64])]) -> Views {
        let ranges =
            |leaders: &[u64]| leaders.iter().enumerate().map(|(at, leader)| (at as u64 + 2, *leader)).collect();
        Views { nodes: nodes.iter().map(|(node, leaders)| (*node, ranges(leaders))).collect(), voters_min: 3 }
    }

    #[test]
    fn a_leader_is_one_by_its_own_word() {
        // Node 1 still takes node 3 for the leader of range 3, node 2 leads it by now.
        let seen = views(&[(1, &[1, 3]), (2, &[1, 2])]);
        assert_eq!(seen.leaders(), Leaders::from([(2, Some(1)), (3, Some(2))]));
        let rumour = views(&[(1, &[1, 3]), (2, &[1, 3])]);
        assert_eq!(rumour.leaders(), Leaders::from([(2, Some(1)), (3, None)]));
        assert!(seen.complete(2, 3) && !rumour.complete(2, 3) && !seen.complete(3, 3) && !seen.complete(2, 4));
        assert!(!views(&[(1, &[]), (2, &[])]).complete(2, 3));
    }
}
