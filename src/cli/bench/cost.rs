//! What the servers spent: the difference of all nodes' counters before and after.

use std::collections::BTreeMap;

use flotilla_proto::{NodeId, v1};
use flotilla_router::Client;

use crate::cli::failure::Result;

/// All nodes' counters at one time.
#[derive(Debug)]
pub struct Counters {
    /// By node: when its process started (as far as its uptime tells), and its counters.
    nodes: BTreeMap<u64, (u64, v1::NodeCounters)>,
}

/// What all nodes together spent between two readings.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// CPU time, in microseconds.
    pub cpu_micros: u64,
    /// Syncs of the logs.
    pub syncs: u64,
    /// Bytes given to disks.
    pub disk_bytes: u64,
    /// Raft messages sent.
    pub raft_messages: u64,
    /// Entries appended.
    pub log_entries: u64,
    /// Bytes sent between nodes.
    pub peer_bytes: u64,
}

impl Counters {
    /// Asks every node that is up.
    pub async fn read(client: &Client) -> Result<Self> {
        let mut nodes = BTreeMap::new();
        for node in client.list_nodes().await? {
            if node.client_addr.is_empty() || !node.live {
                continue;
            }
            // One that has just gone, and counts as live for a moment yet: told like a restart.
            let Ok(status) = client.node_status(NodeId(node.node_id)).await else { continue };
            let boot = status.node.as_ref().map_or(0, |node| node.boot_id);
            nodes.insert(node.node_id, (boot, status.counters.unwrap_or_default()));
        }
        Ok(Self { nodes })
    }

    /// What was spent since `before`; `None` if a node came, went or started anew meanwhile.
    pub fn since(&self, before: &Self) -> Option<Cost> {
        if self.nodes.len() != before.nodes.len() {
            return None;
        }
        let mut cost = Cost::default();
        for (node, (boot, now)) in &self.nodes {
            let (boot_before, then) = before.nodes.get(node)?;
            if boot != boot_before {
                return None;
            }
            cost.cpu_micros += now.cpu_micros.checked_sub(then.cpu_micros)?;
            cost.syncs += now.wal_syncs.checked_sub(then.wal_syncs)?;
            cost.disk_bytes += now.disk_bytes_written.checked_sub(then.disk_bytes_written)?;
            cost.raft_messages += now.raft_messages_sent.checked_sub(then.raft_messages_sent)?;
            cost.log_entries += now.log_entries.checked_sub(then.log_entries)?;
            cost.peer_bytes += now.peer_bytes_sent.checked_sub(then.peer_bytes_sent)?;
        }
        Some(cost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(boot: u64, syncs: u64) -> Counters {
        let counters = v1::NodeCounters { wal_syncs: syncs, ..Default::default() };
        Counters { nodes: (1..=3).map(|node| (node, (boot, counters))).collect() }
    }

    #[test]
    fn costs_are_summed_over_nodes_and_not_told_over_a_restart() {
        assert_eq!(counters(1, 5).since(&counters(1, 2)).map(|cost| cost.syncs), Some(9));
        assert_eq!(counters(2, 5).since(&counters(1, 2)), None);
        let mut fewer = counters(1, 5);
        fewer.nodes.remove(&2);
        assert_eq!(fewer.since(&counters(1, 2)), None);
    }
}
