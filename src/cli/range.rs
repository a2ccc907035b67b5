//! `range`: the ranges, who leads them, and moving leaders.

use std::collections::BTreeSet;

use flotilla_proto::{NodeId, RangeId, v1};
use flotilla_router::Client;
use serde_json::{Value, json};

use super::bytes::{KeyStyle, base64};
use super::failure::{Failure, Result};
use super::global::Global;
use super::output::{self, Table, size};

/// A leader's role, as replicas tell it.
const LEADER: &str = "leader";

#[derive(clap::Subcommand, Debug)]
pub enum RangeCommand {
    /// List the ranges in key order
    List(ListArgs),
    /// Show a range with the Raft state of its leader
    Show(ShowArgs),
    /// Hand a range's leadership to another node
    TransferLeader(TransferArgs),
}

#[derive(clap::Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    style: KeyStyle,
}

#[derive(clap::Args, Debug)]
pub struct ShowArgs {
    /// The range's id
    range: u64,
    /// Ask this node's replica instead of the leader
    #[arg(long, value_name = "NODE")]
    on: Option<u64>,
    #[command(flatten)]
    style: KeyStyle,
}

#[derive(clap::Args, Debug)]
pub struct TransferArgs {
    /// The range's id
    range: u64,
    /// The node that is to lead
    node: u64,
}

pub async fn run(command: RangeCommand, global: &Global) -> Result {
    match command {
        RangeCommand::List(args) => list(&args, global).await,
        RangeCommand::Show(args) => show(&args, global).await,
        RangeCommand::TransferLeader(args) => transfer(&args, global).await,
    }
}

