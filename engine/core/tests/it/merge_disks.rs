//! Merges and the disk: what ends together with a snapshot, what a crash in the middle leaves, and what is never touched.

use flotilla_engine::config::Config;
use flotilla_engine::storage::Storage;
use flotilla_engine::store::{Envelope, Event, Input, LogItem, Split, SplitAt, Token, TransferLeader};
use flotilla_engine::{log_writer, recover, snapshot};
use flotilla_proto::{NodeId, RangeId, v1};
use raft::eraftpb::MessageType;

use crate::cluster::{Cluster, LATER, RANGE, rows};
use crate::installs::{install, received, snapshot_to_3};
use crate::merge_bugs::{level, write_and_settle};
use crate::merges::{assert_well, frozen, merge_input, merged_on, split, split_with};
use crate::ranges::{CHILD, message, nodes_of, order, serves, split_input, whole};
use crate::snapshots::small_log;

/// Two ranges, merged while node 3 hears nothing, and written to until it can only get a snapshot.
fn merged_without_3() -> Cluster {
    let mut cluster = split_with(small_log(), 0);
    cluster.turn(1, vec![merge_input(1, CHILD, RANGE)]);
    cluster.step_until(|cluster| merged_on(cluster, &[1]));
    cluster.cut_off.insert(3);
    cluster.tick_until(|cluster| merged_on(cluster, &[1, 2]));
    for token in 10..50 {
        write_and_settle(&mut cluster, 1, token, RANGE, if token % 2 == 0 { "b" } else { "q" });
    }
    cluster
}

/// cockroach#36611, tikv#7027: a replica of the target that is sent a snapshot has the frozen source beside it. Both change in
/// one batch, and a crash before leaves both as they were.
#[test]
fn a_snapshot_of_the_merged_range_ends_the_source_beside_it() {
    for crash in [false, true] {
        let mut cluster = merged_without_3();
        assert!(cluster.summary(1).truncated > cluster.summary(3).last_index);
        let (before, held) = (cluster.summary(3).applied, rows(&cluster.node(3).disk, &whole()));
        cluster.disk_held.insert(3);
        cluster.cut_off.clear();
        let ends = |cluster: &Cluster| {
            let items = cluster.node(3).log.iter().flat_map(|log| &log.items);
            items.filter(|item| item.snapshot.is_some()).map(|item| item.ends.len()).sum::<usize>() == 1
        };
        cluster.tick_until(ends);
        assert_eq!(rows(&cluster.node(3).disk, &whole()), held, "nothing before the batch is written");
        if crash {
            cluster.restart(3);
            assert_eq!((frozen(&cluster, 3), cluster.summary(3).applied), (Some(true), before), "both as they were");
        }
        cluster.disk_held.clear();
        cluster.tick_until(level);
        let boot = recover::load(&*cluster.node(3).disk).expect("whole").expect("bootstrapped");
        assert_eq!((boot.ranges.len(), boot.removed.len()), (1, 0));
        assert_eq!(boot.tombstones[&CHILD].merged_into, RANGE.0);
        assert_well(&cluster);
    }
}

/// Writes what node 3 has for its log, until it has a snapshot installed.
fn ingest_on_3(cluster: &mut Cluster) -> LogItem {
    loop {
        cluster.now = cluster.now + cluster.config.tick;
        let input = match cluster.nodes.get_mut(&3).expect("it exists").log.pop_front() {
            Some(log) => {
                let disk = cluster.node(3).disk.clone();
                let mut batch = disk.batch();
                log_writer::fill(&mut batch, &log).expect("sound");
                disk.write(batch).expect("the disk is well");
                Input::Persisted { sequence: log.sequence }
            }
            None => Input::Tick,
        };
        if let Some(item) = cluster.turn(3, vec![input]).ingests.pop() {
            return item;
        }
    }
}

