//! How much a range is asked for, at its leader; and where that divides.
//!
//! Reads run on their callers' threads, so they are counted in a [`Tally`] that the range's view points to: two relaxed
//! additions, no lock. Writes are counted by the range itself. Once a second the counts become rates that decay within
//! some eight seconds. A replica that does not lead has none of this.
//!
//! Only while a range is hot are keys looked at: every so many-th request leaves its key, or its span, in the tally; when it is
//! full every other one goes, and each further one stands for twice as many. [`divide`] then looks for the key that
//! has as many requests below it as above, and few across. Such samples are how CockroachDB
//! (`pkg/kv/kvserver/split`, its load-based splitter's "unweighted finder": left, right and contained counters for
//! candidate keys) and TiKV (`split_controller.rs`: balance and contained scores) find theirs; the bounds below are
//! TiKV's. Where one key is most of the load nothing divides it, and the range stays whole.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use flotilla_proto::v1;

use crate::split_keys;
use crate::time::BootTime;

/// Requests that a sample holds at most.
const SAMPLE_MAX: usize = 512;
/// While keys are looked at, of so many reads one leaves its key.
const READS_PER_LOOK: u64 = 8;
/// Fewer requests than this say nothing about where a range's load divides.
pub(crate) const SAMPLE_MIN: usize = 64;
/// Counts become rates that often, and are the average of about so long.
const FOLD_EVERY: Duration = Duration::from_secs(1);
const WINDOW_MS: u64 = 8_000;
/// What is told of a range's load changes at most so often, and only by half of what it was.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// Requests and bytes in a second that are not worth telling.
const REQUESTS_FEW: u64 = 10;
const BYTES_FEW: u64 = 64 << 10;
/// The halves may differ by this part of both, in hundredths; and this part of all requests may cross the key.
const UNBALANCED_MAX_PERCENT: usize = 25;
const CROSSING_MAX_PERCENT: usize = 50;

/// What a request asked for: a key, or a span up to `end`; empty: to the end of the range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    key: Bytes,
    end: Option<Bytes>,
}

impl Asked {
    /// One key.
    pub fn key(key: Bytes) -> Self {
        Self { key, end: None }
    }

    /// A span.
    pub fn span(start: Bytes, end: Bytes) -> Self {
        Self { key: start, end: Some(end) }
    }

    fn is_left_of(&self, key: &[u8]) -> bool {
        match &self.end {
            None => self.key < key,
            Some(end) => !end.is_empty() && &end[..] <= key,
        }
    }
}

/// Every so many-th of the requests that came by.
#[derive(Debug, Default)]
struct Sample {
    asked: Vec<Asked>,
    /// One of so many is taken; 0 means 1.
    every: u64,
    seen: u64,
}

impl Sample {
    fn note(&mut self, asked: Asked) {
        self.seen += 1;
        if !self.seen.is_multiple_of(self.every.max(1)) {
            return;
        }
        if self.asked.len() == SAMPLE_MAX {
            let mut odd = false;
            self.asked.retain(|_| {
                odd = !odd;
                odd
            });
            self.every = self.every.max(1) * 2;
        }
        self.asked.push(asked);
    }
}

/// What readers count of a range. Shared by all threads that read it.
#[derive(Debug, Default)]
pub struct Tally {
    reads: AtomicU64,
    bytes: AtomicU64,
    looks: AtomicBool,
    sample: Mutex<Sample>,
}

