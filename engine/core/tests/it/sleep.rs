//! Ranges that sleep: what they cost, what wakes them, and what must never come of it.

use std::time::Duration;

use flotilla_engine::config::Config;
use flotilla_engine::store::{Beat, Envelope, Event, Input};
use flotilla_engine::time::BootTime;
use flotilla_proto::{Error, NodeId, v1};
use raft::eraftpb::MessageType;

use crate::cluster::{Cluster, RANGE, put_ttl, request};

const IDLE: usize = 4;

pub fn config() -> Config {
    Config { idle_ticks: IDLE, ..Config::default() }
}

pub fn all_asleep(cluster: &Cluster) -> bool {
    cluster.nodes.values().all(|node| node.store.ranges().all(|range| range.asleep))
}

/// Three replicas that have fallen asleep, and who leads [`RANGE`].
pub fn asleep_with(config: Config) -> (Cluster, u64) {
    let mut cluster = Cluster::sleepy(config, 3, 0);
    cluster.tick_until(|cluster| cluster.leader().is_some());
    let leader = cluster.leader().expect("just seen");
    cluster.put(leader, 1, "k", "v");
    cluster.tick_until(|cluster| all_asleep(cluster) && cluster.leader().is_some());
    let leader = cluster.leader().expect("sleeping leaders lead");
    (cluster, leader)
}

pub fn asleep() -> (Cluster, u64) {
    asleep_with(config())
}

pub fn others(leader: u64) -> [u64; 2] {
    let mut others = (1..=3).filter(|id| *id != leader);
    [others.next().unwrap_or(0), others.next().unwrap_or(0)]
}

pub fn ticks(cluster: &mut Cluster, count: usize) {
    (0..count).for_each(|_| cluster.tick());
}

pub fn sleeps(cluster: &Cluster, id: u64) -> bool {
    cluster.summary(id).asleep
}

#[test]
fn an_idle_range_sends_nothing_and_holds_no_lease() {
    let (mut cluster, leader) = asleep();
    let sent = cluster.sent.len();
    let term = cluster.summary(leader).term;
    ticks(&mut cluster, 60);
    assert!(all_asleep(&cluster));
    assert_eq!(cluster.sent.len(), sent, "no message, whatever time passes");
    assert_eq!((cluster.leader(), cluster.summary(leader).term), (Some(leader), term));
    assert_eq!(cluster.view(leader).lease_until, BootTime(0));
    assert!(cluster.view(leader).serves, "readers are let to the loop");
}

#[test]
fn beats_are_one_for_each_node_however_many_ranges_sleep() {
    let (mut cluster, leader) = asleep();
    let effects = cluster.turn(leader, vec![]);
    assert!(effects.is_empty(), "{effects:?}");
    cluster.now = cluster.now + cluster.config.tick;
    let effects = cluster.turn(leader, vec![Input::Tick]);
    let wanted: Vec<_> =
        others(leader).iter().map(|to| Beat { to: NodeId(*to), leaving: false, hears_nothing: false }).collect();
    assert_eq!(effects.beats, wanted);
    assert!(effects.messages.is_empty() && effects.log.is_none());
}

#[test]
fn a_write_wakes_the_range_and_it_falls_asleep_again() {
    let (mut cluster, leader) = asleep();
    let term = cluster.summary(leader).term;
    cluster.put(leader, 7, "k", "w");
    cluster.settle();
    assert!(cluster.answer(7).is_ok());
    assert!((1..=3).all(|id| !sleeps(&cluster, id)));
    assert_eq!(cluster.summary(leader).term, term, "nobody was elected for it");
    cluster.tick_until(all_asleep);
    assert_eq!(cluster.leader(), Some(leader));
}

#[test]
fn the_first_read_after_sleep_pays_a_round_to_a_quorum() {
    let (mut cluster, leader) = asleep();
    for id in others(leader) {
        cluster.deaf.insert((id, RANGE));
    }
    cluster.barrier(leader, 7);
    cluster.settle();
    assert!(cluster.barriers.is_empty(), "nobody has said that it still leads");
    assert_eq!(cluster.view(leader).lease_until, BootTime(0));
    cluster.deaf.clear();
    cluster.tick_until(|cluster| !cluster.barriers.is_empty());
    assert!(cluster.barriers[0].1.is_ok());
    cluster.tick();
    assert!(cluster.view(leader).lease_covers(cluster.now));
}

