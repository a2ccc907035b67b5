//! Replicas that are gone, are going, or have not begun: what they must not do, and what is still asked of them.

use std::ops::ControlFlow;

use flotilla_engine::bootstrap::INITIAL_TERM;
use flotilla_engine::config::Config;
use flotilla_engine::snapshot::{self, Limits, Receiver};
use flotilla_engine::store::{Envelope, Input, SnapshotData, Token, Write};
use flotilla_engine::{log_writer, storage::Storage};
use flotilla_engine::{read, recover};
use flotilla_proto::{Error, NodeId, v1};
use raft::eraftpb::MessageType;

use crate::cluster::{Cluster, EPOCH, LATER, RANGE, put, put_ttl, request, rows, write_input};
use crate::ranges::{
    CHILD, begun, begun_with, message, nodes_of, order, serves, split_input, voters_on, whole, write_at,
};
use crate::snapshots::small_log;

fn input(from: u64, to: u64, message: v1::PeerMessage, snapshot: Option<SnapshotData>) -> Input {
    Input::Message(Envelope { from: NodeId(from), to: NodeId(to), message, disk_full: false, snapshot })
}

/// A snapshot as the message that brings it to a replica on node `to`.
fn snapshot_input(data: SnapshotData, to: u64, term: u64) -> Input {
    let (descriptor, applied) = (data.header.descriptor.clone().expect("set"), data.header.applied.expect("set"));
    let of = |role: v1::ReplicaRole| -> Vec<u64> {
        descriptor.replicas.iter().filter(|of| of.role() == role).map(|of| of.replica_id).collect()
    };
    let meta = v1::SnapshotMeta {
        index: applied.index,
        term: applied.term,
        voters: of(v1::ReplicaRole::Voter),
        learners: of(v1::ReplicaRole::Learner),
        ..Default::default()
    };
    let replica = descriptor.replicas.iter().find(|of| of.node_id == to).expect("it is named").replica_id;
    let message = message(replica, 1, MessageType::MsgSnapshot, term);
    input(1, to, v1::PeerMessage { range_id: descriptor.range_id, snapshot: Some(meta), ..message }, Some(data))
}

fn cancel() -> Input {
    Input::Order(v1::RangeOrder { range_id: RANGE.0, ..Default::default() })
}

fn learns_on(cluster: &Cluster, node: u64) -> bool {
    nodes_of(cluster, 1).contains(&(node, v1::ReplicaRole::Learner))
}

/// Voters 1, 2, 3, and learners that nobody is going to promote, on nodes from 4 on.
fn with_learners(learners: &[u64], empty: u64) -> Cluster {
    let mut cluster = begun(empty);
    for node in learners {
        cluster.deaf.insert((*node, RANGE));
        cluster.turn(1, vec![order(&[*node], &[])]);
        cluster.tick_until(|cluster| learns_on(cluster, *node));
        cluster.turn(1, vec![cancel()]);
        cluster.deaf.clear();
        cluster.tick_until(|cluster| {
            cluster.summary_of(*node, RANGE).is_some_and(|of| of.applied == cluster.summary(1).applied)
        });
        assert!(learns_on(&cluster, *node));
    }
    cluster
}

/// tikv#8381: a replica without state would forget its vote in a crash, and vote twice. So it casts none.
#[test]
fn a_replica_that_has_not_begun_gives_no_vote() {
    let mut cluster = begun(0);
    cluster.apply_held.insert(2);
    cluster.turn(1, vec![split_input(1, "m")]);
    cluster.settle();
    assert!(cluster.summary_of(1, CHILD).is_some() && cluster.summary_of(2, CHILD).is_none());
    let asks = |from: u64, kind| {
        let ask = message(2, from, kind, INITIAL_TERM + 3);
        input(from, 2, v1::PeerMessage { range_id: CHILD.0, index: 9, log_term: INITIAL_TERM, ..ask }, None)
    };
    for _ in 0..2 {
        for from in [1, 3] {
            for kind in [MessageType::MsgRequestVote, MessageType::MsgRequestPreVote] {
                let effects = cluster.turn(2, vec![asks(from, kind)]);
                assert!(effects.messages.is_empty() && effects.log.is_none(), "{:?}", effects.messages);
            }
        }
        assert!(cluster.summary_of(2, CHILD).is_none());
        cluster.restart(2);
        cluster.turn(2, vec![]);
    }
}

