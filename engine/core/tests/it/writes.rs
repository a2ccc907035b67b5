//! What a write is told, and when; and what is refused before it becomes a proposal.

use flotilla_engine::config::Config;
use flotilla_engine::store::{Input, Token, Write};
use flotilla_engine::time::BootTime;
use flotilla_proto::error::Action;
use flotilla_proto::ids::{SYSTEM_KEYSPACE, SYSTEM_RANGE};
use flotilla_proto::{Error, NodeId, v1};

use crate::cluster::{Cluster, EPOCH, LATER, RANGE, delete, put, request};

fn action(cluster: &Cluster, token: u64) -> Option<Action> {
    cluster.answer(token).as_ref().err().map(Error::action)
}

fn other_leader(cluster: &mut Cluster) -> u64 {
    cluster.tick_until(|cluster| (2..=3).any(|id| cluster.summary(id).leads && cluster.view(id).serves));
    (2..=3).find(|id| cluster.summary(*id).leads).expect("just seen")
}

fn with_epoch(token: u64, epoch: v1::Epoch) -> Input {
    let request = request(vec![put("k", "v")]);
    Input::Write(Write { token: Token(token), range: RANGE, epoch, request, deadline: LATER })
}

#[test]
fn writes_of_one_turn_share_an_entry_and_each_gets_its_own_answer() {
    let mut cluster = Cluster::led_by_1(Config::default());
    let before = cluster.summary(1).last_index;
    let inputs = (0..10).map(|token| crate::cluster::write_input(token, request(vec![put("k", "v")]))).collect();
    cluster.turn(1, inputs);
    assert_eq!(cluster.summary(1).last_index, before + 1);
    cluster.settle();
    let versions: Vec<u64> =
        (0..10).map(|token| cluster.answer(token).as_ref().expect("applied").results[0].version).collect();
    assert!(versions.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{versions:?}");
}

/// Five writes at node 1, with the tokens 1 to 5.
fn write_five(cluster: &mut Cluster, value: &str, deadline: BootTime) {
    for token in 1..6 {
        let request = request(vec![put("k", value)]);
        let write = Write { token: Token(token), range: RANGE, epoch: EPOCH, request, deadline };
        cluster.turn(1, vec![Input::Write(write)]);
    }
}

/// Its index may not be applied for as long as nobody writes; its bytes would count all that time, and leave no room for
/// others (seed 456 of the simulation: the placement service could not write any more).
#[test]
fn what_fell_out_of_the_log_counts_no_more_when_its_deadline_has_passed() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.cut_off.insert(1);
    let deadline = cluster.now + cluster.config.election_timeout() * 4;
    write_five(&mut cluster, "lost", deadline);
    let before = cluster.summary(1).last_index;
    other_leader(&mut cluster);
    cluster.cut_off.clear();
    cluster.tick_until(|cluster| cluster.summary(1).last_index < before);
    cluster.tick_until(|cluster| cluster.now > deadline);
    cluster.tick();
    assert_eq!(cluster.summary(1).proposal_bytes, 0);
    assert_eq!(action(&cluster, 5), Some(Action::Ambiguous));
}

/// A range that has lost its quorum keeps in its log what it proposed; what that weighed counted for as long, and some such
/// ranges would have left no room for the writes of all others on the node (seed 3596 of the simulation: the placement
/// service could not write any more, and without it the range was not removed).
#[test]
fn what_a_deposed_leader_without_a_quorum_proposed_counts_no_more_when_its_deadline_has_passed() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.cut_off.extend([2, 3]);
    let deadline = cluster.now + cluster.config.election_timeout() * 4;
    write_five(&mut cluster, "in the log", deadline);
    let last = cluster.summary(1).last_index;
    cluster.tick_until(|cluster| !cluster.summary(1).leads && cluster.now > deadline);
    cluster.tick();
    assert_eq!(cluster.summary(1).proposal_bytes, 0);
    assert_eq!(action(&cluster, 5), Some(Action::Ambiguous));
    assert_eq!(cluster.summary(1).last_index, last, "it may still be committed");
    cluster.cut_off.clear();
    let level = |cluster: &Cluster| (2..=3).all(|id| cluster.summary(id).applied == cluster.summary(1).applied);
    cluster.tick_until(|cluster| cluster.leader().is_some_and(|id| cluster.view(id).serves) && level(cluster));
    assert_eq!(cluster.writes.iter().filter(|(token, _)| *token == 5).count(), 1, "it is answered once");
}

