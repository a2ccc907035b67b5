//! A cluster in one thread that follows the rules a range leader follows (epochs, leadership,
//! bounds) over one truth, and breaks and moves at random. What it applies is written down.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotilla_proto::{Error, NodeId, RangeId, v1};
use flotilla_router::core::CallOutcome;
use v1::request::Body;
use v1::response::Body as Answer;
use v1::write_op::Op;

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap_or(0)
    }

    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }
}

/// Keys that are there from the beginning and never deleted: k00 to k99.
pub const PRELOADED: usize = 100;

pub fn key(number: usize) -> Bytes {
    format!("k{number:02}").into()
}

struct Range {
    descriptor: v1::RangeDescriptor,
    leader: NodeId,
    term: u64,
}

pub struct Cluster {
    ranges: BTreeMap<Bytes, Range>,
    data: BTreeMap<Bytes, (Bytes, u64)>,
    last_range: u64,
    /// How often each written value was applied.
    pub applied: BTreeMap<Bytes, u32>,
    /// Values whose outcome a node itself called unknown.
    pub unknown: BTreeSet<Bytes>,
    /// No more faults, and no more moves.
    pub calm: bool,
}

impl Cluster {
    pub fn new(random: &mut Random) -> Self {
        let data = (0..PRELOADED).map(|number| (key(number), (Bytes::from(format!("{number:02}#0")), 1)));
        let mut cluster = Self {
            ranges: BTreeMap::new(),
            data: data.collect(),
            last_range: 2,
            applied: BTreeMap::new(),
            unknown: BTreeSet::new(),
            calm: false,
        };
        let descriptor = v1::RangeDescriptor {
            range_id: 2,
            keyspace_id: 1,
            epoch: Some(v1::Epoch { conf_ver: 1, version: 1 }),
            replicas: (1..=3).map(replica).collect(),
            ..Default::default()
        };
        cluster.ranges.insert(Bytes::new(), Range { descriptor, leader: NodeId(1), term: 1 });
        for _ in 0..5 {
            cluster.split(random);
        }
        cluster
    }

    /// Something changes: a leader, a border, a replica.
    pub fn shake(&mut self, random: &mut Random) {
        match random.below(6) {
            0 => self.split(random),
            1 => self.merge(random),
            2 => self.move_replica(random),
            _ => self.elect(random),
        }
    }

    fn any_start(&self, random: &mut Random) -> Bytes {
        self.ranges.keys().nth(random.below(self.ranges.len())).cloned().unwrap_or_default()
    }

    fn elect(&mut self, random: &mut Random) {
        let start = self.any_start(random);
        let range = self.ranges.get_mut(&start).expect("it was just listed");
        range.leader = NodeId(range.descriptor.replicas[random.below(3)].node_id);
        range.term += 1;
    }

    fn split(&mut self, random: &mut Random) {
        let at = key(random.below(PRELOADED));
        let (_, left) = self.ranges.range_mut(..=at.clone()).next_back().expect("the ranges tile the keyspace");
        if left.descriptor.start == at {
            return;
        }
        self.last_range += 1;
        bump(&mut left.descriptor, |epoch| epoch.version += 1);
        let child = v1::RangeDescriptor { range_id: self.last_range, start: at.clone(), ..left.descriptor.clone() };
        left.descriptor.end = at.clone();
        let leader = NodeId(child.replicas[random.below(3)].node_id);
        self.ranges.insert(at, Range { descriptor: child, leader, term: 1 });
    }

    fn merge(&mut self, random: &mut Random) {
        let start = self.any_start(random);
        if start.is_empty() {
            return;
        }
        let right = self.ranges.remove(&start).expect("it was just listed");
        let (_, left) = self.ranges.range_mut(..start).next_back().expect("there is a left neighbour");
        let version = right.descriptor.epoch.map_or(0, |epoch| epoch.version);
        bump(&mut left.descriptor, |epoch| epoch.version = epoch.version.max(version) + 1);
        left.descriptor.end = right.descriptor.end;
    }

    fn move_replica(&mut self, random: &mut Random) {
        let start = self.any_start(random);
        let range = self.ranges.get_mut(&start).expect("it was just listed");
        let nodes: BTreeSet<u64> = range.descriptor.replicas.iter().map(|replica| replica.node_id).collect();
        let new = (1..=5).find(|node| !nodes.contains(node)).expect("there are five nodes");
        let at = random.below(3);
        range.descriptor.replicas[at] = replica(new);
        bump(&mut range.descriptor, |epoch| epoch.conf_ver += 1);
        range.leader = NodeId(range.descriptor.replicas[random.below(3)].node_id);
        range.term += 1;
    }

