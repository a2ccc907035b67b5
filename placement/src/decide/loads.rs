//! What each node has, and will have once the orders under way are carried out; and how many more it may take part in.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_proto::v1;

use super::{Decision, holds};
use crate::state::State;

/// A range with more bytes weighs [`HEAVY`]: its copy is more than one small message.
const LIGHT_BYTES_MAX: u64 = 4 << 20;
const LIGHT: u32 = 1;
const HEAVY: u32 = 16;

/// One node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Load {
    pub node: u64,
    pub fit: bool,
    pub live: bool,
    /// Replicas, those under way included.
    pub replicas: i64,
    pub bytes: i64,
    /// Ranges led, those under way included.
    pub leads: i64,
    sends: u32,
    receives: u32,
    leads_going: u32,
    leads_coming: u32,
}

/// All nodes that are part of the cluster.
#[derive(Clone, Debug)]
pub(crate) struct Loads {
    nodes: BTreeMap<u64, Load>,
    fit: usize,
    /// Ranges decided about since.
    taken: BTreeSet<u64>,
    capacity: u32,
    leader_capacity: u32,
}

impl Loads {
    pub fn of(state: &State) -> Self {
        let load = |node: u64| {
            let holding = state.table.holding(node);
            Load {
                node,
                fit: state.is_fit(node),
                live: state.is_live(node),
                replicas: holding.map_or(0, |holding| holding.held.len() as i64),
                bytes: holding.map_or(0, |holding| holding.bytes as i64),
                leads: holding.map_or(0, |holding| holding.led.len() as i64),
                ..Load::default()
            }
        };
        let members = state.ahead.nodes.keys().filter(|node| state.is_member(**node));
        let mut loads = Self {
            nodes: members.map(|node| (*node, load(*node))).collect(),
            fit: 0,
            taken: BTreeSet::new(),
            capacity: state.config.moves_per_node * HEAVY,
            leader_capacity: state.config.leader_moves_per_node,
        };
        loads.fit = loads.nodes.values().filter(|load| load.fit).count();
        for record in state.ahead.orders.values() {
            if let Some(order) = &record.order {
                loads.count(state, order);
            }
        }
        loads
    }

    /// Counts what a decision will bring about.
    pub fn add(&mut self, state: &State, decision: &Decision) {
        let order = v1::RangeOrder {
            order_id: 0,
            range_id: decision.range,
            add_nodes: decision.add.clone(),
            remove_nodes: decision.remove.clone(),
            leader_node_id: decision.leader,
            ..Default::default()
        };
        self.count(state, &order);
        self.taken.insert(decision.range);
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
            }
        }
        for node in order.remove_nodes.iter().filter(|node| holds(&route.descriptor, **node)) {
            if let Some(load) = self.nodes.get_mut(node) {
                load.replicas -= 1;
                load.bytes -= bytes;
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
            }
            if let Some(load) = self.nodes.get_mut(&order.leader_node_id) {
                load.leads += 1;
                load.leads_coming += 1;
            }
        }
    }

    /// How many nodes beside these may be given replicas at all.
    pub fn fit_beside(&self, nodes: &[u64]) -> usize {
        let among = nodes.iter().filter(|node| self.nodes.get(node).is_some_and(|load| load.fit)).count();
        self.fit - among
    }

    pub fn get(&self, node: u64) -> Option<&Load> {
        self.nodes.get(&node)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Load> {
        self.nodes.values()
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

    pub fn may_give_lead(&self, node: u64) -> bool {
        self.nodes.get(&node).is_some_and(|load| load.leads_going < self.leader_capacity)
    }

    pub fn may_take_lead(&self, node: u64) -> bool {
        self.nodes.get(&node).is_some_and(|load| load.leads_coming < self.leader_capacity)
    }

    /// The nodes that may be given a replica of a range of this size now, the emptiest first.
    pub fn emptiest(&self, data_bytes: u64, count: usize, except: &v1::RangeDescriptor) -> Vec<u64> {
        let fits = |load: &&Load| self.may_receive(load.node, data_bytes) && !holds(except, load.node);
        let mut found: Vec<(i64, i64, u64)> = Vec::with_capacity(count + 1);
        for load in self.nodes.values().filter(fits) {
            let place = (load.replicas, load.bytes, load.node);
            let at = found.partition_point(|other| *other < place);
            if at < count {
                found.insert(at, place);
                found.truncate(count);
            }
        }
        found.into_iter().map(|(_, _, node)| node).collect()
    }
}

fn weight(data_bytes: u64) -> u32 {
    if data_bytes <= LIGHT_BYTES_MAX { LIGHT } else { HEAVY }
}
