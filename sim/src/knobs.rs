//! What one run is made of, drawn from its seed: sizes, limits, speeds. Extremes on purpose: slow apply, tiny ranges, and
//! of the core's own settings those that it declares ([`KNOBS`]).

use flotilla_engine::config::{Config, KNOBS};
use flotilla_proto::v1;

use crate::clock::{Clock, Nanos, ms, us};
use crate::gray::GrayKnobs;
use crate::placement::{LossKnobs, OperatorKnobs, RealKnobs};
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
    /// Messages that come a second time, long after.
    pub ancient_per_mille: u64,
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
            ancient_per_mille: 0,
            ordered: true,
        }
    }
}

/// What the toy placement does.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PlacementKnobs {
    /// Mean time between two rounds; 0: ranges and replicas stay as they are.
    pub every: Nanos,
    /// Replicas of a range that are aimed at.
    pub replicas: usize,
    /// In each round.
    pub order_per_mille: u64,
    pub split_per_mille: u64,
    pub check_per_mille: u64,
    pub birth_per_mille: u64,
    pub merge_per_mille: u64,
    /// No splits by hand beyond so many ranges.
    pub ranges_max: usize,
    pub split_bytes: u64,
    pub boundary: v1::SplitBoundary,
}

impl PlacementKnobs {
    /// None at all.
    pub(crate) fn still(replicas: usize) -> Self {
        Self {
            every: 0,
            replicas,
            order_per_mille: 0,
            split_per_mille: 0,
            check_per_mille: 0,
            birth_per_mille: 0,
            merge_per_mille: 0,
            ranges_max: 0,
            split_bytes: 0,
            boundary: v1::SplitBoundary::default(),
        }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Knobs {
    pub seed: u64,
    pub nodes: usize,
    /// The first so many nodes hold the first ranges; the others begin with none.
    pub members: usize,
    pub placement: PlacementKnobs,
    /// The real placement, instead of the toy.
    pub real: Option<RealKnobs>,
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
    /// How many of the writes have a ttl, and of all requests delete a span.
    pub ttl_per_mille: u64,
    pub delete_span_per_mille: u64,
    /// Keeps reads, transfers of leadership and little else coming.
    pub transfer_storm: bool,
    /// Faults come until then; the rest of the run is the healing.
    pub duration: Nanos,
    /// Mean time between two faults; 0: none.
    pub fault_every: Nanos,
    /// A node that works badly for a while.
    pub gray: Option<GrayKnobs>,
}

impl Knobs {
    pub(crate) fn draw(seed: u64) -> Self {
        let mut knobs = Self::draw_still(seed);
        let gray = &mut Rng::new(seed, 12);
        if gray.chance(100) {
            // Where nothing else fails all requests are answered at once: few do.
            (knobs.fault_every, knobs.clients, knobs.think) = (0, 3, knobs.think.max(ms(12)));
            let alone = GrayKnobs::draw(gray, &knobs, true);
            knobs.duration = alone.from + alone.length + ms(3_000);
            knobs.gray = Some(alone);
        } else {
            knobs.draw_growth(&mut Rng::new(seed, 6));
            knobs.gray = gray.chance(200).then(|| GrayKnobs::draw(gray, &knobs, false));
        }
        knobs.draw_ends(&mut Rng::new(seed, 9));
        knobs
    }

    /// Ranges and replicas stay as they are.
    fn draw_still(seed: u64) -> Self {
        let rng = &mut Rng::new(seed, 1);
        let nodes = if rng.chance(700) { 3 } else { 5 };
        let replicas = if nodes == 5 && rng.chance(500) { 5 } else { 3 };
        let transfer_storm = rng.chance(200);
        let apply_delay = if rng.chance(500) { 0 } else { rng.pick(&[us(200), ms(5), ms(60)]) };
        Self {
            seed,
            nodes,
            members: nodes,
            placement: PlacementKnobs::still(replicas),
            real: None,
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
            ttl_per_mille: 0,
            delete_span_per_mille: 0,
            transfer_storm,
            duration: rng.between(ms(14_000), ms(32_000)),
            fault_every: if transfer_storm { ms(900) } else { rng.pick(&[ms(700), ms(1_500), ms(3_000)]) },
            gray: None,
        }
    }

    /// Keys with a ttl and deletes of spans, in most runs.
    fn draw_ends(&mut self, rng: &mut Rng) {
        self.ttl_per_mille = rng.pick(&[0, 100, 300, 300, 700]);
        self.delete_span_per_mille = rng.pick(&[0, 5, 20, 20, 60]);
    }

    /// Splits and moves, in most runs.
    fn draw_growth(&mut self, rng: &mut Rng) {
        if rng.chance(150) {
            return;
        }
        self.nodes = rng.pick(&[3, 3, 4, 5, 5]);
        self.members = rng.between(1, self.nodes as u64 + 1) as usize;
        self.replicas = self.replicas.min(self.members);
        self.network.ancient_per_mille = rng.pick(&[0, 1, 5]);
        self.cold_keys = rng.pick(&[16, 16, 60, 150]);
        let rule = match rng.below(5) {
            0 => Some(v1::split_boundary::Rule::AfterDelimiter(u32::from(b'-'))),
            1 => Some(v1::split_boundary::Rule::PrefixLen(rng.pick(&[1, 2, 4]))),
            _ => None,
        };
        // Either splits or moves may be what a run is about.
        let (splits, orders) = rng.pick(&[(60, 250), (250, 60), (150, 150), (0, 250), (250, 0), (400, 400)]);
        self.placement = PlacementKnobs {
            every: rng.pick(&[ms(150), ms(400), ms(1_000)]),
            replicas: rng.pick(&[3, 3, 3, 2, 4, 5, 1]),
            order_per_mille: orders,
            split_per_mille: splits,
            check_per_mille: rng.pick(&[0, 30, 200]),
            birth_per_mille: rng.pick(&[0, 0, 60]),
            merge_per_mille: Rng::new(self.seed, 14).pick(&[0, 300, 700, 1_000]),
            ranges_max: rng.pick(&[8, 24, 48]),
            split_bytes: rng.pick(&[0, 1 << 10, 4 << 10, 4 << 10, 16 << 10]),
            boundary: v1::SplitBoundary { rule },
        };
        let real = &mut Rng::new(self.seed, 10);
        if real.chance(500) {
            self.draw_real(real);
        }
    }

    /// The real placement: the cluster begins with one node.
    fn draw_real(&mut self, rng: &mut Rng) {
        let operators = OperatorKnobs::draw(&mut Rng::new(self.seed, 15));
        let mut real = RealKnobs { operators, ..RealKnobs::draw(rng) };
        if let Some(loss) = LossKnobs::draw(&mut Rng::new(self.seed, 17)) {
            real.lose_a_majority(loss);
        }
        // Others come in place of the lost.
        let more = if real.loss.is_some() { 3 } else { 0 };
        (self.nodes, self.members, self.replicas) = (RealKnobs::NODES_MAX + more, 1, 1);
        self.placement = PlacementKnobs {
            split_per_mille: rng.pick(&[0, 100, 250]),
            ..PlacementKnobs::still(real.replicas as usize)
        };
        self.duration += ms(4_000);
        self.real = Some(real);
    }

    /// Whether a toy placement merges ranges.
    pub(crate) fn merges(&self) -> bool {
        self.placement.every > 0 && self.placement.merge_per_mille > 0
    }

    /// Whether ranges split and move.
    pub(crate) fn grows(&self) -> bool {
        self.placement.every > 0 || self.real.is_some()
    }

    /// A cluster that nothing happens to, for scenarios.
    #[cfg(test)]
    pub(crate) fn calm(seed: u64) -> Self {
        Self {
            seed,
            nodes: 3,
            members: 3,
            placement: PlacementKnobs::still(3),
            real: None,
            ranges: 1,
            replicas: 3,
            config: Config { seed, expiry_clock_drift: clock_fast(), ..Config::default() },
            network: NetworkKnobs::calm(),
            sync: us(150),
            write_delay: 0,
            apply_delay: 0,
            read_delay: us(5),
            clients: 0,
            think: ms(5),
            hot_keys: 1,
            cold_keys: 4,
            ttl_per_mille: 0,
            delete_span_per_mille: 0,
            transfer_storm: false,
            duration: ms(3_600_000),
            fault_every: 0,
            gray: None,
        }
    }

    /// The longest election time-out.
    pub(crate) fn election_timeout_max(&self) -> Nanos {
        crate::clock::nanos(self.config.tick) * 2 * self.config.election_ticks as u64
    }
}

/// By how much the fastest clock of a run is ahead of true time, as a fraction: all that ttls have to allow for.
fn clock_fast() -> f64 {
    let (_, fast) = Clock::rates(Config::default().clock_drift);
    fast as f64 / 1e6 - 1.0
}

fn config(seed: u64, rng: &mut Rng) -> Config {
    let mut config = Config { seed: seed ^ 0xF107_111A, expiry_clock_drift: clock_fast(), ..Config::default() };
    for knob in KNOBS {
        if rng.chance(knob.per_mille) {
            (knob.bend)(&mut config, rng.index(knob.extremes));
        }
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
        ancient_per_mille: 0,
        ordered: rng.chance(400),
    }
}
