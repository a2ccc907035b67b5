//! The running cluster: its plan, its processes, and what its nodes say.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use flotilla_router::Client;

use super::child::{self, Process, ending};
use super::nodes::{Leaders, Nodes};
use super::plan::{NodePlan, Plan};
use super::sample;
use crate::cli::failure::{Failure, Result};
use crate::cli::global::Global;
use crate::cli::kv::import::{self, Summary};

/// How long the start may take: with much to replay, and everything else on the machine.
pub const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Replicas that a range of a new cluster has in the end, if there are as many nodes.
const REPLICAS: usize = 3;
/// Between two looks at nodes that are waited for.
pub const POLL: Duration = Duration::from_millis(50);
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
    /// Starts the nodes; of a new cluster the first one, whom the others join in [`Cluster::ready`]. Must be called on
    /// the main thread.
    pub fn start(plan: Plan) -> Result<Self> {
        let nodes = Nodes::new(&plan)?;
        if plan.fresh {
            plan.keep(false)?;
        }
        // Should one not start, the others end with this process.
        let now = if plan.fresh { &plan.nodes[..1] } else { &plan.nodes[..] };
        let processes = now.iter().map(|node| Process::start(&plan, node, plan.fresh)).collect::<Result<_>>()?;
        Ok(Self { plan, processes, nodes, leaders: Leaders::new() })
    }

    /// Waits until every node answers and every range has a leader; in a new cluster also until its ranges have their
    /// replicas. Called on the main thread, like [`Cluster::start`].
    pub async fn ready(&mut self) -> Result {
        let began = Instant::now();
        let mut answering = if self.plan.fresh { 0 } else { self.plan.nodes.len() };
        while answering < self.plan.nodes.len() {
            if answering == self.processes.len() {
                self.processes.push(Process::start(&self.plan, &self.plan.nodes[answering], true)?);
            }
            self.answers(answering as u64 + 1, began).await?;
            answering += 1;
        }
        let replicas = if self.plan.fresh { self.plan.nodes.len().min(REPLICAS) } else { 1 };
        let all: Vec<u64> = self.plan.nodes.iter().map(|node| node.id).collect();
        loop {
            self.check_processes()?;
            let views = self.nodes.views(all.iter().copied()).await;
            if views.complete(all.len()) && views.replicated(replicas) {
                self.leaders = views.leaders();
                break;
            }
            if began.elapsed() > READY_TIMEOUT {
                let leaderless = views.leaders().values().filter(|leader| leader.is_none()).count();
                return Err(Failure::failed(format!(
                    "the cluster is not ready after {} s: {} of {} nodes answer, {leaderless} ranges have no leader",
                    READY_TIMEOUT.as_secs(),
                    views.nodes.len(),
                    all.len(),
                ))
                .hint(format!("the nodes' logs: {}", self.plan.data.join("node-*/log").display())));
            }
            tokio::time::sleep(POLL).await;
        }
        // From now on a store that is gone stays gone.
        self.plan.keep(true)
    }

    /// Waits until a node that was started answers, and is the one that it should be.
    pub async fn answers(&mut self, node: u64, began: Instant) -> Result {
        loop {
            self.check_processes()?;
            match self.nodes.identify(node).await {
                Some(id) if id == node => return Ok(()),
                Some(id) => {
                    let what =
                        format!("node {node} was given the id {id}: an earlier attempt to join has used {node} up");
                    return Err(Failure::failed(what).hint("begin anew with another --data"));
                }
                None => {}
            }
            if began.elapsed() > READY_TIMEOUT {
                return Err(Failure::failed(format!(
                    "node {node} does not answer after {} s",
                    READY_TIMEOUT.as_secs()
                ))
                .hint(format!("the nodes' logs: {}", self.plan.data.join("node-*/log").display())));
            }
            tokio::time::sleep(POLL).await;
        }
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
