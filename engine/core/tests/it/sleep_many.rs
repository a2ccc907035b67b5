//! Many ranges that sleep: what happens to all of them when a node dies, stops or starts.

use flotilla_engine::config::Config;
use flotilla_engine::store::{Input, Split, SplitAt, Token, Write};
use flotilla_proto::{NodeId, RangeId, v1};

use crate::cluster::{Cluster, LATER, RANGE, put, request};
use crate::sleep::{all_asleep, config, others, ticks};

/// Ranges, all led by the same node, and asleep: split from one.
pub fn many(config: Config, count: u64) -> (Cluster, u64) {
    let mut cluster = Cluster::sleepy(config, 3, 0);
    for id in 1..=3 {
        let keyspace = v1::Keyspace { keyspace_id: 1, name: "default".into(), ..Default::default() };
        cluster
            .turn(id, vec![Input::Keyspaces(vec![keyspace]), Input::RangeIds { first: id * 1_000, count: count + 10 }]);
    }
    cluster.tick_until(|cluster| cluster.leader().is_some_and(|id| cluster.view(id).serves));
    let leader = cluster.leader().expect("just seen");
    let keys = (1..count).map(|at| format!("k{at:04}").into()).collect();
    let split = Split { token: Token(1), range: RANGE, at: SplitAt::Keys(keys), deadline: LATER };
    cluster.turn(leader, vec![Input::Split(split)]);
    cluster.settle();
    assert!(matches!(&cluster.splits[..], [(1, Ok(_))]), "{:?}", cluster.splits);
    cluster.tick_until(|cluster| cluster.node(1).store.ranges().count() as u64 >= count && all_asleep(cluster));
    (cluster, leader)
}

fn awake(cluster: &Cluster, id: u64) -> usize {
    cluster.node(id).store.ranges().filter(|range| !range.asleep).count()
}

/// tikv#17101, tikv#12255: when a node dies its ranges do not all wake at once.
#[test]
fn wakes_are_spread_over_time_when_a_node_dies() {
    let (mut cluster, leader) = many(Config { wakes_per_tick: 3, ..config() }, 40);
    let led: Vec<RangeId> = led_by(&cluster, leader);
    assert!(led.len() >= 40);
    cluster.cut_off.insert(leader);
    let ids = others(leader);
    let before = cluster.node(ids[0]).store.ranges().filter(|range| range.asleep).count();
    cluster.tick_until(|cluster| ids.iter().any(|id| awake(cluster, *id) > 0));
    assert!(ids.iter().all(|id| awake(&cluster, *id) <= 2 * 3), "three of its own, and three that the other one woke");
    let all_led = |cluster: &Cluster| {
        led.iter().all(|range| ids.iter().any(|id| cluster.summary_of(*id, *range).is_some_and(|of| of.leads)))
    };
    let mut waited = 0;
    while !all_led(&cluster) {
        cluster.tick();
        waited += 1;
        assert!(waited < 100);
    }
    assert!(waited >= led.len() / 6 - 1, "{before} were asleep");
    let shares = ids.map(|id| led_by(&cluster, id).len());
    assert!(shares.iter().all(|share| *share >= led.len() / 4), "the work is shared: {shares:?}");
}

/// Whoever woke only to find a leader sleeps as soon as there is one: what is awake at a time does not grow with what is
/// still to come.
#[test]
fn a_range_that_woke_in_its_turn_sleeps_as_soon_as_it_is_led() {
    let (mut cluster, leader) = many(Config { wakes_per_tick: 2, idle_ticks: 20, ..config() }, 40);
    cluster.cut_off.insert(leader);
    let led = led_by(&cluster, leader);
    let ids = others(leader);
    let mut most = 0;
    while !led.iter().all(|range| ids.iter().any(|id| cluster.summary_of(*id, *range).is_some_and(|of| of.leads))) {
        cluster.tick();
        most = most.max(ids.iter().map(|id| awake(&cluster, *id)).max().unwrap_or(0));
    }
    // Four wake with each tick, here and there, and are awake for some ticks.
    assert!(most <= 4 * 5, "{most} of {} were awake at once", led.len());
}

/// Where nobody can be elected not all ranges come to be awake, campaigning, at once.
#[test]
fn no_more_wake_than_find_a_leader_in_time() {
    let (mut cluster, leader) = many(Config { wakes_per_tick: 1, ..config() }, 80);
    let [gone, alone] = others(leader);
    cluster.cut_off.extend([leader, gone]);
    let election = cluster.config.election_ticks;
    ticks(&mut cluster, 4 * election);
    let seeking = awake(&cluster, alone);
    assert!((election..=2 * election).contains(&seeking), "{seeking} are awake");
    // Those that have no majority do not hold up the others for ever.
    ticks(&mut cluster, 40 * election);
    assert!(awake(&cluster, alone) >= 80, "all had their turn");
}

pub fn led_by(cluster: &Cluster, id: u64) -> Vec<RangeId> {
    cluster.node(id).store.ranges().filter(|range| range.leads).map(|range| range.range).collect()
}

/// tikv#10444: a start does nothing for ranges that nobody asks for, and a request does not wait for its turn.
#[test]
fn a_start_wakes_ranges_one_by_one_and_what_is_asked_for_at_once() {
    let (mut cluster, leader) = many(Config { wakes_per_tick: 1, ..config() }, 40);
    let [restarted, _] = others(leader);
    let views: Vec<_> = cluster.node(restarted).views.keys().copied().collect();
    cluster.restart(restarted);
    assert_eq!(awake(&cluster, restarted), 0);
    assert_eq!(cluster.node(restarted).views.keys().copied().collect::<Vec<_>>(), views, "all can be read from, stale");
    cluster.tick();
    assert!(awake(&cluster, restarted) <= 1);
    cluster.tick_until(|cluster| cluster.node(restarted).store.ranges().all(|range| range.leader.is_some()));
    cluster.tick_until(all_asleep);
    assert_eq!(led_by(&cluster, restarted).len(), 0, "who leads goes on leading");
    // All of them at once.
    (1..=3).for_each(|id| cluster.restart(id));
    cluster.now = cluster.now + cluster.config.vote_silence();
    let last = views.last().copied().expect("there are ranges");
    let epoch = cluster.summary_of(1, last).expect("here").descriptor.epoch.unwrap_or_default();
    let write =
        Write { token: Token(9), range: last, epoch, request: request(vec![put("k0039x", "v")]), deadline: LATER };
    cluster.turn(2, vec![Input::Write(write)]);
    cluster.settle();
    assert!(cluster.summary_of(2, last).is_some_and(|of| of.leads), "before its turn");
}

#[test]
fn a_stopping_store_leaves_sleeping_ranges_to_the_others() {
    let (mut cluster, leader) = many(config(), 10);
    let led = led_by(&cluster, leader);
    ticks(&mut cluster, 15);
    cluster.turn(leader, vec![Input::Drain]);
    cluster.settle();
    assert!(led_by(&cluster, leader).is_empty(), "it hands nothing over range by range");
    assert!(cluster.node(leader).views.values().all(|view| view.leader != Some(NodeId(leader))));
    let mut waited = 0;
    let ids = others(leader);
    while led.iter().any(|range| ids.iter().all(|id| !cluster.summary_of(*id, *range).is_some_and(|of| of.leads))) {
        cluster.tick();
        waited += 1;
        assert!(waited <= 3 * cluster.config.election_ticks, "sooner than if it had died");
    }
}
