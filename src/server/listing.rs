//! What of the ranges goes into an answer: lists in parts, for all of a large cluster's do not fit into one message, and
//! the ranges that somebody has a request for.
//!
//! Each part of a list goes on behind the last range of the one before, in the order of keyspaces and keys. What changes in
//! between shows in one part or the other; whoever puts them together keeps the newest of each span, as with any two lists.

use std::collections::BTreeSet;

use flotilla_placement::{Route, RouteMap};
use flotilla_proto::v1;
use prost::Message;

/// About how many bytes of ranges go into one answer: half of what a message may have.
const BYTES_MAX: usize = 2 << 20;
/// So many ranges behind (or in front of) the one that was looked for come along: who reads on, or writes to keys that are near,
/// need not ask again.
const NEIGHBOURS: usize = 31;
/// Up to so many nodes are all told of with every answer: whoever asks has others to turn to when one is gone.
const NODES_TOLD: usize = 64;

/// As many ranges as fit into an answer, and whether there are more.
pub(super) fn part<'a>(ranges: impl Iterator<Item = &'a Route>) -> (Vec<v1::RangeStatus>, bool) {
    let mut bytes = 0;
    let mut fitting = Vec::new();
    for route in ranges.map(Route::status) {
        bytes += route.encoded_len() + 4;
        if bytes > BYTES_MAX && !fitting.is_empty() {
            return (fitting, true);
        }
        fitting.push(route);
    }
    (fitting, false)
}

/// Adds the ranges of a keyspace that hold what is looked for; says whether all of it is held by one.
pub(super) fn found(
    known: &RouteMap,
    keyspace: u64,
    lookup: &v1::RangeLookup,
    ranges: &mut Vec<v1::RangeStatus>,
) -> bool {
    let mut seen: BTreeSet<u64> = ranges.iter().filter_map(|route| Some(route.descriptor.as_ref()?.range_id)).collect();
    let mut complete = true;
    let mut add = |route: &Route| {
        if seen.insert(route.range_id()) {
            ranges.push(route.status());
        }
    };
    let of_it = |route: &&Route| route.descriptor.keyspace_id == keyspace;
    let neighbours = if lookup.keys.len() == 1 { NEIGHBOURS } else { 0 };
    for key in &lookup.keys {
        let mut routes = known.behind(keyspace, key, true).take_while(of_it).take(1 + neighbours).peekable();
        let starts_before = |of: &v1::RangeDescriptor| of.start <= *key;
        complete &= routes.peek().is_some_and(|route| starts_before(&route.descriptor));
        routes.for_each(&mut add);
    }
    for before in &lookup.before {
        let mut routes = known.down_from(keyspace, before).take(1 + NEIGHBOURS).peekable();
        let reaches = |of: &v1::RangeDescriptor| of.end.is_empty() || (!before.is_empty() && *before <= of.end);
        complete &= routes.peek().is_some_and(|route| reaches(&route.descriptor));
        routes.for_each(&mut add);
    }
    complete
}

/// The nodes that come with ranges which were looked for: all of a small cluster, else those that have replicas of them.
pub(super) fn needed(mut nodes: Vec<v1::NodeInfo>, ranges: &[v1::RangeStatus]) -> Vec<v1::NodeInfo> {
    if nodes.len() > NODES_TOLD {
        let replicas = ranges.iter().filter_map(|route| route.descriptor.as_ref()).flat_map(|range| &range.replicas);
        let needed: BTreeSet<u64> = replicas.map(|replica| replica.node_id).collect();
        nodes.retain(|node| needed.contains(&node.node_id));
    }
    nodes
}

