//! Clusters of nodes in one process, on free ports of loopback.

use std::collections::BTreeSet;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use flotilla_engine::bootstrap::Birth;
use flotilla_engine::config::{Config, ReadMode};
use flotilla_node::{LocalStorage, Node, NodeConfig, StartError};
use flotilla_proto::{NodeId, RangeId, v1};
use flotilla_store::RocksStorage;
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until, timeout};

/// How long anything may take before its test fails.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// How often a condition is looked at.
const GLANCE: Duration = Duration::from_millis(10);

/// Waits until `holds`.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "within {DEADLINE:?}: {what}");
        sleep_until(Instant::now() + GLANCE).await;
    }
}

/// Settings for tests: short leases and elections, little disk.
pub fn settings(read_mode: ReadMode) -> Config {
    Config {
        tick: Duration::from_millis(40),
        election_ticks: 10,
        lease: Duration::from_millis(250),
        read_mode,
        ..Config::default()
    }
}

/// A listener on a free port.
pub fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a free port")
}

/// The birth of one of several stores that begin together.
pub fn laid_out(cluster_name: &str, node: NodeId, members: &[(NodeId, String)], ranges: u32, replicas: usize) -> Birth {
    let layout = flotilla_placement::layout(cluster_name, members, ranges, replicas).expect("possible");
    // Another one for each store that is made.
    let store_id = RandomState::new().build_hasher().finish().max(1);
    Birth::laid_out(node, store_id, &layout)
}

/// A cluster whose nodes can be stopped and started.
pub struct Cluster<S: LocalStorage = RocksStorage> {
    pub directory: TempDir,
    pub members: Vec<(NodeId, String)>,
    pub nodes: Vec<Option<Node<S>>>,
    pub engine: Config,
    pub ranges: u32,
}

impl Cluster {
    /// Three nodes with `ranges` ranges, all of which have a leader.
    pub async fn start(engine: Config, ranges: u32) -> Self {
        let listeners: Vec<_> = (0..3).map(|_| listener()).collect();
        let address = |listener: &TcpListener| listener.local_addr().expect("it is bound").to_string();
        let members = (1..).map(NodeId).zip(listeners.iter().map(address)).collect();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut cluster = Self { directory, members, nodes: vec![None, None, None], engine, ranges };
        for (at, listener) in listeners.into_iter().enumerate() {
            cluster.start_node(at, listener).await.expect("the node starts");
        }
        cluster.ready().await;
        cluster
    }

    pub fn data_dir(&self, at: usize) -> PathBuf {
        self.directory.path().join(format!("node{}", at + 1))
    }

    pub fn config(&self, at: usize, listener: TcpListener) -> NodeConfig {
        let mut config = NodeConfig::new(self.data_dir(at), self.members[at].0, Handle::current(), listener);
        config.birth = Some(laid_out("flotilla", self.members[at].0, &self.members, self.ranges, 3));
        config.engine = self.engine.clone();
        config.memory_bytes = 32 << 20;
        config.ballast_bytes = Some(0);
        config.disk_margin_bytes = Some(1);
        config
    }

    pub async fn start_node(&mut self, at: usize, listener: TcpListener) -> Result<(), StartError> {
        let config = self.config(at, listener);
        let node = tokio::task::spawn_blocking(|| Node::start(config)).await.expect("it does not panic")?;
        self.nodes[at] = Some(node);
        Ok(())
    }
}

impl<S: LocalStorage> Cluster<S> {
    pub fn node(&self, at: usize) -> &Node<S> {
        self.nodes[at].as_ref().expect("the node runs")
    }

    pub fn running(&self) -> impl Iterator<Item = &Node<S>> {
        self.nodes.iter().flatten()
    }

    /// Stops a node in order.
    pub async fn stop_node(&mut self, at: usize) {
        let node = self.nodes[at].take().expect("the node runs");
        timeout(DEADLINE, node.stop()).await.expect("within the deadline").expect("nothing had failed");
    }

    pub async fn stop(mut self) {
        for at in 0..self.nodes.len() {
            if self.nodes[at].is_some() {
                self.stop_node(at).await;
            }
        }
    }

    /// Waits until every running node knows a running leader of every range.
    pub async fn ready(&self) {
        let running: Vec<NodeId> = self.running().map(Node::node_id).collect();
        eventually("every range has a running leader", || {
            self.running().all(|node| {
                let ranges = node.own_routes();
                ranges.iter().all(|range| running.contains(&NodeId(range.leader_node_id)))
            })
        })
        .await;
    }

