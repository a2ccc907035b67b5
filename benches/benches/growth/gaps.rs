//! How long a range does not serve around a split, a move, a transfer of its leader.
//!
//! Two probers, one that writes and one that reads one key of the range, each with one request under way, through the
//! client library: its redirects and pauses are part of what they see. The time without service of an event is the
//! longest time between two successes while it lasts and shortly after; without any event it is what the machine and
//! one request take. Requests that fail are counted, those of unknown outcome apart; of a gap as long as an election
//! time-out, the nodes' own records of the range are shown.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use flotilla_benches::args::Args;
use flotilla_benches::stats::Spread;
use flotilla_proto::{NodeId, RangeId, v1};
use flotilla_router::{Client, SplitAt};
use tokio::task::JoinHandle;

use crate::load::End;
use flotilla_benches::cluster::{Cluster, PATIENCE, Result, user_ranges};

const KEY: &[u8] = b"m";
/// An event's consequences are looked for until so long after its end.
const AFTER: Duration = Duration::from_millis(300);
/// A window without an event.
const QUIET: Duration = Duration::from_millis(500);
const MOVE_LIMIT: Duration = Duration::from_secs(60);
/// A gap that long is looked into, in milliseconds.
const LONG_MS: f64 = 500.0;
/// So many of a node's latest records of a range are shown.
const RECORDS_SHOWN: usize = 12;

/// How requests ended, and when, in order.
type Ends = Arc<Mutex<Vec<(Instant, End)>>>;

struct Prober {
    writes: Ends,
    reads: Ends,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Prober {
    fn start(client: &Client) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut prober = Self { writes: Ends::default(), reads: Ends::default(), stop, tasks: Vec::new() };
        for (writes, ends) in [(true, &prober.writes), (false, &prober.reads)] {
            let (client, stop, ends) = (client.clone(), Arc::clone(&prober.stop), Arc::clone(ends));
            prober.tasks.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let done = match writes {
                        true => client.put(KEY, Bytes::from_static(b"value")).await.map(drop),
                        false => client.get(KEY).await.map(drop),
                    };
                    ends.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), End::of(&done)));
                }
            }));
        }
        prober
    }

    async fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await?;
        }
        Ok(())
    }
}

/// The longest time between two successes that reaches into the window, in milliseconds.
fn longest_gap(ends: &Ends, from: Instant, to: Instant) -> f64 {
    let ends = ends.lock().unwrap_or_else(PoisonError::into_inner);
    let all: Vec<Instant> = ends.iter().filter(|(_, end)| *end == End::Success).map(|(at, _)| *at).collect();
    let first = all.partition_point(|at| *at < from).saturating_sub(1);
    let gaps = all[first..].windows(2).take_while(|pair| pair[0] < to).map(|pair| pair[1] - pair[0]);
    gaps.max().map_or(f64::NAN, |gap| gap.as_secs_f64() * 1000.0)
}

/// How many requests ended like this within the window.
fn count(ends: &Ends, end: End, from: Instant, to: Instant) -> usize {
    let ends = ends.lock().unwrap_or_else(PoisonError::into_inner);
    ends.iter().filter(|(at, of)| *of == end && (from..to).contains(at)).count()
}

/// What was seen of all events of a kind.
#[derive(Clone, Default)]
struct Seen {
    writes: Vec<f64>,
    reads: Vec<f64>,
    took: Vec<f64>,
    ambiguous: usize,
    failed: usize,
}

impl Seen {
    fn add(&mut self, prober: &Prober, begun: Instant, until: Instant) {
        self.writes.push(longest_gap(&prober.writes, begun, until));
        self.reads.push(longest_gap(&prober.reads, begun, until));
        for ends in [&prober.writes, &prober.reads] {
            self.ambiguous += count(ends, End::Ambiguous, begun, until);
            self.failed += count(ends, End::Failure, begun, until);
        }
    }

    fn last_is_long(&self) -> bool {
        [&self.writes, &self.reads].into_iter().any(|gaps| gaps.last().is_some_and(|gap| *gap >= LONG_MS))
    }
}

/// What happens to the range.
#[derive(Clone, Copy, PartialEq)]
enum Event {
    Nothing,
    SplitLeft,
    SplitRight,
    Transfer,
    MoveFollower,
    MoveLeader,
}

const EVENTS: &[(&str, Event)] = &[
    ("no event (0.5 s)", Event::Nothing),
    ("split, the key stays in the range", Event::SplitLeft),
    ("split, the key goes to the child", Event::SplitRight),
    ("transfer of the leader", Event::Transfer),
    ("move of a follower's replica", Event::MoveFollower),
    ("move of the leader's replica", Event::MoveLeader),
];

