//! What an operator does and sees: the layout, leaders that are moved, stops in order, nodes that are down and come
//! back, metrics and health.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flotilla_proto::ids::DEFAULT_KEYSPACE;
use flotilla_proto::{NodeId, RangeId, v1};
use flotilla_router::{Client, ClientConfig, Consistency};

use crate::support::cli::at;
use crate::support::cluster::{Cluster, http_get};
use crate::support::{PATIENCE, eventually_async, runtime};

/// A client that asks one node alone for what it knows.
async fn asking(cluster: &Cluster, node: u64) -> Client {
    let config = ClientConfig { timeout: Duration::from_secs(20), ..ClientConfig::default() };
    Client::connect([cluster.node(node).client.clone()], config).await.expect("the node runs")
}

/// The ranges of the default keyspace, in key order, as one node knows them.
async fn ranges(client: &Client) -> Vec<v1::RangeStatus> {
    let mut ranges = client.list_ranges().await.expect("it answers").ranges;
    let keyspace = |status: &v1::RangeStatus| status.descriptor.as_ref().map_or(0, |range| range.keyspace_id);
    ranges.retain(|status| keyspace(status) == DEFAULT_KEYSPACE.0);
    ranges
}

/// Range -> leader, as these nodes say of themselves.
async fn leaders(cluster: &Cluster, nodes: &[u64]) -> BTreeMap<u64, u64> {
    let mut leaders = BTreeMap::new();
    for node in nodes {
        let ranges = asking(cluster, *node).await.list_ranges().await.expect("the node runs").ranges;
        for status in ranges {
            let range = status.descriptor.expect("ranges have descriptors").range_id;
            let known: &mut u64 = leaders.entry(range).or_default();
            if status.leader_node_id == *node {
                *known = *node;
            }
        }
    }
    leaders
}

#[test]
fn a_new_cluster_serves_and_its_leaders_move_when_told_and_when_a_node_stops() {
    let mut cluster = Cluster::three();
    let runtime = runtime();
    runtime.block_on(async {
        layout(&cluster).await;
        transfer(&cluster).await;
        metrics(&cluster).await;
    });
    stop_in_order(&mut cluster, &runtime);
}

/// Sixteen ranges that hold every key once, and the system range; three replicas each, leaders on all nodes.
async fn layout(cluster: &Cluster) {
    let client = asking(cluster, 2).await;
    let ranges = ranges(&client).await;
    assert_eq!((ranges.len(), client.list_ranges().await.expect("it answers").ranges.len()), (16, 17));
    let mut next = bytes::Bytes::new();
    for status in &ranges {
        let range = status.descriptor.as_ref().expect("ranges have descriptors");
        assert_eq!(range.start, next, "ranges tile the keyspace");
        next = range.end.clone();
        let nodes: BTreeSet<u64> = range.replicas.iter().map(|replica| replica.node_id).collect();
        assert_eq!(nodes, BTreeSet::from([1, 2, 3]));
    }
    assert!(next.is_empty(), "the last range has no end");
    eventually_async("every node to lead its share", || async {
        let mut led = BTreeMap::<u64, usize>::new();
        for leader in leaders(cluster, &[1, 2, 3]).await.values() {
            *led.entry(*leader).or_default() += 1;
        }
        (1..=3).all(|node| led.get(&node).is_some_and(|led| (4..=8).contains(led)))
    })
    .await;
    let mut nodes = client.list_nodes().await.expect("it answers");
    nodes.sort_by_key(|node| node.node_id);
    for (node, expected) in nodes.iter().zip(cluster.nodes()) {
        assert_eq!(node.node_id, expected.id);
        assert_eq!((&node.client_addr, &node.peer_addr), (&expected.client, &expected.peer));
        assert!(node.live && !node.disk_full && !node.version.is_empty(), "{node:?}");
    }
    for node in 1..=3 {
        let status = client.node_status(NodeId(node)).await.expect("it answers");
        assert_eq!(status.problems, Vec::<String>::new());
        assert_eq!((status.ranges, status.ranges_without_leader), (17, 0));
    }
}

/// A leader that is moved round all nodes: reads see every write on the way.
async fn transfer(cluster: &Cluster) {
    let client = asking(cluster, 1).await;
    let range = ranges(&client).await[3].descriptor.clone().expect("it has one");
    let key = range.start.clone();
    for (round, to) in [2, 3, 1, 2, 3].into_iter().enumerate() {
        let value = format!("round {round}");
        client.put(key.clone(), value.clone()).await.expect("it writes");
        let moved = client.transfer_leader(RangeId(range.range_id), NodeId(to)).await.expect("all nodes are up");
        assert_eq!(moved.leader_node_id, to);
        let record = client.get(key.clone()).await.expect("it reads").expect("it is there");
        assert_eq!(record.value, value);
        assert_eq!(leaders(cluster, &[to]).await[&range.range_id], to);
    }
    let status = client.get_range(RangeId(range.range_id), None).await.expect("its leader answers");
    let replica = status.replica.expect("the leader's own");
    assert_eq!((replica.node_id, &replica.role[..]), (3, "leader"));
    assert_eq!(replica.followers.len(), 2, "{replica:?}");
}

