//! Ends keys whose ttl is over: the leader's part, and the clock it goes by.
//!
//! ```text
//! put with ttl ──▶ entry with the range's time ──▶ apply: deadline = range's time + ttl, into the index
//! leader's time passes the bound ──▶ a pass over the index (expiry.rs) ──▶ keys that end soon, by deadline
//! leader's time passes a deadline ──▶ entry Expire{key, version, the range's time} ──▶ apply: due? then delete
//! ```
//!
//! **The range's time** is a count of milliseconds in its applied state that only entries move forward, by what they
//! carry. A leader's estimate of it is what stood there when the first entry of its own term was applied here, and
//! what its own clock has counted since, divided by 1 + [`crate::config::Config::expiry_clock_drift`]. Before that entry
//! it has no estimate, and carries none. No clock is ever compared with another one's.
//!
//! **Why no key ends early.** Say entry `i` gave a key its deadline, `T(i)` is the range's time after it, `p(i)` the
//! moment at which it was proposed. The key ends by an entry that carries an estimate `E >= T(i) + ttl`, made at a
//! moment `x`. It is to be shown that `E - T(i) <= x - p(i)`: then `x` is at least the ttl behind `p(i)`, which
//! itself is behind the moment at which the client sent the write. Let `f` be the first entry of the term of the
//! leader that made `E`, applied there at the moment `b`; so `E <= T(f) + (x - b)`.
//! - `i` is of this term, proposed after `b`. It carries the leader's own estimate: `T(i) >= T(f) +` what that
//!   clock had counted by then. So `E - T(i)` is what it counted from `p(i)` to `x`.
//! - `i` is of this term, proposed before `b`. Then `T(i) >= T(f)`, so `E - T(i) <= x - b <= x - p(i)`.
//! - `i` is of an earlier term. The leader had it in its log when it was elected, so `p(i) <= b`. `T(f)` is either `T(i)`,
//!   or was carried by an entry `k` between `i` and `f`: an estimate like `E`, made at `p(k)`, and by induction along
//!   the log `T(k) - T(i) <= p(k) - p(i)`. In both cases `E - T(i) <= (p(k) - p(i)) + (x - b) <= x - p(i)`, since
//!   `p(k) <= b`.
//!
//! Times are cut to whole milliseconds: `E - T(i)` may be too large by what was cut from `T(i)`, less than one. (Only where
//! both are of one term; at a term's beginning nothing is cut.) So a key is due when the time is *past* its deadline.
//!
//! A split goes on from the parent's time on both sides, and whoever leads the child does so after the split was
//! proposed: its log is the continuation of the parent's. A merge goes
//! on from the lower time of the two, if both have keys that end (`apply/merge.rs`), for the larger one would be a leap for keys of the other half;
//! and the leader's estimate begins anew there, as with a new term: `b` is then the moment at which it applied the merge, which is
//! behind the freeze, and so behind all that was proposed to either half before.
//!
//! So time in which a range has no leader does not count, nor what a leader's clock had counted since the last entry
//! that carried it: a change of leaders makes a ttl longer, never shorter. To keep that small, a leader that has
//! keys waiting notes the time by an entry of its own, at the latest after a quarter of the time that is left to the
//! next deadline, and every ten minutes.
//!
//! **What is remembered.** Of the keys with a ttl, those that end next: at most [`KEYS_MAX`] of [`KEY_BYTES_MAX`], and
//! none that ends later than [`WINDOW_MS`] from the last pass; with a horizon: every key that ends before it is
//! among them. What is applied meanwhile keeps this true, without a look at the disk. When the time passes the
//! horizon, a pass over the index sets both anew. A new leader begins with nothing and the bound in the applied
//! state for a horizon, so a range none of whose keys is due costs it nothing. What is remembered wrongly does no
//! harm: whether a key is due is decided at apply.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_mutants::Mutant;
use flotilla_proto::v1;

