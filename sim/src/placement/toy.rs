//! A toy placement: what the placement service may order, drawn from the seed, and far less sensible.
//!
//! It sees what nodes report, often late and from only some of them. It gives orders to those that it takes for
//! leaders, repeats them, replaces them midway and takes them back; it has ranges split by hand, checked, and born; it
//! hands out ids, and has replicas removed that a newer descriptor does not name. After the healing it only tidies
//! up: learners that nobody wants go.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotilla_engine::membership;
use flotilla_engine::split_keys;
use flotilla_engine::store::{Input, RangeSummary, Split, SplitAt, Token};
use flotilla_proto::ids::DEFAULT_KEYSPACE;
use flotilla_proto::{RangeId, v1};

use crate::clock::{Nanos, ms};
use crate::cluster::Cluster;
use crate::knobs::{Knobs, PlacementKnobs};
use crate::marks::Mark;
use crate::node::id_of;
use crate::rng::Rng;
use crate::schedule::{Event, Inner};
use crate::territory::{age, overlap};

/// Ranges of this keyspace are born while the cluster runs; no client knows it.
const YOUNG_KEYSPACE: u64 = 7;
/// Ids given out begin here.
const FIRST_ID: u64 = 1_000;

/// A range as nodes have reported it.
#[derive(Debug)]
pub(super) struct Known {
    pub descriptor: v1::RangeDescriptor,
    pub leader: Option<usize>,
    term: u64,
}

/// A range that was merged away, as it was known last, and the one that took it in, as it was known then.
#[derive(Debug)]
pub(super) struct Merged {
    pub last: v1::RangeDescriptor,
    pub by: v1::RangeDescriptor,
}

#[derive(Debug)]
pub(super) struct Ordered {
    pub order: v1::RangeOrder,
    pub until: Nanos,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Placement {
    pub(super) rng: Rng,
    next_id: u64,
    next_order: u64,
    pub(super) known: BTreeMap<RangeId, Known>,
    pub(super) orders: BTreeMap<RangeId, Ordered>,
    /// Ranges that were merged away.
    pub(super) merged: BTreeMap<RangeId, Merged>,
    /// Ranges whose replicas move for the sake of a merge.
    pub(super) aligning: BTreeSet<RangeId>,
    births: Vec<v1::RangeDescriptor>,
    pub keyspaces: Vec<v1::Keyspace>,
}

impl Placement {
    pub(crate) fn new(knobs: &Knobs, layout: &v1::Layout) -> Self {
        let known = layout.ranges.iter().map(|descriptor| {
            (RangeId(descriptor.range_id), Known { descriptor: descriptor.clone(), leader: None, term: 0 })
        });
        let keyspace = |keyspace_id, name: &str| v1::Keyspace {
            keyspace_id,
            name: name.into(),
            replicas: 3,
            boundary: Some(knobs.placement.boundary),
            split_bytes: knobs.placement.split_bytes,
            ..Default::default()
        };
        Self {
            rng: Rng::new(knobs.seed, 7),
            next_id: FIRST_ID,
            next_order: 0,
            known: known.collect(),
            orders: BTreeMap::new(),
            merged: BTreeMap::new(),
            aligning: BTreeSet::new(),
            births: Vec::new(),
            keyspaces: vec![keyspace(DEFAULT_KEYSPACE.0, "default"), keyspace(YOUNG_KEYSPACE, "young")],
        }
    }

    /// All ranges, for those who route requests.
    fn table(&self) -> BTreeMap<RangeId, v1::RangeStatus> {
        let status = |(range, known): (&RangeId, &Known)| {
            let leader = known.leader.map_or(0, |leader| id_of(leader).0);
            let status = v1::RangeStatus {
                descriptor: Some(known.descriptor.clone()),
                leader_node_id: leader,
                term: known.term,
                ..Default::default()
            };
            (*range, status)
        };
        self.known.iter().map(status).collect()
    }

