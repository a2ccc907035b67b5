//! Keys with a ttl: they end by a replicated delete, never early by anybody's clock, soon after they are due; whatever
//! leaders come and go.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use flotilla_engine::command;
use flotilla_engine::config::Config;
use flotilla_engine::expiry;
use flotilla_engine::keys::{self, RangeRecord};
use flotilla_engine::read::{self, ReadRequest};
use flotilla_engine::record;
use flotilla_engine::storage::{Family, Read};
use flotilla_engine::store::{Event, Input};
use flotilla_engine::time::BootTime;
use flotilla_proto::v1::compare_and_swap::Expect;
use flotilla_proto::{KeyspaceId, v1};

use crate::cluster::{Cluster, RANGE, delete, put, put_ttl, request, swap};
use crate::determinism::Rng;

const KEYSPACE: KeyspaceId = KeyspaceId(1);

impl Cluster {
    /// What a node's disk holds for a key.
    fn stored(&self, id: u64, key: &str) -> Option<record::Stored> {
        let bytes = self.node(id).disk.get(Family::State, &keys::data(KEYSPACE, key.as_bytes())).expect("readable");
        bytes.map(|bytes| record::decode_value(bytes).expect("sound"))
    }

    fn is_there(&self, key: &str) -> bool {
        let there: Vec<bool> = self.nodes.keys().map(|id| self.stored(*id, key).is_some()).collect();
        assert!(there.iter().all(|is| *is == there[0]), "replicas that are level hold the same");
        there[0]
    }

    fn is_there_on(&self, id: u64, key: &str) -> bool {
        self.stored(id, key).is_some()
    }

    fn applied_state(&self, id: u64) -> v1::AppliedState {
        let key = keys::range_record(RANGE, RangeRecord::Applied);
        let bytes = self.node(id).disk.get(Family::State, &key).expect("readable").expect("there");
        record::decode(&bytes, "applied state").expect("sound")
    }

    /// The keys in a node's expiry index, which must be those of its data that have a deadline.
    fn indexed(&self, id: u64) -> usize {
        let contents = self.node(id).disk.contents();
        let mut wanted = BTreeMap::new();
        let mut index = BTreeMap::new();
        for ((family, key), value) in contents {
            if family != Family::State {
                continue;
            }
            if let Some(user_key) = keys::user_key(&key) {
                let (version, deadline_ms) = record::value_head(&value).expect("sound");
                wanted.extend((deadline_ms != 0).then_some((user_key, (version, deadline_ms))));
            } else if let Some(user_key) = keys::expiry_user_key(&key) {
                index.insert(user_key, record::decode_expiry(&value).expect("sound"));
            }
        }
        assert_eq!(index, wanted, "node {id}: the index holds what the data says");
        let next = self.applied_state(id).next_expiry_ms;
        assert!(index.is_empty() || next != 0, "node {id}: a bound, where there are keys that end");
        assert!(index.values().all(|(_, deadline_ms)| *deadline_ms >= next), "node {id}: the bound holds for all keys");
        index.len()
    }

    fn put_for(&mut self, id: u64, token: u64, key: &str, ttl_ms: u64) -> BootTime {
        let sent = self.now;
        self.write(id, token, request(vec![put_ttl(key, "v", ttl_ms)]));
        self.settle();
        sent
    }

    /// Lets time pass until the key is gone; returns how long after `sent` that was, in milliseconds.
    fn until_gone(&mut self, key: &str, sent: BootTime) -> u64 {
        let watched = self.leader().expect("there is one");
        self.tick_until(|cluster| !cluster.is_there_on(watched, key));
        self.now.since(sent).as_millis() as u64
    }
}

fn one_leader(cluster: &Cluster) -> Option<u64> {
    let serving: Vec<u64> = (1..=3).filter(|id| cluster.view(*id).serves).collect();
    (serving.len() == 1).then(|| serving[0])
}

#[test]
fn a_key_ends_on_all_replicas_when_its_ttl_is_over() {
    let mut cluster = Cluster::led_by_1(Config::default());
    let sent = cluster.put_for(1, 1, "key", 3_000);
    cluster.put(1, 2, "other", "stays");
    let gone = cluster.until_gone("key", sent);
    assert!((3_000..4_000).contains(&gone), "gone after {gone} ms");
    // The others hear of it with the next heartbeat.
    (0..cluster.config.heartbeat_ticks()).for_each(|_| cluster.tick());
    assert!(!cluster.is_there("key") && cluster.is_there("other"));
    for id in 1..=3 {
        assert_eq!(cluster.indexed(id), 0);
        assert_eq!(cluster.applied_state(id).next_expiry_ms, 0, "nothing more to end, and no bound");
        assert_eq!(cluster.summary(id).applied_checksum, cluster.summary(1).applied_checksum);
    }
}

