//! What waits to be sent to one node: Raft messages, bounded.
//!
//! The store's loop puts messages in and never waits; the connection's task takes them out, as many as
//! make a frame. Without a connection, or when full, messages are dropped: Raft repeats what matters.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use flotilla_proto::v1;
use tokio_stream::Stream;

use super::frame::Frame;
use crate::counters::Counters;

/// Bytes that may wait for one node.
const WAITING_BYTES_MAX: usize = 32 << 20;
/// A frame takes messages until it has so many bytes; it may be one message larger.
const FRAME_BYTES_TARGET: usize = 4 << 20;
/// Most messages in one frame.
const FRAME_MESSAGES_MAX: usize = 16_384;
/// Messages that an empty outbox may have room for.
const MESSAGES_KEPT: usize = 1_024;
/// A message without entries.
const MESSAGE_BYTES: usize = size_of::<v1::PeerMessage>();
/// An entry without its data, about.
const ENTRY_BYTES: usize = 24;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Counts the connections; only the newest one takes messages.
    connection: u64,
    /// The handshake is done: messages are taken.
    open: bool,
    /// The connection's last frame: nothing follows it.
    last_words: Option<Bytes>,
    ended: bool,
    messages: std::collections::VecDeque<v1::PeerMessage>,
    bytes: usize,
    disk_full: bool,
    /// What this node is to say of itself with the next frame.
    health: Option<v1::NodeHealth>,
    /// A sign of life is to be sent: of this process, which stops perhaps.
    beat: Option<Sign>,
    waker: Option<Waker>,
}

/// What a sign of life says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sign {
    /// The process.
    pub boot_id: u64,
    /// It stops.
    pub leaving: bool,
    /// It has heard nothing of the other node for an election time-out.
    pub hears_nothing: bool,
}

fn bytes_of(message: &v1::PeerMessage) -> usize {
    let entries: usize = message.entries.iter().map(|entry| entry.data.len() + ENTRY_BYTES).sum();
    MESSAGE_BYTES + message.context.len() + entries
}

/// Wakes whoever waits for something to be sent.
fn wake(mut state: MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds messages; returns how many were dropped.
    pub fn push(&self, messages: Vec<v1::PeerMessage>, disk_full: bool) -> usize {
        let mut dropped = 0;
        let mut state = self.lock();
        if !state.open {
            return messages.len();
        }
        state.disk_full = disk_full;
        for message in messages {
            let bytes = bytes_of(&message);
            if state.bytes + bytes > WAITING_BYTES_MAX {
                dropped += 1;
                continue;
            }
            state.bytes += bytes;
            state.messages.push_back(message);
        }
        wake(state);
        dropped
    }

    /// Sends a sign of life, with whatever else waits. One that has not left yet is replaced.
    pub fn beat(&self, sign: Sign) {
        self.say(|state| state.beat = Some(sign));
    }

    /// Tells the node how fast this one is, with what goes to it next, or by itself.
    pub fn tell(&self, health: v1::NodeHealth) {
        self.say(|state| state.health = Some(health));
    }

    /// Changes what is to be said, if somebody hears it.
    fn say(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        if state.open {
            change(&mut state);
            wake(state);
        }
    }

    /// Whether a connection takes messages.
    pub fn is_open(&self) -> bool {
        self.lock().open
    }

    /// A new connection's side: it begins with `hello`, and then waits for [`Outbox::open`].
    pub fn connect(self: &Arc<Self>, hello: Bytes, counters: Arc<Counters>) -> Frames {
        let mut state = self.lock();
        let connection = state.connection + 1;
        *state = State { connection, ..State::default() };
        drop(state);
        Frames { outbox: Arc::clone(self), connection, hello: Some(hello), counters }
    }

    /// The handshake is done.
    pub fn open(&self) {
        self.lock().open = true;
    }

    /// The connection's end: what waits is dropped, with one more frame if there is something to say.
    /// Returns how many messages were dropped.
    pub fn end(&self, last_words: Option<Bytes>) -> usize {
        let mut state = self.lock();
        let dropped = state.messages.len();
        let (connection, waker) = (state.connection, state.waker.take());
        *state = State { connection, last_words, ended: true, waker, ..State::default() };
        wake(state);
        dropped
    }
}

/// The frames of one connection.
pub(crate) struct Frames {
    outbox: Arc<Outbox>,
    connection: u64,
    hello: Option<Bytes>,
    counters: Arc<Counters>,
}

