//! What decisions cost in a large cluster: reports taken in, quiet rounds, the round after one report, a sweep over all
//! ranges, a node that comes, one that dies, and many that die at once; and the memory that it takes.
//!
//! Nothing is written or sent: writes are acknowledged at once, and orders carried out as soon as they are given, so
//! that what is measured is the service alone. A round is one [`Service::tick`] with what it writes. Medians are by the
//! clock on the wall, so the machine should be quiet; means and the longest are of the thread's time on a core, which the
//! kernel may count in steps of some milliseconds.
//!
//! `cargo bench -p flotilla-placement --bench scale -- [NODES [RANGES [DYING]]]`

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_placement::{Bootstrap, Change, Config, Counter, Outcome, Request, Response, Service};
use flotilla_proto::v1;

const CLUSTER: u64 = 7;
const PAGE: usize = 10_000;
const TICK: Duration = Duration::from_millis(200);

/// What something took: on the wall, and of a core.
#[derive(Clone, Copy, Default)]
struct Taken {
    wall: Duration,
    core: Duration,
}

/// Time that this thread spent on a core: others may run beside it.
struct Clock(Duration, Instant);

#[allow(clippy::disallowed_methods, reason = "a bench: what is measured knows no clock")]
impl Clock {
    fn spent() -> Duration {
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        let nanos = stat.split_whitespace().next().and_then(|nanos| nanos.parse().ok());
        Duration::from_nanos(nanos.unwrap_or(0))
    }

    fn now() -> Self {
        Self(Self::spent(), Instant::now())
    }

    fn elapsed(&self) -> Taken {
        Taken { wall: self.1.elapsed(), core: Self::spent().saturating_sub(self.0) }
    }
}

struct Bench {
    service: Service,
    now: Duration,
    descriptors: Vec<v1::RangeDescriptor>,
    /// By range, from 1 on.
    leaders: Vec<u64>,
    held: Vec<BTreeSet<u64>>,
    sequences: Vec<u64>,
    nodes_versions: Vec<u64>,
    reign: u64,
    dead: BTreeSet<u64>,
    orders: BTreeMap<u64, v1::RangeOrder>,
    zones: u64,
    token: u64,
    spent: Taken,
    rounds: u32,
}

fn record(node: u64, zones: u64) -> v1::NodeRecord {
    let labels = vec![v1::Label { key: "zone".into(), value: format!("z{}", node % zones) }];
    let peer_addr = format!("n{node}:7300");
    v1::NodeRecord { node_id: node, store_id: 100 + node, peer_addr, labels, ..Default::default() }
}

/// Every 1,000 ranges one is large; keys are 16 bytes.
fn descriptor(at: u64, ranges: u64, nodes: u64) -> v1::RangeDescriptor {
    let key = |at: u64| Bytes::from(format!("key/{at:012}"));
    let replicas = [0, 1, 2].map(|step| v1::ReplicaDescriptor {
        replica_id: step + 1,
        node_id: 1 + (at + step) % nodes,
        role: v1::ReplicaRole::Voter.into(),
    });
    v1::RangeDescriptor {
        range_id: at + 1,
        keyspace_id: 1,
        start: if at == 0 { Bytes::new() } else { key(at) },
        end: if at + 1 == ranges { Bytes::new() } else { key(at + 1) },
        epoch: Some(v1::Epoch { conf_ver: 1, version: 1 }),
        replicas: replicas.to_vec(),
        next_replica_id: 4,
    }
}

impl Bench {
    fn new(nodes: u64, ranges: u64) -> Self {
        let zones = 3;
        let first = Bootstrap {
            cluster_id: CLUSTER,
            cluster_name: "scale".into(),
            node: record(1, zones),
            replicas: 3,
            split_bytes: 256 << 20,
            ranges: 1,
        };
        let others = (2..=nodes).map(|node| Change::Node(record(node, zones)).encode());
        let next = Change::Next(Counter::Node, nodes + 1).encode();
        let others = others.chain([next]).map(|(key, value)| (key, value.unwrap_or_default()));
        let records = first.first_records().into_iter().chain(others);
        let records = records.map(|(key, value)| (key, value, 1));
        // One route in an answer: who is told which routes is not what is measured.
        let config = Config { answer_routes_bytes: 1, ..Config::default() };
        let service = Service::load(1, records, Duration::from_secs(1_000), config).expect("valid records");
        let mut held = vec![BTreeSet::new(); nodes as usize + 1];
        let descriptors: Vec<v1::RangeDescriptor> = (0..ranges).map(|at| descriptor(at, ranges, nodes)).collect();
        for descriptor in &descriptors {
            for replica in &descriptor.replicas {
                held[replica.node_id as usize].insert(descriptor.range_id);
            }
        }
        // Leaders are dealt round.
        let leader = |of: &v1::RangeDescriptor| of.replicas[of.range_id as usize % 3].node_id;
        let leaders = std::iter::once(0).chain(descriptors.iter().map(leader)).collect();
        Self {
            service,
            now: Duration::from_secs(1_000),
            leaders,
            descriptors,
            held,
            sequences: vec![0; nodes as usize + 1],
            nodes_versions: vec![0; nodes as usize + 1],
            reign: 0,
            dead: BTreeSet::new(),
            orders: BTreeMap::new(),
            zones,
            token: 0,
            spent: Taken::default(),
            rounds: 0,
        }
    }

