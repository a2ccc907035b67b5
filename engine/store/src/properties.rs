//! What RocksDB tells about itself, for admission control and metrics.
//!
//! Properties are states (a few short holds of RocksDB's mutex per call: ask some times a second, not
//! per request); statistics are counters since the store was opened.

use flotilla_engine::storage::{Family, StorageError};
use rocksdb::statistics::Ticker;
use rocksdb::{ColumnFamily, DB};

use crate::rocks::RocksStorage;

const MIB: u64 = 1 << 20;
/// RocksDB's target for the highest level below level 0 is 256 MiB; what comes in fast makes it larger for a while.
const BASE_LEVEL_BYTES: u64 = 512 * MIB;
/// Between two levels further down: a table of 64 MiB, and the ten that it overlaps as a rule.
const DEEP_COMPACTION_BYTES: u64 = 11 * 64 * MIB;

/// How RocksDB is doing now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    /// Files at level 0, in the family that has most.
    pub l0_files: u64,
    /// Memtables waiting for their flush, in the family that has most.
    pub immutable_memtables: u64,
    /// Bytes that compaction has yet to rewrite.
    pub pending_compaction_bytes: u64,
    /// Bytes in memtables.
    pub memtable_bytes: u64,
    /// Bytes in the block cache, memtables included.
    pub block_cache_bytes: u64,
    /// Bytes in live table files.
    pub sst_bytes: u64,
    /// Failures of flushes and compactions; the store stops at the next write after one.
    pub background_errors: u64,
}

/// What RocksDB has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes put into the WAL.
    pub wal_bytes: u64,
    /// Syncs of the WAL.
    pub wal_syncs: u64,
    /// Bytes written by flushes.
    pub flush_bytes_written: u64,
    /// Bytes read by compactions.
    pub compaction_bytes_read: u64,
    /// Bytes written by compactions.
    pub compaction_bytes_written: u64,
    /// Microseconds that writers were held up; not 0 means that admission control let too much in.
    pub stall_micros: u64,
    /// Blocks found in the cache.
    pub block_cache_hits: u64,
    /// Blocks that had to be read.
    pub block_cache_misses: u64,
    /// Reads of table files that a bloom filter spared.
    pub bloom_useful: u64,
}

fn number(database: &DB, family: &ColumnFamily, name: &str) -> u64 {
    // A property that cannot be had is shown as 0: figures are no reason to fail.
    database.property_int_value_cf(family, name).ok().flatten().unwrap_or(0)
}

fn files_at_level_0(database: &DB, family: &ColumnFamily) -> u64 {
    let text = database.property_value_cf(family, "rocksdb.num-files-at-level0").ok().flatten();
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Bytes in each level of a family, level 0 first, to the next MiB.
fn levels(database: &DB, family: &ColumnFamily) -> Vec<u64> {
    let text = database.property_value_cf(family, rocksdb::properties::LEVELSTATS).ok().flatten().unwrap_or_default();
    // Each line below the two of the title: level, files, MiB.
    let sizes = text.lines().skip(2).filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
    // Rounded to the nearest.
    sizes.map(|mib| if mib == 0 { 0 } else { (mib + 1) * MIB }).collect()
}

/// What the largest compaction that the sizes of the levels let come next would read, and write as much.
fn largest_compaction(levels: &[u64]) -> u64 {
    let Some((top, below)) = levels.split_first() else { return 0 };
    let base = below.iter().copied().find(|bytes| *bytes > 0).unwrap_or(0);
    let deep = below.windows(2).filter(|pair| pair[0] > 0).map(|pair| (pair[0] + pair[1]).min(DEEP_COMPACTION_BYTES));
    deep.max().unwrap_or(0).max(top + base.min(BASE_LEVEL_BYTES))
}

impl RocksStorage {
    /// About how many bytes the largest compaction takes that may come next, before it gives back what it has read.
    pub fn largest_compaction_bytes(&self) -> u64 {
        let levels = |family| levels(self.database(), self.handle(family));
        Family::ALL.map(|family| largest_compaction(&levels(family))).into_iter().max().unwrap_or(0)
    }

    /// How RocksDB is doing now.
    pub fn properties(&self) -> Properties {
        let mut sum = Properties { block_cache_bytes: self.cache().get_usage() as u64, ..Properties::default() };
        let database = self.database();
        for handle in Family::ALL.map(|family| self.handle(family)) {
            let number = |name| number(database, handle, name);
            sum.l0_files = sum.l0_files.max(files_at_level_0(database, handle));
            sum.immutable_memtables = sum.immutable_memtables.max(number("rocksdb.num-immutable-mem-table"));
            sum.pending_compaction_bytes += number("rocksdb.estimate-pending-compaction-bytes");
            sum.memtable_bytes += number("rocksdb.cur-size-all-mem-tables");
            sum.sst_bytes += number("rocksdb.live-sst-files-size");
            sum.background_errors += number("rocksdb.background-errors");
        }
        sum
    }

    /// Why flushes and compactions have failed, if they have. RocksDB tells by refusing a write, here of nothing.
    pub fn background_failure(&self) -> Option<StorageError> {
        let database = self.database();
        let failures = |family| number(database, self.handle(family), "rocksdb.background-errors");
        if Family::ALL.into_iter().all(|family| failures(family) == 0) {
            return None;
        }
        let nothing = rocksdb::WriteBatch::default();
        let refused = database.write(nothing).map_err(|error| self.poison("flush or compact", &error));
        let unknown = || StorageError::Io {
            operation: "a flush or a compaction",
            cause: "RocksDB's log in the data directory says how".into(),
        };
        Some(refused.err().unwrap_or_else(unknown))
    }

    /// About how many bytes each of these spans of data has in table files: compressed, and without what
    /// only memtables hold yet.
    pub fn data_bytes(&self, spans: &[(Vec<u8>, Vec<u8>)]) -> Vec<u64> {
        let spans: Vec<_> = spans.iter().map(|(start, end)| rocksdb::Range::new(start, end)).collect();
        self.database().get_approximate_sizes_cf(self.handle(Family::State), &spans)
    }

    /// What RocksDB has done since it was opened.
    pub fn statistics(&self) -> Statistics {
        let count = |ticker| self.database_options().get_ticker_count(ticker);
        Statistics {
            wal_bytes: count(Ticker::WalFileBytes),
            wal_syncs: count(Ticker::WalFileSynced),
            flush_bytes_written: count(Ticker::FlushWriteBytes),
            compaction_bytes_read: count(Ticker::CompactReadBytes),
            compaction_bytes_written: count(Ticker::CompactWriteBytes),
            stall_micros: count(Ticker::StallMicros),
            block_cache_hits: count(Ticker::BlockCacheHit),
            block_cache_misses: count(Ticker::BlockCacheMiss),
            bloom_useful: count(Ticker::BloomFilterUseful),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_compaction_is_that_of_level_0_or_of_a_table_further_down() {
        let largest = |mib: [u64; 7]| largest_compaction(&mib.map(|mib| mib * MIB)) / MIB;
        assert_eq!(largest([0; 7]), 0);
        assert_eq!(largest([20, 0, 0, 0, 0, 0, 65]), 85);
        assert_eq!(largest([20, 0, 0, 0, 0, 200, 2_000]), 704);
        assert_eq!(largest([600, 0, 0, 0, 0, 200, 2_000]), 800);
        assert_eq!(largest([64, 0, 0, 0, 0, 0, 10_000]), 576, "there will be another level before that");
        assert_eq!(largest([64, 0, 0, 0, 0, 100, 50]), 164);
    }
}
