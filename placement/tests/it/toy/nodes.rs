//! Nodes: they report what changed since the last report that was answered, and do what the answers say.

use std::collections::BTreeMap;

use flotilla_placement::{Request, Response};
use flotilla_proto::v1;

use super::{CLUSTER, Group, Toy};

#[derive(Clone, Debug)]
pub struct Node {
    pub id: u64,
    pub store: u64,
    pub up: bool,
    pub full: bool,
    pub boot: u64,
    pub sequence: u64,
    /// Replica id, and the descriptor as applied.
    pub replicas: BTreeMap<u64, (u64, v1::RangeDescriptor)>,
    pub tombstones: BTreeMap<u64, u64>,
    pub routes: BTreeMap<u64, v1::RangeStatus>,
    pub ids: Vec<u64>,
    pub keyspaces: Vec<v1::Keyspace>,
    reign: u64,
    table_sequence: u64,
    full_wanted: bool,
    answered: BTreeMap<u64, v1::RangeReport>,
}

impl Node {
    pub fn new(id: u64, store: u64) -> Self {
        Self {
            id,
            store,
            up: true,
            full: false,
            boot: 1,
            sequence: 0,
            replicas: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            routes: BTreeMap::new(),
            ids: Vec::new(),
            keyspaces: Vec::new(),
            reign: 0,
            table_sequence: 0,
            full_wanted: true,
            answered: BTreeMap::new(),
        }
    }

    /// Its process ends and begins again.
    pub fn restart(&mut self) {
        self.up = true;
        self.boot += 1;
        self.sequence = 0;
        (self.reign, self.table_sequence, self.full_wanted) = (0, 0, true);
        self.ids.clear();
        self.answered.clear();
        self.routes.clear();
    }

    pub fn remove(&mut self, range: u64, replica_id: u64) {
        let gone = self.tombstones.entry(range).or_default();
        *gone = (*gone).max(replica_id);
        if self.replicas.get(&range).is_some_and(|(own, _)| *own <= replica_id) {
            self.replicas.remove(&range);
        }
    }
}

impl Toy {
    fn range_reports(&self, node: &Node) -> BTreeMap<u64, v1::RangeReport> {
        let report = |(range, (replica_id, descriptor)): (&u64, &(u64, v1::RangeDescriptor))| {
            let group = self.groups.get(range);
            let leads = group.is_some_and(|group| group.leader == node.id && self.is_up(node.id));
            let led = |group: &Group| v1::RangeReport {
                descriptor: Some(descriptor.clone()),
                replica_id: *replica_id,
                term: group.term,
                leader_node_id: group.leader,
                data_bytes: group.bytes,
                level_nodes: if leads { group.voters() } else { Vec::new() },
                order_id: group.order.as_ref().filter(|_| leads).map_or(0, |order| order.order_id),
                ..Default::default()
            };
            let alone = || v1::RangeReport {
                descriptor: Some(descriptor.clone()),
                replica_id: *replica_id,
                ..Default::default()
            };
            (*range, group.map_or_else(alone, led))
        };
        node.replicas.iter().map(report).collect()
    }

    pub fn report_of(&self, node: u64) -> v1::ReportRequest {
        let node = &self.nodes[&node];
        let now = self.range_reports(node);
        let changed =
            |(range, report): &(u64, v1::RangeReport)| node.full_wanted || node.answered.get(range) != Some(report);
        let gone = node.answered.keys().filter(|range| !now.contains_key(range)).copied().collect();
        v1::ReportRequest {
            cluster_id: CLUSTER,
            node: Some(v1::NodeInfo {
                node_id: node.id,
                boot_id: node.boot,
                disk_full: node.full,
                peer_addr: format!("n{}:{}", node.id, node.boot),
                ..Default::default()
            }),
            store_id: node.store,
            sequence: node.sequence,
            reign: node.reign,
            full: node.full_wanted,
            ranges: now.into_iter().filter(changed).map(|(_, report)| report).collect(),
            gone,
            wants_range_ids: node.ids.len() < 3,
            table_sequence: node.table_sequence,
            ..Default::default()
        }
    }

    /// One report and its answer, with what goes wrong between.
    pub fn exchange(&mut self, node: u64) {
        if let Some(node) = self.nodes.get_mut(&node) {
            node.sequence += 1;
        }
        let report = self.report_of(node);
        if self.rng.percent(self.faults.report_lost) {
            return;
        }
        if self.rng.percent(self.faults.report_late) {
            self.late.push(report);
            return;
        }
        if self.rng.percent(self.faults.report_twice) {
            self.late.push(report.clone());
        }
        let token = self.send(Request::Report(Box::new(report)));
        let Some(answer) = self.answers.remove(&token) else { return };
        let Ok(Response::Report(answer)) = answer else { return };
        if self.rng.percent(self.faults.answer_lost) {
            return;
        }
        self.take_answer(node, *answer);
    }

    fn take_answer(&mut self, id: u64, answer: v1::ReportResponse) {
        let reports = self.range_reports(&self.nodes[&id]);
        if answer.range_ids != 0 {
            self.ids_given.push((answer.first_range_id, u64::from(answer.range_ids)));
        }
        let offered: Vec<u64> = self.service.keyspaces().iter().map(|keyspace| keyspace.keyspace_id).collect();
        let node = self.nodes.get_mut(&id).expect("it reported");
        node.answered = reports;
        node.reign = answer.reign;
        node.full_wanted = answer.send_full;
        node.table_sequence = answer.table_sequence;
        node.keyspaces = answer.keyspaces;
        node.ids.extend(answer.first_range_id..answer.first_range_id + u64::from(answer.range_ids));
        for removed in answer.removed {
            let named = self.groups.get(&removed.range_id).is_some_and(|group| {
                let dropped = group.descriptor.keyspace_id < 1_000 && !offered.contains(&group.descriptor.keyspace_id);
                if dropped {
                    return false;
                }
                let replicas = &group.descriptor.replicas;
                replicas.iter().any(|replica| replica.node_id == id && replica.replica_id <= removed.replica_id)
            });
            assert!(!named, "node {id} is told to remove a replica of range {} that it has", removed.range_id);
            node.remove(removed.range_id, removed.replica_id);
        }
        if answer.table_full {
            node.routes.clear();
        }
        for range in answer.gone_ranges {
            node.routes.remove(&range);
        }
        for route in answer.routes {
            node.routes.insert(route.descriptor.as_ref().expect("a descriptor").range_id, route);
        }
        for descriptor in answer.births {
            let range = descriptor.range_id;
            if !node.replicas.contains_key(&range) && !node.tombstones.contains_key(&range) {
                assert!(!self.groups.contains_key(&range), "range {range} is born twice");
                node.replicas.insert(range, (1, descriptor.clone()));
                self.groups.insert(range, Group::new(descriptor, id));
            }
        }
        for order in answer.orders {
            let Some(group) = self.groups.get_mut(&order.range_id).filter(|group| group.leader == id) else { continue };
            group.order = (order.order_id != 0).then_some(order);
        }
    }

    /// Keyspaces that are gone take their ranges with them once no node has a replica any more.
    pub fn bury(&mut self, keyspace: u64) {
        let nodes = &self.nodes;
        self.groups.retain(|range, group| {
            let held = nodes.values().any(|node| node.replicas.contains_key(range));
            group.descriptor.keyspace_id != keyspace || held
        });
    }
}
