//! The client over loopback: what it can do, and what it says when streams break, answers come
//! late, out of order, too large or not at all.

use std::time::Duration;

use bytes::Bytes;
use flotilla_proto::{Error, NodeId, RangeId};
use flotilla_router::{Client, ClientConfig, Expect, ScanOptions, WriteOp};

use crate::fake_node::{Manner, World, cluster, cluster_with, config};

fn put(key: &'static str, value: &'static str) -> WriteOp {
    WriteOp::Put { key: key.into(), value: value.into() }
}

#[tokio::test]
async fn every_operation_reaches_its_range_and_comes_back() {
    let (_world, _nodes, client) = cluster().await;
    assert_eq!(client.get("a").await, Ok(None));
    let first = client.put("a", "1").await.expect("written");
    assert!(first.applied);
    let record = client.get("a").await.expect("read").expect("there");
    assert_eq!((record.key, record.value, record.version), ("a".into(), "1".into(), first.version));
    let second = client.put_if_absent("a", "2").await.expect("answered");
    assert!(!second.applied && second.existed);

    let stale = Expect::Version(first.version + 100);
    let refused = client.compare_and_swap("a", stale, Some("3".into())).await.expect("answered");
    let current = refused.current.expect("the current record");
    assert_eq!((refused.applied, current.key, current.value), (false, "a".into(), "1".into()));
    let swapped = client.compare_and_swap("a", Expect::Value("1".into()), Some("3".into())).await.expect("answered");
    assert!(swapped.applied);

    let results = client.batch(vec![put("z", "26"), put("b", "2"), put("x", "24")], false).await.expect("answered");
    assert!(results.iter().all(|result| result.as_ref().is_ok_and(|written| written.applied)));
    let records = client.multi_get(["x", "nothing", "b"]).await.expect("read");
    let values: Vec<Option<Bytes>> = records.into_iter().map(|record| record.map(|record| record.value)).collect();
    assert_eq!(values, [Some("24".into()), None, Some("2".into())]);
    let spans = client.batch(vec![put("a", "1"), put("z", "1")], true).await;
    assert_eq!(spans, Err(Error::BatchSpansRanges { borders: vec!["m".into()] }));

    assert!(client.delete("z").await.expect("answered").existed);
    let page = client.scan(ScanOptions::all()).await.expect("read");
    let keys: Vec<Bytes> = page.records.into_iter().map(|record| record.key).collect();
    assert_eq!((keys, page.count), (vec!["a".into(), "b".into(), "x".into()], 3));
}

#[tokio::test]
async fn pages_follow_each_other_to_the_end() {
    let (world, _nodes, client) = cluster().await;
    for number in 0..10 {
        let key = format!("{}{number}", if number < 5 { "a" } else { "z" });
        world.truth().data.insert(key.into(), (Bytes::new(), 1));
    }
    for reverse in [false, true] {
        let mut pages = client.scan_pages(ScanOptions { limit: 3, reverse, ..ScanOptions::all() });
        let mut sizes = vec![];
        while let Some(page) = pages.next().await.expect("read") {
            sizes.push(page.records.len());
        }
        assert_eq!(sizes, [3, 3, 3, 1]);
    }
}

#[tokio::test]
async fn a_moved_leader_is_found() {
    let (world, _nodes, client) = cluster().await;
    client.put("a", "1").await.expect("written");
    world.truth().leaders.insert(2, NodeId(2));
    client.put("a", "2").await.expect("written");
    assert_eq!(client.get("a").await.expect("read").expect("there").value, "2");
}

#[tokio::test]
async fn answers_out_of_order_find_their_callers() {
    let (world, _nodes, client) = cluster().await;
    world.truth().data.extend([("a".into(), ("1".into(), 1)), ("b".into(), ("2".into(), 2))]);
    world.behave(Manner::Hold);
    let reads = async { tokio::join!(client.get("a"), client.get("b")) };
    let release = async {
        world.until(|truth| truth.arrived.len() == 2).await;
        world.behave(Manner::Answer);
    };
    let ((a, b), ()) = tokio::join!(reads, release);
    assert_eq!(a.expect("read").expect("there").value, "1");
    assert_eq!(b.expect("read").expect("there").value, "2");
}

