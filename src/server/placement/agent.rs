//! The agent: tells placement what this node has, and does what it answers.
//!
//! A report every half second, and at once when ranges begin, end, or change their leaders or replicas. What has not
//! changed since the last answered report is left out; a service that knows less asks for all.
//!
//! While no service can be reached, the node goes on with what it has. One that has just started then asks other
//! nodes for their routes.
//!
//! Whoever must know what placement knows by now (of a keyspace, or a range, that this node has not heard of; or that
//! placement has heard of a stop) asks for a report at once, through [`News`]: all that ask at one time get the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flotilla_node::Node;
use flotilla_placement::{Reporter, Request, Response};
use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::{Error, NodeId, Result, v1};
use flotilla_router::{Client, ClientConfig, PlacementClient};
use flotilla_tls::Tls;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::Handle;
use crate::server::table::RouteTable;

/// A report at least this often.
const INTERVAL: Duration = Duration::from_millis(500);
/// And at most this often.
const INTERVAL_MIN: Duration = Duration::from_millis(20);
/// With many ranges the pause is at least so many times as long as looking through them took.
const INTERVAL_SHARE: u32 = 8;
const TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// How many may wait for one report; more wait for the next.
const ASKERS_MAX: usize = 256;
/// How long they wait.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(1);

/// Whoever asked for a report at once waits there; told whether placement has answered.
pub(crate) type Askers = mpsc::Receiver<oneshot::Sender<bool>>;

/// Asks the agent for a report at once. Clones are handles on the same one.
#[derive(Clone, Debug)]
pub(crate) struct News {
    askers: mpsc::Sender<oneshot::Sender<bool>>,
}

impl News {
    /// A handle, and its other end.
    pub fn new() -> (Self, Askers) {
        let (askers, queue) = mpsc::channel(ASKERS_MAX);
        (Self { askers }, queue)
    }

    /// Returns when placement has been told what this node has, and this node what placement knows. False: it could
    /// not be asked.
    pub async fn exchange(&self) -> bool {
        let (told, wait) = oneshot::channel();
        let exchanged = async {
            // Without an agent the node stops.
            self.askers.send(told).await.is_ok() && wait.await.unwrap_or(false)
        };
        timeout(EXCHANGE_TIMEOUT, exchanged).await.unwrap_or(false)
    }
}

/// What came of a round of reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Both sides know what the other one does.
    All,
    /// There is more: at once again.
    Part,
    /// No service could be asked.
    Nothing,
}

/// See the module.
pub(crate) struct Agent {
    node: Node,
    table: RouteTable,
    handle: Handle,
    store_id: u64,
    labels: Vec<v1::Label>,
    placement: Option<PlacementClient>,
    reporter: Reporter,
    was_refused: bool,
    /// How long it took to look through all ranges.
    looking: Duration,
    interval: Duration,
    askers: Askers,
    tls: Option<Arc<Tls>>,
}

impl Agent {
    pub fn new(
        node: Node,
        table: RouteTable,
        handle: Handle,
        labels: Vec<v1::Label>,
        askers: Askers,
        tls: Option<Arc<Tls>>,
    ) -> Self {
        let store_id = node.store_id();
        Self {
            node,
            table,
            handle,
            store_id,
            labels,
            placement: None,
            reporter: Reporter::default(),
            was_refused: false,
            looking: Duration::ZERO,
            interval: INTERVAL,
            askers,
            tls,
        }
    }

