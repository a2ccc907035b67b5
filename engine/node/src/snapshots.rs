//! Snapshots at the rim: made, taken in and installed by threads that may wait for the disk.
//!
//! Neither the store's loop nor the log writer ever waits for one. What is under way ends soon when the node stops: a
//! snapshot that is being made is given up, and an installation goes on at the next start from where it was.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_engine::snapshot::{self, Limits, Receiver, SnapshotData};
use flotilla_engine::store::{Input, LogItem};
use flotilla_proto::{RangeId, v1};

use crate::disk::LocalStorage;
use crate::failure::{AbortOnPanic, abort_on_panic};
use crate::store_loop::StoreLoop;

/// Where snapshots from other nodes are taken in.
pub(crate) trait Staging: Send + Sync {
    /// Begins with what the sender says of the whole.
    fn begin(&self, header: v1::SnapshotHeader) -> Result<Box<dyn Incoming>, String>;
}

/// A snapshot of which a part has come. Its calls wait for the disk.
pub(crate) trait Incoming: Send {
    /// Adds the next chunk.
    fn push(&mut self, chunk: Bytes) -> Result<(), String>;
    /// The whole.
    fn finish(self: Box<Self>) -> Result<SnapshotData, String>;
}

/// The staging area of a storage.
pub(crate) fn staging<S: LocalStorage>(storage: S, limits: Limits) -> Arc<dyn Staging> {
    Arc::new(Area { storage, limits })
}

struct Area<S> {
    storage: S,
    limits: Limits,
}

struct Taking<S: LocalStorage> {
    storage: S,
    receiver: Receiver<S>,
}

impl<S: LocalStorage> Staging for Area<S> {
    fn begin(&self, header: v1::SnapshotHeader) -> Result<Box<dyn Incoming>, String> {
        let receiver = Receiver::new(self.limits, header).map_err(|error| error.to_string())?;
        Ok(Box::new(Taking { storage: self.storage.clone(), receiver }))
    }
}

impl<S: LocalStorage> Incoming for Taking<S> {
    fn push(&mut self, chunk: Bytes) -> Result<(), String> {
        self.receiver.push(&self.storage, chunk).map_err(|error| error.to_string())
    }

    fn finish(self: Box<Self>) -> Result<SnapshotData, String> {
        self.receiver.finish(&self.storage).map_err(|error| error.to_string())
    }
}

impl<S: LocalStorage> StoreLoop<S> {
    /// Makes a snapshot, when its turn has come, at a rate that leaves the disk to others.
    pub(crate) fn make_snapshot(&self, range: RangeId) {
        let (storage, inbox) = (self.reads.storage.clone(), Arc::clone(&self.inbox));
        let pace = self.outgoing.snapshot_pace(self.reads.runtime.clone());
        let turn = self.outgoing.snapshot_turn();
        let batch_bytes_max = self.snapshot_limits.batch_bytes_max;
        let runtime = self.reads.runtime.clone();
        self.reads.runtime.spawn(async move {
            let _guard = AbortOnPanic("making a snapshot");
            let turn = turn.acquire_owned().await;
            let made = runtime.spawn_blocking(move || {
                abort_on_panic("making a snapshot", || {
                    let snapshot = snapshot::make_staged(&storage, range, batch_bytes_max, |bytes| pace.wait(bytes))
                        .inspect_err(|error| tracing::warn!(%range, %error, "a snapshot could not be made"));
                    inbox.input(Input::SnapshotMade { range, snapshot: snapshot.ok() });
                });
            });
            // A job that was cancelled belongs to a runtime that is going away.
            drop(made.await);
            drop(turn);
        });
    }

    /// Puts a large snapshot in place of what a replica has.
    pub(crate) fn ingest(&self, item: LogItem) {
        let (storage, inbox) = (self.reads.storage.clone(), Arc::clone(&self.inbox));
        let failure = Arc::clone(&self.failure);
        self.reads.runtime.spawn_blocking(move || {
            abort_on_panic("installing a snapshot", || {
                let range = item.range;
                let installed = snapshot::install(&storage, &item, |step| {
                    tracing::debug!(%range, ?step, "installing a snapshot");
                    ControlFlow::Continue(())
                });
                // Its files go before the store hears of it.
                drop(item);
                match installed {
                    Ok(_) => inbox.input(Input::Ingested { range }),
                    Err(error) => {
                        // What is on disk lies between two states: only a restart can tell how to go on.
                        failure.fail(format!("installing a snapshot of range {range}: {error}"));
                        inbox.nudge();
                    }
                }
            });
        });
    }
}
