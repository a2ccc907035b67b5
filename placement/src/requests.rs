//! What people and new nodes ask for: checked, then staged as changes of records. Every refusal says what would be
//! allowed.

use std::time::Duration;

use flotilla_proto::ids::SYSTEM_KEYSPACE;
use flotilla_proto::v1::{self, OrderKind};
use flotilla_proto::{Error, RangeId, Result};

use crate::borders::{bounds, descriptor};
use crate::constraints;
use crate::decide::loads::Loads;
use crate::decide::{Decision, holds, is_joint, voters};
use crate::history::{self, kind};
use crate::names::{self, SYSTEM_KEYSPACE_NAME};
use crate::places;
use crate::records::{Change, Counter};
use crate::service::{Answer, Response, Service, Token};
use crate::table::compact::Members;
use crate::waiters::{Waiter, Wants};

/// Ranges that a keyspace created by request may begin with: all of its records are one batch.
pub const CREATED_RANGES_MAX: u32 = 1_000;
const REPLICAS_DEFAULT: u32 = 3;
/// Largest id that a node may ask for: more nodes than there will ever be.
const NODE_ID_MAX: u64 = 1_000_000;

impl Service {
    pub(crate) fn on_join(&mut self, token: Token, request: v1::JoinRequest) -> Result<()> {
        let cluster = &self.state.acked.cluster;
        if !request.cluster_name.is_empty() && request.cluster_name != cluster.name {
            let what = format!("this is cluster {:?}, not {:?}", cluster.name, request.cluster_name);
            return Err(Error::ClusterMismatch { what });
        }
        let (min, max) = self.state.config.protocol;
        if request.protocol_max < min || request.protocol_min > max {
            let what = format!(
                "the node speaks protocols {} to {}, the cluster {min} to {max}: use a version that they share",
                request.protocol_min, request.protocol_max
            );
            return Err(Error::ClusterMismatch { what });
        }
        if request.store_id == 0 || request.peer_addr.is_empty() {
            let hint = "a node joins with the id of its store and an address where other nodes reach it";
            return Err(Error::invalid("a store without an id or without an address wants to join", hint));
        }
        let known = self.state.ahead.nodes.values().find(|record| record.store_id == request.store_id);
        if let Some(record) = known.filter(|record| record.removed) {
            let what = format!("this store was node {}, which was removed for good", record.node_id);
            return Err(Error::ClusterMismatch { what: format!("{what}: wipe its data directory to join anew") });
        }
        constraints::check_labels(&request.labels)?;
        let before = known.cloned().unwrap_or_default();
        let node = before.node_id;
        let mut changes = Vec::new();
        let mut told = Vec::new();
        let next = self.next_id(Counter::Node);
        let new = node == 0;
        let node = match (node, request.node_id) {
            (0, 0) => next,
            (0, wanted) => self.free_id(wanted, next)?,
            (known, 0) => known,
            (known, wanted) if wanted != known => {
                let hint = format!("give it the certificate of node {known}, or an empty data directory");
                return Err(Error::invalid(format!("this store is node {known}, and not node {wanted}"), hint));
            }
            (known, _) => known,
        };
        if new {
            self.state.joined.insert(node, self.state.now);
            changes.push(Change::Next(Counter::Node, next.max(node + 1)));
            told.push(history::of_nodes(kind::JOINED, &[node], format!("at {}", request.peer_addr)));
        }
        changes.push(Change::Node(v1::NodeRecord {
            node_id: node,
            store_id: request.store_id,
            peer_addr: request.peer_addr,
            client_addr: request.client_addr,
            http_addr: request.http_addr,
            version: request.version,
            labels: request.labels,
            ..before
        }));
        self.effects.notes.push(format!("node {node} joins (store {:x})", request.store_id));
        let unit = self.stage_told(changes, told);
        self.wait(token, unit, Wants::Joined { node });
        Ok(())
    }

    /// The id that a node's certificate names, if no node has or had it.
    fn free_id(&self, wanted: u64, next: u64) -> Result<u64> {
        let what = if wanted > NODE_ID_MAX {
            format!("node ids go up to {NODE_ID_MAX}, and this one is {wanted}")
        } else if self.state.ahead.nodes.contains_key(&wanted) {
            format!("node {wanted} is in the cluster already, or was, with another store")
        } else {
            return Ok(wanted);
        };
        Err(Error::invalid(
            what,
            format!("give the new node a certificate of its own: `flotilla cert node --id {next}`"),
        ))
    }

