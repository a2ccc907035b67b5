//! What a range keeps about merges: whether it is frozen, and which ranges it has taken in. The protocol: `range/merge.rs`.
//!
//! The ids of ranges that were taken in are kept for good, those among them that had been taken in by these as well:
//! a range is merged once, so the list answers for ever what became of a merge; it goes along with snapshots. A few
//! bytes for each; a range that has taken in [`ABSORBED_MAX`] takes in no more.

use flotilla_proto::ids::{SYSTEM_KEYSPACE, SYSTEM_RANGE};
use flotilla_proto::{RangeId, v1};

use crate::keys::{self, RangeRecord};
use crate::record;
use crate::storage::{self, Family, Read, WriteBatch};

/// More than so many ranges are not merged into one.
pub(crate) const ABSORBED_MAX: usize = 1 << 16;

/// What a range's record says.
pub(crate) fn read(storage: &dyn Read, range: RangeId) -> storage::Result<v1::MergeState> {
    let bytes = storage.get(Family::State, &keys::range_record(range, RangeRecord::Merge))?;
    bytes.map_or(Ok(v1::MergeState::default()), |bytes| decode(&bytes, range))
}

/// What a record says that was found.
pub(crate) fn decode(bytes: &[u8], range: RangeId) -> storage::Result<v1::MergeState> {
    record::decode(bytes, &format!("merge state of range {range}"))
}

/// Makes the range's record say this.
pub(crate) fn put<B: WriteBatch>(batch: &mut B, range: RangeId, state: Option<&v1::MergeState>) {
    let key = keys::range_record(range, RangeRecord::Merge);
    match state {
        Some(state) if state.frozen.is_some() || !state.absorbed.is_empty() => {
            batch.put(Family::State, &key, &record::encode(state));
        }
        _ => batch.delete(Family::State, &key),
    }
}

/// What `target` has taken in once it has taken in `source`.
pub(crate) fn joined(target: &[u64], source: RangeId, of_source: &[u64]) -> Vec<u64> {
    let mut all: Vec<u64> = target.iter().chain(of_source).copied().chain([source.0]).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// The tombstone of a range that was taken in: no replica of it ever comes back, whatever its id.
pub(crate) fn tombstone(into: RangeId) -> v1::Tombstone {
    v1::Tombstone { replica_id: u64::MAX, merged_into: into.0, ..Default::default() }
}

/// Whether an epoch is one that a range can have only after another one.
pub(crate) fn is_past(now: v1::Epoch, named: v1::Epoch) -> bool {
    now.version > named.version || now.conf_ver > named.conf_ver
}

/// Whether all of a range's replicas are voters: no change of them is under way, nor half done.
pub(crate) fn is_settled(descriptor: &v1::RangeDescriptor) -> bool {
    descriptor.replicas.iter().all(|replica| replica.role() == v1::ReplicaRole::Voter)
}

/// Whether `target` may take in `source`, by what the two are; the words say why not, and what would be allowed.
pub(crate) fn check(target: &v1::RangeDescriptor, source: &v1::RangeDescriptor) -> Result<(), String> {
    let (into, id) = (target.range_id, source.range_id);
    if [into, id].contains(&SYSTEM_RANGE.0) || source.keyspace_id == SYSTEM_KEYSPACE.0 {
        return Err("the system range is never merged: choose ranges of another keyspace".into());
    }
    if target.keyspace_id != source.keyspace_id {
        return Err(format!(
            "ranges {into} and {id} are of different keyspaces: choose two neighbours of one keyspace"
        ));
    }
    if target.end.is_empty() || target.end != source.start {
        return Err(format!(
            "range {id} does not begin where range {into} ends: a range can only be merged into its left neighbour"
        ));
    }
    if let Some(unsettled) = [target, source].into_iter().find(|of| !is_settled(of)) {
        return Err(format!(
            "the replicas of range {} are being changed: wait until all are voters",
            unsettled.range_id
        ));
    }
    let nodes = |of: &v1::RangeDescriptor| {
        let mut nodes: Vec<u64> = of.replicas.iter().map(|replica| replica.node_id).collect();
        nodes.sort_unstable();
        nodes
    };
    if nodes(target) != nodes(source) {
        return Err(format!(
            "range {into} is on the nodes {:?}, range {id} on {:?}: they must be on the same ones",
            nodes(target),
            nodes(source)
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let frozen = v1::Frozen {
            index: 9,
            term: 6,
            target_range_id: 2,
            target_epoch: Some(v1::Epoch { conf_ver: 1, version: 3 }),
            version_counter: 7,
            range_time_ms: 258,
            next_expiry_ms: 300,
            checksum: 5,
        };
        let state = v1::MergeState { frozen: Some(frozen), absorbed: vec![3, 300] };
        let body =
            [1, 10, 22, 8, 9, 16, 6, 24, 2, 34, 4, 8, 1, 16, 3, 40, 7, 48, 130, 2, 56, 172, 2, 64, 5, 18, 3, 3, 172, 2];
        assert_eq!(record::encode(&state)[4..], body);
        assert_eq!(
            record::encode(&tombstone(RangeId(2)))[4..],
            [1, 8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 32, 2]
        );
    }

    #[test]
    fn what_was_taken_in_before_stays_known() {
        assert_eq!(joined(&[4, 9], RangeId(7), &[5, 9]), [4, 5, 7, 9]);
    }

    #[test]
    fn refusals_say_what_would_be_allowed() {
        let range = |range_id, keyspace_id, start: &'static str, end: &'static str, nodes: &[u64]| {
            let replica = |node_id: &u64| v1::ReplicaDescriptor { replica_id: *node_id, node_id: *node_id, role: 0 };
            let replicas = nodes.iter().map(replica).collect();
            v1::RangeDescriptor {
                range_id,
                keyspace_id,
                start: start.into(),
                end: end.into(),
                replicas,
                ..Default::default()
            }
        };
        let target = range(2, 1, "", "m", &[1, 2, 3]);
        assert_eq!(check(&target, &range(3, 1, "m", "", &[3, 1, 2])), Ok(()));
        for (source, words) in [
            (range(3, 1, "n", "", &[1, 2, 3]), "left neighbour"),
            (range(3, 2, "m", "", &[1, 2, 3]), "different keyspaces"),
            (range(3, 1, "m", "", &[1, 2, 4]), "same ones"),
            (range(SYSTEM_RANGE.0, 1, "m", "", &[1, 2, 3]), "system range"),
        ] {
            let said = check(&target, &source).expect_err("refused");
            assert!(said.contains(words), "{said}");
        }
        let mut learner = range(3, 1, "m", "", &[1, 2, 3]);
        learner.replicas[1].role = v1::ReplicaRole::Learner.into();
        assert!(check(&target, &learner).is_err_and(|said| said.contains("being changed")));
        let end_of_keyspace = range(2, 1, "", "", &[1, 2, 3]);
        assert!(check(&end_of_keyspace, &range(3, 1, "", "", &[1, 2, 3])).is_err());
    }
}
