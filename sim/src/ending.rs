//! The end of a run: everything heals, and then the cluster has to prove that it is well.
//!
//! 1. All faults end, all nodes run. Within ten election time-outs every range takes a write (I13).
//! 2. Clients finish what they began; keys with a ttl end in time (I14).
//! 3. All replicas become level, and hold equal data (I4, I3), with an expiry index that fits it (I14).
//! 4. All ranges fall asleep, and nothing is said about them any more (`quiet.rs`).
//! 5. Every key is read. The history is linearizable, nothing acknowledged is lost, nothing was seen
//!    that nobody wrote (I12).

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use flotilla_engine::storage::{Direction, Family, Read};
use flotilla_engine::store::{Input, RangeSummary};
use flotilla_engine::{keys, snapshot};
use flotilla_proto::ids::DEFAULT_KEYSPACE;
use flotilla_proto::{RangeId, v1};
use v1::request::Body;

use crate::checker::{Budget, Calm, Verdict, check, nothing_invented, nothing_lost, nothing_outlives, timeline};
use crate::client::Mode;
use crate::clock::{Nanos, ms, nanos, us};
use crate::cluster::Cluster;
use crate::gray::Storms;
use crate::marks::Mark;
use crate::node::Node;
use crate::quiet::Rest;
use crate::schedule::Event;
use crate::territory::{self, Territory};

const STEP: Nanos = ms(100);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    #[default]
    Faults,
    Healing,
    Recovering,
    /// The real placement has still to do.
    Settling,
    Expiring,
    Levelling,
    /// Ranges fall asleep.
    Resting,
    Reading,
    Done,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    phase: Phase,
    pub began: Nanos,
    last_recovery: Nanos,
    /// Applied indexes and epochs, all added up, and the replicas: whether what lags comes on.
    progress: (u64, u64, usize),
    /// Requests answered, as long as all keys are read.
    answered: u64,
    waiting: BTreeSet<RangeId>,
    readers: Vec<usize>,
    /// So many clients were there when all healed.
    old_clients: usize,
    pub storms: Storms,
    /// Since when nothing goes wrong with what is sent.
    pub calm_since: Nanos,
    /// Since when all ranges sleep.
    pub rest: Option<Rest>,
    /// How few replicas were awake so far while all were to fall asleep.
    pub awake: Option<usize>,
    /// How often somebody woke then whom no late message had reached.
    pub stirs: usize,
}

impl Ending {
    /// No new fault begins.
    pub(crate) fn is_healing(&self) -> bool {
        self.phase >= Phase::Healing
    }

    pub(crate) fn is_healed(&self) -> bool {
        self.phase >= Phase::Recovering
    }

    pub(crate) fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// A range has taken a write after the healing.
    pub(crate) fn recovered(&mut self, range: RangeId, now: Nanos) {
        self.waiting.remove(&range);
        self.last_recovery = now - self.began;
    }
}

impl Cluster {
    /// Everything heals.
    pub(crate) fn heal(&mut self) {
        let begins = !self.ending.is_healing();
        self.ending.phase = Phase::Healing;
        // What stands still cannot be hurried.
        for node in &mut self.nodes {
            node.slow_sync = None;
            node.slow_apply = None;
        }
        // Syncs that begin from now on take as long as ever: with many nodes there is always one (seed 8574).
        let syncs_until = |node: &Node| if begins { node.disk_busy_until } else { 0 };
        let still = |node: &Node| {
            node.paused_until.max(node.stalled_until).max(node.apply_stalled_until).max(syncs_until(node))
        };
        let still = self.nodes.iter().map(still).max().unwrap_or(0);
        if still > self.now {
            return self.schedule.at(still + us(1), Event::Heal);
        }
        if !self.recovery_is_over() {
            return self.schedule.at(self.now + STEP, Event::Heal);
        }
        self.end_of_the_lost();
        self.trace.note(self.now, "heal", &[]);
        self.network.become_calm();
        self.ending.calm_since = self.now;
        for undo in std::mem::take(&mut self.undo).into_values() {
            self.undo_fault(undo);
        }
        for index in 0..self.nodes.len() {
            let node = &mut self.nodes[index];
            (node.armed, node.on_merge_asked) = (None, None);
            node.clients_cut = 0;
            node.has_no_room = false;
            node.disk.free_space();
            node.disk.mend();
            if node.disk.is_poisoned() {
                self.crash(index, true);
            }
            self.start(index);
            self.give(index, Input::DiskSpace { has_room: true });
        }
        if self.left_gaps() {
            // Who asks for a key there gets no answer ever more: what was answered so far is judged, and no more.
            self.marks.hit(Mark::RecoveryGaps);
            self.judge();
            self.ending.phase = Phase::Done;
            return;
        }
        self.ending.phase = Phase::Recovering;
        self.ending.began = self.now;
        self.ending.old_clients = self.clients.len();
        let newest: Vec<v1::RangeDescriptor> = self
            .invariants
            .territory
            .all_newest()
            .filter(|range| range.keyspace_id == DEFAULT_KEYSPACE.0)
            .map(|range| (**range).clone())
            .collect();
        self.ending.waiting = newest.iter().map(|range| RangeId(range.range_id)).collect();
        for range in newest {
            let key = [&range.start[..], b"+probe"].concat();
            let client = self.add_client(Mode::Probe(RangeId(range.range_id), key.into()));
            self.nudge(client);
        }
        self.schedule.at(self.now + STEP, Event::CheckProgress);
    }

