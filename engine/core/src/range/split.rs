//! When and where a range is split: by order, and when it has grown beyond what its keyspace allows.
//!
//! The keys are looked for outside of the loop ([`crate::split_keys`]); the split is one entry, however many
//! children it has. Ids for the children come from blocks that the node holds in advance. A range that is too
//! large and cannot be cut is reported, and looked at again when it has doubled.

use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::{Error, v1};

use super::change::{Asker, Kind};
use super::{Range, Turn};
use crate::store::{Event, Split, SplitAt, SplitKeys, SplitKeysWanted};
use crate::{membership, split_keys};

/// Most parts of one split.
const PARTS_MAX: u32 = 1_024;
/// Most parts of a split by size.
const PARTS_BY_SIZE_MAX: u64 = 16;

/// About how large a range is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Size {
    /// As the disk says.
    measured: u64,
    /// As it was when it was last counted, and what was written since.
    counted: u64,
}

impl Size {
    pub(super) fn bytes(&self) -> u64 {
        self.measured.max(self.counted)
    }

    pub(super) fn measured(&mut self, bytes: u64) {
        self.measured = bytes;
    }

    pub(super) fn grew(&mut self, bytes: u64) {
        self.counted += bytes;
    }

    pub(super) fn set(&mut self, bytes: u64) {
        *self = Self { measured: bytes, counted: bytes };
    }
}

/// Into how many parts a range of this size is split, so that they have room to grow.
fn parts_by_size(bytes: u64, limit: u64) -> u64 {
    (bytes.saturating_mul(3) / limit.saturating_mul(2)).clamp(2, PARTS_BY_SIZE_MAX)
}

/// Of keys that cut a range into equal parts, those that cut it into at most `parts`.
fn thinned(keys: &[bytes::Bytes], parts: usize) -> Vec<bytes::Bytes> {
    let parts = parts.min(keys.len() + 1);
    (1..parts).map(|part| keys[part * (keys.len() + 1) / parts - 1].clone()).collect()
}

/// A split that waits for its keys.
#[derive(Debug)]
pub(super) enum Finding {
    /// The range is too large.
    BySize,
    /// By order.
    ByHand(Asker),
}

impl Range {
    /// Takes an order, or answers it with a refusal.
    pub(crate) fn split(&mut self, turn: &mut Turn<'_>, split: Split) {
        let asker = Asker { token: split.token, deadline: split.deadline };
        if let Err(error) = self.begin_split(turn, asker, split.at) {
            turn.effects.splits.push((split.token, Err(error)));
        }
    }

    fn begin_split(&mut self, turn: &mut Turn<'_>, asker: Asker, at: SplitAt) -> Result<(), Error> {
        let boundary = self.may_split(turn)?;
        match at {
            SplitAt::Keys(keys) => self.propose_split(turn, keys, boundary, Some(asker)),
            SplitAt::Parts(parts) if (2..=PARTS_MAX).contains(&parts) => {
                if self.finding.is_some() {
                    let reason = "keys to split the range at are being looked for".into();
                    return Err(Error::ServerBusy { reason, retry_after_ms: 100 });
                }
                self.finding = Some(Finding::ByHand(asker));
                self.want_split_keys(turn, parts, boundary, true);
                Ok(())
            }
            SplitAt::Parts(parts) => {
                Err(Error::invalid(format!("{parts} parts"), format!("split into 2 to {PARTS_MAX} parts")))
            }
        }
    }

    fn want_split_keys(&self, turn: &mut Turn<'_>, parts: u32, boundary: v1::SplitBoundary, by_hand: bool) {
        let descriptor = self.descriptor.clone();
        turn.effects.split_keys_wanted.push(SplitKeysWanted { descriptor, parts, boundary, by_hand });
    }

    /// Whether the range can be split now, and where its keyspace allows it.
    pub(super) fn may_split(&self, turn: &Turn<'_>) -> Result<v1::SplitBoundary, Error> {
        if self.id == SYSTEM_RANGE {
            return Err(Error::invalid("the system range is never split", "choose a range of another keyspace"));
        }
        self.may_change(turn)?;
        let busy = |reason: &str| Error::ServerBusy { reason: reason.into(), retry_after_ms: 100 };
        if membership::is_joint(&self.descriptor) {
            return Err(busy("the range's replicas are being changed"));
        }
        match turn.shared.keyspaces.get(&self.descriptor.keyspace_id) {
            Some(keyspace) => Ok(keyspace.boundary.unwrap_or_default()),
            None => Err(busy("the settings of the range's keyspace are not known here yet")),
        }
    }

