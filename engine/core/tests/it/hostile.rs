//! What a peer with a bug may send: it is refused in words, and nothing panics. raft-rs itself trusts its
//! peers: much of this would end the process there.

use flotilla_engine::config::Config;
use flotilla_engine::snapshot::{self, Chunks};
use flotilla_engine::store::{Effects, Envelope, Event, Input, SnapshotData};
use flotilla_proto::{NodeId, v1};
use raft::eraftpb::MessageType::{self, *};

use crate::cluster::{Cluster, RANGE, put, request};

fn message(cluster: &Cluster, from: u64, to: u64, kind: MessageType) -> v1::PeerMessage {
    let state = cluster.summary(from);
    v1::PeerMessage {
        range_id: RANGE.0,
        from_replica: from,
        to_replica: to,
        message_type: kind as u32,
        term: state.term,
        log_term: state.term,
        index: state.last_index,
        commit: state.commit,
        ..Default::default()
    }
}

fn send(cluster: &mut Cluster, message: v1::PeerMessage, to: u64, snapshot: Option<SnapshotData>) -> Effects {
    let from = message.from_replica;
    let envelope = Envelope { from: NodeId(from), to: NodeId(to), message, disk_full: false, snapshot };
    let effects = cluster.turn(to, vec![Input::Message(envelope)]);
    cluster.settle();
    effects
}

fn refused(effects: &Effects) -> bool {
    effects.events.iter().any(|event| matches!(event, Event::MessageRefused { .. }))
}

fn written() -> Cluster {
    let mut cluster = Cluster::led_by_1(Config::default());
    for token in 1..=3 {
        cluster.put(1, token, "k", "v");
        cluster.settle();
    }
    cluster
}

fn entry(term: u64, index: u64) -> v1::LogEntry {
    v1::LogEntry { entry_type: 0, term, index, data: Default::default() }
}

type Change = fn(&mut v1::PeerMessage);

fn all_refused(to: u64, from: u64, cases: &[(MessageType, &str, Change)]) {
    for (kind, what, change) in cases {
        let mut cluster = written();
        let before = (cluster.summary(to), cluster.leader());
        let mut message = message(&cluster, from, to, *kind);
        change(&mut message);
        let effects = send(&mut cluster, message, to, None);
        assert!(refused(&effects), "{kind:?} with {what}");
        assert!(cluster.fatal.is_empty(), "{kind:?} with {what}");
        assert_eq!((cluster.summary(to), cluster.leader()), before, "{kind:?} with {what} changed something");
        // And the cluster goes on.
        cluster.put(1, 9, "k", "after");
        cluster.settle();
        assert!(cluster.answer(9).is_ok(), "{kind:?} with {what}");
    }
}

#[test]
fn a_message_without_a_term_is_refused_whatever_its_type() {
    // To raft-rs term 0 means "from this very process": it would be believed, or be fatal.
    for kind in [
        MsgAppend,
        MsgAppendResponse,
        MsgRequestVote,
        MsgRequestVoteResponse,
        MsgHeartbeat,
        MsgHeartbeatResponse,
        MsgTimeoutNow,
        MsgRequestPreVote,
        MsgRequestPreVoteResponse,
    ] {
        all_refused(2, 3, &[(kind, "term 0", |message| message.term = 0)]);
        all_refused(1, 3, &[(kind, "term 0", |message| message.term = 0)]);
    }
}

