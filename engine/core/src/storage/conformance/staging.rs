//! The suite's part on staged files and their ingestion.

use flotilla_proto::v1;

use super::{Dice, Harness, Pairs, assert_prefix, get, numbered, put, scan};
use crate::storage::{Direction, Family, FileWriter, Staging, Storage, TableWriter, WriteBatch};

fn table<S: Staging>(store: &S, records: &[(Vec<u8>, Vec<u8>)]) -> v1::StagedFile {
    let mut table = store.stage_table().expect("a sound store stages files");
    let name = table.name().to_owned();
    records.iter().for_each(|(key, value)| table.put(key, value).expect("keys ascend"));
    assert!(table.size_bytes() > 0);
    let file = table.finish().expect("a sound store stages files");
    assert_eq!(file.name, name);
    store.verify(&file).expect("it is what was written");
    assert!(store.verify(&v1::StagedFile { crc32: !file.crc32, ..file.clone() }).is_err());
    file
}

fn records(keys: &[&[u8]], value: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    keys.iter().map(|key| (key.to_vec(), value.to_vec())).collect()
}

/// Plain files hold what was appended; names do not repeat; a removed file is gone.
pub fn staged_files_are_read_back_and_go_when_removed<H: Harness>() {
    let mut harness = H::fresh();
    let store = harness.open();
    let mut file = store.stage_file().expect("a sound store stages files");
    let name = file.name().to_owned();
    file.append(b"one").and_then(|()| file.append(b"two")).expect("a sound store stages files");
    file.finish().expect("a sound store stages files");
    store.sync_names().expect("a sound store syncs");
    let area = store.area();
    assert_eq!(area.read(&name, 2, 3).expect("it is there"), &b"etw"[..]);
    assert!(area.read(&name, 4, 3).is_err(), "past its end");
    let other = table(&*store, &records(&[b"k"], b"v"));
    assert_ne!(other.name, name);
    let mut names = store.staged().expect("it can be listed");
    names.sort();
    let mut want = vec![name.clone(), other.name];
    want.sort();
    assert_eq!(names, want);
    area.remove(&name);
    assert!(area.read(&name, 0, 1).is_err());
    assert_eq!(store.staged().expect("it can be listed").len(), 1);
    area.remove(&name);
    harness.close(store);
}

/// What counts as durable is there after a crash, and can be ingested then; twice, too.
pub fn staged_names_that_were_synced_outlive_a_crash<H: Harness>() {
    for seed in 0..8 {
        let mut harness = H::fresh();
        let store = harness.open();
        let file = table(&*store, &records(&[b"a", b"b"], b"staged"));
        store.sync_names().expect("a sound store syncs");
        let unfinished = store.stage_table().expect("a sound store stages files");
        harness.crash(store, seed);
        drop(unfinished);
        let store = harness.open();
        store.verify(&file).expect("it is durable");
        for _ in 0..2 {
            store.ingest(Family::State, std::slice::from_ref(&file)).expect("it can be ingested");
            store.verify(&file).expect("it stays");
        }
        assert_eq!(get(&*store, Family::State, b"a"), Some(b"staged".to_vec()));
        harness.close(store);
    }
}

/// After deleting a span and ingesting over it, just the ingested records are there; several files are one step.
pub fn ingested_tables_win_over_what_was_there<H: Harness>() {
    let mut harness = H::fresh();
    let mut store = harness.open();
    for round in 0..4u8 {
        for key in [b"a", b"c", b"e", b"g", b"i"] {
            put(&*store, Family::State, key, b"old");
        }
        if round % 2 == 0 {
            store.flush(Family::State).expect("a sound store flushes");
        }
        let mut batch = store.batch();
        batch.delete_range(Family::State, b"b", b"h");
        store.write(batch).expect("a write to a sound store works");
        store.flush(Family::State).expect("a sound store flushes");
        let value = [round];
        let files = [table(&*store, &records(&[b"b", b"c"], &value)), table(&*store, &records(&[b"f", b"g"], &value))];
        store.sync_names().expect("a sound store syncs");
        store.ingest(Family::State, &files).expect("they can be ingested");
        let check = |store: &H::Store| {
            let want: Pairs =
                [(b"a", &b"old"[..]), (b"b", &value), (b"c", &value), (b"f", &value), (b"g", &value), (b"i", b"old")]
                    .map(|(key, value)| (key.to_vec(), value.to_vec()))
                    .into();
            assert_eq!(scan(store, Family::State, b"", b"z", Direction::Forward), want, "round {round}");
        };
        check(&store);
        store.sync().expect("a sync of a sound store works");
        harness.crash(store, u64::from(round));
        store = harness.open();
        check(&store);
    }
    harness.close(store);
}

