//! Answers: each waits for the unit of changes that it rests on, and for what else was asked for.

use std::time::Duration;

use flotilla_mutants::Mutant;
use flotilla_proto::{Error, Result, v1};

use crate::service::{Answer, Response, Service, Token};
use crate::state::Records;

/// Replicas to be removed, and ranges to be born, that one answer names at most: the rest is for the next.
const NAMED_MAX: usize = 1_000;

/// One request that has not been answered yet.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub token: Token,
    /// The unit of changes that must be acknowledged first.
    pub unit: u64,
    pub wants: Wants,
}

/// What the answer waits for beside its unit.
#[derive(Debug)]
pub(crate) enum Wants {
    /// Nothing; the answer is known.
    Written(Response),
    /// A node's report, which is answered without its unit once the deadline has passed.
    Report {
        node: u64,
        deadline: Duration,
        /// How far the node has the table; `None`: of this reign's not at all.
        table_sequence: Option<u64>,
        /// Which list of nodes it has; 0: none of this reign's.
        nodes_version: u64,
        /// The rest of its listing is on the way.
        more: bool,
        range_ids: Option<(u64, u32)>,
    },
    /// The nodes that there are then.
    Joined { node: u64 },
    /// All ranges of the keyspace are led.
    Created { keyspace: u64, deadline: Duration },
    /// The two ranges are one, or will not be.
    Merged { left: u64, right: u64, deadline: Duration, ended: Option<Result<()>> },
    /// The order has ended.
    Moved { order_id: u64, deadline: Duration, ended: Option<Result<bool>> },
}

impl Service {
    pub(crate) fn answer_waiters(&mut self) {
        let mut waiting = Vec::new();
        for waiter in std::mem::take(&mut self.waiters) {
            match self.answer_to(&waiter) {
                Some(result) => {
                    if let Ok(Response::Report(answer)) = &result {
                        for birth in &answer.births {
                            self.work.unsent.remove(&birth.range_id);
                        }
                    }
                    self.effects.answers.push(Answer { token: waiter.token, result });
                }
                None => waiting.push(waiter),
            }
        }
        self.waiters = waiting;
    }

    fn answer_to(&self, waiter: &Waiter) -> Option<Result<Response>> {
        let written = self.writer.is_acked(waiter.unit);
        let now = self.state.now;
        match &waiter.wants {
            Wants::Report { node, deadline, table_sequence, nodes_version, more, range_ids } => {
                let range_ids = range_ids.filter(|_| written);
                if !self.writer.is_open() {
                    let reason = "the placement service is not in charge of its records yet".into();
                    return (now >= *deadline).then_some(Err(Error::Unavailable { reason }));
                }
                let due = written || now >= *deadline;
                due.then(|| {
                    let mut answer = self.report_answer(*node, *table_sequence, *more, range_ids);
                    answer.nodes_version = self.state.acked.nodes_version;
                    if answer.nodes_version != *nodes_version {
                        answer.nodes = self.state.acked.nodes.values().cloned().collect();
                    }
                    Ok(Response::Report(Box::new(answer)))
                })
            }
            _ if !written => None,
            Wants::Written(response) => Some(Ok(response.clone())),
            Wants::Joined { node } => Some(Ok(Response::Join(self.join_answer(*node)))),
            Wants::Created { keyspace, deadline } => self.created(*keyspace, now >= *deadline),
            Wants::Merged { left, deadline, ended, .. } => {
                let done = match ended.clone() {
                    Some(Ok(())) => true,
                    Some(Err(error)) => return Some(Err(error)),
                    None if now >= *deadline => false,
                    None => return None,
                };
                let range = self.state.table.get(*left).map(|route| route.descriptor.told());
                Some(Ok(Response::MergeRanges(v1::MergeRangesResponse { done, range })))
            }
            Wants::Moved { deadline, ended, .. } => {
                let done = ended.clone().or_else(|| (now >= *deadline).then_some(Ok(false)))?;
                Some(done.map(|done| Response::MoveReplica(v1::MoveReplicaResponse { done })))
            }
        }
    }

    fn join_answer(&self, node: u64) -> v1::JoinResponse {
        let records = &self.state.acked;
        v1::JoinResponse {
            cluster_id: records.cluster.cluster_id,
            cluster_name: records.cluster.name.clone(),
            node_id: node,
            nodes: records.nodes.values().cloned().collect(),
        }
    }