    pub(crate) fn on_create_keyspace(&mut self, token: Token, request: v1::CreateKeyspaceRequest) -> Result<()> {
        names::check_name(&request.name)?;
        let replicas = if request.replicas == 0 { REPLICAS_DEFAULT } else { request.replicas };
        names::check_replicas(replicas)?;
        if let Some(boundary) = &request.boundary {
            names::check_boundary(boundary)?;
        }
        let split_bytes = request.split_bytes.unwrap_or(self.state.config.split_bytes);
        names::check_split_bytes(split_bytes)?;
        names::check_split_load(request.split_queries_per_s, request.split_load_bytes_per_s)?;
        if let Some(constraints) = &request.constraints {
            constraints::check(&self.state, constraints, replicas, request.nodes_will_come)?;
        }
        let ranges = request.ranges.max(1);
        if ranges > CREATED_RANGES_MAX {
            let hint = format!("a keyspace begins with 1 to {CREATED_RANGES_MAX}; split its ranges for more");
            return Err(Error::invalid(format!("{ranges} ranges"), hint));
        }
        if self.state.ahead.keyspace_named(&request.name).is_some() {
            return Err(Error::KeyspaceExists { name: request.name });
        }
        let id = self.next_id(Counter::Keyspace);
        if id >= SYSTEM_KEYSPACE.0 {
            return Err(Error::invalid("there are no ids for keyspaces left", "ids of keyspaces are never used again"));
        }
        // What was cut beforehand stays so, unless it is said otherwise.
        let mut merge = request.merge.unwrap_or_default();
        merge.ranges_min = if merge.ranges_min == 0 { ranges } else { merge.ranges_min };
        let keyspace = v1::Keyspace {
            keyspace_id: id,
            name: request.name,
            replicas,
            boundary: request.boundary,
            split_bytes,
            state: v1::KeyspaceState::Normal.into(),
            version: 1,
            constraints: request.constraints,
            merge: Some(merge),
            split_queries_per_s: request.split_queries_per_s,
            split_load_bytes_per_s: request.split_load_bytes_per_s,
        };
        let births = self.births(&keyspace, ranges)?;
        let what = format!("keyspace {:?} (id {id}), {} replicas, ranges: {ranges}", keyspace.name, keyspace.replicas);
        let told = history::of_keyspace(kind::CREATED, what);
        let mut changes = vec![Change::Next(Counter::Keyspace, id + 1), Change::Keyspace(keyspace)];
        changes.push(Change::Next(Counter::Range, self.next_id(Counter::Range) + births.len() as u64));
        let ranges = births.iter().filter_map(|birth| match birth {
            Change::Birth(range, _) => Some(*range),
            _ => None,
        });
        self.work.unsent.extend(ranges);
        changes.extend(births);
        let unit = self.stage_told(changes, vec![told]);
        let deadline = self.state.now + self.state.config.create_wait;
        self.wait(token, unit, Wants::Created { keyspace: id, deadline });
        Ok(())
    }

    /// The first ranges of a keyspace, dealt round the nodes that may be given replicas, the emptiest first.
    fn births(&self, keyspace: &v1::Keyspace, ranges: u32) -> Result<Vec<Change>> {
        let loads = Loads::of(&self.state);
        // Its constraints are not among those that are known yet.
        let labels = |node: u64| self.state.ahead.nodes.get(&node).map_or(&[][..], |record| &record.labels);
        let bound = keyspace.constraints.as_ref();
        let may = |node: u64| bound.is_none_or(|constraints| places::allows(constraints, labels(node)));
        let fit = loads.iter().filter(|load| load.fit && may(load.node));
        let mut nodes: Vec<(i64, u64)> = fit.map(|load| (load.replicas, load.node)).collect();
        nodes.sort_unstable();
        if nodes.is_empty() {
            let reason = "no node can be given ranges now: they are silent, full or being drained";
            return Err(Error::Unavailable { reason: reason.into() });
        }
        let first = self.next_id(Counter::Range);
        let birth = |(at, bounds): (usize, (bytes::Bytes, bytes::Bytes))| {
            let range = first + at as u64;
            let node = nodes[at % nodes.len()].1;
            let descriptor = Some(descriptor(range, keyspace.keyspace_id, bounds, &[node]));
            Change::Birth(range, v1::BirthRecord { descriptor })
        };
        Ok(bounds(ranges).into_iter().enumerate().map(birth).collect())
    }

