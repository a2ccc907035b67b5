//! Two clusters whose ranges, nodes and epochs are the same by their numbers: nothing of one gets into the other.

use std::time::Duration;

use flotilla_proto::error::Action;
use flotilla_proto::{NodeId, RangeId};
use flotilla_router::Client;

use crate::fake_node::{World, config};

/// Two worlds of two nodes each, of clusters 7 and 8.
fn worlds() -> [World; 2] {
    let worlds = [World::new(), World::new()];
    for (world, id) in worlds.iter().zip([7, 8]) {
        world.truth().cluster = id;
    }
    worlds
}

#[tokio::test]
async fn a_stranger_at_a_leaders_address_gets_nothing_and_the_leader_is_found_elsewhere() {
    let [ours, theirs] = worlds();
    let [first, _second] = [ours.start(1), ours.start(2)];
    let client = Client::connect([first.address.to_string()], config()).await.expect("node 1 answers");
    let stranger = theirs.start(2);
    // r3 is led by node 2, and the stranger listens where node 2 did.
    let real = ours.truth().addresses.insert(2, stranger.address).expect("it has one");
    client.list_ranges().await.expect("node 1 answers");
    let lost = client.with_timeout(Duration::from_millis(400)).put("z", "1").await.expect_err("node 2 leads");
    assert_eq!(lost.action(), Action::Retry, "surely not written: {lost}");
    let drained = client.with_timeout(Duration::from_millis(400)).drain_node(NodeId(1), false).await;
    assert!(drained.is_err(), "the placement service is node 2's: {drained:?}");
    assert!(theirs.truth().data.is_empty() && theirs.truth().orders.is_empty());
    ours.truth().leaders.insert(3, NodeId(1));
    client.put("z", "2").await.expect("node 1 leads by now");
    // A new address is used at once.
    ours.truth().addresses.insert(2, real);
    ours.truth().leaders.insert(3, NodeId(2));
    client.list_ranges().await.expect("node 1 answers");
    client.put("z", "3").await.expect("written");
    assert!(client.transfer_leader(RangeId(3), NodeId(1)).await.is_ok());
    assert!(theirs.truth().data.is_empty());
}

#[tokio::test]
async fn of_addresses_of_two_clusters_the_first_that_answers_counts() {
    let [ours, theirs] = worlds();
    let [first, stranger] = [ours.start(1), theirs.start(1)];
    ours.truth().leaders.insert(3, NodeId(1));
    let addresses = [first.address.to_string(), stranger.address.to_string()];
    let client = Client::connect(addresses.clone(), config()).await.expect("both answer");
    client.put("z", "1").await.expect("written");
    for _ in 0..4 {
        let routes = client.list_ranges().await.expect("its own node answers, in whatever turn");
        assert_eq!(routes.cluster_id, 7);
    }
    first.stop().await;
    let error = client.list_ranges().await.expect_err("nobody of it is left").to_string();
    let says = |word: &str| assert!(error.contains(word), "\"{word}\" is not in: {error}");
    says(&format!("the node at {} belongs to cluster 0000000000000008", addresses[1]));
    says(&format!("not to cluster 0000000000000007, which {} belongs to", addresses[0]));
    assert!(theirs.truth().data.is_empty());
    // Told which one is meant, it does not take the other at all.
    let config = flotilla_router::ClientConfig { cluster_id: 9, ..config() };
    let refused =
        Client::connect([stranger.address.to_string()], config).await.expect_err("another cluster").to_string();
    assert!(refused.contains("0000000000000009"), "{refused}");
}
