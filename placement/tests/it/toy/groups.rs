//! Ranges: their real replicas and leaders, and how they carry out orders, one change in a step.

use std::collections::BTreeSet;

use flotilla_proto::v1;

use super::Toy;

#[derive(Clone, Debug)]
pub struct Group {
    pub descriptor: v1::RangeDescriptor,
    /// 0: none.
    pub leader: u64,
    pub term: u64,
    pub order: Option<v1::RangeOrder>,
    /// Learners that have caught up.
    pub level: BTreeSet<u64>,
    pub bytes: u64,
}

impl Group {
    pub fn new(descriptor: v1::RangeDescriptor, leader: u64) -> Self {
        Self { descriptor, leader, term: 1, order: None, level: BTreeSet::new(), bytes: 1_000 }
    }

    pub fn is_simple(&self) -> bool {
        self.descriptor.replicas.iter().all(|replica| replica.role() == v1::ReplicaRole::Voter)
    }

    pub fn is_joint(&self) -> bool {
        let joint = [v1::ReplicaRole::VoterIncoming, v1::ReplicaRole::VoterOutgoing];
        self.descriptor.replicas.iter().any(|replica| joint.contains(&replica.role()))
    }

    pub fn holds(&self, node: u64) -> bool {
        self.descriptor.replicas.iter().any(|replica| replica.node_id == node)
    }

    fn nodes_with(&self, roles: &[v1::ReplicaRole]) -> Vec<u64> {
        let replicas = self.descriptor.replicas.iter().filter(|replica| roles.contains(&replica.role()));
        replicas.map(|replica| replica.node_id).collect()
    }

    pub fn voters(&self) -> Vec<u64> {
        self.nodes_with(&[v1::ReplicaRole::Voter, v1::ReplicaRole::VoterIncoming])
    }

    fn old_voters(&self) -> Vec<u64> {
        self.nodes_with(&[v1::ReplicaRole::Voter, v1::ReplicaRole::VoterOutgoing])
    }

    fn changed(&mut self) {
        self.descriptor.epoch.as_mut().expect("an epoch").conf_ver += 1;
    }

    fn set_role(&mut self, node: u64, role: v1::ReplicaRole) {
        let replica = self.descriptor.replicas.iter_mut().find(|replica| replica.node_id == node);
        replica.expect("a replica there").set_role(role);
    }
}

