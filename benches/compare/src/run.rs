//! Turns: each system is started, filled, loaded cell by cell, and stopped; then the next one; then all once more.

use std::path::PathBuf;
use std::time::Duration;

use flotilla_benches::cluster::{Result, binary};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::cell::{Measured, Times, measure};
use crate::load::threads::{Placed, sessions};
use crate::load::workload::{Workload, key, value};
use crate::load::{Load, Running, fill};
use crate::machine::SyncCounter;
use crate::peers;
use crate::results::{Results, Which};
use crate::store::etcd::Etcd;
use crate::store::flotilla::{Flotilla, REPLICAS};
use crate::store::tool::Tool;
use crate::store::zookeeper::{Manner, Zookeeper};
use crate::store::{Session, System};

/// So much of a core may be busy with something else.
pub const OTHERS_MAX: f64 = 0.1;
/// A cell is measured so often at most, until nothing else is busy.
const TRIES: usize = 3;
/// Puts, one after the other, that show how durable they are.
const DURABLE_PUTS: u64 = 50;
/// How long, and by how many clients, a system that compiles itself as it runs is put to and got from before its first cell.
const COMPILING: Duration = Duration::from_secs(5);
const COMPILING_CLIENTS: usize = 64;

#[derive(clap::Args, Clone)]
pub struct Run {
    /// What is compared, in this order
    #[arg(long, value_enum, value_delimiter = ',', default_value = "stream,unary,etcd,zookeeper-sync")]
    systems: Vec<System>,
    /// What the others are compared with
    #[arg(long, value_enum, default_value = "etcd")]
    against: System,
    /// What the clients do
    #[arg(long, value_enum, value_delimiter = ',', default_value = "put,get")]
    workloads: Vec<Workload>,
    /// Clients, each with one operation under way
    #[arg(long, value_delimiter = ',', default_value = "1,16,256,1000,4096")]
    clients: Vec<usize>,
    /// Sizes of values
    #[arg(long, value_delimiter = ',', default_value = "256")]
    value_bytes: Vec<usize>,
    /// Different keys, written before anything is measured
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// Ranges that Flotilla begins with; its peers have none, and are loaded beside the first number only
    #[arg(long, value_delimiter = ',', default_value = "16", value_parser = clap::value_parser!(u32).range(1..))]
    ranges: Vec<u32>,
    /// Nodes of each system
    #[arg(long, value_delimiter = ',', default_value = "3")]
    nodes: Vec<usize>,
    /// How often everything is repeated
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// How long a cell is measured
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// How long it is loaded before that
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// The disk that is measured
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Where the peers' programs are
    #[arg(long, value_name = "DIR", default_value_os_t = peers::default_directory())]
    peers: PathBuf,
    /// Where the results are kept, as JSON
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Measure beside whatever else runs; figures of such a machine say little
    #[arg(long)]
    even_if_busy: bool,
}

pub async fn run(run: &Run) -> Result<()> {
    for system in &run.systems {
        peers::check(&run.peers, *system)?;
        // What lacks some of the workloads is left out there; here nothing would be left.
        if let Some(why) = run.workloads.iter().map(|of| system.lacks(*of)).collect::<Option<Vec<_>>>() {
            return Err(format!("there is nothing to ask {} for: {}", system.name(), why.join("; ")).into());
        }
    }
    let mut results = Results::default();
    for turn in 1..=run.turns {
        for servers in servers(run) {
            eprintln!("turn {turn} of {}, {}", run.turns, servers.in_words());
            take_turn(run, servers, turn, &mut results).await?;
            if let Some(out) = &run.out {
                results.write(out)?;
            }
        }
    }
    print!("{}{}{}", results.table(), results.ratios(run.against), results.notes());
    Ok(())
}

/// What is started anew for some cells.
#[derive(Clone, Copy)]
struct Servers {
    system: System,
    nodes: usize,
    ranges: u32,
    value_bytes: usize,
}

impl Servers {
    /// Of each key: ours has three, its peers one on each node.
    fn replicas(&self) -> usize {
        if self.system.is_flotilla() { self.nodes.min(REPLICAS) } else { self.nodes }
    }

