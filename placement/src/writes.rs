//! The service's writes: what is to change together, packed into atomic batches, one under way at a time.
//!
//! Every batch compares the record `reign` with what this incarnation of the service made it. The first one makes it
//! so, on the condition that it is still the version that was loaded: from then on no older incarnation's batch
//! can be applied, whichever way it took. One batch at a time, because a later one rests on the earlier ones.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use flotilla_proto::v1;

use crate::records::{Change, REIGN_KEY};
use crate::service::{Write, WriteId};

/// Operations in a batch, below the limit by as much as one unit may have.
const OPS_MAX: usize = 700;
/// Changes of one unit.
pub(crate) const UNIT_CHANGES_MAX: usize = 300;

/// Changes that take effect together.
#[derive(Debug)]
struct Unit {
    number: u64,
    changes: Vec<Change>,
}

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Writer {
    /// What the record `reign` is once the first write is acknowledged.
    reign: v1::ReignRecord,
    /// The version that it was loaded with, until then.
    loaded_version: Option<u64>,
    /// The first unit goes with the first write.
    takes_along: bool,
    staged: VecDeque<Unit>,
    under_way: Option<(WriteId, Vec<Unit>)>,
    next_unit: u64,
    next_write: WriteId,
    acked: u64,
}

impl Writer {
    pub fn new(reign: v1::ReignRecord, loaded_version: u64) -> Self {
        Self {
            reign,
            loaded_version: Some(loaded_version),
            takes_along: false,
            staged: VecDeque::new(),
            under_way: None,
            next_unit: 1,
            next_write: 1,
            acked: 0,
        }
    }

    /// Takes changes in that take effect together, and their number.
    pub fn stage(&mut self, changes: Vec<Change>) -> u64 {
        let number = self.next_unit;
        self.next_unit += 1;
        self.staged.push_back(Unit { number, changes });
        number
    }

    /// Takes changes in that go with the first batch, so that no service finds the records taken over without them.
    pub fn stage_first(&mut self, changes: Vec<Change>) {
        self.takes_along = true;
        self.stage(changes);
    }

    /// The number of the last unit staged.
    pub fn last(&self) -> u64 {
        self.next_unit - 1
    }

    /// Whether the unit of this number is acknowledged.
    pub fn is_acked(&self, unit: u64) -> bool {
        unit <= self.acked
    }

    /// Whether the unit of this number is in the batch under way.
    pub fn is_under_way(&self, unit: u64) -> bool {
        self.under_way.as_ref().is_some_and(|(_, units)| units.iter().any(|other| other.number == unit))
    }

    /// Whether the records are taken over: the first write is acknowledged.
    pub fn is_open(&self) -> bool {
        self.loaded_version.is_none()
    }

    /// The next batch, if there is something to write and nothing is under way.
    pub fn next(&mut self) -> Option<Write> {
        if self.under_way.is_some() || (self.staged.is_empty() && self.loaded_version.is_none()) {
            return None;
        }
        let mut units = Vec::new();
        let mut changes = 0;
        // The first batch only takes the records over: what rests on that comes after it.
        while std::mem::take(&mut self.takes_along) || self.loaded_version.is_none() {
            let Some(unit) = self.staged.front() else { break };
            changes += unit.changes.len();
            if changes > OPS_MAX && !units.is_empty() {
                break;
            }
            units.extend(self.staged.pop_front());
        }
        let request = self.request(&units);
        let id = self.next_write;
        self.next_write += 1;
        self.under_way = Some((id, units));
        Some(Write { id, request })
    }

    fn request(&self, units: &[Unit]) -> v1::WriteRequest {
        use v1::write_op::Op;
        let (_, reign) = Change::Reign(self.reign).encode();
        let reign = reign.unwrap_or_default();
        let expect = match self.loaded_version {
            Some(version) => v1::compare_and_swap::Expect::Version(version),
            None => v1::compare_and_swap::Expect::Value(reign.clone()),
        };
        let fence = Op::CompareAndSwap(v1::CompareAndSwap {
            key: Bytes::from_static(REIGN_KEY),
            expect: Some(expect),
            new_value: Some(reign),
            ttl_ms: 0,
        });
        // Of several changes of one record the last counts.
        let mut last = BTreeMap::new();
        for change in units.iter().flat_map(|unit| &unit.changes) {
            let (key, value) = change.encode();
            last.insert(key, value);
        }
        let rest = last.into_iter().map(|(key, value)| match value {
            Some(value) => Op::Put(v1::Put { key, value, ..Default::default() }),
            None => Op::Delete(v1::Delete { key }),
        });
        let ops = std::iter::once(fence).chain(rest).map(|op| v1::WriteOp { op: Some(op) }).collect();
        v1::WriteRequest { ops, atomic: true }
    }

    /// The write was acknowledged: its changes, in order. `None`: it is not the one under way.
    pub fn done(&mut self, id: WriteId) -> Option<Vec<Change>> {
        let (_, units) = self.under_way.take_if(|(under_way, _)| *under_way == id)?;
        let takes_over = self.loaded_version.take().map(|_| Change::Reign(self.reign));
        self.acked = units.last().map_or(self.acked, |unit| unit.number);
        Some(takes_over.into_iter().chain(units.into_iter().flat_map(|unit| unit.changes)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::Counter;

    const REIGN: v1::ReignRecord = v1::ReignRecord { reign: 1, loads: 1, first_node_id: 0, first_range_id: 0 };

    fn unit(first: u64, count: u64) -> Vec<Change> {
        (first..first + count).map(Change::NoOrder).collect()
    }

    fn next(writer: &mut Writer) -> (WriteId, usize) {
        let write = writer.next().expect("something to write");
        assert!(write.request.atomic && writer.next().is_none(), "one at a time");
        (write.id, write.request.ops.len())
    }

    #[test]
    fn units_are_packed_and_never_torn() {
        let mut writer = Writer::new(REIGN, 9);
        for at in 0..4 {
            writer.stage(unit(at * 1_000, 300));
        }
        writer.stage(unit(9_000, 1_003));
        let mut sizes = Vec::new();
        for _ in 0..4 {
            let (id, ops) = next(&mut writer);
            sizes.push(ops);
            assert!(writer.done(id).is_some());
        }
        assert_eq!(sizes, [1, 601, 601, 1_004]);
        assert!(writer.next().is_none() && writer.is_acked(5));
    }

    #[test]
    fn what_goes_with_the_taking_over_is_in_the_first_batch() {
        let mut writer = Writer::new(REIGN, 9);
        writer.stage_first(unit(1, 3));
        writer.stage(unit(9, 2));
        let (id, ops) = next(&mut writer);
        let done = [vec![Change::Reign(REIGN)], unit(1, 3)].concat();
        assert_eq!((ops, writer.done(id)), (4, Some(done)));
        assert_eq!(next(&mut writer).1, 3);
    }

    #[test]
    fn the_last_change_of_a_record_counts_and_all_are_handed_back() {
        let mut writer = Writer::new(REIGN, 9);
        let (id, _) = next(&mut writer);
        writer.done(id);
        writer.stage(vec![Change::Next(Counter::Node, 5)]);
        writer.stage(vec![Change::Next(Counter::Node, 6)]);
        let (id, ops) = next(&mut writer);
        assert_eq!(ops, 2);
        assert!(writer.done(id + 1).is_none(), "another write's acknowledgement");
        assert_eq!(writer.done(id), Some(vec![Change::Next(Counter::Node, 5), Change::Next(Counter::Node, 6)]));
    }
}