/// A large one likewise: the source stands still until nothing of it is under way, and ends by the intent.
#[test]
fn a_large_snapshot_of_the_merged_range_ends_the_source_beside_it() {
    let mut cluster = merged_without_3();
    // What the log writer still has of the source comes before anything is installed.
    cluster.disk_held.insert(3);
    let ask = v1::PeerMessage { index: 1_000, log_term: 9, ..message(3, 2, MessageType::MsgRequestVote, 30) };
    let ask = v1::PeerMessage { range_id: CHILD.0, context: b"CampaignTransfer".as_slice().into(), ..ask };
    let ask = Envelope { from: NodeId(2), to: NodeId(3), message: ask, disk_full: false, snapshot: None };
    assert!(cluster.turn(3, vec![Input::Message(ask)]).log.is_some(), "its vote is to be written");
    let (data, term) = (received(&cluster), cluster.summary(1).term);
    assert!(cluster.turn(3, vec![snapshot_to_3(data, term)]).ingests.is_empty());
    assert!(cluster.summary_of(3, CHILD).is_none(), "it takes part in nothing");
    cluster.disk_held.clear();
    let item = ingest_on_3(&mut cluster);
    assert_eq!(item.ends.len(), 1);
    assert!(rows(&cluster.node(3).disk, &whole()).iter().any(|(key, _)| key.contains(&b'x')), "not before the intent");
    install(&mut cluster, &item);
    cluster.turn(3, vec![Input::Ingested { range: RANGE }]);
    cluster.cut_off.clear();
    cluster.tick_until(level);
    cluster.restart(3);
    cluster.tick_until(level);
    assert_well(&cluster);
}

/// The range that took another one in is split again, and its child's snapshot comes while that of the range itself, with
/// which the other one's data goes, is not durable yet (a seed of the simulation).
#[test]
fn a_childs_snapshot_waits_for_one_under_way_that_deletes_its_span() {
    const NEW: RangeId = RangeId(CHILD.0 + 1);
    let mut cluster = merged_without_3();
    cluster.turn(1, vec![split_input(900, "m")]);
    cluster.tick_until(|cluster| serves(cluster, NEW) == Some(1));
    let (data, term) = (received(&cluster), cluster.summary(1).term);
    let at_once = cluster.turn(3, vec![snapshot_to_3(data, term)]).ingests.pop();
    let item = at_once.unwrap_or_else(|| ingest_on_3(&mut cluster));
    assert_eq!(item.ends.len(), 1);
    assert!(cluster.summary_of(3, CHILD).is_none(), "it is no replica here any more, and has data");

    let made = snapshot::make(&*cluster.node(1).disk, NEW).expect("it can be made");
    let term = cluster.summary_of(1, NEW).expect("it leads it").term;
    let Input::Message(mut brought) = snapshot_to_3(made, term) else { unreachable!("it is a message") };
    brought.message.range_id = NEW.0;
    let effects = cluster.turn(3, vec![Input::Message(brought)]);
    let refused =
        |event: &Event| matches!(event, Event::MessageRefused { reason, .. } if reason.contains("put in place"));
    assert!(effects.events.iter().any(refused), "{:?}", effects.events);
    assert!(cluster.summary_of(3, NEW).is_none());

    install(&mut cluster, &item);
    cluster.turn(3, vec![Input::Ingested { range: RANGE }]);
    cluster.cut_off.clear();
    let same = |cluster: &Cluster| rows(&cluster.node(3).disk, &whole()) == rows(&cluster.node(1).disk, &whole());
    cluster.tick_until(|cluster| cluster.summary_of(3, NEW).is_some() && same(cluster));
    assert_well(&cluster);
}

/// The merge is applied, and on the disk; the crash comes before the source's records go. The next start lets them go, and
/// touches no key.
#[test]
fn a_crash_between_a_merge_and_the_end_of_the_sources_records_is_made_good() {
    let mut cluster = split();
    let before = rows(&cluster.node(3).disk, &whole());
    cluster.turn(1, vec![merge_input(1, CHILD, RANGE)]);
    cluster.step_until(|cluster| merged_on(cluster, &[3]));
    let boot = recover::load(&*cluster.node(3).disk).expect("whole").expect("bootstrapped");
    assert_eq!((boot.ranges.len(), boot.removed.len()), (1, 1), "its records are still there");
    cluster.restart(3);
    assert_eq!(cluster.node(3).store.ranges().count(), 1);
    cluster.tick();
    cluster.tick_until(level);
    let boot = recover::load(&*cluster.node(3).disk).expect("whole").expect("bootstrapped");
    assert_eq!((boot.ranges.len(), boot.removed.len()), (1, 0));
    assert_eq!(rows(&cluster.node(3).disk, &whole()), before);
    assert_well(&cluster);
}

/// The batch of a merge is lost in a power cut: the entry is applied once more, beside a source that stands as it was.
#[test]
fn a_merge_is_applied_again_after_a_power_cut() {
    let mut cluster = split();
    cluster.turn(1, vec![merge_input(1, CHILD, RANGE)]);
    cluster.step_until(|cluster| cluster.summary(3).commit > cluster.summary(3).applied);
    let synced = cluster.node(3).disk.contents();
    cluster.apply(3);
    if merged_on(&cluster, &[3]) {
        cluster.node(3).disk.restore(synced);
    }
    cluster.restart(3);
    assert_eq!(frozen(&cluster, 3), Some(true));
    cluster.tick_until(level);
    assert_well(&cluster);
}

