//! `node list`.

use std::time::Duration;

use flotilla_proto::{NodeId, v1};
use flotilla_router::Client;
use serde_json::{Value, json};

use crate::cli::failure::Result;
use crate::cli::global::Global;
use crate::cli::output::{self, Table, duration, size};

pub async fn run(global: &Global) -> Result {
    let client = global.client().await?;
    let mut rows = Vec::new();
    for node in client.list_nodes().await? {
        let status = ask(&client, &node).await;
        rows.push((heard(node, status.as_ref()), status));
    }
    rows.sort_by_key(|(node, _)| node.node_id);
    if global.json() {
        return output::json(&Value::Array(rows.iter().map(|(node, status)| to_json(node, status.as_ref())).collect()));
    }
    output::line(table(&rows))
}

/// Each node speaks for itself; one that does not answer is shown as the others know it.
pub async fn ask(client: &Client, node: &v1::NodeInfo) -> Option<v1::NodeStatusResponse> {
    if node.client_addr.is_empty() { None } else { client.node_status(NodeId(node.node_id)).await.ok() }
}

/// Whether it is slow against the others a node knows itself.
pub fn heard(node: v1::NodeInfo, status: Option<&v1::NodeStatusResponse>) -> v1::NodeInfo {
    match status.and_then(|status| status.node.as_ref()) {
        Some(own) if !own.slow.is_empty() => v1::NodeInfo { slow: own.slow.clone(), ..node },
        _ => node,
    }
}

fn table(rows: &[(v1::NodeInfo, Option<v1::NodeStatusResponse>)]) -> Table {
    let heads = [
        ">node",
        "state",
        "client",
        "peer",
        "http",
        "version",
        ">replicas",
        ">leaders",
        ">data",
        ">up",
        ">disk free",
        "labels",
    ];
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
            replicas(node, status.as_ref()).to_string(),
            leaders(node, status.as_ref()).to_string(),
            size(node.data_bytes),
            figure(|status| duration(Duration::from_millis(status.uptime_ms))),
            figure(|status| size(status.disk_free_bytes)),
            known(&labels(node)),
        ]);
    }
    table
}

/// As the node says, or as it was last reported.
pub fn replicas(node: &v1::NodeInfo, status: Option<&v1::NodeStatusResponse>) -> u32 {
    status.map_or(node.replicas, |status| status.ranges)
}

/// As the node says, or as it was last reported.
pub fn leaders(node: &v1::NodeInfo, status: Option<&v1::NodeStatusResponse>) -> u32 {
    status.map_or(node.leaders, |status| status.ranges_led)
}

/// A word for how a node is.
pub fn state(node: &v1::NodeInfo, answers: bool) -> &'static str {
    match (answers, node.live) {
        (true, _) if node.disk_full => "disk full",
        (true, _) if node.decommissioning => "decommissioning",
        (true, _) if node.maintenance_left_ms > 0 => "maintenance",
        (true, _) if node.draining => "draining",
        (true, _) if !node.slow.is_empty() => "slow",
        (true, _) => "up",
        (false, _) if node.maintenance_left_ms > 0 => "maintenance, down",
        (false, true) => "no answer",
        (false, false) => "down",
    }
}

/// A node's labels, as they are given to `start`.
pub fn labels(node: &v1::NodeInfo) -> String {
    let labels: Vec<String> = node.labels.iter().map(|label| format!("{}={}", label.key, label.value)).collect();
    labels.join(",")
}

/// What is not known has a place, so that columns stay columns.
pub fn known(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.into() }
}

/// Labels for programs.
pub fn labels_json(labels: &[v1::Label]) -> Value {
    labels
        .iter()
        .map(|label| (label.key.clone(), Value::from(label.value.clone())))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// A node for programs.
pub fn to_json(node: &v1::NodeInfo, status: Option<&v1::NodeStatusResponse>) -> Value {
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
        "draining": node.draining,
        "decommissioning": node.decommissioning,
        "decommission_from": node.decommission_from,
        "maintenance_left_ms": node.maintenance_left_ms,
        "slow": node.slow,
        "labels": labels_json(&node.labels),
        "replicas": replicas(node, status),
        "leaders": leaders(node, status),
        "data_bytes": node.data_bytes,
    });
    if let Some(status) = status {
        value["cluster_id"] = format!("{:016x}", status.cluster_id).into();
        value["uptime_ms"] = status.uptime_ms.into();
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
    fn the_state_is_one_word() {
        let node = |live, disk_full, draining| v1::NodeInfo { live, disk_full, draining, ..Default::default() };
        assert_eq!(state(&node(true, false, false), true), "up");
        assert_eq!(state(&node(true, false, true), true), "draining");
        assert_eq!(state(&node(true, true, true), true), "disk full");
        assert_eq!(state(&node(true, false, true), false), "no answer");
        assert_eq!(state(&node(false, false, true), false), "down");
        let own = v1::NodeInfo { slow: "its disk takes 80 ms".into(), ..node(true, false, false) };
        let said = v1::NodeStatusResponse { node: Some(own), ..Default::default() };
        let slow = heard(node(true, false, false), Some(&said));
        assert_eq!((state(&slow, true), &slow.slow[..]), ("slow", "its disk takes 80 ms"));
        assert_eq!(state(&heard(node(true, false, false), None), true), "up");
        let leaving = v1::NodeInfo { decommissioning: true, live: true, draining: true, ..Default::default() };
        assert_eq!(state(&leaving, true), "decommissioning");
        let away = v1::NodeInfo { maintenance_left_ms: 5, ..Default::default() };
        assert_eq!((state(&away, true), state(&away, false)), ("maintenance", "maintenance, down"));
    }

    #[test]
    fn a_node_that_does_not_answer_keeps_its_line() {
        let down = v1::NodeInfo { node_id: 2, peer_addr: "127.0.0.1:7401".into(), ..Default::default() };
        let up = v1::NodeInfo { node_id: 1, live: true, client_addr: "a:1".into(), ..Default::default() };
        let status = v1::NodeStatusResponse { ranges: 16, ranges_led: 6, uptime_ms: 90_000, ..Default::default() };
        let text = table(&[(up.clone(), Some(status.clone())), (down, None)]).to_string();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1][..8], ["1", "up", "a:1", "-", "-", "-", "16", "6"]);
        assert_eq!(lines[2][..5], ["2", "down", "-", "127.0.0.1:7401", "-"]);
        assert_eq!(to_json(&up, Some(&status))["leaders"], 6);
    }
}
