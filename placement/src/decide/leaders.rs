//! Leaders: away from nodes that are not to lead, and an equal share on every other.
//!
//! A transfer for balance goes only to a node that leads at least `bound` ranges less, so that each one makes the
//! differences smaller; and not to where the keyspace wants its leaders less, nor to a node that would have more load
//! than is its share; and never of a range whose leader has just changed: a person may have wanted that. Only a voter that holds all that is committed, or nearly, is asked to lead.

use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::v1::OrderKind;

use super::balance::DEAR;
use super::loads::{Load, Loads};
use super::ranking::Ranking;
use super::{Decision, TRANSFER_LIMIT, is_free, is_idle, voters};
use crate::state::State;
use crate::table::Route;

/// Ranges that one round looks at.
const LOOKED_AT_MAX: usize = 20_000;

/// What one round came to.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub decisions: Vec<Decision>,
    /// Many ranges were looked at for the sake of balance, and none could be handed over.
    pub in_vain: bool,
    /// Where the next round begins.
    pub next: u64,
}

/// Transfers off the nodes that are not to lead: at most `max`.
pub(crate) fn clear(state: &State, loads: &mut Loads, max: usize) -> Vec<Decision> {
    let mut decisions = Vec::new();
    let nodes: Vec<u64> = loads.iter().filter(|load| load.live && load.leads > 0).map(|load| load.node).collect();
    for node in nodes {
        let Some((kind, why)) = state.must_not_lead(node) else { continue };
        let Some(holding) = state.table.holding(node) else { continue };
        for route in holding.led.iter().filter_map(|range| state.table.get(*range)).take(LOOKED_AT_MAX) {
            if decisions.len() >= max || !loads.may_give_lead(node) {
                break;
            }
            if !is_free(state, loads, route) {
                continue;
            }
            if let Some(to) = best_voter(state, loads, route) {
                let decision = transfer(route, to, kind, why.clone());
                loads.add(state, &decision);
                decisions.push(decision);
            }
        }
    }
    decisions
}

/// Transfers for equal shares: at most `max`. Nodes that lead few are given some, beginning with the node `first`.
pub(crate) fn share(state: &State, loads: &mut Loads, max: usize, first: u64) -> Shared {
    let (nodes, leads) = loads.iter().fold((0, 0), |(nodes, sum), load| (nodes + 1, sum + load.leads));
    let bound = 2 + leads / i64::max(nodes, 1) / 10;
    let of = |load: &Load| load.leads;
    let mut ranking = Ranking::of(loads.iter(), |load| load.live, of);
    let mut shared = Shared::default();
    let most = |loads: &Loads, ranking: &Ranking| {
        ranking.down().next().and_then(|node| loads.get(node)).map_or(0, |load| load.leads)
    };
    let mut targets: Vec<(i64, u64)> =
        loads.iter().filter(|load| load.fit).map(|load| (load.leads, load.node)).collect();
    let highest = most(loads, &ranking);
    targets.retain(|(leads, _)| highest - leads >= bound);
    // The emptiest first; where many are equally empty, another one each time.
    targets.sort_unstable_by_key(|(leads, node)| (*leads, *node < first, *node));
    let mut left = LOOKED_AT_MAX;
    for (_, node) in targets {
        if left == 0 || shared.decisions.len() >= max {
            break;
        }
        shared.next = node + 1;
        while let Some(route) = pick(state, loads, node, bound, &mut left) {
            let leads = |node: u64| loads.get(node).map_or(0, |load| load.leads);
            let from = route.leader;
            let reason =
                format!("balance: node {from} leads {} ranges, node {node} leads {}", leads(from), leads(node));
            let decision = transfer(route, node, OrderKind::BalanceLeaders, reason);
            loads.add(state, &decision);
            ranking.update(loads, from, of);
            ranking.update(loads, node, of);
            shared.decisions.push(decision);
            if shared.decisions.len() >= max || most(loads, &ranking) - loads.get(node).map_or(0, of) < bound {
                break;
            }
        }
    }
    shared.in_vain = left + DEAR < LOOKED_AT_MAX && shared.decisions.is_empty();
    shared
}

/// A range that `to` may lead, of the node that leads the most, at least `bound` more.
fn pick<'a>(state: &'a State, loads: &Loads, to: u64, bound: i64, left: &mut usize) -> Option<&'a Route> {
    let own = loads.get(to).filter(|_| loads.may_take_lead(to))?.leads;
    let mut best: Option<(i64, &Route)> = None;
    for route in state.table.holding(to)?.held.iter().filter_map(|range| state.table.get(*range)) {
        if *left == 0 {
            break;
        }
        *left -= 1;
        let theirs = loads.get(route.leader).map_or(0, |load| load.leads);
        let better = theirs - own >= bound && best.is_none_or(|(most, _)| theirs > most);
        if better && may_lead(state, loads, route, to) {
            best = Some((theirs, route));
        }
    }
    best.map(|(_, route)| route)
}

fn may_lead(state: &State, loads: &Loads, route: &Route, to: u64) -> bool {
    let keyspace = route.descriptor.keyspace_id;
    // With the system range goes the service: not for the sake of a number.
    route.descriptor.range_id != SYSTEM_RANGE.0
        && route.leader != to
        && loads.may_give_lead(route.leader)
        && is_idle(state, loads, route)
        && !state.rests(route)
        && route.is_level(to)
        && voters(&route.descriptor).any(|node| node == to)
        && state.places.lead_rank(keyspace, to) <= state.places.lead_rank(keyspace, route.leader)
        && loads.may_cost(to, route.lead_cost())
}

/// The voter that is to lead instead of the one that does: where the keyspace wants it most, then who leads the fewest.
pub(crate) fn best_voter(state: &State, loads: &Loads, route: &Route) -> Option<u64> {
    let keyspace = route.descriptor.keyspace_id;
    voters(&route.descriptor)
        .filter(|node| *node != route.leader && route.is_level(*node))
        .filter(|node| state.is_fit(*node) && loads.may_take_lead(*node))
        .filter_map(|node| Some((state.places.lead_rank(keyspace, node), loads.get(node)?.leads, node)))
        .min()
        .map(|(_, _, node)| node)
}

pub(crate) fn transfer(route: &Route, to: u64, kind: OrderKind, reason: String) -> Decision {
    Decision {
        range: route.descriptor.range_id,
        leader: to,
        kind,
        reason,
        limit: TRANSFER_LIMIT,
        ..Decision::default()
    }
}
