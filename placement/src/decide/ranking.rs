//! Nodes in order of a measure, kept while a round decides.

use std::collections::{BTreeMap, BTreeSet};

use super::loads::{Load, Loads};

/// See the file's head.
#[derive(Debug, Default)]
pub(crate) struct Ranking {
    order: BTreeSet<(i64, u64)>,
    places: BTreeMap<u64, i64>,
}

impl Ranking {
    /// Those nodes that `which` is true of, by `measure`.
    pub fn of<'a>(
        loads: impl Iterator<Item = &'a Load>,
        which: impl Fn(&Load) -> bool,
        measure: impl Fn(&Load) -> i64,
    ) -> Self {
        let places: BTreeMap<u64, i64> =
            loads.filter(|load| which(load)).map(|load| (load.node, measure(load))).collect();
        Self { order: places.iter().map(|(node, value)| (*value, *node)).collect(), places }
    }

    /// The least first.
    pub fn up(&self) -> impl Iterator<Item = u64> + '_ {
        self.order.iter().map(|(_, node)| *node)
    }

    /// The largest first.
    pub fn down(&self) -> impl Iterator<Item = u64> + '_ {
        self.order.iter().rev().map(|(_, node)| *node)
    }

    /// The node's measure has changed.
    pub fn update(&mut self, loads: &Loads, node: u64, measure: impl Fn(&Load) -> i64) {
        let (Some(old), Some(load)) = (self.places.get_mut(&node), loads.get(node)) else { return };
        self.order.remove(&(*old, node));
        *old = measure(load);
        self.order.insert((*old, node));
    }
}
