//! The paging token of scans: the span that is still to be read, and nothing held on a server.
//!
//! Bytes: `0x01 | flags | start length (2 bytes, big-endian) | start | end | crc32 (4 bytes,
//! big-endian, of all before)`. Flags: bit 0 = reverse. `end` is what lies between start and crc,
//! empty: the end of the keyspace. A token outlives splits, restarts and leader changes. The crc
//! finds accidents, not forgeries: a token gives no more rights than a start and an end.

use bytes::{BufMut, Bytes, BytesMut};
use flotilla_proto::limits::KEY_BYTES_MAX;
use flotilla_proto::{Error, Result};

/// The layout's version, first byte of every token.
const VERSION: u8 = 1;
const FLAG_REVERSE: u8 = 1;
/// A bound may be the successor of the longest key: the key and a zero byte.
pub(super) const BOUND_BYTES_MAX: usize = KEY_BYTES_MAX + 1;
const HEAD_BYTES: usize = 4;
const CRC_BYTES: usize = 4;

/// The span that a scan has still to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// First key.
    pub start: Bytes,
    /// First key after the span; empty: the end of the keyspace.
    pub end: Bytes,
    /// From the end to the start.
    pub reverse: bool,
}

/// The token of a span.
pub fn encode(span: &Span) -> Bytes {
    let mut token = BytesMut::with_capacity(HEAD_BYTES + span.start.len() + span.end.len() + CRC_BYTES);
    token.put_u8(VERSION);
    token.put_u8(if span.reverse { FLAG_REVERSE } else { 0 });
    // Longer bounds cannot come here: they are refused before a scan begins.
    token.put_u16(u16::try_from(span.start.len()).unwrap_or(u16::MAX));
    token.put_slice(&span.start);
    token.put_slice(&span.end);
    token.put_u32(crc32fast::hash(&token));
    token.freeze()
}

/// The span of a token; a token that none of ours wrote is an [`Error::InvalidArgument`].
pub fn decode(token: &Bytes) -> Result<Span> {
    parse(token).ok_or_else(|| {
        Error::invalid("the scan token is not one of this cluster's", "pass next_token of the page before, unchanged")
    })
}

fn parse(token: &Bytes) -> Option<Span> {
    let body_bytes = token.len().checked_sub(CRC_BYTES)?;
    let (body, crc) = token.split_at_checked(body_bytes)?;
    if crc32fast::hash(body).to_be_bytes() != *crc {
        return None;
    }
    let [version, flags, high, low, ..] = *body else { return None };
    if version != VERSION || flags & !FLAG_REVERSE != 0 {
        return None;
    }
    let start_end = HEAD_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if start_end > body_bytes || start_end > HEAD_BYTES + BOUND_BYTES_MAX || body_bytes - start_end > BOUND_BYTES_MAX {
        return None;
    }
    let (start, end) = (token.slice(HEAD_BYTES..start_end), token.slice(start_end..body_bytes));
    Some(Span { start, end, reverse: flags == FLAG_REVERSE })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: &str, end: &str, reverse: bool) -> Span {
        Span { start: Bytes::copy_from_slice(start.as_bytes()), end: Bytes::copy_from_slice(end.as_bytes()), reverse }
    }

    #[test]
    fn the_bytes_are_as_documented() {
        let token = encode(&span("ab", "c", true));
        assert_eq!(&token[..7], b"\x01\x01\x00\x02abc");
        assert_eq!(token[7..], crc32fast::hash(b"\x01\x01\x00\x02abc").to_be_bytes());
    }

    #[test]
    fn every_span_comes_back() {
        for (start, end) in [("", ""), ("a", ""), ("", "z"), ("a\0", "b")] {
            for reverse in [false, true] {
                let span = span(start, end, reverse);
                assert_eq!(decode(&encode(&span)), Ok(span));
            }
        }
        let longest =
            Span { start: vec![7; BOUND_BYTES_MAX].into(), end: vec![8; BOUND_BYTES_MAX].into(), reverse: false };
        assert_eq!(decode(&encode(&longest)), Ok(longest));
    }

    #[test]
    fn no_changed_or_cut_token_passes() {
        let token = encode(&span("start", "stop", false));
        for at in 0..token.len() {
            for bit in 0..8 {
                let mut bad = token.to_vec();
                bad[at] ^= 1 << bit;
                assert!(decode(&bad.into()).is_err(), "byte {at} bit {bit}");
            }
            assert!(decode(&token.slice(..at)).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_right_crc_over_wrong_contents_does_not_pass() {
        for body in [&b"\x02\x00\x00\x00"[..], b"\x01\x02\x00\x00", b"\x01\x00\x00\x05abc", b"\x01\x00\x00", b""] {
            let token = [body, &crc32fast::hash(body).to_be_bytes()].concat();
            assert!(decode(&token.into()).is_err(), "{body:?}");
        }
    }
}
