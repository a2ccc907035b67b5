//! The loss of a majority: in a part of the runs two or three nodes are gone at once, and for good, says a person, who
//! recovers what the others have (`recovery`). Some of the lost come back all the same, with all that they had: before
//! anybody has given them up, and then they are nodes like any; or behind that, and then they are heard by nobody, are
//! told so, and end.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_engine::membership;
use flotilla_engine::store::Input;
use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::{RangeId, v1};

use super::{Placed, Real, RealKnobs, Slot};
use crate::clock::ms;
use crate::cluster::Cluster;
use crate::disk::SimDisk;
use crate::marks::Mark;
use crate::node::index_of;
use crate::rng::Rng;
use crate::schedule::Event;

/// How often nodes are drawn until some are found whose loss is one of a majority, and leaves something of each range.
const DRAWS: usize = 24;
/// How often a moment is let pass at which all survivors are level.
const WAITS: usize = 100;

/// What is left, when a majority is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    Any,
    /// Survivors of some range have unequal logs.
    Uneven,
    /// Of some range learners alone.
    NoVoter,
    /// Of some range nothing, and nobody who is left has heard of it.
    Unheard,
}

/// A majority that is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LossKnobs {
    /// Nodes that the cluster is to have, and replicas of its ranges.
    pub wanted: usize,
    pub replicas: u32,
    /// When, in thousandths of the time with faults.
    pub at_per_mille: u64,
    /// Ranges may be lost wholly, that of the system excepted: they begin again, empty.
    pub whole: bool,
    /// At such a moment, if one comes soon.
    pub moment: Moment,
    /// The lost come back, each with such a chance.
    pub return_per_mille: u64,
}

impl LossKnobs {
    pub(crate) fn draw(rng: &mut Rng) -> Option<Self> {
        if !rng.chance(280) {
            return None;
        }
        let moment = rng.pick(&[
            Moment::Any,
            Moment::Uneven,
            Moment::Uneven,
            Moment::NoVoter,
            Moment::NoVoter,
            Moment::Unheard,
            Moment::Unheard,
        ]);
        let wanted = rng.pick(&[4, 5, 5]);
        Some(Self {
            wanted,
            replicas: if wanted == 5 { rng.pick(&[3, 5, 5]) } else { 3 },
            at_per_mille: rng.between(400, 900),
            whole: moment == Moment::Unheard || rng.chance(300),
            moment,
            return_per_mille: rng.pick(&[0, 500, 1_000]),
        })
    }
}

impl RealKnobs {
    /// This is what the run is about: no other node is lost, or leaves.
    pub(crate) fn lose_a_majority(&mut self, loss: LossKnobs) {
        (self.wanted, self.replicas) = (loss.wanted, loss.replicas);
        (self.loses, self.operators.retires) = (false, false);
        self.loss = Some(loss);
    }
}

/// What is lost, and given up.
#[derive(Debug, Default)]
pub(super) struct Loss {
    /// The stores of lost nodes whose disks are whole.
    stores: BTreeMap<usize, u64>,
    /// Of each node, whom it speaks to no more, durably.
    pub condemned: Vec<BTreeSet<u64>>,
    /// Of each node, which others it knows: durably, but for those that placement has called removed.
    pub known: Vec<BTreeSet<u64>>,
    /// How often a better moment was waited for.
    waited: usize,
    /// Those that were given up and have come back.
    outcasts: BTreeSet<usize>,
    /// Where logs of survivors ended, by range: what was in them may be committed by those who are left, whenever they get to it.
    written: BTreeMap<u64, u64>,
}

impl Loss {
    /// The lost nodes that may come back.
    pub(super) fn lost(&self) -> impl Iterator<Item = u64> {
        self.stores.keys().map(|index| *index as u64 + 1)
    }

    /// Whether an entry may have been in a log before the loss: a change of replicas that counts on those who are lost
    /// then is nobody's fault. A person plans once more when it has come into force.
    pub(super) fn came_before(&self, range: u64, index: u64) -> bool {
        self.written.get(&range).is_some_and(|end| index <= *end)
    }
}

