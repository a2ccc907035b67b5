//! A range whose majority is lost for good goes on with one replica, by order of a person.
//!
//! Raft cannot do this, and is right: nobody can know what the lost ones had acknowledged. So it is not a change of
//! replicas but the beginning of another group with the same data. What makes it safe against the past
//! (docs/decisions/0032-loss-of-quorum.md):
//!
//! ```text
//! order (made for this very replica, log and descriptor)
//!   │ still so? nobody leads, nothing under way
//!   ▼
//! one log batch: descriptor (one voter, a new id, conf_ver far beyond), Raft state (term beyond), record
//!   ▼
//! another replica takes this one's place, with its log and data, and leads as a sole voter does
//! ```
//! - The new replica's id is beyond all that the old group can have given out: a message of the old group is for a
//!   replica that is gone, and one of the new group names a sender that the old group does not know.
//! - conf_ver is beyond all that the old group can have reached: whoever still is of it and hears of the new one goes
//!   (`removal.rs`), and no change of replicas that stands uncommitted in the log takes effect: it was made for
//!   another conf_ver (cockroach#74654, #91388: such entries stopped the nodes).
//! - Entries that were not known to be committed stay in the log, and are committed by the first entry of the new
//!   term: what a client was told may be among them. What only the lost ones had is gone.
//! - Nothing of it leaves before the batch is durable: a sole voter commits nothing before its own vote is.
//! - A merge that is half done is decided by epochs with conf_ver in them (`merge.rs`): one that was to be committed by
//!   the old group never will be, and whoever is frozen for it sees the proof. A frozen range goes on only once its replica
//!   has heard that proof, for which it asks as long as nobody leads it; or if nothing is left of the range it was to go into.
//! - Given twice, the order changes nothing: the record says that it was carried out.

use std::sync::Arc;

use flotilla_mutants::Mutant;
use flotilla_proto::{Error, v1};

use super::{Range, Turn};
use crate::apply::{ApplyTask, ApplyWork};
use crate::recover::RangeBoot;
use crate::store::{Event, LogItem, Recovers};

/// So many are remembered of one range.
const KEPT: usize = 8;

impl Range {
    /// Carries the order out on disk; what the new replica begins with. `None`: it was carried out before.
    pub(crate) fn recover(
        &mut self,
        turn: &mut Turn<'_>,
        order: &v1::RecoverReplica,
    ) -> Result<Option<RangeBoot>, Error> {
        let record = order.record.clone().unwrap_or_default();
        if self.recoveries.iter().any(|known| known.plan_id == record.plan_id) {
            return Ok(None);
        }
        let after = order.after.as_ref().filter(|_| !record.plan_id.is_empty());
        let after = after.ok_or_else(|| stale("the order does not say what the range becomes, or by which plan"))?;
        self.check_recovery(turn, order, after)?;
        let descriptor = Arc::new(after.clone());
        let (truncated_index, truncated_term) = self.raft.store().truncated();
        let commit = self.raft.raft.raft_log.committed;
        let raft = v1::RaftState { term: order.term, vote: 0, commit, truncated_index, truncated_term };
        let gone = (after.end != self.descriptor.end).then(|| (after.end.clone(), self.descriptor.end.clone()));
        let mut recoveries = self.recoveries.clone();
        recoveries.push(v1::RangeRecovery { commit_index: commit, ..record.clone() });
        recoveries.drain(..recoveries.len().saturating_sub(KEPT));
        let recoveries = v1::RangeRecoveries { recoveries };
        let absorbed = self.absorbed.clone();
        let merge = (!absorbed.is_empty()).then(|| Box::new(v1::MergeState { frozen: None, absorbed }));
        let recovers =
            Recovers { descriptor: descriptor.clone(), gone, recoveries: recoveries.clone(), merge: merge.clone() };
        turn.items.push(LogItem { raft_state: Some(raft), recovers: Some(recovers), ..LogItem::new(self.id) });
        let work = ApplyWork::Recovered { descriptor: descriptor.clone() };
        turn.effects.applies.push(ApplyTask { range: self.id, work });
        turn.effects.events.push(Event::Recovered { descriptor: descriptor.clone(), record: Box::new(record) });
        self.end_waiting(turn, &self.not_leader(), "the range went on without its majority");
        let applied = v1::AppliedState {
            index: self.applied.0,
            term: self.applied.1,
            checksum: self.checksum,
            range_time_ms: self.view.clock.ms,
            ..Default::default()
        };
        let mut boot = RangeBoot { raft, merge, recoveries, ..RangeBoot::initial(descriptor, applied) };
        self.raft.store().copy_into(&mut boot);
        Ok(Some(boot))
    }

