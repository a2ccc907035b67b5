//! Reads: who may answer, when a barrier lets one through, and what a page holds.

use std::collections::BTreeMap;
use std::sync::Arc;

use flotilla_engine::config::{Config, ReadMode};
use flotilla_engine::read::{self, Admission, ReadRequest};
use flotilla_engine::storage::{Family, Storage, WriteBatch};
use flotilla_engine::store::{Input, ReadBarrier, Token};
use flotilla_engine::{keys, record};
use flotilla_proto::error::Action;
use flotilla_proto::{Error, KeyspaceId, v1};
use raft::eraftpb::MessageType;

use crate::cluster::{Cluster, EPOCH, RANGE};
use crate::determinism::Rng;
use crate::disk::MemDisk;

fn header() -> v1::RequestHeader {
    v1::RequestHeader { range_id: RANGE.0, epoch: Some(EPOCH), ..Default::default() }
}

/// etcd#7331, tikv#9239.
#[test]
fn a_barrier_before_the_first_commit_of_the_term_waits() {
    let mut cluster = Cluster::new(Config::default(), 3);
    while !cluster.summary(1).leads {
        cluster.now = cluster.now + cluster.config.tick;
        for id in 1..=3 {
            cluster.turn(id, vec![Input::Tick]);
        }
        while !cluster.summary(1).leads && (cluster.deliver() || (1..=3).any(|id| cluster.persist(id))) {}
    }
    let state = cluster.summary(1);
    assert!(state.commit < state.last_index);
    cluster.barrier(1, 1);
    assert!(cluster.barriers.is_empty(), "it neither answers nor is it lost");
    assert!(matches!(read::admit(&cluster.view(1), cluster.now, ReadMode::Lease, &header()), Admission::Barrier));
    cluster.settle();
    cluster.tick();
    let (token, answer) = &cluster.barriers[0];
    assert_eq!((*token, answer.as_ref().map(|view| view.serves)), (1, Ok(true)));
}

#[test]
fn a_barrier_waits_for_apply_and_asks_a_quorum() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.apply_held.insert(1);
    cluster.put(1, 1, "k", "v");
    cluster.settle();
    cluster.barrier(1, 1);
    cluster.settle();
    assert!(cluster.barriers.is_empty(), "what was committed before it is not applied yet");
    cluster.apply_held.clear();
    cluster.settle();
    assert_eq!(cluster.barriers.len(), 1);
    let asked = |cluster: &Cluster| cluster.sent(1, 2, MessageType::MsgHeartbeat).len();
    let before = asked(&cluster);
    cluster.turn(1, (2..9).map(|token| barrier_until(token, crate::cluster::LATER)).collect());
    assert_eq!(asked(&cluster), before + 1, "all that wait share one round");
    cluster.settle();
    assert_eq!(cluster.barriers.len(), 8);
}

fn barrier_until(token: u64, deadline: flotilla_engine::time::BootTime) -> Input {
    Input::ReadBarrier(ReadBarrier { token: Token(token), range: RANGE, epoch: EPOCH, deadline })
}

#[test]
fn a_leader_that_is_cut_off_lets_no_barrier_through() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.cut_off.insert(1);
    let deadline = cluster.now + cluster.config.tick * 3;
    cluster.turn(1, vec![barrier_until(1, crate::cluster::LATER), barrier_until(2, deadline)]);
    cluster.tick_until(|cluster| !cluster.summary(1).leads);
    cluster.settle();
    let actions: BTreeMap<u64, _> =
        cluster.barriers.iter().map(|(token, done)| (*token, done.as_ref().map_err(Error::action).err())).collect();
    assert_eq!(actions, BTreeMap::from([(1, Some(Action::RefreshRoute)), (2, Some(Action::Retry))]));
}

#[test]
fn an_unanswered_round_is_begun_again() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.barrier(1, 1);
    cluster.network.clear();
    cluster.tick_until(|cluster| !cluster.barriers.is_empty());
    assert!(cluster.barriers[0].1.is_ok());
}

