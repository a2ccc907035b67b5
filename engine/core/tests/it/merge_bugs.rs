//! What other systems got wrong about merges, each as a scenario; and what is peculiar to ours.

use flotilla_engine::config::Config;
use flotilla_engine::recover;
use flotilla_engine::store::{Envelope, Event, Input, Split, SplitAt, Token};
use flotilla_proto::{Error, NodeId, RangeId, v1};
use raft::eraftpb::MessageType;

use crate::cluster::{Cluster, LATER, RANGE, rows};
use crate::merges::{assert_well, epoch, frozen, merge_input, merged_on, split, split_with, standing_still};
use crate::ranges::{CHILD, begun_with, message, order, serves, split_input, whole, write_at};
use crate::snapshots::small_log;

const THIRD: RangeId = RangeId(101);

fn wish_of(envelope: &Envelope) -> Option<v1::MergeWish> {
    envelope.message.merge_ask.as_ref().map(|ask| ask.wish())
}

pub fn write_and_settle(cluster: &mut Cluster, id: u64, token: u64, range: RangeId, key: &str) {
    let epoch = epoch(cluster, id, range);
    cluster.turn(id, vec![write_at(token, range, epoch, key)]);
    cluster.settle();
    cluster.tick();
    assert!(cluster.answer(token).is_ok(), "{:?}", cluster.answer(token));
}

pub fn level(cluster: &Cluster) -> bool {
    merged_on(cluster, &[1, 2, 3])
        && (2..=3).all(|id| rows(&cluster.node(id).disk, &whole()) == rows(&cluster.node(1).disk, &whole()))
}

/// tikv#6460: a merge that failed, writes, a merge that succeeds; and what was said of the first one comes late.
#[test]
fn a_second_merge_is_not_taken_for_the_first_one() {
    let mut cluster = standing_still(split());
    let first = cluster.summary_of(1, CHILD).and_then(|of| of.frozen).expect("frozen").freeze_index;
    let at = cluster.sent.len();
    cluster.tick_until(|cluster| frozen(cluster, 1) == Some(false));
    let asks: Vec<Envelope> = cluster.sent[at..].iter().filter(|sent| wish_of(sent).is_some()).cloned().collect();
    assert!(!asks.is_empty());
    cluster.apply_held.clear();
    cluster.tick();
    write_and_settle(&mut cluster, 1, 2, CHILD, "q");
    // As if they had been for a merge, and late.
    let late = |cluster: &mut Cluster| {
        for ask in &asks {
            let mut ask = ask.clone();
            if let Some(ask) = &mut ask.message.merge_ask {
                ask.wish = v1::MergeWish::Merge.into();
            }
            for to in 1..=3 {
                cluster.turn(to, vec![Input::Message(Envelope { to: NodeId(to), ..ask.clone() })]);
            }
        }
        cluster.settle();
    };
    late(&mut cluster);
    assert!((1..=3).all(|id| frozen(&cluster, id) == Some(false)), "the range went on since");
    cluster.turn(1, vec![merge_input(3, CHILD, RANGE)]);
    late(&mut cluster);
    cluster.tick_until(level);
    assert!(rows(&cluster.node(1).disk, &whole()).iter().any(|(key, _)| key.windows(1).any(|part| part == b"q")));
    let told = v1::MergeTold { freeze_index: first, merged: false };
    let message = v1::PeerMessage { range_id: CHILD.0, merge_told: Some(told), ..Default::default() };
    let told = Envelope { from: NodeId(2), to: NodeId(1), message, disk_full: false, snapshot: None };
    cluster.turn(1, vec![Input::Message(told)]);
    cluster.settle();
    assert!(level(&cluster));
    assert_well(&cluster);
}

/// tikv#5868, #15633: that a range is frozen survives every restart, and what slower replicas still need of its log stays.
#[test]
fn a_freeze_survives_restarts_and_a_small_log() {
    let mut cluster = split_with(Config { log_retain_entries: 0, ..small_log() }, 0);
    cluster.cut_off.insert(3);
    cluster.turn(1, vec![merge_input(1, CHILD, RANGE)]);
    cluster.settle();
    for id in 1..=2 {
        cluster.restart(id);
        assert_eq!(frozen(&cluster, id), Some(true));
    }
    for _ in 0..20 {
        cluster.tick();
    }
    assert_eq!([frozen(&cluster, 1), frozen(&cluster, 2)], [Some(true); 2], "nobody leads for long enough to give up");
    cluster.cut_off.clear();
    cluster.restart(3);
    cluster.tick_until(level);
    assert_well(&cluster);
}

