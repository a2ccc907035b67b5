//! Questions to the placement service (what it decided, and what it would), and orders to it about neighbours and nodes.

use std::time::Duration;

use flotilla_proto::ids::SYSTEM_RANGE;
#[allow(unused_imports, reason = "for the documentation")]
use flotilla_proto::{Error, NodeId, RangeId, Result, v1};

use super::super::named::Admin;
use super::{Client, Order, Repeat};

impl Client {
    /// What the placement service decided of late, newest first.
    ///
    /// Errors: *retry*: [`Error::Timeout`], [`Error::Unavailable`].
    pub async fn placement_history(
        &self,
        request: v1::PlacementHistoryRequest,
    ) -> Result<v1::PlacementHistoryResponse> {
        let ask = |mut admin: Admin| async move { admin.placement_history(request).await };
        self.ask_leader(SYSTEM_RANGE, self.question(), ask).await
    }

    /// Why a range is where it is, what is under way, and what comes next; with so many entries of the history.
    ///
    /// Errors: *retry*: [`Error::Timeout`], [`Error::Unavailable`]; *refresh the route*: [`Error::RangeNotFound`];
    /// *fail*: [`Error::InvalidArgument`] (there is no such range, or it was merged away).
    pub async fn explain_range(&self, range: RangeId, history: u32) -> Result<v1::RangeExplainResponse> {
        let request = v1::RangeExplainRequest { range_id: range.0, history };
        let ask = |mut admin: Admin| async move { admin.range_explain(request).await };
        self.ask_leader(SYSTEM_RANGE, self.question(), ask).await
    }

    /// What the placement service would decide now; nothing is decided by asking.
    ///
    /// Errors: *retry*: [`Error::Timeout`], [`Error::Unavailable`].
    pub async fn placement_plan(&self) -> Result<v1::PlacementPlanResponse> {
        let ask = |mut admin: Admin| async move { admin.placement_plan(v1::PlacementPlanRequest {}).await };
        self.ask_leader(SYSTEM_RANGE, self.question(), ask).await
    }

    /// What the placement service knows that needs a person.
    ///
    /// Errors: *retry*: [`Error::Timeout`], [`Error::Unavailable`].
    pub async fn placement_status(&self) -> Result<v1::PlacementStatusResponse> {
        let ask = |mut admin: Admin| async move { admin.placement_status(v1::PlacementStatusRequest {}).await };
        self.ask_leader(SYSTEM_RANGE, self.question(), ask).await
    }

    /// Merges two neighbours, and waits so long for the end; false: it goes on.
    ///
    /// Errors: *retry*: [`Error::Timeout`], [`Error::Unavailable`]; *fail*: [`Error::InvalidArgument`] (they are not
    /// neighbours, or of two keyspaces, or busy with something else; it was given up, and why).
    pub async fn merge_ranges(&self, left: RangeId, right: RangeId, wait: Duration) -> Result<v1::MergeRangesResponse> {
        let request = v1::MergeRangesRequest {
            left_range_id: left.0,
            right_range_id: right.0,
            timeout_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1),
        };
        let ask = |mut admin: Admin| async move { admin.merge_ranges(request).await };
        // Asked for once more it waits on; but what is done by then is refused.
        let timeout = wait.saturating_add(self.timeout());
        let order = Order { repeat: Repeat::IfNotDone, attempt: timeout, timeout };
        self.ask_leader(SYSTEM_RANGE, order, ask).await
    }

    /// Has a node emptied and removed for good, or ends that; tells how far it is. May be repeated at will.
    ///
    /// Errors: *retry*: [`Error::Timeout`], [`Error::Unavailable`]; *fail*: [`Error::InvalidArgument`] (no such node;
    /// the others could not hold what there is).
    pub async fn decommission_node(&self, node: NodeId, undo: bool) -> Result<v1::DecommissionNodeResponse> {
        let request = v1::DecommissionNodeRequest { node_id: node.0, undo };
        let ask = |mut admin: Admin| async move { admin.decommission_node(request).await };
        self.ask_leader(SYSTEM_RANGE, self.order(Repeat::Freely), ask).await
    }

    /// Lets a node be away for so long without being taken for dead; zero ends that. May be repeated at will: the time
    /// counts from the last time.
    ///
    /// Errors: *retry*: [`Error::Timeout`], [`Error::Unavailable`]; *fail*: [`Error::InvalidArgument`] (no such node; no
    /// other that could take over).
    pub async fn maintain_node(&self, node: NodeId, time: Duration) -> Result<v1::MaintainNodeResponse> {
        let duration_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let request = v1::MaintainNodeRequest { node_id: node.0, duration_ms };
        let ask = |mut admin: Admin| async move { admin.maintain_node(request).await };
        self.ask_leader(SYSTEM_RANGE, self.order(Repeat::Freely), ask).await
    }
}
