//! A node's settings: one set of names for the file, the environment and the flags.
//!
//! Layers, later ones win: defaults, the TOML file, `FLOTILLA_<NAME>` in the environment, flags. A key
//! that is not known is refused with the nearest one that is; nothing is taken silently.

#[cfg(test)]
mod hostile;
mod layers;
mod overrides;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flotilla_engine::config::ReadMode;
use flotilla_placement::names;
use flotilla_proto::v1;
use flotilla_tls::{ClientAuth, Files, Identity, Role, Tls};
use serde::{Deserialize, Serialize};

pub use layers::ConfigError;
pub use overrides::Overrides;

/// Most replicas of a range.
const REPLICAS_MAX: u32 = 7;
/// A node that restarts may be silent for some seconds.
const NODE_DEAD_AFTER_MS_MIN: u64 = 2_000;

/// Slower, no pass would end.
const SCRUB_BYTES_PER_SECOND_MIN: u64 = 64 << 10;

/// A node's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
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
    /// The cluster's name; the same on all nodes.
    pub cluster_name: String,
    /// What placement is told about this node: `KEY=VALUE,...`, such as `zone=a,rack=r1`.
    pub labels: String,
    /// Begin a new cluster if the data directory is empty.
    pub bootstrap: bool,
    /// Join the cluster of these nodes if the data directory is empty: `HOST:PORT,...`, where they serve clients.
    pub join: String,
    /// How long a node looks for the cluster that it is to join, in milliseconds.
    pub join_timeout_ms: u64,
    /// Ranges that the default keyspace of a new cluster begins with.
    pub initial_ranges: u32,
    /// Replicas of each range of a new cluster's default keyspace that are aimed at; 0: three.
    pub initial_replicas: u32,
    /// Bytes of data beyond which a range of a new cluster's default keyspace is split; 0: never by size.
    pub split_bytes: u64,
    /// A node that is silent for longer is dead: its replicas are rebuilt on others. In milliseconds.
    pub node_dead_after_ms: u64,
    /// Listen off loopback without encryption, for clients and HTTP. Never for nodes.
    pub plaintext_off_loopback: bool,
    /// The certificate of the CA that signs those of nodes and clients; empty: no TLS.
    pub tls_ca: String,
    /// The node's certificate.
    pub tls_cert: String,
    /// Its key.
    pub tls_key: String,
    /// Whether clients must have a certificate: `require` or `none`.
    pub client_auth: ClientAuthName,
    /// Memory for RocksDB's write buffers and cache, in bytes; 0: 40% of the machine's.
    pub memory_bytes: u64,
    /// How a leader makes sure that it still leads before a read: `lease` or `quorum`.
    pub read_mode: ReadModeName,
    /// Free disk space below which writes are refused; 0: the larger of 1 GiB and 2% of the disk.
    pub disk_margin_bytes: u64,
    /// Size of a file that is given up when the disk is full, so that the node can start, in bytes; 0: what a start may take, by
    /// `memory-bytes`.
    pub ballast_bytes: u64,
    /// Time between two full reads of the store's files that look for bit rot, in milliseconds; 0: never.
    pub scrub_interval_ms: u64,
    /// What these reads may take of the disk, in bytes per second.
    pub scrub_bytes_per_second: u64,
    /// Time in which a leader compares the replicas of each of its ranges that is in use, in milliseconds; 0: never.
    pub compare_interval_ms: u64,
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

/// [`ClientAuth`] in configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ClientAuthName {
    /// Whoever has no certificate is not let in.
    #[default]
    Require,
    /// Anybody who reaches the port.
    None,
}

