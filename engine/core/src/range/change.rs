//! Changes of the range itself, from the proposal to what follows from it: splits, changes of replicas, checks.
//!
//! One at a time. From proposing a split or a change of replicas until it has applied it itself, a leader does
//! without its lease: another replica may apply the entry first, and then a child of the split, or other
//! voters, may choose a leader of their own. Reads pay a round to a quorum meanwhile. Behind a split no write is
//! proposed until it is applied: its keys may be another range's by then.
//!
//! A change of replicas voids the lease: it was drawn from the promises of other voters. What counts from then on
//! is what they acknowledge of messages sent after it.

use std::sync::Arc;

use flotilla_mutants::Mutant;
use flotilla_proto::{Error, NodeId, RangeId, v1};
use raft::eraftpb::{Entry, EntryType, Message, MessageType};

use super::{Born, Range, Turn};
use crate::apply::{ApplyRefusal, ChangeApplied, Child, RangeChange};
use crate::recover::RangeBoot;
use crate::store::{CheckStarted, Envelope, Event, Token};
use crate::time::BootTime;
use crate::{command, membership};

/// A change that was proposed and is not applied here yet.
#[derive(Debug)]
pub(super) struct PendingChange {
    index: u64,
    term: u64,
    kind: Kind,
    pub asker: Option<Asker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Split,
    Replicas,
    Checksum { check_id: u64 },
    Freeze,
    Thaw,
    Merge,
    Abandon,
}

/// Who waits for a change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    pub token: Token,
    pub deadline: BootTime,
}

impl Range {
    /// The change that binds this leader. One of a former reign binds it no more: its entry may be gone, and a log
    /// without it may never get to its index.
    fn own_change(&self) -> Option<&PendingChange> {
        self.change.as_ref().filter(|change| change.term == self.term())
    }

    /// Whether writes must wait for a change that is under way: behind it they would be of another version.
    pub(super) fn holds_writes_back(&self) -> bool {
        let barriers = [Kind::Split, Kind::Freeze, Kind::Merge, Kind::Abandon];
        self.own_change().is_some_and(|change| barriers.contains(&change.kind)) || self.frozen().is_some()
    }

    /// Whether a change is under way that a lease must not be used over.
    pub(super) fn holds_lease_back(&self) -> bool {
        let freezes = !Mutant::LeaseOverFreeze.is_on();
        let over = |change: &PendingChange| match change.kind {
            Kind::Split | Kind::Replicas => true,
            Kind::Freeze => freezes,
            _ => false,
        };
        self.own_change().is_some_and(over) || (self.frozen().is_some() && freezes)
    }

    /// Whether a change of a range that is frozen can be proposed.
    pub(super) fn may_propose_change(&self, turn: &Turn<'_>) -> bool {
        let stays = self.raft.raft.lead_transferee.is_none() && !turn.shared.draining;
        self.serves() && stays && self.own_change().is_none() && !self.is_doomed()
    }

    /// Whether a change can be proposed now.
    pub(super) fn may_change(&self, turn: &Turn<'_>) -> Result<(), Error> {
        let busy = |reason: &str| Error::ServerBusy { reason: reason.into(), retry_after_ms: 50 };
        if self.is_doomed() {
            return Err(Error::RangeNotFound { range: self.id });
        }
        if !self.leads() {
            return Err(self.not_leader());
        }
        if self.raft.raft.lead_transferee.is_some() || turn.shared.draining {
            return Err(busy("the range is being handed over"));
        }
        if !self.serves() {
            return Err(busy("the range's new leader has not applied its first entry yet"));
        }
        if self.own_change().is_some() {
            return Err(busy("another change of the range is under way"));
        }
        self.check_not_frozen()
    }

    /// Proposes a change, after [`Range::may_change`].
    pub(super) fn propose_change(
        &mut self,
        change: v1::command::Change,
        kind: Kind,
        asker: Option<Asker>,
    ) -> Result<(), Error> {
        self.propose_timed_change(change, kind, asker, 0)
    }

