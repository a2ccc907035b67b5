//! A cluster as placement sees it, in which every order is carried out a few seconds after it was given: coarser than the
//! toy, so that it may be large. What really holds stands in [`Group`]; the service sees reports alone. A judge
//! looks at each order when it is given out (judge.rs); scenario files say what happens, and what must come of it
//! (script.rs).

mod cuts;
pub mod judge;
pub mod measure;
pub mod script;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flotilla_placement::{Bootstrap, Change, Config, Outcome, Request, Response, Service};
use flotilla_proto::{Error, v1};

use crate::toy::{CLUSTER, Records, Rng};
use judge::Judge;

/// A second passes with each step.
pub const STEP: Duration = Duration::from_secs(1);
/// Steps from when a leader gets an order until it is done.
const CARRIED_OUT_AFTER: u64 = 2;
/// With more ranges the judge, who looks at the whole cluster for each order, looks at one order of so many.
const JUDGED_ALL_MAX: usize = 10_000;
const JUDGED_OF: u64 = 61;

/// A range.
#[derive(Clone, Debug)]
pub struct Group {
    pub descriptor: v1::RangeDescriptor,
    pub leader: u64,
    pub term: u64,
    pub bytes: u64,
    /// Reads a second.
    pub heat: u64,
    /// What its leader reports of that now.
    told_heat: u64,
    pub order: Option<v1::RangeOrder>,
    due: u64,
}

impl Group {
    pub fn nodes(&self) -> Vec<u64> {
        self.descriptor.replicas.iter().map(|replica| replica.node_id).collect()
    }
}

/// A node.
#[derive(Clone, Debug, Default)]
pub struct Host {
    pub labels: Vec<v1::Label>,
    pub full: bool,
    pub sync_us: u64,
    pub held: BTreeSet<u64>,
    boot: u64,
    sequence: u64,
    reign: u64,
    table_sequence: u64,
    nodes_version: u64,
    full_wanted: bool,
    changed: BTreeSet<u64>,
    gone: BTreeSet<u64>,
}

/// What a world begins with.
#[derive(Clone, Debug)]
pub struct Spec {
    pub nodes: u64,
    pub zones: Vec<String>,
    /// In each zone.
    pub racks: u64,
    pub ranges: u32,
    pub bytes: u64,
    pub replicas: u32,
    pub split_bytes: u64,
    pub seed: u64,
    pub config: Config,
}

pub struct World {
    pub now: Duration,
    pub steps: u64,
    pub service: Service,
    pub groups: BTreeMap<u64, Group>,
    pub hosts: BTreeMap<u64, Host>,
    pub judge: Judge,
    /// Percent by which reported loads vary.
    pub noise: u64,
    /// Steps since the last order was given or carried out.
    pub quiet: u64,
    /// Ranges whose leaders have orders, and some that have none any more.
    ordered: BTreeSet<u64>,
    /// Nodes that are down.
    down: BTreeSet<u64>,
    records: Records,
    config: Config,
    rng: Rng,
    answers: BTreeMap<u64, Result<Response, Error>>,
    next_token: u64,
    leaderless: BTreeSet<u64>,
    term: u64,
}

pub fn label(key: &str, value: &str) -> v1::Label {
    v1::Label { key: key.into(), value: value.into() }
}

fn record(node: u64, labels: &[v1::Label]) -> v1::NodeRecord {
    let labels = labels.to_vec();
    v1::NodeRecord {
        node_id: node,
        store_id: 100 + node,
        peer_addr: format!("n{node}:1"),
        labels,
        ..Default::default()
    }
}

impl World {
    /// Nodes that know each other, and ranges laid out over them: balanced and spread as far as dealing them round does.
    pub fn new(spec: &Spec) -> Self {
        let labels = |node: u64| {
            let zones = spec.zones.len() as u64;
            let mut labels = Vec::new();
            if zones > 0 {
                labels.push(label("zone", &spec.zones[((node - 1) % zones) as usize]));
            }
            if spec.racks > 0 {
                labels.push(label("rack", &format!("r{}", (node - 1) / zones.max(1) % spec.racks)));
            }
            labels
        };
        let hosts: BTreeMap<u64, Host> = (1..=spec.nodes)
            .map(|node| (node, Host { labels: labels(node), boot: 1, full_wanted: true, ..Host::default() }))
            .collect();
        let bootstrap = Bootstrap {
            cluster_id: CLUSTER,
            cluster_name: "world".into(),
            node: record(1, &hosts[&1].labels),
            replicas: spec.replicas,
            split_bytes: spec.split_bytes,
            ranges: spec.ranges,
        };
        let mut records = Records::default();
        records.seed(bootstrap.first_records());
        let others = hosts.iter().skip(1).map(|(node, host)| Change::Node(record(*node, &host.labels)));
        let next = Change::Next(flotilla_placement::Counter::Node, spec.nodes + 1);
        let seeded = others.chain([next]).map(|change| change.encode());
        records.seed(seeded.map(|(key, value)| (key, value.expect("a record"))).collect());
        let now = Duration::from_secs(10_000);
        let service = Service::load(1, records.all(), now, spec.config.clone()).expect("valid");
        let mut world = Self {
            now,
            steps: 0,
            service,
            groups: BTreeMap::new(),
            hosts,
            judge: Judge::default(),
            noise: 0,
            quiet: 0,
            ordered: BTreeSet::new(),
            down: BTreeSet::new(),
            records,
            config: spec.config.clone(),
            rng: Rng::new(spec.seed),
            answers: BTreeMap::new(),
            next_token: 0,
            leaderless: BTreeSet::new(),
            term: 1,
        };
        for (at, descriptor) in bootstrap.first_ranges().into_iter().enumerate() {
            world.lay_out(at as u64, descriptor, spec);
        }
        world.settle();
        world
    }

