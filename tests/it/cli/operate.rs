//! The commands of operators: ranges, nodes, status, bench, configuration, completions, version, and the offline look
//! into a stopped node's directory.

use super::cluster;
use crate::support::cli::{at, flotilla};
use crate::support::cluster::Cluster;
use crate::support::eventually;
use crate::support::shared::shared;

#[test]
fn ranges_and_nodes_are_listed() {
    let list = cluster(&["range", "list", "--keyspace", "default"]).exits(0);
    let lines: Vec<&str> = list.text().lines().collect();
    assert_eq!(lines.len(), 17, "{list:?}");
    assert!(lines[0].contains("RANGE") && lines[0].contains("LEADER"), "{}", lines[0]);
    assert!(lines[1].contains("(first)") && lines[16].contains("(last)"), "{list:?}");
    let json = cluster(&["range", "list", "--keyspace", "default", "--output", "json"]).exits(0).json();
    assert_eq!(json.as_array().map(Vec::len), Some(16));
    let system = cluster(&["range", "list", "--keyspace", "system", "--output", "json"]).exits(0).json();
    assert_eq!((system.as_array().map(Vec::len), &system[0]["range_id"]), (Some(1), &1.into()));
    let id = json[0]["range_id"].to_string();

    let show = cluster(&["range", "show", &id]).exits(0);
    assert!(show.text().starts_with(&format!("range {id}: (first) to ")), "{show:?}");
    for node in ["1", "2", "3"] {
        let local = cluster(&["range", "show", &id, "--on", node, "--output", "json"]).exits(0).json();
        assert_eq!(local["replica"]["node_id"].to_string(), node);
    }
    cluster(&["range", "show", "999"]).fails(1, &["999", "range list"]);
    cluster(&["range", "show", &id, "--on", "9"]).fails(1, &["9"]);

    let nodes = cluster(&["node", "list"]).exits(0);
    assert_eq!(nodes.text().lines().filter(|line| line.contains(" up ")).count(), 3, "{nodes:?}");
    for node in shared().nodes() {
        assert!(nodes.text().contains(&node.client) && nodes.text().contains(&node.peer), "{nodes:?}");
    }
    let json = cluster(&["node", "list", "--output", "json"]).exits(0).json();
    assert_eq!(json.as_array().map(Vec::len), Some(3));
}

#[test]
fn status_has_one_line_when_all_is_well() {
    // Under load a leader may be between two terms for a moment.
    eventually("all to be well", || cluster(&["status", "--check"]).code == 0);
    let json = cluster(&["status", "--output", "json"]).exits(0).json();
    // Other tests make keyspaces meanwhile.
    assert!(json["nodes"] == 3 && json["ranges"].as_u64() >= Some(17), "{json}");
}

#[test]
fn bench_prints_what_clients_saw_and_what_it_cost() {
    let mut nodes = Cluster::new(1);
    nodes.start_all();
    let address = &nodes.node(1).client;
    for workload in ["put", "get", "ycsb-a", "ycsb-b", "ycsb-c"] {
        let words = ["bench", workload, "--ops", "300", "--clients", "8", "--keys", "100"];
        let table = at(address, &words).exits(0);
        for word in [workload, "per second", "P99.9", "server CPU", "fsyncs", "bytes written", "Raft messages"] {
            assert!(table.text().contains(word), "\"{word}\": {table:?}");
        }
    }
    let json = at(address, &["bench", "ycsb-a", "--seconds", "1s", "--output", "json"]).exits(0).json();
    assert!(json["operations"].as_u64().expect("a number") > 0, "{json}");
    assert!(json["per_operation"]["fsyncs"].as_f64().is_some(), "{json}");
    let (reads, writes) = (json["read_micros"]["count"].as_u64(), json["write_micros"]["count"].as_u64());
    assert_eq!(reads.zip(writes).map(|(reads, writes)| reads + writes), json["operations"].as_u64());
}

