//! Deletes the keys of a span, part by part, each within the limits of a request.
//!
//! ```text
//! Read: a page of keys and versions -> Delete: each key if it has that version still
//!   ^                                    | another version, or no answer: again
//!   +---------- next page ---------------+ all gone
//! ```
//! Invariants:
//! - a delete names the version that was read: one that arrives late, or twice, harms no later write;
//!   so it may be repeated even where its answer was lost. (Whoever is told then of another version cannot know
//!   whether the key was deleted and written again, or only written: it is deleted, if need be once more);
//! - the place to go on never passes a key that was read and may still be there;
//! - what was done in time is told: an error comes only where no part of the span was done, or where
//!   no repetition will ever succeed.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use flotilla_proto::error::Action;
use flotilla_proto::limits::{BATCH_OPS_MAX, TIMEOUT_MS_DEFAULT};
use flotilla_proto::{Error, Result, v1};
use v1::batch_result::Outcome;
use v1::compare_and_swap::Expect;
use v1::request::Body;
use v1::response::Body as Answer;
use v1::write_op::Op;

use super::decide::backoff;
use super::token::{self, Span};
use super::{Time, check};

/// Bytes of keys in one part: they fit into one request.
const PART_BYTES: u32 = 1 << 20;
/// At most so much of the time is kept back for the answer.
const RESERVE_MAX: Duration = Duration::from_millis(250);

/// What a [`DeleteRange`] wants done next.
#[derive(Clone, Debug, PartialEq)]
pub enum DeleteStep {
    /// Carry this request out, as a [`Call`](super::Call), and tell what came of it by
    /// [`DeleteRange::on_answer`].
    Call(Body),
    /// Nothing to do before this time.
    WaitUntil(Time),
    /// It is over.
    Done(Result<v1::DeleteRangeResponse>),
}

/// One request to delete a span.
#[derive(Debug)]
pub struct DeleteRange {
    header: v1::RequestHeader,
    /// What is still to be read.
    span: Span,
    exhausted: bool,
    /// Keys that may still be deleted.
    left: u64,
    count: u64,
    /// Keys read and not known to be gone, with the version that they had.
    found: BTreeMap<Bytes, u64>,
    /// The answer of a delete of these was lost.
    unsure: bool,
    /// A key was deleted, or a page is done.
    moved: bool,
    /// The last obstacle.
    last: Option<Error>,
    failures: u32,
    wait: Option<Time>,
    deadline: Time,
    reserve: Duration,
    answered_by: v1::ResponseHeader,
    outcome: Option<Error>,
}

impl DeleteRange {
    /// A request that begins now, and ends within the header's `timeout_ms` (0: 5 s).
    pub fn new(request: v1::DeleteRangeRequest, now: Time) -> Self {
        let span = span_of(&request);
        let header = request.header.unwrap_or_default();
        let timeout_ms = if header.timeout_ms == 0 { TIMEOUT_MS_DEFAULT } else { header.timeout_ms };
        let timeout = Duration::from_millis(timeout_ms);
        let outcome = check::check_header(Some(&header)).err().or_else(|| span.clone().err());
        let span = span.unwrap_or(Span { start: Bytes::new(), end: Bytes::new(), reverse: false });
        Self {
            exhausted: !span.end.is_empty() && span.start >= span.end,
            span,
            left: if request.limit == 0 { u64::MAX } else { request.limit },
            count: 0,
            found: BTreeMap::new(),
            unsure: false,
            moved: false,
            last: None,
            failures: 0,
            wait: None,
            deadline: now.saturating_add(timeout),
            reserve: (timeout / 8).min(RESERVE_MAX),
            answered_by: v1::ResponseHeader::default(),
            header,
            outcome,
        }
    }

    /// The next thing to do.
    pub fn next(&mut self, now: Time) -> DeleteStep {
        if let Some(error) = &self.outcome {
            return DeleteStep::Done(Err(error.clone()));
        }
        let done = self.found.is_empty() && (self.exhausted || self.left == 0);
        let late = now.saturating_add(self.reserve) >= self.deadline;
        if done || (late && self.moved) {
            return DeleteStep::Done(Ok(self.answer()));
        }
        if now >= self.deadline {
            return DeleteStep::Done(Err(self.too_late()));
        }
        if let Some(wait) = self.wait.filter(|wait| *wait > now) {
            return DeleteStep::WaitUntil(wait.min(self.deadline));
        }
        DeleteStep::Call(if self.found.is_empty() { self.read(now) } else { self.delete(now) })
    }

    /// Tells what came of the request that was asked for last.
    pub fn on_answer(&mut self, now: Time, rand: u64, answer: Result<Answer>) {
        let failed = match answer {
            Ok(Answer::Scan(page)) if self.found.is_empty() => self.on_page(page),
            Ok(Answer::Write(batch)) if !self.found.is_empty() => self.on_deleted(batch),
            Ok(_) => self.on_error(Error::Ambiguous { reason: "the answer is to another kind of request".into() }),
            Err(error) => self.on_error(error),
        };
        self.failures = if failed { self.failures + 1 } else { 0 };
        self.wait = failed.then(|| now.saturating_add(backoff(self.failures, rand)));
    }

