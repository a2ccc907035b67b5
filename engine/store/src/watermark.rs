//! WATERMARK: a small file beside the database that says how far the WAL was known to be synced.
//!
//! Place in the flow: written at open, every few seconds, and at a clean stop; read before the next
//! open. The marks inside the WAL prove nothing about its own end, and this narrows that gap: to
//! nothing after a clean stop, to a few seconds after a crash.
//!
//! Invariant: the number in it never exceeds what was synced, so it never accuses a sound store.

use std::path::Path;

use crate::directory::{DirectoryError, write_atomically};
use crate::error::OpenError;

const MAGIC: &[u8; 8] = b"flWater1";
const BYTES: usize = 8 + 3 * 8 + 1 + 4;

/// What the file says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Watermark {
    /// Everything up to this sequence number was synced.
    pub(crate) synced: u64,
    /// The last sequence number when the store was opened; all WAL files of before are done with.
    pub(crate) opened_at: u64,
    /// Number of the first WAL file since then.
    pub(crate) first_wal: u64,
    /// It was written by a clean stop.
    pub(crate) clean_stop: bool,
}

impl Watermark {
    pub(crate) fn write(self, path: &Path) -> Result<(), DirectoryError> {
        write_atomically(path, &self.to_bytes())
    }

    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.extend_from_slice(MAGIC);
        for number in [self.synced, self.opened_at, self.first_wal] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.push(u8::from(self.clean_stop));
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
        bytes
    }

    /// `None`: there is none, as in a directory whose store was never opened.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, OpenError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(OpenError::io("read", path, &error)),
        };
        Self::parse(&bytes).map(Some).ok_or_else(|| OpenError::corrupt(path, "its contents do not match its crc"))
    }

    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.split_at_checked(BYTES - 4)?;
        (crc == crc32fast::hash(body).to_be_bytes()).then_some(())?;
        let numbers = body.strip_prefix(MAGIC)?;
        let number = |at: usize| Some(u64::from_be_bytes(numbers.get(8 * at..8 * at + 8)?.try_into().ok()?));
        Some(Self {
            synced: number(0)?,
            opened_at: number(1)?,
            first_wal: number(2)?,
            clean_stop: body.last() == Some(&1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let watermark = Watermark { synced: 258, opened_at: 7, first_wal: 12, clean_stop: true };
        let mut bytes = b"flWater1".to_vec();
        bytes.extend([0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 12, 1]);
        bytes.extend([0x3d, 0x2a, 0xd3, 0xaf]);
        assert_eq!(watermark.to_bytes(), bytes);
        assert_eq!(Watermark::parse(&bytes), Some(watermark));
    }
}
