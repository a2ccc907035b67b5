//! Log truncation, and the snapshots that it makes necessary.
//!
//! Each replica cuts its own log, up to an applied index that is known to be durable: what was cut
//! can then never be needed to rebuild the state. Some of the applied log stays, so that a follower
//! that was away for a moment needs no snapshot; a leader keeps more for a follower that is behind,
//! up to a bound, beyond which that one gets a snapshot (offer.rs).

use flotilla_mutants::Mutant;
use flotilla_proto::v1;
use raft::StateRole;

use super::{Range, Turn};
use crate::store::{Event, LogItem};

impl Range {
    /// Takes in what is durable by now of what was applied.
    pub(super) fn note_durable(&mut self, turn: &Turn<'_>) {
        while self.applied_marks.front().is_some_and(|(mark, _)| *mark <= turn.shared.durable_sequence) {
            if let Some((_, applied)) = self.applied_marks.pop_front() {
                self.applied_durable = applied;
            }
        }
    }

    /// Cuts the log if enough of it is done with.
    pub(super) fn consider_truncation(&mut self, turn: &mut Turn<'_>) {
        self.note_durable(turn);
        let config = &turn.shared.config;
        let (truncated, _) = self.raft.store().truncated();
        let entries = self.applied.0.saturating_sub(truncated);
        // Twice what is to stay: so that a cut is worth its write.
        let enough = self.raft.store().log_bytes() > config.log_retain_bytes.saturating_mul(2)
            || entries > config.log_retain_entries.saturating_mul(2);
        if !enough || self.installs_snapshot() {
            return;
        }
        let wanted = self.raft.store().truncation_point(config.log_retain_bytes, config.log_retain_entries);
        let allowed = self.applied_durable.min(self.needed_by_followers(turn));
        let index = wanted.min(allowed);
        if index <= truncated || index - truncated < entries / 4 {
            return;
        }
        let Some(removed) = self.raft.mut_store().truncate(index) else { return };
        // Term and vote as they were last written: newer ones belong to the ready state that is held
        // back until they are durable.
        let state = self.state_to_note();
        turn.items.push(LogItem { raft_state: Some(state), remove: vec![removed], ..LogItem::new(self.id) });
        turn.effects.events.push(Event::LogTruncated { range: self.id, index });
    }

    /// Makes durable what is known to be committed: who is left out of the range by it may soon be gone, and with it
    /// the only other one that knows.
    pub(super) fn write_commit(&self, turn: &mut Turn<'_>) {
        if !self.installs_snapshot() && !Mutant::FormerChangeForgotten.is_on() {
            turn.items.push(LogItem { raft_state: Some(self.state_to_note()), ..LogItem::new(self.id) });
        }
    }

    /// The Raft state with what the log writer was given, and no more: entries that Raft got in this turn are not among
    /// it, and never are if the replica is to go.
    fn state_to_note(&self) -> v1::RaftState {
        let log = self.raft.store();
        let (truncated_index, truncated_term) = log.truncated();
        let commit = self.raft.raft.raft_log.committed.min(log.handed_over());
        v1::RaftState { commit, truncated_index, truncated_term, ..self.written_state }
    }

    /// Up to where followers have what they need of this leader's log.
    fn needed_by_followers(&self, turn: &Turn<'_>) -> u64 {
        if self.raft.raft.state != StateRole::Leader {
            return u64::MAX;
        }
        let (mut lowest, mut in_flight) = (u64::MAX, false);
        for (id, progress) in self.raft.raft.prs().iter().filter(|(id, _)| **id != self.replica) {
            let sent = self.snapshots_sent.under_way(*id, turn.now).unwrap_or(0).max(progress.pending_snapshot);
            if progress.matched.max(sent) < lowest {
                (lowest, in_flight) = (progress.matched.max(sent), sent > progress.matched);
            }
        }
        // What a follower needs after its snapshot is kept as long as that costs less than another one.
        let lagging_bytes_max = turn.shared.config.log_lagging_bytes_max;
        let bytes_max = if in_flight { lagging_bytes_max.max(self.size.bytes()) } else { lagging_bytes_max };
        if lowest < u64::MAX && self.raft.store().bytes_above(lowest) > bytes_max { u64::MAX } else { lowest }
    }
}
