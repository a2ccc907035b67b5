//! Loads on nodes that each have less memory than data.

use std::pin::pin;
use std::time::Duration;

use flotilla_benches::cluster::Result;
use serde::Serialize;
use tokio::time::timeout;

use super::groups::Groups;
use super::kernel::{bytes_on_disk, bytes_read, forget};
use super::restart::{Restart, restart};
use super::servers::Servers;
use crate::load::threads::sessions;
use crate::load::workload::Workload;
use crate::load::{Load, Running};
use crate::machine::Watch;
use crate::run::undisturbed;

const CLIENTS: usize = 64;
const WARM_UP: Duration = Duration::from_secs(10);
const MEASURED: Duration = Duration::from_secs(10);
/// Between two looks at whether the kernel has ended a node.
const LOOK: Duration = Duration::from_millis(100);

/// What came of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Within {
    /// Nodes served.
    Served(Served),
    /// The kernel ended this node, from 1 on, for want of memory.
    Ended(usize),
    /// It was not served to the end, for another reason.
    Failed(String),
}

#[derive(Clone, Debug, Serialize)]
pub struct Served {
    /// Of all nodes, when they started.
    pub bytes_on_disk: f64,
    pub restart: Restart,
    pub get: Loaded,
    pub ycsb_a: Loaded,
}

/// A load, per operation where it says so.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Loaded {
    pub per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// Per operation: CPU time of all servers together.
    pub server_us: f64,
    /// Per operation: bytes that all servers together read from the disk.
    pub read_bytes: f64,
    /// Cores that something else was busy with.
    pub others: f64,
}

/// Ends the nodes, and starts them anew within the groups, with nothing of their files in memory that they are not charged
/// for; then loads them.
pub async fn within<S: Servers>(servers: &mut S, groups: &Groups, filled: Load, even_if_busy: bool) -> Result<Within> {
    servers.end(libc::SIGTERM).await?;
    forget(servers.directory())?;
    let bytes_on_disk = bytes_on_disk(servers.directory())?;
    eprintln!("  within {} MiB a node", groups.mib);
    unless_ended(groups, async {
        let restart = restart(servers, groups.paths(), filled).await?;
        let get = load(servers, Load { workload: Workload::Get, ..filled }, even_if_busy).await?;
        let ycsb_a = load(servers, Load { workload: Workload::YcsbA, ..filled }, even_if_busy).await?;
        Ok(Served { bytes_on_disk, restart, get, ycsb_a })
    })
    .await
}

/// A system that has lost a node is not measured to the end.
async fn unless_ended(groups: &Groups, work: impl Future<Output = Result<Served>>) -> Result<Within> {
    let mut work = pin!(work);
    loop {
        let done = timeout(LOOK, &mut work).await;
        if let Some(node) = groups.ended()? {
            eprintln!("  the kernel ended node {node}, which needs more memory");
            return Ok(Within::Ended(node));
        }
        if let Ok(done) = done {
            // What was measured before is not to be lost with it.
            return Ok(done.map_or_else(|error| Within::Failed(error.to_string()), Within::Served));
        }
    }
}

async fn load<S: Servers>(servers: &S, load: Load, even_if_busy: bool) -> Result<Loaded> {
    let load = Load { clients: CLIENTS, ..load };
    let sessions = sessions(CLIENTS, async |share| servers.sessions(share).await).await?;
    let processes = servers.processes()?;
    let once = async || {
        let mut running = Running::start(&sessions, load);
        tokio::time::sleep(WARM_UP).await;
        let (read, watch) = (bytes_read(&processes)?, Watch::start(&processes)?);
        running.measure();
        tokio::time::sleep(MEASURED).await;
        let (watched, read) = (watch.end(&processes)?, bytes_read(&processes)? - read);
        let seen = running.stop().await?;
        if let Some(failure) = seen.failure {
            return Err(format!("{} operations failed, the first one with: {failure}", seen.failed).into());
        }
        let operations = seen.latencies.count() as f64;
        Ok(Loaded {
            per_second: operations / seen.seconds,
            p50_us: seen.latencies.percentile_us(50.0),
            p99_us: seen.latencies.percentile_us(99.0),
            server_us: watched.spent.server_us / operations,
            read_bytes: read / operations,
            others: watched.others,
        })
    };
    let loaded = undisturbed(even_if_busy, |loaded: &Loaded| loaded.others, once).await?;
    eprintln!(
        "  {}: {:.0}/s, p99 {:.0} us, {:.0} bytes read for each, {:.2} cores busy with something else",
        load.workload.name(),
        loaded.per_second,
        loaded.p99_us,
        loaded.read_bytes,
        loaded.others
    );
    Ok(loaded)
}
