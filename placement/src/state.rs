//! The service's records in memory, and the whole of what decisions look at.
//!
//! There are two copies of the records. `acked` holds what the system range has acknowledged: whatever leaves the
//! service is taken from it. `ahead` holds that and what is being written: whatever is decided looks at it, so that
//! nothing is decided twice. A write that fails ends the service, so `ahead` is never taken back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flotilla_proto::ids::SYSTEM_KEYSPACE;
use flotilla_proto::v1::{self, OrderKind};

use crate::config::Config;
use crate::decide::voters;
use crate::health::Speeds;
use crate::history::History;
use crate::places::Places;
use crate::records::{Change, Counter};
use crate::reports::Reports;
use crate::table::compact::Members;
use crate::table::{Route, Table};

/// The records of the system range.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Records {
    pub cluster: v1::ClusterRecord,
    pub reign: v1::ReignRecord,
    pub next: BTreeMap<Counter, u64>,
    pub nodes: BTreeMap<u64, v1::NodeRecord>,
    /// How often a node's record was set since these records were begun.
    pub nodes_version: u64,
    pub keyspaces: BTreeMap<u64, v1::Keyspace>,
    pub orders: BTreeMap<u64, v1::OrderRecord>,
    pub births: BTreeMap<u64, v1::BirthRecord>,
    pub history: History,
    /// Ranges that a neighbour is being merged into, by an order on that neighbour.
    pub merge_targets: BTreeSet<u64>,
}

impl Records {
    pub fn apply(&mut self, change: &Change) {
        match change.clone() {
            Change::Cluster(record) => self.cluster = record,
            Change::Reign(record) => self.reign = record,
            Change::Next(counter, next) => drop(self.next.insert(counter, next)),
            Change::Node(record) => {
                self.nodes_version += 1;
                self.nodes.insert(record.node_id, record);
            }
            Change::Keyspace(record) => drop(self.keyspaces.insert(record.keyspace_id, record)),
            Change::Order(range, record) => {
                self.forget_target(range);
                self.merge_targets.extend(merge_target(&record));
                self.orders.insert(range, record);
            }
            Change::NoOrder(range) => {
                self.forget_target(range);
                self.orders.remove(&range);
            }
            Change::Birth(range, record) => drop(self.births.insert(range, record)),
            Change::NoBirth(range) => drop(self.births.remove(&range)),
            Change::History(first, page) => self.history.set(first, page),
            Change::NoHistory(first) => self.history.remove(first),
        }
    }

    fn forget_target(&mut self, range: u64) {
        if let Some(target) = self.orders.get(&range).and_then(merge_target) {
            self.merge_targets.remove(&target);
        }
    }

    /// What must be there for a service to run on.
    pub fn check(&self) -> Result<(), String> {
        if self.cluster.cluster_id == 0 {
            return Err("the system range holds no cluster record".into());
        }
        for counter in [Counter::Keyspace, Counter::Node, Counter::Order, Counter::Range] {
            if self.next.get(&counter).is_none_or(|next| *next == 0) {
                return Err(format!("the system range holds no counter for {counter:?} ids"));
            }
        }
        Ok(())
    }

    /// The keyspace of this name that there is now.
    pub fn keyspace_named(&self, name: &str) -> Option<&v1::Keyspace> {
        self.keyspaces.values().find(|keyspace| keyspace.name == name && is_normal(keyspace))
    }

    /// The keyspace of this id, unless it was dropped.
    pub fn keyspace(&self, id: u64) -> Option<&v1::Keyspace> {
        self.keyspaces.get(&id).filter(|keyspace| is_normal(keyspace))
    }

    pub fn is_dropped(&self, keyspace: u64) -> bool {
        self.keyspaces.get(&keyspace).is_some_and(|keyspace| !is_normal(keyspace))
    }

    /// Whether this range was to begin when the system range last went back to what one survivor knew. What became of it may be
    /// lost: the service of that time may have had it begin, on this node or another, and placement then have moved,
    /// split or merged it.
    pub fn may_have_begun(&self, range: u64) -> bool {
        range < self.reign.first_range_id
    }

    /// Keyspaces that clients may use.
    pub fn offered(&self) -> Vec<v1::Keyspace> {
        let offered = |keyspace: &&v1::Keyspace| is_normal(keyspace) && keyspace.keyspace_id != SYSTEM_KEYSPACE.0;
        self.keyspaces.values().filter(offered).cloned().collect()
    }
}

fn is_normal(keyspace: &v1::Keyspace) -> bool {
    keyspace.state() == v1::KeyspaceState::Normal
}

/// The range that an order merges its range into, if it does.
pub(crate) fn merge_target(record: &v1::OrderRecord) -> Option<u64> {
    Some(record.order.as_ref()?.merge_into.as_ref()?.range_id)
}

