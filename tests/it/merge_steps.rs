//! A merge whose nodes die at its steps, between real processes under load; and what is left of one when the majority is lost.
//!
//! Which step is which file call stands in the table below; the power-cut shim ends the process exactly there
//! (tests/powercut/README.md). The range to be taken in ends at a key that nothing else names: a write to a node's log file with
//! that key is first its standstill, then the merge in the target's log, then the target that has taken it in.

use std::time::Duration;

use flotilla_proto::{NodeId, RangeId, v1};
use flotilla_router::{Client, SplitAt};

use crate::living::{descriptor, ranges, replicas_agree};
use crate::powercut::{Ending, Steps};
use crate::support::cli::at;
use crate::support::cluster::Cluster;
use crate::support::recorder::{CLIENT_TIMEOUT, Recorder};
use crate::support::rng::seed;
use crate::support::steps::{claimed, planned_cluster};
use crate::support::{eventually, eventually_async, runtime};

const NODES: u64 = 3;
const CLIENTS: u64 = 4;

/// `{db}` are the log files of the node that is to die, `{end}` is the end of the range that is taken in.
const STEPS: &[(&str, &[&str])] = &[
    ("standstill written", &["after write 1 {db} {end}"]),
    ("standstill durable", &["after write 1 {db} {end}", "after sync 1 {db}"]),
    ("merge about to be logged", &["before write 2 {db} {end}"]),
    ("merge logged", &["after write 2 {db} {end}"]),
    ("merge durable in the log", &["after write 2 {db} {end}", "after sync 1 {db}"]),
    ("merge about to be applied", &["before write 3 {db} {end}"]),
    ("merge applied", &["after write 3 {db} {end}"]),
    ("what is left of the source about to go", &["after write 3 {db} {end}", "before write 1 {db}"]),
    ("all of it durable", &["after write 3 {db} {end}", "after sync 2 {db}"]),
];

/// Nodes that die where a plan says, with one range.
fn cluster() -> (Cluster, Steps) {
    planned_cluster(NODES, &["--initial-ranges", "1", "--split-bytes", "0"])
}

/// A range and the one before it.
struct Pair {
    left: v1::RangeDescriptor,
    right: v1::RangeDescriptor,
    leader: u64,
}

/// The range that begins at a key, if there is one, and is led.
async fn pair(client: &Client, start: &str) -> Option<Pair> {
    let all = ranges(client).await.ok()?;
    let at = all.iter().position(|range| descriptor(range).start == start.as_bytes())?;
    let leader = all[at].leader_node_id;
    (leader != 0).then(|| Pair { left: descriptor(&all[at - 1]), right: descriptor(&all[at]), leader })
}

/// Cuts a range out of the keyspace.
async fn cut(client: &Client, start: &str, end: &str) -> Pair {
    let mut made = None;
    eventually_async("a range to be split", || async {
        let Ok(all) = ranges(client).await else { return false };
        let holds = |range: &&v1::RangeStatus| {
            let range = descriptor(range);
            range.start < start.as_bytes() && (range.end.is_empty() || range.end > end.as_bytes())
        };
        // It is split already, or the list was made in the middle of another split.
        let Some(range) = all.iter().find(holds) else { return pair(client, start).await.is_some() };
        let keys = SplitAt::Keys(vec![start.to_owned().into(), end.to_owned().into()]);
        client.split_range(RangeId(descriptor(range).range_id), keys).await.is_ok()
    })
    .await;
    while made.is_none() {
        made = pair(client, start).await;
        tokio::task::yield_now().await;
    }
    let made = made.expect("just seen");
    // A follower that has not split yet lists no range that begins there, as if it had been taken in.
    let cut = RangeId(made.right.range_id);
    for node in (1..=NODES).map(NodeId) {
        eventually_async("the range to begin on every node", || async {
            client.get_range(cut, Some(node)).await.is_ok()
        })
        .await;
    }
    made
}

/// Orders a merge until nothing begins at this key any more.
async fn merge_away(client: Client, start: String) {
    eventually_async("the range to be taken in", || async {
        match pair(&client, &start).await {
            Some(Pair { left, right, .. }) => {
                let (left, right) = (RangeId(left.range_id), RangeId(right.range_id));
                client.merge_ranges(left, right, Duration::from_secs(5)).await.is_ok()
            }
            None => ranges(&client).await.is_ok_and(|all| {
                all.iter().all(|range| descriptor(range).start != start.as_bytes() && range.leader_node_id != 0)
            }),
        }
    })
    .await;
}

