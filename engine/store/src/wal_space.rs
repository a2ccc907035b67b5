//! Room for the WAL ahead of what is written into it.
//!
//! RocksDB sets blocks aside for its WAL and leaves the file's size alone: each write makes the file longer, and each sync waits for the
//! file system to journal the new size, not just for the data. A file that has its size already spares small syncs that: a lone client's
//! put takes an eighth less time (docs/decisions/0042-the-wal-has-its-size-ahead.md). etcd does the same for its WAL
//! (`client/pkg/fileutil/preallocate.go`, `extendFile`).
//!
//! What is behind the last record is zeros then, a few MiB at most: RocksDB's reader passes over them, `wal_audit` takes them for the end
//! unless it knows that something was synced there, and RocksDB cuts them off when it closes the file.
//!
//! Nothing here can lose anything: room is given by fallocate(2), which never makes a file shorter. But ext4 takes all that is left before
//! it says that there is not enough, and keeps it in the file; so a disk that is nearly full is left alone.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use crate::directory::disk_space;
use crate::wal_audit::numbers_of;

const MIB: u64 = 1 << 20;
/// How much is written between two looks at which file is the last one, and how far that has come.
const LOOK_EVERY_BYTES: u64 = MIB;
/// What a file is given beyond its end; more than is written until the next look, or large writes would outrun it.
const AHEAD_BYTES: u64 = 4 * MIB;

/// With less than this free the WAL is as RocksDB makes it.
const FREE_BYTES_MIN: u64 = 64 * MIB;

/// See the module. Asked before each sync.
pub(crate) struct WalSpace {
    folder: PathBuf,
    /// Number of the last WAL file that was seen; 0: none yet.
    number: u64,
    /// How many of all bytes written are not in that file, as far as can be told: its buffer is RocksDB's.
    before: u64,
    /// Bytes written in all, at which to look again.
    next_look: u64,
}

impl WalSpace {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf(), number: 0, before: 0, next_look: 0 }
    }

    /// Gives the last WAL file room, if it is time to. `written`: bytes of all batches since the store was opened.
    pub(crate) fn reserve(&mut self, written: u64) {
        if written >= self.next_look {
            self.next_look = written + LOOK_EVERY_BYTES;
            // Without room the WAL is as RocksDB makes it; if anything else is wrong with the disk its own calls will tell.
            let _ = self.extend_last_file(written);
        }
    }

    fn extend_last_file(&mut self, written: u64) -> std::io::Result<()> {
        let number = numbers_of(&self.folder, "log").ok().and_then(|mut numbers| numbers.pop()).unwrap_or_default();
        // Not kept open: a file that RocksDB deletes is to give its space back.
        let file = File::options().write(true).open(self.folder.join(format!("{number:06}.log")))?;
        if number != self.number {
            (self.number, self.before) = (number, written.saturating_sub(file.metadata()?.len()));
        }
        let length = length_ahead(written.saturating_sub(self.before));
        if disk_space(&self.folder)?.free_bytes >= FREE_BYTES_MIN {
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, length)?;
        }
        Ok(())
    }
}

/// The size that a file of `length` bytes is given. Whole blocks of RocksDB's log format: a part of a header would look torn.
fn length_ahead(length: u64) -> u64 {
    (length + AHEAD_BYTES).next_multiple_of(MIB)
}