/// Jepsen on YugabyteDB: replicas that have no vote counted towards a quorum. With two of them there would be one.
#[test]
fn learners_count_neither_for_a_commit_nor_for_a_vote() {
    let mut cluster = with_learners(&[4, 5], 2);
    cluster.cut_off.extend([2, 3]);
    let commit = cluster.summary(1).commit;
    cluster.write(1, 1, request(vec![put("b", "v")]));
    cluster.settle();
    let last = |cluster: &Cluster, id| cluster.summary_of(id, RANGE).expect("it is here").last_index;
    assert!((4..=5).all(|id| last(&cluster, id) == last(&cluster, 1)));
    assert_eq!(cluster.summary(1).commit, commit, "a leader and its learners are no quorum");
    cluster.tick_until(|cluster| !cluster.summary(1).leads);
    for _ in 0..60 {
        cluster.tick();
        for from in [4, 5] {
            let replica = cluster.summary_of(from, RANGE).expect("it is here").replica_id;
            let term = cluster.summary(1).term;
            for (kind, term) in
                [(MessageType::MsgRequestPreVoteResponse, term + 1), (MessageType::MsgRequestVoteResponse, term)]
            {
                cluster.turn(1, vec![input(from, 1, message(1, replica, kind, term), None)]);
            }
        }
        cluster.settle();
        assert!(!cluster.summary(1).leads, "nor are their votes");
    }
    cluster.cut_off.clear();
    cluster.tick_until(|cluster| serves(cluster, RANGE).is_some());
}

/// cockroach#162085: the child came here by a snapshot, and was removed again, before its parent came by one from
/// before the split. The split that is applied here then does not bring the child back, and leaves nothing of it.
#[test]
fn a_child_that_was_removed_before_its_split_came_here_stays_gone() {
    let mut cluster = begun(1);
    cluster.deaf.insert((4, RANGE));
    cluster.turn(1, vec![order(&[4], &[])]);
    cluster.tick_until(|cluster| learns_on(cluster, 4));
    cluster.turn(1, vec![cancel()]);
    let unsplit = snapshot::make(&*cluster.node(1).disk, RANGE).expect("it can be made");
    cluster.turn(1, vec![split_input(1, "m")]);
    cluster.tick_until(|cluster| serves(cluster, CHILD) == Some(1) && cluster.summary_of(4, CHILD).is_some());
    let replica = cluster.summary_of(4, CHILD).expect("it is here").replica_id;
    let gone = v1::RangeOrder { order_id: 2, range_id: CHILD.0, remove_nodes: vec![4], ..Default::default() };
    cluster.turn(1, vec![Input::Order(gone)]);
    cluster.tick_until(|cluster| cluster.summary_of(4, CHILD).is_none());
    cluster.turn(4, vec![Input::Remove { range: CHILD, replica_id: replica }]);
    cluster.settle();
    let term = cluster.summary(1).term;
    cluster.turn(4, vec![snapshot_input(unsplit, 4, term)]);
    cluster.persist(4);
    assert_eq!(rows(&cluster.node(4).disk, &whole()).len(), 4, "what the child has is the parent's again");
    cluster.deaf.clear();
    cluster.tick_until(|cluster| {
        cluster.summary_of(4, RANGE).is_some_and(|of| of.descriptor == cluster.summary(1).descriptor)
    });
    assert!(cluster.summary_of(4, CHILD).is_none());
    assert_eq!(rows(&cluster.node(4).disk, &whole()).len(), 2, "the left half's");
    cluster.restart(4);
    (0..20).for_each(|_| cluster.tick());
    assert!(cluster.summary_of(4, CHILD).is_none() && cluster.fatal.is_empty());
}

