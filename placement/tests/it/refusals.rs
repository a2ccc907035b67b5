//! Bad requests: each refused with what is wrong and what would be allowed.

use flotilla_placement::{Request, Response};
use flotilla_proto::error::Action;
use flotilla_proto::{Error, v1};

use crate::growth::grown;
use crate::toy::Toy;

fn refused(toy: &mut Toy, request: Request) -> String {
    let error = toy.ask(request.clone()).expect_err(&format!("{request:?}"));
    assert!(!error.hint().is_empty());
    format!("{error} ({})", error.hint())
}

fn move_it(range: u64, from: u64, to: u64, timeout_ms: u64) -> Request {
    let request = v1::MoveReplicaRequest { range_id: range, from_node_id: from, to_node_id: to, timeout_ms };
    Request::MoveReplica(request)
}

#[test]
fn moves_to_where_no_replica_can_be_are_refused() {
    let mut toy = grown(4, 6, 1);
    let range = 2;
    let on: Vec<u64> = toy.groups[&range].voters();
    let off: Vec<u64> = (1..=6).filter(|node| !on.contains(node)).collect();
    assert!(refused(&mut toy, move_it(99, 1, 2, 0)).contains("no range 99"));
    assert!(refused(&mut toy, move_it(range, off[0], off[1], 0)).contains("no replica on node"));
    assert!(refused(&mut toy, move_it(range, on[0], on[1], 0)).contains("already"));
    assert!(refused(&mut toy, move_it(range, on[0], 77, 0)).contains("not known"));
    toy.nodes.get_mut(&off[0]).expect("joined").full = true;
    toy.nodes.get_mut(&off[1]).expect("joined").up = false;
    toy.steps(20);
    assert!(refused(&mut toy, move_it(range, on[0], off[0], 0)).contains("disk space"));
    assert!(refused(&mut toy, move_it(range, on[0], off[1], 0)).contains("silent"));
    let drain = v1::DrainNodeRequest { node_id: off[2], undo: false };
    toy.ask(Request::DrainNode(drain)).expect("drained");
    let words = refused(&mut toy, move_it(range, on[0], off[2], 0));
    assert!(words.contains("drained") && words.contains("no node now"), "{words}");
    toy.steps(120);
    assert!(refused(&mut toy, move_it(range, on[0], off[1], 0)).contains("dead"));
}

#[test]
fn a_move_is_answered_when_it_is_done() {
    let mut toy = grown(1, 4, 1);
    toy.until("rest", |toy| toy.at_rest(3));
    let on = toy.groups[&2].voters();
    let to = (1..=4).find(|node| !on.contains(node)).expect("four nodes");
    let answer = toy.ask(move_it(2, on[0], to, 10_000));
    assert_eq!(answer, Ok(Response::MoveReplica(v1::MoveReplicaResponse { done: true })));
    assert!(toy.groups[&2].holds(to) && !toy.groups[&2].holds(on[0]));
}

#[test]
fn a_range_has_one_order_at_a_time_and_a_wait_ends() {
    let mut toy = grown(1, 4, 1);
    let on = toy.groups[&2].voters();
    let to = (1..=4).find(|node| !on.contains(node)).expect("four nodes");
    toy.ask(move_it(2, on[0], to, 0)).expect("decided");
    assert!(refused(&mut toy, move_it(2, on[1], to, 0)).contains("under way"));
    toy.until("done", |toy| toy.groups[&2].holds(to) && toy.service.orders().is_empty());
    // Its target dies: the move is given up, and said so.
    let on = toy.groups[&2].voters();
    let to = (1..=4).find(|node| !on.contains(node)).expect("four nodes");
    toy.nodes.get_mut(&to).expect("joined").up = false;
    let error = toy.ask(move_it(2, on[0], to, 60_000)).expect_err("the target is gone");
    assert!(error.to_string().contains("nothing is heard"), "{error}");
    assert_eq!(error.action(), Action::Fail, "it is not given once more by itself");
}

