//! A network that swallows all that goes to one node, without a word: noticed, and forgotten once it is
//! over. What that node itself sends still arrives.

use std::net::SocketAddr;
use std::sync::Arc;

use flotilla_engine::config::ReadMode;
use flotilla_node::Node;
use flotilla_proto::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, tcp};
use tokio::sync::watch;

use crate::harness::{Cluster, eventually, listener, settings};

/// Stands in front of a node; what comes while it is shut waits.
struct Gate {
    address: SocketAddr,
    open: Arc<watch::Sender<bool>>,
}

impl Gate {
    async fn before(target: SocketAddr) -> Self {
        let door = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = door.local_addr().expect("it is bound");
        let open = Arc::new(watch::Sender::new(true));
        let gate = Self { address, open: Arc::clone(&open) };
        tokio::spawn(async move {
            while let Ok((outside, _)) = door.accept().await {
                let Ok(inside) = TcpStream::connect(target).await else { continue };
                let ((from_out, to_out), (from_in, to_in)) = (outside.into_split(), inside.into_split());
                tokio::spawn(carry(from_out, to_in, open.subscribe()));
                tokio::spawn(carry(from_in, to_out, open.subscribe()));
            }
        });
        gate
    }
}

async fn carry(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, mut open: watch::Receiver<bool>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(bytes @ 1..) = from.read(&mut buffer).await {
        if open.wait_for(|open| *open).await.is_err() || to.write_all(&buffer[..bytes]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_partition_is_noticed_and_heals() {
    let (doors, behind) = ([listener(), listener(), listener()], listener());
    let mut members: Vec<(NodeId, String)> =
        (1..).map(NodeId).zip(doors.iter().map(|door| door.local_addr().expect("it is bound").to_string())).collect();
    let gate = Gate::before(behind.local_addr().expect("it is bound")).await;
    members[2].1 = gate.address.to_string();
    let mut cluster = Cluster {
        directory: tempfile::tempdir().expect("a temporary directory"),
        members,
        nodes: vec![None, None, None],
        engine: settings(ReadMode::Lease),
        ranges: 1,
    };
    let [first, second, _] = doors;
    for (at, door) in [first, second, behind].into_iter().enumerate() {
        let mut config = cluster.config(at, door);
        config.peer_addr.clone_from(&cluster.members[at].1);
        let node = tokio::task::spawn_blocking(|| Node::start(config)).await.expect("no panic");
        cluster.nodes[at] = Some(node.expect("it starts"));
    }
    cluster.ready().await;
    let sees_third =
        |cluster: &Cluster, at: usize| cluster.node(at).nodes().iter().any(|info| info.node_id == 3 && info.live);
    eventually("all are connected", || sees_third(&cluster, 0) && sees_third(&cluster, 1)).await;

    gate.open.send_replace(false);
    eventually("the silence is noticed", || !sees_third(&cluster, 0) && !sees_third(&cluster, 1)).await;
    assert!(cluster.node(0).status().problems.iter().any(|problem| problem.contains("no connection to node 3")));
    let two = cluster.nodes[2].take();
    cluster.ready().await;
    cluster.put(b"a", b"1").await;
    cluster.nodes[2] = two;

    gate.open.send_replace(true);
    eventually("it heals", || sees_third(&cluster, 0) && sees_third(&cluster, 1)).await;
    cluster.ready().await;
    cluster.level().await;
    assert_eq!(cluster.get_stale(2, b"a").await, Some(b"1".to_vec()));
    cluster.stop().await;
}
