//! Clusters of `flotilla start` processes on loopback that grow by joining, and what can be asked of them.

use std::error::Error;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::v1;
use flotilla_router::{Client, ClientConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::usage;

/// The longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks at something that is waited for.
const LOOK: Duration = Duration::from_millis(5);

/// A node's memory for RocksDB where no other is asked for: many nodes share a machine.
const MEMORY_BYTES: &str = "268435456";

/// A bench says what went wrong, and ends.
pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// One process.
pub struct Process {
    /// Where clients reach it.
    pub client: String,
    peer: String,
    http: String,
    data: PathBuf,
    child: Option<Child>,
}

/// Processes; all end with it.
pub struct Cluster {
    binary: PathBuf,
    /// Removed when it goes, after the processes.
    directory: tempfile::TempDir,
    /// By id, from 1 on.
    pub nodes: Vec<Process>,
    flags: Vec<String>,
    /// Of each node's process; may be shorter than the nodes are many.
    environment: Vec<Vec<(String, String)>>,
}

/// The binary beside this one: `<target>/release/compare` or `<target>/release/deps/growth-...` ->
/// `<target>/release/flotilla`.
pub fn binary() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let beside = own.ancestors().skip(1).take(2).map(|directory| directory.join("flotilla"));
    let found = beside.into_iter().find(|binary| binary.is_file());
    Ok(found.ok_or("the flotilla binary is not beside this one: run `make bin` first")?)
}

/// Addresses on loopback that nobody listens on.
pub fn free_addresses(count: usize) -> Result<Vec<String>> {
    // Held until all are known, so that none is given twice.
    let held: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<_>>()?;
    let addresses = held.iter().map(|one| one.local_addr().map(|address| address.to_string()));
    Ok(addresses.collect::<std::io::Result<_>>()?)
}

impl Cluster {
    /// Starts so many nodes one after the other, so that their ids are 1, 2, ..., and waits until every range has
    /// three replicas (or as many as there are nodes) and a leader.
    pub async fn start(binary: &Path, dir: &Path, nodes: usize, flags: &[&str]) -> Result<Self> {
        Self::start_in(binary, dir, nodes, flags, Vec::new()).await
    }

    /// The same, with an environment for each node.
    pub async fn start_in(
        binary: &Path,
        dir: &Path,
        nodes: usize,
        flags: &[&str],
        environment: Vec<Vec<(String, String)>>,
    ) -> Result<Self> {
        let directory = tempfile::tempdir_in(dir)?;
        let addresses = free_addresses(3 * nodes)?;
        let process = |(at, of): (usize, &[String])| Process {
            client: of[0].clone(),
            peer: of[1].clone(),
            http: of[2].clone(),
            data: directory.path().join(format!("node-{}", at + 1)),
            child: None,
        };
        let nodes = addresses.chunks(3).enumerate().map(process).collect();
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let mut cluster = Self { binary: binary.into(), directory, nodes, flags, environment };
        for at in 0..cluster.nodes.len() {
            cluster.spawn(at)?;
            cluster.wait_ready(at).await?;
        }
        cluster.wait_whole(cluster.nodes.len().min(3)).await?;
        Ok(cluster)
    }

    /// Starts a node's process, without waiting for anything.
    pub fn spawn(&mut self, at: usize) -> Result<()> {
        self.spawn_in(at, None)
    }

    /// The same, as a member of a control group.
    pub fn spawn_in(&mut self, at: usize, group: Option<&Path>) -> Result<()> {
        let replicas = self.nodes.len().min(3).to_string();
        let first = self.nodes[0].client.clone();
        let node = &mut self.nodes[at];
        std::fs::create_dir_all(&node.data)?;
        let mut command = command_in(group, &self.binary);
        command
            .args(["start", "--cluster-name", "growth", "--ballast-bytes", "1048576"])
            .args(["--log-level", "error", "--stop-with", &std::process::id().to_string()])
            .args(["--client-listen", &node.client, "--peer-listen", &node.peer, "--http-listen", &node.http])
            .arg("--data")
            .arg(&node.data);
        match at {
            0 => command.args(["--bootstrap", "--initial-replicas", &replicas]),
            _ => command.args(["--join", &first]),
        };
        if !self.flags.iter().any(|flag| flag == "--memory-bytes") {
            command.args(["--memory-bytes", MEMORY_BYTES]);
        }
        command.envs(self.environment.get(at).into_iter().flatten().cloned());
        command.args(&self.flags).stdin(Stdio::null()).stdout(Stdio::null());
        node.child = Some(command.spawn()?);
        Ok(())
    }

