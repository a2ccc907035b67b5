//! Messages that are too much, or say that they are; and who never reads the answers.

use bytes::Bytes;
use flotilla_proto::codec::BytesCodec;
use flotilla_proto::v1;
use prost::Message;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::Node;
use super::wire::{Connection, DATA, END_HEADERS, GOAWAY, HEADERS, RST_STREAM, SETTINGS, call, frame, message};
use crate::support::runtime;

const MIB: u64 = 1 << 20;
/// What is sent, and how it is refused: its name, path, message and headers, the code and the words.
type Case = (&'static str, &'static str, Bytes, Vec<(&'static str, String)>, Code, &'static str);

/// What the node's memory may differ by, whatever comes: RocksDB and the allocator take some at times.
const NOISE: u64 = 64 * MIB;

async fn channel(address: &str) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).expect("an address").connect().await.expect("the node listens")
}

/// Sends bytes as a request's message, under some headers.
async fn unary(
    channel: &Channel,
    path: &'static str,
    bytes: Bytes,
    more: &[(&'static str, String)],
) -> Result<Bytes, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let mut request = Request::new(bytes);
    for (name, value) in more {
        request.metadata_mut().insert(*name, MetadataValue::try_from(value).expect("plain text"));
    }
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
    client.unary(request, path, BytesCodec).await.map(tonic::Response::into_inner)
}

#[test]
fn messages_that_are_too_much_are_refused_in_words() {
    let node = Node::new();
    let before = node.rss();
    // Two million empty operations: four MiB, and more than half a GiB decoded.
    let operations = Bytes::from([0x12_u8, 0].repeat(2 * MIB as usize - 64));
    let requests = Bytes::from([0x0a_u8, 0].repeat(2 * MIB as usize - 64));
    let put = Bytes::from(v1::PutRequest { key: "k".into(), ..Default::default() }.encode_to_vec());
    let large = Bytes::from(vec![0; 5 * MIB as usize]);
    let cases: [Case; 4] = [
        ("empty operations", "/flotilla.v1.Kv/Batch", operations, vec![], Code::InvalidArgument, "in memory"),
        ("five MiB", "/flotilla.v1.Kv/Put", large, vec![], Code::OutOfRange, "too large"),
        (
            "a message that says that it is compressed",
            "/flotilla.v1.Kv/Put",
            put.clone(),
            vec![("grpc-encoding", "gzip".into())],
            Code::Unimplemented,
            "gzip",
        ),
        ("a header of 20 KiB", "/flotilla.v1.Kv/Put", put, vec![("x-long", "a".repeat(20 << 10))], Code::Unknown, ""),
    ];
    runtime().block_on(async {
        for (what, path, bytes, headers, code, words) in cases {
            let channel = channel(node.client()).await;
            let refused = unary(&channel, path, bytes, &headers).await.expect_err(what);
            // A header list is HTTP/2's to refuse, and each library has its own words for that.
            assert!(refused.code() == code || words.is_empty(), "{what}: {refused:?}");
            assert!(refused.message().contains(words), "{what}: {refused:?}");
            println!("{what}: {:?}: {}", refused.code(), refused.message());
            node.serves();
        }
        // On a stream its answers are the ones to say it.
        let mut client = tonic::client::Grpc::new(channel(node.client()).await);
        client.ready().await.expect("the node is well");
        let path = tonic::codegen::http::uri::PathAndQuery::from_static("/flotilla.v1.Kv/Stream");
        let request = Request::new(tokio_stream::iter([requests]));
        let mut answers = client.streaming(request, path, BytesCodec).await.expect("it begins").into_inner();
        let refused = answers.message().await.expect_err("two million empty requests");
        assert!(refused.code() == Code::InvalidArgument && refused.message().contains("in memory"), "{refused:?}");
    });
    let grown = node.rss().saturating_sub(before);
    assert!(grown < NOISE, "the node grew by {} MiB", grown / MIB);
    node.ends_well();
}

/// Whether the node answers a stream, ends it, or closes the connection: it does not wait for more.
fn refuses(connection: &mut Connection, what: &str) {
    while let Some(frame) = connection.next(what) {
        if [HEADERS, RST_STREAM, GOAWAY].contains(&frame.kind) {
            return;
        }
    }
}

#[test]
fn who_claims_a_gibibyte_gets_no_memory_for_it() {
    let node = Node::new();
    let before = node.rss();
    let open = |path: &str, more: &[(&str, &str)]| frame(HEADERS, END_HEADERS, 1, &call(path, more));
    let data = |bytes: &[u8]| frame(DATA, 0, 1, bytes);
    let gibibyte = message(false, 1 << 30, b"k");
    // Such a frame's own length has but three bytes.
    let mut huge = frame(DATA, 0, 1, &[]);
    huge[..3].copy_from_slice(&[0xff; 3]);
    // 64 MiB of zeros, by the looks of it.
    let gzip = [("grpc-encoding", "gzip")];
    let bomb = message(true, 65_536, &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 3]);
    let cases = [
        ("a message of a gibibyte", node.client(), [open("/flotilla.v1.Kv/Put", &[]), data(&gibibyte)].concat()),
        ("a batch of a gibibyte", node.client(), [open("/flotilla.v1.Kv/Stream", &[]), data(&gibibyte)].concat()),
        ("a frame of 16 MiB", node.client(), [open("/flotilla.v1.Kv/Put", &[]), huge.clone()].concat()),
        ("a compressed message", node.client(), [open("/flotilla.v1.Kv/Put", &gzip), data(&bomb)].concat()),
        (
            "a compressed one that is not said to be",
            node.client(),
            [open("/flotilla.v1.Kv/Put", &[]), data(&bomb)].concat(),
        ),
        ("a node's frame of a gibibyte", node.peer(), [open("/flotilla.v1.Peer/Raft", &[]), data(&gibibyte)].concat()),
        ("a compressed frame of a node", node.peer(), [open("/flotilla.v1.Peer/Raft", &gzip), data(&bomb)].concat()),
        ("a frame of 16 MiB at the peer port", node.peer(), [open("/flotilla.v1.Peer/Bulk", &[]), huge].concat()),
    ];
    for (what, address, bytes) in cases {
        // Many of them beside each other, so that memory would show.
        let mut connections: Vec<Connection> = (0..16).map(|_| Connection::begun(address)).collect();
        for connection in &mut connections {
            // A node that has refused the first half takes no second one.
            connection.send(&bytes).ok();
        }
        connections.iter_mut().for_each(|connection| refuses(connection, what));
        let grown = node.rss().saturating_sub(before);
        assert!(grown < NOISE, "{what}: the node grew by {} MiB", grown / MIB);
        node.serves();
    }
    node.ends_well();
}

