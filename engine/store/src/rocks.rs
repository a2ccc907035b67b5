//! The engine's storage traits over RocksDB.
//!
//! Place in the flow: the log writer writes and syncs, apply writes, reads and recovery read; all
//! through clones of one [`RocksStorage`].
//!
//! - `write` puts a batch into the memtables and the WAL's buffer; `sync` is `flush_wal(true)`.
//! - Each batch that is the first after a sync carries a mark (`put_log_data`): up to which sequence
//!   number the WAL was known synced then. `wal_audit` reads the marks before the next open.
//! - The first failed write or sync poisons the store for good ("fsyncgate": after a failed fsync the
//!   kernel may drop the pages and call the next fsync a success). Syncs run one at a time, so that
//!   none can begin beside a failing one and succeed after it.
//! - A read that meets bytes that were not written is never answered from: the store is marked as damaged, and
//!   stops (`damage`).
//! - Point reads take no snapshot, and so no mutex of RocksDB; views do.
//! - Point deletes are for `state` and few log entries, `delete_range` for truncating long logs: in
//!   `state` the first read after one would rebuild the memtable's list of tombstones.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use flotilla_engine::storage::{Direction, Family, Read, Result, Storage, StorageError, Visit, WriteBatch};
use rocksdb::{
    Cache, ColumnFamily, DB, DBPinnableSlice, DBRawIterator, Options as RocksOptions, ReadOptions, ReadTier, Snapshot,
    WriteOptions,
};

use crate::damage::Damage;
use crate::directory::{StoreDirectory, sync_directory};
use crate::error::{OpenError, storage_error};
use crate::options::{self, Options};
use crate::wal_audit::{self, Torn};
use crate::wal_space::WalSpace;
use crate::watermark::Watermark;

/// What a scan that passes by the cache reads at once.
const PASSING_READ_BYTES: usize = 1 << 20;

/// An open store; clones are handles on the same one, which closes with the last of them.
#[derive(Clone)]
pub struct RocksStorage {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    // Fields are dropped in this order: the database before the lock on its directory.
    database: DB,
    options: RocksOptions,
    cache: Cache,
    read_options: ReadOptions,
    cached_read_options: ReadOptions,
    write_options: WriteOptions,
    recovery: Recovery,
    pub(crate) failure: OnceLock<StorageError>,
    pub(crate) damage: Damage,
    /// Held by the sync that is running.
    syncing: Mutex<WalSpace>,
    /// Bytes of all batches since the store was opened.
    written: AtomicU64,
    /// Sequence number up to which the WAL is known synced.
    synced: AtomicU64,
    /// The last of those that went into a batch as a mark.
    marked: AtomicU64,
    /// The last watermark written.
    watermark: Mutex<Watermark>,
    pub(crate) directory: Arc<StoreDirectory>,
}

/// What opening found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The last sequence number there is.
    pub last_sequence: u64,
    /// WAL files that were replayed.
    pub wal_files: usize,
    /// Batches in them.
    pub wal_batches: u64,
    /// A torn end of the WAL that was dropped; nothing in it was known to be synced.
    pub torn: Option<Torn>,
    /// Whether the store was stopped cleanly before.
    pub clean_stop: bool,
}

/// Answer of a read that may not touch the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cached {
    /// The value, or that there is none.
    Known(Option<Bytes>),
    /// Only the disk knows.
    NeedsDisk,
}

impl RocksStorage {
    /// Opens the store in a directory, creating it in a new one. Refuses if synced writes may be gone.
    pub fn open(directory: Arc<StoreDirectory>, options: &Options) -> std::result::Result<Self, OpenError> {
        let opened = Self::open_audited(Arc::clone(&directory), options);
        if let Err(error @ OpenError::SyncedWritesLost { .. }) = &opened {
            // RocksDB has thrown the log away by now, and with it what the next audit would have seen.
            directory.mark_damaged(&error.to_string())?;
        }
        opened
    }