/// etcd#20418, #21399: an answer to a round that was given up must not be taken for one to a later round.
#[test]
fn no_two_rounds_have_the_same_context() {
    let mut cluster = Cluster::led_by_1(Config::default());
    for round in 1..=6 {
        if round % 2 == 1 {
            cluster.barrier(1, round);
        } else {
            // Nobody answered: the round is begun again.
            cluster.network.clear();
            cluster.now = cluster.now + cluster.config.election_timeout();
            cluster.turn(1, vec![Input::Tick]);
        }
        if round == 4 {
            cluster.settle();
            cluster.transfer(1, 100, 2);
            cluster.tick_until(|cluster| cluster.view(2).serves);
            cluster.transfer(2, 101, 1);
            cluster.tick_until(|cluster| cluster.view(1).serves);
        }
    }
    cluster.settle();
    let to_2 = cluster.sent(1, 2, MessageType::MsgHeartbeat);
    let contexts: Vec<_> = to_2.iter().map(|sent| &sent.context[..]).filter(|context| !context.is_empty()).collect();
    let mut rounds = contexts.clone();
    rounds.dedup();
    let mut all = rounds.clone();
    all.sort_unstable();
    all.dedup();
    assert_eq!(rounds.len(), all.len(), "{rounds:?}");
    assert!(all.len() >= 6, "{all:?}");
    assert_eq!(cluster.barriers.len(), 3);
}

#[test]
fn admission_follows_epoch_leader_and_lease() {
    let cluster = Cluster::led_by_1(Config::default());
    let admit = |id, mode, header: &v1::RequestHeader| read::admit(&cluster.view(id), cluster.now, mode, header);
    assert_eq!(admit(1, ReadMode::Lease, &header()), Admission::Read);
    assert_eq!(admit(1, ReadMode::Quorum, &header()), Admission::Barrier);
    assert!(matches!(admit(2, ReadMode::Lease, &header()), Admission::Refused(Error::NotLeader { .. })));
    let stale = v1::RequestHeader { consistency: v1::ReadConsistency::Stale.into(), ..header() };
    assert_eq!(admit(2, ReadMode::Lease, &stale), Admission::Read);
    for version in [0, 2] {
        let ahead = v1::RequestHeader { epoch: Some(v1::Epoch { version, ..EPOCH }), ..stale.clone() };
        assert!(matches!(admit(1, ReadMode::Lease, &ahead), Admission::Refused(Error::EpochMismatch { .. })));
    }
    let mut lapsed = (*cluster.view(1)).clone();
    lapsed.lease_until = cluster.now;
    assert_eq!(read::admit(&Arc::new(lapsed), cluster.now, ReadMode::Lease, &header()), Admission::Barrier);
}

/// A range `[start, end)` with some keys, and a few outside of it.
fn filled(draw: &mut Rng) -> (MemDisk, v1::RangeDescriptor, BTreeMap<Vec<u8>, Vec<u8>>) {
    let disk = MemDisk::default();
    let descriptor =
        v1::RangeDescriptor { range_id: 2, keyspace_id: 1, start: "b".into(), end: "d".into(), ..Default::default() };
    let mut batch = disk.batch();
    let mut inside = BTreeMap::new();
    for _ in 0..draw.below(60) {
        let mut key = vec![b"abcd"[draw.below(4) as usize]];
        key.extend((0..draw.below(3)).map(|_| [0, 1, 0xFF][draw.below(3) as usize]));
        let value = vec![b'v'; draw.below(30) as usize];
        batch.put(Family::State, &keys::data(KeyspaceId(1), &key), &record::encode_value(7, 0, &value));
        if read::contains(&descriptor, &key) {
            inside.insert(key, value);
        }
    }
    disk.write(batch).expect("the disk is well");
    (disk, descriptor, inside)
}

fn scan(disk: &MemDisk, descriptor: &v1::RangeDescriptor, request: &v1::ScanRequest) -> v1::ScanResponse {
    match read::execute(disk, descriptor, 0, ReadRequest::Scan(request)) {
        Ok(v1::response::Body::Scan(page)) => page,
        other => panic!("a scan answers with a page: {other:?}"),
    }
}

