//! A disk that fails a sync, and one that runs full.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flotilla_engine::config::ReadMode;
use flotilla_node::{LocalStorage, Node, NodeConfig};
use flotilla_proto::{NodeId, v1};
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::faulty::{Call, Faulty, Gate};
use crate::harness::{Cluster, DEADLINE, bytes_of, eventually, laid_out, listener, put_body, settings};

/// A cluster of one node.
fn single(directory: &std::path::Path) -> NodeConfig {
    let listener = listener();
    let address = listener.local_addr().expect("it is bound").to_string();
    let mut config = NodeConfig::new(directory, NodeId(1), Handle::current(), listener);
    config.birth = Some(laid_out("flotilla", NodeId(1), &[(NodeId(1), address)], 1, 1));
    config.engine = settings(ReadMode::Lease);
    config.memory_bytes = 32 << 20;
    config.ballast_bytes = Some(0);
    config.disk_margin_bytes = Some(1);
    config
}

fn cluster_of<S: LocalStorage>(directory: tempfile::TempDir, node: Node<S>) -> Cluster<S> {
    let members = vec![(NodeId(1), node.peer_address().to_string())];
    Cluster { directory, members, nodes: vec![Some(node)], engine: settings(ReadMode::Lease), ranges: 1 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_stops_the_store_for_good_and_says_so() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = single(&directory.path().join("node1"));
    let fails = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&fails);
    let gate: Gate = Arc::new(move |call| call == Call::Sync && fails.load(Ordering::Relaxed));
    let started = tokio::task::spawn_blocking(|| Node::start_on(config, |storage| Faulty::new(storage, gate)));
    let node = started.await.expect("it does not panic").expect("it starts");
    let cluster = cluster_of(directory, node.clone());
    cluster.ready().await;
    cluster.put(b"a", b"1").await;
    assert_eq!(cluster.get(b"a").await, Some(b"1".to_vec()));

    switch.store(true, Ordering::Relaxed);
    let header = cluster.header(b"a", v1::ReadConsistency::Linearizable);
    let write = v1::Request { id: 1, body: Some(put_body(header.clone(), b"a", b"2")) };
    let answer = timeout(DEADLINE, node.execute(write)).await.expect("it is answered");
    let Some(v1::response::Body::Error(error)) = answer.body else { panic!("{answer:?}") };
    assert_eq!(error.action(), v1::ErrorAction::Ambiguous, "nobody knows what is on disk: {error:?}");

    let reason = timeout(DEADLINE, node.failed()).await.expect("it tells");
    assert!(reason.contains("could not be made durable") && reason.contains("injected"), "{reason}");
    assert_eq!(node.failure(), Some(reason.clone()));
    assert!(!node.is_ready());
    assert!(node.status().problems.iter().any(|problem| problem.contains("injected")));
    let get = v1::request::Body::Get(v1::GetRequest { header: Some(header.clone()), key: bytes_of(b"a") });
    for body in [get, put_body(header, b"a", b"3")] {
        let answer = node.execute(v1::Request { id: 2, body: Some(body) }).await;
        let Some(v1::response::Body::Error(error)) = answer.body else { panic!("{answer:?}") };
        assert_eq!(error.kind(), v1::ErrorKind::Unavailable, "{error:?}");
    }
    assert_eq!(timeout(DEADLINE, node.stop()).await.expect("it ends"), Err(reason));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_at_its_margin_refuses_writes_and_serves_reads() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("node1");
    let node = tokio::task::spawn_blocking({
        let config = single(&path);
        || Node::start(config)
    });
    let node = node.await.expect("it does not panic").expect("it starts");
    let mut cluster = cluster_of(directory, node);
    cluster.ready().await;
    cluster.put(b"a", b"1").await;
    cluster.stop_node(0).await;

    let mut config = single(&path);
    config.disk_margin_bytes = Some(u64::MAX);
    let node = tokio::task::spawn_blocking(|| Node::start(config)).await.expect("no panic").expect("it starts");
    cluster.nodes[0] = Some(node.clone());
    cluster.ready().await;
    eventually("the disk is at its margin", || node.nodes()[0].disk_full).await;
    let mut refused = None;
    eventually("writes are refused", || {
        let header = cluster.header(b"a", v1::ReadConsistency::Linearizable);
        let request = v1::Request { id: 1, body: Some(put_body(header, b"a", b"2")) };
        let node = node.clone();
        let answer = tokio::task::block_in_place(|| Handle::current().block_on(node.execute(request)));
        refused = match answer.body {
            Some(v1::response::Body::Error(error)) => Some(error),
            _ => None,
        };
        refused.as_ref().is_some_and(|error| error.kind() == v1::ErrorKind::DiskFull)
    })
    .await;
    assert!(cluster.get(b"a").await.is_some());
    assert!(node.status().problems.iter().any(|problem| problem.contains("margin")));
    cluster.stop().await;
}
