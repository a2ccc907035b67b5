//! The apply stage by itself: entries in, data and answers out, the same on every replica.

use bytes::Bytes;
use flotilla_engine::apply::{ApplyError, ApplyRefusal, ApplyStage, ApplyTask, ApplyWork, RangeChange};
use flotilla_engine::command::{self, CommandError};
use flotilla_engine::keys::RangeRecord;
use flotilla_engine::storage::{Family, Storage, WriteBatch};
use flotilla_engine::{bootstrap, keys, record, recover};
use flotilla_proto::v1::compare_and_swap::Expect;
use flotilla_proto::{NodeId, v1};
use raft::eraftpb::{Entry, EntryType};

use crate::cluster::{RANGE, delete, put, put_ttl, request, swap};
use crate::determinism::Rng;
use crate::disk::MemDisk;

struct Stage {
    disk: MemDisk,
    stage: ApplyStage,
    index: u64,
}

fn fresh() -> Stage {
    let disk = MemDisk::default();
    let layout = flotilla_placement::layout("test", &[(NodeId(1), "a".into())], 1, 1).expect("valid");
    bootstrap::write(&disk, NodeId(1), 1, &layout).expect("the disk is well");
    let boot = recover::load(&disk).expect("readable").expect("bootstrapped");
    Stage { disk, stage: ApplyStage::new(&boot), index: bootstrap::INITIAL_INDEX }
}

fn command(requests: Vec<v1::WriteRequest>) -> v1::Command {
    v1::Command { range_id: RANGE.0, replica_id: 1, term: 6, epoch_version: 1, requests, ..Default::default() }
}

fn put_if_absent(key: &str, value: &str) -> v1::WriteOp {
    let put = v1::Put { key: key.to_owned().into(), value: value.to_owned().into(), if_absent: true, ttl_ms: 0 };
    v1::WriteOp { op: Some(v1::write_op::Op::Put(put)) }
}

impl Stage {
    fn entry(&mut self, data: Bytes) -> Entry {
        self.index += 1;
        Entry { index: self.index, term: 6, data, ..Default::default() }
    }

    fn task(entries: Vec<Entry>) -> Vec<ApplyTask> {
        vec![ApplyTask { range: RANGE, work: ApplyWork::Entries(entries) }]
    }

    fn try_data(&mut self, data: Bytes) -> Result<Result<Vec<Vec<v1::WriteResult>>, ApplyRefusal>, ApplyError> {
        let entry = self.entry(data);
        let mut done = self.stage.apply(&self.disk, Self::task(vec![entry]), &mut |_, _| {})?;
        Ok(done.remove(0).results.remove(0).requests)
    }

    fn write(&mut self, request: v1::WriteRequest) -> Vec<v1::WriteResult> {
        let data = command::encode(&command(vec![request]));
        self.try_data(data).expect("it can be applied").expect("its stamp holds").remove(0)
    }

    fn op(&mut self, op: v1::WriteOp) -> v1::WriteResult {
        self.write(request(vec![op])).remove(0)
    }
}

#[test]
fn an_atomic_batch_is_all_or_nothing() {
    let mut stage = fresh();
    stage.op(put("a", "1"));
    let before = stage.disk.contents();
    let batch = |ops| v1::WriteRequest { ops, atomic: true };
    let failing = vec![put("b", "2"), swap("a", Expect::Value("other".into()), Some("3")), delete("a")];
    let results = stage.write(batch(failing.clone()));
    assert!(results.iter().all(|result| !result.applied && result.version <= 1));
    let data = |contents: std::collections::BTreeMap<_, _>| {
        contents.into_iter().filter(|((_, key), _): &((_, Vec<u8>), Bytes)| key[0] == 2).collect::<Vec<_>>()
    };
    assert_eq!(data(stage.disk.contents()), data(before));
    // Without `atomic`, each operation stands for itself.
    let results = stage.write(request(failing));
    assert_eq!(results.iter().map(|result| result.applied).collect::<Vec<_>>(), [true, false, true]);
    // The conditions are those of the state before the batch.
    let results = stage.write(batch(vec![put_if_absent("x", "1"), put_if_absent("y", "1")]));
    assert!(results.iter().all(|result| result.applied));
}

#[test]
fn a_version_never_repeats_after_a_delete() {
    let mut stage = fresh();
    let mut versions = vec![];
    for _ in 0..3 {
        versions.push(stage.op(put("k", "v")).version);
        let deleted = stage.op(delete("k"));
        assert!(deleted.existed);
        versions.push(deleted.version);
    }
    assert!(versions.windows(2).all(|pair| pair[0] < pair[1]), "{versions:?}");
    // A swap with the version of a value that was deleted and written again must fail.
    stage.op(put("k", "v"));
    let stale = stage.op(swap("k", Expect::Version(versions[0]), Some("w")));
    assert!(!stale.applied && stale.current.is_some_and(|current| current.version > versions[5]));
}

#[test]
fn deleting_what_is_not_there_writes_nothing_and_takes_no_version() {
    let mut stage = fresh();
    let first = stage.op(put("k", "v")).version;
    assert_eq!(stage.op(delete("other")), v1::WriteResult { applied: true, ..Default::default() });
    assert_eq!(stage.op(put("k", "w")).version, first + 1);
}

