//! The scrub's thread: reads the whole store now and then, slowly, so that bit rot is found while the other replicas
//! are still sound ([`LocalStorage::scrub`]).
//!
//! What is found stops the store by itself, through the listener that [`LocalStorage::on_damage`] was given. A pass begins an
//! interval after the end of the last one, over restarts too; a store that never had one is not read at once, because a
//! start has enough to read.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, SystemTime};

use flotilla_engine::time::BootTime;

use crate::clock;
use crate::counters::Counters;
use crate::disk::LocalStorage;

/// How long after a start the first pass may begin, at the latest.
const FIRST_PASS: Duration = Duration::from_secs(600);
/// After a pass that could not be finished.
const RETRY: Duration = Duration::from_secs(60);

/// What the thread works with.
pub(crate) struct Scrub<S> {
    pub storage: S,
    /// Between two passes; zero: none.
    pub interval: Duration,
    pub bytes_per_second: u64,
    pub counters: Arc<Counters>,
    /// Its other end is dropped to end the thread.
    pub stop: Receiver<()>,
}

impl<S: LocalStorage> Scrub<S> {
    /// Works until told to stop.
    pub fn run(self) {
        if self.interval.is_zero() {
            return;
        }
        let mut pause = self.first_pause();
        while !self.told_to_stop(pause) {
            pause = self.pass();
        }
    }

    fn first_pause(&self) -> Duration {
        let since = self.storage.last_scrub().and_then(|ended| SystemTime::now().duration_since(ended).ok());
        match since {
            Some(since) => self.interval.saturating_sub(since).max(self.interval.min(RETRY)),
            None => self.interval.min(FIRST_PASS),
        }
    }

    /// One pass; how long to wait for the next.
    fn pass(&self) -> Duration {
        let (began, mut read) = (clock::now(), 0);
        let done = self.storage.scrub(&mut |bytes| {
            read += bytes;
            self.counters.scrub_bytes.add(bytes);
            self.pace(began, read)
        });
        match done {
            Ok(done) if done.cut_short => RETRY,
            Ok(done) => {
                self.counters.scrub_passes.add(1);
                let took = clock::now().since(began);
                tracing::info!(?done, ?took, "the store was read whole, and is sound");
                self.interval
            }
            Err(error) => {
                tracing::error!(%error, "the store could not be read whole");
                RETRY
            }
        }
    }

    /// Waits until so many bytes may have been read since the pass began.
    fn pace(&self, began: BootTime, read: u64) -> ControlFlow<()> {
        #[allow(clippy::cast_precision_loss, reason = "a pace need not be exact")]
        let due = Duration::from_secs_f64(read as f64 / self.bytes_per_second.max(1) as f64);
        let wait = due.saturating_sub(clock::now().since(began));
        if self.told_to_stop(wait) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn told_to_stop(&self, wait: Duration) -> bool {
        !matches!(self.stop.recv_timeout(wait), Err(RecvTimeoutError::Timeout))
    }
}