/// A voter that is told of its removal, and learns on that occasion that a split in its log is committed, applies
/// that first: the child may need its replica here for a quorum. Told again, it goes.
#[test]
fn a_removed_voter_first_applies_what_it_can_learn_to_be_committed() {
    let mut cluster = begun(0);
    let before = cluster.summary(3).last_index;
    cluster.turn(1, vec![split_input(1, "m")]);
    cluster.step_until(|cluster| cluster.summary(3).last_index > before);
    let (index, term) = (cluster.summary(3).last_index, cluster.summary(3).term);
    cluster.cut_off.insert(3);
    cluster.settle();
    assert!(cluster.summary(3).commit < index && cluster.summary(1).applied >= index);
    let newer = {
        let now = (*cluster.summary(1).descriptor).clone();
        let replicas = now.replicas.iter().filter(|of| of.node_id != 3).copied().collect();
        let epoch = now.epoch.map(|epoch| v1::Epoch { conf_ver: epoch.conf_ver + 1, ..epoch });
        v1::RangeDescriptor { epoch, replicas, ..now }
    };
    let notice = |commit: u64| v1::PeerMessage {
        removed: Some(newer.clone()),
        index: index + 5,
        log_term: term,
        commit,
        commit_term: if commit == 0 { 0 } else { term },
        ..message(3, 1, MessageType::MsgHup, 0)
    };
    cluster.turn(3, vec![input(1, 3, notice(index), None)]);
    assert!(cluster.summary_of(3, RANGE).is_some(), "not yet");
    cluster.settle();
    assert!(cluster.summary_of(3, CHILD).is_some(), "the child has begun");
    cluster.turn(3, vec![input(1, 3, notice(index), None)]);
    cluster.settle();
    assert!(cluster.summary_of(3, RANGE).is_none());
    let child = cluster.summary_of(3, CHILD).expect("it lives on").descriptor;
    assert_eq!(rows(&cluster.node(3).disk, &whole()).len(), rows(&cluster.node(3).disk, &child).len());
    let boot = recover::load(&*cluster.node(3).disk).expect("whole").expect("bootstrapped");
    assert_eq!(boot.tombstones[&RANGE].index, index + 5, "what the notice proves is remembered");
}

/// Placement's word tells nothing of the log: a voter that may have something to apply is given time to hear of that
/// from others, and goes at last, whatever it hears.
#[test]
fn placements_word_alone_waits_for_a_voter_with_entries_to_apply() {
    let mut cluster = begun(0);
    let before = cluster.summary(3).last_index;
    cluster.write(1, 1, request(vec![put("b", "v")]));
    cluster.step_until(|cluster| cluster.summary(3).last_index > before);
    cluster.cut_off.insert(3);
    cluster.settle();
    let remove = || Input::Remove { range: RANGE, replica_id: 3 };
    for _ in 0..9 * cluster.config.election_ticks {
        cluster.turn(3, vec![remove()]);
        cluster.tick();
        assert!(cluster.summary_of(3, RANGE).is_some());
    }
    for _ in 0..2 * cluster.config.election_ticks {
        cluster.turn(3, vec![remove()]);
        cluster.tick();
    }
    assert!(cluster.summary_of(3, RANGE).is_none(), "not for ever");
}

/// What a replica that goes was asked to write was surely not written: nothing of it left.
#[test]
fn a_leader_that_goes_proposes_nothing() {
    let mut cluster = begun(0);
    let (last, sent) = (cluster.summary(2).last_index, cluster.sent.len());
    let remove = Input::Remove { range: RANGE, replica_id: 1 };
    cluster.turn(1, vec![write_at(1, RANGE, EPOCH, "b"), remove, write_at(2, RANGE, EPOCH, "c")]);
    for token in [1, 2] {
        assert!(matches!(cluster.answer(token), Err(Error::RangeNotFound { .. })), "{:?}", cluster.answer(token));
    }
    let appends = cluster.sent[sent..].iter().filter(|of| !of.message.entries.is_empty());
    assert_eq!(appends.count(), 0);
    cluster.settle();
    assert_eq!(cluster.summary(2).last_index, last);
}

