//! The invariants that are checked at every event: I1 to I4, I7 and I8 of the reliability goals; I5 and I6 are in
//! `territory`.
//!
//! The checkers watch what the cores want done, and what was made durable; they know what Raft
//! promises, not how it keeps it.

mod data;
mod leases;
mod losses;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use flotilla_engine::recover::Boot;
use flotilla_engine::store::{Envelope, LogBatch, LogItem, ReadView};
use flotilla_engine::{command, membership};
use flotilla_proto::{RangeId, v1};
use raft::eraftpb::{Entry, EntryType, MessageType};

use crate::mirror::{self, LogMirror, Mirror, replica_on};
use crate::territory::{self, Territory};

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
    pub black_box: bool,
    /// Of each node, as written and as known to be durable.
    written: Vec<Mirror>,
    durable: Vec<Mirror>,
    /// Replicas that began with a split which no sync has covered yet.
    born: Vec<Mirror>,
    /// Replicas of ranges that were ended for good, as their keyspaces were dropped: what was durable of them then. A
    /// leader that has not heard of it yet may count what they had acknowledged.
    ended: Vec<Mirror>,
    /// Applied index of each range that a completed sync covered.
    applied_synced: Vec<BTreeMap<RangeId, u64>>,
    pub territory: Territory,
    leaders: BTreeMap<(RangeId, u64), usize>,
    /// (range, replica, term): whom it voted for.
    votes: BTreeMap<(RangeId, u64, u64), u64>,
    entries: BTreeMap<(RangeId, u64, u64), Seen>,
    /// Entries that one node alone has, neither durable nor sent: a crash undoes them, and a sole voter may then
    /// lead in the same term again.
    unproven: BTreeMap<(RangeId, u64, u64), usize>,
    /// Entries that change a range's replicas, by range, index and term.
    replica_changes: BTreeSet<(RangeId, u64, u64)>,
    committed: BTreeMap<(RangeId, u64), (u64, u64)>,
    checksums: BTreeMap<(RangeId, u64), u32>,
    results: BTreeMap<(RangeId, u64), u64>,
    /// The keys that each committed entry is to write.
    keys: BTreeMap<(RangeId, u64), Vec<bytes::Bytes>>,
    /// Committed entries that merge: where the log of what they take in has ended.
    merges: BTreeMap<(RangeId, u64), u64>,
    /// By how much merges have turned ranges' times back, all together: so much later keys may end.
    pub turned_back_ms: u64,
    /// The newest version of each key, by keyspace.
    versions: BTreeMap<(u64, bytes::Bytes), u64>,
    /// What the data was where a check asked for it.
    checkpoints: BTreeMap<(RangeId, u64), (u64, u32)>,
    /// Nodes that were given up for good, and came back: nobody is to believe them.
    outcasts: BTreeSet<usize>,
    /// Those that went on with one replica after the loss of their majority.
    recovered_ranges: BTreeSet<RangeId>,
    /// The newest view of each node and range.
    views: BTreeMap<(RangeId, usize), std::sync::Arc<ReadView>>,
}

fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn fail(what: String) -> Check {
    Err(what)
}

/// What an entry is to do, unless it changes the replicas.
fn command_of(entry: &Entry) -> v1::Command {
    if entry.get_entry_type() != EntryType::EntryNormal || entry.data.is_empty() {
        return v1::Command::default();
    }
    command::decode(entry.data.clone()).map(|(command, _)| command).unwrap_or_default()
}

/// Keys that a command writes, in the order of its results.
fn keys_of(command: &v1::Command) -> Vec<bytes::Bytes> {
    let ops = command.requests.iter().flat_map(|request| &request.ops);
    ops.map(|op| command::op_key(op).cloned().unwrap_or_default()).collect()
}

/// A replica that begins or ends with a log batch; true: it ends.
fn begins_or_ends(mirror: &mut Mirror, node: usize, item: &LogItem) -> bool {
    if item.destroy.is_some() {
        mirror.remove(&item.range);
        return true;
    }
    let snapshot = item.snapshot.as_ref().and_then(|data| data.header.descriptor.as_ref());
    if let Some(replica) = snapshot.and_then(|descriptor| replica_on(descriptor, node)) {
        let log = mirror.entry(item.range).or_default();
        if log.replica != replica {
            *log = LogMirror { replica, ..LogMirror::default() };
        }
    }
    if let Some(descriptor) = &item.begins {
        let replica = replica_on(descriptor, node).unwrap_or_default();
        mirror.insert(item.range, LogMirror::initial(replica));
    }
    if let Some(recovers) = &item.recovers {
        mirror.entry(item.range).or_default().replica = replica_on(&recovers.descriptor, node).unwrap_or_default();
    }
    false
}

impl Invariants {
    pub(crate) fn new(nodes: usize, layout: &v1::Layout, black_box: bool) -> Self {
        Self {
            black_box,
            written: vec![Mirror::new(); nodes],
            durable: vec![Mirror::new(); nodes],
            born: vec![Mirror::new(); nodes],
            ended: vec![Mirror::new(); nodes],
            applied_synced: vec![BTreeMap::new(); nodes],
            territory: Territory::new(nodes, layout),
            ..Self::default()
        }
    }

