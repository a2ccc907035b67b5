//! While the system range is down nothing is decided, and all else goes on: even for a node that restarts, and has
//! nobody to ask for routes but its peers.

use serde_json::Value;

use crate::support::cli::at;
use crate::support::cluster::{Cluster, http_get};
use crate::support::eventually;

fn ranges(address: &str) -> Vec<Value> {
    let list = at(address, &["range", "list", "--output", "json"]);
    if list.code == 0 { list.json().as_array().cloned().unwrap_or_default() } else { Vec::new() }
}

fn keyspace_id(address: &str, name: &str) -> Value {
    at(address, &["keyspace", "show", name, "--output", "json"]).exits(0).json()["keyspace_id"].clone()
}

/// The only range of a keyspace.
fn range_of(address: &str, keyspace: &str) -> String {
    let list = at(address, &["range", "list", "--keyspace", keyspace, "--output", "json"]).exits(0).json();
    list[0]["range_id"].to_string()
}

/// The nodes of a range's replicas; none while they change.
fn nodes(range: &Value) -> Vec<u64> {
    let replicas = range["replicas"].as_array().cloned().unwrap_or_default();
    let voters = replicas.iter().filter(|replica| replica["role"] == "voter");
    let voters: Vec<u64> = voters.filter_map(|replica| replica["node_id"].as_u64()).collect();
    if voters.len() == replicas.len() { voters } else { Vec::new() }
}

/// The system range on one node alone; keyspace `three` on all three; keyspace `one` on one that is not the first.
struct Layout {
    cluster: Cluster,
    /// Has the system range.
    system: u64,
    /// Has the only replica of `one`.
    alone: u64,
    /// Has no replica of `one`.
    other: u64,
}

fn layout() -> Layout {
    let mut cluster = Cluster::new(3);
    cluster.set_args(&["--initial-replicas", "1", "--initial-ranges", "1"]);
    for id in 1..=3 {
        cluster.start(id);
        cluster.wait_initialised(id);
        cluster.wait_node(id);
    }
    let address = cluster.node(1).client.clone();
    at(&address, &["keyspace", "create", "three", "--replicas", "3"]).exits(0);
    at(&address, &["keyspace", "create", "one", "--replicas", "1"]).exits(0);
    let (three, one) = (keyspace_id(&address, "three"), keyspace_id(&address, "one"));
    let (mut system, mut on) = (0, Vec::new());
    // Two replicas on each node: the system range is not where `one` is, and nothing is left to be balanced.
    eventually("every node to have two replicas", || {
        let all = ranges(&address);
        let of = |id: &Value| all.iter().find(|range| range["keyspace_id"] == *id).map(nodes).unwrap_or_default();
        system = all
            .iter()
            .find(|range| range["range_id"] == 1)
            .and_then(|range| nodes(range).first().copied())
            .unwrap_or(0);
        on = of(&one);
        let held = |node: &u64| all.iter().filter(|range| nodes(range).contains(node)).count();
        of(&three).len() == 3 && on.len() == 1 && (1..=3).all(|node| held(&node) == 2)
    });
    let mut others = (1..=3).filter(|node| *node != system);
    let other = others.find(|node| *node != on[0]).expect("a third one");
    Layout { cluster, system, alone: on[0], other }
}

#[test]
fn a_node_that_restarts_while_the_system_range_is_down_gets_its_routes_from_peers() {
    let Layout { mut cluster, system, alone, other } = layout();
    let (there, here) = (cluster.node(alone).client.clone(), cluster.node(other).client.clone());
    for keyspace in ["three", "one"] {
        at(&there, &["kv", "put", "k", "before", "--keyspace", keyspace]).exits(0);
    }
    cluster.kill(system);
    let refused = at(&there, &["keyspace", "create", "late", "--timeout", "1s"]);
    assert!(refused.code == 1 && refused.stderr.contains("hint:"), "{refused:?}");
    let status = at(&there, &["status"]);
    for words in ["the placement service does not answer", "reads, writes and splits of all other ranges go on"] {
        assert!(status.text().contains(words), "{status:?}");
    }
    let explained = at(&there, &["range", "explain", &range_of(&there, "one"), "--timeout", "2s"]).exits(0);
    assert!(explained.text().contains("missing: the placement service does not answer"), "{explained:?}");
    assert_eq!(cluster.terminate(other), Some(0), "{}", cluster.log(other));
    cluster.start(other);
    cluster.wait_node(other);

    // One has a replica here and needs an election; of the other nothing is here, not even its existence.
    for keyspace in ["one", "three"] {
        let of = |words: &[&str]| at(&here, &[words, &["--keyspace", keyspace, "--timeout", "20s"]].concat());
        assert_eq!(of(&["kv", "get", "k"]).exits(0).stdout, b"before", "{keyspace}");
        of(&["kv", "put", "k", "after"]).exits(0);
        assert_eq!(of(&["kv", "get", "k"]).exits(0).stdout, b"after", "{keyspace}");
    }
    assert!(ranges(&here).len() >= 4, "all are told of: {:?}", ranges(&here));
    // Whether there is such a keyspace only placement knows: neither yes nor a wrong no.
    let unknown = at(&here, &["kv", "get", "k", "--keyspace", "none", "--timeout", "1500ms"]);
    unknown.fails(1, &["none", "hint:"]);

    cluster.start(system);
    cluster.wait_node(system);
    at(&here, &["keyspace", "create", "late", "--timeout", "30s"]).exits(0);
    at(&here, &["kv", "get", "k", "--keyspace", "none", "--timeout", "20s"])
        .fails(1, &["there is no keyspace \"none\""]);
    assert_eq!(at(&there, &["kv", "get", "k", "--keyspace", "one"]).exits(0).stdout, b"after");
}

/// Readiness is a node's, not its ranges': else one range without a majority would keep all requests away from it.
#[test]
fn a_node_whose_ranges_lost_their_majority_is_ready_and_says_what_is_missing() {
    let mut cluster = Cluster::three();
    cluster.kill(2);
    cluster.kill(3);
    assert_eq!(cluster.terminate(1), Some(0), "{}", cluster.log(1));
    cluster.start(1);
    cluster.wait_node(1);
    let metrics = http_get(&cluster.node(1).http, "/metrics").expect("it answers").1;
    let leaderless = metrics.lines().find_map(|line| line.strip_prefix("flotilla_ranges_without_leader "));
    assert!(leaderless.is_some_and(|count| count != "0"), "{metrics}");
    let status = at(&cluster.node(1).client, &["status"]);
    assert!(status.text().contains("without a leader"), "{status:?}");
}
