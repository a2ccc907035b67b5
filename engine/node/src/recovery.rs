//! The handle's part about ranges whose majority is lost for good: what is here, and orders to go on with it.
//!
//! Order: nodes are condemned before any range goes on without them. From then on no message passes between this node and
//! one of them, so that no replica here can help the old group of a range to a majority.

use flotilla_engine::store::{Input, Recovered};
use flotilla_proto::{Error, NodeId, RangeId, v1};
use tokio::sync::oneshot;

use crate::disk::LocalStorage;
use crate::inbox::Item;
use crate::node::Node;

impl<S: LocalStorage> Node<S> {
    /// What the replicas here are, in the order of their ranges' ids, of those after one.
    pub async fn survey(&self, after: RangeId) -> Result<Vec<v1::SurveyedReplica>, Error> {
        self.inner().inbox.input(Input::Survey);
        let mut summaries = self.summaries().await?;
        summaries.retain(|of| of.range > after);
        summaries.sort_by_key(|of| of.range);
        Ok(summaries.into_iter().map(|of| of.surveyed(self.node_id())).collect())
    }

    /// The nodes that were given up for good.
    pub async fn condemned(&self) -> Vec<u64> {
        self.inner().transport.known_stores().condemned().await.into_iter().map(|node| node.0).collect()
    }

    /// What other survivors know to be committed.
    pub fn committed(&self, entries: Vec<v1::CommittedEntry>) {
        for entry in entries {
            self.inner().inbox.input(Input::Committed(entry));
        }
    }

    /// Never again to speak to nodes that are gone for good; durable when it returns.
    pub async fn condemn(&self, nodes: &[u64]) -> Result<(), Error> {
        if nodes.contains(&self.node_id().0) {
            let what = format!("node {} is named as gone for good, and was asked", self.node_id().0);
            return Err(Error::invalid(what, "stop the nodes that are named dead, or do not name them"));
        }
        let inner = self.inner();
        let condemned: Vec<NodeId> = nodes.iter().copied().map(NodeId).collect();
        inner.transport.known_stores().condemn(&condemned, &inner.failure).await?;
        let mut known = self.known_nodes();
        known.iter_mut().filter(|record| nodes.contains(&record.node_id)).for_each(|record| record.removed = true);
        inner.known_nodes.learn(&known, &inner.failure).await;
        let gone = |node: &u64| v1::NodeRecord { node_id: *node, removed: true, ..Default::default() };
        inner.transport.learn(&nodes.iter().map(gone).collect::<Vec<_>>());
        if inner.failure.is_set() {
            inner.inbox.nudge();
            return Err(self.closed());
        }
        Ok(())
    }

    /// Carries out an order to go on with the replica here alone; durable when it returns `Ok`.
    pub async fn recover(&self, order: v1::RecoverReplica) -> Result<Recovered, Error> {
        let (reply, answer) = oneshot::channel();
        self.ask(Item::Recover { order: Box::new(order), reply });
        answer.await.unwrap_or_else(|_| Err(self.closed()))
    }
}
