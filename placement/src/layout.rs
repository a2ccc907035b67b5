//! Ranges laid out over given nodes, all replicas at once: for tests and simulations of the parts that do not grow
//! their clusters. A real cluster is born with single replicas on its first node, and grows: see [`crate::birth`].
//!
//! The layout depends on the arguments alone, and not on the order of the nodes.

use flotilla_proto::ids::{DEFAULT_KEYSPACE, SYSTEM_KEYSPACE, SYSTEM_RANGE};
use flotilla_proto::{NodeId, v1};

use crate::birth::FIRST_RANGE_ID;
use crate::borders::{RANGES_MAX, bounds, descriptor};

/// `ranges` ranges of the default keyspace, each with `replicas` replicas on `nodes`; the system range is not among
/// them, see [`system_range`]. The error says what is wrong with the arguments.
pub fn layout(
    cluster_name: &str,
    nodes: &[(NodeId, String)],
    ranges: u32,
    replicas: usize,
) -> Result<v1::Layout, String> {
    if ranges == 0 || ranges > RANGES_MAX {
        return Err(format!("{ranges} ranges: a keyspace is born with 1 to {RANGES_MAX}"));
    }
    if replicas == 0 || replicas > nodes.len() {
        return Err(format!("{replicas} replicas on {} nodes: each replica needs a node of its own", nodes.len()));
    }
    let mut nodes = nodes.to_vec();
    nodes.sort();
    if nodes.iter().any(|(node, _)| node.0 == 0) {
        return Err("node id 0 is not allowed: ids start at 1".into());
    }
    if let Some(pair) = nodes.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(format!("node id {} is given twice", pair[0].0.0));
    }
    let ranges = bounds(ranges)
        .into_iter()
        .enumerate()
        .map(|(at, bounds)| {
            // The first replica leads first: dealt round, so that leaders are spread.
            let on: Vec<u64> = (0..replicas).map(|step| nodes[(at + step) % nodes.len()].0.0).collect();
            descriptor(FIRST_RANGE_ID + at as u64, DEFAULT_KEYSPACE.0, bounds, &on)
        })
        .collect();
    Ok(v1::Layout {
        ranges,
        nodes: nodes.into_iter().map(|(node, peer_addr)| v1::LayoutNode { node_id: node.0, peer_addr }).collect(),
        cluster_name: cluster_name.into(),
    })
}

/// The system range with a replica on each of `nodes`.
pub fn system_range(nodes: &[NodeId]) -> v1::RangeDescriptor {
    let on: Vec<u64> = nodes.iter().map(|node| node.0).collect();
    descriptor(SYSTEM_RANGE.0, SYSTEM_KEYSPACE.0, Default::default(), &on)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(count: u64) -> Vec<(NodeId, String)> {
        (1..=count).map(|id| (NodeId(id), format!("127.0.0.1:{}", 7301 + 100 * (id - 1)))).collect()
    }

    #[test]
    fn leaders_are_spread() {
        for count in [1, 2, 16, 61, 62, 63, 256, 5_000] {
            let layout = layout("test", &nodes(3), count, 3).expect("valid arguments");
            let led = |node| layout.ranges.iter().filter(|range| range.replicas[0].node_id == node).count();
            assert!((1..=3).all(|node| led(node) >= count as usize / 3));
            assert!(layout.ranges.iter().all(|range| range.next_replica_id == 4));
        }
    }

    #[test]
    fn impossible_layouts_are_refused_in_words() {
        let twice = [nodes(1), nodes(1)].concat();
        for (nodes, ranges, replicas) in [(nodes(3), 0, 3), (nodes(2), 16, 3), (nodes(3), 16, 0), (twice, 16, 1)] {
            let error = layout("test", &nodes, ranges, replicas).expect_err("impossible");
            assert!(!error.is_empty());
        }
    }
}
