//! Files beside the store: where snapshots are made and received before they become part of it.
//!
//! Contract:
//! - A file is readable, and counts as durable, once its writer has finished; its name outlives a crash only after
//!   [`Staging::sync_names`]. A crash may bring back a file that was removed, and may take or leave one that was
//!   being written: whoever starts a store removes what nothing refers to.
//! - Names are given out by the store and never repeat while it is open.
//! - [`Staging::ingest`] makes table files part of a family, at once and durably, *ahead of the log*: a crash
//!   afterwards may still take unsynced batches that were written before, but not what was ingested. The staged files
//!   stay, so that it can be done again.
//! - Failures of staging files do no harm to the store; failures of [`Staging::flush`] and [`Staging::ingest`] are
//!   final like those of a write.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_proto::v1;

use super::{Family, Result, Storage};

/// Access to staged files that does not keep the store open: what handles on them hold.
pub trait StagedArea: fmt::Debug + Send + Sync {
    /// Reads `length` bytes of a file; fewer are an error.
    fn read(&self, name: &str, offset: u64, length: usize) -> Result<Bytes>;
    /// Removes a file, if it is there. Best effort: what stays goes at the next start.
    fn remove(&self, name: &str);
}

/// Writes a plain staged file.
pub trait FileWriter: Send {
    /// Its name.
    fn name(&self) -> &str;
    /// Adds bytes at its end.
    fn append(&mut self, bytes: &[u8]) -> Result<()>;
    /// Makes its contents durable.
    fn finish(self) -> Result<()>;
}

/// Writes a staged table file.
pub trait TableWriter: Send {
    /// Its name.
    fn name(&self) -> &str;
    /// Adds a record; keys must come in ascending order.
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()>;
    /// About how large it is by now, in bytes.
    fn size_bytes(&self) -> u64;
    /// Makes its contents durable. It must hold at least one record.
    fn finish(self) -> Result<v1::StagedFile>;
}

/// A store with a staging area. See the module's contract.
pub trait Staging: Storage {
    /// Writes plain files.
    type File: FileWriter;
    /// Writes table files.
    type Table: TableWriter;

    /// Begins a plain file.
    fn stage_file(&self) -> Result<Self::File>;

    /// Begins a table file for [`Family::State`].
    fn stage_table(&self) -> Result<Self::Table>;

    /// Makes the names of all finished files durable.
    fn sync_names(&self) -> Result<()>;

    /// The names of all staged files.
    fn staged(&self) -> Result<Vec<String>>;

    /// Checks that a file is what its writer said of it.
    fn verify(&self, file: &v1::StagedFile) -> Result<()>;

    /// The files by name.
    fn area(&self) -> Arc<dyn StagedArea>;

    /// Makes all that was written to a family durable outside of the log, so that an ingestion finds nothing
    /// of it in memory.
    fn flush(&self, family: Family) -> Result<()>;

    /// Makes table files, which must not overlap each other, part of a family; they win over what is there. If what was
    /// written to their spans is not flushed yet, it is flushed first.
    fn ingest(&self, family: Family, files: &[v1::StagedFile]) -> Result<()>;
}