    /// Whether a node's replica of a range that was merged away is of no use any more. The range that took it in may still
    /// have to apply the merge there, or to begin there, from what the replica holds.
    fn is_over(&self, merged: &Merged, summary: &RangeSummary, node: usize, there: &[RangeSummary]) -> bool {
        let version = age(&merged.by).0;
        age(&summary.descriptor).0 < version && self.is_past(&merged.by, version, node, there)
    }

    /// Whether a range has no replica on a node, and is to get none there, that is older than this version.
    fn is_past(&self, range: &v1::RangeDescriptor, version: u64, node: usize, there: &[RangeSummary]) -> bool {
        let id = RangeId(range.range_id);
        if let Some(own) = there.iter().find(|of| of.range == id) {
            return age(&own.descriptor).0 >= version;
        }
        match self.merged.get(&id) {
            Some(next) => self.is_past(&next.by, age(&next.by).0, node, there),
            None => {
                let newest = self.known.get(&id).map_or(range, |known| &known.descriptor);
                newest.replicas.iter().all(|of| of.node_id != id_of(node).0)
            }
        }
    }

    /// Takes in what a node says of a replica, of those that are there; returns the replica's id if it is surely gone.
    fn report(&mut self, node: usize, summary: &RangeSummary, there: &[RangeSummary]) -> Option<u64> {
        let descriptor = &*summary.descriptor;
        let is_former = |newest: &v1::RangeDescriptor| {
            let named = newest.replicas.iter().any(|of| of.replica_id == summary.replica_id);
            (age(newest).1 > age(descriptor).1 && !named).then_some(summary.replica_id)
        };
        if let Some(merged) = self.merged.get(&summary.range) {
            // As the service does. There may be nobody else who could tell it: a learner asks nobody; a voter may ask
            // only those that were removed with it, who know nothing of the merge, and that it was removed as well may
            // never have been reported; one that stands still waits for a target that may have gone before it began there.
            let is_over = self.is_over(merged, summary, node, there);
            return is_former(&merged.last).or_else(|| is_over.then_some(summary.replica_id));
        }
        let known = self.known.entry(summary.range).or_insert_with(|| Known {
            descriptor: descriptor.clone(),
            leader: None,
            term: 0,
        });
        if age(&known.descriptor) < age(descriptor) {
            known.descriptor = descriptor.clone();
        }
        if summary.leads && summary.term >= known.term {
            (known.leader, known.term) = (Some(node), summary.term);
        }
        is_former(&known.descriptor)
    }

    fn block(&mut self, count: u64) -> u64 {
        let first = self.next_id;
        self.next_id += count;
        first
    }

    /// A sensible or random order for a range.
    fn draw_order(&mut self, range: RangeId, nodes: usize, knobs: &PlacementKnobs) -> Option<v1::RangeOrder> {
        let rng = &mut self.rng;
        let descriptor = &self.known.get(&range)?.descriptor;
        let held: BTreeSet<u64> = descriptor.replicas.iter().map(|of| of.node_id).collect();
        let free: Vec<u64> = (1..=nodes as u64).filter(|node| !held.contains(node)).collect();
        let held: Vec<u64> = held.into_iter().collect();
        let (mut add, mut remove, mut leader) = (Vec::new(), Vec::new(), 0);
        let wanted = knobs.replicas.min(nodes);
        let towards = rng.chance(500) && held.len() != wanted;
        match rng.below(10) {
            _ if towards && held.len() < wanted => add.push(rng.pick(&free)),
            _ if towards => remove.push(rng.pick(&held)),
            0..2 if !free.is_empty() => add.push(rng.pick(&free)),
            2 if held.len() > 1 => remove.push(rng.pick(&held)),
            3..6 if !free.is_empty() => {
                add.push(rng.pick(&free));
                remove.push(rng.pick(&held));
            }
            6..8 => leader = rng.pick(&held),
            _ => {
                let most = nodes.min(5) as u64;
                let size = rng.between(1, most + 1);
                let mut target = BTreeSet::new();
                while (target.len() as u64) < size {
                    target.insert(rng.between(1, nodes as u64 + 1));
                }
                add = target.iter().filter(|node| !held.contains(node)).copied().collect();
                remove = held.iter().filter(|node| !target.contains(node)).copied().collect();
                if rng.chance(300) {
                    leader = target.into_iter().next().unwrap_or_default();
                }
            }
        }
        Some(self.order(range, add, remove, leader))
    }

