//! Overload: more is asked of three nodes than they can do, at a steady rate that heeds no answer. What they get done then, compared with
//! the most that they can; how long what succeeds takes; how large they grow; and whether they are well at once when it is over.
//!
//! So that their clients can ask for ten times what they can do, the nodes share a part of one processor, by a quota; or their disks take so
//! many bytes a second (the power-cut shim), which leaves the processors to the clients and makes the capacity steady.

use std::path::Path;
use std::time::{Duration, Instant};

use flotilla_benches::args::Args;
use flotilla_benches::stats::Table;
use flotilla_router::{Client, ClientConfig};

use crate::load::{Load, Seen, Steady, Throughput};
use crate::powercut::PowerCut;
use crate::quota::Quota;
use flotilla_benches::cluster::{Cluster, Result, shown};

const RANGES: &str = "12";

/// What the nodes cannot have more of.
#[derive(Clone, Copy)]
enum Limit {
    /// Percent of one processor, for all nodes together.
    Processor(u64),
    /// A MiB that is synced takes a node so many microseconds more, and so many times that on the last node.
    Disk { us_per_mib: u64, last: u64 },
}

/// 8 MiB a second on each node, of which a write takes two values: its entry, and its key.
const DISKS: Limit = Limit::Disk { us_per_mib: 125_000, last: 1 };
const ONE_SLOW: Limit = Limit::Disk { us_per_mib: 125_000, last: 4 };
const CASES: &[(&str, Load, Limit, &[u32])] = &[
    ("put, a part of a processor", Load::Put, Limit::Processor(40), &[1, 10]),
    ("put, slow disks", Load::Put, DISKS, &[1, 10]),
    ("put, one disk four times slower than the others", Load::Put, ONE_SLOW, &[10]),
    ("put of one key, slow disks", Load::HotPut, DISKS, &[10]),
    ("get of 64 KiB, a part of a processor", Load::LargeGet, Limit::Processor(20), &[1, 10]),
];
/// A caller gives up then.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Who ask one thing after the other, when the capacity is looked for.
const CALLERS: u64 = 2_048;
/// Clients with connections of their own.
const CLIENTS: usize = 8;
/// Seconds: until the most is known, of each load, and of what is looked at when it is over.
const CAPACITY: f64 = 6.0;
const LENGTH: f64 = 10.0;
const BEHIND: f64 = 4.0;

const COLUMNS: &[&str; 12] = &[
    "capacity, operations/s",
    "asked : capacity",
    "done : capacity",
    "p50 of those, ms",
    "p99 of those, ms",
    "longest of those, ms",
    "in doubt : done",
    "writes answered by nodes : done",
    "CPU of nodes, µs per done",
    "a node grew by, MiB",
    "first second behind it, succeeded",
    "p99 behind it : before",
];

pub async fn run(binary: &Path, args: &Args) -> Result<()> {
    let mut table = Table::new("Offered many times what three nodes can do", COLUMNS);
    let wanted = |(at, case)| (args.extra("case") == 0 || args.extra("case") == at).then_some(case);
    for (what, load, limit, times) in (1..).zip(CASES).filter_map(wanted) {
        for times in *times {
            let name = format!("{what}, {times} x the capacity");
            for _ in 0..args.reps {
                let measured = measure(binary, args, *load, *limit, f64::from(*times));
                table.add(&name, &shown(&name, COLUMNS, measured).await?);
            }
        }
    }
    table.print();
    Ok(())
}

async fn measure(binary: &Path, args: &Args, load: Load, limit: Limit, times: f64) -> Result<[f64; 12]> {
    let quota = limit.quota()?;
    let cluster = Cluster::start_in(binary, &args.dir, 3, &["--initial-ranges", RANGES], limit.environment()).await?;
    let (clients, asking) = (clients(&cluster).await?, cluster.client().await?);
    load.prepare(&asking).await?;
    for at in 0..cluster.nodes.len() {
        quota.iter().try_for_each(|quota| quota.take(cluster.process(at)?))?;
    }
    let fast = Throughput::start(&clients, load, CALLERS);
    pause(2.0 + CAPACITY).await;
    let capacity = fast.rate(2.0, 2.0 + CAPACITY);
    fast.stop().await;

    let half = Steady::start(&clients, load, capacity / 2.0);
    let before = seen(&half, BEHIND).await;
    half.stop().await?;
    let (mut resident, mut grown) = (Vec::new(), 0.0_f64);
    for at in 0..cluster.nodes.len() {
        resident.push(cluster.resident_bytes(at)?);
    }

    let much = Steady::start(&clients, load, capacity * times);
    pause(2.0).await;
    let spent = cluster.counters(&asking).await?;
    let from = Instant::now();
    while from.elapsed().as_secs_f64() < LENGTH {
        pause(0.2).await;
        for (at, before) in resident.iter().enumerate() {
            grown = grown.max(cluster.resident_bytes(at)? - before);
        }
    }
    let spent = cluster.counters(&asking).await?.since(spent);
    let overloaded = much.seen(from, Instant::now() - TIMEOUT);
    let done = overloaded.succeeded as f64 / (LENGTH - TIMEOUT.as_secs_f64());
    much.cut();

    let half = Steady::start(&clients, load, capacity / 2.0);
    let first = seen(&half, 1.0).await;
    let behind = seen(&half, BEHIND).await;
    half.stop().await?;
    Ok([
        capacity,
        overloaded.all() as f64 / (LENGTH - TIMEOUT.as_secs_f64()) / capacity,
        done / capacity,
        overloaded.p50_us / 1000.0,
        overloaded.p99_us / 1000.0,
        overloaded.longest_ms,
        overloaded.ambiguous as f64 / overloaded.succeeded.max(1) as f64,
        spent.writes / (done * LENGTH),
        spent.cpu_micros / (done * LENGTH),
        grown / f64::from(1 << 20),
        first.succeeded as f64 / first.all().max(1) as f64,
        behind.p99_us / before.p99_us,
    ])
}

impl Limit {
    fn environment(self) -> Vec<Vec<(String, String)>> {
        let Self::Disk { us_per_mib, last } = self else { return Vec::new() };
        let of = |times| PowerCut::faults_only(None).sync_us_per_mib(us_per_mib * times).vars();
        vec![of(1), of(1), of(last)]
    }

    fn quota(self) -> Result<Option<Quota>> {
        let Self::Processor(percent) = self else { return Ok(None) };
        Quota::new(percent).map(Some)
    }
}

/// What a load sees within the next so many seconds.
async fn seen(load: &Steady, seconds: f64) -> Seen {
    let from = Instant::now();
    pause(seconds).await;
    let to = Instant::now();
    // What was due at the very end has its time.
    pause(TIMEOUT.as_secs_f64()).await;
    load.seen(from, to)
}

async fn clients(cluster: &Cluster) -> Result<Vec<Client>> {
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let config = ClientConfig { timeout: TIMEOUT, ..ClientConfig::default() };
        clients.push(Client::connect(cluster.nodes.iter().map(|node| node.client.clone()), config).await?);
    }
    Ok(clients)
}

async fn pause(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}