    /// Looks whether the phase is over, or should be.
    pub(crate) fn check_progress(&mut self) {
        self.note_levelling();
        self.tally.elections_healed = self.tally.elections_healed.max(self.ending.storms.most());
        let verdict = self.ending.storms.check();
        self.check(verdict);
        if self.ending.phase >= Phase::Levelling {
            // An election that was under way may end leaders that had stayed so far.
            self.watch_leaders(false);
        }
        let late = self.now > self.ending.began + 10 * self.knobs.election_timeout_max();
        let in_vain = self.reads_in_vain(&self.ending.readers);
        let rests = self.ending.phase == Phase::Settling && self.rests(self.ending.began);
        match self.ending.phase {
            Phase::Recovering if self.ending.waiting.is_empty() => {
                self.tally.recovery = self.ending.last_recovery;
                self.next_phase(Phase::Settling);
            }
            Phase::Settling if rests => {
                self.next_phase(Phase::Expiring);
                self.watch_leaders(true);
            }
            Phase::Expiring => self.check_expiring(late),
            Phase::Levelling if self.clients_idle() && self.uneven().is_none() => {
                self.compare_replicas();
                self.check_territory();
                let verdict = self.check_expiry_index();
                self.check(verdict);
                if self.comes_to_rest() {
                    self.next_phase(Phase::Resting);
                } else {
                    self.read_all();
                }
            }
            Phase::Resting => {
                let rested = self.rested(late);
                if rested {
                    self.read_all();
                }
            }
            Phase::Reading if in_vain.is_some() => self.check(in_vain.map_or(Ok(()), Err)),
            Phase::Reading if self.ending.readers.iter().all(|client| self.clients[*client].is_idle()) => {
                self.judge();
                self.ending.phase = Phase::Done;
                return;
            }
            Phase::Recovering if late => {
                let what = format!("I13: no write ten election time-outs after healing: {:?}", self.ending.waiting);
                self.check(Err(what));
            }
            Phase::Levelling if late => self.check_levelling(),
            Phase::Reading if late => self.check(Err("I13: reads do not end".into())),
            _ => {}
        }
        self.schedule.at(self.now + STEP, Event::CheckProgress);
    }

    /// A replica that lags may take its time, as long as it comes on: with the tiniest limits one entry
    /// at a heartbeat.
    fn note_levelling(&mut self) {
        let processes = self.nodes.iter().filter_map(|node| node.process.as_ref());
        let progress = processes.flat_map(|of| of.store.ranges()).fold((0, 0, 0), |(applied, epochs, count), range| {
            let age = territory::age(&range.descriptor);
            (applied + range.applied, epochs + age.0 + age.1, count + 1)
        });
        // So may many reads, one after the other.
        let answered = self.recorder.acknowledged;
        if self.ending.phase == Phase::Reading && answered != self.ending.answered {
            self.ending.answered = answered;
            self.ending.began = self.now;
        }
        if self.ending.phase == Phase::Levelling && progress != self.ending.progress {
            self.ending.progress = progress;
            self.ending.began = self.now;
        }
    }

    /// Clients wait no longer than ever. A replica may have to wait for its leader's next snapshot first: while its node's disk
    /// was slow all were refused, for the range that was split there was in the way still, and the pauses between them grew
    /// longer than ten election time-outs (seed 27542).
    fn check_levelling(&mut self) {
        let pause = nanos(self.knobs.config.snapshot_pause_max());
        let patience = pause + 10 * self.knobs.election_timeout_max();
        match self.uneven() {
            None => self.check(Err("I13: not all is level after healing: clients still wait".into())),
            Some(uneven) if self.now > self.ending.began + patience => {
                self.check(Err(format!("I13: not level {} s after healing: {uneven}", patience / ms(1_000))));
            }
            Some(_) => {}
        }
    }

