//! Clients: each has a route cache and at most one call of the router's pure core under way.
//!
//! A client draws its requests from the seed, works a script off, or is a probe that writes to one
//! range until it succeeds. Everything between question and answer is the router's own code.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use flotilla_proto::ids::DEFAULT_KEYSPACE;
use flotilla_proto::{Error, KeyspaceId, NodeId, RangeId, v1};
use flotilla_router::core::{Call, CallOutcome, RouteCache, Step};
use v1::request::Body;
use v1::response::Body as Answer;

use crate::clock::{ms, us};
use crate::cluster::Cluster;
use crate::marks::Mark;
use crate::node::{id_of, index_of};
use crate::ops::{Asker, Keys};
use crate::recorder::Recorded;
use crate::rng::Rng;
use crate::schedule::{Event, ReplyTo};
use crate::spans::Deleting;

/// What a client does when it has nothing under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Asks at random.
    Random,
    /// Asks what its script says, then nothing.
    Script,
    /// Writes to one range until that has worked once.
    Probe(RangeId, Bytes),
}

/// See the module.
pub(crate) struct Client {
    pub mode: Mode,
    pub keyspace: KeyspaceId,
    pub script: VecDeque<Body>,
    pub asker: Asker,
    /// What came of the script's requests.
    pub answers: Vec<Result<Answer, Error>>,
    /// The next page of a scan.
    next_page: Option<v1::ScanRequest>,
    /// A delete of a span under way, and the next part of one that was cut short.
    pub deleting: Option<Deleting>,
    pub next_part: Option<v1::DeleteRangeRequest>,
    cache: RouteCache,
    active: Option<Active>,
    calls: u64,
    wake: u64,
    rng: Rng,
}

struct Active {
    call: Call,
    recorded: Recorded,
}

impl Client {
    pub(crate) fn is_idle(&self) -> bool {
        self.active.is_none() && self.deleting.is_none() && self.script.is_empty() && self.mode != Mode::Random
    }

    /// Whether what was cut short is gone on with.
    pub(crate) fn goes_on(&mut self) -> bool {
        self.rng.chance(500)
    }

    /// How long to wait before the next request.
    pub(crate) fn pause(&mut self, mean: u64) -> u64 {
        self.rng.delay(mean)
    }
}

impl Cluster {
    pub(crate) fn add_clients(&mut self) {
        let keys = Keys::draw(&self.knobs);
        let known = self.recorder.keys.entry(DEFAULT_KEYSPACE).or_default();
        known.extend(keys.hot.iter().chain(&keys.cold).cloned());
        known.extend(keys.pairs.iter().flat_map(|(first, second)| [first.clone(), second.clone()]));
        self.recorder.pairs.clone_from(&keys.pairs);
        self.keys = keys;
        for _ in 0..self.knobs.clients {
            let client = self.add_client(Mode::Random);
            let at = self.rng.below(ms(500));
            self.schedule.at(at, Event::ClientWake { client, wake: 0 });
        }
    }

    /// A new client; it begins when it is woken.
    pub(crate) fn add_client(&mut self, mode: Mode) -> usize {
        self.add_client_of(DEFAULT_KEYSPACE, mode)
    }

    /// A new client of some keyspace.
    pub(crate) fn add_client_of(&mut self, keyspace: KeyspaceId, mode: Mode) -> usize {
        let number = self.clients.len() as u64;
        let mut rng = Rng::new(self.knobs.seed, 2_000 + number);
        // Some clients live in a node, others outside.
        let local = rng.chance(500).then(|| id_of(rng.index(self.knobs.nodes)));
        self.clients.push(Client {
            mode,
            keyspace,
            script: VecDeque::new(),
            asker: Asker::new(number, &self.knobs),
            answers: Vec::new(),
            next_page: None,
            deleting: None,
            next_part: None,
            cache: RouteCache::new(keyspace, local),
            active: None,
            calls: 0,
            wake: 0,
            rng,
        });
        self.clients.len() - 1
    }

    pub(crate) fn client_wake(&mut self, client: usize, wake: u64) {
        if self.clients[client].wake == wake {
            self.drive(client);
        }
    }

