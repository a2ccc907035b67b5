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
//! ```
//! Ids are 8 bytes, big-endian. Values are protobuf; golden tests hold keys and values.

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
    const ALL: [Self; 4] = [Self::Keyspace, Self::Node, Self::Order, Self::Range];

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
            _ => return None,
        };
        (change.encode().0 == key).then_some(change)
    }
}
