//! What a store finds on its disk when its process starts.
//!
//! The families are read by one scan each. A record that cannot be read stops the start: a replica
//! that forgot part of its log or its vote must not take part.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_proto::{RangeId, v1};
use raft::eraftpb::Entry;

use crate::apply::{initial_raft_state, own_replica};
use crate::bootstrap::{FORMAT, INITIAL_INDEX};
use crate::keys::{self, MetaRecord, RangeRecord};
use crate::merges;
use crate::record;
use crate::storage::{self, Direction, Family, Read, Storage, StorageError};
use crate::store::Destroy;

/// A store's records.
#[derive(Clone, Debug)]
pub struct Boot {
    /// Whose store it is.
    pub identity: v1::StoreIdentity,
    /// The cluster, and the nodes that were known.
    pub known: v1::KnownNodes,
    /// The replicas on this store, by range id.
    pub ranges: Vec<RangeBoot>,
    /// Replicas whose removal was applied, and that have not gone from the disk yet.
    pub removed: Vec<Destroy>,
    /// Replicas of a range up to this id are gone from this store.
    pub tombstones: BTreeMap<RangeId, v1::Tombstone>,
}

/// One replica's records.
#[derive(Clone, Debug)]
pub struct RangeBoot {
    /// The range as this replica last applied it.
    pub descriptor: Arc<v1::RangeDescriptor>,
    /// Term, vote, commit index, truncated index.
    pub raft: v1::RaftState,
    /// What was applied.
    pub applied: v1::AppliedState,
    /// The log's terms: (first index, term), for every index above the truncated one where the term
    /// changes.
    pub terms: Vec<(u64, u64)>,
    /// Index of the last entry.
    pub last_index: u64,
    /// Size on disk of each entry above the truncated index.
    pub entry_bytes: Vec<u32>,
    /// The entries that are not applied.
    pub entries: Vec<Entry>,
    /// What it knows of merges; absent: nothing.
    pub merge: Option<Box<v1::MergeState>>,
    /// When and why the range went on without its majority.
    pub recoveries: v1::RangeRecoveries,
}

impl RangeBoot {
    /// A replica whose range begins with it.
    pub fn initial(descriptor: Arc<v1::RangeDescriptor>, applied: v1::AppliedState) -> Self {
        Self {
            descriptor,
            raft: initial_raft_state(),
            applied,
            terms: Vec::new(),
            last_index: INITIAL_INDEX,
            entry_bytes: Vec::new(),
            entries: Vec::new(),
            merge: None,
            recoveries: v1::RangeRecoveries::default(),
        }
    }

    /// A replica that waits for the snapshot that it begins with.
    pub(crate) fn blank(descriptor: Arc<v1::RangeDescriptor>) -> Self {
        let applied = v1::AppliedState::default();
        Self { raft: v1::RaftState::default(), last_index: 0, ..Self::initial(descriptor, applied) }
    }
}

fn corrupt(what: String) -> StorageError {
    StorageError::Corrupt { what }
}

/// Reads a store; `None` if it was never bootstrapped.
pub fn load<S: Storage>(storage: &S) -> storage::Result<Option<Boot>> {
    let Some(identity) = storage.get(Family::Meta, &keys::meta(MetaRecord::Identity))? else {
        return Ok(None);
    };
    let identity: v1::StoreIdentity = record::decode(&identity, "store identity")?;
    if identity.format != FORMAT {
        let what = format!("the store has format {}, this build reads format {FORMAT}", identity.format);
        return Err(if identity.format > FORMAT { StorageError::Newer { what } } else { corrupt(what) });
    }
    refuse_unknown_kinds(storage)?;
    let known = storage
        .get(Family::Meta, &keys::meta(MetaRecord::KnownNodes))?
        .ok_or_else(|| corrupt("the store has an identity but no record of its cluster".into()))?;
    let known = record::decode(&known, "known nodes")?;
    let (mut ranges, tombstones) = range_states(storage)?;
    raft_states(storage, &mut ranges)?;
    let removed = take_removed(&mut ranges, &tombstones, identity.node_id);
    logs(storage, &mut ranges)?;
    for range in ranges.values() {
        check(range)?;
    }
    Ok(Some(Boot { identity, known, ranges: ranges.into_values().collect(), removed, tombstones }))
}

/// A newer version may keep records where this one never looks, and rely on them: whoever does not know them must not
/// go on beside them.
fn refuse_unknown_kinds<S: Storage>(storage: &S) -> storage::Result<()> {
    for family in Family::ALL {
        scan(storage, family, (&keys::first_unknown(family), &[0xFF; 16]), |key, _| {
            Err(StorageError::Newer { what: format!("the family {} has a record with key {key:02x?}", family.name()) })
        })?;
    }
    Ok(())
}

