//! Connections that come to a port, in plain text or under TLS.
//!
//! The handshake is a part of the connection's own first read or write: accepting never waits for it, so a caller that says
//! nothing holds up nobody else. How long it may take is for the owner of the connection to say, who stops polling it.
//!
//! A caller in plain text at a port under TLS is told so in its own language: HTTP/2's GOAWAY carries the words.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

use crate::identity::Identity;
use crate::tls::{ClientAuth, Tls};

/// The first byte of TLS.
const HANDSHAKE: u8 = 22;
const PLAIN_WORDS: &str = "this port speaks TLS, and the caller plain text: give --tls-ca (and --tls-cert, --tls-key)";

/// What a port asks of those who come.
#[derive(Clone, Debug)]
pub struct Port {
    tls: Arc<Tls>,
    auth: ClientAuth,
}

impl Port {
    /// A port under TLS. `tls` has a certificate of its own: without one every connection is refused.
    pub fn new(tls: Arc<Tls>, auth: ClientAuth) -> Self {
        Self { tls, auth }
    }

    /// Takes a connection; the handshake comes with its first read or write.
    pub fn accept(&self, stream: TcpStream) -> Accepted {
        let guest = Guest(Some(Arc::default()));
        let state = match self.tls.server(self.auth) {
            Some(config) => State::Knock(stream, config),
            None => State::Gone,
        };
        Accepted { state, guest }
    }
}

/// Who is at the other end of a connection, as far as it has shown; cheap to clone.
#[derive(Clone, Debug)]
pub struct Guest(Option<Arc<OnceLock<Certificate>>>);

/// What the handshake brought: the caller's identity, or why it cannot be read; `None`: no certificate.
type Certificate = Option<Result<Identity, String>>;

/// What a [`Guest`] has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown<'a> {
    /// The connection is plain text: anybody.
    Plain,
    /// The handshake is not over.
    Nothing,
    /// It has no certificate, and the port does not ask for one.
    Anonymous,
    /// Its certificate, which the CA has signed, says this.
    Identity(&'a Identity),
    /// Its certificate, which the CA has signed, does not say whose it is, in words.
    Unreadable(&'a str),
}

impl Guest {
    /// Of a connection in plain text.
    pub fn plain() -> Self {
        Self(None)
    }

    /// What it has shown.
    pub fn shown(&self) -> Shown<'_> {
        let Some(guest) = &self.0 else { return Shown::Plain };
        match guest.get() {
            None => Shown::Nothing,
            Some(None) => Shown::Anonymous,
            Some(Some(Ok(identity))) => Shown::Identity(identity),
            Some(Some(Err(words))) => Shown::Unreadable(words),
        }
    }
}

/// A connection that came.
pub struct Accepted {
    state: State,
    guest: Guest,
}

enum State {
    Plain(TcpStream),
    /// Nothing has been read yet.
    Knock(TcpStream, Arc<ServerConfig>),
    Shaking(Box<Accept<TcpStream>>),
    Open(Box<TlsStream<TcpStream>>),
    /// Plain text where TLS is spoken: so much of the answer is sent.
    Turned(TcpStream, usize),
    Gone,
}

impl std::fmt::Debug for Accepted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accepted").field("guest", &self.guest).finish_non_exhaustive()
    }
}

impl Accepted {
    /// A connection in plain text.
    pub fn plain(stream: TcpStream) -> Self {
        Self { state: State::Plain(stream), guest: Guest::plain() }
    }

    /// Who is at the other end.
    pub fn guest(&self) -> Guest {
        self.guest.clone()
    }

    /// Ready when bytes can be exchanged.
    fn poll_open(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.state {
                State::Plain(_) | State::Open(_) => return Poll::Ready(Ok(())),
                State::Gone => return Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
                State::Knock(stream, _) => {
                    let mut first = [0];
                    let mut buffer = ReadBuf::new(&mut first);
                    if ready!(stream.poll_peek(context, &mut buffer))? == 0 {
                        self.state = State::Gone;
                        continue;
                    }
                    let State::Knock(stream, config) = std::mem::replace(&mut self.state, State::Gone) else {
                        continue;
                    };
                    self.state = match first {
                        [HANDSHAKE] => State::Shaking(Box::new(TlsAcceptor::from(config).accept(stream))),
                        _ => State::Turned(stream, 0),
                    };
                }
                State::Shaking(accept) => {
                    let shaken = ready!(Pin::new(&mut **accept).poll(context));
                    self.state = State::Gone;
                    let stream = shaken.inspect_err(|error| tell(&format!("no TLS with a caller: {error}")))?;
                    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                    if let Some(guest) = &self.guest.0 {
                        // Set here alone, and once.
                        let _ = guest.set(certificate.map(Identity::of_certificate));
                    }
                    self.state = State::Open(Box::new(stream));
                }
                State::Turned(stream, sent) => {
                    let answer = goaway();
                    while *sent < answer.len() {
                        *sent += ready!(Pin::new(&mut *stream).poll_write(context, &answer[*sent..]))?;
                        if *sent == answer.len() {
                            tell("a caller speaks plain text at a port that speaks TLS");
                        }
                    }
                    ready!(Pin::new(&mut *stream).poll_shutdown(context))?;
                    // What it sent is taken in until it closes: closing before would take the answer away from it.
                    let mut rest = [0; 512];
                    let mut buffer = ReadBuf::new(&mut rest);
                    ready!(Pin::new(&mut *stream).poll_read(context, &mut buffer))?;
                    if buffer.filled().is_empty() {
                        self.state = State::Gone;
                    }
                }
            }
        }
    }
}

/// HTTP/2: no settings, and the end with its reason: INADEQUATE_SECURITY, and words.
fn goaway() -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
    let length = u8::try_from(8 + PLAIN_WORDS.len()).unwrap_or(u8::MAX);
    bytes.extend([0, 0, length, 7, 0, 0, 0, 0, 0]);
    bytes.extend([0, 0, 0, 0, 0, 0, 0, 12]);
    bytes.extend(PLAIN_WORDS.as_bytes());
    bytes
}

/// Logs, at most once a second: who comes with the wrong certificate comes again and again.
fn tell(words: &str) {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    if LAST.swap(now, Ordering::Relaxed) != now {
        tracing::warn!("{words}");
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_open(context))?;
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            State::Open(stream) => Pin::new(stream).poll_read(context, buffer),
            _ => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(context))?;
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            State::Open(stream) => Pin::new(stream).poll_write(context, bytes),
            _ => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_flush(context),
            State::Open(stream) => Pin::new(stream).poll_flush(context),
            // Nothing was written yet.
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Plain(stream) | State::Knock(stream, _) | State::Turned(stream, _) => {
                Pin::new(stream).poll_shutdown(context)
            }
            State::Open(stream) => Pin::new(stream).poll_shutdown(context),
            State::Shaking(_) | State::Gone => Poll::Ready(Ok(())),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(context))?;
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            State::Open(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            _ => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.state {
            State::Plain(stream) => stream.is_write_vectored(),
            State::Open(stream) => stream.is_write_vectored(),
            // Not known yet: both can.
            _ => true,
        }
    }
}
