//! The simulated disk's staging area: files beside the maps, with the durability of a directory.
//!
//! A file's contents survive a crash once it is finished, its name once the names were synced; before that a crash
//! keeps or loses it, by the seed, and may bring back what was removed. What is ingested is durable at once, ahead of
//! the batches. Writers and handles of a process that has ended do nothing any more.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use flotilla_engine::storage::{Family, FileWriter, Result, StagedArea, Staging, StorageError, TableWriter};
use flotilla_proto::v1;

use super::maps::Change;
use super::{Disk, SimDisk, mix};

#[derive(Clone, Debug, Default)]
struct File {
    bytes: Vec<u8>,
    finished: bool,
    named: bool,
}

/// All staged files.
#[derive(Debug, Default)]
pub(super) struct Files {
    files: BTreeMap<String, File>,
    /// Removed since the names were last synced: a crash may bring them back.
    removed: Vec<(String, File)>,
    count: u64,
    /// Counts the processes: handles of earlier ones do nothing.
    life: u64,
}

impl Files {
    /// The process ends; what was being written stays as it is.
    pub(super) fn close(&mut self) {
        self.life += 1;
        self.removed.clear();
        self.files.values_mut().for_each(|file| (file.finished, file.named) = (true, true));
    }

    pub(super) fn crash(&mut self, seed: u64) {
        self.life += 1;
        let mut dice = seed;
        let mut flip = || {
            dice = mix(dice);
            dice.is_multiple_of(2)
        };
        for (name, file) in std::mem::take(&mut self.removed) {
            if flip() {
                self.files.entry(name).or_insert(file);
            }
        }
        self.files.retain(|_, file| (file.finished && file.named) || flip());
        for file in self.files.values_mut().filter(|file| !file.finished) {
            let kept = usize::try_from(mix(seed)).unwrap_or(0) % (file.bytes.len() + 1);
            file.bytes.truncate(kept);
            file.finished = true;
        }
        self.files.values_mut().for_each(|file| file.named = true);
    }

    fn begin(&mut self, extension: &str) -> String {
        self.count += 1;
        let name = format!("{}.{extension}", self.count);
        self.files.insert(name.clone(), File::default());
        name
    }

    fn get(&self, name: &str) -> Result<&File> {
        self.files
            .get(name)
            .ok_or_else(|| StorageError::Io { operation: "opening a staged file", cause: format!("{name}: not there") })
    }
}

/// Access by name, as long as its process lives.
#[derive(Debug)]
struct Area {
    disk: SimDisk,
    life: u64,
}

fn over() -> StorageError {
    StorageError::Io { operation: "using a staged file", cause: "the process has ended".into() }
}

impl StagedArea for Area {
    fn read(&self, name: &str, offset: u64, length: usize) -> Result<Bytes> {
        let disk = self.disk.lock();
        if disk.staged.life != self.life {
            return Err(over());
        }
        let bytes = &disk.staged.get(name)?.bytes;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let part = bytes.get(from..from.saturating_add(length));
        part.map(Bytes::copy_from_slice).ok_or_else(|| StorageError::Corrupt { what: format!("{name}: cut short") })
    }

    fn remove(&self, name: &str) {
        let disk = &mut *self.disk.lock();
        if disk.staged.life == self.life
            && let Some(file) = disk.staged.files.remove(name)
        {
            disk.staged.removed.push((name.into(), file));
        }
    }
}

/// Writes one staged file.
#[derive(Debug)]
pub struct SimFile {
    disk: SimDisk,
    life: u64,
    name: String,
}

impl SimFile {
    fn with<R>(&self, act: impl FnOnce(&mut File) -> R) -> Result<R> {
        let disk = &mut *self.disk.lock();
        disk.faults.on_staged()?;
        match disk.staged.files.get_mut(&self.name) {
            Some(file) if disk.staged.life == self.life => Ok(act(file)),
            _ => Err(over()),
        }
    }
}

impl FileWriter for SimFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.with(|file| file.bytes.extend_from_slice(bytes))
    }

    fn finish(self) -> Result<()> {
        self.with(|file| file.finished = true)
    }
}

/// Writes one staged table.
#[derive(Debug)]
pub struct SimTable {
    file: SimFile,
    last_key: Option<Vec<u8>>,
    size_bytes: u64,
}

