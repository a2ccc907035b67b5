//! The floor under every acknowledged write: how often one writer can make 4 KiB durable.
//!
//! `cargo bench -p flotilla-benches --bench layout_fsync -- [--reps N] [--seconds S] [--dir DIR]`

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use flotilla_benches::args::Args;
use flotilla_benches::stats::{Latencies, Table};

const BLOCK: [u8; 4096] = [0x5A; 4096];
/// What an overwriting run goes round in.
const RING_BLOCKS: u64 = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse("write of 4 KiB + fdatasync, one writer", 1.0, &[]);
    let mut table = Table::new("4 KiB write + fdatasync", &["syncs/s", "p50 us", "p99 us"]);
    for _ in 0..args.reps {
        for (name, overwrite) in [("append to a growing file", false), ("overwrite in place", true)] {
            let latencies = run(&args.dir, overwrite, args.seconds)?;
            let rate = latencies.count() as f64 / args.seconds;
            table.add(name, &[rate, latencies.percentile_us(50.0), latencies.percentile_us(99.0)]);
        }
    }
    table.print();
    Ok(())
}

fn run(dir: &Path, overwrite: bool, seconds: f64) -> Result<Latencies, Box<dyn Error>> {
    let scratch = tempfile::tempdir_in(dir)?;
    let file = File::create_new(scratch.path().join("blocks"))?;
    if overwrite {
        for block in 0..RING_BLOCKS {
            file.write_all_at(&BLOCK, block * BLOCK.len() as u64)?;
        }
    }
    file.sync_all()?;

    let mut latencies = Latencies::default();
    let start = Instant::now();
    let mut block = 0;
    while start.elapsed() < Duration::from_secs_f64(seconds) {
        let began = Instant::now();
        file.write_all_at(&BLOCK, block * BLOCK.len() as u64)?;
        file.sync_data()?;
        latencies.add(began.elapsed());
        block += 1;
        if overwrite {
            block %= RING_BLOCKS;
        }
    }
    Ok(latencies)
}