    fn in_words(&self) -> String {
        let ranges = if self.system.is_flotilla() { format!(", {} ranges", self.ranges) } else { String::new() };
        format!("{}, {} nodes{ranges}, values of {} B", self.system.name(), self.nodes, self.value_bytes)
    }
}

/// What is started in a turn, in this order: those that are compared with each other follow each other.
fn servers(run: &Run) -> Vec<Servers> {
    let mut all = Vec::new();
    for nodes in &run.nodes {
        for (at, ranges) in run.ranges.iter().enumerate() {
            for value_bytes in &run.value_bytes {
                let systems = run.systems.iter().filter(|system| at == 0 || system.is_flotilla());
                let one = |system: &System| Servers {
                    system: *system,
                    nodes: *nodes,
                    ranges: if system.is_flotilla() { *ranges } else { 1 },
                    value_bytes: *value_bytes,
                };
                all.extend(systems.map(one));
            }
        }
    }
    all
}

async fn take_turn(run: &Run, servers: Servers, turn: usize, results: &mut Results) -> Result<()> {
    let nodes = servers.nodes;
    match servers.system {
        System::Stream | System::Unary => {
            let store = Flotilla::start(&binary()?, &run.dir, nodes, servers.ranges).await?;
            let turn = Turn { run, servers, turn, processes: store.processes()? };
            match servers.system {
                System::Stream => turn.cells(async |_| store.stream().await, results).await,
                _ => turn.cells(async |clients| store.unary(clients).await, results).await,
            }
        }
        System::EtcdTool => {
            let store = Etcd::start(&run.peers, &run.dir, nodes).await?;
            let (binary, processes) = (run.peers.join("benchmark"), store.processes());
            let tool = Tool { binary: &binary, leader: store.leader().await?, processes: &processes };
            let turn = Turn { run, servers, turn, processes: store.processes() };
            let sessions = sessions(64, async |clients| store.sessions(clients, false).await).await?;
            turn.cells_by_tool(&sessions, &tool, results).await
        }
        System::Etcd | System::EtcdSpread => {
            let store = Etcd::start(&run.peers, &run.dir, nodes).await?;
            let turn = Turn { run, servers, turn, processes: store.processes() };
            let spread = servers.system == System::EtcdSpread;
            turn.cells(async |clients| store.sessions(clients, spread).await, results).await
        }
        System::ZookeeperSync | System::Zookeeper | System::ZookeeperSpread => {
            let store = Zookeeper::start(&run.peers, &run.dir, nodes).await?;
            let turn = Turn { run, servers, turn, processes: store.processes() };
            let system = servers.system;
            let manner = Manner { spread: system == System::ZookeeperSpread, sync: system == System::ZookeeperSync };
            turn.cells(async |clients| store.sessions(clients, manner).await, results).await
        }
    }
}

/// One system's turn.
struct Turn<'a> {
    run: &'a Run,
    servers: Servers,
    turn: usize,
    processes: Vec<u32>,
}

