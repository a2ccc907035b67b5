//! The same inputs give the same effects, byte for byte: no clock, no thread's random numbers, no order of a
//! hash map shows.

use std::time::Duration;

use flotilla_engine::config::Config;
use flotilla_engine::store::Input;

use crate::cluster::{Cluster, delete, put, request, write_input};

/// splitmix64 (Steele, Lea, Flood 2014).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// A random run of a small cluster with small limits; returns the checksum of all that its stores wanted,
/// and how many entries were applied.
fn run(seed: u64) -> (u32, u64) {
    let mut draw = Rng::new(seed);
    let config =
        Config { log_retain_entries: 5, cache_bytes_max: 200, entry_bytes_target: 64, seed, ..Config::default() };
    let mut cluster = Cluster::new(config, 3);
    let mut hasher = crc32fast::Hasher::new();
    for token in 0..1_500 {
        let node = 1 + draw.below(3);
        let key = ["a", "b", "c", "d"][draw.below(4) as usize];
        let effects = match draw.below(16) {
            0..=3 => cluster.turn(node, vec![write_input(token, request(vec![put(key, "value")]))]),
            4 => cluster.turn(node, vec![write_input(token, request(vec![delete(key)]))]),
            5 => cluster.barrier(node, token),
            6 if draw.below(8) == 0 => cluster.transfer(node, token, 1 + draw.below(3)),
            7 if draw.below(8) == 0 => {
                cluster.cut_off = [1 + draw.below(4)].into();
                continue;
            }
            8 if draw.below(24) == 0 => {
                cluster.restart(node);
                continue;
            }
            9..=11 => {
                cluster.now = cluster.now + Duration::from_millis(40);
                cluster.turn(node, vec![Input::Tick])
            }
            12 => {
                cluster.persist(node);
                continue;
            }
            13 => {
                cluster.apply(node);
                continue;
            }
            _ => {
                for _ in 0..draw.below(8) {
                    cluster.deliver();
                }
                continue;
            }
        };
        hasher.update(format!("{effects:?}").as_bytes());
    }
    hasher.update(format!("{:?} {:?}", cluster.network, cluster.events).as_bytes());
    for id in 1..=3 {
        hasher.update(format!("{:?} {:?}", cluster.summary(id), cluster.node(id).disk.contents()).as_bytes());
    }
    (hasher.finalize(), (1..=3).map(|id| cluster.summary(id).applied).max().unwrap_or_default())
}

#[test]
fn the_same_inputs_give_the_same_effects() {
    let mut entries = 0;
    for seed in 0..20 {
        let first = run(seed);
        assert_eq!(first, run(seed), "seed {seed}");
        entries += first.1;
    }
    assert!(entries > 20 * 15, "the runs do something: {entries} entries");
}
