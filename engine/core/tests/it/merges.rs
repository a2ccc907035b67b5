//! A range is taken in by its left neighbour: the way through, and what is refused.

use flotilla_engine::config::Config;
use flotilla_engine::store::{Event, Input, Merge, ReadBarrier, Token};
use flotilla_engine::{config::ReadMode, read};
use flotilla_proto::error::Action;
use flotilla_proto::{Error, RangeId, v1};

use crate::cluster::{Cluster, LATER, RANGE, rows};
use crate::ranges::{CHILD, begun_with, serves, split_input, whole, write_at};

/// [`RANGE`] and its right neighbour [`CHILD`], split at "m".
pub fn split() -> Cluster {
    split_with(Config::default(), 0)
}

pub fn split_with(config: Config, empty: u64) -> Cluster {
    let mut cluster = begun_with(config, empty);
    cluster.turn(1, vec![split_input(800, "m")]);
    cluster.tick_until(|cluster| serves(cluster, CHILD) == Some(1));
    cluster.tick();
    cluster
}

pub fn merge_input(token: u64, range: RangeId, target: RangeId) -> Input {
    Input::Merge(Merge { token: Token(token), range, target, deadline: LATER })
}

pub fn epoch(cluster: &Cluster, id: u64, range: RangeId) -> v1::Epoch {
    cluster.summary_of(id, range).expect("it is here").descriptor.epoch.expect("set")
}

/// Whether the child has gone from all these nodes, and the other range holds its keys there.
pub fn merged_on(cluster: &Cluster, nodes: &[u64]) -> bool {
    nodes.iter().all(|id| {
        cluster.summary_of(*id, CHILD).is_none()
            && cluster.summary_of(*id, RANGE).is_some_and(|of| of.descriptor.end.is_empty())
    })
}

/// How the child stands on a node: frozen, or not, or not there.
pub fn frozen(cluster: &Cluster, id: u64) -> Option<bool> {
    cluster.summary_of(id, CHILD).map(|of| of.frozen.is_some())
}

/// What every scenario must end with.
pub fn assert_well(cluster: &Cluster) {
    assert!(cluster.fatal.is_empty(), "{:?}", cluster.fatal);
    for (id, node) in &cluster.nodes {
        let descriptors: Vec<_> = node.store.ranges().map(|of| of.descriptor).collect();
        for (at, one) in descriptors.iter().enumerate() {
            for other in &descriptors[at + 1..] {
                let before = |one: &v1::RangeDescriptor, other: &v1::RangeDescriptor| {
                    !one.end.is_empty() && one.end <= other.start
                };
                let apart = one.keyspace_id != other.keyspace_id || before(one, other) || before(other, one);
                assert!(apart, "node {id}: ranges {} and {} overlap", one.range_id, other.range_id);
            }
        }
    }
}

