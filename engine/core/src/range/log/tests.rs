//! The log against a naive one: a vector of entries, and a map for what the log writer would have on disk.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;

/// splitmix64 (Steele, Lea, Flood 2014).
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

struct Naive {
    truncated: (u64, u64),
    entries: Vec<Entry>,
    applied: u64,
    term: u64,
    disk: BTreeMap<u64, Entry>,
}

fn entry(index: u64, term: u64, bytes: usize) -> Entry {
    Entry { index, term, data: vec![7; bytes].into(), ..Default::default() }
}

fn boot() -> RangeBoot {
    RangeBoot {
        descriptor: Arc::default(),
        raft: v1::RaftState { term: 5, vote: 0, commit: 5, truncated_index: 5, truncated_term: 5 },
        applied: v1::AppliedState { index: 5, term: 5, ..Default::default() },
        terms: Vec::new(),
        last_index: 5,
        entry_bytes: Vec::new(),
        entries: Vec::new(),
        merge: None,
        recoveries: v1::RangeRecoveries::default(),
    }
}

impl Naive {
    fn last(&self) -> u64 {
        self.truncated.0 + self.entries.len() as u64
    }

    fn at(&self, index: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(index.checked_sub(self.truncated.0 + 1)?).ok()?)
    }

    fn remove(&mut self, removed: Option<(u64, u64)>) {
        if let Some((from, to)) = removed {
            assert!(from < to);
            self.disk.retain(|index, _| *index < from || *index >= to);
        }
    }

    fn append(&mut self, log: &mut RangeLog, draw: &mut Rng) {
        let first = self.applied.max(self.truncated.0) + 1;
        let first = first + draw.below(self.last() + 2 - first);
        self.term += draw.below(2);
        let new: Vec<Entry> =
            (0..1 + draw.below(4)).map(|step| entry(first + step, self.term, draw.below(100) as usize)).collect();
        let kept = usize::try_from(first - self.truncated.0 - 1).expect("small");
        self.entries.truncate(kept);
        self.entries.extend(new.iter().cloned());
        let removed = log.append(&new);
        self.remove(removed);
        self.disk.extend(new.into_iter().map(|entry| (entry.index, entry)));
    }

    fn truncate(&mut self, log: &mut RangeLog, draw: &mut Rng) {
        let index = self.truncated.0 + draw.below(self.applied - self.truncated.0 + 1);
        let removed = log.truncate(index);
        if index > self.truncated.0 {
            let term = self.at(index).expect("it is applied").term;
            self.entries.drain(..usize::try_from(index - self.truncated.0).expect("small"));
            self.truncated = (index, term);
        }
        self.remove(removed);
    }

    fn install(&mut self, log: &mut RangeLog, draw: &mut Rng) {
        let index = self.applied + 1 + draw.below(20);
        let removed = log.install(&wire::snapshot(&v1::SnapshotMeta { index, term: self.term, ..Default::default() }));
        self.remove(removed);
        self.entries.clear();
        self.truncated = (index, self.term);
        self.applied = index;
    }

    fn check(&self, log: &RangeLog) {
        assert_eq!(log.first_index(), Ok(self.truncated.0 + 1));
        assert_eq!(log.last_index(), Ok(self.last()));
        assert_eq!(log.term(self.truncated.0), Ok(self.truncated.1));
        assert_eq!(log.term(self.truncated.0 - 1), Err(Error::Store(StorageError::Compacted)));
        assert_eq!(log.term(self.last() + 1), Err(Error::Store(StorageError::Unavailable)));
        for entry in &self.entries {
            assert_eq!(log.term(entry.index), Ok(entry.term), "term of {}", entry.index);
        }
        let bytes = |entries: &[Entry]| entries.iter().map(|entry| entry_bytes(entry) as u64).sum::<u64>();
        assert_eq!(log.log_bytes(), bytes(&self.entries));
        let cut = log.truncation_point(300, 5);
        let left = &self.entries[usize::try_from(cut - self.truncated.0).expect("small")..];
        assert!(bytes(left) <= 300 && left.len() <= 5);
        assert_eq!(log.bytes_above(cut), bytes(left));
        let cached: Vec<Entry> = log.cache.iter().cloned().collect();
        assert_eq!(log.cache_bytes as u64, bytes(&cached));
        assert!(self.disk.values().eq(self.entries.iter()), "what is on disk is the log, no more and no less");
    }

    /// Reads as Raft does for a follower, with what is no longer cached coming from the disk.
    fn read(&self, log: &mut RangeLog, draw: &mut Rng) {
        if self.entries.is_empty() {
            return;
        }
        let low = self.truncated.0 + 1 + draw.below(self.entries.len() as u64);
        let high = low + 1 + draw.below(self.last() + 1 - low);
        let limit = [None, Some(0), Some(200)][draw.below(3) as usize];
        let got = match log.entries(low, high, limit, GetEntriesContext::empty(true)) {
            Err(Error::Store(StorageError::LogTemporarilyUnavailable)) => {
                let wanted = log.take_wanted_fetches();
                assert_eq!((wanted.len(), wanted[0].low), (1, low));
                assert!(wanted[0].high <= self.applied + 1, "only what is applied, and stays as it is");
                let read: Vec<Entry> = self.disk.range(wanted[0].low..wanted[0].high).map(|(_, e)| e.clone()).collect();
                assert_eq!(log.fetched(wanted[0].id, read).len(), 1);
                let got = log.entries(low, high, limit, GetEntriesContext::empty(true)).expect("it was fetched");
                log.drop_fetched();
                got
            }
            got => got.expect("it is within the log"),
        };
        assert!(!got.is_empty());
        for (index, entry) in (low..high).zip(&got) {
            assert_eq!(Some(entry), self.at(index));
        }
        if limit.is_none() && log.cache_first() <= low {
            assert_eq!(got.len() as u64, high - low);
        }
        // What is not applied never needs the disk.
        if self.last() > self.applied {
            let low = self.applied.max(self.truncated.0) + 1;
            let all = log.entries(low, self.last() + 1, None, GetEntriesContext::empty(false)).expect("cached");
            assert_eq!(all.len() as u64, self.last() + 1 - low);
        }
    }
}

