//! Where nodes are, and what that means for replicas: their labels, read once for each change of nodes or keyspaces.
//!
//! Two replicas of a range are too close if a zone, a rack or a host would take both. A rack is one of its zone, and a
//! host one of its rack: two zones may use the same names. Nodes without the label zone, or rack, count as being in the
//! same one, because nobody has said that they are apart; a node without the label host is a host of its own.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_proto::v1;

use crate::state::Records;

/// What a pair of replicas in the same zone, rack and host costs: fewer pairs in a zone count before all else.
const SAME_ZONE: u32 = 10_000;
const SAME_RACK: u32 = 100;
const SAME_HOST: u32 = 1;

/// Names as numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    zone: usize,
    rack: usize,
    host: usize,
}

impl Place {
    /// How close replicas in these places are to each other.
    pub fn close_to(self, other: Self) -> u32 {
        let zone = if self.zone == other.zone { SAME_ZONE } else { 0 };
        let rack = if self.rack == other.rack { SAME_RACK } else { 0 };
        zone + rack + if self.host == other.host { SAME_HOST } else { 0 }
    }

    pub fn is_zone_of(self, other: Self) -> bool {
        self.zone == other.zone
    }

    pub fn is_host_of(self, other: Self) -> bool {
        self.host == other.host
    }

    /// Its zone and rack.
    pub fn site(self) -> (usize, usize) {
        (self.zone, self.rack)
    }

    pub fn beside(self, others: &[Self]) -> u32 {
        others.iter().map(|other| self.close_to(*other)).sum()
    }
}

/// How close replicas in all these places are to each other.
pub(crate) fn closeness(places: &[Place]) -> u32 {
    places.iter().enumerate().map(|(at, place)| place.beside(&places[..at])).sum()
}

/// A keyspace's constraints, told by node.
#[derive(Clone, Debug)]
struct Rules {
    allowed: BTreeSet<u64>,
    /// Place in the list of preferences; a node that is not here has none of them.
    preferred: BTreeMap<u64, usize>,
    preferences: usize,
}

/// See the file's head.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    nodes: BTreeMap<u64, Place>,
    /// Of each zone, of each rack, of each host: how many there are.
    counts: [usize; 3],
    /// Of keyspaces that have constraints.
    rules: BTreeMap<u64, Rules>,
}

/// The value of a node's label.
pub(crate) fn label<'a>(labels: &'a [v1::Label], key: &str) -> Option<&'a str> {
    labels.iter().find(|label| label.key == key).map(|label| label.value.as_str())
}

/// Whether a node with these labels has this one.
pub(crate) fn has(labels: &[v1::Label], wanted: &v1::Label) -> bool {
    label(labels, &wanted.key) == Some(wanted.value.as_str())
}

/// Whether a node with these labels may hold replicas under these constraints.
pub(crate) fn allows(constraints: &v1::Constraints, labels: &[v1::Label]) -> bool {
    constraints.require.iter().all(|wanted| has(labels, wanted))
        && !constraints.forbid.iter().any(|barred| has(labels, barred))
}

impl Places {
    pub fn of(records: &Records) -> Self {
        let mut names: [BTreeMap<String, usize>; 3] = Default::default();
        let mut number = |level: usize, name: String| {
            let next = names[level].len();
            *names[level].entry(name).or_insert(next)
        };
        let mut nodes = BTreeMap::new();
        for record in records.nodes.values().filter(|record| !record.removed) {
            let of = |key| label(&record.labels, key).unwrap_or_default();
            let rack = format!("{}\n{}", of("zone"), of("rack"));
            let host = match label(&record.labels, "host") {
                Some(host) => format!("{rack}\n{host}"),
                None => format!("\n\n\n{}", record.node_id),
            };
            let zone = number(0, of("zone").into());
            nodes.insert(record.node_id, Place { zone, rack: number(1, rack), host: number(2, host) });
        }
        let counts = names.map(|names| names.len());
        let rules =
            records.keyspaces.values().filter_map(|keyspace| Some((keyspace.keyspace_id, rules(records, keyspace)?)));
        Self { nodes, counts, rules: rules.collect() }
    }

    /// Where a node is; of one that is not known anywhere.
    pub fn place(&self, node: u64) -> Place {
        self.nodes.get(&node).copied().unwrap_or(Place { zone: usize::MAX, rack: usize::MAX, host: usize::MAX })
    }

    /// How close these nodes are to each other.
    pub fn closeness(&self, nodes: &[u64]) -> u32 {
        let places: Vec<Place> = nodes.iter().map(|node| self.place(*node)).collect();
        closeness(&places)
    }

