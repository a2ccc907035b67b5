//! What a received snapshot must be before Raft hears of it: what Raft has accepted must be written.

use std::collections::BTreeSet;

use bytes::Bytes;
use flotilla_proto::{KeyspaceId, v1};
use raft::eraftpb::{ConfState, SnapshotMetadata};

use super::chunk::for_each_record;
use super::{BATCH_BYTES_MAX, Chunks, SnapshotData, corrupt, spans};
use crate::keys;

/// Checks that a received snapshot is whole, is what its message says, and is of the range that replica `own`
/// belongs to. `held`: the range as that replica knows it; `None`, or one without an epoch: it knows nothing yet.
///
/// The snapshot may be of a later time: of another span after splits, with other replicas after changes of them.
/// It may not be of an earlier one, since epochs only grow along a range's log.
pub fn check(
    data: &SnapshotData,
    meta: &SnapshotMetadata,
    held: Option<&v1::RangeDescriptor>,
    own: u64,
) -> Result<(), String> {
    let descriptor = data.header.descriptor.as_ref().ok_or("the snapshot has no descriptor")?;
    let applied = data.header.applied.as_ref().ok_or("the snapshot has no applied state")?;
    if (applied.index, applied.term) != (meta.index, meta.term) {
        return Err("the snapshot's data is of another index than its message".into());
    }
    check_descriptor(descriptor, held)?;
    check_members(descriptor, meta.get_conf_state(), own)?;
    match &data.chunks {
        Chunks::Memory(_) if data.size_bytes() > BATCH_BYTES_MAX => {
            Err(format!("the snapshot has {} bytes in memory", data.size_bytes()))
        }
        Chunks::Memory(chunks) => check_records(chunks, data.header.records, descriptor),
        // Checked as they were written: see super::receive.
        Chunks::Tables(_) => Ok(()),
        Chunks::File(_) => Err("the snapshot is in a file of its sender's".into()),
    }
}

/// The part of [`check`] that the header alone tells, before the rest has come.
pub fn check_header(header: &v1::SnapshotHeader, held: &v1::RangeDescriptor) -> Result<(), String> {
    check_descriptor(header.descriptor.as_ref().ok_or("the snapshot has no descriptor")?, Some(held))
}

/// No key stands on disk for a keyspace beyond them, and nothing can be asked of its span.
pub fn check_keyspace(descriptor: &v1::RangeDescriptor) -> Result<(), String> {
    if keys::is_keyspace(KeyspaceId(descriptor.keyspace_id)) {
        return Ok(());
    }
    Err(format!("the snapshot is of keyspace {}, and there can be none", descriptor.keyspace_id))
}

fn check_descriptor(descriptor: &v1::RangeDescriptor, held: Option<&v1::RangeDescriptor>) -> Result<(), String> {
    check_keyspace(descriptor)?;
    let epoch = descriptor.epoch.ok_or("the snapshot's descriptor has no epoch")?;
    if !descriptor.end.is_empty() && descriptor.start >= descriptor.end {
        return Err("the snapshot's span ends before it starts".into());
    }
    let Some(held) = held else { return Ok(()) };
    if (descriptor.range_id, descriptor.keyspace_id) != (held.range_id, held.keyspace_id) {
        return Err("the snapshot is of another range".into());
    }
    let Some(known) = held.epoch else { return Ok(()) };
    if epoch.version < known.version || epoch.conf_ver < known.conf_ver {
        return Err(format!("the snapshot is of epoch {epoch:?}, before this replica's {known:?}"));
    }
    if epoch.version == known.version && (&descriptor.start, &descriptor.end) != (&held.start, &held.end) {
        return Err("the snapshot is of another span at the same version".into());
    }
    if epoch.conf_ver == known.conf_ver && descriptor.replicas != held.replicas {
        return Err("the snapshot names other replicas at the same conf_ver".into());
    }
    Ok(())
}

/// raft-rs cannot go on from members that contradict each other.
fn check_members(descriptor: &v1::RangeDescriptor, conf: &ConfState, own: u64) -> Result<(), String> {
    let ids: BTreeSet<u64> = descriptor.replicas.iter().map(|replica| replica.replica_id).collect();
    if ids.len() != descriptor.replicas.len() || !ids.contains(&own) {
        return Err("the snapshot names a replica twice, or not the one it is for".into());
    }
    let nodes: BTreeSet<u64> = descriptor.replicas.iter().map(|replica| replica.node_id).collect();
    if nodes.len() != descriptor.replicas.len() {
        return Err("the snapshot names two replicas on one node".into());
    }
    // In a joint configuration this compares both halves.
    if *conf != crate::range::conf_state(descriptor) || conf.voters.is_empty() {
        return Err("the snapshot's message names other members than its descriptor".into());
    }
    Ok(())
}

