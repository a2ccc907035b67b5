//! flotilla.v1.Recovery: what is left of ranges that lost their majority, and orders to go on with it.
//!
//! Each node answers for itself; only the last call is the placement service's.

use flotilla_engine::store::{RangeSummary, Recovered};
use flotilla_node::Node;
use flotilla_placement::{Request as Ask, Response as Answer};
use flotilla_proto::{Error, RangeId, v1};
use tonic::{Request, Response, Status};

use super::placement::Handle;
use super::table::RouteTable;

/// Replicas, and ranges that the node has heard of, in one answer.
const PAGE: usize = 5_000;

/// The service.
pub(super) struct Service {
    node: Node,
    table: RouteTable,
    placement: Handle,
}

impl Service {
    pub(super) fn new(node: Node, table: RouteTable, placement: Handle) -> Self {
        Self { node, table, placement }
    }

    /// Lets ranges begin again, empty; says of each whether it is here.
    async fn births(&self, births: Vec<v1::RangeDescriptor>) -> Result<Vec<v1::RecoverOutcome>, Error> {
        let before = self.node.summaries().await?;
        self.node.births(births.clone());
        // Answered behind the births.
        let here = self.node.summaries().await?;
        let outcome = |of: v1::RangeDescriptor| {
            let own = of.replicas.first().map_or(0, |replica| replica.replica_id);
            let holds = |all: &[RangeSummary]| all.iter().any(|is| (is.range.0, is.replica_id) == (of.range_id, own));
            let (done, repeated) = (holds(&here), holds(&before));
            let refusal =
                if done { "" } else { "another range holds part of its span here, or a later replica of it was here" };
            v1::RecoverOutcome { range_id: of.range_id, done, repeated, refusal: refusal.into() }
        };
        Ok(births.into_iter().map(outcome).collect())
    }
}

fn outcome(range_id: u64, result: Result<Recovered, Error>) -> v1::RecoverOutcome {
    match result {
        Ok(how) => {
            v1::RecoverOutcome { range_id, done: true, repeated: how == Recovered::Before, refusal: String::new() }
        }
        Err(error) => v1::RecoverOutcome { range_id, done: false, repeated: false, refusal: error.to_string() },
    }
}

#[tonic::async_trait]
impl v1::recovery_server::Recovery for Service {
    async fn survey(&self, request: Request<v1::SurveyRequest>) -> Result<Response<v1::SurveyResponse>, Status> {
        let request = request.into_inner();
        let after = request.after_range_id;
        let limit = if request.limit == 0 { PAGE } else { PAGE.min(request.limit as usize) };
        let mut replicas = self.node.survey(RangeId(after)).await?;
        let mut routes = self.table.descriptors_above(after, limit + 1);
        let id = |of: &v1::SurveyedReplica| of.descriptor.as_ref().map_or(0, |of| of.range_id);
        // A page ends where the first of the two kinds would be too many.
        let ends = [replicas.get(limit).map(id), routes.get(limit).map(|of| of.range_id)];
        let end = ends.into_iter().flatten().min();
        if let Some(end) = end {
            replicas.retain(|of| id(of) < end);
            routes.retain(|of| of.range_id < end);
        }
        let mut answer = v1::SurveyResponse {
            cluster_id: self.node.cluster_id(),
            node_id: self.node.node_id().0,
            store_id: self.node.store_id(),
            replicas,
            routes,
            next_after_range_id: end.map_or(0, |end| end - 1),
            ..Default::default()
        };
        let nodes = self.node.nodes();
        answer.boot_id = nodes.first().map_or(0, |own| own.boot_id);
        if after == 0 {
            answer.keyspaces = self.table.keyspaces();
            answer.condemned = self.node.condemned().await;
            let surveyed = |info: v1::NodeInfo| v1::SurveyedNode {
                node_id: info.node_id,
                client_addr: info.client_addr,
                live: info.live,
            };
            answer.nodes = nodes.into_iter().map(surveyed).collect();
        }
        Ok(Response::new(answer))
    }

    async fn tell_committed(
        &self,
        request: Request<v1::TellCommittedRequest>,
    ) -> Result<Response<v1::TellCommittedResponse>, Status> {
        self.node.committed(request.into_inner().entries);
        Ok(Response::new(v1::TellCommittedResponse {}))
    }

    async fn condemn(&self, request: Request<v1::CondemnRequest>) -> Result<Response<v1::CondemnResponse>, Status> {
        let nodes = request.into_inner().node_ids;
        tracing::warn!(?nodes, "nodes are given up for good, says a person: they are never spoken to again");
        self.node.condemn(&nodes).await?;
        Ok(Response::new(v1::CondemnResponse {}))
    }

    async fn recover(&self, request: Request<v1::RecoverRequest>) -> Result<Response<v1::RecoverResponse>, Status> {
        let request = request.into_inner();
        tracing::warn!(plan = request.plan_id, ranges = request.orders.len(), "a recovery is carried out");
        let waiting = request.orders.into_iter().map(|order| {
            let node = self.node.clone();
            // All at once: one sync makes many of them durable.
            (order.range_id, tokio::spawn(async move { node.recover(order).await }))
        });
        let waiting: Vec<_> = waiting.collect();
        let mut outcomes = Vec::with_capacity(waiting.len());
        for (range, order) in waiting {
            let ended = |error: tokio::task::JoinError| Err(Error::Unavailable { reason: error.to_string() });
            outcomes.push(outcome(range, order.await.unwrap_or_else(ended)));
        }
        if !request.births.is_empty() {
            outcomes.extend(self.births(request.births).await?);
        }
        Ok(Response::new(v1::RecoverResponse { outcomes }))
    }

    async fn record_recovery(
        &self,
        request: Request<v1::RecordRecoveryRequest>,
    ) -> Result<Response<v1::RecordRecoveryResponse>, Status> {
        match self.placement.ask(Ask::RecordRecovery(request.into_inner())).await? {
            Answer::RecordRecovery(answer) => Ok(Response::new(answer)),
            _ => Err(Error::Unavailable { reason: "the placement service answered something else".into() }.into()),
        }
    }
}
