//! Leaders: away from nodes that are not to lead, and an equal share on every other.
//!
//! A transfer for balance goes only to a node that leads at least `bound` ranges less, so that each one makes the
//! differences smaller; and not to where the keyspace wants its leaders less, nor to a node that would have more load
//! than is its share; and never of a range whose leader has just changed: a person may have wanted that. Only a voter
//! that holds all that is committed, or nearly, is asked to lead.
//!
//! The search goes over what nodes that lead too many lead, or over what nodes that lead too few hold, whichever is
//! less: one new node among many, or one node that got all of a dead one's ranges, is found from its own side.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::v1::OrderKind;

use super::balance::DEAR;
use super::loads::{Load, Loads};
use super::{Decision, TRANSFER_LIMIT, is_free, is_idle, voters};
use crate::state::State;
use crate::table::{Holding, Route};

/// Ranges that one round looks at.
const LOOKED_AT_MAX: usize = 20_000;

/// From whose side the search goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Gives,
    Takes,
}

/// How far a search has come that finds nothing: it goes over so many rounds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tried {
    /// Nodes of which nothing could be handed over, since something could or the search was last at its end.
    nodes: BTreeSet<(Side, u64)>,
    /// Of this node the ranges before this one, too.
    part: Option<(Side, u64, u64)>,
    looked_at: usize,
}

/// What one round came to.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub decisions: Vec<Decision>,
    /// All was looked at for the sake of balance, which was dear, and none could be handed over.
    pub in_vain: bool,
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

/// Transfers for equal shares: at most `max`.
pub(crate) fn share(state: &State, loads: &mut Loads, max: usize, tried: &mut Tried) -> Shared {
    let (nodes, leads) = loads.iter().fold((0, 0), |(nodes, sum), load| (nodes + 1, sum + load.leads));
    let bound = 2 + leads / i64::max(nodes, 1) / 10;
    let (side, nodes) = unequal(state, loads, bound);
    let mut decisions = Vec::new();
    let mut left = LOOKED_AT_MAX;
    for node in nodes {
        if decisions.len() >= max || left == 0 {
            break;
        }
        if tried.nodes.contains(&(side, node)) {
            continue;
        }
        let before = (decisions.len(), left);
        let mut from = tried.part.filter(|part| (part.0, part.1) == (side, node)).map_or(0, |part| part.2);
        while decisions.len() < max {
            let picked = pick(state, loads, (side, node, from), bound, &mut left);
            let Picked { best: Some((route, to)), .. } = picked else {
                from = picked.next;
                break;
            };
            let leads = |node: u64| loads.get(node).map_or(0, |load| load.leads);
            let own = route.leader;
            let reason = format!("balance: node {own} leads {} ranges, node {to} leads {}", leads(own), leads(to));
            let decision = transfer(route, to, OrderKind::BalanceLeaders, reason);
            loads.add(state, &decision);
            decisions.push(decision);
        }
        tried.looked_at += before.1 - left;
        if decisions.len() > before.0 {
            continue;
        }
        if from == 0 {
            tried.nodes.insert((side, node));
        } else {
            tried.part = Some((side, node, from));
        }
    }
    let end = decisions.is_empty() && left > 0;
    let in_vain = end && tried.looked_at > DEAR;
    if end || !decisions.is_empty() {
        *tried = Tried::default();
    }
    Shared { decisions, in_vain }
}

/// The nodes that lead so many that another might take some, the fullest first; or those that lead so few that
/// they might take some, the emptiest first.
fn unequal(state: &State, loads: &Loads, bound: i64) -> (Side, Vec<u64>) {
    let highest = loads.iter().filter(|load| load.live).map(|load| load.leads).max();
    let lowest = loads.iter().filter(|load| load.fit).map(|load| load.leads).min();
    let (Some(highest), Some(lowest)) = (highest, lowest) else { return (Side::Gives, Vec::new()) };
    let mut gives: Vec<&Load> = loads.iter().filter(|load| load.live && load.leads - lowest >= bound).collect();
    let mut takes: Vec<&Load> = loads.iter().filter(|load| load.fit && highest - load.leads >= bound).collect();
    let sum = |nodes: &[&Load], of: fn(&Holding) -> usize| -> usize {
        nodes.iter().filter_map(|load| state.table.holding(load.node)).map(of).sum()
    };
    if sum(&gives, |holding| holding.led.len()) <= sum(&takes, |holding| holding.held.len()) {
        gives.sort_unstable_by_key(|load| (Reverse(load.leads), load.node));
        (Side::Gives, gives.iter().map(|load| load.node).collect())
    } else {
        takes.sort_unstable_by_key(|load| (load.leads, load.node));
        (Side::Takes, takes.iter().map(|load| load.node).collect())
    }
}

/// What a look at one node's ranges came to.
struct Picked<'a> {
    /// A range, and who is to lead it.
    best: Option<(&'a Route, u64)>,
    /// Where to look on, if not all were looked at; 0: they were.
    next: u64,
}

/// A range that the node may hand over, or take over, from a range id on: where those who lead it now and then
/// differ most, and by `bound` at least.
fn pick<'a>(
    state: &'a State,
    loads: &Loads,
    (side, node, from): (Side, u64, u64),
    bound: i64,
    left: &mut usize,
) -> Picked<'a> {
    let leads = |node: u64| loads.get(node).map_or(0, |load| load.leads);
    let holding = state.table.holding(node);
    let ranges = match side {
        Side::Gives => holding.filter(|_| loads.may_give_lead(node)).map(|holding| &holding.led),
        Side::Takes => holding.filter(|_| loads.may_take_lead(node)).map(|holding| &holding.held),
    };
    let mut best: Option<(i64, &Route, u64)> = None;
    let mut next = 0;
    for range in ranges.into_iter().flat_map(|ranges| ranges.range(from..)) {
        if *left == 0 {
            next = *range;
            break;
        }
        *left -= 1;
        let Some(route) = state.table.get(*range) else { continue };
        let own = leads(route.leader);
        let mut consider = |to: u64| {
            let gap = own - leads(to);
            if gap >= bound && best.is_none_or(|(widest, ..)| gap > widest) && may_lead(state, loads, route, to) {
                best = Some((gap, route, to));
            }
        };
        match side {
            Side::Takes => consider(node),
            Side::Gives => voters(&route.descriptor).for_each(consider),
        }
    }
    Picked { best: best.map(|(_, route, to)| (route, to)), next }
}

fn may_lead(state: &State, loads: &Loads, route: &Route, to: u64) -> bool {
    let keyspace = route.descriptor.keyspace_id;
    // With the system range goes the service: not for the sake of a number.
    route.descriptor.range_id != SYSTEM_RANGE.0
        && route.leader != to
        && loads.may_give_lead(route.leader)
        && loads.may_take_lead(to)
        && state.is_fit(to)
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
