//! flotilla-store: a node's disk. The RocksDB adapter behind the engine's storage traits, the data
//! directory around it, and the audit that notices when synced writes are gone.
//!
//! Place in the flow: flotilla-node opens a [`StoreDirectory`], then a [`RocksStorage`] in it, and gives
//! that to the engine's log writer, apply, reads and recovery. Opening goes: lock, IDENTITY, audit
//! of MANIFEST and WAL ([`wal_audit`]), RocksDB's own recovery, comparison of what it recovered
//! with what is known to have been synced.
//!
//! Invariants: a store that may have lost synced writes does not open; one in which damage was seen answers nothing any more,
//! and does not open again until a person has said so.

mod damage;
mod directory;
mod error;
#[cfg(test)]
mod hostile;
mod options;
mod properties;
mod rocks;
mod scrub;
mod staging;
pub mod wal_audit;
mod wal_space;
mod watermark;

pub use directory::{DirectoryError, DirectoryState, DiskSpace, FORMAT, Identity, StoreDirectory};
pub use directory::{disk_space, raise_open_files};
pub use error::OpenError;
pub use options::Options;
pub use properties::{Properties, Statistics};
pub use rocks::{Cached, Recovery, RocksBatch, RocksStorage};
pub use scrub::{Pace, Scrubbed};
