//! Whether this node is slow: against the others, never by itself.
//!
//! A node whose disk takes 50 ms for a sync, or that stands still for seconds, is worse than one that is dead: it keeps
//! what it leads, and everybody waits for it (tikv#18054, tikv#18058, pd#8852). So the store measures itself, nodes tell
//! each other what they measured, and one that finds itself slow against the others leads nothing while it lasts
//! (`range/slow.rs`).
//!
//! What is measured, from what the store is told anyway:
//! - *syncs*: from when a log batch left until it is durable; one that has been out for a second counts with its age, so
//!   that a disk that hangs shows;
//! - *applies*: from when tasks left for the apply stage until the first answer;
//! - *stalls*: by how much ticks came too late, if by much; time heals it, at a twentieth of its pace.
//!
//! When it is slow: a figure is above its floor and at least three times as large as the same figure of a majority of all
//! nodes that are heard of and have one (itself counted among them), for two seconds on end and in a few further samples:
//! a node with little to do says no more by being silent for two seconds. So where most are slow nobody is: the
//! leaders would have nowhere better to go. Nodes that write nothing have no such figure: they speak neither for nor
//! against, or a slow disk among the few that work would hide behind the many that rest. With two nodes, or two that
//! write, nobody ever is. It is well again when no figure has
//! been twice as large for ten seconds. The rule is like that of TiKV's and PD's slow scores in its purpose; the figures
//! here are compared between nodes, not with a fixed bound.
//!
//! No history is kept but that of the last seconds, and nothing per range.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use flotilla_proto::{NodeId, v1};

use crate::time::BootTime;

/// How long a figure must be bad until the node counts as slow, and good until it is well again.
const SLOW_AFTER: Duration = Duration::from_secs(2);
const WELL_AFTER: Duration = Duration::from_secs(10);
/// How often the others are told.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// What was heard longer ago says nothing about a node.
const FRESH: Duration = Duration::from_secs(5);
/// A figure is the average over so long, and over so many samples at least, none older than the last.
const WINDOW_S: u64 = 3;
const SAMPLES_MIN: u64 = 4;
const SAMPLES_AGE_MAX_S: u64 = 30;
/// Ticks that are later than this are a stall; time takes this part of itself off what was counted, up to the last.
const STALL_MIN: Duration = Duration::from_millis(300);
const STALL_HEALS: u32 = 20;
const STALL_MAX: Duration = Duration::from_secs(3);

/// A figure, and when it is bad.
struct Rule {
    floor_us: u64,
    what: &'static str,
}

const SYNC: Rule = Rule { floor_us: 8_000, what: "log syncs take" };
const APPLY: Rule = Rule { floor_us: 50_000, what: "applies take" };
const STALL: Rule = Rule { floor_us: 1_000_000, what: "pauses of late add up to" };
/// So many samples while a figure is bad prove it.
const PROOF_MIN: u64 = 8;
/// A log batch that is out for so long says it by itself. Of shorter ones the figure is told once they are durable: with
/// hundreds of syncs a second one that takes long is out at some tick every few seconds, on the best of disks.
const HANGS_US: u64 = 1_000_000;
/// So many times as large as the others' a figure must be, for the node to become slow, and to stay it.
const FACTOR_SLOW: u64 = 3;
const FACTOR_WELL: u64 = 2;

/// What was measured within one second.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    second: u64,
    sum_us: u64,
    count: u64,
    max_us: u64,
}

/// How long something took of late.
#[derive(Debug, Default)]
struct Recent {
    buckets: VecDeque<Bucket>,
    /// Samples so far.
    total: u64,
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn second(now: BootTime) -> u64 {
    now.0 / 1_000_000_000
}

impl Recent {
    fn note(&mut self, now: BootTime, took: Duration) {
        let (second, us) = (second(now), micros(took));
        if self.buckets.back().is_none_or(|last| last.second < second) {
            self.buckets.push_back(Bucket { second, ..Bucket::default() });
            while self.buckets.front().is_some_and(|first| first.second + SAMPLES_AGE_MAX_S < second) {
                self.buckets.pop_front();
            }
        }
        self.total += 1;
        if let Some(last) = self.buckets.back_mut() {
            last.sum_us = last.sum_us.saturating_add(us);
            last.count += 1;
            last.max_us = last.max_us.max(us);
        }
    }

