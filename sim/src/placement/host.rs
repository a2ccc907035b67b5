//! A node's home for the placement service: loads it where the system range is led, by a scan of that range, and
//! writes for it, on this node's own replica alone. What is decided is the service's; how it is driven is production's
//! way (the server's placement task), on simulated time.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use flotilla_placement::{Effects, Outcome, Request, Service, WriteId};
use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::{Error, v1};
use v1::request::Body;
use v1::response::Body as Answer;

use super::Placed;
use super::ask::Back;
use super::recovery::UNIX_MS_AT_START;
use crate::clock::{Nanos, ms};
use crate::cluster::Cluster;
use crate::marks::Mark;
use crate::schedule::{Event, Life, ReplyTo};

/// The client that stands for a node's own placement service.
pub(crate) const HOST: usize = usize::MAX - 1;

/// As in production.
const TICK: Nanos = ms(200);
const TIMEOUT_MS: u64 = 5_000;
/// When a request of its own is given up, should no answer come at all.
const PATIENCE: Nanos = ms(5_500);

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    /// The records could not be read or written: once more with the next tick.
    Paused,
    Loading {
        reign: u64,
        records: Vec<(Bytes, Bytes, u64)>,
    },
    Serving {
        service: Box<Service>,
        reign: u64,
        write: Option<WriteId>,
    },
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Host {
    state: State,
    queue: VecDeque<(Request, Back)>,
    waiting: BTreeMap<u64, Back>,
    last_token: u64,
    /// The request to its own range that is under way, since then.
    op: u64,
    asked: Option<Nanos>,
    wake: u64,
}

impl Host {
    /// The service, while it serves.
    pub(crate) fn service(&self) -> Option<&Service> {
        match &self.state {
            State::Serving { service, .. } => Some(service),
            _ => None,
        }
    }
}

impl Cluster {
    fn host(&mut self, index: usize) -> Option<&mut Host> {
        Some(&mut self.nodes[index].process.as_mut()?.host)
    }

    fn host_time(&self, index: usize) -> Duration {
        Duration::from_nanos(self.nodes[index].clock.read(self.now).0)
    }

    /// The time of day that the node's wall clock shows.
    fn wall_ms(&self, index: usize) -> u64 {
        (UNIX_MS_AT_START + self.now / 1_000_000).saturating_add_signed(self.nodes[index].wall_ahead_ms)
    }

    pub(super) fn host_is_asked(&mut self, index: usize, request: Request, back: Back) {
        if let Some(host) = self.host(index) {
            host.queue.push_back((request, back));
            self.look_after_host(index);
        }
    }

    /// Takes the host as far as it goes now.
    pub(crate) fn look_after_host(&mut self, index: usize) {
        if self.real.is_none() || self.is_outcast(index) {
            return;
        }
        loop {
            let reign = self.reign(index);
            let now = self.host_time(index);
            let Some(host) = self.host(index) else { return };
            match (&mut host.state, reign) {
                (State::Idle, None) => return self.refuse_queue(index),
                (State::Idle, Some(reign)) => {
                    host.state = State::Loading { reign, records: Vec::new() };
                    self.scan_records(index, Bytes::new());
                    return self.tick_host(index);
                }
                (State::Paused | State::Loading { .. }, _) => return,
                (State::Serving { service, reign: loaded, .. }, _) => {
                    let effects = service.take_effects();
                    let (stopped, left) = (service.stopped().map(str::to_owned), reign != Some(*loaded));
                    self.carry_out_placement(index, effects);
                    if let Some(why) = stopped {
                        self.trace.say(self.now, || format!("n{}: the placement service stops: {why}", index + 1));
                        self.marks.hit(Mark::ServiceReloaded);
                        self.end_service(index);
                        if let Some(host) = self.host(index) {
                            host.state = State::Paused;
                        }
                    } else if left {
                        self.end_service(index);
                    } else if !self.ask_service(index, now) {
                        return;
                    }
                }
            }
        }
    }

    fn refuse_queue(&mut self, index: usize) {
        let Some(host) = self.host(index) else { return };
        for (_, back) in std::mem::take(&mut host.queue) {
            let reason = "this node does not lead the system range any more".into();
            self.answer(index, back, Err(Error::Unavailable { reason }));
        }
    }

    fn end_service(&mut self, index: usize) {
        let Some(host) = self.host(index) else { return };
        if let State::Serving { service, .. } = std::mem::take(&mut host.state) {
            host.asked = None;
            let effects = service.close();
            self.carry_out_placement(index, effects);
        }
    }

    /// Gives the service one question; false: there is none.
    fn ask_service(&mut self, index: usize, now: Duration) -> bool {
        let Some(host) = self.host(index) else { return false };
        let State::Serving { service, .. } = &mut host.state else { return false };
        let Some((request, back)) = host.queue.pop_front() else { return false };
        host.last_token += 1;
        host.waiting.insert(host.last_token, back);
        service.request(now, host.last_token, request);
        true
    }

