//! Stores of a few ranges, and everything around them, moved by hand.
//!
//! [`Cluster::turn`] gives a store inputs and keeps what it wants: log batches, applies, messages. Nothing
//! of it happens by itself: [`Cluster::persist`], [`Cluster::apply`] and [`Cluster::deliver`] do it, and
//! [`Cluster::settle`] does all of it until nothing is left, but for what a scenario holds back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use flotilla_engine::apply::{ApplyStage, ApplyTask, Checkpoint};
use flotilla_engine::config::Config;
use flotilla_engine::expiry::{self, ExpiryFound};
use flotilla_engine::storage::{Direction, Family, Read, Storage};
use flotilla_engine::store::{
    Beat, CheckStarted, Effects, Envelope, Event, Input, LogBatch, LogItem, MergeAnswer, RangeSummary, ReadBarrier,
    ReadView, Recovered, SplitAnswer, Store, Token, TransferAnswer, TransferLeader, Write, WriteAnswer,
};
use flotilla_engine::time::BootTime;
use flotilla_engine::{bootstrap, keys, log_writer, recover, snapshot, split_keys};
use flotilla_proto::{Error, KeyspaceId, NodeId, RangeId, v1};
use raft::eraftpb::MessageType;

use crate::disk::MemDisk;

pub const RANGE: RangeId = RangeId(2);
pub const EPOCH: v1::Epoch = v1::Epoch { conf_ver: 1, version: 1 };
pub const LATER: BootTime = BootTime(u64::MAX);

/// Keys as they stand on disk, and their values.
pub type Rows = Vec<(Vec<u8>, bytes::Bytes)>;

/// One node.
pub struct Node {
    pub disk: Arc<MemDisk>,
    pub store: Store,
    pub apply: ApplyStage,
    pub log: VecDeque<LogBatch>,
    pub applies: Vec<ApplyTask>,
    /// What readers see of [`RANGE`], and of every range.
    pub view: Option<Arc<ReadView>>,
    pub views: BTreeMap<RangeId, Arc<ReadView>>,
    /// The applied index of each range that the last sync covered.
    pub applied_durable: BTreeMap<RangeId, u64>,
    /// How often old entries were read from disk.
    pub fetches: usize,
}

/// See the module.
pub struct Cluster {
    pub config: Config,
    pub now: BootTime,
    pub nodes: BTreeMap<u64, Node>,
    pub network: VecDeque<Envelope>,
    /// Signs of life on their way: sender, its process, and what it says.
    pub beats: VecDeque<(u64, u64, Beat)>,
    /// How often each node has started.
    pub starts: BTreeMap<u64, u64>,
    /// All messages that ever left.
    pub sent: Vec<Envelope>,
    /// Nodes whose log writer stands still.
    pub disk_held: BTreeSet<u64>,
    /// Nodes whose apply stage stands still.
    pub apply_held: BTreeSet<u64>,
    /// Nodes that hear nobody and are not heard.
    pub cut_off: BTreeSet<u64>,
    /// Links that carry nothing, from one node to another.
    pub cut_links: BTreeSet<(u64, u64)>,
    /// Nodes that hear nothing about a range.
    pub deaf: BTreeSet<(u64, RangeId)>,
    pub writes: Vec<(u64, Result<WriteAnswer, Error>)>,
    pub barriers: Vec<(u64, Result<Arc<ReadView>, Error>)>,
    pub transfers: Vec<(u64, TransferAnswer)>,
    pub splits: Vec<(u64, SplitAnswer)>,
    pub merges: Vec<(u64, MergeAnswer)>,
    pub checks: Vec<(u64, Result<CheckStarted, Error>)>,
    pub recoveries: Vec<(u64, Result<Recovered, Error>)>,
    /// What each node's replica held at a check's index.
    pub checkpoints: Vec<(u64, Checkpoint, Rows)>,
    pub events: Vec<(u64, Event)>,
    /// What nodes said of themselves, and nobody was told yet.
    pub healths: Vec<(u64, v1::NodeHealth)>,
    pub fatal: Vec<(u64, String)>,
    /// How fast nodes' clocks run, in thousandths; 1,000 where it does not say.
    pub rates: BTreeMap<u64, u64>,
    /// Passes over expiry indexes that were made, and whose answers are held back while `passes_held`.
    pub passes: Vec<(u64, ExpiryFound)>,
    pub passes_held: bool,
}

