//! Snapshots: sent to a follower whose entries are gone, installed whole or not at all, and never under an apply
//! that is still on its way.

use std::sync::Arc;

use flotilla_engine::config::Config;
use flotilla_engine::keys::{self, RangeRecord};
use flotilla_engine::snapshot::Chunks;
use flotilla_engine::storage::{Family, Storage};
use flotilla_engine::store::{Destroy, Envelope, Event, Input, LogBatch, LogItem};
use flotilla_engine::{log_writer, snapshot};
use flotilla_proto::error::Action;
use flotilla_proto::{NodeId, v1};
use raft::eraftpb::MessageType;

use crate::cluster::{Cluster, RANGE};

pub fn small_log() -> Config {
    Config { log_retain_entries: 4, log_lagging_bytes_max: 0, cache_bytes_max: 0, ..Config::default() }
}

pub fn write_many(cluster: &mut Cluster, tokens: std::ops::Range<u64>) {
    for token in tokens {
        cluster.put(1, token, &format!("key-{}", token % 7), &format!("value-{token}"));
        cluster.settle();
    }
}

/// A cluster whose node 3 needs a snapshot, and is still cut off.
pub fn with_3_behind() -> Cluster {
    let mut cluster = Cluster::led_by_1(small_log());
    cluster.cut_off.insert(3);
    write_many(&mut cluster, 0..40);
    assert!(cluster.summary(1).truncated > cluster.summary(3).last_index, "its entries are gone");
    cluster
}

pub fn level(cluster: &Cluster) -> bool {
    (2..=3).all(|id| cluster.summary(id).applied == cluster.summary(1).applied)
}

pub fn state_of(cluster: &Cluster, id: u64) -> Vec<(Vec<u8>, bytes::Bytes)> {
    let contents = cluster.node(id).disk.contents();
    contents
        .into_iter()
        .filter(|((family, _), _)| *family == Family::State)
        .map(|((_, key), value)| (key, value))
        .collect()
}

pub fn installed(cluster: &Cluster, id: u64) -> Vec<u64> {
    let events = cluster.events.iter().filter(|(node, _)| *node == id);
    events
        .filter_map(|(_, event)| if let Event::SnapshotApplied { index, .. } = event { Some(*index) } else { None })
        .collect()
}

/// The leader's state now, as a message to a follower.
fn snapshot_to(cluster: &Cluster, to: u64) -> Input {
    let data = snapshot::make(&*cluster.node(1).disk, RANGE).expect("it can be made");
    let applied = data.header.applied.expect("set");
    let message = v1::PeerMessage {
        range_id: RANGE.0,
        from_replica: 1,
        to_replica: to,
        message_type: MessageType::MsgSnapshot as u32,
        term: cluster.summary(1).term,
        snapshot: Some(v1::SnapshotMeta {
            index: applied.index,
            term: applied.term,
            voters: vec![1, 2, 3],
            learners: vec![],
            voters_outgoing: vec![],
        }),
        ..Default::default()
    };
    Input::Message(Envelope { from: NodeId(1), to: NodeId(to), message, disk_full: false, snapshot: Some(data) })
}

#[test]
fn a_follower_whose_entries_are_gone_gets_a_snapshot_and_then_entries() {
    let mut cluster = with_3_behind();
    cluster.cut_off.clear();
    cluster.tick_until(level);
    assert_eq!(installed(&cluster, 3).len(), 1);
    write_many(&mut cluster, 100..103);
    // The last commit index travels with the next heartbeat.
    cluster.tick_until(level);
    assert_eq!(installed(&cluster, 3).len(), 1);
    assert_eq!(state_of(&cluster, 3), state_of(&cluster, 1));
    cluster.restart(3);
    cluster.tick_until(level);
}

#[test]
fn a_snapshot_is_acknowledged_only_after_it_is_durable() {
    let mut cluster = with_3_behind();
    cluster.cut_off.clear();
    cluster.disk_held.insert(3);
    cluster.tick_until(|cluster| {
        cluster.node(3).log.iter().any(|log| log.items.iter().any(|item| item.snapshot.is_some()))
    });
    let index = cluster.summary(3).commit;
    let acknowledged = |cluster: &Cluster| {
        cluster.sent(3, 1, MessageType::MsgAppendResponse).iter().any(|sent| !sent.reject && sent.index >= index)
    };
    cluster.tick();
    assert!(!acknowledged(&cluster) && installed(&cluster, 3).is_empty());
    assert!(cluster.summary(3).applied < index, "it serves nothing of it");
    cluster.disk_held.clear();
    cluster.settle();
    assert!(acknowledged(&cluster));
    assert_eq!(installed(&cluster, 3), [index]);
}

