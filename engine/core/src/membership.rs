//! Changes of a range's replicas: what may follow a descriptor, and what Raft is to be told of it.
//!
//! Voters change through joint consensus, left explicitly (Raft thesis 4.3; etcd's and CockroachDB's form of
//! it): learners are added one by one, promoted together with the going of those that they replace, and the joint
//! configuration, in which both sets of voters must agree, is left by an entry of its own. The descriptor holds
//! the whole configuration, joint or not, so that Raft's own can always be made from it.

use flotilla_proto::v1::{self, ReplicaRole};
use prost::Message;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};

use crate::command::{self, CommandError};

/// Whether a range is in a joint configuration.
pub fn is_joint(descriptor: &v1::RangeDescriptor) -> bool {
    descriptor.replicas.iter().any(|of| matches!(of.role(), ReplicaRole::VoterIncoming | ReplicaRole::VoterOutgoing))
}

/// The replicas after a joint configuration is left.
pub fn left(descriptor: &v1::RangeDescriptor) -> Vec<v1::ReplicaDescriptor> {
    let staying = descriptor.replicas.iter().filter(|replica| replica.role() != ReplicaRole::VoterOutgoing);
    staying
        .map(|replica| {
            let role = if replica.role() == ReplicaRole::VoterIncoming { ReplicaRole::Voter } else { replica.role() };
            v1::ReplicaDescriptor { role: role.into(), ..*replica }
        })
        .collect()
}

/// The replicas of a joint configuration in which learners on `promote` become voters, and voters on `demote` go.
pub fn joint(descriptor: &v1::RangeDescriptor, promote: &[u64], demote: &[u64]) -> Vec<v1::ReplicaDescriptor> {
    let role = |replica: &v1::ReplicaDescriptor| match replica.role() {
        ReplicaRole::Learner if promote.contains(&replica.node_id) => ReplicaRole::VoterIncoming,
        ReplicaRole::Voter if demote.contains(&replica.node_id) => ReplicaRole::VoterOutgoing,
        other => other,
    };
    let change = |replica: &v1::ReplicaDescriptor| v1::ReplicaDescriptor { role: role(replica).into(), ..*replica };
    descriptor.replicas.iter().map(change).collect()
}

/// Ids of those who vote in the newer configuration.
pub fn voters(replicas: &[v1::ReplicaDescriptor]) -> Vec<u64> {
    ids(replicas, |role| matches!(role, ReplicaRole::Voter | ReplicaRole::VoterIncoming))
}

/// Ids of those who vote in the older configuration, where the two differ; otherwise empty.
pub fn old_voters(replicas: &[v1::ReplicaDescriptor]) -> Vec<u64> {
    let joint =
        !ids(replicas, |role| matches!(role, ReplicaRole::VoterIncoming | ReplicaRole::VoterOutgoing)).is_empty();
    if joint {
        ids(replicas, |role| matches!(role, ReplicaRole::Voter | ReplicaRole::VoterOutgoing))
    } else {
        Vec::new()
    }
}

fn ids(replicas: &[v1::ReplicaDescriptor], which: impl Fn(ReplicaRole) -> bool) -> Vec<u64> {
    replicas.iter().filter(|replica| which(replica.role())).map(|replica| replica.replica_id).collect()
}

/// What Raft is told of a change from `old` to `new`: to enter a joint configuration, to leave it, or to add or
/// remove one learner.
pub fn conf_change(old: &v1::RangeDescriptor, new: &[v1::ReplicaDescriptor]) -> ConfChangeV2 {
    let mut change = ConfChangeV2::default();
    if is_joint(old) {
        return change;
    }
    let mut singles: Vec<ConfChangeSingle> = Vec::new();
    let mut single = |kind, replica: &v1::ReplicaDescriptor| {
        let mut single = ConfChangeSingle { node_id: replica.replica_id, ..Default::default() };
        single.set_change_type(kind);
        singles.push(single);
    };
    let mut joint = false;
    for replica in new {
        let before = old.replicas.iter().find(|of| of.replica_id == replica.replica_id).map(|of| of.role());
        match replica.role() {
            ReplicaRole::VoterIncoming => single(ConfChangeType::AddNode, replica),
            ReplicaRole::VoterOutgoing => single(ConfChangeType::RemoveNode, replica),
            ReplicaRole::Learner if before.is_none() => single(ConfChangeType::AddLearnerNode, replica),
            _ => continue,
        }
        joint |= replica.role() != ReplicaRole::Learner;
    }
    for replica in &old.replicas {
        if !new.iter().any(|of| of.replica_id == replica.replica_id) {
            single(ConfChangeType::RemoveNode, replica);
        }
    }
    change.set_changes(singles.into());
    change.set_transition(if joint { ConfChangeTransition::Explicit } else { ConfChangeTransition::Auto });
    change
}

