//! `recover plan`: asks every node that answers, and says what would be kept and what is lost.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flotilla_placement::recovery::{self, Kept, Plan, Wish};
use flotilla_proto::v1;
use flotilla_router::Client;

use super::file;
use crate::cli::bytes::KeyStyle;
use crate::cli::failure::{Failure, Result};
use crate::cli::global::{Global, parse_duration};
use crate::cli::output::{self, Table, count, plural, size};
use crate::cli::range::describe::{bounds, end, keyspace_name, start};

/// Between two looks at the nodes, while something is still settling.
const POLL: Duration = Duration::from_millis(300);

#[derive(clap::Args, Debug)]
pub struct PlanArgs {
    /// The nodes that are gone for good, all of them
    #[arg(long, value_name = "NODES", value_delimiter = ',', required = true)]
    dead: Vec<u64>,
    /// Where to write the plan; without it: recovery-PLAN.json
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Let ranges of which nothing is left begin again, empty
    #[arg(long)]
    recreate_empty: bool,
    /// Who decides this, for the record
    #[arg(long, value_name = "NAME", env = "USER", default_value = "unknown")]
    by: String,
    /// How long to wait until no replica follows a leader that is gone
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    wait: Duration,
    #[command(flatten)]
    style: KeyStyle,
}

/// What the nodes have, once survivors have applied what others know to be committed; and the addresses by node.
pub async fn survey(client: &Client, wait: Duration) -> (Vec<v1::SurveyResponse>, BTreeMap<u64, String>) {
    let until = Instant::now() + wait;
    loop {
        let (found, _) = client.survey().await;
        let addresses: BTreeMap<u64, String> = found.iter().map(|(at, of)| (of.node_id, at.clone())).collect();
        let surveys: Vec<v1::SurveyResponse> = found.into_values().collect();
        let told = recovery::committed(&surveys);
        let settled = told.is_empty() && recovery::unsettled(&surveys).is_empty();
        if settled || Instant::now() >= until {
            return (surveys, addresses);
        }
        for (node, entries) in told {
            if let Some(address) = addresses.get(&node) {
                // A node that does not take it is looked at again.
                client.tell_committed_at(address, entries).await.ok();
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

pub async fn run(args: &PlanArgs, global: &Global) -> Result {
    let client = global.client().await?;
    let (surveys, _) = survey(&client, args.wait).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let wish = Wish {
        plan_id: format!("{:08x}", RandomState::new().hash_one(now) as u32),
        unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        decided_by: args.by.clone(),
        dead: args.dead.iter().copied().collect(),
        recreate_empty: args.recreate_empty,
    };
    let plan = recovery::plan(&wish, &surveys).map_err(|refusals| {
        Failure::failed(format!("there is no plan: {}", refusals.join("; ")))
            .hint("--dead names all nodes that are gone for good, and no other; every other node must be up")
    })?;
    let path = args.out.clone().unwrap_or_else(|| format!("recovery-{}.json", plan.wish.plan_id).into());
    let value = file::render(&plan);
    let text = serde_json::to_string_pretty(&value).map_err(|error| Failure::failed(error.to_string()))?;
    std::fs::write(&path, text + "\n").map_err(|error| Failure::file("write the plan", &path, &error))?;
    if global.json() {
        return output::json(&value);
    }
    let keyspaces: Vec<v1::Keyspace> = surveys.into_iter().flat_map(|survey| survey.keyspaces).collect();
    show(&plan, &keyspaces, args.style)?;
    output::line(format_args!(
        "plan {} is in {}; nothing has changed yet. Carry it out: flotilla recover apply {}",
        plan.wish.plan_id,
        path.display(),
        path.display()
    ))
}

fn show(plan: &Plan, keyspaces: &[v1::Keyspace], style: KeyStyle) -> Result {
    let list = |nodes: Vec<u64>| nodes.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    output::line(format_args!(
        "cluster {:016x}: nodes {} answer, nodes {} are given up for good; {} well",
        plan.cluster_id,
        list(plan.living.keys().copied().collect()),
        list(plan.wish.dead.iter().copied().collect()),
        plural(plan.healthy as u64, "range"),
    ))?;
    if !plan.kept.is_empty() {
        output::line(table(&plan.kept, keyspaces, style))?;
        output::line(
            "What the lost voters had acknowledged beyond the end of these logs is lost; nobody alive can say whether there was any. \
             Entries not known to be committed are kept, and count from then on.",
        )?;
    }
    for warning in &plan.warnings {
        output::line(format_args!("warning: {warning}"))?;
    }
    for kept in &plan.kept {
        for warning in &kept.warnings {
            output::line(format_args!("warning: range {}: {warning}", kept.order.range_id))?;
        }
    }
    for (keyspace, from, to) in &plan.gaps {
        let name = keyspace_name(*keyspace, keyspaces);
        let (from, to) = (start(from, style), end(to, style));
        output::line(format_args!("LOST: keyspace {name}, {from} to {to}: no replica of it is left"))?;
    }
    for of in &plan.lost {
        let again = match plan.recreated.iter().find(|(_, birth)| birth.range_id == of.range_id) {
            Some((node, _)) => format!("begins again, empty, on node {node}"),
            None => "stays lost; --recreate-empty lets it begin again, empty".into(),
        };
        output::line(format_args!(
            "LOST: range {}, of keyspace {}: {again}",
            of.range_id,
            keyspace_name(of.keyspace_id, keyspaces)
        ))?;
    }
    for left in &plan.left {
        output::line(format_args!("left as it is: {left}"))?;
    }
    Ok(())
}

fn table(kept: &[Kept], keyspaces: &[v1::Keyspace], style: KeyStyle) -> Table {
    let heads = [
        ">range",
        "keyspace",
        "start",
        "end",
        ">kept on node",
        ">voters alive",
        ">log ends at",
        ">not known committed",
        ">size",
    ];
    let mut table = Table::new(&heads);
    for kept in kept {
        let before = kept.order.before.clone().unwrap_or_default();
        let (from, to) = bounds(&before, style);
        table.row(vec![
            before.range_id.to_string(),
            keyspace_name(before.keyspace_id, keyspaces),
            from,
            to,
            kept.node.to_string(),
            format!("{} of {}", kept.living_voters.0, kept.living_voters.1),
            format!("{}:{}", kept.order.last_term, kept.order.last_index),
            count(kept.uncommitted),
            size(kept.data_bytes),
        ]);
    }
    table
}
