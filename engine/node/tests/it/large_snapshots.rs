//! Large snapshots between real nodes: through files on both sides, with either side failing at each step of it.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use flotilla_engine::config::{Config, ReadMode};
use flotilla_node::{Node, NodeConfig};
use flotilla_proto::NodeId;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::faulty::{Call, Faulty, Gate};
use crate::harness::{Cluster, DEADLINE, eventually, laid_out, listener, settings};

const VALUE_BYTES: usize = 64 << 10;

/// Little log is kept, and what is above 64 KiB goes through files.
fn small() -> Config {
    Config {
        log_retain_bytes: 64 << 10,
        log_retain_entries: 8,
        log_lagging_bytes_max: 64 << 10,
        snapshot_batch_bytes_max: 64 << 10,
        snapshot_file_bytes: 512 << 10,
        ..settings(ReadMode::Lease)
    }
}

fn fails_never() -> Gate {
    Arc::new(|_| false)
}

/// A cluster of three whose nodes' disks fail as their gates say; changing a gate affects the next start.
struct Trial {
    cluster: Cluster<Faulty>,
    gates: BTreeMap<usize, Gate>,
}

impl Trial {
    async fn start(engine: Config) -> Self {
        let listeners: Vec<_> = (0..3).map(|_| listener()).collect();
        let address = |listener: &TcpListener| listener.local_addr().expect("it is bound").to_string();
        let members = (1..).map(NodeId).zip(listeners.iter().map(address)).collect();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let cluster = Cluster { directory, members, nodes: vec![None, None, None], engine, ranges: 1 };
        let mut trial = Self { cluster, gates: BTreeMap::new() };
        for (at, listener) in listeners.into_iter().enumerate() {
            trial.start_node(at, listener).await;
        }
        trial.cluster.ready().await;
        trial
    }

    fn config(&self, at: usize, listener: TcpListener) -> NodeConfig {
        let cluster = &self.cluster;
        let data = cluster.directory.path().join(format!("node{}", at + 1));
        let mut config = NodeConfig::new(data, cluster.members[at].0, Handle::current(), listener);
        config.birth = Some(laid_out("flotilla", cluster.members[at].0, &cluster.members, 1, 3));
        config.engine = cluster.engine.clone();
        config.memory_bytes = 32 << 20;
        config.ballast_bytes = Some(0);
        config.disk_margin_bytes = Some(1);
        config
    }

    async fn start_node(&mut self, at: usize, listener: TcpListener) {
        let config = self.config(at, listener);
        let gate = self.gates.get(&at).cloned().unwrap_or_else(fails_never);
        let started = tokio::task::spawn_blocking(|| Node::start_on(config, |storage| Faulty::new(storage, gate)));
        self.cluster.nodes[at] = Some(started.await.expect("it does not panic").expect("it starts"));
    }

    async fn restart(&mut self, at: usize) {
        let address = self.cluster.members[at].1.clone();
        let listener = TcpListener::bind(address).expect("its port is free again");
        self.start_node(at, listener).await;
    }

    /// A range of some MiB, of which a follower, which is down, has nothing, and cannot get it by log.
    async fn with_one_behind(engine: Config) -> (Self, usize) {
        let mut trial = Self::start(engine).await;
        trial.put(0..4).await;
        trial.cluster.level().await;
        let range = trial.cluster.range_of(b"").range_id;
        let leads = |at: &usize| trial.cluster.node(*at).leads(flotilla_proto::RangeId(range)) == Some(true);
        let behind = (0..3).find(|at| !leads(at)).expect("one leads");
        trial.cluster.stop_node(behind).await;
        trial.put(4..60).await;
        (trial, behind)
    }

    async fn put(&self, numbers: std::ops::Range<u32>) {
        for number in numbers {
            self.cluster.put(&key(number), &value(number)).await;
        }
    }

