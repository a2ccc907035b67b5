//! The tail of latencies while things happen: splits, merges, handovers, moves, bulk writes with their flushes and
//! compactions, one slow disk. Each beside a quiet time of the same cluster under the same load.
//!
//! ```text
//! for each turn and event: start four nodes ─▶ fill ─▶ load: quiet, measured ─▶ events, measured ─▶ stop
//! ```
//! A closed loop of clients: what holds one of them up is in its latency once, and what it would have asked meanwhile is
//! not asked. With as many clients as there are here the longest are seen all the same.

mod events;

use std::path::PathBuf;
use std::time::Duration;

use flotilla_benches::cluster::{Cluster, Result, binary};
use flotilla_benches::stats::Table;

use crate::load::threads::{Placed, sessions};
use crate::load::workload::Workload;
use crate::load::{Load, Running, Seen, fill};
use crate::powercut::{Control, PowerCut};
use crate::store::Session;
use crate::store::flotilla::Flotilla;
use events::{Event, Events};

/// One more than a range has replicas, so that one can move.
const NODES: usize = 4;
const RANGES: &str = "16";
/// The node whose disk gets slow: not the one that the cluster began with, which leads the system range.
const HIT: usize = 1;
const SYNC_DELAY: Duration = Duration::from_millis(20);

const COLUMNS: &[&str] = &[
    "p50 : quiet",
    "p99 : quiet",
    "p99.9 : quiet",
    "longest : quiet",
    "operations/s : quiet",
    "p99 quiet, ms",
    "p99.9 quiet, ms",
    "events/s",
    "failed",
];

#[derive(clap::Args, Clone)]
pub struct Tail {
    /// What happens
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "nothing,splits,merges,handovers,moves,bulk,slow-disk"
    )]
    events: Vec<Event>,
    /// What the clients do
    #[arg(long, value_enum, value_delimiter = ',', default_value = "put,get")]
    workloads: Vec<Workload>,
    /// Clients, each with one operation under way
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Size of a value
    #[arg(long, default_value_t = 256)]
    value_bytes: usize,
    /// Different keys, written before anything is measured
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// How often everything is repeated
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// How long each of the two times is measured
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// The disk that is used
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
}

pub async fn tail(tail: &Tail) -> Result<()> {
    let title = format!("Latencies while things happen: {} clients by streams, ratios to quiet times", tail.clients);
    let mut table = Table::new(title, COLUMNS);
    for turn in 1..=tail.turns {
        for workload in &tail.workloads {
            for event in &tail.events {
                let name = format!("{}, {}", workload.name(), event.name());
                let values =
                    measure(tail, *workload, *event, turn).await.map_err(|error| format!("{name}: {error}"))?;
                eprintln!(
                    "turn {turn} of {}, {name}: p99 {:.2}, p99.9 {:.2} of quiet",
                    tail.turns, values[1], values[2]
                );
                table.add(name, &values);
            }
        }
    }
    table.print();
    Ok(())
}

async fn measure(tail: &Tail, workload: Workload, event: Event, turn: usize) -> Result<[f64; COLUMNS.len()]> {
    let directory = tempfile::tempdir_in(&tail.dir)?;
    let syncs = directory.path().join("syncs");
    let control = Control::open(&syncs)?;
    let mut environment = vec![Vec::new(); HIT + 1];
    if event == Event::SlowDisk {
        environment[HIT] = PowerCut::faults_only(None).control(&syncs).vars();
    }
    let flags = ["--initial-ranges", if event == Event::Merges { "512" } else { RANGES }];
    let store = Flotilla::of(Cluster::start_in(&binary()?, &tail.dir, NODES, &flags, environment).await?);
    let sessions = sessions(tail.clients, async |_| store.stream().await).await?;
    let load =
        Load { workload, clients: tail.clients, value_bytes: tail.value_bytes, keys: tail.keys, seed: turn as u64 };
    fill(&sessions, load).await?;
    let quiet = timed(&sessions, load, tail.seconds).await?;
    let events = Events::begin(event, store.client().await?, turn as u64);
    if event == Event::SlowDisk {
        control.set_delay_us(SYNC_DELAY.as_micros() as u64);
    }
    let eventful = timed(&sessions, load, tail.seconds).await?;
    let brought_about = events.end().await?;
    let of = |seen: &Seen, percent: f64| seen.latencies.percentile_us(percent);
    let ratio = |percent: f64| of(&eventful, percent) / of(&quiet, percent);
    let rate = |seen: &Seen| seen.latencies.count() as f64 / seen.seconds;
    Ok([
        ratio(50.0),
        ratio(99.0),
        ratio(99.9),
        eventful.latencies.max_us() / quiet.latencies.max_us(),
        rate(&eventful) / rate(&quiet),
        of(&quiet, 99.0) / 1e3,
        of(&quiet, 99.9) / 1e3,
        brought_about as f64 / (tail.seconds + WARM_UP.as_secs_f64()),
        (quiet.failed + eventful.failed) as f64,
    ])
}

/// How long a load runs before it is measured.
const WARM_UP: Duration = Duration::from_secs(1);

async fn timed<S: Session>(sessions: &[Placed<S>], load: Load, seconds: f64) -> Result<Seen> {
    let mut running = Running::start(sessions, load);
    tokio::time::sleep(WARM_UP).await;
    running.measure();
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    running.stop().await
}
