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

use crate::keys::{self, MetaRecord, RangeRecord};
use crate::record;
use crate::storage::{self, Direction, Family, Read, Storage, StorageError};

/// A store's records.
#[derive(Clone, Debug)]
pub struct Boot {
    /// Whose store it is.
    pub identity: v1::StoreIdentity,
    /// The layout that the cluster was born with.
    pub layout: v1::Layout,
    /// The replicas on this store, by range id.
    pub ranges: Vec<RangeBoot>,
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
    let layout = storage
        .get(Family::Meta, &keys::meta(MetaRecord::Layout))?
        .ok_or_else(|| corrupt("the store has an identity but no layout".into()))?;
    let layout = record::decode(&layout, "cluster layout")?;
    let mut ranges = range_states(storage)?;
    raft_states(storage, &mut ranges)?;
    logs(storage, &mut ranges)?;
    for range in ranges.values() {
        check(range)?;
    }
    Ok(Some(Boot { identity, layout, ranges: ranges.into_values().collect() }))
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

fn range_states<S: Storage>(storage: &S) -> storage::Result<Ranges> {
    let mut descriptors = BTreeMap::new();
    let mut applied: BTreeMap<RangeId, v1::AppliedState> = BTreeMap::new();
    let (start, end) = keys::range_records();
    scan(storage, Family::State, (&start, &end), |key, value| {
        let (range, what) =
            keys::range_record_parts(key).ok_or_else(|| corrupt(format!("range record with key {key:02x?}")))?;
        if what == RangeRecord::Descriptor as u8 {
            let descriptor: v1::RangeDescriptor = record::decode(value, &format!("descriptor of range {range}"))?;
            descriptors.insert(range, descriptor);
        } else if what == RangeRecord::Applied as u8 {
            applied.insert(range, record::decode(value, &format!("applied state of range {range}"))?);
        } else {
            return Err(corrupt(format!("range {range} has a record of unknown kind {what}")));
        }
        Ok(())
    })?;
    let mut ranges = Ranges::new();
    for (range, descriptor) in descriptors {
        let applied = applied.remove(&range).ok_or_else(|| corrupt(format!("range {range} has no applied state")))?;
        ranges.insert(
            range,
            RangeBoot {
                descriptor: Arc::new(descriptor),
                raft: v1::RaftState::default(),
                last_index: 0,
                entry_bytes: Vec::new(),
                terms: Vec::new(),
                entries: Vec::new(),
                applied,
            },
        );
    }
    Ok(ranges)
}

fn raft_states<S: Storage>(storage: &S, ranges: &mut Ranges) -> storage::Result<()> {
    let (start, end) = keys::raft_states();
    scan(storage, Family::Log, (&start, &end), |key, value| {
        let range = keys::raft_state_range(key).ok_or_else(|| corrupt(format!("Raft state with key {key:02x?}")))?;
        let target = ranges.get_mut(&range).ok_or_else(|| corrupt(format!("range {range} has no descriptor")))?;
        target.raft = record::decode(value, &format!("Raft state of range {range}"))?;
        target.last_index = target.raft.truncated_index;
        Ok(())
    })
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
    if range.raft.term == 0 {
        return Err(corrupt(format!("range {id} has no Raft state")));
    }
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
