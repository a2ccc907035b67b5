//! The core against a cluster that breaks and moves, in one thread, from a seed:
//! - a write reported done was applied exactly once;
//! - a write reported failed was never applied, not even later;
//! - a write is reported ambiguous only where its answer was lost, or a node said so;
//! - reads answer for the keys asked for, in the keyspace asked for;
//! - pages of a scan, one after the other, hold every key once, whatever splits meanwhile;
//! - every call ends at its deadline, and fails before it only where that is in its nature;
//! - where nothing breaks, splits, moves and leader changes fail no call;
//! - no range that the cache holds goes back in epoch. (One that was merged away may come back from a
//!   table that is behind, where nothing newer is known of its span.)

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use flotilla_proto::error::Action;
use flotilla_proto::{Error, KeyspaceId, NodeId, v1};
use flotilla_router::core::{ANSWER_GRACE, Call, CallOutcome, Keyspaces, Step, Time, header_of};
use v1::batch_result::Outcome;
use v1::request::Body;
use v1::response::Body as Answer;

use crate::fake_cluster::{Cluster, KEYSPACES, PRELOADED, Random, key, put_of};

const CALLS: usize = 60;
/// How many seeds, unless the variable of this name says otherwise.
const SEEDS: u64 = 400;

fn seeds() -> u64 {
    std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS)
}

/// A call gives up this long before its deadline at most: the longest pause, and what nodes ask for.
const PAUSE_MAX: Duration = Duration::from_millis(310);

struct Running {
    call: Call,
    body: Body,
    deadline: Time,
    keyspace: KeyspaceId,
    result: Option<Result<Answer, Error>>,
    ended: Time,
    /// Keys that the pages before have brought; only of scans that go on to their end.
    pages: Option<Vec<Bytes>>,
    /// Values of writes whose answer did not come back.
    lost: BTreeSet<Bytes>,
    /// Requests that were delivered and not yet answered, by their id.
    out: BTreeMap<u64, Vec<Bytes>>,
}

#[derive(Debug)]
enum Event {
    Begin(usize),
    Wake(usize),
    Deliver(usize, NodeId, v1::Request),
    Outcome(usize, u64, CallOutcome),
    Routes(usize),
    Shake,
}

struct World {
    seed: u64,
    random: Random,
    cluster: Cluster,
    keyspaces: Keyspaces,
    /// Nodes whose addresses are known.
    addresses: BTreeSet<NodeId>,
    calls: Vec<Running>,
    now: Time,
    events: BTreeMap<(Time, u64), Event>,
    last_event: u64,
    epochs: BTreeMap<u64, (u64, u64)>,
}

fn values_of(body: &Body) -> Vec<Bytes> {
    match body {
        Body::Write(batch) => batch.ops.iter().map(|op| put_of(op).value.clone()).collect(),
        _ => vec![],
    }
}

