//! A node's settings: one set of names for the file, the environment and the flags.
//!
//! Layers, later ones win: defaults, the TOML file, `FLOTILLA_<NAME>` in the environment, flags. A key
//! that is not known is refused with the nearest one that is; nothing is taken silently.

mod layers;
mod overrides;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use flotilla_engine::config::ReadMode;
use flotilla_proto::NodeId;
use serde::{Deserialize, Serialize};

pub use layers::ConfigError;
pub use overrides::Overrides;

/// A node's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// The node's id, from 1; required for a new data directory, afterwards kept there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_id: Option<u64>,
    /// The data directory.
    pub data: PathBuf,
    /// Where clients connect.
    pub client_listen: String,
    /// Where other nodes connect.
    pub peer_listen: String,
    /// Where /metrics, /healthz and /readyz are served.
    pub http_listen: String,
    /// What clients are told to connect to; empty: `client-listen`.
    pub advertise_client_addr: String,
    /// What nodes are told to connect to; empty: `peer-listen`.
    pub advertise_peer_addr: String,
    /// Where metrics are said to be; empty: `http-listen`.
    pub advertise_http_addr: String,
    /// The cluster's first members, `1=HOST:PORT,2=HOST:PORT,...` with the addresses between nodes; the
    /// same on all of them.
    pub initial_nodes: String,
    /// The cluster's name; the same on all nodes. Two clusters must differ in it or in their members.
    pub cluster_name: String,
    /// Ranges that a new cluster is born with.
    pub initial_ranges: u32,
    /// Replicas of each range; 0: three, or as many as there are nodes if these are fewer.
    pub initial_replicas: usize,
    /// Make a new store if the data directory is empty.
    pub bootstrap: bool,
    /// Listen, and talk to nodes, off loopback without encryption.
    pub plaintext_off_loopback: bool,
    /// Memory for RocksDB's write buffers and cache, in bytes; 0: 40% of the machine's.
    pub memory_bytes: u64,
    /// How a leader makes sure that it still leads before a read: `lease` or `quorum`.
    pub read_mode: ReadModeName,
    /// Free disk space below which writes are refused; 0: the larger of 1 GiB and 2% of the disk.
    pub disk_margin_bytes: u64,
    /// Size of a file that can be deleted when the disk is full, in bytes.
    pub ballast_bytes: u64,
    /// Requests that take longer are logged with the time of each stage, in milliseconds.
    pub slow_request_ms: u64,
    /// Log batches that one sync may cover; 0: no bound. To measure what grouping gains.
    pub sync_batches_max: usize,
    /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, or a tracing filter.
    pub log_level: String,
    /// Log into this file, rotated by size; empty: to stderr.
    pub log_file: String,
    /// Threads for the network; 0: one for each two cores.
    pub network_threads: usize,
}

/// [`ReadMode`] in configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ReadModeName {
    /// By its lease; without one, by a round to a quorum.
    #[default]
    Lease,
    /// By a round to a quorum.
    Quorum,
}

impl From<ReadModeName> for ReadMode {
    fn from(name: ReadModeName) -> Self {
        match name {
            ReadModeName::Lease => Self::Lease,
            ReadModeName::Quorum => Self::Quorum,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_id: None,
            data: PathBuf::from("flotilla-data"),
            client_listen: "127.0.0.1:7300".into(),
            peer_listen: "127.0.0.1:7301".into(),
            http_listen: "127.0.0.1:7302".into(),
            advertise_client_addr: String::new(),
            advertise_peer_addr: String::new(),
            advertise_http_addr: String::new(),
            initial_nodes: String::new(),
            cluster_name: "flotilla".into(),
            initial_ranges: 16,
            initial_replicas: 0,
            bootstrap: false,
            plaintext_off_loopback: false,
            memory_bytes: 0,
            read_mode: ReadModeName::Lease,
            disk_margin_bytes: 0,
            ballast_bytes: 64 << 20,
            slow_request_ms: 500,
            sync_batches_max: 0,
            log_level: "info".into(),
            log_file: String::new(),
            network_threads: 0,
        }
    }
}

/// The three addresses that a node listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// For clients.
    pub client: SocketAddr,
    /// For other nodes.
    pub peer: SocketAddr,
    /// For HTTP.
    pub http: SocketAddr,
}