/// A frozen replica that lacks empty entries of later leaders, which are cut, is brought the log by a snapshot, and keeps its
/// data untouched.
#[test]
fn a_snapshot_of_the_same_freeze_leaves_the_data_alone() {
    let mut cluster = split_with(Config { log_retain_entries: 0, ..small_log() }, 0);
    cluster.deaf.extend([(1, RANGE), (2, RANGE), (3, RANGE)]);
    cluster.turn(1, vec![merge_input(1, CHILD, RANGE)]);
    cluster.settle();
    assert!((1..=3).all(|id| frozen(&cluster, id) == Some(true)));
    cluster.deaf.insert((3, CHILD));
    for to in [2, 1, 2] {
        let leader = cluster.leader_of(CHILD).expect("there is one");
        let order = TransferLeader { token: Token(5), range: CHILD, to: NodeId(to), deadline: LATER };
        cluster.turn(leader, vec![Input::TransferLeader(order)]);
        cluster.tick_until(|cluster| {
            cluster.summary_of(to, CHILD).is_some_and(|of| of.leads && of.applied == of.last_index)
        });
        cluster.tick();
    }
    let behind = cluster.summary_of(3, CHILD).expect("it is here").last_index;
    cluster.tick_until(|cluster| cluster.summary_of(2, CHILD).is_some_and(|of| of.truncated > behind));
    cluster.deaf.remove(&(3, CHILD));
    let brings = |cluster: &Cluster| {
        let items = cluster.node(3).log.iter().flat_map(|log| &log.items);
        items.filter(|item| item.snapshot.is_some()).all(|item| item.keeps_data)
            && cluster.node(3).log.iter().flat_map(|log| &log.items).any(|item| item.keeps_data)
    };
    cluster.step_until(brings);
    cluster.deaf.clear();
    cluster.tick_until(|cluster| (1..=3).all(|id| frozen(cluster, id) != Some(true)));
    cluster.tick_until(|cluster| {
        (2..=3).all(|id| rows(&cluster.node(id).disk, &whole()) == rows(&cluster.node(1).disk, &whole()))
    });
    assert_well(&cluster);
}

/// A replica that waits for its first snapshot is removed again, before what is held for that snapshot was done: it deletes
/// nothing, for nothing is its own (the simulation's seed 9283).
#[test]
fn a_replica_that_never_began_deletes_nothing_when_it_goes() {
    let mut cluster = split_with(small_log(), 0);
    cluster.deaf.extend([(1, RANGE), (2, RANGE), (3, RANGE)]);
    cluster.turn(1, vec![merge_input(1, CHILD, RANGE)]);
    cluster.settle();
    assert!((1..=3).all(|id| frozen(&cluster, id) == Some(true)));
    // The empty entry of the next leader.
    cluster.apply_held.insert(3);
    let order_to_2 = TransferLeader { token: Token(5), range: CHILD, to: NodeId(2), deadline: LATER };
    cluster.turn(1, vec![Input::TransferLeader(order_to_2)]);
    cluster.tick_until(|cluster| !cluster.node(3).applies.is_empty());
    cluster.deaf = [(3, RANGE)].into();
    cluster.tick_until(|cluster| merged_on(cluster, &[1, 2]));
    let leader = cluster.leader_of(RANGE).expect("there is one");
    cluster.turn(leader, vec![order(&[], &[3])]);
    cluster.tick_until(|cluster| nodes_of(cluster, leader).len() == 2);
    cluster.cut_off.insert(3);
    cluster.deaf.clear();
    cluster.turn(3, vec![Input::Remove { range: RANGE, replica_id: 3 }]);
    cluster.tick_until(|cluster| rows(&cluster.node(3).disk, &whole()).len() == 2);
    let held = rows(&cluster.node(3).disk, &whole());
    assert!(frozen(&cluster, 3).is_some(), "what was taken in stands there, and has its data");

    cluster.cut_off.clear();
    cluster.turn(leader, vec![order(&[3], &[])]);
    let brings = MessageType::MsgSnapshot as u32;
    let brought = |sent: &Envelope| sent.message.message_type == brings && sent.message.to_replica == 4;
    cluster.tick_until(|cluster| cluster.sent.iter().any(brought) && frozen(cluster, 3).is_none());
    let went = |cluster: &Cluster| {
        let gone = |event: &Event| matches!(event, Event::Removed { range: RANGE, replica_id: 4 });
        cluster.events.iter().any(|(id, event)| *id == 3 && gone(event))
    };
    assert!(!went(&cluster) && rows(&cluster.node(3).disk, &whole()) == held, "it waits for what is held for it");
    cluster.cut_off.insert(3);
    cluster.turn(3, vec![Input::Remove { range: RANGE, replica_id: 4 }]);
    cluster.tick_until(went);
    cluster.settle();
    assert_eq!(rows(&cluster.node(3).disk, &whole()), held);
    cluster.restart(3);
    assert!(frozen(&cluster, 3).is_some(), "it stands as it was");
    assert_eq!(rows(&cluster.node(3).disk, &whole()), held);
    assert_well(&cluster);
}