#[test]
fn a_snapshot_waits_for_apply_in_flight() {
    let mut cluster = Cluster::led_by_1(small_log());
    cluster.apply_held.insert(3);
    write_many(&mut cluster, 0..2);
    cluster.tick();
    assert!(!cluster.node(3).applies.is_empty());
    cluster.cut_off.insert(3);
    write_many(&mut cluster, 2..40);
    cluster.cut_off.clear();
    for _ in 0..3 {
        cluster.tick();
    }
    assert!(cluster.summary(3).commit > 40, "Raft has accepted a snapshot");
    assert!(cluster.node(3).log.is_empty() && installed(&cluster, 3).is_empty());
    assert_eq!(
        snapshot::make(&*cluster.node(3).disk, RANGE).expect("readable").header.records,
        0,
        "nothing is replaced yet"
    );
    cluster.apply_held.clear();
    cluster.tick_until(level);
    assert_eq!(installed(&cluster, 3).len(), 1);
    assert_eq!(state_of(&cluster, 3), state_of(&cluster, 1));
}

/// etcd#18055.
#[test]
fn of_several_snapshots_in_one_turn_the_newest_is_installed() {
    let mut cluster = with_3_behind();
    let first = snapshot_to(&cluster, 3);
    write_many(&mut cluster, 50..53);
    let second = snapshot_to(&cluster, 3);
    let third = snapshot_to(&cluster, 3);
    cluster.turn(3, vec![first, second, third]);
    cluster.settle();
    assert_eq!(installed(&cluster, 3), [cluster.summary(1).applied]);
    assert_eq!(state_of(&cluster, 3), state_of(&cluster, 1));
}

/// etcd#18055: the second comes before the first is on disk.
#[test]
fn snapshots_that_wait_for_the_disk_together_are_installed_in_turn() {
    let mut cluster = with_3_behind();
    cluster.disk_held.insert(3);
    let first = snapshot_to(&cluster, 3);
    write_many(&mut cluster, 50..53);
    let second = snapshot_to(&cluster, 3);
    cluster.turn(3, vec![first]);
    cluster.turn(3, vec![second]);
    assert_eq!(cluster.node(3).log.len(), 2);
    cluster.disk_held.clear();
    cluster.settle();
    assert_eq!(installed(&cluster, 3).len(), 2);
    assert_eq!(state_of(&cluster, 3), state_of(&cluster, 1));
    cluster.cut_off.clear();
    cluster.tick_until(level);
}

/// tikv#6366, #7027, #9108, cockroach#36611: what it replaces and what it brings are one write.
#[test]
fn a_crash_before_a_snapshot_is_written_leaves_the_old_state_whole() {
    let mut cluster = with_3_behind();
    let before = (cluster.summary(3).applied, state_of(&cluster, 3));
    cluster.disk_held.insert(3);
    let snapshot = snapshot_to(&cluster, 3);
    cluster.turn(3, vec![snapshot]);
    cluster.restart(3);
    assert_eq!((cluster.summary(3).applied, state_of(&cluster, 3)), before);
    cluster.disk_held.clear();
    cluster.cut_off.clear();
    cluster.tick_until(level);
}

#[test]
fn a_replica_does_not_campaign_while_it_installs_a_snapshot() {
    // raft-rs would look for entries that it takes for unapplied, find them gone, and end the process.
    let mut cluster = with_3_behind();
    cluster.disk_held.insert(3);
    let snapshot = snapshot_to(&cluster, 3);
    cluster.turn(3, vec![snapshot]);
    let term = cluster.summary(3).term;
    let timeout_now = v1::PeerMessage {
        range_id: RANGE.0,
        from_replica: 1,
        to_replica: 3,
        message_type: MessageType::MsgTimeoutNow as u32,
        term,
        ..Default::default()
    };
    let envelope = Envelope { from: NodeId(1), to: NodeId(3), message: timeout_now, disk_full: false, snapshot: None };
    cluster.turn(3, vec![Input::Message(envelope)]);
    for _ in 0..40 {
        cluster.tick();
    }
    assert_eq!(cluster.summary(3).term, term);
    cluster.cut_off = [1].into();
    cluster.disk_held.clear();
    cluster.tick_until(|cluster| cluster.leader().is_some_and(|id| id != 1));
}