impl Toy {
    pub fn is_up(&self, node: u64) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.up)
    }

    fn has_quorum(&self, group: &Group) -> bool {
        [group.voters(), group.old_voters()].iter().all(|half| {
            let up = half.iter().filter(|node| self.is_up(**node) && self.has_replica(**node, group)).count();
            up * 2 > half.len()
        })
    }

    fn has_replica(&self, node: u64, group: &Group) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.replicas.contains_key(&group.descriptor.range_id))
    }

    pub fn change_groups(&mut self) {
        let ranges: Vec<u64> = self.groups.keys().copied().collect();
        for range in ranges {
            let mut group = self.groups[&range].clone();
            if !self.has_quorum(&group) {
                if !self.is_up(group.leader) {
                    (group.leader, group.order) = (0, None);
                }
                self.groups.insert(range, group);
                continue;
            }
            if !self.is_up(group.leader) || !group.holds(group.leader) {
                let mut voters = group.voters();
                voters.retain(|node| self.is_up(*node) && self.has_replica(*node, &group));
                (group.leader, group.term, group.order) = (voters[0], group.term + 1, None);
            }
            for node in group.voters() {
                self.catch_up(node, &mut group);
            }
            self.carry_out(&mut group);
            self.spread(&group);
            self.groups.insert(range, group);
        }
    }

    /// A replica that is named and missing comes into being by a snapshot.
    fn catch_up(&mut self, node: u64, group: &mut Group) {
        let descriptor = group.descriptor.clone();
        let replica = descriptor.replicas.iter().find(|replica| replica.node_id == node).expect("named");
        let Some(host) = self.nodes.get_mut(&node).filter(|host| host.up) else { return };
        let range = descriptor.range_id;
        if host.tombstones.get(&range).is_none_or(|gone| *gone < replica.replica_id) {
            host.replicas.insert(range, (replica.replica_id, descriptor));
            group.level.insert(node);
        }
    }

    /// The next step of the group's order, or out of a joint state.
    fn carry_out(&mut self, group: &mut Group) {
        if group.is_joint() {
            self.leave_joint(group);
            return;
        }
        let Some(order) = group.order.clone() else { return };
        let missing = order.add_nodes.iter().find(|node| !group.holds(**node));
        if let Some(node) = missing {
            let replica_id = group.descriptor.next_replica_id;
            group.descriptor.next_replica_id += 1;
            group.level.remove(node);
            group.descriptor.replicas.push(v1::ReplicaDescriptor {
                replica_id,
                node_id: *node,
                role: v1::ReplicaRole::Learner.into(),
            });
            group.changed();
            return;
        }
        let voters = group.voters();
        let learners: Vec<u64> = order.add_nodes.iter().copied().filter(|node| !voters.contains(node)).collect();
        if let Some(node) = learners.iter().copied().find(|node| !group.level.contains(node)) {
            self.catch_up(node, group);
            return;
        }
        let removes: Vec<u64> = order.remove_nodes.iter().copied().filter(|node| group.holds(*node)).collect();
        if removes.contains(&group.leader) || (order.leader_node_id != 0 && order.leader_node_id != group.leader) {
            self.hand_over(group, &order, &removes);
        } else if !learners.is_empty() || !removes.is_empty() {
            self.enter_joint(group, &learners, &removes);
        } else {
            group.order = None;
        }
    }

    fn hand_over(&mut self, group: &mut Group, order: &v1::RangeOrder, removes: &[u64]) {
        let fit = |node: &u64| !removes.contains(node) && self.is_up(*node);
        let to = if order.leader_node_id != 0 { vec![order.leader_node_id] } else { group.voters() };
        if let Some(to) = to.into_iter().filter(|node| group.voters().contains(node)).find(fit) {
            (group.leader, group.term, group.order) = (to, group.term + 1, None);
        } else if let Some(learner) = order.add_nodes.iter().find(|node| !group.voters().contains(node)) {
            // Alone, it lets the new one vote first.
            self.enter_joint(group, &[*learner], &[]);
        }
    }

    fn enter_joint(&mut self, group: &mut Group, promote: &[u64], remove: &[u64]) {
        let voters = group.voters();
        let wanted = group.order.as_ref().map_or(0, |order| order.replicas as usize);
        let removed = remove.iter().filter(|node| voters.contains(node)).count();
        if voters.len() + promote.len() < voters.len().min(wanted) + removed {
            self.refused += 1;
            return;
        }
        for node in promote {
            group.set_role(*node, v1::ReplicaRole::VoterIncoming);
        }
        for node in remove {
            if voters.contains(node) {
                group.set_role(*node, v1::ReplicaRole::VoterOutgoing);
            } else {
                group.descriptor.replicas.retain(|replica| replica.node_id != *node);
            }
        }
        group.changed();
    }

    fn leave_joint(&mut self, group: &mut Group) {
        let outgoing = group.nodes_with(&[v1::ReplicaRole::VoterOutgoing]);
        group.descriptor.replicas.retain(|replica| !outgoing.contains(&replica.node_id));
        for node in group.nodes_with(&[v1::ReplicaRole::VoterIncoming]) {
            group.set_role(node, v1::ReplicaRole::Voter);
        }
        group.changed();
    }

    /// Replicas apply what happened; one that was removed goes, or misses that it was.
    fn spread(&mut self, group: &Group) {
        let range = group.descriptor.range_id;
        for node in self.nodes.values_mut().filter(|node| node.up) {
            let Some((replica_id, known)) = node.replicas.get_mut(&range) else { continue };
            let own = *replica_id;
            let named = group.descriptor.replicas.iter().any(|replica| replica.replica_id == own);
            if named {
                if node.id == group.leader || self.rng.percent(70) {
                    *known = group.descriptor.clone();
                }
            } else if !self.rng.percent(self.faults.removal_missed) && known.epoch != group.descriptor.epoch {
                node.remove(range, own);
            }
        }
    }

    /// Cuts a range in two, with an id of its leader's block; whether there was one.
    pub fn split(&mut self, range: u64) -> bool {
        let group = self.groups[&range].clone();
        let Some(leader) = self.nodes.get_mut(&group.leader).filter(|node| node.up) else { return false };
        let start = group.descriptor.start.to_vec();
        let end = &group.descriptor.end;
        let cut = |byte: u8| [&start[..], &[byte]].concat();
        let within = |at: &Vec<u8>| end.is_empty() || at[..] < end[..];
        let Some(at) = [b'm', b'C', b'0', 0].into_iter().map(cut).find(within) else { return false };
        if group.is_joint() || leader.ids.is_empty() || range == 1 {
            return false;
        }
        let id = leader.ids.remove(0);
        assert!(!self.groups.contains_key(&id), "range id {id} was given out twice");
        let mut left = group.clone();
        left.descriptor.end = at.clone().into();
        left.descriptor.epoch.as_mut().expect("an epoch").version += 1;
        let mut right = group.clone();
        right.descriptor.range_id = id;
        right.descriptor.start = at.into();
        right.descriptor.epoch = left.descriptor.epoch;
        right.order = None;
        for replica in &group.descriptor.replicas {
            let Some(node) = self.nodes.get_mut(&replica.node_id) else { continue };
            if node.replicas.contains_key(&range) {
                node.replicas.insert(range, (replica.replica_id, left.descriptor.clone()));
                node.replicas.insert(id, (replica.replica_id, right.descriptor.clone()));
            }
        }
        self.groups.insert(range, left);
        self.groups.insert(id, right);
        true
    }
}