#[test]
fn what_is_not_http_2_is_closed() {
    let node = Node::new();
    let mut noise = crate::support::rng::Rng::new(1);
    let random: Vec<u8> = (0..4_096).map(|_| noise.below(256) as u8).collect();
    for bytes in [&b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..], &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3], &random] {
        for address in [node.client(), node.peer(), node.http()] {
            let mut connection = Connection::silent(address);
            connection.send(bytes).ok();
            // At the http port the first one is answered, and is as good as idle then.
            connection.until_closed("what is not HTTP/2", |_| {});
        }
        node.serves();
    }
    node.ends_well();
}

/// Each stream has answers of 256 MiB to come, of which it takes none.
#[test]
fn answers_that_nobody_reads_are_bounded() {
    const STREAMS: u64 = 4;
    // What may wait for its taker, and what he has taken and has not sent (engine/node/src/replies.rs).
    const STREAM_BYTES: u64 = 2 * 32 * MIB;
    let node = Node::new();
    runtime().block_on(async {
        let mut kv = v1::kv_client::KvClient::connect(format!("http://{}", node.client())).await.expect("it listens");
        let value = Bytes::from(vec![7; MIB as usize - 1]);
        let put = v1::PutRequest { key: "large".into(), value, ..Default::default() };
        kv.put(put).await.expect("the node is well");
    });
    let before = node.rss();
    let get = v1::GetRequest { key: "large".into(), ..Default::default() };
    let request = |id| v1::Request { id, body: Some(v1::request::Body::Get(get.clone())) };
    let requests = v1::StreamRequest { requests: (0..256).map(request).collect() }.encode_to_vec();
    let mut connections: Vec<Connection> = (0..STREAMS).map(|_| Connection::begun(node.client())).collect();
    for connection in &mut connections {
        let whole = message(false, requests.len() as u32, &requests);
        let mut bytes = frame(HEADERS, END_HEADERS, 1, &call("/flotilla.v1.Kv/Stream", &[]));
        bytes.extend(whole.chunks(16_000).flat_map(|piece| frame(DATA, 0, 1, piece)));
        connection.send(&bytes).expect("the node takes it");
        // The answer has begun, and its window, of 64 KiB, is soon used up.
        while connection.next("the first piece of an answer").expect("it stays open").kind != DATA {}
    }
    let mut most = 0;
    for _ in 0..20 {
        node.serves();
        most = most.max(node.rss().saturating_sub(before));
    }
    println!("{STREAMS} streams that nobody reads: {} MiB", most / MIB);
    assert!(most < NOISE + STREAMS * STREAM_BYTES, "the node grew by {} MiB", most / MIB);
    drop(connections);
    node.ends_well();
}

/// A window that is opened far too often, settings again and again: each wants an answer, and none is read.
#[test]
fn settings_and_pings_that_nobody_waits_for_are_bounded() {
    let node = Node::new();
    let before = node.rss();
    let flood = [frame(SETTINGS, 0, 0, &[]), frame(super::wire::PING, 0, 0, &[0; 8])].concat().repeat(10_000);
    let mut connection = Connection::begun(node.client());
    connection.stream.set_write_timeout(Some(std::time::Duration::from_millis(200))).expect("a plain socket");
    // Until the node takes no more, or has closed it.
    let mut sent = 0;
    while sent < 64 * MIB && connection.send(&flood).is_ok() {
        sent += flood.len() as u64;
    }
    node.serves();
    let grown = node.rss().saturating_sub(before);
    assert!(grown < NOISE, "the node grew by {} MiB", grown / MIB);
    node.ends_well();
}
