//! Ranges whose majority is lost for good: one replica goes on, by order of a person, and nothing of the past comes back.

use flotilla_engine::config::Config;
use flotilla_engine::recover;
use flotilla_engine::store::{Envelope, Input, Recovered, Token};
use flotilla_placement::recovery::{self, Wish};
use flotilla_proto::{Error, NodeId, RangeId, v1};
use raft::eraftpb::MessageType;

use crate::cluster::{Cluster, EPOCH, RANGE, put, request, rows};
use crate::merges::{assert_well, frozen, merge_input, split};
use crate::ranges::{CHILD, begun, nodes_of, order, serves, split_input, write_at};

/// What a node says of its replicas.
pub fn survey(cluster: &Cluster, id: u64) -> v1::SurveyResponse {
    let replicas = cluster.node(id).store.ranges().map(|of| of.surveyed(NodeId(id))).collect();
    v1::SurveyResponse { cluster_id: 1, node_id: id, boot_id: id, replicas, ..Default::default() }
}

pub fn surveys(cluster: &Cluster, living: &[u64]) -> Vec<v1::SurveyResponse> {
    living.iter().map(|id| survey(cluster, *id)).collect()
}

/// Nodes are gone: nobody hears of them again, and the living have noticed.
fn lose(cluster: &mut Cluster, dead: &[u64], living: &[u64]) {
    cluster.cut_off.extend(dead);
    let quiet =
        |cluster: &Cluster| living.iter().all(|id| cluster.summary_of(*id, RANGE).is_none_or(|of| !of.hears_leader));
    cluster.tick_until(quiet);
}

fn wish(dead: &[u64]) -> Wish {
    Wish { plan_id: "plan".into(), dead: dead.iter().copied().collect(), ..Wish::default() }
}

/// The plan's order for the range: the node, and what it is told.
fn order_of(cluster: &Cluster, dead: &[u64], living: &[u64]) -> (u64, v1::RecoverReplica) {
    let plan = recovery::plan(&wish(dead), &surveys(cluster, living)).expect("a majority is lost");
    let kept = plan.kept.into_iter().find(|kept| kept.order.range_id == RANGE.0).expect("it is among them");
    (kept.node, kept.order)
}

fn recover(cluster: &mut Cluster, id: u64, token: u64, order: &v1::RecoverReplica) {
    cluster.turn(id, vec![Input::Recover { token: Token(token), order: Box::new(order.clone()) }]);
}

/// The one answer to an order.
pub fn answer(cluster: &Cluster, token: u64) -> Result<Recovered, Error> {
    let answers: Vec<_> = cluster.recoveries.iter().filter(|(of, _)| *of == token).collect();
    assert_eq!(answers.len(), 1, "order {token} is answered once: {answers:?}");
    answers[0].1.clone()
}

fn epoch_of(cluster: &Cluster, id: u64) -> v1::Epoch {
    cluster.summary(id).descriptor.epoch.expect("it has one")
}

fn has(cluster: &Cluster, id: u64, value: &str) -> bool {
    rows(&cluster.node(id).disk, &cluster.summary(id).descriptor)
        .iter()
        .any(|(_, row)| row.windows(value.len()).any(|part| part == value.as_bytes()))
}

/// Two of three are gone. The third goes on with all that it has, takes writes, and is whole again after a restart.
#[test]
fn the_survivor_of_three_goes_on_with_all_that_it_has() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.put(1, 1, "a", "acknowledged");
    cluster.settle();
    assert!(cluster.answer(1).is_ok());
    let before = cluster.summary(3);
    lose(&mut cluster, &[1, 2], &[3]);
    let (node, order) = order_of(&cluster, &[1, 2], &[3]);
    assert_eq!(node, 3);
    recover(&mut cluster, 3, 1, &order);
    assert!(cluster.recoveries.is_empty(), "not before it is durable");
    assert!(!cluster.view(3).serves);
    cluster.tick_until(|cluster| cluster.view(3).serves);
    assert_eq!(answer(&cluster, 1), Ok(Recovered::Done));
    assert!(has(&cluster, 3, "acknowledged"));
    let now = cluster.summary(3);
    assert!(now.term > before.term + recovery::LEAP - 1 && now.replica_id >= recovery::LEAP, "{now:?}");
    assert_eq!(nodes_of(&cluster, 3), [(3, v1::ReplicaRole::Voter)]);
    let epoch = epoch_of(&cluster, 3);
    assert!(epoch.version == EPOCH.version && epoch.conf_ver >= recovery::LEAP);
    cluster.turn(3, vec![write_at(2, RANGE, epoch, "b")]);
    cluster.settle();
    assert!(cluster.answer(2).is_ok());
    cluster.restart(3);
    cluster.tick_until(|cluster| cluster.view(3).serves);
    let boot = recover::load(&*cluster.node(3).disk).expect("readable").expect("bootstrapped");
    let records = &boot.ranges.iter().find(|of| of.descriptor.range_id == RANGE.0).expect("here").recoveries.recoveries;
    assert_eq!((records.len(), &records[0].plan_id[..], &records[0].dead_nodes[..]), (1, "plan", &[1, 2][..]));
    assert_eq!(records[0].before.as_ref(), order.before.as_ref());
}