#[test]
fn pages_both_ways_show_each_key_of_the_range_once() {
    for seed in 0..200 {
        let mut draw = Rng::new(seed);
        let (disk, descriptor, inside) = filled(&mut draw);
        for reverse in [false, true] {
            let (limit, limit_bytes) = (draw.below(5) as u32, draw.below(100) as u32);
            let mut request = v1::ScanRequest { reverse, limit, limit_bytes, ..Default::default() };
            request.keys_only = draw.below(3) == 0;
            let mut seen = vec![];
            loop {
                let page = scan(&disk, &descriptor, &request);
                assert_eq!(page.count, page.records.len() as u64);
                assert!(limit == 0 || page.count <= u64::from(limit));
                let size = |of: &v1::Record| of.key.len() + if request.keys_only { 0 } else { 9 + of.value.len() };
                let bytes: usize = page.records.iter().map(size).sum();
                assert!(limit_bytes == 0 || page.count <= 1 || bytes <= limit_bytes as usize);
                seen.extend(page.records.into_iter().map(|of| (of.key.to_vec(), of.value.to_vec(), of.version)));
                if page.next_token.is_empty() {
                    break;
                }
                assert!(page.count > 0, "a page makes progress");
                *(if reverse { &mut request.end } else { &mut request.start }) = page.next_token;
            }
            if reverse {
                seen.reverse();
            }
            let value = |value: &Vec<u8>| if request.keys_only { vec![] } else { value.clone() };
            let expected: Vec<_> = inside.iter().map(|(key, of)| (key.clone(), value(of), 7)).collect();
            assert_eq!(seen, expected, "seed {seed}, reverse {reverse}");
        }
        let counted = scan(&disk, &descriptor, &v1::ScanRequest { count_only: true, ..Default::default() });
        assert_eq!((counted.count, counted.records.len()), (inside.len() as u64, 0));
    }
}

#[test]
fn a_scan_is_cut_to_its_bounds_and_to_the_range() {
    let (disk, descriptor, inside) = filled(&mut Rng::new(3));
    for (start, end) in [("", ""), ("a", "z"), ("b", "c"), ("c", ""), ("c", "c"), ("d", "b"), ("d", ""), ("", "b")] {
        let request = v1::ScanRequest { start: start.into(), end: end.into(), ..Default::default() };
        let keys: Vec<_> = scan(&disk, &descriptor, &request).records.into_iter().map(|of| of.key.to_vec()).collect();
        let within = |key: &&Vec<u8>| &key[..] >= start.as_bytes() && (end.is_empty() || &key[..] < end.as_bytes());
        assert_eq!(keys, inside.keys().filter(within).cloned().collect::<Vec<_>>(), "from {start:?} to {end:?}");
    }
}

#[test]
fn a_key_outside_of_the_range_is_not_looked_up() {
    let (disk, descriptor, inside) = filled(&mut Rng::new(3));
    let get = |key: &[u8]| {
        let request = v1::GetRequest { header: None, key: key.to_vec().into() };
        read::execute(&disk, &descriptor, 0, ReadRequest::Get(&request))
    };
    for key in ["a", "d", "z", ""] {
        assert!(matches!(get(key.as_bytes()), Err(Error::KeyNotInRange { .. })), "{key:?}");
    }
    let (key, value) = inside.iter().next().expect("some key is inside");
    let Ok(v1::response::Body::Get(got)) = get(key) else { panic!("it is inside") };
    assert_eq!(got.record.map(|of| of.value.to_vec()), Some(value.clone()));
}

#[test]
fn bytes_that_are_no_record_are_an_error_and_no_value() {
    let (disk, descriptor, inside) = filled(&mut Rng::new(3));
    let (key, _) = inside.iter().next().expect("some key is inside");
    for bad in [&b""[..], b"short", &[9; 20]] {
        disk.damage(Family::State, &keys::data(KeyspaceId(1), key), Some(bad));
        let request = v1::GetRequest { header: None, key: key.clone().into() };
        let got = read::execute(&disk, &descriptor, 0, ReadRequest::Get(&request));
        assert!(matches!(got, Err(Error::Corruption { .. })), "{bad:?}: {got:?}");
        let all = v1::ScanRequest::default();
        let got = read::execute(&disk, &descriptor, 0, ReadRequest::Scan(&all));
        assert!(matches!(got, Err(Error::Corruption { .. })), "{bad:?}: {got:?}");
    }
}
