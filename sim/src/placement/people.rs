//! What happens around placement: stores join, a node is lost for good, people create and drop keyspaces, drain nodes,
//! and move replicas.

use std::sync::Arc;

use flotilla_engine::bootstrap::{self, Birth};
use flotilla_engine::membership;
use flotilla_placement::{Request, Response};
use flotilla_proto::ids::{DEFAULT_KEYSPACE, SYSTEM_KEYSPACE, SYSTEM_RANGE};
use flotilla_proto::{Error, NodeId, RangeId, Result, v1};

use super::ask::Asker;
use super::{Placed, Real, Slot};
use crate::clock::{Nanos, ms};
use crate::cluster::Cluster;
use crate::disk::SimDisk;
use crate::marks::Mark;
use crate::schedule::Event;

/// Keyspaces beside the default one that there are at once, at most.
const YOUNG_MAX: usize = 3;
/// So long must a range have its replicas before one of them is lost: long enough that each has written it.
const STEADY: Nanos = ms(4_000);

impl Real {
    /// The next store's id.
    pub(super) fn new_store(&mut self) -> u64 {
        self.stores += 1;
        self.joining.insert(self.stores, ());
        self.stores
    }

    /// Whether a store is on its way in.
    pub(crate) fn awaits_nodes(&self) -> bool {
        !self.joining.is_empty()
    }

    /// Whether the node is lost for good.
    #[cfg(test)]
    pub(crate) fn is_lost(&self, node: u64) -> bool {
        matches!(self.slots[node as usize - 1], Slot::Lost(_))
    }

    fn draining(&self) -> Option<u64> {
        self.ledger.nodes.values().find(|node| node.draining && !node.removed).map(|node| node.node_id)
    }

    /// The nodes whose disks are there.
    pub(crate) fn members(&self) -> Vec<u64> {
        (1..=self.slots.len() as u64).filter(|node| self.is_node_member(*node)).collect()
    }
}

impl Cluster {
    pub(super) fn join(&mut self, store: u64) {
        let Some(real) = &self.real else { return };
        if !real.joining.contains_key(&store) {
            return;
        }
        if self.may_forget_nodes() {
            return self.schedule.at(self.now + ms(700), Event::Placed(Placed::Join(store)));
        }
        let request = v1::JoinRequest {
            store_id: store,
            peer_addr: format!("sim:{store}"),
            client_addr: format!("sim:{store}"),
            protocol_min: 1,
            protocol_max: 1,
            ..Default::default()
        };
        let to = self.some_member(None);
        self.ask_placement(Asker::Joiner(store), to, Request::Join(request), ms(3_000));
    }

    pub(super) fn join_answered(&mut self, store: u64, result: Result<Response>) {
        let Some(real) = &mut self.real else { return };
        if !real.joining.contains_key(&store) {
            return;
        }
        match result {
            Ok(Response::Join(answer)) => self.settle_in(store, answer),
            other => {
                self.marks.hit(Mark::JoinRepeated);
                self.trace.say(self.now, || format!("store {store} could not join: {other:?}"));
                let at = self.now + real.rng.between(ms(50), ms(800));
                // Whoever was about to join may be wiped, and try as another.
                let again = real.rng.chance(30);
                let store = if again {
                    real.joining.remove(&store);
                    real.new_store()
                } else {
                    store
                };
                self.schedule.at(at, Event::Placed(Placed::Join(store)));
            }
        }
    }