    pub(super) fn propose_split(
        &mut self,
        turn: &mut Turn<'_>,
        mut keys: Vec<bytes::Bytes>,
        boundary: v1::SplitBoundary,
        asker: Option<Asker>,
    ) -> Result<(), Error> {
        keys.sort_unstable();
        keys.dedup();
        let hint = || format!("`flotilla range show {}` shows the range", self.id.0);
        if keys.is_empty() || keys.len() >= PARTS_MAX as usize {
            return Err(Error::invalid(
                format!("{} split keys", keys.len()),
                format!("name 1 to {} keys", PARTS_MAX - 1),
            ));
        }
        for key in &keys {
            split_keys::check(&self.descriptor, key, &boundary).map_err(|what| Error::invalid(what, hint()))?;
        }
        let Some(ids) = turn.shared.range_ids.take(keys.len() as u64) else {
            let reason = "the node waits for ids for new ranges from the placement service".into();
            return Err(Error::ServerBusy { reason, retry_after_ms: 200 });
        };
        let children = ids.into_iter().zip(keys).map(|(range_id, start)| v1::SplitChild { range_id, start }).collect();
        self.propose_change(v1::command::Change::Split(v1::Split { children }), Kind::Split, asker)
    }

    /// Keys that were looked for.
    pub(crate) fn split_keys(&mut self, turn: &mut Turn<'_>, found: Result<SplitKeys, String>) {
        let Some(finding) = self.finding.take() else { return };
        let asker = match finding {
            Finding::ByHand(asker) => Some(asker),
            Finding::BySize => None,
        };
        let done = match found {
            Ok(found) => self.split_at(turn, found, asker),
            Err(reason) => {
                if asker.is_none() {
                    self.too_large_to_split = self.size.bytes();
                    turn.effects.events.push(Event::CannotSplit { range: self.id, bytes: self.size.bytes() });
                }
                Err(Error::invalid(reason, "choose another range, or name the keys"))
            }
        };
        if let (Err(error), Some(asker)) = (done, asker) {
            turn.effects.splits.push((asker.token, Err(error)));
        }
    }

    fn split_at(&mut self, turn: &mut Turn<'_>, found: SplitKeys, asker: Option<Asker>) -> Result<(), Error> {
        self.size.set(found.bytes);
        let boundary = self.may_split(turn)?;
        let limit = self.split_bytes(turn);
        if asker.is_none() && (limit == 0 || found.bytes <= limit) {
            return Ok(());
        }
        // The range may have been split since the keys were looked for.
        let fits = |key: &bytes::Bytes| split_keys::check(&self.descriptor, key, &boundary).is_ok();
        let mut keys: Vec<bytes::Bytes> = found.keys.into_iter().filter(fits).collect();
        if asker.is_none() {
            // They were asked for by what the disk guessed.
            let parts = usize::try_from(parts_by_size(found.bytes, limit)).unwrap_or(usize::MAX);
            keys = thinned(&keys, parts);
        }
        self.propose_split(turn, keys, boundary, asker)
    }

    fn split_bytes(&self, turn: &Turn<'_>) -> u64 {
        turn.shared.keyspaces.get(&self.descriptor.keyspace_id).map_or(0, |keyspace| keyspace.split_bytes)
    }

    /// Whether it is too large, and was not found to be one that cannot be cut.
    pub(super) fn wants_split(&self, turn: &Turn<'_>) -> bool {
        let (limit, bytes) = (self.split_bytes(turn), self.size.bytes());
        limit != 0 && bytes > limit && bytes / 2 >= self.too_large_to_split
    }

    /// Begins to split a range that has grown too large.
    pub(super) fn consider_split(&mut self, turn: &mut Turn<'_>) {
        let (limit, bytes) = (self.split_bytes(turn), self.size.bytes());
        let asked_before = bytes / 2 < self.too_large_to_split;
        if limit == 0 || bytes <= limit || asked_before || self.finding.is_some() {
            return;
        }
        // Without ids its keys would be looked for in vain, again and again.
        if !turn.shared.range_ids.suffice() {
            return;
        }
        if let Ok(boundary) = self.may_split(turn) {
            let parts = parts_by_size(bytes, limit);
            self.finding = Some(Finding::BySize);
            self.want_split_keys(turn, parts as u32, boundary, false);
        }
    }
}
