//! Ranges that live: clients work while ranges are split, merged, moved and handed over at random, and nodes are killed.
//! Nothing acknowledged is lost, nothing is invented, every key's history is linearizable, and in the end all replicas
//! of every range hold the same.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flotilla_proto::{Error, NodeId, RangeId, v1};
use flotilla_router::{Client, SplitAt};

use crate::support::cli::at;
use crate::support::cluster::Cluster;
use crate::support::recorder::{CLIENT_TIMEOUT, Recorder};
use crate::support::rng::{Rng, seed};
use crate::support::{eventually_async, runtime};

const CLIENTS: u64 = 6;
const NODES: u64 = 4;
const ROUNDS: u64 = 8;
/// Operations between two kills.
const OPERATIONS_PER_ROUND: usize = 500;
/// Merges and splits that a round waits for.
const CHANGES_PER_ROUND: u64 = 2;
/// More ranges are merged, fewer are split.
const RANGES_AIMED_AT: usize = 12;

/// Orders of an operator who cannot keep still; how many of each were carried out.
#[derive(Clone, Debug, Default)]
pub struct People {
    done: Arc<Mutex<BTreeMap<&'static str, u64>>>,
    /// For a test that fails.
    last_refusal: Arc<Mutex<String>>,
    stop: Arc<AtomicBool>,
}

impl People {
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// How many orders of a kind were carried out: `split`, `merge`, `move`, `handed over`.
    pub fn count(&self, what: &str) -> u64 {
        self.done.lock().expect("nobody panicked").get(what).copied().unwrap_or(0)
    }

    pub async fn run(self, client: Client, seed: u64) {
        let mut rng = Rng::new(seed ^ 0x9E37_79B9_7F4A_7C15);
        while !self.stop.load(Ordering::Relaxed) {
            let Ok(ranges) = ranges(&client).await else { continue };
            let order = match rng.below(8) {
                0..=1 => hand_over(&client, &ranges, &mut rng).await,
                2..=3 => replace(&client, &ranges, &mut rng).await,
                of if of % 2 == 0 || ranges.len() < RANGES_AIMED_AT => split(&client, &ranges, &mut rng).await,
                _ => merge(&client, &ranges, &mut rng).await,
            };
            // Refusals are part of it: a range changes hands, another change is under way, a node is down.
            match order {
                Ok(what) => *self.done.lock().expect("nobody panicked").entry(what).or_default() += 1,
                Err(why) => *self.last_refusal.lock().expect("nobody panicked") = why,
            }
        }
    }
}

/// The ranges of the default keyspace, in key order.
pub async fn ranges(client: &Client) -> Result<Vec<v1::RangeStatus>, String> {
    Ok(client.list_ranges_of("default").await.map_err(words)?.ranges)
}

fn words(error: Error) -> String {
    error.to_string()
}

pub fn descriptor(range: &v1::RangeStatus) -> v1::RangeDescriptor {
    range.descriptor.clone().expect("a range that is listed has a descriptor")
}

fn one<'a>(ranges: &'a [v1::RangeStatus], rng: &mut Rng) -> &'a v1::RangeStatus {
    &ranges[rng.below(ranges.len() as u64) as usize]
}

async fn split(client: &Client, ranges: &[v1::RangeStatus], rng: &mut Rng) -> Result<&'static str, String> {
    let letters = b"0123HIJXYZabchijxyz-/";
    let mut letter = || letters[rng.below(letters.len() as u64) as usize];
    let key = match letter() {
        b'0'..=b'9' => format!("cold/{:04}", rng.below(2_000)).into_bytes(),
        first => vec![first, letter()],
    };
    let within = |range: &&v1::RangeStatus| {
        let range = descriptor(range);
        range.start < key && (range.end.is_empty() || key < range.end)
    };
    let Some(range) = ranges.iter().find(within) else { return Err("a range has this key as its start".into()) };
    client.split_range(RangeId(descriptor(range).range_id), SplitAt::Keys(vec![key.into()])).await.map_err(words)?;
    Ok("split")
}

