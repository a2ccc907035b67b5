//! The end of a run with the real placement: it brings everything to where it should be, and then leaves it alone.

use flotilla_engine::apply::{Applied, RangeChange};
use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::{RangeId, v1};
use v1::ReplicaRole::{Voter, VoterIncoming, VoterOutgoing};

use super::{Real, Slot};
use crate::clock::{Nanos, ms};
use crate::cluster::Cluster;
use crate::marks::Mark;
use crate::territory::{self, Descriptor, Territory};

/// No order for so long, and nothing left to be done: it rests.
const QUIET: Nanos = ms(5_000);
/// Rest comes within so much time, once nothing comes on any more that lags.
const LIMIT: Nanos = ms(120_000);
/// A node that was lost only just now may still be counted on.
const NOTICE: Nanos = ms(30_000);

impl Cluster {
    /// An order was written.
    pub(super) fn order_written(&mut self, record: &v1::OrderRecord) {
        self.marks.hit(Mark::OrderWritten);
        let now = self.now;
        let Some(real) = &mut self.real else { return };
        real.last_order = now;
        if real.merges_by_itself(record) {
            self.marks.hit(Mark::MergeByItself);
        }
        let slow = real.slow_at.is_some_and(|at| now < at + NOTICE);
        let of_leaders = matches!(record.kind(), v1::OrderKind::BalanceLeaders | v1::OrderKind::UnfitLeader);
        if real.rested && !(slow && of_leaders) {
            let what = format!("I13: placement had come to rest, and orders again: {record:?}");
            self.check(Err(what));
        }
    }

    /// A replica has applied a change of replicas: never fewer voters that live than were, and than are aimed at.
    pub(crate) fn check_removals(&mut self, done: &Applied) {
        let now = self.now;
        let Some(real) = &mut self.real else { return };
        if !done.changes.is_empty() {
            real.changed.insert(done.range.0, now);
        }
        for change in &done.changes {
            let Ok(RangeChange::Replicas { before, descriptor, .. }) = &change.outcome else { continue };
            let Some(keyspace) = real.ledger.keyspaces.get(&descriptor.keyspace_id) else { continue };
            let before_it = real.live_voters(before, now);
            let behind = real.live_voters(descriptor, now);
            let excused = real.loss.came_before(descriptor.range_id, change.index);
            if behind < before_it.min(keyspace.replicas as usize) && !excused {
                let (before, after) = (territory::words(before), territory::words(descriptor));
                let aim = keyspace.replicas;
                return self.check(Err(format!("I3: of {aim} replicas too few are left: {after}, before {before}")));
            }
        }
    }

    /// Looks whether placement has come to rest; true: it has.
    pub(crate) fn rests(&mut self, began: Nanos) -> bool {
        let restless = self.restless();
        let (now, lag) = (self.now, self.lag());
        let Some(real) = &mut self.real else { return true };
        // Less than ever before: orders that go to and fro do not get there again and again.
        if lag < real.least_lag {
            (real.least_lag, real.came_on) = (lag, now);
        }
        match restless {
            None => {
                let since = *real.rests_since.get_or_insert(now);
                if now > since + QUIET && now > real.last_order + QUIET {
                    real.rested = true;
                    self.marks.hit(Mark::PlacementRests);
                    return true;
                }
            }
            Some(why) => {
                real.rests_since = None;
                if now > began.max(real.came_on) + LIMIT {
                    self.check(Err(format!("I13: placement does not come to rest: {why}")));
                }
            }
        }
        false
    }

