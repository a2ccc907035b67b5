//! Installing a received snapshot: from the message that brings it to the state that stands in place of
//! all that the range had.
//!
//! ```text
//! received.rs ──▶ check_snapshot ──▶ bring_snapshot ──▶ Raft restores ──▶ install_snapshot ─┬▶ small: log batch ─┐
//!                                                                                           │                   │
//!                 snapshot_persisted ◀── durable ◀── begin_ingest, ingested ◀── large ◀──────┘◀──────────────────┘
//! ```
//! A large one is installed beside the log writer, in steps ([`crate::snapshot::install()`]). Until it is done the
//! replica stands still: nothing is collected from Raft, so no vote, acknowledgement or truncation of it leaves.
//!
//! Invariants: nothing is collected from Raft while entries under way in the apply stage still change the data
//! that the snapshot replaces; until the snapshot is durable the replica neither campaigns nor truncates.

use std::sync::Arc;

use flotilla_proto::v1;
use raft::Ready;
use raft::eraftpb::{Message, Snapshot};

use super::{Range, Standstill, Turn};
use crate::apply::{ApplyTask, ApplyWork};
use crate::snapshot::{self, Chunks};
use crate::store::{Event, LogItem, SnapshotData};

/// What waits until a large snapshot is installed.
pub(super) struct Ingest {
    ready: u64,
    messages: Vec<Message>,
    data: SnapshotData,
}

fn is_of(data: &SnapshotData, index: u64, term: u64) -> bool {
    data.header.applied.is_some_and(|applied| (applied.index, applied.term) == (index, term))
}

fn merge_state(data: &SnapshotData) -> v1::MergeState {
    data.header.merge.clone().unwrap_or_default()
}

impl Range {
    /// What a snapshot message must hold before Raft hears of it.
    pub(super) fn check_snapshot(&self, message: &Message, data: Option<&SnapshotData>) -> Result<(), String> {
        let data = data.ok_or("a snapshot message without data")?;
        if self.ingest.is_some() {
            return Err("another snapshot is being installed".into());
        }
        snapshot::check(data, message.get_snapshot().get_metadata(), Some(&self.descriptor), self.replica)
    }

    /// A snapshot must not leap over a split that this replica has in its log ([`crate::splits`]): it is committed, and
    /// applied first. The snapshot comes again.
    pub(super) fn apply_splits_first(&mut self, header: &v1::SnapshotHeader) -> Result<(), String> {
        let of_this = snapshot::check_header(header, &self.descriptor).is_ok() && !self.installs_snapshot();
        let ahead = header.splits.iter().rev().find(|split| self.has_before_it(split)).copied();
        let Some(split) = ahead.filter(|_| of_this) else { return Ok(()) };
        self.raft.raft.raft_log.maybe_commit(split.index, split.term);
        Err(format!("the range's split at index {} comes first", split.index))
    }

    /// Whether the log has this committed entry, and the apply stage was not given it.
    fn has_before_it(&self, split: &v1::SplitEntry) -> bool {
        split.index > self.apply_scheduled && self.raft.raft.raft_log.match_term(split.index, split.term)
    }

    /// Whether a snapshot with this header has to wait for a split.
    pub(crate) fn has_splits_before(&self, header: &v1::SnapshotHeader) -> bool {
        !self.installs_snapshot() && header.splits.iter().any(|split| self.has_before_it(split))
    }

    /// Keeps what a message brought, until Raft has taken or refused it.
    pub(super) fn bring_snapshot(&mut self, data: Option<SnapshotData>) {
        self.incoming_snapshots.extend(data);
    }

    /// What Raft did not take by the end of a turn, it never will.
    pub(super) fn forget_refused_snapshots(&mut self, turn: &Turn<'_>) {
        if !self.snapshot_must_wait(turn) {
            self.incoming_snapshots.clear();
        }
    }

    /// A snapshot replaces data that entries under way in the apply stage still change. A large one moreover stands
    /// aside of the log writer: what that has of this replica comes first, and nothing until it is done.
    pub(super) fn snapshot_must_wait(&mut self, turn: &Turn<'_>) -> bool {
        if self.ingest.is_some() {
            return true;
        }
        let Some(meta) = self.raft.snap().filter(|snapshot| !snapshot.is_empty()).map(Snapshot::get_metadata) else {
            self.ingest_after = None;
            return false;
        };
        let (index, term) = (meta.index, meta.term);
        let staged = self.incoming_snapshots.iter().any(|data| data.is_staged() && is_of(data, index, term));
        self.apply_scheduled > self.applied.0 || self.waits_for_ends() || (staged && !self.log_is_durable(turn))
    }

    /// Whether all that this replica has given to the log writer is durable. Once asked, it gives nothing more.
    fn log_is_durable(&mut self, turn: &Turn<'_>) -> bool {
        // Whatever this turn writes comes first too: the end of a replica that held the span may be among it.
        let last = if turn.items.is_empty() { turn.sequence - 1 } else { turn.sequence };
        let after = *self.ingest_after.get_or_insert(last);
        self.unpersisted.is_empty() && turn.shared.durable_sequence >= after
    }

