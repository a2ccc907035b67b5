//! Heartbeats: how many there are, and that those which say nothing new keep up all that hangs on being heard.

use flotilla_engine::config::{Config, ReadMode};
use flotilla_engine::store::{Envelope, Event, Input};
use flotilla_proto::NodeId;
use raft::eraftpb::MessageType;

use crate::cluster::Cluster;

impl Cluster {
    fn sent_of(&self, kind: MessageType) -> usize {
        self.sent.iter().filter(|sent| sent.message.message_type == kind as u32).count()
    }

    /// The last heartbeat that left for a node.
    fn last_heartbeat(&self, to: u64) -> Envelope {
        let is = |sent: &&Envelope| sent.to.0 == to && sent.message.message_type == MessageType::MsgHeartbeat as u32;
        self.sent.iter().rev().find(is).expect("one was sent").clone()
    }

    fn refusals(&self) -> usize {
        self.events.iter().filter(|(_, event)| matches!(event, Event::MessageRefused { .. })).count()
    }
}

#[test]
fn a_range_without_news_sends_them_with_every_third_tick() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.tick();
    let (term, sent) = (cluster.summary(1).term, cluster.sent.len());
    let heartbeats = cluster.sent_of(MessageType::MsgHeartbeat);
    for _ in 0..60 {
        cluster.tick();
        assert!(cluster.view(1).lease_until > cluster.now + cluster.config.tick, "reads go on without a round");
    }
    assert_eq!(cluster.sent_of(MessageType::MsgHeartbeat) - heartbeats, 60 / 3 * 2);
    assert_eq!(cluster.sent.len() - sent, 60 / 3 * 4, "each is answered, and nothing else is said");
    assert_eq!((cluster.summary(1).term, cluster.leader()), (term, Some(1)));
}

#[test]
fn an_election_time_out_of_few_ticks_has_them_with_each() {
    let config = Config { election_ticks: 5, lease: Config::default().tick * 3, ..Config::default() };
    let mut cluster = Cluster::led_by_1(config);
    let before = cluster.sent_of(MessageType::MsgHeartbeat);
    for _ in 0..10 {
        cluster.tick();
    }
    assert_eq!(cluster.sent_of(MessageType::MsgHeartbeat) - before, 20);
}

#[test]
fn they_tell_what_is_committed() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.put(1, 1, "key", "value");
    cluster.settle();
    assert!(cluster.summary(2).applied < cluster.summary(1).applied, "an answered write is news to the others");
    for _ in 0..cluster.config.heartbeat_ticks() {
        cluster.tick();
    }
    assert_eq!(cluster.summary(2).applied, cluster.summary(1).applied);
    assert_eq!(cluster.summary(3).applied, cluster.summary(1).applied);
}

#[test]
fn what_was_lost_on_the_way_is_found_with_the_next_ticks() {
    for ticks_before in 0..3 {
        let mut cluster = Cluster::led_by_1(Config::default());
        (0..ticks_before).for_each(|_| cluster.tick());
        cluster.cut_links.extend([(1, 2), (1, 3)]);
        cluster.put(1, 1, "key", "value");
        cluster.settle();
        cluster.cut_links.clear();
        cluster.tick();
        cluster.tick();
        assert!(cluster.writes.iter().any(|(token, answer)| *token == 1 && answer.is_ok()), "{:?}", cluster.writes);
    }
}

#[test]
fn a_read_whose_round_was_lost_is_asked_again_with_the_next_tick() {
    for ticks_before in 0..3 {
        let mut cluster = Cluster::led_by_1(Config { read_mode: ReadMode::Quorum, ..Config::default() });
        (0..ticks_before).for_each(|_| cluster.tick());
        cluster.cut_links.extend([(1, 2), (1, 3)]);
        cluster.barrier(1, 1);
        cluster.settle();
        assert!(cluster.barriers.is_empty());
        cluster.cut_links.clear();
        cluster.tick();
        assert!(cluster.barriers.iter().any(|(token, answer)| *token == 1 && answer.is_ok()), "{ticks_before}");
    }
}

#[test]
fn a_leader_whose_lease_runs_short_asks_with_each_tick() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.tick();
    cluster.cut_links.extend([(2, 1), (3, 1)]);
    while cluster.view(1).lease_until > cluster.now + cluster.config.tick * 3 {
        cluster.tick();
    }
    let before = cluster.sent_of(MessageType::MsgHeartbeat);
    cluster.tick();
    cluster.tick();
    assert_eq!(cluster.sent_of(MessageType::MsgHeartbeat) - before, 4);
    cluster.cut_links.clear();
    cluster.tick();
    assert!(cluster.view(1).lease_until > cluster.now + cluster.config.tick * 3);
}

#[test]
fn one_that_is_not_as_it_should_be_is_refused_as_ever() {
    let mut cluster = Cluster::led_by_1(Config::default());
    for _ in 0..6 {
        cluster.tick();
    }
    let good = cluster.last_heartbeat(2);
    let answers = |cluster: &Cluster| cluster.sent_of(MessageType::MsgHeartbeatResponse);
    let mut bad = vec![Envelope { from: NodeId(3), ..good.clone() }; 3];
    (bad[1].from, bad[1].message.reject_hint) = (good.from, u64::MAX);
    (bad[2].from, bad[2].message.request_snapshot) = (good.from, 7);
    for envelope in bad {
        let before = (answers(&cluster), cluster.refusals());
        cluster.turn(2, vec![Input::Message(envelope.clone())]);
        assert_eq!(answers(&cluster), before.0, "{envelope:?}");
        assert_eq!(cluster.refusals(), before.1 + 1, "{envelope:?}");
    }
    let before = answers(&cluster);
    cluster.turn(2, vec![Input::Message(good)]);
    assert_eq!(answers(&cluster), before + 1);
}
