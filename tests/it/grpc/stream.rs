//! The batch stream, requests that name their range, and what many or bad connections do to others. Also the
//! services that every gRPC server has: health and reflection.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;

use bytes::Bytes;
use flotilla_proto::v1;
use tokio_stream::StreamExt;
use v1::request::Body;
use v1::response::Body as Answer;

use super::{Place, connect, get_request, kv, place, put_op, put_request};
use crate::support::cluster::{Cluster, http_get};
use crate::support::shared::shared;
use crate::support::{eventually_async, memory_bytes, runtime};

/// Sends all requests on one stream; the answers by id.
async fn ask(node: u64, requests: Vec<v1::Request>) -> BTreeMap<u64, Answer> {
    let expected = requests.len();
    let requests = tokio_stream::once(v1::StreamRequest { requests });
    let mut answers = BTreeMap::new();
    let mut stream = kv(shared(), node).await.stream(requests).await.expect("a stream").into_inner();
    while let Some(message) = stream.next().await {
        for answer in message.expect("the stream does not break").responses {
            let before = answers.insert(answer.id, answer.body.expect("an answer has a body"));
            assert!(before.is_none(), "request {} was answered twice", answer.id);
        }
    }
    assert_eq!(answers.len(), expected, "the stream ends when all is answered");
    answers
}

/// A header that names the key's range.
fn routed(place: &Place) -> v1::RequestHeader {
    v1::RequestHeader { range_id: place.descriptor.range_id, epoch: place.descriptor.epoch, ..Default::default() }
}

fn get(id: u64, key: impl Into<Bytes>, header: Option<v1::RequestHeader>) -> v1::Request {
    v1::Request { id, body: Some(Body::Get(v1::GetRequest { header, key: key.into() })) }
}

/// The error in an answer, with all that it must say.
#[track_caller]
fn error(answer: &Answer) -> &v1::Error {
    let Answer::Error(error) = answer else { panic!("no error: {answer:?}") };
    assert_ne!(error.action(), v1::ErrorAction::Unspecified, "{error:?}");
    assert!(!error.hint.is_empty() && !error.message.is_empty(), "{error:?}");
    error
}

#[test]
fn one_stream_carries_all_kinds_of_requests() {
    runtime().block_on(async {
        let place = place(shared(), b"0stream").await;
        let write = v1::BatchRequest {
            header: None,
            ops: vec![put_op("0stream/a", "1"), put_op("m/0stream", "2")],
            atomic: false,
        };
        let written = ask(place.other, vec![v1::Request { id: 1, body: Some(Body::Write(write)) }]).await;
        assert!(matches!(&written[&1], Answer::Write(write) if write.results.len() == 2), "{written:?}");

        let keys = vec!["m/0stream".into(), "0stream/none".into(), "0stream/a".into()];
        let multi_get = v1::MultiGetRequest { header: None, keys };
        let scan = v1::ScanRequest { start: "0stream/".into(), end: "0stream0".into(), ..Default::default() };
        let mut requests: Vec<_> = (10..500).map(|id| get(id, "0stream/a", None)).collect();
        requests.push(v1::Request { id: 2, body: Some(Body::MultiGet(multi_get)) });
        requests.push(v1::Request { id: 3, body: Some(Body::Scan(scan)) });
        requests.push(v1::Request { id: 4, body: None });
        requests.push(get(5, "", None));
        let answers = ask(place.other, requests).await;
        let Answer::MultiGet(multi) = &answers[&2] else { panic!("{:?}", answers[&2]) };
        let values: Vec<_> =
            multi.results.iter().map(|one| one.record.as_ref().map(|record| &record.value[..])).collect();
        assert_eq!(values, [Some(&b"2"[..]), None, Some(b"1")]);
        assert!(matches!(&answers[&3], Answer::Scan(scan) if scan.records.len() == 1 && scan.next_token.is_empty()));
        for bad in [4, 5] {
            assert_eq!(error(&answers[&bad]).kind(), v1::ErrorKind::InvalidArgument);
        }
        for id in 10..500 {
            let Answer::Get(get) = &answers[&id] else { panic!("{:?}", answers[&id]) };
            assert_eq!(get.record.as_ref().expect("it is there").value, "1");
        }
    });
}

