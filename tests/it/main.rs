//! Tests of the whole system: real processes on loopback, with real disks and real kills. One binary, because each
//! one links RocksDB.

mod crash;
mod embed;
mod grpc;
mod power;
mod support;

#[path = "../powercut/mod.rs"]
mod powercut;
