//! The router inside of a node: its own ranges are called directly, all others over the other nodes'
//! client ports; routes come from the node's table.

use std::sync::Arc;

use flotilla_node::Node;
use flotilla_proto::{Error, NodeId, Result, v1};
use flotilla_router::{CallOutcome, GrpcConfig, GrpcTransport, Places, RouteSource, Transport};
use flotilla_tls::Tls;

use super::placement::News;
use super::table::RouteTable;

/// Calls this node or another one.
pub(crate) struct NodeTransport {
    node: Node,
    remote: GrpcTransport,
}

impl NodeTransport {
    pub(super) fn new(node: Node, tls: Option<Arc<Tls>>) -> Self {
        let remote = GrpcTransport::new(GrpcConfig { tls, ..GrpcConfig::default() });
        Self { node, remote }
    }
}

impl Transport for NodeTransport {
    async fn call(&self, node: NodeId, request: v1::Request) -> CallOutcome {
        if node == self.node.node_id() {
            return CallOutcome::Response(self.node.execute(request).await);
        }
        self.remote.call(node, request).await
    }

    fn learn(&self, nodes: &[v1::NodeInfo]) {
        self.remote.learn(nodes);
    }
}

/// Routes as this node knows them.
pub(crate) struct NodeRoutes {
    table: RouteTable,
    news: News,
}

impl NodeRoutes {
    pub(super) fn new(table: RouteTable, news: News) -> Self {
        Self { table, news }
    }
}

impl RouteSource for NodeRoutes {
    async fn routes_at(&self, keyspace: &str, places: &Places) -> Result<v1::ListRangesResponse> {
        match self.table.look_up(keyspace, &places.lookup()) {
            // Its own ranges it knows anyway; without a word from placement or another node it cannot tell which others, and
            // which keyspaces, there are.
            Ok((_, false)) | Err(_) if self.table.is_empty() => {
                Err(Error::Unavailable { reason: "this node has not been told the cluster's ranges yet".into() })
            }
            found => Ok(found?.0),
        }
    }

    /// A keyspace that was just created is known to placement, and within a report to every node.
    async fn routes_with(&self, keyspace: &str) -> Result<v1::ListRangesResponse> {
        self.table.look_for_keyspace(&self.news, keyspace).await?;
        self.routes_at(keyspace, &Places::default()).await
    }
}
