//! What a simulated disk does wrong, and the poisoning that follows: after the first failure of a write
//! or sync nothing is accepted until the store is closed or crashes.

use flotilla_engine::storage::{Result, StorageError};

use super::poisoned;

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFault {
    /// The next write fails, and leaves nothing.
    Write,
    /// The next sync fails; a crash afterwards keeps any prefix of what it should have covered.
    Sync,
    /// Writes fail for lack of space, until [`super::SimDisk::free_space`].
    NoSpace,
    /// Of the reads that come, the one behind so many others fails. The store is not poisoned by it.
    Read(u32),
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    write: bool,
    sync: bool,
    no_space: bool,
    /// How many reads there are before one fails.
    read: Option<u32>,
    poison: Option<StorageError>,
}

impl Faults {
    pub(super) fn inject(&mut self, fault: DiskFault) {
        match fault {
            DiskFault::Write => self.write = true,
            DiskFault::Sync => self.sync = true,
            DiskFault::NoSpace => self.no_space = true,
            DiskFault::Read(after) => self.read = Some(after),
        }
    }

    pub(super) fn free_space(&mut self) {
        self.no_space = false;
    }

    pub(super) fn reads_again(&mut self) {
        self.read = None;
    }

    /// The store starts anew; only the lack of space outlives that.
    pub(super) fn restart(&mut self) {
        *self = Self { no_space: self.no_space, ..Self::default() };
    }

    pub(super) fn check(&self) -> Result<()> {
        self.poison.as_ref().map_or(Ok(()), |cause| Err(poisoned(cause)))
    }

    fn fail(&mut self, error: StorageError) -> Result<()> {
        self.poison = Some(error.clone());
        Err(error)
    }

    pub(super) fn on_write(&mut self) -> Result<()> {
        self.check()?;
        if self.no_space {
            return self.fail(StorageError::NoSpace { cause: "injected".into() });
        }
        if std::mem::take(&mut self.write) {
            return self.fail(StorageError::Io { operation: "write", cause: "injected".into() });
        }
        Ok(())
    }

    pub(super) fn on_read(&mut self) -> Result<()> {
        match &mut self.read {
            None => Ok(()),
            Some(0) => {
                self.read = None;
                Err(StorageError::Io { operation: "read", cause: "injected".into() })
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    /// Staged files feel the lack of space too, but do not stop the store.
    pub(super) fn on_staged(&self) -> Result<()> {
        self.check()?;
        if self.no_space { Err(StorageError::NoSpace { cause: "injected".into() }) } else { Ok(()) }
    }

    pub(super) fn on_sync(&mut self) -> Result<()> {
        self.check()?;
        if std::mem::take(&mut self.sync) {
            return self.fail(StorageError::Io { operation: "sync", cause: "injected".into() });
        }
        Ok(())
    }
}
