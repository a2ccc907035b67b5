//! The suite that every implementation of the storage traits passes: flotilla-store's RocksDB adapter
//! and flotilla-sim's simulated disk. The rest of the engine is tested on the second and runs on the
//! first, so whatever it may lean on is checked here, on both.
//!
//! An implementation supplies a [`Harness`] and says `flotilla_engine::storage_conformance!(ItsHarness);`
//! in a test module, which makes one test of each case. The cases check the contract in the parent
//! module's head; a crash is the harness's own: it loses any seeded suffix of the unsynced batches.

mod staging;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Direction, Family, Read, Staging, Storage, StorageError, WriteBatch};
pub use staging::*;

/// What the disk is to do wrong from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Writing fails, at the latest when a sync hands the bytes over.
    Write,
    /// Bytes are taken, making them durable fails.
    Sync,
    /// No space is left, at the latest noticed by a sync.
    NoSpace,
}

/// One disk under test, and the power over it.
pub trait Harness: Sized {
    /// The implementation.
    type Store: Staging;

    /// A fresh, empty disk.
    fn fresh() -> Self;

    /// Opens what is on the disk; only after [`Harness::close`] or [`Harness::crash`] a second time.
    fn open(&mut self) -> Arc<Self::Store>;

    /// Stops cleanly.
    fn close(&mut self, store: Arc<Self::Store>);

    /// Ends the store as a power cut would; `seed` decides how much of what was not synced stays.
    fn crash(&mut self, store: Arc<Self::Store>, seed: u64);

    /// Brings about a fault that lasts until the store is closed or crashed.
    fn inject(&mut self, store: &Self::Store, fault: Fault);
}

/// Makes a test of each case of the suite for a [`conformance::Harness`](Harness).
#[macro_export]
macro_rules! storage_conformance {
    ($harness:ty) => {
        $crate::storage_conformance!(@cases $harness, $crate::storage::conformance:
            batches_apply_in_order_over_all_families,
            changes_within_a_batch_apply_in_order,
            scans_respect_bounds_both_ways,
            scans_stop_when_told,
            families_do_not_mix,
            random_batches_agree_with_a_model,
            views_are_one_point_in_time,
            scans_are_one_point_in_time,
            crashes_leave_a_prefix_with_all_that_was_synced,
            sync_covers_earlier_writes_of_all_threads,
            reopening_keeps_everything,
            failed_write_poisons,
            failed_sync_poisons,
            lack_of_space_poisons_and_says_so,
            staged_files_are_read_back_and_go_when_removed,
            staged_names_that_were_synced_outlive_a_crash,
            ingested_tables_win_over_what_was_there,
            an_ingestion_waits_for_what_stands_in_its_way,
            views_do_not_see_later_ingestions,
            ingestions_outlive_crashes_that_take_earlier_batches,
            writes_and_ingestions_in_any_order_survive_crashes,
        );
    };
    (@cases $harness:ty, $suite:path: $($case:ident),+ $(,)?) => {
        $(#[test]
        fn $case() {
            use $suite as suite;
            suite::$case::<$harness>();
        })+
    };
}

/// A small seeded generator (splitmix64): the suite needs no more.
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// The next number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound.max(1) as u64) as usize
    }
}

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;
type Model = BTreeMap<(Family, Vec<u8>), Vec<u8>>;

fn scan(read: &dyn Read, family: Family, start: &[u8], end: &[u8], direction: Direction) -> Pairs {
    let mut pairs = Vec::new();
    read.scan(family, start, end, direction, &mut |key, value| {
        pairs.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })
    .expect("a scan of a sound store works");
    pairs
}

fn get(read: &dyn Read, family: Family, key: &[u8]) -> Option<Vec<u8>> {
    read.get(family, key).expect("a read of a sound store works").map(|value| value.to_vec())
}

fn put<S: Storage>(store: &S, family: Family, key: &[u8], value: &[u8]) {
    let mut batch = store.batch();
    batch.put(family, key, value);
    store.write(batch).expect("a write to a sound store works");
}

