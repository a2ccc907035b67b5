//! `node drain`: the wait until a node leads nothing.

use std::time::{Duration, Instant};

use flotilla_proto::{NodeId, v1};
use flotilla_router::Client;
use serde_json::json;

use crate::cli::failure::{Failure, Result};
use crate::cli::global::{Global, parse_duration};
use crate::cli::output::{self, duration, plural};

/// Between two looks at the node.
const POLL: Duration = Duration::from_millis(200);

#[derive(clap::Args, Debug)]
pub struct DrainArgs {
    /// The node's id
    node: u64,
    /// End the draining: the node gets its share again
    #[arg(long)]
    undo: bool,
    /// Return when it is decided, not when the node leads nothing
    #[arg(long, conflicts_with = "undo")]
    no_wait: bool,
    /// How long to wait until the node leads nothing
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_duration, conflicts_with_all = ["no_wait", "undo"])]
    wait: Duration,
}

pub async fn run(args: &DrainArgs, global: &Global) -> Result {
    let client = global.client().await?;
    client
        .drain_node(NodeId(args.node), args.undo)
        .await
        .map_err(|error| Failure::order(error, "`flotilla node list` shows whether it happened"))?;
    let mut led = leads(&client, args.node).await;
    if !args.undo && !args.no_wait {
        led = Some(wait(&client, args, led).await?);
    }
    if global.json() {
        return output::json(&json!({ "node_id": args.node, "draining": !args.undo, "leaders": led }));
    }
    match (args.undo, led) {
        (true, _) => output::line(format_args!("node {} is not drained any more", args.node)),
        (false, Some(0)) => output::line(format_args!("node {} is drained: it leads nothing", args.node)),
        (false, Some(led)) => {
            output::line(format_args!("node {} is being drained: it leads {}", args.node, plural(led, "range")))
        }
        (false, None) => output::line(format_args!("node {} is being drained", args.node)),
    }
}

/// How many ranges a node leads: as it says itself, or, if it does not answer, as the others say.
async fn leads(client: &Client, node: u64) -> Option<u64> {
    if let Ok(status) = client.node_status(NodeId(node)).await {
        return Some(status.ranges_led.into());
    }
    let ranges = client.list_ranges().await.ok()?.ranges;
    Some(led_by(&ranges, node))
}

fn led_by(ranges: &[v1::RangeStatus], node: u64) -> u64 {
    ranges.iter().filter(|range| range.leader_node_id == node).count() as u64
}

/// Waits until the node leads nothing.
async fn wait(client: &Client, args: &DrainArgs, at_first: Option<u64>) -> Result<u64> {
    let began = Instant::now();
    let total = at_first.unwrap_or(0);
    let bar = output::progress(total, "drain");
    let mut led = at_first;
    while led != Some(0) {
        if began.elapsed() > args.wait {
            bar.finish_and_clear();
            let still =
                led.map_or("it does not answer".into(), |led| format!("it still leads {}", plural(led, "range")));
            return Err(Failure::failed(format!(
                "node {} is not drained after {}: {still}",
                args.node,
                duration(args.wait)
            ))
            .hint("the draining goes on; a range is led elsewhere only if its other replicas are up: see `flotilla status`"));
        }
        tokio::time::sleep(POLL).await;
        led = leads(client, args.node).await.or(led);
        bar.set_position(total.saturating_sub(led.unwrap_or(total)));
    }
    bar.finish_and_clear();
    Ok(0)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: DrainArgs,
    }

    #[test]
    fn waiting_is_for_draining_alone() {
        let parse = |words: &[&str]| Line::try_parse_from([&["drain"], words].concat()).ok().map(|line| line.args);
        assert_eq!(parse(&["3"]).map(|args| args.wait), Some(Duration::from_secs(300)));
        assert!(parse(&["3", "--undo"]).is_some_and(|args| args.undo));
        for bad in [&["3", "--undo", "--no-wait"][..], &["3", "--no-wait", "--wait", "1s"], &["x"], &[]] {
            assert!(parse(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn leaders_are_counted_by_node() {
        let range = |leader_node_id| v1::RangeStatus { leader_node_id, ..Default::default() };
        assert_eq!(led_by(&[range(1), range(2), range(1), range(0)], 1), 2);
    }
}
