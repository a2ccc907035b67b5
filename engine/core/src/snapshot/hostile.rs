//! Snapshots that nobody should have sent: their headers, and the pieces behind them.

use bytes::Bytes;
use flotilla_hostile::{Decoder, wire};
use flotilla_proto::memory::Shaped;
use flotilla_proto::v1;
use prost::Message;
use raft::eraftpb::SnapshotMetadata;

use super::chunk::{Cutter, for_each_record};
use super::{Chunks, SnapshotData, check, check_header};
use crate::keys;

const WORDS_BYTES: usize = 1_024;

fn seal(mut chunk: Vec<u8>) -> Vec<u8> {
    if chunk.len() >= 4 {
        let crc = crc32fast::hash(&chunk[4..]);
        chunk[..4].copy_from_slice(&crc.to_be_bytes());
    }
    chunk
}

fn chunk_of(records: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut cutter = Cutter::default();
    records.iter().for_each(|(key, value)| assert!(cutter.push(key, value).is_none(), "small"));
    cutter.finish().unwrap_or_default().into()
}

fn descriptor() -> v1::RangeDescriptor {
    let replica = v1::ReplicaDescriptor { replica_id: 1, node_id: 1, role: v1::ReplicaRole::Voter as i32 };
    v1::RangeDescriptor {
        range_id: 2,
        keyspace_id: 1,
        epoch: Some(v1::Epoch { conf_ver: 1, version: 1 }),
        replicas: vec![replica],
        ..Default::default()
    }
}

#[test]
fn chunks() {
    let records: Vec<_> = (0..4_u8).map(|at| (vec![at; 3], vec![at; usize::from(at)])).collect();
    Decoder::new("snapshot: chunk", vec![chunk_of(&records), chunk_of(&records[..1])])
        .sealed(seal)
        // The list that the test makes of them.
        .memory(80, 2_048)
        .check(
            |input| {
                let mut records = Vec::new();
                let read = for_each_record(input, |key, value| {
                    records.push((key.to_vec(), value.to_vec()));
                    Ok(())
                });
                // An empty one is never made.
                (read.is_ok() && !records.is_empty()).then_some(records)
            },
            |records| chunk_of(records),
        );
}

/// What a replica says of a snapshot that comes to it with this header, and no records or those of one chunk.
fn admitted(header: &v1::SnapshotHeader, chunk: Option<Bytes>, held: Option<&v1::RangeDescriptor>) -> bool {
    let (Some(descriptor), Some(applied)) = (&header.descriptor, header.applied) else { return false };
    let mut meta = SnapshotMetadata { index: applied.index, term: applied.term, ..Default::default() };
    meta.set_conf_state(crate::range::conf_state(descriptor));
    let data =
        SnapshotData { header: header.clone(), chunks: Chunks::Memory(chunk.into_iter().collect::<Vec<_>>().into()) };
    let whole = check(&data, &meta, held, 1).is_ok();
    let by_header = held.is_none_or(|held| check_header(header, held).is_ok());
    assert!(!whole || by_header, "refused by its header, and taken: {header:?}");
    whole
}

#[test]
fn headers() {
    let header = v1::SnapshotHeader {
        descriptor: Some(descriptor()),
        applied: Some(v1::AppliedState { index: 7, term: 6, ..Default::default() }),
        ..Default::default()
    };
    let held = descriptor();
    let mut of_no_keyspace = header.clone();
    of_no_keyspace.descriptor.as_mut().expect("set").keyspace_id = u64::MAX;
    Decoder::new("snapshot: header", vec![header.encode_to_vec()])
        .regression(of_no_keyspace.encode_to_vec())
        .protobuf(0)
        .memory_of(|input| {
            let memory = v1::SnapshotHeader::SHAPE.decoded(input).map_or(usize::MAX / 8, |memory| memory);
            4 * memory + 4 * WORDS_BYTES
        })
        .check(
            |input| {
                let header = v1::SnapshotHeader::decode(input.clone()).ok()?;
                // Whoever knows nothing of the range yet takes more.
                let (known, unknown) = (admitted(&header, None, Some(&held)), admitted(&header, None, None));
                assert!(!known || unknown);
                known.then_some(header)
            },
            v1::SnapshotHeader::encode_to_vec,
        );
}

#[test]
fn records_behind_a_header() {
    let header = |records| v1::SnapshotHeader {
        descriptor: Some(descriptor()),
        applied: Some(v1::AppliedState { index: 7, term: 6, ..Default::default() }),
        records,
        ..Default::default()
    };
    let valid = |rng: &mut flotilla_hostile::Rng| {
        let mut keys: Vec<_> = (0..=rng.u8(..4)).map(|_| wire::text(rng)).collect();
        keys.sort();
        let key = |key: &String| (keys::data(flotilla_proto::KeyspaceId(1), key.as_bytes()), vec![1; 9]);
        chunk_of(&keys.iter().map(key).collect::<Vec<_>>())
    };
    let held = descriptor();
    Decoder::generated("snapshot: records", valid).sealed(seal).memory(8, 8_192).check(
        |input| {
            let mut count = 0;
            for_each_record(input, |_, _| {
                count += 1;
                Ok(())
            })
            .ok()?;
            admitted(&header(count), Some(input.clone()), Some(&held)).then(|| input.clone())
        },
        |input| input.to_vec(),
    );
}