    /// The routes as some node knows them.
    pub fn routes(&self, random: &mut Random) -> v1::ListRangesResponse {
        let status = |range: &Range| v1::RangeStatus {
            descriptor: Some(range.descriptor.clone()),
            leader_node_id: if random.percent(30) { 0 } else { range.leader.0 },
            term: range.term,
            data_bytes: 0,
        };
        v1::ListRangesResponse { ranges: self.ranges.values().map(status).collect(), ..Default::default() }
    }

    /// A node's answer.
    pub fn serve(&mut self, node: NodeId, request: v1::Request, random: &mut Random) -> CallOutcome {
        let body = self.answer(node, request.body.expect("a body"), random);
        let body = body.unwrap_or_else(|error| Answer::Error((&error).into()));
        CallOutcome::Response(v1::Response { id: request.id, body: Some(body) })
    }

    fn answer(&mut self, node: NodeId, body: Body, random: &mut Random) -> Result<Answer, Error> {
        let header = header_of(&body).expect("every request has a header").clone();
        assert!(header.range_id != 0 && header.timeout_ms > 0, "{header:?}");
        let range = RangeId(header.range_id);
        let Some(held) = self.ranges.values().find(|held| held.descriptor.range_id == range.0) else {
            return Err(Error::RangeNotFound { range });
        };
        if !held.descriptor.replicas.iter().any(|replica| replica.node_id == node.0) {
            return Err(Error::RangeNotFound { range });
        }
        let version = |epoch: Option<v1::Epoch>| epoch.map(|epoch| epoch.version);
        if version(header.epoch) != version(held.descriptor.epoch) {
            let descriptors = if random.percent(50) { vec![] } else { self.descriptors() };
            return Err(Error::EpochMismatch { range, descriptors });
        }
        let stale = header.consistency == i32::from(v1::ReadConsistency::Stale);
        let needs_leader = !stale || matches!(body, Body::Write(_));
        if needs_leader && held.leader != node {
            let guess = NodeId(1 + random.next() % 5);
            let told = [None, Some(held.leader), Some(held.leader), Some(guess)][random.below(4)];
            let leader = if self.calm { Some(held.leader) } else { told };
            return Err(Error::NotLeader { range, leader, descriptors: vec![held.descriptor.clone()] });
        }
        let descriptor = held.descriptor.clone();
        let response = v1::ResponseHeader { node_id: node.0, term: held.term, ..Default::default() };
        if !self.calm && random.percent(10) {
            return Err(refusal(random));
        }
        self.carry_out(body, &descriptor, response, random)
    }

    fn carry_out(
        &mut self,
        body: Body,
        descriptor: &v1::RangeDescriptor,
        header: v1::ResponseHeader,
        random: &mut Random,
    ) -> Result<Answer, Error> {
        let header = Some(header);
        match body {
            Body::Get(get) => Ok(Answer::Get(v1::GetResponse { header, record: self.read(&get.key, descriptor) })),
            Body::MultiGet(get) => {
                let read = |key| v1::MultiGetResult { record: self.read(key, descriptor) };
                Ok(Answer::MultiGet(v1::MultiGetResponse { header, results: get.keys.iter().map(read).collect() }))
            }
            Body::Scan(scan) => Ok(Answer::Scan(v1::ScanResponse { header, ..self.scan(&scan, descriptor, random) })),
            Body::Write(batch) => self.write(batch, header, descriptor, random),
        }
    }

    fn read(&self, key: &Bytes, descriptor: &v1::RangeDescriptor) -> Option<v1::Record> {
        assert!(contains(descriptor, key), "{key:?} is not in {descriptor:?}");
        let (value, version) = self.data.get(key)?;
        Some(v1::Record { key: Bytes::new(), value: value.clone(), version: *version, ttl_remaining_ms: 0 })
    }

