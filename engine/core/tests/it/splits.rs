//! Splits while other things go on: snapshots that come too early or leap over them, changes of replicas, changes
//! of the leader; and when a range is split for its size.

use flotilla_engine::config::Config;
use flotilla_engine::snapshot;
use flotilla_engine::store::{Envelope, Event, Input, ReadBarrier, Split, SplitAt, Token, Write};
use flotilla_proto::ids::{SYSTEM_KEYSPACE, SYSTEM_RANGE};
use flotilla_proto::{Error, NodeId, RangeId, v1};
use raft::eraftpb::MessageType;

use crate::cluster::{Cluster, EPOCH, LATER, RANGE, put, request, rows};
use crate::ranges::{CHILD, begun, begun_with, nodes_of, order, serves, split_input, voters_on, whole, write_at};
use crate::snapshots::small_log;

const AFTER: v1::Epoch = v1::Epoch { version: 2, ..EPOCH };

fn order_for(range: RangeId, add: &[u64]) -> Input {
    Input::Order(v1::RangeOrder { order_id: 2, range_id: range.0, add_nodes: add.into(), ..Default::default() })
}

/// A range's state on node 1 now, as a message to a node's replica.
fn snapshot_message(cluster: &Cluster, range: RangeId, to: u64) -> Input {
    let data = snapshot::make(&*cluster.node(1).disk, range).expect("it can be made");
    let applied = data.header.applied.expect("set");
    let meta =
        v1::SnapshotMeta { index: applied.index, term: applied.term, voters: vec![1, 2, 3], ..Default::default() };
    let message = v1::PeerMessage {
        range_id: range.0,
        from_replica: 1,
        to_replica: to,
        message_type: MessageType::MsgSnapshot as u32,
        term: cluster.summary_of(1, range).expect("it is here").term,
        snapshot: Some(meta),
        ..Default::default()
    };
    Input::Message(Envelope { from: NodeId(1), to: NodeId(to), message, disk_full: false, snapshot: Some(data) })
}

/// What a store says to a snapshot of which only the header has come.
fn admitted(cluster: &Cluster, id: u64, input: &Input) -> Result<(), String> {
    let Input::Message(Envelope { message, snapshot: Some(data), .. }) = input else { return Ok(()) };
    cluster.node(id).store.admit_snapshot(message, &data.header)
}

fn refused_with(cluster: &Cluster, id: u64, words: &str) -> bool {
    cluster.events.iter().any(|(node, event)| {
        *node == id && matches!(event, Event::MessageRefused { reason, .. } if reason.contains(words))
    })
}

/// tikv#7027, yugabyte#8891: as long as the parent here still holds a child's span, the child's snapshot would be
/// written over what the parent reads and writes.
#[test]
fn a_childs_snapshot_waits_until_the_parent_is_split() {
    let mut cluster = begun(0);
    cluster.apply_held.insert(3);
    cluster.turn(1, vec![split_input(1, "m")]);
    cluster.tick_until(|cluster| serves(cluster, CHILD) == Some(1));
    let before = rows(&cluster.node(3).disk, &whole());
    cluster.turn(1, vec![write_at(2, CHILD, AFTER, "q")]);
    cluster.settle();
    let input = snapshot_message(&cluster, CHILD, 3);
    let reason = admitted(&cluster, 3, &input).expect_err("its header alone tells");
    assert!(reason.contains("overlaps with range 2"), "{reason}");
    let effects = cluster.turn(3, vec![input]);
    assert!(effects.log.is_none() && effects.ingests.is_empty() && effects.messages.is_empty());
    assert!(refused_with(&cluster, 3, "overlaps with range 2"));
    cluster.settle();
    assert!(cluster.summary_of(3, CHILD).is_none());
    assert_eq!(rows(&cluster.node(3).disk, &whole()), before);
    cluster.apply_held.clear();
    let input = {
        cluster.cut_off.insert(3);
        cluster.settle();
        assert!(cluster.summary_of(3, CHILD).is_some(), "born by the split");
        cluster.turn(1, vec![write_at(3, CHILD, AFTER, "r")]);
        cluster.settle();
        snapshot_message(&cluster, CHILD, 3)
    };
    assert_eq!(admitted(&cluster, 3, &input), Ok(()));
    cluster.turn(3, vec![input]);
    cluster.settle();
    assert_eq!(rows(&cluster.node(3).disk, &whole()), rows(&cluster.node(1).disk, &whole()), "now it is taken");
    assert!(cluster.fatal.is_empty());
}

