//! What a peer with a bug may say about ranges and replicas: descriptors of other ranges, changes that contradict
//! themselves. It is refused in words, or comes to nothing on every replica alike; the store goes on.

use flotilla_engine::command;
use flotilla_engine::snapshot;
use flotilla_engine::store::{Effects, Envelope, Event, Input, SnapshotData};
use flotilla_proto::{NodeId, RangeId, v1};
use prost::Message;
use raft::eraftpb::{EntryType, MessageType};

use crate::cluster::{Cluster, EPOCH, RANGE};
use crate::ranges::begun;

fn refused(effects: &Effects) -> bool {
    effects.events.iter().any(|event| matches!(event, Event::MessageRefused { .. }))
}

/// A snapshot of a range that node 4 has nothing of, as it would come for replica 4 of it, with a changed descriptor.
fn snapshot_to_4(cluster: &Cluster, range: RangeId, change: impl Fn(&mut v1::RangeDescriptor)) -> Input {
    let made = snapshot::make(&*cluster.node(1).disk, RANGE).expect("it can be made");
    let mut descriptor = made.header.descriptor.clone().expect("set");
    let learner = v1::ReplicaDescriptor { replica_id: 4, node_id: 4, role: v1::ReplicaRole::Learner.into() };
    descriptor.replicas.push(learner);
    descriptor.next_replica_id = 5;
    descriptor.epoch = Some(v1::Epoch { conf_ver: 2, version: 1 });
    change(&mut descriptor);
    let of = |role| {
        let which = descriptor.replicas.iter().filter(move |of| of.role() == role);
        which.map(|of| of.replica_id).collect::<Vec<_>>()
    };
    let (voters, learners) = (of(v1::ReplicaRole::Voter), of(v1::ReplicaRole::Learner));
    let applied = made.header.applied.expect("set");
    let meta = v1::SnapshotMeta { index: applied.index, term: applied.term, voters, learners, voters_outgoing: vec![] };
    let message = v1::PeerMessage {
        range_id: range.0,
        from_replica: 1,
        to_replica: 4,
        message_type: MessageType::MsgSnapshot as u32,
        term: cluster.summary(1).term,
        snapshot: Some(meta),
        ..Default::default()
    };
    let header = v1::SnapshotHeader { descriptor: Some(descriptor), ..made.header };
    let snapshot = Some(SnapshotData { header, chunks: made.chunks });
    Input::Message(Envelope { from: NodeId(1), to: NodeId(4), message, disk_full: false, snapshot })
}

type Change = fn(&mut v1::RangeDescriptor);

#[test]
fn foreign_descriptors_in_snapshots_begin_nothing() {
    let cases: &[(&str, Change)] = &[
        ("another range", |of| of.range_id = 77),
        ("no range", |of| *of = v1::RangeDescriptor::default()),
        ("another keyspace, where the data is not", |of| of.keyspace_id = 9),
        ("no epoch", |of| of.epoch = None),
        ("a span that ends before it starts", |of| (of.start, of.end) = ("z".into(), "b".into())),
        ("a span without its data", |of| of.start = "t".into()),
        ("not its receiver", |of| of.replicas.retain(|replica| replica.replica_id != 4)),
        ("its receiver on another node", |of| of.replicas[3].node_id = 9),
        ("its receiver by another id", |of| of.replicas[3].replica_id = 3),
        ("two replicas with one id", |of| of.replicas[2].replica_id = 2),
        ("two replicas on one node", |of| of.replicas[2].node_id = 4),
        ("no voter", |of| of.replicas.retain(|replica| replica.replica_id == 4)),
    ];
    for (what, change) in cases {
        let mut cluster = begun(1);
        let input = snapshot_to_4(&cluster, RANGE, change);
        let effects = cluster.turn(4, vec![input]);
        assert!(refused(&effects), "{what}");
        assert!(effects.log.is_none() && effects.ingests.is_empty() && effects.messages.is_empty(), "{what}");
        cluster.settle();
        assert_eq!(cluster.node(4).store.ranges().count(), 0, "{what}");
        let sound = snapshot_to_4(&cluster, RANGE, |_| ());
        cluster.turn(4, vec![sound]);
        cluster.settle();
        assert!(cluster.summary_of(4, RANGE).is_some(), "what is sound is taken after {what}");
        assert!(cluster.fatal.is_empty(), "{what}");
    }
}

