//! What the audit must know of the MANIFEST: which WAL files recovery will read, and how far the table
//! files reach.
//!
//! Source: RocksDB's `db/version_edit.h`, `db/version_edit.cc` (11.8). CURRENT names the MANIFEST, a log
//! file of edits; an edit is a row of tagged fields. Tags with bit 13 carry a length and may be
//! skipped; of the others all must be known, since they do not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::batch::{string, varint};
use super::log_file::LogFile;
use crate::error::OpenError;

const IGNORABLE: u64 = 1 << 13;
const END_OF_FILE_FIELDS: u64 = 1;

/// What all edits together say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Manifest {
    /// WAL files with smaller numbers are not read any more.
    pub(super) min_wal: u64,
    /// A sequence number that is at least the last one in any WAL file before `min_wal`.
    pub(super) last_sequence: u64,
    /// Sequence numbers that some table file holds alone, whether it still exists or has been compacted: ingested files
    /// take theirs past the WAL. (So may a flushed file with one change in it; that change then is not lost either.)
    pub(super) alone: BTreeSet<u64>,
}

#[derive(Default)]
pub(super) struct Edits {
    families: BTreeMap<u64, u64>,
    min_wal_to_keep: u64,
    last_sequence: u64,
    alone: BTreeSet<u64>,
}

/// Reads CURRENT and the MANIFEST that it names.
pub(super) fn read(folder: &Path) -> Result<Manifest, OpenError> {
    let path = current(folder)?;
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(OpenError::corrupt(&path, "it is missing, although CURRENT names it"));
        }
        Err(error) => return Err(OpenError::io("read", &path, &error)),
    };
    let file = LogFile::new(&bytes, 0);
    let mut edits = Edits::default();
    let mut at = 0;
    loop {
        match file.record(at) {
            Ok(Some(record)) => {
                if edits.apply(&record.data).is_none() {
                    let what = format!("an edit that cannot be read at byte {}", record.offset);
                    return Err(OpenError::corrupt(&path, what));
                }
                at = record.end;
            }
            Ok(None) => break,
            // An edit that was being written when the machine stopped; what was synced comes before.
            Err(bad) if bad.cut_short && at > 0 && file.next_intact(bad.offset, |_| true).is_none() => break,
            Err(bad) => {
                return Err(OpenError::corrupt(&path, format!("{} at byte {}", bad.what, bad.offset)));
            }
        }
    }
    if edits.families.is_empty() {
        return Err(OpenError::corrupt(&path, "it names no column family"));
    }
    let flushed = edits.families.values().copied().min().unwrap_or(0);
    Ok(Manifest { min_wal: edits.min_wal_to_keep.max(flushed), last_sequence: edits.last_sequence, alone: edits.alone })
}

fn current(folder: &Path) -> Result<PathBuf, OpenError> {
    let path = folder.join("CURRENT");
    let text = std::fs::read(&path).map_err(|error| OpenError::io("read", &path, &error))?;
    let name = std::str::from_utf8(&text).ok().and_then(|text| text.strip_suffix('\n'));
    let number = name.and_then(|name| name.strip_prefix("MANIFEST-"));
    match (name, number) {
        (Some(name), Some(number)) if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => {
            Ok(folder.join(name))
        }
        _ => Err(OpenError::corrupt(&path, "it does not name a MANIFEST")),
    }
}

impl Edits {
    /// `None`: the edit makes no sense.
    pub(super) fn apply(&mut self, mut edit: &[u8]) -> Option<()> {
        let (mut family, mut log_number, mut dropped) = (0, None, false);
        let mut added = false;
        while !edit.is_empty() {
            match varint(&mut edit)? {
                2 => log_number = Some(varint(&mut edit)?),
                4 => self.last_sequence = self.last_sequence.max(varint(&mut edit)?),
                10 => self.min_wal_to_keep = self.min_wal_to_keep.max(varint(&mut edit)?),
                200 => family = varint(&mut edit)?,
                201 => {
                    string(&mut edit)?;
                    added = true;
                }
                202 => dropped = true,
                103 => {
                    let (smallest, largest) = new_file(&mut edit)?;
                    if smallest == largest && smallest > 0 {
                        self.alone.insert(smallest);
                    }
                }
                tag => skip_field(tag, &mut edit)?,
            }
        }
        if dropped {
            self.families.remove(&family);
        } else if added || log_number.is_some() {
            let known = self.families.entry(family).or_insert(0);
            *known = (*known).max(log_number.unwrap_or(0));
        }
        Some(())
    }
}

fn skip_field(tag: u64, edit: &mut &[u8]) -> Option<()> {
    match tag {
        // Comparator's name.
        1 => string(edit).map(|_| ()),
        // Next file number, previous WAL's number, largest family, rest of an atomic group.
        3 | 9 | 203 | 300 => varint(edit).map(|_| ()),
        // Compaction cursor: level, key.
        5 => varint(edit).and(string(edit)).map(|_| ()),
        // Deleted file: level, number.
        6 => varint(edit).and_then(|_| varint(edit)).map(|_| ()),
        tag if tag & IGNORABLE != 0 => string(edit).map(|_| ()),
        _ => None,
    }
}

/// Level, number, size, smallest and largest key, smallest and largest sequence number; then tagged
/// fields with their lengths, up to an end. Returns the two sequence numbers.
fn new_file(edit: &mut &[u8]) -> Option<(u64, u64)> {
    for _ in 0..3 {
        varint(edit)?;
    }
    string(edit)?;
    string(edit)?;
    let sequence_numbers = (varint(edit)?, varint(edit)?);
    while varint(edit)? != END_OF_FILE_FIELDS {
        string(edit)?;
    }
    Some(sequence_numbers)
}
