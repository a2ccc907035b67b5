//! Who holds which keys: I5 and I6 of the reliability goals, and that nothing comes back that is gone for good.
//!
//! Kept from what the apply stages report, from the log batches as they are written, and from what recovery finds;
//! apart from the disks and from the cores. Of each range the history of its descriptors along its log; of each
//! store the ranges that have data on its disk, and the tombstones.

mod losses;
mod merges;
mod merging;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flotilla_engine::apply::{Applied, RangeChange};
use flotilla_engine::bootstrap::INITIAL_INDEX;
use flotilla_engine::membership;
use flotilla_engine::recover::{Boot, RangeBoot};
use flotilla_engine::store::LogBatch;
use flotilla_proto::ids::DEFAULT_KEYSPACE;
use flotilla_proto::{RangeId, v1};

use crate::invariants::Check;
use crate::mirror::replica_on;
use merges::Merges;

pub(crate) type Descriptor = Arc<v1::RangeDescriptor>;

/// What a store has on its disk.
#[derive(Debug, Default)]
struct Holdings {
    ranges: BTreeMap<RangeId, Descriptor>,
    /// Replicas up to these ids are gone, as written.
    tombstones: BTreeMap<RangeId, u64>,
    /// Those that a sync has covered.
    durable_tombstones: BTreeMap<RangeId, u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Territory {
    /// Of each range, the descriptors that stand in force behind these indexes of its log.
    history: BTreeMap<RangeId, BTreeMap<u64, Descriptor>>,
    /// Where each range came from: its parent, and the split's index. The first ones came from nothing, and of others the
    /// log that held the split is lost.
    origins: BTreeMap<RangeId, Option<(RangeId, u64)>>,
    /// (range, conf_ver): the term of the entry that changed its replicas.
    change_terms: BTreeMap<(u64, u64), u64>,
    stores: Vec<Holdings>,
    pub merges: Merges,
    /// Nodes that are lost for good, if a majority was.
    lost: BTreeSet<usize>,
    /// Ranges have lost their majorities, and nobody has decided yet what becomes of them.
    in_doubt: bool,
    /// What stood in force where a range went on without its majority, for those who have still to apply it.
    superseded: BTreeMap<(RangeId, u64), Descriptor>,
}

/// (version, conf_ver): both only grow along a range's log.
pub(crate) fn age(descriptor: &v1::RangeDescriptor) -> (u64, u64) {
    descriptor.epoch.map_or((0, 0), |epoch| (epoch.version, epoch.conf_ver))
}

/// Whether two ranges share keys.
pub(crate) fn overlap(one: &v1::RangeDescriptor, other: &v1::RangeDescriptor) -> bool {
    let reaches = |end: &[u8], start: &[u8]| end.is_empty() || end > start;
    one.keyspace_id == other.keyspace_id && reaches(&one.end, &other.start) && reaches(&other.end, &one.start)
}

/// Whether a range holds a key.
pub(crate) fn holds_key(descriptor: &v1::RangeDescriptor, key: &[u8]) -> bool {
    key >= &descriptor.start[..] && (descriptor.end.is_empty() || key < &descriptor.end[..])
}

/// A range for people.
pub(crate) fn words(descriptor: &v1::RangeDescriptor) -> String {
    let replicas: Vec<String> = descriptor
        .replicas
        .iter()
        .map(|of| format!("{}@n{}{}", of.replica_id, of.node_id, ["", "L", "+", "-"][of.role as usize % 4]))
        .collect();
    format!(
        "range {} [{}, {}) epoch {:?} replicas {}",
        descriptor.range_id,
        descriptor.start.escape_ascii(),
        descriptor.end.escape_ascii(),
        age(descriptor),
        replicas.join(" ")
    )
}

impl Territory {
    pub(crate) fn new(nodes: usize, layout: &v1::Layout) -> Self {
        let mut territory = Self { stores: (0..nodes).map(|_| Holdings::default()).collect(), ..Self::default() };
        for descriptor in &layout.ranges {
            territory.begin(Arc::new(descriptor.clone()), None);
        }
        territory
    }

    fn begin(&mut self, descriptor: Descriptor, origin: Option<(RangeId, u64)>) {
        let id = RangeId(descriptor.range_id);
        self.origins.insert(id, origin);
        self.history.insert(id, BTreeMap::from([(INITIAL_INDEX, descriptor)]));
    }

    /// All ranges that there are: they end by merges alone.
    pub(crate) fn ranges(&self) -> Vec<RangeId> {
        self.history.keys().copied().filter(|range| !self.merges.is_ended(*range)).collect()
    }

