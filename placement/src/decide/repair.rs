//! Repair: brings one range to the number of replicas that its keyspace asks for, on nodes that live.
//!
//! What no order may do: take a replica away before its replacement votes (the range's leader adds first, whatever
//! the order), or leave fewer voters than there were, unless there were more than asked for. Numbers of voters are
//! odd, unless the keyspace asks for an even one: two voters outlive less than one.
//!
//! Where nothing is dead, missing or too much, replicas may still be where they should not be: see [`super::misplaced`].

use flotilla_proto::v1::OrderKind;

use super::loads::Loads;
use super::{Decision, is_free, is_joint, misplaced, voters};
use crate::places::Place;
use crate::state::State;
use crate::table::Route;
use crate::table::compact::Members;

/// What a look at a range came to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Look {
    /// It is as its keyspace asks for.
    Fine,
    /// It is not, and nothing can be done about it now: why.
    Wait(Until, String),
    /// It is not, and this is to be done.
    Act(Box<Decision>),
}

/// What a range waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// Nodes take part in as many moves as they may.
    Room,
    /// Something else must change first.
    Change,
}

/// Looks at a range that has no order.
pub(crate) fn look(state: &State, loads: &Loads, route: &Route) -> Look {
    let descriptor = &route.descriptor;
    let Some(keyspace) = state.ahead.keyspace(descriptor.keyspace_id) else {
        return Look::Fine;
    };
    let replicas = keyspace.replicas as usize;
    let need = Need::of(state, loads, route, replicas);
    if need.is_nothing() {
        let complete = need.voters.len() == replicas && need.dead.is_empty();
        return match misplaced::look(state, loads, route, &need.voters) {
            Look::Fine if !complete => Look::Wait(Until::Change, short(&need, replicas)),
            look => look,
        };
    }
    if let Some(wait) = hindrance(state, loads, route) {
        return wait;
    }
    act(state, loads, route, &need, replicas)
}

/// Whether [`look`] would find the range to be fine, whatever else is under way: it has the voters that its keyspace asks
/// for and nothing else, all on nodes that may have them, as far from each other as can be and where the leader is
/// wanted. Of a range that is not well that is not said.
pub(crate) fn is_well(state: &State, route: &Route) -> bool {
    let descriptor = &route.descriptor;
    let id = descriptor.keyspace_id;
    let Some(keyspace) = state.ahead.keyspace(id) else { return true };
    let voters: Vec<u64> = voters(descriptor).collect();
    voters.len() == keyspace.replicas as usize
        && descriptor.members().count() == voters.len()
        && !voters.iter().any(|node| state.is_dead_for(*node, descriptor) || misplaced::is_unwanted(state, id, *node))
        && state.places.closeness(&voters) <= state.places.closeness_min(voters.len())
        && state.places.best_rank(id, voters.iter().copied()) == 0
        && (!state.places.has_preferences(id) || state.places.lead_rank(id, route.leader) == 0)
}

/// Why the replicas of the range cannot be changed now, if they cannot.
pub(crate) fn hindrance(state: &State, loads: &Loads, route: &Route) -> Option<Look> {
    if is_joint(&route.descriptor) {
        return Some(Look::Wait(Until::Change, "its replicas are changing".into()));
    }
    if !is_free(state, loads, route) {
        return Some(Look::Wait(Until::Change, "no live leader has reported it".into()));
    }
    if !loads.may_send(route.leader, route.data_bytes) {
        return Some(Look::Wait(Until::Room, format!("node {} has as many moves as it may", route.leader)));
    }
    None
}

fn short(need: &Need, replicas: usize) -> String {
    format!("{} of its {replicas} replicas live, and there are no nodes for more", need.voters.len() - need.dead.len())
}

struct Need {
    voters: Vec<u64>,
    dead: Vec<u64>,
    /// Voters to be added.
    adds: usize,
    /// Voters too many, dead or not.
    extra: usize,
    learners: Vec<u64>,
}

impl Need {
    fn of(state: &State, loads: &Loads, route: &Route, replicas: usize) -> Self {
        let descriptor = &route.descriptor;
        let all: Vec<u64> = voters(descriptor).collect();
        let dead: Vec<u64> = all.iter().copied().filter(|node| state.is_dead_for(*node, descriptor)).collect();
        let healthy = all.len() - dead.len();
        // Of several dead ones the first replacement is worth most: with few places, other ranges come before the second.
        let at_once = if dead.len() > 1 && all.len() >= replicas { 1 } else { usize::MAX };
        let want = match dead.is_empty() && all.len() == replicas {
            true => replicas,
            false => target(replicas, healthy + loads.fit_beside(state, descriptor.keyspace_id, &all)),
        };
        let learners = descriptor.members();
        let learners = learners.filter(|replica| !all.contains(&replica.node_id)).map(|replica| replica.node_id);
        Self {
            adds: want.saturating_sub(healthy).min(at_once),
            extra: all.len().saturating_sub(replicas),
            dead,
            learners: learners.collect(),
            voters: all,
        }
    }

    fn is_nothing(&self) -> bool {
        self.adds == 0 && self.extra == 0 && self.learners.is_empty()
    }
}