    /// Acknowledges writes at once; what was answered.
    fn settle(&mut self) -> Vec<v1::ReportResponse> {
        let mut answers = Vec::new();
        loop {
            let effects = self.service.take_effects();
            for answer in effects.answers {
                if let Ok(Response::Report(answer)) = answer.result {
                    answers.push(*answer);
                }
            }
            let Some(write) = effects.writes.into_iter().next() else { return answers };
            self.service.written(self.now, write.id, Outcome::Applied);
        }
    }

    fn range_report(&self, node: u64, range: u64) -> v1::RangeReport {
        let descriptor = &self.descriptors[range as usize - 1];
        let live = descriptor.replicas.iter().map(|replica| replica.node_id).filter(|node| !self.dead.contains(node));
        let level: Vec<u64> = live.collect();
        let leader = self.leaders[range as usize];
        let replica = descriptor.replicas.iter().find(|replica| replica.node_id == node);
        v1::RangeReport {
            descriptor: Some(descriptor.clone()),
            replica_id: replica.map_or(0, |replica| replica.replica_id),
            term: 1 + u64::from(!self.dead.is_empty()),
            leader_node_id: leader,
            data_bytes: if range.is_multiple_of(1_000) { 100 << 20 } else { 1 << 20 },
            order_id: self.orders.get(&range).filter(|_| leader == node).map_or(0, |order| order.order_id),
            level_nodes: if leader == node { level } else { Vec::new() },
            ..Default::default()
        }
    }

    fn report(&mut self, node: u64, ranges: &[u64], full: bool, more: bool) -> Option<v1::ReportResponse> {
        self.sequences[node as usize] += 1;
        let request = v1::ReportRequest {
            cluster_id: CLUSTER,
            node: Some(v1::NodeInfo {
                node_id: node,
                boot_id: 1,
                labels: record(node, self.zones).labels,
                ..Default::default()
            }),
            store_id: 100 + node,
            sequence: self.sequences[node as usize],
            reign: self.reign,
            full,
            more,
            ranges: ranges.iter().map(|range| self.range_report(node, *range)).collect(),
            table_sequence: u64::MAX,
            nodes_version: self.nodes_versions[node as usize],
            ..Default::default()
        };
        self.token += 1;
        let begun = Clock::now();
        self.service.request(self.now, self.token, Request::Report(Box::new(request)));
        let answer = self.settle().pop();
        let taken = begun.elapsed();
        self.spent = Taken { wall: self.spent.wall + taken.wall, core: self.spent.core + taken.core };
        if let Some(answer) = &answer {
            self.nodes_versions[node as usize] = answer.nodes_version;
        }
        answer
    }

    fn report_all(&mut self, node: u64) {
        let held: Vec<u64> = self.held[node as usize].iter().copied().collect();
        let pages = held.chunks(PAGE).count();
        for (at, page) in held.chunks(PAGE).enumerate() {
            let answer = self.report(node, page, at == 0, at + 1 < pages);
            self.reign = answer.map_or(self.reign, |answer| answer.reign);
        }
    }

    /// Time passes, and all live nodes say that they live; then comes a round.
    fn round(&mut self) -> Taken {
        self.now += TICK;
        let spent = self.spent;
        if self.rounds.is_multiple_of(5) {
            for node in 1..self.held.len() as u64 {
                if !self.dead.contains(&node) {
                    let answer = self.report(node, &[], false, false);
                    self.take_orders(answer);
                }
            }
        }
        // Their reports set off no rounds of their own here: what they cost is counted by itself.
        self.spent = spent;
        self.rounds += 1;
        let begun = Clock::now();
        self.service.tick(self.now);
        self.settle();
        begun.elapsed()
    }

