//! flotilla.v1.Placement: for nodes.

use flotilla_node::Node;
use flotilla_proto::v1;
use tonic::{Request, Response, Status};

use super::Handle;

/// The service.
pub(crate) struct PlacementRpc {
    node: Node,
    handle: Handle,
}

impl PlacementRpc {
    pub fn new(node: Node, handle: Handle) -> Self {
        Self { node, handle }
    }
}

#[tonic::async_trait]
impl v1::placement_server::Placement for PlacementRpc {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let answer = self.handle.call(request).await?;
        // It will call at once: here, at least, it is known by then.
        self.node.learn_nodes(&answer.nodes).await;
        Ok(Response::new(answer))
    }

    async fn report(&self, request: Request<v1::ReportRequest>) -> Result<Response<v1::ReportResponse>, Status> {
        Ok(Response::new(self.handle.call(request).await?))
    }
}
