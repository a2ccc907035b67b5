//! Many keys: what they cost in memory and in bytes written, how long nodes take to serve them again, and what is done with
//! them when they do not fit in memory. Flotilla beside etcd, by turns.
//!
//! ```text
//! turn 1, a system: start ─▶ fill ─▶ settle ─▶ overwrite ─▶ settle ─▶ SIGKILL, start again ─▶ SIGTERM, start again
//!                   ─▶ with --limit-mib: stop, start again within control groups, gets, YCSB A ─▶ stop;  the next system; turn 2
//! ```
//! What is settled writes next to nothing and is next to idle, and etcd's compaction has been over all that was written:
//! that comes every five minutes, so that a turn of etcd's waits for it twice.

mod groups;
mod kernel;
mod metrics;
mod report;
mod restart;
mod servers;
mod settle;
mod turn;
mod within;

use std::path::PathBuf;

use flotilla_benches::cluster::{Cluster, Result, binary};

use crate::peers;
use crate::store::System;
use crate::store::etcd::Etcd;
use crate::store::flotilla::Flotilla;
use groups::Groups;
use report::{Outcome, Report};
use turn::Turn;

#[derive(clap::Args, Clone, serde::Serialize)]
pub struct Volume {
    /// What is compared, in this order: stream and etcd, or one of them
    #[arg(long, value_enum, value_delimiter = ',', default_value = "stream,etcd")]
    systems: Vec<System>,
    /// Different keys
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// Size of a value
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..))]
    value_bytes: u64,
    /// Behind the fill, so many puts for each key, to random keys
    #[arg(long, default_value_t = 2)]
    overwrites: u64,
    /// Ranges that Flotilla begins with
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    ranges: u32,
    /// Nodes of each system, each of which has a replica of everything
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3))]
    nodes: u64,
    /// Clients that write, each with one operation under way
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..))]
    clients: u64,
    /// How often everything is repeated
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    turns: u64,
    /// Of each of Flotilla's nodes: memory for RocksDB
    #[arg(long, default_value_t = 268_435_456)]
    memory_bytes: u64,
    /// Then load each node within so much memory, page cache included; what Flotilla has for RocksDB must leave room in it
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
    limit_mib: Option<u64>,
    /// The longest that nodes are waited for to settle: etcd's compaction comes up to eleven minutes behind a write
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    settle_max: u64,
    /// The disk that is used
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Where etcd is
    #[arg(long, value_name = "DIR", default_value_os_t = peers::default_directory())]
    peers: PathBuf,
    /// Where the figures are kept, as JSON
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Measure beside whatever else runs; figures of such a machine say little
    #[arg(long)]
    even_if_busy: bool,
}

pub async fn volume(volume: &Volume) -> Result<()> {
    for system in &volume.systems {
        if !matches!(system, System::Stream | System::Etcd) {
            let name = system.name();
            return Err(format!("{name} cannot be filled here: ask for --systems stream,etcd, or one of them").into());
        }
        peers::check(&volume.peers, *system)?;
    }
    let mut report = Report::new(volume.clone());
    let done = take_turns(volume, &mut report).await;
    // Turns take long: what there is is shown, whatever became of the last one.
    if !report.outcomes.is_empty() {
        print!("{report}");
    }
    done
}

async fn take_turns(volume: &Volume, report: &mut Report) -> Result<()> {
    for turn in 1..=volume.turns {
        for system in &volume.systems {
            eprintln!("turn {turn} of {}, {}", volume.turns, system.name());
            report.outcomes.push(take_turn(volume, *system, turn).await?);
            if let Some(out) = &volume.out {
                report.write(out)?;
            }
        }
    }
    Ok(())
}

async fn take_turn(volume: &Volume, system: System, number: u64) -> Result<Outcome> {
    let nodes = usize::try_from(volume.nodes)?;
    // Before the servers: it goes after them, as it must, and is refused before anything else is done.
    let groups = volume.limit_mib.map(|mib| Groups::new(nodes, mib)).transpose()?;
    let turn = Turn { volume, system, number, groups: groups.as_ref() };
    if system == System::Etcd {
        return turn.take(Etcd::start(&volume.peers, &volume.dir, nodes).await?).await;
    }
    let (ranges, memory) = (volume.ranges.to_string(), volume.memory_bytes.to_string());
    let flags = ["--initial-ranges", &ranges, "--memory-bytes", &memory];
    turn.take(Flotilla::of(Cluster::start(&binary()?, &volume.dir, nodes, &flags).await?)).await
}
