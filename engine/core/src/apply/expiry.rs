//! Keys with a ttl, in the apply stage: their deadlines, the expiry index, and their end.
//!
//! A range has a time of its own, in milliseconds, in its applied state. Commands carry it forward; nothing turns it
//! back; how leaders come to know it, and why a key never ends early, is told in `range/expiry.rs`. A write with a
//! ttl gets its deadline here: the range's time at this entry, and the ttl. So deadlines are the same on all replicas.
//!
//! The invariants of the expiry index:
//! - a key has a record in it if and only if its current value has a deadline, with the same version and deadline;
//! - no deadline in it is below `next_expiry_ms` of the applied state; that is 0 if and only if no record was written
//!   since the index was last known to be empty, and then a blind put need not think of it.
//!
//! Expired keys end by a command like any other, which names key and version. Whether a key is due is decided here,
//! against replicated state: one that was written anew meanwhile has another version, and stays.

use bytes::Bytes;
use flotilla_mutants::Mutant;
use flotilla_proto::{KeyspaceId, v1};

use super::RangeApply;
use super::ops::Pass;
use crate::keys;
use crate::read;
use crate::record::{self, Stored};
use crate::storage::{Family, Storage, StorageError, WriteBatch};

/// What applying a task made of a range's keys with a ttl: what its leader has to know to end them in time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpiryApplied {
    /// The range's time.
    pub range_time_ms: u64,
    /// No key ends before this; 0: none has a ttl.
    pub next_expiry_ms: u64,
    /// What changed in the expiry index, in order.
    pub changes: Vec<ExpiryChange>,
}

/// A key whose record in the expiry index was written or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpiryChange {
    /// The user key.
    pub key: Bytes,
    /// The version that it has now.
    pub version: u64,
    /// When it ends; 0: it has no ttl, or is not there.
    pub deadline_ms: u64,
}

impl RangeApply {
    /// What the task that ends here made of keys with a ttl.
    pub(super) fn expiry_applied<S: Storage>(&self, pass: &mut Pass<'_, S>) -> ExpiryApplied {
        ExpiryApplied {
            range_time_ms: self.applied.range_time_ms,
            next_expiry_ms: self.applied.next_expiry_ms,
            changes: std::mem::take(&mut pass.expiry),
        }
    }

    /// Takes the time that a command carries.
    pub(super) fn advance_time(&mut self, command: &v1::Command) {
        self.applied.range_time_ms = self.applied.range_time_ms.max(command.range_time_ms);
    }

    /// When a key ends that is written now with this ttl; 0: it stays.
    pub(super) fn deadline(&self, ttl_ms: u64) -> u64 {
        if ttl_ms == 0 { 0 } else { self.applied.range_time_ms.saturating_add(ttl_ms) }
    }

    /// Whether a key whose value was not looked up may have a record in the index.
    pub(super) fn has_ttls(&self) -> bool {
        self.applied.next_expiry_ms != 0
    }

    /// Keeps the index level with a key that was just written with `version`. `indexed`: whether it may have a record.
    pub(super) fn index_expiry<S: Storage>(
        &mut self,
        pass: &mut Pass<'_, S>,
        user_key: &Bytes,
        version: u64,
        deadline_ms: u64,
        indexed: bool,
    ) {
        if deadline_ms == 0 && !indexed {
            return;
        }
        let key = keys::expiry(KeyspaceId(self.descriptor.keyspace_id), user_key);
        if deadline_ms == 0 {
            pass.batch.delete(Family::State, &key);
        } else {
            pass.batch.put(Family::State, &key, &record::encode_expiry(version, deadline_ms));
            let next = self.applied.next_expiry_ms;
            self.applied.next_expiry_ms = if next == 0 { deadline_ms } else { next.min(deadline_ms) };
            // The entry that is being applied.
            self.applied.last_ttl_index = self.applied.index + 1;
        }
        pass.expiry.push(ExpiryChange { key: user_key.clone(), version, deadline_ms });
    }

    /// Ends keys that are due.
    pub(super) fn apply_expire<S: Storage>(
        &mut self,
        pass: &mut Pass<'_, S>,
        expire: &v1::Expire,
    ) -> Result<(), StorageError> {
        let mut all_gone = true;
        for due in &expire.keys {
            if read::contains(&self.descriptor, &due.key) {
                all_gone &= self.expire_key(pass, due)?;
            }
        }
        // What the proposer says of all other keys is true of those that were there when it looked.
        if all_gone && self.applied.last_ttl_index <= expire.seen_index && self.has_ttls() {
            let next = expire.next_expiry_ms;
            self.applied.next_expiry_ms = if next == 0 { 0 } else { next.max(self.applied.next_expiry_ms) };
        }
        Ok(())
    }

    /// Ends a key if it is due; false: it has a ttl that still runs.
    fn expire_key<S: Storage>(&mut self, pass: &mut Pass<'_, S>, due: &v1::ExpiringKey) -> Result<bool, StorageError> {
        let keyspace = KeyspaceId(self.descriptor.keyspace_id);
        let key = keys::data(keyspace, &due.key);
        let current = pass.current(&key)?;
        let ttl = current.as_ref().filter(|current| current.deadline_ms != 0);
        let is_due = |current: &&Stored| {
            // The time is whole milliseconds: only when the deadline is behind has all of the last one passed.
            current.version == due.version && current.deadline_ms < self.applied.range_time_ms
        };
        let ends = ttl.is_some_and(|current| is_due(&current) || Mutant::ExpiryOfTheRenewed.is_on());
        if ttl.is_some() && !ends {
            return Ok(false);
        }
        if ends {
            self.applied.version_counter += 1;
            pass.write(key, None);
        }
        // Without a value that has a deadline there must be no record of one.
        self.index_expiry(pass, &due.key, self.applied.version_counter, 0, true);
        Ok(true)
    }
}
