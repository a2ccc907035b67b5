//! The replicas of a store that sleep, and what wakes them.
//!
//! ```text
//! request, message, order, a key's end ──────────────────────────────▶ at once
//! the leader's node is dead, stops, or began anew ─▶ orphans, in turn ─▶ so many with each tick, and they campaign
//! this process began (nothing is known of leaders) ─▶ orphans
//! ```
//! What wakes by itself is bounded ([`crate::config::Config::wakes_per_tick`]), for a node may have led tens of thousands
//! of ranges (tikv#17101, tikv#12255): their elections would take all of the processor and the network just when the
//! clients come back. A request for one of them does not wait for its turn. Those who are left share the work: of each
//! range one replica campaigns in the first half of the queue, and the others come behind it, when most are led again.
//!
//! Nothing here is done for a range that sleeps, as long as nothing happens to it: time passes for nodes ([`super::liveness`]),
//! and for the few ranges whose keys end ([`Sleepers::alarms_due`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use flotilla_mutants::Mutant;
use flotilla_proto::{Error, NodeId, RangeId, v1};

use super::liveness::Heard;
use super::{Beat, Effects, Envelope, Store};
use crate::config::Config;
use crate::range::{Reaches, Sleeper};
use crate::read;
use crate::time::BootTime;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Sleepers {
    asleep: BTreeMap<RangeId, Box<Sleeper>>,
    /// How many of them have a replica on each node.
    shared_with: BTreeMap<NodeId, usize>,
    /// Whose turn it is to wake, and whether it campaigns then; some may have woken already.
    orphans: VecDeque<(RangeId, bool)>,
    /// Leaders with keys that end.
    alarms: BTreeSet<(BootTime, RangeId)>,
    /// Those that may say something else of themselves than they last did.
    changed: BTreeSet<RangeId>,
    /// While this node is slow: leaders up to this one were looked at.
    looked_at: RangeId,
}

/// While the node is slow so many are looked at with each tick.
const LOOKS_PER_TICK: usize = 4_096;

impl Sleepers {
    pub(super) fn get(&self, id: RangeId) -> Option<&Sleeper> {
        self.asleep.get(&id).map(|sleeper| &**sleeper)
    }

