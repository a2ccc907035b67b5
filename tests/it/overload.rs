//! Ten times more is asked of three nodes than they can do, at a steady rate that heeds no answer. How much gets done then is measured by
//! `make overload`; here: most of what could be, in time, without growing, and all is well right behind it.
//!
//! The nodes' disks take so many bytes a second (the power-cut shim), so that what they can do hangs little on the machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flotilla_proto::Error;
use flotilla_router::Client;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::powercut::PowerCut;
use crate::support::cluster::Cluster;
use crate::support::{eventually_async, memory_bytes, runtime};

/// 8 MiB a second, of which a write takes 16 KiB: its entry, and its key.
const SYNC_US_PER_MIB: u64 = 125_000;
const VALUE_BYTES: usize = 8 << 10;
const TIMEOUT: Duration = Duration::from_secs(1);
const CLIENTS: usize = 4;
/// Each asks for one thing after the other, when the capacity is looked for.
const CALLERS: usize = 64;
/// Operations that are looked at, behind the first ones of each load.
const FIRST: u64 = 300;
const OPERATIONS: u64 = 1_000;
const GROWTH_MAX: u64 = 64 << 20;

/// How requests ended.
#[derive(Debug, Default)]
struct Ends {
    succeeded: AtomicU64,
    in_doubt: AtomicU64,
    failed: AtomicU64,
}

impl Ends {
    fn succeeded(&self) -> u64 {
        self.succeeded.load(Ordering::Relaxed)
    }

    fn in_doubt(&self) -> u64 {
        self.in_doubt.load(Ordering::Relaxed)
    }

    fn all(&self) -> u64 {
        self.succeeded() + self.in_doubt() + self.failed.load(Ordering::Relaxed)
    }

    async fn put(&self, client: &Client, number: u64) {
        let key = format!("{}/{number}", char::from(b'a' + (number % 26) as u8));
        let end = match client.put(key, vec![number as u8; VALUE_BYTES]).await {
            Ok(_) => &self.succeeded,
            Err(Error::Ambiguous { .. }) => &self.in_doubt,
            Err(_) => &self.failed,
        };
        end.fetch_add(1, Ordering::Relaxed);
    }

    /// Successes a second, behind the first ones.
    async fn rate(&self) -> f64 {
        eventually_async("the load to be under way", || async { self.succeeded() >= FIRST }).await;
        let (before, from) = (self.succeeded(), Instant::now());
        eventually_async("its operations", || async { self.succeeded() >= before + OPERATIONS }).await;
        (self.succeeded() - before) as f64 / from.elapsed().as_secs_f64()
    }
}

/// As much as callers get done that do one thing after the other.
async fn capacity(clients: &[Client]) -> f64 {
    let (ends, stop) = (Arc::new(Ends::default()), Arc::new(AtomicBool::new(false)));
    let callers = (0..CALLERS).map(|at| {
        let (ends, stop, client) = (Arc::clone(&ends), Arc::clone(&stop), clients[at % CLIENTS].clone());
        tokio::spawn(async move {
            let mut number = at as u64;
            while !stop.load(Ordering::Relaxed) {
                ends.put(&client, number).await;
                number += CALLERS as u64;
            }
        })
    });
    let callers: Vec<_> = callers.collect();
    let rate = ends.rate().await;
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.expect("callers do not panic");
    }
    rate
}

/// Requests that begin at a steady rate, whatever became of those before.
struct Steady {
    ends: Arc<Ends>,
    pacer: JoinHandle<()>,
}

impl Steady {
    fn start(clients: &[Client], per_second: f64) -> Self {
        let (ends, clients) = (Arc::new(Ends::default()), clients.to_vec());
        let pacer = tokio::spawn({
            let ends = Arc::clone(&ends);
            async move {
                let mut pace = tokio::time::interval(Duration::from_secs_f64(1.0 / per_second));
                pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
                for number in 0.. {
                    pace.tick().await;
                    let (ends, client) = (Arc::clone(&ends), clients[number as usize % CLIENTS].clone());
                    tokio::spawn(async move { ends.put(&client, number).await });
                }
            }
        });
        Self { ends, pacer }
    }

    fn stop(self) -> Arc<Ends> {
        self.pacer.abort();
        self.ends
    }
}

#[test]
fn ten_times_too_much_leaves_most_of_it_done_and_all_well_behind_it() {
    let mut cluster = Cluster::new(3);
    for id in 1..=3 {
        cluster.set_environment(id, PowerCut::faults_only(None).sync_us_per_mib(SYNC_US_PER_MIB).vars());
    }
    cluster.start_all();
    runtime().block_on(async {
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(cluster.client(TIMEOUT).await);
        }
        let capacity = capacity(&clients).await;
        let resident =
            || (1..=3).map(|id| memory_bytes(cluster.pid(id).expect("it runs"), "VmRSS")).collect::<Vec<u64>>();
        let before = resident();

        let load = Steady::start(&clients, 10.0 * capacity);
        let rate = load.ends.rate().await;
        let grown = resident().iter().zip(&before).map(|(now, before)| now.saturating_sub(*before)).max();
        let ends = load.stop();
        println!("{capacity:.0} operations/s; asked for ten times as many: {rate:.0}, {ends:?}, grown by {grown:?}");
        assert!(rate >= capacity / 2.0, "{rate:.0} of {capacity:.0}");
        assert!(ends.in_doubt() * 10 <= ends.succeeded(), "{ends:?}");
        assert!(grown < Some(GROWTH_MAX), "{grown:?}");

        let load = Steady::start(&clients, capacity / 2.0);
        eventually_async("requests behind it", || async { load.ends.all() >= FIRST }).await;
        let ends = load.stop();
        println!("behind it: {ends:?}");
        assert!(ends.succeeded() * 10 >= ends.all() * 8, "{ends:?}");
    });
}
