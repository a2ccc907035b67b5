//! What the engine gives with network and disk taken away: three stores in one thread, that hand each other's messages over as
//! they are and take every log batch for durable as soon as it is written.
//!
//! ```text
//! puts ─▶ leader's store ─turn─▶ log batch ─▶ disk, not synced ─▶ "persisted" ─┐ inputs of
//!                          ├───▶ messages ─▶ the other stores                  │ the next turn
//!                          ├───▶ applies ─▶ apply stage ─▶ disk ─▶ "applied" ──┘
//!                          └───▶ answers ─▶ the next put
//! ```
//! Beneath lies either a disk that forgets what it is given, which leaves the engine alone (batches are filled, no memtable
//! is), or the product's RocksDB, never synced. Messages are not encoded.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_benches::cluster::Result;
use flotilla_engine::apply::ApplyStage;
use flotilla_engine::config::Config;
use flotilla_engine::storage::{self, Direction, Family, Read, Storage, Visit, WriteBatch};
use flotilla_engine::store::{Effects, Input, Store, Token, Write};
use flotilla_engine::time::BootTime;
use flotilla_engine::{bootstrap, log_writer, recover};
use flotilla_proto::{NodeId, RangeId, v1};
use serde::{Deserialize, Serialize};

use super::figures::Measured;
use super::{KEYS, VALUE_BYTES, in_process, rocks};
use crate::cell::Times;
use crate::load::workload::key;

const NODES: u64 = 3;
/// Ranges that puts are spread over: none but one, as many as `compare run` begins with, and many.
pub const RANGES: [u32; 4] = [1, 16, 256, 4_096];
/// Ticks within which all ranges must be led.
const TICKS_MAX: usize = 200;

/// What is beneath the engine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Beneath {
    Nothing,
    RocksDb,
}

/// A thing to measure: so many puts under way over so many ranges.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Raft {
    pub beneath: Beneath,
    pub ranges: u32,
    pub under_way: u64,
}

impl Raft {
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for beneath in [Beneath::Nothing, Beneath::RocksDb] {
            for ranges in RANGES {
                all.extend([1, 256, 1_000].map(|under_way| Self { beneath, ranges, under_way }));
            }
        }
        all
    }

    pub fn name(self) -> String {
        let beneath = match self.beneath {
            Beneath::Nothing => "no disk",
            Beneath::RocksDb => "RocksDB without syncs",
        };
        let ranges = if self.ranges == 1 { "1 range".to_owned() } else { format!("{} ranges", self.ranges) };
        format!("{beneath}, {ranges}, {} under way", self.under_way)
    }

    pub fn measure(self, dir: &Path, times: Times) -> Result<Measured> {
        let scratch = tempfile::tempdir_in(dir)?;
        match self.beneath {
            Beneath::Nothing => self.over(|_| Ok(Forgetful::default()), Forgetful::forget, times),
            Beneath::RocksDb => self.over(|node| rocks::open(scratch.path(), node), |_| {}, times),
        }
    }

    fn over<S: Storage>(self, disk: impl Fn(u64) -> Result<S>, begun: fn(&S), times: Times) -> Result<Measured> {
        let mut stores = Stores::start(self.ranges, disk)?;
        stores.nodes.iter().for_each(|node| begun(&node.disk));
        stores.put(self.under_way);
        in_process(times, |length| stores.drive(length))
    }
}

/// A node without threads.
struct Node<S> {
    disk: S,
    store: Store,
    apply: ApplyStage,
    inbox: Vec<Input>,
}

/// A range as those who write to it know it.
#[derive(Clone, Copy)]
struct Led {
    node: usize,
    range: RangeId,
    epoch: v1::Epoch,
}

/// See the module.
struct Stores<S> {
    nodes: Vec<Node<S>>,
    tick: Duration,
    now: BootTime,
    next_tick: BootTime,
    /// All keys, and where they lie.
    keys: Vec<(Bytes, Led)>,
    value: Bytes,
    /// Puts until now, and answers.
    puts: u64,
    answers: u64,
    /// Of one turn; emptied by it.
    inputs: Vec<Input>,
    effects: Effects,
}

impl<S: Storage> Stores<S> {
    /// Three stores that lead all of so many ranges between them.
    fn start(ranges: u32, disk: impl Fn(u64) -> Result<S>) -> Result<Self> {
        let members: Vec<_> = (1..=NODES).map(|id| (NodeId(id), format!("127.0.0.1:{id}"))).collect();
        let layout = flotilla_placement::layout("limits", &members, ranges, members.len())?;
        // Nothing sleeps: what wakes reads its log, and there may be none.
        let (config, now) = (Config { idle_ticks: 0, ..Config::default() }, BootTime(1_000_000_000));
        let mut nodes = Vec::new();
        for (node, _) in members {
            let disk = disk(node.0)?;
            bootstrap::write(&disk, node, node.0, &layout)?;
            let boot = recover::load(&disk)?.ok_or("nothing was written")?;
            let store = Store::new(Config { seed: node.0, ..config.clone() }, node, &boot, now)?;
            nodes.push(Node { disk, store, apply: ApplyStage::new(&boot), inbox: Vec::new() });
        }
        let mut stores = Self {
            nodes,
            tick: config.tick,
            now,
            next_tick: now,
            keys: Vec::new(),
            value: vec![0x5A; VALUE_BYTES].into(),
            puts: 0,
            answers: 0,
            inputs: Vec::new(),
            effects: Effects::default(),
        };
        stores.lead(ranges as usize)?;
        Ok(stores)
    }

