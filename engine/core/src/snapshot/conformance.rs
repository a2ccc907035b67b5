//! What snapshots need of a disk, tried on it: made in files, received, installed, with a crash after each step.
//!
//! Run by every implementation of the storage traits, like [`crate::storage::conformance`]: say
//! `flotilla_engine::snapshot_conformance!(ItsHarness);` in a test module.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_proto::{KeyspaceId, RangeId, v1};
use raft::eraftpb::Entry;

use super::install::resume_until;
use super::{Chunks, Limits, Receiver, SnapshotData, Step, install, make, make_staged, resume};
use crate::keys::{self, RangeRecord};
use crate::merges;
use crate::record;
use crate::storage::conformance::{Dice, Harness};
use crate::storage::{Direction, Family, Read, Staging, Storage, WriteBatch};
use crate::store::{Destroy, LogItem};

/// Makes a test of each case of the suite for a [`Harness`].
#[macro_export]
macro_rules! snapshot_conformance {
    ($harness:ty) => {
        $crate::storage_conformance!(@cases $harness, $crate::snapshot::conformance:
            a_large_snapshot_arrives_as_it_was_made,
            a_small_snapshot_needs_no_file,
            transfers_that_break_off_leave_no_files,
            chunks_that_are_not_what_they_say_are_refused,
            an_installation_replaces_all_that_the_replica_had,
            a_crash_after_any_step_leaves_the_old_state_or_the_new_one,
            a_crash_while_a_restart_resumes_is_resumed_in_turn,
            a_damaged_file_stops_a_start_that_needs_it,
        );
    };
}

const RANGE: RangeId = RangeId(7);
const NEIGHBOUR: RangeId = RangeId(8);
/// Merged into [`RANGE`]: the receiver does not know yet.
const MERGED: RangeId = RangeId(9);
const KEYSPACE: KeyspaceId = KeyspaceId(1);
const SMALL: Limits = Limits { batch_bytes_max: 0, file_bytes: 3_000 };
type Dump = Vec<(Family, Vec<u8>, Vec<u8>)>;

fn descriptor(range: RangeId, version: u64, start: &'static [u8], end: &'static [u8]) -> v1::RangeDescriptor {
    let replica = v1::ReplicaDescriptor { replica_id: 1, node_id: 1, ..Default::default() };
    v1::RangeDescriptor {
        range_id: range.0,
        keyspace_id: KEYSPACE.0,
        start: start.into(),
        end: end.into(),
        epoch: Some(v1::Epoch { conf_ver: 1, version }),
        replicas: vec![replica],
        ..Default::default()
    }
}

/// A replica as it stands on disk: `keys` in its span, entries up to `index`.
fn write_replica<S: Storage>(store: &S, of: &v1::RangeDescriptor, index: u64, keys: &[Vec<u8>], value: &[u8]) {
    let range = RangeId(of.range_id);
    let applied = v1::AppliedState { index, term: 5, checksum: index as u32, ..Default::default() };
    let raft = v1::RaftState { term: 5, commit: index, truncated_index: index - 3, truncated_term: 5, vote: 0 };
    let mut batch = store.batch();
    batch.put(Family::State, &keys::range_record(range, RangeRecord::Descriptor), &record::encode(of));
    batch.put(Family::State, &keys::range_record(range, RangeRecord::Applied), &record::encode(&applied));
    batch.put(Family::Log, &keys::raft_state(range), &record::encode(&raft));
    for index in index - 2..=index {
        let entry = Entry { index, term: 5, ..Default::default() };
        batch.put(Family::Log, &keys::log_entry(range, index), &record::encode_entry(&entry));
    }
    keys.iter().for_each(|key| batch.put(Family::State, &keys::data(KEYSPACE, key), value));
    store.write(batch).expect("a sound store takes writes");
}

fn go_on(_: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn user_keys(prefix: &str, count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|n| format!("{prefix}{n:05}").into_bytes()).collect()
}

fn merged() -> v1::RangeDescriptor {
    descriptor(MERGED, 2, b"s", b"")
}

/// The receiver: a replica of the range from before a merge and a split, with its neighbours' beside it.
fn receiver<S: Storage>(store: &S) {
    write_replica(store, &descriptor(NEIGHBOUR, 1, b"", b"b"), 40, &user_keys("a", 50), b"neighbour");
    let mut held = user_keys("b", 40);
    held.extend(user_keys("n", 40));
    write_replica(store, &descriptor(RANGE, 3, b"b", b"s"), 60, &held, b"old");
    write_replica(store, &merged(), 30, &user_keys("x", 40), b"merged");
    let frozen = Some(v1::Frozen { index: 30, term: 5, target_range_id: RANGE.0, ..Default::default() });
    let mut batch = store.batch();
    merges::put(&mut batch, MERGED, Some(&v1::MergeState { frozen, absorbed: Vec::new() }));
    store.write(batch).expect("a sound store takes writes");
    store.sync().expect("a sound store syncs");
}

