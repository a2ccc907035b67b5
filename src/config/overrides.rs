//! The settings as flags.

use clap::Args;
use serde::Serialize;
use toml::Table;

use super::{ClientAuthName, ReadModeName};

/// Flags of `start` and `config`: each overrides the setting of its name.
#[derive(Args, Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Overrides {
    /// The data directory
    #[arg(long, value_name = "DIR")]
    pub data: Option<String>,
    /// Where clients connect
    #[arg(long, value_name = "IP:PORT")]
    pub client_listen: Option<String>,
    /// Where other nodes connect
    #[arg(long, value_name = "IP:PORT")]
    pub peer_listen: Option<String>,
    /// Where /metrics, /healthz and /readyz are served
    #[arg(long, value_name = "IP:PORT")]
    pub http_listen: Option<String>,
    /// What clients are told to connect to
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise_client_addr: Option<String>,
    /// What nodes are told to connect to
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise_peer_addr: Option<String>,
    /// Where metrics are said to be
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise_http_addr: Option<String>,
    /// The cluster's name; the same on all nodes
    #[arg(long, value_name = "NAME")]
    pub cluster_name: Option<String>,
    /// What placement is told about this node, such as zone=a; several of them, or one with commas
    #[arg(long = "label", visible_alias = "labels", value_name = "KEY=VALUE", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "with_commas")]
    pub labels: Vec<String>,
    /// Begin a new cluster if the data directory is empty; on an initialised one this does nothing
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub bootstrap: bool,
    /// Join the cluster of these nodes (where they serve clients) if the data directory is empty; on an initialised
    /// one this does nothing
    #[arg(long, value_name = "HOST:PORT,...")]
    pub join: Option<String>,
    /// How long to look for the cluster that is to be joined
    #[arg(long, value_name = "MS")]
    pub join_timeout_ms: Option<u64>,
    /// Ranges that the default keyspace of a new cluster begins with
    #[arg(long, value_name = "N")]
    pub initial_ranges: Option<u32>,
    /// Replicas of each range of a new cluster's default keyspace; 0: three
    #[arg(long, value_name = "N")]
    pub initial_replicas: Option<u32>,
    /// Bytes of data beyond which a range of a new cluster's default keyspace is split; 0: never by size
    #[arg(long, value_name = "BYTES")]
    pub split_bytes: Option<u64>,
    /// How long a node may be silent before its replicas are rebuilt on others
    #[arg(long, value_name = "MS")]
    pub node_dead_after_ms: Option<u64>,
    /// Listen off loopback without encryption, for clients and HTTP; never for nodes
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub plaintext_off_loopback: bool,
    /// The CA's certificate: one of the options that all commands know
    #[arg(skip)]
    pub tls_ca: Option<String>,
    /// The node's certificate: the same
    #[arg(skip)]
    pub tls_cert: Option<String>,
    /// Its key: the same
    #[arg(skip)]
    pub tls_key: Option<String>,
    /// Under TLS: whether clients must have a certificate
    #[arg(long, value_name = "WHEN")]
    pub client_auth: Option<ClientAuthName>,
    /// Memory for RocksDB; 0: 40% of the machine's
    #[arg(long, value_name = "BYTES")]
    pub memory_bytes: Option<u64>,
    /// How a leader makes sure that it still leads before a read
    #[arg(long, value_name = "MODE")]
    pub read_mode: Option<ReadModeName>,
    /// Free disk space below which writes are refused; 0: the larger of 1 GiB and 2%
    #[arg(long, value_name = "BYTES")]
    pub disk_margin_bytes: Option<u64>,
    /// Size of a file that is given up when the disk is full; 0: what a start may take, by --memory-bytes
    #[arg(long, value_name = "BYTES")]
    pub ballast_bytes: Option<u64>,
    /// Time between two full reads of the store's files that look for bit rot; 0: never
    #[arg(long, value_name = "MS")]
    pub scrub_interval_ms: Option<u64>,
    /// What these reads may take of the disk
    #[arg(long, value_name = "BYTES")]
    pub scrub_bytes_per_second: Option<u64>,
    /// Time in which a leader compares the replicas of each of its ranges that is in use; 0: never
    #[arg(long, value_name = "MS")]
    pub compare_interval_ms: Option<u64>,
    /// Log requests that take longer, with the time of each stage
    #[arg(long, value_name = "MS")]
    pub slow_request_ms: Option<u64>,
    /// Log batches that one sync may cover; 0: no bound. To measure what grouping gains
    #[arg(long, value_name = "N")]
    pub sync_batches_max: Option<usize>,
    /// What is logged: error, warn, info, debug, trace, or a tracing filter
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Log into this file, rotated by size, instead of stderr
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<String>,
    /// Threads for the network; 0: one for each two cores
    #[arg(long, value_name = "N")]
    pub network_threads: Option<usize>,
}

impl Overrides {
    /// The flags that were given.
    pub(super) fn to_table(&self) -> Table {
        Table::try_from(self).expect("flags are numbers, texts and switches")
    }
}

fn with_commas<S: serde::Serializer>(parts: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&parts.join(","))
}