#[test]
fn reads_by_the_lease_keep_a_range_awake() {
    let (mut cluster, leader) = asleep();
    cluster.barrier(leader, 7);
    cluster.settle();
    for _ in 0..IDLE * 4 {
        cluster.turn(leader, vec![Input::Read { range: RANGE }]);
        cluster.tick();
        assert!(!sleeps(&cluster, leader) && cluster.view(leader).lease_covers(cluster.now));
    }
    cluster.tick_until(all_asleep);
}

#[test]
fn a_replica_that_does_not_lead_names_the_leader_in_its_sleep() {
    let (mut cluster, leader) = asleep();
    let [follower, _] = others(leader);
    cluster.put(follower, 7, "k", "w");
    let Err(Error::NotLeader { leader: named, .. }) = cluster.answer(7) else { panic!("{:?}", cluster.answer(7)) };
    assert_eq!(*named, Some(NodeId(leader)));
    assert!(all_asleep(&cluster));
}

/// An acknowledgement of before the sleep proves nothing after it.
#[test]
fn no_lease_comes_back_by_waking() {
    let (mut cluster, leader) = asleep();
    let stale = cluster.sent.iter().rev().find(|sent| sent.to.0 == leader && sent.message.ack_stamp > 0).cloned();
    let mut stale = stale.expect("heartbeats were answered");
    cluster.network.clear();
    cluster.cut_off.extend(others(leader));
    cluster.put(leader, 7, "k", "w");
    for id in others(leader) {
        (stale.from, stale.message.from_replica) = (NodeId(id), id);
        cluster.turn(leader, vec![Input::Message(stale.clone())]);
    }
    assert!(!sleeps(&cluster, leader));
    assert_eq!(cluster.view(leader).lease_until, BootTime(0));
}

#[test]
fn a_lease_that_is_void_for_its_term_is_void_after_sleep() {
    let (mut cluster, leader) = asleep();
    let [target, _] = others(leader);
    cluster.cut_off.insert(target);
    let term = cluster.summary(leader).term;
    cluster.transfer(leader, 5, target);
    // The message is lost, the transfer given up; the target comes back before it is taken for dead.
    cluster.tick_until(|cluster| !cluster.transfers.is_empty());
    cluster.cut_off.clear();
    cluster.network.clear();
    cluster.tick_until(|cluster| all_asleep(cluster) || cluster.summary(leader).term > term);
    if cluster.summary(leader).term > term {
        return;
    }
    cluster.put(leader, 7, "k", "w");
    ticks(&mut cluster, 3);
    assert!(!sleeps(&cluster, leader) && cluster.view(leader).serves);
    assert_eq!(cluster.view(leader).lease_until, BootTime(0));
}

/// A promise is kept over sleep: no vote for another within an election time-out of the leader's last word.
#[test]
fn a_follower_that_has_just_fallen_asleep_gives_no_vote() {
    let (mut cluster, leader) = asleep();
    let [follower, candidate] = others(leader);
    cluster.put(leader, 7, "k", "w");
    cluster.tick_until(all_asleep);
    cluster.cut_off.insert(leader);
    // Whatever is said about the leader's node.
    let gone = Input::Beat { from: NodeId(leader), boot_id: 1, leaving: true, hears_nothing: false };
    let state = cluster.summary(candidate);
    let message = v1::PeerMessage {
        range_id: RANGE.0,
        from_replica: candidate,
        to_replica: follower,
        message_type: MessageType::MsgRequestVote as u32,
        term: state.term + 1,
        index: state.last_index,
        log_term: state.term,
        ..Default::default()
    };
    let envelope =
        Envelope { from: NodeId(candidate), to: NodeId(follower), message, disk_full: false, snapshot: None };
    cluster.turn(follower, vec![gone, Input::Message(envelope.clone())]);
    cluster.persist(follower);
    assert_eq!(cluster.summary(follower).vote, leader, "its promise is not over");
    cluster.restart(follower);
    cluster.turn(follower, vec![Input::Message(envelope.clone())]);
    assert_ne!(cluster.summary(follower).vote, candidate, "nor is the silence of a store that has just started");
    cluster.now = cluster.now + cluster.config.election_timeout();
    cluster.turn(follower, vec![Input::Message(envelope)]);
    assert_eq!(cluster.summary(follower).vote, candidate);
}