    fn lay_out(&mut self, at: u64, mut descriptor: v1::RangeDescriptor, spec: &Spec) {
        let count = u64::from(spec.replicas).min(spec.nodes);
        // Neighbours in the circle of nodes are in different zones, so far as the circle's length allows.
        let nodes = (0..count).map(|step| 1 + (at + step) % spec.nodes);
        let replica = |(node_id, replica_id)| v1::ReplicaDescriptor { replica_id, node_id, role: 0 };
        descriptor.replicas = nodes.zip(1..).map(replica).collect();
        descriptor.next_replica_id = count + 1;
        let range = descriptor.range_id;
        let leader = descriptor.replicas[0].node_id;
        for replica in &descriptor.replicas {
            self.hosts.get_mut(&replica.node_id).expect("a node").held.insert(range);
        }
        let group =
            Group { descriptor, leader, term: 1, bytes: spec.bytes, heat: 0, told_heat: 0, order: None, due: 0 };
        self.groups.insert(range, group);
    }

    pub fn is_up(&self, node: u64) -> bool {
        self.hosts.contains_key(&node) && !self.down.contains(&node)
    }

    pub fn send(&mut self, request: Request) -> u64 {
        self.next_token += 1;
        let token = self.next_token;
        self.service.request(self.now, token, request);
        self.settle();
        token
    }

    /// Sends a request, and steps until it is answered.
    pub fn ask(&mut self, request: Request) -> Result<Response, Error> {
        let token = self.send(request);
        for _ in 0..600 {
            if let Some(answer) = self.answers.remove(&token) {
                return answer;
            }
            self.step();
        }
        panic!("request {token} was never answered");
    }

    fn settle(&mut self) {
        loop {
            let effects = self.service.take_effects();
            for answer in effects.answers {
                self.answers.insert(answer.token, answer.result);
            }
            let Some(write) = effects.writes.into_iter().next() else { return };
            assert!(self.records.apply(&write.request), "there is one service, and it was refused");
            self.service.written(self.now, write.id, Outcome::Applied);
        }
    }

    /// The service begins anew somewhere else.
    pub fn move_service(&mut self) {
        self.term += 1;
        self.service = Service::load(self.term, self.records.all(), self.now, self.config.clone()).expect("valid");
        self.settle();
    }

    pub fn join(&mut self, labels: Vec<v1::Label>) -> u64 {
        let store = 100 + self.hosts.keys().last().copied().unwrap_or(0) + 1;
        let request = v1::JoinRequest {
            store_id: store,
            peer_addr: format!("s{store}:1"),
            protocol_min: 1,
            protocol_max: 1,
            labels: labels.clone(),
            ..Default::default()
        };
        let Ok(Response::Join(answer)) = self.ask(Request::Join(request)) else { panic!("could not join") };
        assert_eq!(answer.node_id + 100, store, "ids are given in order, and never again");
        let host = Host { labels, boot: 1, full_wanted: true, ..Host::default() };
        assert!(self.hosts.insert(answer.node_id, host).is_none());
        answer.node_id
    }

    pub fn kill(&mut self, node: u64) {
        assert!(self.hosts.contains_key(&node), "there is no node {node}");
        self.down.insert(node);
        let led = self.groups.values().filter(|group| group.leader == node).map(|group| group.descriptor.range_id);
        self.leaderless.extend(led);
        self.touch_leaders(node);
    }

    /// Leaders say which of their replicas are there.
    fn touch_leaders(&mut self, node: u64) {
        let held: Vec<u64> = self.hosts[&node].held.iter().copied().collect();
        for range in held {
            let leader = self.groups.get(&range).map_or(0, |group| group.leader);
            self.touch(leader, range);
        }
    }

