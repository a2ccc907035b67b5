//! flotilla.v1.Placement: for nodes.

use flotilla_node::Node;
use flotilla_placement::{Request as Ask, Response as Answer};
use flotilla_proto::{Error, v1};
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

fn other_answer() -> Status {
    Error::Unavailable { reason: "the placement service answered something else".into() }.into()
}

#[tonic::async_trait]
impl v1::placement_server::Placement for PlacementRpc {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        match self.handle.ask(Ask::Join(request.into_inner())).await? {
            Answer::Join(answer) => {
                // It will call at once: here, at least, it is known by then.
                self.node.learn_nodes(&answer.nodes).await;
                Ok(Response::new(answer))
            }
            _ => Err(other_answer()),
        }
    }

    async fn report(&self, request: Request<v1::ReportRequest>) -> Result<Response<v1::ReportResponse>, Status> {
        match self.handle.ask(Ask::Report(Box::new(request.into_inner()))).await? {
            Answer::Report(answer) => Ok(Response::new(*answer)),
            _ => Err(other_answer()),
        }
    }
}
