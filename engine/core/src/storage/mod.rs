//! What the engine needs of a disk: an ordered store with families, atomic batches over them, and
//! one write-ahead log that a sync makes durable.
//!
//! Implemented by flotilla-store over RocksDB and by flotilla-sim's simulated disk; both pass
//! the suite `conformance`. The core itself never calls these: the stages around it do (log writer, apply,
//! reads, recovery, snapshots), which are written against the traits so that the simulation runs
//! the very same code.
//!
//! Contract:
//! - A batch is atomic over all families. Batches are ordered by the order of their `write` calls.
//! - `write` returns once the batch can be read; it is durable only after a later `sync`.
//! - `sync` makes durable every batch whose `write` returned before `sync` was called.
//! - After a crash the store holds a prefix of the batches, at least all that a completed `sync`
//!   covered.
//! - An error of `write` or `sync` is final: the store is poisoned, every later write or sync fails
//!   with [`StorageError::Poisoned`], and the process is to stop ("fsyncgate").

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
#[cfg(test)]
pub(crate) mod rows;
mod staging;

use std::ops::ControlFlow;

use bytes::Bytes;

pub use staging::{FileWriter, StagedArea, Staging, TableWriter};

/// A column family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Raft hard states and entries.
    Log,
    /// Range state and user data.
    State,
    /// The store's own identity.
    Meta,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Log, Self::State, Self::Meta];

    /// Its name on disk.
    pub fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::State => "state",
            Self::Meta => "meta",
        }
    }
}

/// Why the disk did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// The operating system or the store refused; fatal for writes and syncs.
    #[error("{operation} failed: {cause}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// What came back.
        cause: String,
    },
    /// No space is left; the store stops as after a failed sync, and starts again once there is room.
    #[error("no space left on the device: {cause}")]
    NoSpace {
        /// What came back.
        cause: String,
    },
    /// Bytes on disk are not what was written.
    #[error("corrupt: {what}")]
    Corrupt {
        /// What was found where, with the file's name if it is known.
        what: String,
    },
    /// A record that a newer version wrote: nothing is wrong with it, and this version must not go on without it.
    #[error("written by a newer version of flotilla: {what}; start the newer version that last ran here")]
    Newer {
        /// What it is.
        what: String,
    },
    /// An earlier write or sync failed; nothing is accepted any more.
    #[error("the store stopped after an earlier failure: {cause}")]
    Poisoned {
        /// The first failure.
        cause: String,
    },
}

/// Result with a [`StorageError`].
pub type Result<T> = std::result::Result<T, StorageError>;

/// A set of changes that becomes visible, and durable, as a whole.
pub trait WriteBatch: Send {
    /// Sets a key.
    fn put(&mut self, family: Family, key: &[u8], value: &[u8]);
    /// Deletes a key, present or not.
    fn delete(&mut self, family: Family, key: &[u8]);
    /// Deletes all keys in `[start, end)`. Costly for later reads of [`Family::State`]: snapshots only.
    fn delete_range(&mut self, family: Family, start: &[u8], end: &[u8]);
    /// Whether it holds nothing.
    fn is_empty(&self) -> bool;
    /// Its size, in bytes.
    fn size_bytes(&self) -> usize;
}

/// Which way a scan goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the first key up.
    Forward,
    /// From the last key down.
    Reverse,
}

/// What a scan shows for each key: go on or stop.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Reading. One object is one consistent view only if its maker says so ([`Storage::with_view`]).
pub trait Read {
    /// The value of a key.
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>>;

    /// Shows the keys in `[start, end)` in order, until `visit` breaks off. One scan is one point
    /// in time.
    fn scan(&self, family: Family, start: &[u8], end: &[u8], direction: Direction, visit: &mut Visit<'_>)
    -> Result<()>;

    /// A scan of much that will not be read again soon: it leaves the caches to others.
    fn scan_through(&self, family: Family, start: &[u8], end: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        self.scan(family, start, end, Direction::Forward, visit)
    }
}

/// The disk. See the module's contract.
pub trait Storage: Read + Send + Sync + 'static {
    /// Its batches.
    type Batch: WriteBatch;

    /// A new, empty batch.
    fn batch(&self) -> Self::Batch;

    /// Applies a batch; readable at once, durable after a later [`Storage::sync`].
    fn write(&self, batch: Self::Batch) -> Result<()>;

    /// Makes durable all that was written before.
    fn sync(&self) -> Result<()>;

    /// Runs `read` over one consistent view: all its gets and scans see the same point in time.
    fn with_view<R>(&self, read: impl FnOnce(&dyn Read) -> R) -> R;
}
