//! The frame between nodes: the only file that knows its bytes.
//!
//! ```text
//! "FLTP" | version 1 | kind 1 | zero 2 | length 4 | crc32 4 | payload
//! ```
//! Integers are big-endian; the crc covers everything in front of it and the payload. What comes in is
//! checked before it is decoded: size, checksum, and how much memory the decoded form would take (a
//! protobuf of a few bytes can ask for a hundred times its size).

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flotilla_proto::limits::DECODED_MEMORY_MAX;
use flotilla_proto::memory::Shaped;
use flotilla_proto::v1;
use prost::Message;

const MAGIC: &[u8; 4] = b"FLTP";
const VERSION: u8 = 1;
const CRC_AT: usize = 12;
/// Bytes in front of the payload.
pub const HEAD_BYTES: usize = 16;
/// Largest payload of any frame.
pub const PAYLOAD_BYTES_MAX: usize = 16 << 20;
/// Largest frame.
pub const FRAME_BYTES_MAX: usize = HEAD_BYTES + PAYLOAD_BYTES_MAX;
/// Largest payload of a [`Frame::Hello`], a [`Frame::Refused`] or a [`Frame::Replaced`].
const SMALL_BYTES_MAX: usize = 16 << 10;

/// What nodes send each other.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// The first one, in both directions.
    Hello(Box<v1::Hello>),
    /// Raft messages.
    Batch(v1::PeerBatch),
    /// A piece of a snapshot.
    Chunk(Box<v1::SnapshotChunk>),
    /// The sender ends the connection: in words, why.
    Refused(String),
    /// The same, because the receiver's store was replaced: it is to stop.
    Replaced(String),
    /// A snapshot came whole.
    Received {
        /// Its id.
        snapshot_id: u64,
    },
}

/// Why a frame was not taken. The connection it came on cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not the beginning of a frame.
    #[error("not a frame of Flotilla's peer protocol: it begins with {0:02x?}")]
    Magic(Vec<u8>),
    /// Of another version.
    #[error("frame version {0}, this node speaks {VERSION}")]
    Version(u8),
    /// Unknown kind.
    #[error("frame of unknown kind {0}")]
    Kind(u8),
    /// Its length is not what its head says, or it is cut short.
    #[error("frame of {have} bytes, its head says {said}")]
    Length {
        /// The length in the head.
        said: usize,
        /// The length it has.
        have: usize,
    },
    /// Larger than it may be.
    #[error("frame with a payload of {0} bytes, the limit is {1}")]
    TooLarge(usize, usize),
    /// Its messages would take too much memory.
    #[error("frame whose messages would take {0} bytes of memory, the limit is {DECODED_MEMORY_MAX}")]
    TooMany(usize),
    /// Changed on its way.
    #[error("frame whose crc32 does not match")]
    Crc,
    /// The payload is not what its kind says.
    #[error("frame with a payload that cannot be decoded: {0}")]
    Payload(String),
}

impl Frame {
    fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => 1,
            Self::Batch(_) => 2,
            Self::Chunk(_) => 3,
            Self::Refused(_) => 4,
            Self::Received { .. } => 5,
            Self::Replaced(_) => 6,
        }
    }

    /// Its bytes. The sender sees to the limits.
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Hello(hello) => encode(self.kind(), hello.encoded_len(), |buffer| hello.encode_raw(buffer)),
            Self::Batch(batch) => encode(self.kind(), batch.encoded_len(), |buffer| batch.encode_raw(buffer)),
            Self::Chunk(chunk) => encode(self.kind(), chunk.encoded_len(), |buffer| chunk.encode_raw(buffer)),
            Self::Refused(words) | Self::Replaced(words) => {
                let words: String = words.chars().take(SMALL_BYTES_MAX / 4).collect();
                encode(self.kind(), words.len(), |buffer| buffer.put_slice(words.as_bytes()))
            }
            Self::Received { snapshot_id } => encode(self.kind(), 8, |buffer| buffer.put_u64(*snapshot_id)),
        }
    }

    /// A frame from its bytes, checked.
    pub fn decode(mut bytes: Bytes) -> Result<Self, FrameError> {
        let (kind, length) = check(&bytes)?;
        bytes.advance(HEAD_BYTES);
        debug_assert_eq!(bytes.len(), length);
        let payload = |error: prost::DecodeError| FrameError::Payload(error.to_string());
        Ok(match kind {
            1 => Self::Hello(Box::new(v1::Hello::decode(bytes).map_err(payload)?)),
            2 => {
                check_memory::<v1::PeerBatch>(&bytes)?;
                Self::Batch(v1::PeerBatch::decode(bytes).map_err(payload)?)
            }
            3 => {
                check_memory::<v1::SnapshotChunk>(&bytes)?;
                Self::Chunk(Box::new(v1::SnapshotChunk::decode(bytes).map_err(payload)?))
            }
            4 => Self::Refused(String::from_utf8_lossy(&bytes).into_owned()),
            5 if length == 8 => Self::Received { snapshot_id: bytes.get_u64() },
            5 => return Err(FrameError::Payload(format!("{length} bytes instead of 8"))),
            6 => Self::Replaced(String::from_utf8_lossy(&bytes).into_owned()),
            other => return Err(FrameError::Kind(other)),
        })
    }
}

