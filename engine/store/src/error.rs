//! Why a store does not open, and what RocksDB's errors mean to the engine.
//!
//! Invariant: each variant calls for something else: restore or replace (corrupt, lost), make room,
//! or look at the machine.

use std::path::{Path, PathBuf};

use flotilla_engine::storage::StorageError;
use rocksdb::ErrorKind;

use crate::directory::DirectoryError;

/// Why a store cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// A file is not what was written.
    #[error(
        "{} is corrupt: {what}; this store does not serve. Keep the data directory for inspection, and let the node \
         join again with an empty one, under a new id",
        file.display()
    )]
    Corrupt {
        /// The file, or the folder if RocksDB did not say which file.
        file: PathBuf,
        /// What was found.
        what: String,
    },
    /// Everything is readable, and too little.
    #[error(
        "{} lacks writes that were known to be synced (up to sequence number {synced}, found up to {found}): the end of \
         the log is gone, or an older copy was put in place; this store does not serve. Let the node join again with an \
         empty directory, under a new id",
        path.display()
    )]
    SyncedWritesLost {
        /// The data directory.
        path: PathBuf,
        /// What was known to be synced.
        synced: u64,
        /// What is there.
        found: u64,
    },
    /// The directory around it.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The disk is full.
    #[error("no space left to open the store: {cause}; free some and start again")]
    NoSpace {
        /// What came back.
        cause: String,
    },
    /// Anything else.
    #[error("cannot open the store: {cause}")]
    Io {
        /// What came back.
        cause: String,
    },
}

impl OpenError {
    pub(crate) fn corrupt(file: &Path, what: impl Into<String>) -> Self {
        Self::Corrupt { file: file.to_path_buf(), what: what.into() }
    }

    pub(crate) fn io(operation: &'static str, path: &Path, error: &std::io::Error) -> Self {
        DirectoryError::io(operation, path, error).into()
    }

    /// From RocksDB's refusal to open the database in `folder`.
    pub(crate) fn from_rocksdb(folder: &Path, error: &rocksdb::Error) -> Self {
        let cause = error.to_string();
        match error.kind() {
            _ if is_no_space(&cause) => Self::NoSpace { cause },
            ErrorKind::Corruption => Self::Corrupt { file: file_named_in(folder, &cause), what: cause },
            ErrorKind::IOError if is_missing(&cause) => {
                Self::Corrupt { file: file_named_in(folder, &cause), what: cause }
            }
            _ => Self::Io { cause },
        }
    }
}

/// RocksDB names the file somewhere in its message, or says `log number: 8`.
fn file_named_in(folder: &Path, message: &str) -> PathBuf {
    let words = || message.split(|c: char| c.is_whitespace() || ":'\",;()".contains(c)).filter(|word| !word.is_empty());
    let is_file = |name: &&str| {
        name.ends_with(".sst") || name.ends_with(".log") || name.starts_with("MANIFEST-") || *name == "CURRENT"
    };
    let named =
        words().filter_map(|word| Path::new(word).file_name()?.to_str()?.trim_end_matches('.').into()).find(is_file);
    if let Some(name) = named {
        return folder.join(name);
    }
    let wal = words().skip_while(|word| *word != "number").nth(1).and_then(|number| number.parse::<u64>().ok());
    wal.map_or_else(|| folder.to_path_buf(), |number| folder.join(format!("{number:06}.log")))
}

fn is_no_space(message: &str) -> bool {
    message.contains("No space left on device") || message.contains("Disk quota exceeded")
}

/// A database whose files are gone is as damaged as one whose files changed.
fn is_missing(cause: &str) -> bool {
    cause.contains("No such file or directory")
}

/// What an error of RocksDB is that came from a read: a place that the disk cannot read any more is damage too.
pub(crate) fn read_error(operation: &'static str, error: &rocksdb::Error) -> StorageError {
    match storage_error(operation, error) {
        StorageError::Io { cause, .. } if cause.contains("Input/output error") => StorageError::Corrupt { what: cause },
        error => error,
    }
}

/// What an error of RocksDB in `operation` is to the engine.
pub(crate) fn storage_error(operation: &'static str, error: &rocksdb::Error) -> StorageError {
    let cause = error.to_string();
    match error.kind() {
        _ if is_no_space(&cause) => StorageError::NoSpace { cause },
        ErrorKind::Corruption => StorageError::Corrupt { what: cause },
        // A table is looked for only when it is first read, if it was not at the start.
        ErrorKind::IOError if is_missing(&cause) => StorageError::Corrupt { what: cause },
        _ => StorageError::Io { operation, cause },
    }
}
