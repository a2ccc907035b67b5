//! flotilla.v1.Placement: for nodes. Under TLS a node speaks for itself alone, and joins as the one that its
//! certificate names.

use flotilla_node::{Caller, Node};
use flotilla_proto::{Error, NodeId, v1};
use flotilla_tls::{Identity, Role, Shown};
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
        let mut request = request;
        if let Some(node) = certified(&request) {
            request.get_mut().node_id = node.0;
        }
        let answer = self.handle.call(request).await?;
        // It will call at once: here, at least, it is known by then.
        self.node.learn_nodes(&answer.nodes).await;
        Ok(Response::new(answer))
    }

    async fn report(&self, request: Request<v1::ReportRequest>) -> Result<Response<v1::ReportResponse>, Status> {
        let says = request.get_ref().node.as_ref().map_or(0, |node| node.node_id);
        if let Some(node) = certified(&request).filter(|node| node.0 != says) {
            let what = format!("a report of node {says} comes with the certificate of node {}", node.0);
            let hint = "each node needs its own certificate, made with `flotilla cert node`";
            return Err(Error::AccessDenied { what, hint: hint.into() }.into());
        }
        Ok(Response::new(self.handle.call(request).await?))
    }
}

/// The node that the caller's certificate names; `None` in plain text.
fn certified<T>(request: &Request<T>) -> Option<NodeId> {
    match request.extensions().get::<Caller>()?.guest().shown() {
        Shown::Identity(Identity { role: Role::Node(node), .. }) => Some(*node),
        _ => None,
    }
}