/// Without a flush before it, an ingestion makes one; later writes win over it.
pub fn an_ingestion_waits_for_what_stands_in_its_way<H: Harness>() {
    let mut harness = H::fresh();
    let store = harness.open();
    put(&*store, Family::State, b"k", b"written");
    let file = table(&*store, &records(&[b"j", b"k", b"l"], b"ingested"));
    store.ingest(Family::State, &[file]).expect("it can be ingested");
    assert_eq!(get(&*store, Family::State, b"k"), Some(b"ingested".to_vec()));
    put(&*store, Family::State, b"k", b"later");
    store.sync().expect("a sync of a sound store works");
    harness.crash(store, 1);
    let store = harness.open();
    let want = [(b"j", &b"ingested"[..]), (b"k", b"later"), (b"l", b"ingested")].map(|(k, v)| (k.to_vec(), v.to_vec()));
    assert_eq!(scan(&*store, Family::State, b"", b"z", Direction::Forward), want);
    harness.close(store);
}

/// A view is one point in time for ingestions too.
pub fn views_do_not_see_later_ingestions<H: Harness>() {
    let mut harness = H::fresh();
    let store = harness.open();
    put(&*store, Family::State, b"k", b"written");
    let file = table(&*store, &records(&[b"j", b"k"], b"ingested"));
    store.with_view(|view| {
        store.ingest(Family::State, &[file]).expect("it can be ingested");
        assert_eq!(get(view, Family::State, b"k"), Some(b"written".to_vec()));
        assert_eq!(get(view, Family::State, b"j"), None);
    });
    assert_eq!(get(&*store, Family::State, b"k"), Some(b"ingested".to_vec()));
    harness.close(store);
}

/// An ingestion is durable at once; batches before it are not.
pub fn ingestions_outlive_crashes_that_take_earlier_batches<H: Harness>() {
    for seed in 0..10 {
        let mut harness = H::fresh();
        let store = harness.open();
        put(&*store, Family::Log, b"synced", b"1");
        store.sync().expect("a sync of a sound store works");
        (0..20u8).for_each(|n| put(&*store, Family::Log, &[n], b"unsynced"));
        let file = table(&*store, &records(&[b"x", b"y"], b"ingested"));
        store.with_view(|_| store.ingest(Family::State, &[file]).expect("it can be ingested"));
        harness.crash(store, seed);
        let store = harness.open();
        assert_eq!(get(&*store, Family::Log, b"synced"), Some(b"1".to_vec()));
        assert_eq!(get(&*store, Family::State, b"x"), Some(b"ingested".to_vec()), "seed {seed}");
        put(&*store, Family::Log, b"after", b"2");
        store.sync().expect("a sync of a sound store works");
        harness.crash(store, seed);
        let store = harness.open();
        assert_eq!(get(&*store, Family::Log, b"after"), Some(b"2".to_vec()));
        harness.close(store);
    }
}

/// Writes, syncs, flushes, ingestions and crashes in random order: of the batches a prefix is left with all that was
/// synced, of the ingestions all.
pub fn writes_and_ingestions_in_any_order_survive_crashes<H: Harness>() {
    for seed in 0..8 {
        let mut dice = Dice(seed);
        let mut harness = H::fresh();
        let (mut written, mut ingested) = (0, 0u64);
        for round in 0..4 {
            let store = harness.open();
            let mut synced = written;
            for _ in 0..10 + dice.below(50) {
                match dice.below(12) {
                    0 | 1 => {
                        store.sync().expect("a sync of a sound store works");
                        synced = written;
                    }
                    2 => store.flush(Family::ALL[dice.below(3)]).expect("a sound store flushes"),
                    3 | 4 => {
                        ingested += 1;
                        let key = [b"ingested/", &ingested.to_be_bytes()[..]].concat();
                        let file = table(&*store, &[(key, vec![7; dice.below(2000)])]);
                        store.sync_names().expect("a sound store syncs");
                        let ingest = || store.ingest(Family::State, std::slice::from_ref(&file));
                        // A view that is open makes an ingestion take a number of the log's sequence.
                        let done = if dice.below(2) == 0 { store.with_view(|_| ingest()) } else { ingest() };
                        done.expect("it can be ingested");
                        store.area().remove(&file.name);
                    }
                    _ => {
                        written += 1;
                        let batch = numbered(&*store, written, &mut dice);
                        store.write(batch).expect("a write to a sound store works");
                    }
                }
            }
            harness.crash(store, dice.roll());
            let store = harness.open();
            let hint = format!("seed {seed} round {round}");
            written = assert_prefix(&*store, synced, written, &hint);
            let left = scan(&*store, Family::State, b"ingested/", b"ingested0", Direction::Forward).len();
            assert_eq!(left as u64, ingested, "{hint}");
            harness.close(store);
        }
    }
}
