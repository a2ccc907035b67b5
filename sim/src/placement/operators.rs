//! What operators of the cluster do in a part of the runs: they decommission a node and wipe it once it is removed, put
//! nodes into maintenance and take some of them away meanwhile, and leave it to placement to merge cold ranges.
//!
//! When everything has healed they set right what they began: nobody leaves, nobody is away, and placement merges
//! nothing more, so that it can come to rest.

use std::collections::BTreeSet;
use std::time::Duration;

use flotilla_placement::{Config, Request};
use flotilla_proto::ids::{SYSTEM_KEYSPACE, SYSTEM_RANGE};
use flotilla_proto::v1;

use super::ask::Asker;
use super::{Placed, Real, Slot};
use crate::clock::{Nanos, ms};
use crate::cluster::Cluster;
use crate::disk::SimDisk;
use crate::marks::Mark;
use crate::rng::Rng;
use crate::schedule::Event;

/// Ids that must be free for a node to join in place of one that leaves: others may still use up some.
const IDS_FREE_MIN: usize = 3;
/// For so long after the healing placement may go on merging.
const MERGES_END: Nanos = ms(10_000);

/// What operators do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OperatorKnobs {
    /// One node is decommissioned.
    pub retires: bool,
    pub maintains: bool,
    /// Cold ranges are merged without being asked for, once their borders have stood for so long; zero: they are not.
    pub merges_after: Duration,
}

impl OperatorKnobs {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let merges_after = if rng.chance(400) { Duration::from_secs(rng.between(1, 5)) } else { Duration::ZERO };
        Self { retires: rng.chance(350), maintains: rng.chance(350), merges_after }
    }

    fn merges(&self) -> bool {
        self.merges_after > Duration::ZERO
    }

    /// Whether they do anything by the hour.
    pub(super) fn act(&self) -> bool {
        *self != Self::default()
    }

    pub(super) fn config(&self, config: Config) -> Config {
        if !self.merges() {
            return config;
        }
        Config { borders_kept: self.merges_after, merge_cold_for: Duration::from_secs(1), ..config }
    }
}

/// Where they are with it.
#[derive(Debug)]
pub(super) struct Operators {
    rng: Rng,
    /// A node was or is being decommissioned, and another one was called for it.
    retired: bool,
    /// Right halves of merges that people asked for.
    asked_merges: BTreeSet<u64>,
}

impl Operators {
    pub(super) fn new(seed: u64) -> Self {
        Self { rng: Rng::new(seed, 16), retired: false, asked_merges: BTreeSet::new() }
    }

    pub(super) fn merge_asked(&mut self, right: u64) {
        self.asked_merges.insert(right);
    }
}

impl Cluster {
    /// They look at the cluster, and ask for something.
    pub(super) fn operators_act(&mut self) {
        let healing = self.ending.is_healing();
        let merges_end = self.ending.is_healed() && self.now > self.ending.calm_since + MERGES_END;
        let to = self.leader_of(SYSTEM_RANGE).unwrap_or_default();
        let Some(real) = &mut self.real else { return };
        let request = if healing { real.set_operations_right(merges_end) } else { real.draw_operation() };
        let pause = if healing { ms(500) } else { real.operators.rng.between(ms(500), ms(4_000)) };
        let rested = real.rested;
        self.schedule.at(self.now + pause, Event::Placed(Placed::Operators));
        let Some(request) = request.filter(|_| !rested) else { return };
        self.trace.say(self.now, || format!("operators ask of n{}: {request:?}", to + 1));
        self.call_for_a_node(&request);
        self.ask_placement(Asker::People, to, request, ms(10_000));
    }

    /// Where one is to leave another one is to come, so that the rest can hold what there is.
    fn call_for_a_node(&mut self, request: &Request) {
        let Some(real) = &mut self.real else { return };
        let leaves = matches!(request, Request::DecommissionNode(request) if !request.undo);
        if leaves && !std::mem::replace(&mut real.operators.retired, true) && real.members().len() <= real.most() {
            let store = real.new_store();
            let at = self.now + real.operators.rng.between(ms(100), ms(2_000));
            self.schedule.at(at, Event::Placed(Placed::Join(store)));
        }
    }

    /// Placement has said yes to it.
    pub(super) fn operators_are_answered(&mut self, request: &Request) {
        match request {
            Request::DecommissionNode(request) if !request.undo => self.marks.hit(Mark::DecommissionAsked),
            Request::MaintainNode(request) if request.duration_ms > 0 => {
                self.marks.hit(Mark::MaintenanceAsked);
                self.take_away(request.node_id, ms(request.duration_ms));
            }
            _ => {}
        }
    }

    /// A node in maintenance is away for a part of it, or for a little longer.
    fn take_away(&mut self, node: u64, length: Nanos) {
        let healing = self.ending.is_healing();
        let index = node as usize - 1;
        let Some(real) = self.real.as_mut().filter(|real| !healing && real.is_member(index)) else { return };
        if !real.operators.rng.chance(600) {
            return;
        }
        let (down, power_cut) =
            (real.operators.rng.between(length / 4, length + ms(500)), real.operators.rng.chance(300));
        self.marks.hit(Mark::AwayInMaintenance);
        self.crash_for(index, down, power_cut);
    }