fn boot_store(config: &Config, node: u64, disk: &MemDisk, now: BootTime) -> (Store, ApplyStage) {
    let boot = recover::load(disk).expect("the disk is well").expect("it was bootstrapped");
    (
        Store::new(config.clone(), NodeId(node), &boot, now).expect("what was written can be opened"),
        ApplyStage::new(&boot),
    )
}

impl Cluster {
    pub fn new(config: Config, replicas: u64) -> Self {
        Self::with_empty(config, replicas, 0)
    }

    /// One whose ranges fall asleep when they were idle for a few ticks; in all others none does.
    pub fn sleepy(config: Config, replicas: u64, empty: u64) -> Self {
        Self::with_ranges(config, replicas, empty)
    }

    /// Nodes with a replica of [`RANGE`], and behind them nodes that hold nothing.
    pub fn with_empty(config: Config, replicas: u64, empty: u64) -> Self {
        Self::with_ranges(Config { idle_ticks: 0, ..config }, replicas, empty)
    }

    fn with_ranges(config: Config, replicas: u64, empty: u64) -> Self {
        let members: Vec<_> = (1..=replicas).map(|id| (NodeId(id), format!("127.0.0.1:{id}"))).collect();
        let layout = flotilla_placement::layout("test", &members, 1, members.len()).expect("valid");
        let now = BootTime(1_000_000_000);
        let nodes = (1..=replicas + empty).map(|id| {
            let disk = Arc::new(MemDisk::default());
            bootstrap::write(&*disk, NodeId(id), id, &layout).expect("the disk is well");
            let (store, apply) = boot_store(&config, id, &disk, now);
            let views: BTreeMap<_, _> = store.initial_views().into_iter().map(|view| (view.range(), view)).collect();
            let view = views.get(&RANGE).cloned();
            (
                id,
                Node {
                    disk,
                    store,
                    apply,
                    log: VecDeque::new(),
                    applies: Vec::new(),
                    view,
                    views,
                    applied_durable: BTreeMap::new(),
                    fetches: 0,
                },
            )
        });
        Self {
            nodes: nodes.collect(),
            config,
            now,
            network: VecDeque::new(),
            beats: VecDeque::new(),
            starts: BTreeMap::new(),
            sent: Vec::new(),
            disk_held: BTreeSet::new(),
            apply_held: BTreeSet::new(),
            cut_off: BTreeSet::new(),
            cut_links: BTreeSet::new(),
            deaf: BTreeSet::new(),
            writes: Vec::new(),
            barriers: Vec::new(),
            transfers: Vec::new(),
            splits: Vec::new(),
            merges: Vec::new(),
            checks: Vec::new(),
            recoveries: Vec::new(),
            checkpoints: Vec::new(),
            events: Vec::new(),
            healths: Vec::new(),
            fatal: Vec::new(),
            rates: BTreeMap::new(),
            passes: Vec::new(),
            passes_held: false,
        }
    }

    /// The time by a node's own clock.
    pub fn clock(&self, id: u64) -> BootTime {
        BootTime(self.now.0 / 1_000 * self.rates.get(&id).copied().unwrap_or(1_000))
    }

    /// Three replicas, led by node 1, which has applied its first entry.
    pub fn led_by_1(config: Config) -> Self {
        let mut cluster = Self::new(config, 3);
        cluster.tick_until(|cluster| cluster.node(1).view.as_ref().is_some_and(|view| view.serves));
        cluster
    }

    pub fn node(&self, id: u64) -> &Node {
        &self.nodes[&id]
    }

    pub fn summary(&self, id: u64) -> RangeSummary {
        self.summary_of(id, RANGE).expect("it is here")
    }

    /// A node's replica of a range.
    pub fn summary_of(&self, id: u64, range: RangeId) -> Option<RangeSummary> {
        self.node(id).store.ranges().find(|summary| summary.range == range)
    }

    pub fn view(&self, id: u64) -> Arc<ReadView> {
        self.node(id).view.clone().expect("it has published one")
    }

    /// Who leads a range, by the newest term.
    pub fn leader_of(&self, range: RangeId) -> Option<u64> {
        let led = |id: &u64| self.summary_of(*id, range).filter(|of| of.leads).map(|of| (of.term, *id));
        self.nodes.keys().filter_map(led).max().map(|(_, id)| id)
    }

    pub fn leader(&self) -> Option<u64> {
        self.nodes.keys().copied().filter(|id| self.summary(*id).leads).max_by_key(|id| self.summary(*id).term)
    }