/// What nobody knew to be committed is kept: a client may have been told so.
#[test]
fn entries_that_are_not_known_to_be_committed_are_kept_and_committed() {
    let mut cluster = Cluster::led_by_1(Config::default());
    // Node 2 hears of the entry, and never of its being committed.
    cluster.put(1, 1, "a", "maybe");
    cluster.persist(1);
    while cluster.summary(2).last_index < cluster.summary(1).last_index {
        assert!(cluster.deliver());
    }
    cluster.persist(2);
    lose(&mut cluster, &[1, 3], &[2]);
    assert!(cluster.summary(2).last_index > cluster.summary(2).commit);
    let (_, order) = order_of(&cluster, &[1, 3], &[2]);
    recover(&mut cluster, 2, 1, &order);
    cluster.tick_until(|cluster| cluster.view(2).serves);
    assert!(has(&cluster, 2, "maybe"));
}

/// Of several survivors the one with the newest log goes on; the other one's replica goes when it hears of that.
#[test]
fn of_several_survivors_the_newest_log_goes_on_and_the_other_replica_goes() {
    let mut cluster = begun(2);
    cluster.turn(1, vec![order(&[4, 5], &[])]);
    cluster.tick_until(|cluster| {
        nodes_of(cluster, 1).iter().filter(|(_, role)| *role == v1::ReplicaRole::Voter).count() == 5
    });
    cluster.settle();
    cluster.deaf.insert((4, RANGE));
    let epoch = epoch_of(&cluster, 1);
    cluster.turn(1, vec![write_at(7, RANGE, epoch, "only on some")]);
    cluster.settle();
    cluster.deaf.clear();
    lose(&mut cluster, &[1, 2, 3], &[4, 5]);
    let (node, order) = order_of(&cluster, &[1, 2, 3], &[4, 5]);
    assert_eq!(node, 5, "node 4 lacks the last write");
    recover(&mut cluster, 5, 1, &order);
    cluster.tick_until(|cluster| cluster.view(5).serves);
    // Placement finds node 4 to be no member, and says so.
    let old = cluster.summary(4).replica_id;
    cluster.turn(4, vec![Input::Remove { range: RANGE, replica_id: old }]);
    cluster.tick_until(|cluster| cluster.summary_of(4, RANGE).is_none());
    // It is given a new replica, as any node is.
    let epoch = epoch_of(&cluster, 5);
    cluster.turn(5, vec![crate::ranges::order(&[4], &[])]);
    cluster.tick_until(|cluster| {
        cluster.summary_of(4, RANGE).is_some_and(|of| of.applied == cluster.summary(5).applied)
            && nodes_of(cluster, 5).contains(&(4, v1::ReplicaRole::Voter))
    });
    assert!(epoch_of(&cluster, 5).conf_ver > epoch.conf_ver);
    assert!(cluster.fatal.is_empty(), "{:?}", cluster.fatal);
}