/// Two views with the same tally count for the same reign.
impl PartialEq for Tally {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Tally {
    /// So many reads were answered with so many bytes; `asked` says what one of them was for, if that is of interest.
    pub fn read(&self, reads: u64, bytes: u64, asked: impl FnOnce() -> Option<Asked>) {
        let before = self.reads.fetch_add(reads, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let looks = self.looks.load(Ordering::Relaxed) && before % READS_PER_LOOK < reads;
        // Nobody waits here: another thread's look will do.
        if looks
            && let Ok(mut sample) = self.sample.try_lock()
            && let Some(asked) = asked()
        {
            sample.note(asked);
        }
    }

    fn sample(&self) -> MutexGuard<'_, Sample> {
        // What is kept is a list of keys: a panic elsewhere leaves it as good as it was.
        self.sample.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self, looks: bool) {
        if self.looks.swap(looks, Ordering::Relaxed) != looks || !looks {
            *self.sample() = Sample::default();
        }
    }
}

/// A rate, in thousandths for each second.
#[derive(Clone, Copy, Debug, Default)]
struct Rate(u64);

impl Rate {
    fn fold(&mut self, count: u64, millis: u64) {
        let now = count.saturating_mul(1_000_000) / millis.max(1);
        let weight = millis.min(WINDOW_MS);
        self.0 = (self.0.saturating_mul(WINDOW_MS - weight).saturating_add(now.saturating_mul(weight))) / WINDOW_MS;
    }

    fn per_s(self) -> u64 {
        self.0 / 1_000
    }
}

fn told(rates: [Rate; 4]) -> v1::RangeLoad {
    let [reads_per_s, writes_per_s, read_bytes_per_s, write_bytes_per_s] = rates.map(Rate::per_s);
    v1::RangeLoad { reads_per_s, writes_per_s, read_bytes_per_s, write_bytes_per_s }
}

/// The load of a range that this replica leads.
#[derive(Debug)]
pub(crate) struct Load {
    pub tally: std::sync::Arc<Tally>,
    writes: u64,
    write_bytes: u64,
    /// Reads, writes, bytes read, bytes written.
    rates: [Rate; 4],
    /// The same of the last second alone.
    latest: [Rate; 4],
    folded_at: BootTime,
    told: v1::RangeLoad,
    told_at: BootTime,
    /// Since when it is hot, and its keys are looked at.
    pub hot_since: Option<BootTime>,
    /// No split for its load before.
    pub quiet_until: BootTime,
}

impl Load {
    /// A reign begins, with what is already known of the load.
    pub(crate) fn new(now: BootTime, inherited: v1::RangeLoad) -> Self {
        let known =
            [inherited.reads_per_s, inherited.writes_per_s, inherited.read_bytes_per_s, inherited.write_bytes_per_s];
        Self {
            tally: std::sync::Arc::default(),
            writes: 0,
            write_bytes: 0,
            rates: known.map(|per_s| Rate(per_s.saturating_mul(1_000))),
            latest: [Rate::default(); 4],
            folded_at: now,
            told: inherited,
            told_at: now,
            hot_since: None,
            quiet_until: BootTime::default(),
        }
    }

    /// A write of so many operations was taken.
    pub(crate) fn wrote<'a>(&mut self, bytes: usize, keys: impl Iterator<Item = &'a Bytes>) {
        self.write_bytes += bytes as u64;
        let looks = self.hot_since.is_some();
        for key in keys {
            self.writes += 1;
            // As thinned out as the reads.
            if looks && self.writes.is_multiple_of(READS_PER_LOOK) {
                self.tally.sample().note(Asked::key(key.clone()));
            }
        }
    }

    /// Counts become rates, now and then.
    pub(crate) fn fold(&mut self, now: BootTime) {
        let passed = now.since(self.folded_at);
        if passed < FOLD_EVERY {
            return;
        }
        self.folded_at = now;
        let millis = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        let counts = [
            self.tally.reads.swap(0, Ordering::Relaxed),
            std::mem::take(&mut self.writes),
            self.tally.bytes.swap(0, Ordering::Relaxed),
            std::mem::take(&mut self.write_bytes),
        ];
        for ((rate, latest), count) in self.rates.iter_mut().zip(&mut self.latest).zip(counts) {
            rate.fold(count, millis);
            *latest = Rate(count.saturating_mul(1_000_000) / millis.max(1));
        }
        if now.since(self.told_at) >= TELL_EVERY && self.is_news() {
            self.told = self.rates();
            self.told_at = now;
        }
    }

    /// The rates of the moment.
    pub(crate) fn rates(&self) -> v1::RangeLoad {
        told(self.rates)
    }

    /// Those of the last second alone.
    pub(crate) fn latest(&self) -> v1::RangeLoad {
        told(self.latest)
    }

