//! What a store finds when it starts: all of it, or a refusal in words. A replica that forgot part of its log,
//! its vote or its state must not take part.

use flotilla_engine::config::Config;
use flotilla_engine::keys::{self, MetaRecord, RangeRecord};
use flotilla_engine::storage::{Family, Read, Storage, StorageError};
use flotilla_engine::store::{LogBatch, LogItem, Store};
use flotilla_engine::{log_writer, record, recover};
use flotilla_proto::{NodeId, RangeId, v1};
use raft::eraftpb::Entry;

use crate::cluster::{Cluster, RANGE};
use crate::disk::MemDisk;

fn written() -> Cluster {
    let mut cluster = Cluster::led_by_1(Config { log_retain_entries: 3, ..Config::default() });
    for token in 0..20 {
        cluster.put(1, token, "k", "v");
        cluster.settle();
    }
    cluster.tick();
    cluster
}

fn get<M: prost::Message + Default>(disk: &MemDisk, family: Family, key: &[u8]) -> M {
    record::decode(&disk.get(family, key).expect("readable").expect("present"), "record").expect("whole")
}

type Damage = fn(&MemDisk, last: u64);

fn raft_state(disk: &MemDisk, change: impl FnOnce(&mut v1::RaftState)) {
    let key = keys::raft_state(RANGE);
    let mut state = get(disk, Family::Log, &key);
    change(&mut state);
    disk.damage(Family::Log, &key, Some(&record::encode(&state)));
}

fn applied_state(disk: &MemDisk, change: impl FnOnce(&mut v1::AppliedState)) {
    let key = keys::range_record(RANGE, RangeRecord::Applied);
    let mut state = get(disk, Family::State, &key);
    change(&mut state);
    disk.damage(Family::State, &key, Some(&record::encode(&state)));
}

fn entry(disk: &MemDisk, index: u64, change: impl FnOnce(&mut Entry)) {
    let key = keys::log_entry(RANGE, index);
    let bytes = disk.get(Family::Log, &key).expect("readable").expect("present");
    let mut entry = record::decode_entry(index, bytes).expect("whole");
    change(&mut entry);
    disk.damage(Family::Log, &key, Some(&record::encode_entry(&entry)));
}

#[test]
fn every_inconsistency_is_refused_in_words() {
    let cases: &[(&str, Damage)] = &[
        ("no record of its cluster", |disk, _| disk.damage(Family::Meta, &keys::meta(MetaRecord::KnownNodes), None)),
        ("format 9", |disk, _| {
            let key = keys::meta(MetaRecord::Identity);
            let identity: v1::StoreIdentity = get(disk, Family::Meta, &key);
            disk.damage(Family::Meta, &key, Some(&record::encode(&v1::StoreIdentity { format: 9, ..identity })));
        }),
        ("crc32", |disk, _| disk.damage(Family::Meta, &keys::meta(MetaRecord::Identity), Some(&[7; 30]))),
        ("no applied state", |disk, _| {
            disk.damage(Family::State, &keys::range_record(RANGE, RangeRecord::Applied), None);
        }),
        ("no descriptor", |disk, _| {
            disk.damage(Family::State, &keys::range_record(RANGE, RangeRecord::Descriptor), None);
        }),
        ("unknown kind", |disk, _| disk.damage(Family::State, &[1, 0, 0, 0, 0, 0, 0, 0, 2, 99], Some(b"x"))),
        ("the family state has a record with key [04, 00", |disk, _| {
            disk.damage(Family::State, &[4, 0, 0], Some(b"x"))
        }),
        ("the family log has a record with key [03", |disk, _| disk.damage(Family::Log, &[3; 17], Some(b"x"))),
        ("the family meta has a record with key [01, 04]", |disk, _| disk.damage(Family::Meta, &[1, 4], Some(b"x"))),
        ("no Raft state", |disk, _| disk.damage(Family::Log, &keys::raft_state(RANGE), None)),
        ("has no descriptor", |disk, _| {
            disk.damage(Family::Log, &keys::raft_state(RangeId(7)), Some(&record::encode(&v1::RaftState::default())));
        }),
        ("are missing", |disk, last| disk.damage(Family::Log, &keys::log_entry(RANGE, last - 1), None)),
        ("synced log entries are gone", |disk, last| disk.damage(Family::Log, &keys::log_entry(RANGE, last), None)),
        ("synced log entries are gone", |disk, last| raft_state(disk, |state| state.commit = last + 1)),
        ("begins only after", |disk, _| applied_state(disk, |state| state.index = 6)),
        ("its log has term", |disk, _| applied_state(disk, |state| state.term += 1)),
        ("a synced Raft state is gone", |disk, _| raft_state(disk, |state| state.term = 5)),
        ("below that of the one before", |disk, last| entry(disk, last, |entry| entry.term = 5)),
        ("cut short", |disk, last| disk.damage(Family::Log, &keys::log_entry(RANGE, last), Some(b"x"))),
    ];
    let cluster = written();
    let last = cluster.summary(1).last_index;
    for (words, damage) in cases {
        let disk = MemDisk::default();
        for ((family, key), value) in cluster.node(1).disk.contents() {
            disk.damage(family, &key, Some(&value));
        }
        recover::load(&disk).expect("nothing is wrong yet");
        damage(&disk, last);
        match recover::load(&disk) {
            Err(StorageError::Corrupt { what } | StorageError::Newer { what }) => {
                assert!(what.contains(words), "{words:?} is not in {what:?}")
            }
            other => panic!("{words:?}: {other:?}"),
        }
    }
}

