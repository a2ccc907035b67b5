//! Ranges that split and change their replicas: what other systems got wrong, each as a scenario.

use flotilla_engine::config::Config;
use flotilla_engine::store::{Envelope, Event, Input, Split, SplitAt, Token, Write};
use flotilla_proto::{Error, NodeId, RangeId, v1};
use raft::eraftpb::MessageType;

use crate::cluster::{Cluster, EPOCH, LATER, RANGE, put, request, rows};

pub const CHILD: RangeId = RangeId(100);

/// Three replicas led by node 1, further nodes that hold nothing, settings and ids known everywhere.
pub fn begun(empty: u64) -> Cluster {
    begun_with(Config::default(), empty)
}

pub fn begun_with(config: Config, empty: u64) -> Cluster {
    let mut cluster = Cluster::with_empty(config, 3, empty);
    let ids: Vec<u64> = cluster.nodes.keys().copied().collect();
    for id in ids {
        let keyspace = v1::Keyspace { keyspace_id: 1, name: "default".into(), ..Default::default() };
        let block = Input::RangeIds { first: id * 100, count: 50 };
        cluster.turn(id, vec![Input::Keyspaces(vec![keyspace]), block]);
    }
    cluster.tick_until(|cluster| cluster.node(1).view.as_ref().is_some_and(|view| view.serves));
    for (token, key) in (900..).zip(["a", "c", "n", "x"]) {
        cluster.put(1, token, key, key);
    }
    cluster.settle();
    cluster.tick();
    cluster
}

pub fn split_input(token: u64, key: &str) -> Input {
    let at = SplitAt::Keys(vec![key.to_owned().into()]);
    Input::Split(Split { token: Token(token), range: RANGE, at, deadline: LATER })
}

pub fn write_at(token: u64, range: RangeId, epoch: v1::Epoch, key: &str) -> Input {
    let request = request(vec![put(key, "v")]);
    Input::Write(Write { token: Token(token), range, epoch, request, deadline: LATER })
}

pub fn order(add: &[u64], remove: &[u64]) -> Input {
    Input::Order(v1::RangeOrder {
        order_id: 1,
        range_id: RANGE.0,
        add_nodes: add.into(),
        remove_nodes: remove.into(),
        ..Default::default()
    })
}

pub fn nodes_of(cluster: &Cluster, id: u64) -> Vec<(u64, v1::ReplicaRole)> {
    let mut nodes: Vec<_> = cluster.summary(id).descriptor.replicas.iter().map(|of| (of.node_id, of.role())).collect();
    nodes.sort_by_key(|(node, _)| *node);
    nodes
}

pub fn voters_on(cluster: &Cluster, nodes: &[u64]) -> bool {
    cluster.leader_of(RANGE).is_some_and(|leader| {
        nodes_of(cluster, leader) == nodes.iter().map(|node| (*node, v1::ReplicaRole::Voter)).collect::<Vec<_>>()
    })
}

pub fn serves(cluster: &Cluster, range: RangeId) -> Option<u64> {
    let serves = |id: &u64| cluster.node(*id).views.get(&range).is_some_and(|view| view.serves);
    cluster.nodes.keys().copied().find(serves)
}

pub fn removed_notice(to: u64, newer: v1::RangeDescriptor) -> Input {
    let message = v1::PeerMessage {
        range_id: RANGE.0,
        from_replica: 1,
        to_replica: to,
        removed: Some(newer),
        ..Default::default()
    };
    Input::Message(Envelope { from: NodeId(1), to: NodeId(to), message, disk_full: false, snapshot: None })
}

/// Range 50, the only one of keyspace 7, to be born on node 4.
fn birth_on_4() -> v1::RangeDescriptor {
    v1::RangeDescriptor {
        range_id: 50,
        keyspace_id: 7,
        epoch: Some(EPOCH),
        replicas: vec![v1::ReplicaDescriptor { replica_id: 1, node_id: 4, ..Default::default() }],
        next_replica_id: 2,
        ..Default::default()
    }
}

/// A descriptor of the whole keyspace: for [`rows`].
pub fn whole() -> v1::RangeDescriptor {
    v1::RangeDescriptor { keyspace_id: 1, ..Default::default() }
}

/// A message between replicas of the range, without what its type asks for.
pub fn message(to: u64, from: u64, kind: MessageType, term: u64) -> v1::PeerMessage {
    v1::PeerMessage {
        range_id: RANGE.0,
        from_replica: from,
        to_replica: to,
        message_type: kind as u32,
        term,
        ..Default::default()
    }
}

