//! What there is to do: the ranges that a round looks at, the least safe first.
//!
//! A range comes here when something about it changed, and is filed by how safe it is. A round takes from the front; of
//! ranges that are equally safe it goes round and round, so that none is passed over for long. What cannot be
//! done until something else changes is parked: it comes back when it changes itself, when a node can be given more
//! than before, and every few seconds. A sweep brings all ranges by, some with each round, after nodes, labels
//! or settings have changed: what is fine might be better elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flotilla_proto::v1;

use crate::decide::voters;
use crate::dense::Dense;
use crate::state::{Records, State};
use crate::table::Route;
use crate::table::compact::Key;

/// How safe a range is: lesser is more urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    /// It lacks something, and one more failure takes its majority.
    AtRisk,
    /// A voter is dead.
    Dead,
    /// It has fewer voters than it should.
    Missing,
    /// It is to be looked at: its replicas may not be where they should.
    Look,
}

const CLASSES: usize = 4;

impl Urgency {
    pub fn of(state: &State, route: &Route) -> Self {
        let descriptor = &route.descriptor;
        let Some(keyspace) = state.ahead.keyspace(descriptor.keyspace_id) else { return Self::Look };
        let (mut all, mut up, mut dead) = (0, 0, 0);
        for node in voters(descriptor) {
            all += 1;
            up += usize::from(state.is_live(node));
            dead += usize::from(state.is_dead_for(node, descriptor));
        }
        let missing = all < keyspace.replicas as usize;
        match () {
            () if (dead > 0 || missing) && up <= all / 2 + 1 => Self::AtRisk,
            () if dead > 0 => Self::Dead,
            () if missing => Self::Missing,
            () => Self::Look,
        }
    }
}

/// Ranges by urgency.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queue {
    classes: [BTreeSet<u64>; CLASSES],
    /// Where the next round begins to look, in each.
    cursors: [u64; CLASSES],
    class_of: Dense<u8>,
    /// What nothing can be done about until something changes.
    parked: BTreeSet<u64>,
}

impl Queue {
    pub fn put(&mut self, range: u64, urgency: Urgency) {
        self.remove(range);
        let class = urgency as usize;
        self.classes[class].insert(range);
        self.class_of.insert(range, class as u8);
    }

    pub fn remove(&mut self, range: u64) {
        if let Some(class) = self.class_of.remove(range).map(usize::from) {
            self.classes[class].remove(&range);
        }
        self.parked.remove(&range);
    }

    pub fn park(&mut self, range: u64) {
        self.remove(range);
        self.parked.insert(range);
    }

    pub fn take_parked(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.parked)
    }

    /// The next ranges to look at, the most urgent first, at most `max`.
    pub fn next(&mut self, max: usize) -> Vec<u64> {
        let mut next = Vec::new();
        for (class, cursor) in self.classes.iter().zip(&mut self.cursors) {
            let left = max - next.len();
            if left == 0 {
                break;
            }
            let from = class.range(*cursor..).chain(class.range(..*cursor)).take(left);
            let before = next.len();
            next.extend(from.copied());
            *cursor = next[before..].last().map_or(0, |last| last + 1);
        }
        next
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.class_of.from(0).next().is_none()
    }
}

/// See the file's head.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub queue: Queue,
    /// Something changed since the last round.
    pub stirred: bool,
    pub last_round: Duration,
    /// Since when each order has been given out.
    pub since: BTreeMap<u64, Duration>,
    /// Nodes that were dead when last looked at, and those that could be given something.
    pub dead: BTreeSet<u64>,
    pub fit: BTreeSet<u64>,
    /// Ranges to be born that this service has decided on, and not told their nodes of.
    pub unsent: BTreeSet<u64>,
    /// Replicas that may be proven to be gone: node and range.
    pub strays: BTreeSet<(u64, u64)>,
    /// For the history, not written yet.
    pub seen: Vec<v1::HistoryEntry>,
    /// The next range of the sweep, if one is under way.
    pub sweep: Option<u64>,
    /// When parked ranges come back.
    pub unpark_at: Duration,
    /// When balance is looked for again, after it was looked for in vain: of replicas, of leaders, of load.
    pub balance_at: Duration,
    pub leaders_at: Duration,
    pub load_at: Duration,
    /// Which node's share of leaders is looked at first.
    pub leaders_from: u64,
    /// Where the search for neighbours to be merged stands.
    pub merge_from: (u64, Key),
    pub merges_at: Duration,
}

/// How long parked ranges rest.
pub(crate) const PARKED_FOR: Duration = Duration::from_secs(10);

impl Work {
    pub fn new(records: &Records, now: Duration) -> Self {
        Self {
            queue: Queue::default(),
            stirred: false,
            last_round: Duration::ZERO,
            since: records.orders.keys().map(|range| (*range, now)).collect(),
            dead: BTreeSet::new(),
            fit: BTreeSet::new(),
            unsent: BTreeSet::new(),
            strays: BTreeSet::new(),
            seen: Vec::new(),
            sweep: None,
            unpark_at: now,
            balance_at: now,
            leaders_at: now,
            load_at: now,
            leaders_from: 0,
            merge_from: (0, Key::default()),
            merges_at: now,
        }
    }

    pub fn stir(&mut self) {
        self.stirred = true;
    }

    /// Files ranges by how safe they are now.
    pub fn look_at(&mut self, state: &State, ranges: impl IntoIterator<Item = u64>) {
        for range in ranges {
            match state.table.get(range) {
                Some(route) => self.queue.put(range, Urgency::of(state, route)),
                None => self.queue.remove(range),
            }
        }
        self.stirred = true;
    }

    /// All ranges are to be looked at, some with each round.
    pub fn sweep(&mut self) {
        self.sweep = Some(0);
        self.stirred = true;
    }

    /// The next ranges of the sweep.
    pub fn sweep_on(&mut self, state: &State, max: usize) {
        let Some(from) = self.sweep else { return };
        let next: Vec<u64> = state.table.ids_after(from).take(max).map(|route| route.descriptor.range_id).collect();
        self.sweep = next.last().filter(|_| next.len() == max).map(|last| last + 1);
        self.look_at(state, next);
    }

    /// Parked ranges come back.
    pub fn unpark(&mut self, state: &State) {
        self.unpark_at = state.now + PARKED_FOR;
        let parked = self.queue.take_parked();
        if !parked.is_empty() {
            self.look_at(state, parked);
        }
    }

    pub fn order_began(&mut self, range: u64, now: Duration) {
        self.since.insert(range, now);
    }

    pub fn order_ended(&mut self, range: u64) {
        self.since.remove(&range);
        self.stirred = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_urgent_come_first_and_equals_take_turns() {
        let mut queue = Queue::default();
        for range in 1..=6 {
            queue.put(range, Urgency::Look);
        }
        queue.put(5, Urgency::AtRisk);
        queue.put(6, Urgency::Dead);
        assert_eq!(queue.next(4), [5, 6, 1, 2]);
        assert_eq!(queue.next(4), [5, 6, 3, 4]);
        queue.remove(5);
        queue.park(6);
        assert_eq!(queue.next(3), [1, 2, 3]);
        assert_eq!(queue.take_parked(), BTreeSet::from([6]));
        assert!(!queue.is_empty());
    }
}