    /// Rounds, each with all of its orders carried out, until `orders` were, or there are none for a while; what they took.
    fn rounds_of(&mut self, orders: usize) -> (Vec<Taken>, usize) {
        let (mut taken, mut carried, mut idle) = (Vec::new(), 0, 0);
        while carried < orders && idle < 200 && taken.len() < 20_000 {
            taken.push(self.round());
            let done = self.carry_out();
            carried += done;
            idle = if done == 0 { idle + 1 } else { 0 };
        }
        taken.truncate(taken.len() - idle);
        (taken, carried)
    }

    fn take_orders(&mut self, answer: Option<v1::ReportResponse>) {
        let orders = answer.into_iter().flat_map(|answer| answer.orders).filter(|order| order.order_id != 0);
        self.orders.extend(orders.map(|order| (order.range_id, order)));
    }

    /// Carries all orders out that were given, and reports that.
    fn carry_out(&mut self) -> usize {
        let orders = std::mem::take(&mut self.orders);
        let count = orders.len();
        let mut changed: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for (range, order) in orders {
            let descriptor = &mut self.descriptors[range as usize - 1];
            for node in &order.add_nodes {
                // An order that was fulfilled just now may have been told once more.
                if descriptor.replicas.iter().any(|replica| replica.node_id == *node) {
                    continue;
                }
                let replica_id = descriptor.next_replica_id;
                descriptor.next_replica_id += 1;
                descriptor.replicas.push(v1::ReplicaDescriptor { replica_id, node_id: *node, role: 0 });
                self.held[*node as usize].insert(range);
            }
            descriptor.replicas.retain(|replica| !order.remove_nodes.contains(&replica.node_id));
            for node in &order.remove_nodes {
                self.held[*node as usize].remove(&range);
            }
            if let Some(epoch) = descriptor.epoch.as_mut() {
                epoch.conf_ver += 1;
            }
            let descriptor = &self.descriptors[range as usize - 1];
            let voters = || descriptor.replicas.iter().map(|replica| replica.node_id);
            if order.leader_node_id != 0 {
                self.leaders[range as usize] = order.leader_node_id;
            }
            if voters().all(|node| node != self.leaders[range as usize]) {
                self.leaders[range as usize] = voters().find(|node| !self.dead.contains(node)).unwrap_or(0);
            }
            for replica in &descriptor.replicas {
                changed.entry(replica.node_id).or_default().push(range);
            }
        }
        for (node, ranges) in changed.into_iter().filter(|(node, _)| !self.dead.contains(node)).collect::<Vec<_>>() {
            let answer = self.report(node, &ranges, false, false);
            self.take_orders(answer);
        }
        count
    }
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = status.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4 / 1_024
}

fn ms(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1e3)
}

fn main() {
    let numbers: Vec<u64> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let of = |at: usize, default: u64| numbers.get(at).copied().unwrap_or(default);
    let (nodes, ranges, dying) = (of(0, 1_000), of(1, 1_000_000), of(2, 10));
    let before = resident_mib();
    let mut bench = Bench::new(nodes, ranges);
    let own = resident_mib();
    println!("{nodes} nodes, {ranges} ranges of 3 replicas; the bench itself holds {} MiB", own - before);
    (1..=nodes).for_each(|node| bench.report_all(node));
    let (taken, memory) = (bench.spent.core, resident_mib() - own);
    let each = taken.as_secs_f64() * 1e6 / (ranges * 3) as f64;
    println!("all full reports: {:.1} s, {each:.2} us a replica; rounds included", taken.as_secs_f64());
    println!("memory: {memory} MiB, {} bytes a range", (memory << 20) / ranges);

    settle_down(&mut bench);
    quiet(&mut bench);
    one_report(&mut bench, nodes);
    sweep(&mut bench);
    added(&mut bench);
    deaths(&mut bench, &[nodes / 2]);
    // Not neighbours in the layout: no range loses its majority.
    let many: Vec<u64> = (0..dying).map(|at| 1 + at * (nodes / dying.max(1))).collect();
    deaths(&mut bench, &many);
    println!("memory at the end: {} MiB, the bench's own included", resident_mib());
}

/// What was not well from the start.
fn settle_down(bench: &mut Bench) {
    let (taken, carried) = bench.rounds_of(usize::MAX);
    println!("first orders: {carried} in {} rounds: {}", taken.len(), spread(&taken));
}

/// The middle one, the mean and the longest.
fn spread(taken: &[Taken]) -> String {
    let mut wall: Vec<Duration> = taken.iter().map(|taken| taken.wall).collect();
    wall.sort_unstable();
    let mean = |sum: Duration| sum / u32::try_from(taken.len().max(1)).unwrap_or(u32::MAX);
    let median = wall.get(wall.len() / 2).copied().unwrap_or_default();
    let longest = taken.iter().map(|taken| taken.core).max().unwrap_or_default();
    format!(
        "median {}, mean {}, longest {}",
        ms(median),
        ms(mean(taken.iter().map(|taken| taken.core).sum())),
        ms(longest)
    )
}