    fn read(&self, now: Time) -> Body {
        let most = u64::try_from(BATCH_OPS_MAX).unwrap_or(u64::MAX);
        Body::Scan(v1::ScanRequest {
            header: self.header_for(now),
            start: self.span.start.clone(),
            end: self.span.end.clone(),
            limit: u32::try_from(self.left.min(most)).unwrap_or(u32::MAX),
            limit_bytes: PART_BYTES,
            keys_only: true,
            ..Default::default()
        })
    }

    fn delete(&self, now: Time) -> Body {
        let swap = |(key, version): (&Bytes, &u64)| {
            let expect = Some(Expect::Version(*version));
            let swap = v1::CompareAndSwap { key: key.clone(), expect, ..Default::default() };
            v1::WriteOp { op: Some(Op::CompareAndSwap(swap)) }
        };
        let ops = self.found.iter().map(swap).collect();
        Body::Write(v1::BatchRequest { header: self.header_for(now), ops, atomic: false })
    }

    fn header_for(&self, now: Time) -> Option<v1::RequestHeader> {
        let reserve = if self.moved { self.reserve } else { Duration::ZERO };
        let left = self.deadline.saturating_sub(now).saturating_sub(reserve);
        let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        Some(v1::RequestHeader {
            keyspace: self.header.keyspace.clone(),
            cluster_id: self.header.cluster_id,
            trace_id: self.header.trace_id,
            // 0 would mean the default.
            timeout_ms: left_ms.max(1),
            ..Default::default()
        })
    }

    fn on_page(&mut self, page: v1::ScanResponse) -> bool {
        self.answered_by = page.header.unwrap_or_default();
        self.found = page.records.into_iter().map(|record| (record.key, record.version)).collect();
        if page.next_token.is_empty() {
            self.exhausted = true;
        } else {
            match token::decode(&page.next_token) {
                Ok(rest) => self.span.start = rest.start,
                Err(error) => return self.on_error(error),
            }
        }
        self.moved |= self.found.is_empty();
        false
    }

    /// Takes the results in, in the order of the keys; says whether any of them is an error.
    fn on_deleted(&mut self, batch: v1::BatchResponse) -> bool {
        self.answered_by = batch.header.unwrap_or_default();
        let mut failed = false;
        let found = std::mem::take(&mut self.found);
        let mut results = batch.results.into_iter();
        for (key, version) in found {
            match results.next().and_then(|result| result.outcome) {
                Some(Outcome::Result(result)) if result.applied => {
                    self.count += 1;
                    self.left = self.left.saturating_sub(1);
                }
                // Somebody else deleted it, or an earlier attempt did whose answer was lost.
                Some(Outcome::Result(result)) if result.version == 0 => {}
                // It was written meanwhile, and is there.
                Some(Outcome::Result(result)) => {
                    self.found.insert(key, result.version);
                }
                Some(Outcome::Error(error)) => {
                    failed |= self.on_error(error.into());
                    self.found.insert(key, version);
                }
                None => {
                    failed |= self.on_error(Error::Ambiguous { reason: "the answer has no result".into() });
                    self.found.insert(key, version);
                }
            }
        }
        self.moved |= self.count > 0 || self.found.is_empty();
        self.unsure &= !self.found.is_empty();
        failed
    }

    /// A refusal, or an answer that was lost: tried again until the time is over.
    fn on_error(&mut self, error: Error) -> bool {
        match error.action() {
            Action::Ambiguous => self.unsure = true,
            Action::Retry | Action::RefreshRoute => {}
            Action::Fail => self.outcome = Some(error.clone()),
        }
        self.last = Some(error);
        true
    }

    /// Nothing was done in time.
    fn too_late(&self) -> Error {
        match &self.last {
            Some(last) if self.unsure => {
                Error::Ambiguous { reason: format!("some keys of the span may have been deleted (last: {last})") }
            }
            // Its text says what was in the way.
            Some(last @ Error::Timeout { .. }) => last.clone(),
            Some(last) => Error::Timeout { stage: format!("before any key was deleted (last: {last})") },
            None => Error::Timeout { stage: "before any key was deleted".into() },
        }
    }

    /// What was done, and where it goes on.
    fn answer(&mut self) -> v1::DeleteRangeResponse {
        let first = self.found.first_key_value().map(|(key, _)| key.clone());
        let next_token = match first {
            Some(start) => token::encode(&Span { start, ..self.span.clone() }),
            None if self.exhausted => Bytes::new(),
            None => token::encode(&self.span),
        };
        let answered_by = std::mem::take(&mut self.answered_by);
        let header = Some(v1::ResponseHeader { range_id: 0, trace_id: self.header.trace_id, ..answered_by });
        v1::DeleteRangeResponse { header, count: self.count, next_token }
    }
}

/// The span that is asked for.
fn span_of(request: &v1::DeleteRangeRequest) -> Result<Span> {
    if request.token.is_empty() {
        check::check_bounds(&request.start, &request.end)?;
        return Ok(Span { start: request.start.clone(), end: request.end.clone(), reverse: false });
    }
    let span = token::decode(&request.token)?;
    if span.reverse {
        return Err(Error::invalid("the token is that of a reverse scan", "pass next_token of the answer before"));
    }
    Ok(span)
}

#[cfg(test)]
#[path = "delete_range_test.rs"]
mod tests;