    /// Whether it leads, or has lately heard of who does. A learner never forgets the last leader by itself.
    pub(crate) fn hears_leader(&self) -> bool {
        let raft = &self.raft.raft;
        self.leads() || (raft.leader_id != 0 && raft.election_elapsed < raft.randomized_election_timeout())
    }

    /// Takes over from the replica whose place this one takes what no record on disk says.
    pub(crate) fn succeed(&mut self, before: Self, sequence: u64) {
        self.expiry = before.expiry;
        self.size = before.size;
        // What was applied becomes durable with the batch that lets this one begin, and not before.
        self.applied_marks.clear();
        self.applied_marks.push_back((sequence, self.applied.0));
    }

    /// Whether the replica still is what the order was made for, and the order what may follow.
    fn check_recovery(
        &self,
        turn: &Turn<'_>,
        order: &v1::RecoverReplica,
        after: &v1::RangeDescriptor,
    ) -> Result<(), Error> {
        let epoch = |of: &v1::RangeDescriptor| of.epoch.unwrap_or_default();
        let before = &*self.descriptor;
        if self.is_doomed() || self.unborn {
            return Err(Error::RangeNotFound { range: self.id });
        }
        if let Some(leader) = self.leader().filter(|_| self.hears_leader()) {
            let what = format!("range {} is led by {leader}: a quorum of it lives", self.id);
            return Err(Error::invalid(what, "nothing is to be recovered; make a new plan"));
        }
        if self.replica != order.replica_id || Some(before) != order.before.as_ref() {
            return Err(stale("its descriptor has changed"));
        }
        let log = &self.raft.raft.raft_log;
        if (log.last_term(), log.last_index()) != (order.last_term, order.last_index) {
            return Err(stale("its log has changed"));
        }
        if let Some(frozen) = self.frozen().filter(|_| !order.merge_target_lost)
            && !self.standstill.as_ref().is_some_and(|still| still.is_over())
        {
            let reason = format!(
                "range {} is frozen for a merge into range {}: what became of that must be known first, and is asked; recover that range too",
                self.id, frozen.target_range_id
            );
            return Err(Error::ServerBusy { reason, retry_after_ms: 300 });
        }
        let under_way = self.applies_open > 0
            || !self.unpersisted.is_empty()
            || self.installs_snapshot()
            || self.raft.store().handed_over() != log.last_index()
            || self.apply_scheduled != log.committed;
        if under_way || turn.shared.draining {
            let reason = format!("range {} still writes, or applies, what came before", self.id);
            return Err(Error::ServerBusy { reason, retry_after_ms: 50 });
        }
        let alone = matches!(&after.replicas[..], [of] if of.node_id == turn.shared.node.0
            && of.role() == v1::ReplicaRole::Voter
            && ((before.next_replica_id..after.next_replica_id).contains(&of.replica_id)
                || Mutant::RecoverSameReplica.is_on()));
        let same =
            (after.range_id, after.keyspace_id, &after.start) == (before.range_id, before.keyspace_id, &before.start);
        let within = after.end == before.end || crate::read::contains(before, &after.end);
        // A shorter range has another version: what the log has for the longer one must not be applied to it. So has one
        // that is behind what others have heard of its span.
        let version = match after.end == before.end {
            true => epoch(after).version >= epoch(before).version,
            false => epoch(after).version > epoch(before).version && after.end > after.start,
        };
        let beyond = epoch(after).conf_ver > epoch(before).conf_ver && order.term > self.term();
        if !(alone && same && within && version && beyond) {
            return Err(Error::invalid(
                format!("the order for range {} is none that could follow from what it is", self.id),
                "make a new plan by `flotilla recover plan`",
            ));
        }
        Ok(())
    }

    /// Another survivor knows an entry to be committed. One that leads, or follows, hears that from its own group.
    pub(crate) fn told_committed(&mut self, entry: &v1::CommittedEntry) {
        if !self.hears_leader() && !self.installs_snapshot() && !self.is_doomed() {
            self.raft.raft.raft_log.maybe_commit(entry.index, entry.term);
        }
    }

    /// When and why it went on without its majority.
    pub(crate) fn recoveries(&self) -> &[v1::RangeRecovery] {
        &self.recoveries
    }
}

fn stale(what: &str) -> Error {
    Error::invalid(format!("the plan is out of date: {what}"), "make a new one by `flotilla recover plan`")
}
