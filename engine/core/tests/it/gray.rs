//! Gray failure: nodes that are slow, or stand still, or are heard and do not hear.
//!
//! Time goes by the millisecond here: each node's disk takes its own time for a sync, messages take one millisecond, and a
//! client writes to whoever leads. tikv#18054: 50 ms of a disk's jitter on one of six stores cost half of all
//! throughput; tikv#18058: the slow node was elected; pd#8852: a leader on a slow disk stayed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use flotilla_engine::config::Config;
use flotilla_engine::log_writer;
use flotilla_engine::storage::Storage;
use flotilla_engine::store::{Envelope, Event, Input};
use flotilla_proto::NodeId;
use raft::eraftpb::MessageType;

use crate::cluster::{Cluster, RANGE};

/// Writes under way at once.
const CLIENTS: usize = 4;

struct Gray {
    cluster: Cluster,
    /// How long a sync takes; one millisecond where it does not say.
    sync_ms: BTreeMap<u64, u64>,
    /// When the sync under way ends.
    syncing: BTreeMap<u64, u64>,
    /// Until when a node stands still.
    still_until: BTreeMap<u64, u64>,
    /// Messages from one to another that are lost.
    lost: BTreeSet<(u64, u64)>,
    /// Who hears of another node in bursts only: two in a second, so many milliseconds after each half of it.
    bursts: BTreeMap<(u64, u64), u64>,
    held: Vec<Envelope>,
    mailbox: BTreeMap<u64, VecDeque<Input>>,
    ticked: BTreeMap<u64, u64>,
    ms: u64,
    next: u64,
    under_way: BTreeSet<u64>,
    idle: bool,
    done: usize,
}

impl Gray {
    fn new(nodes: u64) -> Self {
        let cluster = Cluster::new(Config::default(), nodes);
        Self {
            ms: cluster.now.0 / 1_000_000,
            cluster,
            sync_ms: BTreeMap::new(),
            syncing: BTreeMap::new(),
            still_until: BTreeMap::new(),
            lost: BTreeSet::new(),
            bursts: BTreeMap::new(),
            held: Vec::new(),
            mailbox: BTreeMap::new(),
            ticked: BTreeMap::new(),
            next: 0,
            under_way: BTreeSet::new(),
            idle: false,
            done: 0,
        }
    }

    /// Led by node 1, with a load, for as long as figures need.
    fn running(nodes: u64) -> Self {
        let mut gray = Self::new(nodes);
        gray.run_s(6);
        assert_eq!(gray.cluster.leader(), Some(1));
        gray
    }

    fn post(&mut self) {
        let mut sent = std::mem::take(&mut self.held);
        sent.extend(std::mem::take(&mut self.cluster.network));
        for envelope in sent {
            let (from, to) = (envelope.from.0, envelope.to.0);
            if self.bursts.get(&(from, to)).is_some_and(|after| self.ms % 500 != *after) {
                self.held.push(envelope);
            } else if !self.lost.contains(&(from, to)) {
                self.mailbox.entry(to).or_default().push_back(Input::Message(envelope));
            }
        }
        for (from, health) in std::mem::take(&mut self.cluster.healths) {
            for to in self.cluster.nodes.keys().filter(|to| **to != from && !self.lost.contains(&(from, **to))) {
                let told = Input::Health { from: NodeId(from), health: health.clone() };
                self.mailbox.entry(*to).or_default().push_back(told);
            }
        }
    }

