//! A node's door: requests of clients go to the store, reads to the disk, answers back.
//!
//! Reads follow the protocol of `flotilla_engine::read`: admitted by the newest view, carried out, and
//! admitted again by the then newest view at the then newest time; without a lease, behind a barrier.
//! Between the two checks time passes, and the node may stand still or lose its lease.

use std::sync::Arc;
use std::time::Duration;

use flotilla_engine::read::{self, Admission, ReadRequest};
use flotilla_engine::store::{Input, ReadBarrier, ReadView, Token, Write, WriteAnswer};
use flotilla_proto::{Error, RangeId, v1};
use flotilla_router::core::CallOutcome;
use v1::request::Body;
use v1::response::Body as Answer;

use crate::clock::{ms, us};
use crate::cluster::Cluster;
use crate::marks::Mark;
use crate::node::{Pending, id_of};
use crate::placement::HOST;
use crate::schedule::{Event, Inner, ReplyTo};

/// The header of a request.
pub(crate) fn header_of(request: &v1::Request) -> v1::RequestHeader {
    let header = match &request.body {
        Some(Body::Get(get)) => get.header.as_ref(),
        Some(Body::MultiGet(get)) => get.header.as_ref(),
        Some(Body::Write(batch)) => batch.header.as_ref(),
        Some(Body::Scan(scan)) => scan.header.as_ref(),
        None => None,
    };
    header.cloned().unwrap_or_default()
}

/// The range that a request is for.
pub(crate) fn range_of(request: &v1::Request) -> RangeId {
    RangeId(header_of(request).range_id)
}

impl Cluster {
    /// A client's request arrives at a node.
    pub(crate) fn request(&mut self, index: usize, reply_to: ReplyTo, request: Box<v1::Request>) {
        let node = &mut self.nodes[index];
        if self.now < node.paused_until {
            let at = node.paused_until + us(1);
            return self.schedule.at(at, Event::Request { node: index, reply_to, request });
        }
        let own = reply_to.client == HOST;
        // Whoever was given up is reached by nobody, as a person has promised. Once it has ended, nobody listens there:
        // a client learns that nothing was sent, and looks elsewhere (seed 2254).
        let unreached = node.is_up() && self.invariants.is_outcast(index);
        if (node.clients_cut > 0 || unreached) && !own {
            return self.outcome_after(ms(400), reply_to, CallOutcome::Broken("the connection broke".into()));
        }
        let now = node.clock.read(self.now);
        let Some(process) = &mut node.process else {
            return self.outcome_after(us(200), reply_to, CallOutcome::NotSent("connection refused".into()));
        };
        let header = header_of(&request);
        let deadline = now + Duration::from_millis(header.timeout_ms);
        let body = request.body.clone();
        let turn = process.turns;
        let token = process.pend(Pending { reply_to, request: *request, deadline, turn, answer: None });
        self.trace.note(self.now, "request", &[index as u64 + 1, header.range_id, token.0]);
        match body {
            Some(Body::Write(batch)) => {
                let write = Write {
                    token,
                    range: RangeId(header.range_id),
                    epoch: header.epoch.unwrap_or_default(),
                    request: v1::WriteRequest { ops: batch.ops, atomic: batch.atomic },
                    deadline,
                };
                self.give(index, Input::Write(write));
            }
            Some(_) => self.begin_read(index, token),
            None => self.respond(index, token, Err(Error::invalid("a request without a body", "send one"))),
        }
    }

    fn admit(&self, index: usize, token: Token) -> Option<(Admission, Arc<ReadView>)> {
        let node = &self.nodes[index];
        let process = node.process.as_ref()?;
        let header = header_of(&process.pending.get(&token)?.request);
        let view = process.views.get(&RangeId(header.range_id))?.clone();
        let admission = read::admit(&view, node.clock.read(self.now), self.knobs.config.read_mode, &header);
        Some((admission, view))
    }

    fn begin_read(&mut self, index: usize, token: Token) {
        let Some((admission, view)) = self.admit(index, token) else {
            self.marks.hit(Mark::RangeMissing);
            return self.respond(index, token, Err(self.no_range(index, token)));
        };
        match admission {
            Admission::Refused(error) => {
                if view.asleep && matches!(error, Error::NotLeader { .. }) {
                    self.give(index, Input::Wanted { range: view.range() });
                }
                self.respond(index, token, Err(error));
            }
            Admission::Barrier => self.ask_barrier(index, token),
            Admission::Read => {
                let answer = self.execute(index, token, &view);
                let life = self.nodes[index].life();
                let Some(process) = &mut self.nodes[index].process else { return };
                if let (Ok(answer), Some(pending)) = (&answer, process.pending.get_mut(&token)) {
                    pending.answer = Some(answer.clone());
                    let at = self.now + self.rng.delay(self.knobs.read_delay);
                    self.schedule.at(at, Event::Inner(life, Inner::ReadAgain(token)));
                } else {
                    self.respond(index, token, answer);
                }
            }
        }
    }

