//! flotilla.v1.Admin: what the cluster is made of, as this node knows it, and orders to its replicas.

use std::time::Duration;

use flotilla_node::Node;
use flotilla_proto::ids::DEFAULT_KEYSPACE_NAME;
use flotilla_proto::limits::{TIMEOUT_MS_DEFAULT, TIMEOUT_MS_MAX};
use flotilla_proto::{Error, NodeId, RangeId, v1};
use tonic::{Request, Response, Status};

/// The service.
pub(super) struct Service {
    node: Node,
}

impl Service {
    pub(super) fn new(node: Node) -> Self {
        Self { node }
    }

    /// Refuses a range that this node does not lead, with the leader as far as it is known; or one that
    /// no layout has.
    fn must_lead(&self, range: RangeId) -> Result<(), Error> {
        if self.node.leads(range) == Some(true) {
            return Ok(());
        }
        let known = self.node.routes().ranges.into_iter().filter_map(|status| status.descriptor);
        let descriptors: Vec<_> = known.filter(|descriptor| descriptor.range_id == range.0).collect();
        if descriptors.is_empty() {
            return Err(unknown_range(range));
        }
        Err(Error::NotLeader { range, leader: self.node.leader(range), descriptors })
    }
}

fn unknown_range(range: RangeId) -> Error {
    Error::invalid(format!("there is no range {}", range.0), "`flotilla range list` shows all ranges")
}

#[tonic::async_trait]
impl v1::admin_server::Admin for Service {
    async fn list_ranges(
        &self,
        request: Request<v1::ListRangesRequest>,
    ) -> Result<Response<v1::ListRangesResponse>, Status> {
        let keyspace = request.into_inner().keyspace;
        if !keyspace.is_empty() && keyspace != DEFAULT_KEYSPACE_NAME {
            return Err(Error::KeyspaceNotFound { name: keyspace }.into());
        }
        Ok(Response::new(self.node.routes()))
    }

    async fn get_range(&self, request: Request<v1::GetRangeRequest>) -> Result<Response<v1::GetRangeResponse>, Status> {
        let request = request.into_inner();
        let range = RangeId(request.range_id);
        if !request.local {
            self.must_lead(range)?;
        }
        Ok(Response::new(self.node.range_status(range).await?))
    }

    async fn list_nodes(&self, _: Request<v1::ListNodesRequest>) -> Result<Response<v1::ListNodesResponse>, Status> {
        Ok(Response::new(v1::ListNodesResponse { nodes: self.node.nodes() }))
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        let request = request.into_inner();
        let range = RangeId(request.range_id);
        self.must_lead(range)?;
        let timeout = if request.timeout_ms == 0 { TIMEOUT_MS_DEFAULT } else { request.timeout_ms.min(TIMEOUT_MS_MAX) };
        let done = self.node.transfer_leader(range, NodeId(request.to_node_id), Duration::from_millis(timeout)).await?;
        Ok(Response::new(done))
    }

    async fn node_status(&self, _: Request<v1::NodeStatusRequest>) -> Result<Response<v1::NodeStatusResponse>, Status> {
        Ok(Response::new(self.node.status()))
    }
}
