//! What is known of the routes of all keyspaces: their names, and a [`RouteCache`] for each.
//!
//! Names come with the nodes' lists. A node may be behind, so a keyspace that a list leaves out is
//! not gone at once: only when it is listed as dropped, or [`MISSES_MAX`] lists in a row leave it
//! out. A list without any keyspace says nothing; the default one is known from the beginning. The
//! system keyspace has a cache, for those who look for its leader, but no name.
//!
//! All of it is of one cluster, the one that the first list was of: a list of another one is refused as a whole.

use std::collections::BTreeMap;

use flotilla_proto::ids::{DEFAULT_KEYSPACE, DEFAULT_KEYSPACE_NAME, SYSTEM_KEYSPACE};
use flotilla_proto::{Error, KeyspaceId, NodeId, RangeId, Result, v1};

use super::cache::{Route, RouteCache};

/// So many lists in a row that leave a keyspace out mean that there is none.
const MISSES_MAX: u32 = 3;

/// The routes of all keyspaces.
#[derive(Clone, Debug)]
pub struct Keyspaces {
    local: Option<NodeId>,
    /// The cluster that all of this is of; 0: nobody has told yet.
    cluster: u64,
    caches: BTreeMap<KeyspaceId, RouteCache>,
    names: BTreeMap<String, Named>,
    /// What [`DEFAULT_KEYSPACE_NAME`] stands for; found without a look at the names.
    default: Option<KeyspaceId>,
    /// The routes of a keyspace that there is not.
    nowhere: RouteCache,
    lists: u64,
}

#[derive(Clone, Copy, Debug)]
struct Named {
    id: KeyspaceId,
    /// Lists in a row that have left it out.
    misses: u32,
}

impl Keyspaces {
    /// The default keyspace, without any route. `local`: as for [`RouteCache::new`].
    pub fn new(local: Option<NodeId>) -> Self {
        let mut keyspaces = Self {
            local,
            cluster: 0,
            caches: BTreeMap::new(),
            names: BTreeMap::new(),
            default: None,
            nowhere: RouteCache::new(KeyspaceId(0), local),
            lists: 0,
        };
        keyspaces.learn(DEFAULT_KEYSPACE, DEFAULT_KEYSPACE_NAME);
        keyspaces
    }

    /// The same of a cluster that is known.
    pub fn of_cluster(local: Option<NodeId>, cluster: u64) -> Self {
        let mut keyspaces = Self::new(local);
        keyspaces.name_cluster(cluster);
        keyspaces
    }

    /// The keyspace of this name; empty: the default one.
    pub fn find(&self, name: &str) -> Option<KeyspaceId> {
        if name.is_empty() || name == DEFAULT_KEYSPACE_NAME {
            return self.default;
        }
        self.names.get(name).map(|named| named.id)
    }

    /// How many lists have named keyspaces. One that names none says nothing: it comes from a node that has just started.
    pub fn lists(&self) -> u64 {
        self.lists
    }

    /// Whether there is such a keyspace, as far as is known.
    pub fn contains(&self, keyspace: KeyspaceId) -> bool {
        self.names.values().any(|named| named.id == keyspace)
    }

    /// The routes of a keyspace; none, if there is no such keyspace.
    pub fn routes(&self, keyspace: KeyspaceId) -> &RouteCache {
        self.caches.get(&keyspace).unwrap_or(&self.nowhere)
    }

    /// The routes of a keyspace, to be changed. News of one that is not known lead nowhere.
    pub fn routes_mut(&mut self, keyspace: KeyspaceId) -> &mut RouteCache {
        self.caches.get_mut(&keyspace).unwrap_or(&mut self.nowhere)
    }

    /// A range by its id, whatever keyspace it is of.
    pub fn by_range(&self, range: RangeId) -> Option<&Route> {
        self.caches.values().find_map(|cache| cache.by_id(range))
    }

    /// Notes who leads a range, whatever keyspace it is of.
    pub fn set_leader(&mut self, range: RangeId, leader: NodeId, term: u64) {
        for cache in self.caches.values_mut() {
            cache.set_leader(range, leader, term);
        }
    }

    /// Takes in a keyspace that was just created, or named by whoever knows.
    pub fn learn(&mut self, keyspace: KeyspaceId, name: &str) {
        if keyspace == SYSTEM_KEYSPACE || keyspace.0 == 0 {
            return;
        }
        let known = self.names.insert(name.to_string(), Named { id: keyspace, misses: 0 });
        if let Some(known) = known.filter(|known| known.id != keyspace) {
            self.caches.remove(&known.id);
        }
        if name == DEFAULT_KEYSPACE_NAME {
            self.default = Some(keyspace);
        }
        self.cache(keyspace);
    }