async fn metrics(cluster: &Cluster) {
    let http = |path| http_get(&cluster.node(1).http, path).expect("it answers");
    assert_eq!(http("/healthz"), (200, "ok\n".into()));
    assert_eq!(http("/readyz"), (200, "ready\n".into()));
    assert_eq!(http("/nothing").0, 404);
    let before = parse_metrics(&http("/metrics").1);
    asking(cluster, 1).await.put("metrics", "x").await.expect("it writes");
    let after = parse_metrics(&http("/metrics").1);
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>(), "the same names every time");
    for (name, value) in after.iter().filter(|(name, _)| name.ends_with("_total")) {
        assert!(*value >= before[name], "{name} fell from {} to {value}", before[name]);
    }
    assert_eq!(after["flotilla_ranges"], 17.0);
    assert_eq!(after["flotilla_nodes_live"], 3.0);
    assert!(after["flotilla_wal_syncs_total"] > 0.0);
}

/// Reads Prometheus' text format strictly: HELP and TYPE before the samples, units in names, buckets that grow.
fn parse_metrics(text: &str) -> BTreeMap<String, f64> {
    let (mut samples, mut kinds, mut helped) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    let mut bucket = (String::new(), 0.0);
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, words) = help.split_once(' ').expect("HELP NAME WORDS");
            assert!(words.len() > 10, "{line}");
            assert!(helped.insert(name), "{name} stands there twice");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("TYPE NAME KIND");
            let unit = name.rsplit('_').next().expect("a word");
            assert!(name.starts_with("flotilla_"), "{line}");
            match kind {
                "counter" => assert_eq!(unit, "total", "{line}"),
                "histogram" => assert!(["seconds", "bytes", "entries"].contains(&unit), "{line}"),
                kind => assert_eq!(kind, "gauge", "{line}"),
            }
            kinds.insert(name, kind);
        } else {
            let (series, value) = line.rsplit_once(' ').expect("NAME VALUE");
            let value: f64 = value.parse().expect("a number");
            let name = series.split('{').next().expect("a name");
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|ending| name.strip_suffix(ending));
            let family = base.filter(|base| kinds.get(base) == Some(&"histogram")).unwrap_or(name);
            assert!(kinds.contains_key(family) && helped.contains(family), "no TYPE or HELP before {line}");
            if name.ends_with("_bucket") {
                assert!(bucket.0 != name || bucket.1 <= value, "buckets are cumulative: {line}");
                bucket = (name.to_owned(), value);
            }
            if name.ends_with("_count") && name != family {
                assert_eq!(bucket.1, value, "the last bucket holds all: {line}");
            }
            samples.insert(series.to_owned(), value);
        }
    }
    assert!(samples.len() > 30, "{text}");
    samples
}

