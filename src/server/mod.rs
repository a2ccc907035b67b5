//! One node with its doors: gRPC for clients, HTTP for metrics and health, and the engine's own port
//! for other nodes.
//!
//! ```text
//! client port ─▶ grpc (kv, admin, health, reflection) ─▶ router ─▶ this node's engine
//!                                                          └─────▶ another node's client port
//! peer port ───▶ engine (Raft, snapshots)
//! http port ───▶ http (/metrics, /healthz, /readyz)
//! ```
//! All three are bound before the data directory is touched, so that a port in use is said first.

mod admin;
mod birth;
mod certificates;
mod check;
mod compare;
mod details;
mod http;
mod kv;
mod listing;
mod logging;
mod metrics;
mod named;
mod placement;
mod recovery;
mod routes;
mod stream;
mod table;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use flotilla_engine::bootstrap::Birth;
use flotilla_node::{AccessLayer, Doors, Node, NodeConfig, Proof};
use flotilla_placement::Route;
use flotilla_proto::limits::DECODED_BYTES_MAX;
use flotilla_proto::{NodeId, v1};
use flotilla_router::{Router, RouterConfig};
use flotilla_tls::{ClientAuth, Port, Tls};
use tokio::net::{TcpListener as AsyncListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::service::interceptor::InterceptedService;

use crate::config::{Config, ConfigError, Listen};
use routes::{NodeRoutes, NodeTransport};
use table::RouteTable;

pub use logging::{LogHandle, init as init_logging};

/// Version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Connections that wait to be taken; one that comes on top of them comes late by a second.
const BACKLOG: u32 = 1_024;
/// Clients' connections at once.
const CONNECTIONS_MAX: usize = 4_096;
/// How long a connection may take to begin with HTTP/2.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections at the http port at once,
const HTTP_CONNECTIONS_MAX: usize = 256;
/// and how long one of them may go without taking a byte of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections may open so many streams each.
const STREAMS_PER_CONNECTION_MAX: u32 = 256;
/// Bytes of a request's header list.
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Routes that change often are taken over in groups.
const ROUTES_PAUSE: Duration = Duration::from_millis(10);
/// With many ranges the pause is at least so many times as long as taking them over took.
const ROUTES_PAUSE_SHARE: u32 = 8;
/// How long a stop waits for placement to hear of it.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(300);
/// How long connections may go on after the stop was asked for.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The router inside of a node.
pub(crate) type NodeRouter = Router<NodeTransport, NodeRoutes>;

/// Why a node does not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A port cannot be listened on.
    #[error("{name} {address}: {cause}; another process may use it: choose another with --{name}")]
    Listen {
        /// The setting.
        name: &'static str,
        /// Its address.
        address: SocketAddr,
        /// Why.
        cause: std::io::Error,
    },
    /// The log file cannot be written.
    #[error("log file {path}: {cause}")]
    Log {
        /// The file.
        path: String,
        /// Why.
        cause: String,
    },
    /// There is no store, and none was to be made.
    #[error(
        "{path} holds no store; add --bootstrap to make the first one of a new cluster, --join ADDR to make one that joins a cluster, or check --data to go on with an old one"
    )]
    NotBootstrapped {
        /// The data directory.
        path: String,
    },
    /// The store cannot be opened.
    #[error("{0}")]
    Start(String),
    /// The store stopped for good while it ran.
    #[error("the store stopped: {0}")]
    Failed(String),
    /// The stop did not go well.
    #[error("stopping: {0}")]
    Stop(String),
}

impl ServerError {
    /// The exit code: 2 for a wrong configuration, 1 for all else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            _ => 1,
        }
    }
}

/// A running node.
pub struct Server {
    node: Node,
    table: RouteTable,
    router: NodeRouter,
    client: SocketAddr,
    http: SocketAddr,
    tls: Option<Arc<Tls>>,
    stopping: watch::Sender<bool>,
    news: placement::News,
    tasks: Vec<JoinHandle<()>>,
}

struct Listeners {
    client: TcpListener,
    peer: TcpListener,
    http: TcpListener,
}

