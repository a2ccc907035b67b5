//! Consistency checks: each replica's checksums at the index that the check names.
//!
//! The apply stage stops at that index just long enough for a view of the disk to be taken; reading it is a thread's
//! own business. Results are kept for a while, for whoever asks. A replica that a snapshot takes past that index has
//! none, ever: whoever asks is told so, and asks for another check.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use flotilla_engine::apply::Checkpoint;
use flotilla_engine::checksum;
use flotilla_engine::storage::Storage;
use flotilla_engine::store::CheckStarted;
use flotilla_proto::{Error, RangeId, v1};
use tokio::sync::watch;

use crate::failure::abort_on_panic;

/// Results that are kept, and snapshots.
const KEPT_MAX: usize = 64;

type Outcome = Result<v1::RangeChecksumResponse, String>;

/// The checks of a node.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    done: Mutex<VecDeque<(RangeId, u64, Outcome)>>,
    /// Snapshots that were installed lately, and their indexes.
    installed: Mutex<VecDeque<(RangeId, u64)>>,
    /// What was found of ranges whose replicas differ, when they were last compared by this node.
    differing: Mutex<BTreeMap<RangeId, String>>,
    changed: watch::Sender<u64>,
}

impl Checks {
    /// Begins a check. Returns as soon as the view is taken: what is applied afterwards is not in it.
    pub fn begin<S: Storage + Clone>(self: &Arc<Self>, storage: &S, checkpoint: Checkpoint) {
        let (checks, storage) = (Arc::clone(self), storage.clone());
        let (taken, wait) = mpsc::channel();
        let range = RangeId(checkpoint.descriptor.range_id);
        let read = move || {
            let Checkpoint { index, check_id, descriptor } = checkpoint;
            let spans = storage.with_view(|view| {
                // Whoever waits is told, or is gone.
                taken.send(()).ok();
                checksum::of_range(view, &descriptor)
            });
            let outcome = spans
                .map(|spans| v1::RangeChecksumResponse { index, spans, descriptor: Some((*descriptor).clone()) })
                .map_err(|error| error.to_string());
            checks.finish(range, check_id, outcome);
        };
        let thread = std::thread::Builder::new().name("range-check".into());
        match thread.spawn(move || abort_on_panic("checking a range", read)) {
            // An error means that the thread has ended, and with it the need for a view.
            Ok(_) => drop(wait.recv()),
            Err(error) => self.finish(range, checkpoint.check_id, Err(format!("no thread for the check: {error}"))),
        }
    }

    fn finish(&self, range: RangeId, check_id: u64, outcome: Outcome) {
        keep(&self.done, (range, check_id, outcome));
        self.changed.send_modify(|count| *count += 1);
    }

    /// A snapshot has replaced a replica's state: checks up to its index do not come to pass here.
    pub fn note_snapshot(&self, range: RangeId, index: u64) {
        keep(&self.installed, (range, index));
        self.changed.send_modify(|count| *count += 1);
    }

    fn find(&self, range: RangeId, check: CheckStarted) -> Option<Outcome> {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let found = done.iter().find(|(of, id, _)| (*of, *id) == (range, check.check_id));
        if let Some((.., outcome)) = found {
            return Some(outcome.clone());
        }
        drop(done);
        // Who asks from an older release does not say which index.
        let passes = |index: u64| check.index > 0 && index >= check.index;
        let installed = self.installed.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, index) = installed.iter().rfind(|(of, index)| *of == range && passes(*index))?;
        Some(Ok(v1::RangeChecksumResponse { index: *index, ..Default::default() }))
    }

    /// Remembers what a comparison of a range's replicas has found; `None`: they are equal.
    pub fn note_compared(&self, range: RangeId, difference: Option<String>) {
        let mut differing = self.differing.lock().unwrap_or_else(PoisonError::into_inner);
        match difference {
            Some(what) => drop(differing.insert(range, what)),
            None => drop(differing.remove(&range)),
        }
    }

    /// Forgets what was found of ranges that somebody else leads by now: who leads them compares them.
    pub fn forget_differences_unless(&self, led: impl Fn(RangeId) -> bool) {
        self.differing.lock().unwrap_or_else(PoisonError::into_inner).retain(|range, _| led(*range));
    }

    /// What is to be told of replicas that differ.
    pub fn differences(&self) -> Vec<String> {
        self.differing.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Waits for a result: checksums at the check's index, or nothing but the later index of a snapshot.
    pub async fn wait(
        &self,
        range: RangeId,
        check: CheckStarted,
        timeout: Duration,
    ) -> Result<v1::RangeChecksumResponse, Error> {
        let mut changed = self.changed.subscribe();
        let found = async {
            loop {
                if let Some(outcome) = self.find(range, check) {
                    return outcome;
                }
                if changed.changed().await.is_err() {
                    return Err("the node is stopping".into());
                }
            }
        };
        match tokio::time::timeout(timeout, found).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(reason)) => Err(Error::Unavailable { reason }),
            Err(_) => Err(Error::Timeout { stage: "before the replica had come to the check".into() }),
        }
    }
}

fn keep<T>(lately: &Mutex<VecDeque<T>>, item: T) {
    let mut lately = lately.lock().unwrap_or_else(PoisonError::into_inner);
    if lately.len() == KEPT_MAX {
        lately.pop_front();
    }
    lately.push_back(item);
}
