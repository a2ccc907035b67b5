//! Rows to be scanned, for tests of what reads the storage and nothing else.

use bytes::Bytes;

use super::{Direction, Family, Read, Visit};

/// Keys, in order, with their values.
pub(crate) struct Rows(pub Vec<(Vec<u8>, Vec<u8>)>);

impl Read for Rows {
    fn get(&self, _: Family, _: &[u8]) -> super::Result<Option<Bytes>> {
        Ok(None)
    }

    fn scan(&self, _: Family, start: &[u8], end: &[u8], _: Direction, visit: &mut Visit<'_>) -> super::Result<()> {
        for (key, value) in self.0.iter().filter(|(key, _)| &key[..] >= start && &key[..] < end) {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}
