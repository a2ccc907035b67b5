//! Freezes and merges, as the replicas that apply them tell: what they do to who holds which keys.

use flotilla_engine::apply::{ChangeApplied, RangeChange};
use flotilla_proto::{RangeId, v1};

use super::{Descriptor, Territory, age, words};
use crate::invariants::Check;

impl Territory {
    /// A replica has applied a change that has to do with a merge. `frozen_at`: with a merge, where the source's log ended.
    pub(super) fn merge_applied(
        &mut self,
        node: usize,
        range: RangeId,
        change: &ChangeApplied,
        frozen_at: Option<u64>,
    ) -> Check {
        let index = change.index;
        match &change.outcome {
            Ok(RangeChange::Frozen { descriptor, frozen }) => {
                let named = (index, RangeId(frozen.target_range_id));
                if frozen.index != index {
                    return Err(format!("I5: {range} is frozen at {index}, and says it is at {}", frozen.index));
                }
                self.merges.frozen(range, named.0, named.1)?;
                self.note(range, index, descriptor)?;
                self.settle(node, descriptor.clone())
            }
            Ok(RangeChange::Thawed { .. }) => self.merges.thawed(range, index),
            Ok(RangeChange::Abandoned { descriptor, .. }) => {
                self.note(range, index, descriptor)?;
                self.settle(node, descriptor.clone())
            }
            Ok(RangeChange::Merged { descriptor, source, .. }) => {
                let id = RangeId(source.range_id);
                let Some(frozen_at) = frozen_at else {
                    return Err(format!("I5: entry {index} of {range} merges, and nobody saw it committed"));
                };
                if let Some(before) = self.in_force(range, index).cloned() {
                    check_merge(&before, source, descriptor)?;
                }
                self.merges.merged(id, frozen_at, range, index)?;
                self.note(range, index, descriptor)?;
                let store = &mut self.stores[node];
                if store.ranges.remove(&id).is_none() {
                    let words = words(descriptor);
                    return Err(format!(
                        "I6: n{} has no replica of {id}, and applies its merge into {words}",
                        node + 1
                    ));
                }
                store.tombstones.insert(id, u64::MAX);
                self.settle(node, descriptor.clone())
            }
            _ => Ok(()),
        }
    }

    /// A snapshot ends replicas of ranges that its own has taken in.
    pub(super) fn ended_by_snapshot(&mut self, node: usize, range: RangeId, into: RangeId) -> Check {
        if !self.merges.is_ended(range) {
            return Err(format!(
                "I6: n{}: a snapshot of {into} ends a replica of {range}, which was not merged",
                node + 1
            ));
        }
        let store = &mut self.stores[node];
        store.ranges.remove(&range);
        store.tombstones.insert(range, u64::MAX);
        Ok(())
    }
}

/// The merged range holds just what the two held, and no version that either has had.
fn check_merge(target: &Descriptor, source: &v1::RangeDescriptor, merged: &Descriptor) -> Check {
    let nodes = |of: &v1::RangeDescriptor| -> Vec<u64> {
        let mut nodes: Vec<u64> = of.replicas.iter().map(|of| of.node_id).collect();
        nodes.sort_unstable();
        nodes
    };
    let meet = target.keyspace_id == source.keyspace_id && target.end == source.start && !target.end.is_empty();
    let whole = merged.start == target.start && merged.end == source.end && merged.replicas == target.replicas;
    let newer = age(merged).0 > age(target).0.max(age(source).0);
    if meet && whole && newer && nodes(target) == nodes(source) {
        return Ok(());
    }
    Err(format!("I5: {} and {} are merged into {}", words(target), words(source), words(merged)))
}
