//! Starts a node: directory, recovery, engine, threads, network, in this order.
//!
//! Nothing is listened to before the store's records have been read and checked, and an existing
//! directory is never laid out anew.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use flotilla_engine::apply::ApplyStage;
use flotilla_engine::bootstrap::Birth;
use flotilla_engine::recover::{self, Boot};
use flotilla_engine::snapshot::{self, Limits};
use flotilla_engine::storage::StorageError;
use flotilla_engine::store::{LogBatch, Store};
use flotilla_proto::v1;
use flotilla_store::{
    DirectoryError, DirectoryState, Identity, OpenError, Options, RocksStorage, StoreDirectory, raise_open_files,
};

use crate::applier::Applier;
use crate::checks::Checks;
use crate::clock;
use crate::config::NodeConfig;
use crate::counters::Counters;
use crate::disk::LocalStorage;
use crate::disk_watch::{DiskState, DiskWatch};
use crate::events::RangeEvents;
use crate::failure::{Failure, abort_on_panic};
use crate::health::Health;
use crate::inbox::Inbox;
use crate::known_nodes::KnownNodes;
use crate::log_writer::LogWriter;
use crate::node::{Inner, Node, Threads};
use crate::pending::Pending;
use crate::persisted::Persisted;
use crate::reads::Reads;
use crate::replies::Wakes;
use crate::requests::Answerer;
use crate::scrub::Scrub;
use crate::slow::SlowLog;
use crate::snapshots;
use crate::store_loop::StoreLoop;
use crate::transport::{self, KnownStores, Transport};
use crate::views::Views;

/// File descriptors that are asked for.
const OPEN_FILES_WANTED: u64 = 16_384;
/// File descriptors without which a node does not start.
const OPEN_FILES_MIN: u64 = 1_024;
/// File descriptors that are left to connections and logs.
const OPEN_FILES_OTHER: u64 = 512;

/// Election time-outs after which a start waits no longer for ranges that find no leader.
const SETTLING_TIMEOUTS: u32 = 4;

/// Why a node did not start: what is wrong, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting.
    #[error("{0}")]
    Config(String),
    /// The data directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The database in it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store's records.
    #[error("the store in {directory} cannot be used: {error}")]
    Records {
        /// The data directory.
        directory: String,
        /// What is wrong with them.
        error: StorageError,
    },
    /// The data directory is that of another node or cluster.
    #[error("{0}")]
    OtherStore(String),
    /// Too few file descriptors.
    #[error("only {have} files may be open at once, and a node needs {OPEN_FILES_MIN}: raise the limit (ulimit -n)")]
    OpenFiles {
        /// The limit.
        have: u64,
    },
    /// Plain text would leave the machine.
    #[error(
        "the listener for other nodes, {0}, is not on loopback, and its connections would be plain text: \
         give --tls-ca, --tls-cert and --tls-key (`flotilla cert` makes them), or listen on 127.0.0.1"
    )]
    Plaintext(SocketAddr),
    /// The node's certificate is not its own.
    #[error("{0}")]
    Certificate(String),
    /// There is no store, and none was to be made.
    #[error("{0} holds no store, and none was to be made: to go on with an old store check the data directory")]
    NoBirth(String),
    /// The first start was cut off.
    #[error(
        "the store in {0} was never finished, and holds nothing: its first start was cut off. Empty the directory, and \
         start the node again"
    )]
    Unfinished(String),
    /// The operating system.
    #[error("cannot {what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What came back.
        error: std::io::Error,
    },
}

impl Node<RocksStorage> {
    /// Starts a node. Blocks while the store is opened: do not call it on a worker of the runtime.
    pub fn start(config: NodeConfig) -> Result<Self, StartError> {
        Self::start_on(config, |storage| storage)
    }
}

impl<S: LocalStorage> Node<S> {
    /// Starts a node whose storage is wrapped, which is how tests make disks fail.
    pub fn start_on(config: NodeConfig, wrap: impl FnOnce(RocksStorage) -> S) -> Result<Self, StartError> {
        check(&config)?;
        let max_open_files = open_files()?;
        let (directory, identity, bootstrapped) = open_directory(&config)?;
        let options = Options { memory_bytes: config.memory_bytes, max_open_files, ..Options::default() };
        let disk = DiskState::new(config.disk_margin_bytes, config.ballast(), options.bytes_to_open());
        let options = Options { hold_compactions: disk.prepare(&directory), ..options };
        let storage = wrap(RocksStorage::open(Arc::clone(&directory), &options)?);
        let boot = load(&config, &storage, identity)?;
        run(config, directory, disk, storage, &boot, bootstrapped)
    }
}

