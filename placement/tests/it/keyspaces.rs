//! Keyspaces: created with ranges on many nodes, set, dropped; ids never come back.

use flotilla_placement::recovery::LEAP;
use flotilla_placement::{Change, Request, Response};
use flotilla_proto::{Error, v1};

use crate::growth::grown;
use crate::toy::{Group, Toy};

fn create(name: &str, ranges: u32) -> Request {
    Request::CreateKeyspace(v1::CreateKeyspaceRequest { name: name.into(), ranges, ..Default::default() })
}

fn drop_it(name: &str) -> Request {
    Request::DropKeyspace(v1::DropKeyspaceRequest { name: name.into() })
}

fn created(toy: &mut Toy, name: &str, ranges: u32) -> v1::Keyspace {
    match toy.ask(create(name, ranges)) {
        Ok(Response::CreateKeyspace(answer)) => answer.keyspace.expect("a keyspace"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_keyspace_is_answered_when_its_ranges_are_led_and_then_grows() {
    let mut toy = grown(1, 3, 1);
    let keyspace = created(&mut toy, "orders", 12);
    assert_eq!((keyspace.keyspace_id, keyspace.replicas, keyspace.split_bytes), (2, 3, 256 << 20));
    let of_it = |toy: &Toy| toy.groups.values().filter(|group| group.descriptor.keyspace_id == 2).count();
    assert_eq!(of_it(&toy), 12);
    toy.until("three replicas each", |toy| toy.at_rest(3));
    let led: Vec<usize> = (1..=3).map(|node| toy.led_by(node)).collect();
    assert!(led.iter().all(|led| *led >= 3), "{led:?}");
    toy.steps(10);
    assert!(toy.nodes.values().all(|node| node.keyspaces.iter().any(|keyspace| keyspace.name == "orders")));
    toy.check_settled();
}

#[test]
fn the_largest_keyspace_is_one_write() {
    let mut toy = grown(1, 3, 1);
    created(&mut toy, "wide", 1_000);
    toy.until("three replicas each", |toy| toy.at_rest(3));
    toy.check_settled();
}

#[test]
fn a_dropped_keyspace_leaves_nothing_and_its_ids_do_not_come_back() {
    let mut toy = grown(2, 3, 1);
    let mut last = 1;
    for _ in 0..3 {
        let keyspace = created(&mut toy, "again", 4);
        assert!(keyspace.keyspace_id > last);
        last = keyspace.keyspace_id;
        toy.steps(7);
        toy.ask(drop_it("again")).expect("dropped");
        toy.until("nothing left of it", |toy| {
            let held = |range: &u64| toy.groups[range].descriptor.keyspace_id == last;
            toy.nodes.values().all(|node| !node.replicas.keys().any(held))
        });
        toy.bury(last);
    }
    toy.until("rest", |toy| toy.at_rest(3));
    toy.check_settled();
    assert!(matches!(toy.ask(drop_it("again")), Err(Error::KeyspaceNotFound { .. })));
}

#[test]
fn a_node_that_was_away_when_a_keyspace_was_dropped_removes_it_later() {
    let mut toy = grown(2, 3, 1);
    let keyspace = created(&mut toy, "gone", 4).keyspace_id;
    toy.until("rest", |toy| toy.at_rest(3));
    toy.nodes.get_mut(&3).expect("joined").up = false;
    toy.ask(drop_it("gone")).expect("dropped");
    toy.steps(30);
    toy.reload();
    toy.settle_effects();
    toy.nodes.get_mut(&3).expect("joined").restart();
    toy.until("nothing left", |toy| toy.nodes[&3].replicas.len() == 3);
    toy.bury(keyspace);
    toy.until("rest", |toy| toy.at_rest(3));
}

#[test]
fn ranges_of_a_node_that_dies_before_their_birth_are_born_elsewhere() {
    let mut toy = grown(2, 4, 1);
    // Node 4 is live as far as is known, and gets its share of the births.
    toy.nodes.get_mut(&4).expect("joined").up = false;
    let token = toy.send(create("new", 8));
    toy.until("born", |toy| toy.groups.values().filter(|group| group.descriptor.keyspace_id == 2).count() == 8);
    assert!(toy.answers.remove(&token).is_none_or(|answer| answer.is_ok()));
    toy.until("rest without it", |toy| toy.replicas_on(4) == 0 && toy.at_rest(3));
    toy.nodes.get_mut(&4).expect("joined").restart();
    toy.until("a share", |toy| toy.replicas_on(4) > 0 && toy.at_rest(3));
    toy.check_settled();
}

/// So many nodes, a keyspace with as many ranges that was asked for, and node 3 silent: told to begin its range, it may have.
fn told_and_silent(nodes: u64) -> (Toy, u64) {
    let mut toy = grown(1, nodes, 1);
    toy.faults.answer_lost = 100;
    let token = toy.send(create("told", nodes as u32));
    toy.steps(1);
    toy.nodes.get_mut(&3).expect("joined").up = false;
    toy.faults.answer_lost = 0;
    toy.until("answered", |toy| toy.answers.contains_key(&token));
    (toy, token)
}

/// What was written there, before anyone else knew of it, is not lost while the node may come back.
#[test]
fn a_range_whose_node_was_told_to_make_it_waits_for_the_node() {
    let (mut toy, token) = told_and_silent(3);
    assert!(matches!(toy.answers.remove(&token), Some(Err(Error::Ambiguous { .. }))));
    assert_eq!(toy.groups.values().filter(|group| group.descriptor.keyspace_id == 2).count(), 2);
    toy.nodes.get_mut(&3).expect("joined").restart();
    toy.until("all born", |toy| toy.at_rest(3));
    assert_eq!(toy.groups.values().filter(|group| group.descriptor.keyspace_id == 2).count(), 3);
}

/// A seed of the simulation: a node that was to be emptied was silent for a while, and was taken for one that holds nothing, while clients wrote
/// to a range that it had begun and not reported.
#[test]
fn a_silent_node_that_may_have_begun_a_range_is_not_removed() {
    let (mut toy, _) = told_and_silent(4);
    let leave = v1::DecommissionNodeRequest { node_id: 3, undo: false };
    toy.ask(Request::DecommissionNode(leave)).expect("the others can hold everything");
    toy.steps(400);
    let removed = |toy: &Toy| toy.service.nodes().iter().all(|node| node.node_id != 3);
    assert!(!removed(&toy), "it may have begun its range");
    toy.nodes.get_mut(&3).expect("joined").restart();
    toy.until("it is emptied, and removed", |toy| removed(toy) && toy.replicas_on(3) == 0);
    assert_eq!(toy.groups.values().filter(|group| group.descriptor.keyspace_id == 2).count(), 4);
}

/// A recovery lets it begin again on another node, and tells placement of the loss before that node reports it.
#[test]
fn a_range_that_began_again_before_its_birth_was_reported_is_the_only_one_of_its_span() {
    for reloads in [false, true] {
        let (mut toy, _) = told_and_silent(4);
        toy.steps(100);
        let births = toy.records.all().into_iter().filter_map(|(key, value, _)| Change::decode(&key, &value).ok());
        let birth = births.filter_map(|change| match change {
            Change::Birth(_, record) => record.descriptor,
            _ => None,
        });
        let [lost] = &birth.collect::<Vec<_>>()[..] else { panic!("one range is not born") };
        let replica = v1::ReplicaDescriptor { replica_id: LEAP, node_id: 1, ..Default::default() };
        let epoch = Some(v1::Epoch { conf_ver: LEAP, version: 1 });
        let again = v1::RangeDescriptor { epoch, replicas: vec![replica], next_replica_id: LEAP + 1, ..lost.clone() };
        toy.nodes.get_mut(&1).expect("it lives").replicas.insert(lost.range_id, (LEAP, again.clone()));
        toy.groups.insert(lost.range_id, Group::new(again, 1));
        let gone = v1::RecordRecoveryRequest { plan_id: "p".into(), dead_nodes: vec![3], what: String::new() };
        toy.ask(Request::RecordRecovery(gone)).expect("it is silent");
        if reloads {
            toy.reload();
            toy.settle_effects();
        }
        toy.until("rest without it", |toy| toy.at_rest(3));
        let of_it = toy.groups.values().filter(|group| group.descriptor.keyspace_id == 2);
        assert_eq!(of_it.count(), 4, "reloads: {reloads}");
    }
}

/// Nothing of it is left, and nobody let it begin again.
#[test]
fn another_range_is_born_for_one_that_went_with_its_node() {
    let (mut toy, _) = told_and_silent(4);
    toy.steps(100);
    let gone = v1::RecordRecoveryRequest { plan_id: "p".into(), dead_nodes: vec![3], what: String::new() };
    toy.ask(Request::RecordRecovery(gone)).expect("it is silent");
    toy.until("all born", |toy| toy.groups.values().filter(|group| group.descriptor.keyspace_id == 2).count() == 4);
    toy.until("rest without it", |toy| toy.at_rest(3));
    // Clients who knew the lost one take the other for newer (the simulation's seed 78629).
    let leapt = |group: &&Group| group.descriptor.epoch.is_some_and(|epoch| epoch.conf_ver > 2 * LEAP);
    assert_eq!(toy.groups.values().filter(leapt).count(), 1);
}

#[test]
fn the_default_keyspace_can_be_dropped_and_the_systems_not() {
    let mut toy = grown(2, 3, 1);
    assert!(matches!(toy.ask(drop_it("system")), Err(Error::InvalidArgument { .. })));
    toy.ask(drop_it("default")).expect("dropped");
    toy.until("only the system range is left", |toy| toy.nodes.values().all(|node| node.replicas.len() == 1));
    assert!(toy.service.keyspaces().is_empty());
}

#[test]
fn a_failed_wait_for_a_new_keyspace_is_ambiguous() {
    let mut toy = grown(1, 3, 1);
    let token = toy.send(create("slow", 3));
    for node in toy.nodes.values_mut() {
        node.up = false;
    }
    toy.until("answered", |toy| toy.answers.contains_key(&token));
    assert!(matches!(toy.answers.remove(&token), Some(Err(Error::Ambiguous { .. }))));
}
