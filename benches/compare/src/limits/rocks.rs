//! What RocksDB gives, as the product opens it (`flotilla-store`): one thread, records as they lie in the family `state`.

use std::path::Path;
use std::sync::Arc;

use flotilla_benches::cluster::Result;
use flotilla_engine::storage::{Family, Read, Storage, WriteBatch};
use flotilla_engine::{keys, record};
use flotilla_proto::NodeId;
use flotilla_proto::ids::DEFAULT_KEYSPACE;
use flotilla_store::{Cached, Identity, Options, RocksBatch, RocksStorage, StoreDirectory};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::figures::Measured;
use super::{KEYS, VALUE_BYTES, in_process, repeat};
use crate::cell::Times;
use crate::load::workload::{key, value};

/// What the nodes are given with which the comparison runs.
const MEMORY_BYTES: u64 = 256 << 20;
/// Different values: what is written does not compress, and costs no time to make.
const VALUES: usize = 64;
/// Reads between two looks at the clock.
const READS: u64 = 64;

/// A thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rocks {
    /// Batches of so many puts, each batch synced or none.
    Put { batch: u64, synced: bool },
    /// Point reads of keys that are there.
    Get { from: Place },
}

/// Where a key is found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    Memtable,
    BlockCache,
}

impl Rocks {
    pub fn all() -> Vec<Self> {
        let put = |synced| [1, 16, 256].map(|batch| Self::Put { batch, synced });
        let get = [Place::Memtable, Place::BlockCache].map(|from| Self::Get { from });
        put(false).into_iter().chain(put(true)).chain(get).collect()
    }

    pub fn name(self) -> String {
        match self {
            Self::Put { batch, synced } => {
                format!("puts in batches of {batch}, {}", if synced { "synced" } else { "not synced" })
            }
            Self::Get { from: Place::Memtable } => "gets from the memtable".into(),
            Self::Get { from: Place::BlockCache } => "gets from the block cache".into(),
        }
    }

    pub fn measure(self, dir: &Path, times: Times) -> Result<Measured> {
        let scratch = tempfile::tempdir_in(dir)?;
        let mut rows = Rows { storage: open(scratch.path(), 1)?, values: values(), random: SmallRng::seed_from_u64(1) };
        match self {
            Self::Put { batch, synced } => {
                in_process(times, |length| repeat(length, || rows.put(batch, synced).map(|()| batch)))
            }
            Self::Get { from } => {
                rows.fill()?;
                if from == Place::BlockCache {
                    rows.flush()?;
                }
                in_process(times, |length| repeat(length, || rows.get(READS).map(|()| READS)))
            }
        }
    }
}

/// A new store, opened as a node opens its own.
pub fn open(directory: &Path, node: u64) -> Result<RocksStorage> {
    let directory = StoreDirectory::create(&directory.join(format!("node-{node}")), Identity::new(1, NodeId(node)), 0)?;
    let options = Options { memory_bytes: MEMORY_BYTES, ..Options::default() };
    Ok(RocksStorage::open(Arc::new(directory), &options)?)
}

/// Records.
fn values() -> Vec<Vec<u8>> {
    let mut random = SmallRng::seed_from_u64(2);
    (0..VALUES).map(|at| record::encode_value(at as u64 + 1, 0, &value(&mut random, VALUE_BYTES))).collect()
}

/// The data of one range, without a range around it.
struct Rows {
    storage: RocksStorage,
    values: Vec<Vec<u8>>,
    random: SmallRng,
}

impl Rows {
    fn row_key(number: u64) -> Vec<u8> {
        keys::data(DEFAULT_KEYSPACE, &key(number))
    }

    fn add(&self, batch: &mut RocksBatch, number: u64) {
        batch.put(Family::State, &Self::row_key(number), &self.values[number as usize % VALUES]);
    }

    fn put(&mut self, count: u64, synced: bool) -> Result<()> {
        let mut batch = self.storage.batch();
        for _ in 0..count {
            let number = self.random.random_range(0..KEYS);
            self.add(&mut batch, number);
        }
        self.storage.write(batch)?;
        if synced {
            self.storage.sync()?;
        }
        Ok(())
    }

    fn fill(&self) -> Result<()> {
        let mut batch = self.storage.batch();
        (0..KEYS).for_each(|number| self.add(&mut batch, number));
        Ok(self.storage.write(batch)?)
    }

    /// To files, and their blocks into the cache.
    fn flush(&self) -> Result<()> {
        self.storage.flush(Family::State)?;
        for number in 0..KEYS {
            self.storage.get(Family::State, &Self::row_key(number))?;
        }
        Ok(())
    }

    /// As a node reads on its callers' threads: what memory does not hold is a failure here.
    fn get(&mut self, count: u64) -> Result<()> {
        for _ in 0..count {
            let key = Self::row_key(self.random.random_range(0..KEYS));
            match self.storage.get_if_cached(Family::State, &key)? {
                Cached::Known(Some(row)) => drop(std::hint::black_box(row)),
                other => return Err(format!("a key that was written is not in memory: {other:?}").into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_line_can_be_measured() {
        let directory = tempfile::tempdir().expect("a directory");
        let times = Times { warm_up: Duration::from_millis(1), measure: Duration::from_millis(5) };
        for line in Rocks::all() {
            let measured = line.measure(directory.path(), times).expect("measured");
            assert!(measured.per_second > 0.0, "{}", line.name());
        }
    }
}
