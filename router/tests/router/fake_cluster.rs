//! A cluster in one thread that follows the rules a range leader follows (epochs, leadership,
//! bounds) over one truth, and breaks and moves at random. What it applies is written down.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotilla_proto::{Error, NodeId, RangeId, v1};
use flotilla_router::core::{CallOutcome, header_of};
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

/// The keyspaces: ids and names.
pub const KEYSPACES: [(u64, &str); 2] = [(1, ""), (5, "jobs")];

const NODES: u64 = 5;

struct Range {
    descriptor: v1::RangeDescriptor,
    leader: NodeId,
    term: u64,
    /// A follower that has not applied the last split, and what it still holds; `None`: it has no
    /// replica of this range yet.
    behind: Option<(NodeId, Option<v1::RangeDescriptor>)>,
}

/// A keyspace and a key: ranges are kept by their first one.
type Place = (u64, Bytes);

pub struct Cluster {
    ranges: BTreeMap<Place, Range>,
    data: BTreeMap<Place, (Bytes, u64)>,
    last_range: u64,
    /// What nodes' tables were at earlier times.
    tables: Vec<v1::ListRangesResponse>,
    /// How often each written value was applied.
    pub applied: BTreeMap<Bytes, u32>,
    /// Values whose outcome a node itself called unknown.
    pub unknown: BTreeSet<Bytes>,
    /// Nodes refuse, guess and forget.
    pub faults: bool,
    /// Ranges split, merge and move, leaders change.
    pub moves: bool,
}

impl Cluster {
    pub fn new(random: &mut Random) -> Self {
        let mut cluster = Self {
            ranges: BTreeMap::new(),
            data: BTreeMap::new(),
            last_range: 1,
            tables: vec![],
            applied: BTreeMap::new(),
            unknown: BTreeSet::new(),
            faults: true,
            moves: true,
        };
        for (keyspace_id, _) in KEYSPACES {
            cluster.last_range += 1;
            let descriptor = v1::RangeDescriptor {
                range_id: cluster.last_range,
                keyspace_id,
                epoch: Some(v1::Epoch { conf_ver: 1, version: 1 }),
                replicas: (1..=3).map(|node| replica(node, v1::ReplicaRole::Voter)).collect(),
                ..Default::default()
            };
            let range = Range { descriptor, leader: NodeId(1), term: 1, behind: None };
            cluster.ranges.insert((keyspace_id, Bytes::new()), range);
            let value = |number| (Bytes::from(format!("{number:02}#0")), 1);
            cluster.data.extend((0..PRELOADED).map(|number| ((keyspace_id, key(number)), value(number))));
        }
        for _ in 0..8 {
            cluster.split(random);
        }
        cluster
    }

    /// Something changes: a leader, a border, a replica.
    pub fn shake(&mut self, random: &mut Random) {
        self.tables.push(self.table(random));
        match random.below(8) {
            0 | 1 => self.split(random),
            2 => self.merge(random),
            3..6 => self.move_replica(random),
            _ => self.elect(random),
        }
    }

    fn any_start(&self, random: &mut Random) -> Place {
        self.ranges.keys().nth(random.below(self.ranges.len())).cloned().unwrap_or_default()
    }

    fn elect(&mut self, random: &mut Random) {
        let start = self.any_start(random);
        self.ranges.get_mut(&start).expect("it was just listed").elect(random);
    }

    fn split(&mut self, random: &mut Random) {
        let at = (KEYSPACES[random.below(KEYSPACES.len())].0, key(random.below(PRELOADED)));
        let (_, left) = self.ranges.range_mut(..=at.clone()).next_back().expect("the ranges tile the keyspace");
        if left.descriptor.start == at.1 {
            return;
        }
        self.last_range += 1;
        let before = left.descriptor.clone();
        bump(&mut left.descriptor, |epoch| epoch.version += 1);
        let child = v1::RangeDescriptor { range_id: self.last_range, start: at.1.clone(), ..left.descriptor.clone() };
        left.descriptor.end = at.1.clone();
        let mut child = Range { descriptor: child, leader: left.leader, term: 1, behind: None };
        if random.percent(50) {
            child.elect(random);
        }
        let follower = NodeId(left.descriptor.replicas[random.below(left.descriptor.replicas.len())].node_id);
        if follower != left.leader && follower != child.leader {
            left.behind = Some((follower, Some(before)));
            child.behind = Some((follower, None));
        }
        self.ranges.insert(at, child);
    }

