//! `node decommission`: a node is emptied, and then removed for good.

use std::time::{Duration, Instant};

use flotilla_proto::{Error, NodeId, v1};
use flotilla_router::Client;
use serde_json::json;

use crate::cli::confirm;
use crate::cli::failure::{Failure, Result};
use crate::cli::global::{Global, parse_duration};
use crate::cli::output::{self, duration, plural};

/// Between two looks at the node.
const POLL: Duration = Duration::from_millis(500);

#[derive(clap::Args, Debug)]
pub struct DecommissionArgs {
    /// The node's id
    node: u64,
    /// End it before it is done: the node gets its share again
    #[arg(long)]
    undo: bool,
    /// Return when it is decided, not when the node is removed
    #[arg(long, conflicts_with = "undo")]
    no_wait: bool,
    /// How long to wait until the node is removed
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration, conflicts_with_all = ["no_wait", "undo"])]
    wait: Duration,
    /// Do not ask first
    #[arg(long)]
    yes: bool,
}

pub async fn run(args: &DecommissionArgs, global: &Global) -> Result {
    let client = global.client().await?;
    if !args.undo {
        let what = format!(
            "node {} would be emptied and removed for good: its id and its data directory are never used again",
            args.node
        );
        if confirm::must_ask(args.yes, &what)? {
            confirm::ask(&format!("{what}. Type its id to go on:"), &args.node.to_string())?;
        }
    }
    let mut answer = ask(&client, args).await?;
    if !args.undo && !args.no_wait {
        answer = wait(&client, args, answer).await?;
    }
    if global.json() {
        return output::json(&json!({
            "node_id": args.node,
            "decommissioning": !args.undo,
            "replicas": answer.replicas,
            "replicas_at_first": answer.replicas_at_first,
            "removed": answer.removed,
        }));
    }
    output::line(text(args, &answer))
}

fn text(args: &DecommissionArgs, answer: &v1::DecommissionNodeResponse) -> String {
    let node = args.node;
    match (args.undo, answer.removed) {
        (true, _) => format!("node {node} is not decommissioned: it gets its share again"),
        (false, true) => format!("node {node} is removed for good: stop its process, and delete its data directory"),
        (false, false) => format!("node {node} is being decommissioned: {}", progress(answer)),
    }
}

fn progress(answer: &v1::DecommissionNodeResponse) -> String {
    format!("{} of {} are left", answer.replicas, plural(answer.replicas_at_first.into(), "replica"))
}

async fn ask(client: &Client, args: &DecommissionArgs) -> Result<v1::DecommissionNodeResponse> {
    let answer = client.decommission_node(NodeId(args.node), args.undo).await;
    answer.map_err(|error| Failure::order(error, "`flotilla node list` shows whether it happened"))
}

/// Waits until the node is removed. Asking again tells how far it is.
async fn wait(
    client: &Client,
    args: &DecommissionArgs,
    mut answer: v1::DecommissionNodeResponse,
) -> Result<v1::DecommissionNodeResponse> {
    let began = Instant::now();
    let bar = output::progress(answer.replicas_at_first.into(), "decommission");
    while !answer.removed {
        if began.elapsed() > args.wait {
            bar.finish_and_clear();
            let what = format!("node {} is not empty after {}: {}", args.node, duration(args.wait), progress(&answer));
            return Err(Failure::failed(what).hint(
                "it goes on; `flotilla placement plan` and `flotilla status` tell what is in its way, --undo ends it",
            ));
        }
        tokio::time::sleep(POLL).await;
        answer = match client.decommission_node(NodeId(args.node), false).await {
            Ok(answer) => answer,
            // The service moves, too, if it was this node that had it.
            Err(Error::Timeout { .. } | Error::Unavailable { .. }) => answer,
            Err(error) => {
                bar.finish_and_clear();
                return Err(error.into());
            }
        };
        bar.set_position(answer.replicas_at_first.saturating_sub(answer.replicas).into());
    }
    bar.finish_and_clear();
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: DecommissionArgs,
    }

    fn parse(words: &[&str]) -> Option<DecommissionArgs> {
        Line::try_parse_from([&["decommission"], words].concat()).ok().map(|line| line.args)
    }

    #[test]
    fn how_far_it_is_is_told() {
        let args = parse(&["4", "--yes"]).expect("valid");
        let answer = v1::DecommissionNodeResponse { replicas: 3, replicas_at_first: 12, removed: false };
        assert_eq!(text(&args, &answer), "node 4 is being decommissioned: 3 of 12 replicas are left");
        let done = v1::DecommissionNodeResponse { removed: true, ..answer };
        assert_eq!(text(&args, &done), "node 4 is removed for good: stop its process, and delete its data directory");
        let undone = parse(&["4", "--undo"]).expect("valid");
        assert_eq!(text(&undone, &answer), "node 4 is not decommissioned: it gets its share again");
        for bad in [&["4", "--undo", "--no-wait"][..], &["x"], &[], &["4", "--no-wait", "--wait", "1s"]] {
            assert!(parse(bad).is_none(), "{bad:?}");
        }
    }
}
