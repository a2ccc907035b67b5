//! RocksDB whose calls fail when a test says so.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use flotilla_engine::storage::{Direction, Family, Read, Result, StagedArea, Staging, Storage, StorageError, Visit};
use flotilla_node::LocalStorage;
use flotilla_proto::v1;
use flotilla_store::{Cached, Properties, RocksBatch, RocksStorage, Scrubbed, Statistics};

/// What is about to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Write,
    Sync,
    StageTable,
    ReadStaged,
    Flush,
    Ingest,
}

/// Whether a call is to fail instead.
pub type Gate = Arc<dyn Fn(Call) -> bool + Send + Sync>;

/// See the module.
#[derive(Clone)]
pub struct Faulty {
    storage: RocksStorage,
    fails: Gate,
}

fn gate(fails: &Gate, call: Call) -> Result<()> {
    if fails(call) {
        return Err(StorageError::Io { operation: "a call", cause: format!("injected into {call:?}") });
    }
    Ok(())
}

impl Faulty {
    pub fn new(storage: RocksStorage, fails: Gate) -> Self {
        Self { storage, fails }
    }
}

struct Area {
    area: Arc<dyn StagedArea>,
    fails: Gate,
}

impl std::fmt::Debug for Area {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.area.fmt(f)
    }
}

impl StagedArea for Area {
    fn read(&self, name: &str, offset: u64, length: usize) -> Result<Bytes> {
        gate(&self.fails, Call::ReadStaged)?;
        self.area.read(name, offset, length)
    }

    fn remove(&self, name: &str) {
        self.area.remove(name);
    }
}

impl Read for Faulty {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        self.storage.get(family, key)
    }

    fn scan(&self, family: Family, start: &[u8], end: &[u8], way: Direction, visit: &mut Visit<'_>) -> Result<()> {
        self.storage.scan(family, start, end, way, visit)
    }
}

impl Storage for Faulty {
    type Batch = RocksBatch;

    fn batch(&self) -> RocksBatch {
        self.storage.batch()
    }

    fn write(&self, batch: RocksBatch) -> Result<()> {
        gate(&self.fails, Call::Write)?;
        self.storage.write(batch)
    }

    fn sync(&self) -> Result<()> {
        gate(&self.fails, Call::Sync)?;
        self.storage.sync()
    }

    fn with_view<R>(&self, read: impl FnOnce(&dyn Read) -> R) -> R {
        self.storage.with_view(read)
    }
}

impl Staging for Faulty {
    type File = <RocksStorage as Staging>::File;
    type Table = <RocksStorage as Staging>::Table;

    fn stage_file(&self) -> Result<Self::File> {
        self.storage.stage_file()
    }

    fn stage_table(&self) -> Result<Self::Table> {
        gate(&self.fails, Call::StageTable)?;
        self.storage.stage_table()
    }

    fn sync_names(&self) -> Result<()> {
        self.storage.sync_names()
    }

    fn staged(&self) -> Result<Vec<String>> {
        self.storage.staged()
    }

    fn verify(&self, file: &v1::StagedFile) -> Result<()> {
        self.storage.verify(file)
    }

    fn area(&self) -> Arc<dyn StagedArea> {
        Arc::new(Area { area: self.storage.area(), fails: Arc::clone(&self.fails) })
    }

    fn flush(&self, family: Family) -> Result<()> {
        gate(&self.fails, Call::Flush)?;
        Staging::flush(&self.storage, family)
    }

    fn ingest(&self, family: Family, files: &[v1::StagedFile]) -> Result<()> {
        gate(&self.fails, Call::Ingest)?;
        self.storage.ingest(family, files)
    }
}

impl LocalStorage for Faulty {
    fn get_if_cached(&self, family: Family, key: &[u8]) -> Result<Cached> {
        self.storage.get_if_cached(family, key)
    }

    fn note_synced(&self) -> Result<()> {
        self.storage.note_synced()
    }

    fn close(&self) -> Result<()> {
        self.storage.close()
    }

    fn properties(&self) -> Properties {
        self.storage.properties()
    }

    fn statistics(&self) -> Statistics {
        self.storage.statistics()
    }

    fn data_bytes(&self, spans: &[(Vec<u8>, Vec<u8>)]) -> Vec<u64> {
        self.storage.data_bytes(spans)
    }

    fn note_damage(&self, seen: &str) {
        self.storage.note_damage(seen);
    }

    fn on_damage(&self, listener: Box<dyn Fn(&str) + Send + Sync>) {
        self.storage.on_damage(listener);
    }

    fn largest_compaction_bytes(&self) -> u64 {
        self.storage.largest_compaction_bytes()
    }

    fn hold_compactions(&self, hold: bool) -> Result<()> {
        self.storage.hold_compactions(hold)
    }

    fn background_failure(&self) -> Option<StorageError> {
        self.storage.background_failure()
    }

    fn scrub(&self, pace: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<Scrubbed> {
        self.storage.scrub(pace)
    }

    fn last_scrub(&self) -> Option<SystemTime> {
        self.storage.last_scrub()
    }
}