    /// How many log entries were compared with those of other replicas.
    pub(crate) fn entries_seen(&self) -> usize {
        self.entries.len()
    }

    /// I8: what recovery found is not behind what was known to be durable.
    pub(crate) fn recovered(&mut self, node: usize, boot: &Boot) -> Check {
        if self.is_outcast(node) {
            return Ok(());
        }
        self.territory.recovered(node, boot)?;
        let found = mirror::of_boot(node, boot);
        for (range, before) in &self.durable[node] {
            let gone = boot.tombstones.get(range).is_some_and(|gone| before.replica <= gone.replica_id);
            let Some(after) = found.get(range) else {
                if gone {
                    continue;
                }
                return fail(format!("I8: n{} lost range {range} over a restart", node + 1));
            };
            if after.replica > before.replica && gone {
                continue;
            }
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
            let same = self.durable[node].get(&id).map(|of| of.replica) == found.get(&id).map(|of| of.replica);
            let synced = self.applied_synced[node].get(&id).copied().unwrap_or(0);
            if same && range.applied.index < synced {
                return fail(format!(
                    "I8: n{} {id}: applied index {synced} was synced, {} came back",
                    node + 1,
                    range.applied.index
                ));
            }
            self.check_checksum(node, id, range.applied.index, range.applied.checksum)?;
        }
        for (range, gone) in &boot.tombstones {
            if !found.contains_key(range) {
                self.ends(node, *range, gone.replica_id);
            }
        }
        self.written[node] = found.clone();
        self.durable[node] = found;
        self.born[node].clear();
        let applied = boot.ranges.iter().map(|range| (RangeId(range.descriptor.range_id), range.applied.index));
        // A restart found it, so it was durable.
        self.applied_synced[node] = applied.collect();
        Ok(())
    }

    /// The node's process is gone, and with it its promises about reads.
    pub(crate) fn stopped(&mut self, node: usize) {
        self.views.retain(|(_, of), _| *of != node);
        // A sole voter leads at once: of a term that was not durable yet nobody has heard, and it may come again.
        let durable = &self.durable[node];
        let known = |range: &RangeId, term: u64| durable.get(range).is_some_and(|log| log.term >= term);
        self.leaders.retain(|(range, term), of| *of != node || known(range, *term));
        let entries = &mut self.entries;
        self.unproven.retain(|key, of| {
            if *of == node {
                entries.remove(key);
            }
            *of != node
        });
    }