/// tikv#15625, #15682: one leader of the target has Merge on its way, the next one decides against it. The log decides,
/// once, and all replicas of both ranges agree.
#[test]
fn of_a_merge_and_its_abandonment_only_the_first_has_an_effect() {
    let mut cluster = split();
    // Whoever leads the target now keeps Merge to itself.
    cluster.turn(1, vec![merge_input(1, CHILD, RANGE)]);
    cluster.deaf.extend([(2, RANGE), (3, RANGE)]);
    let before = cluster.summary(1).last_index;
    cluster.step_until(|cluster| cluster.summary(1).last_index > before);
    let lost = cluster.summary(1).last_index;
    // The others choose another one, which is asked by whoever leads the source: to give up.
    cluster.cut_off.insert(1);
    cluster.deaf.clear();
    cluster.tick_until(|cluster| (2..=3).any(|id| cluster.node(id).views[&RANGE].serves));
    cluster.tick_until(|cluster| [2, 3].iter().all(|id| frozen(cluster, *id) == Some(false)));
    assert!(cluster.summary(1).last_index >= lost && frozen(&cluster, 1) == Some(true));
    let leader = cluster.leader_of(CHILD).expect("there is one");
    write_and_settle(&mut cluster, leader, 2, CHILD, "q");
    cluster.cut_off.clear();
    cluster.tick_until(|cluster| frozen(cluster, 1) == Some(false));
    cluster.tick_until(|cluster| rows(&cluster.node(1).disk, &whole()) == rows(&cluster.node(2).disk, &whole()));
    assert!(!cluster.events.iter().any(|(_, event)| matches!(event, Event::Merged { .. })));
    assert_well(&cluster);
}

/// The same the other way round: Merge is committed, and its leader dies before anybody else knows. Those who would give up
/// are told that it is too late.
#[test]
fn who_gives_a_merge_up_too_late_is_told_that_it_was_made() {
    let mut cluster = split();
    cluster.turn(1, vec![merge_input(1, CHILD, RANGE)]);
    cluster.step_until(|cluster| merged_on(cluster, &[1]));
    assert_eq!([frozen(&cluster, 2), frozen(&cluster, 3)], [Some(true); 2]);
    cluster.network.clear();
    // Of the source a quorum is left; of the target's log they hear nothing.
    cluster.deaf.extend([(2, RANGE), (3, RANGE)]);
    let leads = |cluster: &Cluster| (2..=3).any(|id| cluster.summary_of(id, CHILD).is_some_and(|of| of.leads));
    cluster.tick_until(leads);
    for _ in 0..150 {
        cluster.tick();
    }
    assert_eq!([frozen(&cluster, 2), frozen(&cluster, 3)], [Some(true); 2], "no thaw without proof");
    cluster.deaf.clear();
    cluster.tick_until(level);
    assert_well(&cluster);
}

/// tikv#19487: the target waits for nobody when it applies Merge, nor does it ever find its source gone too early: the
/// source's replica stays as long as the target's beside it is behind, whoever says that the range is gone.
#[test]
fn the_source_stays_until_the_target_beside_it_has_taken_it_in() {
    let mut cluster = split();
    cluster.turn(1, vec![merge_input(1, CHILD, RANGE)]);
    cluster.step_until(|cluster| merged_on(cluster, &[1]));
    cluster.deaf.insert((3, RANGE));
    cluster.tick_until(|cluster| merged_on(cluster, &[1, 2]));
    for _ in 0..40 {
        cluster.tick();
    }
    let told = |sent: &&Envelope| sent.to.0 == 3 && sent.message.merged_into != 0;
    assert!(cluster.sent.iter().any(|sent| told(&sent)), "it asked for votes, and was told");
    cluster.turn(3, vec![Input::Remove { range: CHILD, replica_id: 3 }]);
    assert_eq!(frozen(&cluster, 3), Some(true));
    cluster.deaf.clear();
    cluster.tick_until(level);
    let snapshots = |(id, event): &&(u64, Event)| *id == 3 && matches!(event, Event::SnapshotApplied { .. });
    assert_eq!(cluster.events.iter().filter(snapshots).count(), 0, "by its log");
    assert_well(&cluster);
}

