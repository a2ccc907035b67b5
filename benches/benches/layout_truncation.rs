//! Bytes that reach the disk for each byte of log entry, by when and how the log is truncated.
//!
//! Entries of 256 B go round all ranges in batches of 16; a range's log is cut whenever it has grown
//! by the given part of the memtable since it was last cut. `before` cuts it a quarter of a memtable
//! behind, so that most entries die where they were born; `after` lags two memtables behind. The
//! memtable is 8 MiB instead of 128, so that dozens are flushed in a few seconds: the ratios depend on
//! the lag in memtables, not on their size.
//!
//! `cargo bench -p flotilla-benches --bench layout_truncation -- [--reps N] [--mib N] [--ranges N] [--dir DIR]`

use std::error::Error;
use std::path::Path;

use flotilla_benches::args::{Args, Extra};
use flotilla_benches::db::{self, Opened, Tuning};
use flotilla_benches::stats::Table;
use flotilla_benches::usage;
use flotilla_engine::keys;
use flotilla_proto::RangeId;
use rocksdb::WaitForCompactOptions;
use rocksdb::statistics::Ticker;

const EXTRAS: &[Extra] = &[
    Extra { flag: "mib", default: 96, help: "MiB of entries written" },
    Extra { flag: "ranges", default: 64, help: "ranges they belong to" },
];
const MEMTABLE_BYTES: usize = 8 << 20;
const VALUE: [u8; 256] = [0x5A; 256];
const BATCH: u64 = 16;

#[derive(Clone, Copy)]
enum Cut {
    Never,
    DeleteRange,
    DeleteEach,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse("write amplification of the log by truncation", 0.0, EXTRAS);
    let columns = ["WAL", "flush", "compaction", "all", "/proc/self/io", "left in files"];
    let mib = args.extra("mib");
    let title = format!("bytes written per byte of entries ({mib} MiB, memtable 8 MiB)");
    let mut table = Table::new(title, &columns);
    let variants = [
        ("never", Cut::Never, 0),
        ("after the flush, delete_range", Cut::DeleteRange, 2 * MEMTABLE_BYTES),
        ("after the flush, point deletes", Cut::DeleteEach, 2 * MEMTABLE_BYTES),
        ("before the flush, delete_range", Cut::DeleteRange, MEMTABLE_BYTES / 4),
        ("before the flush, point deletes", Cut::DeleteEach, MEMTABLE_BYTES / 4),
    ];
    for _ in 0..args.reps {
        for (name, cut, lag) in variants {
            table.add(name, &run(&args.dir, cut, lag as u64, mib << 20, args.extra("ranges"))?);
        }
    }
    table.print();
    Ok(())
}

fn run(dir: &Path, cut: Cut, lag: u64, bytes: u64, ranges: u64) -> Result<[f64; 6], Box<dyn Error>> {
    let scratch = tempfile::tempdir_in(dir)?;
    let store = db::open(scratch.path(), Tuning { log_memtable_bytes: MEMTABLE_BYTES, ..Tuning::default() })?;
    let disk_before = usage::disk_bytes_written()?;

    let total = bytes / VALUE.len() as u64;
    let kept = lag / VALUE.len() as u64 / ranges;
    let mut first = vec![1u64; ranges as usize];
    for batch in 0..total / BATCH {
        append(&store, RangeId(batch % ranges), batch / ranges, kept, cut, &mut first)?;
    }
    store.db.flush_wal(true)?;
    store.db.flush_cf(store.family("log"))?;
    store.db.wait_for_compact(&WaitForCompactOptions::default())?;

    let disk = usage::disk_bytes_written()? - disk_before;
    let files = store.db.property_int_value_cf(store.family("log"), rocksdb::properties::TOTAL_SST_FILES_SIZE)?;
    let count = |ticker| store.options.get_ticker_count(ticker);
    let [wal, flush, compaction] =
        [Ticker::WalFileBytes, Ticker::FlushWriteBytes, Ticker::CompactWriteBytes].map(|ticker| count(ticker) as f64);
    let user = bytes as f64;
    let all = wal + flush + compaction;
    Ok([wal, flush, compaction, all, disk as f64, files.unwrap_or(0) as f64].map(|written| written / user))
}

/// Appends the range's next 16 entries; once it holds `kept` entries more than it must, cuts it to half
/// of that.
fn append(
    store: &Opened,
    range: RangeId,
    round: u64,
    kept: u64,
    cut: Cut,
    first: &mut [u64],
) -> Result<(), rocksdb::Error> {
    let family = store.family("log");
    let last = (round + 1) * BATCH;
    let entries = (last - BATCH + 1..=last).map(|index| (keys::log_entry(range, index), &VALUE[..]));
    let mut batch = db::batch_of(family, entries);
    let first = &mut first[range.0 as usize];
    if last - *first >= kept {
        let end = last - kept / 2;
        match cut {
            Cut::Never => {}
            Cut::DeleteRange => {
                batch.delete_range_cf(family, keys::log_entry(range, *first), keys::log_entry(range, end))
            }
            Cut::DeleteEach => {
                for index in *first..end {
                    batch.delete_cf(family, keys::log_entry(range, index));
                }
            }
        }
        *first = end;
    }
    store.db.write(batch)
}
