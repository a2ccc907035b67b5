//! The history: what was decided, when and why, what became of it, and what was seen of nodes and ranges.
//!
//! ```text
//! a decision --> order record + entry: one unit, one batch --> the system range
//! what is seen (a node dies, a range splits) --> gathered --> one unit with the next tick
//! ```
//! Entries lie in pages, one record each: few records however many entries, and a decision rewrites one small page at
//! most. Old pages go in the same units that bring new entries, so that the history stays within its bounds by
//! itself. As it lies in the system range, it is there for whichever service comes next.
//!
//! Invariants: no order is written without its entry, nor an entry without its order. Ids only ever grow; the newest
//! page is never trimmed, so that they go on behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flotilla_proto::v1;

use crate::decide::Decision;
use crate::records::Change;
use crate::service::Service;
use crate::table::epoch;

/// Words for what an entry tells.
pub(crate) mod kind {
    pub const ORDER: &str = "order";
    pub const DONE: &str = "done";
    pub const GIVEN_UP: &str = "given-up";
    pub const JOINED: &str = "joined";
    pub const DEAD: &str = "dead";
    pub const BACK: &str = "back";
    pub const DRAINING: &str = "draining";
    pub const NOT_DRAINING: &str = "not-draining";
    pub const MAINTENANCE: &str = "maintenance";
    pub const DECOMMISSIONING: &str = "decommissioning";
    pub const REMOVED: &str = "removed";
    pub const SLOW: &str = "slow";
    pub const FAST: &str = "fast-again";
    pub const CREATED: &str = "created";
    pub const SET: &str = "set";
    pub const DROPPED: &str = "dropped";
    pub const SPLIT: &str = "split";
    pub const MERGED: &str = "merged";
}

/// A page with fewer entries takes the next ones in.
const PAGE_ENTRIES: usize = 32;
/// Pages that one unit trims at most.
const TRIMMED_MAX: usize = 4;
/// Longest sentence of an entry, in bytes.
const WHAT_BYTES_MAX: usize = 300;
/// Seen and not written yet: more is left out, as the service does not depend on it.
const SEEN_MAX: usize = 1_000;
/// Entries of an answer, unless it was asked for more; and at most.
const ANSWER_DEFAULT: usize = 100;
const ANSWER_MAX: usize = 10_000;

/// The history as the records have it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct History {
    /// By the id of their first entry.
    pages: BTreeMap<u64, Arc<v1::HistoryRecord>>,
    entries: usize,
}

impl History {
    pub fn set(&mut self, first: u64, page: Arc<v1::HistoryRecord>) {
        self.remove(first);
        self.entries += page.entries.len();
        self.pages.insert(first, page);
    }

    pub fn remove(&mut self, first: u64) {
        self.entries -= self.pages.remove(&first).map_or(0, |page| page.entries.len());
    }

    pub fn newest_first(&self) -> impl Iterator<Item = &v1::HistoryEntry> {
        self.pages.values().rev().flat_map(|page| page.entries.iter().rev())
    }

    fn next_id(&self) -> u64 {
        self.newest_first().next().map_or(1, |entry| entry.id + 1)
    }

    /// The changes that put entries behind the others, and trim what is beyond the bounds.
    pub fn append(&self, mut new: Vec<v1::HistoryEntry>, max: usize, oldest_unix_ms: u64) -> Vec<Change> {
        if new.is_empty() {
            return Vec::new();
        }
        for (entry, id) in new.iter_mut().zip(self.next_id()..) {
            entry.id = id;
            shorten(&mut entry.what);
        }
        let mut left = self.entries + new.len();
        let open = self.pages.last_key_value().filter(|(_, page)| page.entries.len() < PAGE_ENTRIES);
        let (first, entries) = match open {
            Some((first, page)) => (*first, page.entries.iter().cloned().chain(new).collect()),
            None => (new[0].id, new),
        };
        let mut changes = vec![Change::History(first, Arc::new(v1::HistoryRecord { entries }))];
        for (old, page) in self.pages.iter().take(TRIMMED_MAX).filter(|(old, _)| **old != first) {
            let aged = page.entries.last().is_none_or(|entry| entry.unix_ms < oldest_unix_ms);
            if left <= max && !aged {
                break;
            }
            left -= page.entries.len();
            changes.push(Change::NoHistory(*old));
        }
        changes
    }
}

/// Sentences come from settings and names of any length.
fn shorten(what: &mut String) {
    if what.len() > WHAT_BYTES_MAX {
        let end = (0..=WHAT_BYTES_MAX).rev().find(|at| what.is_char_boundary(*at)).unwrap_or(0);
        what.truncate(end);
        what.push_str("...");
    }
}

