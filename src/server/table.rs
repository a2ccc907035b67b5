//! The routing table of a node: where every range of the cluster is, as far as is known here.
//!
//! Soft state. Its own replicas say most about their ranges; the rest comes from placement's answers, or, while the
//! system range is down, from other nodes. The newest descriptor counts (by version, then conf_ver), and what
//! overlaps with a newer one goes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_node::Node;
use flotilla_proto::v1;
use tokio::sync::watch;

/// What was learned from others.
#[derive(Debug, Default)]
struct Learned {
    ranges: BTreeMap<u64, v1::RangeStatus>,
    keyspaces: Vec<v1::Keyspace>,
    draining: Vec<u64>,
    /// How far placement's table has come.
    sequence: u64,
}

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

    /// How far placement's table has come here.
    pub(super) fn sequence(&self) -> u64 {
        self.lock().sequence
    }

    /// Whether any keyspace is known.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().keyspaces.is_empty()
    }

    /// Takes an answer of placement in.
    pub(super) fn answered(&self, answer: &v1::ReportResponse) {
        let mut learned = self.lock();
        let mut changed = learned.keyspaces != answer.keyspaces;
        if answer.table_full && !answer.table_incomplete {
            learned.ranges.retain(|id, _| answer.routes.iter().any(|route| range_id(route) == *id));
        }
        for gone in &answer.gone_ranges {
            changed |= learned.ranges.remove(gone).is_some();
        }
        for route in &answer.routes {
            changed |= learned.merge(route);
        }
        learned.sequence = answer.table_sequence;
        learned.keyspaces.clone_from(&answer.keyspaces);
        learned.draining = answer.nodes.iter().filter(|node| node.draining).map(|node| node.node_id).collect();
        drop(learned);
        if changed {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// Takes another node's routes in.
    pub(super) fn told(&self, routes: &v1::ListRangesResponse) {
        let mut learned = self.lock();
        for route in &routes.ranges {
            learned.merge(route);
        }
        if learned.keyspaces.is_empty() {
            learned.keyspaces.clone_from(&routes.keyspaces);
        }
        drop(learned);
        self.changes.send_modify(|count| *count += 1);
    }

    /// All that is known, in key order.
    pub(crate) fn routes(&self) -> v1::ListRangesResponse {
        let own = self.node.own_routes();
        let mut all = Learned::default();
        let (keyspaces, draining) = {
            let learned = self.lock();
            all.ranges.clone_from(&learned.ranges);
            (learned.keyspaces.clone(), learned.draining.clone())
        };
        for route in &own.ranges {
            all.merge(route);
        }
        let mut ranges: Vec<v1::RangeStatus> = all.ranges.into_values().collect();
        ranges.sort_by_cached_key(|route| {
            route.descriptor.as_ref().map(|descriptor| (descriptor.keyspace_id, descriptor.start.clone()))
        });
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
            node.draining = draining.contains(&node.node_id);
        }
        v1::ListRangesResponse { ranges, nodes, keyspaces }
    }

    /// The range with this id.
    pub(crate) fn range(&self, range: u64) -> Option<v1::RangeStatus> {
        let own = self.node.own_routes().ranges.into_iter().find(|route| range_id(route) == range);
        let learned = self.lock().ranges.get(&range).cloned();
        match (own, learned) {
            (Some(own), Some(learned)) if is_newer(&learned, &own) => Some(learned),
            (own, learned) => own.or(learned),
        }
    }
}

fn range_id(route: &v1::RangeStatus) -> u64 {
    route.descriptor.as_ref().map_or(0, |descriptor| descriptor.range_id)
}

/// (version, conf_ver): how new a descriptor is.
fn age(descriptor: &v1::RangeDescriptor) -> (u64, u64) {
    descriptor.epoch.map_or((0, 0), |epoch| (epoch.version, epoch.conf_ver))
}

/// Whether what `one` says of a range is newer than what `other` says.
fn is_newer(one: &v1::RangeStatus, other: &v1::RangeStatus) -> bool {
    let (Some(this), Some(that)) = (&one.descriptor, &other.descriptor) else { return one.descriptor.is_some() };
    (age(this), one.term, one.leader_node_id != 0) > (age(that), other.term, other.leader_node_id != 0)
}

fn overlap(one: &v1::RangeDescriptor, other: &v1::RangeDescriptor) -> bool {
    let before = |end: &[u8], start: &[u8]| !end.is_empty() && end <= start;
    one.keyspace_id == other.keyspace_id && !before(&one.end, &other.start) && !before(&other.end, &one.start)
}

impl Learned {
    /// Takes a route, unless what is known is as new; says whether it did.
    fn merge(&mut self, route: &v1::RangeStatus) -> bool {
        let Some(descriptor) = &route.descriptor else { return false };
        let id = descriptor.range_id;
        match self.ranges.get_mut(&id) {
            Some(known) if !is_newer(route, known) => {
                let grew = known.data_bytes < route.data_bytes && known.descriptor == route.descriptor;
                known.data_bytes = if grew { route.data_bytes } else { known.data_bytes };
                return false;
            }
            Some(known)
                if known
                    .descriptor
                    .as_ref()
                    .is_some_and(|of| (&of.start, &of.end) == (&descriptor.start, &descriptor.end)) =>
            {
                let data_bytes = route.data_bytes.max(known.data_bytes);
                *known = v1::RangeStatus { data_bytes, ..route.clone() };
                return true;
            }
            _ => {}
        }
        let version = |of: &v1::RangeDescriptor| of.epoch.unwrap_or_default().version;
        let shares =
            |other: &v1::RangeStatus| other.descriptor.as_ref().is_some_and(|other| overlap(other, descriptor));
        let others: Vec<(u64, u64)> = self
            .ranges
            .iter()
            .filter(|(other, known)| **other != id && shares(known))
            .map(|(other, known)| (*other, known.descriptor.as_ref().map_or(0, version)))
            .collect();
        if others.iter().any(|(_, theirs)| *theirs >= version(descriptor)) {
            return false;
        }
        for (other, _) in others {
            self.ranges.remove(&other);
        }
        self.ranges.insert(id, route.clone());
        true
    }
}
