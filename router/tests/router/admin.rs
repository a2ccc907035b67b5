//! Orders over loopback: they reach the leader that they belong to, wherever it is by then, and are
//! not given twice.

use std::time::Duration;

use flotilla_proto::{Error, NodeId, RangeId, v1};
use flotilla_router::{PlacementClient, SplitAt};

use crate::fake_node::{World, cluster};

#[tokio::test]
async fn orders_about_a_range_reach_its_leader() {
    let (world, _nodes, client) = cluster().await;
    let ranges = client.split_range(RangeId(3), SplitAt::Keys(vec!["p".into()])).await.expect("split");
    let borders: Vec<_> = ranges.iter().map(|range| range.start.clone()).collect();
    assert_eq!(borders, ["m", "p"]);
    world.truth().leaders.insert(3, NodeId(1));
    client.split_range(RangeId(3), SplitAt::Parts(4)).await.expect("the hint is followed");
    assert_eq!(client.check_range(RangeId(2)).await.map(|answer| answer.index), Ok(7));
    assert_eq!(world.truth().orders, ["n2 split [b\"p\"] 0", "n1 split [] 4", "n1 check"]);
    let missing = client.check_range(RangeId(99)).await;
    assert_eq!(missing, Err(Error::RangeNotFound { range: RangeId(99) }));
    let events = client.range_events(NodeId(2), RangeId(2)).await.expect("asked");
    assert_eq!(events[0].node_id, 2);
    assert_eq!(client.range_checksum(NodeId(1), RangeId(2), 5, 9).await.map(|answer| answer.index), Ok(9));
}

#[tokio::test]
async fn orders_to_the_placement_service_reach_the_leader_of_the_system_range() {
    let (world, _nodes, client) = cluster().await;
    let moved = client.move_replica(RangeId(2), NodeId(1), NodeId(2), None).await;
    assert_eq!(moved, Ok(false), "it is decided");
    world.truth().leaders.insert(1, NodeId(1));
    let moved = client.move_replica(RangeId(2), NodeId(1), NodeId(2), Some(Duration::from_secs(9))).await;
    assert_eq!(moved, Ok(true), "it is done");
    client.drain_node(NodeId(2), false).await.expect("ordered");
    assert_eq!(world.truth().orders, ["n2 move r2 n1 n2", "n1 move r2 n1 n2", "n1 drain n2 false"]);
}

#[tokio::test]
async fn questions_to_the_placement_service_follow_it() {
    let (world, _nodes, client) = cluster().await;
    let request = v1::PlacementHistoryRequest { range_id: 5, ..Default::default() };
    assert_eq!(client.placement_history(request).await.map(|answer| answer.kept), Ok(7));
    world.truth().leaders.insert(1, NodeId(1));
    client.placement_history(request).await.expect("the hint is followed");
    assert_eq!(world.truth().orders, ["n2 history r5", "n1 history r5"]);
    world.truth().orders.clear();
    assert_eq!(client.explain_range(RangeId(5), 3).await.map(|answer| answer.next), Ok("nothing".into()));
    client.placement_plan().await.expect("planned");
    assert_eq!(client.placement_status().await.map(|answer| answer.node_id), Ok(1));
    let merged = client.merge_ranges(RangeId(2), RangeId(3), Duration::from_secs(1)).await;
    assert_eq!(merged.map(|answer| answer.done), Ok(true));
    assert_eq!(client.decommission_node(NodeId(2), false).await.map(|answer| answer.replicas), Ok(4));
    assert_eq!(client.maintain_node(NodeId(2), Duration::from_secs(2)).await.map(|answer| answer.leaders), Ok(3));
    let told = ["explain r5", "plan", "status", "merge r2 r3", "decommission n2 false", "maintain n2 2000"];
    assert_eq!(world.truth().orders, told.map(|order| format!("n1 {order}")));
}

#[tokio::test]
async fn keyspaces_are_created_listed_changed_and_dropped() {
    let (_world, _nodes, client) = cluster().await;
    let request = v1::CreateKeyspaceRequest { name: "jobs".into(), ..Default::default() };
    let created = client.create_keyspace(request.clone()).await.expect("created");
    let twice = client.create_keyspace(request).await;
    assert_eq!(twice, Err(Error::KeyspaceExists { name: "jobs".into() }));
    let change = v1::SetKeyspaceRequest { name: "jobs".into(), replicas: Some(5), ..Default::default() };
    assert_eq!(client.set_keyspace(change).await.map(|keyspace| keyspace.replicas), Ok(5));
    let listed = client.list_keyspaces().await.expect("listed");
    assert_eq!((listed.len(), listed[0].keyspace_id), (1, created.keyspace_id));
    client.drop_keyspace("jobs").await.expect("dropped");
    let gone = client.drop_keyspace("jobs").await;
    assert_eq!(gone, Err(Error::KeyspaceNotFound { name: "jobs".into() }));
}

#[tokio::test]
async fn an_order_whose_answer_is_lost_is_not_given_twice() {
    let (world, _nodes, client) = cluster().await;
    world.truth().hold_orders = true;
    let hasty = client.with_timeout(Duration::from_millis(200));
    let request = v1::CreateKeyspaceRequest { name: "jobs".into(), ..Default::default() };
    let lost = hasty.create_keyspace(request).await;
    assert!(matches!(lost, Err(Error::Ambiguous { .. })), "{lost:?}");
    assert_eq!(world.truth().orders, ["n2 create jobs"]);
}

#[tokio::test]
async fn without_a_connection_an_order_is_surely_not_given() {
    let (world, [first, second], client) = cluster().await;
    first.stop().await;
    second.stop().await;
    let failed = client.with_timeout(Duration::from_millis(300)).drop_keyspace("jobs").await;
    assert!(matches!(failed, Err(Error::Timeout { .. })), "{failed:?}");
    assert!(world.truth().orders.is_empty());
}

#[tokio::test]
async fn a_node_reports_to_whoever_leads_the_system_range() {
    let world = World::new();
    let [first, _second] = [world.start(1), world.start(2)];
    let client =
        PlacementClient::new([first.address.to_string()], Duration::from_millis(500), 0, None).expect("an address");
    let limit = Duration::from_secs(5);
    let joined = client.join(v1::JoinRequest { store_id: 8, ..Default::default() }, limit).await.expect("joined");
    assert_eq!(joined.node_id, 9);
    let report = |sequence| client.report(v1::ReportRequest { sequence, ..Default::default() }, limit);
    assert_eq!(report(1).await.map(|answer| answer.reign), Ok(4));
    world.truth().leaders.insert(1, NodeId(1));
    report(2).await.expect("the hint is followed");
    client.learn_leader(NodeId(2));
    report(3).await.expect("a wrong hint does no harm");
    assert_eq!(world.truth().orders, ["n2 join s8", "n2 report 1", "n1 report 2", "n1 report 3"]);
    first.stop().await;
    let failed = client.report(v1::ReportRequest::default(), Duration::from_millis(300)).await;
    assert!(matches!(failed, Err(Error::Timeout { .. })), "node 2 does not lead: {failed:?}");
    for bad in [vec![], vec!["not an address"]] {
        assert!(PlacementClient::new(bad, limit, 0, None).is_err());
    }
}
