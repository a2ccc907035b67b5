//! A large snapshot whose sender, or receiver, dies at each step of it: the move that needs it is completed all the
//! same, every key is there, all replicas are equal, and nothing is left in a staging directory.
//!
//! Which step is which file call stands in the tables below; the power-cut shim ends the process exactly there
//! (tests/powercut/README.md). The steps' names are those of docs/decisions/0021-snapshots-large-form.md. That
//! this test can fail was seen with deliberate breaks: docs/reliability.md.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Moving, NODES};
use crate::powercut::{Ending, PowerCut, Steps};
use crate::support::cli::at;
use crate::support::cluster::Cluster;
use crate::support::eventually;
use crate::support::rng::{Rng, seed};

/// More than 4 MiB, above which a snapshot goes through files: six chunks. The keys that end by themselves make a
/// second table file, for they have an index in a span of its own.
const KEYS: u64 = 96;
const ENDING_KEYS: u64 = 4;
const VALUE_BYTES: usize = 64 << 10;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// How a side dies at a step. `{to}` is the receiver's number.
enum Dies {
    /// At the last of these calls of its own.
    At(&'static [&'static str]),
    /// While the other side stands still at this call of its own.
    While(&'static str),
}
use Dies::{At, While};

type Row = (&'static str, Dies);

/// Only a sender has chunk files: whichever node leads.
const SENDER: &[Row] = &[
    ("staging begun", At(&["after create 1 */snap/*.chunks"])),
    ("some chunks staged", At(&["after write 3 */snap/*.chunks"])),
    ("all chunks staged, not synced", At(&["before sync 1 */snap/*.chunks"])),
    ("staged", At(&["after sync 1 */snap/*.chunks"])),
    ("first chunk sent", At(&["before read 2 */snap/*.chunks"])),
    ("half of the chunks sent", At(&["before read 4 */snap/*.chunks"])),
    ("all sent, not answered", While("after sync 1 */node-{to}/snap")),
    ("answered", At(&["before unlink 1 */snap/*.chunks"])),
    ("staging removed", At(&["after unlink 1 */snap/*.chunks"])),
];

const RECEIVER: &[Row] = &[
    ("header received", While("before read 3 */snap/*.chunks")),
    ("first file begun", At(&["after create 1 */node-{to}/snap/*.sst"])),
    ("first file written in part", At(&["after write 1 */node-{to}/snap/*.sst"])),
    ("first file synced", At(&["after sync 1 */node-{to}/snap/*.sst"])),
    ("second file begun", At(&["after create 2 */node-{to}/snap/*.sst"])),
    ("all files synced, their names not", At(&["before sync 1 */node-{to}/snap"])),
    ("all staged", At(&["after sync 1 */node-{to}/snap"])),
    ("intent written", At(&["after write 1 */node-{to}/db/*.log .sst"])),
    ("intent synced", At(&["after write 1 */node-{to}/db/*.log .sst", "after sync 1 */node-{to}/db/*.log"])),
    ("first file linked", At(&["after link 1 */node-{to}/snap/*.ingest"])),
    ("last file linked", At(&["after link 2 */node-{to}/snap/*.ingest"])),
    ("first file in the store", At(&["after link 1 */node-{to}/db/*.sst"])),
    ("last file in the store", At(&["after link 2 */node-{to}/db/*.sst"])),
    ("ingestion written", At(&["after link 2 */node-{to}/db/*.sst", "after write 1 */node-{to}/db/MANIFEST-*"])),
    ("ingestion synced", At(&["after link 2 */node-{to}/db/*.sst", "after sync 1 */node-{to}/db/MANIFEST-*"])),
    ("links removed", At(&["after unlink 2 */node-{to}/snap/*.ingest"])),
    ("finish written", At(&["after unlink 2 */node-{to}/snap/*.ingest", "after write 1 */node-{to}/db/*.log"])),
    ("intent cleared", At(&["after unlink 2 */node-{to}/snap/*.ingest", "after sync 1 */node-{to}/db/*.log"])),
    ("first staged file removed", At(&["after unlink 1 */node-{to}/snap/*.sst"])),
    ("staging removed", At(&["after unlink 2 */node-{to}/snap/*.sst"])),
];

/// Whether a start finds an intent, and must install the snapshot anew: from the moment the intent is on disk until
/// its removal is. A kill leaves what was written, a power cut what was synced.
fn goes_on(step: &str, ending: Ending) -> bool {
    let (first, last) = match ending {
        Ending::Cut => ("intent synced", "finish written"),
        Ending::Kill | Ending::Stop => ("intent written", "links removed"),
    };
    let place = |wanted: &str| RECEIVER.iter().position(|(name, _)| *name == wanted).expect("a step of the receiver");
    (place(first)..=place(last)).contains(&place(step))
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Sender,
    Receiver,
}

/// Moves, time after time.
struct Trial {
    moving: Moving,
    steps: Steps,
    expected: BTreeMap<String, Vec<u8>>,
    rng: Rng,
}

impl Trial {
    fn start() -> Self {
        let mut cluster = Cluster::new(NODES);
        cluster.set_args(&["--initial-ranges", "1", "--split-bytes", "0"]);
        let steps = Steps::create(&cluster.directory().join("steps")).expect("the test's own directory");
        for id in 1..=NODES {
            let data = cluster.node(id).data.clone();
            std::fs::create_dir_all(&data).expect("the test's own directory");
            cluster.set_environment(id, PowerCut::strict(&data).steps(&steps).vars());
        }
        let mut trial =
            Self { moving: Moving::start(cluster), steps, expected: BTreeMap::new(), rng: Rng::new(seed()) };
        for number in 0..KEYS {
            trial.put(&format!("key-{number:04}"), number < ENDING_KEYS);
        }
        trial
    }

    fn put(&mut self, key: &str, ends: bool) {
        let value: Vec<u8> = (0..VALUE_BYTES / 8).flat_map(|_| self.rng.next().to_le_bytes()).collect();
        let put = async {
            match ends {
                true => self.moving.client.put_with_ttl(key.to_owned(), value.clone(), DAY).await,
                false => self.moving.client.put(key.to_owned(), value.clone()).await,
            }
        };
        self.moving.runtime.block_on(put).expect("the range has a majority");
        self.expected.insert(key.to_owned(), value);
    }

    /// One move, in which a side dies at a step, and all that must hold afterwards.
    fn row(&mut self, side: Side, (step, dies): &Row, ending: Ending) {
        let began = Instant::now();
        // What this snapshot has and no earlier one had.
        self.put("latest", false);
        let next = self.moving.next();
        let calls: Vec<String> = match dies {
            At(calls) => calls.iter().map(|call| call.replace("{to}", &next.to.to_string())).collect(),
            While(call) => vec![call.replace("{to}", &next.to.to_string())],
        };
        let had_received = self.received(next.to);
        let here = if matches!(dies, At(_)) { ending } else { Ending::Stop };
        self.steps.plan(here, &calls).expect("the plan is short");
        self.moving.order(next);
        let mut pid = None;
        eventually(&format!("{side:?}: {step}"), || {
            pid = self.steps.claimed().expect("the test's own file");
            pid.is_some()
        });
        let actor = (1..=NODES).find(|id| self.moving.cluster.pid(*id) == pid).expect("one of the nodes");
        let victim = match (dies, side) {
            (At(_), _) => actor,
            (While(_), Side::Sender) => next.leader,
            (While(_), Side::Receiver) => next.to,
        };
        if victim != actor {
            self.kill_beside(victim, had_received);
        }
        assert_eq!(self.moving.cluster.wait_end(victim), None, "{side:?}: {step}: it ends by a signal");
        assert!((side == Side::Receiver) == (victim == next.to), "{side:?}: {step}: node {victim} died");
        self.steps.clear().expect("the test's own file");
        if victim != actor {
            self.moving.cluster.signal(actor, libc::SIGCONT);
        }
        let died = began.elapsed();
        let log = self.moving.cluster.log(victim).len();
        self.moving.cluster.start(victim);
        self.moving.wait_done(&format!("the end of the move after {side:?}: {step}"), next);
        self.check();
        let resumed = format!("were installed, or cleared away ranges=[{:?}]", self.moving.range);
        let resumed = self.moving.cluster.log(victim)[log..].contains(&resumed);
        assert_eq!(resumed, side == Side::Receiver && goes_on(step, ending), "{side:?}: {step}: a start went on");
        println!("{side:?}: {step}: node {victim} after {died:.1?}, all well after {:.1?}", began.elapsed());
    }

    /// Kills a side while the other one stands still.
    fn kill_beside(&mut self, victim: u64, had_received: u64) {
        // A sender keeps its file until it is answered. What it has handed over, the header first of all, must have come.
        let takes_part = || self.moving.staged(victim) > 0 || self.received(victim) > had_received + (1 << 20);
        eventually("the first chunk to come", takes_part);
        self.moving.cluster.signal(victim, libc::SIGKILL);
    }

    /// Bytes that a node has received from others since it started.
    fn received(&self, id: u64) -> u64 {
        self.moving.metric(id, "flotilla_peer_bytes_received_total")
    }

    /// Every key is there, all replicas are equal, and nothing is left in a staging directory.
    fn check(&mut self) {
        self.moving.cluster.wait_ready();
        let client = &self.moving.client;
        self.moving.runtime.block_on(async {
            for (key, value) in &self.expected {
                let found = client.get(key.clone()).await.expect("all nodes serve");
                assert!(found.is_some_and(|record| record.value == *value), "{key} is not as it was written");
            }
        });
        let asked = &self.moving.cluster.node(self.moving.home).client;
        at(asked, &["range", "check", "--all", "--timeout", "60s"]).exits(0);
        eventually("the staging directories to be empty", || (1..=NODES).all(|id| self.moving.staged(id) == 0));
    }
}

#[test]
fn a_sender_that_dies_at_any_step_is_followed_by_another_attempt() {
    let mut trial = Trial::start();
    SENDER.iter().for_each(|row| trial.row(Side::Sender, row, Ending::Kill));
}

#[test]
fn a_receiver_that_dies_at_any_step_goes_on_when_it_is_back() {
    let mut trial = Trial::start();
    RECEIVER.iter().for_each(|row| trial.row(Side::Receiver, row, Ending::Kill));
}

/// The same by a power cut: what no sync covered is gone as well.
#[test]
fn a_receiver_that_loses_power_at_any_step_goes_on_when_it_is_back() {
    let mut trial = Trial::start();
    let own = RECEIVER.iter().filter(|(_, dies)| matches!(dies, At(_)));
    own.for_each(|row| trial.row(Side::Receiver, row, Ending::Cut));
}
