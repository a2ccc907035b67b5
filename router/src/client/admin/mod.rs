//! The client library: what the cluster is made of, and orders to it.
//!
//! Orders about a range go to its leader ([`ranges`]), those about nodes and keyspaces to the leader
//! of the system range, where the placement service runs ([`keyspaces`], [`placement`], and moves and drains).

mod keyspaces;
mod placement;
mod ranges;

use std::future::Future;
use std::time::Duration;

use flotilla_proto::{Error, NodeId, RangeId, Result, v1};
use tokio::time::{Instant, timeout_at};

use super::api::Client;
use super::endpoints::{Endpoints, RpcResult, admin, answer};
use super::named::Admin;
use super::seek::{Repeat, Seek};
use super::transport::Transport;

pub use ranges::SplitAt;

impl Client {
    /// The ranges with their leaders, and the nodes, as any one node knows them.
    ///
    /// Errors: *retry*: [`Error::Unavailable`], if no node answers.
    pub async fn list_ranges(&self) -> Result<v1::ListRangesResponse> {
        let routes = self.endpoints().list("").await?;
        self.router().merge(&routes)?;
        Ok(routes)
    }

    /// The ranges of one keyspace with their leaders, as any one node knows them; one that has not heard of it, or of any
    /// range of it, asks placement first.
    ///
    /// Errors: *retry*: [`Error::Unavailable`], if no node answers; *fail*: [`Error::KeyspaceNotFound`].
    pub async fn list_ranges_of(&self, keyspace: &str) -> Result<v1::ListRangesResponse> {
        let routes = self.endpoints().list(keyspace).await?;
        self.router().merge(&routes)?;
        Ok(routes)
    }

    /// The nodes, as any one node knows them.
    ///
    /// Errors: *retry*: [`Error::Unavailable`], if no node answers.
    pub async fn list_nodes(&self) -> Result<Vec<v1::NodeInfo>> {
        let ask = |mut admin: Admin| async move { admin.list_nodes(v1::ListNodesRequest {}).await };
        let answer = self.endpoints().ask_any(ask).await?;
        self.endpoints().learn(&answer.nodes);
        self.router().transport().learn(&answer.nodes);
        Ok(answer.nodes)
    }

    /// One range with the Raft state of its leader, or of its replica on `local_on`.
    ///
    /// Errors: *retry*: [`Error::Timeout`] (no leader was found in time), [`Error::Unavailable`];
    /// *refresh the route*: [`Error::RangeNotFound`].
    pub async fn get_range(&self, range: RangeId, local_on: Option<NodeId>) -> Result<v1::GetRangeResponse> {
        let request = v1::GetRangeRequest { range_id: range.0, local: local_on.is_some() };
        let ask = |mut admin: Admin| async move { admin.get_range(request).await };
        match local_on {
            Some(node) => self.ask_node(node, ask).await,
            None => self.ask_leader(range, self.question(), ask).await,
        }
    }

    /// Hands a range's leadership to its replica on another node; returns when that one has it.
    /// May be repeated at will.
    ///
    /// Errors: *retry*: [`Error::Timeout`], [`Error::Unavailable`]; *refresh the route*:
    /// [`Error::RangeNotFound`]; *fail*: [`Error::InvalidArgument`] (no replica there).
    pub async fn transfer_leader(&self, range: RangeId, to: NodeId) -> Result<v1::TransferLeaderResponse> {
        let request = v1::TransferLeaderRequest { range_id: range.0, to_node_id: to.0, timeout_ms: self.timeout_ms() };
        let ask = |mut admin: Admin| async move { admin.transfer_leader(request).await };
        let answer = self.ask_leader(range, self.order(Repeat::Freely), ask).await?;
        // The routes follow by themselves; this saves the next request a redirect.
        self.router().learn_leader(range, NodeId(answer.leader_node_id), answer.term);
        Ok(answer)
    }

    /// A node's own state and figures.
    ///
    /// Errors: *retry*: [`Error::Unavailable`], [`Error::Timeout`]; *fail*:
    /// [`Error::InvalidArgument`] (no such node is known).
    pub async fn node_status(&self, node: NodeId) -> Result<v1::NodeStatusResponse> {
        self.ask_node(node, |mut admin: Admin| async move { admin.node_status(v1::NodeStatusRequest {}).await }).await
    }

    /// The state and figures of the node at an address.
    ///
    /// Errors: as [`Client::node_status`].
    pub async fn node_status_at(&self, address: &str) -> Result<v1::NodeStatusResponse> {
        let ask = |mut admin: Admin| async move { admin.node_status(v1::NodeStatusRequest {}).await };
        self.ask_at(address, self.deadline(), &ask).await
    }

    pub(super) fn endpoints(&self) -> &Endpoints {
        self.router().source()
    }

    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.timeout()
    }

    async fn ask_at<A, F>(&self, address: &str, deadline: Instant, ask: &impl Fn(Admin) -> F) -> Result<A>
    where
        F: Future<Output = RpcResult<A>>,
    {
        let admin = self.endpoints().admin(address)?;
        match timeout_at(deadline, ask(admin)).await {
            Ok(result) => answer(address, result),
            Err(_) => Err(Error::Unavailable { reason: format!("{address}: no answer in time") }),
        }
    }

    async fn ask_node<A, F>(&self, node: NodeId, ask: impl Fn(Admin) -> F) -> Result<A>
    where
        F: Future<Output = RpcResult<A>>,
    {
        if self.endpoints().address_of(node).is_none() {
            self.list_nodes().await?;
        }
        let address = self.endpoints().address_of(node).ok_or_else(|| {
            Error::invalid(format!("no address of node {} is known", node.0), "see the nodes by `flotilla node list`")
        })?;
        self.ask_at(&address, self.deadline(), &ask).await
    }

    /// Asks the range's leader, wherever it goes meanwhile.
    async fn ask_leader<A, F>(&self, range: RangeId, order: Order, ask: impl Fn(Admin) -> F) -> Result<A>
    where
        F: Future<Output = RpcResult<A>>,
    {
        let Order { repeat, attempt, timeout } = order;
        let seek = Seek { endpoints: self.endpoints(), range, repeat, deadline: Instant::now() + timeout, attempt };
        // Routes of another cluster do not come this far; if they did, they would be refused, and nothing be learned.
        let learned = |routes: &v1::ListRangesResponse| drop(self.router().merge_found(routes));
        seek.run(self.router().leader_of(range), learned, |channel| ask(admin(channel))).await
    }

    /// A question: may be repeated at will, and is answered soon.
    fn question(&self) -> Order {
        Order { repeat: Repeat::Freely, attempt: self.endpoints().patience(), timeout: self.timeout() }
    }

    /// An order that takes its time.
    fn order(&self, repeat: Repeat) -> Order {
        Order { repeat, attempt: self.timeout(), timeout: self.timeout() }
    }
}

/// How a leader is asked.
#[derive(Clone, Copy)]
struct Order {
    repeat: Repeat,
    /// How long one node may take.
    attempt: Duration,
    /// How long all of it may take.
    timeout: Duration,
}