    fn millisecond(&mut self) {
        self.ms += 1;
        self.cluster.now = flotilla_engine::time::BootTime(self.ms * 1_000_000);
        self.post();
        let ids: Vec<u64> = self.cluster.nodes.keys().copied().collect();
        for id in ids {
            if self.still_until.get(&id).is_some_and(|until| self.ms < *until) {
                continue;
            }
            let mut inputs: Vec<Input> = self.mailbox.remove(&id).unwrap_or_default().into();
            if self.ms - self.ticked.get(&id).copied().unwrap_or_default() >= 100 {
                self.ticked.insert(id, self.ms);
                inputs.push(Input::Tick);
            }
            if !inputs.is_empty() {
                self.cluster.turn(id, inputs);
            }
            if self.syncing.get(&id).is_some_and(|until| self.ms >= *until) {
                self.syncing.remove(&id);
                self.persist(id);
            }
            if !self.cluster.node(id).log.is_empty() {
                let takes = self.sync_ms.get(&id).copied().unwrap_or(1);
                self.syncing.entry(id).or_insert(self.ms + takes);
            }
            self.cluster.apply(id);
        }
        self.clients();
    }

    /// As [`Cluster::persist`], for all batches at once as the log writer does it, and without opening the disk anew.
    fn persist(&mut self, id: u64) {
        let node = self.cluster.nodes.get_mut(&id).expect("it exists");
        let Some(sequence) = node.log.back().map(|last| last.sequence) else { return };
        for log in node.log.drain(..) {
            let mut batch = node.disk.batch();
            log_writer::fill(&mut batch, &log).expect("what was checked can be written");
            node.disk.write(batch).expect("the disk is well");
        }
        self.cluster.turn(id, vec![Input::Persisted { sequence }]);
    }

    fn clients(&mut self) {
        for (token, answer) in std::mem::take(&mut self.cluster.writes) {
            self.done += usize::from(self.under_way.remove(&token) && answer.is_ok());
        }
        let Some(leader) = self.cluster.leader().filter(|id| !self.is_still(*id)) else { return };
        while self.under_way.len() < CLIENTS && !self.idle {
            self.next += 1;
            self.under_way.insert(self.next);
            self.cluster.put(leader, self.next, &format!("key{:03}", self.next % 200), "value");
        }
    }

    fn is_still(&self, id: u64) -> bool {
        self.still_until.get(&id).is_some_and(|until| self.ms < *until)
    }

    /// So many seconds pass; returns the writes that were acknowledged in a second.
    fn run_s(&mut self, seconds: usize) -> usize {
        let before = self.done;
        for step in 0..seconds * 1_000 {
            self.millisecond();
            // A client gives up what a leader that is gone took with it.
            if step % 1_000 == 0 {
                self.under_way.clear();
            }
        }
        self.cluster.sent.clear();
        (self.done - before) / seconds
    }

    fn slow(&self, id: u64) -> bool {
        self.cluster.node(id).store.health(self.cluster.now).slow
    }

    fn elections(&self) -> usize {
        self.cluster.events.iter().filter(|(_, event)| matches!(event, Event::BecameLeader { .. })).count()
    }
}

#[test]
fn leadership_leaves_a_slow_disk_and_does_not_come_back_by_itself() {
    for (nodes, sync_ms) in [(3, 10), (3, 50), (5, 100)] {
        let mut gray = Gray::running(nodes);
        let before = gray.run_s(2);
        gray.sync_ms.insert(1, sync_ms);
        gray.run_s(8);
        let after = gray.run_s(2);
        assert!(gray.slow(1), "{nodes} nodes, {sync_ms} ms: {:?}", gray.cluster.node(1).store.health(gray.cluster.now));
        assert_ne!(gray.cluster.leader(), Some(1), "{nodes} nodes, {sync_ms} ms");
        assert!(after * 10 >= before * 8, "{nodes} nodes, {sync_ms} ms: {before} before, {after} after");
        let reason = gray.cluster.node(1).store.health(gray.cluster.now).reason;
        assert!(reason.starts_with("its log syncs take ") && reason.contains("those of the others"), "{reason}");

        let elections = gray.elections();
        gray.sync_ms.clear();
        gray.run_s(5);
        assert!(gray.slow(1), "five seconds are not yet enough");
        gray.run_s(15);
        assert!(!gray.slow(1));
        assert_eq!(gray.elections(), elections, "it comes back without an election");
    }
}