/// An entry about nodes.
pub(crate) fn of_nodes(kind: &str, nodes: &[u64], what: impl Into<String>) -> v1::HistoryEntry {
    v1::HistoryEntry { kind: kind.into(), node_ids: nodes.to_vec(), what: what.into(), ..Default::default() }
}

/// An entry about a keyspace.
pub(crate) fn of_keyspace(kind: &str, what: impl Into<String>) -> v1::HistoryEntry {
    of_nodes(kind, &[], what)
}

/// An entry about an order that begins.
pub(crate) fn of_order(id: u64, decision: &Decision) -> v1::HistoryEntry {
    let leader = Some(decision.leader).filter(|node| *node != 0);
    let nodes: BTreeSet<u64> = decision.add.iter().chain(&decision.remove).copied().chain(leader).collect();
    v1::HistoryEntry {
        kind: kind::ORDER.into(),
        range_id: decision.range,
        node_ids: nodes.into_iter().collect(),
        order_id: id,
        add_nodes: decision.add.clone(),
        remove_nodes: decision.remove.clone(),
        leader_node_id: decision.leader,
        order_kind: order_kind(decision.kind),
        other_ranges: decision.merge_into.iter().map(|left| left.range_id).collect(),
        what: decision.reason.clone(),
        ..Default::default()
    }
}

/// What an order is for, in a word such as balance-replicas.
pub(crate) fn order_kind(kind: v1::OrderKind) -> String {
    kind.as_str_name().trim_start_matches("ORDER_KIND_").replace('_', "-").to_ascii_lowercase()
}

/// An entry about an order that ended: done, or given up for a reason.
pub(crate) fn of_end(range: u64, order_id: u64, why: Option<&str>) -> v1::HistoryEntry {
    let kind = if why.is_some() { kind::GIVEN_UP } else { kind::DONE };
    let what = why.unwrap_or_default().to_owned();
    v1::HistoryEntry { kind: kind.into(), range_id: range, order_id, what, ..Default::default() }
}

impl Service {
    /// Tells the service what time it is for people: `unix_ms` at its own `now`. Without that, entries count from the
    /// origin of `now`.
    pub fn tell_time(&mut self, now: std::time::Duration, unix_ms: u64) {
        self.state.unix_ms_at_origin = unix_ms.saturating_sub(millis(now));
    }

    pub(crate) fn unix_ms(&self) -> u64 {
        self.state.unix_ms_at_origin.saturating_add(millis(self.state.now))
    }

    /// Changes that take effect together, with what the history tells of them.
    pub(crate) fn stage_told(&mut self, mut changes: Vec<Change>, mut entries: Vec<v1::HistoryEntry>) -> u64 {
        let now = self.unix_ms();
        entries.iter_mut().for_each(|entry| entry.unix_ms = now);
        let (max, age) = (self.state.config.history_entries_max, self.state.config.history_age_max);
        changes.extend(self.state.ahead.history.append(entries, max, now.saturating_sub(millis(age))));
        self.stage(changes)
    }

    /// Something was seen that no record tells of: it is written with the next tick.
    pub(crate) fn saw(&mut self, mut entry: v1::HistoryEntry) {
        if self.work.seen.len() < SEEN_MAX {
            entry.unix_ms = self.unix_ms();
            self.work.seen.push(entry);
        }
    }

    /// Writes down what was seen.
    pub(crate) fn write_seen(&mut self) {
        let seen = std::mem::take(&mut self.work.seen);
        if !seen.is_empty() {
            self.stage_told(Vec::new(), seen);
        }
    }

    /// A node was found dead, or alive again. A service that was just loaded finds out anew: what the history says
    /// already is not said twice.
    pub(crate) fn saw_node(&mut self, node: u64, dead: bool) {
        let word = if dead { kind::DEAD } else { kind::BACK };
        let about = |entry: &&v1::HistoryEntry| {
            entry.node_ids == [node] && [kind::DEAD, kind::BACK].contains(&entry.kind.as_str())
        };
        let last = self.state.ahead.history.newest_first().find(about).map(|entry| entry.kind.as_str());
        if last.unwrap_or(kind::BACK) != word {
            let what = if dead { "nothing is heard of it: its replicas are rebuilt" } else { "it is heard again" };
            self.saw(of_nodes(word, &[node], what));
        }
    }