    /// The average, without the one that took longest: a single pause is no trend. 0: too little is known.
    fn figure_us(&self, now: BootTime) -> u64 {
        let now = second(now);
        let mut all = Bucket::default();
        for bucket in self.buckets.iter().rev() {
            let age = now.saturating_sub(bucket.second);
            if age > SAMPLES_AGE_MAX_S || (age >= WINDOW_S && all.count >= SAMPLES_MIN) {
                break;
            }
            all.sum_us = all.sum_us.saturating_add(bucket.sum_us);
            all.count += bucket.count;
            all.max_us = all.max_us.max(bucket.max_us);
        }
        if all.count < SAMPLES_MIN { 0 } else { ((all.sum_us - all.max_us) / (all.count - 1)).max(1) }
    }
}

/// How many samples there were so far.
#[derive(Clone, Copy, Debug)]
struct Samples {
    syncs: u64,
    applies: u64,
}

/// In what a node is worse than the others.
struct Worse {
    reason: String,
    /// Enough was measured since it began to be so.
    proven: bool,
}

/// What another node said of itself, and when.
#[derive(Debug)]
struct Peer {
    health: v1::NodeHealth,
    heard: BootTime,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Health {
    syncs: Recent,
    applies: Recent,
    /// Log batches that are out: sequence, and when they left.
    batches: VecDeque<(u64, BootTime)>,
    apply_since: Option<BootTime>,
    stalled: Duration,
    peers: BTreeMap<NodeId, Peer>,
    /// Since when the figures say something else than what counts, and what they rested on then.
    differs_since: Option<(BootTime, Samples)>,
    slow_since: Option<BootTime>,
    reason: String,
    told_at: BootTime,
}

impl Health {
    /// A log batch leaves.
    pub(crate) fn batch_leaves(&mut self, now: BootTime, sequence: u64) {
        self.batches.push_back((sequence, now));
    }

    /// Log batches up to this one are durable.
    pub(crate) fn batch_durable(&mut self, now: BootTime, sequence: u64) {
        while let Some((_, left)) = self.batches.front().copied().filter(|(of, _)| *of <= sequence) {
            self.batches.pop_front();
            self.syncs.note(now, now.since(left));
        }
    }

    /// Tasks leave for the apply stage.
    pub(crate) fn applies_leave(&mut self, now: BootTime) {
        self.apply_since.get_or_insert(now);
    }

    /// The apply stage has answered.
    pub(crate) fn apply_done(&mut self, now: BootTime) {
        if let Some(since) = self.apply_since.take() {
            self.applies.note(now, now.since(since));
        }
    }

    /// What another node says of itself.
    pub(crate) fn heard(&mut self, now: BootTime, from: NodeId, health: v1::NodeHealth) {
        self.peers.insert(from, Peer { health, heard: now });
    }

    /// Whether this node is slow: it is to lead nothing.
    pub(crate) fn is_slow(&self) -> bool {
        self.slow_since.is_some()
    }

    /// Whether another node said lately that it is slow.
    pub(crate) fn is_slow_there(&self, now: BootTime, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.health.slow && now.since(peer.heard) <= FRESH)
    }

    /// Whether another node said lately that it is not slow.
    pub(crate) fn is_well_there(&self, now: BootTime, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|peer| !peer.health.slow && now.since(peer.heard) <= FRESH)
    }

    /// Time has passed: `elapsed` since the last tick, where `due` was meant. Returns what the others are to be told.
    pub(crate) fn tick(&mut self, now: BootTime, elapsed: Duration, due: Duration) -> Option<v1::NodeHealth> {
        self.stalled = self.stalled.saturating_sub(elapsed / STALL_HEALS);
        let late = elapsed.saturating_sub(due);
        if late >= STALL_MIN {
            self.stalled = (self.stalled + late).min(STALL_MAX);
        }
        let was_slow = self.is_slow();
        self.judge(now);
        let due = now.since(self.told_at) >= TELL_EVERY || self.is_slow() != was_slow;
        due.then(|| {
            self.told_at = now;
            self.figures(now)
        })
    }

