//! The store's loop: one thread that owns the engine's [`Store`] and drives it.
//!
//! A turn: take the whole inbox, give each item to the store, end the turn, carry its effects out
//! ([`crate::carry_out`]). Between turns it sleeps until something comes or a tick is due; ticks that were
//! missed in a stall are not made up. It never waits for disk or network itself, the apply stage's
//! writes (into memory) and its reads of keys that a condition names excepted.
//!
//! Its end: the store failed, or it was told to stop, has handed over what it led and answered what was
//! under way (or has waited long enough for that). Whoever still waits then gets an answer: a write
//! whose outcome is not known is ambiguous.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Sender;
use std::time::Duration;

use flotilla_engine::snapshot::Limits;
use flotilla_engine::store::{
    CheckStarted, Effects, Envelope, Input, LogBatch, Merge, MergeAnswer, ReadBarrier, Recovered, Split, SplitAnswer,
    Store, Token, TransferLeader, Write,
};
use flotilla_engine::time::BootTime;
use flotilla_proto::{Error, NodeId, RangeId, v1};
use tokio::sync::oneshot;

use crate::applier::Applier;
use crate::checks::Checks;
use crate::clock;
use crate::counters::Counters;
use crate::disk::LocalStorage;
use crate::events::RangeEvents;
use crate::failure::Failure;
use crate::health::Health;
use crate::inbox::{Frame, Inbox, Item, Request};
use crate::pending::Pending;
use crate::persisted::Persisted;
use crate::reads::Reads;
use crate::replies::Wakes;
use crate::requests;
use crate::transport::Outgoing;
use crate::views::Views;

/// Items that the emptied buffer of a turn may have room for.
const ITEMS_KEPT: usize = 1_024;

/// Who waits for an answer of the store.
#[derive(Debug)]
pub(crate) enum Asker {
    Write(Box<WriteAsker>),
    Read(Box<Request>),
    Transfer(oneshot::Sender<Result<(NodeId, u64), Error>>),
    Status(oneshot::Sender<Result<v1::GetRangeResponse, Error>>),
    Split(oneshot::Sender<SplitAnswer>),
    Merge(oneshot::Sender<MergeAnswer>),
    Check(oneshot::Sender<Result<CheckStarted, Error>>),
    Recover(oneshot::Sender<Result<Recovered, Error>>),
}

/// Who waits for a write, and what it takes to tell the stages of it apart.
#[derive(Debug)]
pub(crate) struct WriteAsker {
    pub request: Request,
    /// When the loop took it.
    pub taken: BootTime,
    /// The log batch that the turn in which it was taken will make, if it makes one.
    pub log_sequence: u64,
}

/// The loop's parts; see the module.
pub(crate) struct StoreLoop<S> {
    pub node: NodeId,
    pub store: Store,
    pub tick: Duration,
    pub drain_timeout: Duration,
    pub inbox: Arc<Inbox>,
    pub views: Arc<Views>,
    pub log: Sender<LogBatch>,
    pub applier: Applier<S>,
    pub outgoing: Outgoing,
    pub reads: Arc<Reads<S>>,
    pub snapshot_limits: Limits,
    pub counters: Arc<Counters>,
    pub failure: Arc<Failure>,
    pub events: Arc<RangeEvents>,
    pub checks: Arc<Checks>,
    pub health: Arc<Health>,
    pub wants_range_ids: Arc<AtomicBool>,
    pub pending: Pending<Asker>,
    pub persisted: Persisted,
    pub wakes: Wakes,
    /// What this loop has made for itself: inputs of the next turn.
    pub own: Vec<Input>,
    pub last_sequence: u64,
    pub next_tick: BootTime,
    /// Set once it was told to stop: when to wait no longer.
    pub give_up_at: Option<BootTime>,
    /// How many ranges it led then.
    pub led_at_stop: Option<usize>,
}

impl<S: LocalStorage> StoreLoop<S> {
    /// Drives the store until its end.
    pub fn run(mut self) {
        let mut items = Vec::new();
        let mut effects = Effects::default();
        loop {
            self.inbox.take(&mut items, self.patience());
            self.turn(&mut items, &mut effects);
            if self.failure.is_set() || self.is_done() {
                break;
            }
        }
        self.finish();
    }

