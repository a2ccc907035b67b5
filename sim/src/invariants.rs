//! The invariants that are checked at every event: I1 to I4, I7 and I8 of the reliability goals.
//!
//! The checkers watch what the cores want done, and what was made durable; they know what Raft
//! promises, not how it keeps it.

use std::collections::BTreeMap;

use flotilla_engine::apply::Applied;
use flotilla_engine::recover::Boot;
use flotilla_engine::store::{Envelope, LogBatch, ReadView};
use flotilla_engine::time::BootTime;
use flotilla_proto::{RangeId, v1};
use raft::eraftpb::{Entry, MessageType};

use crate::mirror::{self, Mirror};

/// What is wrong, in words.
pub(crate) type Check = Result<(), String>;

/// An entry, for the comparison of logs: a hash of its bytes, and the term before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    hash: u64,
    previous_term: Option<u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Invariants {
    /// Only what a client could notice in the end is checked: leaders, committed entries, equal states.
    black_box: bool,
    /// Of each node, as written and as known to be durable.
    written: Vec<Mirror>,
    durable: Vec<Mirror>,
    /// Applied index of each range that a completed sync covered.
    applied_synced: Vec<BTreeMap<RangeId, u64>>,
    descriptors: BTreeMap<RangeId, v1::RangeDescriptor>,
    leaders: BTreeMap<(RangeId, u64), usize>,
    votes: BTreeMap<(usize, RangeId, u64), u64>,
    entries: BTreeMap<(RangeId, u64, u64), Seen>,
    committed: BTreeMap<(RangeId, u64), (u64, u64)>,
    checksums: BTreeMap<(RangeId, u64), u32>,
    results: BTreeMap<(RangeId, u64), u64>,
    /// The newest view of each node and range.
    views: BTreeMap<(RangeId, usize), std::sync::Arc<ReadView>>,
}

fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn fail(what: String) -> Check {
    Err(what)
}

impl Invariants {
    pub(crate) fn new(nodes: usize, layout: &v1::Layout, black_box: bool) -> Self {
        Self {
            black_box,
            written: vec![Mirror::new(); nodes],
            durable: vec![Mirror::new(); nodes],
            applied_synced: vec![BTreeMap::new(); nodes],
            descriptors: layout.ranges.iter().map(|of| (RangeId(of.range_id), of.clone())).collect(),
            ..Self::default()
        }
    }

    /// How many log entries were compared with those of other replicas.
    pub(crate) fn entries_seen(&self) -> usize {
        self.entries.len()
    }

    fn replicas(&self, range: RangeId) -> &[v1::ReplicaDescriptor] {
        self.descriptors.get(&range).map_or(&[], |descriptor| &descriptor.replicas)
    }

    /// I8: what recovery found is not behind what was known to be durable.
    pub(crate) fn recovered(&mut self, node: usize, boot: &Boot) -> Check {
        let found = mirror::of_boot(boot);
        for (range, before) in &self.durable[node] {
            let Some(after) = found.get(range) else {
                return fail(format!("I8: n{} lost range {range} over a restart", node + 1));
            };
            let votes_differ = after.term == before.term && before.vote != 0 && after.vote != before.vote;
            if after.term < before.term || votes_differ || after.truncated.0 < before.truncated.0 {
                return fail(format!(
                    "I8: n{} {range}: term, vote, truncated index ({}, {}, {}) were durable, ({}, {}, {}) came back",
                    node + 1,
                    before.term,
                    before.vote,
                    before.truncated.0,
                    after.term,
                    after.vote,
                    after.truncated.0
                ));
            }
        }
        for range in &boot.ranges {
            let id = RangeId(range.descriptor.range_id);
            let synced = self.applied_synced[node].get(&id).copied().unwrap_or(0);
            if range.applied.index < synced {
                return fail(format!(
                    "I8: n{} {id}: applied index {synced} was synced, {} came back",
                    node + 1,
                    range.applied.index
                ));
            }
            self.check_checksum(node, id, range.applied.index, range.applied.checksum)?;
        }
        self.written[node] = found.clone();
        self.durable[node] = found;
        Ok(())
    }

