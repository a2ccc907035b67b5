//! Tests of the whole system: real processes on loopback, with real disks and real kills. One binary, because each
//! one links RocksDB.

mod admin;
mod altered;
mod bad_input;
mod cli;
mod crash;
mod doors;
mod embed;
mod full_disk;
mod gray;
mod growth;
mod grpc;
mod hostile;
mod hot;
mod image_cuts;
mod links;
mod living;
mod merge_steps;
mod overload;
mod placement;
mod points;
mod power;
mod recover;
mod rot;
mod settings;
mod snapshots;
mod supervisor;
mod support;
mod system_down;
mod tour;
mod upgrade;

#[path = "../powercut/mod.rs"]
mod powercut;
#[path = "../powercut/tests.rs"]
mod powercut_tests;
