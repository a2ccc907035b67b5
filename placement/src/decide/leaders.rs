//! Leaders: away from nodes that drain, and an equal share on every other.
//!
//! A transfer for balance goes only to a node that leads at least `bound` ranges less, so that each one makes the
//! differences smaller. Only a voter that holds all that is committed, or nearly, is asked to lead.

use flotilla_proto::ids::SYSTEM_RANGE;

use super::loads::Loads;
use super::{Decision, TRANSFER_LIMIT, is_free, voters};
use crate::state::State;
use crate::table::Route;

/// At most `max` transfers, and their loads.
pub(crate) fn decide(state: &State, loads: &mut Loads, max: usize) -> Vec<Decision> {
    let mut decisions = Vec::new();
    let (nodes, leads) = loads.iter().fold((0, 0), |(nodes, sum), load| (nodes + 1, sum + load.leads));
    let mean = leads / i64::max(nodes, 1);
    let bound = 2 + mean / 10;
    let mut from: Vec<(i64, u64)> = loads.iter().map(|load| (-load.leads, load.node)).collect();
    from.sort_unstable();
    for (_, node) in from {
        let draining = state.is_draining(node);
        while decisions.len() < max && loads.may_give_lead(node) {
            let leads = loads.get(node).map_or(0, |load| load.leads);
            let least = if draining { i64::MIN } else { bound };
            let Some((route, to)) = pick(state, loads, node, leads, least) else { break };
            let decision = transfer(route, node, to, draining, loads);
            loads.add(state, &decision);
            decisions.push(decision);
        }
    }
    decisions
}

/// The range led by `from` whose best other voter leads the fewest, at least `least` fewer.
fn pick<'a>(state: &'a State, loads: &Loads, from: u64, leads: i64, least: i64) -> Option<(&'a Route, u64)> {
    let fewest = loads.iter().filter(|load| load.fit).map(|load| load.leads).min()?;
    if leads.saturating_sub(fewest) < least {
        return None;
    }
    let mut best: Option<(i64, &Route, u64)> = None;
    let led = state.table.holding(from)?.led.iter().filter_map(|range| state.table.get(*range));
    for route in led.filter(|route| is_free(state, loads, route)) {
        let range = route.descriptor.range_id;
        let for_balance = least != i64::MIN;
        // With the system range goes the service: not for the sake of a number.
        if for_balance && range == SYSTEM_RANGE.0 {
            continue;
        }
        let Some((to_leads, to)) = best_voter(state, loads, route) else { continue };
        if leads.saturating_sub(to_leads) >= least && best.is_none_or(|(best, ..)| to_leads < best) {
            best = Some((to_leads, route, to));
            if to_leads == fewest {
                break;
            }
        }
    }
    best.map(|(_, route, to)| (route, to))
}

fn best_voter(state: &State, loads: &Loads, route: &Route) -> Option<(i64, u64)> {
    let level = &route.led.as_ref()?.level_nodes;
    voters(&route.descriptor)
        .filter(|node| *node != route.leader && level.contains(node))
        .filter(|node| state.is_fit(*node) && loads.may_take_lead(*node))
        .filter_map(|node| loads.get(node).map(|load| (load.leads, node)))
        .min()
}

fn transfer(route: &Route, from: u64, to: u64, draining: bool, loads: &Loads) -> Decision {
    let leads = |node| loads.get(node).map_or(0, |load| load.leads);
    let reason = if draining {
        format!("node {from} drains")
    } else {
        format!("balance: node {from} leads {} ranges, node {to} leads {}", leads(from), leads(to))
    };
    Decision { range: route.descriptor.range_id, leader: to, reason, limit: TRANSFER_LIMIT, ..Decision::default() }
}
