//! Takes a snapshot in, chunk by chunk: in memory as long as it is small, then in table files.
//!
//! Each chunk is checked before anything is made of it: its crc, that its keys ascend and lie within the range's
//! spans. No file holds records of two spans: a later ingestion then covers just what the range has there. What was
//! begun and not finished leaves nothing behind.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_proto::v1;

use super::check::check_keyspace;
use super::chunk::for_each_record;
use super::data::Tables;
use super::{Chunks, SnapshotData, corrupt, spans};
use crate::config::Config;
use crate::storage::{self, Staging, TableWriter};

/// Sizes that decide over a snapshot's form.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// See [`Config::snapshot_batch_bytes_max`].
    pub batch_bytes_max: usize,
    /// See [`Config::snapshot_file_bytes`].
    pub file_bytes: u64,
}

impl From<&Config> for Limits {
    fn from(config: &Config) -> Self {
        Self { batch_bytes_max: config.snapshot_batch_bytes_max, file_bytes: config.snapshot_file_bytes }
    }
}

/// A snapshot of which a part has come. All calls are given the same store.
pub struct Receiver<S: Staging> {
    limits: Limits,
    header: v1::SnapshotHeader,
    spans: Vec<(Vec<u8>, Vec<u8>)>,
    /// Chunks that wait to become the whole, or the first part of the files.
    held: Vec<Bytes>,
    held_bytes: usize,
    files: Option<Files<S>>,
    last_key: Vec<u8>,
    records: u64,
}

struct Files<S: Staging> {
    done: Tables,
    open: Option<Open<S>>,
}

/// The file that is being written.
struct Open<S: Staging> {
    table: S::Table,
    /// The span that its records are of.
    span: usize,
    unfinished: Unfinished,
}

/// Removes a file that was never finished.
struct Unfinished {
    area: Arc<dyn storage::StagedArea>,
    name: String,
    finished: bool,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.finished {
            self.area.remove(&self.name);
        }
    }
}

impl<S: Staging> Receiver<S> {
    /// Begins with what the sender says of the whole.
    pub fn new(limits: Limits, header: v1::SnapshotHeader) -> storage::Result<Self> {
        let descriptor = header.descriptor.as_ref().ok_or_else(|| corrupt("snapshot without a descriptor"))?;
        check_keyspace(descriptor).map_err(corrupt)?;
        Ok(Self {
            spans: spans(descriptor),
            limits,
            header,
            held: Vec::new(),
            held_bytes: 0,
            files: None,
            last_key: Vec::new(),
            records: 0,
        })
    }

    /// Adds the next chunk.
    pub fn push(&mut self, storage: &S, chunk: Bytes) -> storage::Result<()> {
        self.check(&chunk)?;
        if self.files.is_none() && self.held_bytes + chunk.len() <= self.limits.batch_bytes_max {
            self.held_bytes += chunk.len();
            self.held.push(chunk);
            return Ok(());
        }
        let mut files = match self.files.take() {
            Some(files) => files,
            None => Files { done: Tables::new(storage.area()), open: None },
        };
        for chunk in self.held.drain(..).chain([chunk]) {
            files.write(storage, &self.spans, self.limits.file_bytes, &chunk)?;
        }
        self.held_bytes = 0;
        self.files = Some(files);
        Ok(())
    }

    /// Order and place of a chunk's records, before any is used.
    fn check(&mut self, chunk: &Bytes) -> storage::Result<()> {
        let Self { spans, last_key, records, .. } = self;
        for_each_record(chunk, |key, _| {
            if *records > 0 && key <= &last_key[..] {
                return Err(corrupt("snapshot: its keys do not ascend"));
            }
            span_of(spans, key).ok_or_else(|| corrupt("snapshot: a key lies outside of its range"))?;
            last_key.clear();
            last_key.extend_from_slice(key);
            *records += 1;
            Ok(())
        })
    }

    /// The whole, as the store takes it.
    pub fn finish(self, storage: &S) -> storage::Result<SnapshotData> {
        if self.records != self.header.records {
            let (have, said) = (self.records, self.header.records);
            return Err(corrupt(format!("the snapshot has {have} records, its header says {said}")));
        }
        let chunks = match self.files {
            None => Chunks::Memory(Arc::new(self.held)),
            Some(mut files) => {
                files.close()?;
                storage.sync_names()?;
                Chunks::Tables(Arc::new(files.done))
            }
        };
        Ok(SnapshotData { header: self.header, chunks })
    }
}

fn span_of(spans: &[(Vec<u8>, Vec<u8>)], key: &[u8]) -> Option<usize> {
    spans.iter().position(|(start, end)| key >= &start[..] && key < &end[..])
}

impl<S: Staging> Files<S> {
    fn write(
        &mut self,
        storage: &S,
        spans: &[(Vec<u8>, Vec<u8>)],
        file_bytes: u64,
        chunk: &Bytes,
    ) -> storage::Result<()> {
        for_each_record(chunk, |key, value| {
            let span = span_of(spans, key).ok_or_else(|| corrupt("snapshot: a key lies outside of its range"))?;
            if self.open.as_ref().is_some_and(|open| open.span != span || open.table.size_bytes() >= file_bytes) {
                self.close()?;
            }
            let open = match &mut self.open {
                Some(open) => open,
                None => {
                    let table = storage.stage_table()?;
                    let name = table.name().to_owned();
                    let unfinished = Unfinished { area: storage.area(), name, finished: false };
                    self.open.insert(Open { table, span, unfinished })
                }
            };
            open.table.put(key, value)
        })
    }

    fn close(&mut self) -> storage::Result<()> {
        if let Some(Open { table, mut unfinished, .. }) = self.open.take() {
            self.done.add(table.finish()?);
            unfinished.finished = true;
        }
        Ok(())
    }
}
