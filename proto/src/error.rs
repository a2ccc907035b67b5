//! The errors that every interface answers with, and what a caller may do about each.
//!
//! One enum for all of them, with a variant only where a caller can react. [`Error::action`] says
//! which of the four reactions is right: retry, refresh the route, fail, or treat the outcome as
//! unknown. On the wire an error is a gRPC status whose binary details are a [`v1::Error`]; an
//! ambiguous one is never UNAVAILABLE, because proxies repeat those.

use bytes::Bytes;
use prost::Message;
use tonic::{Code, Status};

use crate::v1;
use crate::{NodeId, RangeId};

/// Result with an [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why a request was not, or may not have been, carried out.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// Refresh the route: this replica does not lead, or no longer did when it would have
    /// proposed, or another leader's entry took the proposal's place: surely not applied.
    #[error("range {range} is not led by this node{}", leader_text(*.leader))]
    NotLeader {
        /// The range asked for.
        range: RangeId,
        /// The node that leads it, as far as this one knows.
        leader: Option<NodeId>,
        /// The range as this node knows it.
        descriptors: Vec<v1::RangeDescriptor>,
    },
    /// Refresh the route: the request's epoch is behind or ahead of the replica's.
    #[error("range {range} has another epoch than the request assumed")]
    EpochMismatch {
        /// The range asked for.
        range: RangeId,
        /// What this node knows of the span.
        descriptors: Vec<v1::RangeDescriptor>,
    },
    /// Refresh the route: a key lies outside the range.
    #[error("a key lies outside of range {range}")]
    KeyNotInRange {
        /// The range asked for.
        range: RangeId,
        /// What this node knows of the span.
        descriptors: Vec<v1::RangeDescriptor>,
    },
    /// Refresh the route: this node has no such range.
    #[error("this node has no replica of range {range}")]
    RangeNotFound {
        /// The range asked for.
        range: RangeId,
    },
    /// Retry later: the node has as much work queued as it accepts.
    #[error("the node is busy: {reason}")]
    ServerBusy {
        /// What is full.
        reason: String,
        /// When to try again, in milliseconds.
        retry_after_ms: u64,
    },
    /// Ambiguous: the write may have been applied, or may yet be.
    #[error("the outcome is unknown: {reason}")]
    Ambiguous {
        /// Why it is not known.
        reason: String,
    },
    /// Fail: an atomic batch touches more than one range.
    #[error("an atomic batch must stay within one range")]
    BatchSpansRanges {
        /// First keys of the ranges after the first one touched.
        borders: Vec<Bytes>,
    },
    /// Fail: the request breaks a rule or a limit.
    #[error("{what}")]
    InvalidArgument {
        /// What is wrong.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// Retry: the deadline passed, and surely nothing was applied.
    #[error("the request timed out {stage}; nothing was applied")]
    Timeout {
        /// Where it waited.
        stage: String,
    },
    /// Retry later: the disk, here or on too many replicas, is at its margin.
    #[error("disk space is at its margin on {}", nodes_text(.nodes))]
    DiskFull {
        /// Nodes without room.
        nodes: Vec<NodeId>,
    },
    /// Retry elsewhere or later: the node cannot serve now.
    #[error("the node cannot serve: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
    /// Fail: no keyspace has this name.
    #[error("there is no keyspace \"{name}\"")]
    KeyspaceNotFound {
        /// The name asked for.
        name: String,
    },
    /// Fail: a keyspace has this name already.
    #[error("there is a keyspace \"{name}\" already")]
    KeyspaceExists {
        /// The name.
        name: String,
    },
    /// Fail: data on disk or on the wire is not what was written.
    #[error("corrupt data: {what}")]
    Corruption {
        /// What was found where.
        what: String,
    },
    /// Fail: the other side belongs to another cluster or speaks another protocol.
    #[error("{what}")]
    ClusterMismatch {
        /// What differs.
        what: String,
    },
    /// Fail: the caller may not call this, by its certificate or for want of one.
    #[error("{what}")]
    AccessDenied {
        /// Who is refused what.
        what: String,
        /// What to do about it.
        hint: String,
    },
}

fn leader_text(leader: Option<NodeId>) -> String {
    leader.map_or_else(String::new, |node| format!("; node {} does", node.0))
}

