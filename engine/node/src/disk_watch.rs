//! Watches the disk: a thread of its own, because asking a disk can take long.
//!
//! Every second, and more often as it comes near: is there room above the margin? Below it the store refuses proposals, while reads and
//! truncation go on; the ballast file keeps a node startable whose disk is full to the brim, and compactions wait where they would take what is
//! left (docs/decisions/0043-starting-on-a-full-disk.md). Every few seconds: notes durably how far the log is synced, so that the next start notices a lost tail; and tells the
//! store about how large its ranges are.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use flotilla_engine::snapshot;
use flotilla_engine::store::Input;
use flotilla_proto::RangeId;
use flotilla_store::{DiskSpace, StoreDirectory, disk_space};

use crate::disk::LocalStorage;
use crate::failure::Failure;
use crate::inbox::Inbox;
use crate::views::Views;

const INTERVAL: Duration = Duration::from_secs(1);
/// Close to the margin it looks so often, and no more.
const INTERVAL_MIN: Duration = Duration::from_millis(20);
/// No faster is a disk filled, compaction included: it looks again before the room above the margin can be used up.
const FILLED_BYTES_PER_SECOND: u64 = 2 << 30;
/// Between two notes of how far the log is synced, and between two looks at the ranges' sizes.
const NOTE_EVERY: Duration = Duration::from_secs(5);
/// The margin, unless settings say otherwise.
const MARGIN_BYTES: u64 = 1 << 30;
const MARGIN_PERCENT: u64 = 2;

/// What is known of the disk.
#[derive(Debug)]
pub(crate) struct DiskState {
    margin_bytes: Option<u64>,
    ballast_bytes: u64,
    /// What opening the store may take.
    bytes_to_open: u64,
    free: AtomicU64,
    margin: AtomicU64,
    full: AtomicBool,
    compactions_held: AtomicBool,
}

impl DiskState {
    /// Nothing is known yet.
    pub fn new(margin_bytes: Option<u64>, ballast_bytes: u64, bytes_to_open: u64) -> Self {
        Self {
            margin_bytes,
            ballast_bytes,
            bytes_to_open,
            free: AtomicU64::new(0),
            margin: AtomicU64::new(margin_bytes.unwrap_or(MARGIN_BYTES)),
            full: AtomicBool::new(false),
            compactions_held: AtomicBool::new(false),
        }
    }

    /// Before the store is opened: gives the ballast up if less is free than that may take. Returns whether to open it with its compactions
    /// held: until there are levels whose sizes tell what one would take.
    pub fn prepare(&self, directory: &StoreDirectory) -> bool {
        let Ok(space) = disk_space(directory.path()) else { return false };
        let hold = !self.note(space);
        self.compactions_held.store(hold, Ordering::Relaxed);
        if hold {
            tracing::warn!(free = space.free_bytes, "compactions wait for room");
        }
        if space.free_bytes < self.bytes_to_open {
            give_ballast_up(directory);
        }
        hold
    }

    /// Bytes that are free.
    pub fn free_bytes(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }

    /// Bytes that are to be kept free.
    pub fn margin_bytes(&self) -> u64 {
        self.margin.load(Ordering::Relaxed)
    }

    /// Whether less than the margin is free.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// When to look again.
    fn patience(&self) -> Duration {
        match self.free_bytes().checked_sub(self.margin_bytes()) {
            Some(room) => {
                let used_up = Duration::from_secs_f64(room as f64 / FILLED_BYTES_PER_SECOND as f64);
                used_up.clamp(INTERVAL_MIN, INTERVAL)
            }
            // It is full: nobody is harmed by hearing a second late that it is not any more.
            None => INTERVAL,
        }
    }

    /// Takes a measurement; returns whether there is room.
    fn note(&self, space: DiskSpace) -> bool {
        let margin = self.margin_bytes.unwrap_or((space.total_bytes / 100 * MARGIN_PERCENT).max(MARGIN_BYTES));
        let has_room = space.free_bytes >= margin;
        self.free.store(space.free_bytes, Ordering::Relaxed);
        self.margin.store(margin, Ordering::Relaxed);
        self.full.store(!has_room, Ordering::Relaxed);
        has_room
    }

    /// What must be free for compactions to begin, if the largest takes so much: that and a tenth, which RocksDB sets aside ahead, beside what
    /// a start would need.
    fn wanted_for_compactions(&self, largest: u64) -> u64 {
        largest + largest / 10 + self.bytes_to_open
    }
}

