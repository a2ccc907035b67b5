//! What all nodes of a test's cluster share: data, ranges, leaders. No replication: the truth is a map.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use bytes::Bytes;
use flotilla_proto::ids::{DEFAULT_KEYSPACE, SYSTEM_KEYSPACE};
use flotilla_proto::{Error, KeyspaceId, NodeId, RangeId, v1};
use v1::write_op::Op;

#[derive(Default)]
pub struct Truth {
    /// What the default keyspace holds: values and versions.
    pub data: BTreeMap<Bytes, (Bytes, u64)>,
    /// The ttl of each key's last write, in milliseconds; nothing ends by it.
    pub ttls: BTreeMap<Bytes, u64>,
    /// What other keyspaces hold, by their id.
    pub others: BTreeMap<u64, BTreeMap<Bytes, (Bytes, u64)>>,
    pub ranges: BTreeMap<u64, v1::RangeDescriptor>,
    pub leaders: BTreeMap<u64, NodeId>,
    pub addresses: BTreeMap<u64, SocketAddr>,
    /// The cluster's id; 0: it is not told.
    pub cluster: u64,
    /// Keys asked for, in order of arrival.
    pub arrived: Vec<Bytes>,
    /// Orders given, in order of arrival, in words.
    pub orders: Vec<String>,
    /// Orders are taken and never answered.
    pub hold_orders: bool,
    /// Nodes that have not heard of any range yet.
    pub blank: BTreeSet<u64>,
    pub keyspaces: BTreeMap<String, v1::Keyspace>,
    /// Messages that requests arrived in, and streams opened.
    pub batches: usize,
    pub streams: usize,
    pub version: u64,
}

fn descriptor(range: u64, keyspace: KeyspaceId, start: &'static str, end: &'static str) -> v1::RangeDescriptor {
    v1::RangeDescriptor {
        range_id: range,
        keyspace_id: keyspace.0,
        start: start.into(),
        end: end.into(),
        epoch: Some(v1::Epoch { conf_ver: 1, version: 1 }),
        replicas: (1..=2).map(|node| v1::ReplicaDescriptor { replica_id: node, node_id: node, role: 0 }).collect(),
        next_replica_id: 3,
    }
}

impl Truth {
    /// The system range, and r2 [, m) and r3 [m, ) of the default keyspace.
    pub fn new() -> Self {
        let mut truth = Self::default();
        truth.add(descriptor(1, SYSTEM_KEYSPACE, "", ""), NodeId(2));
        truth.add(descriptor(2, DEFAULT_KEYSPACE, "", "m"), NodeId(1));
        truth.add(descriptor(3, DEFAULT_KEYSPACE, "m", ""), NodeId(2));
        truth
    }

    fn add(&mut self, range: v1::RangeDescriptor, leader: NodeId) {
        self.leaders.insert(range.range_id, leader);
        self.ranges.insert(range.range_id, range);
    }

    /// A new keyspace, with one range.
    pub fn add_keyspace(&mut self, name: &str) -> v1::Keyspace {
        let keyspace_id = 2 + self.others.len() as u64;
        let keyspace = v1::Keyspace { keyspace_id, name: name.into(), ..Default::default() };
        self.others.insert(keyspace_id, BTreeMap::new());
        self.keyspaces.insert(name.into(), keyspace.clone());
        self.add(descriptor(100 + keyspace_id, KeyspaceId(keyspace_id), "", ""), NodeId(2));
        keyspace
    }

    /// A keyspace goes, with its ranges.
    pub fn drop_keyspace(&mut self, name: &str) -> bool {
        let Some(keyspace) = self.keyspaces.remove(name) else { return false };
        self.ranges.retain(|_, range| range.keyspace_id != keyspace.keyspace_id);
        true
    }

    /// Splits a range; its child is led by `leader`. Gives both.
    pub fn split(&mut self, range: u64, at: &Bytes, leader: NodeId) -> Vec<v1::RangeDescriptor> {
        let child_id = 1 + self.ranges.keys().max().expect("there are ranges");
        let parent = self.ranges.get_mut(&range).expect("there is such a range");
        assert!(parent.start < *at && (parent.end.is_empty() || *at < parent.end));
        parent.epoch.as_mut().expect("ranges have epochs").version += 1;
        let child = v1::RangeDescriptor { range_id: child_id, start: at.clone(), ..parent.clone() };
        parent.end = at.clone();
        let both = vec![parent.clone(), child.clone()];
        self.add(child, leader);
        both
    }

    /// A range's only replica and leader is on this node from now on.
    pub fn move_to(&mut self, range: u64, node: NodeId) {
        let moved = self.ranges.get_mut(&range).expect("there is such a range");
        moved.epoch.as_mut().expect("ranges have epochs").conf_ver += 1;
        moved.replicas = vec![v1::ReplicaDescriptor { replica_id: 9, node_id: node.0, role: 0 }];
        self.leaders.insert(range, node);
    }

