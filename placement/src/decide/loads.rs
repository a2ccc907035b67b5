//! What each node has, and will have once the orders under way are carried out; and how many more it may take part in.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use flotilla_proto::v1;

use super::{Decision, holds, voters};
use crate::places::Place;
use crate::state::State;
use crate::table::Route;

/// A range with more bytes weighs [`HEAVY`]: its copy is more than one small message.
const LIGHT_BYTES_MAX: u64 = 4 << 20;
const LIGHT: u32 = 1;
const HEAVY: u32 = 16;

/// One node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Load {
    pub node: u64,
    pub place: Place,
    pub fit: bool,
    pub live: bool,
    /// Replicas, those under way included.
    pub replicas: i64,
    pub bytes: i64,
    /// Ranges led, those under way included.
    pub leads: i64,
    /// What they cost it, in requests a second, those under way included.
    pub cost: i64,
    sends: u32,
    receives: u32,
    leads_going: u32,
    leads_coming: u32,
    leads_coming_max: u32,
}

/// All nodes that are part of the cluster.
#[derive(Clone, Debug)]
pub(crate) struct Loads {
    nodes: BTreeMap<u64, Load>,
    fit: usize,
    /// Of keyspaces with constraints: how many nodes may be given replicas.
    fit_for: RefCell<BTreeMap<u64, usize>>,
    /// Ranges decided about since.
    taken: BTreeSet<u64>,
    capacity: u32,
    leader_capacity: u32,
    /// Above this a node has more than its share to do, if it will have it once it is given something.
    cost_max: i64,
}

impl Loads {
    pub fn of(state: &State) -> Self {
        let config = &state.config;
        let load = |node: u64| {
            let holding = state.table.holding(node);
            let returning = state.speeds.is_returning(node, state.now, config.slow_return);
            Load {
                node,
                place: state.places.place(node),
                fit: state.is_fit(node),
                live: state.is_live(node),
                replicas: holding.map_or(0, |holding| holding.held.len() as i64),
                bytes: holding.map_or(0, |holding| holding.bytes as i64),
                leads: holding.map_or(0, |holding| holding.led.len() as i64),
                cost: holding.map_or(0, |holding| holding.cost as i64),
                leads_coming_max: if returning { 1 } else { config.leader_moves_per_node },
                ..Load::default()
            }
        };
        let members = state.ahead.nodes.keys().filter(|node| state.is_member(**node));
        let mut loads = Self {
            nodes: members.map(|node| (*node, load(*node))).collect(),
            fit: 0,
            fit_for: RefCell::default(),
            taken: BTreeSet::new(),
            capacity: config.moves_per_node * HEAVY,
            leader_capacity: config.leader_moves_per_node,
            cost_max: 0,
        };
        loads.fit = loads.nodes.values().filter(|load| load.fit).count();
        for record in state.ahead.orders.values() {
            if let Some(order) = &record.order {
                loads.count(state, order);
            }
        }
        loads.cost_max = loads.cost_mean() * 115 / 100 + config.load_floor as i64;
        loads
    }

    /// Counts what a decision will bring about.
    pub fn add(&mut self, state: &State, decision: &Decision) {
        self.count(state, &decision.order());
        self.taken.insert(decision.range);
        self.taken.extend(decision.merge_into.as_ref().map(|left| left.range_id));
    }

    pub fn is_taken(&self, range: u64) -> bool {
        self.taken.contains(&range)
    }

    fn count(&mut self, state: &State, order: &v1::RangeOrder) {
        let Some(route) = state.table.get(order.range_id) else { return };
        let weight = weight(route.data_bytes);
        let bytes = route.data_bytes as i64;
        for node in &order.add_nodes {
            let new = !holds(&route.descriptor, *node);
            if let Some(load) = self.nodes.get_mut(node) {
                load.receives += weight;
                load.replicas += i64::from(new);
                load.bytes += if new { bytes } else { 0 };
                load.cost += if new { route.hold_cost() as i64 } else { 0 };
            }
        }
        for node in order.remove_nodes.iter().filter(|node| holds(&route.descriptor, **node)) {
            if let Some(load) = self.nodes.get_mut(node) {
                load.replicas -= 1;
                load.bytes -= bytes;
                load.cost -= route.hold_cost() as i64;
                load.sends += if *node == route.leader { 0 } else { weight };
            }
        }
        if !(order.add_nodes.is_empty() && order.remove_nodes.is_empty()) {
            // The leader sends the copies.
            if let Some(load) = self.nodes.get_mut(&route.leader) {
                load.sends += weight;
            }
        }
        if order.leader_node_id != 0 && order.leader_node_id != route.leader {
            if let Some(load) = self.nodes.get_mut(&route.leader) {
                load.leads -= 1;
                load.leads_going += 1;
                load.cost -= route.lead_cost() as i64;
            }
            if let Some(load) = self.nodes.get_mut(&order.leader_node_id) {
                load.leads += 1;
                load.leads_coming += 1;
                load.cost += route.lead_cost() as i64;
            }
        }
    }

