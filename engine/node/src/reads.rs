//! Reads, on the caller's thread: no turn of the store's loop, no lock that writers hold.
//!
//! ```text
//! newest view -> admit -> read memory -> newest view -> admit -> answer        (lease, stale)
//!                  |          | not in memory: the same once more on a blocking thread
//!                  | no lease -> loop: barrier -> read -> same epoch -> answer (quorum)
//! ```
//! Why the second look: a lease that ended, or a range that changed, between the first look and the
//! read would let the read miss a write that another replica has acknowledged; and a replica that went, and came again,
//! was empty in between.

use std::sync::Arc;

use flotilla_engine::admission;
use flotilla_engine::config::ReadMode;
use flotilla_engine::read::{self, Admission, ReadRequest};
use flotilla_engine::storage::Read;
use flotilla_engine::store::{Input, ReadView};
use flotilla_proto::{Error, RangeId, v1};
use tokio::runtime::Handle;

use crate::clock;
use crate::counters::Counters;
use crate::disk::{CachedRead, LocalStorage};
use crate::failure::{Failure, abort_on_panic};
use crate::inbox::{Inbox, Item, Refused, Request};
use crate::replies::Wakes;
use crate::requests::{self, Answerer};
use crate::slow::{self, SlowLog};
use crate::views::Views;

/// A multi-get of more keys than this goes to a blocking thread at once.
const INLINE_KEYS_MAX: usize = 64;

/// The read path. Clones share it.
#[derive(Debug)]
pub(crate) struct Reads<S> {
    pub storage: S,
    pub views: Arc<Views>,
    pub inbox: Arc<Inbox>,
    pub counters: Arc<Counters>,
    pub failure: Arc<Failure>,
    pub runtime: Handle,
    pub mode: ReadMode,
    pub answerer: Answerer,
    pub slow: SlowLog,
}

/// How far a read has come.
enum Attempt {
    Done { term: u64, result: Result<v1::response::Body, Error> },
    NeedsBarrier,
    NeedsDisk,
}

impl Attempt {
    fn refused(error: Error) -> Self {
        Self::Done { term: 0, result: Err(error) }
    }
}

fn inline(request: &ReadRequest<'_>) -> bool {
    match request {
        ReadRequest::Get(_) => true,
        ReadRequest::MultiGet(multi) => multi.keys.len() <= INLINE_KEYS_MAX,
        ReadRequest::Scan(_) => false,
    }
}

/// Counts a read as load of its range, if this replica leads it.
fn count(view: &ReadView, read: ReadRequest<'_>, result: &Result<v1::response::Body, Error>) {
    let (Some(tally), Ok(body)) = (&view.tally, result) else { return };
    let (reads, bytes) = read::cost(read, body);
    tally.read(reads, bytes, || read::asked(read));
}

impl<S: LocalStorage> Reads<S> {
    /// Answers a read, now if memory and lease allow, otherwise later.
    pub fn start(self: &Arc<Self>, request: Box<Request>, wakes: &mut Wakes) {
        match self.try_memory(&request) {
            Attempt::Done { term, result } => {
                let response = self.finished(&request, false, term, result);
                wakes.answer(request.reply, response);
            }
            Attempt::NeedsBarrier => self.ask_barrier(request),
            Attempt::NeedsDisk => self.on_blocking_thread(move |reads| reads.with_disk(request)),
        }
    }

    fn try_memory(&self, request: &Request) -> Attempt {
        let Some(read) = requests::read_of(&request.body) else {
            return Attempt::refused(Error::invalid("a write came to the read path", "this is a bug; report it"));
        };
        if !inline(&read) {
            return Attempt::NeedsDisk;
        }
        let memory = CachedRead::new(&self.storage);
        let attempt = self.attempt(&request.header, &memory, read);
        match attempt {
            Attempt::Done { result: Err(_), .. } if memory.needs_disk() => Attempt::NeedsDisk,
            attempt => attempt,
        }
    }

