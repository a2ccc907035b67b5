//! The history: every order with its reason and its end, nodes and keyspaces, splits; over reloads of the service,
//! and within its bounds.

use std::time::Duration;

use flotilla_placement::{Config, Request, Response};
use flotilla_proto::v1;

use crate::growth::grown;
use crate::toy::{Toy, config};

fn history(toy: &mut Toy, request: v1::PlacementHistoryRequest) -> v1::PlacementHistoryResponse {
    match toy.ask(Request::History(request)).expect("a history") {
        Response::History(answer) => answer,
        other => panic!("{other:?}"),
    }
}

fn all(toy: &mut Toy) -> Vec<v1::HistoryEntry> {
    history(toy, v1::PlacementHistoryRequest { limit: 10_000, ..Default::default() }).entries
}

fn kinds(entries: &[v1::HistoryEntry], kind: &str) -> usize {
    entries.iter().filter(|entry| entry.kind == kind).count()
}

#[test]
fn every_order_is_told_with_its_reason_and_its_end() {
    let mut toy = grown(8, 3, 1);
    toy.steps(5);
    let entries = all(&mut toy);
    let orders: Vec<&v1::HistoryEntry> = entries.iter().filter(|entry| entry.kind == "order").collect();
    assert_eq!(orders.len(), toy.orders_seen.len());
    for entry in &orders {
        let order = &toy.orders_seen[&entry.order_id];
        assert_eq!((entry.range_id, &entry.add_nodes), (order.range_id, &order.add_nodes));
        assert!(!entry.what.is_empty() && entry.outcome == "done", "{entry:?}");
        assert!(entry.outcome_unix_ms >= entry.unix_ms);
    }
    assert_eq!(kinds(&entries, "joined"), 2);
    let ids: Vec<u64> = entries.iter().map(|entry| entry.id).collect();
    assert!(ids.windows(2).all(|pair| pair[0] > pair[1]), "newest first");
}

#[test]
fn questions_name_a_range_a_node_a_time_and_a_number() {
    let mut toy = grown(8, 3, 1);
    let of_range = history(&mut toy, v1::PlacementHistoryRequest { range_id: 3, ..Default::default() });
    assert!(!of_range.entries.is_empty() && of_range.entries.iter().all(|entry| entry.range_id == 3));
    let of_node = history(&mut toy, v1::PlacementHistoryRequest { node_id: 3, limit: 500, ..Default::default() });
    assert!(of_node.entries.iter().all(|entry| entry.node_ids.contains(&3)) && !of_node.more);
    assert!(of_node.entries.iter().any(|entry| entry.kind == "joined"));
    let two = history(&mut toy, v1::PlacementHistoryRequest { limit: 2, ..Default::default() });
    assert!(two.entries.len() == 2 && two.more);
    // Time passes: what was is no part of the last second.
    toy.steps(20);
    let late = history(&mut toy, v1::PlacementHistoryRequest { within_ms: 1_000, ..Default::default() });
    assert_eq!(late.entries, []);
    assert!(late.kept > 0 && late.since_unix_ms > 0);
}

#[test]
fn the_time_that_is_told_is_that_of_people() {
    let mut toy = grown(1, 3, 1);
    let unix_ms = 1_700_000_000_000;
    toy.service.tell_time(toy.now, unix_ms);
    toy.ask(Request::DrainNode(v1::DrainNodeRequest { node_id: 3, undo: false })).expect("drained");
    let answer = history(&mut toy, v1::PlacementHistoryRequest { node_id: 3, ..Default::default() });
    let drained = answer.entries.iter().find(|entry| entry.kind == "draining").expect("it was drained");
    assert!((unix_ms..unix_ms + 5_000).contains(&drained.unix_ms), "{drained:?}");
    // The same again is no news.
    toy.ask(Request::DrainNode(v1::DrainNodeRequest { node_id: 3, undo: false })).expect("drained");
    assert_eq!(kinds(&all(&mut toy), "draining"), 1);
}

