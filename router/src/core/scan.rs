//! A scan's page: records from as many ranges as it takes, one range after the other.
//!
//! To each range goes the part of the span that lies in it, with what is left of the limits. The
//! range's `next_token` is a bare key there: forward the first key not looked at, reverse the last
//! key returned; empty when its part is done. The caller's token is made here (see [`token`]).
//! Each range's part is one point in time, the page as a whole is not.

use std::mem::take;

use bytes::{BufMut, Bytes, BytesMut};
use flotilla_proto::limits::{SCAN_BYTES_DEFAULT, SCAN_BYTES_MAX, SCAN_LIMIT_DEFAULT};
use flotilla_proto::{Error, Result, v1};

use super::cache::{Route, RouteCache};
use super::check::SCAN_RECORDS_MAX;
use super::places::Places;
use super::token::{self, Span};

/// Where a scan stands.
#[derive(Debug)]
pub(super) struct Scan {
    /// What is still to be read.
    span: Span,
    /// What was asked of the range now being read.
    sent: Span,
    left: u64,
    bytes_left: usize,
    keys_only: bool,
    count_only: bool,
    records: Vec<v1::Record>,
    count: u64,
    /// The span is read to its end.
    exhausted: bool,
    /// The page is full.
    full: bool,
}

impl Scan {
    /// A scan as the caller asked for it; the request was checked before.
    pub(super) fn new(request: &v1::ScanRequest) -> Self {
        let asked = Span { start: request.start.clone(), end: request.end.clone(), reverse: request.reverse };
        let span = token::decode(&request.token).unwrap_or(asked);
        let exhausted = !span.end.is_empty() && span.start >= span.end;
        let left = match (request.limit, request.count_only) {
            // Counting returns no records: nothing bounds it but the caller's wish.
            (0, true) => u64::MAX,
            (limit, true) => u64::from(limit),
            (0, false) => u64::from(SCAN_LIMIT_DEFAULT),
            (limit, false) => u64::from(limit.min(SCAN_RECORDS_MAX)),
        };
        let bytes = if request.limit_bytes == 0 { SCAN_BYTES_DEFAULT } else { request.limit_bytes.min(SCAN_BYTES_MAX) };
        Self {
            sent: span.clone(),
            span,
            left,
            bytes_left: bytes as usize,
            keys_only: request.keys_only,
            count_only: request.count_only,
            records: vec![],
            count: 0,
            exhausted,
            full: false,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.exhausted || self.full
    }

    pub(super) fn counts_only(&self) -> bool {
        self.count_only
    }

    /// The range to read next.
    pub(super) fn route<'a>(&self, cache: &'a RouteCache) -> Option<&'a Route> {
        if self.span.reverse { cache.lookup_before(&self.span.end) } else { cache.lookup(&self.span.start) }
    }

    /// Where that is.
    pub(super) fn place(&self, places: &mut Places) {
        match self.span.reverse {
            true => places.before.insert(self.span.end.clone()),
            false => places.keys.insert(self.span.start.clone()),
        };
    }

    pub(super) fn build(&mut self, route: &Route, header: Option<v1::RequestHeader>) -> v1::ScanRequest {
        let (start, end) = (&route.descriptor.start, &route.descriptor.end);
        let ends_first = self.span.end.is_empty() || (!end.is_empty() && *end < self.span.end);
        self.sent = Span {
            start: self.span.start.clone().max(start.clone()),
            end: if ends_first { end.clone() } else { self.span.end.clone() },
            reverse: self.span.reverse,
        };
        v1::ScanRequest {
            header,
            start: self.sent.start.clone(),
            end: self.sent.end.clone(),
            reverse: self.sent.reverse,
            // 0: without a limit, which only a count can be.
            limit: u32::try_from(self.left).unwrap_or(0),
            limit_bytes: u32::try_from(self.bytes_left).unwrap_or(u32::MAX),
            keys_only: self.keys_only,
            count_only: self.count_only,
            token: Bytes::new(),
        }
    }

    /// Takes a range's answer in, and moves on.
    pub(super) fn absorb(&mut self, answer: v1::ScanResponse) -> Result<()> {
        self.check(&answer)?;
        let count = if self.count_only { answer.count } else { answer.records.len() as u64 };
        if self.count_only {
            self.count += count;
        } else if let Some(position) = self.take_records(answer.records) {
            // What the range sent beyond the bytes asked for is read again with the next page.
            self.go_on_at(position);
            self.full = true;
            return Ok(());
        }
        self.left = self.left.saturating_sub(count);
        let stopped_early = !answer.next_token.is_empty();
        if stopped_early {
            self.go_on_at(answer.next_token);
        } else {
            self.go_on_after_range();
        }
        // A range that stopped early has reached a limit, maybe one of its own.
        self.full = self.left == 0 || self.bytes_left == 0 || (stopped_early && self.count > 0);
        Ok(())
    }

    /// Adds records up to the page's bytes; gives the place of the first that found no room.
    fn take_records(&mut self, records: Vec<v1::Record>) -> Option<Bytes> {
        for record in records {
            let bytes = record.key.len() + record.value.len();
            if bytes > self.bytes_left && !self.records.is_empty() {
                return Some(if self.span.reverse { successor(&record.key) } else { record.key });
            }
            self.bytes_left = self.bytes_left.saturating_sub(bytes);
            self.count += 1;
            self.records.push(record);
        }
        None
    }

    fn go_on_at(&mut self, position: Bytes) {
        if self.span.reverse {
            self.exhausted = position <= self.span.start;
            self.span.end = position;
        } else {
            self.exhausted = !self.span.end.is_empty() && position >= self.span.end;
            self.span.start = position;
        }
    }

    fn go_on_after_range(&mut self) {
        if self.span.reverse {
            self.exhausted = self.sent.start == self.span.start;
            self.span.end = self.sent.start.clone();
        } else {
            self.exhausted = self.sent.end == self.span.end;
            self.span.start = self.sent.end.clone();
        }
    }

    /// The page, and where the next one begins.
    pub(super) fn finish(&mut self, header: Option<v1::ResponseHeader>) -> v1::ScanResponse {
        let next_token = if self.exhausted { Bytes::new() } else { token::encode(&self.span) };
        v1::ScanResponse { header, records: take(&mut self.records), count: self.count, next_token }
    }

    /// A page must lie in the span asked for, in order, within the limit, and move on.
    fn check(&self, answer: &v1::ScanResponse) -> Result<()> {
        let Span { start, end, reverse } = &self.sent;
        let inside = |key: &Bytes| key >= start && (end.is_empty() || key < end);
        let in_order = answer.records.is_sorted_by(|a, b| if *reverse { a.key > b.key } else { a.key < b.key });
        let count = if self.count_only { answer.count } else { answer.records.len() as u64 };
        let position = &answer.next_token;
        let moves_on = position.is_empty()
            || if *reverse {
                position >= start && (end.is_empty() || position < end)
            } else {
                position > start && (end.is_empty() || position <= end)
            };
        if !answer.records.iter().all(|record| inside(&record.key)) || !in_order {
            return Err(Error::Corruption {
                what: "a scan's answer is not in order, or not of the span asked for".into(),
            });
        }
        if count > self.left || !moves_on {
            return Err(Error::Corruption { what: "a scan's answer is beyond its limit, or does not move on".into() });
        }
        Ok(())
    }
}

/// The smallest key above `key`.
fn successor(key: &Bytes) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

#[cfg(test)]
#[path = "scan_test.rs"]
mod tests;
