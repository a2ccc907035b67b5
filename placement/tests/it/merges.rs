//! What a merge leaves behind: replicas of the range that it ended.

use flotilla_placement::Request;
use flotilla_proto::v1;

use crate::world::World;
use crate::world::script::spec;

fn replica(descriptor: &v1::RangeDescriptor, replica_id: u64) -> v1::RangeReport {
    v1::RangeReport { descriptor: Some(descriptor.clone()), replica_id, ..Default::default() }
}

fn removed(answer: &v1::ReportResponse) -> Vec<u64> {
    answer.removed.iter().map(|removed| removed.range_id).collect()
}

/// Ranges 2 and 3 of five nodes, merged; their descriptors before.
fn merged() -> (World, v1::RangeDescriptor, v1::RangeDescriptor) {
    let mut world = World::new(&spec("nodes=5 ranges=4"));
    (0..5).for_each(|_| world.step());
    let before = |range: u64| world.groups[&range].descriptor.clone();
    let (left, right) = (before(2), before(3));
    let request = v1::MergeRangesRequest { left_range_id: 2, right_range_id: 3, timeout_ms: 60_000 };
    world.ask(Request::MergeRanges(request)).expect("merged");
    (0..5).for_each(|_| world.step());
    assert!(!world.groups.contains_key(&3));
    (world, left, right)
}

/// tikv#15919: a replica that was away while its range was merged has nobody left to tell it.
#[test]
fn a_stale_replica_of_a_range_that_was_merged_is_told_to_go() {
    let (mut world, _, right) = merged();
    let holders = world.groups[&2].nodes();
    let outside = (1..=5).find(|node| !holders.contains(node)).expect("three of five hold it");
    let answer = world.say(outside, vec![replica(&right, 9)]);
    assert_eq!(removed(&answer), [3]);
    assert_eq!(answer.removed[0].replica_id, u64::MAX >> 1, "the range is gone for good");
}

/// The replica beside it is what a lagging replica of the left range applies the merge from.
#[test]
fn it_stays_where_the_merge_is_yet_to_be_applied() {
    let (mut world, left, right) = merged();
    let group = world.groups[&2].descriptor.clone();
    let node = group.replicas[0].node_id;
    let own = group.replicas[0].replica_id;
    let answer = world.say(node, vec![replica(&left, own), replica(&right, 1)]);
    assert_eq!(removed(&answer), [0; 0]);
    // It applies the merge, and for some reason keeps the other one.
    let answer = world.say(node, vec![replica(&group, own)]);
    assert_eq!(removed(&answer), [3]);
}

/// Where the range that took it in was merged away too, before it began on this node (seed 403).
#[test]
fn it_goes_where_the_range_that_took_it_in_never_was_and_is_gone_too() {
    for reported_before in [false, true] {
        let mut world = World::new(&spec("nodes=5 ranges=4"));
        (0..5).for_each(|_| world.step());
        let stale = world.groups[&4].descriptor.clone();
        let holders = world.groups[&2].nodes();
        let outside = (1..=5).find(|node| !holders.contains(node)).expect("three of five hold it");
        let merge = |world: &mut World, left_range_id, right_range_id| {
            let request = v1::MergeRangesRequest { left_range_id, right_range_id, timeout_ms: 60_000 };
            world.ask(Request::MergeRanges(request)).expect("merged");
            (0..5).for_each(|_| world.step());
        };
        merge(&mut world, 3, 4);
        if reported_before {
            world.say(outside, vec![replica(&stale, 9)]);
        }
        merge(&mut world, 2, 3);
        assert!(!world.groups[&2].nodes().contains(&outside), "it has nothing of the range that is left");
        let news = if reported_before { vec![] } else { vec![replica(&stale, 9)] };
        assert_eq!(removed(&world.say(outside, news)), [4], "reported before: {reported_before}");
    }
}

/// Range 3 has a replica on a node that has none of range 2, and says nothing new of it from now on: its range left it
/// while nobody heard that, and was merged into range 2 at once, on one other node.
struct Left {
    world: World,
    behind: u64,
    /// Range 2 before, and with what it took in.
    before: v1::RangeDescriptor,
    by: v1::RangeDescriptor,
}

