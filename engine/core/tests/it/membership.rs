//! Changes of a range's replicas, and what else happens meanwhile: leases, crashes, elections, orders that change
//! hands, messages for replicas that are gone or are still to come.

use flotilla_engine::config::Config;
use flotilla_engine::recover;
use flotilla_engine::store::{Effects, Envelope, Event, Input};
use flotilla_engine::time::BootTime;
use flotilla_proto::{NodeId, v1};
use raft::eraftpb::MessageType;

use crate::cluster::{Cluster, EPOCH, RANGE, rows};
use crate::ranges::{begun, begun_with, nodes_of, order, serves, voters_on, whole, write_at};

fn has(cluster: &Cluster, id: u64, node: u64, role: v1::ReplicaRole) -> bool {
    cluster.summary_of(id, RANGE).is_some() && nodes_of(cluster, id).contains(&(node, role))
}

fn message(cluster: &Cluster, kind: MessageType, from: u64, to_replica: u64) -> v1::PeerMessage {
    let leader = cluster.summary(1);
    v1::PeerMessage {
        range_id: RANGE.0,
        from_replica: from,
        to_replica,
        message_type: kind as u32,
        term: leader.term,
        log_term: leader.term,
        index: leader.last_index,
        ..Default::default()
    }
}

fn send(cluster: &mut Cluster, from: u64, to: u64, message: v1::PeerMessage) -> Effects {
    let envelope = Envelope { from: NodeId(from), to: NodeId(to), message, disk_full: false, snapshot: None };
    cluster.turn(to, vec![Input::Message(envelope)])
}

fn refusals(effects: &Effects) -> Vec<&str> {
    let reason = |event: &'_ Event| matches!(event, Event::MessageRefused { .. });
    let said = effects.events.iter().filter(|event| reason(event));
    said.filter_map(|event| if let Event::MessageRefused { reason, .. } = event { Some(&reason[..]) } else { None })
        .collect()
}

/// Voters 1, 2, 3, of which 2 and 3 are being replaced by 4 and 5; the leader has just applied the joint configuration.
fn joint() -> Cluster {
    let mut cluster = begun(2);
    cluster.turn(1, vec![order(&[4, 5], &[2, 3])]);
    cluster.step_until(|cluster| has(cluster, 1, 4, v1::ReplicaRole::VoterIncoming));
    cluster
}

/// What was promised before a change of the replicas does not bind those who come with it.
#[test]
fn a_change_of_the_replicas_voids_the_lease() {
    let mut cluster = begun(1);
    assert!(cluster.view(1).lease_covers(cluster.now));
    cluster.deaf.insert((4, RANGE));
    cluster.turn(1, vec![order(&[4], &[3])]);
    cluster.step_until(|cluster| has(cluster, 1, 4, v1::ReplicaRole::Learner));
    assert_eq!(cluster.summary(1).lease_until, BootTime::default(), "nothing that was acknowledged before counts");
    assert!(!cluster.view(1).lease_covers(cluster.now), "and readers know");
    cluster.tick_until(|cluster| cluster.view(1).lease_covers(cluster.now));
    cluster.deaf.clear();
    cluster.step_until(|cluster| has(cluster, 1, 4, v1::ReplicaRole::VoterIncoming));
    assert_eq!(cluster.summary(1).lease_until, BootTime::default(), "nor before this one");
    cluster.tick_until(|cluster| voters_on(cluster, &[1, 2, 4]));
    cluster.tick_until(|cluster| cluster.view(1).lease_covers(cluster.now));
}

/// In a joint configuration a leader of one half could be chosen without the other, if the lease needed one alone.
#[test]
fn while_joint_both_halves_must_grant_the_lease() {
    for silent in [[2, 3], [4, 5]] {
        let mut cluster = joint();
        cluster.cut_off.extend(silent);
        for _ in 0..8 {
            cluster.tick();
            assert_eq!(cluster.summary(1).lease_until, BootTime::default(), "without {silent:?}");
        }
        assert!(has(&cluster, 1, 4, v1::ReplicaRole::VoterIncoming), "nor can it be left");
        cluster.cut_off.clear();
        cluster.tick_until(|cluster| voters_on(cluster, &[1, 4, 5]));
        cluster.tick_until(|cluster| {
            cluster.leader_of(RANGE).is_some_and(|id| cluster.view(id).lease_covers(cluster.now))
        });
    }
}