    /// The cluster that the first list was of; 0: nobody has told yet.
    pub fn cluster(&self) -> u64 {
        self.cluster
    }

    /// Takes in a node's list: keyspaces, ranges, and the leaders it knows.
    ///
    /// Errors: *fail*: [`Error::ClusterMismatch`]: it is of another cluster, and nothing of it was taken.
    pub fn merge_all(&mut self, routes: &v1::ListRangesResponse) -> Result<()> {
        self.belong(routes.cluster_id)?;
        self.merge_names(&routes.keyspaces);
        for status in &routes.ranges {
            let Some(descriptor) = &status.descriptor else { continue };
            let Some(cache) = self.cache_of(descriptor) else { continue };
            cache.merge_status(status);
        }
        Ok(())
    }

    /// Takes in what a node found for somebody who looked for some ranges: these, and their keyspace. Says nothing about
    /// others.
    ///
    /// Errors: as [`Keyspaces::merge_all`].
    pub fn merge_found(&mut self, found: &v1::ListRangesResponse) -> Result<()> {
        self.belong(found.cluster_id)?;
        self.lists += u64::from(!found.keyspaces.is_empty());
        for keyspace in &found.keyspaces {
            let id = KeyspaceId(keyspace.keyspace_id);
            match (self.find(&keyspace.name), keyspace.state == i32::from(v1::KeyspaceState::Dropped)) {
                (Some(known), true) if known == id => self.forget(&keyspace.name),
                (_, true) => {}
                // Ids only grow: under one name the larger is the newer.
                (known, false) if known.is_none_or(|known| known <= id) => self.learn(id, &keyspace.name),
                (_, false) => {}
            }
        }
        for status in &found.ranges {
            let Some(descriptor) = &status.descriptor else { continue };
            let Some(cache) = self.cache_of(descriptor) else { continue };
            cache.merge_status(status);
        }
        Ok(())
    }

    /// Takes in what is newly known of some ranges, if there were requests for keys of theirs.
    pub fn follow(&mut self, routes: &[v1::RangeStatus]) {
        for status in routes {
            let Some(descriptor) = &status.descriptor else { continue };
            let Some(cache) = self.caches.get_mut(&KeyspaceId(descriptor.keyspace_id)) else { continue };
            let is_known = cache.by_id(RangeId(descriptor.range_id)).is_some();
            if is_known || cache.lookup(&descriptor.start).is_some() {
                cache.merge_status(status);
            }
        }
    }

    /// Somebody says that there is no keyspace of this name.
    pub fn forget(&mut self, name: &str) {
        let name = if name.is_empty() { DEFAULT_KEYSPACE_NAME } else { name };
        if let Some(named) = self.names.remove(name) {
            self.caches.remove(&named.id);
        }
        self.default = self.names.get(DEFAULT_KEYSPACE_NAME).map(|named| named.id);
    }

    /// Notes the cluster, or refuses another one.
    fn belong(&mut self, cluster: u64) -> Result<()> {
        if cluster == 0 || cluster == self.cluster {
            return Ok(());
        }
        if self.cluster != 0 {
            let own = self.cluster;
            let what = format!("routes of cluster {cluster:016x} came, where those of cluster {own:016x} are kept");
            return Err(Error::ClusterMismatch { what });
        }
        self.name_cluster(cluster);
        Ok(())
    }

    fn name_cluster(&mut self, cluster: u64) {
        self.cluster = cluster;
        for cache in self.caches.values_mut().chain([&mut self.nowhere]) {
            cache.set_cluster(cluster);
        }
    }

    /// Takes in what a node knows of some ranges.
    pub fn merge_each(&mut self, descriptors: &[v1::RangeDescriptor]) {
        for one_keyspace in descriptors.chunk_by(|a, b| a.keyspace_id == b.keyspace_id) {
            if let Some(cache) = one_keyspace.first().and_then(|first| self.cache_of(first)) {
                cache.merge_each(one_keyspace);
            }
        }
    }