    fn settle_in(&mut self, store: u64, answer: v1::JoinResponse) {
        let index = answer.node_id as usize - 1;
        let Some(real) = &mut self.real else { return };
        real.joining.remove(&store);
        if real.slots.get(index) != Some(&Slot::Empty) {
            let what = format!("store {store} joins as node {}, which is {:?}", answer.node_id, real.slots.get(index));
            return self.check(Err(what));
        }
        // A person took it for one of the lost: nobody would hear it.
        let given_up = real.loss.condemned.iter().any(|of| of.contains(&answer.node_id));
        if (real.rng.chance(60) && real.slots.len() > index + 3) || given_up {
            // It never comes, under this name.
            self.marks.hit(Mark::JoinedAndNeverCame);
            let store = real.new_store();
            return self.schedule.at(self.now + ms(700), Event::Placed(Placed::Join(store)));
        }
        real.slots[index] = Slot::Member(store);
        let birth = Birth {
            identity: bootstrap::identity(answer.cluster_id, NodeId(answer.node_id), store),
            known: v1::KnownNodes { cluster_name: answer.cluster_name, nodes: answer.nodes },
            ranges: Vec::new(),
            records: Vec::new(),
        };
        // Faults may have been meant for whoever would be here by then.
        self.nodes[index].disk = SimDisk::new();
        birth.write(&self.nodes[index].disk).expect("a new disk takes its first records");
        self.marks.hit(Mark::NodeJoined);
        self.trace.note(self.now, "joined", &[answer.node_id, store]);
        let at = self.now + self.rng.delay(ms(30));
        self.schedule.at(at, Event::Restart(index));
    }

    /// One node, if the cluster can spare it.
    pub(super) fn lose_a_node(&mut self) {
        if self.ending.is_healing() || !self.real.as_ref().is_some_and(|real| real.losing) {
            return;
        }
        let count = self.nodes.len();
        let from = self.rng.index(count);
        let Some(index) = (0..count).map(|at| (from + at) % count).find(|index| self.can_lose(*index)) else {
            return self.schedule.at(self.now + ms(300), Event::Placed(Placed::Lose));
        };
        self.crash(index, true);
        self.nodes[index].disk = SimDisk::new();
        self.marks.hit(Mark::NodeLost);
        self.trace.note(self.now, "lost for good", &[index as u64 + 1]);
        let Some(real) = &mut self.real else { return };
        real.losing = false;
        real.slots[index] = Slot::Lost(self.now);
        let left = real.staying() + real.joining.len();
        if left < real.most() || real.rng.chance(600) {
            let store = real.new_store();
            let at = self.now + real.rng.between(ms(100), ms(6_000));
            self.schedule.at(at, Event::Placed(Placed::Join(store)));
        }
    }

    /// Whether every range has a quorum without the node, and has been as it is for some time.
    fn can_lose(&self, index: usize) -> bool {
        let Some(real) = self.real.as_ref().filter(|real| real.is_member(index)) else { return false };
        let node = index as u64 + 1;
        if real.ledger.births.values().any(|birth| birth.replicas.iter().any(|of| of.node_id == node)) {
            return false;
        }
        let ranges = self.invariants.territory.all_newest();
        let mut concerned = ranges.filter(|range| range.replicas.iter().any(|of| of.node_id == node));
        concerned.all(|range| real.ledger.is_dropped(range.keyspace_id) || self.outlives(range, node))
    }

    fn outlives(&self, range: &v1::RangeDescriptor, node: u64) -> bool {
        let Some(real) = &self.real else { return false };
        let since = real.changed.get(&range.range_id).copied().unwrap_or(0);
        if membership::is_joint(range) || since + STEADY > self.now {
            return false;
        }
        // A change of replicas may be written and not applied yet. No descriptor shows it, and it may make a voter of a
        // learner that is lost meanwhile: then the range needs the lost one for ever.
        let id = RangeId(range.range_id);
        if real.members().iter().any(|of| self.invariants.awaits_change(*of as usize - 1, id)) {
            return false;
        }
        let here = |other: &u64| {
            let process = self.nodes[*other as usize - 1].process.as_ref();
            let found = process.and_then(|of| of.store.ranges().find(|of| of.range.0 == range.range_id));
            found.is_some_and(|found| *found.descriptor == *range) && real.is_node_member(*other)
        };
        let left = voters(range).filter(|other| *other != node).filter(here).count();
        spares(range, node, left)
    }

