//! Whoever does not belong is turned away, in words, on both sides.

use bytes::Bytes;
use flotilla_engine::config::ReadMode;
use flotilla_node::transport::frame::Frame;
use flotilla_node::{Node, NodeConfig};
use flotilla_proto::codec::BytesCodec;
use flotilla_proto::ids::DEFAULT_KEYSPACE;
use flotilla_proto::{NodeId, v1};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::Endpoint;
use tonic::{Request, Status};

use crate::harness::{Cluster, DEADLINE, eventually, laid_out, listener, settings};

/// Sends frames to a peer port, and returns what comes back up to the stream's end.
async fn talk(address: &str, path: &'static str, frames: Vec<Bytes>) -> (Vec<Frame>, Option<Status>) {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let mut client = tonic::client::Grpc::new(endpoint.connect().await.expect("it listens"));
    client.ready().await.expect("it is ready");
    let path = http::uri::PathAndQuery::from_static(path);
    let request = Request::new(tokio_stream::iter(frames));
    let mut answers = match client.streaming(request, path, BytesCodec).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return (Vec::new(), Some(status)),
    };
    let mut came = Vec::new();
    loop {
        match timeout(DEADLINE, answers.message()).await.expect("the node answers in time") {
            Ok(Some(frame)) => came.push(Frame::decode(frame).expect("a frame")),
            Ok(None) => return (came, None),
            Err(status) => return (came, Some(status)),
        }
    }
}

fn hello_of(cluster_id: u64, node_id: u64, protocol: u32) -> v1::Hello {
    v1::Hello {
        cluster_id,
        node_id,
        protocol_min: protocol,
        protocol_max: protocol,
        to_node_id: 1,
        store_id: 7,
        ..Default::default()
    }
}

fn encoded(hello: v1::Hello) -> Bytes {
    Frame::Hello(Box::new(hello)).encode()
}

/// The first of two members; the other one is not there.
async fn lonely(cluster: &Cluster) -> Node {
    let config = cluster.config(0, listener());
    tokio::task::spawn_blocking(|| Node::start(config)).await.expect("no panic").expect("it starts")
}

