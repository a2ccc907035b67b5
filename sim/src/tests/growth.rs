//! Golden scenarios of ranges that split and move, named by the behaviour they hold to.

use flotilla_engine::store::{Input, Split, SplitAt, Token};
use flotilla_proto::{RangeId, v1};

use super::scenario::{RANGE, Scenario};
use crate::clock::{ms, us};
use crate::cluster::Cluster;
use crate::faults::{CrashPoint, Fault, Target};
use crate::knobs::Knobs;
use crate::marks::Mark;

/// A cluster that splits and moves by order alone.
fn growing(change: impl FnOnce(&mut Knobs)) -> Scenario {
    Scenario::with(|knobs| {
        change(knobs);
        knobs.members = knobs.members.min(knobs.nodes);
        knobs.replicas = knobs.replicas.min(knobs.members);
        knobs.placement.every = ms(200);
    })
}

impl Scenario {
    fn split(&mut self, leader: usize, range: RangeId, keys: &[&'static str]) {
        let deadline = self.cluster.nodes[leader].clock.read(self.cluster.now) + std::time::Duration::from_secs(20);
        let at = SplitAt::Keys(keys.iter().map(|key| (*key).into()).collect());
        self.cluster.give(leader, Input::Split(Split { token: Token(0), range, at, deadline }));
    }

    fn move_to(&mut self, range: RangeId, add: &[u64], remove: &[u64]) {
        self.cluster.order_by_hand(range, add.to_vec(), remove.to_vec());
    }

    /// Waits until nodes know keyspaces and ids, without which nothing is split.
    fn settled(&mut self) -> usize {
        self.run_for(ms(2_500));
        self.leader()
    }
}

fn ranges(cluster: &Cluster) -> usize {
    cluster.invariants.territory.ranges().len()
}

fn nodes_of(cluster: &Cluster, range: RangeId) -> Vec<u64> {
    let newest = cluster.invariants.territory.newest(range).expect("the range exists");
    let mut nodes: Vec<u64> = newest.replicas.iter().map(|of| of.node_id).collect();
    nodes.sort_unstable();
    nodes
}

#[test]
fn keys_on_both_sides_of_a_split_stay_and_take_writes() {
    let mut scenario = growing(|_| {});
    let leader = scenario.settled();
    for key in ["a", "m", "z"] {
        scenario.put(key, key);
    }
    scenario.split(leader, RANGE, &["k", "t"]);
    scenario.wait_until("the split", |cluster| ranges(cluster) == 3);
    for key in ["a", "m", "z"] {
        assert_eq!(scenario.get(key).as_deref(), Some(key.as_bytes()));
        scenario.put(key, "again");
    }
    scenario.finish();
}

#[test]
fn a_crash_around_a_split_neither_loses_nor_repeats_it() {
    for point in [CrashPoint::AfterSplit, CrashPoint::BeforeSync, CrashPoint::AfterSync] {
        let mut scenario = growing(|_| {});
        let leader = scenario.settled();
        scenario.put("a", "1");
        scenario.put("z", "1");
        for node in [leader, scenario.another(&[leader])] {
            let target = Target::Node(node);
            scenario.fault(&Fault::Crash { target, point, down: ms(400), power_cut: true });
        }
        scenario.split(leader, RANGE, &["k"]);
        scenario.run_for(ms(6_000));
        assert_eq!(scenario.get("a").as_deref(), Some(&b"1"[..]), "{point:?}");
        assert_eq!(scenario.get("z").as_deref(), Some(&b"1"[..]), "{point:?}");
        scenario.finish();
    }
}

#[test]
fn a_replica_that_sleeps_through_a_split_gets_the_child_only_when_its_parent_has_made_room() {
    let mut scenario = growing(|knobs| knobs.config.log_retain_entries = 10);
    let leader = scenario.settled();
    let behind = scenario.another(&[leader]);
    scenario.isolate(behind, ms(6_000));
    scenario.split(leader, RANGE, &["k"]);
    scenario.wait_until("the split", |cluster| ranges(cluster) == 2);
    for at in 0..60 {
        scenario.put("z", &format!("{at}"));
    }
    scenario.wait_until("the partition ends", |cluster| cluster.undo.is_empty());
    scenario.run_for(ms(3_000));
    assert!(scenario.count(Mark::EarlyMessage) > 0, "messages came for the child too early");
    scenario.finish();
}

#[test]
fn a_replica_removed_while_its_node_was_down_is_told_and_cleans_up() {
    let mut scenario = growing(|knobs| (knobs.nodes, knobs.members) = (4, 3));
    let leader = scenario.settled();
    let away = scenario.another(&[leader]);
    scenario.put("k", "1");
    let crash = Fault::Crash { target: Target::Node(away), point: CrashPoint::Now, down: ms(8_000), power_cut: true };
    scenario.fault(&crash);
    scenario.move_to(RANGE, &[4], &[away as u64 + 1]);
    let moved = move |cluster: &Cluster| !nodes_of(cluster, RANGE).contains(&(away as u64 + 1));
    scenario.wait_until("the move", moved);
    scenario.put("k", "2");
    scenario.wait_until("it is told", |cluster| cluster.marks.count(Mark::ReplicaRemoved) > 0);
    scenario.run_for(ms(500));
    assert_eq!(scenario.cluster.invariants.territory.on_store(away).count(), 0, "nothing of it is left");
    scenario.finish();
}

#[test]
fn a_range_comes_back_to_a_node_that_it_had_left() {
    let mut scenario = growing(|knobs| (knobs.nodes, knobs.members) = (4, 3));
    scenario.settled();
    scenario.put("k", "1");
    for (add, remove) in [(4, 1), (1, 2), (2, 3), (3, 4)] {
        scenario.wait_until("a leader", |cluster| cluster.leader_of(RANGE).is_some());
        scenario.move_to(RANGE, &[add], &[remove]);
        scenario.wait_until("the move", |cluster| {
            let newest = cluster.invariants.territory.newest(RANGE).expect("the range exists");
            let level = newest.replicas.iter().all(|of| of.role() == v1::ReplicaRole::Voter);
            level && !nodes_of(cluster, RANGE).contains(&remove)
        });
        scenario.run_for(ms(3_000));
        assert_eq!(scenario.get("k").as_deref(), Some(&b"1"[..]));
    }
    assert!(scenario.count(Mark::ReplicaReturns) > 0);
    scenario.finish();
}

#[test]
fn a_crash_at_the_end_of_a_move_does_not_wait_for_voters_that_are_gone() {
    // The old voter goes as soon as it knows that the joint configuration is left; the new one crashes at many moments
    // around that, and has then lost that it is.
    let mut told = 0;
    for step in 0..80 {
        let mut scenario = growing(|knobs| {
            (knobs.nodes, knobs.members) = (2, 1);
            knobs.sync = ms(4);
            knobs.apply_delay = ms(2);
        });
        scenario.settled();
        scenario.put("k", "1");
        scenario.move_to(RANGE, &[2], &[1]);
        scenario.wait_until("the joint configuration", |cluster| cluster.marks.count(Mark::JointEntered) > 1);
        scenario.wait_until("the new leader", |cluster| cluster.leader_of(RANGE) == Some(1));
        scenario.run_for(us(500) * step);
        let crash = Fault::Crash { target: Target::Node(1), point: CrashPoint::Now, down: ms(300), power_cut: true };
        scenario.fault(&crash);
        scenario.run_for(ms(5_000));
        assert_eq!(scenario.get("k").as_deref(), Some(&b"1"[..]), "step {step}");
        told += scenario.count(Mark::GoneTellsCommit);
        scenario.finish();
    }
    assert!(told > 0, "a tombstone had to tell what is committed");
}