    /// I2: the same index and term mean the same entry, and the same entry before it.
    pub(crate) fn log_batch(&mut self, node: usize, batch: &LogBatch) -> Result<u64, String> {
        if self.is_outcast(node) {
            return Ok(0);
        }
        let mut overwritten = 0;
        for item in &batch.items {
            if begins_or_ends(&mut self.written[node], node, item) {
                continue;
            }
            let log = self.written[node].entry(item.range).or_default();
            overwritten += u64::from(item.entries.first().is_some_and(|first| first.index <= log.last_index()));
            let after_snapshot = item.snapshot.is_some();
            log.remove(item);
            for entry in &item.entries {
                let previous_term = if after_snapshot { None } else { log.term_of(entry.index - 1) };
                log.terms.insert(entry.index, entry.term);
                let seen = Seen { hash: hash(&entry.data), previous_term };
                let key = (item.range, entry.index, entry.term);
                if entry.get_entry_type() == EntryType::EntryConfChangeV2 {
                    self.replica_changes.insert(key);
                }
                if !self.entries.contains_key(&key) {
                    self.unproven.insert(key, node);
                } else if self.unproven.get(&key).is_some_and(|first| *first != node) {
                    self.unproven.remove(&key);
                }
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
        if self.is_outcast(node) {
            return;
        }
        let born = std::mem::take(&mut self.born[node]);
        self.durable[node].extend(born);
        for item in batches.iter().flat_map(|batch| &batch.items) {
            if let Some(destroy) = &item.destroy {
                self.ends(node, item.range, destroy.tombstone.replica_id);
            }
            if begins_or_ends(&mut self.durable[node], node, item) {
                self.applied_synced[node].remove(&item.range);
                continue;
            }
            self.durable[node].entry(item.range).or_default().write(item);
            for entry in &item.entries {
                self.unproven.remove(&(item.range, entry.index, entry.term));
            }
        }
        for (range, index) in applied {
            // The apply stage may not have heard yet of a snapshot that was durable before.
            let synced = self.applied_synced[node].entry(range).or_default();
            *synced = index.max(*synced);
        }
        // What a snapshot brought is applied with it; the apply stage hears of that later.
        for item in batches.iter().flat_map(|batch| &batch.items) {
            if let Some(brought) = item.snapshot.as_ref().and_then(|data| data.header.applied) {
                let synced = self.applied_synced[node].entry(item.range).or_default();
                *synced = brought.index.max(*synced);
            }
        }
        self.territory.synced(node);
    }

    /// A replica has ended, and its log with it; `upto`: all replicas up to this id. More than the range ever had: it is
    /// gone for good, wherever its other replicas are.
    fn ends(&mut self, node: usize, range: RangeId, upto: u64) {
        let for_good = self.territory.newest(range).is_some_and(|of| of.next_replica_id <= upto);
        if let Some(log) = self.durable[node].get(&range).filter(|_| for_good) {
            self.ended[node].insert(range, log.clone());
        }
    }

    /// I1: a range has one leader in a term.
    pub(crate) fn became_leader(&mut self, node: usize, range: RangeId, term: u64) -> Check {
        if self.is_outcast(node) {
            return Ok(());
        }
        let known = *self.leaders.entry((range, term)).or_insert(node);
        if known != node {
            return fail(format!("I1: n{} and n{} both lead {range} in term {term}", known + 1, node + 1));
        }
        Ok(())
    }

    /// One vote per term, and nothing promised that is not durable. True: two asked for one term.
    pub(crate) fn message(&mut self, envelope: &Envelope) -> Check {
        let node = crate::node::index_of(envelope.from);
        if self.black_box || self.is_outcast(node) {
            return Ok(());
        }
        let message = &envelope.message;
        let range = RangeId(message.range_id);
        let is = |kind: MessageType| message.message_type == kind as u32;
        for entry in &message.entries {
            self.unproven.remove(&(range, entry.index, entry.term));
        }
        let initial = LogMirror::initial(message.from_replica);
        let known = self.durable[node].get(&range);
        let durable = known.filter(|log| log.replica == message.from_replica).unwrap_or(&initial);
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
        let known = *self.votes.entry((range, message.from_replica, message.term)).or_insert(candidate);
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
        let from = envelope.message.from_replica;
        let votes = self.votes.range((range, 0, 0)..=(range, u64::MAX, u64::MAX));
        votes.into_iter().any(|((_, replica, at), vote)| *at == term && *replica != from && *vote != from)
    }

    /// I3: what is committed is durable on a quorum. I2: it never changes.
    pub(crate) fn committed(&mut self, node: usize, range: RangeId, entries: &[Entry]) -> Check {
        if self.is_outcast(node) {
            return Ok(());
        }
        let mut last_new = None;
        for entry in entries {
            let what = (entry.term, hash(&entry.data));
            if let Some(known) = self.committed.get(&(range, entry.index)) {
                if *known != what {
                    return fail(format!(
                        "I2: n{} {range} applies entry {} of term {}, another replica applied one of term {} there",
                        node + 1,
                        entry.index,
                        entry.term,
                        known.0
                    ));
                }
                continue;
            }
            self.committed.insert((range, entry.index), what);
            let command = command_of(entry);
            self.keys.insert((range, entry.index), keys_of(&command));
            if let Some(v1::command::Change::Merge(merge)) = &command.change {
                let frozen = merge.frozen.unwrap_or_default();
                self.merges.insert((range, entry.index), frozen.index);
                if command.range_time_ms != 0 && frozen.next_expiry_ms != 0 {
                    self.turned_back_ms += command.range_time_ms.abs_diff(frozen.range_time_ms);
                }
            }
            last_new = Some(entry);
        }
        // Of a range that was taken in, replicas end as soon as they have applied it: what the rest agrees on is nothing's.
        let over = self.black_box || self.territory.merges.is_ended(range);
        let Some(last) = last_new.filter(|_| !over) else { return Ok(()) };
        let configurations = self.territory.committing(range, last.index);
        // Who was given up for good may be back, and heard by those who have not been told yet; what it has is not followed.
        // A range that goes on without it counts it no longer (seed 71201).
        let holds = |replica: u64, on: u64| {
            if self.is_outcast(on as usize - 1) {
                return true;
            }
            let of_node = [&self.durable[on as usize - 1], &self.ended[on as usize - 1]];
            let mut logs = of_node.into_iter().filter_map(|logs| logs.get(&range));
            logs.any(|log| log.replica == replica && log.holds(last.index, last.term))
        };
        let agreed = |descriptor: &&v1::RangeDescriptor| {
            let replicas = &descriptor.replicas;
            let sets = [membership::voters(replicas), membership::old_voters(replicas)];
            sets.iter().filter(|set| !set.is_empty()).all(|set| {
                let voters = replicas.iter().filter(|of| set.contains(&of.replica_id));
                voters.filter(|of| holds(of.replica_id, of.node_id)).count() > set.len() / 2
            })
        };
        if !configurations.iter().any(|descriptor| agreed(&&***descriptor)) {
            let words: Vec<String> = configurations.iter().map(|of| territory::words(of)).collect();
            return fail(format!(
                "I3: n{} applies entry {} of term {}, which is not durable on a quorum of {}",
                node + 1,
                last.index,
                last.term,
                words.join(" or ")
            ));
        }
        Ok(())
    }
}