fn check(config: &NodeConfig) -> Result<(), StartError> {
    config.engine.check().map_err(StartError::Config)?;
    if config.node_id.0 == 0 {
        return Err(StartError::Config("node id 0 is not allowed: ids start at 1".into()));
    }
    let listener = config
        .peer_listener
        .local_addr()
        .map_err(|error| StartError::System { what: "ask the peer listener for its address", error })?;
    if !listener.ip().is_loopback() && config.tls.is_none() {
        return Err(StartError::Plaintext(listener));
    }
    check_certificate(config)
}

/// The others would refuse a node with another one's certificate: it is better said at once.
fn check_certificate(config: &NodeConfig) -> Result<(), StartError> {
    let Some(tls) = &config.tls else { return Ok(()) };
    let own = flotilla_tls::Identity::node(&config.cluster_name, config.node_id);
    let whose = match tls.identity() {
        Some(identity) if identity == own => return Ok(()),
        Some(identity) => format!("the certificate is that of {}", identity.words()),
        None => "there is none".into(),
    };
    Err(StartError::Certificate(format!(
        "this is {}, and {whose}: give it its own as --tls-cert, made with `flotilla cert node --id {}`",
        own.words(),
        config.node_id.0
    )))
}

/// Raises the limit of open files, and returns how many the database may have.
fn open_files() -> Result<i32, StartError> {
    let have = raise_open_files(OPEN_FILES_WANTED)
        .map_err(|error| StartError::System { what: "raise the limit of open files", error })?;
    if have < OPEN_FILES_MIN {
        return Err(StartError::OpenFiles { have });
    }
    let default = Options::default().max_open_files;
    Ok(i32::try_from(have - OPEN_FILES_OTHER).unwrap_or(default).min(default))
}

/// What a store is made with that is to be made.
fn birth(config: &NodeConfig) -> Result<&Birth, StartError> {
    let Some(birth) = &config.birth else {
        return Err(StartError::NoBirth(config.data_dir.display().to_string()));
    };
    if birth.identity.node_id != config.node_id.0 || birth.known.cluster_name != config.cluster_name {
        return Err(StartError::Config(format!(
            "the new store is that of node {} in cluster \"{}\", and the node is to be node {} in cluster \"{}\"",
            birth.identity.node_id, birth.known.cluster_name, config.node_id.0, config.cluster_name
        )));
    }
    Ok(birth)
}

/// The data directory, made if there is none, and whether it was made.
fn open_directory(config: &NodeConfig) -> Result<(Arc<StoreDirectory>, Identity, bool), StartError> {
    let path = &config.data_dir;
    match StoreDirectory::probe(path)? {
        DirectoryState::Absent | DirectoryState::Empty => {
            let identity = Identity::new(birth(config)?.identity.cluster_id, config.node_id);
            let directory = StoreDirectory::create(path, identity, config.ballast())?;
            Ok((Arc::new(directory), identity, true))
        }
        DirectoryState::Initialised(identity) => {
            if identity.node_id != config.node_id {
                return Err(StartError::OtherStore(format!(
                    "{} belongs to node {}, not to node {}: check the data directory and the node's id",
                    path.display(),
                    identity.node_id.0,
                    config.node_id.0
                )));
            }
            Ok((Arc::new(StoreDirectory::open(path, Some(identity.cluster_id))?), identity, false))
        }
    }
}

/// The store's records; written first, if the directory was made but they are not there yet.
fn load<S: LocalStorage>(config: &NodeConfig, storage: &S, identity: Identity) -> Result<Boot, StartError> {
    let records = |error| unusable(config, error);
    let resumed = snapshot::resume(storage).map_err(records)?;
    if resumed != snapshot::Resumed::default() {
        let (ranges, removed_files) = (resumed.finished, resumed.removed_files);
        tracing::info!(?ranges, removed_files, "snapshots that a stop had interrupted were installed, or cleared away");
    }
    let boot = match recover::load(storage).map_err(records)? {
        Some(boot) => boot,
        None => {
            if config.birth.is_none() {
                return Err(StartError::Unfinished(config.data_dir.display().to_string()));
            }
            let birth = birth(config)?;
            if birth.identity.cluster_id != identity.cluster_id {
                return Err(other_cluster(config, "another cluster"));
            }
            birth.write(storage).map_err(records)?;
            let missing = || StorageError::Corrupt { what: "what was just written cannot be read".into() };
            recover::load(storage).map_err(records)?.ok_or_else(missing).map_err(records)?
        }
    };
    if boot.known.cluster_name != config.cluster_name {
        return Err(other_cluster(config, &format!("cluster \"{}\"", boot.known.cluster_name)));
    }
    if boot.identity.cluster_id != identity.cluster_id || boot.identity.node_id != identity.node_id.0 {
        let what = "its records name another node or cluster than its IDENTITY file".into();
        return Err(records(StorageError::Corrupt { what }));
    }
    if boot.identity.store_id == 0 {
        let what = "its identity has no store id: an unreleased version made it; make it anew".into();
        return Err(records(StorageError::Corrupt { what }));
    }
    Ok(boot)
}