    /// Whether a node may serve a request for this range at this epoch.
    pub fn admit(&self, node: NodeId, header: &v1::RequestHeader) -> Result<KeyspaceId, Error> {
        let range = RangeId(header.range_id);
        let held =
            self.ranges.get(&range.0).filter(|held| held.replicas.iter().any(|replica| replica.node_id == node.0));
        let held = held.ok_or(Error::RangeNotFound { range })?;
        let version = |epoch: Option<v1::Epoch>| epoch.map(|epoch| epoch.version);
        if version(header.epoch) != version(held.epoch) {
            let same = |other: &&v1::RangeDescriptor| other.keyspace_id == held.keyspace_id;
            let descriptors = self.ranges.values().filter(same).cloned().collect();
            return Err(Error::EpochMismatch { range, descriptors });
        }
        let leader = self.leaders[&range.0];
        if leader != node {
            return Err(Error::NotLeader { range, leader: Some(leader), descriptors: vec![held.clone()] });
        }
        Ok(KeyspaceId(held.keyspace_id))
    }

    /// Runs with the data of a keyspace in `data`.
    pub fn of_keyspace<A>(&mut self, keyspace: KeyspaceId, run: impl FnOnce(&mut Self) -> A) -> A {
        if keyspace == DEFAULT_KEYSPACE {
            return run(self);
        }
        let other = self.others.get_mut(&keyspace.0).expect("clients know no other keyspace");
        let default = std::mem::replace(&mut self.data, std::mem::take(other));
        let answer = run(self);
        let other = std::mem::replace(&mut self.data, default);
        self.others.insert(keyspace.0, other);
        answer
    }

    fn put(&mut self, key: Bytes, value: Bytes, ttl_ms: u64) -> v1::WriteResult {
        self.version += 1;
        self.ttls.insert(key.clone(), ttl_ms);
        let existed = self.data.insert(key, (value, self.version)).is_some();
        v1::WriteResult { applied: true, version: self.version, existed, current: None }
    }

    pub fn write(&mut self, op: v1::WriteOp) -> v1::WriteResult {
        match op.op.expect("the client names an operation") {
            Op::Put(put) => match self.data.get(&put.key) {
                Some((_, version)) if put.if_absent => {
                    v1::WriteResult { version: *version, existed: true, ..Default::default() }
                }
                _ => self.put(put.key, put.value, put.ttl_ms),
            },
            Op::Delete(delete) => {
                let existed = self.data.remove(&delete.key).is_some();
                v1::WriteResult { applied: true, existed, ..Default::default() }
            }
            Op::CompareAndSwap(swap) => self.swap(swap),
        }
    }

    fn swap(&mut self, swap: v1::CompareAndSwap) -> v1::WriteResult {
        use v1::compare_and_swap::Expect;
        let found = self.data.get(&swap.key).cloned();
        let holds = match (swap.expect.expect("the client names a condition"), &found) {
            (Expect::Value(value), Some((current, _))) => value == *current,
            (Expect::Version(version), Some((_, current))) => version == *current,
            (Expect::Absent(_), found) => found.is_none(),
            _ => false,
        };
        match (holds, swap.new_value) {
            (true, Some(value)) => self.put(swap.key, value, swap.ttl_ms),
            (true, None) => {
                self.data.remove(&swap.key);
                v1::WriteResult { applied: true, existed: true, ..Default::default() }
            }
            (false, _) => v1::WriteResult {
                version: found.as_ref().map_or(0, |(_, version)| *version),
                existed: found.is_some(),
                current: found.map(|(value, version)| v1::Record {
                    key: Bytes::new(),
                    value,
                    version,
                    ttl_remaining_ms: 0,
                }),
                applied: false,
            },
        }
    }

    pub fn read(&self, key: &Bytes) -> Option<v1::Record> {
        let (value, version) = self.data.get(key)?;
        let ttl_remaining_ms = self.ttls.get(key).copied().unwrap_or(0);
        Some(v1::Record { key: Bytes::new(), value: value.clone(), version: *version, ttl_remaining_ms })
    }

    pub fn scan(&self, scan: &v1::ScanRequest) -> v1::ScanResponse {
        let inside = |key: &Bytes| *key >= scan.start && (scan.end.is_empty() || *key < scan.end);
        let mut records: Vec<v1::Record> = self
            .data
            .iter()
            .filter(|(key, _)| inside(key))
            .map(|(key, (value, version))| v1::Record {
                key: key.clone(),
                value: value.clone(),
                version: *version,
                ttl_remaining_ms: 0,
            })
            .map(|record| if scan.keys_only { v1::Record { value: Bytes::new(), ..record } } else { record })
            .collect();
        if scan.reverse {
            records.reverse();
        }
        let limit = scan.limit as usize;
        let mut next_token = Bytes::new();
        if limit > 0 && records.len() > limit {
            next_token = if scan.reverse { records[limit - 1].key.clone() } else { records[limit].key.clone() };
            records.truncate(limit);
        }
        v1::ScanResponse { count: records.len() as u64, records, next_token, ..Default::default() }
    }
}
