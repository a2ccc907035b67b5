//! Runs seeds, one after another or on several threads, and tells what they did.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flotilla_mutants::Mutant;

use crate::clock::Nanos;
use crate::cluster::{Cluster, Tally};
use crate::knobs::Knobs;
use crate::marks::Marks;

/// What one seed's run did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Hash of every event: equal for equal seeds and builds.
    pub trace_hash: u64,
    /// What went wrong, if anything did.
    pub failure: Option<String>,
    simulated: Nanos,
    tally: Tally,
    marks: Marks,
    acknowledged: u64,
    unknown: u64,
    refused: u64,
    entries: usize,
    /// The first fault steps, printed with a failure.
    plan: String,
}

/// How a seed is run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Print every event.
    pub print_trace: bool,
    /// Check only what clients could notice in the end, not what replicas promise one another: to see
    /// that the checkers of histories find bugs without help.
    pub black_box: bool,
}

/// Which seeds are run.
#[derive(Clone, Copy, Debug)]
pub struct Seeds {
    /// The first one.
    pub first: u64,
    /// At least so many.
    pub count: u64,
    /// And more, until so much time has passed.
    pub at_least: Duration,
    /// Threads.
    pub jobs: usize,
    /// No new seed after so many failures.
    pub failures_max: usize,
}

impl Default for Seeds {
    fn default() -> Self {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        Self { first: 1, count: 50, at_least: Duration::ZERO, jobs, failures_max: 10 }
    }
}

/// Runs one seed. A panic of the core is a failure like any other.
pub fn run_seed(seed: u64, options: Options) -> Report {
    let mut cluster = Cluster::new(Knobs::draw(seed), options);
    if options.print_trace {
        println!("{:#?}", cluster.knobs);
        for step in &cluster.plan {
            println!("plan: {:>10.3} s {:?}", step.at as f64 / 1e9, step.fault);
        }
    }
    let panicked = catch_unwind(AssertUnwindSafe(|| cluster.run_until(Nanos::MAX))).err();
    let failure = match panicked {
        Some(payload) => Some(format!("panic: {}", words_of(&*payload))),
        None => cluster.failure.take(),
    };
    let plan = if failure.is_some() { format!("{:?}", cluster.knobs) } else { String::new() };
    if cluster.recorder.pairs_seen > 0 {
        cluster.marks.hit(crate::marks::Mark::PairSeen);
    }
    let reads_failed = cluster.nodes.iter().any(|node| node.disk.counters().reads_failed > 0);
    if reads_failed {
        cluster.marks.hit(crate::marks::Mark::ReadFailed);
    }
    Report {
        seed,
        trace_hash: cluster.trace.hash(),
        failure: failure.map(|what| format!("at {:.3} s: {what}", cluster.now as f64 / 1e9)),
        simulated: cluster.now,
        tally: cluster.tally,
        marks: cluster.marks,
        acknowledged: cluster.recorder.acknowledged,
        unknown: cluster.recorder.unknown,
        refused: cluster.recorder.refused,
        entries: cluster.invariants.entries_seen(),
        plan,
    }
}

fn words_of(payload: &(dyn std::any::Any + Send)) -> &str {
    if let Some(words) = payload.downcast_ref::<&str>() {
        words
    } else {
        payload.downcast_ref::<String>().map_or("without words", String::as_str)
    }
}

/// All runs together.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// How many seeds were run.
    pub seeds: u64,
    /// Those that failed, by seed.
    pub failures: BTreeMap<u64, Report>,
    simulated: Nanos,
    took: Duration,
    tally: Tally,
    marks: Marks,
    acknowledged: u64,
    unknown: u64,
    refused: u64,
    entries: usize,
}

