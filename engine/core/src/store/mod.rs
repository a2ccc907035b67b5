//! The store: all ranges of a node, as one state machine.
//!
//! Whoever drives it gives it inputs ([`Store::on`]), ends the turn ([`Store::end_turn`]), and carries
//! the effects out. A turn is where batching happens: all writes that came for a range become one
//! entry, all ranges' entries one log batch (and one sync), all messages for a node one frame. Time
//! is what it is told; randomness comes from the seed; the order of ranges is that of their ids: the
//! same inputs give the same effects.

mod effects;
mod input;
mod liveness;
mod merging;
mod recovery;
mod sleepers;
mod summary;
mod unknown;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use flotilla_proto::{Error, NodeId, RangeId, v1};

pub use crate::snapshot::SnapshotData;
pub use effects::{
    Beat, CheckStarted, Destroy, Effects, Event, FetchLog, LogBatch, LogItem, MergeAnswer, RangeClock, ReadView,
    Recovered, Recovers, SplitAnswer, SplitKeysWanted, TransferAnswer, WriteAnswer,
};
pub use input::{Envelope, Input, Merge, ReadBarrier, Split, SplitAt, SplitKeys, Token, TransferLeader, Write};
pub(crate) use liveness::Liveness;
pub use summary::RangeSummary;

use crate::config::Config;
use crate::health::Health;
use crate::range::{Born, Range, RangeIds, Shared, Sleeper, Turn};
use crate::recover::Boot;
use crate::time::BootTime;
pub(crate) use merging::Wish;
use sleepers::Sleepers;
use unknown::Unknown;

/// A slow node hands over so many ranges at most with each tick: nobody is to be flooded with elections.
const SLOW_HAND_OVERS_PER_TICK: usize = 32;

/// See the module.
pub struct Store {
    shared: Shared,
    /// The replicas that are awake. Boxed: looking one up goes through few lines of memory, and one that comes or goes
    /// moves no others.
    ranges: BTreeMap<RangeId, Box<Range>>,
    sleepers: Sleepers,
    /// Ranges that something happened to in this turn.
    dirty: BTreeSet<RangeId>,
    last_sequence: u64,
    last_tick: BootTime,
    /// The ranges in each log batch that is not durable yet.
    in_flight: VecDeque<(u64, BTreeSet<RangeId>)>,
    items: Vec<LogItem>,
    born: Vec<Born>,
    /// What ranges want of each other, until their turn is over.
    wishes: Vec<Wish>,
    /// Replicas that end with a snapshot of the range that took theirs in.
    held: BTreeSet<RangeId>,
    /// What snapshots that are being put in place will write and delete, by their ranges ([`Store::claim`]).
    claims: BTreeMap<RangeId, Vec<Arc<v1::RangeDescriptor>>>,
    /// Replicas that are gone from this store for good.
    tombstones: BTreeMap<RangeId, v1::Tombstone>,
    unknown: Unknown,
    /// Ranges whose replica here is to go as soon as nothing of it is under way.
    doomed: BTreeSet<RangeId>,
    /// Ranges that began here by placement's word, and the log batch that says so, while it is not durable.
    newborn: BTreeMap<RangeId, u64>,
    /// Ranges that go on without their majority, the log batch that says so, and who is to be told when it is durable.
    recovering: Vec<(u64, RangeId, Token)>,
    /// Ranges that have gone since [`Store::changes`] was last asked.
    gone: BTreeSet<RangeId>,
}

/// See [`Store::changes`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// What may have changed.
    pub ranges: Vec<RangeSummary>,
    /// What has gone.
    pub gone: Vec<RangeId>,
}

