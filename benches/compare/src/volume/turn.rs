//! One system's turn.

use std::time::Duration;

use flotilla_benches::cluster::Result;
use serde::Serialize;

use super::Volume;
use super::groups::Groups;
use super::kernel::Resident;
use super::metrics::Split;
use super::report::Outcome;
use super::restart::restart;
use super::servers::Servers;
use super::settle::{Settled, settle};
use super::within::within;
use crate::load::threads::{Placed, sessions};
use crate::load::workload::Workload;
use crate::load::{Load, Running, fill_by};
use crate::machine::{Spent, Watch, Watched};
use crate::run::{OTHERS_MAX, too_busy};
use crate::store::{Session, System};

/// Between two looks at how many puts are done.
const LOOK: Duration = Duration::from_millis(10);

pub struct Turn<'a> {
    pub volume: &'a Volume,
    pub system: System,
    /// From 1 on.
    pub number: u64,
    pub groups: Option<&'a Groups>,
}

/// What writes came to, when they had settled; of all nodes together.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Written {
    pub operations: f64,
    /// Of values, with all replicas.
    pub replicated_bytes: f64,
    /// Without the settling.
    pub seconds: f64,
    /// Cores that something else was busy with meanwhile.
    pub others: f64,
    pub settled: Settled,
    /// Bytes that the nodes gave to the disk, by the kernel's count.
    pub bytes: f64,
    /// By their own.
    pub split: Option<Split>,
    pub resident: Resident,
}

impl Written {
    /// Of bytes that all nodes wrote: those of one replica for each byte of its values.
    pub fn for_each_byte(&self, bytes: f64) -> f64 {
        bytes / self.replicated_bytes
    }
}

impl Turn<'_> {
    pub async fn take<S: Servers>(&self, mut servers: S) -> Result<Outcome> {
        let load = self.load()?;
        let puts =
            self.volume.overwrites.checked_mul(load.keys).ok_or("--overwrites is too large: it is for each key")?;
        let filled = self.written("fill", &servers, async |sessions: &[Placed<S::Session>]| {
            fill_by(self.volume.clients, sessions, load).await?;
            Ok(load.keys)
        });
        let filled = filled.await?;
        let overwritten = match puts {
            0 => None,
            _ => {
                let overwrite = async |sessions: &[Placed<S::Session>]| overwrite(sessions, load, puts).await;
                Some(self.written("overwrites", &servers, overwrite).await?)
            }
        };
        servers.end(libc::SIGKILL).await?;
        let killed = restart(&mut servers, &[], load).await?;
        servers.end(libc::SIGTERM).await?;
        let stopped = restart(&mut servers, &[], load).await?;
        let within = match self.groups {
            Some(groups) => Some(within(&mut servers, groups, load, self.volume.even_if_busy).await?),
            None => None,
        };
        Ok(Outcome { system: self.system, turn: self.number, filled, overwritten, killed, stopped, within })
    }

    fn load(&self) -> Result<Load> {
        Ok(Load {
            workload: Workload::Put,
            clients: usize::try_from(self.volume.clients)?,
            value_bytes: usize::try_from(self.volume.value_bytes)?,
            keys: self.volume.keys,
            seed: self.number,
        })
    }

    /// Writes, which returns how often, and waits until that has settled.
    async fn written<S: Servers>(
        &self,
        what: &str,
        servers: &S,
        write: impl AsyncFnOnce(&[Placed<S::Session>]) -> Result<u64>,
    ) -> Result<Written> {
        let clients = usize::try_from(self.volume.clients)?;
        let sessions = sessions(clients, async |share| servers.sessions(share).await).await?;
        let (processes, split) = (servers.processes()?, servers.split().await?);
        let (spent, watch) = (Spent::until_now(&processes)?, Watch::start(&processes)?);
        let operations = write(&sessions).await.map_err(|error| format!("{what}: {error}"))? as f64;
        let Watched { seconds, others, .. } = watch.end(&processes)?;
        eprintln!("  {what}: {operations:.0} puts in {seconds:.1} s, {others:.2} cores busy with something else");
        if others > OTHERS_MAX && !self.volume.even_if_busy {
            return Err(too_busy(others));
        }
        let settled = settle(servers, Duration::from_secs(self.volume.settle_max)).await?;
        Ok(Written {
            operations,
            replicated_bytes: operations * (self.volume.value_bytes * self.volume.nodes) as f64,
            seconds,
            others,
            settled,
            bytes: Spent::until_now(&processes)?.since(spent).disk_bytes,
            split: servers.split().await?.zip(split).map(|(now, before)| now.since(before)),
            resident: Resident::of(&processes)?,
        })
    }
}

/// So many puts at least, to random keys; how many there were.
async fn overwrite<S: Session>(sessions: &[Placed<S>], load: Load, puts: u64) -> Result<u64> {
    let mut running = Running::start(sessions, load);
    running.measure();
    while running.so_far() < puts && !running.has_failed() {
        tokio::time::sleep(LOOK).await;
    }
    let seen = running.stop().await?;
    match seen.failure {
        Some(failure) => Err(format!("{} puts failed, the first one with: {failure}", seen.failed).into()),
        None => Ok(seen.latencies.count()),
    }
}
