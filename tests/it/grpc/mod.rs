//! The gRPC services as clients of other makes see them: tonic's clients without flotilla-router, at a node that does
//! not lead the range asked for.

mod errors;
mod kv;
mod scan;
mod stream;

use bytes::Bytes;
use flotilla_proto::v1;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use v1::admin_client::AdminClient;
use v1::kv_client::KvClient;

use crate::support::cluster::Cluster;
use crate::support::shared::shared;

/// What the services accept and send: above the default of tonic.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// A connection to one node.
async fn connect(address: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect().await.expect("the node runs")
}

async fn kv(cluster: &Cluster, node: u64) -> KvClient<Channel> {
    KvClient::new(connect(&cluster.node(node).client).await).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

async fn admin(cluster: &Cluster, node: u64) -> AdminClient<Channel> {
    AdminClient::new(connect(&cluster.node(node).client).await)
}

/// A key's range, and nodes by their part in it.
struct Place {
    descriptor: v1::RangeDescriptor,
    leader: u64,
    /// A node that does not lead it.
    other: u64,
}

/// Where a key is, as node 1 knows it. Leaders rarely move here, and unary calls do not mind.
async fn place(cluster: &Cluster, key: &[u8]) -> Place {
    let routes = admin(cluster, 1).await.list_ranges(v1::ListRangesRequest::default()).await.expect("node 1 runs");
    let mut ranges = routes.into_inner().ranges.into_iter();
    let holds = |status: &v1::RangeStatus| {
        let descriptor = status.descriptor.as_ref().expect("ranges have descriptors");
        descriptor.start <= key && (descriptor.end.is_empty() || key < &descriptor.end[..])
    };
    let status = ranges.find(holds).expect("the ranges hold every key");
    let leader = status.leader_node_id;
    assert_ne!(leader, 0, "node 1 was ready, so it knows all leaders");
    Place { descriptor: status.descriptor.expect("it has one"), leader, other: leader % 3 + 1 }
}

/// The service at a node that does not lead this key's range.
async fn away(key: &'static str) -> (KvClient<Channel>, Place) {
    let place = place(shared(), key.as_bytes()).await;
    (kv(shared(), place.other).await, place)
}

/// The details that every error must carry.
#[track_caller]
fn details(status: &Status) -> v1::Error {
    let details: v1::Error = prost::Message::decode(status.details()).expect("the details are a flotilla.v1.Error");
    assert_ne!(details.kind(), v1::ErrorKind::Unspecified, "{status:?}");
    assert_ne!(details.action(), v1::ErrorAction::Unspecified, "{status:?}");
    assert!(!details.hint.is_empty(), "{status:?}");
    assert!(!details.message.is_empty(), "{status:?}");
    if details.action() == v1::ErrorAction::Ambiguous {
        assert_ne!(status.code(), tonic::Code::Unavailable, "proxies repeat those");
    }
    details
}

fn header(trace_id: u64) -> Option<v1::RequestHeader> {
    Some(v1::RequestHeader { trace_id, ..Default::default() })
}

fn get_request(key: impl Into<Bytes>) -> v1::GetRequest {
    v1::GetRequest { header: None, key: key.into() }
}

fn put_request(key: impl Into<Bytes>, value: impl Into<Bytes>) -> v1::PutRequest {
    v1::PutRequest { header: None, key: key.into(), value: value.into(), if_absent: false, ttl_ms: 0 }
}

fn put_op(key: impl Into<Bytes>, value: impl Into<Bytes>) -> v1::WriteOp {
    let put = v1::Put { key: key.into(), value: value.into(), if_absent: false, ttl_ms: 0 };
    v1::WriteOp { op: Some(v1::write_op::Op::Put(put)) }
}

fn swap_op(
    key: impl Into<Bytes>,
    expect: v1::compare_and_swap::Expect,
    new_value: Option<&'static str>,
) -> v1::CompareAndSwap {
    v1::CompareAndSwap { key: key.into(), expect: Some(expect), new_value: new_value.map(Bytes::from), ttl_ms: 0 }
}