#[test]
fn when_the_leaders_node_dies_the_range_is_led_again() {
    is_led_elsewhere(|cluster, leader| {
        cluster.cut_off.insert(leader);
    });
}

/// Its signs of life come through, and it could do nothing for the range.
#[test]
fn when_the_leaders_node_hears_nobody_the_range_is_led_elsewhere() {
    is_led_elsewhere(|cluster, leader| {
        cluster.cut_links.extend(others(leader).map(|from| (from, leader)));
    });
}

fn is_led_elsewhere(fails: impl Fn(&mut Cluster, u64)) {
    for seed in 0..10 {
        let (mut cluster, leader) = asleep_with(Config { seed, ..config() });
        fails(&mut cluster, leader);
        let ids = others(leader);
        let mut waited = 0;
        while !ids.iter().any(|id| cluster.summary(*id).leads) {
            cluster.tick();
            waited += 1;
            assert!(waited < 6 * cluster.config.election_ticks, "seed {seed}");
        }
        assert!(waited > cluster.config.election_ticks, "a short silence is no death");
        cluster.cut_off.clear();
        cluster.cut_links.clear();
        cluster.tick_until(|cluster| all_asleep(cluster) && !cluster.summary(leader).leads);
    }
}

/// Somebody asks for it before its turn has come.
#[test]
fn a_request_wakes_a_range_whose_leader_is_dead_at_once() {
    let (mut cluster, leader) = asleep();
    let [one, two] = others(leader);
    cluster.cut_off.insert(leader);
    // As if thousands came before it.
    for id in [one, two] {
        let gone = Input::Beat { from: NodeId(leader), boot_id: 1, leaving: true, hears_nothing: false };
        cluster.now = cluster.now + cluster.config.election_timeout();
        cluster.turn(id, vec![gone]);
    }
    cluster.put(one, 7, "k", "w");
    cluster.settle();
    assert!(cluster.answer(7).is_ok(), "it was elected, and what waited for that was written");
}

/// tikv#19070: one dead store kept 300,000 ranges from hibernating.
#[test]
fn a_dead_node_keeps_no_range_awake() {
    let (mut cluster, leader) = asleep();
    let [dead, _] = others(leader);
    cluster.cut_off.insert(dead);
    cluster.put(leader, 7, "k", "w");
    cluster.tick_until(|cluster| (1..=3).filter(|id| *id != dead).all(|id| sleeps(cluster, id)));
    assert_eq!(cluster.leader(), Some(leader));
    let sent = cluster.sent.iter().filter(|sent| sent.from.0 != dead).count();
    (0..40).for_each(|_| cluster.tick());
    assert_eq!(cluster.sent.iter().filter(|sent| sent.from.0 != dead).count(), sent);
    // It comes back: the range wakes, gives it what it lacks, and falls asleep with it.
    cluster.cut_off.clear();
    cluster.tick_until(|cluster| cluster.summary(dead).applied == cluster.summary(leader).applied);
    cluster.tick_until(all_asleep);
}

/// Nothing of it sleeps when it is back, and it must be known all the same for another process than the one that said
/// that it stops (seed 175 of the simulation: left out of each sleep, its replica never learned what is committed).
#[test]
fn a_node_that_stopped_and_came_back_sleeps_with_the_others_again() {
    let (mut cluster, leader) = asleep();
    let [stopped, _] = others(leader);
    cluster.turn(stopped, vec![Input::Drain]);
    ticks(&mut cluster, 2);
    cluster.restart(stopped);
    ticks(&mut cluster, 2);
    assert!(!sleeps(&cluster, stopped), "it has woken to learn who leads");
    cluster.tick_until(|cluster| all_asleep(cluster) && cluster.leader().is_some());
    let leader = cluster.leader().expect("just seen");
    assert_eq!(cluster.summary(leader).silent_nodes, Vec::<u64>::new());
}

#[test]
fn without_a_quorum_that_is_level_nobody_sleeps() {
    let (mut cluster, leader) = asleep();
    cluster.put(leader, 7, "k", "w");
    cluster.settle();
    cluster.cut_off.extend(others(leader));
    ticks(&mut cluster, 60);
    assert!(!sleeps(&cluster, leader));
}