impl Server {
    /// Starts a node; serving when it returns. Call it inside of a tokio runtime.
    pub async fn start(config: Config) -> Result<Self, ServerError> {
        config.check()?;
        let listeners = bind(config.listen()?)?;
        let addresses =
            |listener: &TcpListener| listener.local_addr().map_err(|error| ServerError::Start(error.to_string()));
        let (client, http) = (addresses(&listeners.client)?, addresses(&listeners.http)?);
        let own = birth::Addresses {
            peer: birth::advertised(&config.advertise_peer_addr, addresses(&listeners.peer)?),
            client: birth::advertised(&config.advertise_client_addr, client),
            http: birth::advertised(&config.advertise_http_addr, http),
        };
        let tls = config.tls()?;
        let (node_id, birth) = birth::decide(&config, &own, tls.as_ref()).await?;
        let mut node_config = node_config(&config, node_id, birth, listeners.peer, &own);
        node_config.tls.clone_from(&tls);
        let started = tokio::task::spawn_blocking(move || Node::start(node_config)).await;
        let node = started
            .map_err(|error| ServerError::Start(error.to_string()))?
            .map_err(|error| ServerError::Start(error.to_string()))?;
        let seed = u64::from(std::process::id()) ^ node.node_id().0.rotate_left(32);
        let router_config = RouterConfig { local: Some(node.node_id()), cluster_id: node.cluster_id(), seed };
        let table = RouteTable::new(node.clone());
        let ((stopping, _), (news, askers)) = (watch::channel(false), placement::News::new());
        let routes = NodeRoutes::new(table.clone(), news.clone());
        let router = Router::new(NodeTransport::new(node.clone(), tls.clone()), routes, router_config);
        let mut server = Self { node, table, router, client, http, tls, stopping, news, tasks: Vec::new() };
        let handle = server.run_placement(config.placement(), config.labels()?, askers);
        server.serve_grpc(listeners.client, handle, config.client_auth.into())?;
        server.serve_http(listeners.http)?;
        server.follow_routes();
        let stopping = server.stopping.subscribe();
        let compare_interval = Duration::from_millis(config.compare_interval_ms);
        server.tasks.push(tokio::spawn(compare::run(server.node.clone(), compare_interval, stopping)));
        if let Some(tls) = &server.tls {
            let stopping = server.stopping.subscribe();
            server.tasks.push(tokio::spawn(certificates::follow(Arc::clone(tls), stopping)));
        }
        Ok(server)
    }

    /// Where clients connect.
    pub fn client_addr(&self) -> SocketAddr {
        self.client
    }

    /// Where metrics are.
    pub fn http_addr(&self) -> SocketAddr {
        self.http
    }

    /// Its certificates; `None`: plain text.
    pub fn tls(&self) -> Option<Arc<Tls>> {
        self.tls.clone()
    }

