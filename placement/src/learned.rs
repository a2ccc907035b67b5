//! What a node knows of the cluster: routes, keyspaces, nodes, from its own replicas and from others. Pure.
//!
//! Placement tells its table as changes behind a number that the node names. When it begins anew, what the node had
//! counts until the new table is complete: a service that has just begun does not know everything yet.

use std::collections::BTreeSet;
use std::sync::Arc;

use flotilla_proto::v1;

use crate::route::Route;
use crate::route_map::RouteMap;

/// See the file's head.
#[derive(Debug, Default)]
pub struct Learned {
    /// The newest that is known of each span.
    pub ranges: RouteMap,
    /// The keyspaces that clients may use.
    pub keyspaces: Vec<v1::Keyspace>,
    /// The nodes as placement has them.
    pub nodes: Vec<v1::NodeRecord>,
    /// The version of that list, in the reign that told it.
    pub nodes_version: u64,
    /// How far placement's table has come.
    pub sequence: u64,
    /// Ranges with a replica here. Each knows most about its range, so what is known of that stays as long as it is here.
    own: BTreeSet<u64>,
    /// Ranges that somebody else has told of.
    told: BTreeSet<u64>,
    /// What is known of these has changed since [`Learned::take_changed`].
    changed: BTreeSet<u64>,
    /// Ranges that placement has not named since it began to tell its table anew. They count until it has told all.
    doubtful: BTreeSet<u64>,
}

impl Learned {
    /// Takes an answer of placement in; says whether routes or keyspaces changed.
    pub fn answered(&mut self, answer: &v1::ReportResponse) -> bool {
        let mut changed = self.keyspaces != answer.keyspaces;
        if answer.table_full {
            self.doubtful.clone_from(&self.told);
        }
        for gone in &answer.gone_ranges {
            changed |= self.forget(*gone);
        }
        for route in answer.routes.iter().filter_map(Route::told) {
            self.doubtful.remove(&route.range_id());
            self.told.insert(route.range_id());
            changed |= self.merge(route);
        }
        if !answer.table_incomplete {
            for gone in std::mem::take(&mut self.doubtful) {
                changed |= self.forget(gone);
            }
        }
        self.sequence = answer.table_sequence;
        self.keyspaces.clone_from(&answer.keyspaces);
        // A list that did not change is not told again; and there is no cluster without nodes.
        if !answer.nodes.is_empty() {
            self.nodes.clone_from(&answer.nodes);
        }
        self.nodes_version = answer.nodes_version;
        changed
    }

    fn merge(&mut self, route: Route) -> bool {
        let range = route.range_id();
        let changed = self.ranges.merge(route);
        if changed {
            self.changed.insert(range);
        }
        changed
    }

    /// Placement names a range no longer.
    fn forget(&mut self, range: u64) -> bool {
        self.told.remove(&range);
        !self.own.contains(&range) && self.ranges.remove(range)
    }

    /// What a replica of this node says of its range; `None`: there is no replica of it here any more.
    pub fn own(&mut self, range: u64, route: Option<Route>) {
        match route {
            Some(route) => {
                self.own.insert(range);
                let descriptor = Arc::clone(&route.descriptor);
                self.merge(route);
                self.ranges.share(&descriptor);
            }
            None => {
                self.own.remove(&range);
                if !self.told.contains(&range) {
                    self.ranges.remove(range);
                }
            }
        }
    }

    /// What is known now of the ranges of which something else was known at the last call.
    pub fn take_changed(&mut self) -> Vec<v1::RangeStatus> {
        let changed = std::mem::take(&mut self.changed);
        changed.iter().filter_map(|range| self.ranges.get(*range)).map(Route::status).collect()
    }

    /// Takes another node's routes in.
    pub fn told(&mut self, routes: &v1::ListRangesResponse) {
        for route in routes.ranges.iter().filter_map(Route::told) {
            self.told.insert(route.range_id());
            self.merge(route);
        }
        if self.keyspaces.is_empty() {
            self.keyspaces.clone_from(&routes.keyspaces);
        }
    }

    /// Whether nobody has told anything yet: neither placement nor another node.
    pub fn is_empty(&self) -> bool {
        self.keyspaces.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(range_id: u64, version: u64, leader_node_id: u64) -> v1::RangeStatus {
        let epoch = Some(v1::Epoch { conf_ver: 1, version });
        let descriptor = v1::RangeDescriptor { range_id, keyspace_id: range_id, epoch, ..Default::default() };
        v1::RangeStatus { descriptor: Some(descriptor), leader_node_id, term: version, ..Default::default() }
    }

    fn answer(routes: Vec<v1::RangeStatus>, gone_ranges: Vec<u64>) -> v1::ReportResponse {
        v1::ReportResponse { routes, gone_ranges, ..Default::default() }
    }

    fn known(learned: &Learned) -> Vec<(u64, u64)> {
        learned.ranges.iter().map(|route| (route.range_id(), route.leader_node_id)).collect()
    }

    #[test]
    fn what_a_replica_here_says_stays_until_it_goes() {
        let mut learned = Learned::default();
        learned.own(2, Route::told(&route(2, 1, 7)));
        learned.own(3, Route::told(&route(3, 1, 7)));
        assert!(learned.answered(&answer(vec![route(3, 1, 7), route(4, 1, 8)], vec![])));
        assert_eq!(known(&learned), [(2, 7), (3, 7), (4, 8)]);
        assert!(learned.answered(&answer(vec![], vec![3, 4])), "one of them has gone");
        assert_eq!(known(&learned), [(2, 7), (3, 7)], "a replica of the other one is here");
        learned.own(2, None);
        learned.own(3, None);
        assert!(known(&learned).is_empty(), "nobody names them any more");
        learned.answered(&answer(vec![route(5, 1, 8)], vec![]));
        learned.own(5, Route::told(&route(5, 2, 9)));
        learned.own(5, None);
        assert_eq!(known(&learned), [(5, 9)], "others have it");
    }

    #[test]
    fn a_table_that_is_told_anew_takes_the_place_of_what_was_told() {
        let mut learned = Learned::default();
        learned.told(&v1::ListRangesResponse { ranges: vec![route(2, 1, 7), route(3, 1, 7)], ..Default::default() });
        learned.own(4, Route::told(&route(4, 1, 7)));
        let part =
            v1::ReportResponse { table_full: true, table_incomplete: true, ..answer(vec![route(3, 1, 7)], vec![]) };
        assert!(!learned.answered(&part));
        assert_eq!(known(&learned).len(), 3, "not all was told yet");
        assert!(learned.answered(&answer(vec![], vec![])));
        assert_eq!(known(&learned), [(3, 7), (4, 7)]);
    }

    #[test]
    fn changes_are_told_once() {
        let mut learned = Learned::default();
        learned.own(2, Route::told(&route(2, 1, 0)));
        learned.own(2, Route::told(&route(2, 1, 7)));
        learned.answered(&answer(vec![route(3, 1, 8)], vec![]));
        let leaders = |routes: Vec<v1::RangeStatus>| routes.iter().map(|of| of.leader_node_id).collect::<Vec<_>>();
        assert_eq!(leaders(learned.take_changed()), [7, 8]);
        learned.own(2, Route::told(&route(2, 1, 7)));
        assert!(learned.take_changed().is_empty());
    }
}
