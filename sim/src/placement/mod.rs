//! Placement in the simulation, in one of two ways.
//!
//! `toy`: something outside of the cluster that orders splits and moves at random, less sensibly than placement ever
//! would. All else here is the real one: the pure service of flotilla-placement on whichever node leads the system
//! range, with its records in that range, and an agent on every node that reports to it over the simulated network.
//! Such a cluster begins with one node; others join, and one may be lost for good; people create and drop keyspaces,
//! with clients on them, drain nodes and move replicas, and operators (`operators`) decommission nodes and maintain them.
//! In a part of these runs a majority is lost for good (`loss`), and recovered (`recovery`).
//!
//! ```text
//! agent, joining node, people ──ask──▶ host: Service ──Host's scan and writes──▶ the system range ──applied──▶ ledger
//!        ▲                               │ answers: each held against the ledger
//!        └───────────────────────────────┘
//! ```

mod agent;
mod ask;
mod host;
mod ledger;
mod loss;
mod merging;
mod operators;
mod people;
mod recovery;
mod rest;
mod toy;
mod young;

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_engine::bootstrap::{self, Birth};
use flotilla_placement::{Bootstrap, Config};
use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::v1;

use crate::clock::{Nanos, ms};
use crate::cluster::Cluster;
use crate::knobs::Knobs;
use crate::node::id_of;
use crate::rng::Rng;
use crate::schedule::{Event, Life};

pub(crate) use agent::Agent;
pub(crate) use host::{HOST, Host};
pub(crate) use loss::LossKnobs;
#[cfg(test)]
pub(crate) use loss::Moment;
pub(crate) use operators::OperatorKnobs;
use operators::Operators;
pub(crate) use toy::Placement;

use ask::Call;
use ledger::Ledger;
use loss::Loss;
use recovery::Recovery;
use young::Young;

/// What the real placement is drawn to be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RealKnobs {
    /// Nodes that the cluster is to have.
    pub wanted: usize,
    /// Of the default keyspace and the system range.
    pub replicas: u32,
    pub split_bytes: u64,
    pub live_for: Duration,
    pub dead_after: Duration,
    /// One node is lost for good.
    pub loses: bool,
    /// Mean time between what people ask for; 0: nothing.
    pub people_every: Nanos,
    pub operators: OperatorKnobs,
    /// A majority is lost for good, and recovered.
    pub loss: Option<LossKnobs>,
}

impl RealKnobs {
    /// Ids that nodes can have: those that joined and never came, and the lost, keep theirs.
    pub(crate) const NODES_MAX: usize = 9;

    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let wanted = rng.pick(&[3, 3, 4, 5]);
        Self {
            wanted,
            replicas: rng.pick(&[3, 3, 3, 3, 1, if wanted == 5 { 5 } else { 3 }]),
            split_bytes: rng.pick(&[0, 2 << 10, 4 << 10, 16 << 10]),
            live_for: Duration::from_millis(rng.pick(&[1_500, 3_000])),
            dead_after: Duration::from_millis(rng.pick(&[4_000, 8_000])),
            loses: rng.chance(500),
            people_every: rng.pick(&[0, ms(1_000), ms(3_000)]),
            operators: OperatorKnobs::default(),
            loss: None,
        }
    }

    fn config(&self) -> Config {
        self.operators.config(Config {
            node_live_for: self.live_for,
            node_dead_after: self.dead_after,
            order_time_limit: Duration::from_secs(20),
            range_ids_per_block: 20,
            // Its nodes lie in a list, by their ids.
            node_ids_leap: 0,
            // Less than the time without orders after which placement counts as at rest (rest.rs).
            balance_rest: Duration::from_secs(2),
            ..Config::default()
        })
    }
}

