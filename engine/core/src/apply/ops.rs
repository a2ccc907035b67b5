//! The operations of a command: conditions are evaluated against the state as it stands, and what holds is
//! written.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use flotilla_mutants::Mutant;
use flotilla_proto::{KeyspaceId, v1};

use super::RangeApply;
use super::expiry::ExpiryChange;
use crate::command;
use crate::keys;
use crate::read;
use crate::record::{self, Stored};
use crate::storage::{Family, Storage, StorageError, WriteBatch};

/// One call of [`super::ApplyStage::apply`]: the batch it fills, and what later operations must see of it.
pub(super) struct Pass<'a, S: Storage> {
    pub storage: &'a S,
    /// All but the data.
    pub batch: S::Batch,
    /// The data that is still to go into the batch, by its key on disk: reads look here first. In order, because what is near
    /// in the batch is then near in the memtable, whose search for a place begins where the last one ended.
    data: BTreeMap<Vec<u8>, Option<Stored>>,
    /// About as many bytes as `data` has had.
    data_bytes: usize,
    /// What the present task has changed in the expiry index.
    pub expiry: Vec<ExpiryChange>,
}

impl<'a, S: Storage> Pass<'a, S> {
    pub(super) fn new(storage: &'a S) -> Self {
        Self { storage, batch: storage.batch(), data: BTreeMap::new(), data_bytes: 0, expiry: Vec::new() }
    }

    pub(super) fn current(&self, key: &[u8]) -> Result<Option<Stored>, StorageError> {
        if let Some(known) = self.data.get(key) {
            return Ok(known.clone());
        }
        self.storage.get(Family::State, key)?.map(record::decode_value).transpose()
    }

    pub(super) fn write(&mut self, key: Vec<u8>, change: Option<Stored>) {
        self.data_bytes += key.len() + change.as_ref().map_or(0, record::value_bytes);
        self.data.insert(key, change);
    }

    /// Deletes all keys of the family `state` in `[start, end)`, those that this pass has written among them.
    pub(super) fn delete_span(&mut self, start: &[u8], end: &[u8]) {
        self.batch.delete_range(Family::State, start, end);
        if start < end {
            let written = (Bound::Included(start), Bound::Excluded(end));
            self.data.range_mut::<[u8], _>(written).for_each(|(_, change)| *change = None);
        }
    }

    /// About how many bytes the pass has written so far.
    pub(super) fn size_bytes(&self) -> usize {
        self.batch.size_bytes() + self.data_bytes
    }

    /// Writes what was gathered: one batch.
    pub(super) fn flush(&mut self) -> Result<(), StorageError> {
        let mut batch = std::mem::replace(&mut self.batch, self.storage.batch());
        for (key, change) in std::mem::take(&mut self.data) {
            match change {
                Some(Stored { version, deadline_ms, value }) => {
                    batch.put(Family::State, &key, &record::encode_value(version, deadline_ms, &value));
                }
                None => batch.delete(Family::State, &key),
            }
        }
        self.data_bytes = 0;
        if batch.is_empty() { Ok(()) } else { self.storage.write(batch) }
    }
}

impl RangeApply {
    pub(super) fn apply_request<S: Storage>(
        &mut self,
        pass: &mut Pass<'_, S>,
        request: &v1::WriteRequest,
    ) -> Result<Vec<v1::WriteResult>, StorageError> {
        if request.atomic && request.ops.len() > 1 {
            return self.apply_atomic(pass, &request.ops);
        }
        request.ops.iter().map(|op| self.apply_op(pass, op)).collect()
    }

    /// All or nothing: the conditions are all evaluated against the state before the batch.
    fn apply_atomic<S: Storage>(
        &mut self,
        pass: &mut Pass<'_, S>,
        ops: &[v1::WriteOp],
    ) -> Result<Vec<v1::WriteResult>, StorageError> {
        let mut outcomes = Vec::with_capacity(ops.len());
        for op in ops {
            outcomes.push(self.evaluate(pass, op)?);
        }
        if outcomes.iter().all(|outcome| outcome.holds) {
            return outcomes.into_iter().map(|outcome| Ok(self.commit(pass, outcome))).collect();
        }
        Ok(outcomes.into_iter().map(Outcome::refuse).collect())
    }