/// The sender: the range after the merge and the split, later.
fn sender<S: Storage>(store: &S) {
    write_replica(store, &descriptor(RANGE, 5, b"b", b"m"), 90, &user_keys("c", 300), &[9; 60]);
    let mut batch = store.batch();
    merges::put(&mut batch, RANGE, Some(&v1::MergeState { frozen: None, absorbed: vec![MERGED.0] }));
    store.write(batch).expect("a sound store takes writes");
}

/// Takes a snapshot in, chunk by chunk.
fn receive<S: Staging>(store: &S, data: &SnapshotData, limits: Limits) -> SnapshotData {
    let mut receiver = Receiver::new(limits, data.header.clone()).expect("it has a header");
    for at in 0..data.chunks.count() {
        receiver.push(store, data.chunks.read(at).expect("it can be read")).expect("it is sound");
    }
    receiver.finish(store).expect("it is whole")
}

fn snapshot_in_files<H: Harness>(limits: Limits) -> (H, Arc<H::Store>, SnapshotData, SnapshotData) {
    let mut from = H::fresh();
    let source = from.open();
    sender(&*source);
    let made = make(&*source, RANGE).expect("it can be made");
    let in_file = make_staged(&*source, RANGE, 0, go_on).expect("it can be made");
    assert!(matches!(in_file.chunks, Chunks::File(_)));
    let mut to = H::fresh();
    let store = to.open();
    receiver(&*store);
    let received = receive(&*store, &in_file, limits);
    drop(in_file);
    assert_eq!(source.staged().expect("it can be listed"), [""; 0], "the sender's file has gone");
    from.close(source);
    (to, store, made, received)
}

/// The receiver's order to install what it received, with one entry behind it.
fn order(received: SnapshotData) -> LogItem {
    let raft = v1::RaftState { term: 6, vote: 2, commit: 91, truncated_index: 90, truncated_term: 5 };
    LogItem {
        snapshot: Some(received),
        replaces: Some(Arc::new(descriptor(RANGE, 3, b"b", b"s"))),
        ends: vec![Destroy { descriptor: Arc::new(merged()), tombstone: merges::tombstone(RANGE), keeps_data: false }],
        raft_state: Some(raft),
        remove: vec![(58, 61)],
        entries: vec![Entry { index: 91, term: 6, ..Default::default() }],
        ..LogItem::new(RANGE)
    }
}

fn dump<S: Storage>(store: &S) -> Dump {
    let mut all = Dump::new();
    for family in [Family::Log, Family::State] {
        store
            .scan(family, b"", &[0xFF; 9], Direction::Forward, &mut |key, value| {
                all.push((family, key.to_vec(), value.to_vec()));
                ControlFlow::Continue(())
            })
            .expect("a scan of a sound store works");
    }
    all
}

/// What the receiver is to hold in the end; a restart knows nothing of entries behind the snapshot.
fn expected<H: Harness>(made: &SnapshotData, restarted: bool) -> Dump {
    let mut harness = H::fresh();
    let fresh = harness.open();
    receiver(&*fresh);
    let item = order(made.clone());
    let (raft, entries) = (item.raft_state.map(|raft| v1::RaftState { commit: 90, ..raft }), Vec::new());
    let item = if restarted { LogItem { raft_state: raft, entries, ..item } } else { item };
    let mut batch = fresh.batch();
    crate::log_writer::fill(&mut batch, &crate::store::LogBatch { sequence: 1, items: vec![item] }).expect("sound");
    fresh.write(batch).expect("it takes writes");
    let all = dump(&*fresh);
    harness.close(fresh);
    all
}

/// Through a file, chunks and table files, and installed: what the range is at the sender, it is here.
pub fn a_large_snapshot_arrives_as_it_was_made<H: Harness>() {
    let (mut harness, store, made, received) = snapshot_in_files::<H>(SMALL);
    let Chunks::Tables(tables) = &received.chunks else { panic!("it is large") };
    assert!(tables.files().len() > 3, "cut into files: {:?}", tables.files());
    assert_eq!(received.header, made.header);
    assert_eq!(install(&*store, &order(received), |_| ControlFlow::Continue(())), Ok(ControlFlow::Continue(())));
    assert_eq!(make(&*store, RANGE).expect("it can be made"), made);
    harness.close(store);
}

