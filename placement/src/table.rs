//! The routing table: of every range the newest descriptor and the leader, as the nodes' reports tell them.
//!
//! It is soft state: it begins empty with every reign. Each change gets the next number of one sequence, so that a
//! node is told only what changed behind the number that it has. A descriptor is newer than another of its range by
//! (version, conf_ver). Ranges of one keyspace never overlap here: of two that do, one is an older cut of what the
//! other is now, and its version is smaller, because a split gives both halves a larger one.
//!
//! Beside the routes stand, for each node, the ranges that it holds and leads: decisions ask for these often.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use flotilla_proto::v1;
use prost::Message;

use self::compact::{Descriptor, Key, Members};
use self::heard::hear;
pub(crate) use self::led::Frozen;
use self::led::Led;
use crate::dense::Dense;

pub(crate) mod compact;
mod heard;
mod led;

/// Ranges that went, of which the numbers are kept; a node that is further behind gets the whole table.
const GONE_MAX: usize = 10_000;

/// One range.
#[derive(Clone, Debug, Default)]
pub(crate) struct Route {
    pub descriptor: Descriptor,
    /// 0: unknown.
    pub leader: u64,
    pub term: u64,
    pub data_bytes: u64,
    /// Of the leader itself; `None` while only others have reported the range.
    pub led: Option<Led>,
    /// As its leader last said; `None`: next to none.
    pub load: Option<Box<v1::RangeLoad>>,
    /// Seconds: since when its borders are what they are, as far as this reign has seen, and when it last had something
    /// to do.
    pub since_s: u32,
    pub busy_s: u32,
    /// When its leader changed as far as this reign has seen; 0: it has not.
    pub led_since_s: u32,
    sequence: u64,
}

/// Bytes that count as much as one request.
const BYTES_PER_REQUEST: u64 = 4 << 10;
/// Requests a second below which a range has next to nothing to do.
const COLD_COST_MAX: u64 = 5;

impl Route {
    pub fn status(&self) -> v1::RangeStatus {
        v1::RangeStatus {
            descriptor: Some(self.descriptor.told()),
            leader_node_id: self.leader,
            term: self.term,
            data_bytes: self.data_bytes,
            load: self.load.as_deref().copied(),
        }
    }

    /// What the range costs the node that leads it, beside what it costs each that holds it: in requests a second.
    pub fn lead_cost(&self) -> u64 {
        self.load
            .as_ref()
            .map_or(0, |load| load.reads_per_s + load.writes_per_s + load.read_bytes_per_s / BYTES_PER_REQUEST)
    }

    /// What the range costs each node that holds it: in requests a second.
    pub fn hold_cost(&self) -> u64 {
        self.load.as_ref().map_or(0, |load| load.writes_per_s + load.write_bytes_per_s / BYTES_PER_REQUEST)
    }

    /// Whether its leader says that the node's replica holds all that is committed, or nearly.
    pub fn is_level(&self, node: u64) -> bool {
        self.led.as_ref().is_some_and(|led| led.is_level(&self.descriptor, node))
    }

    /// Whether its leader does not hear of the node's replica.
    pub fn is_silent(&self, node: u64) -> bool {
        self.led.as_ref().is_some_and(|led| led.is_silent(&self.descriptor, node))
    }

    /// It stands still, to be taken in by its left neighbour, as its leader says.
    pub fn frozen(&self) -> Option<&Frozen> {
        self.led.as_ref().and_then(Led::frozen)
    }

    /// What its order waits for, as its leader says.
    pub fn order_waits(&self) -> &str {
        self.led.as_ref().map_or("", Led::order_waits)
    }

    pub fn is_cold(&self) -> bool {
        self.lead_cost() <= COLD_COST_MAX
    }
}

/// What a node holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Holding {
    pub held: BTreeSet<u64>,
    pub led: BTreeSet<u64>,
    pub bytes: u64,
    /// What the ranges that it holds and leads cost it, in requests a second.
    pub cost: u64,
    /// What the ranges that it leads are asked for.
    pub load: v1::RangeLoad,
    /// Of the ranges that it leads those with an order; and those that it said to carry one out for.
    pub tasked: BTreeSet<u64>,
    busy: BTreeSet<u64>,
}

