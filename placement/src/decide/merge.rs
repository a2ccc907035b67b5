//! Merges: which neighbours are to become one range, and how they are brought to it.
//!
//! Placement's part is to choose two neighbours, to bring their replicas to the same nodes, and then to order the right
//! one's leader to merge it into the left one; how the two ranges do that is theirs. By itself it chooses only small
//! ranges with next to nothing to do: together at most half of what a range is split at, so that a merge is
//! never followed by a split; both cold for some minutes; with borders that have stood for an hour, or what the keyspace
//! says, so that splits by hand have their time; and never at a border that the keyspace was cut at when it was created,
//! so that one cut beforehand stays so.
//!
//! The search goes through the table in key order, a bounded number of ranges at a time. A pair is remembered
//! (`State::pairs`) until its merge is ordered or its time is over; balance leaves it alone meanwhile, repair does not.

use flotilla_proto::ids::SYSTEM_KEYSPACE;
use flotilla_proto::v1::{self, OrderKind};

use super::loads::Loads;
use super::repair::{self, Look};
use super::{Decision, holds, is_free, is_joint, voters};
use crate::borders::is_border;
use crate::state::{Pair, State};
use crate::table::Route;
use crate::table::compact::{Key, Members};

/// Ranges that one search looks at.
const LOOKED_AT_MAX: usize = 500;

/// What is to be done about the pairs there are: orders, and pairs whose time is over or that are no neighbours any more.
#[derive(Debug, Default)]
pub(crate) struct Paired {
    pub decisions: Vec<Decision>,
    pub ended: Vec<(u64, String)>,
}

/// The next step of every pair.
pub(crate) fn decide(state: &State, loads: &mut Loads) -> Paired {
    let mut paired = Paired::default();
    for (right, pair) in &state.pairs {
        let step = match neighbours(state, pair.left, *right) {
            Err(why) => Err(why),
            Ok(_) if state.now >= pair.until => Err("its replicas could not be brought together in time".into()),
            Ok((left, right)) => Ok(step(state, loads, left, right)),
        };
        match step {
            Ok(Some(decision)) => {
                loads.add(state, &decision);
                paired.decisions.push(decision);
            }
            Ok(None) => {}
            Err(why) => paired.ended.push((*right, why)),
        }
    }
    paired
}

/// The two ranges, if they are still neighbours.
fn neighbours(state: &State, left: u64, right: u64) -> Result<(&Route, &Route), String> {
    let of = |range: u64| state.table.get(range).ok_or_else(|| format!("range {range} is not there any more"));
    let (one, other) = (of(left)?, of(right)?);
    let next = state.table.right_of(one).map(|route| route.descriptor.range_id);
    if next != Some(right) {
        return Err(format!("range {right} does not begin where range {left} ends any more"));
    }
    if state.ahead.keyspace(one.descriptor.keyspace_id).is_none() {
        return Err("its keyspace was dropped".into());
    }
    Ok((one, other))
}

fn step(state: &State, loads: &Loads, left: &Route, right: &Route) -> Option<Decision> {
    if !is_free(state, loads, left) || !is_free(state, loads, right) {
        return None;
    }
    if is_aligned(left, right) {
        return Some(merge(state, left, right));
    }
    align(state, loads, left, right)
}

/// Whether the replicas of both are voters on the same nodes.
pub(crate) fn is_aligned(left: &Route, right: &Route) -> bool {
    let simple = |route: &Route| {
        let all = route.descriptor.members().count();
        (!is_joint(&route.descriptor) && voters(&route.descriptor).count() == all).then_some(all)
    };
    simple(left).is_some()
        && simple(left) == simple(right)
        && voters(&left.descriptor).all(|node| holds(&right.descriptor, node))
}

fn merge(state: &State, left: &Route, right: &Route) -> Decision {
    let (range, into) = (right.descriptor.range_id, left.descriptor.range_id);
    let bytes = left.data_bytes + right.data_bytes;
    Decision {
        range,
        merge_into: Some(left.descriptor.told()),
        kind: OrderKind::Merge,
        reason: format!("ranges {into} and {range} become one, of about {bytes} bytes"),
        limit: state.config.merge_time_limit,
        ..Decision::default()
    }
}

/// Brings the replicas of the smaller one to where the other's are; where that may not be, the other way round.
fn align(state: &State, loads: &Loads, left: &Route, right: &Route) -> Option<Decision> {
    if repair::look(state, loads, left) != Look::Fine || repair::look(state, loads, right) != Look::Fine {
        return None;
    }
    let smaller_first = if left.data_bytes < right.data_bytes {
        [(left, right), (right, left)]
    } else {
        [(right, left), (left, right)]
    };
    smaller_first.into_iter().find_map(|(moved, stays)| follow(state, loads, moved, stays))
}

