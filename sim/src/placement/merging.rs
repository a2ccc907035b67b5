//! The toy placement's merges: neighbours drawn at random. It moves the replicas of one to where the other's are, then has
//! the leader of the right one begin; often it does not wait for the replicas, orders two merges of one range at once, or
//! takes an order back in the middle.

use std::collections::BTreeSet;

use flotilla_proto::{RangeId, v1};

use super::toy::{Merged, Ordered, Placement};
use crate::clock::ms;
use crate::cluster::Cluster;
use crate::marks::Mark;
use crate::territory::{age, holds_key};

impl Placement {
    /// The range that ends where this one begins, as far as that is known.
    pub(crate) fn left_of(&self, range: RangeId) -> Option<v1::RangeDescriptor> {
        let right = &self.known.get(&range)?.descriptor;
        let meets = |left: &&v1::RangeDescriptor| {
            left.keyspace_id == right.keyspace_id && !left.end.is_empty() && left.end == right.start
        };
        self.known.values().map(|known| &known.descriptor).find(meets).cloned()
    }

    /// Ranges whose beginning a newer one holds were merged into it: where a range begins never changes.
    pub(super) fn forget_merged(&mut self) {
        let all: Vec<&v1::RangeDescriptor> = self.known.values().map(|known| &known.descriptor).collect();
        let taken_in_by = |of: &v1::RangeDescriptor| {
            let by = |other: &&&v1::RangeDescriptor| {
                other.range_id != of.range_id
                    && other.keyspace_id == of.keyspace_id
                    && age(other).0 > age(of).0
                    && holds_key(other, &of.start)
            };
            all.iter().find(by).map(|by| (*by).clone())
        };
        let gone: Vec<(RangeId, v1::RangeDescriptor)> =
            all.iter().filter_map(|of| Some((RangeId(of.range_id), taken_in_by(of)?))).collect();
        for (range, by) in gone {
            self.merged.extend(self.known.remove(&range).map(|known| (range, Merged { last: known.descriptor, by })));
            self.orders.remove(&range);
            self.aligning.remove(&range);
        }
    }

    /// The next order for a merge of this range into its left neighbour.
    fn draw_merge(&mut self, range: RangeId) -> Option<v1::RangeOrder> {
        let left = self.left_of(range)?;
        let nodes = |of: &v1::RangeDescriptor| -> BTreeSet<u64> { of.replicas.iter().map(|of| of.node_id).collect() };
        let (wanted, held) = (nodes(&left), nodes(&self.known.get(&range)?.descriptor));
        if wanted != held && self.rng.chance(850) {
            let add = wanted.difference(&held).copied().collect();
            let remove = held.difference(&wanted).copied().collect();
            return Some(self.order(range, add, remove, 0));
        }
        let order = self.order(range, Vec::new(), Vec::new(), 0);
        Some(v1::RangeOrder { merge_into: Some(left), ..order })
    }
}

impl Cluster {
    /// Goes on with a merge, or begins one.
    pub(crate) fn merge_something(&mut self, range: RangeId) {
        let Some(order) = self.placement.draw_merge(range) else { return };
        let Some(leader) = self.placement.known.get(&range).and_then(|known| known.leader) else { return };
        if order.merge_into.is_some() {
            self.marks.hit(Mark::MergeOrdered);
        } else {
            self.placement.aligning.insert(range);
        }
        self.trace.say(self.now, || format!("merge order to n{}: {order:?}", leader + 1));
        let until = self.now + self.placement.rng.pick(&[ms(200), ms(3_000), ms(10_000)]);
        self.placement.orders.insert(range, Ordered { order: order.clone(), until });
        self.tell(leader, flotilla_engine::store::Input::Order(order));
    }

    /// Replicas that were moved for a merge are where they should be: now for the merge itself.
    pub(super) fn follow_merges(&mut self) {
        let ready: Vec<RangeId> = self
            .placement
            .aligning
            .iter()
            .copied()
            .filter(|range| !self.placement.orders.contains_key(range))
            .collect();
        for range in ready {
            self.placement.aligning.remove(&range);
            self.merge_something(range);
        }
    }
}
