//! Replicas and leaders that are not where they should be, of ranges that lack nothing else.
//!
//! In this order, one replica in an order: a replica where the keyspace's constraints do not allow it, or on a node that
//! is being decommissioned; replicas closer to each other than they could be; no replica where the keyspace prefers its
//! leader; a leader elsewhere than there. What stops it: a replica goes only to where it may be; each move for the sake of
//! distance makes the replicas of the range strictly less close; and one for the sake of the leader brings them no closer,
//! and the best place among them strictly up in the keyspace's list.

use flotilla_proto::v1::OrderKind;

use super::loads::{Load, Loads};
use super::repair::{Look, Until, hindrance};
use super::{Decision, TRANSFER_LIMIT, holds, is_free, voters};
use crate::places::{Place, closeness};
use crate::state::State;
use crate::table::Route;

/// Whether the keyspace's replicas may not stay on the node.
pub(crate) fn is_unwanted(state: &State, keyspace: u64, node: u64) -> bool {
    state.is_decommissioning(node) || !state.places.allows(keyspace, node)
}

/// Looks at a range that has all its voters; `voters` are their nodes.
pub(crate) fn look(state: &State, loads: &Loads, route: &Route, voters: &[u64]) -> Look {
    let keyspace = route.descriptor.keyspace_id;
    if let Some(node) = voters.iter().copied().find(|node| is_unwanted(state, keyspace, *node)) {
        return replace(state, loads, route, voters, node);
    }
    let close = state.places.closeness(voters);
    if close > state.places.closeness_min(voters.len())
        && let Some(look) = spread(state, loads, route, voters, close)
    {
        return look;
    }
    let missing = bring(state, loads, route, voters, close);
    missing.or_else(|| preferred(state, loads, route)).unwrap_or(Look::Fine)
}

fn moving(state: &State, route: &Route, from: u64, to: u64, kind: OrderKind, reason: String) -> Look {
    Look::Act(Box::new(Decision::to_move(state, route, from, to, kind, reason)))
}

/// One replica for another on a node that may have it.
fn replace(state: &State, loads: &Loads, route: &Route, voters: &[u64], node: u64) -> Look {
    let keyspace = route.descriptor.keyspace_id;
    let (kind, why) = match state.is_decommissioning(node) {
        true => (OrderKind::Decommission, format!("node {node} is being decommissioned")),
        false => (OrderKind::Misplaced, format!("node {node} may not hold it by its keyspace's constraints")),
    };
    let wanted = voters.iter().filter(|node| !is_unwanted(state, keyspace, **node)).count();
    if loads.fit_beside(state, keyspace, voters) == 0 {
        let held = format!("{why}, and of the nodes that may, {wanted} have it and no other can be given it");
        return Look::Wait(Until::Change, held);
    }
    if let Some(wait) = hindrance(state, loads, route) {
        return wait;
    }
    let stay: Vec<u64> = voters.iter().copied().filter(|other| *other != node).collect();
    match loads.targets(state, route, 1, &stay).first() {
        Some(to) => moving(state, route, node, *to, kind, format!("{why}: node {to} gets its replica")),
        None => Look::Wait(Until::Room, format!("{why}, and the nodes that may have as many moves as they may")),
    }
}

