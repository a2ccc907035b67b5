//! The layout that a cluster is born with: ranges over the keys' alphabet, replicas and first leaders
//! dealt round the nodes.
//!
//! Every node of a new cluster is told the same members and computes the same layout: it depends on
//! the arguments alone, and not on the order of the nodes.

use flotilla_proto::{NodeId, v1};

/// First range id given out; 1 is reserved for the system range.
const FIRST_RANGE_ID: u64 = 2;

/// Most ranges that a layout may have.
pub const RANGES_MAX: u32 = 100_000;

/// The characters that range borders are made of, in order: where keys are made of these, as paths
/// and names are, ranges of equal width get about equal shares.
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The layout of a new cluster: `ranges` ranges of the default keyspace, each with `replicas`
/// replicas on `nodes`. The error says what is wrong with the arguments.
pub fn layout(
    cluster_name: &str,
    nodes: &[(NodeId, String)],
    ranges: u32,
    replicas: usize,
) -> Result<v1::Layout, String> {
    if ranges == 0 || ranges > RANGES_MAX {
        return Err(format!("{ranges} ranges: a cluster is born with 1 to {RANGES_MAX}"));
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
    let borders = borders(ranges);
    let descriptors = (0..ranges as usize)
        .map(|at| v1::RangeDescriptor {
            range_id: FIRST_RANGE_ID + at as u64,
            keyspace_id: flotilla_proto::ids::DEFAULT_KEYSPACE.0,
            start: if at == 0 { Vec::new() } else { borders[at - 1].clone() }.into(),
            end: borders.get(at).cloned().unwrap_or_default().into(),
            epoch: Some(v1::Epoch { conf_ver: 1, version: 1 }),
            // The first replica leads first: dealt round, so that leaders are spread.
            replicas: (0..replicas)
                .map(|step| v1::ReplicaDescriptor {
                    replica_id: step as u64 + 1,
                    node_id: nodes[(at + step) % nodes.len()].0.0,
                    role: v1::ReplicaRole::Voter.into(),
                })
                .collect(),
            next_replica_id: replicas as u64 + 1,
        })
        .collect();
    Ok(v1::Layout {
        ranges: descriptors,
        nodes: nodes.into_iter().map(|(node, peer_addr)| v1::LayoutNode { node_id: node.0, peer_addr }).collect(),
        cluster_name: cluster_name.into(),
    })
}

/// `ranges - 1` borders that cut the alphabet's strings into equal shares, as short as they can be
/// told apart.
fn borders(ranges: u32) -> Vec<Vec<u8>> {
    let base = ALPHABET.len() as u64;
    let mut digits = 1;
    while base.pow(digits) < u64::from(ranges) * 4 {
        digits += 1;
    }
    let all = base.pow(digits);
    (1..u64::from(ranges))
        .map(|at| {
            let mut number = at * all / u64::from(ranges);
            let mut border = vec![0; digits as usize];
            for place in border.iter_mut().rev() {
                *place = ALPHABET[(number % base) as usize];
                number /= base;
            }
            while border.len() > 1 && border.last() == Some(&ALPHABET[0]) {
                border.pop();
            }
            border
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(count: u64) -> Vec<(NodeId, String)> {
        (1..=count).map(|id| (NodeId(id), format!("127.0.0.1:{}", 7301 + 100 * (id - 1)))).collect()
    }

    #[test]
    fn ranges_tile_the_keyspace_and_leaders_are_spread() {
        for count in [1, 2, 16, 61, 62, 63, 256, 5_000] {
            let layout = layout("test", &nodes(3), count, 3).expect("valid arguments");
            assert_eq!(layout.ranges.len(), count as usize);
            assert!(layout.ranges[0].start.is_empty() && layout.ranges[count as usize - 1].end.is_empty());
            for pair in layout.ranges.windows(2) {
                assert_eq!(pair[0].end, pair[1].start);
                assert!(pair[0].start < pair[0].end, "{pair:?}");
            }
            let led = |node| layout.ranges.iter().filter(|range| range.replicas[0].node_id == node).count();
            assert!((1..=3).all(|node| led(node) >= count as usize / 3));
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