/// A crash at each step leaves either the old replica or the new one, and the order can be given again.
#[test]
fn a_crash_at_each_step_leaves_one_or_the_other_and_the_order_is_given_again() {
    for steps in 0..8 {
        let mut cluster = Cluster::led_by_1(Config::default());
        cluster.put(1, 1, "a", "kept");
        cluster.settle();
        lose(&mut cluster, &[1, 2], &[3]);
        let (_, order) = order_of(&cluster, &[1, 2], &[3]);
        recover(&mut cluster, 3, 1, &order);
        for step in 0..steps {
            if step % 2 == 0 {
                cluster.persist(3)
            } else {
                cluster.apply(3)
            };
        }
        let done = cluster.recoveries.iter().any(|(token, _)| *token == 1);
        cluster.restart(3);
        let alone = cluster.summary(3).descriptor.replicas.len() == 1;
        assert!(alone || !done, "what was answered is durable: {steps} steps");
        // The log and all else may have changed by an election; what was decided has not.
        recover(&mut cluster, 3, 2, &order);
        cluster.tick_until(|cluster| cluster.view(3).serves);
        let again = answer(&cluster, 2);
        assert_eq!(again, Ok(if alone { Recovered::Before } else { Recovered::Done }), "{steps} steps");
        assert!(has(&cluster, 3, "kept"));
        recover(&mut cluster, 3, 3, &order);
        cluster.settle();
        assert_eq!(answer(&cluster, 3), Ok(Recovered::Before));
        assert!(cluster.fatal.is_empty(), "{:?}", cluster.fatal);
    }
}

/// A plan is for what it was made for, and for nothing else.
#[test]
fn orders_for_another_state_are_refused() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.put(1, 1, "a", "1");
    cluster.settle();
    cluster.cut_off.extend([1, 2]);
    let refused = recovery::plan(&wish(&[1, 2]), &surveys(&cluster, &[3])).expect_err("it follows node 1 still");
    assert!(refused[0].contains("follows node 1"), "{refused:?}");
    lose(&mut cluster, &[1, 2], &[3]);
    let (_, order) = order_of(&cluster, &[1, 2], &[3]);
    let after = order.after.clone().expect("it says");
    let with = |change: &dyn Fn(&mut v1::RangeDescriptor)| {
        let mut after = after.clone();
        change(&mut after);
        v1::RecoverReplica { after: Some(after), ..order.clone() }
    };
    let cases = [
        v1::RecoverReplica { last_index: order.last_index - 1, ..order.clone() },
        v1::RecoverReplica { last_term: order.last_term + 1, ..order.clone() },
        v1::RecoverReplica { replica_id: 1, ..order.clone() },
        v1::RecoverReplica { before: Some(after.clone()), ..order.clone() },
        v1::RecoverReplica { term: 1, ..order.clone() },
        v1::RecoverReplica { after: None, ..order.clone() },
        v1::RecoverReplica { record: None, ..order.clone() },
        with(&|after| after.epoch = Some(EPOCH)),
        with(&|after| after.replicas[0].node_id = 1),
        with(&|after| after.replicas[0].replica_id = 3),
        with(&|after| after.next_replica_id = after.replicas[0].replica_id),
        with(&|after| after.start = "x".into()),
        with(&|after| after.keyspace_id += 1),
        with(&|after| after.replicas.push(after.replicas[0])),
        with(&|after| after.end = "m".into()),
    ];
    for (at, case) in cases.iter().enumerate() {
        let token = 10 + at as u64;
        recover(&mut cluster, 3, token, case);
        assert!(matches!(answer(&cluster, token), Err(Error::InvalidArgument { .. })), "case {at}");
    }
    recover(&mut cluster, 3, 1, &v1::RecoverReplica { range_id: 99, ..order.clone() });
    assert_eq!(answer(&cluster, 1), Err(Error::RangeNotFound { range: 99.into() }));
    assert_eq!(cluster.summary(3).replica_id, 3, "nothing has changed");
    // A quorum that lives after all.
    cluster.cut_off.clear();
    cluster.tick_until(|cluster| cluster.summary(3).leader.is_some());
    recover(&mut cluster, 3, 2, &order);
    let Err(Error::InvalidArgument { what, .. }) = answer(&cluster, 2) else { panic!("a quorum lives") };
    assert!(what.contains("a quorum of it lives"), "{what}");
}

