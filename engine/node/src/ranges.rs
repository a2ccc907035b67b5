//! The handle's part about ranges that multiply: splits, orders, births, checks, and what is told to placement.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use flotilla_engine::store::{Changes, CheckStarted, Input, RangeSummary, ReadView, SplitAt};
use flotilla_proto::{Error, RangeId, v1};
use tokio::sync::oneshot;

use crate::clock;
use crate::disk::LocalStorage;
use crate::inbox::Item;
use crate::node::Node;

impl<S: LocalStorage> Node<S> {
    /// Splits a range that this node leads, at keys or into parts. Returns the range and its children, in key order.
    pub async fn split(
        &self,
        range: RangeId,
        keys: Vec<Bytes>,
        parts: u32,
        timeout: Duration,
    ) -> Result<Vec<v1::RangeDescriptor>, Error> {
        let at = if keys.is_empty() { SplitAt::Parts(parts) } else { SplitAt::Keys(keys) };
        let (reply, answer) = oneshot::channel();
        self.ask(Item::Split { range, at, deadline: clock::now() + timeout, reply });
        answer.await.unwrap_or_else(|_| Err(self.closed()))
    }

    /// Merges a range that this node leads into its left neighbour, whose replicas stand on the same nodes. Returns that
    /// one as it is then.
    pub async fn merge(
        &self,
        range: RangeId,
        target: RangeId,
        timeout: Duration,
    ) -> Result<v1::RangeDescriptor, Error> {
        let (reply, answer) = oneshot::channel();
        self.ask(Item::Merge { range, target, deadline: clock::now() + timeout, reply });
        answer.await.unwrap_or_else(|_| Err(self.closed()))
    }

    /// Lets every replica of a range that this node leads compute its checksums at one index.
    pub async fn check(&self, range: RangeId, timeout: Duration) -> Result<CheckStarted, Error> {
        let (reply, answer) = oneshot::channel();
        self.ask(Item::Check { range, deadline: clock::now() + timeout, reply });
        answer.await.unwrap_or_else(|_| Err(self.closed()))
    }

    /// Remembers what comparing a range's replicas has found: what differs is a problem of this node, until it is equal.
    pub fn note_compared(&self, range: RangeId, difference: Option<String>) {
        self.inner().counters.comparisons.add(1);
        self.inner().checks.note_compared(range, difference);
    }

    /// The ranges that this node leads and that are awake. What was found of others, that it led once, is forgotten.
    pub fn to_compare(&self) -> Vec<RangeId> {
        self.inner().checks.forget_differences_unless(|range| self.leads(range) == Some(true));
        let leads = |view: &Arc<ReadView>| view.leader == Some(view.own_node) && !view.asleep;
        self.inner().views.all().iter().filter(|view| leads(view)).map(|view| view.range()).collect()
    }

    /// This node's part of a check, once its replica has come to it; or nothing but a later index, to which a snapshot
    /// has taken the replica.
    pub async fn checksums(
        &self,
        range: RangeId,
        check: CheckStarted,
        timeout: Duration,
    ) -> Result<v1::RangeChecksumResponse, Error> {
        self.inner().checks.wait(range, check, timeout).await
    }

    /// What happened to a range here since the start, newest last.
    pub fn range_events(&self, range: RangeId) -> Vec<v1::RangeEvent> {
        self.inner().events.of(range)
    }

    /// The replicas of this node that may have changed since the last call that asked for these, which is to have one
    /// caller; or all of them.
    pub async fn range_changes(&self, all: bool) -> Result<Changes, Error> {
        let (reply, answer) = oneshot::channel();
        self.ask(Item::Changes { all, reply });
        answer.await.map_err(|_| self.closed())
    }

    /// All replicas of this node.
    pub async fn summaries(&self) -> Result<Vec<RangeSummary>, Error> {
        Ok(self.range_changes(true).await?.ranges)
    }

    /// Placement's orders for ranges that this node leads.
    pub fn orders(&self, orders: Vec<v1::RangeOrder>) {
        for order in orders {
            self.inner().inbox.input(Input::Order(order));
        }
    }

    /// Placement's proof that replicas on this node are no part of their ranges any more.
    pub fn remove(&self, removed: &[v1::RemovedReplica]) {
        for removed in removed {
            let (range, replica_id) = (RangeId(removed.range_id), removed.replica_id);
            self.inner().inbox.input(Input::Remove { range, replica_id });
        }
    }

    /// Ranges that placement lets begin here.
    pub fn births(&self, descriptors: Vec<v1::RangeDescriptor>) {
        if !descriptors.is_empty() {
            self.inner().inbox.input(Input::Births(descriptors));
        }
    }

    /// The settings of all keyspaces.
    pub fn keyspaces(&self, keyspaces: Vec<v1::Keyspace>) {
        self.inner().inbox.input(Input::Keyspaces(keyspaces));
    }

    /// Ids for new ranges.
    pub fn range_ids(&self, first: u64, count: u32) {
        if count > 0 {
            self.inner().wants_range_ids.store(false, Ordering::Relaxed);
            self.inner().inbox.input(Input::RangeIds { first, count: u64::from(count) });
        }
    }

    /// Whether ids for new ranges run short.
    pub fn wants_range_ids(&self) -> bool {
        self.inner().wants_range_ids.load(Ordering::Relaxed)
    }
}
