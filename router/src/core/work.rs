//! What a call is about: its items (keys or operations), how they are cut by range, and how the
//! answers are joined in the caller's order.
//!
//! Invariant: an item's result is written once.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;
use flotilla_proto::{Error, RangeId, v1};
use v1::batch_result::Outcome;
use v1::request::Body;
use v1::response::Body as Answer;

use super::cache::{Route, RouteCache};
use super::check::key_of;
use super::decide::{Access, Failure};
use super::fit::fit;
use super::places::Places;
use super::scan::Scan;

/// Where a part goes.
#[derive(Debug)]
pub(super) enum Routed<'a> {
    /// To this range.
    One(&'a Route),
    /// To several: cut like this.
    Cut(Vec<Vec<u32>>),
    /// No range is known for it.
    Unknown,
    /// Nowhere: it must not be cut.
    Refused(Error),
}

/// A request and the results that it has so far.
#[derive(Debug)]
pub(super) enum Work {
    Points { keys: Vec<Bytes>, results: Vec<Option<v1::MultiGetResult>>, single: bool },
    Writes { ops: Vec<v1::WriteOp>, results: Vec<Option<v1::BatchResult>>, atomic: bool },
    Scan(Scan),
}

impl Work {
    pub(super) fn new(body: Body) -> Self {
        match body {
            Body::Get(get) => Self::Points { keys: vec![get.key], results: vec![None], single: true },
            Body::MultiGet(get) => Self::Points { results: vec![None; get.keys.len()], keys: get.keys, single: false },
            Body::Write(batch) => {
                Self::Writes { results: vec![None; batch.ops.len()], ops: batch.ops, atomic: batch.atomic }
            }
            Body::Scan(scan) => Self::Scan(Scan::new(&scan)),
        }
    }

    pub(super) fn access(&self) -> Access {
        match self {
            Self::Points { .. } | Self::Scan(_) => Access::Read,
            Self::Writes { .. } => Access::Write,
        }
    }

    pub(super) fn is_scan(&self) -> bool {
        matches!(self, Self::Scan(_))
    }

    /// Whether a healthy node may take longer over it than [`READ_ATTEMPT`](super::call) allows.
    pub(super) fn may_take_long(&self) -> bool {
        matches!(self, Self::Scan(scan) if scan.counts_only())
    }

    /// The items to send; a scan has none, but a place where it stands.
    pub(super) fn items(&self) -> Range<u32> {
        // Requests have at most 1,024 items.
        0..u32::try_from(self.count()).unwrap_or(u32::MAX)
    }

    fn count(&self) -> usize {
        match self {
            Self::Points { keys, .. } => keys.len(),
            Self::Writes { ops, .. } => ops.len(),
            Self::Scan(_) => 0,
        }
    }

