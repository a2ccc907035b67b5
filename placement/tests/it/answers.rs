//! What the service answers to questions: they change nothing.

use flotilla_placement::{Request, Response};
use flotilla_proto::{Error, v1};

use crate::growth::grown;
use crate::toy::Toy;

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
