use std::sync::Arc;

use flotilla_engine::storage::conformance::{Dice, Fault, Harness};

use super::*;

struct SimHarness(SimDisk);

impl Harness for SimHarness {
    type Store = SimDisk;

    fn fresh() -> Self {
        Self(SimDisk::new())
    }

    fn open(&mut self) -> Arc<SimDisk> {
        Arc::new(self.0.clone())
    }

    fn close(&mut self, store: Arc<SimDisk>) {
        store.close().expect("a sound store closes");
    }

    fn crash(&mut self, store: Arc<SimDisk>, seed: u64) {
        store.crash(seed);
    }

    fn inject(&mut self, store: &SimDisk, fault: Fault) {
        store.inject(match fault {
            Fault::Write => DiskFault::Write,
            Fault::Sync => DiskFault::Sync,
            Fault::NoSpace => DiskFault::NoSpace,
        });
    }
}

mod conformance {
    flotilla_engine::storage_conformance!(super::SimHarness);

    mod snapshots {
        flotilla_engine::snapshot_conformance!(super::super::SimHarness);
    }
}

fn put(disk: &SimDisk, key: &[u8], value: &[u8]) {
    let mut batch = disk.batch();
    batch.put(Family::State, key, value);
    disk.write(batch).expect("a sound disk takes writes");
}

fn contents(disk: &SimDisk) -> Vec<(Bytes, Bytes)> {
    disk.visible()
        .scan_all(Family::State)
        .into_iter()
        .map(|(key, value)| (Bytes::from(key), Bytes::from(value)))
        .collect()
}

impl Maps {
    fn scan_all(&self, family: Family) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut all = Vec::new();
        self.scan(family, b"", &[0xFF; 9], Direction::Forward, &mut |key, value| {
            all.push((key.to_vec(), value.to_vec()));
            std::ops::ControlFlow::Continue(())
        })
        .expect("memory does not fail");
        all
    }
}

/// A crash may lose everything, nothing, and any number between, and equal seeds lose the same.
#[test]
fn crashes_keep_every_length_of_prefix() {
    let mut lengths = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let run = || {
            let disk = SimDisk::new();
            (0..5u8).for_each(|n| put(&disk, &[n], &[n]));
            assert_eq!(disk.unsynced_batches(), 5);
            let lost = disk.crash(seed);
            assert_eq!(contents(&disk).len() + lost, 5);
            lost
        };
        let lost = run();
        assert_eq!(lost, run(), "seed {seed}");
        lengths.insert(lost);
    }
    assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
}

/// Undoing batches over each other's traces brings back what the last sync covered.
#[test]
fn lost_batches_leave_no_trace() {
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let disk = SimDisk::new();
        let mut states = vec![];
        for step in 0..30 {
            if step == 15 {
                disk.sync().expect("a sound disk syncs");
                states = vec![contents(&disk)];
            }
            let mut batch = disk.batch();
            for _ in 0..4 {
                let (a, b) = (dice.below(6) as u8, dice.below(6) as u8);
                match dice.below(3) {
                    0 => batch.put(Family::State, &[a], &[b]),
                    1 => batch.delete(Family::State, &[a]),
                    _ => batch.delete_range(Family::State, &[a], &[b]),
                }
            }
            if !batch.is_empty() {
                disk.write(batch).expect("a sound disk takes writes");
                states.push(contents(&disk));
            }
        }
        let lost = disk.crash(dice.roll());
        assert_eq!(contents(&disk), states[states.len() - 1 - lost], "seed {seed}");
    }
}

#[test]
fn lack_of_space_outlives_a_restart_and_goes_when_room_is_made() {
    let disk = SimDisk::new();
    disk.inject(DiskFault::NoSpace);
    let attempt = || {
        let mut batch = disk.batch();
        batch.put(Family::Log, b"k", b"v");
        disk.write(batch)
    };
    assert!(matches!(attempt(), Err(StorageError::NoSpace { .. })));
    assert!(disk.is_poisoned() && disk.close().is_err());
    disk.crash(1);
    assert!(matches!(attempt(), Err(StorageError::NoSpace { .. })));
    disk.free_space();
    assert!(matches!(attempt(), Err(StorageError::Poisoned { .. })), "poisoned until it starts anew");
    disk.crash(2);
    attempt().expect("there is room");
}

#[test]
fn counters_count() {
    let disk = SimDisk::new();
    put(&disk, b"key", b"value");
    disk.sync().expect("a sound disk syncs");
    put(&disk, b"key", b"other");
    let lost = disk.crash(3) as u64;
    let want = DiskCounters { writes: 2, bytes_written: 16, syncs: 1, crashes: 1, batches_lost: lost, reads_failed: 0 };
    assert_eq!(disk.counters(), want);
}

#[test]
fn what_rots_is_never_read_until_it_is_written_anew_or_mended() {
    let disk = SimDisk::new();
    (0..4u8).for_each(|n| put(&disk, &[n], &[n]));
    disk.sync().expect("a sound disk syncs");
    disk.rot(Family::State, 500);
    let corrupt = |error: Result<Option<Bytes>>| matches!(error, Err(StorageError::Corrupt { .. }));
    let scan = |from: u8, to: u8| {
        let mut seen = Vec::new();
        let all = disk.scan(Family::State, &[from], &[to], Direction::Forward, &mut |key, _| {
            seen.push(key[0]);
            std::ops::ControlFlow::Continue(())
        });
        all.map(|()| seen)
    };
    assert_eq!((disk.get(Family::State, &[1]), disk.rot_was_met()), (Ok(Some(Bytes::from_static(&[1]))), false));
    assert!(corrupt(disk.get(Family::State, &[2])) && disk.rot_was_met());
    assert!(corrupt(disk.with_view(|view| view.get(Family::State, &[2]))));
    assert!(matches!(scan(0, 9), Err(StorageError::Corrupt { .. })));
    assert_eq!((scan(0, 2), scan(3, 9)), (Ok(vec![0, 1]), Ok(vec![3])), "what it does not touch is sound");
    disk.crash(1);
    assert!(!disk.rot_was_met() && corrupt(disk.get(Family::State, &[2])), "a restart mends nothing");
    assert_eq!(disk.copy().get(Family::State, &[2]), Ok(Some(Bytes::from_static(&[2]))));
    put(&disk, &[2], &[7]);
    assert_eq!(disk.get(Family::State, &[2]), Ok(Some(Bytes::from_static(&[7]))));
    disk.rot(Family::State, 0);
    disk.mend();
    assert_eq!(scan(0, 9), Ok(vec![0, 1, 2, 3]));
}

#[test]
fn one_read_fails_and_poisons_nothing() {
    let disk = SimDisk::new();
    put(&disk, b"k", b"v");
    disk.inject(DiskFault::Read(1));
    let read = || disk.get(Family::State, b"k");
    assert!(read().is_ok());
    assert!(matches!(read(), Err(StorageError::Io { .. })));
    assert!(read().is_ok() && !disk.is_poisoned());
    assert_eq!(disk.counters().reads_failed, 1);
}
