//! `node show`.

use std::time::Duration;

use flotilla_proto::v1;
use serde_json::Value;

use super::list::{self, ask, known, leaders, replicas, state};
use crate::cli::failure::Result;
use crate::cli::global::Global;
use crate::cli::output::{self, count, duration, plural, size};

#[derive(clap::Args, Debug)]
pub struct ShowArgs {
    /// The node's id
    node: u64,
}

pub async fn run(args: &ShowArgs, global: &Global) -> Result {
    let client = global.client().await?;
    let node = super::find(&client, args.node).await?;
    let status = ask(&client, &node).await;
    let node = list::heard(node, status.as_ref());
    if global.json() {
        let mut value = list::to_json(&node, status.as_ref());
        if let Some(counters) = status.and_then(|status| status.counters) {
            let figures = figures(&counters).map(|(name, figure)| (name.to_owned(), Value::from(figure)));
            value["counters"] = figures.into_iter().collect();
        }
        return output::json(&value);
    }
    output::line(text(&node, status.as_ref()))
}

fn text(node: &v1::NodeInfo, status: Option<&v1::NodeStatusResponse>) -> String {
    let mut lines = vec![
        format!("node {}: {}, version {}", node.node_id, state(node, status.is_some()), known(&node.version)),
        format!(
            "clients {}, nodes {}, http {}",
            known(&node.client_addr),
            known(&node.peer_addr),
            known(&node.http_addr)
        ),
        format!(
            "{}, {} led, {}",
            plural(replicas(node, status).into(), "replica"),
            count(leaders(node, status).into()),
            size(node.data_bytes)
        ),
    ];
    if !node.slow.is_empty() {
        lines.push(format!("slow: {}; it leads nothing while it is", node.slow));
    }
    if !node.labels.is_empty() {
        lines.push(format!("labels {}", list::labels(node)));
    }
    match status {
        Some(status) => lines.extend(own_words(status)),
        None => lines.push(format!("it was last heard {} ago", duration(Duration::from_millis(node.last_heard_ms)))),
    }
    lines.join("\n")
}

/// What only the node itself can say.
fn own_words(status: &v1::NodeStatusResponse) -> Vec<String> {
    let mut lines = vec![format!(
        "up {}, {} of disk free (writes are refused at {})",
        duration(Duration::from_millis(status.uptime_ms)),
        size(status.disk_free_bytes),
        size(status.disk_margin_bytes),
    )];
    if let Some(counters) = &status.counters {
        let words = figures(counters).map(|(name, figure)| format!("{} {}", name.replace('_', " "), count(figure)));
        lines.push(format!("since it started: {}", words.join(", ")));
    }
    lines.extend(status.problems.iter().map(|problem| format!("problem: {problem}")));
    lines
}

/// Counters since the process started.
fn figures(counters: &v1::NodeCounters) -> [(&'static str, u64); 14] {
    [
        ("writes", counters.writes),
        ("reads_lease", counters.reads_lease),
        ("reads_quorum", counters.reads_quorum),
        ("wal_syncs", counters.wal_syncs),
        ("log_batches", counters.log_batches),
        ("log_entries", counters.log_entries),
        ("raft_messages_sent", counters.raft_messages_sent),
        ("raft_messages_received", counters.raft_messages_received),
        ("elections_won", counters.elections_won),
        ("snapshots_sent", counters.snapshots_sent),
        ("snapshots_applied", counters.snapshots_applied),
        ("cpu_micros", counters.cpu_micros),
        ("disk_bytes_written", counters.disk_bytes_written),
        ("peer_bytes_sent", counters.peer_bytes_sent),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_speaks_for_itself_or_others_do() {
        let node = v1::NodeInfo { node_id: 4, replicas: 9, leaders: 1, last_heard_ms: 1500, ..Default::default() };
        let text_of = |status: Option<&v1::NodeStatusResponse>| text(&node, status);
        assert!(text_of(None).starts_with("node 4: down, version -"), "{}", text_of(None));
        assert!(text_of(None).ends_with("9 replicas, 1 led, 0 B\nit was last heard 1.50 s ago"), "{}", text_of(None));
        let counters = v1::NodeCounters { writes: 1234, ..Default::default() };
        let status = v1::NodeStatusResponse {
            ranges: 1,
            counters: Some(counters),
            problems: vec!["x".into()],
            ..Default::default()
        };
        let text = text_of(Some(&status));
        assert!(text.contains("1 replica, 0 led") && text.contains("writes 1,234"), "{text}");
        assert!(text.ends_with("problem: x"), "{text}");
    }
}
