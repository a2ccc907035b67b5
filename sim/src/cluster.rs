//! The cluster: nodes, network, clients and checkers, driven by one schedule from one seed.
//!
//! ```text
//!  clients ──▶ serve ──▶ inbox ─┐                      ┌─▶ log writer ─▶ Persisted ─┐
//!  network ──▶ Deliver ─▶ inbox ─┼─▶ turn ─▶ effects ──┼─▶ apply stage ─▶ Applied ──┼─▶ inbox
//!  clock ────▶ Tick ────▶ inbox ─┘      (carry_out)    ├─▶ network ─▶ other nodes   │
//!                                                      └─▶ answers ─▶ clients ◀─────┘
//! ```
//! Nothing here knows the protocol: what the cores say is done, later, wrongly or not at all, as the
//! contract of their effects allows. The first check that fails ends the run.

use std::collections::BTreeMap;

use flotilla_engine::storage::StorageError;
use flotilla_engine::store::{Effects, Input, Store};
use flotilla_engine::{bootstrap, recover, snapshot};
use flotilla_proto::{NodeId, RangeId, v1};
use flotilla_router::core::CallOutcome;

use crate::client::Client;
use crate::clock::{Clock, Nanos, ms, us};
use crate::disk::SimDisk;
use crate::ending::Ending;
use crate::expiring::Watch;
use crate::faulting::Undo;
use crate::faults::{self, Step};
use crate::invariants::{Check, Invariants};
use crate::knobs::Knobs;
use crate::marks::{Mark, Marks};
use crate::network::Network;
use crate::node::{Node, Process, id_of};
use crate::ops::Keys;
use crate::placement::{Placement, Real, first_layout};
use crate::recorder::Recorder;
use crate::rng::Rng;
use crate::run::Options;
use crate::schedule::{Event, Inner, Life, Schedule};
use crate::trace::Trace;

/// What a run did, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub events: u64,
    pub elections: u64,
    pub crashes: u64,
    pub snapshots: u64,
    pub splits: u64,
    pub moves: u64,
    pub messages: u64,
    /// Those between nodes that are about no range.
    pub node_messages: u64,
    pub syncs: u64,
    pub faults: u64,
    /// Keys whose history the checker gave up on.
    pub undecided: u64,
    /// The most elections of one range after the healing, handovers aside.
    pub elections_healed: u64,
    /// From the healing to the last range's first write.
    pub recovery: Nanos,
}

/// See the module.
pub(crate) struct Cluster {
    pub knobs: Knobs,
    pub now: Nanos,
    pub schedule: Schedule,
    pub rng: Rng,
    pub nodes: Vec<Node>,
    pub network: Network,
    pub clients: Vec<Client>,
    pub keys: Keys,
    /// Whatever drives splits and moves: the toy, unless there is the real one.
    pub placement: Placement,
    pub real: Option<Real>,
    /// Answers to requests that no client sent.
    pub direct: BTreeMap<u64, CallOutcome>,
    pub layout: v1::Layout,
    pub plan: Vec<Step>,
    pub undo: BTreeMap<usize, Undo>,
    pub invariants: Invariants,
    pub recorder: Recorder,
    /// Index of the newest snapshot that was sent to a node of a range.
    pub snapshots_sent: BTreeMap<(NodeId, u64), u64>,
    pub ending: Ending,
    pub expiring: Watch,
    pub marks: Marks,
    pub trace: Trace,
    pub tally: Tally,
    pub failure: Option<String>,
    effects: Effects,
}