use super::{Range, Turn};
use crate::apply::{EntryResults, ExpiryApplied, ExpiryChange};
use crate::expiry::{Expiring, ExpiringKey, ExpiryFound, ExpiryWanted, KEY_BYTES_MAX, KEYS_MAX};
use crate::store::RangeClock;
use crate::time::BootTime;

/// How far a pass looks ahead.
const WINDOW_MS: u64 = 30_000;
/// Most keys that one entry ends.
const ENTRY_KEYS_MAX: usize = 256;
/// Most bytes of keys in such an entry, but for the first.
const ENTRY_BYTES_MAX: usize = 64 << 10;
/// The time is noted this often at the most, and at the least, while keys wait.
const NOTE_MS: (u64, u64) = (2_000, 600_000);
/// A bound in the applied state that is lower than what is known here is raised this often at the most.
const RAISE_MS: u64 = 10_000;

/// What a replica knows of its range's time and of the keys that end next.
#[derive(Debug)]
pub(super) struct Expiry {
    /// The range's time as it is applied here.
    time_ms: u64,
    /// The bound in the applied state; 0: no key has a ttl.
    bound_ms: u64,
    /// While this replica leads, and has applied an entry of its term.
    reign: Option<Reign>,
    passes: u64,
}

#[derive(Debug)]
struct Reign {
    term: u64,
    /// Of the range's descriptor, when the keys were found.
    version: u64,
    began: BootTime,
    began_ms: u64,
    keys: Keys,
    /// Every key that ends before this is in `keys`.
    horizon_ms: u64,
    pass: Option<RunningPass>,
    resume: Option<Bytes>,
    /// Index of the entry that ends keys, and is not applied yet.
    proposed: Option<u64>,
    noted_ms: u64,
}

/// A pass that has been asked for.
#[derive(Debug)]
struct RunningPass {
    id: u64,
    /// What was applied since, which it may have missed.
    since: Vec<ExpiryChange>,
    /// The lowest deadline among those that there was no room for in `since`.
    missed_ms: u64,
}

/// Keys and when they end.
#[derive(Debug, Default)]
struct Keys {
    by_key: BTreeMap<Bytes, (u64, u64)>,
    by_deadline: BTreeSet<(u64, Bytes)>,
    bytes: usize,
}

impl Keys {
    fn remove(&mut self, key: &Bytes) {
        if let Some((deadline_ms, _)) = self.by_key.remove(key) {
            self.bytes -= key.len();
            self.by_deadline.remove(&(deadline_ms, key.clone()));
        }
    }

    fn insert(&mut self, key: Bytes, deadline_ms: u64, version: u64) {
        self.remove(&key);
        self.bytes += key.len();
        self.by_deadline.insert((deadline_ms, key.clone()));
        self.by_key.insert(key, (deadline_ms, version));
    }

    fn is_too_large(&self) -> bool {
        self.by_key.len() > KEYS_MAX || self.bytes > KEY_BYTES_MAX
    }

    /// Drops the key that ends last; returns when.
    fn drop_last(&mut self) -> Option<u64> {
        let (deadline_ms, key) = self.by_deadline.last().cloned()?;
        self.remove(&key);
        Some(deadline_ms)
    }

    /// Those that are due, as many as go into one entry.
    fn due(&self, now_ms: u64) -> Vec<v1::ExpiringKey> {
        let mut due: Vec<v1::ExpiringKey> = Vec::new();
        let mut bytes = 0;
        for (deadline_ms, key) in &self.by_deadline {
            bytes += key.len();
            let full = due.len() == ENTRY_KEYS_MAX || (bytes > ENTRY_BYTES_MAX && !due.is_empty());
            // At apply it has to be behind.
            if *deadline_ms >= now_ms || full {
                break;
            }
            let version = self.by_key.get(key).map_or(0, |(_, version)| *version);
            due.push(v1::ExpiringKey { key: key.clone(), version });
        }
        due
    }
}

