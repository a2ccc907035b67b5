//! `range list`.

use std::collections::BTreeSet;

use flotilla_proto::ids::{DEFAULT_KEYSPACE, DEFAULT_KEYSPACE_NAME, SYSTEM_KEYSPACE};
use flotilla_proto::{Error, NodeId, RangeId, v1};
use flotilla_router::Client;
use serde_json::{Value, json};

use super::describe::{bounds, epoch, keyspace_name, leader, replicas, status_json};
use crate::cli::bytes::KeyStyle;
use crate::cli::failure::Result;
use crate::cli::global::Global;
use crate::cli::output::{self, Table, size};

/// A leader's role, as replicas tell it.
const LEADER: &str = "leader";

#[derive(clap::Args, Debug)]
pub struct ListArgs {
    /// Only the ranges of this keyspace; `system` is the cluster's own
    #[arg(long, value_name = "NAME")]
    keyspace: Option<String>,
    #[command(flatten)]
    style: KeyStyle,
}

pub async fn run(args: &ListArgs, global: &Global) -> Result {
    let client = global.client().await?;
    let (mut ranges, nodes, keyspaces) = match &args.keyspace {
        Some(name) => {
            let (ranges, routes) = of_keyspace(&client, name).await?;
            (ranges, routes.nodes, routes.keyspaces)
        }
        None => {
            let routes = client.list_ranges().await?;
            (routes.ranges, routes.nodes, routes.keyspaces)
        }
    };
    sort(&mut ranges);
    let live: BTreeSet<u64> = nodes.iter().filter(|node| node.live).map(|node| node.node_id).collect();
    find_leaders(&client, &mut ranges, &live).await;
    if global.json() {
        let one = |status: &v1::RangeStatus| {
            let mut value = status_json(status);
            value["keyspace"] = json!(keyspace_name(keyspace_of(status), &keyspaces));
            value
        };
        return output::json(&Value::Array(ranges.iter().map(one).collect()));
    }
    output::line(table(&ranges, &keyspaces, args.style))
}

fn table(ranges: &[v1::RangeStatus], keyspaces: &[v1::Keyspace], style: KeyStyle) -> Table {
    let heads = [">range", "keyspace", "start", "end", ">size", "leader", ">term", "replicas on nodes", "epoch"];
    let mut table = Table::new(&heads);
    for status in ranges {
        let descriptor = status.descriptor.clone().unwrap_or_default();
        let (start, end) = bounds(&descriptor, style);
        table.row(vec![
            descriptor.range_id.to_string(),
            keyspace_name(descriptor.keyspace_id, keyspaces),
            start,
            end,
            size(status.data_bytes),
            leader(status.leader_node_id),
            status.term.to_string(),
            replicas(&descriptor),
            epoch(&descriptor),
        ]);
    }
    table
}

/// By keyspace, the system range last; within one in key order.
fn sort(ranges: &mut [v1::RangeStatus]) {
    ranges.sort_by(|a, b| {
        let start = |status: &v1::RangeStatus| status.descriptor.as_ref().map(|range| range.start.clone());
        keyspace_of(a).cmp(&keyspace_of(b)).then_with(|| start(a).cmp(&start(b)))
    });
}

/// The ranges of one keyspace, in key order; and what else was told.
pub async fn of_keyspace(client: &Client, name: &str) -> Result<(Vec<v1::RangeStatus>, v1::ListRangesResponse)> {
    let fixed = keyspace_id(name, &[]).is_some();
    let mut routes = if fixed { client.list_ranges().await? } else { client.list_ranges_of(name).await? };
    let ranges = std::mem::take(&mut routes.ranges);
    Ok((select(ranges, name, &routes.keyspaces)?, routes))
}

fn select(mut ranges: Vec<v1::RangeStatus>, name: &str, keyspaces: &[v1::Keyspace]) -> Result<Vec<v1::RangeStatus>> {
    let wanted = keyspace_id(name, keyspaces).ok_or_else(|| Error::KeyspaceNotFound { name: name.into() })?;
    ranges.retain(|status| keyspace_of(status) == wanted);
    sort(&mut ranges);
    Ok(ranges)
}

/// The keyspace that a range is of.
pub fn keyspace_of(status: &v1::RangeStatus) -> u64 {
    status.descriptor.as_ref().map_or(0, |descriptor| descriptor.keyspace_id)
}

fn keyspace_id(name: &str, keyspaces: &[v1::Keyspace]) -> Option<u64> {
    let found = keyspaces.iter().find(|keyspace| keyspace.name == name);
    // These two are always there, also before the answering node has heard of any.
    let fixed = match name {
        DEFAULT_KEYSPACE_NAME => Some(DEFAULT_KEYSPACE),
        "system" => Some(SYSTEM_KEYSPACE),
        _ => None,
    };
    found.map(|keyspace| keyspace.keyspace_id).or(fixed.map(|id| id.0))
}

/// Asks the replicas themselves where the answering node knows no leader, or one that is not up: it
/// may have no replica there, or not have heard yet.
pub async fn find_leaders(client: &Client, ranges: &mut [v1::RangeStatus], up: &BTreeSet<u64>) {
    for status in ranges.iter_mut().filter(|status| !up.contains(&status.leader_node_id)) {
        let Some(descriptor) = &status.descriptor else { continue };
        for node in descriptor.replicas.iter().map(|replica| replica.node_id).filter(|node| up.contains(node)) {
            let answer = client.get_range(RangeId(descriptor.range_id), Some(NodeId(node))).await;
            let Some(replica) = answer.ok().and_then(|answer| answer.replica) else { continue };
            if replica.role == LEADER {
                (status.leader_node_id, status.term) = (node, replica.term);
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_listed_with_their_keyspace_and_size() {
        let descriptor = v1::RangeDescriptor { range_id: 2, keyspace_id: 1, ..Default::default() };
        let status = v1::RangeStatus {
            descriptor: Some(descriptor),
            leader_node_id: 3,
            term: 6,
            data_bytes: 1536,
            ..Default::default()
        };
        let keyspaces = [v1::Keyspace { keyspace_id: 1, name: "default".into(), ..Default::default() }];
        let text = table(&[status], &keyspaces, KeyStyle::default()).to_string();
        let cells: Vec<&str> = text.lines().nth(1).expect("a row").split_whitespace().collect();
        assert_eq!(cells, ["2", "default", "(first)", "(last)", "1.5", "KiB", "3", "6", "0.0"]);
    }

    #[test]
    fn keyspaces_are_found_by_name() {
        let keyspaces = [v1::Keyspace { keyspace_id: 5, name: "x".into(), ..Default::default() }];
        assert_eq!(keyspace_id("x", &keyspaces), Some(5));
        assert_eq!(keyspace_id("system", &keyspaces), Some(0xFFFF_FFFE));
        assert_eq!(keyspace_id("default", &[]), Some(1));
        assert_eq!(keyspace_id("y", &keyspaces), None);
    }
}
