//! A node's agent: reports to placement what the node has, and does what it answers. What is said is decided by
//! flotilla-placement's Reporter and what is learned by its Learned, as in production; here is when.

use std::collections::BTreeMap;

use flotilla_engine::store::Input;
use flotilla_placement::{Learned, Reporter, Request, Response};
use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::{Error, RangeId, Result, v1};

use super::ask::Asker;
use super::{CLUSTER, Placed};
use crate::clock::{Nanos, ms};
use crate::cluster::Cluster;
use crate::marks::Mark;
use crate::node::{id_of, index_of};
use crate::schedule::{Event, Life};

/// As in production.
const INTERVAL: Nanos = ms(500);
const INTERVAL_MIN: Nanos = ms(20);
const TIMEOUT: Nanos = ms(3_000);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Agent {
    pub learned: Learned,
    /// Ids for new ranges run short.
    pub wants_ids: bool,
    /// The process is about to end.
    pub leaving: bool,
    reporter: Reporter,
    boot_id: u64,
    /// A round is under way.
    busy: bool,
    began: Nanos,
    interval: Nanos,
    wake: u64,
    /// The last who was taken for the leader did not answer.
    lost: bool,
}

impl Cluster {
    /// A process has begun.
    pub(crate) fn start_agent(&mut self, index: usize) {
        let Some(real) = &mut self.real else { return };
        let boot_id = real.rng.next();
        let at = self.now + real.rng.delay(ms(10));
        if let Some(process) = &mut self.nodes[index].process {
            process.agent.boot_id = boot_id;
            self.wake_agent(index, at);
        }
    }

    fn wake_agent(&mut self, index: usize, at: Nanos) {
        let life = self.nodes[index].life();
        let Some(process) = &mut self.nodes[index].process else { return };
        process.agent.wake += 1;
        self.schedule.at(at.max(self.now), Event::Placed(Placed::Report(life, process.agent.wake)));
    }

    /// Something that is worth a report at once.
    pub(crate) fn stir_agent(&mut self, index: usize) {
        let Some(process) = self.nodes[index].process.as_ref().filter(|_| self.real.is_some()) else { return };
        if !process.agent.busy {
            self.wake_agent(index, process.agent.began + INTERVAL_MIN);
        }
    }

    pub(super) fn agent_wakes(&mut self, life: Life, wake: u64) {
        if !self.lives(life) || self.is_outcast(life.node) {
            return;
        }
        let node = &mut self.nodes[life.node];
        if self.now < node.paused_until.max(node.stalled_until) {
            let at = node.paused_until.max(node.stalled_until) + 1;
            return self.schedule.at(at, Event::Placed(Placed::Report(life, wake)));
        }
        let Some(process) = node.process.as_mut().filter(|process| process.agent.wake == wake && !process.agent.busy)
        else {
            return;
        };
        let own = id_of(life.node);
        let changes = process.store.changes(process.agent.reporter.wants_all());
        let lasting = changes.ranges.iter().filter(|summary| summary.is_lasting);
        let now: BTreeMap<u64, v1::RangeReport> =
            lasting.map(|summary| (summary.range.0, summary.report(own))).collect();
        // What is about to last is reported soon.
        let soon = now.len() < changes.ranges.len();
        process.agent.interval = if soon { INTERVAL_MIN } else { INTERVAL };
        process.agent.began = self.now;
        process.agent.busy = true;
        process.agent.reporter.begin_changes(now, changes.gone.iter().map(|range| range.0).collect());
        self.send_report(life);
    }

    /// The next page of the round; none: the round is over.
    fn send_report(&mut self, life: Life) {
        let index = life.node;
        let (real, node) = (self.real.as_ref(), &mut self.nodes[index]);
        let (Some(real), Some(process)) = (real, node.process.as_mut()) else { return };
        let agent = &mut process.agent;
        let Some(report) = agent.reporter.next_report() else {
            agent.busy = false;
            let at = agent.began + agent.interval;
            return self.wake_agent(index, at);
        };
        let report = v1::ReportRequest {
            cluster_id: CLUSTER,
            node: Some(v1::NodeInfo {
                node_id: id_of(index).0,
                boot_id: agent.boot_id,
                disk_full: node.has_no_room,
                draining: agent.leaving,
                ..Default::default()
            }),
            store_id: real.store_of(index),
            wants_range_ids: agent.wants_ids,
            table_sequence: agent.learned.sequence,
            nodes_version: agent.learned.nodes_version,
            health: Some(process.store.health(node.clock.read(self.now))),
            ..report
        };
        let to = self.believed_leader(index);
        self.ask_placement(Asker::Agent(life), to, Request::Report(Box::new(report)), TIMEOUT);
    }