    fn is_news(&self) -> bool {
        let (told, now) = (self.told, self.rates());
        let differs = |told: u64, now: u64, few: u64| {
            let (low, high) = (told.min(now), told.max(now));
            high >= few && high - low > low / 2
        };
        differs(told.reads_per_s, now.reads_per_s, REQUESTS_FEW)
            || differs(told.writes_per_s, now.writes_per_s, REQUESTS_FEW)
            || differs(told.read_bytes_per_s, now.read_bytes_per_s, BYTES_FEW)
            || differs(told.write_bytes_per_s, now.write_bytes_per_s, BYTES_FEW)
    }

    /// What placement is told: steady, and nothing where next to nothing is asked for.
    pub(crate) fn told(&self) -> Option<v1::RangeLoad> {
        let worth = self.told.reads_per_s.max(self.told.writes_per_s) >= REQUESTS_FEW
            || self.told.read_bytes_per_s.max(self.told.write_bytes_per_s) >= BYTES_FEW;
        worth.then_some(self.told)
    }

    /// Begins to look at keys, or ends it.
    pub(crate) fn look(&mut self, since: Option<BootTime>) {
        self.hot_since = since;
        self.tally.look(since.is_some());
    }

    /// What was asked for while keys were looked at.
    pub(crate) fn sampled(&self) -> Vec<Asked> {
        self.tally.sample().asked.clone()
    }

    /// The range is cut into so many parts: what is left here, and what each child gets. Nobody knows better yet.
    pub(crate) fn share(&mut self, parts: u64) -> v1::RangeLoad {
        self.look(None);
        for rate in &mut self.rates {
            rate.0 /= parts.max(1);
        }
        self.told = self.rates();
        self.told
    }
}

/// The key that divides what was asked for into halves; the error says why none does.
pub(crate) fn divide(
    range: &v1::RangeDescriptor,
    boundary: &v1::SplitBoundary,
    asked: &[Asked],
) -> Result<Bytes, String> {
    let allowed = |asked: &Asked| {
        let start = split_keys::aligned(&asked.key, boundary);
        asked.key.slice(..start.len())
    };
    let mut keys: Vec<Bytes> = asked.iter().map(allowed).collect();
    keys.sort_unstable();
    let most = longest_run(&keys);
    keys.dedup();
    keys.retain(|key| split_keys::check(range, key, boundary).is_ok());
    let mut best: Option<(usize, usize, Bytes)> = None;
    for key in keys {
        let left = asked.iter().filter(|asked| asked.is_left_of(&key)).count();
        let right = asked.iter().filter(|asked| asked.key >= key).count();
        let (apart, crossing) = (left.abs_diff(right), asked.len() - left - right);
        if best.as_ref().is_none_or(|(least, across, _)| apart + crossing < least + across) {
            best = Some((apart, crossing, key));
        }
    }
    let percent = |part: usize| part * 100 / asked.len().max(1);
    match best {
        None => Err("all of it is for what the keyspace keeps together".into()),
        Some((_, crossing, _)) if percent(crossing) > CROSSING_MAX_PERCENT => {
            Err(format!("{}% of the requests would cross the best key", percent(crossing)))
        }
        Some((apart, crossing, _)) if apart * 100 > UNBALANCED_MAX_PERCENT * (asked.len() - crossing) => {
            Err(format!("{}% of the requests are for one key, or for what stays together", percent(most)))
        }
        Some((_, _, key)) => Ok(key),
    }
}