    /// One turn of a store.
    pub fn turn(&mut self, id: u64, inputs: Vec<Input>) -> Effects {
        let now = self.clock(id);
        let node = self.nodes.get_mut(&id).expect("it exists");
        let mut effects = Effects::default();
        for input in inputs {
            let refused = match &input {
                Input::Message(Envelope { message, snapshot: Some(data), .. }) => {
                    node.store.admit_snapshot(message, &data.header).err()
                }
                _ => None,
            };
            let before = effects.events.len();
            node.store.on(now, input, &mut effects);
            let is_refusal = |event: &Event| matches!(event, Event::MessageRefused { .. });
            // Of a snapshot whose header is refused the records are never sent: it must be one that nobody would take.
            let agree = refused.is_none() || effects.events[before..].iter().any(is_refusal);
            assert!(agree, "taken, and refused by its header: {refused:?}");
        }
        node.store.end_turn(now, &mut effects);
        for view in &effects.views {
            node.views.insert(view.range(), view.clone());
        }
        for gone in &effects.views_gone {
            node.views.remove(gone);
        }
        node.view = node.views.get(&RANGE).cloned();
        node.log.extend(effects.log.clone());
        node.applies.extend(effects.applies.iter().cloned());
        let boot_id = 1 + self.starts.get(&id).copied().unwrap_or_default();
        self.beats.extend(effects.beats.iter().map(|beat| (id, boot_id, *beat)));
        self.network.extend(effects.messages.iter().cloned());
        self.sent.extend(effects.messages.iter().cloned());
        self.writes.extend(effects.writes.iter().map(|(token, answer)| (token.0, answer.clone())));
        self.barriers.extend(effects.barriers.iter().map(|(token, answer)| (token.0, answer.clone())));
        self.transfers.extend(effects.transfers.iter().map(|(token, answer)| (token.0, answer.clone())));
        self.splits.extend(effects.splits.iter().map(|(token, answer)| (token.0, answer.clone())));
        self.merges.extend(effects.merges.iter().map(|(token, answer)| (token.0, answer.clone())));
        self.checks.extend(effects.checks.iter().map(|(token, answer)| (token.0, answer.clone())));
        self.recoveries.extend(effects.recoveries.iter().map(|(token, answer)| (token.0, answer.clone())));
        self.events.extend(effects.events.iter().map(|event| (id, event.clone())));
        self.healths.extend(effects.health.iter().map(|health| (id, health.clone())));
        self.fatal.extend(effects.fatal.iter().map(|why| (id, why.clone())));
        self.serve_disk_reads(id, &effects);
        effects
    }

    fn serve_disk_reads(&mut self, id: u64, effects: &Effects) {
        let disk = self.node(id).disk.clone();
        let mut inputs = Vec::new();
        self.nodes.get_mut(&id).expect("it exists").fetches += effects.fetches.len();
        for fetch in &effects.fetches {
            let entries =
                recover::read_log(&*disk, fetch.range, fetch.low, fetch.high, fetch.bytes_max).expect("readable");
            inputs.push(Input::LogFetched { range: fetch.range, id: fetch.id, entries });
        }
        for wanted in &effects.expiries_wanted {
            let found = Some(expiry::find(&*disk, wanted).expect("readable"));
            self.passes.push((id, ExpiryFound { range: RangeId(wanted.descriptor.range_id), id: wanted.id, found }));
        }
        if !self.passes_held {
            let own = self.passes.extract_if(.., |(of, _)| *of == id);
            inputs.extend(own.map(|(_, found)| Input::ExpiriesFound(found)));
        }
        for range in &effects.snapshots_wanted {
            inputs.push(Input::SnapshotMade { range: *range, snapshot: snapshot::make(&*disk, *range).ok() });
        }
        for sent in effects.messages.iter().filter(|sent| sent.snapshot.is_some()) {
            inputs.push(Input::SnapshotSent {
                range: sent.message.range_id.into(),
                to_replica: sent.message.to_replica,
                ok: true,
            });
        }
        for wanted in &effects.split_keys_wanted {
            let found = split_keys::find(&*disk, wanted);
            inputs.push(Input::SplitKeys { range: RangeId(wanted.descriptor.range_id), found });
        }
        if !inputs.is_empty() {
            self.turn(id, inputs);
        }
    }