    /// Time leaps from tick to tick until so many have a leader.
    fn lead(&mut self, ranges: usize) -> Result<()> {
        for _ in 0..TICKS_MAX {
            let nodes = self.nodes.iter().enumerate();
            let led: BTreeMap<Bytes, Led> = nodes.flat_map(|(node, of)| led(node, &of.store)).collect();
            if led.len() == ranges {
                self.keys = (0..KEYS).map(key).filter_map(|key| at(&led, key)).collect();
                return Ok(());
            }
            self.now = self.now + self.tick;
            self.tick_if_due();
            while self.round()? {}
        }
        Err(format!("not all of {ranges} ranges are led after {TICKS_MAX} ticks").into())
    }

    /// Puts, each to the next key: they lie spread over the ranges.
    fn put(&mut self, count: u64) {
        for _ in 0..count {
            let (key, to) = self.keys[(self.puts % KEYS) as usize].clone();
            let put = v1::Put { key, value: self.value.clone(), ..Default::default() };
            let request =
                v1::WriteRequest { ops: vec![v1::WriteOp { op: Some(v1::write_op::Op::Put(put)) }], atomic: false };
            let (token, deadline) = (Token(self.puts), BootTime(u64::MAX));
            let write = Write { token, range: to.range, epoch: to.epoch, request, deadline };
            self.nodes[to.node].inbox.push(Input::Write(write));
            self.puts += 1;
        }
    }

    /// Works for so long, as time passes; how many puts were answered. For each that is, another one comes.
    fn drive(&mut self, length: Duration) -> Result<u64> {
        let (began, from, answered) = (Instant::now(), self.now, self.answers);
        while began.elapsed() < length {
            self.now = from + began.elapsed();
            self.tick_if_due();
            let before = self.answers;
            if !self.round()? {
                return Err("the stores stand still, with puts under way".into());
            }
            self.put(self.answers - before);
        }
        Ok(self.answers - answered)
    }

    fn tick_if_due(&mut self) {
        if self.now >= self.next_tick {
            self.nodes.iter_mut().for_each(|node| node.inbox.push(Input::Tick));
            self.next_tick = self.now + self.tick;
        }
    }

    /// A turn of each node that something has come for. False: of none.
    fn round(&mut self) -> Result<bool> {
        let mut any = false;
        for at in 0..self.nodes.len() {
            if !self.nodes[at].inbox.is_empty() {
                any = true;
                self.turn(at)?;
            }
        }
        Ok(any)
    }

    fn turn(&mut self, at: usize) -> Result<()> {
        let node = &mut self.nodes[at];
        std::mem::swap(&mut self.inputs, &mut node.inbox);
        for input in self.inputs.drain(..) {
            node.store.on(self.now, input, &mut self.effects);
        }
        node.store.end_turn(self.now, &mut self.effects);
        self.carry_out(at)
    }

    /// As a node's loop does, without its threads.
    fn carry_out(&mut self, at: usize) -> Result<()> {
        let Self { nodes, effects, answers, .. } = self;
        if let Some(why) = effects.fatal.take() {
            return Err(why.into());
        }
        if !effects.fetches.is_empty() || !effects.snapshots_wanted.is_empty() {
            return Err("a replica fell behind, although nothing is ever lost".into());
        }
        effects.views.clear();
        effects.events.clear();
        // Whoever is asked for as much as here is to be split; nobody is.
        effects.split_keys_wanted.clear();
        nodes[at].persist(effects)?;
        for envelope in effects.messages.drain(..) {
            nodes[envelope.to.0 as usize - 1].inbox.push(Input::Message(envelope));
        }
        let from = NodeId(at as u64 + 1);
        for beat in effects.beats.drain(..) {
            let (boot_id, leaving, hears_nothing) = (1, beat.leaving, beat.hears_nothing);
            nodes[beat.to.0 as usize - 1].inbox.push(Input::Beat { from, boot_id, leaving, hears_nothing });
        }
        if let Some(health) = effects.health.take() {
            let others = nodes.iter_mut().enumerate().filter(|(other, _)| *other != at);
            others.for_each(|(_, node)| node.inbox.push(Input::Health { from, health: health.clone() }));
        }
        for (_, answer) in effects.writes.drain(..) {
            answer?;
            *answers += 1;
        }
        nodes[at].apply(effects)
    }
}

impl<S: Storage> Node<S> {
    fn persist(&mut self, effects: &mut Effects) -> Result<()> {
        let Some(log) = effects.log.take() else { return Ok(()) };
        let mut batch = self.disk.batch();
        log_writer::fill(&mut batch, &log)?;
        self.disk.write(batch)?;
        self.inbox.push(Input::Persisted { sequence: log.sequence });
        Ok(())
    }

