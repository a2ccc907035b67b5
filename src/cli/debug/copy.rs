//! Opens a store without changing its directory.
//!
//! Opening RocksDB writes: a new MANIFEST, the memtables it replays. So it is given a temporary
//! directory with the small files and the WAL copied and the table files, which never change, linked
//! to; what it writes and deletes is there alone. The lock is held shared meanwhile, so that no node
//! can start and change the files under the copy.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flotilla_store::{DirectoryState, OpenError, Options, RocksStorage, StoreDirectory};
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use crate::cli::failure::{Failure, Result};

/// Memory for looking around.
const MEMORY_BYTES: u64 = 64 << 20;

/// A store that can be read. Fields are dropped in this order: the store before its files.
pub struct Opened {
    storage: RocksStorage,
    copy: TempDir,
    source: PathBuf,
    _lock: Option<File>,
}

impl Opened {
    /// Opens the store in a data directory.
    pub fn open(source: &Path) -> Result<Self> {
        let state = StoreDirectory::probe(source).map_err(|error| Failure::failed(error.to_string()))?;
        if !matches!(state, DirectoryState::Initialised(_)) {
            return Err(Failure::failed(format!("{} holds no store", source.display()))
                .hint("name a node's data directory, such as flotilla-data/node-1"));
        }
        let lock = lock(source)?;
        // Links must hold from anywhere.
        let source = fs::canonicalize(source).map_err(|error| Failure::file("read", source, &error))?;
        let copy = tempfile::Builder::new().prefix("flotilla-debug-").tempdir();
        let copy = copy.map_err(|error| Failure::failed(format!("cannot make a temporary directory: {error}")))?;
        copy_tree(&source, copy.path()).map_err(|error| {
            Failure::failed(format!("cannot copy {} to {}: {error}", source.display(), copy.path().display()))
                .hint("the copy takes as much room as the WAL; TMPDIR names another place for it")
        })?;
        let storage = open(copy.path()).map_err(|error| failure(&error, &copy, &source))?;
        Ok(Self { storage, copy, source, _lock: lock })
    }

    /// The store.
    pub fn storage(&self) -> &RocksStorage {
        &self.storage
    }

    /// A failure to read it, in words about the real directory.
    pub fn failure(&self, error: &impl Display) -> Failure {
        failure(error, &self.copy, &self.source)
    }
}

fn failure(error: &impl Display, copy: &TempDir, source: &Path) -> Failure {
    Failure::failed(error.to_string().replace(&copy.path().display().to_string(), &source.display().to_string()))
}

fn open(copy: &Path) -> std::result::Result<RocksStorage, OpenError> {
    let directory = StoreDirectory::open(copy, None)?;
    RocksStorage::open(Arc::new(directory), &Options { memory_bytes: MEMORY_BYTES, ..Options::default() })
}

/// Holds off nodes; `None` where there is no lock file.
fn lock(source: &Path) -> Result<Option<File>> {
    let path = source.join("LOCK");
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::file("open", &path, &error)),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // The pid only helps the reader of the message.
            let _ = file.read_to_string(&mut holder);
            Err(Failure::failed(format!("{} is in use by process {}", source.display(), holder.trim()))
                .hint("stop that node first; of a running one, `flotilla range show` and `flotilla node list` tell"))
        }
        Err(errno) => Err(Failure::file("lock", &path, &errno.into())),
    }
}

/// Copies what a store needs to be opened.
fn copy_tree(source: &Path, copy: &Path) -> io::Result<()> {
    for entry in fs::read_dir(source)? {
        let entry = entry?;
        let (name, kind) = (entry.file_name(), entry.file_type()?);
        // A store with the mark DAMAGED may be looked at.
        if kind.is_file() && name != "BALLAST" && name != "LOCK" && name != "DAMAGED" {
            fs::copy(entry.path(), copy.join(&name))?;
        }
    }
    let (from, to) = (source.join("db"), copy.join("db"));
    fs::create_dir_all(&to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.extension().is_some_and(|extension| extension == "sst") {
            std::os::unix::fs::symlink(&path, &target)?;
        } else if entry.file_type()?.is_file() && entry.file_name() != "LOCK" {
            fs::copy(&path, &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use flotilla_engine::bootstrap;
    use flotilla_proto::NodeId;
    use flotilla_store::Identity;

    use super::*;

    /// A bootstrapped store of node 1.
    pub fn store(path: &Path) -> Arc<StoreDirectory> {
        let nodes = [(NodeId(1), "127.0.0.1:7301".to_owned())];
        let layout = flotilla_placement::layout("test", &nodes, 4, 1).expect("layout");
        let identity = Identity::new(bootstrap::cluster_id(&layout), NodeId(1));
        let directory = Arc::new(StoreDirectory::create(path, identity, 0).expect("create"));
        let storage = RocksStorage::open(directory.clone(), &Options::default()).expect("open");
        bootstrap::write(&storage, NodeId(1), 1, &layout).expect("write");
        directory
    }

    /// All files' names, sizes and times.
    fn state(path: &Path) -> Vec<(PathBuf, u64, std::time::SystemTime)> {
        let mut found = Vec::new();
        let mut folders = vec![path.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("list").map(|entry| entry.expect("entry")) {
                let metadata = entry.metadata().expect("metadata");
                if metadata.is_dir() {
                    folders.push(entry.path());
                } else {
                    found.push((entry.path(), metadata.len(), metadata.modified().expect("time")));
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn a_store_is_read_without_being_changed() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("node-1");
        drop(store(&path));
        let before = state(&path);
        let opened = Opened::open(&path).expect("open");
        let boot = super::super::load(&opened).expect("load");
        assert_eq!((boot.identity.node_id, boot.ranges.len()), (1, 4));
        assert!(super::super::find(&boot, 2).is_ok());
        assert!(super::super::find(&boot, 99).is_err());
        let kept = opened.copy.path().to_owned();
        drop(opened);
        assert!(!kept.exists());
        assert_eq!(state(&path), before);
    }

    #[test]
    fn a_store_in_use_or_none_at_all_is_refused() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("node-1");
        let directory = store(&path);
        let error = Opened::open(&path).err().expect("in use").to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(directory);
        assert!(Opened::open(&path).is_ok());
        assert!(Opened::open(folder.path()).is_err());
        assert!(Opened::open(&folder.path().join("none")).is_err());
    }
}