impl Config {
    /// Checks each setting by itself and against the others.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.node_id == Some(0) {
            return Err(ConfigError::value("node-id", "0", "ids start at 1"));
        }
        let listen = self.listen()?;
        if !self.plaintext_off_loopback {
            for (name, address) in
                [("client-listen", listen.client), ("peer-listen", listen.peer), ("http-listen", listen.http)]
            {
                if !address.ip().is_loopback() {
                    return Err(ConfigError::value(
                        name,
                        &address.to_string(),
                        "it is not on loopback, and there is no encryption yet: on a private network that you trust, add --plaintext-off-loopback",
                    ));
                }
            }
        }
        let members = self.members()?;
        if self.bootstrap && members.is_empty() {
            return Err(ConfigError::missing(
                "initial-nodes",
                "a new cluster needs its members: 1=HOST:PORT,2=HOST:PORT,3=HOST:PORT",
            ));
        }
        if let (Some(id), false) = (self.node_id, members.is_empty())
            && !members.iter().any(|(member, _)| member.0 == id)
        {
            return Err(ConfigError::value(
                "initial-nodes",
                &self.initial_nodes,
                &format!("node {id}, this one, is not among them"),
            ));
        }
        if !members.is_empty() && self.replicas(members.len()) > members.len() {
            let what = format!("there are only {} nodes", members.len());
            return Err(ConfigError::value("initial-replicas", &self.initial_replicas.to_string(), &what));
        }
        if self.initial_ranges == 0 || self.initial_ranges > flotilla_placement::RANGES_MAX {
            let what = format!("1 to {}", flotilla_placement::RANGES_MAX);
            return Err(ConfigError::value("initial-ranges", &self.initial_ranges.to_string(), &what));
        }
        self.log_filter().map(|_| ())
    }

    /// The addresses to listen on.
    pub fn listen(&self) -> Result<Listen, ConfigError> {
        Ok(Listen {
            client: parse_listen("client-listen", &self.client_listen)?,
            peer: parse_listen("peer-listen", &self.peer_listen)?,
            http: parse_listen("http-listen", &self.http_listen)?,
        })
    }

    /// The members named by `initial-nodes`, by id.
    pub fn members(&self) -> Result<Vec<(NodeId, String)>, ConfigError> {
        let bad = |what: &str| ConfigError::value("initial-nodes", &self.initial_nodes, what);
        let mut members = Vec::new();
        for part in self.initial_nodes.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (id, address) = part.split_once('=').ok_or_else(|| bad("write ID=HOST:PORT, separated by commas"))?;
            let id: u64 = id.trim().parse().map_err(|_| bad(&format!("\"{id}\" is no node id: a number from 1")))?;
            let address = address.trim();
            let port = address.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
            if id == 0 || port.and_then(|port| port.parse::<u16>().ok()).is_none() {
                return Err(bad(&format!("\"{part}\" is not ID=HOST:PORT")));
            }
            members.push((NodeId(id), address.to_owned()));
        }
        members.sort();
        if let Some(pair) = members.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(bad(&format!("node {} is named twice", pair[0].0.0)));
        }
        Ok(members)
    }

    /// Replicas of each range in a cluster of so many nodes.
    pub fn replicas(&self, nodes: usize) -> usize {
        if self.initial_replicas == 0 { nodes.min(3) } else { self.initial_replicas }
    }

    /// What is logged.
    pub fn log_filter(&self) -> Result<tracing_subscriber::EnvFilter, ConfigError> {
        self.log_level.parse().map_err(|error| {
            ConfigError::value("log-level", &self.log_level, &format!("{error}; use error, warn, info, debug or trace"))
        })
    }

    /// See [`Config::slow_request_ms`].
    pub fn slow_request(&self) -> Duration {
        Duration::from_millis(self.slow_request_ms)
    }

    /// Memory for RocksDB.
    pub fn memory(&self) -> u64 {
        if self.memory_bytes > 0 { self.memory_bytes } else { machine_memory_bytes() * 2 / 5 }
    }

    /// The names of the settings that `other` has different values for.
    pub fn changed(&self, other: &Self) -> Vec<String> {
        let table = |config| toml::Table::try_from(config).expect("settings are numbers, texts and flags");
        let (ours, theirs) = (table(self), table(other));
        // A setting that is not given stands in neither or in one of them.
        let names: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
        names.into_iter().filter(|name| ours.get(*name) != theirs.get(*name)).cloned().collect()
    }

    /// The settings as a TOML file.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("settings are numbers, texts and flags")
    }
}

fn parse_listen(name: &'static str, address: &str) -> Result<SocketAddr, ConfigError> {
    address
        .parse()
        .map_err(|_| ConfigError::value(name, address, "write IP:PORT, such as 127.0.0.1:7300 or 0.0.0.0:7300"))
}

/// The machine's memory, or what the process's control group leaves of it.
fn machine_memory_bytes() -> u64 {
    let of_machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    let of_group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    let machine = of_machine.map_or(4 << 30, |kib| kib << 10);
    of_group.map_or(machine, |group: u64| group.min(machine))
}

#[cfg(test)]
mod tests;