#[test]
fn a_range_without_ttls_pays_nothing_for_them() {
    let mut cluster = Cluster::led_by_1(Config::default());
    for token in 0..5 {
        cluster.put(1, token, "key", "v");
        cluster.settle();
    }
    let before = cluster.summary(1).last_index;
    for _ in 0..100 {
        cluster.tick();
    }
    assert_eq!(cluster.summary(1).last_index, before, "no entry but the writes'");
    assert!(cluster.passes.is_empty(), "and no look at the index");
    assert_eq!(cluster.applied_state(1).range_time_ms, 0, "nor a time in the writes' entries");
}

#[test]
fn a_write_sets_the_ttl_anew_or_takes_it_away() {
    let mut cluster = Cluster::led_by_1(Config::default());
    for key in ["put", "swapped", "longer", "deleted", "absent", "swapped to a ttl"] {
        cluster.put_for(1, 1, key, 1_000);
    }
    let mut swap_with_ttl = swap("swapped to a ttl", Expect::Value("v".into()), Some("w"));
    if let Some(v1::write_op::Op::CompareAndSwap(swap)) = &mut swap_with_ttl.op {
        swap.ttl_ms = 5_000;
    }
    let ops = vec![
        put("put", "w"),
        swap("swapped", Expect::Value("v".into()), Some("w")),
        put_ttl("longer", "w", 5_000),
        delete("deleted"),
        delete("absent"),
        put("absent", "w"),
        swap_with_ttl,
    ];
    cluster.write(1, 2, request(ops));
    cluster.settle();
    assert_eq!(cluster.indexed(1), 2);
    for _ in 0..20 {
        cluster.tick();
    }
    for key in ["put", "swapped", "longer", "absent", "swapped to a ttl"] {
        assert!(cluster.is_there(key), "{key}");
    }
    for _ in 0..40 {
        cluster.tick();
    }
    for (key, there) in
        [("put", true), ("swapped", true), ("longer", false), ("absent", true), ("swapped to a ttl", false)]
    {
        assert_eq!(cluster.is_there(key), there, "{key}");
    }
    assert_eq!(cluster.indexed(2), 0);
}

#[test]
fn a_key_that_is_due_is_there_until_its_end_is_replicated() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.put_for(1, 1, "key", 500);
    cluster.cut_off = [2, 3].into();
    for _ in 0..8 {
        cluster.tick();
    }
    // Nothing commits: not the end either.
    assert!(cluster.is_there_on(1, "key"));
    let descriptor = cluster.view(1).descriptor.clone();
    let get = v1::GetRequest { key: "key".into(), ..Default::default() };
    let time = cluster.view(1).clock.read(cluster.now);
    let answer = read::execute(&*cluster.node(1).disk, &descriptor, time, ReadRequest::Get(&get)).expect("readable");
    let v1::response::Body::Get(answer) = answer else { panic!("a get") };
    assert_eq!(answer.record.map(|record| record.ttl_remaining_ms), Some(1), "due, and there");
}

#[test]
fn readers_are_told_how_long_a_key_still_lives() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.put_for(1, 1, "key", 60_000);
    cluster.put(1, 2, "other", "v");
    cluster.settle();
    for _ in 0..100 {
        cluster.tick();
    }
    let view = cluster.view(1);
    let time = view.clock.read(cluster.now);
    let scan = v1::ScanRequest::default();
    let answer =
        read::execute(&*cluster.node(1).disk, &view.descriptor, time, ReadRequest::Scan(&scan)).expect("readable");
    let v1::response::Body::Scan(answer) = answer else { panic!("a scan") };
    let left: Vec<u64> = answer.records.iter().map(|record| record.ttl_remaining_ms).collect();
    assert!((49_000..=50_100).contains(&left[0]) && left[1] == 0, "{left:?}");
}

#[test]
fn a_change_of_leaders_never_shortens_a_ttl() {
    let mut cluster = Cluster::led_by_1(Config::default());
    let sent = cluster.put_for(1, 1, "key", 6_000);
    for _ in 0..2 {
        for _ in 0..15 {
            cluster.tick();
        }
        cluster.cut_off = cluster.leader().into_iter().collect();
        let deposed = cluster.leader().expect("there is one");
        cluster.tick_until(|cluster| (1..=3).any(|id| id != deposed && cluster.view(id).serves));
        cluster.cut_off.clear();
        cluster.tick_until(|cluster| one_leader(cluster).is_some());
    }
    let gone = cluster.until_gone("key", sent);
    assert!(gone >= 6_000, "gone after {gone} ms");
    assert!(gone < 6_000 + 2 * (2_000 + 2_000 + 1_000), "what two changes of leaders may add: {gone} ms");
}