#[test]
fn an_append_that_is_no_piece_of_a_log_is_refused() {
    all_refused(
        2,
        1,
        &[
            (MsgAppend, "log term 0", |m| m.log_term = 0),
            (MsgAppend, "an index far behind the log and log term 0", |m| (m.log_term, m.index) = (0, 1 << 40)),
            (MsgAppend, "a commit beyond the log and log term 0", |m| {
                (m.log_term, m.index, m.commit) = (0, m.index + 5, m.index + 5);
            }),
            (MsgAppend, "a gap before its entries", |m| m.entries = vec![entry(m.term, m.index + 2)]),
            (MsgAppend, "a gap between its entries", |m| {
                m.entries = vec![entry(m.term, m.index + 1), entry(m.term, m.index + 3)];
            }),
            (MsgAppend, "an entry it has twice", |m| {
                m.entries = vec![entry(m.term, m.index + 1), entry(m.term, m.index + 1)];
            }),
            (MsgAppend, "an entry of a later term than its own", |m| m.entries = vec![entry(m.term + 1, m.index + 1)]),
            (MsgAppend, "terms that fall", |m| {
                m.entries = vec![entry(m.term, m.index + 1), entry(m.term - 1, m.index + 2)];
            }),
            (MsgAppend, "a log term behind its term", |m| m.log_term = m.term + 1),
            (MsgAppend, "an index at the end of numbers", |m| m.index = u64::MAX),
            (MsgAppend, "an entry type that is unknown", |m| {
                m.entries = vec![v1::LogEntry { entry_type: 9, ..entry(m.term, m.index + 1) }];
            }),
            (MsgHeartbeat, "a term at the end of numbers", |m| m.term = u64::MAX),
            (MsgRequestVote, "a term at the end of numbers", |m| m.term = u64::MAX),
        ],
    );
}

#[test]
fn a_follower_cannot_have_what_its_leader_does_not() {
    all_refused(
        1,
        2,
        &[
            (MsgAppendResponse, "an index beyond the leader's log", |m| m.index += 1),
            (MsgAppendResponse, "a hint beyond the leader's log", |m| {
                (m.reject, m.reject_hint) = (true, u64::MAX);
            }),
            (MsgAppendResponse, "a request for a snapshot, which nobody makes", |m| {
                (m.reject, m.request_snapshot) = (true, 5);
            }),
        ],
    );
}

#[test]
fn a_message_from_or_to_a_replica_that_is_not_there_is_refused() {
    all_refused(
        2,
        1,
        &[
            (MsgHeartbeat, "another receiver", |m| m.to_replica = 1),
            (MsgAppend, "a type that never travels", |m| m.message_type = MsgPropose as u32),
            (MsgAppend, "a type that is none", |m| m.message_type = 99),
        ],
    );
}

#[test]
fn a_leader_that_knows_more_than_this_log_holds_stops_the_store() {
    let mut cluster = written();
    let mut heartbeat = message(&cluster, 1, 2, MsgHeartbeat);
    heartbeat.commit = heartbeat.index + 1;
    send(&mut cluster, heartbeat, 2, None);
    let (node, why) = &cluster.fatal[0];
    assert_eq!(*node, 2);
    assert!(why.contains("synced data is gone") && why.contains("new node id"), "{why}");
}

#[test]
fn votes_for_a_request_that_has_not_left_elect_nobody() {
    // One of them campaigns, but its own vote is not durable: no honest answer can exist yet.
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.cut_off.insert(1);
    cluster.disk_held.extend([2, 3]);
    let candidate = |cluster: &Cluster| [2, 3].into_iter().find(|id| cluster.summary(*id).vote == *id);
    cluster.tick_until(|cluster| candidate(cluster).is_some());
    let id = candidate(&cluster).expect("just seen");
    let granted = message(&cluster, id, id, MsgRequestVoteResponse);
    let forged = v1::PeerMessage { from_replica: 5 - id, to_replica: id, ..granted };
    let effects = send(&mut cluster, forged, id, None);
    assert!(refused(&effects) && !cluster.summary(id).leads);
}

fn snapshot_of(cluster: &Cluster, node: u64) -> SnapshotData {
    snapshot::make(&*cluster.node(node).disk, RANGE).expect("it can be made")
}

type SnapshotChange = fn(&mut v1::PeerMessage, &mut SnapshotData);