/// Keys that order, escape and length rules may get wrong; sorted, no two alike.
fn awkward_keys() -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> = vec![
        vec![],
        vec![0],
        vec![0, 0],
        vec![0, 0xFF],
        vec![0, 1],
        vec![1, 0, 0, 0, 0, 0, 0, 0, 7, 1],
        vec![2, 0, 0, 0, 1, 0, 1],
        vec![2, 0, 0, 0, 1, b'a', 0, 1],
        vec![2, 0, 0, 0, 1, b'a', 0, 0xFF, 0, 1],
        vec![2, 0, 0, 0, 1, b'a', 0, 1, 9],
        vec![2, 0, 0, 0, 1, b'b'],
        vec![2, 0, 0, 0, 1, b'b', 0],
        b"a".to_vec(),
        b"a\0".to_vec(),
        b"b".to_vec(),
        vec![0xFF],
        vec![0xFF, 0],
        vec![0xFF, 0xFF],
        vec![b'k'; 8192],
        [vec![b'k'; 8192], vec![0]].concat(),
    ];
    keys.sort();
    keys
}

/// A later batch wins over an earlier one, and each is seen in all families at once.
pub fn batches_apply_in_order_over_all_families<H: Harness>() {
    let mut harness = H::fresh();
    let store = harness.open();
    for round in 0..50u32 {
        let mut batch = store.batch();
        assert!(batch.is_empty());
        for family in Family::ALL {
            batch.put(family, b"round", &round.to_be_bytes());
            batch.put(family, &round.to_be_bytes(), b"");
        }
        assert!(!batch.is_empty() && batch.size_bytes() >= 3 * 4);
        store.write(batch).expect("a write to a sound store works");
        for family in Family::ALL {
            assert_eq!(get(&*store, family, b"round"), Some(round.to_be_bytes().to_vec()));
            assert_eq!(get(&*store, family, &round.to_be_bytes()), Some(vec![]), "an empty value is a value");
        }
    }
    assert_eq!(get(&*store, Family::Meta, b"absent"), None);
    store.write(store.batch()).expect("an empty batch is no error");
    harness.close(store);
}

/// Within a batch the last word on a key counts, whichever way it was said.
pub fn changes_within_a_batch_apply_in_order<H: Harness>() {
    let mut harness = H::fresh();
    let store = harness.open();
    for family in Family::ALL {
        put(&*store, family, b"old", b"1");
        let mut batch = store.batch();
        batch.put(family, b"k1", b"a");
        batch.delete_range(family, b"k", b"l");
        batch.put(family, b"k2", b"b");
        batch.put(family, b"k3", b"c");
        batch.delete(family, b"k3");
        batch.delete(family, b"k4");
        batch.put(family, b"k4", b"d");
        batch.delete_range(family, b"old", b"old\0");
        batch.delete_range(family, b"z", b"a");
        batch.delete_range(family, b"k2", b"k2");
        batch.put(family, b"k5", b"e");
        batch.put(family, b"k5", b"f");
        store.write(batch).expect("a write to a sound store works");
        let left = scan(&*store, family, b"", b"\xFF", Direction::Forward);
        let want = [(b"k2", b"b"), (b"k4", b"d"), (b"k5", b"f")].map(|(k, v)| (k.to_vec(), v.to_vec()));
        assert_eq!(left, want, "{family:?}");
    }
    harness.close(store);
}

