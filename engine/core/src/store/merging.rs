//! Merges, between two ranges of a store and from store to store: who asks whom, and the end of what was taken in. The
//! protocol: `range/merge.rs`.
//!
//! A range tells what it wants of another one by a [`Wish`], which the store grants when the range's turn is over.

use std::collections::BTreeSet;

use flotilla_proto::{Error, NodeId, RangeId, v1};

use super::{Destroy, Effects, Envelope, Merge, Store};
use crate::merges;
use crate::range::Asker;
use crate::time::BootTime;

/// How far the ranges that took each other in are followed.
const CHAIN_MAX: usize = 64;

/// What a range wants of another one.
#[derive(Debug)]
pub(crate) enum Wish {
    /// To be merged into its left neighbour: placement's order.
    Begin {
        /// The range.
        source: RangeId,
        /// The neighbour.
        target: RangeId,
    },
    /// To know what becomes of its merge, or to have it decided.
    Ask {
        /// What it asks.
        ask: Box<v1::MergeAsk>,
        /// Whom.
        nodes: BTreeSet<NodeId>,
    },
    /// It has taken another one in: the replica of that one here ends, and leaves its data.
    Absorbed {
        /// The one that ends.
        source: RangeId,
        /// The one that took it in.
        into: RangeId,
    },
    /// A snapshot of it takes the place of another one's replica here.
    Ended {
        /// The one that ends.
        source: RangeId,
        /// The one that took it in.
        into: RangeId,
    },
}

impl Store {
    /// An order to merge a range, which this node leads, into its left neighbour.
    pub(super) fn merge(&mut self, now: BootTime, merge: Merge, effects: &mut Effects) {
        if let Err(error) = self.rouse_leader(now, merge.range, None, effects) {
            return effects.merges.push((merge.token, Err(error)));
        }
        let target = self.target(merge.target);
        let asker = Asker { token: merge.token, deadline: merge.deadline };
        let mut begun = Err(self.missing(merge.range));
        self.with(now, merge.range, effects, |range, turn| {
            begun = range.begin_merge(turn, target.as_ref(), Some(asker));
        });
        if let Err(error) = begun {
            effects.merges.push((merge.token, Err(error)));
        }
    }

    /// A range that others may be merged into.
    fn target(&self, id: RangeId) -> Option<v1::RangeDescriptor> {
        if let Some(asleep) = self.sleepers.get(id) {
            return Some((**asleep.descriptor()).clone());
        }
        let range = self.ranges.get(&id).filter(|range| !range.is_unborn() && !range.is_doomed())?;
        range.frozen().is_none().then(|| range.descriptor().clone())
    }

    /// Grants what ranges have asked for.
    pub(super) fn grant(&mut self, now: BootTime, effects: &mut Effects) {
        while let Some(wish) = self.wishes.pop() {
            match wish {
                Wish::Begin { source, target } => {
                    let target = self.target(target);
                    self.with(now, source, effects, |range, turn| {
                        let begun = range.begin_merge(turn, target.as_ref(), None);
                        range.note_merge_order(begun);
                    });
                }
                Wish::Ask { ask, nodes } => self.ask(now, &ask, nodes, effects),
                Wish::Absorbed { source, into } => self.absorbed(now, source, into, effects),
                Wish::Ended { source, into } => self.ended(now, source, into, effects),
            }
        }
    }

    fn ask(&mut self, now: BootTime, ask: &v1::MergeAsk, nodes: BTreeSet<NodeId>, effects: &mut Effects) {
        let target = ask.frozen.as_ref().map_or(0, |frozen| frozen.target_range_id);
        let own = self.shared.node;
        let disk_full = self.shared.full_nodes.contains(&own);
        for to in nodes.iter().copied().filter(|to| *to != own) {
            let message =
                v1::PeerMessage { range_id: target, merge_ask: Some(Box::new(ask.clone())), ..Default::default() };
            effects.messages.push(Envelope { from: own, to, message, disk_full, snapshot: None });
        }
        if nodes.contains(&own)
            && let Some(told) = self.asked(now, ask, effects)
            && let Some(source) = &ask.source
        {
            self.with(now, RangeId(source.range_id), effects, |range, turn| range.merge_told(turn, told));
        }
    }