    fn created(&self, id: u64, late: bool) -> Option<Result<Response>> {
        let Some(keyspace) = self.state.acked.keyspace(id) else {
            return Some(Err(Error::Unavailable { reason: "the keyspace was dropped meanwhile".into() }));
        };
        let of_it = |birth: &v1::BirthRecord| {
            let descriptor = birth.descriptor.as_ref();
            descriptor.is_some_and(|descriptor| descriptor.keyspace_id == id)
        };
        let born = !self.state.acked.births.values().any(of_it);
        let table = &self.state.table;
        if born && table.tiles(id) && table.of_keyspace(id).all(|route| route.leader != 0) {
            let keyspace = Some(keyspace.clone());
            return Some(Ok(Response::CreateKeyspace(v1::CreateKeyspaceResponse { keyspace })));
        }
        let reason = format!("keyspace {:?} was created, and not all of its ranges have a leader yet", keyspace.name);
        late.then_some(Err(Error::Ambiguous { reason }))
    }

    fn report_answer(
        &self,
        node: u64,
        table_sequence: Option<u64>,
        more: bool,
        range_ids: Option<(u64, u32)>,
    ) -> v1::ReportResponse {
        let state = &self.state;
        let delta = state.table.delta(table_sequence, state.config.answer_routes_bytes);
        let complete = state.reports.node(node).is_some_and(|report| report.complete);
        let removed = self.work.strays.range((node, 0)..(node + 1, 0)).filter_map(|(_, range)| {
            let replica_id = self.proven_gone(node, *range)?;
            Some(v1::RemovedReplica { range_id: *range, replica_id })
        });
        v1::ReportResponse {
            reign: self.reign,
            send_full: !complete && !more,
            orders: self.orders_for(node),
            removed: removed.take(NAMED_MAX).collect(),
            first_range_id: range_ids.map_or(0, |(first, _)| first),
            range_ids: range_ids.map_or(0, |(_, count)| count),
            table_sequence: delta.sequence,
            table_full: delta.full,
            routes: delta.routes,
            gone_ranges: delta.gone,
            nodes: Vec::new(),
            nodes_version: 0,
            keyspaces: state.acked.offered(),
            table_incomplete: delta.more || !state.settled,
            births: self.births_for(node),
        }
    }

    /// The orders of the ranges that the node leads; and an end to those that there are no more.
    fn orders_for(&self, node: u64) -> Vec<v1::RangeOrder> {
        let state = &self.state;
        let of = |records: &Records, range: u64| records.orders.get(&range).and_then(|record| record.order.clone());
        let ahead = |range: u64| state.ahead.orders.get(&range).and_then(|record| record.order.as_ref());
        let tasked = state.table.holding(node).into_iter().flat_map(|holding| &holding.tasked);
        let told = tasked.filter_map(|range| of(&state.acked, *range));
        let mut orders: Vec<v1::RangeOrder> = told.filter(|order| ahead(order.range_id) == Some(order)).collect();
        if Mutant::OrdersBeforeWritten.is_on() {
            let led = |range: &&u64| state.table.get(**range).is_some_and(|route| route.leader == node);
            orders = state.ahead.orders.keys().filter(led).filter_map(|range| of(&state.ahead, *range)).collect();
        }
        for (range_id, order_id) in state.table.ordered(node) {
            let known = ahead(range_id).is_some_and(|order| order.order_id == order_id);
            if !known && !orders.iter().any(|order| order.range_id == range_id) {
                orders.push(v1::RangeOrder { range_id, ..Default::default() });
            }
        }
        orders
    }

    fn births_for(&self, node: u64) -> Vec<v1::RangeDescriptor> {
        let state = &self.state;
        let due = |(range, birth): (&u64, &v1::BirthRecord)| {
            let descriptor = birth.descriptor.as_ref()?;
            let here = descriptor.replicas.iter().any(|replica| replica.node_id == node);
            let wanted = state.acked.keyspace(descriptor.keyspace_id).is_some();
            let still = state.ahead.births.get(range) == Some(birth);
            let new = !state.ahead.may_have_begun(*range);
            (here && wanted && still && new).then(|| descriptor.clone())
        };
        state.acked.births.iter().filter_map(due).take(NAMED_MAX).collect()
    }
}
