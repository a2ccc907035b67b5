//! Rounds of decisions, and the lives of orders: made here, ended here when the reports show them fulfilled, or when
//! they can come to nothing any more.
//!
//! Rounds run when something changed, and with every tick; each looks at a bounded number of ranges. What a round
//! decides is staged as order records; orders go out (waiters.rs) once these are acknowledged.

use std::collections::BTreeSet;
use std::time::Duration;

use flotilla_proto::Error;
use flotilla_proto::v1::{self, OrderKind};

use crate::decide::loads::Loads;
use crate::decide::repair::{self, Look, Until};
use crate::decide::{Decision, balance, heat, is_fulfilled, leaders, merge, voters, would_harm};
use crate::history;
use crate::records::{Change, Counter};
use crate::recovery::LEAP;
use crate::service::Service;
use crate::state::State;
use crate::table::compact::Descriptor;
use crate::waiters::Wants;
use crate::work::{Urgency, Work};
use crate::writes::UNIT_CHANGES_MAX;

/// Moves for balance, and transfers, that one round decides at most.
const BALANCE_MAX: usize = 64;
/// How long after a search in vain the next one is made.
const IN_VAIN_PAUSE: Duration = Duration::from_secs(5);
/// How often load is looked at.
const LOAD_PAUSE: Duration = Duration::from_secs(1);

/// What a round has come to.
#[derive(Debug, Default)]
pub(crate) struct Decided {
    pub decisions: Vec<Decision>,
    /// Pairs of neighbours that are not to be merged after all, and why.
    pub unpaired: Vec<(u64, String)>,
}

/// Decides what is to be done now. It changes nothing but where the next round begins to look.
pub(crate) fn decide(state: &State, work: &mut Work) -> Decided {
    work.walk_on(state);
    let mut loads = Loads::of(state);
    let mut decided = Decided::default();
    let crowded = look(state, work, &mut loads, &mut decided.decisions);
    let paired = merge::decide(state, &mut loads);
    decided.decisions.extend(paired.decisions);
    decided.unpaired = paired.ended;
    decided.decisions.extend(leaders::clear(state, &mut loads, BALANCE_MAX));
    // While ranges that lack replicas wait for room, no room is given to what need not be.
    if !crowded && state.now >= work.balance_at {
        let balanced = balance::decide(state, &mut loads, BALANCE_MAX, &mut work.balance_tried);
        if balanced.in_vain {
            work.balance_at = state.now + IN_VAIN_PAUSE;
        }
        decided.decisions.extend(balanced.decisions);
    }
    if state.now >= work.leaders_at {
        let shared = leaders::share(state, &mut loads, BALANCE_MAX, &mut work.leaders_tried);
        if shared.in_vain {
            work.leaders_at = state.now + IN_VAIN_PAUSE;
        }
        decided.decisions.extend(shared.decisions);
    }
    if state.now >= work.load_at {
        work.load_at = state.now + LOAD_PAUSE;
        decided.decisions.extend(heat::decide(state, &mut loads));
    }
    decided
}