fn check_records(chunks: &[Bytes], said: u64, descriptor: &v1::RangeDescriptor) -> Result<(), String> {
    let spans = spans(descriptor);
    let mut records = 0;
    for chunk in chunks {
        for_each_record(chunk, |key, _| {
            records += 1;
            if spans.iter().any(|(start, end)| key >= &start[..] && key < &end[..]) {
                return Ok(());
            }
            Err(corrupt("snapshot: a key lies outside of its range"))
        })
        .map_err(|error| error.to_string())?;
    }
    if records != said {
        return Err(format!("the snapshot has {records} records, its header says {said}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(
        version: u64,
        conf_ver: u64,
        end: &'static [u8],
        replicas: &[(u64, v1::ReplicaRole)],
    ) -> v1::RangeDescriptor {
        let replica = |(id, role): &(u64, v1::ReplicaRole)| v1::ReplicaDescriptor {
            replica_id: *id,
            node_id: *id,
            role: *role as i32,
        };
        v1::RangeDescriptor {
            range_id: 2,
            keyspace_id: 1,
            end: end.into(),
            epoch: Some(v1::Epoch { conf_ver, version }),
            replicas: replicas.iter().map(replica).collect(),
            ..Default::default()
        }
    }

    fn checked(snapshot: &v1::RangeDescriptor, held: Option<&v1::RangeDescriptor>, own: u64) -> Result<(), String> {
        let applied = v1::AppliedState { index: 7, term: 6, ..Default::default() };
        let header =
            v1::SnapshotHeader { descriptor: Some(snapshot.clone()), applied: Some(applied), ..Default::default() };
        let mut meta = SnapshotMetadata { index: 7, term: 6, ..Default::default() };
        meta.set_conf_state(crate::range::conf_state(snapshot));
        check(&SnapshotData { header, chunks: Chunks::default() }, &meta, held, own)
    }

    use v1::ReplicaRole::{Learner, Voter, VoterIncoming, VoterOutgoing};

    #[test]
    fn later_spans_and_members_are_taken_and_earlier_ones_refused() {
        let held = descriptor(3, 5, b"m", &[(1, Voter), (2, Learner)]);
        let is_taken = |snapshot: &v1::RangeDescriptor| checked(snapshot, Some(&held), 2).is_ok();
        assert!(is_taken(&held));
        assert!(is_taken(&descriptor(4, 5, b"f", &[(1, Voter), (2, Learner)])), "split since");
        assert!(is_taken(&descriptor(3, 6, b"m", &[(1, Voter), (2, Voter)])), "promoted since");
        let joint = [(1, VoterOutgoing), (2, VoterIncoming), (3, Voter)];
        assert!(is_taken(&descriptor(4, 9, b"f", &joint)), "in the middle of a change");
        assert!(!is_taken(&descriptor(2, 5, b"", &[(1, Voter), (2, Learner)])), "from before a split");
        assert!(!is_taken(&descriptor(4, 4, b"f", &[(1, Voter), (2, Learner)])), "from before a change of replicas");
        assert!(!is_taken(&descriptor(3, 5, b"f", &[(1, Voter), (2, Learner)])), "another span, same version");
        assert!(!is_taken(&descriptor(3, 5, b"m", &[(1, Voter), (2, Voter)])), "other members, same conf_ver");
        assert!(!is_taken(&v1::RangeDescriptor { range_id: 3, ..held.clone() }), "another range");
        assert!(!is_taken(&descriptor(3, 6, b"m", &[(1, Voter), (3, Learner)])), "without its receiver");
    }

    #[test]
    fn a_replica_that_knows_nothing_yet_takes_any_span_that_names_it() {
        let snapshot = descriptor(3, 5, b"m", &[(1, Voter), (2, Learner)]);
        assert_eq!(checked(&snapshot, None, 2), Ok(()));
        assert!(checked(&snapshot, None, 3).is_err());
        let blank = v1::RangeDescriptor { range_id: 2, keyspace_id: 1, ..Default::default() };
        assert_eq!(checked(&snapshot, Some(&blank), 2), Ok(()));
        let nowhere = descriptor(3, 5, b"m", &[(2, Learner)]);
        assert!(checked(&nowhere, None, 2).is_err(), "no voter");
    }
}
