//! Gray failure: a node that works, and works badly. Its disk takes long to sync, its apply stage lags, its process stands
//! still again and again, or a link of it loses messages in one direction.
//!
//! In a part of the runs one node fails so for seconds, beside all other faults or alone. When everything has healed
//! there must be no storm: every range has a leader soon, and keeps it ([`Storms`]).

use std::collections::BTreeMap;

use flotilla_proto::RangeId;

use crate::clock::{Nanos, ms};
use crate::cluster::Cluster;
use crate::faults::{Fault, Step, Target};
use crate::invariants::Check;
use crate::knobs::Knobs;
use crate::marks::Mark;
use crate::rng::Rng;

/// What is wrong with the node, and when.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GrayKnobs {
    pub node: usize,
    pub from: Nanos,
    pub length: Nanos,
    /// How long a sync takes; 0: as ever.
    pub sync: Nanos,
    /// How late the apply stage is; 0: as ever.
    pub apply: Nanos,
    /// How long the process stands still, and for how long it then runs; 0: it does not.
    pub stall: (Nanos, Nanos),
    /// The other end of a link that loses so many of 1,000 messages; whether those that the node sends.
    pub link: Option<(usize, u64, bool)>,
    /// Nothing else fails.
    pub alone: bool,
}

impl GrayKnobs {
    pub(crate) fn draw(rng: &mut Rng, knobs: &Knobs, alone: bool) -> Self {
        let nodes = knobs.real.as_ref().map_or(knobs.nodes, |real| real.wanted);
        let node = rng.index(nodes);
        let (mut sync, mut apply, mut stall, mut link) = (0, 0, (0, 0), None);
        for _ in 0..rng.between(1, 3) {
            match rng.below(5) {
                0 | 1 => sync = rng.pick(&[ms(10), ms(50), ms(100)]),
                2 => apply = rng.pick(&[ms(20), ms(100), ms(400)]),
                3 => stall = (rng.between(ms(1_000), ms(5_000)), rng.between(ms(200), ms(2_500))),
                _ => link = Some(((node + 1 + rng.index(nodes - 1)) % nodes, rng.pick(&[300, 900]), rng.chance(500))),
            }
        }
        let from = rng.between(ms(2_500), knobs.duration / 2);
        let length = rng.between(ms(3_000), ms(10_000)).min(knobs.duration - from);
        Self { node, from, length, sync, apply, stall, link, alone }
    }

    /// What the plan of faults says of it.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let (target, length) = (Target::Node(self.node), self.length);
        let mut steps = Vec::new();
        let mut add = |at: Nanos, fault: Fault| steps.push(Step { at, fault });
        if self.sync > 0 {
            add(self.from, Fault::SlowDisk { target, sync: self.sync, length });
        }
        if self.apply > 0 {
            add(self.from, Fault::SlowApply { target, apply: self.apply, length });
        }
        if let Some((other, per_mille, sends)) = self.link {
            let (from, to) = if sends { (self.node, other) } else { (other, self.node) };
            add(self.from, Fault::LossyLink { from, to, per_mille, length });
        }
        let (still, runs) = self.stall;
        let mut at = self.from;
        while still > 0 && at < self.from + length {
            add(at, Fault::Pause { target, length: still });
            at += still + runs;
        }
        steps
    }
}

/// A node finds out that it is slow by so many syncs, half of them after it seemed so.
const SYNCS_MIN: u64 = 16;
/// A node that says of itself for so long that it is slow leads nothing.
const LEAVES_WITHIN_MS: u64 = 4_000;

