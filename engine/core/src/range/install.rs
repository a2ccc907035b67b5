//! Installing a received snapshot: from the message that brings it to the state that stands in place of
//! all that the range had.
//!
//! ```text
//! received.rs ──▶ check_snapshot ──▶ bring_snapshot ──▶ Raft restores ──▶ install_snapshot ──▶ log batch
//!                                                                                │
//!                          snapshot_persisted ◀── the batch is durable ◀──────────┘
//! ```
//!
//! Invariants: nothing is collected from Raft while entries under way in the apply stage still change the data
//! that the snapshot replaces; until the snapshot is durable the replica neither campaigns nor truncates.

use std::sync::Arc;

use raft::Ready;
use raft::eraftpb::{Message, Snapshot};

use super::{Range, Turn};
use crate::apply::{ApplyTask, ApplyWork};
use crate::snapshot;
use crate::store::{Event, LogItem, SnapshotData};

impl Range {
    /// What a snapshot message must hold before Raft hears of it.
    pub(super) fn check_snapshot(&self, message: &Message, data: Option<&SnapshotData>) -> Result<(), String> {
        let data = data.ok_or("a snapshot message without data")?;
        snapshot::check(data, message.get_snapshot().get_metadata(), Some(&self.descriptor), self.replica)
    }

    /// Keeps what a message brought, until Raft has taken or refused it.
    pub(super) fn bring_snapshot(&mut self, data: Option<SnapshotData>) {
        self.incoming_snapshots.extend(data);
    }

    /// What Raft did not take by the end of a turn, it never will.
    pub(super) fn forget_refused_snapshots(&mut self) {
        if !self.snapshot_must_wait() {
            self.incoming_snapshots.clear();
        }
    }

    /// A snapshot replaces data that entries under way in the apply stage still change.
    pub(super) fn snapshot_must_wait(&self) -> bool {
        self.raft.snap().is_some_and(|snapshot| !snapshot.is_empty()) && self.apply_scheduled > self.applied.0
    }

    /// Raft's own part of a snapshot that it has accepted, and the data that came with it.
    pub(super) fn install_snapshot(&mut self, ready: &Ready, item: &mut LogItem) {
        let snapshot: &Snapshot = ready.snapshot();
        if snapshot.is_empty() {
            return;
        }
        let meta = snapshot.get_metadata();
        let brought = std::mem::take(&mut self.incoming_snapshots);
        let is_this = |data: &SnapshotData| {
            data.header.applied.is_some_and(|applied| (applied.index, applied.term) == (meta.index, meta.term))
        };
        let data = brought.into_iter().find(is_this).expect("Raft restores only what a message has brought");
        item.snapshot = Some(data);
        item.replaces = Some(self.descriptor.clone());
        item.remove.extend(self.raft.mut_store().install(snapshot));
    }

    /// Whether a snapshot that Raft has accepted is not durable yet. Until then Raft's log begins behind entries
    /// that it takes for applied: it can neither campaign (raft-rs: a fatal error) nor be truncated.
    pub(super) fn installs_snapshot(&self) -> bool {
        self.unpersisted.iter().any(|held| held.snapshot.is_some())
            || self.raft.snap().is_some_and(|snapshot| !snapshot.is_empty())
    }

    /// Whether a snapshot is being written.
    pub(super) fn writes_snapshot(&self) -> bool {
        self.unpersisted.iter().any(|held| held.snapshot.is_some())
    }

    /// A replica that is to go has become what a snapshot says: this is what goes.
    pub(super) fn note_doomed_snapshot(&mut self, data: Option<&SnapshotData>) {
        if let Some(descriptor) = data.and_then(|data| data.header.descriptor.clone()) {
            self.set_descriptor(Arc::new(descriptor));
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
        let work = ApplyWork::Replaced { descriptor: self.descriptor.clone(), applied };
        turn.effects.applies.push(ApplyTask { range: self.id, work });
        turn.effects.events.push(Event::SnapshotApplied { range: self.id, index: applied.index });
    }
}