    /// What is not as placement should have made it.
    fn restless(&self) -> Option<String> {
        let real = self.real.as_ref()?;
        if real.awaits_nodes() {
            return Some("a node has not joined yet".into());
        }
        if let Some(what) = real.unfinished() {
            return Some(what);
        }
        let reigns = |index: &usize| self.reign(*index).is_some();
        let host = (0..self.nodes.len()).find(reigns).and_then(|index| self.nodes[index].process.as_ref());
        let Some(service) = host.and_then(|process| process.host.service()) else {
            return Some("no placement service runs".into());
        };
        if !service.complete() {
            return Some("the placement service does not know all ranges".into());
        }
        if let Some(order) = service.orders().first() {
            let range = order.order.as_ref().map_or(0, |order| order.range_id);
            return Some(format!("an order is under way: {order:?}; {}", service.explain(range)));
        }
        if let Some(birth) = real.ledger.births.keys().next() {
            return Some(format!("range {birth} is not born"));
        }
        // It is given nothing until it has been well for a while, and only then its share (seed 42324).
        if let Some(node) = service.nodes().into_iter().find(|node| node.live && !node.slow.is_empty()) {
            return Some(format!("node {} counts as slow: {}", node.node_id, node.slow));
        }
        let explained = |what: String, range: u64| Some(format!("{what}: {}", service.explain(range)));
        for keyspace in real.ledger.living() {
            if let Err(what) = self.tiled(keyspace.keyspace_id) {
                return Some(what);
            }
        }
        for range in self.invariants.territory.all_newest() {
            let Some(keyspace) = real.ledger.living().find(|of| of.keyspace_id == range.keyspace_id) else { continue };
            let well = range.replicas.len() == keyspace.replicas as usize
                && range.replicas.iter().all(|of| of.role() == Voter && real.is_node_member(of.node_id));
            if !well {
                return explained(territory::words(range), range.range_id);
            }
        }
        self.left_over().or_else(|| self.unbalanced())
    }

    /// How many entries replicas have still to apply, all together. With the tiniest limits a learner gets one with each
    /// round trip and sync, and makes its range wait; so does the other half of a range that was split, whose span it
    /// holds until it applies the split (seed 33646).
    fn lag(&self) -> u64 {
        let of = |range| {
            let replicas = self.summaries(range);
            let last = replicas.iter().map(|(_, of)| of.last_index).max().unwrap_or(0);
            replicas.iter().map(|(_, of)| last.saturating_sub(of.applied)).sum::<u64>()
        };
        self.ranges().into_iter().map(of).sum()
    }

    fn tiled(&self, keyspace: u64) -> Result<(), String> {
        let led: Vec<_> = self
            .nodes
            .iter()
            .flat_map(|node| node.process.iter().flat_map(|process| process.store.ranges()))
            .filter(|range| range.leads && range.descriptor.keyspace_id == keyspace)
            .map(|range| range.descriptor)
            .collect();
        if led.is_empty() {
            return Err(format!("nobody leads a range of keyspace {keyspace}"));
        }
        Territory::check_tiles(led.iter().map(|range| &**range))
    }

    /// A replica of a keyspace that is gone.
    fn left_over(&self) -> Option<String> {
        let real = self.real.as_ref()?;
        for node in self.nodes.iter().filter(|node| real.is_member(node.index)) {
            let mut held = self.invariants.territory.on_store(node.index);
            if let Some(range) = held.find(|range| real.ledger.is_dropped(range.keyspace_id)) {
                return Some(format!("n{} still holds {}", node.index + 1, territory::words(range)));
            }
        }
        None
    }

    /// Two nodes with numbers of replicas that are too different.
    fn unbalanced(&self) -> Option<String> {
        let real = self.real.as_ref()?;
        // What placement knows nothing of it does not move.
        let known = |range: &&Descriptor| real.ledger.lives(range.keyspace_id);
        let count = |node: &u64| self.invariants.territory.on_store(*node as usize - 1).filter(known).count();
        let counts: Vec<usize> = real.members().iter().map(count).collect();
        let (most, fewest) = (counts.iter().max()?, counts.iter().min()?);
        let mean = counts.iter().sum::<usize>() / counts.len();
        // The system range does not move for the sake of a number.
        (most - fewest > 2 + mean / 20).then(|| format!("replicas are out of balance: {counts:?}"))
    }

    /// Ranges of keyspaces that there are no more. One that only the lost ones knew, with the system range's majority, is
    /// forgotten: what is left of it stays where it is, and placement, which has no record of it, brings it nowhere (seed 44203).
    pub(crate) fn is_gone(&self, range: RangeId) -> bool {
        let Some(real) = &self.real else { return false };
        let newest = self.invariants.territory.newest(range);
        range != SYSTEM_RANGE && newest.is_some_and(|range| !real.ledger.lives(range.keyspace_id))
    }
}

impl Real {
    /// Voters on nodes that were not lost long ago; of a joint configuration, the incoming ones.
    fn live_voters(&self, descriptor: &v1::RangeDescriptor, now: Nanos) -> usize {
        let votes =
            |of: &&v1::ReplicaDescriptor| matches!(of.role(), Voter | VoterIncoming) && of.role() != VoterOutgoing;
        let lost = |node: u64| matches!(self.slots[node as usize - 1], Slot::Lost(at) if at + NOTICE < now);
        descriptor.replicas.iter().filter(votes).filter(|of| !lost(of.node_id)).count()
    }
}
