//! `range events`: what happened to a range, as all nodes tell it, by time.

use flotilla_proto::{NodeId, RangeId, v1};
use serde_json::{Value, json};

use crate::cli::failure::{Failure, Result};
use crate::cli::global::Global;
use crate::cli::output::{self, Table};
use crate::cli::time::utc;

#[derive(clap::Args, Debug)]
pub struct EventsArgs {
    /// The range's id
    range: u64,
}

pub async fn run(args: &EventsArgs, global: &Global) -> Result {
    let client = global.client().await?;
    let (mut events, mut silent) = (Vec::new(), Vec::new());
    for node in client.list_nodes().await? {
        match client.range_events(NodeId(node.node_id), RangeId(args.range)).await {
            Ok(found) => events.extend(found),
            // A node that never had a replica has nothing to tell.
            Err(flotilla_proto::Error::RangeNotFound { .. }) => {}
            Err(error) => silent.push((node.node_id, error.to_string())),
        }
    }
    if events.is_empty() && silent.is_empty() {
        return Err(Failure::failed(format!("no node remembers anything of range {}", args.range))
            .hint("nodes remember what happened since they started; `flotilla range list` lists the ranges"));
    }
    // Clocks differ between nodes; on one node, the order is its own.
    events.sort_by_key(|event| event.unix_ms);
    if global.json() {
        let silent: Vec<Value> = silent.iter().map(|(node, why)| json!({ "node_id": node, "why": why })).collect();
        return output::json(&json!({
            "range_id": args.range, "events": events.iter().map(to_json).collect::<Vec<_>>(), "silent": silent,
        }));
    }
    for (node, why) in silent {
        eprintln!("node {node} was not heard: {why}");
    }
    output::line(table(&events))
}

fn table(events: &[v1::RangeEvent]) -> Table {
    let mut table = Table::new(&["time (UTC)", "node", "what", "how"]);
    for event in events {
        table.row(vec![utc(event.unix_ms), event.node_id.to_string(), event.kind.clone(), event.what.clone()]);
    }
    table
}

fn to_json(event: &v1::RangeEvent) -> Value {
    json!({
        "unix_ms": event.unix_ms,
        "time": utc(event.unix_ms),
        "node_id": event.node_id,
        "kind": event.kind,
        "what": event.what,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_a_line_each() {
        let event = v1::RangeEvent { unix_ms: 1, node_id: 2, kind: "split".into(), what: "at k".into() };
        let text = table(std::slice::from_ref(&event)).to_string();
        assert_eq!(text.lines().nth(1), Some("1970-01-01 00:00:00.001  2     split  at k"));
        assert_eq!(to_json(&event)["kind"], "split");
    }
}
