//! Deletes of spans: the client's side, and what of them stands in the history.
//!
//! What is promised (`flotilla_router`): a key of the span that is there from the beginning to the end goes, also if it is
//! written meanwhile; one that is written for the first time meanwhile may go or stay. In the history that is, for each
//! key that was done, a read that found nothing: there was a moment between question and answer at which it was not
//! there. An answer that names a place to go on has done what lies before it. What deletes the keys are the router's
//! own requests, swaps of the version that was found for nothing: they stand in the history one by one. (One call may
//! so delete a key twice: if an answer was lost, and the key was written again before the repetition.) What is counted is
//! what these were told; an error that asks for a repetition has deleted nothing.
//!
//! A key that nobody has written before is noted for the deletes that are under way, as it is in their span.

use std::time::Duration;

use bytes::Bytes;
use flotilla_proto::error::Action;
use flotilla_proto::ids::DEFAULT_KEYSPACE;
use flotilla_proto::{Error, KeyspaceId, v1};
use flotilla_router::core::{DeleteRange, DeleteStep, token};
use v1::request::Body;
use v1::response::Body as Answer;

use crate::checker::{Input, OpId, Outcome, Output};
use crate::clock::Nanos;
use crate::cluster::Cluster;
use crate::marks::Mark;
use crate::recorder::Recorder;

/// A delete of a span that a client has under way.
pub(crate) struct Deleting {
    request: v1::DeleteRangeRequest,
    work: DeleteRange,
    recorded: u64,
    /// Keys that requests of it are known to have deleted.
    deleted: u64,
}

impl Deleting {
    /// What came of its last request.
    pub(crate) fn on_answer(&mut self, now: Duration, rand: u64, answer: Result<Answer, Error>) {
        if let Ok(Answer::Write(batch)) = &answer {
            let applied = |result: &v1::BatchResult| match &result.outcome {
                Some(v1::batch_result::Outcome::Result(result)) => result.applied,
                _ => false,
            };
            self.deleted += batch.results.iter().filter(|result| applied(result)).count() as u64;
        }
        self.work.on_answer(now, rand, answer);
    }
}

/// A delete of a span, as it stands in the history.
#[derive(Debug)]
pub(crate) struct Clearing {
    client: u64,
    start: Bytes,
    end: Bytes,
    keys: Vec<(OpId, Bytes)>,
}

impl Clearing {
    fn covers(&self, key: &Bytes) -> bool {
        *key >= self.start && (self.end.is_empty() || *key < self.end)
    }
}

impl Recorder {
    /// A delete of a span begins.
    pub(crate) fn begin_clear(&mut self, client: u64, now: Nanos, start: &Bytes, end: &Bytes) -> u64 {
        let mut clearing = Clearing { client, start: start.clone(), end: end.clone(), keys: Vec::new() };
        let covered: Vec<Bytes> = self
            .keys
            .get(&DEFAULT_KEYSPACE)
            .into_iter()
            .flatten()
            .filter(|key| clearing.covers(key))
            .cloned()
            .collect();
        let invoked = covered.into_iter().map(|key| (self.history.invoke(client, now, key.clone(), Input::Get), key));
        clearing.keys.extend(invoked);
        self.clears_begun += 1;
        self.clearing.insert(self.clears_begun, clearing);
        self.clears_begun
    }

    /// A key is about to be written for the first time, or read.
    pub(crate) fn note_key(&mut self, now: Nanos, keyspace: KeyspaceId, key: &Bytes) {
        // Spans are deleted in the default keyspace alone.
        if !self.keys.entry(keyspace).or_default().insert(key.clone()) || keyspace != DEFAULT_KEYSPACE {
            return;
        }
        for clearing in self.clearing.values_mut().filter(|clearing| clearing.covers(key)) {
            let id = self.history.invoke(clearing.client, now, key.clone(), Input::Get);
            clearing.keys.push((id, key.clone()));
        }
    }

