//! Frames that no node would send: refused, without a panic and without asking for memory.

use bytes::Bytes;
use flotilla_node::transport::frame::{FRAME_BYTES_MAX, Frame, HEAD_BYTES};
use flotilla_proto::v1;

/// A generator of its own: the same inputs at every run (xorshift64*).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

fn samples() -> Vec<Bytes> {
    let entry = v1::LogEntry { entry_type: 0, term: 6, index: 7, data: Bytes::from_static(b"some data") };
    let meta =
        v1::SnapshotMeta { index: 9, term: 6, voters: vec![1, 2, 3], learners: vec![4], voters_outgoing: vec![] };
    let message = v1::PeerMessage {
        range_id: 2,
        term: 6,
        entries: vec![entry; 3],
        snapshot: Some(meta),
        context: Bytes::from_static(b"context"),
        priority: -1,
        ..Default::default()
    };
    let chunk = v1::SnapshotChunk {
        snapshot_id: 3,
        data: Bytes::from_static(b"piece"),
        message: Some(message.clone()),
        ..Default::default()
    };
    let hello = v1::Hello { cluster_id: 1, peer_addr: "127.0.0.1:1".into(), ..Default::default() };
    [
        Frame::Hello(Box::new(hello)),
        Frame::Batch(v1::PeerBatch { messages: vec![message; 4], disk_full: true, ..Default::default() }),
        Frame::Chunk(Box::new(chunk)),
        Frame::Refused("another cluster".into()),
        Frame::Replaced("another store".into()),
        Frame::Received { snapshot_id: 9 },
    ]
    .iter()
    .map(Frame::encode)
    .collect()
}

fn mutate(draw: &mut Draw, frame: &mut Vec<u8>) {
    for _ in 0..=draw.below(4) {
        let at = draw.below(frame.len());
        match draw.below(6) {
            0 => frame[at] ^= 1 << draw.below(8),
            1 => frame[at] = draw.next() as u8,
            2 => frame.truncate(at.max(1)),
            3 => frame.insert(at, draw.next() as u8),
            4 => {
                // Lengths: of the frame, or of a field.
                let end = (at + 4).min(frame.len());
                frame[at..end].fill(0xff);
            }
            _ => {
                let from = draw.below(frame.len());
                let piece = frame[from.min(at)..from.max(at)].to_vec();
                frame.extend(piece);
            }
        }
    }
}

/// Makes length and checksum fit again, so that the decoders behind them are reached.
fn seal(frame: &mut [u8]) {
    if frame.len() < HEAD_BYTES {
        return;
    }
    let length = (frame.len() - HEAD_BYTES) as u32;
    frame[8..12].copy_from_slice(&length.to_be_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&frame[..12]);
    hasher.update(&frame[HEAD_BYTES..]);
    frame[12..16].copy_from_slice(&hasher.finalize().to_be_bytes());
}

#[test]
fn mutated_frames_are_refused_or_taken_and_never_more() {
    let samples = samples();
    let mut draw = Draw(0x5eed);
    let (mut taken, mut refused) = (0, 0);
    for round in 0..100_000 {
        let mut frame = samples[draw.below(samples.len())].to_vec();
        mutate(&mut draw, &mut frame);
        if round % 4 != 0 {
            seal(&mut frame);
        }
        match Frame::decode(frame.into()) {
            Ok(frame) => {
                taken += 1;
                assert!(frame.encode().len() <= FRAME_BYTES_MAX);
            }
            Err(error) => {
                refused += 1;
                assert!(!error.to_string().is_empty());
            }
        }
    }
    assert!(taken > 1_000 && refused > 1_000, "{taken} taken, {refused} refused: the mutations reach both");
}
