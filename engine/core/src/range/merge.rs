//! Merge: a range (the *source*) is taken in by its left neighbour (the *target*). This file is the source's side, and
//! tells the protocol; the target's is `absorb.rs`, what the entries do is in `apply/merge.rs`, what goes between the
//! two in `store/merging.rs`.
//!
//! ```text
//!  source's leader         source's other replicas          target's leader          target's other replicas
//!    │ Freeze proposed: no write, no lease
//!    │ ─────────── entry ──────────▶ │
//!    │ applied: stands still         │ applied: stands still
//!    │ ◀──── applied *durably* ───── │
//!    │ from all of them:
//!    │ ──────────────── ask: take it in ────────────────────▶ │ epoch as the freeze names it?
//!    │                                                        │ Merge proposed ──── entry ────▶ │
//!    │                               on every node, as it applies Merge there, in one batch:
//!    │                               target's end, epoch, counters; source's tombstone
//!    ✕ ends                          ✕ ends                   │ serves all keys                 │
//!
//!  or: not all of them in time
//!    │ ──────────────── ask: give up ───────────────────────▶ │ Abandon proposed ── entry ────▶ │
//!    │                                                        │ applied: version raised
//!    │ ◀─────────────── told: not merged ──────────────────── │
//!    │ Thaw proposed ── entry ─────▶ │
//!    ▼ goes on                       ▼ goes on
//! ```
//!
//! **One decision, once.** A freeze names the target's epoch. Merge and Abandon have an effect only at that very epoch,
//! and raise the version; so does whatever else changes the target (split, change of replicas, its own freeze).
//! Epochs never come back. So the first of these in the target's log decides, and everybody who has applied it knows
//! what: the target is past the named epoch, and the source is among what it has taken in, or never will be. That
//! list is kept for ever, and goes along with snapshots (`merges.rs`), so any replica of the target can be asked, however it
//! came to its state; if the target was itself taken in, the one that did inherits the list; and where a replica of it had got past that epoch
//! before it was removed, beside a source that still stands, it had not taken that in. A Thaw follows only
//! from such an answer: it is the proof that there is no merge. (tikv#15625, #15682: commit and rollback both.)
//! The merge is named by the source's id and the index of the freeze in its log, which is applied once (tikv#6460).
//!
//! **Nobody reads or writes past the source.** From proposing the freeze its leader takes no write into the log and does without its
//! lease. Whoever has applied the freeze serves nothing, linearizable or not; a restart finds it on the disk.
//! The target's leader proposes Merge only when *every* replica of the source has applied the freeze durably, so by
//! then nobody can serve the source's keys but by a Thaw (tikv#8034). What was proposed to the source by the version
//! before, by a former leader perhaps, is behind the freeze in its log, and refused by every replica: the freeze has raised the version.
//! From then on the source's keys change by the target's log alone, and its leader needs no other lease
//! than the one it has: no other replica of the target can serve them before it leads. Writes wait
//! behind Merge and Abandon only because they would be refused for their version. Reads that began before see the epoch changed.
//!
//! **The data is there.** Merge touches no data, so on each node the source's replica must stand just as it was frozen.
//! It does: it had applied the freeze durably before the Merge was proposed, so every crash since leaves it there; and
//! from the freeze on nothing changes its data: entries behind it have no effect, replicas do not come or go,
//! keys do not end, and a snapshot of the same freeze replaces its log alone. (A leader that is elected meanwhile adds an empty
//! entry: the replica's index moves on, the data does not.) All replicas are waited for, not a quorum, because what a
//! slower one lacked would be gone with the source's log (tikv#17992, #4551, #5868, #15633).
//!
//! **Order on the disk.** The target's new records and the source's tombstone are one batch of the apply stage. What the
//! log writer still has of the source comes after it and changes no data; the source's records and log go by a batch of the
//! log writer behind that. A crash in between leaves records with a tombstone, which the next start removes.
//! A target's replica that is told it was removed while its apply stage has the Merge takes the source's along (`removal.rs`);
//! the source's goes not before it, whoever lets it go (`store/merging.rs`): no start after a crash may find the Merge without it.
//!
//! **By snapshot.** A replica of the target that is behind the merge, and is sent a snapshot, has the frozen
//! source beside it. The snapshot names what was taken in; these replicas end in the batch (or by the intent) that puts
//! it in place (tikv#7027, cockroach#36611). Until then the source's replica is not let go, whoever says that the range
//! is gone: the target's log may still need its data, even where the target has no replica yet (it was among those that
//! decided: a snapshot of before the merge may still bring it). Where the target had one and has it no more, the source's
//! goes at that word (tikv#15919); where it never came, at placement's, which knows that it will not.
//! The tombstone of a range that was taken in covers all replica ids: nothing brings it back.
//!
//! **Nothing stays frozen.** The source's leader asks anew with each tick, whoever leads the target answers or
//! decides; neither needs placement. With a quorum of both alive there are leaders of both, the
//! target's log decides, and the source's leader hears of it or ends. After a while without all replicas, or in any
//! case after a longer one, it asks to give up. What is volatile (who has reported, who waits) a new leader gathers anew.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flotilla_mutants::Mutant;
use flotilla_proto::{Error, NodeId, RangeId, v1};

