//! The simulated disk: an implementation of the engine's storage traits in memory, with power cuts and
//! failures on demand.
//!
//! Place in the flow: each simulated node has one [`SimDisk`], which outlives the node's crashes; the
//! engine's log writer, apply, recovery and snapshots run on it unchanged. It passes the same
//! conformance suite as the RocksDB adapter.
//!
//! Durability is that of one RocksDB write-ahead log: batches are ordered, a sync makes all earlier
//! ones durable, and [`SimDisk::crash`] keeps a seeded number of the first unsynced ones; a torn last
//! batch is dropped whole. Only what is visible is stored, with what it would take to undo each
//! unsynced batch: a sync forgets the undo records, a crash plays the last ones back. Thus a write
//! costs one map operation and a sync next to nothing.
//!
//! Invariants: no clock, no randomness but the caller's seeds, no hash order: equal calls give equal
//! answers. A view is a shared copy of the maps; a write while one is alive copies them (never so in
//! a single-threaded simulation).

mod faults;
mod maps;
mod rot;
mod staging;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use flotilla_engine::storage::{Direction, Family, Read, Result, Storage, StorageError, Visit, WriteBatch};

pub use faults::DiskFault;
use faults::Faults;
use maps::{Change, Maps, Undo};
use rot::{Rot, View};
pub use staging::{SimFile, SimTable};

/// A disk; clones are handles on the same one.
#[derive(Clone, Debug, Default)]
pub struct SimDisk {
    disk: Arc<Mutex<Disk>>,
}

#[derive(Debug, Default)]
struct Disk {
    visible: Arc<Maps>,
    /// How to take back each batch that no sync has covered, oldest first.
    unsynced: Vec<Undo>,
    staged: staging::Files,
    faults: Faults,
    rot: Rot,
    counters: DiskCounters,
}

/// What a disk has done since it was made, over all crashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounters {
    /// Batches written.
    pub writes: u64,
    /// Bytes of keys and values in them.
    pub bytes_written: u64,
    /// Syncs that succeeded.
    pub syncs: u64,
    /// Crashes.
    pub crashes: u64,
    /// Batches lost in crashes.
    pub batches_lost: u64,
    /// Reads that failed.
    pub reads_failed: u64,
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        // Nothing panics while it holds the lock but the test that is failing anyway.
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn visible(&self) -> Arc<Maps> {
        Arc::clone(&self.lock().visible)
    }

    /// A disk of its own with all that is visible here, as if it were synced, and without faults.
    pub fn copy(&self) -> Self {
        let disk = Disk { visible: self.visible(), ..Disk::default() };
        Self { disk: Arc::new(Mutex::new(disk)) }
    }

    /// Cuts the power: of the batches that no sync covered, a number drawn from `seed` stays, the
    /// oldest first. Faults end with it, lack of space excepted. Returns how many batches were lost.
    pub fn crash(&self, seed: u64) -> usize {
        let mut disk = self.lock();
        let disk = &mut *disk;
        let kept = usize::try_from(mix(seed) % (disk.unsynced.len() as u64 + 1)).unwrap_or(usize::MAX);
        let lost = disk.unsynced.split_off(kept);
        disk.unsynced.clear();
        let maps = Arc::make_mut(&mut disk.visible);
        let count = lost.len();
        lost.into_iter().rev().for_each(|undo| maps.undo(undo));
        disk.staged.crash(seed);
        disk.faults.restart();
        disk.rot.restart();
        disk.counters.crashes += 1;
        disk.counters.batches_lost += count as u64;
        count
    }

    /// Stops the store cleanly, as a process does that syncs last: nothing is lost. Faults end with
    /// it, lack of space excepted. Fails, and does nothing, if the store has been poisoned.
    pub fn close(&self) -> Result<()> {
        self.sync()?;
        let disk = &mut *self.lock();
        disk.staged.close();
        disk.faults.restart();
        disk.rot.restart();
        Ok(())
    }

    /// Lets a record rot, the one at about such a part of its family: from now on it cannot be read, over all
    /// restarts, until it is written anew. RocksDB keeps a checksum of every block, and says so as well.
    pub fn rot(&self, family: Family, per_mille: u64) {
        let disk = &mut *self.lock();
        disk.rot.begin(&disk.visible, family, per_mille);
    }

    /// Whether a read has come upon a record that rots since the process started.
    pub fn rot_was_met(&self) -> bool {
        self.lock().rot.was_met()
    }

    /// Makes good what rots, as from a mirror, and reads again.
    pub fn mend(&self) {
        let disk = &mut *self.lock();
        disk.rot = Rot::default();
        disk.faults.reads_again();
    }

    /// Makes the next matching call go wrong.
    pub fn inject(&self, fault: DiskFault) {
        self.lock().faults.inject(fault);
    }

    /// Makes room again, after [`DiskFault::NoSpace`]. A store that has met the lack stays poisoned
    /// until it is closed or crashes.
    pub fn free_space(&self) {
        self.lock().faults.free_space();
    }

    /// Whether a fault has stopped the store.
    pub fn is_poisoned(&self) -> bool {
        self.lock().faults.check().is_err()
    }

    /// Batches that a crash might lose now.
    pub fn unsynced_batches(&self) -> usize {
        self.lock().unsynced.len()
    }

    /// What it has done.
    pub fn counters(&self) -> DiskCounters {
        self.lock().counters
    }
}

