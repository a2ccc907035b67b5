//! The data directory of one node: who it belongs to, who has it open, what lies where in it.
//!
//! ```text
//! DATA/IDENTITY   cluster, node, format; text with a crc; written once, last of all at creation
//!      LOCK       flock(2) of the process that has it open; holds its pid for the error message
//!      WATERMARK  how far the WAL was known synced (wal_audit)
//!      TABLES     size and crc32 of table files, for the scrub
//!      DAMAGED    only if damage was seen: the node does not start
//!      db/        RocksDB
//!      snap/      snapshots being made or received
//!      log/       logs, RocksDB's info log among them
//!      BALLAST    space to give back when the disk is full
//! ```
//! Invariants: a directory without an IDENTITY holds no data; nothing is read or changed in one with
//! an IDENTITY before the lock is held; a directory of a newer format is never touched. The lock goes
//! with the process, however it ends.

mod damage;
mod error;
mod identity;
mod system;

#[cfg(test)]
pub(crate) use identity::hostile as hostile_identity;

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation};

pub use error::DirectoryError;
pub use identity::{FORMAT, Identity};
pub use system::{DiskSpace, disk_space, raise_open_files};

const IDENTITY: &str = "IDENTITY";
const LOCK: &str = "LOCK";
const BALLAST: &str = "BALLAST";
const WATERMARK: &str = "WATERMARK";
const TABLES: &str = "TABLES";
const FOLDERS: [&str; 3] = ["db", "snap", "log"];

/// What a path is, as far as can be told without locking it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectoryState {
    /// There is nothing.
    Absent,
    /// A directory without contents, or with what an interrupted creation leaves.
    Empty,
    /// A node's.
    Initialised(Identity),
}

/// A data directory, locked as long as this lives.
#[derive(Debug)]
pub struct StoreDirectory {
    path: PathBuf,
    identity: Identity,
    /// Only its lock matters.
    _lock: File,
}

