//! The service's records as the system range holds them: keys and values, and the change of each.
//!
//! ```text
//! cluster                        ClusterRecord
//! reign                          ReignRecord: every batch of the service compares it
//! next/keyspace node order range IdRecord: every id below may be in use
//! birth/<range id>               BirthRecord
//! keyspace/<keyspace id>         Keyspace
//! node/<node id>                 NodeRecord
//! order/<range id>               OrderRecord: one order per range, by its key
//! history/<first entry's id>     HistoryRecord: a page of what was decided and seen
//! ```
//! Ids are 8 bytes, big-endian. Values are protobuf; golden tests hold keys and values.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use flotilla_proto::v1;
use prost::Message;

/// What ids are counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counter {
    /// Keyspaces.
    Keyspace,
    /// Nodes.
    Node,
    /// Orders.
    Order,
    /// Ranges.
    Range,
}

impl Counter {
    pub(crate) const ALL: [Self; 4] = [Self::Keyspace, Self::Node, Self::Order, Self::Range];

    fn name(self) -> &'static str {
        match self {
            Self::Keyspace => "keyspace",
            Self::Node => "node",
            Self::Order => "order",
            Self::Range => "range",
        }
    }
}

/// One record set, or removed.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The cluster's name and id.
    Cluster(v1::ClusterRecord),
    /// Which incarnation of the service may write.
    Reign(v1::ReignRecord),
    /// Every id of this kind below may be in use.
    Next(Counter, u64),
    /// A node.
    Node(v1::NodeRecord),
    /// A keyspace.
    Keyspace(v1::Keyspace),
    /// The order on a range.
    Order(u64, v1::OrderRecord),
    /// The range has no order any more.
    NoOrder(u64),
    /// A range is to begin its life.
    Birth(u64, v1::BirthRecord),
    /// It has.
    NoBirth(u64),
    /// A page of the history, by the id of its first entry.
    History(u64, Arc<v1::HistoryRecord>),
    /// The page is too old to be kept.
    NoHistory(u64),
}

fn key(kind: &str, id: u64) -> Bytes {
    let mut key = BytesMut::with_capacity(kind.len() + 9);
    key.put_slice(kind.as_bytes());
    key.put_u8(b'/');
    key.put_u64(id);
    key.freeze()
}

fn value(message: &impl Message) -> Option<Bytes> {
    Some(message.encode_to_vec().into())
}

pub(crate) const REIGN_KEY: &[u8] = b"reign";

impl Change {
    /// Key, and value unless the record goes.
    pub fn encode(&self) -> (Bytes, Option<Bytes>) {
        match self {
            Self::Cluster(record) => (Bytes::from_static(b"cluster"), value(record)),
            Self::Reign(record) => (Bytes::from_static(REIGN_KEY), value(record)),
            Self::Next(counter, next) => {
                (format!("next/{}", counter.name()).into(), value(&v1::IdRecord { next: *next }))
            }
            Self::Node(record) => (key("node", record.node_id), value(record)),
            Self::Keyspace(record) => (key("keyspace", record.keyspace_id), value(record)),
            Self::Order(range, record) => (key("order", *range), value(record)),
            Self::NoOrder(range) => (key("order", *range), None),
            Self::Birth(range, record) => (key("birth", *range), value(record)),
            Self::NoBirth(range) => (key("birth", *range), None),
            Self::History(first, page) => (key("history", *first), value(page.as_ref())),
            Self::NoHistory(first) => (key("history", *first), None),
        }
    }

    /// The record that a key and value of the system range are. The error says what is wrong with them.
    pub fn decode(key: &[u8], value: &[u8]) -> Result<Self, String> {
        Self::parse(key, value).ok_or_else(|| format!("the system range holds no valid record under {key:?}"))
    }

