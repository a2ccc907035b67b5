//! Reads: who may answer one, and the answer. Outside of the store's loop.
//!
//! A read at the leader takes no turn of the loop. It loads the range's newest [`ReadView`], is
//! admitted by it, reads, and is admitted a second time by the then newest view at the then newest
//! time: between the two the lease held, so no other replica can have acknowledged a write that the
//! read missed. Without a lease it asks the loop for a barrier (ReadIndex) first, and reads then. In both cases the
//! replica must still be the one that it was ([`check_same`]).
//!
//! Why this is linearizable: a write is acknowledged only after its apply can be read here (the loop
//! answers from [`crate::store::Input::Applied`]); a leader serves only once it has applied an entry
//! of its own term, hence everything acknowledged before it; and while its lease runs a quorum
//! refuses every other candidate.

use std::ops::ControlFlow;

use bytes::Bytes;
use flotilla_mutants::Mutant;
use flotilla_proto::{Error, KeyspaceId, RangeId, limits, v1};

use crate::config::ReadMode;
use crate::keys;
use crate::load::Asked;
use crate::record;
use crate::storage::{Direction, Family, Read, StorageError};
use crate::store::ReadView;
use crate::time::BootTime;

/// A read of one range.
#[derive(Clone, Copy, Debug)]
pub enum ReadRequest<'a> {
    /// One key.
    Get(&'a v1::GetRequest),
    /// Several keys, each by itself.
    MultiGet(&'a v1::MultiGetRequest),
    /// A span, cut to the range.
    Scan(&'a v1::ScanRequest),
}

/// Whether a read may be answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Admission {
    /// Now.
    Read,
    /// After a barrier.
    Barrier,
    /// Not here.
    Refused(Error),
}

/// Whether a request's epoch is the one this replica has: behind or ahead, it is refused.
pub fn check_epoch(
    descriptor: &v1::RangeDescriptor,
    siblings: &[v1::RangeDescriptor],
    epoch: Option<&v1::Epoch>,
) -> Result<(), Error> {
    let ours = descriptor.epoch.unwrap_or_default();
    // Replicas may change without a change of the keys served: only the version decides.
    if epoch.is_some_and(|epoch| epoch.version == ours.version) {
        return Ok(());
    }
    let descriptors = std::iter::once(descriptor).chain(siblings).cloned().collect();
    Err(Error::EpochMismatch { range: RangeId(descriptor.range_id), descriptors })
}

/// Whether this replica may answer a read with this header now.
pub fn admit(view: &ReadView, now: BootTime, mode: ReadMode, header: &v1::RequestHeader) -> Admission {
    if let Err(error) = check_epoch(&view.descriptor, &view.siblings, header.epoch.as_ref()) {
        return Admission::Refused(error);
    }
    if view.frozen {
        let reason = format!("range {} is being merged into its neighbour", view.range());
        return Admission::Refused(Error::ServerBusy { reason, retry_after_ms: 20 });
    }
    if header.consistency() == v1::ReadConsistency::Stale {
        return Admission::Read;
    }
    // A leader that has not applied its own first entry yet is asked for a barrier, which waits for it.
    if view.leader != Some(view.own_node) {
        return Admission::Refused(not_leader(view));
    }
    if mode == ReadMode::Lease && view.lease_covers(now) { Admission::Read } else { Admission::Barrier }
}

/// Whether what was read by one view is of what a newer one shows. A replica that went meanwhile and came again has the
/// same epoch, perhaps, and nothing was there in between.
pub fn check_same(before: &ReadView, newest: &ReadView) -> Result<(), Error> {
    if before.incarnation != newest.incarnation {
        return Err(Error::RangeNotFound { range: before.range() });
    }
    if newest.frozen {
        let reason = format!("range {} is being merged into its neighbour", newest.range());
        return Err(Error::ServerBusy { reason, retry_after_ms: 20 });
    }
    check_epoch(&newest.descriptor, &newest.siblings, before.descriptor.epoch.as_ref())
}

/// The refusal of a replica that does not lead.
pub fn not_leader(view: &ReadView) -> Error {
    Error::NotLeader { range: view.range(), leader: view.leader, descriptors: vec![(*view.descriptor).clone()] }
}

/// Reads. The answer has no header; the caller adds it. `range_time_ms` is the range's time ([`ReadView::clock`]): it
/// decides nothing, and only shows how long keys still live.
pub fn execute<R: Read + ?Sized>(
    storage: &R,
    descriptor: &v1::RangeDescriptor,
    range_time_ms: u64,
    request: ReadRequest<'_>,
) -> Result<v1::response::Body, Error> {
    match request {
        ReadRequest::Get(get) => {
            let record = get_one(storage, descriptor, range_time_ms, &get.key)?;
            Ok(v1::response::Body::Get(v1::GetResponse { header: None, record }))
        }
        ReadRequest::MultiGet(multi) => {
            let results = multi_get(storage, descriptor, range_time_ms, &multi.keys)?;
            Ok(v1::response::Body::MultiGet(v1::MultiGetResponse { header: None, results }))
        }
        ReadRequest::Scan(request) => Ok(v1::response::Body::Scan(scan(storage, descriptor, range_time_ms, request)?)),
    }
}

/// What a read counts for in its range's load: requests, and bytes of keys and values.
pub fn cost(request: ReadRequest<'_>, answer: &v1::response::Body) -> (u64, u64) {
    let of = |record: &v1::Record| record.key.len() + record.value.len();
    let (reads, bytes) = match (request, answer) {
        (ReadRequest::Get(get), v1::response::Body::Get(answer)) => {
            (1, get.key.len() + answer.record.as_ref().map_or(0, of))
        }
        (ReadRequest::MultiGet(multi), v1::response::Body::MultiGet(answer)) => {
            let values = answer.results.iter().filter_map(|result| result.record.as_ref());
            (multi.keys.len(), multi.keys.iter().map(Bytes::len).sum::<usize>() + values.map(of).sum::<usize>())
        }
        (ReadRequest::Scan(_), v1::response::Body::Scan(page)) => (1, page.records.iter().map(of).sum()),
        _ => (1, 0),
    };
    (reads as u64, bytes as u64)
}

/// What a read was for: of several keys, the first.
pub fn asked(request: ReadRequest<'_>) -> Option<Asked> {
    match request {
        ReadRequest::Get(get) => Some(Asked::key(get.key.clone())),
        ReadRequest::MultiGet(multi) => multi.keys.first().cloned().map(Asked::key),
        ReadRequest::Scan(scan) => Some(Asked::span(scan.start.clone(), scan.end.clone())),
    }
}

fn failed(error: StorageError) -> Error {
    match error {
        StorageError::Corrupt { what } => Error::Corruption { what },
        other => Error::Unavailable { reason: other.to_string() },
    }
}

/// Whether the range holds this key.
pub fn contains(descriptor: &v1::RangeDescriptor, key: &[u8]) -> bool {
    key >= &descriptor.start[..] && (descriptor.end.is_empty() || key < &descriptor.end[..])
}

fn get_one<R: Read + ?Sized>(
    storage: &R,
    descriptor: &v1::RangeDescriptor,
    range_time_ms: u64,
    key: &[u8],
) -> Result<Option<v1::Record>, Error> {
    if !contains(descriptor, key) {
        return Err(Error::KeyNotInRange {
            range: RangeId(descriptor.range_id),
            descriptors: vec![descriptor.clone()],
        });
    }
    let stored = storage.get(Family::State, &keys::data(KeyspaceId(descriptor.keyspace_id), key));
    let stored = match stored {
        Err(StorageError::Corrupt { .. }) if Mutant::CorruptIsAbsent.is_on() => None,
        other => other.map_err(failed)?,
    };
    let Some(stored) = stored else { return Ok(None) };
    let stored = record::decode_value(stored).map_err(failed)?;
    let ttl_remaining_ms = remaining(stored.deadline_ms, range_time_ms);
    Ok(Some(v1::Record { key: Bytes::new(), value: stored.value, version: stored.version, ttl_remaining_ms }))
}

/// How long a key still lives that ends at `deadline_ms`; 0: it stays. A key that is due is there until its end is
/// replicated.
fn remaining(deadline_ms: u64, range_time_ms: u64) -> u64 {
    if deadline_ms == 0 { 0 } else { deadline_ms.saturating_sub(range_time_ms).max(1) }
}

/// Several keys. Stops as soon as the answer is too large to be sent: what is read is held in memory.
fn multi_get<R: Read + ?Sized>(
    storage: &R,
    descriptor: &v1::RangeDescriptor,
    range_time_ms: u64,
    keys: &[Bytes],
) -> Result<Vec<v1::MultiGetResult>, Error> {
    let mut results = Vec::with_capacity(keys.len());
    let mut bytes = 0;
    for key in keys {
        let record = get_one(storage, descriptor, range_time_ms, key)?;
        bytes += record.as_ref().map_or(0, |record| record.value.len());
        if bytes > limits::ANSWER_BYTES_MAX {
            let max = limits::ANSWER_BYTES_MAX;
            let what = format!("a multi-get whose values have more than {max} bytes");
            return Err(Error::invalid(what, "ask for fewer keys"));
        }
        results.push(v1::MultiGetResult { record });
    }
    Ok(results)
}

/// One page of one range. `next_token` is here the bare user key to go on with: forward the next
/// page's start, backward its (exclusive) end; the router makes tokens for clients from it.
fn scan<R: Read + ?Sized>(
    storage: &R,
    descriptor: &v1::RangeDescriptor,
    range_time_ms: u64,
    request: &v1::ScanRequest,
) -> Result<v1::ScanResponse, Error> {
    let mut start = request.start.clone().max(descriptor.start.clone());
    if Mutant::ScanSkipsBorder.is_on() && !start.is_empty() && start == descriptor.start {
        start = [&start[..], &[0]].concat().into();
    }
    let end = match (request.end.is_empty(), descriptor.end.is_empty()) {
        (true, _) => descriptor.end.clone(),
        (false, true) => request.end.clone(),
        (false, false) => request.end.clone().min(descriptor.end.clone()),
    };
    let mut page = Page::new(request, range_time_ms);
    if end.is_empty() || start < end {
        let (first, last) = keys::data_span(KeyspaceId(descriptor.keyspace_id), &start, &end);
        let direction = if request.reverse { Direction::Reverse } else { Direction::Forward };
        storage
            .scan(Family::State, &first, &last, direction, &mut |key, value| page.visit(key, value))
            .map_err(failed)?;
    }
    page.finish()
}

struct Page<'a> {
    request: &'a v1::ScanRequest,
    range_time_ms: u64,
    limit: u64,
    limit_bytes: usize,
    bytes: usize,
    response: v1::ScanResponse,
    last_key: Bytes,
    error: Option<Error>,
}

