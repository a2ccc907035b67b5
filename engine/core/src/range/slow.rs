//! A node that is slow leads nothing while others can ([`crate::health`]).
//!
//! - What it leads is handed over to voters that are level, heard of, and on nodes that are not slow: a bounded number of
//!   ranges with each tick, and a range whose transfer failed waits longer before each further attempt, because it has
//!   no lease in the rest of its term. Where there is no such voter, it leads on.
//! - It campaigns as a last resort only, three time-outs after it last heard of a leader: by then every other voter
//!   has had its turn. Its promise to the last leader runs out as ever.
//! - It does not follow a leader's word to lead while another voter is on a node that is well; that leader asks another one.
//!
//! All of it is about when somebody campaigns, which Raft leaves free: nothing here can harm but by waiting.

use std::cell::Cell;

use super::{Range, Turn};

/// A slow node campaigns after so many of the shortest election time-outs without a leader.
const LAST_RESORT_TIMEOUTS: usize = 3;
/// After so many failed transfers the pause before the next one grows no more.
const PATIENCE_GROWS_TO: u32 = 4;

impl Range {
    /// Whether this replica, which does not lead, lets the others campaign first because its node is slow.
    pub(super) fn lets_others_lead(&self, turn: &Turn<'_>) -> bool {
        let waited = self.raft.raft.election_elapsed;
        turn.shared.health.is_slow()
            && self.voters != [self.replica]
            && waited < LAST_RESORT_TIMEOUTS * turn.shared.config.election_ticks
    }

    /// Hands the range over because this node is slow, if somebody else can lead it; takes one off `budget` if it does.
    pub(crate) fn leave_to_faster(&mut self, turn: &Turn<'_>, budget: &Cell<usize>) {
        if budget.get() == 0 || !self.leads() || self.raft.raft.lead_transferee.is_some() {
            return;
        }
        if !self.may_ask_again(turn) {
            return;
        }
        let fit = |id: &u64| !self.is_slow_there(turn, *id) && self.is_level(*id);
        if let Some(target) = self.best_voter(turn, fit) {
            budget.set(budget.get() - 1);
            self.begin_hand_over(turn, target);
        }
    }

    /// Whether it leads on a slow node while a voter is on one that is well: it does not fall asleep before it has
    /// been handed over.
    pub(super) fn is_to_leave(&self, turn: &Turn<'_>) -> bool {
        let shared = &turn.shared;
        let others = self.voters.iter().filter(|id| **id != self.replica).filter_map(|id| self.node_of(*id));
        shared.health.is_slow() && shared.could_lead(turn.now, others)
    }

    /// Whether a replica is on a node that said lately that it is slow.
    pub(super) fn is_slow_there(&self, turn: &Turn<'_>, replica: u64) -> bool {
        self.node_of(replica).is_some_and(|node| turn.shared.health.is_slow_there(turn.now, node))
    }

    /// Whether this leader may ask somebody to take over again: after attempts that failed it waits, because during each
    /// no write gets through.
    pub(super) fn may_ask_again(&self, turn: &Turn<'_>) -> bool {
        let attempts: u32 = self.hand_overs.values().sum();
        let pause = turn.shared.config.election_timeout() * attempts.min(PATIENCE_GROWS_TO);
        attempts == 0 || turn.now.since(self.handed_over_at) >= pause
    }

    /// Whether this replica may say no to a leader that wants it to lead: its node is slow, and another voter is there
    /// that is not.
    pub(super) fn refuses_to_lead(&self, turn: &Turn<'_>, leader: u64) -> bool {
        let health = &turn.shared.health;
        let other = |id: &&u64| **id != self.replica && **id != leader;
        let mut others = self.voters.iter().filter(other).filter_map(|id| self.node_of(*id));
        health.is_slow() && others.any(|node| health.is_well_there(turn.now, node))
    }
}