    pub(super) fn order(&mut self, range: RangeId, add: Vec<u64>, remove: Vec<u64>, leader: u64) -> v1::RangeOrder {
        self.next_order += 1;
        v1::RangeOrder {
            order_id: self.next_order,
            range_id: range.0,
            add_nodes: add,
            remove_nodes: remove,
            leader_node_id: leader,
            ..Default::default()
        }
    }
}

/// Whether a range is as an order wants it.
fn fulfils(descriptor: &v1::RangeDescriptor, order: &v1::RangeOrder) -> bool {
    let voter =
        |node: &u64| descriptor.replicas.iter().any(|of| of.node_id == *node && of.role() == v1::ReplicaRole::Voter);
    let gone = |node: &u64| descriptor.replicas.iter().all(|of| of.node_id != *node);
    order.merge_into.is_none()
        && !membership::is_joint(descriptor)
        && order.add_nodes.iter().all(voter)
        && order.remove_nodes.iter().all(gone)
}

impl Cluster {
    /// A node wants ids for new ranges.
    pub(crate) fn range_ids_wanted(&mut self, index: usize) {
        let (now, life) = (self.now, self.nodes[index].life());
        let Some(process) = &mut self.nodes[index].process else { return };
        if now < process.ids_asked_until || self.knobs.placement.every == 0 {
            return;
        }
        process.ids_asked_until = now + ms(500);
        let count = self.placement.rng.pick(&[3, 20, 300]);
        let first = self.placement.block(count);
        let at = now + self.placement.rng.delay(ms(40));
        self.schedule.at(at, Event::Inner(life, Inner::Give(Box::new(Input::RangeIds { first, count }))));
    }

    /// What a process is told when it starts.
    pub(crate) fn introduce(&mut self, index: usize) {
        let life = self.nodes[index].life();
        let input = Box::new(Input::Keyspaces(self.placement.keyspaces.clone()));
        let at = self.now + self.placement.rng.delay(ms(30));
        self.schedule.at(at, Event::Inner(life, Inner::Give(input)));
        let table = self.placement.table();
        if let Some(process) = &mut self.nodes[index].process {
            process.table = table;
        }
    }

    /// One round: reports, then what follows from them.
    pub(crate) fn placement_round(&mut self) {
        let knobs = self.knobs.placement.clone();
        let healed = self.ending.is_healing();
        let next = self.now + self.placement.rng.between(knobs.every / 2, knobs.every * 2);
        self.schedule.at(next, Event::Placement);
        self.take_reports(healed);
        self.follow_orders(healed);
        self.tidy_learners(healed);
        if healed {
            if !self.placement.births.is_empty() {
                self.bear_ranges();
            }
            return;
        }
        self.follow_merges();
        let ranges: Vec<RangeId> = self.placement.known.keys().copied().collect();
        for _ in 0..2 {
            let range = self.placement.rng.pick(&ranges);
            if self.placement.rng.chance(knobs.order_per_mille) {
                self.order_something(range);
            }
            let range = self.placement.rng.pick(&ranges);
            if self.placement.rng.chance(knobs.split_per_mille) && ranges.len() < knobs.ranges_max {
                self.split_somewhere(range);
            }
            let range = self.placement.rng.pick(&ranges);
            if self.placement.rng.chance(knobs.merge_per_mille) {
                self.merge_something(range);
            }
        }
        if self.placement.rng.chance(knobs.check_per_mille) {
            let range = self.placement.rng.pick(&ranges);
            self.order_check(range);
        }
        if self.placement.rng.chance(knobs.birth_per_mille) {
            self.bear_ranges();
        }
    }

