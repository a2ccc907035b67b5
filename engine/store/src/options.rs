//! How RocksDB is set up, and why. What a setting is worth was measured or read from RocksDB's sources.
//!
//! - **One WAL, flushed by hand** (`manual_wal_flush`): a write goes to a buffer in this process, and
//!   the log writer's `flush_wal(true)` hands it to the system and syncs it outside of RocksDB's
//!   write queue. No system call per apply batch, and no write(2) into a file that is being synced.
//! - **No atomic flush.** The families share one WAL that is always on, so after a crash recovery
//!   replays all of them up to one point; and with several families RocksDB syncs the closed WALs
//!   before it installs a flushed table, so that no table is ahead of the WAL. Atomic flush would
//!   only couple the families: each flush of `state` would flush `log` too, and entries that
//!   truncation was about to delete in memory would reach the disk.
//! - **No write stalls for level-0 files or pending compactions.** RocksDB has one write controller for all
//!   families, and a stalled `state` would stall `log`, and with it votes and elections. Their triggers are out
//!   of reach. What stays is the bound of memory: behind eight memtables of a family that wait for their flush
//!   all writes stop, until the disk has taken one.
//! - **No limit for the rate of flushes and compactions.** RocksDB knows one for both, and flushes that are
//!   slower than what comes in stop all writes: at 64 MiB/s values of 256 KiB waited for a second
//!   (docs/decisions/0041-flushes-are-not-held-back.md). Instead they wait for each megabyte to reach the disk.
//! - **PointInTime recovery** plus our own audit, which knows what had been synced (`wal_audit`).
//!   `track_and_verify_wals_in_manifest` makes RocksDB notice closed WALs that are missing.
//! - **No resuming after background errors**: the first failure stops the store.
//! - **One budget**: memtables are charged to the block cache, indexes and filters live in it.

use std::path::Path;
use std::sync::OnceLock;

use flotilla_engine::keys::bloom_prefix_len;
use flotilla_engine::storage::Family;
use rocksdb::statistics::StatsLevel;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompressionType, DBRecoveryMode, Env, LogLevel,
    Options as RocksOptions, SliceTransform, WriteBufferManager,
};

use crate::error::OpenError;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Smaller budgets are taken for this one: below it there is no sensible split.
const MEMORY_BYTES_MIN: u64 = 16 * MIB as u64;
/// Far beyond what admission control lets happen.
const OUT_OF_REACH: i32 = 1 << 20;
const INFO_LOG_BYTES: usize = 4 * MIB;
const INFO_LOG_FILES: usize = 4;
/// RocksDB's default, said here because room has to be kept for it.
const MANIFEST_PREALLOCATED_BYTES: usize = 4 * MIB;
/// Options, watermark, info log, what the tables' own indexes take, and what the file system rounds up.
const SMALL_FILES_BYTES: usize = 12 * MIB;
const BLOOM_BITS_PER_KEY: f64 = 10.0;
/// Entries of one range come in the order of their keys, those of many ranges mixed: for each range the memtable of `log`
/// remembers where the last one went, in some 300 bytes that count as its own. The prefix is what a range's entries share
/// ([`flotilla_engine::keys`]).
const LOG_HINTS: &str = "memtable_insert_with_hint_prefix_extractor=rocksdb.FixedPrefix.9";
/// The apply stage writes a batch's data in the order of the keys: the memtable of `state` begins its search where the last one of the
/// same kind (data, range states, expiry) ended.
const STATE_HINTS: &str = "memtable_insert_with_hint_prefix_extractor=rocksdb.FixedPrefix.1";
/// The first error of a flush or compaction stops the store; and a table that is being written has at most a megabyte on its way to the
/// disk, or the log's next sync would wait behind all of it.
const DATABASE: &str = "max_bgerror_resume_count=0;strict_bytes_per_sync=true";
/// Part of the table format: tables remember the name, and filters of another one are not used.
const PREFIX_EXTRACTOR: &str = "flotilla.user-key.1";

/// How a store is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// For memtables, blocks, indexes and filters together.
    pub memory_bytes: u64,
    /// Table files kept open; the process's limit must leave room for more than these.
    pub max_open_files: i32,
    /// Threads for flushes and compactions.
    pub background_jobs: i32,
    /// No compaction begins until [`RocksStorage::hold_compactions`](crate::RocksStorage::hold_compactions) allows it: one takes as much room
    /// as what it reads, all of it ahead, and on a disk without that it would end the store, or take what opening needs.
    pub hold_compactions: bool,
}

impl Options {
    /// Disk space, in bytes, that opening a store may take after a crash before it can serve. What the WAL holds is flushed into tables
    /// (no more than the WAL may be large, and nothing of the WAL goes before that); then RocksDB sets blocks aside for a new WAL and a new
    /// manifest, and if they are not there a file system may give it all that is left, as ext4 does. Compactions are not counted: see
    /// [`Self::hold_compactions`].
    pub fn bytes_to_open(&self) -> u64 {
        let memory = memory(self);
        let wal = write_buffer_bytes(Family::Log, memory) * 11 / 10;
        wal_bytes_max(memory) + (wal + MANIFEST_PREALLOCATED_BYTES + SMALL_FILES_BYTES) as u64
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { memory_bytes: 512 * MIB as u64, max_open_files: 4096, background_jobs: 2, hold_compactions: false }
    }
}

/// RocksDB's options, and what must be asked later.
pub(crate) struct Built {
    pub(crate) database: RocksOptions,
    pub(crate) families: Vec<ColumnFamilyDescriptor>,
    pub(crate) cache: Cache,
}

