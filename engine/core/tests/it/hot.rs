//! Hot ranges: split where their requests divide, and left alone where they do not.

use bytes::Bytes;
use flotilla_engine::config::Config;
use flotilla_engine::load::Asked;
use flotilla_engine::store::{Event, Input};
use flotilla_proto::v1;

use crate::cluster::{Cluster, RANGE, put, request};

/// A hundred requests in a second are too much.
fn cluster(split_queries_per_s: Option<u64>) -> Cluster {
    let mut cluster = Cluster::led_by_1(Config::default());
    let keyspace = v1::Keyspace { keyspace_id: 1, name: "default".into(), split_queries_per_s, ..Default::default() };
    cluster.turn(1, vec![Input::Keyspaces(vec![keyspace]), Input::RangeIds { first: 100, count: 1_000 }]);
    cluster
}

/// So many reads in a second, for so many seconds, of the keys that `key` names.
fn read(cluster: &mut Cluster, per_s: u64, seconds: u64, key: impl Fn(u64) -> String) {
    let mut number = 0;
    for _ in 0..seconds * 10 {
        for _ in 0..per_s / 10 {
            number += 1;
            let tally = cluster.view(1).tally.clone().expect("it leads");
            tally.read(1, 100, || Some(Asked::key(Bytes::from(key(number)))));
        }
        cluster.tick();
    }
}

fn splits(cluster: &Cluster) -> Vec<Bytes> {
    let of = |(id, event): &(u64, Event)| match event {
        Event::Split { ranges, .. } if *id == 1 => Some(ranges[1].start.clone()),
        _ => None,
    };
    cluster.events.iter().filter_map(of).collect()
}

fn complaints(cluster: &Cluster) -> Vec<String> {
    let of = |(_, event): &(u64, Event)| match event {
        Event::LoadStays { why, .. } => Some(why.clone()),
        _ => None,
    };
    cluster.events.iter().filter_map(of).collect()
}

#[test]
fn a_hot_range_is_split_where_its_reads_divide_and_not_again_when_it_is_cool() {
    let mut cluster = cluster(Some(100));
    // Most of the keyspace is never asked for: its middle would be the wrong place.
    read(&mut cluster, 400, 14, |number| format!("user{:03}", number * 7 % 100));
    let at = splits(&cluster);
    assert_eq!(at.len(), 1, "{at:?}");
    let near = (&b"user040"[..]..=&b"user060"[..]).contains(&&at[0][..]);
    assert!(near, "{at:?}");
    assert!(complaints(&cluster).is_empty());
    read(&mut cluster, 20, 60, |number| format!("user{:03}", number * 7 % 40));
    assert_eq!(splits(&cluster).len(), 1, "it is cool");
}

#[test]
fn a_hot_range_is_split_where_its_writes_divide_and_the_child_knows_its_share() {
    let mut cluster = cluster(Some(100));
    let mut token = 0;
    while splits(&cluster).is_empty() {
        assert!(token < 20_000, "it is never split");
        let writes: Vec<Input> = (0..30)
            .map(|_| {
                token += 1;
                let ops = vec![put(&format!("k{:02}", token * 13 % 50), "value")];
                crate::cluster::write_input(token, request(ops))
            })
            .collect();
        cluster.turn(1, writes);
        cluster.tick();
    }
    let at = splits(&cluster);
    assert!((&b"k20"[..]..=&b"k30"[..]).contains(&&at[0][..]), "{at:?}");
    cluster.tick_until(|cluster| cluster.leader_of(100.into()).is_some());
    let leader = cluster.leader_of(100.into()).expect("it is led");
    let child = cluster.summary_of(leader, 100.into()).expect("it is here");
    let load = child.load.expect("it begins with its share");
    assert!(load.writes_per_s > 50, "{load:?}");
    assert_eq!(child.report(flotilla_proto::NodeId(leader)).load, Some(load));
}

#[test]
fn a_single_hot_key_is_reported_and_not_cut() {
    let mut cluster = cluster(Some(100));
    read(&mut cluster, 400, 40, |number| if number % 10 == 0 { format!("cold{number}") } else { "hot".into() });
    assert!(splits(&cluster).is_empty());
    let complaints = complaints(&cluster);
    assert_eq!(complaints.len(), 1, "once, not at each look: {complaints:?}");
    assert!(complaints[0].contains("for one key"), "{complaints:?}");
}

#[test]
fn what_is_not_too_much_and_what_may_not_be_split_for_load_stays() {
    for (limit, per_s) in [(Some(100), 80), (Some(0), 4_000), (None, 2_000)] {
        let mut cluster = cluster(limit);
        read(&mut cluster, per_s, 20, |number| format!("user{:03}", number % 100));
        assert!(splits(&cluster).is_empty() && complaints(&cluster).is_empty(), "{limit:?} {per_s}");
    }
    // A moment of it is not enough either.
    let mut cluster = cluster(Some(100));
    read(&mut cluster, 1_000, 3, |number| format!("user{:03}", number % 100));
    read(&mut cluster, 0, 30, |_| String::new());
    assert!(splits(&cluster).is_empty());
    let told = cluster.summary(1).load;
    assert_eq!((told, cluster.summary_of(2, RANGE).and_then(|of| of.load)), (None, None), "and it is forgotten");
}
