//! Borders that come and go: merges and splits.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::{Group, World};

impl World {
    pub(super) fn merge(&mut self, left: u64, right: u64) {
        let source = self.groups.remove(&right).expect("a range");
        let target = self.groups.get_mut(&left).expect("its neighbour");
        let sorted = |group: &Group| group.nodes().into_iter().collect::<BTreeSet<u64>>();
        assert_eq!(sorted(&source), sorted(target), "ranges {left} and {right} are not on the same nodes");
        assert_eq!(target.descriptor.end, source.descriptor.start);
        let version = |group: &Group| group.descriptor.epoch.expect("an epoch").version;
        let newest = version(&source).max(version(target));
        target.descriptor.end = source.descriptor.end.clone();
        target.descriptor.epoch.as_mut().expect("an epoch").version = newest + 1;
        target.bytes += source.bytes;
        for node in source.nodes() {
            let host = self.hosts.get_mut(&node).expect("a node");
            host.held.remove(&right);
            host.changed.remove(&right);
            host.gone.insert(right);
            host.changed.insert(left);
        }
        self.judge.merges += 1;
    }

    /// Cuts a range in two at a key.
    pub fn split(&mut self, range: u64, id: u64, at: &str) {
        let group = self.groups.get_mut(&range).expect("a range");
        let mut right = group.clone();
        let at = Bytes::copy_from_slice(at.as_bytes());
        right.descriptor.range_id = id;
        right.descriptor.start = at.clone();
        group.descriptor.end = at;
        group.descriptor.epoch.as_mut().expect("an epoch").version += 1;
        right.descriptor.epoch = group.descriptor.epoch;
        right.order = None;
        (group.bytes, right.bytes) = (group.bytes / 2, group.bytes / 2);
        for node in group.nodes() {
            let host = self.hosts.get_mut(&node).expect("a node");
            host.held.insert(id);
            host.changed.extend([range, id]);
        }
        self.groups.insert(id, right);
    }
}
