//! Makes snapshots, from one consistent view, while the range goes on.
//!
//! What fits into memory stays there; of a larger one the chunks go to a file, one at a time, so that memory holds
//! one chunk whatever the range's size.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_proto::{RangeId, v1};

use super::chunk::Cutter;
use super::data::ChunkFile;
use super::{Chunks, SnapshotData, corrupt, spans};
use crate::keys::{self, RangeRecord};
use crate::merges;
use crate::record;
use crate::splits;
use crate::storage::{self, Family, FileWriter, Read, Staging, Storage, StorageError};

/// Makes a snapshot of what the range has applied, in memory, whatever its size. Takes as long as reading the
/// range; call it where that is no harm.
pub fn make<S: Storage>(storage: &S, range: RangeId) -> storage::Result<SnapshotData> {
    storage.with_view(|view| {
        let mut chunks = Vec::new();
        let header = cut(view, range, |chunk| {
            chunks.push(chunk);
            Ok(())
        })?;
        Ok(SnapshotData { header, chunks: Chunks::Memory(Arc::new(chunks)) })
    })
}

/// Makes a snapshot of what the range has applied: in memory up to `memory_bytes_max` bytes, in a file beyond.
/// `pace` is told the size of each chunk before it goes to the file; it may hold that up, or break it off.
pub fn make_staged<S: Staging>(
    storage: &S,
    range: RangeId,
    memory_bytes_max: usize,
    mut pace: impl FnMut(usize) -> ControlFlow<()>,
) -> storage::Result<SnapshotData> {
    storage.with_view(|view| {
        let (mut held, mut held_bytes) = (Vec::new(), 0);
        let mut spilled: Option<(S::File, ChunkFile)> = None;
        let header = cut(view, range, |chunk| {
            held_bytes += chunk.len();
            held.push(chunk);
            if spilled.is_none() && held_bytes <= memory_bytes_max {
                return Ok(());
            }
            if spilled.is_none() {
                let file = storage.stage_file()?;
                let chunks = ChunkFile::new(storage.area(), file.name().into());
                spilled = Some((file, chunks));
            }
            if let Some((file, chunks)) = &mut spilled {
                for chunk in held.drain(..) {
                    if pace(chunk.len()).is_break() {
                        let (operation, cause) = ("making a snapshot", "it was told to stop".into());
                        return Err(StorageError::Io { operation, cause });
                    }
                    file.append(&chunk)?;
                    chunks.grew(chunk.len());
                }
            }
            Ok(())
        })?;
        let chunks = match spilled {
            None => Chunks::Memory(Arc::new(held)),
            Some((file, chunks)) => {
                file.finish()?;
                Chunks::File(Arc::new(chunks))
            }
        };
        Ok(SnapshotData { header, chunks })
    })
}

/// Cuts a range's data into chunks, and says what they are a snapshot of.
fn cut(
    view: &dyn Read,
    range: RangeId,
    mut take: impl FnMut(Bytes) -> storage::Result<()>,
) -> storage::Result<v1::SnapshotHeader> {
    let applied = range_record::<v1::AppliedState>(view, range, RangeRecord::Applied)?;
    let descriptor = range_record::<v1::RangeDescriptor>(view, range, RangeRecord::Descriptor)?;
    let mut cutter = Cutter::default();
    let mut failed = None;
    for (start, end) in spans(&descriptor) {
        view.scan_through(Family::State, &start, &end, &mut |key, value| match cutter
            .push(key, value)
            .map_or(Ok(()), &mut take)
        {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
    }
    cutter.finish().map_or(Ok(()), take)?;
    let splits = splits::read(view, range)?.entries;
    let merge = Some(merges::read(view, range)?).filter(|state| *state != v1::MergeState::default());
    let records = cutter.records;
    Ok(v1::SnapshotHeader { descriptor: Some(descriptor), applied: Some(applied), records, splits, merge })
}

fn range_record<M: prost::Message + Default>(view: &dyn Read, range: RangeId, what: RangeRecord) -> storage::Result<M> {
    let bytes = view
        .get(Family::State, &keys::range_record(range, what))?
        .ok_or_else(|| corrupt(format!("range {range} has no {what:?}")))?;
    record::decode(&bytes, &format!("{what:?} of range {range}"))
}
