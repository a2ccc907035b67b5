//! The client library: what the cluster is made of, and orders to it.

use std::future::Future;
use std::time::Duration;

use flotilla_proto::error::Action;
use flotilla_proto::{Error, NodeId, RangeId, Result, v1};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::transport::Channel;
use v1::admin_client::AdminClient;

use super::api::Client;
use super::endpoints::{Endpoints, RpcResult, answer};
use super::transport::{RouteSource, Transport};

/// How long to wait before a range's leader is looked for again.
const PAUSE: Duration = Duration::from_millis(50);

impl Client {
    /// The ranges with their leaders, and the nodes, as any one node knows them.
    ///
    /// Errors: *retry*: [`Error::Unavailable`], if no node answers.
    pub async fn list_ranges(&self) -> Result<v1::ListRangesResponse> {
        let routes = self.endpoints().routes().await?;
        self.router().merge(&routes);
        Ok(routes)
    }

    /// The nodes, as any one node knows them.
    ///
    /// Errors: *retry*: [`Error::Unavailable`], if no node answers.
    pub async fn list_nodes(&self) -> Result<Vec<v1::NodeInfo>> {
        let ask = |mut admin: AdminClient<Channel>| async move { admin.list_nodes(v1::ListNodesRequest {}).await };
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
        let ask = |mut admin: AdminClient<Channel>| async move { admin.get_range(request).await };
        match local_on {
            Some(node) => self.ask_node(node, ask).await,
            None => self.ask_leader(range, ask).await,
        }
    }

    /// Hands a range's leadership to its replica on another node; returns when that one has it.
    /// May be repeated at will.
    ///
    /// Errors: *retry*: [`Error::Timeout`], [`Error::Unavailable`]; *refresh the route*:
    /// [`Error::RangeNotFound`]; *fail*: [`Error::InvalidArgument`] (no replica there).
    pub async fn transfer_leader(&self, range: RangeId, to: NodeId) -> Result<v1::TransferLeaderResponse> {
        let request = v1::TransferLeaderRequest { range_id: range.0, to_node_id: to.0, timeout_ms: self.timeout_ms() };
        let ask = |mut admin: AdminClient<Channel>| async move { admin.transfer_leader(request).await };
        let answer = self.ask_leader(range, ask).await?;
        // The routes follow by themselves; this saves the next request a redirect.
        self.router().learn_leader(range, NodeId(answer.leader_node_id), answer.term);
        Ok(answer)
    }

    /// A node's own state and figures.
    ///
    /// Errors: *retry*: [`Error::Unavailable`], [`Error::Timeout`]; *fail*:
    /// [`Error::InvalidArgument`] (no such node is known).
    pub async fn node_status(&self, node: NodeId) -> Result<v1::NodeStatusResponse> {
        self.ask_node(node, |mut admin: AdminClient<Channel>| async move {
            admin.node_status(v1::NodeStatusRequest {}).await
        })
        .await
    }

    /// The state and figures of the node at an address.
    ///
    /// Errors: as [`Client::node_status`].
    pub async fn node_status_at(&self, address: &str) -> Result<v1::NodeStatusResponse> {
        let ask = |mut admin: AdminClient<Channel>| async move { admin.node_status(v1::NodeStatusRequest {}).await };
        self.ask_at(address, self.deadline(), &ask).await
    }

    fn endpoints(&self) -> &Endpoints {
        self.router().source()
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout()
    }

    async fn ask_at<A, F>(
        &self,
        address: &str,
        deadline: Instant,
        ask: &impl Fn(AdminClient<Channel>) -> F,
    ) -> Result<A>
    where
        F: Future<Output = RpcResult<A>>,
    {
        let admin = self.endpoints().admin(address)?;
        match timeout_at(deadline, ask(admin)).await {
            Ok(result) => answer(address, result),
            Err(_) => Err(Error::Unavailable { reason: format!("{address}: no answer in time") }),
        }
    }

    async fn ask_node<A, F>(&self, node: NodeId, ask: impl Fn(AdminClient<Channel>) -> F) -> Result<A>
    where
        F: Future<Output = RpcResult<A>>,
    {
        if self.endpoints().address_of(node).is_none() {
            self.list_ranges().await?;
        }
        let address = self.endpoints().address_of(node).ok_or_else(|| {
            Error::invalid(format!("no address of node {} is known", node.0), "see the nodes by `flotilla node list`")
        })?;
        self.ask_at(&address, self.deadline(), &ask).await
    }

    /// Asks the range's leader; looks for it again while nodes say that they do not lead.
    async fn ask_leader<A, F>(&self, range: RangeId, ask: impl Fn(AdminClient<Channel>) -> F) -> Result<A>
    where
        F: Future<Output = RpcResult<A>>,
    {
        let deadline = self.deadline();
        let mut hint = self.router().leader_of(range);
        let mut last: Option<Error> = None;
        while Instant::now() < deadline {
            let address = hint.and_then(|leader| self.endpoints().address_of(leader));
            let result = match &address {
                Some(address) => self.ask_at(address, deadline, &ask).await,
                // Any node knows whether there is such a range, and who leads it.
                None => self.endpoints().ask_any(&ask).await,
            };
            let error = match result {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let told = match &error {
                Error::NotLeader { leader, .. } => *leader,
                Error::Unavailable { .. } => None,
                other if other.action() == Action::Retry => hint,
                other => return Err(other.clone()),
            };
            last = Some(error);
            sleep(PAUSE).await;
            hint = match told {
                Some(leader) => Some(leader),
                None => self.list_ranges().await.ok().and_then(|_| self.router().leader_of(range)),
            };
        }
        let last = last.map_or_else(|| "nobody was asked".to_string(), |error| error.to_string());
        Err(Error::Timeout { stage: format!("while it looked for the leader of range {} (last: {last})", range.0) })
    }
}
