//! How much memory a large snapshot takes: a range of a gibibyte moves, and neither the sender's nor the receiver's
//! process may grow by more than 64 MiB.

use std::fs;
use std::time::{Duration, Instant};

use super::{Move, Moving, NODES};
use crate::support::cluster::Cluster;
use crate::support::rng::{Rng, seed};
use crate::support::{eventually, memory_bytes};

const RANGE_BYTES: usize = 1 << 30;
const VALUE_BYTES: usize = 64 << 10;
/// Writes under way at once.
const WRITERS: u64 = 8;
/// By how much a process may grow.
const GROWTH_BYTES_MAX: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(300);

/// The memory of one side.
struct Watched {
    name: &'static str,
    pid: u32,
    /// Resident before, anonymous before, most anonymous seen.
    resident: u64,
    anonymous: u64,
    most_anonymous: u64,
}

impl Watched {
    fn new(name: &'static str, pid: u32) -> Self {
        // The kernel's own mark of the most that was resident begins anew.
        fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("the process is ours");
        let (resident, anonymous) = (memory_bytes(pid, "VmRSS"), memory_bytes(pid, "RssAnon"));
        Self { name, pid, resident, anonymous, most_anonymous: anonymous }
    }

    fn look(&mut self) {
        self.most_anonymous = self.most_anonymous.max(memory_bytes(self.pid, "RssAnon"));
    }

    /// By how much it had grown at its largest.
    fn grown(&self) -> u64 {
        memory_bytes(self.pid, "VmHWM").saturating_sub(self.resident)
    }

    fn report(&self) -> String {
        let mib = |bytes: u64| bytes >> 20;
        format!(
            "{}: {} MiB resident before, at most {} MiB more; anonymous memory {} MiB before, at most {} MiB more",
            self.name,
            mib(self.resident),
            mib(self.grown()),
            mib(self.anonymous),
            mib(self.most_anonymous - self.anonymous),
        )
    }
}

impl Moving {
    fn fill(&self) {
        let seed = seed();
        let write = |writer: u64| {
            let (client, mut rng) = (self.client.clone(), Rng::new(seed ^ writer));
            self.runtime.spawn(async move {
                for number in 0..(RANGE_BYTES / VALUE_BYTES) as u64 / WRITERS {
                    let value: Vec<u8> = (0..VALUE_BYTES / 8).flat_map(|_| rng.next().to_le_bytes()).collect();
                    client.put(format!("key-{writer}-{number:05}"), value).await.expect("the cluster serves");
                }
            })
        };
        let writers: Vec<_> = (0..WRITERS).map(write).collect();
        writers.into_iter().for_each(|writer| self.runtime.block_on(writer).expect("no write fails"));
    }

    /// Waits until no node compacts any more: what that takes is not the snapshot's.
    fn wait_compacted(&self) {
        const QUIET: Duration = Duration::from_secs(3);
        let compacted = || -> u64 {
            let names = ["flotilla_rocksdb_compaction_bytes_total", "flotilla_rocksdb_flush_bytes_total"];
            (1..=NODES).flat_map(|id| names.map(|name| self.metric(id, name))).sum()
        };
        let (mut last, mut since) = (compacted(), Instant::now());
        eventually("compactions to end", || {
            let now = compacted();
            if now != last {
                (last, since) = (now, Instant::now());
            }
            since.elapsed() >= QUIET
        });
    }

    /// Moves once, and says by how much the larger side grew.
    fn measure(&self) -> u64 {
        let next @ Move { leader, to, .. } = self.next();
        let pid = |id| self.cluster.pid(id).expect("the node runs");
        let mut sides = [Watched::new("sender", pid(leader)), Watched::new("receiver", pid(to))];
        let began = Instant::now();
        self.order(next);
        let mut asked = began;
        // The memory is looked at often, the range seldom.
        while asked.elapsed() < Duration::from_millis(500) || self.is_done(next) != Some(true) {
            if asked.elapsed() >= Duration::from_millis(500) {
                asked = Instant::now();
            }
            assert!(began.elapsed() < PATIENCE, "the move does not end");
            sides.iter_mut().for_each(Watched::look);
            std::thread::park_timeout(Duration::from_millis(5));
        }
        println!("{} MiB moved in {:.1?}", RANGE_BYTES >> 20, began.elapsed());
        sides.iter().for_each(|side| println!("  {}", side.report()));
        assert_eq!(self.next().leader, leader, "the range was led by the sender all the time");
        sides.iter().map(Watched::grown).max().unwrap_or_default()
    }
}

#[test]
#[ignore = "it writes some GiB: `make snapshot-memory`"]
fn a_gibibyte_moves_with_64_mib_on_either_side() {
    let mut cluster = Cluster::new(NODES);
    cluster.set_args(&["--initial-ranges", "1", "--split-bytes", "0"]);
    let moving = Moving::start(cluster);
    let began = Instant::now();
    moving.fill();
    println!("{} MiB written in {:.1?}", RANGE_BYTES >> 20, began.elapsed());
    // Each time to another node, and mostly from the same one.
    for _ in 0..2 {
        moving.wait_compacted();
        let grown = moving.measure();
        assert!(grown <= GROWTH_BYTES_MAX, "a side grew by {} MiB", grown >> 20);
    }
}