#[test]
fn a_snapshot_that_is_not_what_it_says_is_refused() {
    let cases: &[(&str, SnapshotChange)] = &[
        ("another index than its data", |message, _| message.snapshot.as_mut().expect("set").index += 1),
        ("no metadata", |message, _| message.snapshot = None),
        ("no term", |message, data| {
            message.snapshot.as_mut().expect("set").term = 0;
            data.header.applied.as_mut().expect("set").term = 0;
        }),
        ("a later term than its message's", |message, data| {
            message.snapshot.as_mut().expect("set").term = message.term + 1;
            data.header.applied.as_mut().expect("set").term = message.term + 1;
        }),
        ("an index at the end of numbers", |message, data| {
            message.snapshot.as_mut().expect("set").index = u64::MAX;
            data.header.applied.as_mut().expect("set").index = u64::MAX;
        }),
        ("other voters than its descriptor", |message, _| message.snapshot.as_mut().expect("set").voters = vec![2]),
        ("a voter that is a learner too", |message, _| message.snapshot.as_mut().expect("set").learners = vec![2]),
        ("another range", |_, data| data.header.descriptor.as_mut().expect("set").range_id = 3),
        ("another keyspace", |_, data| data.header.descriptor.as_mut().expect("set").keyspace_id = 7),
        ("a keyspace at the end of numbers", |_, data| {
            data.header.descriptor.as_mut().expect("set").keyspace_id = u64::MAX;
        }),
        ("another span", |_, data| data.header.descriptor.as_mut().expect("set").end = "a".into()),
        ("no replica for the receiver", |_, data| {
            data.header.descriptor.as_mut().expect("set").replicas.retain(|of| of.node_id != 2);
        }),
        ("too few records", |_, data| data.header.records += 1),
        ("no applied state", |_, data| data.header.applied = None),
        ("a flipped bit", |_, data| {
            let mut chunk = data.chunks.read(0).expect("in memory").to_vec();
            chunk[9] ^= 1;
            data.chunks = Chunks::Memory(std::sync::Arc::new(vec![chunk.into()]));
        }),
    ];
    for (what, change) in cases {
        let mut cluster = Cluster::led_by_1(Config::default());
        cluster.cut_off.insert(2);
        cluster.write(1, 1, request(vec![put("a", "1"), put("b", "2")]));
        cluster.settle();
        let mut data = snapshot_of(&cluster, 1);
        let mut message = message(&cluster, 1, 2, MsgSnapshot);
        let applied = data.header.applied.expect("set");
        let meta = v1::SnapshotMeta {
            index: applied.index,
            term: applied.term,
            voters: vec![1, 2, 3],
            learners: vec![],
            voters_outgoing: vec![],
        };
        message.snapshot = Some(meta);
        change(&mut message, &mut data);
        let before = cluster.summary(2);
        cluster.cut_off.clear();
        let effects = send(&mut cluster, message, 2, Some(data));
        assert!(refused(&effects), "a snapshot with {what}");
        assert_eq!(cluster.summary(2).applied, before.applied, "a snapshot with {what}");
        cluster.tick_until(|cluster| cluster.summary(2).applied == cluster.summary(1).applied);
    }
}

#[test]
fn a_snapshot_tied_to_another_message_is_not_taken_for_the_checked_one() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.cut_off.insert(2);
    cluster.put(1, 1, "a", "right");
    cluster.settle();
    let data = snapshot_of(&cluster, 1);
    let mut forged = data.clone();
    forged.chunks = Chunks::default();
    let applied = data.header.applied.expect("set");
    let mut real = message(&cluster, 1, 2, MsgSnapshot);
    let meta = v1::SnapshotMeta {
        index: applied.index,
        term: applied.term,
        voters: vec![1, 2, 3],
        learners: vec![],
        voters_outgoing: vec![],
    };
    real.snapshot = Some(meta);
    let mut heartbeat = message(&cluster, 1, 2, MsgHeartbeat);
    heartbeat.commit = 0;
    cluster.cut_off.clear();
    let envelope = |message, data| {
        Input::Message(Envelope { from: NodeId(1), to: NodeId(2), message, disk_full: false, snapshot: Some(data) })
    };
    cluster.turn(2, vec![envelope(heartbeat, forged), envelope(real, data)]);
    cluster.settle();
    assert_eq!(cluster.summary(2).applied, applied.index);
    let held = snapshot_of(&cluster, 2);
    assert_eq!(held.header.records, 1, "the data is that of the checked message");
}

