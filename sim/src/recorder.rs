//! From requests and answers to the history that the checkers judge.
//!
//! A batch is one operation for each key; a multi-get or a scan is a get of each key, whose moment lies
//! within the request's interval. What a scan did not reach was not asked. Stale reads promise nothing and
//! are not recorded. Keys of a pair are only ever written together: a scan's page that holds one
//! value of such a write and not the other has seen half of an atomic batch; unless the keys were of two ranges, which
//! became one meanwhile: it is atomic within each range, no further. Deletes of spans: `spans`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotilla_proto::error::Action;
use flotilla_proto::{Error, KeyspaceId, v1};
use flotilla_router::core::token;
use v1::request::Body;
use v1::response::Body as Answer;
use v1::write_op::Op;

use crate::checker::{Expect, History, Input, OpId, Outcome, Output, Versioned};
use crate::clock::Nanos;
use crate::spans::Clearing;

/// A request under way, as it stands in the history.
#[derive(Debug, Default)]
pub(crate) struct Recorded {
    operations: Vec<(OpId, Bytes)>,
    is_write: bool,
    atomic: bool,
    scan: Option<v1::ScanRequest>,
    since: Nanos,
}

impl Recorded {
    /// The scan that goes on where this one's page ended. Its bounds are only for [`Recorder`]: the token
    /// replaces them.
    pub(crate) fn next_scan(&self, page: &v1::ScanResponse) -> Option<v1::ScanRequest> {
        let mut scan = self.scan.clone().filter(|_| !page.next_token.is_empty())?;
        let span = token::decode(&page.next_token).ok()?;
        (scan.start, scan.end, scan.reverse) = (span.start, span.end, span.reverse);
        scan.token = page.next_token.clone();
        Some(scan)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    pub history: History,
    /// The keys of each keyspace that anybody asked for; no two keyspaces share one.
    pub keys: BTreeMap<KeyspaceId, BTreeSet<Bytes>>,
    /// Keys that are only written together, with one value.
    pub pairs: Vec<(Bytes, Bytes)>,
    pub acknowledged: u64,
    pub unknown: u64,
    pub refused: u64,
    pub pairs_seen: u64,
    /// Borders that merges have taken away, by key and the range that began there; and when the first replica did so.
    pub borders_gone: BTreeMap<(Bytes, u64), Nanos>,
    /// Deletes of spans under way, by number.
    pub clearing: BTreeMap<u64, Clearing>,
    pub clears_begun: u64,
}

/// What an operation asks.
fn input_of(op: &v1::WriteOp) -> Option<(Bytes, Input)> {
    use v1::compare_and_swap::Expect as Wire;
    Some(match op.op.as_ref()? {
        Op::Put(put) if put.if_absent => (put.key.clone(), Input::PutIfAbsent(put.value.clone())),
        Op::Put(put) => (put.key.clone(), Input::Put(put.value.clone())),
        Op::Delete(delete) => (delete.key.clone(), Input::Delete),
        Op::CompareAndSwap(swap) => {
            let expect = match swap.expect.as_ref()? {
                Wire::Value(value) => Expect::Value(value.clone()),
                Wire::Version(version) => Expect::Version(*version),
                Wire::Absent(_) => Expect::Absent,
            };
            (swap.key.clone(), Input::CompareAndSwap { expect, new: swap.new_value.clone() })
        }
    })
}

fn ttl_of(op: &v1::WriteOp) -> u64 {
    match &op.op {
        Some(Op::Put(put)) => put.ttl_ms,
        Some(Op::CompareAndSwap(swap)) => swap.ttl_ms,
        _ => 0,
    }
}

fn holds(expect: &Expect, current: Option<&Versioned>) -> bool {
    match (expect, current) {
        (Expect::Value(expected), Some((value, _))) => expected == value,
        (Expect::Version(expected), Some((_, version))) => expected == version,
        (Expect::Absent, None) => true,
        _ => false,
    }
}

/// What the answer to one operation says; in a refused atomic batch it may say nothing of its own.
fn outcome_of(input: &Input, result: &v1::WriteResult, atomic: bool) -> Outcome {
    let version = result.version;
    let current = result.current.as_ref().map(|record| (record.value.clone(), record.version));
    let output = match (input, result.applied) {
        (Input::Get, _) => return Outcome::Unknown,
        (Input::Put(_), true) => Output::Put { version },
        (Input::Delete, true) => Output::Delete { existed: result.existed, version: (version != 0).then_some(version) },
        (Input::PutIfAbsent(_) | Input::CompareAndSwap { .. }, true) => Output::Applied { version },
        (Input::PutIfAbsent(_), false) if result.existed => Output::Exists { version },
        (Input::CompareAndSwap { expect, .. }, false) if !atomic || !holds(expect, current.as_ref()) => {
            Output::Failed { current }
        }
        (_, false) => return Outcome::NotApplied,
    };
    Outcome::Ok(output)
}

fn found(record: Option<&v1::Record>) -> Outcome {
    Outcome::Ok(Output::Get(record.map(|record| (record.value.clone(), record.version))))
}

fn outcome_of_error(error: &Error) -> Outcome {
    if error.action() == Action::Ambiguous { Outcome::Unknown } else { Outcome::NotApplied }
}

impl Recorder {
    /// A request is about to leave.
    pub(crate) fn begin(&mut self, client: u64, keyspace: KeyspaceId, now: Nanos, body: &Body) -> Recorded {
        let keys = self.keys.entry(keyspace).or_default();
        let mut recorded = Recorded { since: now, ..Recorded::default() };
        let mut asked: Vec<(Bytes, Input)> = Vec::new();
        let mut ttls: Vec<u64> = Vec::new();
        match body {
            Body::Get(get) if !is_stale(get.header.as_ref()) => asked.push((get.key.clone(), Input::Get)),
            Body::MultiGet(get) => asked.extend(get.keys.iter().map(|key| (key.clone(), Input::Get))),
            Body::Write(batch) => {
                recorded.is_write = true;
                recorded.atomic = batch.atomic && batch.ops.len() > 1;
                asked.extend(batch.ops.iter().filter_map(input_of));
                ttls.extend(batch.ops.iter().map(ttl_of));
            }
            Body::Scan(scan) if !scan.keys_only && !scan.count_only => {
                let inside = |key: &&Bytes| **key >= scan.start && (scan.end.is_empty() || **key < scan.end);
                asked.extend(keys.iter().filter(inside).map(|key| (key.clone(), Input::Get)));
                recorded.scan = Some(scan.clone());
            }
            _ => {}
        }
        for (at, (key, input)) in asked.into_iter().enumerate() {
            self.note_key(now, keyspace, &key);
            let id = self.history.invoke(client, now, key.clone(), input);
            self.history.ends_after(id, ttls.get(at).map_or(0, |ttl_ms| crate::clock::ms(*ttl_ms)));
            recorded.operations.push((id, key));
        }
        recorded
    }

