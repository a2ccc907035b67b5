//! The limits of a request, checked before anything is sent: in the client and in the node by the
//! same code, so with the same errors. Whether there is a keyspace of the header's name is found out
//! by the [`Keyspaces`](super::Keyspaces).

use bytes::Bytes;
use flotilla_proto::limits::{
    BATCH_OPS_MAX, KEY_BYTES_MAX, REQUEST_BYTES_MAX, TIMEOUT_MS_MAX, TTL_MS_MAX, VALUE_BYTES_MAX,
};
use flotilla_proto::{Error, Result, v1};
use v1::compare_and_swap::Expect;
use v1::request::Body;
use v1::write_op::Op;

use super::token;

/// Most records in a scan page: with their framing they stay below the decoder's limit, however
/// small they are.
pub const SCAN_RECORDS_MAX: u32 = 65_536;

/// Checks a request against the limits; [`Error::InvalidArgument`] says what to change.
pub fn check(body: &v1::request::Body) -> Result<()> {
    check_header(header_of(body))?;
    match body {
        Body::Get(get) => check_key(&get.key),
        Body::MultiGet(get) => {
            check_count(get.keys.len(), "keys")?;
            get.keys.iter().try_for_each(check_key)?;
            check_request_bytes(get.keys.iter().map(Bytes::len).sum())
        }
        Body::Write(batch) => {
            check_count(batch.ops.len(), "operations")?;
            let mut bytes = 0;
            for op in &batch.ops {
                bytes += check_op(op)?;
            }
            check_request_bytes(bytes)
        }
        Body::Scan(scan) => check_scan(scan),
    }
}

/// The header of a request, of whatever kind.
pub fn header_of(body: &Body) -> Option<&v1::RequestHeader> {
    match body {
        Body::Get(request) => request.header.as_ref(),
        Body::MultiGet(request) => request.header.as_ref(),
        Body::Write(request) => request.header.as_ref(),
        Body::Scan(request) => request.header.as_ref(),
    }
}

/// The key that an operation writes; `None` where the operation is missing.
pub(super) fn key_of(op: &v1::WriteOp) -> Option<&Bytes> {
    match op.op.as_ref()? {
        Op::Put(put) => Some(&put.key),
        Op::Delete(delete) => Some(&delete.key),
        Op::CompareAndSwap(swap) => Some(&swap.key),
    }
}

pub(super) fn check_header(header: Option<&v1::RequestHeader>) -> Result<()> {
    let Some(header) = header else { return Ok(()) };
    if header.timeout_ms > TIMEOUT_MS_MAX {
        return Err(Error::invalid(
            format!("a time-out of {} ms", header.timeout_ms),
            format!("time-outs are at most {TIMEOUT_MS_MAX} ms"),
        ));
    }
    if v1::ReadConsistency::try_from(header.consistency).is_err() {
        return Err(Error::invalid("an unknown read consistency", "use linearizable or stale"));
    }
    Ok(())
}

fn check_key(key: &Bytes) -> Result<()> {
    if key.is_empty() {
        return Err(Error::invalid("an empty key", "keys have at least one byte"));
    }
    check_length(key, KEY_BYTES_MAX, "key", "keys")
}

fn check_value(value: &Bytes) -> Result<()> {
    check_length(value, VALUE_BYTES_MAX, "value", "values")
}

fn check_length(bytes: &Bytes, max: usize, one: &str, many: &str) -> Result<()> {
    if bytes.len() > max {
        return Err(Error::invalid(
            format!("a {one} of {} bytes", bytes.len()),
            format!("{many} have at most {max} bytes"),
        ));
    }
    Ok(())
}

fn check_count(count: usize, what: &str) -> Result<()> {
    if count > BATCH_OPS_MAX {
        return Err(Error::invalid(
            format!("{count} {what} in one request"),
            format!("at most {BATCH_OPS_MAX} go into one request"),
        ));
    }
    Ok(())
}

fn check_request_bytes(bytes: usize) -> Result<()> {
    if bytes > REQUEST_BYTES_MAX {
        return Err(Error::invalid(
            format!("a request of {bytes} bytes"),
            format!("requests have at most {REQUEST_BYTES_MAX} bytes; send several"),
        ));
    }
    Ok(())
}

/// Checks one write; returns its bytes.
fn check_op(op: &v1::WriteOp) -> Result<usize> {
    match &op.op {
        None => Err(Error::invalid("a write without an operation", "name put, delete or compare_and_swap")),
        Some(Op::Put(put)) => {
            check_key(&put.key)?;
            check_value(&put.value)?;
            check_ttl(put.ttl_ms)?;
            Ok(put.key.len() + put.value.len())
        }
        Some(Op::Delete(delete)) => {
            check_key(&delete.key)?;
            Ok(delete.key.len())
        }
        Some(Op::CompareAndSwap(swap)) => check_swap(swap),
    }
}

fn check_ttl(ttl_ms: u64) -> Result<()> {
    if ttl_ms > TTL_MS_MAX {
        return Err(Error::invalid(
            format!("a ttl of {ttl_ms} ms"),
            format!("a ttl is at most {TTL_MS_MAX} ms (ten years); 0: the key stays"),
        ));
    }
    Ok(())
}

