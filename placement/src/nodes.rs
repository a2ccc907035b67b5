//! Nodes that leave, for good or for a while: decommissioning and maintenance; and what time does to nodes.
//!
//! **Decommissioning**: the node leads nothing new and holds nothing new, its replicas are moved one by one, and when it
//! holds none it is removed for good: its id never comes back. It is refused where the rest could not hold what there is.
//! Until the end it can be undone. That a node holds nothing it says itself; of one that is dead, only that it stands in no
//! range's descriptor is known, and that counts where a range is known for every key: placement that has just begun
//! may have been told of a range by nobody yet, because all that have it are dead.
//!
//! **Maintenance**: the node is expected to be away until a time. Its leaders leave, and its silence does not make it
//! dead before that time is over. The time is kept as what is left of it, and rewritten every minute: the service knows
//! no clock that another one would share.

use std::time::Duration;

use flotilla_proto::{Error, Result, v1};

use crate::history::{self, kind};
use crate::records::Change;
use crate::service::{Response, Service, Token};
use crate::state::State;
use crate::waiters::Wants;

/// How often what is left of a maintenance is rewritten.
const REWRITE_AFTER: Duration = Duration::from_secs(60);
/// Longest maintenance.
const MAINTENANCE_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);

impl Service {
    /// The record of a node that is part of the cluster; the refusal says which nodes are.
    pub(crate) fn member(&self, node: u64) -> Result<v1::NodeRecord> {
        let nodes = &self.state.ahead.nodes;
        match nodes.get(&node) {
            Some(record) if record.removed => {
                let hint = "it can join again with a wiped data directory, as a new node";
                Err(Error::invalid(format!("node {node} was removed for good"), hint))
            }
            Some(record) => Ok(record.clone()),
            None => {
                let known: Vec<String> =
                    nodes.values().filter(|record| !record.removed).map(|record| record.node_id.to_string()).collect();
                Err(Error::invalid(
                    format!("there is no node {node}"),
                    format!("the cluster has nodes {}", known.join(", ")),
                ))
            }
        }
    }

    pub(crate) fn on_decommission_node(&mut self, token: Token, request: &v1::DecommissionNodeRequest) -> Result<()> {
        let node = request.node_id;
        let known = self.state.ahead.nodes.get(&node);
        if known.is_some_and(|record| record.removed && record.decommissioning) && !request.undo {
            // Asked for once more, after its end.
            let done = v1::DecommissionNodeResponse { removed: true, ..Default::default() };
            let unit = self.writer.last();
            self.wait(token, unit, Wants::Written(Response::DecommissionNode(done)));
            return Ok(());
        }
        let mut record = self.member(node)?;
        let held = self.state.table.holding(node).map_or(0, |holding| holding.held.len() as u32);
        if record.decommissioning == request.undo {
            if !request.undo {
                self.check_reported("what the node holds is not known yet")?;
                if self.state.is_dead(node) && held == 0 && !self.state.knows_every_range() {
                    let reason = format!(
                        "node {node} is dead, and there are keys of whose range nobody who lives has a replica: it may hold the only ones; start it, or the others that are dead, or see `flotilla recover plan`"
                    );
                    return Err(Error::Unavailable { reason });
                }
                check_rest(&self.state, node)?;
            }
            record.decommissioning = !request.undo;
            record.decommission_from = if request.undo { 0 } else { held };
            let what = if request.undo { "is not decommissioned after all" } else { "is being decommissioned" };
            self.effects.notes.push(format!("node {node} {what}"));
            let told = history::of_nodes(kind::DECOMMISSIONING, &[node], format!("asked for: it {what}"));
            self.stage_told(vec![Change::Node(record.clone())], vec![told]);
            self.work.sweep();
            let held = self.state.table.holding(node).map(|holding| holding.held.clone()).unwrap_or_default();
            self.work.look_at(&self.state, held);
            self.round();
        }
        let response = v1::DecommissionNodeResponse {
            replicas: held,
            replicas_at_first: record.decommission_from,
            removed: false,
        };
        let unit = self.writer.last();
        self.wait(token, unit, Wants::Written(Response::DecommissionNode(response)));
        Ok(())
    }

