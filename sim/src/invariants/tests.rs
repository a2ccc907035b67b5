//! Events known to be bad: each must be noticed, by the invariant that it breaks, where its sound sibling passes.

use std::sync::Arc;

use flotilla_engine::apply::{
    Applied, ChangeApplied, Child, EntryResults, ExpiryApplied, RangeChange, initial_applied,
};
use flotilla_engine::bootstrap::{self, INITIAL_INDEX, INITIAL_TERM};
use flotilla_engine::recover;
use flotilla_engine::store::{Destroy, RangeClock};
use flotilla_engine::time::BootTime;
use flotilla_proto::NodeId;

use super::*;
use crate::disk::SimDisk;

const RANGE: RangeId = RangeId(2);
const FIRST: u64 = INITIAL_INDEX + 1;
const TERM: u64 = INITIAL_TERM + 1;
const ALL_REPLICAS: u64 = u64::MAX >> 1;

/// Three nodes that have started, with one range in the default keyspace.
struct Watched {
    invariants: Invariants,
    boots: Vec<Boot>,
}

fn watched() -> Watched {
    let nodes: Vec<(NodeId, String)> = (1..=3).map(|node| (NodeId(node), format!("sim:{node}"))).collect();
    let layout = flotilla_placement::layout("sim", &nodes, 1, 3).expect("three nodes hold three replicas");
    let mut invariants = Invariants::new(3, &layout, false);
    let boots: Vec<Boot> = (0..3)
        .map(|index| {
            let disk = SimDisk::new();
            bootstrap::write(&disk, NodeId(index + 1), index + 1, &layout).expect("a new disk takes its first records");
            recover::load(&disk).expect("what was written is read").expect("it was written")
        })
        .collect();
    for (node, boot) in boots.iter().enumerate() {
        assert_eq!(invariants.recovered(node, boot), Ok(()));
    }
    Watched { invariants, boots }
}

#[track_caller]
fn noticed<T: std::fmt::Debug>(by: &str, verdict: Result<T, String>) {
    assert!(verdict.as_ref().is_err_and(|what| what.starts_with(by)), "{by}: {verdict:?}");
}

fn entry(index: u64, term: u64, data: &'static [u8]) -> Entry {
    Entry { index, term, data: data.into(), ..Default::default() }
}

fn puts(index: u64, key: &'static str) -> Entry {
    let put = v1::Put { key: key.into(), ..Default::default() };
    let op = v1::WriteOp { op: Some(v1::write_op::Op::Put(put)) };
    let requests = vec![v1::WriteRequest { ops: vec![op], atomic: false }];
    let command = v1::Command { range_id: RANGE.0, term: TERM, requests, ..Default::default() };
    Entry { index, term: TERM, data: command::encode(&command), ..Default::default() }
}

/// What the apply stage says of one entry that wrote one key.
fn wrote(index: u64, version: u64) -> Applied {
    let result = v1::WriteResult { applied: true, version, ..Default::default() };
    let results = EntryResults { index, term: TERM, requests: Ok(vec![vec![result]]) };
    Applied { results: vec![results], ..applied(index) }
}

fn applied(index: u64) -> Applied {
    Applied {
        range: RANGE,
        index,
        term: TERM,
        checksum: 7,
        results: Vec::new(),
        changes: Vec::new(),
        expiry: ExpiryApplied::default(),
        bytes: 0,
    }
}

fn changed(index: u64, change: RangeChange) -> Applied {
    let change = ChangeApplied { index, term: TERM, outcome: Ok(change) };
    Applied { changes: vec![change], ..applied(index) }
}

fn message(kind: MessageType, from: u64, message: v1::PeerMessage) -> Envelope {
    let message = v1::PeerMessage { range_id: RANGE.0, message_type: kind as u32, ..message };
    Envelope { from: NodeId(from), to: NodeId(from % 3 + 1), message, disk_full: false, snapshot: None }
}

