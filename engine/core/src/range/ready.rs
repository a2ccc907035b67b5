//! From Raft's state to effects: what is ready goes to the log writer, the network and apply, and
//! what these report comes back.
//!
//! ```text
//!            entries, hard state                    Persisted
//! collect ──────────────────────▶ log writer ───────────────────▶ persisted ──▶ held messages leave
//!    │  leader's messages                                             │
//!    ├───────────────────────────▶ network                            ▼ (commit may move)
//!    │  committed entries                            Applied
//!    └───────────────────────────▶ apply stage ────────────────▶ applied ──▶ answers, barriers, lease
//! ```
//!
//! A leader's messages leave at once: followers write their logs while it writes its own (Raft thesis
//! 10.2.1). A follower's leave when what they promise is durable; in order, so a message that promises
//! nothing new still waits behind one that does.

use std::sync::Arc;
use std::time::Duration;

use flotilla_mutants::Mutant;
use flotilla_proto::{NodeId, v1};
use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use raft::{SnapshotStatus, StateRole};

use super::{Range, Turn, Unpersisted};
use crate::apply::{Applied, ApplyTask, ApplyWork};
use crate::store::{Envelope, Event, LogItem, ReadView, SnapshotData};
use crate::time::BootTime;
use crate::wire;

/// By how much a lease must have grown before it is published again.
const LEASE_STEP: Duration = Duration::from_millis(20);

impl Range {
    /// Collects all that Raft wants at the end of a turn.
    pub(crate) fn collect(&mut self, turn: &mut Turn<'_>) {
        if self.doomed.is_some() {
            return;
        }
        while !self.snapshot_must_wait(turn) && self.raft.has_ready() {
            self.collect_ready(turn);
        }
        self.forget_refused_snapshots(turn);
        self.follow_role(turn);
        self.draw_election_timeout(&turn.shared.config);
        self.collect_reads_of_old(turn);
        self.raft.mut_store().shrink_cache(self.applied.0, turn.shared.config.cache_bytes_max);
        if self.renews_lease() {
            let sets = [&self.voters[..], &self.old_voters[..]];
            let config = &turn.shared.config;
            let no_drift = Mutant::LeaseWithoutDrift.is_on();
            let lease = if no_drift { config.election_timeout() } else { config.lease };
            self.lease.renew(turn.now, sets, self.replica, lease);
        }
        self.publish(turn);
        self.barriers.release(self.readable_index(), &self.view, &mut turn.effects.barriers);
    }

    fn collect_ready(&mut self, turn: &mut Turn<'_>) {
        let mut ready = self.raft.ready();
        for state in ready.take_read_states() {
            self.barriers.confirm(&state.request_ctx, state.index);
        }
        let at_once = ready.take_messages();
        let mut item = LogItem::new(self.id);
        self.install_snapshot(turn, &ready, &mut item);
        item.entries = ready.take_entries();
        let state_changed = ready.must_sync();
        let mut held = ready.take_persisted_messages();
        let committed = ready.take_committed_entries();
        let number = ready.number();
        item.remove.extend(self.raft.mut_store().append(&item.entries));
        self.raft.advance_append_async(ready);
        // A replica that holds a change of replicas in its log must remember, over a restart, that the one before is
        // committed: it must not campaign under a configuration that is over (etcd#7280, #11284).
        let reconfigures = item.entries.iter().any(|entry| entry.get_entry_type() != EntryType::EntryNormal)
            && !Mutant::FormerChangeForgotten.is_on();
        let hard = self.raft.raft.hard_state();
        let new_term = state_changed && (hard.term, hard.vote) != (self.written_state.term, self.written_state.vote);
        if state_changed || reconfigures {
            item.raft_state = self.changed_raft_state(item.snapshot.is_some() || reconfigures);
        }
        // A sole voter leads before its vote for itself is durable. No learner may hear of that term until it is: after
        // a crash the replica would lead in the same term again, with other entries.
        if new_term || self.unpersisted.iter().any(|waits| waits.new_term) {
            held.splice(0..0, at_once);
        } else {
            self.send(turn, at_once);
        }
        if item.snapshot.as_ref().is_some_and(SnapshotData::is_staged) {
            self.begin_ingest(turn, number, held, item);
        } else {
            self.hold_or_send(turn, number, held, item, new_term);
        }
        self.schedule_apply(turn, committed);
    }