/// See the file's head.
#[derive(Debug, Default)]
pub(crate) struct Table {
    routes: Dense<Route>,
    by_start: BTreeMap<(u64, Key), u64>,
    holdings: BTreeMap<u64, Holding>,
    /// Ranges of each keyspace.
    counts: BTreeMap<u64, usize>,
    changes: BTreeMap<u64, u64>,
    gone: BTreeMap<u64, u64>,
    gone_floor: u64,
    sequence: u64,
    /// Ranges with an order, known or not.
    tasked: BTreeSet<u64>,
    /// Ranges that a merge has ended, as far as somebody still reports them: the range that has their span now, and the
    /// version at which it has it.
    absorbed: BTreeMap<u64, (u64, u64)>,
    /// The same the other way round.
    absorbers: BTreeSet<(u64, u64)>,
}

/// What changed in the table behind some number of its sequence.
pub(crate) struct Delta {
    pub sequence: u64,
    pub full: bool,
    /// Not everything fitted.
    pub more: bool,
    pub routes: Vec<v1::RangeStatus>,
    pub gone: Vec<u64>,
}

pub(crate) fn epoch(descriptor: &v1::RangeDescriptor) -> (u64, u64) {
    descriptor.epoch.as_ref().map_or((0, 0), |epoch| (epoch.version, epoch.conf_ver))
}

impl Table {
    pub fn get(&self, range: u64) -> Option<&Route> {
        self.routes.get(range)
    }

    pub fn holding(&self, node: u64) -> Option<&Holding> {
        self.holdings.get(&node)
    }

    /// All routes, in order of keyspace and key.
    pub fn in_order(&self) -> impl Iterator<Item = &Route> {
        self.by_start.values().filter_map(|range| self.routes.get(*range))
    }

    pub fn of_keyspace(&self, keyspace: u64) -> impl Iterator<Item = &Route> {
        let span = (keyspace, Key::default())..(keyspace + 1, Key::default());
        self.by_start.range(span).filter_map(|(_, range)| self.routes.get(*range))
    }

    /// Whether a range is known that holds keys of this span.
    pub fn covers_some_of(&self, span: &v1::RangeDescriptor) -> bool {
        let before = |end: &[u8], key: &[u8]| !end.is_empty() && end <= key;
        self.of_keyspace(span.keyspace_id).any(|route| {
            let of = &route.descriptor;
            !before(&of.end, &span.start) && !before(&span.end, &of.start)
        })
    }

    /// How many ranges the keyspace has.
    pub fn count(&self, keyspace: u64) -> usize {
        self.counts.get(&keyspace).copied().unwrap_or(0)
    }

    /// All ranges, by id, from this one on.
    pub fn ids_after(&self, range: u64) -> impl Iterator<Item = &Route> {
        self.routes.from(range).map(|(_, route)| route)
    }

    /// All routes in order of keyspace and key, from this place on.
    pub fn starting_at(&self, keyspace: u64, start: Key) -> impl Iterator<Item = &Route> {
        self.by_start.range((keyspace, start)..).filter_map(|(_, range)| self.routes.get(*range))
    }

    /// The neighbour that begins where the range ends, of the same keyspace.
    pub fn right_of(&self, route: &Route) -> Option<&Route> {
        let descriptor = &route.descriptor;
        if descriptor.end.is_empty() {
            return None;
        }
        let range = self.by_start.get(&(descriptor.keyspace_id, descriptor.end.clone()))?;
        self.routes.get(*range)
    }

    /// Whether the keyspace's routes cover it from end to end.
    pub fn tiles(&self, keyspace: u64) -> bool {
        let mut next = Some(Key::default());
        for route in self.of_keyspace(keyspace) {
            if next.as_ref() != Some(&route.descriptor.start) {
                return false;
            }
            let end = route.descriptor.end.clone();
            next = (!end.is_empty()).then_some(end);
        }
        next.is_none() && self.of_keyspace(keyspace).next().is_some()
    }

    /// Ranges led by the node whose leader said that it carries out an order, and which.
    pub fn ordered(&self, node: u64) -> impl Iterator<Item = (u64, u64)> {
        let busy = self.holdings.get(&node).into_iter().flat_map(|holding| &holding.busy);
        busy.filter_map(|range| Some((*range, self.routes.get(*range)?.led.as_ref()?.order_id())))
    }