    /// The second check of a read.
    pub(crate) fn read_again(&mut self, index: usize, token: Token) {
        let Some((admission, _)) = self.admit(index, token) else {
            return self.respond(index, token, Err(self.no_range(index, token)));
        };
        let Some(process) = &mut self.nodes[index].process else { return };
        let Some(pending) = process.pending.get_mut(&token) else { return };
        let answer = pending.answer.take();
        let stale = header_of(&pending.request).consistency() == v1::ReadConsistency::Stale;
        match (admission, answer) {
            (Admission::Read, Some(answer)) => {
                if !stale {
                    self.marks.hit(Mark::LeaseRead);
                }
                self.respond(index, token, Ok(answer));
            }
            _ => {
                self.marks.hit(Mark::LeaseLost);
                self.ask_barrier(index, token);
            }
        }
    }

    fn ask_barrier(&mut self, index: usize, token: Token) {
        let Some(process) = &mut self.nodes[index].process else { return };
        let Some(pending) = process.pending.get(&token) else { return };
        let header = header_of(&pending.request);
        let barrier = ReadBarrier {
            token,
            range: RangeId(header.range_id),
            epoch: header.epoch.unwrap_or_default(),
            deadline: pending.deadline,
        };
        self.give(index, Input::ReadBarrier(barrier));
    }

    /// A barrier was answered: read, then look whether the range is still the same.
    pub(crate) fn barrier_done(&mut self, index: usize, token: Token, answer: Result<Arc<ReadView>, Error>) {
        let done = answer.and_then(|view| {
            let answer = self.execute(index, token, &view)?;
            let newest = self.nodes[index].process.as_ref().and_then(|process| process.views.get(&view.range()));
            let newest = newest.ok_or(Error::RangeNotFound { range: view.range() })?;
            read::check_same(&view, newest)?;
            Ok(answer)
        });
        self.respond(index, token, done);
    }

    fn execute(&self, index: usize, token: Token, view: &ReadView) -> Result<Answer, Error> {
        let node = &self.nodes[index];
        let pending = node.process.as_ref().and_then(|process| process.pending.get(&token));
        let request = match pending.and_then(|pending| pending.request.body.as_ref()) {
            Some(Body::Get(get)) => ReadRequest::Get(get),
            Some(Body::MultiGet(get)) => ReadRequest::MultiGet(get),
            Some(Body::Scan(scan)) => ReadRequest::Scan(scan),
            _ => return Err(Error::Unavailable { reason: "the request is gone".into() }),
        };
        read::execute(&node.disk, &view.descriptor, view.clock.read(node.clock.read(self.now)), request)
    }

    fn no_range(&self, index: usize, token: Token) -> Error {
        let pending = self.nodes[index].process.as_ref().and_then(|process| process.pending.get(&token));
        Error::RangeNotFound { range: pending.map_or(RangeId(0), |pending| range_of(&pending.request)) }
    }

    /// The store has decided about a write.
    pub(crate) fn write_done(&mut self, index: usize, token: Token, answer: Result<WriteAnswer, Error>) {
        let answer = answer.map(|answer| {
            let result = |result| v1::BatchResult { outcome: Some(v1::batch_result::Outcome::Result(result)) };
            Answer::Write(v1::BatchResponse { header: None, results: answer.results.into_iter().map(result).collect() })
        });
        self.respond(index, token, answer);
    }

    fn respond(&mut self, index: usize, token: Token, answer: Result<Answer, Error>) {
        let Some(process) = &mut self.nodes[index].process else { return };
        let Some(pending) = process.pending.remove(&token) else { return };
        let asked = header_of(&pending.request);
        let term = process.views.get(&RangeId(asked.range_id)).map_or(0, |view| view.term);
        let header = v1::ResponseHeader {
            cluster_id: process.cluster_id,
            node_id: id_of(index).0,
            range_id: asked.range_id,
            term,
            trace_id: asked.trace_id,
        };
        let mut body = answer.unwrap_or_else(|error| Answer::Error((&error).into()));
        match &mut body {
            Answer::Get(answer) => answer.header = Some(header),
            Answer::MultiGet(answer) => answer.header = Some(header),
            Answer::Write(answer) => answer.header = Some(header),
            Answer::Scan(answer) => answer.header = Some(header),
            Answer::Error(_) => {}
        }
        let reply_to = pending.reply_to;
        if reply_to.client == HOST {
            let life = self.nodes[index].life();
            let at = self.now + self.rng.delay(us(10));
            return self.schedule.at(at, Event::Inner(life, Inner::HostReply(reply_to.id, Some(Box::new(body)))));
        }
        let lost = self.nodes[index].clients_cut > 0 || self.network.loses_answer();
        if lost {
            return self.outcome_after(ms(300), reply_to, CallOutcome::Broken("the answer was lost".into()));
        }
        let outcome = CallOutcome::Response(v1::Response { id: reply_to.id, body: Some(body) });
        let delay = self.network.client_delay();
        self.schedule.at(self.now + delay, Event::Answer { reply_to, outcome: Box::new(outcome) });
    }

    /// The node of this request is gone: the client learns that its connection broke.
    pub(crate) fn break_off(&mut self, reply_to: ReplyTo) {
        if reply_to.client == HOST {
            return;
        }
        self.outcome_after(us(500), reply_to, CallOutcome::Broken("the connection broke".into()));
    }

    fn outcome_after(&mut self, mean: u64, reply_to: ReplyTo, outcome: CallOutcome) {
        let at = self.now + self.rng.delay(mean);
        self.schedule.at(at, Event::Answer { reply_to, outcome: Box::new(outcome) });
    }
}