#[tokio::test]
async fn what_is_queued_together_goes_out_together() {
    let (world, _nodes, client) = cluster().await;
    client.get("a").await.expect("read");
    let before = world.truth().batches;
    let reads: Vec<_> = (0..200)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move { client.get(format!("a{number}")).await })
        })
        .collect();
    for read in reads {
        assert_eq!(read.await.expect("no panic"), Ok(None));
    }
    let batches = world.truth().batches - before;
    assert!(batches <= 20, "200 requests went out in {batches} messages");
    assert_eq!(world.truth().streams, 1, "one stream per node, and one node was asked");
}

#[tokio::test]
async fn a_stream_that_breaks_makes_writes_ambiguous_and_reads_go_on() {
    let (world, _nodes, client) = cluster().await;
    client.put("a", "1").await.expect("written");
    world.behave(Manner::Break);
    let broken = client.put("a", "2").await;
    assert!(matches!(broken, Err(Error::Ambiguous { .. })), "{broken:?}");
    let read = client.get("a");
    let heal = async {
        let streams = world.truth().streams;
        world.until(|truth| truth.streams > streams).await;
        world.behave(Manner::Answer);
    };
    let (read, ()) = tokio::join!(read, heal);
    assert_eq!(read.expect("read").expect("there").value, "1");
    client.put("a", "3").await.expect("the next stream works");
}

#[tokio::test]
async fn a_node_that_says_that_it_stops_answers_what_it_was_sent_and_is_sent_no_more_on_that_stream() {
    let (world, _nodes, client) = cluster().await;
    world.behave(Manner::Hold);
    let put = tokio::spawn({
        let client = client.clone();
        async move { client.put("a", "1").await }
    });
    world.until(|truth| truth.arrived.iter().any(|key| key == "a")).await;
    let streams = world.truth().streams;
    world.behave(Manner::Leave);
    put.await.expect("no panic").expect("what was sent is answered");
    // The fake node ends a stream on which more is sent: this write's outcome would then be unknown.
    world.behave(Manner::Answer);
    client.put("a", "2").await.expect("on another stream");
    assert_eq!(world.truth().streams, streams + 1);
}

#[tokio::test]
async fn at_the_deadline_a_write_under_way_is_ambiguous_and_a_read_timed_out() {
    let (world, _nodes, client) = cluster().await;
    client.put("a", "1").await.expect("written");
    world.behave(Manner::Hold);
    let hasty = client.with_timeout(Duration::from_millis(250));
    let started = std::time::Instant::now();
    let (write, read) = tokio::join!(hasty.put("a", "2"), hasty.get("a"));
    assert!(matches!(write, Err(Error::Ambiguous { .. })), "{write:?}");
    assert!(matches!(read, Err(Error::Timeout { .. })), "{read:?}");
    assert!(started.elapsed() >= Duration::from_millis(250));
}

#[tokio::test]
async fn a_write_that_was_not_sent_is_surely_not_applied() {
    let (world, [first, second], client) = cluster().await;
    first.stop().await;
    second.stop().await;
    let failed = client.with_timeout(Duration::from_millis(300)).put("a", "1").await;
    assert!(matches!(failed, Err(Error::Timeout { .. })), "{failed:?}");
    assert!(world.truth().arrived.is_empty());
}

#[tokio::test]
async fn a_node_that_comes_back_elsewhere_is_found() {
    let (world, [first, _second], client) = cluster().await;
    client.put("a", "1").await.expect("written");
    client.list_nodes().await.expect("listed");
    first.stop().await;
    let _first = world.start(1);
    assert_eq!(client.get("a").await.expect("read").expect("there").value, "1");
    client.put("a", "2").await.expect("written");
}

#[tokio::test]
async fn a_node_that_has_moved_is_not_asked_at_its_old_address() {
    let (world, _nodes, client) = cluster().await;
    world.behave(Manner::Hold);
    let early = tokio::spawn({
        let client = client.clone();
        async move { client.put("a", "1").await }
    });
    world.until(|truth| truth.arrived.len() == 1).await;
    // The old address still answers: another node may have it by now.
    let _moved = world.start(1);
    client.list_nodes().await.expect("listed");
    let late = tokio::spawn({
        let client = client.clone();
        async move { client.put("b", "1").await }
    });
    tokio::task::yield_now().await;
    world.behave(Manner::Answer);
    early.await.expect("no panic").expect("what was under way is answered at the old address");
    late.await.expect("no panic").expect("written");
    assert_eq!(world.truth().streams, 2, "one at each address");
}

