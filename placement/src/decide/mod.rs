//! Decisions: functions of the state, to orders with their reasons. They change nothing and remember nothing.
//!
//! Of one range there is one order at a time. What is decided earlier in a round counts for what is decided later,
//! through [`loads::Loads`].

pub(crate) mod balance;
pub(crate) mod heat;
pub(crate) mod leaders;
pub(crate) mod loads;
pub(crate) mod merge;
pub(crate) mod misplaced;
pub(crate) mod ranking;
pub(crate) mod repair;
pub(crate) mod sites;

use std::time::Duration;

use flotilla_proto::v1::{self, OrderKind};

use self::loads::Loads;
use crate::state::State;
use crate::table::Route;
use crate::table::compact::Members;

/// An order that has no id yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Decision {
    pub range: u64,
    pub add: Vec<u64>,
    pub remove: Vec<u64>,
    /// 0: whichever.
    pub leader: u64,
    /// The left neighbour that the range is to be merged into; nothing else is asked for then.
    pub merge_into: Option<v1::RangeDescriptor>,
    pub kind: OrderKind,
    pub reason: String,
    pub limit: Duration,
}

impl Decision {
    /// One replica comes for another.
    pub fn to_move(state: &State, route: &Route, from: u64, to: u64, kind: OrderKind, reason: String) -> Self {
        Self {
            range: route.descriptor.range_id,
            add: vec![to],
            remove: vec![from],
            kind,
            reason,
            limit: state.config.order_time_limit,
            ..Self::default()
        }
    }

    /// Without an id.
    pub fn order(&self) -> v1::RangeOrder {
        v1::RangeOrder {
            order_id: 0,
            range_id: self.range,
            add_nodes: self.add.clone(),
            remove_nodes: self.remove.clone(),
            leader_node_id: self.leader,
            replicas: 0,
            merge_into: self.merge_into.clone(),
        }
    }
}

/// A transfer of leadership takes an election's time, or does not happen.
pub(crate) const TRANSFER_LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn is_voter(replica: &v1::ReplicaDescriptor) -> bool {
    matches!(replica.role(), v1::ReplicaRole::Voter | v1::ReplicaRole::VoterIncoming)
}

pub(crate) fn is_joint(descriptor: &impl Members) -> bool {
    let joint = |replica: v1::ReplicaDescriptor| {
        matches!(replica.role(), v1::ReplicaRole::VoterIncoming | v1::ReplicaRole::VoterOutgoing)
    };
    descriptor.members().any(joint)
}

pub(crate) fn holds(descriptor: &impl Members, node: u64) -> bool {
    descriptor.members().any(|replica| replica.node_id == node)
}

pub(crate) fn voters<'a>(descriptor: &'a impl Members) -> impl Iterator<Item = u64> + 'a {
    descriptor.members().filter(is_voter).map(|replica| replica.node_id)
}

/// Whether the range's leader is there to carry out an order, and has none.
pub(crate) fn is_free(state: &State, loads: &Loads, route: &Route) -> bool {
    let range = route.descriptor.range_id;
    let target = state.ahead.merge_targets.contains(&range);
    let in_order = target || state.ahead.orders.contains_key(&range) || loads.is_taken(range);
    // A leader that is still at an order that was given up may change the range yet: it is told to stop, and says so.
    let idle = route.led.as_ref().is_some_and(|led| !led.is_busy());
    idle && state.is_live(route.leader) && !in_order && !is_joint(&route.descriptor)
}

/// Whether the range may be moved for some balance: it is free, and is not being brought together with a neighbour.
pub(crate) fn is_idle(state: &State, loads: &Loads, route: &Route) -> bool {
    let range = route.descriptor.range_id;
    let paired = || state.pairs.iter().any(|(right, pair)| *right == range || pair.left == range);
    is_free(state, loads, route) && !paired()
}

/// Whether carrying the order out as things are now would leave fewer voters than there are, and than are aimed at.
/// So it may be if the range changed after the order was made; its leader refuses that step, too.
pub(crate) fn would_harm(order: &v1::RangeOrder, descriptor: &impl Members) -> bool {
    let voters: Vec<u64> = voters(descriptor).collect();
    let added = order.add_nodes.iter().filter(|node| !voters.contains(node)).count();
    let removed = order.remove_nodes.iter().filter(|node| voters.contains(node)).count();
    voters.len() + added < voters.len().min(order.replicas as usize) + removed
}

/// Whether the descriptor is what the order was to bring about. Merges are none of its business.
pub(crate) fn is_fulfilled(order: &v1::RangeOrder, route: &Route) -> bool {
    let descriptor = &route.descriptor;
    let added = order.add_nodes.iter().all(|node| voters(descriptor).any(|voter| voter == *node));
    let removed = !order.remove_nodes.iter().any(|node| holds(descriptor, *node));
    let led = order.leader_node_id == 0 || order.leader_node_id == route.leader;
    order.merge_into.is_none() && added && removed && led && !is_joint(descriptor)
}
