//! The stores that are compared: three processes each, on loopback and on the same disk, and the sessions through which
//! they are loaded.

pub mod etcd;
pub mod flotilla;
pub mod tool;
pub mod zookeeper;

use std::fmt;

use bytes::Bytes;

use crate::load::workload::Workload;

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
/// durable on a majority; reads are linearizable), but for what `System::caveat` says.
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
    /// ZooKeeper, its leader, a sync before each get; no YCSB E
    ZookeeperSync,
    /// ZooKeeper, its leader, gets as they are: NOT linearizable; no YCSB E
    Zookeeper,
    /// ZooKeeper, all servers in turn, gets as they are: NOT linearizable; no YCSB E
    ZookeeperSpread,
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
            Self::ZookeeperSync => "ZooKeeper, leader, sync before gets",
            Self::Zookeeper => "ZooKeeper, leader, gets not linearizable",
            Self::ZookeeperSpread => "ZooKeeper, all servers, gets not linearizable",
        }
    }

    /// Why it cannot be asked to do so, if it cannot.
    pub fn lacks(self, workload: Workload) -> Option<&'static str> {
        match (self, workload) {
            (Self::EtcdTool, Workload::Put | Workload::Get) => None,
            (Self::EtcdTool, _) => Some("the tool knows puts and gets alone"),
            (_, Workload::YcsbE) if self.is_zookeeper() => {
                Some("ZooKeeper has no scan: it lists the names of all children of a node, in no order")
            }
            _ => None,
        }
    }

    /// What it promises less than the others do.
    pub fn caveat(self) -> Option<&'static str> {
        match self {
            Self::ZookeeperSync => Some(
                "gets are linearizable but for a leader that was deposed and does not know it yet: a sync asks no majority",
            ),
            Self::Zookeeper => Some(
                "gets are NOT linearizable: a leader that was deposed and does not know it yet answers with what is old",
            ),
            Self::ZookeeperSpread => {
                Some("gets are NOT linearizable: a server answers with what it has, however far it is behind")
            }
            _ => None,
        }
    }

    /// A virtual machine's code is slow at first.
    pub fn compiles_as_it_runs(self) -> bool {
        self.is_zookeeper()
    }

    fn is_zookeeper(self) -> bool {
        matches!(self, Self::ZookeeperSync | Self::Zookeeper | Self::ZookeeperSpread)
    }

    pub fn is_flotilla(self) -> bool {
        matches!(self, Self::Stream | Self::Unary)
    }
}

/// Connections for so many clients: what etcd's own tool is commonly given, and the same for all.
pub fn connections(clients: usize) -> usize {
    clients.div_ceil(10).clamp(1, 100)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn what_a_system_lacks_is_said_in_words() {
        for system in System::value_variants() {
            let is_zookeeper = system.name().starts_with("ZooKeeper");
            assert_eq!(system.lacks(Workload::YcsbE).is_some(), is_zookeeper || *system == System::EtcdTool);
            assert_eq!(system.lacks(Workload::Put), None);
            assert_eq!(system.caveat().is_some(), is_zookeeper);
        }
        assert!(System::EtcdTool.lacks(Workload::YcsbA).is_some());
        assert_eq!(System::Zookeeper.lacks(Workload::YcsbF), None);
    }
}