/// Two replicas are held for a snapshot of the range that took both in at last, and the snapshot never comes to its place. The
/// left one has yet to apply that it took the right one in: until then that one stays, whatever the order in which they go, or
/// the apply stage finds it gone, and so does every start behind that (the simulation's seed 38975).
#[test]
fn of_two_that_were_held_the_source_stays_until_its_target_has_applied_the_merge() {
    const THIRD: RangeId = RangeId(CHILD.0 + 1);
    let remove_3 = |range: RangeId| {
        let (order_id, remove_nodes) = (range.0, vec![3]);
        Input::Order(v1::RangeOrder { order_id, range_id: range.0, remove_nodes, ..Default::default() })
    };
    for crash in [false, true] {
        let mut cluster = split();
        let at = SplitAt::Keys(vec!["t".into()]);
        cluster.turn(1, vec![Input::Split(Split { token: Token(801), range: CHILD, at, deadline: LATER })]);
        cluster.tick_until(|cluster| serves(cluster, THIRD) == Some(1));
        cluster.tick();
        cluster.turn(1, vec![remove_3(RANGE)]);
        cluster.tick_until(|cluster| !cluster.node(3).store.ranges().any(|of| of.range == RANGE));

        let before = cluster.summary_of(1, CHILD).expect("it is here").last_index;
        cluster.turn(1, vec![merge_input(1, THIRD, CHILD)]);
        cluster.step_until(|cluster| cluster.summary_of(1, CHILD).is_some_and(|of| of.last_index > before));
        cluster.apply_held.insert(3);
        cluster.tick_until(|cluster| (1..=2).all(|id| cluster.summary_of(id, THIRD).is_none()));
        cluster.turn(1, vec![remove_3(CHILD)]);
        cluster.tick_until(|cluster| cluster.summary_of(1, CHILD).is_some_and(|of| of.descriptor.replicas.len() == 2));
        cluster.turn(3, vec![Input::Remove { range: CHILD, replica_id: 3 }]);
        assert!(!cluster.node(3).views.contains_key(&CHILD), "it takes part in nothing more");
        cluster.turn(1, vec![merge_input(2, CHILD, RANGE)]);
        cluster.tick_until(|cluster| merged_on(cluster, &[1, 2]));

        cluster.turn(1, vec![order(&[3], &[])]);
        let brings = MessageType::MsgSnapshot as u32;
        let brought = |sent: &Envelope| sent.message.message_type == brings && sent.message.to_replica == 4;
        cluster.tick_until(|cluster| cluster.sent.iter().any(brought) && cluster.summary_of(3, THIRD).is_none());
        cluster.cut_off.insert(3);
        cluster.turn(3, vec![Input::Remove { range: RANGE, replica_id: 4 }]);
        let gone = |cluster: &Cluster| -> Vec<RangeId> {
            let of = |event: &Event| match event {
                Event::Removed { range, .. } => Some(*range),
                _ => None,
            };
            cluster.events.iter().filter(|(id, _)| *id == 3).filter_map(|(_, event)| of(event)).collect()
        };
        (0..3).for_each(|_| cluster.tick());
        assert_eq!(gone(&cluster), [RANGE, RANGE], "the two others wait for the apply stage");
        if crash {
            cluster.restart(3);
        }
        cluster.apply_held.clear();
        cluster.cut_off.clear();
        cluster.tick_until(|cluster| {
            let left: Vec<_> = cluster.node(3).store.ranges().map(|of| of.range).collect();
            !left.contains(&CHILD) && !left.contains(&THIRD)
        });
        cluster.settle();
        let boot = recover::load(&*cluster.node(3).disk).expect("whole").expect("bootstrapped");
        assert!([CHILD, THIRD].iter().all(|of| boot.tombstones.contains_key(of)), "{:?}", boot.tombstones);
        assert_well(&cluster);
    }
}
