//! The end of a replica that is no part of its range any more.
//!
//! How it learns of that: it applies the change that leaves it out; another replica answers it so; a message comes
//! for a later replica of the range on this node; placement says so. All of these are proofs that the change is
//! committed. From then on it takes part in nothing and can no longer be read. When the apply stage is done with
//! what it was given, all that it had goes in one batch, in which its tombstone stays: no message and no snapshot
//! that was meant for it can bring it back.
//!
//! Others may still count on its vote: those who have lost, in a crash, that the change which left it out is
//! committed. The tombstone knows an entry that proves it, and its store answers candidates with that (`store/unknown`):
//! Raft takes from a refused vote what is committed. Without this a joint configuration whose old voters have gone
//! would wait for them for ever.

use std::sync::Arc;

use flotilla_proto::{Error, RangeId, v1};

use super::{Range, Turn};
use crate::apply::{ApplyTask, ApplyWork, ChangeApplied, RangeChange};
use crate::merges;
use crate::store::{Destroy, Event, LogItem};

/// For how many election time-outs placement's word alone does not end a voter that has more to apply.
const PATIENCE_TIMEOUTS: u32 = 10;

/// What is to become of a replica that is no part of its range any more.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Doom {
    tombstone: v1::Tombstone,
    /// Its data stays: it is that of the range that took this one in.
    keeps_data: bool,
    /// It goes when a snapshot of this range takes its place.
    held_by: Option<RangeId>,
}

impl Range {
    /// This replica's id.
    pub(crate) fn replica(&self) -> u64 {
        self.replica
    }

    /// The range as this replica has it.
    pub(crate) fn descriptor(&self) -> &v1::RangeDescriptor {
        &self.descriptor
    }

    /// The same, shared.
    pub(crate) fn descriptor_arc(&self) -> Arc<v1::RangeDescriptor> {
        Arc::clone(&self.descriptor)
    }

    /// Whether it has ever taken this range in.
    pub(crate) fn has_absorbed(&self, range: RangeId) -> bool {
        self.absorbed.binary_search(&range.0).is_ok()
    }

    /// Whether nothing of it is on disk yet.
    pub(crate) fn is_unborn(&self) -> bool {
        self.unborn
    }

    /// Whether its range was taken in by another one.
    pub(crate) fn is_merged_away(&self) -> bool {
        self.doomed.is_some_and(|doom| doom.tombstone.merged_into != 0)
    }

    /// Whether it is no part of its range any more.
    pub(crate) fn is_doomed(&self) -> bool {
        self.doomed.is_some()
    }

    /// Whether a snapshot that it is to begin with has been taken in.
    pub(crate) fn brings_snapshot(&self) -> bool {
        self.installs_snapshot()
    }

    /// Replicas up to that of `gone`, this one among them, are no part of the range any more.
    pub(crate) fn doom(&mut self, turn: &mut Turn<'_>, gone: &v1::Tombstone) {
        // What a snapshot says that was never put in place, this replica never was.
        let epoch = self.descriptor.epoch.filter(|_| !self.unborn);
        let gone = v1::Tombstone { epoch, ..*gone };
        let doom = self.doomed.get_or_insert_default();
        doom.tombstone = joined(Some(&doom.tombstone), &gone);
        self.lease.end();
        turn.effects.views_gone.push(self.id);
    }

    /// The range was taken in by one that has a replica here, which goes on with the data.
    pub(crate) fn doom_without_data(&mut self, turn: &mut Turn<'_>, gone: &v1::Tombstone) {
        self.doom(turn, gone);
        if let Some(doom) = &mut self.doomed {
            (doom.keeps_data, doom.held_by) = (true, None);
        }
    }

    /// The range was taken in, and a snapshot of the one that did is to take the place of this replica: it takes part in
    /// nothing more, and stays on the disk until then.
    pub(crate) fn hold(&mut self, turn: &mut Turn<'_>, by: RangeId) {
        self.doom(turn, &merges::tombstone(by));
        if let Some(doom) = &mut self.doomed {
            doom.held_by = Some(by);
        }
    }

    /// The range that it was held for has no replica here any more.
    pub(crate) fn let_go(&mut self, by: RangeId) {
        if let Some(doom) = self.doomed.as_mut().filter(|doom| doom.held_by == Some(by)) {
            doom.held_by = None;
        }
    }