/// One replica for another that is farther from the rest, if there is a node for it.
fn spread(state: &State, loads: &Loads, route: &Route, voters: &[u64], close: u32) -> Option<Look> {
    let descriptor = &route.descriptor;
    let may = |load: &Load| !holds(descriptor, load.node);
    let places: Vec<Place> = voters.iter().map(|node| state.places.place(*node)).collect();
    let without = |at: usize| {
        let mut stay = places.clone();
        stay.swap_remove(at);
        (voters[at], closeness(&stay), stay)
    };
    let offers = |later: bool| loads.offers(state, route, (usize::MAX, later), &places, may);
    let stays: Vec<(u64, u32, Vec<Place>)> = (0..voters.len()).map(without).collect();
    let best = |nodes: Vec<&Load>| {
        let swaps = nodes.into_iter().flat_map(|load| stays.iter().map(move |stay| (load, stay)));
        let rated = swaps.map(|(load, (from, among, stay))| {
            (among + load.place.beside(stay), *from == route.leader, load.replicas, load.node, *from)
        });
        rated.filter(|(after, ..)| *after < close).min()
    };
    let (.., to, from) = match best(offers(false)) {
        Some(best) => best,
        None if best(offers(true)).is_some() => {
            let why = "its replicas could be farther apart, and the nodes for it have as many moves as they may";
            return Some(Look::Wait(Until::Room, why.into()));
        }
        None => return None,
    };
    if let Some(wait) = hindrance(state, loads, route) {
        return Some(wait);
    }
    let reason = format!("its replica on node {from} is closer to the others than one on node {to} would be");
    Some(moving(state, route, from, to, OrderKind::Misplaced, reason))
}

/// A replica goes to where the keyspace prefers the leader, if none is in as good a place: a leader can only be where a
/// replica is.
fn bring(state: &State, loads: &Loads, route: &Route, voters: &[u64], close: u32) -> Option<Look> {
    let keyspace = route.descriptor.keyspace_id;
    let held = state.places.best_rank(keyspace, voters.iter().copied());
    if held == 0 {
        return None;
    }
    let may = |load: &Load| !holds(&route.descriptor, load.node);
    let places: Vec<Place> = voters.iter().map(|node| state.places.place(*node)).collect();
    let offers = |later: bool| loads.offers(state, route, (held, later), &places, may);
    let swap = |load: &Load, from: u64| {
        let after: Vec<u64> = voters.iter().copied().filter(|node| *node != from).chain([load.node]).collect();
        let rank = state.places.lead_rank(keyspace, load.node);
        let emptiest = (load.replicas, load.bytes, load.node);
        (rank, state.places.closeness(&after), from == route.leader, emptiest, from)
    };
    let best = |nodes: Vec<&Load>| {
        let swaps = nodes.into_iter().flat_map(|load| voters.iter().map(move |from| swap(load, *from)));
        swaps.filter(|(_, after, ..)| *after <= close).min()
    };
    let Some((.., (.., to), from)) = best(offers(false)) else {
        let why =
            "no replica is where its keyspace prefers its leader, and the nodes there have as many moves as they may";
        return best(offers(true)).map(|_| Look::Wait(Until::Room, why.into()));
    };
    if let Some(wait) = hindrance(state, loads, route) {
        return Some(wait);
    }
    let reason =
        format!("no replica is where its keyspace prefers its leader: the one on node {from} goes to node {to}");
    Some(moving(state, route, from, to, OrderKind::Misplaced, reason))
}

/// The leader goes where the keyspace prefers it, if a voter there can lead.
fn preferred(state: &State, loads: &Loads, route: &Route) -> Option<Look> {
    let keyspace = route.descriptor.keyspace_id;
    if !state.places.has_preferences(keyspace) || !is_free(state, loads, route) {
        return None;
    }
    let rank = |node: u64| state.places.lead_rank(keyspace, node);
    let own = rank(route.leader);
    let better =
        voters(&route.descriptor).filter(|node| rank(*node) < own && state.is_fit(*node) && route.is_level(*node));
    let leads = |node: u64| loads.get(node).map_or(0, |load| load.leads);
    let to = better.min_by_key(|node| (rank(*node), leads(*node), *node))?;
    if !loads.may_give_lead(route.leader) || !loads.may_take_lead(to) {
        let why = format!("its keyspace prefers its leader on node {to}; as many are on the way as may be");
        return Some(Look::Wait(Until::Room, why));
    }
    Some(Look::Act(Box::new(Decision {
        range: route.descriptor.range_id,
        leader: to,
        kind: OrderKind::PreferredLeader,
        reason: format!("its keyspace prefers its leader on node {to} to node {}", route.leader),
        limit: TRANSFER_LIMIT,
        ..Decision::default()
    })))
}
