//! While the system range is down nothing is decided, and all else goes on: even for a node that restarts, and has
//! nobody to ask for routes but its peers.

use serde_json::Value;

use crate::support::cli::at;
use crate::support::cluster::Cluster;
use crate::support::eventually;

fn ranges(address: &str) -> Vec<Value> {
    let list = at(address, &["range", "list", "--output", "json"]);
    if list.code == 0 { list.json().as_array().cloned().unwrap_or_default() } else { Vec::new() }
}

fn keyspace_id(address: &str, name: &str) -> Value {
    at(address, &["keyspace", "show", name, "--output", "json"]).exits(0).json()["keyspace_id"].clone()
}

/// The nodes of a range's replicas.
fn nodes(range: &Value) -> Vec<u64> {
    let replicas = range["replicas"].as_array().cloned().unwrap_or_default();
    replicas.iter().filter_map(|replica| replica["node_id"].as_u64()).collect()
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
    let mut system = 0;
    let mut on = Vec::new();
    eventually("three replicas of one keyspace, and nothing under way", || {
        let all = ranges(&address);
        let of = |id: &Value| all.iter().find(|range| range["keyspace_id"] == *id).map(nodes).unwrap_or_default();
        system = all.iter().find(|range| range["range_id"] == 1).map_or(0, |range| nodes(range)[0]);
        on = of(&one);
        system != 0 && of(&three).len() == 3 && on.len() == 1
    });
    let others: Vec<u64> = (1..=3).filter(|node| *node != system).collect();
    if on[0] == system {
        let range = ranges(&address).iter().find(|range| range["keyspace_id"] == one).expect("it is there")["range_id"]
            .to_string();
        let (from, to) = (system.to_string(), others[0].to_string());
        at(&address, &["range", "move", &range, "--from", &from, "--to", &to, "--wait", "30s"]).exits(0);
        on = vec![others[0]];
    }
    let other = others.into_iter().find(|node| *node != on[0]).expect("a third one");
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
