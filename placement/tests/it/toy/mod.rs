//! A toy cluster: a system range that applies batches, ranges that change their replicas in steps, nodes that report.
//!
//! What really holds stands in [`Group`], one per range; nodes know of it what they have applied. The service sees
//! reports alone. Each step checks what must never happen; [`Toy::check_settled`] what must hold in the end.

mod groups;
mod nodes;
mod records;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use flotilla_placement::{Answer, Bootstrap, Config, Outcome, Request, Response, Service, Write};
use flotilla_proto::{Error, v1};

pub use groups::Group;
pub use nodes::Node;
pub use records::Records;

pub const CLUSTER: u64 = 0xC1;
pub const STEP: Duration = Duration::from_millis(100);

/// Draws the faults.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound.max(1)
    }

    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What goes wrong, each in percent.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    pub report_lost: u64,
    pub answer_lost: u64,
    pub report_late: u64,
    pub report_twice: u64,
    pub write_unknown: u64,
    pub removal_missed: u64,
}

pub struct Toy {
    pub now: Duration,
    pub config: Config,
    pub rng: Rng,
    pub faults: Faults,
    pub records: Records,
    pub term: u64,
    pub service: Service,
    pub groups: BTreeMap<u64, Group>,
    pub nodes: BTreeMap<u64, Node>,
    pub answers: BTreeMap<u64, Result<Response, Error>>,
    /// Reports that a slow network still holds.
    pub late: Vec<v1::ReportRequest>,
    pub notes: Vec<String>,
    pub orders_seen: BTreeMap<u64, v1::RangeOrder>,
    pub ids_given: Vec<(u64, u64)>,
    pub moves: usize,
    pub transfers: usize,
    /// Steps that leaders refused, because the range would have lost replicas that it needs.
    pub refused: usize,
    /// Steps in which nothing was under way, up to now.
    quiet: usize,
    next_token: u64,
}

pub fn config() -> Config {
    Config {
        node_dead_after: Duration::from_secs(10),
        node_live_for: Duration::from_secs(1),
        order_time_limit: Duration::from_secs(30),
        range_ids_per_block: 10,
        // Steps are counted here; the scenario moved_by_hand is about this.
        balance_rest: Duration::ZERO,
        ..Config::default()
    }
}

impl Toy {
    /// A cluster of one node that has just been bootstrapped.
    pub fn new(ranges: u32, seed: u64) -> Self {
        Self::with(ranges, seed, config())
    }

    pub fn with(ranges: u32, seed: u64, config: Config) -> Self {
        let node = v1::NodeRecord { node_id: 1, store_id: 101, peer_addr: "n1:1".into(), ..Default::default() };
        let bootstrap =
            Bootstrap { cluster_id: CLUSTER, cluster_name: "toy".into(), node, replicas: 3, split_bytes: 0, ranges };
        bootstrap.check().expect("a possible cluster");
        let mut records = Records::default();
        records.seed(bootstrap.first_records());
        let now = Duration::from_secs(1_000);
        let service = Service::load(1, records.all(), now, config.clone()).expect("its own first records");
        let mut first = Node::new(1, 101);
        let mut groups = BTreeMap::new();
        for descriptor in bootstrap.first_ranges() {
            first.replicas.insert(descriptor.range_id, (1, descriptor.clone()));
            groups.insert(descriptor.range_id, Group::new(descriptor, 1));
        }
        let mut toy = Self {
            now,
            config,
            rng: Rng::new(seed),
            faults: Faults::default(),
            records,
            term: 1,
            service,
            groups,
            nodes: BTreeMap::from([(1, first)]),
            answers: BTreeMap::new(),
            late: Vec::new(),
            notes: Vec::new(),
            orders_seen: BTreeMap::new(),
            ids_given: Vec::new(),
            moves: 0,
            transfers: 0,
            refused: 0,
            quiet: 0,
            next_token: 0,
        };
        toy.settle_effects();
        toy
    }

