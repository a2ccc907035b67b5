//! What a node has learned of the cluster from others: routes, keyspaces, nodes. Pure.
//!
//! Placement tells its table as changes behind a number that the node names. When it begins anew, what the node had
//! counts until the new table is complete: a service that has just begun does not know everything yet.

use std::collections::BTreeSet;

use flotilla_proto::v1;

use crate::route_map::{RouteMap, range_id};

/// See the file's head.
#[derive(Clone, Debug, Default)]
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
    /// Ranges that placement has not named since it began to tell its table anew. They count until it has told all.
    doubtful: BTreeSet<u64>,
}

impl Learned {
    /// Takes an answer of placement in; says whether routes or keyspaces changed.
    pub fn answered(&mut self, answer: &v1::ReportResponse) -> bool {
        let mut changed = self.keyspaces != answer.keyspaces;
        if answer.table_full {
            self.doubtful = self.ranges.ids().collect();
        }
        for gone in &answer.gone_ranges {
            changed |= self.ranges.remove(*gone);
        }
        for route in &answer.routes {
            self.doubtful.remove(&range_id(route));
            changed |= self.ranges.merge(route);
        }
        if !answer.table_incomplete {
            for gone in std::mem::take(&mut self.doubtful) {
                changed |= self.ranges.remove(gone);
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

    /// Takes another node's routes in.
    pub fn told(&mut self, routes: &v1::ListRangesResponse) {
        for route in &routes.ranges {
            self.ranges.merge(route);
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
