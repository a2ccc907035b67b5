//! `placement plan`: what would be decided now. Asking decides nothing.

use flotilla_proto::v1;
use serde_json::{Value, json};

use crate::cli::failure::Result;
use crate::cli::global::Global;
use crate::cli::output::{self, Table};

#[derive(clap::Args, Debug)]
pub struct PlanArgs {
    /// Say what would be decided, and decide nothing: that is all that `plan` does
    #[arg(long)]
    dry_run: bool,
}

pub async fn run(_: &PlanArgs, global: &Global) -> Result {
    let plan = global.client().await?.placement_plan().await?;
    if global.json() {
        return output::json(&json!({
            "orders": plan.orders.iter().map(to_json).collect::<Vec<_>>(), "notes": plan.notes,
        }));
    }
    for note in &plan.notes {
        output::line(note)?;
    }
    match (plan.orders.is_empty(), plan.notes.is_empty()) {
        (true, true) => output::line("nothing: all is as it is asked for"),
        (true, false) => Ok(()),
        (false, _) => output::line(table(&plan.orders)),
    }
}

fn table(orders: &[v1::PlannedOrder]) -> Table {
    let mut table = Table::new(&[">range", "for", "nodes", "why"]);
    for order in orders {
        table.row(vec![
            order.range_id.to_string(),
            order.kind.clone(),
            nodes(&order.add_nodes, &order.remove_nodes, order.leader_node_id, order.merge_into),
            order.reason.clone(),
        ]);
    }
    table
}

/// Which nodes get a replica (+), lose one (-), which is to lead, and the range that it is merged into.
pub fn nodes(add: &[u64], remove: &[u64], leader: u64, merge_into: u64) -> String {
    let mut parts: Vec<String> = add.iter().map(|node| format!("+{node}")).collect();
    parts.extend(remove.iter().map(|node| format!("-{node}")));
    if leader != 0 {
        parts.push(format!("lead:{leader}"));
    }
    if merge_into != 0 {
        parts.push(format!("into range {merge_into}"));
    }
    if parts.is_empty() { "-".into() } else { parts.join(" ") }
}

fn to_json(order: &v1::PlannedOrder) -> Value {
    json!({
        "range_id": order.range_id,
        "kind": order.kind,
        "add_nodes": order.add_nodes,
        "remove_nodes": order.remove_nodes,
        "leader_node_id": order.leader_node_id,
        "merge_into": order.merge_into,
        "reason": order.reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_a_table() {
        let moved = v1::PlannedOrder {
            range_id: 7,
            kind: "balance-replicas".into(),
            add_nodes: vec![4],
            remove_nodes: vec![1],
            reason: "balance: node 1 has 9 replicas, node 4 has 2".into(),
            ..Default::default()
        };
        let merged = v1::PlannedOrder {
            range_id: 12,
            kind: "merge".into(),
            merge_into: 8,
            reason: "cold".into(),
            ..Default::default()
        };
        let golden = "\
RANGE  FOR               NODES         WHY
    7  balance-replicas  +4 -1         balance: node 1 has 9 replicas, node 4 has 2
   12  merge             into range 8  cold";
        assert_eq!(table(&[moved.clone(), merged]).to_string(), golden);
        assert_eq!(to_json(&moved)["add_nodes"], json!([4]));
    }
}
