//! What there is to do: the ranges that a round looks at, the least safe first.
//!
//! A range comes here when something about it changed, and is filed by how safe it is; one that is as it should be,
//! as nearly all are, is not filed at all ([`repair::is_well`]). A round takes from the front; of ranges that are equally
//! safe it goes round and round, so that none is passed over for long. What cannot be done until something else
//! changes is parked: it comes back when it changes itself, when a node can be given more than before, and every few
//! seconds. What is fine, and would be better only with other nodes than there are, comes back when a node can be given
//! more than before. A sweep brings all ranges by after labels or settings have changed. Whatever comes back does so in
//! parts, some with each round, so that no round is long however many they are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flotilla_proto::v1;

use crate::decide::{balance, leaders, repair, voters};
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

/// Where a range is filed.
const PARKED: usize = CLASSES;
const CONTENT: usize = CLASSES + 1;
const SHELVES: usize = CLASSES + 2;

/// Ranges by urgency.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queue {
    /// Each class of urgency; what nothing can be done about until something changes; what other nodes might make better.
    shelves: [BTreeSet<u64>; SHELVES],
    shelf_of: Dense<u8>,
    /// Where the next round begins to look, in each class.
    cursors: [u64; CLASSES],
}

impl Queue {
    pub fn put(&mut self, range: u64, urgency: Urgency) {
        self.file(range, urgency as usize);
    }

    pub fn park(&mut self, range: u64) {
        self.file(range, PARKED);
    }

    /// It is fine, as far as the nodes allow that there are.
    pub fn content(&mut self, range: u64) {
        self.file(range, CONTENT);
    }

    fn file(&mut self, range: u64, shelf: usize) {
        match self.shelf_of.insert(range, shelf as u8).map(usize::from) {
            Some(before) if before == shelf => return,
            Some(before) => drop(self.shelves[before].remove(&range)),
            None => {}
        }
        self.shelves[shelf].insert(range);
    }

    pub fn remove(&mut self, range: u64) {
        if let Some(shelf) = self.shelf_of.remove(range).map(usize::from) {
            self.shelves[shelf].remove(&range);
        }
    }

    /// At most `max` ranges of a shelf, from this one on.
    fn shelf(&self, shelf: usize, from: u64, max: usize) -> Vec<u64> {
        self.shelves[shelf].range(from..).take(max).copied().collect()
    }

    /// The next ranges to look at, the most urgent first, at most `max`.
    pub fn next(&mut self, max: usize) -> Vec<u64> {
        let mut next = Vec::new();
        for (class, cursor) in self.shelves.iter().zip(&mut self.cursors) {
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
        self.shelf_of.from(0).next().is_none()
    }
}

/// A walk over ranges in order of their ids, some with each round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Walk {
    /// The next one, if it is under way.
    next: Option<u64>,
    /// It was begun anew meanwhile: the first part comes again at its end.
    again: bool,
}

impl Walk {
    pub fn begin(&mut self) {
        match self.next {
            Some(_) => self.again = true,
            None => self.next = Some(0),
        }
    }

    pub fn is_under_way(&self) -> bool {
        self.next.is_some()
    }