#[test]
fn an_overwritten_proposal_is_answered_not_leader() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.cut_off.insert(1);
    cluster.put(1, 1, "k", "never");
    cluster.settle();
    let leader = other_leader(&mut cluster);
    cluster.put(leader, 2, "k", "v");
    cluster.settle();
    assert!(cluster.writes.iter().all(|(token, _)| *token != 1), "its outcome is open while it is cut off");
    cluster.cut_off.clear();
    cluster.tick_until(|cluster| cluster.summary(1).applied == cluster.summary(leader).applied);
    assert_eq!(action(&cluster, 1), Some(Action::RefreshRoute));
    assert!(cluster.answer(2).is_ok());
    assert_eq!(cluster.summary(1).proposal_bytes, 0);
}

#[test]
fn a_proposal_that_the_next_leader_commits_is_answered_as_applied() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.put(1, 1, "k", "v");
    for _ in 0..2 {
        cluster.deliver();
    }
    // The followers have it; that it is committed the old leader hears from its successor.
    cluster.network.clear();
    cluster.cut_off.insert(1);
    let leader = other_leader(&mut cluster);
    cluster.cut_off.clear();
    cluster.tick_until(|cluster| cluster.summary(1).applied == cluster.summary(leader).applied);
    assert!(!cluster.summary(1).leads && cluster.answer(1).is_ok());
}

#[test]
fn a_request_ahead_in_epoch_is_refused() {
    // tikv#4125: a replica that is behind must not serve one that has seen a later split.
    let mut cluster = Cluster::led_by_1(Config::default());
    let last = cluster.summary(1).last_index;
    cluster.turn(
        1,
        vec![with_epoch(1, v1::Epoch { version: 2, ..EPOCH }), with_epoch(2, v1::Epoch { version: 0, ..EPOCH })],
    );
    for token in [1, 2] {
        let error = cluster.answer(token).as_ref().expect_err("refused");
        assert!(matches!(error, Error::EpochMismatch { descriptors, .. } if descriptors[0].epoch == Some(EPOCH)));
    }
    assert_eq!(cluster.summary(1).last_index, last);
    // Where replicas are does not matter to keys.
    cluster.turn(1, vec![with_epoch(3, v1::Epoch { conf_ver: 9, ..EPOCH })]);
    cluster.settle();
    assert!(cluster.answer(3).is_ok());
}

#[test]
fn a_replica_that_does_not_lead_names_the_one_that_does() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.put(2, 1, "k", "v");
    let error = cluster.answer(1).as_ref().expect_err("refused");
    assert!(matches!(error, Error::NotLeader { leader: Some(NodeId(1)), .. }), "{error:?}");
}

#[test]
fn requests_beyond_the_budget_are_refused_and_bytes_come_back() {
    let big = "x".repeat(1_000);
    let per_range = Config { range_proposal_bytes_max: 2_500, ..Config::default() };
    let per_node = Config { node_proposal_bytes_max: 2_500, ..Config::default() };
    for config in [per_range, per_node] {
        let mut cluster = Cluster::led_by_1(config);
        cluster.disk_held.extend([2, 3]);
        for token in 0..3 {
            cluster.put(1, token, "k", &big);
        }
        assert_eq!(action(&cluster, 2), Some(Action::Retry));
        assert!(cluster.summary(1).proposal_bytes > 2_000);
        cluster.disk_held.clear();
        cluster.settle();
        assert!((0..2).all(|token| cluster.answer(token).is_ok()));
        assert_eq!(cluster.summary(1).proposal_bytes, 0);
        // One that is larger than the budget goes alone.
        cluster.put(1, 10, "k", &"x".repeat(5_000));
        cluster.put(1, 11, "k", "v");
        cluster.settle();
        assert!(cluster.answer(10).is_ok());
        assert_eq!(action(&cluster, 11), Some(Action::Retry));
        cluster.put(1, 12, "k", "v");
        cluster.settle();
        assert!(cluster.answer(12).is_ok());
    }
}

/// A placement service that cannot write begins anew, and cannot write again (seed 3596 of the simulation).
#[test]
fn writes_to_the_system_range_are_taken_while_those_of_others_fill_the_node() {
    let mut cluster = Cluster::led_by_1(Config { node_proposal_bytes_max: 2_500, ..Config::default() });
    let birth = v1::RangeDescriptor {
        range_id: SYSTEM_RANGE.0,
        keyspace_id: SYSTEM_KEYSPACE.0,
        epoch: Some(EPOCH),
        replicas: vec![v1::ReplicaDescriptor { replica_id: 1, node_id: 1, ..Default::default() }],
        next_replica_id: 2,
        ..Default::default()
    };
    cluster.turn(1, vec![Input::Births(vec![birth])]);
    cluster.tick_until(|cluster| cluster.node(1).views.get(&SYSTEM_RANGE).is_some_and(|view| view.serves));
    cluster.disk_held.extend([2, 3]);
    for token in 0..3 {
        cluster.put(1, token, "k", &"x".repeat(1_000));
    }
    assert_eq!(action(&cluster, 2), Some(Action::Retry));
    let request = request(vec![put("order", &"x".repeat(3_000))]);
    let write = Write { token: Token(9), range: SYSTEM_RANGE, epoch: EPOCH, request, deadline: LATER };
    cluster.turn(1, vec![Input::Write(write)]);
    cluster.settle();
    assert!(cluster.answer(9).is_ok());
}

