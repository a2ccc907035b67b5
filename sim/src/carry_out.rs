//! From a turn's effects to events: the simulation's stand-in for a node's threads and transport.

use flotilla_engine::apply::{ApplyTask, ApplyWork};
use flotilla_engine::membership;
use flotilla_engine::store::{Beat, Effects, Envelope, Event as CoreEvent, Input, LogBatch};
use flotilla_proto::error::Action;
use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::{Error, RangeId, v1};
use raft::eraftpb::MessageType;

use crate::clock::{Nanos, ms, us};
use crate::cluster::Cluster;
use crate::faults::CrashPoint;
use crate::marks::Mark;
use crate::network::Fate;
use crate::node::{id_of, index_of};
use crate::schedule::{Event, Inner, Life};
use crate::territory;
use crate::trace::{message_words, words};

impl Cluster {
    /// Carries a turn's effects out, the views first, and leaves `effects` empty.
    pub(crate) fn carry_out(&mut self, index: usize, effects: &mut Effects) {
        self.publish(index, effects);
        for event in effects.events.drain(..) {
            self.observe(index, event);
        }
        if let Some(what) = effects.fatal.take() {
            self.check(Err(format!("n{} stops itself: {what}", index + 1)));
        }
        if let Some(batch) = effects.log.take() {
            self.queue_log(index, batch);
        }
        let strikes = self.nodes[index].on_merge_asked.is_some();
        let wishes = |ask: &v1::MergeAsk| strikes && ask.wish() == v1::MergeWish::Merge;
        let ask = effects.messages.iter().filter_map(|envelope| envelope.message.merge_ask.as_deref());
        let ask = ask.into_iter().find(|ask| wishes(ask)).cloned();
        let stands = effects.messages.iter().any(|envelope| envelope.message.frozen != 0);
        for envelope in effects.messages.drain(..) {
            let verdict = self.invariants.message(&envelope);
            self.check(verdict);
            self.send(envelope);
        }
        if let Some(ask) = ask {
            self.merge_asked(index, &ask);
        }
        for Beat { to, leaving, hears_nothing } in effects.beats.drain(..) {
            if leaving {
                self.marks.hit(Mark::NodeLeaves);
            }
            let (from, boot_id) = (id_of(index), self.nodes[index].life().number + 1);
            self.tell_node(index, index_of(to), || Input::Beat { from, boot_id, leaving, hears_nothing });
        }
        self.queue_applies(index, effects);
        self.answer_clients(index, effects);
        let life = self.nodes[index].life();
        for wanted in effects.expiries_wanted.drain(..) {
            self.marks.hit(Mark::ExpiryLookedFor);
            // What the pass finds is out of date when its answer comes.
            let found = flotilla_engine::expiry::find(&self.nodes[index].disk, &wanted);
            let range = RangeId(wanted.descriptor.range_id);
            let answer = flotilla_engine::expiry::ExpiryFound { range, id: wanted.id, found: found.ok() };
            let at = self.now + self.rng.delay(ms(2));
            self.schedule.at(at, Event::Inner(life, Inner::Give(Box::new(Input::ExpiriesFound(answer)))));
        }
        for fetch in effects.fetches.drain(..) {
            self.marks.hit(Mark::LogFetched);
            let at = self.now + self.rng.delay(us(300));
            self.schedule.at(at, Event::Inner(life, Inner::Fetch(fetch)));
        }
        for item in effects.ingests.drain(..) {
            let batch = LogBatch { sequence: 0, items: vec![item.clone()] };
            let verdict = self.invariants.log_batch(index, &batch).map(|_| ());
            self.check(verdict);
            let at = self.now + self.rng.delay(ms(15));
            self.schedule.at(at, Event::Inner(life, Inner::Ingest(Box::new(item))));
        }
        for range in effects.snapshots_wanted.drain(..) {
            let at = self.now + self.rng.delay(ms(2));
            self.schedule.at(at, Event::Inner(life, Inner::MakeSnapshot(range)));
        }
        for (_, answer) in effects.transfers.drain(..) {
            self.marks.hit(if answer.is_ok() { Mark::TransferDone } else { Mark::TransferFailed });
        }
        for (_, answer) in effects.splits.drain(..) {
            self.trace.say(self.now, || format!("split answered: {answer:?}"));
            self.marks.hit(if answer.is_ok() { Mark::SplitDone } else { Mark::SplitFailed });
        }
        for (_, answer) in effects.checks.drain(..) {
            self.marks.hit(if answer.is_ok() { Mark::CheckStarted } else { Mark::CheckFailed });
        }
        for wanted in effects.split_keys_wanted.drain(..) {
            let at = self.now + self.rng.delay(ms(3));
            self.schedule.at(at, Event::Inner(life, Inner::FindSplitKeys(Box::new(wanted))));
        }
        if std::mem::take(&mut effects.range_ids_wanted) {
            match (&self.real, &mut self.nodes[index].process) {
                (Some(_), Some(process)) => process.agent.wants_ids = true,
                _ => self.range_ids_wanted(index),
            }
        }
        for (_, answer) in effects.merges.drain(..) {
            self.trace.say(self.now, || format!("merge answered: {answer:?}"));
        }
        if let Some(health) = effects.health.take() {
            self.trace.say(self.now, || format!("n{} measures {health:?}", index + 1));
            if let Some(real) = self.real.as_mut().filter(|_| health.slow) {
                real.slow_at = Some(self.now);
            }
            let from = id_of(index);
            for to in (0..self.nodes.len()).filter(|to| *to != index) {
                self.tell_node(index, to, || Input::Health { from, health: health.clone() });
            }
        }
        for (token, answer) in effects.recoveries.drain(..) {
            self.recovery_answered(token, answer);
        }
        effects.statuses.clear();
        if stands && self.crash_if_armed(index, CrashPoint::AfterStandstill) {
            return self.marks.hit(Mark::CrashMidMerge);
        }
        self.crash_if_armed(index, CrashPoint::BeforeLogWrite);
    }

