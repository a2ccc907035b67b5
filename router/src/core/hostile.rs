//! Scan tokens and requests that nobody should have sent.

use bytes::Bytes;
use flotilla_hostile::{Decoder, Rng, wire};
use flotilla_proto::limits::{BATCH_OPS_MAX, DECODED_MEMORY_MAX};
use flotilla_proto::memory::Shaped;
use flotilla_proto::v1;
use prost::Message;

use super::check::check;
use super::token::{self, Span};

fn seal(mut token: Vec<u8>) -> Vec<u8> {
    if let Some(body) = token.len().checked_sub(4) {
        let crc = crc32fast::hash(&token[..body]);
        token[body..].copy_from_slice(&crc.to_be_bytes());
    }
    token
}

#[test]
fn tokens() {
    let valid = |rng: &mut Rng| {
        let bound = |rng: &mut Rng| Bytes::from(wire::text(rng));
        token::encode(&Span { start: bound(rng), end: bound(rng), reverse: rng.bool() }).into()
    };
    Decoder::generated("scan token", valid)
        .sealed(seal)
        .check(|input| token::decode(input).ok(), |span| token::encode(span).into());
}

/// What comes on a batch stream, as the node takes it: decoded, and each request checked.
#[test]
fn requests() {
    let valid = |rng: &mut Rng| {
        let key = |rng: &mut Rng| Bytes::from(format!("k{}", wire::text(rng)));
        let put = |rng: &mut Rng| {
            let put = v1::Put { key: key(rng), value: key(rng), if_absent: rng.bool(), ttl_ms: rng.u64(..9) };
            v1::WriteOp { op: Some(v1::write_op::Op::Put(put)) }
        };
        let body = match rng.u8(..4) {
            0 => v1::request::Body::Get(v1::GetRequest { key: key(rng), ..Default::default() }),
            1 => v1::request::Body::MultiGet(v1::MultiGetRequest {
                keys: vec![key(rng), key(rng)],
                ..Default::default()
            }),
            2 => v1::request::Body::Scan(v1::ScanRequest { start: key(rng), ..Default::default() }),
            _ => v1::request::Body::Write(v1::BatchRequest { ops: vec![put(rng), put(rng)], ..Default::default() }),
        };
        let request = v1::Request { id: rng.u64(..), body: Some(body) };
        v1::StreamRequest { requests: vec![request] }.encode_to_vec()
    };
    let empty = v1::BatchRequest { ops: vec![v1::WriteOp::default(); BATCH_OPS_MAX + 1], ..Default::default() };
    let empty = v1::Request { id: 1, body: Some(v1::request::Body::Write(empty)) };
    Decoder::generated("kv: requests", valid)
        .protobuf(0)
        .regression(v1::StreamRequest { requests: vec![empty] }.encode_to_vec())
        // Decoded, and the words of a refusal.
        .memory_of(|input| v1::StreamRequest::SHAPE.decoded(input).map_or(1_024, |memory| memory + 1_024))
        .check(
            |input| {
                let memory = v1::StreamRequest::SHAPE.decoded(input).ok()?;
                assert!(memory <= DECODED_MEMORY_MAX, "inputs of this test are small");
                let requests = v1::StreamRequest::decode(input.clone()).ok()?;
                let bodies = requests.requests.iter().map(|request| request.body.as_ref());
                for body in bodies {
                    check(body?).ok()?;
                }
                Some(requests)
            },
            v1::StreamRequest::encode_to_vec,
        );
}
