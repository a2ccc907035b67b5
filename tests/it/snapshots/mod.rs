//! Large snapshots between real nodes: one range that moves from node to node.

mod memory;
mod steps;

use std::collections::BTreeSet;
use std::time::Duration;

use flotilla_proto::ids::{DEFAULT_KEYSPACE, SYSTEM_RANGE};
use flotilla_proto::{NodeId, RangeId, v1};
use flotilla_router::Client;

use crate::support::cluster::{Cluster, http_get};
use crate::support::{eventually, runtime};

const NODES: u64 = 4;

/// A cluster of four whose one range of data moves between three of them.
struct Moving {
    cluster: Cluster,
    client: Client,
    runtime: tokio::runtime::Runtime,
    range: RangeId,
    /// Has the range, and keeps it: so the nodes have about as much each, and nothing moves but what we move.
    home: u64,
}

/// One move.
#[derive(Clone, Copy, Debug)]
struct Move {
    leader: u64,
    from: u64,
    to: u64,
}

/// The nodes of a range's replicas, if all of them vote; and its leader.
fn voters(status: &v1::RangeStatus) -> Option<(BTreeSet<u64>, u64)> {
    let replicas = &status.descriptor.as_ref()?.replicas;
    let settled = replicas.iter().all(|replica| replica.role() == v1::ReplicaRole::Voter);
    settled.then(|| (replicas.iter().map(|replica| replica.node_id).collect(), status.leader_node_id))
}

impl Moving {
    /// Starts a cluster that was laid out, and finds its range once no node has much more than another.
    fn start(mut cluster: Cluster) -> Self {
        cluster.start_all();
        let runtime = runtime();
        let client = runtime.block_on(cluster.client(Duration::from_secs(30)));
        let (mut range, mut home) = (RangeId(0), 0);
        eventually("replicas to be spread", || {
            let routes = runtime.block_on(client.list_ranges()).map(|routes| routes.ranges).unwrap_or_default();
            let find = |wanted: &dyn Fn(&v1::RangeDescriptor) -> bool| {
                routes.iter().find(|status| status.descriptor.as_ref().is_some_and(wanted))
            };
            let system = find(&|range| range.range_id == SYSTEM_RANGE.0).and_then(voters);
            let data = find(&|range| range.keyspace_id == DEFAULT_KEYSPACE.0);
            let (Some((system, _)), Some(data)) = (system, data) else { return false };
            let Some((nodes, _)) = voters(data) else { return false };
            range = RangeId(data.descriptor.as_ref().map_or(0, |range| range.range_id));
            home = (1..=NODES).find(|id| !system.contains(id)).unwrap_or(0);
            system.len() == 3 && nodes.len() == 3 && nodes.contains(&home)
        });
        Self { cluster, client, runtime, range, home }
    }

    /// The range's nodes and its leader, once it has one and is not being changed.
    fn replicas(&self) -> (BTreeSet<u64>, u64) {
        let mut found = (BTreeSet::new(), 0);
        eventually("the range to have a leader", || {
            let answer = self.runtime.block_on(self.client.get_range(self.range, None));
            let Some(now) = answer.ok().and_then(|answer| voters(&answer.status?)) else { return false };
            found = now;
            found.0.len() == 3 && found.0.contains(&found.1)
        });
        found
    }

    /// The next move: from a follower to the node without a replica.
    fn next(&self) -> Move {
        let (nodes, leader) = self.replicas();
        let to = (1..=NODES).find(|id| !nodes.contains(id)).expect("three of four have it");
        let from = *nodes.iter().find(|id| **id != leader && **id != self.home).expect("two besides the one at home");
        Move { leader, from, to }
    }

    fn order(&self, Move { from, to, .. }: Move) {
        // A node that has just come back is silent to the placement service until it has reported.
        eventually("the move to be allowed", || {
            self.runtime.block_on(self.client.move_replica(self.range, NodeId(from), NodeId(to), None)).is_ok()
        });
    }

    /// Whether the move is done; `None`: not said, or the range is being changed.
    fn is_done(&self, Move { from, to, .. }: Move) -> Option<bool> {
        let answer = self.runtime.block_on(self.client.get_range(self.range, None));
        let (nodes, _) = voters(&answer.ok()?.status?)?;
        Some(nodes.contains(&to) && !nodes.contains(&from))
    }

    /// Waits until the move is done. Where the machine has a lot to do, a node may be gone for so long that placement gives
    /// the move up: then it is ordered again.
    fn wait_done(&self, what: &str, wanted: Move) {
        eventually(what, || {
            let done = self.is_done(wanted);
            if done == Some(false) {
                // Refused as long as the move is under way.
                let again = self.client.move_replica(self.range, NodeId(wanted.from), NodeId(wanted.to), None);
                self.runtime.block_on(again).ok();
            }
            done == Some(true)
        });
    }

    /// A figure of a running node.
    fn metric(&self, id: u64, name: &str) -> u64 {
        let (_, text) = http_get(&self.cluster.node(id).http, "/metrics").expect("the node runs");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|number| number.parse::<f64>().ok()).expect("a number") as u64
    }

    fn staged(&self, id: u64) -> usize {
        std::fs::read_dir(self.cluster.node(id).data.join("snap")).expect("it can be listed").count()
    }
}
