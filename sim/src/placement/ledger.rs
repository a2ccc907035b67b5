//! The system range's records, kept from what its replicas apply, apart from the service that writes them; and what
//! must hold of them, and of everything that the service sends out:
//!
//! - no write of a fenced service takes effect: (reign, loads) never go back;
//! - ids of nodes, keyspaces, ranges and orders are given out once; what was dropped does not come back;
//! - nothing leaves the service that is not applied in the system range.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotilla_engine::apply::Applied;
use flotilla_engine::command;
use flotilla_placement::{Change, Counter, Response};
use flotilla_proto::ids::SYSTEM_KEYSPACE;
use flotilla_proto::{Result, v1};
use raft::eraftpb::Entry;
use v1::write_op::Op;

use crate::invariants::Check;

/// Something that others act on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum News {
    Created(v1::Keyspace),
    Dropped(u64),
    Ordered(v1::OrderRecord),
    /// A node was removed for good.
    Removed(u64),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Entries that were given to an apply stage, by index.
    entries: BTreeMap<u64, v1::Command>,
    applied: u64,
    /// The entry that last told of a new node.
    pub nodes_at: u64,
    reign: (u64, u64),
    next: BTreeMap<String, u64>,
    pub nodes: BTreeMap<u64, v1::NodeRecord>,
    pub keyspaces: BTreeMap<u64, v1::Keyspace>,
    pub births: BTreeMap<u64, v1::RangeDescriptor>,
    pub orders: BTreeMap<u64, v1::OrderRecord>,
    /// All that there ever were.
    orders_ever: BTreeMap<u64, v1::RangeOrder>,
    /// Orders that the history tells of: each before it is written, or with it.
    told: BTreeSet<u64>,
    births_ever: BTreeMap<u64, (u64, Bytes, Bytes)>,
    /// Ids given to nodes for children: first, and first behind.
    blocks: BTreeMap<u64, u64>,
}

impl Ledger {
    pub(super) fn new(records: Vec<(Bytes, Bytes)>) -> Self {
        let mut ledger = Self::default();
        for (key, value) in records {
            if let Ok(change) = Change::decode(&key, &value) {
                // The history that told of it may have been cut since.
                if let Change::Order(_, record) = &change {
                    ledger.told.extend(record.order.as_ref().map(|order| order.order_id));
                }
                ledger.put(change).unwrap_or_default();
            }
        }
        ledger
    }

    /// What the system range goes on with after the loss of its majority: ids that were given out behind that may come again.
    pub(super) fn going_on(records: Vec<(Bytes, Bytes)>, applied: u64) -> Self {
        Self { applied, ..Self::new(records) }
    }

    /// Entries on their way to a replica's apply stage.
    pub(crate) fn committed(&mut self, entries: &[Entry]) {
        for entry in entries.iter().filter(|entry| entry.index > self.applied && !entry.data.is_empty()) {
            if let Ok((command, _)) = command::decode(entry.data.clone()) {
                self.entries.insert(entry.index, command);
            }
        }
    }

    /// A replica has applied them.
    pub(crate) fn applied(&mut self, done: &Applied) -> std::result::Result<Vec<News>, String> {
        let mut news = Vec::new();
        for entry in &done.results {
            if entry.index <= self.applied {
                continue;
            }
            self.applied = entry.index;
            let (Some(command), Ok(results)) = (self.entries.remove(&entry.index), &entry.requests) else { continue };
            for (request, results) in command.requests.iter().zip(results) {
                if results.iter().all(|result| result.applied) {
                    self.batch(request, &mut news)?;
                }
            }
        }
        Ok(news)
    }

    fn batch(&mut self, request: &v1::WriteRequest, news: &mut Vec<News>) -> Check {
        if !request.atomic {
            return Err("the placement service writes a batch that is not atomic".into());
        }
        let before = self.next.clone();
        for op in &request.ops {
            match &op.op {
                Some(Op::Put(put)) => news.extend(self.put(Change::decode(&put.key, &put.value)?)?),
                Some(Op::CompareAndSwap(swap)) => {
                    let value = swap.new_value.clone().unwrap_or_default();
                    news.extend(self.put(Change::decode(&swap.key, &value)?)?);
                }
                Some(Op::Delete(delete)) => self.delete(&delete.key),
                _ => return Err(format!("the placement service writes {op:?}")),
            }
        }
        if let Some((name, next)) = before.iter().find(|(name, next)| self.next.get(*name) < Some(*next)) {
            return Err(format!("ids of {name} go back below {next}"));
        }
        let next = self.next_id(Counter::Keyspace);
        let beyond = |id: &&u64| **id != SYSTEM_KEYSPACE.0 && **id >= next;
        if let Some(id) = self.keyspaces.keys().rfind(beyond) {
            return Err(format!("keyspace {id} is written, and the next id is {next}: it would be given out again"));
        }
        Ok(())
    }

