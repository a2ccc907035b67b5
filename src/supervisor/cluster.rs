//! The running cluster: its plan, its processes, and what its nodes say.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use flotilla_router::Client;
use flotilla_store::{DirectoryState, StoreDirectory};

use super::child::{self, Process, ending};
use super::nodes::{Leaders, Nodes};
use super::plan::{NodePlan, Plan};
use super::sample;
use crate::cli::failure::{Failure, Result};
use crate::cli::global::Global;
use crate::cli::kv::import::{self, Summary};

/// How long the start may take: with much to replay, and everything else on the machine.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an orderly stop of one node may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(12);
const POLL: Duration = Duration::from_millis(50);
/// Lines of a log that are shown when its node did not start.
const TAIL_LINES: usize = 8;
/// Files of the sample under way at once.
const SAMPLE_CONCURRENCY: usize = 64;

/// A cluster under the supervisor.
#[derive(Debug)]
pub struct Cluster {
    /// What it is.
    pub plan: Plan,
    /// Its nodes' processes, in order of the nodes.
    pub processes: Vec<Process>,
    /// Connections to them.
    pub nodes: Nodes,
    /// Who led what when the nodes were asked last.
    pub leaders: Leaders,
}

impl Cluster {
    /// A cluster whose nodes are about to start ([`Cluster::ready`], on the main thread).
    pub fn start(plan: Plan) -> Result<Self> {
        let nodes = Nodes::new(&plan)?;
        if plan.fresh {
            plan.keep(false)?;
        }
        Ok(Self { plan, processes: Vec::new(), nodes, leaders: Leaders::new() })
    }

    /// Starts the nodes; those of a new cluster one after the other, so that they get their ids in this order.
    /// Should one not start, the others end with this process.
    async fn start_nodes(&mut self) -> Result {
        for node in self.plan.nodes.clone() {
            let new = self.plan.fresh && !is_initialised(&node);
            self.processes.push(Process::start(&self.plan, &node, new)?);
            if new {
                self.wait_until_it_has_joined(&node).await?;
            }
        }
        Ok(())
    }

    async fn wait_until_it_has_joined(&mut self, node: &NodePlan) -> Result {
        let began = Instant::now();
        while !is_initialised(node) {
            self.check_processes()?;
            if began.elapsed() > READY_TIMEOUT {
                return Err(Failure::failed(format!("node {} has not joined the cluster", node.id))
                    .hint(format!("its log: {}", node.log_file().display())));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Adds a node to the running cluster.
    pub async fn add_node(&mut self) -> Result<NodePlan> {
        let node = self.plan.add()?;
        self.nodes.add(&node)?;
        self.processes.push(Process::start(&self.plan, &node, true)?);
        self.wait_until_it_has_joined(&node).await?;
        Ok(node)
    }

    /// Stops a node in order, if it runs, and starts it again.
    pub async fn restart_node(&mut self, id: u64) -> Result {
        let node = self.plan.nodes.iter().find(|node| node.id == id).cloned();
        let node = node.ok_or_else(|| {
            Failure::failed(format!("there is no node {id}"))
                .hint(format!("the nodes are 1 to {}", self.plan.nodes.len()))
        })?;
        let process = self.process(id).ok_or_else(|| Failure::failed("the node has no process"))?;
        process.signal(rustix::process::Signal::TERM);
        if process.wait(STOP_TIMEOUT).await.is_none() {
            return Err(Failure::failed(format!("node {id} does not stop; it is left as it is")));
        }
        let started = Process::start(&self.plan, &node, false)?;
        if let Some(place) = self.process(id) {
            *place = started;
        }
        Ok(())
    }

    /// Starts the nodes if none was started yet, and waits until every node answers and every range has a leader and
    /// its replicas.
    pub async fn ready(&mut self) -> Result {
        if self.processes.is_empty() {
            self.start_nodes().await?;
        }
        let began = Instant::now();
        let all: Vec<u64> = self.plan.nodes.iter().map(|node| node.id).collect();
        loop {
            self.check_processes()?;
            let views = self.nodes.views(all.iter().copied()).await;
            if views.complete(all.len(), self.plan.replicas()) {
                self.leaders = views.leaders();
                break;
            }
            if began.elapsed() > READY_TIMEOUT {
                let leaderless = views.leaders().values().filter(|leader| leader.is_none()).count();
                return Err(Failure::failed(format!(
                    "the cluster is not ready after {} s: {} of {} nodes answer, {leaderless} ranges have no leader, the least replicated range has {} replicas",
                    READY_TIMEOUT.as_secs(),
                    views.nodes.len(),
                    all.len(),
                    views.voters_min,
                ))
                .hint(format!("the nodes' logs: {}", self.plan.data.join("node-*/log").display())));
            }
            tokio::time::sleep(POLL).await;
        }
        // From now on a store that is gone stays gone.
        self.plan.keep(true)
    }

    fn check_processes(&mut self) -> Result {
        for process in &mut self.processes {
            let Some(status) = process.ended() else { continue };
            let Some(node) = self.plan.nodes.iter().find(|node| node.id == process.node) else { continue };
            return Err(Failure::failed(format!(
                "node {} {} before it was ready{}",
                node.id,
                ending(status),
                tail(node)
            ))
            .hint(format!("its log: {}", node.log_file().display())));
        }
        Ok(())
    }

    /// A client of this cluster.
    pub async fn client(&self, global: &Global) -> Result<Client> {
        self.client_at(self.plan.nodes.iter().map(|node| node.client.clone()).collect(), global).await
    }

    /// A client that begins at these addresses.
    pub async fn client_at(&self, addr: Vec<String>, global: &Global) -> Result<Client> {
        Global { addr, ..global.clone() }.client().await
    }

    /// Stores a file tree.
    pub async fn store_sample(&self, root: &Path, global: &Global) -> Result<Summary> {
        let files = sample::files(root)?;
        let client = self.client(global).await?;
        Ok(import::import(&client, root, files, b"", SAMPLE_CONCURRENCY).await)
    }

    /// The process of a node.
    pub fn process(&mut self, node: u64) -> Option<&mut Process> {
        self.processes.iter_mut().find(|process| process.node == node)
    }

    /// Stops all nodes in order.
    pub async fn stop(&mut self) -> Result {
        let bad = child::stop_all(&mut self.processes).await;
        if bad.is_empty() {
            return Ok(());
        }
        let list: Vec<String> = bad.iter().map(|(node, how)| format!("node {node} {how}")).collect();
        Err(Failure::failed(format!("not all nodes stopped in order: {}", list.join("; ")))
            .hint(format!("their logs: {}", self.plan.data.join("node-*/log").display())))
    }
}

fn is_initialised(node: &NodePlan) -> bool {
    matches!(StoreDirectory::probe(&node.data), Ok(DirectoryState::Initialised(_)))
}

/// The end of what a node said last.
fn tail(node: &NodePlan) -> String {
    for path in [node.stderr_file(), node.log_file()] {
        let text = fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        if !lines.is_empty() {
            let from = lines.len().saturating_sub(TAIL_LINES);
            return format!(":\n  {}", lines[from..].join("\n  "));
        }
    }
    String::new()
}