fn request(call: usize, random: &mut Random) -> Body {
    let consistency = i32::from(random.percent(20));
    let keyspace = KEYSPACES[random.below(KEYSPACES.len())].1.into();
    let header = Some(v1::RequestHeader { consistency, keyspace, ..Default::default() });
    let numbers: Vec<usize> = (0..1 + random.below(6)).map(|_| random.below(PRELOADED)).collect();
    match random.below(6) {
        0 => Body::Get(v1::GetRequest { header, key: key(numbers[0]) }),
        1 => Body::MultiGet(v1::MultiGetRequest { header, keys: numbers.iter().map(|number| key(*number)).collect() }),
        2 => {
            let (start, end) = (key(numbers[0].min(random.below(PRELOADED))), key(PRELOADED - 1));
            let limit = [0, 1, 7, 50][random.below(4)];
            let (reverse, count_only) = (random.percent(50), random.percent(20));
            let limit = if count_only { limit + 1 } else { limit };
            Body::Scan(v1::ScanRequest { header, start, end, reverse, limit, count_only, ..Default::default() })
        }
        _ => {
            let put = |(at, number): (usize, &usize)| {
                let value = format!("{number:02}#{call}-{at}").into();
                let put = v1::Put { key: key(*number), value, if_absent: false, ttl_ms: 0 };
                v1::WriteOp { op: Some(v1::write_op::Op::Put(put)) }
            };
            let ops = numbers.iter().enumerate().map(put).collect();
            Body::Write(v1::BatchRequest { header, ops, atomic: random.percent(30) })
        }
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let cluster = Cluster::new(&mut random);
        let local = random.percent(50).then_some(NodeId(2));
        let mut world = Self {
            seed,
            random,
            cluster,
            keyspaces: Keyspaces::new(local),
            addresses: [NodeId(1), NodeId(2)].into(),
            calls: vec![],
            now: Time::ZERO,
            events: BTreeMap::new(),
            last_event: 0,
            epochs: BTreeMap::new(),
        };
        for call in 0..CALLS {
            let body = request(call, &mut world.random);
            let begin = world.millis(3_000);
            let pages = matches!(body, Body::Scan(_)).then(Vec::new).filter(|_| world.random.percent(60));
            world.begin(body, begin, pages);
        }
        for _ in 0..40 {
            let at = world.millis(6_000);
            world.at(at, Event::Shake);
        }
        world
    }

    fn begin(&mut self, body: Body, begin: Time, pages: Option<Vec<Bytes>>) {
        let deadline = begin + Duration::from_millis(500) + self.millis(4_000);
        let name = &header_of(&body).expect("a header").keyspace;
        let keyspace = KEYSPACES.iter().find(|(_, other)| name == other).expect("one of them").0;
        self.calls.push(Running {
            call: Call::new(body.clone(), begin, deadline),
            body,
            deadline,
            keyspace: KeyspaceId(keyspace),
            result: None,
            ended: begin,
            pages,
            lost: BTreeSet::new(),
            out: BTreeMap::new(),
        });
        self.at(begin, Event::Begin(self.calls.len() - 1));
    }

    fn millis(&mut self, bound: u64) -> Duration {
        Duration::from_micros(self.random.next() % (bound * 1_000))
    }

    fn at(&mut self, at: Time, event: Event) {
        self.last_event += 1;
        self.events.insert((at.max(self.now), self.last_event), event);
    }

    fn run(&mut self) {
        while let Some(((at, _), event)) = self.events.pop_first() {
            self.now = at;
            self.on(event);
            self.check_cache();
        }
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Begin(call) | Event::Wake(call) => self.drive(call),
            Event::Shake => {
                if self.cluster.moves {
                    self.cluster.shake(&mut self.random);
                }
            }
            Event::Deliver(call, node, request) => {
                let id = request.id;
                let outcome = self.cluster.serve(node, request, &mut self.random);
                self.answer_later(call, id, outcome);
            }
            Event::Outcome(call, id, outcome) => {
                let rand = self.random.next();
                let running = &mut self.calls[call];
                let values = running.out.remove(&id).unwrap_or_default();
                let ended = running.result.is_some();
                if ended || matches!(outcome, CallOutcome::Broken(_)) {
                    running.lost.extend(values);
                }
                let routes = self.keyspaces.routes_mut(running.keyspace);
                running.call.on_outcome(self.now, routes, rand, id, outcome);
                self.drive(call);
            }
            Event::Routes(call) => {
                let failed = self.cluster.faults && self.random.percent(20);
                let rand = self.random.next();
                let result = if failed {
                    Err(Error::Unavailable { reason: "no node answers".into() })
                } else {
                    self.keyspaces.merge_all(&self.cluster.routes(&mut self.random)).expect("all of one cluster");
                    self.addresses.extend((1..=5).map(NodeId));
                    Ok(())
                };
                self.calls[call].call.on_routes(self.now, rand, result);
                self.drive(call);
            }
        }
    }

    fn drive(&mut self, call: usize) {
        while self.calls[call].result.is_none() {
            let rand = self.random.next();
            let running = &mut self.calls[call];
            match running.call.next(self.now, self.keyspaces.routes(running.keyspace), rand) {
                Step::Send { node, request } => self.send(call, node, request),
                Step::WaitUntil(until) => {
                    assert!(until > self.now, "seed {}: it waits for the past", self.seed);
                    return self.at(until, Event::Wake(call));
                }
                Step::RefreshRoutes(_) => {
                    let at = self.now + self.millis(20);
                    self.at(at, Event::Routes(call));
                }
                Step::Done(result) => {
                    let running = &mut self.calls[call];
                    assert!(self.now <= running.deadline + ANSWER_GRACE, "seed {}: it ends late", self.seed);
                    running.result = Some(result);
                    running.ended = self.now;
                    self.next_page(call);
                }
            }
        }
    }

    /// A scan that goes on begins with its next page.
    fn next_page(&mut self, call: usize) {
        let running = &mut self.calls[call];
        let (Some(pages), Some(Ok(Answer::Scan(answer)))) = (&mut running.pages, &running.result) else { return };
        pages.extend(answer.records.iter().map(|record| record.key.clone()));
        if answer.next_token.is_empty() {
            return;
        }
        let Body::Scan(scan) = &running.body else { return };
        let next = v1::ScanRequest { token: answer.next_token.clone(), ..scan.clone() };
        let pages = running.pages.take();
        let begin = self.now + self.millis(200);
        self.begin(Body::Scan(next), begin, pages);
    }

    /// The request may not get out, get lost on the way, or arrive late.
    fn send(&mut self, call: usize, node: NodeId, request: v1::Request) {
        let running = &mut self.calls[call];
        assert!(self.now < running.deadline, "seed {}: it sends after its deadline", self.seed);
        let values = request.body.as_ref().map(values_of).unwrap_or_default();
        for value in &values {
            assert!(!running.lost.contains(value), "seed {}: a write with a lost answer is sent again", self.seed);
            assert!(!running.out.values().flatten().any(|out| out == value), "seed {}: under way twice", self.seed);
        }
        running.out.insert(request.id, values);
        let id = request.id;
        let at = self.now + self.millis(10);
        let fate = if self.cluster.faults { self.random.below(100) } else { 100 };
        match fate {
            _ if !self.addresses.contains(&node) => self.at(at, Event::Outcome(call, id, CallOutcome::NoAddress)),
            0..6 => self.at(at, Event::Outcome(call, id, CallOutcome::NotSent("refused".into()))),
            6..9 => self.at(at, Event::Outcome(call, id, CallOutcome::Broken("reset before it arrived".into()))),
            9..10 => self.calls[call].lost_at_end(id),
            10..12 => {
                let late = self.now + self.millis(5_000);
                self.at(late, Event::Deliver(call, node, request));
            }
            _ => self.at(at, Event::Deliver(call, node, request)),
        }
    }

    fn answer_later(&mut self, call: usize, id: u64, outcome: CallOutcome) {
        let fate = if self.cluster.faults { self.random.below(100) } else { 100 };
        let at = self.now + self.millis(10);
        match fate {
            0..4 => self.at(at, Event::Outcome(call, id, CallOutcome::Broken("the answer is lost".into()))),
            4..5 => self.calls[call].lost_at_end(id),
            5..7 => {
                let late = self.now + self.millis(6_000);
                self.at(late, Event::Outcome(call, id, outcome));
            }
            _ => self.at(at, Event::Outcome(call, id, outcome)),
        }
    }

    fn check_cache(&mut self) {
        let mut epochs = BTreeMap::new();
        for (keyspace, _) in KEYSPACES {
            let mut last: Option<Bytes> = Some(Bytes::new());
            for route in self.keyspaces.routes(KeyspaceId(keyspace)).iter() {
                let descriptor = &route.descriptor;
                assert_eq!(descriptor.keyspace_id, keyspace, "seed {}", self.seed);
                assert!(last.is_some_and(|end| end <= descriptor.start), "seed {}: ranges overlap", self.seed);
                last = (!descriptor.end.is_empty()).then(|| descriptor.end.clone());
                let epoch = descriptor.epoch.map_or((0, 0), |epoch| (epoch.version, epoch.conf_ver));
                let known = self.epochs.get(&descriptor.range_id).copied().unwrap_or_default();
                assert!(epoch >= known, "seed {}: r{} goes back", self.seed, descriptor.range_id);
                epochs.insert(descriptor.range_id, epoch);
            }
        }
        self.epochs = epochs;
    }

    /// Every outcome against what was applied.
    fn check(&self, tally: &mut BTreeMap<String, u64>) {
        for running in &self.calls {
            let result = running.result.as_ref().expect("every call ends");
            for (at, value) in values_of(&running.body).iter().enumerate() {
                let outcome = match result {
                    Err(error) => Err(error.clone()),
                    Ok(Answer::Write(batch)) => match &batch.results[at].outcome {
                        Some(Outcome::Result(result)) => Ok(result.applied),
                        Some(Outcome::Error(error)) => Err(Error::from(error.clone())),
                        None => panic!("seed {}: a result without an outcome", self.seed),
                    },
                    other => panic!("seed {}: {other:?}", self.seed),
                };
                self.check_write(running, value, &outcome);
                let kind = outcome.as_ref().map_or_else(|error| format!("{:?}", error.kind()), |_| "written".into());
                *tally.entry(kind).or_default() += 1;
            }
            match result {
                Ok(answer) => self.check_read(running, answer),
                Err(error) => self.check_failure(running, error),
            }
        }
    }

    fn check_write(&self, running: &Running, value: &Bytes, outcome: &Result<bool, Error>) {
        let seed = self.seed;
        let applied = self.cluster.applied.get(value).copied().unwrap_or(0);
        let lost = running.lost.contains(value) || running.out.values().flatten().any(|out| out == value);
        match outcome {
            Ok(_) => assert_eq!(applied, 1, "seed {seed}: {value:?} is reported done"),
            Err(error) if error.action() == Action::Ambiguous => {
                assert!(applied <= 1, "seed {seed}: {value:?} was applied twice");
                assert!(lost || self.cluster.unknown.contains(value), "seed {seed}: {value:?} is not ambiguous");
            }
            Err(error) => assert_eq!(applied, 0, "seed {seed}: {value:?} is reported failed: {error}"),
        }
    }

    fn check_scan(&self, scan: &v1::ScanRequest, answer: &v1::ScanResponse, pages: Option<&Vec<Bytes>>) {
        let seed = self.seed;
        let mut keys: Vec<Bytes> = (0..PRELOADED).map(key).collect();
        keys.retain(|key| *key >= scan.start && *key < scan.end);
        if scan.reverse {
            keys.reverse();
        }
        if let Some(pages) = pages {
            // Only the last page has them all.
            assert!(answer.next_token.is_empty(), "seed {seed}");
            assert!(scan.count_only || *pages == keys, "seed {seed}: {pages:?}");
        }
        if !scan.token.is_empty() {
            return;
        }
        let all = keys.len() as u64;
        keys.truncate(usize::try_from(answer.count).unwrap_or(usize::MAX));
        let got: Vec<Bytes> = answer.records.iter().map(|record| record.key.clone()).collect();
        assert!(scan.count_only || got == keys, "seed {seed}: {got:?}");
        assert!(answer.count <= all && (scan.limit == 0 || answer.count <= u64::from(scan.limit)));
        assert_eq!(answer.next_token.is_empty(), answer.count == all, "seed {seed}: {scan:?}");
    }

    /// A call fails at its deadline, or because of what it is.
    fn check_failure(&self, running: &Running, error: &Error) {
        match error {
            Error::Timeout { .. } | Error::ServerBusy { .. } | Error::DiskFull { .. } => {
                assert!(running.ended + PAUSE_MAX >= running.deadline, "seed {}: too early: {error}", self.seed);
            }
            Error::Ambiguous { .. } | Error::BatchSpansRanges { .. } => {}
            other => panic!("seed {}: {other}", self.seed),
        }
    }

    fn check_read(&self, running: &Running, answer: &Answer) {
        let (seed, body) = (self.seed, &running.body);
        let of_key = |key: &Bytes, record: &Option<v1::Record>| {
            let record = record.as_ref().expect("preloaded keys are never deleted");
            assert!(record.value.starts_with(&key[1..]), "seed {seed}: {key:?} has {:?}", record.value);
        };
        match (body, answer) {
            (Body::Get(get), Answer::Get(answer)) => of_key(&get.key, &answer.record),
            (Body::MultiGet(get), Answer::MultiGet(answer)) => {
                assert_eq!(get.keys.len(), answer.results.len(), "seed {seed}");
                get.keys.iter().zip(&answer.results).for_each(|(key, result)| of_key(key, &result.record));
            }
            (Body::Scan(scan), Answer::Scan(answer)) => self.check_scan(scan, answer, running.pages.as_ref()),
            (Body::Write(_), Answer::Write(_)) => {}
            other => panic!("seed {seed}: {other:?}"),
        }
    }
}