#[test]
fn a_swap_compares_value_version_or_absence() {
    let mut stage = fresh();
    assert!(!stage.op(swap("k", Expect::Value("v".into()), Some("w"))).applied);
    assert!(!stage.op(swap("k", Expect::Absent(false), Some("w"))).applied);
    let made = stage.op(swap("k", Expect::Absent(true), Some("v")));
    assert!(made.applied && !stage.op(swap("k", Expect::Absent(true), Some("w"))).applied);
    assert!(!stage.op(swap("k", Expect::Version(0), Some("w"))).applied, "version 0 is absence");
    assert!(stage.op(swap("k", Expect::Version(made.version), Some("w"))).applied);
    let refused = stage.op(swap("k", Expect::Value("v".into()), None));
    assert_eq!(refused.current.map(|current| current.value), Some("w".into()), "a refusal shows what is there");
    assert!(stage.op(swap("k", Expect::Value("w".into()), None)).applied);
    assert!(stage.op(swap("k", Expect::Version(0), Some("x"))).applied, "deleted: absent again");
}

#[test]
fn operations_of_one_pass_see_each_other() {
    let mut stage = fresh();
    let entries = (0..3)
        .map(|at| {
            let expect = if at == 0 { Expect::Absent(true) } else { Expect::Value((at - 1).to_string().into()) };
            let op = swap("k", expect, Some(&at.to_string()));
            stage.entry(command::encode(&command(vec![request(vec![op])])))
        })
        .collect();
    let done = stage.stage.apply(&stage.disk, Stage::task(entries), &mut |_, _| {}).expect("it can be applied");
    assert!(done[0].results.iter().all(|entry| entry.requests.as_ref().is_ok_and(|results| results[0][0].applied)));
}

#[test]
fn an_entry_whose_stamp_differs_from_its_place_is_skipped_by_all_alike() {
    let mut stage = fresh();
    let write = vec![request(vec![put("k", "v")])];
    for (wrong, refusal) in [
        (v1::Command { term: 5, ..command(write.clone()) }, ApplyRefusal::Stamp),
        (v1::Command { range_id: 3, ..command(write.clone()) }, ApplyRefusal::Stamp),
        (v1::Command { epoch_version: 2, ..command(write.clone()) }, ApplyRefusal::Epoch),
    ] {
        assert_eq!(stage.try_data(command::encode(&wrong)), Ok(Err(refusal)));
    }
    assert_eq!(stage.op(put("k", "v")).version, 1, "they took no version");
}

#[test]
fn an_unknown_command_version_stops_the_store() {
    let mut stage = fresh();
    let before = stage.disk.contents();
    let mut data = command::encode(&command(vec![request(vec![put("k", "v")])])).to_vec();
    data[4] = command::VERSION + 1;
    let crc = crc32fast::hash(&data[4..]);
    data[..4].copy_from_slice(&crc.to_be_bytes());
    let stopped = stage.try_data(data.into());
    assert!(matches!(stopped, Err(ApplyError::Command { index: 6, error: CommandError::UnknownVersion(4), .. })));
    assert_eq!(stage.disk.contents(), before, "nothing of the pass is written");
}

#[test]
fn a_change_of_members_that_is_not_understood_stops_the_store() {
    let mut stage = fresh();
    for kind in [EntryType::EntryConfChange, EntryType::EntryConfChangeV2] {
        let mut entry = stage.entry(Bytes::new());
        entry.set_entry_type(kind);
        entry.index = 6;
        let stopped = stage.stage.apply(&stage.disk, Stage::task(vec![entry]), &mut |_, _| {});
        assert!(matches!(stopped, Err(ApplyError::Command { error: CommandError::UnknownEntryType, .. })));
    }
}

#[test]
fn a_flipped_bit_in_an_entry_stops_the_store() {
    let data = command::encode(&command(vec![request(vec![put("k", "v")])]));
    for bit in 0..data.len() * 8 {
        let mut bad = data.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(fresh().try_data(bad.into()).is_err(), "bit {bit}");
    }
}

/// However entries are cut into passes, the outcome is one.
#[test]
fn the_outcome_does_not_depend_on_how_entries_come() {
    for seed in 0..50 {
        let mut draw = Rng::new(seed);
        let (mut whole, mut single) = (fresh(), fresh());
        let entries: Vec<Entry> = (0..100)
            .map(|_| {
                let key = ["a", "b", "c"][draw.below(3) as usize];
                let op = match draw.below(5) {
                    0 => put(key, "v"),
                    1 => delete(key),
                    2 => put_if_absent(key, "w"),
                    3 => swap(key, Expect::Value("v".into()), Some("x")),
                    _ => swap(key, Expect::Version(draw.below(60)), None),
                };
                let other = put(["d", "e"][draw.below(2) as usize], "z");
                let request = v1::WriteRequest { ops: vec![op, other], atomic: draw.below(2) == 0 };
                whole.entry(command::encode(&command(vec![request])))
            })
            .collect();
        let mut results = vec![];
        for entry in entries.clone() {
            let done =
                single.stage.apply(&single.disk, Stage::task(vec![entry]), &mut |_, _| {}).expect("it can be applied");
            results.extend(done.into_iter().flat_map(|done| done.results));
        }
        let done = whole.stage.apply(&whole.disk, Stage::task(entries), &mut |_, _| {}).expect("it can be applied");
        assert_eq!(done[0].results, results, "seed {seed}");
        assert_eq!(whole.disk.contents(), single.disk.contents(), "seed {seed}");
    }
}