/// A follower that was away over a split: its parent leaps over the split by a snapshot, so the child is never born
/// here by it, and comes by a snapshot of its own; before, that one is refused however often it is sent.
#[test]
fn a_child_comes_by_snapshot_where_the_parent_leapt_over_the_split() {
    let mut cluster = begun_with(small_log(), 0);
    cluster.cut_off.insert(3);
    cluster.turn(1, vec![split_input(1, "m")]);
    cluster.tick_until(|cluster| serves(cluster, CHILD) == Some(1));
    for token in 10..50 {
        cluster.turn(1, vec![write_at(token, RANGE, AFTER, "b"), write_at(token + 100, CHILD, AFTER, "q")]);
        cluster.settle();
    }
    let gone = |cluster: &Cluster, range| cluster.summary_of(1, range).expect("it is here").truncated;
    assert!(gone(&cluster, RANGE) > cluster.summary(3).last_index && gone(&cluster, CHILD) > 0);
    cluster.deaf.insert((3, RANGE));
    cluster.cut_off.clear();
    cluster.tick_until(|cluster| refused_with(cluster, 3, "overlaps with range 2"));
    assert!(cluster.summary_of(3, CHILD).is_none());
    cluster.deaf.clear();
    cluster.tick_until(|cluster| cluster.summary_of(3, CHILD).is_some());
    cluster.tick_until(|cluster| rows(&cluster.node(3).disk, &whole()) == rows(&cluster.node(1).disk, &whole()));
    let leapt = |range: RangeId| {
        let is = |(id, event): &(u64, Event)| {
            *id == 3 && matches!(event, Event::SnapshotApplied { range: of, .. } if *of == range)
        };
        cluster.events.iter().any(is)
    };
    assert!(leapt(RANGE) && leapt(CHILD));
    let split_here = |(id, event): &(u64, Event)| *id == 3 && matches!(event, Event::Split { .. });
    assert!(!cluster.events.iter().any(split_here));
    cluster.restart(3);
    cluster.tick_until(|cluster| rows(&cluster.node(3).disk, &whole()) == rows(&cluster.node(1).disk, &whole()));
    assert_eq!(cluster.node(3).store.ranges().count(), 2);
    assert!(cluster.fatal.is_empty());
}

/// A follower that acknowledged a split and was away before it heard that it is committed: the split may rest on it, and so
/// does its child's quorum. The leader has cut its log meanwhile, and sends a snapshot of what is left.
#[test]
fn no_snapshot_leaps_over_a_split_that_stands_in_the_log() {
    let mut cluster = begun_with(small_log(), 0);
    cluster.cut_off.insert(2);
    cluster.turn(1, vec![split_input(1, "m")]);
    let before = cluster.summary(3).last_index;
    cluster.step_until(|cluster| cluster.summary(3).last_index > before);
    cluster.deaf.insert((3, RANGE));
    cluster.step_until(|cluster| cluster.summary_of(1, CHILD).is_some());
    cluster.cut_off = [3].into();
    cluster.deaf.clear();
    assert!(cluster.summary_of(3, CHILD).is_none(), "it has not heard of the commit");
    cluster.tick_until(|cluster| serves(cluster, CHILD) == Some(1));
    for token in 10..50 {
        cluster.turn(1, vec![write_at(token, RANGE, AFTER, "b")]);
        cluster.settle();
    }
    let behind = cluster.summary(3).last_index;
    assert!([1, 2].iter().all(|id| cluster.summary(*id).truncated > behind));
    // A leader of a later term knows nothing of what it acknowledged.
    cluster.transfer(1, 3, 2);
    cluster.tick_until(|cluster| serves(cluster, RANGE) == Some(2));
    cluster.cut_off.clear();
    cluster.tick_until(|cluster| rows(&cluster.node(3).disk, &whole()) == rows(&cluster.node(1).disk, &whole()));
    let at_3 = |is: &dyn Fn(&Event) -> bool| cluster.events.iter().any(|(id, event)| *id == 3 && is(event));
    assert!(at_3(&|event| matches!(event, Event::Split { .. })), "born by the split");
    assert!(at_3(&|event| matches!(event, Event::SnapshotApplied { range, .. } if *range == RANGE)));
    assert!(!at_3(&|event| matches!(event, Event::SnapshotApplied { range, .. } if *range == CHILD)));
    assert!(cluster.fatal.is_empty());
}

