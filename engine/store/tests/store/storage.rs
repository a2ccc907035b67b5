//! What the adapter adds to the storage traits.

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_engine::keys;
use flotilla_engine::storage::conformance::Dice;
use flotilla_engine::storage::{Direction, Family, Read, Storage, StorageError, WriteBatch};
use flotilla_proto::{KeyspaceId, RangeId};
use flotilla_store::{Cached, OpenError, Options, RocksStorage, StoreDirectory};
use tempfile::TempDir;

use crate::harness::{copy, create, open, small, wals};

fn temporary() -> TempDir {
    TempDir::new().expect("a temporary directory can be made")
}

fn put(store: &RocksStorage, family: Family, key: &[u8], value: &[u8]) {
    let mut batch = store.batch();
    batch.put(family, key, value);
    store.write(batch).expect("a sound store takes writes");
}

/// Data keys, keys with a further suffix and range state, through tables with filters.
#[test]
fn prefix_filters_hide_nothing() {
    let path = temporary();
    let store = create(path.path());
    let data = |n: u32| keys::data(KeyspaceId(1), &[&n.to_be_bytes()[..], b"\0x"].concat());
    for n in 0..2000u32 {
        let version = [&data(n)[..], &[0xFF; 9]].concat();
        put(&store, Family::State, &data(n), &n.to_be_bytes());
        put(&store, Family::State, &version, b"version");
        let record = keys::range_record(RangeId(u64::from(n)), keys::RangeRecord::Applied);
        put(&store, Family::State, &record, &n.to_le_bytes());
    }
    store.flush(Family::State).expect("a sound store flushes");
    for n in 0..2000u32 {
        let read = |key: &[u8]| store.get(Family::State, key).expect("a sound store reads");
        assert_eq!(read(&data(n)).as_deref(), Some(&n.to_be_bytes()[..]));
        assert_eq!(read(&data(n + 2000)), None);
        let record = keys::range_record(RangeId(u64::from(n)), keys::RangeRecord::Applied);
        assert_eq!(read(&record).as_deref(), Some(&n.to_le_bytes()[..]));
    }
    for direction in [Direction::Forward, Direction::Reverse] {
        let mut seen = 0;
        let (start, end) = keys::data_span(KeyspaceId(1), b"", b"");
        store
            .scan(Family::State, &start, &end, direction, &mut |_, _| {
                seen += 1;
                ControlFlow::Continue(())
            })
            .expect("a sound store scans");
        assert_eq!(seen, 4000, "{direction:?}");
    }
    assert!(store.statistics().bloom_useful > 0, "missing keys were told by the filter");
}

#[test]
fn reads_that_need_the_disk_say_so() {
    let path = temporary();
    let store = create(path.path());
    put(&store, Family::State, b"k", b"v");
    let read = |store: &RocksStorage| store.get_if_cached(Family::State, b"k").expect("a sound store reads");
    assert_eq!(read(&store), Cached::Known(Some("v".into())), "a memtable is memory");
    assert_eq!(store.get_if_cached(Family::State, b"absent"), Ok(Cached::Known(None)));
    store.close().expect("a sound store closes");
    drop(store);
    let store = open(path.path()).expect("it was closed cleanly");
    assert_eq!(read(&store), Cached::NeedsDisk);
    store.get(Family::State, b"k").expect("a sound store reads");
    assert_eq!(read(&store), Cached::Known(Some("v".into())), "now the block is cached");
}

#[test]
fn a_closed_store_takes_nothing_and_reads_on() {
    let path = temporary();
    let store = create(path.path());
    assert!(!store.recovery().clean_stop);
    put(&store, Family::Meta, b"k", b"v");
    store.close().expect("a sound store closes");
    let mut batch = store.batch();
    batch.put(Family::Meta, b"k", b"w");
    assert!(matches!(store.write(batch), Err(StorageError::Poisoned { cause }) if cause.contains("closed")));
    assert!(store.close().is_err());
    assert_eq!(store.get(Family::Meta, b"k"), Ok(Some("v".into())));
    assert!(matches!(open(path.path()), Err(OpenError::Directory(_))), "still locked");
    drop(store);
    assert!(open(path.path()).expect("the lock is gone").recovery().clean_stop);
}

#[test]
fn figures_move() {
    let path = temporary();
    let store = create(path.path());
    for n in 0..100u8 {
        put(&store, Family::State, &[n], &[n; 1000]);
        store.sync().expect("a sound store syncs");
    }
    assert!(store.properties().memtable_bytes > 100_000);
    store.flush(Family::State).expect("a sound store flushes");
    let (properties, statistics) = (store.properties(), store.statistics());
    assert_eq!(properties.l0_files, 1);
    assert_eq!((properties.immutable_memtables, properties.background_errors), (0, 0));
    assert!(properties.sst_bytes > 0 && properties.block_cache_bytes > 0);
    // One per sync, and one when the flush closes the WAL file.
    assert!((100..=102).contains(&statistics.wal_syncs), "{}", statistics.wal_syncs);
    assert!(statistics.wal_bytes > 100_000 && statistics.flush_bytes_written > 0);
    assert_eq!(statistics.stall_micros, 0);
}

