//! The client over loopback while the cluster grows: keyspaces come and go, ranges split and move,
//! and no request fails for it.

use std::time::Duration;

use bytes::Bytes;
use flotilla_proto::{Error, NodeId, RangeId, v1};
use flotilla_router::{Client, ClientConfig, DeleteOptions, Expect, ScanOptions, SplitAt, WriteOp};

use crate::fake_node::{World, cluster};

fn create(name: &str) -> v1::CreateKeyspaceRequest {
    v1::CreateKeyspaceRequest { name: name.into(), ..Default::default() }
}

async fn value(client: &Client, key: &'static str) -> Option<Bytes> {
    client.get(key).await.expect("read").map(|record| record.value)
}

async fn keys(client: &Client) -> Vec<Bytes> {
    let mut pages = client.scan_pages(ScanOptions { limit: 3, ..ScanOptions::all() });
    let mut keys = vec![];
    while let Some(page) = pages.next().await.expect("read") {
        keys.extend(page.records.into_iter().map(|record| record.key));
    }
    keys
}

#[tokio::test]
async fn keyspaces_hold_the_same_keys_side_by_side() {
    let (world, _nodes, client) = cluster().await;
    client.create_keyspace(create("jobs")).await.expect("created");
    let jobs = client.keyspace("jobs");
    client.put("a", "default").await.expect("written");
    jobs.put("a", "jobs").await.expect("written");
    assert_eq!((value(&client, "a").await, value(&jobs, "a").await), (Some("default".into()), Some("jobs".into())));
    assert_eq!(value(&client.keyspace("default"), "a").await, Some("default".into()));
    let batch = vec![WriteOp::Put { key: "b".into(), value: "2".into() }];
    jobs.batch(batch, true).await.expect("written");
    assert_eq!((keys(&client).await.len(), keys(&jobs).await.len()), (1, 2));
    // Created by somebody else: found by a look at the routes.
    world.truth().add_keyspace("more");
    client.keyspace("more").put("a", "more").await.expect("written");
}

#[tokio::test]
async fn a_keyspace_that_there_is_not_is_named() {
    let (world, _nodes, client) = cluster().await;
    for name in ["jobs", "system", "Default"] {
        let missing = client.keyspace(name).put("a", "1").await;
        assert_eq!(missing, Err(Error::KeyspaceNotFound { name: name.into() }));
    }
    assert!(world.truth().arrived.is_empty());
    client.create_keyspace(create("other")).await.expect("created");
    client.create_keyspace(create("jobs")).await.expect("created");
    let jobs = client.keyspace("jobs");
    jobs.put("a", "1").await.expect("written");
    client.drop_keyspace("jobs").await.expect("dropped");
    assert_eq!(jobs.put("a", "2").await, Err(Error::KeyspaceNotFound { name: "jobs".into() }));
    client.create_keyspace(create("jobs")).await.expect("created");
    assert_eq!(value(&jobs, "a").await, None, "a new one of the same name");
}

#[tokio::test]
async fn a_split_that_others_make_fails_no_request() {
    let (world, _nodes, client) = cluster().await;
    let all = ["a", "d", "g", "k", "p", "t", "z"];
    for key in all {
        client.put(key, "1").await.expect("written");
    }
    world.truth().split(2, &"f".into(), NodeId(2));
    world.truth().split(3, &"s".into(), NodeId(1));
    client.put("g", "2").await.expect("written to the child");
    client.put("a", "2").await.expect("written to the parent");
    assert_eq!(keys(&client).await, all);
    assert_eq!(client.delete("t").await.map(|written| written.existed), Ok(true));

    let mut pages = client.scan_pages(ScanOptions { limit: 2, reverse: true, ..ScanOptions::all() });
    let mut seen: Vec<Bytes> = vec![];
    let borders = ["c", "e", "h"];
    let mut at = 0;
    while let Some(page) = pages.next().await.expect("read") {
        seen.extend(page.records.into_iter().map(|record| record.key));
        // Under way, the range that is read next splits.
        if let Some(border) = borders.get(at) {
            let range = world.truth().ranges.values().find(|range| holds(range, border)).map(|range| range.range_id);
            world.truth().split(range.expect("the ranges tile the keyspace"), &(*border).into(), NodeId(1));
            at += 1;
        }
    }
    assert_eq!(seen, ["z", "p", "k", "g", "d", "a"]);
}

fn holds(range: &v1::RangeDescriptor, key: &str) -> bool {
    range.keyspace_id == 1 && *range.start < *key.as_bytes() && (range.end.is_empty() || *key.as_bytes() < *range.end)
}