    /// The node's process is gone, and with it its promises about reads.
    pub(crate) fn stopped(&mut self, node: usize) {
        self.views.retain(|(_, of), _| *of != node);
    }

    /// I2: the same index and term mean the same entry, and the same entry before it.
    pub(crate) fn log_batch(&mut self, node: usize, batch: &LogBatch) -> Result<u64, String> {
        let mut overwritten = 0;
        for item in &batch.items {
            let log = self.written[node].entry(item.range).or_default();
            overwritten += u64::from(item.entries.first().is_some_and(|first| first.index <= log.last_index()));
            let after_snapshot = item.snapshot.is_some();
            log.remove(item);
            for entry in &item.entries {
                let previous_term = if after_snapshot { None } else { log.term_of(entry.index - 1) };
                log.terms.insert(entry.index, entry.term);
                let seen = Seen { hash: hash(&entry.data), previous_term };
                let key = (item.range, entry.index, entry.term);
                let known = *self.entries.entry(key).or_insert(seen);
                let terms_differ =
                    known.previous_term.zip(seen.previous_term).is_some_and(|(known, seen)| known != seen);
                if known.hash != seen.hash || terms_differ {
                    return Err(format!(
                        "I2: n{} {}: entry {} of term {} differs from another replica's",
                        node + 1,
                        item.range,
                        entry.index,
                        entry.term
                    ));
                }
            }
            log.set_state(item);
        }
        Ok(overwritten)
    }

    /// The store was told that these batches are durable.
    pub(crate) fn persisted(&mut self, node: usize, batches: &[LogBatch], applied: BTreeMap<RangeId, u64>) {
        for item in batches.iter().flat_map(|batch| &batch.items) {
            self.durable[node].entry(item.range).or_default().write(item);
        }
        self.applied_synced[node].extend(applied);
    }

    /// I1: a range has one leader in a term.
    pub(crate) fn became_leader(&mut self, node: usize, range: RangeId, term: u64) -> Check {
        let known = *self.leaders.entry((range, term)).or_insert(node);
        if known != node {
            return fail(format!("I1: n{} and n{} both lead {range} in term {term}", known + 1, node + 1));
        }
        Ok(())
    }

    /// One vote per term, and nothing promised that is not durable. True: two asked for one term.
    pub(crate) fn message(&mut self, envelope: &Envelope) -> Check {
        if self.black_box {
            return Ok(());
        }
        let node = crate::node::index_of(envelope.from);
        let message = &envelope.message;
        let range = RangeId(message.range_id);
        let is = |kind: MessageType| message.message_type == kind as u32;
        let Some(durable) = self.durable[node].get(&range) else { return Ok(()) };
        // What was promised in an older term may have been replaced in the same turn, by a newer leader.
        let current = message.term >= durable.term;
        let acknowledges = is(MessageType::MsgAppendResponse) && !message.reject && current;
        if acknowledges && message.index > durable.last_index() {
            return fail(format!(
                "I3: n{} {range} acknowledges index {}, durable is only {}",
                node + 1,
                message.index,
                durable.last_index()
            ));
        }
        let granted = is(MessageType::MsgRequestVoteResponse) && !message.reject;
        if !granted && !is(MessageType::MsgRequestVote) {
            return Ok(());
        }
        let candidate = if granted { message.to_replica } else { message.from_replica };
        if (durable.term, durable.vote) != (message.term, candidate) && durable.term <= message.term {
            return fail(format!(
                "I8: n{} {range} votes for replica {candidate} in term {}, durable is a vote for {} in term {}",
                node + 1,
                message.term,
                durable.vote,
                durable.term
            ));
        }
        let known = *self.votes.entry((node, range, message.term)).or_insert(candidate);
        if known != candidate {
            return fail(format!(
                "I1: n{} {range} votes for replicas {known} and {candidate} in term {}",
                node + 1,
                message.term
            ));
        }
        Ok(())
    }

