//! What happened to each range here since the start: a bounded number of events, for people.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use flotilla_engine::store::Event;
use flotilla_proto::{NodeId, RangeId, v1};

/// Events kept for a range.
const PER_RANGE_MAX: usize = 64;
/// Ranges that events are kept of.
const RANGES_MAX: usize = 10_000;

/// The events of a node.
#[derive(Debug)]
pub(crate) struct RangeEvents {
    node: NodeId,
    /// Point access only.
    ranges: Mutex<HashMap<RangeId, VecDeque<v1::RangeEvent>>>,
}

impl RangeEvents {
    pub fn new(node: NodeId) -> Self {
        Self { node, ranges: Mutex::default() }
    }

    /// Notes an event, if it is one that concerns people.
    pub fn note(&self, event: &Event) {
        let Some((range, kind, what)) = describe(event) else { return };
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        let event = v1::RangeEvent { unix_ms, node_id: self.node.0, kind: kind.into(), what };
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        if ranges.len() >= RANGES_MAX && !ranges.contains_key(&range) {
            ranges.clear();
        }
        let events = ranges.entry(range).or_default();
        if events.len() == PER_RANGE_MAX {
            events.pop_front();
        }
        events.push_back(event);
    }

    /// The events of a range, newest last.
    pub fn of(&self, range: RangeId) -> Vec<v1::RangeEvent> {
        let ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        ranges.get(&range).map(|events| events.iter().cloned().collect()).unwrap_or_default()
    }
}

fn replicas(descriptor: &v1::RangeDescriptor) -> String {
    let one = |of: &v1::ReplicaDescriptor| {
        let role = match of.role() {
            v1::ReplicaRole::Voter => "",
            v1::ReplicaRole::Learner => " (learner)",
            v1::ReplicaRole::VoterIncoming => " (coming)",
            v1::ReplicaRole::VoterOutgoing => " (going)",
        };
        format!("{}{role}", of.node_id)
    };
    descriptor.replicas.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn span(descriptor: &v1::RangeDescriptor) -> String {
    format!("\"{}\" to \"{}\"", descriptor.start.escape_ascii(), descriptor.end.escape_ascii())
}

fn describe(event: &Event) -> Option<(RangeId, &'static str, String)> {
    Some(match event {
        Event::BecameLeader { range, term } => (*range, "leads", format!("leads in term {term}")),
        Event::SteppedDown { range, term } => (*range, "steps-down", format!("led in term {term}, leads no more")),
        Event::SnapshotApplied { range, index } => {
            (*range, "snapshot", format!("a snapshot of index {index} replaced the replica's state"))
        }
        Event::Split { range, ranges } => {
            let parts: Vec<String> = ranges.iter().map(|of| format!("{} {}", of.range_id, span(of))).collect();
            (*range, "split", format!("split into {}", parts.join("; ")))
        }
        Event::Frozen { range, into } => (
            *range,
            "frozen",
            format!("stands still, to be merged into range {into}; nothing of it is served meanwhile"),
        ),
        Event::Thawed { range, into } => (*range, "thawed", format!("was not merged into range {into}, and goes on")),
        Event::Merged { range, into } => {
            (*range, "merged", format!("merged into range {}, which is {} now", into.range_id, span(into)))
        }
        Event::CannotSplit { range, bytes } => {
            (*range, "cannot-split", format!("holds {bytes} bytes, and nothing in it may be cut"))
        }
        Event::LoadStays { range, requests_per_s, why } => {
            (*range, "hot", format!("{requests_per_s} requests in a second, and it is not split for them: {why}"))
        }
        Event::ReplicasChanged { descriptor } => {
            (RangeId(descriptor.range_id), "replicas", format!("replicas on nodes {}", replicas(descriptor)))
        }
        Event::Born { descriptor } => {
            let what = format!("begins here: {}, replicas on nodes {}", span(descriptor), replicas(descriptor));
            (RangeId(descriptor.range_id), "begins", what)
        }
        Event::Recovered { descriptor, record } => {
            let what = format!(
                "recovery {}, by {}: the majority is lost for good with nodes {:?}; this replica goes on alone, with its log up to index {}",
                record.plan_id, record.decided_by, record.dead_nodes, record.last_index
            );
            (RangeId(descriptor.range_id), "recovered", what)
        }
        Event::Removed { range, replica_id } => {
            (*range, "removed", format!("replica {replica_id} is no part of the range any more, and left this node"))
        }
        Event::LeaderChanged { .. } | Event::LogTruncated { .. } | Event::MessageRefused { .. } => return None,
    })
}
