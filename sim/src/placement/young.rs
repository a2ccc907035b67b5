//! Young keyspaces: clients write to them from the moment that they are written down, before their ranges are born, and
//! go on for some time after they were dropped.

use bytes::Bytes;
use flotilla_engine::apply::Applied;
use flotilla_proto::ids::{DEFAULT_KEYSPACE, SYSTEM_RANGE};
use flotilla_proto::{KeyspaceId, RangeId, v1};
use v1::request::Body;

use super::Real;
use super::ledger::{Ledger, News};
use crate::client::Mode;
use crate::clock::{Nanos, ms};
use crate::cluster::Cluster;
use crate::marks::Mark;
use crate::ops::Keys;
use crate::schedule::Event;

/// How long clients go on with a keyspace that was dropped.
const AFTER_THE_DROP: Nanos = ms(2_500);
const CLIENTS: usize = 2;

/// A keyspace that was created meanwhile.
#[derive(Debug)]
pub(crate) struct Young {
    pub keys: Keys,
    dropped: Option<Nanos>,
}

impl Young {
    fn new(keyspace: u64) -> Self {
        let key = |first: char, what: &str| Bytes::from(format!("{first}y{keyspace}-{what}"));
        let cold = "0AHaqz".chars().map(|first| key(first, "cold")).collect();
        let keys = Keys {
            hot: vec![key('M', "hot"), key('r', "hot")],
            cold,
            pairs: vec![(key('k', "pair-a"), key('k', "pair-b"))],
            spans: Vec::new(),
        };
        Self { keys, dropped: None }
    }

    fn all_keys(&self) -> Vec<Bytes> {
        let pairs = self.keys.pairs.iter().flat_map(|(first, second)| [first, second]);
        self.keys.hot.iter().chain(&self.keys.cold).chain(pairs).cloned().collect()
    }
}

impl Real {
    /// Whether clients have been told that the keyspace is gone.
    pub(super) fn was_dropped(&self, keyspace: u64) -> bool {
        self.young.get(&keyspace).is_some_and(|young| young.dropped.is_some())
    }

    /// A range goes on by this plan; false: that was known.
    pub(crate) fn goes_on(&mut self, range: RangeId, plan: String) -> bool {
        self.recovery.went_on.insert((range, plan))
    }
}

impl Cluster {
    /// The system range goes on with these records; what was written behind them is gone, and was never applied.
    pub(crate) fn ledger_goes_back(&mut self, records: Vec<(Bytes, Bytes)>, applied: u64) {
        let now = self.now;
        let Some(real) = &mut self.real else { return };
        real.ledger = Ledger::going_on(records, applied);
        for (id, young) in &mut real.young {
            if !real.ledger.lives(*id) {
                young.dropped.get_or_insert(now);
            }
        }
    }

    /// A replica of the system range has applied entries.
    pub(crate) fn note_records(&mut self, done: &Applied) {
        if done.range != SYSTEM_RANGE {
            return;
        }
        let news = match self.real.as_mut().map(|real| real.ledger.applied(done)) {
            Some(Ok(news)) => news,
            Some(Err(what)) => return self.check(Err(what)),
            None => return,
        };
        for news in news {
            match news {
                News::Created(keyspace) => self.use_keyspace(&keyspace),
                News::Dropped(keyspace) => self.leave_keyspace(keyspace),
                News::Ordered(order) => self.order_written(&order),
                News::Removed(node) => self.node_removed(node),
            }
        }
    }

    fn use_keyspace(&mut self, keyspace: &v1::Keyspace) {
        self.marks.hit(Mark::KeyspaceCreated);
        let id = keyspace.keyspace_id;
        let young = Young::new(id);
        self.recorder.pairs.extend(young.keys.pairs.iter().cloned());
        if let Some(real) = &mut self.real {
            real.young.insert(id, young);
        }
        if self.ending.is_healing() {
            return;
        }
        for _ in 0..CLIENTS {
            let client = self.add_client_of(KeyspaceId(id), Mode::Random);
            let at = self.now + self.rng.delay(ms(5));
            self.schedule.at(at, Event::ClientWake { client, wake: 0 });
        }
    }

    fn leave_keyspace(&mut self, keyspace: u64) {
        self.marks.hit(Mark::KeyspaceDropped);
        if let Some(young) = self.real.as_mut().and_then(|real| real.young.get_mut(&keyspace)) {
            young.dropped = Some(self.now);
        }
    }

    /// The keys of a client's keyspace; `None`: it has been dropped for long enough.
    pub(crate) fn keys_of(&self, keyspace: KeyspaceId) -> Option<&Keys> {
        if keyspace == DEFAULT_KEYSPACE {
            return Some(&self.keys);
        }
        let young = self.real.as_ref()?.young.get(&keyspace.0)?;
        let over = young.dropped.is_some_and(|at| self.now > at + AFTER_THE_DROP);
        (!over).then_some(&young.keys)
    }

    /// The keys of a young keyspace; none if it was dropped.
    pub(crate) fn young_keys(&self, keyspace: KeyspaceId) -> Vec<Bytes> {
        let young = self.real.as_ref().and_then(|real| real.young.get(&keyspace.0));
        young.filter(|young| young.dropped.is_none()).map(Young::all_keys).unwrap_or_default()
    }

    /// Has the keys of all young keyspaces read that there still are.
    pub(crate) fn read_young(&mut self) -> Vec<usize> {
        let young = self.real.iter().flat_map(|real| real.young.keys());
        let all = young.map(|id| (KeyspaceId(*id), self.young_keys(KeyspaceId(*id))));
        let living: Vec<_> = all.filter(|(_, keys)| !keys.is_empty()).collect();
        living
            .into_iter()
            .map(|(id, keys)| {
                let reader = self.add_client_of(id, Mode::Script);
                let gets = keys.into_iter().map(|key| Body::Get(v1::GetRequest { header: None, key }));
                self.clients[reader].script.extend(gets);
                reader
            })
            .collect()
    }

    /// Whether a key was one of a keyspace that is gone.
    pub(crate) fn key_is_gone(&self, key: &[u8]) -> bool {
        let gone = |young: &&super::Young| young.dropped.is_some();
        let mut young = self.real.iter().flat_map(|real| real.young.values()).filter(gone);
        young.any(|young| young.all_keys().iter().any(|of| of == key))
    }
}
