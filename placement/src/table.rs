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

use bytes::Bytes;
use flotilla_proto::v1;
use prost::Message;

/// Ranges that went, of which the numbers are kept; a node that is further behind gets the whole table.
const GONE_MAX: usize = 10_000;

/// What its leader last said of a range.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Led {
    pub level_nodes: Vec<u64>,
    pub silent_nodes: Vec<u64>,
    pub order_id: u64,
    /// That order is fulfilled: the leader has nothing to do for it any more, and just has not said so yet.
    pub order_done: bool,
    pub order_waits: String,
}

/// One range.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub descriptor: v1::RangeDescriptor,
    /// 0: unknown.
    pub leader: u64,
    pub term: u64,
    pub data_bytes: u64,
    /// Of the leader itself; `None` while only others have reported the range.
    pub led: Option<Led>,
    sequence: u64,
}

impl Route {
    pub fn status(&self) -> v1::RangeStatus {
        v1::RangeStatus {
            descriptor: Some(self.descriptor.clone()),
            leader_node_id: self.leader,
            term: self.term,
            data_bytes: self.data_bytes,
            ..Default::default()
        }
    }
}

/// What a node holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Holding {
    pub held: BTreeSet<u64>,
    pub led: BTreeSet<u64>,
    pub bytes: u64,
}

/// See the file's head.
#[derive(Debug, Default)]
pub(crate) struct Table {
    routes: BTreeMap<u64, Route>,
    by_start: BTreeMap<(u64, Bytes), u64>,
    holdings: BTreeMap<u64, Holding>,
    changes: BTreeMap<u64, u64>,
    gone: BTreeMap<u64, u64>,
    gone_floor: u64,
    sequence: u64,
    /// Ranges whose leader said that it carries out an order.
    ordered: BTreeSet<u64>,
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
        self.routes.get(&range)
    }

    pub fn holding(&self, node: u64) -> Option<&Holding> {
        self.holdings.get(&node)
    }

    /// All routes, in order of keyspace and key.
    pub fn in_order(&self) -> impl Iterator<Item = &Route> {
        self.by_start.values().filter_map(|range| self.routes.get(range))
    }

    pub fn of_keyspace(&self, keyspace: u64) -> impl Iterator<Item = &Route> {
        let span = (keyspace, Bytes::new())..(keyspace + 1, Bytes::new());
        self.by_start.range(span).filter_map(|(_, range)| self.routes.get(range))
    }

    /// Whether the keyspace's routes cover it from end to end.
    pub fn tiles(&self, keyspace: u64) -> bool {
        let mut next = Some(Bytes::new());
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
        self.ordered.iter().filter_map(move |range| {
            let route = self.routes.get(range).filter(|route| route.leader == node)?;
            Some((*range, route.led.as_ref()?.order_id))
        })
    }

    /// Takes in what `node` says of a replica; true if the route changed in what decisions look at.
    pub fn report(&mut self, node: u64, report: &v1::RangeReport) -> bool {
        let Some(descriptor) = &report.descriptor else { return false };
        let range = descriptor.range_id;
        let newer = self.routes.get(&range).is_none_or(|route| epoch(descriptor) > epoch(&route.descriptor));
        if newer && !self.make_room(descriptor) {
            return false;
        }
        let before = self.routes.get(&range).cloned();
        let mut route = before.clone().unwrap_or_else(|| Route {
            descriptor: descriptor.clone(),
            leader: 0,
            term: 0,
            data_bytes: report.data_bytes,
            led: None,
            sequence: 0,
        });
        if newer {
            route.descriptor = descriptor.clone();
        }
        learn_leader(&mut route, node, report);
        let seen = before.as_ref().is_some_and(|before| seen_alike(before, &route));
        let decided = before.as_ref().is_some_and(|before| before.led == route.led);
        if !seen {
            self.unindex(range);
            self.sequence += 1;
            route.sequence = self.sequence;
            self.index(&route);
        }
        match route.led.as_ref().is_some_and(|led| led.order_id != 0) {
            true => self.ordered.insert(range),
            false => self.ordered.remove(&range),
        };
        self.routes.insert(range, route);
        !seen || !decided
    }

    /// The range's leader has reported what its order was to bring about.
    pub fn order_done(&mut self, range: u64, order_id: u64) {
        let led = self.routes.get_mut(&range).and_then(|route| route.led.as_mut());
        if let Some(led) = led.filter(|led| led.order_id == order_id) {
            led.order_done = true;
        }
    }

    /// The node has no replica of the range: it does not lead it.
    pub fn not_there(&mut self, node: u64, range: u64) -> bool {
        let Some(mut route) = self.routes.get(&range).filter(|route| route.leader == node).cloned() else {
            return false;
        };
        self.unindex(range);
        self.sequence += 1;
        (route.leader, route.led, route.sequence) = (0, None, self.sequence);
        self.index(&route);
        self.ordered.remove(&range);
        self.routes.insert(range, route);
        true
    }

    /// The range is no part of the cluster any more.
    pub fn remove(&mut self, range: u64) {
        self.unindex(range);
        if self.routes.remove(&range).is_some() {
            self.ordered.remove(&range);
            self.sequence += 1;
            self.gone.insert(self.sequence, range);
            while self.gone.len() > GONE_MAX {
                self.gone_floor = self.gone.pop_first().map_or(self.gone_floor, |(sequence, _)| sequence);
            }
        }
    }

    /// Takes older routes out of the way of a descriptor; false if a newer one covers a part of its span.
    fn make_room(&mut self, descriptor: &v1::RangeDescriptor) -> bool {
        let others: Vec<u64> = self.overlapping(descriptor).filter(|range| *range != descriptor.range_id).collect();
        let older =
            |range: &u64| self.routes.get(range).is_some_and(|other| epoch(&other.descriptor).0 < epoch(descriptor).0);
        if !others.iter().all(older) {
            return false;
        }
        for range in others {
            self.remove(range);
        }
        true
    }

    pub fn overlapping<'a>(&'a self, span: &'a v1::RangeDescriptor) -> impl Iterator<Item = u64> + 'a {
        let keyspace = span.keyspace_id;
        let first = (keyspace, span.start.clone());
        let before = self.by_start.range(..first.clone()).next_back();
        let before = before.filter(|((other, _), range)| {
            *other == keyspace
                && self
                    .routes
                    .get(range)
                    .is_some_and(|route| route.descriptor.end.is_empty() || route.descriptor.end > span.start)
        });
        let rest = self.by_start.range((Bound::Included(first), Bound::Unbounded));
        let rest = rest
            .take_while(move |((other, start), _)| *other == keyspace && (span.end.is_empty() || *start < span.end));
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
            let Some(route) = self.routes.get(range) else { continue };
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
            delta.gone.retain(|range| !self.routes.contains_key(range));
        }
        delta
    }

    fn index(&mut self, route: &Route) {
        let descriptor = &route.descriptor;
        self.by_start.insert((descriptor.keyspace_id, descriptor.start.clone()), descriptor.range_id);
        self.changes.insert(route.sequence, descriptor.range_id);
        for replica in &descriptor.replicas {
            let holding = self.holdings.entry(replica.node_id).or_default();
            holding.held.insert(descriptor.range_id);
            holding.bytes += route.data_bytes;
        }
        if route.leader != 0 {
            self.holdings.entry(route.leader).or_default().led.insert(descriptor.range_id);
        }
    }

    fn unindex(&mut self, range: u64) {
        let Some(route) = self.routes.get(&range) else { return };
        let key = (route.descriptor.keyspace_id, route.descriptor.start.clone());
        if self.by_start.get(&key) == Some(&range) {
            self.by_start.remove(&key);
        }
        self.changes.remove(&route.sequence);
        for replica in &route.descriptor.replicas {
            if let Some(holding) = self.holdings.get_mut(&replica.node_id) {
                holding.held.remove(&range);
                holding.bytes = holding.bytes.saturating_sub(route.data_bytes);
            }
        }
        if let Some(holding) = self.holdings.get_mut(&route.leader) {
            holding.led.remove(&range);
        }
    }
}

