//! The engine's core from outside: scenarios, each named by the behaviour it holds the core to and judged by
//! the effects that come out. `cluster.rs` runs real stores, log writers and apply stages over disks in
//! memory, step by step: a scenario decides what is durable, applied and delivered, and when.

mod apply;
mod cluster;
mod determinism;
mod disk;
mod elections;
mod gray;
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

/// Which seeds of a storm run: the first, and how many. `STORM=7000+1000` names a thousand from 7,000 on, `STORM=7` that one.
fn which_storms(count: u64) -> (u64, u64) {
    let Some(text) = option_env!("STORM") else { return (1, count) };
    let mut parts = text.split('+').map(|part| part.parse().expect("a number"));
    (parts.next().expect("from"), parts.next().unwrap_or(1))
}