    /// The Raft state to be written, if what must be durable of it has changed.
    fn changed_raft_state(&mut self, forced: bool) -> Option<v1::RaftState> {
        let state = self.raft_state();
        let same = state.term == self.written_state.term && state.vote == self.written_state.vote;
        if same && !forced {
            return None;
        }
        self.written_state = state;
        Some(state)
    }

    /// The Raft state as it is to stand on disk.
    pub(super) fn raft_state(&self) -> v1::RaftState {
        let hard = self.raft.raft.hard_state();
        let (truncated_index, truncated_term) = self.raft.store().truncated();
        let vote = if Mutant::VoteNotSaved.is_on() { 0 } else { hard.vote };
        v1::RaftState { term: hard.term, vote, commit: hard.commit, truncated_index, truncated_term }
    }

    fn hold_or_send(&mut self, turn: &mut Turn<'_>, ready: u64, messages: Vec<Message>, item: LogItem, new_term: bool) {
        let writes = !item.is_empty();
        if !writes && self.unpersisted.is_empty() {
            self.raft.on_persist_ready(ready);
            self.send(turn, messages);
            return;
        }
        let bare = item.entries.is_empty() && item.snapshot.is_none();
        if Mutant::AckBeforePersist.is_on() || (Mutant::VoteBeforeDurable.is_on() && bare) {
            self.send(turn, messages.clone());
        }
        // What writes nothing is durable with what was written before it.
        let last = self.unpersisted.back().map_or(turn.sequence, |last| last.sequence);
        let sequence = if writes { turn.sequence } else { last };
        let snapshot = item.snapshot.clone();
        if writes {
            turn.items.push(item);
        }
        self.unpersisted.push_back(Unpersisted { sequence, ready, messages, snapshot, new_term });
    }

    /// The log is durable up to this batch.
    pub(crate) fn persisted(&mut self, turn: &mut Turn<'_>, sequence: u64) {
        while self.unpersisted.front().is_some_and(|front| front.sequence <= sequence) {
            let Some(done) = self.unpersisted.pop_front() else { break };
            if self.doomed.is_some() {
                self.note_doomed_snapshot(done.snapshot.as_ref());
                continue;
            }
            self.raft.on_persist_ready(done.ready);
            if !Mutant::AckBeforePersist.is_on() {
                self.send(turn, done.messages);
            }
            if let Some(data) = done.snapshot {
                self.snapshot_persisted(turn, &data);
            }
        }
        if self.doomed.is_none() {
            self.merge_persisted(turn);
        }
    }

    fn schedule_apply(&mut self, turn: &mut Turn<'_>, committed: Vec<Entry>) {
        let Some(last) = committed.last() else { return };
        self.apply_scheduled = last.index;
        let bytes = committed.iter().map(|entry| entry.data.len()).sum();
        self.apply_bytes.push_back((last.index, bytes));
        self.applies_open += 1;
        turn.effects.applies.push(ApplyTask { range: self.id, work: ApplyWork::Entries(committed) });
    }