#[test]
fn an_empty_disk_was_never_bootstrapped() {
    assert!(recover::load(&MemDisk::default()).expect("readable").is_none());
}

#[test]
fn a_store_of_another_node_is_refused() {
    let cluster = written();
    let boot = recover::load(&*cluster.node(1).disk).expect("readable").expect("bootstrapped");
    let refusal = Store::new(Config::default(), NodeId(9), &boot, cluster.now).err().expect("refused");
    assert!(refusal.contains("no replica of range"), "{refusal}");
}

/// etcd#14143: the commit index is not synced with each change, so the applied index may be ahead of it.
#[test]
fn a_restart_finds_what_was_there() {
    let mut cluster = written();
    let before = cluster.summary(2);
    cluster.restart(2);
    let after = cluster.summary(2);
    let kept = |of: &flotilla_engine::store::RangeSummary| (of.term, of.vote, of.applied, of.last_index, of.truncated);
    assert_eq!(kept(&after), kept(&before));
    assert_eq!(after.applied_checksum, before.applied_checksum);
    assert!(after.commit >= after.applied, "commit is not synced by itself, but what was applied was committed");
}

#[test]
fn old_entries_are_read_up_to_the_first_gap_and_within_bytes() {
    let cluster = written();
    let (disk, state) = (&cluster.node(1).disk, cluster.summary(1));
    let read = |low, high, bytes| recover::read_log(&**disk, RANGE, low, high, bytes).expect("readable");
    let (low, high) = (state.truncated + 1, state.last_index + 1);
    assert_eq!(read(low, high, u64::MAX).len() as u64, high - low);
    assert_eq!(read(low, high, 0).len(), 1, "one at least");
    assert!(read(state.truncated, high, u64::MAX).is_empty(), "what is cut off is not there");
    disk.damage(Family::Log, &keys::log_entry(RANGE, low + 1), None);
    assert_eq!(read(low, high, u64::MAX).len(), 1);
    disk.damage(Family::Log, &keys::log_entry(RANGE, low), Some(b"rot"));
    assert!(recover::read_log(&**disk, RANGE, low, high, u64::MAX).is_err());
}

#[test]
fn a_log_batch_removes_then_writes_whatever_the_span() {
    for removed in [5, 5_000] {
        let disk = MemDisk::default();
        let at = |index| Entry { index, term: 6, data: "x".into(), ..Default::default() };
        let write = |item: LogItem| {
            let mut batch = disk.batch();
            log_writer::fill(&mut batch, &LogBatch { sequence: 1, items: vec![item] }).expect("no snapshot in it");
            disk.write(batch).expect("the disk is well");
        };
        let item = LogItem::new(RANGE);
        write(LogItem { entries: (1..=removed + 2).map(at).collect(), ..item.clone() });
        write(LogItem { entries: vec![at(3)], remove: vec![(3, removed + 2)], ..item });
        let left = recover::read_log(&disk, RANGE, 1, u64::MAX, u64::MAX).expect("readable");
        assert_eq!(left.iter().map(|entry| entry.index).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(disk.get(Family::Log, &keys::log_entry(RANGE, removed + 2)).expect("readable").is_some());
        assert_eq!(disk.contents().len(), 4);
    }
}