    /// The answer has come. Returns what it shows of each key; an error is a broken promise.
    pub(crate) fn finish(
        &mut self,
        now: Nanos,
        recorded: &Recorded,
        answer: &Result<Answer, Error>,
    ) -> Result<BTreeMap<Bytes, Versioned>, String> {
        self.tally(recorded, answer);
        let mut seen = BTreeMap::new();
        if let (Some(scan), Ok(Answer::Scan(page))) = (&recorded.scan, answer) {
            self.finish_scan(now, recorded, scan, page)?;
            return Ok(seen);
        }
        for (at, (id, key)) in recorded.operations.iter().enumerate() {
            let outcome = match answer {
                Err(error) => outcome_of_error(error),
                Ok(Answer::Get(get)) => found(get.record.as_ref()),
                Ok(Answer::MultiGet(get)) => match get.results.get(at) {
                    Some(result) => found(result.record.as_ref()),
                    None => return Err(format!("an answer has no result for key {at} of its request")),
                },
                Ok(Answer::Write(batch)) => match batch.results.get(at).and_then(|result| result.outcome.as_ref()) {
                    Some(v1::batch_result::Outcome::Result(result)) => {
                        outcome_of(&self.history.operation(*id).input, result, recorded.atomic)
                    }
                    Some(v1::batch_result::Outcome::Error(error)) => outcome_of_error(&Error::from(error.clone())),
                    None => return Err(format!("an answer has no result for operation {at} of its request")),
                },
                Ok(other) => return Err(format!("an answer of another kind than its request: {other:?}")),
            };
            note_seen(&mut seen, key, &self.history.operation(*id).input, &outcome);
            self.history.complete(*id, now, outcome);
        }
        Ok(seen)
    }

