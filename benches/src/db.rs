//! The database as the store lays it out, for the benches: families `log`, `state` and `meta` under
//! one WAL, write stalls out of reach, any background error final.

use std::path::Path;

use flotilla_engine::keys;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode, Error,
    Options, SliceTransform, WriteBatch,
};

const MIB: usize = 1 << 20;

/// What the benches vary.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Keep written WAL records in the process until `flush_wal`.
    pub manual_wal_flush: bool,
    /// Memtable size of `log`.
    pub log_memtable_bytes: usize,
    /// Part of the memtable of `state` given to a bloom filter over keys and prefixes; 0 for none.
    pub state_memtable_bloom: f64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { manual_wal_flush: false, log_memtable_bytes: 128 * MIB, state_memtable_bloom: 0.0 }
    }
}

/// An open database and the options it was opened with, which hold its statistics.
pub struct Opened {
    /// The database.
    pub db: DB,
    /// The database's options.
    pub options: Options,
}

impl Opened {
    /// The family of this name, one of the three.
    pub fn family(&self, name: &str) -> &ColumnFamily {
        self.db.cf_handle(name).expect("every database here is opened with its three families")
    }
}

/// Opens the database at `path`, made if it is missing.
pub fn open(path: &Path, tuning: Tuning) -> Result<Opened, Error> {
    // Not to be found among the setters: no automatic recovery from a failed write or sync.
    let mut options = Options::default().get_options_from_string("max_bgerror_resume_count=0")?;
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_max_total_wal_size(512 * MIB as u64);
    options.set_max_background_jobs(2);
    options.set_manual_wal_flush(tuning.manual_wal_flush);
    options.enable_statistics();

    let families = [("log", log_options(tuning)), ("state", state_options(tuning)), ("meta", Options::default())];
    let families = families.map(|(name, options)| ColumnFamilyDescriptor::new(name, options));
    let db = DB::open_cf_descriptors(&options, path, families)?;
    Ok(Opened { db, options })
}

fn unstalled() -> Options {
    let mut options = Options::default();
    options.set_max_write_buffer_number(8);
    options.set_level_zero_slowdown_writes_trigger(1 << 20);
    options.set_level_zero_stop_writes_trigger(1 << 20);
    options.set_soft_pending_compaction_bytes_limit(0);
    options.set_hard_pending_compaction_bytes_limit(0);
    options
}

fn log_options(tuning: Tuning) -> Options {
    let mut options = unstalled();
    options.set_write_buffer_size(tuning.log_memtable_bytes);
    options.set_compression_type(DBCompressionType::None);
    options
}

/// Options of the family `state`, which files to be ingested into it must share.
pub fn state_options(tuning: Tuning) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&Cache::new_lru_cache(256 * MIB));
    blocks.set_bloom_filter(10.0, false);
    blocks.set_whole_key_filtering(true);

    let mut options = unstalled();
    options.set_write_buffer_size(64 * MIB);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_block_based_table_factory(&blocks);
    options.set_prefix_extractor(SliceTransform::create("flotilla.user_key", bloom_prefix, Some(has_bloom_prefix)));
    options.set_memtable_prefix_bloom_ratio(tuning.state_memtable_bloom);
    options.set_memtable_whole_key_filtering(tuning.state_memtable_bloom > 0.0);
    options
}

fn bloom_prefix(key: &[u8]) -> &[u8] {
    &key[..keys::bloom_prefix_len(key).unwrap_or(key.len())]
}

fn has_bloom_prefix(key: &[u8]) -> bool {
    keys::bloom_prefix_len(key).is_some()
}

/// A batch of puts.
pub fn batch_of<'a>(family: &ColumnFamily, puts: impl IntoIterator<Item = (impl AsRef<[u8]>, &'a [u8])>) -> WriteBatch {
    let mut batch = WriteBatch::default();
    for (key, value) in puts {
        batch.put_cf(family, key, value);
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_proto::KeyspaceId;

    #[test]
    fn a_database_opens_twice_with_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let key = keys::data(KeyspaceId(1), b"a\0b");
        {
            let store = open(dir.path(), Tuning::default()).unwrap();
            let batch = batch_of(store.family("state"), [(&key, &b"value"[..])]);
            store.db.write(batch).unwrap();
        }
        let store = open(dir.path(), Tuning::default()).unwrap();
        assert_eq!(store.db.get_cf(store.family("state"), &key).unwrap().as_deref(), Some(&b"value"[..]));
    }

    #[test]
    fn the_bloom_prefix_ends_with_the_user_key() {
        let mut key = keys::data(KeyspaceId(1), b"a\0b");
        let prefix = key.clone();
        key.extend_from_slice(&[0, 1, 2]);
        assert_eq!(bloom_prefix(&key), prefix);
        assert!(!has_bloom_prefix(&[1, 2, 3]));
    }
}
