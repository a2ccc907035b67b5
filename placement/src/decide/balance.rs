//! Balance: gives every node its share of replicas, and of bytes.
//!
//! What stops it: a move for the count goes only from a node that has at least `bound` replicas more than the other,
//! so that each makes the counts more equal. A move for bytes makes a wide gap narrower, and the counts not more
//! unequal: where it would, a much smaller range goes back in exchange. So neither can go on without end. No move brings
//! the replicas of a range closer together, goes where they may not be, or gives a node more load than is its share.

use flotilla_proto::v1::OrderKind;

use super::loads::{Load, Loads};
use super::ranking::Ranking;
use super::{Decision, holds, is_idle, voters};
use crate::decide::repair::{self, Look};
use crate::places::Place;
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

/// Ranges that one choice is made among, and ranges that one round looks at to find those.
const CANDIDATES_MAX: usize = 64;
const LOOKED_AT_MAX: usize = 50_000;
/// A search that looks at so many in vain is not made again at once.
pub(crate) const DEAR: usize = 2_000;

/// What one round of balance did.
#[derive(Debug, Default)]
pub(crate) struct Balanced {
    pub decisions: Vec<Decision>,
    /// There were nodes that differ by too much, and nothing could be done about it, which took many ranges to find out:
    /// to look again at once would be dear, and in vain.
    pub in_vain: bool,
}

/// At most `max` moves, and their loads.
pub(crate) fn decide(state: &State, loads: &mut Loads, max: usize) -> Balanced {
    let mut balanced = Balanced::default();
    let mut search = Search { state, left: LOOKED_AT_MAX };
    for measure in [Measure::Replicas { bound: bound(loads) }, Measure::Bytes { gap_min: gap_min(loads) }] {
        let of = |load: &Load| measure.of(load);
        let mut sources = Ranking::of(loads.iter(), |load| load.live, of);
        let mut targets = Ranking::of(loads.iter(), |load| load.fit, of);
        while balanced.decisions.len() < max {
            let mut pairs = 0;
            let Some(moves) = search.next(loads, &sources, &targets, measure, &mut pairs) else {
                balanced.in_vain |= pairs > 0 && search.left + DEAR < LOOKED_AT_MAX;
                break;
            };
            for decision in &moves {
                loads.add(state, decision);
                for node in decision.add.iter().chain(&decision.remove) {
                    sources.update(loads, *node, of);
                    targets.update(loads, *node, of);
                }
            }
            balanced.decisions.extend(moves);
        }
    }
    balanced
}

fn gap_min(loads: &Loads) -> i64 {
    let (nodes, bytes) = loads.iter().fold((0, 0), |(nodes, sum), load| (nodes + 1, sum + load.bytes));
    BYTES_GAP_MIN.max(bytes / i64::max(nodes, 1) / 5)
}

#[derive(Clone, Copy, Debug)]
enum Measure {
    Replicas { bound: i64 },
    Bytes { gap_min: i64 },
}

impl Measure {
    fn of(self, load: &Load) -> i64 {
        match self {
            Self::Replicas { .. } => load.replicas,
            Self::Bytes { .. } => load.bytes,
        }
    }

    fn least(self) -> i64 {
        match self {
            Self::Replicas { bound } => bound,
            Self::Bytes { gap_min } => gap_min,
        }
    }
}

struct Search<'a> {
    state: &'a State,
    /// Ranges that may still be looked at in this round.
    left: usize,
}

impl<'a> Search<'a> {
    fn next(
        &mut self,
        loads: &Loads,
        sources: &Ranking,
        targets: &Ranking,
        measure: Measure,
        pairs: &mut usize,
    ) -> Option<Vec<Decision>> {
        for from in sources.down().filter_map(|node| loads.get(node)) {
            for to in targets.up().filter_map(|node| loads.get(node)) {
                if measure.of(from) - measure.of(to) < measure.least() {
                    break;
                }
                if !loads.may_spare(from.node, to.node, 0) {
                    continue;
                }
                *pairs += 1;
                if *pairs > PAIRS_MAX || self.left == 0 {
                    return None;
                }
                let moves = match measure {
                    Measure::Replicas { .. } => self.by_count(loads, from, to).map(|decision| vec![decision]),
                    Measure::Bytes { gap_min } => self.by_bytes(loads, from, to, gap_min),
                };
                if moves.is_some() {
                    return moves;
                }
            }
        }
        None
    }

