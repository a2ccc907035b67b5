//! How raft-rs is set up for a replica, and why not with its defaults; what else a replica begins with.

use std::sync::Arc;

use flotilla_mutants::Mutant;
use raft::ReadOnlyOption;

use super::{Shared, is_alone};
use crate::bootstrap::INITIAL_TERM;
use crate::config::Config;
use crate::recover::RangeBoot;
use crate::store::{RangeClock, ReadView};
use crate::time::BootTime;

pub(super) fn raft_config(config: &Config, replica: u64, boot: &RangeBoot) -> raft::Config {
    raft::Config {
        id: replica,
        election_tick: config.election_ticks,
        heartbeat_tick: config.heartbeat_ticks(),
        applied: boot.applied.index,
        max_size_per_msg: config.message_bytes_max,
        max_inflight_msgs: config.inflight_messages_max,
        check_quorum: true,
        pre_vote: true,
        read_only_option: ReadOnlyOption::Safe,
        // raft-rs 0.7.0 joins new entries to an empty append that is on its way out, whatever index that one
        // stands at: the follower then takes what it already has for the entries behind it, and
        // acknowledges entries it never got.
        batch_append: false,
        // Followers learn what is committed from the next append or heartbeat: an empty append to tell it at once
        // would double the messages of a range with one write under way.
        skip_bcast_commit: true,
        // raft-rs refuses to start with less than one message.
        max_uncommitted_size: (config.range_proposal_bytes_max as u64 * 2).max(config.message_bytes_max),
        max_committed_size_per_ready: 1 << 20,
        ..Default::default()
    }
}

/// raft-rs wants a logger; what matters leaves as events.
pub(super) fn discard() -> slog::Logger {
    slog::Logger::root(slog::Discard, slog::o!())
}

/// Until when a replica that begins with a process, or with a range, grants no vote.
pub(super) fn silence(shared: &Shared, boot: &RangeBoot, replica: u64, now: BootTime) -> BootTime {
    // A replica that never heard of a leader has promised nothing to one.
    let promised = boot.raft.term > INITIAL_TERM || boot.raft.vote != 0;
    // Its own promise alone never lets another lead.
    let silent = promised && !is_alone(boot, replica) && !Mutant::VotesAfterRestart.is_on();
    if silent { now + shared.config.vote_silence() } else { BootTime::default() }
}

/// What readers may know of a replica that begins, as the newest incarnation.
pub(super) fn initial_view(shared: &Shared, boot: &RangeBoot) -> ReadView {
    ReadView {
        own_node: shared.node,
        descriptor: boot.descriptor.clone(),
        siblings: Arc::default(),
        term: boot.raft.term,
        leader: None,
        serves: false,
        asleep: false,
        lease_until: BootTime::default(),
        clock: RangeClock { ms: boot.applied.range_time_ms, at: BootTime(u64::MAX) },
        incarnation: shared.incarnations,
        tally: None,
        frozen: boot.merge.as_ref().is_some_and(|merge| merge.frozen.is_some()),
    }
}