    fn merge(&mut self, random: &mut Random) {
        let start = self.any_start(random);
        if start.1.is_empty() {
            return;
        }
        let right = self.ranges.remove(&start).expect("it was just listed");
        let (_, left) = self.ranges.range_mut(..start).next_back().expect("there is a left neighbour");
        let version = right.descriptor.epoch.map_or(0, |epoch| epoch.version);
        bump(&mut left.descriptor, |epoch| epoch.version = epoch.version.max(version) + 1);
        left.descriptor.end = right.descriptor.end;
        left.behind = None;
    }

    /// One step of a move: a learner, a joint configuration, its end.
    fn move_replica(&mut self, random: &mut Random) {
        let start = self.any_start(random);
        self.ranges.get_mut(&start).expect("it was just listed").move_replica(random);
    }

    fn table(&self, random: &mut Random) -> v1::ListRangesResponse {
        let status = |range: &Range| v1::RangeStatus {
            descriptor: Some(range.descriptor.clone()),
            leader_node_id: if random.percent(30) { 0 } else { range.leader.0 },
            term: range.term,
            ..Default::default()
        };
        let keyspace = |(keyspace_id, name): (u64, &str)| v1::Keyspace {
            keyspace_id,
            name: if name.is_empty() { "default".into() } else { name.into() },
            ..Default::default()
        };
        let keyspaces = KEYSPACES.map(keyspace).to_vec();
        v1::ListRangesResponse { ranges: self.ranges.values().map(status).collect(), keyspaces, ..Default::default() }
    }

