//! What a [`crate::Router`] needs from its surroundings: a way to a node, and a source of routes.

use std::future::Future;

use flotilla_proto::{NodeId, Result, v1};

use crate::core::CallOutcome;

/// A way to the nodes.
pub trait Transport: Send + Sync + 'static {
    /// Sends one request, and says what came of it. The header's `timeout_ms` is always set: a
    /// request that could not be sent within it is [`CallOutcome::NotSent`]. Dropping the future
    /// before the request was sent cancels it.
    fn call(&self, node: NodeId, request: v1::Request) -> impl Future<Output = CallOutcome> + Send;

    /// What listens at this node's address belongs to another cluster: the address is not used for a while, unless it
    /// changes.
    fn disown(&self, node: NodeId) {
        let _ = node;
    }

    /// Told of the nodes, with their addresses, whenever routes were learned.
    fn learn(&self, nodes: &[v1::NodeInfo]) {
        let _ = nodes;
    }
}

/// Where routes come from: in a node its own tables, in a client any node's.
pub trait RouteSource: Send + Sync + 'static {
    /// The ranges, their leaders, and the nodes, as far as is known there.
    fn routes(&self) -> impl Future<Output = Result<v1::ListRangesResponse>> + Send;

    /// The same from somebody who knows whether there is a keyspace of this name: asked before a request is refused
    /// because there is none. [`flotilla_proto::Error::KeyspaceNotFound`]: surely none.
    fn routes_with(&self, keyspace: &str) -> impl Future<Output = Result<v1::ListRangesResponse>> + Send {
        let _ = keyspace;
        self.routes()
    }
}