    /// The range has an order from now on, or none.
    pub fn set_tasked(&mut self, range: u64, tasked: bool) {
        let _ = if tasked { self.tasked.insert(range) } else { self.tasked.remove(&range) };
        let leader = self.routes.get(range).map_or(0, |route| route.leader);
        if let Some(holding) = self.holdings.get_mut(&leader) {
            let _ = if tasked { holding.tasked.insert(range) } else { holding.tasked.remove(&range) };
        }
    }

    /// Takes in what `node` says of a replica; true if the route changed in what decisions look at. `now` is in seconds.
    pub fn report(&mut self, now: u32, node: u64, report: &v1::RangeReport) -> bool {
        let Some(descriptor) = &report.descriptor else { return false };
        let range = descriptor.range_id;
        let newer = self.routes.get(range).is_none_or(|route| epoch(descriptor) > route.descriptor.epoch());
        if newer && !self.make_room(descriptor) {
            return false;
        }
        let fresh = newer.then(|| self.compact(descriptor));
        let known = self.routes.contains(range);
        let new = || Route { data_bytes: report.data_bytes, since_s: now, busy_s: now, ..Route::default() };
        let mut route = self.routes.get_mut(range).map_or_else(new, std::mem::take);
        self.set_busy(&route, false);
        if newer {
            route.led = route.led.take().map(|led| led.in_words(&route.descriptor));
        }
        let heard = hear(&route, fresh.as_ref().unwrap_or(&route.descriptor), node, report, now);
        let seen = newer || heard.seen(&route);
        let decided = seen || heard.led.is_some();
        let costs = heard.load.is_some();
        if (seen || costs) && known {
            self.unindex(&route);
        }
        if let Some(fresh) = fresh {
            // Of a merge or a split, or only of other replicas.
            if fresh.version != route.descriptor.version {
                route.since_s = now;
            }
            route.descriptor = fresh;
        }
        if heard.changes_leader(&route) {
            route.led_since_s = now.max(1);
        }
        heard.apply(&mut route);
        if !route.is_cold() {
            route.busy_s = now;
        }
        if seen {
            self.sequence += 1;
            route.sequence = self.sequence;
        }
        if seen || costs {
            self.index(&route);
        }
        self.set_busy(&route, true);
        self.routes.insert(range, route);
        decided
    }

    /// Notes for the node that leads the range that it carries out an order, if it said so; or strikes that out.
    fn set_busy(&mut self, route: &Route, busy: bool) {
        if route.leader == 0 || route.led.as_ref().is_none_or(|led| led.order_id() == 0) {
            return;
        }
        let of = &mut self.holdings.entry(route.leader).or_default().busy;
        let _ = match busy {
            true => of.insert(route.descriptor.range_id),
            false => of.remove(&route.descriptor.range_id),
        };
    }

    /// The range's leader has reported what its order was to bring about.
    pub fn order_done(&mut self, range: u64, order_id: u64) {
        if let Some(led) = self.routes.get_mut(range).and_then(|route| route.led.as_mut()) {
            led.set_done(order_id);
        }
    }

    /// The node has no replica of the range: it does not lead it.
    pub fn not_there(&mut self, node: u64, range: u64) -> bool {
        let Some(place) = self.routes.get_mut(range).filter(|route| route.leader == node) else { return false };
        let mut route = std::mem::take(place);
        self.set_busy(&route, false);
        self.unindex(&route);
        self.sequence += 1;
        (route.leader, route.led, route.sequence) = (0, None, self.sequence);
        self.index(&route);
        self.routes.insert(range, route);
        true
    }

    /// The range is no part of the cluster any more.
    pub fn remove(&mut self, range: u64) {
        let Some(route) = self.routes.remove(range) else { return };
        self.set_busy(&route, false);
        self.unindex(&route);
        self.sequence += 1;
        self.gone.insert(self.sequence, range);
        while self.gone.len() > GONE_MAX {
            self.gone_floor = self.gone.pop_first().map_or(self.gone_floor, |(sequence, _)| sequence);
        }
    }

