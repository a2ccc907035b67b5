//! Rest at the end of a run: where nothing is asked and nothing is to end, all ranges fall asleep; nodes then send each other
//! signs of life and nothing else, and every range answers as soon as it is asked, also when a node has just gone.

use flotilla_engine::store::Input;
use flotilla_proto::v1;

use crate::clock::{Nanos, ms, nanos};
use crate::cluster::{Cluster, Tally};
use crate::marks::Mark;

/// For so long nobody may say anything about a range.
const QUIET: Nanos = ms(3_000);

/// So often may somebody wake after all slept: for the last orders of the placement, which may be late, and because a
/// node has found out only now that it was slow. What a message leads to that was sent before the healing does not
/// count: with thousands of them, seconds late, some come to every sleeping range.
const STIRS_MAX: usize = 10;

/// What was counted when all ranges were asleep.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rest {
    since: Nanos,
    messages: u64,
    node_messages: u64,
    /// Something has arrived that was sent before the healing: it wakes whom it is for.
    late: bool,
}

impl Cluster {
    /// Whether all ranges are to fall asleep: keys that end wake theirs, and so does placement.
    pub(crate) fn comes_to_rest(&self) -> bool {
        self.knobs.config.idle_ticks > 0 && self.knobs.ttl_per_mille == 0 && self.real.is_none()
    }

    /// Waits until all ranges sleep, and then whether nobody stirs; true: that is over.
    pub(crate) fn rested(&mut self, late: bool) -> bool {
        let Tally { messages, node_messages, .. } = self.tally;
        let counted = Rest { since: self.now, messages, node_messages, late: false };
        let Some(rest) = self.ending.rest else {
            self.wait_for_sleep(counted, late);
            return false;
        };
        let said = counted.messages - rest.messages;
        if said > 0 {
            (self.ending.rest, self.ending.awake) = (None, None);
            self.ending.stirs += usize::from(!rest.late);
            if self.ending.stirs > STIRS_MAX {
                self.check(Err(format!("I13: all ranges slept, and {said} messages about them were sent, once more")));
            }
            return false;
        }
        if self.now < rest.since + QUIET {
            return false;
        }
        let ticks = QUIET / nanos(self.knobs.config.tick) + 2;
        let pairs = (self.nodes.len() * (self.nodes.len() - 1)) as u64;
        let beats = counted.node_messages - rest.node_messages;
        // A sign of life with each tick, and what each measures of itself.
        if beats > 2 * ticks * pairs {
            self.check(Err(format!("{beats} messages between nodes in {ticks} ticks, where all ranges sleep")));
        }
        self.marks.hit(Mark::AllAsleep);
        if self.rng.chance(600) {
            let node = self.rng.index(self.nodes.len());
            // Longer than reads may take: who slept and followed it must find another leader.
            let long = 12 * self.knobs.election_timeout_max();
            let downs = [ms(1), ms(1_000), long, long];
            let down = self.rng.pick(&downs);
            let down = if self.does_without(node) { down } else { ms(1) };
            self.crash_for(node, down, true);
        }
        true
    }
    /// Something arrives that was sent then.
    pub(crate) fn note_late(&mut self, sent: Nanos) {
        if let Some(rest) = self.ending.rest.as_mut().filter(|_| sent < self.ending.calm_since) {
            rest.late = true;
        }
    }

    fn wait_for_sleep(&mut self, counted: Rest, late: bool) {
        self.take_orders_back();
        let processes = self.nodes.iter().filter_map(|node| node.process.as_ref());
        let awake: Vec<_> =
            processes.flat_map(|process| process.store.ranges()).filter(|range| !range.asleep).collect();
        let Some(one) = awake.first() else {
            self.ending.rest = Some(counted);
            return;
        };
        if self.ending.awake.is_none_or(|before| awake.len() < before) {
            // One after the other, if there are many.
            self.ending.awake = Some(awake.len());
            self.ending.began = self.now;
        } else if late {
            let what = format!("I13: {} has nothing to do, and does not fall asleep: {one:?}", one.range);
            self.check(Err(what));
        }
    }
    /// What placement does when an order is fulfilled, or not wanted any more: one in force keeps a range awake.
    fn take_orders_back(&mut self) {
        let mut inputs = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let ranges = node.process.iter().flat_map(|process| process.store.ranges());
            for range in ranges.filter(|range| range.order_id != 0) {
                let none = v1::RangeOrder { range_id: range.range.0, ..Default::default() };
                inputs.push((index, Input::Order(none)));
            }
        }
        for (index, input) in inputs {
            self.give(index, input);
        }
    }
    /// Whether every range has a majority without this node.
    fn does_without(&self, node: usize) -> bool {
        let voters =
            |of: &v1::RangeDescriptor| of.replicas.iter().filter(|of| of.role() == v1::ReplicaRole::Voter).count();
        let here = self.nodes[node].process.iter().flat_map(|process| process.store.ranges());
        here.map(|range| range.descriptor).all(|range| voters(&range) > 2)
    }
}
