//! The newest that is known of each span: ranges by id, and by where they begin. Pure.
//!
//! Invariant: no two of them overlap. A newer descriptor (by version, then conf_ver) takes the place of an older one of
//! the same range, and of all that it overlaps with; an older one changes nothing.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_proto::v1;

use crate::route::{Route, overlap, start_of};

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct RouteMap {
    ranges: BTreeMap<u64, Route>,
    starts: BTreeMap<(u64, Bytes), u64>,
}

impl RouteMap {
    /// What is known of a range.
    pub fn get(&self, range: u64) -> Option<&Route> {
        self.ranges.get(&range)
    }

    /// Whether no range is known.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// All ranges, by keyspace and key.
    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.starts.values().filter_map(|range| self.ranges.get(range))
    }

    /// The ranges with larger ids than this one, by their ids.
    pub fn with_ids_above(&self, range: u64) -> impl Iterator<Item = &Route> {
        self.ranges.range((Bound::Excluded(range), Bound::Unbounded)).map(|(_, route)| route)
    }

    /// The ranges that begin behind this place, by keyspace and key; from the range on that holds the place itself, if
    /// `holding`.
    pub fn behind<'a>(&'a self, keyspace: u64, key: &[u8], holding: bool) -> impl Iterator<Item = &'a Route> + use<'a> {
        let place = (keyspace, Bytes::copy_from_slice(key));
        let first = self.starts.range(..=&place).next_back().filter(|_| holding).map(|(_, range)| range);
        let first = first.filter(|range| self.ranges.get(range).is_some_and(|route| route.holds(keyspace, key)));
        let behind = self.starts.range((Bound::Excluded(place), Bound::Unbounded)).map(|(_, range)| range);
        first.into_iter().chain(behind).filter_map(|range| self.ranges.get(range))
    }

    /// The ranges of a keyspace from the one down that holds the keys just below this one; empty: from the last one.
    pub fn down_from<'a>(&'a self, keyspace: u64, before: &[u8]) -> impl Iterator<Item = &'a Route> + use<'a> {
        let end = match before {
            [] => (keyspace + 1, Bytes::new()),
            before => (keyspace, Bytes::copy_from_slice(before)),
        };
        let below = self.starts.range((keyspace, Bytes::new())..end).rev();
        below.filter_map(|(_, range)| self.ranges.get(range))
    }

    /// Forgets a range; says whether it was there.
    pub fn remove(&mut self, range: u64) -> bool {
        let Some(route) = self.ranges.remove(&range) else { return false };
        let start = start_of(&route.descriptor);
        if self.starts.get(&start) == Some(&range) {
            self.starts.remove(&start);
        }
        true
    }

    /// Takes a route, unless what is known is as new; says whether it did. A descriptor that is known is kept.
    pub fn merge(&mut self, route: Route) -> bool {
        let id = route.range_id();
        if let Some(known) = self.ranges.get_mut(&id) {
            if !route.is_newer(known) {
                if known.descriptor == route.descriptor {
                    known.data_bytes = known.data_bytes.max(route.data_bytes);
                }
                return false;
            }
            let bounds = |of: &v1::RangeDescriptor| (of.start.clone(), of.end.clone());
            if bounds(&known.descriptor) == bounds(&route.descriptor) {
                let data_bytes = route.data_bytes.max(known.data_bytes);
                let same = (known.descriptor == route.descriptor).then(|| Arc::clone(&known.descriptor));
                let descriptor = same.unwrap_or(route.descriptor);
                *known = Route { descriptor, data_bytes, ..route };
                return true;
            }
        }
        let version = |of: &v1::RangeDescriptor| of.epoch.unwrap_or_default().version;
        let others = self.overlapping(&route.descriptor);
        let theirs = others.iter().filter_map(|other| Some(version(&self.ranges.get(other)?.descriptor)));
        if theirs.max().is_some_and(|theirs| theirs >= version(&route.descriptor)) {
            return false;
        }
        for other in others.into_iter().chain([id]) {
            self.remove(other);
        }
        self.starts.insert(start_of(&route.descriptor), id);
        self.ranges.insert(id, route);
        true
    }

    /// If this descriptor is known, another copy of it is let go.
    pub fn share(&mut self, descriptor: &Arc<v1::RangeDescriptor>) {
        if let Some(known) = self.ranges.get_mut(&descriptor.range_id)
            && known.descriptor == *descriptor
        {
            known.descriptor = Arc::clone(descriptor);
        }
    }

    /// Other ranges that overlap with this one: at most one begins at its start or before.
    fn overlapping(&self, descriptor: &v1::RangeDescriptor) -> Vec<u64> {
        let start = start_of(descriptor);
        let before = self.starts.range(..=&start).next_back();
        let behind = self.starts.range((Bound::Excluded(&start), Bound::Unbounded));
        let behind = behind.take_while(|((keyspace, start), _)| {
            *keyspace == descriptor.keyspace_id && (descriptor.end.is_empty() || start < &descriptor.end)
        });
        let overlaps = |range: &u64| {
            let other = self.ranges.get(range);
            *range != descriptor.range_id && other.is_some_and(|other| overlap(&other.descriptor, descriptor))
        };
        before.into_iter().chain(behind).map(|(_, range)| *range).filter(overlaps).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(range_id: u64, start: &str, end: &str, version: u64, conf_ver: u64) -> Route {
        let (start, end) = (Bytes::copy_from_slice(start.as_bytes()), Bytes::copy_from_slice(end.as_bytes()));
        let epoch = Some(v1::Epoch { conf_ver, version });
        let descriptor = v1::RangeDescriptor { range_id, keyspace_id: 1, start, end, epoch, ..Default::default() };
        Route::told(&v1::RangeStatus { descriptor: Some(descriptor), ..Default::default() })
            .expect("it says of a range")
    }

    fn of_keyspace(keyspace_id: u64, route: &Route) -> Route {
        let descriptor = v1::RangeDescriptor { keyspace_id, ..(*route.descriptor).clone() };
        Route { descriptor: Arc::new(descriptor), ..route.clone() }
    }

    fn known(map: &RouteMap) -> Vec<(u64, String, String)> {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let one = |route: &Route| (route.range_id(), text(&route.descriptor.start), text(&route.descriptor.end));
        map.iter().map(one).collect()
    }

    fn spans(expected: &[(u64, &str, &str)]) -> Vec<(u64, String, String)> {
        expected.iter().map(|(id, start, end)| (*id, (*start).into(), (*end).into())).collect()
    }

    #[test]
    fn a_split_takes_the_place_of_what_it_split_in_any_order() {
        let parts = [route(2, "", "g", 2, 1), route(3, "g", "m", 2, 1), route(4, "m", "", 2, 1)];
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]] {
            let mut map = RouteMap::default();
            assert!(map.merge(route(2, "", "", 1, 5)));
            assert!(order.iter().all(|at| map.merge(parts[*at].clone())), "{order:?}");
            assert_eq!(known(&map), spans(&[(2, "", "g"), (3, "g", "m"), (4, "m", "")]), "{order:?}");
            assert!(!map.merge(route(2, "", "", 1, 9)), "late news of the parent");
            assert_eq!(map.iter().count(), 3);
        }
    }

    #[test]
    fn newer_replicas_and_leaders_count_and_older_ones_do_not() {
        let mut map = RouteMap::default();
        map.merge(Route { data_bytes: 7, term: 5, ..route(2, "", "", 1, 2) });
        assert!(!map.merge(route(2, "", "", 1, 1)));
        assert!(!map.merge(Route { term: 5, ..route(2, "", "", 1, 2) }));
        assert!(map.merge(Route { term: 5, leader_node_id: 3, ..route(2, "", "", 1, 2) }));
        assert!(map.merge(route(2, "", "", 1, 3)));
        let route = map.get(2).expect("it is there");
        assert_eq!((route.data_bytes, route.leader_node_id), (7, 0), "a size that is not told is not forgotten");
        assert!(map.remove(2) && !map.remove(2) && known(&map).is_empty());
    }

    #[test]
    fn ranges_of_other_keyspaces_do_not_overlap() {
        let mut map = RouteMap::default();
        map.merge(route(2, "", "", 1, 1));
        let other = of_keyspace(5, &route(9, "", "", 7, 1));
        assert!(map.merge(other));
        assert_eq!(known(&map), spans(&[(2, "", ""), (9, "", "")]));
    }

    #[test]
    fn ranges_are_found_by_the_keys_they_hold() {
        let mut map = RouteMap::default();
        for route in [route(2, "", "g", 1, 1), route(3, "g", "m", 1, 1), route(4, "p", "", 1, 1)] {
            map.merge(route);
        }
        let other = of_keyspace(2, &route(9, "", "", 1, 1));
        map.merge(other);
        let ids = |routes: Vec<&Route>| routes.into_iter().map(Route::range_id).collect::<Vec<_>>();
        for (key, expected) in
            [("", &[2, 3, 4, 9][..]), ("a", &[2, 3, 4, 9]), ("g", &[3, 4, 9]), ("n", &[4, 9]), ("z", &[4, 9])]
        {
            assert_eq!(ids(map.behind(1, key.as_bytes(), true).collect()), expected, "{key}");
        }
        for (key, expected) in [("", &[3, 4, 9][..]), ("g", &[4, 9]), ("p", &[9])] {
            assert_eq!(ids(map.behind(1, key.as_bytes(), false).collect()), expected, "behind {key}");
        }
        for (before, expected) in [("", &[4, 3, 2][..]), ("g", &[2]), ("h", &[3, 2]), ("n", &[3, 2]), ("q", &[4, 3, 2])]
        {
            assert_eq!(ids(map.down_from(1, before.as_bytes()).collect()), expected, "down from {before}");
        }
        assert_eq!(ids(map.down_from(2, b"").collect()), [9]);
        assert_eq!(ids(map.with_ids_above(3).collect()), [4, 9]);
    }

    #[test]
    fn equal_descriptors_are_one() {
        let mut map = RouteMap::default();
        let (first, own) = (route(2, "", "", 1, 1), route(2, "", "", 1, 1));
        let is_known = |map: &RouteMap, of: &Route| Arc::ptr_eq(&map.get(2).expect("known").descriptor, &of.descriptor);
        map.merge(first.clone());
        assert!(map.merge(Route { leader_node_id: 3, ..route(2, "", "", 1, 1) }) && is_known(&map, &first));
        map.share(&own.descriptor);
        assert!(is_known(&map, &own));
        map.share(&route(2, "", "", 1, 2).descriptor);
        assert!(is_known(&map, &own), "that one says something else");
    }
}