/// tikv#15044: it may be gone by the time that it is to be sent.
#[test]
fn a_snapshot_that_is_let_go_before_it_leaves_is_made_anew() {
    let mut cluster = with_3_behind();
    cluster.cut_off.clear();
    cluster.tick();
    // One is made and waits for the follower's next sign of life; in that turn it is let go.
    cluster.now = cluster.now + cluster.config.tick;
    cluster.turn(1, vec![Input::Tick]);
    cluster.network.retain(|sent| sent.to.0 == 3);
    while cluster.network.front().is_some_and(|sent| sent.to.0 == 3) {
        cluster.deliver();
    }
    cluster.persist(3);
    let mut inputs: Vec<_> = std::mem::take(&mut cluster.network).into_iter().map(Input::Message).collect();
    assert!(!inputs.is_empty());
    inputs.push(Input::SnapshotMade { range: RANGE, snapshot: None });
    let effects = cluster.turn(1, inputs);
    assert!(effects.messages.iter().all(|sent| sent.snapshot.is_none()));
    cluster.tick_until(level);
}

#[test]
fn a_proposal_that_a_snapshot_leapt_over_has_an_unknown_outcome() {
    let mut cluster = Cluster::led_by_1(small_log());
    cluster.cut_off.insert(1);
    cluster.put(1, 7, "key", "proposed by a leader that is cut off");
    cluster.settle();
    cluster.tick_until(|cluster| cluster.leader().is_some_and(|id| id != 1) && !cluster.summary(1).leads);
    let leader = cluster.leader().expect("just seen");
    for token in 100..140 {
        cluster.put(leader, token, "key", "v");
        cluster.settle();
    }
    cluster.cut_off.clear();
    cluster.tick_until(|cluster| cluster.summary(1).applied == cluster.summary(leader).applied);
    assert_eq!(installed(&cluster, 1).len(), 1);
    assert_eq!(cluster.answer(7).as_ref().map_err(|error| error.action()), Err(Action::Ambiguous));
    assert_eq!(cluster.summary(1).proposal_bytes, 0);
}

#[test]
fn a_snapshot_empties_the_span_that_the_replica_held_before() {
    let mut cluster = Cluster::led_by_1(Config::default());
    for (token, key) in [(1, "a"), (2, "m"), (3, "z")] {
        cluster.put(1, token, key, "old");
        cluster.settle();
    }
    let disk = &*cluster.node(2).disk;
    let mut data = snapshot::make(disk, RANGE).expect("it can be made");
    let before = data.header.descriptor.clone().expect("set");
    // As after a split at "n": the right half is another range's, and none of it is in the snapshot.
    let after = data.header.descriptor.as_mut().expect("set");
    (after.end, after.epoch) = (b"n".as_slice().into(), Some(v1::Epoch { conf_ver: 1, version: 2 }));
    (data.chunks, data.header.records) = (Chunks::default(), 0);
    let replaces = Some(Arc::new(before));
    let item = LogItem { snapshot: Some(data.clone()), replaces, ..LogItem::new(RANGE) };
    let mut batch = disk.batch();
    log_writer::fill(&mut batch, &LogBatch { sequence: 1, items: vec![item] }).expect("sound");
    disk.write(batch).expect("the disk is well");
    assert_eq!(snapshot::make(disk, RANGE).expect("it can be made"), data);
    assert!(disk.contents().keys().all(|(family, key)| *family != Family::State || key[0] != 2), "no data is left");
}

#[test]
fn of_a_destroyed_replica_the_tombstone_stays_and_nothing_else() {
    let mut cluster = Cluster::led_by_1(Config::default());
    write_many(&mut cluster, 0..20);
    let disk = &*cluster.node(2).disk;
    let descriptor = cluster.summary(2).descriptor;
    let tombstone = v1::Tombstone { replica_id: 2, ..Default::default() };
    let destroy = Some(Destroy { descriptor, tombstone, keeps_data: false });
    let mut batch = disk.batch();
    let items = vec![LogItem { destroy, ..LogItem::new(RANGE) }];
    log_writer::fill(&mut batch, &LogBatch { sequence: 1, items }).expect("sound");
    disk.write(batch).expect("the disk is well");
    let left: Vec<_> = disk.contents().into_keys().filter(|(family, _)| *family != Family::Meta).collect();
    assert_eq!(left, [(Family::State, keys::range_record(RANGE, RangeRecord::Tombstone).to_vec())]);
}
