//! `recover apply`: carries a plan out, and can be repeated until all of it is done.
//!
//! ```text
//! every living node: condemn the dead (durable) ─▶ each survivor's node: its orders, range 1 first ─▶ placement: they are removed
//! ```
//! The order matters: once no living node speaks to the dead ones any more, the old group of a range cannot come to a
//! majority with the help of one that goes on without it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::{NodeId, v1};
use flotilla_router::Client;
use serde_json::json;

use super::file::{self, Orders};
use crate::cli::confirm;
use crate::cli::failure::{Failure, Result};
use crate::cli::global::{Global, parse_duration};
use crate::cli::output::{self, plural};

/// Orders in one request.
const CHUNK: usize = 500;
/// Between two attempts.
const POLL: Duration = Duration::from_millis(300);

#[derive(clap::Args, Debug)]
pub struct ApplyArgs {
    /// The plan's file
    #[arg(value_name = "PLAN")]
    file: PathBuf,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// How long to wait for replicas that are busy, and for the placement service to come back
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = parse_duration)]
    wait: Duration,
}

/// What came of it.
#[derive(Default)]
struct Done {
    now: usize,
    before: usize,
    refused: Vec<String>,
}

pub async fn run(args: &ApplyArgs, global: &Global) -> Result {
    let orders = file::read(&args.file)?;
    let ask = confirm::must_ask(args.yes, "a recovery gives nodes up for good, and what only they held")?;
    let client = global.client().await?;
    let nodes = nodes(&client, &orders).await?;
    if ask {
        let question = format!(
            "Cluster {:016x}: nodes {:?} are given up for good; {} on with one replica each, {} again, empty. \
             What only the lost nodes had acknowledged is lost. Type the plan's id ({}) to do that:",
            orders.cluster_id,
            orders.dead,
            plural(orders.orders.len() as u64, "range") + if orders.orders.len() == 1 { " goes" } else { " go" },
            plural(orders.births.len() as u64, "range") + if orders.births.len() == 1 { " begins" } else { " begin" },
            orders.plan_id
        );
        confirm::ask(&question, &orders.plan_id)?;
    }
    let until = Instant::now() + args.wait;
    condemn(&client, &orders, &nodes).await?;
    let done = carry_out(&client, &orders, &nodes, until).await?;
    let recorded = record(&client, &orders, &done, until).await;
    report(&orders, &done, recorded, global)
}

/// The addresses of the nodes that answer; refused unless they are those that the plan was made with.
async fn nodes(client: &Client, orders: &Orders) -> Result<BTreeMap<u64, String>> {
    let (surveys, failures) = client.survey().await;
    if let Some(other) = surveys.values().find(|of| of.cluster_id != orders.cluster_id) {
        let what = format!(
            "the plan is for cluster {:016x}, and this is cluster {:016x}",
            orders.cluster_id, other.cluster_id
        );
        return Err(Failure::failed(what).hint("--addr names nodes of the cluster that the plan was made for"));
    }
    let nodes: BTreeMap<u64, String> = surveys.into_iter().map(|(address, of)| (of.node_id, address)).collect();
    if let Some(dead) = orders.dead.iter().find(|node| nodes.contains_key(node)) {
        let what = format!("node {dead} is given up by the plan, and answers");
        return Err(Failure::failed(what)
            .hint("a node that is back may hold more than the survivors: make a new plan, without naming it"));
    }
    if let Some(missing) = orders.living.iter().find(|node| !nodes.contains_key(node)) {
        let reasons: Vec<String> = failures.iter().map(ToString::to_string).collect();
        let what = format!("node {missing} answered when the plan was made, and does not now ({})", reasons.join("; "));
        return Err(Failure::failed(what)
            .hint("start it; a node that does not hear of the plan might help those that are given up"));
    }
    Ok(nodes)
}

/// No range goes on before every living node has stopped speaking to the dead ones.
async fn condemn(client: &Client, orders: &Orders, nodes: &BTreeMap<u64, String>) -> Result {
    let dead: Vec<NodeId> = orders.dead.iter().copied().map(NodeId).collect();
    for (node, address) in nodes {
        client.condemn_at(address, &dead).await.map_err(|error| {
            Failure::failed(format!("node {node} could not be told to give nodes {:?} up: {error}", orders.dead))
                .hint("no range was changed; apply the plan again")
        })?;
    }
    Ok(())
}