/// In one turn a learner learns of entries and of a commit index, and that it is gone: the entries are taken no more,
/// so what is written of it must not say that they are there. A start would refuse such a store.
#[test]
fn a_replica_that_goes_knows_nothing_committed_beyond_its_log() {
    let mut cluster = with_learners(&[4], 2);
    cluster.apply_held.insert(4);
    cluster.deaf.insert((5, RANGE));
    cluster.turn(1, vec![order(&[5], &[])]);
    cluster.tick_until(|cluster| learns_on(cluster, 5));
    cluster.write(1, 1, request(vec![put("b", "v")]));
    cluster.settle();
    cluster.tick();
    let (leader, own) = (cluster.summary(1), cluster.summary_of(4, RANGE).expect("it is here"));
    assert_eq!((own.last_index, own.commit), (leader.last_index, leader.commit));
    let append = v1::PeerMessage {
        index: own.last_index,
        log_term: leader.term,
        commit: own.last_index + 1,
        entries: vec![v1::LogEntry { term: leader.term, index: own.last_index + 1, ..Default::default() }],
        ..message(own.replica_id, 1, MessageType::MsgAppend, leader.term)
    };
    // The change of replicas is applied, and what came behind it is not.
    let node = cluster.nodes.get_mut(&4).expect("it exists");
    let later = node.applies.pop().expect("it waits");
    let tasks = std::mem::replace(&mut node.applies, vec![later]);
    assert!(!tasks.is_empty());
    let done = node.apply.apply(&*node.disk, tasks, &mut |_, _| {}).expect("it can be applied");
    let mut inputs = vec![input(1, 4, append, None)];
    inputs.extend(done.into_iter().map(Input::Applied));
    inputs.push(Input::Remove { range: RANGE, replica_id: own.replica_id });
    assert!(cluster.turn(4, inputs).log.is_some(), "the change of replicas makes it write its commit index");
    assert!(cluster.persist(4), "and what is written can be opened");
    cluster.restart(4);
    assert_eq!(cluster.summary_of(4, RANGE).map(|of| of.last_index), Some(own.last_index));
}

/// tikv#17258: what a start destroys is gone for good before a large snapshot's files come to the same place.
#[test]
fn a_large_snapshot_waits_for_what_the_start_destroys() {
    let mut cluster = begun(1);
    cluster.turn(1, vec![order(&[4], &[3])]);
    cluster.step_until(|cluster| {
        cluster.summary_of(3, RANGE).is_some() && nodes_of(cluster, 3).contains(&(4, v1::ReplicaRole::VoterIncoming))
    });
    cluster.step_until(|cluster| cluster.summary(3).last_index > cluster.summary(3).applied);
    cluster.apply_held.insert(1);
    cluster.step_until(|cluster| cluster.summary_of(3, RANGE).is_none());
    cluster.disk_held.insert(3);
    cluster.apply_held.clear();
    cluster.cut_off.insert(3);
    cluster.tick_until(|cluster| voters_on(cluster, &[1, 2, 4]));
    // As it would be after an order to add node 3 again.
    let mut made = snapshot::make(&*cluster.node(1).disk, RANGE).expect("it can be made");
    let descriptor = made.header.descriptor.as_mut().expect("set");
    let learner = v1::ReplicaDescriptor { replica_id: 9, node_id: 3, role: v1::ReplicaRole::Learner.into() };
    descriptor.replicas.push(learner);
    descriptor.next_replica_id = 10;
    descriptor.epoch = descriptor.epoch.map(|epoch| v1::Epoch { conf_ver: epoch.conf_ver + 1, ..epoch });
    let disk = cluster.node(3).disk.clone();
    let limits = Limits { batch_bytes_max: 0, file_bytes: 100 };
    let mut receiver = Receiver::new(limits, made.header.clone()).expect("it has a header");
    for at in 0..made.chunks.count() {
        receiver.push(&*disk, made.chunks.read(at).expect("in memory")).expect("it is sound");
    }
    let staged = receiver.finish(&*disk).expect("it is whole");
    assert!(staged.is_staged());
    let term = cluster.summary(1).term;
    cluster.restart(3);
    let effects = cluster.turn(3, vec![snapshot_input(staged, 3, term)]);
    assert!(effects.log.is_some() && effects.ingests.is_empty(), "it waits for what this turn destroys");
    let log = cluster.nodes.get_mut(&3).expect("it exists").log.pop_front().expect("it has one");
    let mut batch = disk.batch();
    log_writer::fill(&mut batch, &log).expect("sound");
    disk.write(batch).expect("the disk is well");
    let effects = cluster.turn(3, vec![Input::Persisted { sequence: log.sequence }]);
    let [item] = &effects.ingests[..] else { panic!("{effects:?}") };
    snapshot::install(&*disk, item, |_| ControlFlow::Continue(())).expect("the disk is well").is_continue();
    cluster.turn(3, vec![Input::Ingested { range: RANGE }]);
    assert_eq!(rows(&disk, &whole()), rows(&cluster.node(1).disk, &whole()));
    cluster.restart(3);
    assert_eq!(cluster.summary(3).replica_id, 9);
}

