//! The cost of decisions in a large cluster, counted in what they look at; the time is printed.

use std::time::Duration;

use flotilla_placement::{Bootstrap, Config, Outcome, Request, Response, Service};
use flotilla_proto::v1;

use crate::toy::{CLUSTER, Records};

const NODES: u64 = 1_000;
const RANGES: u32 = 100_000;

fn record(node: u64) -> v1::NodeRecord {
    v1::NodeRecord { node_id: node, store_id: 100 + node, peer_addr: format!("n{node}:1"), ..Default::default() }
}

fn settle(service: &mut Service, records: &mut Records, now: Duration) -> Vec<flotilla_placement::Answer> {
    let mut answers = Vec::new();
    loop {
        let effects = service.take_effects();
        answers.extend(effects.answers);
        let Some(write) = effects.writes.into_iter().next() else { return answers };
        assert!(write.request.ops.len() <= 1_024);
        assert!(records.apply(&write.request));
        service.written(now, write.id, Outcome::Applied);
    }
}

fn report(node: u64, descriptors: &[v1::RangeDescriptor]) -> v1::ReportRequest {
    let ranges = descriptors.iter().map(|descriptor| v1::RangeReport {
        descriptor: Some(descriptor.clone()),
        replica_id: 1,
        term: 1,
        leader_node_id: descriptor.replicas[0].node_id,
        data_bytes: 1 << 20,
        level_nodes: descriptor.replicas.iter().map(|replica| replica.node_id).collect(),
        ..Default::default()
    });
    v1::ReportRequest {
        cluster_id: CLUSTER,
        node: Some(v1::NodeInfo { node_id: node, boot_id: 1, peer_addr: format!("n{node}:1"), ..Default::default() }),
        store_id: 100 + node,
        sequence: 1,
        full: true,
        ranges: ranges.collect(),
        ..Default::default()
    }
}

#[test]
#[allow(clippy::disallowed_methods, reason = "the time is printed for people; nothing depends on it")]
fn a_round_over_a_thousand_nodes_and_a_hundred_thousand_ranges() {
    let bootstrap = Bootstrap {
        cluster_id: CLUSTER,
        cluster_name: "large".into(),
        node: record(1),
        replicas: 3,
        split_bytes: 0,
        ranges: RANGES,
    };
    let mut records = Records::default();
    records.seed(bootstrap.first_records());
    records.seed(
        (2..=NODES)
            .map(|node| flotilla_placement::Change::Node(record(node)).encode())
            .map(|(key, value)| (key, value.expect("a record")))
            .collect(),
    );
    let mut held: Vec<Vec<v1::RangeDescriptor>> = vec![Vec::new(); NODES as usize + 1];
    for (at, mut descriptor) in bootstrap.first_ranges().into_iter().enumerate() {
        let nodes = [0, 1, 2].map(|step| 1 + (at as u64 + step * 7) % NODES);
        descriptor.replicas = nodes
            .iter()
            .zip(1..)
            .map(|(node, id)| v1::ReplicaDescriptor { replica_id: id, node_id: *node, role: 0 })
            .collect();
        descriptor.next_replica_id = 4;
        for node in nodes {
            held[node as usize].push(descriptor.clone());
        }
    }
    let now = Duration::from_secs(1);
    // Small pages: not the answers are looked at here.
    let config = Config { answer_routes_bytes: 10_000, ..Config::default() };
    let mut service = Service::load(1, records.all(), now, config).expect("valid");
    let mut longest = Duration::ZERO;
    let begun = std::time::Instant::now();
    for node in 1..=NODES {
        let request = report(node, &held[node as usize]);
        service.request(now, node, Request::Report(Box::new(request)));
        settle(&mut service, &mut records, now);
    }
    let taken = begun.elapsed();
    assert!(service.complete());
    let mut quiet = 0;
    let mut rounds = 0;
    while quiet < 60 {
        let now = now + Duration::from_millis(100) * (rounds + 1);
        let begun = std::time::Instant::now();
        service.tick(now);
        longest = longest.max(begun.elapsed());
        rounds += 1;
        quiet += 1;
        settle(&mut service, &mut records, now);
    }
    // Node 5 dies: its 300 ranges need replacements, in one round as many as the slots of other nodes allow.
    let later = Duration::from_secs(1_000);
    for node in (1..=NODES).filter(|node| *node != 5) {
        let mut request = report(node, &[]);
        (request.sequence, request.full, request.reign) = (2, false, reign_of(&mut service, &mut records, later, node));
        service.request(later, 10_000 + node, Request::Report(Box::new(request)));
        settle(&mut service, &mut records, later);
    }
    let begun = std::time::Instant::now();
    service.tick(later + Duration::from_secs(1));
    let repair = begun.elapsed();
    settle(&mut service, &mut records, later);
    println!(
        "{RANGES} ranges on {NODES} nodes: all full reports {taken:?}, longest idle round {longest:?}, \
         round with a dead node {repair:?}, {} orders",
        service.orders().len()
    );
    assert!(service.orders().len() == 64, "{} orders", service.orders().len());
    assert!(service.orders().iter().all(|order| order.reason.contains("dead: node 5")), "{:?}", service.orders()[0]);
}

/// The reign that the service tells nodes, from an answer to a repeated report.
fn reign_of(service: &mut Service, records: &mut Records, now: Duration, node: u64) -> u64 {
    let mut request = report(node, &[]);
    (request.sequence, request.full) = (1, false);
    service.request(now, 20_000 + node, Request::Report(Box::new(request)));
    let answers = settle(service, records, now);
    answers
        .iter()
        .find_map(|answer| match &answer.result {
            Ok(Response::Report(answer)) => Some(answer.reign),
            _ => None,
        })
        .expect("an answer")
}
