//! The route cache: which range holds a key, and which node leads it, as far as is known.
//!
//! Soft state: it may be behind, never wrong for long, because every request carries the epoch it
//! was routed by and is refused if that is not the replica's. Invariants:
//! - a descriptor never replaces a newer one, of the same range or of an overlapping one, unless a recovery from the loss
//!   of a majority stands between the two: that takes splits and merges back which only the lost had heard of;
//! - the descriptors held never overlap (there may be holes);
//! - a leader hint never gives way to one of an older term.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use flotilla_proto::ids::LEAP;
use flotilla_proto::{KeyspaceId, NodeId, RangeId, v1};

/// A range, and who leads it.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// The range: bounds, epoch, replicas.
    pub descriptor: v1::RangeDescriptor,
    /// The node that leads it, as far as is known.
    pub leader: Option<NodeId>,
    /// The term in which that was seen; 0 where a node only said so.
    pub term: u64,
}

impl Route {
    /// The range's id.
    pub fn range(&self) -> RangeId {
        RangeId(self.descriptor.range_id)
    }

    /// The version of its epoch.
    pub fn version(&self) -> u64 {
        age(&self.descriptor).0
    }

    /// Whether a node has a replica, as far as the descriptor says.
    fn has_replica(&self, node: NodeId) -> bool {
        self.descriptor.replicas.iter().any(|replica| replica.node_id == node.0)
    }

    /// Whether the range holds the key.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.descriptor.start <= key && ends_after(&self.descriptor.end, key)
    }
}

/// Whether a span that ends before `end` (empty: never) reaches beyond `key`.
fn ends_after(end: &[u8], key: &[u8]) -> bool {
    end.is_empty() || key < end
}

/// (version, conf_ver): how new a descriptor is. Splits and merges give the version on to both
/// halves and take the larger one, so it compares between overlapping ranges too.
fn age(descriptor: &v1::RangeDescriptor) -> (u64, u64) {
    descriptor.epoch.map_or((0, 0), |epoch| (epoch.version, epoch.conf_ver))
}

/// Whether a recovery stands between two descriptors that share keys: then `conf_ver` has leapt.
fn has_leapt(from: &v1::RangeDescriptor, to: &v1::RangeDescriptor) -> bool {
    age(to).1 >= age(from).1.saturating_add(LEAP)
}

/// What is known of the routes of one keyspace.
#[derive(Clone, Debug)]
pub struct RouteCache {
    keyspace: KeyspaceId,
    local: Option<NodeId>,
    /// The cluster whose routes these are; 0: not known.
    cluster: u64,
    by_start: BTreeMap<Bytes, Route>,
    start_of: BTreeMap<RangeId, Bytes>,
}

impl RouteCache {
    /// An empty cache. `local` is the node that it lives in, if any: asked first where any replica
    /// will do, because that costs no network.
    pub fn new(keyspace: KeyspaceId, local: Option<NodeId>) -> Self {
        Self { keyspace, local, cluster: 0, by_start: BTreeMap::new(), start_of: BTreeMap::new() }
    }

    /// The cluster whose routes these are, which requests are to name; 0: not known.
    pub fn cluster(&self) -> u64 {
        self.cluster
    }

    /// Notes whose routes these are.
    pub fn set_cluster(&mut self, cluster: u64) {
        self.cluster = cluster;
    }

    /// The node that this cache lives in.
    pub fn local(&self) -> Option<NodeId> {
        self.local
    }

    /// Takes a descriptor in, unless what is known of its span is as new; says whether it did.
    pub fn merge(&mut self, descriptor: &v1::RangeDescriptor) -> bool {
        if descriptor.keyspace_id != self.keyspace.0 || descriptor.range_id == 0 {
            return false;
        }
        if !descriptor.end.is_empty() && descriptor.end <= descriptor.start {
            return false;
        }
        let range = RangeId(descriptor.range_id);
        let known = self.by_id(range).map(|known| &known.descriptor);
        let leapt = known.is_some_and(|known| has_leapt(known, descriptor));
        if !leapt && known.is_some_and(|known| age(known) >= age(descriptor) || has_leapt(descriptor, known)) {
            return false;
        }
        let overlapping = self.overlapping(descriptor);
        let version = age(descriptor).0;
        let newer = |start: &Bytes| {
            let other = self.by_start.get(start).filter(|other| other.range() != range).map(|other| &other.descriptor);
            other.is_some_and(|other| age(other).0 >= version && !has_leapt(other, descriptor))
        };
        if overlapping.iter().any(newer) {
            return false;
        }
        // The range itself may have stood elsewhere: its start moves when its left neighbour goes.
        let old = self.start_of.get(&range).cloned().and_then(|start| self.remove(&start));
        for start in overlapping {
            self.remove(&start);
        }
        // Over a leap the terms may begin anew, lower than before.
        let old = old.filter(|_| !leapt);
        let (leader, term) = old.map_or((None, 0), |route| (route.leader, route.term));
        let leader = leader.filter(|node| descriptor.replicas.iter().any(|replica| replica.node_id == node.0));
        self.start_of.insert(range, descriptor.start.clone());
        self.by_start.insert(descriptor.start.clone(), Route { descriptor: descriptor.clone(), leader, term });
        true
    }