/// A read that was slow: the replica went, its data with it, and a later one came, at the same epoch. What was read in
/// between is nothing.
#[test]
fn what_was_read_of_a_former_replica_is_not_confirmed_by_the_later_one() {
    let mut cluster = begun(1);
    let before = cluster.view(3);
    cluster.turn(1, vec![order(&[4], &[3])]);
    cluster.tick_until(|cluster| voters_on(cluster, &[1, 2, 4]) && cluster.summary_of(3, RANGE).is_none());
    assert!(rows(&cluster.node(3).disk, &whole()).is_empty());
    let leader = cluster.leader_of(RANGE).expect("there is one");
    cluster.turn(leader, vec![order(&[3], &[])]);
    cluster.tick_until(|cluster| voters_on(cluster, &[1, 2, 3, 4]));
    let after = cluster.view(3);
    assert_eq!(before.descriptor.epoch.map(|of| of.version), after.descriptor.epoch.map(|of| of.version));
    assert!(matches!(read::check_same(&before, &after), Err(Error::RangeNotFound { .. })));
    assert_eq!(read::check_same(&after, &cluster.view(3)), Ok(()));
}

/// A later replica of the range on the same node may lead, and look at its expiry index, while the answer to an
/// earlier one's look is still on its way (tikv#17469): that one tells nothing about what is there now.
#[test]
fn an_answer_to_a_former_replica_is_not_taken_by_the_later_one() {
    let mut cluster = begun_with(small_log(), 1);
    let ttl = |token, key: &str, ms| write_input(token, request(vec![put_ttl(key, "v", ms)]));
    cluster.turn(1, vec![ttl(1, "old", 500)]);
    cluster.passes_held = true;
    cluster.transfer(1, 100, 2);
    let looks = |cluster: &Cluster| cluster.passes.iter().position(|(of, _)| *of == 2);
    cluster.tick_until(|cluster| looks(cluster).is_some());
    let (_, stale) = cluster.passes[looks(&cluster).expect("just seen")].clone();
    cluster.passes_held = false;
    cluster.tick();
    cluster.passes.clear();
    cluster.turn(2, vec![order(&[4], &[2])]);
    cluster.tick_until(|cluster| voters_on(cluster, &[1, 3, 4]) && cluster.summary_of(2, RANGE).is_none());
    let leader = cluster.leader_of(RANGE).expect("there is one");
    cluster.turn(leader, vec![order(&[2], &[])]);
    cluster.tick_until(|cluster| voters_on(cluster, &[1, 2, 3, 4]));
    let leader = cluster.leader_of(RANGE).expect("there is one");
    let at = cluster.summary(leader).descriptor.epoch.expect("it has one");
    let request = request(vec![put_ttl("new", "v", 3_000)]);
    let write = Write { token: Token(2), range: RANGE, epoch: at, request, deadline: LATER };
    cluster.turn(leader, vec![Input::Write(write)]);
    cluster.settle();
    assert!(cluster.answer(2).is_ok());
    cluster.passes_held = true;
    cluster.transfer(leader, 101, 2);
    cluster.tick_until(|cluster| looks(cluster).is_some());
    cluster.turn(2, vec![Input::ExpiriesFound(stale)]);
    cluster.passes_held = false;
    cluster.tick_until(|cluster| rows(&cluster.node(2).disk, &whole()).len() == 4);
}

