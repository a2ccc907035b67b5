//! Orders carried out: a node added, a node restarted.

use std::time::Instant;

use rustix::process::Signal;

use super::checks;
use super::child::{Process, STOP_TIMEOUT, ending};
use super::cluster::{Cluster, POLL, READY_TIMEOUT};
use super::level::Levelling;
use super::orders::Order;
use super::plan::NodePlan;
use crate::cli::failure::{Failure, Result};
use crate::cli::output::duration;

/// Starts one more node, which joins. Must be called on the main thread.
pub async fn add_node(cluster: &mut Cluster, order: &mut Order) -> Result {
    let node = cluster.plan.next_node()?;
    checks::ports(std::slice::from_ref(&node))?;
    let began = Instant::now();
    let process = Process::start(&cluster.plan, &node, true)?;
    let (id, client) = (node.id, node.client.clone());
    let text = format!("starting node {id} (pid {}); its log: {}", process.pid(), node.log_file().display());
    order.step(text).await;
    cluster.nodes.add(&node)?;
    cluster.plan.nodes.push(node);
    cluster.processes.push(process);
    if let Err(failure) = cluster.answers(id, began).await {
        cluster.plan.nodes.pop();
        if let Some(mut process) = cluster.processes.pop() {
            process.signal(Signal::KILL);
            process.wait(STOP_TIMEOUT).await;
        }
        return Err(failure);
    }
    cluster.plan.keep(true)?;
    order.step(format!("node {id} has joined ({}), and serves at {client}", duration(began.elapsed()))).await;
    Ok(())
}

/// Stops a node in order, if it runs, starts it again, and waits until it is level with the others. Must be called on
/// the main thread.
pub async fn restart(cluster: &mut Cluster, id: u64, order: &mut Order) -> Result {
    let node = cluster.plan.nodes.iter().find(|node| node.id == id).cloned().ok_or_else(|| {
        Failure::failed(format!("there is no node {id}"))
            .hint(format!("the cluster has the nodes 1 to {}", cluster.plan.nodes.len()))
    })?;
    stop(cluster, &node, order).await?;
    checks::ports(std::slice::from_ref(&node))?;
    let began = Instant::now();
    let process = Process::start(&cluster.plan, &node, false)?;
    order.step(format!("node {id} is started again (pid {})", process.pid())).await;
    if let Some(place) = cluster.process(id) {
        *place = process;
    }
    cluster.answers(id, began).await?;
    level(cluster, id, began).await?;
    order.step(format!("node {id} is level with the others, {} after its start", duration(began.elapsed()))).await;
    Ok(())
}

async fn stop(cluster: &mut Cluster, node: &NodePlan, order: &mut Order) -> Result {
    let process = cluster.process(node.id);
    let process = process.ok_or_else(|| Failure::failed(format!("node {} has no process", node.id)))?;
    if process.ended().is_some() {
        return Ok(());
    }
    let began = Instant::now();
    process.signal(Signal::TERM);
    let how = match process.wait(STOP_TIMEOUT).await {
        Some(status) if status.success() => "stopped in order".into(),
        Some(status) => ending(status),
        None => {
            process.signal(Signal::KILL);
            process.wait(STOP_TIMEOUT).await;
            "did not stop, and was killed".into()
        }
    };
    order.step(format!("node {} {how}, {} after it was told", node.id, duration(began.elapsed()))).await;
    Ok(())
}

/// Waits until a node that was started again has what the others have.
async fn level(cluster: &mut Cluster, id: u64, began: Instant) -> Result {
    let mut levelling = Levelling::new(id);
    loop {
        let all = cluster.plan.nodes.iter().map(|node| node.id);
        let leaders = cluster.nodes.views(all).await.leaders();
        let knows = cluster.nodes.status(id).await.is_some_and(|status| status.ranges_without_leader == 0);
        if knows && levelling.look(&cluster.nodes, &leaders).await {
            cluster.leaders = leaders;
            return Ok(());
        }
        if began.elapsed() > READY_TIMEOUT {
            return Err(Failure::failed(format!("node {id} is up, but not level after {}", duration(began.elapsed()))));
        }
        tokio::time::sleep(POLL).await;
    }
}