fn halves_of(before: v1::RangeDescriptor, at: &'static str, child: u64) -> (v1::RangeDescriptor, v1::RangeDescriptor) {
    let epoch = before.epoch.map(|epoch| v1::Epoch { version: epoch.version + 1, ..epoch });
    let left = v1::RangeDescriptor { end: at.into(), epoch, ..before.clone() };
    let right = v1::RangeDescriptor { range_id: child, start: at.into(), epoch, ..before };
    (left, right)
}

impl Watched {
    fn descriptor(&self) -> v1::RangeDescriptor {
        (**self.invariants.territory.newest(RANGE).expect("it is in the layout")).clone()
    }

    fn replica(&self, node: u64) -> u64 {
        replica_on(&self.descriptor(), node as usize - 1).expect("each node has one")
    }

    fn write(&mut self, node: usize, item: LogItem) -> Result<u64, String> {
        let batch = LogBatch { sequence: 1, items: vec![item] };
        let verdict = self.invariants.log_batch(node, &batch)?;
        self.invariants.territory.written(node, &batch)?;
        self.invariants.persisted(node, &[batch], BTreeMap::new());
        Ok(verdict)
    }

    fn append(&mut self, node: usize, entries: Vec<Entry>) -> Result<u64, String> {
        self.write(node, LogItem { entries, ..LogItem::new(RANGE) })
    }

    fn commit_everywhere(&mut self, entry: &Entry) {
        for node in 0..3 {
            self.append(node, vec![entry.clone()]).expect("equal everywhere");
        }
        assert_eq!(self.invariants.committed(0, RANGE, std::slice::from_ref(entry)), Ok(()));
    }

    fn votes_durably(&mut self, node: u64, term: u64, vote: u64) {
        let state = v1::RaftState {
            term,
            vote,
            truncated_index: INITIAL_INDEX,
            truncated_term: INITIAL_TERM,
            ..Default::default()
        };
        let item = LogItem { raft_state: Some(state), ..LogItem::new(RANGE) };
        self.write(node as usize - 1, item).expect("a vote is no entry");
    }

    fn grants(&mut self, from: u64, to_replica: u64, term: u64) -> Check {
        let (from_replica, term) = (self.replica(from), term);
        let grant = v1::PeerMessage { from_replica, to_replica, term, ..Default::default() };
        self.invariants.message(&message(MessageType::MsgRequestVoteResponse, from, grant))
    }

    /// The range and what is split off it.
    fn halves(&self, at: &'static str, child: u64) -> (v1::RangeDescriptor, v1::RangeDescriptor) {
        halves_of(self.descriptor(), at, child)
    }

    fn splits(&mut self, node: usize, index: u64, (left, right): (v1::RangeDescriptor, v1::RangeDescriptor)) -> Check {
        let range = RangeId(left.range_id);
        let child = Child { descriptor: Arc::new(right), applied: initial_applied(), born: true };
        let split = RangeChange::Split { descriptor: Arc::new(left), children: vec![child] };
        self.invariants.applied(node, &Applied { range, ..changed(index, split) })
    }

    fn view(&self, node: u64, term: u64, lease_until: u64) -> Arc<ReadView> {
        Arc::new(ReadView {
            own_node: NodeId(node),
            descriptor: Arc::new(self.descriptor()),
            siblings: Arc::default(),
            term,
            leader: Some(NodeId(node)),
            serves: true,
            asleep: false,
            lease_until: BootTime(lease_until),
            clock: RangeClock { ms: 0, at: BootTime(u64::MAX) },
            incarnation: 1,
            tally: None,
            frozen: false,
        })
    }

    fn freezes(&mut self, node: usize, index: u64) -> Check {
        let before = self.descriptor();
        let epoch = before.epoch.map(|epoch| v1::Epoch { version: epoch.version + 1, ..epoch });
        let descriptor = Arc::new(v1::RangeDescriptor { epoch, ..before });
        let frozen = v1::Frozen { index, term: TERM, target_range_id: 9, ..Default::default() };
        self.invariants.applied(node, &changed(index, RangeChange::Frozen { descriptor, frozen }))
    }
}