/// Every span over awkward keys, both ways: start included, end not, an empty span shows nothing.
pub fn scans_respect_bounds_both_ways<H: Harness>() {
    let mut harness = H::fresh();
    let store = harness.open();
    let keys = awkward_keys();
    // Every second key is there, so that bounds are both present and missing keys.
    let present: Vec<&Vec<u8>> = keys.iter().step_by(2).collect();
    for family in Family::ALL {
        let mut batch = store.batch();
        present.iter().for_each(|key| batch.put(family, key, key));
        store.write(batch).expect("a write to a sound store works");
        for start in &keys {
            for end in &keys {
                let want: Vec<&Vec<u8>> = present.iter().filter(|key| **key >= start && **key < end).copied().collect();
                let forward = scan(&*store, family, start, end, Direction::Forward);
                let mut reverse = scan(&*store, family, start, end, Direction::Reverse);
                reverse.reverse();
                assert_eq!(forward, reverse, "{family:?} {start:?} {end:?}");
                assert!(forward.iter().all(|(key, value)| key == value));
                assert_eq!(forward.iter().map(|(key, _)| key).collect::<Vec<_>>(), want, "{start:?} {end:?}");
            }
        }
        for key in &keys {
            assert_eq!(get(&*store, family, key).as_ref(), present.contains(&key).then_some(key));
        }
    }
    harness.close(store);
}

/// `visit` breaking off ends the scan after the item it saw.
pub fn scans_stop_when_told<H: Harness>() {
    let mut harness = H::fresh();
    let store = harness.open();
    (0..100u8).for_each(|n| put(&*store, Family::State, &[n], &[n]));
    for (direction, first) in [(Direction::Forward, 10u8), (Direction::Reverse, 89)] {
        let mut seen = Vec::new();
        store
            .scan(Family::State, &[10], &[90], direction, &mut |key, _| {
                seen.push(key[0]);
                if seen.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .expect("a scan of a sound store works");
        assert_eq!(seen.len(), 3, "{direction:?}");
        assert_eq!(seen[0], first, "{direction:?}");
    }
    harness.close(store);
}

/// The same key in two families is two keys.
pub fn families_do_not_mix<H: Harness>() {
    let mut harness = H::fresh();
    let store = harness.open();
    for family in Family::ALL {
        put(&*store, family, b"key", family.name().as_bytes());
    }
    let mut batch = store.batch();
    batch.delete(Family::Log, b"key");
    store.write(batch).expect("a write to a sound store works");
    assert_eq!(get(&*store, Family::Log, b"key"), None);
    assert_eq!(get(&*store, Family::State, b"key"), Some(b"state".to_vec()));
    assert_eq!(scan(&*store, Family::Meta, b"", b"z", Direction::Forward).len(), 1);
    harness.close(store);
}

fn random_batch<S: Storage>(store: &S, dice: &mut Dice, keys: &[Vec<u8>], model: &mut Model) -> S::Batch {
    let mut batch = store.batch();
    for _ in 0..1 + dice.below(12) {
        let family = Family::ALL[dice.below(3)];
        let key = &keys[dice.below(keys.len())];
        match dice.below(8) {
            0 | 1 => {
                batch.delete(family, key);
                model.remove(&(family, key.clone()));
            }
            2 => {
                let end = &keys[dice.below(keys.len())];
                batch.delete_range(family, key, end);
                model.retain(|(f, k), _| *f != family || k < key || k >= end);
            }
            _ => {
                let value = vec![dice.below(256) as u8; dice.below(300)];
                batch.put(family, key, &value);
                model.insert((family, key.clone()), value);
            }
        }
    }
    batch
}

fn assert_holds(read: &dyn Read, model: &Model, hint: &str) {
    for family in Family::ALL {
        let mut end = vec![0xFF; 9000];
        end.push(0);
        let stored = scan(read, family, b"", &end, Direction::Forward);
        let want: Pairs =
            model.iter().filter(|((f, _), _)| *f == family).map(|((_, k), v)| (k.clone(), v.clone())).collect();
        assert_eq!(stored, want, "{family:?} {hint}");
    }
}

/// Random batches of puts, deletes and range deletes leave what a sorted map would hold, over
/// reopening too.
pub fn random_batches_agree_with_a_model<H: Harness>() {
    let keys = awkward_keys();
    for seed in 0..4 {
        let (mut dice, mut model) = (Dice(seed), Model::new());
        let mut harness = H::fresh();
        let mut store = harness.open();
        for step in 0..200 {
            let batch = random_batch(&*store, &mut dice, &keys, &mut model);
            store.write(batch).expect("a write to a sound store works");
            let key = &keys[dice.below(keys.len())];
            for family in Family::ALL {
                assert_eq!(get(&*store, family, key).as_ref(), model.get(&(family, key.clone())), "seed {seed}");
            }
            if step % 50 == 49 {
                assert_holds(&*store, &model, &format!("seed {seed} step {step}"));
                harness.close(store);
                store = harness.open();
            }
        }
        assert_holds(&*store, &model, &format!("seed {seed}, at the end"));
        harness.close(store);
    }
}

/// Runs `check` again and again while another thread writes batches that set all of `keys`, in
/// all families, to one number.
fn beside_a_writer<H: Harness>(check: impl Fn(&H::Store)) {
    let mut harness = H::fresh();
    let store = harness.open();
    let write = |number: u64| {
        let mut batch = store.batch();
        for family in Family::ALL {
            (0..20u8).for_each(|key| batch.put(family, &[key], &number.to_be_bytes()));
        }
        store.write(batch).expect("a write to a sound store works");
    };
    write(0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut number = 0;
            // 200 at least, so that a fast reader still meets a writer.
            while number < 200 || !stop.load(Ordering::Acquire) {
                number += 1;
                write(number);
            }
        });
        (0..200).for_each(|_| check(&store));
        stop.store(true, Ordering::Release);
        writer.join().expect("the writer does not panic");
    });
    harness.close(store);
}