fn nodes_text(nodes: &[NodeId]) -> String {
    let names: Vec<String> = nodes.iter().map(|node| format!("node {}", node.0)).collect();
    names.join(", ")
}

/// What a caller may do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Surely not applied: send the same request again, after a pause.
    Retry,
    /// Surely not applied: learn the route, then send again.
    RefreshRoute,
    /// Surely not applied, and it would fail again.
    Fail,
    /// May have been applied, or may yet be.
    Ambiguous,
}

impl Error {
    /// A bad request: what is wrong, and what to do about it.
    pub fn invalid(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::InvalidArgument { what: what.into(), hint: hint.into() }
    }

    /// What the caller may do.
    pub fn action(&self) -> Action {
        match self {
            Self::NotLeader { .. }
            | Self::EpochMismatch { .. }
            | Self::KeyNotInRange { .. }
            | Self::RangeNotFound { .. } => Action::RefreshRoute,
            Self::ServerBusy { .. } | Self::Timeout { .. } | Self::DiskFull { .. } | Self::Unavailable { .. } => {
                Action::Retry
            }
            Self::BatchSpansRanges { .. }
            | Self::InvalidArgument { .. }
            | Self::KeyspaceNotFound { .. }
            | Self::KeyspaceExists { .. }
            | Self::Corruption { .. }
            | Self::ClusterMismatch { .. }
            | Self::AccessDenied { .. } => Action::Fail,
            Self::Ambiguous { .. } => Action::Ambiguous,
        }
    }

    /// The kind, as the wire names it.
    pub fn kind(&self) -> v1::ErrorKind {
        match self {
            Self::NotLeader { .. } => v1::ErrorKind::NotLeader,
            Self::EpochMismatch { .. } => v1::ErrorKind::EpochMismatch,
            Self::KeyNotInRange { .. } => v1::ErrorKind::KeyNotInRange,
            Self::RangeNotFound { .. } => v1::ErrorKind::RangeNotFound,
            Self::ServerBusy { .. } => v1::ErrorKind::ServerBusy,
            Self::Ambiguous { .. } => v1::ErrorKind::Ambiguous,
            Self::BatchSpansRanges { .. } => v1::ErrorKind::BatchSpansRanges,
            Self::InvalidArgument { .. } => v1::ErrorKind::InvalidArgument,
            Self::Timeout { .. } => v1::ErrorKind::Timeout,
            Self::DiskFull { .. } => v1::ErrorKind::DiskFull,
            Self::Unavailable { .. } => v1::ErrorKind::Unavailable,
            Self::KeyspaceNotFound { .. } => v1::ErrorKind::KeyspaceNotFound,
            Self::KeyspaceExists { .. } => v1::ErrorKind::KeyspaceExists,
            Self::Corruption { .. } => v1::ErrorKind::Corruption,
            Self::ClusterMismatch { .. } => v1::ErrorKind::ClusterMismatch,
            Self::AccessDenied { .. } => v1::ErrorKind::AccessDenied,
        }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::NotLeader { .. } => "send the request to the leader, or to any node without a range id".into(),
            Self::EpochMismatch { .. } | Self::KeyNotInRange { .. } | Self::RangeNotFound { .. } => {
                "learn the route anew and send the request again".into()
            }
            Self::ServerBusy { retry_after_ms, .. } => format!("send it again after {retry_after_ms} ms"),
            Self::Ambiguous { .. } => {
                "read the key to see whether the write happened; a compare-and-swap on its version makes a repetition safe".into()
            }
            Self::BatchSpansRanges { .. } => {
                "cut the batch at the borders given, or send it without `atomic`".into()
            }
            Self::InvalidArgument { hint, .. } | Self::AccessDenied { hint, .. } => hint.clone(),
            Self::Timeout { .. } => "send it again; if it goes on, see `flotilla status`".into(),
            Self::DiskFull { .. } => "free disk space on these nodes, or delete keys; reads and deletes go on".into(),
            Self::Unavailable { .. } => "try another node, or this one later; see `flotilla status`".into(),
            Self::KeyspaceNotFound { .. } => "`flotilla keyspace list` shows the keyspaces there are".into(),
            Self::KeyspaceExists { .. } => "choose another name, or drop that keyspace first".into(),
            Self::Corruption { .. } => "keep the data directory for inspection; the other replicas hold the data".into(),
            Self::ClusterMismatch { .. } => "check the addresses: they must be those of one cluster".into(),
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::NotLeader { .. } | Self::EpochMismatch { .. } | Self::KeyNotInRange { .. } => {
                Code::FailedPrecondition
            }
            Self::RangeNotFound { .. } | Self::KeyspaceNotFound { .. } => Code::NotFound,
            Self::KeyspaceExists { .. } => Code::AlreadyExists,
            Self::ServerBusy { .. } | Self::DiskFull { .. } => Code::ResourceExhausted,
            Self::Ambiguous { .. } => Code::Unknown,
            Self::BatchSpansRanges { .. } | Self::InvalidArgument { .. } => Code::InvalidArgument,
            Self::Timeout { .. } => Code::DeadlineExceeded,
            Self::Unavailable { .. } => Code::Unavailable,
            Self::Corruption { .. } => Code::DataLoss,
            Self::ClusterMismatch { .. } => Code::FailedPrecondition,
            Self::AccessDenied { .. } => Code::PermissionDenied,
        }
    }
}

