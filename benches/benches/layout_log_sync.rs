//! How the log writer makes a batch durable, and what the apply writer beside it feels of that.
//!
//! The log writer puts batches of 16 x 256 B into `log` and makes each durable; a second thread writes
//! batches of the same size into `state` without a sync: either one for each log batch made durable
//! (`paced`, as the engine does it), or as fast as it can (`free`, a backlog being worked off).
//!
//! `cargo bench -p flotilla-benches --bench layout_log_sync -- [--reps N] [--seconds S] [--dir DIR]`

use std::error::Error;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use flotilla_benches::args::Args;
use flotilla_benches::db::{self, Opened, Tuning};
use flotilla_benches::stats::{Latencies, Table};
use flotilla_engine::keys;
use flotilla_proto::{KeyspaceId, RangeId};
use rocksdb::WriteOptions;

const ENTRIES: u64 = 16;
const VALUE: [u8; 256] = [0x5A; 256];
const RANGES: u64 = 16;
/// Log batches that apply may be behind.
const APPLY_QUEUE: usize = 64;

#[derive(Clone, Copy)]
enum Durable {
    SyncedWrite,
    FlushWal { manual: bool },
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse("log batches of 16 x 256 B made durable beside an apply writer", 0.6, &[]);
    let columns = ["log batches/s", "log p50 us", "log p99 us", "apply batches/s", "apply p50 us", "apply p99 us"];
    let ways = [
        ("write(sync=true)", Durable::SyncedWrite),
        ("write + flush_wal(true)", Durable::FlushWal { manual: false }),
        ("the same, manual_wal_flush", Durable::FlushWal { manual: true }),
    ];
    for (title, paced) in [("apply paced by the log", true), ("apply as fast as it can", false)] {
        let mut table = Table::new(title, &columns);
        for _ in 0..args.reps {
            for (name, way) in ways {
                table.add(name, &run(&args.dir, way, paced, args.seconds)?);
            }
        }
        table.print();
    }
    Ok(())
}

fn run(dir: &Path, way: Durable, paced: bool, seconds: f64) -> Result<[f64; 6], Box<dyn Error>> {
    let scratch = tempfile::tempdir_in(dir)?;
    let manual_wal_flush = matches!(way, Durable::FlushWal { manual: true });
    let store = db::open(scratch.path(), Tuning { manual_wal_flush, ..Tuning::default() })?;
    let stop = AtomicBool::new(false);
    let (durable, to_apply) = sync_channel(APPLY_QUEUE);
    let (log, apply) = thread::scope(|scope| {
        let log = scope.spawn(|| write_log(&store, way, seconds, durable, paced, &stop));
        let apply = scope.spawn(|| write_state(&store, to_apply, paced, &stop));
        (log.join().expect("the log writer does not panic"), apply.join().expect("the apply writer does not panic"))
    });
    let (log, apply) = (log?, apply?);
    Ok([
        log.count() as f64 / seconds,
        log.percentile_us(50.0),
        log.percentile_us(99.0),
        apply.count() as f64 / seconds,
        apply.percentile_us(50.0),
        apply.percentile_us(99.0),
    ])
}

/// Takes the sender: its end is what ends a paced apply writer.
fn write_log(
    store: &Opened,
    way: Durable,
    seconds: f64,
    durable: SyncSender<()>,
    paced: bool,
    stop: &AtomicBool,
) -> Result<Latencies, rocksdb::Error> {
    let family = store.family("log");
    let mut options = WriteOptions::default();
    options.set_sync(matches!(way, Durable::SyncedWrite));
    let mut latencies = Latencies::default();
    let start = Instant::now();
    let mut written = 0;
    let done = loop {
        if start.elapsed() >= Duration::from_secs_f64(seconds) {
            break Ok(latencies);
        }
        let index = |entry| (written * ENTRIES + entry) / RANGES;
        let puts = (0..ENTRIES).map(|entry| (keys::log_entry(RangeId(entry % RANGES), index(entry)), &VALUE[..]));
        let batch = db::batch_of(family, puts);
        let began = Instant::now();
        if let Err(error) = store.db.write_opt(batch, &options).and_then(|()| match way {
            Durable::SyncedWrite => Ok(()),
            Durable::FlushWal { .. } => store.db.flush_wal(true),
        }) {
            break Err(error);
        }
        latencies.add(began.elapsed());
        written += 1;
        if paced && durable.send(()).is_err() {
            break Ok(latencies); // the apply writer failed, and says why
        }
    };
    stop.store(true, Ordering::Relaxed);
    done
}

fn write_state(
    store: &Opened,
    durable: Receiver<()>,
    paced: bool,
    stop: &AtomicBool,
) -> Result<Latencies, rocksdb::Error> {
    let family = store.family("state");
    let mut latencies = Latencies::default();
    for written in 0.. {
        if stop.load(Ordering::Relaxed) || (paced && durable.recv().is_err()) {
            break;
        }
        // Scattered over 2^20 keys, as clients' keys are.
        let number = |entry: u64| (written * ENTRIES + entry).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 44;
        let puts = (0..ENTRIES).map(|entry| (keys::data(KeyspaceId(1), &number(entry).to_be_bytes()), &VALUE[..]));
        let batch = db::batch_of(family, puts);
        let began = Instant::now();
        store.db.write(batch)?;
        latencies.add(began.elapsed());
    }
    Ok(latencies)
}