/// All gets and scans inside one view see the same batches.
pub fn views_are_one_point_in_time<H: Harness>() {
    beside_a_writer::<H>(|store| {
        store.with_view(|view| {
            let number = get(view, Family::Log, &[0]);
            assert!(number.is_some());
            for family in Family::ALL {
                let all = scan(view, family, &[0], &[20], Direction::Forward);
                assert_eq!(all.len(), 20);
                assert!(all.iter().all(|(_, value)| Some(value) == number.as_ref()));
                assert_eq!(get(view, family, &[19]), number);
            }
        });
    });
}

/// One scan outside of a view sees the same batches from its first key to its last.
pub fn scans_are_one_point_in_time<H: Harness>() {
    beside_a_writer::<H>(|store| {
        for direction in [Direction::Forward, Direction::Reverse] {
            let all = scan(store, Family::State, &[0], &[20], direction);
            assert_eq!(all.len(), 20);
            assert!(all.iter().all(|(_, value)| *value == all[0].1));
        }
    });
}

fn numbered<S: Storage>(store: &S, number: u64, dice: &mut Dice) -> S::Batch {
    let mut batch = store.batch();
    for family in Family::ALL {
        batch.put(family, &number.to_be_bytes(), &vec![dice.below(256) as u8; dice.below(3000)]);
        batch.put(family, b"last", &number.to_be_bytes());
    }
    batch
}

fn assert_prefix(read: &dyn Read, synced: u64, written: u64, hint: &str) -> u64 {
    let last = |family| {
        get(read, family, b"last").map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().expect("eight bytes")))
    };
    let kept = last(Family::Log);
    assert!(kept >= synced, "{hint}: synced up to {synced}, kept {kept}");
    assert!(kept <= written, "{hint}: written up to {written}, kept {kept}");
    for family in Family::ALL {
        assert_eq!(last(family), kept, "{hint}: {family:?}");
        let numbers: Vec<u64> = scan(read, family, &[0; 8], &[1; 8], Direction::Forward)
            .iter()
            .map(|(key, _)| u64::from_be_bytes(key[..].try_into().expect("eight bytes")))
            .collect();
        assert_eq!(numbers, (1..=kept).collect::<Vec<_>>(), "{hint}: {family:?}");
    }
    kept
}

