//! What happens when: a heap of events by (time, order of scheduling), the only driver of a run.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use flotilla_engine::store::{Envelope, FetchLog, Input, LogItem, SplitKeysWanted, Token};
use flotilla_proto::{Error, RangeId, v1};
use flotilla_router::core::CallOutcome;

use crate::clock::Nanos;
use crate::placement::Placed;

/// Names a process of a node: one that ended gets no more of its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    pub node: usize,
    pub number: u64,
}

/// A request of a client, as the answer finds its way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReplyTo {
    pub client: usize,
    pub call: u64,
    pub id: u64,
}

/// Something within one process.
#[derive(Debug)]
pub(crate) enum Inner {
    Tick,
    Turn,
    LogWrite,
    LogSynced,
    Apply,
    Fetch(FetchLog),
    MakeSnapshot(RangeId),
    Ingest(Box<LogItem>),
    FindSplitKeys(Box<SplitKeysWanted>),
    Give(Box<Input>),
    ReadAgain(Token),
    /// It has come upon a record that rots.
    Ends,
    /// An answer to the placement service of this node; none: it has failed.
    HostReply(u64, Option<Box<v1::response::Body>>),
}

#[derive(Debug)]
pub(crate) enum Event {
    Inner(Life, Inner),
    /// A message from that process, sent then.
    Deliver(Box<Envelope>, Life, Nanos),
    /// One node tells another something that is about no range.
    Told {
        to: usize,
        sent: Nanos,
        what: Box<Input>,
    },
    /// The slow phase of a node is about to end.
    SlowPhaseEnds,
    Request {
        node: usize,
        reply_to: ReplyTo,
        request: Box<v1::Request>,
    },
    Answer {
        reply_to: ReplyTo,
        outcome: Box<CallOutcome>,
    },
    Routes {
        client: usize,
        call: u64,
        routes: Result<Box<v1::ListRangesResponse>, Error>,
    },
    ClientWake {
        client: usize,
        wake: u64,
    },
    FaultBegins(usize),
    FaultEnds(usize),
    Restart(usize),
    Heal,
    /// The toy placement's next round.
    Placement,
    /// Of the real placement.
    Placed(Placed),
    CheckProgress,
}

#[derive(Debug)]
struct Scheduled {
    at: Nanos,
    order: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    /// The earliest is the greatest: [`BinaryHeap`] gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

#[derive(Debug, Default)]
pub(crate) struct Schedule {
    heap: BinaryHeap<Scheduled>,
    order: u64,
}

impl Schedule {
    pub(crate) fn at(&mut self, at: Nanos, event: Event) {
        self.order += 1;
        self.heap.push(Scheduled { at, order: self.order, event });
    }

    pub(crate) fn pop(&mut self) -> Option<(Nanos, Event)> {
        self.heap.pop().map(|scheduled| (scheduled.at, scheduled.event))
    }

    pub(crate) fn next_at(&self) -> Option<Nanos> {
        self.heap.peek().map(|scheduled| scheduled.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_by_order_of_scheduling() {
        let mut schedule = Schedule::default();
        for (at, node) in [(5, 0), (3, 1), (5, 2), (3, 3)] {
            schedule.at(at, Event::Restart(node));
        }
        let mut nodes = vec![];
        while let Some((_, Event::Restart(node))) = schedule.pop() {
            nodes.push(node);
        }
        assert_eq!(nodes, [1, 3, 0, 2]);
    }
}