/// yugabyte#33874: a learner that has nothing yet is a learner of both halves, and gets both.
#[test]
fn a_split_while_a_learner_is_being_added_gives_it_both_halves() {
    let mut cluster = begun(1);
    cluster.deaf.insert((4, RANGE));
    cluster.turn(1, vec![order(&[4], &[])]);
    cluster.tick_until(|cluster| nodes_of(cluster, 1).contains(&(4, v1::ReplicaRole::Learner)));
    cluster.turn(1, vec![split_input(1, "m")]);
    cluster.tick_until(|cluster| serves(cluster, CHILD) == Some(1));
    let child = cluster.summary_of(1, CHILD).expect("it is here").descriptor;
    assert_eq!(child.replicas, cluster.summary(1).descriptor.replicas);
    assert_eq!(child.next_replica_id, cluster.summary(1).descriptor.next_replica_id);
    cluster.tick_until(|cluster| cluster.summary_of(4, CHILD).is_some());
    assert_eq!(rows(&cluster.node(4).disk, &whole()), rows(&cluster.node(1).disk, &child));
    cluster.deaf.clear();
    cluster.tick_until(|cluster| voters_on(cluster, &[1, 2, 3, 4]));
    cluster.turn(1, vec![order_for(CHILD, &[4])]);
    let votes = |cluster: &Cluster| {
        let replicas = &cluster.summary_of(4, CHILD).expect("it is here").descriptor.replicas;
        replicas.len() == 4 && replicas.iter().all(|of| of.role() == v1::ReplicaRole::Voter)
    };
    cluster.tick_until(votes);
    assert_eq!(rows(&cluster.node(4).disk, &whole()), rows(&cluster.node(1).disk, &whole()));
    assert!(cluster.fatal.is_empty());
}

/// tikv#4125: a leader that has a split in its log, and has not applied it, takes writes by the epoch before. Behind
/// the split they are refused at apply by every replica alike: their keys may be the child's.
#[test]
fn what_a_new_leader_took_before_it_applied_a_split_is_refused_at_apply() {
    let mut cluster = begun(0);
    cluster.turn(1, vec![split_input(1, "m")]);
    while cluster.deliver() {}
    cluster.cut_off.insert(1);
    cluster.apply_held.extend([2, 3]);
    cluster.tick_until(|cluster| (2..=3).any(|id| cluster.summary(id).leads));
    let leader = (2..=3).find(|id| cluster.summary(*id).leads).expect("just seen");
    assert!(cluster.summary_of(leader, CHILD).is_none(), "the split is not applied");
    assert_eq!(cluster.summary(leader).descriptor.epoch, Some(EPOCH));
    cluster.turn(leader, vec![write_at(2, RANGE, EPOCH, "x")]);
    cluster.turn(leader, vec![write_at(3, RANGE, EPOCH, "b")]);
    cluster.settle();
    assert!(cluster.writes.iter().all(|(token, _)| *token >= 900), "they are in the log: {:?}", cluster.writes);
    cluster.apply_held.clear();
    cluster.settle();
    for token in [2, 3] {
        let answer = cluster.answer(token);
        assert!(
            matches!(answer, Err(Error::EpochMismatch { descriptors, .. }) if descriptors.len() == 2),
            "{answer:?}"
        );
    }
    cluster.cut_off.clear();
    cluster.tick_until(|cluster| {
        (1..=3).all(|id| {
            cluster.summary(id).applied == cluster.summary(leader).applied && serves(cluster, CHILD).is_some()
        })
    });
    let reference = rows(&cluster.node(leader).disk, &whole());
    assert_eq!(reference.len(), 4, "neither was written");
    for id in 1..=3 {
        assert_eq!(rows(&cluster.node(id).disk, &whole()), reference, "node {id}");
        assert_eq!(cluster.summary(id).applied_checksum, cluster.summary(leader).applied_checksum, "node {id}");
    }
}

