//! What can be wrong with a data directory. Each text says what is wrong and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use super::Identity;
use super::identity::FORMAT;

/// Why a data directory cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// There is no such directory.
    #[error("{} does not exist; check the path, or create a node there first", path.display())]
    NotFound {
        /// The directory.
        path: PathBuf,
    },
    /// It is something else.
    #[error(
        "{} is not a flotilla data directory (found {found}); check the path, or give an empty or new directory \
         for a new node",
        path.display()
    )]
    NotADataDirectory {
        /// The directory.
        path: PathBuf,
        /// What gives it away.
        found: String,
    },
    /// It holds data, but nothing says whose.
    #[error(
        "{} holds data but no IDENTITY: it was copied in part, or the file is lost; restore the whole directory, or \
         remove it and let the node join again under a new id",
        path.display()
    )]
    IdentityMissing {
        /// The directory.
        path: PathBuf,
    },
    /// A node is there already.
    #[error("{} already belongs to {found}; start it, or give another directory for a new node", path.display())]
    AlreadyInitialised {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: Identity,
    },
    /// Another cluster's node is there.
    #[error(
        "{} belongs to {found}, not to cluster {wanted:016x}; check the directory and the addresses to join",
        path.display()
    )]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: Identity,
        /// The cluster that was asked for.
        wanted: u64,
    },
    /// A newer program has written it.
    #[error(
        "{} has format {found}, and this program knows formats up to {FORMAT}; start it with the newer program that \
         last ran here (nothing was changed)",
        path.display()
    )]
    NewerFormat {
        /// The file that says so.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Another process has it open.
    #[error(
        "{} is in use by another process{}; stop that one first, or give another directory",
        path.display(),
        pid.map_or(String::new(), |pid| format!(" (pid {pid})"))
    )]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The process, if it could be told.
        pid: Option<u32>,
    },
    /// No permission, or a read-only file system.
    #[error("{} cannot be written ({cause}); check its owner, its mode and how its disk is mounted", path.display())]
    NotWritable {
        /// The file or directory.
        path: PathBuf,
        /// What came back.
        cause: String,
    },
    /// The identity is damaged.
    #[error(
        "{} is corrupt: {what}; do not start this node: restore the file from a copy, or remove the whole data \
         directory and let the node join again under a new id",
        path.display()
    )]
    IdentityCorrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        what: String,
    },
    /// It was seen to be damaged, and a mark was left.
    #[error(
        "{} was seen to be damaged on {when}: {seen}. Its node stopped, and does not start on it again, so that nothing \
         damaged is served or copied. What to do: move the directory away (keep it if anybody is to look at it), and start \
         the node with an empty one and --join ADDR; it comes back under a new id, and its replicas are rebuilt from the \
         others', those of the old id once that counts as dead. Whoever knows that the files are sound, or needs \
         what is left because no other replica lives, removes {} and starts the node: what is damaged is \
         refused again when it is read",
        path.display(),
        path.join("DAMAGED").display()
    )]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// What was seen, with the file if it is known.
        seen: String,
        /// When.
        when: String,
    },
    /// The disk is full.
    #[error("no space left to {operation} {}; free some, or give a directory on another disk", path.display())]
    NoSpace {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// Anything else that the operating system says.
    #[error("cannot {operation} {}: {cause}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What came back.
        cause: String,
    },
}

impl DirectoryError {
    pub(crate) fn io(operation: &'static str, path: &Path, error: &io::Error) -> Self {
        let (path, cause) = (path.to_path_buf(), error.to_string());
        match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::NotWritable { path, cause },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { operation, path },
            _ => Self::Io { operation, path, cause },
        }
    }
}
