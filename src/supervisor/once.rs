//! `run --once`: the whole show without hands, for `make run ONCE=1` and the tests.
//!
//! start, sample, write through one node and read through another, kill -9 a node that leads
//! something, wait until every range has a leader, read every file back, restart the node, wait until
//! it is level, stop. Each step prints a line; the first that fails ends it with exit code 1.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::child::{self, Process};
use super::cluster::Cluster;
use super::level::Levelling;
use super::outage::Outage;
use super::plan::Plan;
use super::show::{self, say};
use super::{BASE_PORT, Signals, checks, sample};
use crate::cli::failure::{Failure, Result};
use crate::cli::global::Global;
use crate::cli::kv::import;
use crate::cli::output::{duration, plural};
use crate::cli::run::RunArgs;

/// How long ranges may take to get leaders, and a node to become level.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// Base ports tried where none is given.
const BASE_PORTS: u16 = 40;
/// Files of a sample made up where none is given.
const MADE_UP_FILES: u32 = 200;

pub async fn run(args: RunArgs, global: &Global) -> Result {
    let mut signals = Signals::new()?;
    let scratch = tempfile::Builder::new().prefix("flotilla-once-").tempdir();
    let scratch = scratch.map_err(|error| Failure::failed(format!("cannot make a temporary directory: {error}")))?;
    let data = args.data.clone().unwrap_or_else(|| scratch.path().join("data"));
    let sample = match args.sample.clone() {
        Some(sample) => sample,
        None => made_up_sample(scratch.path())?,
    };
    let plan = plan(&args, &data)?;
    checks::all(&plan)?;
    let began = Instant::now();
    let mut cluster = Cluster::start(plan)?;
    let result = tokio::select! {
        result = show(&mut cluster, &sample, global) => result,
        () = signals.stop() => Err(Failure::failed("interrupted")),
    };
    if let Err(failure) = result {
        child::kill_all(&mut cluster.processes).await;
        return Err(match args.data {
            Some(data) => failure.hint(format!("the nodes' logs are kept: {}", data.join("node-*/log").display())),
            None => failure.hint("with --data DIR the nodes' logs are kept"),
        });
    }
    cluster.stop().await?;
    say(format_args!("ok: all nodes stopped in order; {} in all", duration(began.elapsed())));
    Ok(())
}

/// With free ports, unless some are given.
fn plan(args: &RunArgs, data: &Path) -> Result<Plan> {
    if let Some(base_port) = args.base_port {
        return Plan::new(data, args.nodes, args.zones, base_port);
    }
    for attempt in 0..BASE_PORTS {
        // 10 apart: another cluster's nodes are 100 apart and take three ports each.
        let plan = Plan::new(data, args.nodes, args.zones, BASE_PORT + 10 * attempt)?;
        let free = |(_, address): &(_, &str)| TcpListener::bind(address).is_ok();
        if plan.nodes.iter().all(|node| node.addresses().iter().all(free)) {
            return Ok(plan);
        }
    }
    Err(Failure::failed("no free ports were found").hint("name some with --base-port"))
}

fn made_up_sample(scratch: &Path) -> Result<PathBuf> {
    let root = scratch.join("sample");
    for number in 0..MADE_UP_FILES {
        let path = root.join(format!("{}/{number}", number % 7));
        let content: Vec<u8> = (0..number * 50).map(|at| (at.wrapping_mul(number) >> 3) as u8).collect();
        let made = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, content));
        made.map_err(|error| Failure::file("write", &path, &error))?;
    }
    Ok(root)
}

async fn show(cluster: &mut Cluster, sample: &Path, global: &Global) -> Result {
    let began = Instant::now();
    cluster.ready().await?;
    show::table(cluster);
    say(format_args!("ok: ready after {}", duration(began.elapsed())));
    store(cluster, sample, global).await?;
    through_any_node(cluster, global).await?;
    let (victim, led) = show::victim(cluster).ok_or_else(|| Failure::failed("no node leads a range"))?;
    kill(cluster, victim, led).await?;
    if cluster.plan.nodes.len() > 2 {
        wait_for_leaders(cluster, victim).await?;
        read_back(cluster, sample, global).await?;
    }
    restart(cluster, victim).await?;
    read_back(cluster, sample, global).await
}

