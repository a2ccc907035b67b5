//! Carries out what the store wants after a turn.
//!
//! Order: views first, since a view that ends a lease must be seen before the message that lets another
//! replica lead leaves. Then the log, so that its sync begins; then messages, whose way is longest;
//! then the answers, and last the applies, which this thread does itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use flotilla_engine::expiry::{self, ExpiryFound, ExpiryWanted};
use flotilla_engine::recover;
use flotilla_engine::split_keys;
use flotilla_engine::store::{Effects, Event, FetchLog, Input, ReadView, SplitKeysWanted, Token, WriteAnswer};
use flotilla_proto::{Error, RangeId, v1};

use crate::clock;
use crate::disk::LocalStorage;
use crate::failure::abort_on_panic;
use crate::requests;
use crate::slow::{self, WriteStages};
use crate::store_loop::{Asker, StoreLoop, WriteAsker};

impl<S: LocalStorage> StoreLoop<S> {
    /// Carries effects out, and leaves them empty.
    pub(crate) fn carry_out(&mut self, effects: &mut Effects) {
        if !effects.views.is_empty() {
            self.views.publish(effects.views.drain(..));
        }
        if !effects.views_gone.is_empty() {
            self.views.withdraw(effects.views_gone.drain(..));
        }
        if let Some(reason) = effects.fatal.take() {
            return self.failure.fail(reason);
        }
        if let Some(log) = effects.log.take() {
            self.last_sequence = log.sequence;
            // Without a log writer the store has failed, and says so itself.
            drop(self.log.send(log));
        }
        if !effects.messages.is_empty() {
            self.outgoing.send(effects.messages.drain(..));
        }
        if let Some(health) = effects.health.take() {
            self.health.note(&health);
            self.outgoing.tell(&health);
        }
        if !effects.beats.is_empty() {
            self.outgoing.beat(effects.beats.drain(..));
        }
        effects.expiries_wanted.drain(..).for_each(|wanted| self.find_expiries(wanted));
        effects.fetches.drain(..).for_each(|fetch| self.fetch(fetch));
        effects.snapshots_wanted.drain(..).for_each(|range| self.make_snapshot(range));
        effects.ingests.drain(..).for_each(|item| self.ingest(item));
        effects.split_keys_wanted.drain(..).for_each(|wanted| self.find_split_keys(wanted));
        if std::mem::take(&mut effects.range_ids_wanted) {
            self.wants_range_ids.store(true, Ordering::Relaxed);
        }
        effects.events.drain(..).for_each(|event| self.tell(event));
        self.answer(effects);
        self.wakes.flush();
        if !effects.applies.is_empty()
            && let Err(error) = self.applier.run(std::mem::take(&mut effects.applies), &mut self.own)
        {
            self.failure.fail(error.to_string());
        }
    }

    fn answer(&mut self, effects: &mut Effects) {
        let mut answered = Vec::with_capacity(effects.writes.len());
        for (token, result) in effects.writes.drain(..) {
            if let Some(Asker::Write(asker)) = self.pending.remove(token) {
                answered.push((asker.request.arrived, asker.request.units(), result.is_ok()));
                self.answer_write(*asker, result);
            }
        }
        if !answered.is_empty() {
            self.inbox.answered(&answered);
        }
        let mut passed = Vec::new();
        for (token, result) in effects.barriers.drain(..) {
            self.answer_barrier(token, result, &mut passed);
        }
        self.reads.after_barriers(passed);
        for (token, result) in effects.transfers.drain(..) {
            if let Some(Asker::Transfer(reply)) = self.pending.remove(token) {
                // An asker that is gone wants no answer.
                drop(reply.send(result));
            }
        }
        for (token, result) in effects.splits.drain(..) {
            if let Some(Asker::Split(reply)) = self.pending.remove(token) {
                drop(reply.send(result));
            }
        }
        for (token, result) in effects.merges.drain(..) {
            if let Some(Asker::Merge(reply)) = self.pending.remove(token) {
                drop(reply.send(result));
            }
        }
        for (token, result) in effects.checks.drain(..) {
            if let Some(Asker::Check(reply)) = self.pending.remove(token) {
                drop(reply.send(result));
            }
        }
        for (token, result) in effects.recoveries.drain(..) {
            if let Some(Asker::Recover(reply)) = self.pending.remove(token) {
                drop(reply.send(result));
            }
        }
        for (token, result) in effects.statuses.drain(..) {
            if let Some(Asker::Status(reply)) = self.pending.remove(token) {
                drop(reply.send(result));
            }
        }
    }

