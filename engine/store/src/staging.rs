//! The staging area on a real disk: plain files and table files in DATA/snap, and their ingestion.
//!
//! Table files are written with the settings of the family `state`. RocksDB takes them in by hard links, so that the
//! staged ones stay until whoever staged them removes them. An ingestion waits until nothing in the memtables stands
//! in its way *before* it holds writers up, never while (`allow_blocking_flush = false`).

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use flotilla_engine::storage::{Family, FileWriter, Result, StagedArea, Staging, StorageError, TableWriter};
use flotilla_proto::v1;
use rocksdb::{IngestExternalFileOptions, SstFileWriter};

use crate::directory::sync_directory;
use crate::error::storage_error;
use crate::options;
use crate::rocks::RocksStorage;

const TABLE: &str = "sst";
const PLAIN: &str = "chunks";
/// Ends the name of a table's second link, which an ingestion uses up.
const LINK: &str = "ingest";
/// How often an ingestion is tried: nothing but the rest of an earlier write can stand in its way.
const INGEST_TRIES: usize = 10;
const READ_BYTES: usize = 256 << 10;

/// Names are never used twice: handles of a store that was closed may outlive it, and must not hit another's files.
static NAMES: AtomicU64 = AtomicU64::new(1);

fn name(extension: &str) -> String {
    format!("{}-{}.{extension}", std::process::id(), NAMES.fetch_add(1, Ordering::Relaxed))
}

fn io(operation: &'static str, path: &Path, error: &std::io::Error) -> StorageError {
    let cause = format!("{}: {error}", path.display());
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StorageError::NoSpace { cause },
        _ => StorageError::Io { operation, cause },
    }
}

/// DATA/snap.
#[derive(Debug)]
struct Folder(PathBuf);

impl StagedArea for Folder {
    fn read(&self, name: &str, offset: u64, length: usize) -> Result<Bytes> {
        let path = self.0.join(name);
        let failed = |error: std::io::Error| io("reading a staged file", &path, &error);
        let file = File::open(&path).map_err(failed)?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, offset).map_err(failed)?;
        Ok(bytes.into())
    }

    fn remove(&self, name: &str) {
        // What cannot be removed now goes at the next start.
        let _ = fs::remove_file(self.0.join(name));
    }
}

/// A plain file that is being written.
#[derive(Debug)]
pub struct PlainFile {
    name: String,
    path: PathBuf,
    file: File,
}

impl FileWriter for PlainFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| io("writing a staged file", &self.path, &error))
    }

    fn finish(self) -> Result<()> {
        self.file.sync_all().map_err(|error| io("syncing a staged file", &self.path, &error))
    }
}

/// A table file that is being written.
pub struct TableFile {
    name: String,
    path: PathBuf,
    writer: SstFileWriter<'static>,
    size_bytes: u64,
}

impl TableWriter for TableFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.size_bytes += (key.len() + value.len()) as u64;
        self.writer.put(key, value).map_err(|error| storage_error("writing a table file", &error))
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn finish(mut self) -> Result<v1::StagedFile> {
        // It syncs the file.
        self.writer.finish().map_err(|error| storage_error("writing a table file", &error))?;
        let (bytes, crc32) = measure(&self.path)?;
        Ok(v1::StagedFile { name: self.name, bytes, crc32 })
    }
}

/// Size and crc32 of a file.
fn measure(path: &Path) -> Result<(u64, u32)> {
    let failed = |error: std::io::Error| io("reading a staged file", path, &error);
    let mut file = File::open(path).map_err(failed)?;
    let (mut buffer, mut hasher, mut total) = (vec![0; READ_BYTES], crc32fast::Hasher::new(), 0);
    loop {
        let read = file.read(&mut buffer).map_err(failed)?;
        if read == 0 {
            return Ok((total, hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
        total += read as u64;
    }
}

impl RocksStorage {
    fn snapshots(&self) -> PathBuf {
        self.directory().snapshots()
    }

    /// Links to the files, for RocksDB to use up.
    fn link(&self, files: &[v1::StagedFile]) -> Result<Vec<PathBuf>> {
        let folder = self.snapshots();
        let mut links = Vec::with_capacity(files.len());
        for file in files {
            let (from, to) = (folder.join(&file.name), folder.join(format!("{}.{LINK}", file.name)));
            // Left by an attempt that failed.
            let _ = fs::remove_file(&to);
            fs::hard_link(&from, &to).map_err(|error| io("linking a staged file", &from, &error))?;
            links.push(to);
        }
        Ok(links)
    }

    fn try_ingest(&self, family: Family, files: &[v1::StagedFile]) -> Result<std::result::Result<(), rocksdb::Error>> {
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        options.set_snapshot_consistency(true);
        options.set_allow_global_seqno(true);
        options.set_allow_blocking_flush(false);
        let links = self.link(files)?;
        let done = self.database().ingest_external_file_cf_opts(self.handle(family), &options, links.clone());
        if done.is_err() {
            links.iter().for_each(|link| drop(fs::remove_file(link)));
        }
        Ok(done)
    }
}

impl Staging for RocksStorage {
    type File = PlainFile;
    type Table = TableFile;

    fn stage_file(&self) -> Result<PlainFile> {
        let name = name(PLAIN);
        let path = self.snapshots().join(&name);
        let file = File::create_new(&path).map_err(|error| io("creating a staged file", &path, &error))?;
        Ok(PlainFile { name, path, file })
    }

    fn stage_table(&self) -> Result<TableFile> {
        let name = name(TABLE);
        let path = self.snapshots().join(&name);
        let writer = SstFileWriter::create(options::table_options());
        writer.open(&path).map_err(|error| storage_error("creating a table file", &error))?;
        Ok(TableFile { name, path, writer, size_bytes: 0 })
    }

    fn sync_names(&self) -> Result<()> {
        sync_directory(&self.snapshots())
            .map_err(|error| StorageError::Io { operation: "syncing the staging area", cause: error.to_string() })
    }

    fn staged(&self) -> Result<Vec<String>> {
        let folder = self.snapshots();
        let failed = |error: std::io::Error| io("listing the staging area", &folder, &error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&folder).map_err(failed)? {
            names.extend(entry.map_err(failed)?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    fn verify(&self, file: &v1::StagedFile) -> Result<()> {
        let (bytes, crc32) = measure(&self.snapshots().join(&file.name))?;
        if (bytes, crc32) == (file.bytes, file.crc32) {
            return Ok(());
        }
        let what =
            format!("{}: {bytes} bytes with crc32 {crc32:08x}, not {} with {:08x}", file.name, file.bytes, file.crc32);
        Err(StorageError::Corrupt { what })
    }

    fn area(&self) -> Arc<dyn StagedArea> {
        Arc::new(Folder(self.snapshots()))
    }

    fn flush(&self, family: Family) -> Result<()> {
        Self::flush(self, family)
    }

    fn ingest(&self, family: Family, files: &[v1::StagedFile]) -> Result<()> {
        self.check()?;
        if files.is_empty() {
            return Ok(());
        }
        let mut tries = 0;
        loop {
            let Err(error) = self.try_ingest(family, files)? else { return Ok(()) };
            tries += 1;
            let in_the_way =
                error.to_string().contains("requires flush") || error.kind() == rocksdb::ErrorKind::TryAgain;
            if !in_the_way || tries == INGEST_TRIES {
                return Err(self.poison("ingest", &error));
            }
            Self::flush(self, family)?;
        }
    }
}