/// tikv#17992, #4551: a replica that has applied the freeze, but not durably, is waited for.
#[test]
fn a_replica_is_waited_for_until_its_standstill_is_durable() {
    let mut cluster = split();
    let before = cluster.summary(3).last_index;
    cluster.turn(1, vec![merge_input(1, CHILD, RANGE)]);
    cluster.step_until(|cluster| frozen(cluster, 3) == Some(true));
    cluster.disk_held.insert(3);
    cluster.settle();
    assert!(frozen(&cluster, 1) == Some(true) && cluster.summary(1).last_index == before, "nothing is decided");
    assert!(!cluster.sent.iter().any(|sent| wish_of(sent) == Some(v1::MergeWish::Merge)));
    cluster.disk_held.clear();
    cluster.settle();
    cluster.tick();
    assert!(level(&cluster));
    assert_well(&cluster);
}

/// pd#9332, #10104: of three neighbours the second is to go into the first, and the third into the second, at once.
#[test]
fn concurrent_merges_of_neighbours_do_not_get_in_each_others_way() {
    for hold in [None, Some(2), Some(3)] {
        let mut cluster = split();
        let at = SplitAt::Keys(vec!["t".into()]);
        cluster.turn(1, vec![Input::Split(Split { token: Token(801), range: CHILD, at, deadline: LATER })]);
        cluster.tick_until(|cluster| serves(cluster, THIRD) == Some(1));
        cluster.tick();
        let before = rows(&cluster.node(1).disk, &whole());
        cluster.apply_held.extend(hold);
        cluster.turn(1, vec![merge_input(1, THIRD, CHILD), merge_input(2, CHILD, RANGE)]);
        cluster.settle();
        cluster.apply_held.clear();
        let gone =
            |cluster: &Cluster| (1..=3).all(|id| cluster.summary_of(id, CHILD).is_none_or(|of| of.frozen.is_none()));
        cluster.tick_until(gone);
        cluster.tick_until(|cluster| cluster.summary_of(1, THIRD).is_none_or(|of| of.frozen.is_none()));
        // One of them at least went through; the rest follows.
        for _ in 0..3 {
            let neighbours: Vec<_> = cluster.node(1).store.ranges().map(|of| of.descriptor).collect();
            if let Some(pair) = neighbours.windows(2).find(|pair| pair[0].end == pair[1].start && pair[0].range_id > 1)
            {
                let (left, right) = (RangeId(pair[0].range_id), RangeId(pair[1].range_id));
                cluster.tick_until(|cluster| serves(cluster, right) == Some(1));
                cluster.turn(1, vec![merge_input(9, right, left)]);
                cluster.tick_until(|cluster| (1..=3).all(|id| cluster.summary_of(id, right).is_none()));
            }
        }
        cluster.tick_until(level);
        assert_eq!(rows(&cluster.node(1).disk, &whole()), before);
        assert_well(&cluster);
    }
}

/// A frozen range whose target was itself taken in by a third one: who did knows that there was no merge.
#[test]
fn the_heir_of_a_target_knows_what_it_decided() {
    let mut cluster = split();
    let at = SplitAt::Keys(vec!["t".into()]);
    cluster.turn(1, vec![Input::Split(Split { token: Token(801), range: CHILD, at, deadline: LATER })]);
    cluster.tick_until(|cluster| serves(cluster, THIRD) == Some(1));
    cluster.tick();
    // The third stands still, and nobody leads it for a while.
    cluster.apply_held.insert(3);
    cluster.turn(1, vec![merge_input(1, THIRD, CHILD)]);
    cluster.settle();
    cluster.deaf.extend([(1, THIRD), (2, THIRD), (3, THIRD)]);
    cluster.apply_held.clear();
    cluster.tick_until(|cluster| !cluster.summary_of(1, THIRD).expect("it is here").leads);
    assert!((1..=3).all(|id| cluster.summary_of(id, THIRD).is_some_and(|of| of.frozen.is_some())));
    cluster.turn(1, vec![merge_input(2, CHILD, RANGE)]);
    cluster.tick_until(|cluster| (1..=3).all(|id| cluster.summary_of(id, CHILD).is_none()));
    cluster.deaf.clear();
    cluster.tick_until(|cluster| {
        serves(cluster, THIRD).is_some()
            && (1..=3).all(|id| cluster.summary_of(id, THIRD).is_some_and(|of| of.frozen.is_none()))
    });
    let leader = cluster.leader_of(THIRD).expect("there is one");
    write_and_settle(&mut cluster, leader, 3, THIRD, "x");
    assert_well(&cluster);
}