/// Crash after crash on one disk: what is left is a prefix of the batches, in all families alike,
/// with all that was synced.
pub fn crashes_leave_a_prefix_with_all_that_was_synced<H: Harness>() {
    for seed in 0..6 {
        let mut dice = Dice(seed);
        let mut harness = H::fresh();
        let mut written = 0;
        for round in 0..4 {
            let store = harness.open();
            let mut synced = written;
            for _ in 0..20 + dice.below(60) {
                written += 1;
                let batch = numbered(&*store, written, &mut dice);
                store.write(batch).expect("a write to a sound store works");
                if dice.below(10) == 0 {
                    store.sync().expect("a sync of a sound store works");
                    synced = written;
                }
            }
            harness.crash(store, dice.roll());
            let store = harness.open();
            written = assert_prefix(&*store, synced, written, &format!("seed {seed} round {round}"));
            // A second crash right after recovery loses nothing that the first had left.
            harness.crash(store, dice.roll());
            let store = harness.open();
            assert_prefix(&*store, written, written, &format!("seed {seed} round {round}, again"));
            harness.close(store);
        }
    }
}

/// A sync covers what any thread had written before it began.
pub fn sync_covers_earlier_writes_of_all_threads<H: Harness>() {
    for seed in 0..3 {
        let mut harness = H::fresh();
        let store = harness.open();
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let store = &store;
                scope.spawn(move || {
                    (0..50u8).for_each(|n| put(&**store, Family::ALL[usize::from(n % 3)], &[thread, n], &[n; 100]));
                });
            }
        });
        store.sync().expect("a sync of a sound store works");
        put(&*store, Family::Log, b"after", b"the sync");
        harness.crash(store, seed);
        let store = harness.open();
        for thread in 0..4u8 {
            for n in 0..50u8 {
                let value = get(&*store, Family::ALL[usize::from(n % 3)], &[thread, n]);
                assert_eq!(value, Some(vec![n; 100]), "seed {seed}");
            }
        }
        harness.close(store);
    }
}

/// A clean stop and start loses nothing, synced or not.
pub fn reopening_keeps_everything<H: Harness>() {
    let mut harness = H::fresh();
    for round in 0..5u8 {
        let store = harness.open();
        for before in 0..round {
            for family in Family::ALL {
                assert_eq!(get(&*store, family, &[before]), Some(vec![before; 5000]));
            }
        }
        Family::ALL.into_iter().for_each(|family| put(&*store, family, &[round], &[round; 5000]));
        harness.close(store);
    }
}

fn poisons<H: Harness>(fault: Fault) {
    let mut harness = H::fresh();
    let store = harness.open();
    put(&*store, Family::State, b"before", b"1");
    store.sync().expect("a sync of a sound store works");
    harness.inject(&store, fault);
    let attempt = || {
        let mut batch = store.batch();
        batch.put(Family::State, b"after", b"2");
        store.write(batch)?;
        store.sync()
    };
    let first = attempt().expect_err("the injected fault shows at the latest in the sync");
    match (fault, &first) {
        (Fault::NoSpace, StorageError::NoSpace { .. }) => {}
        (Fault::Write | Fault::Sync, StorageError::Io { .. }) => {}
        _ => panic!("{fault:?} showed as {first:?}"),
    }
    for _ in 0..3 {
        assert!(matches!(attempt(), Err(StorageError::Poisoned { cause }) if !cause.is_empty()));
        assert!(matches!(store.sync(), Err(StorageError::Poisoned { cause }) if !cause.is_empty()));
    }
    assert_eq!(get(&*store, Family::State, b"before"), Some(b"1".to_vec()), "reads go on");
    harness.crash(store, 1);
    let store = harness.open();
    assert_eq!(get(&*store, Family::State, b"before"), Some(b"1".to_vec()), "and what was synced is there");
    harness.close(store);
}

/// After a failed write nothing is accepted any more.
pub fn failed_write_poisons<H: Harness>() {
    poisons::<H>(Fault::Write);
}

/// After a failed sync nothing is accepted any more: the kernel may have dropped the dirty pages.
pub fn failed_sync_poisons<H: Harness>() {
    poisons::<H>(Fault::Sync);
}

/// ENOSPC is told apart, since there is a cure for it, and poisons like any other failure.
pub fn lack_of_space_poisons_and_says_so<H: Harness>() {
    poisons::<H>(Fault::NoSpace);
}
