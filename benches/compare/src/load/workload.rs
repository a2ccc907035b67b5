//! What clients do: puts, gets, and the core workloads of YCSB (Cooper et al., "Benchmarking Cloud Serving Systems with
//! YCSB", SoCC 2010, table 2).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rand::Rng;
use rand::rngs::SmallRng;
use rand_distr::{Distribution, Zipf};

/// YCSB's exponent.
const THETA: f64 = 0.99;
/// What keys consist of.
pub const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Of workload E: records of a scan, at most.
const SCAN_MAX: u32 = 100;

/// A kind of load.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Writes, each key as likely as any other
    Put,
    /// Linearizable reads, each key as likely as any other
    Get,
    /// YCSB A: half reads, half writes, zipfian
    YcsbA,
    /// YCSB B: 95% reads, 5% writes, zipfian
    YcsbB,
    /// YCSB C: reads, zipfian
    YcsbC,
    /// YCSB D: 95% reads of what was written last, 5% new keys
    YcsbD,
    /// YCSB E: 95% short scans, 5% new keys
    YcsbE,
    /// YCSB F: half reads, half reads that are followed by a write on condition that nothing came between
    YcsbF,
}

impl Workload {
    /// As tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::YcsbA => "YCSB A",
            Self::YcsbB => "YCSB B",
            Self::YcsbC => "YCSB C",
            Self::YcsbD => "YCSB D",
            Self::YcsbE => "YCSB E",
            Self::YcsbF => "YCSB F",
        }
    }
}

/// One thing to do.
#[derive(Clone, Debug)]
pub enum Operation {
    Put(Bytes),
    Get(Bytes),
    /// From a key on, so many records.
    Scan(Bytes, u32),
    /// Reads, and writes if nothing came between.
    ReadModifyWrite(Bytes),
}

/// Which key comes next; shared by all clients of a load.
#[derive(Debug)]
pub struct Chooser {
    workload: Workload,
    zipf: Zipf<f64>,
    /// Keys that were there before the load.
    filled: u64,
    /// Keys that there are by now.
    keys: AtomicU64,
}

impl Chooser {
    pub fn new(workload: Workload, keys: u64) -> Arc<Self> {
        let zipf = Zipf::new(keys as f64, THETA).expect("there is a key, and the exponent is a constant");
        Arc::new(Self { workload, zipf, filled: keys, keys: AtomicU64::new(keys) })
    }

    pub fn next(&self, random: &mut SmallRng) -> Operation {
        let dice = random.random_range(0..100);
        match self.workload {
            Workload::Put => Operation::Put(self.uniform(random)),
            Workload::Get => Operation::Get(self.uniform(random)),
            Workload::YcsbA if dice < 50 => Operation::Put(self.zipfian(random)),
            Workload::YcsbB if dice < 5 => Operation::Put(self.zipfian(random)),
            Workload::YcsbA | Workload::YcsbB | Workload::YcsbC => Operation::Get(self.zipfian(random)),
            Workload::YcsbD | Workload::YcsbE if dice < 5 => Operation::Put(self.another()),
            Workload::YcsbD => Operation::Get(self.latest(random)),
            Workload::YcsbE => Operation::Scan(self.zipfian(random), random.random_range(1..=SCAN_MAX)),
            Workload::YcsbF if dice < 50 => Operation::ReadModifyWrite(self.zipfian(random)),
            Workload::YcsbF => Operation::Get(self.zipfian(random)),
        }
    }

    fn uniform(&self, random: &mut SmallRng) -> Bytes {
        key(random.random_range(0..self.filled))
    }

    /// Which keys are hot is a matter of chance, as keys are hashes: hot ones lie apart.
    fn zipfian(&self, random: &mut SmallRng) -> Bytes {
        key(self.zipf.sample(random) as u64 - 1)
    }

    fn latest(&self, random: &mut SmallRng) -> Bytes {
        let newest = self.keys.load(Ordering::Relaxed) - 1;
        key(newest.saturating_sub(self.zipf.sample(random) as u64 - 1))
    }

    fn another(&self) -> Bytes {
        key(self.keys.fetch_add(1, Ordering::Relaxed))
    }
}

/// Key `number`: letters and digits, spread evenly over the ranges that a keyspace is born with; 16 bytes.
pub fn key(number: u64) -> Bytes {
    let mut text = Vec::with_capacity(16);
    let mut rest = scatter(number);
    for _ in 0..8 {
        text.push(ALPHABET[(rest % 62) as usize]);
        rest /= 62;
    }
    // The hash alone could be another key's.
    let mut rest = number;
    for _ in 0..8 {
        text.push(ALPHABET[(rest % 62) as usize]);
        rest /= 62;
    }
    text.into()
}

/// Bytes that do not compress.
pub fn value(random: &mut SmallRng, bytes: usize) -> Bytes {
    let mut value = vec![0; bytes];
    random.fill(&mut value[..]);
    value.into()
}

/// SplitMix64's finalizer (Steele et al., "Fast splittable pseudorandom number generators"): one to one.
fn scatter(number: u64) -> u64 {
    let mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng;

    use super::*;

    #[test]
    fn keys_differ_and_are_as_long_as_they_say() {
        let keys: BTreeSet<Bytes> = (0..10_000).map(key).collect();
        assert_eq!(keys.len(), 10_000);
        assert!(keys.iter().all(|key| key.len() == 16));
    }

    /// A fill in the order of the numbers writes keys in no order.
    #[test]
    fn keys_in_the_order_of_their_numbers_are_in_none() {
        let ascents = (0..10_000).filter(|number| key(*number) < key(number + 1)).count();
        assert!((4_700..5_300).contains(&ascents), "{ascents} of 10,000");
    }

    #[test]
    fn every_workload_does_what_its_name_says() {
        let shares = |workload: Workload| {
            let (chooser, mut random) = (Chooser::new(workload, 1_000), SmallRng::seed_from_u64(1));
            let mut shares = [0; 4];
            for _ in 0..10_000 {
                match chooser.next(&mut random) {
                    Operation::Put(_) => shares[0] += 1,
                    Operation::Get(_) => shares[1] += 1,
                    Operation::Scan(_, limit) => shares[2] += u32::from((1..=100).contains(&limit)),
                    Operation::ReadModifyWrite(_) => shares[3] += 1,
                }
            }
            shares.map(|share| (share + 50) / 100)
        };
        assert_eq!(shares(Workload::Put), [100, 0, 0, 0]);
        assert_eq!(shares(Workload::Get), [0, 100, 0, 0]);
        let near = |workload: Workload, wanted: [u32; 4]| {
            let got = shares(workload);
            assert!(got.iter().zip(wanted).all(|(got, wanted)| got.abs_diff(wanted) <= 2), "{workload:?}: {got:?}");
        };
        near(Workload::YcsbA, [50, 50, 0, 0]);
        near(Workload::YcsbB, [5, 95, 0, 0]);
        near(Workload::YcsbC, [0, 100, 0, 0]);
        near(Workload::YcsbD, [5, 95, 0, 0]);
        near(Workload::YcsbE, [5, 0, 95, 0]);
        near(Workload::YcsbF, [0, 50, 0, 50]);
    }

    #[test]
    fn the_hottest_key_of_a_zipfian_load_is_hot() {
        let (chooser, mut random) = (Chooser::new(Workload::YcsbC, 1_000), SmallRng::seed_from_u64(1));
        let hottest = (0..10_000).filter(|_| chooser.zipfian(&mut random) == key(0)).count();
        assert!((1_000..2_000).contains(&hottest), "{hottest} of 10,000");
    }
}
