//! Looks at every order when it is given out: whether it may be given at all, with what really holds at that moment.

use std::collections::BTreeMap;

use flotilla_proto::v1;

use super::{Group, World};

/// A range with more bytes is a large one, of which a node may take part in few moves at once.
const LIGHT_BYTES_MAX: u64 = 4 << 20;
const LARGE_AT_ONCE: usize = 2;
const LEADERS_AT_ONCE: usize = 8;

/// The nodes as the service describes them.
type Infos = BTreeMap<u64, v1::NodeInfo>;

/// Counts what happens, and remembers which orders there were.
#[derive(Debug, Default)]
pub struct Judge {
    /// Orders that leaders were given, in all.
    pub given: usize,
    pub moves: usize,
    pub transfers: usize,
    pub merges: usize,
    orders: BTreeMap<u64, v1::RangeOrder>,
}

/// Labels as the judge reads them: it shares no code with what it judges.
pub fn value<'a>(labels: &'a [v1::Label], key: &str) -> &'a str {
    labels.iter().find(|label| label.key == key).map_or("", |label| &label.value)
}

pub fn may_hold(constraints: Option<&v1::Constraints>, labels: &[v1::Label]) -> bool {
    let Some(constraints) = constraints else { return true };
    constraints.require.iter().all(|label| labels.contains(label))
        && !constraints.forbid.iter().any(|label| labels.contains(label))
}

impl Judge {
    pub fn carried_out(&mut self, order: &v1::RangeOrder) {
        self.moves += order.add_nodes.len();
        self.transfers += usize::from(order.add_nodes.is_empty() && order.leader_node_id != 0);
    }

    /// What is wrong with an order that a leader has just been given, if something is.
    pub fn look(world: &mut World, order: &v1::RangeOrder) -> Option<String> {
        match world.judge.orders.insert(order.order_id, order.clone()) {
            Some(known) if known != *order => return Some(format!("order id {} was used twice", order.order_id)),
            Some(_) => return None,
            None => {}
        }
        let group = &world.groups[&order.range_id];
        let infos: Infos = world.service.nodes().into_iter().map(|info| (info.node_id, info)).collect();
        safety(world, group, order)
            .or_else(|| targets(world, &infos, group, order))
            .or_else(|| distance(world, &infos, group, order))
            .or_else(|| limits(world))
    }
}

fn after(group: &Group, order: &v1::RangeOrder) -> Vec<u64> {
    let mut nodes = group.nodes();
    nodes.extend(order.add_nodes.iter().filter(|node| !group.nodes().contains(node)));
    nodes.retain(|node| !order.remove_nodes.contains(node));
    nodes
}

/// No live replica goes without another in its place, unless there are more than asked for.
fn safety(world: &World, group: &Group, order: &v1::RangeOrder) -> Option<String> {
    let live = |nodes: &[u64]| nodes.iter().filter(|node| world.is_up(**node)).count();
    let (before, after) = (group.nodes(), after(group, order));
    let least = live(&before).min(order.replicas as usize);
    if live(&after) < least {
        return Some(format!("{} live replicas instead of {}", live(&after), live(&before)));
    }
    (live(&after) * 2 <= after.len() && live(&before) * 2 > before.len()).then(|| "it loses its majority".into())
}

/// Nothing goes where it may not be.
fn targets(world: &World, infos: &Infos, group: &Group, order: &v1::RangeOrder) -> Option<String> {
    let keyspaces = world.service.keyspaces();
    let keyspace = keyspaces.iter().find(|keyspace| keyspace.keyspace_id == group.descriptor.keyspace_id);
    let constraints = keyspace.and_then(|keyspace| keyspace.constraints.as_ref());
    for node in order.add_nodes.iter().chain(Some(&order.leader_node_id).filter(|node| **node != 0)) {
        let (Some(info), Some(host)) = (infos.get(node), world.hosts.get(node)) else {
            return Some(format!("node {node} is no part of the cluster"));
        };
        if host.full || info.draining || info.decommissioning || info.maintenance_left_ms > 0 || !info.slow.is_empty() {
            return Some(format!("node {node} is full, slow or on its way out"));
        }
    }
    let barred = order.add_nodes.iter().find(|node| !may_hold(constraints, &world.hosts[node].labels));
    barred.map(|node| format!("the constraints do not allow it on node {node}"))
}

/// Pairs of replicas in one zone, then in one rack.
pub fn closeness(world: &World, nodes: &[u64]) -> (usize, usize) {
    let labels = |node: &u64| &world.hosts[node].labels;
    let zone = |node: &u64| value(labels(node), "zone").to_owned();
    let rack = |node: &u64| (zone(node), value(labels(node), "rack").to_owned());
    let pairs = || nodes.iter().enumerate().flat_map(|(at, one)| nodes[..at].iter().map(move |other| (one, other)));
    (
        pairs().filter(|(one, other)| zone(one) == zone(other)).count(),
        pairs().filter(|(one, other)| rack(one) == rack(other)).count(),
    )
}