/// Takes out what was removed from its range, by its descriptor or by a tombstone, before the process ended.
fn take_removed(ranges: &mut Ranges, tombstones: &BTreeMap<RangeId, v1::Tombstone>, node: u64) -> Vec<Destroy> {
    let gone = |range: &RangeId, boot: &RangeBoot| {
        let tombstone = tombstones.get(range).copied().unwrap_or_default();
        let upto = tombstone.replica_id;
        own_replica(&boot.descriptor, node).is_none_or(|own| own <= upto).then_some(tombstone)
    };
    let gone: Vec<(RangeId, v1::Tombstone)> =
        ranges.iter().filter_map(|(range, boot)| gone(range, boot).map(|tombstone| (*range, tombstone))).collect();
    gone.into_iter()
        .filter_map(|(range, tombstone)| {
            let descriptor = ranges.remove(&range)?.descriptor;
            // Its keys are those of the range that took it in: that was one batch with the tombstone.
            let keeps_data = tombstone.merged_into != 0;
            Some(Destroy { descriptor, tombstone, keeps_data })
        })
        .collect()
}

type Ranges = BTreeMap<RangeId, RangeBoot>;

/// A scan whose visitor may fail.
fn scan<S: Storage>(
    storage: &S,
    family: Family,
    span: (&[u8], &[u8]),
    mut visit: impl FnMut(&[u8], &[u8]) -> storage::Result<()>,
) -> storage::Result<()> {
    let mut failed = None;
    storage.scan(family, span.0, span.1, Direction::Forward, &mut |key, value| match visit(key, value) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    })?;
    failed.map_or(Ok(()), Err)
}

fn range_states<S: Storage>(storage: &S) -> storage::Result<(Ranges, BTreeMap<RangeId, v1::Tombstone>)> {
    let mut descriptors = BTreeMap::new();
    let mut tombstones = BTreeMap::new();
    let mut applied: BTreeMap<RangeId, v1::AppliedState> = BTreeMap::new();
    let mut merge_states = BTreeMap::new();
    let mut recoveries: BTreeMap<RangeId, v1::RangeRecoveries> = BTreeMap::new();
    let (start, end) = keys::range_records();
    scan(storage, Family::State, (&start, &end), |key, value| {
        let (range, what) =
            keys::range_record_parts(key).ok_or_else(|| corrupt(format!("range record with key {key:02x?}")))?;
        if what == RangeRecord::Descriptor as u8 {
            let descriptor: v1::RangeDescriptor = record::decode(value, &format!("descriptor of range {range}"))?;
            descriptors.insert(range, descriptor);
        } else if what == RangeRecord::Applied as u8 {
            applied.insert(range, record::decode(value, &format!("applied state of range {range}"))?);
        } else if what == RangeRecord::Tombstone as u8 {
            let tombstone: v1::Tombstone = record::decode(value, &format!("tombstone of range {range}"))?;
            tombstones.insert(range, tombstone);
        } else if what == RangeRecord::Splits as u8 {
            record::decode::<v1::Splits>(value, &format!("splits of range {range}"))?;
        } else if what == RangeRecord::Merge as u8 {
            merge_states.insert(range, merges::decode(value, range)?);
        } else if what == RangeRecord::Recoveries as u8 {
            recoveries.insert(range, record::decode(value, &format!("recoveries of range {range}"))?);
        } else {
            return Err(StorageError::Newer { what: format!("range {range} has a record of unknown kind {what}") });
        }
        Ok(())
    })?;
    let mut ranges = Ranges::new();
    for (range, descriptor) in descriptors {
        let applied = applied.remove(&range).ok_or_else(|| corrupt(format!("range {range} has no applied state")))?;
        let merge = merge_states.remove(&range).map(Box::new);
        let recoveries = recoveries.remove(&range).unwrap_or_default();
        ranges.insert(range, RangeBoot { applied, merge, recoveries, ..RangeBoot::blank(Arc::new(descriptor)) });
    }
    if let Some(range) = merge_states.keys().next() {
        return Err(corrupt(format!("range {range} has merge state but no descriptor")));
    }
    if let Some(range) = applied.keys().next() {
        return Err(corrupt(format!("range {range} has applied state but no descriptor")));
    }
    Ok((ranges, tombstones))
}

fn raft_states<S: Storage>(storage: &S, ranges: &mut Ranges) -> storage::Result<()> {
    let (start, end) = keys::raft_states();
    scan(storage, Family::Log, (&start, &end), |key, value| {
        let range = keys::raft_state_range(key).ok_or_else(|| corrupt(format!("Raft state with key {key:02x?}")))?;
        let target = ranges.get_mut(&range).ok_or_else(|| corrupt(format!("range {range} has no descriptor")))?;
        target.raft = record::decode(value, &format!("Raft state of range {range}"))?;
        target.last_index = target.raft.truncated_index;
        Ok(())
    })?;
    match ranges.iter().find(|(_, target)| target.raft.term == 0) {
        Some((range, _)) => Err(corrupt(format!("range {range} has no Raft state"))),
        None => Ok(()),
    }
}

