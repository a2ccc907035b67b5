//! What a merge rests on where replicas come late, or have gone: who may say what became of it, and whose data must stay.
//!
//! [`RANGE`] takes [`CHILD`] in, or a part of it that was split off before.

use flotilla_engine::config::Config;
use flotilla_engine::recover;
use flotilla_engine::store::{Envelope, Event, Input, Token, TransferLeader};
use flotilla_proto::{NodeId, RangeId, v1};

use crate::cluster::{Cluster, LATER, RANGE, rows};
use crate::merge_bugs::write_and_settle;
use crate::merges::{assert_well, frozen, merge_input, merged_on, split_with};
use crate::ranges::{CHILD, order, serves, split_input, voters_on, whole};

/// Split off from [`RANGE`] behind [`CHILD`]: its left neighbour.
const MIDDLE: RangeId = RangeId(101);

fn thawed(cluster: &Cluster) -> bool {
    cluster.events.iter().any(|(_, event)| matches!(event, Event::Thawed { .. }))
}

/// The range has taken the child in on node 1 alone, and moved on to nodes 1, 3 and 4: node 3 has all of that in its log, and
/// its apply stage stands still; node 2 has heard nothing of it. Then node 1 is gone.
fn moved_on_after_a_merge() -> Cluster {
    let mut cluster = split_with(Config::default(), 1);
    let to_2 = TransferLeader { token: Token(5), range: CHILD, to: NodeId(2), deadline: LATER };
    cluster.turn(1, vec![Input::TransferLeader(to_2)]);
    cluster.tick_until(|cluster| serves(cluster, CHILD) == Some(2));
    cluster.deaf.insert((2, RANGE));
    cluster.turn(2, vec![merge_input(1, CHILD, RANGE)]);
    let reported = |sent: &Envelope| sent.from.0 == 3 && sent.message.frozen > 0;
    cluster.step_until(|cluster| cluster.sent.iter().any(reported));
    cluster.apply_held.insert(3);
    cluster.tick_until(|cluster| merged_on(cluster, &[1]));
    cluster.turn(1, vec![order(&[4], &[2])]);
    cluster.tick_until(|cluster| voters_on(cluster, &[1, 3, 4]) && merged_on(cluster, &[4]));
    assert_eq!([frozen(&cluster, 2), frozen(&cluster, 3)], [Some(true); 2]);
    cluster.cut_off.insert(1);
    assert!(cluster.summary_of(2, CHILD).is_some_and(|of| of.leads));
    cluster
}

/// Everything is heard of again: what is left of the child ends, where nobody needs it.
fn ends_well(mut cluster: Cluster) {
    assert!(!thawed(&cluster) && frozen(&cluster, 2) == Some(true), "there was a merge");
    cluster.cut_off.clear();
    cluster.deaf.clear();
    cluster.apply_held.clear();
    cluster.tick_until(|cluster| (1..=4).all(|id| cluster.summary_of(id, CHILD).is_none()));
    cluster.tick_until(|cluster| cluster.summary_of(2, RANGE).is_none());
    assert!(!thawed(&cluster) && rows(&cluster.node(2).disk, &whole()).is_empty());
    cluster.tick_until(|cluster| serves(cluster, RANGE).is_some());
    assert_well(&cluster);
}

/// A replica of the range that came after the merge never had the child beside it, and knows from the list that came with
/// its snapshot. Did it say of a range that it does not know that it was not taken in, the child's leader would go on with
/// node 3, before that one applies the merge, and two ranges would serve the same keys.
#[test]
fn who_never_saw_the_source_knows_by_its_list_that_it_was_taken_in() {
    let mut cluster = moved_on_after_a_merge();
    let into = (*cluster.summary_of(4, RANGE).expect("it moved there").descriptor).clone();
    let asks = v1::RangeOrder { order_id: 7, range_id: CHILD.0, merge_into: Some(into), ..Default::default() };
    let at = cluster.sent.len();
    cluster.turn(2, vec![Input::Order(asks)]);
    for _ in 0..150 {
        cluster.tick();
    }
    let told = |sent: &&Envelope| sent.from.0 == 4 && sent.message.merge_told.is_some();
    assert!(cluster.sent[at..].iter().any(|sent| told(&sent)), "node 4 was asked, and answered");
    ends_well(cluster);
}

/// A replica of the range that was removed before it heard of the merge proves nothing: its tombstone tells how far it
/// had got. (That a later one does: `a_target_that_has_gone_elsewhere_had_decided_before`.)
#[test]
fn the_tombstone_of_a_target_that_had_not_got_that_far_proves_nothing() {
    let mut cluster = moved_on_after_a_merge();
    let old = cluster.summary(2);
    for _ in 0..150 {
        cluster.turn(2, vec![Input::Remove { range: RANGE, replica_id: old.replica_id }]);
        cluster.tick();
    }
    assert!(cluster.summary_of(2, RANGE).is_none());
    cluster.restart(2);
    for _ in 0..150 {
        cluster.tick();
    }
    let boot = recover::load(&*cluster.node(2).disk).expect("whole").expect("bootstrapped");
    assert_eq!(boot.tombstones[&RANGE].epoch, old.descriptor.epoch);
    ends_well(cluster);
}