impl Summary {
    fn add(&mut self, report: Report) {
        self.seeds += 1;
        self.simulated += report.simulated;
        self.marks.add(&report.marks);
        self.acknowledged += report.acknowledged;
        self.unknown += report.unknown;
        self.refused += report.refused;
        self.entries += report.entries;
        let (all, one) = (&mut self.tally, &report.tally);
        all.events += one.events;
        all.elections += one.elections;
        all.crashes += one.crashes;
        all.snapshots += one.snapshots;
        all.splits += one.splits;
        all.moves += one.moves;
        all.messages += one.messages;
        all.syncs += one.syncs;
        all.faults += one.faults;
        all.undecided += one.undecided;
        all.recovery = all.recovery.max(one.recovery);
        all.elections_healed = all.elections_healed.max(one.elections_healed);
        if report.failure.is_some() {
            self.failures.insert(report.seed, report);
        }
    }

    /// Marks that enough seeds must hit together, and that these did not.
    pub fn missing_marks(&self) -> Vec<&'static str> {
        self.marks.missing()
    }

    /// Events that were simulated.
    pub fn events(&self) -> u64 {
        self.tally.events
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tally = &self.tally;
        writeln!(
            f,
            "sim: {} seeds, {} events ({:.2} M/min), {:.0} s simulated in {:.1} s; {} faults, {} crashes, {} elections, \
             {} snapshots, {} splits and {} changes of replicas applied, {} messages, {} syncs, {} log entries compared",
            self.seeds,
            tally.events,
            tally.events as f64 / 1e6 / (self.took.as_secs_f64() / 60.0).max(1e-9),
            self.simulated as f64 / 1e9,
            self.took.as_secs_f64(),
            tally.faults,
            tally.crashes,
            tally.elections,
            tally.snapshots,
            tally.splits,
            tally.moves,
            tally.messages,
            tally.syncs,
            self.entries,
        )?;
        writeln!(
            f,
            "sim: requests: {} answered, {} refused, {} of unknown outcome; slowest range took its first write {:.1} s \
             after healing, and none chose more than {} leaders by itself; {} keys left undecided by the checker",
            self.acknowledged,
            self.refused,
            self.unknown,
            tally.recovery as f64 / 1e9,
            tally.elections_healed,
            tally.undecided,
        )?;
        let never: Vec<&str> = self.marks.all().filter(|(_, hits)| *hits == 0).map(|(text, _)| text).collect();
        let all = self.marks.all().count();
        writeln!(f, "sim: coverage: {} of {all} marks hit", all - never.len())?;
        for (text, hits) in self.marks.all().filter(|(_, hits)| *hits > 0) {
            writeln!(f, "sim:   {hits:>9}  {text}")?;
        }
        for text in never {
            writeln!(f, "sim:     never  {text}")?;
        }
        for (seed, report) in &self.failures {
            let what = report.failure.as_deref().unwrap_or_default();
            writeln!(f, "sim: FAILED seed {seed} {what}")?;
            writeln!(f, "sim:   knobs: {}", report.plan)?;
            writeln!(f, "sim:   repeat it: {}", repeat_command(*seed))?;
        }
        Ok(())
    }
}

/// The command that runs a seed again, with its trace.
pub fn repeat_command(seed: u64) -> String {
    let (features, mutant) = match Mutant::chosen() {
        Some(mutant) => (" --features mutants", format!(" --mutant {mutant}")),
        None => ("", String::new()),
    };
    format!("cargo run --release -p flotilla-sim{features} --{mutant} --seed {seed} --trace")
}

/// Runs seeds on several threads; a failure lets those under way end.
pub fn run_seeds(seeds: &Seeds, options: Options) -> Summary {
    let began = now();
    let next = AtomicU64::new(0);
    let summary = Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..seeds.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let enough = lock(&summary).failures.len() >= seeds.failures_max;
                    if enough || (at >= seeds.count && began.elapsed() >= seeds.at_least) {
                        return;
                    }
                    let report = run_seed(seeds.first + at, options);
                    lock(&summary).add(report);
                }
            });
        }
    });
    let mut summary = summary.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    summary.took = began.elapsed();
    summary
}

fn lock(summary: &Mutex<Summary>) -> std::sync::MutexGuard<'_, Summary> {
    summary.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The one clock of this crate: how long the simulation takes; nothing simulated sees it.
#[allow(clippy::disallowed_methods, reason = "measures the simulator itself")]
fn now() -> Instant {
    Instant::now()
}