    /// What became of a merge, if it is known here; if it is to be decided here, that is begun.
    fn asked(&mut self, now: BootTime, ask: &v1::MergeAsk, effects: &mut Effects) -> Option<v1::MergeTold> {
        let (source, frozen) = (RangeId(ask.source.as_ref()?.range_id), ask.frozen.as_ref()?);
        let told = |merged| Some(v1::MergeTold { freeze_index: frozen.index, merged });
        if self.tombstones.get(&source).is_some_and(|gone| gone.merged_into != 0) {
            return told(true);
        }
        let target = RangeId(frozen.target_range_id);
        self.rouse(now, target, false, effects);
        if self.ranges.get(&target).is_some_and(|range| !range.is_unborn() && !range.is_doomed()) {
            let mut merged = None;
            self.with(now, target, effects, |range, turn| merged = range.merge_asked(turn, ask.clone()));
            return told(merged?);
        }
        // It had a replica here that got past the epoch in question, and has gone since. Had it taken the source in, the
        // source's replica here would have ended with that.
        let went_past = self.tombstones.get(&target).and_then(|gone| gone.epoch).zip(frozen.target_epoch);
        let here = self.ranges.get(&source).filter(|range| !range.is_doomed()).and_then(|range| range.frozen());
        let stands = here.is_some_and(|here| here.index == frozen.index);
        if stands && went_past.is_some_and(|(gone, named)| merges::is_past(gone, named)) {
            return told(false);
        }
        // It was taken in itself, and decided nothing more before that; whoever did knows all that it had taken in.
        let heir = self.heir(target)?;
        self.rouse(now, heir, false, effects);
        let knows = self.ranges.get(&heir).filter(|range| range.has_absorbed(target))?;
        told(knows.has_absorbed(source))
    }

    /// The living range here that holds what another one held, which was taken in.
    fn heir(&self, gone: RangeId) -> Option<RangeId> {
        let mut id = gone;
        for _ in 0..CHAIN_MAX {
            let into = self.tombstones.get(&id).map_or(0, |gone| gone.merged_into);
            if into == 0 {
                return None;
            }
            id = RangeId(into);
            let awake = self.ranges.get(&id).is_some_and(|range| !range.is_unborn() && !range.is_doomed());
            if awake || self.sleepers.contains(id) {
                return Some(id);
            }
        }
        None
    }

    /// What a request is told for a range that is not here.
    pub(super) fn missing(&self, range: RangeId) -> Error {
        match self.heir(range).and_then(|heir| self.descriptor_here(heir)) {
            Some(heir) => Error::EpochMismatch { range, descriptors: vec![heir.clone()] },
            None => Error::RangeNotFound { range },
        }
    }

    /// A message that is about a merge and none of Raft's; true: it was one.
    pub(super) fn merge_message(
        &mut self,
        now: BootTime,
        envelope: &Envelope,
        effects: &mut Effects,
    ) -> Option<Result<(), String>> {
        let message = &envelope.message;
        let id = RangeId(message.range_id);
        if let Some(ask) = &message.merge_ask {
            if let Some(told) = self.asked(now, ask, effects) {
                let range_id = ask.source.as_ref().map_or(0, |source| source.range_id);
                let message = v1::PeerMessage { range_id, merge_told: Some(told), ..Default::default() };
                let disk_full = self.shared.full_nodes.contains(&self.shared.node);
                let (from, to) = (envelope.to, envelope.from);
                effects.messages.push(Envelope { from, to, message, disk_full, snapshot: None });
            }
            return Some(Ok(()));
        }
        if let Some(told) = message.merge_told {
            self.with(now, id, effects, |range, turn| range.merge_told(turn, told));
            return Some(Ok(()));
        }
        (message.merged_into != 0).then(|| self.told_merged(now, id, RangeId(message.merged_into), effects))
    }

    /// What is told to a replica of a range that was taken in.
    pub(super) fn merged_notice(&self, id: RangeId, envelope: &Envelope) -> Option<Envelope> {
        let merged_into = self.tombstones.get(&id).map(|gone| gone.merged_into).filter(|into| *into != 0)?;
        // An answer to such a message would go to and fro.
        if envelope.message.from_replica == 0 {
            return None;
        }
        let message = v1::PeerMessage { range_id: id.0, merged_into, ..Default::default() };
        let disk_full = self.shared.full_nodes.contains(&self.shared.node);
        Some(Envelope { from: envelope.to, to: envelope.from, message, disk_full, snapshot: None })
    }

    /// Whether a frozen replica here may be what the range goes on from that takes it in: that one is behind the merge,
    /// or has still to begin here: this node was among its replicas when it decided. It ends this replica itself, by
    /// its log or with a snapshot; and a snapshot may be of before the merge.
    fn is_needed(&self, id: RangeId) -> bool {
        let Some(frozen) = self.ranges.get(&id).and_then(|range| range.frozen()) else { return false };
        let target = RangeId(frozen.target_range_id);
        match self.descriptor_here(target) {
            Some(target) => {
                let (epoch, named) = (target.epoch, frozen.target_epoch);
                !merges::is_past(epoch.unwrap_or_default(), named.unwrap_or_default())
            }
            None => !self.tombstones.contains_key(&target),
        }
    }

