//! Replicas that come and go: how a store tells a message for a replica that it does not have from one that it will
//! have, or never will again.
//!
//! A replica comes to exist in three ways: by a split that is applied here, by a snapshot that is meant for it, and
//! by placement's word when a keyspace is made. Never by another message: a replica without state has no vote to
//! forget (tikv#8381). What comes for one that is not here is one of these:
//! - it has a tombstone, or belongs to a former replica: dropped;
//! - it is a child of a split that is not applied here yet: kept for a moment, and given to the child when it
//!   begins, so that its first election loses no vote (tikv#8084);
//! - it is a learner, or a replica whose parent here leapt over the split by a snapshot: the leader is told, without
//!   any state and without any promise, that nothing is here, and sends a snapshot.
//!
//! A snapshot is refused as long as another replica here holds part of its span: that one is to be split, or
//! removed, first (tikv#7027, yugabyte#8891).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_mutants::Mutant;
use flotilla_proto::{RangeId, v1};
use raft::eraftpb::{Message, MessageType};

use super::{Effects, Envelope, Event, LogItem, Range, Store};
use crate::apply::{ApplyTask, ApplyWork, initial_applied, own_replica};
use crate::range::{Born, joined};
use crate::recover::RangeBoot;
use crate::snapshot;
use crate::time::BootTime;
use crate::wire;

/// Messages kept for children that have not begun yet.
const EARLY_MAX: usize = 512;
/// Entries in such a message are not worth their memory beyond this.
const EARLY_ENTRIES_MAX: usize = 16;
const EARLY_BYTES_MAX: usize = 64 << 10;

/// What is known of replicas that are not here.
#[derive(Debug, Default)]
pub(super) struct Unknown {
    early: VecDeque<(BootTime, Envelope)>,
    /// Since when, and until when, messages have come for a replica.
    heard: BTreeMap<(RangeId, u64), (BootTime, BootTime)>,
}

impl Unknown {
    /// Since when messages have come for this replica.
    fn note(&mut self, range: RangeId, replica: u64, now: BootTime) -> BootTime {
        let (since, last) = self.heard.entry((range, replica)).or_insert((now, now));
        *last = now;
        *since
    }

    fn keep(&mut self, now: BootTime, envelope: Envelope) {
        let entries = &envelope.message.entries;
        let bytes: usize = entries.iter().map(|entry| entry.data.len()).sum();
        if entries.len() <= EARLY_ENTRIES_MAX && bytes <= EARLY_BYTES_MAX {
            if self.early.len() >= EARLY_MAX {
                self.early.pop_front();
            }
            self.early.push_back((now, envelope));
        }
    }

    /// What was kept for a range that begins now.
    fn take(&mut self, range: RangeId) -> Vec<Envelope> {
        self.heard.retain(|(of, _), _| *of != range);
        let (these, others) =
            std::mem::take(&mut self.early).into_iter().partition(|(_, of)| of.message.range_id == range.0);
        self.early = others;
        let these: VecDeque<(BootTime, Envelope)> = these;
        these.into_iter().map(|(_, envelope)| envelope).collect()
    }

    /// Lets go what has waited for longer than `patience`.
    pub(super) fn forget_old(&mut self, now: BootTime, patience: Duration) {
        while self.early.front().is_some_and(|(at, _)| now.since(*at) > patience) {
            self.early.pop_front();
        }
        self.heard.retain(|_, (_, last)| now.since(*last) <= patience * 4);
    }
}

impl Store {
    /// A message from another node.
    pub(super) fn message(&mut self, now: BootTime, envelope: Envelope, effects: &mut Effects) {
        let (from, range) = (envelope.from, RangeId(envelope.message.range_id));
        self.disk_space(from, !envelope.disk_full);
        let boot_id = Some(envelope.message.sleep_boot_id).filter(|id| *id != 0);
        self.heard(now, from, boot_id, effects);
        if self.rouse_by_message(now, &envelope, effects) {
            return;
        }
        let done = match self.merge_message(now, &envelope, effects) {
            Some(done) => done,
            None => self.route(now, range, envelope, effects),
        };
        if let Err(reason) = done {
            effects.events.push(Event::MessageRefused { from, range, reason });
        }
    }