use super::change::{Asker, Kind, PendingChange};
use super::{Range, Turn};
use crate::merges;
use crate::store::{Envelope, Event, Wish};
use crate::time::BootTime;

/// For so many election time-outs a leader waits until all replicas have applied a freeze.
const ALL_TIMEOUTS: u32 = 3;
/// For so many it wants the merge at all.
const MERGE_TIMEOUTS: u32 = 10;

/// A replica that stands still.
#[derive(Debug)]
pub(super) struct Standstill {
    frozen: v1::Frozen,
    /// Since when this replica knows.
    known: BootTime,
    /// The reign in which the rest was gathered, and its beginning.
    term: u64,
    since: BootTime,
    /// Replicas that have applied the freeze durably.
    stand: BTreeSet<u64>,
    /// Somebody who knows has said that it was not merged, and never will be.
    not_merged: bool,
    asker: Option<Asker>,
}

impl Standstill {
    pub(super) fn new(frozen: v1::Frozen, now: BootTime) -> Self {
        Self { frozen, known: now, term: 0, since: now, stand: BTreeSet::new(), not_merged: false, asker: None }
    }

    /// Whether it is known that there was no merge.
    pub(super) fn is_over(&self) -> bool {
        self.not_merged
    }
}

impl Range {
    /// The freeze in force.
    pub(crate) fn frozen(&self) -> Option<&v1::Frozen> {
        self.standstill.as_ref().map(|still| &still.frozen)
    }

    /// What a request is told that comes to a frozen range.
    pub(super) fn check_not_frozen(&self) -> Result<(), Error> {
        let Some(frozen) = self.frozen() else { return Ok(()) };
        let reason = format!("range {} is being merged into range {}", self.id, frozen.target_range_id);
        Err(Error::ServerBusy { reason, retry_after_ms: 20 })
    }

    /// Begins to merge the range into its left neighbour, of which a replica is here. The error says why it cannot be.
    pub(crate) fn begin_merge(
        &mut self,
        turn: &mut Turn<'_>,
        target: Option<&v1::RangeDescriptor>,
        asker: Option<Asker>,
    ) -> Result<(), Error> {
        self.may_change(turn)?;
        let hint = "`flotilla range list` shows the ranges and their replicas";
        let target = target.ok_or_else(|| {
            Error::invalid(
                "the range to merge into has no replica on the node that leads this one, or is being merged itself",
                hint,
            )
        })?;
        merges::check(target, &self.descriptor).map_err(|what| Error::invalid(what, hint))?;
        let busy = |reason: String| Error::ServerBusy { reason, retry_after_ms: 200 };
        match turn.shared.keyspaces.get(&self.descriptor.keyspace_id) {
            None => return Err(busy("the settings of the range's keyspace are not known here yet".into())),
            Some(keyspace) if keyspace.state() == v1::KeyspaceState::Dropped => {
                return Err(Error::invalid(
                    "the keyspace was dropped: its ranges go",
                    "merge ranges of another keyspace",
                ));
            }
            Some(_) => {}
        }
        let away = self.descriptor.replicas.iter().find(|of| {
            let well = self.is_level(of.replica_id) && self.is_heard(turn, of.replica_id);
            !well
        });
        if let Some(away) = away {
            return Err(busy(format!(
                "the replica on node {} is not alive and level, and a merge needs all of them",
                away.node_id
            )));
        }
        let freeze = v1::Freeze {
            target_range_id: target.range_id,
            target_epoch: target.epoch,
            conf_ver: self.descriptor.epoch.unwrap_or_default().conf_ver,
        };
        let time_ms = self.carried_time(turn, &[]);
        self.propose_timed_change(v1::command::Change::Freeze(freeze), Kind::Freeze, asker, time_ms)
    }