/// Load balance: what has been measured over a while, and what was done of late.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heat {
    /// What each node's ranges cost it, smoothed: requests a second.
    pub smooth: BTreeMap<u64, f64>,
    pub smoothed_at: Duration,
    /// Ranges that were moved for their load, and when.
    pub moved: BTreeMap<u64, Duration>,
    /// Ranges that a person has had moved, and when that was done.
    pub asked: BTreeMap<u64, Duration>,
}

/// What the service knows; decisions are functions of it.
#[derive(Debug)]
pub(crate) struct State {
    pub config: Config,
    pub now: Duration,
    /// The time for people at the origin of `now`, in milliseconds since 1970; 0: nobody told.
    pub unix_ms_at_origin: u64,
    pub loaded_at: Duration,
    /// Nodes that joined in this reign, and when.
    pub joined: BTreeMap<u64, Duration>,
    /// All is known that there is.
    pub settled: bool,
    pub acked: Records,
    pub ahead: Records,
    pub table: Table,
    pub reports: Reports,
    /// Of the nodes and keyspaces in `ahead`.
    pub places: Places,
    pub speeds: Speeds,
    pub heat: Heat,
    /// Until when nodes are in maintenance.
    pub maintenance: BTreeMap<u64, Duration>,
    /// Ranges whose replicas are being brought together with those of a neighbour, to be merged: each with the left one
    /// of the two. They are left alone by everything but repair.
    pub pairs: BTreeMap<u64, Pair>,
}

/// Two neighbours that are to be merged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pair {
    pub left: u64,
    pub until: Duration,
    /// Somebody asked for it.
    pub asked: bool,
}

impl State {
    /// How long nothing was heard of a node; of one that has not reported to this reign, since that began, or since
    /// the node joined.
    pub fn silence(&self, node: u64) -> Duration {
        let joined = || self.joined.get(&node).copied().unwrap_or(self.loaded_at);
        let heard = self.reports.node(node).map_or_else(joined, |report| report.heard);
        self.now.saturating_sub(heard)
    }

    /// Part of the cluster, and heard of just now.
    pub fn is_live(&self, node: u64) -> bool {
        self.is_member(node) && self.reports.node(node).is_some() && self.silence(node) <= self.config.node_live_for
    }

    /// Never to be counted on again: removed, unknown, or silent for too long; in maintenance it may be silent.
    pub fn is_dead(&self, node: u64) -> bool {
        !self.is_member(node) || (self.silence(node) > self.config.node_dead_after && !self.is_in_maintenance(node))
    }

    /// Whether the range is not to count on the node any more. Maintenance excuses the silence of one of its voters: if
    /// another one is silent too, the range is in danger, and whoever has been silent for long is replaced.
    pub fn is_dead_for(&self, node: u64, descriptor: &impl Members) -> bool {
        if self.is_dead(node) {
            return true;
        }
        let long = || self.silence(node) > self.config.node_dead_after;
        let other = || voters(descriptor).any(|other| other != node && self.is_lost(other));
        self.is_in_maintenance(node) && long() && other()
    }

    /// Silent for so long that an order must not wait for it, dead or not.
    pub fn is_lost(&self, node: u64) -> bool {
        self.is_dead(node) || self.silence(node) > self.config.node_live_for * 3
    }

    pub fn is_member(&self, node: u64) -> bool {
        self.ahead.nodes.get(&node).is_some_and(|record| !record.removed)
    }

    pub fn is_draining(&self, node: u64) -> bool {
        self.ahead.nodes.get(&node).is_some_and(|record| record.draining)
    }

    /// All its replicas are to leave it.
    pub fn is_decommissioning(&self, node: u64) -> bool {
        self.ahead.nodes.get(&node).is_some_and(|record| record.decommissioning)
    }

    pub fn is_in_maintenance(&self, node: u64) -> bool {
        self.maintenance_left(node) > Duration::ZERO
    }

    pub fn maintenance_left(&self, node: u64) -> Duration {
        self.maintenance.get(&node).map_or(Duration::ZERO, |until| until.saturating_sub(self.now))
    }

    /// Its process is about to end, and hands over what it leads: it may be back in a moment.
    pub fn is_leaving(&self, node: u64) -> bool {
        self.reports.node(node).is_some_and(|report| report.info.draining)
    }

    pub fn is_full(&self, node: u64) -> bool {
        self.reports.node(node).is_some_and(|report| report.disk_full)
    }

    /// May be given new replicas, and leaders.
    pub fn is_fit(&self, node: u64) -> bool {
        self.is_live(node) && !self.is_leaving(node) && self.must_not_lead(node).is_none()
    }