impl Running {
    /// The answer to this request never comes.
    fn lost_at_end(&mut self, id: u64) {
        assert!(self.out.contains_key(&id), "it was sent");
    }
}

#[test]
fn outcomes_are_true_whatever_breaks() {
    let mut tally = BTreeMap::new();
    for seed in 0..seeds() {
        let mut world = World::new(seed);
        world.run();
        world.check(&mut tally);
    }
    println!("{tally:?}");
    for kind in ["written", "Ambiguous", "Timeout", "BatchSpansRanges"] {
        assert!(tally.get(kind).is_some_and(|count| *count >= 10), "{kind} was hardly seen: {tally:?}");
    }
}

fn every_call_succeeds(moves: bool) {
    let mut scans = 0;
    for seed in 0..seeds() {
        let mut world = World::new(seed);
        world.cluster.faults = false;
        world.cluster.moves = moves;
        world.run();
        for running in &world.calls {
            let fine = matches!(running.result, Some(Ok(_)) | Some(Err(Error::BatchSpansRanges { .. })));
            assert!(fine, "seed {seed}: {:?}", running.result);
            scans += u64::from(running.pages.as_ref().is_some_and(|pages| pages.len() > 20));
        }
        world.check(&mut BTreeMap::new());
    }
    assert!(scans > seeds(), "few scans went over several pages");
}

#[test]
fn in_calm_every_call_succeeds() {
    every_call_succeeds(false);
}

#[test]
fn splits_moves_and_leader_changes_alone_fail_no_call() {
    every_call_succeeds(true);
}

#[test]
fn the_same_seed_gives_the_same_outcomes() {
    let results = || {
        let mut world = World::new(7);
        world.run();
        world.calls.into_iter().map(|running| running.result).collect::<Vec<_>>()
    };
    assert_eq!(results(), results());
}
