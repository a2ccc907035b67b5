//! A replica that was altered on disk in sound files: no crc tells, only the comparison with the others does.

use std::path::Path;
use std::sync::Arc;

use flotilla_engine::storage::{Family, Read, Storage, WriteBatch};
use flotilla_engine::{keys, record};
use flotilla_proto::ids::DEFAULT_KEYSPACE;
use flotilla_store::{Options, RocksStorage, StoreDirectory};
use serde_json::Value;

use crate::support::cli::{at, with_stdin};
use crate::support::cluster::Cluster;
use crate::support::eventually;

const MEMORY_BYTES: u64 = 32 << 20;
/// Enough for three spans of checksums.
const ROWS: u32 = 700;
/// In the second span.
const ALTERED: &str = "0300";

/// Writes another value for a key into the store of a node that does not run, as the node's own code writes: the
/// checksums of the files are right.
fn alter(data: &Path, key: &str) {
    let directory = StoreDirectory::open(data, None).expect("the node does not run");
    let options = Options { memory_bytes: MEMORY_BYTES, ..Options::default() };
    let storage = RocksStorage::open(Arc::new(directory), &options).expect("a sound store");
    let key = keys::data(DEFAULT_KEYSPACE, key.as_bytes());
    let kept = storage.get(Family::State, &key).expect("it reads").expect("this node has a replica");
    let kept = record::decode_value(kept).expect("a value");
    let mut other = kept.value.to_vec();
    other[0] ^= 1;
    let mut batch = storage.batch();
    batch.put(Family::State, &key, &record::encode_value(kept.version, kept.deadline_ms, &other));
    storage.write(batch).and_then(|()| storage.close()).expect("it writes");
}

fn unquoted(value: &Value) -> Vec<u8> {
    use base64::Engine;
    let text = value.as_str().expect("base64");
    base64::engine::general_purpose::STANDARD.decode(text).expect("base64")
}

#[test]
fn a_replica_that_was_altered_on_disk_is_named_with_the_first_span_that_differs() {
    let mut cluster = Cluster::new(3);
    cluster.set_args(&["--initial-ranges", "1"]);
    cluster.start_all();
    let address = cluster.node(1).client.clone();
    let rows: String = (0..ROWS).map(|number| format!("{number:04},value {number}\n")).collect();
    with_stdin(&address, &["kv", "import", "-", "--format", "csv", "--columns", "key,value"], rows.as_bytes()).exits(0);
    let list = at(&address, &["range", "list", "--keyspace", "default", "--output", "json"]).exits(0).json();
    let range = list[0]["range_id"].to_string();
    at(&address, &["range", "check", "--all", "--timeout", "30s"]).exits(0);

    assert_eq!(cluster.terminate(2), Some(0), "{}", cluster.log(2));
    alter(&cluster.node(2).data, ALTERED);
    // A replica that is away is not compared, and that is no success either.
    at(&address, &["range", "check", &range]).fails(1, &["could not be checked on all nodes", "hint:"]);
    cluster.start_all();

    let named = format!("range {range}: the replica on node 2 differs first between ");
    let check = at(&address, &["range", "check", &range]).fails(1, &[&named, "hint:", "node drain 2", "range move"]);
    let rows: Vec<&str> = check.text().lines().skip(1).collect();
    let of =
        |node: &str| rows.iter().find(|row| row.split_whitespace().nth(2) == Some(node)).expect("a row").to_string();
    assert!(of("2").contains("DIFFERENT"), "{check:?}");
    assert!(of("1").ends_with("ok") && of("3").ends_with("ok"), "{check:?}");
    let json = at(&address, &["range", "check", &range, "--output", "json"]).exits(1).json();
    let difference = &json[0]["difference"];
    assert_eq!(difference["node_ids"], serde_json::json!([2]), "{json}");
    let (start, end) = (unquoted(&difference["start"]), unquoted(&difference["end"]));
    assert!(start.as_slice() <= ALTERED.as_bytes() && ALTERED.as_bytes() <= end.as_slice(), "{json}");
    assert!(!start.is_empty() && !end.is_empty(), "one span of several: {json}");
    let checksum = |at: usize| json[0]["replicas"][at]["checksum"].as_u64().expect("a number");
    assert!(checksum(0) == checksum(2) && checksum(0) != checksum(1), "{json}");
    assert_eq!(json[0]["replicas"][1]["records"], ROWS, "{json}");

    // The other ranges are named by nobody.
    let all = at(&address, &["range", "check", "--all", "--timeout", "30s"]).fails(1, &[&named]);
    assert_eq!(all.stderr.matches("differs first").count(), 1, "{all:?}");
    rebuilt(&mut cluster, &range);
}

/// Nobody has to ask: the range's leader compares its replicas now and then, and says what it found.
#[test]
fn replicas_that_differ_are_found_without_being_asked_for() {
    let mut cluster = Cluster::new(3);
    cluster.set_args(&["--initial-ranges", "1", "--compare-interval-ms", "300"]);
    cluster.start_all();
    let address = cluster.node(1).client.clone();
    at(&address, &["kv", "put", ALTERED, "value"]).exits(0);
    // A follower learns of what is committed a little later: a check waits until all have applied it.
    at(&address, &["range", "check", "--all", "--timeout", "30s"]).exits(0);
    assert_eq!(cluster.terminate(2), Some(0), "{}", cluster.log(2));
    alter(&cluster.node(2).data, ALTERED);
    cluster.start_all();
    let problem = || {
        // Ranges that sleep are left alone.
        at(&address, &["kv", "put", "0", "awake"]);
        let status = at(&address, &["status"]);
        status.text().contains("replica on node 2 differs") && status.text().contains("flotilla range check")
    };
    eventually("the leader to tell of it", problem);
    at(&address, &["status", "--check"]).exits(1);
    assert_eq!(at(&address, &["kv", "get", "0"]).exits(0).stdout, b"awake");
}

/// What the refusal advises: a replica that is right leads and stays the leader, and a node without one gets a copy instead.
fn rebuilt(cluster: &mut Cluster, range: &str) {
    let address = cluster.node(1).client.clone();
    let other = cluster.add();
    cluster.start(other);
    cluster.wait_initialised(other);
    cluster.wait_node(other);
    let nodes = || {
        let show = at(&address, &["range", "show", range, "--output", "json"]).exits(0).json();
        let replicas = show["replicas"].as_array().cloned().unwrap_or_default();
        replicas.iter().map(|replica| replica["node_id"].as_u64().expect("a node")).collect::<Vec<_>>()
    };
    at(&address, &["node", "drain", "2", "--wait", "30s"]).exits(0);
    // Balance has a say too: it may give the fourth node a replica, and moves one at a time.
    eventually("the altered replica to be replaced", || {
        let now = nodes();
        if now.len() != 3 || !now.contains(&2) {
            return now.len() == 3;
        }
        let free = (1..=4).find(|node| !now.contains(node)).expect("of four nodes").to_string();
        at(&address, &["range", "move", range, "--from", "2", "--to", &free]).code == 0
    });
    assert!(!nodes().contains(&2));
    at(&address, &["node", "drain", "2", "--undo"]).exits(0);
    let check = at(&address, &["range", "check", range]).exits(0);
    assert_eq!(check.text().matches(" ok").count(), 3, "{check:?}");
}