#[test]
fn where_most_are_slow_nobody_is() {
    for slow in [vec![1, 2], vec![1, 2, 3]] {
        let mut gray = Gray::running(3);
        gray.sync_ms.extend(slow.iter().map(|id| (*id, 50)));
        gray.run_s(15);
        assert_eq!(gray.cluster.leader(), Some(1), "there is nowhere better to go");
        assert!((1..=3).all(|id| !gray.slow(id)));
    }
    let mut two = Gray::new(2);
    two.sync_ms.insert(1, 50);
    two.run_s(15);
    assert!(!two.slow(1), "one of two is no majority");
}

#[test]
fn a_slow_node_is_elected_as_the_last_resort_only() {
    let mut gray = Gray::running(3);
    gray.sync_ms.insert(3, 50);
    gray.run_s(6);
    assert!(gray.slow(3) && gray.cluster.leader() == Some(1));
    // tikv#18058: of two that are left, the slow one was as likely to be elected.
    for _ in 0..6 {
        let leader = gray.cluster.leader().expect("somebody leads");
        // All logs are level: by Raft's rules each of the two may be elected.
        gray.idle = true;
        gray.run_s(1);
        let others = (1..=3).filter(|id| *id != leader);
        gray.lost = others.flat_map(|id| [(id, leader), (leader, id)]).collect();
        gray.run_s(3);
        gray.lost.clear();
        gray.idle = false;
        gray.run_s(2);
        let elected = |(id, event): &(u64, Event)| *id == 3 && matches!(event, Event::BecameLeader { .. });
        assert!(!gray.cluster.events.iter().any(elected), "a fast node was there");
    }
    // It refuses to be told, too.
    let leader = gray.cluster.leader().expect("somebody leads");
    gray.cluster.transfer(leader, 99, 3);
    gray.run_s(3);
    assert_ne!(gray.cluster.leader(), Some(3));

    // The other fast node cannot be elected: its log is behind for good. Somebody must lead.
    let other = 3 - leader;
    gray.still_until.insert(other, u64::MAX);
    gray.run_s(2);
    gray.still_until.insert(leader, gray.ms + 20_000);
    gray.still_until.insert(other, 0);
    gray.run_s(12);
    assert!(gray.cluster.leader().is_some_and(|id| id != leader));
}

#[test]
fn a_node_that_stands_still_again_and_again_loses_what_it_leads() {
    let mut gray = Gray::running(3);
    let before = gray.run_s(2);
    for _ in 0..4 {
        gray.still_until.insert(1, gray.ms + 1_500);
        gray.run_s(4);
    }
    assert!(gray.slow(1));
    assert_ne!(gray.cluster.leader(), Some(1));
    let elections = gray.elections();
    // From now on its pauses cost nobody anything.
    gray.still_until.insert(1, gray.ms + 1_500);
    let during = gray.run_s(3);
    assert!(during * 10 >= before * 8, "{before} before, {during} while it stands still");
    gray.run_s(90);
    assert!(!gray.slow(1));
    assert_eq!(gray.elections(), elections, "it comes back without an election");
}

#[test]
fn a_slow_follower_slows_nobody_and_takes_no_memory_without_bound() {
    // tikv#12255: what a follower could not take piled up.
    let mut gray = Gray::running(3);
    let before = gray.run_s(3);
    gray.sync_ms.insert(2, 400);
    let during = gray.run_s(10);
    assert!(during * 10 >= before * 9, "{before} before, {during} with a slow follower");
    assert_eq!(gray.cluster.leader(), Some(1));
    let config = &gray.cluster.config;
    let waiting = gray.cluster.node(2).log.len();
    assert!(waiting <= config.inflight_messages_max + 2, "{waiting} log batches wait");
    assert!(gray.cluster.summary(1).log_bytes <= config.log_lagging_bytes_max);
}

