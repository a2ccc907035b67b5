//! A node's way to the placement service, which runs where the system range is led.
//!
//! Begins with addresses given by its user (of any nodes of the cluster), learns the others from the
//! answers, and follows NOT_LEADER hints.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::limits::DECODED_BYTES_MAX;
#[allow(unused_imports, reason = "for the documentation")]
use flotilla_proto::{Error, NodeId, Result, v1};
use flotilla_tls::Tls;
use tokio::time::Instant;
use v1::placement_client::PlacementClient as Rpc;

use super::endpoints::{Endpoints, RpcResult};
use super::named::NamedChannel;
use super::seek::{Repeat, Seek};

/// Asks the placement service. Cheap to clone; all clones share connections and what they learn.
#[derive(Clone, Debug)]
pub struct PlacementClient {
    endpoints: Endpoints,
    /// The node that leads the system range, as the caller has just learned; 0: the node that
    /// answered last is asked first.
    leader: Arc<AtomicU64>,
}

impl PlacementClient {
    /// A client that begins with these addresses (host:port, where nodes serve clients). No
    /// connection is made yet. `cluster`: its id; 0 where the caller is about to join one that it does not know. `tls`: with the
    /// node's certificate; plain text without.
    ///
    /// Errors: *fail*: [`Error::InvalidArgument`]: no address, or one that is none.
    pub fn new<A: Into<String>>(
        addresses: impl IntoIterator<Item = A>,
        connect_timeout: Duration,
        cluster: u64,
        tls: Option<Arc<Tls>>,
    ) -> Result<Self> {
        let given = addresses.into_iter().map(Into::into).collect();
        let endpoints = Endpoints::new(given, connect_timeout, cluster, tls)?;
        Ok(Self { endpoints, leader: Arc::default() })
    }

    /// Keeps the addresses of nodes; those of the answers are kept by themselves.
    pub fn learn(&self, nodes: &[v1::NodeRecord]) {
        for node in nodes.iter().filter(|node| !node.removed) {
            self.endpoints.learn_address(NodeId(node.node_id), &node.client_addr);
        }
    }

    /// Notes who leads the system range, as the caller knows it: asked first.
    pub fn learn_leader(&self, leader: NodeId) {
        self.leader.store(leader.0, Ordering::Relaxed);
    }

    /// Makes a new store a node of the cluster. May be repeated with the same store id.
    ///
    /// Errors: *retry*: [`Error::Timeout`] with the last obstacle; *fail*:
    /// [`Error::ClusterMismatch`], [`Error::InvalidArgument`].
    pub async fn join(&self, request: v1::JoinRequest, timeout: Duration) -> Result<v1::JoinResponse> {
        let ask = |mut placement: Rpc<NamedChannel>| {
            let request = request.clone();
            async move { placement.join(request).await }
        };
        let answer = self.ask(timeout, ask).await?;
        self.learn(&answer.nodes);
        Ok(answer)
    }

    /// Reports what a node has; the answer says what it is to do.
    ///
    /// Errors: as [`PlacementClient::join`].
    pub async fn report(&self, request: v1::ReportRequest, timeout: Duration) -> Result<v1::ReportResponse> {
        let ask = |mut placement: Rpc<NamedChannel>| {
            let request = request.clone();
            async move { placement.report(request).await }
        };
        let answer = self.ask(timeout, ask).await?;
        self.learn(&answer.nodes);
        Ok(answer)
    }

    async fn ask<A, F>(&self, timeout: Duration, ask: impl Fn(Rpc<NamedChannel>) -> F) -> Result<A>
    where
        F: Future<Output = RpcResult<A>>,
    {
        let seek = Seek {
            endpoints: &self.endpoints,
            range: SYSTEM_RANGE,
            repeat: Repeat::Freely,
            deadline: Instant::now() + timeout,
            attempt: self.endpoints.patience(),
        };
        let hint = Some(NodeId(self.leader.swap(0, Ordering::Relaxed))).filter(|node| node.0 != 0);
        let rpc = |channel| ask(Rpc::new(channel).max_decoding_message_size(DECODED_BYTES_MAX));
        seek.run(hint, |_| {}, rpc).await
    }
}