#[tokio::test]
async fn a_split_by_the_client_is_known_to_it_at_once() {
    let (world, _nodes, client) = cluster().await;
    client.split_range(RangeId(3), SplitAt::Keys(vec!["t".into()])).await.expect("split");
    client.put("z", "1").await.expect("written");
    assert_eq!(world.truth().arrived, ["z"], "no refusal on the way");
}

#[tokio::test]
async fn a_range_that_moved_away_is_found() {
    let (world, _nodes, client) = cluster().await;
    client.put("a", "1").await.expect("written");
    world.truth().move_to(2, NodeId(2));
    client.put("a", "2").await.expect("written");
    assert_eq!(value(&client, "a").await, Some("2".into()));
}

#[tokio::test]
async fn a_node_that_has_just_joined_is_found() {
    let (world, _nodes, client) = cluster().await;
    client.put("a", "1").await.expect("written");
    let _third = world.start(3);
    world.truth().move_to(2, NodeId(3));
    client.put("a", "2").await.expect("its address comes with the routes");
    assert_eq!(value(&client, "a").await, Some("2".into()));
}

#[tokio::test]
async fn a_node_that_knows_nothing_yet_is_not_the_only_one_asked() {
    let world = World::new();
    let [_first, second] = [world.start(1), world.start(2)];
    world.truth().blank.insert(2);
    let client = Client::connect([second.address.to_string()], ClientConfig::default()).await.expect("node 2 answers");
    client.put("a", "1").await.expect("node 1 knows the range");
}

#[tokio::test]
async fn a_span_is_deleted_over_borders_that_move_meanwhile() {
    let (world, _nodes, client) = cluster().await;
    let data = (0..3_000).map(|number| (Bytes::from(format!("{number:04}")), (Bytes::new(), 1)));
    world.truth().data.extend(data);
    world.truth().split(2, &"1".into(), NodeId(2));
    let limited = DeleteOptions { limit: 1_000, ..DeleteOptions::span("0500", "2500") };
    let mut parts = client.delete_parts(limited);
    let mut counts = vec![];
    while let Some(part) = parts.next().await.expect("deleted") {
        counts.push(part.count);
        if parts.position().is_some() {
            world.truth().split(4, &"16".into(), NodeId(1));
        }
    }
    assert_eq!(counts, [1_000, 1_000]);
    assert_eq!(world.truth().data.len(), 1_000);
    let some = client.delete_range(DeleteOptions { limit: 100, ..DeleteOptions::prefix("0") }).await.expect("deleted");
    assert_eq!((some.count, some.next_key()), (100, Some("0100".into())));
    let rest = client.delete_range(DeleteOptions::prefix("0")).await.expect("deleted");
    assert_eq!((rest.count, rest.next_key()), (400, None));
    client.create_keyspace(create("jobs")).await.expect("created");
    client.keyspace("jobs").put("0", "1").await.expect("written");
    let all = client.keyspace("jobs").delete_range(DeleteOptions::all()).await.expect("deleted");
    assert_eq!((all.count, world.truth().data.len()), (1, 500));
}

#[tokio::test]
async fn a_ttl_goes_with_the_write_and_comes_with_the_record() {
    let (world, _nodes, client) = cluster().await;
    client.put_with_ttl("a", "1", Duration::from_secs(60)).await.expect("written");
    assert_eq!(world.truth().ttls[&Bytes::from("a")], 60_000);
    let record = client.get("a").await.expect("read").expect("there");
    assert_eq!(record.ttl, Some(Duration::from_secs(60)));
    let swap = client.compare_and_swap_with_ttl("a", Expect::Value("1".into()), "2", Duration::from_nanos(1)).await;
    assert!(swap.expect("answered").applied);
    assert_eq!(world.truth().ttls[&Bytes::from("a")], 1, "less than a millisecond is not for ever");
    let op = WriteOp::PutWithTtl { key: "b".into(), value: "1".into(), ttl: Duration::from_millis(7) };
    client.batch(vec![op], false).await.expect("written");
    assert_eq!(world.truth().ttls[&Bytes::from("b")], 7);
    client.put("a", "3").await.expect("written");
    assert_eq!(client.get("a").await.expect("read").expect("there").ttl, None);
    let endless = client.put_with_ttl("a", "1", Duration::MAX).await;
    assert!(matches!(endless, Err(Error::InvalidArgument { .. })), "{endless:?}");
}
