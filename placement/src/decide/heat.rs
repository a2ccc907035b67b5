//! Load: no node has much more to do than its share, as far as moving whole ranges can help.
//!
//! Load is what range leaders say they are asked for, counted in requests a second ([`Route::lead_cost`],
//! [`Route::hold_cost`]). A node has too much if it has a quarter more than the mean and a floor, both now and averaged
//! over a while: a burst moves nothing. Leaders are moved first, which costs nothing; a replica only if no voter of
//! any hot range of the node can take one. What stops it: a move leaves the busier one of the two nodes with
//! clearly less than the busier one had, and a range that was moved stays for a while. So noise moves nothing, and a
//! single range that is more than a node's share is moved only to part it from others.

use std::cmp::Reverse;

use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::v1::OrderKind;

use super::loads::{Load, Loads};
use super::{Decision, TRANSFER_LIMIT, balance, is_idle, voters};
use crate::state::State;
use crate::table::Route;

/// Nodes that one round relieves.
const NODES_MAX: usize = 8;
/// The hottest ranges of a node, that one choice is made among.
const CANDIDATES_MAX: usize = 32;

/// Moves off the nodes that have too much to do.
pub(crate) fn decide(state: &State, loads: &mut Loads) -> Vec<Decision> {
    let high = loads.cost_mean() * 5 / 4 + state.config.load_floor as i64;
    let steady = |load: &Load| {
        let smooth = state.heat.smooth.get(&load.node).copied().unwrap_or(0.0);
        load.cost.min(smooth as i64)
    };
    let mut hot: Vec<(Reverse<i64>, u64)> = loads
        .iter()
        .filter(|load| load.live && steady(load) > high)
        .map(|load| (Reverse(steady(load)), load.node))
        .collect();
    hot.sort_unstable();
    let mut decisions = Vec::new();
    for (_, node) in hot.into_iter().take(NODES_MAX) {
        let ranges = hottest(state, loads, node);
        let decision = by_leader(state, loads, node, &ranges).or_else(|| by_replica(state, loads, node, &ranges));
        if let Some(decision) = decision {
            loads.add(state, &decision);
            decisions.push(decision);
        }
    }
    decisions
}

/// The ranges led by the node that are worth moving, the hottest first.
fn hottest<'a>(state: &'a State, loads: &Loads, node: u64) -> Vec<&'a Route> {
    let least = state.config.load_floor / 2;
    let rests = |range: u64| {
        let moved = state.heat.moved.get(&range);
        moved.is_some_and(|at| state.now.saturating_sub(*at) < state.config.load_pause)
    };
    let led = state.table.holding(node).into_iter().flat_map(|holding| &holding.led);
    let mut ranges: Vec<&Route> = led
        .filter_map(|range| state.table.get(*range))
        .filter(|route| route.lead_cost() + route.hold_cost() >= least && route.descriptor.range_id != SYSTEM_RANGE.0)
        .filter(|route| is_idle(state, loads, route) && !state.rests(route))
        .filter(|route| !rests(route.descriptor.range_id))
        .collect();
    ranges.sort_by_key(|route| (Reverse(route.lead_cost()), route.descriptor.range_id));
    ranges.truncate(CANDIDATES_MAX);
    ranges
}

/// What the busier of two nodes has after the first gave so much to the second; `None` if that is not clearly less than
/// the first has now: by a quarter of what is moved.
fn after(loads: &Loads, from: u64, to: u64, cost: i64) -> Option<i64> {
    let (from, to) = (loads.get(from)?.cost, loads.get(to)?.cost);
    let after = i64::max(from - cost, to + cost);
    (after + cost / 4 < from).then_some(after)
}

fn by_leader(state: &State, loads: &Loads, node: u64, ranges: &[&Route]) -> Option<Decision> {
    if !loads.may_give_lead(node) {
        return None;
    }
    let places = &state.places;
    let options = ranges.iter().flat_map(|route| {
        let keyspace = route.descriptor.keyspace_id;
        let able = voters(&route.descriptor).filter(move |to| {
            *to != node
                && route.is_level(*to)
                && state.is_fit(*to)
                && loads.may_take_lead(*to)
                && places.lead_rank(keyspace, *to) <= places.lead_rank(keyspace, node)
        });
        able.filter_map(move |to| {
            Some((after(loads, node, to, route.lead_cost() as i64)?, route.descriptor.range_id, to))
        })
    });
    let (after, range, to) = options.min()?;
    let cost = |node: u64| loads.get(node).map_or(0, |load| load.cost);
    Some(Decision {
        range,
        leader: to,
        kind: OrderKind::BalanceLoad,
        reason: format!(
            "load: node {node} is asked for {} a second, node {to} for {}: {after} at most afterwards",
            cost(node),
            cost(to)
        ),
        limit: TRANSFER_LIMIT,
        ..Decision::default()
    })
}

/// The hottest range goes to the node with the least to do that may have it, leadership and all.
fn by_replica(state: &State, loads: &Loads, node: u64, ranges: &[&Route]) -> Option<Decision> {
    let from = loads.get(node)?;
    let mut nodes: Vec<&Load> = loads.iter().filter(|load| load.fit && load.node != node).collect();
    nodes.sort_by_key(|load| (load.cost, load.node));
    nodes.truncate(CANDIDATES_MAX);
    let options = ranges.iter().flat_map(|route| nodes.iter().map(move |to| (*route, *to)));
    let worth = |(route, to): &(&Route, &Load)| {
        let keyspace = route.descriptor.keyspace_id;
        let places = &state.places;
        after(loads, node, to.node, (route.lead_cost() + route.hold_cost()) as i64).is_some()
            && places.lead_rank(keyspace, to.node) <= places.lead_rank(keyspace, node)
            && loads.may_take_lead(to.node)
            && balance::may_relieve(state, loads, route, from, to)
    };
    let (route, to) = options.into_iter().find(worth)?;
    Some(Decision {
        range: route.descriptor.range_id,
        add: vec![to.node],
        remove: vec![node],
        leader: to.node,
        kind: OrderKind::BalanceLoad,
        reason: format!(
            "load: node {node} is asked for {} a second, node {} for {}, and no voter can take a leader over",
            from.cost, to.node, to.cost
        ),
        limit: state.config.order_time_limit,
        ..Decision::default()
    })
}