/// Simulation seed 172: of a target that was split off while node 3 was away, and came there by no split, a snapshot of
/// before the merge is on its way. The frozen source there waits for it, whoever says that its range is gone.
#[test]
fn a_frozen_replica_stays_where_its_target_has_still_to_begin() {
    let config = Config { log_retain_entries: 8, log_lagging_bytes_max: 0, cache_bytes_max: 0, ..Config::default() };
    let mut cluster = split_with(config, 0);
    // Node 3 hears of the parent again when it needs a snapshot, which leaps over the split.
    cluster.deaf.extend([(3, RANGE), (3, MIDDLE)]);
    cluster.turn(1, vec![split_input(2, "f")]);
    cluster.tick_until(|cluster| serves(cluster, MIDDLE) == Some(1));
    for token in 10..40 {
        write_and_settle(&mut cluster, 1, token, RANGE, "b");
    }
    cluster.deaf.remove(&(3, RANGE));
    cluster.tick_until(|cluster| cluster.summary(3).applied == cluster.summary(1).applied);
    assert!(cluster.summary_of(3, MIDDLE).is_none(), "it never was there");
    cluster.deaf.clear();
    let offers = |sent: &Envelope| sent.to.0 == 3 && sent.message.range_id == MIDDLE.0 && sent.snapshot.is_some();
    cluster.step_until(|cluster| cluster.sent.iter().any(offers));
    cluster.deaf.insert((3, MIDDLE));
    cluster.turn(1, vec![merge_input(1, CHILD, MIDDLE)]);
    cluster.tick_until(|cluster| (1..=2).all(|id| cluster.summary_of(id, CHILD).is_none()));
    for _ in 0..40 {
        cluster.tick();
    }
    assert!(cluster.sent.iter().any(|sent| sent.to.0 == 3 && sent.message.merged_into != 0), "node 3 was told");
    assert_eq!(frozen(&cluster, 3), Some(true));
    let of_before = |sent: &&Envelope| {
        let header = sent.snapshot.as_ref().map(|data| &data.header);
        header.is_some_and(|header| sent.message.range_id == MIDDLE.0 && header.merge.is_none())
    };
    let late = cluster.sent.iter().find(of_before).expect("it was offered").clone();
    cluster.deaf.clear();
    cluster.turn(3, vec![Input::Message(late)]);
    cluster.tick_until(|cluster| cluster.summary_of(3, CHILD).is_none());
    let level = |cluster: &Cluster| {
        let at = |id| cluster.summary_of(id, MIDDLE).map(|of| (of.applied, of.applied_checksum));
        at(1).is_some() && (2..=3).all(|id| at(id) == at(1))
    };
    cluster.tick_until(level);
    assert_eq!(rows(&cluster.node(3).disk, &whole()), rows(&cluster.node(1).disk, &whole()));
    assert_well(&cluster);
}

/// The target's replica is told that it was removed while its apply stage has the merge: the source beside it ends all the
/// same, and neither leaves any keys, whenever the process ends.
#[test]
fn a_target_that_goes_while_it_takes_the_source_in_leaves_nothing() {
    for crashes in [false, true] {
        let mut cluster = split_with(Config::default(), 1);
        cluster.turn(1, vec![merge_input(1, CHILD, RANGE)]);
        let reported = |sent: &Envelope| sent.from.0 == 3 && sent.message.frozen > 0;
        cluster.step_until(|cluster| cluster.sent.iter().any(reported));
        cluster.apply_held.insert(3);
        cluster.tick_until(|cluster| merged_on(cluster, &[1, 2]));
        cluster.turn(1, vec![order(&[4], &[3])]);
        cluster.tick_until(|cluster| voters_on(cluster, &[1, 2, 4]));
        assert!(!cluster.node(3).applies.is_empty() && frozen(&cluster, 3) == Some(true));
        // The source hears nothing of its own.
        cluster.deaf.insert((3, CHILD));
        for _ in 0..40 {
            cluster.tick();
        }
        cluster.apply(3);
        assert!(cluster.summary_of(3, CHILD).is_none(), "it was taken in here as well");
        while cluster.persist(3) {}
        if crashes {
            cluster.restart(3);
        }
        cluster.apply_held.clear();
        cluster.settle();
        cluster.tick_until(|cluster| cluster.node(3).store.ranges().all(|of| of.range != RANGE && of.range != CHILD));
        while cluster.persist(3) {}
        assert_eq!(rows(&cluster.node(3).disk, &whole()), [], "crashes: {crashes}");
        assert_well(&cluster);
    }
}
