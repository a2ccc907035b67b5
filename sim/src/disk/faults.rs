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
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    write: bool,
    sync: bool,
    no_space: bool,
    poison: Option<StorageError>,
}

impl Faults {
    pub(super) fn inject(&mut self, fault: DiskFault) {
        match fault {
            DiskFault::Write => self.write = true,
            DiskFault::Sync => self.sync = true,
            DiskFault::NoSpace => self.no_space = true,
        }
    }

    pub(super) fn free_space(&mut self) {
        self.no_space = false;
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
