//! A reader of RocksDB's log format, in which WAL and MANIFEST are written.
//!
//! Source: RocksDB's `db/log_format.h` and `db/log_reader.cc` (11.8), and the page "Write Ahead Log File
//! Format" of its wiki. A file is a row of 32 KiB blocks. A record is cut into fragments that do not
//! cross blocks: crc32c of what follows (masked, 4 bytes, little-endian like all numbers), length
//! (2), type (1: full, 2: first, 3: middle, 4: last; 5 to 8 the same in recycled files, followed
//! by the file's number, 4), then the bytes. Less than 7 bytes at the end of a block are filler.
//! Types with the highest bit may be ignored.
//!
//! Unlike RocksDB's reader this one calls zeroed space bad instead of skipping it, and can look for
//! intact records behind a bad place: they are the evidence that the bad place once was good.

use std::borrow::Cow;

pub(super) const BLOCK_BYTES: usize = 32 << 10;
pub(super) const HEADER_BYTES: usize = 7;
const RECYCLABLE_HEADER_BYTES: usize = 11;

const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;
const RECYCLABLE: std::ops::RangeInclusive<u8> = 5..=8;
const IGNORABLE: u8 = 0x80;

/// A bad place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bad {
    /// Where the record begins that cannot be read.
    pub(super) offset: usize,
    /// What is wrong there.
    pub(super) what: &'static str,
    /// It is just that the file ends too early.
    pub(super) cut_short: bool,
}

/// A record, and where it lies.
#[derive(Debug)]
pub(super) struct Record<'a> {
    pub(super) offset: usize,
    pub(super) end: usize,
    pub(super) data: Cow<'a, [u8]>,
}

struct Fragment<'a> {
    kind: u8,
    data: &'a [u8],
    end: usize,
}

/// A file's contents.
pub(super) struct LogFile<'a> {
    bytes: &'a [u8],
    /// Its number; recycled records of another number are no part of it.
    number: u64,
}

impl<'a> LogFile<'a> {
    pub(super) fn new(bytes: &'a [u8], number: u64) -> Self {
        Self { bytes, number }
    }

    /// Its length without zeros at the end: the room behind what was written.
    pub(super) fn used_bytes(&self) -> usize {
        self.bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
    }

    /// Skips the filler at the end of a block.
    fn skip_filler(at: usize) -> usize {
        let left = BLOCK_BYTES - at % BLOCK_BYTES;
        if left < HEADER_BYTES { at + left } else { at }
    }