/// The joint configuration stands, and cannot be left yet, since the new voters lack an entry: the old ones alone do
/// not grant a lease.
#[test]
fn the_old_half_alone_grants_no_lease() {
    let mut cluster = begun_with(Config { level_lag_entries: 0, ..Config::default() }, 2);
    cluster.turn(1, vec![order(&[4, 5], &[2, 3])]);
    let learners = |cluster: &Cluster| nodes_of(cluster, 1).len() == 5 && cluster.summary(1).level_nodes.len() == 4;
    cluster.step_until(learners);
    cluster.apply_held.insert(1);
    let proposed = cluster.summary(1).last_index + 1;
    cluster.step_until(|cluster| (2..=3).all(|id| cluster.summary(id).last_index >= proposed));
    cluster.deaf.extend([(4, RANGE), (5, RANGE)]);
    cluster.turn(1, vec![write_at(1, RANGE, EPOCH, "b")]);
    cluster.settle();
    cluster.apply_held.clear();
    cluster.settle();
    assert!(has(&cluster, 1, 4, v1::ReplicaRole::VoterIncoming), "{:?}", nodes_of(&cluster, 1));
    assert!(cluster.summary(1).order_waits.contains("level"), "{}", cluster.summary(1).order_waits);
    for _ in 0..8 {
        cluster.tick();
        assert!(cluster.summary(1).leads);
        assert_eq!(cluster.summary(1).lease_until, BootTime::default());
    }
    cluster.deaf.clear();
    cluster.tick_until(|cluster| voters_on(cluster, &[1, 4, 5]));
    assert!(cluster.answer(1).is_ok());
}

/// The removal was applied, and its tombstone is on disk; the crash comes before the data goes. The next start lets
/// it go, and nothing of the replica takes part again.
#[test]
fn a_crash_between_a_removal_and_the_end_of_its_data_is_made_good() {
    let mut cluster = begun(1);
    cluster.turn(1, vec![order(&[4], &[3])]);
    cluster.step_until(|cluster| has(cluster, 3, 4, v1::ReplicaRole::VoterIncoming));
    // The leader does not say that replica 3 is gone: it has not applied that itself.
    cluster.step_until(|cluster| cluster.summary(3).last_index > cluster.summary(3).applied);
    cluster.apply_held.insert(1);
    cluster.step_until(|cluster| cluster.summary_of(3, RANGE).is_none());
    let boot = recover::load(&*cluster.node(3).disk).expect("whole").expect("bootstrapped");
    assert_eq!((boot.ranges.len(), boot.removed.len()), (0, 1));
    assert_eq!(rows(&cluster.node(3).disk, &whole()).len(), 4, "the data has not gone");
    cluster.restart(3);
    assert_eq!(cluster.node(3).store.ranges().count(), 0);
    cluster.turn(3, vec![]);
    cluster.apply_held.clear();
    cluster.settle();
    assert!(rows(&cluster.node(3).disk, &whole()).is_empty());
    let boot = recover::load(&*cluster.node(3).disk).expect("whole").expect("bootstrapped");
    assert_eq!((boot.ranges.len(), boot.removed.len()), (0, 0));
    assert_eq!(boot.tombstones[&RANGE].replica_id, 3);
    cluster.tick_until(|cluster| voters_on(cluster, &[1, 2, 4]));
    assert!(cluster.fatal.is_empty());
}

