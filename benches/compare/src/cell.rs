//! One cell of the comparison: a system under a load, measured once.

use std::time::Duration;

use flotilla_benches::cluster::Result;

use crate::load::threads::Placed;
use crate::load::{Load, Running, Seen};
use crate::machine::{SyncCounter, Watch, Watched, resident_bytes};
use crate::store::Session;

/// What was measured; per operation where it says so.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Measured {
    pub per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    /// Per operation: CPU time of all servers together.
    pub server_us: f64,
    /// Per operation, if they could be counted.
    pub syncs: Option<f64>,
    /// Per operation.
    pub disk_bytes: f64,
    /// Per operation: packets on loopback, between clients and servers and among servers.
    pub packets: f64,
    /// Per operation.
    pub calls: f64,
    /// Per operation.
    pub waits: f64,
    /// Resident bytes of all servers, at the end.
    pub resident_bytes: f64,
    /// Of all operations: conditional writes whose condition did not hold.
    pub conflicts: f64,
    /// Cores that something else was busy with.
    pub others: f64,
    /// Cores that the load itself took.
    pub load_cores: f64,
}

/// How long a load runs before it is measured, and then.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub warm_up: Duration,
    pub measure: Duration,
}

/// Loads and measures.
pub async fn measure<S: Session>(
    sessions: &[Placed<S>],
    processes: &[u32],
    load: Load,
    times: Times,
) -> Result<Measured> {
    let mut running = Running::start(sessions, load);
    tokio::time::sleep(times.warm_up).await;
    let syncs = SyncCounter::start(processes);
    // Until it has looked at all threads.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let watch = Watch::start(processes)?;
    running.measure();
    tokio::time::sleep(times.measure).await;
    let watched = watch.end(processes)?;
    let counted = syncs.and_then(SyncCounter::stop);
    let seen = running.stop().await?;
    summed_up(&seen, &watched, counted, resident_bytes(processes)?)
}

fn summed_up(seen: &Seen, watched: &Watched, syncs: Option<f64>, resident_bytes: f64) -> Result<Measured> {
    if let Some(failure) = &seen.failure {
        return Err(format!("{} operations failed, the first one with: {failure}", seen.failed).into());
    }
    let (operations, spent) = (seen.latencies.count() as f64, watched.spent);
    if operations < 1.0 {
        return Err("no operation ended while it was measured: raise --seconds".into());
    }
    Ok(Measured {
        per_second: operations / seen.seconds,
        p50_us: seen.latencies.percentile_us(50.0),
        p99_us: seen.latencies.percentile_us(99.0),
        p999_us: seen.latencies.percentile_us(99.9),
        server_us: spent.server_us / operations,
        syncs: syncs.map(|syncs| syncs / operations),
        disk_bytes: spent.disk_bytes / operations,
        packets: spent.packets / operations,
        calls: spent.calls / operations,
        waits: spent.waits / operations,
        resident_bytes,
        conflicts: seen.conflicts as f64 / operations,
        others: watched.others,
        load_cores: spent.own_us / 1e6 / seen.seconds,
    })
}
