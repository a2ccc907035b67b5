//! Rounds of decisions, and the lives of orders: made here, ended here when the reports show them fulfilled, or when
//! they can come to nothing any more.
//!
//! Rounds run when something changed, and with every tick; each looks at a bounded number of ranges. What a round
//! decides is staged as order records; orders go out (waiters.rs) once these are acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flotilla_proto::{Error, v1};

use crate::decide::loads::Loads;
use crate::decide::repair::{self, Look};
use crate::decide::{Decision, balance, is_fulfilled, leaders, would_harm};
use crate::history;
use crate::records::{Change, Counter};
use crate::service::Service;
use crate::state::{Records, State};
use crate::waiters::Wants;
use crate::writes::UNIT_CHANGES_MAX;

/// Moves for balance, and transfers, that one round decides at most.
const BALANCE_MAX: usize = 64;

/// What there is to do.
#[derive(Debug)]
pub(crate) struct Work {
    /// Ranges that may need repair: changed since they were looked at, or found in need of what could not be had.
    dirty: BTreeSet<u64>,
    /// Where the next round begins to look.
    cursor: u64,
    /// Something changed since the last round.
    stirred: bool,
    last_round: Duration,
    /// Since when each order has been given out.
    since: BTreeMap<u64, Duration>,
    /// Nodes that were dead when last looked at.
    dead: BTreeSet<u64>,
    /// Ranges to be born that this service has decided on, and not told their nodes of.
    pub unsent: BTreeSet<u64>,
    /// Replicas that may be proven to be gone: node and range.
    pub strays: BTreeSet<(u64, u64)>,
    /// For the history, not written yet.
    pub seen: Vec<v1::HistoryEntry>,
}

impl Work {
    pub fn new(records: &Records, now: Duration) -> Self {
        Self {
            dirty: BTreeSet::new(),
            cursor: 0,
            stirred: false,
            last_round: Duration::ZERO,
            since: records.orders.keys().map(|range| (*range, now)).collect(),
            dead: BTreeSet::new(),
            unsent: BTreeSet::new(),
            strays: BTreeSet::new(),
            seen: Vec::new(),
        }
    }

    pub fn stir(&mut self) {
        self.stirred = true;
    }

    pub fn look_at(&mut self, ranges: impl IntoIterator<Item = u64>) {
        self.dirty.extend(ranges);
        self.stirred = true;
    }

    pub fn forget(&mut self, range: u64) {
        self.dirty.remove(&range);
    }

    pub fn order_began(&mut self, range: u64, now: Duration) {
        self.since.insert(range, now);
    }

    pub fn order_ended(&mut self, range: u64) {
        self.since.remove(&range);
        self.stirred = true;
    }

    /// The next ranges to look at, at most `max`: round and round, so that none is passed over for long.
    fn next_dirty(&mut self, max: usize) -> Vec<u64> {
        let from = self.dirty.range(self.cursor..).copied();
        let wrapped = self.dirty.range(..self.cursor).copied();
        let next: Vec<u64> = from.chain(wrapped).take(max).collect();
        self.cursor = next.last().map_or(0, |last| last + 1);
        next
    }
}

impl Service {
    /// Decides what is to be done now, if anything may have changed.
    pub(crate) fn round(&mut self) {
        // The larger the cluster, the more a round costs, and the less it matters that it comes at once.
        let pause = Duration::from_millis(self.state.ahead.nodes.len() as u64 / 20);
        let early = self.state.now.saturating_sub(self.work.last_round) < pause;
        if !self.work.stirred || early || !self.state.may_decide() {
            return;
        }
        self.work.stirred = false;
        self.work.last_round = self.state.now;
        let mut loads = Loads::of(&self.state);
        let mut decisions = Vec::new();
        for range in self.work.next_dirty(self.state.config.ranges_per_round) {
            let Some(route) = self.state.table.get(range) else {
                self.work.dirty.remove(&range);
                continue;
            };
            if self.state.ahead.orders.contains_key(&range) {
                self.work.dirty.remove(&range);
                continue;
            }
            match repair::look(&self.state, &loads, route) {
                Look::Fine => drop(self.work.dirty.remove(&range)),
                Look::Wait(_) => {}
                Look::Act(decision) => {
                    loads.add(&self.state, &decision);
                    self.work.dirty.remove(&range);
                    decisions.push(decision);
                }
            }
        }
        decisions.extend(balance::decide(&self.state, &mut loads, BALANCE_MAX));
        decisions.extend(leaders::decide(&self.state, &mut loads, BALANCE_MAX));
        for part in decisions.chunks(UNIT_CHANGES_MAX - 1) {
            self.stage_orders(part);
        }
    }

