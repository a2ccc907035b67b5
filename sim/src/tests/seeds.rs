//! A share of the seeds, and that one seed means one run. `make sim SEEDS=n` runs more.

use crate::run::{Options, Seeds, run_seed, run_seeds};

#[test]
fn dozens_of_seeds_break_no_invariant() {
    let summary = run_seeds(&Seeds { count: 300, failures_max: 1, ..Seeds::default() }, Options::default());
    println!("{summary}");
    assert!(summary.failures.is_empty(), "{summary}");
    assert!(summary.events() > 1_000_000);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let hashes = |seed| run_seed(seed, Options::default()).trace_hash;
    let first: Vec<u64> = (1..12).map(hashes).collect();
    let second: Vec<u64> = (1..12).map(hashes).collect();
    assert_eq!(first, second);
    let mut unlike = first.clone();
    unlike.sort_unstable();
    unlike.dedup();
    assert_eq!(unlike.len(), first.len(), "another seed gives another trace");
}

/// Probes knew of their ranges only a node that had been given up, and had ended: it seemed to take their writes and
/// never to answer, so none looked elsewhere.
#[test]
fn whoever_knows_only_a_node_that_was_given_up_finds_the_others() {
    let report = run_seed(2_254, Options::default());
    assert_eq!(report.failure, None);
}
