//! WAL files and MANIFESTs that RocksDB never wrote: the audit refuses them, or finds in them what is there.

use flotilla_hostile::{Decoder, Rng};

use super::batch::{Batch, mark};
use super::log_file::{BLOCK_BYTES, LogFile};
use super::manifest::Edits;

fn varint(number: u64, bytes: &mut Vec<u8>) {
    let mut rest = number;
    while rest >= 0x80 {
        bytes.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
}

fn string(text: &[u8], bytes: &mut Vec<u8>) {
    varint(text.len() as u64, bytes);
    bytes.extend_from_slice(text);
}

/// A batch with some puts, and a mark perhaps.
fn batch(rng: &mut Rng) -> Vec<u8> {
    let (first, puts) = (rng.u64(2..1 << 40), rng.u32(..5));
    let mut bytes = [&first.to_le_bytes()[..], &puts.to_le_bytes()].concat();
    if rng.bool() {
        bytes.push(3);
        string(&mark(rng.u64(..first)), &mut bytes);
    }
    for _ in 0..puts {
        bytes.push(5);
        varint(rng.u64(..4), &mut bytes);
        string(b"key", &mut bytes);
        string(flotilla_hostile::wire::text(rng).as_bytes(), &mut bytes);
    }
    bytes
}

#[test]
fn batches() {
    Decoder::generated("WAL: batch", batch)
        .memory(0, 64)
        .check(|input| Batch::decode(input).map(|batch| (batch, input.clone())), |(_, input)| input.to_vec());
}

fn fragment(kind: u8, data: &[u8]) -> Vec<u8> {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&[kind]), data).rotate_right(15).wrapping_add(0xA282_EAD8);
    let length = u16::try_from(data.len()).expect("it fits into a block");
    [&crc.to_le_bytes()[..], &length.to_le_bytes(), &[kind], data].concat()
}

/// A file of some records, one of them over two blocks now and then.
fn file(rng: &mut Rng) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..=rng.u8(..4)).flat_map(|_| fragment(1, &batch(rng))).collect();
    if rng.u8(..) == 0 {
        let room = BLOCK_BYTES - bytes.len() - 7;
        bytes.extend(fragment(2, &vec![7; room]));
        bytes.extend(fragment(4, &vec![7; rng.usize(..64)]));
    }
    bytes
}

#[test]
fn log_files() {
    // Copies of records that lie in several blocks, and the test's own list.
    Decoder::generated("WAL: file", file).memory(40, 4_096).check(
        |input| {
            let file = LogFile::new(input, 9);
            let (mut at, mut ends) = (0, Vec::new());
            loop {
                match file.record(at) {
                    Ok(Some(record)) => {
                        assert!(at <= record.offset && record.offset < record.end && record.end <= input.len());
                        at = record.end;
                        ends.push(at);
                    }
                    Ok(None) => break,
                    Err(bad) => {
                        assert!(at <= bad.offset);
                        let next = file.next_intact(bad.offset, |data| Batch::decode(data).is_some());
                        assert!(next.is_none_or(|next| next.offset > bad.offset && next.end <= input.len()));
                        return None;
                    }
                }
            }
            Some(input.clone())
        },
        |input| input.to_vec(),
    );
}

/// An edit with some of the fields that matter.
fn edit(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..=rng.u8(..4) {
        let tag = [2, 3, 4, 9, 10, 200, 203][rng.usize(..7)];
        varint(tag, &mut bytes);
        varint(rng.u64(..1 << 20), &mut bytes);
    }
    if rng.bool() {
        varint(201, &mut bytes);
        string(b"log", &mut bytes);
    }
    bytes
}

#[test]
fn manifests() {
    // Families and single numbers are kept in trees.
    Decoder::generated("MANIFEST: edit", edit).memory(64, 2_048).check(
        |input| {
            let mut edits = Edits::default();
            edits.apply(input).map(|()| input.clone())
        },
        |input| input.to_vec(),
    );
}
