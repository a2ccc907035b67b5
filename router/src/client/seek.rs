//! Finds the node that leads a range, for the services without a route cache behind them: Admin and
//! Placement.
//!
//! ```text
//! a hint -> ask -> answer
//!            | NOT_LEADER: the node that it names, or the one that any node's table names; if nobody leads, an election
//!            |   is under way as a rule: the same node again, a moment later
//!            | no connection, UNAVAILABLE: the next address, with a pause after each round
//! ```
//! Invariants: an order that must not be given twice is not repeated once an answer may have been
//! lost; a node that answers that it cannot carry out a request is believed.

use std::error::Error as _;
use std::future::Future;
use std::time::Duration;

use flotilla_proto::error::Action;
use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::{Error, NodeId, RangeId, Result, error, v1};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{ConnectError, Response, Status};

use super::connection::status_text;
use super::endpoints::{Endpoints, RpcResult};
use super::named::NamedChannel;
use crate::core::{backoff, mix};

/// The longest wait before nodes are asked once more; the first ones are much shorter.
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// How long a range that no node has heard of may yet be told of: it may be the child of a split of this moment. Nodes
/// hear news within half a second.
const NEWS_TAKE: Duration = Duration::from_millis(1_500);
/// So many redirects to a named node are followed at once.
const REDIRECTS_AT_ONCE: u32 = 2;
/// So often a node that knows no leader is asked again before the others' tables are: those are large, and know less.
const ELECTION_TURNS: usize = 3;

/// Whether a request may be given again after an answer that may have been lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// A second time changes nothing.
    Freely,
    /// Only if it surely was not carried out; otherwise its outcome is unknown.
    IfNotDone,
}

/// One request that belongs to a range's leader.
pub(super) struct Seek<'a> {
    pub endpoints: &'a Endpoints,
    pub range: RangeId,
    pub repeat: Repeat,
    pub deadline: Instant,
    /// How long one node may take over its answer.
    pub attempt: Duration,
}

/// Why one attempt failed.
enum Failed {
    /// The node's own word.
    Answer(Error),
    /// Surely never carried out: no connection.
    NotSent(String),
    /// It may have been carried out.
    Lost(String),
}