    /// The same, of a change that carries the range's time; 0: not.
    pub(super) fn propose_timed_change(
        &mut self,
        change: v1::command::Change,
        kind: Kind,
        asker: Option<Asker>,
        range_time_ms: u64,
    ) -> Result<(), Error> {
        let of_replicas = match &change {
            v1::command::Change::Replicas(replicas) => {
                Some(membership::conf_change(&self.descriptor, &replicas.replicas))
            }
            _ => None,
        };
        let command = v1::Command {
            range_id: self.id.0,
            replica_id: self.replica,
            term: self.term(),
            epoch_version: self.descriptor.epoch.unwrap_or_default().version,
            change: Some(change),
            range_time_ms,
            ..Default::default()
        };
        let mut entry = Entry::default();
        match &of_replicas {
            Some(change) => {
                entry.set_entry_type(EntryType::EntryConfChangeV2);
                entry.data = membership::encode(change, &command).into();
            }
            None => entry.data = command::encode(&command),
        }
        let mut message = Message { from: self.replica, ..Default::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(vec![entry].into());
        let busy = |reason: &str| Error::ServerBusy { reason: reason.into(), retry_after_ms: 50 };
        self.raft.step(message).map_err(|_| busy("the range has as many uncommitted bytes as it may"))?;
        let index = self.raft.raft.raft_log.last_index();
        // raft-rs puts an empty entry in the place of a change that it does not allow now.
        if of_replicas.is_some() && self.raft.raft.pending_conf_index != index {
            return Err(busy("another change of the range's replicas is under way"));
        }
        // Followers hear at once that it is committed: until they have, a child has no quorum.
        self.raft.raft.skip_bcast_commit(false);
        self.change = Some(PendingChange { index, term: self.term(), kind, asker });
        Ok(())
    }

    /// An order to let every replica compute its checksum.
    pub(crate) fn check(&mut self, turn: &mut Turn<'_>, token: Token, deadline: BootTime) {
        let check_id = (self.term() << 32) + self.raft.raft.raft_log.last_index() + 1;
        let change = v1::command::Change::Checksum(v1::ComputeChecksum { check_id });
        let asker = Some(Asker { token, deadline });
        let proposed =
            self.may_change(turn).and_then(|()| self.propose_change(change, Kind::Checksum { check_id }, asker));
        if let Err(error) = proposed {
            turn.effects.checks.push((token, Err(error)));
        }
    }

    /// What entries up to `index` have changed about the range. Comes before Raft hears that they are applied.
    pub(super) fn changes_applied(&mut self, turn: &mut Turn<'_>, changes: Vec<ChangeApplied>, index: u64) {
        for change in changes {
            let own = self.change.take_if(|own| (own.index, own.term) == (change.index, change.term));
            match change.outcome {
                Ok(RangeChange::Split { descriptor, children }) => {
                    self.split_applied(turn, descriptor, &children);
                    self.answer_change(turn, own, Ok(()));
                }
                Ok(RangeChange::Replicas { before, descriptor, removed }) => {
                    self.replicas_applied(turn, &before, descriptor, removed);
                }
                Ok(RangeChange::Checksum { .. }) => self.answer_change(turn, own, Ok(())),
                Ok(RangeChange::Frozen { descriptor, frozen }) => self.freeze_applied(turn, descriptor, frozen, own),
                Ok(RangeChange::Thawed { frozen }) => self.thaw_applied(turn, &frozen),
                Ok(RangeChange::Merged { descriptor, source, absorbed }) => {
                    self.merge_applied(turn, descriptor, &source, absorbed);
                }
                Ok(RangeChange::Abandoned { descriptor, .. }) => self.set_descriptor(descriptor),
                Err(refusal) => {
                    let error = match refusal {
                        ApplyRefusal::Stamp => self.not_leader(),
                        ApplyRefusal::Epoch | ApplyRefusal::Change => self.epoch_mismatch(),
                    };
                    self.answer_change(turn, own, Err(error));
                }
            }
        }
        if let Some(overwritten) = self.change.take_if(|own| own.index <= index) {
            let error = self.not_leader();
            self.answer_change(turn, Some(overwritten), Err(error));
        }
        if self.change.is_none() {
            self.raft.raft.skip_bcast_commit(true);
        }
    }

    pub(super) fn split_applied(
        &mut self,
        turn: &mut Turn<'_>,
        descriptor: Arc<v1::RangeDescriptor>,
        children: &[Child],
    ) {
        self.set_descriptor(descriptor);
        self.siblings = children.iter().map(|child| (*child.descriptor).clone()).collect();
        let share = self.size.bytes() / (children.len() as u64 + 1);
        self.size.set(share);
        let load = self.load.as_mut().map(|load| load.share(children.len() as u64 + 1));
        for child in children.iter().filter(|child| child.born) {
            let boot = RangeBoot::initial(child.descriptor.clone(), child.applied);
            turn.born.push(Born { boot, campaigns: self.leads(), bytes: share, load });
        }
        let ranges = std::iter::once(&self.descriptor).chain(children.iter().map(|child| &child.descriptor));
        turn.effects.events.push(Event::Split { range: self.id, ranges: ranges.cloned().collect() });
        self.refuse_what_was_split_off(turn);
    }

    /// Writes that waited for the split, and whose keys are another range's now.
    fn refuse_what_was_split_off(&mut self, turn: &mut Turn<'_>) {
        let error = self.epoch_mismatch();
        let before = self.proposals.bytes();
        let descriptor = self.descriptor.clone();
        let stays = |write: &v1::WriteRequest| {
            let mut keys = write.ops.iter().filter_map(command::op_key);
            keys.all(|key| crate::read::contains(&descriptor, key))
        };
        self.proposals.keep_queued(stays, &error, &mut turn.effects.writes);
        self.release_bytes(turn, before);
    }

    fn replicas_applied(
        &mut self,
        turn: &mut Turn<'_>,
        before: &v1::RangeDescriptor,
        descriptor: Arc<v1::RangeDescriptor>,
        removed: bool,
    ) {
        let change = membership::conf_change(before, &descriptor.replicas);
        let led = self.leads();
        self.set_descriptor(descriptor);
        turn.effects.events.push(Event::ReplicasChanged { descriptor: self.descriptor.clone() });
        if led {
            let gone = before
                .replicas
                .iter()
                .filter(|of| self.descriptor.replicas.iter().all(|now| now.replica_id != of.replica_id));
            let others = gone.filter(|of| of.replica_id != self.replica);
            let notices: Vec<_> =
                others.map(|of| self.removed_notice(turn, NodeId(of.node_id), of.replica_id, u64::MAX)).collect();
            turn.effects.messages.extend(notices);
        }
        if removed {
            let (index, term) = self.applied;
            return self.doom(turn, &v1::Tombstone { replica_id: self.replica, index, term, ..Default::default() });
        }
        // Of a snapshot that waits for this very apply Raft has the configuration already, and that is a later one.
        let restored = self.raft.snap().is_some_and(|snapshot| !snapshot.is_empty());
        if restored {
            return;
        }
        if let Err(error) = self.raft.apply_conf_change(&change) {
            // The descriptor and Raft's own configuration tell the same story, or this replica cannot go on.
            turn.effects.fatal = Some(format!("range {}: Raft refuses a change of replicas: {error}", self.id));
        }
        self.write_commit(turn);
        self.lease.restart(turn.now);
    }

    /// Tells a replica that it is no part of the range any more, and up to where a log that ends at `last` is surely
    /// committed.
    pub(super) fn removed_notice(&self, turn: &Turn<'_>, to: NodeId, replica: u64, last: u64) -> Envelope {
        let matched = self.raft.raft.prs().get(replica).map_or(0, |progress| progress.matched);
        let last = if self.leads() && matched > 0 { last.min(matched) } else { last };
        let commit = last.min(self.applied.0);
        let commit_term = self.raft.raft.raft_log.term(commit).unwrap_or_default();
        let message = v1::PeerMessage {
            range_id: self.id.0,
            from_replica: self.replica,
            to_replica: replica,
            removed: Some((*self.descriptor).clone()),
            index: self.applied.0,
            log_term: self.applied.1,
            commit,
            commit_term,
            ..Default::default()
        };
        let disk_full = turn.shared.full_nodes.contains(&turn.shared.node);
        Envelope { from: turn.shared.node, to, message, disk_full, snapshot: None }
    }

    fn answer_change(&mut self, turn: &mut Turn<'_>, change: Option<PendingChange>, outcome: Result<(), Error>) {
        let Some(PendingChange { index, kind, asker: Some(asker), .. }) = change else { return };
        match kind {
            Kind::Split => {
                let ranges =
                    || std::iter::once((*self.descriptor).clone()).chain(self.siblings.iter().cloned()).collect();
                turn.effects.splits.push((asker.token, outcome.map(|()| ranges())));
            }
            Kind::Checksum { check_id } => {
                turn.effects.checks.push((asker.token, outcome.map(|()| CheckStarted { check_id, index })));
            }
            Kind::Freeze => {
                // A freeze that was applied is answered when it is known what came of it.
                let error = outcome.err().unwrap_or_else(|| Error::Ambiguous { reason: "the merge goes on".into() });
                turn.effects.merges.push((asker.token, Err(error)));
            }
            Kind::Replicas | Kind::Thaw | Kind::Merge | Kind::Abandon => {}
        }
    }

    /// Answers whoever waits too long for a change; the change itself goes on.
    pub(super) fn expire_change(&mut self, turn: &mut Turn<'_>) {
        self.lose_merge_asker(turn, "the deadline passed while the range was being merged; it may be yet", true);
        let Some(change) = &mut self.change else { return };
        let Some(asker) = change.asker.take_if(|asker| asker.deadline <= turn.now) else { return };
        let error = Error::Ambiguous { reason: "the deadline passed after the change was proposed".into() };
        match change.kind {
            Kind::Split => turn.effects.splits.push((asker.token, Err(error))),
            Kind::Checksum { .. } => turn.effects.checks.push((asker.token, Err(error))),
            Kind::Freeze => turn.effects.merges.push((asker.token, Err(error))),
            Kind::Replicas | Kind::Thaw | Kind::Merge | Kind::Abandon => {}
        }
    }

    /// What became of a change is not known here any more.
    pub(super) fn lose_change(&mut self, turn: &mut Turn<'_>, reason: &str) {
        let change = self.change.take();
        self.answer_change(turn, change, Err(Error::Ambiguous { reason: reason.into() }));
        self.lose_merge_asker(turn, reason, false);
    }

    /// A new leader's log is what counts: a change of a former reign that is not in it has no index to wait for. Whoever
    /// follows now drops it, too: the log may never get that long, and the range is to sleep.
    pub(super) fn drop_overwritten_change(&mut self, turn: &mut Turn<'_>) {
        let log = &self.raft.raft.raft_log;
        let stands = |change: &PendingChange| log.term(change.index).is_ok_and(|term| term == change.term);
        if self.change.as_ref().is_some_and(|change| !stands(change)) {
            self.lose_change(turn, "the leader changed before the change was committed");
        }
    }

    pub(super) fn epoch_mismatch(&self) -> Error {
        Error::EpochMismatch { range: RangeId(self.descriptor.range_id), descriptors: self.known_descriptors() }
    }

    /// The range, and what was last split off.
    pub(super) fn known_descriptors(&self) -> Vec<v1::RangeDescriptor> {
        std::iter::once((*self.descriptor).clone()).chain(self.siblings.iter().cloned()).collect()
    }

    /// Takes a descriptor, and what is kept beside it.
    pub(super) fn set_descriptor(&mut self, descriptor: Arc<v1::RangeDescriptor>) {
        // A snapshot of the range as it was would bring a follower something else than what it needs now.
        self.raft.store().offer_snapshot(None);
        self.voters = membership::voters(&descriptor.replicas);
        self.old_voters = membership::old_voters(&descriptor.replicas);
        self.descriptor = descriptor;
    }
}