    /// The range stands still.
    pub(super) fn freeze_applied(
        &mut self,
        turn: &mut Turn<'_>,
        descriptor: Arc<v1::RangeDescriptor>,
        frozen: v1::Frozen,
        own: Option<PendingChange>,
    ) {
        self.set_descriptor(descriptor);
        let mut still = Standstill::new(frozen, turn.now);
        still.asker = own.and_then(|own| own.asker);
        self.standstill = Some(Box::new(still));
        self.stand_still(turn);
        // So that it is soon known to be durable.
        self.write_commit(turn);
    }

    /// What follows wherever a replica comes to know that it is frozen.
    pub(super) fn stand_still(&mut self, turn: &mut Turn<'_>) {
        let Some(into) = self.frozen().map(|frozen| RangeId(frozen.target_range_id)) else { return };
        turn.effects.events.push(Event::Frozen { range: self.id, into });
        if let Err(error) = self.check_not_frozen() {
            let before = self.proposals.bytes();
            self.proposals.refuse_queued(&error, &mut turn.effects.writes);
            self.release_bytes(turn, before);
        }
    }

    /// The range goes on.
    pub(super) fn thaw_applied(&mut self, turn: &mut Turn<'_>, frozen: &v1::Frozen) {
        let Some(still) = self.standstill.take_if(|still| still.frozen.index == frozen.index) else { return };
        turn.effects.events.push(Event::Thawed { range: self.id, into: RangeId(frozen.target_range_id) });
        self.no_merge_before = turn.now + turn.shared.config.election_timeout() * MERGE_TIMEOUTS;
        if let Some(asker) = still.asker {
            let reason = format!(
                "range {} has changed, or not all replicas of range {} could be brought to a standstill in time: nothing was merged",
                frozen.target_range_id, self.id
            );
            turn.effects.merges.push((asker.token, Err(Error::ServerBusy { reason, retry_after_ms: 1_000 })));
        }
    }

    /// Whether this replica has applied the freeze for good: whatever crash comes, and whatever was under way.
    fn stands_durably(&self) -> bool {
        self.frozen().is_some_and(|frozen| self.applied_durable >= frozen.index) && !self.installs_snapshot()
    }

    /// Another replica has applied the freeze durably.
    pub(super) fn note_frozen(&mut self, turn: &mut Turn<'_>, replica: u64, index: u64) {
        self.gather_anew(turn);
        let Some(still) = &mut self.standstill else { return };
        if still.frozen.index == index && still.stand.insert(replica) {
            self.ask_target(turn);
        }
    }

    /// What another leader gathered is not known here.
    fn gather_anew(&mut self, turn: &Turn<'_>) {
        let term = self.term();
        if let Some(still) = self.standstill.as_mut().filter(|still| still.term != term) {
            (still.term, still.since) = (term, turn.now);
            still.stand.clear();
        }
    }

    /// Brings the standstill to its end; as often as time passes, and when there is news.
    pub(super) fn pursue_merge(&mut self, turn: &mut Turn<'_>) {
        let Some(index) = self.frozen().map(|frozen| frozen.index) else { return };
        if !self.stands_durably() {
            self.write_commit(turn);
            return;
        }
        if self.leads() {
            self.ask_target(turn);
        } else if self.hears_leader() {
            self.report_frozen(turn, index);
        } else {
            // The majority may be lost: what became of the merge is to be known here then (`recovery.rs`).
            self.wish(turn, v1::MergeWish::Know);
        }
    }

    /// News of what is durable: a replica that stands still says so at once.
    pub(super) fn merge_persisted(&mut self, turn: &mut Turn<'_>) {
        if self.standstill.is_some() && !self.stands_durably() {
            self.note_durable(turn);
            if self.stands_durably() {
                self.pursue_merge(turn);
            }
        }
    }

    fn report_frozen(&self, turn: &mut Turn<'_>, index: u64) {
        let leader = self.raft.raft.leader_id;
        let Some(to) = self.node_of(leader) else { return };
        let message = v1::PeerMessage {
            range_id: self.id.0,
            from_replica: self.replica,
            to_replica: leader,
            frozen: index,
            ..Default::default()
        };
        let disk_full = turn.shared.full_nodes.contains(&turn.shared.node);
        turn.effects.messages.push(Envelope { from: turn.shared.node, to, message, disk_full, snapshot: None });
    }

