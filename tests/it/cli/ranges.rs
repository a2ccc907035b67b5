//! `range split|move|check|events` and `node show|drain` by hand, and what they refuse.

use serde_json::Value;

use super::cluster;
use crate::support::cli::at;
use crate::support::cluster::Cluster;
use crate::support::eventually;
use crate::support::shared::shared;

/// Makes a keyspace with a hundred keys.
fn keyspace(name: &str, boundary: &str) {
    cluster(&["keyspace", "create", name, "--boundary", boundary, "--split-bytes", "never"]).exits(0);
    cluster(&["kv", "put", "00", "0", "--keyspace", name]).exits(0);
    let rows: String = (1..100).map(|number| format!("{number:02},value {number}\n")).collect();
    let words = ["kv", "import", "-", "--format", "csv", "--columns", "key,value", "--keyspace", name];
    super::cluster_stdin(&words, rows.as_bytes()).exits(0);
}

/// Its ranges in key order.
fn ranges(name: &str) -> Vec<Value> {
    let list = cluster(&["range", "list", "--keyspace", name, "--output", "json"]).exits(0).json();
    list.as_array().expect("a list").clone()
}

fn id(range: &Value) -> String {
    range["range_id"].to_string()
}

/// Waits until its only range has three replicas; its id.
fn replicated(name: &str) -> String {
    eventually("three replicas", || {
        ranges(name)[0]["replicas"]
            .as_array()
            .is_some_and(|replicas| replicas.len() == 3 && replicas.iter().all(|replica| replica["role"] == "voter"))
    });
    id(&ranges(name)[0])
}

#[test]
fn a_range_is_split_by_hand_and_no_key_is_lost() {
    keyspace("trg.split", "any");
    let parent = id(&ranges("trg.split")[0]);
    let split = cluster(&["range", "split", &parent, "--at", "50", "--at", "75"]).exits(0);
    assert!(split.text().starts_with(&format!("range {parent} is now\n")), "{split:?}");
    eventually("the split to be known everywhere", || ranges("trg.split").len() == 3);
    let all = ranges("trg.split");
    assert_eq!((id(&all[0]), &all[0]["end"], &all[1]["start"]), (parent.clone(), &all[1]["start"], &all[0]["end"]));
    assert_eq!(cluster(&["kv", "scan", "--count", "--keyspace", "trg.split"]).exits(0).text(), "100\n");
    assert_eq!(cluster(&["kv", "get", "60", "--keyspace", "trg.split"]).exits(0).stdout, b"value 60");
    let parts = cluster(&["range", "split", &parent, "--count", "2", "--output", "json"]).exits(0).json();
    assert_eq!(parts["ranges"].as_array().map(Vec::len), Some(2), "{parts}");

    // The parent ends before 50 now.
    cluster(&["range", "split", &parent, "--at", "90"]).fails(1, &["90", "hint: "]);
    let right = id(&all[2]);
    cluster(&["range", "split", &right, "--at", "75"]).fails(1, &["75", "hint: "]);
    cluster(&["range", "split", "9999", "--at", "x"]).fails(1, &["9999", "range list"]);
    cluster(&["range", "split", "1", "--at", "x"]).fails(1, &["system range"]);
    cluster(&["range", "split", &right]).fails(2, &["--at", "--count"]);
    cluster(&["range", "split", &right, "--count", "1"]).fails(2, &["--count"]);
    let events = cluster(&["range", "events", &parent]).exits(0);
    assert!(events.text().contains("split"), "{events:?}");
    cluster(&["range", "events", "9999"]).fails(1, &["9999", "range list"]);
    cluster(&["range", "list", "--keyspace", "trg.none"]).fails(1, &["trg.none", "keyspace list"]);
}

