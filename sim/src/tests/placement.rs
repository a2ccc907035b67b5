//! Golden scenarios of clusters with the real placement service, named by the behaviour they hold to.

use std::time::Duration;

use flotilla_placement::Request;
use flotilla_proto::ids::{DEFAULT_KEYSPACE, SYSTEM_RANGE};
use flotilla_proto::v1;

use super::scenario::{RANGE, Scenario};
use crate::clock::{Nanos, ms};
use crate::cluster::Cluster;
use crate::faults::{CrashPoint, Fault, Target};
use crate::knobs::Knobs;
use crate::marks::Mark;
use crate::placement::{LossKnobs, Moment, OperatorKnobs, RealKnobs};

/// A cluster that begins with one node and is to have so many.
fn placed(wanted: usize, change: impl FnOnce(&mut Knobs, &mut RealKnobs)) -> Scenario {
    Scenario::with(|knobs| {
        let mut real = RealKnobs {
            wanted,
            replicas: 3,
            split_bytes: 0,
            live_for: Duration::from_secs(3),
            dead_after: Duration::from_secs(6),
            loses: false,
            people_every: 0,
            operators: OperatorKnobs::default(),
            loss: None,
        };
        (knobs.nodes, knobs.members, knobs.replicas, knobs.ranges) = (RealKnobs::NODES_MAX, 1, 1, 4);
        // Joins and losses come within this time.
        knobs.duration = ms(20_000);
        change(knobs, &mut real);
        knobs.real = Some(real);
    })
}

impl Scenario {
    fn ask_placement(&mut self, request: Request) {
        self.cluster.ask_by_hand(request);
    }

    /// Every range has three voters, on nodes other than this one.
    fn wait_for_three(&mut self, without: Option<u64>) {
        self.wait_long("three replicas of each range", ms(60_000), |cluster| {
            let mut newest = cluster.invariants.territory.all_newest();
            newest.all(|range| {
                let voters = range.replicas.iter().filter(|of| of.role() == v1::ReplicaRole::Voter);
                range.replicas.len() == 3 && voters.filter(|of| Some(of.node_id) != without).count() == 3
            })
        });
    }

    fn wait_long(&mut self, what: &str, patience: Nanos, condition: impl Fn(&Cluster) -> bool) {
        let give_up = self.cluster.now + patience;
        while !condition(&self.cluster) {
            assert!(self.cluster.now < give_up, "never: {what}");
            self.run_for(ms(20));
        }
    }
}

#[test]
fn a_cluster_of_one_grows_to_three_replicas_and_comes_to_rest() {
    let mut scenario = placed(4, |_, _| {});
    scenario.leader();
    scenario.put("k", "1");
    scenario.wait_for_three(None);
    assert_eq!(scenario.get("k").as_deref(), Some(&b"1"[..]));
    scenario.finish();
}

#[test]
fn a_node_lost_for_good_is_replaced_by_one_that_joins_and_nothing_is_lost() {
    let mut scenario = placed(3, |_, real| real.loses = true);
    scenario.leader();
    for key in ["a", "m", "z"] {
        scenario.put(key, key);
    }
    scenario.wait_long("the loss", ms(60_000), |cluster| cluster.marks.count(Mark::NodeLost) > 0);
    let lost = scenario.cluster.real.as_ref().and_then(|real| (1..=4).find(|node| real.is_lost(*node)));
    scenario.wait_for_three(lost);
    for key in ["a", "m", "z"] {
        assert_eq!(scenario.get(key).as_deref(), Some(key.as_bytes()));
    }
    scenario.finish();
}