impl Cluster {
    /// Nothing else fails: the node must have found out, if its disk is much slower than those of the others, and have
    /// given away what it led.
    pub(crate) fn judge_slow_phase(&mut self) {
        let Some(gray) = self.knobs.gray.clone() else { return };
        let node = &self.nodes[gray.node];
        let Some(process) = &node.process else { return };
        let health = process.store.health(node.clock.read(self.now));
        let clear = gray.sync >= ms(50) && self.knobs.sync + self.knobs.write_delay <= ms(3);
        // Who writes next to nothing does not look at its disk: a few syncs prove nothing.
        let writes = health.sync_us > 0 && node.disk.counters().syncs - node.syncs_before >= SYNCS_MIN;
        // Against one other alone no node is slow: it has to hear how fast both are (seed 83404).
        let hears = gray.link.is_none_or(|(_, per_mille, sends)| sends || per_mille < 500);
        if clear && writes && hears && gray.length >= ms(7_000) && gray.stall.0 == 0 && !health.slow {
            return self.check(Err(format!("n{} has not found out that it is slow: {health:?}", gray.node + 1)));
        }
        if health.slow {
            self.marks.hit(Mark::SlowNode);
        }
        // To hand over, a leader needs an answer to all that it has written within an election time-out: where a message
        // that is held up for longer holds up all behind it, no attempt may come to its end (seed 88341).
        let network = &self.knobs.network;
        let stragglers = network.ordered && network.straggler_per_mille > 0;
        if stragglers && network.straggler_delay >= self.knobs.election_timeout_max() {
            return;
        }
        let leads = process.store.ranges().find(|range| range.leads).map(|range| range.range);
        if let Some(range) = leads.filter(|_| health.slow_for_ms >= LEAVES_WITHIN_MS) {
            self.check(Err(format!("n{} is slow, and leads {range} still: {health:?}", gray.node + 1)));
        }
    }
}

/// How often each range has chosen a leader since everything healed, handovers aside.
#[derive(Debug, Default)]
pub(crate) struct Storms {
    elections: BTreeMap<RangeId, u64>,
    handovers: BTreeMap<RangeId, u64>,
}

/// So often may a range choose a leader by itself after everything has healed: whoever led may have been cut off just
/// before, votes may split, and a member of a joint configuration may have to go.
const ELECTIONS_MAX: u64 = 4;

impl Storms {
    pub(crate) fn elected(&mut self, range: RangeId) {
        *self.elections.entry(range).or_default() += 1;
    }

    /// Another replica was told to campaign.
    pub(crate) fn handed_over(&mut self, range: RangeId) {
        *self.handovers.entry(range).or_default() += 1;
    }

    fn by_itself(&self, range: RangeId) -> u64 {
        let handovers = self.handovers.get(&range).copied().unwrap_or(0);
        self.elections.get(&range).map_or(0, |count| count.saturating_sub(handovers))
    }

    /// The most of any range.
    pub(crate) fn most(&self) -> u64 {
        self.elections.keys().map(|range| self.by_itself(*range)).max().unwrap_or(0)
    }

    /// No range goes from leader to leader.
    pub(crate) fn check(&self) -> Check {
        match self.elections.keys().find(|range| self.by_itself(**range) > ELECTIONS_MAX) {
            Some(range) => {
                let count = self.by_itself(*range);
                Err(format!("I13: an election storm: {range} has chosen {count} leaders since everything healed"))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_that_goes_from_leader_to_leader_is_a_storm_and_handovers_are_not() {
        let mut storms = Storms::default();
        for _ in 0..20 {
            storms.elected(RangeId(2));
            storms.handed_over(RangeId(2));
        }
        assert_eq!((storms.check(), storms.most()), (Ok(()), 0));
        for _ in 0..=ELECTIONS_MAX {
            assert_eq!(storms.check(), Ok(()));
            storms.elected(RangeId(3));
        }
        assert!(storms.check().is_err_and(|what| what.contains("election storm")));
    }

    #[test]
    fn stalls_come_again_until_the_end_of_the_phase() {
        let gray = GrayKnobs {
            node: 1,
            from: ms(3_000),
            length: ms(5_000),
            sync: ms(50),
            apply: 0,
            stall: (ms(1_000), ms(500)),
            link: None,
            alone: true,
        };
        let at: Vec<Nanos> = gray.steps().iter().map(|step| step.at).collect();
        assert_eq!(at, [3_000, 3_000, 4_500, 6_000, 7_500].map(ms));
    }
}
