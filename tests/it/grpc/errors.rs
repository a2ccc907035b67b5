//! Bad requests: each is refused with {kind, action, hint}, whoever finds it, and harms nobody.

use bytes::Bytes;
use flotilla_proto::codec::BytesCodec;
use flotilla_proto::v1;
use tonic::{Code, Status};
use v1::compare_and_swap::Expect;

use super::{MESSAGE_BYTES_MAX, away, connect, details, get_request, kv, put_op, put_request, swap_op};
use crate::support::runtime;
use crate::support::shared::shared;

/// Sends bytes as the message of a unary call.
async fn send_raw(path: &'static str, message: Bytes) -> Result<Bytes, Status> {
    let mut grpc = tonic::client::Grpc::new(connect(&shared().node(1).client).await);
    grpc.ready().await.expect("connected");
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
    grpc.unary(tonic::Request::new(message), path, BytesCodec).await.map(tonic::Response::into_inner)
}

/// Checks that an error says: your request is wrong, do not repeat it.
#[track_caller]
fn is_refused<T: std::fmt::Debug>(answer: Result<T, Status>, hint: &str) -> Status {
    let status = answer.expect_err("it must be refused");
    let details = details(&status);
    assert_eq!(details.kind(), v1::ErrorKind::InvalidArgument, "{status:?}");
    assert_eq!(details.action(), v1::ErrorAction::Fail, "{status:?}");
    assert!(details.hint.contains(hint), "\"{hint}\" is not in the hint: {details:?}");
    status
}

#[test]
fn what_is_no_message_is_refused_with_details() {
    runtime().block_on(async {
        for bad in [&b"\xff\xff\xff\xff"[..], b"\x0a\x7f", b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x08"] {
            for path in [
                "/flotilla.v1.Kv/Get",
                "/flotilla.v1.Kv/Put",
                "/flotilla.v1.Kv/Batch",
                "/flotilla.v1.Kv/Scan",
                "/flotilla.v1.Admin/GetRange",
            ] {
                is_refused(send_raw(path, Bytes::from_static(bad)).await, ".proto");
            }
        }
        // Fields that are not known are no error: newer clients may have more.
        send_raw("/flotilla.v1.Kv/Get", Bytes::from_static(b"\x12\x01k\xf8\x3f\x01"))
            .await
            .expect("a key and a field 127");
    });
}

#[test]
fn unknown_methods_and_services_are_refused_with_details() {
    runtime().block_on(async {
        for path in ["/flotilla.v1.Kv/Steal", "/flotilla.v9.Kv/Get", "/"] {
            let status = is_refused(send_raw(path, Bytes::new()).await, "flotilla.v1");
            assert_eq!(status.code(), Code::Unimplemented);
        }
    });
}

#[test]
fn requests_beyond_the_limits_are_refused_with_the_limit() {
    runtime().block_on(async {
        let (mut kv, _) = away("0limits/").await;
        let long = |bytes: usize| Bytes::from(vec![b'0'; bytes]);
        let large = long((1 << 20) + 1);
        is_refused(kv.get(get_request("")).await, "at least one byte");
        is_refused(kv.get(get_request(long(8193))).await, "8192");
        is_refused(kv.put(put_request("", "x")).await, "at least one byte");
        is_refused(kv.put(put_request(long(8193), "x")).await, "8192");
        is_refused(kv.put(put_request("0limits/a", large.clone())).await, "1048576");
        is_refused(kv.delete(v1::DeleteRequest { header: None, key: long(8193) }).await, "8192");
        let many = vec![Bytes::from_static(b"0limits/a"); 1025];
        is_refused(kv.multi_get(v1::MultiGetRequest { header: None, keys: many }).await, "1024");

        let swap = |op| v1::CompareAndSwapRequest { header: None, op };
        is_refused(kv.compare_and_swap(swap(None)).await, "");
        let unconditional = v1::CompareAndSwap { key: "0limits/a".into(), ..Default::default() };
        is_refused(kv.compare_and_swap(swap(Some(unconditional))).await, "expect");
        is_refused(kv.compare_and_swap(swap(Some(swap_op("0limits/a", Expect::Value(large), None)))).await, "1048576");

        let batch = |ops, atomic| v1::BatchRequest { header: None, ops, atomic };
        is_refused(kv.batch(batch(vec![put_op("0limits/a", "x"); 1025], false)).await, "1024");
        is_refused(kv.batch(batch(vec![v1::WriteOp::default()], false)).await, "put");
        let two = vec![put_op("0limits/a", long(800 << 10)), put_op("0limits/b", long(800 << 10))];
        is_refused(kv.batch(batch(two, true)).await, "1572864");
        let late = Some(v1::RequestHeader { timeout_ms: 60_001, ..Default::default() });
        is_refused(kv.get(v1::GetRequest { header: late, key: "0limits/a".into() }).await, "60000");
        let absent = kv.get(get_request("0limits/a")).await.expect("it reads").into_inner();
        assert_eq!(absent.record, None, "nothing of all that was written");
    });
}

