//! What each node has, and will have once the orders under way are carried out; and how many more it may take part in.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use flotilla_proto::v1;

use super::sites::{Measure, Offer, Sites};
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
    /// Nodes to choose from, made when first asked for: of a keyspace with constraints, or of all others.
    sites: RefCell<BTreeMap<(Option<u64>, Measure), Sites>>,
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
            sites: RefCell::default(),
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
            self.refile(*node);
        }
        for node in order.remove_nodes.iter().filter(|node| holds(&route.descriptor, **node)) {
            if let Some(load) = self.nodes.get_mut(node) {
                load.replicas -= 1;
                load.bytes -= bytes;
                load.cost -= route.hold_cost() as i64;
                load.sends += if *node == route.leader { 0 } else { weight };
            }
            self.refile(*node);
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

    /// Whether the node can be given anything at all now.
    fn is_open(&self, load: &Load) -> bool {
        load.receives + LIGHT <= self.capacity
    }

    fn refile(&mut self, node: u64) {
        let Some(load) = self.nodes.get(&node) else { return };
        let open = self.is_open(load);
        self.sites.get_mut().values_mut().for_each(|sites| sites.update(load, open));
    }

    fn with_sites<'a, T>(
        &'a self,
        state: &State,
        keyspace: u64,
        measure: Measure,
        with: impl FnOnce(&Sites) -> T,
    ) -> T {
        let places = &state.places;
        // Without rules all nodes are allowed, and equally good for leaders.
        let ranked = |load: &'a Load| (places.lead_rank(keyspace, load.node), load, self.is_open(load));
        let fit = self.nodes.values().filter(|load| load.fit && places.allows(keyspace, load.node));
        let mut sites = self.sites.borrow_mut();
        with(
            sites
                .entry((places.is_bound(keyspace).then_some(keyspace), measure))
                .or_insert_with(|| Sites::of(measure, fit.map(ranked))),
        )
    }

    /// How many nodes beside these may be given replicas of the keyspace at all.
    pub fn fit_beside(&self, state: &State, keyspace: u64, nodes: &[u64]) -> usize {
        let may = |load: &Load| load.fit && state.places.allows(keyspace, load.node);
        let all = match state.places.is_bound(keyspace) {
            true => self.with_sites(state, keyspace, Measure::Replicas, Sites::count),
            false => self.fit,
        };
        let among = nodes.iter().filter(|node| self.nodes.get(node).is_some_and(may)).count();
        all - among
    }

    /// Nodes to choose from for a replica of the range beside those in these places: of all that are better than `rank`
    /// by its leader's preferences, that `may` be given it, and have room for it, so many as the best one is surely
    /// among, whether closeness, preference or emptiness count. `later`: whether they have room for it or not.
    pub fn offers(
        &self,
        state: &State,
        route: &Route,
        (rank, later): (usize, bool),
        others: &[Place],
        may: impl Fn(&Load) -> bool,
    ) -> Vec<&Load> {
        let may = |load: &Load| match (later || self.may_receive(load.node, route.data_bytes)) && may(load) {
            true => Offer::Take(load.place),
            false => Offer::Pass,
        };
        let may = |node| self.get(node).map_or(Offer::Pass, may);
        let of = |sites: &Sites| sites.offers(|of, _| of < rank, later, others, may);
        let nodes = self.with_sites(state, route.descriptor.keyspace_id, Measure::Replicas, of);
        nodes.iter().filter_map(|node| self.nodes.get(node)).collect()
    }

    /// The same for balance: nodes in sites that `which` is true of, the emptiest of each first.
    pub fn offers_in(
        &self,
        state: &State,
        (keyspace, measure): (u64, Measure),
        which: impl Fn((usize, usize)) -> bool,
        others: &[Place],
        may: impl Fn(&Load) -> Offer,
    ) -> Vec<&Load> {
        let may = |node| self.get(node).map_or(Offer::Pass, &may);
        let of = |sites: &Sites| sites.offers(|_, place| which(place), false, others, may);
        let nodes = self.with_sites(state, keyspace, measure, of);
        nodes.iter().filter_map(|node| self.nodes.get(node)).collect()
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
        let (spare, weight) = (self.spare(), weight(data_bytes));
        self.may_give(from, data_bytes)
            && self.nodes.get(&to).is_some_and(|load| load.fit && load.receives + weight <= spare)
    }

    /// Its first half: whether the one node may give something.
    pub fn may_give(&self, from: u64, data_bytes: u64) -> bool {
        self.nodes.get(&from).is_some_and(|load| load.sends + weight(data_bytes) <= self.spare())
    }

    fn spare(&self) -> u32 {
        (self.capacity / 2).max(HEAVY)
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
            let fits = |load: &Load| !holds(&route.descriptor, load.node) && !found.contains(&load.node);
            let offers = self.offers(state, route, (usize::MAX, false), &others, fits);
            let held = state.places.best_rank(keyspace, stay.iter().chain(&found).copied());
            let rank = |load: &Load| state.places.lead_rank(keyspace, load.node).min(held);
            let place = |load: &&&Load| (load.place.beside(&others), rank(load), load.replicas, load.bytes, load.node);
            let Some(best) = offers.iter().min_by_key(place) else { break };
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