#[test]
fn it_behaves_as_a_vector_of_entries_does() {
    for seed in 0..300 {
        let mut draw = Rng(seed);
        let mut log = RangeLog::new(&boot(), 1);
        let mut naive = Naive { truncated: (5, 5), entries: vec![], applied: 5, term: 5, disk: BTreeMap::new() };
        for _ in 0..200 {
            match draw.below(20) {
                0..=7 => naive.append(&mut log, &mut draw),
                8..=10 => naive.applied += draw.below(naive.last() - naive.applied + 1),
                11..=12 => naive.truncate(&mut log, &mut draw),
                13 if draw.below(8) == 0 => naive.install(&mut log, &mut draw),
                14..=15 => log.shrink_cache(naive.applied, draw.below(400) as usize),
                _ => naive.read(&mut log, &mut draw),
            }
            naive.check(&log);
        }
    }
}

#[test]
fn an_answer_to_a_read_of_the_log_before_a_snapshot_is_not_taken_for_a_later_one() {
    let mut log = RangeLog::new(&boot(), 1);
    let want = |log: &mut RangeLog, low, high| {
        log.shrink_cache(high - 1, 0);
        assert!(log.entries(low, high, None, GetEntriesContext::empty(true)).is_err());
        log.take_wanted_fetches().pop().expect("it is asked for")
    };
    log.append(&[entry(6, 5, 1), entry(7, 5, 1)]);
    let old = want(&mut log, 6, 8);
    log.install(&wire::snapshot(&v1::SnapshotMeta { index: 9, term: 6, ..Default::default() }));
    log.append(&[entry(10, 6, 1)]);
    let new = want(&mut log, 10, 11);
    assert_ne!(old.id, new.id);
    assert!(log.fetched(old.id, vec![entry(6, 5, 1)]).is_empty());
    assert_eq!(log.fetched(new.id, vec![entry(10, 6, 1)]).len(), 1);
}

#[test]
fn one_read_serves_all_who_ask_for_the_same() {
    let mut log = RangeLog::new(&boot(), 1);
    log.append(&[entry(6, 5, 1), entry(7, 5, 1)]);
    log.shrink_cache(7, 0);
    for _ in 0..3 {
        assert!(log.entries(6, 8, None, GetEntriesContext::empty(true)).is_err());
    }
    let wanted = log.take_wanted_fetches();
    assert_eq!(wanted.len(), 1);
    assert!(log.take_wanted_fetches().is_empty());
    assert_eq!(log.fetched(wanted[0].id, vec![]).len(), 3, "each of them is told");
}