    /// How long to sleep if nothing comes.
    fn patience(&self) -> Duration {
        if self.own.is_empty() { self.next_tick.since(clock::now()) } else { Duration::ZERO }
    }

    fn turn(&mut self, items: &mut Vec<Item>, effects: &mut Effects) {
        let began = clock::now();
        let own = std::mem::take(&mut self.own);
        self.counters.loop_inputs.add((own.len() + items.len()) as u64);
        for input in own {
            self.store.on(began, input, effects);
        }
        for item in items.drain(..) {
            self.take(began, item, effects);
        }
        if began >= self.next_tick {
            for range in self.views.take_read() {
                self.store.on(began, Input::Read { range }, effects);
            }
            self.store.on(began, Input::Tick, effects);
            self.next_tick = began + self.tick;
        }
        self.store.end_turn(clock::now(), effects);
        self.carry_out(effects);
        effects.give_back_room();
        items.shrink_to(ITEMS_KEPT);
        self.counters.loop_turns.add(1);
        self.counters.loop_turn.record(clock::now().since(began));
    }

    fn take(&mut self, now: BootTime, item: Item, effects: &mut Effects) {
        match item {
            Item::Input(input) => {
                if let Input::Persisted { sequence } = &*input {
                    self.persisted.note(*sequence, now);
                }
                self.store.on(now, *input, effects);
            }
            Item::Frame(frame) => self.take_frame(now, frame, effects),
            Item::Offer { envelope, reply } => self.take_offer(now, *envelope, reply, effects),
            Item::Snapshot(envelope, memory) => {
                self.store.on(now, Input::Message(*envelope), effects);
                drop(memory);
            }
            Item::Write(request) => self.take_write(now, *request, effects),
            Item::Barrier(request) => self.take_barrier(now, request, effects),
            Item::Transfer { range, to, deadline, reply } => {
                let token = self.pending.insert(Asker::Transfer(reply));
                self.store.on(now, Input::TransferLeader(TransferLeader { token, range, to, deadline }), effects);
            }
            Item::Status { range, reply } => {
                let token = self.pending.insert(Asker::Status(reply));
                self.store.on(now, Input::Status { token, range }, effects);
            }
            Item::Split { range, at, deadline, reply } => {
                let token = self.pending.insert(Asker::Split(reply));
                self.store.on(now, Input::Split(Split { token, range, at, deadline }), effects);
            }
            Item::Merge { range, target, deadline, reply } => {
                let token = self.pending.insert(Asker::Merge(reply));
                self.store.on(now, Input::Merge(Merge { token, range, target, deadline }), effects);
            }
            Item::Check { range, deadline, reply } => {
                let token = self.pending.insert(Asker::Check(reply));
                self.store.on(now, Input::Check { token, range, deadline }, effects);
            }
            Item::Recover { order, reply } => {
                let token = self.pending.insert(Asker::Recover(reply));
                self.store.on(now, Input::Recover { token, order }, effects);
            }
            // An asker that is gone wants no answer.
            Item::Changes { all, reply } => drop(reply.send(self.store.changes(all))),
            Item::Stop => {
                self.give_up_at = Some(now + self.drain_timeout);
                self.led_at_stop = Some(self.views.led());
                self.store.on(now, Input::Drain, effects);
            }
            Item::Halt => self.give_up_at = Some(now),
        }
    }

    fn take_frame(&mut self, now: BootTime, frame: Frame, effects: &mut Effects) {
        let Frame { from, batch, memory } = frame;
        self.counters.raft_messages_received.add(batch.messages.len() as u64);
        if batch.beat {
            let v1::PeerBatch { boot_id, leaving, hears_nothing, .. } = batch;
            let beat = Input::Beat { from, boot_id, leaving, hears_nothing };
            self.store.on(now, beat, effects);
        }
        for message in batch.messages {
            let envelope = Envelope { from, to: self.node, message, disk_full: batch.disk_full, snapshot: None };
            self.store.on(now, Input::Message(envelope), effects);
        }
        if let Some(health) = batch.health {
            self.store.on(now, Input::Health { from, health }, effects);
        }
        drop(memory);
    }

