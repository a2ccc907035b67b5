//! The placement service: requests and reports in; writes, answers and notes out.
//!
//! ```text
//! request --> checked against State::ahead --> changes staged --> Effects::writes --> the system range
//!                                                                                         |
//! answers <-- waiters whose unit is acknowledged <-- State::acked <-- written(Applied) <--+
//! ```
//! Reports also feed the routing table, and each may set off a round of decisions (rounds.rs).

use std::time::Duration;

use bytes::Bytes;
use flotilla_proto::{Error, Result, v1};

use crate::config::Config;
use crate::places::Places;
use crate::records::{Change, Counter};
use crate::recovery::LEAP;
use crate::state::{Records, State};
use crate::waiters::{Waiter, Wants};
use crate::work::Work;
use crate::writes::Writer;

/// Bits of the reign that nodes are told which count the loads of the service within a term.
const LOAD_BITS: u32 = 20;

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
    /// What was decided of late.
    History(v1::PlacementHistoryRequest),
    /// Why a range is where it is.
    Explain(v1::RangeExplainRequest),
    /// What would be decided now.
    Plan(v1::PlacementPlanRequest),
    /// What needs a person.
    Status(v1::PlacementStatusRequest),
    /// A node is to be emptied and removed, or that ends. Answered when it is decided.
    DecommissionNode(v1::DecommissionNodeRequest),
    /// A node is expected to be away, or is not any more.
    MaintainNode(v1::MaintainNodeRequest),
    /// Answered when the two are one, or will not be, or when the time is over.
    MergeRanges(v1::MergeRangesRequest),
    /// Nodes are gone for good, and ranges went on without them.
    RecordRecovery(v1::RecordRecoveryRequest),
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
    /// To [`Request::History`].
    History(v1::PlacementHistoryResponse),
    /// To [`Request::Explain`].
    Explain(Box<v1::RangeExplainResponse>),
    /// To [`Request::Plan`].
    Plan(v1::PlacementPlanResponse),
    /// To [`Request::Status`].
    Status(v1::PlacementStatusResponse),
    /// To [`Request::DecommissionNode`].
    DecommissionNode(v1::DecommissionNodeResponse),
    /// To [`Request::MaintainNode`].
    MaintainNode(v1::MaintainNodeResponse),
    /// To [`Request::MergeRanges`].
    MergeRanges(v1::MergeRangesResponse),
    /// To [`Request::RecordRecovery`].
    RecordRecovery(v1::RecordRecoveryResponse),
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

impl Outcome {
    /// What the system range's answer to a [`Write`] says; `None`: it was answered with an error.
    pub fn of(results: Option<&[v1::BatchResult]>) -> Self {
        let applied = |result: &v1::BatchResult| match &result.outcome {
            Some(v1::batch_result::Outcome::Result(result)) => Some(result.applied),
            _ => None,
        };
        let all = |results: &[v1::BatchResult]| results.iter().map(applied).collect::<Option<Vec<bool>>>();
        match results.and_then(all) {
            Some(all) if all.iter().all(|applied| *applied) => Self::Applied,
            Some(_) => Self::Refused,
            None => Self::Unknown,
        }
    }
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
#[derive(Debug)]
pub struct Service {
    /// What nodes know this service by: the term, and in its low bits which load it is. No two services that have
    /// answered a report have the same one, and later ones have larger ones.
    pub(crate) reign: u64,
    pub(crate) state: State,
    pub(crate) writer: Writer,
    pub(crate) waiters: Vec<Waiter>,
    pub(crate) work: Work,
    pub(crate) effects: Effects,
    pub(crate) stopped: Option<String>,
}

impl Service {
    /// A service of reign `reign` (the term in which this node leads the system range) over all records of the system
    /// range: user key, value, version. Its first write, in the effects at once, takes the records over: from then
    /// on every older service's writes are refused. `now` counts from any origin, and only ever grows.
    ///
    /// The error says which record cannot be read, or is missing; nothing may be guessed then, and no service can run.
    pub fn load(
        reign: u64,
        records: impl IntoIterator<Item = (Bytes, Bytes, u64)>,
        now: Duration,
        config: Config,
    ) -> std::result::Result<Self, String> {
        let mut loaded = Records::default();
        let mut reign_version = None;
        for (key, value, version) in records {
            let change = Change::decode(&key, &value)?;
            if matches!(change, Change::Reign(_)) {
                reign_version = Some(version);
            }
            loaded.apply(&change);
        }
        loaded.check()?;
        let reign_version = reign_version.ok_or("the system range holds no record of the service's reign")?;
        if loaded.reign.reign > reign {
            return Err(format!("a service of reign {} has been here; this one is of {reign}", loaded.reign.reign));
        }
        let leaps = leaps_if_recovered(&loaded, reign, &config);
        let mut ahead = loaded.clone();
        ahead.reign = v1::ReignRecord { reign, loads: loaded.reign.loads + 1, ..loaded.reign };
        for change in &leaps {
            ahead.apply(change);
            match change {
                Change::Next(Counter::Node, next) => ahead.reign.first_node_id = *next,
                Change::Next(Counter::Range, next) => ahead.reign.first_range_id = *next,
                _ => {}
            }
        }
        let record = ahead.reign;
        let work = Work::new(&loaded, now);
        let mut state = State {
            config,
            now,
            unix_ms_at_origin: 0,
            loaded_at: now,
            joined: Default::default(),
            settled: false,
            acked: loaded,
            ahead,
            table: Default::default(),
            reports: Default::default(),
            places: Default::default(),
            speeds: Default::default(),
            heat: Default::default(),
            maintenance: Default::default(),
            pairs: Default::default(),
        };
        state.places = Places::of(&state.ahead);
        state.acked.orders.keys().for_each(|range| state.table.set_tasked(*range, true));
        state.load_maintenance();
        let mut service = Self {
            reign: (reign << LOAD_BITS) | (record.loads & ((1 << LOAD_BITS) - 1)),
            state,
            writer: Writer::new(record, reign_version),
            waiters: Vec::new(),
            work,
            effects: Effects::default(),
            stopped: None,
        };
        if !leaps.is_empty() {
            service.writer.stage_first(leaps);
            let words = "the system range was recovered: ids go on far beyond those that were given out";
            service.effects.notes.push(words.into());
        }
        service.pump();
        Ok(service)
    }