    /// The range of a key.
    pub fn range_of(&self, key: &[u8]) -> v1::RangeDescriptor {
        // A node that installs a snapshot does not show the range meanwhile; the others do.
        let routes = self.running().flat_map(|node| node.own_routes());
        let mut descriptors = routes.filter_map(|range| range.descriptor);
        let holds =
            |range: &v1::RangeDescriptor| key >= &range.start[..] && (range.end.is_empty() || key < &range.end[..]);
        descriptors.find(holds).expect("ranges cover all keys")
    }

    pub fn header(&self, key: &[u8], consistency: v1::ReadConsistency) -> v1::RequestHeader {
        let range = self.range_of(key);
        v1::RequestHeader {
            range_id: range.range_id,
            epoch: range.epoch,
            consistency: consistency.into(),
            ..Default::default()
        }
    }

    /// Sends a request to the leader, until one answers it.
    pub async fn at_leader(
        &self,
        body: impl Fn(v1::RequestHeader) -> v1::request::Body,
        key: &[u8],
    ) -> v1::response::Body {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let header = self.header(key, v1::ReadConsistency::Linearizable);
            let range = RangeId(header.range_id);
            if let Some(node) = self.running().find(|node| node.leads(range) == Some(true)) {
                let request = v1::Request { id: 7, body: Some(body(header)) };
                let response = node.execute(request).await;
                assert_eq!(response.id, 7);
                match response.body.expect("every answer has a body") {
                    v1::response::Body::Error(error) if Instant::now() < deadline => {
                        assert_ne!(error.action(), v1::ErrorAction::Fail, "{error:?}");
                    }
                    answer => return answer,
                }
            }
            assert!(Instant::now() < deadline, "no leader of {range} answers");
            sleep_until(Instant::now() + GLANCE).await;
        }
    }

    /// Writes through the leader.
    pub async fn put(&self, key: &[u8], value: &[u8]) {
        let answer = self.at_leader(|header| put_body(header, key, value), key).await;
        assert!(matches!(answer, v1::response::Body::Write(_)), "{answer:?}");
    }

    /// Reads at the leader.
    pub async fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let key_bytes = bytes_of(key);
        let body = |header| v1::request::Body::Get(v1::GetRequest { header: Some(header), key: key_bytes.clone() });
        value_of(self.at_leader(body, key).await)
    }

    /// What one node has applied.
    pub async fn get_stale(&self, at: usize, key: &[u8]) -> Option<Vec<u8>> {
        let header = Some(self.header(key, v1::ReadConsistency::Stale));
        let body = v1::request::Body::Get(v1::GetRequest { header, key: bytes_of(key) });
        let response = self.node(at).execute(v1::Request { id: 0, body: Some(body) }).await;
        value_of(response.body.expect("every answer has a body"))
    }

    /// Waits until all running replicas of every range have applied the same, and compares.
    pub async fn level(&self) {
        let deadline = Instant::now() + DEADLINE;
        for range in self.shown() {
            loop {
                let mut replicas = Vec::new();
                for node in self.running() {
                    let status = node.range_status(range).await.expect("it has a replica");
                    let replica = status.replica.expect("it tells of it");
                    replicas.push((replica.applied_index, replica.applied_checksum));
                }
                if replicas.iter().all(|(applied, _)| *applied == replicas[0].0) {
                    assert!(replicas.iter().all(|replica| *replica == replicas[0]), "{replicas:?}");
                    break;
                }
                assert!(Instant::now() < deadline, "{range}: {replicas:?}");
                sleep_until(Instant::now() + GLANCE).await;
            }
        }
        // What is installed is shown a moment later.
        eventually("every node shows every range", || {
            let all = self.shown().len();
            self.running().all(|node| node.own_routes().len() == all)
        })
        .await;
    }

    /// The ranges that any running node shows.
    fn shown(&self) -> BTreeSet<RangeId> {
        let routes = self.running().flat_map(|node| node.own_routes());
        routes.filter_map(|range| range.descriptor).map(|range| RangeId(range.range_id)).collect()
    }
}

pub fn bytes_of(bytes: &[u8]) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(bytes)
}

pub fn put_body(header: v1::RequestHeader, key: &[u8], value: &[u8]) -> v1::request::Body {
    let put = v1::Put { key: bytes_of(key), value: bytes_of(value), if_absent: false, ttl_ms: 0 };
    let ops = vec![v1::WriteOp { op: Some(v1::write_op::Op::Put(put)) }];
    v1::request::Body::Write(v1::BatchRequest { header: Some(header), ops, atomic: false })
}

fn value_of(answer: v1::response::Body) -> Option<Vec<u8>> {
    match answer {
        v1::response::Body::Get(get) => {
            assert!(get.header.is_some_and(|header| header.cluster_id != 0 && header.range_id != 0));
            get.record.map(|record| record.value.to_vec())
        }
        other => panic!("not an answer to get: {other:?}"),
    }
}
