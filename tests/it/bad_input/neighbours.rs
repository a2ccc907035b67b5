//! Whoever knocks at the port between nodes without belonging there: refused in words, and without harm.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use flotilla_proto::error::Action;
use flotilla_router::{Client, ClientConfig};

use crate::support::cli::{at, run_until_refused};
use crate::support::cluster::Cluster;
use crate::support::eventually;
use crate::support::ports::free_port;
use crate::support::rng::{Rng, seed};

/// The status of one node, as `flotilla node list` shows it.
fn problems(cluster: &Cluster, node: u64) -> Vec<String> {
    let list = at(&cluster.node(node).client, &["node", "list", "--output", "json"]).json();
    let nodes = list.as_array().expect("a list");
    let own = nodes.iter().find(|one| one["node_id"] == node).expect("it knows itself");
    let lines = own["problems"].as_array().map(Vec::as_slice).unwrap_or_default();
    lines.iter().filter_map(|line| line.as_str().map(str::to_owned)).collect()
}

/// A node of another cluster that listens where one of ours did.
#[test]
fn a_node_of_another_cluster_is_turned_away_in_words_on_both_sides() {
    let mut cluster = Cluster::three();
    let address = cluster.node(1).client.clone();
    cluster.kill(3);
    let (data, kept) = (cluster.node(3).data.clone(), cluster.directory().join("kept"));
    std::fs::rename(&data, &kept).expect("the test's own");
    let before = cluster.log(3).len();
    cluster.set_args(&["--cluster-name", "other", "--bootstrap", "--join", ""]);
    cluster.start(3);
    eventually("node 1 to tell of the stranger", || {
        problems(&cluster, 1).iter().any(|line| line.contains("belongs to cluster"))
    });
    for node in [1, 2] {
        eventually("the others to log it", || cluster.log(node).contains("belongs to cluster"));
    }
    eventually("the stranger to log it", || cluster.log(3)[before..].contains("belongs to cluster"));
    let status = at(&address, &["status"]).exits(0);
    assert!(
        status.text().contains("belongs to cluster") && status.text().contains("check the addresses"),
        "{status:?}"
    );
    at(&address, &["status", "--check"]).exits(1);
    // It has got nothing, and the two others serve.
    at(&address, &["kv", "put", "k", "v"]).exits(0);
    assert_eq!(at(&address, &["kv", "get", "k"]).exits(0).stdout, b"v");
    at(&cluster.node(3).client, &["kv", "get", "k"]).exits(4);
    cluster.kill(3);
    std::fs::remove_dir_all(&data).expect("the stranger's");
    std::fs::rename(&kept, &data).expect("the test's own");
    cluster.set_args(&[]);
    cluster.start_all();
    let nodes = at(&address, &["node", "list", "--output", "json"]).exits(0).json();
    // On a busy machine one may find itself slow.
    let well = |node: &serde_json::Value| node["state"] == "up" || node["state"] == "slow";
    assert!(nodes.as_array().expect("a list").iter().all(well), "{nodes}");
}

/// Ids of nodes and ranges, and epochs, agree in young clusters. While the others have not chosen another leader, their
/// routes lead to where the stranger listens.
#[test]
fn a_stranger_at_a_dead_leaders_address_takes_none_of_its_writes() {
    let mut cluster = Cluster::three();
    let address = cluster.node(1).client.clone();
    at(&address, &["range", "transfer-leader", "2", "3"]).exits(0);
    at(&address, &["kv", "put", "0before", "1"]).exits(0);
    // Without a quorum nobody follows node 3: node 1 goes on taking it for the leader.
    cluster.kill(3);
    cluster.kill(2);
    let (data, kept) = (cluster.node(3).data.clone(), cluster.directory().join("kept"));
    std::fs::rename(&data, &kept).expect("the test's own");
    cluster.set_args(&["--cluster-name", "test", "--bootstrap", "--join", ""]);
    cluster.start(3);
    cluster.wait_node(3);
    let stranger = cluster.node(3).client.clone();
    let put = at(&address, &["kv", "put", "0lost", "1", "--timeout", "2s"]);
    assert_eq!(put.code, 1, "nothing was written, and that is known: {put:?}");
    for key in ["0before", "0lost"] {
        at(&stranger, &["kv", "get", key]).exits(4);
        let get = at(&address, &["kv", "get", key, "--timeout", "1s"]);
        assert_eq!(get.code, 1, "there is no leader, and no other cluster's word counts: {get:?}");
    }
    // Orders and questions that go to a node by its address, too.
    let shown = at(&address, &["range", "show", "2", "--on", "3"]);
    assert!(shown.code == 1 && shown.stderr.contains("belongs to cluster"), "{shown:?}");
    cluster.set_args(&[]);
    cluster.start(2);
    eventually("a leader among the others", || {
        at(&address, &["kv", "put", "0after", "2", "--timeout", "2s"]).code == 0
    });
    assert_eq!(at(&address, &["kv", "get", "0before"]).exits(0).stdout, b"1");
    at(&address, &["kv", "get", "0lost"]).exits(4);
    // The real one comes back where the stranger was, and is spoken to again.
    cluster.kill(3);
    std::fs::remove_dir_all(&data).expect("the stranger's");
    std::fs::rename(&kept, &data).expect("the test's own");
    cluster.start_all();
    at(&address, &["range", "transfer-leader", "2", "3"]).exits(0);
    at(&address, &["kv", "put", "0lost", "2"]).exits(0);
}

