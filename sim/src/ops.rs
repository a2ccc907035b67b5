//! What clients ask: requests drawn from the seed, on few hot keys and some cold ones, every value unique.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_proto::v1;
use v1::compare_and_swap::Expect;
use v1::request::Body;
use v1::write_op::Op;

use crate::checker::Versioned;
use crate::knobs::Knobs;
use crate::rng::Rng;
use crate::spans;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Ttls are shorter than this, but for some that outlive the run.
pub(crate) const SHORT_TTL_MS: u64 = 4_000;

/// The keys of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys {
    pub hot: Vec<Bytes>,
    pub cold: Vec<Bytes>,
    pub pairs: Vec<(Bytes, Bytes)>,
    /// Neighbours that may be deleted together.
    pub spans: Vec<Vec<Bytes>>,
}

impl Keys {
    pub(crate) fn draw(knobs: &Knobs) -> Self {
        let rng = &mut Rng::new(knobs.seed, 5);
        let mut key = |what: &str| {
            let (first, second) = (rng.pick(ALPHABET) as char, rng.pick(ALPHABET) as char);
            format!("{first}{second}-{what}")
        };
        let mut named = |what: &str, count: usize| -> Vec<Bytes> {
            (0..count).map(|at| Bytes::from(key(&format!("{what}{at}")))).collect()
        };
        let hot = named("hot", knobs.hot_keys);
        let cold = named("cold", knobs.cold_keys);
        let pair = |base: Bytes| (Bytes::from([&base[..], b"-a"].concat()), Bytes::from([&base[..], b"-b"].concat()));
        let pairs: Vec<(Bytes, Bytes)> = named("pair", 2).into_iter().map(pair).collect();
        let apart: Vec<Bytes> = pairs.iter().flat_map(|(first, second)| [first.clone(), second.clone()]).collect();
        let spans = spans::spans_between(&[&hot[..], &cold[..]].concat(), &apart);
        Self { hot, cold, pairs, spans }
    }
}

/// Draws one client's requests.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    pub client: u64,
    pub values: u64,
    pub seen: BTreeMap<Bytes, Versioned>,
    pub rng: Rng,
    reads_per_mille: u64,
    ttl_per_mille: u64,
    delete_span_per_mille: u64,
}

impl Asker {
    pub(crate) fn new(client: u64, knobs: &Knobs) -> Self {
        let mut rng = Rng::new(knobs.seed, 1_000 + client);
        // Under a storm of transfers, some only read: that is what a stale lease would show to.
        let reads_per_mille =
            if knobs.transfer_storm { rng.pick(&[300, 950]) } else { rng.pick(&[100, 350, 500, 800]) };
        let (ttl_per_mille, delete_span_per_mille) = (knobs.ttl_per_mille, knobs.delete_span_per_mille);
        let seen = BTreeMap::new();
        Self { client, values: 0, seen, rng, reads_per_mille, ttl_per_mille, delete_span_per_mille }
    }

    /// How long the client waits for the next answer, in milliseconds.
    pub(crate) fn timeout_ms(&mut self) -> u64 {
        self.rng.pick(&[300, 1_000, 1_000, 3_000, 8_000])
    }

    pub(crate) fn value(&mut self) -> Bytes {
        self.values += 1;
        let padding = if self.rng.chance(30) { self.rng.below(1_500) } else { self.rng.below(40) };
        let mut value = format!("c{}-{}", self.client, self.values).into_bytes();
        value.resize(value.len() + padding as usize, b'.');
        value.into()
    }

    fn key(&mut self, keys: &Keys) -> Bytes {
        if self.rng.chance(600) { self.rng_pick(&keys.hot) } else { self.rng_pick(&keys.cold) }
    }

    fn rng_pick(&mut self, keys: &[Bytes]) -> Bytes {
        keys[self.rng.index(keys.len())].clone()
    }

    pub(crate) fn draw(&mut self, keys: &Keys) -> Body {
        if self.rng.chance(self.reads_per_mille) { self.read(keys) } else { self.write(keys) }
    }

    /// A delete of a span, now and then.
    pub(crate) fn draw_delete(&mut self, keys: &Keys) -> Option<v1::DeleteRangeRequest> {
        if keys.spans.is_empty() || !self.rng.chance(self.delete_span_per_mille) {
            return None;
        }
        let span = &keys.spans[self.rng.index(keys.spans.len())];
        let first = self.rng.index(span.len());
        let last = (first + self.rng.pick(&[0, 0, 1, 2, 5, 20])).min(span.len() - 1);
        let header = v1::RequestHeader { timeout_ms: self.timeout_ms(), ..Default::default() };
        Some(v1::DeleteRangeRequest {
            header: Some(header),
            start: span[first].clone(),
            end: [&span[last][..], &[0]].concat().into(),
            limit: self.rng.pick(&[0, 0, 0, 1, 3]),
            token: Bytes::new(),
        })
    }

