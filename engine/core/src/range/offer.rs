//! Snapshots that this replica gives to others: made when Raft asks, offered for a while, sent with patience.
//!
//! ```text
//! Raft wants one ─▶ Effects.snapshots_wanted ─▶ snapshot_made (offered) ─▶ MsgSnapshot ─▶ snapshot_sent
//!        ▲                                                                                     │
//!        └──── not before the pause after the last one to that replica is over ◀────────────────┘
//! ```
//! A snapshot may be lost on its way, or be refused where it arrives, which nothing tells. So the pauses between those
//! to one replica double until it has caught up; a range of a gigabyte is not sent again and again in vain.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use raft::SnapshotStatus;
use raft::eraftpb::Message;

use super::{Range, Turn};
use crate::config::Config;
use crate::store::SnapshotData;
use crate::time::BootTime;

/// Ticks after which a snapshot that nobody took is let go.
const SNAPSHOT_AGE_TICKS_MAX: u32 = 50;
/// Ticks between the first snapshot to a replica and the second; then twice as many, and so on.
const PAUSE_TICKS_MIN: u32 = 2;
/// How often the pause doubles.
const PAUSE_DOUBLINGS_MAX: u32 = 7;
/// Ticks for which the log behind a snapshot is kept for the replica that it was sent to.
const KEPT_TICKS: u32 = 1_200;

/// The snapshots that were sent to each replica in this term.
#[derive(Debug, Default)]
pub(super) struct SnapshotsSent {
    term: u64,
    tries: BTreeMap<u64, Try>,
}

#[derive(Debug)]
struct Try {
    count: u32,
    index: u64,
    next_at: BootTime,
    kept_until: BootTime,
}

impl SnapshotsSent {
    fn note(&mut self, config: &Config, now: BootTime, term: u64, to: u64, index: u64) {
        if self.term != term {
            *self = Self { term, tries: BTreeMap::new() };
        }
        let count = self.tries.get(&to).map_or(0, |before| before.count + 1).min(PAUSE_DOUBLINGS_MAX);
        let ticks = |ticks: u32| -> Duration { config.tick.saturating_mul(ticks) };
        let next_at = now + ticks(PAUSE_TICKS_MIN << count);
        self.tries.insert(to, Try { count, index, next_at, kept_until: now + ticks(KEPT_TICKS) });
    }

    /// Forgets those who have caught up; returns those who are to wait.
    fn waiting(&mut self, now: BootTime, matched: impl Fn(u64) -> Option<u64>) -> BTreeSet<u64> {
        self.tries.retain(|to, of| matched(*to).is_some_and(|matched| matched < of.index));
        self.tries.iter().filter(|(_, of)| now < of.next_at).map(|(to, _)| *to).collect()
    }

    /// The index of a snapshot that a replica may be busy with.
    pub(super) fn under_way(&self, to: u64, now: BootTime) -> Option<u64> {
        self.tries.get(&to).filter(|of| now < of.kept_until).map(|of| of.index)
    }
}

impl Config {
    /// The longest pause between two snapshots to one replica: it may be so long until one that took none for a while, as
    /// another replica was in its way there, gets the next.
    pub fn snapshot_pause_max(&self) -> Duration {
        self.tick.saturating_mul(PAUSE_TICKS_MIN << PAUSE_DOUBLINGS_MAX)
    }
}

impl Range {
    /// A snapshot that was asked for is made, or could not be. One of another epoch would name members that Raft does
    /// not know of: it is made anew.
    pub(crate) fn snapshot_made(&mut self, snapshot: Option<SnapshotData>) {
        self.snapshot_asked = false;
        self.snapshot_age_ticks = 0;
        let current = |made: &SnapshotData| {
            made.header.descriptor.as_ref().is_some_and(|descriptor| descriptor.epoch == self.descriptor.epoch)
        };
        self.raft.store().offer_snapshot(snapshot.filter(current));
    }

    /// The data of a snapshot message; none if it was let go, or replaced by a newer one, since Raft wrote the
    /// message.
    pub(super) fn offered(&mut self, turn: &Turn<'_>, message: &Message) -> Option<SnapshotData> {
        let meta = message.get_snapshot().get_metadata();
        let data = self.raft.store().offered_snapshot()?;
        let applied = data.header.applied?;
        if (applied.index, applied.term) != (meta.index, meta.term) {
            return None;
        }
        self.snapshots_sent.note(&turn.shared.config, turn.now, self.raft.raft.term, message.to, meta.index);
        self.pause_snapshots(turn.now);
        Some(data)
    }

    /// What became of a snapshot message.
    pub(crate) fn snapshot_sent(&mut self, to_replica: u64, ok: bool) {
        let status = if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raft.report_snapshot(to_replica, status);
    }

    /// Time has passed by one tick. A snapshot that has been there for long is let go: it takes memory or disk, and
    /// its index falls behind.
    pub(super) fn age_snapshot(&mut self, now: BootTime) {
        self.snapshot_age_ticks = self.snapshot_age_ticks.saturating_add(1);
        if self.snapshot_age_ticks == SNAPSHOT_AGE_TICKS_MAX {
            self.raft.store().offer_snapshot(None);
        }
        self.pause_snapshots(now);
    }

    fn pause_snapshots(&mut self, now: BootTime) {
        let prs = self.raft.raft.prs();
        let waiting = self.snapshots_sent.waiting(now, |to| prs.get(to).map(|progress| progress.matched));
        self.raft.store().pause_snapshots(waiting);
    }
}