    fn write(
        &mut self,
        batch: v1::BatchRequest,
        header: Option<v1::ResponseHeader>,
        descriptor: &v1::RangeDescriptor,
        random: &mut Random,
    ) -> Result<Answer, Error> {
        let unknown = !self.calm && random.percent(4);
        if unknown {
            self.unknown.extend(batch.ops.iter().map(|op| put_of(op).value.clone()));
            if random.percent(50) {
                return Err(Error::Ambiguous { reason: "the leader stepped down".into() });
            }
        }
        let refused = !self.calm && !batch.atomic && random.percent(10);
        let mut results = vec![];
        for op in &batch.ops {
            let put = put_of(op);
            assert!(contains(descriptor, &put.key), "{:?} is not in {descriptor:?}", put.key);
            let outcome = if refused && random.percent(50) {
                v1::batch_result::Outcome::Error((&refusal(random)).into())
            } else {
                v1::batch_result::Outcome::Result(self.apply(put))
            };
            results.push(v1::BatchResult { outcome: Some(outcome) });
        }
        if unknown {
            return Err(Error::Ambiguous { reason: "the leader stepped down".into() });
        }
        Ok(Answer::Write(v1::BatchResponse { header, results }))
    }

    fn apply(&mut self, put: &v1::Put) -> v1::WriteResult {
        *self.applied.entry(put.value.clone()).or_default() += 1;
        let record = self.data.entry(put.key.clone()).or_default();
        *record = (put.value.clone(), record.1 + 1);
        v1::WriteResult { applied: true, version: record.1, ..Default::default() }
    }

    fn scan(&self, scan: &v1::ScanRequest, range: &v1::RangeDescriptor, random: &mut Random) -> v1::ScanResponse {
        assert!(scan.token.is_empty() && scan.start >= range.start && scan.limit > 0);
        assert!(
            range.end.is_empty() || (!scan.end.is_empty() && scan.end <= range.end),
            "{scan:?} is not in {range:?}"
        );
        let inside = |key: &&Bytes| **key >= scan.start && (scan.end.is_empty() || **key < scan.end);
        let mut keys: Vec<&Bytes> = self.data.keys().filter(inside).collect();
        if scan.reverse {
            keys.reverse();
        }
        // A node may stop earlier than it must.
        let limit = if random.percent(20) { 1 } else { scan.limit as usize };
        let mut answer = v1::ScanResponse::default();
        if keys.len() > limit {
            answer.next_token = if scan.reverse { keys[limit - 1].clone() } else { keys[limit].clone() };
            keys.truncate(limit);
        }
        answer.count = keys.len() as u64;
        if !scan.count_only {
            let record = |key: &&Bytes| {
                let (value, version) = &self.data[*key];
                v1::Record { key: (*key).clone(), value: value.clone(), version: *version, ttl_remaining_ms: 0 }
            };
            answer.records = keys.iter().map(record).collect();
        }
        answer
    }

    fn descriptors(&self) -> Vec<v1::RangeDescriptor> {
        self.ranges.values().map(|range| range.descriptor.clone()).collect()
    }
}

/// An error that says: surely not applied, try again.
fn refusal(random: &mut Random) -> Error {
    match random.below(4) {
        0 => Error::ServerBusy { reason: "full".into(), retry_after_ms: random.next() % 50 },
        1 => Error::Unavailable { reason: "stopping".into() },
        2 => Error::DiskFull { nodes: vec![] },
        _ => Error::Timeout { stage: "in the queue".into() },
    }
}

fn replica(node: u64) -> v1::ReplicaDescriptor {
    v1::ReplicaDescriptor { replica_id: node, node_id: node, role: 0 }
}

fn bump(descriptor: &mut v1::RangeDescriptor, change: impl Fn(&mut v1::Epoch)) {
    let mut epoch = descriptor.epoch.unwrap_or_default();
    change(&mut epoch);
    descriptor.epoch = Some(epoch);
}

fn contains(descriptor: &v1::RangeDescriptor, key: &Bytes) -> bool {
    *key >= descriptor.start && (descriptor.end.is_empty() || *key < descriptor.end)
}

pub fn put_of(op: &v1::WriteOp) -> &v1::Put {
    match &op.op {
        Some(Op::Put(put)) => put,
        other => panic!("{other:?}"),
    }
}

fn header_of(body: &Body) -> Option<&v1::RequestHeader> {
    match body {
        Body::Get(request) => request.header.as_ref(),
        Body::MultiGet(request) => request.header.as_ref(),
        Body::Write(request) => request.header.as_ref(),
        Body::Scan(request) => request.header.as_ref(),
    }
}
