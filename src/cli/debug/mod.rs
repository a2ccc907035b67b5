//! `debug`: looks into the data directory of a node that is not running.
//!
//! Nothing in the directory is changed: what opening a store would write goes to a copy ([`copy`]).
//! The store is then opened as a node would open it, audit and all, so that a store that would not
//! serve is refused here with the same words.

mod copy;
mod log;
mod range;
mod store;

use std::path::PathBuf;

use flotilla_engine::recover::{self, Boot, RangeBoot};
use flotilla_proto::RangeId;

use super::failure::{Failure, Result};
use super::global::Global;

#[derive(clap::Subcommand, Debug)]
pub enum DebugCommand {
    /// Whose store it is, the layout, and what opening found
    Store(StoreArgs),
    /// A range's log entries
    Log(LogArgs),
    /// The replicas in a store with their Raft and applied state
    Range(RangeArgs),
}

#[derive(clap::Args, Debug)]
pub struct StoreArgs {
    /// The data directory
    dir: PathBuf,
}

#[derive(clap::Args, Debug)]
pub struct LogArgs {
    /// The data directory
    dir: PathBuf,
    /// The range's id
    #[arg(long, value_name = "ID")]
    range: u64,
    /// First index
    #[arg(long, value_name = "INDEX")]
    from: Option<u64>,
    /// At most so many entries; the last ones unless --from is given
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: u64,
    #[command(flatten)]
    style: super::bytes::KeyStyle,
}

#[derive(clap::Args, Debug)]
pub struct RangeArgs {
    /// The data directory
    dir: PathBuf,
    /// Only this range
    #[arg(long, value_name = "ID")]
    range: Option<u64>,
    #[command(flatten)]
    style: super::bytes::KeyStyle,
}

pub fn run(command: DebugCommand, global: &Global) -> Result {
    match command {
        DebugCommand::Store(args) => store::run(&args, global),
        DebugCommand::Log(args) => log::run(&args, global),
        DebugCommand::Range(args) => range::run(&args, global),
    }
}

/// A store's records, or why they cannot be read.
fn load(opened: &copy::Opened) -> Result<Boot> {
    let boot = recover::load(opened.storage()).map_err(|error| opened.failure(&error))?;
    boot.ok_or_else(|| {
        Failure::failed("the store was never bootstrapped: it holds no ranges")
            .hint("`flotilla start --bootstrap` would finish what was begun")
    })
}

fn find(boot: &Boot, range: u64) -> Result<&RangeBoot> {
    boot.ranges.iter().find(|boot| boot.descriptor.range_id == range).ok_or_else(|| {
        Failure::failed(format!("the store has no replica of range {range} ({})", RangeId(range)))
            .hint("`flotilla debug range DIR` lists those that it has")
    })
}