    /// How many nodes beside these may be given replicas of the keyspace at all.
    pub fn fit_beside(&self, state: &State, keyspace: u64, nodes: &[u64]) -> usize {
        let may = |load: &Load| load.fit && state.places.allows(keyspace, load.node);
        let all = if state.places.is_bound(keyspace) {
            let count = || self.nodes.values().filter(|load| may(load)).count();
            *self.fit_for.borrow_mut().entry(keyspace).or_insert_with(count)
        } else {
            self.fit
        };
        let among = nodes.iter().filter(|node| self.nodes.get(node).is_some_and(may)).count();
        all - among
    }

    pub fn get(&self, node: u64) -> Option<&Load> {
        self.nodes.get(&node)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Load> {
        self.nodes.values()
    }

    /// What the live nodes' ranges cost them on average.
    pub fn cost_mean(&self) -> i64 {
        let (nodes, cost) = self.nodes.values().fold((0, 0), |(nodes, cost), load| {
            (nodes + i64::from(load.live), cost + if load.live { load.cost } else { 0 })
        });
        cost / nodes.max(1)
    }

    /// Whether the node may be given a range that costs it so much for the sake of numbers: those yield to load.
    pub fn may_cost(&self, node: u64, cost: u64) -> bool {
        cost == 0 || self.nodes.get(&node).is_some_and(|load| load.cost + cost as i64 <= self.cost_max)
    }

    /// Whether the node may be the source of one more order on a range of this size.
    pub fn may_send(&self, node: u64, data_bytes: u64) -> bool {
        self.nodes.get(&node).is_some_and(|load| load.sends + weight(data_bytes) <= self.capacity)
    }

    /// Whether the node may be given one more replica of a range of this size now.
    pub fn may_receive(&self, node: u64, data_bytes: u64) -> bool {
        let room = |load: &Load| load.fit && load.receives + weight(data_bytes) <= self.capacity;
        self.nodes.get(&node).is_some_and(room)
    }

    /// The same for moves that need not be: half of what a node may do is kept for those that must.
    pub fn may_spare(&self, from: u64, to: u64, data_bytes: u64) -> bool {
        let spare = (self.capacity / 2).max(HEAVY);
        let weight = weight(data_bytes);
        let sends = self.nodes.get(&from).is_some_and(|load| load.sends + weight <= spare);
        sends && self.nodes.get(&to).is_some_and(|load| load.fit && load.receives + weight <= spare)
    }

    pub fn may_give_lead(&self, node: u64) -> bool {
        self.nodes.get(&node).is_some_and(|load| load.leads_going < self.leader_capacity)
    }

    pub fn may_take_lead(&self, node: u64) -> bool {
        self.nodes.get(&node).is_some_and(|load| load.leads_coming < load.leads_coming_max)
    }

    /// At most `count` nodes that may be given a replica of the range now, beside the voters that stay: as far from
    /// those and each other as can be; then where the keyspace prefers its leader, if none is there yet; the emptiest first.
    pub fn targets(&self, state: &State, route: &Route, count: usize, stay: &[u64]) -> Vec<u64> {
        let keyspace = route.descriptor.keyspace_id;
        let mut others: Vec<Place> = stay.iter().map(|node| state.places.place(*node)).collect();
        let mut found = Vec::with_capacity(count);
        while found.len() < count {
            let fits = |load: &&Load| {
                self.may_receive(load.node, route.data_bytes)
                    && !holds(&route.descriptor, load.node)
                    && !found.contains(&load.node)
                    && state.places.allows(keyspace, load.node)
            };
            let held = state.places.best_rank(keyspace, stay.iter().chain(&found).copied());
            let rank = |load: &Load| state.places.lead_rank(keyspace, load.node).min(held);
            let place = |load: &&Load| (load.place.beside(&others), rank(load), load.replicas, load.bytes, load.node);
            let Some(best) = self.nodes.values().filter(fits).min_by_key(place) else { break };
            others.push(best.place);
            found.push(best.node);
        }
        found
    }

    /// A node for a range that is to be born, other than where its record says.
    pub fn cradle(&self, state: &State, descriptor: &v1::RangeDescriptor) -> Option<u64> {
        let fits = |load: &&Load| {
            self.may_receive(load.node, 0)
                && voters(descriptor).all(|node| node != load.node)
                && state.places.allows(descriptor.keyspace_id, load.node)
        };
        let nodes = self.nodes.values().filter(fits);
        nodes.min_by_key(|load| (load.replicas, load.bytes, load.node)).map(|load| load.node)
    }
}

fn weight(data_bytes: u64) -> u32 {
    if data_bytes <= LIGHT_BYTES_MAX { LIGHT } else { HEAVY }
}