/// Two or three of five are gone at once, and come back when they were given up: nobody hears them.
#[test]
fn what_survivors_have_is_served_after_a_majority_is_lost_and_the_lost_are_sent_away() {
    let mut scenario = placed(5, |knobs, real| {
        knobs.duration = ms(100_000);
        real.lose_a_majority(LossKnobs {
            wanted: 5,
            replicas: 3,
            at_per_mille: 120,
            whole: false,
            moment: Moment::Any,
            return_per_mille: 1_000,
        });
    });
    scenario.leader();
    scenario.wait_for_three(None);
    for key in ["a", "m", "z"] {
        scenario.put(key, key);
    }
    scenario.wait_long("the loss", ms(90_000), |cluster| cluster.marks.count(Mark::MajorityLost) > 0);
    scenario.wait_long("the recovery", ms(60_000), |cluster| cluster.marks.count(Mark::RecoveryRecorded) > 0);
    assert!(scenario.count(Mark::RangeWentOn) > 0);
    for key in ["a", "m", "z"] {
        assert_eq!(scenario.get(key).as_deref(), Some(key.as_bytes()), "it was on all replicas");
        scenario.put(key, "again");
    }
    scenario.wait_long("the lost to return", ms(60_000), |cluster| cluster.marks.count(Mark::OutcastReturns) > 0);
    scenario.wait_for_three(None);
    for key in ["a", "m", "z"] {
        assert_eq!(scenario.get(key).as_deref(), Some(&b"again"[..]));
    }
    scenario.wait_long("the lost to be told, and to end", ms(5_000), |cluster| {
        cluster.marks.count(Mark::OutcastEnds) == cluster.marks.count(Mark::OutcastReturns)
    });
    scenario.finish();
}

/// Five nodes that have just lost a majority of some range, and not of the system range: that keeps two voters of three.
fn lost_but_for_the_system_range() -> Scenario {
    let lose = |seed| {
        let mut scenario = placed(5, |knobs, real| {
            (knobs.seed, knobs.duration) = (seed, ms(100_000));
            real.lose_a_majority(LossKnobs {
                wanted: 5,
                replicas: 3,
                at_per_mille: 120,
                whole: false,
                moment: Moment::Any,
                return_per_mille: 0,
            });
        });
        scenario.leader();
        scenario.wait_for_three(None);
        scenario.wait_long("the loss", ms(90_000), |cluster| cluster.marks.count(Mark::MajorityLost) > 0);
        scenario
    };
    let mut scenarios = (1..100).map(lose);
    scenarios.find(|scenario| scenario.count(Mark::SystemMajorityLost) == 0).expect("some seed loses others")
}

/// Placement is to be told of the recovery, and its range's voters choose no leader that lasts while they hear each other
/// too late.
#[test]
fn a_recovery_may_wait_until_what_is_sent_arrives_in_time() {
    let mut scenario = lost_but_for_the_system_range();
    let nodes = scenario.cluster.nodes.len();
    for (from, to) in (0..nodes).flat_map(|from| (0..nodes).map(move |to| (from, to))) {
        scenario.fault(&Fault::SlowLink { from, to, by: ms(2_000), length: ms(3_600_000) });
    }
    scenario.run_for(ms(40_000));
    assert_eq!(scenario.count(Mark::RecoveryRecorded), 0);
    scenario.finish();
}

/// What a slow node is not given meanwhile it is given when it counts as well again, which is long after it is.
#[test]
fn placement_is_not_at_rest_while_a_node_counts_as_slow() {
    let held = |cluster: &Cluster| [0, 1, 2, 3].map(|node| cluster.invariants.territory.on_store(node).count());
    let mut scenario = placed(4, |knobs, _| knobs.duration = ms(200_000));
    scenario.leader();
    scenario.wait_long("a share of all for each node", ms(60_000), |cluster| held(cluster) == [4, 4, 4, 3]);
    scenario.fault(&Fault::SlowDisk { target: Target::Node(3), sync: ms(300), length: ms(100_000) });
    for round in 0..200 {
        for key in ["a", "m", "z"] {
            scenario.put(key, &round.to_string());
        }
        if scenario.count(Mark::SlowNodeJudged) > 0 {
            break;
        }
    }
    assert_eq!(scenario.count(Mark::SlowNodeJudged), 1);
    let create = v1::CreateKeyspaceRequest { name: "young".into(), ranges: 1, ..Default::default() };
    scenario.ask_placement(Request::CreateKeyspace(create));
    scenario.wait_until("a range on the others", |cluster| held(cluster) == [5, 5, 5, 3]);
    let cluster = scenario.finish();
    assert_eq!(held(&cluster)[3], 4);
}