    fn delete(&mut self, key: &[u8]) {
        let id = |kind: &[u8]| Some(u64::from_be_bytes(key.strip_prefix(kind)?.try_into().ok()?));
        if let Some(range) = id(b"order/") {
            self.orders.remove(&range);
        }
        if let Some(range) = id(b"birth/") {
            self.births.remove(&range);
        }
    }

    fn put(&mut self, change: Change) -> std::result::Result<Option<News>, String> {
        match change {
            Change::Reign(record) => {
                let reign = (record.reign, record.loads);
                if reign < self.reign {
                    return Err(format!("a write of reign {reign:?} takes effect after one of {:?}", self.reign));
                }
                self.reign = reign;
            }
            Change::Next(counter, next) => drop(self.next.insert(format!("{counter:?}"), next)),
            Change::Node(record) => {
                if !self.nodes.contains_key(&record.node_id) {
                    self.nodes_at = self.applied;
                }
                return self.put_node(record);
            }
            Change::Keyspace(record) => return self.put_keyspace(record),
            Change::Order(range, record) => return self.put_order(range, record),
            Change::Birth(range, record) => {
                let descriptor = record.descriptor.ok_or("a birth without a descriptor")?;
                let span = (descriptor.keyspace_id, descriptor.start.clone(), descriptor.end.clone());
                if self.births_ever.entry(range).or_insert(span.clone()) != &span {
                    return Err(format!("range id {range} is given to a second span"));
                }
                if let Some((first, _)) = self.blocks.iter().find(|(first, end)| (**first..**end).contains(&range)) {
                    return Err(format!("range id {range} is born, and belongs to the block of ids at {first}"));
                }
                self.births.insert(range, descriptor);
            }
            Change::Cluster(_) | Change::NoOrder(_) | Change::NoBirth(_) | Change::NoHistory(_) => {}
            // The batch is in order of its keys: the history comes before the orders.
            Change::History(_, page) => self.told.extend(page.entries.iter().map(|entry| entry.order_id)),
        }
        Ok(None)
    }

    fn put_node(&mut self, record: v1::NodeRecord) -> std::result::Result<Option<News>, String> {
        let (id, store, removed) = (record.node_id, record.store_id, record.removed);
        let known = self.nodes.insert(id, record);
        if known.as_ref().is_some_and(|known| known.store_id != store) {
            return Err(format!("node id {id} is given to a second store"));
        }
        let was_removed = known.is_some_and(|known| known.removed);
        if was_removed && !removed {
            return Err(format!("node {id} was removed for good, and comes back"));
        }
        Ok((removed && !was_removed).then_some(News::Removed(id)))
    }

    fn put_keyspace(&mut self, record: v1::Keyspace) -> std::result::Result<Option<News>, String> {
        let dropped = record.state() == v1::KeyspaceState::Dropped;
        let id = record.keyspace_id;
        let known = self.keyspaces.insert(id, record.clone());
        match known {
            // Created and dropped in one write, if both were asked for while the write before theirs was under way: both
            // are answered, in their order, and nobody had heard of it before. Its id is used up all the same.
            None if dropped => Ok(None),
            None => Ok(Some(News::Created(record))),
            Some(known) if known.name != record.name => Err(format!("keyspace id {id} is given to a second name")),
            Some(known) if known.state() == v1::KeyspaceState::Dropped && !dropped => {
                Err(format!("keyspace {id} was dropped, and comes back"))
            }
            Some(known) if known.state() == v1::KeyspaceState::Normal && dropped => Ok(Some(News::Dropped(id))),
            Some(_) => Ok(None),
        }
    }

    fn put_order(&mut self, range: u64, record: v1::OrderRecord) -> std::result::Result<Option<News>, String> {
        let order = record.order.clone().ok_or("an order record without an order")?;
        self.orders.insert(range, record.clone());
        if !self.told.contains(&order.order_id) {
            return Err(format!("order {} is written, and the history does not tell of it", order.order_id));
        }
        match self.orders_ever.insert(order.order_id, order.clone()) {
            None => Ok(Some(News::Ordered(record))),
            Some(known) if known == order => Ok(None),
            Some(known) => Err(format!("order id {} is used twice: {known:?} and {order:?}", order.order_id)),
        }
    }

