//! Three of five nodes are gone for good: what their ranges had elsewhere is served again, by `flotilla recover`.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::cli::{at, flotilla};
use crate::support::cluster::Cluster;
use crate::support::eventually;

/// Keys in all ranges of the default keyspace.
const KEYS: &str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

fn ranges(address: &str) -> Vec<Value> {
    let list = at(address, &["range", "list", "--output", "json"]);
    if list.code == 0 { list.json().as_array().cloned().unwrap_or_default() } else { Vec::new() }
}

/// The nodes with a replica of a range.
fn nodes_of(range: &Value) -> BTreeSet<u64> {
    let replicas = range["replicas"].as_array().cloned().unwrap_or_default();
    replicas.iter().filter_map(|replica| replica["node_id"].as_u64()).collect()
}

fn whole(address: &str, replicas: usize) -> bool {
    let all = ranges(address);
    let voters = |range: &Value| {
        let replicas = range["replicas"].as_array().cloned().unwrap_or_default();
        replicas.iter().filter(|replica| replica["role"] == "voter").count()
    };
    !all.is_empty() && all.iter().all(|range| voters(range) == replicas && nodes_of(range).len() == replicas)
}

/// Five nodes, all ranges with three replicas that are level; the nodes that are to die, and the two that stay.
/// The system range and others have one replica among those that stay, keyspace "gone" has none.
struct Scene {
    cluster: Cluster,
    dead: Vec<u64>,
    living: Vec<u64>,
}

fn scene() -> Scene {
    let mut cluster = Cluster::new(5);
    cluster.start_all();
    let address = cluster.node(1).client.clone();
    eventually("three replicas of everything", || whole(&address, 3));
    at(&address, &["keyspace", "create", "gone"]).exits(0);
    eventually("three replicas of the new keyspace", || {
        whole(&address, 3) && of_keyspace(&address, "gone").is_some_and(|range| nodes_of(&range).len() == 3)
    });
    let system =
        nodes_of(&ranges(&address).into_iter().find(|range| range["range_id"] == 1).expect("the system range"));
    let stays = *system.iter().next().expect("three nodes");
    let other = (1..=5).find(|node| !system.contains(node)).expect("there are five");
    let living = vec![stays, other];
    let dead: Vec<u64> = (1..=5).filter(|node| !living.contains(node)).collect();
    let id = of_keyspace(&address, "gone").expect("it is there")["range_id"].to_string();
    for from in &living {
        let holds = nodes_of(&of_keyspace(&address, "gone").expect("it is there"));
        let Some(to) = dead.iter().find(|node| !holds.contains(node)).filter(|_| holds.contains(from)) else {
            continue;
        };
        let (from, to) = (from.to_string(), to.to_string());
        eventually("the replica to move", || {
            at(&address, &["range", "move", &id, "--from", &from, "--to", &to, "--wait", "20s"]).code == 0
        });
    }
    for key in KEYS.chars() {
        at(&address, &["kv", "put", &key.to_string(), &format!("value of {key}")]).exits(0);
    }
    at(&address, &["kv", "put", "k", "lost", "--keyspace", "gone"]).exits(0);
    // Acknowledged is what two of three have; here all three are to have it.
    for range in ranges(&address) {
        let id = range["range_id"].to_string();
        eventually("the replicas to agree", || at(&address, &["range", "check", &id]).code == 0);
    }
    Scene { cluster, dead, living }
}

fn of_keyspace(address: &str, name: &str) -> Option<Value> {
    ranges(address).into_iter().find(|range| range["keyspace"] == name)
}

fn list(nodes: &[u64]) -> String {
    nodes.iter().map(u64::to_string).collect::<Vec<_>>().join(",")
}

