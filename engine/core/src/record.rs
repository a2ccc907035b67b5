//! Records on disk: what stands behind the keys of [`crate::keys`]. Layout: docs/disk_format.md.
//!
//! Every record begins with the crc32 of what follows, and a format byte. RocksDB checks its own
//! blocks; the crc here also covers the way there and back, and a memtable's bytes.

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use raft::eraftpb;

use crate::storage::StorageError;

const FORMAT: u8 = 1;
const HEAD_BYTES: usize = 4 + 1;

fn corrupt(what: impl Into<String>) -> StorageError {
    StorageError::Corrupt { what: what.into() }
}

/// Wraps a body: crc32, format, body.
fn seal(body_bytes: usize, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEAD_BYTES + body_bytes);
    record.extend_from_slice(&[0, 0, 0, 0, FORMAT]);
    fill(&mut record);
    let crc = crc32fast::hash(&record[4..]);
    record[..4].copy_from_slice(&crc.to_be_bytes());
    record
}

/// Checks crc and format, and returns where the body begins.
fn unseal(record: &[u8], what: &str) -> Result<usize, StorageError> {
    if record.len() < HEAD_BYTES {
        return Err(corrupt(format!("{what} of {} bytes: cut short", record.len())));
    }
    let stored = u32::from_be_bytes([record[0], record[1], record[2], record[3]]);
    if crc32fast::hash(&record[4..]) != stored {
        return Err(corrupt(format!("{what}: its crc32 does not match")));
    }
    if record[4] != FORMAT {
        return Err(corrupt(format!("{what}: format {} is not known to this version", record[4])));
    }
    Ok(HEAD_BYTES)
}

/// Encodes a protobuf record.
pub fn encode(message: &impl Message) -> Vec<u8> {
    seal(message.encoded_len(), |record| message.encode_raw(record))
}

/// Decodes a protobuf record; `what` names it in errors.
pub fn decode<M: Message + Default>(record: &[u8], what: &str) -> Result<M, StorageError> {
    let body = unseal(record, what)?;
    M::decode(&record[body..]).map_err(|error| corrupt(format!("{what}: {error}")))
}

/// Encodes a log entry; its index is in its key.
pub fn encode_entry(entry: &eraftpb::Entry) -> Vec<u8> {
    seal(9 + entry.data.len(), |record| {
        record.put_u8(entry.get_entry_type() as u8);
        record.put_u64(entry.term);
        record.extend_from_slice(&entry.data);
    })
}

/// Decodes a log entry that was kept under `index`.
pub fn decode_entry(index: u64, mut record: Bytes) -> Result<eraftpb::Entry, StorageError> {
    let what = || format!("log entry {index}");
    let body = unseal(&record, &what())?;
    record.advance(body);
    if record.len() < 9 {
        return Err(corrupt(format!("{}: cut short", what())));
    }
    let mut entry = eraftpb::Entry::default();
    let kind = record.get_u8();
    entry.set_entry_type(
        crate::wire::entry_type(u32::from(kind)).ok_or_else(|| corrupt(format!("{}: type {kind}", what())))?,
    );
    entry.term = record.get_u64();
    entry.index = index;
    entry.data = record;
    Ok(entry)
}

/// A key's current value on disk: version, then the value. No crc of its own: RocksDB's blocks carry
/// one, and the command that wrote it was checked on its way.
pub fn encode_value(version: u64, value: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(9 + value.len());
    record.put_u8(FORMAT);
    record.put_u64(version);
    record.extend_from_slice(value);
    record
}

/// The version and the value of a data record.
pub fn decode_value(mut record: Bytes) -> Result<(u64, Bytes), StorageError> {
    if record.len() < 9 {
        return Err(corrupt(format!("value of {} bytes: cut short", record.len())));
    }
    let format = record.get_u8();
    if format != FORMAT {
        return Err(corrupt(format!("value: format {format} is not known to this version")));
    }
    let version = record.get_u64();
    Ok((version, record))
}

/// The version of a data record, without its value.
pub fn value_version(record: &[u8]) -> Result<u64, StorageError> {
    let version = record.get(1..9).ok_or_else(|| corrupt("value: cut short"))?;
    Ok(u64::from_be_bytes(version.try_into().expect("eight bytes were taken")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_proto::v1;

    #[test]
    fn golden() {
        let state = v1::RaftState { term: 6, vote: 2, commit: 7, truncated_index: 5, truncated_term: 5 };
        assert_eq!(encode(&state), [247, 139, 28, 70, 1, 8, 6, 16, 2, 24, 7, 32, 5, 40, 5]);
        assert_eq!(encode_value(258, b"v"), [1, 0, 0, 0, 0, 0, 0, 1, 2, b'v']);
        let entry = eraftpb::Entry { term: 3, index: 9, data: Bytes::from_static(b"x"), ..Default::default() };
        let record = encode_entry(&entry);
        assert_eq!(record[4..], [1, 0, 0, 0, 0, 0, 0, 0, 0, 3, b'x']);
        assert_eq!(decode_entry(9, record.into()), Ok(entry));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let record = encode(&v1::RaftState { term: 6, vote: 2, commit: 7, truncated_index: 5, truncated_term: 5 });
        for bit in 0..record.len() * 8 {
            let mut bad = record.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<v1::RaftState>(&bad, "Raft state").is_err(), "bit {bit}");
        }
        for length in 0..record.len() {
            assert!(decode::<v1::RaftState>(&record[..length], "Raft state").is_err(), "cut at {length}");
        }
    }
}
