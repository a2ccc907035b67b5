//! The routing table of a node: where every range of the cluster is, as far as is known here.
//!
//! Soft state. Its own replicas say most about their ranges; the rest comes from placement's answers, or, while the
//! system range is down, from other nodes. The newest descriptor counts (by version, then conf_ver), and what
//! overlaps with a newer one goes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_node::Node;
use flotilla_placement::{Learned, is_newer};
use flotilla_proto::{Error, RangeId, Result, v1};
use tokio::sync::watch;

use super::placement::News;

/// See the module. Clones are handles on the same one.
#[derive(Clone, Debug)]
pub(crate) struct RouteTable {
    node: Node,
    learned: Arc<Mutex<Learned>>,
    changes: Arc<watch::Sender<u64>>,
}

impl RouteTable {
    pub(super) fn new(node: Node) -> Self {
        Self { node, learned: Arc::default(), changes: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Learned> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts what was learned.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Which version of the list of nodes is known here, of the reign that told it.
    pub(super) fn nodes_version(&self) -> u64 {
        self.lock().nodes_version
    }

    /// How far placement's table has come here.
    pub(super) fn sequence(&self) -> u64 {
        self.lock().sequence
    }

    /// Whether nobody has told anything yet: neither placement nor another node.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Whether requests can be routed: some range is known.
    pub(super) fn is_ready(&self) -> bool {
        !self.lock().ranges.is_empty() || self.node.has_ranges()
    }

    /// Takes an answer of placement in.
    pub(super) fn answered(&self, answer: &v1::ReportResponse) {
        let changed = self.lock().answered(answer);
        if changed {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// Takes another node's routes in.
    pub(super) fn told(&self, routes: &v1::ListRangesResponse) {
        self.lock().told(routes);
        self.changes.send_modify(|count| *count += 1);
    }

    /// All that is known, in key order.
    pub(crate) fn routes(&self) -> v1::ListRangesResponse {
        let own = self.node.own_routes();
        let (mut all, keyspaces, records) = {
            let learned = self.lock();
            (learned.ranges.clone(), learned.keyspaces.clone(), learned.nodes.clone())
        };
        for route in &own.ranges {
            all.merge(route);
        }
        let ranges = all.into_key_order();
        let mut nodes = own.nodes;
        for node in &mut nodes {
            let on = |route: &&v1::RangeStatus| {
                let replicas = route.descriptor.iter().flat_map(|descriptor| &descriptor.replicas);
                replicas.into_iter().any(|replica| replica.node_id == node.node_id)
            };
            let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
            node.replicas = count(ranges.iter().filter(on).count());
            node.leaders = count(ranges.iter().filter(|route| route.leader_node_id == node.node_id).count());
            node.data_bytes = ranges.iter().filter(on).map(|route| route.data_bytes).sum();
            if let Some(record) = records.iter().find(|record| record.node_id == node.node_id) {
                node.draining = record.draining;
                node.labels.clone_from(&record.labels);
                node.decommissioning = record.decommissioning;
                node.decommission_from = record.decommission_from;
                node.maintenance_left_ms = record.maintenance_left_ms;
            }
        }
        v1::ListRangesResponse { ranges, nodes, keyspaces, cluster_id: own.cluster_id, more: false }
    }

    /// The keyspaces that are known here.
    pub(super) fn keyspaces(&self) -> Vec<v1::Keyspace> {
        self.lock().keyspaces.clone()
    }

    /// Whether a keyspace of this name is known, and not dropped.
    fn has_keyspace(&self, name: &str) -> bool {
        let keyspaces = &self.lock().keyspaces;
        keyspaces.iter().any(|of| of.name == name && of.state() != v1::KeyspaceState::Dropped)
    }

    /// Whether there is a keyspace of this name: unless it is known here, placement decides.
    pub(super) async fn look_for_keyspace(&self, news: &News, name: &str) -> Result<()> {
        if self.has_keyspace(name) {
            return Ok(());
        }
        let asked = news.exchange().await;
        match self.has_keyspace(name) {
            true => Ok(()),
            false if asked => Err(Error::KeyspaceNotFound { name: name.into() }),
            false => {
                let reason = format!(
                    "it does not know keyspace \"{name}\", and the placement service, which knows all, is not reached"
                );
                Err(Error::Unavailable { reason })
            }
        }
    }

    /// The range with this id; what is not known here is asked of placement first.
    pub(super) async fn look_for_range(&self, news: &News, range: u64) -> Option<v1::RangeStatus> {
        if let Some(known) = self.range(range) {
            return Some(known);
        }
        news.exchange().await;
        self.range(range)
    }

    /// The range with this id.
    pub(crate) fn range(&self, range: u64) -> Option<v1::RangeStatus> {
        let own = self.node.own_route(RangeId(range));
        let learned = self.lock().ranges.get(range).cloned();
        match (own, learned) {
            (Some(own), Some(learned)) if is_newer(&learned, &own) => Some(learned),
            (own, learned) => own.or(learned),
        }
    }
}
