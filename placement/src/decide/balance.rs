//! Balance: gives every node its share of replicas, and of bytes.
//!
//! What stops it: a move for the count goes only from a node that has at least `bound` replicas more than the other,
//! so that each makes the counts more equal. A move for bytes makes a wide gap narrower, and the counts not more
//! unequal: where it would, a much smaller range goes back in exchange. So neither can go on without end.

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

/// Ranges of a node that one choice is made among.
const CANDIDATES_MAX: usize = 256;

/// At most `max` moves, and their loads.
pub(crate) fn decide(state: &State, loads: &mut Loads, max: usize) -> Vec<Decision> {
    let mut decisions = Vec::new();
    let bound = bound(loads);
    while decisions.len() < max {
        let moves = by_count(state, loads, bound).map(|decision| vec![decision]);
        let Some(moves) = moves.or_else(|| by_bytes(state, loads)) else { break };
        moves.iter().for_each(|decision| loads.add(state, decision));
        decisions.extend(moves);
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
            if let Some(route) = pick(state, loads, from, to, |_| true) {
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

/// A move, or an exchange of a large range for a small one where a move alone would make the counts more unequal.
fn by_bytes(state: &State, loads: &Loads) -> Option<Vec<Decision>> {
    let targets = targets(loads, |load| load.bytes);
    let mut pairs = 0;
    let (nodes, bytes) = loads.iter().fold((0, 0), |(nodes, sum), load| (nodes + 1, sum + load.bytes));
    let gap_min = BYTES_GAP_MIN.max(bytes / nodes.max(1) / 5);
    for from in sources(loads, |load| load.bytes) {
        for to in &targets {
            let gap = from.bytes - to.bytes;
            if gap < gap_min {
                break;
            }
            pairs += 1;
            if pairs > PAIRS_MAX {
                return None;
            }
            let worth = |size: i64| size >= gap_min / 8 && size <= gap / 2;
            let Some(large) = pick(state, loads, from, to, worth) else { continue };
            let reason = format!("balance: node {} has {gap} bytes more than node {}", from.node, to.node);
            let mut decisions = vec![moving(state, large, from.node, to.node, reason.clone())];
            if from.replicas <= to.replicas {
                let is_small = |size: i64| size <= large.data_bytes as i64 / 4;
                let Some(small) = pick(state, loads, to, from, is_small) else { continue };
                decisions.push(moving(state, small, to.node, from.node, format!("{reason}; in exchange")));
            }
            return Some(decisions);
        }
    }
    None
}

/// A range of `from` that may go to `to`: one that `from` does not lead, if there is one; of these the one that
/// brings the two closest in bytes.
fn pick<'a>(state: &'a State, loads: &Loads, from: &Load, to: &Load, worth: impl Fn(i64) -> bool) -> Option<&'a Route> {
    let may_go = |route: &&Route| {
        // The system range moves only where it must: with it goes the service.
        route.descriptor.range_id != flotilla_proto::ids::SYSTEM_RANGE.0
            && worth(route.data_bytes as i64)
            && !holds(&route.descriptor, to.node)
            && is_free(state, loads, route)
            && loads.may_send(from.node, route.data_bytes)
            && loads.may_send(route.leader, route.data_bytes)
            && loads.may_receive(to.node, route.data_bytes)
            && repair::look(state, loads, route) == Look::Fine
    };
    let held = &state.table.holding(from.node)?.held;
    let candidates = held.iter().filter_map(|range| state.table.get(*range)).filter(may_go).take(CANDIDATES_MAX);
    let apart = |route: &&Route| (from.bytes - to.bytes - 2 * route.data_bytes as i64).abs();
    candidates.min_by_key(|route| (route.leader == from.node, apart(route), route.descriptor.range_id))
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