impl Cluster {
    /// A majority of some range goes, if every range leaves something behind.
    pub(super) fn lose_a_majority(&mut self) {
        if self.ending.is_healing() {
            return;
        }
        let Some((victims, wanted)) = self.draw_victims() else {
            return self.schedule.at(self.now + ms(300), Event::Placed(Placed::LoseMajority));
        };
        let Some(real) = &mut self.real else { return };
        if !wanted && real.loss.waited < WAITS {
            real.loss.waited += 1;
            return self.schedule.at(self.now + ms(23), Event::Placed(Placed::LoseMajority));
        }
        let left: Vec<usize> = real.members().iter().map(|node| *node as usize - 1).collect();
        let left: Vec<usize> = left.into_iter().filter(|node| !victims.contains(node)).collect();
        if self.is_uneven(&victims, &left) {
            self.marks.hit(Mark::SurvivorsUneven);
        }
        self.marks.hit(Mark::MajorityLost);
        if self.invariants.territory.newest(SYSTEM_RANGE).is_some_and(|range| loses_majority(range, &victims)) {
            self.marks.hit(Mark::SystemMajorityLost);
        }
        let numbers: Vec<u64> = victims.iter().map(|index| *index as u64 + 1).collect();
        self.trace.note(self.now, "majority lost", &numbers);
        self.trace.say(self.now, || format!("nodes {numbers:?} are gone"));
        self.invariants.territory.lose(&victims);
        let ends = self.ends_of_logs(&left);
        if let Some(real) = &mut self.real {
            real.loss.written = ends;
        }
        for index in victims {
            self.crash(index, true);
            let Some(real) = &mut self.real else { return };
            let Slot::Member(store) = real.slots[index] else { continue };
            real.slots[index] = Slot::Lost(self.now);
            let chance = real.knobs.loss.as_ref().map_or(0, |loss| loss.return_per_mille);
            if real.recovery.rng.chance(chance) {
                real.loss.stores.insert(index, store);
                let at = self.now + real.recovery.rng.between(ms(500), ms(12_000));
                self.schedule.at(at, Event::Placed(Placed::Return(index)));
            } else {
                self.nodes[index].disk = SimDisk::new();
            }
        }
        self.call_for_others();
        let Some(real) = &mut self.real else { return };
        let at = self.now + real.recovery.rng.between(ms(300), ms(6_000));
        real.recovery.begin();
        self.schedule.at(at, Event::Placed(Placed::Recovering));
    }

    /// Of each range the longest log on these nodes.
    fn ends_of_logs(&self, nodes: &[usize]) -> BTreeMap<u64, u64> {
        let ranges = self.invariants.territory.all_newest().map(|range| RangeId(range.range_id));
        let end = |range: RangeId| nodes.iter().map(|node| self.invariants.last_written(*node, range)).max();
        ranges.map(|range| (range.0, end(range).unwrap_or_default())).collect()
    }

    /// Nodes that are to come in their place.
    fn call_for_others(&mut self) {
        let Some(real) = &mut self.real else { return };
        let missing = real.most().saturating_sub(real.members().len() + real.joining.len());
        for _ in 0..missing.max(1) {
            let store = real.new_store();
            let at = self.now + real.recovery.rng.between(ms(100), ms(8_000));
            self.schedule.at(at, Event::Placed(Placed::Join(store)));
        }
    }

    /// Nodes whose loss is that of a majority, and whether this is the moment that is wanted: if any such are found, these.
    fn draw_victims(&mut self) -> Option<(Vec<usize>, bool)> {
        let real = self.real.as_mut()?;
        let members: Vec<usize> = real.members().iter().map(|node| *node as usize - 1).collect();
        if members.len() < 4 {
            return None;
        }
        let mut found = None;
        for _ in 0..DRAWS {
            let real = self.real.as_mut()?;
            let (mut left, mut victims) = (members.clone(), Vec::new());
            for _ in 0..real.recovery.rng.between(2, 4).min(members.len() as u64 - 1) {
                victims.push(left.remove(real.recovery.rng.index(left.len())));
            }
            if self.can_lose_all(&victims, &left) {
                if self.is_the_moment(&victims, &left) {
                    return Some((victims, true));
                }
                found.get_or_insert((victims, false));
            }
        }
        found
    }

