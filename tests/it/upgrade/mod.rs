//! An older binary beside the new one, in one cluster: nodes are upgraded one after the other under load, and one goes back.
//!
//! Needs the binary of an older commit, which `make upgrade-test` builds and names in FLOTILLA_OLD_BINARY; `make test` does
//! not. What it can test without one is in `newer`: whatever is too new is refused in words.

mod newer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flotilla_router::Client;

use crate::living::{People, replicas_agree};
use crate::support::cli::at;
use crate::support::cluster::{BINARY, Cluster};
use crate::support::recorder::{CLIENT_TIMEOUT, Recorder};
use crate::support::rng::seed;
use crate::support::{eventually_async, runtime};

const NODES: u64 = 4;
const CLIENTS: u64 = 4;
/// What each state of the cluster must take at least.
const OPERATIONS_PER_STATE: usize = 600;
const REQUESTS_PER_STATE: u64 = 300;
/// Of the clients none of whose requests may fail: as long as an operator's patience.
const PATIENT: Duration = Duration::from_secs(30);
const SHORT_TTL: Duration = Duration::from_secs(1);
const LONG_TTL: Duration = Duration::from_secs(3_600);

/// Clients none of whose requests may fail, whatever version answers.
struct Steady {
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Steady {
    fn start(client: Client) -> Self {
        let (stop, requests) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (told, count) = (Arc::clone(&stop), Arc::clone(&requests));
        let task = tokio::spawn(async move {
            while !told.load(Ordering::Relaxed) {
                let number = count.fetch_add(3, Ordering::Relaxed);
                let key = format!("{}/steady", char::from(b"05ANZakz"[(number / 3 % 8) as usize]));
                client.put(key.clone(), number.to_string()).await.expect("no write fails");
                let record = client.get(key.clone()).await.expect("no read fails").expect("it was written");
                assert_eq!(record.value, number.to_string());
                assert!(client.delete(key).await.expect("no delete fails").existed);
            }
        });
        Self { stop, requests, task }
    }

    fn count(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("no request failed");
        self.requests.load(Ordering::Relaxed)
    }
}

/// A cluster on its way from one version to another.
struct Journey {
    cluster: Cluster,
    client: Client,
    recorder: Recorder,
    people: People,
    steady: Steady,
    /// Keys that are to live on, one from each state.
    kept: Vec<String>,
    begun: Instant,
}

impl Journey {
    /// Everything that a cluster does is done in this state: splits, a merge, a move, keys that end.
    async fn live(&mut self, state: &str) {
        let number = self.kept.len();
        let (short, long) = (format!("ttl/short-{number}"), format!("ttl/long-{number}"));
        self.client.put_with_ttl(long.clone(), state.to_owned(), LONG_TTL).await.expect("it is written");
        self.kept.push(long);
        self.client.put_with_ttl(short.clone(), state.to_owned(), SHORT_TTL).await.expect("it is written");
        let (operations, requests) = (self.recorder.len(), self.steady.count());
        let kinds = ["split", "merge", "move"];
        let before = kinds.map(|kind| self.people.count(kind));
        eventually_async(
            &format!("{state}: splits, merges, moves and clients to go on: {:?}", self.people),
            || async {
                assert!(!self.steady.task.is_finished(), "{state}: a request failed that was not to");
                self.recorder.len() >= operations + OPERATIONS_PER_STATE
                    && self.steady.count() >= requests + REQUESTS_PER_STATE
                    && kinds.iter().zip(before).all(|(kind, before)| self.people.count(kind) > before)
            },
        )
        .await;
        eventually_async(&format!("{state}: a key to end"), || async {
            self.client.get(short.clone()).await.is_ok_and(|record| record.is_none())
        })
        .await;
        for (number, key) in self.kept.iter().enumerate() {
            let record = self.client.get(key.clone()).await.expect("it reads");
            assert!(record.is_some(), "{state}: the key of state {number} has ended before its time");
        }
        println!("{state}: after {:?}", self.begun.elapsed());
    }

    /// Stops a node in order, and starts it with another binary on the same directory.
    fn exchange(&mut self, node: u64, binary: Option<&Path>) {
        assert_eq!(self.cluster.terminate(node), Some(0), "{}", self.cluster.log(node));
        self.cluster.set_binary(node, binary);
        self.cluster.start(node);
        self.cluster.wait_node(node);
        runs(&self.cluster, node, binary.unwrap_or(Path::new(BINARY)));
        // As an operator does it: the next node when this one has caught up.
        let address = self.cluster.node(node).client.clone();
        at(&address, &["range", "check", "--all", "--timeout", "60s"]).exits(0);
    }
}

/// The versions may call themselves alike: the system tells which binary a node runs.
fn runs(cluster: &Cluster, node: u64, binary: &Path) {
    let pid = cluster.pid(node).expect("it runs");
    let runs = std::fs::read_link(format!("/proc/{pid}/exe")).expect("the child is ours");
    assert_eq!(runs, binary.canonicalize().expect("it is there"), "node {node}");
}

fn old_binary() -> PathBuf {
    let path = std::env::var_os("FLOTILLA_OLD_BINARY").map(PathBuf::from);
    let path = path.expect("FLOTILLA_OLD_BINARY names an older binary: run `make upgrade-test`");
    assert!(path.is_file(), "{} is no binary", path.display());
    let differs = std::fs::read(&path).expect("it reads") != std::fs::read(BINARY).expect("it reads");
    assert!(differs, "{} is the binary under test", path.display());
    path
}

#[test]
#[ignore = "needs an older binary: make upgrade-test"]
fn nodes_are_upgraded_one_by_one_under_load_and_one_goes_back() {
    let (old, seed) = (old_binary(), seed());
    let mut cluster = Cluster::new(NODES);
    cluster.set_args(&["--initial-ranges", "4"]);
    (1..=NODES).for_each(|node| cluster.set_binary(node, Some(&old)));
    cluster.start_all();
    (1..=NODES).for_each(|node| runs(&cluster, node, &old));
    runtime().block_on(async {
        let (recorder, people) = (Recorder::new(), People::default());
        let client = cluster.client(PATIENT).await;
        let impatient = cluster.client(CLIENT_TIMEOUT).await;
        let mut tasks: Vec<_> =
            (0..CLIENTS).map(|id| tokio::spawn(recorder.clone().run(id, impatient.clone(), seed))).collect();
        tasks.push(tokio::spawn(people.clone().run(cluster.client(CLIENT_TIMEOUT).await, seed)));
        let (steady, begun) = (Steady::start(cluster.client(PATIENT).await), Instant::now());
        let mut journey = Journey { cluster, client, recorder, people, steady, kept: Vec::new(), begun };
        journey.live("all nodes are old").await;
        for node in 1..=NODES {
            journey.exchange(node, None);
            journey.live(&format!("{node} of {NODES} nodes are new")).await;
        }
        // The formats are the same: a node may go back, and come again.
        journey.exchange(2, Some(&old));
        journey.live("one node is old again").await;
        journey.exchange(2, None);
        journey.live("all nodes are new").await;

        journey.recorder.stop();
        journey.people.stop();
        for task in tasks {
            task.await.expect("clients do not panic");
        }
        let requests = journey.steady.end().await;
        journey.cluster.wait_replicated();
        journey.recorder.read_all(&journey.client).await;
        println!("{}; {requests} more requests, none failed; {:?}", journey.recorder.check(), journey.people);
        replicas_agree(&journey.cluster, &journey.client).await;
    });
}
