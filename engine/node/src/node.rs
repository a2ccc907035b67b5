//! The node: the handle by which the rest of the program uses the engine.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, UNIX_EPOCH};

use flotilla_engine::store::ReadView;
use flotilla_engine::time::BootTime;
use flotilla_proto::{Error, NodeId, RangeId, cluster, limits, v1};
use flotilla_store::{Properties, RocksStorage, Statistics};
use tokio::sync::{oneshot, watch};

use crate::carry_out::range_status;
use crate::checks::Checks;
use crate::clock;
use crate::counters::Counters;
use crate::disk::LocalStorage;
use crate::disk_watch::DiskState;
use crate::events::RangeEvents;
use crate::failure::Failure;
use crate::health::Health;
use crate::inbox::{Inbox, Item, Request};
use crate::known_nodes::KnownNodes;
use crate::reads::Reads;
use crate::replies::{Reply, ReplySink, Wakes};
use crate::requests::{self, refusal};
use crate::transport::Transport;
use crate::views::Views;

/// About what a read takes in the inbox.
const READ_BYTES: usize = 256;

/// A running node. Clones are handles on the same one; when the last is dropped without
/// [`Node::stop`], the node ends at once, as after a crash.
#[derive(Debug)]
pub struct Node<S: LocalStorage = RocksStorage> {
    inner: Arc<Inner<S>>,
}

impl<S: LocalStorage> Clone for Node<S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

/// What the handles share.
pub(crate) struct Inner<S: LocalStorage> {
    pub node: NodeId,
    pub cluster_name: String,
    pub known_nodes: KnownNodes<S>,
    pub bootstrapped: bool,
    pub started: BootTime,
    pub reads: Arc<Reads<S>>,
    pub views: Arc<Views>,
    pub inbox: Arc<Inbox>,
    pub counters: Arc<Counters>,
    pub failure: Arc<Failure>,
    pub disk: Arc<DiskState>,
    pub transport: Transport,
    pub threads: Mutex<Option<Threads>>,
    pub stopping: AtomicBool,
    /// When replicas have had the time to find their leaders after the start.
    pub settled_by: BootTime,
    /// It came to that, or they were faster.
    pub settled: AtomicBool,
    pub events: Arc<RangeEvents>,
    pub health: Arc<Health>,
    pub checks: Arc<Checks>,
    pub wants_range_ids: Arc<AtomicBool>,
}

/// The engine's threads.
pub(crate) struct Threads {
    pub store_loop: JoinHandle<()>,
    pub log_writer: JoinHandle<()>,
    pub disk_watch: JoinHandle<()>,
    pub disk_watch_stop: Sender<()>,
    pub scrub: JoinHandle<()>,
    pub scrub_stop: Sender<()>,
}

impl Threads {
    /// Waits for their end, in the order in which each lets the next one go.
    fn join(self) {
        drop((self.disk_watch_stop, self.scrub_stop));
        for thread in [self.store_loop, self.log_writer, self.disk_watch, self.scrub] {
            // A thread that panicked has taken the process with it.
            drop(thread.join());
        }
    }
}

impl<S: LocalStorage> std::fmt::Debug for Inner<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("node", &self.node).field("cluster_id", &self.reads.answerer.cluster_id).finish()
    }
}

impl<S: LocalStorage> Drop for Inner<S> {
    fn drop(&mut self) {
        self.inbox.push(Item::Halt);
    }
}

impl<S: LocalStorage> Node<S> {
    pub(crate) fn from_inner(inner: Inner<S>) -> Self {
        Self { inner: Arc::new(inner) }
    }

    /// Whether this start made the store; false: it was there.
    pub fn was_bootstrapped(&self) -> bool {
        self.inner.bootstrapped
    }

    /// Its id.
    pub fn node_id(&self) -> NodeId {
        self.inner.node
    }

    /// Its store's id.
    pub fn store_id(&self) -> u64 {
        self.inner.transport.hello().store_id
    }

    /// Its cluster's id.
    pub fn cluster_id(&self) -> u64 {
        self.inner.reads.answerer.cluster_id
    }

    /// Its cluster's name.
    pub fn cluster_name(&self) -> &str {
        &self.inner.cluster_name
    }