impl Reign {
    fn change(&mut self, change: ExpiryChange) {
        self.keys.remove(&change.key);
        if change.deadline_ms != 0 && change.deadline_ms < self.horizon_ms {
            self.keys.insert(change.key, change.deadline_ms, change.version);
        }
        while self.keys.is_too_large() {
            // There may be others that end when this one does.
            self.horizon_ms = self.keys.drop_last().unwrap_or(self.horizon_ms);
        }
    }

    fn note_change(&mut self, change: &ExpiryChange) {
        let Some(pass) = &mut self.pass else { return };
        if pass.since.len() < KEYS_MAX {
            pass.since.push(change.clone());
        } else if change.deadline_ms != 0 {
            pass.missed_ms = pass.missed_ms.min(change.deadline_ms);
        }
    }

    fn found(&mut self, found: Expiring) {
        let Some(pass) = self.pass.take() else { return };
        self.keys = Keys::default();
        for ExpiringKey { deadline_ms, key, version } in found.keys {
            self.keys.insert(key, deadline_ms, version);
        }
        self.horizon_ms = found.horizon_ms;
        self.resume = found.resume;
        for change in pass.since {
            self.change(change);
        }
        self.horizon_ms = self.horizon_ms.min(pass.missed_ms);
    }

    /// Nothing ends before this but the first `due` keys; 0: nothing ever ends.
    fn next_ms(&self, due: usize) -> u64 {
        let next = self.keys.by_deadline.iter().nth(due).map_or(u64::MAX, |(deadline_ms, _)| *deadline_ms);
        match next.min(self.horizon_ms) {
            u64::MAX => 0,
            // In the middle of several passes nothing is known: a bound that raises none.
            next_ms => next_ms.max(1),
        }
    }

    /// Goes on from the bound in the applied state alone: it holds for all keys, and without one there are none.
    fn forget(&mut self, bound_ms: u64) {
        self.keys = Keys::default();
        self.horizon_ms = if bound_ms == 0 { u64::MAX } else { bound_ms };
        (self.pass, self.resume) = (None, None);
    }
}

impl Expiry {
    /// Of a new replica. The answer to a look of a former one on this store must not be taken for this one's
    /// (tikv#17469): ids of passes begin with the replica's incarnation.
    pub(super) fn new(applied: &v1::AppliedState, incarnation: u64) -> Self {
        let passes = incarnation << 32;
        Self { time_ms: applied.range_time_ms, bound_ms: applied.next_expiry_ms, reign: None, passes }
    }

    /// The range's time, as the leader of this term knows it; `None`: not yet.
    fn estimate(&self, term: u64, now: BootTime, drift: f64) -> Option<u64> {
        let reign = self.reign.as_ref().filter(|reign| reign.term == term)?;
        let drift = if Mutant::TtlWithoutDrift.is_on() { 0.0 } else { drift };
        let counted = now.since(reign.began).div_f64(1.0 + drift).as_millis();
        Some(reign.began_ms.saturating_add(u64::try_from(counted).unwrap_or(u64::MAX)))
    }

    fn begin_reign(&mut self, term: u64, version: u64, now: BootTime) {
        let mut reign = Reign {
            term,
            version,
            began: now,
            began_ms: self.time_ms,
            keys: Keys::default(),
            horizon_ms: 0,
            pass: None,
            resume: None,
            proposed: None,
            noted_ms: self.time_ms,
        };
        reign.forget(self.bound_ms);
        self.reign = Some(reign);
    }

    /// Whether the range's time, or a higher bound, is to be noted in the log.
    fn wants_note(&self, reign: &Reign, now_ms: u64) -> bool {
        let next_ms = reign.next_ms(0);
        let quarter = if next_ms == 0 { NOTE_MS.1 } else { next_ms.saturating_sub(now_ms) / 4 };
        let late = now_ms.saturating_sub(self.time_ms) >= quarter.clamp(NOTE_MS.0, NOTE_MS.1);
        let low = self.bound_ms <= now_ms && (next_ms == 0 || next_ms > now_ms);
        self.bound_ms != 0 && (late || low && now_ms.saturating_sub(reign.noted_ms) >= RAISE_MS)
    }

