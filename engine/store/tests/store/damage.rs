//! Damaged files: each is refused by name, or accepted because only writes that no sync had covered are
//! gone, or found when it is read. Synced writes never go silently, but for the documented limit,
//! which has its own test.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use flotilla_engine::storage::conformance::Dice;
use flotilla_engine::storage::{Direction, Family, Read, Staging, Storage, StorageError, TableWriter, WriteBatch};
use flotilla_store::{OpenError, RocksStorage};
use tempfile::TempDir;

use crate::harness::{Tracked, copy, create, open, wals};

/// A crashed store, and what is known of it.
struct Scene {
    image: TempDir,
    synced: u64,
    /// What the last sync but one had covered.
    synced_before: u64,
    written: u64,
    /// Per WAL file (by name): the bytes that the last sync covered.
    synced_bytes: BTreeMap<PathBuf, u64>,
}

fn value(number: u64) -> Vec<u8> {
    let mut dice = Dice(number);
    let length = if number.is_multiple_of(40) { 90_000 } else { 200 + dice.below(900) };
    (0..length).map(|_| dice.roll() as u8).collect()
}

fn write(store: &impl Storage, number: u64) {
    let mut batch = store.batch();
    for family in [Family::Log, Family::State] {
        batch.put(family, &number.to_be_bytes(), &value(number));
    }
    store.write(batch).expect("a sound store takes writes");
}