    /// Goes on when all short ttls are over, by what the disks hold or else by the time that has passed.
    fn check_expiring(&mut self, late: bool) {
        // A range that nobody leads just now has keys that nobody ends.
        let led = self.ranges().into_iter().all(|range| self.is_gone(range) || self.leader_of(range).is_some());
        let busy = !self.clients_idle() || !led;
        self.watch_leaders(busy);
        let over = self.now > self.all_over_at();
        match self.short_lived() {
            _ if busy && late => self.check(Err("I13: clients still wait".into())),
            _ if busy => {}
            None => self.next_phase(Phase::Levelling),
            // Clients are to notice it by themselves.
            Some(_) if over && self.invariants.black_box => self.next_phase(Phase::Levelling),
            Some(key) if over => self.check(Err(format!("I14: a key outlives its ttl: {key}"))),
            Some(_) => {}
        }
    }

    fn next_phase(&mut self, phase: Phase) {
        self.ending.phase = phase;
        self.ending.began = self.now;
    }

    fn clients_idle(&self) -> bool {
        self.clients.iter().all(crate::client::Client::is_idle)
    }

    pub(crate) fn summaries(&self, range: RangeId) -> Vec<(usize, RangeSummary)> {
        let of = |node: &Node| {
            let mut ranges = node.process.as_ref()?.store.ranges();
            Some((node.index, ranges.find(|summary| summary.range == range)?))
        };
        self.nodes.iter().filter_map(of).collect()
    }

    /// A range whose replicas are not level, in words.
    fn uneven(&self) -> Option<String> {
        if let Some(frozen) = self.invariants.territory.merges.open().find(|range| !self.is_gone(*range)) {
            return Some(format!("{frozen} is frozen still"));
        }
        let left = self.invariants.territory.merges.ended().find_map(|range| {
            let (node, of) = self.summaries(range).pop()?;
            Some(format!("{range} was merged away, and replica {} of it is on n{}", of.replica_id, node + 1))
        });
        if left.is_some() {
            return left;
        }
        self.ranges().into_iter().filter(|range| !self.is_gone(*range)).find_map(|range| {
            let replicas = self.summaries(range);
            let newest = self.invariants.territory.newest(range)?;
            let on: Vec<(usize, u64)> = replicas.iter().map(|(node, of)| (*node, of.replica_id)).collect();
            let mut named: Vec<(usize, u64)> =
                newest.replicas.iter().map(|of| (of.node_id as usize - 1, of.replica_id)).collect();
            named.sort_unstable();
            let voters = newest.replicas.iter().all(|of| of.role() == v1::ReplicaRole::Voter);
            if on != named || !voters {
                let waits: Vec<&str> = replicas.iter().map(|(_, of)| &of.order_waits[..]).collect();
                let newest = territory::words(newest);
                return Some(format!("{newest} is on {on:?} (node, replica), its order waits: {waits:?}"));
            }
            let (_, first) = replicas.first()?;
            let level = |summary: &RangeSummary| {
                (summary.applied, summary.last_index, summary.term, summary.leader, &summary.descriptor)
                    == (first.last_index, first.last_index, first.term, first.leader, newest)
            };
            let all = replicas.iter().all(|(_, summary)| level(summary)) && first.leader.is_some();
            (!all).then(|| {
                let each = replicas.iter().map(|(node, of)| {
                    format!(
                        "n{} term {} leader {:?} last {} commit {} applied {}",
                        node + 1,
                        of.term,
                        of.leader,
                        of.last_index,
                        of.commit,
                        of.applied
                    )
                });
                format!("{range}: {}", each.collect::<Vec<_>>().join("; "))
            })
        })
    }

    /// Equal applied index, equal checksum, equal data.
    fn compare_replicas(&mut self) {
        for range in self.ranges().into_iter().filter(|range| !self.is_gone(*range)) {
            let mut first: Option<(usize, flotilla_engine::store::SnapshotData)> = None;
            for (index, _) in self.summaries(range) {
                let state = match snapshot::make(&self.nodes[index].disk, range) {
                    Ok(state) => state,
                    Err(error) => return self.check(Err(format!("I4: n{} {range}: {error}", index + 1))),
                };
                match &first {
                    None => first = Some((index, state)),
                    Some((other, expected)) if *expected != state => {
                        let what = format!(
                            "I4: n{} and n{} hold different data of {range}: {:?} and {:?}",
                            other + 1,
                            index + 1,
                            expected.header.applied,
                            state.header.applied
                        );
                        return self.check(Err(what));
                    }
                    Some(_) => {}
                }
            }
        }
    }

