//! The scrub, and what becomes of a store in which it, or a read, finds damage.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use flotilla_engine::storage::conformance::Dice;
use flotilla_engine::storage::{Direction, Family, Read, Storage, StorageError, WriteBatch};
use flotilla_store::{DirectoryError, OpenError, RocksStorage, Scrubbed};
use tempfile::TempDir;

use crate::harness::{copy, create, open};

/// A store with table files in all families.
fn filled(path: &Path) -> RocksStorage {
    let store = create(path);
    for round in 0..3 {
        let mut batch = store.batch();
        for number in 0..400_u64 {
            let mut dice = Dice(number + round);
            let value: Vec<u8> = (0..300).map(|_| dice.roll() as u8).collect();
            for family in Family::ALL {
                batch.put(family, &(number * 3 + round).to_be_bytes(), &value);
            }
        }
        store.write(batch).and_then(|()| store.sync()).expect("a sound store takes writes");
        Family::ALL.iter().for_each(|family| store.flush(*family).expect("it flushes"));
    }
    store
}

fn whole(store: &RocksStorage) -> Result<Scrubbed, StorageError> {
    store.scrub(&mut |_| ControlFlow::Continue(()))
}

fn tables(path: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(path.join("db")).expect("it can be listed");
    let paths = listed.map(|entry| entry.expect("it can be listed").path());
    let mut tables: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|end| end == "sst")).collect();
    tables.sort();
    assert!(tables.len() >= 3, "{tables:?}");
    tables
}

/// In place: the file stays the same one, as on a disk that rots.
fn flip(file: &Path, at: u64, bit: u8) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().read(true).write(true).open(file).expect("the test's own");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("it is there");
    file.write_all_at(&[byte[0] ^ (1 << bit)], at).expect("it can be written");
}

/// The store reads nothing, is not opened again, and says why, until a person has removed the mark.
fn assert_stopped(store: RocksStorage, path: &Path, named: &str) {
    let seen = store.damage().expect("it was noted").to_owned();
    assert!(seen.contains(named), "{seen}");
    let refused = store.get(Family::Meta, &[9]).expect_err("it reads nothing any more");
    assert!(matches!(refused, StorageError::Corrupt { .. }), "{refused}");
    let mut batch = store.batch();
    batch.put(Family::Meta, &[9], &[]);
    assert!(matches!(store.write(batch), Err(StorageError::Poisoned { .. })));
    drop(store);
    match open(path) {
        Err(OpenError::Directory(error @ DirectoryError::Damaged { .. })) => {
            let words = error.to_string();
            assert!([named, "--join", "DAMAGED"].iter().all(|word| words.contains(word)), "{words}");
        }
        other => panic!("{:?}", other.map(|_| "it opened")),
    }
    fs::remove_file(path.join("DAMAGED")).expect("there is a mark");
}

#[test]
fn a_sound_store_passes_while_files_come_and_go() {
    let data = TempDir::new().expect("a temporary directory can be made");
    let store = filled(data.path());
    assert_eq!(store.last_scrub(), None);
    let first = whole(&store).expect("nothing is wrong");
    assert!(
        first.first_seen >= 3 && first.compared == 0 && first.records == 3 * 1_200 && !first.cut_short,
        "{first:?}"
    );
    assert!(store.last_scrub().is_some());
    let second = whole(&store).expect("nothing is wrong");
    assert_eq!((second.compared, second.first_seen), (first.first_seen, 0));
    let mut batch = store.batch();
    batch.put(Family::State, b"more", b"and more");
    store.write(batch).and_then(|()| store.sync()).expect("a sound store takes writes");
    store.flush(Family::State).expect("it flushes");
    assert!(whole(&store).expect("nothing is wrong").first_seen > 0);
    let cut = store.scrub(&mut |_| ControlFlow::Break(())).expect("nothing is wrong");
    assert!(cut.cut_short && cut.bytes < second.bytes, "{cut:?}");
    // What was remembered holds over a restart, and a loss of it is none.
    drop(store);
    let store = open(data.path()).expect("nothing is wrong");
    assert!(whole(&store).expect("nothing is wrong").compared > 0);
    flip(&data.path().join("TABLES"), 30, 1);
    assert_eq!(store.last_scrub(), None);
    assert!(whole(&store).expect("nothing is wrong").compared == 0);
    assert_eq!(store.damage(), None);
}

/// Also in parts of a file that nothing reads: every byte is one that was written.
#[test]
fn a_flipped_bit_anywhere_in_a_table_is_found_by_the_next_pass() {
    let image = TempDir::new().expect("a temporary directory can be made");
    let store = filled(image.path());
    whole(&store).expect("nothing is wrong");
    store.close().expect("it closes");
    drop(store);
    let mut dice = Dice(7);
    for round in 0..24 {
        let data = TempDir::new().expect("a temporary directory can be made");
        copy(image.path(), data.path());
        let store = open(data.path()).expect("nothing is wrong");
        let files = tables(data.path());
        let file = &files[dice.below(files.len())];
        let bytes = fs::metadata(file).expect("it is there").len();
        // The first from the end: footer and indexes.
        let at = if round < 8 { bytes - 1 - dice.below(60) as u64 } else { dice.below(bytes as usize) as u64 };
        flip(file, at, dice.below(8) as u8);
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&told);
        store.on_damage(Box::new(move |seen| sink.lock().expect("no panic").push(seen.to_owned())));
        let name = file.file_name().and_then(|name| name.to_str()).expect("a plain name");
        let error = whole(&store).expect_err("it has changed");
        assert!(matches!(&error, StorageError::Corrupt { what } if what.contains(name)), "{name} {at}: {error}");
        assert_eq!(told.lock().expect("no panic").len(), 1);
        assert_stopped(store, data.path(), name);
    }
}

/// Nobody remembers what the file was: its blocks tell.
#[test]
fn a_first_pass_finds_bad_blocks_and_missing_files() {
    let image = TempDir::new().expect("a temporary directory can be made");
    let store = filled(image.path());
    store.close().expect("it closes");
    drop(store);
    for (name, gone) in [("bad", false), ("gone", true)] {
        let data = TempDir::new().expect("a temporary directory can be made");
        copy(image.path(), data.path());
        let store = open(data.path()).expect("nothing is wrong");
        let file = tables(data.path()).pop().expect("there are some");
        if gone {
            fs::remove_file(&file).expect("the test's own");
        } else {
            flip(&file, 1_000, 3);
        }
        let error = whole(&store).expect_err(name);
        assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
        let file = file.file_name().and_then(|name| name.to_str()).expect("a plain name");
        assert_stopped(store, data.path(), file);
    }
}

#[test]
fn a_read_that_meets_a_bad_block_stops_the_store() {
    let data = TempDir::new().expect("a temporary directory can be made");
    let store = filled(data.path());
    store.close().expect("it closes");
    drop(store);
    let store = open(data.path()).expect("nothing is wrong");
    for file in tables(data.path()) {
        flip(&file, 1_000, 3);
    }
    let mut read = Vec::new();
    let scanned = store.scan(Family::State, &[0], &[0xFF], Direction::Forward, &mut |key, _| {
        read.push(key.to_vec());
        ControlFlow::Continue(())
    });
    assert!(matches!(scanned, Err(StorageError::Corrupt { .. })), "{scanned:?}");
    assert_stopped(store, data.path(), ".sst");
}