#[test]
fn a_range_takes_its_right_neighbour_in() {
    let mut cluster = split();
    let before = rows(&cluster.node(1).disk, &whole());
    let (left, right) = (epoch(&cluster, 1, RANGE), epoch(&cluster, 1, CHILD));
    let now = cluster.now;
    cluster.turn(1, vec![merge_input(1, CHILD, RANGE)]);
    cluster.settle();
    assert_eq!(cluster.now, now, "without waiting for any tick");
    let [(1, Ok(into))] = &cluster.merges[..] else { panic!("{:?}", cluster.merges) };
    assert_eq!((into.range_id, into.start.is_empty(), into.end.is_empty()), (RANGE.0, true, true));
    let after = into.epoch.expect("set");
    assert!(after.version > left.version.max(right.version + 1), "above both: {after:?}");
    assert_eq!(after.conf_ver, left.conf_ver);
    cluster.tick();
    assert!(merged_on(&cluster, &[1, 2, 3]));
    for id in 1..=3 {
        assert_eq!(rows(&cluster.node(id).disk, &whole()), before, "no key was touched");
        assert!(!cluster.node(id).views.contains_key(&CHILD));
    }
    cluster.turn(1, vec![write_at(2, RANGE, after, "q"), write_at(3, RANGE, after, "b")]);
    cluster.settle();
    assert!(cluster.answer(2).is_ok() && cluster.answer(3).is_ok());
    for id in 1..=3 {
        cluster.restart(id);
    }
    cluster.tick_until(|cluster| serves(cluster, RANGE).is_some());
    cluster.tick();
    assert!(merged_on(&cluster, &[1, 2, 3]));
    let sums: Vec<_> = (1..=3).map(|id| (cluster.summary(id).applied, cluster.summary(id).applied_checksum)).collect();
    assert!(sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
    assert_well(&cluster);
}

/// Versions of keys never repeat: they go on above those of both halves.
#[test]
fn versions_go_on_above_those_of_both_halves() {
    let mut cluster = split();
    let right = epoch(&cluster, 1, CHILD);
    for token in 10..30 {
        cluster.turn(1, vec![write_at(token, CHILD, right, "q")]);
        cluster.settle();
    }
    let Ok(last) = cluster.answer(29).clone() else { panic!() };
    cluster.turn(1, vec![merge_input(1, CHILD, RANGE)]);
    cluster.settle();
    let after = epoch(&cluster, 1, RANGE);
    cluster.turn(1, vec![write_at(2, RANGE, after, "q")]);
    cluster.settle();
    let Ok(next) = cluster.answer(2).clone() else { panic!("{:?}", cluster.answer(2)) };
    assert!(next.results[0].version > last.results[0].version);
    assert_well(&cluster);
}

pub fn merge_order(cluster: &Cluster, order_id: u64) -> Input {
    let into = cluster.summary(1).descriptor;
    let merge_into = Some((*into).clone());
    Input::Order(v1::RangeOrder { order_id, range_id: CHILD.0, merge_into, ..Default::default() })
}

#[test]
fn placement_orders_a_merge_without_anybody_waiting() {
    let mut cluster = split();
    cluster.turn(1, vec![merge_order(&cluster, 7)]);
    cluster.tick_until(|cluster| merged_on(cluster, &[1, 2, 3]));
    let merged =
        |(_, event): &&(u64, Event)| matches!(event, Event::Merged { range: CHILD, into } if into.range_id == 2);
    assert_eq!(cluster.events.iter().filter(merged).count(), 3);
    assert_well(&cluster);
}

fn refused(cluster: &mut Cluster, id: u64, input: Input, words: &str) {
    cluster.turn(id, vec![input]);
    let (_, answer) = cluster.merges.pop().expect("answered at once");
    let said = answer.expect_err("refused").to_string();
    assert!(said.contains(words), "\"{said}\" should say \"{words}\"");
}

#[test]
fn what_cannot_be_merged_is_refused_in_words() {
    let mut cluster = split();
    refused(&mut cluster, 1, merge_input(1, RANGE, CHILD), "left neighbour");
    refused(&mut cluster, 1, merge_input(1, CHILD, CHILD), "left neighbour");
    refused(&mut cluster, 1, merge_input(1, CHILD, RangeId(77)), "no replica on the node");
    refused(&mut cluster, 1, merge_input(1, RangeId(77), RANGE), "r77");
    refused(&mut cluster, 2, merge_input(1, CHILD, RANGE), "not led by this node; node 1 does");
    cluster.turn(1, vec![Input::Keyspaces(vec![])]);
    refused(&mut cluster, 1, merge_input(1, CHILD, RANGE), "settings of the range's keyspace");
    let state = v1::KeyspaceState::Dropped.into();
    let dropped = v1::Keyspace { keyspace_id: 1, state, ..Default::default() };
    cluster.turn(1, vec![Input::Keyspaces(vec![dropped])]);
    refused(&mut cluster, 1, merge_input(1, CHILD, RANGE), "was dropped");
    cluster.turn(1, vec![Input::Keyspaces(vec![v1::Keyspace { keyspace_id: 1, ..Default::default() }])]);
    cluster.cut_off.insert(3);
    for _ in 0..12 {
        cluster.tick();
    }
    refused(&mut cluster, 1, merge_input(1, CHILD, RANGE), "node 3 is not alive and level");
    assert_eq!((1..=3).map(|id| frozen(&cluster, id)).collect::<Vec<_>>(), [Some(false); 3]);
    cluster.cut_off.clear();
    for _ in 0..12 {
        cluster.tick();
    }
    cluster.turn(1, vec![merge_input(1, CHILD, RANGE)]);
    refused(&mut cluster, 1, merge_input(2, CHILD, RANGE), "another change");
    cluster.settle();
    assert!(matches!(cluster.merges[..], [(1, Ok(_))]));
    assert_well(&cluster);
}

/// A range that stands still, for node 3 does not: cut off as soon as it has the freeze in its log.
pub fn standing_still(mut cluster: Cluster) -> Cluster {
    cluster.apply_held.insert(3);
    cluster.turn(1, vec![merge_input(1, CHILD, RANGE)]);
    cluster.settle();
    assert_eq!((1..=3).map(|id| frozen(&cluster, id)).collect::<Vec<_>>(), [Some(true), Some(true), Some(false)]);
    cluster
}

/// tikv#8034: what is frozen is not read, by lease or barrier or stale, nor written.
#[test]
fn a_frozen_range_serves_nothing() {
    let mut cluster = standing_still(split());
    let epoch = epoch(&cluster, 1, CHILD);
    for _ in 0..3 {
        cluster.tick();
    }
    for id in 1..=2 {
        let view = cluster.node(id).views[&CHILD].clone();
        assert!(!view.lease_covers(cluster.now));
        for consistency in [v1::ReadConsistency::Linearizable, v1::ReadConsistency::Stale] {
            let header = v1::RequestHeader {
                range_id: CHILD.0,
                epoch: Some(epoch),
                consistency: consistency.into(),
                ..Default::default()
            };
            let admitted = read::admit(&view, cluster.now, ReadMode::Lease, &header);
            let read::Admission::Refused(error) = admitted else { panic!("{admitted:?}") };
            assert_eq!(error.action(), Action::Retry);
        }
    }
    let barrier = ReadBarrier { token: Token(5), range: CHILD, epoch, deadline: LATER };
    cluster.turn(1, vec![write_at(4, CHILD, epoch, "q"), Input::ReadBarrier(barrier)]);
    assert!(matches!(cluster.answer(4), Err(Error::ServerBusy { .. })));
    assert!(matches!(cluster.barriers[..], [(5, Err(Error::ServerBusy { .. }))]));
    cluster.apply_held.clear();
    cluster.tick_until(|cluster| merged_on(cluster, &[1, 2, 3]));
    cluster.turn(1, vec![write_at(6, CHILD, epoch, "q")]);
    let Err(Error::EpochMismatch { descriptors, .. }) = cluster.answer(6) else { panic!("{:?}", cluster.answer(6)) };
    assert_eq!(descriptors[..], [(*cluster.summary(1).descriptor).clone()], "the route is told");
    assert_well(&cluster);
}

/// A replica that does not come to its standstill in time: the other range decides against the merge, and only then
/// does this one go on.
#[test]
fn a_merge_that_not_all_replicas_join_is_given_up() {
    let mut cluster = standing_still(split());
    let (left, right) = (epoch(&cluster, 1, RANGE), epoch(&cluster, 1, CHILD));
    cluster.tick_until(|cluster| frozen(cluster, 1) == Some(false));
    let after = epoch(&cluster, 1, RANGE);
    assert!(after.version > left.version, "it never can be taken in as it was frozen");
    assert!(matches!(cluster.merges[..], [(1, Err(Error::ServerBusy { .. }))]), "{:?}", cluster.merges);
    cluster.apply_held.clear();
    cluster.tick_until(|cluster| frozen(cluster, 3) == Some(false) && serves(cluster, CHILD) == Some(1));
    cluster.turn(1, vec![write_at(2, CHILD, right, "q"), write_at(3, RANGE, after, "b")]);
    cluster.settle();
    assert!(cluster.answer(2).is_ok() && cluster.answer(3).is_ok());
    let waits = cluster.now + cluster.config.election_timeout() * 11;
    cluster.turn(1, vec![merge_order(&cluster, 7)]);
    cluster.tick();
    assert!(cluster.summary_of(1, CHILD).expect("it is here").order_waits.contains("a moment ago"));
    cluster.tick_until(|cluster| cluster.now >= waits && merged_on(cluster, &[1, 2, 3]));
    assert_well(&cluster);
}
