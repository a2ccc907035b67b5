//! Orders about ranges and nodes: split, check, events, move, drain.

use std::time::Duration;

use bytes::Bytes;
use flotilla_proto::ids::SYSTEM_RANGE;
#[allow(unused_imports, reason = "for the documentation")]
use flotilla_proto::{Error, NodeId, RangeId, Result, v1};

use super::super::named::Admin;
use super::{Client, Order, Repeat};

/// Where a range is split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SplitAt {
    /// At these keys, each becoming the first of a range.
    Keys(Vec<Bytes>),
    /// Into so many parts of about equal size.
    Parts(u32),
}

impl Client {
    /// Splits a range; returns it and its children, in key order.
    ///
    /// Errors: *retry*: [`Error::Timeout`]; *refresh the route*: [`Error::RangeNotFound`]; *fail*:
    /// [`Error::InvalidArgument`] (a key outside the range, equal to its start, or against the
    /// keyspace's boundary; too few keys for so many parts); *ambiguous*: [`Error::Ambiguous`]: see
    /// [`Client::list_ranges`] for what came of it.
    pub async fn split_range(&self, range: RangeId, at: SplitAt) -> Result<Vec<v1::RangeDescriptor>> {
        let (keys, parts) = match at {
            SplitAt::Keys(keys) => (keys, 0),
            SplitAt::Parts(parts) => (vec![], parts),
        };
        let request = v1::SplitRangeRequest { range_id: range.0, keys, parts, timeout_ms: self.timeout_ms() };
        let ask = |mut admin: Admin| {
            let request = request.clone();
            async move { admin.split_range(request).await }
        };
        // Given twice it would be refused for its own doing, or split the left part again.
        let answer: v1::SplitRangeResponse = self.ask_leader(range, self.order(Repeat::IfNotDone), ask).await?;
        self.router().learn_ranges(&answer.ranges);
        Ok(answer.ranges)
    }

    /// Has every replica of a range compute what it holds at one log index, and compares.
    ///
    /// Errors: *retry*: [`Error::Timeout`]; *refresh the route*: [`Error::RangeNotFound`]. A replica
    /// that cannot answer is not an error: the answer says so.
    pub async fn check_range(&self, range: RangeId) -> Result<v1::CheckRangeResponse> {
        let request = v1::CheckRangeRequest { range_id: range.0, timeout_ms: self.timeout_ms() };
        let ask = |mut admin: Admin| async move { admin.check_range(request).await };
        self.ask_leader(range, self.order(Repeat::Freely), ask).await
    }

    /// One node's own part of a check at a log index; a later index without spans: a snapshot took its replica there.
    ///
    /// Errors: *retry*: [`Error::Unavailable`], [`Error::Timeout`]; *refresh the route*:
    /// [`Error::RangeNotFound`]; *fail*: [`Error::InvalidArgument`] (no such node, no such check).
    pub async fn range_checksum(
        &self,
        on: NodeId,
        range: RangeId,
        check_id: u64,
        index: u64,
    ) -> Result<v1::RangeChecksumResponse> {
        let request = v1::RangeChecksumRequest { range_id: range.0, check_id, timeout_ms: self.timeout_ms(), index };
        self.ask_node(on, |mut admin: Admin| async move { admin.range_checksum(request).await }).await
    }

    /// What happened to a range on one node since that started, newest last.
    ///
    /// Errors: *retry*: [`Error::Unavailable`]; *fail*: [`Error::InvalidArgument`] (no such node is
    /// known).
    pub async fn range_events(&self, on: NodeId, range: RangeId) -> Result<Vec<v1::RangeEvent>> {
        let request = v1::RangeEventsRequest { range_id: range.0 };
        let ask = |mut admin: Admin| async move { admin.range_events(request).await };
        Ok(self.ask_node(on, ask).await?.events)
    }

    /// Moves a replica of a range from one node to another. Without `wait` it returns when that is
    /// decided; otherwise it waits so long for the end, and says whether that came.
    ///
    /// Errors: *retry*: [`Error::Timeout`], [`Error::Unavailable`]; *refresh the route*:
    /// [`Error::RangeNotFound`]; *fail*: [`Error::InvalidArgument`] (a node that is unknown, dead,
    /// full, draining, or has a replica already; a change that would lower safety).
    pub async fn move_replica(&self, range: RangeId, from: NodeId, to: NodeId, wait: Option<Duration>) -> Result<bool> {
        let wait = wait.unwrap_or_default();
        let request = v1::MoveReplicaRequest {
            range_id: range.0,
            from_node_id: from.0,
            to_node_id: to.0,
            timeout_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        };
        let ask = |mut admin: Admin| async move { admin.move_replica(request).await };
        // A new leader of the service finds the order decided, and waits on.
        let timeout = wait.saturating_add(self.timeout());
        let order = Order { repeat: Repeat::Freely, attempt: timeout, timeout };
        Ok(self.ask_leader(SYSTEM_RANGE, order, ask).await?.done)
    }

    /// Empties a node of leaders, and keeps new leaders and replicas away from it; `undo` ends that.
    /// May be repeated at will.
    ///
    /// Errors: *retry*: [`Error::Timeout`], [`Error::Unavailable`]; *fail*:
    /// [`Error::InvalidArgument`] (no such node).
    pub async fn drain_node(&self, node: NodeId, undo: bool) -> Result<()> {
        let request = v1::DrainNodeRequest { node_id: node.0, undo };
        let ask = |mut admin: Admin| async move { admin.drain_node(request).await };
        self.ask_leader(SYSTEM_RANGE, self.order(Repeat::Freely), ask).await.map(|v1::DrainNodeResponse {}| ())
    }
}
