//! Ranges that sleep, and everything else that happens to ranges: snapshots, merges, slow nodes, loss of a majority.

use std::time::Duration;

use flotilla_engine::config::Config;
use flotilla_engine::store::{Envelope, Input, Recovered, Token, TransferLeader, Write};
use flotilla_placement::recovery::{self, Wish};
use flotilla_proto::{NodeId, RangeId, v1};
use raft::eraftpb::MessageType;

use crate::cluster::{Cluster, EPOCH, LATER, RANGE, put, request};
use crate::merges::{assert_well, merge_input};
use crate::quorum_loss::{answer, survey};
use crate::ranges::{message, order, serves, split_input, voters_on};
use crate::sleep::{all_asleep, asleep, asleep_with, config, others, sleeps, ticks};
use crate::sleep_many::{led_by, many};
use crate::snapshots::small_log;

/// What a snapshot under way rests on (the log behind it, the pause before the next) would be gone with sleep, and
/// whoever gets it would need another one.
#[test]
fn a_leader_stays_awake_for_a_snapshot_that_is_under_way() {
    let (mut cluster, leader) = asleep_with(Config { idle_ticks: config().idle_ticks, ..small_log() });
    let [behind, _] = others(leader);
    cluster.cut_off.insert(behind);
    for token in 10..50 {
        cluster.put(leader, token, &format!("key-{}", token % 7), "value");
        cluster.settle();
    }
    assert!(cluster.summary(leader).truncated > cluster.summary(behind).last_index, "its entries are gone");
    cluster.cut_off.clear();
    let leaves = |cluster: &Cluster| cluster.network.iter().any(|sent| sent.snapshot.is_some());
    cluster.step_until(leaves);
    // Its node is busy with it, and says nothing for as long as that takes.
    cluster.network.retain(|sent| sent.snapshot.is_none());
    cluster.cut_off.insert(behind);
    ticks(&mut cluster, 100);
    assert!(!sleeps(&cluster, leader));
    // It is not waited for without end.
    ticks(&mut cluster, 1_200);
    assert!(sleeps(&cluster, leader));
    cluster.cut_off.clear();
    cluster.tick_until(|cluster| cluster.summary(behind).applied == cluster.summary(leader).applied);
    cluster.tick_until(all_asleep);
}

/// Two neighbours, asleep: who leads them, and the right one.
fn neighbours() -> (Cluster, u64, RangeId) {
    let (cluster, leader) = many(config(), 2);
    let child = cluster.node(leader).store.ranges().map(|of| of.range).find(|id| *id > RANGE).expect("split off");
    (cluster, leader, child)
}

fn merged(cluster: &Cluster, child: RangeId) -> bool {
    (1..=3).all(|id| {
        let whole = cluster.summary_of(id, RANGE).is_some_and(|of| of.descriptor.end.is_empty());
        whole && cluster.summary_of(id, child).is_none()
    })
}

#[test]
fn neighbours_that_sleep_are_merged_by_an_order_and_by_hand() {
    for by_order in [true, false] {
        let (mut cluster, leader, child) = neighbours();
        let input = if by_order {
            let merge_into = Some((*cluster.summary(leader).descriptor).clone());
            Input::Order(v1::RangeOrder { order_id: 7, range_id: child.0, merge_into, ..Default::default() })
        } else {
            merge_input(7, child, RANGE)
        };
        cluster.turn(leader, vec![input]);
        cluster.tick_until(|cluster| merged(cluster, child));
        cluster.tick_until(all_asleep);
        assert_well(&cluster);
    }
}

/// The one that is to take it in sleeps on another node, and that node's process is another one before it decides.
#[test]
fn a_merge_wakes_its_target_wherever_it_is_led() {
    for restarted in [false, true] {
        let (mut cluster, leader, child) = neighbours();
        let [other, _] = others(leader);
        let hand_over = TransferLeader { token: Token(5), range: child, to: NodeId(other), deadline: LATER };
        cluster.turn(leader, vec![Input::TransferLeader(hand_over)]);
        cluster.tick_until(|cluster| cluster.leader_of(child) == Some(other) && all_asleep(cluster));
        cluster.turn(other, vec![merge_input(7, child, RANGE)]);
        if restarted {
            cluster.step_until(|cluster| cluster.summary_of(leader, child).is_some_and(|of| of.frozen.is_some()));
            cluster.restart(leader);
        }
        cluster.tick_until(|cluster| merged(cluster, child));
        cluster.tick_until(all_asleep);
        assert_well(&cluster);
    }
}