    /// The newest descriptor of a range that any replica has applied.
    pub(crate) fn newest(&self, range: RangeId) -> Option<&Descriptor> {
        Some(self.history.get(&range)?.last_key_value()?.1)
    }

    /// All ranges that there are, as they were last seen.
    pub(crate) fn all_newest(&self) -> impl Iterator<Item = &Descriptor> {
        let living = self.history.iter().filter(|(range, _)| !self.merges.is_ended(**range));
        living.filter_map(|(_, history)| Some(history.last_key_value()?.1))
    }

    /// The range as it is where the entry at `index` is applied.
    pub(crate) fn in_force(&self, range: RangeId, index: u64) -> Option<&Descriptor> {
        Some(self.history.get(&range)?.range(..index).next_back()?.1)
    }

    /// The configurations under which an entry may have been committed: the one in force where it stands, and the
    /// one before, if its leader had not applied the change when the entry was committed.
    pub(crate) fn committing(&self, range: RangeId, index: u64) -> Vec<&Descriptor> {
        let Some(history) = self.history.get(&range) else { return Vec::new() };
        let mut found: Vec<&Descriptor> = Vec::new();
        for (_, descriptor) in history.range(..index).rev() {
            if found.last().is_none_or(|last| last.replicas != descriptor.replicas) {
                found.push(descriptor);
            }
            if found.len() == 2 {
                break;
            }
        }
        found
    }

    /// Whether a store has had a replica of this range before.
    pub(crate) fn has_left(&self, node: usize, range: RangeId) -> bool {
        self.stores[node].tombstones.contains_key(&range)
    }

    /// Whether this configuration follows a joint one that another term's leader entered.
    pub(crate) fn left_by_another(&self, descriptor: &v1::RangeDescriptor) -> bool {
        let Some(history) = self.history.get(&RangeId(descriptor.range_id)) else { return false };
        let mut changes = history.iter().rev().filter(|(_, of)| age(of) <= age(descriptor));
        let (Some((_, left)), Some((_, entered))) = (changes.next(), changes.next()) else { return false };
        let term = |of: &v1::RangeDescriptor| self.change_terms.get(&(of.range_id, age(of).1));
        membership::is_joint(entered) && term(left) != term(entered)
    }

    /// The ranges on a store's disk.
    pub(crate) fn on_store(&self, node: usize) -> impl Iterator<Item = &Descriptor> {
        self.stores[node].ranges.values()
    }

    /// What recovery found: no overlaps, no tombstone lost, nothing alive that is gone for good.
    pub(crate) fn recovered(&mut self, node: usize, boot: &Boot) -> Check {
        boot.ranges.iter().for_each(|found| self.catch_up(found));
        let store = &mut self.stores[node];
        for (range, upto) in &store.durable_tombstones {
            if boot.tombstones.get(range).is_none_or(|found| found.replica_id < *upto) {
                let found = boot.tombstones.get(range);
                return Err(format!(
                    "I8: n{}: a tombstone for replicas up to {upto} of range {range} was durable, {found:?} came back",
                    node + 1
                ));
            }
        }
        store.tombstones = boot.tombstones.iter().map(|(range, gone)| (*range, gone.replica_id)).collect();
        store.ranges.clear();
        for descriptor in boot.ranges.iter().map(|range| &range.descriptor) {
            let range = RangeId(descriptor.range_id);
            let own = replica_on(descriptor, node).unwrap_or_default();
            if boot.tombstones.get(&range).is_some_and(|gone| own <= gone.replica_id) {
                return Err(format!("I5: n{}: replica {own} of range {range} is alive beside its tombstone", node + 1));
            }
            self.settle(node, descriptor.clone())?;
        }
        // What is to be removed has data still, unless another range has it.
        for removed in boot.removed.iter().filter(|removed| !removed.keeps_data) {
            self.settle(node, removed.descriptor.clone())?;
        }
        Ok(())
    }

    /// The only replica of a range may have applied a change, and its process ended before it said so: nobody else tells.
    fn catch_up(&mut self, found: &RangeBoot) {
        let (id, descriptor) = (RangeId(found.descriptor.range_id), &found.descriptor);
        if descriptor.replicas.len() > 1 {
            return;
        }
        match self.newest(id).map(|known| age(known)) {
            None => self.begin(descriptor.clone(), None),
            Some(known) if known < age(descriptor) => {
                let history = self.history.entry(id).or_default();
                history.insert(found.applied.index, descriptor.clone());
            }
            Some(_) => {}
        }
    }