#[test]
fn the_history_is_there_for_the_next_service_and_nobody_dies_twice() {
    let mut toy = grown(8, 4, 1);
    toy.nodes.get_mut(&4).expect("a node").up = false;
    toy.until("node 4 is dead and nothing is left of it", |toy| toy.at_rest(3) && toy.replicas_on(4) == 0);
    let before = all(&mut toy);
    assert_eq!(kinds(&before, "dead"), 1);
    for _ in 0..3 {
        toy.reload();
        toy.settle_effects();
        // It takes a dead node's time until this service knows it, too.
        toy.steps(150);
    }
    let after = all(&mut toy);
    assert_eq!(kinds(&after, "dead"), 1, "{after:?}");
    assert_eq!(after[after.len() - before.len()..], before[..], "what was told stays");
    toy.nodes.get_mut(&4).expect("a node").up = true;
    toy.steps(20);
    assert_eq!(kinds(&all(&mut toy), "back"), 1);
}

#[test]
fn an_order_that_came_to_nothing_says_why() {
    let mut toy = grown(1, 4, 1);
    let holders: Vec<u64> = toy.groups[&2].descriptor.replicas.iter().map(|replica| replica.node_id).collect();
    let (from, to) = (holders[0], (1..=4).find(|node| !holders.contains(node)).expect("one without"));
    toy.nodes.get_mut(&to).expect("a node").up = false;
    let request = v1::MoveReplicaRequest { range_id: 2, from_node_id: from, to_node_id: to, timeout_ms: 0 };
    toy.ask(Request::MoveReplica(request)).expect("decided");
    toy.until("it is given up", |toy| toy.service.orders().is_empty());
    let entries = all(&mut toy);
    let moved = entries.iter().find(|entry| entry.what.starts_with("asked for: from")).expect("the order");
    assert!(moved.outcome.starts_with("given-up: nothing is heard of node"), "{moved:?}");
}

#[test]
fn keyspaces_and_splits_are_told() {
    let mut toy = grown(2, 3, 1);
    assert!(toy.split(2), "range 2 can be split");
    toy.until("the split is heard of", |toy| toy.at_rest(3));
    let create = v1::CreateKeyspaceRequest { name: "x".into(), ranges: 3, ..Default::default() };
    toy.ask(Request::CreateKeyspace(create)).expect("created");
    let set = v1::SetKeyspaceRequest { name: "x".into(), replicas: Some(1), ..Default::default() };
    toy.ask(Request::SetKeyspace(set)).expect("set");
    toy.ask(Request::DropKeyspace(v1::DropKeyspaceRequest { name: "x".into() })).expect("dropped");
    toy.steps(3);
    let entries = all(&mut toy);
    let what = |kind: &str| entries.iter().find(|entry| entry.kind == kind).map_or("", |entry| entry.what.as_str());
    assert_eq!(what("created"), "keyspace \"x\" (id 2), 3 replicas, ranges: 3");
    assert_eq!(what("set"), "keyspace \"x\": replicas 1 instead of 3");
    assert_eq!(what("dropped"), "keyspace \"x\" (id 2)");
    let splits: Vec<&v1::HistoryEntry> = entries.iter().filter(|entry| entry.kind == "split").collect();
    assert_eq!(splits.len(), 1, "{splits:?}");
    assert_eq!((splits[0].range_id, splits[0].other_ranges.len()), (2, 1));
    let child = splits[0].other_ranges[0];
    let of_child = history(&mut toy, v1::PlacementHistoryRequest { range_id: child, ..Default::default() });
    assert!(of_child.entries.iter().any(|entry| entry.kind == "split"));
}

#[test]
fn the_history_stays_within_its_bounds() {
    let bounds = Config { history_entries_max: 100, history_age_max: Duration::from_secs(3_600), ..config() };
    let mut toy = Toy::with(4, 1, bounds);
    for round in 0..100 {
        for undo in [false, true] {
            let request = v1::SetKeyspaceRequest {
                name: "default".into(),
                split_bytes: Some(4_096 << u32::from(undo)),
                ..Default::default()
            };
            toy.ask(Request::SetKeyspace(request)).unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
    }
    let answer = history(&mut toy, v1::PlacementHistoryRequest { limit: 10_000, ..Default::default() });
    assert!((60..=140).contains(&answer.entries.len()), "{} entries", answer.entries.len());
    assert_eq!(answer.kept as usize, answer.entries.len());
    let pages = toy.records.all().into_iter().filter(|(key, ..)| key.starts_with(b"history/")).count();
    assert!(pages <= 6, "{pages} records");
}