async fn carry_out(client: &Client, orders: &Orders, nodes: &BTreeMap<u64, String>, until: Instant) -> Result<Done> {
    let mut done = Done::default();
    let mut by_node = file::by_node(&orders.orders);
    let births = file::by_node(&orders.births);
    let involved: BTreeSet<u64> = by_node.keys().chain(births.keys()).copied().collect();
    let mut involved: Vec<u64> = involved.into_iter().collect();
    let mut busy = Vec::new();
    let system = orders.orders.iter().find(|(_, order)| order.range_id == SYSTEM_RANGE.0).map(|(node, _)| *node);
    involved.sort_by_key(|node| Some(*node) != system);
    for node in involved {
        let Some(address) = nodes.get(&node) else {
            done.refused.push(format!("node {node} does not answer"));
            continue;
        };
        let own = by_node.remove(&node).unwrap_or_default();
        for chunk in own.chunks(CHUNK) {
            let rest = ask(client, orders, (node, address), (chunk.to_vec(), Vec::new()), &mut done).await?;
            busy.extend(rest.into_iter().map(|rest| (node, address, rest)));
        }
        for chunk in births.get(&node).map_or(&[][..], |births| births).chunks(CHUNK) {
            ask(client, orders, (node, address), (Vec::new(), chunk.to_vec()), &mut done).await?;
        }
    }
    // What could not be done at once may have waited for what another node was to do.
    while !busy.is_empty() && Instant::now() < until {
        tokio::time::sleep(POLL).await;
        for (node, address, (order, _)) in std::mem::take(&mut busy) {
            let rest = ask(client, orders, (node, address), (vec![order], Vec::new()), &mut done).await?;
            busy.extend(rest.into_iter().map(|rest| (node, address, rest)));
        }
    }
    done.refused.extend(busy.into_iter().map(|(_, _, (_, refusal))| refusal));
    Ok(done)
}

/// One node's orders; returns what it cannot do at the moment, and why.
async fn ask(
    client: &Client,
    orders: &Orders,
    (node, address): (u64, &str),
    (open, births): (Vec<v1::RecoverReplica>, Vec<v1::RangeDescriptor>),
    done: &mut Done,
) -> Result<Vec<(v1::RecoverReplica, String)>> {
    let request = v1::RecoverRequest { plan_id: orders.plan_id.clone(), orders: open.clone(), births };
    let outcomes = client.recover_at(address, request).await.map_err(|error| {
        Failure::failed(format!("node {node}: {error}")).hint("apply the plan again: what is done stays done")
    })?;
    let mut busy = Vec::new();
    for outcome in outcomes {
        let order = open.iter().find(|order| order.range_id == outcome.range_id);
        let refusal = format!("range {} on node {node}: {}", outcome.range_id, outcome.refusal);
        match order {
            _ if outcome.done && outcome.repeated => done.before += 1,
            _ if outcome.done => done.now += 1,
            Some(order) if outcome.refusal.contains("is busy") => busy.push((order.clone(), refusal)),
            _ => done.refused.push(refusal),
        }
    }
    Ok(busy)
}

/// Placement comes back with the system range; until it knows that the nodes are gone it waits for them.
async fn record(client: &Client, orders: &Orders, done: &Done, until: Instant) -> std::result::Result<(), String> {
    let request = v1::RecordRecoveryRequest {
        plan_id: orders.plan_id.clone(),
        dead_nodes: orders.dead.clone(),
        what: format!("{} ranges went on with one replica each", done.now + done.before),
    };
    loop {
        match client.record_recovery(request.clone()).await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= until => return Err(error.to_string()),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

fn report(orders: &Orders, done: &Done, recorded: std::result::Result<(), String>, global: &Global) -> Result {
    if global.json() {
        output::json(&json!({
            "plan_id": orders.plan_id,
            "recovered": done.now,
            "recovered_before": done.before,
            "refused": done.refused,
            "recorded": recorded.is_ok(),
        }))?;
    } else {
        output::line(format_args!(
            "plan {}: {} done, {} had been done before",
            orders.plan_id,
            plural(done.now as u64, "range"),
            done.before
        ))?;
    }
    if !done.refused.is_empty() {
        let what = format!("{} refused: {}", plural(done.refused.len() as u64, "order"), done.refused.join("; "));
        return Err(Failure::failed(what).hint("the rest is done; make a new plan for what is left"));
    }
    recorded.map_err(|why| {
        Failure::failed(format!("the ranges are done, and the placement service could not be told: {why}"))
            .hint("apply the plan again when range 1 has a leader: until then the lost nodes count as silent only")
    })
}
