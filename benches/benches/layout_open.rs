//! How long a store with many ranges takes to open and to read all their Raft states, which lie under
//! one prefix; against seeking every range's last log entry, which opening therefore leaves undone.
//!
//! `cargo bench -p flotilla-benches --bench layout_open -- [--reps N] [--ranges N] [--dir DIR]`

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use flotilla_benches::args::{Args, Extra};
use flotilla_benches::db::{self, Opened, Tuning};
use flotilla_benches::stats::Table;
use flotilla_engine::{keys, record};
use flotilla_proto::RangeId;
use flotilla_proto::v1::RaftState;
use rocksdb::ReadOptions;

const EXTRAS: &[Extra] = &[Extra { flag: "ranges", default: 100_000, help: "ranges" }];
/// Log entries that each range still holds.
const ENTRIES: u64 = 4;
const ENTRY: [u8; 256] = [0x5A; 256];

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse("opening a store with many ranges", 0.0, EXTRAS);
    let ranges = args.extra("ranges");
    let columns = ["open, ms", "scan Raft states, ms", "seek last entries, ms", "bytes scanned"];
    let mut table = Table::new(format!("{ranges} ranges with {ENTRIES} log entries of 256 B each"), &columns);
    for _ in 0..args.reps {
        for (name, flush) in [("flushed before it was closed", true), ("all of it still in the WAL", false)] {
            let scratch = tempfile::tempdir_in(&args.dir)?;
            fill(scratch.path(), ranges, flush)?;
            table.add(name, &run(scratch.path(), ranges)?);
        }
    }
    table.print();
    Ok(())
}

fn fill(dir: &Path, ranges: u64, flush: bool) -> Result<(), Box<dyn Error>> {
    let store = db::open(dir, Tuning::default())?;
    let family = store.family("log");
    for range in (1..=ranges).map(RangeId) {
        let state = RaftState {
            term: 6 + range.0 % 7,
            vote: 1 + range.0 % 3,
            commit: ENTRIES,
            truncated_index: 0,
            truncated_term: 0,
        };
        let mut batch = db::batch_of(family, (1..=ENTRIES).map(|index| (keys::log_entry(range, index), &ENTRY[..])));
        batch.put_cf(family, keys::raft_state(range), record::encode(&state));
        store.db.write(batch)?;
    }
    store.db.flush_wal(true)?;
    if flush {
        store.db.flush_cf(family)?;
    }
    Ok(())
}

fn run(dir: &Path, ranges: u64) -> Result<[f64; 4], Box<dyn Error>> {
    let start = Instant::now();
    let store = db::open(dir, Tuning::default())?;
    let opened = start.elapsed();

    let start = Instant::now();
    let (states, bytes) = scan_states(&store)?;
    let scanned = start.elapsed();

    let start = Instant::now();
    let found = seek_last_entries(&store, ranges)?;
    let sought = start.elapsed();
    if (states, found) != (ranges, ranges) {
        return Err(format!("{states} states and {found} logs found of {ranges} ranges").into());
    }
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1000.0;
    Ok([ms(opened), ms(scanned), ms(sought), bytes as f64])
}

fn scan_states(store: &Opened) -> Result<(u64, usize), Box<dyn Error>> {
    let (first, end) = keys::raft_states();
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(end);
    let mut iterator = store.db.raw_iterator_cf_opt(store.family("log"), options);
    iterator.seek(first);
    let (mut states, mut bytes) = (0, 0);
    while let Some((key, value)) = iterator.item() {
        let state: RaftState = record::decode(value, "Raft state")?;
        states += u64::from(keys::raft_state_range(key).is_some() && state.term >= 6);
        bytes += key.len() + value.len();
        iterator.next();
    }
    iterator.status()?;
    Ok((states, bytes))
}

fn seek_last_entries(store: &Opened, ranges: u64) -> Result<u64, Box<dyn Error>> {
    let mut iterator = store.db.raw_iterator_cf(store.family("log"));
    let mut found = 0;
    for range in (1..=ranges).map(RangeId) {
        iterator.seek_for_prev(keys::log_entry(range, u64::MAX));
        found += u64::from(iterator.key().and_then(keys::log_entry_index) == Some((range, ENTRIES)));
    }
    iterator.status()?;
    Ok(found)
}
