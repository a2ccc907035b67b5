//! What the machine gives: disk, network stack, RocksDB and the Raft loop, each by itself, measured by turns like systems are
//! compared; so that what Flotilla does can be told as a share of what is possible.
//!
//! ```text
//! turn 1: every line once;  turn 2: every line once; ...  ─▶ medians, spreads, and what of it binds
//! ```
//! Beside something that is busy nothing is measured, as in `compare run`.

mod disk;
mod figures;
mod network;
mod raft;
mod rocks;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use flotilla_benches::cluster::Result;
use flotilla_benches::usage::Cpu;
use serde::{Deserialize, Serialize};

pub use figures::Figures;
use figures::Measured;
pub use network::answer;

use crate::cell::Times;
use crate::machine::Watch;
use crate::run::undisturbed;

/// What everything is measured with: the sizes that `compare run` begins with.
const VALUE_BYTES: usize = 256;
const KEYS: u64 = 10_000;

/// A part of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Appends made durable
    Disk,
    /// Operations that are answered without any work
    Network,
    /// Records written and read
    Rocks,
    /// Puts through three stores in one thread
    Raft,
}

#[derive(clap::Args, Clone)]
pub struct Limits {
    /// What is measured
    #[arg(long, value_enum, value_delimiter = ',', default_value = "disk,network,rocks,raft")]
    parts: Vec<Part>,
    /// How often everything is repeated
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// How long a line is measured
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// How long it runs before that
    #[arg(long, default_value_t = 0.3)]
    warm_up: f64,
    /// The disk that is measured
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Where the figures are kept, as JSON
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Measure beside whatever else runs; figures of such a machine say little
    #[arg(long)]
    even_if_busy: bool,
}

/// A thing to measure: a line of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    Disk(disk::Disk),
    Network(network::Network),
    Rocks(rocks::Rocks),
    Raft(raft::Raft),
}

impl Line {
    fn all(part: Part) -> Vec<Self> {
        match part {
            Part::Disk => disk::Disk::all().into_iter().map(Self::Disk).collect(),
            Part::Network => network::Network::all().into_iter().map(Self::Network).collect(),
            Part::Rocks => rocks::Rocks::all().into_iter().map(Self::Rocks).collect(),
            Part::Raft => raft::Raft::all().into_iter().map(Self::Raft).collect(),
        }
    }

    fn part(self) -> Part {
        match self {
            Self::Disk(_) => Part::Disk,
            Self::Network(_) => Part::Network,
            Self::Rocks(_) => Part::Rocks,
            Self::Raft(_) => Part::Raft,
        }
    }

    fn name(self) -> String {
        match self {
            Self::Disk(line) => line.name(),
            Self::Network(line) => line.name(),
            Self::Rocks(line) => line.name(),
            Self::Raft(line) => line.name(),
        }
    }

    async fn measure(self, limits: &Limits) -> Result<Measured> {
        let times = Times {
            warm_up: Duration::from_secs_f64(limits.warm_up),
            measure: Duration::from_secs_f64(limits.seconds),
        };
        match self {
            Self::Disk(line) => line.measure(&limits.dir, times),
            Self::Network(line) => line.measure(times).await,
            Self::Rocks(line) => line.measure(&limits.dir, times),
            Self::Raft(line) => line.measure(&limits.dir, times),
        }
    }
}

pub async fn limits(limits: &Limits) -> Result<()> {
    let mut figures = Figures::new(std::thread::available_parallelism()?.get());
    for turn in 1..=limits.turns {
        eprintln!("turn {turn} of {}", limits.turns);
        for line in limits.parts.iter().flat_map(|part| Line::all(*part)) {
            let measure = async || line.measure(limits).await;
            let measured = undisturbed(limits.even_if_busy, |of: &Measured| of.others, measure);
            let measured = measured.await.map_err(|error| format!("{}: {error}", line.name()))?;
            eprintln!("  {}: {:.0}/s, {:.2} us of CPU", line.name(), measured.per_second, measured.cpu_us);
            figures.add(line, measured);
        }
        if let Some(out) = &limits.out {
            figures.write(out)?;
        }
    }
    print!("{}{}", figures.tables(), figures.what_binds());
    Ok(())
}

/// Measures work of this process: it is told how long to go on, and says how much it did.
fn in_process(times: Times, mut work: impl FnMut(Duration) -> Result<u64>) -> Result<Measured> {
    work(times.warm_up)?;
    let (watch, cpu, began) = (Watch::start(&[])?, Cpu::now(), Instant::now());
    let count = work(times.measure)? as f64;
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), Cpu::now().since(cpu));
    let others = watch.end(&[])?.others;
    if count < 1.0 {
        return Err("nothing was done while it was measured: raise --seconds".into());
    }
    Ok(Measured { per_second: count / seconds, cpu_us: cpu.us / count, server_us: None, others })
}

/// One step after the other for so long; the sum of what they did.
fn repeat(length: Duration, mut step: impl FnMut() -> Result<u64>) -> Result<u64> {
    let began = Instant::now();
    let mut done = 0;
    while began.elapsed() < length {
        done += step()?;
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_measured_after_it_has_warmed_up() {
        let times = Times { warm_up: Duration::from_millis(1), measure: Duration::from_millis(20) };
        let mut lengths = Vec::new();
        let measured = in_process(times, |length| {
            lengths.push(length);
            repeat(length, || Ok(1)).map(|_| 100)
        });
        let measured = measured.expect("measured");
        assert_eq!(lengths, [times.warm_up, times.measure]);
        assert!(measured.per_second <= 5_000.0, "{measured:?}");
        assert!(in_process(times, |_| Ok(0)).is_err());
    }

    #[test]
    fn no_line_comes_twice() {
        let parts = [Part::Disk, Part::Network, Part::Rocks, Part::Raft];
        let lines: Vec<Line> = parts.into_iter().flat_map(Line::all).collect();
        let names: std::collections::BTreeSet<String> = lines.iter().map(|line| line.name()).collect();
        assert_eq!(names.len(), lines.len());
        assert!(parts.iter().all(|part| Line::all(*part).iter().all(|line| line.part() == *part)));
    }
}
