//! Changes of a range itself: splits, changes of its replicas.
//!
//! A split hands data over without touching it: the range ends where its first child begins, and the children's
//! records (descriptor, applied state, Raft state) are written in the same batch. What a child's Raft state has
//! become since must survive a split that is applied a second time, and a replica that was removed from a child
//! before the split was applied here must not come back by it (cockroach#75918, #162085).
//!
//! A change of replicas that leaves this store's replica out also writes its tombstone, in the same batch: no
//! message and no snapshot brings that replica back, whatever crash comes next (tikv#1262). Its data goes
//! afterwards (`range/`), or at the next start.

use std::sync::Arc;

use flotilla_mutants::Mutant;
use flotilla_proto::{KeyspaceId, RangeId, v1};

use super::ops::Pass;
use super::{ApplyRefusal, RangeApply};
use crate::bootstrap::{INITIAL_INDEX, INITIAL_TERM};
use crate::keys::{self, RangeRecord};
use crate::membership;
use crate::record;
use crate::splits;
use crate::storage::{Family, Storage, StorageError, WriteBatch};

/// What an entry has changed about the range itself.
#[derive(Clone, Debug, PartialEq)]
pub struct ChangeApplied {
    /// The entry.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// What came of it.
    pub outcome: Result<RangeChange, ApplyRefusal>,
}

/// See [`ChangeApplied`].
#[derive(Clone, Debug, PartialEq)]
pub enum RangeChange {
    /// It was split.
    Split {
        /// What is left of it.
        descriptor: Arc<v1::RangeDescriptor>,
        /// Its children, in key order.
        children: Vec<Child>,
    },
    /// Its replicas changed.
    Replicas {
        /// The range before.
        before: Arc<v1::RangeDescriptor>,
        /// The range now.
        descriptor: Arc<v1::RangeDescriptor>,
        /// Whether this store's replica is not among them.
        removed: bool,
    },
    /// It stands still, to be taken in by its left neighbour.
    Frozen {
        /// The range, as it is now.
        descriptor: Arc<v1::RangeDescriptor>,
        /// How.
        frozen: v1::Frozen,
    },
    /// It goes on, as it was.
    Thawed {
        /// How it stood still.
        frozen: v1::Frozen,
    },
    /// It took its right neighbour in.
    Merged {
        /// The range, as it is now.
        descriptor: Arc<v1::RangeDescriptor>,
        /// The neighbour, as it was frozen.
        source: Arc<v1::RangeDescriptor>,
        /// Ids of all ranges that it has taken in by now, ascending.
        absorbed: Vec<u64>,
    },
    /// It decided never to take its right neighbour in as that is frozen now.
    Abandoned {
        /// The range, as it is now.
        descriptor: Arc<v1::RangeDescriptor>,
        /// The neighbour.
        source: RangeId,
    },
    /// Every replica computes its checksum.
    Checksum {
        /// Names the check.
        check_id: u64,
    },
}

/// A child of a split.
#[derive(Clone, Debug, PartialEq)]
pub struct Child {
    /// The range.
    pub descriptor: Arc<v1::RangeDescriptor>,
    /// What it begins with.
    pub applied: v1::AppliedState,
    /// Whether a replica of it begins here now. Otherwise it is here already, or was removed.
    pub born: bool,
}

/// The Raft state that a range begins with. See [`INITIAL_INDEX`].
pub fn initial_raft_state() -> v1::RaftState {
    v1::RaftState {
        term: INITIAL_TERM,
        vote: 0,
        commit: INITIAL_INDEX,
        truncated_index: INITIAL_INDEX,
        truncated_term: INITIAL_TERM,
    }
}

/// The applied state that a range begins with, unless it inherits one.
pub fn initial_applied() -> v1::AppliedState {
    v1::AppliedState { index: INITIAL_INDEX, term: INITIAL_TERM, ..Default::default() }
}