#[test]
fn a_split_leaves_data_and_leader_where_they_were() {
    let mut cluster = begun(0);
    cluster.turn(1, vec![split_input(1, "m")]);
    cluster.tick_until(|cluster| serves(cluster, CHILD) == Some(1));
    let (_, answer) = &cluster.splits[0];
    let ranges = answer.as_ref().expect("it was split");
    assert_eq!(ranges.iter().map(|of| of.range_id).collect::<Vec<_>>(), [RANGE.0, CHILD.0]);
    for id in 1..=3 {
        assert_eq!(rows(&cluster.node(id).disk, &ranges[1]).len(), 2);
        assert_eq!(rows(&cluster.node(id).disk, &ranges[0]).len(), 2);
    }
    assert!(cluster.fatal.is_empty());
}

/// cockroach#7600, tikv#8084, #9584, #13311, #17535: what comes for a child before the split is applied makes no rival, and no vote
/// is lost.
#[test]
fn votes_for_a_child_that_come_before_the_split_are_kept() {
    let mut cluster = begun(0);
    cluster.apply_held.insert(2);
    cluster.cut_off.insert(3);
    cluster.turn(1, vec![split_input(1, "m")]);
    cluster.settle();
    assert!(cluster.summary_of(1, CHILD).is_some());
    assert!(cluster.summary_of(2, CHILD).is_none(), "no rival");
    assert!(!cluster.sent(1, 2, MessageType::MsgRequestVote).is_empty());
    cluster.apply_held.clear();
    cluster.settle();
    assert_eq!(serves(&cluster, CHILD), Some(1), "without another round of the election");
}

/// cockroach#75918, #20939: a split that is applied a second time does not undo the child's term and vote.
#[test]
fn a_replayed_split_keeps_what_the_child_has_become() {
    let mut cluster = begun(0);
    cluster.turn(1, vec![split_input(1, "m")]);
    cluster.tick_until(|cluster| serves(cluster, CHILD) == Some(1));
    cluster.turn(1, vec![write_at(2, CHILD, v1::Epoch { version: 2, ..EPOCH }, "q")]);
    cluster.settle();
    let before: Vec<_> = (1..=3).map(|id| cluster.summary_of(id, CHILD).expect("it is here")).collect();
    for id in 1..=3 {
        cluster.restart(id);
        cluster.settle();
    }
    for (id, before) in (1..=3).zip(before) {
        let now = cluster.summary_of(id, CHILD).expect("it is here");
        assert_eq!((now.term, now.vote, now.applied), (before.term, before.vote, before.applied), "node {id}");
    }
}

/// cockroach#20939: a crash before, between and after log, apply and answer: the split happens once, and the child serves.
#[test]
fn a_crash_around_a_split_loses_neither_half() {
    for point in 0..12 {
        let mut cluster = begun(0);
        cluster.turn(1, vec![split_input(1, "m")]);
        for _ in 0..point {
            let any = cluster.deliver() | cluster.persist(2) | cluster.apply(2) | cluster.persist(1);
            if !any {
                break;
            }
        }
        for id in 1..=3 {
            cluster.restart(id);
        }
        cluster.tick_until(|cluster| cluster.leader_of(RANGE).is_some());
        for _ in 0..30 {
            cluster.tick();
        }
        let counts: Vec<usize> = (1..=3).map(|id| cluster.node(id).store.ranges().count()).collect();
        assert!(counts.iter().all(|count| *count == counts[0]), "point {point}: {counts:?}");
        let whole = v1::RangeDescriptor { keyspace_id: 1, ..Default::default() };
        assert!((1..=3).all(|id| rows(&cluster.node(id).disk, &whole).len() == 4), "point {point}");
        assert!(counts[0] == 1 || serves(&cluster, CHILD).is_some(), "point {point}");
    }
}

/// Writes behind a split wait; those of the left half go on, those of the right half are refused with both ranges.
#[test]
fn a_split_is_a_barrier_for_writes() {
    let mut cluster = begun(0);
    cluster.turn(1, vec![split_input(1, "m"), write_at(2, RANGE, EPOCH, "b"), write_at(3, RANGE, EPOCH, "y")]);
    assert!(cluster.writes.iter().all(|(token, _)| *token >= 900), "they wait");
    cluster.settle();
    cluster.tick();
    assert!(cluster.answer(2).is_ok());
    let Err(Error::EpochMismatch { descriptors, .. }) = cluster.answer(3) else { panic!("{:?}", cluster.answer(3)) };
    assert_eq!(descriptors.iter().map(|of| of.range_id).collect::<Vec<_>>(), [RANGE.0, CHILD.0]);
}

