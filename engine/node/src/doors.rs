//! The doors of a node: takes the connections that come to a port, but only so many, and closes those
//! that do not say in time what they are here for.
//!
//! Whoever can reach a port can otherwise hold its file descriptors and memory for ever by connecting
//! and saying nothing. What counts as having said enough: the first bytes of HTTP/2 at the client port,
//! an admitted handshake at the peer port, at the http port that it is answered, again and again. Under TLS its handshake
//! counts into the same time. Beyond the bound a connection is closed at once, so that its client asks another node
//! instead of waiting here. Both are counted.

use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use flotilla_tls::{Accepted, Guest, Port};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use crate::corked::{Corked, HELD_MAX};
use crate::counters::Counters;

/// Bytes that every HTTP/2 connection begins with.
const PREFACE_BYTES: usize = 24;
/// How long nothing is accepted after the system refused to: it is out of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// What a connection must have said in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// As many bytes as HTTP/2 begins with.
    Preface,
    /// What makes its service call [`Caller::known`].
    Handshake,
    /// Whatever is answered: each byte that it takes of an answer begins its time anew.
    Answer,
}

/// The connections that come to one port.
#[derive(Debug)]
pub struct Doors {
    listener: TcpListener,
    slots: Arc<Semaphore>,
    patience: Duration,
    proof: Proof,
    /// `None`: plain text.
    tls: Option<Port>,
    /// After a refusal of the system.
    pause: Option<Pin<Box<Sleep>>>,
    /// Connections are being turned away: said once each time that this begins.
    full: bool,
    counters: Arc<Counters>,
}

impl Doors {
    /// At most `connections_max` at once; each has `patience` time for its `proof`.
    pub fn new(listener: TcpListener, connections_max: usize, patience: Duration, proof: Proof) -> Self {
        let slots = Arc::new(Semaphore::new(connections_max));
        let counters = Arc::default();
        Self { listener, slots, patience, proof, tls: None, pause: None, full: false, counters }
    }

    /// The same doors; whom they turn away is counted here.
    #[must_use]
    pub fn counted(self, counters: Arc<Counters>) -> Self {
        Self { counters, ..self }
    }

    /// The same doors under TLS; `None`: in plain text.
    #[must_use]
    pub fn under(self, tls: Option<Port>) -> Self {
        Self { tls, ..self }
    }

    fn admit(&mut self, stream: TcpStream, address: SocketAddr) -> Option<Door> {
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            if !self.full {
                tracing::warn!(%address, "too many connections: this one and further ones are closed at once");
            }
            self.full = true;
            self.counters.connections_refused.add(1);
            return None;
        };
        self.full = false;
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%address, %error, "a connection was gone before it was taken");
            return None;
        }
        let stream = match &self.tls {
            Some(port) => port.accept(stream),
            None => Accepted::plain(stream),
        };
        let caller = Caller { address, known: Arc::default(), guest: stream.guest() };
        let patience = Some(Box::pin(sleep(self.patience)));
        let preface = if self.proof == Proof::Preface { PREFACE_BYTES } else { usize::MAX };
        let renewed = (self.proof == Proof::Answer).then_some(self.patience);
        // Calls of many clients are answered at the client port; what the others say is gathered before it gets here.
        let held_max = if self.proof == Proof::Preface { HELD_MAX } else { 0 };
        let stream = Corked::new(stream, held_max);
        Some(Door { stream, caller, patience, preface, renewed, counters: Arc::clone(&self.counters), _slot: slot })
    }
}

impl Stream for Doors {
    type Item = io::Result<Door>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(context)) {
                Ok((stream, address)) => {
                    if let Some(door) = self.admit(stream, address) {
                        return Poll::Ready(Some(Ok(door)));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    self.pause = Some(Box::pin(sleep(PAUSE)));
                }
            }
        }
    }
}

/// Who is at the other end of a connection; its requests carry it as an extension.
#[derive(Clone, Debug)]
pub struct Caller {
    address: SocketAddr,
    known: Arc<AtomicBool>,
    guest: Guest,
}

impl Caller {
    /// Where it comes from.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Who it is by its certificate.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// It has proven that it belongs here: the connection may stay.
    pub fn known(&self) {
        self.known.store(true, Ordering::Release);
    }
}

/// One connection.
#[derive(Debug)]
pub struct Door {
    stream: Corked<Accepted>,
    caller: Caller,
    /// `None` once it has said enough.
    patience: Option<Pin<Box<Sleep>>>,
    /// Bytes that are still to come until it has.
    preface: usize,
    /// The time that begins anew with each byte of an answer.
    renewed: Option<Duration>,
    counters: Arc<Counters>,
    _slot: OwnedSemaphorePermit,
}