    fn is_the_moment(&self, victims: &[usize], left: &[usize]) -> bool {
        let moment = self.real.as_ref().and_then(|real| real.knobs.loss.as_ref()).map(|loss| loss.moment);
        let held = |range: &v1::RangeDescriptor, node: usize| {
            self.invariants.territory.on_store(node).any(|of| of.range_id == range.range_id)
        };
        let heard = |range: &v1::RangeDescriptor, node: usize| {
            let routes = self.nodes[node].process.iter().flat_map(|process| process.routes().ranges);
            routes.filter_map(|of| of.descriptor).any(|of| of.range_id == range.range_id)
        };
        let mut ranges = self.invariants.territory.all_newest();
        match moment {
            None | Some(Moment::Any) => true,
            Some(Moment::Uneven) => self.is_uneven(victims, left),
            Some(Moment::NoVoter) => {
                ranges.any(|range| voters_on(range, left) == 0 && left.iter().any(|node| held(range, *node)))
            }
            Some(Moment::Unheard) => {
                let gone = |range: &v1::RangeDescriptor| !left.iter().any(|node| held(range, *node));
                ranges.any(|range| gone(range) && !left.iter().any(|node| heard(range, *node)))
            }
        }
    }

    fn is_uneven(&self, victims: &[usize], left: &[usize]) -> bool {
        let mut ranges = self.invariants.territory.all_newest().filter(|range| loses_majority(range, victims));
        ranges.any(|range| {
            let mut ends = left
                .iter()
                .filter(|node| voters_on(range, &[**node]) > 0)
                .map(|node| self.invariants.committed_held(*node, RangeId(range.range_id)));
            let first = ends.next();
            ends.any(|end| Some(end) != first)
        })
    }

    fn can_lose_all(&self, victims: &[usize], left: &[usize]) -> bool {
        let Some(real) = &self.real else { return false };
        let whole = real.knobs.loss.as_ref().is_some_and(|loss| loss.whole);
        let held = |range: u64| {
            left.iter().any(|node| self.invariants.territory.on_store(*node).any(|of| of.range_id == range))
        };
        let living =
            || self.invariants.territory.all_newest().filter(|range| !real.ledger.is_dropped(range.keyspace_id));
        let Some(system) = self.invariants.territory.newest(SYSTEM_RANGE) else { return false };
        let mut system_left = left.iter().filter(|node| voters_on(system, &[**node]) > 0).peekable();
        // Ids of nodes that only the lost ones know of would be given to others: see the roadmap.
        let knows_all = |node: &usize| self.invariants.last_written(*node, SYSTEM_RANGE) >= real.ledger.nodes_at;
        // Of a keyspace that nobody who is left has heard of, no plan tells: see the roadmap.
        let known = |range: &v1::RangeDescriptor| {
            let learned = left.iter().filter_map(|node| self.nodes[*node].process.as_ref());
            let mut known = learned.flat_map(|process| &process.agent.learned.keyspaces);
            range.range_id != SYSTEM_RANGE.0 && known.any(|of| of.keyspace_id == range.keyspace_id)
        };
        living().any(|range| loses_majority(range, victims))
            && system_left.peek().is_some()
            && system_left.all(knows_all)
            && living().all(|range| held(range.range_id) || (whole && known(range)))
    }