impl<'a> Page<'a> {
    fn new(request: &'a v1::ScanRequest, range_time_ms: u64) -> Self {
        let limit = if request.limit == 0 { limits::SCAN_LIMIT_DEFAULT } else { request.limit };
        // Counting returns nothing, so the default page is no bound to it.
        let limit = if request.count_only && request.limit == 0 { u64::MAX } else { u64::from(limit) };
        let bytes = if request.limit_bytes == 0 { limits::SCAN_BYTES_DEFAULT } else { request.limit_bytes };
        Self {
            request,
            range_time_ms,
            limit,
            limit_bytes: bytes.min(limits::SCAN_BYTES_MAX) as usize,
            bytes: 0,
            response: v1::ScanResponse::default(),
            last_key: Bytes::new(),
            error: None,
        }
    }

    fn visit(&mut self, key: &[u8], value: &[u8]) -> ControlFlow<()> {
        match self.take(key, value) {
            Ok(flow) => flow,
            Err(error) => {
                self.error = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<ControlFlow<()>, Error> {
        let user_key = keys::user_key(key)
            .ok_or_else(|| Error::Corruption { what: format!("data key {key:02x?} cannot be read") })?;
        let header = if self.request.keys_only { 0 } else { value.len() };
        let bytes = user_key.len() + header;
        let full = self.response.count >= self.limit
            || (self.response.count > 0 && !self.request.count_only && self.bytes + bytes > self.limit_bytes);
        if full {
            // Backward, the next page ends before the last key that was taken.
            let next = if self.request.reverse { self.last_key.clone() } else { user_key };
            self.response.next_token = next;
            return Ok(ControlFlow::Break(()));
        }
        self.response.count += 1;
        self.bytes += bytes;
        if self.request.reverse {
            self.last_key.clone_from(&user_key);
        }
        if !self.request.count_only {
            let (version, deadline_ms) = record::value_head(value).map_err(failed)?;
            let ttl_remaining_ms = remaining(deadline_ms, self.range_time_ms);
            let value = if self.request.keys_only {
                Bytes::new()
            } else {
                record::decode_value(Bytes::copy_from_slice(value)).map_err(failed)?.value
            };
            self.response.records.push(v1::Record { key: user_key, value, version, ttl_remaining_ms });
        }
        Ok(ControlFlow::Continue(()))
    }

    fn finish(self) -> Result<v1::ScanResponse, Error> {
        self.error.map_or(Ok(self.response), Err)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::storage::{self, Visit};

    /// Every key has a value of 1 MiB.
    #[derive(Default)]
    struct Large {
        gets: Cell<usize>,
    }

    impl Read for Large {
        fn get(&self, _: Family, _: &[u8]) -> storage::Result<Option<Bytes>> {
            self.gets.set(self.gets.get() + 1);
            Ok(Some(record::encode_value(7, 0, &[0; limits::VALUE_BYTES_MAX]).into()))
        }

        fn scan(&self, _: Family, _: &[u8], _: &[u8], _: Direction, _: &mut Visit<'_>) -> storage::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_multi_get_that_finds_too_much_stops_reading() {
        let storage = Large::default();
        let descriptor = v1::RangeDescriptor { range_id: 2, keyspace_id: 1, ..Default::default() };
        let read = |keys| {
            let request = v1::MultiGetRequest { header: None, keys: vec![Bytes::from_static(b"key"); keys] };
            execute(&storage, &descriptor, 0, ReadRequest::MultiGet(&request))
        };
        let most = limits::ANSWER_BYTES_MAX / limits::VALUE_BYTES_MAX;
        let Ok(v1::response::Body::MultiGet(answer)) = read(most) else { panic!("it fits") };
        assert_eq!(answer.results.len(), most);
        storage.gets.set(0);
        let error = read(limits::BATCH_OPS_MAX).expect_err("it does not fit");
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error:?}");
        assert_eq!(storage.gets.get(), most + 1, "no more is read than what shows that it does not fit");
    }
}