impl RangeApply {
    /// Applies a split; what begins here is added to `born`.
    pub(super) fn apply_split<S: Storage>(
        &mut self,
        pass: &mut Pass<'_, S>,
        node: u64,
        split: &v1::Split,
        term: u64,
    ) -> Result<Result<RangeChange, ApplyRefusal>, StorageError> {
        let Some((left, children)) = cut(&self.descriptor, split) else { return Ok(Err(ApplyRefusal::Change)) };
        // The rest of the split comes from what the children were told and what is on this disk.
        let mut done = Vec::with_capacity(children.len());
        for descriptor in children {
            // The range's time and its bound hold for both halves; the child's indexes begin anew.
            let applied =
                v1::AppliedState { index: INITIAL_INDEX, term: INITIAL_TERM, last_ttl_index: 0, ..self.applied };
            let born = begin_child(pass, node, &descriptor, &applied)?;
            done.push(Child { descriptor: Arc::new(descriptor), applied, born });
        }
        self.set_descriptor(pass, left);
        self.note_split(pass, term)?;
        Ok(Ok(RangeChange::Split { descriptor: self.descriptor.clone(), children: done }))
    }

    /// Applies a change of replicas.
    pub(super) fn apply_replicas<S: Storage>(
        &mut self,
        pass: &mut Pass<'_, S>,
        node: u64,
        change: &v1::ChangeReplicas,
        term: u64,
    ) -> Result<RangeChange, ApplyRefusal> {
        let before = self.descriptor.clone();
        let epoch = before.epoch.unwrap_or_default();
        let foreseen = change.conf_ver == epoch.conf_ver && change.next_replica_id >= before.next_replica_id;
        // An id that a former replica had would be taken for it.
        let ids = before.next_replica_id..change.next_replica_id;
        let fresh = |of: &v1::ReplicaDescriptor| ids.contains(&of.replica_id);
        let known = |of: &v1::ReplicaDescriptor| before.replicas.iter().any(|old| old.replica_id == of.replica_id);
        let named_well = change.replicas.iter().all(|of| known(of) || fresh(of));
        if !foreseen || !named_well || membership::check_step(&before, &change.replicas).is_err() {
            return Err(ApplyRefusal::Change);
        }
        let own = own_replica(&before, node);
        let removed = !change.replicas.iter().any(|replica| Some(replica.replica_id) == own);
        let descriptor = v1::RangeDescriptor {
            epoch: Some(v1::Epoch { conf_ver: epoch.conf_ver + 1, ..epoch }),
            replicas: change.replicas.clone(),
            next_replica_id: change.next_replica_id,
            ..(*before).clone()
        };
        if let Some(replica_id) = own.filter(|_| removed && !Mutant::TombstoneApart.is_on()) {
            let (index, epoch) = (self.applied.index + 1, descriptor.epoch);
            let tombstone = v1::Tombstone { replica_id, index, term, merged_into: 0, epoch };
            write_tombstone(&mut pass.batch, RangeId(before.range_id), &tombstone);
        }
        self.set_descriptor(pass, descriptor);
        Ok(RangeChange::Replicas { before, descriptor: self.descriptor.clone(), removed })
    }

    /// Keeps that the present entry is a split.
    fn note_split<S: Storage>(&mut self, pass: &mut Pass<'_, S>, term: u64) -> Result<(), StorageError> {
        let range = RangeId(self.descriptor.range_id);
        let mut splits = match self.splits.take() {
            Some(splits) => splits,
            None => splits::read(pass.storage, range)?,
        };
        splits::add(&mut splits, self.applied.index + 1, term);
        splits::put(&mut pass.batch, range, &splits.entries);
        self.splits = Some(splits);
        Ok(())
    }

    pub(super) fn set_descriptor<S: Storage>(&mut self, pass: &mut Pass<'_, S>, descriptor: v1::RangeDescriptor) {
        let key = keys::range_record(RangeId(descriptor.range_id), RangeRecord::Descriptor);
        pass.batch.put(Family::State, &key, &record::encode(&descriptor));
        self.descriptor = Arc::new(descriptor);
    }
}