/// How often the most frequent of these sorted keys is there.
fn longest_run(keys: &[Bytes]) -> usize {
    keys.chunk_by(|a, b| a == b).map(<[Bytes]>::len).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range() -> v1::RangeDescriptor {
        v1::RangeDescriptor { range_id: 2, start: Bytes::from_static(b"a"), ..Default::default() }
    }

    fn keys<'a>(keys: impl IntoIterator<Item = &'a str>) -> Vec<Asked> {
        keys.into_iter().map(|key| Asked::key(Bytes::copy_from_slice(key.as_bytes()))).collect()
    }

    fn divided(asked: &[Asked]) -> Result<Bytes, String> {
        divide(&range(), &v1::SplitBoundary::default(), asked)
    }

    #[test]
    fn the_key_has_as_many_requests_below_it_as_above() {
        let names: Vec<String> = (0..100).map(|at| format!("key{at:03}")).collect();
        let even = keys(names.iter().map(String::as_str));
        assert_eq!(divided(&even), Ok(Bytes::from_static(b"key050")));
        // Nine of ten requests are for a tenth of the keys.
        let skewed: Vec<_> = (0..1_000).map(|at| if at % 10 == 0 { at % 100 } else { 70 + at % 10 }).collect();
        let skewed = keys(skewed.iter().map(|at| &*names[*at]));
        let key = divided(&skewed).expect("it divides");
        assert!((&b"key073"[..]..=&b"key077"[..]).contains(&&key[..]), "{key:?}");
    }

    #[test]
    fn one_hot_key_is_not_divided() {
        let mut asked = keys(std::iter::repeat_n("m", 80));
        asked.extend(keys(["b", "c", "x", "y", "z"].into_iter().cycle().take(20)));
        let why = divided(&asked).expect_err("nothing divides it");
        assert!(why.contains("80%"), "{why}");
        assert!(divided(&keys(std::iter::repeat_n("a", 100))).is_err(), "the range's first key");
    }

    #[test]
    fn scans_over_all_of_it_are_not_cut_and_short_ones_are_kept_whole() {
        let span = |start: &str, end: &str| {
            Asked::span(Bytes::copy_from_slice(start.as_bytes()), Bytes::copy_from_slice(end.as_bytes()))
        };
        let all = vec![span("a", ""); 100];
        assert!(divided(&all).is_err());
        let short: Vec<_> =
            [("b", "c"), ("e", "g"), ("n", "p"), ("r", "t")].map(|(start, end)| span(start, end)).into();
        assert_eq!(divided(&short), Ok(Bytes::from_static(b"n")));
    }

    #[test]
    fn what_stays_together_is_not_cut() {
        let boundary = v1::SplitBoundary { rule: Some(v1::split_boundary::Rule::AfterDelimiter(u32::from(b'/'))) };
        let asked = keys(["b/1", "b/2", "b/3", "c/1", "c/2", "c/3"]);
        assert_eq!(divide(&range(), &boundary, &asked), Ok(Bytes::from_static(b"c/")));
        let why = divide(&range(), &boundary, &asked[..3]).expect_err("one group");
        assert!(why.contains("100%"), "{why}");
    }

    #[test]
    fn rates_follow_what_is_asked_and_decay() {
        let mut load = Load::new(BootTime(0), v1::RangeLoad::default());
        let second = |at: u64| BootTime(at * 1_000_000_000);
        for at in 1..=40 {
            load.tally.read(500, 5_000, || None);
            load.wrote(100, [Bytes::from_static(b"k")].iter());
            load.fold(second(at));
        }
        let rates = load.rates();
        assert!(
            (480..=500).contains(&rates.reads_per_s) && (4_800..=5_000).contains(&rates.read_bytes_per_s),
            "{rates:?}"
        );
        let told = load.told().expect("worth telling");
        for at in 41..=43 {
            load.fold(second(at));
        }
        assert_eq!(load.told(), Some(told), "not each flicker is told");
        for at in 44..=120 {
            load.fold(second(at));
        }
        assert_eq!((load.rates(), load.told()), (v1::RangeLoad::default(), None));
    }

    #[test]
    fn a_sample_stays_small_and_stands_for_all() {
        let mut sample = Sample::default();
        for at in 0..100_000_u32 {
            sample.note(Asked::key(Bytes::from(at.to_be_bytes().to_vec())));
        }
        assert!(sample.asked.len() <= SAMPLE_MAX && sample.asked.len() > SAMPLE_MAX / 4);
        let middle = Bytes::from(50_000_u32.to_be_bytes().to_vec());
        let low = sample.asked.iter().filter(|asked| asked.is_left_of(&middle)).count();
        assert!(low.abs_diff(sample.asked.len() - low) < SAMPLE_MAX / 8, "{low}");
    }
}
