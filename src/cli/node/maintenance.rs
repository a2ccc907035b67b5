//! `node maintenance`: a node will be away for a while, and is not to be taken for dead meanwhile.

use std::time::Duration;

use flotilla_proto::{NodeId, v1};
use serde_json::json;

use crate::cli::failure::{Failure, Result};
use crate::cli::global::{Global, parse_duration};
use crate::cli::output::{self, duration, plural};

#[derive(clap::Args, Debug)]
pub struct MaintenanceArgs {
    /// The node's id
    node: u64,
    /// For how long, such as 30m: until then it leads nothing, gets nothing new, and nothing of it is rebuilt
    #[arg(long = "for", value_name = "TIME", value_parser = parse_time, required_unless_present = "undo")]
    time: Option<Duration>,
    /// End it before its time is over
    #[arg(long, conflicts_with = "time")]
    undo: bool,
}

fn parse_time(text: &str) -> std::result::Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("a maintenance takes some time, such as 30m; --undo ends one".into()),
        time => Ok(time),
    }
}

pub async fn run(args: &MaintenanceArgs, global: &Global) -> Result {
    let client = global.client().await?;
    let time = args.time.unwrap_or_default();
    let answer = client
        .maintain_node(NodeId(args.node), time)
        .await
        .map_err(|error| Failure::order(error, "`flotilla node list` shows whether it happened"))?;
    if global.json() {
        return output::json(&json!({
            "node_id": args.node,
            "maintenance_left_ms": u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
            "leaders": answer.leaders,
            "ranges_at_risk": answer.ranges_at_risk,
        }));
    }
    output::line(text(args.node, time, &answer))
}

fn text(node: u64, time: Duration, answer: &v1::MaintainNodeResponse) -> String {
    if time == Duration::ZERO {
        return format!("node {node} is not in maintenance any more");
    }
    let mut text = format!("node {node} is in maintenance for {}", duration(time));
    if answer.leaders > 0 {
        text.push_str(&format!(": {} that it leads are led elsewhere now", plural(answer.leaders.into(), "range")));
    }
    if answer.ranges_at_risk > 0 {
        let risky = plural(answer.ranges_at_risk.into(), "range");
        text.push_str(&format!("; while it is away, {risky} would lose the majority with one more node"));
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: MaintenanceArgs,
    }

    #[test]
    fn a_maintenance_has_a_time() {
        let parse = |words: &[&str]| Line::try_parse_from([&["maintenance"], words].concat());
        assert_eq!(
            parse(&["3", "--for", "30m"]).ok().and_then(|line| line.args.time),
            Some(Duration::from_secs(1_800))
        );
        assert!(parse(&["3", "--undo"]).is_ok_and(|line| line.args.undo));
        for bad in [&["3"][..], &["3", "--for", "0s"], &["3", "--for", "x"], &["3", "--for", "1m", "--undo"], &[]] {
            let error = parse(bad).err().unwrap_or_else(|| panic!("{bad:?} is taken"));
            assert_eq!(error.exit_code(), 2, "{bad:?}");
        }
    }

    #[test]
    fn what_it_costs_is_told() {
        let answer = v1::MaintainNodeResponse { leaders: 3, ranges_at_risk: 1 };
        assert_eq!(
            text(2, Duration::from_secs(1_800), &answer),
            "node 2 is in maintenance for 30 min: 3 ranges that it leads are led elsewhere now; while it is away, 1 range \
             would lose the majority with one more node"
        );
        assert_eq!(text(2, Duration::ZERO, &answer), "node 2 is not in maintenance any more");
    }
}
