//! A snapshot's records in pieces of about 1 MiB, each with its checksum.
//!
//! A chunk is a sequence of records: key length (4 bytes, big-endian), value length, key, value, with
//! the crc32 of all that in front. Keys and values are those of the family `state`, of the range's spans only.

use bytes::{Buf, BufMut, Bytes};

use super::corrupt;
use crate::storage;

/// Bytes after which a chunk is full.
const CHUNK_BYTES: usize = 1 << 20;
const CRC_BYTES: usize = 4;

/// Cuts records into chunks.
#[derive(Default)]
pub(super) struct Cutter {
    open: Vec<u8>,
    /// Bytes of keys and values so far.
    pub(super) bytes: u64,
    pub(super) records: u64,
}

impl Cutter {
    /// Adds a record; a chunk that is full with it comes back.
    pub(super) fn push(&mut self, key: &[u8], value: &[u8]) -> Option<Bytes> {
        if self.open.is_empty() {
            self.open.put_u32(0);
        }
        self.open.put_u32(u32::try_from(key.len()).expect("keys have at most 8 KiB"));
        self.open.put_u32(u32::try_from(value.len()).expect("values have at most 1 MiB"));
        self.open.extend_from_slice(key);
        self.open.extend_from_slice(value);
        self.bytes += (key.len() + value.len()) as u64;
        self.records += 1;
        if self.open.len() >= CHUNK_BYTES { self.finish() } else { None }
    }

    /// The last chunk, if there is anything in it.
    pub(super) fn finish(&mut self) -> Option<Bytes> {
        let mut chunk = std::mem::take(&mut self.open);
        if chunk.is_empty() {
            return None;
        }
        let crc = crc32fast::hash(&chunk[CRC_BYTES..]);
        chunk[..CRC_BYTES].copy_from_slice(&crc.to_be_bytes());
        Some(chunk.into())
    }
}

/// Shows the records of a chunk, after checking all of its bytes.
pub(super) fn for_each_record(
    chunk: &[u8],
    mut visit: impl FnMut(&[u8], &[u8]) -> storage::Result<()>,
) -> storage::Result<()> {
    let mut rest = chunk;
    if rest.len() < CRC_BYTES || rest.get_u32() != crc32fast::hash(&chunk[CRC_BYTES..]) {
        return Err(corrupt("snapshot chunk: its crc32 does not match"));
    }
    while !rest.is_empty() {
        if rest.len() < 8 {
            return Err(corrupt("snapshot chunk: cut short"));
        }
        let (key_bytes, value_bytes) = (rest.get_u32() as usize, rest.get_u32() as usize);
        if rest.len() < key_bytes.saturating_add(value_bytes) {
            return Err(corrupt("snapshot chunk: a record is cut short"));
        }
        let (key, after) = rest.split_at(key_bytes);
        let (value, after) = after.split_at(value_bytes);
        visit(key, value)?;
        rest = after;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn golden() {
        let mut cutter = Cutter::default();
        assert_eq!(cutter.push(b"key", b"va"), None);
        assert_eq!(cutter.push(b"k", b""), None);
        let chunk =
            [&[0xf3, 0xad, 0x7c, 0xbf][..], &[0, 0, 0, 3, 0, 0, 0, 2], b"keyva", &[0, 0, 0, 1, 0, 0, 0, 0], b"k"]
                .concat();
        assert_eq!(cutter.finish(), Some(Bytes::from(chunk.clone())));
        let mut records = Vec::new();
        for_each_record(&chunk, |key, value| {
            records.push((key.to_vec(), value.to_vec()));
            Ok(())
        })
        .expect("it is whole");
        assert_eq!(records, [(b"key".to_vec(), b"va".to_vec()), (b"k".to_vec(), Vec::new())]);
    }
}