    fn carry_out_placement(&mut self, index: usize, effects: Effects) {
        for note in effects.notes {
            let said = [
                ("is given up", Mark::OrderGivenUp),
                ("leaders leave it", Mark::SlowNodeJudged),
                ("leaders return to it", Mark::SlowNodeWell),
            ];
            for (_, mark) in said.into_iter().filter(|(words, _)| note.contains(words)) {
                self.marks.hit(mark);
                if let (Some(real), Mark::SlowNodeJudged | Mark::SlowNodeWell) = (&mut self.real, mark) {
                    real.slow_at = Some(self.now);
                }
            }
            self.trace.say(self.now, || format!("n{} placement: {note}", index + 1));
        }
        for answer in effects.answers {
            let Some(back) = self.host(index).and_then(|host| host.waiting.remove(&answer.token)) else {
                let what = format!("n{}: placement answers token {} twice, or out of nothing", index + 1, answer.token);
                self.check(Err(what));
                continue;
            };
            let verdict = self.real.as_mut().map_or(Ok(()), |real| real.ledger.answered(&answer.result));
            self.check(verdict.map_err(|what| format!("n{}: {what}", index + 1)));
            self.answer(index, back, answer.result);
        }
        for write in effects.writes {
            if let Some(Host { state: State::Serving { write: under_way, .. }, .. }) = self.host(index) {
                *under_way = Some(write.id);
            }
            let batch = v1::BatchRequest {
                header: Some(self.host_header(index)),
                ops: write.request.ops,
                atomic: write.request.atomic,
            };
            self.ask_own_range(index, Body::Write(batch));
        }
    }

    fn host_header(&self, index: usize) -> v1::RequestHeader {
        let view = self.nodes[index].process.as_ref().and_then(|process| process.views.get(&SYSTEM_RANGE));
        let epoch = view.and_then(|view| view.descriptor.epoch);
        v1::RequestHeader { range_id: SYSTEM_RANGE.0, epoch, timeout_ms: TIMEOUT_MS, ..Default::default() }
    }

    fn scan_records(&mut self, index: usize, start: Bytes) {
        let scan = v1::ScanRequest { header: Some(self.host_header(index)), start, ..Default::default() };
        self.ask_own_range(index, Body::Scan(scan));
    }

    fn ask_own_range(&mut self, index: usize, body: Body) {
        let now = self.now;
        let Some(host) = self.host(index) else { return };
        host.op += 1;
        host.asked = Some(now);
        let reply_to = ReplyTo { client: HOST, call: 0, id: host.op };
        self.request(index, reply_to, Box::new(v1::Request { id: reply_to.id, body: Some(body) }));
    }

    /// The system range's replica here has answered.
    pub(crate) fn host_is_answered(&mut self, index: usize, op: u64, body: Option<Answer>) {
        let now = self.host_time(index);
        let Some(host) = self.host(index).filter(|host| host.op == op && host.asked.is_some()) else { return };
        host.asked = None;
        match &mut host.state {
            State::Loading { records, .. } => {
                let Some(Answer::Scan(page)) = body else {
                    host.state = State::Paused;
                    return;
                };
                records.extend(page.records.into_iter().map(|record| (record.key, record.value, record.version)));
                if !page.next_token.is_empty() {
                    return self.scan_records(index, page.next_token);
                }
                self.load_service(index, now);
            }
            State::Serving { service, write, .. } => {
                let Some(id) = write.take() else { return };
                let outcome = match &body {
                    Some(Answer::Write(answer)) => Outcome::of(Some(&answer.results)),
                    _ => Outcome::of(None),
                };
                service.written(now, id, outcome);
                if outcome != Outcome::Applied {
                    let refused = outcome == Outcome::Refused;
                    self.marks.hit(if refused { Mark::ServiceFenced } else { Mark::ServiceWriteUnknown });
                }
            }
            State::Idle | State::Paused => {}
        }
        self.look_after_host(index);
    }

    fn load_service(&mut self, index: usize, now: Duration) {
        let Some(config) = self.real.as_ref().map(|real| real.knobs.config()) else { return };
        let wall_ms = self.wall_ms(index);
        let Some(host) = self.host(index) else { return };
        let State::Loading { reign, records } = std::mem::take(&mut host.state) else { return };
        match Service::load(reign, records, now, config) {
            Ok(mut service) => {
                service.tell_time(now, wall_ms);
                host.state = State::Serving { service: Box::new(service), reign, write: None };
                self.trace.say(self.now, || format!("n{}: the placement service of reign {reign} begins", index + 1));
                self.marks.hit(Mark::ServiceLoaded);
            }
            Err(what) => {
                host.state = State::Paused;
                if !what.contains("has been here") {
                    self.check(Err(format!("n{}: the placement service cannot be loaded: {what}", index + 1)));
                }
            }
        }
    }

    fn tick_host(&mut self, index: usize) {
        let at = self.now + TICK;
        let life = self.nodes[index].life();
        let Some(host) = self.host(index) else { return };
        host.wake += 1;
        let wake = host.wake;
        self.schedule.at(at, Event::Placed(Placed::HostTick(life, wake)));
    }

    pub(super) fn host_ticks(&mut self, life: Life, wake: u64) {
        let index = life.node;
        if !self.lives(life) {
            return;
        }
        let paused = self.nodes[index].paused_until;
        if self.now < paused {
            return self.schedule.at(paused + 1, Event::Placed(Placed::HostTick(life, wake)));
        }
        let (now, true_now, wall_ms) = (self.host_time(index), self.now, self.wall_ms(index));
        let Some(host) = self.host(index).filter(|host| host.wake == wake) else { return };
        if host.asked.is_some_and(|asked| asked + PATIENCE < true_now) {
            let op = host.op;
            return {
                self.host_is_answered(index, op, None);
                self.tick_host(index);
            };
        }
        match &mut host.state {
            State::Idle => return,
            State::Paused => host.state = State::Idle,
            State::Loading { .. } => {}
            State::Serving { service, .. } => {
                service.tell_time(now, wall_ms);
                service.tick(now);
            }
        }
        self.look_after_host(index);
        let idle = self.host(index).is_none_or(|host| matches!(host.state, State::Idle));
        if !idle && self.host(index).is_some_and(|host| host.wake == wake) {
            self.tick_host(index);
        }
    }
}