#[test]
fn a_request_that_names_its_range_is_answered_by_that_replica_or_refused() {
    runtime().block_on(async {
        let place = place(shared(), b"0routed").await;
        kv(shared(), 1).await.put(put_request("0routed", "1")).await.expect("it writes");
        let good = routed(&place);
        let epoch = place.descriptor.epoch.expect("it has one");
        let with = |epoch| Some(v1::RequestHeader { epoch, ..good.clone() });
        let behind = v1::Epoch { version: epoch.version - 1, ..epoch };
        let ahead = v1::Epoch { version: epoch.version + 1, ..epoch };
        let answers = ask(
            place.leader,
            vec![
                get(1, "0routed", Some(good.clone())),
                get(2, "0routed", with(Some(behind))),
                get(3, "0routed", with(Some(ahead))),
                get(4, "0routed", with(Some(v1::Epoch { conf_ver: epoch.conf_ver + 1, ..epoch }))),
                get(5, "0routed", Some(v1::RequestHeader { range_id: 999, ..good.clone() })),
                get(6, "zz", Some(good.clone())),
                get(7, "0routed", with(None)),
            ],
        )
        .await;
        // Replicas may change without a change of the keys served: conf_ver is not compared.
        for served in [1, 4] {
            let answer = &answers[&served];
            assert!(matches!(answer, Answer::Get(get) if get.record.is_some()), "{answer:?}");
        }
        for (id, kind) in [
            (2, v1::ErrorKind::EpochMismatch),
            (3, v1::ErrorKind::EpochMismatch),
            (5, v1::ErrorKind::RangeNotFound),
            (6, v1::ErrorKind::KeyNotInRange),
        ] {
            let error = error(&answers[&id]);
            assert_eq!((error.kind(), error.action()), (kind, v1::ErrorAction::RefreshRoute), "request {id}");
            if kind != v1::ErrorKind::RangeNotFound {
                assert_eq!(error.descriptors, std::slice::from_ref(&place.descriptor), "what the replica knows");
            }
        }
        error(&answers[&7]);

        let answers = ask(place.other, vec![get(1, "0routed", Some(good))]).await;
        let error = error(&answers[&1]);
        assert_eq!((error.kind(), error.leader_node_id), (v1::ErrorKind::NotLeader, place.leader));
    });
}

#[test]
fn a_stale_read_is_answered_by_any_replica() {
    runtime().block_on(async {
        let place = place(shared(), b"0stale").await;
        kv(shared(), 1).await.put(put_request("0stale", "1")).await.expect("it writes");
        let stale = v1::RequestHeader { consistency: v1::ReadConsistency::Stale.into(), ..routed(&place) };
        for node in 1..=3 {
            eventually_async("the replica to have applied the write", || async {
                let answers = ask(node, vec![get(1, "0stale", Some(stale.clone()))]).await;
                let Answer::Get(get) = &answers[&1] else { panic!("{:?}", answers[&1]) };
                assert_eq!(get.header.as_ref().expect("it has one").node_id, node);
                get.record.is_some()
            })
            .await;
        }
    });
}

/// Answers that nobody reads: so many bytes are asked for.
const UNREAD_REQUESTS: u64 = 4_000;
const UNREAD_VALUE_BYTES: usize = 64 << 10;

