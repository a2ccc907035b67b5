//! Keys, records, commands and messages that nobody should have sent or stored: refused, or taken as they are.

use bytes::Bytes;
use flotilla_hostile::{Decoder, wire as protobuf};
use flotilla_proto::memory::Shaped;
use flotilla_proto::{KeyspaceId, RangeId, v1};
use prost::Message;
use raft::eraftpb::{ConfChangeSingle, ConfChangeV2};

use crate::{command, keys, membership, record, wire};

/// What the words of a refusal take, and what a decoder takes besides.
const WORDS_BYTES: usize = 1_024;

/// Makes the crc in front of a record or command right.
fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.len() >= 4 {
        let crc = crc32fast::hash(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_be_bytes());
    }
    bytes
}

fn memory_behind<M: Shaped>(head: usize) -> impl Fn(&[u8]) -> usize {
    move |input| {
        let body = input.get(head..).unwrap_or_default();
        M::SHAPE.decoded(body).map_or(usize::MAX, |memory| memory + input.len() + WORDS_BYTES)
    }
}

fn records<M: Message + Default + Shaped>() {
    let valid = |rng: &mut _| {
        let body = protobuf::message(rng, M::SHAPE);
        record::encode(&M::decode(&body[..]).expect("its shape is right"))
    };
    Decoder::generated("record", valid)
        .of(M::SHAPE.name)
        .sealed(seal)
        .protobuf(5)
        .memory_of(memory_behind::<M>(5))
        .check(|input| record::decode::<M>(input, "record").ok(), |message| record::encode(message));
}

#[test]
fn records_of_protobufs() {
    records::<v1::AppliedState>();
    records::<v1::KnownNodes>();
    records::<v1::KnownStores>();
    records::<v1::MergeState>();
    records::<v1::RaftState>();
    records::<v1::RangeDescriptor>();
    records::<v1::RangeRecoveries>();
    records::<v1::SnapshotIntent>();
    records::<v1::Splits>();
    records::<v1::StoreIdentity>();
    records::<v1::Tombstone>();
}

#[test]
fn log_entries() {
    let entry = raft::eraftpb::Entry { term: 3, index: 9, data: Bytes::from_static(b"data"), ..Default::default() };
    Decoder::new("record: log entry", vec![record::encode_entry(&entry), record::encode_entry(&Default::default())])
        .sealed(seal)
        .check(|input| record::decode_entry(9, input.clone()).ok(), record::encode_entry);
}

#[test]
fn values() {
    let samples = vec![record::encode_value(258, 0, b"value"), record::encode_value(258, 3, b"")];
    Decoder::new("record: value", samples).check(
        |input| {
            let stored = record::decode_value(input.clone()).ok();
            let head = record::value_head(input).ok();
            assert_eq!(stored.as_ref().map(|stored| (stored.version, stored.deadline_ms)), head);
            stored
        },
        |stored| record::encode_value(stored.version, stored.deadline_ms, &stored.value),
    );
}

#[test]
fn the_expiry_index() {
    Decoder::new("record: expiry", vec![record::encode_expiry(258, 3).into()]).check(
        |input| record::decode_expiry(input).ok(),
        |(version, deadline_ms)| record::encode_expiry(*version, *deadline_ms).into(),
    );
}

