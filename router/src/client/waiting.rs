//! Requests that wait to be sent on a connection: in the order of their deadlines, or the latest first. Of writes it is so while the node is busy
//! (`Window` says when, and why) and half of the first one's time is over, of what this attempt has: as long as all are served in time, they go as
//! they came. Of reads it is so while the first of them has waited for longer than [`LATE`]: the node takes them more slowly than they come.
//! Reads never wait for writes that a busy node would refuse.

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_proto::limits::TIMEOUT_MS_DEFAULT;
use tokio::time::Instant;

use super::grpc::Queued;
use crate::core::header_of;

/// How long a read waits for its turn where nothing is amiss: far longer than a node takes for a batch of them.
const LATE: Duration = Duration::from_millis(100);

/// By when its caller gives up, then as it came: an attempt that is not the first one carries what is left of its time.
type Key = (Instant, u64);

/// See the module.
#[derive(Default)]
pub(super) struct Waiting {
    reads: Queue,
    writes: Queue,
    serial: u64,
}

/// With the time when each came.
type Queue = BTreeMap<Key, (Instant, Queued)>;

impl Waiting {
    pub(super) fn push(&mut self, queued: Queued) {
        let timeout_ms = queued.request().body.as_ref().and_then(header_of).map_or(0, |header| header.timeout_ms);
        let timeout_ms = if timeout_ms == 0 { TIMEOUT_MS_DEFAULT } else { timeout_ms };
        self.serial += 1;
        let now = Instant::now();
        let key = (now + Duration::from_millis(timeout_ms), self.serial);
        let queue = if queued.is_write() { &mut self.writes } else { &mut self.reads };
        queue.insert(key, (now, queued));
    }

    /// The next one, if there is room for its kind. While the node is `busy` a read goes before any but the batch's first write (`first`): the
    /// window grows by what it lets through.
    pub(super) fn pop(&mut self, room_for_read: bool, room_for_write: bool, busy: bool, first: bool) -> Option<Queued> {
        let read = self.reads.first_key_value().map(|(key, _)| *key).filter(|_| room_for_read);
        let write = self.writes.first_key_value().map(|(key, _)| *key).filter(|_| room_for_write);
        match (read, write) {
            (Some(read), Some(write)) if if busy { !first } else { read < write } => self.pop_read(),
            (Some(_), None) => self.pop_read(),
            (_, Some(_)) => self.pop_write(busy),
            (None, None) => None,
        }
    }

    fn pop_read(&mut self) -> Option<Queued> {
        pop(&mut self.reads, |_, waited| waited > LATE)
    }

    fn pop_write(&mut self, busy: bool) -> Option<Queued> {
        pop(&mut self.writes, |left, waited| busy && waited > left)
    }

    /// Whether one of them can be sent.
    pub(super) fn has_next(&self, room_for_read: bool, room_for_write: bool) -> bool {
        room_for_read && !self.reads.is_empty() || room_for_write && !self.writes.is_empty()
    }