/// The lost ones come back, and nobody keeps them away: they choose a leader among themselves, and the new group hears
/// nothing of it. What they tell its replica is for one that is gone; what it tells them removes them.
#[test]
fn the_old_group_cannot_reach_the_new_one_and_goes_when_it_hears_of_it() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.put(1, 1, "a", "1");
    cluster.settle();
    lose(&mut cluster, &[1, 2], &[3]);
    let (_, order) = order_of(&cluster, &[1, 2], &[3]);
    recover(&mut cluster, 3, 1, &order);
    cluster.tick_until(|cluster| cluster.view(3).serves);
    let epoch = epoch_of(&cluster, 3);
    let term = cluster.summary(3).term;
    // Both come back at once.
    cluster.cut_off.clear();
    for id in [1, 2] {
        cluster.restart(id);
    }
    cluster.tick_until(|cluster| [1, 2].iter().any(|id| cluster.summary(*id).leads));
    for _ in 0..20 {
        cluster.tick();
        let now = cluster.summary(3);
        assert!(now.leads && now.term == term, "it is not deposed: {now:?}");
    }
    assert_eq!(epoch_of(&cluster, 3), epoch);
    // A message of the new group, as a leader sends it to a replica that it takes for a member.
    let stray = v1::PeerMessage {
        range_id: RANGE.0,
        from_replica: cluster.summary(3).replica_id,
        to_replica: 1,
        removed: Some((*cluster.summary(3).descriptor).clone()),
        index: cluster.summary(3).applied,
        log_term: term,
        ..Default::default()
    };
    for (id, message) in [(1, stray.clone()), (2, v1::PeerMessage { to_replica: 2, ..stray })] {
        let envelope = Envelope { from: NodeId(3), to: NodeId(id), message, disk_full: false, snapshot: None };
        cluster.turn(id, vec![Input::Message(envelope)]);
        cluster.settle();
        assert!(cluster.summary_of(id, RANGE).is_none(), "node {id} has let it go");
    }
    assert!(cluster.summary(3).leads && cluster.fatal.is_empty(), "{:?}", cluster.fatal);
}

/// A joint configuration is left behind with everything else of the old group, learners become voters where nothing
/// better is left, and a change of replicas that stands in the log takes no effect.
#[test]
fn half_done_changes_of_replicas_end_with_the_old_group() {
    let mut cluster = begun(2);
    cluster.turn(1, vec![order(&[4, 5], &[2, 3])]);
    cluster.step_until(|cluster| {
        cluster.summary_of(4, RANGE).is_some_and(|of| flotilla_engine::membership::is_joint(&of.descriptor))
    });
    lose(&mut cluster, &[1, 2, 3], &[4, 5]);
    let plan = recovery::plan(&wish(&[1, 2, 3]), &surveys(&cluster, &[4, 5])).expect("of the old half nobody lives");
    let kept = plan.kept.iter().find(|kept| kept.order.range_id == RANGE.0).expect("it is among them").clone();
    assert!(kept.warnings.iter().any(|words| words.contains("half done")), "{:?}", kept.warnings);
    assert_eq!(kept.living_voters, (0, 3));
    recover(&mut cluster, kept.node, 1, &kept.order);
    cluster.tick_until(|cluster| cluster.view(kept.node).serves);
    assert_eq!(nodes_of(&cluster, kept.node), [(kept.node, v1::ReplicaRole::Voter)]);
    assert!(cluster.fatal.is_empty(), "{:?}", cluster.fatal);
}

#[test]
fn a_learner_goes_on_where_no_voter_is_left() {
    let mut cluster = begun(1);
    cluster.turn(1, vec![order(&[4], &[])]);
    cluster.step_until(|cluster| {
        let learner = (4, v1::ReplicaRole::Learner);
        cluster.summary_of(4, RANGE).is_some() && nodes_of(cluster, 4).contains(&learner)
    });
    lose(&mut cluster, &[1, 2, 3], &[4]);
    let plan = recovery::plan(&wish(&[1, 2, 3]), &surveys(&cluster, &[4])).expect("no voter is left");
    let kept = plan.kept.iter().find(|kept| kept.order.range_id == RANGE.0).expect("it is among them").clone();
    assert!(kept.warnings.iter().any(|words| words.contains("a learner goes on")), "{:?}", kept.warnings);
    recover(&mut cluster, 4, 1, &kept.order);
    cluster.tick_until(|cluster| cluster.view(4).serves);
    assert_eq!(nodes_of(&cluster, 4), [(4, v1::ReplicaRole::Voter)]);
}

