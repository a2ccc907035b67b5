//! ZooKeeper's protocol, as much of it as a load needs: frames of big-endian records (jute), each behind its length.
//!
//! ```text
//! request: length i32, xid i32, operation i32, record        reply: length i32, xid i32, zxid i64, error i32, record
//! ```
//! Strings and buffers stand behind their length as well. Replies come in the order of the requests.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Of a ping and its reply.
pub const PING_XID: i32 = -2;
/// Any version of a node will do.
pub const ANY_VERSION: i32 = -1;
/// No reply is longer: values are at most a MiB (`jute.maxbuffer`).
const FRAME_MAX: usize = 4 << 20;

pub const OK: i32 = 0;
pub const NO_NODE: i32 = -101;
pub const BAD_VERSION: i32 = -103;
pub const NODE_EXISTS: i32 = -110;

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    Create {
        path: &'a str,
        data: &'a [u8],
    },
    GetData {
        path: &'a str,
    },
    SetData {
        path: &'a str,
        data: &'a [u8],
        version: i32,
    },
    /// Whatever the leader has committed by now is there for the reads of this session that follow.
    Sync {
        path: &'a str,
    },
    Ping,
    CloseSession,
}

impl Request<'_> {
    pub fn frame(&self, xid: i32) -> Bytes {
        let mut out = BytesMut::new();
        out.put_i32(0);
        out.put_i32(xid);
        out.put_i32(self.operation());
        match self {
            Self::Create { path, data } => {
                put_buffer(&mut out, path.as_bytes());
                put_buffer(&mut out, data);
                // Everything is allowed to everyone, and the node is an ordinary one.
                out.put_i32(1);
                out.put_i32(31);
                put_buffer(&mut out, b"world");
                put_buffer(&mut out, b"anyone");
                out.put_i32(0);
            }
            Self::GetData { path } => {
                put_buffer(&mut out, path.as_bytes());
                // No watch.
                out.put_u8(0);
            }
            Self::SetData { path, data, version } => {
                put_buffer(&mut out, path.as_bytes());
                put_buffer(&mut out, data);
                out.put_i32(*version);
            }
            Self::Sync { path } => put_buffer(&mut out, path.as_bytes()),
            Self::Ping | Self::CloseSession => {}
        }
        framed(out)
    }

    fn operation(&self) -> i32 {
        match self {
            Self::Create { .. } => 1,
            Self::GetData { .. } => 4,
            Self::SetData { .. } => 5,
            Self::Sync { .. } => 9,
            Self::Ping => 11,
            Self::CloseSession => -11,
        }
    }
}

/// What a connection begins with: asks for a new session.
pub fn connect(session_timeout_ms: i32) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i32(0);
    // The protocol's version, and the last transaction seen.
    out.put_i32(0);
    out.put_i64(0);
    out.put_i32(session_timeout_ms);
    // No session yet, hence no password; and not for reads alone.
    out.put_i64(0);
    put_buffer(&mut out, &[0; 16]);
    out.put_u8(0);
    framed(out)
}

/// Whether a session was given: its id is not zero.
pub fn connected(frame: &Bytes) -> bool {
    // The protocol's version and the timeout come first.
    frame.get(8..16).is_some_and(|id| id != [0; 8])
}

/// A reply without its frame.
#[derive(Debug, PartialEq)]
pub struct Reply {
    pub xid: i32,
    pub error: i32,
    record: Bytes,
}

impl Reply {
    /// `None`: it is none.
    pub fn read(mut frame: Bytes) -> Option<Self> {
        if frame.len() < 16 {
            return None;
        }
        let xid = frame.get_i32();
        let _zxid = frame.get_i64();
        let error = frame.get_i32();
        Some(Self { xid, error, record: frame })
    }

    /// Of `GetData`: how long the value is, and the node's version.
    pub fn data(&self) -> Option<(usize, i32)> {
        let mut record = self.record.clone();
        // A value that is not there has length -1.
        let length = usize::try_from(record.try_get_i32().ok()?).unwrap_or(0);
        // Before the version: two transactions' ids and two times.
        let version_at = length.checked_add(32)?;
        if record.len() < version_at + 4 {
            return None;
        }
        record.advance(version_at);
        Some((length, record.get_i32()))
    }
}

