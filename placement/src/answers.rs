//! Answers to questions: why a range is where it is, what would be decided now, what needs a person. They are put
//! together from what the service thinks (explain.rs, problems.rs) and from the history, and change nothing.

use flotilla_proto::{Error, RangeId, Result, v1};

use crate::decide::{holds, is_joint, voters};
use crate::explain::Planned;
use crate::history::{kind, order_kind};
use crate::service::{Answer, Response, Service, Token};
use crate::state::State;
use crate::table::compact::Members;
use crate::table::{Frozen, Route};

/// Entries of the history that an explanation has, unless it was asked for more.
const HISTORY_DEFAULT: usize = 10;
const HISTORY_MAX: usize = 1_000;

impl Service {
    pub(crate) fn on_explain(&mut self, token: Token, request: &v1::RangeExplainRequest) -> Result<()> {
        let range = request.range_id;
        let Some(route) = self.state.table.get(range) else {
            if let Some((by, _)) = self.state.table.absorbed(range) {
                let what = format!("range {range} was merged into range {by}");
                return Err(Error::invalid(what, format!("`flotilla range explain {by}` tells of that one")));
            }
            self.check_range(range)?;
            return Err(Error::RangeNotFound { range: RangeId(range) });
        };
        let limit = match request.history as usize {
            0 => HISTORY_DEFAULT,
            limit => limit.min(HISTORY_MAX),
        };
        let answer = self.explained(route, limit);
        self.answer(token, Response::Explain(Box::new(answer)));
        Ok(())
    }

    pub(crate) fn on_plan(&mut self, token: Token) {
        let orders: Vec<v1::PlannedOrder> = self.plan().iter().map(planned).collect();
        let mut notes = Vec::new();
        if !self.state.may_decide() {
            notes.push("not all nodes have reported to this reign of the service yet: nothing is decided".into());
        }
        self.answer(token, Response::Plan(v1::PlacementPlanResponse { orders, notes }));
    }

    pub(crate) fn on_status(&mut self, token: Token) {
        let status = v1::PlacementStatusResponse {
            problems: self.problems(),
            orders: u32::try_from(self.state.acked.orders.len()).unwrap_or(u32::MAX),
            complete: self.complete(),
            node_id: self.state.table.get(flotilla_proto::ids::SYSTEM_RANGE.0).map_or(0, |route| route.leader),
        };
        self.answer(token, Response::Status(status));
    }

    fn answer(&mut self, token: Token, response: Response) {
        self.effects.answers.push(Answer { token, result: Ok(response) });
    }

    fn explained(&self, route: &Route, limit: usize) -> v1::RangeExplainResponse {
        let state = &self.state;
        let range = route.descriptor.range_id;
        let history: Vec<v1::HistoryEntry> = self
            .told()
            .filter(|entry| entry.range_id == range || entry.other_ranges.contains(&range))
            .take(HISTORY_MAX)
            .collect();
        let thought = self.explain(range);
        let planned = self.plan().into_iter().find(|planned| planned.range == range).or(thought.next);
        let order = thought.order.as_ref().and_then(|record| under_way(record, route, &thought.order_waits, &history));
        let (next, not_now) = match (&planned, &order) {
            (_, Some(_)) => (String::new(), "a range has one change at a time: first its order ends".into()),
            (Some(planned), None) => (planned.reason.clone(), String::new()),
            (None, None) => (String::new(), thought.summary.clone()),
        };
        let replica = |replica: v1::ReplicaDescriptor| {
            let why = thought.replicas.iter().find(|placed| placed.node == replica.node_id);
            replica_explained(state, route, &replica, why.map_or("", |placed| placed.why.as_str()), &history)
        };
        let standstill = standstill(state, route);
        let since = standstill.as_ref().map_or(0, |(_, since_s)| {
            self.unix_ms().saturating_sub(u64::from(state.now_s().saturating_sub(*since_s)) * 1_000)
        });
        v1::RangeExplainResponse {
            standstill: standstill.map(|(what, _)| what).unwrap_or_default(),
            standstill_since_unix_ms: since,
            status: Some(route.status()),
            replicas: route.descriptor.members().map(replica).collect(),
            leader_why: leader_why(route, &history),
            order,
            next,
            not_now,
            problems: range_problems(state, route),
            now_unix_ms: self.unix_ms(),
            keyspace: state.acked.keyspaces.get(&route.descriptor.keyspace_id).cloned(),
            history: history.into_iter().take(limit).collect(),
        }
    }
}

fn planned(planned: &Planned) -> v1::PlannedOrder {
    v1::PlannedOrder {
        range_id: planned.range,
        kind: order_kind(planned.kind),
        add_nodes: planned.add.clone(),
        remove_nodes: planned.remove.clone(),
        leader_node_id: planned.leader,
        merge_into: planned.merge_into,
        reason: planned.reason.clone(),
    }
}

