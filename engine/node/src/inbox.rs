//! The inbox of the store's loop: whatever any thread has for it.
//!
//! One lock, held for a push or for the swap of the whole queue. The loop takes all that is there in
//! each turn, so what comes while it works is batched by itself; it is woken only when it sleeps.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flotilla_engine::admission::{self, Admission};
use flotilla_engine::store::{Changes, CheckStarted, Envelope, Input, MergeAnswer, Recovered, SplitAnswer, SplitAt};
use flotilla_engine::time::BootTime;
use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::{Error, NodeId, RangeId, v1};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::clock;
use crate::replies::Reply;
use crate::transport::bulk_in::SnapshotSlot;

/// Something for the loop.
#[derive(Debug)]
pub(crate) enum Item {
    /// For the store, as it is.
    Input(Box<Input>),
    /// A frame of messages from another node.
    Frame(Frame),
    /// A snapshot of which the header alone has come: is the rest to be taken?
    Offer { envelope: Box<Envelope>, reply: oneshot::Sender<Result<(), String>> },
    /// A snapshot from another node, with its place among those that come at once.
    Snapshot(Box<Envelope>, SnapshotSlot),
    /// A client's write.
    Write(Box<Request>),
    /// A client's read that found no lease.
    Barrier(Box<Request>),
    /// An order to hand a range over.
    Transfer { range: RangeId, to: NodeId, deadline: BootTime, reply: oneshot::Sender<Result<(NodeId, u64), Error>> },
    /// A question for a replica's state.
    Status { range: RangeId, reply: oneshot::Sender<Result<v1::GetRangeResponse, Error>> },
    /// An order to split a range.
    Split { range: RangeId, at: SplitAt, deadline: BootTime, reply: oneshot::Sender<SplitAnswer> },
    /// An order to merge a range into its left neighbour.
    Merge { range: RangeId, target: RangeId, deadline: BootTime, reply: oneshot::Sender<MergeAnswer> },
    /// An order to check a range.
    Check { range: RangeId, deadline: BootTime, reply: oneshot::Sender<Result<CheckStarted, Error>> },
    /// An order to go on with one replica of a range.
    Recover { order: Box<v1::RecoverReplica>, reply: oneshot::Sender<Result<Recovered, Error>> },
    /// A question for the state of the replicas that may have changed, or of all.
    Changes { all: bool, reply: oneshot::Sender<Changes> },
    /// Hand leaders over, answer what is under way, then end.
    Stop,
    /// End at once.
    Halt,
}

/// Messages from an authenticated node.
#[derive(Debug)]
pub(crate) struct Frame {
    pub from: NodeId,
    pub batch: v1::PeerBatch,
    /// Its share of the memory for frames that the loop has not taken; given back on drop.
    pub memory: OwnedSemaphorePermit,
}

/// A client's request on its way through the loop.
#[derive(Debug)]
pub(crate) struct Request {
    pub id: u64,
    pub header: v1::RequestHeader,
    pub body: v1::request::Body,
    pub arrived: BootTime,
    pub deadline: BootTime,
    pub bytes: usize,
    pub reply: Reply,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    wake: Condvar,
    request_bytes_max: usize,
}

#[derive(Debug, Default)]
struct State {
    items: Vec<Item>,
    /// Bytes of clients' requests in `items`.
    request_bytes: usize,
    admission: Admission,
    waiting: bool,
    closed: bool,
}

/// Whether a write counts among those of clients: placement must be able to write while they fill the node.
fn of_client(request: &Request) -> bool {
    request.header.range_id != SYSTEM_RANGE.0
}

impl State {
    fn admit(&mut self, item: &Item) -> Result<(), admission::Refused> {
        match item {
            Item::Write(write) if of_client(write) => {
                self.admission.admit(write.arrived, admission::units(write.bytes), write.deadline)
            }
            _ => Ok(()),
        }
    }
}

impl Request {
    /// What it counts for among the writes of clients.
    pub fn units(&self) -> u64 {
        if of_client(self) { admission::units(self.bytes) } else { 0 }
    }
}

/// Why a request was not taken; it comes back.
#[derive(Debug)]
pub(crate) enum Refused {
    Full(Item),
    /// More than the node gets done in time.
    Busy(Item, admission::Refused),
    Closed(Item),
}

impl Inbox {
    /// An empty one that takes so many bytes of clients' requests.
    pub fn new(request_bytes_max: usize) -> Self {
        Self { state: Mutex::default(), wake: Condvar::new(), request_bytes_max }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing below panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_if(&self, mut state: MutexGuard<'_, State>) {
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        if waiting {
            self.wake.notify_one();
        }
    }

    /// Adds what is not a client's. After the loop's end it goes nowhere.
    pub fn push(&self, item: Item) {
        let mut state = self.lock();
        if !state.closed {
            state.items.push(item);
            self.wake_if(state);
        }
    }

    /// Adds an input for the store.
    pub fn input(&self, input: Input) {
        self.push(Item::Input(Box::new(input)));
    }

    /// Adds requests under one lock; those that do not fit are given to `refused`.
    pub fn requests(&self, items: impl IntoIterator<Item = (usize, Item)>, mut refused: impl FnMut(Refused)) {
        let mut over = Vec::new();
        let mut state = self.lock();
        for (bytes, item) in items {
            if state.closed {
                over.push(Refused::Closed(item));
            } else if state.request_bytes + bytes > self.request_bytes_max {
                over.push(Refused::Full(item));
            } else if let Err(why) = state.admit(&item) {
                over.push(Refused::Busy(item, why));
            } else {
                state.request_bytes += bytes;
                state.items.push(item);
            }
        }
        self.wake_if(state);
        over.into_iter().for_each(&mut refused);
    }

    /// Client writes were answered: when each came, its units, and whether it was carried out.
    pub fn answered(&self, writes: &[(BootTime, u64, bool)]) {
        let now = clock::now();
        let mut state = self.lock();
        for (came, units, done) in writes {
            match done {
                true => state.admission.done(now, *came, *units),
                false => state.admission.left(*came, *units),
            }
        }
    }

    /// Takes everything into the empty `into`; waits for something at most so long.
    pub fn take(&self, into: &mut Vec<Item>, patience: Duration) {
        let mut state = self.lock();
        if state.items.is_empty() && !patience.is_zero() {
            state.waiting = true;
            // Waking for nothing is harmless: the turn then finds nothing to do.
            (state, _) = self.wake.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner);
            state.waiting = false;
        }
        state.request_bytes = 0;
        std::mem::swap(&mut state.items, into);
    }

    /// Wakes the loop, so that it looks whether it is to end.
    pub fn nudge(&self) {
        self.wake_if(self.lock());
    }

    /// Whether it takes nothing any more: the node stops.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Takes nothing any more, and hands over what is left.
    pub fn close(&self) -> Vec<Item> {
        let mut state = self.lock();
        state.closed = true;
        std::mem::take(&mut state.items)
    }
}