    pub(super) fn people_ask(&mut self) {
        let healing = self.ending.is_healing();
        let leader = self.leader_of(SYSTEM_RANGE);
        let Some(real) = &mut self.real else { return };
        let request = if healing { real.set_right() } else { real.draw_wish() };
        let pause =
            if healing { ms(500) } else { real.rng.between(real.knobs.people_every / 3, real.knobs.people_every * 2) };
        let astray = real.rng.chance(200);
        let rested = real.rested;
        self.schedule.at(self.now + pause, Event::Placed(Placed::People));
        if healing && (request.is_none() || rested) {
            return;
        }
        let request = request.or_else(|| self.draw_move());
        let Some(request) = request else { return };
        let to = leader.filter(|_| !astray).unwrap_or_else(|| self.some_member(None));
        self.trace.say(self.now, || format!("asked of n{}: {request:?}", to + 1));
        self.ask_placement(Asker::People, to, request, ms(25_000));
    }

    /// Asks the leader of the system range for something.
    #[cfg(test)]
    pub(crate) fn ask_by_hand(&mut self, request: Request) {
        let to = self.leader_of(SYSTEM_RANGE).unwrap_or_default();
        self.ask_placement(Asker::People, to, request, ms(25_000));
    }

    /// Two neighbours that are to become one range.
    fn draw_merge(&mut self) -> Option<Request> {
        let real = self.real.as_mut()?;
        let ranges: Vec<_> =
            self.invariants.territory.all_newest().filter(|range| !real.ledger.is_dropped(range.keyspace_id)).collect();
        let left = ranges.get(real.rng.index(ranges.len()))?;
        let meets = |right: &&&Arc<v1::RangeDescriptor>| {
            right.keyspace_id == left.keyspace_id && !left.end.is_empty() && right.start == left.end
        };
        let right = ranges.iter().find(meets)?;
        real.operators.merge_asked(right.range_id);
        Some(Request::MergeRanges(v1::MergeRangesRequest {
            left_range_id: left.range_id,
            right_range_id: right.range_id,
            timeout_ms: real.rng.pick(&[0, 5_000, 20_000]),
        }))
    }

    fn draw_move(&mut self) -> Option<Request> {
        let real = self.real.as_mut()?;
        if real.rng.chance(400) {
            return self.draw_merge();
        }
        let ranges: Vec<_> =
            self.invariants.territory.all_newest().filter(|range| !real.ledger.is_dropped(range.keyspace_id)).collect();
        let range = ranges.get(real.rng.index(ranges.len()))?;
        let held: Vec<u64> = range.replicas.iter().map(|of| of.node_id).collect();
        let members = real.members();
        let to = members.get(real.rng.index(members.len()))?;
        let timeout_ms = real.rng.pick(&[0, 5_000]);
        let from_node_id = real.rng.pick(&held);
        let (range_id, to_node_id) = (range.range_id, *to);
        Some(Request::MoveReplica(v1::MoveReplicaRequest { range_id, from_node_id, to_node_id, timeout_ms }))
    }

    pub(super) fn people_are_answered(&mut self, request: &Request, result: &Result<Response>) {
        self.trace.say(self.now, || format!("people asked {request:?}: {result:?}"));
        match (request, result) {
            (Request::CreateKeyspace(_), Ok(_)) => self.marks.hit(Mark::KeyspaceReady),
            (Request::MoveReplica(_), Ok(_)) => self.marks.hit(Mark::MoveAsked),
            (Request::MergeRanges(_), Ok(_)) => self.marks.hit(Mark::MergeAsked),
            (Request::DrainNode(_), Ok(_)) => self.marks.hit(Mark::DrainAsked),
            (Request::RecordRecovery(_), result) => self.recovery_recorded(result),
            (_, Ok(_)) => self.operators_are_answered(request),
            (_, Err(Error::Ambiguous { .. })) => self.marks.hit(Mark::PeopleUncertain),
            (_, Err(Error::InvalidArgument { .. })) => self.marks.hit(Mark::PeopleRefused),
            _ => {}
        }
    }
}