    fn merge_names(&mut self, listed: &[v1::Keyspace]) {
        if listed.is_empty() {
            return;
        }
        self.lists += 1;
        for named in self.names.values_mut() {
            named.misses += 1;
        }
        let dropped = |keyspace: &v1::Keyspace| keyspace.state == i32::from(v1::KeyspaceState::Dropped);
        for keyspace in listed.iter().filter(|keyspace| !dropped(keyspace)) {
            // Ids only grow: under one name the larger is the newer.
            let id = KeyspaceId(keyspace.keyspace_id);
            if self.find(&keyspace.name).is_none_or(|known| known <= id) {
                self.learn(id, &keyspace.name);
            }
        }
        let gone: Vec<KeyspaceId> =
            listed.iter().filter(|keyspace| dropped(keyspace)).map(|gone| KeyspaceId(gone.keyspace_id)).collect();
        self.names.retain(|_, named| named.misses < MISSES_MAX && !gone.contains(&named.id));
        self.default = self.names.get(DEFAULT_KEYSPACE_NAME).map(|named| named.id);
        let named: Vec<KeyspaceId> = self.names.values().map(|named| named.id).collect();
        self.caches.retain(|id, _| *id == SYSTEM_KEYSPACE || named.contains(id));
    }

    /// The cache that a descriptor belongs in, if its keyspace is known.
    fn cache_of(&mut self, descriptor: &v1::RangeDescriptor) -> Option<&mut RouteCache> {
        let keyspace = KeyspaceId(descriptor.keyspace_id);
        if keyspace == SYSTEM_KEYSPACE {
            return Some(self.cache(keyspace));
        }
        self.caches.get_mut(&keyspace)
    }