    /// Writes the node's first log batch and tells the store. False: there is none.
    pub fn persist(&mut self, id: u64) -> bool {
        let node = self.nodes.get_mut(&id).expect("it exists");
        let Some(log) = node.log.pop_front() else { return false };
        let mut batch = node.disk.batch();
        log_writer::fill(&mut batch, &log).expect("what was checked can be written");
        node.disk.write(batch).expect("the disk is well");
        let boot = recover::load(&*node.disk).expect("what the log writer leaves can be opened").expect("bootstrapped");
        // What is left of a range that was merged meanwhile is nobody's.
        let lives = |item: &&LogItem| boot.ranges.iter().any(|of| of.descriptor.range_id == item.range.0);
        for item in log.items.iter().filter(|item| item.snapshot.is_none()).filter(lives) {
            let cut = item.raft_state.map_or(0, |state| state.truncated_index);
            let durable = node.applied_durable.get(&item.range).copied().unwrap_or_default();
            assert!(cut <= durable.max(bootstrap::INITIAL_INDEX), "cut up to {cut}, durable is {durable}");
        }
        node.applied_durable =
            boot.ranges.iter().map(|of| (RangeId(of.descriptor.range_id), of.applied.index)).collect();
        self.turn(id, vec![Input::Persisted { sequence: log.sequence }]);
        true
    }

    /// Applies all that is committed and tells the store. False: there is nothing.
    pub fn apply(&mut self, id: u64) -> bool {
        let node = self.nodes.get_mut(&id).expect("it exists");
        if node.applies.is_empty() {
            return false;
        }
        let tasks = std::mem::take(&mut node.applies);
        let checkpoints = &mut self.checkpoints;
        let mut show = |disk: &MemDisk, at: Checkpoint| checkpoints.push((id, at.clone(), rows(disk, &at.descriptor)));
        let done = node.apply.apply(&*node.disk, tasks, &mut show).expect("it can be applied");
        self.turn(id, done.into_iter().map(Input::Applied).collect());
        true
    }

    /// Delivers the oldest message. False: there is none.
    pub fn deliver(&mut self) -> bool {
        if let Some((from, boot_id, Beat { to, leaving, hears_nothing })) = self.beats.pop_front() {
            let apart =
                self.cut_links.contains(&(from, to.0)) || self.cut_off.contains(&from) || self.cut_off.contains(&to.0);
            if !apart && self.nodes.contains_key(&to.0) {
                self.turn(to.0, vec![Input::Beat { from: NodeId(from), boot_id, leaving, hears_nothing }]);
            }
            return true;
        }
        let Some(envelope) = self.network.pop_front() else { return false };
        let (from, to) = (envelope.from.0, envelope.to.0);
        let deaf = self.deaf.contains(&(to, RangeId(envelope.message.range_id)));
        let deaf = deaf || self.cut_links.contains(&(from, to));
        let apart = deaf || self.cut_off.contains(&from) || self.cut_off.contains(&to);
        if !apart && self.nodes.contains_key(&to) {
            self.turn(to, vec![Input::Message(envelope)]);
        }
        true
    }

    /// Does all there is to do.
    pub fn settle(&mut self) {
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        for _ in 0..10_000 {
            let mut any = self.deliver();
            for id in &ids {
                any |= !self.disk_held.contains(id) && self.persist(*id);
                any |= !self.apply_held.contains(id) && self.apply(*id);
            }
            if !any {
                return;
            }
        }
        panic!("the cluster does not come to rest");
    }

    /// Time passes by one tick, for all nodes.
    pub fn tick(&mut self) {
        self.now = self.now + self.config.tick;
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        for id in ids {
            self.turn(id, vec![Input::Tick]);
        }
        self.settle();
    }

    /// One thing happens after the other, and time passes where there is nothing to do, until something holds.
    pub fn step_until(&mut self, holds: impl Fn(&Self) -> bool) {
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        for _ in 0..20_000 {
            let mut any = false;
            for id in &ids {
                any |= !self.disk_held.contains(id) && self.persist(*id);
                if holds(self) {
                    return;
                }
            }
            any |= self.deliver();
            if holds(self) {
                return;
            }
            for id in ids.iter().rev() {
                any |= !self.apply_held.contains(id) && self.apply(*id);
                if holds(self) {
                    return;
                }
            }
            if !any {
                self.now = self.now + self.config.tick;
                ids.iter().for_each(|id| drop(self.turn(*id, vec![Input::Tick])));
            }
        }
        panic!("it did not come to hold within 20,000 steps");
    }

    /// Time passes until something holds.
    pub fn tick_until(&mut self, holds: impl Fn(&Self) -> bool) {
        for _ in 0..200 {
            if holds(self) {
                return;
            }
            self.tick();
        }
        panic!("it did not come to hold within 200 ticks");
    }