#[test]
fn what_survivors_have_is_served_again_after_three_of_five_nodes_are_gone() {
    let Scene { mut cluster, dead, living } = scene();
    let address = cluster.node(living[0]).client.clone();
    let (names, file) = (list(&dead), cluster.directory().join("plan.json"));
    let path = file.to_str().expect("a plain path").to_owned();
    // While a quorum lives there is nothing to plan.
    at(&address, &["recover", "plan", "--dead", &names, "--out", &path]).fails(1, &["is named dead, and answers"]);
    cluster.kill(dead[0]);
    let first = list(&dead[..1]);
    eventually("the others to notice", || {
        let plan = at(&address, &["recover", "plan", "--dead", &first, "--out", &path]);
        plan.code == 1 && plan.stderr.contains("nothing is to be recovered")
    });
    cluster.kill(dead[1]);
    cluster.kill(dead[2]);
    at(&address, &["recover", "plan", "--dead", &first, "--out", &path])
        .fails(1, &["does not answer, and is not named dead"]);
    assert!(!file.exists(), "nothing was written");
    let status = at(&address, &["status"]);
    assert!(status.text().contains("flotilla recover plan --dead"), "{status:?}");

    let planned = at(&address, &["recover", "plan", "--dead", &names, "--out", &path]).exits(0);
    for word in
        ["LOST: keyspace gone", "are given up for good", "is lost; nobody alive can say", "flotilla recover apply"]
    {
        assert!(planned.text().contains(word), "\"{word}\" is not in: {}", planned.text());
    }
    let plan: Value = serde_json::from_slice(&std::fs::read(&file).expect("written")).expect("JSON");
    assert_eq!(plan["kept"][0]["range"]["range_id"], 1, "the system range first: {plan}");
    assert_eq!(
        at(&address, &["kv", "get", "0", "--timeout", "1s"]).code == 0,
        false_if_lost(&plan, "0"),
        "nothing has changed"
    );

    // Not without a word, not edited, not for another state.
    at(&address, &["recover", "apply", &path]).fails(2, &["--yes"]);
    let edited = cluster.directory().join("edited.json");
    let text = std::fs::read_to_string(&file).expect("written");
    std::fs::write(&edited, text.replacen("\"plan_id\": \"", "\"plan_id\": \"0", 1)).expect("a file of the test");
    let edited = edited.to_str().expect("a plain path").to_owned();
    at(&address, &["recover", "apply", &edited, "--yes"]).fails(1, &["checksum"]);
    cluster.start(dead[0]);
    cluster.wait_node(dead[0]);
    at(&address, &["recover", "apply", &path, "--yes"]).fails(1, &["is given up by the plan, and answers"]);
    cluster.kill(dead[0]);

    // What came meanwhile makes the plan old, if it was a range's log; it is made anew.
    // What was lost wholly is to begin again, empty.
    at(&address, &["recover", "plan", "--dead", &names, "--out", &path, "--recreate-empty"]).exits(0);
    let applied = at(&address, &["recover", "apply", &path, "--yes", "--output", "json"]).exits(0).json();
    let plan: Value = serde_json::from_slice(&std::fs::read(&file).expect("written")).expect("JSON");
    let count = |field: &str| plan[field].as_array().expect("a list").len() as u64;
    let kept = count("kept") + count("recreated_empty");
    assert!(count("recreated_empty") > 0, "{plan}");
    assert_eq!((applied["recovered"].as_u64(), applied["recorded"].as_bool()), (Some(kept), Some(true)), "{applied}");
    let again = at(&address, &["recover", "apply", &path, "--yes", "--output", "json"]).exits(0).json();
    assert_eq!((again["recovered"].as_u64(), again["recovered_before"].as_u64()), (Some(0), Some(kept)), "{again}");

    // All that the survivors had is served, at both of them, and writes are taken.
    for id in &living {
        let address = cluster.node(*id).client.clone();
        for key in KEYS.chars().map(|key| key.to_string()).filter(|key| !is_lost(&plan, key)) {
            eventually("the key to be served", || {
                let got = at(&address, &["kv", "get", &key, "--timeout", "2s"]);
                got.code == 0 && got.stdout == format!("value of {key}").as_bytes()
            });
            at(&address, &["kv", "put", &key, &format!("value of {key}")]).exits(0);
        }
    }
    let events = at(&address, &["range", "events", "1", "--output", "json"]).exits(0);
    assert!(events.text().contains("recovered"), "{events:?}");
    eventually("the keyspace to begin again", || {
        at(&address, &["kv", "put", "k", "again", "--keyspace", "gone", "--if-absent", "--timeout", "2s"]).code == 0
    });

    // A node of the past comes back: it is told, and ends.
    cluster.start(dead[1]);
    assert_eq!(cluster.wait_end(dead[1]), Some(1));
    assert!(cluster.log(dead[1]).contains("given up for good"), "{}", cluster.log(dead[1]));
    // A new one brings the ranges back to as many replicas as can be.
    let added = cluster.add();
    cluster.set_args(&["--join", &address]);
    cluster.start(added);
    cluster.wait_node(added);
    let kept: BTreeSet<u64> =
        plan["kept"].as_array().expect("a list").iter().filter_map(|kept| kept["range"]["range_id"].as_u64()).collect();
    eventually("three replicas of what was kept", || {
        let all = ranges(&address);
        let of = |id: &u64| all.iter().find(|range| range["range_id"].as_u64() == Some(*id)).map(nodes_of);
        kept.iter()
            .all(|id| of(id).is_some_and(|nodes| nodes.len() == 3 && dead.iter().all(|node| !nodes.contains(node))))
    });
    assert_eq!(flotilla(&["recover", "plan"]).code, 2, "the dead must be named");
}

/// Whether the plan says that no replica of the range with this key is left.
fn is_lost(plan: &Value, key: &str) -> bool {
    let holds = |gap: &Value| {
        let bound = |side: &str| {
            let text = gap[side].as_str().expect("base64");
            base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).expect("base64")
        };
        let (start, end) = (bound("start"), bound("end"));
        gap["keyspace_id"] == 1 && key.as_bytes() >= &start[..] && (end.is_empty() || key.as_bytes() < &end[..])
    };
    plan["gaps"].as_array().expect("a list").iter().any(holds)
}

/// Whether a key can still be read without the dead: its range has a majority, or it has none.
fn false_if_lost(plan: &Value, key: &str) -> bool {
    let kept = plan["kept"].as_array().expect("a list").iter().any(|kept| {
        let bound = |side: &str| {
            let text = kept["range"][side].as_str().expect("base64");
            base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).expect("base64")
        };
        let (start, end) = (bound("start"), bound("end"));
        kept["range"]["keyspace_id"] == 1
            && key.as_bytes() >= &start[..]
            && (end.is_empty() || key.as_bytes() < &end[..])
    });
    !kept && !is_lost(plan, key)
}
