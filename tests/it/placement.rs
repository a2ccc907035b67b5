//! Placement as people see it, with real processes: zones, constraints, decommissioning, maintenance, the history.

use serde_json::Value;

use crate::support::cli::at;
use crate::support::cluster::Cluster;
use crate::support::eventually;

/// So many nodes, dealt out to three zones in turn.
fn zoned(nodes: u64, args: &[&str]) -> Cluster {
    let mut cluster = Cluster::new(nodes);
    cluster.set_args(&[args, &["--initial-ranges", "4"]].concat());
    for id in 1..=nodes {
        let labels = format!("zone=z{},host=h{id}", (id - 1) % 3 + 1);
        cluster.set_environment(id, vec![("FLOTILLA_LABELS".into(), labels)]);
    }
    cluster.start_all();
    cluster
}

fn zone(node: u64) -> u64 {
    (node - 1) % 3
}

/// The nodes of the voters of each range of a keyspace.
fn voters(address: &str, keyspace: &str) -> Vec<Vec<u64>> {
    let list = at(address, &["range", "list", "--keyspace", keyspace, "--output", "json"]);
    if list.code != 0 {
        return Vec::new();
    }
    let ranges = list.json().as_array().cloned().unwrap_or_default();
    let nodes = |range: &Value| -> Vec<u64> {
        let replicas = range["replicas"].as_array().cloned().unwrap_or_default();
        replicas.iter().filter(|one| one["role"] == "voter").filter_map(|one| one["node_id"].as_u64()).collect()
    };
    ranges.iter().map(nodes).collect()
}

fn history(address: &str, words: &[&str]) -> Vec<Value> {
    let words = [&["placement", "history", "--limit", "5000", "--timeout", "20s", "--output", "json"], words].concat();
    at(address, &words).exits(0).json()["entries"].as_array().cloned().unwrap_or_default()
}

fn of_kind<'a>(entries: &'a [Value], kind: &str) -> Vec<&'a Value> {
    entries.iter().filter(|entry| entry["kind"] == kind).collect()
}

#[test]
fn replicas_are_in_different_zones_and_a_decommissioned_node_is_emptied_and_gone() {
    let mut cluster = zoned(6, &[]);
    let address = cluster.node(1).client.clone();
    let apart = |nodes: &Vec<u64>| {
        let mut zones: Vec<u64> = nodes.iter().map(|node| zone(*node)).collect();
        zones.sort_unstable();
        zones == [0, 1, 2]
    };
    eventually("a replica in each zone", || {
        let all = voters(&address, "default");
        !all.is_empty() && all.iter().all(apart)
    });

    // Two replicas in the one zone that has two nodes, and no more can be had there.
    at(&address, &["keyspace", "create", "near", "--replicas", "3", "--require-label", "zone=z1"]).fails(1, &["hint:"]);
    at(&address, &["keyspace", "create", "near", "--replicas", "1", "--require-label", "zone=z2"]).exits(0);
    eventually("it is where it is to be", || {
        let all = voters(&address, "near");
        !all.is_empty() && all.iter().all(|nodes| nodes.len() == 1 && zone(nodes[0]) == 1)
    });
    at(&address, &["keyspace", "set", "near", "--forbid-label", "zone=z2"]).fails(1, &["zone=z2"]);

    // A plan changes nothing: all is at rest, and stays so, unless somebody decides something just then.
    eventually("a plan at rest that changes nothing", || {
        let before = history(&address, &[]).len();
        let plan = at(&address, &["placement", "plan", "--dry-run"]);
        plan.text().starts_with("nothing") && history(&address, &[]).len() == before
    });

    let gone =
        at(&address, &["node", "decommission", "6", "--yes", "--wait", "2m", "--output", "json"]).exits(0).json();
    assert_eq!((&gone["removed"], &gone["node_id"]), (&true.into(), &6.into()), "{gone}");
    // The node that is asked may hear of it a moment later than placement.
    eventually("it holds nothing", || {
        let all = voters(&address, "default");
        !all.is_empty() && all.iter().all(|nodes| !nodes.contains(&6))
    });
    let told = history(&address, &["--node", "6"]);
    for kind in ["joined", "decommissioning", "removed"] {
        assert_eq!(of_kind(&told, kind).len(), 1, "{kind}: {told:?}");
    }
    at(&address, &["node", "decommission", "6", "--undo"]).fails(1, &["removed for good"]);

    // The node where the service runs is lost: the next one knows all that was decided.
    let leader = at(&address, &["range", "show", "1", "--output", "json"]).exits(0).json()["leader_node_id"].clone();
    let leader = leader.as_u64().expect("it is led");
    let orders = of_kind(&history(&address, &[]), "order").len();
    cluster.kill(leader);
    let other = cluster.node(if leader == 1 { 2 } else { 1 }).client.clone();
    eventually("another service", || at(&other, &["placement", "history", "--timeout", "20s"]).code == 0);
    let after = history(&other, &[]);
    assert!(of_kind(&after, "order").len() >= orders, "{orders} orders were told of before: {after:?}");
    assert_eq!(of_kind(&after, "removed").len(), 1);
}

#[test]
fn a_node_in_maintenance_may_restart_late_and_nothing_is_rebuilt() {
    let mut cluster = zoned(4, &["--node-dead-after-ms", "2000"]);
    let address = cluster.node(1).client.clone();
    eventually("rest", || at(&address, &["placement", "plan"]).text().starts_with("nothing"));
    at(&address, &["node", "maintenance", "3"]).exits(2);
    at(&address, &["node", "maintenance", "9", "--for", "5m"]).fails(1, &["there is no node 9"]);
    at(&address, &["node", "maintenance", "3", "--for", "10m"]).exits(0);
    eventually("it leads nothing", || {
        let list = at(&address, &["node", "list", "--output", "json"]).exits(0).json();
        list[2]["state"] == "maintenance" && list[2]["leaders"] == 0
    });
    let status = at(&address, &["status"]).exits(0).text().to_owned();
    assert!(status.contains("node 3 is in maintenance for"), "{status}");
    let held = voters(&address, "default").iter().filter(|nodes| nodes.contains(&3)).count();
    assert_eq!(cluster.terminate(3), Some(0), "{}", cluster.log(3));

    // Another node is taken for dead in the same time; this one is not.
    cluster.kill(4);
    eventually("node 4 is dead", || !of_kind(&history(&address, &["--node", "4"]), "dead").is_empty());
    assert!(of_kind(&history(&address, &["--node", "3"]), "dead").is_empty());
    let still = voters(&address, "default").iter().filter(|nodes| nodes.contains(&3)).count();
    assert!(still >= held, "{still} of {held} replicas are left on it");
    cluster.start(3);
    cluster.wait_node(3);
    at(&address, &["node", "maintenance", "3", "--undo"]).exits(0);
    eventually("it leads again", || {
        let list = at(&address, &["node", "list", "--output", "json"]).exits(0).json();
        list[2]["state"] == "up"
    });
    assert_eq!(of_kind(&history(&address, &["--node", "3"]), "maintenance").len(), 2);
}