fn follow(state: &State, loads: &Loads, moved: &Route, stays: &Route) -> Option<Decision> {
    let beside = |one: &Route, other: &Route| -> Vec<u64> {
        voters(&one.descriptor).filter(|node| !holds(&other.descriptor, *node)).collect()
    };
    let (add, remove) = (beside(stays, moved), beside(moved, stays));
    let may = |node: &u64| loads.may_receive(*node, moved.data_bytes);
    if add.is_empty() || !add.iter().all(may) || !loads.may_send(moved.leader, moved.data_bytes) {
        return None;
    }
    let (range, to) = (moved.descriptor.range_id, stays.descriptor.range_id);
    Some(Decision {
        range,
        add,
        remove,
        kind: OrderKind::Align,
        reason: format!("its replicas go where those of its neighbour, range {to}, are, to be merged with it"),
        limit: state.config.order_time_limit,
        ..Decision::default()
    })
}

/// Neighbours that may be merged by themselves, from this place of the table on; and where the next search begins.
pub(crate) fn search(state: &State, from: (u64, Key)) -> (Vec<(u64, Pair)>, (u64, Key)) {
    let under_way = state.pairs.len() + state.ahead.merge_targets.len();
    let room = state.config.merges_at_once.saturating_sub(under_way);
    let mut found: Vec<(u64, Pair)> = Vec::new();
    let mut last: Option<&Route> = None;
    if room == 0 {
        return (found, from);
    }
    let mut next = (0, Key::default());
    for (at, route) in state.table.starting_at(from.0, from.1).enumerate() {
        let descriptor = &route.descriptor;
        if at == LOOKED_AT_MAX || found.len() == room {
            next = (descriptor.keyspace_id, descriptor.start.clone());
            break;
        }
        let Some(left) = last.replace(route) else { continue };
        if left.descriptor.keyspace_id == descriptor.keyspace_id
            && left.descriptor.end == descriptor.start
            && may_merge(state, left, route, found.len())
        {
            let until = state.now + state.config.order_time_limit;
            found.push((descriptor.range_id, Pair { left: left.descriptor.range_id, until, asked: false }));
            // A range is of one pair at a time.
            last = None;
        }
    }
    (found, next)
}

fn may_merge(state: &State, left: &Route, right: &Route, found: usize) -> bool {
    let keyspace = left.descriptor.keyspace_id;
    let Some(settings) = state.ahead.keyspace(keyspace).filter(|settings| settings.split_bytes > 0) else {
        return false;
    };
    let policy = settings.merge.unwrap_or_default();
    let under_way = found + state.pairs.len() + state.ahead.merge_targets.len();
    let kept = match policy.borders_kept_ms {
        0 => state.config.borders_kept.as_secs(),
        kept => kept / 1_000,
    };
    let now = u64::from(state.now_s());
    let for_long = |since: u32, least: u64| now.saturating_sub(u64::from(since)) >= least;
    let quiet = |route: &Route| {
        route.led.is_some()
            && route.is_cold()
            && for_long(route.since_s, kept)
            && for_long(route.busy_s, state.config.merge_cold_for.as_secs())
            && !is_paired(state, route.descriptor.range_id)
            && !state.ahead.orders.contains_key(&route.descriptor.range_id)
    };
    keyspace != SYSTEM_KEYSPACE.0
        && !policy.off
        && left.data_bytes + right.data_bytes <= settings.split_bytes / 2
        && state.table.count(keyspace) > policy.ranges_min.max(1) as usize + under_way
        && !is_border(policy.ranges_min.max(1), &right.descriptor.start)
        && quiet(left)
        && quiet(right)
}

/// Whether the range is of a pair, or a neighbour is being merged into it.
pub(crate) fn is_paired(state: &State, range: u64) -> bool {
    state.ahead.merge_targets.contains(&range)
        || state.pairs.iter().any(|(right, pair)| *right == range || pair.left == range)
}

/// Whether the table shows that the order's range has been merged as it was to be. The left range's end, as it was
/// known when the order was made, was the start of the right one.
pub(crate) fn is_merged(state: &State, order: &v1::RangeOrder) -> bool {
    let Some(left) = &order.merge_into else { return false };
    let now = state.table.get(left.range_id).map(|route| &route.descriptor);
    let over_it = now.is_some_and(|now| now.end.is_empty() || *now.end > *left.end);
    over_it && state.table.get(order.range_id).is_none()
}