#[tokio::test]
async fn a_call_dropped_before_it_was_sent_is_never_sent() {
    let (world, _nodes, client) = cluster_with(ClientConfig { in_flight_max: 1, ..config() }).await;
    world.behave(Manner::Hold);
    let first = tokio::spawn({
        let client = client.clone();
        async move { client.put("a", "1").await }
    });
    world.until(|truth| truth.arrived.len() == 1).await;
    let second = client.with_timeout(Duration::from_millis(50)).put("b", "1").await;
    assert!(matches!(second, Err(Error::Timeout { .. })), "surely not applied: {second:?}");
    tokio::select! {
        biased;
        third = client.put("c", "1") => panic!("it is done too early: {third:?}"),
        // It is queued by now, and dropped here.
        () = tokio::task::yield_now() => {}
    }
    world.behave(Manner::Answer);
    first.await.expect("no panic").expect("written");
    client.put("d", "1").await.expect("written");
    assert_eq!(world.truth().arrived, ["a", "d"]);
}

#[tokio::test]
async fn an_answer_beyond_the_decoders_limit_breaks_the_stream_and_nothing_else() {
    let (world, _nodes, client) = cluster().await;
    world.behave(Manner::Flood);
    let flooded = client.put("a", "1").await;
    assert!(matches!(flooded, Err(Error::Ambiguous { .. })), "{flooded:?}");
    world.behave(Manner::Answer);
    assert_eq!(client.get("a").await.expect("read").expect("it was applied").value, "1");
}

#[tokio::test]
async fn limits_are_checked_before_anything_is_sent() {
    let (world, _nodes, client) = cluster().await;
    for bad in
        [client.put("", "1").await, client.put(vec![0; 9_000], "1").await, client.put("a", vec![0; 2 << 20]).await]
    {
        assert!(matches!(bad, Err(Error::InvalidArgument { .. })), "{bad:?}");
    }
    let bad = client.scan(ScanOptions { token: "x".into(), ..ScanOptions::all() }).await;
    assert!(matches!(bad, Err(Error::InvalidArgument { .. })));
    assert!(world.truth().arrived.is_empty());
}

#[tokio::test]
async fn the_cluster_can_be_looked_at_and_told() {
    let (world, nodes, client) = cluster().await;
    assert_eq!(client.list_ranges().await.expect("listed").ranges.len(), 3);
    assert_eq!(client.list_nodes().await.expect("listed").len(), 2);
    let asked = |range: flotilla_proto::v1::GetRangeResponse| range.replica.map(|replica| replica.node_id);
    assert_eq!(client.get_range(RangeId(3), None).await.map(asked), Ok(Some(2)), "the leader is asked");
    assert_eq!(client.get_range(RangeId(3), Some(NodeId(1))).await.map(asked), Ok(Some(1)));
    world.truth().leaders.insert(3, NodeId(1));
    assert_eq!(client.get_range(RangeId(3), None).await.map(asked), Ok(Some(1)), "the hint is followed");
    let moved = client.transfer_leader(RangeId(2), NodeId(2)).await.expect("moved");
    assert_eq!((moved.leader_node_id, world.truth().leaders[&2]), (2, NodeId(2)));
    let missing = client.get_range(RangeId(99), None).await;
    assert_eq!(missing, Err(Error::RangeNotFound { range: RangeId(99) }));
    let status = |status: flotilla_proto::v1::NodeStatusResponse| status.node.map(|node| node.node_id);
    assert_eq!(client.node_status(NodeId(2)).await.map(status), Ok(Some(2)));
    assert_eq!(client.node_status_at(&nodes[0].address.to_string()).await.map(status), Ok(Some(1)));
    assert!(matches!(client.node_status(NodeId(9)).await, Err(Error::InvalidArgument { .. })));
}

#[tokio::test]
async fn a_connection_that_cannot_be_made_says_why_for_each_address() {
    let world = World::new();
    let gone = world.start(1);
    let address = gone.address.to_string();
    gone.stop().await;
    match Client::connect([address.clone()], config()).await {
        Err(Error::Unavailable { reason }) => assert!(reason.contains(&address), "{reason}"),
        other => panic!("{other:?}"),
    }
    for bad in [vec![], vec!["not an address"]] {
        let bad = Client::connect(bad, config()).await;
        assert!(matches!(bad, Err(Error::InvalidArgument { .. })), "{bad:?}");
    }
}
