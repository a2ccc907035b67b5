//! The splits that a range has been through, as entries of its log.
//!
//! A split is committed once a quorum has it in the log, and each of its children needs as many replicas to begin. A
//! replica that has the entry and has not applied it may meanwhile fall so far behind that it is sent a snapshot of
//! what is left of the range: it would leap over the split, no replica of the child would begin there, and with
//! another one that was never there the child would be without a quorum for ever. So a snapshot names the splits that
//! are behind it. Who finds one of them in its own log, at the same index and term, knows that it is committed, applies it
//! first, and then takes the next snapshot (`range/install.rs`).

use flotilla_proto::{RangeId, v1};

use crate::keys::{self, RangeRecord};
use crate::record;
use crate::storage::{self, Family, Read, WriteBatch};

/// So many are kept. Who is further behind than that leaps over the older ones.
const KEPT: usize = 64;

/// Adds a split that is being applied.
pub(crate) fn add(splits: &mut v1::Splits, index: u64, term: u64) {
    splits.entries.push(v1::SplitEntry { index, term });
    let surplus = splits.entries.len().saturating_sub(KEPT);
    splits.entries.drain(..surplus);
}

/// What a range's record says.
pub(crate) fn read(storage: &dyn Read, range: RangeId) -> storage::Result<v1::Splits> {
    let bytes = storage.get(Family::State, &keys::range_record(range, RangeRecord::Splits))?;
    bytes.map_or(Ok(v1::Splits::default()), |bytes| record::decode(&bytes, &format!("splits of range {range}")))
}

/// Makes the range's record say this.
pub(crate) fn put<B: WriteBatch>(batch: &mut B, range: RangeId, entries: &[v1::SplitEntry]) {
    let key = keys::range_record(range, RangeRecord::Splits);
    if entries.is_empty() {
        batch.delete(Family::State, &key);
    } else {
        batch.put(Family::State, &key, &record::encode(&v1::Splits { entries: entries.to_vec() }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept() {
        let mut splits = v1::Splits::default();
        for index in 1..=100 {
            add(&mut splits, index, 6);
        }
        let indexes: Vec<u64> = splits.entries.iter().map(|split| split.index).collect();
        assert_eq!(indexes, (37..=100).collect::<Vec<u64>>());
    }
}