    fn publish(&mut self, index: usize, effects: &mut Effects) {
        if effects.views.is_empty() && effects.views_gone.is_empty() {
            return;
        }
        let clocks = self.clocks();
        let mut news = !effects.views_gone.is_empty();
        for view in effects.views.drain(..) {
            self.trace.note(self.now, "view", &[index as u64 + 1, view.range().0, view.term, view.lease_until.0]);
            let verdict = self.invariants.view(index, &view, &clocks);
            if let Some(process) = &mut self.nodes[index].process {
                let before = process.views.insert(view.range(), view.clone());
                news |= before.is_none_or(|before| {
                    (before.leader, before.term, before.serves, &before.descriptor)
                        != (view.leader, view.term, view.serves, &view.descriptor)
                });
            }
            self.check(verdict);
        }
        for range in effects.views_gone.drain(..) {
            self.trace.note(self.now, "view gone", &[index as u64 + 1, range.0]);
            self.invariants.view_gone(index, range);
            if let Some(process) = &mut self.nodes[index].process {
                process.views.remove(&range);
            }
        }
        if news {
            self.stir_agent(index);
            self.look_after_host(index);
        }
    }

    fn observe(&mut self, index: usize, event: CoreEvent) {
        self.trace.say(self.now, || format!("n{} {event:?}", index + 1));
        match event {
            CoreEvent::BecameLeader { range, term } => {
                self.tally.elections += 1;
                self.marks.hit(Mark::LeaderElected);
                if self.ending.is_healed() {
                    self.ending.storms.elected(range);
                }
                let verdict = self.invariants.became_leader(index, range, term);
                self.check(verdict);
            }
            CoreEvent::SteppedDown { range, term } => {
                self.marks.hit(Mark::LeaderSteppedDown);
                let same_term = self.nodes[index].process.as_ref().and_then(|process| process.views.get(&range));
                if same_term.is_some_and(|view| view.term == term) {
                    self.marks.hit(Mark::CheckQuorumStepDown);
                }
            }
            CoreEvent::LeaderChanged { .. }
            | CoreEvent::Frozen { .. }
            | CoreEvent::Thawed { .. }
            | CoreEvent::Merged { .. } => {}
            CoreEvent::SnapshotApplied { range, index: at } => {
                self.tally.snapshots += 1;
                self.marks.hit(Mark::SnapshotApplied);
                self.trace.note(self.now, "snapshot applied", &[index as u64 + 1, range.0, at]);
            }
            CoreEvent::LogTruncated { range, index: at } => {
                self.marks.hit(Mark::LogTruncated);
                self.trace.note(self.now, "truncated", &[index as u64 + 1, range.0, at]);
            }
            CoreEvent::MessageRefused { reason, .. } => self.marks.hit(mark_of_refusal(&reason)),
            CoreEvent::Split { range, ranges } => {
                self.tally.splits += 1;
                self.marks.hit(Mark::SplitApplied);
                self.trace.note(self.now, "split", &[index as u64 + 1, range.0, ranges.len() as u64]);
                if ranges[0].replicas.iter().any(|of| of.role() == v1::ReplicaRole::Learner) {
                    self.marks.hit(Mark::SplitWithLearner);
                }
            }
            CoreEvent::CannotSplit { .. } | CoreEvent::LoadStays { .. } => self.marks.hit(Mark::CannotSplit),
            CoreEvent::Recovered { descriptor, .. } => {
                self.trace.note(self.now, "recovered", &[index as u64 + 1, descriptor.range_id]);
            }
            CoreEvent::ReplicasChanged { descriptor } => {
                self.tally.moves += 1;
                let joint = membership::is_joint(&descriptor);
                if !joint && self.invariants.territory.left_by_another(&descriptor) {
                    self.marks.hit(Mark::JointLeftByNewLeader);
                }
                self.marks.hit(if joint { Mark::JointEntered } else { Mark::ReplicasChanged });
                let age = territory::age(&descriptor);
                self.trace.note(self.now, "replicas", &[index as u64 + 1, descriptor.range_id, age.0, age.1]);
            }
            CoreEvent::Born { descriptor } => {
                self.marks.hit(Mark::ReplicaBorn);
                if self.invariants.territory.has_left(index, RangeId(descriptor.range_id)) {
                    self.marks.hit(Mark::ReplicaReturns);
                }
                self.trace.note(self.now, "born", &[index as u64 + 1, descriptor.range_id]);
            }
            CoreEvent::Removed { range, replica_id } => {
                self.marks.hit(Mark::ReplicaRemoved);
                self.trace.note(self.now, "removed", &[index as u64 + 1, range.0, replica_id]);
            }
        }
    }