    fn open_audited(directory: Arc<StoreDirectory>, options: &Options) -> std::result::Result<Self, OpenError> {
        let folder = directory.db();
        let watermark = Watermark::read(&directory.watermark())?;
        let audit = wal_audit::audit(&folder, watermark)?;
        // Without a watermark the first opening was not finished: no one has written anything.
        let built = options::build(options, &directory.log(), watermark.is_none())?;
        let database = DB::open_cf_descriptors(&built.database, &folder, built.families)
            .map_err(|error| OpenError::from_rocksdb(&folder, &error))?;
        let last_sequence = database.latest_sequence_number();
        if last_sequence < audit.synced {
            let path = directory.path().to_path_buf();
            return Err(OpenError::SyncedWritesLost { path, synced: audit.synced, found: last_sequence });
        }
        let recovery = Recovery {
            last_sequence,
            wal_files: audit.files,
            wal_batches: audit.batches,
            torn: audit.torn,
            clean_stop: watermark.is_some_and(|mark| mark.clean_stop),
        };
        // RocksDB flushes what it replays before it returns, so all of it is durable.
        let first_wal = wal_audit::numbers_of(&folder, "log")?.last().copied().unwrap_or(0);
        // The new file's name must be as durable as the watermark that names it.
        sync_directory(&folder)?;
        let watermark = Watermark { synced: last_sequence, opened_at: last_sequence, first_wal, clean_stop: false };
        watermark.write(&directory.watermark())?;
        let mut cached_read_options = ReadOptions::default();
        cached_read_options.set_read_tier(ReadTier::BlockCache);
        let inner = Inner {
            database,
            options: built.database,
            cache: built.cache,
            read_options: ReadOptions::default(),
            cached_read_options,
            write_options: WriteOptions::default(),
            recovery,
            failure: OnceLock::new(),
            damage: Damage::default(),
            syncing: Mutex::new(WalSpace::new(&folder)),
            written: AtomicU64::new(0),
            synced: AtomicU64::new(last_sequence),
            marked: AtomicU64::new(last_sequence),
            watermark: Mutex::new(watermark),
            directory,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What opening found.
    pub fn recovery(&self) -> &Recovery {
        &self.inner.recovery
    }

    /// The directory that it lies in.
    pub fn directory(&self) -> &Arc<StoreDirectory> {
        &self.inner.directory
    }

    /// Why the store stopped, if it did.
    pub fn failure(&self) -> Option<&StorageError> {
        self.inner.failure.get()
    }

    /// Reads a key without touching the disk, for threads that must not wait for it.
    pub fn get_if_cached(&self, family: Family, key: &[u8]) -> Result<Cached> {
        let inner = &*self.inner;
        inner.check_sound()?;
        match inner.database.get_pinned_cf_opt(inner.handle(family), key, &inner.cached_read_options) {
            Ok(value) => Ok(Cached::Known(value.map(to_bytes))),
            Err(error) if error.kind() == rocksdb::ErrorKind::Incomplete => Ok(Cached::NeedsDisk),
            Err(error) => Err(inner.read_failed("read", &error)),
        }
    }

    /// Syncs, and writes down how far. To be called every few seconds, from a thread that may wait:
    /// what was synced after the last call and rots at the very end of the WAL cannot be told from
    /// a torn write.
    pub fn note_synced(&self) -> Result<()> {
        // An idle store's last apply batches have no sync coming.
        if self.inner.synced.load(Ordering::Acquire) < self.inner.database.latest_sequence_number() {
            self.sync()?;
        }
        self.inner.check()?;
        self.inner.write_watermark(false)
    }

    /// Stops accepting writes, syncs, and leaves word that nothing may be missing. Reads go on; the
    /// files are closed with the last handle.
    pub fn close(&self) -> Result<()> {
        self.sync()?;
        // First the poison: what is written after the last sync would not be covered by the mark.
        let closed = StorageError::Io { operation: "write", cause: "the store is closed".into() };
        self.inner.failure.set(closed).map_err(|_| self.inner.poisoned())?;
        let _alone = self.inner.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        self.inner.sync_wal().map_err(|error| storage_error("sync", &error))?;
        self.inner.write_watermark(true)
    }

    /// Hands what was written to the operating system, not to the disk: killing the process alone does
    /// not lose it any more.
    pub fn hand_to_system(&self) -> Result<()> {
        self.inner.check()?;
        self.inner.database.flush_wal(false).map_err(|error| self.inner.poison("write", &error))
    }

    /// Flushes a family's memtable to a table file and waits for it.
    pub fn flush(&self, family: Family) -> Result<()> {
        self.inner.check()?;
        self.inner.database.flush_cf(self.inner.handle(family)).map_err(|error| self.inner.poison("flush", &error))
    }

    /// Whether compactions wait until they are allowed again, for want of disk space; one that runs ends. Writes are not slowed down by what
    /// piles up meanwhile.
    pub fn hold_compactions(&self, hold: bool) -> Result<()> {
        let settings = [("disable_auto_compactions", if hold { "true" } else { "false" })];
        Family::ALL.into_iter().try_for_each(|family| {
            let set = self.inner.database.set_options_cf(self.inner.handle(family), &settings);
            set.map_err(|error| storage_error("hold or allow compactions", &error))
        })
    }

    /// Fails if the store has stopped.
    pub(crate) fn check(&self) -> Result<()> {
        self.inner.check()
    }

    /// Stops the store because of `error`.
    pub(crate) fn poison(&self, operation: &'static str, error: &rocksdb::Error) -> StorageError {
        self.inner.poison(operation, error)
    }

    pub(crate) fn database(&self) -> &DB {
        &self.inner.database
    }

    pub(crate) fn database_options(&self) -> &RocksOptions {
        &self.inner.options
    }

    pub(crate) fn cache(&self) -> &Cache {
        &self.inner.cache
    }

    pub(crate) fn handle(&self, family: Family) -> &ColumnFamily {
        self.inner.handle(family)
    }
}

impl Inner {
    fn handle(&self, family: Family) -> &ColumnFamily {
        self.database.cf_handle(family.name()).expect("open() opens all families")
    }

    fn poisoned(&self) -> StorageError {
        let cause = self.failure.get().map_or_else(String::new, ToString::to_string);
        StorageError::Poisoned { cause }
    }

    fn check(&self) -> Result<()> {
        if self.failure.get().is_some() { Err(self.poisoned()) } else { Ok(()) }
    }

    /// Stops the store because of `error`; who comes second is told of the first failure.
    fn poison(&self, operation: &'static str, error: &rocksdb::Error) -> StorageError {
        let error = storage_error(operation, error);
        if let StorageError::Corrupt { what } = &error {
            self.note_damage(what);
        }
        match self.failure.set(error.clone()) {
            Ok(()) => error,
            Err(_) => self.poisoned(),
        }
    }

    fn get(&self, family: Family, key: &[u8], options: &ReadOptions) -> Result<Option<Bytes>> {
        self.check_sound()?;
        let value = self.database.get_pinned_cf_opt(self.handle(family), key, options);
        Ok(value.map_err(|error| self.read_failed("read", &error))?.map(to_bytes))
    }

    fn sync_wal(&self) -> std::result::Result<(), rocksdb::Error> {
        // Read first: what is written meanwhile may or may not be covered.
        let covered = self.database.latest_sequence_number();
        self.database.flush_wal(true)?;
        self.synced.fetch_max(covered, Ordering::AcqRel);
        Ok(())
    }

    fn write_watermark(&self, clean_stop: bool) -> Result<()> {
        let mut last = self.watermark.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Watermark { synced: self.synced.load(Ordering::Acquire), clean_stop, ..*last };
        // A clean stop has the last word.
        if *last != now && !last.clean_stop {
            now.write(&self.directory.watermark()).map_err(|error| match error {
                crate::DirectoryError::NoSpace { .. } => StorageError::NoSpace { cause: error.to_string() },
                error => StorageError::Io { operation: "write the watermark", cause: error.to_string() },
            })?;
            *last = now;
        }
        Ok(())
    }
}

/// A batch for a [`RocksStorage`].
pub struct RocksBatch {
    batch: rocksdb::WriteBatch,
    /// For the handles of its families.
    inner: Arc<Inner>,
}

impl WriteBatch for RocksBatch {
    fn put(&mut self, family: Family, key: &[u8], value: &[u8]) {
        self.batch.put_cf(self.inner.handle(family), key, value);
    }

    fn delete(&mut self, family: Family, key: &[u8]) {
        self.batch.delete_cf(self.inner.handle(family), key);
    }

    fn delete_range(&mut self, family: Family, start: &[u8], end: &[u8]) {
        // RocksDB takes a span that ends before it starts for an error.
        if start < end {
            self.batch.delete_range_cf(self.inner.handle(family), start, end);
        }
    }

    fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    fn size_bytes(&self) -> usize {
        self.batch.size_in_bytes()
    }
}

impl Storage for RocksStorage {
    type Batch = RocksBatch;

    fn batch(&self) -> RocksBatch {
        RocksBatch { batch: rocksdb::WriteBatch::default(), inner: Arc::clone(&self.inner) }
    }

    fn write(&self, batch: RocksBatch) -> Result<()> {
        let inner = &*self.inner;
        inner.check()?;
        let mut batch = batch.batch;
        if batch.is_empty() {
            return Ok(());
        }
        let synced = inner.synced.load(Ordering::Acquire);
        if inner.marked.fetch_max(synced, Ordering::AcqRel) < synced {
            batch.put_log_data(wal_audit::mark(synced));
        }
        inner.written.fetch_add(batch.size_in_bytes() as u64, Ordering::Relaxed);
        inner.database.write_opt(batch, &inner.write_options).map_err(|error| inner.poison("write", &error))
    }

    fn sync(&self) -> Result<()> {
        let inner = &*self.inner;
        let mut space = inner.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        inner.check()?;
        space.reserve(inner.written.load(Ordering::Relaxed));
        inner.sync_wal().map_err(|error| inner.poison("sync", &error))
    }

    fn with_view<R>(&self, read: impl FnOnce(&dyn Read) -> R) -> R {
        let snapshot = self.inner.database.snapshot();
        read(&View { inner: &self.inner, snapshot: &snapshot })
    }
}

impl Read for RocksStorage {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        self.inner.get(family, key, &self.inner.read_options)
    }

    fn scan(
        &self,
        family: Family,
        start: &[u8],
        end: &[u8],
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<()> {
        scan(&self.inner, ReadOptions::default(), family, (start, end), direction, visit)
    }

    fn scan_through(&self, family: Family, start: &[u8], end: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        scan(&self.inner, passing(ReadOptions::default()), family, (start, end), Direction::Forward, visit)
    }
}

struct View<'a> {
    inner: &'a Inner,
    snapshot: &'a Snapshot<'a>,
}

impl View<'_> {
    fn options(&self) -> ReadOptions {
        let mut options = ReadOptions::default();
        options.set_snapshot(self.snapshot);
        options
    }
}