#[test]
fn a_key_does_not_end_early_by_a_clock_that_runs_fast() {
    let config = Config { expiry_clock_drift: 0.1, ..Config::default() };
    let mut cluster = Cluster::led_by_1(config);
    cluster.rates = [(1, 1_100), (2, 900), (3, 1_050)].into();
    cluster.tick_until(|cluster| one_leader(cluster).is_some());
    let leader = one_leader(&cluster).expect("just seen");
    let sent = cluster.put_for(leader, 1, "key", 5_000);
    let gone = cluster.until_gone("key", sent);
    assert!((5_000..7_000).contains(&gone), "gone after {gone} ms");
}

/// The range's time is whole milliseconds: what is cut from it when a key is written must not be taken from its ttl.
#[test]
fn a_key_does_not_end_early_by_a_part_of_a_millisecond() {
    let config = || Config { expiry_clock_drift: 0.0, ..Config::default() };
    for offset in 0..10 {
        let mut cluster = Cluster::led_by_1(config());
        cluster.now = cluster.now + Duration::from_micros(100 * offset);
        let sent = cluster.put_for(1, 1, "key", 50);
        for short in [900, 700, 500, 300, 100, 1] {
            cluster.now = sent + Duration::from_millis(50) - Duration::from_micros(short);
            cluster.turn(1, vec![Input::Tick]);
            cluster.settle();
            assert!(cluster.is_there_on(1, "key"), "written {offset}/10 ms late, gone {short} us early");
        }
        let gone = cluster.until_gone("key", sent);
        assert!(gone < 1_000, "gone after {gone} ms");
    }
}

#[test]
fn time_noted_while_keys_wait_outlives_leaders() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.put_for(1, 1, "key", 3_600_000);
    let before = cluster.summary(1).last_index;
    for _ in 0..30_000 {
        cluster.tick();
        cluster.sent.clear();
    }
    // 3,000 seconds have passed.
    let noted = cluster.applied_state(2).range_time_ms;
    assert!(noted >= 3_000_000 - 600_000, "noted up to {noted}");
    let entries = cluster.summary(1).last_index - before;
    assert!(entries < 20, "{entries} entries for one key in 50 minutes");
    assert!(cluster.passes.is_empty(), "and its bound makes every look at the index needless");
}

#[test]
fn ttls_outlive_restarts() {
    let mut cluster = Cluster::led_by_1(Config::default());
    let sent = cluster.put_for(1, 1, "key", 4_000);
    cluster.tick();
    for id in 1..=3 {
        cluster.restart(id);
    }
    cluster.tick_until(|cluster| one_leader(cluster).is_some());
    let gone = cluster.until_gone("key", sent);
    assert!((4_000..10_000).contains(&gone), "gone after {gone} ms");
}

#[test]
fn a_replica_that_begins_with_a_snapshot_ends_keys_in_time_when_it_leads() {
    let config = Config { log_retain_entries: 4, log_lagging_bytes_max: 0, cache_bytes_max: 0, ..Config::default() };
    let mut cluster = Cluster::led_by_1(config);
    cluster.cut_off.insert(3);
    let sent = cluster.put_for(1, 1, "key", 12_000);
    for token in 10..50 {
        cluster.put(1, token, "other", "v");
        cluster.settle();
    }
    cluster.cut_off.clear();
    cluster.tick_until(|cluster| cluster.summary(3).applied == cluster.summary(1).applied);
    assert!(cluster.events.iter().any(|(id, event)| *id == 3 && matches!(event, Event::SnapshotApplied { .. })));
    assert_eq!(cluster.indexed(3), 1);
    cluster.transfer(1, 100, 3);
    cluster.tick_until(|cluster| one_leader(cluster) == Some(3));
    let gone = cluster.until_gone("key", sent);
    assert!((12_000..16_000).contains(&gone), "gone after {gone} ms");
}