fn unusable(config: &NodeConfig, error: StorageError) -> StartError {
    StartError::Records { directory: config.data_dir.display().to_string(), error }
}

fn other_cluster(config: &NodeConfig, whose: &str) -> StartError {
    StartError::OtherStore(format!(
        "{} belongs to {whose}, not to cluster \"{}\" with these members: check the data directory, the name and the members",
        config.data_dir.display(),
        config.cluster_name
    ))
}

/// The other nodes, as they were last known.
fn others(config: &NodeConfig, boot: &Boot) -> Vec<v1::NodeRecord> {
    boot.known.nodes.iter().filter(|node| node.node_id != config.node_id.0 && !node.removed).cloned().collect()
}

/// The address that other nodes are told.
fn own_peer_addr(config: &NodeConfig, boot: &Boot) -> String {
    if !config.peer_addr.is_empty() {
        return config.peer_addr.clone();
    }
    match config.peer_listener.local_addr() {
        Ok(address) if !address.ip().is_unspecified() => address.to_string(),
        // A listener on all interfaces has no address that others could dial.
        _ => {
            let known = boot.known.nodes.iter().find(|node| node.node_id == config.node_id.0);
            known.map(|node| node.peer_addr.clone()).unwrap_or_default()
        }
    }
}

fn own_hello(config: &NodeConfig, boot: &Boot) -> v1::Hello {
    v1::Hello {
        cluster_id: boot.identity.cluster_id,
        node_id: boot.identity.node_id,
        protocol_min: transport::PROTOCOL_MIN,
        protocol_max: transport::PROTOCOL_MAX,
        // 0 stands for one that is not known.
        boot_id: clock::random_u64().max(1),
        client_addr: config.client_addr.clone(),
        http_addr: config.http_addr.clone(),
        peer_addr: own_peer_addr(config, boot),
        version: env!("CARGO_PKG_VERSION").into(),
        to_node_id: 0,
        store_id: boot.identity.store_id,
    }
}

/// What threads, tasks and handles share.
struct Shared<S> {
    counters: Arc<Counters>,
    failure: Arc<Failure>,
    inbox: Arc<Inbox>,
    views: Arc<Views>,
    disk: Arc<DiskState>,
    reads: Arc<Reads<S>>,
    events: Arc<RangeEvents>,
    health: Arc<Health>,
    checks: Arc<Checks>,
    wants_range_ids: Arc<AtomicBool>,
}

fn share<S: LocalStorage>(config: &NodeConfig, disk: DiskState, storage: S, boot: &Boot, store: &Store) -> Shared<S> {
    let counters = Arc::new(Counters::default());
    let failure = Arc::new(Failure::default());
    let inbox = Arc::new(Inbox::new(config.engine.node_proposal_bytes_max));
    let views = Arc::new(Views::new(store.initial_views()));
    let reads = Reads {
        storage,
        views: Arc::clone(&views),
        inbox: Arc::clone(&inbox),
        counters: Arc::clone(&counters),
        failure: Arc::clone(&failure),
        runtime: config.runtime.clone(),
        mode: config.engine.read_mode,
        answerer: Answerer { cluster_id: boot.identity.cluster_id, node_id: config.node_id },
        slow: SlowLog::new(config.slow_request),
    };
    let (told, nudged, counted) = (Arc::clone(&failure), Arc::clone(&inbox), Arc::clone(&counters));
    reads.storage.on_damage(Box::new(move |seen| {
        counted.damage_found.add(1);
        told.fail(seen.to_owned());
        nudged.nudge();
    }));
    let disk = Arc::new(disk);
    let (events, checks) = (Arc::new(RangeEvents::new(config.node_id)), Arc::default());
    let (health, wants_range_ids) = (Arc::default(), Arc::default());
    Shared { counters, failure, inbox, views, disk, reads: Arc::new(reads), events, health, checks, wants_range_ids }
}