    /// Whether nothing is left to send.
    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::Points { .. } | Self::Writes { .. } => self.count() == 0,
            Self::Scan(scan) => scan.is_done(),
        }
    }

    /// Whether one item's error is the whole call's.
    pub(super) fn fails_whole(&self) -> bool {
        match self {
            Self::Points { .. } | Self::Scan(_) => true,
            Self::Writes { ops, atomic, .. } => *atomic || ops.len() <= 1,
        }
    }

    fn key(&self, item: u32) -> &[u8] {
        let item = item as usize;
        match self {
            Self::Points { keys, .. } => keys.get(item).map_or(&[], |key| key),
            Self::Writes { ops, .. } => ops.get(item).and_then(key_of).map_or(&[], |key| key),
            Self::Scan(_) => &[],
        }
    }

    /// Where these items go.
    pub(super) fn route<'a>(&self, items: &[u32], cache: &'a RouteCache) -> Routed<'a> {
        if let Self::Scan(scan) = self {
            return scan.route(cache).map_or(Routed::Unknown, Routed::One);
        }
        let first = items.first().and_then(|item| cache.lookup(self.key(*item)));
        if let Some(route) = first
            && items.iter().all(|item| route.contains(self.key(*item)))
        {
            return Routed::One(route);
        }
        let mut groups: BTreeMap<Option<RangeId>, Vec<u32>> = BTreeMap::new();
        for item in items {
            groups.entry(cache.lookup(self.key(*item)).map(Route::range)).or_default().push(*item);
        }
        let unknown = groups.contains_key(&None);
        match self {
            _ if groups.len() == 1 => Routed::Unknown,
            Self::Writes { atomic: true, .. } if unknown => Routed::Unknown,
            Self::Writes { atomic: true, .. } => Routed::Refused(spans(groups.into_keys().flatten(), cache)),
            _ => Routed::Cut(groups.into_values().collect()),
        }
    }

    /// Where routes are missing for these items; of those that have one, a place in each range.
    pub(super) fn places(&self, items: &[u32], cache: &RouteCache, places: &mut Places) {
        if let Self::Scan(scan) = self {
            return scan.place(places);
        }
        let mut seen = BTreeSet::new();
        for item in items {
            let key = self.key(*item);
            if cache.lookup(key).is_none_or(|route| seen.insert(route.range())) {
                places.keys.insert(Bytes::copy_from_slice(key));
            }
        }
    }

    /// The request for these items to that range.
    pub(super) fn build(&mut self, items: &[u32], route: &Route, header: v1::RequestHeader) -> Body {
        let header = Some(header);
        match self {
            Self::Points { keys, single: true, .. } => {
                Body::Get(v1::GetRequest { header, key: keys.first().cloned().unwrap_or_default() })
            }
            Self::Points { keys, .. } => Body::MultiGet(v1::MultiGetRequest { header, keys: select(keys, items) }),
            Self::Writes { ops, atomic, .. } => {
                Body::Write(v1::BatchRequest { header, ops: select(ops, items), atomic: *atomic })
            }
            Self::Scan(scan) => Body::Scan(scan.build(route, header)),
        }
    }

    /// Takes a range's answer in. Gives back the items that the range refused one by one, or the
    /// failure of all of them.
    pub(super) fn absorb(&mut self, items: &[u32], answer: Answer) -> Result<Vec<(u32, Error)>, Failure> {
        match (self, answer) {
            (Self::Points { results, single: true, .. }, Answer::Get(answer)) => {
                set(results, 0, v1::MultiGetResult { record: answer.record });
                Ok(vec![])
            }
            (Self::Points { results, single: false, .. }, Answer::MultiGet(answer)) => {
                if answer.results.len() != items.len() {
                    return Err(corrupt(format!("{} results for {} keys", answer.results.len(), items.len())));
                }
                for (item, result) in items.iter().zip(answer.results) {
                    set(results, *item, result);
                }
                Ok(vec![])
            }
            (Self::Writes { results, atomic, .. }, Answer::Write(answer)) => {
                absorb_writes(results, *atomic, items, answer.results)
            }
            (Self::Scan(scan), Answer::Scan(answer)) => scan.absorb(answer).map(|()| vec![]).map_err(Failure::Answer),
            // For a write nobody can tell what happened; a read is repeated.
            _ => Err(Failure::Broken("an answer to another kind of request came".into())),
        }
    }

    /// Gives these items the error as their result.
    pub(super) fn refuse(&mut self, items: &[u32], error: &Error) {
        if let Self::Writes { results, .. } = self {
            for item in items {
                set(results, *item, v1::BatchResult { outcome: Some(Outcome::Error(error.into())) });
            }
        }
    }

    /// The answer to the caller, once every item has its result.
    pub(super) fn finish(&mut self, header: v1::ResponseHeader) -> flotilla_proto::Result<Answer> {
        let header = Some(header);
        let answer = match self {
            Self::Points { results, single: true, .. } => {
                let record = results.first_mut().and_then(Option::take).and_then(|result| result.record);
                Answer::Get(v1::GetResponse { header, record })
            }
            Self::Points { results, .. } => Answer::MultiGet(v1::MultiGetResponse { header, results: all(results) }),
            Self::Writes { results, .. } => Answer::Write(v1::BatchResponse { header, results: all(results) }),
            Self::Scan(scan) => Answer::Scan(scan.finish(header)),
        };
        match fit(answer) {
            Answer::Error(error) => Err(error.into()),
            answer => Ok(answer),
        }
    }
}

fn all<T: Default>(results: &mut [Option<T>]) -> Vec<T> {
    results.iter_mut().map(|result| result.take().unwrap_or_default()).collect()
}

fn absorb_writes(
    results: &mut [Option<v1::BatchResult>],
    atomic: bool,
    items: &[u32],
    answers: Vec<v1::BatchResult>,
) -> Result<Vec<(u32, Error)>, Failure> {
    if answers.len() != items.len() {
        return Err(Failure::Broken(format!("{} results came for {} operations", answers.len(), items.len())));
    }
    let mut refused = vec![];
    for (item, answer) in items.iter().zip(answers) {
        match answer.outcome {
            Some(Outcome::Error(error)) => refused.push((*item, error.into())),
            Some(Outcome::Result(_)) => set(results, *item, answer),
            None => {
                let reason = "a result without an outcome came".to_string();
                refused.push((*item, Error::Ambiguous { reason }));
            }
        }
    }
    match refused.first() {
        // All or nothing: one refusal is everyone's, and no item keeps a result.
        Some((_, error)) if atomic => Err(Failure::Answer(error.clone())),
        _ => Ok(refused),
    }
}

fn set<T>(results: &mut [Option<T>], item: u32, result: T) {
    if let Some(slot) = results.get_mut(item as usize) {
        debug_assert!(slot.is_none(), "an item's result is written once");
        *slot = Some(result);
    }
}

fn select<T: Clone>(all: &[T], items: &[u32]) -> Vec<T> {
    items.iter().filter_map(|item| all.get(*item as usize).cloned()).collect()
}

fn corrupt(what: String) -> Failure {
    Failure::Answer(Error::Corruption { what: format!("the answer has {what}") })
}

/// The error of an atomic batch over several ranges.
fn spans(ranges: impl Iterator<Item = RangeId>, cache: &RouteCache) -> Error {
    let routes = ranges.filter_map(|range| cache.by_id(range));
    let mut borders: Vec<Bytes> = routes.map(|route| route.descriptor.start.clone()).collect();
    borders.sort_unstable();
    Error::BatchSpansRanges { borders: borders.into_iter().skip(1).collect() }
}
