//! Protobufs without their types: as much of the wire format as mutations need, and valid messages from their shapes.

use fastrand::Rng;
use flotilla_proto::memory::{Kind, Shape};
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};

use crate::mutate::extreme;

/// Messages within messages, at most.
const DEPTH_MAX: usize = 16;

/// A field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its number.
    pub number: u32,
    /// What it holds.
    pub value: Value,
}

/// What a field holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number, a flag, an enumeration.
    Varint(u64),
    /// Four bytes.
    Fixed32([u8; 4]),
    /// Eight bytes.
    Fixed64([u8; 8]),
    /// Text, bytes, packed numbers.
    Bytes(Vec<u8>),
    /// What can be read as a message, if only by chance.
    Message(Vec<Field>),
}

impl Value {
    /// What stands behind a length; `None`: it is a number.
    pub fn into_bytes(self) -> Option<Vec<u8>> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Message(within) => Some(encode(&within)),
            Self::Varint(_) | Self::Fixed32(_) | Self::Fixed64(_) => None,
        }
    }
}

/// The fields of a message; `None`: it is none.
pub fn parse(bytes: &[u8]) -> Option<Vec<Field>> {
    parse_within(bytes, DEPTH_MAX)
}

fn parse_within(mut bytes: &[u8], depth: usize) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let (number, wire_type) = decode_key(&mut bytes).ok()?;
        let value = match wire_type {
            WireType::Varint => Value::Varint(decode_varint(&mut bytes).ok()?),
            WireType::ThirtyTwoBit => Value::Fixed32(take(&mut bytes, 4)?.try_into().ok()?),
            WireType::SixtyFourBit => Value::Fixed64(take(&mut bytes, 8)?.try_into().ok()?),
            WireType::LengthDelimited => {
                let length = usize::try_from(decode_varint(&mut bytes).ok()?).ok()?;
                let within = take(&mut bytes, length)?;
                let message = if within.is_empty() || depth == 0 { None } else { parse_within(within, depth - 1) };
                message.map_or_else(|| Value::Bytes(within.to_vec()), Value::Message)
            }
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        fields.push(Field { number, value });
    }
    Some(fields)
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

/// The bytes of a message.
pub fn encode(fields: &[Field]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for Field { number, value } in fields {
        let (wire_type, within) = match value {
            Value::Varint(_) => (WireType::Varint, None),
            Value::Fixed32(_) => (WireType::ThirtyTwoBit, None),
            Value::Fixed64(_) => (WireType::SixtyFourBit, None),
            Value::Bytes(within) => (WireType::LengthDelimited, Some(within.clone())),
            Value::Message(within) => (WireType::LengthDelimited, Some(encode(within))),
        };
        encode_key(*number, wire_type, &mut bytes);
        match (value, within) {
            (Value::Varint(number), _) => encode_varint(*number, &mut bytes),
            (Value::Fixed32(fixed), _) => bytes.extend_from_slice(fixed),
            (Value::Fixed64(fixed), _) => bytes.extend_from_slice(fixed),
            (_, within) => {
                let within = within.unwrap_or_default();
                encode_varint(within.len() as u64, &mut bytes);
                bytes.extend(within);
            }
        }
    }
    bytes
}

/// A valid message of this shape, with any of its fields.
pub fn message(rng: &mut Rng, shape: &Shape) -> Vec<u8> {
    encode(&fields(rng, shape, 4))
}

fn fields(rng: &mut Rng, shape: &Shape, depth: usize) -> Vec<Field> {
    let mut fields = Vec::new();
    // Messages with many fields have some of them at a time.
    let share = (shape.fields.len() / 6).min(3) as u8;
    for field in shape.fields {
        let times = if rng.u8(..=share) > 0 {
            0
        } else if field.repeated {
            rng.usize(..4)
        } else {
            1
        };
        for _ in 0..times {
            let value = match field.kind {
                Kind::Message(_) if depth == 0 => continue,
                Kind::Message(shape) => Value::Message(self::fields(rng, shape, depth - 1)),
                // Most numbers are small, and enumerations and flags nothing else.
                Kind::Varint => Value::Varint(if rng.bool() { rng.u64(..4) } else { extreme(rng) }),
                Kind::Fixed32 => Value::Fixed32(rng.u32(..).to_le_bytes()),
                Kind::Fixed64 => Value::Fixed64(rng.u64(..).to_le_bytes()),
                Kind::String => Value::Bytes(text(rng).into_bytes()),
                Kind::Bytes => Value::Bytes(text(rng).into_bytes()),
            };
            fields.push(Field { number: field.number, value });
        }
    }
    fields
}

/// A word or two.
pub fn text(rng: &mut Rng) -> String {
    (0..rng.usize(..12)).map(|_| if rng.u8(..16) == 0 { rng.char(..) } else { rng.lowercase() }).collect()
}
