//! What a data directory is, or is to become: the first store of a new cluster, that of a node that joins one, or
//! the store that it has been before.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_engine::bootstrap::{self, Birth};
use flotilla_node::transport::{PROTOCOL_MAX, PROTOCOL_MIN};
use flotilla_placement::Bootstrap;
use flotilla_proto::{NodeId, v1};
use flotilla_router::PlacementClient;
use flotilla_store::{DirectoryState, Identity, StoreDirectory};
use flotilla_tls::{Connector, Role, Tls};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tonic::transport::Endpoint;

use super::{ServerError, VERSION};
use crate::config::{Config, ConfigError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a start waits for the nodes that its `--join` names, if its store is there already.
const CHECK_TIMEOUT: Duration = Duration::from_millis(300);
/// Replicas of a range, unless the settings say otherwise.
const REPLICAS_DEFAULT: u32 = 3;
/// The node that begins a cluster.
const FIRST_NODE: NodeId = NodeId(1);

/// Where this node will be found.
pub(super) struct Addresses {
    pub peer: String,
    pub client: String,
    pub http: String,
}

/// The node's id, and what its store is made with if it is to be made.
pub(super) async fn decide(
    config: &Config,
    own: &Addresses,
    tls: Option<&Arc<Tls>>,
) -> Result<(NodeId, Option<Birth>), ServerError> {
    let state = StoreDirectory::probe(&config.data).map_err(|error| ServerError::Start(error.to_string()))?;
    if let DirectoryState::Initialised(identity) = state {
        for (flag, given) in [("--bootstrap", config.bootstrap), ("--join", !config.join.is_empty())] {
            if given {
                tracing::info!("{flag} did nothing: {} is initialised", config.data.display());
            }
        }
        check_cluster(config, own, identity, tls).await?;
        // Only used if the first start was cut off before it had written anything.
        let unfinished = config.bootstrap && identity.node_id == FIRST_NODE;
        let birth = if unfinished { Some(first_store(config, own, identity.cluster_id)?) } else { None };
        return Ok((identity.node_id, birth));
    }
    let birth = if config.bootstrap {
        first_store(config, own, random()?)?
    } else if config.join.is_empty() {
        return Err(ServerError::NotBootstrapped { path: config.data.display().to_string() });
    } else {
        joining_store(config, own, tls).await?
    };
    Ok((NodeId(birth.identity.node_id), Some(birth)))
}

/// A unit may keep its `--join`; but where it names another cluster than the store's, one of the two is a mistake. Nodes
/// that do not answer at once say nothing.
async fn check_cluster(
    config: &Config,
    own: &Addresses,
    identity: Identity,
    tls: Option<&Arc<Tls>>,
) -> Result<(), ServerError> {
    if config.join.is_empty() {
        return Ok(());
    }
    let mut asked = JoinSet::new();
    for address in config.join_addresses()?.into_iter().filter(|address| *address != own.client) {
        let tls = tls.cloned();
        asked.spawn(async move { Some((cluster_at(&address, tls).await?, address)) });
    }
    let until = Instant::now() + CHECK_TIMEOUT;
    let mut stranger = None;
    while let Ok(Some(answer)) = timeout_at(until, asked.join_next()).await {
        match answer.ok().flatten() {
            Some((cluster, _)) if cluster == identity.cluster_id => return Ok(()),
            Some(other) => stranger = Some(other),
            None => {}
        }
    }
    let Some((other, address)) = stranger else { return Ok(()) };
    Err(ServerError::Start(format!(
        "{} is the store of {identity}, and {address}, which --join names, is of cluster {other:016x}: name another \
         --data to make a node that joins that one, or leave --join away to go on with this store",
        config.data.display(),
    )))
}

/// The cluster that the node at an address belongs to, if it answers.
async fn cluster_at(address: &str, tls: Option<Arc<Tls>>) -> Option<u64> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).ok()?.connect_timeout(CHECK_TIMEOUT);
    let channel = match tls {
        Some(tls) => endpoint.connect_with_connector(Connector::new(tls)).await,
        None => endpoint.connect().await,
    };
    let mut admin = v1::admin_client::AdminClient::new(channel.ok()?);
    let status = admin.node_status(v1::NodeStatusRequest {}).await.ok()?;
    Some(status.into_inner().cluster_id)
}