    /// The process ends: what was not written is lost; and starts again.
    pub fn restart(&mut self, id: u64) {
        let start = self.starts.entry(id).or_default();
        *start += 1;
        let (config, now) = (Config { boot_id: 1 + *start, ..self.config.clone() }, self.clock(id));
        let node = self.nodes.get_mut(&id).expect("it exists");
        (node.store, node.apply) = boot_store(&config, id, &node.disk, now);
        node.log.clear();
        node.applies.clear();
        node.views = node.store.initial_views().into_iter().map(|view| (view.range(), view)).collect();
        node.view = node.views.get(&RANGE).cloned();
    }

    /// Messages of one type that ever left one node for another.
    pub fn sent(&self, from: u64, to: u64, kind: MessageType) -> Vec<&v1::PeerMessage> {
        let is = |sent: &&Envelope| (sent.from.0, sent.to.0) == (from, to) && sent.message.message_type == kind as u32;
        self.sent.iter().filter(is).map(|sent| &sent.message).collect()
    }

    pub fn write(&mut self, id: u64, token: u64, request: v1::WriteRequest) -> Effects {
        self.turn(id, vec![write_input(token, request)])
    }

    pub fn put(&mut self, id: u64, token: u64, key: &str, value: &str) -> Effects {
        self.write(id, token, request(vec![put(key, value)]))
    }

    pub fn barrier(&mut self, id: u64, token: u64) -> Effects {
        let barrier = ReadBarrier { token: Token(token), range: RANGE, epoch: EPOCH, deadline: LATER };
        self.turn(id, vec![Input::ReadBarrier(barrier)])
    }

    pub fn transfer(&mut self, id: u64, token: u64, to: u64) -> Effects {
        let order = TransferLeader { token: Token(token), range: RANGE, to: NodeId(to), deadline: LATER };
        self.turn(id, vec![Input::TransferLeader(order)])
    }

    /// The answer to a write; there must be exactly one.
    pub fn answer(&self, token: u64) -> &Result<WriteAnswer, Error> {
        let answers: Vec<_> = self.writes.iter().filter(|(of, _)| *of == token).collect();
        assert_eq!(answers.len(), 1, "write {token} is answered once: {answers:?}");
        &answers[0].1
    }
}

/// What a disk holds of a range.
pub fn rows(disk: &MemDisk, of: &v1::RangeDescriptor) -> Rows {
    let (start, end) = keys::data_span(KeyspaceId(of.keyspace_id), &of.start, &of.end);
    let mut rows = Vec::new();
    disk.scan(Family::State, &start, &end, Direction::Forward, &mut |key, value| {
        rows.push((key.to_vec(), bytes::Bytes::copy_from_slice(value)));
        std::ops::ControlFlow::Continue(())
    })
    .expect("readable");
    rows
}

pub fn write_input(token: u64, request: v1::WriteRequest) -> Input {
    Input::Write(Write { token: Token(token), range: RANGE, epoch: EPOCH, request, deadline: LATER })
}

pub fn request(ops: Vec<v1::WriteOp>) -> v1::WriteRequest {
    v1::WriteRequest { ops, atomic: false }
}

pub fn put(key: &str, value: &str) -> v1::WriteOp {
    let put = v1::Put { key: key.to_owned().into(), value: value.to_owned().into(), if_absent: false, ttl_ms: 0 };
    v1::WriteOp { op: Some(v1::write_op::Op::Put(put)) }
}

pub fn put_ttl(key: &str, value: &str, ttl_ms: u64) -> v1::WriteOp {
    let put = v1::Put { key: key.to_owned().into(), value: value.to_owned().into(), if_absent: false, ttl_ms };
    v1::WriteOp { op: Some(v1::write_op::Op::Put(put)) }
}

pub fn delete(key: &str) -> v1::WriteOp {
    v1::WriteOp { op: Some(v1::write_op::Op::Delete(v1::Delete { key: key.to_owned().into() })) }
}

pub fn swap(key: &str, expect: v1::compare_and_swap::Expect, new: Option<&str>) -> v1::WriteOp {
    let new_value = new.map(|value| value.to_owned().into());
    let swap = v1::CompareAndSwap { key: key.to_owned().into(), expect: Some(expect), new_value, ttl_ms: 0 };
    v1::WriteOp { op: Some(v1::write_op::Op::CompareAndSwap(swap)) }
}
