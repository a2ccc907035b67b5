//! Whoever knocks at the port between nodes without belonging there: refused in words, and without harm.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::support::cli::at;
use crate::support::cluster::{Cluster, http_get};
use crate::support::eventually;
use crate::support::rng::{Rng, seed};

/// The status of one node, as `flotilla node list` shows it.
fn problems(cluster: &Cluster, node: u64) -> Vec<String> {
    let list = at(&cluster.node(node).client, &["node", "list", "--output", "json"]).json();
    let nodes = list.as_array().expect("a list");
    let own = nodes.iter().find(|one| one["node_id"] == node).expect("it knows itself");
    let lines = own["problems"].as_array().map(Vec::as_slice).unwrap_or_default();
    lines.iter().filter_map(|line| line.as_str().map(str::to_owned)).collect()
}

#[test]
fn a_node_of_another_cluster_is_turned_away_in_words_on_both_sides() {
    let mut cluster = Cluster::new(3);
    cluster.start(1);
    cluster.start(2);
    cluster.wait_ready();
    // Node 3's place is taken by a node that was told another cluster's name.
    cluster.set_args(&["--cluster-name", "other"]);
    cluster.start(3);
    let address = cluster.node(1).client.clone();
    eventually("node 1 to tell of the stranger", || {
        problems(&cluster, 1).iter().any(|line| line.contains("belongs to cluster"))
    });
    for node in [1, 2, 3] {
        eventually("both sides to log it", || cluster.log(node).contains("belongs to cluster"));
    }
    let status = at(&address, &["status"]).exits(0);
    assert!(
        status.text().contains("belongs to cluster") && status.text().contains("check the addresses"),
        "{status:?}"
    );
    at(&address, &["status", "--check"]).exits(1);
    // It has got nothing, and the two others serve.
    at(&address, &["kv", "put", "k", "v"]).exits(0);
    assert_eq!(at(&address, &["kv", "get", "k"]).exits(0).stdout, b"v");
    assert_eq!(http_get(&cluster.node(3).http, "/readyz").expect("it answers").0, 503, "it has no quorum");
    cluster.kill(3);
    std::fs::remove_dir_all(&cluster.node(3).data).expect("the stranger's");
    cluster.set_args(&[]);
    cluster.start_all();
    let nodes = at(&address, &["node", "list", "--output", "json"]).exits(0).json();
    assert!(nodes.as_array().expect("a list").iter().all(|node| node["state"] == "up"), "{nodes}");
}

/// An emptied directory under an old id has forgotten what it promised.
#[test]
fn a_node_that_comes_back_with_an_empty_disk_is_refused_and_stops() {
    let mut cluster = Cluster::three();
    let address = cluster.node(1).client.clone();
    at(&address, &["kv", "put", "k", "v"]).exits(0);
    cluster.kill(3);
    let (data, kept) = (cluster.node(3).data.clone(), cluster.directory().join("kept"));
    std::fs::rename(&data, &kept).expect("the test's own");
    // With --bootstrap, as from a service unit that kept the flag.
    cluster.start(3);
    assert_eq!(cluster.wait_end(3), Some(1));
    let log = cluster.log(3);
    assert!(log.contains("node 3 is known with another store") && log.contains("error: "), "{log}");
    let status = at(&address, &["status"]).exits(0);
    assert!(status.text().contains("node 3 is down"), "{status:?}");
    assert!(status.text().contains("node 3 is known with another store"), "{status:?}");
    assert_eq!(at(&address, &["kv", "get", "k"]).exits(0).stdout, b"v");
    // The old disk was only unplugged.
    std::fs::remove_dir_all(&data).expect("the empty one");
    std::fs::rename(&kept, &data).expect("the test's own");
    cluster.start_all();
    let nodes = at(&address, &["node", "list", "--output", "json"]).exits(0).json();
    assert!(nodes.as_array().expect("a list").iter().all(|node| node["state"] == "up"), "{nodes}");
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