    /// A lost node is started again, with all that it had.
    pub(super) fn come_back(&mut self, index: usize) {
        let healing = self.ending.is_healing();
        let Some(real) = self.real.as_mut().filter(|_| !healing) else { return };
        let node = index as u64 + 1;
        let Some(store) = real.loss.stores.remove(&index) else { return };
        if real.loss.condemned.iter().any(|of| of.contains(&node)) {
            real.loss.outcasts.insert(index);
            self.invariants.cast_out(index);
            self.marks.hit(Mark::OutcastReturns);
        } else {
            real.slots[index] = Slot::Member(store);
            self.invariants.territory.find_again(index);
            self.marks.hit(Mark::LostReturns);
        }
        self.trace.note(self.now, "back", &[node]);
        self.start(index);
    }

    pub(crate) fn is_outcast(&self, index: usize) -> bool {
        self.real.as_ref().is_some_and(|real| real.loss.outcasts.contains(&index))
    }

    /// Whether a node has given another up, and takes nothing from it. The other one hears of that, if it is there to.
    pub(crate) fn refuses(&mut self, to: usize, sender: usize) -> bool {
        let Some(real) = &mut self.real else { return false };
        let given_up =
            |at: usize, other: usize| real.loss.condemned.get(at).is_some_and(|of| of.contains(&(other as u64 + 1)));
        let refused = given_up(to, sender);
        if refused && real.loss.outcasts.contains(&sender) {
            self.schedule.at(self.now + ms(1), Event::Placed(Placed::Outcast(sender)));
        }
        refused || given_up(sender, to)
    }

    /// The same of what nodes tell each other that is about no range.
    pub(crate) fn refuses_told(&mut self, to: usize, what: &Input) -> bool {
        match what {
            Input::Beat { from, .. } | Input::Health { from, .. } => self.refuses(to, index_of(*from)),
            _ => false,
        }
    }

    /// A node hears that it was given up: it ends, and is wiped.
    pub(super) fn outcast_hears(&mut self, index: usize) {
        let Some(real) = &mut self.real else { return };
        if real.loss.outcasts.remove(&index) {
            self.marks.hit(Mark::OutcastEnds);
            self.trace.note(self.now, "given up", &[index as u64 + 1]);
            self.crash(index, true);
            self.nodes[index].disk = SimDisk::new();
        }
    }

    /// Those that nobody has told yet, when everything heals; and disks of nodes that did not come back.
    pub(crate) fn end_of_the_lost(&mut self) {
        let Some(real) = &mut self.real else { return };
        let outcasts: Vec<usize> = real.loss.outcasts.iter().copied().collect();
        let stores = std::mem::take(&mut real.loss.stores);
        outcasts.into_iter().for_each(|index| self.outcast_hears(index));
        for index in stores.into_keys() {
            self.nodes[index].disk = SimDisk::new();
        }
    }
}

impl Real {
    /// A node is told of all nodes.
    pub(super) fn learn_nodes(&mut self, index: usize, nodes: &[v1::NodeRecord]) {
        self.loss.known.resize_with(self.slots.len(), BTreeSet::new);
        let known = &mut self.loss.known[index];
        known.extend(nodes.iter().map(|of| of.node_id));
        nodes.iter().filter(|of| of.removed).for_each(|of| {
            known.remove(&of.node_id);
        });
    }

    /// The node has given these up: durable, and for good.
    pub(super) fn condemn(&mut self, index: usize, dead: &BTreeSet<u64>) {
        self.loss.condemned.resize_with(self.slots.len(), BTreeSet::new);
        self.loss.condemned[index].extend(dead);
    }
}

fn voters_on(range: &v1::RangeDescriptor, nodes: &[usize]) -> usize {
    let voters = membership::voters(&range.replicas);
    let on =
        |of: &&v1::ReplicaDescriptor| voters.contains(&of.replica_id) && nodes.contains(&(of.node_id as usize - 1));
    range.replicas.iter().filter(on).count()
}

/// Whether no majority of its voters is left.
fn loses_majority(range: &v1::RangeDescriptor, victims: &[usize]) -> bool {
    let voters = membership::voters(&range.replicas).len();
    (voters - voters_on(range, victims)) * 2 <= voters
}