    fn by_count(&mut self, loads: &Loads, from: &Load, to: &Load) -> Option<Decision> {
        let route = self.pick(loads, from, to, |_| true)?;
        let reason =
            format!("balance: node {} has {} replicas, node {} has {}", from.node, from.replicas, to.node, to.replicas);
        Some(Decision::to_move(self.state, route, from.node, to.node, OrderKind::BalanceReplicas, reason))
    }

    /// A move, or an exchange of a large range for a small one where a move alone would make the counts more unequal.
    fn by_bytes(&mut self, loads: &Loads, from: &Load, to: &Load, gap_min: i64) -> Option<Vec<Decision>> {
        let gap = from.bytes - to.bytes;
        let worth = |size: i64| size >= gap_min / 8 && size <= gap / 2;
        let large = self.pick(loads, from, to, worth)?;
        let reason = format!("balance: node {} has {gap} bytes more than node {}", from.node, to.node);
        let kind = OrderKind::BalanceBytes;
        let mut decisions = vec![Decision::to_move(self.state, large, from.node, to.node, kind, reason.clone())];
        if from.replicas <= to.replicas {
            let is_small = |size: i64| size <= large.data_bytes as i64 / 4;
            let small = self.pick(loads, to, from, is_small)?;
            decisions.push(Decision::to_move(
                self.state,
                small,
                to.node,
                from.node,
                kind,
                format!("{reason}; in exchange"),
            ));
        }
        Some(decisions)
    }

    /// A range of `from` that may go to `to`: one that `from` does not lead, if there is one; of these the one that
    /// brings the two closest in bytes.
    fn pick(&mut self, loads: &Loads, from: &Load, to: &Load, worth: impl Fn(i64) -> bool) -> Option<&'a Route> {
        let state = self.state;
        let held = &state.table.holding(from.node)?.held;
        let mut candidates = Vec::new();
        for route in held.iter().filter_map(|range| state.table.get(*range)).take(self.left) {
            self.left -= 1;
            if worth(route.data_bytes as i64) && may_move(state, loads, route, from, to) {
                candidates.push(route);
                if candidates.len() == CANDIDATES_MAX {
                    break;
                }
            }
        }
        let apart = |route: &Route| (from.bytes - to.bytes - 2 * route.data_bytes as i64).abs();
        candidates.into_iter().min_by_key(|route| (route.leader == from.node, apart(route), route.descriptor.range_id))
    }
}

/// Whether a replica may go from the one node to the other for the sake of numbers.
fn may_move(state: &State, loads: &Loads, route: &Route, from: &Load, to: &Load) -> bool {
    loads.may_cost(to.node, route.hold_cost()) && may_relieve(state, loads, route, from, to)
}

/// Whether a replica may go from the one node to the other, because it need not.
pub(crate) fn may_relieve(state: &State, loads: &Loads, route: &Route, from: &Load, to: &Load) -> bool {
    let descriptor = &route.descriptor;
    // The system range moves only where it must: with it goes the service.
    descriptor.range_id != flotilla_proto::ids::SYSTEM_RANGE.0
        && !holds(descriptor, to.node)
        && is_idle(state, loads, route)
        && !state.rests(route)
        && state.places.allows(descriptor.keyspace_id, to.node)
        && loads.may_spare(from.node, to.node, route.data_bytes)
        && loads.may_spare(route.leader, to.node, route.data_bytes)
        && is_no_closer(state, route, from, to)
        && keeps_preference(state, route, from, to)
        && repair::look(state, loads, route) == Look::Fine
}

fn is_no_closer(state: &State, route: &Route, from: &Load, to: &Load) -> bool {
    let others = voters(&route.descriptor).filter(|node| *node != from.node);
    let others: Vec<Place> = others.map(|node| state.places.place(node)).collect();
    to.place.beside(&others) <= from.place.beside(&others)
}

/// Whether a voter stays where the keyspace prefers its leader, as far as there is one.
fn keeps_preference(state: &State, route: &Route, from: &Load, to: &Load) -> bool {
    let keyspace = route.descriptor.keyspace_id;
    let after = voters(&route.descriptor).filter(|node| *node != from.node).chain([to.node]);
    state.places.best_rank(keyspace, after) <= state.places.best_rank(keyspace, voters(&route.descriptor))
}
