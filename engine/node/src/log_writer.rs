//! The log writer: makes the loop's log batches durable.
//!
//! One thread. It drains every batch that is queued, fills one storage batch, writes, syncs once, and
//! reports the last sequence number: a sync covers all that was queued when it began, of all ranges,
//! and the next batches collect meanwhile. Acknowledgements wait for that report in the core.
//!
//! A write or a sync that fails ends the store: what is on disk is then unknown.

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use flotilla_engine::log_writer::fill;
use flotilla_engine::storage::{self, Storage, WriteBatch};
use flotilla_engine::store::{Input, LogBatch};

use crate::clock;
use crate::counters::Counters;
use crate::failure::Failure;
use crate::inbox::Inbox;

/// What the thread works with.
pub(crate) struct LogWriter<S> {
    pub storage: S,
    pub queue: Receiver<LogBatch>,
    pub inbox: Arc<Inbox>,
    pub counters: Arc<Counters>,
    pub failure: Arc<Failure>,
    /// Batches that one sync may cover; at least one.
    pub sync_batches_max: usize,
}

impl<S: Storage> LogWriter<S> {
    /// Works until the loop drops its end of the queue, or the storage fails.
    pub fn run(self) {
        let mut batches = Vec::new();
        while let Ok(first) = self.queue.recv() {
            batches.push(first);
            batches.extend(self.queue.try_iter().take(self.sync_batches_max.saturating_sub(1)));
            match self.persist(&batches) {
                Ok(sequence) => self.inbox.input(Input::Persisted { sequence }),
                Err(error) => {
                    self.failure.fail(format!("the log could not be made durable: {error}"));
                    self.inbox.nudge();
                    return;
                }
            }
            batches.clear();
        }
    }

    fn persist(&self, batches: &[LogBatch]) -> storage::Result<u64> {
        let began = clock::now();
        let mut batch = self.storage.batch();
        for log in batches {
            fill(&mut batch, log)?;
        }
        let bytes = batch.size_bytes();
        self.storage.write(batch)?;
        self.storage.sync()?;
        self.counters.log_sync.record(clock::now().since(began));
        self.counters.wal_syncs.add(1);
        self.counters.log_batches.add(batches.len() as u64);
        self.counters.log_bytes.add(bytes as u64);
        let entries: usize = batches.iter().flat_map(|log| &log.items).map(|item| item.entries.len()).sum();
        self.counters.log_entries.add(entries as u64);
        Ok(batches.last().map_or(0, |last| last.sequence))
    }
}