impl Store {
    /// A store as recovery found it. The error says what is wrong with settings or records.
    pub fn new(config: Config, node: NodeId, boot: &Boot, now: BootTime) -> Result<Self, String> {
        config.check()?;
        let mut shared = Shared {
            config,
            node,
            proposal_bytes: 0,
            durable_sequence: 0,
            full_nodes: BTreeSet::new(),
            draining: false,
            keyspaces: BTreeMap::new(),
            range_ids: RangeIds::default(),
            health: Health::default(),
            liveness: Liveness::default(),
            incarnations: 0,
        };
        let (mut ranges, mut sleepers) = (BTreeMap::new(), Sleepers::default());
        for boot in &boot.ranges {
            let id = RangeId(boot.descriptor.range_id);
            if let Some(sleeper) = Sleeper::at_start(&mut shared, boot, now) {
                sleepers.insert(id, sleeper, None);
                continue;
            }
            let mut range = Range::new(&mut shared, boot, now)?;
            range.lead_if_alone(boot);
            ranges.insert(id, Box::new(range));
        }
        let all = sleepers.iter().map(|(id, _)| id).collect();
        sleepers.queue_orphans(node, None, all);
        let dirty = ranges.keys().copied().collect();
        // Replicas whose removal was applied before the process ended, and whose data is still here.
        let removed = boot.removed.iter().map(|removed| {
            let range = RangeId(removed.descriptor.range_id);
            LogItem { destroy: Some(removed.clone()), ..LogItem::new(range) }
        });
        Ok(Self {
            shared,
            ranges,
            sleepers,
            dirty,
            last_sequence: 0,
            last_tick: now,
            in_flight: VecDeque::new(),
            items: removed.collect(),
            born: Vec::new(),
            wishes: Vec::new(),
            held: BTreeSet::new(),
            claims: BTreeMap::new(),
            tombstones: boot.tombstones.clone(),
            unknown: Unknown::default(),
            doomed: BTreeSet::new(),
            newborn: BTreeMap::new(),
            recovering: Vec::new(),
            gone: BTreeSet::new(),
        })
    }

    /// What readers may see before the first turn.
    pub fn initial_views(&self) -> Vec<Arc<ReadView>> {
        let sleepers = self.sleepers.iter().map(|(_, sleeper)| sleeper.view());
        self.ranges.values().map(|range| range.view()).chain(sleepers).cloned().collect()
    }

