//! What needs a person: what cannot be as it was asked for, with the nodes and settings of now.

use std::collections::BTreeMap;

use crate::constraints;
use crate::decide::voters;
use crate::service::Service;
use crate::state::State;
use crate::table::Route;

/// Ranges that are named in one line.
const NAMED_MAX: usize = 5;

/// Ranges that lack something, counted.
#[derive(Debug, Default)]
struct Lacking {
    count: usize,
    named: Vec<u64>,
}

impl Lacking {
    fn add(&mut self, range: u64) {
        self.count += 1;
        if self.named.len() < NAMED_MAX {
            self.named.push(range);
        }
    }

    fn line(&self, what: &str) -> String {
        let named: Vec<String> = self.named.iter().map(u64::to_string).collect();
        let more = if self.count > self.named.len() { ", ..." } else { "" };
        format!("{} range{} {what} ({}{more})", self.count, if self.count == 1 { "" } else { "s" }, named.join(", "))
    }
}

impl Service {
    /// One line for each thing that needs a person, as far as placement knows: keyspaces whose constraints cannot be
    /// satisfied, nodes that are dead, slow or full, ranges at risk, decommissions that cannot end. It looks at the ranges of
    /// nodes that are not live alone, and at the keyspaces and nodes.
    pub fn problems(&self) -> Vec<String> {
        let state = &self.state;
        let mut lines = Vec::new();
        if !state.settled {
            lines.push("the placement service has not heard of all nodes since it moved: it knows only a part".into());
        }
        lines.extend(keyspaces(state));
        lines.extend(nodes(state));
        lines.extend(ranges(state));
        lines
    }
}

fn keyspaces(state: &State) -> Vec<String> {
    let mut lines = Vec::new();
    for keyspace in state.ahead.keyspaces.values() {
        let id = keyspace.keyspace_id;
        if state.ahead.keyspace(id).is_none() {
            continue;
        }
        let could = state.ahead.nodes.keys().filter(|node| state.could_hold(id, **node)).count();
        let replicas = keyspace.replicas as usize;
        let bound = keyspace.constraints.as_ref().map(constraints::describe).filter(|words| !words.is_empty());
        if could < replicas
            && let Some(bound) = bound
        {
            lines.push(format!(
                "keyspace {:?}: its constraints ({bound}) leave {could} nodes for {replicas} replicas: add nodes with these \
                 labels, or change the constraints",
                keyspace.name
            ));
        }
        let preferred = keyspace.constraints.iter().flat_map(|constraints| &constraints.prefer_leaders_in);
        for label in preferred {
            let there = state.ahead.nodes.values().any(|record| {
                !record.removed && state.is_live(record.node_id) && crate::places::has(&record.labels, label)
            });
            if !there {
                let name = &keyspace.name;
                lines.push(format!(
                    "keyspace {name:?}: no live node has the label {} that leaders prefer",
                    constraints::text(label)
                ));
            }
        }
    }
    lines.extend(births(state));
    lines
}

/// Keyspaces of which a range waits to be born on a node that is lost, or for nodes that may hold it.
fn births(state: &State) -> Vec<String> {
    let mut waiting: BTreeMap<(u64, u64), usize> = BTreeMap::new();
    let mut in_doubt: BTreeMap<u64, usize> = BTreeMap::new();
    for descriptor in state.ahead.births.values().filter_map(|birth| birth.descriptor.as_ref()) {
        if state.ahead.may_have_begun(descriptor.range_id) {
            *in_doubt.entry(descriptor.keyspace_id).or_default() += 1;
            continue;
        }
        for replica in descriptor.replicas.iter().filter(|replica| state.is_lost(replica.node_id)) {
            *waiting.entry((descriptor.keyspace_id, replica.node_id)).or_default() += 1;
        }
    }
    let name = |id: u64| state.ahead.keyspaces.get(&id).map_or("?", |keyspace| keyspace.name.as_str());
    let line = |((keyspace, node), count): ((u64, u64), usize)| {
        format!(
            "keyspace {:?}: {count} of its ranges were to begin on node {node}, of which nothing is heard: start it, or, if \
             it is lost for good, drop the keyspace, which was never ready",
            name(keyspace)
        )
    };
    let silent: Vec<u64> = state.witnesses().filter(|node| state.is_lost(*node)).collect();
    let doubt = |(keyspace, count): (u64, usize)| {
        format!(
            "keyspace {:?}: whether {count} of its ranges have begun was lost with the system range's majority, and nodes \
             {silent:?}, of which nothing is heard, may hold them: start these, or, if they are lost for good, decommission them",
            name(keyspace)
        )
    };
    let in_doubt = in_doubt.into_iter().filter(|_| !silent.is_empty()).map(doubt);
    waiting.into_iter().map(line).chain(in_doubt).collect()
}

fn nodes(state: &State) -> Vec<String> {
    let mut lines = Vec::new();
    for record in state.ahead.nodes.values().filter(|record| !record.removed) {
        let node = record.node_id;
        let held = state.table.holding(node).map_or(0, |holding| holding.held.len());
        let silent = state.silence(node).as_secs();
        if state.is_in_maintenance(node) {
            let left = state.maintenance_left(node).as_secs();
            lines.push(format!("node {node} is in maintenance for {left} s more"));
        } else if state.is_dead(node) {
            lines.push(format!(
                "node {node} is dead: silent for {silent} s; {held} of its replicas are not rebuilt yet"
            ));
        } else if state.is_lost(node) {
            lines.push(format!("node {node} is silent for {silent} s"));
        }
        if state.is_full(node) {
            lines.push(format!("node {node} has no disk space to spare: it is given nothing"));
        }
        if let Some(why) = state.speeds.slow(node) {
            lines.push(format!("node {node} is slow: {why}; it leads nothing while others can"));
        }
        if record.decommissioning {
            let from = record.decommission_from;
            lines.push(format!("node {node} is being decommissioned: {held} of {from} replicas are left"));
        }
    }
    lines
}

/// Ranges with a voter on a node that is not live.
fn ranges(state: &State) -> Vec<String> {
    let silent = state.ahead.nodes.keys().filter(|node| !state.is_live(**node));
    let mut held: Vec<u64> =
        silent.filter_map(|node| state.table.holding(*node)).flat_map(|of| of.held.iter().copied()).collect();
    held.sort_unstable();
    held.dedup();
    let (mut lost, mut at_risk) = (Lacking::default(), Lacking::default());
    for route in held.into_iter().filter_map(|range| state.table.get(range)) {
        let (live, all) = live(state, route);
        match () {
            () if live * 2 <= all => lost.add(route.descriptor.range_id),
            () if live <= all / 2 + 1 => at_risk.add(route.descriptor.range_id),
            () => {}
        }
    }
    let mut lines = Vec::new();
    if lost.count > 0 {
        lines.push(lost.line("without a majority of live replicas"));
    }
    if at_risk.count > 0 {
        lines.push(at_risk.line("would lose the majority with one more node"));
    }
    lines
}

fn live(state: &State, route: &Route) -> (usize, usize) {
    let live = voters(&route.descriptor).filter(|node| state.is_live(*node)).count();
    (live, voters(&route.descriptor).count())
}