/// The finalizer of splitmix64: spreads neighbouring seeds.
fn mix(seed: u64) -> u64 {
    let mut mixed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// A batch for a [`SimDisk`].
#[derive(Clone, Debug, Default)]
pub struct SimBatch {
    changes: Vec<Change>,
    size_bytes: usize,
}

impl WriteBatch for SimBatch {
    fn put(&mut self, family: Family, key: &[u8], value: &[u8]) {
        self.size_bytes += key.len() + value.len();
        self.changes.push(Change::Put(family, Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
    }

    fn delete(&mut self, family: Family, key: &[u8]) {
        self.size_bytes += key.len();
        self.changes.push(Change::Delete(family, Bytes::copy_from_slice(key)));
    }

    fn delete_range(&mut self, family: Family, start: &[u8], end: &[u8]) {
        if start < end {
            self.size_bytes += start.len() + end.len();
            let (start, end) = (Bytes::copy_from_slice(start), Bytes::copy_from_slice(end));
            self.changes.push(Change::DeleteRange(family, start, end));
        }
    }

    fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    fn size_bytes(&self) -> usize {
        self.size_bytes
    }
}

impl Read for SimDisk {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        View { maps: &self.visible(), disk: self }.get(family, key)
    }

    fn scan(
        &self,
        family: Family,
        start: &[u8],
        end: &[u8],
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<()> {
        View { maps: &self.visible(), disk: self }.scan(family, start, end, direction, visit)
    }
}

impl Storage for SimDisk {
    type Batch = SimBatch;

    fn batch(&self) -> SimBatch {
        SimBatch::default()
    }

    fn write(&self, batch: SimBatch) -> Result<()> {
        let mut disk = self.lock();
        let disk = &mut *disk;
        disk.faults.on_write()?;
        if batch.is_empty() {
            return Ok(());
        }
        disk.counters.writes += 1;
        disk.counters.bytes_written += batch.size_bytes as u64;
        disk.rot.written(&batch.changes);
        let undo = Arc::make_mut(&mut disk.visible).apply(batch.changes);
        disk.unsynced.push(undo);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        let mut disk = self.lock();
        disk.faults.on_sync()?;
        disk.unsynced.clear();
        disk.counters.syncs += 1;
        Ok(())
    }

    fn with_view<R>(&self, read: impl FnOnce(&dyn Read) -> R) -> R {
        read(&View { maps: &self.visible(), disk: self })
    }
}

/// The error of a store that stopped because of `cause`.
fn poisoned(cause: &StorageError) -> StorageError {
    StorageError::Poisoned { cause: cause.to_string() }
}
