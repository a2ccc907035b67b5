//! flotilla.v1.Admin: what the cluster is made of, as this node knows it, and orders to its replicas.

use std::time::Duration;

use flotilla_engine::store::CheckStarted;
use flotilla_node::Node;
use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::limits::{TIMEOUT_MS_DEFAULT, TIMEOUT_MS_MAX};
use flotilla_proto::{Error, NodeId, RangeId, v1};
use tonic::{Request, Response, Status};

use super::check;
use super::placement::{Handle, News};
use super::table::{RouteTable, or_default};

/// The service.
pub(super) struct Service {
    node: Node,
    table: RouteTable,
    placement: Handle,
    news: News,
}

impl Service {
    pub(super) fn new(node: Node, table: RouteTable, placement: Handle, news: News) -> Self {
        Self { node, table, placement, news }
    }

    /// The refusal of a range that nobody has told of.
    fn unknown(&self, range: RangeId) -> Error {
        if self.table.is_empty() { blank() } else { Error::RangeNotFound { range } }
    }

    /// The ranges that somebody has a request for. What is not known here placement knows; but the system range is looked for
    /// because placement is not found.
    async fn look_up(&self, keyspace: &str, lookup: &v1::RangeLookup) -> Result<v1::ListRangesResponse, Error> {
        let name = or_default(keyspace);
        match self.table.look_up(name, lookup) {
            Ok((found, complete)) if complete || lookup.range_id == SYSTEM_RANGE.0 => return Ok(found),
            // An unknown keyspace is one of the things that placement knows.
            Ok(_) | Err(_) => {}
        }
        if lookup.range_id == 0 && !self.table.has_keyspace(name) {
            self.table.look_for_keyspace(&self.news, name).await?;
        } else {
            self.news.exchange().await;
        }
        Ok(self.table.look_up(name, lookup)?.0)
    }

    /// Refuses a range that this node does not lead, with the leader as far as it is known; or one that
    /// neither it nor placement knows.
    async fn must_lead(&self, range: RangeId) -> Result<(), Error> {
        if self.node.leads(range) == Some(true) {
            return Ok(());
        }
        let known = self.table.look_for_range(&self.news, range.0).await;
        let Some(route) = known else { return Err(self.unknown(range)) };
        let known = Some(NodeId(route.leader_node_id)).filter(|node| node.0 != 0 && *node != self.node.node_id());
        let leader = self.node.leader(range).or(known);
        Err(Error::NotLeader { range, leader, descriptors: vec![(*route.descriptor).clone()] })
    }
}

/// The refusal of a node that has just started: others know more.
fn blank() -> Error {
    Error::Unavailable { reason: "this node has not been told the cluster's ranges yet".into() }
}

fn timeout(millis: u64) -> Duration {
    Duration::from_millis(if millis == 0 { TIMEOUT_MS_DEFAULT } else { millis.min(TIMEOUT_MS_MAX) })
}

#[tonic::async_trait]
impl v1::admin_server::Admin for Service {
    async fn list_ranges(
        &self,
        request: Request<v1::ListRangesRequest>,
    ) -> Result<Response<v1::ListRangesResponse>, Status> {
        let v1::ListRangesRequest { keyspace, after, lookup } = request.into_inner();
        if !self.table.is_ready() {
            return Err(blank().into());
        }
        if let Some(lookup) = lookup {
            return Ok(Response::new(self.look_up(&keyspace, &lookup).await?));
        }
        if !keyspace.is_empty() && after.is_none() {
            self.table.look_for_keyspace(&self.news, &keyspace).await?;
            if !self.table.tiles(&keyspace) {
                // Some of them were not told here yet.
                self.news.exchange().await;
            }
        }
        Ok(Response::new(self.table.list(&keyspace, after.as_ref())?))
    }

    async fn get_range(&self, request: Request<v1::GetRangeRequest>) -> Result<Response<v1::GetRangeResponse>, Status> {
        let request = request.into_inner();
        let range = RangeId(request.range_id);
        if !request.local {
            self.must_lead(range).await?;
        }
        Ok(Response::new(self.node.range_status(range).await?))
    }

    async fn list_nodes(&self, _: Request<v1::ListNodesRequest>) -> Result<Response<v1::ListNodesResponse>, Status> {
        Ok(Response::new(v1::ListNodesResponse { nodes: self.table.nodes() }))
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        let request = request.into_inner();
        let range = RangeId(request.range_id);
        self.must_lead(range).await?;
        let done = self.node.transfer_leader(range, NodeId(request.to_node_id), timeout(request.timeout_ms)).await?;
        Ok(Response::new(done))
    }

    async fn node_status(&self, _: Request<v1::NodeStatusRequest>) -> Result<Response<v1::NodeStatusResponse>, Status> {
        Ok(Response::new(self.node.status()))
    }