#[test]
fn i1_two_leaders_of_a_term() {
    let invariants = &mut watched().invariants;
    assert_eq!(invariants.became_leader(0, RANGE, TERM), Ok(()));
    assert_eq!(invariants.became_leader(1, RANGE, TERM + 1), Ok(()));
    noticed("I1", invariants.became_leader(1, RANGE, TERM));
}

#[test]
fn i1_two_votes_in_a_term() {
    let mut watched = watched();
    let (second, third) = (watched.replica(2), watched.replica(3));
    watched.votes_durably(1, TERM, second);
    assert_eq!(watched.grants(1, second, TERM), Ok(()));
    watched.votes_durably(1, TERM, third);
    noticed("I1", watched.grants(1, third, TERM));
}

#[test]
fn i2_two_entries_of_one_index_and_term() {
    let mut watched = watched();
    assert_eq!(watched.append(0, vec![entry(FIRST, TERM, b"a")]), Ok(0));
    assert_eq!(watched.append(1, vec![entry(FIRST, TERM, b"a")]), Ok(0));
    noticed("I2", watched.append(2, vec![entry(FIRST, TERM, b"b")]));
}

#[test]
fn i2_an_entry_behind_different_ones() {
    let mut watched = watched();
    let next = || entry(FIRST + 1, TERM + 1, b"b");
    assert_eq!(watched.append(0, vec![entry(FIRST, TERM, b"a"), next()]), Ok(0));
    noticed("I2", watched.append(1, vec![entry(FIRST, TERM + 1, b"a"), next()]));
}

#[test]
fn i2_what_is_committed_changes() {
    let mut watched = watched();
    watched.commit_everywhere(&entry(FIRST, TERM, b"a"));
    assert_eq!(watched.invariants.committed(1, RANGE, &[entry(FIRST, TERM, b"a")]), Ok(()));
    noticed("I2", watched.invariants.committed(2, RANGE, &[entry(FIRST, TERM + 1, b"b")]));
}

#[test]
fn i3_an_entry_is_committed_with_a_minority() {
    let mut watched = watched();
    let entry = entry(FIRST, TERM, b"a");
    watched.append(0, vec![entry.clone()]).expect("the first");
    noticed("I3", watched.invariants.committed(0, RANGE, std::slice::from_ref(&entry)));
    let mut watched = self::watched();
    for node in 0..2 {
        watched.append(node, vec![entry.clone()]).expect("equal on both");
    }
    assert_eq!(watched.invariants.committed(0, RANGE, &[entry]), Ok(()));
}

/// A dropped keyspace's replicas end one by one, each as its node hears of it: a leader that syncs slowly commits by what
/// one of them had acknowledged while it was there (seed 2517). Of any other replica that ends, nothing counts.
#[test]
fn i3_a_replica_ends_after_it_has_acknowledged() {
    let commits = |upto: u64, had_it: bool, restarts: bool| {
        let mut watched = watched();
        let entry = entry(FIRST, TERM, b"a");
        if had_it {
            watched.append(1, vec![entry.clone()]).expect("the first");
        }
        let tombstone = v1::Tombstone { replica_id: upto, ..Default::default() };
        if restarts {
            let mut boot = watched.boots[1].clone();
            boot.ranges.retain(|of| of.descriptor.range_id != RANGE.0);
            boot.tombstones.insert(RANGE, tombstone);
            assert_eq!(watched.invariants.recovered(1, &boot), Ok(()));
        } else {
            let destroy = Destroy { descriptor: Arc::new(watched.descriptor()), tombstone, keeps_data: false };
            watched.write(1, LogItem { destroy: Some(destroy), ..LogItem::new(RANGE) }).expect("it goes");
        }
        watched.append(0, vec![entry.clone()]).expect("equal on both");
        watched.invariants.committed(0, RANGE, &[entry])
    };
    for restarts in [false, true] {
        assert_eq!(commits(ALL_REPLICAS, true, restarts), Ok(()));
        noticed("I3", commits(ALL_REPLICAS, false, restarts));
        noticed("I3", commits(watched().replica(2), true, restarts));
    }
}

