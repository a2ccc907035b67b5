//! Nodes on loopback, over real RocksDB.