    async fn split_range(
        &self,
        request: Request<v1::SplitRangeRequest>,
    ) -> Result<Response<v1::SplitRangeResponse>, Status> {
        let request = request.into_inner();
        let range = RangeId(request.range_id);
        self.must_lead(range).await?;
        let ranges = self.node.split(range, request.keys, request.parts, timeout(request.timeout_ms)).await?;
        Ok(Response::new(v1::SplitRangeResponse { ranges }))
    }

    async fn check_range(
        &self,
        request: Request<v1::CheckRangeRequest>,
    ) -> Result<Response<v1::CheckRangeResponse>, Status> {
        let request = request.into_inner();
        let range = RangeId(request.range_id);
        self.must_lead(range).await?;
        let answer = check::run(&self.node, range, timeout(request.timeout_ms)).await?;
        Ok(Response::new(answer))
    }

    async fn range_checksum(
        &self,
        request: Request<v1::RangeChecksumRequest>,
    ) -> Result<Response<v1::RangeChecksumResponse>, Status> {
        let request = request.into_inner();
        let (range, timeout) = (RangeId(request.range_id), timeout(request.timeout_ms));
        let check = CheckStarted { check_id: request.check_id, index: request.index };
        Ok(Response::new(self.node.checksums(range, check, timeout).await?))
    }

    async fn range_events(
        &self,
        request: Request<v1::RangeEventsRequest>,
    ) -> Result<Response<v1::RangeEventsResponse>, Status> {
        let events = self.node.range_events(RangeId(request.into_inner().range_id));
        Ok(Response::new(v1::RangeEventsResponse { events }))
    }

    async fn move_replica(
        &self,
        request: Request<v1::MoveReplicaRequest>,
    ) -> Result<Response<v1::MoveReplicaResponse>, Status> {
        Ok(Response::new(self.placement.call(request).await?))
    }

    async fn drain_node(
        &self,
        request: Request<v1::DrainNodeRequest>,
    ) -> Result<Response<v1::DrainNodeResponse>, Status> {
        Ok(Response::new(self.placement.call(request).await?))
    }

    async fn create_keyspace(
        &self,
        request: Request<v1::CreateKeyspaceRequest>,
    ) -> Result<Response<v1::CreateKeyspaceResponse>, Status> {
        Ok(Response::new(self.placement.call(request).await?))
    }

    async fn list_keyspaces(
        &self,
        _: Request<v1::ListKeyspacesRequest>,
    ) -> Result<Response<v1::ListKeyspacesResponse>, Status> {
        // With what was changed a moment ago, through whichever node; if placement is not reached, as known here.
        self.news.exchange().await;
        let keyspaces = self.table.keyspaces();
        Ok(Response::new(v1::ListKeyspacesResponse { keyspaces }))
    }

    async fn set_keyspace(
        &self,
        request: Request<v1::SetKeyspaceRequest>,
    ) -> Result<Response<v1::SetKeyspaceResponse>, Status> {
        Ok(Response::new(self.placement.call(request).await?))
    }

    async fn drop_keyspace(
        &self,
        request: Request<v1::DropKeyspaceRequest>,
    ) -> Result<Response<v1::DropKeyspaceResponse>, Status> {
        Ok(Response::new(self.placement.call(request).await?))
    }

    async fn placement_history(
        &self,
        request: Request<v1::PlacementHistoryRequest>,
    ) -> Result<Response<v1::PlacementHistoryResponse>, Status> {
        Ok(Response::new(self.placement.call(request).await?))
    }

    async fn range_explain(
        &self,
        request: Request<v1::RangeExplainRequest>,
    ) -> Result<Response<v1::RangeExplainResponse>, Status> {
        Ok(Response::new(self.placement.call(request).await?))
    }

    async fn placement_plan(
        &self,
        request: Request<v1::PlacementPlanRequest>,
    ) -> Result<Response<v1::PlacementPlanResponse>, Status> {
        Ok(Response::new(self.placement.call(request).await?))
    }

    async fn placement_status(
        &self,
        request: Request<v1::PlacementStatusRequest>,
    ) -> Result<Response<v1::PlacementStatusResponse>, Status> {
        Ok(Response::new(self.placement.call(request).await?))
    }

    async fn merge_ranges(
        &self,
        request: Request<v1::MergeRangesRequest>,
    ) -> Result<Response<v1::MergeRangesResponse>, Status> {
        Ok(Response::new(self.placement.call(request).await?))
    }

    async fn decommission_node(
        &self,
        request: Request<v1::DecommissionNodeRequest>,
    ) -> Result<Response<v1::DecommissionNodeResponse>, Status> {
        Ok(Response::new(self.placement.call(request).await?))
    }

    async fn maintain_node(
        &self,
        request: Request<v1::MaintainNodeRequest>,
    ) -> Result<Response<v1::MaintainNodeResponse>, Status> {
        Ok(Response::new(self.placement.call(request).await?))
    }
}
