//! Reports that are lost, repeated, late and in another order; answers that are lost; addresses that change.

use flotilla_placement::{Request, Response};
use flotilla_proto::{Error, v1};

use crate::growth::grown;
use crate::toy::Toy;
use crate::world::{World, script};

#[test]
fn a_bad_network_slows_and_breaks_nothing() {
    for seed in 1..=20 {
        let mut toy = Toy::new(8, seed);
        toy.faults.report_lost = 15;
        toy.faults.answer_lost = 15;
        toy.faults.report_late = 15;
        toy.faults.report_twice = 15;
        for store in 2..=4 {
            toy.join(100 + store);
        }
        let replicated = |toy: &Toy| toy.groups.values().all(|group| group.is_simple() && group.voters().len() == 3);
        toy.until("three replicas", replicated);
        toy.faults = Default::default();
        toy.until("rest", |toy| toy.at_rest(3) && toy.late.is_empty());
        toy.steps(5);
        toy.check_settled();
    }
}

#[test]
fn a_node_may_come_back_at_another_address() {
    let mut toy = grown(2, 3, 1);
    toy.nodes.get_mut(&2).expect("joined").restart();
    toy.steps(2);
    let node = toy.service.nodes().into_iter().find(|node| node.node_id == 2).expect("known");
    assert_eq!(node.peer_addr, "n2:2");
}

#[test]
fn a_node_that_joined_and_never_came_up_holds_nothing_up() {
    let mut toy = Toy::new(8, 1);
    let ghost = toy.join(109);
    toy.nodes.get_mut(&ghost).expect("joined").up = false;
    toy.join(102);
    toy.join(103);
    let steps = toy.until("three replicas", |toy| toy.at_rest(3));
    assert!(steps < 30, "{steps} steps");
}

#[test]
fn large_tables_come_in_pages() {
    let mut config = crate::toy::config();
    config.answer_routes_bytes = 500;
    let mut toy = Toy::with(200, 1, config);
    toy.join(102);
    toy.join(103);
    toy.until("rest", |toy| toy.at_rest(3));
    toy.steps(60);
    toy.check_settled();
    // A node that begins with nothing gets all of it, page by page.
    toy.nodes.get_mut(&3).expect("joined").restart();
    toy.steps(60);
    toy.until("rest", |toy| toy.at_rest(3));
    toy.steps(60);
    toy.check_settled();
}

#[test]
fn nothing_is_decided_before_all_living_nodes_have_reported() {
    let mut toy = grown(8, 4, 1);
    // The service is loaded anew, and one node cannot reach it: nothing of its replicas may be rebuilt yet.
    for node in [3, 4] {
        toy.nodes.get_mut(&node).expect("joined").up = false;
    }
    toy.reload();
    toy.settle_effects();
    let moves = toy.moves;
    toy.steps(95);
    assert_eq!(toy.moves, moves);
    assert!(!toy.service.complete());
    toy.nodes.get_mut(&4).expect("joined").restart();
    toy.until("rebuilt on three nodes", |toy| toy.replicas_on(3) == 0 && toy.at_rest(3));
}

/// A node that is down is waited for a moment, not until it is dead: else each change of the service would stop all
/// repair and draining for minutes where one node is gone for good.
#[test]
fn a_node_that_is_down_holds_nothing_up_for_long_under_a_new_service() {
    let mut toy = grown(6, 5, 1);
    toy.nodes.get_mut(&5).expect("joined").up = false;
    toy.steps(40);
    toy.reload();
    toy.settle_effects();
    let held = toy.replicas_on(5);
    let drain = || Request::DrainNode(v1::DrainNodeRequest { node_id: 2, undo: false });
    let too_early = toy.ask(drain()).expect_err("nobody has reported");
    assert!(matches!(too_early, Error::Unavailable { .. }), "{too_early}");
    let moved = v1::MoveReplicaRequest { range_id: 2, from_node_id: 1, to_node_id: 2, ..Default::default() };
    let too_early = toy.ask(Request::MoveReplica(moved)).expect_err("it is not known");
    assert!(matches!(too_early, Error::Unavailable { .. }), "{too_early}");
    toy.steps(3);
    toy.ask(drain()).expect("drained");
    let create = v1::CreateKeyspaceRequest { name: "orders".into(), ranges: 4, ..Default::default() };
    toy.ask(Request::CreateKeyspace(create)).expect("created");
    let grown = |toy: &Toy| toy.groups.values().all(|group| group.voters().len() == 3);
    let took = toy.until("all done", |toy| toy.led_by(2) == 0 && grown(toy));
    assert!(took < 60, "{took} steps");
    assert!(!toy.service.complete() && toy.replicas_on(5) == held, "and no replica of a node that may come back goes");
}

/// The table knows range 2 at conf_ver 1, with replica 1 on node 1, and 2 as the next id.
#[test]
fn a_replica_is_removed_only_on_proof() {
    let mut toy = Toy::new(1, 1);
    toy.join(102);
    toy.steps(2);
    let removed = |toy: &mut Toy, replica_id, conf_ver| {
        let mut descriptor = toy.groups[&2].descriptor.clone();
        descriptor.epoch = Some(v1::Epoch { conf_ver, version: 1 });
        toy.nodes.get_mut(&2).expect("joined").sequence += 1;
        let mut report = toy.report_of(2);
        report.ranges = vec![v1::RangeReport { descriptor: Some(descriptor), replica_id, ..Default::default() }];
        match toy.ask(Request::Report(Box::new(report))) {
            Ok(Response::Report(answer)) => answer.removed.iter().map(|gone| gone.replica_id).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        }
    };
    // It has applied less than is known, and what is known does not name it.
    assert_eq!(removed(&mut toy, 1, 0), [1]);
    // It was added after what is known.
    assert!(removed(&mut toy, 2, 0).is_empty());
    // It has applied as much: it goes by itself.
    assert!(removed(&mut toy, 1, 1).is_empty());
}

#[test]
fn nodes_are_told_only_when_their_list_has_changed() {
    let mut world = World::new(&script::spec("nodes=3 ranges=9"));
    (0..5).for_each(|_| world.step());
    let answer = world.say(2, Vec::new());
    assert!(answer.nodes.is_empty() && answer.nodes_version > 0, "{answer:?}");
    assert_eq!(world.join(Vec::new()), 4);
    let answer = world.say(2, Vec::new());
    assert_eq!(answer.nodes.len(), 4);
    (0..5).for_each(|_| world.step());
    assert!(world.say(2, Vec::new()).nodes.is_empty());
    // Another reign counts anew: what a node has of the one before says nothing to it.
    world.move_service();
    assert_eq!(world.say(2, Vec::new()).nodes.len(), 4);
}
