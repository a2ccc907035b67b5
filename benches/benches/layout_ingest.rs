//! What the log writer feels of a snapshot being ingested: batches of 16 x 256 B made durable while a
//! file of 64 MiB goes into `state`.
//!
//! Ingestion over keys of the memtable flushes it first, with all writes of the database held up.
//! So: nothing in the way; a memtable in the way, flushed by the ingestion; the same memtable flushed
//! beforehand and the ingestion forbidden to flush.
//!
//! `cargo bench -p flotilla-benches --bench layout_ingest -- [--reps N] [--seconds S] [--mib N] [--dir DIR]`

use std::error::Error;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flotilla_benches::args::{Args, Extra};
use flotilla_benches::db::{self, Opened, Tuning};
use flotilla_benches::stats::{Latencies, Table};
use flotilla_engine::keys;
use flotilla_proto::{KeyspaceId, RangeId};
use rocksdb::{IngestExternalFileOptions, SstFileWriter};

const EXTRAS: &[Extra] = &[Extra { flag: "mib", default: 64, help: "MiB ingested" }];
const KEYSPACE: KeyspaceId = KeyspaceId(1);
const ENTRIES: u64 = 16;
const ENTRY: [u8; 256] = [0x5A; 256];
const VALUE_BYTES: usize = 1024;
/// Keys in the way, each with a value of the same size: 16 MiB of memtable.
const IN_THE_WAY: u64 = 16 << 10;

#[derive(Clone, Copy, PartialEq)]
enum Ingest {
    Nothing,
    NothingInTheWay,
    BlockingFlush,
    FlushedFirst,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse("log batches during the ingestion of a file", 0.3, EXTRAS);
    let mib = args.extra("mib");
    let columns = ["log p50 us", "log p99 us", "log longest us", "flush + ingest, ms"];
    let mut table = Table::new(format!("log batches during an ingestion of {mib} MiB"), &columns);
    let variants = [
        ("no ingestion", Ingest::Nothing),
        ("nothing in the way", Ingest::NothingInTheWay),
        ("over a memtable, blocking flush", Ingest::BlockingFlush),
        ("over a memtable, flushed first", Ingest::FlushedFirst),
    ];
    for _ in 0..args.reps {
        for (name, ingest) in variants {
            table.add(name, &run(&args, ingest, mib << 20)?);
        }
    }
    table.print();
    Ok(())
}

fn run(args: &Args, ingest: Ingest, bytes: u64) -> Result<[f64; 4], Box<dyn Error>> {
    let scratch = tempfile::tempdir_in(&args.dir)?;
    let store = db::open(&scratch.path().join("db"), Tuning::default())?;
    let file = scratch.path().join("snapshot.sst");
    let keys_in_file = bytes / VALUE_BYTES as u64;
    write_file(&file, keys_in_file)?;
    if matches!(ingest, Ingest::BlockingFlush | Ingest::FlushedFirst) {
        fill_memtable(&store, keys_in_file)?;
    }

    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let log = scope.spawn(|| write_log(&store, &stop));
        let took = bring_in(&store, &file, ingest, args.seconds);
        stop.store(true, Ordering::Relaxed);
        let log = log.join().expect("the log writer does not panic")?;
        Ok([log.percentile_us(50.0), log.percentile_us(99.0), log.max_us(), took?.as_secs_f64() * 1000.0])
    })
}

fn data_key(number: u64) -> Vec<u8> {
    keys::data(KEYSPACE, &number.to_be_bytes())
}

/// A value that lz4 cannot shrink, so that the file is as large as it says.
fn value(number: u64) -> Vec<u8> {
    let mut state = number | 1;
    let words = (0..VALUE_BYTES / 8).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state
    });
    words.flat_map(u64::to_be_bytes).collect()
}

fn write_file(path: &Path, count: u64) -> Result<(), rocksdb::Error> {
    let options = db::state_options(Tuning::default());
    let mut writer = SstFileWriter::create(&options);
    writer.open(path)?;
    let mut sorted: Vec<Vec<u8>> = (0..count).map(data_key).collect();
    sorted.sort_unstable();
    for (number, key) in sorted.iter().enumerate() {
        writer.put(key, value(number as u64))?;
    }
    writer.finish()
}

/// Puts keys all over the file's span into the memtable.
fn fill_memtable(store: &Opened, keys_in_file: u64) -> Result<(), rocksdb::Error> {
    let family = store.family("state");
    for number in 0..IN_THE_WAY {
        store.db.put_cf(family, data_key(number * keys_in_file / IN_THE_WAY), value(number))?;
    }
    Ok(())
}

fn bring_in(store: &Opened, file: &Path, ingest: Ingest, seconds: f64) -> Result<Duration, rocksdb::Error> {
    let family = store.family("state");
    if ingest == Ingest::Nothing {
        thread::sleep(Duration::from_secs_f64(seconds));
        return Ok(Duration::ZERO);
    }
    let start = Instant::now();
    if ingest == Ingest::FlushedFirst {
        store.db.flush_cf(family)?;
    }
    let mut options = IngestExternalFileOptions::default();
    options.set_move_files(true);
    options.set_allow_blocking_flush(ingest != Ingest::FlushedFirst);
    store.db.ingest_external_file_cf_opts(family, &options, vec![file])?;
    Ok(start.elapsed())
}

fn write_log(store: &Opened, stop: &AtomicBool) -> Result<Latencies, rocksdb::Error> {
    let family = store.family("log");
    let mut latencies = Latencies::default();
    for index in 0.. {
        let batch =
            db::batch_of(family, (0..ENTRIES).map(|range| (keys::log_entry(RangeId(range), index), &ENTRY[..])));
        let began = Instant::now();
        store.db.write(batch)?;
        store.db.flush_wal(true)?;
        latencies.add(began.elapsed());
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(latencies)
}
