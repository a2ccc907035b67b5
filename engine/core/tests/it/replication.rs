//! Entries on their way to a quorum, and the log behind them.

use flotilla_engine::config::Config;
use flotilla_engine::store::{Event, LogBatch};
use raft::eraftpb::MessageType;

use crate::cluster::Cluster;

fn acknowledged(cluster: &Cluster, from: u64, index: u64) -> bool {
    let sent = cluster.sent(from, 1, MessageType::MsgAppendResponse);
    sent.iter().any(|message| !message.reject && message.index >= index)
}

fn has_entry(log: &LogBatch, index: u64) -> bool {
    log.items.iter().flat_map(|item| &item.entries).any(|entry| entry.index == index)
}

#[test]
fn a_leader_sends_before_its_own_disk() {
    let mut cluster = Cluster::led_by_1(Config::default());
    let effects = cluster.put(1, 1, "k", "v");
    let index = cluster.summary(1).last_index;
    assert!(effects.log.as_ref().is_some_and(|log| has_entry(log, index)));
    for to in [2, 3] {
        let carries = |sent: &&flotilla_engine::store::Envelope| {
            sent.to.0 == to && sent.message.entries.iter().any(|entry| entry.index == index)
        };
        assert_eq!(effects.messages.iter().filter(carries).count(), 1, "to node {to}");
    }
}

#[test]
fn a_follower_acknowledges_only_after_persisted() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.disk_held.insert(2);
    cluster.put(1, 1, "k", "v");
    let index = cluster.summary(1).last_index;
    cluster.settle();
    assert!(has_entry(&cluster.node(2).log[0], index));
    assert!(!acknowledged(&cluster, 2, index) && acknowledged(&cluster, 3, index));
    cluster.persist(2);
    assert!(acknowledged(&cluster, 2, index));
}

/// etcd#14370: a range with one voter has no other disk that could know.
#[test]
fn a_lone_voter_answers_only_after_its_own_disk() {
    let mut cluster = Cluster::new(Config::default(), 1);
    cluster.tick_until(|cluster| cluster.view(1).serves);
    cluster.disk_held.insert(1);
    cluster.put(1, 1, "k", "v");
    cluster.settle();
    cluster.tick();
    assert!(cluster.writes.is_empty() && cluster.node(1).applies.is_empty());
    cluster.disk_held.clear();
    cluster.settle();
    assert!(cluster.answer(1).is_ok());
}

#[test]
fn one_disk_is_no_quorum() {
    for held in [[1, 2], [1, 3], [2, 3]] {
        let mut cluster = Cluster::led_by_1(Config::default());
        cluster.disk_held.extend(held);
        cluster.put(1, 1, "k", "v");
        cluster.settle();
        assert!(cluster.writes.is_empty(), "with the disks of {held:?} held");
        assert!(cluster.summary(1).commit < cluster.summary(1).last_index);
        cluster.disk_held.clear();
        cluster.settle();
        assert!(cluster.answer(1).is_ok());
    }
}

#[test]
fn a_leader_answers_after_two_followers_are_durable_and_it_has_applied_itself() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.disk_held.insert(1);
    cluster.put(1, 1, "k", "v");
    cluster.settle();
    assert_eq!(cluster.summary(1).commit, cluster.summary(1).last_index, "two followers are a quorum");
    assert!(cluster.writes.is_empty(), "but nothing is applied here that is not durable here");
    cluster.disk_held.clear();
    cluster.apply_held.insert(1);
    cluster.settle();
    assert!(cluster.writes.is_empty());
    cluster.apply(1);
    assert!(cluster.answer(1).is_ok());
}

#[test]
fn what_was_not_written_is_gone_after_a_crash_and_comes_again_from_the_leader() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.disk_held.insert(2);
    cluster.put(1, 1, "k", "v");
    cluster.settle();
    let index = cluster.summary(1).last_index;
    cluster.restart(2);
    assert!(cluster.summary(2).last_index < index);
    cluster.disk_held.clear();
    cluster.tick_until(|cluster| cluster.summary(2).applied == index);
    assert!(cluster.fatal.is_empty());
}

#[test]
fn the_log_is_truncated_only_up_to_what_is_durable() {
    // `Cluster::persist` asserts it for every batch; here it must also happen, on all replicas.
    let config = Config { log_retain_entries: 3, ..Config::default() };
    let mut cluster = Cluster::led_by_1(config);
    for token in 0..60 {
        cluster.put(1, token, "k", "v");
        cluster.settle();
    }
    for id in 1..=3 {
        let state = cluster.summary(id);
        assert!(state.truncated > 40 && state.last_index - state.truncated >= 3, "{state:?}");
        cluster.restart(id);
        assert_eq!(cluster.summary(id).truncated, state.truncated);
    }
}

#[test]
fn a_follower_that_was_away_is_fed_from_the_leaders_disk() {
    let config = Config { cache_bytes_max: 0, message_bytes_max: 300, ..Config::default() };
    let mut cluster = Cluster::led_by_1(config);
    cluster.cut_off.insert(3);
    for token in 0..60 {
        cluster.put(1, token, "k", "v");
        cluster.settle();
    }
    cluster.cut_off.clear();
    cluster.tick_until(|cluster| cluster.summary(3).applied == cluster.summary(1).applied);
    assert!(cluster.node(1).fetches > 0);
    assert!(!cluster.events.iter().any(|(_, event)| matches!(event, Event::SnapshotApplied { .. })));
    assert_eq!(cluster.summary(3).applied_checksum, cluster.summary(1).applied_checksum);
}
