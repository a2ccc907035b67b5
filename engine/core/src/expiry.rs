//! Which keys of a range end next: one pass over its expiry index, outside of the store's loop.
//!
//! The index lies in the order of the keys, so that a split copies nothing; hence what ends next is found by
//! looking at all of it. A pass keeps the nearest keys only, a bounded number, and says up to when they are all
//! there are: the range's leader then knows what to end until that time, without another pass
//! (`range/expiry.rs`). The price of a pass: about 50 bytes read for each key with a ttl.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_proto::{KeyspaceId, RangeId, v1};

use crate::keys;
use crate::record;
use crate::storage::{self, Direction, Family, Read, StorageError};

/// Most keys that a pass returns, and that a leader remembers for one range.
pub const KEYS_MAX: usize = 2_048;
/// Most bytes of keys that a pass returns, and that a leader remembers for one range.
pub const KEY_BYTES_MAX: usize = 256 << 10;

/// A pass over a range's expiry index is wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpiryWanted {
    /// The range, as it is now.
    pub descriptor: Arc<v1::RangeDescriptor>,
    /// Names the pass in its answer.
    pub id: u64,
    /// The range's time: keys that end at it or before are due.
    pub now_ms: u64,
    /// Keys that end later are not of interest yet.
    pub until_ms: u64,
    /// Go on from this key with what is due; `None`: all from the start.
    pub from: Option<Bytes>,
}

/// The answer to an [`ExpiryWanted`].
#[derive(Clone, Debug, PartialEq)]
pub struct ExpiryFound {
    /// The range.
    pub range: RangeId,
    /// The answered [`ExpiryWanted::id`].
    pub id: u64,
    /// What was found; `None`: the index could not be read.
    pub found: Option<Expiring>,
}

/// The keys of a range that end next.
#[derive(Clone, Debug, PartialEq)]
pub struct Expiring {
    /// They, by deadline.
    pub keys: Vec<ExpiringKey>,
    /// Every key that ends before this is among them; `u64::MAX`: every key with a ttl; 0: the pass was cut short, or
    /// began in the middle.
    pub horizon_ms: u64,
    /// More keys are due than one pass returns: where to go on.
    pub resume: Option<Bytes>,
}

/// A key that will end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExpiringKey {
    /// When, in the range's time.
    pub deadline_ms: u64,
    /// The user key.
    pub key: Bytes,
    /// The version that ends.
    pub version: u64,
}

/// Makes a pass.
pub fn find<R: Read + ?Sized>(storage: &R, wanted: &ExpiryWanted) -> storage::Result<Expiring> {
    let range = &wanted.descriptor;
    let mut pass = Pass { wanted, keys: BTreeSet::new(), bytes: 0, horizon_ms: u64::MAX, resume: None };
    let mut failed = None;
    let start = wanted.from.as_ref().unwrap_or(&range.start);
    let (first, last) = keys::expiry_span(KeyspaceId(range.keyspace_id), start, &range.end);
    storage.scan(Family::State, &first, &last, Direction::Forward, &mut |key, value| {
        pass.take(key, value).unwrap_or_else(|error| {
            failed = Some(error);
            ControlFlow::Break(())
        })
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let whole = wanted.from.is_none() && pass.resume.is_none();
    let horizon_ms = if whole { pass.horizon_ms } else { 0 };
    Ok(Expiring { keys: pass.keys.into_iter().collect(), horizon_ms, resume: pass.resume })
}

struct Pass<'a> {
    wanted: &'a ExpiryWanted,
    keys: BTreeSet<ExpiringKey>,
    bytes: usize,
    horizon_ms: u64,
    resume: Option<Bytes>,
}

impl Pass<'_> {
    fn take(&mut self, key: &[u8], value: &[u8]) -> storage::Result<ControlFlow<()>> {
        let (version, deadline_ms) = record::decode_expiry(value)?;
        let until_ms = if self.wanted.from.is_none() { self.wanted.until_ms } else { self.wanted.now_ms };
        if deadline_ms >= self.horizon_ms || deadline_ms > until_ms {
            self.horizon_ms = self.horizon_ms.min(deadline_ms);
            return Ok(ControlFlow::Continue(()));
        }
        let key = keys::expiry_user_key(key)
            .ok_or_else(|| StorageError::Corrupt { what: format!("expiry key {key:02x?} cannot be read") })?;
        let full = self.keys.len() >= KEYS_MAX || self.bytes + key.len() > KEY_BYTES_MAX;
        if full && self.keys.last().is_some_and(|last| last.deadline_ms <= self.wanted.now_ms) {
            // All of these are due: which of them is the nearest matters no more.
            self.resume = Some(key);
            return Ok(ControlFlow::Break(()));
        }
        self.bytes += key.len();
        self.keys.insert(ExpiringKey { deadline_ms, key, version });
        while self.keys.len() > KEYS_MAX || self.bytes > KEY_BYTES_MAX {
            let Some(farthest) = self.keys.pop_last() else { break };
            self.bytes -= farthest.key.len();
            self.horizon_ms = farthest.deadline_ms;
        }
        Ok(ControlFlow::Continue(()))
    }
}