/// Takes a table file in, which takes a sequence number past the WAL because a view is open.
fn ingest(store: &impl Staging, number: u64) {
    let mut table = store.stage_table().expect("a sound store stages files");
    table.put(&[&[0xFF; 9][..], &number.to_be_bytes()].concat(), b"ingested").expect("one key");
    let file = table.finish().expect("a sound store stages files");
    store.with_view(|_| store.ingest(Family::State, std::slice::from_ref(&file))).expect("it can be ingested");
    store.area().remove(&file.name);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Watermark {
    AtOpen,
    AtLastSync,
}

const SYNC_EVERY: u64 = 3;
const SYNCED: u64 = 240;

/// Table files, two WAL files that are needed, and `unsynced` batches at the end of the second.
fn scene(unsynced: u64, watermark: Watermark) -> Scene {
    let live = TempDir::new().expect("a temporary directory can be made");
    let store = Tracked::new(create(live.path()));
    for number in 1..=SYNCED {
        write(&store, number);
        // Before a sync, and right after one.
        if number % 17 == 5 {
            ingest(&store, number);
        }
        if number.is_multiple_of(SYNC_EVERY) {
            store.sync().expect("a sound store syncs");
        }
        match number {
            // The first WAL file is done with.
            60 => [Family::Log, Family::State].iter().for_each(|f| store.store.flush(*f).expect("it flushes")),
            // The second is still needed for `log`.
            150 => store.store.flush(Family::State).expect("it flushes"),
            _ => {}
        }
    }
    let synced_bytes = names(wals(live.path()));
    if watermark == Watermark::AtLastSync {
        store.store.note_synced().expect("a sound store can be noted");
    }
    for number in SYNCED + 1..=SYNCED + unsynced {
        if number % 5 == 4 {
            ingest(&store, number);
        }
        write(&store, number);
    }
    store.store.hand_to_system().expect("a sound store takes writes");
    let image = TempDir::new().expect("a temporary directory can be made");
    copy(live.path(), image.path());
    // Damage is for what was written; room has its own tests.
    for (wal, written) in names(wals(live.path())) {
        let copied = fs::File::options().write(true).open(image.path().join("db").join(wal));
        copied.and_then(|file| file.set_len(written)).expect("the copy can be cut");
    }
    Scene { image, synced: SYNCED, synced_before: SYNCED - SYNC_EVERY, written: SYNCED + unsynced, synced_bytes }
}

fn names(files: BTreeMap<PathBuf, u64>) -> BTreeMap<PathBuf, u64> {
    files.into_iter().map(|(path, size)| (PathBuf::from(path.file_name().expect("it has a name")), size)).collect()
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    Flip(usize),
    Zero(usize),
    Cut(usize),
    Remove,
}

impl Damage {
    fn offset(self) -> u64 {
        match self {
            Self::Flip(at) | Self::Zero(at) | Self::Cut(at) => at as u64,
            Self::Remove => 0,
        }
    }

    fn apply(self, file: &Path) {
        let mut bytes = fs::read(file).expect("the file is there");
        match self {
            Self::Flip(at) => bytes[at] ^= 0x10,
            Self::Zero(at) => {
                let end = (at + 4096).min(bytes.len());
                bytes[at..end].fill(0);
            }
            Self::Cut(at) => bytes.truncate(at),
            Self::Remove => return fs::remove_file(file).expect("the file is there"),
        }
        fs::write(file, bytes).expect("the file can be written");
    }
}

#[derive(Debug)]
enum Outcome {
    Refused(OpenError),
    /// It opened, and reading told.
    FoundWhenRead,
    /// All batches up to this one, and no other.
    Kept(u64),
}

impl Scene {
    fn with(&self, file: &str, damage: Damage) -> Outcome {
        let copied = TempDir::new().expect("a temporary directory can be made");
        copy(self.image.path(), copied.path());
        damage.apply(&copied.path().join(file));
        self.outcome(copied.path(), &format!("{file} {damage:?}"))
    }

    fn outcome(&self, path: &Path, hint: &str) -> Outcome {
        let store = match open(path) {
            Ok(store) => store,
            Err(error) => return Outcome::Refused(error),
        };
        let mut kept = None;
        for family in [Family::Log, Family::State] {
            match numbers(&store, family) {
                Ok(numbers) => {
                    let last = numbers.len() as u64;
                    assert!(numbers.into_iter().eq(1..=last), "{hint}: a hole in {family:?}");
                    assert_eq!(*kept.get_or_insert(last), last, "{hint}: the families differ");
                }
                Err(StorageError::Corrupt { .. }) => return Outcome::FoundWhenRead,
                Err(error) => panic!("{hint}: {error}"),
            }
        }
        let kept = kept.unwrap_or(0);
        assert!(kept <= self.written, "{hint}");
        Outcome::Kept(kept)
    }

    /// Offsets of all kinds in a file: its beginning, its end, and spread over it.
    fn damages(&self, file: &str, spread: usize) -> Vec<Damage> {
        let length = fs::metadata(self.image.path().join(file)).expect("the file is there").len() as usize;
        let mut dice = Dice(length as u64);
        let edges = (0..length.min(24)).chain(length.saturating_sub(24)..length);
        let offsets: Vec<usize> = edges.chain((0..spread).map(|_| dice.below(length))).collect();
        offsets.iter().flat_map(|at| [Damage::Flip(*at), Damage::Zero(*at), Damage::Cut(*at)]).collect()
    }

    fn files(&self, matches: impl Fn(&str) -> bool) -> Vec<String> {
        let listed = fs::read_dir(self.image.path().join("db")).expect("the folder is there");
        let names = listed.map(|entry| entry.expect("it can be listed").file_name().into_string().expect("it is text"));
        let mut found: Vec<String> = names.filter(|name| matches(name)).map(|name| format!("db/{name}")).collect();
        found.sort();
        assert!(!found.is_empty());
        found
    }
}

fn numbers(store: &RocksStorage, family: Family) -> Result<Vec<u64>, StorageError> {
    let mut numbers = Vec::new();
    store.scan(family, &[0; 8], &[0xFF; 8], Direction::Forward, &mut |key, found| {
        let number = u64::from_be_bytes(key.try_into().expect("keys have eight bytes"));
        assert_eq!(found, value(number), "bytes that were never written");
        numbers.push(number);
        std::ops::ControlFlow::Continue(())
    })?;
    Ok(numbers)
}

fn assert_refused_by_name(error: &OpenError, file: &str, hint: &str) {
    match error {
        OpenError::Corrupt { file: named, .. } => assert!(named.ends_with(file), "{hint}: {error}"),
        _ => panic!("{hint}: {error}"),
    }
    assert!(error.to_string().contains("does not serve"), "{error}");
}

#[test]
fn an_undamaged_crash_image_keeps_what_was_synced() {
    for unsynced in [0, 100] {
        let scene = scene(unsynced, Watermark::AtOpen);
        assert!(scene.files(|name| name.ends_with(".log")).len() >= 2);
        match scene.outcome(scene.image.path(), "as it lay there") {
            Outcome::Kept(kept) => assert!(kept >= scene.synced),
            other => panic!("{other:?}"),
        }
    }
}

/// With the watermark of the last sync nothing synced goes unnoticed, and what was not synced may go.
#[test]
fn a_damaged_wal_is_refused_or_only_unsynced_writes_are_gone() {
    for unsynced in [0, 100] {
        let scene = scene(unsynced, Watermark::AtLastSync);
        let (mut refused, mut accepted) = (0, 0);
        for file in scene.files(|name| name.ends_with(".log")) {
            let name = Path::new(&file).file_name().expect("it has a name");
            let synced_bytes = scene.synced_bytes[Path::new(name)];
            for damage in scene.damages(&file, 30).into_iter().chain([Damage::Remove]) {
                let hint = format!("{file} {damage:?}, synced {synced_bytes}, {unsynced} batches unsynced");
                match scene.with(&file, damage) {
                    Outcome::Refused(_) if damage.offset() >= synced_bytes => panic!("{hint}: refused without need"),
                    Outcome::Refused(error) if matches!(damage, Damage::Remove) => {
                        assert!(matches!(error, OpenError::Corrupt { .. } | OpenError::SyncedWritesLost { .. }));
                        refused += 1;
                    }
                    Outcome::Refused(error) => {
                        assert_refused_by_name(&error, &file, &hint);
                        refused += 1;
                    }
                    Outcome::Kept(kept) => {
                        assert!(kept >= scene.synced, "{hint}: kept {kept}");
                        accepted += 1;
                    }
                    Outcome::FoundWhenRead => panic!("{hint}: the WAL is read at open"),
                }
            }
        }
        assert!(refused > 100, "{refused}");
        assert!(unsynced == 0 || accepted > 50, "{accepted}");
    }
}

/// Without it, the marks in intact batches behind a bad place still prove what had been synced before
/// them. What no mark and no watermark covers is the documented limit: rot in the last synced
/// batches looks like a torn end.
#[test]
fn without_a_watermark_only_the_last_synced_batches_can_go_unnoticed() {
    let scene = scene(0, Watermark::AtOpen);
    let mut unnoticed = 0;
    for file in scene.files(|name| name.ends_with(".log")) {
        for damage in scene.damages(&file, 60) {
            if !matches!(damage, Damage::Flip(_)) {
                continue;
            }
            let hint = format!("{file} {damage:?}");
            match scene.with(&file, damage) {
                Outcome::Refused(error) => assert_refused_by_name(&error, &file, &hint),
                Outcome::Kept(kept) => {
                    assert!(kept >= scene.synced_before, "{hint}: kept {kept}");
                    unnoticed += u32::from(kept < scene.synced);
                }
                Outcome::FoundWhenRead => panic!("{hint}: the WAL is read at open"),
            }
        }
    }
    assert!(unnoticed > 0, "if nothing goes unnoticed any more, the documented limit is gone: say so");
}

/// The last WAL file has its size ahead of what is written: neither a loss nor a torn end, whatever was synced; a store that is closed gives
/// the room back.
#[test]
fn room_at_the_end_of_the_wal_is_no_torn_end() {
    let live = TempDir::new().expect("a temporary directory can be made");
    let store = Tracked::new(create(live.path()));
    for number in 1..=20 {
        write(&store, number);
        if number % 5 == 0 {
            store.sync().expect("a sound store syncs");
        }
    }
    store.store.note_synced().expect("a sound store can be noted");
    let (wal, written) = wals(live.path()).pop_last().expect("there is a WAL file");
    let size = fs::metadata(&wal).expect("the file is there").len();
    assert!(size >= written + (2 << 20), "{size} bytes for {written}");
    let image = TempDir::new().expect("a temporary directory can be made");
    copy(live.path(), image.path());
    let name = Path::new("db").join(wal.file_name().expect("it has a name"));
    // As long as it is, one byte of zeros, and all of the room but a part of a block.
    for length in [size, written, written + 1, size - 5000] {
        let copied = TempDir::new().expect("a temporary directory can be made");
        copy(image.path(), copied.path());
        let file = fs::File::options().write(true).open(copied.path().join(&name)).expect("the copy is there");
        file.set_len(length).expect("the copy can be cut");
        let opened = open(copied.path()).expect("nothing is missing");
        assert_eq!(numbers(&opened, Family::State).expect("it can be read").len(), 20, "{length}");
        assert_eq!(opened.recovery().torn, None, "{length}");
    }
    // A torn record before the room; what was synced is not.
    let torn = image.path().join(&name);
    let mut bytes = fs::read(&torn).expect("the file is there");
    let at = written as usize;
    bytes[at..at + 9].copy_from_slice(&[1, 2, 3, 4, 200, 0, 1, 7, 7]);
    fs::write(&torn, bytes).expect("the file can be written");
    let opened = open(image.path()).expect("nothing synced is missing");
    let found = opened.recovery().torn.clone().expect("the end is torn");
    assert_eq!((found.offset, found.dropped_bytes), (written, 9));
    store.store.close().expect("a sound store is closed");
    let written = wals(live.path()).pop_last().map(|(_, written)| written);
    drop(store);
    let closed = wals(live.path()).pop_last().map(|(_, size)| size);
    assert_eq!(closed, written, "the room is given back");
}

/// Zeros where something was synced are no room.
#[test]
fn zeros_over_what_was_synced_are_refused() {
    let scene = scene(0, Watermark::AtLastSync);
    let file = scene.files(|name| name.ends_with(".log")).pop().expect("there are WAL files");
    let length = fs::metadata(scene.image.path().join(&file)).expect("the file is there").len();
    for kept in [0, length / 3, length - 40] {
        let copied = TempDir::new().expect("a temporary directory can be made");
        copy(scene.image.path(), copied.path());
        let wal = fs::File::options().write(true).open(copied.path().join(&file)).expect("the copy is there");
        wal.set_len(kept).and_then(|()| wal.set_len(length + (1 << 20))).expect("the copy can be changed");
        match open(copied.path()) {
            Err(error) => assert_refused_by_name(&error, &file, &format!("{kept} of {length}")),
            Ok(_) => panic!("{kept} of {length}: it opened"),
        }
    }
}

/// Pages of zeros anywhere in the unsynced end, with intact batches behind them.
#[test]
fn a_hole_in_the_unsynced_end_is_cut_off() {
    let scene = scene(100, Watermark::AtOpen);
    let file = scene.files(|name| name.ends_with(".log")).pop().expect("there are WAL files");
    let name = Path::new(&file).file_name().expect("it has a name");
    let (from, length) = (scene.synced_bytes[Path::new(name)] as usize, wals(scene.image.path()));
    let length = *length.values().last().expect("there are WAL files") as usize;
    assert!(length > from + 20_000, "some unsynced batches were handed to the system");
    let mut lengths = std::collections::BTreeSet::new();
    for at in (from..length).step_by(3000) {
        match scene.with(&file, Damage::Zero(at)) {
            Outcome::Kept(kept) => {
                assert!(kept >= scene.synced, "{at}: kept {kept}");
                lengths.insert(kept);
            }
            other => panic!("{at}: {other:?}"),
        }
    }
    assert!(lengths.len() > 5, "{lengths:?}");
}

/// Writes a batch that takes just so many bytes of the WAL, in one fragment.
fn write_exactly(store: &Tracked, number: u64, bytes: usize) {
    // Fragment, batch, change, family, key with its length, length of the value.
    let overhead = 7 + 12 + 1 + 1 + (1 + 8) + 2;
    let mut batch = store.batch();
    batch.put(Family::Log, &number.to_be_bytes(), &vec![number as u8; bytes - overhead]);
    store.write(batch).expect("a sound store takes writes");
}

/// A whole block of zeros between blocks that begin with a record: RocksDB alone skips it without a word,
/// and would replay over the hole.
#[test]
fn a_zeroed_block_is_a_hole_too() {
    const BLOCK: usize = 32 << 10;
    let live = TempDir::new().expect("a temporary directory can be made");
    let store = Tracked::new(create(live.path()));
    let size = || wals(live.path()).pop_last().map_or(0, |(_, size)| size as usize);
    write_exactly(&store, 1, 1000);
    store.sync().expect("a sound store syncs");
    // This one carries a mark, too.
    write_exactly(&store, 2, 1000);
    for (number, end) in [(3, 11_000), (4, 22_000), (5, BLOCK)] {
        write_exactly(&store, number, end - size());
    }
    assert_eq!(size(), BLOCK);
    (6..22).for_each(|number| write_exactly(&store, number, BLOCK / 4));
    assert_eq!(size(), 5 * BLOCK);
    for block in 1..4 {
        let image = TempDir::new().expect("a temporary directory can be made");
        copy(live.path(), image.path());
        let (wal, _) = wals(image.path()).pop_last().expect("there is a WAL file");
        let mut bytes = fs::read(&wal).expect("the file is there");
        bytes[block * BLOCK..(block + 1) * BLOCK].fill(0);
        fs::write(&wal, bytes).expect("the file can be written");
        let store = open(image.path()).expect("nothing synced is gone");
        let torn = store.recovery().torn.clone().expect("the end was torn");
        assert_eq!((torn.offset, torn.dropped_bytes), ((block * BLOCK) as u64, ((5 - block) * BLOCK) as u64));
        let kept = 5 + 4 * (block as u64 - 1);
        for number in 1..22u64 {
            let found = store.get(Family::Log, &number.to_be_bytes()).expect("a sound store reads");
            assert_eq!(found.is_some(), number <= kept, "block {block} number {number}");
        }
    }
}

/// Batches that RocksDB joins into one record still follow each other without gaps.
#[test]
fn write_groups_of_many_threads_audit_clean() {
    let live = TempDir::new().expect("a temporary directory can be made");
    let store = Tracked::new(create(live.path()));
    std::thread::scope(|scope| {
        for thread in 0..6u64 {
            let store = &store;
            scope.spawn(move || {
                for number in 0..300u64 {
                    let mut batch = store.store.batch();
                    batch.put(Family::Log, &(thread * 1000 + number).to_be_bytes(), &value(number));
                    batch.delete_range(Family::State, &[thread as u8], &[thread as u8 + 1]);
                    batch.delete(Family::Meta, &[thread as u8]);
                    store.store.write(batch).expect("a sound store takes writes");
                    if thread == 0 {
                        store.store.sync().expect("a sound store syncs");
                    }
                }
            });
        }
    });
    store.store.sync().expect("a sound store syncs");
    let image = TempDir::new().expect("a temporary directory can be made");
    copy(live.path(), image.path());
    let reopened = open(image.path()).expect("nothing is wrong with it");
    assert_eq!(reopened.recovery().torn, None);
    assert_eq!(numbers_found(&reopened), 6 * 300);
}

fn numbers_found(store: &RocksStorage) -> usize {
    let mut found = 0;
    let mut count = |_: &[u8], _: &[u8]| {
        found += 1;
        std::ops::ControlFlow::Continue(())
    };
    store.scan(Family::Log, &[0; 8], &[0xFF; 8], Direction::Forward, &mut count).expect("a sound store scans");
    found
}

#[test]
fn a_damaged_current_or_manifest_is_refused_or_harmless() {
    let scene = scene(100, Watermark::AtLastSync);
    let mut refused = 0;
    for file in scene.files(|name| name == "CURRENT" || name.starts_with("MANIFEST-")) {
        for damage in scene.damages(&file, 40).into_iter().chain([Damage::Remove]) {
            let hint = format!("{file} {damage:?}");
            match scene.with(&file, damage) {
                Outcome::Refused(error @ OpenError::Corrupt { .. }) => {
                    // A MANIFEST cut short looks like an older one: then other files do not fit it.
                    if !matches!(damage, Damage::Cut(_)) && file.contains("MANIFEST") {
                        assert_refused_by_name(&error, &file, &hint);
                    }
                    refused += 1;
                }
                Outcome::Kept(kept) => assert!(kept >= scene.synced, "{hint}: kept {kept}"),
                other => panic!("{hint}: {other:?}"),
            }
        }
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn damaged_tables_are_refused_or_found_when_read() {
    let scene = scene(0, Watermark::AtLastSync);
    let mut noticed = 0;
    for file in scene.files(|name| name.ends_with(".sst")) {
        for damage in scene.damages(&file, 15).into_iter().chain([Damage::Remove]) {
            let hint = format!("{file} {damage:?}");
            match scene.with(&file, damage) {
                Outcome::Refused(OpenError::Corrupt { .. }) | Outcome::FoundWhenRead => noticed += 1,
                Outcome::Kept(kept) => assert!(kept >= scene.synced, "{hint}: kept {kept}"),
                other => panic!("{hint}: {other:?}"),
            }
        }
    }
    assert!(noticed > 100, "{noticed}");
}

#[test]
fn a_damaged_watermark_is_refused() {
    let scene = scene(0, Watermark::AtLastSync);
    for damage in scene.damages("WATERMARK", 0) {
        match scene.with("WATERMARK", damage) {
            Outcome::Refused(error) => assert_refused_by_name(&error, "WATERMARK", &format!("{damage:?}")),
            // Zeroing zeros damages nothing.
            Outcome::Kept(kept) => assert!(kept >= scene.synced && matches!(damage, Damage::Zero(_)), "{damage:?}"),
            other => panic!("{damage:?}: {other:?}"),
        }
    }
}

/// Crash after crash with torn ends, each store opened anew: no false alarm, nothing synced lost.
#[test]
fn torn_ends_are_no_cause_for_alarm() {
    for seed in 0..12 {
        let mut dice = Dice(seed);
        let mut path = TempDir::new().expect("a temporary directory can be made");
        drop(create(path.path()));
        let mut number = 0;
        for _ in 0..4 {
            let store = Tracked::new(open(path.path()).expect("a torn end is no cause for alarm"));
            let mut synced = number;
            for _ in 0..dice.below(150) {
                number += 1;
                write(&store, number);
                match dice.below(20) {
                    0..3 => {
                        store.sync().expect("a sound store syncs");
                        synced = number;
                    }
                    3 => {
                        store.sync().expect("a sound store syncs");
                        store.store.note_synced().expect("a sound store can be noted");
                        synced = number;
                    }
                    4 => store.store.flush(Family::ALL[dice.below(3)]).expect("a sound store flushes"),
                    _ => {}
                }
            }
            let after = TempDir::new().expect("a temporary directory can be made");
            store.copy_crashed(after.path(), dice.roll());
            drop(store);
            path = after;
            let reopened = open(path.path()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            let left = numbers(&reopened, Family::Log).expect("a sound store scans");
            let kept = left.len() as u64;
            assert!(left.into_iter().eq(1..=kept) && (synced..=number).contains(&kept), "seed {seed}: {kept}");
            assert_eq!(numbers(&reopened, Family::State).expect("a sound store scans").len() as u64, kept);
            number = kept;
        }
    }
}

/// Before the first watermark after a start, nothing else tells that there was such a file.
#[test]
fn a_wal_that_is_missing_right_after_a_start_is_noticed() {
    let data = TempDir::new().expect("a temporary directory can be made");
    let store = create(data.path());
    let mut batch = store.batch();
    batch.put(Family::Log, b"key", b"value");
    store.write(batch).expect("it writes");
    store.sync().expect("it syncs");
    let copied = TempDir::new().expect("a temporary directory can be made");
    copy(data.path(), copied.path());
    for wal in wals(copied.path()).into_keys() {
        fs::remove_file(wal).expect("the file is there");
    }
    match open(copied.path()) {
        Err(OpenError::Corrupt { file, what }) => {
            assert!(file.extension().is_some_and(|extension| extension == "log"), "{}", file.display());
            assert!(what.contains("missing"), "{what}");
        }
        other => panic!("{:?}", other.map(|_| "it opened")),
    }
}
