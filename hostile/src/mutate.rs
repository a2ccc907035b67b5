//! Mutations: what becomes of a valid encoding on a bad day, or in bad hands.

use fastrand::Rng;

use crate::wire::{self, Value};

/// Bytes of a random input, most often far fewer.
const RANDOM_BYTES_MAX: usize = 512;
/// Pieces are repeated so often, now and then.
const REPEATED_MAX: usize = 2_048;
/// And inputs do not grow beyond this by it.
const INPUT_BYTES_MAX: usize = 64 << 10;

/// Numbers at the ends of what there is.
const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x0fff_ffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 62,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

/// Random bytes, of a random length.
pub fn random(rng: &mut Rng) -> Vec<u8> {
    let length = rng.usize(..=RANDOM_BYTES_MAX) >> rng.u8(..9);
    (0..length).map(|_| rng.u8(..)).collect()
}

/// A number at an end of what there is, or near it.
pub fn extreme(rng: &mut Rng) -> u64 {
    let number = NUMBERS[rng.usize(..NUMBERS.len())];
    match rng.u8(..4) {
        0 => number.wrapping_add(1),
        1 => number.wrapping_sub(1),
        _ => number,
    }
}

/// A place within a length, its end included, and what is left from there.
fn piece(rng: &mut Rng, length: usize) -> std::ops::Range<usize> {
    let start = rng.usize(..=length);
    start..start + (rng.usize(..=length - start) >> rng.u8(..5))
}

/// Changes bytes in one to four ways. `other`: another valid encoding, of which a part may come in.
pub fn bytes(rng: &mut Rng, input: &mut Vec<u8>, words: &[&str], other: impl Fn() -> Vec<u8>) {
    for _ in 0..=rng.u8(..4) {
        let length = input.len();
        let at = rng.usize(..=length);
        match rng.u8(..12) {
            0 | 1 if length > 0 => input[at % length] ^= 1 << rng.u8(..8),
            2 if length > 0 => input[at % length] = rng.u8(..),
            3 => input.truncate(at),
            4 => drop(input.splice(at..at, random(rng))),
            5 => drop(input.drain(piece(rng, length))),
            6 => {
                let copied = input[piece(rng, length)].to_vec();
                input.splice(at..at, copied);
            }
            7 => {
                let part = other();
                let part = part[piece(rng, part.len())].to_vec();
                input.splice(piece(rng, length), part);
            }
            8 => overwrite(rng, input, at),
            9 => drop(input.splice(at..at, varint(extreme(rng)))),
            10 if rng.u8(..64) == 0 => repeat(rng, input, at),
            _ if !words.is_empty() => drop(input.splice(at..at, words[rng.usize(..words.len())].bytes())),
            _ => {}
        }
    }
}

/// Puts an extreme number over one, two, four or eight bytes, in either order: a length, most often.
fn overwrite(rng: &mut Rng, input: &mut [u8], at: usize) {
    let width = 1 << rng.u8(..4);
    let number = extreme(rng);
    let bytes =
        if rng.bool() { number.to_le_bytes()[..width].to_vec() } else { number.to_be_bytes()[8 - width..].to_vec() };
    input[at..].iter_mut().zip(bytes).for_each(|(old, new)| *old = new);
}

/// A piece, very often.
fn repeat(rng: &mut Rng, input: &mut Vec<u8>, at: usize) {
    let piece = input[piece(rng, input.len())].to_vec();
    let times = rng.usize(..REPEATED_MAX).min(INPUT_BYTES_MAX / piece.len().max(1));
    input.splice(at..at, piece.repeat(times));
}

fn varint(number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_varint(number, &mut bytes);
    bytes
}

/// Changes the fields of a protobuf, at any depth; the lengths around them stay right.
pub fn fields(rng: &mut Rng, protobuf: &[u8]) -> Vec<u8> {
    let Some(mut fields) = wire::parse(protobuf) else { return protobuf.to_vec() };
    for _ in 0..=rng.u8(..3) {
        change(rng, &mut fields);
    }
    wire::encode(&fields)
}

fn change(rng: &mut Rng, fields: &mut Vec<wire::Field>) {
    if fields.is_empty() {
        let value = if rng.bool() { Value::Varint(extreme(rng)) } else { Value::Bytes(random(rng)) };
        return fields.push(wire::Field { number: rng.u32(1..24), value });
    }
    let at = rng.usize(..fields.len());
    if let Value::Message(within) = &mut fields[at].value
        && rng.u8(..4) > 0
    {
        return change(rng, within);
    }
    match rng.u8(..8) {
        0 => drop(fields.remove(at)),
        1 => fields.insert(rng.usize(..=fields.len()), fields[at].clone()),
        2 => {
            let other = rng.usize(..fields.len());
            fields.swap(at, other);
        }
        3 => fields[at].number = rng.u32(1..24),
        4 => fields[at].value = Value::Varint(extreme(rng)),
        5 => fields[at].value = Value::Bytes(random(rng)),
        6 if rng.u8(..64) == 0 => {
            // Very many of one field, often empty ones.
            let mut field = fields[at].clone();
            if rng.bool() {
                field.value = Value::Bytes(Vec::new());
            }
            let bytes = wire::encode(std::slice::from_ref(&field)).len();
            let times = rng.usize(..REPEATED_MAX * 8).min(INPUT_BYTES_MAX / bytes.max(1));
            fields.extend(std::iter::repeat_n(field, times));
        }
        _ => match &mut fields[at].value {
            Value::Varint(number) => *number = extreme(rng),
            Value::Bytes(bytes) => self::bytes(rng, bytes, &[], || vec![0; 8]),
            Value::Fixed32(bytes) => *bytes = (extreme(rng) as u32).to_le_bytes(),
            Value::Fixed64(bytes) => *bytes = extreme(rng).to_le_bytes(),
            Value::Message(within) => within.clear(),
        },
    }
}