/// One tick of a node whose figures are bad, and what the others say of themselves.
fn slow_tick(cluster: &mut Cluster, slow: u64, others_are_slow: bool) {
    // Late by less than what others take for dead.
    cluster.now = cluster.now + cluster.config.tick * 4;
    for id in others(slow) {
        let health = v1::NodeHealth { slow: others_are_slow, ..Default::default() };
        cluster.turn(slow, vec![Input::Health { from: NodeId(id), health }]);
    }
    cluster.tick();
}

#[test]
fn what_sleeps_on_a_slow_node_is_led_elsewhere_a_few_at_a_time() {
    let (mut cluster, leader) = many(config(), 100);
    let mut before = led_by(&cluster, leader).len();
    assert!(before >= 100);
    for _ in 0..20 {
        slow_tick(&mut cluster, leader, false);
        let led = led_by(&cluster, leader).len();
        assert!(before - led <= 32, "{before}, then {led}");
        before = led;
        let woken = cluster.node(leader).store.ranges().filter(|of| of.leads && !of.asleep).count();
        assert!(woken <= 64, "{woken} wait for their turn");
    }
    assert!(cluster.node(leader).store.health(cluster.now).slow);
    assert_eq!(led_by(&cluster, leader), []);
    cluster.tick_until(all_asleep);
}

/// Where nobody else is well there is nowhere to go, and waking would be in vain.
#[test]
fn a_slow_node_lets_sleep_what_nobody_better_could_lead() {
    let (mut cluster, leader) = many(config(), 5);
    for _ in 0..20 {
        slow_tick(&mut cluster, leader, true);
        assert!(all_asleep(&cluster));
    }
    assert!(cluster.node(leader).store.health(cluster.now).slow);
}

fn plan_order(cluster: &Cluster, dead: &[u64], living: &[u64]) -> (u64, v1::RecoverReplica) {
    let surveys: Vec<_> = living.iter().map(|id| survey(cluster, *id)).collect();
    let wish = Wish { plan_id: "plan".into(), dead: dead.iter().copied().collect(), ..Wish::default() };
    let plan = recovery::plan(&wish, &surveys).expect("a majority is lost");
    let kept = plan.kept.into_iter().find(|kept| kept.order.range_id == RANGE.0).expect("it is among them");
    (kept.node, kept.order)
}

fn recover_on(cluster: &mut Cluster, survivor: u64, dead: &[u64]) {
    let (node, order) = plan_order(cluster, dead, &[survivor]);
    assert_eq!(node, survivor);
    cluster.turn(survivor, vec![Input::Recover { token: Token(1), order: Box::new(order) }]);
    cluster.tick_until(|cluster| cluster.view(survivor).serves);
    assert_eq!(answer(cluster, 1), Ok(Recovered::Done));
    let epoch = cluster.summary(survivor).descriptor.epoch.unwrap_or_default();
    let write =
        Write { token: Token(2), range: RANGE, epoch, request: request(vec![put("k", "after")]), deadline: LATER };
    cluster.turn(survivor, vec![Input::Write(write)]);
    cluster.settle();
    assert!(cluster.answer(2).is_ok());
}

fn records(cluster: &mut Cluster, id: u64) -> usize {
    let effects = cluster.turn(id, vec![Input::Status { token: Token(9), range: RANGE }]);
    let status = effects.statuses[0].1.as_ref().expect("it is here");
    status.replica.as_ref().expect("always said").recoveries.len()
}