    /// I5: what leaders say tiles the keyspace. I6: no store holds data of ranges that it does not have.
    fn check_territory(&mut self) {
        let led = |node: &Node| -> Vec<_> {
            let ranges = node.process.iter().flat_map(|process| process.store.ranges());
            ranges.filter(|range| range.leads).map(|range| range.descriptor).collect()
        };
        let led: Vec<_> = self.nodes.iter().flat_map(led).collect();
        // The toy's other keyspace is born in pieces.
        let all = self.real.is_some();
        let tiling = led.iter().filter(|range| all || range.keyspace_id == DEFAULT_KEYSPACE.0);
        let verdict = Territory::check_tiles(tiling.map(|range| &**range));
        self.check(verdict);
        for index in 0..self.nodes.len() {
            let verdict = self.check_disk(index);
            self.check(verdict);
        }
    }

    /// I6: a store holds keys of the ranges that it has, and no others.
    pub(crate) fn check_disk(&self, index: usize) -> Result<(), String> {
        if self.is_outcast(index) {
            return Ok(());
        }
        let mut spans: Vec<(Vec<u8>, Vec<u8>)> =
            self.invariants.territory.on_store(index).flat_map(|range| snapshot::spans(range)).collect();
        spans.sort_unstable();
        let mut stray = None;
        let (start, end) = keys::range_records();
        self.nodes[index]
            .disk
            .copy()
            .scan(Family::State, &[], &[0xFF; 64], Direction::Forward, &mut |key, _| {
                let record = key >= &start[..] && key < &end[..];
                let after = spans.partition_point(|(start, _)| &start[..] <= key);
                let held = after.checked_sub(1).is_some_and(|at| key < &spans[at].1[..]);
                if !record && !held {
                    stray = Some(key.to_vec());
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })
            .map_err(|error| format!("n{}: {error}", index + 1))?;
        match stray {
            Some(key) => Err(format!("I6: n{} holds key {}, of no range there", index + 1, key.escape_ascii())),
            None => Ok(()),
        }
    }

    /// Has every key read, by several clients.
    fn read_all(&mut self) {
        self.next_phase(Phase::Reading);
        self.ending.readers = (0..8).map(|_| self.add_client(Mode::Script)).collect();
        let readers = self.ending.readers.clone();
        let keys = self.recorder.keys.get(&DEFAULT_KEYSPACE).cloned().unwrap_or_default();
        for (at, key) in keys.into_iter().enumerate() {
            let get = v1::GetRequest { header: None, key };
            self.clients[readers[at % readers.len()]].script.push_back(Body::Get(get));
        }
        let young = self.read_young();
        let old = self.read_by_old_clients(self.ending.old_clients);
        self.ending.readers.extend(young.into_iter().chain(old));
        for reader in self.ending.readers.clone() {
            self.nudge(reader);
        }
    }

    /// I12, over the whole history.
    pub(crate) fn judge(&mut self) {
        let chapters = self.recorder.history.in_chapters();
        let history = &chapters.history;
        match check(history, Budget::default()) {
            Verdict::Ok(_) => {}
            Verdict::Violation(violation) => {
                self.trace.say(self.now, || timeline(history, &violation.key));
                let what = format!("I12: {}", violation.explanation);
                return self.check(Err(what));
            }
            // Said, not hidden: nothing is proven about this key.
            Verdict::Undecided { key, reason } => {
                self.tally.undecided += 1;
                self.trace.say(self.now, || format!("key {key:?}: {reason}"));
            }
        }
        let audit = nothing_lost(history);
        let calm = if self.left_gaps() { Calm::default() } else { self.calm() };
        let outlived = nothing_outlives(history, &calm);
        let kept = chapters.findings.into_iter();
        let findings = audit.findings.into_iter().chain(nothing_invented(history)).chain(outlived).chain(kept);
        let unread = audit.keys_without_final_read.iter();
        let mut unread = unread.filter(|key| !chapters.closed.contains(*key) && !self.left_gaps());
        let unread = unread.find(|key| !self.key_is_gone(key));
        if let Some(finding) = findings.into_iter().next() {
            self.check(Err(format!("I12: {finding}")));
        } else if let Some(key) = unread {
            let what = format!("I13: key {key:?} could not be read at the end");
            self.check(Err(what));
        }
    }
}
