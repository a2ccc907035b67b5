//! Answers that leave together.
//!
//! An HTTP/2 connection is a task of its own, and writes as soon as one answer is there: of ten calls under way on a
//! connection each costs a system call and a packet, on both sides. A corked connection keeps what it is given until its
//! task has been polled once more, behind the tasks that were ready by then, so that their answers go with the same write. No
//! timer is involved: without other work the task is polled again at once. Where nothing came on top, as with one call at a
//! time, the next answers leave at once, twice as many each time, before it is tried again.
//!
//! A flush therefore succeeds before its bytes have left. Whoever drives the connection must go on polling it until it
//! is shut down, and read each time before it writes, as hyper does with HTTP/2.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// More is not kept back: what comes on top of it leaves with it.
pub(crate) const HELD_MAX: usize = 32 << 10;
/// So many flushes may pass within one poll; with more of them there is enough to send.
const FLUSHES_MAX: u32 = 64;
/// Nothing is gained by waiting: so many flushes at most are not put off until the next attempt.
const PASSES_MAX: u32 = 63;

/// What becomes of what is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    /// Nobody has asked for it.
    Unasked,
    /// It was asked for, so often, and the task will be polled again.
    Asked(u32),
    /// The task has been polled again: the next flush is one.
    Due,
    /// It is under way, and the connection has not taken all of it.
    Leaving,
}

/// A connection whose small writes are gathered. See the module.
#[derive(Debug)]
pub(crate) struct Corked<S> {
    inner: S,
    held: BytesMut,
    held_max: usize,
    flush: Flush,
    /// Something came on top of what was put off.
    gathered: bool,
    /// So many flushes are not put off; and were not, the last time.
    passes: u32,
    last_passes: u32,
}

impl<S> Corked<S> {
    /// Keeps back so many bytes at most; 0: none, ever.
    pub(crate) fn new(inner: S, held_max: usize) -> Self {
        let (held, flush) = (BytesMut::new(), Flush::Unasked);
        Self { inner, held, held_max, flush, gathered: false, passes: 0, last_passes: 0 }
    }

    /// Whether a flush may be put off, which it is this often by now.
    fn puts_off(&mut self, times: u32) -> bool {
        if times == 1 && self.passes > 0 {
            self.passes -= 1;
            return false;
        }
        times < FLUSHES_MAX
    }

    /// What is held leaves, or has left. If it was put off, whether that was worth it decides about the next ones.
    fn leave(&mut self) {
        if matches!(self.flush, Flush::Asked(_) | Flush::Due) {
            self.last_passes = if self.gathered { 0 } else { (self.last_passes * 2 + 1).min(PASSES_MAX) };
            (self.passes, self.gathered) = (self.last_passes, false);
        }
        self.flush = if self.held.is_empty() { Flush::Unasked } else { Flush::Leaving };
    }
}

impl<S: AsyncWrite + Unpin> Corked<S> {
    /// Writes what is held, and as much of these bytes as is taken with it; returns how much of these.
    fn poll_through(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let slices = [IoSlice::new(&self.held), IoSlice::new(bytes)];
            let slices = if self.held.is_empty() { &slices[1..] } else { &slices[..] };
            let written = ready!(Pin::new(&mut self.inner).poll_write_vectored(context, slices))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_held = written.min(self.held.len());
            self.held.advance(of_held);
            if self.held.is_empty() {
                self.leave();
                if written > of_held || bytes.is_empty() {
                    return Poll::Ready(Ok(written - of_held));
                }
            }
        }
    }

    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.held.is_empty() {
            ready!(self.poll_through(context, &[]))?;
        }
        Poll::Ready(Ok(()))
    }
}

/// Has the task polled once more when its worker has nothing else to do, or has done a good deal. Waking it at once would
/// have tokio wake another worker as well, which costs more than is saved.
fn poll_again_later(context: &mut Context<'_>) {
    // Its first poll leaves the waker with the scheduler, and that is all that it is for.
    let yielded = std::pin::pin!(tokio::task::yield_now());
    let _ = yielded.poll(context);
}

