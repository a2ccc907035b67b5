//! A node whose data directory was emptied and laid out anew under its old id: the others refuse it,
//! and it stops.

use std::net::{SocketAddr, TcpListener};

use flotilla_engine::config::ReadMode;
use flotilla_node::{Node, NodeConfig};
use tokio::time::timeout;

use crate::harness::{Cluster, DEADLINE, eventually, listener, settings};

const WORDS: &str = "node 2 is known with another store: its data directory was replaced";

/// Three nodes that have all met.
async fn acquainted() -> Cluster {
    let cluster = Cluster::start(settings(ReadMode::Lease), 3).await;
    met(&cluster).await;
    cluster
}

async fn met(cluster: &Cluster) {
    let all_live = |node: &Node| node.nodes().iter().all(|info| info.live);
    eventually("all are connected", || cluster.running().all(all_live)).await;
}

fn bound(address: SocketAddr) -> TcpListener {
    TcpListener::bind(address).expect("the port is free again")
}

/// Starts a node, and returns why its store stopped.
async fn fate_of(config: NodeConfig) -> String {
    let node: Node = tokio::task::spawn_blocking(|| Node::start(config)).await.expect("no panic").expect("it starts");
    assert!(node.was_bootstrapped());
    let reason = timeout(DEADLINE, node.failed()).await.expect("it is told in time");
    assert!(!node.is_ready());
    assert!(node.status().problems.iter().any(|problem| problem.contains(WORDS)));
    assert_eq!(node.stop().await, Err(reason.clone()));
    reason
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_without_its_data_is_refused_and_stops() {
    let mut cluster = acquainted().await;
    cluster.put(b"a", b"1").await;
    cluster.level().await;
    cluster.stop_node(1).await;
    let (kept, data) = (cluster.directory.path().join("kept"), cluster.data_dir(1));
    std::fs::rename(&data, &kept).expect("renamed");
    // What the others remember is on their disks.
    let address = cluster.node(2).peer_address();
    cluster.stop_node(2).await;
    cluster.start_node(2, bound(address)).await.expect("it resumes");
    cluster.ready().await;

    let reason = fate_of(cluster.config(1, listener())).await;
    assert!(reason.contains("refuses this one") && reason.contains(WORDS), "{reason}");
    eventually("another node tells of it", || {
        cluster.running().any(|node| node.status().problems.iter().any(|problem| problem.contains(WORDS)))
    })
    .await;
    cluster.put(b"a", b"2").await;
    assert_eq!(cluster.get(b"a").await, Some(b"2".to_vec()));

    // With its own data it belongs.
    std::fs::remove_dir_all(&data).expect("removed");
    std::fs::rename(&kept, &data).expect("renamed");
    cluster.start_node(1, listener()).await.expect("it resumes");
    met(&cluster).await;
    cluster.ready().await;
    cluster.level().await;
    assert_eq!(cluster.get_stale(1, b"a").await, Some(b"2".to_vec()));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_its_data_that_is_only_dialled_is_told_too() {
    let mut cluster = acquainted().await;
    let address = cluster.node(1).peer_address();
    cluster.stop_node(1).await;
    std::fs::remove_dir_all(cluster.data_dir(1)).expect("removed");
    let mut config = cluster.config(1, bound(address));
    for node in &mut config.birth.as_mut().expect("it is to be made").known.nodes {
        if node.node_id != config.node_id.0 {
            // Nobody listens there once the listener is gone.
            node.peer_addr = listener().local_addr().expect("it is bound").to_string();
        }
    }
    let reason = fate_of(config).await;
    assert!(reason.contains(WORDS), "{reason}");
    cluster.ready().await;
    cluster.put(b"a", b"1").await;
    cluster.stop().await;
}