/// Below the limit all stays in memory.
pub fn a_small_snapshot_needs_no_file<H: Harness>() {
    let mut harness = H::fresh();
    let store = harness.open();
    sender(&*store);
    let made = make(&*store, RANGE).expect("it can be made");
    assert_eq!(make_staged(&*store, RANGE, 1 << 20, go_on).expect("it can be made"), made);
    assert_eq!(receive(&*store, &made, Limits { batch_bytes_max: 1 << 20, ..SMALL }), made);
    assert_eq!(store.staged().expect("it can be listed"), [""; 0]);
    harness.close(store);
}

/// tikv#10930: neither what was received in part, nor what was received and not wanted, nor what was made and not sent.
pub fn transfers_that_break_off_leave_no_files<H: Harness>() {
    let mut harness = H::fresh();
    let store = harness.open();
    sender(&*store);
    let made = make_staged(&*store, RANGE, 0, go_on).expect("it can be made");
    assert_eq!(store.staged().expect("it can be listed").len(), 1);
    let mut begun = Receiver::new(SMALL, made.header.clone()).expect("it has a header");
    begun.push(&*store, made.chunks.read(0).expect("it can be read")).expect("it is sound");
    assert!(store.staged().expect("it can be listed").len() > 2);
    drop(begun);
    assert_eq!(store.staged().expect("it can be listed").len(), 1);
    let whole = receive(&*store, &made, SMALL);
    assert!(store.staged().expect("it can be listed").len() > 2);
    drop((whole, made));
    assert_eq!(store.staged().expect("it can be listed"), [""; 0]);
    let given_up = make_staged(&*store, RANGE, 0, |_| ControlFlow::Break(()));
    assert!(given_up.is_err_and(|error| error.to_string().contains("told to stop")));
    assert_eq!(store.staged().expect("it can be listed"), [""; 0]);
    // What a crash leaves goes at the next start.
    let made = make_staged(&*store, RANGE, 0, go_on).expect("it can be made");
    let whole = receive(&*store, &made, SMALL);
    harness.crash(store, 3);
    let store = harness.open();
    drop((whole, made));
    assert!(resume(&*store).expect("nothing is to be resumed").finished.is_empty());
    assert_eq!(store.staged().expect("it can be listed"), [""; 0]);
    harness.close(store);
}

/// Damage, wrong order, foreign keys and wrong counts are noticed before anything is made of them.
pub fn chunks_that_are_not_what_they_say_are_refused<H: Harness>() {
    let mut harness = H::fresh();
    let store = harness.open();
    sender(&*store);
    let made = make(&*store, RANGE).expect("it can be made");
    let chunk = made.chunks.read(0).expect("in memory");
    let begin = |header: &v1::SnapshotHeader| Receiver::new(SMALL, header.clone()).expect("it has a header");
    for at in 0..40 {
        let mut bad = chunk.to_vec();
        let at = at * (bad.len() - 1) / 39;
        bad[at] ^= 0x20;
        assert!(begin(&made.header).push(&*store, Bytes::from(bad)).is_err(), "byte {at}");
    }
    let mut twice = begin(&made.header);
    twice.push(&*store, chunk.clone()).expect("the first time");
    assert!(twice.push(&*store, chunk.clone()).is_err(), "keys must ascend");
    drop(twice);
    let narrow = v1::SnapshotHeader { descriptor: Some(descriptor(RANGE, 4, b"b", b"c00010")), ..made.header.clone() };
    assert!(begin(&narrow).push(&*store, chunk.clone()).is_err(), "keys behind the range's end");
    for records in [made.header.records - 1, made.header.records + 1] {
        let mut miscounted = begin(&v1::SnapshotHeader { records, ..made.header.clone() });
        miscounted.push(&*store, chunk.clone()).expect("it is sound");
        assert!(miscounted.finish(&*store).is_err());
    }
    assert_eq!(store.staged().expect("it can be listed"), [""; 0], "refused chunks leave nothing");
    harness.close(store);
}