impl TableWriter for SimTable {
    fn name(&self) -> &str {
        &self.file.name
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if self.last_key.as_deref().is_some_and(|last| last >= key) {
            return Err(StorageError::Corrupt { what: "a table's keys must ascend".into() });
        }
        self.last_key = Some(key.to_vec());
        self.size_bytes += (key.len() + value.len()) as u64;
        self.file.with(|file| {
            file.bytes.put_u32(u32::try_from(key.len()).unwrap_or(u32::MAX));
            file.bytes.put_u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
            file.bytes.extend_from_slice(key);
            file.bytes.extend_from_slice(value);
        })
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn finish(self) -> Result<v1::StagedFile> {
        if self.last_key.is_none() {
            return Err(StorageError::Corrupt { what: "a table must hold a record".into() });
        }
        self.file.with(|file| {
            file.finished = true;
            described(&self.file.name, &file.bytes)
        })
    }
}

fn described(name: &str, bytes: &[u8]) -> v1::StagedFile {
    v1::StagedFile { name: name.into(), bytes: bytes.len() as u64, crc32: crc32fast::hash(bytes) }
}

fn puts(family: Family, mut bytes: &[u8]) -> Vec<Change> {
    let mut changes = Vec::new();
    while bytes.len() >= 8 {
        let (key, value) = (bytes.get_u32() as usize, bytes.get_u32() as usize);
        let record = (Bytes::copy_from_slice(&bytes[..key]), Bytes::copy_from_slice(&bytes[key..key + value]));
        bytes.advance(key + value);
        changes.push(Change::Put(family, record.0, record.1));
    }
    changes
}

impl Disk {
    /// All that was written so far becomes durable, as if its log had been synced and closed.
    fn flush(&mut self, family: Family) -> Result<()> {
        self.faults.on_sync()?;
        if self.unsynced.iter().any(|undo| undo.touches(family, None)) {
            self.unsynced.clear();
        }
        Ok(())
    }

    fn ingest_one(&mut self, family: Family, file: &v1::StagedFile) -> Result<()> {
        let staged = self.staged.get(&file.name)?;
        if described(&file.name, &staged.bytes) != *file {
            return Err(StorageError::Corrupt { what: format!("staged file {}", file.name) });
        }
        let changes = puts(family, &staged.bytes);
        let key = |change: &Change| if let Change::Put(_, key, _) = change { key.clone() } else { Bytes::new() };
        if let (Some(first), Some(last)) = (changes.first().map(key), changes.last().map(key))
            && self.unsynced.iter().any(|undo| undo.touches(family, Some((&first, &last))))
        {
            self.flush(family)?;
        }
        // Without an undo: it is durable at once.
        drop(Arc::make_mut(&mut self.visible).apply(changes));
        Ok(())
    }
}

impl Staging for SimDisk {
    type File = SimFile;
    type Table = SimTable;

    fn stage_file(&self) -> Result<SimFile> {
        let mut disk = self.lock();
        disk.faults.on_staged()?;
        let name = disk.staged.begin("chunks");
        Ok(SimFile { disk: self.clone(), life: disk.staged.life, name })
    }

    fn stage_table(&self) -> Result<SimTable> {
        let mut disk = self.lock();
        disk.faults.on_staged()?;
        let name = disk.staged.begin("sst");
        let file = SimFile { disk: self.clone(), life: disk.staged.life, name };
        Ok(SimTable { file, last_key: None, size_bytes: 0 })
    }

    fn sync_names(&self) -> Result<()> {
        let mut disk = self.lock();
        disk.faults.on_staged()?;
        disk.staged.removed.clear();
        disk.staged.files.values_mut().for_each(|file| file.named = true);
        Ok(())
    }

    fn staged(&self) -> Result<Vec<String>> {
        Ok(self.lock().staged.files.keys().cloned().collect())
    }

    fn verify(&self, file: &v1::StagedFile) -> Result<()> {
        let disk = self.lock();
        if described(&file.name, &disk.staged.get(&file.name)?.bytes) == *file {
            return Ok(());
        }
        Err(StorageError::Corrupt { what: format!("staged file {}", file.name) })
    }

    fn area(&self) -> Arc<dyn StagedArea> {
        let life = self.lock().staged.life;
        Arc::new(Area { disk: self.clone(), life })
    }

    fn flush(&self, family: Family) -> Result<()> {
        self.lock().flush(family)
    }

    fn ingest(&self, family: Family, files: &[v1::StagedFile]) -> Result<()> {
        let mut disk = self.lock();
        disk.faults.on_write()?;
        files.iter().try_for_each(|file| disk.ingest_one(family, file))
    }
}