    /// All replicas, by range id.
    pub fn ranges(&self) -> impl Iterator<Item = RangeSummary> + '_ {
        let mut all: Vec<_> =
            self.awake_summaries().chain(self.sleepers.iter().map(|(_, sleeper)| sleeper.summary())).collect();
        all.sort_by_key(|summary| summary.range);
        all.into_iter()
    }

    /// The replicas whose state may be another one than at the last call, and those that have gone since; or all there
    /// are. Of what sleeps only that which has fallen asleep in between: what does not change costs nothing.
    pub fn changes(&mut self, all: bool) -> Changes {
        if all {
            return Changes { ranges: self.ranges().collect(), gone: Vec::new() };
        }
        let fell_asleep = self.sleepers.take_changed();
        let gone = std::mem::take(&mut self.gone);
        let sleepers = fell_asleep.into_iter().filter_map(|id| self.sleepers.get(id)).map(Sleeper::summary);
        let ranges: Vec<_> = self.awake_summaries().chain(sleepers).collect();
        let gone = gone.into_iter().filter(|id| !self.ranges.contains_key(id) && !self.sleepers.contains(*id));
        Changes { gone: gone.collect(), ranges }
    }

    fn awake_summaries(&self) -> impl Iterator<Item = RangeSummary> + '_ {
        let lives = |range: &&Range| !range.is_unborn() && !range.is_merged_away();
        self.ranges.values().map(Box::as_ref).filter(lives).map(|range| RangeSummary {
            is_lasting: !self.newborn.contains_key(&RangeId(range.descriptor().range_id)),
            ..range.summary(self.last_tick, &self.shared.config)
        })
    }

    /// What this node measures of itself.
    pub fn health(&self, now: BootTime) -> v1::NodeHealth {
        self.shared.health.figures(now)
    }

    /// Takes an input. Refusals are answered at once; the rest follows at the end of the turn.
    pub fn on(&mut self, now: BootTime, input: Input, effects: &mut Effects) {
        match input {
            Input::Write(write) => {
                let (token, range) = (write.token, write.range);
                if let Err(error) = self.rouse_leader(now, range, Some(&write.epoch), effects) {
                    effects.writes.push((token, Err(error)));
                } else if !self.with(now, range, effects, |range, turn| range.write(turn, write)) {
                    effects.writes.push((token, Err(self.missing(range))));
                }
            }
            Input::ReadBarrier(barrier) => {
                let (token, range) = (barrier.token, barrier.range);
                if let Err(error) = self.rouse_leader(now, range, Some(&barrier.epoch), effects) {
                    effects.barriers.push((token, Err(error)));
                } else if !self.with(now, range, effects, |range, turn| range.barrier(turn, barrier)) {
                    effects.barriers.push((token, Err(self.missing(range))));
                }
            }
            Input::TransferLeader(order) => {
                if let Err(error) = self.rouse_leader(now, order.range, None, effects) {
                    effects.transfers.push((order.token, Err(error)));
                } else if !self.with(now, order.range, effects, |range, turn| range.transfer_leader(turn, order)) {
                    effects.transfers.push((order.token, Err(Error::RangeNotFound { range: order.range })));
                }
            }
            Input::Status { token, range } => {
                let node = self.shared.node.0;
                let status = self.ranges.get(&range).map(|of| of.status(node, now));
                let status = status.or_else(|| self.sleepers.get(range).map(|of| of.status(node)));
                effects.statuses.push((token, status.ok_or(Error::RangeNotFound { range })));
            }
            Input::Message(envelope) => self.message(now, envelope, effects),
            Input::Beat { from, boot_id, leaving, hears_nothing } => {
                self.beat(now, from, boot_id, leaving, effects);
                self.hears_this_node(now, from, !hears_nothing, effects);
            }
            Input::Read { range } => {
                if let Some(range) = self.ranges.get_mut(&range) {
                    range.is_asked();
                }
            }
            Input::Wanted { range } => {
                if self.sleepers.get(range).is_some_and(Sleeper::is_orphan) {
                    self.rouse_for(now, range, effects);
                }
            }
            Input::Tick => self.tick(now, effects),
            Input::Persisted { sequence } => self.persisted(now, sequence, effects),
            Input::Applied(done) => {
                self.shared.health.apply_done(now);
                self.with(now, done.range, effects, |range, turn| range.applied(turn, done));
            }
            Input::LogFetched { range, id, entries } => {
                self.with(now, range, effects, |range, _| range.log_fetched(id, entries));
            }
            Input::SnapshotMade { range, snapshot } => {
                self.with(now, range, effects, |range, _| range.snapshot_made(snapshot));
            }
            Input::Ingested { range } => {
                self.with(now, range, effects, |range, turn| range.ingested(turn));
            }
            Input::SnapshotSent { range, to_replica, ok } => {
                self.with(now, range, effects, |range, _| range.snapshot_sent(to_replica, ok));
            }
            Input::Unreachable { node } => {
                self.with_all(now, effects, |range, _| range.unreachable(node));
            }
            Input::DiskSpace { has_room } => self.disk_space(self.shared.node, has_room),
            Input::Health { from, health } => self.shared.health.heard(now, from, health),
            Input::RangeSize { range, bytes } => {
                if !self.told_size_of_sleeper(now, range, bytes, effects) {
                    self.with(now, range, effects, |range, _| range.told_size(bytes));
                }
            }
            Input::Split(split) => {
                let (token, range) = (split.token, split.range);
                if let Err(error) = self.rouse_leader(now, range, None, effects) {
                    effects.splits.push((token, Err(error)));
                } else if !self.with(now, range, effects, |range, turn| range.split(turn, split)) {
                    effects.splits.push((token, Err(Error::RangeNotFound { range })));
                }
            }
            Input::Merge(merge) => self.merge(now, merge, effects),
            Input::SplitKeys { range, found } => {
                self.with(now, range, effects, |range, turn| range.split_keys(turn, found));
            }
            Input::ExpiriesFound(answer) => {
                self.with(now, answer.range, effects, |range, turn| range.expiries_found(turn, answer));
            }
            Input::Order(order) => {
                let id = RangeId(order.range_id);
                // Nothing is in force where it sleeps.
                if order.order_id != 0 && self.sleepers.get(id).is_some_and(Sleeper::leads) {
                    self.rouse_for(now, id, effects);
                }
                self.with(now, id, effects, |range, _| range.order(order));
            }
            Input::Remove { range, replica_id } => self.remove(now, range, replica_id, effects),
            Input::Births(descriptors) => self.births(now, descriptors, effects),
            Input::Keyspaces(keyspaces) => {
                let keyspaces = keyspaces.into_iter().map(|keyspace| (keyspace.keyspace_id, keyspace)).collect();
                if keyspaces != self.shared.keyspaces {
                    self.shared.keyspaces = keyspaces;
                    self.rouse_too_large(now, effects);
                }
            }
            Input::RangeIds { first, count } => self.shared.range_ids.add(first, count),
            Input::Survey => self.rouse_in_doubt(now, effects),
            Input::Recover { token, order } => self.recover(now, token, &order, effects),
            Input::Committed(entry) => {
                self.with(now, RangeId(entry.range_id), effects, |range, _| range.told_committed(&entry));
            }
            Input::Check { token, range, deadline } => {
                if let Err(error) = self.rouse_leader(now, range, None, effects) {
                    effects.checks.push((token, Err(error)));
                } else if !self.with(now, range, effects, |range, turn| range.check(turn, token, deadline)) {
                    effects.checks.push((token, Err(Error::RangeNotFound { range })));
                }
            }
            Input::Drain => {
                self.shared.draining = true;
                self.leave_sleepers(effects);
                self.with_all(now, effects, |range, turn| range.hand_over(turn));
            }
        }
    }

    /// Ends the turn: proposes what was queued, and collects what follows from all inputs since the
    /// last one.
    pub fn end_turn(&mut self, now: BootTime, effects: &mut Effects) {
        let dirty = std::mem::take(&mut self.dirty);
        for id in dirty {
            self.release_ends(id);
            self.with(now, id, effects, |range, turn| {
                range.propose(turn);
                range.collect(turn);
            });
            // What still waits is looked at again when something happens to the range, or at the next tick.
            self.dirty.remove(&id);
        }
        self.bury(now, effects);
        if !self.items.is_empty() {
            self.last_sequence += 1;
            let items = std::mem::take(&mut self.items);
            self.in_flight.push_back((self.last_sequence, items.iter().map(|item| item.range).collect()));
            self.shared.health.batch_leaves(now, self.last_sequence);
            effects.log = Some(LogBatch { sequence: self.last_sequence, items });
        }
        if !effects.applies.is_empty() {
            self.shared.health.applies_leave(now);
        }
    }

    /// Runs `act` on a range that is awake, which then has a turn; false: there is no such range.
    fn with(
        &mut self,
        now: BootTime,
        id: RangeId,
        effects: &mut Effects,
        act: impl FnOnce(&mut Range, &mut Turn<'_>),
    ) -> bool {
        let Some(range) = self.ranges.get_mut(&id) else { return false };
        let sequence = self.last_sequence + 1;
        let (shared, items, born) = (&mut self.shared, &mut self.items, &mut self.born);
        act(range, &mut Turn { now, shared, effects, items, sequence, born, wishes: &mut self.wishes });
        if range.is_doomed() {
            self.doomed.insert(id);
        }
        self.dirty.insert(id);
        self.begin_born(now, effects);
        self.grant(now, effects);
        true
    }

    fn with_all(&mut self, now: BootTime, effects: &mut Effects, mut act: impl FnMut(&mut Range, &mut Turn<'_>)) {
        let sequence = self.last_sequence + 1;
        for (id, range) in &mut self.ranges {
            let (shared, items, born) = (&mut self.shared, &mut self.items, &mut self.born);
            act(range, &mut Turn { now, shared, effects, items, sequence, born, wishes: &mut self.wishes });
            if range.wants_turn() {
                self.dirty.insert(*id);
            }
        }
        self.grant(now, effects);
    }

    fn persisted(&mut self, now: BootTime, sequence: u64, effects: &mut Effects) {
        self.shared.durable_sequence = sequence;
        self.shared.health.batch_durable(now, sequence);
        self.newborn.retain(|_, batch| *batch > sequence);
        self.tell_recovered(sequence, effects);
        while self.in_flight.front().is_some_and(|(of, _)| *of <= sequence) {
            let Some((_, ranges)) = self.in_flight.pop_front() else { return };
            for id in ranges {
                self.with(now, id, effects, |range, turn| range.persisted(turn, sequence));
            }
        }
    }

    fn disk_space(&mut self, node: NodeId, has_room: bool) {
        if has_room {
            self.shared.full_nodes.remove(&node);
        } else {
            self.shared.full_nodes.insert(node);
        }
    }

    /// Ticks that were missed are not made up: an election timer that leapt would break the promise
    /// that leases rest on.
    fn tick(&mut self, now: BootTime, effects: &mut Effects) {
        if now < self.last_tick + self.shared.config.tick {
            return;
        }
        let elapsed = now.since(self.last_tick);
        self.last_tick = now;
        let told = self.shared.health.tick(now, elapsed, self.shared.config.tick);
        effects.health = told.or(effects.health.take());
        let (draining, slow) = (self.shared.draining, self.shared.health.is_slow());
        let budget = Cell::new(SLOW_HAND_OVERS_PER_TICK);
        let (mut tired, mut seeking) = (Vec::new(), 0);
        self.with_all(now, effects, |range, turn| {
            if draining {
                range.hand_over(turn);
            } else if slow {
                range.leave_to_faster(turn, &budget);
            }
            if range.falls_asleep(turn) {
                tired.push(RangeId(range.descriptor().range_id));
            } else {
                range.tick(turn);
                seeking += usize::from(range.is_seeking(&turn.shared.config));
            }
        });
        self.put_to_bed(now, tired);
        if slow && !draining {
            self.rouse_to_leave(now, budget.get(), effects);
        }
        self.tick_sleepers(now, seeking, effects);
        self.unknown.forget_old(now, self.shared.config.election_timeout());
        effects.range_ids_wanted |= self.shared.range_ids.run_short();
    }
}