    pub(crate) fn on_maintain_node(&mut self, token: Token, request: &v1::MaintainNodeRequest) -> Result<()> {
        let node = request.node_id;
        let mut record = self.member(node)?;
        let duration = Duration::from_millis(request.duration_ms);
        if duration > MAINTENANCE_MAX {
            let hint = "a week at most; a node that is away for longer is decommissioned, or given more time later";
            return Err(Error::invalid(format!("a maintenance of {} s", duration.as_secs()), hint));
        }
        let others = || self.state.ahead.nodes.keys().any(|other| *other != node && self.state.is_fit(*other));
        if duration > Duration::ZERO && !others() {
            self.check_reported("no other node is known to live yet")?;
            let what = format!("no other node could take over what node {node} leads");
            return Err(Error::invalid(what, "end the maintenance or draining of another node first, or add a node"));
        }
        record.maintenance_left_ms = request.duration_ms;
        self.set_maintenance(node, duration);
        let holding = self.state.table.holding(node);
        let risky =
            holding.map_or(0, |holding| holding.held.iter().filter(|range| at_risk(&self.state, **range)).count());
        let response = v1::MaintainNodeResponse {
            leaders: holding.map_or(0, |holding| holding.led.len() as u32),
            ranges_at_risk: risky as u32,
        };
        let what = if duration > Duration::ZERO {
            format!("is in maintenance for {} s", duration.as_secs())
        } else {
            "is not in maintenance any more".into()
        };
        self.effects.notes.push(format!("node {node} {what}"));
        let told = history::of_nodes(kind::MAINTENANCE, &[node], format!("asked for: it {what}"));
        let unit = self.stage_told(vec![Change::Node(record)], vec![told]);
        self.work.sweep();
        self.round();
        self.wait(token, unit, Wants::Written(Response::MaintainNode(response)));
        Ok(())
    }

    fn set_maintenance(&mut self, node: u64, left: Duration) {
        if left > Duration::ZERO {
            self.state.maintenance.insert(node, self.state.now + left);
        } else {
            self.state.maintenance.remove(&node);
        }
    }

    /// What time brings to nodes.
    pub(crate) fn maintain_nodes(&mut self) {
        self.judge_speeds();
        self.smooth_loads();
        self.keep_maintenance();
        self.end_decommissions();
        self.work.note_places(&self.state);
        let state = &self.state;
        let fit = state.ahead.nodes.keys().copied().filter(|node| state.is_fit(*node)).collect();
        if self.work.fit != fit {
            let gained = fit.difference(&self.work.fit).next().is_some();
            self.work.fit = fit;
            if gained {
                self.work.gained();
            }
        }
    }

    fn judge_speeds(&mut self) {
        let state = &mut self.state;
        let nodes: Vec<u64> = state.ahead.nodes.keys().copied().filter(|node| state.is_live(*node)).collect();
        let health = |node: u64| Some((node, state.reports.node(node)?.health.clone()?));
        let live = nodes.into_iter().filter_map(health).collect();
        for (node, what) in state.speeds.judge(state.now, &state.config, &live) {
            let word = if self.state.speeds.slow(node).is_some() { kind::SLOW } else { kind::FAST };
            self.effects.notes.push(format!("node {node} {what}"));
            self.saw(history::of_nodes(word, &[node], format!("it {what}")));
        }
    }

    fn smooth_loads(&mut self) {
        let state = &mut self.state;
        let passed = state.now.saturating_sub(state.heat.smoothed_at).as_secs_f64();
        state.heat.smoothed_at = state.now;
        let share = passed / (passed + state.config.load_average.as_secs_f64());
        for node in state.ahead.nodes.keys() {
            let cost = state.table.holding(*node).map_or(0, |holding| holding.cost) as f64;
            let smooth = state.heat.smooth.entry(*node).or_default();
            *smooth += (cost - *smooth) * share;
        }
        let (now, pause) = (state.now, state.config.load_pause);
        state.heat.moved.retain(|_, at| now.saturating_sub(*at) < pause);
    }

    fn keep_maintenance(&mut self) {
        let state = &self.state;
        let mut changes = Vec::new();
        for record in state.ahead.nodes.values().filter(|record| record.maintenance_left_ms > 0) {
            let left = state.maintenance_left(record.node_id);
            let written = Duration::from_millis(record.maintenance_left_ms);
            if left == Duration::ZERO || written.saturating_sub(left) >= REWRITE_AFTER {
                let left = left.as_millis() as u64;
                changes.push(v1::NodeRecord { maintenance_left_ms: left, ..record.clone() });
            }
        }
        for record in changes {
            if record.maintenance_left_ms == 0 {
                self.effects.notes.push(format!("node {}: its maintenance is over", record.node_id));
                self.saw(history::of_nodes(kind::MAINTENANCE, &[record.node_id], "its time is over"));
                self.state.maintenance.remove(&record.node_id);
            }
            self.stage(vec![Change::Node(record)]);
        }
    }