/// tikv#17258: old data, inside and outside of the new span, old log and old state are gone, and so is the replica of a range
/// that was merged; the neighbour is untouched.
pub fn an_installation_replaces_all_that_the_replica_had<H: Harness>() {
    let (mut harness, store, made, received) = snapshot_in_files::<H>(SMALL);
    let mut steps = Vec::new();
    let item = order(received);
    let done = install(&*store, &item, |step| {
        steps.push(step);
        ControlFlow::Continue(())
    });
    assert_eq!(done, Ok(ControlFlow::Continue(())));
    assert_eq!(steps, Step::ALL);
    let all = dump(&*store);
    assert_eq!(all, expected::<H>(&made, false));
    let of_merged = all.iter().filter(|(family, key, value)| {
        let records = match family {
            Family::State => keys::range_record_parts(key).is_some_and(|(range, _)| range == MERGED),
            _ => key[1..9] == MERGED.0.to_be_bytes(),
        };
        records || value == b"merged"
    });
    let left: Vec<&[u8]> = of_merged.map(|(_, key, _)| &key[..]).collect();
    assert_eq!(left, [&keys::range_record(MERGED, RangeRecord::Tombstone)[..]]);
    drop(item);
    assert_eq!(store.staged().expect("it can be listed"), [""; 0]);
    // A later write in the span is not undone by a crash.
    let mut batch = store.batch();
    batch.put(Family::State, &keys::data(KEYSPACE, b"c00001"), b"later");
    store.write(batch).expect("a sound store takes writes");
    store.sync().expect("a sound store syncs");
    harness.crash(store, 5);
    let store = harness.open();
    assert!(resume(&*store).expect("nothing is to be resumed").finished.is_empty());
    let kept = store.get(Family::State, &keys::data(KEYSPACE, b"c00001")).expect("it can be read");
    assert_eq!(kept.as_deref(), Some(&b"later"[..]));
    harness.close(store);
}

/// tikv#6366, #7027, #9108, cockroach#36611: the old state before the intent is durable, the new one from then on; nothing between.
pub fn a_crash_after_any_step_leaves_the_old_state_or_the_new_one<H: Harness>() {
    for (seed, last) in (0..3).flat_map(|seed| Step::ALL.map(|step| (seed, step))) {
        let (mut harness, store, made, received) = snapshot_in_files::<H>(SMALL);
        let before = dump(&*store);
        let item = order(received);
        let at = |step| if step == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        assert_eq!(install(&*store, &item, at), Ok(ControlFlow::Break(())));
        harness.crash(store, seed);
        drop(item);
        let store = harness.open();
        let resumed = resume(&*store).expect("it can be resumed");
        let hint = format!("seed {seed}, crashed after {last:?}");
        match last {
            Step::Staged => assert!(dump(&*store) == before && resumed.finished.is_empty(), "{hint}"),
            Step::Finished => assert!(dump(&*store) == expected::<H>(&made, false), "{hint}"),
            _ => {
                assert_eq!(resumed.finished, [RANGE], "{hint}");
                assert!(dump(&*store) == expected::<H>(&made, true), "{hint}");
            }
        }
        assert_eq!(store.staged().expect("it can be listed"), [""; 0], "{hint}");
        harness.close(store);
    }
}

/// Crash upon crash, at every step of the one that resumes what the first interrupted.
pub fn a_crash_while_a_restart_resumes_is_resumed_in_turn<H: Harness>() {
    let later = [Step::SpansDeleted, Step::Ingested];
    for (seed, (first, second)) in
        (0..).zip(later.iter().flat_map(|first| later.iter().map(move |second| (first, second))))
    {
        let (mut harness, store, made, received) = snapshot_in_files::<H>(SMALL);
        let item = order(received);
        let upto =
            |last: Step| move |step| if step == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        assert_eq!(install(&*store, &item, upto(*first)), Ok(ControlFlow::Break(())));
        harness.crash(store, seed);
        drop(item);
        let store = harness.open();
        assert_eq!(resume_until(&*store, &mut upto(*second)), Ok(None));
        harness.crash(store, Dice(seed).roll());
        let store = harness.open();
        assert_eq!(resume(&*store).expect("it can be resumed").finished, [RANGE]);
        assert!(dump(&*store) == expected::<H>(&made, true), "{first:?}, then {second:?}");
        harness.close(store);
    }
}

/// tikv#15044, #15292: a replica between two states whose files are gone must not start.
pub fn a_damaged_file_stops_a_start_that_needs_it<H: Harness>() {
    let (mut harness, store, _, received) = snapshot_in_files::<H>(SMALL);
    let Chunks::Tables(tables) = received.chunks.clone() else { panic!("it is large") };
    let at = |step| if step == Step::SpansDeleted { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    assert_eq!(install(&*store, &order(received), at), Ok(ControlFlow::Break(())));
    store.area().remove(&tables.files()[1].name);
    let error = resume(&*store).expect_err("a file is gone").to_string();
    assert!(error.contains("range r7") && error.contains("new node id"), "{error}");
    harness.close(store);
}