fn not_started() -> Cluster {
    let members = [1, 2, 3].map(|id| (NodeId(id), listener().local_addr().expect("it is bound").to_string()));
    Cluster {
        directory: tempfile::tempdir().expect("a temporary directory"),
        members: members.to_vec(),
        nodes: vec![None, None, None],
        engine: settings(ReadMode::Lease),
        ranges: 1,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_do_not_belong_are_told_why() {
    const RAFT: &str = "/flotilla.v1.Peer/Raft";
    const BULK: &str = "/flotilla.v1.Peer/Bulk";
    let cluster = not_started();
    let node = lonely(&cluster).await;
    let address = node.peer_address().to_string();
    let id = node.cluster_id();
    let chunk = Frame::Chunk(Box::default()).encode();
    for (path, frames, words) in [
        (RAFT, vec![encoded(hello_of(id ^ 1, 2, 1))], "belongs to cluster"),
        (RAFT, vec![encoded(hello_of(id, 9, 1))], "node 9 is not a member"),
        (RAFT, vec![encoded(hello_of(id, 1, 1))], "both sides are node 1"),
        (RAFT, vec![encoded(v1::Hello { to_node_id: 3, ..hello_of(id, 2, 1) })], "meant to reach node 3"),
        (BULK, vec![encoded(hello_of(id, 2, 9))], "speaks protocols 9 to 9"),
        (BULK, vec![Bytes::from_static(b"GET / HTTP/1.1\r\n\r\n")], "not a frame"),
        (RAFT, vec![Frame::Batch(v1::PeerBatch::default()).encode()], "not a handshake"),
    ] {
        let (came, status) = talk(&address, path, frames).await;
        let status = status.expect("it is turned away");
        assert!(came.is_empty() && status.message().contains(words), "{words}: {status:?}");
        // One that is not known may have joined a moment ago: it is told of only if it goes on to call.
        let told = node.status().problems.iter().any(|problem| problem.contains(words));
        assert_eq!(told, !words.contains("is not a member"), "{words}");
    }
    // Those that belong, and then send what they should not.
    for (path, frame) in [(RAFT, chunk.clone()), (RAFT, Bytes::from_static(b"?")), (BULK, chunk)] {
        let (came, status) = talk(&address, path, vec![encoded(hello_of(id, 2, 1)), frame]).await;
        let [Frame::Hello(hello)] = &came[..] else { panic!("{came:?}") };
        assert_eq!((hello.node_id, hello.to_node_id), (1, 2));
        assert!(!status.expect("the connection is ended").message().is_empty());
    }
    assert!(node.counters().peer_refusals.get() >= 7);
    node.stop().await.expect("nothing had failed");
}

/// A snapshot's first frame holds its header. What is to be refused is refused then, and not after gigabytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_refused_by_its_header() {
    let cluster = not_started();
    let node = lonely(&cluster).await;
    let offer = |to_replica: u64| {
        let own = v1::ReplicaDescriptor { replica_id: 5, node_id: 1, ..Default::default() };
        let descriptor = v1::RangeDescriptor {
            range_id: 77,
            keyspace_id: DEFAULT_KEYSPACE.0,
            epoch: Some(v1::Epoch { conf_ver: 1, version: 1 }),
            replicas: vec![own],
            ..Default::default()
        };
        let header = v1::SnapshotHeader { descriptor: Some(descriptor), records: 1, ..Default::default() };
        let data = Bytes::from(header.encode_to_vec());
        let snapshot = Some(v1::SnapshotMeta::default());
        let message = v1::PeerMessage { range_id: 77, to_replica, snapshot, ..Default::default() };
        let crc32 = crc32fast::hash(&data);
        Frame::Chunk(Box::new(v1::SnapshotChunk {
            snapshot_id: 1,
            range_id: 77,
            data,
            crc32,
            message: Some(message),
            ..Default::default()
        }))
    };
    for (to_replica, words) in [(5, "overlaps with range 2"), (6, "does not name the replica")] {
        let frames = vec![encoded(hello_of(node.cluster_id(), 2, 1)), offer(to_replica).encode()];
        let (_, status) = talk(&node.peer_address().to_string(), "/flotilla.v1.Peer/Bulk", frames).await;
        let status = status.expect("nothing more of it is wanted");
        assert!(status.message().contains(words), "{words}: {status:?}");
    }
    node.stop().await.expect("nothing had failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clusters_at_each_others_addresses_say_so_on_both_sides() {
    let cluster = not_started();
    let node = lonely(&cluster).await;
    let mut config: NodeConfig = cluster.config(1, listener());
    config.cluster_name = "other".into();
    let mut birth = laid_out("other", config.node_id, &cluster.members, 1, 3);
    birth.known.nodes[0].peer_addr = node.peer_address().to_string();
    config.birth = Some(birth);
    let stranger = tokio::task::spawn_blocking(|| Node::start(config)).await.expect("no panic").expect("it starts");
    eventually("both tell of it", || {
        let tells = |node: &Node| node.status().problems.iter().any(|problem| problem.contains("belongs to cluster"));
        tells(&node) && tells(&stranger)
    })
    .await;
    assert!(!stranger.nodes()[1].live);
    stranger.stop().await.expect("nothing had failed");
    node.stop().await.expect("nothing had failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_off_this_machine_are_not_dialled_in_plain_text() {
    let mut cluster = not_started();
    // A documentation address: nothing is sent to it, as it is refused before.
    cluster.members[1].1 = "192.0.2.1:7301".into();
    let node = lonely(&cluster).await;
    eventually("the status tells of it", || {
        let problems = node.status().problems;
        problems.iter().any(|problem| problem.contains("node 2") && problem.contains("--tls-cert"))
    })
    .await;
    node.stop().await.expect("nothing had failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_never_get_to_a_handshake_are_closed() {
    let cluster = not_started();
    let node = lonely(&cluster).await;
    // HTTP/2's first bytes and an empty SETTINGS frame: a connection, but nobody knows whose.
    let preface = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    for said in [&[][..], &preface] {
        let mut connection = TcpStream::connect(node.peer_address()).await.expect("it listens");
        connection.write_all(said).await.expect("it is sent");
        let mut answer = Vec::new();
        // A reset is an end too.
        drop(timeout(DEADLINE, connection.read_to_end(&mut answer)).await.expect("it is closed"));
    }
    node.stop().await.expect("nothing had failed");
}