    /// What the node measures of itself, and what follows.
    pub(crate) fn figures(&self, now: BootTime) -> v1::NodeHealth {
        v1::NodeHealth {
            sync_us: self.syncs.figure_us(now).max(self.hangs_us(now).unwrap_or(0)),
            apply_us: self.applies.figure_us(now),
            stall_us: micros(self.stalled),
            slow: self.is_slow(),
            slow_for_ms: self.slow_since.map_or(0, |since| micros(now.since(since)) / 1_000),
            reason: self.reason.clone(),
            syncs: self.syncs.total,
            applies: self.applies.total,
        }
    }

    /// For how long the oldest log batch has been out, if that is longer than any disk may take.
    fn hangs_us(&self, now: BootTime) -> Option<u64> {
        let out = self.batches.front().map(|(_, left)| micros(now.since(*left)));
        out.filter(|us| *us >= HANGS_US)
    }

    fn judge(&mut self, now: BootTime) {
        let own = self.figures(now);
        let worse = self.worse(now, &own);
        let (differs, patience) =
            if self.is_slow() { (worse.is_none(), WELL_AFTER) } else { (worse.is_some(), SLOW_AFTER) };
        if let (true, Some(worse)) = (self.is_slow(), &worse) {
            self.reason.clone_from(&worse.reason);
        }
        if !differs {
            self.differs_since = None;
            return;
        }
        let samples = self.samples();
        let (since, _) = *self.differs_since.get_or_insert((now, samples));
        if now.since(since) < patience || worse.as_ref().is_some_and(|worse| !worse.proven) {
            return;
        }
        self.differs_since = None;
        self.slow_since = worse.is_some().then_some(now);
        self.reason = worse.map(|worse| worse.reason).unwrap_or_default();
    }

    fn samples(&self) -> Samples {
        Samples { syncs: self.syncs.total, applies: self.applies.total }
    }

    /// In what this node is worse than the others; `None`: in nothing that counts.
    fn worse(&self, now: BootTime, own: &v1::NodeHealth) -> Option<Worse> {
        // What is not known is 0, and says nothing; a node that never stood still says just that.
        let known = |us: u64| (us > 0).then_some(us);
        let has = self.samples();
        let had = self.differs_since.map_or(has, |(_, samples)| samples);
        let hangs = self.hangs_us(now).is_some();
        let of = |reason, proven| Worse { reason, proven };
        self.compare(now, &SYNC, own.sync_us, |of| known(of.sync_us))
            .map(|reason| of(reason, hangs || has.syncs - had.syncs >= PROOF_MIN))
            .or_else(|| {
                let reason = self.compare(now, &APPLY, own.apply_us, |of| known(of.apply_us))?;
                Some(of(reason, has.applies - had.applies >= PROOF_MIN))
            })
            .or_else(|| {
                let reason = self.compare(now, &STALL, own.stall_us, |of| Some(of.stall_us))?;
                Some(of(reason, true))
            })
    }

    fn compare(
        &self,
        now: BootTime,
        rule: &Rule,
        own_us: u64,
        figure: impl Fn(&v1::NodeHealth) -> Option<u64>,
    ) -> Option<String> {
        let (factor, floor) =
            if self.is_slow() { (FACTOR_WELL, rule.floor_us / 2) } else { (FACTOR_SLOW, rule.floor_us) };
        if own_us < floor {
            return None;
        }
        let fresh = self.peers.values().filter(|peer| now.since(peer.heard) <= FRESH);
        let mut better: Vec<u64> = fresh.filter_map(|peer| figure(&peer.health)).collect();
        let majority = better.len().div_ceil(2) + 1;
        better.retain(|us| own_us >= us.saturating_mul(factor));
        better.sort_unstable();
        if better.len() < majority {
            return None;
        }
        let others = better[better.len() / 2];
        Some(format!("its {} {}, those of the others {}", rule.what, millis(own_us), millis(others)))
    }
}

