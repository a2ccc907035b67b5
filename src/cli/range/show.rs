//! `range show`: a range with the Raft state of one of its replicas.

use flotilla_proto::{NodeId, RangeId, v1};
use serde_json::{Value, json};

use super::describe::{bounds, epoch, leader, replicas, status_json};
use super::failure;
use crate::cli::bytes::KeyStyle;
use crate::cli::failure::Result;
use crate::cli::global::Global;
use crate::cli::output::{self, Table, size};

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

pub async fn run(args: &ShowArgs, global: &Global) -> Result {
    let client = global.client().await?;
    let answer = client.get_range(RangeId(args.range), args.on.map(NodeId)).await.map_err(failure)?;
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
        "range {}: {start} to {end}\nepoch {}, replicas on nodes {}\nleader {}, term {}, about {} of data",
        descriptor.range_id,
        epoch(&descriptor),
        replicas(&descriptor),
        leader(status.leader_node_id),
        status.term,
        size(status.data_bytes),
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
    if replica.order_id != 0 {
        text.push_str(&format!("\ncarries out order {} of placement", replica.order_id));
    }
    if !replica.order_waits.is_empty() {
        text.push_str(&format!(", which waits: {}", replica.order_waits));
    }
    for of in &replica.recoveries {
        text.push_str(&format!(
            "\nwent on alone after its majority was lost: plan {}, by {}, without nodes {:?}; its log ended at {}:{}, {} entries not known to be committed",
            of.plan_id,
            of.decided_by,
            of.dead_nodes,
            of.last_term,
            of.last_index,
            of.last_index.saturating_sub(of.commit_index),
        ));
    }
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
    let recovery = |of: &v1::RangeRecovery| {
        json!({
            "plan_id": of.plan_id,
            "unix_ms": of.unix_ms,
            "decided_by": of.decided_by,
            "dead_nodes": of.dead_nodes,
            "last_term": of.last_term,
            "last_index": of.last_index,
            "commit_index": of.commit_index,
        })
    };
    json!({
        "recoveries": replica.recoveries.iter().map(recovery).collect::<Vec<_>>(),
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
        "order_id": replica.order_id,
        "order_waits": replica.order_waits,
        "followers": replica.followers.iter().map(follower).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_that_lags_is_seen() {
        let follower =
            v1::FollowerProgress { node_id: 3, matched_index: 5, state: "probe".into(), ..Default::default() };
        let replica = v1::ReplicaStatus { last_index: 12, followers: vec![follower], ..Default::default() };
        let text = replica_text(&replica);
        assert!(text.ends_with("3                       5       7  probe  no"), "{text}");
        assert!(!text.contains("order"), "{text}");
    }

    #[test]
    fn an_order_and_what_it_waits_for_are_seen() {
        let replica = v1::ReplicaStatus { order_id: 4, order_waits: "node 3 is silent".into(), ..Default::default() };
        let text = replica_text(&replica);
        assert!(text.ends_with("carries out order 4 of placement, which waits: node 3 is silent"), "{text}");
        assert_eq!(replica_json(&replica)["order_waits"], "node 3 is silent");
    }
}
