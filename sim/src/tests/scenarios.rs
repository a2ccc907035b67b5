//! Golden scenarios, named by the behaviour they hold to.

use flotilla_engine::config::ReadMode;
use flotilla_engine::storage::Family;
use flotilla_proto::{Error, v1};
use v1::response::Body as Answer;

use super::scenario::{RANGE, Scenario, delete, put};
use crate::clock::{ms, nanos};
use crate::faults::{CrashPoint, Cut, Fault, Target};
use crate::marks::Mark;

#[test]
fn a_leader_cut_off_serves_no_read_after_its_lease() {
    let mut scenario = Scenario::new();
    let old = scenario.leader();
    scenario.put("k", "1");
    assert_eq!(scenario.read_at(old, "k", ms(50)), Some(Some("1".into())));
    scenario.isolate(old, ms(8_000));
    assert_eq!(scenario.read_at(old, "k", ms(50)), Some(Some("1".into())), "its lease still runs");
    let lease = nanos(scenario.cluster.knobs.config.lease);
    scenario.run_for(lease);
    assert_eq!(scenario.read_at(old, "k", ms(400)), None, "its lease is over");
    let new = scenario.leader_other_than(Some(old));
    scenario.put("k", "2");
    assert_eq!(scenario.read_at(old, "k", ms(400)), None);
    assert_eq!(scenario.read_at(new, "k", ms(50)), Some(Some("2".into())));
    scenario.finish();
}

#[test]
fn a_paused_leader_answers_nothing_stale_when_it_goes_on() {
    let mut scenario = Scenario::with(|knobs| knobs.read_delay = ms(100));
    let old = scenario.leader();
    scenario.put("k", "1");
    // A read passes its first check, and then the process stands still for longer than the lease.
    let read = scenario.read_at(old, "k", ms(20));
    assert_eq!(read, None);
    scenario.fault(&Fault::Pause { target: Target::Node(old), length: ms(6_000) });
    let new = scenario.leader_other_than(Some(old));
    assert!(matches!(scenario.put_at(new, "k", "2", ms(1_000)), Some(Answer::Write(_))));
    let lost = scenario.count(Mark::LeaseLost);
    scenario.run_for(ms(6_500));
    assert!(scenario.count(Mark::LeaseLost) > lost, "the second check holds it back");
    let answer = scenario.read_at(new, "k", ms(1_000));
    assert_eq!(answer, Some(Some("2".into())));
    scenario.finish();
}

#[test]
fn a_leader_told_to_hand_over_holds_no_lease_in_that_term_again() {
    let mut scenario = Scenario::new();
    let old = scenario.leader();
    let term = scenario.view(old).map(|view| view.term);
    let target = scenario.another(&[old]);
    // The target never hears of it: the transfer fails, and the range goes on in the same term.
    scenario.fault(&Fault::Partition { cut: Cut::Deaf(Target::Node(target)), length: ms(1_500) });
    scenario.fault(&Fault::Transfer { range: RANGE, to: target });
    scenario.wait_until("MsgTimeoutNow is sent", |cluster| cluster.marks.count(Mark::TimeoutNowSent) > 0);
    for _ in 0..50 {
        scenario.run_for(ms(50));
        let view = scenario.view(old).expect("the node is up");
        let covered = view.lease_covers(scenario.cluster.nodes[old].clock.read(scenario.cluster.now));
        assert!(!covered || Some(view.term) != term);
    }
    scenario.finish();
}

#[test]
fn a_follower_behind_the_truncated_log_gets_a_snapshot() {
    let mut scenario = Scenario::with(|knobs| {
        knobs.config.log_retain_entries = 10;
        knobs.config.log_lagging_bytes_max = 500;
    });
    let leader = scenario.leader();
    let behind = scenario.another(&[leader]);
    scenario.isolate(behind, ms(20_000));
    for at in 0..60 {
        scenario.put("k", &format!("{at}"));
    }
    scenario.wait_until("the partition ends", |cluster| cluster.undo.is_empty());
    scenario.wait_until("a snapshot is applied", |cluster| cluster.marks.count(Mark::SnapshotApplied) > 0);
    scenario.finish();
}

#[test]
fn a_crash_at_any_point_of_a_write_loses_nothing_acknowledged() {
    let points = [CrashPoint::BeforeLogWrite, CrashPoint::BeforeSync, CrashPoint::AfterSync, CrashPoint::AfterApply];
    for point in points {
        let mut scenario = Scenario::new();
        let leader = scenario.leader();
        scenario.put("k", "1");
        for node in [leader, scenario.another(&[leader])] {
            let crash = Fault::Crash { target: Target::Node(node), point, down: ms(500), power_cut: true };
            scenario.fault(&crash);
            scenario.ask(put("k", &format!("{point:?} of {node}")));
            scenario.answers();
            scenario.run_for(ms(3_000));
        }
        assert!(scenario.cluster.tally.crashes >= 2, "{point:?}");
        scenario.finish();
    }
}

