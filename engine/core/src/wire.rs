//! Raft messages to and from their form on the wire.
//!
//! Messages travel as our own protobuf types, because raft-rs' decoder (rust-protobuf 2,
//! RUSTSEC-2024-0437) can be driven into deep recursion by hostile input. What comes in is checked
//! here: only message types that one replica may send to another pass, and only with contents that can be.
//! What can be told only with the replica's state at hand is checked by the range.

use flotilla_proto::v1;
use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType, Snapshot};

/// Why a peer's message was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A type that is unknown, or only ever local.
    #[error("message type {0} is not one that nodes send each other")]
    MessageType(u32),
    /// An entry type that is unknown.
    #[error("entry type {0} is unknown")]
    EntryType(u32),
    /// What no replica sends that works as it should.
    #[error("{0}")]
    Nonsense(&'static str),
}

/// No term or index comes near this; one that does is an error, and sums with it could wrap.
const NUMBER_MAX: u64 = 1 << 62;

/// raft-rs' message types that nodes send each other, by their numbers in eraftpb.proto. Proposals
/// are missing on purpose: raft-rs forwards them silently, and ours never leave the leader.
fn message_type(number: u32) -> Option<MessageType> {
    use MessageType::*;
    [
        MsgAppend,
        MsgAppendResponse,
        MsgRequestVote,
        MsgRequestVoteResponse,
        MsgSnapshot,
        MsgHeartbeat,
        MsgHeartbeatResponse,
        MsgTimeoutNow,
        MsgRequestPreVote,
        MsgRequestPreVoteResponse,
    ]
    .into_iter()
    .find(|kind| *kind as u32 == number)
}

/// The entry type of this number.
pub fn entry_type(number: u32) -> Option<EntryType> {
    [EntryType::EntryNormal, EntryType::EntryConfChange, EntryType::EntryConfChangeV2]
        .into_iter()
        .find(|kind| *kind as u32 == number)
}

/// Whether a message of this type may leave the node.
pub fn may_travel(kind: MessageType) -> bool {
    message_type(kind as u32).is_some()
}

/// A message in its form on the wire; the caller adds range and stamps.
pub fn to_wire(message: Message) -> v1::PeerMessage {
    let snapshot = message.snapshot.as_ref().filter(|snapshot| snapshot.get_metadata().index != 0).map(|snapshot| {
        let meta = snapshot.get_metadata();
        v1::SnapshotMeta {
            index: meta.index,
            term: meta.term,
            voters: meta.get_conf_state().voters.clone(),
            learners: meta.get_conf_state().learners.clone(),
            voters_outgoing: meta.get_conf_state().voters_outgoing.clone(),
        }
    });
    v1::PeerMessage {
        from_replica: message.from,
        to_replica: message.to,
        message_type: message.get_msg_type() as u32,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        commit: message.commit,
        commit_term: message.commit_term,
        reject: message.reject,
        reject_hint: message.reject_hint,
        request_snapshot: message.request_snapshot,
        priority: message.priority,
        snapshot,
        context: message.context,
        entries: message
            .entries
            .into_iter()
            .map(|entry| v1::LogEntry {
                entry_type: entry.get_entry_type() as u32,
                term: entry.term,
                index: entry.index,
                data: entry.data,
            })
            .collect(),
        ..Default::default()
    }
}

/// A message from the wire, checked.
pub fn from_wire(wire: v1::PeerMessage) -> Result<Message, WireError> {
    let mut message = Message::default();
    message.set_msg_type(message_type(wire.message_type).ok_or(WireError::MessageType(wire.message_type))?);
    message.from = wire.from_replica;
    message.to = wire.to_replica;
    message.term = wire.term;
    message.log_term = wire.log_term;
    message.index = wire.index;
    message.commit = wire.commit;
    message.commit_term = wire.commit_term;
    message.reject = wire.reject;
    message.reject_hint = wire.reject_hint;
    message.request_snapshot = wire.request_snapshot;
    message.priority = wire.priority;
    message.context = wire.context;
    if let Some(meta) = wire.snapshot {
        message.set_snapshot(snapshot(&meta));
    }
    let mut entries = Vec::with_capacity(wire.entries.len());
    for from in wire.entries {
        let mut entry = Entry::default();
        entry.set_entry_type(entry_type(from.entry_type).ok_or(WireError::EntryType(from.entry_type))?);
        entry.term = from.term;
        entry.index = from.index;
        // A copy: a slice would keep the whole frame alive as long as the entry is cached.
        entry.data = bytes::Bytes::copy_from_slice(&from.data);
        entries.push(entry);
    }
    message.set_entries(entries.into());
    check(&message)?;
    Ok(message)
}

/// Whether a message can have come from a replica that works. raft-rs trusts its peers: to it term 0 is a
/// message of the own process, and it takes entries to stand behind the index that an append names.
fn check(message: &Message) -> Result<(), WireError> {
    let nonsense = |what| Err(WireError::Nonsense(what));
    let numbers = [message.term, message.log_term, message.index, message.commit, message.commit_term];
    if numbers.iter().chain([&message.reject_hint]).any(|number| *number > NUMBER_MAX) {
        return nonsense("a number in it is out of all bounds");
    }
    if message.term == 0 {
        return nonsense("it has no term");
    }
    if message.request_snapshot != 0 {
        return nonsense("it asks for a snapshot, which no replica does");
    }
    match message.get_msg_type() {
        MessageType::MsgAppend => check_append(message),
        MessageType::MsgSnapshot => {
            let meta = message.get_snapshot().get_metadata();
            if meta.term == 0 || meta.term > message.term || meta.index > NUMBER_MAX {
                return nonsense("its snapshot's term or index cannot be");
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn check_append(append: &Message) -> Result<(), WireError> {
    let nonsense = |what| Err(WireError::Nonsense(what));
    if append.log_term == 0 {
        return nonsense("it names no entry to append to");
    }
    let mut last_term = append.log_term;
    for (index, entry) in (append.index + 1..).zip(&append.entries) {
        if entry.index != index {
            return nonsense("its entries do not follow the index that it names");
        }
        if entry.term < last_term {
            return nonsense("its entries' terms fall");
        }
        last_term = entry.term;
    }
    if last_term > append.term {
        return nonsense("its entries are of a later term than itself");
    }
    Ok(())
}

/// raft-rs' snapshot of what `meta` says, without data.
pub fn snapshot(meta: &v1::SnapshotMeta) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let target = snapshot.mut_metadata();
    target.index = meta.index;
    target.term = meta.term;
    let mut conf = ConfState::from((meta.voters.clone(), meta.learners.clone()));
    conf.voters_outgoing.clone_from(&meta.voters_outgoing);
    target.set_conf_state(conf);
    snapshot
}
