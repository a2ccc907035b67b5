//! Descriptors as the table keeps them: borders are shared between the neighbours that meet there, replicas lie in few
//! bytes.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_proto::v1;

use crate::small::Small;

/// A border of ranges.
pub(crate) type Key = Arc<[u8]>;

/// What has replicas.
pub(crate) trait Members {
    fn members(&self) -> impl Iterator<Item = v1::ReplicaDescriptor> + '_;
}

impl Members for v1::RangeDescriptor {
    fn members(&self) -> impl Iterator<Item = v1::ReplicaDescriptor> + '_ {
        self.replicas.iter().copied()
    }
}

/// A [`v1::RangeDescriptor`].
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Descriptor {
    pub range_id: u64,
    pub keyspace_id: u64,
    pub start: Key,
    pub end: Key,
    pub version: u64,
    pub conf_ver: u64,
    pub next_replica_id: u64,
    /// Of each its id, node and role.
    replicas: Small,
}

impl Members for Descriptor {
    fn members(&self) -> impl Iterator<Item = v1::ReplicaDescriptor> + '_ {
        let mut numbers = self.replicas.numbers();
        std::iter::from_fn(move || {
            let (replica_id, node_id, role) = (numbers.next()?, numbers.next()?, numbers.next()?);
            // It was written from one.
            Some(v1::ReplicaDescriptor { replica_id, node_id, role: role as u32 as i32 })
        })
    }
}

impl Descriptor {
    /// The same, with these borders.
    pub fn of(descriptor: &v1::RangeDescriptor, start: Key, end: Key) -> Self {
        let (version, conf_ver) = super::epoch(descriptor);
        let replica = |of: &v1::ReplicaDescriptor| [of.replica_id, of.node_id, u64::from(of.role as u32)];
        Self {
            range_id: descriptor.range_id,
            keyspace_id: descriptor.keyspace_id,
            start,
            end,
            version,
            conf_ver,
            next_replica_id: descriptor.next_replica_id,
            replicas: descriptor.replicas.iter().flat_map(replica).collect(),
        }
    }

    /// As it is told.
    pub fn told(&self) -> v1::RangeDescriptor {
        v1::RangeDescriptor {
            range_id: self.range_id,
            keyspace_id: self.keyspace_id,
            start: Bytes::copy_from_slice(&self.start),
            end: Bytes::copy_from_slice(&self.end),
            epoch: Some(self.told_epoch()),
            replicas: self.members().collect(),
            next_replica_id: self.next_replica_id,
        }
    }

    pub fn told_epoch(&self) -> v1::Epoch {
        v1::Epoch { conf_ver: self.conf_ver, version: self.version }
    }

    pub fn epoch(&self) -> (u64, u64) {
        (self.version, self.conf_ver)
    }
}