impl From<&Error> for v1::Error {
    fn from(error: &Error) -> Self {
        let mut wire = Self {
            kind: error.kind().into(),
            action: match error.action() {
                Action::Retry => v1::ErrorAction::Retry,
                Action::RefreshRoute => v1::ErrorAction::RefreshRoute,
                Action::Fail => v1::ErrorAction::Fail,
                Action::Ambiguous => v1::ErrorAction::Ambiguous,
            }
            .into(),
            message: message_of(error),
            hint: error.hint(),
            ..Self::default()
        };
        match error {
            Error::NotLeader { range, leader, descriptors } => {
                wire.range_id = range.0;
                wire.leader_node_id = leader.map_or(0, |node| node.0);
                wire.descriptors.clone_from(descriptors);
            }
            Error::EpochMismatch { range, descriptors } | Error::KeyNotInRange { range, descriptors } => {
                wire.range_id = range.0;
                wire.descriptors.clone_from(descriptors);
            }
            Error::RangeNotFound { range } => wire.range_id = range.0,
            Error::ServerBusy { retry_after_ms, .. } => wire.retry_after_ms = *retry_after_ms,
            Error::BatchSpansRanges { borders } => wire.borders.clone_from(borders),
            Error::DiskFull { nodes } => wire.node_ids = nodes.iter().map(|node| node.0).collect(),
            _ => {}
        }
        wire
    }
}

/// The variable part of an error's text: what [`Error::from`] needs to build the error again.
fn message_of(error: &Error) -> String {
    match error {
        Error::ServerBusy { reason, .. } | Error::Ambiguous { reason } | Error::Unavailable { reason } => {
            reason.clone()
        }
        Error::Timeout { stage } => stage.clone(),
        Error::KeyspaceNotFound { name } | Error::KeyspaceExists { name } => name.clone(),
        Error::Corruption { what } => what.clone(),
        other => other.to_string(),
    }
}