    fn queue_log(&mut self, index: usize, batch: LogBatch) {
        self.trace.say(self.now, || format!("n{} log batch {}: {}", index + 1, batch.sequence, words(&batch)));
        match self.invariants.log_batch(index, &batch) {
            Ok(0) => {}
            Ok(_) => self.marks.hit(Mark::EntryOverwritten),
            Err(what) => self.check(Err(what)),
        }
        let life = self.nodes[index].life();
        let Some(process) = &mut self.nodes[index].process else { return };
        process.log_queue.push_back(batch);
        if !process.log_busy {
            process.log_busy = true;
            self.schedule_log_write(life);
        }
    }

    pub(crate) fn schedule_log_write(&mut self, life: Life) {
        let delay = if self.knobs.write_delay == 0 { 0 } else { self.rng.delay(self.knobs.write_delay) };
        self.schedule.at(self.now + delay, Event::Inner(life, Inner::LogWrite));
    }

    fn queue_applies(&mut self, index: usize, effects: &mut Effects) {
        if effects.applies.is_empty() {
            return;
        }
        for task in &effects.applies {
            self.check_task(index, task);
        }
        let life = self.nodes[index].life();
        let Some(process) = &mut self.nodes[index].process else { return };
        process.apply_queue.append(&mut effects.applies);
        if !process.apply_due {
            process.apply_due = true;
            self.schedule_apply(life);
        }
    }

