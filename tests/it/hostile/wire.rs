//! HTTP/2 by hand: what no library would send. Frames as RFC 9113 has them, headers as literals without tables (RFC 7541).

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::PATIENCE;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;

pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// REFUSED_STREAM, by which a server says that it has not looked at a request.
pub const REFUSED: u32 = 7;

/// A frame that came.
#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of a RST_STREAM.
    pub fn code(&self) -> u32 {
        u32::from_be_bytes(self.payload[..4].try_into().expect("four bytes"))
    }
}

/// A frame's bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn literal(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| {
        // An integer with a prefix of seven bits.
        let mut bytes = Vec::new();
        match u8::try_from(text.len()).ok().filter(|length| *length < 127) {
            Some(length) => bytes.push(length),
            None => {
                bytes.push(127);
                let mut rest = text.len() - 127;
                while rest >= 128 {
                    bytes.push(rest as u8 | 0x80);
                    rest >>= 7;
                }
                bytes.push(rest as u8);
            }
        }
        bytes.extend(text.bytes());
        bytes
    };
    [vec![0], text(name), text(value)].concat()
}

/// The headers of a gRPC call, and some more.
pub fn call(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let usual = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "test"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    usual.iter().chain(more).flat_map(|(name, value)| literal(name, value)).collect()
}

/// A gRPC message: its flag and its length, which may be any, and its bytes.
pub fn message(compressed: bool, claimed: u32, bytes: &[u8]) -> Vec<u8> {
    [&[u8::from(compressed)][..], &claimed.to_be_bytes(), bytes].concat()
}

/// A connection that can send anything.
pub struct Connection {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// One on which nothing was said yet.
    pub fn silent(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("the node listens");
        stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a plain socket");
        stream.set_write_timeout(Some(PATIENCE)).expect("a plain socket");
        Self { stream, buffer: Vec::new() }
    }

    /// One that has begun with HTTP/2.
    pub fn begun(address: &str) -> Self {
        let mut connection = Self::silent(address);
        connection.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).expect("the node takes it");
        connection
    }

    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Takes what has come; true: the connection is closed.
    pub fn closed(&mut self) -> bool {
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) => true,
            Ok(length) => {
                self.buffer.extend_from_slice(&bytes[..length]);
                false
            }
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted),
        }
    }

    /// Waits until the node closes it, and returns how long that took; `meanwhile` is done about ten times a second.
    pub fn until_closed(&mut self, what: &str, mut meanwhile: impl FnMut(&mut Self)) -> Duration {
        let begun = Instant::now();
        while !self.closed() {
            assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} for the end of {what}");
            meanwhile(self);
        }
        begun.elapsed()
    }

    /// The next frame that is not of the connection's own keeping; `None`: it was closed. Answers what must be answered.
    pub fn next(&mut self, what: &str) -> Option<Frame> {
        let begun = Instant::now();
        loop {
            if let Some(frame) = self.taken() {
                match frame.kind {
                    SETTINGS | PING if frame.flags & ACK != 0 => None,
                    SETTINGS => self.send(&self::frame(SETTINGS, ACK, 0, &[])).ok(),
                    PING => self.send(&self::frame(PING, ACK, 0, &frame.payload)).ok(),
                    WINDOW_UPDATE => None,
                    _ => return Some(frame),
                };
                continue;
            }
            if self.closed() {
                return None;
            }
            assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} for: {what}");
        }
    }

    /// Answers what has come so far and must be answered, without waiting.
    pub fn keep(&mut self) {
        self.stream.set_nonblocking(true).expect("a plain socket");
        self.closed();
        while let Some(came) = self.taken() {
            if came.flags & ACK == 0 && [SETTINGS, PING].contains(&came.kind) {
                let payload = if came.kind == PING { &came.payload[..] } else { &[] };
                // One that the node has closed needs no answer.
                self.send(&frame(came.kind, ACK, 0, payload)).ok();
            }
        }
        self.stream.set_nonblocking(false).expect("a plain socket");
    }

    fn taken(&mut self) -> Option<Frame> {
        let (head, rest) = self.buffer.split_first_chunk::<9>()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let payload = rest.get(..length)?.to_vec();
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let frame = Frame { kind: head[3], flags: head[4], stream, payload };
        self.buffer.drain(..9 + length);
        Some(frame)
    }
}