/// Placement gives its order to whoever leads: the next leader goes on where the last one stopped.
#[test]
fn an_order_is_resumed_by_a_new_leader() {
    let mut cluster = begun(1);
    cluster.deaf.insert((4, RANGE));
    cluster.turn(1, vec![order(&[4], &[1])]);
    cluster.tick_until(|cluster| (1..=3).all(|id| has(cluster, id, 4, v1::ReplicaRole::Learner)));
    let id = |cluster: &Cluster, of: u64| {
        cluster.summary(of).descriptor.replicas.iter().find(|of| of.node_id == 4).map(|of| of.replica_id)
    };
    let learner = id(&cluster, 2);
    cluster.cut_off.insert(1);
    cluster.tick_until(|cluster| (2..=3).any(|id| cluster.node(id).views[&RANGE].serves));
    let leader = (2..=3).find(|id| cluster.node(*id).views[&RANGE].serves).expect("just seen");
    assert_eq!(cluster.summary(leader).order_id, 0, "an order is not in the log");
    cluster.deaf.clear();
    cluster.turn(leader, vec![order(&[4], &[1])]);
    cluster.tick_until(|cluster| voters_on(cluster, &[2, 3, 4]));
    assert_eq!(id(&cluster, leader), learner, "no second replica on the node");
    cluster.cut_off.clear();
    cluster.tick_until(|cluster| cluster.summary_of(1, RANGE).is_none());
    assert!(rows(&cluster.node(1).disk, &whole()).is_empty());
}

/// What is for a later replica of the range on this node may be true or not: only a descriptor proves it.
#[test]
fn a_message_for_a_later_replica_proves_nothing() {
    let mut cluster = begun(0);
    let before = cluster.summary(3);
    for kind in [MessageType::MsgHeartbeat, MessageType::MsgAppend, MessageType::MsgRequestVote] {
        let mut message = message(&cluster, kind, 1, 9);
        message.term += 5;
        let effects = send(&mut cluster, 1, 3, message);
        assert!(effects.log.is_none() && effects.applies.is_empty(), "{kind:?}");
        assert!(effects.messages.iter().all(|of| of.message.ack_stamp == 0 && of.message.context.is_empty()));
        let promises = effects.messages.iter().any(|of| {
            let answer = of.message.message_type;
            answer == MessageType::MsgRequestVoteResponse as u32
                || (answer == MessageType::MsgAppendResponse as u32 && !of.message.reject)
        });
        assert!(!promises, "{kind:?}");
    }
    let mut notice = message(&cluster, MessageType::MsgHup, 1, 9);
    let named = (*before.descriptor).clone();
    notice.removed = Some(v1::RangeDescriptor { epoch: Some(v1::Epoch { conf_ver: 50, version: 1 }), ..named });
    send(&mut cluster, 1, 3, notice);
    assert_eq!(cluster.summary(3), before);
    cluster.restart(3);
    assert_eq!(cluster.summary(3).term, before.term);
}

/// tikv#1262: one that was removed while away, and asks for votes, disturbs nobody and is told.
#[test]
fn a_stale_sender_is_told_that_it_was_removed() {
    let mut cluster = begun(1);
    cluster.cut_off.insert(3);
    cluster.turn(1, vec![order(&[4], &[3])]);
    cluster.tick_until(|cluster| {
        (1..=2).all(|id| voters_on(cluster, &[1, 2, 4]) && cluster.summary(id).descriptor.replicas.len() == 3)
    });
    cluster.settle();
    let (term, at) = (cluster.summary(2).term, cluster.sent.len());
    let mut asks = message(&cluster, MessageType::MsgRequestVote, 3, 2);
    asks.term += 10;
    let effects = send(&mut cluster, 3, 2, asks.clone());
    assert!(refusals(&effects)[0].contains("replica 3 was removed"), "{:?}", refusals(&effects));
    let [notice] = &effects.messages[..] else { panic!("{:?}", effects.messages) };
    assert_eq!((notice.to, notice.message.to_replica), (NodeId(3), 3));
    let newer = notice.message.removed.as_ref().expect("it is a notice");
    assert!(newer.replicas.iter().all(|of| of.replica_id != 3));
    assert!(notice.message.index > 0, "with an entry that proves it");
    assert_eq!((cluster.summary(2).term, cluster.sent.len()), (term, at + 1), "and nothing else happens");
    let elsewhere = send(&mut cluster, 4, 2, v1::PeerMessage { from_replica: 1, ..asks });
    assert!(refusals(&elsewhere)[0].contains("is not on"), "a name that is another node's");
    assert!(elsewhere.messages.is_empty());
    cluster.cut_off.clear();
    cluster.tick_until(|cluster| cluster.summary_of(3, RANGE).is_none());
}