/// A frozen range that nobody led while its target went to other nodes: who had a replica of it knows that it changed,
/// and did not take this one in.
#[test]
fn a_target_that_has_gone_elsewhere_had_decided_before() {
    let mut cluster = split_with(Config::default(), 3);
    cluster.apply_held.insert(3);
    cluster.turn(1, vec![merge_input(1, CHILD, RANGE)]);
    cluster.settle();
    cluster.deaf.extend((1..=3).map(|id| (id, CHILD)));
    cluster.apply_held.clear();
    cluster.tick_until(|cluster| !cluster.summary_of(1, CHILD).expect("it is here").leads);
    assert!((1..=3).all(|id| frozen(&cluster, id) == Some(true)));
    let leader = serves(&cluster, RANGE).expect("it is led");
    cluster.turn(leader, vec![order(&[4, 5, 6], &[1, 2, 3])]);
    cluster.tick_until(|cluster| (1..=3).all(|id| cluster.summary_of(id, RANGE).is_none()));
    for id in 1..=3 {
        cluster.restart(id);
    }
    cluster.deaf.clear();
    cluster.tick_until(|cluster| (1..=3).all(|id| frozen(cluster, id) == Some(false)));
    cluster.tick_until(|cluster| serves(cluster, CHILD).is_some());
    let leader = serves(&cluster, CHILD).expect("just seen");
    write_and_settle(&mut cluster, leader, 3, CHILD, "x");
    assert_well(&cluster);
}

/// tikv#15919: a replica that its range had left behind wakes up when the range is no more, and is told.
#[test]
fn a_stale_replica_of_a_merged_range_is_told_that_it_is_gone() {
    let mut cluster = split_with(Config::default(), 1);
    cluster.cut_off.insert(3);
    let moved = |range: RangeId, order_id| {
        let (add_nodes, remove_nodes) = (vec![4], vec![3]);
        Input::Order(v1::RangeOrder { order_id, range_id: range.0, add_nodes, remove_nodes, ..Default::default() })
    };
    cluster.turn(1, vec![moved(RANGE, 5), moved(CHILD, 6)]);
    let on = |cluster: &Cluster, range| {
        let replicas = cluster.summary_of(1, range).expect("it is here").descriptor.replicas.clone();
        replicas.len() == 3 && replicas.iter().all(|of| of.node_id != 3)
    };
    cluster.tick_until(|cluster| on(cluster, RANGE) && on(cluster, CHILD));
    for _ in 0..3 {
        cluster.tick();
    }
    cluster.turn(1, vec![merge_input(1, CHILD, RANGE)]);
    cluster.tick_until(|cluster| merged_on(cluster, &[1, 2, 4]));
    assert_eq!(frozen(&cluster, 3), Some(false), "it knows of nothing");
    cluster.deaf.insert((3, RANGE));
    cluster.cut_off.clear();
    cluster.tick_until(|cluster| cluster.summary_of(3, CHILD).is_none());
    cluster.deaf.clear();
    cluster.tick_until(|cluster| cluster.summary_of(3, RANGE).is_none());
    assert!(rows(&cluster.node(3).disk, &whole()).is_empty());
    let boot = recover::load(&*cluster.node(3).disk).expect("whole").expect("bootstrapped");
    assert_eq!(boot.tombstones[&CHILD].merged_into, RANGE.0);
    // Whatever comes for it makes it no more.
    for kind in [MessageType::MsgAppend, MessageType::MsgHeartbeat, MessageType::MsgRequestVote] {
        let message = v1::PeerMessage { range_id: CHILD.0, to_learner: true, ..message(9, 1, kind, 50) };
        let envelope = Envelope { from: NodeId(1), to: NodeId(3), message, disk_full: false, snapshot: None };
        cluster.turn(3, vec![Input::Message(envelope)]);
        assert!(cluster.summary_of(3, CHILD).is_none());
    }
    assert_well(&cluster);
}

