//! Balance: gives every node its share of replicas, and of bytes.
//!
//! What stops it: a move for the count goes only from a node that has at least `bound` replicas more than the other,
//! so that each makes the counts more equal. A move for bytes makes a wide gap narrower, and the counts not more
//! unequal: where it would, a much smaller range goes back in exchange. So neither can go on without end. No move brings
//! the replicas of a range closer together, goes where they may not be, or gives a node more load than is its share.
//!
//! The search goes over what the fullest nodes hold: first for nodes in the same zone and rack, where a move brings nothing
//! closer together, then for others. What it finds nothing in it leaves out until it has been at its end, so that it comes
//! to every node in time, however many of the fullest ones can give nothing.

use std::collections::BTreeSet;

use flotilla_proto::v1::OrderKind;

use super::loads::{Load, Loads};
use super::ranking::Ranking;
use super::sites::{Measure, Offer};
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

/// Nodes that nothing could be found on, since the search was last at its end: by a measure, and for the same site or
/// for others.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tried {
    nodes: BTreeSet<(Measure, bool, u64)>,
    /// Of this node the ranges before this one, too.
    part: Option<((Measure, bool, u64), u64)>,
}

/// At most `max` moves, and their loads.
pub(crate) fn decide(state: &State, loads: &mut Loads, max: usize, tried: &mut Tried) -> Balanced {
    let mut balanced = Balanced::default();
    let mut search = Search { state, tried, left: LOOKED_AT_MAX };
    let mut searched = 0;
    for (measure, least) in [(Measure::Replicas, bound(loads)), (Measure::Bytes, gap_min(loads))] {
        let of = |load: &Load| measure.of(load);
        let mut sources = Ranking::of(loads.iter(), |load| load.live, of);
        let mut targets = Ranking::of(loads.iter(), |load| load.fit, of);
        while balanced.decisions.len() < max {
            let lowest = targets.up().next().and_then(|node| loads.get(node)).map_or(i64::MAX, of);
            let Some(moves) = search.next(loads, &sources, (measure, least, lowest), &mut searched) else { break };
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
    balanced.in_vain = balanced.decisions.is_empty() && search.left + DEAR < LOOKED_AT_MAX;
    if searched == 0 {
        // Nothing is left that was not tried.
        *tried = Tried::default();
    }
    balanced
}

fn gap_min(loads: &Loads) -> i64 {
    let (nodes, bytes) = loads.iter().fold((0, 0), |(nodes, sum), load| (nodes + 1, sum + load.bytes));
    BYTES_GAP_MIN.max(bytes / i64::max(nodes, 1) / 5)
}

struct Search<'a> {
    state: &'a State,
    tried: &'a mut Tried,
    /// Ranges that may still be looked at in this round.
    left: usize,
}

impl<'a> Search<'a> {
    /// The next move off a node that has `least` more than another; the lowest there is has `lowest`.
    fn next(
        &mut self,
        loads: &Loads,
        sources: &Ranking,
        (measure, least, lowest): (Measure, i64, i64),
        searched: &mut usize,
    ) -> Option<Vec<Decision>> {
        for near in [true, false] {
            for from in sources.down().filter_map(|node| loads.get(node)) {
                if measure.of(from).saturating_sub(lowest) < least {
                    break;
                }
                let key = (measure, near, from.node);
                if self.left == 0 {
                    return None;
                }
                if self.tried.nodes.contains(&key) || !loads.may_give(from.node, 0) {
                    continue;
                }
                if !self.has_room(loads, from, near, measure, least) {
                    continue;
                }
                *searched += 1;
                let moves = match measure {
                    Measure::Replicas => self.by_count(loads, from, near, least),
                    Measure::Bytes => self.by_bytes(loads, from, near, least),
                };
                if moves.is_some() {
                    return moves;
                }
                if self.left > 0 {
                    self.tried.nodes.insert(key);
                }
            }
        }
        None
    }

    /// Whether there is a node at all that may be given something, in the same site or in others.
    fn has_room(&self, loads: &Loads, from: &Load, near: bool, measure: Measure, least: i64) -> bool {
        let own = from.place.site();
        let may = |to: &Load| match loads.may_spare(from.node, to.node, 0) {
            _ if measure.of(from) - measure.of(to) < least => Offer::Leave,
            true => Offer::Take(to.place),
            false => Offer::Pass,
        };
        // Of no keyspace: all nodes that are fit.
        !loads.offers_in(self.state, (0, measure), |site| (site == own) == near, &[], may).is_empty()
    }

    fn by_count(&mut self, loads: &Loads, from: &Load, near: bool, least: i64) -> Option<Vec<Decision>> {
        let candidates = self.candidates(loads, from, (Measure::Replicas, near), least, (0, |_| i64::MAX));
        let (route, to) = best(from, Measure::Replicas, &candidates)?;
        let reason =
            format!("balance: node {} has {} replicas, node {} has {}", from.node, from.replicas, to.node, to.replicas);
        let kind = OrderKind::BalanceReplicas;
        Some(vec![Decision::to_move(self.state, route, from.node, to.node, kind, reason)])
    }

    /// A move, or an exchange of a large range for a small one where a move alone would make the counts more unequal.
    fn by_bytes(&mut self, loads: &Loads, from: &Load, near: bool, gap_min: i64) -> Option<Vec<Decision>> {
        let worth = (gap_min / 8, |to: &Load| (from.bytes - to.bytes) / 2);
        let mut candidates = self.candidates(loads, from, (Measure::Bytes, near), gap_min, worth);
        let kind = OrderKind::BalanceBytes;
        while let Some((large, to)) = best(from, Measure::Bytes, &candidates) {
            let reason =
                format!("balance: node {} has {} bytes more than node {}", from.node, from.bytes - to.bytes, to.node);
            let order = Decision::to_move(self.state, large, from.node, to.node, kind, reason.clone());
            if from.replicas > to.replicas {
                return Some(vec![order]);
            }
            let is_small = |size: i64| size <= large.data_bytes as i64 / 4;
            if let Some(small) = self.pick(loads, to, from, is_small) {
                let reason = format!("{reason}; in exchange");
                return Some(vec![order, Decision::to_move(self.state, small, to.node, from.node, kind, reason)]);
            }
            candidates.retain(|(_, other)| other.node != to.node);
        }
        None
    }

    /// Ranges of `from` of a size, each with a node that it may go to and that has `least` less: the emptiest of those in
    /// the same site, or in each other one. How large they may be depends on the node.
    fn candidates<'l>(
        &mut self,
        loads: &'l Loads,
        from: &Load,
        (measure, near): (Measure, bool),
        least: i64,
        (size_min, size_max): (i64, impl Fn(&Load) -> i64),
    ) -> Vec<(&'a Route, &'l Load)> {
        let state = self.state;
        let key = (measure, near, from.node);
        let begin = self.tried.part.take_if(|(part, _)| *part == key).map_or(0, |(_, range)| range);
        let own = from.place.site();
        let mut candidates = Vec::new();
        for range in state.table.holding(from.node).into_iter().flat_map(|holding| holding.held.range(begin..)) {
            if candidates.len() >= CANDIDATES_MAX {
                break;
            }
            if self.left == 0 {
                if candidates.is_empty() {
                    self.tried.part = Some((key, *range));
                }
                break;
            }
            self.left -= 1;
            let Some(route) = state.table.get(*range) else { continue };
            let size = route.data_bytes as i64;
            if size < size_min || !may_leave(state, loads, route) {
                continue;
            }
            let others: Vec<Place> = voters(&route.descriptor)
                .filter(|node| *node != from.node)
                .map(|node| state.places.place(node))
                .collect();
            let may = |to: &Load| {
                // Those behind it in its site have more, or are as close at least.
                let enough = measure.of(from) - measure.of(to) >= least && size <= size_max(to);
                if !enough || to.place.beside(&others) > from.place.beside(&others) && !is_on_host(to.place, &others) {
                    return Offer::Leave;
                }
                let takes = may_take(state, loads, route, from, to);
                if takes { Offer::Take(to.place) } else { Offer::Pass }
            };
            let of = (route.descriptor.keyspace_id, measure);
            let offers = loads.offers_in(state, of, |site| (site == own) == near, &others, may);
            candidates.extend(offers.into_iter().map(|to| (route, to)));
        }
        candidates
    }

    /// A range of `from` that may go to `to`: one that `from` does not lead, if there is one; of these the one that
    /// brings the two closest in bytes.
    fn pick(&mut self, loads: &Loads, from: &Load, to: &Load, worth: impl Fn(i64) -> bool) -> Option<&'a Route> {
        let state = self.state;
        let held = &state.table.holding(from.node)?.held;
        let mut candidates = Vec::new();
        for route in held.iter().filter_map(|range| state.table.get(*range)).take(self.left) {
            self.left -= 1;
            if worth(route.data_bytes as i64)
                && may_leave(state, loads, route)
                && may_take(state, loads, route, from, to)
            {
                candidates.push((route, to));
                if candidates.len() == CANDIDATES_MAX {
                    break;
                }
            }
        }
        best(from, Measure::Bytes, &candidates).map(|(route, _)| route)
    }
}

