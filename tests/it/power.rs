//! Power cuts: each node's process ends through the shim of tests/powercut, which takes back every write under its
//! data directory that no fsync covered. What was acknowledged must be there afterwards.
//!
//! That this test can fail was seen with the sync taken out of the log writer: docs/reliability.md.

use std::time::Duration;

use bytes::Bytes;

use crate::powercut::PowerCut;
use crate::support::cluster::Cluster;
use crate::support::recorder::{CLIENT_TIMEOUT, Recorder};
use crate::support::rng::seed;
use crate::support::{amount, eventually_async, runtime};

const CLIENTS: u64 = 8;
const CUTS: u64 = 4;
const OPERATIONS_PER_ROUND: usize = 400;

/// All three nodes lose power at once, several times, under load.
fn cut_under_load(torn: bool) {
    let (seed, cuts) = (seed(), amount("FLOTILLA_CUTS", CUTS));
    let mut cluster = Cluster::new(3);
    for id in 1..=3 {
        let data = cluster.node(id).data.clone();
        std::fs::create_dir_all(&data).expect("the test's own directory");
        let shim = if torn { PowerCut::torn(&data, seed ^ id) } else { PowerCut::strict(&data) };
        cluster.set_environment(id, shim.vars());
    }
    cluster.start_all();
    let runtime = runtime();
    runtime.block_on(async {
        let recorder = Recorder::new();
        let client = cluster.client(CLIENT_TIMEOUT).await;
        let tasks: Vec<_> =
            (0..CLIENTS).map(|id| tokio::spawn(recorder.clone().run(id, client.clone(), seed))).collect();
        for _ in 0..cuts {
            let target = recorder.len() + OPERATIONS_PER_ROUND;
            eventually_async("the clients to go on", || async { recorder.len() >= target }).await;
            for id in 1..=3 {
                PowerCut::trigger(cluster.pid(id).expect("the node runs")).expect("the child is ours");
            }
            for id in 1..=3 {
                assert_eq!(cluster.wait_end(id), None, "the shim ends the process by a signal");
            }
            cluster.start_all();
        }
        recorder.stop();
        for task in tasks {
            task.await.expect("clients do not panic");
        }
        recorder.read_all(&client).await;
        println!("{cuts} power cuts of all nodes, {}", recorder.check());
    });
}

#[test]
fn a_power_cut_loses_nothing_acknowledged() {
    cut_under_load(false);
}

#[test]
fn a_power_cut_with_torn_writes_loses_nothing_acknowledged() {
    cut_under_load(true);
}

/// A failed fsync ends the node for good, with the reason; the others go on.
#[test]
fn a_failed_fsync_stops_the_node() {
    let mut cluster = Cluster::new(3);
    let data = cluster.node(2).data.clone();
    std::fs::create_dir_all(&data).expect("the test's own directory");
    let control = cluster.directory().join("fsync-control");
    let shim = PowerCut::faults_only(Some(&data)).control(&control);
    cluster.set_environment(2, shim.vars());
    cluster.start_all();
    let control = crate::powercut::Control::open(&control).expect("the shim made it");
    let runtime = runtime();
    runtime.block_on(async {
        let client = cluster.client(Duration::from_secs(10)).await;
        client.put("before", "1").await.expect("all is well");
        control.set_fail(true);
        let mut number = 0;
        while cluster.is_running(2) {
            number += 1;
            let key = Bytes::from(format!("{}{number}", char::from(b'a' + (number % 26) as u8)));
            // Some of these may be lost with the node that leads their range.
            client.put(key, "x").await.ok();
        }
        assert_eq!(cluster.wait_end(2), Some(1));
        assert!(cluster.log(2).contains("the store stopped"), "{}", cluster.log(2));
        client.put("after", "2").await.expect("two nodes are a majority");
        assert!(client.get("before").await.expect("two nodes are a majority").is_some());
    });
}