    /// Gives a process an input, soon or late.
    pub(super) fn tell(&mut self, node: usize, input: Input) {
        let life = self.nodes[node].life();
        let rng = &mut self.placement.rng;
        let late = if rng.chance(40) { rng.below(ms(3_000)) } else { 0 };
        let at = self.now + rng.delay(ms(10)) + late;
        self.schedule.at(at, Event::Inner(life, Inner::Give(Box::new(input))));
    }

    fn take_reports(&mut self, healed: bool) {
        let mut gone = Vec::new();
        for index in 0..self.nodes.len() {
            let heard = healed || self.placement.rng.chance(800);
            let node = &mut self.nodes[index];
            let reachable = node.paused_until <= self.now && node.stalled_until <= self.now;
            let Some(process) = node.process.as_mut().filter(|_| heard && reachable) else { continue };
            let there: Vec<RangeSummary> = process.store.ranges().collect();
            for summary in &there {
                if let Some(replica) = self.placement.report(index, summary, &there) {
                    gone.push((index, summary.range, replica));
                }
            }
            if self.placement.rng.chance(600) {
                process.table = self.placement.table();
            }
        }
        self.placement.forget_merged();
        for (node, range, replica_id) in gone {
            if healed || self.placement.rng.chance(200) {
                self.marks.hit(Mark::RemovedByPlacement);
                self.tell(node, Input::Remove { range, replica_id });
            }
        }
    }

    /// Repeats orders, drops those that are done, and takes back those that took too long.
    fn follow_orders(&mut self, healed: bool) {
        let ranges: Vec<RangeId> = self.placement.orders.keys().copied().collect();
        for range in ranges {
            let Some(Ordered { order, until }) = self.placement.orders.get(&range) else { continue };
            let (order, until) = (order.clone(), *until);
            let known = self.placement.known.get(&range);
            let done = known.is_some_and(|known| fulfils(&known.descriptor, &order));
            let leader = known.and_then(|known| known.leader);
            if done || healed || self.now >= until {
                self.placement.orders.remove(&range);
            }
            let Some(leader) = leader else { continue };
            if !done && (healed || self.now >= until) {
                self.marks.hit(Mark::OrderCancelled);
                self.tell(leader, Input::Order(v1::RangeOrder { range_id: range.0, ..Default::default() }));
            } else if !done && self.placement.rng.chance(20) {
                self.marks.hit(Mark::OrderReplaced);
                self.order_something(range);
            } else if !done || order.leader_node_id != 0 {
                self.tell(leader, Input::Order(order));
            }
        }
    }

    fn tidy_learners(&mut self, healed: bool) {
        let learners = |known: &Known| -> Vec<u64> {
            let learners = known.descriptor.replicas.iter().filter(|of| of.role() == v1::ReplicaRole::Learner);
            learners.map(|of| of.node_id).collect()
        };
        let found: Vec<(RangeId, usize, Vec<u64>)> = self
            .placement
            .known
            .iter()
            .filter(|(range, _)| !self.placement.orders.contains_key(range))
            .filter_map(|(range, known)| Some((*range, known.leader?, learners(known))))
            .filter(|(_, _, learners)| !learners.is_empty())
            .collect();
        for (range, leader, learners) in found {
            if healed || self.placement.rng.chance(150) {
                self.marks.hit(Mark::LearnerRolledBack);
                let order = self.placement.order(range, Vec::new(), learners, 0);
                self.tell(leader, Input::Order(order));
            }
        }
    }

    fn order_something(&mut self, range: RangeId) {
        let (nodes, knobs) = (self.nodes.len(), self.knobs.placement.clone());
        let Some(order) = self.placement.draw_order(range, nodes, &knobs) else { return };
        let Some(leader) = self.placement.known.get(&range).and_then(|known| known.leader) else { return };
        self.marks.hit(Mark::OrderGiven);
        self.trace.say(self.now, || format!("order to n{}: {order:?}", leader + 1));
        let until = self.now + self.placement.rng.pick(&[ms(200), ms(3_000), ms(10_000)]);
        self.placement.orders.insert(range, Ordered { order: order.clone(), until });
        self.tell(leader, Input::Order(order));
    }