/// Looks at the most urgent ranges; whether some of them lack replicas and wait for room.
fn look(state: &State, work: &mut Work, loads: &mut Loads, decisions: &mut Vec<Decision>) -> bool {
    let mut crowded = false;
    for range in work.queue.next(state.config.ranges_per_round) {
        let Some(route) = state.table.get(range).filter(|_| !state.ahead.orders.contains_key(&range)) else {
            work.queue.remove(range);
            continue;
        };
        match repair::look(state, loads, route) {
            // Only with other nodes could it be better; if it is not well by now.
            Look::Fine if !repair::is_well(state, route) => work.queue.content(range),
            Look::Fine => work.queue.remove(range),
            Look::Wait(Until::Change, _) => work.queue.park(range),
            Look::Wait(Until::Room, _) => crowded |= Urgency::of(state, route) < Urgency::Look,
            Look::Act(decision) => {
                loads.add(state, &decision);
                work.queue.remove(range);
                decisions.push(*decision);
            }
        }
    }
    crowded
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
        let decided = decide(&self.state, &mut self.work);
        for (range, why) in decided.unpaired {
            self.unpair(range, &why);
        }
        for part in decided.decisions.chunks(UNIT_CHANGES_MAX - 1) {
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
            let epoch = descriptor.map(Descriptor::told_epoch);
            let record = v1::OrderRecord {
                order: Some(v1::RangeOrder {
                    order_id: id,
                    replicas: keyspace.map_or(0, |keyspace| keyspace.replicas),
                    ..decision.order()
                }),
                epoch,
                reason: decision.reason.clone(),
                time_limit_ms: decision.limit.as_millis() as u64,
                kind: decision.kind.into(),
            };
            if decision.kind == OrderKind::BalanceLoad {
                self.state.heat.moved.insert(decision.range, self.state.now);
            }
            if decision.merge_into.is_some() {
                self.merge_ordered(decision.range);
            }
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
            let Some(record) = self.state.ahead.orders.get(range) else { continue };
            let Some(order) = &record.order else { continue };
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
            let merges = order.merge_into.is_some();
            if record.kind() == OrderKind::Asked && why.is_none() {
                let (now, rest) = (self.state.now, self.state.config.balance_rest);
                self.state.heat.asked.retain(|_, at| now.saturating_sub(*at) < rest);
                self.state.heat.asked.insert(*range, now);
            }
            for waiter in &mut self.waiters {
                if let Wants::Moved { order_id, ended, .. } = &mut waiter.wants
                    && *order_id == id
                {
                    *ended = Some(result.clone());
                }
            }
            if merges {
                self.merge_ended(*range, why.as_deref());
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
        self.work.look_at(&self.state, ended.iter().map(|(range, _)| *range));
    }

    /// Ends the merges that the table shows to have happened.
    pub(crate) fn end_merged(&mut self) {
        if self.state.ahead.merge_targets.is_empty() {
            return;
        }
        let orders = self.state.ahead.orders.iter().filter_map(|(range, record)| Some((range, record.order.as_ref()?)));
        let done = orders.filter(|(_, order)| merge::is_merged(&self.state, order));
        let done: Vec<(u64, Option<String>)> = done.map(|(range, _)| (*range, None)).collect();
        if !done.is_empty() {
            self.end_orders(&done);
        }
    }

    /// What time brings: nodes that die or come back, orders that come to nothing, births that did not happen.
    pub(crate) fn maintain(&mut self) {
        let state = &self.state;
        let dead: BTreeSet<u64> = {
            let members = state.ahead.nodes.keys().copied().filter(|node| state.is_member(*node));
            members.filter(|node| state.is_dead(*node)).collect()
        };
        let changed: Vec<u64> = dead.symmetric_difference(&self.work.dead).copied().collect();
        for node in &changed {
            let held = state.table.holding(*node).map(|holding| holding.held.clone()).unwrap_or_default();
            let now = if dead.contains(node) { "is dead: its replicas are rebuilt" } else { "lives" };
            self.effects.notes.push(format!("node {node} {now}"));
            self.work.look_at(&self.state, held);
        }
        if !changed.is_empty() {
            // A range with a silent replica elsewhere may be less safe than before.
            self.work.unpark();
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
        self.end_merged();
        self.maintain_births();
        self.maintain_nodes();
        self.search_merges();
    }

    /// A range whose node is lost is born on another one, if the node surely was not told of it. Otherwise it may have
    /// been born there, and written to: then its return is waited for, unless the node was removed for good. What it held
    /// is lost then, and another range is born for the span, once no node can have it that goes on: a recovery lets a
    /// range begin again elsewhere, and two that hold the same span never become one. Births of dropped keyspaces do not happen.
    ///
    /// A range that may have begun before the system range went back is searched for on every node of that time. If it is
    /// nowhere, another one is born: what was lost may have left traces of the first, tombstones and routes.
    fn maintain_births(&mut self) {
        let state = &self.state;
        let mut loads = None;
        let all_heard = state.witnesses().next().is_none();
        let mut changes = Vec::new();
        let mut next = self.next_id(Counter::Range);
        let mut unsent = Vec::new();
        for (range, record) in &state.ahead.births {
            let Some(mut descriptor) = record.descriptor.clone() else { continue };
            if changes.len() + 3 > UNIT_CHANGES_MAX {
                break;
            }
            if state.ahead.keyspace(descriptor.keyspace_id).is_none() {
                changes.push(Change::NoBirth(*range));
                continue;
            }
            let node = descriptor.replicas.first().map_or(0, |replica| replica.node_id);
            let untold = self.work.unsent.contains(range) && state.is_lost(node);
            let may_have_begun = state.ahead.may_have_begun(*range);
            let gone = !state.is_member(node) && state.all_is_told();
            if !(if may_have_begun { all_heard } else { untold || gone }) {
                continue;
            }
            if (may_have_begun || !untold) && state.table.covers_some_of(&descriptor) {
                changes.push(Change::NoBirth(*range));
                continue;
            }
            let loads = loads.get_or_insert_with(|| Loads::of(state));
            let here = Some(node).filter(|node| may_have_begun && state.is_live(*node));
            let Some(to) = here.or_else(|| loads.cradle(state, &descriptor)) else { continue };
            descriptor.replicas.iter_mut().for_each(|replica| replica.node_id = to);
            if !untold {
                changes.push(Change::NoBirth(*range));
                descriptor.range_id = next;
                // Clients may know routes of what was lost, with later epochs than that of a range that begins: what leaps
                // takes their place. Twice, for these have counted on from where this one begins.
                if let Some(epoch) = &mut descriptor.epoch {
                    epoch.conf_ver += 2 * LEAP;
                }
                next += 1;
                unsent.push(descriptor.range_id);
            }
            changes.push(Change::Birth(descriptor.range_id, v1::BirthRecord { descriptor: Some(descriptor) }));
        }
        if !unsent.is_empty() {
            changes.push(Change::Next(Counter::Range, next));
        }
        self.work.unsent.extend(unsent);
        if !changes.is_empty() {
            self.stage(changes);
        }
    }

    /// The keyspace was dropped: its ranges leave the table, and their replicas go as they are reported.
    pub(crate) fn forget_keyspace(&mut self, keyspace: u64) {
        let routed: Vec<u64> = self.state.table.of_keyspace(keyspace).map(|route| route.descriptor.range_id).collect();
        for range in routed {
            self.state.table.remove(range);
            self.work.queue.remove(range);
        }
        for range in self.state.reports.of_keyspace(keyspace) {
            self.find_strays(range);
        }
    }
}

/// Why an order can come to nothing any more, if so.
fn moot(state: &State, record: &v1::OrderRecord, since: Duration) -> Option<String> {
    let order = record.order.as_ref()?;
    if merge::is_merged(state, order) {
        return None;
    }
    let Some(route) = state.table.get(order.range_id) else {
        return state.settled.then(|| "its range is no part of the cluster any more".into());
    };
    if state.ahead.keyspace(route.descriptor.keyspace_id).is_none() {
        return Some("its keyspace was dropped".into());
    }
    if would_harm(order, &route.descriptor) {
        return Some("its range has changed: it would lose replicas that it needs".into());
    }
    if let Some(left) = &order.merge_into {
        let dead = |node: &u64| state.is_dead(*node);
        if let Some(node) = voters(left).chain(voters(&route.descriptor)).find(dead) {
            return Some(format!("node {node}, which holds a replica, is dead: that is mended first"));
        }
    }
    let targets = order.add_nodes.iter().chain(Some(&order.leader_node_id)).filter(|node| **node != 0);
    if let Some(node) = targets.copied().find(|node| state.is_lost(*node)) {
        return Some(format!("nothing is heard of node {node}"));
    }
    let target = order.leader_node_id;
    if target != 0 && state.is_leaving(target) {
        return Some(format!("node {target} is stopping"));
    }
    if let Some((_, why)) = state.must_not_lead(target).filter(|_| target != 0) {
        return Some(why);
    }
    let limit = Duration::from_millis(record.time_limit_ms);
    (state.now.saturating_sub(since) > limit).then(|| format!("it took longer than {limit:?}"))
}