impl Left {
    fn new() -> Self {
        let mut world = World::new(&spec("nodes=5 ranges=4"));
        (0..5).for_each(|_| world.step());
        let (before, mut source) = (world.groups[&2].descriptor.clone(), world.groups[&3].descriptor.clone());
        let holds = |of: &v1::RangeDescriptor, node: u64| of.replicas.iter().any(|replica| replica.node_id == node);
        let behind = (1..=5).find(|node| !holds(&before, *node)).expect("three of five hold it");
        source.replicas = vec![voter(behind, source.next_replica_id)];
        source.next_replica_id += 1;
        source.epoch = later(source.epoch, 1, 0);
        let answer = world.say(behind, vec![replica(&source, source.next_replica_id - 1)]);
        assert_eq!(removed(&answer), [0; 0]);
        let mut by = v1::RangeDescriptor { end: source.end, epoch: later(before.epoch, 8, 2), ..before.clone() };
        by.replicas.truncate(1);
        Self { world, behind, before, by }
    }

    /// The one that has both says so.
    fn say_merged(&mut self) {
        let own = self.by.replicas[0];
        self.world.say(own.node_id, vec![replica(&self.by, own.replica_id)]);
    }

    fn removed(&mut self) -> Vec<u64> {
        removed(&self.world.say(self.behind, Vec::new()))
    }
}

fn voter(node_id: u64, replica_id: u64) -> v1::ReplicaDescriptor {
    v1::ReplicaDescriptor { node_id, replica_id, role: v1::ReplicaRole::Voter.into() }
}

fn later(epoch: Option<v1::Epoch>, conf_ver: u64, version: u64) -> Option<v1::Epoch> {
    epoch.map(|epoch| v1::Epoch { conf_ver: epoch.conf_ver + conf_ver, version: epoch.version + version })
}

/// Those that it knows are gone too, and know no more than that. (Seed 50784.)
#[test]
fn it_is_told_to_go_though_it_says_nothing_after_the_merge() {
    let mut left = Left::new();
    left.say_merged();
    assert_eq!(left.removed(), [3]);
}

#[test]
fn it_is_told_to_go_once_the_replica_that_it_waited_for_has_gone() {
    let mut left = Left::new();
    let own = left.before.next_replica_id;
    left.before.replicas.push(voter(left.behind, own));
    left.before.next_replica_id += 1;
    left.before.epoch = later(left.before.epoch, 1, 0);
    left.by.next_replica_id = left.before.next_replica_id;
    left.world.say(left.behind, vec![replica(&left.before, own)]);
    left.say_merged();
    assert_eq!(left.removed(), [2], "which would apply the merge from it");
    let answer = left.world.say_all(left.behind, Vec::new(), vec![2]);
    assert_eq!(removed(&answer), [3]);
}

#[test]
fn it_is_told_to_go_once_nothing_is_to_begin_beside_it() {
    let mut left = Left::new();
    let named = left.by.next_replica_id;
    left.by.replicas.push(voter(left.behind, named));
    left.by.next_replica_id += 1;
    left.say_merged();
    assert_eq!(left.removed(), [0; 0], "it is to begin there, with the merge in its log perhaps");
    left.by.replicas.truncate(1);
    left.by.epoch = later(left.by.epoch, 1, 0);
    left.say_merged();
    assert_eq!(left.removed(), [3]);
}

/// A service that begins after the merge knows of it by the same proof, whatever it is told first; and whoever has told of the
/// stale replica has nothing new to say of it (the simulation's seed 61138).
#[test]
fn a_service_that_begins_later_finds_it_out() {
    for told_again in [true, false] {
        let (mut world, _, right) = merged();
        world.move_service();
        let group = world.groups[&2].descriptor.clone();
        let holders = world.groups[&2].nodes();
        let outside = (1..=5).find(|node| !holders.contains(node)).expect("three of five hold it");
        let stale = replica(&right, 9);
        // The first answer says that the service is a new one, and wants to hear everything.
        (0..2).for_each(|_| drop(world.say(outside, vec![stale.clone()])));
        world.say(group.replicas[0].node_id, vec![replica(&group, group.replicas[0].replica_id)]);
        let answer = world.say(outside, if told_again { vec![stale] } else { vec![] });
        assert_eq!(removed(&answer), [3], "told again: {told_again}");
    }
}