/// All settings that RocksDB logs at open, as they must stand.
#[test]
fn rocksdb_was_set_up_as_decided() {
    let path = temporary();
    drop(create(path.path()));
    let log: String = std::fs::read_dir(path.path().join("log"))
        .expect("the folder is there")
        .map(|entry| std::fs::read_to_string(entry.expect("the folder can be listed").path()))
        .collect::<Result<_, _>>()
        .expect("the info log is text");
    let settings: Vec<String> = log.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for wanted in [
        "Options.manual_wal_flush: 1",
        "Options.wal_recovery_mode: 2",
        "Options.track_and_verify_wals_in_manifest: 1",
        "Options.paranoid_checks: 1",
        "Options.atomic_flush: 0",
        "Options.max_bgerror_resume_count: 0",
        "Options.bytes_per_sync: 1048576",
        "Options.strict_bytes_per_sync: 1",
        "Options.rate_limiter: (nil)",
        "Options.max_open_files: 64",
        "Options.recycle_log_file_num: 0",
        "Options.max_write_buffer_number: 8",
        "Options.level0_slowdown_writes_trigger: 1048576",
        "Options.soft_pending_compaction_bytes_limit: 0",
        "Options.prefix_extractor: flotilla.user-key.1",
    ] {
        assert!(settings.iter().any(|line| line.ends_with(wanted)), "RocksDB's log does not say {wanted:?}");
    }
}

#[test]
fn sizes_of_spans_are_about_right() {
    let path = temporary();
    let store = create(path.path());
    // No pattern that could be compressed.
    let mut state = 1_u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    for n in 0..1024_u32 {
        let value: Vec<u8> = (0..1024).map(|_| noise()).collect();
        put(&store, Family::State, &keys::data(KeyspaceId(1), &n.to_be_bytes()), &value);
    }
    store.flush(Family::State).expect("a sound store flushes");
    let span = |start: &[u8], end: &[u8]| keys::data_span(KeyspaceId(1), start, end);
    let middle = 512_u32.to_be_bytes();
    let sizes = store.data_bytes(&[span(b"", b""), span(b"", &middle), span(&middle, b""), span(b"\xff", b"")]);
    let about = |bytes: u64, wanted: u64| bytes.abs_diff(wanted) < wanted / 5;
    assert!(about(sizes[0], 1 << 20) && about(sizes[1], 1 << 19) && about(sizes[2], 1 << 19), "{sizes:?}");
    assert_eq!((sizes.len(), sizes[3]), (4, 0), "{sizes:?}");
    assert!(store.data_bytes(&[]).is_empty());
}

/// The blocks that the files of a database have on the disk, in bytes.
fn taken(data: &Path) -> u64 {
    let files = fs::read_dir(data.join("db")).expect("the database's folder can be listed");
    files.map(|file| file.and_then(|file| file.metadata()).map_or(0, |metadata| metadata.blocks() * 512)).sum()
}

/// The ballast is as large as this, or a start on a disk without a free byte would end for want of room.
#[test]
fn opening_after_a_crash_takes_no_more_than_is_kept_for_it() {
    let (path, crashed) = (temporary(), temporary());
    let store = create(path.path());
    let mut dice = Dice(7);
    let mut value = || (0..4_096).flat_map(|_| dice.roll().to_le_bytes()).collect::<Vec<u8>>();
    for n in 0..144u32 {
        put(&store, if n < 96 { Family::Log } else { Family::State }, &n.to_be_bytes(), &value());
    }
    store.sync().expect("a sound store syncs");
    copy(path.path(), crashed.path());
    let wal: u64 = wals(crashed.path()).values().sum();
    assert!(wal > 4 << 20, "{wal} bytes of WAL");
    let before = taken(crashed.path());
    let opened = open(crashed.path()).expect("what a crash leaves can be opened");
    put(&opened, Family::Meta, b"k", b"v");
    opened.sync().expect("a sound store syncs");
    // The WAL files of before stand until all of this is there.
    let took = taken(crashed.path()) + wal - before;
    assert!(took > 8 << 20, "only {took} bytes: tables of what the WAL held, a WAL and a manifest were expected");
    println!("{wal} bytes of WAL, opening took {took} bytes, {} are kept for it", small().bytes_to_open());
    assert!(took <= small().bytes_to_open());
    // What the flush made lies at level 0, to be compacted.
    assert!((3 << 20..16 << 20).contains(&opened.largest_compaction_bytes()));
    drop(opened);
}

#[test]
fn held_compactions_begin_when_they_are_allowed() {
    let path = temporary();
    drop(create(path.path()));
    let directory = StoreDirectory::open(path.path(), None).expect("the store is closed");
    let options = Options { hold_compactions: true, ..small() };
    let store = RocksStorage::open(Arc::new(directory), &options).expect("a closed store opens");
    for n in 0..6u8 {
        // Of one key: files that do not overlap would just be moved.
        put(&store, Family::State, b"k", &[n]);
        store.flush(Family::State).expect("a sound store flushes");
    }
    assert_eq!((store.properties().l0_files, store.statistics().compaction_bytes_read), (6, 0));
    store.hold_compactions(false).expect("a sound store takes settings");
    let deadline = Instant::now() + Duration::from_secs(60);
    while store.properties().l0_files > 4 {
        assert!(Instant::now() < deadline, "{:?}", store.properties());
        std::thread::yield_now();
    }
    assert_eq!(store.get(Family::State, b"k"), Ok(Some(vec![5].into())));
}