    /// Takes older routes out of the way of a descriptor; false if a newer one covers a part of its span.
    fn make_room(&mut self, descriptor: &v1::RangeDescriptor) -> bool {
        let others: Vec<u64> = self.overlapping(descriptor).filter(|range| *range != descriptor.range_id).collect();
        let version = epoch(descriptor).0;
        let newest =
            others.iter().filter_map(|range| self.routes.get(*range)).max_by_key(|other| other.descriptor.version);
        if newest.is_some_and(|other| other.descriptor.version >= version) {
            let covers = |other: &&Route| {
                let (other, start) = (&other.descriptor, &descriptor.start);
                other.version > version && *other.start <= **start && (other.end.is_empty() || **start < *other.end)
            };
            let over_it = others.iter().filter_map(|range| self.routes.get(*range)).find(covers);
            let over_it = over_it.map(|other| (other.descriptor.range_id, other.descriptor.version));
            if let Some(over_it) = over_it {
                self.absorb(descriptor.range_id, over_it);
            }
            return false;
        }
        for range in others {
            // It overlaps, and lies with its start in the new one's span.
            if self.routes.get(range).is_some_and(|other| *descriptor.start <= *other.descriptor.start) {
                self.absorb(range, (descriptor.range_id, version));
            }
            self.remove(range);
        }
        true
    }

    /// The range that a merge put in the place of this one, and the version at which it has its span; if the table has
    /// seen proof of that.
    ///
    /// A range keeps its start as long as it lives: a split leaves it to the left half, which keeps the id, and a merge
    /// to the left one of the two. So another range that has this start at a newer version has it by a merge.
    pub fn absorbed(&self, range: u64) -> Option<(u64, u64)> {
        self.absorbed.get(&range).copied().filter(|_| !self.routes.contains(range))
    }

    /// Nobody reports the absorbed range any more: it is remembered for a while only to tell those who ask for it.
    pub fn forget_absorbed(&mut self, range: u64) {
        if self.absorbed.len() > GONE_MAX
            && let Some((by, _)) = self.absorbed.remove(&range)
        {
            self.absorbers.remove(&(by, range));
        }
    }

    fn absorb(&mut self, range: u64, by: (u64, u64)) {
        if let Some((before, _)) = self.absorbed.insert(range, by) {
            self.absorbers.remove(&(before, range));
        }
        self.absorbers.insert((by.0, range));
    }

    /// The ranges that merges have put this one in the place of.
    pub fn absorbed_by(&self, range: u64) -> Vec<u64> {
        self.absorbers.range((range, 0)..(range + 1, 0)).map(|(_, range)| *range).collect()
    }

    pub fn overlapping<'a>(&'a self, span: &'a v1::RangeDescriptor) -> impl Iterator<Item = u64> + 'a {
        let keyspace = span.keyspace_id;
        let first = (keyspace, Key::from(&*span.start));
        let before = self.by_start.range(..first.clone()).next_back();
        let before = before.filter(|((other, _), range)| {
            *other == keyspace
                && self
                    .routes
                    .get(**range)
                    .is_some_and(|route| route.descriptor.end.is_empty() || *route.descriptor.end > *span.start)
        });
        let rest = self.by_start.range((Bound::Included(first), Bound::Unbounded));
        let rest = rest
            .take_while(move |((other, start), _)| *other == keyspace && (span.end.is_empty() || **start < *span.end));
        before.into_iter().chain(rest).map(|(_, range)| *range)
    }

    /// What changed behind `since`, in at most about `bytes_max` encoded bytes. `None`: everything.
    pub fn delta(&self, since: Option<u64>, bytes_max: usize) -> Delta {
        let since = since.filter(|since| *since != 0 && *since >= self.gone_floor && *since <= self.sequence);
        let after = (Bound::Excluded(since.unwrap_or(0)), Bound::Unbounded);
        let mut delta =
            Delta { sequence: self.sequence, full: since.is_none(), more: false, routes: Vec::new(), gone: Vec::new() };
        let mut bytes = 0;
        for (sequence, range) in self.changes.range(after) {
            let Some(route) = self.routes.get(*range) else { continue };
            let status = route.status();
            bytes += status.encoded_len() + 4;
            if bytes > bytes_max && !delta.routes.is_empty() {
                (delta.more, delta.sequence) = (true, sequence - 1);
                break;
            }
            delta.routes.push(status);
        }
        if since.is_some() {
            let until = (after.0, Bound::Included(delta.sequence));
            delta.gone = self.gone.range(until).map(|(_, range)| *range).collect();
            // A range may have come back: a route in the same answer, or in a later one, says so.
            delta.gone.retain(|range| !self.routes.contains(*range));
        }
        delta
    }