/// Its answer may have been lost with the service's last node, or two people want the same.
#[test]
fn a_move_that_is_asked_for_again_is_waited_for() {
    let mut toy = grown(1, 4, 1);
    let on = toy.groups[&2].voters();
    let to = (1..=4).find(|node| !on.contains(node)).expect("four nodes");
    toy.ask(move_it(2, on[0], to, 0)).expect("decided");
    let answer = toy.ask(move_it(2, on[0], to, 10_000));
    assert_eq!(answer, Ok(Response::MoveReplica(v1::MoveReplicaResponse { done: true })));
}

#[test]
fn a_range_that_may_yet_be_reported_is_not_said_to_be_none() {
    let mut toy = grown(1, 4, 1);
    // Nodes hold blocks of ids for children: this one is given out, and the other one is not.
    let child = toy.ask(move_it(3, 1, 4, 0)).expect_err("nobody has reported it");
    assert!(matches!(child, Error::RangeNotFound { .. }), "{child}");
    assert!(refused(&mut toy, move_it(1_000_000_000, 1, 4, 0)).contains("no range 1000000000"));
}

#[test]
fn a_move_that_takes_longer_than_the_wait_is_answered_as_not_done() {
    let mut toy = grown(1, 4, 1);
    let on = toy.groups[&2].voters();
    let to = (1..=4).find(|node| !on.contains(node)).expect("four nodes");
    let answer = toy.ask(move_it(2, on[0], to, 100));
    assert_eq!(answer, Ok(Response::MoveReplica(v1::MoveReplicaResponse { done: false })));
}

#[test]
fn keyspaces_that_cannot_be_are_refused() {
    let mut toy = grown(1, 3, 1);
    let create = |change: &dyn Fn(&mut v1::CreateKeyspaceRequest)| {
        let mut request = v1::CreateKeyspaceRequest { name: "fine".into(), ..Default::default() };
        change(&mut request);
        Request::CreateKeyspace(request)
    };
    assert!(refused(&mut toy, create(&|request| request.name = "a/b".into())).contains('/'));
    assert!(refused(&mut toy, create(&|request| request.name = "system".into())).contains("reserved"));
    assert!(refused(&mut toy, create(&|request| request.name = "default".into())).contains("already"));
    assert!(refused(&mut toy, create(&|request| request.replicas = 8)).contains("1 to 7"));
    assert!(refused(&mut toy, create(&|request| request.ranges = 1_001)).contains("1 to 1000"));
    let rule = Some(v1::split_boundary::Rule::PrefixLen(0));
    let boundary = Some(v1::SplitBoundary { rule });
    assert!(refused(&mut toy, create(&|request| request.boundary = boundary)).contains("1 to 255"));
    assert!(refused(&mut toy, create(&|request| request.split_bytes = Some(3))).contains("3 bytes"));
    let few = create(&|request| request.split_queries_per_s = Some(5));
    assert!(refused(&mut toy, few).contains("at least 100 requests a second, or 0 for never"));
    let set = |split_queries_per_s, split_load_bytes_per_s| {
        let name = "default".into();
        let all = v1::SetKeyspaceRequest { name, split_queries_per_s, split_load_bytes_per_s, ..Default::default() };
        Request::SetKeyspace(all)
    };
    assert!(refused(&mut toy, set(None, Some(4_096))).contains("at least 1048576 bytes a second"));
    assert!(refused(&mut toy, set(Some(1), None)).contains("at least 100"));
    // What is not named stays.
    assert!(toy.ask(set(Some(0), None)).is_ok());
    let Ok(Response::SetKeyspace(now)) = toy.ask(set(None, Some(2 << 20))) else { panic!("it is allowed") };
    let now = now.keyspace.expect("the keyspace");
    assert_eq!((now.split_queries_per_s, now.split_load_bytes_per_s), (Some(0), Some(2 << 20)));
    let cut = v1::SetKeyspaceRequest { name: "system".into(), split_queries_per_s: Some(0), ..Default::default() };
    assert!(refused(&mut toy, Request::SetKeyspace(cut)).contains("never split"));
    let set = v1::SetKeyspaceRequest { name: "none".into(), ..Default::default() };
    assert!(matches!(toy.ask(Request::SetKeyspace(set)), Err(Error::KeyspaceNotFound { .. })));
    let set = v1::SetKeyspaceRequest { name: "system".into(), split_bytes: Some(0), ..Default::default() };
    assert!(refused(&mut toy, Request::SetKeyspace(set)).contains("never split"));
}

