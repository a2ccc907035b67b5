//! How descriptors are shown, for people and for programs.

use flotilla_proto::ids::{DEFAULT_KEYSPACE, DEFAULT_KEYSPACE_NAME, SYSTEM_KEYSPACE};
use flotilla_proto::v1;
use serde_json::{Value, json};
use v1::ReplicaRole;

use crate::cli::bytes::{KeyStyle, base64};

/// A leader's node, or a word that stands out.
pub fn leader(node: u64) -> String {
    if node == 0 { "none".into() } else { node.to_string() }
}

/// First key and first key behind, as they are printed.
pub fn bounds(descriptor: &v1::RangeDescriptor, style: KeyStyle) -> (String, String) {
    (start(&descriptor.start, style), end(&descriptor.end, style))
}

/// A span's first key.
pub fn start(key: &[u8], style: KeyStyle) -> String {
    if key.is_empty() { "(first)".into() } else { style.show(key) }
}

/// The first key behind a span.
pub fn end(key: &[u8], style: KeyStyle) -> String {
    if key.is_empty() { "(last)".into() } else { style.show(key) }
}

/// The nodes of a range's replicas by role: voters first, the others behind their role.
pub fn replicas(descriptor: &v1::RangeDescriptor) -> String {
    let with = |wanted: ReplicaRole| {
        let nodes = descriptor.replicas.iter().filter(|replica| replica.role() == wanted);
        nodes.map(|replica| replica.node_id.to_string()).collect::<Vec<_>>().join(",")
    };
    let mut text = with(ReplicaRole::Voter);
    for (role, word) in [
        (ReplicaRole::VoterIncoming, "incoming"),
        (ReplicaRole::VoterOutgoing, "outgoing"),
        (ReplicaRole::Learner, "learner"),
    ] {
        let nodes = with(role);
        if !nodes.is_empty() {
            text.push_str(&format!("{}{word} {nodes}", if text.is_empty() { "" } else { ", " }));
        }
    }
    text
}

/// Membership changes, and splits and merges.
pub fn epoch(descriptor: &v1::RangeDescriptor) -> String {
    let epoch = descriptor.epoch.unwrap_or_default();
    format!("{}.{}", epoch.conf_ver, epoch.version)
}

/// A keyspace's name, as far as it is known.
pub fn keyspace_name(id: u64, keyspaces: &[v1::Keyspace]) -> String {
    match keyspaces.iter().find(|keyspace| keyspace.keyspace_id == id) {
        Some(keyspace) => keyspace.name.clone(),
        // These two are always there, also before the answering node has heard of any.
        None if id == SYSTEM_KEYSPACE.0 => "system".into(),
        None if id == DEFAULT_KEYSPACE.0 => DEFAULT_KEYSPACE_NAME.into(),
        None => format!("(id {id})"),
    }
}

fn role(replica: &v1::ReplicaDescriptor) -> &'static str {
    match replica.role() {
        ReplicaRole::Voter => "voter",
        ReplicaRole::Learner => "learner",
        ReplicaRole::VoterIncoming => "incoming",
        ReplicaRole::VoterOutgoing => "outgoing",
    }
}

/// What a range is asked for, for programs.
pub fn load_json(load: Option<&v1::RangeLoad>) -> Value {
    let load = load.copied().unwrap_or_default();
    json!({
        "reads_per_s": load.reads_per_s,
        "writes_per_s": load.writes_per_s,
        "read_bytes_per_s": load.read_bytes_per_s,
        "write_bytes_per_s": load.write_bytes_per_s,
    })
}

/// A descriptor for programs.
pub fn descriptor_json(descriptor: &v1::RangeDescriptor) -> Value {
    let epoch = descriptor.epoch.unwrap_or_default();
    let replica = |replica: &v1::ReplicaDescriptor| json!({ "replica_id": replica.replica_id, "node_id": replica.node_id, "role": role(replica) });
    json!({
        "range_id": descriptor.range_id,
        "keyspace_id": descriptor.keyspace_id,
        "start": base64(&descriptor.start),
        "end": base64(&descriptor.end),
        "epoch": { "conf_ver": epoch.conf_ver, "version": epoch.version },
        "replicas": descriptor.replicas.iter().map(replica).collect::<Vec<_>>(),
    })
}

/// A range with its leader for programs.
pub fn status_json(status: &v1::RangeStatus) -> Value {
    let mut value = descriptor_json(&status.descriptor.clone().unwrap_or_default());
    value["leader_node_id"] = status.leader_node_id.into();
    value["term"] = status.term.into();
    value["data_bytes"] = status.data_bytes.into();
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A range with replicas of these roles on nodes 1, 2, ...
    fn range(roles: &[ReplicaRole]) -> v1::RangeDescriptor {
        let replica = |(at, role): (usize, &ReplicaRole)| v1::ReplicaDescriptor {
            replica_id: at as u64 + 1,
            node_id: at as u64 + 1,
            role: (*role).into(),
        };
        v1::RangeDescriptor {
            range_id: 7,
            start: bytes::Bytes::from_static(b"\x00"),
            replicas: roles.iter().enumerate().map(replica).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn replicas_are_shown_by_role() {
        use ReplicaRole::{Learner, Voter, VoterIncoming, VoterOutgoing};
        assert_eq!(replicas(&range(&[Voter, Voter, Voter])), "1,2,3");
        assert_eq!(replicas(&range(&[Voter, Learner])), "1, learner 2");
        let joint = range(&[Voter, VoterOutgoing, VoterIncoming, Voter]);
        assert_eq!(replicas(&joint), "1,4, incoming 3, outgoing 2");
        assert_eq!(replicas(&range(&[])), "");
    }

    #[test]
    fn bounds_and_bytes_are_shown_for_people_and_programs() {
        let descriptor = range(&[ReplicaRole::Learner]);
        assert_eq!(bounds(&descriptor, KeyStyle::default()), ("\\x00".into(), "(last)".into()));
        let status = v1::RangeStatus {
            descriptor: Some(descriptor),
            leader_node_id: 2,
            term: 6,
            data_bytes: 9,
            ..Default::default()
        };
        let value = status_json(&status);
        assert_eq!(value["start"], "AA==");
        assert_eq!(value["end"], "");
        assert_eq!((&value["leader_node_id"], &value["data_bytes"]), (&2.into(), &9.into()));
        assert_eq!(value["replicas"][0]["role"], "learner");
    }

    #[test]
    fn keyspaces_have_names() {
        let keyspaces = [v1::Keyspace { keyspace_id: 1, name: "default".into(), ..Default::default() }];
        assert_eq!(keyspace_name(1, &keyspaces), "default");
        assert_eq!(keyspace_name(SYSTEM_KEYSPACE.0, &keyspaces), "system");
        assert_eq!(keyspace_name(1, &[]), "default");
        assert_eq!(keyspace_name(9, &keyspaces), "(id 9)");
    }
}
