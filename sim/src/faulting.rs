//! The fault plan, carried out: each step begins, and most end after a while.

use flotilla_engine::store::{Input, Token, TransferLeader};
use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::{RangeId, v1};

use crate::clock::{Nanos, ms};
use crate::cluster::Cluster;
use crate::disk::DiskFault;
use crate::faults::{AfterSplit, CrashPoint, Cut, Fault, OnMergeAsked, Target};
use crate::marks::Mark;
use crate::node::id_of;
use crate::schedule::{Event, Inner};

/// What ends a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Undo {
    Links(Vec<(usize, usize)>),
    /// Then the leader of this range, whoever that is by then, is cut off for so long.
    Relay(Vec<(usize, usize)>, RangeId, Nanos),
    /// Then these restart, and the leader is cut off by these links as well, for so long.
    Promises(Links, Vec<usize>, Links, Nanos),
    Clients(usize),
    Loss,
    Slow(Vec<(usize, usize)>),
    SlowDisk(usize),
    SlowApply(usize),
    Lossy(usize, usize),
    DiskMargin(usize),
    NoSpace(usize),
    Stop(usize, Nanos),
}

type Links = Vec<(usize, usize)>;

impl Cluster {
    pub(crate) fn fault_begins(&mut self, step: usize) {
        if self.ending.is_healing() {
            return;
        }
        let fault = self.plan[step].fault.clone();
        if matches!(fault, Fault::SlowApply { .. } | Fault::LossyLink { .. }) {
            self.marks.hit(Mark::GrayNode);
        }
        self.tally.faults += 1;
        self.trace.note(self.now, "fault", &[step as u64]);
        self.trace.say(self.now, || format!("{fault:?}"));
        if let Some((undo, length)) = self.inflict(&fault) {
            self.undo.insert(step, undo);
            self.schedule.at(self.now + length, Event::FaultEnds(step));
        }
    }

    /// Does what the fault says; returns what ends it, and when.
    pub(crate) fn inflict(&mut self, fault: &Fault) -> Option<(Undo, Nanos)> {
        match fault {
            Fault::Partition { cut, length } => {
                let links = self.links_of(cut)?;
                self.network.cut(&links);
                if matches!(cut, Cut::Swizzled(_)) {
                    self.marks.hit(Mark::Swizzled);
                }
                Some((Undo::Links(links), *length))
            }
            Fault::Relay { range, length } => {
                let links = self.links_of(&Cut::Isolate(Target::LeaderOf(*range)))?;
                self.network.cut(&links);
                Some((Undo::Relay(links, *range, *length), *length))
            }
            Fault::Promises { range, length } => self.strain_promises(self.living(*range), *length),
            Fault::ClientsCutFrom { target, length } => {
                let node = self.resolve(*target)?;
                self.nodes[node].clients_cut += 1;
                Some((Undo::Clients(node), *length))
            }
            Fault::Loss { per_mille, length } => {
                self.network.storm_loss_per_mille = *per_mille;
                Some((Undo::Loss, *length))
            }
            Fault::SlowLink { from, to, by, length } => {
                self.network.slow_down(*from, *to, *by);
                Some((Undo::Slow(vec![(*from, *to)]), *length))
            }
            Fault::SlowDisk { target, sync, length } => {
                let node = self.resolve(*target)?;
                let node_of = &mut self.nodes[node];
                (node_of.slow_sync, node_of.syncs_before) = (Some(*sync), node_of.disk.counters().syncs);
                Some((Undo::SlowDisk(node), *length))
            }
            Fault::SlowApply { target, apply, length } => {
                let node = self.resolve(*target)?;
                self.nodes[node].slow_apply = Some(*apply);
                Some((Undo::SlowApply(node), *length))
            }
            Fault::LossyLink { from, to, per_mille, length } => {
                self.network.lose_of(*from, *to, *per_mille);
                Some((Undo::Lossy(*from, *to), *length))
            }
            Fault::DiskMargin { target, length } => {
                let node = self.resolve(*target)?;
                self.nodes[node].has_no_room = true;
                self.give(node, Input::DiskSpace { has_room: false });
                Some((Undo::DiskMargin(node), *length))
            }
            Fault::NoSpace { target, length } => {
                let node = self.resolve(*target)?;
                self.nodes[node].disk.inject(DiskFault::NoSpace);
                Some((Undo::NoSpace(node), *length))
            }
            Fault::LateTransfer { range, to, by } => {
                let range = self.living(*range);
                let leader = self.leader_of(range)?;
                let links: Links = self.others(leader).map(|other| (other, leader)).collect();
                for (from, to) in &links {
                    self.network.slow_down(*from, *to, *by);
                }
                self.transfer(range, *to);
                Some((Undo::Slow(links), ms(1_500)))
            }
            Fault::Split { range, then, length } => self.split_and(self.living(*range), *then, *length),
            Fault::Merge { range, of_target, then, length } => {
                let range = self.living(*range);
                let struck = if *of_target { self.placement.left_of(range)?.range_id } else { range.0 };
                self.merge_something(range);
                self.then_strike(RangeId(struck), *then, *length)
            }
            Fault::Drain { target, down } => {
                let node = self.resolve(*target)?;
                self.marks.hit(Mark::Drained);
                self.give(node, Input::Drain);
                if let Some(process) = &mut self.nodes[node].process {
                    process.agent.leaving = true;
                }
                self.stir_agent(node);
                Some((Undo::Stop(node, *down), ms(1_500)))
            }
            other => {
                self.strike(other);
                None
            }
        }
    }