    /// Whether nothing is under way, and what comes next is known by the bound alone.
    pub(super) fn is_idle(&self) -> bool {
        let idle = |reign: &Reign| reign.proposed.is_none() && reign.pass.is_none() && reign.resume.is_none();
        self.reign.as_ref().map_or(self.bound_ms == 0, idle)
    }

    /// When a leader that knows no more than the bound has something to do: a key may be due, or the time is to be noted.
    pub(super) fn next_alarm(&self, drift: f64) -> Option<BootTime> {
        let reign = self.reign.as_ref().filter(|_| self.bound_ms != 0)?;
        // When a quarter of what is then left to the bound has passed since the time was noted.
        let quarter = self.bound_ms.saturating_sub(self.time_ms) / 5;
        let note_ms = self.time_ms.saturating_add(quarter.clamp(NOTE_MS.0, NOTE_MS.1));
        let left_ms = self.bound_ms.min(note_ms).saturating_sub(reign.began_ms);
        Some(reign.began + Duration::from_millis(left_ms.saturating_add(1)).mul_f64(1.0 + drift))
    }

    pub(super) fn time_ms(&self) -> u64 {
        self.time_ms
    }

    pub(super) fn bound_ms(&self) -> u64 {
        self.bound_ms
    }

    /// When the leader began to count, and from what on.
    pub(super) fn reign_began(&self) -> Option<(BootTime, u64)> {
        self.reign.as_ref().map(|reign| (reign.began, reign.began_ms))
    }

    /// The leader of this term counts on, and knows of its keys what the bound says.
    pub(super) fn lead_on(&mut self, term: u64, version: u64, began: Option<(BootTime, u64)>) {
        let Some((began, began_ms)) = began else { return };
        self.begin_reign(term, version, began);
        if let Some(reign) = &mut self.reign {
            reign.began_ms = began_ms;
        }
    }

    fn clock(&self) -> RangeClock {
        match &self.reign {
            Some(reign) => RangeClock { ms: reign.began_ms, at: reign.began },
            None => RangeClock { ms: self.time_ms, at: BootTime(u64::MAX) },
        }
    }
}

impl Range {
    /// What a command that is proposed now says of the range's time; 0: nothing.
    pub(super) fn carried_time(&self, turn: &Turn<'_>, requests: &[v1::WriteRequest]) -> u64 {
        // A range without keys that end has no need of a time.
        if self.expiry.bound_ms == 0 && !requests.iter().flat_map(|request| &request.ops).any(has_ttl) {
            return 0;
        }
        self.range_time(turn).unwrap_or(0)
    }

    /// What the range's time will be where a merge that is proposed now is applied; 0: it needs none, for no key ends. A key
    /// that does may stand in the log still.
    pub(super) fn time_at_merge(&self, turn: &Turn<'_>) -> u64 {
        let all_applied = self.raft.raft.raft_log.last_index() == self.applied.0;
        if self.expiry.bound_ms == 0 && all_applied { 0 } else { self.range_time(turn).unwrap_or(0) }
    }

    fn range_time(&self, turn: &Turn<'_>) -> Option<u64> {
        self.expiry.estimate(self.term(), turn.now, turn.shared.config.expiry_clock_drift)
    }

    /// The range's time for readers.
    pub(super) fn range_clock(&self) -> RangeClock {
        self.expiry.clock()
    }

    /// The time that is applied is not the one that this leader's estimate began with.
    pub(super) fn forget_time(&mut self) {
        self.expiry.reign = None;
    }

