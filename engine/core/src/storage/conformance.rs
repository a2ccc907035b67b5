//! The suite that every implementation of [`super::Storage`] passes: what the simulation promises is then
//! what RocksDB promises.
