//! Ranges that are asked for too much: they are split where their load divides, and others lead the parts; where one key
//! is the load, a range stays whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flotilla_router::Client;
use tokio::task::JoinHandle;

use crate::support::cli::at;
use crate::support::cluster::Cluster;
use crate::support::{eventually_async, runtime};

/// The least that may be set: any machine gets more done.
const QUERIES: &str = "100";
const CLIENTS: u64 = 8;
const KEYS: u64 = 1_000;
/// Two splits, one after the other.
const RANGES: usize = 3;

/// Clients that read and write keys of one keyspace.
struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(client: &Client, keyspace: &'static str, keys: u64) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let run = |id| tokio::spawn(work(client.keyspace(keyspace), id, keys, Arc::clone(&stop)));
        Self { tasks: (0..CLIENTS).map(run).collect(), stop }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("no request fails because a range is split or led by another node");
        }
    }
}

async fn work(client: Client, id: u64, keys: u64, stop: Arc<AtomicBool>) {
    let mut serial = id;
    while !stop.load(Ordering::Relaxed) {
        serial += CLIENTS;
        let key = format!("key/{:04}", serial * 7 % keys);
        if serial.is_multiple_of(4) {
            client.put(key, "value").await.expect("the cluster serves");
        } else {
            client.get(key).await.expect("the cluster serves");
        }
    }
}

#[test]
fn a_hot_range_is_split_and_its_parts_are_led_by_several_nodes() {
    let mut cluster = Cluster::new(3);
    cluster.set_args(&["--initial-ranges", "1"]);
    cluster.start_all();
    let addr = cluster.node(1).client.clone();
    at(&addr, &["keyspace", "set", "default", "--split-queries", QUERIES]).exits(0);
    at(&addr, &["keyspace", "create", "one", "--split-queries", QUERIES]).exits(0);
    runtime().block_on(async {
        let client = cluster.client(Duration::from_secs(30)).await;
        let ranges = |keyspace| {
            let listed = client.list_ranges_of(keyspace);
            async { listed.await.map(|answer| answer.ranges).unwrap_or_default() }
        };
        let load = Load::start(&client, "default", KEYS);
        eventually_async("the range to be split, twice", || async { ranges("default").await.len() >= RANGES }).await;
        let leaders = async || {
            let mut of: Vec<u64> = ranges("default").await.iter().map(|range| range.leader_node_id).collect();
            of.sort_unstable();
            of.dedup();
            of
        };
        eventually_async("several nodes to lead its parts", || async { leaders().await.len() >= 2 }).await;
        load.end().await;
        let history = at(&addr, &["placement", "history"]).exits(0);
        assert!(history.text().contains("split"), "{}", history.text());

        let load = Load::start(&client, "one", 1);
        let says_why = || (1..=3).any(|id| cluster.log(id).contains("% of the requests are for one key"));
        eventually_async("a node to say that nothing divides one key", || async { says_why() }).await;
        load.end().await;
        assert_eq!(ranges("one").await.len(), 1);
    });
}