/// tikv#17101: a store that stood still for a while takes nobody for dead, and wakes nothing.
#[test]
fn a_store_that_was_stopped_for_a_while_wakes_nothing() {
    let (mut cluster, leader) = asleep();
    let [stopped, other] = others(leader);
    let until = cluster.now + cluster.config.election_timeout() * 5;
    while cluster.now < until {
        cluster.now = cluster.now + cluster.config.tick;
        for id in [leader, other] {
            cluster.turn(id, vec![Input::Tick]);
        }
        cluster.beats.retain(|(_, _, beat)| beat.to.0 == stopped);
    }
    // One late tick, before all that has come in the meantime.
    cluster.turn(stopped, vec![Input::Tick]);
    assert!(sleeps(&cluster, stopped));
    cluster.settle();
    ticks(&mut cluster, 20);
    assert_eq!(cluster.leader(), Some(leader));
}

#[test]
fn followers_wake_when_the_leaders_process_is_another_one() {
    let (mut cluster, leader) = asleep();
    let term = cluster.summary(leader).term;
    let silent_until = cluster.now + cluster.config.vote_silence();
    cluster.restart(leader);
    while cluster.leader().is_none() {
        cluster.tick();
        assert!(cluster.now < silent_until + cluster.config.election_timeout() * 3);
    }
    let now = cluster.leader().expect("just seen");
    assert!(cluster.summary(now).term > term, "elected, and not resumed");
    cluster.tick_until(all_asleep);
}

/// The word is lost on its way to one follower: its timer runs, it asks, and the leader wakes. Nobody is deposed.
#[test]
fn a_follower_that_did_not_hear_the_word_deposes_nobody() {
    for seed in 0..10 {
        let (mut cluster, leader) = asleep_with(Config { seed, ..config() });
        let [deaf, other] = others(leader);
        let term = cluster.summary(leader).term;
        cluster.put(leader, 7, "k", "w");
        cluster.settle();
        while !sleeps(&cluster, leader) {
            cluster.now = cluster.now + cluster.config.tick;
            for id in 1..=3 {
                cluster.turn(id, vec![Input::Tick]);
            }
            cluster.network.retain(|sent| sent.to.0 != deaf || sent.message.sleep_boot_id == 0);
            cluster.settle();
        }
        assert!(!sleeps(&cluster, deaf));
        cluster.tick_until(|cluster| !sleeps(cluster, leader));
        assert!(sleeps(&cluster, other) || cluster.summary(other).term == term);
        cluster.tick_until(all_asleep);
        assert_eq!((cluster.leader(), cluster.summary(leader).term), (Some(leader), term), "seed {seed}");
    }
}

/// Whoever hears the word before it has applied everything stays awake, and does not campaign.
#[test]
fn a_follower_that_still_applies_stays_awake_and_waits() {
    let (mut cluster, leader) = asleep();
    let [slow, _] = others(leader);
    cluster.apply_held.insert(slow);
    cluster.put(leader, 7, "k", "w");
    cluster.tick_until(|cluster| sleeps(cluster, leader));
    let term = cluster.summary(leader).term;
    ticks(&mut cluster, 60);
    assert!(!sleeps(&cluster, slow) && sleeps(&cluster, leader));
    assert_eq!(cluster.summary(slow).term, term);
    cluster.apply_held.clear();
    cluster.tick_until(all_asleep);
}

/// tikv#3270: an old leader that slept through a partition, and those who have elected another one.
#[test]
fn a_leader_that_slept_through_a_partition_answers_nothing_old() {
    let (mut cluster, old) = asleep();
    cluster.cut_off.insert(old);
    cluster.tick_until(|cluster| cluster.leader().is_some_and(|id| id != old));
    let new = cluster.leader().expect("just seen");
    cluster.tick_until(|cluster| cluster.view(new).serves);
    cluster.put(new, 7, "k", "new");
    cluster.tick_until(|cluster| sleeps(cluster, new));
    assert!(sleeps(&cluster, old) && cluster.summary(old).leads, "it has noticed nothing");
    cluster.barrier(old, 8);
    ticks(&mut cluster, 3);
    assert!(cluster.barriers.is_empty());
    cluster.cut_off.clear();
    cluster.tick_until(|cluster| !cluster.barriers.is_empty());
    assert!(cluster.barriers[0].1.is_err());
    cluster.tick_until(all_asleep);
    assert!(!cluster.summary(old).leads);
}

