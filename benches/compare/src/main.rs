//! Compares Flotilla with its peers: the same load on all, by turns, on the same machine and the same disk.
//!
//! ```text
//! turn 1: start system A ─▶ fill ─▶ each cell: warm up, measure ─▶ stop;  the same with B, C;  turn 2: A, B, C; ...
//! ```
//! Medians over the turns, their spread, and ratios; what else the machine did meanwhile is watched, and a run beside
//! which something else was busy is refused.

mod cell;
mod chart;
mod limits;
mod load;
mod machine;
mod peers;
mod profile;
mod results;
mod run;
mod store;
mod tail;
mod volume;

#[path = "../../../tests/powercut/mod.rs"]
mod powercut;

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use flotilla_benches::cluster::Result;

/// Flotilla against its peers, on this machine
#[derive(Parser)]
#[command(name = "compare", max_term_width = 100)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Builds the peers that are compared with, through Go's module proxy and Maven's repository
    Build(peers::Build),
    /// Loads systems by turns, and prints medians and ratios
    Run(run::Run),
    /// Measures what the machine gives: disk, network stack, RocksDB, the Raft loop
    Limits(limits::Limits),
    /// Answers what `limits` sends, in a process of its own, until its input ends
    #[command(hide = true)]
    Answer,
    /// Draws where the processor time of Flotilla's nodes goes under a load
    Profile(profile::Profile),
    /// Loads Flotilla while ranges split, merge and move, and prints the tail against quiet times
    Tail(tail::Tail),
    /// Fills systems with many keys: memory, bytes written, restarts, data that does not fit in memory
    Volume(volume::Volume),
    /// Prints what an earlier run, or earlier limits, came to
    Show {
        /// What `run --out` or `limits --out` wrote
        results: PathBuf,
        /// What the others are compared with
        #[arg(long, value_enum, default_value = "etcd")]
        against: store::System,
        /// Where charts are drawn as well, as SVG
        #[arg(long, value_name = "DIR")]
        charts: Option<PathBuf>,
    },
}

// As the servers of ours have it: what the load costs is taken from all systems alike.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    let line = Line::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let done = runtime.map_err(Into::into).and_then(|runtime| match line.command {
        Command::Build(build) => peers::build(&build),
        Command::Run(run) => runtime.block_on(run::run(&run)),
        Command::Limits(limits) => runtime.block_on(limits::limits(&limits)),
        Command::Answer => runtime.block_on(limits::answer()),
        Command::Profile(profile) => runtime.block_on(profile::profile(&profile)),
        Command::Tail(tail) => runtime.block_on(tail::tail(&tail)),
        Command::Volume(volume) => runtime.block_on(volume::volume(&volume)),
        Command::Show { results, against, charts } => show(&results, against, charts.as_deref()),
    });
    match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn show(results: &Path, against: store::System, charts: Option<&Path>) -> Result<()> {
    if let Ok(figures) = limits::Figures::read(results) {
        if charts.is_some() {
            return Err("there are no charts of limits".into());
        }
        print!("{}{}", figures.tables(), figures.what_binds());
        return Ok(());
    }
    let results = results::Results::read(results)?;
    print!("{}{}{}", results.table(), results.ratios(against), results.notes());
    for file in charts.map(|directory| chart::draw(&results, directory)).transpose()?.unwrap_or_default() {
        println!("{}", file.display());
    }
    Ok(())
}