impl Cluster {
    /// A cluster that has never run, its nodes about to start.
    pub(crate) fn new(knobs: Knobs, options: Options) -> Self {
        let members: Vec<(NodeId, String)> =
            (0..knobs.members).map(|index| (id_of(index), format!("sim:{index}"))).collect();
        let layout = first_layout(&knobs).unwrap_or_else(|| {
            flotilla_placement::layout("sim", &members, knobs.ranges, knobs.replicas)
                .expect("the knobs describe a layout that is possible")
        });
        let network = Network::new(knobs.nodes, knobs.network.clone(), Rng::new(knobs.seed, 3));
        let mut cluster = Self {
            now: 0,
            schedule: Schedule::default(),
            rng: Rng::new(knobs.seed, 4),
            nodes: Vec::new(),
            network,
            clients: Vec::new(),
            keys: Keys::default(),
            placement: Placement::new(&knobs, &layout),
            real: Real::new(&knobs),
            direct: BTreeMap::new(),
            plan: faults::plan(&knobs),
            undo: BTreeMap::new(),
            invariants: Invariants::new(knobs.nodes, &layout, options.black_box),
            recorder: Recorder::default(),
            snapshots_sent: BTreeMap::new(),
            ending: Ending::default(),
            expiring: Watch::default(),
            marks: Marks::default(),
            trace: Trace::new(options.print_trace),
            tally: Tally::default(),
            failure: None,
            effects: Effects::default(),
            layout,
            knobs,
        };
        for index in 0..cluster.knobs.nodes {
            cluster.add_node(index);
        }
        cluster.begin_real();
        cluster.add_clients();
        for (at, step) in cluster.plan.iter().enumerate() {
            cluster.schedule.at(step.at, Event::FaultBegins(at));
        }
        if let Some(gray) = cluster.knobs.gray.as_ref().filter(|gray| gray.alone) {
            cluster.schedule.at(gray.from + gray.length - us(1), Event::SlowPhaseEnds);
        }
        cluster.schedule.at(cluster.knobs.duration, Event::Heal);
        if cluster.knobs.placement.every > 0 {
            cluster.schedule.at(ms(1_500), Event::Placement);
        }
        cluster
    }

    fn add_node(&mut self, index: usize) {
        let disk = SimDisk::new();
        if self.real.is_none() {
            bootstrap::write(&disk, id_of(index), index as u64 + 1, &self.layout)
                .expect("a new disk takes its first records");
        }
        let (slow, fast) = Clock::rates(self.knobs.config.clock_drift);
        let rate = if self.knobs.fault_every == 0 { 1_000_000 } else { self.rng.between(slow, fast) };
        let base = self.rng.between(1, 1 << 50);
        self.nodes.push(Node {
            index,
            disk,
            clock: Clock::new(0, base, rate),
            wall_ahead_ms: 0,
            life: 0,
            process: None,
            paused_until: 0,
            stalled_until: 0,
            apply_stalled_until: 0,
            slow_sync: None,
            syncs_before: 0,
            slow_apply: None,
            disk_busy_until: 0,
            clients_cut: 0,
            has_no_room: false,
            armed: None,
            on_merge_asked: None,
            restarting: true,
            down_after_failure: ms(1_000),
        });
        let at = self.rng.below(ms(20));
        self.schedule.at(at, Event::Restart(index));
    }

    /// Runs until the end, the first failure, or `until`.
    pub(crate) fn run_until(&mut self, until: Nanos) {
        while self.failure.is_none() && !self.ending.is_done() {
            if self.schedule.next_at().is_none_or(|at| at > until) {
                self.now = self.now.max(until);
                return;
            }
            let Some((at, event)) = self.schedule.pop() else { return };
            self.now = at;
            self.tally.events += 1;
            self.dispatch(event);
        }
    }

    /// Notes a check's verdict; the first failure stays.
    pub(crate) fn check(&mut self, verdict: Check) {
        if let (Err(what), None) = (verdict, &self.failure) {
            self.trace.say(self.now, || format!("FAILED {what}"));
            self.failure = Some(what);
        }
    }

    fn dispatch(&mut self, event: Event) {
        match event {
            Event::Inner(life, inner) => self.dispatch_inner(life, inner),
            Event::Deliver(envelope, sender, sent) => {
                self.note_late(sent);
                self.deliver(*envelope, sender, sent);
            }
            Event::Told { to, sent, what } => {
                self.note_late(sent);
                if !self.refuses_told(to, &what) {
                    self.give(to, *what);
                }
            }
            Event::SlowPhaseEnds => self.judge_slow_phase(),
            Event::Request { node, reply_to, request } => {
                self.request(node, reply_to, request);
                self.end_if_rotten(node);
            }
            Event::Answer { reply_to, outcome } => self.client_outcome(reply_to, *outcome),
            Event::Routes { client, call, routes } => self.client_routes(client, call, routes),
            Event::ClientWake { client, wake } => self.client_wake(client, wake),
            Event::FaultBegins(step) => self.fault_begins(step),
            Event::FaultEnds(step) => self.fault_ends(step),
            Event::Restart(node) => self.start(node),
            Event::Heal => self.heal(),
            Event::Placement => self.placement_round(),
            Event::Placed(placed) => self.placed(placed),
            Event::CheckProgress => self.check_progress(),
        }
    }