    pub fn start(&mut self, node: u64) {
        self.down.remove(&node);
        let host = self.hosts.get_mut(&node).expect("a node");
        (host.full_wanted, host.sequence, host.reign, host.table_sequence) = (true, 0, 0, 0);
        host.boot += 1;
        self.touch_leaders(node);
    }

    pub fn set_heat(&mut self, range: u64, heat: u64) {
        let group = self.groups.get_mut(&range).expect("a range");
        group.heat = heat;
        group.told_heat = heat;
        let leader = group.leader;
        self.touch(leader, range);
    }

    /// The node takes leadership over: a person has asked the range for it, and not the service.
    pub fn lead(&mut self, range: u64, node: u64) {
        let group = self.groups.get_mut(&range).expect("a range");
        assert!(group.nodes().contains(&node), "node {node} has no replica of range {range}");
        (group.leader, group.term, group.order) = (node, group.term + 1, None);
        self.touch(node, range);
    }

    fn touch(&mut self, node: u64, range: u64) {
        if let Some(host) = self.hosts.get_mut(&node) {
            host.changed.insert(range);
        }
    }

    /// A second passes.
    pub fn step(&mut self) {
        self.steps += 1;
        self.quiet += 1;
        self.now += STEP;
        self.service.tick(self.now);
        self.settle();
        self.elect();
        self.vary_loads();
        for node in self.hosts.keys().copied().collect::<Vec<_>>() {
            if self.is_up(node) {
                self.exchange(node);
            }
        }
        self.ordered.retain(|range| self.groups.get(range).is_some_and(|group| group.order.is_some()));
        let due: Vec<u64> = self.ordered.iter().copied().filter(|range| self.groups[range].due <= self.steps).collect();
        for range in due {
            self.carry_out(range);
        }
    }

    fn vary_loads(&mut self) {
        if self.noise == 0 || !self.steps.is_multiple_of(5) {
            return;
        }
        let hot: Vec<u64> =
            self.groups.values().filter(|group| group.heat > 0).map(|group| group.descriptor.range_id).collect();
        for range in hot {
            let percent = 100 + self.rng.below(2 * self.noise + 1) - self.noise;
            let group = self.groups.get_mut(&range).expect("a range");
            group.told_heat = group.heat * percent / 100;
            let leader = group.leader;
            self.touch(leader, range);
        }
    }

    fn elect(&mut self) {
        for range in std::mem::take(&mut self.leaderless) {
            let Some(group) = self.groups.get(&range) else { continue };
            if self.is_up(group.leader) {
                continue;
            }
            let voters = group.nodes();
            let up: Vec<u64> = voters.iter().copied().filter(|node| self.is_up(*node)).collect();
            if up.len() * 2 <= voters.len() {
                self.leaderless.insert(range);
                continue;
            }
            let leader = up[(range % up.len() as u64) as usize];
            let group = self.groups.get_mut(&range).expect("a range");
            (group.leader, group.term, group.order) = (leader, group.term + 1, None);
            self.touch(leader, range);
        }
    }

