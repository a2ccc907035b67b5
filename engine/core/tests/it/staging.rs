//! The staging area of [`MemDisk`]: files in a map, whose records are put when they are ingested. What a crash does to
//! them is the matter of the real implementations and their suite.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use flotilla_engine::storage::{
    Family, FileWriter, Result, StagedArea, Staging, Storage, StorageError, TableWriter, WriteBatch,
};
use flotilla_proto::v1;

use crate::disk::MemDisk;

type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// Files by name.
#[derive(Clone, Debug, Default)]
pub struct Files(Arc<Mutex<BTreeMap<String, Records>>>);

impl Files {
    fn files(&self) -> MutexGuard<'_, BTreeMap<String, Records>> {
        self.0.lock().expect("no scenario goes on after a panic")
    }
}

impl StagedArea for Files {
    fn read(&self, name: &str, offset: u64, length: usize) -> Result<Bytes> {
        let files = self.files();
        let missing = || StorageError::Corrupt { what: format!("{name} is not there") };
        let bytes = files.get(name).ok_or_else(missing)?.iter().flat_map(|(_, value)| value);
        Ok(bytes.skip(usize::try_from(offset).unwrap_or(usize::MAX)).take(length).copied().collect())
    }

    fn remove(&self, name: &str) {
        self.files().remove(name);
    }
}

/// Writes one of them.
pub struct Writer {
    files: Files,
    name: String,
    records: Records,
}

impl Writer {
    fn describe(&self) -> v1::StagedFile {
        v1::StagedFile { name: self.name.clone(), bytes: self.records.len() as u64, crc32: 0 }
    }
}

impl FileWriter for Writer {
    fn name(&self) -> &str {
        &self.name
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.records.push((Vec::new(), bytes.to_vec()));
        Ok(())
    }

    fn finish(self) -> Result<()> {
        self.files.files().insert(self.name, self.records);
        Ok(())
    }
}

impl TableWriter for Writer {
    fn name(&self) -> &str {
        &self.name
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.records.push((key.to_vec(), value.to_vec()));
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.records.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }

    fn finish(self) -> Result<v1::StagedFile> {
        let described = self.describe();
        self.files.files().insert(self.name, self.records);
        Ok(described)
    }
}

impl MemDisk {
    fn begin(&self) -> Writer {
        let mut files = self.files.files();
        let last = files.keys().filter_map(|name| name.parse::<u64>().ok()).max();
        let name = format!("{}", last.map_or(0, |last| last + 1));
        files.insert(name.clone(), Vec::new());
        Writer { files: self.files.clone(), name, records: Vec::new() }
    }
}

impl Staging for MemDisk {
    type File = Writer;
    type Table = Writer;

    fn stage_file(&self) -> Result<Writer> {
        Ok(self.begin())
    }

    fn stage_table(&self) -> Result<Writer> {
        Ok(self.begin())
    }

    fn sync_names(&self) -> Result<()> {
        Ok(())
    }

    fn staged(&self) -> Result<Vec<String>> {
        Ok(self.files.files().keys().cloned().collect())
    }

    fn verify(&self, _: &v1::StagedFile) -> Result<()> {
        Ok(())
    }

    fn area(&self) -> Arc<dyn StagedArea> {
        Arc::new(self.files.clone())
    }

    fn flush(&self, _: Family) -> Result<()> {
        Ok(())
    }

    fn ingest(&self, family: Family, files: &[v1::StagedFile]) -> Result<()> {
        let mut batch = self.batch();
        for file in files {
            let records = self.files.files()[&file.name].clone();
            records.iter().for_each(|(key, value)| batch.put(family, key, value));
        }
        self.write(batch)
    }
}
