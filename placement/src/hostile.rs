//! Records of the system range that nobody should have written, and names that nobody may give.

use bytes::{Buf, BufMut, Bytes};
use flotilla_hostile::{Decoder, Rng, wire};
use flotilla_proto::memory::{Shape, Shaped};
use flotilla_proto::v1;

use crate::names;
use crate::records::Change;

const WORDS_BYTES: usize = 4_096;

/// A key, behind its length, and its value.
fn row(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut row = Vec::new();
    row.put_u8(u8::try_from(key.len()).expect("keys of records are short"));
    row.extend_from_slice(key);
    row.extend_from_slice(value);
    row
}

fn record(rng: &mut Rng) -> Vec<u8> {
    let kinds: [(&[u8], &Shape); 5] = [
        (b"node/", v1::NodeRecord::SHAPE),
        (b"keyspace/", v1::Keyspace::SHAPE),
        (b"order/", v1::OrderRecord::SHAPE),
        (b"birth/", v1::BirthRecord::SHAPE),
        (b"history/", v1::HistoryRecord::SHAPE),
    ];
    match rng.u8(..8) {
        0 => row(b"cluster", &wire::message(rng, v1::ClusterRecord::SHAPE)),
        1 => row(b"reign", &wire::message(rng, v1::ReignRecord::SHAPE)),
        2 => row(b"next/range", &wire::message(rng, v1::IdRecord::SHAPE)),
        at => {
            let (kind, shape) = kinds[usize::from(at) - 3];
            // The id of a node or keyspace stands in its record, too: field 1.
            let id = rng.u64(1..9);
            let number = wire::Field { number: 1, value: wire::Value::Varint(id) };
            let named = matches!(kind, b"node/" | b"keyspace/");
            let rest = wire::parse(&wire::message(rng, shape)).expect("just made");
            let rest = rest.into_iter().filter(|field| !named || field.number != 1);
            let fields: Vec<_> = named.then_some(number).into_iter().chain(rest).collect();
            row(&[kind, &id.to_be_bytes()].concat(), &wire::encode(&fields))
        }
    }
}

#[test]
fn records() {
    Decoder::generated("placement: record", record).memory(64, WORDS_BYTES * 4).check(
        |input| {
            let mut row = input.clone();
            let length = usize::from(row.first().copied()?);
            row.advance(1);
            let (key, value) = row.split_at_checked(length)?;
            Change::decode(key, value).ok()
        },
        |change| {
            let (key, value): (Bytes, Option<Bytes>) = change.encode();
            row(&key, &value.unwrap_or_default())
        },
    );
}

#[test]
fn labels() {
    Decoder::new("placement: label", vec![b"zone=a".to_vec(), b"disk=ssd".to_vec()])
        .words(&["=", "zone", "\u{fc}", "\0"])
        .memory(16, WORDS_BYTES)
        .check(
            |input| names::parse_label(std::str::from_utf8(input).ok()?).ok(),
            |label| format!("{}={}", label.key, label.value).into_bytes(),
        );
    Decoder::new("placement: name of a keyspace", vec![b"users".to_vec(), b"a.b-c_9".to_vec()])
        .words(&["system", "/", "\u{fc}"])
        .memory(16, WORDS_BYTES)
        .check(
            |input| {
                let name = std::str::from_utf8(input).ok()?;
                names::check_name(name).ok().map(|()| name.to_owned())
            },
            |name| name.clone().into_bytes(),
        );
}