    fn take_offer(
        &mut self,
        now: BootTime,
        envelope: Envelope,
        reply: oneshot::Sender<Result<(), String>>,
        effects: &mut Effects,
    ) {
        let Some(header) = envelope.snapshot.as_ref().map(|data| &data.header) else { return };
        let admitted = self.store.admit_snapshot(&envelope.message, header);
        if admitted.is_err() {
            // Refused with its reason; and what follows from the header by itself does follow.
            self.store.on(now, Input::Message(envelope), effects);
        }
        // A connection that is gone wants no answer.
        drop(reply.send(admitted));
    }

    fn take_write(&mut self, now: BootTime, mut request: Request, effects: &mut Effects) {
        let v1::request::Body::Write(body) = &mut request.body else { return };
        let write = v1::WriteRequest { ops: std::mem::take(&mut body.ops), atomic: body.atomic };
        let range = RangeId(request.header.range_id);
        let epoch = request.header.epoch.unwrap_or_default();
        let deadline = request.deadline;
        let asker = WriteAsker { request, taken: now, log_sequence: self.last_sequence + 1 };
        let token = self.pending.insert(Asker::Write(Box::new(asker)));
        self.store.on(now, Input::Write(Write { token, range, epoch, request: write, deadline }), effects);
    }

    fn take_barrier(&mut self, now: BootTime, request: Box<Request>, effects: &mut Effects) {
        let range = RangeId(request.header.range_id);
        let epoch = request.header.epoch.unwrap_or_default();
        let deadline = request.deadline;
        let token: Token = self.pending.insert(Asker::Read(request));
        self.store.on(now, Input::ReadBarrier(ReadBarrier { token, range, epoch, deadline }), effects);
    }

    /// Whether it was told to stop, and nothing is left to wait for.
    fn is_done(&self) -> bool {
        let Some(give_up_at) = self.give_up_at else { return false };
        let handed_over = self.views.led() == 0 || !self.outgoing.any_live();
        (handed_over && self.pending.is_empty() && self.own.is_empty()) || clock::now() >= give_up_at
    }

    /// Answers everybody who still waits.
    fn finish(mut self) {
        if let Some(led) = self.led_at_stop {
            // What is kept is led by nobody until an election time-out has passed.
            let kept = self.views.led();
            tracing::info!(led, kept, "leaders were handed over");
        }
        for item in self.inbox.close() {
            self.reads.refuse(crate::inbox::Refused::Closed(item));
        }
        let reason = self.failure.reason().unwrap_or_else(|| "the node stopped while the write was under way".into());
        for asker in self.pending.drain().collect::<Vec<_>>() {
            match asker {
                Asker::Write(asker) => {
                    self.counters.writes.add(1);
                    self.counters.writes_refused.add(1);
                    let error = Error::Ambiguous { reason: reason.clone() };
                    let response = requests::refusal(asker.request.id, &error);
                    self.wakes.answer(asker.request.reply, response);
                }
                Asker::Read(request) => {
                    let response = self.reads.finished(&request, true, 0, Err(self.reads.closed()));
                    self.wakes.answer(request.reply, response);
                }
                // An asker that is gone wants no answer.
                Asker::Transfer(reply) => drop(reply.send(Err(self.reads.closed()))),
                Asker::Status(reply) => drop(reply.send(Err(self.reads.closed()))),
                Asker::Check(reply) => drop(reply.send(Err(self.reads.closed()))),
                Asker::Recover(reply) => drop(reply.send(Err(Error::Ambiguous { reason: reason.clone() }))),
                Asker::Split(reply) => drop(reply.send(Err(Error::Ambiguous { reason: reason.clone() }))),
                Asker::Merge(reply) => drop(reply.send(Err(Error::Ambiguous { reason: reason.clone() }))),
            }
        }
        self.wakes.flush();
    }
}