/// An order that names a node twice, once in each list, would add and remove its replica for ever.
#[test]
fn an_order_that_contradicts_itself_is_not_taken() {
    let mut cluster = begun(1);
    let before = cluster.summary(1).descriptor;
    cluster.turn(1, vec![order(&[4], &[4])]);
    assert_eq!(cluster.summary(1).order_id, 0);
    (0..20).for_each(|_| cluster.tick());
    assert_eq!(cluster.summary(1).descriptor, before);
}

/// Ids that a node was given are used once, however often it is told of them.
#[test]
fn a_block_of_ids_that_comes_twice_counts_once() {
    let mut cluster = Cluster::led_by_1(Config::default());
    let block = || Input::RangeIds { first: 100, count: 1 };
    let keyspace = v1::Keyspace { keyspace_id: 1, ..Default::default() };
    cluster.turn(1, vec![Input::Keyspaces(vec![keyspace]), block(), block(), split_input(1, "m")]);
    cluster.tick_until(|cluster| serves(cluster, CHILD) == Some(1));
    cluster.turn(1, vec![block(), split_input(2, "d")]);
    let (_, second) = cluster.splits.last().expect("answered at once");
    assert!(matches!(second, Err(Error::ServerBusy { .. })), "{second:?}");
    assert_eq!(cluster.node(1).store.ranges().count(), 2);
}

/// A range that the ids at hand do not suffice for is looked through once, and again when there are enough.
#[test]
fn a_range_short_of_ids_is_not_looked_through_again_and_again() {
    let mut cluster = Cluster::led_by_1(Config::default());
    let ids = |first, count| Input::RangeIds { first, count };
    let keyspace = v1::Keyspace { keyspace_id: 1, split_bytes: 20, ..Default::default() };
    for at in 0..8 {
        cluster.put(1, at, &format!("key-{at}"), "a value of some length");
    }
    cluster.settle();
    let size = Input::RangeSize { range: RANGE, bytes: 1_000 };
    let effects = cluster.turn(1, vec![ids(100, 1), Input::Keyspaces(vec![keyspace]), size]);
    assert!(effects.split_keys_wanted.is_empty());
    let mut looks = 0;
    for _ in 0..10 {
        cluster.now = cluster.now + cluster.config.tick;
        let effects = cluster.turn(1, vec![Input::Tick]);
        looks += effects.split_keys_wanted.len();
        assert!(effects.range_ids_wanted);
        cluster.settle();
    }
    assert_eq!((looks, cluster.node(1).store.ranges().count()), (1, 1));
    cluster.turn(1, vec![ids(200, 50)]);
    cluster.tick_until(|cluster| cluster.node(1).store.ranges().count() > 2);
}

/// A store answers for replicas that it does not have; it says there too that its disk is full.
#[test]
fn a_full_store_says_so_even_where_it_has_nothing() {
    let mut cluster = begun(1);
    cluster.turn(4, vec![Input::DiskSpace { has_room: false }]);
    let term = cluster.summary(1).term;
    let beat = v1::PeerMessage { to_learner: true, ..message(7, 1, MessageType::MsgHeartbeat, term) };
    let effects = cluster.turn(4, vec![input(1, 4, beat, None)]);
    assert!(matches!(&effects.messages[..], [answer] if answer.disk_full), "{:?}", effects.messages);
}