    /// An order by hand, repeated until it is fulfilled.
    #[cfg(test)]
    pub(crate) fn order_by_hand(&mut self, range: RangeId, add: Vec<u64>, remove: Vec<u64>) {
        let order = self.placement.order(range, add, remove, 0);
        self.placement.orders.insert(range, Ordered { order, until: Nanos::MAX });
    }

    /// A key where the keyspace allows a split.
    fn split_key(&mut self) -> Bytes {
        let all: Vec<Bytes> = self.keys.hot.iter().chain(&self.keys.cold).cloned().collect();
        let rng = &mut self.placement.rng;
        let key = if all.is_empty() || rng.chance(400) {
            let letter = |rng: &mut Rng| rng.between(u64::from(b'0'), u64::from(b'z')) as u8;
            Bytes::from(vec![letter(rng), letter(rng), b'-'])
        } else {
            all[rng.index(all.len())].clone()
        };
        Bytes::copy_from_slice(split_keys::aligned(&key, &self.knobs.placement.boundary))
    }

    /// Splits a range by hand, at random.
    pub(crate) fn split_somewhere(&mut self, range: RangeId) {
        let known = self.placement.known.get(&range).filter(|_| self.real.is_none());
        let newest = self.invariants.territory.newest(range);
        let known = known.map(|known| (known.descriptor.clone(), known.leader));
        let Some((descriptor, leader)) = known.or_else(|| Some(((**newest?).clone(), None))) else { return };
        let Some(leader) = leader.or_else(|| self.leader_of(range)) else { return };
        let at = if self.placement.rng.chance(250) {
            SplitAt::Parts(self.placement.rng.between(2, 5) as u32)
        } else {
            let mut keys: Vec<Bytes> = (0..8).map(|_| self.split_key()).collect();
            let outside = self.placement.rng.chance(50);
            let within =
                |key: &Bytes| *key > descriptor.start && crate::territory::holds_key(&descriptor, key) || outside;
            keys.retain(within);
            keys.truncate(self.placement.rng.pick(&[1, 1, 2, 5]));
            SplitAt::Keys(keys)
        };
        let deadline = self.nodes[leader].clock.read(self.now) + self.knobs.config.tick * 30;
        self.trace.say(self.now, || format!("split of {range} to n{}: {at:?}", leader + 1));
        self.tell(leader, Input::Split(Split { token: Token(0), range, at, deadline }));
    }

    fn order_check(&mut self, range: RangeId) {
        let Some(leader) = self.leader_of(range) else { return };
        let deadline = self.nodes[leader].clock.read(self.now) + self.knobs.config.tick * 30;
        self.tell(leader, Input::Check { token: Token(0), range, deadline });
    }

    /// Lets ranges of a keyspace begin; told again and again, as placement would.
    fn bear_ranges(&mut self) {
        if self.placement.births.is_empty() {
            let first = self.placement.block(3);
            let bounds = ["", "H", "q", ""];
            for (at, pair) in bounds.windows(2).enumerate() {
                let node = self.placement.rng.between(1, self.nodes.len() as u64 + 1);
                let replica = v1::ReplicaDescriptor { replica_id: 1, node_id: node, ..Default::default() };
                self.placement.births.push(v1::RangeDescriptor {
                    range_id: first + at as u64,
                    keyspace_id: YOUNG_KEYSPACE,
                    start: pair[0].into(),
                    end: pair[1].into(),
                    epoch: Some(v1::Epoch { conf_ver: 1, version: 1 }),
                    replicas: vec![replica],
                    next_replica_id: 2,
                });
            }
        }
        for descriptor in self.placement.births.clone() {
            debug_assert!(!overlap(&descriptor, &self.layout.ranges[0]), "a keyspace of its own");
            let node = descriptor.replicas[0].node_id as usize - 1;
            self.tell(node, Input::Births(vec![descriptor]));
        }
    }
}