    fn route(&mut self, now: BootTime, id: RangeId, envelope: Envelope, effects: &mut Effects) -> Result<(), String> {
        let to = envelope.message.to_replica;
        let Some(range) = self.ranges.get_mut(&id) else { return self.message_to_unknown(now, id, envelope, effects) };
        if range.takes_beat(now, &self.shared, &envelope, &mut effects.messages) {
            return Ok(());
        }
        let own = range.replica();
        if to < own {
            effects.messages.extend(self.gone_here(id, &envelope));
            return Err(format!("it is for replica {to}, which is gone; replica {own} is here"));
        }
        if to > own {
            return self.message_to_successor(now, id, envelope, effects);
        }
        if let Some(newer) = &envelope.message.removed {
            let mut told = Ok(());
            let entry = (envelope.message.index, envelope.message.log_term);
            let common = (envelope.message.commit, envelope.message.commit_term);
            self.with(now, id, effects, |range, turn| told = range.told_removed(turn, newer, entry, common));
            return told;
        }
        let mut brought = None;
        if let Some(header) = envelope.snapshot.as_ref().map(|data| &data.header) {
            self.check_overlap(id, header)?;
            brought = Some((self.ends_of(id, header), header.descriptor.clone().unwrap_or_default()));
        }
        self.with(now, id, effects, |range, turn| range.message(turn, envelope));
        if let Some((ends, descriptor)) = brought {
            self.claim(id, Arc::new(descriptor), &ends);
            self.hold_for(now, id, ends, effects);
        }
        Ok(())
    }

    /// A message for a later replica of the range on this node. If that is true, the one that is here was removed; the
    /// snapshot's descriptor shows it.
    fn message_to_successor(
        &mut self,
        now: BootTime,
        id: RangeId,
        envelope: Envelope,
        effects: &mut Effects,
    ) -> Result<(), String> {
        let Some(header) = envelope.snapshot.map(|data| data.header) else {
            let answer = self.nothing_here(&Envelope { snapshot: None, ..envelope });
            effects.messages.extend(answer);
            return Ok(());
        };
        let newer = header.descriptor.ok_or("the snapshot has no descriptor")?;
        let mut told = Ok(());
        let entry = header.applied.map_or((0, 0), |applied| (applied.index, applied.term));
        self.with(now, id, effects, |range, turn| told = range.told_removed(turn, &newer, entry, entry));
        told?;
        Err(format!(
            "replica {} is to come, and goes as soon as the one before it has gone",
            envelope.message.to_replica
        ))
    }

    /// Asked before a snapshot's records come, with what came first: whether it would be refused already. What is not
    /// refused here may still be, when all of it is there: the store goes on meanwhile.
    ///
    /// Of one that is refused the core should be told all the same, by the message without the records: it may say that
    /// the replica which is here was removed.
    pub fn admit_snapshot(&self, message: &v1::PeerMessage, header: &v1::SnapshotHeader) -> Result<(), String> {
        let (id, to) = (RangeId(message.range_id), message.to_replica);
        let asleep = self.sleepers.get(id);
        match self.ranges.get(&id) {
            None if asleep.is_some_and(|range| range.replica() != to) => {
                return Err(format!("it is for replica {to}, and another one is here"));
            }
            None if asleep.is_some() => {
                asleep.map_or(Ok(()), |range| snapshot::check_header(header, range.descriptor()))?;
            }
            Some(range) if range.replica() != to => {
                return Err(format!("it is for replica {to}, and replica {} is here", range.replica()));
            }
            Some(range) if range.has_splits_before(header) => return Err("a split of the range comes first".into()),
            Some(range) => snapshot::check_header(header, range.descriptor())?,
            None if self.is_gone(id, to) => return Err(format!("replica {to} is gone")),
            None => self.check_own(id, to, header)?,
        }
        self.check_overlap(id, header)
    }