/// What is to happen around placement.
#[derive(Debug)]
pub(crate) enum Placed {
    /// An agent's next round.
    Report(Life, u64),
    /// A question comes to a node.
    Asks(Box<ask::Question>),
    /// An answer comes back.
    Answered(u64, Box<flotilla_proto::Result<flotilla_placement::Response>>),
    /// Nobody waits for an answer any longer.
    GivenUp(u64),
    HostTick(Life, u64),
    /// A store wants to join.
    Join(u64),
    /// Somebody wants something.
    People,
    /// Operators look at the cluster.
    Operators,
    /// A node that was removed is stopped, and its disk wiped.
    Wipe(u64),
    /// A node is lost for good, if that can be.
    Lose,
    /// A majority is lost for good.
    LoseMajority,
    /// A lost node comes back, with all that it had.
    Return(usize),
    /// A node hears that it was given up.
    Outcast(usize),
    /// The person who recovers what is left looks how it stands.
    Recovering,
    /// That person asks something of a node.
    Recover(usize, recovery::Ask),
}

/// What a node id stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Nobody, or one who joined and never came.
    #[default]
    Empty,
    /// The node with this store.
    Member(u64),
    /// A node whose disk is lost, and since when.
    Lost(Nanos),
}

/// The real placement, and what it has to do with.
#[derive(Debug)]
pub(crate) struct Real {
    pub knobs: RealKnobs,
    pub ledger: Ledger,
    pub young: BTreeMap<u64, Young>,
    pub slots: Vec<Slot>,
    rng: Rng,
    calls: BTreeMap<u64, Call>,
    last_call: u64,
    /// Stores that have not joined yet, and their own name for that.
    joining: BTreeMap<u64, ()>,
    stores: u64,
    /// When replicas last applied a change of a range.
    changed: BTreeMap<u64, Nanos>,
    /// The last order was written then.
    pub last_order: Nanos,
    /// When a node last took itself for slow, or placement took one for slow or for well again: leaders leave it, and come
    /// back to it later.
    pub slow_at: Option<Nanos>,
    /// A node is still to be lost.
    losing: bool,
    operators: Operators,
    loss: Loss,
    recovery: Recovery,
    /// Since when nothing is left to be done.
    rests_since: Option<Nanos>,
    /// By how much replicas lagged at the end when they lagged least, and since when.
    least_lag: u64,
    came_on: Nanos,
    pub rested: bool,
}

/// The store id of the first node.
const FIRST_STORE: u64 = 101;
const CLUSTER: u64 = 0xC0FFEE;

fn first(knobs: &Knobs, real: &RealKnobs) -> Bootstrap {
    Bootstrap {
        cluster_id: CLUSTER,
        cluster_name: "sim".into(),
        node: v1::NodeRecord {
            node_id: 1,
            store_id: FIRST_STORE,
            peer_addr: "sim:0".into(),
            client_addr: "sim:0".into(),
            ..Default::default()
        },
        replicas: real.replicas,
        split_bytes: real.split_bytes,
        ranges: knobs.ranges,
    }
}

/// The ranges that the run begins with.
pub(crate) fn first_layout(knobs: &Knobs) -> Option<v1::Layout> {
    let real = knobs.real.as_ref()?;
    Some(v1::Layout { ranges: first(knobs, real).first_ranges(), ..Default::default() })
}

impl Real {
    pub(crate) fn new(knobs: &Knobs) -> Option<Self> {
        let real = knobs.real.clone()?;
        let mut slots = vec![Slot::Empty; knobs.nodes];
        slots[0] = Slot::Member(FIRST_STORE);
        Some(Self {
            ledger: Ledger::new(first(knobs, &real).first_records()),
            young: BTreeMap::new(),
            slots,
            rng: Rng::new(knobs.seed, 9),
            calls: BTreeMap::new(),
            last_call: 0,
            joining: BTreeMap::new(),
            stores: FIRST_STORE,
            changed: BTreeMap::new(),
            last_order: 0,
            slow_at: None,
            losing: real.loses,
            operators: Operators::new(knobs.seed),
            loss: Loss::default(),
            recovery: Recovery::new(knobs.seed),
            rests_since: None,
            least_lag: u64::MAX,
            came_on: 0,
            rested: false,
            knobs: real,
        })
    }