    /// The node itself.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Waits until every range that is known here has so many voters, and a leader.
    pub async fn replicated(&self, replicas: usize) {
        let (mut own, mut learned) = (self.node.route_changes(), self.table.changes());
        let whole = |route: &Route| {
            let voter = |of: &&v1::ReplicaDescriptor| of.role() == v1::ReplicaRole::Voter;
            let voters = route.descriptor.replicas.iter().filter(voter).count();
            voters == replicas && route.leader_node_id != 0
        };
        while !self.table.all(whole) {
            let changed = tokio::select! {
                changed = own.changed() => changed,
                changed = learned.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// Resolves when the store had to stop for good, with the reason. The process is to end then.
    pub async fn failed(&self) -> String {
        self.node.failed().await
    }

    /// Hands leaders over, answers what is under way, syncs, and closes the doors.
    pub async fn stop(self) -> Result<(), ServerError> {
        self.tell_placement().await;
        let stopped = self.node.stop().await;
        self.stopping.send_replace(true);
        for mut task in self.tasks {
            if tokio::time::timeout(CLOSE_TIMEOUT, &mut task).await.is_err() {
                task.abort();
                // Ends with the abort; what it held is let go when it has.
                let _ = task.await;
            }
        }
        stopped.map_err(ServerError::Stop)
    }

    /// Placement is not to give this node leaders while it hands its own over. It need not answer for that.
    async fn tell_placement(&self) {
        self.node.leave();
        tokio::time::timeout(LEAVE_TIMEOUT, self.news.exchange()).await.ok();
    }

    /// The agent, and the service for as long as this node leads the system range.
    fn run_placement(
        &mut self,
        config: flotilla_placement::Config,
        labels: Vec<v1::Label>,
        askers: placement::Askers,
    ) -> placement::Handle {
        let (handle, orders) = placement::Handle::new(self.node.clone(), self.table.clone());
        let service = placement::ServiceTask::new(self.node.clone(), config, orders);
        let agent = placement::Agent::new(
            self.node.clone(),
            self.table.clone(),
            handle.clone(),
            labels,
            askers,
            self.tls.clone(),
        );
        self.tasks.push(tokio::spawn(service.run(self.stopping.subscribe())));
        self.tasks.push(tokio::spawn(agent.run(self.stopping.subscribe())));
        handle
    }

    fn serve_grpc(
        &mut self,
        listener: TcpListener,
        handle: placement::Handle,
        auth: ClientAuth,
    ) -> Result<(), ServerError> {
        let port = self.tls.as_ref().map(|tls| Port::new(Arc::clone(tls), auth));
        let incoming = Doors::new(asynchronous(listener)?, CONNECTIONS_MAX, PREFACE_TIMEOUT, Proof::Preface)
            .under(port)
            .counted(Arc::clone(self.node.counters()));
        let kv = kv::Service::new(self.node.clone(), self.router.clone(), self.stopping.subscribe());
        let admin = admin::Service::new(self.node.clone(), self.table.clone(), handle.clone(), self.news.clone());
        let recovery = recovery::Service::new(self.node.clone(), self.table.clone(), handle.clone());
        let placement = placement::PlacementRpc::new(self.node.clone(), handle);
        let cluster_id = self.node.cluster_id();
        let named = move |request: tonic::Request<()>| named::check(cluster_id, request);
        let (health_reporter, health) = tonic_health::server::health_reporter();
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(|error| ServerError::Start(format!("reflection: {error}")))?;
        let service = tonic::transport::Server::builder()
            .layer(details::ErrorDetailsLayer)
            .layer(AccessLayer::new(self.node.cluster_name()))
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(8 << 20)
            .add_service(
                v1::kv_server::KvServer::new(kv)
                    .max_decoding_message_size(DECODED_BYTES_MAX)
                    .max_encoding_message_size(DECODED_BYTES_MAX),
            )
            .add_service(InterceptedService::new(
                v1::admin_server::AdminServer::new(admin).max_decoding_message_size(DECODED_BYTES_MAX),
                named,
            ))
            .add_service(InterceptedService::new(
                v1::placement_server::PlacementServer::new(placement).max_decoding_message_size(DECODED_BYTES_MAX),
                named,
            ))
            .add_service(InterceptedService::new(
                v1::recovery_server::RecoveryServer::new(recovery).max_decoding_message_size(DECODED_BYTES_MAX),
                named,
            ))
            .add_service(health)
            .add_service(reflection);
        let stopping = self.stopping.subscribe();
        self.tasks.push(tokio::spawn(async move {
            if let Err(error) = service.serve_with_incoming_shutdown(incoming, until(stopping)).await {
                tracing::error!("the client port failed: {error}");
            }
        }));
        self.follow_health(health_reporter);
        Ok(())
    }

    fn serve_http(&mut self, listener: TcpListener) -> Result<(), ServerError> {
        let doors = Doors::new(asynchronous(listener)?, HTTP_CONNECTIONS_MAX, ANSWER_TIMEOUT, Proof::Answer)
            .counted(Arc::clone(self.node.counters()));
        let address = self.http;
        let listener = http::Listener::new(doors, address);
        let app = http::app(self.node.clone(), self.table.clone());
        let stopping = self.stopping.subscribe();
        self.tasks.push(tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(until(stopping)).await {
                tracing::error!("the http port failed: {error}");
            }
        }));
        Ok(())
    }

    /// gRPC health says SERVING while the node is ready.
    fn follow_health(&mut self, reporter: tonic_health::server::HealthReporter) {
        let (node, table, mut stopping) = (self.node.clone(), self.table.clone(), self.stopping.subscribe());
        let (mut own, mut learned) = (self.node.route_changes(), self.table.changes());
        self.tasks.push(tokio::spawn(async move {
            loop {
                if node.is_ready() && table.is_ready() {
                    reporter.set_serving::<v1::kv_server::KvServer<kv::Service>>().await;
                } else {
                    reporter.set_not_serving::<v1::kv_server::KvServer<kv::Service>>().await;
                }
                let settling = node.ready_within();
                tokio::select! {
                    changed = own.changed() => if changed.is_err() { return },
                    changed = learned.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep(settling), if !settling.is_zero() => {}
                    _ = stopping.changed() => return,
                }
            }
        }));
    }

    /// Tells the router at once what the node learns about ranges that the router has met, and their leaders.
    fn follow_routes(&mut self) {
        let node = self.node.clone();
        let (router, table, mut stopping) = (self.router.clone(), self.table.clone(), self.stopping.subscribe());
        let (mut own, mut learned) = (self.node.route_changes(), self.table.changes());
        self.tasks.push(tokio::spawn(async move {
            loop {
                let began = tokio::time::Instant::now();
                router.follow(&table.take_changed(), &node.nodes());
                let pause = ROUTES_PAUSE.max(began.elapsed() * ROUTES_PAUSE_SHARE);
                let changed = tokio::select! {
                    changed = own.changed() => changed,
                    changed = learned.changed() => changed,
                    _ = stopping.changed() => return,
                };
                if changed.is_err() {
                    return;
                }
                tokio::time::sleep(pause).await;
            }
        }));
    }
}

async fn until(mut stopping: watch::Receiver<bool>) {
    // An error means that the server is gone, which is a stop as well.
    let _ = stopping.wait_for(|stop| *stop).await;
}

fn asynchronous(listener: TcpListener) -> Result<AsyncListener, ServerError> {
    listener
        .set_nonblocking(true)
        .and_then(|()| AsyncListener::from_std(listener))
        .map_err(|error| ServerError::Start(error.to_string()))
}

/// Like the standard library's, but for how many connections may wait to be taken.
fn listener(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // So that a node that was killed can start again at once.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

fn bind(listen: Listen) -> Result<Listeners, ServerError> {
    let bind = |name, address| listener(address).map_err(|cause| ServerError::Listen { name, address, cause });
    Ok(Listeners {
        client: bind("client-listen", listen.client)?,
        peer: bind("peer-listen", listen.peer)?,
        http: bind("http-listen", listen.http)?,
    })
}

/// What the engine is told.
fn node_config(
    config: &Config,
    node_id: NodeId,
    birth: Option<Birth>,
    peer_listener: TcpListener,
    own: &birth::Addresses,
) -> NodeConfig {
    let mut node = NodeConfig::new(&config.data, node_id, tokio::runtime::Handle::current(), peer_listener);
    node.cluster_name.clone_from(&config.cluster_name);
    node.birth = birth;
    node.engine.read_mode = config.read_mode.into();
    node.memory_bytes = config.memory();
    node.peer_addr.clone_from(&config.advertise_peer_addr);
    node.client_addr.clone_from(&own.client);
    node.http_addr.clone_from(&own.http);
    node.disk_margin_bytes = (config.disk_margin_bytes > 0).then_some(config.disk_margin_bytes);
    node.ballast_bytes = (config.ballast_bytes > 0).then_some(config.ballast_bytes);
    node.scrub_interval = Duration::from_millis(config.scrub_interval_ms);
    node.scrub_bytes_per_second = config.scrub_bytes_per_second;
    node.slow_request = config.slow_request();
    if config.sync_batches_max > 0 {
        node.sync_batches_max = config.sync_batches_max;
    }
    node
}

/// Runs a node until a signal or the end of its store. SIGTERM and SIGINT: an orderly stop. SIGHUP:
/// reads the configuration again with `reload` and takes over what can change while running.
pub async fn run(
    config: Config,
    log: &LogHandle,
    reload: impl Fn() -> Result<Config, ConfigError>,
) -> Result<(), ServerError> {
    use tokio::signal::unix::{SignalKind, signal};
    let on = |kind| signal(kind).map_err(|error| ServerError::Start(format!("signals: {error}")));
    let (mut terminate, mut interrupt, mut hangup) =
        (on(SignalKind::terminate())?, on(SignalKind::interrupt())?, on(SignalKind::hangup())?);
    let server = Server::start(config.clone()).await?;
    tracing::info!(
        node = server.node.node_id().0,
        cluster = server.node.cluster_name(),
        client = %server.client,
        peer = %server.node.peer_address(),
        http = %server.http,
        "serving"
    );
    let server = Arc::new(server);
    loop {
        tokio::select! {
            reason = server.failed() => {
                tracing::error!("the store stopped: {reason}");
                return Err(ServerError::Failed(reason));
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => match reload() {
                Ok(new) => {
                    log.reload(&config, &new);
                    if let Some(tls) = &server.tls {
                        certificates::reload(tls).await;
                    }
                }
                Err(error) => tracing::error!("the configuration was not reloaded: {error}"),
            },
        }
    }
    tracing::info!("stopping");
    match Arc::into_inner(server) {
        Some(server) => server.stop().await,
        None => Ok(()),
    }
}