#[test]
fn i3_an_acknowledgement_of_what_is_not_durable() {
    let mut watched = watched();
    let from_replica = watched.replica(1);
    let acknowledged = v1::PeerMessage { from_replica, term: TERM, index: FIRST, ..Default::default() };
    let envelope = message(MessageType::MsgAppendResponse, 1, acknowledged);
    noticed("I3", watched.invariants.message(&envelope));
    watched.append(0, vec![entry(FIRST, TERM, b"a")]).expect("the first");
    assert_eq!(watched.invariants.message(&envelope), Ok(()));
}

#[test]
fn i3_a_range_without_a_voter() {
    let mut watched = watched();
    let before = Arc::new(watched.descriptor());
    let mut after = (*before).clone();
    after.epoch = after.epoch.map(|epoch| v1::Epoch { conf_ver: epoch.conf_ver + 1, ..epoch });
    after.replicas.iter_mut().for_each(|of| of.set_role(v1::ReplicaRole::Learner));
    let change = RangeChange::Replicas { before, descriptor: Arc::new(after), removed: false };
    noticed("I3", watched.invariants.applied(0, &changed(FIRST, change)));
}

#[test]
fn i4_another_checksum_or_other_results_at_the_same_index() {
    let mut watched = watched();
    assert_eq!(watched.invariants.applied(0, &wrote(FIRST, 3)), Ok(()));
    assert_eq!(watched.invariants.applied(1, &wrote(FIRST, 3)), Ok(()));
    noticed("I4", watched.invariants.applied(2, &Applied { checksum: 8, ..wrote(FIRST, 3) }));
    noticed("I4", watched.invariants.applied(2, &wrote(FIRST, 4)));
    assert_eq!(watched.invariants.checkpoint(0, RANGE, FIRST, (3, 9)), Ok(false));
    assert_eq!(watched.invariants.checkpoint(1, RANGE, FIRST, (3, 9)), Ok(true));
    noticed("I4", watched.invariants.checkpoint(2, RANGE, FIRST, (2, 9)));
}

#[test]
fn i5_a_split_that_loses_keys_or_differs_or_takes_an_id_again() {
    let mut watched = watched();
    let (left, right) = watched.halves("m", 7);
    let gap = v1::RangeDescriptor { start: "n".into(), ..right.clone() };
    noticed("I5", watched.splits(0, FIRST, (left.clone(), gap)));
    assert_eq!(watched.splits(0, FIRST, (left.clone(), right.clone())), Ok(()));
    assert_eq!(watched.splits(1, FIRST, (left, right)), Ok(()));
    let elsewhere = self::watched().halves("k", 7);
    noticed("I5", watched.splits(2, FIRST, elsewhere));
    let again = watched.halves("c", 7);
    noticed("I5", watched.splits(0, FIRST + 1, again));
}

#[test]
fn i5_a_split_that_only_the_lost_had_applied_is_still_to_come() {
    let mut watched = watched();
    let halves = watched.halves("m", 7);
    assert_eq!(watched.splits(0, FIRST, halves.clone()), Ok(()));
    watched.invariants.territory.lose(&[0]);
    assert_eq!(watched.invariants.territory.settled(|_| false), [], "the others have it in their logs");
    assert_eq!(watched.splits(1, FIRST, halves.clone()), Ok(()));
    assert_eq!(watched.splits(2, FIRST, halves), Ok(()));
}