    /// Faults that end by themselves.
    fn strike(&mut self, fault: &Fault) {
        match fault {
            Fault::Crash { target, point, down, power_cut } => {
                let Some(node) = self.resolve(*target) else { return };
                if *point == CrashPoint::Now {
                    self.crash_for(node, *down, *power_cut);
                } else {
                    self.nodes[node].armed = Some((*point, *down, *power_cut));
                }
            }
            Fault::CrashAll { down } => {
                for node in 0..self.nodes.len() {
                    self.crash_for(node, *down, true);
                }
            }
            Fault::Pause { target, length } => {
                let Some(node) = self.resolve(*target) else { return };
                self.nodes[node].paused_until = self.now + length;
            }
            Fault::Stall { target, length } => {
                let Some(node) = self.resolve(*target) else { return };
                self.nodes[node].stalled_until = self.now + length;
            }
            Fault::ApplyStall { target, length } => {
                let Some(node) = self.resolve(*target) else { return };
                self.marks.hit(Mark::ApplyStalled);
                self.nodes[node].apply_stalled_until = self.now + length;
            }
            Fault::OnMergeAsked { target, what, length } => {
                let Some(node) = self.resolve(*target) else { return };
                for (index, other) in self.nodes.iter_mut().enumerate() {
                    if index == node || other.on_merge_asked.is_none() {
                        other.on_merge_asked = Some((*what, *length));
                    }
                }
            }
            Fault::ReadFails { target, after, down } => {
                let Some(node) = self.resolve(*target) else { return };
                self.nodes[node].disk.inject(DiskFault::Read(*after));
                self.nodes[node].down_after_failure = *down;
            }
            Fault::Rot { target, family, per_mille, down } => {
                let Some(node) = self.resolve(*target) else { return };
                self.nodes[node].disk.rot(*family, *per_mille);
                self.nodes[node].down_after_failure = *down;
            }
            Fault::SyncFails { target, down } | Fault::WriteFails { target, down } => {
                let Some(node) = self.resolve(*target) else { return };
                let sync = matches!(fault, Fault::SyncFails { .. });
                self.nodes[node].disk.inject(if sync { DiskFault::Sync } else { DiskFault::Write });
                self.nodes[node].down_after_failure = *down;
            }
            Fault::ClockRate { node, rate } => self.nodes[*node].clock.set_rate(self.now, *rate),
            Fault::WallClock { node, by_ms } => {
                self.marks.hit(Mark::WallClockLeaps);
                self.nodes[*node].wall_ahead_ms += by_ms;
            }
            Fault::Transfer { range, to } => self.transfer(self.living(*range), *to),
            _ => {}
        }
    }

    pub(crate) fn fault_ends(&mut self, step: usize) {
        let Some(undo) = self.undo.remove(&step) else { return };
        self.trace.note(self.now, "fault ends", &[step as u64]);
        let undo = match undo {
            Undo::Promises(links, restart, others, length) => {
                return self.try_promises(step, (links, others), &restart, length);
            }
            undo => undo,
        };
        let next = match &undo {
            Undo::Relay(_, range, length) => Some((Cut::Isolate(Target::LeaderOf(*range)), *length)),
            _ => None,
        };
        let links = next.as_ref().and_then(|(cut, _)| self.links_of(cut));
        self.undo_fault(undo);
        if let (Some((_, length)), Some(links)) = (next, links) {
            self.network.cut(&links);
            self.undo.insert(step, Undo::Links(links));
            self.schedule.at(self.now + length, Event::FaultEnds(step));
        }
    }