impl Real {
    /// What people want next; `None`: a replica moved.
    fn draw_wish(&mut self) -> Option<Request> {
        let young: Vec<String> = self
            .ledger
            .living()
            .filter(|of| of.keyspace_id != DEFAULT_KEYSPACE.0 && of.keyspace_id != SYSTEM_KEYSPACE.0)
            .map(|of| of.name.clone())
            .collect();
        match self.rng.below(10) {
            0..4 if young.len() < YOUNG_MAX => {
                Some(Request::CreateKeyspace(v1::CreateKeyspaceRequest {
                    // Names come again: their keyspaces are others.
                    name: format!("young{}", self.rng.below(5)),
                    replicas: self.rng.pick(&[0, 3, 3, 1]),
                    boundary: None,
                    split_bytes: Some(self.rng.pick(&[0, 2 << 10, 8 << 10])),
                    ranges: self.rng.pick(&[1, 1, 2, 5]) as u32,
                    ..Default::default()
                }))
            }
            0..7 if !young.is_empty() => {
                let name = young[self.rng.index(young.len())].clone();
                Some(Request::DropKeyspace(v1::DropKeyspaceRequest { name }))
            }
            7 => self.undo_draining().or_else(|| {
                let members = self.members();
                let node_id = self.rng.pick(&members);
                Some(Request::DrainNode(v1::DrainNodeRequest { node_id, undo: false }))
            }),
            _ => None,
        }
    }

    /// What people do in the end: no node drains, and no keyspace waits for a node that is lost. A birth that a node
    /// may have been told of is given to no other one, so that such a keyspace can only be dropped.
    fn set_right(&self) -> Option<Request> {
        self.undo_draining().or_else(|| {
            let gone = |birth: &&v1::RangeDescriptor| birth.replicas.iter().any(|of| !self.is_node_member(of.node_id));
            let birth = self.ledger.births.values().find(gone).map(|birth| birth.keyspace_id);
            // That it was dropped may be lost.
            let dropped = || self.ledger.living().map(|of| of.keyspace_id).find(|id| self.was_dropped(*id));
            let id = birth.or_else(dropped)?;
            let keyspace = self.ledger.living().find(|of| of.keyspace_id == id)?;
            Some(Request::DropKeyspace(v1::DropKeyspaceRequest { name: keyspace.name.clone() }))
        })
    }

    fn undo_draining(&self) -> Option<Request> {
        let node_id = self.draining()?;
        Some(Request::DrainNode(v1::DrainNodeRequest { node_id, undo: true }))
    }
}

/// The nodes of a range's voters, outside a joint configuration.
fn voters(range: &v1::RangeDescriptor) -> impl Iterator<Item = u64> + '_ {
    range.replicas.iter().filter(|of| of.role() == v1::ReplicaRole::Voter).map(|of| of.node_id)
}

/// Whether a range can do without a node when so many of its other voters are there, as it is and as it may be a moment
/// later: until its leader misses a learner there, it may make a voter of it, in place of another one (seed 17347).
fn spares(range: &v1::RangeDescriptor, node: u64, left: usize) -> bool {
    let learns = range.replicas.iter().any(|of| of.node_id == node && of.role() == v1::ReplicaRole::Learner);
    left > voters(range).count() / 2 + usize::from(learns)
}

#[cfg(test)]
mod tests {
    use v1::ReplicaRole::{Learner, Voter};

    use super::*;

    fn range(roles: &[v1::ReplicaRole]) -> v1::RangeDescriptor {
        let replica = |(role, node): (&v1::ReplicaRole, u64)| v1::ReplicaDescriptor {
            replica_id: node,
            node_id: node,
            role: (*role).into(),
        };
        v1::RangeDescriptor { replicas: roles.iter().zip(1..).map(replica).collect(), ..Default::default() }
    }

    #[test]
    fn a_range_does_without_a_node_only_if_it_does_so_as_it_may_be_a_moment_later() {
        let three = range(&[Voter, Voter, Voter, Learner]);
        assert!(spares(&three, 3, 2) && !spares(&three, 3, 1));
        assert!(spares(&three, 4, 3), "of the learner and two others, two are a quorum");
        assert!(!spares(&three, 4, 2), "one of the two may be the voter that goes");
        let one = range(&[Voter, Learner]);
        assert!(!spares(&one, 2, 1), "the learner may be all that is left");
    }
}