    /// Ends a node's process at once.
    pub fn kill(&mut self, at: usize) -> Result<()> {
        if let Some(mut child) = self.nodes[at].child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Ends a node for good: its directory goes with it.
    pub fn lose(&mut self, at: usize) -> Result<()> {
        self.kill(at)?;
        Ok(std::fs::remove_dir_all(&self.nodes[at].data)?)
    }

    /// Asks a node to stop, and waits until it has.
    pub fn stop(&mut self, at: usize) -> Result<()> {
        let Some(mut child) = self.nodes[at].child.take() else { return Ok(()) };
        signal(&child, libc::SIGTERM)?;
        child.wait()?;
        Ok(())
    }

    /// Sends all nodes a signal that ends them, and waits until it has.
    pub async fn end(&mut self, signal: i32) -> Result<()> {
        end(self.nodes.iter_mut().filter_map(|node| node.child.take()).collect(), signal).await
    }

    /// Lets a node's process stand still, or go on.
    pub fn stand_still(&self, at: usize, still: bool) -> Result<()> {
        let child = self.nodes[at].child.as_ref().ok_or("the node does not run")?;
        signal(child, if still { libc::SIGSTOP } else { libc::SIGCONT })
    }

    /// Waits until a node says that it is ready.
    pub async fn wait_ready(&self, at: usize) -> Result<()> {
        let http = &self.nodes[at].http;
        wait(&format!("{http} to be ready"), async || is_ready(http).await).await
    }

    /// Waits until every range has exactly so many replicas, all of them voters on nodes that run, and a leader.
    pub async fn wait_whole(&self, replicas: usize) -> Result<()> {
        let client = self.client().await?;
        let running: Vec<u64> = (1..).zip(&self.nodes).filter(|(_, of)| of.child.is_some()).map(|(id, _)| id).collect();
        let whole = |route: &v1::RangeStatus| {
            let of = route.descriptor.iter().flat_map(|range| &range.replicas);
            let good = |replica: &&v1::ReplicaDescriptor| {
                replica.role() == v1::ReplicaRole::Voter && running.contains(&replica.node_id)
            };
            let (all, good) = (of.clone().count(), of.filter(good).count());
            (all, good) == (replicas, replicas) && running.contains(&route.leader_node_id)
        };
        wait("all replicas of all ranges", async || {
            let Ok(routes) = client.list_ranges().await else { return false };
            pause_after(&routes.ranges).await;
            !routes.ranges.is_empty() && routes.ranges.iter().all(whole)
        })
        .await
    }

    /// A client that knows all nodes that run.
    pub async fn client(&self) -> Result<Client> {
        let running = self.nodes.iter().filter(|node| node.child.is_some()).map(|node| node.client.clone());
        let config = ClientConfig { timeout: Duration::from_secs(30), ..ClientConfig::default() };
        Ok(Client::connect(running, config).await?)
    }

    /// The sum of the counters of all nodes that run.
    pub async fn counters(&self, client: &Client) -> Result<Counters> {
        let mut sum = Counters::default();
        for node in self.nodes.iter().filter(|node| node.child.is_some()) {
            let of = client.node_status_at(&node.client).await?.counters.unwrap_or_default();
            sum.syncs += of.wal_syncs as f64;
            sum.entries += of.log_entries as f64;
            sum.messages += of.raft_messages_sent as f64;
            sum.cpu_micros += of.cpu_micros as f64;
            sum.writes += of.writes as f64;
        }
        Ok(sum)
    }

    /// What a node tells of itself, in Prometheus' format.
    pub async fn metrics(&self, at: usize) -> Result<String> {
        Ok(http_get(&self.nodes[at].http, "/metrics").await?)
    }

    /// Where all nodes keep what they have.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A node's process.
    pub fn process(&self, at: usize) -> Result<u32> {
        Ok(self.nodes[at].child.as_ref().ok_or("the node does not run")?.id())
    }

    /// Resident bytes of a node's process.
    pub fn resident_bytes(&self, at: usize) -> Result<f64> {
        Ok(usage::resident_bytes_of(self.process(at)?)? as f64)
    }
}

/// A program that is started, if so asked, as a member of a control group, which it is from its first byte on.
pub fn command_in(group: Option<&Path>, program: &Path) -> Command {
    let Some(group) = group else { return Command::new(program) };
    let mut command = Command::new("sh");
    command.args(["-c", r#"echo $$ > "$0" && exec "$@""#]).arg(group.join("cgroup.procs")).arg(program);
    command
}

/// Sends processes a signal that ends them, and waits until it has.
pub async fn end(mut processes: Vec<Child>, with: i32) -> Result<()> {
    let mut ended = processes.iter().try_for_each(|child| signal(child, with));
    if ended.is_ok() {
        let gone = |child: &mut Child| matches!(child.try_wait(), Ok(Some(_)));
        let all = async || processes.iter_mut().all(gone);
        ended = wait("processes to end", all).await;
    }
    for child in processes.iter_mut().filter(|_| ended.is_err()) {
        // Gone already is as good.
        let _ = child.kill();
        let _ = child.wait();
    }
    ended
}

fn signal(child: &Child, signal: i32) -> Result<()> {
    let pid = i32::try_from(child.id())?;
    // SAFETY: kill takes no pointers, and the child has not been waited for, so that the id is still its own.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().into()),
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut child) = node.child.take() {
                // Gone already is as good.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// What nodes have spent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Syncs of the logs.
    pub syncs: f64,
    /// Log entries appended.
    pub entries: f64,
    /// Raft messages sent.
    pub messages: f64,
    /// CPU time of the processes.
    pub cpu_micros: f64,
    /// Writes that were answered, whatever the answer.
    pub writes: f64,
}

impl Counters {
    /// What came since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            syncs: self.syncs - earlier.syncs,
            entries: self.entries - earlier.entries,
            messages: self.messages - earlier.messages,
            cpu_micros: self.cpu_micros - earlier.cpu_micros,
            writes: self.writes - earlier.writes,
        }
    }
}

/// Measures, and says on stderr what came out: a long bench shows that it gets on, and what it had when it fails.
pub async fn shown<const N: usize>(
    name: &str,
    columns: &[&str; N],
    measured: impl Future<Output = Result<[f64; N]>>,
) -> Result<[f64; N]> {
    let begun = Instant::now();
    let values = measured.await.map_err(|error| format!("{name}: {error}"))?;
    eprintln!("{name}, after {:.0} s:", begun.elapsed().as_secs_f64());
    for (column, value) in columns.iter().zip(&values) {
        eprintln!("  {column}: {value:.3}");
    }
    Ok(values)
}

/// The ranges of the keyspaces of users.
pub async fn user_ranges(client: &Client) -> Result<Vec<v1::RangeStatus>> {
    let mut routes = client.list_ranges().await?.ranges;
    routes.retain(|route| route.descriptor.as_ref().is_some_and(|range| range.range_id != SYSTEM_RANGE.0));
    Ok(routes)
}

/// A long list costs its node more than what is waited for: the longer it is, the longer it is not asked for again.
pub async fn pause_after(list: &[v1::RangeStatus]) {
    tokio::time::sleep(Duration::from_micros(20) * u32::try_from(list.len()).unwrap_or(u32::MAX)).await;
}

/// Waits until a condition holds.
pub async fn wait(what: &str, mut condition: impl AsyncFnMut() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !condition().await {
        if begun.elapsed() > PATIENCE {
            return Err(format!("waited {PATIENCE:?} for {what}").into());
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

async fn is_ready(http: &str) -> bool {
    http_get(http, "/readyz").await.is_ok_and(|answer| answer.contains(" 200 "))
}

/// An answer with its head, of a server that ends the connection behind it.
pub async fn http_get(address: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_differ() {
        let addresses = free_addresses(20).expect("loopback has them");
        let different: std::collections::BTreeSet<_> = addresses.iter().collect();
        assert_eq!(different.len(), 20);
    }

    #[test]
    fn a_program_joins_its_group_before_it_starts() {
        let group = tempfile::tempdir().expect("a directory");
        let mut command = command_in(Some(group.path()), Path::new("echo"));
        let child = command.arg("a word").stdout(Stdio::piped()).spawn().expect("a shell");
        let pid = child.id();
        let said = child.wait_with_output().expect("it ends").stdout;
        let members = std::fs::read_to_string(group.path().join("cgroup.procs")).expect("written");
        assert_eq!((said.as_slice(), members), (b"a word\n".as_slice(), format!("{pid}\n")));
    }
}