    /// The descriptor in the table's form. Its borders are its neighbours' ones, where those are known.
    fn compact(&self, descriptor: &v1::RangeDescriptor) -> Descriptor {
        let keyspace = descriptor.keyspace_id;
        let begins = |key: &Key| {
            let found = self.by_start.get_key_value(&(keyspace, key.clone()));
            found.map(|((_, start), _)| start.clone())
        };
        let ends = |key: &Key| {
            let before = self.by_start.range(..(keyspace, key.clone())).next_back()?;
            let route = self.routes.get(*before.1).filter(|route| route.descriptor.keyspace_id == keyspace)?;
            Some(route.descriptor.end.clone()).filter(|end| end == key)
        };
        let (start, end) = (Key::from(&*descriptor.start), Key::from(&*descriptor.end));
        let start = begins(&start).or_else(|| ends(&start)).unwrap_or(start);
        let end = begins(&end).unwrap_or(end);
        Descriptor::of(descriptor, start, end)
    }

    fn index(&mut self, route: &Route) {
        let descriptor = &route.descriptor;
        let range = descriptor.range_id;
        if self.by_start.insert((descriptor.keyspace_id, descriptor.start.clone()), range).is_none() {
            *self.counts.entry(descriptor.keyspace_id).or_default() += 1;
        }
        self.changes.insert(route.sequence, range);
        for replica in descriptor.members() {
            let holding = self.holdings.entry(replica.node_id).or_default();
            holding.held.insert(range);
            holding.bytes += route.data_bytes;
            holding.cost += route.hold_cost();
        }
        if route.leader != 0 {
            let holding = self.holdings.entry(route.leader).or_default();
            holding.led.insert(range);
            holding.cost += route.lead_cost();
            add(&mut holding.load, route.load.as_deref(), u64::saturating_add);
            if self.tasked.contains(&range) {
                holding.tasked.insert(range);
            }
        }
    }

    fn unindex(&mut self, route: &Route) {
        let range = route.descriptor.range_id;
        let key = (route.descriptor.keyspace_id, route.descriptor.start.clone());
        if self.by_start.get(&key) == Some(&range) {
            self.by_start.remove(&key);
            if let Some(count) = self.counts.get_mut(&key.0) {
                *count = count.saturating_sub(1);
            }
        }
        self.changes.remove(&route.sequence);
        for replica in route.descriptor.members() {
            if let Some(holding) = self.holdings.get_mut(&replica.node_id) {
                holding.held.remove(&range);
                holding.bytes = holding.bytes.saturating_sub(route.data_bytes);
                holding.cost = holding.cost.saturating_sub(route.hold_cost());
            }
        }
        if let Some(holding) = self.holdings.get_mut(&route.leader) {
            holding.led.remove(&range);
            holding.cost = holding.cost.saturating_sub(route.lead_cost());
            add(&mut holding.load, route.load.as_deref(), u64::saturating_sub);
            holding.tasked.remove(&range);
        }
    }
}

/// Adds a range's load to that of a node, or takes it away.
fn add(sum: &mut v1::RangeLoad, load: Option<&v1::RangeLoad>, with: impl Fn(u64, u64) -> u64) {
    let Some(load) = load else { return };
    *sum = v1::RangeLoad {
        reads_per_s: with(sum.reads_per_s, load.reads_per_s),
        writes_per_s: with(sum.writes_per_s, load.writes_per_s),
        read_bytes_per_s: with(sum.read_bytes_per_s, load.read_bytes_per_s),
        write_bytes_per_s: with(sum.write_bytes_per_s, load.write_bytes_per_s),
    };
}

#[cfg(test)]
mod tests;