    /// Whether a replica was here, or would have been, and is not to come back.
    fn is_gone(&self, id: RangeId, replica: u64) -> bool {
        replica == 0 || self.tombstones.get(&id).is_some_and(|gone| replica <= gone.replica_id)
    }

    fn check_own(&self, id: RangeId, replica: u64, header: &v1::SnapshotHeader) -> Result<(), String> {
        let descriptor = header.descriptor.as_ref().ok_or("the snapshot has no descriptor")?;
        if own_replica(descriptor, self.shared.node.0) != Some(replica) || descriptor.range_id != id.0 {
            return Err("the snapshot does not name the replica that it is for".into());
        }
        Ok(())
    }

    /// No other replica here may hold part of what a snapshot brings.
    fn check_overlap(&self, id: RangeId, header: &v1::SnapshotHeader) -> Result<(), String> {
        let descriptor = header.descriptor.as_ref().ok_or("the snapshot has no descriptor")?;
        if Mutant::SnapshotOverOverlap.is_on() {
            return Ok(());
        }
        // Those that the range has taken in end with the snapshot.
        let absorbed = header.merge.as_ref().map_or(&[][..], |merge| &merge.absorbed);
        let mut others = self.descriptors_here().filter(|(other, _)| *other != id && !absorbed.contains(&other.0));
        if let Some((_, other)) = others.find(|(_, other)| overlap(other, descriptor)) {
            return Err(format!("the snapshot overlaps with range {}, which is here", other.range_id));
        }
        let under_way = |other: &RangeId| self.ranges.get(other).is_some_and(|range| range.brings_snapshot());
        let mut claimed = self.claims.iter().filter(|(other, _)| **other != id && under_way(other));
        match claimed.find(|(_, spans)| spans.iter().any(|span| overlap(span, descriptor))) {
            Some((other, _)) => Err(format!("the snapshot overlaps with what is being put in place of range {other}")),
            None => Ok(()),
        }
    }

    /// A snapshot was brought: until it is durable it writes its own span, and deletes those of the replicas that end with
    /// it. They are no replicas here any more long before: another snapshot's data would go with theirs (seed 106).
    fn claim(&mut self, id: RangeId, span: Arc<v1::RangeDescriptor>, ends: &[RangeId]) {
        let Self { claims, ranges, .. } = self;
        claims.retain(|of, _| ranges.get(of).is_some_and(|range| range.brings_snapshot()));
        if !self.ranges.get(&id).is_some_and(|range| range.brings_snapshot()) {
            return;
        }
        let ended = ends.iter().filter_map(|of| self.descriptor_here(*of)).map(|of| Arc::new(of.clone()));
        let spans: Vec<_> = std::iter::once(span).chain(ended).collect();
        self.claims.entry(id).or_default().extend(spans);
    }

    fn message_to_unknown(
        &mut self,
        now: BootTime,
        id: RangeId,
        envelope: Envelope,
        effects: &mut Effects,
    ) -> Result<(), String> {
        let to = envelope.message.to_replica;
        if self.is_gone(id, to) {
            effects.messages.extend(self.gone_here(id, &envelope));
            effects.messages.extend(self.merged_notice(id, &envelope));
            return Err(format!("replica {to} is gone"));
        }
        if envelope.message.removed.is_some() {
            return Err("it was never here".into());
        }
        if envelope.snapshot.is_some() {
            return self.begin_by_snapshot(now, id, envelope, effects);
        }
        let since = self.unknown.note(id, to, now);
        let nothing_comes = now.since(since) >= self.shared.config.election_timeout();
        let answer = if envelope.message.to_learner || nothing_comes { self.nothing_here(&envelope) } else { None };
        match answer {
            Some(answer) => effects.messages.push(answer),
            None => self.unknown.keep(now, envelope),
        }
        Ok(())
    }