fn logs<S: Storage>(storage: &S, ranges: &mut Ranges) -> storage::Result<()> {
    for (range, target) in ranges.iter_mut() {
        let start = keys::log_entry(*range, target.raft.truncated_index + 1);
        let end = keys::log_entry(*range, u64::MAX);
        scan(storage, Family::Log, (&start, &end), |key, value| {
            let (_, index) = keys::log_entry_index(key).ok_or_else(|| corrupt(format!("log key {key:02x?}")))?;
            if index != target.last_index + 1 {
                return Err(corrupt(format!(
                    "range {range}: log entry {index} follows {}, entries between them are missing",
                    target.last_index
                )));
            }
            let entry = record::decode_entry(index, Bytes::copy_from_slice(value))?;
            if target.terms.last().is_none_or(|(_, term)| *term != entry.term) {
                target.terms.push((index, entry.term));
            }
            target.last_index = index;
            target.entry_bytes.push(u32::try_from(value.len()).unwrap_or(u32::MAX));
            if index > target.applied.index {
                target.entries.push(entry);
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// What must hold between a replica's records, whatever crash came before.
fn check(range: &RangeBoot) -> storage::Result<()> {
    let id = range.descriptor.range_id;
    // Entries are durable before they are applied, and applied before they are truncated.
    if range.applied.index > range.last_index {
        return Err(corrupt(format!(
            "range {id} has applied index {}, but its log ends at {}: synced log entries are gone",
            range.applied.index, range.last_index
        )));
    }
    if range.raft.truncated_index > range.applied.index {
        return Err(corrupt(format!(
            "range {id} has applied index {}, but its log begins only after {}",
            range.applied.index, range.raft.truncated_index
        )));
    }
    // The batch that wrote the commit index held all entries up to it.
    if range.raft.commit > range.last_index {
        return Err(corrupt(format!(
            "range {id} knows index {} to be committed, but its log ends at {}: synced log entries are gone",
            range.raft.commit, range.last_index
        )));
    }
    check_terms(range)
}

/// Terms never fall along a log, none is above the replica's own, and what was applied is what the log holds.
fn check_terms(range: &RangeBoot) -> storage::Result<()> {
    let id = range.descriptor.range_id;
    let mut terms = vec![(range.raft.truncated_index, range.raft.truncated_term)];
    terms.extend(&range.terms);
    if let Some(pair) = terms.windows(2).find(|pair| pair[0].1 > pair[1].1) {
        let (index, term) = pair[1];
        return Err(corrupt(format!(
            "range {id}: log entry {index} is of term {term}, below that of the one before it"
        )));
    }
    let last_term = terms.last().map_or(0, |(_, term)| *term);
    if last_term > range.raft.term {
        return Err(corrupt(format!(
            "range {id} has log entries of term {last_term}, but its own term is {}: a synced Raft state is gone",
            range.raft.term
        )));
    }
    let at_applied = terms.partition_point(|(from, _)| *from <= range.applied.index);
    let logged = terms[at_applied.saturating_sub(1)].1;
    if logged != range.applied.term {
        return Err(corrupt(format!(
            "range {id} has applied index {} of term {}, but its log has term {logged} there",
            range.applied.index, range.applied.term
        )));
    }
    Ok(())
}

/// The entries `[low, high)` of a range's log, up to `bytes_max` bytes but at least one. Fewer, or
/// none, if the log no longer holds them.
pub fn read_log<R: Read + ?Sized>(
    storage: &R,
    range: RangeId,
    low: u64,
    high: u64,
    bytes_max: u64,
) -> storage::Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut bytes = 0;
    let mut failed = None;
    let (start, end) = (keys::log_entry(range, low), keys::log_entry(range, high));
    storage.scan(Family::Log, &start, &end, Direction::Forward, &mut |key, value| {
        let expected = low + entries.len() as u64;
        if keys::log_entry_index(key).map(|(_, index)| index) != Some(expected) {
            return ControlFlow::Break(());
        }
        bytes += value.len() as u64;
        if bytes > bytes_max && !entries.is_empty() {
            return ControlFlow::Break(());
        }
        match record::decode_entry(expected, Bytes::copy_from_slice(value)) {
            Ok(entry) => entries.push(entry),
            Err(error) => {
                failed = Some(error);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    failed.map_or(Ok(entries), Err)
}