    /// A range has data on a store from now on: nobody else there may have any of its keys.
    fn settle(&mut self, node: usize, descriptor: Descriptor) -> Check {
        let id = RangeId(descriptor.range_id);
        let store = &mut self.stores[node];
        let own = replica_on(&descriptor, node);
        if let (Some(upto), Some(own)) = (store.tombstones.get(&id), own)
            && own <= *upto
            && !store.ranges.contains_key(&id)
        {
            return Err(format!(
                "I5: n{}: replica {own} of range {id} begins, and replicas up to {upto} are gone there for good",
                node + 1
            ));
        }
        let others = store.ranges.values().filter(|other| other.range_id != id.0);
        if let Some(other) = others.into_iter().find(|other| overlap(other, &descriptor)) {
            return Err(format!("I5: n{} holds {} and {}", node + 1, words(other), words(&descriptor)));
        }
        store.ranges.insert(id, descriptor);
        Ok(())
    }

    /// A log batch was written to a store's disk.
    pub(crate) fn written(&mut self, node: usize, batch: &LogBatch) -> Check {
        if self.lost.contains(&node) {
            return Ok(());
        }
        for item in &batch.items {
            if let Some(destroy) = &item.destroy {
                let store = &mut self.stores[node];
                store.ranges.remove(&item.range);
                let gone = store.tombstones.entry(item.range).or_default();
                *gone = destroy.tombstone.replica_id.max(*gone);
            }
            for ended in &item.ends {
                self.ended_by_snapshot(node, RangeId(ended.descriptor.range_id), item.range)?;
            }
            if let Some(descriptor) = item.snapshot.as_ref().and_then(|data| data.header.descriptor.clone()) {
                self.settle(node, Arc::new(descriptor))?;
            }
            if let Some(descriptor) = &item.begins {
                if !self.origins.contains_key(&item.range) {
                    self.begin(descriptor.clone(), None);
                }
                self.settle(node, descriptor.clone())?;
            }
        }
        Ok(())
    }

    /// A sync has covered all that a store has written.
    pub(crate) fn synced(&mut self, node: usize) {
        let store = &mut self.stores[node];
        store.durable_tombstones.clone_from(&store.tombstones);
    }

    /// A store has applied entries, which may have changed the range.
    /// `frozen_at`: of a merge, where the log of what it takes in has ended.
    pub(crate) fn applied(&mut self, node: usize, done: &Applied, frozen_at: impl Fn(u64) -> Option<u64>) -> Check {
        for change in &done.changes {
            let acts = matches!(&change.outcome, Ok(RangeChange::Split { .. } | RangeChange::Replicas { .. }));
            if acts && self.merges.is_frozen_at(done.range, change.index) {
                return Err(format!("I5: entry {} changes {}, and it is frozen", change.index, done.range));
            }
            match &change.outcome {
                Ok(RangeChange::Split { descriptor, children }) => {
                    let all: Vec<Descriptor> = std::iter::once(descriptor)
                        .chain(children.iter().map(|child| &child.descriptor))
                        .cloned()
                        .collect();
                    self.check_split(done.range, change.index, &all)?;
                    self.note(done.range, change.index, descriptor)?;
                    self.settle(node, descriptor.clone())?;
                    for child in children.iter().filter(|child| child.born) {
                        self.settle(node, child.descriptor.clone())?;
                    }
                }
                Ok(RangeChange::Replicas { before, descriptor, removed }) => {
                    check_replicas(before, descriptor)?;
                    self.change_terms.insert((done.range.0, age(descriptor).1), change.term);
                    self.note(done.range, change.index, descriptor)?;
                    let store = &mut self.stores[node];
                    if *removed {
                        let gone = store.tombstones.entry(done.range).or_default();
                        *gone = replica_on(before, node).unwrap_or_default().max(*gone);
                    }
                    // Until it is destroyed it has data still.
                    store.ranges.insert(done.range, descriptor.clone());
                }
                Ok(RangeChange::Checksum { .. }) | Err(_) => {}
                Ok(_) => self.merge_applied(node, done.range, change, frozen_at(change.index))?,
            }
            self.check_cover(done.range)?;
        }
        Ok(())
    }