    /// Wakes a client that may have nothing else to wake it.
    pub(crate) fn nudge(&mut self, client: usize) {
        self.wake_client_at(client, self.now);
    }

    pub(crate) fn wake_client_at(&mut self, client: usize, at: u64) {
        let of = &mut self.clients[client];
        of.wake += 1;
        let wake = of.wake;
        self.schedule.at(at.max(self.now), Event::ClientWake { client, wake });
    }

    pub(crate) fn time(&self) -> Duration {
        Duration::from_nanos(self.now)
    }

    /// Takes the call under way as far as it goes now, or begins the next one.
    fn drive(&mut self, client: usize) {
        if self.clients[client].active.is_none() && !self.begin_call(client) {
            return;
        }
        let now = self.time();
        loop {
            let of = &mut self.clients[client];
            let Some(active) = &mut of.active else { return };
            match active.call.next(now, &of.cache, of.rng.next()) {
                Step::Send { node, request } => self.send_request(client, node, request),
                Step::RefreshRoutes(_) => self.ask_routes(client),
                Step::WaitUntil(at) => {
                    let at = crate::clock::nanos(at);
                    return self.wake_client_at(client, at);
                }
                Step::Done(answer) => return self.call_done(client, answer),
            }
        }
    }

    fn begin_call(&mut self, client: usize) -> bool {
        if self.clients[client].deleting.is_none() {
            self.draw_delete(client);
        }
        if self.clients[client].deleting.is_some() {
            let Some((body, timeout_ms)) = self.next_of_delete(client) else { return false };
            let recorded = self.recorder.begin(client as u64, DEFAULT_KEYSPACE, self.now, &body);
            self.call(client, body, timeout_ms, recorded);
            return true;
        }
        let bound_ms = (10 * self.knobs.election_timeout_max()).div_ceil(1_000_000);
        // Clients outlive their keyspaces a little.
        let healed = self.ending.is_healed() || self.keys_of(self.clients[client].keyspace).is_none();
        let keys = self.keys_of(self.clients[client].keyspace).cloned().unwrap_or_default();
        let of = &mut self.clients[client];
        let (body, timeout_ms) = match &of.mode {
            Mode::Random if healed => {
                of.mode = Mode::Script;
                return false;
            }
            Mode::Random => {
                let timeout_ms = of.asker.timeout_ms();
                let next_page = of.next_page.take().filter(|_| of.rng.chance(700));
                if next_page.is_some() {
                    self.marks.hit(Mark::ScanResumed);
                }
                (next_page.map_or_else(|| of.asker.draw(&keys), Body::Scan), timeout_ms)
            }
            Mode::Script => match of.script.pop_front() {
                Some(body) => (body, bound_ms.min(20_000)),
                None => return false,
            },
            Mode::Probe(_, key) => {
                let put = v1::Put { key: key.clone(), value: of.asker.value(), if_absent: false, ttl_ms: 0 };
                let op = v1::WriteOp { op: Some(v1::write_op::Op::Put(put)) };
                (Body::Write(v1::BatchRequest { header: None, ops: vec![op], atomic: false }), 2_000)
            }
        };
        let keyspace = of.keyspace;
        let recorded = self.recorder.begin(client as u64, keyspace, self.now, &body);
        self.call(client, body, timeout_ms, recorded);
        true
    }

    fn call(&mut self, client: usize, body: Body, timeout_ms: u64, recorded: Recorded) {
        let now = self.time();
        let of = &mut self.clients[client];
        of.calls += 1;
        of.active = Some(Active { call: Call::new(body, now, now + Duration::from_millis(timeout_ms)), recorded });
    }

    fn draw_delete(&mut self, client: usize) {
        let healed = self.ending.is_healed();
        let of = &mut self.clients[client];
        if of.mode != Mode::Random || healed || of.keyspace != DEFAULT_KEYSPACE {
            return;
        }
        if let Some(request) = of.next_part.take().or_else(|| of.asker.draw_delete(&self.keys)) {
            self.begin_delete(client, request);
        }
    }

    fn send_request(&mut self, client: usize, node: NodeId, request: v1::Request) {
        let reply_to = ReplyTo { client, call: self.clients[client].calls, id: request.id };
        let at = self.now + self.network.client_delay();
        self.schedule.at(at, Event::Request { node: index_of(node), reply_to, request: Box::new(request) });
    }