impl Read for View<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        self.inner.get(family, key, &self.options())
    }

    fn scan(
        &self,
        family: Family,
        start: &[u8],
        end: &[u8],
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<()> {
        scan(self.inner, self.options(), family, (start, end), direction, visit)
    }

    fn scan_through(&self, family: Family, start: &[u8], end: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        scan(self.inner, passing(self.options()), family, (start, end), Direction::Forward, visit)
    }
}

/// For scans of much that will not be read again: past the cache, in large reads.
fn passing(mut options: ReadOptions) -> ReadOptions {
    options.fill_cache(false);
    options.set_readahead_size(PASSING_READ_BYTES);
    options
}

/// A copy: the pinned block would otherwise stay in memory as long as the value is held.
fn to_bytes(value: DBPinnableSlice<'_>) -> Bytes {
    Bytes::copy_from_slice(&value)
}

fn scan(
    inner: &Inner,
    mut options: ReadOptions,
    family: Family,
    (start, end): (&[u8], &[u8]),
    direction: Direction,
    visit: &mut Visit<'_>,
) -> Result<()> {
    if start >= end {
        return Ok(());
    }
    inner.check_sound()?;
    options.set_iterate_lower_bound(start);
    options.set_iterate_upper_bound(end);
    // Without it an iterator over `state` would only be sure to show keys of the first key's prefix.
    options.set_total_order_seek(true);
    let mut items: DBRawIterator<'_> = inner.database.raw_iterator_cf_opt(inner.handle(family), options);
    match direction {
        Direction::Forward => items.seek_to_first(),
        Direction::Reverse => items.seek_to_last(),
    }
    while let Some((key, value)) = items.item() {
        if let ControlFlow::Break(()) = visit(key, value) {
            return Ok(());
        }
        match direction {
            Direction::Forward => items.next(),
            Direction::Reverse => items.prev(),
        }
    }
    items.status().map_err(|error| inner.read_failed("scan", &error))
}

impl std::fmt::Debug for RocksStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path: PathBuf = self.inner.directory.db();
        f.debug_struct("RocksStorage").field("path", &path).field("failure", &self.failure()).finish_non_exhaustive()
    }
}