/// tikv#8034: from *proposing* the freeze the source's leader has no lease, for another replica may apply it first.
#[test]
fn no_lease_from_proposing_a_freeze() {
    let mut cluster = split();
    cluster.apply_held.insert(1);
    assert!(cluster.node(1).views[&CHILD].lease_covers(cluster.now));
    cluster.turn(1, vec![merge_input(1, CHILD, RANGE)]);
    assert!(!cluster.node(1).views[&CHILD].lease_covers(cluster.now), "before it is in any log");
    let epoch = epoch(&cluster, 1, CHILD);
    cluster.turn(1, vec![write_at(2, CHILD, epoch, "q")]);
    for _ in 0..3 {
        cluster.tick();
    }
    assert!(!cluster.node(1).views[&CHILD].lease_covers(cluster.now));
    assert!(!cluster.writes.iter().any(|(token, _)| *token == 2), "it waits behind the freeze");
    cluster.apply_held.clear();
    cluster.settle();
    assert!(matches!(cluster.answer(2), Err(Error::ServerBusy { .. })), "{:?}", cluster.answer(2));
    cluster.tick_until(level);
    assert_well(&cluster);
}

/// What a new leader of the source takes before it applies the freeze in its log is refused at apply by all replicas.
#[test]
fn what_a_new_leader_took_before_it_applied_a_freeze_is_refused_at_apply() {
    let mut cluster = split();
    cluster.apply_held.extend([2, 3]);
    cluster.turn(1, vec![merge_input(1, CHILD, RANGE)]);
    cluster.settle();
    let old = epoch(&cluster, 2, CHILD);
    cluster.cut_off.insert(1);
    cluster.tick_until(|cluster| (2..=3).any(|id| cluster.summary_of(id, CHILD).is_some_and(|of| of.leads)));
    let leader = cluster.leader_of(CHILD).filter(|id| *id != 1);
    let leader = leader.or_else(|| (2..=3).find(|id| cluster.summary_of(*id, CHILD).is_some_and(|of| of.leads)));
    let leader = leader.expect("just seen");
    assert_eq!(frozen(&cluster, leader), Some(false));
    cluster.turn(leader, vec![write_at(2, CHILD, old, "q")]);
    cluster.settle();
    cluster.apply_held.clear();
    cluster.settle();
    cluster.tick();
    assert!(matches!(cluster.answer(2), Err(Error::EpochMismatch { .. })), "{:?}", cluster.answer(2));
    cluster.cut_off.clear();
    cluster.tick_until(|cluster| (1..=3).all(|id| frozen(cluster, id) != Some(true)));
    assert_well(&cluster);
}

/// Merged, and split again where it was: the child is another range, and the old one stays gone.
#[test]
fn a_merge_then_a_split_at_the_same_key() {
    let mut cluster = split();
    cluster.turn(1, vec![merge_input(1, CHILD, RANGE)]);
    cluster.tick_until(level);
    let before = rows(&cluster.node(1).disk, &whole());
    cluster.turn(1, vec![split_input(2, "m")]);
    cluster.tick_until(|cluster| serves(cluster, THIRD) == Some(1));
    cluster.tick();
    for id in 1..=3 {
        cluster.restart(id);
        cluster.turn(id, vec![Input::Keyspaces(vec![v1::Keyspace { keyspace_id: 1, ..Default::default() }])]);
    }
    cluster.tick_until(|cluster| serves(cluster, THIRD).is_some() && serves(cluster, RANGE).is_some());
    for id in 1..=3 {
        assert_eq!(rows(&cluster.node(id).disk, &whole()), before);
        assert!(cluster.summary_of(id, CHILD).is_none());
    }
    // And into one again: the new range is not taken for the old one.
    (0..5).for_each(|_| cluster.tick());
    let leader = serves(&cluster, THIRD).expect("just seen");
    cluster.turn(leader, vec![merge_input(3, THIRD, RANGE)]);
    cluster.tick_until(|cluster| (1..=3).all(|id| cluster.summary_of(id, THIRD).is_none()));
    cluster.tick_until(level);
    assert_well(&cluster);
}

