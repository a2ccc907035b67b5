//! Merges, in the apply stage: a range is frozen and thawed in its own log; its neighbour takes it in, or decides not to.
//! The protocol and why it is safe: `range/merge.rs`.
//!
//! Taking a range in touches no data. One batch holds the neighbour's records as they are from then on, and the tombstone
//! of the one that it took in; what that one has left on the disk (records, log) goes with a later batch of the log
//! writer, behind all that the log writer still has of it, or at the next start. With the tombstone it is over.
//!
//! Whether the entry has any effect depends on the neighbour's own state alone, and is the same on all its replicas. That the replica
//! of the other range on this disk stands just where it was frozen is the protocol's promise; if it does not, the store stops.

use std::sync::Arc;

use flotilla_mutants::Mutant;
use flotilla_proto::{RangeId, v1};

use super::change::write_tombstone;
use super::ops::Pass;
use super::{ApplyRefusal, RangeApply, RangeChange};
use crate::merges;
use crate::storage::{Storage, StorageError};

impl RangeApply {
    /// The freeze in force.
    pub(super) fn frozen(&self) -> Option<&v1::Frozen> {
        self.merge.as_ref()?.frozen.as_ref()
    }

    /// Applies a freeze: from here on nothing but a thaw has any effect.
    pub(super) fn apply_freeze<S: Storage>(
        &mut self,
        pass: &mut Pass<'_, S>,
        command: &v1::Command,
        freeze: &v1::Freeze,
    ) -> Result<RangeChange, ApplyRefusal> {
        let conf_ver = self.descriptor.epoch.unwrap_or_default().conf_ver;
        if freeze.conf_ver != conf_ver || !merges::is_settled(&self.descriptor) {
            return Err(ApplyRefusal::Change);
        }
        self.advance_time(command);
        let frozen = v1::Frozen {
            index: self.applied.index + 1,
            term: command.term,
            target_range_id: freeze.target_range_id,
            target_epoch: freeze.target_epoch,
            version_counter: self.applied.version_counter,
            range_time_ms: self.applied.range_time_ms,
            next_expiry_ms: self.applied.next_expiry_ms,
            checksum: self.applied.checksum,
        };
        self.merge.get_or_insert_default().frozen = Some(frozen);
        self.put_merge_state(pass);
        self.raise_version(pass);
        Ok(RangeChange::Frozen { descriptor: self.descriptor.clone(), frozen })
    }

    /// Applies a thaw: the range goes on.
    pub(super) fn apply_thaw<S: Storage>(
        &mut self,
        pass: &mut Pass<'_, S>,
        thaw: v1::Thaw,
    ) -> Result<RangeChange, ApplyRefusal> {
        let state = self.merge.as_mut().ok_or(ApplyRefusal::Change)?;
        let frozen = state.frozen.take_if(|frozen| frozen.index == thaw.freeze_index).ok_or(ApplyRefusal::Change)?;
        self.put_merge_state(pass);
        Ok(RangeChange::Thawed { frozen })
    }

    /// Takes a frozen neighbour in.
    pub(super) fn apply_merge<S: Storage>(
        &mut self,
        pass: &mut Pass<'_, S>,
        command: &v1::Command,
        merge: &v1::Merge,
    ) -> Result<Result<RangeChange, ApplyRefusal>, StorageError> {
        let (Some(source), Some(frozen)) = (&merge.source, &merge.frozen) else {
            return Ok(Err(ApplyRefusal::Change));
        };
        if !self.is_named_by(frozen) || merges::check(&self.descriptor, source).is_err() {
            return Ok(Err(ApplyRefusal::Change));
        }
        let theirs = stands_frozen(pass, source, frozen)?;
        self.advance_time(command);
        self.take_counters(frozen);
        let (id, epoch) = (RangeId(source.range_id), self.descriptor.epoch.unwrap_or_default());
        let state = self.merge.get_or_insert_default();
        state.absorbed = merges::joined(&state.absorbed, id, &theirs.absorbed);
        let absorbed = state.absorbed.clone();
        self.put_merge_state(pass);
        if !Mutant::MergeTombstoneApart.is_on() {
            write_tombstone(&mut pass.batch, id, &merges::tombstone(RangeId(self.descriptor.range_id)));
        }
        let theirs = source.epoch.unwrap_or_default().version;
        let descriptor = v1::RangeDescriptor {
            end: source.end.clone(),
            epoch: Some(v1::Epoch { version: epoch.version.max(theirs) + 1, ..epoch }),
            ..(*self.descriptor).clone()
        };
        self.set_descriptor(pass, descriptor);
        let source = Arc::new(source.clone());
        Ok(Ok(RangeChange::Merged { descriptor: self.descriptor.clone(), source, absorbed }))
    }

