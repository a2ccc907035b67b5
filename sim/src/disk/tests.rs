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
    let want = DiskCounters { writes: 2, bytes_written: 16, syncs: 1, crashes: 1, batches_lost: lost };
    assert_eq!(disk.counters(), want);
}