#[test]
fn a_message_beyond_the_decoders_limit_is_refused_with_details() {
    runtime().block_on(async {
        let mut kv = kv(shared(), 1).await.max_encoding_message_size(8 << 20);
        let status = kv.put(put_request("0huge/a", vec![0; MESSAGE_BYTES_MAX + 1])).await;
        let status = is_refused(status, "1.5 MiB");
        assert_eq!(status.code(), Code::OutOfRange);
        kv.get(get_request("0huge/a")).await.expect("the connection lives on");
    });
}

#[test]
fn an_unknown_keyspace_is_refused() {
    runtime().block_on(async {
        let (mut kv, place) = away("0keyspace/").await;
        let header = Some(v1::RequestHeader { keyspace: "elsewhere".into(), ..Default::default() });
        let status =
            kv.get(v1::GetRequest { header, ..get_request("0keyspace/a") }).await.expect_err("no such keyspace");
        let error = details(&status);
        assert_eq!((error.kind(), error.action()), (v1::ErrorKind::KeyspaceNotFound, v1::ErrorAction::Fail));
        assert!(status.message().contains("elsewhere"), "{status:?}");
        let mut admin = super::admin(shared(), place.other).await;
        let status =
            admin.list_ranges(v1::ListRangesRequest { keyspace: "elsewhere".into(), ..Default::default() }).await;
        assert_eq!(details(&status.expect_err("no such keyspace")).kind(), v1::ErrorKind::KeyspaceNotFound);
        let header = Some(v1::RequestHeader { keyspace: "default".into(), ..Default::default() });
        kv.get(v1::GetRequest { header, ..get_request("0keyspace/a") }).await.expect("the one that there is");
    });
}

#[test]
fn an_atomic_batch_over_a_border_is_refused_with_the_borders() {
    runtime().block_on(async {
        let (mut kv, place) = away("0border/a").await;
        let border = place.descriptor.end;
        let ops = vec![put_op("0border/a", "x"), put_op(border.clone(), "x"), put_op("0border/b", "x")];
        let status = kv.batch(v1::BatchRequest { header: None, ops, atomic: true }).await.expect_err("two ranges");
        let error = details(&status);
        assert_eq!((error.kind(), error.action()), (v1::ErrorKind::BatchSpansRanges, v1::ErrorAction::Fail));
        assert_eq!(error.borders, std::slice::from_ref(&border));
        for key in [Bytes::from_static(b"0border/a"), border] {
            assert_eq!(kv.get(get_request(key)).await.expect("it reads").into_inner().record, None);
        }
    });
}

#[test]
fn orders_that_cannot_be_carried_out_say_why() {
    runtime().block_on(async {
        let place = super::place(shared(), b"0").await;
        let (range_id, mut leader) = (place.descriptor.range_id, super::admin(shared(), place.leader).await);
        let transfer = |range_id, to_node_id| v1::TransferLeaderRequest { range_id, to_node_id, timeout_ms: 0 };
        let status = leader.transfer_leader(transfer(999, 1)).await.expect_err("no such range");
        details(&status);
        let status = leader.transfer_leader(transfer(range_id, 9)).await.expect_err("no replica there");
        details(&status);
        let status = leader.get_range(v1::GetRangeRequest { range_id: 999, local: true }).await;
        details(&status.expect_err("no such range"));
        let mut other = super::admin(shared(), place.other).await;
        let status = other.transfer_leader(transfer(range_id, place.other)).await.expect_err("it does not lead");
        let error = details(&status);
        assert_eq!((error.kind(), error.action()), (v1::ErrorKind::NotLeader, v1::ErrorAction::RefreshRoute));
        assert_eq!(error.leader_node_id, place.leader, "it says who does");
    });
}