    /// The same, after placement's word that the replica is gone. It says so where the range that took it in is past
    /// the merge, or is not on this node: then that one can begin here only by a split that is still to be applied.
    pub(super) fn is_needed_all_the_same(&self, id: RangeId) -> bool {
        let Some((range, frozen)) = self.ranges.get(&id).and_then(|range| Some((range, range.frozen()?))) else {
            return false;
        };
        let source = range.descriptor();
        let may_bear = |other: &v1::RangeDescriptor| {
            other.keyspace_id == source.keyspace_id && !other.end.is_empty() && other.end == source.start
        };
        let target = RangeId(frozen.target_range_id);
        let is_here = self.descriptor_here(target).is_some();
        self.is_needed(id) && (is_here || self.descriptors_here().any(|(_, other)| may_bear(other)))
    }

    /// Whether a replica that goes has to wait for that of its merge's target, which goes as well: that one may have the
    /// merge still in its apply stage, and has it in its log for a start after a crash. So it is when both were held for a
    /// snapshot of the range that has both by now, and that snapshot will not be put in place. No two wait for each
    /// other: a target's span lies before its source's.
    pub(super) fn goes_after_target(&self, id: RangeId) -> bool {
        let target =
            self.ranges.get(&id).and_then(|range| range.frozen()).map(|frozen| RangeId(frozen.target_range_id));
        let target = target.and_then(|target| self.ranges.get(&target));
        target.is_some_and(|range| range.is_doomed()) && self.is_needed(id)
    }

    /// The range that some replicas were held for has none here any more.
    pub(super) fn let_go(&mut self, target: RangeId) {
        for id in self.held.clone() {
            if let Some(range) = self.ranges.get_mut(&id) {
                range.let_go(target);
                self.doomed.insert(id);
            }
        }
    }

    /// Told that a range was taken in.
    fn told_merged(&mut self, now: BootTime, id: RangeId, into: RangeId, effects: &mut Effects) -> Result<(), String> {
        if self.is_needed(id) {
            return Err(format!("range {into} takes it in here itself"));
        }
        self.with(now, id, effects, |range, turn| {
            if range.is_unborn() {
                return;
            }
            range.doom(turn, &merges::tombstone(into));
        });
        Ok(())
    }

    /// A range has applied that it took another one in.
    fn absorbed(&mut self, now: BootTime, source: RangeId, into: RangeId, effects: &mut Effects) {
        let Some(descriptor) = self.ranges.get(&into).map(|range| range.descriptor().clone()) else { return };
        let gone = merges::tombstone(into);
        let mut bytes = 0;
        self.with(now, source, effects, |range, turn| {
            bytes = range.bytes();
            range.merged_away(turn, &descriptor);
            range.doom_without_data(turn, &gone);
        });
        self.held.remove(&source);
        self.tombstones.insert(source, gone);
        self.with(now, into, effects, |range, _| range.took_in(bytes));
    }

    /// A snapshot of a range is being put in the place of another one's replica.
    fn ended(&mut self, now: BootTime, source: RangeId, into: RangeId, effects: &mut Effects) {
        self.with(now, source, effects, |range, turn| range.end_with_target(turn));
        self.ranges.remove(&source);
        self.gone.insert(source);
        self.held.remove(&source);
        self.dirty.remove(&source);
        self.doomed.remove(&source);
        self.tombstones.insert(source, merges::tombstone(into));
    }

    /// Replicas here that a snapshot of range `id` puts an end to.
    pub(super) fn ends_of(&self, id: RangeId, header: &v1::SnapshotHeader) -> Vec<RangeId> {
        let absorbed = header.merge.iter().flat_map(|merge| &merge.absorbed).map(|of| RangeId(*of));
        absorbed.filter(|of| *of != id && self.descriptor_here(*of).is_some()).collect()
    }

    /// A snapshot was brought: what its range has taken in stands still, to end with it.
    pub(super) fn hold_for(&mut self, now: BootTime, id: RangeId, sources: Vec<RangeId>, effects: &mut Effects) {
        if !self.ranges.get(&id).is_some_and(|range| range.brings_snapshot()) {
            return;
        }
        for source in &sources {
            self.held.insert(*source);
            self.rouse(now, *source, false, effects);
            self.with(now, *source, effects, |range, turn| range.hold(turn, id));
        }
        self.with(now, id, effects, |range, _| range.end_with_snapshot(sources));
    }

    /// Lets a snapshot go on, once nothing is under way of what ends with it.
    pub(super) fn release_ends(&mut self, id: RangeId) {
        let Some(range) = self.ranges.get(&id) else { return };
        let sources = range.ends_with_snapshot();
        if sources.is_empty() {
            return;
        }
        let quiet = |source: &RangeId| self.ranges.get(source).is_none_or(|range| range.is_quiet());
        if !sources.iter().all(quiet) {
            return;
        }
        let destroy = |source: &RangeId| {
            let descriptor = self.ranges.get(source)?.descriptor_arc();
            Some(Destroy { descriptor, tombstone: merges::tombstone(id), keeps_data: false })
        };
        let ready = sources.iter().filter_map(destroy).collect();
        if let Some(range) = self.ranges.get_mut(&id) {
            range.may_end(ready);
        }
    }
}