    /// The service answers: what it says must stand here.
    pub(super) fn answered(&mut self, result: &Result<Response>) -> Check {
        match result {
            Ok(Response::Report(answer)) => self.check_report(answer),
            Ok(Response::Join(answer)) if !self.nodes.contains_key(&answer.node_id) => {
                Err(format!("node id {} is told before it is written", answer.node_id))
            }
            Ok(Response::CreateKeyspace(answer)) => {
                let id = answer.keyspace.as_ref().map_or(0, |keyspace| keyspace.keyspace_id);
                let known = self.keyspaces.contains_key(&id);
                if known { Ok(()) } else { Err(format!("keyspace {id} is told before it is written")) }
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn next_id(&self, counter: Counter) -> u64 {
        self.next.get(&format!("{counter:?}")).copied().unwrap_or(0)
    }

    fn check_report(&mut self, answer: &v1::ReportResponse) -> Check {
        for order in answer.orders.iter().filter(|order| order.order_id != 0) {
            if self.orders_ever.get(&order.order_id) != Some(order) {
                return Err(format!("an order leaves before it is written: {order:?}"));
            }
        }
        for birth in &answer.births {
            if !self.births_ever.contains_key(&birth.range_id) {
                return Err(format!("range {} is to be born before that is written", birth.range_id));
            }
        }
        let named: BTreeSet<u64> = answer.keyspaces.iter().map(|keyspace| keyspace.keyspace_id).collect();
        if let Some(id) = named.iter().find(|id| !self.keyspaces.contains_key(id)) {
            return Err(format!("keyspace {id} is told before it is written"));
        }
        let (first, end) = (answer.first_range_id, answer.first_range_id + u64::from(answer.range_ids));
        if first == end {
            return Ok(());
        }
        let next = self.next_id(Counter::Range);
        let before = self.blocks.range(..end).next_back().filter(|(_, other)| **other > first);
        let born = self.births_ever.range(first..end).next();
        if end > next || before.is_some() || born.is_some() {
            return Err(format!("range ids {first} to {end} are given out: {next} is next, {before:?} {born:?}"));
        }
        self.blocks.insert(first, end);
        Ok(())
    }

    /// Whether the keyspace was dropped.
    pub(crate) fn is_dropped(&self, keyspace: u64) -> bool {
        self.keyspaces.get(&keyspace).is_some_and(|of| of.state() == v1::KeyspaceState::Dropped)
    }

    /// Whether there is the keyspace, as far as the system range knows.
    pub(crate) fn lives(&self, keyspace: u64) -> bool {
        self.living().any(|of| of.keyspace_id == keyspace)
    }

    /// The keyspaces that there are, the system's among them.
    pub(crate) fn living(&self) -> impl Iterator<Item = &v1::Keyspace> {
        self.keyspaces.values().filter(|of| of.state() == v1::KeyspaceState::Normal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(ledger: &mut Ledger, changes: &[Change]) -> Check {
        let put = |change: &Change| {
            let (key, value) = change.encode();
            let put = v1::Put { key, value: value.unwrap_or_default(), ..Default::default() };
            v1::WriteOp { op: Some(Op::Put(put)) }
        };
        let request = v1::WriteRequest { ops: changes.iter().map(put).collect(), atomic: true };
        ledger.batch(&request, &mut Vec::new())
    }

    #[test]
    fn a_keyspace_whose_record_is_lost_does_not_live_and_was_not_dropped() {
        let keyspace = |keyspace_id| v1::Keyspace { keyspace_id, ..Default::default() };
        let mut ledger = Ledger::default();
        let next = Change::Next(Counter::Keyspace, 3);
        let both = [Change::Keyspace(keyspace(1)), Change::Keyspace(keyspace(2)), next];
        assert_eq!(written(&mut ledger, &both), Ok(()));
        assert!(ledger.lives(1) && ledger.lives(2));
        let (key, value) = both[0].encode();
        let ledger = Ledger::going_on(vec![(key, value.unwrap_or_default())], 7);
        assert!(ledger.lives(1) && !ledger.lives(2) && !ledger.is_dropped(2));
    }

    /// Seed 1104: the disk of the only voter took two seconds for the write before.
    #[test]
    fn a_keyspace_may_be_created_and_dropped_in_one_write_that_uses_up_its_id() {
        let mut dropped = v1::Keyspace { keyspace_id: 7, name: "young".into(), ..Default::default() };
        dropped.set_state(v1::KeyspaceState::Dropped);
        let next = |id| Change::Next(Counter::Keyspace, id);
        let mut ledger = Ledger::default();
        assert_eq!(written(&mut ledger, &[Change::Keyspace(dropped.clone()), next(8)]), Ok(()));
        assert!(ledger.is_dropped(7));
        let mut again = dropped.clone();
        again.set_state(v1::KeyspaceState::Normal);
        assert!(
            written(&mut ledger, &[Change::Keyspace(again), next(8)]).is_err_and(|what| what.contains("comes back"))
        );
        let mut ledger = Ledger::default();
        assert!(written(&mut ledger, &[Change::Keyspace(dropped), next(7)]).is_err_and(|what| what.contains("again")));
    }
}