    fn with_disk(self: &Arc<Self>, request: Box<Request>) {
        let Some(read) = requests::read_of(&request.body) else { return };
        match self.attempt(&request.header, &self.storage, read) {
            Attempt::Done { term, result } => {
                let response = self.finished(&request, false, term, result);
                request.reply.now(response);
            }
            Attempt::NeedsBarrier | Attempt::NeedsDisk => self.ask_barrier(request),
        }
    }

    fn attempt<R: Read>(&self, header: &v1::RequestHeader, storage: &R, read: ReadRequest<'_>) -> Attempt {
        if let Some(reason) = self.failure.is_set().then(|| self.failure.reason()).flatten() {
            return Attempt::refused(Error::Unavailable { reason });
        }
        let range = RangeId(header.range_id);
        let Some(view) = self.views.get(range) else {
            return Attempt::refused(Error::RangeNotFound { range });
        };
        match read::admit(&view, clock::now(), self.mode, header) {
            Admission::Read => {}
            Admission::Barrier => return Attempt::NeedsBarrier,
            Admission::Refused(error) => {
                if view.asleep && matches!(error, Error::NotLeader { .. }) {
                    // If nobody leads it, it is time to. One that is awake sees to it by itself.
                    self.inbox.input(Input::Wanted { range });
                }
                return Attempt::refused(error);
            }
        }
        if header.consistency() != v1::ReadConsistency::Stale {
            self.views.note_read(range);
        }
        let result = read::execute(storage, &view.descriptor, view.clock.read(clock::now()), read);
        let incarnation = view.incarnation;
        drop(view);
        let Some(view) = self.views.get(range) else {
            return Attempt::refused(Error::RangeNotFound { range });
        };
        if view.incarnation != incarnation {
            // Another replica of the range, or other data: in between there was nothing.
            return Attempt::refused(Error::RangeNotFound { range });
        }
        match read::admit(&view, clock::now(), self.mode, header) {
            Admission::Read => {
                count(&view, read, &result);
                Attempt::Done { term: view.term, result }
            }
            Admission::Barrier => Attempt::NeedsBarrier,
            Admission::Refused(error) => Attempt::refused(error),
        }
    }

    fn ask_barrier(&self, request: Box<Request>) {
        self.inbox.requests([(request.bytes, Item::Barrier(request))], |refused| self.refuse(refused));
    }

    /// Answers a request that the inbox did not take.
    pub fn refuse(&self, refused: Refused) {
        let overloaded = matches!(refused, Refused::Full(_) | Refused::Busy(_, admission::Refused::Busy));
        let (item, error) = match refused {
            Refused::Full(item) => {
                self.counters.inbox_full.add(1);
                let reason = "more requests wait than the node accepts".into();
                (item, Error::ServerBusy { reason, retry_after_ms: 50 })
            }
            Refused::Busy(item, why) => {
                self.counters.writes_shed.add(1);
                let reason = match why {
                    admission::Refused::Busy => "more writes are under way than the node gets done in a short time",
                    admission::Refused::TooLate => "the writes under way take longer than the caller waits",
                };
                (item, Error::ServerBusy { reason: reason.into(), retry_after_ms: 50 })
            }
            Refused::Closed(item) => (item, self.closed()),
        };
        let request = match item {
            Item::Write(request) => {
                self.counters.writes.add(1);
                self.counters.writes_refused.add(1);
                request
            }
            Item::Barrier(request) => {
                self.counters.reads_refused.add(1);
                request
            }
            Item::Transfer { reply, .. } => return drop(reply.send(Err(error))),
            Item::Status { reply, .. } => return drop(reply.send(Err(error))),
            Item::Split { reply, .. } => return drop(reply.send(Err(error))),
            Item::Merge { reply, .. } => return drop(reply.send(Err(error))),
            Item::Check { reply, .. } => return drop(reply.send(Err(error))),
            Item::Recover { reply, .. } => return drop(reply.send(Err(error))),
            // Without an answer the asker knows that the loop has ended.
            Item::Changes { reply, .. } => return drop(reply),
            Item::Offer { reply, .. } => return drop(reply),
            Item::Input(_) | Item::Frame(_) | Item::Snapshot(..) | Item::Stop | Item::Halt => return,
        };
        let error = v1::Error { overloaded, ..(&error).into() };
        request.reply.now(v1::Response { id: request.id, body: Some(v1::response::Body::Error(error)) });
    }