#[test]
fn i5_what_is_split_off_a_child_is_to_come_as_the_child_is() {
    let mut watched = watched();
    let (left, right) = watched.halves("m", 7);
    for node in 0..2 {
        assert_eq!(watched.splits(node, FIRST, (left.clone(), right.clone())), Ok(()));
    }
    let halves = halves_of(right, "t", 8);
    assert_eq!(watched.splits(0, FIRST, halves), Ok(()));
    watched.invariants.territory.lose(&[0]);
    assert_eq!(watched.invariants.territory.settled(|_| false), []);
}

#[test]
fn i5_a_child_that_only_the_lost_still_had_is_gone() {
    let mut watched = watched();
    let halves = watched.halves("m", 7);
    for node in 0..2 {
        assert_eq!(watched.splits(node, FIRST, halves.clone()), Ok(()));
    }
    // It went on to other nodes, and the third has not come to the split yet.
    let tombstone = v1::Tombstone { replica_id: ALL_REPLICAS, ..Default::default() };
    let destroy = Destroy { descriptor: Arc::new(halves.1), tombstone, keeps_data: false };
    watched.write(1, LogItem { destroy: Some(destroy), ..LogItem::new(RangeId(7)) }).expect("it goes");
    watched.invariants.territory.lose(&[0]);
    assert_eq!(watched.invariants.territory.settled(|_| false), [RangeId(7)]);
}

#[test]
fn i5_a_child_of_a_range_that_began_again_is_gone() {
    let mut watched = watched();
    let before = watched.descriptor();
    let tombstone = v1::Tombstone { replica_id: watched.replica(3), ..Default::default() };
    let destroy = Destroy { descriptor: Arc::new(before.clone()), tombstone, keeps_data: false };
    watched.write(2, LogItem { destroy: Some(destroy), ..LogItem::new(RANGE) }).expect("it has left the range");
    let halves = watched.halves("m", 7);
    for node in 0..2 {
        assert_eq!(watched.splits(node, FIRST, halves.clone()), Ok(()));
    }
    watched.invariants.territory.lose(&[0, 1]);
    // Of the split nobody who lives has heard: the range begins again with all that it held before.
    watched.invariants.forget(RANGE);
    let own = v1::ReplicaDescriptor { replica_id: before.next_replica_id, node_id: 3, ..Default::default() };
    let again =
        v1::RangeDescriptor { replicas: vec![own], next_replica_id: before.next_replica_id + 1, ..before.clone() };
    watched.write(2, LogItem { begins: Some(Arc::new(again)), ..LogItem::new(RANGE) }).expect("it begins again");
    assert_eq!(watched.invariants.territory.settled(|_| false), [RangeId(7)]);
}

#[test]
fn i5_two_ranges_with_the_same_keys_on_one_store() {
    let mut watched = watched();
    let (_, right) = watched.halves("m", 7);
    let begins = LogItem { begins: Some(Arc::new(right)), ..LogItem::new(RangeId(7)) };
    noticed("I5", watched.write(0, begins));
}

#[test]
fn i5_leaders_that_leave_a_gap() {
    let (left, right) = watched().halves("m", 7);
    assert_eq!(Territory::check_tiles([&left, &right].into_iter()), Ok(()));
    let late = v1::RangeDescriptor { start: "n".into(), ..right };
    noticed("I5", Territory::check_tiles([&left, &late].into_iter()));
    noticed("I5", Territory::check_tiles(std::iter::once(&left)));
}

#[test]
fn i5_a_replica_comes_back_that_was_gone() {
    let mut watched = watched();
    let descriptor = Arc::new(watched.descriptor());
    let tombstone = v1::Tombstone { replica_id: watched.replica(1), ..Default::default() };
    let destroy = Destroy { descriptor: descriptor.clone(), tombstone, keeps_data: false };
    watched.write(0, LogItem { destroy: Some(destroy), ..LogItem::new(RANGE) }).expect("it goes");
    noticed("I5", watched.write(0, LogItem { begins: Some(descriptor), ..LogItem::new(RANGE) }));
}

