//! What a node needs of its disk beyond the engine's storage traits.
//!
//! Implemented by the RocksDB adapter. Tests wrap it to make syncs fail.

use std::ops::ControlFlow;
use std::time::SystemTime;

use bytes::Bytes;
use flotilla_engine::storage::{self, Direction, Family, Read, Staging, StorageError, Visit};
use flotilla_store::{Cached, Properties, RocksStorage, Scrubbed, Statistics};

/// A store on a disk of this machine; clones are handles on the same one.
pub trait LocalStorage: Staging + Clone {
    /// A value that memory knows, without waiting for the disk.
    fn get_if_cached(&self, family: Family, key: &[u8]) -> storage::Result<Cached>;
    /// Notes durably how far the log is known to be synced; every few seconds.
    fn note_synced(&self) -> storage::Result<()>;
    /// Syncs, and notes that the stop was clean. Nothing can be written afterwards.
    fn close(&self) -> storage::Result<()>;
    /// Figures of the moment.
    fn properties(&self) -> Properties;
    /// Counters since it was opened.
    fn statistics(&self) -> Statistics;
    /// About how many bytes each of these spans of data has on disk.
    fn data_bytes(&self, spans: &[(Vec<u8>, Vec<u8>)]) -> Vec<u64>;
    /// Notes that it holds what was not written: it reads and writes nothing any more, and is not started again.
    fn note_damage(&self, seen: &str);
    /// Who is to be told of damage.
    fn on_damage(&self, listener: Box<dyn Fn(&str) + Send + Sync>);
    /// About how many bytes the largest compaction takes that may come next.
    fn largest_compaction_bytes(&self) -> u64;
    /// Whether compactions wait until they are allowed again.
    fn hold_compactions(&self, hold: bool) -> storage::Result<()>;
    /// Why flushes and compactions have failed, if they have.
    fn background_failure(&self) -> Option<StorageError>;
    /// Reads all of it once, at the caller's pace; see [`RocksStorage::scrub`].
    fn scrub(&self, pace: &mut dyn FnMut(u64) -> ControlFlow<()>) -> storage::Result<Scrubbed>;
    /// When it was last read whole.
    fn last_scrub(&self) -> Option<SystemTime>;
}

impl LocalStorage for RocksStorage {
    fn get_if_cached(&self, family: Family, key: &[u8]) -> storage::Result<Cached> {
        Self::get_if_cached(self, family, key)
    }

    fn note_synced(&self) -> storage::Result<()> {
        Self::note_synced(self)
    }

    fn close(&self) -> storage::Result<()> {
        Self::close(self)
    }

    fn properties(&self) -> Properties {
        Self::properties(self)
    }

    fn statistics(&self) -> Statistics {
        Self::statistics(self)
    }

    fn data_bytes(&self, spans: &[(Vec<u8>, Vec<u8>)]) -> Vec<u64> {
        Self::data_bytes(self, spans)
    }

    fn note_damage(&self, seen: &str) {
        Self::note_damage(self, seen);
    }

    fn on_damage(&self, listener: Box<dyn Fn(&str) + Send + Sync>) {
        Self::on_damage(self, listener);
    }

    fn largest_compaction_bytes(&self) -> u64 {
        Self::largest_compaction_bytes(self)
    }

    fn hold_compactions(&self, hold: bool) -> storage::Result<()> {
        Self::hold_compactions(self, hold)
    }

    fn background_failure(&self) -> Option<StorageError> {
        Self::background_failure(self)
    }

    fn scrub(&self, pace: &mut dyn FnMut(u64) -> ControlFlow<()>) -> storage::Result<Scrubbed> {
        Self::scrub(self, pace)
    }

    fn last_scrub(&self) -> Option<SystemTime> {
        Self::last_scrub(self)
    }
}

/// Reads only what memory holds. A get that would touch the disk fails, and [`CachedRead::needs_disk`]
/// says so afterwards.
pub struct CachedRead<'a, S> {
    storage: &'a S,
    missed: std::cell::Cell<bool>,
}

impl<'a, S: LocalStorage> CachedRead<'a, S> {
    /// A reader of this storage's memory.
    pub fn new(storage: &'a S) -> Self {
        Self { storage, missed: std::cell::Cell::new(false) }
    }

    /// Whether a read failed because it would have touched the disk.
    pub fn needs_disk(&self) -> bool {
        self.missed.get()
    }

    fn miss(&self) -> StorageError {
        self.missed.set(true);
        StorageError::Io { operation: "reading from memory", cause: "not in memory".into() }
    }
}

impl<S: LocalStorage> Read for CachedRead<'_, S> {
    fn get(&self, family: Family, key: &[u8]) -> storage::Result<Option<Bytes>> {
        match self.storage.get_if_cached(family, key)? {
            Cached::Known(value) => Ok(value),
            Cached::NeedsDisk => Err(self.miss()),
        }
    }

    fn scan(&self, _: Family, _: &[u8], _: &[u8], _: Direction, _: &mut Visit<'_>) -> storage::Result<()> {
        Err(self.miss())
    }
}