    fn check_task(&mut self, index: usize, task: &ApplyTask) {
        let verdict = match &task.work {
            ApplyWork::Entries(entries) => {
                let outcast = self.is_outcast(index);
                if let Some(real) = self.real.as_mut().filter(|_| task.range == SYSTEM_RANGE && !outcast) {
                    real.ledger.committed(entries);
                }
                self.invariants.committed(index, task.range, entries)
            }
            ApplyWork::Replaced { .. } | ApplyWork::Recovered { .. } | ApplyWork::Removed => Ok(()),
        };
        self.check(verdict);
    }

    pub(crate) fn schedule_apply(&mut self, life: Life) {
        let mean = self.nodes[life.node].slow_apply.unwrap_or(0).max(self.knobs.apply_delay);
        let delay = if mean == 0 { 0 } else { self.rng.delay(mean) };
        self.schedule.at(self.now + delay, Event::Inner(life, Inner::Apply));
    }

    fn answer_clients(&mut self, index: usize, effects: &mut Effects) {
        let clocks = if effects.writes.is_empty() { Vec::new() } else { self.clocks() };
        for (token, answer) in effects.writes.drain(..) {
            self.mark_write(answer.as_ref().err());
            let process = self.nodes[index].process.as_ref();
            let waiting = process.and_then(|process| Some((process.turns, process.pending.get(&token)?)));
            if let Some((turns, pending)) = waiting {
                let proposed = turns > pending.turn + 1;
                let range = crate::serve::range_of(&pending.request);
                match &answer {
                    Ok(answer) => {
                        let verdict = self.invariants.write_answered(index, range, answer.term, &clocks);
                        self.check(verdict);
                    }
                    Err(Error::NotLeader { .. }) if proposed => self.marks.hit(Mark::WriteOverwritten),
                    Err(_) => {}
                }
            }
            self.write_done(index, token, answer);
        }
        for (token, answer) in effects.barriers.drain(..) {
            self.marks.hit(match &answer {
                Ok(_) => Mark::BarrierRead,
                Err(Error::Timeout { .. }) => Mark::BarrierTimeout,
                Err(_) => Mark::BarrierRefused,
            });
            self.barrier_done(index, token, answer);
        }
    }

    fn mark_write(&mut self, error: Option<&Error>) {
        match error {
            None => {}
            Some(Error::ServerBusy { .. }) => self.marks.hit(Mark::WriteBusy),
            Some(Error::NotLeader { leader, .. }) => {
                self.marks.hit(Mark::WriteNotLeader);
                self.trace.say(self.now, || format!("not the leader, that is {leader:?}"));
            }
            Some(Error::DiskFull { .. }) => self.marks.hit(Mark::WriteDiskFull),
            Some(Error::Timeout { .. }) => self.marks.hit(Mark::WriteTimeout),
            Some(error) if error.action() == Action::Ambiguous => self.marks.hit(Mark::WriteAmbiguous),
            Some(_) => {}
        }
    }

    /// Puts a message on its way.
    fn send(&mut self, envelope: Envelope) {
        self.tally.messages += 1;
        self.trace.say(self.now, || message_words(&envelope));
        self.mark_message(&envelope);
        let (from, to) = (index_of(envelope.from), index_of(envelope.to));
        let life = self.nodes[from].life();
        let bytes = envelope.snapshot.as_ref().map_or(0, |snapshot| snapshot.size_bytes());
        // Snapshots go over a connection of their own, and take their time.
        let extra = if envelope.snapshot.is_some() { us(bytes) + self.rng.delay(ms(10)) } else { 0 };
        match self.network.send(self.now, from, to, extra) {
            Fate::Arrives(at, again) => {
                if let Some(again) = again {
                    self.schedule.at(again, Event::Deliver(Box::new(envelope.clone()), life, self.now));
                }
                self.schedule.at(at, Event::Deliver(Box::new(envelope), life, self.now));
            }
            fate => self.lose(envelope, life, fate),
        }
    }

