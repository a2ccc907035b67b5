//! The client library: ranges whose majority is lost for good. Each node is asked at its own address, for none may lead.

use std::collections::BTreeMap;

use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::{Error, NodeId, Result, v1};
use tokio::time::timeout;
use v1::recovery_client::RecoveryClient as Rpc;

use super::api::Client;
use super::endpoints::{RpcResult, answer};
use super::named::NamedChannel;
use super::seek::{Repeat, Seek};

/// A page of replicas and routes: their keys may be long.
const SURVEY_BYTES_MAX: usize = 256 << 20;

fn rpc(channel: NamedChannel) -> Rpc<NamedChannel> {
    Rpc::new(channel).max_decoding_message_size(SURVEY_BYTES_MAX)
}

impl Client {
    /// What the node at an address has, all pages of it.
    ///
    /// Errors: *retry*: [`Error::Unavailable`]; *fail*: [`Error::ClusterMismatch`].
    pub async fn survey_at(&self, address: &str) -> Result<v1::SurveyResponse> {
        let mut all = v1::SurveyResponse::default();
        loop {
            let request = v1::SurveyRequest { after_range_id: all.next_after_range_id, limit: 0 };
            let page = self.recovery_at(address, |mut rpc| async move { rpc.survey(request).await }).await?;
            let next = page.next_after_range_id;
            if all.node_id == 0 {
                all = page;
            } else if (all.node_id, all.boot_id) != (page.node_id, page.boot_id) {
                let reason = format!("{address}: the node was restarted, or is another one by now");
                return Err(Error::Unavailable { reason });
            } else {
                all.replicas.extend(page.replicas);
                all.routes.extend(page.routes);
                all.next_after_range_id = next;
            }
            if next == 0 {
                return Ok(all);
            }
        }
    }

    /// What every node that answers has: beginning with the addresses that this client was given, and going on with those
    /// that the nodes know of each other. By address; the failures are of addresses that did not answer.
    pub async fn survey(&self) -> (BTreeMap<String, v1::SurveyResponse>, Vec<Error>) {
        let mut open: Vec<String> = self.endpoints().addresses();
        let (mut asked, mut failures) = (Vec::new(), Vec::new());
        let mut surveys: BTreeMap<String, v1::SurveyResponse> = BTreeMap::new();
        while let Some(address) = open.pop() {
            if asked.contains(&address) {
                continue;
            }
            asked.push(address.clone());
            match self.survey_at(&address).await {
                // A node may have two addresses.
                Ok(found) if surveys.values().any(|known| known.node_id == found.node_id) => {}
                Ok(found) => {
                    open.extend(found.nodes.iter().map(|node| node.client_addr.clone()).filter(|at| !at.is_empty()));
                    surveys.insert(address, found);
                }
                Err(error) => failures.push(error),
            }
        }
        (surveys, failures)
    }

    /// Lets the replicas of the node at an address apply what others know to be committed.
    ///
    /// Errors: as [`Client::survey_at`].
    pub async fn tell_committed_at(&self, address: &str, entries: Vec<v1::CommittedEntry>) -> Result<()> {
        let ask = |mut rpc: Rpc<NamedChannel>| {
            let request = v1::TellCommittedRequest { entries: entries.clone() };
            async move { rpc.tell_committed(request).await }
        };
        self.recovery_at(address, ask).await.map(|v1::TellCommittedResponse {}| ())
    }

    /// Lets the node at an address never again speak to nodes that are gone for good. May be repeated.
    ///
    /// Errors: as [`Client::survey_at`]; *fail*: [`Error::InvalidArgument`] (it is one of them).
    pub async fn condemn_at(&self, address: &str, nodes: &[NodeId]) -> Result<()> {
        let ask = |mut rpc: Rpc<NamedChannel>| {
            let request = v1::CondemnRequest { node_ids: nodes.iter().map(|node| node.0).collect() };
            async move { rpc.condemn(request).await }
        };
        self.recovery_at(address, ask).await.map(|v1::CondemnResponse {}| ())
    }

    /// Has the node at an address carry out its part of a plan. May be repeated: what is done stays done.
    ///
    /// Errors: as [`Client::survey_at`]; each order's own are in its outcome.
    pub async fn recover_at(&self, address: &str, request: v1::RecoverRequest) -> Result<Vec<v1::RecoverOutcome>> {
        let ask = |mut rpc: Rpc<NamedChannel>| {
            let request = request.clone();
            async move { rpc.recover(request).await }
        };
        Ok(self.recovery_at(address, ask).await?.outcomes)
    }

    /// Tells the placement service which nodes are gone for good, and what was done. May be repeated.
    ///
    /// Errors: *retry*: [`Error::Timeout`], [`Error::Unavailable`]; *fail*: [`Error::InvalidArgument`] (a node that lives).
    pub async fn record_recovery(&self, request: v1::RecordRecoveryRequest) -> Result<()> {
        let ask = |channel| {
            let request = request.clone();
            async move { rpc(channel).record_recovery(request).await }
        };
        let (deadline, attempt) = (self.deadline(), self.endpoints().patience());
        let seek = Seek { endpoints: self.endpoints(), range: SYSTEM_RANGE, repeat: Repeat::Freely, deadline, attempt };
        // Routes of another cluster are refused, and then nothing is learned.
        let learned = |routes: &v1::ListRangesResponse| drop(self.router().merge(routes));
        seek.run(None, learned, ask).await.map(|v1::RecordRecoveryResponse {}| ())
    }

    async fn recovery_at<A, F>(&self, address: &str, ask: impl Fn(Rpc<NamedChannel>) -> F) -> Result<A>
    where
        F: Future<Output = RpcResult<A>>,
    {
        let channel = self.endpoints().channel(address)?;
        let limit = self.timeout();
        match timeout(limit, ask(rpc(channel))).await {
            Ok(result) => answer(address, result),
            Err(_) => {
                Err(Error::Unavailable { reason: format!("{address}: no answer within {} ms", limit.as_millis()) })
            }
        }
    }
}