    /// What a report tells of splits and merges of a range that the table knows in an older form.
    pub(crate) fn look_for_cut(&mut self, descriptor: &v1::RangeDescriptor, report: &v1::ReportRequest) {
        let table = &self.state.table;
        let range = descriptor.range_id;
        if !self.state.settled || self.state.ahead.births.contains_key(&range) {
            return;
        }
        let ends = |a: &[u8], b: &[u8]| !a.is_empty() && (b.is_empty() || a < b);
        let entry = match table.get(range).map(|route| &route.descriptor) {
            Some(known) if known.version >= epoch(descriptor).0 => return,
            Some(known) if ends(&descriptor.end, &known.end) => {
                let of_it = |other: &&v1::RangeDescriptor| {
                    other.keyspace_id == descriptor.keyspace_id
                        && other.start >= descriptor.end
                        && (known.end.is_empty() || *other.start < *known.end)
                };
                let others = report.ranges.iter().filter_map(|replica| replica.descriptor.as_ref()).filter(of_it);
                cut(kind::SPLIT, range, others.map(|other| other.range_id).collect(), &descriptor.end)
            }
            Some(known) if ends(&known.end, &descriptor.end) => {
                let others = table.overlapping(descriptor).filter(|other| *other != range).collect();
                cut(kind::MERGED, range, others, &known.end)
            }
            Some(_) => return,
            None => {
                // The child of a split is heard of before its parent's new form.
                let parent = table.overlapping(descriptor).filter_map(|other| table.get(other)).find(|route| {
                    *route.descriptor.start < *descriptor.start && route.descriptor.version < epoch(descriptor).0
                });
                let Some(parent) = parent else { return };
                cut(kind::SPLIT, parent.descriptor.range_id, vec![range], &descriptor.start)
            }
        };
        self.saw(entry);
    }

    /// The entries that a question is about, newest first.
    pub(crate) fn history_answer(&self, request: &v1::PlacementHistoryRequest) -> v1::PlacementHistoryResponse {
        let (now, history) = (self.unix_ms(), &self.state.acked.history);
        let since = if request.within_ms == 0 { 0 } else { now.saturating_sub(request.within_ms) };
        let limit = match request.limit as usize {
            0 => ANSWER_DEFAULT,
            limit => limit.min(ANSWER_MAX),
        };
        let is_wanted = |entry: &v1::HistoryEntry| {
            let of_range = request.range_id == 0
                || entry.range_id == request.range_id
                || entry.other_ranges.contains(&request.range_id);
            let of_node = request.node_id == 0 || entry.node_ids.contains(&request.node_id);
            entry.unix_ms >= since && of_range && of_node
        };
        let mut entries = self.told().filter(is_wanted);
        let answer: Vec<v1::HistoryEntry> = entries.by_ref().take(limit).collect();
        v1::PlacementHistoryResponse {
            more: entries.next().is_some(),
            entries: answer,
            now_unix_ms: now,
            kept: u32::try_from(history.entries).unwrap_or(u32::MAX),
            since_unix_ms: history
                .pages
                .values()
                .flat_map(|page| &page.entries)
                .next()
                .map_or(0, |entry| entry.unix_ms),
        }
    }

    /// The history, newest first; an order and its end are one entry, unless only the end is kept.
    pub(crate) fn told(&self) -> impl Iterator<Item = v1::HistoryEntry> + '_ {
        let history = &self.state.acked.history;
        let begun: BTreeSet<u64> =
            history.newest_first().filter(|entry| entry.kind == kind::ORDER).map(|entry| entry.order_id).collect();
        let mut ended: BTreeMap<u64, &v1::HistoryEntry> = BTreeMap::new();
        history.newest_first().filter_map(move |entry| {
            let is_end = entry.kind == kind::DONE || entry.kind == kind::GIVEN_UP;
            if is_end && begun.contains(&entry.order_id) {
                ended.insert(entry.order_id, entry);
                return None;
            }
            let mut entry = entry.clone();
            if entry.kind == kind::ORDER
                && let Some(end) = ended.get(&entry.order_id)
            {
                entry.outcome =
                    if end.what.is_empty() { end.kind.clone() } else { format!("{}: {}", end.kind, end.what) };
                entry.outcome_unix_ms = end.unix_ms;
            }
            Some(entry)
        })
    }
}

fn cut(kind: &str, range: u64, others: Vec<u64>, at: &[u8]) -> v1::HistoryEntry {
    let what = format!("at {:?}", at.escape_ascii().to_string());
    v1::HistoryEntry { kind: kind.into(), range_id: range, other_ranges: others, what, ..Default::default() }
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