    fn cache(&mut self, keyspace: KeyspaceId) -> &mut RouteCache {
        let (local, cluster) = (self.local, self.cluster);
        self.caches.entry(keyspace).or_insert_with(|| {
            let mut cache = RouteCache::new(keyspace, local);
            cache.set_cluster(cluster);
            cache
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyspace(id: u64, name: &str) -> v1::Keyspace {
        v1::Keyspace { keyspace_id: id, name: name.into(), ..Default::default() }
    }

    fn dropped(id: u64, name: &str) -> v1::Keyspace {
        v1::Keyspace { state: v1::KeyspaceState::Dropped.into(), ..keyspace(id, name) }
    }

    fn range(id: u64, keyspace: KeyspaceId) -> v1::RangeStatus {
        let descriptor = v1::RangeDescriptor {
            range_id: id,
            keyspace_id: keyspace.0,
            epoch: Some(v1::Epoch { conf_ver: 1, version: 1 }),
            ..Default::default()
        };
        v1::RangeStatus { descriptor: Some(descriptor), leader_node_id: id, term: 1, ..Default::default() }
    }

    fn list(keyspaces: Vec<v1::Keyspace>, ranges: Vec<v1::RangeStatus>) -> v1::ListRangesResponse {
        v1::ListRangesResponse { ranges, keyspaces, ..Default::default() }
    }

    fn at(keyspaces: &Keyspaces, name: &str) -> Option<u64> {
        let id = keyspaces.find(name)?;
        keyspaces.routes(id).lookup(b"k").map(|route| route.descriptor.range_id)
    }

    /// Ids of ranges and keyspaces are small numbers, and the same in every young cluster.
    #[test]
    fn routes_of_two_clusters_are_never_mixed() {
        let mut all = Keyspaces::new(None);
        let of =
            |cluster_id, ranges| v1::ListRangesResponse { cluster_id, ..list(vec![keyspace(1, "default")], ranges) };
        assert_eq!((all.cluster(), all.routes(DEFAULT_KEYSPACE).cluster()), (0, 0));
        all.merge_all(&of(7, vec![range(2, KeyspaceId(1))])).expect("the first counts");
        assert_eq!((all.cluster(), all.routes(DEFAULT_KEYSPACE).cluster()), (7, 7));
        let mut newer = range(2, KeyspaceId(1));
        newer.term = 9;
        newer.leader_node_id = 3;
        let refused = all.merge_all(&of(8, vec![newer]));
        assert!(matches!(refused, Err(Error::ClusterMismatch { .. })), "{refused:?}");
        assert_eq!(all.by_range(RangeId(2)).and_then(|route| route.leader), Some(NodeId(2)));
        all.learn(KeyspaceId(3), "jobs");
        assert_eq!(all.routes(KeyspaceId(3)).cluster(), 7, "of keyspaces that come later too");
    }

    #[test]
    fn each_keyspace_has_its_own_routes() {
        let mut all = Keyspaces::new(None);
        let ranges = vec![range(1, SYSTEM_KEYSPACE), range(2, KeyspaceId(1)), range(7, KeyspaceId(3))];
        all.merge_all(&list(vec![keyspace(1, "default"), keyspace(3, "jobs")], ranges)).expect("of one cluster");
        assert_eq!([at(&all, ""), at(&all, "default"), at(&all, "jobs")], [Some(2), Some(2), Some(7)]);
        assert_eq!([at(&all, "system"), at(&all, "other")], [None, None]);
        assert!(!all.contains(SYSTEM_KEYSPACE));
        let leader = |range| all.by_range(RangeId(range)).and_then(|route| route.leader);
        assert_eq!([leader(1), leader(7), leader(8)], [Some(NodeId(1)), Some(NodeId(7)), None]);
    }

    #[test]
    fn a_list_without_keyspaces_means_the_default_one() {
        let mut all = Keyspaces::new(None);
        all.merge_all(&list(vec![], vec![range(2, KeyspaceId(1)), range(7, KeyspaceId(3))])).expect("of one cluster");
        assert_eq!((at(&all, ""), all.by_range(RangeId(7))), (Some(2), None));
    }

    #[test]
    fn a_dropped_keyspace_is_gone_with_its_routes() {
        let mut all = Keyspaces::new(None);
        all.merge_all(&list(vec![keyspace(1, "default"), keyspace(3, "jobs")], vec![range(7, KeyspaceId(3))]))
            .expect("of one cluster");
        all.merge_all(&list(vec![keyspace(1, "default"), dropped(3, "jobs")], vec![range(7, KeyspaceId(3))]))
            .expect("of one cluster");
        assert_eq!((all.find("jobs"), all.by_range(RangeId(7))), (None, None));
        assert!(all.routes(KeyspaceId(3)).is_empty());
        let again = vec![keyspace(1, "default"), dropped(3, "jobs"), keyspace(4, "jobs")];
        all.merge_all(&list(again, vec![range(7, KeyspaceId(3)), range(9, KeyspaceId(4))])).expect("of one cluster");
        assert_eq!(at(&all, "jobs"), Some(9), "a new one of the same name");
        all.merge_all(&list(vec![keyspace(1, "default"), keyspace(3, "jobs")], vec![])).expect("of one cluster");
        assert_eq!(at(&all, "jobs"), Some(9), "the old one does not come back");
    }

    #[test]
    fn one_node_that_is_behind_does_not_take_a_keyspace_away() {
        let mut all = Keyspaces::new(None);
        all.learn(KeyspaceId(3), "jobs");
        for _ in 1..MISSES_MAX {
            all.merge_all(&list(vec![keyspace(1, "default")], vec![])).expect("of one cluster");
            assert_eq!(all.find("jobs"), Some(KeyspaceId(3)));
        }
        all.merge_all(&list(vec![keyspace(1, "default")], vec![])).expect("of one cluster");
        assert_eq!((all.find("jobs"), all.find("")), (None, Some(DEFAULT_KEYSPACE)));
    }

    #[test]
    fn what_was_found_says_nothing_about_other_keyspaces() {
        let mut keyspaces = Keyspaces::new(None);
        let found = |keyspaces: &mut Keyspaces, named: v1::Keyspace, ranges| {
            let found = v1::ListRangesResponse { keyspaces: vec![named], ranges, ..Default::default() };
            keyspaces.merge_found(&found).expect("of the same cluster");
        };
        found(&mut keyspaces, keyspace(5, "jobs"), vec![range(7, KeyspaceId(5))]);
        for _ in 0..2 * MISSES_MAX {
            found(&mut keyspaces, keyspace(6, "more"), vec![]);
        }
        assert_eq!((keyspaces.find("jobs"), keyspaces.find("")), (Some(KeyspaceId(5)), Some(DEFAULT_KEYSPACE)));
        assert!(keyspaces.routes(KeyspaceId(5)).lookup(b"a").is_some());
        found(&mut keyspaces, dropped(4, "jobs"), vec![]);
        found(&mut keyspaces, keyspace(4, "jobs"), vec![]);
        assert_eq!(keyspaces.find("jobs"), Some(KeyspaceId(5)), "older news");
        found(&mut keyspaces, dropped(5, "jobs"), vec![]);
        assert_eq!(keyspaces.find("jobs"), None);
        keyspaces.forget("");
        assert_eq!(keyspaces.find("default"), None);
    }

    #[test]
    fn news_are_followed_only_where_requests_went() {
        let mut keyspaces = Keyspaces::new(None);
        let led = |id, leader_node_id| v1::RangeStatus { leader_node_id, term: 1, ..range(id, DEFAULT_KEYSPACE) };
        keyspaces.follow(&[led(7, 1)]);
        assert!(keyspaces.routes(DEFAULT_KEYSPACE).is_empty());
        keyspaces.merge_found(&v1::ListRangesResponse { ranges: vec![led(7, 0)], ..Default::default() }).expect("fits");
        keyspaces.follow(&[led(7, 2)]);
        assert_eq!(keyspaces.by_range(RangeId(7)).and_then(|route| route.leader), Some(NodeId(2)));
    }
}