    /// Runs until the node stops.
    pub async fn run(mut self, mut stopping: watch::Receiver<bool>) {
        let mut changes = self.node.route_changes();
        let mut waiting: Vec<oneshot::Sender<bool>> = Vec::new();
        loop {
            let began = Instant::now();
            let told = tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => return,
                told = self.round() => told,
            };
            if told == Told::Part {
                continue;
            }
            for asker in waiting.drain(..) {
                // Whoever waited may have gone on.
                asker.send(told == Told::All).ok();
            }
            sleep_until(began + INTERVAL_MIN.max(self.looking * INTERVAL_SHARE)).await;
            tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => return,
                // An error means that the node is gone, and the stop will be heard.
                _ = changes.changed() => {}
                _ = self.askers.recv_many(&mut waiting, ASKERS_MAX) => {}
                () = sleep_until(began + self.interval) => {}
            }
            // Those who came meanwhile are served by the same report.
            while let Ok(asker) = self.askers.try_recv() {
                waiting.push(asker);
            }
        }
    }

    /// One report, or several if it is large.
    async fn round(&mut self) -> Told {
        let began = Instant::now();
        let Ok(changes) = self.node.range_changes(self.reporter.wants_all()).await else { return Told::Nothing };
        let summaries = changes.ranges;
        let lasting = summaries.iter().filter(|summary| summary.is_lasting);
        let now: BTreeMap<u64, v1::RangeReport> =
            lasting.map(|summary| (summary.range.0, summary.report(self.node.node_id()))).collect();
        // What is about to last is reported soon.
        self.interval = if now.len() < summaries.len() { INTERVAL_MIN } else { INTERVAL };
        self.reporter.begin_changes(now, changes.gone.iter().map(|range| range.0).collect());
        self.looking = began.elapsed();
        let mut again = false;
        while let Some(report) = self.reporter.next_report() {
            let request = self.request(report);
            let sequence = self.table.sequence();
            match self.send(request).await {
                Ok(answer) => {
                    self.was_refused = false;
                    again = answer.send_full || (answer.table_incomplete && answer.table_sequence != sequence);
                    self.take(answer).await;
                }
                Err(error) => {
                    self.failed(error).await;
                    return Told::Nothing;
                }
            }
        }
        if again { Told::Part } else { Told::All }
    }

    /// The report with who this node is, and how it is.
    fn request(&self, report: v1::ReportRequest) -> v1::ReportRequest {
        let status = self.node.status();
        let node = status.node.map(|info| v1::NodeInfo { labels: self.labels.clone(), ..info });
        v1::ReportRequest {
            cluster_id: self.node.cluster_id(),
            node,
            store_id: self.store_id,
            disk_free_bytes: status.disk_free_bytes,
            disk_margin_bytes: status.disk_margin_bytes,
            wants_range_ids: self.node.wants_range_ids(),
            table_sequence: self.table.sequence(),
            nodes_version: self.table.nodes_version(),
            health: Some(self.node.health()),
            ..report
        }
    }

    /// To the service of this node, or of the one that leads the system range.
    async fn send(&mut self, request: v1::ReportRequest) -> Result<v1::ReportResponse> {
        if self.node.reign(SYSTEM_RANGE).is_some() {
            let asked = timeout(TIMEOUT, self.handle.ask(Request::Report(Box::new(request)))).await;
            return match asked {
                Ok(Ok(Response::Report(answer))) => Ok(*answer),
                Ok(Err(error)) => Err(error),
                Ok(Ok(_)) | Err(_) => Err(Error::Timeout { stage: "while the placement service was asked".into() }),
            };
        }
        let client = self.client()?;
        let leader = self.table.range(SYSTEM_RANGE.0).map_or(0, |route| route.leader_node_id);
        if leader != 0 && leader != self.node.node_id().0 {
            client.learn_leader(NodeId(leader));
        }
        client.report(request, TIMEOUT).await
    }

    fn client(&mut self) -> Result<PlacementClient> {
        let others = self.others();
        if self.placement.is_none() {
            let addresses = others.iter().map(|node| node.client_addr.clone());
            self.placement =
                Some(PlacementClient::new(addresses, CONNECT_TIMEOUT, self.node.cluster_id(), self.tls.clone())?);
        }
        let client = self.placement.clone().ok_or(Error::Unavailable { reason: "no other node is known".into() })?;
        // A node may have come back at another address.
        client.learn(&others);
        Ok(client)
    }

    /// The other nodes that are known to serve clients: as they introduced themselves, or as placement has them.
    fn others(&self) -> Vec<v1::NodeRecord> {
        let own = self.node.node_id().0;
        let infos = self.node.nodes().into_iter();
        let others = infos.filter(|info| info.node_id != own && !info.client_addr.is_empty());
        let record = |info: v1::NodeInfo| v1::NodeRecord {
            node_id: info.node_id,
            client_addr: info.client_addr,
            ..Default::default()
        };
        others.map(record).collect()
    }

    async fn take(&mut self, answer: v1::ReportResponse) {
        self.reporter.answered(&answer);
        self.table.answered(&answer);
        self.node.keyspaces(answer.keyspaces);
        self.node.range_ids(answer.first_range_id, answer.range_ids);
        self.node.remove(&answer.removed);
        self.node.births(answer.births);
        self.node.orders(answer.orders);
        // None: they have not changed.
        if !answer.nodes.is_empty() {
            self.node.learn_nodes(&answer.nodes).await;
        }
    }

    async fn failed(&mut self, error: Error) {
        if matches!(error, Error::ClusterMismatch { .. }) && !self.was_refused {
            self.was_refused = true;
            tracing::error!("placement refuses this node: {error}");
        } else {
            tracing::debug!(%error, "placement could not be asked");
        }
        self.reporter.failed();
        if self.table.is_empty() {
            self.ask_others().await;
        }
    }

    /// Routes from whichever other node answers.
    async fn ask_others(&self) {
        let addresses: Vec<String> = self.others().into_iter().map(|node| node.client_addr).collect();
        if addresses.is_empty() {
            return;
        }
        let asked = async {
            // Another cluster's routes are none, wherever its node listens.
            let config =
                ClientConfig { cluster_id: self.node.cluster_id(), tls: self.tls.clone(), ..ClientConfig::default() };
            let client = Client::connect(addresses, config).await?;
            client.list_ranges().await
        };
        if let Ok(Ok(routes)) = timeout(TIMEOUT, asked).await {
            self.node.keyspaces(routes.keyspaces.clone());
            self.table.told(&routes);
        }
    }
}