impl Seek<'_> {
    /// Asks until the leader answers. `hint`: who probably leads. `learned` is told of all routes
    /// that were asked for on the way.
    pub(super) async fn run<A, F>(
        &self,
        hint: Option<NodeId>,
        learned: impl Fn(&v1::ListRangesResponse),
        ask: impl Fn(NamedChannel) -> F,
    ) -> Result<A>
    where
        F: Future<Output = RpcResult<A>>,
    {
        let mut named = hint.and_then(|node| self.endpoints.address_of(node));
        let (mut turn, mut redirects, mut pauses) = (0, 0, 0);
        let mut unheard_since = None;
        let mut last = "nobody was asked".to_string();
        while Instant::now() < self.deadline {
            let address = match named.take() {
                Some(address) => address,
                None => self.endpoints.address_at(turn),
            };
            let failed = match self.attempt(&address, &ask).await {
                Ok(answer) => {
                    self.endpoints.answered(&address);
                    return Ok(answer);
                }
                Err(failed) => failed,
            };
            let error = self.judge(&address, failed)?;
            last = format!("{address}: {error}");
            turn += 1;
            named = match &error {
                Error::NotLeader { leader: None, .. } if turn <= ELECTION_TURNS => Some(address),
                Error::NotLeader { leader, .. } => self.leader(&address, *leader, &learned).await,
                Error::RangeNotFound { range } => {
                    let since = *unheard_since.get_or_insert_with(Instant::now);
                    let late = since.elapsed() >= NEWS_TAKE;
                    self.leader_elsewhere(&address, *range, late, &learned).await.ok_or(error.clone())?
                }
                Error::Unavailable { .. } => None,
                // The right node, only not now.
                _ => Some(address),
            };
            let redirected = matches!(error, Error::NotLeader { leader: Some(_), .. }) && named.is_some();
            redirects += u32::from(redirected);
            if !redirected || redirects > REDIRECTS_AT_ONCE {
                sleep(self.pause(pauses)).await;
                pauses += 1;
            }
        }
        Err(Error::Timeout {
            stage: format!("while it looked for the leader of range {} (last: {last})", self.range.0),
        })
    }

    /// Growing, and with jitter: what is left of callers' times differs.
    fn pause(&self, pauses: u32) -> Duration {
        let left = self.deadline.saturating_duration_since(Instant::now());
        backoff(pauses, mix(u64::from(left.subsec_nanos()))).min(PAUSE_MAX)
    }

    async fn attempt<A, F>(&self, address: &str, ask: &impl Fn(NamedChannel) -> F) -> std::result::Result<A, Failed>
    where
        F: Future<Output = RpcResult<A>>,
    {
        let channel = self.endpoints.channel(address).map_err(Failed::Answer)?;
        let until = self.deadline.min(Instant::now() + self.attempt);
        match timeout_at(until, ask(channel)).await {
            Ok(result) => result.map(Response::into_inner).map_err(|status| Failed::of(&status)),
            Err(_) => Err(Failed::Lost("no answer in time".into())),
        }
    }

    /// The error to go on with, or the one to end with.
    fn judge(&self, address: &str, failed: Failed) -> Result<Error> {
        match failed {
            Failed::Answer(error) if matches!(error.action(), Action::Retry | Action::RefreshRoute) => Ok(error),
            // Whether it was carried out is nothing to worry about where it may be carried out twice.
            Failed::Answer(Error::Ambiguous { reason }) if self.repeat == Repeat::Freely => {
                Ok(Error::Unavailable { reason })
            }
            // Another cluster's node listens where one of this one did. Without a name the word is about the request.
            Failed::Answer(error @ Error::ClusterMismatch { .. }) if self.endpoints.knows_cluster() => {
                self.endpoints.silent(address);
                Ok(Error::Unavailable { reason: error.to_string() })
            }
            Failed::Answer(error) => Err(error),
            Failed::Lost(reason) if self.repeat == Repeat::IfNotDone => {
                Err(Error::Ambiguous { reason: format!("{address}: {reason}, after the order was sent") })
            }
            Failed::NotSent(reason) | Failed::Lost(reason) => {
                self.endpoints.silent(address);
                Ok(Error::Unavailable { reason })
            }
        }
    }

    /// The address of the leader that a node named, or that the nodes' tables name.
    async fn leader(
        &self,
        asked: &str,
        leader: Option<NodeId>,
        learned: &impl Fn(&v1::ListRangesResponse),
    ) -> Option<String> {
        let elsewhere = |address: &String| address != asked;
        if let Some(address) = leader.and_then(|node| self.endpoints.address_of(node)).filter(elsewhere) {
            return Some(address);
        }
        let routes = self.endpoints.route_of(self.range).await.ok()?;
        learned(&routes);
        let status = routes.ranges.iter().find(|status| is_of(status, self.range));
        let told = status.map(|status| NodeId(status.leader_node_id)).filter(|node| node.0 != 0);
        leader.or(told).and_then(|node| self.endpoints.address_of(node)).filter(elsewhere)
    }

    /// A node has not heard of a range: another node's table may name its leader, or it is the child of a split of
    /// this moment. Where to ask next; `None`: it is late, and there is no such range.
    async fn leader_elsewhere(
        &self,
        asked: &str,
        range: RangeId,
        late: bool,
        learned: &impl Fn(&v1::ListRangesResponse),
    ) -> Option<Option<String>> {
        if range != self.range {
            // The right node, which does not know the range that the request is about.
            return (!late).then(|| Some(asked.to_owned()));
        }
        let Ok(routes) = self.endpoints.route_of(range).await else { return Some(None) };
        learned(&routes);
        let Some(status) = routes.ranges.iter().find(|status| is_of(status, range)) else {
            return (!late || range == SYSTEM_RANGE).then_some(None);
        };
        let leader = self.endpoints.address_of(NodeId(status.leader_node_id));
        Some(leader.filter(|address| address != asked))
    }
}

fn is_of(status: &v1::RangeStatus, range: RangeId) -> bool {
    status.descriptor.as_ref().is_some_and(|descriptor| descriptor.range_id == range.0)
}

impl Failed {
    fn of(status: &Status) -> Self {
        if let Some(error) = error::from_status(status) {
            return Self::Answer(error);
        }
        let text = status_text(status);
        // The transport's own errors carry no details; only these are surely before the sending.
        let mut cause = status.source();
        while let Some(error) = cause {
            if error.is::<ConnectError>() {
                return Self::NotSent(text);
            }
            cause = error.source();
        }
        Self::Lost(text)
    }
}
