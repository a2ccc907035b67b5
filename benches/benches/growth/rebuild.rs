//! A node of four is lost for good: how fast its replicas come to life on the others, and what a steady load well
//! below the cluster's capacity sees of it.

use std::path::Path;
use std::time::{Duration, Instant};

use flotilla_benches::args::Args;
use flotilla_benches::stats::Table;

use crate::load::{self, Steady};
use flotilla_benches::cluster::{Cluster, Result, shown, user_ranges};

const RANGES: u64 = 32;
/// The shortest that a cluster takes.
const DEAD_AFTER: Duration = Duration::from_secs(2);
const LOST: usize = 3;

const COLUMNS: &[&str; 12] = &[
    "replicas lost",
    "MiB lost",
    "rebuilt after, s",
    "MiB/s",
    "load, operations/s",
    "p99 before, µs",
    "p99 until it is dead : before",
    "p99 while rebuilding : before",
    "p50 while rebuilding : before",
    "longest, ms",
    "ambiguous writes",
    "failed",
];

pub async fn run(binary: &Path, args: &Args) -> Result<()> {
    let mib = args.extra("mib");
    let mut table = Table::new(format!("Four nodes, {mib} MiB in {RANGES} ranges three times; one is lost"), COLUMNS);
    for _ in 0..args.reps {
        let name = "a node is lost";
        table.add(name, &shown(name, COLUMNS, measure(binary, args, mib << 20)).await?);
    }
    table.print();
    Ok(())
}

async fn measure(binary: &Path, args: &Args, bytes: u64) -> Result<[f64; 12]> {
    let ranges = RANGES.to_string();
    let dead_after = DEAD_AFTER.as_millis().to_string();
    let flags = ["--initial-ranges", &ranges, "--node-dead-after-ms", &dead_after];
    let mut cluster = Cluster::start(binary, &args.dir, 4, &flags).await?;
    let client = cluster.client().await?;
    load::fill(&client, bytes).await?;
    cluster.wait_whole(3).await?;
    let length = Duration::from_secs_f64(args.seconds);
    let rate = load::capacity(&client, length).await? * args.extra("percent") as f64 / 100.0;
    let steady = Steady::start(std::slice::from_ref(&client), load::Load::Mixed, rate);
    // The first second is not looked at: what the search for the capacity left behind is done then.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begun = Instant::now();
    tokio::time::sleep(length).await;
    let replicas = held_by(&client, LOST as u64 + 1).await?;
    let lost = Instant::now();
    cluster.lose(LOST)?;
    let dead = lost + DEAD_AFTER;
    cluster.wait_whole(3).await?;
    let whole = Instant::now();
    let (before, outage, during) = (steady.seen(begun, lost), steady.seen(lost, dead), steady.seen(dead, whole));
    steady.stop().await?;
    // The keys spread evenly; what the ranges report of their sizes is behind by then.
    let mib = bytes as f64 / RANGES as f64 * replicas as f64 / f64::from(1 << 20);
    let took = whole.saturating_duration_since(dead).as_secs_f64();
    Ok([
        replicas as f64,
        mib,
        whole.duration_since(lost).as_secs_f64(),
        mib / took,
        rate,
        before.p99_us,
        outage.p99_us / before.p99_us,
        during.p99_us / before.p99_us,
        during.p50_us / before.p50_us,
        outage.longest_ms.max(during.longest_ms),
        (outage.ambiguous + during.ambiguous) as f64,
        (outage.failed + during.failed) as f64,
    ])
}

/// How many replicas a node has.
async fn held_by(client: &flotilla_router::Client, node: u64) -> Result<usize> {
    let on = |route: &flotilla_proto::v1::RangeStatus| {
        route.descriptor.iter().flat_map(|range| &range.replicas).any(|replica| replica.node_id == node)
    };
    Ok(user_ranges(client).await?.iter().filter(|route| on(route)).count())
}