/// A replica that may stay where it is does not go closer to the others: only merges may bring replicas together.
fn distance(world: &World, infos: &Infos, group: &Group, order: &v1::RangeOrder) -> Option<String> {
    let stays = |node: &u64| world.is_up(*node) && infos.get(node).is_some_and(|info| !info.decommissioning);
    let aligning = world.service.orders().iter().any(|record| {
        record.order.as_ref().is_some_and(|own| own.order_id == order.order_id) && record.kind() == v1::OrderKind::Align
    });
    let swap = !order.add_nodes.is_empty() && order.add_nodes.len() == order.remove_nodes.len();
    if !swap || aligning || !order.remove_nodes.iter().all(stays) {
        return None;
    }
    let keyspaces = world.service.keyspaces();
    let keyspace = keyspaces.iter().find(|keyspace| keyspace.keyspace_id == group.descriptor.keyspace_id);
    let bound = keyspace.is_some_and(|keyspace| keyspace.constraints.is_some());
    let (before, now) = (closeness(world, &group.nodes()), closeness(world, &after(group, order)));
    (!bound && now > before).then(|| format!("its replicas come closer together: {before:?} to {now:?}"))
}

/// How many large ranges one node takes part in moving, and how many leaders come to it.
fn limits(world: &World) -> Option<String> {
    let mut coming: BTreeMap<u64, usize> = BTreeMap::new();
    let mut leaders: BTreeMap<u64, usize> = BTreeMap::new();
    for group in world.ordered.iter().filter_map(|range| world.groups.get(range)) {
        let Some(order) = &group.order else { continue };
        if group.bytes > LIGHT_BYTES_MAX {
            order.add_nodes.iter().for_each(|node| *coming.entry(*node).or_default() += 1);
        }
        if order.leader_node_id != 0 {
            *leaders.entry(order.leader_node_id).or_default() += 1;
        }
    }
    if let Some((node, count)) = coming.iter().find(|(_, count)| **count > LARGE_AT_ONCE) {
        return Some(format!("node {node} gets {count} large ranges at once"));
    }
    let (node, count) = leaders.iter().find(|(_, count)| **count > LEADERS_AT_ONCE)?;
    Some(format!("{count} leaders go to node {node} at once"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::script::spec;

    fn judged(order: v1::RangeOrder, prepare: impl FnOnce(&mut World)) -> String {
        let mut world = World::new(&spec("nodes=6 zones=a,b,c ranges=6 replicas=3 bytes=16M"));
        for _ in 0..5 {
            world.step();
        }
        prepare(&mut world);
        // Range 2 is on nodes 2, 3 and 4.
        let order = v1::RangeOrder { order_id: 99, range_id: 2, replicas: 3, ..order };
        Judge::look(&mut world, &order).unwrap_or_default()
    }

    fn order(add: &[u64], remove: &[u64], leader_node_id: u64) -> v1::RangeOrder {
        v1::RangeOrder { add_nodes: add.into(), remove_nodes: remove.into(), leader_node_id, ..Default::default() }
    }

    #[test]
    fn bad_orders_are_noticed() {
        assert_eq!(judged(order(&[5], &[2], 0), |_| {}), "");
        assert!(judged(order(&[], &[2], 0), |_| {}).contains("2 live replicas instead of 3"));
        assert!(judged(order(&[5], &[2], 0), |world| world.kill(5)).contains("2 live replicas instead of 3"));
        assert!(judged(order(&[6], &[2], 0), |_| {}).contains("closer"));
        assert!(
            judged(order(&[5], &[2], 0), |world| world.hosts.get_mut(&5).expect("there").full = true).contains("full")
        );
        assert!(judged(order(&[9], &[2], 0), |_| {}).contains("instead of"));
        assert!(judged(order(&[], &[], 9), |_| {}).contains("no part"));
        let crowd = |world: &mut World| {
            for range in [3, 4] {
                let group = world.groups.get_mut(&range).expect("a range");
                group.order = Some(order(&[5], &[], 0));
            }
            world.ordered.extend([2, 3, 4]);
            world.groups.get_mut(&2).expect("a range").order = Some(order(&[5], &[2], 0));
        };
        assert!(judged(order(&[5], &[2], 0), crowd).contains("3 large ranges"));
        let twice = |world: &mut World| {
            drop(Judge::look(world, &v1::RangeOrder { order_id: 99, range_id: 3, ..Default::default() }))
        };
        assert!(judged(order(&[5], &[2], 0), twice).contains("twice"));
    }
}