fn replica_explained(
    state: &State,
    route: &Route,
    replica: &v1::ReplicaDescriptor,
    why: &str,
    history: &[v1::HistoryEntry],
) -> v1::ReplicaExplained {
    let node = replica.node_id;
    let brought = |entry: &&v1::HistoryEntry| entry.add_nodes.contains(&node) && entry.outcome == kind::DONE;
    let came = history.iter().find(brought);
    let why = match came {
        Some(entry) => format!("{why}; it came by order {} ({})", entry.order_id, entry.what),
        None => why.to_owned(),
    };
    let node_state = match () {
        () if state.is_live(node) => "live",
        () if state.is_dead(node) => "dead",
        () => "silent",
    };
    v1::ReplicaExplained {
        node_id: node,
        replica_id: replica.replica_id,
        role: replica.role,
        why,
        since_unix_ms: came.map_or(0, |entry| entry.outcome_unix_ms),
        node_state: node_state.into(),
        level: node == route.leader || route.is_level(node),
        silent: route.is_silent(node),
        labels: state.acked.nodes.get(&node).map(|record| record.labels.clone()).unwrap_or_default(),
    }
}

fn leader_why(route: &Route, history: &[v1::HistoryEntry]) -> String {
    if route.leader == 0 {
        return "no replica says that it leads".into();
    }
    let given = history.iter().find(|entry| entry.leader_node_id != 0 && entry.outcome == kind::DONE);
    match given.filter(|entry| entry.leader_node_id == route.leader) {
        Some(entry) => format!("placement asked for it by order {} ({})", entry.order_id, entry.what),
        None => "its replicas elected it; nothing was decided about it since".into(),
    }
}

/// The merge that the range is in the middle of, with its step, and since when in seconds.
fn standstill(state: &State, route: &Route) -> Option<(String, u32)> {
    let waits = |frozen: &Frozen| match frozen.waits.as_str() {
        "" => "its leader says nothing of what it waits for".to_owned(),
        waits => waits.to_owned(),
    };
    if let Some(frozen) = route.frozen() {
        let what = format!("it serves nothing, and is to be taken in by its left neighbour, range {}", frozen.target);
        return Some((format!("{what}: {}", waits(frozen)), frozen.since_s));
    }
    let right = state.table.right_of(route)?;
    let frozen = right.frozen().filter(|frozen| frozen.target == route.descriptor.range_id)?;
    let what = format!(
        "its right neighbour, range {}, serves nothing, and is to be taken in by it",
        right.descriptor.range_id
    );
    Some((format!("{what}: {}", waits(frozen)), frozen.since_s))
}

/// What is wrong with a range, as far as the service knows.
fn range_problems(state: &State, route: &Route) -> Vec<String> {
    let mut lines = Vec::new();
    let all = voters(&route.descriptor).count();
    let live = voters(&route.descriptor).filter(|node| state.is_live(*node)).count();
    if live * 2 <= all {
        lines.push(format!(
            "it has lost its majority: {live} of its {all} voters are live, so it serves no writes; start their nodes, or, if \
             those are gone for good, see what `flotilla recover plan` would keep"
        ));
    } else if live < all {
        lines.push(format!("{live} of its {all} voters are live"));
    }
    if route.leader == 0 || route.led.is_none() {
        lines.push("no node says that it leads it".into());
    }
    lines
}

/// The order, with the step that it stands at.
fn under_way(
    record: &v1::OrderRecord,
    route: &Route,
    waits: &str,
    history: &[v1::HistoryEntry],
) -> Option<v1::OrderUnderWay> {
    let order = record.order.as_ref()?;
    let begun = history.iter().find(|entry| entry.kind == kind::ORDER && entry.order_id == order.order_id);
    Some(v1::OrderUnderWay {
        order_id: order.order_id,
        add_nodes: order.add_nodes.clone(),
        remove_nodes: order.remove_nodes.clone(),
        leader_node_id: order.leader_node_id,
        reason: record.reason.clone(),
        step: step(order, route),
        waits: waits.into(),
        since_unix_ms: begun.map_or(0, |entry| entry.unix_ms),
        time_limit_ms: record.time_limit_ms,
    })
}

/// Where an order stands, as the descriptor of now shows: its steps follow from that.
fn step(order: &v1::RangeOrder, route: &Route) -> String {
    let descriptor = &route.descriptor;
    if let Some(left) = &order.merge_into {
        return format!("it is to be frozen, and taken in by range {}", left.range_id);
    }
    if is_joint(descriptor) {
        return "its replicas change: old and new voters decide together until the change ends".into();
    }
    if let Some(node) = order.add_nodes.iter().find(|node| !holds(descriptor, **node)) {
        return format!("a replica on node {node} is to be made");
    }
    if let Some(node) = order.add_nodes.iter().find(|node| !voters(descriptor).any(|voter| voter == **node)) {
        return format!("the replica on node {node} gets the data, and then a vote");
    }
    if let Some(node) = order.remove_nodes.iter().find(|node| holds(descriptor, **node)) {
        return format!("the replica on node {node} is to go");
    }
    match order.leader_node_id {
        0 => "all is done, and is to be reported".into(),
        leader if leader == route.leader => "all is done, and is to be reported".into(),
        leader => format!("node {leader} is to lead"),
    }
}