/// The replica on `node`.
pub(crate) fn own_replica(descriptor: &v1::RangeDescriptor, node: u64) -> Option<u64> {
    descriptor.replicas.iter().find(|replica| replica.node_id == node).map(|replica| replica.replica_id)
}

/// Adds a tombstone to a batch.
pub(crate) fn write_tombstone<B: WriteBatch>(batch: &mut B, range: RangeId, tombstone: &v1::Tombstone) {
    batch.put(Family::State, &keys::range_record(range, RangeRecord::Tombstone), &record::encode(tombstone));
}

/// The range and its children after a split; `None` if it cannot be split so.
fn cut(descriptor: &v1::RangeDescriptor, split: &v1::Split) -> Option<(v1::RangeDescriptor, Vec<v1::RangeDescriptor>)> {
    let first = split.children.first()?;
    let epoch = descriptor.epoch.unwrap_or_default();
    let epoch = v1::Epoch { version: epoch.version + split.children.len() as u64, ..epoch };
    let mut last = descriptor.start.clone();
    let mut children = Vec::with_capacity(split.children.len());
    for (at, child) in split.children.iter().enumerate() {
        let within = descriptor.end.is_empty() || child.start < descriptor.end;
        if child.start <= last || !within || child.range_id == 0 || child.range_id == descriptor.range_id {
            return None;
        }
        last = child.start.clone();
        let end = split.children.get(at + 1).map_or(&descriptor.end, |next| &next.start).clone();
        children.push(v1::RangeDescriptor {
            range_id: child.range_id,
            start: child.start.clone(),
            end,
            epoch: Some(epoch),
            ..descriptor.clone()
        });
    }
    let left = v1::RangeDescriptor { end: first.start.clone(), epoch: Some(epoch), ..descriptor.clone() };
    Some((left, children))
}

/// Writes a child's first records; false: nothing begins here.
fn begin_child<S: Storage>(
    pass: &mut Pass<'_, S>,
    node: u64,
    descriptor: &v1::RangeDescriptor,
    applied: &v1::AppliedState,
) -> Result<bool, StorageError> {
    let range = RangeId(descriptor.range_id);
    let known = pass.storage.get(Family::Log, &keys::raft_state(range))?.is_some();
    if known && !Mutant::ReplayedSplitOverwrites.is_on() {
        return Ok(false);
    }
    let tombstone = pass.storage.get(Family::State, &keys::range_record(range, RangeRecord::Tombstone))?;
    let tombstone = tombstone.map(|bytes| record::decode::<v1::Tombstone>(&bytes, "tombstone")).transpose()?;
    let own = own_replica(descriptor, node).unwrap_or_default();
    if tombstone.is_some_and(|tombstone| own <= tombstone.replica_id) {
        // It was removed before it began: what it would have held goes.
        for (start, end) in keys::range_spans(KeyspaceId(descriptor.keyspace_id), &descriptor.start, &descriptor.end) {
            pass.delete_span(&start, &end);
        }
        return Ok(false);
    }
    put_range(&mut pass.batch, descriptor, applied, &initial_raft_state());
    Ok(true)
}

/// Adds a range's first records to a batch.
pub(crate) fn put_range<B: WriteBatch>(
    batch: &mut B,
    descriptor: &v1::RangeDescriptor,
    applied: &v1::AppliedState,
    raft: &v1::RaftState,
) {
    let range = RangeId(descriptor.range_id);
    batch.put(Family::Log, &keys::raft_state(range), &record::encode(raft));
    batch.put(Family::State, &keys::range_record(range, RangeRecord::Descriptor), &record::encode(descriptor));
    batch.put(Family::State, &keys::range_record(range, RangeRecord::Applied), &record::encode(applied));
}
