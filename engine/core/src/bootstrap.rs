//! A store's first records.
//!
//! Three kinds of stores are made: the first one of a cluster, with the system range, the first ranges for data and
//! what placement begins with; that of a node that joins, which holds no range; and, for tests and simulations, one of
//! several that begin together with ranges laid out over all of them.

use bytes::Bytes;
use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::{KeyspaceId, NodeId, v1};
use prost::Message;

use crate::apply::{initial_applied, initial_raft_state, put_range};
use crate::keys::{self, MetaRecord};
use crate::record;
use crate::storage::{self, Family, Storage, WriteBatch};

/// Index and term that a bootstrapped range's log begins after. Above zero, so that a replica which
/// was not there at bootstrap can only begin with a snapshot (TiKV: RAFT_INIT_LOG_INDEX).
pub const INITIAL_INDEX: u64 = 5;
/// See [`INITIAL_INDEX`].
pub const INITIAL_TERM: u64 = 5;

/// On-disk format of a store.
pub const FORMAT: u32 = 1;

/// The id of a cluster that is laid out: the same on every node that is told the same layout.
pub fn cluster_id(layout: &v1::Layout) -> u64 {
    // FNV-1a, 64 bits: this names a cluster, it does not authenticate it.
    let hash = layout
        .encode_to_vec()
        .into_iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    hash.max(1)
}

/// What a store is made with.
#[derive(Clone, Debug, PartialEq)]
pub struct Birth {
    /// Whose it is. The store id is drawn at random, once for each new store: a store that takes the place of
    /// another one under the same node id is known by it.
    pub identity: v1::StoreIdentity,
    /// The cluster, and the nodes that are known.
    pub known: v1::KnownNodes,
    /// Ranges; those that have a replica on this node begin here.
    pub ranges: Vec<v1::RangeDescriptor>,
    /// Keys and values that the system range begins with.
    pub records: Vec<(Bytes, Bytes)>,
}

impl Birth {
    /// The store of one of several nodes over which ranges are laid out: for tests and simulations.
    pub fn laid_out(node: NodeId, store_id: u64, layout: &v1::Layout) -> Self {
        let record = |node: &v1::LayoutNode| v1::NodeRecord {
            node_id: node.node_id,
            peer_addr: node.peer_addr.clone(),
            ..Default::default()
        };
        Self {
            identity: identity(cluster_id(layout), node, store_id),
            known: v1::KnownNodes {
                cluster_name: layout.cluster_name.clone(),
                nodes: layout.nodes.iter().map(record).collect(),
            },
            ranges: layout.ranges.clone(),
            records: Vec::new(),
        }
    }

    /// Writes the records; durable when it returns.
    pub fn write<S: Storage>(&self, storage: &S) -> storage::Result<()> {
        let mut batch = storage.batch();
        for descriptor in &self.ranges {
            if descriptor.replicas.iter().any(|replica| replica.node_id == self.identity.node_id) {
                self.write_range(&mut batch, descriptor);
            }
        }
        batch.put(Family::Meta, &keys::meta(MetaRecord::KnownNodes), &record::encode(&self.known));
        batch.put(Family::Meta, &keys::meta(MetaRecord::Identity), &record::encode(&self.identity));
        storage.write(batch)?;
        storage.sync()
    }

    fn write_range<B: WriteBatch>(&self, batch: &mut B, descriptor: &v1::RangeDescriptor) {
        let rows = if descriptor.range_id == SYSTEM_RANGE.0 { &self.records[..] } else { &[] };
        for (version, (key, value)) in (1..).zip(rows) {
            let key = keys::data(KeyspaceId(descriptor.keyspace_id), key);
            batch.put(Family::State, &key, &record::encode_value(version, 0, value));
        }
        let applied = v1::AppliedState { version_counter: rows.len() as u64, ..initial_applied() };
        put_range(batch, descriptor, &applied, &initial_raft_state());
    }
}

/// A store's identity.
pub fn identity(cluster_id: u64, node: NodeId, store_id: u64) -> v1::StoreIdentity {
    v1::StoreIdentity { cluster_id, node_id: node.0, format: FORMAT, store_id }
}

/// [`Birth::laid_out`], written.
pub fn write<S: Storage>(storage: &S, node: NodeId, store_id: u64, layout: &v1::Layout) -> storage::Result<()> {
    Birth::laid_out(node, store_id, layout).write(storage)
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