    /// Where it listens for other nodes.
    pub fn peer_address(&self) -> SocketAddr {
        self.inner.transport.address()
    }

    /// Carries out a request for a range of this node. Errors are answers too.
    pub async fn execute(&self, request: v1::Request) -> v1::Response {
        let id = request.id;
        let is_write = matches!(request.body, Some(v1::request::Body::Write(_)));
        let (sender, receiver) = oneshot::channel();
        let mut wakes = Wakes::default();
        if let Some(item) = self.begin(request, Reply::One(sender), clock::now(), &mut wakes) {
            self.inner.inbox.requests([item], |refused| self.inner.reads.refuse(refused));
        }
        receiver.await.unwrap_or_else(|_| {
            let reason = "the node ended while the request was under way".into();
            refusal(id, &if is_write { Error::Ambiguous { reason } } else { Error::Unavailable { reason } })
        })
    }

    /// Carries out requests for ranges of this node; the answers come through the sink, in any order.
    /// Returns at once: what it does not answer by itself waits elsewhere.
    pub fn submit(&self, requests: Vec<v1::Request>, sink: &ReplySink) {
        let now = clock::now();
        sink.submitted(requests.len());
        let mut wakes = Wakes::default();
        let mut items = Vec::with_capacity(requests.len());
        for request in requests {
            items.extend(self.begin(request, Reply::Sink(sink.clone()), now, &mut wakes));
        }
        if !items.is_empty() {
            self.inner.inbox.requests(items, |refused| self.inner.reads.refuse(refused));
        }
        wakes.flush();
    }

    /// Begins with a request; what is for the store's loop is handed back.
    fn begin(&self, request: v1::Request, reply: Reply, now: BootTime, wakes: &mut Wakes) -> Option<(usize, Item)> {
        let id = request.id;
        let Some(body) = request.body else {
            let error = Error::invalid("the request has no body", "set one of get, multi_get, write, scan");
            wakes.answer(reply, refusal(id, &error));
            return None;
        };
        let cluster = self.inner.reads.answerer.cluster_id;
        let header = match requests::header_of(&body).and_then(|header| {
            cluster::check(cluster, header.cluster_id)?;
            Ok(header)
        }) {
            Ok(header) => header.clone(),
            Err(error) => {
                wakes.answer(reply, refusal(id, &error));
                return None;
            }
        };
        let deadline = requests::deadline(&header, now);
        let write_bytes = match &body {
            v1::request::Body::Write(write) => Some(requests::write_bytes(write)),
            _ => None,
        };
        let bytes = write_bytes.unwrap_or(READ_BYTES);
        // The limits of single operations are checked at the door; this one keeps an entry within a frame.
        if bytes > limits::ENTRY_BYTES_MAX {
            let what = format!("a write of {bytes} bytes, the limit is {}", limits::ENTRY_BYTES_MAX);
            wakes.answer(reply, refusal(id, &Error::invalid(what, "cut it into smaller ones")));
            return None;
        }
        let request = Box::new(Request { id, header, body, arrived: now, deadline, bytes, reply });
        if write_bytes.is_some() {
            return Some((bytes, Item::Write(request)));
        }
        self.inner.reads.start(request, wakes);
        None
    }

    /// Whether there is any replica here.
    pub fn has_ranges(&self) -> bool {
        !self.inner.views.is_empty()
    }

    /// All ranges that have a replica here, as that knows them, by their ids.
    pub fn own_routes(&self) -> Vec<v1::RangeStatus> {
        self.inner.views.all().iter().map(|view| range_status(view)).collect()
    }

