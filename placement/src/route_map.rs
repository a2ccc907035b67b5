//! The newest that is known of each span: ranges by id, and by where they begin. Pure.
//!
//! Invariant: no two of them overlap. A newer descriptor (by version, then conf_ver) takes the place of an older one of
//! the same range, and of all that it overlaps with; an older one changes nothing.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use flotilla_proto::v1;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct RouteMap {
    ranges: BTreeMap<u64, v1::RangeStatus>,
    starts: BTreeMap<(u64, Bytes), u64>,
}

/// The id of the range that a route is of.
pub fn range_id(route: &v1::RangeStatus) -> u64 {
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

/// Whether a range holds a key.
fn holds(route: &v1::RangeStatus, keyspace: u64, key: &[u8]) -> bool {
    let Some(descriptor) = &route.descriptor else { return false };
    let ends_behind = descriptor.end.is_empty() || key < descriptor.end;
    descriptor.keyspace_id == keyspace && descriptor.start <= key && ends_behind
}

fn start_of(descriptor: &v1::RangeDescriptor) -> (u64, Bytes) {
    (descriptor.keyspace_id, descriptor.start.clone())
}

impl RouteMap {
    /// What is known of a range.
    pub fn get(&self, range: u64) -> Option<&v1::RangeStatus> {
        self.ranges.get(&range)
    }

    /// Whether no range is known.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// All ranges, by keyspace and key.
    pub fn iter(&self) -> impl Iterator<Item = &v1::RangeStatus> {
        self.starts.values().filter_map(|range| self.ranges.get(range))
    }

    /// The ranges with larger ids than this one, by their ids.
    pub fn with_ids_above(&self, range: u64) -> impl Iterator<Item = &v1::RangeStatus> {
        self.ranges.range((Bound::Excluded(range), Bound::Unbounded)).map(|(_, route)| route)
    }

    /// The ranges that begin behind this place, by keyspace and key; from the range on that holds the place itself, if
    /// `holding`.
    pub fn behind<'a>(
        &'a self,
        keyspace: u64,
        key: &[u8],
        holding: bool,
    ) -> impl Iterator<Item = &'a v1::RangeStatus> + use<'a> {
        let place = (keyspace, Bytes::copy_from_slice(key));
        let first = self.starts.range(..=&place).next_back().filter(|_| holding).map(|(_, range)| range);
        let first = first.filter(|range| self.ranges.get(range).is_some_and(|route| holds(route, keyspace, key)));
        let behind = self.starts.range((Bound::Excluded(place), Bound::Unbounded)).map(|(_, range)| range);
        first.into_iter().chain(behind).filter_map(|range| self.ranges.get(range))
    }

    /// The ranges of a keyspace from the one down that holds the keys just below this one; empty: from the last one.
    pub fn down_from<'a>(
        &'a self,
        keyspace: u64,
        before: &[u8],
    ) -> impl Iterator<Item = &'a v1::RangeStatus> + use<'a> {
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
        let start = route.descriptor.as_ref().map(start_of);
        if let Some(start) = start.filter(|start| self.starts.get(start) == Some(&range)) {
            self.starts.remove(&start);
        }
        true
    }

    /// Takes a route, unless what is known is as new; says whether it did.
    pub fn merge(&mut self, route: &v1::RangeStatus) -> bool {
        let Some(descriptor) = &route.descriptor else { return false };
        let id = descriptor.range_id;
        if let Some(known) = self.ranges.get_mut(&id) {
            if !is_newer(route, known) {
                if known.descriptor == route.descriptor {
                    known.data_bytes = known.data_bytes.max(route.data_bytes);
                }
                return false;
            }
            let bounds = |of: &v1::RangeDescriptor| (of.start.clone(), of.end.clone());
            if known.descriptor.as_ref().map(bounds) == Some(bounds(descriptor)) {
                let data_bytes = route.data_bytes.max(known.data_bytes);
                *known = v1::RangeStatus { data_bytes, ..route.clone() };
                return true;
            }
        }
        let version = |of: &v1::RangeDescriptor| of.epoch.unwrap_or_default().version;
        let others = self.overlapping(descriptor);
        let theirs = others.iter().filter_map(|other| self.ranges.get(other)?.descriptor.as_ref().map(version));
        if theirs.max().is_some_and(|theirs| theirs >= version(descriptor)) {
            return false;
        }
        for other in others.into_iter().chain([id]) {
            self.remove(other);
        }
        self.starts.insert(start_of(descriptor), id);
        self.ranges.insert(id, route.clone());
        true
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
            let other = self.ranges.get(range).and_then(|route| route.descriptor.as_ref());
            *range != descriptor.range_id && other.is_some_and(|other| overlap(other, descriptor))
        };
        before.into_iter().chain(behind).map(|(_, range)| *range).filter(overlaps).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(range_id: u64, start: &str, end: &str, version: u64, conf_ver: u64) -> v1::RangeStatus {
        let (start, end) = (Bytes::copy_from_slice(start.as_bytes()), Bytes::copy_from_slice(end.as_bytes()));
        let epoch = Some(v1::Epoch { conf_ver, version });
        let descriptor = v1::RangeDescriptor { range_id, keyspace_id: 1, start, end, epoch, ..Default::default() };
        v1::RangeStatus { descriptor: Some(descriptor), ..Default::default() }
    }

    fn known(map: &RouteMap) -> Vec<(u64, String, String)> {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let one = |route: v1::RangeStatus| {
            let descriptor = route.descriptor.expect("it has one");
            (descriptor.range_id, text(&descriptor.start), text(&descriptor.end))
        };
        map.iter().cloned().map(one).collect()
    }

    fn spans(expected: &[(u64, &str, &str)]) -> Vec<(u64, String, String)> {
        expected.iter().map(|(id, start, end)| (*id, (*start).into(), (*end).into())).collect()
    }

    #[test]
    fn a_split_takes_the_place_of_what_it_split_in_any_order() {
        let parts = [route(2, "", "g", 2, 1), route(3, "g", "m", 2, 1), route(4, "m", "", 2, 1)];
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]] {
            let mut map = RouteMap::default();
            assert!(map.merge(&route(2, "", "", 1, 5)));
            assert!(order.iter().all(|at| map.merge(&parts[*at])), "{order:?}");
            assert_eq!(known(&map), spans(&[(2, "", "g"), (3, "g", "m"), (4, "m", "")]), "{order:?}");
            assert!(!map.merge(&route(2, "", "", 1, 9)), "late news of the parent");
            assert_eq!(map.iter().count(), 3);
        }
    }

    #[test]
    fn newer_replicas_and_leaders_count_and_older_ones_do_not() {
        let mut map = RouteMap::default();
        map.merge(&v1::RangeStatus { data_bytes: 7, term: 5, ..route(2, "", "", 1, 2) });
        assert!(!map.merge(&route(2, "", "", 1, 1)));
        assert!(!map.merge(&v1::RangeStatus { term: 5, ..route(2, "", "", 1, 2) }));
        assert!(map.merge(&v1::RangeStatus { term: 5, leader_node_id: 3, ..route(2, "", "", 1, 2) }));
        assert!(map.merge(&route(2, "", "", 1, 3)));
        let route = map.get(2).expect("it is there");
        assert_eq!((route.data_bytes, route.leader_node_id), (7, 0), "a size that is not told is not forgotten");
        assert!(map.remove(2) && !map.remove(2) && known(&map).is_empty());
    }

    #[test]
    fn ranges_of_other_keyspaces_do_not_overlap() {
        let mut map = RouteMap::default();
        map.merge(&route(2, "", "", 1, 1));
        let mut other = route(9, "", "", 7, 1);
        other.descriptor.as_mut().expect("it has one").keyspace_id = 5;
        assert!(map.merge(&other));
        assert_eq!(known(&map), spans(&[(2, "", ""), (9, "", "")]));
    }

    #[test]
    fn ranges_are_found_by_the_keys_they_hold() {
        let mut map = RouteMap::default();
        for route in [route(2, "", "g", 1, 1), route(3, "g", "m", 1, 1), route(4, "p", "", 1, 1)] {
            map.merge(&route);
        }
        let mut other = route(9, "", "", 1, 1);
        other.descriptor.as_mut().expect("it has one").keyspace_id = 2;
        map.merge(&other);
        let ids = |routes: Vec<&v1::RangeStatus>| routes.into_iter().map(range_id).collect::<Vec<_>>();
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
}