#[test]
fn i5_an_id_of_a_replica_is_used_twice() {
    let mut watched = watched();
    let before = Arc::new(watched.descriptor());
    let mut after = (*before).clone();
    after.epoch = after.epoch.map(|epoch| v1::Epoch { conf_ver: epoch.conf_ver + 1, ..epoch });
    after.replicas[2].node_id = 4;
    let change = RangeChange::Replicas { before, descriptor: Arc::new(after), removed: false };
    noticed("I5", watched.invariants.applied(0, &changed(FIRST, change)));
}

#[test]
fn i6_a_write_outside_of_the_range() {
    let mut watched = watched();
    let halves = watched.halves("m", 7);
    watched.commit_everywhere(&entry(FIRST, TERM, b""));
    assert_eq!(watched.splits(0, FIRST, halves), Ok(()));
    watched.commit_everywhere(&puts(FIRST + 1, "a"));
    assert_eq!(watched.invariants.applied(0, &wrote(FIRST + 1, 3)), Ok(()));
    watched.commit_everywhere(&puts(FIRST + 2, "z"));
    noticed("I6", watched.invariants.applied(0, &wrote(FIRST + 2, 4)));
}

#[test]
fn i6_a_version_that_was_there_before() {
    let mut watched = watched();
    watched.commit_everywhere(&puts(FIRST, "a"));
    watched.commit_everywhere(&puts(FIRST + 1, "a"));
    assert_eq!(watched.invariants.applied(0, &wrote(FIRST, 3)), Ok(()));
    noticed("I6", watched.invariants.applied(0, &wrote(FIRST + 1, 3)));
}

#[test]
fn i6_a_write_while_frozen() {
    let mut watched = watched();
    assert_eq!(watched.freezes(0, FIRST), Ok(()));
    noticed("I6", watched.invariants.applied(0, &wrote(FIRST + 1, 3)));
}

#[test]
fn i7_two_leases_at_once() {
    let mut watched = watched();
    let clocks = [BootTime(50); 3];
    let (old, new) = (watched.view(1, TERM, 100), watched.view(2, TERM + 1, 200));
    assert_eq!(watched.invariants.view(0, &old, &clocks), Ok(()));
    noticed("I7", watched.invariants.view(1, &new, &clocks));
    noticed("I7", watched.invariants.write_answered(1, RANGE, TERM + 1, &clocks));
    let later = [BootTime(150); 3];
    assert_eq!(watched.invariants.view(1, &new, &later), Ok(()));
    assert_eq!(watched.invariants.write_answered(1, RANGE, TERM + 1, &later), Ok(()));
}

#[test]
fn i7_a_lease_over_a_freeze() {
    let mut watched = watched();
    assert_eq!(watched.freezes(1, FIRST), Ok(()));
    let view = watched.view(1, TERM, 100);
    noticed("I7", watched.invariants.view(0, &view, &[BootTime(50); 3]));
}

#[test]
fn i8_a_vote_that_is_not_durable() {
    let mut watched = watched();
    let second = watched.replica(2);
    noticed("I8", watched.grants(1, second, TERM));
}

#[test]
fn i8_what_was_durable_is_gone_after_a_restart() {
    let mut watched = watched();
    let boot = watched.boots[0].clone();
    let second = watched.replica(2);
    watched.votes_durably(1, TERM, second);
    noticed("I8", watched.invariants.recovered(0, &boot));
    let of_range = |boot: &mut Boot| boot.ranges.iter().position(|of| of.descriptor.range_id == RANGE.0);
    let mut forgot = boot.clone();
    let at = of_range(&mut forgot).expect("it is there");
    (forgot.ranges[at].raft.term, forgot.ranges[at].raft.vote) = (TERM, 0);
    noticed("I8", watched.invariants.recovered(0, &forgot));
    let mut lost = boot;
    lost.ranges.remove(at);
    noticed("I8", watched.invariants.recovered(0, &lost));
}