    /// Takes in what a node knows of a span; says whether any of it was new.
    pub fn merge_each(&mut self, descriptors: &[v1::RangeDescriptor]) -> bool {
        // Ranges known already come first: a child of a split evicts its parent, leader hint and all,
        // unless the parent has made room for it before.
        let known = |descriptor: &&v1::RangeDescriptor| self.by_id(RangeId(descriptor.range_id)).is_some();
        let (known, new): (Vec<_>, Vec<_>) = descriptors.iter().partition(known);
        let parents: Vec<Option<NodeId>> =
            new.iter().map(|child| self.lookup(&child.start).and_then(|route| route.leader)).collect();
        let mut learned = 0;
        for descriptor in known {
            learned += usize::from(self.merge(descriptor));
        }
        for (child, parent) in new.into_iter().zip(parents) {
            if self.merge(child) {
                learned += 1;
                self.expect_leader(RangeId(child.range_id), parent);
            }
        }
        learned > 0
    }

    /// A child of a split begins where its parent is led, as a rule: a better guess than any.
    fn expect_leader(&mut self, child: RangeId, parent: Option<NodeId>) {
        let Some(route) = self.by_id_mut(child) else { return };
        if route.leader.is_none() {
            route.leader = parent.filter(|node| route.has_replica(*node));
        }
    }

    /// Takes in a node's list of ranges, with the leaders it knows.
    pub fn merge_all(&mut self, routes: &v1::ListRangesResponse) {
        for status in &routes.ranges {
            self.merge_status(status);
        }
    }

    /// Takes in one range of a list.
    pub(super) fn merge_status(&mut self, status: &v1::RangeStatus) {
        let Some(descriptor) = &status.descriptor else { return };
        self.merge(descriptor);
        if status.leader_node_id != 0 {
            self.set_leader(RangeId(descriptor.range_id), NodeId(status.leader_node_id), status.term);
        }
    }

    /// Notes who leads a range; a hint of an older term than the one held is ignored. An old one is
    /// better than none, unless it names a node that has no replica any more.
    pub fn set_leader(&mut self, range: RangeId, leader: NodeId, term: u64) {
        let Some(route) = self.by_id_mut(range) else { return };
        if term >= route.term || (route.leader.is_none() && route.has_replica(leader)) {
            route.leader = Some(leader);
            route.term = route.term.max(term);
        }
    }

    /// `answered` said that it does not lead, and who does in its opinion. That is of no known
    /// term, so it counts only against nothing, or against the belief that `answered` leads.
    pub fn redirect(&mut self, range: RangeId, answered: NodeId, leader: Option<NodeId>) {
        let Some(route) = self.by_id_mut(range) else { return };
        if route.leader.is_none_or(|known| known == answered) {
            route.leader = leader.filter(|node| *node != answered);
        }
    }

    /// Forgets that `node` leads the range: it could not be reached, or does not serve.
    pub fn doubt_leader(&mut self, range: RangeId, node: NodeId) {
        self.redirect(range, node, None);
    }

    /// The range that holds `key`.
    pub fn lookup(&self, key: &[u8]) -> Option<&Route> {
        let (_, route) = self.by_start.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
        route.contains(key).then_some(route)
    }