#[test]
fn all_nodes_crash_at_once_and_everything_acknowledged_is_there() {
    let mut scenario = Scenario::with(|knobs| knobs.ranges = 4);
    scenario.leader();
    for key in ["0", "K", "b", "z"] {
        scenario.put(key, key);
    }
    scenario.fault(&Fault::CrashAll { down: ms(100) });
    for key in ["0", "K", "b", "z"] {
        assert_eq!(scenario.get(key).as_deref(), Some(key.as_bytes()));
    }
    assert_eq!(scenario.cluster.tally.crashes, 3);
    scenario.finish();
}

#[test]
fn a_replica_that_was_cut_off_does_not_depose_the_leader_when_it_returns() {
    let mut scenario = Scenario::new();
    let leader = scenario.leader();
    let term = scenario.view(leader).map(|view| view.term);
    let away = scenario.another(&[leader]);
    scenario.isolate(away, ms(10_000));
    scenario.run_for(ms(15_000));
    assert_eq!(scenario.leader(), leader);
    assert_eq!(scenario.view(leader).map(|view| view.term), term, "pre-vote keeps the term");
    scenario.finish();
}

/// tikv#3270: pre-votes and check-quorum together must not keep each other waiting.
#[test]
fn two_pre_candidates_that_lose_their_leader_elect_one_of_them() {
    let mut scenario = Scenario::new();
    let old = scenario.leader();
    let crash = Fault::Crash { target: Target::Node(old), point: CrashPoint::Now, down: ms(20_000), power_cut: false };
    scenario.fault(&crash);
    let new = scenario.leader_other_than(Some(old));
    scenario.put("k", "1");
    assert_ne!(new, old);
    scenario.finish();
}

#[test]
fn a_leader_that_hears_nobody_steps_down_and_another_takes_over() {
    let mut scenario = Scenario::new();
    let old = scenario.leader();
    // At work, and so awake: one that sleeps would not notice before it is asked.
    scenario.put("k", "0");
    scenario.fault(&Fault::Partition { cut: Cut::Deaf(Target::Node(old)), length: ms(60_000) });
    let new = scenario.leader_other_than(Some(old));
    scenario.put("k", "1");
    assert_ne!(new, old);
    assert!(scenario.count(Mark::CheckQuorumStepDown) > 0);
    scenario.finish();
}

#[test]
fn a_store_that_restarted_grants_no_vote_for_a_lease() {
    let mut scenario = Scenario::new();
    let old = scenario.leader();
    scenario.put("k", "1");
    let (first, second) = (scenario.another(&[old]), 3 - old - scenario.another(&[old]));
    // Both followers forget that they promised the leader their silence.
    scenario.isolate(old, ms(10_000));
    for node in [first, second] {
        let crash = Fault::Crash { target: Target::Node(node), point: CrashPoint::Now, down: ms(1), power_cut: true };
        scenario.fault(&crash);
    }
    let began = scenario.cluster.now;
    scenario.leader_other_than(Some(old));
    assert!(scenario.cluster.now - began >= nanos(scenario.cluster.knobs.config.lease));
    scenario.finish();
}

#[test]
fn a_write_of_a_deposed_leader_is_never_reported_as_done() {
    let mut scenario = Scenario::new();
    let old = scenario.leader();
    scenario.put("k", "1");
    scenario.isolate(old, ms(6_000));
    assert_eq!(scenario.put_at(old, "k", "lost", ms(500)), None);
    let new = scenario.leader_other_than(Some(old));
    assert!(matches!(scenario.put_at(new, "k", "2", ms(1_000)), Some(Answer::Write(_))));
    scenario.wait_until("the old leader tells its caller", |cluster| !cluster.direct.is_empty());
    let told = scenario.cluster.direct.pop_first().map(|(_, outcome)| outcome);
    let Some(flotilla_router::core::CallOutcome::Response(response)) = told else { panic!("{told:?}") };
    let Some(Answer::Error(error)) = response.body else { panic!("{response:?}") };
    assert!(matches!(Error::from(error), Error::NotLeader { .. }), "surely not applied: it was overwritten");
    assert_eq!(scenario.get("k"), Some("2".into()));
    scenario.finish();
}

#[test]
fn a_failed_sync_stops_the_node_and_the_others_go_on() {
    let mut scenario = Scenario::new();
    let leader = scenario.leader();
    scenario.fault(&Fault::SyncFails { target: Target::Node(leader), down: ms(5_000) });
    scenario.ask(put("k", "1"));
    scenario.answers();
    assert_eq!(scenario.count(Mark::SyncFailed), 1);
    scenario.leader_other_than(Some(leader));
    scenario.put("k", "2");
    assert_eq!(scenario.get("k"), Some("2".into()));
    scenario.finish();
}

