//! The placement service: requests and reports in; writes, answers and notes out.

use std::time::Duration;

use bytes::Bytes;
use flotilla_proto::{Error, Result, v1};

use crate::config::Config;
use crate::records::Change;

/// Chosen by the caller, one per request; returned with the answer.
pub type Token = u64;

/// Names a write until [`Service::written`].
pub type WriteId = u64;

/// What the service is asked for. [`Request::Report`] comes from nodes, the rest from people and new nodes.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// A node's report. Its answer leaves when the write that it caused, if any, is acknowledged.
    Report(Box<v1::ReportRequest>),
    /// A store wants to be a node.
    Join(v1::JoinRequest),
    /// Answered once every range of the keyspace is led.
    CreateKeyspace(v1::CreateKeyspaceRequest),
    /// Settings of a keyspace.
    SetKeyspace(v1::SetKeyspaceRequest),
    /// The keyspace and all it holds go.
    DropKeyspace(v1::DropKeyspaceRequest),
    /// Answered when the order is written, or, with a timeout, when it is fulfilled.
    MoveReplica(v1::MoveReplicaRequest),
    /// Draining begins or ends.
    DrainNode(v1::DrainNodeRequest),
}

/// The answer to a [`Request`], of the same name.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    /// To [`Request::Report`].
    Report(Box<v1::ReportResponse>),
    /// To [`Request::Join`].
    Join(v1::JoinResponse),
    /// To [`Request::CreateKeyspace`].
    CreateKeyspace(v1::CreateKeyspaceResponse),
    /// To [`Request::SetKeyspace`].
    SetKeyspace(v1::SetKeyspaceResponse),
    /// To [`Request::DropKeyspace`].
    DropKeyspace(v1::DropKeyspaceResponse),
    /// To [`Request::MoveReplica`].
    MoveReplica(v1::MoveReplicaResponse),
    /// To [`Request::DrainNode`].
    DrainNode(v1::DrainNodeResponse),
}

/// A batch for the system range. There is one under way at most; the next comes after [`Service::written`].
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// To be given back to [`Service::written`].
    pub id: WriteId,
    /// Atomic; at most 1,024 operations and 1.5 MiB.
    pub request: v1::WriteRequest,
}

/// What became of a [`Write`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every operation's result says `applied`.
    Applied,
    /// The results say that it was not applied: another service has written.
    Refused,
    /// Anything else: an error that does not prove that nothing was or will be written. An error that does prove
    /// it (NotLeader, busy) counts as this too: the service is loaded anew, which is cheap.
    Unknown,
}

/// The answer to one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The request's.
    pub token: Token,
    /// What to answer.
    pub result: Result<Response>,
}

/// What the caller is to do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effects {
    /// To be written to the system range; none or one.
    pub writes: Vec<Write>,
    /// To be sent out.
    pub answers: Vec<Answer>,
    /// For the log: decisions, each with its reason, and what became of them.
    pub notes: Vec<String>,
}

/// See the crate's documentation. Every method is cheap; afterwards the caller takes the effects.
pub struct Service {
    reign: u64,
    config: Config,
    now: Duration,
    effects: Effects,
}

impl Service {
    /// A service of reign `reign` (the term in which this node leads the system range) over all records of the system
    /// range: user key, value, version. Its first write, in the effects at once, takes the records over: from then
    /// on every older service's writes are refused. `now` counts from any origin, and only ever grows.
    ///
    /// The error says which record cannot be read; nothing may be guessed then, and no service can run.
    pub fn load(
        reign: u64,
        records: impl IntoIterator<Item = (Bytes, Bytes, u64)>,
        now: Duration,
        config: Config,
    ) -> std::result::Result<Self, String> {
        for (key, value, _version) in records {
            Change::decode(&key, &value)?;
        }
        Ok(Self { reign, config, now, effects: Effects::default() })
    }

    /// The reign that it was loaded for.
    pub fn reign(&self) -> u64 {
        self.reign
    }

    /// Takes a request in. It is answered by an effect, at once or later; every token is answered exactly once.
    pub fn request(&mut self, now: Duration, token: Token, request: Request) {
        self.now = now;
        drop(request);
        self.effects.answers.push(Answer { token, result: Err(self.gone()) });
    }

    /// Lets time-outs pass. To be called every 100 to 500 ms.
    pub fn tick(&mut self, now: Duration) {
        self.now = now;
    }

    /// What became of a write. After [`Outcome::Refused`] or [`Outcome::Unknown`] the service answers everything
    /// with an error and does nothing more: see [`Self::stopped`].
    pub fn written(&mut self, now: Duration, id: WriteId, outcome: Outcome) {
        self.now = now;
        let _ = (id, outcome);
    }

    /// Why the service must be loaded anew from the records, if it must: a write of its was refused, or its outcome
    /// is unknown.
    pub fn stopped(&self) -> Option<&str> {
        None
    }

    /// Ends the service, because this node does not lead the system range any more: what still waits is answered
    /// with an error, in the effects that this returns.
    pub fn close(mut self) -> Effects {
        self.take_effects()
    }

    /// What has come up since the last call.
    pub fn take_effects(&mut self) -> Effects {
        std::mem::take(&mut self.effects)
    }

    /// All routes, in order of keyspace and key.
    pub fn routes(&self) -> Vec<v1::RangeStatus> {
        Vec::new()
    }

    /// Whether every node that is not dead has reported to this reign, and the routes tile every keyspace.
    pub fn complete(&self) -> bool {
        false
    }

    /// The keyspaces that clients may use, by id.
    pub fn keyspaces(&self) -> Vec<v1::Keyspace> {
        Vec::new()
    }

    /// The nodes as last reported, by id.
    pub fn nodes(&self) -> Vec<v1::NodeInfo> {
        Vec::new()
    }

    /// The orders under way, by range, each with its reason.
    pub fn orders(&self) -> Vec<v1::OrderRecord> {
        Vec::new()
    }

    fn gone(&self) -> Error {
        Error::Unavailable {
            reason: format!("the placement service cannot answer within {:?}", self.config.create_wait),
        }
    }
}
