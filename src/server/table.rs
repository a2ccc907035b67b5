//! The routing table of a node: where every range of the cluster is, as far as is known here.
//!
//! Soft state. Its own replicas say most about their ranges; the rest comes from placement's answers, or, while the
//! system range is down, from other nodes. The newest descriptor counts (by version, then conf_ver), and what
//! overlaps with a newer one goes.
//!
//! A node may know a million ranges and be asked for them all the time: whoever asks for some pays for these, not for all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_engine::store::ReadView;
use flotilla_node::Node;
use flotilla_placement::{Learned, Route};
use flotilla_proto::ids::{DEFAULT_KEYSPACE, DEFAULT_KEYSPACE_NAME};
use flotilla_proto::{Error, Result, v1};
use tokio::sync::watch;

use super::listing;
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

    /// What is known by now, with what this node's replicas say.
    fn known(&self) -> MutexGuard<'_, Learned> {
        // Each change is a single one, so a panic elsewhere does no harm.
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        for (range, view) in self.node.own_changes() {
            learned.own(range.0, view.as_deref().map(own_route));
        }
        learned
    }

    /// Counts what was learned.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Which version of the list of nodes is known here, of the reign that told it.
    pub(super) fn nodes_version(&self) -> u64 {
        self.known().nodes_version
    }

    /// How far placement's table has come here.
    pub(super) fn sequence(&self) -> u64 {
        self.known().sequence
    }

    /// Whether nobody has told anything yet: neither placement nor another node.
    pub(super) fn is_empty(&self) -> bool {
        self.known().is_empty()
    }

    /// Whether requests can be routed: some range is known.
    pub(super) fn is_ready(&self) -> bool {
        !self.known().ranges.is_empty()
    }

    /// Takes an answer of placement in.
    pub(super) fn answered(&self, answer: &v1::ReportResponse) {
        let changed = self.known().answered(answer);
        if changed {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// Takes another node's routes in.
    pub(super) fn told(&self, routes: &v1::ListRangesResponse) {
        self.known().told(routes);
        self.changes.send_modify(|count| *count += 1);
    }

    /// The ranges of which something else is known than at the last call. For one caller.
    pub(super) fn take_changed(&self) -> Vec<v1::RangeStatus> {
        self.known().take_changed()
    }

    /// Whether something holds of all ranges.
    pub(crate) fn all(&self, holds: impl Fn(&Route) -> bool) -> bool {
        self.known().ranges.iter().all(holds)
    }

    /// A part of the ranges of a keyspace (empty: of all), by keyspace and key: those behind a place, as many as fit into
    /// an answer. The first part tells of keyspaces and nodes too.
    ///
    /// Errors: *fail*: [`Error::KeyspaceNotFound`].
    pub(super) fn list(&self, keyspace: &str, after: Option<&v1::RangePlace>) -> Result<v1::ListRangesResponse> {
        let learned = self.known();
        let of = match keyspace {
            "" => None,
            name => Some(id_of(&learned, name)?),
        };
        let first = (of.unwrap_or(0), &[][..]);
        let (from, key) = after.map_or(first, |place| (place.keyspace_id, &place.start[..]));
        let behind = learned.ranges.behind(from, key, after.is_none());
        let wanted = |route: &&Route| of.is_none_or(|of| keyspace_of(route) == of);
        let (ranges, more) = listing::part(behind.take_while(wanted));
        let (nodes, keyspaces) = match after {
            None => (self.counted(&learned), learned.keyspaces.clone()),
            Some(_) => (Vec::new(), Vec::new()),
        };
        Ok(v1::ListRangesResponse { ranges, nodes, keyspaces, cluster_id: self.node.cluster_id(), more })
    }

    /// The ranges that somebody looks for, with neighbours; and whether all of them are known.
    ///
    /// Errors: *fail*: [`Error::KeyspaceNotFound`]: as far as is known here.
    pub(super) fn look_up(&self, keyspace: &str, lookup: &v1::RangeLookup) -> Result<(v1::ListRangesResponse, bool)> {
        let learned = self.known();
        let mut answer = v1::ListRangesResponse { cluster_id: self.node.cluster_id(), ..Default::default() };
        let mut complete = true;
        if lookup.range_id != 0 {
            let route = learned.ranges.get(lookup.range_id);
            complete = route.is_some();
            answer.ranges.extend(route.map(Route::status));
        }
        if lookup.range_id == 0 || !lookup.keys.is_empty() || !lookup.before.is_empty() {
            let id = id_of(&learned, or_default(keyspace))?;
            complete &= listing::found(&learned.ranges, id, lookup, &mut answer.ranges);
            answer.keyspaces.extend(learned.keyspaces.iter().find(|of| of.keyspace_id == id).cloned());
        }
        answer.nodes = listing::needed(self.node.nodes(), &answer.ranges);
        Ok((answer, complete))
    }

    /// Whether the ranges of a keyspace that are known here hold every key of it.
    pub(super) fn tiles(&self, keyspace: &str) -> bool {
        let learned = self.known();
        let Ok(id) = id_of(&learned, keyspace) else { return false };
        let of_it = learned.ranges.behind(id, &[], true).take_while(|route| keyspace_of(route) == id);
        listing::tiles(of_it.map(|route| &*route.descriptor))
    }

    /// The ranges with larger ids than this one, by their ids, as many as one wants.
    pub(super) fn descriptors_above(&self, range: u64, most: usize) -> Vec<v1::RangeDescriptor> {
        let learned = self.known();
        learned.ranges.with_ids_above(range).map(|route| (*route.descriptor).clone()).take(most).collect()
    }

    /// The nodes, with how much each of them has.
    pub(super) fn nodes(&self) -> Vec<v1::NodeInfo> {
        self.counted(&self.known())
    }

    fn counted(&self, learned: &Learned) -> Vec<v1::NodeInfo> {
        let mut nodes = self.node.nodes();
        let at: BTreeMap<u64, usize> = nodes.iter().enumerate().map(|(at, node)| (node.node_id, at)).collect();
        for route in learned.ranges.iter() {
            for replica in &route.descriptor.replicas {
                let Some(node) = at.get(&replica.node_id).and_then(|at| nodes.get_mut(*at)) else { continue };
                node.replicas += 1;
                node.data_bytes += route.data_bytes;
            }
            if let Some(leader) = at.get(&route.leader_node_id).and_then(|at| nodes.get_mut(*at)) {
                leader.leaders += 1;
            }
        }
        for node in &mut nodes {
            if let Some(record) = learned.nodes.iter().find(|record| record.node_id == node.node_id) {
                node.draining = record.draining;
                node.labels.clone_from(&record.labels);
                node.decommissioning = record.decommissioning;
                node.decommission_from = record.decommission_from;
                node.maintenance_left_ms = record.maintenance_left_ms;
            }
        }
        nodes
    }

    /// The keyspaces that are known here.
    pub(super) fn keyspaces(&self) -> Vec<v1::Keyspace> {
        self.known().keyspaces.clone()
    }

    /// Whether a keyspace of this name is known, and not dropped.
    pub(super) fn has_keyspace(&self, name: &str) -> bool {
        let keyspaces = &self.known().keyspaces;
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
    pub(super) async fn look_for_range(&self, news: &News, range: u64) -> Option<Route> {
        if let Some(known) = self.range(range) {
            return Some(known);
        }
        news.exchange().await;
        self.range(range)
    }

    /// The range with this id.
    pub(crate) fn range(&self, range: u64) -> Option<Route> {
        self.known().ranges.get(range).cloned()
    }
}

/// The name of the keyspace that is meant by who names none.
pub(super) fn or_default(keyspace: &str) -> &str {
    if keyspace.is_empty() { DEFAULT_KEYSPACE_NAME } else { keyspace }
}

/// The keyspace of this name, dropped or not. The default one is known before anybody has told of keyspaces.
fn id_of(learned: &Learned, name: &str) -> Result<u64> {
    if name == DEFAULT_KEYSPACE_NAME && learned.is_empty() {
        return Ok(DEFAULT_KEYSPACE.0);
    }
    let known = learned.keyspaces.iter().find(|of| of.name == name).map(|of| of.keyspace_id);
    known.ok_or_else(|| Error::KeyspaceNotFound { name: name.into() })
}

fn keyspace_of(route: &Route) -> u64 {
    route.descriptor.keyspace_id
}

/// What a replica of this node says of its range.
fn own_route(view: &ReadView) -> Route {
    Route {
        descriptor: Arc::clone(&view.descriptor),
        leader_node_id: view.leader.map_or(0, |node| node.0),
        term: view.term,
        data_bytes: 0,
        load: None,
    }
}
