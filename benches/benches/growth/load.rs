//! Filling a cluster, and a steady load on it: requests begin at given times, whether or not earlier ones have ended,
//! and their latency counts from then.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_benches::stats::Latencies;
use flotilla_proto::Error;
use flotilla_router::{Client, WriteOp};
use tokio::task::{JoinHandle, JoinSet};

use flotilla_benches::cluster::Result;

const FILL_BYTES: usize = 16 << 10;
const FILL_BATCH: u64 = 16;
const FILLERS: u64 = 8;
const SMALL_BYTES: usize = 256;
const LARGER_BYTES: usize = 8 << 10;
const LARGE_BYTES: usize = 64 << 10;
const SMALL_KEYS: u64 = 10_000;
const LARGE_KEYS: u64 = 500;
/// Closed-loop clients, when the capacity is looked for.
pub const CLIENTS: u64 = 64;
const PACE: Duration = Duration::from_millis(2);
/// By how much a pacer may be late and still make up for it.
const BEHIND_MAX: Duration = Duration::from_millis(20);

/// A number without a pattern.
fn scatter(number: u64) -> u64 {
    let mixed = (number ^ (number >> 30)).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A key made of letters and digits, which spreads evenly over the ranges that a keyspace is born with.
fn key(number: u64) -> Bytes {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut rest = scatter(number);
    let mut text = Vec::with_capacity(10);
    for _ in 0..10 {
        text.push(ALPHABET[(rest % 62) as usize]);
        rest /= 62;
    }
    text.into()
}

/// Bytes that do not compress.
fn value(seed: u64, bytes: usize) -> Bytes {
    let words = (0..bytes as u64 / 8).flat_map(|at| scatter(seed.wrapping_mul(1 << 20).wrapping_add(at)).to_le_bytes());
    words.collect()
}

/// Writes about so many bytes.
pub async fn fill(client: &Client, bytes: u64) -> Result<()> {
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..FILLERS {
        let (client, next) = (client.clone(), Arc::clone(&next));
        tasks.spawn(async move {
            loop {
                let first = next.fetch_add(FILL_BATCH, Ordering::Relaxed);
                if first * FILL_BYTES as u64 >= bytes {
                    return Ok::<(), Error>(());
                }
                let one = |at: u64| WriteOp::Put { key: key(at | 1 << 40), value: value(at, FILL_BYTES) };
                for done in client.batch((first..first + FILL_BATCH).map(one).collect(), false).await? {
                    done?;
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// How an operation ended.
#[derive(Clone, Copy, PartialEq)]
pub enum End {
    Success,
    /// Its node went while a write was under way: it may have been applied.
    Ambiguous,
    Failure,
}

impl End {
    pub fn of<T>(done: &flotilla_proto::Result<T>) -> Self {
        match done {
            Ok(_) => Self::Success,
            Err(Error::Ambiguous { .. }) => Self::Ambiguous,
            Err(_) => Self::Failure,
        }
    }
}

/// What is asked for.
#[derive(Clone, Copy)]
pub enum Load {
    /// Half writes, half reads, of small values.
    Mixed,
    /// Writes of larger ones, which cost those who answer much more than those who ask.
    Put,
    /// Writes of one key.
    HotPut,
    /// Reads of a few large values ([`Load::prepare`]): what is asked for and not answered costs whoever asks next to nothing.
    LargeGet,
}

impl Load {
    fn value_bytes(self) -> usize {
        match self {
            Self::Mixed => SMALL_BYTES,
            Self::Put | Self::HotPut => LARGER_BYTES,
            Self::LargeGet => LARGE_BYTES,
        }
    }

    /// Writes what is to be read, once.
    pub async fn prepare(self, client: &Client) -> Result<()> {
        let keys = if let Self::LargeGet = self { self.keys() } else { 0 };
        for at in 0..keys {
            client.put(key(at), value(at, self.value_bytes())).await?;
        }
        Ok(())
    }

    fn keys(self) -> u64 {
        match self {
            Self::Mixed | Self::Put => SMALL_KEYS,
            Self::HotPut => 1,
            Self::LargeGet => LARGE_KEYS,
        }
    }
}

async fn operation(client: &Client, load: Load, number: u64) -> End {
    let at = scatter(number) % load.keys();
    let writes = match load {
        Load::Mixed => number.is_multiple_of(2),
        Load::Put | Load::HotPut => true,
        Load::LargeGet => false,
    };
    let done = match writes {
        true => client.put(key(at), value(number, load.value_bytes())).await.map(drop),
        false => client.get(key(at)).await.map(drop),
    };
    End::of(&done)
}

/// Operations per second that come out if many clients each do one after the other.
pub async fn capacity(client: &Client, length: Duration) -> Result<f64> {
    let done = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for at in 0..CLIENTS {
        let (client, done) = (client.clone(), Arc::clone(&done));
        tasks.spawn(async move {
            let mut number = at << 32;
            while begun.elapsed() < length {
                operation(&client, Load::Mixed, number).await;
                done.fetch_add(1, Ordering::Relaxed);
                number += 1;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    Ok(done.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64())
}

/// What many clients get done that each do one operation after the other, in each tenth of a second.
pub struct Throughput {
    begun: Instant,
    done: Arc<Mutex<Vec<u64>>>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Throughput {
    /// Begins with so many callers, who share the clients.
    pub fn start(clients: &[Client], load: Load, callers: u64) -> Self {
        let begun = Instant::now();
        let (done, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let mut tasks = JoinSet::new();
        for at in 0..callers {
            let client = clients[at as usize % clients.len()].clone();
            let (done, stop) = (Arc::clone(&done), Arc::clone(&stop));
            tasks.spawn(async move {
                let mut number = at << 32;
                while !stop.load(Ordering::Relaxed) {
                    let success = operation(&client, load, number).await == End::Success;
                    let tenth = (begun.elapsed().as_secs_f64() * 10.0) as usize;
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    let length = done.len().max(tenth + 1);
                    done.resize(length, 0);
                    done[tenth] += u64::from(success);
                    number += 1;
                }
            });
        }
        Self { begun, done, stop, tasks }
    }

    /// Seconds since it began.
    pub fn now(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    /// Operations a second that succeeded between two times.
    pub fn rate(&self, from: f64, to: f64) -> f64 {
        let tenths = (from * 10.0) as usize..(to * 10.0) as usize;
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let sum: u64 = tenths.clone().map(|at| done.get(at).copied().unwrap_or_default()).sum();
        sum as f64 * 10.0 / tenths.len().max(1) as f64
    }

    pub async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await;
    }
}

/// When each request was due, how long it then took, and how it ended.
type Done = Arc<Mutex<Vec<(Instant, Duration, End)>>>;

/// A steady load, until it is stopped.
pub struct Steady {
    done: Done,
    stop: Arc<AtomicBool>,
    pacer: JoinHandle<()>,
}

/// What a steady load saw in some time.
#[derive(Debug)]
pub struct Seen {
    /// The times are of those that succeeded.
    pub succeeded: u64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub longest_ms: f64,
    pub ambiguous: u64,
    pub failed: u64,
}

impl Seen {
    /// How many requests it saw.
    pub fn all(&self) -> u64 {
        self.succeeded + self.ambiguous + self.failed
    }
}

impl Steady {
    /// Begins; the clients take turns.
    pub fn start(clients: &[Client], load: Load, per_second: f64) -> Self {
        let done = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let pacer = tokio::spawn(pace(clients.to_vec(), load, per_second, Arc::clone(&done), Arc::clone(&stop)));
        Self { done, stop, pacer }
    }

    /// Of the requests that were due within this time; those that have not ended yet are not among them.
    pub fn seen(&self, from: Instant, to: Instant) -> Seen {
        let (mut latencies, mut succeeded, mut ambiguous, mut failed) = (Latencies::default(), 0, 0, 0);
        for (due, took, end) in self.done.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if (from..to).contains(due) {
                if *end == End::Success {
                    succeeded += 1;
                    latencies.add(*took);
                }
                ambiguous += u64::from(*end == End::Ambiguous);
                failed += u64::from(*end == End::Failure);
            }
        }
        Seen {
            succeeded,
            p50_us: latencies.percentile_us(50.0),
            p99_us: latencies.percentile_us(99.0),
            longest_ms: latencies.max_us() / 1000.0,
            ambiguous,
            failed,
        }
    }

    /// Ends it, whatever is under way.
    pub fn cut(self) {
        self.pacer.abort();
    }

    /// Ends it when what is under way has ended.
    pub async fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.pacer.await?)
    }
}

async fn pace(clients: Vec<Client>, load: Load, per_second: f64, done: Done, stop: Arc<AtomicBool>) {
    let (mut begun, mut sent) = (Instant::now(), 0);
    let mut pulse = tokio::time::interval(PACE);
    let mut tasks = JoinSet::new();
    while !stop.load(Ordering::Relaxed) {
        pulse.tick().await;
        // What a machine that is too slow could not ask for is not asked for later, all at once.
        let behind = begun.elapsed().saturating_sub(Duration::from_secs_f64(sent as f64 / per_second));
        begun += behind.saturating_sub(BEHIND_MAX);
        let wanted = (begun.elapsed().as_secs_f64() * per_second) as u64;
        while sent < wanted {
            let due = begun + Duration::from_secs_f64(sent as f64 / per_second);
            let number = sent;
            let (client, done) = (clients[number as usize % clients.len()].clone(), Arc::clone(&done));
            tasks.spawn(async move {
                let end = operation(&client, load, number).await;
                done.lock().unwrap_or_else(PoisonError::into_inner).push((due, due.elapsed(), end));
            });
            sent += 1;
        }
        while tasks.try_join_next().is_some() {}
    }
    tasks.join_all().await;
}