    /// Asks any node for its ranges.
    fn ask_routes(&mut self, client: usize) {
        self.marks.hit(Mark::RouteRefresh);
        let known: Vec<usize> = (0..self.nodes.len()).filter(|index| self.has_disk(*index)).collect();
        let of = &mut self.clients[client];
        let call = of.calls;
        let local = of.cache.local().map(index_of).filter(|local| known.contains(local));
        let node = match local {
            Some(local) if of.rng.chance(700) => local,
            _ => of.rng.pick(&known),
        };
        let reachable = self.nodes[node].clients_cut == 0 && self.nodes[node].paused_until <= self.now;
        let process = self.nodes[node].process.as_ref().filter(|_| reachable);
        let routes = match process {
            Some(process) => Ok(Box::new(process.routes())),
            None => Err(Error::Unavailable { reason: "no answer".into() }),
        };
        self.trace.say(self.now, || format!("client {client} asks n{} for routes: {}", node + 1, routes.is_ok()));
        let at = self.now + self.network.client_delay() + self.network.client_delay();
        self.schedule.at(at, Event::Routes { client, call, routes });
    }

    pub(crate) fn client_routes(
        &mut self,
        client: usize,
        call: u64,
        routes: Result<Box<v1::ListRangesResponse>, Error>,
    ) {
        let now = self.time();
        let of = &mut self.clients[client];
        if let Ok(routes) = &routes {
            of.cache.merge_all(routes);
        }
        let rand = of.rng.next();
        if let Some(active) = of.active.as_mut().filter(|_| of.calls == call) {
            active.call.on_routes(now, rand, routes.map(|_| ()));
            self.drive(client);
        }
    }

    pub(crate) fn client_outcome(&mut self, reply_to: ReplyTo, outcome: CallOutcome) {
        let now = self.time();
        let ReplyTo { client, call, id } = reply_to;
        let kind = matches!(outcome, CallOutcome::Response(_));
        self.trace.note(self.now, "outcome", &[client as u64, call, id, u64::from(kind)]);
        let Some(of) = self.clients.get_mut(client) else {
            self.direct.insert(id, outcome);
            return;
        };
        let rand = of.rng.next();
        if let Some(active) = of.active.as_mut().filter(|_| of.calls == call) {
            active.call.on_outcome(now, &mut of.cache, rand, id, outcome);
            self.drive(client);
        }
    }

    fn call_done(&mut self, client: usize, answer: Result<Answer, Error>) {
        let of = &mut self.clients[client];
        let Some(active) = of.active.take() else { return };
        self.trace.note(self.now, "done", &[client as u64, of.calls, u64::from(answer.is_ok())]);
        self.trace.say(self.now, || format!("client {client}: {answer:?}"));
        if let Some(deleting) = &mut of.deleting {
            let verdict = self.recorder.finish(self.now, &active.recorded, &answer).map(|_| ());
            deleting.on_answer(Duration::from_nanos(self.now), of.rng.next(), answer);
            self.check(verdict.map_err(|what| format!("I12: {what}")));
            return self.wake_client_at(client, self.now);
        }
        if let Ok(Answer::Scan(page)) = &answer {
            of.next_page = active.recorded.next_scan(page);
        }
        let verdict = match self.recorder.finish(self.now, &active.recorded, &answer) {
            Ok(seen) => {
                of.asker.seen.extend(seen);
                Ok(())
            }
            Err(what) => Err(format!("I12: {what}")),
        };
        if answer.as_ref().is_err_and(|error| matches!(error, Error::Ambiguous { .. })) {
            self.marks.hit(Mark::ClientUnknown);
        }
        let pause = match &of.mode {
            Mode::Random => of.rng.delay(self.knobs.think),
            Mode::Script => {
                of.answers.push(answer);
                us(10)
            }
            Mode::Probe(range, _) => {
                if answer.is_ok() {
                    let range = *range;
                    of.mode = Mode::Script;
                    self.ending.recovered(range, self.now);
                }
                ms(20)
            }
        };
        self.check(verdict);
        self.wake_client_at(client, self.now + pause);
    }
}