    /// Takes in what was applied, before its results are given to those who wait for them.
    pub(super) fn expiry_applied(
        &mut self,
        turn: &Turn<'_>,
        done: ExpiryApplied,
        index: u64,
        results: &[EntryResults],
    ) {
        self.expiry.time_ms = done.range_time_ms;
        self.expiry.bound_ms = done.next_expiry_ms;
        let (term, version) = (self.term(), self.descriptor.epoch.unwrap_or_default().version);
        let serves = self.serves();
        let Some(reign) = self.expiry.reign.as_mut().filter(|reign| serves && reign.term == term) else {
            self.expiry.reign = None;
            if serves {
                self.expiry.begin_reign(term, version, turn.now);
            }
            return;
        };
        for change in done.changes {
            reign.note_change(&change);
            reign.change(change);
        }
        let ended = reign.proposed.take_if(|proposed| *proposed <= index);
        let refused = ended.is_some_and(|ended| {
            let own = results.iter().find(|of| of.index == ended);
            own.is_none_or(|own| own.requests.is_err())
        });
        if refused || reign.version != version {
            // What was to end may be there still, or be another range's.
            reign.version = version;
            reign.forget(done.next_expiry_ms);
        }
    }

    /// Ends what is due, and finds out what will be. As often as time passes or an entry was applied.
    pub(super) fn pursue_expiry(&mut self, turn: &mut Turn<'_>) {
        let handing_over = self.raft.raft.lead_transferee.is_some() || turn.shared.draining;
        if !self.serves() || handing_over || self.holds_writes_back() || self.is_doomed() {
            return;
        }
        let Some(now_ms) = self.range_time(turn) else { return };
        let Some(reign) = self.expiry.reign.as_ref().filter(|reign| reign.proposed.is_none()) else { return };
        let keys = reign.keys.due(now_ms);
        if !keys.is_empty() || self.expiry.wants_note(reign, now_ms) {
            self.propose_expire(keys, now_ms);
        } else if now_ms >= reign.horizon_ms && reign.pass.is_none() {
            self.ask_for_expiring(turn, now_ms);
        }
    }

    fn propose_expire(&mut self, keys: Vec<v1::ExpiringKey>, now_ms: u64) {
        let Some(next_expiry_ms) = self.expiry.reign.as_ref().map(|reign| reign.next_ms(keys.len())) else { return };
        let expire = v1::Expire { keys: keys.clone(), next_expiry_ms, seen_index: self.applied.0 };
        let command = v1::Command { range_time_ms: now_ms, expire: Some(expire), ..Default::default() };
        if self.propose_stamped(self.term(), command).is_err() {
            // No room now: the next tick tries again.
            return;
        }
        let index = self.raft.raft.raft_log.last_index();
        let Some(reign) = &mut self.expiry.reign else { return };
        keys.iter().for_each(|due| reign.keys.remove(&due.key));
        reign.proposed = Some(index);
        reign.noted_ms = now_ms;
    }

    fn ask_for_expiring(&mut self, turn: &mut Turn<'_>, now_ms: u64) {
        self.expiry.passes += 1;
        let id = self.expiry.passes;
        let Some(reign) = &mut self.expiry.reign else { return };
        reign.pass = Some(RunningPass { id, since: Vec::new(), missed_ms: u64::MAX });
        turn.effects.expiries_wanted.push(ExpiryWanted {
            descriptor: Arc::clone(&self.descriptor),
            id,
            now_ms,
            until_ms: now_ms.saturating_add(WINDOW_MS),
            from: reign.resume.take(),
        });
    }

    /// The answer to a pass over the index.
    pub(crate) fn expiries_found(&mut self, turn: &mut Turn<'_>, answer: ExpiryFound) {
        let Some(reign) = &mut self.expiry.reign else { return };
        if reign.pass.as_ref().is_none_or(|pass| pass.id != answer.id) {
            return;
        }
        match answer.found {
            Some(found) => reign.found(found),
            // The next tick asks again.
            None => reign.pass = None,
        }
        self.pursue_expiry(turn);
    }
}

fn has_ttl(op: &v1::WriteOp) -> bool {
    use v1::write_op::Op;
    match &op.op {
        Some(Op::Put(put)) => put.ttl_ms != 0,
        Some(Op::CompareAndSwap(swap)) => swap.ttl_ms != 0,
        _ => false,
    }
}