    /// Sends a request; its token.
    pub fn send(&mut self, request: Request) -> u64 {
        self.next_token += 1;
        let token = self.next_token;
        self.service.request(self.now, token, request);
        self.settle_effects();
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

    /// Joins a new node and starts it.
    pub fn join(&mut self, store: u64) -> u64 {
        for _ in 0..50 {
            let request = v1::JoinRequest {
                cluster_name: "toy".into(),
                store_id: store,
                peer_addr: format!("s{store}:1"),
                protocol_min: 1,
                protocol_max: 1,
                ..Default::default()
            };
            if let Ok(Response::Join(answer)) = self.ask(Request::Join(request)) {
                let node = answer.node_id;
                let other = self.nodes.entry(node).or_insert_with(|| Node::new(node, store));
                assert_eq!(other.store, store, "two stores got node id {node}");
                return node;
            }
        }
        panic!("store {store} could not join");
    }

    /// Carries effects out until there are none.
    pub fn settle_effects(&mut self) {
        loop {
            let effects = self.service.take_effects();
            self.notes.extend(effects.notes);
            for Answer { token, result } in effects.answers {
                assert!(self.answers.insert(token, result).is_none(), "token {token} was answered twice");
            }
            assert!(effects.writes.len() <= 1);
            let Some(write) = effects.writes.into_iter().next() else { break };
            self.write(&write);
        }
    }

    fn write(&mut self, write: &Write) {
        assert!(write.request.atomic && write.request.ops.len() <= 1_024, "{} operations", write.request.ops.len());
        if self.rng.percent(self.faults.write_unknown) {
            if self.rng.percent(50) {
                self.records.apply(&write.request);
            }
            self.service.written(self.now, write.id, Outcome::Unknown);
            self.reload();
            return;
        }
        let outcome = if self.records.apply(&write.request) { Outcome::Applied } else { Outcome::Refused };
        assert_eq!(outcome, Outcome::Applied, "there is one service, and it was refused");
        self.service.written(self.now, write.id, outcome);
        self.watch_orders();
    }

    /// The service is made anew from the records, in the same term or in a new one.
    pub fn reload(&mut self) {
        let effects = self.service.take_effects();
        assert!(effects.writes.is_empty() || self.service.stopped().is_none(), "a stopped service writes");
        for Answer { token, result } in effects.answers {
            self.answers.insert(token, result);
        }
        self.term += self.rng.below(2);
        let fresh = Service::load(self.term, self.records.all(), self.now, self.config.clone()).expect("valid records");
        let old = std::mem::replace(&mut self.service, fresh);
        for Answer { token, result } in old.close().answers {
            self.answers.insert(token, result);
        }
    }

    fn watch_orders(&mut self) {
        for record in self.service.orders() {
            let order = record.order.expect("an order record has an order");
            let known = self.orders_seen.entry(order.order_id).or_insert_with(|| {
                self.moves += usize::from(!order.add_nodes.is_empty());
                self.transfers += usize::from(order.leader_node_id != 0);
                order.clone()
            });
            assert_eq!(known, &order, "order id {} was used twice", order.order_id);
        }
    }

    /// A tenth of a second: the service's time passes, ranges change, nodes report.
    pub fn step(&mut self) {
        self.now += STEP;
        self.service.tick(self.now);
        self.settle_effects();
        self.change_groups();
        let nodes: Vec<u64> = self.nodes.keys().copied().collect();
        for node in nodes {
            if self.nodes[&node].up {
                self.exchange(node);
            }
        }
        while !self.late.is_empty() && self.rng.percent(50) {
            let at = self.rng.below(self.late.len() as u64) as usize;
            let report = self.late.swap_remove(at);
            let token = self.send(Request::Report(Box::new(report)));
            self.answers.remove(&token);
        }
        self.check_always();
        let rests = |group: &Group| group.is_simple() && group.order.is_none();
        let quiet = self.service.orders().is_empty() && self.groups.values().all(rests);
        self.quiet = if quiet { self.quiet + 1 } else { 0 };
    }

    pub fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.step();
        }
    }

    /// Steps until the condition holds; how many it took.
    pub fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) -> usize {
        for step in 0..5_000 {
            if condition(self) {
                return step;
            }
            self.step();
        }
        let notes = self.notes.iter().rev().take(20).cloned().collect::<Vec<_>>().join("\n");
        panic!("not reached: {what}\n{notes}\norders {:?}\n{}", self.service.orders(), self.figures());
    }

    pub fn figures(&self) -> String {
        let line = |group: &Group| {
            let line = format!("{:?} leader {} order {:?}\n", group.descriptor, group.leader, group.order);
            format!("{line}   {}\n", self.service.explain(group.descriptor.range_id))
        };
        self.groups.values().map(line).collect()
    }

    /// Every range has so many voters, is in no change, and no order is under way.
    pub fn at_rest(&self, replicas: usize) -> bool {
        let replicated = |group: &Group| group.descriptor.replicas.len() == replicas;
        self.quiet >= 3 && self.service.complete() && self.groups.values().all(replicated)
    }

    pub fn replicas_on(&self, node: u64) -> usize {
        self.groups.values().filter(|group| group.holds(node)).count()
    }

    pub fn led_by(&self, node: u64) -> usize {
        self.groups.values().filter(|group| group.leader == node).count()
    }

    /// What must never happen.
    fn check_always(&self) {
        let mut given = self.ids_given.clone();
        given.sort_unstable();
        for pair in given.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "blocks of range ids overlap: {pair:?}");
        }
    }

    /// What must hold when nothing changes any more: every node has every route, and nothing is left behind.
    pub fn check_settled(&self) {
        assert!(self.service.complete(), "the table does not tile: {:?}", self.service.routes());
        let routes: BTreeMap<u64, v1::RangeStatus> = self
            .service
            .routes()
            .into_iter()
            .map(|route| (route.descriptor.as_ref().expect("a descriptor").range_id, route))
            .collect();
        assert_eq!(routes.len(), self.groups.len());
        for group in self.groups.values() {
            let route = &routes[&group.descriptor.range_id];
            assert_eq!(route.descriptor.as_ref(), Some(&group.descriptor));
            assert_eq!(route.leader_node_id, group.leader, "{route:?}, {group:?}");
        }
        for node in self.nodes.values().filter(|node| node.up) {
            assert_eq!(node.routes, routes, "node {} has other routes", node.id);
            for range in node.replicas.keys() {
                let there = self.groups.get(range).is_some_and(|group| group.holds(node.id));
                assert!(there, "node {} still has a replica of range {range}", node.id);
            }
        }
    }
}

/// All records, as a scan of the system range returns them.
pub type Scan = Vec<(Bytes, Bytes, u64)>;
