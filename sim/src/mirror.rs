//! What a store's disk must hold of each range: kept by the checkers from the log batches alone, apart
//! from the disk and from the core.

use std::collections::BTreeMap;

use flotilla_engine::apply::initial_raft_state;
use flotilla_engine::recover::Boot;
use flotilla_engine::store::LogItem;
use flotilla_proto::{RangeId, v1};

/// One range's log and Raft state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogMirror {
    /// Whose log it is: a range may have several replicas on a node, one after the other.
    pub replica: u64,
    pub term: u64,
    pub vote: u64,
    pub truncated: (u64, u64),
    /// Index to term.
    pub terms: BTreeMap<u64, u64>,
}

impl LogMirror {
    /// What a replica begins with, unless by a snapshot.
    pub(crate) fn initial(replica: u64) -> Self {
        let state = initial_raft_state();
        let truncated = (state.truncated_index, state.truncated_term);
        Self { replica, term: state.term, vote: state.vote, truncated, terms: BTreeMap::new() }
    }

    pub(crate) fn last_index(&self) -> u64 {
        self.terms.last_key_value().map_or(self.truncated.0, |(index, _)| *index)
    }

    pub(crate) fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.truncated.0 { Some(self.truncated.1) } else { self.terms.get(&index).copied() }
    }

    /// Whether the entry is there, or was and its effect is.
    pub(crate) fn holds(&self, index: u64, term: u64) -> bool {
        index <= self.truncated.0 || self.terms.get(&index) == Some(&term)
    }

    /// Does to the mirror what [`flotilla_engine::log_writer::fill`] does to the disk.
    pub(crate) fn write(&mut self, item: &LogItem) {
        self.remove(item);
        for entry in &item.entries {
            self.terms.insert(entry.index, entry.term);
        }
        self.set_state(item);
    }

    pub(crate) fn remove(&mut self, item: &LogItem) {
        for (from, to) in &item.remove {
            let mut after = self.terms.split_off(from);
            self.terms.append(&mut after.split_off(to));
        }
    }

    pub(crate) fn set_state(&mut self, item: &LogItem) {
        if let Some(state) = &item.raft_state {
            (self.term, self.vote) = (state.term, state.vote);
            self.truncated = (state.truncated_index, state.truncated_term);
        }
    }
}

/// The replica on a node, counted from 0.
pub(crate) fn replica_on(descriptor: &v1::RangeDescriptor, node: usize) -> Option<u64> {
    let own = descriptor.replicas.iter().find(|replica| replica.node_id == node as u64 + 1);
    own.map(|replica| replica.replica_id)
}

/// A store's logs, by range.
pub(crate) type Mirror = BTreeMap<RangeId, LogMirror>;

/// The mirror of what recovery found.
pub(crate) fn of_boot(node: usize, boot: &Boot) -> Mirror {
    let ranges = boot.ranges.iter().map(|range| {
        let raft = &range.raft;
        let mut terms = BTreeMap::new();
        let mut index = raft.truncated_index + 1;
        for (at, (_, term)) in range.terms.iter().enumerate() {
            let end = range.terms.get(at + 1).map_or(range.last_index, |(next, _)| next - 1);
            terms.extend((index..=end).map(|index| (index, *term)));
            index = end + 1;
        }
        let truncated = (raft.truncated_index, raft.truncated_term);
        let replica = replica_on(&range.descriptor, node).unwrap_or_default();
        (RangeId(range.descriptor.range_id), LogMirror { replica, term: raft.term, vote: raft.vote, truncated, terms })
    });
    ranges.collect()
}