/// The first whole frame; `Ok(None)`: not there yet.
pub fn take_frame(read: &mut BytesMut) -> Result<Option<Bytes>, String> {
    let Some(length) = read.first_chunk().map(|length| i32::from_be_bytes(*length)) else { return Ok(None) };
    let length = usize::try_from(length).ok().filter(|length| *length <= FRAME_MAX);
    let length = length.ok_or("a reply of impossible length")?;
    if read.len() < 4 + length {
        return Ok(None);
    }
    read.advance(4);
    Ok(Some(read.split_to(length).freeze()))
}

fn put_buffer(out: &mut BytesMut, bytes: &[u8]) {
    out.put_i32(i32::try_from(bytes.len()).expect("values are far smaller than 2 GiB"));
    out.put_slice(bytes);
}

/// Puts the length into the four bytes that were left for it.
fn framed(mut out: BytesMut) -> Bytes {
    let length = i32::try_from(out.len() - 4).expect("values are far smaller than 2 GiB");
    out[..4].copy_from_slice(&length.to_be_bytes());
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_framed_as_the_protocol_says() {
        let frame = Request::SetData { path: "/a", data: b"xyz", version: ANY_VERSION }.frame(7);
        let wanted = b"\0\0\0\x19\0\0\0\x07\0\0\0\x05\0\0\0\x02/a\0\0\0\x03xyz\xff\xff\xff\xff";
        assert_eq!(frame, &wanted[..]);
        let frame = Request::GetData { path: "/a" }.frame(8);
        assert_eq!(frame, &b"\0\0\0\x0f\0\0\0\x08\0\0\0\x04\0\0\0\x02/a\0"[..]);
        let frame = Request::Ping.frame(PING_XID);
        assert_eq!(frame, &b"\0\0\0\x08\xff\xff\xff\xfe\0\0\0\x0b"[..]);
        let frame = Request::Create { path: "/a", data: b"" }.frame(1);
        assert!(frame.ends_with(b"\0\0\0\x01\0\0\0\x1f\0\0\0\x05world\0\0\0\x06anyone\0\0\0\0"), "{frame:?}");
        assert_eq!(connect(30_000).len(), 4 + 4 + 8 + 4 + 8 + 20 + 1);
    }

    #[test]
    fn frames_are_taken_when_they_are_whole() {
        let mut read = BytesMut::from(&b"\0\0\0\x02ab\0\0\0\x01"[..]);
        assert_eq!(take_frame(&mut read), Ok(Some(Bytes::from_static(b"ab"))));
        assert_eq!(take_frame(&mut read), Ok(None));
        read.extend_from_slice(b"c\0\0");
        assert_eq!(take_frame(&mut read), Ok(Some(Bytes::from_static(b"c"))));
        assert_eq!(take_frame(&mut read), Ok(None));
        assert!(take_frame(&mut BytesMut::from(&b"\xff\xff\xff\xff"[..])).is_err());
    }

    #[test]
    fn length_and_version_of_a_value_are_read() {
        let mut frame = BytesMut::new();
        frame.put_i32(3);
        frame.put_i64(99);
        frame.put_i32(OK);
        put_buffer(&mut frame, b"xyz");
        frame.put_slice(&[0; 32]);
        frame.put_i32(5);
        frame.put_slice(&[0; 32]);
        let reply = Reply::read(frame.freeze()).expect("whole");
        assert_eq!((reply.xid, reply.error, reply.data()), (3, OK, Some((3, 5))));
        let short = Reply { record: reply.record.slice(..20), ..reply };
        assert_eq!(short.data(), None);
        assert_eq!(Reply::read(Bytes::from_static(b"short")), None);
    }

    #[test]
    fn a_session_that_was_not_given_is_known() {
        let mut given = BytesMut::new();
        given.put_i32(0);
        given.put_i32(30_000);
        given.put_i64(1);
        assert!(connected(&given.clone().freeze()));
        given[15] = 0;
        assert!(!connected(&given.freeze()));
        assert!(!connected(&Bytes::new()));
    }
}
