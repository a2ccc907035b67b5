//! What a range goes on with when its majority is lost for good: the state that its one replica leads to, and what that
//! means for whoever judges the run.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use flotilla_engine::apply::{ApplyStage, ApplyTask, ApplyWork};
use flotilla_engine::recover::RangeBoot;
use flotilla_engine::storage::{Direction, Family, Read};
use flotilla_engine::{keys, record, recover};
use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::{KeyspaceId, RangeId, v1};

use crate::checker::Versioned;
use crate::cluster::Cluster;
use crate::disk::SimDisk;
use crate::marks::Mark;
use crate::territory::holds_key;

/// All keys of a range with their values.
type Values = BTreeMap<Bytes, Versioned>;

/// A range's replica, and what the range holds once all of its log is applied. (Who goes on alone commits all that it has.)
fn state(disk: &SimDisk, range: RangeId) -> Result<(RangeBoot, Values), String> {
    let copy = disk.copy();
    let boot = recover::load(&copy).map_err(|error| error.to_string())?.ok_or("the store is empty")?;
    let of = boot.ranges.iter().find(|of| of.descriptor.range_id == range.0).ok_or("the range is not there")?.clone();
    let task = ApplyTask { range, work: ApplyWork::Entries(of.entries.clone()) };
    ApplyStage::new(&boot).apply(&copy, vec![task], &mut |_, _| {}).map_err(|error| error.to_string())?;
    let (start, end) = keys::data_span(KeyspaceId(of.descriptor.keyspace_id), &of.descriptor.start, &of.descriptor.end);
    let (mut values, mut failed) = (Values::new(), None);
    let mut visit =
        |key: &[u8], value: &[u8]| match (keys::user_key(key), record::decode_value(Bytes::copy_from_slice(value))) {
            (Some(key), Ok(stored)) => {
                values.insert(key, (stored.value, stored.version));
                ControlFlow::Continue(())
            }
            (_, stored) => {
                failed = Some(format!("key {key:02x?} cannot be read: {:?}", stored.err()));
                ControlFlow::Break(())
            }
        };
    copy.scan(Family::State, &start, &end, Direction::Forward, &mut visit).map_err(|error| error.to_string())?;
    failed.map_or(Ok((of, values)), Err)
}

impl Cluster {
    /// A replica goes on without its majority, and that is durable.
    pub(crate) fn goes_on(&mut self, index: usize, range: RangeId) {
        if self.is_outcast(index) {
            return;
        }
        let (of, values) = match state(&self.nodes[index].disk, range) {
            Ok(found) => found,
            Err(what) => return self.check(Err(format!("n{}: what {range} goes on with: {what}", index + 1))),
        };
        let Some(record) = of.recoveries.recoveries.last().cloned() else {
            return self.check(Err(format!("n{} goes on with {range}, and has no record of it", index + 1)));
        };
        if !self.real.as_mut().is_some_and(|real| real.goes_on(range, record.plan_id.clone())) {
            return;
        }
        self.marks.hit(Mark::RangeWentOn);
        if record.last_index > record.commit_index {
            self.marks.hit(Mark::UncommittedKept);
        }
        self.trace.note(self.now, "goes on", &[index as u64 + 1, range.0, of.applied.index, of.last_index]);
        let verdict = self.invariants.went_on(index, &of.descriptor, of.raft.term, of.applied.index);
        self.check(verdict);
        self.forget_values(&of.descriptor, &values);
        if range == SYSTEM_RANGE {
            self.marks.hit(Mark::SystemWentOn);
            let records = values.into_iter().map(|(key, (value, _))| (key, value)).collect();
            self.ledger_goes_back(records, of.last_index);
        }
    }

    /// A range's keys have the values that were kept, and no others.
    pub(crate) fn forget_values(&mut self, range: &v1::RangeDescriptor, values: &Values) {
        let keyspace = KeyspaceId(range.keyspace_id);
        let known = self.recorder.keys.get(&keyspace).into_iter().flatten();
        let known: Vec<Bytes> = known.filter(|key| holds_key(range, key)).cloned().collect();
        for key in known {
            self.recorder.history.lose(self.now, &key, values.get(&key).cloned());
        }
        // Two ranges may have gone back to different moments.
        self.recorder.pairs.retain(|(one, other)| holds_key(range, one) == holds_key(range, other));
    }
}
