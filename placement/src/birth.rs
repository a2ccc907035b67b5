//! How a cluster begins: the ranges and the first records that the bootstrapping store is given.
//!
//! The records go straight into the system range's data, before anything runs; from then on the placement
//! [`Service`](crate::Service) alone writes them.

use bytes::Bytes;
use flotilla_proto::ids::{DEFAULT_KEYSPACE, DEFAULT_KEYSPACE_NAME, SYSTEM_KEYSPACE, SYSTEM_RANGE};
use flotilla_proto::{Result, v1};

use crate::borders::{RANGES_MAX, bounds, descriptor};
use crate::names::{self, SYSTEM_KEYSPACE_NAME};
use crate::records::{Change, Counter};

/// First range id given out; 1 is the system range's.
pub(crate) const FIRST_RANGE_ID: u64 = 2;

/// What a cluster begins with.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// Drawn at random.
    pub cluster_id: u64,
    /// What its people call it.
    pub cluster_name: String,
    /// The bootstrapping node: id, store and addresses.
    pub node: v1::NodeRecord,
    /// Replicas of the default keyspace and of the system range that are aimed at.
    pub replicas: u32,
    /// `split_bytes` of the default keyspace.
    pub split_bytes: u64,
    /// Ranges that the default keyspace begins with: 1 to [`RANGES_MAX`].
    pub ranges: u32,
}

impl Bootstrap {
    /// Refuses what no cluster can begin with.
    pub fn check(&self) -> Result<()> {
        if self.ranges == 0 || self.ranges > RANGES_MAX {
            let hint = format!("a cluster begins with 1 to {RANGES_MAX}");
            return Err(flotilla_proto::Error::invalid(format!("{} ranges", self.ranges), hint));
        }
        names::check_replicas(self.replicas)?;
        names::check_split_bytes(self.split_bytes)
    }

    /// The ranges that the store begins with, each with one replica: the system range first.
    pub fn first_ranges(&self) -> Vec<v1::RangeDescriptor> {
        let on = [self.node.node_id];
        let system = descriptor(SYSTEM_RANGE.0, SYSTEM_KEYSPACE.0, Default::default(), &on);
        let others = bounds(self.ranges)
            .into_iter()
            .zip(FIRST_RANGE_ID..)
            .map(|(bounds, id)| descriptor(id, DEFAULT_KEYSPACE.0, bounds, &on));
        std::iter::once(system).chain(others).collect()
    }

    /// The system range's first records: user key and value.
    pub fn first_records(&self) -> Vec<(Bytes, Bytes)> {
        let keyspace = |id, name: &str, split_bytes| v1::Keyspace {
            keyspace_id: id,
            name: name.into(),
            replicas: self.replicas,
            boundary: None,
            split_bytes,
            state: v1::KeyspaceState::Normal.into(),
            version: 1,
            // What was cut beforehand stays so.
            merge: Some(v1::MergePolicy { ranges_min: self.ranges, ..Default::default() }).filter(|_| split_bytes > 0),
            ..Default::default()
        };
        let next = FIRST_RANGE_ID + u64::from(self.ranges);
        [
            Change::Cluster(v1::ClusterRecord { cluster_id: self.cluster_id, name: self.cluster_name.clone() }),
            Change::Reign(v1::ReignRecord::default()),
            Change::Node(self.node.clone()),
            Change::Keyspace(keyspace(DEFAULT_KEYSPACE.0, DEFAULT_KEYSPACE_NAME, self.split_bytes)),
            Change::Keyspace(keyspace(SYSTEM_KEYSPACE.0, SYSTEM_KEYSPACE_NAME, 0)),
            Change::Next(Counter::Node, self.node.node_id + 1),
            Change::Next(Counter::Keyspace, DEFAULT_KEYSPACE.0 + 1),
            Change::Next(Counter::Range, next),
            Change::Next(Counter::Order, 1),
        ]
        .into_iter()
        .map(|change| {
            let (key, value) = change.encode();
            (key, value.unwrap_or_default())
        })
        .collect()
    }
}