    pub(crate) fn on_set_keyspace(&mut self, token: Token, request: &v1::SetKeyspaceRequest) -> Result<()> {
        let Some(keyspace) = self.state.ahead.keyspace_named(&request.name) else {
            return Err(Error::KeyspaceNotFound { name: request.name.clone() });
        };
        let mut now = keyspace.clone();
        let cuts = request.boundary.is_some() || request.split_bytes.is_some() || request.merge.is_some();
        let cuts = cuts || request.split_queries_per_s.is_some() || request.split_load_bytes_per_s.is_some();
        if now.keyspace_id == SYSTEM_KEYSPACE.0 && cuts {
            let hint = "its number of replicas and its constraints can be set, and nothing else";
            return Err(Error::invalid("the system range is never split or merged", hint));
        }
        if let Some(replicas) = request.replicas {
            names::check_replicas(replicas)?;
            now.replicas = replicas;
        }
        if let Some(boundary) = &request.boundary {
            names::check_boundary(boundary)?;
            now.boundary = Some(*boundary);
        }
        if let Some(split_bytes) = request.split_bytes {
            names::check_split_bytes(split_bytes)?;
            now.split_bytes = split_bytes;
        }
        names::check_split_load(request.split_queries_per_s, request.split_load_bytes_per_s)?;
        now.split_queries_per_s = request.split_queries_per_s.or(now.split_queries_per_s);
        now.split_load_bytes_per_s = request.split_load_bytes_per_s.or(now.split_load_bytes_per_s);
        if let Some(constraints) = &request.constraints {
            now.constraints = Some(constraints.clone());
        }
        if let Some(constraints) =
            now.constraints.as_ref().filter(|_| request.constraints.is_some() || request.replicas.is_some())
        {
            constraints::check(&self.state, constraints, now.replicas, request.nodes_will_come)?;
        }
        if let Some(merge) = request.merge {
            let before = now.merge.unwrap_or_default().ranges_min;
            now.merge = Some(v1::MergePolicy {
                ranges_min: if merge.ranges_min == 0 { before } else { merge.ranges_min },
                ..merge
            });
        }
        let told = history::of_keyspace(kind::SET, settings_changed(keyspace, &now));
        now.version += 1;
        let unit = self.stage_told(vec![Change::Keyspace(now.clone())], vec![told]);
        self.work.sweep();
        let response = v1::SetKeyspaceResponse { keyspace: Some(now) };
        self.wait(token, unit, Wants::Written(Response::SetKeyspace(response)));
        Ok(())
    }

    /// Any keyspace may be dropped, `default` too; only the system's own may not.
    pub(crate) fn on_drop_keyspace(&mut self, token: Token, request: &v1::DropKeyspaceRequest) -> Result<()> {
        if request.name == SYSTEM_KEYSPACE_NAME {
            let hint = "any other keyspace can be dropped";
            return Err(Error::invalid("the system keyspace holds the cluster's own records", hint));
        }
        let Some(keyspace) = self.state.ahead.keyspace_named(&request.name) else {
            return Err(Error::KeyspaceNotFound { name: request.name.clone() });
        };
        let mut dropped = keyspace.clone();
        dropped.set_state(v1::KeyspaceState::Dropped);
        dropped.version += 1;
        let what = format!("keyspace {:?} (id {})", dropped.name, dropped.keyspace_id);
        self.effects.notes.push(format!("{what} is dropped"));
        let told = history::of_keyspace(kind::DROPPED, what);
        let unit = self.stage_told(vec![Change::Keyspace(dropped)], vec![told]);
        self.wait(token, unit, Wants::Written(Response::DropKeyspace(v1::DropKeyspaceResponse {})));
        Ok(())
    }

    pub(crate) fn on_move_replica(&mut self, token: Token, request: &v1::MoveReplicaRequest) -> Result<()> {
        let (range, from, to) = (request.range_id, request.from_node_id, request.to_node_id);
        if let Some((unit, order_id)) = self.same_move(request) {
            // Asked for once more: the first answer may have been lost, or people wait for it in two places.
            let wants = self.moved(order_id, request.timeout_ms);
            self.wait(token, unit, wants);
            return Ok(());
        }
        self.check_move(range, from, to)?;
        let decision = Decision {
            range,
            add: vec![to],
            remove: vec![from],
            kind: OrderKind::Asked,
            reason: format!("asked for: from node {from} to node {to}"),
            limit: self.state.config.order_time_limit,
            ..Decision::default()
        };
        let (unit, order_id) = self.stage_orders(&[decision]);
        let wants = self.moved(order_id, request.timeout_ms);
        self.wait(token, unit, wants);
        Ok(())
    }

