//! What a Raft entry carries: the writes of one or more requests, stamped with who evaluated them when.
//!
//! Bytes: crc32 | version | protobuf [`v1::Command`]. The crc is made where the command is proposed
//! and checked by every replica before apply, so that a bit that turned anywhere between is noticed.
//! A node that meets a version it does not know stops before the entry, and never skips it.

use bytes::{Buf, Bytes};
use flotilla_proto::v1;
use prost::Message;

/// The newest command version that this build can apply. 2 brought changes of the range, and ttls; 3 brought merges.
pub const VERSION: u8 = 3;
/// What all other commands are written as.
const VERSION_BEFORE_MERGES: u8 = 2;

/// The lowest version in which this command means what it says.
fn version_of(command: &v1::Command) -> u8 {
    use v1::command::Change;
    match command.change {
        Some(Change::Freeze(_) | Change::Thaw(_) | Change::Merge(_) | Change::Abandon(_)) => VERSION,
        _ => VERSION_BEFORE_MERGES,
    }
}

const HEAD_BYTES: usize = 4 + 1;

/// Why a log entry cannot be applied. Each is a reason to stop the store: skipping the entry would
/// make this replica differ from the others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The bytes are not those that were proposed.
    #[error("log entry is corrupt: {0}")]
    Corrupt(String),
    /// A newer node proposed it.
    #[error("log entry has command version {0}, this build knows up to {VERSION}: run a newer version of flotilla")]
    UnknownVersion(u8),
    /// A newer node proposed a change of members.
    #[error("log entry changes the range's members, which this build cannot: run a newer version of flotilla")]
    UnknownEntryType,
}

/// The bytes of a command.
pub fn encode(command: &v1::Command) -> Bytes {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + command.encoded_len());
    bytes.extend_from_slice(&[0, 0, 0, 0, version_of(command)]);
    command.encode_raw(&mut bytes);
    let crc = crc32fast::hash(&bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_be_bytes());
    bytes.into()
}

/// The command in an entry's bytes, and its crc32 (part of the range's rolling checksum).
pub fn decode(mut bytes: Bytes) -> Result<(v1::Command, u32), CommandError> {
    if bytes.len() < HEAD_BYTES {
        return Err(CommandError::Corrupt(format!("{} bytes", bytes.len())));
    }
    let crc = bytes.get_u32();
    if crc32fast::hash(&bytes) != crc {
        return Err(CommandError::Corrupt("its crc32 does not match".into()));
    }
    let version = bytes.get_u8();
    if version == 0 || version > VERSION {
        return Err(CommandError::UnknownVersion(version));
    }
    let command = v1::Command::decode(bytes).map_err(|error| CommandError::Corrupt(error.to_string()))?;
    Ok((command, crc))
}

/// The key that an operation writes; `None` if the operation is empty.
pub fn op_key(op: &v1::WriteOp) -> Option<&Bytes> {
    use v1::write_op::Op;
    match op.op.as_ref()? {
        Op::Put(put) => Some(&put.key),
        Op::Delete(delete) => Some(&delete.key),
        Op::CompareAndSwap(swap) => Some(&swap.key),
    }
}

/// Bytes of an operation's key and values: what back-pressure counts.
pub fn op_bytes(op: &v1::WriteOp) -> usize {
    use v1::compare_and_swap::Expect;
    use v1::write_op::Op;
    match &op.op {
        None => 0,
        Some(Op::Put(put)) => put.key.len() + put.value.len(),
        Some(Op::Delete(delete)) => delete.key.len(),
        Some(Op::CompareAndSwap(swap)) => {
            let expected = if let Some(Expect::Value(value)) = &swap.expect { value.len() } else { 0 };
            swap.key.len() + expected + swap.new_value.as_ref().map_or(0, Bytes::len)
        }
    }
}

/// Whether an operation only ever frees space: allowed on a disk at its margin.
pub fn op_frees_space(op: &v1::WriteOp) -> bool {
    use v1::write_op::Op;
    match &op.op {
        Some(Op::Delete(_)) => true,
        Some(Op::CompareAndSwap(swap)) => swap.new_value.is_none(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> v1::Command {
        let put = v1::Put { key: "k".into(), value: "v".into(), if_absent: false, ttl_ms: 0 };
        let op = v1::WriteOp { op: Some(v1::write_op::Op::Put(put)) };
        let request = v1::WriteRequest { ops: vec![op], atomic: false };
        v1::Command {
            range_id: 2,
            replica_id: 1,
            term: 6,
            epoch_version: 1,
            requests: vec![request],
            ..Default::default()
        }
    }

    #[test]
    fn golden() {
        let bytes = encode(&sample());
        let body = [2, 8, 2, 16, 1, 24, 6, 32, 1, 42, 10, 10, 8, 10, 6, 10, 1, b'k', 18, 1, b'v'];
        assert_eq!(bytes[4..], body);
        assert_eq!(decode(bytes).map(|(command, _)| command), Ok(sample()));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = encode(&sample());
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(decode(bad.into()), Err(CommandError::Corrupt(_))), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_command_is_named_and_not_skipped() {
        let mut bytes = encode(&sample()).to_vec();
        bytes[4] = VERSION + 1;
        let crc = crc32fast::hash(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_be_bytes());
        assert_eq!(decode(bytes.into()), Err(CommandError::UnknownVersion(VERSION + 1)));
    }
}