/// A child of this moment is known to the node that split; the others hear of it before they say that there is none.
#[test]
fn a_child_takes_orders_through_any_node_at_once() {
    keyspace("trg.child", "any");
    let nodes = shared().addresses();
    let mut range = replicated("trg.child");
    for (round, node) in nodes.iter().cycle().take(6).enumerate() {
        let at_key = format!("{:02}", 10 + 10 * round);
        let split = at(&nodes[(round + 1) % 3], &["range", "split", &range, "--at", &at_key, "--output", "json"]);
        let child = split.exits(0).json()["ranges"][1]["range_id"].to_string();
        match round % 3 {
            0 => drop(at(node, &["range", "show", &child]).exits(0)),
            1 => drop(at(node, &["range", "check", &child]).exits(0)),
            // Refused for what it asks, and not because nobody knows the range.
            _ => drop(at(node, &["range", "move", &child, "--from", "1", "--to", "9"]).fails(1, &["node 9", "hint: "])),
        }
        range = child;
    }
    for words in [&["range", "show"][..], &["range", "check"], &["range", "split", "--count", "2"]] {
        cluster(&[words, &["99999"]].concat()).fails(1, &["no node knows a range 99999", "range list"]);
    }
}

#[test]
fn a_split_against_the_boundary_is_refused() {
    keyspace("trg.boundary", "prefix:1");
    let range = id(&ranges("trg.boundary")[0]);
    cluster(&["range", "split", &range, "--at", "55"]).fails(1, &["55", "hint: "]);
    cluster(&["range", "split", &range, "--at", "5"]).exits(0);
}

#[test]
fn replicas_are_compared_and_moves_that_cannot_be_are_refused() {
    keyspace("trg.check", "any");
    let range = replicated("trg.check");
    let check = cluster(&["range", "check", &range]).exits(0);
    assert_eq!(check.text().matches(" ok").count(), 3, "{check:?}");
    let check = cluster(&["range", "check", &range, "--output", "json"]).exits(0).json();
    assert_eq!((&check[0]["ok"], &check[0]["difference"]), (&true.into(), &Value::Null), "{check}");
    let records = |at: usize| check[0]["replicas"][at]["records"].as_u64();
    assert_eq!((records(0), records(1), records(2)), (Some(100), Some(100), Some(100)), "{check}");
    cluster(&["range", "check", "--all", "--timeout", "30s"]).exits(0);
    cluster(&["range", "check", "9999"]).fails(1, &["9999", "range list"]);
    cluster(&["range", "check"]).fails(2, &["--all"]);

    cluster(&["range", "move", &range, "--from", "1", "--to", "9"]).fails(1, &["9", "hint: "]);
    cluster(&["range", "move", &range, "--from", "1", "--to", "2"]).fails(1, &["2", "already", "hint: "]);
    cluster(&["range", "move", &range, "--from", "9", "--to", "1"]).fails(1, &["9", "hint: "]);
    cluster(&["range", "move", "9999", "--from", "1", "--to", "2"]).fails(1, &["9999", "hint: "]);
    cluster(&["range", "move", &range, "--from", "1"]).fails(2, &["--to"]);
}

#[test]
fn nodes_are_shown_and_drained() {
    let show = cluster(&["node", "show", "1"]).exits(0);
    assert!(show.text().starts_with("node 1: up") && show.text().contains("since it started: writes"), "{show:?}");
    let show = cluster(&["node", "show", "1", "--output", "json"]).exits(0).json();
    assert!(show["counters"]["wal_syncs"].as_u64() > Some(0), "{show}");
    cluster(&["node", "show", "9"]).fails(1, &["no node 9", "1, 2, 3"]);

    let nodes = Cluster::three();
    let address = nodes.node(1).client.clone();
    eventually("all to be well", || at(&address, &["status", "--check"]).code == 0);
    let drained = at(&address, &["node", "drain", "2"]).exits(0);
    assert_eq!(drained.text(), "node 2 is drained: it leads nothing\n");
    let node = at(&address, &["node", "show", "2", "--output", "json"]).exits(0).json();
    assert_eq!((&node["leaders"], &node["draining"]), (&0.into(), &true.into()), "{node}");
    assert!(at(&address, &["node", "list"]).exits(0).text().contains("draining"));
    at(&address, &["node", "drain", "2", "--undo"]).exits(0);
    eventually("the draining to be over", || {
        at(&address, &["node", "show", "2", "--output", "json"]).exits(0).json()["draining"] == false
    });
    at(&address, &["node", "drain", "9"]).fails(1, &["9", "hint: "]);
}