    /// What to say when the loop has ended.
    pub fn closed(&self) -> Error {
        Error::Unavailable { reason: self.failure.reason().unwrap_or_else(|| "the node is stopping".into()) }
    }

    /// Goes on with reads whose barrier has been passed. Called by the loop: reads nothing here.
    pub fn after_barriers(self: &Arc<Self>, passed: Vec<(Box<Request>, Arc<ReadView>)>) {
        if passed.is_empty() {
            return;
        }
        let reads = Arc::clone(self);
        self.runtime.spawn(async move {
            abort_on_panic("a read after its barrier", || {
                let mut wakes = Wakes::default();
                for (request, view) in passed {
                    reads.after_barrier(request, view, &mut wakes);
                }
                wakes.flush();
            });
        });
    }

    fn after_barrier(self: &Arc<Self>, request: Box<Request>, view: Arc<ReadView>, wakes: &mut Wakes) {
        let Some(read) = requests::read_of(&request.body) else { return };
        if inline(&read) {
            let memory = CachedRead::new(&self.storage);
            let result = read::execute(&memory, &view.descriptor, view.clock.read(clock::now()), read);
            if !memory.needs_disk() {
                let response = self.confirmed(&request, &view, result);
                return wakes.answer(request.reply, response);
            }
        }
        self.on_blocking_thread(move |reads| {
            let Some(read) = requests::read_of(&request.body) else { return };
            let result = read::execute(&reads.storage, &view.descriptor, view.clock.read(clock::now()), read);
            let response = reads.confirmed(&request, &view, result);
            request.reply.now(response);
        });
    }

    /// The answer of a read after its barrier, if the range is still what it was.
    fn confirmed(&self, request: &Request, view: &ReadView, result: Result<v1::response::Body, Error>) -> v1::Response {
        let range = RangeId(request.header.range_id);
        if let Some(read) = requests::read_of(&request.body) {
            count(view, read, &result);
        }
        let unchanged = match self.views.get(range) {
            Some(newest) => read::check_same(view, &newest),
            None => Err(Error::RangeNotFound { range }),
        };
        self.finished(request, true, view.term, unchanged.and(result))
    }

    fn on_blocking_thread(self: &Arc<Self>, job: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let reads = Arc::clone(self);
        self.runtime.spawn_blocking(move || abort_on_panic("a read", || job(&reads)));
    }

    /// Counts a read that is done, and makes its answer.
    pub fn finished(
        &self,
        request: &Request,
        quorum: bool,
        term: u64,
        result: Result<v1::response::Body, Error>,
    ) -> v1::Response {
        let now = clock::now();
        let took = now.since(request.arrived);
        let stale = request.header.consistency() == v1::ReadConsistency::Stale;
        match (&result, quorum, stale) {
            (Err(_), ..) => self.counters.reads_refused.add(1),
            (Ok(_), true, _) => self.counters.reads_quorum.add(1),
            (Ok(_), false, true) => self.counters.reads_stale.add(1),
            (Ok(_), false, false) => self.counters.reads_lease.add(1),
        }
        let histogram = if quorum { &self.counters.read_quorum } else { &self.counters.read_local };
        histogram.record(took);
        if self.slow.is_slow(took) {
            self.counters.slow_requests.add(1);
            if self.slow.has_room(now) {
                slow::read(request, took, quorum, result.as_ref().err());
            }
        }
        if let Err(Error::Corruption { what }) = &result {
            // Whatever could not be read: this replica has nothing to say any more.
            self.storage.note_damage(what);
        }
        match result {
            Ok(body) => self.answerer.read(request.id, &request.header, term, body),
            Err(error) => requests::refusal(request.id, &error),
        }
    }
}
