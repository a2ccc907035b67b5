//! Three processes of etcd, and its KV service.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use bytes::Bytes;
use flotilla_benches::cluster::{Result, command_in, end, free_addresses, http_get, wait};
use tonic::transport::{Channel, Endpoint};

use super::{Done, Failed, Session, connections};

use api::compare::{CompareResult, CompareTarget, TargetUnion};
use api::kv_client::KvClient;
use api::maintenance_client::MaintenanceClient;
use api::request_op::Request as Asked;
use api::{Compare, KeyValue, PutRequest, RangeRequest, RequestOp, StatusRequest, TxnRequest};

#[allow(missing_docs, reason = "generated")]
mod api {
    tonic::include_proto!("etcdserverpb");
}

/// More than a run writes: what is asked for is speed, not what happens when the quota is reached.
const QUOTA_BYTES: &str = "17179869184";

/// Three nodes; they end with it.
pub struct Etcd {
    binary: PathBuf,
    directory: tempfile::TempDir,
    nodes: Vec<Child>,
    endpoints: Vec<String>,
    /// Where the nodes reach each other.
    between: Vec<String>,
}

impl Etcd {
    /// As a package would start it: the defaults, but for the quota and a compaction of old revisions every five
    /// minutes, which is what Kubernetes asks of it.
    pub async fn start(peers: &Path, dir: &Path, count: usize) -> Result<Self> {
        let mut endpoints = free_addresses(2 * count)?;
        let between = endpoints.split_off(count);
        let directory = tempfile::tempdir_in(dir)?;
        let mut etcd = Self { binary: peers.join("etcd"), directory, nodes: Vec::new(), endpoints, between };
        etcd.start_again(&[])?;
        wait("etcd to have a leader", async || etcd.leader().await.is_ok()).await?;
        Ok(etcd)
    }

    /// Starts all nodes at once with what they have on disk, in control groups if there are any, and waits for nothing.
    pub fn start_again(&mut self, groups: &[PathBuf]) -> Result<()> {
        for at in 0..self.endpoints.len() {
            let child = self.spawn(at, groups.get(at).map(PathBuf::as_path))?;
            self.nodes.push(child);
        }
        Ok(())
    }

    fn spawn(&self, at: usize, group: Option<&Path>) -> Result<Child> {
        let of = |(at, peer): (usize, &String)| format!("n{at}=http://{peer}");
        let named: Vec<String> = self.between.iter().enumerate().map(of).collect();
        let (client, peer) = (format!("http://{}", self.endpoints[at]), format!("http://{}", self.between[at]));
        let data = self.directory.path().join(format!("n{at}"));
        let log = File::options().create(true).append(true).open(data.with_extension("log"))?;
        let mut command = command_in(group, &self.binary);
        command
            .args(["--name", &format!("n{at}"), "--initial-cluster", &named.join(",")])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster-state", "new", "--log-level", "warn"])
            .args(["--quota-backend-bytes", QUOTA_BYTES])
            .args(["--auto-compaction-mode", "periodic", "--auto-compaction-retention", "5m"])
            .arg("--data-dir")
            .arg(data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        Ok(command.spawn().map_err(|error| format!("{}: {error}", self.binary.display()))?)
    }

    /// Sends all nodes a signal that ends them, and waits until it has.
    pub async fn end(&mut self, signal: i32) -> Result<()> {
        end(std::mem::take(&mut self.nodes), signal).await
    }

    /// Where all nodes keep what they have.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What each node tells of itself.
    pub async fn metrics(&self) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for endpoint in &self.endpoints {
            all.push(http_get(endpoint, "/metrics").await?);
        }
        Ok(all)
    }

    pub fn processes(&self) -> Vec<u32> {
        self.nodes.iter().map(Child::id).collect()
    }

    /// Where the leader is reached.
    pub async fn leader(&self) -> Result<String> {
        let mut last = None;
        for endpoint in &self.endpoints {
            match leads(endpoint).await {
                Ok(true) => return Ok(endpoint.clone()),
                Ok(false) => {}
                // One that does not answer does not lead.
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| "no member leads".into()))
    }

    /// Sessions for so many clients: to the leader, or to all nodes in turn.
    pub async fn sessions(&self, clients: usize, spread: bool) -> Result<Vec<Kv>> {
        let leader = self.leader().await?;
        let mut sessions = Vec::new();
        for at in 0..connections(clients) {
            let endpoint = if spread { &self.endpoints[at % self.endpoints.len()] } else { &leader };
            sessions.push(Kv(KvClient::new(connect(endpoint).await?)));
        }
        Ok(sessions)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // Gone already is as good.
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

async fn leads(endpoint: &str) -> Result<bool> {
    let mut client = MaintenanceClient::new(connect(endpoint).await?);
    let status = client.status(StatusRequest {}).await?.into_inner();
    Ok(status.leader == status.header.ok_or("a status without a header")?.member_id)
}

async fn connect(endpoint: &str) -> Result<Channel> {
    Ok(Endpoint::try_from(format!("http://{endpoint}"))?.tcp_nodelay(true).connect().await?)
}

/// One connection.
#[derive(Clone)]
pub struct Kv(KvClient<Channel>);

impl Kv {
    async fn range(&self, request: RangeRequest) -> Done<Vec<KeyValue>> {
        Ok(self.0.clone().range(request).await.map_err(Failed::of)?.into_inner().kvs)
    }
}

impl Session for Kv {
    async fn put(&self, key: Bytes, value: Bytes) -> Done<()> {
        self.0.clone().put(PutRequest { key, value, lease: 0 }).await.map(drop).map_err(Failed::of)
    }

    async fn get(&self, key: Bytes) -> Done<Option<usize>> {
        let found = self.range(RangeRequest { key, ..Default::default() }).await?;
        Ok(found.first().map(|one| one.value.len()))
    }

    async fn scan(&self, from: Bytes, limit: u32) -> Done<usize> {
        let range_end = Bytes::from_static(b"\0");
        let request = RangeRequest { key: from, range_end, limit: limit.into(), ..Default::default() };
        Ok(self.range(request).await?.len())
    }

    async fn update(&self, key: Bytes, value: Bytes) -> Done<bool> {
        let found = self.range(RangeRequest { key: key.clone(), ..Default::default() }).await?;
        let revision = found.first().map_or(0, |one| one.mod_revision);
        let unchanged = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(revision)),
        };
        let put = RequestOp { request: Some(Asked::RequestPut(PutRequest { key, value, lease: 0 })) };
        let txn = TxnRequest { compare: vec![unchanged], success: vec![put], failure: Vec::new() };
        Ok(self.0.clone().txn(txn).await.map_err(Failed::of)?.into_inner().succeeded)
    }
}