    /// The routes as some node knows them: it may be behind.
    pub fn routes(&self, random: &mut Random) -> v1::ListRangesResponse {
        if random.percent(30) && !self.tables.is_empty() {
            let latest = self.tables.len().saturating_sub(4);
            return self.tables[latest + random.below(self.tables.len() - latest)].clone();
        }
        self.table(random)
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
        let descriptor = match &held.behind {
            Some((behind, None)) if *behind == node => return Err(Error::RangeNotFound { range }),
            Some((behind, Some(before))) if *behind == node => before.clone(),
            _ => held.descriptor.clone(),
        };
        let version = |epoch: Option<v1::Epoch>| epoch.map(|epoch| epoch.version);
        if version(header.epoch) != version(descriptor.epoch) {
            let is_behind = descriptor != held.descriptor;
            let descriptors = match random.below(3) {
                _ if is_behind => vec![descriptor],
                0 if self.faults => vec![],
                1 => self.descriptors(descriptor.keyspace_id),
                _ => vec![descriptor],
            };
            return Err(Error::EpochMismatch { range, descriptors });
        }
        let stale = header.consistency == i32::from(v1::ReadConsistency::Stale);
        let needs_leader = !stale || matches!(body, Body::Write(_));
        if needs_leader && held.leader != node {
            let guess = NodeId(1 + random.next() % NODES);
            let told = [None, Some(held.leader), Some(held.leader), Some(guess)][random.below(4)];
            let leader = if self.faults { told } else { Some(held.leader) };
            return Err(Error::NotLeader { range, leader, descriptors: vec![descriptor] });
        }
        let response = v1::ResponseHeader { node_id: node.0, term: held.term, ..Default::default() };
        if self.faults && random.percent(10) {
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
        let (value, version) = self.data.get(&(descriptor.keyspace_id, key.clone()))?;
        Some(v1::Record { key: Bytes::new(), value: value.clone(), version: *version, ttl_remaining_ms: 0 })
    }

    fn write(
        &mut self,
        batch: v1::BatchRequest,
        header: Option<v1::ResponseHeader>,
        descriptor: &v1::RangeDescriptor,
        random: &mut Random,
    ) -> Result<Answer, Error> {
        let unknown = self.faults && random.percent(4);
        if unknown {
            self.unknown.extend(batch.ops.iter().map(|op| put_of(op).value.clone()));
            if random.percent(50) {
                return Err(Error::Ambiguous { reason: "the leader stepped down".into() });
            }
        }
        let refused = self.faults && !batch.atomic && random.percent(10);
        let mut results = vec![];
        for op in &batch.ops {
            let put = put_of(op);
            assert!(contains(descriptor, &put.key), "{:?} is not in {descriptor:?}", put.key);
            let outcome = if refused && random.percent(50) {
                v1::batch_result::Outcome::Error((&refusal(random)).into())
            } else {
                v1::batch_result::Outcome::Result(self.apply(descriptor.keyspace_id, put))
            };
            results.push(v1::BatchResult { outcome: Some(outcome) });
        }
        if unknown {
            return Err(Error::Ambiguous { reason: "the leader stepped down".into() });
        }
        Ok(Answer::Write(v1::BatchResponse { header, results }))
    }

    fn apply(&mut self, keyspace: u64, put: &v1::Put) -> v1::WriteResult {
        *self.applied.entry(put.value.clone()).or_default() += 1;
        let record = self.data.entry((keyspace, put.key.clone())).or_default();
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
        let places = self.data.keys().filter(|(keyspace, _)| *keyspace == range.keyspace_id);
        let mut keys: Vec<&Bytes> = places.map(|(_, key)| key).filter(inside).collect();
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
                let (value, version) = &self.data[&(range.keyspace_id, (*key).clone())];
                v1::Record { key: (*key).clone(), value: value.clone(), version: *version, ttl_remaining_ms: 0 }
            };
            answer.records = keys.iter().map(record).collect();
        }
        answer
    }

    fn descriptors(&self, keyspace: u64) -> Vec<v1::RangeDescriptor> {
        let ranges = self.ranges.range((keyspace, Bytes::new())..(keyspace + 1, Bytes::new()));
        ranges.map(|(_, range)| range.descriptor.clone()).collect()
    }
}

impl Range {
    fn elect(&mut self, random: &mut Random) {
        let may_lead = |replica: &&v1::ReplicaDescriptor| replica.role() != v1::ReplicaRole::Learner;
        let voters: Vec<u64> =
            self.descriptor.replicas.iter().filter(may_lead).map(|replica| replica.node_id).collect();
        self.leader = NodeId(voters[random.below(voters.len())]);
        self.term += 1;
        // Whoever leads has applied all.
        self.behind = self.behind.take().filter(|(node, _)| *node != self.leader);
    }

    fn move_replica(&mut self, random: &mut Random) {
        use v1::ReplicaRole::{Learner, Voter, VoterIncoming, VoterOutgoing};
        bump(&mut self.descriptor, |epoch| epoch.conf_ver += 1);
        self.behind = None;
        let replicas = &mut self.descriptor.replicas;
        let has = |replicas: &[v1::ReplicaDescriptor], role| replicas.iter().any(|replica| replica.role() == role);
        if has(replicas, VoterOutgoing) {
            replicas.retain(|replica| replica.role() != VoterOutgoing);
            replicas.iter_mut().for_each(|replica| replica.set_role(Voter));
            if !replicas.iter().any(|replica| replica.node_id == self.leader.0) {
                self.elect(random);
            }
        } else if has(replicas, Learner) {
            let outgoing = random.below(3);
            replicas[outgoing].set_role(VoterOutgoing);
            replicas[3].set_role(VoterIncoming);
            self.elect(random);
        } else {
            let free = |node: &u64| !replicas.iter().any(|replica| replica.node_id == *node);
            let node = (1..=NODES).find(free).expect("there are more nodes than replicas");
            replicas.push(replica(node, Learner));
        }
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

fn replica(node: u64, role: v1::ReplicaRole) -> v1::ReplicaDescriptor {
    v1::ReplicaDescriptor { replica_id: node, node_id: node, role: role.into() }
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
