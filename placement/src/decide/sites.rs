//! Nodes that may be given replicas, by where they are, the emptiest first: so that a choice among a thousand nodes
//! costs what one among the sites costs.
//!
//! Nodes in the same zone and rack that a keyspace wants its leaders on equally are as good as each other for any range, but
//! for what they have and for their hosts. So of each such site the first nodes are enough to choose from, down to the first
//! that is on no host of the range's other replicas.

use std::collections::{BTreeMap, BTreeSet};

use super::loads::Load;
use crate::places::Place;

/// What makes a node empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Measure {
    /// Few replicas, then few bytes.
    Replicas,
    /// Few bytes, then few replicas.
    Bytes,
}

impl Measure {
    pub fn of(self, load: &Load) -> i64 {
        match self {
            Self::Replicas => load.replicas,
            Self::Bytes => load.bytes,
        }
    }

    fn key(self, load: &Load) -> Key {
        let (first, then) = match self {
            Self::Replicas => (load.replicas, load.bytes),
            Self::Bytes => (load.bytes, load.replicas),
        };
        (first, then, load.node)
    }
}

/// The measure, and the node behind it.
type Key = (i64, i64, u64);

/// How little the keyspace wants its leaders there; zone and rack.
type SiteId = (usize, (usize, usize));

/// Whether a node may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    /// It may; it lies there.
    Take(Place),
    /// Not this one.
    Pass,
    /// Neither this one nor any that comes behind it in its site.
    Leave,
}

/// Nodes of one site.
#[derive(Clone, Debug, Default)]
struct Site {
    /// Those that can be given something now, and those that take part in as many moves as they may.
    open: BTreeSet<Key>,
    full: BTreeSet<Key>,
}

/// See the file's head. Of one keyspace, or of all that have no constraints.
#[derive(Clone, Debug)]
pub(crate) struct Sites {
    measure: Measure,
    sites: BTreeMap<SiteId, Site>,
    /// Where each node is filed.
    filed: BTreeMap<u64, (SiteId, Key, bool)>,
}

impl Sites {
    /// Of these nodes: how little the keyspace wants its leaders on each, and whether it can be given something now.
    pub fn of<'a>(measure: Measure, loads: impl Iterator<Item = (usize, &'a Load, bool)>) -> Self {
        let mut all = Self { measure, sites: BTreeMap::new(), filed: BTreeMap::new() };
        loads.for_each(|(rank, load, open)| all.file((rank, load.place.site()), load, open));
        all
    }

    fn file(&mut self, id: SiteId, load: &Load, open: bool) {
        let key = self.measure.key(load);
        let site = self.sites.entry(id).or_default();
        if open {
            site.open.insert(key)
        } else {
            site.full.insert(key)
        };
        self.filed.insert(load.node, (id, key, open));
    }

    /// What the node has, or may be given, has changed.
    pub fn update(&mut self, load: &Load, open: bool) {
        let Some((id, key, was_open)) = self.filed.get(&load.node).copied() else { return };
        if let Some(site) = self.sites.get_mut(&id) {
            if was_open {
                site.open.remove(&key)
            } else {
                site.full.remove(&key)
            };
        }
        self.file(id, load, open);
    }

    /// How many nodes these are.
    pub fn count(&self) -> usize {
        self.filed.len()
    }

    /// Of each site that `which` is true of the first nodes that may be chosen, as the file's head says; those that can
    /// be given something now before the others, which come only if they are asked for. `which` has the site's rank,
    /// and its zone and rack.
    pub fn offers(
        &self,
        which: impl Fn(usize, (usize, usize)) -> bool,
        full_too: bool,
        others: &[Place],
        mut may: impl FnMut(u64) -> Offer,
    ) -> Vec<u64> {
        let mut found = Vec::new();
        for (_, site) in self.sites.iter().filter(|((rank, place), _)| which(*rank, *place)) {
            let full = site.full.iter().take(if full_too { usize::MAX } else { 0 });
            for (.., node) in site.open.iter().chain(full) {
                match may(*node) {
                    Offer::Pass => {}
                    Offer::Leave => break,
                    Offer::Take(place) => {
                        found.push(*node);
                        if !others.iter().any(|other| other.is_host_of(place)) {
                            break;
                        }
                    }
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use flotilla_proto::v1;

    use super::*;
    use crate::places::Places;
    use crate::state::Records;

    /// Numbers that look random.
    fn numbers() -> impl FnMut(u64) -> u64 {
        let mut state = 7_u64;
        move |below| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        }
    }

    /// Sixty nodes in three zones of two racks, some of them on one host.
    fn nodes(number: &mut impl FnMut(u64) -> u64) -> BTreeMap<u64, Load> {
        let mut record = |node_id: u64| {
            let mut label = |key: &str, of: u64| v1::Label { key: key.into(), value: number(of).to_string() };
            let mut labels = vec![label("zone", 3), label("rack", 2)];
            if node_id.is_multiple_of(2) {
                labels.push(label("host", 4));
            }
            (node_id, v1::NodeRecord { node_id, labels, ..Default::default() })
        };
        let places = Places::of(&Records { nodes: (1..=60).map(&mut record).collect(), ..Default::default() });
        let mut load = |node| {
            let mut load = Load::default();
            (load.node, load.place, load.fit) = (node, places.place(node), true);
            (load.replicas, load.bytes) = (number(9) as i64, number(9) as i64);
            (node, load)
        };
        (1..=60).map(&mut load).collect()
    }

    #[test]
    fn the_best_of_all_is_among_the_offers() {
        let mut number = numbers();
        for _ in 0..300 {
            let mut loads = nodes(&mut number);
            let measure = if number(2) == 0 { Measure::Replicas } else { Measure::Bytes };
            let rank = |node: u64| (node % 3) as usize;
            let mut open: BTreeMap<u64, bool> = loads.keys().map(|node| (*node, number(3) > 0)).collect();
            let mut sites = Sites::of(measure, loads.values().map(|load| (rank(load.node), load, open[&load.node])));
            assert_eq!(sites.count(), loads.len());
            for _ in 0..20 {
                let node = 1 + number(60);
                let load = loads.get_mut(&node).expect("a node");
                load.replicas += 1;
                open.insert(node, number(3) > 0);
                sites.update(load, open[&node]);
            }
            let holders: Vec<u64> = (0..number(5)).map(|_| 1 + number(60)).collect();
            let others: Vec<Place> = holders.iter().map(|node| loads[node].place).collect();
            for full_too in [false, true] {
                let may = |node: u64| match !holders.contains(&node) && (full_too || open[&node]) {
                    true => Offer::Take(loads[&node].place),
                    false => Offer::Pass,
                };
                let key = |node: &u64| {
                    let load = &loads[node];
                    (load.place.beside(&others), rank(*node), measure.of(load), load.replicas + load.bytes, *node)
                };
                let best = loads.keys().copied().filter(|node| may(*node) != Offer::Pass).min_by_key(key);
                let offers = sites.offers(|_, _| true, full_too, &others, may);
                assert!(offers.len() <= 60 / 2, "{}", offers.len());
                let found = offers.iter().copied().min_by_key(key);
                if full_too {
                    // Whether there is one as close is what is asked for then.
                    let close = |node: Option<u64>| node.map(|node| loads[&node].place.beside(&others));
                    assert_eq!(close(found), close(best));
                } else {
                    assert_eq!(found, best);
                }
            }
        }
    }
}
