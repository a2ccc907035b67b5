//! Flotilla: a key-value cluster whose keyspace is cut into ranges, each its own Raft group.
//!
//! This crate puts the parts together: [`config`] says how a node is to be, [`server`] runs one with
//! its gRPC services and its HTTP door, [`embed`] does so inside of another program. The parts are
//! flotilla-engine, flotilla-store, flotilla-node (the engine) and flotilla-router (routing and the
//! client).

pub mod config;
pub mod embed;
pub mod server;

pub use embed::{Cluster, Node, NodeBuilder};
pub use flotilla_router::{Client, ClientConfig};

// Every program that serves goes through here.
const _: () = assert!(!flotilla_mutants::BUILT, "a product build must not have flotilla-mutants' feature `mutants`");