    fn dispatch_inner(&mut self, life: Life, inner: Inner) {
        let node = &self.nodes[life.node];
        if node.life != life.number || !node.is_up() {
            return;
        }
        let stalled = match inner {
            Inner::Tick | Inner::Turn => node.stalled_until,
            Inner::Apply => node.apply_stalled_until,
            _ => 0,
        };
        let until = node.paused_until.max(stalled);
        if self.now < until {
            self.schedule.at(until + us(1), Event::Inner(life, inner));
            return;
        }
        match inner {
            Inner::Tick => self.tick(life),
            Inner::Turn => self.turn(life.node),
            Inner::LogWrite => self.log_write(life),
            Inner::LogSynced => self.log_synced(life),
            Inner::Apply => self.apply(life),
            Inner::Fetch(fetch) => self.fetch(life.node, fetch),
            Inner::MakeSnapshot(range) => self.make_snapshot(life.node, range),
            Inner::Ingest(item) => self.ingest(life, *item),
            Inner::FindSplitKeys(wanted) => self.find_split_keys(life.node, &wanted),
            Inner::Give(input) => self.give(life.node, *input),
            Inner::Ends => {
                let down = self.nodes[life.node].down_after_failure;
                self.crash_for(life.node, down, true);
            }
            Inner::ReadAgain(token) => self.read_again(life.node, token),
            Inner::HostReply(op, body) => self.host_is_answered(life.node, op, body.map(|body| *body)),
        }
        self.end_if_rotten(life.node);
    }

    /// Starts a node's process from what its disk holds.
    pub(crate) fn start(&mut self, index: usize) {
        if self.nodes[index].is_up() || !(self.has_disk(index) || self.is_outcast(index)) {
            return;
        }
        let node = &mut self.nodes[index];
        node.restarting = false;
        node.life += 1;
        let life = node.life();
        let now = node.clock.read(self.now);
        let resumed = match snapshot::resume(&node.disk) {
            Ok(resumed) => resumed,
            Err(what @ StorageError::Corrupt { .. }) if !node.disk.rot_was_met() => {
                return self.check(Err(format!("n{} cannot resume its snapshots: {what}", index + 1)));
            }
            Err(_) => return self.start_fails(index),
        };
        let boot = match recover::load(&node.disk) {
            Ok(Some(boot)) => boot,
            Err(StorageError::Io { .. }) => return self.start_fails(index),
            Err(_) if node.disk.rot_was_met() => return self.start_fails(index),
            other => {
                let what = format!("n{}: its store cannot be read after a crash: {:?}", index + 1, other.err());
                return self.check(Err(what));
            }
        };
        // A seed of its own for each node, as in production.
        let mut config = self.knobs.config.clone();
        config.seed = config.seed.wrapping_add(index as u64);
        config.boot_id = self.nodes[index].life().number + 1;
        let store = match Store::new(config, id_of(index), &boot, now) {
            Ok(store) => store,
            Err(what) => return self.check(Err(format!("n{} does not start: {what}", index + 1))),
        };
        for range in boot.ranges.iter().filter(|range| !range.recoveries.recoveries.is_empty()) {
            self.goes_on(index, RangeId(range.descriptor.range_id));
        }
        let verdict = self.invariants.recovered(index, &boot).and_then(|()| self.check_disk(index));
        self.check(verdict);
        self.nodes[index].process = Some(Process::new(store, &boot));
        if !resumed.finished.is_empty() {
            self.marks.hit(Mark::IngestResumed);
        }
        if !boot.removed.is_empty() {
            self.marks.hit(Mark::DoomedSeen);
        }
        if boot.removed.iter().any(|removed| removed.keeps_data) {
            self.marks.hit(Mark::MergedAtStart);
        }
        if boot.ranges.iter().any(|range| range.merge.as_ref().is_some_and(|merge| merge.frozen.is_some())) {
            self.marks.hit(Mark::FrozenAtStart);
        }
        if self.real.is_some() {
            self.start_agent(index);
        } else {
            self.introduce(index);
        }
        self.trace.note(self.now, "start", &[index as u64 + 1, life.number]);
        let first_tick = self.rng.below(crate::clock::nanos(self.knobs.config.tick));
        self.schedule.at(self.now + first_tick, Event::Inner(life, Inner::Tick));
        self.wake(index);
    }

