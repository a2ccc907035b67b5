//! The operations of a command: conditions are evaluated against the state as it stands, and what holds is
//! written.

use std::collections::HashMap;

use bytes::Bytes;
use flotilla_proto::{KeyspaceId, v1};

use super::RangeApply;
use crate::command;
use crate::keys;
use crate::read;
use crate::record;
use crate::storage::{Family, Storage, StorageError, WriteBatch};

/// One call of [`ApplyStage::apply`]: the batch it fills, and what later operations must see of it.
pub(super) struct Pass<'a, S: Storage> {
    pub storage: &'a S,
    pub batch: S::Batch,
    /// What the batch holds for keys (as on disk): reads look here first. Point access only, so the
    /// map's order never matters.
    pub overlay: HashMap<Vec<u8>, Option<Stored>>,
}

type Stored = (u64, Bytes);

impl<S: Storage> Pass<'_, S> {
    fn current(&self, key: &[u8]) -> Result<Option<Stored>, StorageError> {
        if let Some(known) = self.overlay.get(key) {
            return Ok(known.clone());
        }
        self.storage.get(Family::State, key)?.map(record::decode_value).transpose()
    }

    fn write(&mut self, key: Vec<u8>, change: Option<Stored>) {
        match &change {
            Some((version, value)) => {
                self.batch.put(Family::State, &key, &record::encode_value(*version, value));
            }
            None => self.batch.delete(Family::State, &key),
        }
        self.overlay.insert(key, change);
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
        let key = command::op_key(op).cloned().unwrap_or_default();
        // Proposals are checked for this; the epoch check covers changes since. Never write outside.
        if !read::contains(&self.descriptor, &key) || op.op.is_none() {
            return Ok(Outcome { key: Vec::new(), current: None, change: None, holds: false, shows_current: false });
        }
        let key = keys::data(KeyspaceId(self.descriptor.keyspace_id), &key);
        Ok(match &op.op {
            Some(Op::Put(put)) => {
                let current = if put.if_absent { pass.current(&key)? } else { None };
                let holds = !put.if_absent || current.is_none();
                Outcome { key, current, change: Some(put.value.clone()), holds, shows_current: false }
            }
            Some(Op::Delete(_)) => {
                Outcome { current: pass.current(&key)?, key, change: None, holds: true, shows_current: false }
            }
            Some(Op::CompareAndSwap(swap)) => {
                let current = pass.current(&key)?;
                let holds = expectation_holds(swap, current.as_ref());
                Outcome { key, current, change: swap.new_value.clone(), holds, shows_current: true }
            }
            None => unreachable!("handled above"),
        })
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
        pass.write(outcome.key, outcome.change.map(|value| (version, value)));
        v1::WriteResult { applied: true, version, existed, current: None }
    }
}

/// What an operation found, and would do.
struct Outcome {
    key: Vec<u8>,
    /// The key's state before; not looked up for a blind put.
    current: Option<Stored>,
    /// The new value; none: deletion.
    change: Option<Bytes>,
    holds: bool,
    shows_current: bool,
}

impl Outcome {
    fn refuse(self) -> v1::WriteResult {
        let version = self.current.as_ref().map_or(0, |(version, _)| *version);
        let existed = self.current.is_some();
        let current = self.current.filter(|_| self.shows_current).map(|(version, value)| v1::Record {
            key: Bytes::new(),
            value,
            version,
        });
        v1::WriteResult { applied: false, version, existed, current }
    }
}

fn expectation_holds(swap: &v1::CompareAndSwap, current: Option<&Stored>) -> bool {
    use v1::compare_and_swap::Expect;
    match (&swap.expect, current) {
        (Some(Expect::Value(expected)), Some((_, value))) => expected == value,
        (Some(Expect::Version(expected)), Some((version, _))) => expected == version,
        (Some(Expect::Absent(true)), None) => true,
        // Version 0 is what a key that is not there shows.
        (Some(Expect::Version(0)), None) => true,
        _ => false,
    }
}
