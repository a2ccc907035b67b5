//! The core's settings: all that bends its behaviour, declared in one place; and to what extremes a simulation may bend
//! it ([`KNOBS`]), so that it comes into branches which sensible values hardly ever reach.

use std::time::Duration;

/// How long leases, elections and heartbeats take, and how much may be under way.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Time between two ticks.
    pub tick: Duration,
    /// Shortest election time-out, in ticks; the longest is just below twice this.
    pub election_ticks: usize,
    /// How long a leader may serve reads after a quorum heard from it. Together with
    /// [`Config::clock_drift`] it must stay below the shortest election time-out less one tick.
    pub lease: Duration,
    /// By how much two nodes' clocks may run apart, as a fraction.
    pub clock_drift: f64,
    /// By how much a leader's clock may run fast while a ttl runs, as a fraction: so much later a key ends. The kernel
    /// lets time daemons speed a clock up by 500 parts per million for good; an offset that they make good by a faster
    /// pace comes on top, once.
    pub expiry_clock_drift: f64,
    /// Whether reads at the leader use the lease, or each pays a round to a quorum.
    pub read_mode: ReadMode,
    /// Bytes of proposals under way in one range, beyond which new ones are refused.
    pub range_proposal_bytes_max: usize,
    /// Bytes of proposals under way on the node, beyond which new ones are refused.
    pub node_proposal_bytes_max: usize,
    /// Largest Raft entry that requests are gathered into, in bytes. A single request may be larger.
    pub entry_bytes_target: usize,
    /// Largest message of entries, in bytes.
    pub message_bytes_max: u64,
    /// Messages of entries to one follower that may be unanswered.
    pub inflight_messages_max: usize,
    /// Bytes of applied log that a replica keeps so that a follower that was away for a moment needs
    /// no snapshot.
    pub log_retain_bytes: u64,
    /// Entries of applied log that a replica keeps at most, whatever their size.
    pub log_retain_entries: u64,
    /// Bytes of log that a leader keeps for a follower that is behind; beyond, it gets a snapshot.
    pub log_lagging_bytes_max: u64,
    /// Bytes of entries cached per range beyond those that are not applied.
    pub cache_bytes_max: usize,
    /// Bytes of committed entries that may wait for the apply stage, per range.
    pub apply_bytes_max: usize,
    /// A follower that lacks at most so many committed entries counts as level: it may become a voter.
    pub level_lag_entries: u64,
    /// Bytes of keys and values up to which a snapshot is held in memory and written in one batch; a larger one goes
    /// through files.
    pub snapshot_batch_bytes_max: usize,
    /// Size of the files that a larger one is cut into.
    pub snapshot_file_bytes: u64,
    /// A range with nothing to do falls asleep after so many ticks; 0: never.
    pub idle_ticks: usize,
    /// Most sleeping ranges that are woken with one tick because their leader's node is dead, or not known: what a request
    /// or a message wakes does not count.
    pub wakes_per_tick: usize,
    /// Names this run of the process: another one each time.
    pub boot_id: u64,
    /// Seed of everything random.
    pub seed: u64,
}

/// How a leader makes sure that it still leads before it answers a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadMode {
    /// By its lease; without one, by a round to a quorum.
    Lease,
    /// By a round to a quorum (ReadIndex, Raft thesis 6.4).
    Quorum,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(100),
            election_ticks: 10,
            lease: Duration::from_millis(800),
            clock_drift: 0.1,
            expiry_clock_drift: 0.0005,
            read_mode: ReadMode::Lease,
            range_proposal_bytes_max: 16 << 20,
            node_proposal_bytes_max: 64 << 20,
            entry_bytes_target: 256 << 10,
            message_bytes_max: 1 << 20,
            inflight_messages_max: 32,
            log_retain_bytes: 1 << 20,
            log_retain_entries: 10_000,
            log_lagging_bytes_max: 64 << 20,
            cache_bytes_max: 256 << 10,
            apply_bytes_max: 16 << 20,
            level_lag_entries: 128,
            snapshot_batch_bytes_max: 4 << 20,
            snapshot_file_bytes: 64 << 20,
            idle_ticks: 20,
            wakes_per_tick: 200,
            boot_id: 1,
            seed: 0,
        }
    }
}

