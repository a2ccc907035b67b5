//! What a [`crate::Router`] needs from its surroundings: a way to a node, and a source of routes.

use std::future::Future;

use flotilla_proto::{NodeId, Result, v1};

use crate::core::{CallOutcome, Places};

/// A way to the nodes.
pub trait Transport: Send + Sync + 'static {
    /// Sends one request, and says what came of it. The header's `timeout_ms` is always set: a
    /// request that could not be sent within it is [`CallOutcome::NotSent`]. It may be sent before the
    /// future is polled; dropping the future before the request was sent cancels it. Called within a tokio runtime.
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
    /// The ranges of a keyspace (empty: the default one) at these places, some of their neighbours, and the nodes that they are
    /// on, as far as is known there. [`flotilla_proto::Error::KeyspaceNotFound`]: none of this name is known there.
    fn routes_at(&self, keyspace: &str, places: &Places)
    -> impl Future<Output = Result<v1::ListRangesResponse>> + Send;

    /// The keyspace, from somebody who knows whether there is one of this name: asked before a request is refused
    /// because there is none. [`flotilla_proto::Error::KeyspaceNotFound`]: surely none.
    fn routes_with(&self, keyspace: &str) -> impl Future<Output = Result<v1::ListRangesResponse>> + Send;
}