    pub(super) fn contains(&self, id: RangeId) -> bool {
        self.asleep.contains_key(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (RangeId, &Sleeper)> {
        self.asleep.iter().map(|(id, sleeper)| (*id, &**sleeper))
    }

    pub(super) fn len(&self) -> usize {
        self.asleep.len()
    }

    pub(super) fn insert(&mut self, id: RangeId, sleeper: Sleeper, alarm: Option<BootTime>) {
        for of in &sleeper.descriptor().replicas {
            *self.shared_with.entry(NodeId(of.node_id)).or_default() += 1;
        }
        self.alarms.extend(alarm.map(|at| (at, id)));
        self.asleep.insert(id, Box::new(sleeper));
    }

    fn remove(&mut self, id: RangeId) -> Option<Sleeper> {
        let sleeper = self.asleep.remove(&id)?;
        for of in &sleeper.descriptor().replicas {
            let node = NodeId(of.node_id);
            let left = self.shared_with.get(&node).map_or(0, |count| count - 1);
            if left == 0 {
                self.shared_with.remove(&node);
            } else {
                self.shared_with.insert(node, left);
            }
        }
        Some(*sleeper)
    }

    /// Those that are to be woken in turn, and were not asked for yet: by whose turn it is to campaign.
    pub(super) fn queue_orphans(&mut self, own: NodeId, dead: Option<NodeId>, ids: Vec<RangeId>) {
        let first = |id: &RangeId| self.asleep.get(id).is_some_and(|of| of.is_first_to_campaign(own, dead));
        let (first, then): (Vec<_>, Vec<_>) = ids.into_iter().partition(first);
        let first = first.into_iter().map(|id| (id, true));
        self.orphans.extend(first.chain(then.into_iter().map(|id| (id, false))));
    }

    /// The next to be woken in turn, and whether it campaigns at once.
    fn next_orphan(&mut self) -> Option<(RangeId, bool)> {
        while let Some((id, campaigns)) = self.orphans.pop_front() {
            if self.asleep.get(&id).is_some_and(|sleeper| sleeper.is_orphan()) {
                return Some((id, campaigns));
            }
        }
        None
    }

    /// The leaders whose keys may be due. One that has woken since, and fell asleep again, has another alarm.
    fn alarms_due(&mut self, now: BootTime) -> Vec<RangeId> {
        let later = self.alarms.split_off(&(now + std::time::Duration::from_nanos(1), RangeId(0)));
        std::mem::replace(&mut self.alarms, later).into_iter().map(|(_, id)| id).collect()
    }

    /// Those that have fallen asleep, or otherwise changed, since the last call.
    pub(super) fn take_changed(&mut self) -> BTreeSet<RangeId> {
        std::mem::take(&mut self.changed)
    }

    fn with_replica_on(&self, which: impl Fn(&Sleeper) -> bool) -> Vec<RangeId> {
        self.asleep.iter().filter(|(_, sleeper)| which(sleeper)).map(|(id, _)| *id).collect()
    }
}

impl Store {
    /// How many replicas here sleep.
    pub fn sleeping(&self) -> usize {
        self.sleepers.len()
    }

    /// All replicas here, asleep or not, as they have their ranges.
    pub(super) fn descriptors_here(&self) -> impl Iterator<Item = (RangeId, &v1::RangeDescriptor)> {
        let asleep = self.sleepers.iter().map(|(id, range)| (id, &**range.descriptor()));
        self.ranges.iter().map(|(id, range)| (*id, range.descriptor())).chain(asleep)
    }

    /// A range as its replica here has it, asleep or not.
    pub(super) fn descriptor_here(&self, id: RangeId) -> Option<&v1::RangeDescriptor> {
        let awake = self.ranges.get(&id).map(|range| range.descriptor());
        awake.or_else(|| self.sleepers.get(id).map(|range| &**range.descriptor()))
    }

    /// A sign of life of another node.
    pub(super) fn beat(&mut self, now: BootTime, from: NodeId, boot_id: u64, leaving: bool, effects: &mut Effects) {
        let liveness = &mut self.shared.liveness;
        let heard = if leaving { liveness.leaves(from, boot_id) } else { liveness.heard(from, Some(boot_id)) };
        self.follow_heard(now, from, heard, effects);
    }

    /// Another node says whether it hears this one.
    pub(super) fn hears_this_node(&mut self, now: BootTime, node: NodeId, hears: bool, effects: &mut Effects) {
        let came_back = self.shared.liveness.hears_this_node(node, hears);
        self.follow_heard(now, node, Heard { came_back, lost_its_ranges: false }, effects);
    }

    /// Something came from another node.
    pub(super) fn heard(&mut self, now: BootTime, from: NodeId, boot_id: Option<u64>, effects: &mut Effects) {
        let heard = self.shared.liveness.heard(from, boot_id);
        self.follow_heard(now, from, heard, effects);
    }

    fn follow_heard(&mut self, now: BootTime, node: NodeId, heard: Heard, effects: &mut Effects) {
        if heard.lost_its_ranges {
            self.orphan_followers_of(node);
        }
        if heard.came_back {
            for id in self.sleepers.with_replica_on(|sleeper| sleeper.sleeps_without(node)) {
                self.rouse(now, id, false, effects);
            }
        }
    }

    /// What a node led is led by nobody now.
    fn orphan_followers_of(&mut self, node: NodeId) {
        if Mutant::OrphansSleepOn.is_on() {
            return;
        }
        let lost = |sleeper: &Sleeper| !sleeper.is_orphan() && sleeper.followed_node() == Some(node);
        let ids = self.sleepers.with_replica_on(lost);
        for id in &ids {
            if let Some(sleeper) = self.sleepers.asleep.get_mut(id) {
                sleeper.lose_leader();
            }
        }
        self.sleepers.queue_orphans(self.shared.node, Some(node), ids);
    }

    /// Wakes a replica; false: it was not asleep. `alone`: it follows nobody any more.
    pub(super) fn rouse(&mut self, now: BootTime, id: RangeId, alone: bool, effects: &mut Effects) -> bool {
        let Some(sleeper) = self.sleepers.remove(id) else { return false };
        match sleeper.wake(&mut self.shared, now, self.last_sequence + 1, alone) {
            Ok(range) => {
                self.ranges.insert(id, Box::new(range));
                self.dirty.insert(id);
            }
            Err(what) => effects.fatal = Some(what),
        }
        true
    }

    /// Wakes a replica for a request; one that nobody leads seeks a leader at once.
    pub(super) fn rouse_for(&mut self, now: BootTime, id: RangeId, effects: &mut Effects) {
        if self.rouse(now, id, false, effects) {
            self.with(now, id, effects, |range, turn| range.seek_leader(turn));
        }
    }

    /// This node is slow: some of what sleeps and is led here wakes, to be handed over, `most` at a time.
    pub(super) fn rouse_to_leave(&mut self, now: BootTime, most: usize, effects: &mut Effects) {
        if most == 0 {
            return;
        }
        let next = (Excluded(self.sleepers.looked_at), Unbounded);
        let mut leaving = Vec::new();
        let mut last = RangeId(0);
        for (id, sleeper) in self.sleepers.asleep.range(next).take(LOOKS_PER_TICK) {
            if leaving.len() == most {
                break;
            }
            last = *id;
            if sleeper.is_to_leave(&self.shared, now) {
                leaving.push(*id);
            }
        }
        // From the beginning again, once all were looked at.
        self.sleepers.looked_at = last;
        for id in leaving {
            self.rouse(now, id, false, effects);
        }
    }

    /// Leaders that may sleep without a majority, as far as is known here.
    pub(super) fn rouse_in_doubt(&mut self, now: BootTime, effects: &mut Effects) {
        for id in self.sleepers.with_replica_on(|sleeper| sleeper.is_in_doubt(&self.shared)) {
            self.rouse(now, id, false, effects);
        }
    }

    /// Wakes a replica that something is wanted of, unless another one is to be asked; that is then the answer.
    pub(super) fn rouse_leader(
        &mut self,
        now: BootTime,
        id: RangeId,
        epoch: Option<&v1::Epoch>,
        effects: &mut Effects,
    ) -> Result<(), Error> {
        let Some(sleeper) = self.sleepers.get(id) else { return Ok(()) };
        if sleeper.leads() || sleeper.is_orphan() {
            self.rouse_for(now, id, effects);
            return Ok(());
        }
        let view = sleeper.view();
        if let Some(epoch) = epoch {
            read::check_epoch(&view.descriptor, &view.siblings, Some(epoch))?;
        }
        Err(read::not_leader(view))
    }

    /// Wakes the replica that a message is for; true: nothing follows from it.
    pub(super) fn rouse_by_message(&mut self, now: BootTime, envelope: &Envelope, effects: &mut Effects) -> bool {
        let id = RangeId(envelope.message.range_id);
        let Some(sleeper) = self.sleepers.get(id) else { return false };
        let reaches = sleeper.reaches(&envelope.message);
        if reaches != Reaches::Nothing {
            self.rouse(now, id, reaches == Reaches::WakesAlone, effects);
        }
        reaches == Reaches::Nothing
    }

    /// Replicas that have fallen asleep with this tick.
    pub(super) fn put_to_bed(&mut self, now: BootTime, tired: Vec<RangeId>) {
        for id in tired {
            let Some(range) = self.ranges.remove(&id) else { continue };
            self.dirty.remove(&id);
            let (sleeper, alarm) = range.into_sleeper(now, &self.shared.config);
            self.sleepers.insert(id, sleeper, alarm);
            self.sleepers.changed.insert(id);
        }
    }

    /// Time has passed by one tick: who is dead, and whose turn it is. `seeking`: so many are awake and look for a leader.
    pub(super) fn tick_sleepers(&mut self, now: BootTime, seeking: usize, effects: &mut Effects) {
        for id in self.sleepers.alarms_due(now) {
            if self.sleepers.get(id).is_some_and(Sleeper::leads) {
                self.rouse(now, id, false, effects);
            }
        }
        for node in self.shared.liveness.tick(self.shared.config.election_ticks) {
            self.orphan_followers_of(node);
        }
        let own = self.shared.node;
        let leaving = self.shared.draining;
        if !leaving {
            self.wake_orphans(now, seeking, effects);
        }
        let mut others: BTreeSet<NodeId> = self.sleepers.shared_with.keys().copied().collect();
        if !leaving && self.shared.config.idle_ticks > 0 {
            // Who shares awake ranges alone is told too: somebody who knows that the process before this one stopped
            // takes this node for dead until it says that it is another one, and leaves it out when its ranges fall asleep.
            let awake = self.ranges.values().flat_map(|range| &range.descriptor().replicas);
            others.extend(awake.map(|of| NodeId(of.node_id)));
        }
        if !leaving {
            // Whoever says that it hears nothing of this node shares a range with it, though perhaps none that has begun here:
            // a split's child whose parent here went first. Its leader would sleep without that replica for ever (seed 18059).
            others.extend(self.shared.liveness.strangers(self.shared.config.election_ticks));
        }
        others.remove(&own);
        let hears_nothing = |of: NodeId| !self.shared.liveness.is_heard(of, self.shared.config.election_ticks);
        effects.beats.extend(others.into_iter().map(|to| Beat { to, leaving, hears_nothing: hears_nothing(to) }));
    }

    /// Wakes those whose turn it is. Where elections do not get on, because nodes or the network are overwhelmed, more of
    /// them would make that worse: not more wake than can look for a leader within an election time-out.
    fn wake_orphans(&mut self, now: BootTime, seeking: usize, effects: &mut Effects) {
        let Config { wakes_per_tick, election_ticks, .. } = self.shared.config;
        let seeking_max = wakes_per_tick.saturating_mul(election_ticks);
        for _ in 0..wakes_per_tick.min(seeking_max.saturating_sub(seeking)) {
            let Some((id, campaigns)) = self.sleepers.next_orphan() else { break };
            // By its election timer, if it has to, or at once.
            if self.rouse(now, id, false, effects) {
                self.with(now, id, effects, |range, turn| {
                    range.wakes_in_passing();
                    if campaigns {
                        range.seek_leader(turn);
                    }
                });
            }
        }
    }

    /// This process is to end: what sleeps here is led by others from now on, whoever is asked for it first. Nothing is
    /// handed over range by range.
    pub(super) fn leave_sleepers(&mut self, effects: &mut Effects) {
        let own = self.shared.node;
        let Sleepers { asleep, changed, .. } = &mut self.sleepers;
        for (id, sleeper) in asleep {
            if let Some(view) = sleeper.step_down() {
                effects.views.push(view);
                changed.insert(*id);
            }
        }
        let others = self.sleepers.shared_with.keys().filter(|node| **node != own);
        effects.beats.extend(others.map(|to| Beat { to: *to, leaving: true, hears_nothing: false }));
    }

    /// The sizes at which ranges are split have changed.
    pub(super) fn rouse_too_large(&mut self, now: BootTime, effects: &mut Effects) {
        let keyspaces = &self.shared.keyspaces;
        let limit = |of: &Arc<v1::RangeDescriptor>| keyspaces.get(&of.keyspace_id).map_or(0, |of| of.split_bytes);
        for id in self.sleepers.with_replica_on(|sleeper| sleeper.is_too_large(limit(sleeper.descriptor()))) {
            self.rouse(now, id, false, effects);
        }
    }

    /// About how large a range is that sleeps.
    pub(super) fn told_size_of_sleeper(
        &mut self,
        now: BootTime,
        id: RangeId,
        bytes: u64,
        effects: &mut Effects,
    ) -> bool {
        let Some(sleeper) = self.sleepers.asleep.get_mut(&id) else { return false };
        let keyspace = self.shared.keyspaces.get(&sleeper.descriptor().keyspace_id);
        self.sleepers.changed.insert(id);
        if sleeper.told_size(bytes, keyspace.map_or(0, |of| of.split_bytes)) {
            self.rouse(now, id, false, effects);
        }
        true
    }
}