async fn store(cluster: &Cluster, sample: &Path, global: &Global) -> Result {
    let summary = cluster.store_sample(sample, global).await?;
    if !summary.failed.is_empty() || summary.skipped > 0 {
        return Err(Failure::failed(format!("the sample was not stored: {}", summary.text())));
    }
    say(format_args!("ok: sample {}", summary.text()));
    Ok(())
}

async fn through_any_node(cluster: &Cluster, global: &Global) -> Result {
    let (Some(first), Some(last)) = (cluster.plan.nodes.first(), cluster.plan.nodes.last()) else { return Ok(()) };
    let through = async |node: &super::plan::NodePlan| cluster.client_at(vec![node.client.clone()], global).await;
    through(first).await?.put("hello", "world").await?;
    let record = through(last).await?.get("hello").await?;
    if record.is_none_or(|record| record.value != "world") {
        return Err(Failure::failed(format!(
            "what was written through node {} was not read through node {}",
            first.id, last.id
        )));
    }
    say(format_args!("ok: written through node {}, read through node {}", first.id, last.id));
    Ok(())
}

async fn kill(cluster: &mut Cluster, victim: u64, led: u64) -> Result {
    let process = cluster.process(victim).ok_or_else(|| Failure::failed("the node has no process"))?;
    process.signal(Signal::KILL);
    process.wait(PATIENCE).await.ok_or_else(|| Failure::failed(format!("node {victim} does not die")))?;
    say(format_args!("ok: killed node {victim} (kill -9), which led {}", plural(led, "range")));
    Ok(())
}

async fn wait_for_leaders(cluster: &mut Cluster, victim: u64) -> Result {
    let mut outage = Outage::new(victim, Instant::now(), &cluster.leaders);
    let others: Vec<u64> = cluster.plan.nodes.iter().map(|node| node.id).filter(|node| *node != victim).collect();
    let began = Instant::now();
    loop {
        let leaders = cluster.nodes.views(others.iter().copied()).await.leaders();
        if let Some(line) = outage.look(Instant::now(), &leaders, others.len(), cluster.plan.nodes.len()) {
            say(format_args!("ok: {line}"));
        }
        if outage.over() && !leaders.is_empty() && leaders.values().all(Option::is_some) {
            cluster.leaders = leaders;
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            return Err(Failure::failed(format!("ranges have had no leader for {}", duration(PATIENCE))));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Reads every file of the sample and compares.
async fn read_back(cluster: &Cluster, sample: &Path, global: &Global) -> Result {
    let alive = cluster.processes.iter().zip(&cluster.plan.nodes);
    let addresses = alive.filter(|(process, _)| process.runs()).map(|(_, node)| node.client.clone()).collect();
    let client = cluster.client_at(addresses, global).await?;
    let mut compared = 0;
    for file in sample::files(sample)? {
        // What was refused at the import is not there.
        let Ok((key, content)) = import::key_and_content(sample, &file, b"") else { continue };
        let record = client.get(key).await?;
        if record.is_none_or(|record| record.value != content) {
            return Err(Failure::failed(format!("{} did not come back as it was stored", file.display())));
        }
        compared += 1;
    }
    say(format_args!("ok: read back {}, byte for byte", plural(compared, "file")));
    Ok(())
}

async fn restart(cluster: &mut Cluster, victim: u64) -> Result {
    let node = cluster.plan.nodes.iter().find(|node| node.id == victim);
    let node = node.ok_or_else(|| Failure::failed("there is no such node"))?;
    let process = Process::start(&cluster.plan, node, false)?;
    if let Some(place) = cluster.process(victim) {
        *place = process;
    }
    let began = Instant::now();
    cluster.ready().await?;
    let mut levelling = Levelling::new(victim);
    loop {
        let all = cluster.plan.nodes.iter().map(|node| node.id);
        cluster.leaders = cluster.nodes.views(all).await.leaders();
        if levelling.look(&cluster.nodes, &cluster.leaders).await {
            say(format_args!(
                "ok: node {victim} restarted, and level with the others after {}",
                duration(began.elapsed())
            ));
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            return Err(Failure::failed(format!("node {victim} is not level after {}", duration(PATIENCE))));
        }
        tokio::time::sleep(POLL).await;
    }
}