    /// A decommissioned node is written down as removed: whoever reads that stops it, and wipes its disk.
    pub(super) fn node_removed(&mut self, node: u64) {
        self.marks.hit(Mark::NodeRemoved);
        self.trace.note(self.now, "removed", &[node]);
        let Some(real) = &mut self.real else { return };
        let at = self.now + real.operators.rng.between(0, ms(3_000));
        self.schedule.at(at, Event::Placed(Placed::Wipe(node)));
    }

    pub(super) fn wipe(&mut self, node: u64) {
        let index = node as usize - 1;
        if !self.real.as_ref().is_some_and(|real| real.is_member(index)) {
            return;
        }
        self.crash(index, true);
        self.nodes[index].disk = SimDisk::new();
        self.trace.note(self.now, "wiped", &[node]);
        let Some(real) = &mut self.real else { return };
        real.slots[index] = Slot::Lost(self.now);
        if real.members().len() + real.joining.len() < real.most() {
            let store = real.new_store();
            self.schedule.at(self.now + ms(500), Event::Placed(Placed::Join(store)));
        }
    }
}

impl Real {
    /// Replicas that any keyspace asks for.
    pub(super) fn most(&self) -> usize {
        self.ledger.living().map(|of| of.replicas as usize).max().unwrap_or(3).max(3)
    }

    /// Nodes that are there and stay.
    pub(super) fn staying(&self) -> usize {
        let stays = |node: &u64| self.ledger.nodes.get(node).is_none_or(|of| !of.decommissioning && !of.removed);
        self.members().iter().filter(|node| stays(node)).count()
    }

    /// A node that is being decommissioned.
    fn leaving(&self) -> Option<u64> {
        self.ledger.nodes.values().find(|node| node.decommissioning && !node.removed).map(|node| node.node_id)
    }

    fn in_maintenance(&self) -> Option<u64> {
        self.ledger.nodes.values().find(|node| node.maintenance_left_ms > 0).map(|node| node.node_id)
    }

    fn draw_operation(&mut self) -> Option<Request> {
        let members = self.members();
        let knobs = self.knobs.operators.clone();
        let leaving = self.leaving();
        let free = self.slots.iter().filter(|slot| **slot == Slot::Empty).count();
        let rng = &mut self.operators.rng;
        let node_id = rng.pick(&members);
        match rng.below(4) {
            0 | 1 if knobs.retires => {
                let undo = leaving.is_some() && rng.chance(200);
                let may = self.operators.retired || free >= IDS_FREE_MIN + self.joining.len();
                let removed = self.ledger.nodes.values().any(|node| node.removed);
                let node_id = leaving.unwrap_or(node_id);
                (may && !removed).then_some(Request::DecommissionNode(v1::DecommissionNodeRequest { node_id, undo }))
            }
            2 if knobs.maintains => {
                let duration_ms = rng.pick(&[0, 1_000, 4_000, 15_000, 60_000]);
                Some(Request::MaintainNode(v1::MaintainNodeRequest { node_id, duration_ms }))
            }
            3 if knobs.merges() && rng.chance(200) => {
                let off = rng.chance(500);
                Some(set_merges("default", off))
            }
            _ => None,
        }
    }

    fn set_operations_right(&self, merges_end: bool) -> Option<Request> {
        if let Some(node_id) = self.leaving() {
            return Some(Request::DecommissionNode(v1::DecommissionNodeRequest { node_id, undo: true }));
        }
        if let Some(node_id) = self.in_maintenance() {
            return Some(Request::MaintainNode(v1::MaintainNodeRequest { node_id, duration_ms: 0 }));
        }
        self.merging().filter(|_| merges_end).map(|name| set_merges(&name, true))
    }

    /// A keyspace whose cold ranges are merged.
    fn merging(&self) -> Option<String> {
        let merges = |of: &&v1::Keyspace| of.keyspace_id != SYSTEM_KEYSPACE.0 && !of.merge.unwrap_or_default().off;
        self.ledger.living().find(merges).filter(|_| self.knobs.operators.merges()).map(|of| of.name.clone())
    }

    /// What operators have still to set right.
    pub(super) fn unfinished(&self) -> Option<String> {
        if let Some(node) = self.leaving() {
            return Some(format!("node {node} is being decommissioned"));
        }
        if let Some(node) = self.in_maintenance() {
            return Some(format!("node {node} is in maintenance"));
        }
        self.merging().map(|name| format!("cold ranges of keyspace {name:?} are merged"))
    }

    /// Whether an order is a merge that nobody asked for.
    pub(super) fn merges_by_itself(&self, order: &v1::OrderRecord) -> bool {
        let range = order.order.as_ref().map_or(0, |order| order.range_id);
        order.kind() == v1::OrderKind::Merge && !self.operators.asked_merges.contains(&range)
    }
}

fn set_merges(name: &str, off: bool) -> Request {
    let merge = Some(v1::MergePolicy { off, ..Default::default() });
    Request::SetKeyspace(v1::SetKeyspaceRequest { name: name.into(), merge, ..Default::default() })
}
