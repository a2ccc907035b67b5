//! Merge, the target's side: it takes its frozen right neighbour in, or decides never to. The protocol: `merge.rs`.
//!
//! Asked by the neighbour's leader. Once its epoch is past the one that the freeze names, it only tells what was
//! decided; before, its leader decides, by one entry. Here too: the replicas on this store that end when a snapshot of
//! this range is put in place, for it has taken their ranges in.

use std::sync::Arc;

use flotilla_proto::{RangeId, v1};

use super::change::Kind;
use super::{Range, Turn};
use crate::merges;
use crate::store::{Destroy, Event, Wish};

/// Where both ranges have keys that end, by how much their times may differ: by so much the ends of one half's keys come
/// late (`apply/merge.rs`).
const TIMES_APART_MS_MAX: u64 = 10_000;

/// Replicas of ranges that this one has taken in, and that end with a snapshot of it.
#[derive(Debug, Default)]
pub(super) struct Ending {
    /// Their ranges.
    pub ranges: Vec<RangeId>,
    /// What is to be done with them, once nothing of them is under way.
    pub ready: Option<Vec<Destroy>>,
}

impl Range {
    /// Asked by a neighbour that is frozen to be taken in by this range. Returns whether it was taken in, if that is
    /// decided and known here.
    pub(crate) fn merge_asked(&mut self, turn: &mut Turn<'_>, ask: v1::MergeAsk) -> Option<bool> {
        let wish = ask.wish();
        let (source, frozen) = (ask.source?, ask.frozen?);
        let (epoch, named) = (self.descriptor.epoch?, frozen.target_epoch?);
        if merges::is_past(epoch, named) {
            return Some(self.absorbed.binary_search(&source.range_id).is_ok());
        }
        if epoch != named || wish == v1::MergeWish::Know || self.may_change(turn).is_err() {
            return None;
        }
        let takes = wish == v1::MergeWish::Merge && self.may_absorb(turn, &source, &frozen);
        let (change, kind) = if takes {
            let merge = v1::Merge { source: Some(source), frozen: Some(frozen) };
            (v1::command::Change::Merge(Box::new(merge)), Kind::Merge)
        } else {
            let abandon = v1::Abandon { source_range_id: source.range_id, frozen: Some(frozen) };
            (v1::command::Change::Abandon(abandon), Kind::Abandon)
        };
        let time_ms = self.time_at_merge(turn);
        // Refused for now: it is asked again.
        drop(self.propose_timed_change(change, kind, None, time_ms));
        None
    }

    /// Whether a neighbour can be taken in as it is; otherwise there is nothing to wait for.
    fn may_absorb(&self, turn: &Turn<'_>, source: &v1::RangeDescriptor, frozen: &v1::Frozen) -> bool {
        let keyspace = turn.shared.keyspaces.get(&self.descriptor.keyspace_id);
        let dropped = keyspace.is_some_and(|keyspace| keyspace.state() == v1::KeyspaceState::Dropped);
        let room = self.absorbed.len() < merges::ABSORBED_MAX;
        merges::check(&self.descriptor, source).is_ok() && room && !dropped && self.times_fit(turn, frozen)
    }

    fn times_fit(&self, turn: &Turn<'_>, frozen: &v1::Frozen) -> bool {
        let own = self.time_at_merge(turn);
        own == 0 || frozen.next_expiry_ms == 0 || own.abs_diff(frozen.range_time_ms) <= TIMES_APART_MS_MAX
    }

    /// The range took a neighbour in.
    pub(super) fn merge_applied(
        &mut self,
        turn: &mut Turn<'_>,
        descriptor: Arc<v1::RangeDescriptor>,
        source: &v1::RangeDescriptor,
        absorbed: Vec<u64>,
    ) {
        self.set_descriptor(descriptor);
        self.siblings = Arc::default();
        self.absorbed = absorbed;
        // The range's time is another one: it begins anew from what is applied.
        self.forget_time();
        let source = RangeId(source.range_id);
        turn.effects.events.push(Event::Merged { range: source, into: self.descriptor.clone() });
        turn.wishes.push(Wish::Absorbed { source, into: self.id });
    }

    /// It grew by what it took in.
    pub(crate) fn took_in(&mut self, bytes: u64) {
        let all = self.size.bytes().saturating_add(bytes);
        self.size.set(all);
    }

    /// About how large it is.
    pub(crate) fn bytes(&self) -> u64 {
        self.size.bytes()
    }

    /// Replicas here that are to end with the snapshot that was brought.
    pub(crate) fn end_with_snapshot(&mut self, ranges: Vec<RangeId>) {
        self.ending = (!ranges.is_empty()).then(|| Box::new(Ending { ranges, ready: None }));
    }

    /// The ranges whose replicas here end with the snapshot that waits.
    pub(crate) fn ends_with_snapshot(&self) -> &[RangeId] {
        self.ending.as_ref().map_or(&[], |ending| &ending.ranges)
    }

    /// Nothing of these replicas is under way any more: the snapshot may take their place.
    pub(crate) fn may_end(&mut self, ready: Vec<Destroy>) {
        if let Some(ending) = &mut self.ending {
            ending.ready = Some(ready);
        }
    }

    /// Whether a snapshot has to wait for the end of other replicas.
    pub(super) fn waits_for_ends(&self) -> bool {
        self.ending.as_ref().is_some_and(|ending| ending.ready.is_none())
    }

    /// What ends with the snapshot that is taken now.
    pub(super) fn take_ends(&mut self, turn: &mut Turn<'_>) -> Vec<Destroy> {
        let Some(ending) = self.ending.take() else { return Vec::new() };
        turn.wishes.extend(ending.ranges.iter().map(|source| Wish::Ended { source: *source, into: self.id }));
        ending.ready.unwrap_or_default()
    }
}