    /// The range that holds the keys just below `end`; empty: the keyspace's last range.
    pub fn lookup_before(&self, end: &[u8]) -> Option<&Route> {
        if end.is_empty() {
            return self.by_start.values().next_back().filter(|route| route.descriptor.end.is_empty());
        }
        let (_, route) = self.by_start.range::<[u8], _>((Bound::Unbounded, Bound::Excluded(end))).next_back()?;
        let reaches = route.descriptor.end.is_empty() || end <= route.descriptor.end;
        reaches.then_some(route)
    }

    /// A range by its id.
    pub fn by_id(&self, range: RangeId) -> Option<&Route> {
        self.by_start.get(self.start_of.get(&range)?)
    }

    /// All that is known, in key order.
    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.by_start.values()
    }

    /// How many ranges are known.
    pub fn len(&self) -> usize {
        self.by_start.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.by_start.is_empty()
    }

    fn by_id_mut(&mut self, range: RangeId) -> Option<&mut Route> {
        self.by_start.get_mut(self.start_of.get(&range)?)
    }

    fn remove(&mut self, start: &Bytes) -> Option<Route> {
        let route = self.by_start.remove(start)?;
        self.start_of.remove(&route.range());
        Some(route)
    }

    /// Starts of the descriptors held that share keys with `descriptor`.
    fn overlapping(&self, descriptor: &v1::RangeDescriptor) -> Vec<Bytes> {
        let end = match descriptor.end.is_empty() {
            true => Bound::Unbounded,
            false => Bound::Excluded(&descriptor.end[..]),
        };
        self.by_start
            .range::<[u8], _>((Bound::Unbounded, end))
            .rev()
            .take_while(|(_, route)| ends_after(&route.descriptor.end, &descriptor.start))
            .map(|(start, _)| start.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(id: u64, start: &str, end: &str, version: u64, conf_ver: u64) -> v1::RangeDescriptor {
        v1::RangeDescriptor {
            range_id: id,
            keyspace_id: 1,
            start: Bytes::copy_from_slice(start.as_bytes()),
            end: Bytes::copy_from_slice(end.as_bytes()),
            epoch: Some(v1::Epoch { conf_ver, version }),
            replicas: (1..=3).map(|node| v1::ReplicaDescriptor { replica_id: node, node_id: node, role: 0 }).collect(),
            next_replica_id: 4,
        }
    }

    fn cache(descriptors: &[v1::RangeDescriptor]) -> RouteCache {
        let mut cache = RouteCache::new(KeyspaceId(1), None);
        for descriptor in descriptors {
            assert!(cache.merge(descriptor));
        }
        cache
    }

    fn ids(cache: &RouteCache) -> Vec<u64> {
        cache.iter().map(|route| route.descriptor.range_id).collect()
    }

    fn at(cache: &RouteCache, key: &str) -> Option<u64> {
        cache.lookup(key.as_bytes()).map(|route| route.descriptor.range_id)
    }

    fn before(cache: &RouteCache, end: &str) -> Option<u64> {
        cache.lookup_before(end.as_bytes()).map(|route| route.descriptor.range_id)
    }

    #[test]
    fn keys_are_found_by_the_bounds_both_ways() {
        let cache = cache(&[descriptor(2, "", "f", 1, 1), descriptor(3, "f", "m", 1, 1), descriptor(4, "t", "", 1, 1)]);
        assert_eq!([at(&cache, "a"), at(&cache, "f"), at(&cache, "lzz")], [Some(2), Some(3), Some(3)]);
        assert_eq!([at(&cache, "m"), at(&cache, "t"), at(&cache, "zz")], [None, Some(4), Some(4)]);
        assert_eq!([before(&cache, "f"), before(&cache, "f0"), before(&cache, "m")], [Some(2), Some(3), Some(3)]);
        assert_eq!([before(&cache, "p"), before(&cache, "t"), before(&cache, "")], [None, None, Some(4)]);
    }

    /// tikv#4125.
    #[test]
    fn an_older_epoch_never_replaces_a_newer_one() {
        let mut cache = cache(&[descriptor(2, "", "f", 3, 2)]);
        for (version, conf_ver) in [(3, 2), (3, 1), (2, 9)] {
            assert!(!cache.merge(&descriptor(2, "", "z", version, conf_ver)));
        }
        assert!(!cache.merge(&descriptor(9, "a", "c", 3, 9)), "an overlapping range of the same version");
        assert!(cache.merge(&descriptor(2, "", "f", 3, 3)));
        assert_eq!(ids(&cache), [2]);
    }

    #[test]
    fn a_split_and_a_merge_evict_what_they_cover() {
        let mut cache = cache(&[descriptor(2, "", "", 1, 1)]);
        assert!(cache.merge(&descriptor(5, "m", "", 2, 1)), "the child may come first");
        assert_eq!((ids(&cache), at(&cache, "a")), (vec![5], None), "a hole, not an overlap");
        assert!(cache.merge(&descriptor(2, "", "m", 2, 1)));
        assert_eq!(ids(&cache), [2, 5]);
        assert!(cache.merge(&descriptor(2, "", "", 3, 1)));
        assert_eq!(ids(&cache), [2]);
        assert!(!cache.merge(&descriptor(5, "m", "", 2, 1)), "the merged range does not come back");
    }

    /// A client had heard from the lost that range 2 was split; the survivors, who had not, went on with it whole.
    #[test]
    fn what_a_recovery_took_back_gives_way_and_stays_away() {
        let halves = [descriptor(2, "", "m", 2, 7), descriptor(5, "m", "", 2, 7)];
        let mut cache = cache(&halves);
        cache.set_leader(RangeId(2), NodeId(3), 9);
        assert!(cache.merge(&descriptor(2, "", "", 1, 7 + LEAP)));
        assert_eq!((ids(&cache), at(&cache, "z")), (vec![2], Some(2)));
        assert!(!cache.merge(&halves[0]), "late news of the lost");
        cache.set_leader(RangeId(2), NodeId(1), 6);
        assert_eq!(cache.by_id(RangeId(2)).and_then(|route| route.leader), Some(NodeId(1)), "terms began anew");
        assert!(cache.merge(&descriptor(6, "t", "", 2, 7 + LEAP)) && cache.merge(&descriptor(2, "", "t", 2, 7 + LEAP)));
        assert!(cache.merge(&descriptor(4, "", "", 3, 8)), "merged into a neighbour that was never lost");
        assert_eq!(ids(&cache), [4]);
    }

    #[test]
    fn hints_follow_terms_and_redirects_only_fill_gaps() {
        let mut cache = cache(&[descriptor(2, "", "", 1, 1)]);
        let range = RangeId(2);
        let leader = |cache: &RouteCache| cache.by_id(range).and_then(|route| route.leader);
        cache.set_leader(range, NodeId(1), 5);
        cache.set_leader(range, NodeId(2), 4);
        assert_eq!(leader(&cache), Some(NodeId(1)));
        cache.redirect(range, NodeId(3), Some(NodeId(2)));
        assert_eq!(leader(&cache), Some(NodeId(1)), "node 3 may be behind");
        cache.redirect(range, NodeId(1), Some(NodeId(3)));
        assert_eq!(leader(&cache), Some(NodeId(3)));
        cache.doubt_leader(range, NodeId(3));
        assert_eq!(leader(&cache), None);
        cache.set_leader(range, NodeId(2), 4);
        assert_eq!(leader(&cache), Some(NodeId(2)), "better an old hint than none");
        cache.doubt_leader(range, NodeId(2));
        cache.set_leader(range, NodeId(7), 4);
        assert_eq!(leader(&cache), None, "it had a replica once, says a table that is behind");
        cache.set_leader(range, NodeId(7), 6);
        assert_eq!(leader(&cache), Some(NodeId(7)), "the descriptor is behind");
    }

    #[test]
    fn the_leader_is_kept_over_a_split_if_it_still_has_a_replica() {
        let mut cache = cache(&[descriptor(2, "", "", 1, 1)]);
        cache.set_leader(RangeId(2), NodeId(3), 7);
        assert!(cache.merge(&descriptor(2, "", "m", 2, 1)));
        assert_eq!(cache.by_id(RangeId(2)).and_then(|route| route.leader), Some(NodeId(3)));
        let mut moved = descriptor(2, "", "m", 2, 2);
        moved.replicas.pop();
        assert!(cache.merge(&moved));
        assert_eq!(cache.by_id(RangeId(2)).and_then(|route| route.leader), None);
    }

    #[test]
    fn other_keyspaces_and_empty_spans_stay_out() {
        let mut cache = cache(&[]);
        assert!(!cache.merge(&v1::RangeDescriptor { keyspace_id: 0, ..descriptor(1, "", "", 1, 1) }));
        assert!(!cache.merge(&descriptor(2, "m", "m", 1, 1)));
        assert!(cache.is_empty());
    }
}