    fn apply(&mut self, effects: &mut Effects) -> Result<()> {
        if effects.applies.is_empty() {
            return Ok(());
        }
        let tasks = std::mem::take(&mut effects.applies);
        let applied = self.apply.apply(&self.disk, tasks, &mut |_, _| {})?;
        self.inbox.extend(applied.into_iter().map(Input::Applied));
        Ok(())
    }
}

/// The ranges that a node leads, by their first keys.
fn led(node: usize, store: &Store) -> Vec<(Bytes, Led)> {
    let led = store.ranges().filter(|of| of.leads && of.applied == of.last_index);
    led.map(|of| {
        let epoch = of.descriptor.epoch.unwrap_or_default();
        (of.descriptor.start.clone(), Led { node, range: of.range, epoch })
    })
    .collect()
}

/// Where a key lies.
fn at(led: &BTreeMap<Bytes, Led>, key: Bytes) -> Option<(Bytes, Led)> {
    let (_, led) = led.range::<Bytes, _>(..=&key).next_back()?;
    Some((key, *led))
}

type Rows = BTreeMap<(Family, Vec<u8>), Bytes>;

/// A disk that keeps what a store begins with, and nothing that comes later.
#[derive(Default)]
struct Forgetful {
    rows: Mutex<Rows>,
    forgets: AtomicBool,
}

/// What it is given in one step.
struct Batch {
    /// `None`: they are forgotten as they come.
    rows: Option<Rows>,
    bytes: usize,
}

impl Forgetful {
    /// From now on.
    fn forget(&self) {
        self.forgets.store(true, Ordering::Relaxed);
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WriteBatch for Batch {
    fn put(&mut self, family: Family, key: &[u8], value: &[u8]) {
        self.bytes += key.len() + value.len();
        if let Some(rows) = &mut self.rows {
            rows.insert((family, key.into()), Bytes::copy_from_slice(value));
        }
    }

    /// What a store begins with deletes nothing.
    fn delete(&mut self, _: Family, key: &[u8]) {
        self.bytes += key.len();
    }

    fn delete_range(&mut self, _: Family, start: &[u8], end: &[u8]) {
        self.bytes += start.len() + end.len();
    }

    fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    fn size_bytes(&self) -> usize {
        self.bytes
    }
}

impl Read for Forgetful {
    fn get(&self, family: Family, key: &[u8]) -> storage::Result<Option<Bytes>> {
        Ok(self.rows().get(&(family, key.into())).cloned())
    }

    /// Always from the first key up: nobody asks for another order here.
    fn scan(
        &self,
        family: Family,
        start: &[u8],
        end: &[u8],
        _: Direction,
        visit: &mut Visit<'_>,
    ) -> storage::Result<()> {
        let rows = self.rows();
        let mut span = rows.range((family, start.into())..(family, end.into()));
        let _: ControlFlow<()> = span.try_for_each(|((_, key), value)| visit(key, value));
        Ok(())
    }
}

impl Storage for Forgetful {
    type Batch = Batch;

    fn batch(&self) -> Batch {
        Batch { rows: (!self.forgets.load(Ordering::Relaxed)).then(Rows::new), bytes: 0 }
    }

    fn write(&self, batch: Batch) -> storage::Result<()> {
        if let Some(rows) = batch.rows {
            self.rows().extend(rows);
        }
        Ok(())
    }

    fn sync(&self) -> storage::Result<()> {
        Ok(())
    }

    fn with_view<R>(&self, read: impl FnOnce(&dyn Read) -> R) -> R {
        read(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn puts_go_round_whatever_is_beneath() {
        let directory = tempfile::tempdir().expect("a directory");
        let times = Times { warm_up: Duration::from_millis(5), measure: Duration::from_millis(200) };
        for beneath in [Beneath::Nothing, Beneath::RocksDb] {
            for ranges in RANGES {
                let line = Raft { beneath, ranges, under_way: 256 };
                let measured = line.measure(directory.path(), times).expect("measured");
                assert!(measured.per_second > 0.0 && measured.cpu_us > 0.0, "{}: {measured:?}", line.name());
            }
        }
    }

    #[test]
    fn as_many_are_under_way_as_were_asked_for() {
        let mut stores = Stores::start(4, |_| Ok(Forgetful::default())).expect("started");
        stores.put(8);
        let mut answered = 0;
        while answered < 100 {
            answered += stores.drive(Duration::from_millis(5)).expect("driven");
            assert_eq!((stores.puts - stores.answers, stores.answers), (8, answered));
        }
    }

    #[test]
    fn what_came_later_is_forgotten() {
        let disk = Forgetful::default();
        let write = |key: &[u8]| {
            let mut batch = disk.batch();
            batch.put(Family::State, key, b"value");
            assert!(!batch.is_empty());
            disk.write(batch).expect("written");
        };
        write(b"first");
        disk.forget();
        write(b"later");
        let found = [&b"first"[..], b"later"].map(|key| disk.get(Family::State, key).expect("read").is_some());
        assert_eq!(found, [true, false]);
    }
}
