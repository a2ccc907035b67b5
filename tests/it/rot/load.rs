//! Light load whose every answer can be judged: values say which key they are of, and which number.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use flotilla_proto::ids::DEFAULT_KEYSPACE;
use flotilla_proto::v1;
use flotilla_router::{Client, WriteOp};
use tokio::task::JoinHandle;

use crate::support::PATIENCE;
use crate::support::cluster::routes;
use crate::support::rng::Rng;

const KEYS: u64 = 1_200;
/// So that tables have many blocks; random bytes, which no compression makes small.
const VALUE_BYTES: usize = 1_000;
const BATCH: u64 = 100;

fn key(number: u64) -> Bytes {
    // Over all of the first ranges' borders.
    let letter = char::from(b"05ANZakz"[(number % 8) as usize]);
    format!("{letter}/{number:05}").into()
}

fn value(key: &[u8], round: u64) -> Bytes {
    let seed = u64::from(crc32fast::hash(key)) << 32 ^ round;
    let mut rng = Rng::new(seed);
    let mut value = round.to_be_bytes().to_vec();
    while value.len() < VALUE_BYTES {
        value.extend(rng.next().to_be_bytes());
    }
    value.into()
}

/// Which write a value is of; panics if it was never written.
fn round_of(key_read: &[u8], found: &[u8]) -> u64 {
    let round = found.first_chunk().map_or(u64::MAX, |head| u64::from_be_bytes(*head));
    assert!(found == value(key_read, round), "key {key_read:?} has a value that nobody wrote");
    round
}

/// A writer and a reader, until they are told to stop.
pub struct Load {
    pub client: Client,
    /// What was acknowledged last for each key.
    acknowledged: Arc<Mutex<BTreeMap<Bytes, u64>>>,
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Writes every key, and begins.
    pub async fn start(client: Client, seed: u64) -> Self {
        let acknowledged = Arc::new(Mutex::new(BTreeMap::new()));
        for first in (0..KEYS).step_by(BATCH as usize) {
            let keys: Vec<Bytes> = (first..first + BATCH).map(key).collect();
            let ops = keys.iter().map(|key| WriteOp::Put { key: key.clone(), value: value(key, 0) }).collect();
            let results = client.batch(ops, false).await.expect("a healthy cluster takes writes");
            assert!(results.iter().all(Result::is_ok), "{results:?}");
            acknowledged.lock().expect("no panic").extend(keys.into_iter().map(|key| (key, 0)));
        }
        let (stop, requests) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut load = Self { client, acknowledged, stop, requests, clients: Vec::new() };
        load.clients = vec![tokio::spawn(load.part().write(seed)), tokio::spawn(load.part().read(!seed))];
        load
    }

    fn part(&self) -> Part {
        let (client, acknowledged) = (self.client.clone(), Arc::clone(&self.acknowledged));
        Part { client, acknowledged, stop: Arc::clone(&self.stop), requests: Arc::clone(&self.requests) }
    }

    /// Reads every key, until each has been answered.
    pub async fn read_all(&self) {
        let part = self.part();
        for first in (0..KEYS).step_by(BATCH as usize) {
            let keys: Vec<Bytes> = (first..first + BATCH).map(key).collect();
            let begun = Instant::now();
            while !part.read_keys(&keys).await {
                assert!(begun.elapsed() < PATIENCE, "{:?} cannot be read", keys[0]);
            }
        }
    }

    /// Ends it; how many requests there were.
    pub async fn stop(&mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            client.await.expect("no answer was wrong");
        }
        self.requests.load(Ordering::Relaxed)
    }
}

struct Part {
    client: Client,
    acknowledged: Arc<Mutex<BTreeMap<Bytes, u64>>>,
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
}

impl Part {
    fn goes_on(&self) -> bool {
        self.requests.fetch_add(1, Ordering::Relaxed);
        !self.stop.load(Ordering::Relaxed)
    }

    async fn write(self, seed: u64) {
        let (mut rng, mut round) = (Rng::new(seed), 0);
        while self.goes_on() {
            round += 1;
            let key = key(rng.below(KEYS));
            // A write of unknown outcome may be there or not: only what was acknowledged counts.
            if self.client.put(key.clone(), value(&key, round)).await.is_ok() {
                self.acknowledged.lock().expect("no panic").insert(key, round);
            }
        }
    }

    async fn read(self, seed: u64) {
        let mut rng = Rng::new(seed);
        while self.goes_on() {
            let keys: Vec<Bytes> = (0..5).map(|_| key(rng.below(KEYS))).collect();
            self.read_keys(&keys).await;
        }
    }

    /// Whether it was answered; what was answered is right.
    async fn read_keys(&self, keys: &[Bytes]) -> bool {
        let before: Vec<u64> = {
            let acknowledged = self.acknowledged.lock().expect("no panic");
            keys.iter().map(|key| acknowledged[key]).collect()
        };
        let Ok(records) = self.client.multi_get(keys.iter().cloned()).await else { return false };
        for ((key, acknowledged), record) in keys.iter().zip(before).zip(records) {
            let record = record.unwrap_or_else(|| panic!("key {key:?} is gone"));
            let found = round_of(key, &record.value);
            assert!(found >= acknowledged, "key {key:?}: {found} was read, and {acknowledged} acknowledged before");
        }
        true
    }
}

/// Reads all that one node's own replicas hold, and judges it; `None`: it did not answer everything.
pub async fn stale_contents(address: &str) -> Option<usize> {
    let mut kv = v1::kv_client::KvClient::connect(format!("http://{address}")).await.ok()?;
    let mut read = 0;
    for route in routes(address)?.ranges {
        let range = route.descriptor.filter(|range| range.keyspace_id == DEFAULT_KEYSPACE.0);
        let Some(range) = range else { continue };
        let header = v1::RequestHeader {
            range_id: range.range_id,
            epoch: range.epoch,
            consistency: v1::ReadConsistency::Stale.into(),
            ..Default::default()
        };
        let mut start = range.start.clone();
        loop {
            let scan = v1::ScanRequest {
                header: Some(header.clone()),
                start: start.clone(),
                end: range.end.clone(),
                ..Default::default()
            };
            let page = kv.scan(scan).await.ok()?.into_inner();
            for record in &page.records {
                round_of(&record.key, &record.value);
            }
            read += page.records.len();
            let Some(last) = page.records.last() else { break };
            if page.next_token.is_empty() {
                break;
            }
            start = [&last.key[..], &[0]].concat().into();
        }
    }
    assert!(read as u64 >= KEYS, "the node holds {read} keys of {KEYS}");
    Some(read)
}