fn run<S: LocalStorage>(
    config: NodeConfig,
    directory: Arc<StoreDirectory>,
    disk: DiskState,
    storage: S,
    boot: &Boot,
    bootstrapped: bool,
) -> Result<Node<S>, StartError> {
    let started = clock::now();
    let mut engine = config.engine.clone();
    if engine.seed == 0 {
        engine.seed = clock::random_u64();
    }
    let hello = own_hello(&config, boot);
    engine.boot_id = hello.boot_id;
    let store = Store::new(engine, config.node_id, boot, started).map_err(StartError::Config)?;
    let known_stores = KnownStores::load(&storage, &boot.known.nodes).map_err(|error| unusable(&config, error))?;
    let known_nodes = KnownNodes::new(storage.clone(), boot.known.clone());
    let shared = share(&config, disk, storage, boot, &store);
    let nodes = others(&config, boot);
    let transport = Transport::start(transport::Setup {
        hello,
        cluster_name: boot.known.cluster_name.clone(),
        nodes,
        known_stores,
        staging: snapshots::staging(shared.reads.storage.clone(), Limits::from(&config.engine)),
        listener: config.peer_listener,
        runtime: config.runtime,
        tls: config.tls,
        inbox: Arc::clone(&shared.inbox),
        counters: Arc::clone(&shared.counters),
        failure: Arc::clone(&shared.failure),
    })
    .map_err(|error| StartError::System { what: "listen for other nodes", error })?;
    let (log, queue) = mpsc::channel();
    let store_loop = StoreLoop {
        node: config.node_id,
        store,
        tick: config.engine.tick,
        drain_timeout: config.drain_timeout,
        inbox: Arc::clone(&shared.inbox),
        views: Arc::clone(&shared.views),
        log,
        applier: Applier::new(
            ApplyStage::new(boot),
            shared.reads.storage.clone(),
            Arc::clone(&shared.counters),
            Arc::clone(&shared.checks),
        ),
        events: Arc::clone(&shared.events),
        checks: Arc::clone(&shared.checks),
        health: Arc::clone(&shared.health),
        wants_range_ids: Arc::clone(&shared.wants_range_ids),
        outgoing: transport.outgoing(),
        snapshot_limits: Limits::from(&config.engine),
        reads: Arc::clone(&shared.reads),
        counters: Arc::clone(&shared.counters),
        failure: Arc::clone(&shared.failure),
        pending: Pending::default(),
        persisted: Persisted::default(),
        wakes: Wakes::gathering(),
        own: Vec::new(),
        last_sequence: 0,
        next_tick: started + config.engine.tick,
        give_up_at: None,
        led_at_stop: None,
    };
    let scrub = (config.scrub_interval, config.scrub_bytes_per_second);
    let threads = spawn(&shared, directory, queue, config.sync_batches_max, scrub, store_loop)?;
    Ok(Node::from_inner(Inner {
        node: config.node_id,
        cluster_name: boot.known.cluster_name.clone(),
        known_nodes,
        bootstrapped,
        started,
        reads: shared.reads,
        views: shared.views,
        inbox: shared.inbox,
        counters: shared.counters,
        failure: shared.failure,
        disk: shared.disk,
        transport,
        threads: Mutex::new(Some(threads)),
        stopping: AtomicBool::new(false),
        settled_by: started + config.engine.election_timeout() * SETTLING_TIMEOUTS,
        settled: AtomicBool::new(false),
        events: shared.events,
        health: shared.health,
        checks: shared.checks,
        wants_range_ids: shared.wants_range_ids,
    }))
}

fn spawn<S: LocalStorage>(
    shared: &Shared<S>,
    directory: Arc<StoreDirectory>,
    queue: mpsc::Receiver<LogBatch>,
    sync_batches_max: usize,
    (scrub_interval, scrub_bytes_per_second): (Duration, u64),
    store_loop: StoreLoop<S>,
) -> Result<Threads, StartError> {
    let log_writer = LogWriter {
        storage: shared.reads.storage.clone(),
        queue,
        inbox: Arc::clone(&shared.inbox),
        counters: Arc::clone(&shared.counters),
        failure: Arc::clone(&shared.failure),
        sync_batches_max,
    };
    let (disk_watch_stop, stop) = mpsc::channel();
    let disk_watch = DiskWatch {
        directory,
        storage: shared.reads.storage.clone(),
        state: Arc::clone(&shared.disk),
        inbox: Arc::clone(&shared.inbox),
        views: Arc::clone(&shared.views),
        failure: Arc::clone(&shared.failure),
        stop,
    };
    let (scrub_stop, stop) = mpsc::channel();
    let scrub = Scrub {
        storage: shared.reads.storage.clone(),
        interval: scrub_interval,
        bytes_per_second: scrub_bytes_per_second,
        counters: Arc::clone(&shared.counters),
        stop,
    };
    Ok(Threads {
        scrub: thread("scrub", move || scrub.run())?,
        scrub_stop,
        disk_watch: thread("disk-watch", move || disk_watch.run())?,
        log_writer: thread("log-writer", move || log_writer.run())?,
        store_loop: thread("store-loop", move || store_loop.run())?,
        disk_watch_stop,
    })
}

fn thread(name: &'static str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StartError> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || abort_on_panic(name, body))
        .map_err(|error| StartError::System { what: "start a thread", error })
}