    /// The reign that it was loaded for.
    pub fn reign(&self) -> u64 {
        self.reign >> LOAD_BITS
    }

    /// Takes a request in. It is answered by an effect, at once or later; every token is answered exactly once.
    pub fn request(&mut self, now: Duration, token: Token, request: Request) {
        self.advance(now);
        let taken = match &self.stopped {
            Some(why) => Err(Error::Unavailable { reason: why.clone() }),
            None => match request {
                Request::Report(report) => self.on_report(token, &report),
                Request::Join(request) => self.on_join(token, request),
                Request::CreateKeyspace(request) => self.on_create_keyspace(token, request),
                Request::SetKeyspace(request) => self.on_set_keyspace(token, &request),
                Request::DropKeyspace(request) => self.on_drop_keyspace(token, &request),
                Request::MoveReplica(request) => self.on_move_replica(token, &request),
                Request::DrainNode(request) => self.on_drain_node(token, &request),
                Request::History(request) => self.on_history(token, &request),
                Request::Explain(request) => self.on_explain(token, &request),
                Request::Plan(_) => {
                    self.on_plan(token);
                    Ok(())
                }
                Request::Status(_) => {
                    self.on_status(token);
                    Ok(())
                }
                Request::DecommissionNode(request) => self.on_decommission_node(token, &request),
                Request::MaintainNode(request) => self.on_maintain_node(token, &request),
                Request::MergeRanges(request) => self.on_merge_ranges(token, &request),
                Request::RecordRecovery(request) => self.on_record_recovery(token, &request),
            },
        };
        if let Err(error) = taken {
            self.effects.answers.push(Answer { token, result: Err(error) });
        }
        self.pump();
    }

    /// Lets time-outs pass. To be called every 100 to 500 ms.
    pub fn tick(&mut self, now: Duration) {
        self.advance(now);
        if self.stopped.is_none() {
            self.state.settle();
            self.maintain();
            self.work.stir();
            self.round();
            self.write_seen();
        }
        self.pump();
    }

    /// What became of a write. After [`Outcome::Refused`] or [`Outcome::Unknown`] the service answers everything
    /// with an error and does nothing more: see [`Self::stopped`].
    pub fn written(&mut self, now: Duration, id: WriteId, outcome: Outcome) {
        self.advance(now);
        match outcome {
            Outcome::Applied => {
                for change in self.writer.done(id).unwrap_or_default() {
                    self.acknowledge(&change);
                }
            }
            Outcome::Refused => self.stop("another placement service has written: this one is not the newest", false),
            Outcome::Unknown => self.stop("it is not known whether the placement service's last write happened", true),
        }
        self.pump();
    }

    /// Why the service must be loaded anew from the records, if it must: a write of its was refused, or its outcome
    /// is unknown.
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.as_deref()
    }

    /// Ends the service, because this node does not lead the system range any more: what still waits is answered
    /// with an error, in the effects that this returns.
    pub fn close(mut self) -> Effects {
        self.stop("this node does not lead the system range any more", true);
        self.take_effects()
    }

    /// What has come up since the last call.
    pub fn take_effects(&mut self) -> Effects {
        std::mem::take(&mut self.effects)
    }

    /// All routes, in order of keyspace and key.
    pub fn routes(&self) -> Vec<v1::RangeStatus> {
        self.state.table.in_order().map(|route| route.status()).collect()
    }