/// For people: whole milliseconds, or a tenth of one.
fn millis(us: u64) -> String {
    if us >= 10_000 { format!("{} ms", us / 1_000) } else { format!("{}.{} ms", us / 1_000, us % 1_000 / 100) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(100);

    /// A node with peers that have fast disks: two, unless a test says otherwise; and some that write nothing.
    struct Bench {
        health: Health,
        writing: Vec<u64>,
        idle: Vec<u64>,
        now: BootTime,
        batches: u64,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                health: Health::default(),
                writing: vec![2, 3],
                idle: vec![],
                now: BootTime(60_000_000_000),
                batches: 0,
            }
        }

        fn tick(&mut self) {
            self.now = self.now + TICK;
            let writing = self.writing.iter().map(|peer| (*peer, 1_000));
            for (peer, sync_us) in writing.chain(self.idle.iter().map(|peer| (*peer, 0))) {
                let health = v1::NodeHealth { sync_us, ..Default::default() };
                self.health.heard(self.now, NodeId(peer), health);
            }
            self.health.tick(self.now, TICK, TICK);
        }

        fn silence(&mut self, seconds: usize) {
            (0..seconds * 10).for_each(|_| self.tick());
        }

        /// Log batches that take a tick each.
        fn slow_batches(&mut self, count: usize) {
            for _ in 0..count {
                self.batches += 1;
                self.health.batch_leaves(self.now, self.batches);
                self.tick();
                self.health.batch_durable(self.now, self.batches);
            }
        }
    }

    /// A busy node: fast log batches, and now and then one that is still out when a tick comes.
    fn busy(bench: &mut Bench, seconds: usize, slow_every: usize) {
        for tick in 0..seconds * 10 {
            let left = bench.now;
            for _ in 0..20 {
                bench.batches += 1;
                bench.health.batch_leaves(left, bench.batches);
                bench.health.batch_durable(left + Duration::from_millis(1), bench.batches);
            }
            if tick % slow_every == 0 {
                bench.slow_batches(1);
            } else {
                bench.tick();
            }
        }
    }

    #[test]
    fn one_slow_sync_in_a_while_keeps_no_busy_node_slow() {
        let mut bench = Bench::new();
        bench.slow_batches(40);
        assert!(bench.health.is_slow());
        busy(&mut bench, 15, 5);
        assert!(!bench.health.is_slow(), "its average was good for ten seconds: {:?}", bench.health.figures(bench.now));
        busy(&mut bench, 60, 5);
        assert!(!bench.health.is_slow());
    }

    /// Seed 430: nodes with next to nothing to do found themselves slow in turn, by a few samples and long silences.
    #[test]
    fn a_few_bad_syncs_and_silence_after_them_make_no_node_slow() {
        let mut bench = Bench::new();
        bench.slow_batches(5);
        bench.silence(10);
        let figures = bench.health.figures(bench.now);
        assert_eq!(
            (figures.sync_us, figures.slow),
            (100_000, false),
            "it says what it measured, and draws no conclusion"
        );
        bench.slow_batches(10);
        assert!(bench.health.is_slow(), "further samples say the same");
    }

    /// Seed 2815: of five nodes two wrote nothing, and two that are better were no majority of five.
    #[test]
    fn a_slow_disk_does_not_hide_behind_nodes_that_write_nothing() {
        let mut bench = Bench { idle: vec![4, 5, 6, 7], ..Bench::new() };
        bench.slow_batches(40);
        assert!(bench.health.is_slow());
        let mut bench = Bench { writing: vec![2], idle: vec![3, 4, 5], ..Bench::new() };
        bench.slow_batches(40);
        assert!(!bench.health.is_slow(), "against a single other one nobody is");
    }

    #[test]
    fn a_batch_that_hangs_needs_no_further_samples() {
        let mut bench = Bench::new();
        bench.health.batch_leaves(bench.now, 1);
        bench.silence(1);
        assert!(!bench.health.is_slow());
        bench.silence(3);
        assert!(bench.health.is_slow());
    }
}