    pub(crate) fn undo_fault(&mut self, undo: Undo) {
        match undo {
            Undo::Links(links) | Undo::Relay(links, ..) | Undo::Promises(links, ..) => self.network.heal(&links),
            Undo::Clients(node) => self.nodes[node].clients_cut = self.nodes[node].clients_cut.saturating_sub(1),
            Undo::Loss => self.network.storm_loss_per_mille = 0,
            Undo::Slow(links) => {
                for (from, to) in links {
                    self.network.slow_down(from, to, 0);
                }
            }
            Undo::SlowDisk(node) => self.nodes[node].slow_sync = None,
            Undo::SlowApply(node) => self.nodes[node].slow_apply = None,
            Undo::Lossy(from, to) => self.network.lose_of(from, to, 0),
            Undo::DiskMargin(node) => {
                self.nodes[node].has_no_room = false;
                self.give(node, Input::DiskSpace { has_room: true });
            }
            Undo::NoSpace(node) => self.nodes[node].disk.free_space(),
            Undo::Stop(node, down) => self.crash_for(node, down, false),
        }
    }

    /// Cuts the leader off from one follower, for so long.
    fn strain_promises(&mut self, range: RangeId, length: Nanos) -> Option<(Undo, Nanos)> {
        let leader = self.leader_of(range)?;
        let replicas = &self.invariants.territory.newest(range)?.replicas;
        let mut followers: Vec<usize> = replicas.iter().map(|of| of.node_id as usize - 1).collect();
        followers.retain(|node| *node != leader);
        if followers.len() < 2 {
            return None;
        }
        let deaf = followers.swap_remove(self.rng.index(followers.len()));
        let links = vec![(leader, deaf), (deaf, leader)];
        self.network.cut(&links);
        let others = self.links_of(&Cut::Isolate(Target::Node(leader)))?;
        Some((Undo::Promises(links, followers, others, ms(1_500)), length))
    }

    /// The leader is cut off from all, and the followers that have heard it last restart.
    fn try_promises(&mut self, step: usize, (links, others): (Links, Links), restart: &[usize], length: Nanos) {
        self.network.cut(&others);
        for node in restart {
            self.crash_for(*node, ms(1), false);
        }
        self.marks.hit(Mark::PromisesTried);
        self.undo.insert(step, Undo::Links([links, others].concat()));
        self.schedule.at(self.now + length, Event::FaultEnds(step));
    }

    /// A leader has just asked another range to take its own in.
    pub(crate) fn merge_asked(&mut self, node: usize, ask: &v1::MergeAsk) {
        let Some((source, frozen)) = ask.source.as_ref().zip(ask.frozen) else { return };
        let target = self.leader_of(RangeId(frozen.target_range_id)).filter(|target| *target != node);
        // One that cannot be carried out here waits for the next who asks.
        let Some(target) = target else { return };
        let Some((what, length)) = self.nodes[node].on_merge_asked.take() else { return };
        let replicas = source.replicas.iter().map(|of| of.node_id as usize - 1);
        let others: Vec<usize> = replicas.filter(|other| *other != node && *other != target).collect();
        let links = match what {
            OnMergeAsked::Outwait => {
                for other in others {
                    self.nodes[other].apply_stalled_until = self.now + length;
                }
                self.marks.hit(Mark::Outwaited);
                vec![(node, target), (target, node)]
            }
            OnMergeAsked::LeaveBehind => {
                let Some(other) = others.first() else { return };
                let Some(links) = self.links_of(&Cut::Isolate(Target::Node(*other))) else { return };
                self.marks.hit(Mark::LeftBehind);
                links
            }
        };
        // Whoever asked first: the others do not do the same.
        for node in self.nodes.iter_mut().filter(|node| matches!(node.on_merge_asked, Some((of, _)) if of == what)) {
            node.on_merge_asked = None;
        }
        self.network.cut(&links);
        let step = self.plan.len() + self.undo.len();
        let step = (step..).find(|step| !self.undo.contains_key(step)).unwrap_or(step);
        self.undo.insert(step, Undo::Links(links));
        self.schedule.at(self.now + length, Event::FaultEnds(step));
    }

    /// Crashes a node and starts it again later.
    pub(crate) fn crash_for(&mut self, node: usize, down: Nanos, power_cut: bool) {
        if self.nodes[node].is_up() {
            self.crash(node, power_cut);
        }
        if !self.nodes[node].restarting {
            self.nodes[node].restarting = true;
            self.schedule.at(self.now + down, Event::Restart(node));
        }
    }

    /// Crashes the node if that is planned for this point; true: it did.
    pub(crate) fn crash_if_armed(&mut self, node: usize, point: CrashPoint) -> bool {
        match self.nodes[node].armed {
            Some((at, down, power_cut)) if at == point => {
                self.crash_for(node, down, power_cut);
                true
            }
            _ => false,
        }
    }