/// tikv#4125: a request ahead of the replica is refused as well as one behind it.
#[test]
fn epochs_ahead_and_behind_are_refused() {
    let mut cluster = begun(0);
    cluster.turn(1, vec![write_at(1, RANGE, v1::Epoch { version: 9, ..EPOCH }, "b")]);
    assert!(matches!(cluster.answer(1), Err(Error::EpochMismatch { .. })));
    cluster.turn(1, vec![split_input(2, "m")]);
    cluster.settle();
    cluster.turn(1, vec![write_at(3, RANGE, EPOCH, "b")]);
    assert!(matches!(cluster.answer(3), Err(Error::EpochMismatch { .. })));
}

/// From proposing a split until it is applied here, no lease: another replica may let the child lead before.
#[test]
fn no_lease_from_proposing_a_split_until_it_is_applied() {
    let mut cluster = begun(0);
    assert!(cluster.view(1).lease_covers(cluster.now));
    cluster.apply_held.insert(1);
    cluster.turn(1, vec![split_input(1, "m")]);
    assert!(!cluster.view(1).lease_covers(cluster.now), "at once");
    cluster.tick();
    assert!(cluster.summary_of(2, CHILD).is_some() && !cluster.view(1).lease_covers(cluster.now));
    cluster.apply_held.clear();
    cluster.settle();
    cluster.tick();
    assert!(cluster.view(1).lease_covers(cluster.now));
}

/// A leader whose split was overwritten, and that leads again with a shorter log, takes writes.
#[test]
fn a_split_of_a_former_reign_holds_nothing_up() {
    let mut cluster = begun(0);
    cluster.cut_off.insert(1);
    let fill: Vec<Input> = (10..20).map(|token| write_at(token, RANGE, EPOCH, "b")).collect();
    for input in fill {
        cluster.turn(1, vec![input]);
    }
    cluster.turn(1, vec![split_input(1, "m")]);
    let tall = cluster.summary(1).last_index;
    cluster.tick_until(|cluster| (2..=3).any(|id| cluster.node(id).views[&RANGE].serves));
    cluster.cut_off.clear();
    cluster.tick_until(|cluster| !cluster.summary(1).leads && cluster.summary(1).last_index < tall);
    let leader = cluster.leader_of(RANGE).expect("there is one");
    cluster.transfer(leader, 7, 1);
    cluster.tick_until(|cluster| cluster.node(1).views[&RANGE].serves);
    cluster.turn(1, vec![write_at(2, RANGE, EPOCH, "b")]);
    cluster.settle();
    cluster.tick();
    assert!(cluster.answer(2).is_ok());
    assert!(matches!(cluster.splits[..], [(1, Err(Error::Ambiguous { .. } | Error::NotLeader { .. }))]));
}

/// A replica that is told of its removal while its apply stage splits it: the child here is nobody's to destroy.
#[test]
fn a_doomed_range_leaves_what_was_split_off_alone() {
    let mut cluster = begun(0);
    cluster.apply_held.insert(3);
    cluster.turn(1, vec![split_input(1, "m")]);
    cluster.settle();
    cluster.tick();
    assert!(!cluster.node(3).applies.is_empty());
    cluster.turn(3, vec![Input::Remove { range: RANGE, replica_id: 3 }]);
    cluster.apply_held.clear();
    cluster.settle();
    assert!(cluster.summary_of(3, RANGE).is_none());
    let child = cluster.summary_of(3, CHILD).expect("it lives on").descriptor;
    assert_eq!(rows(&cluster.node(3).disk, &child).len(), 2);
    cluster.restart(3);
    assert!(cluster.summary_of(3, CHILD).is_some());
}

#[test]
fn a_replica_moves_by_order_and_the_old_one_cleans_up() {
    let mut cluster = begun(1);
    cluster.turn(1, vec![order(&[4], &[3])]);
    cluster.tick_until(|cluster| voters_on(cluster, &[1, 2, 4]));
    cluster.tick_until(|cluster| cluster.summary_of(3, RANGE).is_none());
    let whole = v1::RangeDescriptor { keyspace_id: 1, ..Default::default() };
    assert!(rows(&cluster.node(3).disk, &whole).is_empty());
    assert_eq!(rows(&cluster.node(4).disk, &whole).len(), 4);
    assert!(cluster.fatal.is_empty());
}