/// The two are led by different nodes, and a range of one voter needs nobody else.
#[test]
fn leaders_on_different_nodes_and_ranges_of_one_voter() {
    let mut cluster = split();
    cluster.transfer(1, 5, 2);
    cluster.tick_until(|cluster| serves(cluster, RANGE) == Some(2));
    cluster.turn(1, vec![merge_input(1, CHILD, RANGE)]);
    cluster.settle();
    assert!(matches!(cluster.merges[..], [(1, Ok(_))]), "{:?}", cluster.merges);
    cluster.tick_until(level);
    assert_well(&cluster);
    let mut cluster = begun_with(Config::default(), 0);
    cluster.turn(1, vec![order(&[], &[2, 3])]);
    cluster.tick_until(|cluster| cluster.summary(1).descriptor.replicas.len() == 1);
    cluster.turn(1, vec![split_input(2, "m")]);
    cluster.tick_until(|cluster| serves(cluster, CHILD) == Some(1));
    cluster.tick();
    cluster.turn(1, vec![merge_input(3, CHILD, RANGE)]);
    cluster.settle();
    assert!(merged_on(&cluster, &[1]) && matches!(cluster.merges[..], [(3, Ok(_))]), "{:?}", cluster.merges);
    assert_well(&cluster);
}

/// A change of the target's replicas, or of its bounds, between the freeze and the question: the merge is off.
#[test]
fn a_target_that_changes_meanwhile_takes_nobody_in() {
    for change in ["replicas", "split"] {
        let mut cluster = split_with(Config::default(), 1);
        cluster.apply_held.insert(3);
        cluster.turn(1, vec![merge_input(1, CHILD, RANGE)]);
        cluster.settle();
        let input = if change == "split" { split_input(2, "f") } else { order(&[4], &[]) };
        cluster.turn(1, vec![input]);
        cluster.settle();
        cluster.apply_held.clear();
        cluster.tick_until(|cluster| (1..=3).all(|id| frozen(cluster, id) == Some(false)));
        assert!(matches!(cluster.merges[..], [(1, Err(Error::ServerBusy { .. }))]), "{change}: {:?}", cluster.merges);
        write_and_settle(&mut cluster, 1, 3, CHILD, "q");
        assert!(!cluster.events.iter().any(|(_, event)| matches!(event, Event::Merged { .. })));
        assert_well(&cluster);
    }
}

/// A source that is frozen changes neither its replicas nor its bounds, and is no target.
#[test]
fn a_frozen_range_does_not_change() {
    let mut cluster = standing_still(split_with(Config::default(), 1));
    let before = cluster.summary_of(1, CHILD).expect("it is here");
    let at = SplitAt::Keys(vec!["t".into()]);
    let (add_nodes, order_id) = (vec![4], 9);
    let order = v1::RangeOrder { order_id, range_id: CHILD.0, add_nodes, ..Default::default() };
    let split = Split { token: Token(3), range: CHILD, at, deadline: LATER };
    let check = Input::Check { token: Token(4), range: CHILD, deadline: LATER };
    cluster.turn(1, vec![Input::Order(order), Input::Split(split), check]);
    cluster.turn(1, vec![merge_input(5, CHILD, RANGE)]);
    cluster.settle();
    cluster.tick();
    assert!(cluster.splits.iter().any(|(token, answer)| *token == 3 && answer.is_err()));
    assert!(cluster.checks.iter().any(|(token, answer)| *token == 4 && answer.is_err()));
    assert!(cluster.merges.iter().any(|(token, answer)| *token == 5 && answer.is_err()));
    let after = cluster.summary_of(1, CHILD).expect("it is here");
    assert_eq!((after.last_index, after.descriptor), (before.last_index, before.descriptor));
}
