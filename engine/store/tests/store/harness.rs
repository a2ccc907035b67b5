//! Power over a RocksDB store: a crash is a copy of its directory as it lies there, with the end of the
//! WAL cut anywhere behind what the last sync covered; faults come from exchanging the WAL's file
//! descriptor for one on which writing or syncing fails.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use flotilla_engine::storage::conformance::{Dice, Fault, Harness};
use flotilla_engine::storage::{Direction, Family, Read, Result, StagedArea, Staging, Storage, Visit};
use flotilla_proto::{NodeId, v1};
use flotilla_store::{Identity, OpenError, Options, RocksBatch, RocksStorage, StoreDirectory};
use tempfile::TempDir;

pub const IDENTITY: Identity = Identity { cluster_id: 0xF1, node_id: NodeId(3), format: 1 };

pub fn small() -> Options {
    Options { memory_bytes: 16 << 20, max_open_files: 64, ..Options::default() }
}

pub fn open(path: &Path) -> std::result::Result<RocksStorage, OpenError> {
    let directory = StoreDirectory::open(path, Some(IDENTITY.cluster_id))?;
    RocksStorage::open(Arc::new(directory), &small())
}

pub fn create(path: &Path) -> RocksStorage {
    let directory = StoreDirectory::create(path, IDENTITY, 0).expect("a fresh directory can be initialised");
    RocksStorage::open(Arc::new(directory), &small()).expect("a fresh store opens")
}

/// Copies a data directory as it lies there, without its lock. RocksDB deletes files in the background:
/// a copy during which one went, or an edit of the MANIFEST came, is no moment's picture.
pub fn copy(from: &Path, to: &Path) {
    loop {
        let before = listing(from);
        let whole = before.iter().all(|(name, _)| {
            let target = to.join(name);
            fs::create_dir_all(target.parent().expect("it lies in the copy")).expect("a directory can be made");
            fs::copy(from.join(name), target).is_ok()
        });
        let frozen = |files: &BTreeMap<PathBuf, u64>| -> Vec<(PathBuf, u64)> {
            let appended = |name: &Path| name.extension().is_some_and(|extension| extension == "log");
            files.iter().map(|(name, size)| (name.clone(), if appended(name) { 0 } else { *size })).collect()
        };
        if whole && frozen(&before) == frozen(&listing(from)) {
            return;
        }
        fs::remove_dir_all(to).expect("a bad copy can be removed");
    }
}

/// The files that a crash leaves, with their sizes; the info log is of no interest.
fn listing(data: &Path) -> BTreeMap<PathBuf, u64> {
    let mut files = BTreeMap::new();
    for folder in ["", "db", "snap"] {
        // A copy of an empty folder is none.
        for entry in fs::read_dir(data.join(folder)).into_iter().flatten() {
            let entry = entry.expect("the directory can be listed");
            let name = Path::new(folder).join(entry.file_name());
            match entry.metadata() {
                Ok(metadata) if metadata.is_file() && entry.file_name() != "LOCK" => {
                    files.insert(name, metadata.len());
                }
                _ => {}
            }
        }
    }
    files
}

/// The WAL files of a data directory with how much is written in each, oldest first; of a copy, with their sizes. RocksDB may
/// delete one that is done with at any time: that one is left out.
pub fn wals(data: &Path) -> BTreeMap<PathBuf, u64> {
    let data = data.canonicalize().expect("the directory is there");
    let open: Vec<(PathBuf, u64)> = open_files().collect();
    fs::read_dir(data.join("db"))
        .expect("the database's folder can be listed")
        .map(|entry| entry.expect("the folder can be listed").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .filter_map(|path| {
            let size = path.metadata().ok()?.len();
            // Room that the file was given counts in its size alone.
            let written = open.iter().filter(|(file, _)| *file == path).map(|(_, number)| position(*number)).max();
            Some((path, written.unwrap_or(size)))
        })
        .collect()
}

/// This process's open files, with the numbers of their descriptors.
fn open_files() -> impl Iterator<Item = (PathBuf, u64)> {
    let links = fs::read_dir("/proc/self/fd").expect("the kernel lists open files");
    links.filter_map(|entry| {
        let link = entry.ok()?.path();
        Some((fs::read_link(&link).ok()?, link.file_name()?.to_str()?.parse().ok()?))
    })
}

/// How far a descriptor has come in its file.
fn position(number: u64) -> u64 {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
    info.lines().find_map(|line| line.strip_prefix("pos:")?.trim().parse().ok()).unwrap_or(0)
}

/// A store that remembers how long the WAL files were at the last sync.
pub struct Tracked {
    pub store: RocksStorage,
    synced: Mutex<BTreeMap<PathBuf, u64>>,
}

impl Tracked {
    pub fn new(store: RocksStorage) -> Self {
        let synced = Mutex::new(wals(store.directory().path()));
        Self { store, synced }
    }

    /// Copies the store as a power cut might leave it: the WAL's end cut off, or zeros in the room that the file has.
    pub fn copy_crashed(&self, to: &Path, seed: u64) {
        let data = self.store.directory().path();
        copy(data, to);
        let synced = self.synced.lock().expect("no test panics while it holds this");
        let mut dice = Dice(seed);
        // The newest only: a flush syncs the others.
        if let Some((path, written)) = wals(data).pop_last() {
            let name = path.file_name().expect("a WAL file has a name");
            let copied = fs::File::options().write(true).open(to.join("db").join(name)).expect("the copy is there");
            let size = copied.metadata().expect("the copy is there").len();
            let length = written.min(size);
            let safe = synced.get(&path).copied().unwrap_or(0).min(length);
            let kept = safe + dice.below((length - safe) as usize + 1) as u64;
            copied.set_len(kept).expect("the copy can be cut");
            if dice.below(2) == 0 {
                copied.set_len(size).expect("the copy can be made longer");
            }
        }
    }
}

impl Read for Tracked {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        self.store.get(family, key)
    }

    fn scan(&self, family: Family, start: &[u8], end: &[u8], way: Direction, visit: &mut Visit<'_>) -> Result<()> {
        self.store.scan(family, start, end, way, visit)
    }
}