    /// Whom a node takes for the system range's leader.
    fn believed_leader(&mut self, index: usize) -> usize {
        let Some(process) = &self.nodes[index].process else { return index };
        let own = process.views.get(&SYSTEM_RANGE).and_then(|view| view.leader).map(index_of);
        let told = || {
            let route = process.agent.learned.ranges.get(SYSTEM_RANGE.0)?;
            (route.leader_node_id != 0).then(|| route.leader_node_id as usize - 1)
        };
        if self.reign(index).is_some() {
            return index;
        }
        // Whoever did not answer is not asked again at once.
        let known = own.or_else(told).filter(|known| !process.agent.lost && *known != index);
        known.unwrap_or_else(|| self.some_member(Some(index)))
    }

    pub(super) fn agent_is_answered(&mut self, life: Life, result: Result<Response>) {
        if !self.lives(life) {
            return;
        }
        match result {
            Ok(Response::Report(answer)) => self.take_answer(life, *answer),
            Ok(other) => self.check(Err(format!("placement answers a report with {other:?}"))),
            Err(error) => self.agent_failed(life, &error),
        }
    }

    fn take_answer(&mut self, life: Life, answer: v1::ReportResponse) {
        let index = life.node;
        let Some(process) = &mut self.nodes[index].process else { return };
        let agent = &mut process.agent;
        let again = answer.send_full || (answer.table_incomplete && answer.table_sequence != agent.learned.sequence);
        agent.lost = false;
        agent.reporter.answered(&answer);
        agent.learned.answered(&answer);
        if let Some(real) = &mut self.real {
            real.learn_nodes(index, &answer.nodes);
        }
        agent.wants_ids &= answer.range_ids == 0;
        self.give(index, Input::Keyspaces(answer.keyspaces));
        if answer.range_ids > 0 {
            self.marks.hit(Mark::RangeIdsGiven);
            let (first, count) = (answer.first_range_id, u64::from(answer.range_ids));
            self.give(index, Input::RangeIds { first, count });
        }
        for removed in answer.removed {
            self.marks.hit(Mark::RemovedByPlacement);
            self.give(index, Input::Remove { range: RangeId(removed.range_id), replica_id: removed.replica_id });
        }
        if !answer.births.is_empty() {
            self.marks.hit(Mark::BirthSent);
            self.give(index, Input::Births(answer.births));
        }
        for order in answer.orders {
            self.marks.hit(if order.order_id == 0 { Mark::OrderCancelled } else { Mark::OrderGiven });
            self.give(index, Input::Order(order));
        }
        if let Some(process) = self.nodes[index].process.as_mut().filter(|_| again) {
            // The round's other pages first, then at once again.
            process.agent.began = self.now.saturating_sub(INTERVAL);
        }
        self.send_report(life);
    }

    fn agent_failed(&mut self, life: Life, error: &Error) {
        let index = life.node;
        self.trace.say(self.now, || format!("n{} could not report: {error}", index + 1));
        if matches!(error, Error::ClusterMismatch { .. }) {
            // A former leader that has not heard of the node may say so; in the end nobody may.
            self.marks.hit(Mark::ReportRefused);
        }
        let Some(process) = &mut self.nodes[index].process else { return };
        process.agent.reporter.failed();
        process.agent.busy = false;
        process.agent.lost = true;
        let at = process.agent.began + INTERVAL;
        if process.agent.learned.is_empty() {
            self.ask_another(index);
        }
        self.wake_agent(index, at);
    }

    /// One that nobody has told anything asks another node for its routes.
    fn ask_another(&mut self, index: usize) {
        let other = self.some_member(Some(index));
        if self.network.is_cut(index, other) || self.network.is_cut(other, index) {
            return;
        }
        let Some(routes) = self.nodes[other].process.as_ref().map(crate::node::Process::routes) else { return };
        self.marks.hit(Mark::RoutesFromAnother);
        let keyspaces = routes.keyspaces.clone();
        if let Some(process) = &mut self.nodes[index].process {
            process.agent.learned.told(&routes);
        }
        self.give(index, Input::Keyspaces(keyspaces));
    }
}