fn encode(kind: u8, payload_bytes: usize, fill: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEAD_BYTES + payload_bytes);
    frame.put_slice(MAGIC);
    frame.put_slice(&[VERSION, kind, 0, 0]);
    frame.put_u32(u32::try_from(payload_bytes).expect("frames are kept below 16 MiB by their makers"));
    frame.put_u32(0);
    fill(&mut frame);
    let crc = crc(&frame);
    frame[CRC_AT..HEAD_BYTES].copy_from_slice(&crc.to_be_bytes());
    frame.freeze()
}

fn crc(frame: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&frame[..CRC_AT]);
    hasher.update(&frame[HEAD_BYTES..]);
    hasher.finalize()
}

/// Checks head, size and checksum; returns kind and payload length.
fn check(bytes: &[u8]) -> Result<(u8, usize), FrameError> {
    let Some(mut head) = bytes.get(..HEAD_BYTES) else {
        return Err(FrameError::Length { said: HEAD_BYTES, have: bytes.len() });
    };
    if !head.starts_with(MAGIC) {
        return Err(FrameError::Magic(head[..MAGIC.len()].to_vec()));
    }
    head.advance(MAGIC.len());
    let version = head.get_u8();
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    let kind = head.get_u8();
    head.advance(2);
    let length = head.get_u32() as usize;
    let limit = if matches!(kind, 2 | 3) { PAYLOAD_BYTES_MAX } else { SMALL_BYTES_MAX };
    if length > limit {
        return Err(FrameError::TooLarge(length, limit));
    }
    if length != bytes.len() - HEAD_BYTES {
        return Err(FrameError::Length { said: length, have: bytes.len() - HEAD_BYTES });
    }
    if head.get_u32() != crc(bytes) {
        return Err(FrameError::Crc);
    }
    Ok((kind, length))
}

/// What a payload's messages would take, before they do.
fn check_memory<M: Shaped>(payload: &[u8]) -> Result<(), FrameError> {
    let memory = M::SHAPE.decoded(payload).map_err(|error| FrameError::Payload(error.to_string()))?;
    if memory > DECODED_MEMORY_MAX { Err(FrameError::TooMany(memory)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames() -> Vec<Frame> {
        let entry = v1::LogEntry { entry_type: 0, term: 6, index: 7, data: Bytes::from_static(b"data") };
        let message = v1::PeerMessage { range_id: 2, term: 6, entries: vec![entry; 3], ..Default::default() };
        vec![
            Frame::Hello(Box::new(v1::Hello { cluster_id: 1, peer_addr: "a:1".into(), ..Default::default() })),
            Frame::Batch(v1::PeerBatch { messages: vec![message.clone(); 4], disk_full: true, ..Default::default() }),
            Frame::Batch(v1::PeerBatch::default()),
            Frame::Chunk(Box::new(v1::SnapshotChunk { snapshot_id: 3, message: Some(message), ..Default::default() })),
            Frame::Refused("another cluster".into()),
            Frame::Replaced("another store".into()),
            Frame::Received { snapshot_id: 9 },
        ]
    }

    #[test]
    fn frames_come_back_as_they_were() {
        for frame in frames() {
            assert_eq!(Frame::decode(frame.encode()), Ok(frame));
        }
    }

    #[test]
    fn golden() {
        assert_eq!(
            Frame::Received { snapshot_id: 9 }.encode()[..],
            [b'F', b'L', b'T', b'P', 1, 5, 0, 0, 0, 0, 0, 8, 153, 181, 104, 80, 0, 0, 0, 0, 0, 0, 0, 9]
        );
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        for frame in frames() {
            let bytes = frame.encode();
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes.to_vec();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(Frame::decode(bad.into()).is_err(), "bit {bit} of {frame:?}");
            }
            for length in 0..bytes.len() {
                assert!(Frame::decode(bytes.slice(..length)).is_err(), "cut at {length}");
            }
        }
    }

    #[test]
    fn sizes_are_refused_before_anything_is_decoded() {
        let large = encode(1, SMALL_BYTES_MAX + 1, |buffer| buffer.put_bytes(0, SMALL_BYTES_MAX + 1));
        assert_eq!(Frame::decode(large), Err(FrameError::TooLarge(SMALL_BYTES_MAX + 1, SMALL_BYTES_MAX)));
        // A million empty messages: two bytes each on the wire, hundreds in memory.
        let bomb = encode(2, 2_000_000, |buffer| (0..1_000_000).for_each(|_| buffer.put_slice(&[0x0a, 0])));
        assert!(matches!(Frame::decode(bomb), Err(FrameError::TooMany(_))));
        // The same with entries inside of one message.
        let mut inner = BytesMut::new();
        (0..2_000_000).for_each(|_| inner.put_slice(&[0x42, 0]));
        let bomb = encode(2, inner.len() + 5, |buffer| {
            buffer.put_u8(0x0a);
            prost::encoding::encode_varint(inner.len() as u64, buffer);
            buffer.put_slice(&inner);
        });
        assert!(matches!(Frame::decode(bomb), Err(FrameError::TooMany(_))));
    }
}