/// The one that leads the system range, and the disk it is told to wipe held the first replica of everything.
#[test]
fn a_decommissioned_node_is_emptied_removed_and_wiped_and_nothing_is_lost() {
    let mut scenario = placed(4, |_, _| {});
    scenario.leader();
    for key in ["a", "m", "z"] {
        scenario.put(key, key);
    }
    scenario.wait_long("all nodes", ms(60_000), |cluster| cluster.marks.count(Mark::NodeJoined) == 3);
    scenario.wait_for_three(None);
    let decommission = v1::DecommissionNodeRequest { node_id: 1, undo: false };
    scenario.ask_placement(Request::DecommissionNode(decommission));
    let is_lost = |cluster: &Cluster| cluster.real.as_ref().is_some_and(|real| real.is_lost(1));
    scenario.wait_long("the removal", ms(60_000), is_lost);
    assert_eq!(scenario.count(Mark::NodeRemoved), 1);
    scenario.wait_for_three(Some(1));
    for key in ["a", "m", "z"] {
        assert_eq!(scenario.get(key).as_deref(), Some(key.as_bytes()));
    }
    scenario.finish();
}

#[test]
fn the_service_begins_anew_wherever_the_system_range_is_led_and_goes_on() {
    let mut scenario = placed(4, |_, _| {});
    scenario.leader();
    scenario.wait_for_three(None);
    for round in 0..3 {
        let loads = scenario.count(Mark::ServiceLoaded);
        let target = Target::Node(scenario.cluster.leader_of(SYSTEM_RANGE).expect("somebody leads"));
        scenario.fault(&Fault::Crash { target, point: CrashPoint::Now, down: ms(1_500), power_cut: round == 1 });
        scenario.wait_until("the next service", |cluster| cluster.marks.count(Mark::ServiceLoaded) > loads);
        scenario.run_for(ms(4_000));
    }
    scenario.finish();
}

#[test]
fn a_keyspace_is_created_written_to_and_dropped_and_nothing_of_it_stays() {
    let mut scenario = placed(3, |_, _| {});
    scenario.leader();
    scenario.wait_for_three(None);
    let create = v1::CreateKeyspaceRequest { name: "young".into(), ranges: 5, ..Default::default() };
    scenario.ask_placement(Request::CreateKeyspace(create));
    scenario.wait_until("the keyspace", |cluster| cluster.marks.count(Mark::KeyspaceReady) > 0);
    scenario.run_for(ms(2_000));
    let of_it = |cluster: &Cluster| {
        let on = |node| cluster.invariants.territory.on_store(node).filter(|of| of.keyspace_id != DEFAULT_KEYSPACE.0);
        (0..3).map(|node| on(node).filter(|of| of.range_id != SYSTEM_RANGE.0).count()).sum::<usize>()
    };
    assert!(of_it(&scenario.cluster) >= 5, "its ranges are there");
    scenario.ask_placement(Request::DropKeyspace(v1::DropKeyspaceRequest { name: "young".into() }));
    scenario.wait_until("nothing of it is left", |cluster| of_it(cluster) == 0);
    assert!(scenario.cluster.leader_of(RANGE).is_some());
    scenario.finish();
}

#[test]
fn a_service_whose_writes_are_refused_does_not_begin_again_without_a_pause() {
    let mut scenario = placed(3, |_, _| {});
    scenario.leader();
    let leader = scenario.cluster.leader_of(SYSTEM_RANGE).expect("somebody leads");
    scenario.fault(&Fault::DiskMargin { target: Target::Node(leader), length: ms(5_000) });
    scenario.run_for(ms(5_000));
    assert!((1..40).contains(&scenario.count(Mark::ServiceReloaded)), "{}", scenario.count(Mark::ServiceReloaded));
    scenario.finish();
}