impl From<ClientAuthName> for ClientAuth {
    fn from(name: ClientAuthName) -> Self {
        match name {
            ClientAuthName::Require => Self::Require,
            ClientAuthName::None => Self::None,
        }
    }
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
            data: PathBuf::from("flotilla-data"),
            client_listen: "127.0.0.1:7300".into(),
            peer_listen: "127.0.0.1:7301".into(),
            http_listen: "127.0.0.1:7302".into(),
            advertise_client_addr: String::new(),
            advertise_peer_addr: String::new(),
            advertise_http_addr: String::new(),
            cluster_name: "flotilla".into(),
            labels: String::new(),
            bootstrap: false,
            join: String::new(),
            join_timeout_ms: 30_000,
            initial_ranges: 1,
            initial_replicas: 0,
            split_bytes: 256 << 20,
            node_dead_after_ms: 300_000,
            plaintext_off_loopback: false,
            tls_ca: String::new(),
            tls_cert: String::new(),
            tls_key: String::new(),
            client_auth: ClientAuthName::Require,
            memory_bytes: 0,
            read_mode: ReadModeName::Lease,
            disk_margin_bytes: 0,
            ballast_bytes: 0,
            scrub_interval_ms: 24 * 3_600_000,
            scrub_bytes_per_second: 8 << 20,
            compare_interval_ms: 24 * 3_600_000,
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
        let listen = self.listen()?;
        let tls = self.tls()?;
        self.check_plaintext(&listen, tls.is_some())?;
        for (name, advertised, address) in [
            ("advertise-client-addr", &self.advertise_client_addr, listen.client),
            ("advertise-peer-addr", &self.advertise_peer_addr, listen.peer),
        ] {
            if address.ip().is_unspecified() && advertised.is_empty() {
                let what = format!("nobody can connect to {address}: say at which HOST:PORT the others find this node");
                return Err(ConfigError::value(name, "", &what));
            }
        }
        if self.bootstrap && !self.join.is_empty() {
            let what = "it comes with --bootstrap: begin a new cluster, or join one";
            return Err(ConfigError::value("join", &self.join, what));
        }
        self.join_addresses()?;
        self.labels()?;
        if self.initial_replicas > REPLICAS_MAX {
            let what = format!("1 to {REPLICAS_MAX}, or 0 for three");
            return Err(ConfigError::value("initial-replicas", &self.initial_replicas.to_string(), &what));
        }
        if self.node_dead_after_ms < NODE_DEAD_AFTER_MS_MIN {
            let what = format!("at least {NODE_DEAD_AFTER_MS_MIN}: a node that restarts must not count as dead");
            return Err(ConfigError::value("node-dead-after-ms", &self.node_dead_after_ms.to_string(), &what));
        }
        if self.scrub_bytes_per_second < SCRUB_BYTES_PER_SECOND_MIN {
            let what = format!("at least {SCRUB_BYTES_PER_SECOND_MIN}; --scrub-interval-ms 0 turns the scrub off");
            return Err(ConfigError::value("scrub-bytes-per-second", &self.scrub_bytes_per_second.to_string(), &what));
        }
        if self.initial_ranges == 0 || self.initial_ranges > flotilla_placement::RANGES_MAX {
            let what = format!("1 to {}", flotilla_placement::RANGES_MAX);
            return Err(ConfigError::value("initial-ranges", &self.initial_ranges.to_string(), &what));
        }
        self.log_filter().map(|_| ())
    }

    /// What leaves the machine in plain text has been asked for by name; what nodes say to each other never does.
    fn check_plaintext(&self, listen: &Listen, tls: bool) -> Result<(), ConfigError> {
        let asked = self.plaintext_off_loopback;
        for (name, address, fits, what) in [
            (
                "client-listen",
                listen.client,
                tls || asked,
                "it is not on loopback, and would be plain text: give --tls-ca, --tls-cert and --tls-key (`flotilla cert` makes them), or on a private network that you trust --plaintext-off-loopback",
            ),
            (
                "peer-listen",
                listen.peer,
                tls,
                "it is not on loopback: nodes talk to each other under mutual TLS alone there; give --tls-ca, --tls-cert and --tls-key (`flotilla cert` makes them)",
            ),
            (
                "http-listen",
                listen.http,
                asked,
                "it is not on loopback, and metrics are plain text: on a private network that you trust, add --plaintext-off-loopback",
            ),
        ] {
            if !fits && !address.ip().is_loopback() {
                return Err(ConfigError::value(name, &address.to_string(), what));
            }
        }
        Ok(())
    }

    /// Certificates and key, read and checked; `None`: plain text.
    pub fn tls(&self) -> Result<Option<Arc<Tls>>, ConfigError> {
        let given = [("tls-ca", &self.tls_ca), ("tls-cert", &self.tls_cert), ("tls-key", &self.tls_key)];
        if given.iter().all(|(_, path)| path.is_empty()) {
            return Ok(None);
        }
        if let Some((missing, _)) = given.iter().find(|(_, path)| path.is_empty()) {
            let what = "it is not given: a node needs tls-ca, tls-cert and tls-key, or none of them; `flotilla cert` makes them";
            return Err(ConfigError::value(missing, "", what));
        }
        let own = Some((self.tls_cert.clone().into(), self.tls_key.clone().into()));
        let tls = Tls::load(Files { ca: self.tls_ca.clone().into(), own })
            .map_err(|error| ConfigError::value(error.setting, &error.path.display().to_string(), &error.what))?;
        match tls.identity() {
            Some(Identity { cluster, role: Role::Node(_) }) if cluster == self.cluster_name => Ok(Some(Arc::new(tls))),
            other => {
                let whose = other.map_or_else(|| "nobody".into(), |identity| identity.words());
                let what = format!(
                    "it is that of {whose}, and this is a node of cluster \"{}\": give it a certificate made with `flotilla cert node`",
                    self.cluster_name
                );
                Err(ConfigError::value("tls-cert", &self.tls_cert, &what))
            }
        }
    }

    /// The addresses to listen on.
    pub fn listen(&self) -> Result<Listen, ConfigError> {
        Ok(Listen {
            client: parse_listen("client-listen", &self.client_listen)?,
            peer: parse_listen("peer-listen", &self.peer_listen)?,
            http: parse_listen("http-listen", &self.http_listen)?,
        })
    }

    /// The addresses in `join`.
    pub fn join_addresses(&self) -> Result<Vec<String>, ConfigError> {
        let parts = self.join.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts
            .map(|part| match part.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(part.to_owned()),
                _ => Err(ConfigError::value("join", &self.join, &format!("\"{part}\" is not HOST:PORT"))),
            })
            .collect()
    }

    /// The labels in `labels`.
    pub fn labels(&self) -> Result<Vec<v1::Label>, ConfigError> {
        let refused = |error: flotilla_proto::Error| {
            let what = format!("{error}; {}", error.hint());
            ConfigError::value("labels", &self.labels, &what)
        };
        let parts = self.labels.split(',').map(str::trim).filter(|part| !part.is_empty());
        let labels: Vec<v1::Label> = parts.map(names::parse_label).collect::<Result<_, _>>().map_err(refused)?;
        names::check_labels(&labels).map_err(refused)?;
        Ok(labels)
    }

    /// See [`Config::join_timeout_ms`].
    pub fn join_timeout(&self) -> Duration {
        Duration::from_millis(self.join_timeout_ms)
    }

    /// What the placement service is told.
    pub fn placement(&self) -> flotilla_placement::Config {
        flotilla_placement::Config {
            node_dead_after: Duration::from_millis(self.node_dead_after_ms),
            ..flotilla_placement::Config::default()
        }
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