#[test]
fn i8_an_applied_index_goes_back_and_a_tombstone_is_lost() {
    let mut watched = watched();
    let boot = watched.boots[1].clone();
    watched.invariants.persisted(1, &[], BTreeMap::from([(RANGE, FIRST)]));
    noticed("I8", watched.invariants.recovered(1, &boot));
    let boot = watched.boots[0].clone();
    let tombstone = v1::Tombstone { replica_id: 3, ..Default::default() };
    let destroy = Destroy { descriptor: Arc::new(watched.descriptor()), tombstone, keeps_data: false };
    watched.write(0, LogItem { destroy: Some(destroy), ..LogItem::new(RANGE) }).expect("it goes");
    noticed("I8", watched.invariants.recovered(0, &boot));
}

/// Between the survey and the plan a replica may end, for its keyspace was dropped, while another one of the range has yet
/// to hear of that (seed 3428).
#[test]
fn a_plan_that_keeps_less_than_others_have() {
    let entry = |index| entry(index, TERM, b"a");
    let mut watched = watched();
    watched.commit_everywhere(&entry(FIRST));
    for node in 1..3 {
        watched.append(node, vec![entry(FIRST + 1)]).expect("the next");
    }
    assert_eq!(watched.invariants.committed(1, RANGE, &[entry(FIRST + 1)]), Ok(()));
    let order = |replica_id, last_index| v1::RecoverReplica {
        range_id: RANGE.0,
        replica_id,
        last_term: TERM,
        last_index,
        ..Default::default()
    };
    let (behind, level) = (order(watched.replica(1), FIRST), order(watched.replica(2), FIRST + 1));
    let keeps_less = "r2 is to go on with";
    assert_eq!(watched.invariants.check_kept(2, &level, &[1, 2, 3]), Ok(()));
    noticed(keeps_less, watched.invariants.check_kept(1, &behind, &[1, 2, 3]));
    // Where nobody else has it, it is lost.
    assert_eq!(watched.invariants.check_kept(1, &behind, &[1]), Ok(()));
    // Replicas that have gone since are judged by what their nodes said.
    for node in [0, 1] {
        let tombstone = v1::Tombstone { replica_id: ALL_REPLICAS, ..Default::default() };
        let destroy = Destroy { descriptor: Arc::new(watched.descriptor()), tombstone, keeps_data: false };
        watched.write(node, LogItem { destroy: Some(destroy), ..LogItem::new(RANGE) }).expect("it goes");
    }
    assert_eq!(watched.invariants.check_kept(2, &level, &[1, 2, 3]), Ok(()));
    noticed(keeps_less, watched.invariants.check_kept(1, &behind, &[1, 2, 3]));
}

/// It may need a node that no descriptor calls a voter (seed 10156).
#[test]
fn a_change_of_replicas_waits_until_one_replica_has_applied_it() {
    let mut watched = watched();
    let change = |index, term| Entry { entry_type: EntryType::EntryConfChangeV2, ..entry(index, term, b"a") };
    watched.append(0, vec![entry(FIRST, TERM, b"a"), change(FIRST + 1, TERM)]).expect("the first of them");
    assert!(watched.invariants.awaits_change(0, RANGE));
    assert!(!watched.invariants.awaits_change(1, RANGE), "it has not reached the others");
    assert_eq!(watched.invariants.applied(0, &applied(FIRST)), Ok(()));
    assert!(watched.invariants.awaits_change(0, RANGE));
    assert_eq!(watched.invariants.applied(1, &applied(FIRST + 1)), Ok(()));
    assert!(!watched.invariants.awaits_change(0, RANGE));
    // One that is overwritten waits no longer.
    watched.append(0, vec![change(FIRST + 2, TERM)]).expect("the next");
    assert!(watched.invariants.awaits_change(0, RANGE));
    let remove = vec![(FIRST + 2, FIRST + 3)];
    let item = LogItem { entries: vec![entry(FIRST + 2, TERM + 1, b"b")], remove, ..LogItem::new(RANGE) };
    watched.write(0, item).expect("another leader's");
    assert!(!watched.invariants.awaits_change(0, RANGE));
}