/// cockroach: a follower that applies a split first may elect a child leader, which takes writes, before the parent's
/// leader has applied it. That one must not answer for the child's keys, neither by lease nor by a barrier.
#[test]
fn the_old_leader_reads_nothing_of_a_child_that_is_led_elsewhere() {
    let mut cluster = begun(0);
    cluster.apply_held.insert(1);
    cluster.turn(1, vec![split_input(1, "m")]);
    for _ in 0..100 {
        cluster.tick();
        assert!(!cluster.view(1).lease_covers(cluster.now));
        if serves(&cluster, CHILD).is_some() {
            break;
        }
    }
    let child_leader = serves(&cluster, CHILD).expect("it was elected");
    assert_ne!(child_leader, 1);
    let (old, read) = (cluster.view(1), Token(7));
    assert!(old.serves && old.descriptor.end.is_empty(), "it leads, and takes itself for the whole");
    cluster.turn(child_leader, vec![write_at(2, CHILD, AFTER, "x")]);
    cluster.turn(1, vec![Input::ReadBarrier(ReadBarrier { token: read, range: RANGE, epoch: EPOCH, deadline: LATER })]);
    for _ in 0..3 {
        cluster.tick();
    }
    assert!(cluster.answer(2).is_ok());
    assert!(!cluster.view(1).lease_covers(cluster.now));
    assert!(!cluster.barriers.iter().any(|(token, answer)| *token == 7 && answer.is_ok()), "it would read stale keys");
    cluster.apply_held.clear();
    cluster.settle();
    cluster.tick();
    assert!(matches!(cluster.barriers[..], [(7, Err(Error::EpochMismatch { .. }))]), "{:?}", cluster.barriers);
}

#[test]
fn the_system_range_is_never_split() {
    let mut cluster = begun(1);
    let birth = v1::RangeDescriptor {
        range_id: SYSTEM_RANGE.0,
        keyspace_id: SYSTEM_KEYSPACE.0,
        epoch: Some(EPOCH),
        replicas: vec![v1::ReplicaDescriptor { replica_id: 1, node_id: 4, ..Default::default() }],
        next_replica_id: 2,
        ..Default::default()
    };
    let settings = v1::Keyspace { keyspace_id: SYSTEM_KEYSPACE.0, split_bytes: 10, ..Default::default() };
    cluster.turn(4, vec![Input::Keyspaces(vec![settings]), Input::Births(vec![birth])]);
    cluster.tick_until(|cluster| serves(cluster, SYSTEM_RANGE) == Some(4));
    for (token, at) in [(1, SplitAt::Keys(vec!["m".into()])), (2, SplitAt::Parts(2))] {
        let split = Split { token: Token(token), range: SYSTEM_RANGE, at, deadline: LATER };
        cluster.turn(4, vec![Input::Split(split)]);
        let (_, answer) = cluster.splits.last().expect("answered at once");
        assert!(answer.as_ref().is_err_and(|error| error.to_string().contains("never split")), "{answer:?}");
    }
    let effects = cluster.turn(4, vec![Input::RangeSize { range: SYSTEM_RANGE, bytes: 1 << 40 }]);
    assert!(effects.split_keys_wanted.is_empty());
    for _ in 0..3 {
        cluster.tick();
    }
    assert_eq!(cluster.node(4).store.ranges().count(), 1, "nor for its size");
}