    /// The ranges that have, or had, a replica here, and what that says of them now: those of which it may be something else
    /// than at the last call, at the first call all. For one caller.
    pub fn own_changes(&self) -> impl Iterator<Item = (RangeId, Option<Arc<ReadView>>)> + '_ {
        self.inner.views.take_changed().into_iter().map(|range| {
            let view = self.inner.views.get(range).map(|view| Arc::clone(&view));
            (range, view)
        })
    }

    /// What placement says of the nodes: connections follow it, and a restart begins with it.
    pub async fn learn_nodes(&self, nodes: &[v1::NodeRecord]) {
        self.inner.transport.known_stores().learn(nodes).await;
        self.inner.transport.learn(nodes);
        self.inner.known_nodes.learn(nodes, &self.inner.failure).await;
        if self.inner.failure.is_set() {
            self.inner.inbox.nudge();
        }
    }

    /// The nodes as placement last told them.
    pub fn known_nodes(&self) -> Vec<v1::NodeRecord> {
        self.inner.known_nodes.get()
    }

    /// Counts the changes of leaders and descriptors.
    pub fn route_changes(&self) -> watch::Receiver<u64> {
        self.inner.views.changes()
    }

    /// The nodes of the cluster, this one first.
    pub fn nodes(&self) -> Vec<v1::NodeInfo> {
        let mut nodes = vec![self.own_info()];
        nodes.extend(self.inner.transport.peers().infos());
        nodes
    }

    fn own_info(&self) -> v1::NodeInfo {
        let hello = self.inner.transport.hello();
        v1::NodeInfo {
            node_id: hello.node_id,
            peer_addr: hello.peer_addr.clone(),
            client_addr: hello.client_addr.clone(),
            http_addr: hello.http_addr.clone(),
            version: hello.version.clone(),
            live: true,
            boot_id: hello.boot_id,
            last_heard_ms: 0,
            disk_full: self.inner.disk.is_full(),
            draining: self.inner.stopping.load(Ordering::Relaxed),
            slow: self.inner.health.get().reason,
            ..Default::default()
        }
    }

    /// The node is about to be stopped: it is not ready from now on, and says so.
    pub fn leave(&self) {
        self.inner.stopping.store(true, Ordering::Relaxed);
    }

    /// The state of the replica here, whether it leads or not.
    pub async fn range_status(&self, range: RangeId) -> Result<v1::GetRangeResponse, Error> {
        let (reply, answer) = oneshot::channel();
        self.ask(Item::Status { range, reply });
        answer.await.unwrap_or_else(|_| Err(self.inner.reads.closed()))
    }

    /// The term in which this node leads the range and may serve it; `None`: it does not.
    pub fn reign(&self, range: RangeId) -> Option<u64> {
        let view = self.inner.views.get(range)?;
        (view.serves && view.leader == Some(view.own_node)).then_some(view.term)
    }

    /// The range as its replica here knows it; `None`: there is no replica here.
    pub fn descriptor(&self, range: RangeId) -> Option<Arc<v1::RangeDescriptor>> {
        Some(self.inner.views.get(range)?.descriptor.clone())
    }

    /// Whether this node leads the range; `None`: it has no replica of it.
    pub fn leads(&self, range: RangeId) -> Option<bool> {
        self.inner.views.get(range).map(|view| view.leader == Some(self.inner.node))
    }

    /// The range's leader, as far as this node knows.
    pub fn leader(&self, range: RangeId) -> Option<NodeId> {
        self.inner.views.get(range).and_then(|view| view.leader)
    }

    /// Hands a range that this node leads over to the replica on another node.
    pub async fn transfer_leader(
        &self,
        range: RangeId,
        to: NodeId,
        timeout: Duration,
    ) -> Result<v1::TransferLeaderResponse, Error> {
        let (reply, answer) = oneshot::channel();
        self.ask(Item::Transfer { range, to, deadline: clock::now() + timeout, reply });
        let (leader, term) = answer.await.unwrap_or_else(|_| Err(self.inner.reads.closed()))?;
        Ok(v1::TransferLeaderResponse { leader_node_id: leader.0, term })
    }

    pub(crate) fn inner(&self) -> &Inner<S> {
        &self.inner
    }

    pub(crate) fn closed(&self) -> Error {
        self.inner.reads.closed()
    }

    pub(crate) fn ask(&self, item: Item) {
        self.inner.inbox.requests([(READ_BYTES, item)], |refused| self.inner.reads.refuse(refused));
    }

    /// Its state and figures, with a line for each thing that needs a person.
    pub fn status(&self) -> v1::NodeStatusResponse {
        let without_leader = self.inner.views.leaderless();
        let mut counters = self.inner.counters.to_wire();
        let storage = self.storage_statistics();
        counters.disk_bytes_written =
            storage.wal_bytes + storage.flush_bytes_written + storage.compaction_bytes_written;
        v1::NodeStatusResponse {
            node: Some(self.own_info()),
            cluster_id: self.cluster_id(),
            uptime_ms: u64::try_from(clock::now().since(self.inner.started).as_millis()).unwrap_or(u64::MAX),
            ranges: u32::try_from(self.inner.views.len()).unwrap_or(u32::MAX),
            ranges_led: u32::try_from(self.inner.views.led()).unwrap_or(u32::MAX),
            ranges_without_leader: u32::try_from(without_leader).unwrap_or(u32::MAX),
            disk_free_bytes: self.inner.disk.free_bytes(),
            disk_margin_bytes: self.inner.disk.margin_bytes(),
            counters: Some(counters),
            problems: self.problems(without_leader),
        }
    }

    fn problems(&self, without_leader: usize) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(reason) = self.failure() {
            problems.push(format!("the store has stopped: {reason}"));
        }
        if self.inner.disk.is_full() {
            problems.push(format!(
                "disk space is at its margin: {} bytes are free, {} are to be kept: free some, or delete keys",
                self.inner.disk.free_bytes(),
                self.inner.disk.margin_bytes()
            ));
        }
        if without_leader > 0 {
            problems.push(format!("{without_leader} ranges have no leader that this node knows of"));
        }
        problems.extend(self.inner.health.problem());
        problems.extend(self.inner.checks.differences());
        problems.extend(self.inner.transport.peers().problems());
        problems
    }

    /// How fast it is, by its own measure against what the others say of themselves.
    pub fn health(&self) -> v1::NodeHealth {
        self.inner.health.get()
    }

    /// What it counts.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.inner.counters
    }

    /// The storage's figures of the moment.
    pub fn storage_properties(&self) -> Properties {
        self.inner.reads.storage.properties()
    }

    /// When the store was last read whole by the scrub, in seconds since 1970; 0: never.
    pub fn last_scrub(&self) -> u64 {
        let ended = self.inner.reads.storage.last_scrub();
        ended.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs())
    }

    /// The storage's counters since the start.
    pub fn storage_statistics(&self) -> Statistics {
        self.inner.reads.storage.statistics()
    }

    /// Whether requests can be sent here: the store works, the node is not stopping, and after its start every
    /// replica here has come to know a leader, or has had the time to. A range that loses its quorum later (or had none
    /// at the start) is a problem of that range ([`Self::status`]), and no reason to keep requests for others away.
    pub fn is_ready(&self) -> bool {
        if self.inner.failure.is_set() || self.inner.stopping.load(Ordering::Relaxed) {
            return false;
        }
        if self.inner.settled.load(Ordering::Relaxed) {
            return true;
        }
        let settled = clock::now() >= self.inner.settled_by || self.all_led();
        if settled {
            self.inner.settled.store(true, Ordering::Relaxed);
        }
        settled
    }

    /// How long it can still take until [`Self::is_ready`] holds by the passing of time alone.
    pub fn ready_within(&self) -> Duration {
        self.inner.settled_by.since(clock::now())
    }

    /// Whether every replica here knows a leader.
    pub fn all_led(&self) -> bool {
        self.inner.views.leaderless() == 0
    }

    /// Waits until the store has stopped for good, and tells why. The process is then to exit with this
    /// reason.
    pub async fn failed(&self) -> String {
        self.inner.failure.wait().await
    }

    /// Why the store has stopped for good, if it has.
    pub fn failure(&self) -> Option<String> {
        self.inner.failure.reason()
    }

    /// Ends the node in order: hands over what it leads, answers what is under way, syncs, closes. The
    /// error is that of a store that had failed. Of several calls the first one does it, the others
    /// return at once.
    pub async fn stop(&self) -> Result<(), String> {
        self.leave();
        let threads = self.inner.threads.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(threads) = threads else { return Ok(()) };
        self.inner.inbox.push(Item::Stop);
        let storage = self.inner.reads.storage.clone();
        let closing = self.inner.reads.runtime.spawn_blocking(move || {
            threads.join();
            storage.close()
        });
        let closed = closing.await;
        self.inner.transport.stop().await;
        self.inner.known_nodes.close();
        if let Some(reason) = self.failure() {
            return Err(reason);
        }
        match closed {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}