/// SIGTERM: exit code 0, leaders handed over before the end, and writers that notice nothing.
fn stop_in_order(cluster: &mut Cluster, runtime: &tokio::runtime::Runtime) {
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let client = runtime.block_on(asking(cluster, 1));
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            runtime.spawn(async move {
                let mut number = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    let letter = char::from(b'A' + (number % 26) as u8);
                    client.put(format!("{letter}{writer}"), number.to_string()).await.expect("a stop breaks no write");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let begun = Instant::now();
    assert_eq!(cluster.terminate(2), Some(0), "{}", cluster.log(2));
    println!("the stop took {:?}, {} writes meanwhile", begun.elapsed(), done.load(Ordering::Relaxed));
    // It saw for itself who leads instead of it: none of them was elected by a time-out.
    let log = cluster.log(2);
    let told = log.lines().rfind(|line| line.contains("leaders were handed over")).expect("it says so");
    assert!(!told.contains("led=0 ") && told.contains("kept=0"), "{told}");
    // Just then placement may move leaders of its own accord: which of them were here is not known.
    runtime.block_on(eventually_async("every range to be led", || async {
        leaders(cluster, &[1, 3]).await.values().all(|leader| *leader != 0)
    }));
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        runtime.block_on(writer).expect("no write failed");
    }
    // Back again: no damage, and it takes part.
    cluster.start_all();
    assert!(!cluster.log(2).contains("torn"), "a stop in order leaves no torn end: {}", cluster.log(2));
}

#[test]
fn a_node_that_was_down_is_reported_and_catches_up_by_snapshot() {
    let mut cluster = Cluster::three();
    let runtime = runtime();
    let range = runtime.block_on(async {
        let client = asking(&cluster, 1).await;
        let range = ranges(&client).await[5].descriptor.clone().expect("it has one");
        client.put(range.start.clone(), "before").await.expect("it writes");
        range
    });
    cluster.kill(3);
    runtime.block_on(reported(&cluster));
    runtime.block_on(leave_behind(&cluster, &range));
    cluster.start(3);
    cluster.wait_ready();
    runtime.block_on(caught_up(&cluster, &range));
}

/// What the others say of a node that is down.
async fn reported(cluster: &Cluster) {
    eventually_async("the others to notice", || async {
        let nodes = asking(cluster, 1).await.list_nodes().await.expect("it answers");
        nodes.iter().any(|node| node.node_id == 3 && !node.live)
    })
    .await;
    eventually_async("the ranges to have leaders again", || async {
        leaders(cluster, &[1, 2]).await.values().all(|leader| *leader != 0)
    })
    .await;
    for node in [1, 2] {
        let status = asking(cluster, node).await.node_status(NodeId(node)).await.expect("it answers");
        let named = status.problems.iter().any(|line| line.contains("no connection to node 3"));
        assert!(named, "{:?}", status.problems);
    }
    let address = &cluster.node(1).client;
    let told = at(address, &["status"]).exits(0);
    assert!(told.text().starts_with("node 3 is down ("), "{told:?}");
    assert!(told.text().contains("17 ranges lack the replica on node 3"), "{told:?}");
    at(address, &["status", "--check"]).fails(1, &["need a person", "hint:"]);
    let json = at(address, &["status", "--output", "json"]).exits(0).json();
    assert_eq!((&json["ok"], &json["nodes_up"]), (&false.into(), &2.into()));
}

/// Writes so much to one range that the log no longer reaches back to what the absent node has.
async fn leave_behind(cluster: &Cluster, range: &v1::RangeDescriptor) {
    let client = asking(cluster, 1).await;
    let id = RangeId(range.range_id);
    let absent = client.get_range(id, Some(NodeId(1))).await.expect("it answers").replica.expect("a replica");
    let leader = leaders(cluster, &[1, 2]).await[&range.range_id];
    let follower = 3 - leader;
    for number in 0..6 {
        let key = [&range.start[..], format!("large/{number}").as_bytes()].concat();
        client.put(key, vec![number; 1 << 20]).await.expect("two nodes are a majority");
    }
    // A leader keeps more of its log for who is behind; a follower does not, and then leads.
    eventually_async("the follower to cut its log", || async {
        client.put(range.start.clone(), "after").await.expect("two nodes are a majority");
        let replica = client.get_range(id, Some(NodeId(follower))).await.expect("it answers").replica;
        replica.expect("a replica").truncated_index > absent.last_index
    })
    .await;
    client.transfer_leader(id, NodeId(follower)).await.expect("it is level");
}

async fn caught_up(cluster: &Cluster, range: &v1::RangeDescriptor) {
    let client = asking(cluster, 3).await;
    eventually_async("a snapshot to be applied", || async {
        let status = client.node_status(NodeId(3)).await.expect("it answers");
        status.counters.expect("they are always there").snapshots_applied > 0
    })
    .await;
    // Read from that replica itself.
    let stale = client.with_consistency(Consistency::Stale);
    for number in 0..6 {
        let key = [&range.start[..], format!("large/{number}").as_bytes()].concat();
        let record = stale.get(key).await.expect("it reads").expect("the snapshot holds it");
        assert!(record.value.len() == 1 << 20 && record.value.iter().all(|byte| *byte == number));
    }
    eventually_async("its replica to be level", || async {
        let id = RangeId(range.range_id);
        let mut states = Vec::new();
        for node in 1..=3 {
            let replica = client.get_range(id, Some(NodeId(node))).await.expect("it answers").replica;
            states.push(replica.map(|replica| (replica.applied_index, replica.applied_checksum)));
        }
        states.windows(2).all(|pair| pair[0] == pair[1])
    })
    .await;
    let begun = Instant::now();
    loop {
        let told = at(&cluster.node(1).client, &["status", "--check"]);
        if told.code == 0 {
            assert_eq!(told.text(), "ok: 3 nodes up, 17 ranges led, 3 replicas each\n");
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "all is well again, but: {}", told.text());
    }
}