fn random() -> Result<u64, ServerError> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| ServerError::Start(format!("cannot draw a random number: {error}")))?;
    Ok(u64::from_ne_bytes(bytes).max(1))
}

fn first_store(config: &Config, own: &Addresses, cluster_id: u64) -> Result<Birth, ServerError> {
    let store_id = random()?;
    let node = v1::NodeRecord {
        node_id: FIRST_NODE.0,
        store_id,
        peer_addr: own.peer.clone(),
        client_addr: own.client.clone(),
        http_addr: own.http.clone(),
        version: VERSION.into(),
        labels: config.labels()?,
        ..Default::default()
    };
    let replicas = if config.initial_replicas == 0 { REPLICAS_DEFAULT } else { config.initial_replicas };
    let first = Bootstrap {
        cluster_id,
        cluster_name: config.cluster_name.clone(),
        node: node.clone(),
        replicas,
        split_bytes: config.split_bytes,
        ranges: config.initial_ranges,
    };
    first.check().map_err(|error| ConfigError::value("bootstrap", "", &error.to_string()))?;
    Ok(Birth {
        identity: bootstrap::identity(cluster_id, FIRST_NODE, store_id),
        known: v1::KnownNodes { cluster_name: config.cluster_name.clone(), nodes: vec![node] },
        ranges: first.first_ranges(),
        records: first.first_records().into_iter().collect::<Vec<(Bytes, Bytes)>>(),
    })
}

async fn joining_store(config: &Config, own: &Addresses, tls: Option<&Arc<Tls>>) -> Result<Birth, ServerError> {
    let store_id = random()?;
    let addresses = config.join_addresses()?;
    if let Some(itself) = addresses.iter().find(|address| **address == own.client) {
        return Err(ConfigError::value(
            "join",
            itself,
            "this is the node's own address: name nodes that are in the cluster",
        )
        .into());
    }
    let failed = |error: flotilla_proto::Error| {
        ServerError::Start(format!(
            "joining the cluster through {}: {error}; {}",
            config.join,
            flotilla_proto::Error::hint(&error)
        ))
    };
    let client = PlacementClient::new(addresses, CONNECT_TIMEOUT, 0, tls.cloned()).map_err(failed)?;
    tracing::info!("joining the cluster through {}, for up to {} s", config.join, config.join_timeout().as_secs());
    let request = v1::JoinRequest {
        cluster_name: config.cluster_name.clone(),
        store_id,
        peer_addr: own.peer.clone(),
        client_addr: own.client.clone(),
        http_addr: own.http.clone(),
        version: VERSION.into(),
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        labels: config.labels()?,
        node_id: tls.and_then(|tls| tls.identity()).map_or(0, |identity| match identity.role {
            Role::Node(node) => node.0,
            Role::Client(_) | Role::Ca => 0,
        }),
    };
    let answer = client.join(request, config.join_timeout()).await.map_err(failed)?;
    tracing::info!(node = answer.node_id, cluster = answer.cluster_name, "joined");
    Ok(Birth {
        identity: bootstrap::identity(answer.cluster_id, NodeId(answer.node_id), store_id),
        known: v1::KnownNodes { cluster_name: answer.cluster_name, nodes: answer.nodes },
        ranges: Vec::new(),
        records: Vec::new(),
    })
}

/// What a setting says, or where the node listens.
pub(super) fn advertised(setting: &str, listened: SocketAddr) -> String {
    if setting.is_empty() { listened.to_string() } else { setting.to_owned() }
}