#[test]
fn a_disk_at_its_margin_refuses_puts_and_takes_deletes() {
    let mut scenario = Scenario::new();
    let leader = scenario.leader();
    scenario.put("k", "1");
    scenario.fault(&Fault::DiskMargin { target: Target::Node(leader), length: ms(60_000) });
    scenario.run_for(ms(10));
    scenario.ask(put("k", "2"));
    let answers = scenario.answers();
    assert!(matches!(answers[..], [Err(Error::DiskFull { .. } | Error::Timeout { .. })]), "{answers:?}");
    scenario.ask(delete("k"));
    assert!(matches!(scenario.answers()[..], [Ok(_)]));
    assert_eq!(scenario.get("k"), None);
    scenario.finish();
}

#[test]
fn without_leases_a_leader_cut_off_serves_no_read_at_all() {
    let mut scenario = Scenario::with(|knobs| knobs.config.read_mode = ReadMode::Quorum);
    let old = scenario.leader();
    scenario.put("k", "1");
    assert_eq!(scenario.read_at(old, "k", ms(50)), Some(Some("1".into())));
    scenario.isolate(old, ms(5_000));
    assert_eq!(scenario.read_at(old, "k", ms(400)), None);
    scenario.finish();
}

#[test]
fn a_follower_that_needs_old_entries_gets_them_from_disk() {
    let mut scenario = Scenario::with(|knobs| {
        knobs.config.cache_bytes_max = 0;
        knobs.config.message_bytes_max = 64;
    });
    let leader = scenario.leader();
    let behind = scenario.another(&[leader]);
    scenario.isolate(behind, ms(4_000));
    for at in 0..40 {
        scenario.put("k", &format!("{at}"));
    }
    scenario.wait_until("the partition ends", |cluster| cluster.undo.is_empty());
    scenario.run_for(ms(2_000));
    assert!(scenario.count(Mark::LogFetched) > 0);
    assert_eq!(scenario.count(Mark::SnapshotSent), 0);
    scenario.finish();
}

#[test]
fn five_replicas_stand_the_loss_of_two() {
    let mut scenario = Scenario::with(|knobs| {
        (knobs.nodes, knobs.members) = (5, 5);
        knobs.replicas = 5;
    });
    let leader = scenario.leader();
    let second = scenario.another(&[leader]);
    for node in [leader, second] {
        scenario.isolate(node, ms(30_000));
    }
    let new = scenario.leader_other_than(Some(leader));
    assert!(matches!(scenario.put_at(new, "k", "1", ms(1_000)), Some(Answer::Write(_))));
    assert_eq!(scenario.read_at(new, "k", ms(1_000)), Some(Some("1".into())));
    scenario.finish();
}

#[test]
fn a_drained_node_hands_its_ranges_over_before_it_stops() {
    let mut scenario = Scenario::with(|knobs| knobs.ranges = 8);
    let leader = scenario.leader();
    scenario.put("k", "1");
    scenario.run_for(ms(2_000));
    scenario.fault(&Fault::Drain { target: Target::Node(leader), down: ms(3_000) });
    scenario.run_for(ms(1_000));
    let ranges = scenario.cluster.ranges();
    assert!(ranges.iter().all(|range| scenario.cluster.leader_of(*range).is_some_and(|node| node != leader)));
    scenario.finish();
}

#[test]
fn a_store_ends_that_comes_upon_a_record_that_rots() {
    let mut scenario = Scenario::new();
    let leader = scenario.leader();
    scenario.put("k", "1");
    // All of its records, so that the key is among them.
    for per_mille in 0..1_000 {
        let target = Target::Node(leader);
        scenario.fault(&Fault::Rot { target, family: Family::State, per_mille, down: ms(3_000) });
    }
    assert_eq!(scenario.read_at(leader, "k", ms(50)), None, "nothing is served of it");
    scenario.wait_until("the store ends", |cluster| cluster.marks.count(Mark::RotMet) > 0);
    let new = scenario.leader_other_than(Some(leader));
    assert_eq!(scenario.read_at(new, "k", ms(1_000)), Some(Some("1".into())));
    scenario.finish();
}

#[test]
fn restarted_followers_keep_what_they_have_promised_their_leader() {
    let mut scenario = Scenario::new();
    let leader = scenario.leader();
    scenario.put("k", "1");
    scenario.fault(&Fault::Promises { range: RANGE, length: ms(2_500) });
    scenario.wait_until("the followers restart", |cluster| cluster.marks.count(Mark::PromisesTried) > 0);
    let new = scenario.leader_other_than(Some(leader));
    scenario.put("k", "2");
    assert_eq!(scenario.read_at(new, "k", ms(1_000)), Some(Some("2".into())));
    scenario.finish();
}