#[test]
fn a_key_written_while_the_index_is_looked_at_ends_in_time() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.put_for(1, 1, "old", 1_000);
    cluster.transfer(1, 100, 2);
    cluster.tick_until(|cluster| one_leader(cluster) == Some(2));
    cluster.passes_held = true;
    cluster.tick_until(|cluster| !cluster.passes.is_empty());
    // What the pass has found is out of date by now.
    let sent = cluster.put_for(2, 2, "new", 2_000);
    cluster.put_for(2, 3, "old", 2_000);
    cluster.tick();
    cluster.passes_held = false;
    let gone = cluster.until_gone("new", sent);
    assert!((2_000..3_000).contains(&gone), "gone after {gone} ms");
    let gone = cluster.until_gone("old", sent);
    assert!((2_000..3_000).contains(&gone), "gone after {gone} ms");
    assert_eq!(cluster.indexed(2), 0);
}

/// How many keys each entry with an `Expire` ended, by index.
fn expires(cluster: &Cluster, id: u64) -> Vec<usize> {
    let mut sizes = Vec::new();
    for ((family, key), value) in cluster.node(id).disk.contents() {
        let Some((_, index)) = keys::log_entry_index(&key).filter(|_| family == Family::Log) else { continue };
        let entry = record::decode_entry(index, value).expect("sound");
        if !entry.data.is_empty() {
            let (command, _) = command::decode(entry.data).expect("sound");
            sizes.extend(command.expire.map(|expire| expire.keys.len()).filter(|keys| *keys > 0));
        }
    }
    sizes
}

#[test]
fn many_keys_that_are_due_at_once_end_in_bounded_entries() {
    let config = Config { log_retain_bytes: u64::MAX, log_retain_entries: u64::MAX, ..Config::default() };
    let mut cluster = Cluster::led_by_1(config);
    let total = 2 * expiry::KEYS_MAX + 500;
    let names: Vec<String> = (0..total).map(|number| format!("key-{number:05}")).collect();
    for (at, names) in names.chunks(500).enumerate() {
        let ops = names.iter().map(|name| put_ttl(name, "v", 2_000)).collect();
        cluster.write(1, at as u64, request(ops));
    }
    cluster.write(1, 1_000, request(vec![put_ttl("later", "v", 4_000), put("stays", "v")]));
    cluster.settle();
    assert_eq!(cluster.indexed(1), total + 1);
    let sent = cluster.now;
    cluster.tick_until(|cluster| !cluster.is_there_on(1, &names[0]));
    cluster.tick_until(|cluster| cluster.indexed(1) == 1);
    let took = cluster.now.since(sent);
    assert!(took < Duration::from_millis(3_000), "{took:?}");
    cluster.tick_until(|cluster| cluster.indexed(1) == 0);
    cluster.tick();
    assert!(!cluster.is_there("later") && cluster.is_there("stays"));
    let sizes = expires(&cluster, 1);
    assert!(sizes.iter().all(|size| *size <= 256), "{sizes:?}");
    assert_eq!(sizes.iter().sum::<usize>(), total + 1, "each key ended once");
    assert!(cluster.passes.is_empty());
}

/// A schedule of everything that may happen, drawn from a seed; and what is known of each write with a ttl.
struct Schedule {
    cluster: Cluster,
    rng: Rng,
    /// By value: when it was sent, and its ttl; 0: none.
    writes: BTreeMap<String, (BootTime, u64)>,
    /// The value that a version of a key is.
    versions: BTreeMap<(Bytes, u64), String>,
    /// What each node was last seen to hold.
    seen: BTreeMap<(u64, &'static str), String>,
    ended: u64,
    token: u64,
}

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

impl Schedule {
    fn new(seed: u64) -> Self {
        let config = Config {
            expiry_clock_drift: 0.1,
            log_retain_entries: 8,
            log_lagging_bytes_max: 0,
            cache_bytes_max: 0,
            seed,
            ..Config::default()
        };
        let mut cluster = Cluster::led_by_1(config);
        let mut rng = Rng::new(seed);
        // Rates between which no two clocks run apart by more than the drift.
        cluster.rates = (1..=3).map(|id| (id, 955 + rng.below(91))).collect();
        Self {
            cluster,
            rng,
            writes: BTreeMap::new(),
            versions: BTreeMap::new(),
            seen: BTreeMap::new(),
            ended: 0,
            token: 0,
        }
    }

    fn put(&mut self) {
        self.token += 1;
        let name = NAMES[self.rng.below(NAMES.len() as u64) as usize];
        let value = format!("{name}{}", self.token);
        let ttl_ms = if self.rng.below(4) == 0 { 0 } else { 50 + self.rng.below(3_000) };
        self.writes.insert(value.clone(), (self.cluster.now, ttl_ms));
        let leaders: Vec<u64> = (1..=3).filter(|id| self.cluster.summary(*id).leads).collect();
        for id in leaders {
            self.cluster.write(id, self.token, request(vec![put_ttl(name, &value, ttl_ms)]));
        }
    }