/// Of ranges and the nodes that they may go to: to the emptiest; one that `from` does not lead; then the one that brings
/// the two closest in bytes.
fn best<'a, 'l>(from: &Load, measure: Measure, candidates: &[(&'a Route, &'l Load)]) -> Option<(&'a Route, &'l Load)> {
    let rank = |(route, to): &&(&Route, &Load)| {
        let apart = (from.bytes - to.bytes - 2 * route.data_bytes as i64).abs();
        (measure.of(to), route.leader == from.node, apart, route.descriptor.range_id, to.node)
    };
    candidates.iter().min_by_key(rank).copied()
}

/// Whether a replica of the range may go elsewhere, because it need not.
fn may_leave(state: &State, loads: &Loads, route: &Route) -> bool {
    // The system range moves only where it must: with it goes the service.
    route.descriptor.range_id != flotilla_proto::ids::SYSTEM_RANGE.0
        && is_idle(state, loads, route)
        && !state.rests(route)
        && loads.may_give(route.leader, route.data_bytes)
        && repair::look(state, loads, route) == Look::Fine
}

/// Whether a replica that may leave may go from the one node to the other for the sake of numbers.
fn may_take(state: &State, loads: &Loads, route: &Route, from: &Load, to: &Load) -> bool {
    loads.may_cost(to.node, route.hold_cost()) && suits(state, loads, route, from, to)
}

/// Whether a replica may go from the one node to the other, because it need not.
pub(crate) fn may_relieve(state: &State, loads: &Loads, route: &Route, from: &Load, to: &Load) -> bool {
    suits(state, loads, route, from, to) && may_leave(state, loads, route)
}

fn suits(state: &State, loads: &Loads, route: &Route, from: &Load, to: &Load) -> bool {
    let descriptor = &route.descriptor;
    !holds(descriptor, to.node)
        && state.places.allows(descriptor.keyspace_id, to.node)
        && loads.may_spare(from.node, to.node, route.data_bytes)
        && is_no_closer(state, route, from, to)
        && keeps_preference(state, route, from, to)
}

fn is_on_host(place: Place, others: &[Place]) -> bool {
    others.iter().any(|other| other.is_host_of(place))
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