    /// A delete of a span is over; an error is a broken promise.
    pub(crate) fn finish_clear(
        &mut self,
        now: Nanos,
        clear: u64,
        deleted: u64,
        answer: &Result<v1::DeleteRangeResponse, Error>,
    ) -> Result<(), String> {
        let Some(clearing) = self.clearing.remove(&clear) else { return Ok(()) };
        // What was done: all, what lies before a key, or nothing that is known.
        let upto = match answer {
            Ok(part) if part.next_token.is_empty() => None,
            Ok(part) => {
                Some(token::decode(&part.next_token).map_err(|error| format!("a delete's token: {error}"))?.start)
            }
            Err(_) => Some(Bytes::new()),
        };
        let told = match answer {
            Ok(part) => Some(part.count),
            Err(error) => (error.action() == Action::Retry).then_some(0),
        };
        if told.is_some_and(|told| told != deleted) {
            return Err(format!("a span's delete said {answer:?}, its requests deleted {deleted} keys"));
        }
        for (id, key) in clearing.keys {
            let is_done = upto.as_ref().is_none_or(|upto| key < *upto);
            self.history.complete(id, now, if is_done { Outcome::Ok(Output::Get(None)) } else { Outcome::Unknown });
        }
        Ok(())
    }
}

impl Cluster {
    /// Has a client begin to delete a span.
    pub(crate) fn begin_delete(&mut self, client: usize, request: v1::DeleteRangeRequest) {
        self.trace.say(self.now, || format!("client {client} deletes a span: {request:?}"));
        let recorded = self.recorder.begin_clear(client as u64, self.now, &request.start, &request.end);
        let work = DeleteRange::new(request.clone(), self.time());
        self.clients[client].deleting = Some(Deleting { request, work, recorded, deleted: 0 });
    }

    /// The next request of the client's delete of a span; `None`: it waits, or is over.
    pub(crate) fn next_of_delete(&mut self, client: usize) -> Option<(Body, u64)> {
        let now = self.time();
        let Deleting { request, work, recorded, deleted } = self.clients[client].deleting.as_mut()?;
        match work.next(now) {
            DeleteStep::Call(body) => {
                let header = match &body {
                    Body::Scan(scan) => scan.header.as_ref(),
                    Body::Write(batch) => batch.header.as_ref(),
                    _ => None,
                };
                let timeout_ms = header.map_or(1, |header| header.timeout_ms);
                Some((body, timeout_ms))
            }
            DeleteStep::WaitUntil(at) => {
                self.wake_client_at(client, crate::clock::nanos(at));
                None
            }
            DeleteStep::Done(answer) => {
                let done = (*recorded, *deleted);
                let request = request.clone();
                self.clients[client].deleting = None;
                self.delete_done(client, request, done, &answer);
                None
            }
        }
    }

    fn delete_done(
        &mut self,
        client: usize,
        request: v1::DeleteRangeRequest,
        (recorded, deleted): (u64, u64),
        answer: &Result<v1::DeleteRangeResponse, Error>,
    ) {
        self.trace.say(self.now, || format!("client {client}: deleted a span: {answer:?}"));
        let verdict = self.recorder.finish_clear(self.now, recorded, deleted, answer);
        self.check(verdict.map_err(|what| format!("I12: {what}")));
        let mark = match answer {
            Ok(part) if part.next_token.is_empty() => Mark::SpanDeleted,
            Ok(_) => Mark::SpanDeletedInPart,
            Err(_) => Mark::SpanDeleteFailed,
        };
        self.marks.hit(mark);
        let of = &mut self.clients[client];
        let token = answer.as_ref().map_or(Bytes::new(), |part| part.next_token.clone());
        if let Some(rest) = token::decode(&token).ok().filter(|_| of.goes_on()) {
            // The token replaces the bounds, which are for the recorder.
            let next = v1::DeleteRangeRequest { start: rest.start, end: rest.end, token, ..request };
            of.next_part = Some(next);
        }
        let pause = of.pause(self.knobs.think);
        self.wake_client_at(client, self.now + pause);
    }
}

/// What of the keys may be deleted together: spans that hold no key of a pair, whose two are only written together.
pub(crate) fn spans_between(keys: &[Bytes], apart: &[Bytes]) -> Vec<Vec<Bytes>> {
    let mut all: Vec<(&Bytes, bool)> = keys.iter().map(|key| (key, true)).collect();
    all.extend(apart.iter().map(|key| (key, false)));
    all.sort_unstable();
    let groups = all.split(|(_, may)| !*may).filter(|group| !group.is_empty());
    groups.map(|group| group.iter().map(|(key, _)| (*key).clone()).collect()).collect()
}
