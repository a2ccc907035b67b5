//! What the audit must know of a WAL record: which sequence numbers it takes, and the marks in it.
//!
//! Source: RocksDB's `db/write_batch.cc` and `db/dbformat.h` (11.8). A batch is its first sequence number
//! (8 bytes, little-endian), the number of its changes (4), then the changes: a tag, the family's
//! number as a varint if the tag says so, then strings with their lengths as varints. A change takes
//! one sequence number each; log data takes none. RocksDB joins batches of one write group into one
//! record, log data included.

const LOG_DATA: u8 = 0x03;
const NOOP: u8 = 0x0D;

const MARK_MAGIC: &[u8; 4] = b"flSy";
const MARK_BYTES: usize = 12;

/// The log data that says up to which sequence number the WAL was known synced.
pub(crate) fn mark(synced: u64) -> [u8; MARK_BYTES] {
    let mut mark = [0; MARK_BYTES];
    mark[..4].copy_from_slice(MARK_MAGIC);
    mark[4..].copy_from_slice(&synced.to_be_bytes());
    mark
}

fn marked(log_data: &[u8]) -> Option<u64> {
    let synced = log_data.strip_prefix(MARK_MAGIC)?;
    Some(u64::from_be_bytes(synced.try_into().ok()?))
}

/// What a batch says of the sequence numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) first: u64,
    pub(super) count: u64,
    /// The largest mark in it; 0: none.
    pub(super) synced: u64,
}

pub(super) fn varint(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = input.split_first()?;
        *input = rest;
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

pub(super) fn string<'a>(input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(varint(input)?).ok()?;
    let (string, rest) = input.split_at_checked(length)?;
    *input = rest;
    Some(string)
}

/// How a change goes on after its tag: with a family, and how many strings.
fn shape(tag: u8) -> Option<(bool, usize)> {
    Some(match tag {
        0x00 | 0x07 => (false, 1),
        0x01 | 0x02 | 0x0F => (false, 2),
        0x04 | 0x08 => (true, 1),
        0x05 | 0x06 | 0x0E => (true, 2),
        _ => return None,
    })
}

impl Batch {
    /// `None`: these bytes are no batch.
    pub(super) fn decode(record: &[u8]) -> Option<Self> {
        let (first, rest) = record.split_first_chunk::<8>()?;
        let (count, mut rest) = rest.split_first_chunk::<4>()?;
        let mut batch = Self { first: u64::from_le_bytes(*first), count: 0, synced: 0 };
        while let Some((tag, after)) = rest.split_first() {
            rest = after;
            match *tag {
                LOG_DATA => batch.synced = batch.synced.max(marked(string(&mut rest)?).unwrap_or(0)),
                NOOP => {}
                tag => {
                    let (has_family, strings) = shape(tag)?;
                    if has_family {
                        varint(&mut rest)?;
                    }
                    for _ in 0..strings {
                        string(&mut rest)?;
                    }
                    batch.count += 1;
                }
            }
        }
        // What is marked lies before the batch: anything else is no batch of ours.
        let is_sound = batch.count == u64::from(u32::from_le_bytes(*count)) && batch.synced < batch.first;
        is_sound.then_some(batch)
    }

    /// The sequence number that the next batch has.
    pub(super) fn next(self) -> u64 {
        self.first.saturating_add(self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let bytes = [b'f', b'l', b'S', b'y', 0, 0, 0, 0, 0, 0, 1, 2];
        assert_eq!(mark(258), bytes);
        assert_eq!(marked(&bytes), Some(258));
    }
}