    fn report(&self, node: u64) -> v1::ReportRequest {
        let host = &self.hosts[&node];
        let one = |range: &u64| {
            let group = self.groups.get(range).filter(|_| host.held.contains(range))?;
            let replica = group.descriptor.replicas.iter().find(|replica| replica.node_id == node)?;
            let leads = group.leader == node;
            let level = || group.nodes().into_iter().filter(|node| self.is_up(*node)).collect();
            Some(v1::RangeReport {
                descriptor: Some(group.descriptor.clone()),
                replica_id: replica.replica_id,
                term: group.term,
                leader_node_id: group.leader,
                data_bytes: group.bytes,
                level_nodes: if leads { level() } else { Vec::new() },
                order_id: group.order.as_ref().filter(|_| leads).map_or(0, |order| order.order_id),
                load: (leads && group.told_heat > 0)
                    .then(|| v1::RangeLoad { reads_per_s: group.told_heat, ..Default::default() }),
                ..Default::default()
            })
        };
        let ranges = if host.full_wanted { &host.held } else { &host.changed };
        v1::ReportRequest {
            cluster_id: CLUSTER,
            node: Some(v1::NodeInfo {
                node_id: node,
                boot_id: host.boot,
                disk_full: host.full,
                labels: host.labels.clone(),
                ..Default::default()
            }),
            store_id: 100 + node,
            sequence: host.sequence,
            reign: host.reign,
            full: host.full_wanted,
            ranges: ranges.iter().filter_map(one).collect(),
            gone: host.gone.iter().copied().collect(),
            table_sequence: host.table_sequence,
            nodes_version: host.nodes_version,
            // Each report tells of a hundred further syncs.
            health: (host.sync_us > 0).then(|| v1::NodeHealth {
                sync_us: host.sync_us,
                syncs: host.sequence * 100,
                applies: host.sequence * 100,
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// A report of a node, with these replicas instead of what it has; the answer.
    pub fn say(&mut self, node: u64, ranges: Vec<v1::RangeReport>) -> v1::ReportResponse {
        self.say_all(node, ranges, Vec::new())
    }

    /// The same; and these replicas have gone.
    pub fn say_all(&mut self, node: u64, ranges: Vec<v1::RangeReport>, gone: Vec<u64>) -> v1::ReportResponse {
        self.hosts.get_mut(&node).expect("a node").sequence += 1;
        let report = v1::ReportRequest { ranges, gone, ..self.report(node) };
        let token = self.send(Request::Report(Box::new(report)));
        let answer = match self.answers.remove(&token) {
            Some(Ok(Response::Report(answer))) => *answer,
            other => panic!("{other:?}"),
        };
        let host = self.hosts.get_mut(&node).expect("a node");
        (host.reign, host.full_wanted) = (answer.reign, answer.send_full);
        answer
    }

    fn exchange(&mut self, node: u64) {
        self.hosts.get_mut(&node).expect("a node").sequence += 1;
        let token = self.send(Request::Report(Box::new(self.report(node))));
        let answer = match self.answers.remove(&token) {
            Some(Ok(Response::Report(answer))) => answer,
            Some(Err(Error::ClusterMismatch { .. })) => {
                // It was removed for good.
                assert!(self.hosts[&node].held.is_empty(), "node {node} was removed with replicas on it");
                self.down.insert(node);
                return;
            }
            _ => return,
        };
        let host = self.hosts.get_mut(&node).expect("a node");
        (host.reign, host.table_sequence, host.full_wanted) = (answer.reign, answer.table_sequence, answer.send_full);
        host.nodes_version = answer.nodes_version;
        host.changed.clear();
        host.gone.clear();
        for order in answer.orders {
            self.take_order(node, order);
        }
    }

    fn take_order(&mut self, node: u64, order: v1::RangeOrder) {
        let Some(group) = self.groups.get_mut(&order.range_id).filter(|group| group.leader == node) else { return };
        let range = order.range_id;
        if order.order_id == 0 {
            group.order = None;
        } else if group.order.as_ref() != Some(&order) {
            group.due = self.steps + CARRIED_OUT_AFTER;
            group.order = Some(order.clone());
            self.ordered.insert(range);
            self.quiet = 0;
            self.judge.given += 1;
            if self.groups.len() > JUDGED_ALL_MAX && !order.order_id.is_multiple_of(JUDGED_OF) {
                return self.touch(node, range);
            }
            let problem = Judge::look(self, &order);
            assert_eq!(problem, None, "order {order:?} on {:?}", self.groups[&range].descriptor);
        }
        self.touch(node, range);
    }

    fn carry_out(&mut self, range: u64) {
        // A merge that was carried out just now may have ended it.
        let Some(group) = self.groups.get(&range) else { return };
        let Some(order) = group.order.clone() else { return };
        let nodes = group.nodes();
        let up = nodes.iter().filter(|node| self.is_up(**node)).count();
        if up * 2 <= nodes.len() || !order.add_nodes.iter().all(|node| self.is_up(*node)) {
            return;
        }
        self.quiet = 0;
        if let Some(left) = &order.merge_into {
            return self.merge(left.range_id, range);
        }
        self.judge.carried_out(&order);
        let group = self.groups.get_mut(&range).expect("a range");
        let changes = !(order.add_nodes.is_empty() && order.remove_nodes.is_empty());
        for node in order.add_nodes.iter().filter(|node| !nodes.contains(node)) {
            let replica_id = group.descriptor.next_replica_id;
            group.descriptor.next_replica_id += 1;
            group.descriptor.replicas.push(v1::ReplicaDescriptor { replica_id, node_id: *node, role: 0 });
        }
        group.descriptor.replicas.retain(|replica| !order.remove_nodes.contains(&replica.node_id));
        if changes {
            group.descriptor.epoch.as_mut().expect("an epoch").conf_ver += 1;
        }
        let after = group.nodes();
        let wanted = Some(order.leader_node_id).filter(|node| after.contains(node) && !self.down.contains(node));
        let old = group.leader;
        let next = wanted.unwrap_or(if after.contains(&old) { old } else { after[range as usize % after.len()] });
        if next != old {
            (group.leader, group.term) = (next, group.term + 1);
        }
        group.order = None;
        for node in nodes.iter().chain(&after).copied().collect::<BTreeSet<u64>>() {
            let host = self.hosts.get_mut(&node).expect("a node");
            if after.contains(&node) {
                host.held.insert(range);
                host.changed.insert(range);
            } else {
                host.held.remove(&range);
                host.changed.remove(&range);
                host.gone.insert(range);
            }
        }
    }
}