#[test]
fn bytes_come_back_from_proposals_that_are_lost_too() {
    let mut cluster = Cluster::led_by_1(Config { node_proposal_bytes_max: 100, ..Config::default() });
    for round in 0..5 {
        let leader = cluster.leader().expect("one leads");
        cluster.cut_off = [leader].into();
        cluster.put(leader, round, "k", &"x".repeat(100));
        cluster.settle();
        cluster.tick_until(|cluster| cluster.leader().is_some_and(|id| id != leader && cluster.view(id).serves));
        cluster.cut_off.clear();
        cluster.tick_until(|cluster| (1..=3).all(|id| cluster.summary(id).proposal_bytes == 0));
        assert_eq!(action(&cluster, round), Some(Action::RefreshRoute));
    }
    let leader = cluster.leader().expect("one leads");
    cluster.put(leader, 9, "k", "v");
    cluster.settle();
    assert!(cluster.answer(9).is_ok(), "no byte of the budget leaked");
}

#[test]
fn a_deadline_tells_a_write_that_was_proposed_from_one_that_was_not() {
    let mut cluster = Cluster::led_by_1(Config::default());
    let until = |cluster: &Cluster, token, deadline| {
        let write =
            Write { token: Token(token), range: RANGE, epoch: EPOCH, request: request(vec![put("k", "v")]), deadline };
        let _ = cluster;
        Input::Write(write)
    };
    let late = until(&cluster, 1, cluster.now);
    cluster.turn(1, vec![late]);
    assert!(matches!(cluster.answer(1), Err(Error::Timeout { .. })), "surely not applied");
    cluster.disk_held.extend([2, 3]);
    let soon = until(&cluster, 2, cluster.now + cluster.config.tick);
    cluster.turn(1, vec![soon]);
    cluster.tick();
    assert_eq!(action(&cluster, 2), Some(Action::Ambiguous));
    cluster.disk_held.clear();
    cluster.settle();
    cluster.answer(2);
}

#[test]
fn an_atomic_batch_that_names_a_key_twice_is_refused() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.write(1, 1, v1::WriteRequest { ops: vec![put("a", "1"), delete("a")], atomic: true });
    assert_eq!(action(&cluster, 1), Some(Action::Fail));
}

#[test]
fn an_operation_without_a_key_is_refused() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.write(1, 1, request(vec![v1::WriteOp { op: None }]));
    assert!(cluster.answer(1).is_err());
}

#[test]
fn disk_full_lets_deletes_through() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.put(1, 1, "k", "v");
    cluster.turn(1, vec![Input::DiskSpace { has_room: false }]);
    cluster.put(1, 2, "k", "w");
    cluster.write(1, 3, request(vec![delete("k")]));
    cluster.settle();
    assert!(matches!(cluster.answer(2), Err(Error::DiskFull { nodes }) if *nodes == [NodeId(1)]));
    assert!(cluster.answer(3).as_ref().is_ok_and(|answer| answer.results[0].existed));
    cluster.turn(1, vec![Input::DiskSpace { has_room: true }]);
    cluster.put(1, 4, "k", "w");
    cluster.settle();
    assert!(cluster.answer(4).is_ok());
}

#[test]
fn writes_stop_when_no_quorum_has_room() {
    let mut cluster = Cluster::led_by_1(Config::default());
    let says = |cluster: &mut Cluster, id, has_room| {
        cluster.turn(id, vec![Input::DiskSpace { has_room }]);
        cluster.tick();
    };
    says(&mut cluster, 2, false);
    cluster.put(1, 1, "k", "v");
    says(&mut cluster, 3, false);
    cluster.put(1, 2, "k", "v");
    says(&mut cluster, 3, true);
    cluster.put(1, 3, "k", "v");
    cluster.settle();
    assert!(cluster.answer(1).is_ok() && cluster.answer(3).is_ok());
    assert!(matches!(cluster.answer(2), Err(Error::DiskFull { nodes }) if nodes.len() == 2));
}