impl From<v1::Error> for Error {
    fn from(wire: v1::Error) -> Self {
        let range = RangeId(wire.range_id);
        let message = wire.message;
        let descriptors = wire.descriptors;
        match v1::ErrorKind::try_from(wire.kind).unwrap_or(v1::ErrorKind::Unspecified) {
            v1::ErrorKind::NotLeader => {
                let leader = (wire.leader_node_id != 0).then_some(NodeId(wire.leader_node_id));
                Self::NotLeader { range, leader, descriptors }
            }
            v1::ErrorKind::EpochMismatch => Self::EpochMismatch { range, descriptors },
            v1::ErrorKind::KeyNotInRange => Self::KeyNotInRange { range, descriptors },
            v1::ErrorKind::RangeNotFound => Self::RangeNotFound { range },
            v1::ErrorKind::ServerBusy => Self::ServerBusy { reason: message, retry_after_ms: wire.retry_after_ms },
            v1::ErrorKind::Ambiguous => Self::Ambiguous { reason: message },
            v1::ErrorKind::BatchSpansRanges => Self::BatchSpansRanges { borders: wire.borders },
            v1::ErrorKind::InvalidArgument => Self::InvalidArgument { what: message, hint: wire.hint },
            v1::ErrorKind::Timeout => Self::Timeout { stage: message },
            v1::ErrorKind::DiskFull => Self::DiskFull { nodes: wire.node_ids.into_iter().map(NodeId).collect() },
            v1::ErrorKind::Unavailable => Self::Unavailable { reason: message },
            v1::ErrorKind::KeyspaceNotFound => Self::KeyspaceNotFound { name: message },
            v1::ErrorKind::KeyspaceExists => Self::KeyspaceExists { name: message },
            v1::ErrorKind::Corruption => Self::Corruption { what: message },
            v1::ErrorKind::ClusterMismatch => Self::ClusterMismatch { what: message },
            v1::ErrorKind::AccessDenied => Self::AccessDenied { what: message, hint: wire.hint },
            // A newer node's error that this one has no name for: only its action is known, and an
            // action that is not known either means the outcome is not.
            v1::ErrorKind::Unspecified => match v1::ErrorAction::try_from(wire.action) {
                Ok(v1::ErrorAction::Retry) => Self::Unavailable { reason: message },
                Ok(v1::ErrorAction::RefreshRoute) => Self::EpochMismatch { range, descriptors },
                Ok(v1::ErrorAction::Fail) => Self::InvalidArgument { what: message, hint: wire.hint },
                _ => Self::Ambiguous { reason: message },
            },
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let details = v1::Error::from(&error).encode_to_vec();
        Self::with_details(error.code(), error.to_string(), details.into())
    }
}

/// An error of ours from a status; `None` where the status carries no details of ours, which
/// means that it came from the transport: whether the request was applied is then the caller's
/// to judge (for a write it is ambiguous).
pub fn from_status(status: &Status) -> Option<Error> {
    if status.details().is_empty() {
        return None;
    }
    let wire = v1::Error::decode(status.details()).ok()?;
    (wire.kind != 0 || wire.action != 0).then(|| wire.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Error> {
        let range = RangeId(7);
        let descriptors = vec![v1::RangeDescriptor { range_id: 7, ..Default::default() }];
        vec![
            Error::NotLeader { range, leader: Some(NodeId(2)), descriptors: descriptors.clone() },
            Error::NotLeader { range, leader: None, descriptors: vec![] },
            Error::EpochMismatch { range, descriptors: descriptors.clone() },
            Error::KeyNotInRange { range, descriptors },
            Error::RangeNotFound { range },
            Error::ServerBusy { reason: "full".into(), retry_after_ms: 20 },
            Error::Ambiguous { reason: "the stream broke".into() },
            Error::BatchSpansRanges { borders: vec![Bytes::from_static(b"m")] },
            Error::invalid("key of 9,000 bytes", "keys have at most 8,192 bytes"),
            Error::Timeout { stage: "in the queue".into() },
            Error::DiskFull { nodes: vec![NodeId(1), NodeId(3)] },
            Error::Unavailable { reason: "stopping".into() },
            Error::KeyspaceNotFound { name: "x".into() },
            Error::KeyspaceExists { name: "x".into() },
            Error::Corruption { what: "crc of entry 7".into() },
            Error::ClusterMismatch { what: "cluster 1, not 2".into() },
            Error::AccessDenied { what: "Report is for nodes".into(), hint: "use a node's certificate".into() },
        ]
    }

    #[test]
    fn every_error_survives_the_wire() {
        for error in all() {
            let status = Status::from(error.clone());
            assert_eq!(from_status(&status), Some(error));
        }
    }

    #[test]
    fn an_ambiguous_error_is_never_a_code_that_proxies_repeat() {
        for error in all().iter().filter(|error| error.action() == Action::Ambiguous) {
            assert_ne!(error.code(), Code::Unavailable);
        }
    }

    #[test]
    fn every_error_tells_what_to_do() {
        for error in all() {
            assert!(!error.hint().is_empty(), "{error}");
            assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn an_unknown_kind_without_an_action_is_ambiguous() {
        let error = Error::from(v1::Error { kind: 999, action: 999, ..Default::default() });
        assert_eq!(error.action(), Action::Ambiguous);
    }
}
