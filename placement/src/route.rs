//! What is known of a range: where it is and who leads it. Pure.
//!
//! A node knows one of every range of the cluster, so it is small, and of ranges with a replica here the descriptor is the
//! very one that the replica has.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_proto::v1;

/// See the file's head; the parts are those of [`v1::RangeStatus`].
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// The range as whoever told of it has it.
    pub descriptor: Arc<v1::RangeDescriptor>,
    /// 0: unknown.
    pub leader_node_id: u64,
    /// The leader's.
    pub term: u64,
    /// About how many bytes of data it holds; 0: unknown.
    pub data_bytes: u64,
    /// Absent: next to none, or not known.
    pub load: Option<Box<v1::RangeLoad>>,
}

impl Route {
    /// A route as it was told; `None`: it says of no range.
    pub fn told(status: &v1::RangeStatus) -> Option<Self> {
        let v1::RangeStatus { descriptor, leader_node_id, term, data_bytes, load } = status;
        Some(Self {
            descriptor: Arc::new(descriptor.clone()?),
            leader_node_id: *leader_node_id,
            term: *term,
            data_bytes: *data_bytes,
            load: load.map(Box::new),
        })
    }

    /// As others are told of it.
    pub fn status(&self) -> v1::RangeStatus {
        let Self { descriptor, leader_node_id, term, data_bytes, load } = self;
        v1::RangeStatus {
            descriptor: Some((**descriptor).clone()),
            leader_node_id: *leader_node_id,
            term: *term,
            data_bytes: *data_bytes,
            load: load.as_deref().copied(),
        }
    }

    /// The range's id.
    pub fn range_id(&self) -> u64 {
        self.descriptor.range_id
    }

    /// Whether it says something newer of the range than the other does.
    pub(crate) fn is_newer(&self, than: &Self) -> bool {
        let age = |of: &Self| (age(&of.descriptor), of.term, of.leader_node_id != 0);
        age(self) > age(than)
    }

    /// Whether the range holds a key.
    pub(crate) fn holds(&self, keyspace: u64, key: &[u8]) -> bool {
        let range = &self.descriptor;
        let ends_behind = range.end.is_empty() || key < range.end;
        range.keyspace_id == keyspace && range.start <= key && ends_behind
    }
}

/// (version, conf_ver): how new a descriptor is.
fn age(descriptor: &v1::RangeDescriptor) -> (u64, u64) {
    descriptor.epoch.map_or((0, 0), |epoch| (epoch.version, epoch.conf_ver))
}

/// Whether two ranges have keys in common.
pub(crate) fn overlap(one: &v1::RangeDescriptor, other: &v1::RangeDescriptor) -> bool {
    let before = |end: &[u8], start: &[u8]| !end.is_empty() && end <= start;
    one.keyspace_id == other.keyspace_id && !before(&one.end, &other.start) && !before(&other.end, &one.start)
}

/// By what ranges are in order: keyspace and first key.
pub(crate) fn start_of(descriptor: &v1::RangeDescriptor) -> (u64, Bytes) {
    (descriptor.keyspace_id, descriptor.start.clone())
}
