//! flotilla-engine: ranges, their Raft groups, and everything that happens to a request between
//! the door and the disk, without doing any input or output itself.
//!
//! [`store::Store`] is a state machine: it takes inputs (requests, messages, time, what became of its
//! effects) and leaves effects (append, send, apply, answer). The stages around it that touch a disk
//! ([`log_writer`], [`apply`], [`read`], [`snapshot`], [`recover`], [`bootstrap`]) are written against
//! the traits of [`storage`]. flotilla-node runs all of it on threads over RocksDB, flotilla-sim in one
//! thread over a simulated disk.

// The order of a hash map is not that of the seed.
#![warn(clippy::iter_over_hash_type)]

pub mod admission;
pub mod apply;
pub mod bootstrap;
pub mod checksum;
pub mod command;
pub mod config;
pub mod expiry;
mod health;
#[cfg(test)]
mod hostile;
pub mod keys;
pub mod load;
pub mod log_writer;
pub mod membership;
mod merges;
mod range;
pub mod read;
pub mod record;
pub mod recover;
pub mod snapshot;
pub mod split_keys;
mod splits;
pub mod storage;
pub mod store;
pub mod time;
pub mod wire;