    /// No set of so many nodes is less close than this.
    pub fn closeness_min(&self, nodes: usize) -> u32 {
        let pairs = |groups: usize| {
            let groups = groups.max(1);
            let (each, more) = (nodes / groups, nodes % groups);
            let of = |size: usize| size * size.saturating_sub(1) / 2;
            (of(each + 1) * more + of(each) * (groups - more)) as u32
        };
        pairs(self.counts[0]) * SAME_ZONE + pairs(self.counts[1]) * SAME_RACK + pairs(self.counts[2]) * SAME_HOST
    }

    /// [`Self::closeness_min`] of each number of nodes up to this one.
    pub fn least(&self, nodes: usize) -> Vec<u32> {
        (0..=nodes).map(|nodes| self.closeness_min(nodes)).collect()
    }

    /// Whether the keyspace's constraints let the node hold replicas.
    pub fn allows(&self, keyspace: u64, node: u64) -> bool {
        self.rules.get(&keyspace).is_none_or(|rules| rules.allowed.contains(&node))
    }

    /// Whether the keyspace names labels that replicas must or must not be with.
    pub fn is_bound(&self, keyspace: u64) -> bool {
        self.rules.contains_key(&keyspace)
    }

    /// Whether the keyspace prefers some nodes for its leaders.
    pub fn has_preferences(&self, keyspace: u64) -> bool {
        self.rules.get(&keyspace).is_some_and(|rules| rules.preferences != 0)
    }

    /// How little the keyspace wants its leaders on the node: 0 is best.
    pub fn lead_rank(&self, keyspace: u64, node: u64) -> usize {
        let of = |rules: &Rules| rules.preferred.get(&node).copied().unwrap_or(rules.preferences);
        self.rules.get(&keyspace).map_or(0, of)
    }

    /// The best of these nodes for a leader: its [`Self::lead_rank`].
    pub fn best_rank(&self, keyspace: u64, nodes: impl Iterator<Item = u64>) -> usize {
        if !self.has_preferences(keyspace) {
            return 0;
        }
        nodes.map(|node| self.lead_rank(keyspace, node)).min().unwrap_or(usize::MAX)
    }
}

fn rules(records: &Records, keyspace: &v1::Keyspace) -> Option<Rules> {
    let constraints = keyspace.constraints.as_ref()?;
    let nodes = || records.nodes.values().filter(|record| !record.removed);
    let rank = |record: &v1::NodeRecord| {
        let place = constraints.prefer_leaders_in.iter().position(|wanted| has(&record.labels, wanted))?;
        Some((record.node_id, place))
    };
    Some(Rules {
        allowed: nodes().filter(|record| allows(constraints, &record.labels)).map(|record| record.node_id).collect(),
        preferred: nodes().filter_map(rank).collect(),
        preferences: constraints.prefer_leaders_in.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(nodes: &[&str]) -> Places {
        let label = |text: &str| {
            let (key, value) = text.split_once('=')?;
            Some(v1::Label { key: key.into(), value: value.into() })
        };
        let record = |(node_id, text): (u64, &&str)| {
            let labels = text.split(' ').filter_map(label).collect();
            (node_id, v1::NodeRecord { node_id, labels, ..Default::default() })
        };
        let nodes = (1..).zip(nodes).map(record).collect();
        Places::of(&Records { nodes, ..Default::default() })
    }

    #[test]
    fn a_zone_counts_before_a_rack_and_a_rack_before_a_host() {
        let places =
            places(&["zone=a rack=1", "zone=a rack=1", "zone=a rack=2", "zone=b rack=1", "zone=b rack=1 host=x"]);
        assert_eq!(places.closeness(&[1, 2]), SAME_ZONE + SAME_RACK);
        assert_eq!(places.closeness(&[1, 3]), SAME_ZONE);
        assert_eq!(places.closeness(&[1, 4]), 0, "racks of two zones are two racks");
        assert_eq!(places.closeness(&[1, 2, 4]), SAME_ZONE + SAME_RACK);
        assert_eq!(places.closeness(&[4, 5]), SAME_ZONE + SAME_RACK);
    }

    #[test]
    fn nobody_has_said_that_nodes_without_labels_are_apart() {
        let places = places(&["", "", "host=x", "host=x"]);
        assert_eq!(places.closeness(&[1, 2]), SAME_ZONE + SAME_RACK);
        assert_eq!(places.closeness(&[3, 4]), SAME_ZONE + SAME_RACK + SAME_HOST);
        assert_eq!(places.closeness_min(3), 3 * (SAME_ZONE + SAME_RACK));
    }

    #[test]
    fn the_least_closeness_is_that_of_an_even_spread() {
        let places = places(&["zone=a", "zone=a", "zone=b", "zone=b"]);
        assert_eq!(places.closeness_min(2), 0);
        assert_eq!(places.closeness_min(3), SAME_ZONE + SAME_RACK);
        assert_eq!(places.closeness(&[1, 2, 3]), SAME_ZONE + SAME_RACK);
        assert_eq!(places.closeness_min(5), 4 * (SAME_ZONE + SAME_RACK) + SAME_HOST);
    }
}