/// A leader that woke, found nobody, and leads no more, is not waited for by those who still sleep.
#[test]
fn a_leader_that_stepped_down_while_others_slept_finds_votes() {
    let (mut cluster, leader) = asleep();
    for id in others(leader) {
        cluster.deaf.insert((id, RANGE));
    }
    cluster.put(leader, 7, "k", "w");
    cluster.tick_until(|cluster| !cluster.summary(leader).leads);
    cluster.deaf.clear();
    cluster.tick_until(|cluster| cluster.leader().is_some());
    cluster.tick_until(all_asleep);
}

#[test]
fn a_sleeping_leader_wakes_for_keys_that_end() {
    let (mut cluster, leader) = asleep();
    cluster.write(leader, 7, request(vec![put_ttl("gone", "v", 60_000)]));
    cluster.settle();
    let sent = cluster.now;
    cluster.tick_until(all_asleep);
    let state =
        |cluster: &Cluster| crate::cluster::rows(&cluster.node(leader).disk, &cluster.summary(leader).descriptor);
    let before = state(&cluster).len();
    while state(&cluster).len() == before {
        cluster.tick();
        assert!(cluster.now.since(sent) < Duration::from_secs(64), "it ends about when it should");
    }
    assert!(cluster.now.since(sent) >= Duration::from_secs(60), "and never early");
    cluster.tick_until(all_asleep);
}

#[test]
fn an_order_wakes_a_range_and_a_learner_sleeps_too() {
    let mut cluster = Cluster::sleepy(config(), 3, 1);
    cluster.tick_until(|cluster| cluster.leader_of(RANGE).is_some() && all_asleep(cluster));
    let leader = cluster.leader_of(RANGE).expect("just seen");
    cluster.turn(leader, vec![crate::ranges::order(&[4], &[])]);
    cluster.tick_until(|cluster| cluster.summary(leader).descriptor.replicas.len() == 4);
    cluster.tick_until(|cluster| cluster.summary_of(4, RANGE).is_some());
    let done = Input::Order(v1::RangeOrder { range_id: RANGE.0, ..Default::default() });
    cluster.turn(leader, vec![done]);
    cluster.tick_until(all_asleep);
}

#[test]
fn an_asymmetric_link_deposes_nobody() {
    // The leader hears the follower, which does not hear it.
    let (mut cluster, leader) = asleep();
    let [follower, _] = others(leader);
    let term = cluster.summary(leader).term;
    for _ in 0..60 {
        cluster.now = cluster.now + cluster.config.tick;
        for id in 1..=3 {
            cluster.turn(id, vec![Input::Tick]);
        }
        loop {
            cluster.beats.retain(|(from, _, beat)| (*from, beat.to.0) != (leader, follower));
            cluster.network.retain(|sent| (sent.from.0, sent.to.0) != (leader, follower));
            let mut any = cluster.deliver();
            for id in 1..=3 {
                any |= cluster.persist(id);
                any |= cluster.apply(id);
            }
            if !any {
                break;
            }
        }
    }
    assert_eq!((cluster.leader(), cluster.summary(leader).term), (Some(leader), term));
    cluster.tick_until(all_asleep);
    assert_eq!((cluster.leader(), cluster.summary(leader).term), (Some(leader), term));
}

#[test]
fn a_removed_replica_goes_though_it_sleeps() {
    let (mut cluster, leader) = asleep();
    let [gone, _] = others(leader);
    let remove = Input::Order(v1::RangeOrder {
        order_id: 1,
        range_id: RANGE.0,
        remove_nodes: vec![gone],
        replicas: 2,
        ..Default::default()
    });
    cluster.turn(leader, vec![remove]);
    cluster.tick_until(|cluster| cluster.summary_of(gone, RANGE).is_none());
    assert!(cluster.events.iter().any(|(id, event)| *id == gone && matches!(event, Event::Removed { .. })));
    let taken_back = Input::Order(v1::RangeOrder { range_id: RANGE.0, ..Default::default() });
    cluster.turn(leader, vec![taken_back]);
    cluster.tick_until(all_asleep);
}