    /// Lets those go whose callers have gone.
    pub(super) fn clean(&mut self) {
        for queue in [&mut self.reads, &mut self.writes] {
            queue.retain(|_, (_, queued)| !queued.is_given_up());
        }
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = Queued> {
        let (reads, writes) = (std::mem::take(&mut self.reads), std::mem::take(&mut self.writes));
        reads.into_values().chain(writes.into_values()).map(|(_, queued)| queued)
    }

    pub(super) fn len(&self) -> usize {
        self.reads.len() + self.writes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.reads.is_empty() && self.writes.is_empty()
    }
}

/// The first, or the last if the first, by what is left of its time and how long it has waited, is late. Where the first ones' callers have gone,
/// that says nothing of the others.
fn pop(queue: &mut Queue, is_late: impl Fn(Duration, Duration) -> bool) -> Option<Queued> {
    while queue.first_key_value().is_some_and(|(_, (_, queued))| queued.is_given_up()) {
        queue.pop_first();
    }
    let now = Instant::now();
    let late = queue.first_key_value().is_some_and(|((end, _), (came, _))| {
        is_late(end.saturating_duration_since(now), now.saturating_duration_since(*came))
    });
    let next = if late { queue.pop_last() } else { queue.pop_first() };
    next.map(|(_, (_, queued))| queued)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use flotilla_proto::v1;
    use tokio::sync::oneshot;

    use super::*;

    fn header() -> Option<v1::RequestHeader> {
        Some(v1::RequestHeader { timeout_ms: 10_000, ..Default::default() })
    }

    fn read(id: u64) -> v1::Request {
        let get = v1::GetRequest { header: header(), ..Default::default() };
        v1::Request { id, body: Some(v1::request::Body::Get(get)) }
    }

    fn write(id: u64) -> v1::Request {
        let batch = v1::BatchRequest { header: header(), ..Default::default() };
        v1::Request { id, body: Some(v1::request::Body::Write(batch)) }
    }

    /// Requests in a queue, whose callers wait as long as what is returned beside it.
    fn queue(
        requests: impl IntoIterator<Item = v1::Request>,
    ) -> (Waiting, Vec<oneshot::Receiver<crate::core::CallOutcome>>) {
        let (mut waiting, mut callers) = (Waiting::default(), Vec::new());
        for request in requests {
            let (answer, caller) = oneshot::channel();
            waiting.push(Queued::new(request, Arc::new(AtomicBool::new(false)), answer));
            callers.push(caller);
        }
        (waiting, callers)
    }

    fn id(queued: Option<Queued>) -> Option<u64> {
        queued.map(|queued| queued.request().id)
    }

    #[tokio::test(start_paused = true)]
    async fn reads_go_in_order_and_the_newest_first_once_they_come_too_late() {
        let (mut waiting, _callers) = queue((1..=5).map(read));
        assert_eq!(id(waiting.pop(true, true, false, true)), Some(1));
        tokio::time::advance(LATE + Duration::from_millis(1)).await;
        assert_eq!(id(waiting.pop(true, true, false, true)), Some(5));
        assert_eq!(id(waiting.pop(true, true, false, true)), Some(4));
        assert_eq!(id(waiting.pop(false, true, false, true)), None, "there is no room for one");
    }

    #[tokio::test(start_paused = true)]
    async fn writes_to_a_busy_node_go_in_order_and_the_newest_first_once_half_of_the_time_is_over() {
        let (mut waiting, _callers) = queue((1..=6).map(write));
        assert_eq!(id(waiting.pop(true, true, true, true)), Some(1));
        tokio::time::advance(Duration::from_millis(4_999)).await;
        assert_eq!(id(waiting.pop(true, true, true, true)), Some(2));
        tokio::time::advance(Duration::from_millis(2)).await;
        assert_eq!(id(waiting.pop(true, true, true, true)), Some(6));
        assert_eq!(id(waiting.pop(true, true, false, true)), Some(3), "the node is well again");
        assert_eq!(id(waiting.pop(true, true, true, true)), Some(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_write_whose_caller_has_gone_turns_no_order() {
        let mut short = write(1);
        let Some(v1::request::Body::Write(batch)) = &mut short.body else { panic!("not a write") };
        batch.header = Some(v1::RequestHeader { timeout_ms: 1_000, ..Default::default() });
        let (mut waiting, mut callers) = queue([short, write(2), write(3)]);
        tokio::time::advance(Duration::from_millis(600)).await;
        callers.remove(0);
        assert_eq!(id(waiting.pop(true, true, true, true)), Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_room_passes_what_has_none() {
        let (mut waiting, _callers) = queue([write(1), read(2)]);
        assert!(waiting.has_next(true, false) && waiting.has_next(false, true) && !waiting.has_next(false, false));
        assert_eq!(id(waiting.pop(true, false, true, true)), Some(2));
        assert_eq!(id(waiting.pop(true, true, true, true)), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn callers_that_have_gone_take_no_room() {
        let (mut waiting, mut callers) = queue([read(1), write(2), read(3)]);
        callers.truncate(1);
        waiting.clean();
        assert_eq!((waiting.len(), id(waiting.pop(true, true, false, true))), (1, Some(1)));
    }
}