async fn list(args: &ListArgs, global: &Global) -> Result {
    let client = global.client().await?;
    let v1::ListRangesResponse { mut ranges, nodes } = client.list_ranges().await?;
    let live: BTreeSet<u64> = nodes.iter().filter(|node| node.live).map(|node| node.node_id).collect();
    find_leaders(&client, &mut ranges, &live).await;
    if global.json() {
        return output::json(&Value::Array(ranges.iter().map(status_json).collect()));
    }
    let mut table = Table::new(&[">range", "start", "end", "leader", ">term", "replicas on nodes", "epoch"]);
    for status in &ranges {
        let descriptor = status.descriptor.clone().unwrap_or_default();
        let (start, end) = bounds(&descriptor, args.style);
        table.row(vec![
            descriptor.range_id.to_string(),
            start,
            end,
            leader(status.leader_node_id),
            status.term.to_string(),
            replicas(&descriptor),
            epoch(&descriptor),
        ]);
    }
    output::line(table)
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

/// A leader's node, or a word that stands out.
fn leader(node: u64) -> String {
    if node == 0 { "none".into() } else { node.to_string() }
}

fn bounds(descriptor: &v1::RangeDescriptor, style: KeyStyle) -> (String, String) {
    let bound = |key: &[u8], open: &str| if key.is_empty() { open.to_owned() } else { style.show(key) };
    (bound(&descriptor.start, "(first)"), bound(&descriptor.end, "(last)"))
}

fn replicas(descriptor: &v1::RangeDescriptor) -> String {
    let nodes: Vec<String> = descriptor.replicas.iter().map(|replica| replica.node_id.to_string()).collect();
    nodes.join(",")
}

fn epoch(descriptor: &v1::RangeDescriptor) -> String {
    let epoch = descriptor.epoch.unwrap_or_default();
    format!("{}.{}", epoch.conf_ver, epoch.version)
}

/// A descriptor for programs.
pub fn descriptor_json(descriptor: &v1::RangeDescriptor) -> Value {
    let epoch = descriptor.epoch.unwrap_or_default();
    let replica = |replica: &v1::ReplicaDescriptor| {
        let role = if replica.role() == v1::ReplicaRole::Learner { "learner" } else { "voter" };
        json!({ "replica_id": replica.replica_id, "node_id": replica.node_id, "role": role })
    };
    json!({
        "range_id": descriptor.range_id,
        "keyspace_id": descriptor.keyspace_id,
        "start": base64(&descriptor.start),
        "end": base64(&descriptor.end),
        "epoch": { "conf_ver": epoch.conf_ver, "version": epoch.version },
        "replicas": descriptor.replicas.iter().map(replica).collect::<Vec<_>>(),
    })
}

fn status_json(status: &v1::RangeStatus) -> Value {
    let mut value = descriptor_json(&status.descriptor.clone().unwrap_or_default());
    value["leader_node_id"] = status.leader_node_id.into();
    value["term"] = status.term.into();
    value
}

async fn show(args: &ShowArgs, global: &Global) -> Result {
    let answer = global.client().await?.get_range(RangeId(args.range), args.on.map(NodeId)).await.map_err(|error| {
        let unknown = matches!(error, flotilla_proto::Error::RangeNotFound { .. });
        let failure = Failure::from(error);
        if unknown { failure.hint("`flotilla range list` lists the ranges") } else { failure }
    })?;
    let status = answer.status.unwrap_or_default();
    let replica = answer.replica.unwrap_or_default();
    if global.json() {
        let mut value = status_json(&status);
        value["replica"] = replica_json(&replica);
        return output::json(&value);
    }
    let descriptor = status.descriptor.clone().unwrap_or_default();
    let (start, end) = bounds(&descriptor, args.style);
    output::line(format_args!(
        "range {}: {start} to {end}\nepoch {}, replicas on nodes {}\nleader {}, term {}",
        descriptor.range_id,
        epoch(&descriptor),
        replicas(&descriptor),
        leader(status.leader_node_id),
        status.term,
    ))?;
    output::line(replica_text(&replica))
}

fn replica_text(replica: &v1::ReplicaStatus) -> String {
    let lease = match replica.lease_remaining_ms {
        0 => "no lease".to_owned(),
        left => format!("lease for another {left} ms"),
    };
    let mut text = format!(
        "replica {} on node {}: {}, term {}, {lease}\nlog {} to {}, committed {}, applied {} (checksum {:08x}), {} proposed and not applied",
        replica.replica_id,
        replica.node_id,
        replica.role,
        replica.term,
        replica.truncated_index + 1,
        replica.last_index,
        replica.commit_index,
        replica.applied_index,
        replica.applied_checksum,
        size(replica.proposal_bytes),
    );
    if replica.followers.is_empty() {
        return text;
    }
    let mut table = Table::new(&["follower on node", ">matched", ">behind", "state", "recently active"]);
    for follower in &replica.followers {
        table.row(vec![
            follower.node_id.to_string(),
            follower.matched_index.to_string(),
            replica.last_index.saturating_sub(follower.matched_index).to_string(),
            follower.state.clone(),
            if follower.recently_active { "yes" } else { "no" }.into(),
        ]);
    }
    text.push_str(&format!("\n{table}"));
    text
}

fn replica_json(replica: &v1::ReplicaStatus) -> Value {
    let follower = |follower: &v1::FollowerProgress| {
        json!({
            "node_id": follower.node_id,
            "replica_id": follower.replica_id,
            "matched_index": follower.matched_index,
            "state": follower.state,
            "recently_active": follower.recently_active,
        })
    };
    json!({
        "node_id": replica.node_id,
        "replica_id": replica.replica_id,
        "role": replica.role,
        "term": replica.term,
        "commit_index": replica.commit_index,
        "applied_index": replica.applied_index,
        "last_index": replica.last_index,
        "truncated_index": replica.truncated_index,
        "lease_remaining_ms": replica.lease_remaining_ms,
        "proposal_bytes": replica.proposal_bytes,
        "applied_checksum": replica.applied_checksum,
        "followers": replica.followers.iter().map(follower).collect::<Vec<_>>(),
    })
}

async fn transfer(args: &TransferArgs, global: &Global) -> Result {
    let answer = global.client().await?.transfer_leader(RangeId(args.range), NodeId(args.node)).await?;
    if global.json() {
        let value = json!({ "range_id": args.range, "leader_node_id": answer.leader_node_id, "term": answer.term });
        return output::json(&value);
    }
    output::line(format_args!("range {} is led by node {} in term {}", args.range, answer.leader_node_id, answer.term))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_and_bytes_are_shown_for_people_and_programs() {
        let descriptor = v1::RangeDescriptor {
            range_id: 7,
            start: bytes::Bytes::from_static(b"\x00"),
            replicas: vec![v1::ReplicaDescriptor { replica_id: 1, node_id: 2, role: 1 }],
            ..Default::default()
        };
        assert_eq!(bounds(&descriptor, KeyStyle::default()), ("\\x00".into(), "(last)".into()));
        let status = v1::RangeStatus { descriptor: Some(descriptor), leader_node_id: 2, term: 6 };
        let value = status_json(&status);
        assert_eq!(value["start"], "AA==");
        assert_eq!(value["end"], "");
        assert_eq!(value["leader_node_id"], 2);
        assert_eq!(value["replicas"][0]["role"], "learner");
    }

    #[test]
    fn a_follower_that_lags_is_seen() {
        let follower =
            v1::FollowerProgress { node_id: 3, matched_index: 5, state: "probe".into(), ..Default::default() };
        let replica = v1::ReplicaStatus { last_index: 12, followers: vec![follower], ..Default::default() };
        let text = replica_text(&replica);
        assert!(text.ends_with("3                       5       7  probe  no"), "{text}");
    }
}
