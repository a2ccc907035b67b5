//! What applying does to the data: I4, equal on every replica; I6, within the range, under versions that never repeat.

use flotilla_engine::apply::{Applied, EntryResults, RangeChange};
use flotilla_proto::{RangeId, v1};

use super::{Check, Invariants, fail, hash};
use crate::mirror::{LogMirror, replica_on};
use crate::territory;

impl Invariants {
    /// I4: equal applied index, equal checksum; and equal results.
    pub(crate) fn applied(&mut self, node: usize, done: &Applied) -> Check {
        if self.is_outcast(node) {
            return Ok(());
        }
        self.check_checksum(node, done.range, done.index, done.checksum)?;
        self.check_merges(node, done)?;
        let merges = &self.merges;
        self.territory.applied(node, done, |index| merges.get(&(done.range, index)).copied())?;
        self.note_births(node, done)?;
        for entry in &done.results {
            if entry.requests.is_ok() && self.territory.merges.is_frozen_at(done.range, entry.index) {
                return fail(format!(
                    "I6: n{}: entry {} of {} writes, and it is frozen",
                    node + 1,
                    entry.index,
                    done.range
                ));
            }
            self.check_keys(node, done.range, entry)?;
            let results = hash(format!("{:?}", entry.requests).as_bytes());
            let before = self.results.insert((done.range, entry.index), results);
            if before.is_none() {
                self.check_versions(node, done.range, entry)?;
            }
            if before.is_some_and(|known| known != results) {
                return fail(format!(
                    "I4: n{} {}: entry {} had other results than on another replica: {:?}",
                    node + 1,
                    done.range,
                    entry.index,
                    entry.requests
                ));
            }
        }
        Ok(())
    }

    /// I3, of merges: when a range is taken in, each of its replicas has applied all of its log, durably. And the store's
    /// log of it is of no more use.
    fn check_merges(&mut self, node: usize, done: &Applied) -> Check {
        for change in &done.changes {
            let Ok(RangeChange::Merged { source, .. }) = &change.outcome else { continue };
            let id = RangeId(source.range_id);
            let frozen_at = self.merges.get(&(done.range, change.index)).copied().unwrap_or(u64::MAX);
            if !self.territory.merges.is_ended(id) && !self.black_box {
                let applied = |of: &v1::ReplicaDescriptor| {
                    self.applied_synced[of.node_id as usize - 1].get(&id).copied().unwrap_or(0)
                };
                // One that went for good, as its keyspace was dropped, took along what it had applied.
                let went = |of: &v1::ReplicaDescriptor| {
                    self.ended[of.node_id as usize - 1].get(&id).is_some_and(|log| log.replica == of.replica_id)
                };
                if let Some(behind) = source.replicas.iter().find(|of| !went(of) && applied(of) < frozen_at) {
                    return fail(format!(
                        "I3: {id}, frozen at {frozen_at}, is merged, and n{} has durably applied it up to {}",
                        behind.node_id,
                        applied(behind)
                    ));
                }
            }
            self.written[node].remove(&id);
        }
        Ok(())
    }

    /// Replicas that begin with a split.
    fn note_births(&mut self, node: usize, done: &Applied) -> Check {
        for change in &done.changes {
            let Ok(RangeChange::Split { children, .. }) = &change.outcome else { continue };
            for child in children.iter().filter(|child| child.born) {
                let id = RangeId(child.descriptor.range_id);
                let log = LogMirror::initial(replica_on(&child.descriptor, node).unwrap_or_default());
                self.check_checksum(node, id, child.applied.index, child.applied.checksum)?;
                if let Some(known) = self.written[node].get(&id).filter(|known| known.term > log.term) {
                    return fail(format!("I8: n{}: a split puts range {id} back from term {}", node + 1, known.term));
                }
                self.written[node].insert(id, log.clone());
                self.born[node].insert(id, log);
            }
        }
        Ok(())
    }

    /// I6: nothing is written outside of the range as it is where the entry stands.
    fn check_keys(&self, node: usize, range: RangeId, entry: &EntryResults) -> Check {
        let (Ok(requests), Some(descriptor)) = (&entry.requests, self.territory.in_force(range, entry.index)) else {
            return Ok(());
        };
        let keys = self.keys.get(&(range, entry.index)).map_or(&[][..], |keys| keys);
        let applied = requests.iter().flatten().zip(keys).filter(|(result, _)| result.applied);
        match applied.map(|(_, key)| key).find(|key| !territory::holds_key(descriptor, key)) {
            Some(key) => fail(format!(
                "I6: n{}: entry {} writes {key:?}, which is not in {}",
                node + 1,
                entry.index,
                territory::words(descriptor)
            )),
            None => Ok(()),
        }
    }

    /// I6: what is written first under a version is written under no other one later, and versions of a key only grow,
    /// whichever range holds it.
    fn check_versions(&mut self, node: usize, range: RangeId, entry: &EntryResults) -> Check {
        let (Ok(requests), Some(descriptor)) = (&entry.requests, self.territory.in_force(range, entry.index)) else {
            return Ok(());
        };
        let keys = self.keys.get(&(range, entry.index)).map_or(&[][..], |keys| keys);
        let keyspace = descriptor.keyspace_id;
        let wrote = |result: &&v1::WriteResult| result.applied && result.version > 0;
        for (result, key) in requests.iter().flatten().zip(keys).filter(|(result, _)| wrote(result)) {
            let before = self.versions.insert((keyspace, key.clone()), result.version).unwrap_or(0);
            if before >= result.version {
                return fail(format!(
                    "I6: n{} {range}: entry {} writes {key:?} as version {}, after version {before}",
                    node + 1,
                    entry.index,
                    result.version
                ));
            }
        }
        Ok(())
    }

    /// Every replica computes the same checksum at the index of a check. True: another one has before.
    pub(crate) fn checkpoint(
        &mut self,
        node: usize,
        range: RangeId,
        index: u64,
        found: (u64, u32),
    ) -> Result<bool, String> {
        if self.is_outcast(node) {
            return Ok(false);
        }
        let known = self.checkpoints.insert((range, index), found);
        if known.is_some_and(|known| known != found) {
            return Err(format!(
                "I4: n{} {range}: the check at {index} finds other data than on another replica",
                node + 1
            ));
        }
        Ok(known.is_some())
    }

    pub(super) fn check_checksum(&mut self, node: usize, range: RangeId, index: u64, checksum: u32) -> Check {
        if self.is_left_behind(node, range) {
            return Ok(());
        }
        let known = *self.checksums.entry((range, index)).or_insert(checksum);
        if known != checksum {
            return fail(format!(
                "I4: n{} {range}: checksum {checksum:08x} at applied index {index}, another replica had {known:08x}",
                node + 1
            ));
        }
        Ok(())
    }
}