/// Addresses of two clusters: the first that answers counts, and the other one's node is named when nobody else answers.
#[test]
fn a_client_never_mixes_two_clusters() {
    let (mut ours, mut theirs) = (Cluster::new(1), Cluster::new(1));
    ours.start_all();
    theirs.start_all();
    let (first, second) = (ours.node(1).client.clone(), theirs.node(1).client.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("threads can be started");
    runtime.block_on(async {
        let config = ClientConfig { timeout: Duration::from_secs(2), ..ClientConfig::default() };
        let client = Client::connect([first.clone(), second.clone()], config).await.expect("both answer");
        client.put("k", "ours").await.expect("written");
        for _ in 0..4 {
            client.list_ranges().await.expect("from our own node, whoever is asked first");
        }
        ours.kill(1);
        // The first one may have been on its way when the stream broke.
        client.put("k", "lost").await.expect_err("nobody is there");
        let put = client.put("k", "lost").await.expect_err("nobody is there");
        assert_eq!(put.action(), Action::Retry, "surely not written: {put}");
        let listed = client.list_ranges().await.expect_err("nobody of this cluster answers").to_string();
        assert!(listed.contains(&second) && listed.contains("cluster"), "{listed}");
    });
    at(&second, &["kv", "get", "k"]).exits(4);
}

#[test]
fn joins_that_cannot_be_are_refused_and_leave_nothing_behind() {
    let mut cluster = Cluster::new(2);
    cluster.start(1);
    cluster.wait_node(1);
    let (first, own) = (cluster.node(1).client.clone(), cluster.node(2).client.clone());
    for (args, code, words) in [
        (["--cluster-name", "other", "--join", &first], 1, ["cluster", "\"test\""]),
        (["--cluster-name", "test", "--join", &own], 2, [&own[..], "own address"]),
    ] {
        cluster.set_args(&args);
        run_until_refused(&mut cluster.command(2)).fails(code, &words);
        assert!(!cluster.node(2).data.exists(), "nothing was made");
    }
    let nobody = format!("127.0.0.1:{}", free_port());
    cluster.set_args(&["--join", &nobody, "--join-timeout-ms", "300"]);
    run_until_refused(&mut cluster.command(2)).fails(1, &["joining the cluster", &nobody]);
    assert!(!cluster.node(2).data.exists(), "nothing was made");
    // One of the addresses is enough.
    let addresses = format!("{nobody},{first}");
    cluster.set_args(&["--join", &addresses]);
    cluster.start_all();
    at(&own, &["kv", "put", "k", "v"]).exits(0);
    // Once it is made, neither the flag nor its address matters.
    assert_eq!(cluster.terminate(2), Some(0));
    cluster.set_args(&["--join", &nobody]);
    cluster.start_all();
    assert!(cluster.log(2).contains("--join did nothing"), "{}", cluster.log(2));
    assert_eq!(at(&own, &["kv", "get", "k"]).exits(0).stdout, b"v");
}

/// A store keeps its cluster: what --join names is another one, by the same name even.
#[test]
fn a_store_of_another_cluster_does_not_join_and_is_left_alone() {
    let mut cluster = Cluster::new(2);
    cluster.start(1);
    cluster.wait_node(1);
    let mut other = Cluster::new(1);
    other.start_all();
    at(&other.node(1).client, &["kv", "put", "k", "theirs"]).exits(0);
    assert_eq!(other.terminate(1), Some(0));
    let data = other.node(1).data.display().to_string();
    cluster.set_args(&["--data", &data]);
    let first = cluster.node(1).client.clone();
    run_until_refused(&mut cluster.command(2)).fails(1, &[&data, "node 1 of cluster", &first, "another --data"]);
    // Where nobody answers, or its own cluster does, it goes on as what it is.
    cluster.kill(1);
    cluster.start(2);
    cluster.wait_node(2);
    assert_eq!(at(&cluster.node(2).client, &["kv", "get", "k"]).exits(0).stdout, b"theirs");
}

/// An emptied directory has forgotten what it promised: what comes up on it is another node.
#[test]
fn a_node_that_comes_back_with_an_empty_disk_is_another_node() {
    let mut cluster = Cluster::new(3);
    cluster.set_args(&["--node-dead-after-ms", "3000"]);
    cluster.start_all();
    let address = cluster.node(1).client.clone();
    at(&address, &["kv", "put", "k", "v"]).exits(0);
    cluster.kill(3);
    std::fs::remove_dir_all(&cluster.node(3).data).expect("the test's own");
    // With --join, as from a service unit that kept the flag.
    cluster.start(3);
    cluster.wait_node(3);
    let show = |node: &str| at(&address, &["node", "show", node, "--output", "json"]).exits(0).json();
    assert_eq!(show("4")["client_addr"], cluster.node(3).client);
    // The old one counts as dead before long, and its replicas are rebuilt on the new one.
    eventually("every replica to be rebuilt on node 4", || {
        let list = at(&address, &["range", "list", "--output", "json"]).exits(0).json();
        let on = |range: &serde_json::Value| {
            let replicas = range["replicas"].as_array().cloned().unwrap_or_default();
            let nodes: Vec<u64> = replicas.iter().filter_map(|replica| replica["node_id"].as_u64()).collect();
            let voters = replicas.iter().all(|replica| replica["role"] == "voter");
            voters && nodes.len() == 3 && nodes.contains(&4) && !nodes.contains(&3)
        };
        list.as_array().is_some_and(|ranges| ranges.iter().all(on))
    });
    assert_eq!(at(&cluster.node(3).client, &["kv", "get", "k"]).exits(0).stdout, b"v");
}

#[test]
fn bytes_that_are_no_frames_do_no_harm() {
    let mut rng = Rng::new(seed());
    let mut cluster = Cluster::three();
    let node = cluster.node(1);
    let address = node.client.clone();
    at(&address, &["kv", "put", "k", "v"]).exits(0);
    for round in 0..200_u64 {
        let Ok(mut stream) = TcpStream::connect(&node.peer) else { panic!("the node takes connections") };
        stream.set_read_timeout(Some(Duration::from_millis(5))).expect("a socket");
        let length = [0, 1, 8, 64, 5_000][rng.below(5) as usize];
        let mut bytes: Vec<u8> = (0..length).map(|_| rng.next() as u8).collect();
        match round % 4 {
            // A length that promises far too much.
            0 => bytes.splice(0..0, [0xff; 8]).for_each(drop),
            1 => bytes.splice(0..0, [0x7f, 0xff, 0xff, 0xff]).for_each(drop),
            2 => bytes.splice(0..0, [0, 0, 0, 8, 0, 0, 0, 0]).for_each(drop),
            _ => {}
        }
        // It may close at once, answer, or wait for more: all of that is right.
        let _ = stream.write_all(&bytes).and_then(|()| stream.read(&mut [0; 64]));
    }
    // And bytes of no protocol on the other two ports.
    for port in [&node.client, &node.http] {
        for _ in 0..20 {
            let mut stream = TcpStream::connect(port).expect("the node takes connections");
            let bytes: Vec<u8> = (0..500).map(|_| rng.next() as u8).collect();
            stream.write_all(&bytes).ok();
        }
    }
    for id in 1..=3 {
        assert!(cluster.is_running(id), "{}", cluster.log(id));
        assert!(!cluster.log(id).contains("panicked"), "{}", cluster.log(id));
    }
    assert_eq!(at(&address, &["kv", "get", "k"]).exits(0).stdout, b"v");
    at(&address, &["kv", "put", "k", "w"]).exits(0);
    at(&address, &["status", "--check"]).exits(0);
}