fn check_swap(swap: &v1::CompareAndSwap) -> Result<usize> {
    check_key(&swap.key)?;
    check_ttl(swap.ttl_ms)?;
    if swap.ttl_ms > 0 && swap.new_value.is_none() {
        return Err(Error::invalid("a ttl without a new value", "name a new value, or leave the ttl out"));
    }
    let expected = match &swap.expect {
        Some(Expect::Value(value)) => {
            check_value(value)?;
            value.len()
        }
        Some(Expect::Version(0)) | Some(Expect::Absent(false)) | None => {
            return Err(Error::invalid(
                "a compare-and-swap without a condition",
                "expect a value, a version above 0, or absent = true",
            ));
        }
        Some(Expect::Version(_)) | Some(Expect::Absent(true)) => 0,
    };
    let new_bytes = swap.new_value.as_ref().map_or(0, Bytes::len);
    swap.new_value.as_ref().map_or(Ok(()), check_value)?;
    Ok(swap.key.len() + expected + new_bytes)
}

fn check_scan(scan: &v1::ScanRequest) -> Result<()> {
    if !scan.token.is_empty() {
        return token::decode(&scan.token).map(|_| ());
    }
    check_bounds(&scan.start, &scan.end)
}

/// Checks the bounds of a span; an empty end is that of the keyspace.
pub(super) fn check_bounds(start: &Bytes, end: &Bytes) -> Result<()> {
    for bound in [start, end] {
        check_length(bound, token::BOUND_BYTES_MAX, "bound", "bounds of a span")?;
    }
    if !end.is_empty() && end < start {
        return Err(Error::invalid(
            "the span's end lies before its start",
            "give the bounds in key order, also for a reverse scan",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key_bytes: usize, value_bytes: usize) -> v1::WriteOp {
        let put = v1::Put {
            key: vec![b'k'; key_bytes].into(),
            value: vec![0; value_bytes].into(),
            if_absent: false,
            ttl_ms: 0,
        };
        v1::WriteOp { op: Some(Op::Put(put)) }
    }

    fn write(ops: Vec<v1::WriteOp>) -> Body {
        Body::Write(v1::BatchRequest { ops, ..Default::default() })
    }

    fn swap(expect: Option<Expect>) -> Body {
        let op = v1::CompareAndSwap { key: "k".into(), expect, new_value: None, ttl_ms: 0 };
        write(vec![v1::WriteOp { op: Some(Op::CompareAndSwap(op)) }])
    }

    fn with_ttl(ttl_ms: u64, has_value: bool) -> Body {
        let new_value = has_value.then(|| "v".into());
        let op = v1::CompareAndSwap { key: "k".into(), expect: Some(Expect::Absent(true)), new_value, ttl_ms };
        write(vec![v1::WriteOp { op: Some(Op::CompareAndSwap(op)) }])
    }

    fn scan(start: &'static str, end: &'static str) -> Body {
        Body::Scan(v1::ScanRequest { start: start.into(), end: end.into(), ..Default::default() })
    }

    fn get(header: v1::RequestHeader) -> Body {
        Body::Get(v1::GetRequest { header: Some(header), key: "k".into() })
    }

    #[test]
    fn what_fits_passes_and_one_byte_more_does_not() {
        for good in [
            write(vec![put(KEY_BYTES_MAX, VALUE_BYTES_MAX)]),
            write(vec![put(1, 1); BATCH_OPS_MAX]),
            write(vec![]),
            with_ttl(TTL_MS_MAX, true),
            swap(Some(Expect::Version(7))),
            swap(Some(Expect::Absent(true))),
            swap(Some(Expect::Value(Bytes::new()))),
            scan("a", ""),
            scan("a", "a"),
            get(v1::RequestHeader { keyspace: "default".into(), timeout_ms: TIMEOUT_MS_MAX, ..Default::default() }),
        ] {
            assert_eq!(check(&good), Ok(()));
        }
        for bad in [
            write(vec![put(0, 1)]),
            write(vec![put(KEY_BYTES_MAX + 1, 1)]),
            write(vec![put(1, VALUE_BYTES_MAX + 1)]),
            write(vec![put(1, 1); BATCH_OPS_MAX + 1]),
            write(vec![put(8, VALUE_BYTES_MAX), put(8, REQUEST_BYTES_MAX - VALUE_BYTES_MAX)]),
            write(vec![v1::WriteOp { op: None }]),
            with_ttl(TTL_MS_MAX + 1, true),
            with_ttl(1, false),
            swap(None),
            swap(Some(Expect::Version(0))),
            swap(Some(Expect::Absent(false))),
            scan("b", "a"),
            Body::Scan(v1::ScanRequest { token: "junk".into(), ..Default::default() }),
            get(v1::RequestHeader { timeout_ms: TIMEOUT_MS_MAX + 1, ..Default::default() }),
            get(v1::RequestHeader { consistency: 9, ..Default::default() }),
        ] {
            assert!(matches!(check(&bad), Err(Error::InvalidArgument { .. })));
        }
    }
}