    /// Whether nothing of it is under way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.doomed.is_some() && self.applies_open == 0 && !self.writes_snapshot()
    }

    /// Another replica says that this one was removed: believed if its descriptor is newer and does not name it. The
    /// entry is one that it has applied since.
    ///
    /// Before the replica goes it applies all that it can learn to be committed: a split among that has children, which
    /// may need this store's replica for their quorum. What it is told to be committed (`common`) it takes, and goes on;
    /// its own removal may be among it. Otherwise it is told again when it campaigns.
    pub(crate) fn told_removed(
        &mut self,
        turn: &mut Turn<'_>,
        newer: &v1::RangeDescriptor,
        (index, term): (u64, u64),
        common: (u64, u64),
    ) -> Result<(), String> {
        let conf_ver = |of: &v1::RangeDescriptor| of.epoch.unwrap_or_default().conf_ver;
        let named = newer.replicas.iter().any(|replica| replica.replica_id == self.replica);
        let same = newer.range_id == self.id.0;
        if !same || named || conf_ver(newer) <= conf_ver(&self.descriptor) || self.replica >= newer.next_replica_id {
            return Err("the descriptor does not show that this replica was removed".into());
        }
        let installs = self.installs_snapshot();
        let log = &mut self.raft.raft.raft_log;
        let learned = !installs && common.1 > 0 && log.maybe_commit(common.0, common.1);
        let waits = !installs && self.votes() && self.apply_scheduled < self.raft.raft.raft_log.committed;
        if learned || waits {
            return Ok(());
        }
        self.doom(turn, &v1::Tombstone { replica_id: self.replica, index, term, ..Default::default() });
        Ok(())
    }

    /// Whether it is a voter, in one of two configurations perhaps.
    fn votes(&self) -> bool {
        self.voters.contains(&self.replica) || self.old_voters.contains(&self.replica)
    }

    /// Placement says that replicas up to `upto`, this one among them, are gone. A voter whose log holds what was not
    /// given to its apply stage is first given the time to learn of its removal from others: they know what of that is committed.
    pub(crate) fn told_to_go(&mut self, turn: &mut Turn<'_>, upto: u64) {
        let since = *self.told_to_go.get_or_insert(turn.now);
        let patience = turn.shared.config.election_timeout() * PATIENCE_TIMEOUTS;
        let unscheduled = self.raft.raft.raft_log.last_index() > self.apply_scheduled;
        let behind = self.votes() && unscheduled && !self.installs_snapshot();
        if !behind || turn.now.since(since) >= patience {
            self.doom(turn, &v1::Tombstone { replica_id: upto, ..Default::default() });
        }
    }

    /// What was split off before the end is no part of what goes: its replicas here live on. What was taken in is: the
    /// replica of that range here has ended in the same batch, and its keys go with this one's.
    pub(super) fn changes_of_the_doomed(&mut self, turn: &mut Turn<'_>, changes: Vec<ChangeApplied>) {
        for change in changes {
            match change.outcome {
                Ok(RangeChange::Split { descriptor, children }) => self.split_applied(turn, descriptor, &children),
                Ok(RangeChange::Merged { descriptor, source, absorbed }) => {
                    self.merge_applied(turn, descriptor, &source, absorbed);
                }
                _ => {}
            }
        }
    }

    /// The end, once nothing is under way; returns what stays.
    pub(crate) fn end_if_doomed(&mut self, turn: &mut Turn<'_>) -> Option<v1::Tombstone> {
        let doom = self.doomed.filter(|doom| self.is_quiet() && doom.held_by.is_none())?;
        self.end(turn);
        // Where nothing was put in place yet, what stands in the span is another replica's: one that was held for the snapshot.
        let (tombstone, keeps_data) = (doom.tombstone, doom.keeps_data || self.unborn);
        let destroy = Some(Destroy { descriptor: self.descriptor.clone(), tombstone, keeps_data });
        turn.items.push(LogItem { destroy, ..LogItem::new(self.id) });
        Some(tombstone)
    }

    /// The end, with a snapshot of the range that took this one in.
    pub(crate) fn end_with_target(&mut self, turn: &mut Turn<'_>) {
        self.end(turn);
    }

    fn end(&mut self, turn: &mut Turn<'_>) {
        self.end_waiting(turn, &Error::RangeNotFound { range: self.id }, "the replica was removed");
        turn.effects.applies.push(ApplyTask { range: self.id, work: ApplyWork::Removed });
        turn.effects.events.push(Event::Removed { range: self.id, replica_id: self.replica });
    }

    /// Whoever waits for this replica is told that it does no more; what was proposed may have been carried out.
    pub(super) fn end_waiting(&mut self, turn: &mut Turn<'_>, error: &Error, reason: &str) {
        let before = self.proposals.bytes();
        self.proposals.refuse_queued(error, &mut turn.effects.writes);
        self.proposals.lost(&mut turn.effects.writes);
        self.release_bytes(turn, before);
        self.barriers.refuse(error, &mut turn.effects.barriers);
        self.lose_change(turn, reason);
        self.split_keys(turn, Err(reason.into()));
        if let Some((order, _)) = self.transfer.take() {
            turn.effects.transfers.push((order.token, Err(error.clone())));
        }
    }
}

/// What two tombstones of a range say together.
pub(crate) fn joined(one: Option<&v1::Tombstone>, other: &v1::Tombstone) -> v1::Tombstone {
    let Some(one) = one else { return *other };
    let entry = if one.index > other.index { one } else { other };
    let merged_into = if other.merged_into == 0 { one.merged_into } else { other.merged_into };
    let replica_id = one.replica_id.max(other.replica_id);
    let count = |of: &v1::Tombstone| of.epoch.map(|epoch| (epoch.version, epoch.conf_ver));
    let epoch = if count(one) > count(other) { one.epoch } else { other.epoch };
    v1::Tombstone { replica_id, index: entry.index, term: entry.term, merged_into, epoch }
}