    /// The apply stage has got to an index; what it did can be read.
    pub(crate) fn applied(&mut self, turn: &mut Turn<'_>, done: Applied) {
        self.applies_open -= 1;
        self.stir();
        self.applied = (done.index, done.term);
        self.checksum = done.checksum;
        self.size.grew(done.bytes);
        if self.doomed.is_some() {
            return self.changes_of_the_doomed(turn, done.changes);
        }
        self.changes_applied(turn, done.changes, done.index);
        if self.doomed.is_some() {
            return;
        }
        self.raft.advance_apply_to(done.index);
        self.lead_as_told(turn);
        while self.apply_bytes.front().is_some_and(|(index, _)| *index <= done.index) {
            self.apply_bytes.pop_front();
        }
        // The next log batch's sync covers this apply's write, which came before it.
        match self.applied_marks.back_mut() {
            Some((sequence, index)) if *sequence == turn.sequence => *index = done.index,
            _ => self.applied_marks.push_back((turn.sequence, done.index)),
        }
        self.expiry_applied(turn, done.expiry, done.index, &done.results);
        let before = self.proposals.bytes();
        let (overwritten, outdated) = (self.not_leader(), self.epoch_mismatch());
        self.proposals.applied(done.index, done.results, [&overwritten, &outdated], &mut turn.effects.writes);
        self.release_bytes(turn, before);
        self.consider_truncation(turn);
        if self.leads() {
            self.pursue_order(turn);
            self.pursue_expiry(turn);
        }
        self.merge_persisted(turn);
    }

    /// Up to where barriers may read: nothing before an entry of the own term is applied.
    fn readable_index(&self) -> u64 {
        if self.serves() { self.applied.0 } else { 0 }
    }

    pub(super) fn serves(&self) -> bool {
        self.leads() && (self.applied.1 == self.term() || Mutant::ReadBeforeOwnTerm.is_on())
    }

    /// Sends messages, with the stamps that leases are drawn from.
    pub(super) fn send(&mut self, turn: &mut Turn<'_>, messages: Vec<Message>) {
        for message in messages {
            let kind = message.get_msg_type();
            if !wire::may_travel(kind) {
                continue;
            }
            let Some(to) = self.node_of(message.to) else { continue };
            if kind == MessageType::MsgTimeoutNow && !Mutant::LeaseAfterTimeoutNow.is_on() {
                self.lease.void();
            }
            let snapshot = match kind {
                MessageType::MsgSnapshot => match self.offered(turn, &message) {
                    Some(data) => Some(data),
                    None => {
                        self.raft.report_snapshot(message.to, SnapshotStatus::Failure);
                        continue;
                    }
                },
                _ => None,
            };
            let term = message.term;
            let mut wired = wire::to_wire(message);
            wired.range_id = self.id.0;
            match kind {
                MessageType::MsgAppend | MessageType::MsgHeartbeat => wired.stamp = turn.now.0,
                MessageType::MsgAppendResponse | MessageType::MsgHeartbeatResponse
                    if self.leader_stamp.0 == term && self.raft.raft.leader_id == wired.to_replica =>
                {
                    wired.ack_stamp = self.leader_stamp.1;
                }
                _ => {}
            }
            let role = self.replica_on(to).map(v1::ReplicaDescriptor::role);
            wired.to_learner = self.leads() && role == Some(v1::ReplicaRole::Learner);
            let disk_full = turn.shared.full_nodes.contains(&turn.shared.node);
            turn.effects.messages.push(Envelope { from: turn.shared.node, to, message: wired, disk_full, snapshot });
        }
    }

    /// What a change of role means for those who wait.
    fn follow_role(&mut self, turn: &mut Turn<'_>) {
        self.drop_overwritten_change(turn);
        let role = self.raft.raft.state;
        let (was, term) = (self.role, self.view.term);
        self.role = role;
        if role != was && matches!(role, StateRole::PreCandidate | StateRole::Candidate) {
            self.campaigns += 1;
        }
        let led_before = was == StateRole::Leader;
        let same_reign = led_before && role == StateRole::Leader && term == self.term();
        if led_before && !same_reign {
            self.lease.end();
            self.load = None;
            self.forget_order();
            self.lose_merge_asker(turn, "the leader changed while the range was being merged; it may be yet", false);
            turn.effects.events.push(Event::SteppedDown { range: self.id, term });
            let error = self.not_leader();
            // Those that came during a transfer wait for the new leader's name.
            if self.leader_due.is_none() {
                let before = self.proposals.bytes();
                self.proposals.refuse_queued(&error, &mut turn.effects.writes);
                self.release_bytes(turn, before);
            }
            self.barriers.refuse(&error, &mut turn.effects.barriers);
        }
        if role == StateRole::Leader && !same_reign {
            self.lease.begin(self.term());
            self.heard.clear();
            self.hand_overs.clear();
            self.begin_load(turn);
            turn.effects.events.push(Event::BecameLeader { range: self.id, term: self.term() });
        }
        self.follow_transfer(turn);
        self.follow_hand_over(turn);
    }

