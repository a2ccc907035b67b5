//! The stores that are compared: three processes each, on loopback and on the same disk, and the sessions through which
//! they are loaded.

pub mod etcd;
pub mod flotilla;
pub mod tool;

use std::fmt;

use bytes::Bytes;

/// An operation that was not carried out, in words.
#[derive(Clone, Debug)]
pub struct Failed(pub String);

impl Failed {
    pub fn of(error: impl fmt::Display) -> Self {
        Self(error.to_string())
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

pub type Done<T> = Result<T, Failed>;

/// What a client asks of a store: the same of all of them, with the same promises (a write is acknowledged when it is
/// durable on a majority; reads are linearizable).
pub trait Session: Clone + Send + Sync + 'static {
    fn put(&self, key: Bytes, value: Bytes) -> impl Future<Output = Done<()>> + Send;

    /// How long the value is; `None`: the key is not there.
    fn get(&self, key: Bytes) -> impl Future<Output = Done<Option<usize>>> + Send;

    /// Records from a key on; how many came.
    fn scan(&self, from: Bytes, limit: u32) -> impl Future<Output = Done<usize>> + Send;

    /// Reads, and writes if nobody has written between; whether that held.
    fn update(&self, key: Bytes, value: Bytes) -> impl Future<Output = Done<bool>> + Send;
}

/// A store, and the way to speak to it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// Flotilla, through batch streams: as its own client library does it
    Stream,
    /// Flotilla, through unary calls
    Unary,
    /// etcd, through unary calls to the leader
    Etcd,
    /// etcd, through unary calls to all nodes in turn
    EtcdSpread,
    /// etcd, by its own tool, to the leader: puts and gets only
    EtcdTool,
}

impl System {
    /// As tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stream => "Flotilla, streams",
            Self::Unary => "Flotilla, unary",
            Self::Etcd => "etcd, leader",
            Self::EtcdSpread => "etcd, all nodes",
            Self::EtcdTool => "etcd, its own tool",
        }
    }

    pub fn is_flotilla(self) -> bool {
        matches!(self, Self::Stream | Self::Unary)
    }
}

/// Connections for so many clients: what etcd's own tool is commonly given, and the same for all.
pub fn connections(clients: usize) -> usize {
    clients.div_ceil(10).clamp(1, 100)
}