/// etcd#7280, #11284: whoever has a change of replicas in its log knows that the one before it is committed, and
/// still knows that after a crash: it does not campaign under a configuration that is over.
#[test]
fn no_campaign_after_a_crash_under_a_configuration_that_is_over() {
    let mut cluster = begun(1);
    cluster.apply_held.insert(2);
    cluster.turn(1, vec![order(&[4], &[3])]);
    cluster.tick_until(|cluster| cluster.summary(1).descriptor.replicas.iter().all(|of| of.node_id != 3));
    assert_eq!(nodes_of(&cluster, 2).len(), 3, "node 2 has applied none of it");
    cluster.restart(2);
    let boot = recover::load(&*cluster.node(2).disk).expect("whole").expect("bootstrapped");
    let changes: Vec<u64> = {
        let entries = boot.ranges[0].entries.iter();
        entries.filter(|entry| entry.get_entry_type() as u32 != 0).map(|entry| entry.index).collect()
    };
    assert_eq!(changes.len(), 3, "a learner, the joint configuration, its end");
    assert!(boot.ranges[0].raft.commit >= changes[1], "the joint configuration is known to be committed");
    cluster.cut_off.extend([1, 3, 4]);
    let asked = |cluster: &Cluster| {
        let asks = [MessageType::MsgRequestPreVote as u32, MessageType::MsgRequestVote as u32];
        cluster.sent.iter().any(|sent| sent.from.0 == 2 && asks.contains(&sent.message.message_type))
    };
    for _ in 0..40 {
        cluster.tick();
    }
    assert!(!asked(&cluster), "as voter of {{1, 2, 3}} it would campaign");
    cluster.apply_held.clear();
    cluster.tick_until(asked);
    assert!(!cluster.sent(2, 4, MessageType::MsgRequestPreVote).is_empty(), "it asks those who vote now");
    assert!(cluster.fatal.is_empty());
}

/// A lone voter needs no silence after its restart, for nobody else can lead. But a learner of a range with one
/// voter may have promised that voter its silence, and be a voter itself by a change that it has not applied.
#[test]
fn a_restarted_learner_keeps_silence_for_a_lone_voter() {
    let mut cluster = begun(0);
    cluster.turn(1, vec![order(&[], &[2, 3])]);
    cluster.tick_until(|cluster| voters_on(cluster, &[1]) && cluster.summary_of(2, RANGE).is_none());
    cluster.apply_held.insert(2);
    cluster.turn(1, vec![order(&[2, 3], &[])]);
    cluster.tick_until(|cluster| has(cluster, 1, 3, v1::ReplicaRole::Voter) && cluster.summary_of(2, RANGE).is_some());
    let held = cluster.summary(2);
    let votes = held.descriptor.replicas.iter().filter(|of| of.role() == v1::ReplicaRole::Voter);
    assert_eq!(votes.map(|of| of.node_id).collect::<Vec<_>>(), [1], "it knows of one voter, which is another");
    cluster.restart(2);
    let three = cluster.summary(3);
    let mut asks = message(&cluster, MessageType::MsgRequestVote, three.replica_id, held.replica_id);
    (asks.term, asks.index) = (three.term + 1, three.last_index);
    let effects = send(&mut cluster, 3, 2, asks.clone());
    assert!(refusals(&effects).iter().any(|said| said.contains("restarted")), "{:?}", refusals(&effects));
    assert_eq!(cluster.summary(2).term, held.term);
    // The voter that is alone indeed leads again at once.
    let mut lone = begun(0);
    lone.turn(1, vec![order(&[], &[2, 3])]);
    lone.tick_until(|cluster| voters_on(cluster, &[1]));
    lone.restart(1);
    lone.turn(1, vec![]);
    lone.settle();
    assert_eq!(serves(&lone, RANGE), Some(1));
}

/// A sole voter that has a change in its log which may give others a vote does not lead at once after a restart: it
/// was perhaps committed, and is over.
#[test]
fn a_lone_voter_that_is_about_to_get_company_waits_after_a_restart() {
    let mut cluster = begun(0);
    cluster.turn(1, vec![order(&[], &[2, 3])]);
    cluster.tick_until(|cluster| voters_on(cluster, &[1]) && cluster.summary_of(2, RANGE).is_none());
    cluster.apply_held.insert(1);
    cluster.turn(1, vec![order(&[2], &[])]);
    cluster.tick();
    cluster.restart(1);
    let term = cluster.summary(1).term;
    cluster.turn(1, vec![]);
    cluster.persist(1);
    assert_eq!((cluster.summary(1).term, cluster.summary(1).leads), (term, false));
    cluster.apply_held.clear();
    cluster.tick_until(|cluster| serves(cluster, RANGE) == Some(1));
}