impl Turn<'_> {
    async fn cells<S: Session>(
        &self,
        make: impl AsyncFn(usize) -> Result<Vec<S>>,
        results: &mut Results,
    ) -> Result<()> {
        let first = self.first();
        fill(&sessions(64, &make).await?, first).await?;
        self.check_durability(&sessions(1, &make).await?[0].session, first).await?;
        if self.servers.system.compiles_as_it_runs() {
            self.let_compile(&sessions(COMPILING_CLIENTS, &make).await?).await?;
        }
        for workload in self.workloads() {
            for clients in &self.run.clients {
                let load = Load { workload, clients: *clients, ..first };
                let sessions = sessions(*clients, &make).await?;
                let measured = self.undisturbed(async || measure(&sessions, &self.processes, load, self.times()).await);
                self.add(load, measured.await?, results);
            }
        }
        Ok(())
    }

    /// What is measured is what a server does that has been up for a while, whichever cell comes first.
    async fn let_compile<S: Session>(&self, sessions: &[Placed<S>]) -> Result<()> {
        for workload in [Workload::Put, Workload::Get] {
            let running = Running::start(sessions, Load { workload, clients: COMPILING_CLIENTS, ..self.first() });
            tokio::time::sleep(COMPILING).await;
            if let Some(failure) = running.stop().await?.failure {
                return Err(failure.into());
            }
        }
        Ok(())
    }

    async fn cells_by_tool<S: Session>(
        &self,
        sessions: &[Placed<S>],
        tool: &Tool<'_>,
        results: &mut Results,
    ) -> Result<()> {
        fill(sessions, self.first()).await?;
        for workload in self.workloads() {
            for clients in &self.run.clients {
                let load = Load { workload, clients: *clients, ..self.first() };
                let measured = self.undisturbed(async || tool.measure(load, self.times().measure).await);
                self.add(load, measured.await?, results);
            }
        }
        Ok(())
    }

    /// Those that the system can be loaded with; why not with the others is said.
    fn workloads(&self) -> Vec<Workload> {
        let mut known = self.run.workloads.clone();
        known.retain(|workload| {
            let why = self.servers.system.lacks(*workload);
            why.iter().for_each(|why| eprintln!("  {} is left out: {why}", workload.name()));
            why.is_none()
        });
        known
    }

    /// What everything begins with.
    fn first(&self) -> Load {
        Load {
            workload: Workload::Put,
            clients: 1,
            value_bytes: self.servers.value_bytes,
            keys: self.run.keys,
            seed: self.turn as u64,
        }
    }

    fn times(&self) -> Times {
        Times { warm_up: Duration::from_secs_f64(self.run.warm_up), measure: Duration::from_secs_f64(self.run.seconds) }
    }

    fn add(&self, load: Load, measured: Measured, results: &mut Results) {
        let which = Which {
            system: self.servers.system,
            workload: load.workload,
            clients: load.clients,
            value_bytes: load.value_bytes,
            keys: load.keys,
            ranges: self.servers.ranges,
            nodes: self.servers.nodes,
        };
        eprintln!(
            "  {}, {} clients: {:.0}/s, {:.1} us of server CPU, p99 {:.0} us",
            load.workload.name(),
            load.clients,
            measured.per_second,
            measured.server_us,
            measured.p99_us
        );
        results.add(which, measured);
    }

    /// A put that nothing else is under way with must be synced by a majority before it is acknowledged: what does less is
    /// not compared.
    async fn check_durability<S: Session>(&self, session: &S, load: Load) -> Result<()> {
        let counter = SyncCounter::start(&self.processes);
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut random = SmallRng::seed_from_u64(load.seed);
        for number in 0..DURABLE_PUTS {
            session.put(key(number), value(&mut random, load.value_bytes)).await?;
        }
        let Some(syncs) = counter.and_then(SyncCounter::stop) else {
            eprintln!("  fsyncs cannot be counted here (perf is missing, or may not): durability is taken on trust");
            return Ok(());
        };
        let majority = self.servers.replicas() / 2 + 1;
        if syncs < majority as f64 * DURABLE_PUTS as f64 {
            let name = self.servers.system.name();
            return Err(format!(
                "{name} acknowledged {DURABLE_PUTS} puts, one after the other, with {syncs} fsyncs where {majority} nodes must \
                 sync each: what is durable to a different degree is not compared"
            )
            .into());
        }
        Ok(())
    }

    async fn undisturbed(&self, measure: impl AsyncFn() -> Result<Measured>) -> Result<Measured> {
        undisturbed(self.run.even_if_busy, |measured: &Measured| measured.others, measure).await
    }
}

/// Once more, if something else was busy; refused, if it stays so. `others`: how many cores it took.
pub async fn undisturbed<M>(
    even_if_busy: bool,
    others: impl Fn(&M) -> f64,
    measure: impl AsyncFn() -> Result<M>,
) -> Result<M> {
    let mut busy = 0.0;
    for _ in 0..TRIES {
        let measured = measure().await?;
        busy = others(&measured);
        if busy <= OTHERS_MAX || even_if_busy {
            return Ok(measured);
        }
        eprintln!("  something else took {busy:.2} cores: once more");
    }
    Err(too_busy(busy))
}

/// Why nothing is compared beside something that takes so many cores.
pub fn too_busy(cores: f64) -> Box<dyn std::error::Error> {
    let words = "nothing is compared; end it, or ask for figures that say little with --even-if-busy";
    format!("something else takes {cores:.2} cores of this machine: {words}").into()
}
