//! What a world is like: the quantities that scenarios speak of.

use super::judge::{closeness, may_hold, value};
use super::{Group, World};

impl World {
    fn normal(&self) -> impl Iterator<Item = &Group> {
        self.groups.values().filter(|group| group.descriptor.range_id != 1)
    }

    fn over_nodes(&self, of: impl Fn(u64) -> usize) -> (usize, usize) {
        let up: Vec<usize> = self
            .hosts
            .iter()
            .filter(|(node, host)| self.is_up(**node) && !host.full)
            .map(|(node, _)| of(*node))
            .collect();
        (up.iter().copied().min().unwrap_or(0), up.iter().copied().max().unwrap_or(0))
    }

    pub fn leads(&self, node: u64) -> usize {
        self.groups.values().filter(|group| group.leader == node).count()
    }

    fn heat(&self, node: u64) -> u64 {
        self.groups.values().filter(|group| group.leader == node).map(|group| group.heat).sum()
    }

    fn hot_leads(&self, node: u64) -> usize {
        self.groups.values().filter(|group| group.leader == node && group.heat > 0).count()
    }

    /// A quantity by its name; with an argument where it has one.
    pub fn quantity(&self, name: &str, argument: &str) -> usize {
        let node = || argument.parse::<u64>().unwrap_or_else(|_| panic!("{name} of a node, not of {argument:?}"));
        let count = |of: &dyn Fn(&Group) -> bool| self.normal().filter(|group| of(group)).count();
        match name {
            "moves" => self.judge.moves,
            "transfers" => self.judge.transfers,
            "merges" => self.judge.merges,
            "orders" => self.service.orders().len(),
            "ranges" => self.normal().count(),
            "replicas" => self.hosts[&node()].held.len(),
            "leaders" => self.leads(node()),
            "leader-of" => self.groups[&node()].leader as usize,
            "on" => {
                let (node, range) = argument.split_once('/').expect("NODE/RANGE");
                let number = |text: &str| text.parse::<u64>().expect("a number");
                usize::from(self.hosts[&number(node)].held.contains(&number(range)))
            }
            "heat" => self.heat(node()) as usize,
            "hot" => self.hot_leads(node()),
            "gap" => {
                let (min, max) = self.over_nodes(|node| self.hosts[&node].held.len());
                max - min
            }
            "lead-gap" => {
                let (min, max) = self.over_nodes(|node| self.leads(node));
                max - min
            }
            "hot-gap" => {
                let (min, max) = self.over_nodes(|node| self.hot_leads(node));
                max - min
            }
            // In percent of the mean.
            "hottest" => {
                let up = self.hosts.keys().filter(|node| self.is_up(**node)).count() as u64;
                let total: u64 = self.groups.values().map(|group| group.heat).sum();
                let (_, max) = self.over_nodes(|node| self.heat(node) as usize);
                max * 100 / (total / up.max(1)).max(1) as usize
            }
            "short" => self.lacking().len(),
            "at-risk" => count(&|group| self.live(group) <= group.descriptor.replicas.len() / 2 + 1),
            "lost" => count(&|group| self.live(group) * 2 <= group.descriptor.replicas.len()),
            "same-zone" => count(&|group| closeness(self, &group.nodes()).0 > 0),
            "same-rack" => count(&|group| closeness(self, &group.nodes()).1 > 0),
            "misplaced" => count(&|group| !group.nodes().iter().all(|node| self.may_hold(group, *node))),
            "led-in" => {
                let (key, wanted) = argument.split_once('=').expect("key=value");
                count(&|group| self.hosts.get(&group.leader).is_some_and(|host| value(&host.labels, key) == wanted))
            }
            "removed" => usize::from(!self.service.nodes().iter().any(|info| info.node_id == node())),
            "slow" => self.service.nodes().iter().filter(|info| !info.slow.is_empty()).count(),
            "problems" => self.service.problems().len(),
            other => panic!("there is no quantity {other:?}"),
        }
    }

    /// How many replicas of the range are on nodes that are up.
    fn live(&self, group: &Group) -> usize {
        // Of every range in each step that waits for something: no look at what most of them are not on.
        let down = |node: u64| !self.down.is_empty() && self.down.contains(&node);
        group.descriptor.replicas.iter().filter(|replica| !down(replica.node_id)).count()
    }

    /// Ranges that lack replicas.
    pub fn lacking(&self) -> Vec<u64> {
        let keyspaces = self.service.keyspaces();
        let wanted = |group: &Group| {
            let of = keyspaces.iter().find(|keyspace| keyspace.keyspace_id == group.descriptor.keyspace_id);
            of.map_or(0, |keyspace| keyspace.replicas as usize)
        };
        let lacking = self.normal().filter(|group| self.live(group) < wanted(group));
        lacking.map(|group| group.descriptor.range_id).collect()
    }

    fn may_hold(&self, group: &Group, node: u64) -> bool {
        let keyspaces = self.service.keyspaces();
        let keyspace = keyspaces.iter().find(|keyspace| keyspace.keyspace_id == group.descriptor.keyspace_id);
        may_hold(keyspace.and_then(|keyspace| keyspace.constraints.as_ref()), &self.hosts[&node].labels)
    }
}