#[test]
fn a_leader_is_moved_by_command_and_a_stopped_nodes_directory_can_be_looked_into() {
    let mut nodes = Cluster::three();
    let address = nodes.node(1).client.clone();
    at(&address, &["kv", "put", r"0debug/\x01", "v"]).exits(0);
    for node in ["2", "3", "1"] {
        at(&address, &["range", "transfer-leader", "2", node]).exits(0);
        let show = at(&address, &["range", "show", "2", "--output", "json"]).exits(0).json();
        assert_eq!(show["leader_node_id"].to_string(), node);
    }
    at(&address, &["range", "transfer-leader", "2", "9"]).fails(1, &["9", "hint:"]);
    at(&address, &["range", "transfer-leader", "999", "1"]).fails(1, &["999", "hint:"]);

    let data = nodes.node(1).data.display().to_string();
    flotilla(&["debug", "store", &data]).fails(1, &["in use"]);
    assert_eq!(nodes.terminate(1), Some(0));
    let store = flotilla(&["debug", "store", &data]).exits(0);
    assert!(
        store.text().contains("node 1 of cluster \"test\"") && store.text().contains("stopped in order"),
        "{store:?}"
    );
    let store = flotilla(&["debug", "store", &data, "--output", "json"]).exits(0).json();
    assert_eq!(
        (&store["node_id"], &store["replicas_here"], &store["clean_stop"]),
        (&1.into(), &17.into(), &true.into())
    );
    let ranges = flotilla(&["debug", "range", &data]).exits(0);
    assert_eq!(ranges.text().lines().count(), 18, "{ranges:?}");
    let range = flotilla(&["debug", "range", &data, "--range", "2", "--output", "json"]).exits(0).json();
    assert_eq!(range[0]["range_id"], 2);
    let log = flotilla(&["debug", "log", &data, "--range", "2"]).exits(0);
    assert!(log.text().contains(r"put 0debug/\x01"), "{log:?}");
    flotilla(&["debug", "log", &data, "--range", "2", "--output", "json"]).exits(0).json();
    flotilla(&["debug", "log", &data, "--range", "999"]).fails(1, &["999", "hint:"]);
    flotilla(&["debug", "store", "/nowhere"]).fails(1, &["/nowhere", "hint:"]);
    // Looking changed nothing.
    nodes.start_all();
    assert_eq!(at(&address, &["kv", "get", r"0debug/\x01"]).exits(0).stdout, b"v");
}

#[test]
fn configuration_is_shown_checked_and_read_back() {
    let folder = tempfile::tempdir().expect("a directory for the test");
    let path = folder.path().join("flotilla.toml");
    let name = path.to_str().expect("a plain path");
    let flags = ["--join", "a:1,b:2", "--node-dead-after-ms", "7000", "--read-mode", "quorum"];
    let shown = flotilla(&[&["config", "show"], &flags[..]].concat()).exits(0);
    assert!(
        shown.text().contains("read-mode = \"quorum\"") && shown.text().contains("join = \"a:1,b:2\""),
        "{shown:?}"
    );
    std::fs::write(&path, &shown.stdout).expect("a file for the test");
    let again = flotilla(&["config", "show", "--config", name]).exits(0);
    assert_eq!(again.stdout, shown.stdout, "what is shown is a file that says the same");
    assert_eq!(flotilla(&["config", "check", "--config", name]).exits(0).text(), "ok\n");
    let json = flotilla(&["config", "show", "--config", name, "--output", "json"]).exits(0).json();
    assert_eq!(json["node-dead-after-ms"], 7000);
}

#[test]
fn completions_and_version() {
    let script = flotilla(&["completions", "bash"]).exits(0);
    assert!(script.text().contains("transfer-leader"), "it knows the commands");
    let folder = tempfile::tempdir().expect("a directory for the test");
    let path = folder.path().join("flotilla.bash");
    std::fs::write(&path, &script.stdout).expect("a file for the test");
    let parsed = std::process::Command::new("bash").arg("-n").arg(&path).output().expect("bash is there");
    assert!(parsed.status.success(), "{}", String::from_utf8_lossy(&parsed.stderr));

    let version = flotilla(&["version"]).exits(0);
    for word in ["flotilla ", "disk format ", "command version ", "peer protocol ", "flotilla.v1"] {
        assert!(version.text().contains(word), "{version:?}");
    }
    let json = flotilla(&["version", "--output", "json"]).exits(0).json();
    assert_eq!(json["api"], "flotilla.v1");
    assert!(flotilla(&["--version"]).exits(0).text().starts_with("flotilla "));
    let help = flotilla(&["--help"]).exits(0);
    assert!(help.text().contains("Exit codes: 0 done, 1 failed, 2 usage, 3 outcome unknown, 4"), "{help:?}");
}