/// Of two claims to lead, that of the larger term counts; what followers believe counts only where it is newer.
fn learn_leader(route: &mut Route, node: u64, report: &v1::RangeReport) {
    let claims = report.leader_node_id == node;
    if claims && report.term >= route.term {
        route.leader = node;
        route.term = report.term;
        if size_moved(route.data_bytes, report.data_bytes) || route.led.is_none() {
            route.data_bytes = report.data_bytes;
        }
        route.led = Some(Led {
            level_nodes: report.level_nodes.clone(),
            silent_nodes: report.silent_nodes.clone(),
            order_id: report.order_id,
            order_done: route.led.as_ref().is_some_and(|led| led.order_done && led.order_id == report.order_id),
            order_waits: report.order_waits.clone(),
        });
        return;
    }
    let newer_hint = report.term > route.term || (report.term == route.term && route.leader == 0);
    if !claims && report.leader_node_id != 0 && newer_hint {
        route.leader = report.leader_node_id;
        route.term = report.term;
        route.led = None;
    }
    let deposed = !claims && node == route.leader && report.term >= route.term;
    if deposed {
        (route.leader, route.led) = (0, None);
    }
}

/// Sizes change with every write: only what is worth telling all nodes counts as a change.
fn size_moved(old: u64, new: u64) -> bool {
    old.abs_diff(new) > old / 16 + (64 << 10) || (old == 0) != (new == 0)
}

fn seen_alike(before: &Route, after: &Route) -> bool {
    before.descriptor == after.descriptor
        && before.leader == after.leader
        && before.term == after.term
        && before.data_bytes == after.data_bytes
}

#[cfg(test)]
mod tests;
