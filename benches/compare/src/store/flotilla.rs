//! Three processes of ours, and two ways to speak to them: the client library's streams, and unary calls.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_benches::cluster::{Cluster, Result, user_ranges};
use flotilla_proto::v1::kv_client::KvClient;
use flotilla_proto::v1::{self, compare_and_swap::Expect as Expected};
use flotilla_proto::{NodeId, RangeId};
use flotilla_router::{Client, ClientConfig, Expect, ScanOptions, SplitAt};
use tonic::transport::{Channel, Endpoint};

use super::{Done, Failed, Session, connections};

/// A cluster is born with so many ranges at most.
const BORN_MAX: u32 = 256;
/// Of each range, if there are as many nodes.
pub const REPLICAS: usize = 3;

/// The cluster, and how it is reached.
pub struct Flotilla {
    cluster: Cluster,
}

impl Flotilla {
    /// The defaults, with so many ranges: born with them, or split off, where there are many: a range that is born comes to
    /// the other nodes as a snapshot, one that is split off is there.
    pub async fn start(binary: &Path, dir: &Path, nodes: usize, ranges: u32) -> Result<Self> {
        if ranges > BORN_MAX && !ranges.is_multiple_of(BORN_MAX) {
            return Err(format!("{ranges} ranges: beyond {BORN_MAX} only multiples of it are made").into());
        }
        let born = ranges.min(BORN_MAX).to_string();
        let started = Self::of(Cluster::start(binary, dir, nodes, &["--initial-ranges", &born]).await?);
        if ranges > BORN_MAX {
            started.split(ranges).await?;
            started.cluster.wait_whole(nodes.min(REPLICAS)).await?;
        }
        Ok(started)
    }

    /// Splits each range that the cluster was born with into as many as the others, at what would be borders had it been born
    /// with all of them.
    async fn split(&self, ranges: u32) -> Result<()> {
        let client = self.cluster.client().await?;
        let layout = flotilla_placement::layout("even", &[(NodeId(1), String::new())], ranges, 1)?;
        let borders: BTreeSet<Bytes> = layout.ranges.into_iter().map(|range| range.start).collect();
        let parts = (ranges / BORN_MAX) as usize;
        for route in user_ranges(&client).await? {
            let range = route.descriptor.ok_or("a range has no descriptor")?;
            let within = |border: &&Bytes| **border > range.start && (range.end.is_empty() || **border < range.end);
            let mut at: Vec<Bytes> = borders.iter().filter(within).cloned().collect();
            // Where the range's own start is written with fewer digits, that border comes again.
            let surplus = (at.len() + 1).checked_sub(parts).ok_or("borders of many ranges lie unevenly")?;
            at.drain(..surplus);
            client.split_range(RangeId(range.range_id), SplitAt::Keys(at)).await?;
        }
        Ok(())
    }

    /// One that runs.
    pub fn of(cluster: Cluster) -> Self {
        Self { cluster }
    }

    /// For what an operator asks.
    pub async fn client(&self) -> Result<Client> {
        self.cluster.client().await
    }

    pub fn processes(&self) -> Result<Vec<u32>> {
        (0..self.cluster.nodes.len()).map(|at| self.cluster.process(at)).collect()
    }

    /// Sends all nodes a signal that ends them, and waits until it has.
    pub async fn end(&mut self, signal: i32) -> Result<()> {
        self.cluster.end(signal).await
    }

    /// Starts all nodes at once with what they have on disk, in control groups if there are any, and waits for nothing.
    pub fn start_again(&mut self, groups: &[PathBuf]) -> Result<()> {
        (0..self.cluster.nodes.len()).try_for_each(|at| self.cluster.spawn_in(at, groups.get(at).map(PathBuf::as_path)))
    }

    /// Where all nodes keep what they have.
    pub fn directory(&self) -> &Path {
        self.cluster.directory()
    }

