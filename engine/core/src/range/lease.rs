//! The leader's lease: until when it may answer reads alone.
//!
//! Every message that a leader sends carries its clock (a stamp); a follower, when it answers, returns
//! the newest stamp it has heard from the leader of this term. Hearing it reset the follower's election
//! timer, and check-quorum makes a follower refuse every candidate until that timer has run for the
//! shortest election time-out. So when a quorum has returned stamps not older than `s`, no other leader
//! can be elected before the shortest election time-out has passed since `s`: the lease runs until
//! `s` plus [`crate::config::Config::lease`], which is shorter by the drift allowed between clocks and by
//! one tick (Raft thesis, 6.4.1; only the leader's own clock is ever compared with itself).
//!
//! What would break the promise ends the lease first:
//! - a leader that sends MsgTimeoutNow tells a follower to ignore its timer: no lease in the rest of
//!   that term, even if Raft gives the transfer up, for the message may arrive later;
//! - a change of the voters: what the former ones promised does not bind the new ones (`change.rs`); in a joint
//!   configuration both sets must grant it;
//! - an answer of a higher term would make a follower forget its leader, and with it the promise: such a one is not heard
//!   (`received.rs`);
//! - a store that restarts has forgotten its timers: it grants no vote for one maximal lease plus drift
//!   (in `super`).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::time::BootTime;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Lease {
    term: u64,
    void: bool,
    /// What was sent before counts for nothing.
    floor: BootTime,
    acks: BTreeMap<u64, BootTime>,
    until: BootTime,
    /// More was acknowledged since it was last drawn.
    to_be_drawn: bool,
}

impl Lease {
    /// This replica leads in `term` now, and holds no lease yet.
    pub(crate) fn begin(&mut self, term: u64) {
        *self = Self { term, ..Self::default() };
    }

    /// This replica no longer leads.
    pub(crate) fn end(&mut self) {
        self.acks.clear();
        self.until = BootTime::default();
    }

    /// No lease in the rest of this term.
    pub(crate) fn void(&mut self) {
        self.void = true;
        self.end();
    }

    /// Whether there is none in the rest of this term.
    pub(crate) fn is_void(&self) -> bool {
        self.void
    }

    /// The voters have changed: only what they acknowledge of messages sent from `now` on counts.
    pub(crate) fn restart(&mut self, now: BootTime) {
        self.floor = now;
        self.end();
    }

    /// A follower has heard what was sent at `stamp`.
    pub(crate) fn acknowledged(&mut self, replica: u64, term: u64, stamp: BootTime) {
        if term == self.term && stamp >= self.floor {
            let newest = self.acks.entry(replica).or_default();
            *newest = stamp.max(*newest);
            self.to_be_drawn = true;
        }
    }

    /// Whether [`Lease::renew`] may find it to run longer than before.
    pub(crate) fn is_to_be_drawn(&self) -> bool {
        self.to_be_drawn
    }

    /// Draws the lease anew from what `voters`, `own` among them, have acknowledged; in a joint configuration the
    /// old voters as well.
    pub(crate) fn renew(&mut self, now: BootTime, sets: [&[u64]; 2], own: u64, lease: Duration) {
        self.to_be_drawn = false;
        if self.void {
            return;
        }
        let quorums =
            sets.into_iter().filter(|voters| !voters.is_empty()).map(|voters| self.quorum_stamp(now, voters, own));
        let oldest = quorums.min().unwrap_or_default();
        if oldest > BootTime::default() {
            self.until = self.until.max(oldest + lease);
        }
    }

    /// The newest stamp that a quorum of `voters` has acknowledged.
    fn quorum_stamp(&self, now: BootTime, voters: &[u64], own: u64) -> BootTime {
        let stamp_of = |voter: &u64| {
            if *voter == own { now } else { self.acks.get(voter).copied().unwrap_or_default().min(now) }
        };
        let mut stamps: Vec<BootTime> = voters.iter().map(stamp_of).collect();
        stamps.sort_unstable_by(|a, b| b.cmp(a));
        stamps[stamps.len() / 2]
    }

    /// Until when the lease runs; zero: there is none.
    pub(crate) fn until(&self) -> BootTime {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_nanos(800);
    const NONE: BootTime = BootTime(0);

    fn led(term: u64) -> Lease {
        let mut lease = Lease::default();
        lease.begin(term);
        lease
    }

    #[test]
    fn a_quorum_extends_the_lease_from_when_it_was_asked() {
        let mut lease = led(6);
        lease.renew(BootTime(1_000), [&[1, 2, 3], &[]], 1, LEASE);
        assert_eq!(lease.until(), NONE);
        lease.acknowledged(2, 6, BootTime(900));
        lease.renew(BootTime(1_000), [&[1, 2, 3], &[]], 1, LEASE);
        assert_eq!(lease.until(), BootTime(1_700));
    }

    #[test]
    fn with_five_voters_two_followers_are_needed() {
        let mut lease = led(6);
        lease.acknowledged(2, 6, BootTime(900));
        lease.renew(BootTime(1_000), [&[1, 2, 3, 4, 5], &[]], 1, LEASE);
        assert_eq!(lease.until(), NONE);
        lease.acknowledged(5, 6, BootTime(850));
        lease.renew(BootTime(1_000), [&[1, 2, 3, 4, 5], &[]], 1, LEASE);
        assert_eq!(lease.until(), BootTime(1_650));
    }

    #[test]
    fn another_terms_acknowledgement_counts_for_nothing() {
        let mut lease = led(7);
        lease.acknowledged(2, 6, BootTime(900));
        lease.renew(BootTime(1_000), [&[1, 2, 3], &[]], 1, LEASE);
        assert_eq!(lease.until(), NONE);
    }

    #[test]
    fn a_void_lease_stays_void_for_the_term() {
        let mut lease = led(6);
        lease.void();
        lease.acknowledged(2, 6, BootTime(900));
        lease.renew(BootTime(1_000), [&[1, 2, 3], &[]], 1, LEASE);
        assert_eq!(lease.until(), NONE);
        lease.begin(7);
        lease.acknowledged(2, 7, BootTime(900));
        lease.renew(BootTime(1_000), [&[1, 2, 3], &[]], 1, LEASE);
        assert_eq!(lease.until(), BootTime(1_700));
    }

    #[test]
    fn both_halves_of_a_joint_configuration_must_grant_it_and_the_past_does_not_count() {
        let mut lease = led(6);
        lease.acknowledged(2, 6, BootTime(900));
        lease.renew(BootTime(1_000), [&[1, 2, 3], &[]], 1, LEASE);
        lease.restart(BootTime(1_000));
        assert_eq!(lease.until(), NONE);
        lease.acknowledged(2, 6, BootTime(950));
        lease.renew(BootTime(1_100), [&[1, 2, 4], &[1, 2, 3]], 1, LEASE);
        assert_eq!(lease.until(), NONE, "it was sent before the change");
        lease.acknowledged(4, 6, BootTime(1_050));
        lease.renew(BootTime(1_100), [&[1, 2, 4], &[1, 2, 3]], 1, LEASE);
        assert_eq!(lease.until(), NONE, "the old voters have not granted it");
        lease.acknowledged(3, 6, BootTime(1_060));
        lease.renew(BootTime(1_100), [&[1, 2, 4], &[1, 2, 3]], 1, LEASE);
        assert_eq!(lease.until(), BootTime(1_850));
    }

    #[test]
    fn a_single_voter_is_its_own_quorum() {
        let mut lease = led(6);
        lease.renew(BootTime(1_000), [&[1], &[]], 1, LEASE);
        assert_eq!(lease.until(), BootTime(1_800));
    }
}