    /// What the newest descriptors of a keyspace hold is every key, once.
    fn check_cover(&self, range: RangeId) -> Check {
        let keyspace = self.newest(range).map_or(0, |range| range.keyspace_id);
        if keyspace != DEFAULT_KEYSPACE.0 || self.in_doubt {
            // Others are born in pieces.
            return Ok(());
        }
        Self::check_tiles(self.all_newest().filter(|of| of.keyspace_id == keyspace).map(|of| &**of))
    }

    /// Every replica takes the same descriptor from the same entry.
    fn note(&mut self, range: RangeId, index: u64, descriptor: &Descriptor) -> Check {
        let Some(history) = self.history.get_mut(&range) else {
            return Err(format!("I5: range {range} changes, and came from nothing"));
        };
        if let Some(known) = history.get(&index) {
            if known != descriptor && self.superseded.get(&(range, index)) != Some(descriptor) {
                return Err(format!(
                    "I5: entry {index} makes {} on one replica and {} on another",
                    words(known),
                    words(descriptor)
                ));
            }
            return Ok(());
        }
        if let Some((_, before)) = history.range(..index).next_back()
            && age(before) >= age(descriptor)
        {
            return Err(format!("I5: {} follows {}", words(descriptor), words(before)));
        }
        history.insert(index, descriptor.clone());
        Ok(())
    }

    /// The range and its children hold just what the range held, under new ids.
    fn check_split(&mut self, range: RangeId, index: u64, all: &[Descriptor]) -> Check {
        let Some(before) = self.in_force(range, index).cloned() else { return Ok(()) };
        let bounds_meet = all.windows(2).all(|pair| pair[0].end == pair[1].start && !pair[0].end.is_empty());
        let ends_meet = all.first().is_some_and(|first| first.start == before.start)
            && all.last().is_some_and(|last| last.end == before.end);
        let in_order = all.iter().all(|of| of.end.is_empty() || of.start < of.end);
        let alike = all.iter().all(|of| of.replicas == before.replicas && age(of) > age(&before));
        if !bounds_meet || !ends_meet || !in_order || !alike {
            let parts: Vec<String> = all.iter().map(|of| words(of)).collect();
            return Err(format!("I5: {} is split into {}", words(&before), parts.join(", ")));
        }
        for child in &all[1..] {
            let id = RangeId(child.range_id);
            match self.origins.get(&id) {
                None => self.begin(child.clone(), Some((range, index))),
                Some(Some(known)) if *known == (range, index) => {
                    let first = self.history.get(&id).and_then(|history| history.get(&INITIAL_INDEX));
                    let before = self.superseded.get(&(id, INITIAL_INDEX));
                    if first.is_some_and(|first| first != child && before != Some(child)) {
                        return Err(format!("I5: {} begins as something else on another replica", words(child)));
                    }
                }
                Some(origin) => {
                    return Err(format!(
                        "I5: id {id} is given to a child of range {range} at {index}, and belongs to one of {origin:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// At the end: what the leaders say tiles each keyspace.
    pub(crate) fn check_tiles<'a>(descriptors: impl Iterator<Item = &'a v1::RangeDescriptor>) -> Check {
        let mut all: Vec<&v1::RangeDescriptor> = descriptors.collect();
        all.sort_by(|a, b| (a.keyspace_id, &a.start).cmp(&(b.keyspace_id, &b.start)));
        for (at, one) in all.iter().enumerate() {
            let next = all.get(at + 1).filter(|next| next.keyspace_id == one.keyspace_id);
            let first = at == 0 || all[at - 1].keyspace_id != one.keyspace_id;
            let begins = !first || one.start.is_empty();
            let meets = next.map_or(one.end.is_empty(), |next| !one.end.is_empty() && one.end == next.start);
            if !begins || !meets {
                let next = next.map_or("the end".into(), |next| words(next));
                return Err(format!("I5: the keyspace is not tiled: {} stands before {next}", words(one)));
            }
        }
        Ok(())
    }
}

/// Ids of replicas are given out once, and always to new ones.
fn check_replicas(before: &v1::RangeDescriptor, after: &v1::RangeDescriptor) -> Check {
    for replica in &after.replicas {
        let known = before.replicas.iter().find(|of| of.replica_id == replica.replica_id);
        let fresh = replica.replica_id >= before.next_replica_id && replica.replica_id < after.next_replica_id;
        if known.map_or(!fresh, |known| known.node_id != replica.node_id) {
            return Err(format!("I5: a replica's id is used twice: {} after {}", words(after), words(before)));
        }
    }
    if membership::voters(&after.replicas).is_empty() {
        return Err(format!("I3: {} has no voter", words(after)));
    }
    Ok(())
}
