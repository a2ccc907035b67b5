//! Log truncation, and the snapshots that it makes necessary.
//!
//! Each replica cuts its own log, up to an applied index that is known to be durable: what was cut
//! can then never be needed to rebuild the state. Some of the applied log stays, so that a follower
//! that was away for a moment needs no snapshot; a leader keeps more for a follower that is behind,
//! up to a bound, beyond which that one gets a snapshot. A range too large for a snapshot keeps its log
//! without that bound.

use flotilla_proto::v1;
use raft::{SnapshotStatus, StateRole};

use super::{Range, Turn};
use crate::snapshot::SNAPSHOT_BYTES_MAX;
use crate::store::{Event, LogItem, SnapshotData};

/// Ticks after which a snapshot that nobody took is let go.
const SNAPSHOT_AGE_TICKS_MAX: u32 = 50;

impl Range {
    /// Cuts the log if enough of it is done with.
    pub(super) fn consider_truncation(&mut self, turn: &mut Turn<'_>) {
        while self.applied_marks.front().is_some_and(|(mark, _)| *mark <= turn.shared.durable_sequence) {
            if let Some((_, applied)) = self.applied_marks.pop_front() {
                self.applied_durable = applied;
            }
        }
        let config = &turn.shared.config;
        let (truncated, _) = self.raft.store().truncated();
        let entries = self.applied.0.saturating_sub(truncated);
        // Twice what is to stay: so that a cut is worth its write.
        let enough =
            self.raft.store().log_bytes() > 2 * config.log_retain_bytes || entries > 2 * config.log_retain_entries;
        if !enough || self.installs_snapshot() {
            return;
        }
        let wanted = self.raft.store().truncation_point(config.log_retain_bytes, config.log_retain_entries);
        let allowed = self.applied_durable.min(self.needed_by_followers(config.log_lagging_bytes_max));
        let index = wanted.min(allowed);
        if index <= truncated || index - truncated < entries / 4 {
            return;
        }
        let Some(removed) = self.raft.mut_store().truncate(index) else { return };
        // Term and vote as they were last written: newer ones belong to the ready state that is held
        // back until they are durable.
        let (truncated_index, truncated_term) = self.raft.store().truncated();
        let commit = self.raft.raft.raft_log.committed;
        let state = v1::RaftState { commit, truncated_index, truncated_term, ..self.written_state };
        turn.items.push(LogItem { raft_state: Some(state), remove: vec![removed], ..LogItem::new(self.id) });
        turn.effects.events.push(Event::LogTruncated { range: self.id, index });
    }

    /// Up to where followers have what they need of this leader's log.
    fn needed_by_followers(&self, lagging_bytes_max: u64) -> u64 {
        if self.raft.raft.state != StateRole::Leader {
            return u64::MAX;
        }
        let others = self.raft.raft.prs().iter().filter(|(id, _)| **id != self.replica);
        let Some(lowest) = others.map(|(_, progress)| progress.matched.max(progress.pending_snapshot)).min() else {
            return u64::MAX;
        };
        let too_large_to_send = self.size.bytes() > SNAPSHOT_BYTES_MAX as u64 / 2;
        if too_large_to_send || self.raft.store().bytes_above(lowest) <= lagging_bytes_max {
            return lowest;
        }
        u64::MAX
    }

    /// A snapshot that was asked for is made, or could not be.
    pub(crate) fn snapshot_made(&mut self, snapshot: Option<SnapshotData>) {
        self.snapshot_asked = false;
        self.snapshot_age_ticks = 0;
        let current = |made: &SnapshotData| {
            made.header.descriptor.as_ref().is_some_and(|descriptor| descriptor.epoch == self.descriptor.epoch)
        };
        self.raft.store().offer_snapshot(snapshot.filter(current));
    }

    /// What became of a snapshot message.
    pub(crate) fn snapshot_sent(&mut self, to_replica: u64, ok: bool) {
        let status = if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raft.report_snapshot(to_replica, status);
    }

    /// Lets a snapshot go that has been there for long: it is memory, and its index falls behind.
    pub(super) fn age_snapshot(&mut self) {
        self.snapshot_age_ticks = self.snapshot_age_ticks.saturating_add(1);
        if self.snapshot_age_ticks == SNAPSHOT_AGE_TICKS_MAX {
            self.raft.store().offer_snapshot(None);
        }
    }
}