impl Storage for Tracked {
    type Batch = RocksBatch;

    fn batch(&self) -> RocksBatch {
        self.store.batch()
    }

    fn write(&self, batch: RocksBatch) -> Result<()> {
        self.store.write(batch)?;
        // A crash is to find unsynced bytes in the files too.
        self.store.hand_to_system()
    }

    fn sync(&self) -> Result<()> {
        self.store.sync()?;
        *self.synced.lock().expect("no test panics while it holds this") = wals(self.store.directory().path());
        Ok(())
    }

    fn with_view<R>(&self, read: impl FnOnce(&dyn Read) -> R) -> R {
        self.store.with_view(read)
    }
}

impl Staging for Tracked {
    type File = <RocksStorage as Staging>::File;
    type Table = <RocksStorage as Staging>::Table;

    fn stage_file(&self) -> Result<Self::File> {
        self.store.stage_file()
    }

    fn stage_table(&self) -> Result<Self::Table> {
        self.store.stage_table()
    }

    fn sync_names(&self) -> Result<()> {
        self.store.sync_names()
    }

    fn staged(&self) -> Result<Vec<String>> {
        self.store.staged()
    }

    fn verify(&self, file: &v1::StagedFile) -> Result<()> {
        self.store.verify(file)
    }

    fn area(&self) -> Arc<dyn StagedArea> {
        self.store.area()
    }

    fn flush(&self, family: Family) -> Result<()> {
        Staging::flush(&self.store, family)
    }

    fn ingest(&self, family: Family, files: &[v1::StagedFile]) -> Result<()> {
        self.store.ingest(family, files)
    }
}

pub struct RocksHarness(TempDir);

impl Harness for RocksHarness {
    type Store = Tracked;

    fn fresh() -> Self {
        let directory = TempDir::new().expect("a temporary directory can be made");
        drop(create(directory.path()));
        Self(directory)
    }

    fn open(&mut self) -> Arc<Tracked> {
        Arc::new(Tracked::new(open(self.0.path()).expect("what a crash or a stop leaves can be opened")))
    }

    fn close(&mut self, store: Arc<Tracked>) {
        store.store.close().expect("a sound store closes");
        assert_eq!(Arc::strong_count(&store), 1);
    }

    fn crash(&mut self, store: Arc<Tracked>, seed: u64) {
        let after = TempDir::new().expect("a temporary directory can be made");
        store.copy_crashed(after.path(), seed);
        drop(store);
        self.0 = after;
    }

    fn inject(&mut self, store: &Tracked, fault: Fault) {
        let target = match fault {
            Fault::Write => fs::File::open("/dev/null"),
            Fault::Sync => fs::File::options().write(true).open("/dev/null"),
            Fault::NoSpace => fs::File::options().write(true).open("/dev/full"),
        };
        let target = target.expect("the device is there");
        let data = store.store.directory().path().canonicalize().expect("the directory is there");
        let (wal, _) = wals(&data).pop_last().expect("an open store has a WAL file");
        let (_, number) = open_files().find(|(file, _)| *file == wal).expect("the WAL file is open");
        // SAFETY: the number is that of an open descriptor of RocksDB's; it is given back unclosed.
        let mut descriptor = unsafe { OwnedFd::from_raw_fd(number as i32) };
        rustix::io::dup2(&target, &mut descriptor).expect("a descriptor can be exchanged");
        std::mem::forget(descriptor);
    }
}