async fn merge(client: &Client, ranges: &[v1::RangeStatus], rng: &mut Rng) -> Result<&'static str, String> {
    let at = rng.below(ranges.len() as u64 - 1) as usize;
    let (left, right) = (descriptor(&ranges[at]).range_id, descriptor(&ranges[at + 1]).range_id);
    client.merge_ranges(RangeId(left), RangeId(right), Duration::from_secs(10)).await.map_err(words)?;
    Ok("merge")
}

async fn replace(client: &Client, ranges: &[v1::RangeStatus], rng: &mut Rng) -> Result<&'static str, String> {
    let range = descriptor(one(ranges, rng));
    let held: Vec<u64> = range.replicas.iter().map(|replica| replica.node_id).collect();
    let from = held[rng.below(held.len() as u64) as usize];
    let to = (1..=NODES).find(|node| !held.contains(node)).unwrap_or(from);
    client.move_replica(RangeId(range.range_id), NodeId(from), NodeId(to), None).await.map_err(words)?;
    Ok("move")
}

async fn hand_over(client: &Client, ranges: &[v1::RangeStatus], rng: &mut Rng) -> Result<&'static str, String> {
    let range = descriptor(one(ranges, rng));
    let to = range.replicas[rng.below(range.replicas.len() as u64) as usize].node_id;
    client.transfer_leader(RangeId(range.range_id), NodeId(to)).await.map_err(words)?;
    Ok("handed over")
}

/// All replicas of all ranges hold the same, as they say themselves; and the ranges tile the keyspace. Placement may go on
/// moving and merging them meanwhile.
pub async fn replicas_agree(cluster: &Cluster, client: &Client) {
    eventually_async("the ranges to tile the keyspace", || async {
        let Ok(ranges) = ranges(client).await else { return false };
        let mut end = Some(bytes::Bytes::new());
        for range in ranges.iter().map(descriptor) {
            if end.as_ref() != Some(&range.start) {
                return false;
            }
            // An empty end is that of the keyspace: nothing may follow.
            end = (!range.end.is_empty()).then_some(range.end);
        }
        end.is_none()
    })
    .await;
    let checked = at(&cluster.addresses()[0], &["range", "check", "--all", "--output", "json", "--timeout", "30s"]);
    for range in checked.exits(0).json().as_array().expect("a list") {
        assert!(range["replicas"].as_array().is_some_and(|compared| compared.len() >= 3), "{range}");
    }
}

#[test]
fn ranges_split_merge_and_move_under_load_while_nodes_are_killed() {
    let seed = seed();
    let mut rng = Rng::new(seed);
    let mut cluster = Cluster::new(NODES);
    cluster.set_args(&["--initial-ranges", "4"]);
    cluster.start_all();
    runtime().block_on(async {
        let (recorder, people) = (Recorder::new(), People::default());
        let client = cluster.client(CLIENT_TIMEOUT).await;
        let mut tasks: Vec<_> =
            (0..CLIENTS).map(|id| tokio::spawn(recorder.clone().run(id, client.clone(), seed))).collect();
        tasks.push(tokio::spawn(people.clone().run(cluster.client(CLIENT_TIMEOUT).await, seed)));
        for round in 1..=ROUNDS {
            let victim = 1 + rng.below(NODES);
            cluster.kill(victim);
            let target = recorder.len() + OPERATIONS_PER_ROUND;
            eventually_async("three nodes to serve", || async { recorder.len() >= target }).await;
            cluster.start(victim);
            cluster.wait_node(victim);
            let goes_on = || {
                let changes = ["split", "merge"].iter().all(|what| people.count(what) >= round * CHANGES_PER_ROUND);
                changes && recorder.len() >= target + OPERATIONS_PER_ROUND
            };
            eventually_async(&format!("round {round}: splits, merges and clients to go on: {people:?}"), || async {
                goes_on()
            })
            .await;
        }
        recorder.stop();
        people.stop();
        for task in tasks {
            task.await.expect("clients do not panic");
        }
        cluster.wait_replicated();
        recorder.read_all(&client).await;
        println!("{ROUNDS} kills, {}; {:?}", recorder.check(), people.done.lock().expect("nobody panicked"));
        replicas_agree(&cluster, &client).await;
    });
}