/// What one survivor knows to be committed another one applies before anything is decided: a split among that must not
/// be known to one of them alone.
#[test]
fn survivors_first_apply_what_one_of_them_knows_to_be_committed() {
    let mut cluster = begun(2);
    cluster.turn(1, vec![order(&[4, 5], &[])]);
    cluster.tick_until(|cluster| {
        nodes_of(cluster, 1).iter().filter(|(_, role)| *role == v1::ReplicaRole::Voter).count() == 5
    });
    cluster.settle();
    // Node 5 has the entry, and hears no more.
    let epoch = epoch_of(&cluster, 1);
    let last = cluster.summary(5).last_index;
    cluster.turn(1, vec![write_at(7, RANGE, epoch, "known to node 4")]);
    cluster.step_until(|cluster| cluster.summary(5).last_index > last);
    cluster.deaf.insert((5, RANGE));
    cluster.tick_until(|cluster| cluster.summary(4).applied > cluster.summary(5).applied);
    cluster.deaf.clear();
    lose(&mut cluster, &[1, 2, 3], &[4, 5]);
    let (four, five) = (cluster.summary(4), cluster.summary(5));
    assert!(four.applied > five.applied && five.last_index >= four.applied, "{four:?} {five:?}");
    let told = recovery::committed(&surveys(&cluster, &[4, 5]));
    assert_eq!(told.keys().copied().collect::<Vec<u64>>(), [5]);
    for (id, entries) in told {
        cluster.turn(id, entries.into_iter().map(Input::Committed).collect());
    }
    cluster.settle();
    assert_eq!(cluster.summary(4).applied, cluster.summary(5).applied);
    assert!(recovery::committed(&surveys(&cluster, &[4, 5])).is_empty());
}

/// The survivor's log holds a split that it has not applied, a write before it and one behind it; another node has the
/// range that was split off. The later write must not be kept where the earlier one is lost. (It was: the shorter range
/// got the version that the split leads to, and what stands behind the split in the log is of that version.)
#[test]
fn of_a_log_that_was_not_applied_no_later_part_is_kept_without_the_earlier() {
    let mut cluster = begun(0);
    cluster.tick_until(|cluster| cluster.summary(2).applied == cluster.summary(1).last_index);
    assert!([900, 901, 902, 903].iter().all(|token| cluster.answer(*token).is_ok()));
    cluster.apply_held.insert(2);
    let epoch = epoch_of(&cluster, 1);
    cluster.turn(1, vec![write_at(7, RANGE, epoch, "earlier")]);
    cluster.settle();
    cluster.turn(1, vec![split_input(8, "m")]);
    cluster.settle();
    let epoch = epoch_of(&cluster, 1);
    cluster.turn(1, vec![write_at(9, RANGE, epoch, "later")]);
    cluster.settle();
    assert!([7, 9].iter().all(|token| cluster.answer(*token).is_ok()));
    let mut elsewhere = survey(&cluster, 1);
    elsewhere.replicas.retain(|of| of.descriptor.as_ref().is_some_and(|of| of.range_id == CHILD.0));
    elsewhere = v1::SurveyResponse { node_id: 4, ..elsewhere };
    elsewhere.replicas[0].leader_node_id = 0;
    // The power fails: what it knew to be committed was never synced.
    cluster.restart(2);
    cluster.apply_held.clear();
    lose(&mut cluster, &[1, 3], &[2]);
    let (last, before) = (cluster.summary(1).last_index, cluster.summary(2));
    assert!(before.last_index == last && before.commit < last - 2, "it has all, and knows of none: {before:?}");
    let plan = recovery::plan(&wish(&[1, 3]), &[survey(&cluster, 2), elsewhere]).expect("a majority is lost");
    let kept = plan.kept.into_iter().find(|kept| kept.order.range_id == RANGE.0).expect("it is among them");
    assert!(kept.node == 2 && kept.warnings.iter().any(|of| of.contains("a split into range")), "{kept:?}");
    recover(&mut cluster, 2, 1, &kept.order);
    cluster.tick_until(|cluster| cluster.view(2).serves);
    let rows = rows(&cluster.node(2).disk, &cluster.summary(2).descriptor);
    let kept = |key: &str| rows.iter().any(|(of, _)| of.windows(key.len()).any(|part| part == key.as_bytes()));
    assert!(!kept("later") || kept("earlier"), "{rows:?}");
    assert!(kept("a") && kept("c") && !kept("n"), "{rows:?}");
}