    /// Whether every node that is not dead has reported to this reign, and the routes tile every keyspace.
    pub fn complete(&self) -> bool {
        let tiled = |keyspace: &v1::Keyspace| {
            keyspace.state() == v1::KeyspaceState::Dropped || self.state.table.tiles(keyspace.keyspace_id)
        };
        self.state.settled && self.state.acked.keyspaces.values().all(tiled)
    }

    /// The keyspaces that clients may use, by id.
    pub fn keyspaces(&self) -> Vec<v1::Keyspace> {
        self.state.acked.offered()
    }

    /// The nodes as last reported, by id: those that were removed are left out.
    pub fn nodes(&self) -> Vec<v1::NodeInfo> {
        let state = &self.state;
        let info = |record: &v1::NodeRecord| {
            let report = state.reports.node(record.node_id);
            let holding = state.table.holding(record.node_id);
            let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
            v1::NodeInfo {
                node_id: record.node_id,
                peer_addr: record.peer_addr.clone(),
                client_addr: record.client_addr.clone(),
                http_addr: record.http_addr.clone(),
                version: record.version.clone(),
                live: state.is_live(record.node_id),
                boot_id: report.map_or(0, |report| report.info.boot_id),
                last_heard_ms: state.silence(record.node_id).as_millis() as u64,
                disk_full: report.is_some_and(|report| report.disk_full),
                replicas: holding.map_or(0, |holding| count(holding.held.len())),
                leaders: holding.map_or(0, |holding| count(holding.led.len())),
                data_bytes: holding.map_or(0, |holding| holding.bytes),
                draining: record.draining,
                labels: record.labels.clone(),
                decommissioning: record.decommissioning,
                decommission_from: record.decommission_from,
                maintenance_left_ms: state.maintenance_left(record.node_id).as_millis() as u64,
                slow: state.speeds.slow(record.node_id).unwrap_or_default().into(),
                load: holding.map(|holding| holding.load).filter(|load| *load != v1::RangeLoad::default()),
            }
        };
        state.acked.nodes.values().filter(|record| !record.removed).map(info).collect()
    }

    /// The orders under way, by range, each with its reason.
    pub fn orders(&self) -> Vec<v1::OrderRecord> {
        self.state.acked.orders.values().cloned().collect()
    }

    fn advance(&mut self, now: Duration) {
        self.state.now = self.state.now.max(now);
    }

    /// Writes what is staged, and answers what is settled.
    fn pump(&mut self) {
        if self.stopped.is_some() {
            return;
        }
        self.answer_waiters();
        self.effects.writes.extend(self.writer.next());
    }

    /// Changes that take effect together: for decisions now, for all else when they are acknowledged.
    pub(crate) fn stage(&mut self, changes: Vec<Change>) -> u64 {
        for change in &changes {
            self.state.ahead.apply(change);
        }
        if changes.iter().any(|change| matches!(change, Change::Node(_) | Change::Keyspace(_))) {
            self.state.places = Places::of(&self.state.ahead);
        }
        self.writer.stage(changes)
    }

    fn acknowledge(&mut self, change: &Change) {
        self.state.acked.apply(change);
        match change {
            Change::Order(range, _) => {
                self.state.table.set_tasked(*range, true);
                self.work.order_began(*range, self.state.now);
            }
            Change::NoOrder(range) => {
                self.state.table.set_tasked(*range, false);
                self.work.order_ended(*range);
            }
            Change::Keyspace(keyspace) if keyspace.state() == v1::KeyspaceState::Dropped => {
                self.forget_keyspace(keyspace.keyspace_id);
            }
            _ => {}
        }
    }

    fn stop(&mut self, why: &str, unknown: bool) {
        self.stopped.get_or_insert_with(|| why.into());
        self.effects.writes.clear();
        for waiter in std::mem::take(&mut self.waiters) {
            let report = matches!(waiter.wants, Wants::Report { .. });
            let written = self.writer.is_acked(waiter.unit);
            let maybe = unknown && self.writer.is_under_way(waiter.unit);
            let error = if !report && (written || maybe) {
                Error::Ambiguous { reason: why.into() }
            } else {
                Error::Unavailable { reason: why.into() }
            };
            self.effects.answers.push(Answer { token: waiter.token, result: Err(error) });
        }
    }
}

/// If the system range went on without its majority since the last service: what that service did last may be lost, ids
/// that it gave out among it. So the next ones are far beyond them. A recovery shows in the term, which leaps with it,
/// and grows by one with each election otherwise.
fn leaps_if_recovered(loaded: &Records, reign: u64, config: &Config) -> Vec<Change> {
    if reign < loaded.reign.reign + LEAP {
        return Vec::new();
    }
    let leap = |counter: Counter| {
        let by = if counter == Counter::Node { config.node_ids_leap } else { LEAP };
        loaded.next.get(&counter).map(|next| Change::Next(counter, next + by))
    };
    Counter::ALL.into_iter().filter_map(leap).collect()
}
