//! Frames and snapshots that nobody should have sent.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_engine::snapshot::Chunks;
use flotilla_engine::store::{Envelope, SnapshotData};
use flotilla_hostile::{Decoder, Rng, wire};
use flotilla_proto::memory::Shaped;
use flotilla_proto::{NodeId, v1};
use prost::Message;

use super::bulk_in::Assembly;
use super::bulk_out;
use super::frame::{Frame, HEAD_BYTES};

/// What a decoder takes besides the decoded: boxes, and the words of a refusal.
const WORDS_BYTES: usize = 4_096;

/// Makes length and crc in a frame's head right.
fn seal(mut frame: Vec<u8>) -> Vec<u8> {
    if frame.len() >= HEAD_BYTES {
        let length = u32::try_from(frame.len() - HEAD_BYTES).expect("small");
        frame[8..12].copy_from_slice(&length.to_be_bytes());
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&frame[..12]);
        hasher.update(&frame[HEAD_BYTES..]);
        frame[12..16].copy_from_slice(&hasher.finalize().to_be_bytes());
    }
    frame
}

fn decoded<M: Message + Default + Shaped>(rng: &mut Rng) -> M {
    M::decode(&wire::message(rng, M::SHAPE)[..]).expect("its shape is right")
}

fn frame(rng: &mut Rng) -> Vec<u8> {
    let frame = match rng.u8(..8) {
        0 => Frame::Refused(wire::text(rng)),
        1 => Frame::Replaced(wire::text(rng)),
        2 => Frame::Received { snapshot_id: rng.u64(..) },
        3 => Frame::Hello(Box::new(decoded(rng))),
        4 => Frame::Chunk(Box::new(decoded(rng))),
        _ => Frame::Batch(decoded(rng)),
    };
    frame.encode().into()
}

/// The most that a frame's payload may take, by its kind.
fn memory(input: &[u8]) -> usize {
    let payload = input.get(HEAD_BYTES..).unwrap_or_default();
    let shape = match input.get(5) {
        Some(1) => v1::Hello::SHAPE,
        Some(2) => v1::PeerBatch::SHAPE,
        Some(3) => v1::SnapshotChunk::SHAPE,
        _ => return 4 * input.len() + WORDS_BYTES,
    };
    shape.decoded(payload).unwrap_or(8 * payload.len()) + shape.bytes + WORDS_BYTES
}

/// A frame of messages whose one message holds so many empty entries.
fn bomb(entries: usize) -> Vec<u8> {
    let message = v1::PeerMessage { entries: vec![v1::LogEntry::default(); entries], ..Default::default() };
    Frame::Batch(v1::PeerBatch { messages: vec![message], ..Default::default() }).encode().into()
}

#[test]
fn frames() {
    Decoder::generated("peer: frame", frame)
        .sealed(seal)
        .protobuf(HEAD_BYTES)
        .memory_of(memory)
        .regression(bomb(1_000))
        .check(|input| Frame::decode(input.clone()).ok(), |frame| frame.encode().into());
}

/// Entries were once looked for under another field's number, and none counted.
#[test]
fn a_frame_of_millions_of_empty_entries_takes_no_memory() {
    let bomb = Bytes::from(bomb(1_000_000));
    assert!(bomb.len() < 3 << 20, "{}", bomb.len());
    let refused = Frame::decode(bomb).expect_err("far too much memory");
    assert!(refused.to_string().contains("of memory"), "{refused}");
}

fn pieces() -> Vec<v1::SnapshotChunk> {
    let descriptor = v1::RangeDescriptor { range_id: 2, ..Default::default() };
    let header = v1::SnapshotHeader { descriptor: Some(descriptor), records: 3, ..Default::default() };
    let chunks = Chunks::Memory(Arc::new(vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")]));
    let meta = v1::SnapshotMeta { index: 7, ..Default::default() };
    let envelope = Envelope {
        from: NodeId(1),
        to: NodeId(2),
        message: v1::PeerMessage { range_id: 2, snapshot: Some(meta), ..Default::default() },
        disk_full: false,
        snapshot: Some(SnapshotData { header, chunks }),
    };
    bulk_out::pieces(5, envelope).map(|piece| piece.expect("in memory")).collect()
}

/// The input is what comes as the pieces of one snapshot: a protobuf of which each is a field.
fn cut(input: &Bytes) -> Option<Vec<v1::SnapshotChunk>> {
    let piece = |field: wire::Field| {
        let mut piece = v1::SnapshotChunk::decode(&field.value.into_bytes()?[..]).ok()?;
        if piece.crc32 > 1 {
            // So that what is in it is looked at.
            piece.crc32 = crc32fast::hash(&piece.data);
        }
        Some(piece)
    };
    wire::parse(input)?.into_iter().map(piece).collect()
}

fn joined(pieces: &[v1::SnapshotChunk]) -> Vec<u8> {
    let field = |piece: &v1::SnapshotChunk| wire::Field { number: 1, value: wire::Value::Bytes(piece.encode_to_vec()) };
    wire::encode(&pieces.iter().map(field).collect::<Vec<_>>())
}

#[test]
fn snapshots_in_pieces() {
    let sample = joined(&pieces());
    Decoder::new("peer: pieces of a snapshot", vec![sample])
        .protobuf(0)
        // The test's own list of them, thrice; what one may take is the frame's to say.
        .memory(4_096, 64 << 10)
        .check(
            |input| {
                let pieces = cut(input)?;
                let mut rest = pieces.clone().into_iter();
                let (mut assembly, _) = Assembly::begin(rest.next()?).ok()?;
                for piece in rest {
                    assembly.push(piece).ok()?;
                }
                Some(pieces)
            },
            |pieces| joined(pieces),
        );
}