    /// Tells another node something that is about no range: lost, late or doubled like any message.
    fn tell_node(&mut self, from: usize, to: usize, what: impl Fn() -> Input) {
        self.tally.node_messages += 1;
        if let Fate::Arrives(at, again) = self.network.send(self.now, from, to, 0) {
            for at in std::iter::once(at).chain(again) {
                self.schedule.at(at, Event::Told { to, sent: self.now, what: Box::new(what()) });
            }
        }
    }

    fn lose(&mut self, envelope: Envelope, life: Life, fate: Fate) {
        if fate == Fate::Cut && self.rng.chance(100) {
            let input = Box::new(Input::Unreachable { node: envelope.to });
            self.schedule.at(self.now + self.rng.delay(ms(1)), Event::Inner(life, Inner::Give(input)));
        }
        if envelope.snapshot.is_some() {
            self.marks.hit(Mark::SnapshotLost);
            self.snapshot_sent(&envelope, life, false);
        }
    }

    fn snapshot_sent(&mut self, envelope: &Envelope, life: Life, ok: bool) {
        let (range, to_replica) = (RangeId(envelope.message.range_id), envelope.message.to_replica);
        let input = Box::new(Input::SnapshotSent { range, to_replica, ok });
        let at = self.now + self.rng.delay(ms(5));
        self.schedule.at(at, Event::Inner(life, Inner::Give(input)));
    }

    /// A message arrives.
    pub(crate) fn deliver(&mut self, mut envelope: Envelope, sender: Life, sent: Nanos) {
        let to = index_of(envelope.to);
        let message = &envelope.message;
        let numbers = [sender.node as u64 + 1, to as u64 + 1, message.range_id, u64::from(message.message_type)];
        self.trace.note(self.now, "message", &numbers);
        self.trace.note_words(&[message.term, message.index, message.commit, message.entries.len() as u64]);
        if !self.nodes[to].is_up() {
            return self.lose(envelope, sender, Fate::Cut);
        }
        if self.refuses(to, sender.node) {
            return self.lose(envelope, sender, Fate::Lost);
        }
        if sent + ms(1_000) < self.now {
            self.marks.hit(Mark::AncientMessage);
        }
        self.mark_arrival(to, &envelope);
        if let Some(data) = &envelope.snapshot {
            let Some(received) = self.receive(to, data) else { return self.lose(envelope, sender, Fate::Lost) };
            envelope.snapshot = Some(received);
            self.snapshot_sent(&envelope, sender, true);
        }
        self.give(to, Input::Message(envelope));
    }

    fn mark_message(&mut self, envelope: &Envelope) {
        let message = &envelope.message;
        let is = |kind: MessageType| message.message_type == kind as u32;
        if is(MessageType::MsgTimeoutNow) {
            self.marks.hit(Mark::TimeoutNowSent);
            if self.ending.is_healed() {
                self.ending.storms.handed_over(RangeId(message.range_id));
            }
        } else if message.sleep_boot_id != 0 {
            self.marks.hit(Mark::WordToSleep);
        } else if is(MessageType::MsgSnapshot) {
            self.marks.hit(Mark::SnapshotSent);
            let newest = self.snapshots_sent.entry((envelope.to, message.range_id)).or_default();
            *newest = index_of_snapshot(envelope).max(*newest);
        } else if is(MessageType::MsgAppendResponse) && message.reject {
            self.marks.hit(Mark::AppendRefused);
        } else if is(MessageType::MsgRequestVoteResponse) && message.reject {
            self.marks.hit(Mark::VoteRefused);
        } else if is(MessageType::MsgRequestPreVoteResponse) && message.reject {
            self.marks.hit(Mark::PreVoteRefused);
        }
        let refused = is(MessageType::MsgRequestVoteResponse) || is(MessageType::MsgRequestPreVoteResponse);
        let (from, range) = (index_of(envelope.from), message.range_id);
        let gone = || !self.invariants.territory.on_store(from).any(|held| held.range_id == range);
        if refused && message.reject && message.commit > 0 && gone() {
            self.marks.hit(Mark::GoneTellsCommit);
        }
        if is(MessageType::MsgRequestVote) && self.invariants.is_split_vote(envelope) {
            self.marks.hit(Mark::SplitVote);
        }
    }

