//! A large snapshot is installed beside the log writer: until that is done the replica stands still, whatever comes.

use std::ops::ControlFlow;
use std::sync::Arc;

use flotilla_engine::keys::{self, RangeRecord};
use flotilla_engine::snapshot::{self, Limits, Receiver};
use flotilla_engine::storage::{Family, Staging, Storage};
use flotilla_engine::store::{Effects, Envelope, Event, Input, LogItem, ReadView, SnapshotData};
use flotilla_engine::{log_writer, read, recover};
use flotilla_proto::{NodeId, v1};
use raft::eraftpb::MessageType;

use crate::cluster::{Cluster, RANGE};
use crate::ranges::{begun, message, nodes_of, order, voters_on};
use crate::snapshots::{installed, level, state_of, with_3_behind, write_many};

/// The leader's state now, as node 3 has received it: in files.
pub fn received(cluster: &Cluster) -> SnapshotData {
    let made = snapshot::make(&*cluster.node(1).disk, RANGE).expect("it can be made");
    let disk = &*cluster.node(3).disk;
    let limits = Limits { batch_bytes_max: 0, file_bytes: 100 };
    let mut receiver = Receiver::new(limits, made.header.clone()).expect("it has a header");
    for at in 0..made.chunks.count() {
        receiver.push(disk, made.chunks.read(at).expect("in memory")).expect("it is sound");
    }
    receiver.finish(disk).expect("it is whole")
}

fn input(message: v1::PeerMessage, snapshot: Option<SnapshotData>) -> Input {
    let (from, to) = (NodeId(message.from_replica), NodeId(message.to_replica));
    Input::Message(Envelope { from, to, message, disk_full: false, snapshot })
}

pub fn snapshot_to_3(data: SnapshotData, term: u64) -> Input {
    let applied = data.header.applied.expect("set");
    let meta =
        v1::SnapshotMeta { index: applied.index, term: applied.term, voters: vec![1, 2, 3], ..Default::default() };
    input(v1::PeerMessage { snapshot: Some(meta), ..message(3, 1, MessageType::MsgSnapshot, term) }, Some(data))
}

/// A cluster whose node 3 was just told to install a large snapshot.
fn installing() -> (Cluster, Arc<ReadView>, LogItem) {
    let mut cluster = with_3_behind();
    let before = cluster.view(3);
    let (data, term) = (received(&cluster), cluster.summary(1).term);
    let mut effects = cluster.turn(3, vec![snapshot_to_3(data, term)]);
    assert!(effects.log.is_none() && effects.messages.is_empty() && effects.applies.is_empty());
    assert_eq!(effects.views_gone, [RANGE], "not even stale reads may see the gap");
    let item = effects.ingests.pop().expect("it is to be installed");
    (cluster, before, item)
}

pub fn install(cluster: &mut Cluster, item: &LogItem) {
    let header = item.snapshot.as_ref().map(|data| data.header.clone()).expect("it has one");
    let durable = &mut cluster.nodes.get_mut(&3).expect("it exists").applied_durable;
    durable.insert(RANGE, header.applied.expect("set").index);
    let done = snapshot::install(&*cluster.node(3).disk, item, |_| ControlFlow::Continue(()));
    assert_eq!(done, Ok(ControlFlow::Continue(())));
}

/// Writes node 3's first log batch.
fn persist(cluster: &mut Cluster) -> Effects {
    let log = cluster.nodes.get_mut(&3).expect("it exists").log.pop_front().expect("it has one");
    let disk = cluster.node(3).disk.clone();
    let mut batch = disk.batch();
    log_writer::fill(&mut batch, &log).expect("sound");
    disk.write(batch).expect("the disk is well");
    cluster.turn(3, vec![Input::Persisted { sequence: log.sequence }])
}

fn writes_nothing(effects: &Effects) -> bool {
    effects.log.is_none() && effects.ingests.is_empty() && effects.messages.is_empty() && effects.views.is_empty()
}

#[test]
fn a_replica_stands_still_until_its_snapshot_is_installed() {
    let (mut cluster, before, item) = installing();
    let term = cluster.summary(3).term;
    for kind in [MessageType::MsgHeartbeat, MessageType::MsgTimeoutNow, MessageType::MsgRequestPreVote] {
        let from = if kind == MessageType::MsgRequestPreVote { 2 } else { 1 };
        assert!(writes_nothing(&cluster.turn(3, vec![input(message(3, from, kind, term), None)])), "{kind:?}");
    }
    let vote = v1::PeerMessage {
        index: 1_000,
        log_term: term,
        context: b"CampaignTransfer".as_slice().into(),
        ..message(3, 2, MessageType::MsgRequestVote, term + 1)
    };
    assert!(writes_nothing(&cluster.turn(3, vec![input(vote, None)])), "no vote leaves, and none is written");
    let again = received(&cluster);
    let effects = cluster.turn(3, vec![snapshot_to_3(again, term + 1)]);
    assert!(
        effects.events.iter().any(|event| matches!(event, Event::MessageRefused { .. })) && writes_nothing(&effects)
    );
    for _ in 0..40 {
        cluster.now = cluster.now + cluster.config.tick;
        assert!(writes_nothing(&cluster.turn(3, vec![Input::Tick])), "no campaign, no truncation");
    }
    install(&mut cluster, &item);
    drop(item);
    assert_eq!(cluster.node(3).disk.staged().expect("it can be listed"), [""; 0]);
    let effects = cluster.turn(3, vec![Input::Ingested { range: RANGE }]);
    assert_eq!(effects.views.len(), 1, "it can be read again");
    assert!(read::check_same(&before, &effects.views[0]).is_err(), "but not by who began before it");
    assert_eq!(installed(&cluster, 3).len(), 1);
    cluster.cut_off.clear();
    cluster.tick_until(level);
    write_many(&mut cluster, 100..103);
    cluster.tick_until(level);
    assert_eq!(state_of(&cluster, 3), state_of(&cluster, 1));
    cluster.restart(3);
    cluster.tick_until(level);
}

