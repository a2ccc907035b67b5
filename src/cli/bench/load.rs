//! The load itself: tasks that each send one request after another.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_proto::error::Action;
use flotilla_router::{Client, WriteOp};
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use tokio::task::JoinSet;

use super::BenchArgs;
use super::keys::{Keys, Random};
use crate::cli::failure::{Failure, Result};
use crate::cli::output;

/// Longest latency told apart, in microseconds.
const LATENCY_MAX_MICROS: u64 = 120_000_000;
/// Bytes of a batch when keys are written beforehand.
const FILL_BYTES: usize = 256 << 10;
const SHARDS: usize = 16;

/// What was measured.
#[derive(Debug)]
pub struct Measured {
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// Latencies of reads that were answered, in microseconds.
    pub reads: Histogram<u64>,
    /// Latencies of writes.
    pub writes: Histogram<u64>,
    /// Reads of keys that were not there.
    pub missing: u64,
    /// Requests that failed, by their error.
    pub errors: BTreeMap<String, u64>,
    /// Of these, writes with unknown outcome.
    pub unknown: u64,
}

impl Measured {
    fn new() -> Result<Self> {
        let histogram = || {
            Histogram::new_with_bounds(1, LATENCY_MAX_MICROS, 3)
                .map_err(|error| Failure::failed(format!("histogram: {error}")))
        };
        Ok(Self {
            elapsed: Duration::ZERO,
            reads: histogram()?,
            writes: histogram()?,
            missing: 0,
            errors: BTreeMap::new(),
            unknown: 0,
        })
    }

    /// Operations that were answered.
    pub fn answered(&self) -> u64 {
        self.reads.len() + self.writes.len()
    }

    fn merge(&mut self, other: &Self) -> Result {
        for (into, from) in [(&mut self.reads, &other.reads), (&mut self.writes, &other.writes)] {
            into.add(from).map_err(|error| Failure::failed(format!("histogram: {error}")))?;
        }
        self.missing += other.missing;
        self.unknown += other.unknown;
        for (error, count) in &other.errors {
            *self.errors.entry(error.clone()).or_default() += count;
        }
        Ok(())
    }

    /// A failure if any request failed.
    pub fn verdict(&self) -> Result {
        let failed: u64 = self.errors.values().sum();
        if failed == 0 {
            return Ok(());
        }
        Err(Failure::failed(format!("{} failed", output::plural(failed, "request"))).hint("see `flotilla status`"))
    }
}

/// Writes all keys once.
pub async fn fill(client: &Client, keys: &Keys, args: &BenchArgs) -> Result {
    let value = value(args, &mut Random::new(args.seed, u64::MAX));
    let bar = output::progress(keys.all().len() as u64, "write keys");
    let ops = (FILL_BYTES / (args.value_bytes as usize + 32)).clamp(1, 256);
    let mut under_way = JoinSet::new();
    let mut chunks = keys.all().chunks(ops);
    loop {
        while under_way.len() < 8 {
            let Some(chunk) = chunks.next() else { break };
            let put = |key: &Bytes| WriteOp::Put { key: key.clone(), value: value.clone() };
            let (client, batch) = (client.clone(), chunk.iter().map(put).collect::<Vec<_>>());
            under_way.spawn(async move {
                let keys = batch.len() as u64;
                let results = client.batch(batch, false).await?;
                results.into_iter().collect::<std::result::Result<Vec<_>, _>>().map(|_| keys)
            });
        }
        let Some(joined) = under_way.join_next().await else { break };
        bar.inc(joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?);
    }
    bar.finish_and_clear();
    Ok(())
}

/// What tells all clients when to end.
struct Shared {
    stop: AtomicBool,
    /// Operations that may still begin.
    left: Option<AtomicU64>,
    bar: ProgressBar,
    /// Where clients write down what they see: a few for all, as a histogram takes 150 KB.
    shards: Vec<Mutex<Measured>>,
}

impl Shared {
    fn take_one(&self) -> bool {
        if self.stop.load(Ordering::Relaxed) {
            return false;
        }
        let take = |left: &AtomicU64| {
            left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
        };
        self.left.as_ref().is_none_or(take)
    }

    fn note(&self, client: u64, note: impl FnOnce(&mut Measured)) {
        let shard = &self.shards[client as usize % self.shards.len()];
        note(&mut shard.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Runs the clients.
pub async fn measure(client: &Client, keys: Keys, args: &BenchArgs) -> Result<Measured> {
    let shared = Arc::new(Shared {
        stop: AtomicBool::new(false),
        left: args.ops.map(AtomicU64::new),
        bar: output::progress(args.ops.unwrap_or(0), args.workload.name()),
        shards: (0..SHARDS).map(|_| Measured::new().map(Mutex::new)).collect::<Result<_>>()?,
    });
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for number in 0..args.clients {
        let (client, keys, shared, args) = (client.clone(), keys.clone(), shared.clone(), args.clone());
        clients.spawn(async move { one_client(&client, &keys, &shared, &args, number.into()).await });
    }
    let mut time_is_up = std::pin::pin!(tokio::time::sleep(args.seconds));
    loop {
        tokio::select! {
            joined = clients.join_next() => match joined {
                Some(joined) => joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())),
                None => break,
            },
            () = &mut time_is_up, if args.ops.is_none() && !shared.stop.load(Ordering::Relaxed) => {
                shared.stop.store(true, Ordering::Relaxed);
            }
        }
    }
    let mut total = Measured::new()?;
    total.elapsed = began.elapsed();
    shared.bar.finish_and_clear();
    for shard in &shared.shards {
        total.merge(&shard.lock().unwrap_or_else(PoisonError::into_inner))?;
    }
    Ok(total)
}

async fn one_client(client: &Client, keys: &Keys, shared: &Shared, args: &BenchArgs, number: u64) {
    let mut random = Random::new(args.seed, number);
    let value = value(args, &mut random);
    while shared.take_one() {
        let key = keys.choose(&mut random);
        let reads = random.below(1_000) < args.workload.reads_per_mille();
        let began = Instant::now();
        let result = if reads {
            client.get(key).await.map(|record| record.is_some())
        } else {
            client.put(key, value.clone()).await.map(|_| true)
        };
        let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        shared.bar.inc(1);
        shared.note(number, |measured| match result {
            Ok(found) => {
                measured.missing += u64::from(!found);
                let histogram = if reads { &mut measured.reads } else { &mut measured.writes };
                histogram.saturating_record(micros);
            }
            Err(error) => {
                measured.unknown += u64::from(error.action() == Action::Ambiguous);
                *measured.errors.entry(error.to_string()).or_default() += 1;
            }
        });
    }
}

/// A value that does not compress.
fn value(args: &BenchArgs, random: &mut Random) -> Bytes {
    (0..args.value_bytes).map(|_| random.next() as u8).collect::<Vec<u8>>().into()
}