    /// Reads of the disk that Raft waits for.
    fn collect_reads_of_old(&mut self, turn: &mut Turn<'_>) {
        for fetch in self.raft.store().take_wanted_fetches() {
            turn.effects.fetches.push(crate::store::FetchLog {
                range: self.id,
                id: fetch.id,
                low: fetch.low,
                high: fetch.high,
                bytes_max: fetch.bytes_max,
            });
        }
        if self.raft.store().take_snapshot_wanted() && !self.snapshot_asked {
            self.snapshot_asked = true;
            turn.effects.snapshots_wanted.push(self.id);
        }
    }

    /// Old entries have come from the disk.
    pub(crate) fn log_fetched(&mut self, id: u64, entries: Vec<Entry>) {
        for context in self.raft.mut_store().fetched(id, entries) {
            self.raft.on_entries_fetched(context);
        }
        self.raft.mut_store().drop_fetched();
    }

    pub(super) fn publish(&mut self, turn: &mut Turn<'_>) {
        if self.unborn || self.ingest.is_some() {
            return;
        }
        let leased = self.serves() && !self.holds_lease_back();
        let lease_until = if leased { self.lease.until() } else { BootTime::default() };
        let (term, leader) = (self.term(), self.leader());
        if term != self.view.term || leader != self.view.leader {
            turn.effects.events.push(Event::LeaderChanged { range: self.id, term, leader });
        }
        if !std::mem::take(&mut self.view_is_gone) && !self.is_news(leader, lease_until) {
            return;
        }
        self.view = Arc::new(ReadView {
            own_node: turn.shared.node,
            descriptor: self.descriptor.clone(),
            siblings: self.siblings.clone(),
            term,
            leader,
            serves: self.serves(),
            asleep: self.rest.asleep,
            lease_until,
            clock: self.range_clock(),
            incarnation: self.incarnation,
            tally: self.load.as_ref().map(|load| load.tally.clone()),
            frozen: self.frozen().is_some(),
        });
        turn.effects.views.push(self.view.clone());
    }

    /// Whether readers must hear of this leader and lease, or of anything else that their view lacks. A lease that runs a little
    /// longer can wait: it is drawn anew many times before it ends. Asked at the end of each turn, so that nothing is
    /// cloned for it, and what is shared is compared by where it lies.
    fn is_news(&self, leader: Option<NodeId>, lease_until: BootTime) -> bool {
        let view = &*self.view;
        let longer = lease_until.since(view.lease_until);
        let only_a_little = lease_until >= view.lease_until && longer < LEASE_STEP;
        let serves = self.serves();
        // Where the range is not led, its time is not of that much interest.
        let same_time = !serves || view.clock == self.range_clock();
        let same_shared = Arc::ptr_eq(&view.descriptor, &self.descriptor)
            && Arc::ptr_eq(&view.siblings, &self.siblings)
            && view.tally.as_ref().map(Arc::as_ptr) == self.load.as_ref().map(|load| Arc::as_ptr(&load.tally));
        let seen = (view.term, view.leader, view.serves, view.asleep, view.incarnation, view.frozen);
        let is = (self.term(), leader, serves, self.rest.asleep, self.incarnation, self.frozen().is_some());
        !(only_a_little && same_time && same_shared && seen == is)
    }
}