    /// Decides that a frozen neighbour is not taken in: with another epoch it never can be.
    pub(super) fn apply_abandon<S: Storage>(
        &mut self,
        pass: &mut Pass<'_, S>,
        abandon: &v1::Abandon,
    ) -> Result<RangeChange, ApplyRefusal> {
        if !abandon.frozen.as_ref().is_some_and(|frozen| self.is_named_by(frozen)) {
            return Err(ApplyRefusal::Change);
        }
        self.raise_version(pass);
        let source = RangeId(abandon.source_range_id);
        Ok(RangeChange::Abandoned { descriptor: self.descriptor.clone(), source })
    }

    /// Whether a freeze names this range, as it is now.
    fn is_named_by(&self, frozen: &v1::Frozen) -> bool {
        frozen.target_range_id == self.descriptor.range_id && frozen.target_epoch == self.descriptor.epoch
    }

    /// Versions go on above those of both halves. The time goes on from the lower of the two, where both have keys that
    /// end: for keys of the other half a higher one would be a leap (`range/expiry.rs`). The bound is the lower one.
    fn take_counters(&mut self, frozen: &v1::Frozen) {
        let own = &mut self.applied;
        if !Mutant::MergeKeepsCounter.is_on() {
            own.version_counter = own.version_counter.max(frozen.version_counter);
        }
        (own.range_time_ms, own.next_expiry_ms) = match (own.next_expiry_ms, frozen.next_expiry_ms) {
            (0, 0) => (own.range_time_ms.max(frozen.range_time_ms), 0),
            (_, 0) => (own.range_time_ms, own.next_expiry_ms),
            (0, bound) => (frozen.range_time_ms, bound),
            (one, other) => (own.range_time_ms.min(frozen.range_time_ms), one.min(other)),
        };
        if frozen.next_expiry_ms != 0 {
            own.last_ttl_index = own.index + 1;
        }
    }

    fn raise_version<S: Storage>(&mut self, pass: &mut Pass<'_, S>) {
        let epoch = self.descriptor.epoch.unwrap_or_default();
        let epoch = Some(v1::Epoch { version: epoch.version + 1, ..epoch });
        self.set_descriptor(pass, v1::RangeDescriptor { epoch, ..(*self.descriptor).clone() });
    }

    fn put_merge_state<S: Storage>(&self, pass: &mut Pass<'_, S>) {
        merges::put(&mut pass.batch, RangeId(self.descriptor.range_id), self.merge.as_deref());
    }
}

/// What the frozen range's record on this disk says; an error if its replica here is not just where it was frozen.
fn stands_frozen<S: Storage>(
    pass: &Pass<'_, S>,
    source: &v1::RangeDescriptor,
    frozen: &v1::Frozen,
) -> Result<v1::MergeState, StorageError> {
    let state = merges::read(pass.storage, RangeId(source.range_id))?;
    if state.frozen.as_ref() == Some(frozen) {
        return Ok(state);
    }
    let what = format!(
        "range {} is to take in range {}, frozen as {frozen:?}, but the replica here is {:?}: keep the data directory for inspection",
        frozen.target_range_id, source.range_id, state.frozen
    );
    Err(StorageError::Corrupt { what })
}