#[test]
fn bad_split_keys_are_refused_in_words() {
    let mut cluster = begun(1);
    let rule = Some(v1::split_boundary::Rule::AfterDelimiter(u32::from(b'/')));
    let boundary = Some(v1::SplitBoundary { rule });
    let keyspace = v1::Keyspace { keyspace_id: 1, boundary, ..Default::default() };
    let say = |cluster: &mut Cluster, id: u64, keys: &[&str]| {
        let at = SplitAt::Keys(keys.iter().map(|key| key.to_string().into()).collect());
        cluster.turn(id, vec![Input::Split(Split { token: Token(1), range: RANGE, at, deadline: LATER })]);
        cluster.settle();
        let (_, answer) = cluster.splits.pop().expect("answered");
        answer.map(|ranges| ranges.len()).map_err(|error| error.to_string())
    };
    let refused = |said: Result<usize, String>, words: &str| {
        assert!(said.as_ref().is_err_and(|said| said.contains(words)), "{said:?} should say \"{words}\"");
    };
    cluster.turn(1, vec![Input::Keyspaces(vec![])]);
    refused(say(&mut cluster, 1, &["m"]), "settings of the range's keyspace are not known");
    cluster.turn(1, vec![Input::Keyspaces(vec![keyspace])]);
    refused(say(&mut cluster, 1, &[]), "0 split keys");
    refused(say(&mut cluster, 1, &["user/1"]), "nearest allowed key is \"user/\"");
    refused(say(&mut cluster, 1, &["m/", "user/1"]), "nearest allowed key is \"user/\"");
    refused(say(&mut cluster, 1, &["k".repeat(9_000).as_str()]), "keys have at most");
    refused(say(&mut cluster, 2, &["m/"]), "not led by this node; node 1 does");
    refused(say(&mut cluster, 4, &["m/"]), "r2");
    assert_eq!(cluster.node(1).store.ranges().count(), 1, "nothing was split in part");
    assert_eq!(say(&mut cluster, 1, &["user/", "m/", "user/"]), Ok(3), "in any order, named twice or not");
    cluster.tick();
    refused(say(&mut cluster, 1, &["z/"]), "lies outside of range 2: choose a key behind \"\" and below \"m/\"");
    let split =
        |token| Input::Split(Split { token: Token(token), range: RANGE, at: SplitAt::Parts(2), deadline: LATER });
    cluster.turn(1, vec![split(8), split(9)]);
    assert!(cluster.splits.iter().any(|(token, said)| {
        *token == 9 && said.as_ref().is_err_and(|error| error.to_string().contains("being looked for"))
    }));
}

#[test]
fn a_range_is_split_when_it_holds_more_than_its_keyspace_allows() {
    let mut cluster = begun(0);
    let held = rows(&cluster.node(1).disk, &whole());
    let bytes: u64 = held.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
    let settings =
        |split_bytes| Input::Keyspaces(vec![v1::Keyspace { keyspace_id: 1, split_bytes, ..Default::default() }]);
    let too_large = Input::RangeSize { range: RANGE, bytes: bytes + 1 };
    cluster.turn(1, vec![settings(bytes), too_large]);
    for _ in 0..3 {
        cluster.tick();
    }
    assert_eq!(cluster.node(1).store.ranges().count(), 1, "what the disk guessed was not so");
    cluster.turn(1, vec![settings(0), Input::RangeSize { range: RANGE, bytes: 1 << 40 }]);
    cluster.tick();
    assert_eq!(cluster.node(1).store.ranges().count(), 1, "0: never");
    cluster.turn(1, vec![settings(bytes - 1)]);
    cluster.tick_until(|cluster| serves(cluster, CHILD) == Some(1));
    for _ in 0..10 {
        cluster.tick();
    }
    let counts: Vec<usize> = (1..=3).map(|id| cluster.node(id).store.ranges().count()).collect();
    assert_eq!(counts, [2, 2, 2], "in as many parts as what it holds asks for, whatever the disk guessed");
    assert_eq!(rows(&cluster.node(1).disk, &whole()), held);
    let left = cluster.summary(1).descriptor;
    assert_eq!(rows(&cluster.node(1).disk, &left).len(), 2, "in the middle");
}