/// A setting that a simulation may bend, or several that go together.
#[derive(Clone, Copy, Debug)]
pub struct Knob {
    /// The setting.
    pub name: &'static str,
    /// In how many runs of a thousand it is to be bent.
    pub per_mille: u64,
    /// How many extremes there are.
    pub extremes: usize,
    /// Bends it to one of these, counted from 0.
    pub bend: fn(&mut Config, usize),
}

/// `name: so many of 1,000 runs [extremes]`; one that comes twice comes twice as often.
macro_rules! knobs {
    ($($($field:ident),+: $per_mille:literal [$($extreme:expr),+ $(,)?]),+ $(,)?) => {
        &[$(Knob {
            name: stringify!($($field),+),
            per_mille: $per_mille,
            extremes: [$($extreme),+].len(),
            bend: |config, nth| ($(config.$field),+) = [$($extreme),+][nth % [$($extreme),+].len()],
        }),+]
    };
}

const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// All knobs. Whichever are bent, and to whatever extremes, [`Config::check`] finds nothing wrong.
pub const KNOBS: &[Knob] = knobs! {
    tick, election_ticks, lease: 500 [
        (ms(50), 10, ms(390)),
        (ms(50), 10, ms(390)),
        (ms(100), 5, ms(150)),
        (ms(100), 5, ms(350)),
    ],
    read_mode: 250 [ReadMode::Quorum],
    range_proposal_bytes_max: 300 [100, 400, 2_000],
    node_proposal_bytes_max: 200 [300, 2_000],
    entry_bytes_target: 300 [1],
    message_bytes_max: 300 [0, 64, 512],
    inflight_messages_max: 300 [1, 2, 4],
    log_retain_bytes: 300 [600],
    log_retain_entries: 500 [10],
    log_lagging_bytes_max: 600 [200, 2_000, 20_000],
    cache_bytes_max: 400 [0, 100, 1_000],
    apply_bytes_max: 300 [1, 200, 2_000],
    level_lag_entries: 500 [0, 5],
    snapshot_batch_bytes_max: 300 [0, 200],
    snapshot_file_bytes: 700 [100, 1_000, 1 << 20],
    idle_ticks: 850 [0, 1, 1, 2, 3, 6],
    wakes_per_tick: 750 [1, 1, 3],
};

impl Config {
    /// One maximal lease plus drift: how long a store grants no vote after its process started,
    /// because it may have promised its silence to a leader before.
    pub fn vote_silence(&self) -> Duration {
        self.lease.mul_f64(1.0 + self.clock_drift)
    }

    /// A leader that has no news is heard of so often: every so many ticks.
    pub fn heartbeat_ticks(&self) -> usize {
        (self.election_ticks / 3).max(1)
    }

    /// The shortest election time-out.
    pub fn election_timeout(&self) -> Duration {
        self.tick.saturating_mul(u32::try_from(self.election_ticks).unwrap_or(u32::MAX))
    }

    /// What is wrong with these settings, if anything.
    pub fn check(&self) -> Result<(), String> {
        let ticks = u32::try_from(self.election_ticks.saturating_sub(1)).unwrap_or(u32::MAX);
        let election_min = self.tick.saturating_mul(ticks);
        if self.election_ticks < 2 {
            return Err("the election time-out must be at least two heartbeats".into());
        }
        if self.idle_ticks > 0 && (self.boot_id == 0 || self.wakes_per_tick == 0) {
            return Err("ranges that sleep need a boot id, and must be woken: wakes_per_tick must not be 0".into());
        }
        if self.vote_silence() >= election_min {
            return Err(format!(
                "a lease of {:?} with a clock drift of {} does not fit into the shortest election time-out less one tick ({election_min:?})",
                self.lease, self.clock_drift
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_extreme_of_every_knob_is_allowed() {
        for knob in KNOBS {
            for nth in 0..knob.extremes {
                let mut config = Config::default();
                (knob.bend)(&mut config, nth);
                assert_eq!(config.check(), Ok(()), "{} {nth}", knob.name);
            }
        }
    }

    #[test]
    fn all_knobs_may_be_bent_at_once() {
        for nth in 0..6 {
            let mut config = Config::default();
            KNOBS.iter().for_each(|knob| (knob.bend)(&mut config, nth));
            assert_eq!(config.check(), Ok(()), "{nth}");
        }
    }
}
