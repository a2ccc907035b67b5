//! Nodes on loopback, over real RocksDB; and what a node does with frames that no node would send.

mod cluster;
mod failing_disk;
mod faulty;
mod frames;
mod handshake;
mod harness;
mod large_snapshots;
mod partition;
mod replaced_store;
mod start;