    fn moved(&self, order_id: u64, timeout_ms: u64) -> Wants {
        if timeout_ms == 0 {
            return Wants::Written(Response::MoveReplica(v1::MoveReplicaResponse { done: false }));
        }
        Wants::Moved { order_id, deadline: self.state.now + Duration::from_millis(timeout_ms), ended: None }
    }

    /// The order under way that does just this, if there is one, and a unit that is written when it is.
    fn same_move(&self, request: &v1::MoveReplicaRequest) -> Option<(u64, u64)> {
        let order = self.state.ahead.orders.get(&request.range_id)?.order.as_ref()?;
        let same = order.add_nodes == [request.to_node_id] && order.remove_nodes == [request.from_node_id];
        same.then(|| (self.writer.last(), order.order_id))
    }

    /// Refuses a range that is not known, or not any more.
    pub(crate) fn check_range(&self, range: u64) -> Result<()> {
        if self.state.table.get(range).is_some() {
            return Ok(());
        }
        if let Some((by, _)) = self.state.table.absorbed(range) {
            let hint = format!("range {by} has what it held");
            return Err(Error::invalid(format!("range {range} was merged into its neighbour"), hint));
        }
        self.check_reported(&format!("range {range} is not known yet"))?;
        // Ids are given out in order: an older one may be that of a child that has not been reported yet.
        if range < self.next_id(Counter::Range) {
            return Err(Error::RangeNotFound { range: RangeId(range) });
        }
        Err(Error::invalid(format!("there is no range {range}"), "`flotilla range list` shows all ranges"))
    }

    fn check_move(&self, range: u64, from: u64, to: u64) -> Result<()> {
        let state = &self.state;
        self.check_range(range)?;
        let Some(route) = state.table.get(range) else { return Err(Error::RangeNotFound { range: RangeId(range) }) };
        let replicas = route.descriptor.members();
        let holders: Vec<String> = replicas.map(|replica| replica.node_id.to_string()).collect();
        let held = format!("its replicas are on nodes {}", holders.join(", "));
        if let Some(order) = state.ahead.orders.get(&range) {
            let what = format!("range {range} has an order under way ({})", order.reason);
            return Err(Error::invalid(what, "wait for its end: a range has one change at a time"));
        }
        if is_joint(&route.descriptor) {
            let what = format!("the replicas of range {range} are being changed");
            return Err(Error::invalid(what, "wait for the end of that: a range has one change at a time"));
        }
        if !holds(&route.descriptor, from) {
            return Err(Error::invalid(format!("range {range} has no replica on node {from}"), held));
        }
        if holds(&route.descriptor, to) {
            let fit = self.fit_nodes(|node| !holds(&route.descriptor, node));
            let what = format!("range {range} has a replica on node {to} already");
            return Err(Error::invalid(what, format!("{held}; it may go to {fit}")));
        }
        self.check_target(to, || self.fit_nodes(|node| !holds(&route.descriptor, node)))?;
        let keyspace = route.descriptor.keyspace_id;
        if !state.places.allows(keyspace, to) {
            let fit = self.fit_nodes(|node| !holds(&route.descriptor, node) && state.places.allows(keyspace, node));
            let what = format!("the constraints of the range's keyspace do not allow it on node {to}");
            return Err(Error::invalid(what, format!("it may go to {fit}")));
        }
        if state.ahead.merge_targets.contains(&range) {
            let what = format!("its right neighbour is being merged into range {range}");
            return Err(Error::invalid(what, "wait for its end: a range has one change at a time"));
        }
        if route.led.is_none() || !state.is_live(route.leader) {
            let reason = format!("range {range} has no leader that could carry it out now");
            return Err(Error::Unavailable { reason });
        }
        // A leader whose majority is silent cannot change anything; one short of that would lose what is left.
        let silent = |node: &u64| *node != from && !state.is_live(*node);
        let silent: Vec<String> = voters(&route.descriptor).filter(silent).map(|node| format!("node {node}")).collect();
        if silent.len() * 2 >= voters(&route.descriptor).count() {
            let what = format!("of range {range} too few replicas live: nothing is heard of {}", silent.join(", "));
            return Err(Error::invalid(what, "its replicas are rebuilt first; move it afterwards"));
        }
        Ok(())
    }

