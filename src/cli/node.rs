//! `node`: the cluster's nodes.

use std::time::Duration;

use flotilla_proto::{NodeId, v1};
use serde_json::{Value, json};

use super::failure::Result;
use super::global::Global;
use super::output::{self, Table, duration, size};

#[derive(clap::Subcommand, Debug)]
pub enum NodeCommand {
    /// List the nodes with their addresses and figures
    List,
}

pub async fn run(command: NodeCommand, global: &Global) -> Result {
    let NodeCommand::List = command;
    let client = global.client().await?;
    let nodes = client.list_nodes().await?;
    let mut rows = Vec::with_capacity(nodes.len());
    for node in nodes {
        // Each node speaks for itself; one that does not answer is listed as the others know it.
        let status =
            if node.client_addr.is_empty() { None } else { client.node_status(NodeId(node.node_id)).await.ok() };
        rows.push((node, status));
    }
    rows.sort_by_key(|(node, _)| node.node_id);
    if global.json() {
        return output::json(&Value::Array(rows.iter().map(|(node, status)| to_json(node, status.as_ref())).collect()));
    }
    output::line(table(&rows))
}

fn table(rows: &[(v1::NodeInfo, Option<v1::NodeStatusResponse>)]) -> Table {
    let heads = [">node", "state", "client", "peer", "http", "version", ">ranges", ">led", ">up", ">disk free"];
    let mut table = Table::new(&heads);
    for (node, status) in rows {
        let figure = |figure: fn(&v1::NodeStatusResponse) -> String| status.as_ref().map_or("-".into(), figure);
        table.row(vec![
            node.node_id.to_string(),
            state(node, status.is_some()).into(),
            known(&node.client_addr),
            known(&node.peer_addr),
            known(&node.http_addr),
            known(&node.version),
            figure(|status| status.ranges.to_string()),
            figure(|status| status.ranges_led.to_string()),
            figure(|status| duration(Duration::from_millis(status.uptime_ms))),
            figure(|status| size(status.disk_free_bytes)),
        ]);
    }
    table
}

fn state(node: &v1::NodeInfo, answers: bool) -> &'static str {
    match (answers, node.live) {
        (true, _) if node.disk_full => "disk full",
        (true, _) => "up",
        (false, true) => "no answer",
        (false, false) => "down",
    }
}

fn known(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.into() }
}

fn to_json(node: &v1::NodeInfo, status: Option<&v1::NodeStatusResponse>) -> Value {
    let mut value = json!({
        "node_id": node.node_id,
        "state": state(node, status.is_some()),
        "client_addr": node.client_addr,
        "peer_addr": node.peer_addr,
        "http_addr": node.http_addr,
        "version": node.version,
        "live": node.live,
        "last_heard_ms": node.last_heard_ms,
        "disk_full": node.disk_full,
    });
    if let Some(status) = status {
        value["cluster_id"] = format!("{:016x}", status.cluster_id).into();
        value["uptime_ms"] = status.uptime_ms.into();
        value["ranges"] = status.ranges.into();
        value["ranges_led"] = status.ranges_led.into();
        value["ranges_without_leader"] = status.ranges_without_leader.into();
        value["disk_free_bytes"] = status.disk_free_bytes.into();
        value["disk_margin_bytes"] = status.disk_margin_bytes.into();
        value["problems"] = status.problems.clone().into();
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_does_not_answer_keeps_its_line() {
        let down = v1::NodeInfo { node_id: 2, peer_addr: "127.0.0.1:7401".into(), ..Default::default() };
        let up = v1::NodeInfo { node_id: 1, live: true, client_addr: "a:1".into(), ..Default::default() };
        let status = v1::NodeStatusResponse { ranges: 16, ranges_led: 6, uptime_ms: 90_000, ..Default::default() };
        let text = table(&[(up.clone(), Some(status.clone())), (down, None)]).to_string();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1][..7], ["1", "up", "a:1", "-", "-", "-", "16"]);
        assert_eq!(lines[2][..5], ["2", "down", "-", "127.0.0.1:7401", "-"]);
        assert_eq!(to_json(&up, Some(&status))["ranges_led"], 6);
    }
}
