//! The gRPC transport: one stream per node, carrying the requests of all callers.
//!
//! Invariant: a request is either taken by its node's connection, once, or withdrawn by its
//! caller; only one of the two can happen, so [`CallOutcome::NotSent`] is always true.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flotilla_proto::{NodeId, v1};
use flotilla_tls::Tls;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};

use super::connection;
use super::transport::Transport;
use crate::core::{CallOutcome, header_of};

/// How long nothing is sent to an address where another cluster's node listens. Safety does not rest on it: that one
/// refuses what names its cluster.
const DISOWNED: Duration = Duration::from_secs(1);

/// How connections to nodes are made.
#[derive(Clone, Debug)]
pub struct GrpcConfig {
    /// How long to wait for a connection.
    pub connect_timeout: Duration,
    /// Most requests under way to one node; more wait here.
    pub in_flight_max: usize,
    /// Certificates; `None`: plain text.
    pub tls: Option<Arc<Tls>>,
}

impl Default for GrpcConfig {
    fn default() -> Self {
        Self { connect_timeout: Duration::from_secs(1), in_flight_max: 4_096, tls: None }
    }
}

/// One stream per node. Learns addresses by [`Transport::learn`]. Must be used within a tokio
/// runtime; connections end when the last clone is gone.
#[derive(Clone, Debug)]
pub struct GrpcTransport {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: GrpcConfig,
    nodes: Mutex<BTreeMap<NodeId, Node>>,
}

#[derive(Debug)]
struct Node {
    address: watch::Sender<String>,
    /// Another cluster's node listens there: nothing is sent until then.
    disowned_until: Option<Instant>,
    /// Absent until the first request.
    queue: Option<mpsc::Sender<Queued>>,
}

/// A request on its way to the connection. Small, for queues move what is in them.
#[derive(Debug)]
pub(super) struct Queued {
    request: Box<v1::Request>,
    taken: Arc<AtomicBool>,
    answer: oneshot::Sender<CallOutcome>,
}

/// Where an answer goes.
pub(super) type Answer = oneshot::Sender<CallOutcome>;

impl Queued {
    pub(super) fn new(request: v1::Request, taken: Arc<AtomicBool>, answer: Answer) -> Self {
        Self { request: Box::new(request), taken, answer }
    }

    /// The request, to be sent now; `None` if its caller has gone or withdrawn it.
    pub(super) fn take(self) -> Option<(v1::Request, Answer)> {
        let gone = self.answer.is_closed() || self.taken.swap(true, Ordering::AcqRel);
        (!gone).then_some((*self.request, self.answer))
    }

    pub(super) fn is_write(&self) -> bool {
        matches!(self.request.body, Some(v1::request::Body::Write(_)))
    }

    /// Whether its caller waits no more.
    pub(super) fn is_given_up(&self) -> bool {
        self.answer.is_closed()
    }

    /// Tells the caller that the request was not sent.
    pub(super) fn refuse(self, reason: &str) {
        // A caller that has gone needs no telling.
        let _ = self.answer.send(CallOutcome::NotSent(reason.to_string()));
    }

    pub(super) fn request(&self) -> &v1::Request {
        &self.request
    }
}

impl GrpcTransport {
    /// A transport that knows no node yet.
    pub fn new(config: GrpcConfig) -> Self {
        Self { shared: Arc::new(Shared { config, nodes: Mutex::default() }) }
    }

    /// The client address of a node, if it is known.
    pub fn address(&self, node: NodeId) -> Option<String> {
        self.nodes().get(&node).map(|node| node.address.borrow().clone())
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<NodeId, Node>> {
        // Each change of the map is a single one, so a panic elsewhere does no harm.
        self.shared.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: the node's address is not known.
    fn begin(&self, node: NodeId, request: v1::Request) -> Option<Begun> {
        let timeout_ms = request.body.as_ref().and_then(header_of).map_or(0, |header| header.timeout_ms);
        let expires = Instant::now() + Duration::from_millis(timeout_ms);
        let queue = self.queue(node)?;
        let taken = Arc::new(AtomicBool::new(false));
        let (answer, outcome) = oneshot::channel();
        let refused = match queue.try_send(Queued::new(request, Arc::clone(&taken), answer)) {
            Ok(()) => None,
            Err(TrySendError::Full(queued) | TrySendError::Closed(queued)) => Some(Box::new((queue, queued))),
        };
        Some(Begun { node, expires, taken, outcome, refused })
    }

    /// The queue to a node; its connection starts with the first request.
    fn queue(&self, id: NodeId) -> Option<mpsc::Sender<Queued>> {
        let mut nodes = self.nodes();
        let node = nodes.get_mut(&id)?;
        if let Some(until) = node.disowned_until {
            if Instant::now() < until {
                return None;
            }
            node.disowned_until = None;
        }
        if let Some(queue) = node.queue.as_ref().filter(|queue| !queue.is_closed()) {
            return Some(queue.clone());
        }
        let (queue, requests) = mpsc::channel(self.shared.config.in_flight_max);
        tokio::spawn(connection::run(id, node.address.subscribe(), requests, self.shared.config.clone()));
        node.queue = Some(queue.clone());
        Some(queue)
    }
}

/// A request that is in its node's queue, or waits to be let in.
struct Begun {
    node: NodeId,
    expires: Instant,
    taken: Arc<AtomicBool>,
    outcome: oneshot::Receiver<CallOutcome>,
    /// On the heap, for a full queue is rare.
    refused: Option<Box<(mpsc::Sender<Queued>, Queued)>>,
}

impl Begun {
    async fn outcome(mut self) -> CallOutcome {
        let (node, expires) = (self.node.0, self.expires);
        if let Some(refused) = self.refused.take() {
            let (queue, queued) = *refused;
            match Box::pin(timeout_at(expires, queue.send(queued))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return CallOutcome::NotSent(format!("the connection to node {node} has ended")),
                Err(_) => return CallOutcome::NotSent(format!("the queue to node {node} is full")),
            }
        }
        let answered = match timeout_at(expires, &mut self.outcome).await {
            Ok(answered) => answered,
            Err(_) if !self.taken.swap(true, Ordering::AcqRel) => {
                return CallOutcome::NotSent(format!("no connection to node {node} was ready in time"));
            }
            Err(_) => self.outcome.await,
        };
        answered.unwrap_or_else(|_| CallOutcome::Broken(format!("the connection to node {node} has ended")))
    }
}

impl Transport for GrpcTransport {
    fn call(&self, node: NodeId, request: v1::Request) -> impl Future<Output = CallOutcome> + Send {
        // Queued here: the future of an `async fn` would have room for the request as long as it lasts.
        let begun = self.begin(node, request);
        async move {
            match begun {
                Some(call) => call.outcome().await,
                None => CallOutcome::NoAddress,
            }
        }
    }

    /// What is under way there goes on: the answers are refusals, and tell what became of it.
    fn disown(&self, node: NodeId) {
        if let Some(node) = self.nodes().get_mut(&node) {
            node.disowned_until = Some(Instant::now() + DISOWNED);
        }
    }

    fn learn(&self, nodes: &[v1::NodeInfo]) {
        let mut known = self.nodes();
        for info in nodes.iter().filter(|info| !info.client_addr.is_empty()) {
            let node = known.entry(NodeId(info.node_id)).or_insert_with(|| Node {
                address: watch::Sender::new(String::new()),
                disowned_until: None,
                queue: None,
            });
            let moved = node.address.send_if_modified(|address| {
                let changed = *address != info.client_addr;
                address.clone_from(&info.client_addr);
                changed
            });
            if moved {
                node.disowned_until = None;
            }
        }
    }
}