    /// A node that was to be emptied and is empty is removed for good.
    fn end_decommissions(&mut self) {
        let state = &self.state;
        let is_empty = |record: &&v1::NodeRecord| {
            let node = record.node_id;
            let held = state.table.holding(node).is_some_and(|holding| !holding.held.is_empty());
            let coming = state.ahead.orders.values().filter_map(|record| record.order.as_ref());
            let coming = coming.flat_map(|order| &order.add_nodes).any(|to| *to == node);
            // A range that it was told to begin may be there, and written to, although nothing was heard of it: also if the node is
            // silent just now, and lives.
            let known = state.reports.is_empty(node) || state.is_dead(node) && state.knows_every_range();
            !held && !coming && !self.has_births(node) && known
        };
        let leaving = state.ahead.nodes.values().filter(|record| record.decommissioning && !record.removed);
        if !state.settled {
            return;
        }
        let emptied: Vec<v1::NodeRecord> = leaving.filter(is_empty).cloned().collect();
        for record in emptied {
            let node = record.node_id;
            self.effects
                .notes
                .push(format!("node {node} is decommissioned: it holds nothing, and is removed for good"));
            let told = history::of_nodes(kind::REMOVED, &[node], "decommissioned: it holds nothing any more");
            let change = Change::Node(v1::NodeRecord { removed: true, maintenance_left_ms: 0, ..record });
            self.stage_told(vec![change], vec![told]);
            self.state.speeds.forget(node);
            self.state.heat.smooth.remove(&node);
            self.state.maintenance.remove(&node);
        }
    }

    fn has_births(&self, node: u64) -> bool {
        let descriptors = self.state.ahead.births.values().filter_map(|birth| birth.descriptor.as_ref());
        descriptors.flat_map(|descriptor| &descriptor.replicas).any(|replica| replica.node_id == node)
    }
}

/// Refuses to take a node away that the others cannot do without.
fn check_rest(state: &State, node: u64) -> Result<()> {
    let nodes = state.ahead.nodes.keys().copied();
    let others: Vec<u64> = nodes.filter(|other| *other != node && state.is_member(*other)).collect();
    for keyspace in state.ahead.keyspaces.values() {
        let id = keyspace.keyspace_id;
        if state.ahead.keyspace(id).is_none() {
            continue;
        }
        let left: Vec<String> =
            others.iter().filter(|other| state.could_hold(id, **other)).map(u64::to_string).collect();
        if left.len() < keyspace.replicas as usize {
            let on = if left.is_empty() { "no node".into() } else { format!("nodes {}", left.join(", ")) };
            let what = format!(
                "without node {node}, {on} could hold keyspace {:?}, which asks for {} replicas",
                keyspace.name, keyspace.replicas
            );
            let bound = if state.places.is_bound(id) { ", or change its constraints" } else { "" };
            let hint = format!(
                "add a node first, or set the keyspace's replicas to {} or less{bound}; nodes that drain, are dead or are being \
                 decommissioned do not count",
                left.len()
            );
            return Err(Error::invalid(what, hint));
        }
    }
    Ok(())
}

/// Whether the range loses its majority by one failure beside the node's absence.
fn at_risk(state: &State, range: u64) -> bool {
    let Some(route) = state.table.get(range) else { return false };
    let voters: Vec<u64> = crate::decide::voters(&route.descriptor).collect();
    let live = voters.iter().filter(|node| state.is_live(**node) && !state.is_in_maintenance(**node)).count();
    // One more gone must leave more than half.
    live.saturating_sub(1) * 2 <= voters.len()
}

impl State {
    /// How long nodes are still in maintenance, by their records.
    pub fn load_maintenance(&mut self) {
        let now = self.now;
        let left = |record: &v1::NodeRecord| {
            let left = Duration::from_millis(record.maintenance_left_ms);
            (!record.removed && left > Duration::ZERO).then_some((record.node_id, now + left))
        };
        self.maintenance = self.ahead.nodes.values().filter_map(left).collect();
    }
}