pub async fn run(binary: &Path, args: &Args) -> Result<()> {
    let cluster = Cluster::start(binary, &args.dir, 4, &["--initial-ranges", "1"]).await?;
    let client = cluster.client().await?;
    client.put(KEY, Bytes::from_static(b"value")).await?;
    let prober = Prober::start(&cluster.client().await?);
    let mut seen = vec![Seen::default(); EVENTS.len()];
    for turn in 0..args.extra("events") {
        for ((name, event), seen) in EVENTS.iter().zip(&mut seen) {
            let begun = retried(&client, *event, turn).await.map_err(|error| format!("{name}: {error}"))?;
            seen.took.push(begun.elapsed().as_secs_f64() * 1000.0);
            tokio::time::sleep(AFTER).await;
            let until = Instant::now();
            // A gap that is open at the window's end is counted when it has ended.
            tokio::time::sleep(AFTER).await;
            seen.add(&prober, begun, until);
            if seen.last_is_long() {
                println!("{name}, event {turn}: write {:?} ms, read {:?} ms", seen.writes.last(), seen.reads.last());
                show_records(&client, begun).await?;
            }
        }
    }
    prober.stop().await?;
    println!("\nLongest time without a success, {} of each event\n", args.extra("events"));
    println!("| | write, ms | 90% below | read, ms | 90% below | the event itself, ms | ambiguous | failed |");
    println!("|---|---:|---:|---:|---:|---:|---:|---:|");
    for ((name, _), Seen { writes, reads, took, ambiguous, failed }) in EVENTS.iter().zip(&seen) {
        let (of, nine) = (Spread::of, |samples: &[f64]| ninety(samples));
        println!(
            "| {name} | {} | {:.1} | {} | {:.1} | {} | {ambiguous} | {failed} |",
            of(writes),
            nine(writes),
            of(reads),
            nine(reads),
            of(took)
        );
    }
    Ok(())
}

/// What the nodes recorded of the range of the key since an event began.
async fn show_records(client: &Client, begun: Instant) -> Result<()> {
    let range = range_of_key(client).await?.descriptor.map_or(0, |of| of.range_id);
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
    let begun_ms = now_ms - begun.elapsed().as_millis() as i64;
    for node in (1..=4).map(NodeId) {
        let records = client.range_events(node, RangeId(range)).await?;
        let shown = records.len().saturating_sub(RECORDS_SHOWN);
        for record in &records[shown..] {
            let after = record.unix_ms as i64 - begun_ms;
            println!("  node {}, {after:>6} ms after it began: {}: {}", node.0, record.kind, record.what);
        }
    }
    Ok(())
}

fn ninety(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() * 9).div_ceil(10) - 1]
}

/// The range that holds the key now.
async fn range_of_key(client: &Client) -> Result<v1::RangeStatus> {
    let holds = |range: &v1::RangeDescriptor| range.start <= KEY && (range.end.is_empty() || KEY < &range.end[..]);
    let routes = user_ranges(client).await?;
    Ok(routes.into_iter().find(|route| route.descriptor.as_ref().is_some_and(holds)).ok_or("nobody knows the range")?)
}

/// Brings an event about, as soon as balance leaves the range alone; when it began.
async fn retried(client: &Client, event: Event, turn: u64) -> Result<Instant> {
    let first = Instant::now();
    loop {
        let begun = Instant::now();
        match bring_about(client, event, turn).await {
            Ok(()) => return Ok(begun),
            Err(error) if first.elapsed() > PATIENCE => return Err(error),
            Err(_) => tokio::time::sleep(AFTER).await,
        }
    }
}

async fn bring_about(client: &Client, event: Event, turn: u64) -> Result<()> {
    if event == Event::Nothing {
        tokio::time::sleep(QUIET).await;
        return Ok(());
    }
    let route = range_of_key(client).await?;
    let descriptor = route.descriptor.ok_or("a route has a descriptor")?;
    let range = RangeId(descriptor.range_id);
    let leader = NodeId(route.leader_node_id);
    let holders: Vec<u64> = descriptor.replicas.iter().map(|replica| replica.node_id).collect();
    let follower = holders.iter().copied().filter(|node| *node != leader.0).nth(turn as usize % 2);
    let follower = NodeId(follower.ok_or("a range has followers")?);
    let free = (1..=4).find(|node| !holders.contains(node)).map(NodeId).ok_or("a node has no replica");
    match event {
        Event::Nothing => {}
        // Ever nearer to the key, from both sides.
        Event::SplitLeft => drop(client.split_range(range, at(format!("n{:06}", 999_999 - turn))).await?),
        Event::SplitRight => drop(client.split_range(range, at(format!("l{turn:06}"))).await?),
        Event::Transfer => drop(client.transfer_leader(range, follower).await?),
        Event::MoveFollower => moved(client.move_replica(range, follower, free?, Some(MOVE_LIMIT)).await?)?,
        Event::MoveLeader => moved(client.move_replica(range, leader, free?, Some(MOVE_LIMIT)).await?)?,
    }
    Ok(())
}

fn at(key: String) -> SplitAt {
    SplitAt::Keys(vec![key.into()])
}

fn moved(done: bool) -> Result<()> {
    if done { Ok(()) } else { Err(format!("no end of the move in {MOVE_LIMIT:?}").into()) }
}
