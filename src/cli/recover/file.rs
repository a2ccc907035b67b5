//! The file of a plan: JSON for people, with each order byte for byte as the nodes get it, and a checksum over all.

use std::collections::BTreeMap;
use std::path::Path;

use flotilla_placement::recovery::Plan;
use flotilla_proto::v1;
use prost::Message;
use serde_json::{Value, json};

use crate::cli::bytes::{base64, from_base64};
use crate::cli::failure::{Failure, Result};
use crate::cli::range::describe::descriptor_json;

const FORMAT: u64 = 1;

/// What is to be carried out.
#[derive(Debug, PartialEq)]
pub struct Orders {
    pub plan_id: String,
    pub cluster_id: u64,
    pub dead: Vec<u64>,
    /// The nodes that answered when the plan was made.
    pub living: Vec<u64>,
    /// Each with its node.
    pub orders: Vec<(u64, v1::RecoverReplica)>,
    pub births: Vec<(u64, v1::RangeDescriptor)>,
}

/// The plan, for people and for `apply`.
pub fn render(plan: &Plan) -> Value {
    let kept = plan.kept.iter().map(|kept| {
        let before = kept.order.before.clone().unwrap_or_default();
        json!({
            "range": descriptor_json(&before),
            "node_id": kept.node,
            "living_voters": kept.living_voters.0,
            "voters": kept.living_voters.1,
            "last_term": kept.order.last_term,
            "last_index": kept.order.last_index,
            "entries_not_known_committed": kept.uncommitted,
            "data_bytes": kept.data_bytes,
            "warnings": kept.warnings,
            "order": base64(&kept.order.encode_to_vec()),
        })
    });
    let gap = |(keyspace, start, end): &(u64, bytes::Bytes, bytes::Bytes)| json!({ "keyspace_id": keyspace, "start": base64(start), "end": base64(end) });
    let recreated = plan.recreated.iter().map(
        |(node, of)| json!({ "range": descriptor_json(of), "node_id": node, "order": base64(&of.encode_to_vec()) }),
    );
    let mut value = json!({
        "format": FORMAT,
        "plan_id": plan.wish.plan_id,
        "cluster_id": format!("{:016x}", plan.cluster_id),
        "made_unix_ms": plan.wish.unix_ms,
        "decided_by": plan.wish.decided_by,
        "dead_nodes": plan.wish.dead,
        "living_nodes": plan.living.iter().map(|(node, boot)| json!({ "node_id": node, "boot_id": boot })).collect::<Vec<_>>(),
        "healthy_ranges": plan.healthy,
        "kept": kept.collect::<Vec<_>>(),
        "lost": plan.lost.iter().map(descriptor_json).collect::<Vec<_>>(),
        "gaps": plan.gaps.iter().map(gap).collect::<Vec<_>>(),
        "recreated_empty": recreated.collect::<Vec<_>>(),
        "left_as_they_are": plan.left,
        "warnings": plan.warnings,
    });
    value["crc32"] = json!(checksum(&value));
    value
}

/// Of everything but itself.
pub(super) fn checksum(value: &Value) -> u32 {
    let mut rest = value.clone();
    rest.as_object_mut().map(|fields| fields.remove("crc32"));
    crc32fast::hash(rest.to_string().as_bytes())
}

/// Reads a plan back.
pub fn read(path: &Path) -> Result<Orders> {
    let text = std::fs::read_to_string(path).map_err(|error| Failure::file("read the plan", path, &error))?;
    parse(&text).map_err(|what| {
        Failure::failed(format!("{} is no plan that can be carried out: {what}", path.display()))
            .hint("make a new one by `flotilla recover plan`; a plan is not edited")
    })
}

pub(super) fn parse(text: &str) -> std::result::Result<Orders, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if value["format"].as_u64() != Some(FORMAT) {
        return Err(format!("its format is {}, this program reads {FORMAT}", value["format"]));
    }
    if value["crc32"].as_u64() != Some(checksum(&value).into()) {
        return Err("its checksum does not agree with what it says".into());
    }
    let text = |field: &str| value[field].as_str().ok_or_else(|| format!("it has no {field}"));
    let list = |field: &str| value[field].as_array().ok_or_else(|| format!("it has no {field}"));
    let ids = |values: &[Value]| values.iter().filter_map(Value::as_u64).collect::<Vec<u64>>();
    Ok(Orders {
        plan_id: text("plan_id")?.into(),
        cluster_id: u64::from_str_radix(text("cluster_id")?, 16).map_err(|error| error.to_string())?,
        dead: ids(list("dead_nodes")?),
        living: list("living_nodes")?.iter().filter_map(|node| node["node_id"].as_u64()).collect(),
        orders: orders(list("kept")?)?,
        births: orders(list("recreated_empty")?)?,
    })
}

fn orders<M: Message + Default>(list: &[Value]) -> std::result::Result<Vec<(u64, M)>, String> {
    let one = |value: &Value| {
        let bytes = value["order"].as_str().and_then(from_base64)?;
        Some((value["node_id"].as_u64()?, M::decode(bytes).ok()?))
    };
    list.iter().map(|value| one(value).ok_or_else(|| "an order cannot be read".to_string())).collect()
}

/// Orders by node.
pub fn by_node<M: Clone>(orders: &[(u64, M)]) -> BTreeMap<u64, Vec<M>> {
    let mut nodes: BTreeMap<u64, Vec<M>> = BTreeMap::new();
    for (node, order) in orders {
        nodes.entry(*node).or_default().push(order.clone());
    }
    nodes
}

#[cfg(test)]
mod tests {
    use flotilla_placement::recovery::{Kept, Wish};

    use super::*;

    fn plan() -> Plan {
        let order = v1::RecoverReplica { range_id: 7, last_index: 9, ..Default::default() };
        let kept = Kept {
            node: 2,
            order,
            living_voters: (1, 3),
            uncommitted: 1,
            data_bytes: 5,
            warnings: vec!["a warning".into()],
        };
        let of = v1::RangeDescriptor { range_id: 8, ..Default::default() };
        Plan {
            cluster_id: 0xab,
            wish: Wish { plan_id: "p".into(), dead: [3, 4].into(), ..Wish::default() },
            living: [(1, 11), (2, 12)].into(),
            kept: vec![kept],
            lost: vec![of.clone()],
            recreated: vec![(1, of)],
            ..Plan::default()
        }
    }

    #[test]
    fn a_plan_comes_back_as_it_was_and_an_edited_one_does_not() {
        let plan = plan();
        let text = render(&plan).to_string();
        let orders = parse(&text).expect("as it was written");
        assert_eq!((&orders.plan_id[..], orders.cluster_id), ("p", 0xab));
        assert_eq!((&orders.dead[..], &orders.living[..]), (&[3, 4][..], &[1, 2][..]));
        assert_eq!(orders.orders, [(2, plan.kept[0].order.clone())]);
        assert_eq!(orders.births, plan.recreated);
        let pretty = serde_json::to_string_pretty(&render(&plan)).expect("it is JSON");
        assert_eq!(parse(&pretty), Ok(orders), "however it is laid out");
        let edited = parse(&text.replace("\"node_id\":2", "\"node_id\":1")).expect_err("edited");
        assert!(edited.contains("checksum"), "{edited}");
        assert!(parse("{}").expect_err("no plan").contains("format"));
    }
}