    /// Writes orders down; the number of their unit, and the id of the first.
    pub(crate) fn stage_orders(&mut self, decisions: &[Decision]) -> (u64, u64) {
        let first = self.next_id(Counter::Order);
        let mut changes = vec![Change::Next(Counter::Order, first + decisions.len() as u64)];
        let told = decisions.iter().zip(first..).map(|(decision, id)| history::of_order(id, decision)).collect();
        for (decision, id) in decisions.iter().zip(first..) {
            let descriptor = self.state.table.get(decision.range).map(|route| &route.descriptor);
            let keyspace = descriptor.and_then(|descriptor| self.state.ahead.keyspace(descriptor.keyspace_id));
            let epoch = descriptor.and_then(|descriptor| descriptor.epoch);
            let record = v1::OrderRecord {
                order: Some(v1::RangeOrder {
                    order_id: id,
                    range_id: decision.range,
                    add_nodes: decision.add.clone(),
                    remove_nodes: decision.remove.clone(),
                    leader_node_id: decision.leader,
                    replicas: keyspace.map_or(0, |keyspace| keyspace.replicas),
                    ..Default::default()
                }),
                epoch,
                reason: decision.reason.clone(),
                time_limit_ms: decision.limit.as_millis() as u64,
                ..Default::default()
            };
            self.effects.notes.push(format!("order {id} on range {}: {}", decision.range, decision.reason));
            changes.push(Change::Order(decision.range, record));
        }
        (self.stage_told(changes, told), first)
    }

    pub(crate) fn next_id(&self, counter: Counter) -> u64 {
        // A service does not begin without its counters.
        self.state.ahead.next.get(&counter).copied().unwrap_or(u64::MAX >> 1)
    }

    /// Ends the orders on these ranges that their routes show to be fulfilled.
    pub(crate) fn end_fulfilled(&mut self, ranges: &[u64]) {
        let done = |range: &&u64| {
            let order = self.state.ahead.orders.get(range).and_then(|record| record.order.as_ref());
            let route = self.state.table.get(**range);
            order.zip(route).is_some_and(|(order, route)| is_fulfilled(order, route))
        };
        let done: Vec<(u64, Option<String>)> = ranges.iter().filter(done).map(|range| (*range, None)).collect();
        self.end_orders(&done);
    }

    /// Ends orders: fulfilled, or given up for a reason.
    fn end_orders(&mut self, ended: &[(u64, Option<String>)]) {
        for (range, why) in ended {
            let Some(order) = self.state.ahead.orders.get(range).and_then(|record| record.order.as_ref()) else {
                continue;
            };
            let id = order.order_id;
            if why.is_none() {
                self.state.table.order_done(*range, id);
            }
            let result = match why {
                None => Ok(true),
                // Not of the kind that is tried again by itself: what was asked for has come to nothing.
                Some(why) => Err(Error::invalid(
                    format!("order {id} was given up: {why}"),
                    format!(
                        "`flotilla range show {range}` shows where its replicas are; ask again if it is still wanted"
                    ),
                )),
            };
            for waiter in &mut self.waiters {
                if let Wants::Moved { order_id, ended, .. } = &mut waiter.wants
                    && *order_id == id
                {
                    *ended = Some(result.clone());
                }
            }
            let end = why.as_ref().map_or("is fulfilled".into(), |why| format!("is given up: {why}"));
            self.effects.notes.push(format!("order {id} on range {range} {end}"));
        }
        for part in ended.chunks(UNIT_CHANGES_MAX) {
            let end = |(range, why): &(u64, Option<String>)| {
                let order = self.state.ahead.orders.get(range)?.order.as_ref()?;
                Some(history::of_end(*range, order.order_id, why.as_deref()))
            };
            let told = part.iter().filter_map(end).collect();
            self.stage_told(part.iter().map(|(range, _)| Change::NoOrder(*range)).collect(), told);
        }
        self.work.look_at(ended.iter().map(|(range, _)| *range));
    }