    fn tally(&mut self, recorded: &Recorded, answer: &Result<Answer, Error>) {
        match answer {
            Ok(_) => self.acknowledged += 1,
            Err(error) if recorded.is_write && error.action() == Action::Ambiguous => self.unknown += 1,
            Err(_) => self.refused += 1,
        }
    }

    fn finish_scan(
        &mut self,
        now: Nanos,
        recorded: &Recorded,
        scan: &v1::ScanRequest,
        page: &v1::ScanResponse,
    ) -> Result<(), String> {
        let records: BTreeMap<&Bytes, &v1::Record> = page.records.iter().map(|record| (&record.key, record)).collect();
        if records.len() != page.records.len() || page.count != page.records.len() as u64 {
            return Err(format!("a scan's page of {} records holds a key twice or miscounts", page.records.len()));
        }
        let in_order = page.records.windows(2).all(|pair| (pair[0].key < pair[1].key) != scan.reverse);
        let inside = |key: &Bytes| *key >= scan.start && (scan.end.is_empty() || *key < scan.end);
        if !in_order || !page.records.iter().all(|record| inside(&record.key)) {
            return Err("a scan's page is out of order or out of bounds".into());
        }
        let last = page.records.last().map(|record| &record.key);
        let reached = |key: &Bytes| {
            page.next_token.is_empty() || last.is_some_and(|last| if scan.reverse { key >= last } else { key <= last })
        };
        for (id, key) in &recorded.operations {
            let outcome = if reached(key) { found(records.get(key).copied()) } else { Outcome::Unknown };
            self.history.complete(*id, now, outcome);
        }
        let joined = |first: &Bytes, second: &Bytes| {
            let (low, high) = (first.min(second), first.max(second));
            let mut between = self.borders_gone.range((low.clone(), u64::MAX)..=(high.clone(), u64::MAX));
            between.any(|(_, at)| recorded.since <= *at)
        };
        for (first, second) in &self.pairs {
            if joined(first, second) {
                continue;
            }
            if inside(first) && inside(second) && reached(first) && reached(second) {
                self.pairs_seen += 1;
                let value = |key| records.get(key).map(|record| &record.value);
                if value(first) != value(second) {
                    return Err(format!(
                        "a scan saw half of an atomic batch: {first:?} is {:?}, {second:?} is {:?}",
                        value(first),
                        value(second)
                    ));
                }
            }
        }
        Ok(())
    }
}

fn is_stale(header: Option<&v1::RequestHeader>) -> bool {
    header.is_some_and(|header| header.consistency() == v1::ReadConsistency::Stale)
}

fn note_seen(seen: &mut BTreeMap<Bytes, Versioned>, key: &Bytes, input: &Input, outcome: &Outcome) {
    let state = match (input, outcome) {
        (_, Outcome::Ok(Output::Get(Some(state)) | Output::Failed { current: Some(state) })) => state.clone(),
        (Input::Put(value), Outcome::Ok(Output::Put { version })) => (value.clone(), *version),
        (Input::PutIfAbsent(value), Outcome::Ok(Output::Applied { version })) => (value.clone(), *version),
        (Input::CompareAndSwap { new: Some(value), .. }, Outcome::Ok(Output::Applied { version })) => {
            (value.clone(), *version)
        }
        _ => return,
    };
    seen.insert(key.clone(), state);
}
