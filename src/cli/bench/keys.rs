//! Keys of a benchmark, and the random numbers that choose among them.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_proto::v1;

use super::BenchArgs;
use crate::cli::failure::{Failure, Result};

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Letters that come from a hash: 62^8 places for them.
const HASHED_LETTERS: usize = 8;
/// Skew of YCSB's zipfian choice.
const THETA: f64 = 0.99;

/// Random numbers from a seed (splitmix64): enough for choices, and the same in every run.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers that depend on the seed and the stream alone.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self(mix(seed ^ mix(stream)))
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    /// A number in [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn mix(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Zipfian choice of ranks (Gray et al., "Quickly generating billion-record synthetic databases").
#[derive(Clone, Debug)]
struct Zipfian {
    items: f64,
    alpha: f64,
    zeta: f64,
    eta: f64,
}

impl Zipfian {
    fn new(items: u64) -> Self {
        let zeta_of = |count: u64| (1..=count).map(|rank| (rank as f64).powf(-THETA)).sum::<f64>();
        let zeta = zeta_of(items);
        let eta = (1.0 - (2.0 / items as f64).powf(1.0 - THETA)) / (1.0 - zeta_of(2.min(items)) / zeta);
        Self { items: items as f64, alpha: 1.0 / (1.0 - THETA), zeta, eta }
    }

    /// A rank, 0 the most frequent.
    fn rank(&self, random: &mut Random) -> u64 {
        let unit = random.unit();
        let share = unit * self.zeta;
        if share < 1.0 || self.items < 2.0 {
            return 0;
        }
        if share < 1.0 + 0.5f64.powf(THETA) {
            return 1;
        }
        let rank = self.items * (self.eta * unit - self.eta + 1.0).powf(self.alpha);
        (rank as u64).min(self.items as u64 - 1)
    }
}

/// The keys, shared by all clients.
#[derive(Clone, Debug)]
pub struct Keys {
    all: Arc<Vec<Bytes>>,
    zipfian: Option<Zipfian>,
}

impl Keys {
    /// Makes the keys; with `--ranges` only such as lie in the first ranges.
    pub fn new(args: &BenchArgs, ranges: &[v1::RangeStatus]) -> Result<Self> {
        let end = end_of(args, ranges)?;
        let wanted = args.keys as usize;
        let inside = |key: &Bytes| end.is_empty() || *key < end;
        // Keys are spread evenly: one range of n takes about n tries for each key, a narrow one more.
        let tries = (wanted as u64 + 100) * (ranges.len() as u64 + 1) * 8;
        let keys: Vec<Bytes> = (0..tries).map(|number| key(args.seed, number)).filter(inside).take(wanted).collect();
        if keys.len() < wanted {
            return Err(Failure::failed("the first ranges are too narrow to find keys in them").hint("raise --ranges"));
        }
        let zipfian = args.workload.zipfian().then(|| Zipfian::new(wanted as u64));
        Ok(Self { all: Arc::new(keys), zipfian })
    }

    /// All of them.
    pub fn all(&self) -> &[Bytes] {
        &self.all
    }

    /// Chooses one. Which keys are hot is a matter of chance, as keys are hashes: hot ones lie apart.
    pub fn choose(&self, random: &mut Random) -> Bytes {
        let at = match &self.zipfian {
            Some(zipfian) => zipfian.rank(random),
            None => random.below(self.all.len() as u64),
        };
        self.all[at as usize].clone()
    }
}

/// The first key after the ranges to use; empty: all ranges.
fn end_of(args: &BenchArgs, ranges: &[v1::RangeStatus]) -> Result<Bytes> {
    let Some(wanted) = args.ranges else { return Ok(Bytes::new()) };
    let last = ranges.get(wanted as usize - 1).and_then(|status| status.descriptor.as_ref());
    last.map(|descriptor| descriptor.end.clone()).ok_or_else(|| {
        Failure::usage(format!("--ranges {wanted}: there are {}", ranges.len()))
            .hint("`flotilla range list` lists them; a cluster is born with --initial-ranges")
    })
}

/// Key `number`: hashed letters, then the number, so that no two are the same.
fn key(seed: u64, number: u64) -> Bytes {
    let mut hash = mix(mix(number) ^ seed);
    let mut key = Vec::with_capacity(HASHED_LETTERS + 8);
    for _ in 0..HASHED_LETTERS {
        key.push(ALPHABET[(hash % 62) as usize]);
        hash /= 62;
    }
    let mut rest = number;
    loop {
        key.push(ALPHABET[(rest % 62) as usize]);
        rest /= 62;
        if rest == 0 {
            return key.into();
        }
    }
}

#[cfg(test)]
pub mod tests {
    use std::collections::BTreeSet;

    use clap::Parser;

    use super::*;

    /// A bench command line.
    pub fn args(words: &[&str]) -> BenchArgs {
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            args: BenchArgs,
        }
        Line::try_parse_from([&["bench"], words].concat()).expect("valid").args
    }

    fn ranges() -> Vec<v1::RangeStatus> {
        let borders: [&'static [u8]; 5] = [b"", b"F", b"V", b"k", b""];
        let status = |pair: &[&'static [u8]]| {
            let (start, end) = (Bytes::from_static(pair[0]), Bytes::from_static(pair[1]));
            let descriptor = v1::RangeDescriptor { start, end, ..Default::default() };
            v1::RangeStatus { descriptor: Some(descriptor), ..Default::default() }
        };
        borders.windows(2).map(status).collect()
    }

    #[test]
    fn keys_differ_and_spread_evenly() {
        let keys = Keys::new(&args(&["put", "--keys", "4000"]), &ranges()).expect("keys");
        assert_eq!(keys.all().iter().collect::<BTreeSet<_>>().len(), 4000);
        let borders: [&[u8]; 3] = [b"F", b"V", b"k"];
        let mut counts = [0; 4];
        for key in keys.all() {
            counts[borders.iter().filter(|border| &key[..] >= **border).count()] += 1;
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
    }

    #[test]
    fn few_ranges_are_the_first_ones() {
        let keys = Keys::new(&args(&["put", "--keys", "100", "--ranges", "1"]), &ranges()).expect("keys");
        assert!(keys.all().iter().all(|key| key[..] < b"F"[..]));
        assert_eq!(Keys::new(&args(&["put", "--ranges", "5"]), &ranges()).expect_err("four").code(), 2);
    }

    #[test]
    fn zipfian_choices_are_skewed_as_they_should_be() {
        let keys = Keys::new(&args(&["ycsb-a", "--keys", "1000"]), &ranges()).expect("keys");
        let mut random = Random::new(1, 1);
        let hottest = (0..100_000).filter(|_| keys.choose(&mut random) == keys.all()[0]).count();
        // 1 / zeta(1000, 0.99) = 12.9%
        assert!((12_000..14_000).contains(&hottest), "{hottest}");
        let one = Keys::new(&args(&["ycsb-c", "--keys", "1"]), &ranges()).expect("keys");
        assert_eq!(one.choose(&mut random), one.all()[0]);
        let two = Keys::new(&args(&["ycsb-c", "--keys", "2"]), &ranges()).expect("keys");
        assert!((0..100).any(|_| two.choose(&mut random) == two.all()[1]));
    }
}
