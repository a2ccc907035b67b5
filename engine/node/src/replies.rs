//! Answers on their way back to whoever asked.
//!
//! A stream of requests shares one [`ReplySink`]: answers gather in it, and the taker is woken once for
//! all that a turn of the store's loop answered. Lone requests have a channel of their own.
//!
//! Who does not take its answers must not fill the node's memory with them. How large an answer will be nobody knows
//! before; so requests are handed on ([`ReplySink::room`]) as if those under way would get answers like the last ones. And
//! if they are larger than that, and too many bytes wait, further ones come without the values that they found.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use flotilla_proto::{Error, v1};
use prost::Message;
use tokio::sync::{Notify, oneshot};
use v1::response::Body as Answer;

/// Bytes of answers that wait to be taken; beyond, answers come without values.
const WAITING_BYTES_MAX: usize = 32 << 20;
/// What an answer is taken to be as long as none has come: the largest value.
const ANSWER_BYTES_FIRST: usize = 1 << 20;
/// The mean of answers' sizes follows each new one by such a part.
const MEAN_SHARE: usize = 16;
/// When a refused read is to be tried again.
const RETRY_MS: u64 = 50;

/// A pair for one stream of requests.
pub fn replies() -> (ReplySink, Replies) {
    let shared = Arc::new(Shared::default());
    shared.sinks.store(1, Ordering::Relaxed);
    shared.mean.store(ANSWER_BYTES_FIRST, Ordering::Relaxed);
    (ReplySink { shared: Arc::clone(&shared) }, Replies { shared })
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    sinks: AtomicUsize,
    in_flight: AtomicUsize,
    /// Bytes of answers that have not been taken.
    bytes: AtomicUsize,
    /// The size of answers, on average of late.
    mean: AtomicUsize,
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

    /// Waits until a request may be handed on, and returns how many may: fewer than `max` are to be in flight, and those,
    /// if they get answers like the last ones, are to leave less than `bytes_max` to be taken. Read no more from the
    /// client before.
    pub async fn room(&self, max: usize, bytes_max: usize) -> usize {
        loop {
            let room = self.shared.room.notified();
            let (in_flight, mean) = (self.in_flight(), self.shared.mean.load(Ordering::Acquire).max(1));
            let bytes = self.shared.bytes.load(Ordering::Acquire);
            // Where nothing is under way one may always be, however large its answer.
            let by_bytes = (bytes_max.saturating_sub(bytes) / mean).max(usize::from(bytes < bytes_max));
            let free = max.min(by_bytes).saturating_sub(in_flight);
            if free > 0 {
                return free;
            }
            if self.shared.lock().closed {
                return max;
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
    pub(crate) fn answer(&self, mut response: v1::Response) -> bool {
        let mut state = self.shared.lock();
        if state.closed {
            self.shared.in_flight.fetch_sub(1, Ordering::AcqRel);
            return false;
        }
        let bytes = response.encoded_len();
        // Under the lock: nobody else changes it.
        let mean = self.shared.mean.load(Ordering::Acquire);
        self.shared.mean.store(mean - mean / MEAN_SHARE + bytes / MEAN_SHARE, Ordering::Release);
        if self.shared.bytes.load(Ordering::Acquire) + bytes > WAITING_BYTES_MAX {
            response.body = response.body.map(without_values);
        }
        self.shared.bytes.fetch_add(response.encoded_len(), Ordering::AcqRel);
        state.ready.push(response);
        state.ready.len() == 1
    }

    pub(crate) fn wake(&self) {
        self.shared.wake();
    }
}

/// The answer without what it has found: a read is refused; of a write, which has happened, the values are left out.
fn without_values(answer: Answer) -> Answer {
    match answer {
        Answer::Get(_) | Answer::MultiGet(_) | Answer::Scan(_) => {
            let reason = format!("{WAITING_BYTES_MAX} bytes of answers on this stream wait to be taken");
            Answer::Error((&Error::ServerBusy { reason, retry_after_ms: RETRY_MS }).into())
        }
        Answer::Write(mut answer) => {
            for result in &mut answer.results {
                if let Some(v1::batch_result::Outcome::Result(result)) = &mut result.outcome {
                    result.current = None;
                }
            }
            Answer::Write(answer)
        }
        Answer::Error(error) => Answer::Error(error),
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

/// Those whom a turn has answers for. They hear of them together, at its end, so that who serves them wakes once.
#[derive(Debug, Default)]
pub(crate) struct Wakes {
    /// Lone askers hear at the end, too; otherwise at once, and nothing is kept for them.
    gathers: bool,
    lone: Vec<(oneshot::Sender<v1::Response>, v1::Response)>,
    due: Vec<ReplySink>,
}

impl Wakes {
    /// For a turn that answers many.
    pub fn gathering() -> Self {
        Self { gathers: true, lone: Vec::new(), due: Vec::new() }
    }

    /// Answers, at [`Wakes::flush`] at the latest.
    pub fn answer(&mut self, reply: Reply, response: v1::Response) {
        match reply {
            Reply::One(sender) if self.gathers => self.lone.push((sender, response)),
            Reply::One(_) => reply.now(response),
            Reply::Sink(sink) => {
                if sink.answer(response) {
                    self.due.push(sink);
                }
            }
        }
    }

    /// Lets all hear who have not yet.
    pub fn flush(&mut self) {
        // An asker that is gone wants no answer.
        self.lone.drain(..).for_each(|(sender, response)| drop(sender.send(response)));
        self.due.drain(..).for_each(|sink| sink.wake());
    }
}

/// An answer that was put off must not be lost, whatever its turn ended with.
impl Drop for Wakes {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lone_askers_hear_at_the_end_of_a_turn_or_at_once() {
        let (sender, mut receiver) = oneshot::channel();
        Wakes::default().answer(Reply::One(sender), response(1));
        assert_eq!(receiver.try_recv(), Ok(response(1)));
        for by_drop in [false, true] {
            let (sender, mut receiver) = oneshot::channel();
            let mut wakes = Wakes::gathering();
            wakes.answer(Reply::One(sender), response(2));
            assert!(receiver.try_recv().is_err(), "its turn goes on");
            if by_drop {
                drop(wakes);
            } else {
                wakes.flush();
            }
            assert_eq!(receiver.try_recv(), Ok(response(2)));
        }
    }

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

    fn large(id: u64) -> v1::Response {
        let value = v1::Record { value: vec![0; 1 << 20].into(), ..Default::default() };
        v1::Response { id, body: Some(Answer::Get(v1::GetResponse { header: None, record: Some(value) })) }
    }

    #[tokio::test]
    async fn large_answers_that_nobody_takes_leave_no_room() {
        let (sink, mut replies) = replies();
        assert_eq!(sink.room(100, 4 << 20).await, 4, "before the first answer each is taken to be large");
        sink.push(large(1));
        let waiting = tokio::spawn({
            let sink = sink.clone();
            async move { sink.room(usize::MAX, 1_000).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        replies.next().await;
        assert_eq!(waiting.await.expect("the waiter ends"), 1);
        // Small ones make room, by and by.
        for id in 0..1_000 {
            sink.push(response(id));
            replies.next().await;
        }
        assert_eq!(sink.room(100, 4 << 20).await, 100);
    }

    #[tokio::test]
    async fn answers_beyond_what_may_wait_come_without_values() {
        let (sink, mut replies) = replies();
        (0..100).for_each(|id| sink.push(large(id)));
        let current = Some(v1::Record { value: vec![0; 1 << 20].into(), ..Default::default() });
        let found = v1::WriteResult { version: 7, current, ..Default::default() };
        let outcome = Some(v1::batch_result::Outcome::Result(found));
        let written = v1::BatchResponse { header: None, results: vec![v1::BatchResult { outcome }] };
        sink.push(v1::Response { id: 100, body: Some(Answer::Write(written)) });
        let answers = replies.next().await.expect("they are there");
        let bytes: usize = answers.iter().map(prost::Message::encoded_len).sum();
        assert!(answers.len() == 101 && bytes < WAITING_BYTES_MAX + (64 << 10), "{} of {bytes} bytes", answers.len());
        let Some(Answer::Error(error)) = &answers[99].body else { panic!("{:?}", answers[99]) };
        assert!(matches!(Error::from(error.clone()), Error::ServerBusy { .. }));
        let Some(Answer::Write(written)) = &answers[100].body else { panic!("a write stays a write") };
        let Some(v1::batch_result::Outcome::Result(result)) = &written.results[0].outcome else {
            panic!("{written:?}")
        };
        assert_eq!((result.version, &result.current), (7, &None));
    }

    #[tokio::test]
    async fn whoever_waits_for_room_goes_on_when_answers_are_taken() {
        let (sink, mut replies) = replies();
        sink.push(response(1));
        let waiting = tokio::spawn({
            let sink = sink.clone();
            async move { sink.room(1, usize::MAX).await }
        });
        replies.next().await;
        waiting.await.expect("the waiter ends");
        sink.submitted(1);
        drop(replies);
        assert!(!sink.answer(response(2)), "nobody is there to be woken");
        assert_eq!(sink.in_flight(), 0);
        sink.room(1, usize::MAX).await;
    }
}