    /// The next part, which `part` has from a range on; fewer than `max` are the last ones.
    fn on(&mut self, max: usize, part: impl FnOnce(u64, usize) -> Vec<u64>) -> Vec<u64> {
        let Some(from) = self.next else { return Vec::new() };
        let ranges = part(from, max);
        let more = ranges.last().filter(|_| ranges.len() == max).map(|last| last + 1);
        self.next = more.or_else(|| std::mem::take(&mut self.again).then_some(0));
        ranges
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
    /// Over all ranges; over those that are parked; over those that other nodes might make better.
    sweep: Walk,
    unpark: Walk,
    better: Walk,
    /// When parked ranges come back.
    unpark_at: Duration,
    /// How close so many replicas are at least, as the nodes' places were when all ranges were last looked at, or before.
    least: Vec<u32>,
    /// When balance is looked for again, after it was looked for in vain: of replicas, of leaders, of load.
    pub balance_at: Duration,
    pub leaders_at: Duration,
    pub load_at: Duration,
    /// How far the searches for better shares of replicas and of leaders have come.
    pub balance_tried: balance::Tried,
    pub leaders_tried: leaders::Tried,
    /// Where the search for neighbours to be merged stands.
    pub merge_from: (u64, Key),
    pub merges_at: Duration,
}

/// How long parked ranges rest.
const PARKED_FOR: Duration = Duration::from_secs(10);
/// A sweep files so many times as many ranges in a round as the round looks at: most of them are as they should be.
const SWEPT: usize = 2;

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
            sweep: Walk::default(),
            unpark: Walk::default(),
            better: Walk::default(),
            unpark_at: now,
            least: Vec::new(),
            balance_at: now,
            leaders_at: now,
            load_at: now,
            balance_tried: balance::Tried::default(),
            leaders_tried: leaders::Tried::default(),
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
            match state.table.get(range).filter(|route| !repair::is_well(state, route)) {
                Some(route) => self.queue.put(range, Urgency::of(state, route)),
                None => self.queue.remove(range),
            }
        }
        self.stirred = true;
    }

    /// All ranges are to be looked at.
    pub fn sweep(&mut self) {
        self.sweep.begin();
        self.stirred = true;
    }

    /// Nodes may have come with which replicas can be farther apart than any were before: what was well is not, then.
    pub fn note_places(&mut self, state: &State) {
        let replicas = state.ahead.keyspaces.values().map(|keyspace| keyspace.replicas as usize).max().unwrap_or(0);
        let least = state.places.least(replicas);
        // A service that begins looks at all ranges as they are reported.
        let farther = self.least.iter().zip(&least).any(|(before, now)| now < before);
        self.least = least;
        if farther {
            self.sweep();
        }
    }

    /// Parked ranges come back.
    pub fn unpark(&mut self) {
        self.unpark.begin();
        self.stirred = true;
    }

    /// A node can be given more than before.
    pub fn gained(&mut self) {
        self.unpark();
        self.better.begin();
    }

    /// Files the next ranges that are to come back.
    pub fn walk_on(&mut self, state: &State) {
        if state.now >= self.unpark_at && !self.unpark.is_under_way() {
            self.unpark_at = state.now + PARKED_FOR;
            self.unpark.begin();
        }
        let max = state.config.ranges_per_round;
        let queue = &self.queue;
        let mut ranges = self.unpark.on(max, |from, max| queue.shelf(PARKED, from, max));
        ranges.extend(self.better.on(max, |from, max| queue.shelf(CONTENT, from, max)));
        ranges.extend(self.sweep.on(max * SWEPT, |from, max| {
            state.table.ids_after(from).take(max).map(|route| route.descriptor.range_id).collect()
        }));
        if !ranges.is_empty() {
            self.look_at(state, ranges);
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
        assert_eq!(queue.shelf(PARKED, 0, 9), [6]);
        queue.content(6);
        assert_eq!((queue.shelf(PARKED, 0, 9), queue.shelf(CONTENT, 0, 9)), (vec![], vec![6]));
        assert!(!queue.is_empty());
        (1..=6).for_each(|range| queue.remove(range));
        assert!(queue.is_empty());
    }

    #[test]
    fn a_walk_that_is_begun_anew_brings_everything_by_once_more() {
        let mut walk = Walk::default();
        let part = |from: u64, max: usize| (from..5).take(max).collect::<Vec<u64>>();
        assert_eq!(walk.on(2, part), []);
        walk.begin();
        assert_eq!(walk.on(2, part), [0, 1]);
        walk.begin();
        let rest: Vec<u64> = (0..5).flat_map(|_| walk.on(2, part)).collect();
        assert_eq!(rest, [2, 3, 4, 0, 1, 2, 3, 4]);
        assert!(!walk.is_under_way());
    }
}