    /// What each node tells of itself.
    pub async fn metrics(&self) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for at in 0..self.cluster.nodes.len() {
            all.push(self.cluster.metrics(at).await?);
        }
        Ok(all)
    }

    /// As an application has it: one client of the library for many tasks, with one connection to each node. Each thread of
    /// load has one.
    pub async fn stream(&self) -> Result<Vec<Stream>> {
        let addresses = self.cluster.nodes.iter().map(|node| node.client.clone());
        let config = ClientConfig { timeout: Duration::from_secs(30), ..ClientConfig::default() };
        Ok(vec![Stream(Client::connect(addresses, config).await?)])
    }

    /// Unary calls, each to the leader of its range: with as many connections as other stores get, or up to two more for
    /// each thread of load, since a session has one to each node.
    pub async fn unary(&self, clients: usize) -> Result<Vec<Unary>> {
        let client = self.cluster.client().await?;
        let mut leaders = BTreeMap::new();
        for route in user_ranges(&client).await? {
            let start = route.descriptor.map(|range| range.start).unwrap_or_default();
            leaders.insert(start, usize::try_from(route.leader_node_id)? - 1);
        }
        let leaders = Arc::new(leaders);
        let mut sessions = Vec::new();
        for _ in 0..connections(clients).div_ceil(self.cluster.nodes.len()) {
            let mut nodes = Vec::new();
            for node in &self.cluster.nodes {
                let endpoint = Endpoint::try_from(format!("http://{}", node.client))?.tcp_nodelay(true);
                nodes.push(KvClient::new(endpoint.connect().await?));
            }
            sessions.push(Unary { leaders: Arc::clone(&leaders), nodes: nodes.into() });
        }
        Ok(sessions)
    }
}

/// The client library.
#[derive(Clone)]
pub struct Stream(Client);

impl Session for Stream {
    async fn put(&self, key: Bytes, value: Bytes) -> Done<()> {
        self.0.put(key, value).await.map(drop).map_err(Failed::of)
    }

    async fn get(&self, key: Bytes) -> Done<Option<usize>> {
        let record = self.0.get(key).await.map_err(Failed::of)?;
        Ok(record.map(|record| record.value.len()))
    }

    async fn scan(&self, from: Bytes, limit: u32) -> Done<usize> {
        let options = ScanOptions { start: from, limit, ..ScanOptions::default() };
        Ok(self.0.scan(options).await.map_err(Failed::of)?.records.len())
    }

    async fn update(&self, key: Bytes, value: Bytes) -> Done<bool> {
        let found = self.0.get(key.clone()).await.map_err(Failed::of)?;
        let expect = found.map_or(Expect::Absent, |record| Expect::Version(record.version));
        Ok(self.0.compare_and_swap(key, expect, Some(value)).await.map_err(Failed::of)?.applied)
    }
}

/// One connection to each node, and which of them leads what: nothing moves while it is measured, and a node that does
/// not lead passes a call on.
#[derive(Clone)]
pub struct Unary {
    /// By the first key of each range.
    leaders: Arc<BTreeMap<Bytes, usize>>,
    nodes: Arc<[KvClient<Channel>]>,
}

impl Unary {
    fn leader_of(&self, key: &Bytes) -> KvClient<Channel> {
        let found = self.leaders.range::<Bytes, _>(..=key).next_back();
        self.nodes[found.map_or(0, |(_, node)| *node)].clone()
    }
}

impl Session for Unary {
    async fn put(&self, key: Bytes, value: Bytes) -> Done<()> {
        let mut node = self.leader_of(&key);
        node.put(v1::PutRequest { key, value, ..Default::default() }).await.map(drop).map_err(Failed::of)
    }

    async fn get(&self, key: Bytes) -> Done<Option<usize>> {
        let mut node = self.leader_of(&key);
        let answer = node.get(v1::GetRequest { key, ..Default::default() }).await.map_err(Failed::of)?;
        Ok(answer.into_inner().record.map(|record| record.value.len()))
    }

    async fn scan(&self, from: Bytes, limit: u32) -> Done<usize> {
        let mut node = self.leader_of(&from);
        let request = v1::ScanRequest { start: from, limit, ..Default::default() };
        Ok(node.scan(request).await.map_err(Failed::of)?.into_inner().records.len())
    }

    async fn update(&self, key: Bytes, value: Bytes) -> Done<bool> {
        let mut node = self.leader_of(&key);
        let read = v1::GetRequest { key: key.clone(), ..Default::default() };
        let found = node.get(read).await.map_err(Failed::of)?.into_inner().record;
        let expect = found.map_or(Expected::Absent(true), |record| Expected::Version(record.version));
        let op = v1::CompareAndSwap { key, expect: Some(expect), new_value: Some(value), ..Default::default() };
        let request = v1::CompareAndSwapRequest { op: Some(op), ..Default::default() };
        let answer = node.compare_and_swap(request).await.map_err(Failed::of)?;
        Ok(answer.into_inner().result.is_some_and(|result| result.applied))
    }
}