#[test]
fn user_keys() {
    let valid = |rng: &mut flotilla_hostile::Rng| {
        let key: Vec<u8> = (0..rng.usize(..12)).map(|_| if rng.bool() { 0 } else { rng.u8(..) }).collect();
        keys::data(KeyspaceId(rng.u64(..3)), &key)
    };
    let keyspace = |key: &[u8]| KeyspaceId(u64::from(u32::from_be_bytes(key[1..5].try_into().expect("four bytes"))));
    Decoder::generated("key: data", valid).check(
        |input| {
            let user = keys::user_key(input);
            // What RocksDB's filters take for the key's prefix is all of it.
            assert!(user.is_none() || keys::bloom_prefix_len(input) == Some(input.len()));
            assert!(keys::bloom_prefix_len(input).is_none_or(|length| length <= input.len()));
            user.map(|user| (keyspace(input), user))
        },
        |(keyspace, user)| keys::data(*keyspace, user),
    );
    let valid =
        |rng: &mut flotilla_hostile::Rng| keys::expiry(KeyspaceId(1), flotilla_hostile::wire::text(rng).as_bytes());
    Decoder::generated("key: expiry", valid).check(
        |input| keys::expiry_user_key(input).map(|user| (keyspace(input), user)),
        |(keyspace, user)| keys::expiry(*keyspace, user),
    );
}

#[test]
fn keys_of_ranges() {
    Decoder::new("key: log entry", vec![keys::log_entry(RangeId(2), 258).into()])
        .check(|input| keys::log_entry_index(input), |(range, index)| keys::log_entry(*range, *index).into());
    Decoder::new("key: Raft state", vec![keys::raft_state(RangeId(2)).into()])
        .check(|input| keys::raft_state_range(input), |range| keys::raft_state(*range).into());
    let sample = keys::range_record(RangeId(2), keys::RangeRecord::Applied);
    Decoder::new("key: record of a range", vec![sample.into()]).check(
        |input| keys::range_record_parts(input),
        |(range, what)| {
            let mut key = keys::range_record(*range, keys::RangeRecord::Applied);
            key[9] = *what;
            key.into()
        },
    );
}

#[test]
fn commands() {
    let valid = |rng: &mut _| {
        let body = protobuf::message(rng, v1::Command::SHAPE);
        command::encode(&v1::Command::decode(&body[..]).expect("its shape is right")).into()
    };
    Decoder::generated("command", valid).sealed(seal).protobuf(5).memory_of(memory_behind::<v1::Command>(5)).check(
        |input| command::decode(input.clone()).ok().map(|(command, _)| command),
        |command| command::encode(command).into(),
    );
}

#[test]
fn changes_of_members() {
    let mut change = ConfChangeV2::default();
    change.mut_changes().push(ConfChangeSingle { node_id: 4, ..Default::default() });
    let sample = membership::encode(&change, &v1::Command { range_id: 2, ..Default::default() });
    Decoder::new("command: change of members", vec![sample])
        .protobuf(0)
        .memory_of(memory_behind::<v1::RaftConfChange>(0))
        .check(
            |input| membership::context(input.clone()).ok(),
            |context| v1::RaftConfChange { context: context.clone(), ..Default::default() }.encode_to_vec(),
        );
}

#[test]
fn messages() {
    // Any message by its shape, most of which Raft never sends, and appends as it does.
    let valid = |rng: &mut flotilla_hostile::Rng| {
        let entry = |step| v1::LogEntry { entry_type: 0, term: 6, index: 8 + step, data: "data".into() };
        let append = v1::PeerMessage {
            range_id: 2,
            from_replica: 1,
            to_replica: 2,
            message_type: raft::eraftpb::MessageType::MsgAppend as u32,
            term: 6,
            log_term: 5,
            index: 7,
            entries: (0..rng.u64(..4)).map(entry).collect(),
            ..Default::default()
        };
        append.encode_to_vec()
    };
    let refused = protobuf::message(&mut flotilla_hostile::Rng::with_seed(1), v1::PeerMessage::SHAPE);
    Decoder::generated("peer: message", valid)
        .regression(refused)
        .protobuf(0)
        // Each entry stands there twice for a moment: as it came, and as Raft takes it.
        .memory_of(|input| {
            3 * v1::PeerMessage::SHAPE.decoded(input).map_or(usize::MAX / 4, |memory| memory + WORDS_BYTES)
        })
        .check(
            |input| wire::from_wire(v1::PeerMessage::decode(input.clone()).ok()?).ok(),
            |message| wire::to_wire(message.clone()).encode_to_vec(),
        );
}