/// Old votes and appends, by hand: none of them reaches the new replica.
#[test]
fn messages_of_the_old_group_are_for_a_replica_that_is_gone() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.write(1, 1, request(vec![put("a", "1")]));
    cluster.settle();
    lose(&mut cluster, &[1, 2], &[3]);
    let (_, order) = order_of(&cluster, &[1, 2], &[3]);
    recover(&mut cluster, 3, 1, &order);
    cluster.tick_until(|cluster| cluster.view(3).serves);
    let before = cluster.summary(3);
    for kind in
        [MessageType::MsgAppend, MessageType::MsgHeartbeat, MessageType::MsgRequestVote, MessageType::MsgTimeoutNow]
    {
        for to_replica in [3, before.replica_id] {
            let message = v1::PeerMessage {
                range_id: RANGE.0,
                from_replica: 1,
                to_replica,
                message_type: kind as u32,
                term: before.term + 5,
                index: before.last_index,
                log_term: before.term,
                ..Default::default()
            };
            let envelope = Envelope { from: NodeId(1), to: NodeId(3), message, disk_full: false, snapshot: None };
            cluster.turn(3, vec![Input::Message(envelope)]);
        }
    }
    cluster.settle();
    let after = cluster.summary(3);
    assert_eq!((after.term, after.leads, after.last_index), (before.term, true, before.last_index));
    assert!(cluster.fatal.is_empty(), "{:?}", cluster.fatal);
}

/// A source that stands still on node 3, the only one that is left of it and of the target, which had not got to the merge.
fn frozen_survivor() -> (Cluster, Vec<recovery::Kept>) {
    let mut cluster = split();
    cluster.deaf.extend([(2, RANGE), (3, RANGE)]);
    cluster.turn(1, vec![merge_input(1, CHILD, RANGE)]);
    cluster.step_until(|cluster| frozen(cluster, 3) == Some(true));
    cluster.settle();
    lose(&mut cluster, &[1, 2], &[3]);
    cluster.deaf.clear();
    cluster.tick_until(|cluster| cluster.summary_of(3, CHILD).is_some_and(|of| !of.hears_leader));
    let plan = recovery::plan(&wish(&[1, 2]), &surveys(&cluster, &[3])).expect("a majority is lost");
    assert!(plan.kept.iter().all(|kept| !kept.order.merge_target_lost), "{plan:?}");
    (cluster, plan.kept)
}

fn order_for(kept: &[recovery::Kept], range: RangeId) -> v1::RecoverReplica {
    kept.iter().find(|kept| kept.order.range_id == range.0).expect("it is among them").order.clone()
}

/// With its majority lost nobody can thaw it: it goes on by the order itself, and not before it knows that there was no merge.
#[test]
fn a_frozen_source_is_refused_until_its_target_says_that_there_was_no_merge() {
    let (mut cluster, kept) = frozen_survivor();
    for _ in 0..20 {
        cluster.tick();
    }
    recover(&mut cluster, 3, 1, &order_for(&kept, CHILD));
    let refused = answer(&cluster, 1);
    assert!(matches!(&refused, Err(Error::ServerBusy { reason, .. }) if reason.contains("frozen")), "{refused:?}");
    recover(&mut cluster, 3, 2, &order_for(&kept, RANGE));
    cluster.tick_until(|cluster| cluster.view(3).serves);
    cluster.tick();
    recover(&mut cluster, 3, 3, &order_for(&kept, CHILD));
    cluster.tick_until(|cluster| serves(cluster, CHILD) == Some(3));
    assert_eq!(answer(&cluster, 3), Ok(Recovered::Done));
    for restart in [false, true] {
        if restart {
            cluster.restart(3);
            cluster.tick_until(|cluster| serves(cluster, CHILD) == Some(3));
        }
        assert_eq!(frozen(&cluster, 3), Some(false));
        let of = cluster.summary_of(3, CHILD).expect("it is here");
        let token = 10 + u64::from(restart);
        cluster.turn(3, vec![write_at(token, CHILD, of.descriptor.epoch.expect("it has one"), "q")]);
        cluster.settle();
        assert!(cluster.answer(token).is_ok(), "{:?}", cluster.answer(token));
    }
    assert_well(&cluster);
}

/// Of a target of which nothing is left nobody can say what became of the merge.
#[test]
fn a_frozen_source_goes_on_where_nothing_is_left_of_its_target() {
    let (mut cluster, kept) = frozen_survivor();
    let order = v1::RecoverReplica { merge_target_lost: true, ..order_for(&kept, CHILD) };
    recover(&mut cluster, 3, 1, &order);
    cluster.tick_until(|cluster| serves(cluster, CHILD) == Some(3));
    assert_eq!((answer(&cluster, 1), frozen(&cluster, 3)), (Ok(Recovered::Done), Some(false)));
    assert_well(&cluster);
}