/// Whether ranges, in key order, hold every key of their keyspace.
pub(super) fn tiles<'a>(ranges: impl Iterator<Item = &'a v1::RangeDescriptor>) -> bool {
    let mut end: Option<&[u8]> = None;
    for range in ranges {
        let follows = match end {
            None => range.start.is_empty(),
            Some(end) => !end.is_empty() && range.start == end,
        };
        if !follows {
            return false;
        }
        end = Some(&range.end);
    }
    end.is_some_and(<[u8]>::is_empty)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn route(range_id: u64, start: &str, end: &str) -> v1::RangeStatus {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let replicas = vec![v1::ReplicaDescriptor { node_id: range_id, ..Default::default() }];
        let epoch = Some(v1::Epoch { conf_ver: 1, version: 1 });
        let (start, end) = (bytes(start), bytes(end));
        let descriptor =
            v1::RangeDescriptor { range_id, keyspace_id: 1, start, end, epoch, replicas, ..Default::default() };
        v1::RangeStatus { descriptor: Some(descriptor), ..Default::default() }
    }

    fn id(route: &v1::RangeStatus) -> u64 {
        route.descriptor.as_ref().map_or(0, |range| range.range_id)
    }

    fn map(routes: &[v1::RangeStatus]) -> RouteMap {
        let mut map = RouteMap::default();
        assert!(routes.iter().filter_map(Route::told).all(|route| map.merge(route)));
        map
    }

    #[test]
    fn parts_hold_each_range_once_and_end() {
        let key = |at: u64| format!("{at:0>700}");
        let all: Vec<_> = (1..=8_000).map(|at| route(at, &key(at), &key(at + 1))).collect();
        let known = map(&all);
        let mut seen: Vec<v1::RangeStatus> = Vec::new();
        let mut parts = 0;
        loop {
            let last = seen.last().and_then(|route| route.descriptor.clone()).map_or(Bytes::new(), |of| of.start);
            let (part, more) = part(known.behind(1, &last, seen.is_empty()));
            let answer = v1::ListRangesResponse { ranges: part, ..Default::default() };
            assert!(answer.encoded_len() <= BYTES_MAX + 64);
            seen.extend(answer.ranges);
            parts += 1;
            if !more {
                break;
            }
        }
        assert!(seen == all && parts > 2, "{parts} parts");
    }

    #[test]
    fn a_lookup_brings_what_holds_the_keys_and_says_what_is_missing() {
        let known = map(&[route(2, "", "g"), route(3, "g", "m"), route(4, "p", "")]);
        let look = |keys: &[&str], before: Option<&str>| {
            let bytes = |text: &&str| Bytes::copy_from_slice(text.as_bytes());
            let keys = keys.iter().map(bytes).collect();
            let lookup = v1::RangeLookup { keys, before: before.iter().map(bytes).collect(), range_id: 0 };
            let mut ranges = Vec::new();
            let complete = found(&known, 1, &lookup, &mut ranges);
            (ranges.iter().map(id).collect::<Vec<_>>(), complete)
        };
        assert_eq!(look(&["h"], None), (vec![3, 4], true), "with what follows");
        assert_eq!(look(&["a", "b", "z"], None), (vec![2, 4], true), "each once");
        assert_eq!(look(&["a", "n"], None), (vec![2, 4], false), "nobody is known to hold n");
        assert_eq!(look(&[], Some("")), (vec![4, 3, 2], true));
        assert_eq!(look(&[], Some("m")), (vec![3, 2], true));
        assert_eq!(look(&[], Some("o")), (vec![3, 2], false));
        assert_eq!(look(&[], None), (vec![], true));
    }

    #[test]
    fn a_large_clusters_nodes_come_where_they_are_needed() {
        let nodes = |count: u64| (1..=count).map(|node_id| v1::NodeInfo { node_id, ..Default::default() }).collect();
        let ranges = [route(2, "", "g"), route(3, "g", "m")];
        assert_eq!(needed(nodes(64), &ranges).len(), 64);
        let ids: Vec<u64> = needed(nodes(65), &ranges).iter().map(|node| node.node_id).collect();
        assert_eq!(ids, [2, 3]);
    }

    #[test]
    fn ranges_tile_or_do_not() {
        let tile = |routes: &[v1::RangeStatus]| tiles(routes.iter().filter_map(|route| route.descriptor.as_ref()));
        assert!(tile(&[route(2, "", "")]) && tile(&[route(2, "", "g"), route(3, "g", "")]));
        assert!(!tile(&[]) && !tile(&[route(2, "a", "")]) && !tile(&[route(2, "", "g")]));
        assert!(!tile(&[route(2, "", "g"), route(3, "h", "")]));
    }
}