impl Door {
    /// Who is at the other end.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let Some(patience) = &mut self.patience else { return Ok(()) };
        let in_time = patience.as_mut().poll(context).is_pending();
        if self.caller.known.load(Ordering::Acquire) {
            self.patience = None;
        } else if !in_time {
            self.counters.connections_timed_out.add(1);
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the connection did not say in time what it is for"));
        }
        Ok(())
    }

    fn answered(&mut self, written: usize) {
        if let (Some(again), Some(patience)) = (self.renewed.filter(|_| written > 0), &mut self.patience) {
            patience.as_mut().reset(Instant::now() + again);
        }
    }
}

impl AsyncRead for Door {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if self.patience.is_some() && self.preface != usize::MAX {
            self.preface = self.preface.saturating_sub(buffer.filled().len() - before);
            if self.preface == 0 {
                self.patience = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Door {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(context)?;
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.answered(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, slices))?;
        self.answered(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Connected for Door {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;
    use tokio_stream::StreamExt;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    async fn doors(connections_max: usize, patience: Duration, proof: Proof) -> (Doors, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        (Doors::new(listener, connections_max, patience, proof), address)
    }

    async fn next(doors: &mut Doors) -> Door {
        timeout(DEADLINE, doors.next()).await.expect("in time").expect("doors never end").expect("accepted")
    }

    async fn read(door: &mut Door) -> io::Result<usize> {
        timeout(DEADLINE, door.read(&mut [0; 64])).await.expect("in time")
    }

    #[tokio::test]
    async fn who_says_too_little_is_let_go_and_who_says_enough_may_be_idle() {
        for proof in [Proof::Preface, Proof::Handshake] {
            let (mut doors, address) = doors(4, Duration::from_millis(50), proof).await;
            let mut client = TcpStream::connect(address).await.expect("it listens");
            let mut door = next(&mut doors).await;
            client.write_all(b"PRI").await.expect("sent");
            assert_eq!(read(&mut door).await.expect("it came"), 3);
            assert_eq!(read(&mut door).await.expect_err("silence").kind(), io::ErrorKind::TimedOut);
        }
        let (mut doors, address) = doors(4, Duration::from_millis(50), Proof::Preface).await;
        let mut client = TcpStream::connect(address).await.expect("it listens");
        let mut door = next(&mut doors).await;
        client.write_all(&[1; PREFACE_BYTES]).await.expect("sent");
        assert_eq!(read(&mut door).await.expect("it came"), PREFACE_BYTES);
        let longer = timeout(Duration::from_millis(200), door.read(&mut [0; 64])).await;
        assert!(longer.is_err(), "it waits: {longer:?}");
    }

    #[tokio::test]
    async fn a_known_caller_may_be_idle() {
        let (mut doors, address) = doors(4, Duration::from_millis(50), Proof::Handshake).await;
        let _client = TcpStream::connect(address).await.expect("it listens");
        let mut door = next(&mut doors).await;
        door.connect_info().known();
        let longer = timeout(Duration::from_millis(200), door.read(&mut [0; 64])).await;
        assert!(longer.is_err(), "it waits: {longer:?}");
    }

    #[tokio::test]
    async fn who_is_to_be_answered_and_is_not_is_let_go() {
        let (mut doors, address) = doors(4, Duration::from_millis(200), Proof::Answer).await;
        let mut client = TcpStream::connect(address).await.expect("it listens");
        let mut door = next(&mut doors).await;
        // Whatever it says, that does not count.
        client.write_all(&[1; 64]).await.expect("sent");
        assert_eq!(read(&mut door).await.expect("it came"), 64);
        // Answers do: with each of them the time begins anew.
        for _ in 0..4 {
            let longer = timeout(Duration::from_millis(100), door.read(&mut [0; 64])).await;
            assert!(longer.is_err(), "it waits: {longer:?}");
            door.write_all(b"answer").await.expect("sent");
        }
        assert_eq!(read(&mut door).await.expect_err("silence").kind(), io::ErrorKind::TimedOut);
        assert_eq!(door.counters.connections_timed_out.get(), 1);
    }

    #[tokio::test]
    async fn one_too_many_is_closed_at_once_and_its_place_is_free_again_later() {
        let (mut doors, address) = doors(1, DEADLINE, Proof::Preface).await;
        let _first = TcpStream::connect(address).await.expect("it listens");
        let door = next(&mut doors).await;
        let mut second = TcpStream::connect(address).await.expect("it listens");
        let mut buffer = [0; 8];
        tokio::select! {
            door = doors.next() => panic!("there was no place: {door:?}"),
            end = timeout(DEADLINE, second.read(&mut buffer)) => {
                assert!(matches!(end.expect("in time"), Ok(0) | Err(_)));
            }
        }
        assert_eq!(doors.counters.connections_refused.get(), 1);
        drop(door);
        let _third = TcpStream::connect(address).await.expect("it listens");
        next(&mut doors).await;
    }
}