/// Random messages of every type with numbers near those that matter: whatever comes of it, no panic.
#[test]
fn no_message_of_a_made_up_peer_ends_the_process() {
    for seed in 0..200u64 {
        let mut draw = crate::determinism::Rng::new(seed);
        let mut cluster = written();
        for _ in 0..60 {
            let (from, to) = [(1, 2), (3, 2), (2, 1), (3, 1), (1, 3)][draw.below(5) as usize];
            let kinds = [
                MsgAppend,
                MsgAppendResponse,
                MsgRequestVote,
                MsgRequestVoteResponse,
                MsgHeartbeat,
                MsgHeartbeatResponse,
                MsgTimeoutNow,
                MsgRequestPreVote,
                MsgRequestPreVoteResponse,
            ];
            let kind = kinds[draw.below(kinds.len() as u64) as usize];
            let state = cluster.summary(to);
            let mut near = |value: u64| match draw.below(8) {
                0 => 0,
                1 => value.saturating_add(1),
                2 => value.saturating_sub(1),
                3 => u64::MAX,
                _ => value,
            };
            let (term, index) = (near(state.term), near(state.last_index));
            // A commit beyond the log is a reason to stop, which another scenario shows.
            let commit = near(state.commit).min(state.last_index);
            let message = v1::PeerMessage {
                range_id: RANGE.0,
                from_replica: from,
                to_replica: to,
                message_type: kind as u32,
                term,
                index,
                log_term: near(state.term),
                commit,
                commit_term: near(state.term),
                reject: near(1) == 2,
                reject_hint: near(state.last_index),
                request_snapshot: near(0),
                entries: (0..near(1).min(3))
                    .map(|step| entry(near(term), near(index).wrapping_add(step + 1)))
                    .collect(),
                ..Default::default()
            };
            let envelope = Envelope { from: NodeId(from), to: NodeId(to), message, disk_full: false, snapshot: None };
            cluster.turn(to, vec![Input::Message(envelope)]);
            if near(0) == 1 {
                cluster.tick();
            }
            while cluster.persist(1) || cluster.persist(2) || cluster.persist(3) {}
            if !cluster.fatal.is_empty() {
                break;
            }
        }
    }
}

/// Messages that were really sent, and changed on their way: whatever comes of them, no panic.
#[test]
fn changed_messages_do_not_end_the_process() {
    use std::cell::RefCell;

    use prost::Message as _;

    let written = || {
        let mut cluster = written();
        cluster.sent.clear();
        cluster.put(1, 4, "k", "w");
        cluster.settle();
        cluster
    };
    let sent: Vec<Vec<u8>> = written().sent.iter().map(|sent| sent.message.encode_to_vec()).collect();
    let at_hand = RefCell::new((written(), 0));
    flotilla_hostile::Decoder::new("peer: message, to a store", sent)
        .protobuf(0)
        // What one takes is the frame's to say; what comes of it, the store's own bounds'.
        .memory_of(|_| usize::MAX)
        .check(
            |input| {
                let message = v1::PeerMessage::decode(input.clone()).ok()?;
                let (cluster, taken) = &mut *at_hand.borrow_mut();
                *taken += 1;
                if *taken > 500 || !cluster.fatal.is_empty() {
                    (*cluster, *taken) = (written(), 0);
                }
                let to = if message.to_replica == 1 { 1 } else { 2 };
                let from = NodeId(if message.from_replica == 3 { 3 } else { 3 - to });
                let envelope = Envelope { from, to: NodeId(to), message, disk_full: false, snapshot: None };
                cluster.turn(to, vec![Input::Message(envelope)]);
                while cluster.persist(to) {}
                Some(input.clone())
            },
            |input| input.to_vec(),
        );
}