    /// The fragment at `at`; `None` at the end of the file.
    fn fragment(&self, at: usize) -> Result<Option<Fragment<'a>>, Bad> {
        let bad = |what, cut_short| Err(Bad { offset: at, what, cut_short });
        let block_end = (at / BLOCK_BYTES + 1) * BLOCK_BYTES;
        if at >= self.bytes.len() {
            return Ok(None);
        }
        let block = &self.bytes[at..block_end.min(self.bytes.len())];
        let ends_here = block_end > self.bytes.len();
        let Some((header, _)) = block.split_first_chunk::<HEADER_BYTES>() else {
            return bad("a cut record header", true);
        };
        let [c0, c1, c2, c3, l0, l1, kind] = *header;
        let recyclable = RECYCLABLE.contains(&kind);
        let header_bytes = if recyclable { RECYCLABLE_HEADER_BYTES } else { HEADER_BYTES };
        let length = usize::from(u16::from_le_bytes([l0, l1]));
        if kind == 0 && length == 0 {
            return bad("zeros where a record should be", false);
        }
        let Some(data) = block.get(header_bytes..header_bytes + length) else {
            return bad("a record longer than what is left of its block", ends_here);
        };
        if unmask(u32::from_le_bytes([c0, c1, c2, c3])) != crc32c::crc32c(&block[6..header_bytes + length]) {
            return bad("a record that does not match its checksum", false);
        }
        if recyclable && block[HEADER_BYTES..header_bytes] != (self.number as u32).to_le_bytes() {
            return bad("a record of an older file", false);
        }
        let kind = if recyclable { kind - RECYCLABLE.start() + FULL } else { kind };
        Ok(Some(Fragment { kind, data, end: at + header_bytes + length }))
    }

    /// The record at or after `at`; `None` at the end of the file.
    pub(super) fn record(&self, at: usize) -> Result<Option<Record<'a>>, Bad> {
        let mut at = Self::skip_filler(at);
        let mut offset = at;
        let mut parts: Option<Vec<u8>> = None;
        loop {
            let Some(fragment) = self.fragment(at).map_err(|bad| Bad { offset, ..bad })? else {
                return match parts {
                    Some(_) => Err(Bad { offset, what: "a record whose end is missing", cut_short: true }),
                    None => Ok(None),
                };
            };
            let Fragment { kind, data, end } = fragment;
            match (kind, &mut parts) {
                (FULL, None) => return Ok(Some(Record { offset, end, data: Cow::Borrowed(data) })),
                (FIRST, None) => parts = Some(data.to_vec()),
                (MIDDLE, Some(parts)) => parts.extend_from_slice(data),
                (LAST, Some(parts)) => {
                    parts.extend_from_slice(data);
                    return Ok(Some(Record { offset, end, data: Cow::Owned(std::mem::take(parts)) }));
                }
                (kind, None) if kind & IGNORABLE != 0 => offset = Self::skip_filler(end),
                (FULL..=LAST, _) => return Err(Bad { offset, what: "a part of a record alone", cut_short: false }),
                _ => return Err(Bad { offset, what: "a record of an unknown type", cut_short: false }),
            }
            at = Self::skip_filler(end);
        }
    }

    /// The first record after `at` that is whole, and that `is_sound` takes for one. Looked for at each
    /// byte of the block that went bad; of the blocks after it, from fragment to fragment, as long as
    /// those are good.
    pub(super) fn next_intact(&self, at: usize, is_sound: impl Fn(&[u8]) -> bool) -> Option<Record<'a>> {
        let whole = |at: usize| {
            let record = self.record(at).ok().flatten()?;
            is_sound(&record.data).then_some(record)
        };
        // No record begins in zeros.
        let used = self.used_bytes();
        let mut block_end = (at / BLOCK_BYTES + 1) * BLOCK_BYTES;
        let mut bad_at = Some(at);
        loop {
            let after = bad_at.map_or(block_end, |at| at + 1)..block_end.min(used);
            if let Some(record) = after.into_iter().filter(|at| Self::skip_filler(*at) == *at).find_map(whole) {
                return Some(record);
            }
            let block = block_end;
            if block >= used {
                return None;
            }
            block_end += BLOCK_BYTES;
            match self.first_in_block(block, whole) {
                Ok(record) => return Some(record),
                Err(bad) => bad_at = bad,
            }
        }
    }

    /// The first record that begins in a block, behind the tail of one that began earlier. Otherwise the
    /// bad place, if that was what kept it from being found.
    fn first_in_block(
        &self,
        block: usize,
        whole: impl Fn(usize) -> Option<Record<'a>>,
    ) -> Result<Record<'a>, Option<usize>> {
        let mut at = block;
        while at < block + BLOCK_BYTES {
            if let Some(record) = whole(at) {
                return Ok(record);
            }
            match self.fragment(at) {
                Ok(Some(fragment)) => at = Self::skip_filler(fragment.end),
                Ok(None) => break,
                Err(_) => return Err(Some(at)),
            }
        }
        Err(None)
    }
}

/// RocksDB stores crcs rotated and shifted, so that the crc of bytes with crcs in them stays good.
fn unmask(masked: u32) -> u32 {
    masked.wrapping_sub(0xA282_EAD8).rotate_right(17)
}