/// Voters to aim at, with so many nodes to choose from.
pub(crate) fn target(replicas: usize, nodes: usize) -> usize {
    if nodes >= replicas {
        return replicas;
    }
    if nodes % 2 == 1 { nodes } else { nodes.saturating_sub(1) }
}

fn act(state: &State, loads: &Loads, route: &Route, need: &Need, replicas: usize) -> Look {
    let voters = need.voters.len();
    let may_hold = |node: &u64| state.is_fit(*node) && state.places.allows(route.descriptor.keyspace_id, *node);
    let mut add: Vec<u64> = need.learners.iter().copied().filter(may_hold).take(need.adds).collect();
    let mut stay: Vec<u64> = need.voters.iter().copied().filter(|node| !need.dead.contains(node)).collect();
    stay.extend(&add);
    add.extend(loads.targets(state, route, need.adds - add.len(), &stay));
    let fine = |adds: usize| {
        let total = voters + adds;
        let gone = need.dead.len().min(total - voters.min(replicas));
        let after = (total - gone).min(replicas.max(voters));
        after % 2 == 1 || after == replicas || after == voters
    };
    while !add.is_empty() && !fine(add.len()) {
        add.pop();
    }
    let mut remove: Vec<u64> = need.learners.iter().copied().filter(|node| !add.contains(node)).collect();
    let rolled_back = remove.len();
    // As many voters stay as there are, or as are asked for if that is less; and none goes for nothing in exchange.
    let may_go = (voters + add.len()).saturating_sub(voters.min(replicas));
    let dead = need.dead.iter().copied().take(may_go);
    remove.extend(dead);
    let gone = remove.len() - rolled_back;
    let too_many = (voters + add.len()).saturating_sub(gone + replicas);
    remove.extend(surplus(state, loads, route, too_many));
    if add.is_empty() && remove.is_empty() {
        let why = format!("no node may be given one of the {} replicas that it needs now", need.adds);
        return Look::Wait(Until::Room, why);
    }
    let reason = reason(need, &add, &remove, replicas);
    Look::Act(Box::new(Decision {
        range: route.descriptor.range_id,
        add,
        remove,
        kind: OrderKind::Repair,
        reason,
        limit: state.config.order_time_limit,
        ..Decision::default()
    }))
}

/// Healthy voters to do without: those where they may not be first, then those that drain or are full, then those too
/// close to others, then those where its leader is wanted least, then those on the fullest nodes; the leader last.
fn surplus(state: &State, loads: &Loads, route: &Route, count: usize) -> Vec<u64> {
    let descriptor = &route.descriptor;
    let mut candidates: Vec<u64> = voters(descriptor).filter(|node| !state.is_dead_for(*node, descriptor)).collect();
    let mut chosen = Vec::new();
    for _ in 0..count.min(candidates.len()) {
        let rank = |node: &u64| {
            let barred = misplaced::is_unwanted(state, descriptor.keyspace_id, *node);
            let unwanted = state.must_not_lead(*node).is_some();
            let others = candidates.iter().filter(|other| *other != node);
            let others: Vec<Place> = others.map(|other| state.places.place(*other)).collect();
            let close = state.places.place(*node).beside(&others);
            let load = loads.get(*node).map_or((0, 0), |load| (load.replicas, load.bytes));
            let rank = state.places.lead_rank(descriptor.keyspace_id, *node);
            (barred, *node != route.leader, unwanted, !state.is_live(*node), close, rank, load, *node)
        };
        let Some(worst) = candidates.iter().copied().max_by_key(rank) else { break };
        candidates.retain(|node| *node != worst);
        chosen.push(worst);
    }
    chosen
}

fn reason(need: &Need, add: &[u64], remove: &[u64], replicas: usize) -> String {
    let mut parts = vec![format!("it has {} of {replicas} replicas", need.voters.len())];
    if !need.dead.is_empty() {
        parts.push(format!("dead: {}", nodes(&need.dead)));
    }
    if !need.learners.is_empty() {
        parts.push(format!("left from an earlier change: {}", nodes(&need.learners)));
    }
    if !add.is_empty() {
        parts.push(format!("to be added: {}", nodes(add)));
    }
    if !remove.is_empty() {
        parts.push(format!("to be removed: {}", nodes(remove)));
    }
    parts.join("; ")
}

pub(crate) fn nodes(ids: &[u64]) -> String {
    let names: Vec<String> = ids.iter().map(|id| format!("node {id}")).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::target;

    #[test]
    fn targets_are_odd_unless_asked_otherwise() {
        let targets = |replicas| (1..=8).map(|nodes| target(replicas, nodes)).collect::<Vec<_>>();
        assert_eq!(targets(1), [1, 1, 1, 1, 1, 1, 1, 1]);
        assert_eq!(targets(2), [1, 2, 2, 2, 2, 2, 2, 2]);
        assert_eq!(targets(3), [1, 1, 3, 3, 3, 3, 3, 3]);
        assert_eq!(targets(4), [1, 1, 3, 4, 4, 4, 4, 4]);
        assert_eq!(targets(7), [1, 1, 3, 3, 5, 5, 7, 7]);
        assert_eq!(target(3, 0), 0);
    }
}
