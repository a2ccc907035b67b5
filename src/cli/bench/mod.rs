//! `bench`: loads the cluster and measures what clients see and what it costs the servers.
//!
//! Many tasks share one client, each with one request under way. Keys are base62 texts made from
//! hashes, so they spread evenly over the ranges that a cluster is born with. What the servers spend
//! comes from their own counters before and after ([`cost`]).

mod cost;
mod keys;
mod load;
mod report;

use std::time::Duration;

use flotilla_proto::ids::DEFAULT_KEYSPACE_NAME;

use super::failure::{Failure, Result};
use super::global::{Global, parse_duration};
use super::range;

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// Write keys, each as likely as any other
    Put,
    /// Read keys, each as likely as any other
    Get,
    /// YCSB A: half reads, half writes, a few keys much hotter than the others (zipfian)
    YcsbA,
    /// YCSB B: 95% reads, 5% writes, zipfian
    YcsbB,
    /// YCSB C: reads, zipfian
    YcsbC,
}

impl Workload {
    /// Reads in a thousand operations.
    fn reads_per_mille(self) -> u64 {
        match self {
            Self::Put => 0,
            Self::YcsbA => 500,
            Self::YcsbB => 950,
            Self::Get | Self::YcsbC => 1_000,
        }
    }

    fn zipfian(self) -> bool {
        matches!(self, Self::YcsbA | Self::YcsbB | Self::YcsbC)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::YcsbA => "ycsb-a",
            Self::YcsbB => "ycsb-b",
            Self::YcsbC => "ycsb-c",
        }
    }
}

#[derive(clap::Args, Clone, Debug)]
pub struct BenchArgs {
    /// What the clients do
    #[arg(value_enum)]
    workload: Workload,
    /// The keyspace that is loaded
    #[arg(long, env = "FLOTILLA_KEYSPACE", value_name = "NAME", default_value = DEFAULT_KEYSPACE_NAME)]
    keyspace: String,
    /// Clients, each with one request under way
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    clients: u32,
    /// How long to measure
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration, conflicts_with = "ops")]
    seconds: Duration,
    /// Measure so many operations instead of a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    ops: Option<u64>,
    /// Size of a value
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    value_bytes: u32,
    /// Different keys
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    keys: u32,
    /// Use only keys that lie in this many of the ranges, the first ones
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    ranges: Option<u32>,
    /// Where the random numbers begin: the same keys and choices again
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Read keys as they are, without writing all of them first
    #[arg(long)]
    no_load: bool,
}

pub fn run(args: BenchArgs, global: &Global) -> Result {
    // Clients share the machine's cores with the servers in most runs: two threads carry some
    // 100,000 requests per second, more would only take from the servers.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::failed(format!("cannot start threads: {error}")))?;
    runtime.block_on(bench(args, global))
}

async fn bench(args: BenchArgs, global: &Global) -> Result {
    let client = global.client().await?.keyspace(&args.keyspace);
    let (ranges, _) = range::of_keyspace(&client, &args.keyspace).await?;
    let keys = keys::Keys::new(&args, &ranges)?;
    if args.workload.reads_per_mille() > 0 && !args.no_load {
        load::fill(&client, &keys, &args).await?;
    }
    let before = cost::Counters::read(&client).await?;
    let measured = load::measure(&client, keys, &args).await?;
    let after = cost::Counters::read(&client).await?;
    report::print(&args, &measured, after.since(&before).as_ref(), global)?;
    measured.verdict()
}
