//! Answers on their way back to whoever asked.
//!
//! A stream of requests shares one [`ReplySink`]: answers gather in it, and the taker is woken once for
//! all that a turn of the store's loop answered. Lone requests have a channel of their own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use flotilla_proto::v1;
use prost::Message;
use tokio::sync::{Notify, oneshot};

/// A pair for one stream of requests.
pub fn replies() -> (ReplySink, Replies) {
    let shared = Arc::new(Shared::default());
    shared.sinks.store(1, Ordering::Relaxed);
    (ReplySink { shared: Arc::clone(&shared) }, Replies { shared })
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    sinks: AtomicUsize,
    in_flight: AtomicUsize,
    /// Bytes of answers that have not been taken.
    bytes: AtomicUsize,
    room: Notify,
}

#[derive(Debug, Default)]
struct State {
    ready: Vec<v1::Response>,
    waker: Option<Waker>,
    /// The taker is gone.
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        let waker = self.lock().waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Where the answers of one stream go.
#[derive(Debug)]
pub struct ReplySink {
    shared: Arc<Shared>,
}

impl ReplySink {
    /// Requests that were submitted and whose answers have not been taken.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::Acquire)
    }

    /// Waits until fewer than `max` are in flight, and answers of less than `bytes_max` wait to be taken:
    /// read no more from the client before.
    pub async fn until_below(&self, max: usize, bytes_max: usize) {
        loop {
            let room = self.shared.room.notified();
            let bytes = self.shared.bytes.load(Ordering::Acquire);
            if self.in_flight() < max && bytes < bytes_max || self.shared.lock().closed {
                return;
            }
            room.await;
        }
    }

    /// Adds an answer to a request that was not submitted through this crate.
    pub fn push(&self, response: v1::Response) {
        self.submitted(1);
        if self.answer(response) {
            self.wake();
        }
    }

    pub(crate) fn submitted(&self, requests: usize) {
        self.shared.in_flight.fetch_add(requests, Ordering::AcqRel);
    }

    /// Adds the answer to a submitted request; true: it is the first since the last taking, so
    /// [`ReplySink::wake`] is due, once all answers of the moment are in.
    pub(crate) fn answer(&self, response: v1::Response) -> bool {
        let mut state = self.shared.lock();
        if state.closed {
            self.shared.in_flight.fetch_sub(1, Ordering::AcqRel);
            return false;
        }
        self.shared.bytes.fetch_add(response.encoded_len(), Ordering::AcqRel);
        state.ready.push(response);
        state.ready.len() == 1
    }

    pub(crate) fn wake(&self) {
        self.shared.wake();
    }
}

impl Clone for ReplySink {
    fn clone(&self) -> Self {
        self.shared.sinks.fetch_add(1, Ordering::Relaxed);
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl Drop for ReplySink {
    fn drop(&mut self) {
        if self.shared.sinks.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.wake();
        }
    }
}

/// Where the answers of one stream are taken.
#[derive(Debug)]
pub struct Replies {
    shared: Arc<Shared>,
}

impl Replies {
    /// All answers that are there, once there is one. `None`: every sink is dropped, so nothing is under
    /// way any more.
    pub async fn next(&mut self) -> Option<Vec<v1::Response>> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// See [`Replies::next`].
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Vec<v1::Response>>> {
        let ready = {
            let mut state = self.shared.lock();
            if state.ready.is_empty() {
                if self.shared.sinks.load(Ordering::Acquire) == 0 {
                    return Poll::Ready(None);
                }
                state.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            self.shared.bytes.store(0, Ordering::Release);
            std::mem::take(&mut state.ready)
        };
        self.shared.in_flight.fetch_sub(ready.len(), Ordering::AcqRel);
        self.shared.room.notify_waiters();
        Poll::Ready(Some(ready))
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        let untaken = std::mem::take(&mut state.ready).len();
        drop(state);
        self.shared.in_flight.fetch_sub(untaken, Ordering::AcqRel);
        self.shared.room.notify_waiters();
    }
}

/// Where one request's answer goes.
#[derive(Debug)]
pub(crate) enum Reply {
    One(oneshot::Sender<v1::Response>),
    Sink(ReplySink),
}

impl Reply {
    /// Answers at once.
    pub fn now(self, response: v1::Response) {
        match self {
            // An asker that is gone wants no answer.
            Self::One(sender) => drop(sender.send(response)),
            Self::Sink(sink) => {
                if sink.answer(response) {
                    sink.wake();
                }
            }
        }
    }
}

/// The sinks that a turn has put answers into: woken together at its end.
#[derive(Debug, Default)]
pub(crate) struct Wakes {
    due: Vec<ReplySink>,
}

impl Wakes {
    /// Answers now, and wakes at [`Wakes::flush`].
    pub fn answer(&mut self, reply: Reply, response: v1::Response) {
        match reply {
            Reply::One(_) => reply.now(response),
            Reply::Sink(sink) => {
                if sink.answer(response) {
                    self.due.push(sink);
                }
            }
        }
    }

    /// Wakes those whose answers are in.
    pub fn flush(&mut self) {
        self.due.drain(..).for_each(|sink| sink.wake());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(id: u64) -> v1::Response {
        v1::Response { id, body: None }
    }

    #[tokio::test]
    async fn answers_come_in_groups_and_end_with_the_last_sink() {
        let (sink, mut replies) = replies();
        let other = sink.clone();
        sink.submitted(2);
        assert!(sink.answer(response(1)));
        assert!(!other.answer(response(2)), "one wake-up for both");
        other.push(response(3));
        assert_eq!(sink.in_flight(), 3);
        let ids: Vec<u64> = replies.next().await.expect("three are there").iter().map(|answer| answer.id).collect();
        assert_eq!(ids, [1, 2, 3]);
        assert_eq!(sink.in_flight(), 0);
        drop((sink, other));
        assert_eq!(replies.next().await, None);
    }

    #[tokio::test]
    async fn large_answers_that_nobody_takes_leave_no_room() {
        let (sink, mut replies) = replies();
        let value = v1::Record { value: vec![0; 1_000].into(), ..Default::default() };
        let body = v1::response::Body::Get(v1::GetResponse { header: None, record: Some(value) });
        sink.push(v1::Response { id: 1, body: Some(body) });
        let waiting = tokio::spawn({
            let sink = sink.clone();
            async move { sink.until_below(usize::MAX, 1_000).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        replies.next().await;
        waiting.await.expect("the waiter ends");
    }

    #[tokio::test]
    async fn whoever_waits_for_room_goes_on_when_answers_are_taken() {
        let (sink, mut replies) = replies();
        sink.push(response(1));
        let waiting = tokio::spawn({
            let sink = sink.clone();
            async move { sink.until_below(1, usize::MAX).await }
        });
        replies.next().await;
        waiting.await.expect("the waiter ends");
        sink.submitted(1);
        drop(replies);
        assert!(!sink.answer(response(2)), "nobody is there to be woken");
        assert_eq!(sink.in_flight(), 0);
        sink.until_below(1, usize::MAX).await;
    }
}
