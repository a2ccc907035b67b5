//! A node, or a whole cluster of them, inside of another program: for programs that bring their own
//! storage along, and for their tests.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let node = flotilla::Node::builder().data("data").start().await?;
//! let client = node.client().await?;
//! client.put("greeting", "hello").await?;
//! node.stop().await?;
//! # Ok(())
//! # }
//! ```
//! The nodes listen on loopback, on ports that the system chooses, unless told otherwise. Everything
//! of a node that is not said here is said by [`Config`].

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use flotilla_router::{Client, ClientConfig};

use crate::config::Config;
use crate::server::{Server, ServerError};

/// How long [`NodeBuilder::start`] and [`Cluster::start`] wait for every range to have a leader.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// Says how a node is to be. See [`Node::builder`].
#[derive(Clone, Debug)]
pub struct NodeBuilder {
    config: Config,
}

impl NodeBuilder {
    /// Where it keeps its data; made if it is not there.
    #[must_use]
    pub fn data(mut self, directory: impl Into<PathBuf>) -> Self {
        self.config.data = directory.into();
        self
    }

    /// All other settings, one by one. The data directory said before stays.
    #[must_use]
    pub fn configure(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// Starts the node. It serves, and every range of it has a leader, when this returns.
    pub async fn start(self) -> Result<Node, ServerError> {
        let node = Node { server: Server::start(self.config).await? };
        node.ready().await?;
        Ok(node)
    }
}

/// A node inside of this process.
pub struct Node {
    server: Server,
}

impl Node {
    /// A cluster of one node, in a data directory that is made if need be.
    pub fn builder() -> NodeBuilder {
        let config = Config {
            client_listen: "127.0.0.1:0".into(),
            peer_listen: "127.0.0.1:0".into(),
            http_listen: "127.0.0.1:0".into(),
            bootstrap: true,
            initial_replicas: 1,
            memory_bytes: 64 << 20,
            ..Config::default()
        };
        NodeBuilder { config }
    }

    /// Where clients connect.
    pub fn client_addr(&self) -> SocketAddr {
        self.server.client_addr()
    }

    /// A client of this node's cluster.
    pub async fn client(&self) -> flotilla_proto::Result<Client> {
        let config = ClientConfig { tls: self.server.tls(), ..ClientConfig::default() };
        Client::connect([self.client_addr().to_string()], config).await
    }

    /// The engine's own handle: routes, status, counters.
    pub fn engine(&self) -> &flotilla_node::Node {
        self.server.node()
    }

    /// Resolves when the store had to stop for good (a failed sync, corrupt data), with the reason.
    pub async fn failed(&self) -> String {
        self.server.failed().await
    }

    /// Hands leaders over, syncs and closes.
    pub async fn stop(self) -> Result<(), ServerError> {
        self.server.stop().await
    }

    /// Waits until every range has so many voters.
    async fn replicated(&self, replicas: usize) -> Result<(), ServerError> {
        tokio::select! {
            done = tokio::time::timeout(READY_TIMEOUT, self.server.replicated(replicas)) => {
                done.map_err(|_| ServerError::Start(format!("not every range has come to {replicas} replicas")))
            }
            reason = self.failed() => Err(ServerError::Failed(reason)),
        }
    }