    /// A fault of the disk: the process ends before it has begun, and is started again after a while.
    fn start_fails(&mut self, index: usize) {
        self.mend_what_rots(index);
        let node = &mut self.nodes[index];
        node.disk.crash(self.rng.next());
        node.restarting = true;
        let at = self.now + node.down_after_failure;
        self.schedule.at(at, Event::Restart(index));
    }

    /// Ends a node's process at once. What its disk had not synced is lost, or part of it.
    pub(crate) fn crash(&mut self, index: usize, power_cut: bool) {
        let now = self.now;
        let node = &mut self.nodes[index];
        let Some(process) = node.process.take() else { return };
        node.armed = None;
        node.paused_until = 0;
        node.stalled_until = 0;
        node.apply_stalled_until = 0;
        node.disk_busy_until = 0;
        if !process.log_written.is_empty() {
            self.marks.hit(Mark::CrashMidSync);
        }
        self.mend_what_rots(index);
        let lost = self.nodes[index].disk.crash(self.rng.next());
        if lost > 0 {
            self.marks.hit(Mark::CrashUnsynced);
        }
        if power_cut {
            self.nodes[index].clock.restart(now, self.rng.between(1, ms(5_000)));
        }
        self.tally.crashes += 1;
        self.trace.note(now, "crash", &[index as u64 + 1, lost as u64]);
        self.invariants.stopped(index);
        for pending in process.pending.into_values() {
            self.break_off(pending.reply_to);
        }
    }

    /// Gives the process an input, to be taken in its next turn.
    pub(crate) fn give(&mut self, index: usize, input: Input) {
        if let Some(process) = &mut self.nodes[index].process {
            process.inbox.push(input);
            self.wake(index);
        }
    }

    fn wake(&mut self, index: usize) {
        let life = self.nodes[index].life();
        if let Some(process) = &mut self.nodes[index].process
            && !process.turn_due
        {
            process.turn_due = true;
            let at = self.now + self.rng.between(us(2), us(60));
            self.schedule.at(at, Event::Inner(life, Inner::Turn));
        }
    }

    fn tick(&mut self, life: Life) {
        let tick = self.nodes[life.node].clock.true_length(self.knobs.config.tick);
        // Timers fire late, never early.
        let late = self.rng.between(us(1), us(500));
        self.schedule.at(self.now + tick + late, Event::Inner(life, Inner::Tick));
        self.give(life.node, Input::Tick);
    }

    /// One turn of the store's loop: the whole inbox, then the effects.
    fn turn(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let now = node.clock.read(self.now);
        let Some(process) = &mut node.process else { return };
        process.turn_due = false;
        process.turns += 1;
        let inbox = std::mem::take(&mut process.inbox);
        self.trace.note(self.now, "turn", &[index as u64 + 1, inbox.len() as u64]);
        let mut effects = std::mem::take(&mut self.effects);
        for input in inbox {
            process.store.on(now, input, &mut effects);
        }
        process.store.end_turn(now, &mut effects);
        if process.store.sleeping() > 0 {
            self.marks.hit(Mark::RangeSleeps);
        }
        self.carry_out(index, &mut effects);
        self.effects = effects;
    }

    /// The node that leads a range by its own, newest account.
    pub(crate) fn leader_of(&self, range: RangeId) -> Option<usize> {
        let view = |node: &Node| Some((node.process.as_ref()?.views.get(&range)?.clone(), node.index));
        let led = self.nodes.iter().filter_map(view).filter(|(view, _)| view.leader == Some(view.own_node));
        led.max_by_key(|(view, _)| view.term).map(|(_, index)| index)
    }

    /// What each node's clock shows now.
    pub(crate) fn clocks(&self) -> Vec<flotilla_engine::time::BootTime> {
        self.nodes.iter().map(|node| node.clock.read(self.now)).collect()
    }

    /// Ids of all ranges that any replica knows of.
    pub(crate) fn ranges(&self) -> Vec<RangeId> {
        self.invariants.territory.ranges()
    }
}