pub(crate) fn build(options: &Options, info_log: &Path, create: bool) -> Result<Built, OpenError> {
    let memory = memory(options);
    let cache = Cache::new_lru_cache(memory);
    let database = database_options(options, memory, &cache, info_log, create)?;
    let mut families = Vec::new();
    // RocksDB insists on the default one; nothing is kept there.
    for (family, name) in
        Family::ALL.map(|family| (family, family.name())).into_iter().chain([(Family::Meta, "default")])
    {
        let begun = match family {
            Family::Log => from_string(LOG_HINTS)?,
            Family::State => from_string(STATE_HINTS)?,
            Family::Meta => RocksOptions::default(),
        };
        let mut settings = family_options(begun, family, memory, &cache);
        settings.set_disable_auto_compactions(options.hold_compactions);
        families.push(ColumnFamilyDescriptor::new(name, settings));
    }
    Ok(Built { database, families, cache })
}

fn memory(options: &Options) -> usize {
    usize::try_from(options.memory_bytes.max(MEMORY_BYTES_MIN)).unwrap_or(usize::MAX)
}

/// `log` is given the larger buffer: truncation is to happen before it is flushed.
fn write_buffer_bytes(family: Family, memory: usize) -> usize {
    match family {
        Family::Log => (memory / 4).clamp(4 * MIB, 128 * MIB),
        Family::State => (memory / 8).clamp(2 * MIB, 64 * MIB),
        Family::Meta => MIB,
    }
}

/// All WAL files together, beyond which RocksDB flushes what keeps the oldest.
fn wal_bytes_max(memory: usize) -> u64 {
    2 * (write_buffer_bytes(Family::Log, memory) + write_buffer_bytes(Family::State, memory)) as u64
}

fn database_options(
    options: &Options,
    memory: usize,
    cache: &Cache,
    info_log: &Path,
    create: bool,
) -> Result<RocksOptions, OpenError> {
    let mut database = from_string(DATABASE)?;
    database.create_if_missing(create);
    database.create_missing_column_families(create);

    database.set_manual_wal_flush(true);
    database.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    database.set_track_and_verify_wals_in_manifest(true);
    database.set_recycle_log_file_num(0);
    database.set_max_total_wal_size(wal_bytes_max(memory));
    database.set_manifest_preallocation_size(MANIFEST_PREALLOCATED_BYTES);
    database.set_atomic_flush(false);
    database.set_paranoid_checks(true);

    database.set_write_buffer_manager(&WriteBufferManager::new_write_buffer_manager_with_cache(
        memory / 2,
        false,
        cache.clone(),
    ));
    database.set_max_open_files(options.max_open_files);
    database.set_max_background_jobs(options.background_jobs);
    let mut env = Env::new().map_err(|error| OpenError::Io { cause: error.to_string() })?;
    env.lower_thread_pool_cpu_priority();
    env.lower_thread_pool_io_priority();
    database.set_env(&env);
    database.set_bytes_per_sync(MIB as u64);
    database.set_avoid_unnecessary_blocking_io(true);

    database.set_db_log_dir(info_log);
    database.set_log_level(LogLevel::Info);
    database.set_max_log_file_size(INFO_LOG_BYTES);
    database.set_keep_log_file_num(INFO_LOG_FILES);
    database.set_stats_dump_period_sec(0);
    database.set_stats_persist_period_sec(0);
    database.enable_statistics();
    database.set_statistics_level(StatsLevel::ExceptHistogramOrTimers);
    Ok(database)
}

fn family_options(mut options: RocksOptions, family: Family, memory: usize, cache: &Cache) -> RocksOptions {
    options.set_write_buffer_size(write_buffer_bytes(family, memory));
    options.set_max_write_buffer_number(8);
    options.set_level_zero_slowdown_writes_trigger(OUT_OF_REACH);
    options.set_level_zero_stop_writes_trigger(OUT_OF_REACH);
    // 0: no limit.
    options.set_soft_pending_compaction_bytes_limit(0);
    options.set_hard_pending_compaction_bytes_limit(0);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_compression_type(DBCompressionType::Lz4);

    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(8 * KIB);
    table.set_cache_index_and_filter_blocks(true);
    table.set_cache_index_and_filter_blocks_with_high_priority(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    if family == Family::State {
        table.set_bloom_filter(BLOOM_BITS_PER_KEY, false);
        // Whole keys too: range state has no prefix, and point reads of it are many.
        table.set_whole_key_filtering(true);
        options.set_prefix_extractor(SliceTransform::create(PREFIX_EXTRACTOR, user_key_prefix, Some(has_prefix)));
    }
    options.set_block_based_table_factory(&table);
    options
}

/// Fresh options with settings that have no setter.
fn from_string(settings: &str) -> Result<RocksOptions, OpenError> {
    RocksOptions::default()
        .get_options_from_string(settings)
        .map_err(|error| OpenError::Io { cause: error.to_string() })
}

/// Settings of table files that are written to be ingested into the family `state`.
pub(crate) fn table_options() -> &'static RocksOptions {
    static OPTIONS: OnceLock<RocksOptions> = OnceLock::new();
    // Only what shapes a file matters; nothing goes through this cache.
    OPTIONS.get_or_init(|| {
        let (begun, cache) = (RocksOptions::default(), Cache::new_lru_cache(KIB));
        let mut options = family_options(begun, Family::State, MEMORY_BYTES_MIN as usize, &cache);
        options.set_bytes_per_sync(MIB as u64);
        options
    })
}

/// Up to and including the end of the encoded user key: what all versions of one key share.
fn user_key_prefix(key: &[u8]) -> &[u8] {
    bloom_prefix_len(key).map_or(key, |length| &key[..length])
}

fn has_prefix(key: &[u8]) -> bool {
    bloom_prefix_len(key).is_some()
}