    pub(crate) fn transfer(&mut self, range: RangeId, to: usize) {
        self.transfer_in(0, range, to);
    }

    /// Orders a transfer that reaches the leader of now within about so long.
    fn transfer_in(&mut self, mean: Nanos, range: RangeId, to: usize) {
        let Some(leader) = self.leader_of(range) else { return };
        let deadline = self.nodes[leader].clock.read(self.now) + self.knobs.config.tick * 30;
        let order = TransferLeader { token: Token(0), range, to: id_of(to), deadline };
        let input = Input::TransferLeader(order);
        if mean == 0 {
            return self.give(leader, input);
        }
        let at = self.now + self.rng.delay(mean);
        let life = self.nodes[leader].life();
        self.schedule.at(at, Event::Inner(life, Inner::Give(Box::new(input))));
    }

    /// The range that a plan's number stands for: plans are drawn before ranges are born.
    fn living(&self, range: RangeId) -> RangeId {
        if range == SYSTEM_RANGE {
            return range;
        }
        let ranges = self.ranges();
        ranges[(range.0 as usize - 2) % ranges.len()]
    }

    fn split_and(&mut self, range: RangeId, then: AfterSplit, length: Nanos) -> Option<(Undo, Nanos)> {
        self.leader_of(range)?;
        self.split_somewhere(range);
        self.then_strike(range, then, length)
    }

    /// What comes upon a range's leader.
    fn then_strike(&mut self, range: RangeId, then: AfterSplit, length: Nanos) -> Option<(Undo, Nanos)> {
        let leader = self.leader_of(range)?;
        match then {
            AfterSplit::Nothing => None,
            AfterSplit::HandOver(to) => {
                self.transfer_in(ms(4), range, to);
                None
            }
            AfterSplit::Isolation => {
                let links = self.links_of(&Cut::Isolate(Target::Node(leader)))?;
                self.network.cut(&links);
                Some((Undo::Links(links), length))
            }
            AfterSplit::Deafness => {
                let links = self.links_of(&Cut::Deaf(Target::Node(leader)))?;
                self.network.cut(&links);
                Some((Undo::Links(links), length))
            }
            AfterSplit::Laggard => {
                let target = Target::Node(self.follower_of(range)?);
                self.strike(&Fault::ApplyStall { target, length });
                None
            }
            AfterSplit::Crash => {
                self.nodes[leader].armed = Some((CrashPoint::AfterSync, length, true));
                None
            }
        }
    }

    fn resolve(&mut self, target: Target) -> Option<usize> {
        match target {
            Target::Node(node) => Some(node),
            Target::LeaderOf(range) => self.leader_of(self.living(range)),
            Target::FollowerOf(range) => self.follower_of(self.living(range)),
        }
    }

    /// Some node that has a replica and does not lead; who leads, if there is no other.
    fn follower_of(&mut self, range: RangeId) -> Option<usize> {
        let leader = self.leader_of(range);
        let descriptor = self.invariants.territory.newest(range)?;
        let replicas = descriptor.replicas.iter().map(|replica| replica.node_id as usize - 1);
        let followers: Vec<usize> = replicas.filter(|node| Some(*node) != leader).collect();
        if followers.is_empty() { leader } else { Some(self.rng.pick(&followers)) }
    }

    fn others(&self, node: usize) -> impl Iterator<Item = usize> + use<> {
        (0..self.nodes.len()).filter(move |other| *other != node)
    }

    fn links_of(&mut self, cut: &Cut) -> Option<Links> {
        let count = self.nodes.len();
        let pairs = (0..count).flat_map(|from| (0..count).map(move |to| (from, to)));
        Some(match cut {
            Cut::Split(side) => pairs.filter(|(from, to)| side[*from] != side[*to]).collect(),
            Cut::Mute(target) => {
                let node = self.resolve(*target)?;
                self.others(node).map(|other| (node, other)).collect()
            }
            Cut::Deaf(target) => {
                let node = self.resolve(*target)?;
                self.others(node).map(|other| (other, node)).collect()
            }
            Cut::Isolate(target) => {
                let node = self.resolve(*target)?;
                self.others(node).flat_map(|other| [(node, other), (other, node)]).collect()
            }
            Cut::Bridge(middle) => {
                let left = |node: usize| (node + count - middle) % count <= count / 2;
                let apart = |(from, to): &(usize, usize)| from != middle && to != middle && left(*from) != left(*to);
                pairs.filter(apart).collect()
            }
            Cut::Swizzled(node) => self.others(*node).flat_map(|other| [(*node, other), (other, *node)]).collect(),
        })
    }
}