impl Frames {
    fn take(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(hello) = self.hello.take() {
            return Poll::Ready(Some(hello));
        }
        let mut state = self.outbox.lock();
        if state.connection != self.connection {
            return Poll::Ready(None);
        }
        if state.ended {
            return Poll::Ready(state.last_words.take());
        }
        if state.messages.is_empty() && state.health.is_none() && state.beat.is_none() {
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        let (mut bytes, mut count) = (0, 0);
        for message in state.messages.iter().take(FRAME_MESSAGES_MAX) {
            bytes += bytes_of(message);
            count += 1;
            if bytes >= FRAME_BYTES_TARGET {
                break;
            }
        }
        state.bytes -= bytes;
        let messages: Vec<_> = state.messages.drain(..count).collect();
        if state.messages.is_empty() {
            state.messages.shrink_to(MESSAGES_KEPT);
        }
        let (disk_full, health) = (state.disk_full, state.health.take());
        let sign = state.beat.take();
        drop(state);
        self.counters.raft_messages_sent.add(count as u64);
        let mut batch = v1::PeerBatch { messages, disk_full, health, ..Default::default() };
        if let Some(Sign { boot_id, leaving, hears_nothing }) = sign {
            (batch.boot_id, batch.beat, batch.leaving) = (boot_id, true, leaving);
            batch.hears_nothing = hears_nothing;
        }
        Poll::Ready(Some(Frame::Batch(batch).encode()))
    }
}

impl Stream for Frames {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let next = self.take(context);
        if let Poll::Ready(Some(frame)) = &next {
            self.counters.peer_frames_sent.add(1);
            self.counters.peer_bytes_sent.add(frame.len() as u64);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt;

    fn messages(count: u64, entry_bytes: usize) -> Vec<v1::PeerMessage> {
        let entry = v1::LogEntry { data: vec![0; entry_bytes].into(), ..Default::default() };
        (0..count)
            .map(|range_id| v1::PeerMessage { range_id, entries: vec![entry.clone()], ..Default::default() })
            .collect()
    }

    async fn take(frames: &mut Frames) -> Option<usize> {
        match Frame::decode(frames.next().await?).expect("a frame") {
            Frame::Batch(batch) => Some(batch.messages.len()),
            other => panic!("{other:?}"),
        }
    }

    fn connect(outbox: &Arc<Outbox>) -> Frames {
        outbox.connect(Bytes::from_static(b"hello"), Arc::default())
    }

    #[tokio::test]
    async fn all_that_waits_is_one_frame_up_to_its_size() {
        let outbox = Arc::new(Outbox::default());
        assert_eq!(outbox.push(messages(2, 1), false), 2, "no connection takes them");
        let mut frames = connect(&outbox);
        assert_eq!(frames.next().await.as_deref(), Some(&b"hello"[..]));
        assert_eq!(outbox.push(messages(2, 1), false), 2, "the handshake is not done");
        outbox.open();
        assert_eq!(outbox.push(messages(2, 1), false) + outbox.push(messages(3, 1), false), 0);
        assert_eq!(take(&mut frames).await, Some(5));
        assert_eq!(outbox.push(messages(6, 1 << 20), false), 0);
        assert_eq!(take(&mut frames).await, Some(4));
        assert_eq!(take(&mut frames).await, Some(2));
        assert_eq!(outbox.push(messages(40, 1 << 20), false), 9, "what is too much is dropped");
    }

    #[tokio::test]
    async fn one_that_held_very_much_is_small_again() {
        let outbox = Arc::new(Outbox::default());
        let mut frames = connect(&outbox);
        frames.next().await;
        outbox.open();
        assert_eq!(outbox.push(messages(50_000, 0), false), 0);
        assert!(outbox.lock().messages.capacity() >= 50_000);
        let mut taken = 0;
        while taken < 50_000 {
            taken += take(&mut frames).await.expect("more is waiting");
        }
        assert!(outbox.lock().messages.capacity() < 4 * MESSAGES_KEPT);
    }

    #[tokio::test]
    async fn a_sign_of_life_is_a_frame_by_itself_or_goes_with_messages() {
        let outbox = Arc::new(Outbox::default());
        let mut frames = connect(&outbox);
        frames.next().await;
        outbox.open();
        let next = async |frames: &mut Frames| match Frame::decode(frames.next().await.expect("open")).expect("a frame")
        {
            Frame::Batch(batch) => (batch.messages.len(), batch.beat, batch.boot_id, batch.leaving),
            other => panic!("{other:?}"),
        };
        outbox.beat(Sign { boot_id: 7, leaving: false, hears_nothing: false });
        assert_eq!(next(&mut frames).await, (0, true, 7, false));
        outbox.push(messages(2, 1), false);
        outbox.beat(Sign { boot_id: 7, leaving: false, hears_nothing: false });
        outbox.beat(Sign { boot_id: 7, leaving: true, hears_nothing: false });
        assert_eq!(next(&mut frames).await, (2, true, 7, true));
        outbox.push(messages(1, 1), false);
        assert_eq!(next(&mut frames).await, (1, false, 0, false), "it is said once");
    }

    #[tokio::test]
    async fn an_older_connection_ends_and_takes_nothing() {
        let outbox = Arc::new(Outbox::default());
        let mut old = connect(&outbox);
        let mut new = connect(&outbox);
        outbox.open();
        outbox.push(messages(1, 1), false);
        assert!(old.next().await.is_some(), "its hello");
        assert!(old.next().await.is_none());
        new.next().await;
        assert_eq!(take(&mut new).await, Some(1));
        assert_eq!(outbox.end(Some(Bytes::from_static(b"bye"))), 0);
        assert_eq!(new.next().await.as_deref(), Some(&b"bye"[..]));
        assert!(new.next().await.is_none());
    }
}