    fn ask_target(&mut self, turn: &mut Turn<'_>) {
        self.gather_anew(turn);
        if !self.serves() || !self.stands_durably() {
            return;
        }
        let Some(still) = &self.standstill else { return };
        let election: Duration = turn.shared.config.election_timeout();
        let waited = turn.now.since(still.since);
        let all = self.missing().is_empty();
        let late = waited >= election * MERGE_TIMEOUTS || (!all && waited >= election * ALL_TIMEOUTS);
        let wish = match (late, all) {
            (true, _) => v1::MergeWish::GiveUp,
            (false, true) => v1::MergeWish::Merge,
            (false, false) => v1::MergeWish::Know,
        };
        if Mutant::ThawWithoutProof.is_on() && late {
            let told = v1::MergeTold { freeze_index: still.frozen.index, merged: false };
            return self.merge_told(turn, told);
        }
        self.wish(turn, wish);
    }

    fn wish(&self, turn: &mut Turn<'_>, wish: v1::MergeWish) {
        let Some(still) = &self.standstill else { return };
        let ask =
            v1::MergeAsk { source: Some((*self.descriptor).clone()), frozen: Some(still.frozen), wish: wish.into() };
        // Where placement knows the target now: it may have gone to other nodes since the freeze.
        let ordered = self.order.as_ref().and_then(|order| order.merge_into.as_ref());
        let ordered = ordered.filter(|into| into.range_id == still.frozen.target_range_id);
        let replicas = self.descriptor.replicas.iter().chain(ordered.iter().flat_map(|into| &into.replicas));
        let nodes: BTreeSet<NodeId> = replicas.map(|replica| NodeId(replica.node_id)).collect();
        turn.wishes.push(Wish::Ask { ask: Box::new(ask), nodes });
    }

    /// Nodes whose replicas have not reported.
    fn missing(&self) -> Vec<u64> {
        let Some(still) = &self.standstill else { return Vec::new() };
        if Mutant::MergeWithoutAll.is_on() && still.stand.len() > self.voters.len() / 2 {
            return Vec::new();
        }
        let stands =
            |of: &&v1::ReplicaDescriptor| still.stand.contains(&of.replica_id) || of.replica_id == self.replica;
        self.descriptor.replicas.iter().filter(|of| !stands(of)).map(|of| of.node_id).collect()
    }

    /// What became of the merge, from who knows.
    pub(crate) fn merge_told(&mut self, turn: &mut Turn<'_>, told: v1::MergeTold) {
        // A merge that is committed ends this replica when it is applied here.
        let still = self.standstill.as_mut().filter(|still| still.frozen.index == told.freeze_index && !told.merged);
        let Some(still) = still else { return };
        still.not_merged = true;
        if !self.may_propose_change(turn) {
            return;
        }
        let thaw = v1::Thaw { freeze_index: told.freeze_index };
        // Refused for now: the next tick asks again.
        drop(self.propose_change(v1::command::Change::Thaw(thaw), Kind::Thaw, None));
    }

    /// The range was taken in: what waits here is told by whom.
    pub(crate) fn merged_away(&mut self, turn: &mut Turn<'_>, into: &v1::RangeDescriptor) {
        if let Some(asker) = self.standstill.take().and_then(|still| still.asker) {
            turn.effects.merges.push((asker.token, Ok(into.clone())));
        }
    }

    /// Answers whoever waits for a merge and must not wait longer; the merge itself goes on.
    pub(super) fn lose_merge_asker(&mut self, turn: &mut Turn<'_>, reason: &str, late_only: bool) {
        let Some(still) = &mut self.standstill else { return };
        if let Some(asker) = still.asker.take_if(|asker| !late_only || asker.deadline <= turn.now) {
            turn.effects.merges.push((asker.token, Err(Error::Ambiguous { reason: reason.into() })));
        }
    }

    /// The standstill, for people and placement.
    pub(crate) fn frozen_report(&self, now: BootTime) -> Option<v1::FrozenRange> {
        let still = self.standstill.as_ref()?;
        let waits = match &self.missing()[..] {
            _ if !self.leads() => String::new(),
            [] => format!("range {} is asked to take it in", still.frozen.target_range_id),
            nodes => format!("the replicas on nodes {nodes:?} have not confirmed their standstill"),
        };
        Some(v1::FrozenRange {
            target_range_id: still.frozen.target_range_id,
            freeze_index: still.frozen.index,
            frozen_ms: u64::try_from(now.since(still.known).as_millis()).unwrap_or(u64::MAX),
            waits,
        })
    }
}
