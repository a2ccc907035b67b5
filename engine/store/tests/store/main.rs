//! The adapter's tests against real RocksDB and real files, in one binary: each links RocksDB.

mod conformance;
mod damage;
mod directory;
mod harness;
mod scrub;
mod storage;