    fn parse(key: &[u8], value: &[u8]) -> Option<Self> {
        if key == b"cluster" {
            return Some(Self::Cluster(v1::ClusterRecord::decode(value).ok()?));
        }
        if key == REIGN_KEY {
            return Some(Self::Reign(v1::ReignRecord::decode(value).ok()?));
        }
        let slash = key.iter().position(|byte| *byte == b'/')?;
        let (kind, id) = (&key[..slash], &key[slash + 1..]);
        if kind == b"next" {
            let counter = Counter::ALL.into_iter().find(|counter| counter.name().as_bytes() == id)?;
            return Some(Self::Next(counter, v1::IdRecord::decode(value).ok()?.next));
        }
        let id = u64::from_be_bytes(id.try_into().ok()?);
        let change = match kind {
            b"node" => Self::Node(v1::NodeRecord::decode(value).ok()?),
            b"keyspace" => Self::Keyspace(v1::Keyspace::decode(value).ok()?),
            b"order" => Self::Order(id, v1::OrderRecord::decode(value).ok()?),
            b"birth" => Self::Birth(id, v1::BirthRecord::decode(value).ok()?),
            b"history" => Self::History(id, Arc::new(v1::HistoryRecord::decode(value).ok()?)),
            _ => return None,
        };
        (change.encode().0 == key).then_some(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> String {
        bytes.escape_ascii().to_string()
    }

    fn golden() -> Vec<(Change, &'static str, &'static str)> {
        let descriptor = v1::RangeDescriptor { range_id: 7, keyspace_id: 2, next_replica_id: 2, ..Default::default() };
        let order = v1::RangeOrder {
            order_id: 3,
            range_id: 7,
            add_nodes: vec![4],
            remove_nodes: vec![1],
            replicas: 3,
            ..Default::default()
        };
        let record = v1::OrderRecord {
            order: Some(order),
            epoch: Some(v1::Epoch { conf_ver: 5, version: 6 }),
            reason: "why".into(),
            time_limit_ms: 9,
            ..Default::default()
        };
        let node = v1::NodeRecord { node_id: 4, store_id: 5, peer_addr: "a:1".into(), ..Default::default() };
        let keyspace = v1::Keyspace {
            keyspace_id: 2,
            name: "ks".into(),
            replicas: 3,
            split_bytes: 8,
            version: 1,
            ..Default::default()
        };
        let birth = v1::BirthRecord { descriptor: Some(descriptor) };
        let entry =
            v1::HistoryEntry { id: 9, unix_ms: 8, kind: "dead".into(), node_ids: vec![4], ..Default::default() };
        let page = v1::HistoryRecord { entries: vec![entry] };
        vec![
            (Change::Cluster(v1::ClusterRecord { cluster_id: 1, name: "c".into() }), "cluster", r"\x08\x01\x12\x01c"),
            (
                Change::Reign(v1::ReignRecord { reign: 2, loads: 3, first_node_id: 4, first_range_id: 5 }),
                "reign",
                r"\x08\x02\x10\x03\x18\x04 \x05",
            ),
            (Change::Next(Counter::Keyspace, 2), "next/keyspace", r"\x08\x02"),
            (Change::Next(Counter::Node, 3), "next/node", r"\x08\x03"),
            (Change::Next(Counter::Order, 4), "next/order", r"\x08\x04"),
            (Change::Next(Counter::Range, 5), "next/range", r"\x08\x05"),
            (Change::Node(node), r"node/\x00\x00\x00\x00\x00\x00\x00\x04", r"\x08\x04\x10\x05\x1a\x03a:1"),
            (
                Change::Keyspace(keyspace),
                r"keyspace/\x00\x00\x00\x00\x00\x00\x00\x02",
                r"\x08\x02\x12\x02ks\x18\x03(\x088\x01",
            ),
            (
                Change::Order(7, record),
                r"order/\x00\x00\x00\x00\x00\x00\x00\x07",
                r#"\n\x0c\x08\x03\x10\x07\x1a\x01\x04\"\x01\x010\x03\x12\x04\x08\x05\x10\x06\x1a\x03why \t"#,
            ),
            (Change::Birth(7, birth), r"birth/\x00\x00\x00\x00\x00\x00\x00\x07", r"\n\x06\x08\x07\x10\x028\x02"),
            (
                Change::History(9, Arc::new(page)),
                r"history/\x00\x00\x00\x00\x00\x00\x00\t",
                r#"\n\r\x08\t\x10\x08\x1a\x04dead*\x01\x04"#,
            ),
        ]
    }

    #[test]
    fn keys_and_values_stay_what_they_are() {
        for (change, key, value) in golden() {
            let (found_key, found_value) = change.encode();
            let found_value = found_value.expect("a record");
            assert_eq!((text(&found_key).as_str(), text(&found_value).as_str()), (key, value));
            assert_eq!(Change::decode(&found_key, &found_value), Ok(change));
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        for key in [&b""[..], b"x", b"next/what", b"node/", b"node/1234567", b"what/12345678", b"keyspace/12345678"] {
            assert!(Change::decode(key, &[]).is_err(), "{}", text(key));
        }
    }
}