/// A leader that sleeps does not notice that it has lost its majority: whoever asks what is left wakes it.
#[test]
fn a_leader_that_lost_its_majority_in_its_sleep_is_recovered() {
    let (mut cluster, leader) = asleep();
    let dead = others(leader);
    cluster.cut_off.extend(dead);
    ticks(&mut cluster, 60);
    assert!(sleeps(&cluster, leader) && cluster.summary(leader).hears_leader);
    cluster.turn(leader, vec![Input::Survey]);
    assert!(!sleeps(&cluster, leader));
    cluster.tick_until(|cluster| !cluster.summary(leader).hears_leader);
    recover_on(&mut cluster, leader, &dead);
    // It knows over sleep and restart that it went on alone.
    cluster.tick_until(|cluster| sleeps(cluster, leader));
    assert_eq!(records(&mut cluster, leader), 1);
    cluster.restart(leader);
    assert_eq!(records(&mut cluster, leader), 1);
}

/// Who asks while all nodes live wakes nobody; where one is dead the leader makes sure, and sleeps again.
#[test]
fn a_survey_of_a_range_that_is_well_wakes_nobody_for_long() {
    let (mut cluster, leader) = asleep();
    (1..=3).for_each(|id| drop(cluster.turn(id, vec![Input::Survey])));
    assert!(all_asleep(&cluster));
    cluster.cut_off.insert(others(leader)[0]);
    ticks(&mut cluster, 30);
    cluster.turn(leader, vec![Input::Survey]);
    assert!(!sleeps(&cluster, leader));
    cluster.tick_until(|cluster| sleeps(cluster, leader));
    assert!(cluster.summary(leader).leads);
}

/// Its keyspace was dropped, and placement had told one node only when the majority of the system range was lost: the node
/// lives, and the replica there is gone (seed 87074).
#[test]
fn a_leader_whose_majority_was_removed_in_its_sleep_is_in_nobodys_way() {
    let (mut cluster, leader) = asleep();
    let [dead, without] = others(leader);
    cluster.cut_off.insert(dead);
    ticks(&mut cluster, 30);
    cluster.turn(without, vec![Input::Remove { range: RANGE, replica_id: without }]);
    cluster.tick_until(|cluster| cluster.summary_of(without, RANGE).is_none());
    assert!(sleeps(&cluster, leader));
    cluster.turn(leader, vec![Input::Survey]);
    cluster.tick_until(|cluster| !cluster.summary(leader).hears_leader);
    plan_order(&cluster, &[dead], &[leader, without]);
}

/// The order reaches a replica that sleeps, its turn to wake not yet come.
#[test]
fn a_follower_is_recovered_from_its_sleep() {
    let (mut cluster, leader) = asleep();
    let [survivor, other] = others(leader);
    cluster.cut_off.extend([leader, other]);
    cluster.now = cluster.now + cluster.config.election_timeout();
    for id in [leader, other] {
        cluster.turn(survivor, vec![Input::Beat { from: NodeId(id), boot_id: 1, leaving: true, hears_nothing: false }]);
    }
    assert!(sleeps(&cluster, survivor) && !cluster.summary(survivor).hears_leader);
    recover_on(&mut cluster, survivor, &[leader, other]);
}

/// A leader's change that its successor's shorter log has overwritten keeps nobody awake (the simulation's seed 14525).
#[test]
fn a_change_of_a_former_reign_keeps_nobody_awake() {
    let (mut cluster, old) = asleep();
    cluster.cut_off.insert(old);
    let deadline = cluster.now + Duration::from_secs(1);
    for token in (10..20).map(Token) {
        let request = request(vec![put("k", "never")]);
        cluster.turn(old, vec![Input::Write(Write { token, range: RANGE, epoch: EPOCH, request, deadline })]);
    }
    cluster.turn(old, vec![Input::Check { token: Token(1), range: RANGE, deadline: LATER }]);
    let tall = cluster.summary(old).last_index;
    cluster.tick_until(|cluster| others(old).iter().any(|id| cluster.view(*id).serves));
    cluster.cut_off.clear();
    cluster.tick_until(all_asleep);
    assert!(cluster.summary(old).last_index < tall, "the log ends before the change's index");
    assert!(cluster.checks.iter().any(|(token, answer)| *token == 1 && answer.is_err()), "and its asker knows");
}

