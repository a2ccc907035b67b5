//! Records that rot, and reads that fail: what a simulated disk answers instead of what was written.
//!
//! A store checks every block that it reads, so what rots is never taken for something else: the read fails. It
//! fails again after each restart. A record that is written anew, or deleted, is sound.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use bytes::Bytes;
use flotilla_engine::storage::{Direction, Family, Read, Result, StorageError, Visit};

use super::SimDisk;
use super::maps::{Change, Maps};

/// What rots on one disk.
#[derive(Debug, Default)]
pub(super) struct Rot {
    records: BTreeSet<(Family, Bytes)>,
    met: bool,
}

impl Rot {
    pub(super) fn begin(&mut self, maps: &Maps, family: Family, per_mille: u64) {
        let count = maps.len(family) as u64;
        if let Some(key) = maps.nth_key(family, (count * per_mille / 1_000) as usize) {
            self.records.insert((family, key));
        }
    }

    pub(super) fn was_met(&self) -> bool {
        self.met
    }

    pub(super) fn restart(&mut self) {
        self.met = false;
    }

    /// These changes are about to be made.
    pub(super) fn written(&mut self, changes: &[Change]) {
        if self.records.is_empty() {
            return;
        }
        for change in changes {
            match change {
                Change::Put(family, key, _) | Change::Delete(family, key) => {
                    self.records.remove(&(*family, key.clone()));
                }
                Change::DeleteRange(family, start, end) => {
                    self.records.retain(|(of, key)| of != family || key < start || key >= end);
                }
            }
        }
    }

    fn check(&mut self, family: Family, key: &[u8]) -> Result<()> {
        if self.records.is_empty() || !self.records.contains(&(family, Bytes::copy_from_slice(key))) {
            return Ok(());
        }
        self.met = true;
        Err(StorageError::Corrupt { what: format!("a record of the family {} rots: {key:02x?}", family.name()) })
    }
}

/// The maps as a process reads them.
pub(super) struct View<'a> {
    pub maps: &'a Maps,
    pub disk: &'a SimDisk,
}

impl View<'_> {
    fn begin(&self) -> Result<bool> {
        let disk = &mut *self.disk.lock();
        disk.faults.on_read().inspect_err(|_| disk.counters.reads_failed += 1)?;
        Ok(!disk.rot.records.is_empty())
    }

    fn check(&self, family: Family, key: &[u8]) -> Result<()> {
        self.disk.lock().rot.check(family, key)
    }
}

impl Read for View<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        if self.begin()? {
            self.check(family, key)?;
        }
        self.maps.get(family, key)
    }

    fn scan(
        &self,
        family: Family,
        start: &[u8],
        end: &[u8],
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<()> {
        if !self.begin()? {
            return self.maps.scan(family, start, end, direction, visit);
        }
        let mut verdict = Ok(());
        self.maps.scan(family, start, end, direction, &mut |key, value| {
            verdict = self.check(family, key);
            if verdict.is_ok() { visit(key, value) } else { ControlFlow::Break(()) }
        })?;
        verdict
    }
}