impl StoreDirectory {
    /// Tells what is at `path`; changes nothing and takes no lock.
    pub fn probe(path: &Path) -> Result<DirectoryState, DirectoryError> {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(DirectoryState::Absent),
            Err(error) if error.kind() == ErrorKind::NotADirectory => {
                return Err(DirectoryError::NotADataDirectory { path: path.into(), found: "a file".into() });
            }
            Err(error) => return Err(DirectoryError::io("list", path, &error)),
        };
        let mut foreign = None;
        let mut data = false;
        for entry in entries {
            let name = entry.map_err(|error| DirectoryError::io("list", path, &error))?.file_name();
            let name = name.to_string_lossy();
            match &*name {
                IDENTITY => return Ok(DirectoryState::Initialised(identity::read(&path.join(IDENTITY))?)),
                "db" => data |= holds_anything(&path.join("db"))?,
                name if is_ours(name) => {}
                name => foreign = Some(format!("{name:?}")),
            }
        }
        match foreign {
            Some(found) => Err(DirectoryError::NotADataDirectory { path: path.into(), found }),
            None if data => Err(DirectoryError::IdentityMissing { path: path.into() }),
            None => Ok(DirectoryState::Empty),
        }
    }

    /// Makes `path` the directory of a new node, and locks it. IDENTITY comes last, so that an
    /// interrupted creation can be repeated.
    pub fn create(path: &Path, identity: Identity, ballast_bytes: u64) -> Result<Self, DirectoryError> {
        fs::create_dir_all(path).map_err(|error| DirectoryError::io("create", path, &error))?;
        if let DirectoryState::Initialised(found) = Self::probe(path)? {
            return Err(DirectoryError::AlreadyInitialised { path: path.into(), found });
        }
        let lock = take_lock(path)?;
        damage::refuse(path)?;
        // Somebody may have been faster than the lock.
        if let DirectoryState::Initialised(found) = Self::probe(path)? {
            return Err(DirectoryError::AlreadyInitialised { path: path.into(), found });
        }
        let directory = Self { path: path.into(), identity, _lock: lock };
        directory.make_folders()?;
        directory.ensure_ballast(ballast_bytes)?;
        write_atomically(&path.join(IDENTITY), identity.to_text().as_bytes())?;
        if let Some(parent) = path.canonicalize().ok().as_deref().and_then(Path::parent) {
            sync_directory(parent)?;
        }
        Ok(directory)
    }

    /// Locks the directory of a node. With `cluster_id`, another cluster's is refused.
    pub fn open(path: &Path, cluster_id: Option<u64>) -> Result<Self, DirectoryError> {
        match Self::probe(path)? {
            DirectoryState::Initialised(_) => {}
            DirectoryState::Absent => return Err(DirectoryError::NotFound { path: path.into() }),
            DirectoryState::Empty => {
                return Err(DirectoryError::NotADataDirectory { path: path.into(), found: "no IDENTITY".into() });
            }
        }
        let lock = take_lock(path)?;
        // Read anew: only under the lock is it sure to stay.
        let identity = identity::read(&path.join(IDENTITY))?;
        if let Some(wanted) = cluster_id.filter(|wanted| *wanted != identity.cluster_id) {
            return Err(DirectoryError::OtherCluster { path: path.into(), found: identity, wanted });
        }
        damage::refuse(path)?;
        let directory = Self { path: path.into(), identity, _lock: lock };
        directory.make_folders()?;
        Ok(directory)
    }

    /// Leaves word, durably, that the store was seen to be damaged: the directory is not opened again until a person
    /// has removed the mark.
    pub fn mark_damaged(&self, seen: &str) -> Result<(), DirectoryError> {
        damage::write(&self.path, seen)
    }

    /// Whose it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// RocksDB's.
    pub fn db(&self) -> PathBuf {
        self.path.join("db")
    }

    /// Where snapshots are made and received.
    pub fn snapshots(&self) -> PathBuf {
        self.path.join("snap")
    }

    /// Where logs go.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    pub(crate) fn watermark(&self) -> PathBuf {
        self.path.join(WATERMARK)
    }

    pub(crate) fn tables(&self) -> PathBuf {
        self.path.join(TABLES)
    }

    fn make_folders(&self) -> Result<(), DirectoryError> {
        for folder in FOLDERS {
            let folder = self.path.join(folder);
            fs::create_dir_all(&folder).map_err(|error| DirectoryError::io("create", &folder, &error))?;
        }
        sync_directory(&self.path)
    }

    /// Sets aside `bytes` of disk space, to be given back by [`Self::release_ballast`]; 0: none.
    pub fn ensure_ballast(&self, bytes: u64) -> Result<(), DirectoryError> {
        let path = self.path.join(BALLAST);
        if bytes == 0 {
            return self.release_ballast().map(|_| ());
        }
        let set_aside = || -> std::io::Result<()> {
            let file = File::options().create(true).truncate(false).write(true).open(&path)?;
            if file.metadata()?.len() != bytes {
                file.set_len(0)?;
                // Real blocks: a sparse file would free nothing.
                rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
                file.sync_all()?;
            }
            Ok(())
        };
        set_aside().map_err(|error| {
            // Half a ballast is in the way of whoever needs the room now.
            let _ = fs::remove_file(&path);
            DirectoryError::io("set space aside in", &path, &error)
        })
    }

    /// Gives the ballast's space back; returns how many bytes that were.
    pub fn release_ballast(&self) -> Result<u64, DirectoryError> {
        let path = self.path.join(BALLAST);
        let release = || -> std::io::Result<u64> {
            let bytes = match fs::metadata(&path) {
                Ok(metadata) => metadata.len(),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
                Err(error) => return Err(error),
            };
            fs::remove_file(&path)?;
            Ok(bytes)
        };
        release().map_err(|error| DirectoryError::io("remove", &path, &error))
    }
}

fn is_ours(name: &str) -> bool {
    FOLDERS.contains(&name)
        || [LOCK, BALLAST, WATERMARK, TABLES, damage::DAMAGED].contains(&name)
        || name.ends_with(".flotilla-tmp")
}

fn holds_anything(path: &Path) -> Result<bool, DirectoryError> {
    let mut entries = fs::read_dir(path).map_err(|error| DirectoryError::io("list", path, &error))?;
    Ok(entries.next().is_some())
}

fn take_lock(path: &Path) -> Result<File, DirectoryError> {
    let name = path.join(LOCK);
    let failed = |error: std::io::Error| DirectoryError::io("open", &name, &error);
    let mut file = File::options().create(true).truncate(false).read(true).write(true).open(&name).map_err(failed)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // The pid only helps the reader of the message.
            let _ = (&file).take(32).read_to_string(&mut holder);
            return Err(DirectoryError::Locked { path: path.into(), pid: holder.trim().parse().ok() });
        }
        Err(errno) => return Err(DirectoryError::io("lock", &name, &errno.into())),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
    Ok(file)
}

/// Replaces a small file so that a reader, or a crash, meets the old or the new contents.
pub(crate) fn write_atomically(path: &Path, contents: &[u8]) -> Result<(), DirectoryError> {
    let fresh = path.with_extension("flotilla-tmp");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&fresh)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    write().map_err(|error| DirectoryError::io("write", path, &error))?;
    path.parent().map_or(Ok(()), sync_directory)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), DirectoryError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| DirectoryError::io("sync", path, &error))
}