    /// Mostly none at all.
    fn ttl_ms(&mut self) -> u64 {
        if !self.rng.chance(self.ttl_per_mille) {
            return 0;
        }
        match self.rng.below(20) {
            0..9 => self.rng.between(20, 200),
            9..15 => self.rng.between(200, 1_000),
            15..19 => self.rng.between(1_000, SHORT_TTL_MS),
            // One that no run sees the end of.
            _ => 3_600_000,
        }
    }

    fn read(&mut self, keys: &Keys) -> Body {
        match self.rng.below(100) {
            0..82 => {
                let stale = self.rng.chance(30);
                let consistency = if stale { v1::ReadConsistency::Stale } else { v1::ReadConsistency::Linearizable };
                let header = v1::RequestHeader { consistency: consistency.into(), ..Default::default() };
                Body::Get(v1::GetRequest { header: Some(header), key: self.key(keys) })
            }
            82..90 => {
                let mut asked: Vec<Bytes> = (0..self.rng.between(1, 6)).map(|_| self.key(keys)).collect();
                asked.sort();
                asked.dedup();
                Body::MultiGet(v1::MultiGetRequest { header: None, keys: asked })
            }
            _ => self.scan(keys),
        }
    }

    fn scan(&mut self, keys: &Keys) -> Body {
        let around_pair = self.rng.chance(400);
        let (start, end) = if around_pair {
            let (first, second) = keys.pairs[self.rng.index(keys.pairs.len())].clone();
            (first, Bytes::from([&second[..], b"~"].concat()))
        } else {
            let mut bounds = [self.key(keys), self.key(keys)];
            bounds.sort();
            let [start, end] = bounds;
            if self.rng.chance(100) { (Bytes::new(), Bytes::new()) } else { (start, end) }
        };
        Body::Scan(v1::ScanRequest {
            start,
            end,
            reverse: self.rng.chance(500),
            limit: self.rng.pick(&[0, 0, 1, 3, 10]),
            limit_bytes: self.rng.pick(&[0, 0, 60]),
            keys_only: self.rng.chance(60),
            count_only: self.rng.chance(60),
            ..Default::default()
        })
    }

    fn write(&mut self, keys: &Keys) -> Body {
        let (ops, atomic) = match self.rng.below(100) {
            0..78 => (vec![self.op(keys)], false),
            78..88 => (self.pair(keys), true),
            _ => {
                let mut used = std::collections::BTreeSet::new();
                let ops = (0..self.rng.between(2, 6)).map(|_| self.op(keys)).collect::<Vec<_>>();
                let fresh =
                    |op: &v1::WriteOp| flotilla_engine::command::op_key(op).is_some_and(|key| used.insert(key.clone()));
                (ops.into_iter().filter(fresh).collect(), self.rng.chance(300))
            }
        };
        Body::Write(v1::BatchRequest { header: None, ops, atomic })
    }

    /// Both keys of a pair, to the same value or to nothing.
    fn pair(&mut self, keys: &Keys) -> Vec<v1::WriteOp> {
        let (first, second) = keys.pairs[self.rng.index(keys.pairs.len())].clone();
        let gone = self.rng.chance(150);
        let value = self.value();
        let op = |key: Bytes| {
            let op = if gone {
                Op::Delete(v1::Delete { key })
            } else {
                Op::Put(v1::Put { key, value: value.clone(), if_absent: false, ttl_ms: 0 })
            };
            v1::WriteOp { op: Some(op) }
        };
        vec![op(first), op(second)]
    }

    fn op(&mut self, keys: &Keys) -> v1::WriteOp {
        let key = self.key(keys);
        let op = match self.rng.below(100) {
            0..55 => Op::Put(v1::Put { key, value: self.value(), if_absent: false, ttl_ms: self.ttl_ms() }),
            55..65 => Op::Put(v1::Put { key, value: self.value(), if_absent: true, ttl_ms: self.ttl_ms() }),
            65..77 => Op::Delete(v1::Delete { key }),
            _ => Op::CompareAndSwap(self.swap(key)),
        };
        v1::WriteOp { op: Some(op) }
    }

    fn swap(&mut self, key: Bytes) -> v1::CompareAndSwap {
        let known = self.seen.get(&key).cloned();
        let deletes = self.rng.chance(100);
        let (expect, deletes) = match known {
            Some((value, _)) if self.rng.chance(500) => (Expect::Value(value), deletes),
            Some((_, version)) if self.rng.chance(900) => (Expect::Version(version), deletes),
            _ => (Expect::Absent(true), false),
        };
        let new_value = if deletes { None } else { Some(self.value()) };
        let ttl_ms = if deletes { 0 } else { self.ttl_ms() };
        v1::CompareAndSwap { key, expect: Some(expect), new_value, ttl_ms }
    }
}