    /// What a candidate is told that asks a replica which is gone: a refusal, which promises nothing, and what is
    /// surely committed. It may be all that remembers that the candidate needs this vote no longer.
    fn gone_here(&self, id: RangeId, envelope: &Envelope) -> Option<Envelope> {
        let asked = &envelope.message;
        let gone = self.tombstones.get(&id).filter(|gone| gone.index > 0 && asked.to_replica <= gone.replica_id)?;
        let is = |kind: MessageType| asked.message_type == kind as u32;
        let (kind, term) = if is(MessageType::MsgRequestVote) {
            (MessageType::MsgRequestVoteResponse, asked.term)
        } else if is(MessageType::MsgRequestPreVote) {
            // In the candidate's own term: one before the one that it asks for.
            (MessageType::MsgRequestPreVoteResponse, asked.term.saturating_sub(1))
        } else {
            return None;
        };
        let mut message = Message { from: asked.to_replica, to: asked.from_replica, term, ..Default::default() };
        message.set_msg_type(kind);
        message.reject = true;
        (message.commit, message.commit_term) = (gone.index, gone.term);
        Some(self.answer(envelope, message))
    }

    /// What tells a leader that nothing is here: no promise is made by it, for nothing remembers that it was sent.
    fn nothing_here(&self, envelope: &Envelope) -> Option<Envelope> {
        let asked = &envelope.message;
        let mut message =
            Message { from: asked.to_replica, to: asked.from_replica, term: asked.term, ..Default::default() };
        if asked.message_type == MessageType::MsgAppend as u32 {
            message.set_msg_type(MessageType::MsgAppendResponse);
            message.reject = true;
            message.index = asked.index;
        } else if asked.message_type == MessageType::MsgHeartbeat as u32 {
            // Without its context, which would count towards a read.
            message.set_msg_type(MessageType::MsgHeartbeatResponse);
        } else {
            return None;
        }
        Some(self.answer(envelope, message))
    }

    /// A message back to where another came from, in the name of the replica that it was for.
    fn answer(&self, envelope: &Envelope, message: Message) -> Envelope {
        let message = v1::PeerMessage { range_id: envelope.message.range_id, ..wire::to_wire(message) };
        let disk_full = self.shared.full_nodes.contains(&self.shared.node);
        Envelope { from: envelope.to, to: envelope.from, message, disk_full, snapshot: None }
    }

    fn begin_by_snapshot(
        &mut self,
        now: BootTime,
        id: RangeId,
        envelope: Envelope,
        effects: &mut Effects,
    ) -> Result<(), String> {
        let header = envelope.snapshot.as_ref().map(|data| data.header.clone()).unwrap_or_default();
        self.check_overlap(id, &header)?;
        self.check_own(id, envelope.message.to_replica, &header)?;
        let ends = self.ends_of(id, &header);
        let descriptor = Arc::new(header.descriptor.unwrap_or_default());
        let boot = RangeBoot::blank(Arc::clone(&descriptor));
        let range = Range::new(&mut self.shared, &boot, now)?;
        self.ranges.insert(id, Box::new(range));
        self.with(now, id, effects, |range, turn| range.message(turn, envelope));
        self.claim(id, descriptor, &ends);
        self.hold_for(now, id, ends, effects);
        if self.ranges.get(&id).is_some_and(|range| !range.brings_snapshot()) {
            // Refused: nothing of it is anywhere.
            self.ranges.remove(&id);
            self.dirty.remove(&id);
        }
        Ok(())
    }

    /// Placement's proof that replicas are gone.
    pub(super) fn remove(&mut self, now: BootTime, id: RangeId, upto: u64, effects: &mut Effects) {
        if self.sleepers.get(id).is_some_and(|range| range.replica() <= upto) {
            self.rouse_for(now, id, effects);
        }
        if self.ranges.get(&id).is_some_and(|range| range.replica() <= upto) && !self.is_needed_all_the_same(id) {
            self.with(now, id, effects, |range, turn| range.told_to_go(turn, upto));
        }
    }

