//! Three nodes: write, read, stop one, go on, restart it, catch up.

use std::collections::BTreeSet;
use std::time::Duration;

use flotilla_engine::config::{Config, ReadMode};
use flotilla_node::replies;
use flotilla_proto::{NodeId, RangeId, v1};

use crate::harness::{Cluster, DEADLINE, bytes_of, eventually, listener, put_body, settings};

fn key(number: usize) -> Vec<u8> {
    // Two characters of the borders' alphabet in front spread the keys over the ranges.
    let alphabet = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    format!("{}-{number}", alphabet[number * 7 % 62] as char).into_bytes()
}

fn value(number: usize) -> Vec<u8> {
    format!("value {number}").into_bytes()
}

async fn write_and_read(read_mode: ReadMode) -> Cluster {
    let cluster = Cluster::start(settings(read_mode), 4).await;
    for number in 0..20 {
        cluster.put(&key(number), &value(number)).await;
        assert_eq!(cluster.get(&key(number)).await, Some(value(number)));
    }
    assert_eq!(cluster.get(b"zzz-absent").await, None);
    cluster.level().await;
    for at in 0..3 {
        for number in 0..20 {
            assert_eq!(cluster.get_stale(at, &key(number)).await, Some(value(number)), "node {}", at + 1);
        }
    }
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_under_the_lease_see_every_write() {
    let cluster = write_and_read(ReadMode::Lease).await;
    let lease: u64 = cluster.running().map(|node| node.counters().reads_lease.get()).sum();
    assert!(lease > 0, "some reads were answered under a lease");
    for node in cluster.running() {
        let status = node.status();
        assert!(status.problems.is_empty(), "{:?}", status.problems);
        assert_eq!((status.ranges, status.ranges_without_leader), (4, 0));
        assert!(node.is_ready() && node.nodes().iter().all(|info| info.live));
        let counters = status.counters.expect("they are told");
        assert!(counters.wal_syncs > 0 && counters.cpu_micros > 0 && counters.disk_bytes_written > 0);
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_by_a_round_to_a_quorum_see_every_write() {
    let cluster = write_and_read(ReadMode::Quorum).await;
    let (quorum, lease) = cluster.running().fold((0, 0), |(quorum, lease), node| {
        (quorum + node.counters().reads_quorum.get(), lease + node.counters().reads_lease.get())
    });
    assert!(quorum >= 21 && lease == 0, "{quorum} by quorum, {lease} by lease");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_elsewhere_catches_up() {
    let mut cluster = Cluster::start(settings(ReadMode::Lease), 4).await;
    for number in 0..10 {
        cluster.put(&key(number), &value(number)).await;
    }
    // One that leads some, so that leaders have to move.
    let leads = |at: &usize| cluster.node(*at).status().ranges_led > 0;
    let away = (0..3).find(leads).expect("all ranges are led");
    cluster.stop_node(away).await;
    cluster.ready().await;
    for number in 10..30 {
        cluster.put(&key(number), &value(number)).await;
    }
    // At another port: the others are told by its handshake.
    cluster.start_node(away, listener()).await.expect("it resumes");
    assert!(!cluster.node(away).was_bootstrapped());
    cluster.ready().await;
    cluster.level().await;
    for number in 0..30 {
        assert_eq!(cluster.get_stale(away, &key(number)).await, Some(value(number)));
    }
    let address = cluster.node(away).peer_address().to_string();
    eventually("the others know where it is", || {
        let knows = |at| cluster.node(at).nodes().iter().any(|info| info.peer_addr == address && info.live);
        (0..3).filter(|at| *at != away).all(knows)
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_dropped_without_a_stop_loses_nothing_acknowledged() {
    let mut cluster = Cluster::start(settings(ReadMode::Lease), 2).await;
    for number in 0..10 {
        cluster.put(&key(number), &value(number)).await;
    }
    cluster.nodes[1] = None;
    cluster.ready().await;
    cluster.put(&key(10), &value(10)).await;
    let mut attempt = cluster.start_node(1, listener()).await;
    // Its threads let go of the directory on their own time.
    let deadline = tokio::time::Instant::now() + crate::harness::DEADLINE;
    while attempt.is_err() && tokio::time::Instant::now() < deadline {
        tokio::task::yield_now().await;
        attempt = cluster.start_node(1, listener()).await;
    }
    attempt.expect("it starts again");
    cluster.ready().await;
    cluster.level().await;
    for number in 0..11 {
        assert_eq!(cluster.get_stale(1, &key(number)).await, Some(value(number)));
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_missed_more_than_the_log_holds_gets_a_snapshot() {
    let engine = Config {
        log_retain_entries: 8,
        log_retain_bytes: 4 << 10,
        log_lagging_bytes_max: 16 << 10,
        ..settings(ReadMode::Lease)
    };
    let mut cluster = Cluster::start(engine, 1).await;
    cluster.put(b"before", b"1").await;
    cluster.stop_node(2).await;
    cluster.ready().await;
    // Over 2 MiB in all, so that the snapshot has more than one chunk.
    for number in 0..40 {
        cluster.put(format!("key-{number:03}").as_bytes(), &vec![number as u8; 64 << 10]).await;
    }
    cluster.put(b"after", b"2").await;
    cluster.start_node(2, listener()).await.expect("it resumes");
    eventually("the snapshot is applied", || cluster.node(2).counters().snapshots_applied.get() > 0).await;
    cluster.ready().await;
    cluster.level().await;
    assert_eq!(cluster.get_stale(2, b"before").await, Some(b"1".to_vec()));
    assert_eq!(cluster.get_stale(2, b"after").await, Some(b"2".to_vec()));
    for number in 0..40 {
        let stored = cluster.get_stale(2, format!("key-{number:03}").as_bytes()).await;
        assert_eq!(stored, Some(vec![number as u8; 64 << 10]));
    }
    let sent: u64 = cluster.running().map(|node| node.counters().snapshots_sent.get()).sum();
    assert!(sent > 0);
    cluster.stop().await;
}

/// Whoever waits for the checksums of a replica that got its state from a snapshot, past the check's index, would wait
/// until the time is over, and call the range not compared.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_that_a_snapshot_overtook_is_told_so() {
    let engine = Config { log_retain_entries: 8, log_retain_bytes: 4 << 10, ..settings(ReadMode::Lease) };
    let engine = Config { log_lagging_bytes_max: 16 << 10, ..engine };
    let mut cluster = Cluster::start(engine, 1).await;
    cluster.put(b"before", b"1").await;
    cluster.stop_node(2).await;
    cluster.ready().await;
    let range = RangeId(cluster.range_of(b"").range_id);
    let leader = cluster.running().find(|node| node.leads(range) == Some(true)).expect("one leads");
    let check = leader.check(range, DEADLINE).await.expect("two nodes are a majority");
    let own = leader.checksums(range, check, DEADLINE).await.expect("it applied the check");
    assert!(own.index == check.index && !own.spans.is_empty(), "{own:?}");
    for number in 0..40 {
        cluster.put(format!("key-{number:03}").as_bytes(), &vec![number as u8; 64 << 10]).await;
    }
    cluster.start_node(2, listener()).await.expect("it resumes");
    let answer = cluster.node(2).checksums(range, check, DEADLINE).await.expect("it has come past the check");
    assert!(answer.index > check.index && answer.spans.is_empty(), "{answer:?}, {check:?}");
    assert!(cluster.node(2).counters().snapshots_applied.get() > 0);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_requests_is_answered_in_groups_and_whole() {
    let cluster = Cluster::start(settings(ReadMode::Lease), 4).await;
    let (sink, mut answers) = replies();
    let mut open = BTreeSet::new();
    // Together no more than an idle node always takes.
    for round in 0..2_usize {
        let mut by_leader: Vec<(NodeId, Vec<v1::Request>)> = Vec::new();
        for number in round * 50..(round + 1) * 50 {
            let header = cluster.header(&key(number), v1::ReadConsistency::Linearizable);
            let leader = cluster.node(0).leader(RangeId(header.range_id)).expect("known");
            let request = v1::Request { id: number as u64, body: Some(put_body(header, &key(number), &value(number))) };
            open.insert(request.id);
            match by_leader.iter_mut().find(|(node, _)| *node == leader) {
                Some((_, requests)) => requests.push(request),
                None => by_leader.push((leader, vec![request])),
            }
        }
        for (leader, requests) in by_leader {
            cluster.running().find(|node| node.node_id() == leader).expect("it runs").submit(requests, &sink);
        }
        sink.room(1_000, usize::MAX).await;
    }
    drop(sink);
    let mut groups = 0;
    while let Some(group) = answers.next().await {
        groups += 1;
        for answer in group {
            assert!(open.remove(&answer.id), "answered once");
            assert!(matches!(answer.body, Some(v1::response::Body::Write(_))), "{answer:?}");
        }
    }
    assert!(open.is_empty(), "all are answered");
    assert!(groups < 100, "{groups} groups for 100 answers");
    let syncs: u64 = cluster.running().map(|node| node.counters().wal_syncs.get()).sum();
    let batches: u64 = cluster.running().map(|node| node.counters().log_batches.get()).sum();
    assert!(syncs <= batches);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_where_it_is_told_to() {
    let cluster = Cluster::start(settings(ReadMode::Lease), 1).await;
    cluster.put(b"a", b"1").await;
    let range = RangeId(cluster.range_of(b"a").range_id);
    let from = cluster.running().find(|node| node.leads(range) == Some(true)).expect("one leads");
    let to = cluster.running().find(|node| node.leads(range) == Some(false)).expect("others follow");
    let error = to.transfer_leader(range, from.node_id(), Duration::from_secs(5)).await.expect_err("it does not lead");
    assert_eq!(error.kind(), v1::ErrorKind::NotLeader);
    let moved = from.transfer_leader(range, to.node_id(), Duration::from_secs(10)).await.expect("it moves");
    assert_eq!(moved.leader_node_id, to.node_id().0);
    cluster.put(b"a", b"2").await;
    assert_eq!(cluster.get(b"a").await, Some(b"2".to_vec()));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_cannot_be_carried_out_say_why() {
    let cluster = Cluster::start(settings(ReadMode::Lease), 1).await;
    cluster.put(b"a", b"1").await;
    let good = cluster.header(b"a", v1::ReadConsistency::Linearizable);
    let range = RangeId(good.range_id);
    let leader = cluster.running().find(|node| node.leads(range) == Some(true)).expect("one leads");
    let follower = cluster.running().find(|node| node.leads(range) == Some(false)).expect("others follow");
    let unrouted = v1::RequestHeader { range_id: 0, ..good.clone() };
    let elsewhere = v1::RequestHeader { range_id: 999, ..good.clone() };
    let outdated = v1::RequestHeader { epoch: Some(v1::Epoch { conf_ver: 1, version: 9 }), ..good.clone() };
    for (node, header, kind) in [
        (leader, unrouted, v1::ErrorKind::InvalidArgument),
        (leader, elsewhere, v1::ErrorKind::RangeNotFound),
        (leader, outdated, v1::ErrorKind::EpochMismatch),
        (follower, good, v1::ErrorKind::NotLeader),
    ] {
        let get = v1::request::Body::Get(v1::GetRequest { header: Some(header.clone()), key: bytes_of(b"a") });
        for body in [get, put_body(header, b"a", b"2")] {
            let response = node.execute(v1::Request { id: 1, body: Some(body) }).await;
            let Some(v1::response::Body::Error(error)) = response.body else { panic!("{response:?}") };
            assert_eq!(error.kind(), kind);
        }
    }
    let header = cluster.header(b"a", v1::ReadConsistency::Linearizable);
    let huge = put_body(header, b"a", &vec![0; 9 << 20]);
    for body in [None, Some(huge)] {
        let response = leader.execute(v1::Request { id: 1, body }).await;
        let Some(v1::response::Body::Error(error)) = response.body else { panic!("{response:?}") };
        assert_eq!(error.kind(), v1::ErrorKind::InvalidArgument);
    }
    cluster.stop().await;
}