fn calls(calls: &[&str], node: u64, end: &str) -> Vec<String> {
    let db = format!("*/node-{node}/db/*.log");
    calls.iter().map(|call| call.replace("{db}", &db).replace("{end}", end)).collect()
}

#[test]
fn a_merge_whose_nodes_die_at_any_step_is_made_once_or_not_at_all() {
    let (mut cluster, steps) = cluster();
    runtime().block_on(async {
        let recorder = Recorder::new();
        let client = cluster.client(CLIENT_TIMEOUT).await;
        let tasks: Vec<_> =
            (0..CLIENTS).map(|id| tokio::spawn(recorder.clone().run(id, client.clone(), seed()))).collect();
        for (number, (step, planned)) in STEPS.iter().enumerate() {
            for leads in [true, false] {
                // In the middle of the keys that clients write.
                let (start, end) = (format!("cold/1000/{number}-{leads}"), format!("cold/1500/{number}-{leads}"));
                let cut = cut(&client, &start, &end).await;
                let victim = (1..=NODES).find(|id| (*id == cut.leader) == leads).expect("there are three");
                steps.plan(Ending::Kill, &calls(planned, victim, &end)).expect("the plan is short");
                let merging = tokio::spawn(merge_away(client.clone(), start.clone()));
                let died = claimed(&cluster, &steps, &format!("{step}, on node {victim}")).await;
                assert_eq!((died, cluster.wait_end(victim)), (victim, None), "{step}: it ends by a signal");
                steps.clear().expect("the test's own file");
                let written = recorder.len();
                eventually_async("the others to serve", || async { recorder.len() > written + 50 }).await;
                cluster.start(victim);
                cluster.wait_node(victim);
                merging.await.expect("it was merged");
                merge_away(client.clone(), end).await;
                println!("{step}: node {victim} (it led: {leads})");
            }
        }
        recorder.stop();
        for task in tasks {
            task.await.expect("clients do not panic");
        }
        cluster.wait_replicated();
        recorder.read_all(&client).await;
        println!("{}", recorder.check());
        replicas_agree(&cluster, &client).await;
    });
}

/// Two of three nodes are lost for good while a range stands still: both ranges go on with what the third one has.
#[test]
fn a_recovery_beside_a_merge_gives_both_ranges_back() {
    let (mut cluster, steps) = cluster();
    let (start, end) = ("m", "t-where-it-ends");
    let address = cluster.node(1).client.clone();
    for key in ["a", "n", "x"] {
        at(&address, &["kv", "put", key, &format!("value of {key}")]).exits(0);
    }
    let runtime = runtime();
    let (survivor, merging) = runtime.block_on(async {
        let client = cluster.client(CLIENT_TIMEOUT).await;
        let cut = cut(&client, start, end).await;
        let survivor = (1..=NODES).find(|id| *id != cut.leader).expect("there are three");
        steps.plan(Ending::Kill, &calls(&["after write 1 {db} {end}"], survivor, end)).expect("the plan is short");
        let merging = tokio::spawn(merge_away(client, start.to_owned()));
        assert_eq!(claimed(&cluster, &steps, "the standstill").await, survivor);
        (survivor, merging)
    });
    // It died with all that the others had sent it since: what it has is the standstill, and not the merge behind it.
    assert_eq!(cluster.wait_end(survivor), None, "it ends by a signal");
    let dead: Vec<u64> = (1..=NODES).filter(|id| *id != survivor).collect();
    dead.iter().for_each(|id| cluster.kill(*id));
    steps.clear().expect("the test's own file");
    cluster.start(survivor);
    merging.abort();

    let address = cluster.node(survivor).client.clone();
    let file = cluster.directory().join("plan.json");
    let path = file.to_str().expect("a plain path").to_owned();
    let names = format!("{},{}", dead[0], dead[1]);
    eventually("a plan", || at(&address, &["recover", "plan", "--dead", &names, "--out", &path]).code == 0);
    let planned = std::fs::read_to_string(&file).expect("it was written");
    assert!(planned.contains("stands still for a merge into range"), "{planned}");
    let applied = at(&address, &["recover", "apply", &path, "--yes", "--output", "json"]).exits(0).json();
    assert_eq!(applied["refused"].as_array().map(Vec::len), Some(0), "{applied}");
    for key in ["a", "n", "x"] {
        eventually("the key to be served", || {
            let got = at(&address, &["kv", "get", key, "--timeout", "2s"]);
            got.code == 0 && got.stdout == format!("value of {key}").as_bytes()
        });
        at(&address, &["kv", "put", key, "again"]).exits(0);
    }
    let history = at(&address, &["placement", "history"]).exits(0);
    assert!(history.text().contains("recovered"), "{history:?}");
}
