//! Balance: gives every node its share of replicas, and of bytes.
//!
//! What stops it: a move goes only from a node that has at least `bound` replicas more than the other, so that each
//! move makes the differences smaller and none can be moved back. Bytes are balanced within that: a move for
//! their sake must not open a gap that the count would close again, and must at least halve a gap that is wide.

use super::loads::{Load, Loads};
use super::{Decision, holds, is_free};
use crate::decide::repair::{self, Look};
use crate::state::State;
use crate::table::Route;

/// A gap in bytes below this is not worth a move.
const BYTES_GAP_MIN: i64 = 256 << 20;

/// Replicas by which two nodes may differ without a move: one below this.
fn bound(loads: &Loads) -> i64 {
    let (nodes, replicas) = loads.iter().fold((0, 0), |(nodes, sum), load| (nodes + 1, sum + load.replicas));
    2 + replicas / nodes.max(1) / 20
}

/// Pairs of nodes that one decision looks at: where few ranges may move, a round must stay short all the same.
const PAIRS_MAX: usize = 100;

/// At most `max` moves, and their loads.
pub(crate) fn decide(state: &State, loads: &mut Loads, max: usize) -> Vec<Decision> {
    let mut decisions = Vec::new();
    let bound = bound(loads);
    while decisions.len() < max {
        let Some(decision) = by_count(state, loads, bound).or_else(|| by_bytes(state, loads, bound)) else { break };
        loads.add(state, &decision);
        decisions.push(decision);
    }
    decisions
}

fn sources(loads: &Loads, measure: impl Fn(&Load) -> i64) -> Vec<&Load> {
    let mut nodes: Vec<&Load> = loads.iter().filter(|load| load.live && loads.may_send(load.node, 0)).collect();
    nodes.sort_by_key(|load| (std::cmp::Reverse(measure(load)), load.node));
    nodes
}

fn targets(loads: &Loads, measure: impl Fn(&Load) -> i64) -> Vec<&Load> {
    let mut nodes: Vec<&Load> = loads.iter().filter(|load| loads.may_receive(load.node, 0)).collect();
    nodes.sort_by_key(|load| (measure(load), load.node));
    nodes
}

fn by_count(state: &State, loads: &Loads, bound: i64) -> Option<Decision> {
    let targets = targets(loads, |load| load.replicas);
    let mut pairs = 0;
    for from in sources(loads, |load| load.replicas) {
        for to in &targets {
            if from.replicas - to.replicas < bound {
                break;
            }
            pairs += 1;
            if pairs > PAIRS_MAX {
                return None;
            }
            if let Some(route) = pick(state, loads, from.node, to.node, |_| true) {
                let reason = format!(
                    "balance: node {} has {} replicas, node {} has {}",
                    from.node, from.replicas, to.node, to.replicas
                );
                return Some(moving(state, route, from.node, to.node, reason));
            }
        }
    }
    None
}

fn by_bytes(state: &State, loads: &Loads, bound: i64) -> Option<Decision> {
    let targets = targets(loads, |load| load.bytes);
    let (nodes, bytes) = loads.iter().fold((0, 0), |(nodes, sum), load| (nodes + 1, sum + load.bytes));
    let mut pairs = 0;
    let gap_min = BYTES_GAP_MIN.max(bytes / nodes.max(1) / 5);
    for from in sources(loads, |load| load.bytes) {
        for to in &targets {
            let gap = from.bytes - to.bytes;
            if gap < gap_min {
                break;
            }
            if to.replicas + 1 - (from.replicas - 1) >= bound {
                continue;
            }
            pairs += 1;
            if pairs > PAIRS_MAX {
                return None;
            }
            let worth = |size: u64| size as i64 >= gap_min / 8 && size as i64 <= gap / 2;
            if let Some(route) = pick(state, loads, from.node, to.node, worth) {
                let reason = format!("balance: node {} has {gap} bytes more than node {}", from.node, to.node);
                return Some(moving(state, route, from.node, to.node, reason));
            }
        }
    }
    None
}

/// A range of `from` that may go to `to`: one that `from` does not lead, if there is one.
fn pick<'a>(state: &'a State, loads: &Loads, from: u64, to: u64, worth: impl Fn(u64) -> bool) -> Option<&'a Route> {
    let may_go = |route: &&Route| {
        // The system range moves only where it must: with it goes the service.
        route.descriptor.range_id != flotilla_proto::ids::SYSTEM_RANGE.0
            && worth(route.data_bytes)
            && !holds(&route.descriptor, to)
            && is_free(state, loads, route)
            && loads.may_send(from, route.data_bytes)
            && loads.may_send(route.leader, route.data_bytes)
            && loads.may_receive(to, route.data_bytes)
            && repair::look(state, loads, route) == Look::Fine
    };
    let held = &state.table.holding(from)?.held;
    let mut led = None;
    for route in held.iter().filter_map(|range| state.table.get(*range)).filter(may_go) {
        if route.leader != from {
            return Some(route);
        }
        led = led.or(Some(route));
    }
    led
}

fn moving(state: &State, route: &Route, from: u64, to: u64, reason: String) -> Decision {
    Decision {
        range: route.descriptor.range_id,
        add: vec![to],
        remove: vec![from],
        leader: 0,
        reason,
        limit: state.config.order_time_limit,
    }
}