    fn step(&mut self) {
        let id = 1 + self.rng.below(3);
        let cluster = &mut self.cluster;
        match self.rng.below(100) {
            0..30 => drop(cluster.deliver()),
            30..34 => drop(cluster.network.pop_front()),
            34..50 => drop(cluster.persist(id)),
            50..66 => drop(cluster.apply(id)),
            66..80 => {
                cluster.now = cluster.now + Duration::from_millis(self.rng.below(60));
                for id in 1..=3 {
                    cluster.turn(id, vec![Input::Tick]);
                }
            }
            80..92 => self.put(),
            92 => cluster.cut_off = [id].into(),
            93..96 => cluster.cut_off.clear(),
            96 => cluster.restart(id),
            97 => cluster.passes_held = !cluster.passes_held,
            98 => drop(cluster.transfer(id, 1_000_000 + self.token, 1 + self.rng.below(3))),
            _ => cluster.settle(),
        }
    }

    /// Whether a write's ttl is over, by true time.
    fn is_over(&self, value: &str) -> bool {
        let (sent, ttl_ms) = self.writes[value];
        ttl_ms > 0 && self.cluster.now.since(sent) >= Duration::from_millis(ttl_ms)
    }

    /// Nobody proposes to end what is not due, and nothing is gone but what was.
    fn look(&mut self, seed: u64) {
        for (id, name) in (1..=3).flat_map(|id| NAMES.map(|name| (id, name))) {
            match self.cluster.stored(id, name) {
                Some(stored) => {
                    let value = String::from_utf8_lossy(&stored.value).into_owned();
                    self.versions.insert((name.into(), stored.version), value.clone());
                    self.seen.insert((id, name), value);
                }
                None => {
                    let Some(value) = self.seen.remove(&(id, name)) else { continue };
                    // It, or a later write that was not seen here: a snapshot may leap over one.
                    let (sent, _) = self.writes[&value];
                    let mut later = self.writes.iter().filter(|(of, write)| of.starts_with(name) && write.0 >= sent);
                    assert!(later.any(|(of, _)| self.is_over(of)), "seed {seed}: {value} is gone from node {id}");
                }
            }
        }
        let logs = self.cluster.nodes.values().flat_map(|node| &node.log).flat_map(|batch| &batch.items);
        let entries: Vec<Bytes> = logs.flat_map(|item| &item.entries).map(|entry| entry.data.clone()).collect();
        for data in entries.into_iter().filter(|data| !data.is_empty()) {
            let (command, _) = command::decode(data).expect("sound");
            for due in command.expire.into_iter().flat_map(|expire| expire.keys) {
                let Some(value) = self.versions.get(&(due.key, due.version)) else { continue };
                assert!(self.is_over(value), "seed {seed}: {value} is to end early: {:?}", self.writes[value]);
                self.ended += 1;
            }
        }
    }

    fn heal(&mut self, seed: u64) {
        self.cluster.cut_off.clear();
        self.cluster.passes_held = false;
        self.cluster.settle();
        for _ in 0..200 {
            self.cluster.tick();
            self.look(seed);
        }
        assert!(self.cluster.fatal.is_empty(), "seed {seed}: {:?}", self.cluster.fatal);
        assert!(one_leader(&self.cluster).is_some(), "seed {seed}: a leader");
        for name in NAMES {
            let held: Vec<Option<Bytes>> =
                (1..=3).map(|id| self.cluster.stored(id, name).map(|stored| stored.value)).collect();
            assert!(held.iter().all(|of| *of == held[0]), "seed {seed}: {name}: {held:?}");
            if let Some(value) = &held[0] {
                let (_, ttl_ms) = self.writes[&String::from_utf8_lossy(value).into_owned()];
                assert_eq!(ttl_ms, 0, "seed {seed}: {name} is due for long");
            }
        }
        for id in 1..=3 {
            assert_eq!(self.cluster.indexed(id), 0, "seed {seed}");
        }
    }
}

#[test]
fn no_schedule_ends_a_key_early_or_keeps_it_for_good() {
    let mut ended = 0;
    for seed in 0..200 {
        let mut schedule = Schedule::new(seed);
        for _ in 0..1_500 {
            schedule.step();
            schedule.look(seed);
        }
        for id in 1..=3 {
            schedule.cluster.indexed(id);
        }
        schedule.heal(seed);
        ended += schedule.ended;
    }
    assert!(ended > 1_000, "keys end: {ended}");
}