    /// Why what the node leads is to be led by others, if it is; the kind of such orders, and the words for them.
    pub fn must_not_lead(&self, node: u64) -> Option<(OrderKind, String)> {
        let because = |kind, what: &str| Some((kind, format!("node {node} {what}")));
        if self.is_decommissioning(node) {
            return because(OrderKind::Decommission, "is being decommissioned");
        }
        if self.is_draining(node) {
            return because(OrderKind::Drain, "drains");
        }
        if self.is_in_maintenance(node) {
            return because(OrderKind::Drain, "is in maintenance");
        }
        if self.is_full(node) {
            return because(OrderKind::UnfitLeader, "has no disk space to spare");
        }
        let slow = self.speeds.slow(node)?;
        Some((OrderKind::UnfitLeader, format!("node {node} is slow: {slow}")))
    }

    /// Whether the node may be counted on for replicas in the long run, of this keyspace.
    pub fn could_hold(&self, keyspace: u64, node: u64) -> bool {
        let stays = !self.is_dead(node) && !self.is_decommissioning(node) && !self.is_draining(node);
        stays && self.places.allows(keyspace, node)
    }

    /// Seconds since any origin.
    pub fn now_s(&self) -> u32 {
        u32::try_from(self.now.as_secs()).unwrap_or(u32::MAX)
    }

    /// Whether balance leaves the range as it is for a while: its leader has just changed, or a person has had it moved.
    pub fn rests(&self, route: &Route) -> bool {
        let rest = self.config.balance_rest;
        let asked = self.heat.asked.get(&route.descriptor.range_id);
        asked.is_some_and(|at| self.now.saturating_sub(*at) < rest)
            || route.led_since_s != 0 && u64::from(self.now_s().saturating_sub(route.led_since_s)) < rest.as_secs()
    }

    /// Notes whether all is known, from now on: every node that is not dead has reported all its ranges to this reign
    /// once. One that joined since holds nothing that is not known.
    pub fn settle(&mut self) {
        self.settled = self.settled || !self.unreported().any(|node| !self.is_dead(node));
    }

    /// Whether enough is known to decide. A node that is down, or was lost for good, is not waited for until it is dead:
    /// its replicas stand in what others have reported, and are not given up any sooner.
    pub fn may_decide(&self) -> bool {
        self.settled || !self.unreported().any(|node| !self.is_lost(node))
    }

    /// Whether of every key a range is known that holds it, or is to begin with it. A service that has just begun may know
    /// none of some, if all who could tell are dead.
    pub fn knows_every_range(&self) -> bool {
        let keyspaces = self.ahead.keyspaces.values().filter(|of| of.state() != v1::KeyspaceState::Dropped);
        let births: Vec<&v1::RangeDescriptor> =
            self.ahead.births.values().filter_map(|birth| birth.descriptor.as_ref()).collect();
        keyspaces.map(|of| of.keyspace_id).all(|keyspace| {
            let routes = self.table.of_keyspace(keyspace).map(|route| &route.descriptor);
            let mut spans: Vec<(&[u8], &[u8])> = routes.map(|of| (&of.start[..], &of.end[..])).collect();
            let births = births.iter().filter(|of| of.keyspace_id == keyspace);
            spans.extend(births.map(|of| (&of.start[..], &of.end[..])));
            spans.sort_unstable();
            let mut reached = Some(&b""[..]);
            for (start, end) in spans {
                match reached {
                    None => break,
                    Some(known) if start > known => return false,
                    Some(known) => reached = (!end.is_empty()).then_some(known.max(end)),
                }
            }
            reached.is_none()
        })
    }

    /// Nodes that may hold what the records have lost with the system range's majority, and have not told yet. However
    /// long they are silent, they are waited for: what they hold was written to.
    pub fn witnesses(&self) -> impl Iterator<Item = u64> + '_ {
        let newcomers = self.ahead.reign.first_node_id;
        self.unreported().filter(move |node| *node < newcomers && self.is_member(*node))
    }

    /// Whether every node that is not dead has told this reign all that it has, the youngest among them, and behind the last
    /// recovery: a range that none of them has named is nowhere.
    pub fn all_is_told(&self) -> bool {
        let told = |node: u64| self.reports.node(node).is_some_and(|report| report.complete);
        self.ahead.nodes.keys().all(|node| self.is_dead(*node) || told(*node))
    }

    /// Nodes that have not reported all their ranges to this reign.
    fn unreported(&self) -> impl Iterator<Item = u64> + '_ {
        let known = |node: u64| self.reports.node(node).is_some_and(|report| report.complete);
        self.ahead.nodes.keys().copied().filter(move |node| !self.joined.contains_key(node) && !known(*node))
    }
}