/// etcd#11038: a leader that is to go hands over first, and says nothing more once it is gone.
#[test]
fn the_leader_itself_is_replaced() {
    let mut cluster = begun(1);
    cluster.turn(1, vec![order(&[4], &[1])]);
    cluster.tick_until(|cluster| voters_on(cluster, &[2, 3, 4]) && cluster.summary_of(1, RANGE).is_none());
    let (sent, term) = (cluster.sent.len(), cluster.summary(2).term);
    (0..30).for_each(|_| cluster.tick());
    assert!(cluster.sent[sent..].iter().all(|of| of.from != NodeId(1)));
    assert_eq!(cluster.summary(2).term, term, "and disturbs nobody");
}

#[test]
fn a_range_shrinks_to_one_voter_moves_and_grows_again() {
    let mut cluster = begun(2);
    for (at, add, remove, then) in [
        (1, &[][..], &[2, 3][..], &[1][..]),
        (1, &[2][..], &[1][..], &[2][..]),
        (2, &[1, 3][..], &[][..], &[1, 2, 3][..]),
        (2, &[4, 5][..], &[][..], &[1, 2, 3, 4, 5][..]),
        (2, &[][..], &[4, 5][..], &[1, 2, 3][..]),
    ] {
        cluster.turn(at, vec![order(add, remove)]);
        cluster.tick_until(|cluster| voters_on(cluster, then) && serves(cluster, RANGE).is_some());
    }
    assert!(cluster.fatal.is_empty());
}

/// etcd#12136: whoever leads next leaves a joint configuration.
#[test]
fn a_new_leader_leaves_a_joint_configuration() {
    let mut cluster = begun(1);
    cluster.turn(1, vec![order(&[4], &[3])]);
    let joint = |cluster: &Cluster, id| nodes_of(cluster, id).contains(&(4, v1::ReplicaRole::VoterIncoming));
    for _ in 0..100_000 {
        if joint(&cluster, 1) && joint(&cluster, 2) {
            break;
        }
        let any = (1..=4).any(|id| cluster.persist(id) | cluster.apply(id)) | cluster.deliver();
        if !any {
            cluster.now = cluster.now + cluster.config.tick;
            (1..=4).for_each(|id| drop(cluster.turn(id, vec![Input::Tick])));
        }
    }
    cluster.cut_off.insert(1);
    cluster.tick_until(|cluster| voters_on(cluster, &[1, 2, 4]));
}

#[test]
fn a_change_without_a_quorum_of_its_result_waits() {
    let mut cluster = begun(1);
    cluster.cut_off.extend([3, 4]);
    for _ in 0..15 {
        cluster.tick();
    }
    cluster.turn(1, vec![order(&[], &[2])]);
    for _ in 0..5 {
        cluster.tick();
    }
    assert_eq!(nodes_of(&cluster, 1).len(), 3);
    assert!(cluster.summary(1).order_waits.contains("no quorum"), "{}", cluster.summary(1).order_waits);
}

/// tikv#1262, #10352: removed while away, it is told, cleans up, and stays gone; a later replica has a new id.
#[test]
fn a_removed_replica_that_comes_back_is_told_and_may_be_added_anew() {
    let mut cluster = begun(1);
    cluster.cut_off.insert(3);
    cluster.turn(1, vec![order(&[4], &[3])]);
    cluster.tick_until(|cluster| voters_on(cluster, &[1, 2, 4]));
    cluster.restart(3);
    cluster.cut_off.clear();
    cluster.tick_until(|cluster| cluster.summary_of(3, RANGE).is_none());
    let leader = cluster.leader_of(RANGE).expect("there is one");
    cluster.turn(leader, vec![order(&[3], &[])]);
    cluster.tick_until(|cluster| voters_on(cluster, &[1, 2, 3, 4]));
    assert!(cluster.summary_of(3, RANGE).expect("it is here").replica_id > 4);
}

