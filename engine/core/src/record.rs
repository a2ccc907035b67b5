//! Records on disk: what stands behind the keys of [`crate::keys`]. Layout: docs/disk_format.md.
//!
//! Every record begins with the crc32 of what follows, and a format byte. RocksDB checks its own
//! blocks; the crc here also covers the way there and back, and a memtable's bytes.

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use raft::eraftpb;

use crate::storage::StorageError;

const FORMAT: u8 = 1;
/// Of a value with a deadline.
const FORMAT_WITH_DEADLINE: u8 = 2;
const HEAD_BYTES: usize = 4 + 1;
/// Formats of records without a crc stay below.
const BARE_FORMATS_MAX: u8 = 8;

fn corrupt(what: impl Into<String>) -> StorageError {
    StorageError::Corrupt { what: what.into() }
}

/// Formats are counted up from 1: one that is not known is a newer version's, and 0 is nobody's.
fn unknown_format(what: &str, format: u8) -> StorageError {
    match format {
        0 => corrupt(format!("{what}: format 0")),
        _ => StorageError::Newer { what: format!("{what} has format {format}") },
    }
}

/// The same of records without a crc: only a byte that may be a format before long is taken for one.
fn unknown_bare_format(what: &str, format: u8) -> StorageError {
    match format {
        BARE_FORMATS_MAX.. => corrupt(format!("{what}: its first byte is {format}, which is no format")),
        _ => unknown_format(what, format),
    }
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
        return Err(unknown_format(what, record[4]));
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
        crate::wire::entry_type(u32::from(kind))
            .ok_or_else(|| StorageError::Newer { what: format!("{} is of type {kind}", what()) })?,
    );
    entry.term = record.get_u64();
    entry.index = index;
    entry.data = record;
    Ok(entry)
}

/// A key's current value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its version.
    pub version: u64,
    /// When it ends, in the range's time; 0: it stays.
    pub deadline_ms: u64,
    /// The value.
    pub value: Bytes,
}

/// A key's current value on disk: version, the deadline if there is one, then the value. No crc of its own: RocksDB's
/// blocks carry one, and the command that wrote it was checked on its way.
pub fn encode_value(version: u64, deadline_ms: u64, value: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(17 + value.len());
    record.put_u8(if deadline_ms == 0 { FORMAT } else { FORMAT_WITH_DEADLINE });
    record.put_u64(version);
    if deadline_ms != 0 {
        record.put_u64(deadline_ms);
    }
    record.extend_from_slice(value);
    record
}

/// How long [`encode_value`] makes it.
pub(crate) fn value_bytes(stored: &Stored) -> usize {
    stored.value.len() + if stored.deadline_ms == 0 { 9 } else { 17 }
}

/// What a data record holds.
pub fn decode_value(mut record: Bytes) -> Result<Stored, StorageError> {
    let (version, deadline_ms) = value_head(&record)?;
    record.advance(if deadline_ms == 0 { 9 } else { 17 });
    Ok(Stored { version, deadline_ms, value: record })
}

/// The version and the deadline (0: none) of a data record, without its value.
pub fn value_head(mut record: &[u8]) -> Result<(u64, u64), StorageError> {
    let (length, format) = (record.len(), record.first().copied().unwrap_or(FORMAT));
    let head = match format {
        FORMAT => 9,
        FORMAT_WITH_DEADLINE => 17,
        _ => return Err(unknown_bare_format("a value", format)),
    };
    if length < head {
        return Err(corrupt(format!("value of {length} bytes: cut short")));
    }
    record.advance(1);
    let version = record.get_u64();
    let deadline_ms = if format == FORMAT { 0 } else { record.get_u64() };
    if format == FORMAT_WITH_DEADLINE && deadline_ms == 0 {
        return Err(corrupt("value: its deadline is 0"));
    }
    Ok((version, deadline_ms))
}

/// A key's record in the expiry index: its deadline and its version.
pub fn encode_expiry(version: u64, deadline_ms: u64) -> [u8; 17] {
    let mut record = [FORMAT; 17];
    record[1..9].copy_from_slice(&deadline_ms.to_be_bytes());
    record[9..].copy_from_slice(&version.to_be_bytes());
    record
}

/// The version and the deadline in a record of the expiry index.
pub fn decode_expiry(mut record: &[u8]) -> Result<(u64, u64), StorageError> {
    if let [format, ..] = record
        && *format != FORMAT
    {
        return Err(unknown_bare_format("a record in the expiry index", *format));
    }
    if record.len() != 17 {
        return Err(corrupt(format!("record of {} bytes in the expiry index: not 17", record.len())));
    }
    record.advance(1);
    let deadline_ms = record.get_u64();
    Ok((record.get_u64(), deadline_ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_proto::v1;

    #[test]
    fn golden() {
        let state = v1::RaftState { term: 6, vote: 2, commit: 7, truncated_index: 5, truncated_term: 5 };
        assert_eq!(encode(&state), [247, 139, 28, 70, 1, 8, 6, 16, 2, 24, 7, 32, 5, 40, 5]);
        assert_eq!(encode_value(258, 0, b"v"), [1, 0, 0, 0, 0, 0, 0, 1, 2, b'v']);
        assert_eq!(encode_value(258, 3, b"v"), [2, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 3, b'v']);
        assert_eq!(encode_expiry(258, 3), [1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(decode_expiry(&encode_expiry(258, 3)), Ok((258, 3)));
        for deadline_ms in [0, 3] {
            let stored = Stored { version: 258, deadline_ms, value: Bytes::from_static(b"v") };
            let record = encode_value(258, deadline_ms, b"v");
            assert_eq!(decode_value(record.clone().into()), Ok(stored));
            assert!((0..record.len() - 1).all(|length| decode_value(record[..length].to_vec().into()).is_err()));
        }
        let entry = eraftpb::Entry { term: 3, index: 9, data: Bytes::from_static(b"x"), ..Default::default() };
        let record = encode_entry(&entry);
        assert_eq!(record[4..], [1, 0, 0, 0, 0, 0, 0, 0, 0, 3, b'x']);
        assert_eq!(decode_entry(9, record.into()), Ok(entry));
    }

    /// A crc that fits says that nobody but a newer version can have written it.
    #[test]
    fn newer_records_are_named_as_such() {
        let mut sealed = encode(&v1::RaftState::default());
        sealed[4] = FORMAT + 1;
        let crc = crc32fast::hash(&sealed[4..]);
        sealed[..4].copy_from_slice(&crc.to_be_bytes());
        let error = decode::<v1::RaftState>(&sealed, "Raft state").expect_err("of a newer format");
        let words = error.to_string();
        assert!(words.contains("newer version") && words.contains("Raft state has format 2"), "{words}");
        let mut value = encode_value(258, 3, b"v");
        value[0] = FORMAT_WITH_DEADLINE + 1;
        assert!(matches!(decode_value(value.into()), Err(StorageError::Newer { .. })));
        let mut expiry = encode_expiry(258, 3);
        expiry[0] = FORMAT + 1;
        assert!(matches!(decode_expiry(&expiry), Err(StorageError::Newer { .. })));
        assert!(matches!(decode_expiry(&[]), Err(StorageError::Corrupt { .. })));
        let entry = eraftpb::Entry { term: 3, data: Bytes::from_static(b"x"), ..Default::default() };
        let mut entry = encode_entry(&entry);
        entry[5] = 9;
        let crc = crc32fast::hash(&entry[4..]);
        entry[..4].copy_from_slice(&crc.to_be_bytes());
        assert!(matches!(decode_entry(9, entry.into()), Err(StorageError::Newer { .. })));
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