    /// What time brings: nodes that die or come back, orders that come to nothing, births that did not happen.
    pub(crate) fn maintain(&mut self) {
        let state = &self.state;
        let dead: BTreeSet<u64> = state.ahead.nodes.keys().copied().filter(|node| state.is_dead(*node)).collect();
        let changed: Vec<u64> = dead.symmetric_difference(&self.work.dead).copied().collect();
        for node in &changed {
            let held = state.table.holding(*node).map(|holding| holding.held.clone()).unwrap_or_default();
            let now = if dead.contains(node) { "is dead: its replicas are rebuilt" } else { "lives" };
            self.effects.notes.push(format!("node {node} {now}"));
            self.work.look_at(held);
        }
        for node in changed {
            self.saw_node(node, dead.contains(&node));
        }
        self.work.dead = dead;
        let given_up: Vec<(u64, Option<String>)> = self
            .state
            .acked
            .orders
            .iter()
            .filter(|(range, record)| self.state.ahead.orders.get(range) == Some(record))
            .filter_map(|(range, record)| {
                let since = self.work.since.get(range).copied().unwrap_or(self.state.now);
                moot(&self.state, record, since).map(|why| (*range, Some(why)))
            })
            .collect();
        self.end_orders(&given_up);
        self.maintain_births();
    }

    /// A range whose node is lost is born on another one, if the node surely was not told of it. Otherwise it may have
    /// been born there, and written to: then its return is waited for. Births of dropped keyspaces do not happen.
    fn maintain_births(&mut self) {
        let state = &self.state;
        let loads = Loads::of(state);
        let change = |(range, record): (&u64, &v1::BirthRecord)| {
            let mut descriptor = record.descriptor.clone()?;
            if state.ahead.keyspace(descriptor.keyspace_id).is_none() {
                return Some(Change::NoBirth(*range));
            }
            let node = descriptor.replicas.first().map_or(0, |replica| replica.node_id);
            if !self.work.unsent.contains(range) || !state.is_lost(node) {
                return None;
            }
            let to = loads.emptiest(0, 1, &descriptor).first().copied()?;
            descriptor.replicas.iter_mut().for_each(|replica| replica.node_id = to);
            Some(Change::Birth(*range, v1::BirthRecord { descriptor: Some(descriptor) }))
        };
        let changes: Vec<Change> = state.ahead.births.iter().filter_map(change).take(UNIT_CHANGES_MAX).collect();
        if !changes.is_empty() {
            self.stage(changes);
        }
    }

    /// The keyspace was dropped: its ranges leave the table, and their replicas go as they are reported.
    pub(crate) fn forget_keyspace(&mut self, keyspace: u64) {
        let routed: Vec<u64> = self.state.table.of_keyspace(keyspace).map(|route| route.descriptor.range_id).collect();
        for range in routed {
            self.state.table.remove(range);
            self.work.forget(range);
        }
        for range in self.state.reports.of_keyspace(keyspace) {
            self.find_strays(range);
        }
    }
}

/// Why an order can come to nothing any more, if so.
fn moot(state: &State, record: &v1::OrderRecord, since: Duration) -> Option<String> {
    let order = record.order.as_ref()?;
    let Some(route) = state.table.get(order.range_id) else {
        return state.settled.then(|| "its range is no part of the cluster any more".into());
    };
    if state.ahead.keyspace(route.descriptor.keyspace_id).is_none() {
        return Some("its keyspace was dropped".into());
    }
    if would_harm(order, &route.descriptor) {
        return Some("its range has changed: it would lose replicas that it needs".into());
    }
    let targets = order.add_nodes.iter().chain(Some(&order.leader_node_id)).filter(|node| **node != 0);
    if let Some(node) = targets.copied().find(|node| state.is_lost(*node)) {
        return Some(format!("nothing is heard of node {node}"));
    }
    if order.leader_node_id != 0 && state.is_leaving(order.leader_node_id) {
        return Some(format!("node {} is stopping", order.leader_node_id));
    }
    let limit = Duration::from_millis(record.time_limit_ms);
    (state.now.saturating_sub(since) > limit).then(|| format!("it took longer than {limit:?}"))
}