    fn store_of(&self, index: usize) -> u64 {
        match self.slots[index] {
            Slot::Member(store) => store,
            Slot::Empty | Slot::Lost(_) => 0,
        }
    }

    /// Whether the node's disk is there.
    pub(crate) fn is_member(&self, index: usize) -> bool {
        matches!(self.slots[index], Slot::Member(_))
    }

    fn is_node_member(&self, node: u64) -> bool {
        self.is_member(node as usize - 1)
    }
}

impl Cluster {
    /// Whether a node can have a process: with the toy placement all can.
    pub(crate) fn has_disk(&self, index: usize) -> bool {
        self.real.as_ref().is_none_or(|real| real.is_member(index))
    }

    /// The first node's disk, and the others' intentions.
    pub(crate) fn begin_real(&mut self) {
        let Some(real) = &mut self.real else { return };
        let bootstrap = first(&self.knobs, &real.knobs);
        let birth = Birth {
            identity: bootstrap::identity(CLUSTER, id_of(0), FIRST_STORE),
            known: v1::KnownNodes { cluster_name: "sim".into(), nodes: vec![bootstrap.node.clone()] },
            ranges: bootstrap.first_ranges(),
            records: bootstrap.first_records(),
        };
        birth.write(&self.nodes[0].disk).expect("a new disk takes its first records");
        let late = self.knobs.duration * 6 / 10;
        for _ in 1..real.knobs.wanted {
            let store = real.new_store();
            let within = if real.rng.chance(250) { late } else { ms(2_500) };
            let at = real.rng.between(ms(200), within);
            self.schedule.at(at, Event::Placed(Placed::Join(store)));
        }
        if real.knobs.people_every > 0 {
            self.schedule.at(ms(2_000), Event::Placed(Placed::People));
        }
        if real.knobs.operators.act() {
            self.schedule.at(ms(4_000), Event::Placed(Placed::Operators));
        }
        if let Some(loss) = &real.knobs.loss {
            let at = self.knobs.duration / 1_000 * loss.at_per_mille;
            self.schedule.at(at, Event::Placed(Placed::LoseMajority));
        }
        if real.losing {
            let at = real.rng.between(self.knobs.duration / 4, self.knobs.duration * 9 / 10);
            self.schedule.at(at, Event::Placed(Placed::Lose));
        }
    }

    pub(crate) fn placed(&mut self, placed: Placed) {
        match placed {
            Placed::Report(life, wake) => self.agent_wakes(life, wake),
            Placed::Asks(question) => self.question_arrives(*question),
            Placed::Answered(call, result) => self.answer_arrives(call, *result),
            Placed::GivenUp(call) => self.call_given_up(call),
            Placed::HostTick(life, wake) => self.host_ticks(life, wake),
            Placed::Join(store) => self.join(store),
            Placed::People => self.people_ask(),
            Placed::Operators => self.operators_act(),
            Placed::Wipe(node) => self.wipe(node),
            Placed::Lose => self.lose_a_node(),
            Placed::LoseMajority => self.lose_a_majority(),
            Placed::Return(index) => self.come_back(index),
            Placed::Outcast(index) => self.outcast_hears(index),
            Placed::Recovering => self.recover(),
            Placed::Recover(index, ask) => self.recovery_asked(index, ask),
        }
    }

    /// The term in which a node leads the system range and may serve it.
    fn reign(&self, index: usize) -> Option<u64> {
        let view = self.nodes[index].process.as_ref()?.views.get(&SYSTEM_RANGE)?;
        (view.serves && view.leader == Some(view.own_node)).then_some(view.term)
    }

    /// Whether this is still the process that it was.
    fn lives(&self, life: Life) -> bool {
        self.nodes[life.node].life == life.number && self.nodes[life.node].is_up()
    }
}