    /// What a new service does not know, it may yet be told.
    pub(crate) fn check_reported(&self, what: &str) -> Result<()> {
        if self.state.settled {
            return Ok(());
        }
        let reason = format!("{what}: not all nodes have reported to the placement service since it moved; try again");
        Err(Error::Unavailable { reason })
    }

    fn check_target(&self, node: u64, fit: impl Fn() -> String) -> Result<()> {
        let state = &self.state;
        let record = state.ahead.nodes.get(&node);
        let problem = match record {
            None => "is not known",
            Some(record) if record.removed => "was removed for good",
            Some(_) if state.is_dead(node) => "is dead",
            Some(_) if !state.is_live(node) => "is silent",
            Some(_) if state.is_full(node) => "has no disk space to spare",
            Some(record) if record.draining => "is being drained",
            Some(record) if record.decommissioning => "is being decommissioned",
            Some(_) if state.is_in_maintenance(node) => "is in maintenance",
            Some(_) if state.speeds.slow(node).is_some() => "is slow",
            Some(_) => return Ok(()),
        };
        Err(Error::invalid(format!("node {node} {problem}"), format!("it may go to {}", fit())))
    }

    fn fit_nodes(&self, may: impl Fn(u64) -> bool) -> String {
        let fit = |node: &&u64| self.state.is_fit(**node) && may(**node);
        let names: Vec<String> =
            self.state.ahead.nodes.keys().filter(fit).take(20).map(|node| format!("node {node}")).collect();
        if names.is_empty() { "no node now".into() } else { names.join(", ") }
    }

    pub(crate) fn on_drain_node(&mut self, token: Token, request: &v1::DrainNodeRequest) -> Result<()> {
        let state = &self.state;
        let node = request.node_id;
        let record = self.member(node)?;
        let others =
            state.ahead.nodes.keys().any(|other| *other != node && state.is_live(*other) && !state.is_draining(*other));
        if !request.undo && !others {
            self.check_reported("no other node is known to live yet")?;
            let what = format!("no other live node could take over what node {node} leads");
            return Err(Error::invalid(what, "end the draining of another node first, or add a node"));
        }
        let mut now = record.clone();
        now.draining = !request.undo;
        let (word, what) = match request.undo {
            false => (kind::DRAINING, "asked for: it gives its leaders away, and gets nothing new"),
            true => (kind::NOT_DRAINING, "asked for: it gets its share again"),
        };
        let told = (now != record).then(|| history::of_nodes(word, &[node], what));
        self.work.stir();
        let unit = self.stage_told(vec![Change::Node(now)], told.into_iter().collect());
        self.round();
        self.wait(token, unit, Wants::Written(Response::DrainNode(v1::DrainNodeResponse {})));
        Ok(())
    }

    /// A question; answered from what is acknowledged.
    pub(crate) fn on_history(&mut self, token: Token, request: &v1::PlacementHistoryRequest) -> Result<()> {
        let result = Ok(Response::History(self.history_answer(request)));
        self.effects.answers.push(Answer { token, result });
        Ok(())
    }

    pub(crate) fn wait(&mut self, token: Token, unit: u64, wants: Wants) {
        self.waiters.push(Waiter { token, unit, wants });
    }
}

/// What is different between two settings of a keyspace, in words.
fn settings_changed(before: &v1::Keyspace, after: &v1::Keyspace) -> String {
    let mut parts = Vec::new();
    if before.replicas != after.replicas {
        parts.push(format!("replicas {} instead of {}", after.replicas, before.replicas));
    }
    if before.boundary != after.boundary {
        parts.push("another split boundary".into());
    }
    if before.split_bytes != after.split_bytes {
        parts.push(format!("split at {} bytes instead of {}", after.split_bytes, before.split_bytes));
    }
    let load = |of: &v1::Keyspace| (of.split_queries_per_s, of.split_load_bytes_per_s);
    if load(before) != load(after) {
        parts.push("another load to split at".into());
    }
    if before.constraints != after.constraints {
        let words = after.constraints.as_ref().map(constraints::describe).unwrap_or_default();
        parts.push(if words.is_empty() { "no constraints".into() } else { format!("constraints: {words}") });
    }
    if before.merge != after.merge {
        parts.push("other rules for merges".into());
    }
    if parts.is_empty() {
        parts.push("nothing different".into());
    }
    format!("keyspace {:?}: {}", after.name, parts.join(", "))
}