    /// Ranges that placement lets begin here, with one replica.
    pub(super) fn births(&mut self, now: BootTime, descriptors: Vec<v1::RangeDescriptor>, effects: &mut Effects) {
        let mut spans = Spans::default();
        if !descriptors.is_empty() {
            self.descriptors_here().for_each(|(_, of)| spans.add(of));
        }
        for descriptor in descriptors {
            let id = RangeId(descriptor.range_id);
            let sole = matches!(&descriptor.replicas[..], [of] if of.node_id == self.shared.node.0);
            let taken = spans.overlap(&descriptor);
            let own = own_replica(&descriptor, self.shared.node.0).unwrap_or_default();
            let is_here = self.ranges.contains_key(&id) || self.sleepers.contains(id);
            if !sole || taken || is_here || self.is_gone(id, own) {
                continue;
            }
            spans.add(&descriptor);
            let applied = initial_applied();
            let boot = RangeBoot::initial(Arc::new(descriptor), applied);
            self.items.push(LogItem { begins: Some(boot.descriptor.clone()), ..LogItem::new(id) });
            self.newborn.insert(id, self.last_sequence + 1);
            let work = ApplyWork::Replaced { descriptor: boot.descriptor.clone(), applied, merge: None };
            effects.applies.push(ApplyTask { range: id, work });
            self.born.push(Born { boot, campaigns: true, bytes: 0, load: None });
            // Before the next one, which must not overlap with it.
            self.begin_born(now, effects);
        }
    }

    /// Lets replicas begin, and gives them what came for them too early.
    pub(super) fn begin_born(&mut self, now: BootTime, effects: &mut Effects) {
        for Born { boot, campaigns, bytes, load } in std::mem::take(&mut self.born) {
            let id = RangeId(boot.descriptor.range_id);
            let range = match Range::new(&mut self.shared, &boot, now) {
                Ok(range) => range,
                Err(what) => {
                    effects.fatal = Some(what);
                    return;
                }
            };
            effects.views.push(range.view().clone());
            effects.events.push(Event::Born { descriptor: boot.descriptor.clone() });
            self.ranges.insert(id, Box::new(range));
            self.with(now, id, effects, |range, turn| range.begin(turn, campaigns, bytes, load));
            for envelope in self.unknown.take(id) {
                self.message(now, envelope, effects);
            }
        }
    }

    /// Ends replicas that are no part of their range any more.
    pub(super) fn bury(&mut self, now: BootTime, effects: &mut Effects) {
        for id in std::mem::take(&mut self.doomed) {
            if self.goes_after_target(id) {
                self.doomed.insert(id);
                continue;
            }
            let mut ended = None;
            self.with(now, id, effects, |range, turn| ended = range.end_if_doomed(turn));
            self.dirty.remove(&id);
            if let Some(gone) = ended {
                self.ranges.remove(&id);
                self.gone.insert(id);
                self.doomed.remove(&id);
                let all = joined(self.tombstones.get(&id), &gone);
                self.tombstones.insert(id, all);
                self.let_go(id);
            }
        }
    }
}

/// The spans of ranges that do not overlap: (keyspace, start) and end.
#[derive(Debug, Default)]
struct Spans(BTreeMap<(u64, Bytes), Bytes>);

impl Spans {
    fn add(&mut self, of: &v1::RangeDescriptor) {
        self.0.insert((of.keyspace_id, of.start.clone()), of.end.clone());
    }

    /// Whether a range shares keys with any of them: only its neighbours can.
    fn overlap(&self, of: &v1::RangeDescriptor) -> bool {
        let start = (of.keyspace_id, of.start.clone());
        let before = self.0.range(..&start).next_back().filter(|((keyspace, _), _)| *keyspace == of.keyspace_id);
        let reaches_in = before.is_some_and(|(_, end)| end.is_empty() || *end > of.start);
        let next = self.0.range(&start..).next().filter(|((keyspace, _), _)| *keyspace == of.keyspace_id);
        reaches_in || next.is_some_and(|((_, start), _)| of.end.is_empty() || *start < of.end)
    }
}

/// Whether two ranges share keys.
fn overlap(one: &v1::RangeDescriptor, other: &v1::RangeDescriptor) -> bool {
    let before = |end: &[u8], start: &[u8]| !end.is_empty() && end <= start;
    one.keyspace_id == other.keyspace_id && !before(&one.end, &other.start) && !before(&other.end, &one.start)
}