    /// All replicas are level, hold what was written, and left no file behind.
    async fn end(self, numbers: std::ops::Range<u32>) {
        self.put(90..92).await;
        self.cluster.level().await;
        for number in numbers.chain(90..92) {
            for at in 0..3 {
                let found = self.cluster.get_stale(at, &key(number)).await;
                assert!(found == Some(value(number)), "key {number} on node {}", at + 1);
            }
        }
        let folders: Vec<_> = (1..=3).map(|id| self.cluster.directory.path().join(format!("node{id}/snap"))).collect();
        eventually("no staged file is left", || folders.iter().all(|folder| staged(folder) == 0)).await;
        self.cluster.stop().await;
    }
}

fn staged(folder: &Path) -> usize {
    std::fs::read_dir(folder).expect("it can be listed").count()
}

fn key(number: u32) -> Vec<u8> {
    format!("key-{number:06}").into_bytes()
}

fn value(number: u32) -> Vec<u8> {
    let mut state = u64::from(number) + 1;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    })
    .take(VALUE_BYTES)
    .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_far_behind_catches_up_by_files() {
    let (mut trial, behind) = Trial::with_one_behind(small()).await;
    let tables = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tables);
    trial.gates.insert(
        behind,
        Arc::new(move |call| {
            count.fetch_add(usize::from(call == Call::StageTable), Ordering::Relaxed);
            false
        }),
    );
    trial.restart(behind).await;
    trial.end(0..60).await;
    assert!(tables.load(Ordering::Relaxed) >= 4, "it came in several files");
}

/// Fails the call with this number, counted from the moment a table was staged, and everything after it: what a
/// process that ends there would not have done.
fn ends_at(number: usize) -> (Gate, Arc<Mutex<Vec<Call>>>) {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&calls);
    let ended = AtomicBool::new(false);
    let gate = move |call| {
        if ended.load(Ordering::Relaxed) {
            return true;
        }
        // The log writer and the store's loop go on meanwhile: they have threads with names of their own.
        let own = std::thread::current().name().is_some_and(|name| name.contains("tokio"));
        let mut seen = seen.lock().expect("nobody panics with it");
        if !own || (seen.is_empty() && call != Call::StageTable) || (call == Call::StageTable && !seen.is_empty()) {
            return false;
        }
        seen.push(call);
        if seen.len() > number {
            ended.store(true, Ordering::Relaxed);
        }
        seen.len() > number
    };
    (Arc::new(gate), calls)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_ends_at_any_step_goes_on_when_it_is_back() {
    use Call::{Flush, Ingest, StageTable, Sync, Write};
    let steps = [StageTable, Write, Sync, Write, Flush, Ingest, Write, Sync];
    for last in 1..steps.len() {
        let (mut trial, behind) = Trial::with_one_behind(small()).await;
        let (gate, calls) = ends_at(last);
        trial.gates.insert(behind, gate);
        trial.restart(behind).await;
        let node = trial.cluster.node(behind).clone();
        let reason = timeout(DEADLINE, node.failed()).await.expect("it fails");
        assert!(reason.contains("injected"), "{reason}");
        assert_eq!(calls.lock().expect("nobody panics with it")[..], steps[..=last]);
        trial.cluster.nodes[behind] = None;
        assert!(timeout(DEADLINE, node.stop()).await.expect("it ends").is_err());
        drop(node);
        trial.gates.clear();
        trial.restart(behind).await;
        trial.end(0..60).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_breaks_off_on_either_side_is_made_again() {
    for failing in [Call::StageTable, Call::ReadStaged] {
        let (mut trial, behind) = Trial::with_one_behind(small()).await;
        let failed = Arc::new(AtomicUsize::new(0));
        // The third such call, of whichever node.
        let count = Arc::clone(&failed);
        let gate: Gate = Arc::new(move |call| call == failing && count.fetch_add(1, Ordering::Relaxed) == 2);
        for at in 0..3 {
            trial.gates.insert(at, Arc::clone(&gate));
            if at != behind {
                trial.cluster.stop_node(at).await;
                trial.restart(at).await;
            }
        }
        trial.restart(behind).await;
        trial.cluster.ready().await;
        trial.end(0..60).await;
        assert!(failed.load(Ordering::Relaxed) > 3, "{failing:?} failed once, and was tried again");
    }
}
