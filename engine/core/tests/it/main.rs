//! The engine's core from outside: scenarios, each named by the behaviour it holds the core to and judged by
//! the effects that come out. `cluster.rs` runs real stores, log writers and apply stages over disks in
//! memory, step by step: a scenario decides what is durable, applied and delivered, and when.

mod apply;
mod cluster;
mod determinism;
mod disk;
mod elections;
mod gray;
mod heartbeats;
mod hostile;
mod hostile_ranges;
mod hot;
mod installs;
mod loss_storms;
mod membership;
mod merge_bugs;
mod merge_disks;
mod merge_proofs;
mod merge_storms;
mod merge_times;
mod merges;
mod quorum_loss;
mod ranges;
mod reads;
mod recovery;
mod removals;
mod replication;
mod sleep;
mod sleep_many;
mod sleep_rules;
mod snapshots;
mod splits;
mod staging;
mod ttl;
mod writes;

use flotilla_mutants::Mutant;

/// Which seeds of a storm run: the first, and how many. `STORM=7000+1000` names a thousand from 7,000 on, `STORM=7` that one.
/// `MUTANT=recover-behind` puts a known bug in, where the tests are built with `--features mutants`.
#[allow(clippy::disallowed_methods, reason = "whoever runs a test tells it what to run")]
fn which_storms(count: u64) -> (u64, u64) {
    if let Ok(name) = std::env::var("MUTANT") {
        name.parse().and_then(Mutant::choose).unwrap_or_else(|refused| panic!("MUTANT: {refused}"));
    }
    let Ok(text) = std::env::var("STORM") else { return (1, count) };
    let mut parts = text.split('+').map(|part| part.parse().expect("a number"));
    (parts.next().expect("from"), parts.next().unwrap_or(1))
}
