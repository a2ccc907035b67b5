//! A store's first records, from the layout that its cluster is born with.
//!
//! The layout is decided elsewhere (flotilla-placement); every member is given the same one.

use flotilla_proto::{NodeId, v1};
use prost::Message;

use crate::keys::{self, MetaRecord, RangeRecord};
use crate::record;
use crate::storage::{self, Family, Storage, WriteBatch};

/// Index and term that a bootstrapped range's log begins after. Above zero, so that a replica which
/// was not there at bootstrap can only begin with a snapshot (TiKV: RAFT_INIT_LOG_INDEX).
pub const INITIAL_INDEX: u64 = 5;
/// See [`INITIAL_INDEX`].
pub const INITIAL_TERM: u64 = 5;

/// On-disk format of a store.
pub const FORMAT: u32 = 1;

/// A cluster's id: from the whole layout that it is born with (name, members and their addresses
/// between nodes, ranges, replicas), so that every member computes the same one, and a member that
/// was told another layout belongs to another cluster.
pub fn cluster_id(layout: &v1::Layout) -> u64 {
    // FNV-1a, 64 bits: this names a cluster, it does not authenticate it.
    let hash = layout
        .encode_to_vec()
        .into_iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    hash.max(1)
}

/// Writes a new store's records: identity, layout, and the ranges that have a replica on `node`.
/// Durable when it returns.
///
/// `store_id` is drawn at random by the caller, once for each new store: a store that takes the place
/// of another one under the same node id is known by it.
pub fn write<S: Storage>(storage: &S, node: NodeId, store_id: u64, layout: &v1::Layout) -> storage::Result<()> {
    let mut batch = storage.batch();
    let identity = v1::StoreIdentity { cluster_id: cluster_id(layout), node_id: node.0, format: FORMAT, store_id };
    for descriptor in &layout.ranges {
        if descriptor.replicas.iter().any(|replica| replica.node_id == node.0) {
            write_range(&mut batch, descriptor);
        }
    }
    batch.put(Family::Meta, &keys::meta(MetaRecord::Layout), &record::encode(layout));
    batch.put(Family::Meta, &keys::meta(MetaRecord::Identity), &record::encode(&identity));
    storage.write(batch)?;
    storage.sync()
}

fn write_range<B: WriteBatch>(batch: &mut B, descriptor: &v1::RangeDescriptor) {
    let range = descriptor.range_id.into();
    let applied = v1::AppliedState { index: INITIAL_INDEX, term: INITIAL_TERM, ..Default::default() };
    let raft_state = v1::RaftState {
        term: INITIAL_TERM,
        vote: 0,
        commit: INITIAL_INDEX,
        truncated_index: INITIAL_INDEX,
        truncated_term: INITIAL_TERM,
    };
    batch.put(Family::Log, &keys::raft_state(range), &record::encode(&raft_state));
    batch.put(Family::State, &keys::range_record(range, RangeRecord::Descriptor), &record::encode(descriptor));
    batch.put(Family::State, &keys::range_record(range, RangeRecord::Applied), &record::encode(&applied));
}

#[cfg(test)]
mod tests {
    use flotilla_placement::layout;

    use super::*;

    fn nodes(count: u64) -> Vec<(NodeId, String)> {
        (1..=count).map(|id| (NodeId(id), format!("127.0.0.1:{}", 7301 + 100 * (id - 1)))).collect()
    }

    #[test]
    fn the_id_depends_on_name_and_members_alone() {
        let id =
            |name: &str, nodes: &[(NodeId, String)]| cluster_id(&layout(name, nodes, 16, 3).expect("valid arguments"));
        let mut shuffled = nodes(3);
        shuffled.reverse();
        assert_eq!(id("a", &nodes(3)), id("a", &shuffled));
        assert_ne!(id("a", &nodes(3)), id("b", &nodes(3)));
        assert_ne!(id("a", &nodes(3)), id("a", &nodes(4)));
    }

    #[test]
    fn golden() {
        let identity = v1::StoreIdentity { cluster_id: 1, node_id: 3, format: FORMAT, store_id: 258 };
        assert_eq!(record::encode(&identity)[4..], [1, 8, 1, 16, 3, 24, 1, 32, 0x82, 2]);
    }
}