    fn answer_barrier(
        &mut self,
        token: Token,
        result: Result<Arc<ReadView>, Error>,
        passed: &mut Vec<(Box<crate::inbox::Request>, Arc<ReadView>)>,
    ) {
        let Some(Asker::Read(request)) = self.pending.remove(token) else { return };
        match result {
            Ok(view) => passed.push((request, view)),
            Err(error) => {
                let response = self.reads.finished(&request, true, 0, Err(error));
                self.wakes.answer(request.reply, response);
            }
        }
    }

    fn answer_write(&mut self, asker: WriteAsker, result: Result<WriteAnswer, Error>) {
        let stages = self.stages(&asker);
        self.counters.writes.add(1);
        self.counters.write_total.record(stages.total);
        if result.is_ok() {
            self.counters.write_queue.record(stages.queue);
            self.counters.write_log.record(stages.log);
            self.counters.write_commit.record(stages.commit);
            self.counters.write_apply.record(stages.apply);
        } else {
            self.counters.writes_refused.add(1);
        }
        let request = asker.request;
        if self.reads.slow.is_slow(stages.total) {
            self.counters.slow_requests.add(1);
            if self.reads.slow.has_room(clock::now()) {
                slow::write(&request, &stages, result.as_ref().err());
            }
        }
        let response = match result {
            Ok(answer) => self.reads.answerer.write(request.id, &request.header, answer.term, answer.results),
            Err(error) => requests::refusal(request.id, &error),
        };
        self.wakes.answer(request.reply, response);
    }

    /// Where a write's time went. The log batch is the one of the turn that took it: what flow control
    /// held back longer shows as log or commit.
    fn stages(&self, asker: &WriteAsker) -> WriteStages {
        let (began, ended) = self.applier.last_pass();
        let arrived = asker.request.arrived;
        let durable = self.persisted.when(asker.log_sequence).unwrap_or(asker.taken);
        WriteStages {
            queue: asker.taken.since(arrived),
            log: durable.since(asker.taken),
            commit: began.since(durable),
            apply: ended.since(began),
            total: clock::now().since(arrived),
        }
    }

    fn find_expiries(&self, wanted: ExpiryWanted) {
        let (storage, inbox) = (self.reads.storage.clone(), Arc::clone(&self.inbox));
        self.reads.runtime.spawn_blocking(move || {
            abort_on_panic("looking for keys that end", || {
                let range = flotilla_proto::RangeId(wanted.descriptor.range_id);
                let found = expiry::find(&storage, &wanted)
                    .inspect_err(|error| tracing::warn!(%range, %error, "the expiry index could not be read"));
                inbox.input(Input::ExpiriesFound(ExpiryFound { range, id: wanted.id, found: found.ok() }));
            });
        });
    }

    fn fetch(&self, fetch: FetchLog) {
        self.counters.log_fetches.add(1);
        let (storage, inbox) = (self.reads.storage.clone(), Arc::clone(&self.inbox));
        let failure = Arc::clone(&self.failure);
        self.reads.runtime.spawn_blocking(move || {
            abort_on_panic("reading the log", || {
                match recover::read_log(&storage, fetch.range, fetch.low, fetch.high, fetch.bytes_max) {
                    Ok(entries) => inbox.input(Input::LogFetched { range: fetch.range, id: fetch.id, entries }),
                    Err(error) => {
                        // A log that cannot be read cannot be served: this replica must not go on.
                        failure.fail(format!("reading the log of range {}: {error}", fetch.range));
                        inbox.nudge();
                    }
                }
            });
        });
    }

