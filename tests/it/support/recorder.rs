//! Clients that do random operations and write down what they were told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_proto::Error;
use flotilla_proto::error::Action;
use flotilla_router::{Client, Expect, WriteResult};
use flotilla_sim::checker::{self, Budget, History, Input, Outcome, Output};

use super::rng::Rng;

/// Records what the clients of one test were told.
#[derive(Clone)]
pub struct Recorder {
    history: Arc<Mutex<History>>,
    begun: Instant,
    stop: Arc<AtomicBool>,
}

const HOT_KEYS: u64 = 5;
const COLD_KEYS: u64 = 2_000;
/// Of so many operations, one goes to a cold key.
const COLD_EVERY: u64 = 3;

impl Recorder {
    pub fn new() -> Self {
        Self { history: Arc::default(), begun: Instant::now(), stop: Arc::default() }
    }

    fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    /// Tells the clients to end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// How many operations were recorded.
    pub fn len(&self) -> usize {
        self.history.lock().expect("no client panicked").len()
    }

    /// Operations on random keys until [`Recorder::stop`].
    pub async fn run(self, id: u64, client: Client, seed: u64) {
        let mut rng = Rng::new(seed ^ id.wrapping_mul(0x5851_F42D_4C95_7F2D));
        let mut serial = 0;
        // What was last seen of each hot key, for compare-and-swaps that can hold.
        let mut seen: Vec<Option<(Bytes, u64)>> = vec![None; HOT_KEYS as usize];
        while !self.stop.load(Ordering::Relaxed) {
            serial += 1;
            let value = Bytes::from(format!("{id}-{serial}"));
            let cold = rng.below(COLD_EVERY) == 0;
            let number = if cold { rng.below(COLD_KEYS) } else { rng.below(HOT_KEYS) };
            let key = Bytes::from(if cold { format!("cold/{number:04}") } else { hot_key(number) });
            let known = if cold { None } else { seen[number as usize].clone() };
            let input = match rng.below(20) {
                0..=7 => Input::Get,
                8..=12 => Input::Put(value),
                13..=14 => Input::PutIfAbsent(value),
                15..=16 => Input::Delete,
                _ => swap(&mut rng, known, value),
            };
            let output = self.one(id, &client, key, input).await;
            if let (false, Some(Output::Get(now))) = (cold, output) {
                seen[number as usize] = now;
            }
        }
    }

    /// One operation, recorded.
    pub async fn one(&self, id: u64, client: &Client, key: Bytes, input: Input) -> Option<Output> {
        let operation = {
            let mut history = self.history.lock().expect("no client panicked");
            history.invoke(id, self.now(), key.clone(), input.clone())
        };
        let answer = ask(client, key, &input).await;
        let outcome = match answer {
            Ok(output) => Outcome::Ok(output),
            Err(error) if input == Input::Get || error.action() != Action::Ambiguous => Outcome::NotApplied,
            Err(_) => Outcome::Unknown,
        };
        let output = if let Outcome::Ok(output) = &outcome { Some(output.clone()) } else { None };
        self.history.lock().expect("no client panicked").complete(operation, self.now(), outcome);
        output
    }

    /// Reads every key that was used once more, so that what is missing at the end is noticed.
    pub async fn read_all(&self, client: &Client) {
        let keys: Vec<Bytes> = {
            let history = self.history.lock().expect("no client panicked");
            history.by_key().into_keys().cloned().collect()
        };
        for key in keys {
            let begun = Instant::now();
            while self.one(u64::MAX, client, key.clone(), Input::Get).await.is_none() {
                assert!(begun.elapsed() < super::PATIENCE, "key {key:?} cannot be read at the end");
            }
        }
    }

    /// Judges the history; panics with what is wrong with it.
    pub fn check(&self) -> String {
        let history = self.history.lock().expect("no client panicked");
        let verdict = checker::check(&history, Budget::default());
        assert!(verdict.is_ok(), "{verdict}");
        let invented = checker::nothing_invented(&history);
        assert!(invented.is_empty(), "invented: {invented:?}");
        let lost = checker::nothing_lost(&history);
        assert!(lost.findings.is_empty(), "lost: {:?}", lost.findings);
        let count = |wanted: fn(&Outcome) -> bool| {
            history.operations().filter(|(_, operation)| wanted(&operation.outcome)).count()
        };
        format!(
            "{} operations: {} answered, {} surely not applied, {} unknown",
            history.len(),
            count(|outcome| matches!(outcome, Outcome::Ok(_))),
            count(|outcome| matches!(outcome, Outcome::NotApplied)),
            count(|outcome| matches!(outcome, Outcome::Unknown)),
        )
    }
}

/// Hot keys lie in different ranges.
fn hot_key(number: u64) -> String {
    format!("{}-hot", ["0", "H", "Z", "h", "y"][number as usize])
}

fn swap(rng: &mut Rng, known: Option<(Bytes, u64)>, value: Bytes) -> Input {
    // To delete what is not there would write nothing, and tell nothing.
    let new = (known.is_none() || rng.below(4) > 0).then_some(value);
    let expect = match known {
        None => checker::Expect::Absent,
        Some((value, _)) if rng.below(2) == 0 => checker::Expect::Value(value),
        Some((_, version)) => checker::Expect::Version(version),
    };
    Input::CompareAndSwap { expect, new }
}

async fn ask(client: &Client, key: Bytes, input: &Input) -> Result<Output, Error> {
    Ok(match input {
        Input::Get => Output::Get(client.get(key).await?.map(|record| (record.value, record.version))),
        Input::Put(value) => Output::Put { version: client.put(key, value.clone()).await?.version },
        Input::PutIfAbsent(value) => {
            let result = client.put_if_absent(key, value.clone()).await?;
            match result.applied {
                true => Output::Applied { version: result.version },
                false => Output::Exists { version: result.version },
            }
        }
        Input::Delete => {
            let result = client.delete(key).await?;
            Output::Delete { existed: result.existed, version: (result.version > 0).then_some(result.version) }
        }
        Input::CompareAndSwap { expect, new } => {
            let expect = match expect {
                checker::Expect::Value(value) => Expect::Value(value.clone()),
                checker::Expect::Version(version) => Expect::Version(*version),
                checker::Expect::Absent => Expect::Absent,
            };
            swapped(client.compare_and_swap(key, expect, new.clone()).await?)
        }
    })
}

fn swapped(result: WriteResult) -> Output {
    if result.applied {
        return Output::Applied { version: result.version };
    }
    Output::Failed { current: result.current.map(|record| (record.value, record.version)) }
}

/// How long a client of these tests waits for one answer: short, so that crashes leave unknown outcomes.
pub const CLIENT_TIMEOUT: Duration = Duration::from_secs(3);