fn give_ballast_up(directory: &StoreDirectory) {
    match directory.release_ballast() {
        Ok(0) => {}
        Ok(bytes) => tracing::warn!(bytes, "the disk is full: gave the ballast file up to be able to start"),
        Err(error) => tracing::warn!(%error, "the disk is full, and the ballast file could not be given up"),
    }
}

/// The watching thread.
pub(crate) struct DiskWatch<S> {
    pub directory: Arc<StoreDirectory>,
    pub storage: S,
    pub state: Arc<DiskState>,
    pub inbox: Arc<Inbox>,
    pub views: Arc<Views>,
    pub failure: Arc<Failure>,
    /// Its other end is dropped to end the thread.
    pub stop: Receiver<()>,
}

impl<S: LocalStorage> DiskWatch<S> {
    /// Watches until told to stop.
    pub fn run(self) {
        let mut known = None;
        let mut sizes = BTreeMap::new();
        let mut noted = Instant::now();
        loop {
            self.look(self.directory.path(), &mut known);
            if noted.elapsed() >= NOTE_EVERY {
                noted = Instant::now();
                if let Err(error) = self.storage.note_synced() {
                    tracing::warn!(%error, "how far the log is synced could not be noted");
                }
                self.measure(&mut sizes);
            }
            match self.stop.recv_timeout(self.state.patience()) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Tells the store of each range whose size has changed. What slept all the while was not written to.
    fn measure(&self, sizes: &mut BTreeMap<RangeId, u64>) {
        let views = self.views.take_stirred();
        let spans: Vec<_> = views.iter().map(|view| snapshot::spans(&view.descriptor)).collect();
        let mut sizes_of_spans = self.storage.data_bytes(&spans.concat()).into_iter();
        let before = std::mem::take(sizes);
        for (view, spans) in views.iter().zip(&spans) {
            let (range, bytes) = (view.range(), sizes_of_spans.by_ref().take(spans.len()).sum());
            if before.get(&range) != Some(&bytes) {
                self.inbox.input(Input::RangeSize { range, bytes });
            }
            if !view.asleep {
                sizes.insert(range, bytes);
            }
        }
    }

    fn look(&self, path: &Path, known: &mut Option<bool>) {
        if let Some(error) = self.storage.background_failure() {
            self.failure.fail(format!("the storage failed in the background: {error}"));
            self.inbox.nudge();
        }
        let space = match disk_space(path) {
            Ok(space) => space,
            Err(error) => return tracing::warn!(%error, "the free disk space could not be asked for"),
        };
        let has_room = self.state.note(space);
        if *known != Some(has_room) {
            if !has_room {
                tracing::warn!(
                    free = space.free_bytes,
                    margin = self.state.margin_bytes(),
                    "disk space is at its margin"
                );
            }
            *known = Some(has_room);
            self.inbox.input(Input::DiskSpace { has_room });
        }
        // Comes back once there is room for it.
        let wanted = self.state.margin_bytes().saturating_add(self.state.ballast_bytes);
        if space.free_bytes > wanted
            && let Err(error) = self.directory.ensure_ballast(self.state.ballast_bytes)
        {
            tracing::debug!(%error, "the ballast file could not be made");
        }
        self.hold_compactions(path);
    }

    /// Measures anew: the ballast may have come back.
    fn hold_compactions(&self, path: &Path) {
        let wanted = self.state.wanted_for_compactions(self.storage.largest_compaction_bytes());
        let Ok(DiskSpace { free_bytes: free, .. }) = disk_space(path) else { return };
        let hold = free < wanted;
        if hold == self.state.compactions_held.load(Ordering::Relaxed) {
            return;
        }
        match self.storage.hold_compactions(hold) {
            Ok(()) if hold => tracing::info!(free, wanted, "compactions wait for room"),
            Ok(()) => tracing::info!(free, wanted, "compactions go on: there is room"),
            // The next look tries again.
            Err(error) => return tracing::warn!(%error, hold, "compactions could not be held or let go"),
        }
        self.state.compactions_held.store(hold, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_more_often_the_less_room_there_is_above_the_margin() {
        let state = DiskState::new(Some(1 << 30), 0, 0);
        let patience = |free_bytes: u64| {
            state.note(DiskSpace { total_bytes: 1 << 40, free_bytes });
            state.patience()
        };
        assert_eq!(patience(100 << 30), INTERVAL);
        assert_eq!(patience(2 << 30), Duration::from_millis(500));
        assert_eq!(patience((1 << 30) + 1), INTERVAL_MIN);
        assert_eq!(patience(1 << 20), INTERVAL, "it is full");
    }
}