fn entry_of(change: v1::ChangeReplicas, outer: Vec<(i32, u64)>, term: u64, index: u64, version: u64) -> v1::LogEntry {
    let command = v1::Command {
        range_id: RANGE.0,
        replica_id: 1,
        term,
        epoch_version: version,
        change: Some(v1::command::Change::Replicas(change)),
        ..Default::default()
    };
    let single = |(change_type, node_id)| v1::RaftConfChangeSingle { change_type, node_id };
    let outer = v1::RaftConfChange {
        transition: 0,
        changes: outer.into_iter().map(single).collect(),
        context: command::encode(&command),
    };
    let data = outer.encode_to_vec().into();
    v1::LogEntry { entry_type: EntryType::EntryConfChangeV2 as u32, term, index, data }
}

/// A committed entry that is nonsense is the same nonsense everywhere: it changes nothing, and ends nothing.
#[test]
fn changes_of_replicas_that_contradict_themselves_change_nothing() {
    type Bend = fn(&mut v1::ChangeReplicas);
    let cases: &[(&str, Bend)] = &[
        ("nobody is left", |change| change.replicas.clear()),
        ("no voter is left", |change| {
            change.replicas.iter_mut().for_each(|of| of.role = v1::ReplicaRole::Learner.into());
        }),
        ("a voter goes without a joint configuration", |change| {
            change.replicas.remove(2);
            change.replicas.truncate(2);
        }),
        ("a replica twice", |change| change.replicas[3].replica_id = 3),
        ("a node twice", |change| change.replicas[3].node_id = 3),
        ("a replica moves to another node", |change| {
            change.replicas.truncate(3);
            change.replicas[2].node_id = 4;
        }),
        ("a newcomer votes at once", |change| change.replicas[3].role = v1::ReplicaRole::Voter.into()),
        ("a role that does not exist", |change| change.replicas[3].role = 99),
        ("two steps in one", |change| {
            let second = v1::ReplicaDescriptor { replica_id: 5, node_id: 5, ..change.replicas[3] };
            change.replicas.push(second);
            change.next_replica_id = 6;
        }),
        ("an id that was given out before", |change| change.replicas[3].replica_id = 0),
        ("an id that is still to be given out", |change| change.next_replica_id = 4),
        ("ids that begin anew", |change| change.next_replica_id = 1),
        ("made for another configuration", |change| change.conf_ver = 9),
        ("nothing changes", |change| change.replicas.truncate(3)),
    ];
    for (what, bend) in cases {
        let mut cluster = begun(0);
        let before = cluster.summary(3);
        let learner = v1::ReplicaDescriptor { replica_id: 4, node_id: 4, role: v1::ReplicaRole::Learner.into() };
        let replicas = before.descriptor.replicas.iter().copied().chain([learner]).collect();
        let mut change = v1::ChangeReplicas { conf_ver: EPOCH.conf_ver, replicas, next_replica_id: 5 };
        bend(&mut change);
        let (term, index) = (before.term, before.last_index);
        // raft-rs is told of yet another change: a learner with an id that nobody has.
        let entry = entry_of(change, vec![(2, 50)], term, index + 1, EPOCH.version);
        let message = v1::PeerMessage {
            range_id: RANGE.0,
            from_replica: 1,
            to_replica: 3,
            message_type: MessageType::MsgAppend as u32,
            term,
            log_term: term,
            index,
            commit: index + 1,
            entries: vec![entry],
            ..Default::default()
        };
        cluster.cut_off.extend([1, 2]);
        let envelope = Envelope { from: NodeId(1), to: NodeId(3), message, disk_full: false, snapshot: None };
        cluster.turn(3, vec![Input::Message(envelope)]);
        cluster.settle();
        let after = cluster.summary(3);
        assert_eq!(after.applied, index + 1, "{what}: it was applied");
        assert_eq!(after.descriptor, before.descriptor, "{what}");
        assert!(cluster.fatal.is_empty(), "{what}: {:?}", cluster.fatal);
        cluster.restart(3);
        (0..30).for_each(|_| cluster.tick());
        assert_eq!(cluster.summary(3).descriptor, before.descriptor, "{what}");
        assert!(!cluster.sent(3, 1, MessageType::MsgRequestPreVote).is_empty(), "{what}: it takes part as before");
    }
}

#[test]
fn a_snapshot_of_a_keyspace_that_there_cannot_be_is_refused_before_its_span_is_looked_for() {
    use crate::disk::MemDisk;
    let limits = snapshot::Limits { batch_bytes_max: 1, file_bytes: 1 };
    for keyspace_id in [u64::from(u32::MAX), u64::from(u32::MAX) + 1, u64::MAX] {
        let descriptor = v1::RangeDescriptor { range_id: 7, keyspace_id, ..Default::default() };
        let header = v1::SnapshotHeader { descriptor: Some(descriptor), ..Default::default() };
        let refused = snapshot::Receiver::<MemDisk>::new(limits, header).err().expect("refused");
        assert!(refused.to_string().contains("there can be none"), "{refused}");
    }
}