    fn find_split_keys(&self, wanted: SplitKeysWanted) {
        let (storage, inbox) = (self.reads.storage.clone(), Arc::clone(&self.inbox));
        self.reads.runtime.spawn_blocking(move || {
            abort_on_panic("looking for split keys", || {
                let found = split_keys::find(&storage, &wanted);
                inbox.input(Input::SplitKeys { range: RangeId(wanted.descriptor.range_id), found });
            });
        });
    }

    fn tell(&self, event: Event) {
        self.events.note(&event);
        match event {
            Event::BecameLeader { range, term } => {
                self.counters.elections_won.add(1);
                tracing::info!(%range, term, "leads");
            }
            Event::SteppedDown { range, term } => {
                self.counters.step_downs.add(1);
                tracing::info!(%range, term, "leads no more");
            }
            Event::LeaderChanged { range, term, leader } => {
                tracing::debug!(%range, term, leader = leader.map(|node| node.0), "leader changed");
            }
            Event::SnapshotApplied { range, index } => {
                self.counters.snapshots_applied.add(1);
                self.checks.note_snapshot(range, index);
                tracing::info!(%range, index, "a snapshot replaced the replica's state");
            }
            Event::Split { range, ranges } => {
                self.counters.splits.add(1);
                let children: Vec<u64> = ranges.iter().skip(1).map(|child| child.range_id).collect();
                tracing::info!(%range, ?children, "split");
            }
            Event::Frozen { range, into } => tracing::info!(%range, %into, "stands still, to be merged"),
            Event::Thawed { range, into } => tracing::info!(%range, %into, "was not merged, and goes on"),
            Event::Merged { range, into } => {
                tracing::info!(%range, into = %RangeId(into.range_id), "was merged");
            }
            Event::CannotSplit { range, bytes } => {
                tracing::warn!(%range, bytes, "the range is too large, and nothing in it may be cut");
            }
            Event::LoadStays { range, requests_per_s, why } => {
                tracing::info!(%range, requests_per_s, why, "the range is hot, and is not split for its load");
            }
            Event::ReplicasChanged { descriptor } => {
                self.counters.replica_changes.add(1);
                let nodes: Vec<u64> = descriptor.replicas.iter().map(|replica| replica.node_id).collect();
                tracing::info!(range = %RangeId(descriptor.range_id), ?nodes, "its replicas changed");
            }
            Event::Born { descriptor } => tracing::info!(range = %RangeId(descriptor.range_id), "begins here"),
            Event::Recovered { descriptor, record } => {
                self.counters.recoveries.add(1);
                let (range, plan) = (RangeId(descriptor.range_id), &record.plan_id);
                tracing::warn!(%range, plan, "goes on with this replica alone: its majority is lost for good, says a person");
            }
            Event::Removed { range, replica_id } => {
                self.counters.replicas_removed.add(1);
                tracing::info!(%range, replica_id, "the replica is no part of its range any more, and is gone");
            }
            Event::LogTruncated { range, index } => tracing::debug!(%range, index, "log truncated"),
            Event::MessageRefused { from, range, reason } => {
                self.counters.raft_messages_refused.add(1);
                tracing::debug!(%from, %range, reason, "message refused");
            }
        }
    }
}

/// A range as `routes` shows it.
pub(crate) fn range_status(view: &ReadView) -> v1::RangeStatus {
    v1::RangeStatus {
        descriptor: Some((*view.descriptor).clone()),
        leader_node_id: view.leader.map_or(0, |node| node.0),
        term: view.term,
        ..Default::default()
    }
}