#[test]
fn joins_that_do_not_fit_are_refused() {
    let mut toy = Toy::new(1, 1);
    let join = |change: &dyn Fn(&mut v1::JoinRequest)| {
        let mut request = v1::JoinRequest {
            store_id: 5,
            peer_addr: "a:1".into(),
            protocol_min: 1,
            protocol_max: 2,
            ..Default::default()
        };
        change(&mut request);
        Request::Join(request)
    };
    assert!(refused(&mut toy, join(&|request| request.cluster_name = "other".into())).contains("\"toy\""));
    assert!(refused(&mut toy, join(&|request| request.protocol_min = 2)).contains("protocols 2 to 2"));
    assert!(refused(&mut toy, join(&|request| request.store_id = 0)).contains("without an id"));
    toy.ask(join(&|_| {})).expect("a node that fits");
    assert!(refused(&mut toy, join(&|request| request.node_id = 7)).contains("this store is node"));
}

/// A node that comes with a certificate is the one that it names, as long as none has or had that id.
#[test]
fn a_node_joins_as_the_one_that_it_asks_to_be() {
    let mut toy = Toy::new(1, 1);
    let join = |store_id: u64, node_id: u64| {
        let peer_addr = format!("a:{store_id}");
        Request::Join(v1::JoinRequest {
            store_id,
            peer_addr,
            protocol_min: 1,
            protocol_max: 2,
            node_id,
            ..Default::default()
        })
    };
    let mut joined = |store, wanted| match toy.ask(join(store, wanted)) {
        Ok(Response::Join(answer)) => Ok(answer.node_id),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(format!("{error}; {}", error.hint())),
    };
    assert_eq!(joined(50, 9), Ok(9));
    assert_eq!(joined(50, 9), Ok(9), "asked for once more");
    assert_eq!(joined(51, 5), Ok(5), "in whatever order");
    assert_eq!(joined(52, 0), Ok(10), "the others are given the next one that was never used");
    let taken = joined(53, 9).expect_err("another store is node 9");
    assert!(taken.contains("node 9 is in the cluster already") && taken.contains("--id 11"), "{taken}");
    assert!(joined(53, u64::MAX).expect_err("too large").contains("node ids go up to"));
}

#[test]
fn reports_of_strangers_are_refused() {
    let mut toy = grown(1, 3, 1);
    let mut report = |change: &dyn Fn(&mut v1::ReportRequest)| {
        let mut request = toy.report_of(2);
        change(&mut request);
        let error = toy.ask(Request::Report(Box::new(request))).expect_err("a stranger");
        assert!(matches!(error, Error::ClusterMismatch { .. }));
        error.to_string()
    };
    assert!(report(&|request| request.cluster_id = 7).contains("belongs to cluster 7"));
    assert!(report(&|request| request.store_id = 7).contains("is store"));
    assert!(report(&|request| request.node.as_mut().expect("a node").node_id = 9).contains("no node 9"));
}

#[test]
fn the_last_node_that_can_lead_is_not_drained() {
    let mut toy = grown(1, 3, 1);
    let drain = |node_id| Request::DrainNode(v1::DrainNodeRequest { node_id, undo: false });
    toy.ask(drain(1)).expect("drained");
    toy.ask(drain(2)).expect("drained");
    assert!(refused(&mut toy, drain(3)).contains("no other live node"));
    assert!(refused(&mut toy, drain(9)).contains("no node 9"));
}