    /// Whether another replica asked for votes in this term already.
    pub(crate) fn is_split_vote(&self, envelope: &Envelope) -> bool {
        let (range, term) = (RangeId(envelope.message.range_id), envelope.message.term);
        let from = crate::node::index_of(envelope.from);
        self.votes.iter().any(|((node, of, at), vote)| {
            (*of, *at) == (range, term) && *node != from && *vote != envelope.message.from_replica
        })
    }

    /// I3: what is committed is durable on a quorum. I2: it never changes.
    pub(crate) fn committed(&mut self, node: usize, range: RangeId, entries: &[Entry]) -> Check {
        for entry in entries {
            let what = (entry.term, hash(&entry.data));
            let known = *self.committed.entry((range, entry.index)).or_insert(what);
            if known != what {
                return fail(format!(
                    "I2: n{} {range} applies entry {} of term {}, another replica applied one of term {} there",
                    node + 1,
                    entry.index,
                    entry.term,
                    known.0
                ));
            }
        }
        let Some(last) = entries.last().filter(|_| !self.black_box) else { return Ok(()) };
        let replicas = self.replicas(range);
        let durable = replicas
            .iter()
            .filter(|replica| {
                let log = self.durable[replica.node_id as usize - 1].get(&range);
                log.is_some_and(|log| log.holds(last.index, last.term))
            })
            .count();
        if durable <= replicas.len() / 2 {
            return fail(format!(
                "I3: n{} {range} applies entry {} of term {}, which is durable on {durable} of {} replicas",
                node + 1,
                last.index,
                last.term,
                replicas.len()
            ));
        }
        Ok(())
    }

    /// I4: equal applied index, equal checksum; and equal results.
    pub(crate) fn applied(&mut self, node: usize, done: &Applied) -> Check {
        self.check_checksum(node, done.range, done.index, done.checksum)?;
        for entry in &done.results {
            let results = hash(format!("{:?}", entry.requests).as_bytes());
            let known = *self.results.entry((done.range, entry.index)).or_insert(results);
            if known != results {
                return fail(format!(
                    "I4: n{} {}: entry {} had other results than on another replica: {:?}",
                    node + 1,
                    done.range,
                    entry.index,
                    entry.requests
                ));
            }
        }
        Ok(())
    }

    fn check_checksum(&mut self, node: usize, range: RangeId, index: u64, checksum: u32) -> Check {
        let known = *self.checksums.entry((range, index)).or_insert(checksum);
        if known != checksum {
            return fail(format!(
                "I4: n{} {range}: checksum {checksum:08x} at applied index {index}, another replica had {known:08x}",
                node + 1
            ));
        }
        Ok(())
    }

    /// I7: while one replica may serve reads by its lease, no other may. `clocks` are all nodes' times now.
    pub(crate) fn view(&mut self, node: usize, view: &std::sync::Arc<ReadView>, clocks: &[BootTime]) -> Check {
        let range = view.range();
        self.views.insert((range, node), view.clone());
        if view.lease_covers(clocks[node]) {
            return self.no_older_lease(node, range, u64::MAX, clocks, "holds a lease too");
        }
        Ok(())
    }

    /// I7, from the other side: nobody acknowledges a write while another replica may serve reads alone.
    /// A write of an older term than the lease's is in that leader's log, and applied there.
    pub(crate) fn write_answered(&self, node: usize, range: RangeId, term: u64, clocks: &[BootTime]) -> Check {
        self.no_older_lease(node, range, term, clocks, "acknowledges a write")
    }

    fn no_older_lease(&self, node: usize, range: RangeId, term: u64, clocks: &[BootTime], what: &str) -> Check {
        if self.black_box {
            return Ok(());
        }
        for ((_, other), view) in self.views.range((range, 0)..=(range, usize::MAX)) {
            if *other != node && view.term < term && view.lease_covers(clocks[*other]) {
                return fail(format!(
                    "I7: n{} holds the lease of {range} in term {} while n{} {what}",
                    other + 1,
                    view.term,
                    node + 1
                ));
            }
        }
        Ok(())
    }
}