    fn mark_arrival(&mut self, to: usize, envelope: &Envelope) {
        let Some(process) = &self.nodes[to].process else { return };
        let range = RangeId(envelope.message.range_id);
        let is = |kind: MessageType| envelope.message.message_type == kind as u32;
        let late = process.views.get(&range).is_some_and(|view| view.term > envelope.message.term);
        if is(MessageType::MsgTimeoutNow) && late {
            self.marks.hit(Mark::LateTimeoutNow);
        }
        let newest = self.snapshots_sent.get(&(envelope.to, range.0)).copied();
        let here = process.applied_written.get(&range).copied();
        if envelope.snapshot.is_some() && newest.max(here) > Some(index_of_snapshot(envelope)) {
            self.marks.hit(Mark::SnapshotSuperseded);
        }
        let waiting = process.apply_queue.iter().any(|task| task.range == range);
        if envelope.snapshot.is_some() && waiting {
            self.marks.hit(Mark::SnapshotWhileApplying);
        }
        self.mark_arrival_of_change(to, envelope, waiting);
    }

    /// What arrives around splits and removals.
    fn mark_arrival_of_change(&mut self, to: usize, envelope: &Envelope, waiting: bool) {
        let range = RangeId(envelope.message.range_id);
        let territory = &self.invariants.territory;
        let is = |kind: MessageType| envelope.message.message_type == kind as u32;
        let here = territory.on_store(to).find(|held| held.range_id == range.0);
        if envelope.message.merged_into != 0 && here.is_some() {
            self.marks.hit(Mark::MergedToldSo);
        }
        if envelope.message.removed.is_some() && here.is_some() && waiting {
            self.marks.hit(Mark::DoomedWhileApplying);
        }
        let brought = envelope.snapshot.as_ref().and_then(|data| data.header.descriptor.as_ref());
        if let (Some(here), Some(brought)) = (here, brought)
            && territory::age(here).0 < territory::age(brought).0
        {
            self.marks.hit(Mark::SplitLeapt);
        }
        // A child whose keys another range here still holds: its parent has not got to the split.
        let Some(newest) = territory.newest(range).filter(|_| here.is_none()) else { return };
        if territory.on_store(to).any(|held| territory::overlap(held, newest)) {
            self.marks.hit(Mark::EarlyMessage);
            if is(MessageType::MsgRequestVote) {
                self.marks.hit(Mark::EarlyVote);
            }
        }
    }
}

fn index_of_snapshot(envelope: &Envelope) -> u64 {
    let applied = envelope.snapshot.as_ref().and_then(|data| data.header.applied);
    applied.map_or(0, |applied| applied.index)
}

/// What the words of a refusal tell.
fn mark_of_refusal(reason: &str) -> Mark {
    let known = [
        ("restarted", Mark::VoteSilence),
        ("overlaps with", Mark::SnapshotOverlap),
        ("is gone", Mark::TombstoneRefuses),
        ("was removed", Mark::RemovedToldSo),
        ("was never here", Mark::RemovalOfNothing),
        ("goes as soon as", Mark::SuccessorWaits),
    ];
    known.into_iter().find(|(words, _)| reason.contains(words)).map_or(Mark::MessageRefused, |(_, mark)| mark)
}
