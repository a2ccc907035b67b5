//! The engine's suite for storage implementations, on RocksDB.

flotilla_engine::storage_conformance!(crate::harness::RocksHarness);

mod snapshots {
    flotilla_engine::snapshot_conformance!(crate::harness::RocksHarness);
}
