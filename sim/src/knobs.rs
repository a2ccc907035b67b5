//! What one run is made of, drawn from its seed: sizes, limits, speeds. Extremes on purpose: tiny logs,
//! entries of one request, tiny limits, slow apply.

use std::time::Duration;

use flotilla_engine::config::{Config, ReadMode};

use crate::clock::{Nanos, ms, us};
use crate::rng::Rng;

/// How the network treats what is sent over it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NetworkKnobs {
    pub loss_per_mille: u64,
    pub duplicate_per_mille: u64,
    pub delay: Nanos,
    /// Messages that take very long, and how long.
    pub straggler_per_mille: u64,
    pub straggler_delay: Nanos,
    /// Answers to clients that are lost on their way.
    pub answer_loss_per_mille: u64,
    /// Whether the messages of one link keep their order.
    pub ordered: bool,
}

impl NetworkKnobs {
    /// A network that does no wrong.
    pub(crate) fn calm() -> Self {
        Self {
            loss_per_mille: 0,
            duplicate_per_mille: 0,
            delay: us(300),
            straggler_per_mille: 0,
            straggler_delay: 0,
            answer_loss_per_mille: 0,
            ordered: true,
        }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Knobs {
    pub seed: u64,
    pub nodes: usize,
    pub ranges: u32,
    pub replicas: usize,
    pub config: Config,
    pub network: NetworkKnobs,
    pub sync: Nanos,
    /// Between a batch's arrival at the log writer and its write.
    pub write_delay: Nanos,
    pub apply_delay: Nanos,
    /// Between a read's two checks.
    pub read_delay: Nanos,
    pub clients: usize,
    pub think: Nanos,
    pub hot_keys: usize,
    pub cold_keys: usize,
    /// Keeps reads, transfers of leadership and little else coming.
    pub transfer_storm: bool,
    /// Faults come until then; the rest of the run is the healing.
    pub duration: Nanos,
    /// Mean time between two faults; 0: none.
    pub fault_every: Nanos,
}

impl Knobs {
    pub(crate) fn draw(seed: u64) -> Self {
        let rng = &mut Rng::new(seed, 1);
        let nodes = if rng.chance(700) { 3 } else { 5 };
        let replicas = if nodes == 5 && rng.chance(500) { 5 } else { 3 };
        let transfer_storm = rng.chance(200);
        let apply_delay = if rng.chance(500) { 0 } else { rng.pick(&[us(200), ms(5), ms(60)]) };
        Self {
            seed,
            nodes,
            ranges: rng.pick(&[1, 1, 2, 3, 4, 8, 16]),
            replicas,
            config: config(seed, rng),
            network: network(rng),
            sync: rng.pick(&[us(150), us(150), ms(2), ms(20)]),
            write_delay: rng.pick(&[0, 0, us(50), ms(4)]),
            apply_delay,
            read_delay: rng.pick(&[us(5), us(200), ms(8), ms(120)]),
            clients: rng.pick(&[3, 4, 6, 8, 16]),
            think: rng.pick(&[ms(3), ms(12), ms(40)]),
            hot_keys: rng.between(1, 4) as usize,
            cold_keys: 16,
            transfer_storm,
            duration: rng.between(ms(14_000), ms(32_000)),
            fault_every: if transfer_storm { ms(900) } else { rng.pick(&[ms(700), ms(1_500), ms(3_000)]) },
        }
    }

    /// A cluster that nothing happens to, for scenarios.
    #[cfg(test)]
    pub(crate) fn calm(seed: u64) -> Self {
        Self {
            seed,
            nodes: 3,
            ranges: 1,
            replicas: 3,
            config: Config { seed, expiry_clock_drift: Config::default().clock_drift, ..Config::default() },
            network: NetworkKnobs::calm(),
            sync: us(150),
            write_delay: 0,
            apply_delay: 0,
            read_delay: us(5),
            clients: 0,
            think: ms(5),
            hot_keys: 1,
            cold_keys: 4,
            transfer_storm: false,
            duration: ms(3_600_000),
            fault_every: 0,
        }
    }

    /// The longest election time-out.
    pub(crate) fn election_timeout_max(&self) -> Nanos {
        crate::clock::nanos(self.config.tick) * 2 * self.config.election_ticks as u64
    }
}

fn config(seed: u64, rng: &mut Rng) -> Config {
    let mut config =
        Config { seed: seed ^ 0xF107_111A, expiry_clock_drift: Config::default().clock_drift, ..Config::default() };
    match rng.below(4) {
        0 => {
            config.tick = Duration::from_millis(50);
            config.lease = Duration::from_millis(390);
        }
        1 => {
            config.election_ticks = 5;
            config.lease = Duration::from_millis(rng.between(150, 350));
        }
        _ => {}
    }
    if rng.chance(250) {
        config.read_mode = ReadMode::Quorum;
    }
    if rng.chance(500) {
        config.log_retain_entries = 10;
    }
    if rng.chance(300) {
        config.log_retain_bytes = 600;
    }
    if rng.chance(600) {
        config.log_lagging_bytes_max = rng.pick(&[200, 2_000, 20_000]);
    }
    if rng.chance(300) {
        config.entry_bytes_target = 1;
    }
    if rng.chance(300) {
        config.message_bytes_max = rng.pick(&[0, 64, 512]);
    }
    if rng.chance(300) {
        config.inflight_messages_max = rng.pick(&[1, 2, 4]);
    }
    if rng.chance(300) {
        config.range_proposal_bytes_max = rng.pick(&[100, 400, 2_000]);
    }
    if rng.chance(200) {
        config.node_proposal_bytes_max = rng.pick(&[300, 2_000]);
    }
    if rng.chance(400) {
        config.cache_bytes_max = rng.pick(&[0, 100, 1_000]);
    }
    if rng.chance(300) {
        config.apply_bytes_max = rng.pick(&[1, 200, 2_000]);
    }
    config
}

fn network(rng: &mut Rng) -> NetworkKnobs {
    NetworkKnobs {
        loss_per_mille: rng.pick(&[0, 0, 2, 20, 80]),
        duplicate_per_mille: rng.pick(&[0, 0, 5, 50]),
        delay: rng.pick(&[us(100), us(500), ms(3), ms(12)]),
        straggler_per_mille: rng.pick(&[0, 5, 30]),
        straggler_delay: rng.pick(&[ms(30), ms(300), ms(1_500)]),
        answer_loss_per_mille: rng.pick(&[0, 3, 20]),
        ordered: rng.chance(400),
    }
}
