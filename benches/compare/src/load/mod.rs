//! One generator of load for all stores: clients that each do one operation after the other (a closed loop), over
//! sessions that differ in nothing but the protocol.

pub mod threads;
pub mod workload;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use flotilla_benches::cluster::Result;
use flotilla_benches::stats::Latencies;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::task::JoinSet;

use crate::store::{Failed, Session};
use threads::{Placed, THREADS};
use workload::{Chooser, Operation, Workload, key, value};

/// Keys are written at first by so many.
const FILLERS: u64 = 64;

/// What to do to a store, for how long.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub workload: Workload,
    pub clients: usize,
    pub value_bytes: usize,
    pub keys: u64,
    pub seed: u64,
}

/// What clients saw while it was measured.
#[derive(Debug, Default)]
pub struct Seen {
    pub latencies: Latencies,
    /// Writes on a condition that did not hold: done, and counted, all the same.
    pub conflicts: u64,
    pub failed: u64,
    pub failure: Option<Failed>,
    pub seconds: f64,
}

impl Seen {
    fn add(&mut self, other: &Self) {
        self.latencies.merge(&other.latencies);
        self.conflicts += other.conflicts;
        self.failed += other.failed;
        if self.failure.is_none() {
            self.failure.clone_from(&other.failure);
        }
    }
}

/// A load in one of these is not measured yet, is, or is no more.
const WARMS_UP: u8 = 0;
const MEASURED: u8 = 1;
const OVER: u8 = 2;

/// Writes all keys.
pub async fn fill<S: Session>(sessions: &[Placed<S>], load: Load) -> Result<()> {
    fill_by(FILLERS, sessions, load).await
}

/// The same, by so many clients.
pub async fn fill_by<S: Session>(clients: u64, sessions: &[Placed<S>], load: Load) -> Result<()> {
    let mut tasks = JoinSet::new();
    for at in 0..clients {
        let Placed { session, thread, .. } = sessions[at as usize % sessions.len()].clone();
        let writes = async move {
            let mut random = SmallRng::seed_from_u64(load.seed ^ at);
            for number in (at..load.keys).step_by(clients as usize) {
                session.put(key(number), value(&mut random, load.value_bytes)).await?;
            }
            Ok::<(), Failed>(())
        };
        tasks.spawn_on(writes, &thread);
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// Clients under way.
pub struct Running {
    phase: Arc<AtomicU8>,
    done: Arc<AtomicU64>,
    failed: Arc<AtomicBool>,
    /// By thread: a thousand clients' own would take the servers' place in the processor's caches.
    seen: [Arc<Mutex<Seen>>; THREADS],
    clients: JoinSet<()>,
    began: Option<Instant>,
}

impl Running {
    /// Begins to load; the clients take turns with the sessions.
    pub fn start<S: Session>(sessions: &[Placed<S>], load: Load) -> Self {
        let phase = Arc::new(AtomicU8::new(WARMS_UP));
        let (chooser, done) = (Chooser::new(load.workload, load.keys), Arc::new(AtomicU64::new(0)));
        let (failed, seen) = (Arc::new(AtomicBool::new(false)), <[Arc<Mutex<Seen>>; THREADS]>::default());
        let mut clients = JoinSet::new();
        for at in 0..load.clients {
            let Placed { session, thread, number } = sessions[at % sessions.len()].clone();
            let client = Client {
                session,
                chooser: Arc::clone(&chooser),
                phase: Arc::clone(&phase),
                done: Arc::clone(&done),
                failed: Arc::clone(&failed),
                seen: Arc::clone(&seen[number]),
                random: SmallRng::seed_from_u64(load.seed.wrapping_mul(1_000_003).wrapping_add(at as u64)),
                value_bytes: load.value_bytes,
            };
            clients.spawn_on(client.run(), &thread);
        }
        Self { phase, done, failed, seen, clients, began: None }
    }

    /// From here on it counts.
    pub fn measure(&mut self) {
        self.began = Some(Instant::now());
        self.phase.store(MEASURED, Ordering::Relaxed);
    }

    /// Whether an operation has failed.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// How many operations have ended since it counts.
    pub fn so_far(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Up to here it counted; returns what was seen, when all have ended what they had begun.
    pub async fn stop(mut self) -> Result<Seen> {
        self.phase.store(OVER, Ordering::Relaxed);
        let seconds = self.began.map_or(0.0, |began| began.elapsed().as_secs_f64());
        while let Some(over) = self.clients.join_next().await {
            over?;
        }
        let mut all = Seen { seconds, ..Seen::default() };
        for seen in &self.seen {
            all.add(&lock(seen));
        }
        Ok(all)
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One client: one operation after the other.
struct Client<S> {
    session: S,
    chooser: Arc<Chooser>,
    phase: Arc<AtomicU8>,
    done: Arc<AtomicU64>,
    failed: Arc<AtomicBool>,
    /// Of all clients of its thread.
    seen: Arc<Mutex<Seen>>,
    random: SmallRng,
    value_bytes: usize,
}

impl<S: Session> Client<S> {
    async fn run(mut self) {
        loop {
            let operation = self.chooser.next(&mut self.random);
            let value = match operation {
                Operation::Put(_) | Operation::ReadModifyWrite(_) => value(&mut self.random, self.value_bytes),
                _ => Bytes::new(),
            };
            let begun = Instant::now();
            let done = self.perform(operation, value).await;
            let phase = self.phase.load(Ordering::Relaxed);
            if phase == OVER {
                return;
            }
            let mut seen = lock(&self.seen);
            match done {
                Ok(held) if phase == MEASURED => {
                    seen.latencies.add(begun.elapsed());
                    self.done.fetch_add(1, Ordering::Relaxed);
                    seen.conflicts += u64::from(!held);
                }
                Ok(_) => {}
                Err(failed) => {
                    self.failed.store(true, Ordering::Relaxed);
                    seen.failed += 1;
                    seen.failure.get_or_insert(failed);
                }
            }
        }
    }

    async fn perform(&self, operation: Operation, value: Bytes) -> std::result::Result<bool, Failed> {
        match operation {
            Operation::Put(key) => self.session.put(key, value).await.map(|()| true),
            Operation::Get(key) => self.session.get(key).await.map(|_| true),
            Operation::Scan(key, limit) => self.session.scan(key, limit).await.map(|_| true),
            Operation::ReadModifyWrite(key) => self.session.update(key, value).await,
        }
    }
}