impl<S: AsyncRead + Unpin> AsyncRead for Corked<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A connection reads before it writes: this is another poll than that of the flush.
        if matches!(self.flush, Flush::Asked(_)) {
            self.flush = Flush::Due;
        }
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.gathered |= matches!(self.flush, Flush::Asked(_) | Flush::Due);
        if self.held.len() + bytes.len() <= self.held_max {
            self.held.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        self.poll_through(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.held_max == 0 {
            return Pin::new(&mut self.inner).poll_write_vectored(context, slices);
        }
        // What is gathered is copied, and needs no slices.
        let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
        self.poll_write(context, first)
    }

    fn is_write_vectored(&self) -> bool {
        self.held_max == 0 && self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let asked = match self.flush {
            _ if self.held.is_empty() => None,
            Flush::Due | Flush::Leaving => None,
            Flush::Unasked => Some(1),
            Flush::Asked(times) => Some(times + 1),
        };
        if let Some(times) = asked.filter(|times| self.puts_off(*times)) {
            self.flush = Flush::Asked(times);
            poll_again_later(context);
            return Poll::Ready(Ok(()));
        }
        self.leave();
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncWriteExt;

    use super::*;

    /// A connection that notes each write, takes so many bytes at a time, and has nothing to read.
    #[derive(Debug, Default)]
    struct Noted {
        writes: Vec<Vec<u8>>,
        takes: usize,
        full: bool,
    }

    impl AsyncRead for Noted {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Noted {
        fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(context, &[IoSlice::new(bytes)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            if self.full {
                return Poll::Pending;
            }
            let bytes = slices.iter().flat_map(|slice| slice.iter().copied()).take(self.takes);
            let taken: Vec<u8> = bytes.collect();
            let count = taken.len();
            self.writes.push(taken);
            Poll::Ready(Ok(count))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn corked(takes: usize) -> Corked<Noted> {
        Corked::new(Noted { takes, ..Noted::default() }, 16)
    }

    /// As a connection does at the start of each of its polls.
    async fn reads(corked: &mut Corked<Noted>) {
        let mut room = [0; 8];
        let nothing = poll_fn(|context| {
            Poll::Ready(Pin::new(&mut *corked).poll_read(context, &mut ReadBuf::new(&mut room)).is_pending())
        });
        assert!(nothing.await);
    }

    #[tokio::test]
    async fn what_is_written_until_the_task_is_polled_again_leaves_together() {
        let mut corked = corked(100);
        for answer in [&b"one"[..], b"two"] {
            corked.write_all(answer).await.expect("kept");
            corked.flush().await.expect("put off");
        }
        assert!(corked.inner.writes.is_empty());
        reads(&mut corked).await;
        corked.write_all(b"six").await.expect("kept");
        corked.flush().await.expect("done");
        assert_eq!(corked.inner.writes, [b"onetwosix"]);
        corked.write_all(b"next").await.expect("kept");
        corked.flush().await.expect("put off again");
        assert_eq!(corked.inner.writes.len(), 1);
    }

    /// Whether the next answer leaves at once.
    async fn passes(corked: &mut Corked<Noted>) -> bool {
        let before = corked.inner.writes.len();
        corked.write_all(b"one").await.expect("kept");
        corked.flush().await.expect("done, or put off");
        let passed = corked.inner.writes.len() > before;
        reads(corked).await;
        corked.flush().await.expect("done");
        passed
    }

    #[tokio::test]
    async fn one_answer_at_a_time_leaves_at_once_and_now_and_then_it_is_tried_again() {
        let mut corked = corked(100);
        for expected in [0, 1, 3, 7, 15, 31, 63, 63] {
            for _ in 0..expected {
                assert!(passes(&mut corked).await, "of {expected}");
            }
            assert!(!passes(&mut corked).await, "behind {expected}");
        }
        for _ in 0..63 {
            assert!(passes(&mut corked).await);
        }
        for _ in 0..3 {
            corked.write_all(b"one").await.expect("kept");
            corked.flush().await.expect("put off");
            corked.write_all(b"two").await.expect("kept");
            reads(&mut corked).await;
            corked.flush().await.expect("done");
            assert_eq!(corked.inner.writes.last().expect("it left"), b"onetwo");
        }
        assert!(!passes(&mut corked).await, "there was something to gather");
    }

    #[tokio::test]
    async fn the_task_is_woken_for_what_it_put_off() {
        let mut corked = corked(100);
        corked.write_all(b"one").await.expect("kept");
        let mut polls = 0;
        poll_fn(|context| {
            polls += 1;
            let _ = Pin::new(&mut corked).poll_read(context, &mut ReadBuf::new(&mut []));
            assert!(Pin::new(&mut corked).poll_flush(context).is_ready());
            if corked.inner.writes.is_empty() { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
        assert_eq!(polls, 2);
    }

    #[tokio::test]
    async fn what_is_too_much_to_keep_leaves_at_once_and_in_order() {
        for takes in [1, 3, 7, 100] {
            let mut corked = corked(takes);
            corked.write_all(b"0123456789").await.expect("kept");
            corked.write_all(b"abcdefghij").await.expect("written");
            reads(&mut corked).await;
            corked.flush().await.expect("put off, or done");
            reads(&mut corked).await;
            corked.flush().await.expect("done");
            assert_eq!(corked.inner.writes.concat(), b"0123456789abcdefghij", "{takes} bytes at a time");
        }
        let mut corked = corked(100);
        corked.write_all(b"0123456789").await.expect("kept");
        corked.write_all(b"abcdefghij").await.expect("written");
        assert_eq!(corked.inner.writes.len(), 1, "with what was held before it");
    }

    #[tokio::test]
    async fn who_never_reads_and_who_ends_keep_nothing_back_for_ever() {
        let mut corked = corked(100);
        corked.write_all(b"one").await.expect("kept");
        for _ in 0..FLUSHES_MAX {
            corked.flush().await.expect("in the end it is one");
        }
        assert_eq!(corked.inner.writes, [b"one"]);
        corked.write_all(b"two").await.expect("kept");
        corked.shutdown().await.expect("with all of it");
        assert_eq!(corked.inner.writes.concat(), b"onetwo");
    }

    #[tokio::test]
    async fn a_connection_that_takes_nothing_for_a_while_teaches_nothing() {
        let mut corked = corked(100);
        corked.write_all(b"one").await.expect("kept");
        corked.flush().await.expect("put off");
        reads(&mut corked).await;
        corked.inner.full = true;
        for _ in 0..5 {
            let flushed = poll_fn(|context| Poll::Ready(Pin::new(&mut corked).poll_flush(context)));
            assert!(flushed.await.is_pending());
            reads(&mut corked).await;
        }
        corked.inner.full = false;
        corked.flush().await.expect("done");
        assert_eq!(corked.inner.writes, [b"one"]);
        assert_eq!(corked.passes, 1, "as behind any other answer that nothing came on top of");
    }

    #[tokio::test]
    async fn without_room_nothing_is_kept_back_nor_copied() {
        let mut corked = Corked::new(Noted { takes: 100, ..Noted::default() }, 0);
        corked.write_all(b"one").await.expect("written");
        assert!(corked.is_write_vectored());
        let slices = [IoSlice::new(b"head"), IoSlice::new(b"tail")];
        assert_eq!(corked.write_vectored(&slices).await.expect("written"), 8);
        assert_eq!(corked.inner.writes, [&b"one"[..], b"headtail"]);
    }
}
