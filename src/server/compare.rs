//! Leaders compare the replicas of their ranges now and then: what differs although every file is sound (bad memory, a
//! bug, a file put back) shows in no checksum of a disk.
//!
//! One range at a time, spread over the interval. Ranges that sleep are left alone: nobody writes to them, and waking a
//! hundred thousand of them each day would cost more than it finds. What is found is told, as a problem of the leader's
//! node and in its log; who of the replicas is right is for a person (`flotilla range check`).

use std::time::Duration;

use flotilla_node::Node;
use flotilla_proto::{RangeId, v1};
use tokio::sync::watch;

use super::check;

/// How long the replicas of one range may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Compares until the stop; with an interval of zero never.
pub(super) async fn run(node: Node, interval: Duration, mut stopping: watch::Receiver<bool>) {
    if interval.is_zero() {
        return;
    }
    loop {
        let ranges = node.to_compare();
        let step = interval / u32::try_from(ranges.len() + 1).unwrap_or(u32::MAX);
        for range in ranges.into_iter().map(Some).chain([None]) {
            tokio::select! {
                () = tokio::time::sleep(step) => {}
                _ = stopping.changed() => return,
            }
            let Some(range) = range else { continue };
            tokio::select! {
                () = compare(&node, range) => {}
                _ = stopping.changed() => return,
            }
        }
    }
}

async fn compare(node: &Node, range: RangeId) {
    if node.leads(range) != Some(true) {
        return;
    }
    match check::run(node, range, TIMEOUT).await {
        Ok(answer) => {
            let difference = answer.difference.map(|difference| words(range, &difference));
            if let Some(what) = &difference {
                tracing::error!(%range, "{what}");
            }
            node.note_compared(range, difference);
        }
        // It changes, or a replica is away: the next round comes.
        Err(error) => tracing::debug!(%range, %error, "its replicas were not compared"),
    }
}

fn words(range: RangeId, difference: &v1::DifferingSpan) -> String {
    let nodes: Vec<String> = difference.node_ids.iter().map(ToString::to_string).collect();
    let (nodes, plural) = (nodes.join(" and "), nodes.len() > 1);
    format!(
        "range {}: the {} from what the others hold, in files that are sound: `flotilla range check {}` says where, and what to do",
        range.0,
        if plural { format!("replicas on nodes {nodes} differ") } else { format!("replica on node {nodes} differs") },
        range.0
    )
}