#[test]
fn a_leader_that_is_heard_and_hears_nobody_steps_down() {
    let mut gray = Gray::running(3);
    gray.lost.extend([(2, 1), (3, 1)]);
    gray.run_s(6);
    assert_ne!(gray.cluster.leader(), Some(1));
    assert!(!gray.cluster.summary(1).leads, "no acknowledgement reached it for three time-outs");
    let (rate, elections) = (gray.run_s(3), gray.elections());
    assert!(rate > 100, "{rate}");
    gray.lost.clear();
    gray.run_s(5);
    assert_eq!(gray.elections(), elections, "and it disturbs nobody when it hears again");
}

#[test]
fn a_follower_that_hears_nobody_and_is_heard_disturbs_nobody() {
    let mut gray = Gray::running(3);
    let (term, elections) = (gray.cluster.summary(1).term, gray.elections());
    let before = gray.run_s(2);
    gray.lost.extend([(1, 3), (2, 3)]);
    let during = gray.run_s(10);
    gray.lost.clear();
    gray.run_s(3);
    assert_eq!((gray.cluster.leader(), gray.cluster.summary(1).term, gray.elections()), (Some(1), term, elections));
    assert!(during * 10 >= before * 9, "{before} before, {during} during");
    assert_eq!(gray.cluster.summary(3).term, term, "it asked first, and was told no");
}

#[test]
fn a_leader_whose_messages_reach_only_some_goes_on_with_those() {
    let mut gray = Gray::running(5);
    let (before, elections) = (gray.run_s(2), gray.elections());
    gray.lost.extend([(1, 4), (1, 5)]);
    let during = gray.run_s(8);
    assert!(during * 10 >= before * 9, "{before} before, {during} during");
    assert_eq!((gray.cluster.leader(), gray.elections()), (Some(1), elections));
    // One more, and it reaches no quorum.
    gray.lost.insert((1, 3));
    gray.run_s(6);
    assert_ne!(gray.cluster.leader(), Some(1));
    assert!(gray.run_s(3) * 10 >= before * 8);
}

#[test]
fn a_leader_that_is_to_stop_asks_the_next_voter_when_the_best_one_refuses() {
    let mut gray = Gray::running(3);
    // The one it would ask first is to stop as well.
    gray.cluster.turn(3, vec![Input::Drain]);
    gray.run_s(1);
    gray.cluster.turn(1, vec![Input::Drain]);
    gray.run_s(4);
    assert_eq!(gray.cluster.leader(), Some(2));
}

#[test]
fn a_slow_leader_goes_on_where_nobody_level_could_take_over() {
    let mut gray = Gray::running(3);
    gray.sync_ms.insert(1, 50);
    // Node 3 hears nothing of the range; node 2 refuses to lead for as long as it says so itself.
    gray.cluster.deaf.insert((3, RANGE));
    gray.lost.insert((1, 3));
    gray.cluster.turn(2, vec![Input::Drain]);
    gray.run_s(10);
    assert!(gray.slow(1));
    assert!(gray.run_s(2) > 10, "writes go on, slowly");
    let asked = |sent: &&Envelope| sent.message.message_type == MessageType::MsgTimeoutNow as u32;
    gray.run_s(1);
    assert!(gray.cluster.sent.iter().filter(asked).count() <= 20, "and it does not ask without end");
}

/// Seed 27178: each attempt came a tick after Raft had forgotten who is active, so that a voter whose answers come in bursts
/// was never asked, and one that could not follow again and again.
#[test]
fn a_slow_leader_asks_the_next_voter_though_answers_of_it_come_in_bursts() {
    for after in [0, 50, 150, 250, 350, 450] {
        let mut gray = Gray::running(3);
        // Node 2 is further, and refuses.
        gray.cluster.turn(2, vec![Input::Drain]);
        gray.bursts.insert((3, 1), after);
        gray.sync_ms.insert(1, 100);
        let slow = (0..10).find(|_| {
            gray.run_s(1);
            gray.slow(1)
        });
        assert!(slow.is_some(), "bursts {after} ms late");
        // An attempt that fails takes an election time-out, and the next one is made at once.
        gray.run_s(3);
        assert_eq!(gray.cluster.leader(), Some(3), "bursts {after} ms late");
    }
}