    async fn ready(&self) -> Result<(), ServerError> {
        let engine = self.engine();
        let mut changes = engine.route_changes();
        let all_led = async { while !engine.all_led() && changes.changed().await.is_ok() {} };
        tokio::select! {
            done = tokio::time::timeout(READY_TIMEOUT, all_led) => {
                done.map_err(|_| ServerError::Start("not every range found a leader; are a majority of the nodes up?".into()))
            }
            reason = self.failed() => Err(ServerError::Failed(reason)),
        }
    }
}

/// Several nodes in one process: a whole cluster for tests.
pub struct Cluster {
    nodes: Vec<Option<Node>>,
    configs: Vec<Config>,
}

impl Cluster {
    /// Starts `nodes` nodes with their data in `directory`/node-1, node-2, ...; every range has a leader
    /// when this returns. Started again on the same directory, it goes on with what is there.
    pub async fn start(directory: impl Into<PathBuf>, nodes: u64) -> Result<Self, ServerError> {
        let directory = directory.into();
        let peers = peer_addresses(&directory, nodes)?;
        let configs = (1..=nodes).zip(&peers).map(|(number, peer)| {
            let mut config = Node::builder().config;
            config.data = directory.join(format!("node-{number}"));
            config.peer_listen.clone_from(peer);
            config.initial_replicas = replicas(nodes);
            config.bootstrap = number == 1;
            config
        });
        let mut cluster = Self { nodes: Vec::new(), configs: configs.collect() };
        // One after the other: the first one begins the cluster, and ids are given out as nodes come.
        for config in &mut cluster.configs {
            if let Some(Some(first)) = cluster.nodes.first() {
                let first: &Node = first;
                config.join = first.client_addr().to_string();
            }
            cluster.nodes.push(Some(Node { server: Server::start(config.clone()).await? }));
        }
        for node in cluster.nodes.iter().flatten() {
            node.ready().await?;
        }
        if let Some(Some(first)) = cluster.nodes.first() {
            first.replicated(replicas(nodes) as usize).await?;
        }
        Ok(cluster)
    }

    /// The node with this number, from 1; `None` while it is stopped.
    pub fn node(&self, number: usize) -> Option<&Node> {
        self.nodes.get(number.checked_sub(1)?)?.as_ref()
    }

    /// A client of the cluster.
    pub async fn client(&self) -> flotilla_proto::Result<Client> {
        let addresses = self.nodes.iter().flatten().map(|node| node.client_addr().to_string());
        Client::connect(addresses, ClientConfig::default()).await
    }

    /// Stops one node.
    pub async fn stop_node(&mut self, number: usize) -> Result<(), ServerError> {
        match self.nodes.get_mut(number.wrapping_sub(1)).and_then(Option::take) {
            Some(node) => node.stop().await,
            None => Ok(()),
        }
    }

    /// Starts a stopped node again, with its data and its address.
    pub async fn start_node(&mut self, number: usize) -> Result<(), ServerError> {
        let at = number.wrapping_sub(1);
        if let (Some(config), Some(slot @ None)) = (self.configs.get(at), self.nodes.get_mut(at)) {
            *slot = Some(Node { server: Server::start(config.clone()).await? });
        }
        Ok(())
    }

    /// Stops all nodes.
    pub async fn stop(mut self) -> Result<(), ServerError> {
        for number in 1..=self.nodes.len() {
            self.stop_node(number).await?;
        }
        Ok(())
    }
}

/// Replicas of each range of a cluster of so many nodes.
fn replicas(nodes: u64) -> u32 {
    nodes.min(3) as u32
}

/// Addresses between the nodes: kept in the directory, so that the nodes of a cluster that was stopped find each
/// other again.
fn peer_addresses(directory: &std::path::Path, nodes: u64) -> Result<Vec<String>, ServerError> {
    let failed = |error: std::io::Error| ServerError::Start(format!("{}: {error}", directory.display()));
    let path = directory.join("PEERS");
    if let Ok(text) = std::fs::read_to_string(&path) {
        let peers: Vec<String> = text.lines().map(str::to_owned).collect();
        if peers.len() as u64 != nodes {
            let what = format!("{} holds a cluster of {} nodes, not {nodes}", directory.display(), peers.len());
            return Err(ServerError::Start(what));
        }
        return Ok(peers);
    }
    // Ports that are free now; all are held until all are known, so that none is given twice.
    let held = (0..nodes).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let peers = held.iter().map(|listener| listener.local_addr().map(|address| address.to_string()));
    let peers = peers.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    std::fs::create_dir_all(directory).map_err(failed)?;
    std::fs::write(&path, peers.join("\n")).map_err(failed)?;
    Ok(peers)
}
