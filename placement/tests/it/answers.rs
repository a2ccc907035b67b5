//! What the service answers to questions: they change nothing.

use flotilla_placement::{Request, Response};
use flotilla_proto::{Error, v1};

use crate::growth::grown;
use crate::toy::Toy;
use crate::world::{World, script};

fn explain(toy: &mut Toy, range_id: u64) -> Result<v1::RangeExplainResponse, Error> {
    match toy.ask(Request::Explain(v1::RangeExplainRequest { range_id, history: 0 }))? {
        Response::Explain(answer) => Ok(*answer),
        other => panic!("{other:?}"),
    }
}

fn plan(toy: &mut Toy) -> v1::PlacementPlanResponse {
    match toy.ask(Request::Plan(v1::PlacementPlanRequest {})).expect("a plan") {
        Response::Plan(answer) => answer,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_range_at_rest_has_replicas_with_reasons_and_a_history() {
    let mut toy = grown(4, 3, 1);
    let told = explain(&mut toy, 3).expect("there is such a range");
    assert_eq!(told.replicas.len(), 3);
    assert!(told.replicas.iter().all(|replica| !replica.why.is_empty() && replica.node_state == "live"), "{told:?}");
    let came: Vec<&v1::ReplicaExplained> =
        told.replicas.iter().filter(|replica| replica.why.contains("it came by order")).collect();
    assert_eq!(came.len(), 2, "the first one was born there");
    assert!(told.order.is_none() && told.next.is_empty() && !told.not_now.is_empty());
    assert!(!told.history.is_empty() && !told.leader_why.is_empty() && told.problems.is_empty());
    let unknown = explain(&mut toy, 9_999).expect_err("there is none");
    assert!(unknown.to_string().contains("9999"), "{unknown}");
}

#[test]
fn an_order_under_way_is_told_with_its_step() {
    let mut toy = grown(1, 4, 1);
    let holders: Vec<u64> = toy.groups[&2].descriptor.replicas.iter().map(|replica| replica.node_id).collect();
    let (from, to) = (holders[0], (1..=4).find(|node| !holders.contains(node)).expect("one without"));
    let request = v1::MoveReplicaRequest { range_id: 2, from_node_id: from, to_node_id: to, timeout_ms: 0 };
    toy.ask(Request::MoveReplica(request)).expect("decided");
    let told = explain(&mut toy, 2).expect("there is such a range");
    let order = told.order.expect("it is under way");
    assert_eq!((&order.add_nodes[..], &order.remove_nodes[..]), (&[to][..], &[from][..]));
    assert!(order.step.contains(&format!("node {to}")) && order.since_unix_ms > 0, "{order:?}");
    assert!(told.next.is_empty() && told.not_now.contains("one change at a time"));
}

#[test]
fn a_range_that_lost_its_majority_says_so() {
    let mut toy = grown(1, 3, 1);
    let service = toy.groups[&1].leader;
    for node in (1..=3).filter(|node| *node != service) {
        toy.nodes.get_mut(&node).expect("a node").up = false;
    }
    toy.steps(30);
    let told = explain(&mut toy, 2).expect("it is known");
    assert!(
        told.problems.iter().any(|line| line.starts_with("it has lost its majority: 1 of its 3 voters")),
        "{told:?}"
    );
}

#[test]
fn a_plan_tells_what_comes_next_and_changes_nothing() {
    let mut toy = grown(8, 3, 1);
    assert_eq!(plan(&mut toy), v1::PlacementPlanResponse::default());
    let (records, notes) = (toy.records.all(), toy.notes.len());
    toy.nodes.get_mut(&2).expect("a node").full = true;
    for _ in 0..50 {
        plan(&mut toy);
    }
    // Asking many times wrote nothing, and ordered nothing.
    assert_eq!((toy.records.all(), toy.notes.len()), (records, notes));
}

fn explained(world: &mut World, range_id: u64) -> v1::RangeExplainResponse {
    match world.ask(Request::Explain(v1::RangeExplainRequest { range_id, history: 0 })).expect("there is such a range")
    {
        Response::Explain(answer) => *answer,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_range_that_stands_still_is_told_with_who_takes_it_in() {
    let mut world = World::new(&script::spec("nodes=3 ranges=9"));
    (0..5).for_each(|_| world.step());
    assert!(explained(&mut world, 5).standstill.is_empty());
    let group = world.groups[&5].clone();
    let frozen = |frozen_ms, waits: &str| v1::RangeReport {
        descriptor: Some(group.descriptor.clone()),
        replica_id: 1,
        term: group.term,
        leader_node_id: group.leader,
        frozen: Some(v1::FrozenRange { target_range_id: 4, freeze_index: 9, frozen_ms, waits: waits.into() }),
        ..Default::default()
    };
    world.say(group.leader, vec![frozen(1_000, "the replicas on nodes [3] have not confirmed their standstill")]);
    (0..3).for_each(|_| world.step());
    world.say(group.leader, vec![frozen(4_000, "range 4 is asked to take it in")]);
    let (right, left) = (explained(&mut world, 5), explained(&mut world, 4));
    assert!(right.standstill.contains("by its left neighbour, range 4: range 4 is asked"), "{}", right.standstill);
    assert!(left.standstill.contains("its right neighbour, range 5, serves nothing"), "{}", left.standstill);
    assert_eq!(right.now_unix_ms - right.standstill_since_unix_ms, 4_000);
    assert_eq!(left.standstill_since_unix_ms, right.standstill_since_unix_ms);
    world.say(group.leader, vec![v1::RangeReport { frozen: None, ..frozen(0, "") }]);
    assert!(explained(&mut world, 5).standstill.is_empty());
    // Two of its three nodes go.
    (1..=3).filter(|node| *node != group.leader).for_each(|node| world.kill(node));
    (0..40).for_each(|_| world.step());
    let problems = explained(&mut world, 5).problems;
    assert!(problems.iter().any(|line| line.contains("`flotilla recover plan`")), "{problems:?}");
}
