//! Who holds which keys once a person has given up what a lost majority had.

use flotilla_engine::bootstrap::INITIAL_INDEX;
use flotilla_engine::membership;
use flotilla_proto::{RangeId, v1};

use super::merges::Merges;
use super::{Descriptor, Holdings, Territory, overlap};
use crate::mirror::replica_on;

impl Territory {
    /// A range goes on with one replica, which had applied its log up to `applied`. Returns the ranges that were split off by
    /// entries behind that, and of which no store has anything.
    pub(crate) fn went_on(&mut self, descriptor: &Descriptor, applied: u64) -> Vec<RangeId> {
        let id = RangeId(descriptor.range_id);
        let history = self.history.entry(id).or_default();
        let later = history.split_off(&applied);
        history.insert(applied, descriptor.clone());
        if let Some(last) = later.get(&applied).filter(|last| *last != descriptor) {
            self.superseded.insert((id, applied), last.clone());
        }
        self.origins.entry(id).or_insert(None);
        self.merges.went_on(id, applied);
        let node = descriptor.replicas.first().map_or(0, |of| of.node_id as usize - 1);
        self.stores[node].ranges.insert(id, descriptor.clone());
        let from_here = |origin: &Option<(RangeId, u64)>| origin.is_some_and(|(of, index)| of == id && index > applied);
        let split_off = self.origins.iter().filter(|(_, origin)| from_here(origin)).map(|(child, _)| *child);
        split_off.filter(|child| !self.is_somewhere(*child)).collect()
    }

    fn is_somewhere(&self, range: RangeId) -> bool {
        self.living().any(|(_, store)| store.ranges.contains_key(&range))
    }

    /// The nodes that are gone, and what they had.
    pub(crate) fn lose(&mut self, nodes: &[usize]) {
        self.lost.extend(nodes);
        self.doubt();
    }

    /// Something is to be recovered.
    pub(crate) fn doubt(&mut self) {
        self.in_doubt = true;
    }

    /// A node that was given for lost is there again, with all that it had.
    pub(crate) fn find_again(&mut self, node: usize) {
        self.lost.remove(&node);
    }

    /// Nothing is to be recovered any more: what nobody who lives has a majority of is no range, unless it is on its way
    /// out.
    pub(crate) fn settled(&mut self, is_dropped: impl Fn(u64) -> bool) -> Vec<RangeId> {
        if !std::mem::take(&mut self.in_doubt) {
            return Vec::new();
        }
        let stays = |range: &RangeId| {
            self.merges.is_ended(*range)
                || self.has_majority(*range)
                || self.is_being_born(*range)
                || self.newest(*range).is_some_and(|of| is_dropped(of.keyspace_id))
        };
        self.history.keys().copied().filter(|range| !stays(range)).collect()
    }

    /// Whether the living go on with the range that it was split from, and will all have split it off: some have already, or
    /// only the lost ones had, and what those had applied is committed (seed 33361).
    fn is_being_born(&self, range: RangeId) -> bool {
        let Some((parent, _)) = self.origins.get(&range).copied().flatten() else { return false };
        let lives = self.has_majority(parent) || self.is_being_born(parent);
        lives && (self.is_somewhere(range) || self.is_still_in(range, parent))
    }

    /// Whether all of the living that have the parent have the child's keys in it. (If one has none of them, it had the child,
    /// and what became of that is lost.)
    fn is_still_in(&self, child: RangeId, parent: RangeId) -> bool {
        let first = self.history.get(&child).and_then(|history| history.get(&INITIAL_INDEX));
        let mut held = self.living().filter_map(|(_, store)| store.ranges.get(&parent));
        first.is_some_and(|first| held.all(|of| overlap(of, first)))
    }

    fn living(&self) -> impl Iterator<Item = (usize, &Holdings)> {
        self.stores.iter().enumerate().filter(|(node, _)| !self.lost.contains(node))
    }

    /// Whether the living have a majority of it, by the newest that any of them has; or by the newest that anybody ever
    /// applied, for whoever applied it may have left by it.
    pub(crate) fn has_majority(&self, range: RangeId) -> bool {
        let held: Vec<(usize, &Descriptor)> =
            self.living().filter_map(|(node, store)| Some((node, store.ranges.get(&range)?))).collect();
        let age = |of: &&Descriptor| of.epoch.map(|epoch| (epoch.conf_ver, epoch.version));
        let lives = |of: &&v1::ReplicaDescriptor| {
            held.iter()
                .any(|(node, own)| replica_on(own, *node) == Some(of.replica_id) && *node as u64 + 1 == of.node_id)
        };
        let is_led_by_them = |of: &Descriptor| {
            let replicas = &of.replicas;
            let sets = [membership::voters(replicas), membership::old_voters(replicas)];
            sets.iter().filter(|set| !set.is_empty()).all(|set| {
                let voters = replicas.iter().filter(|of| set.contains(&of.replica_id));
                voters.filter(lives).count() > set.len() / 2
            })
        };
        let newest_held = held.iter().map(|(_, of)| *of).max_by_key(age);
        newest_held.into_iter().chain(self.newest(range)).any(is_led_by_them)
    }

    /// Nothing is known of the range any more.
    pub(crate) fn forget(&mut self, range: RangeId) {
        self.history.remove(&range);
        self.origins.remove(&range);
        // Its log is gone too: should the range begin again, that one does not split off what this one had (seed 36322).
        let from_it = |origin: &&mut Option<(RangeId, u64)>| origin.is_some_and(|(parent, _)| parent == range);
        self.origins.values_mut().filter(from_it).for_each(|origin| *origin = None);
        self.merges.forget(range);
    }
}

impl Merges {
    /// A range goes on with what one replica had applied up to an index: it is frozen no more, and what it has taken in since
    /// is not its own.
    pub(super) fn went_on(&mut self, range: RangeId, applied: u64) {
        if let Some(of_range) = self.freezes.get_mut(&range) {
            of_range.retain(|index, _| *index <= applied);
            for freeze in of_range.values_mut() {
                freeze.goes_on(applied);
            }
        }
        self.ended.remove(&range);
        for (source, of_source) in &mut self.freezes {
            if of_source.values_mut().any(|freeze| freeze.is_undone(range, applied)) {
                self.ended.remove(source);
            }
        }
    }

    pub(super) fn forget(&mut self, range: RangeId) {
        self.freezes.remove(&range);
        self.ended.remove(&range);
    }
}
