//! What happens to a cluster while it is loaded, again and again until it is told to end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flotilla_benches::cluster::{Result, user_ranges};
use flotilla_proto::{NodeId, RangeId, v1};
use flotilla_router::{Client, SplitAt};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;

use crate::load::workload::{key, value};

/// Between two splits, merges or handovers.
const PAUSE: Duration = Duration::from_millis(50);
/// So long a merge or a move is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bulk writes: so many under way, of so many bytes, to so many keys behind those of the load.
const BULK_WRITERS: u64 = 4;
const BULK_BYTES: usize = 64 << 10;
const BULK_KEYS: u64 = 2_000;
const BULK_FROM: u64 = 1 << 40;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Event {
    /// Nothing: how much two quiet times differ
    Nothing,
    /// Ranges are split at keys of the load
    Splits,
    /// Neighbours become one
    Merges,
    /// Leaders hand over
    Handovers,
    /// Replicas move to the node that has none, by snapshots
    Moves,
    /// Four clients write values of 64 KiB: flushes and compactions
    Bulk,
    /// Each sync of one node takes 20 ms longer
    SlowDisk,
}

impl Event {
    /// As tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing happens",
            Self::Splits => "splits",
            Self::Merges => "merges",
            Self::Handovers => "handovers",
            Self::Moves => "moves of replicas",
            Self::Bulk => "bulk writes beside it",
            Self::SlowDisk => "one slow disk",
        }
    }
}

/// Events under way.
pub struct Events {
    over: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<u64>>,
}

impl Events {
    pub fn begin(event: Event, client: Client, seed: u64) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let tasks = match event {
            Event::Nothing | Event::SlowDisk => 0,
            Event::Bulk => BULK_WRITERS,
            _ => 1,
        };
        let begin = |at: u64| {
            let cause = Cause { event, client: client.clone(), random: SmallRng::seed_from_u64(seed << 8 | at) };
            tokio::spawn(cause.until(Arc::clone(&over)))
        };
        Self { tasks: (0..tasks).map(begin).collect(), over }
    }

    /// How many came about.
    pub async fn end(self) -> Result<u64> {
        self.over.store(true, Ordering::Relaxed);
        let mut count = 0;
        for task in self.tasks {
            count += task.await?;
        }
        Ok(count)
    }
}

/// Brings events about, one after the other.
struct Cause {
    event: Event,
    client: Client,
    random: SmallRng,
}

impl Cause {
    /// One that is refused, because the range is just busy with another, is left out.
    async fn until(mut self, over: Arc<AtomicBool>) -> u64 {
        let mut done = 0;
        while !over.load(Ordering::Relaxed) {
            done += u64::from(self.next().await.is_ok());
            if self.event != Event::Bulk {
                tokio::time::sleep(PAUSE).await;
            }
        }
        done
    }

    async fn next(&mut self) -> Result<()> {
        if self.event == Event::Bulk {
            let key = key(BULK_FROM + self.random.random_range(0..BULK_KEYS));
            return Ok(self.client.put(key, value(&mut self.random, BULK_BYTES)).await.map(drop)?);
        }
        let ranges = user_ranges(&self.client).await?;
        let at = self.random.random_range(0..ranges.len());
        let descriptor =
            |at: usize| ranges.get(at).and_then(|of| of.descriptor.clone()).ok_or("there is no such range");
        let of = descriptor(at)?;
        let (range, leader) = (RangeId(of.range_id), ranges[at].leader_node_id);
        let replicas: Vec<u64> = of.replicas.iter().map(|replica| replica.node_id).collect();
        match self.event {
            Event::Splits => {
                let key = self.key_within(&of)?;
                drop(self.client.split_range(range, SplitAt::Keys(vec![key])).await?);
            }
            Event::Merges => {
                drop(self.client.merge_ranges(range, RangeId(descriptor(at + 1)?.range_id), PATIENCE).await?);
            }
            Event::Handovers => {
                let others: Vec<u64> = replicas.into_iter().filter(|node| *node != leader).collect();
                let to = others.choose(&mut self.random).ok_or("it has one replica")?;
                self.client.transfer_leader(range, NodeId(*to)).await?;
            }
            Event::Moves => {
                let from = *replicas.choose(&mut self.random).ok_or("it has no replica")?;
                let free = (1..).find(|node| !replicas.contains(node)).map(NodeId).ok_or("every node has one")?;
                self.client.move_replica(range, NodeId(from), free, Some(PATIENCE)).await?;
            }
            Event::Nothing | Event::Bulk | Event::SlowDisk => {}
        }
        Ok(())
    }

    /// Keys are hashes: some of those of the load lie in any range.
    fn key_within(&mut self, range: &v1::RangeDescriptor) -> Result<Bytes> {
        let within = |key: &Bytes| *key > range.start && (range.end.is_empty() || *key < range.end);
        let keys = (0..10_000).map(|_| key(self.random.random_range(0..1 << 32)));
        Ok(keys.into_iter().find(within).ok_or("no key in it")?)
    }
}