fn quiet(bench: &mut Bench) {
    println!("quiet round: {}", spread(&(0..300).map(|_| bench.round()).collect::<Vec<_>>()));
    let plan = Clock::now();
    let planned = bench.service.plan().len();
    println!("plan: {} ({planned} decisions)", ms(plan.elapsed().wall));
}

fn one_report(bench: &mut Bench, nodes: u64) {
    let mut taken = Vec::new();
    for at in 0..1_000 {
        let node = 1 + at % nodes;
        let range = bench.held[node as usize].iter().copied().nth(5).unwrap_or(1);
        if let Some(epoch) = bench.descriptors[range as usize - 1].epoch.as_mut() {
            epoch.conf_ver += 1;
        }
        // Far enough apart for a round after each.
        bench.now += Duration::from_millis(100);
        let spent = bench.spent;
        bench.report(node, &[range], false, false);
        let (wall, core) = (bench.spent.wall - spent.wall, bench.spent.core - spent.core);
        taken.push(Taken { wall, core });
    }
    println!("one report of one changed range, its round and answer: {}", spread(&taken));
}

/// Another setting of the keyspace has every range looked at.
fn sweep(bench: &mut Bench) {
    let set = v1::SetKeyspaceRequest { name: "default".into(), ..Default::default() };
    bench.service.request(bench.now, 1, Request::SetKeyspace(set));
    bench.settle();
    let rounds = bench.descriptors.len() / (2 * Config::default().ranges_per_round) + 1;
    let taken: Vec<Taken> = (0..rounds).map(|_| bench.round()).collect();
    println!("sweep over all ranges: {rounds} rounds: {}", spread(&taken));
}

/// A node comes, and gets its share.
fn added(bench: &mut Bench) {
    let node = bench.held.len() as u64;
    let own = record(node, bench.zones);
    let request = v1::JoinRequest {
        store_id: own.store_id,
        peer_addr: own.peer_addr,
        protocol_min: 1,
        protocol_max: 1,
        labels: own.labels,
        ..Default::default()
    };
    bench.service.request(bench.now, 1, Request::Join(request));
    bench.settle();
    bench.held.push(BTreeSet::new());
    bench.sequences.push(0);
    bench.nodes_versions.push(0);
    bench.report_all(node);
    bench.report(node, &[], true, false);
    let (taken, carried) = bench.rounds_of(usize::MAX);
    let held = bench.held[node as usize].len();
    println!("a node comes: {carried} orders in {} rounds, {held} replicas on it: {}", taken.len(), spread(&taken));
}

/// Nodes die, and what they held is made anew elsewhere.
fn deaths(bench: &mut Bench, dying: &[u64]) {
    bench.dead.extend(dying);
    let lost: usize = dying.iter().map(|node| bench.held[*node as usize].len()).sum();
    for (leader, descriptor) in bench.leaders[1..].iter_mut().zip(&bench.descriptors) {
        if bench.dead.contains(leader) {
            let mut live = descriptor.replicas.iter().map(|replica| replica.node_id);
            *leader = live.find(|node| !bench.dead.contains(node)).unwrap_or(0);
        }
    }
    bench.now += Duration::from_secs(290);
    // Others lead what they led.
    for node in (1..bench.held.len() as u64).filter(|node| !bench.dead.contains(node)).collect::<Vec<_>>() {
        let held = bench.held[node as usize].iter().copied();
        let with_dead = |range: &u64| {
            let replicas = &bench.descriptors[*range as usize - 1].replicas;
            replicas.iter().any(|replica| dying.contains(&replica.node_id))
        };
        let touched: Vec<u64> = held.filter(with_dead).collect();
        bench.report(node, &touched, false, false);
    }
    bench.now += Duration::from_secs(15);
    let (taken, repaired) = bench.rounds_of(lost);
    if repaired < lost {
        let short = bench
            .descriptors
            .iter()
            .find(|descriptor| descriptor.replicas.iter().any(|replica| bench.dead.contains(&replica.node_id)));
        println!("stuck: {:?}", short.map(|short| bench.service.explain(short.range_id)));
    }
    let (dying, rounds) = (dying.len(), taken.len());
    println!("{dying} nodes die, {lost} replicas: {repaired} orders in {rounds} rounds: {}", spread(&taken));
    // Whatever comes of it for balance.
    bench.rounds_of(usize::MAX);
}