    fn apply_op<S: Storage>(
        &mut self,
        pass: &mut Pass<'_, S>,
        op: &v1::WriteOp,
    ) -> Result<v1::WriteResult, StorageError> {
        let outcome = self.evaluate(pass, op)?;
        Ok(if outcome.holds { self.commit(pass, outcome) } else { outcome.refuse() })
    }

    /// What an operation would do to the state as it stands.
    fn evaluate<S: Storage>(&self, pass: &Pass<'_, S>, op: &v1::WriteOp) -> Result<Outcome, StorageError> {
        use v1::write_op::Op;
        let user_key = command::op_key(op).cloned().unwrap_or_default();
        // Proposals are checked for this; the epoch check covers changes since. Never write outside.
        if !read::contains(&self.descriptor, &user_key) && !Mutant::NoEpochCheck.is_on() {
            return Ok(Outcome::default());
        }
        let key = keys::data(KeyspaceId(self.descriptor.keyspace_id), &user_key);
        let looked_up = |current: Option<Stored>| Outcome {
            indexed: current.as_ref().is_some_and(|current| current.deadline_ms != 0),
            current,
            holds: true,
            ..Outcome::default()
        };
        let outcome = match &op.op {
            Some(Op::Put(put)) => {
                let change = Some((put.value.clone(), put.ttl_ms));
                if put.if_absent {
                    let found = looked_up(pass.current(&key)?);
                    Outcome { holds: found.current.is_none(), change, ..found }
                } else {
                    Outcome { change, holds: true, indexed: self.has_ttls(), ..Outcome::default() }
                }
            }
            Some(Op::Delete(_)) => looked_up(pass.current(&key)?),
            Some(Op::CompareAndSwap(swap)) => {
                let found = looked_up(pass.current(&key)?);
                let holds = expectation_holds(swap, found.current.as_ref());
                let change = swap.new_value.clone().map(|value| (value, swap.ttl_ms));
                Outcome { holds, change, shows_current: true, ..found }
            }
            None => return Ok(Outcome::default()),
        };
        Ok(Outcome { user_key, key, ..outcome })
    }

    /// Writes what was evaluated.
    fn commit<S: Storage>(&mut self, pass: &mut Pass<'_, S>, outcome: Outcome) -> v1::WriteResult {
        let existed = outcome.current.is_some();
        if outcome.change.is_none() && !existed {
            // Deleting what is not there writes nothing, and takes no version.
            return v1::WriteResult { applied: true, ..Default::default() };
        }
        self.applied.version_counter += 1;
        let version = self.applied.version_counter;
        let change = outcome.change.map(|(value, ttl_ms)| {
            let deadline_ms = self.deadline(ttl_ms);
            Stored { version, deadline_ms, value }
        });
        let deadline_ms = change.as_ref().map_or(0, |change| change.deadline_ms);
        self.index_expiry(pass, &outcome.user_key, version, deadline_ms, outcome.indexed);
        pass.write(outcome.key, change);
        v1::WriteResult { applied: true, version, existed, current: None }
    }
}

/// What an operation found, and would do.
#[derive(Default)]
struct Outcome {
    user_key: Bytes,
    /// As on disk.
    key: Vec<u8>,
    /// The key's state before; not looked up for a blind put.
    current: Option<Stored>,
    /// The new value and its ttl; none: deletion.
    change: Option<(Bytes, u64)>,
    /// Whether the key may have a record in the expiry index.
    indexed: bool,
    holds: bool,
    shows_current: bool,
}

impl Outcome {
    fn refuse(self) -> v1::WriteResult {
        let version = self.current.as_ref().map_or(0, |current| current.version);
        let existed = self.current.is_some();
        let current = self.current.filter(|_| self.shows_current).map(|current| v1::Record {
            value: current.value,
            version: current.version,
            ..Default::default()
        });
        v1::WriteResult { applied: false, version, existed, current }
    }
}

fn expectation_holds(swap: &v1::CompareAndSwap, current: Option<&Stored>) -> bool {
    use v1::compare_and_swap::Expect;
    match (&swap.expect, current) {
        (Some(Expect::Value(expected)), Some(current)) => *expected == current.value,
        (Some(Expect::Version(expected)), Some(current)) => *expected == current.version,
        (Some(Expect::Absent(true)), None) => true,
        // Version 0 is what a key that is not there shows.
        (Some(Expect::Version(0)), None) => true,
        _ => false,
    }
}
