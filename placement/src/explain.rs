//! What the service thinks: of one range, and of what it would do next.

use flotilla_proto::v1::{self, OrderKind};

use crate::decide::loads::Loads;
use crate::decide::misplaced::is_unwanted;
use crate::decide::repair::{self, Look};
use crate::decide::{Decision, is_voter};
use crate::rounds::{self, Decided};
use crate::service::Service;
use crate::state::State;
use crate::table::Route;
use crate::table::compact::Members;

/// Something that would be ordered now.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// The range that it is about.
    pub range: u64,
    /// What for.
    pub kind: OrderKind,
    /// Nodes that get a replica.
    pub add: Vec<u64>,
    /// Nodes that lose theirs.
    pub remove: Vec<u64>,
    /// The node that is to lead; 0: whichever.
    pub leader: u64,
    /// The left neighbour that the range is to be merged into; 0: none.
    pub merge_into: u64,
    /// Why, in words.
    pub reason: String,
}

impl From<&Decision> for Planned {
    fn from(decision: &Decision) -> Self {
        Self {
            range: decision.range,
            kind: decision.kind,
            add: decision.add.clone(),
            remove: decision.remove.clone(),
            leader: decision.leader,
            merge_into: decision.merge_into.as_ref().map_or(0, |left| left.range_id),
            reason: decision.reason.clone(),
        }
    }
}

/// Why one replica is where it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// Its node.
    pub node: u64,
    /// In words.
    pub why: String,
}

/// What the service thinks of a range.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Explanation {
    /// In a sentence.
    pub summary: String,
    /// Its replicas, in the descriptor's order.
    pub replicas: Vec<Placed>,
    /// What is under way, and why its next step cannot be taken now (empty: it can).
    pub order: Option<v1::OrderRecord>,
    /// See `order`.
    pub order_waits: String,
    /// What would be ordered now, if nothing else came before it.
    pub next: Option<Planned>,
}

impl std::fmt::Display for Explanation {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.summary)
    }
}

impl Service {
    /// What would be ordered now, in this order. It changes nothing.
    pub fn plan(&self) -> Vec<Planned> {
        if !self.state.may_decide() {
            return Vec::new();
        }
        let Decided { decisions, .. } = rounds::decide(&self.state, &mut self.work.clone());
        decisions.iter().map(Planned::from).collect()
    }

    /// What the service thinks of a range.
    pub fn explain(&self, range: u64) -> Explanation {
        let state = &self.state;
        let Some(route) = state.table.get(range) else {
            let summary = match state.table.absorbed(range) {
                Some((by, _)) => format!("range {range} was merged into range {by}"),
                None => format!("no node has reported range {range} to this reign of the placement service"),
            };
            return Explanation { summary, ..Explanation::default() };
        };
        let replicas = route.descriptor.members();
        let replicas = replicas.map(|replica| Placed { node: replica.node_id, why: why_there(state, route, &replica) });
        let mut explanation = Explanation { replicas: replicas.collect(), ..Explanation::default() };
        if let Some(record) = state.ahead.orders.get(&range) {
            let waits = route.order_waits();
            let waiting = if waits.is_empty() { String::new() } else { format!("; it waits: {waits}") };
            explanation.summary = format!("an order is under way: {}{waiting}", record.reason);
            explanation.order = Some(record.clone());
            explanation.order_waits = waits.into();
            return explanation;
        }
        let paired = state.pairs.iter().find(|(right, pair)| **right == range || pair.left == range);
        explanation.summary = match repair::look(state, &Loads::of(state), route) {
            Look::Fine => match paired {
                Some((right, pair)) => format!("it is to be merged: range {right} into range {}", pair.left),
                None => "it has the replicas that its keyspace asks for".into(),
            },
            Look::Wait(_, why) => why,
            Look::Act(_) if !state.may_decide() => "not all nodes have reported yet: nothing is decided".into(),
            Look::Act(decision) => {
                explanation.next = Some(Planned::from(&*decision));
                format!("to be decided: {}", decision.reason)
            }
        };
        explanation
    }
}

/// Why a replica is on its node, or is not to stay there.
fn why_there(state: &State, route: &Route, replica: &v1::ReplicaDescriptor) -> String {
    let node = replica.node_id;
    let keyspace = route.descriptor.keyspace_id;
    let mut parts = Vec::new();
    if state.is_dead_for(node, &route.descriptor) {
        parts.push("its node is dead: it is to be replaced".into());
    } else if !state.is_live(node) {
        let away = if state.is_in_maintenance(node) { " (in maintenance)" } else { "" };
        parts.push(format!("its node is silent for {} s{away}", state.silence(node).as_secs()));
    }
    if is_unwanted(state, keyspace, node) {
        parts.push(match state.is_decommissioning(node) {
            true => "its node is being decommissioned".into(),
            false => "the keyspace's constraints do not allow it there".to_owned(),
        });
    }
    if !is_voter(replica) {
        parts.push("it does not vote: it is on its way in or out".into());
    }
    let labels = state.ahead.nodes.get(&node).map(|record| record.labels.as_slice()).unwrap_or_default();
    let places: Vec<String> = labels
        .iter()
        .filter(|label| ["zone", "rack", "host"].contains(&label.key.as_str()))
        .map(crate::constraints::text)
        .collect();
    if parts.is_empty() {
        let others: Vec<u64> =
            route.descriptor.members().map(|other| other.node_id).filter(|other| *other != node).collect();
        let with = others.iter().filter(|other| state.places.place(node).is_zone_of(state.places.place(**other)));
        let bound = if state.places.is_bound(keyspace) {
            "the keyspace's constraints allow it"
        } else {
            "any node may hold it"
        };
        parts.push(match (places.is_empty(), with.count()) {
            (true, _) => bound.into(),
            (false, 0) => format!("{bound}, and no other replica is in its zone ({})", places.join(", ")),
            (false, count) => format!("{bound}; {count} other replicas are in its zone ({})", places.join(", ")),
        });
    }
    if node == route.leader {
        let preferred = state.places.has_preferences(keyspace);
        parts.push(match preferred.then(|| state.places.lead_rank(keyspace, node)) {
            Some(0) => "it leads, where the keyspace prefers it".into(),
            Some(_) => "it leads, though the keyspace would prefer another place".into(),
            None => "it leads".to_owned(),
        });
    }
    parts.join("; ")
}