    /// Hands a large snapshot to whoever installs it.
    pub(super) fn begin_ingest(&mut self, turn: &mut Turn<'_>, ready: u64, messages: Vec<Message>, item: LogItem) {
        let Some(header) = item.snapshot.as_ref().map(|data| data.header.clone()) else { return };
        // Without the files: those go as soon as they are not needed.
        let data = SnapshotData { header, chunks: Chunks::default() };
        self.ingest_after = None;
        self.ingest = Some(Ingest { ready, messages, data });
        if !self.unborn {
            // Not even stale reads: the data is gone for a while. Nor may one that began before be confirmed after it.
            self.view_is_gone = true;
            turn.shared.incarnations += 1;
            self.incarnation = turn.shared.incarnations;
            turn.effects.views_gone.push(self.id);
        }
        turn.effects.ingests.push(item);
    }

    /// A large snapshot is installed, and durable.
    pub(crate) fn ingested(&mut self, turn: &mut Turn<'_>) {
        let Some(done) = self.ingest.take() else { return };
        if self.doomed.is_some() {
            return self.note_doomed_snapshot(Some(&done.data));
        }
        self.raft.on_persist_ready(done.ready);
        self.send(turn, done.messages);
        self.snapshot_persisted(turn, &done.data);
    }

    /// Raft's own part of a snapshot that it has accepted, and the data that came with it.
    pub(super) fn install_snapshot(&mut self, turn: &mut Turn<'_>, ready: &Ready, item: &mut LogItem) {
        let snapshot: &Snapshot = ready.snapshot();
        if snapshot.is_empty() {
            return;
        }
        let meta = snapshot.get_metadata();
        let brought = std::mem::take(&mut self.incoming_snapshots);
        let is_this = |data: &SnapshotData| is_of(data, meta.index, meta.term);
        let data = brought.into_iter().find(is_this).expect("Raft restores only what a message has brought");
        // A frozen replica holds what the snapshot holds: nothing moves it. Its data must not be touched any more: the
        // range that takes this one in may do so at any moment.
        item.keeps_data = self.frozen().is_some() && merge_state(&data).frozen.as_ref() == self.frozen();
        let chunks = if item.keeps_data { Chunks::default() } else { data.chunks };
        item.snapshot = Some(SnapshotData { chunks, ..data });
        item.ends = self.take_ends(turn);
        item.replaces = Some(self.descriptor.clone());
        item.remove.extend(self.raft.mut_store().install(snapshot));
    }

    /// Whether a snapshot that Raft has accepted is not durable yet. Until then Raft's log begins behind entries
    /// that it takes for applied: it can neither campaign (raft-rs: a fatal error) nor be truncated.
    pub(super) fn installs_snapshot(&self) -> bool {
        self.writes_snapshot() || self.raft.snap().is_some_and(|snapshot| !snapshot.is_empty())
    }

    /// Whether a snapshot is being written.
    pub(super) fn writes_snapshot(&self) -> bool {
        self.ingest.is_some() || self.unpersisted.iter().any(|held| held.snapshot.is_some())
    }

    /// A replica that is to go has become what a snapshot says: this is what goes.
    pub(super) fn note_doomed_snapshot(&mut self, data: Option<&SnapshotData>) {
        if let Some(descriptor) = data.and_then(|data| data.header.descriptor.clone()) {
            self.set_descriptor(Arc::new(descriptor));
            self.unborn = false;
        }
    }

    /// A snapshot stands on disk in place of all that the range had.
    pub(super) fn snapshot_persisted(&mut self, turn: &mut Turn<'_>, data: &SnapshotData) {
        let applied = data.header.applied.expect("checked when it was received");
        let descriptor = data.header.descriptor.clone().expect("checked when it was received");
        self.set_descriptor(Arc::new(descriptor));
        if std::mem::take(&mut self.unborn) {
            turn.effects.events.push(Event::Born { descriptor: self.descriptor.clone() });
        }
        self.siblings = Arc::default();
        let merge = merge_state(data);
        self.absorbed.clone_from(&merge.absorbed);
        let stood = self.frozen().copied();
        if stood != merge.frozen {
            self.standstill = merge.frozen.map(|frozen| Box::new(Standstill::new(frozen, turn.now)));
            self.stand_still(turn);
        }
        self.size.set(0);
        self.applied = (applied.index, applied.term);
        self.checksum = applied.checksum;
        self.apply_scheduled = applied.index;
        self.apply_bytes.clear();
        self.applied_marks.clear();
        self.applied_durable = applied.index;
        self.raft.advance_apply_to(applied.index);
        let before = self.proposals.bytes();
        self.proposals.leapt(applied.index, &mut turn.effects.writes);
        self.release_bytes(turn, before);
        self.lose_change(turn, "the replica was overtaken by a snapshot");
        self.lease.restart(turn.now);
        let merge = (merge != v1::MergeState::default()).then(|| Box::new(merge));
        let work = ApplyWork::Replaced { descriptor: self.descriptor.clone(), applied, merge };
        turn.effects.applies.push(ApplyTask { range: self.id, work });
        turn.effects.events.push(Event::SnapshotApplied { range: self.id, index: applied.index });
    }
}