#[test]
fn a_client_that_never_reads_stops_nobody_else() {
    runtime().block_on(async {
        let place = place(shared(), b"0unread").await;
        let mut others = kv(shared(), place.leader).await;
        others.put(put_request("0unread", vec![7; UNREAD_VALUE_BYTES])).await.expect("it writes");

        let resident_before = memory_bytes(shared().pid(place.leader).expect("it runs"), "VmRSS");
        let (send, requests) = tokio::sync::mpsc::channel(1);
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let mut greedy = kv(shared(), place.leader).await;
        let unread = greedy.stream(requests).await.expect("a stream");
        let header = routed(&place);
        let feed = tokio::spawn(async move {
            for first in (0..UNREAD_REQUESTS).step_by(100) {
                let requests = (first..first + 100).map(|id| get(id, "0unread", Some(header.clone()))).collect();
                if send.send(v1::StreamRequest { requests }).await.is_err() {
                    return;
                }
            }
            // The stream stays open.
            std::future::pending::<()>().await;
        });
        for number in 0..200 {
            let key = format!("0unread/{number}");
            others.put(put_request(key.clone(), "x")).await.expect("others are served");
            assert!(others.get(get_request(key)).await.expect("others are served").into_inner().record.is_some());
        }
        let grown = memory_bytes(shared().pid(place.leader).expect("it runs"), "VmRSS").saturating_sub(resident_before);
        let asked = UNREAD_VALUE_BYTES as u64 * UNREAD_REQUESTS;
        assert!(
            grown < asked / 2,
            "{} MiB more memory for {} MiB of answers that nobody reads",
            grown >> 20,
            asked >> 20
        );
        drop(unread);
        feed.abort();
        others.get(get_request("0unread")).await.expect("and afterwards too");
    });
}

#[test]
fn a_thousand_idle_connections_stop_nobody() {
    let node = shared().node(2);
    flotilla_store::raise_open_files(4_096).expect("the system answers");
    // Real ones, as far as HTTP/2 goes: preface and an empty SETTINGS frame.
    let idle: Vec<TcpStream> = (0..1_000)
        .map(|_| {
            let mut stream = TcpStream::connect(&node.client).expect("the node takes connections");
            stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("the node reads");
            stream
        })
        .collect();
    runtime().block_on(async {
        let mut kv = kv(shared(), 2).await;
        for number in 0..50 {
            kv.put(put_request(format!("0idle/{number}"), "x")).await.expect("it writes");
        }
    });
    assert_eq!(http_get(&node.http, "/healthz").expect("it answers").0, 200);
    drop(idle);
}

#[test]
fn health_follows_the_node() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    const SERVING: i32 = 1;
    let cluster: &Cluster = shared();
    runtime().block_on(async {
        for service in ["", "flotilla.v1.Kv"] {
            let mut health = HealthClient::new(connect(&cluster.node(3).client).await);
            eventually_async("the node to say that it serves", || {
                let request = HealthCheckRequest { service: service.into() };
                let mut health = health.clone();
                async move { health.check(request).await.expect("it answers").into_inner().status == SERVING }
            })
            .await;
            let unknown = health.check(HealthCheckRequest { service: "no.such".into() }).await.expect_err("unknown");
            assert_eq!(unknown.code(), tonic::Code::NotFound);
        }
    });
}

#[test]
fn reflection_lists_the_services() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    runtime().block_on(async {
        let mut reflection = ServerReflectionClient::new(connect(&shared().node(1).client).await);
        let ask = |request| ServerReflectionRequest { host: String::new(), message_request: Some(request) };
        let requests = tokio_stream::iter([
            ask(MessageRequest::ListServices(String::new())),
            ask(MessageRequest::FileContainingSymbol("flotilla.v1.Kv".into())),
        ]);
        let mut answers = reflection.server_reflection_info(requests).await.expect("it answers").into_inner();
        let list = answers.next().await.expect("an answer").expect("no error").message_response;
        let Some(MessageResponse::ListServicesResponse(list)) = list else { panic!("{list:?}") };
        let names: Vec<&str> = list.service.iter().map(|service| &service.name[..]).collect();
        for name in ["flotilla.v1.Kv", "flotilla.v1.Admin"] {
            assert!(names.contains(&name), "{names:?}");
        }
        let file = answers.next().await.expect("an answer").expect("no error").message_response;
        assert!(matches!(file, Some(MessageResponse::FileDescriptorResponse(_))), "{file:?}");
    });
}
