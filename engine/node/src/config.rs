//! A node's settings.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flotilla_engine::bootstrap::Birth;
use flotilla_engine::config::Config;
use flotilla_proto::NodeId;
use flotilla_store::Options;
use flotilla_tls::Tls;
use tokio::runtime::Handle;

/// What a node is started with. See [`NodeConfig::new`] for the defaults.
#[derive(Debug)]
pub struct NodeConfig {
    /// Where it keeps everything.
    pub data_dir: PathBuf,
    /// Its id.
    pub node_id: NodeId,
    /// The cluster's name. A data directory of another cluster is refused.
    pub cluster_name: String,
    /// What an empty directory is made into. `None`: an empty directory is refused. An initialised one is what it is,
    /// and this is not looked at.
    pub birth: Option<Birth>,
    /// The engine's settings.
    pub engine: Config,
    /// Memory for write buffers and caches.
    pub memory_bytes: u64,
    /// Runs the network's tasks, and blocking reads.
    pub runtime: Handle,
    /// Where other nodes connect.
    pub peer_listener: TcpListener,
    /// The address that other nodes are told to connect to; empty: the listener's.
    pub peer_addr: String,
    /// The address for clients that other nodes are told.
    pub client_addr: String,
    /// The address for HTTP that other nodes are told.
    pub http_addr: String,
    /// Disk space to be kept free; `None`: 1 GiB or 2% of the disk, whichever is more.
    pub disk_margin_bytes: Option<u64>,
    /// Size of the file that is given up when the disk is full, so that the node can start; `None`: what a start may take with this
    /// memory ([`Options::bytes_to_open`]); 0: no such file.
    pub ballast_bytes: Option<u64>,
    /// Certificates for the connections between nodes, both ways. `None`: plain text, on this machine alone.
    pub tls: Option<Arc<Tls>>,
    /// Log batches that one sync may cover: the fewer, the more syncs. For measurements of what
    /// grouping gains; the default knows no bound.
    pub sync_batches_max: usize,
    /// Time between two passes of the scrub; zero: it never reads anything by itself.
    pub scrub_interval: Duration,
    /// What the scrub reads in a second, at most.
    pub scrub_bytes_per_second: u64,
    /// Slower requests are reported.
    pub slow_request: Duration,
    /// How long a stop waits until leaders are handed over and requests answered.
    pub drain_timeout: Duration,
}

impl NodeConfig {
    /// The defaults: cluster "flotilla", no birth, 512 MiB of memory.
    pub fn new(data_dir: impl Into<PathBuf>, node_id: NodeId, runtime: Handle, peer_listener: TcpListener) -> Self {
        Self {
            data_dir: data_dir.into(),
            node_id,
            cluster_name: "flotilla".into(),
            birth: None,
            engine: Config::default(),
            memory_bytes: 512 << 20,
            runtime,
            peer_listener,
            peer_addr: String::new(),
            client_addr: String::new(),
            http_addr: String::new(),
            disk_margin_bytes: None,
            ballast_bytes: None,
            tls: None,
            sync_batches_max: usize::MAX,
            scrub_interval: Duration::from_secs(24 * 3_600),
            scrub_bytes_per_second: 8 << 20,
            slow_request: Duration::from_millis(500),
            drain_timeout: Duration::from_secs(4),
        }
    }
    /// Size of the ballast, in bytes.
    pub(crate) fn ballast(&self) -> u64 {
        let options = Options { memory_bytes: self.memory_bytes, ..Options::default() };
        self.ballast_bytes.unwrap_or_else(|| options.bytes_to_open())
    }
}