/// Whether `new` can follow `old` in one step; the words say why not.
pub fn check_step(old: &v1::RangeDescriptor, new: &[v1::ReplicaDescriptor]) -> Result<(), String> {
    if voters(new).is_empty() {
        return Err("no voter would be left".into());
    }
    let mut ids: Vec<u64> = new.iter().map(|replica| replica.replica_id).collect();
    let mut nodes: Vec<u64> = new.iter().map(|replica| replica.node_id).collect();
    for list in [&mut ids, &mut nodes] {
        list.sort_unstable();
        if list.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("a replica or a node is named twice".into());
        }
    }
    if is_joint(old) {
        return if new == left(old) { Ok(()) } else { Err("a joint configuration can only be left".into()) };
    }
    let role_of = |id: u64| old.replicas.iter().find(|of| of.replica_id == id).map(|of| of.role());
    let changed = conf_change(old, new);
    let enters = changed.get_transition() == ConfChangeTransition::Explicit;
    let allowed = new.iter().all(|replica| {
        let before = role_of(replica.replica_id);
        match replica.role() {
            ReplicaRole::Voter => before == Some(ReplicaRole::Voter),
            ReplicaRole::Learner => before.is_none() || before == Some(ReplicaRole::Learner),
            ReplicaRole::VoterIncoming => before == Some(ReplicaRole::Learner),
            ReplicaRole::VoterOutgoing => before == Some(ReplicaRole::Voter),
        }
    });
    let gone = old.replicas.iter().filter(|of| !new.iter().any(|replica| replica.replica_id == of.replica_id));
    let learners_go = gone.clone().all(|of| of.role() == ReplicaRole::Learner);
    if !allowed || !learners_go || (enters && gone.count() > 0) || (!enters && changed.get_changes().len() != 1) {
        return Err("it is not one step of a change of replicas".into());
    }
    Ok(())
}

/// The bytes of a Raft entry that makes this change, with our own command as its context.
pub(crate) fn encode(change: &ConfChangeV2, command: &v1::Command) -> Vec<u8> {
    let single = |single: &ConfChangeSingle| v1::RaftConfChangeSingle {
        change_type: single.get_change_type() as i32,
        node_id: single.node_id,
    };
    v1::RaftConfChange {
        transition: change.get_transition() as i32,
        changes: change.get_changes().iter().map(single).collect(),
        context: command::encode(command),
    }
    .encode_to_vec()
}

/// The bytes of our own command in such an entry.
pub(crate) fn context(data: bytes::Bytes) -> Result<bytes::Bytes, CommandError> {
    let change = v1::RaftConfChange::decode(data).map_err(|error| CommandError::Corrupt(error.to_string()))?;
    Ok(change.context)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(roles: &[(u64, ReplicaRole)]) -> v1::RangeDescriptor {
        let replica = |(id, role): &(u64, ReplicaRole)| v1::ReplicaDescriptor {
            replica_id: *id,
            node_id: *id + 10,
            role: (*role).into(),
        };
        v1::RangeDescriptor { range_id: 2, replicas: roles.iter().map(replica).collect(), ..Default::default() }
    }

    use ReplicaRole::{Learner, Voter, VoterIncoming, VoterOutgoing};

    #[test]
    fn a_replacement_goes_through_a_joint_configuration() {
        let old = descriptor(&[(1, Voter), (2, Voter), (3, Voter), (4, Learner)]);
        let joint = joint(&old, &[14], &[11]);
        assert_eq!(joint, descriptor(&[(1, VoterOutgoing), (2, Voter), (3, Voter), (4, VoterIncoming)]).replicas);
        assert_eq!((voters(&joint), old_voters(&joint)), (vec![2, 3, 4], vec![1, 2, 3]));
        assert_eq!(check_step(&old, &joint), Ok(()));
        let change = conf_change(&old, &joint);
        assert!(change.enter_joint() == Some(false), "it is left by an entry of its own");
        let entered = v1::RangeDescriptor { replicas: joint, ..old };
        assert!(conf_change(&entered, &left(&entered)).leave_joint());
        assert_eq!(left(&entered), descriptor(&[(2, Voter), (3, Voter), (4, Voter)]).replicas);
    }

    #[test]
    fn learners_come_and_go_one_at_a_time() {
        let old = descriptor(&[(1, Voter), (2, Learner)]);
        for (roles, allowed) in [
            (&[(1, Voter)][..], true),
            (&[(1, Voter), (2, Learner), (3, Learner)], true),
            (&[(1, Voter), (2, Learner), (3, Learner), (4, Learner)], false),
            (&[(1, Voter), (2, Voter)], false),
            (&[(2, VoterIncoming)], false),
            (&[(1, VoterOutgoing), (2, Learner)], false),
            (&[(1, Learner), (2, VoterIncoming)], false),
            (&[(1, Voter), (2, Learner)], false),
        ] {
            assert_eq!(check_step(&old, &descriptor(roles).replicas).is_ok(), allowed, "{roles:?}");
        }
    }

    #[test]
    fn the_bytes_are_those_that_raft_reads() {
        let old = descriptor(&[(1, Voter), (2, Learner)]);
        let change = conf_change(&old, &joint(&old, &[12], &[]));
        let command = v1::Command { range_id: 2, ..Default::default() };
        let bytes = encode(&change, &command);
        let mut read = ConfChangeV2::default();
        protobuf::Message::merge_from_bytes(&mut read, &bytes).expect("raft-rs reads it");
        assert_eq!((read.get_transition(), read.get_changes()), (change.get_transition(), change.get_changes()));
        assert_eq!(context(bytes.into()).expect("so do we"), command::encode(&command));
    }
}