#[test]
fn what_proves_nothing_removes_nothing() {
    let mut cluster = begun(0);
    let own = (*cluster.summary(3).descriptor).clone();
    let newer = v1::Epoch { conf_ver: 9, ..EPOCH };
    let without_3 = || own.replicas.iter().filter(|of| of.node_id != 3).copied().collect();
    for descriptor in [
        own.clone(),
        v1::RangeDescriptor { epoch: Some(newer), ..own.clone() },
        v1::RangeDescriptor { replicas: without_3(), ..own.clone() },
        v1::RangeDescriptor { replicas: without_3(), epoch: Some(newer), range_id: 77, ..own.clone() },
        v1::RangeDescriptor { replicas: without_3(), epoch: Some(newer), next_replica_id: 3, ..own.clone() },
        v1::RangeDescriptor::default(),
    ] {
        cluster.turn(3, vec![removed_notice(3, descriptor)]);
        assert!(cluster.summary_of(3, RANGE).is_some());
    }
    let refused = cluster.events.iter().filter(|(id, of)| *id == 3 && matches!(of, Event::MessageRefused { .. }));
    assert_eq!(refused.count(), 6);
}

#[test]
fn a_check_sees_the_same_on_every_replica() {
    let mut cluster = begun(0);
    cluster.turn(1, vec![Input::Check { token: Token(1), range: RANGE, deadline: LATER }]);
    cluster.turn(1, vec![write_at(2, RANGE, EPOCH, "later")]);
    cluster.settle();
    cluster.tick();
    let started = *cluster.checks[0].1.as_ref().expect("it began");
    assert_eq!(cluster.checkpoints.len(), 3);
    for (_, at, rows) in &cluster.checkpoints {
        assert_eq!((at.check_id, at.index), (started.check_id, started.index));
        assert_eq!(rows, &cluster.checkpoints[0].2);
        assert_eq!(rows.len(), 4);
    }
}

#[test]
fn births_happen_once_and_over_nothing() {
    let mut cluster = begun(1);
    let birth = birth_on_4();
    let overlapping = v1::RangeDescriptor { range_id: 51, ..birth.clone() };
    cluster.turn(4, vec![Input::Births(vec![birth.clone(), overlapping, birth.clone()])]);
    cluster.tick_until(|cluster| serves(cluster, RangeId(50)) == Some(4));
    let term = cluster.summary_of(4, RangeId(50)).expect("it is here").term;
    cluster.turn(4, vec![Input::Births(vec![birth.clone()])]);
    cluster.settle();
    assert_eq!(cluster.node(4).store.ranges().count(), 1);
    assert_eq!(cluster.summary_of(4, RangeId(50)).expect("it is here").term, term);
    cluster.turn(4, vec![Input::Remove { range: RangeId(50), replica_id: 1 }]);
    cluster.settle();
    cluster.turn(4, vec![Input::Births(vec![birth])]);
    assert_eq!(cluster.node(4).store.ranges().count(), 0, "what is gone is not born again");
}

#[test]
fn a_range_that_a_crash_could_undo_is_not_lasting() {
    let mut cluster = begun(1);
    let birth = birth_on_4();
    cluster.turn(4, vec![Input::Births(vec![birth.clone()])]);
    assert!(!cluster.summary_of(4, RangeId(50)).expect("it is here").is_lasting);
    cluster.restart(4);
    assert!(cluster.summary_of(4, RangeId(50)).is_none(), "nothing of it was durable");
    cluster.turn(4, vec![Input::Births(vec![birth])]);
    assert!(cluster.persist(4));
    assert!(cluster.summary_of(4, RangeId(50)).expect("it is here").is_lasting);
}

#[test]
fn bad_splits_are_refused_in_words() {
    let mut cluster = begun(0);
    cluster.turn(
        1,
        vec![
            split_input(1, ""),
            Input::Split(Split { token: Token(2), range: RANGE, at: SplitAt::Parts(1), deadline: LATER }),
        ],
    );
    let many = (0..60).map(|at| format!("k{at:02}").into()).collect();
    let split = Split { token: Token(3), range: RANGE, at: SplitAt::Keys(many), deadline: LATER };
    let effects = cluster.turn(1, vec![Input::Split(split)]);
    assert!(effects.splits.len() == 1);
    let said: Vec<String> = cluster.splits.iter().map(|(_, of)| of.clone().expect_err("refused").to_string()).collect();
    assert!(said[0].contains("begins at"), "{said:?}");
    assert!(said[1].contains("1 parts"), "{said:?}");
    assert!(said[2].contains("ids"), "{said:?}");
    assert_eq!(cluster.node(1).store.ranges().count(), 1);
}
