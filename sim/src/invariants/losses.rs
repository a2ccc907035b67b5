//! Losses that a person has decided about: a range goes on with what one replica has, and what only the lost ones had is
//! forgotten here too. All that was ever seen of entries that were kept still holds.
//!
//! Nodes that were given up and come back are not watched: they may do among themselves whatever they like. What they
//! must not do is to be believed, and that shows at the others.

use std::collections::BTreeMap;

use flotilla_proto::{RangeId, v1};

use super::{Check, Invariants};
use crate::territory::{self, Descriptor};

/// Forgets what is known of a range's entries behind an index.
fn cut<V>(map: &mut BTreeMap<(RangeId, u64), V>, range: RangeId, behind: u64) {
    map.retain(|(of, index), _| *of != range || *index <= behind);
}

impl Invariants {
    /// The node was given up for good, and has come back.
    pub(crate) fn cast_out(&mut self, node: usize) {
        self.outcasts.insert(node);
        self.views.retain(|(_, of), _| *of != node);
    }

    pub(crate) fn is_outcast(&self, node: usize) -> bool {
        self.outcasts.contains(&node)
    }

    /// Where a replica's log ends.
    pub(crate) fn last_written(&self, node: usize, range: RangeId) -> u64 {
        self.written[node].get(&range).map_or(0, crate::mirror::LogMirror::last_index)
    }

    /// Whether a node's log holds a change of the range's replicas that no replica has applied yet.
    pub(crate) fn awaits_change(&self, node: usize, range: RangeId) -> bool {
        let Some(log) = self.written[node].get(&range) else { return false };
        let applied = self.checksums.range((range, 0)..=(range, u64::MAX)).next_back();
        let behind = applied.map_or(0, |((_, index), _)| *index) + 1;
        let mut changes = self.replica_changes.range((range, behind, 0)..=(range, u64::MAX, u64::MAX));
        changes.any(|(_, index, term)| log.terms.get(index) == Some(term))
    }

    /// Up to where a replica's log holds what is known to be committed.
    pub(crate) fn committed_held(&self, node: usize, range: RangeId) -> u64 {
        let committed = self.committed.range((range, 0)..=(range, u64::MAX)).next_back();
        committed.map_or(0, |((_, index), _)| *index).min(self.last_written(node, range))
    }

    /// What a person's plan keeps: of what survivors with the same say have written and is known to be committed, all.
    pub(crate) fn check_kept(&self, node: u64, order: &v1::RecoverReplica, others: &[u64]) -> Check {
        let range = RangeId(order.range_id);
        let log = |node: u64| self.written[node as usize - 1].get(&range);
        let committed = self.committed.range((range, 0)..=(range, u64::MAX)).rev();
        // A plan is made of what nodes have said, and the replica may be gone since: its keyspace was dropped, say. Then the
        // order finds nobody, and nothing goes on. The choice is judged all the same, by what the node said: of committed
        // entries a log holds all that are not newer than its last one.
        let kept = log(node).filter(|log| log.replica == order.replica_id);
        let told = (order.last_term, order.last_index);
        for ((_, index), (term, _)) in committed {
            // What was truncated was applied; and who has applied it is level up to there.
            let holds = |node: u64| log(node).is_some_and(|log| log.holds(*index, *term));
            let Some(other) = others.iter().find(|other| holds(**other)) else { continue };
            if kept.map_or((*term, *index) <= told, |log| log.holds(*index, *term)) {
                return Ok(());
            }
            return Err(format!(
                "{range} is to go on with n{node}, whose log ends at {}.{}; n{other} holds entry {index} of term {term}, which is committed",
                order.last_term, order.last_index
            ));
        }
        Ok(())
    }

    /// A range goes on with one replica, which had applied its log up to `applied`: durably.
    pub(crate) fn went_on(&mut self, node: usize, descriptor: &Descriptor, term: u64, applied: u64) -> Check {
        let range = RangeId(descriptor.range_id);
        if let Some(before) = self.territory.newest(range) {
            let fresh = descriptor.replicas.iter().all(|of| of.replica_id >= before.next_replica_id);
            let [own] = &descriptor.replicas[..] else {
                return Err(format!("I5: {} goes on, and not with one replica", territory::words(descriptor)));
            };
            if own.node_id != node as u64 + 1 || !fresh || territory::age(before).1 >= territory::age(descriptor).1 {
                let (after, before) = (territory::words(descriptor), territory::words(before));
                return Err(format!("I5: {after} goes on, and might be taken for {before}"));
            }
        }
        let led = self.leaders.range((range, term)..=(range, u64::MAX)).find(|(_, of)| **of != node);
        if let Some(((_, known), other)) = led {
            return Err(format!(
                "I1: n{} goes on with {range} in term {term}, n{} led in {known}",
                node + 1,
                other + 1
            ));
        }
        for lost in self.territory.went_on(descriptor, applied) {
            self.forget(lost);
        }
        self.cut(range, applied);
        self.recovered_ranges.insert(range);
        self.forget_versions(descriptor);
        Ok(())
    }

    /// Versions of a range's keys may come again, for other values: those that had them are lost.
    pub(crate) fn forget_versions(&mut self, range: &v1::RangeDescriptor) {
        let held = |key: &(u64, bytes::Bytes)| key.0 == range.keyspace_id && territory::holds_key(range, &key.1);
        self.versions.retain(|key, _| !held(key));
    }

    /// Whether a node's replica is one of those without which its range went on: what it has applied may be what is lost, until it learns that
    /// it is no part of the range any more.
    pub(super) fn is_left_behind(&self, node: usize, range: RangeId) -> bool {
        let own = self.durable[node].get(&range).map(|of| of.replica);
        let named = |of: &Descriptor| of.replicas.iter().any(|replica| own.is_none_or(|own| replica.replica_id == own));
        self.recovered_ranges.contains(&range) && self.territory.newest(range).is_some_and(|newest| !named(newest))
    }

    fn cut(&mut self, range: RangeId, behind: u64) {
        cut(&mut self.committed, range, behind);
        cut(&mut self.checksums, range, behind);
        cut(&mut self.results, range, behind);
        cut(&mut self.keys, range, behind);
        cut(&mut self.merges, range, behind);
        cut(&mut self.checkpoints, range, behind);
    }

    /// Nothing is left of a range; its id may come again with what begins in its place.
    pub(crate) fn forget(&mut self, range: RangeId) {
        self.cut(range, 0);
        let of_others = |of: &RangeId| *of != range;
        self.leaders.retain(|(of, _), _| of_others(of));
        self.entries.retain(|(of, ..), _| of_others(of));
        self.unproven.retain(|(of, ..), _| of_others(of));
        self.replica_changes.retain(|(of, ..)| of_others(of));
        for synced in &mut self.applied_synced {
            synced.remove(&range);
        }
        for ended in &mut self.ended {
            ended.remove(&range);
        }
        self.territory.forget(range);
    }
}