#[test]
fn an_installation_waits_for_the_log_batches_before_it() {
    // Written after it, they would bring an older Raft state back.
    let mut cluster = with_3_behind();
    cluster.disk_held.insert(3);
    let term = cluster.summary(3).term + 1;
    let vote = v1::PeerMessage {
        index: 1_000,
        log_term: term,
        context: b"CampaignTransfer".as_slice().into(),
        ..message(3, 2, MessageType::MsgRequestVote, term)
    };
    assert!(cluster.turn(3, vec![input(vote, None)]).log.is_some(), "its vote is to be written");
    let data = received(&cluster);
    assert!(cluster.turn(3, vec![snapshot_to_3(data, term)]).ingests.is_empty());
    cluster.now = cluster.now + cluster.config.tick;
    assert!(cluster.turn(3, vec![Input::Tick]).ingests.is_empty());
    let effects = persist(&mut cluster);
    let [item] = &effects.ingests[..] else { panic!("{effects:?}") };
    install(&mut cluster, item);
    cluster.turn(3, vec![Input::Ingested { range: RANGE }]);
    let boot = recover::load(&*cluster.node(3).disk).expect("it can be read").expect("it was made");
    assert_eq!((boot.ranges[0].raft.term, boot.ranges[0].raft.vote), (term, 2), "the vote is not forgotten");
}

#[test]
fn a_replica_that_is_removed_meanwhile_goes_when_its_snapshot_is_installed() {
    let (mut cluster, _, item) = installing();
    let effects = cluster.turn(3, vec![Input::Remove { range: RANGE, replica_id: 3 }]);
    assert!(effects.log.is_none(), "what is being installed would outlive the removal");
    install(&mut cluster, &item);
    cluster.turn(3, vec![Input::Ingested { range: RANGE }]);
    persist(&mut cluster);
    let contents = cluster.node(3).disk.contents();
    let left: Vec<_> = contents.keys().filter(|(family, _)| *family != Family::Meta).collect();
    assert_eq!(left, [&(Family::State, keys::range_record(RANGE, RangeRecord::Tombstone).to_vec())]);
}

/// The configuration that Raft took from a snapshot is not undone by an older change, which the apply stage still had.
#[test]
fn a_change_that_is_applied_behind_a_waiting_snapshot_is_history() {
    let mut cluster = begun(1);
    cluster.apply_held.insert(3);
    cluster.turn(1, vec![order(&[4], &[2])]);
    cluster.step_until(|cluster| nodes_of(cluster, 1).contains(&(4, v1::ReplicaRole::VoterIncoming)));
    let joint = cluster.summary(1).applied;
    cluster.step_until(|cluster| cluster.summary(3).commit >= joint);
    assert_eq!(cluster.summary(3).commit, joint, "it does not know that the joint configuration is left");
    cluster.deaf.insert((3, RANGE));
    cluster.tick_until(|cluster| voters_on(cluster, &[1, 3, 4]));
    write_many(&mut cluster, 100..110);
    cluster.deaf.clear();
    let made = snapshot::make(&*cluster.node(1).disk, RANGE).expect("it can be made");
    let term = cluster.summary(1).term;
    let applied = made.header.applied.expect("set");
    let voters = vec![1, 3, 4];
    let meta = v1::SnapshotMeta { index: applied.index, term: applied.term, voters, ..Default::default() };
    let told = v1::PeerMessage { snapshot: Some(meta), ..message(3, 1, MessageType::MsgSnapshot, term) };
    cluster.turn(3, vec![input(told, Some(made))]);
    cluster.apply_held.clear();
    cluster.settle();
    cluster.turn(1, vec![order(&[2], &[4])]);
    cluster.tick_until(|cluster| voters_on(cluster, &[1, 2, 3]));
    cluster.tick();
    assert!(cluster.fatal.is_empty(), "{:?}", cluster.fatal);
    assert_eq!(nodes_of(&cluster, 3), nodes_of(&cluster, 1));
}
