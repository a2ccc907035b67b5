//! Nodes that die at named points, under load, one after the other: where a log batch, a table file, the manifest, a split or a note of
//! the store is about to be written, written, or durable. Nothing acknowledged is lost, and histories are linearizable.
//!
//! Which point is which file call stands in the table; the power-cut shim ends the process exactly there (tests/powercut/README.md). Those
//! of a large snapshot are in snapshots/steps.rs, those of a merge in merge_steps.rs.

use bytes::Bytes;
use flotilla_proto::RangeId;
use flotilla_router::{Client, SplitAt};

use crate::living::{descriptor, ranges, replicas_agree};
use crate::powercut::Ending;
use crate::support::recorder::{CLIENT_TIMEOUT, Recorder};
use crate::support::rng::{Rng, seed};
use crate::support::steps::{claimed, planned_cluster};
use crate::support::{amount, eventually_async, runtime};

const NODES: u64 = 3;
const CLIENTS: u64 = 4;
/// Writers that fill memtables, so that files are flushed, compacted and removed.
const FILLERS: u64 = 2;
const FILLER_BYTES: usize = 100 << 10;
const FILLER_KEYS: u64 = 64;

/// `{node}` is the directory of the node that is to die; `{key}` is where a range is split meanwhile.
const POINTS: &[(&str, &[&str])] = &[
    ("log batch about to be written", &["before write 1 {node}/db/*.log"]),
    ("log batch written", &["after write 1 {node}/db/*.log"]),
    ("log batch about to be synced", &["before sync 1 {node}/db/*.log"]),
    ("log batch durable", &["after sync 1 {node}/db/*.log"]),
    ("split about to be logged", &["before write 1 {node}/db/*.log {key}"]),
    ("split logged", &["after write 1 {node}/db/*.log {key}"]),
    ("split durable in the log", &["after write 1 {node}/db/*.log {key}", "after sync 1 {node}/db/*.log"]),
    ("split about to be applied", &["before write 2 {node}/db/*.log {key}"]),
    ("split applied", &["after write 2 {node}/db/*.log {key}"]),
    ("split durable", &["after write 2 {node}/db/*.log {key}", "after sync 1 {node}/db/*.log"]),
    ("log file begun", &["after create 1 {node}/db/*.log"]),
    ("table file begun", &["after create 1 {node}/db/*.sst"]),
    ("table file written, not synced", &["before sync 1 {node}/db/*.sst"]),
    ("table file durable", &["after sync 1 {node}/db/*.sst"]),
    ("table file about to be named", &["after sync 1 {node}/db/*.sst", "before write 1 {node}/db/MANIFEST-*"]),
    ("table file named", &["after sync 1 {node}/db/*.sst", "after write 1 {node}/db/MANIFEST-*"]),
    ("table file's name durable", &["after sync 1 {node}/db/*.sst", "after sync 1 {node}/db/MANIFEST-*"]),
    ("log file about to go", &["before unlink 1 {node}/db/*.log"]),
    ("log file gone", &["after unlink 1 {node}/db/*.log"]),
    ("table file that was compacted about to go", &["before unlink 1 {node}/db/*.sst"]),
    ("table file that was compacted gone", &["after unlink 1 {node}/db/*.sst"]),
    ("watermark begun", &["after create 1 {node}/WATERMARK*"]),
    ("watermark written, not synced", &["before sync 1 {node}/WATERMARK*"]),
    ("watermark durable", &["after sync 1 {node}/WATERMARK*"]),
];

/// Writes large values over a few keys until its task is ended.
async fn fill(client: Client, id: u64) {
    for number in 0_u64.. {
        let key = format!("filler/{id}/{}", number % FILLER_KEYS);
        // Some are lost with the node that leads their range: their clients count.
        client.put(key, Bytes::from(vec![number as u8; FILLER_BYTES])).await.ok();
    }
}

/// Splits the range that holds a key, at this key, whoever dies meanwhile.
async fn split(client: Client, key: String) {
    eventually_async("a range to be split", || async {
        let Ok(all) = ranges(&client).await else { return false };
        let holds = |range: &&flotilla_proto::v1::RangeStatus| {
            let range = descriptor(range);
            range.start.as_ref() <= key.as_bytes() && (range.end.is_empty() || range.end.as_ref() > key.as_bytes())
        };
        let Some(range) = all.iter().find(holds).map(descriptor) else { return false };
        range.start == key.as_bytes()
            || client.split_range(RangeId(range.range_id), SplitAt::Keys(vec![key.clone().into()])).await.is_ok()
    })
    .await;
}

#[test]
fn nodes_that_die_at_named_points_lose_nothing_acknowledged() {
    let (mut cluster, steps) = planned_cluster(NODES, &["--initial-ranges", "4", "--split-bytes", "0"]);
    let (seed, kills) = (seed(), amount("FLOTILLA_KILLS", POINTS.len() as u64));
    let mut rng = Rng::new(seed);
    runtime().block_on(async {
        let recorder = Recorder::new();
        let client = cluster.client(CLIENT_TIMEOUT).await;
        let tasks: Vec<_> =
            (0..CLIENTS).map(|id| tokio::spawn(recorder.clone().run(id, client.clone(), seed))).collect();
        let fillers: Vec<_> = (0..FILLERS).map(|id| tokio::spawn(fill(client.clone(), id))).collect();
        for (round, (point, calls)) in (0..kills).zip(POINTS.iter().cycle()) {
            let victim = 1 + rng.below(NODES);
            let directory = format!("*/node-{victim}");
            // Among the keys that clients write, and never the same.
            let key = format!("cold/{:04}/split-{round}", rng.below(2_000));
            let calls: Vec<String> =
                calls.iter().map(|call| call.replace("{node}", &directory).replace("{key}", &key)).collect();
            steps.plan(Ending::Kill, &calls).expect("the plan is short");
            let splitting = point.starts_with("split").then(|| tokio::spawn(split(client.clone(), key)));
            let died = claimed(&cluster, &steps, &format!("{point}, on node {victim}")).await;
            assert_eq!((died, cluster.wait_end(victim)), (victim, None), "{point}: it ends by a signal");
            steps.clear().expect("the test's own file");
            let written = recorder.len();
            eventually_async("the others to serve", || async { recorder.len() > written + 50 }).await;
            cluster.start(victim);
            cluster.wait_node(victim);
            if let Some(splitting) = splitting {
                splitting.await.expect("it is split");
            }
        }
        fillers.iter().for_each(tokio::task::JoinHandle::abort);
        recorder.stop();
        for task in tasks {
            task.await.expect("clients do not panic");
        }
        cluster.wait_replicated();
        recorder.read_all(&client).await;
        println!("{kills} kills, at {} named points, {}", POINTS.len(), recorder.check());
        replicas_agree(&cluster, &client).await;
    });
}
