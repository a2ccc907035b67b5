//! What the tests share: clusters of processes, ports, recorded workloads, waiting.

pub mod cli;
pub mod cluster;
pub mod image;
pub mod ports;
pub mod proxy;
pub mod recorder;
pub mod rng;
pub mod shared;
pub mod steps;
pub mod supervisor;

use std::time::{Duration, Instant};

/// The longest that any wait of a test may take: far beyond what is expected, so that a slow machine fails no test.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds; panics with `what` if it never does.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} for: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// The same, for asynchronous conditions.
pub async fn eventually_async<F: Future<Output = bool>>(what: &str, condition: impl FnMut() -> F) {
    eventually_within(PATIENCE, what, condition).await;
}

/// The same, for what may take longer.
pub async fn eventually_within<F: Future<Output = bool>>(
    patience: Duration,
    what: &str,
    mut condition: impl FnMut() -> F,
) {
    let begun = Instant::now();
    let mut pulse = tokio::time::interval(Duration::from_millis(20));
    while !condition().await {
        assert!(begun.elapsed() < patience, "waited {patience:?} for: {what}");
        pulse.tick().await;
    }
}

/// How often a test does what it does: CI's share, or more by an environment variable (`make soak`).
pub fn amount(variable: &str, share: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text}: not a number")),
        Err(_) => share,
    }
}

/// A file's length without the zeros at its end, which nobody would miss: the WAL has room behind what was written. Of zeros alone, all of them.
pub fn used_bytes(file: &std::path::Path) -> u64 {
    let bytes = std::fs::read(file).expect("the test's own file");
    bytes.iter().rposition(|byte| *byte != 0).map_or(bytes.len(), |last| last + 1) as u64
}

/// What the kernel tells of a process's memory under this name (proc_pid_status(5)).
pub fn memory_bytes(pid: u32, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel tells");
    let kib = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>();
    kib.expect("a number of KiB") << 10
}

/// A runtime for the client's side of a test.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}