#[test]
fn nothing_is_handed_over_to_a_learner() {
    let mut cluster = begun(1);
    cluster.deaf.insert((4, RANGE));
    cluster.turn(1, vec![order(&[4], &[])]);
    cluster.tick_until(|cluster| has(cluster, 1, 4, v1::ReplicaRole::Learner));
    cluster.transfer(1, 7, 4);
    let (_, answer) = cluster.transfers.last().expect("answered at once");
    let said = answer.as_ref().expect_err("refused").to_string();
    assert!(said.contains("no voting replica on node 4"), "{said}");
    let to_lead = v1::RangeOrder { order_id: 5, range_id: RANGE.0, leader_node_id: 4, ..Default::default() };
    cluster.turn(1, vec![Input::Order(to_lead)]);
    cluster.tick();
    assert!(cluster.summary(1).order_waits.contains("no voter"), "{}", cluster.summary(1).order_waits);
    assert!(cluster.sent(1, 4, MessageType::MsgTimeoutNow).is_empty() && cluster.summary(1).leads);
}

/// A node that stops in the middle of a change hands over, and the change comes to its end without it.
#[test]
fn a_leader_that_stops_during_a_change_hands_it_over() {
    let mut cluster = joint();
    cluster.turn(1, vec![Input::Drain]);
    cluster.tick_until(|cluster| !cluster.summary(1).leads);
    cluster.tick_until(|cluster| voters_on(cluster, &[1, 4, 5]));
    let leader = cluster.leader_of(RANGE).expect("there is one");
    assert_ne!(leader, 1);
    cluster.tick_until(|cluster| (2..=3).all(|id| cluster.summary_of(id, RANGE).is_none()));
    let epoch = cluster.summary(leader).descriptor.epoch.unwrap_or(EPOCH);
    cluster.turn(leader, vec![write_at(1, RANGE, epoch, "b")]);
    cluster.settle();
    cluster.tick();
    assert!(cluster.answer(1).is_ok());
    assert!(cluster.fatal.is_empty());
}

/// The leader has applied the joint configuration that leaves it out, and tells another to lead, which has yet to apply
/// it: told too early, that one leads as soon as it has, not when the transfer has been given up.
#[test]
fn whoever_is_told_to_lead_before_it_may_leads_as_soon_as_it_may() {
    let mut cluster = begun(1);
    cluster.turn(1, vec![order(&[4], &[1])]);
    cluster.step_until(|cluster| has(cluster, 4, 4, v1::ReplicaRole::Learner));
    cluster.apply_held.extend([2, 3, 4]);
    cluster.tick_until(|cluster| (2..=4).any(|id| !cluster.sent(1, id, MessageType::MsgTimeoutNow).is_empty()));
    assert!(cluster.summary(1).leads, "who is to lead does not know yet that it may");
    let (now, term) = (cluster.now, cluster.summary(1).term);
    cluster.apply_held.clear();
    cluster.settle();
    let leader = cluster.leader_of(RANGE).expect("there is one");
    assert!(leader != 1 && cluster.summary(leader).term == term + 1, "node {leader}");
    assert_eq!(cluster.now, now, "no time-out was waited for");
}

/// A replica that has just come may be on a node that others do not know yet: the leader that goes hands over to one that
/// voted before.
#[test]
fn a_leader_that_goes_hands_over_to_one_that_voted_before() {
    let mut cluster = begun(1);
    cluster.turn(1, vec![order(&[4], &[1])]);
    cluster.tick_until(|cluster| voters_on(cluster, &[2, 3, 4]));
    let told = |id| !cluster.sent(1, id, MessageType::MsgTimeoutNow).is_empty();
    assert_eq!([told(2), told(3), told(4)].iter().filter(|told| **told).count(), 1);
    assert!(!told(4));
}