#[test]
fn a_range_that_cannot_be_split_is_reported_once_until_it_has_doubled() {
    let mut cluster = begun(0);
    let keyspace = v1::Keyspace {
        keyspace_id: 1,
        split_bytes: 10,
        boundary: Some(v1::SplitBoundary { rule: Some(v1::split_boundary::Rule::PrefixLen(0)) }),
        ..Default::default()
    };
    let reports = |cluster: &Cluster| {
        let is = |(_, event): &&(u64, Event)| matches!(event, Event::CannotSplit { range: RANGE, .. });
        cluster.events.iter().filter(is).count()
    };
    let size = |bytes| Input::RangeSize { range: RANGE, bytes };
    cluster.turn(1, vec![Input::Keyspaces(vec![keyspace]), size(10_000)]);
    for (bytes, then) in [(10_000, 1), (19_999, 1), (20_000, 2), (20_000, 2), (39_999, 2), (40_000, 3)] {
        cluster.turn(1, vec![size(bytes)]);
        for _ in 0..5 {
            cluster.tick();
        }
        assert_eq!(reports(&cluster), then, "at {bytes} bytes");
    }
    assert_eq!(cluster.node(1).store.ranges().count(), 1);
    let put = request(vec![put("a", "goes on")]);
    cluster.write(1, 7, put);
    cluster.settle();
    assert!(cluster.answer(7).is_ok());
}

/// With another seed of everything, the same: a crash of all nodes right after a split was decided, and before any
/// of them applied it, is followed by one leader for each half.
#[test]
fn a_split_that_nobody_applied_before_a_crash_is_applied_after_it() {
    let mut cluster = begun_with(Config { seed: 7, ..Config::default() }, 0);
    cluster.apply_held.extend([1, 2, 3]);
    cluster.turn(1, vec![split_input(1, "m")]);
    cluster.settle();
    for id in 1..=3 {
        cluster.restart(id);
    }
    cluster.apply_held.clear();
    cluster.tick_until(|cluster| serves(cluster, CHILD).is_some() && serves(cluster, RANGE).is_some());
    assert!((1..=3).all(|id| cluster.node(id).store.ranges().count() == 2));
    assert!((1..=3).all(|id| rows(&cluster.node(id).disk, &whole()).len() == 4));
}

/// A split that is long in coming does not keep a write beyond its deadline: it was surely not proposed.
#[test]
fn a_write_behind_a_split_is_answered_at_its_deadline() {
    let mut cluster = begun(0);
    cluster.apply_held.insert(1);
    let deadline = cluster.now + cluster.config.tick * 2;
    let write = |token, deadline| {
        let request = request(vec![put("b", "v")]);
        Input::Write(Write { token: Token(token), range: RANGE, epoch: EPOCH, request, deadline })
    };
    cluster.turn(1, vec![split_input(1, "m"), write(2, deadline), write(3, LATER)]);
    cluster.tick();
    assert!(!cluster.writes.iter().any(|(token, _)| *token == 2));
    cluster.tick();
    assert!(matches!(cluster.answer(2), Err(Error::Timeout { .. })), "{:?}", cluster.answer(2));
    cluster.apply_held.clear();
    cluster.settle();
    cluster.tick();
    assert!(cluster.answer(3).is_ok());
    assert_eq!(cluster.summary(1).proposal_bytes, 0);
}

/// Where the child of a split is to be led, a write to it waits for the few messages that this takes.
#[test]
fn a_write_to_a_child_that_is_not_led_yet_waits_for_its_leader() {
    let mut cluster = begun(0);
    cluster.turn(1, vec![split_input(1, "m")]);
    cluster.step_until(|cluster| cluster.summary_of(1, CHILD).is_some());
    assert!(!cluster.summary_of(1, CHILD).expect("just seen").leads);
    let epoch = v1::Epoch { version: 2, ..EPOCH };
    cluster.turn(1, vec![write_at(2, CHILD, epoch, "q")]);
    let now = cluster.now;
    cluster.settle();
    assert!(cluster.answer(2).is_ok() && cluster.now == now, "{:?}", cluster.answer(2));
    // Without anybody who votes it is refused, soon.
    let mut cluster = begun(0);
    cluster.turn(1, vec![split_input(1, "m")]);
    cluster.step_until(|cluster| cluster.summary_of(1, CHILD).is_some());
    cluster.cut_off.extend([2, 3]);
    cluster.turn(1, vec![write_at(2, CHILD, epoch, "q")]);
    (0..2).for_each(|_| cluster.tick());
    let answer = cluster.answer(2);
    assert!(matches!(answer, Err(Error::NotLeader { leader: None, .. })), "{answer:?}");
}