#[test]
fn both_halves_of_a_split_go_on_from_the_time_and_the_bound_of_the_whole() {
    let mut stage = fresh();
    let timed = |version, range: u64, ms| v1::Command {
        range_id: range,
        epoch_version: version,
        range_time_ms: ms,
        ..command(vec![])
    };
    let ops = ["a", "z"].map(|key| put_ttl(key, "v", 1_000)).to_vec();
    let put = v1::Command { requests: vec![request(ops)], ..timed(1, RANGE.0, 5_000) };
    stage.try_data(command::encode(&put)).expect("it can be applied").expect("its stamp holds");
    let before = stage_index(&stage.disk);
    assert_eq!(before.len(), 2);
    let children = vec![v1::SplitChild { range_id: 9, start: "m".into() }];
    let split = Some(v1::command::Change::Split(v1::Split { children }));
    let entry = stage.entry(command::encode(&v1::Command { change: split, ..timed(1, RANGE.0, 0) }));
    let done = stage.stage.apply(&stage.disk, Stage::task(vec![entry]), &mut |_, _| {}).expect("it can be applied");
    let Ok(RangeChange::Split { children, .. }) = &done[0].changes[0].outcome else { panic!("{done:?}") };
    let child = children[0].applied;
    assert_eq!((child.range_time_ms, child.next_expiry_ms, child.last_ttl_index), (5_000, 6_000, 0));
    assert_eq!(stage_index(&stage.disk), before, "nothing is copied");
    // The child ends its key by its own log, and finds its index empty then.
    let expire = |ms| {
        let keys = vec![v1::ExpiringKey { key: "z".into(), version: 2 }];
        let expire = Some(v1::Expire { keys, next_expiry_ms: 0, seen_index: bootstrap::INITIAL_INDEX });
        command::encode(&v1::Command { expire, ..timed(2, 9, ms) })
    };
    let entries = [6_000, 6_001].map(expire).into_iter().zip(bootstrap::INITIAL_INDEX + 1..);
    let entries = entries.map(|(data, index)| Entry { index, term: 6, data, ..Default::default() });
    for (entry, bound) in entries.zip([6_000, 0]) {
        let work = ApplyWork::Entries(vec![entry]);
        let task = ApplyTask { range: flotilla_proto::RangeId(9), work };
        let done = stage.stage.apply(&stage.disk, vec![task], &mut |_, _| {}).expect("it can be applied");
        assert_eq!(done[0].expiry.next_expiry_ms, bound, "a key stays until its time is past");
    }
    assert_eq!(stage_index(&stage.disk), before[..1]);
}

/// A child that was removed from here before it began leaves nothing, neither of what was written long ago nor of what the pass that splits
/// has written just before.
#[test]
fn nothing_stays_of_a_child_that_was_removed_before() {
    let child = flotilla_proto::RangeId(9);
    let stages = [true, false].map(|together| {
        let mut stage = fresh();
        stage.op(put_ttl("z", "old", 1_000));
        let mut batch = stage.disk.batch();
        let tombstone = v1::Tombstone { replica_id: 1, ..Default::default() };
        let key = keys::range_record(child, RangeRecord::Tombstone);
        batch.put(Family::State, &key, &record::encode(&tombstone));
        stage.disk.write(batch).expect("the disk is well");
        let children = vec![v1::SplitChild { range_id: child.0, start: "m".into() }];
        let split = v1::Command { change: Some(v1::command::Change::Split(v1::Split { children })), ..command(vec![]) };
        let writes = [put("a", "1"), put("y", "2"), put_ttl("z", "3", 1_000), delete("z")];
        let commands = writes.map(|op| command(vec![request(vec![op])])).into_iter().chain([split]);
        let entries: Vec<Entry> = commands.map(|command| stage.entry(command::encode(&command))).collect();
        for entries in entries.chunks(if together { entries.len() } else { 1 }) {
            let task = Stage::task(entries.to_vec());
            stage.stage.apply(&stage.disk, task, &mut |_, _| {}).expect("it can be applied");
        }
        stage.disk.contents()
    });
    assert_eq!(stages[0], stages[1], "however entries are cut into passes");
    let left: Vec<Bytes> = stages[0].keys().filter_map(|(_, key)| keys::user_key(key)).collect();
    assert_eq!(left, ["a"]);
    assert!(!stages[0].keys().any(|(_, key)| keys::expiry_user_key(key).is_some()));
}

fn stage_index(disk: &MemDisk) -> Vec<Bytes> {
    disk.contents().into_keys().filter_map(|(_, key)| keys::expiry_user_key(&key)).collect()
}