/// Node 4 was away while its range was split, and then left the left half: nothing is there of what it held, nor of the
/// child, which names it.
fn child_not_begun_on_4(config: Config) -> (Cluster, RangeId) {
    let mut cluster = Cluster::sleepy(config, 3, 1);
    for id in 1..=3 {
        let keyspace = v1::Keyspace { keyspace_id: 1, name: "default".into(), ..Default::default() };
        cluster.turn(id, vec![Input::Keyspaces(vec![keyspace]), Input::RangeIds { first: id * 100, count: 50 }]);
    }
    cluster.tick_until(|cluster| serves(cluster, RANGE).is_some());
    let leader = serves(&cluster, RANGE).expect("just seen");
    cluster.turn(leader, vec![order(&[4], &[])]);
    let level = |cluster: &Cluster| cluster.summary(4).applied == cluster.summary(leader).applied;
    cluster.tick_until(|cluster| voters_on(cluster, &[1, 2, 3, 4]) && level(cluster));
    cluster.cut_off.insert(4);
    cluster.turn(leader, vec![split_input(1, "m")]);
    cluster.settle();
    let (_, ranges) = &cluster.splits[0];
    let child = RangeId(ranges.as_ref().expect("it was split")[1].range_id);
    cluster.turn(leader, vec![order(&[], &[4])]);
    cluster.tick_until(|cluster| voters_on(cluster, &[1, 2, 3]));
    let done = Input::Order(v1::RangeOrder { range_id: RANGE.0, ..Default::default() });
    cluster.turn(leader, vec![done]);
    let replica_id = cluster.summary(4).replica_id;
    cluster.turn(4, vec![Input::Remove { range: RANGE, replica_id }]);
    cluster.settle();
    assert_eq!(cluster.node(4).store.ranges().count(), 0);
    (cluster, child)
}

/// A node on which a child has not begun shares, for all it knows, no range with the child's leader, which takes it for
/// dead: it says that it lives because the leader's node asks (the simulation's seed 18059).
#[test]
fn a_child_does_not_sleep_for_ever_without_a_replica_that_has_not_begun() {
    // The leader may fall asleep again before the node has answered that nothing is there.
    for idle_ticks in [1, config().idle_ticks] {
        let (mut cluster, child) = child_not_begun_on_4(Config { idle_ticks, ..config() });
        cluster.tick_until(|cluster| cluster.leader_of(child).is_some() && all_asleep(cluster));
        let leader = cluster.leader_of(child).expect("just seen");
        let of_leader = |cluster: &Cluster| cluster.summary_of(leader, child).expect("it is here");
        assert_eq!(of_leader(&cluster).silent_nodes, [4]);
        cluster.cut_off.clear();
        let level =
            |cluster: &Cluster| cluster.summary_of(4, child).is_some_and(|of| of.applied == of_leader(cluster).applied);
        cluster.tick_until(level);
        cluster.tick_until(all_asleep);
        assert_eq!(of_leader(&cluster).silent_nodes, Vec::<u64>::new());
    }
}

/// One follower's node is dead, the other's replica was removed with its keyspace: a leader that is woken notices that nobody
/// answers, however soon it would sleep (the simulation's seed 23645).
#[test]
fn a_woken_leader_does_not_sleep_again_before_it_has_heard_of_the_others() {
    let (mut cluster, leader) = asleep_with(Config { idle_ticks: 1, ..Config::default() });
    let [dead, emptied] = others(leader);
    cluster.cut_off.insert(dead);
    cluster.turn(emptied, vec![Input::Remove { range: RANGE, replica_id: u64::MAX >> 1 }]);
    cluster.settle();
    // Something that wakes it, and that nothing follows from.
    let stray = message(leader, dead, MessageType::MsgRequestPreVote, 1);
    let stray = Envelope { from: NodeId(dead), to: NodeId(leader), message: stray, disk_full: false, snapshot: None };
    for _ in 0..60 {
        let lives = Input::Beat { from: NodeId(emptied), boot_id: 1, leaving: false, hears_nothing: false };
        cluster.turn(leader, vec![lives, Input::Message(stray.clone())]);
        cluster.tick();
    }
    assert!(!cluster.summary(leader).leads, "it has no quorum");
}
