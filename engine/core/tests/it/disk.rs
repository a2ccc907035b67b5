//! A disk in memory: sorted maps, atomic batches, nothing ever lost. What a crash may lose is what the scenario
//! has not written yet (`cluster.rs`); torn and lost writes are flotilla-sim's matter.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use flotilla_engine::storage::{Direction, Family, Read, Result, Storage, Visit, WriteBatch};

use crate::staging::Files;

type Map = BTreeMap<(Family, Vec<u8>), Bytes>;

/// See the module.
#[derive(Default)]
pub struct MemDisk {
    map: Mutex<Map>,
    /// Its staging area (`staging.rs`).
    pub files: Files,
}

enum Change {
    Put(Family, Vec<u8>, Bytes),
    DeleteRange(Family, Vec<u8>, Vec<u8>),
}

/// A batch for [`MemDisk`].
#[derive(Default)]
pub struct Batch(Vec<Change>);

impl WriteBatch for Batch {
    fn put(&mut self, family: Family, key: &[u8], value: &[u8]) {
        self.0.push(Change::Put(family, key.into(), Bytes::copy_from_slice(value)));
    }

    fn delete(&mut self, family: Family, key: &[u8]) {
        self.delete_range(family, key, &[key, &[0]].concat());
    }

    fn delete_range(&mut self, family: Family, start: &[u8], end: &[u8]) {
        self.0.push(Change::DeleteRange(family, start.into(), end.into()));
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn size_bytes(&self) -> usize {
        self.0.len()
    }
}

struct View(Map);

impl Read for View {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.0.get(&(family, key.to_vec())).cloned())
    }

    fn scan(
        &self,
        family: Family,
        start: &[u8],
        end: &[u8],
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<()> {
        if start >= end {
            return Ok(());
        }
        let span = self.0.range((family, start.to_vec())..(family, end.to_vec()));
        let mut show = |pair: (&(Family, Vec<u8>), &Bytes)| visit(&pair.0.1, pair.1);
        let _: ControlFlow<()> = match direction {
            Direction::Forward => span.into_iter().try_for_each(&mut show),
            Direction::Reverse => span.into_iter().rev().try_for_each(&mut show),
        };
        Ok(())
    }
}

impl MemDisk {
    fn map(&self) -> MutexGuard<'_, Map> {
        self.map.lock().expect("no scenario goes on after a panic")
    }

    /// All that is on it.
    pub fn contents(&self) -> BTreeMap<(Family, Vec<u8>), Bytes> {
        self.map().clone()
    }

    /// Makes it hold just this.
    pub fn restore(&self, contents: BTreeMap<(Family, Vec<u8>), Bytes>) {
        *self.map() = contents;
    }

    /// Sets or removes a record behind the engine's back.
    pub fn damage(&self, family: Family, key: &[u8], value: Option<&[u8]>) {
        match value {
            Some(value) => self.map().insert((family, key.into()), Bytes::copy_from_slice(value)),
            None => self.map().remove(&(family, key.to_vec())),
        };
    }
}

impl Read for MemDisk {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.map().get(&(family, key.to_vec())).cloned())
    }

    fn scan(
        &self,
        family: Family,
        start: &[u8],
        end: &[u8],
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<()> {
        View(self.contents()).scan(family, start, end, direction, visit)
    }
}

impl Storage for MemDisk {
    type Batch = Batch;

    fn batch(&self) -> Batch {
        Batch::default()
    }

    fn write(&self, batch: Batch) -> Result<()> {
        let mut map = self.map();
        for change in batch.0 {
            match change {
                Change::Put(family, key, value) => {
                    map.insert((family, key), value);
                }
                Change::DeleteRange(family, start, end) => {
                    let gone: Vec<_> = map.range((family, start)..(family, end)).map(|(key, _)| key.clone()).collect();
                    gone.iter().for_each(|key| {
                        map.remove(key);
                    });
                }
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn with_view<R>(&self, read: impl FnOnce(&dyn Read) -> R) -> R {
        read(&View(self.contents()))
    }
}
