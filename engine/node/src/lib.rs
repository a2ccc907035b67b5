//! flotilla-node: runs the engine on a real machine: threads, network, snapshots, disk watch.
//!
//! ```text
//! requests -> inbox -> store loop -> log writer (one sync for all that was queued)
//!                        |   |  \--> outboxes -> other nodes (a frame each per turn)
//!                        |   \-----> apply (inline) -> answers, in groups
//!                        \---------> views -> reads, on the callers' threads
//! ```
//! The engine decides everything ([`flotilla_engine::store::Store`]); this crate carries it out and tells
//! it what became of it. One thread owns the store, one makes its log durable, one watches the disk;
//! tokio runs the network. Clients' interfaces stand on [`Node`], in crates above.

mod access;
mod applier;
mod carry_out;
mod checks;
mod clock;
mod config;
mod corked;
mod counters;
mod disk;
mod disk_watch;
mod doors;
mod events;
mod failure;
mod health;
mod histogram;
mod inbox;
mod known_nodes;
mod log_writer;
mod node;
mod pending;
mod persisted;
mod ranges;
mod reads;
mod recovery;
mod replies;
mod requests;
mod scrub;
mod slow;
mod snapshots;
mod start;
mod store_loop;
pub mod transport;
mod views;

pub use access::{Access, AccessLayer};
pub use config::NodeConfig;
pub use counters::{Counter, Counters, Metric, MetricValue};
pub use disk::LocalStorage;
pub use doors::{Caller, Door, Doors, Proof};
pub use histogram::Histogram;
pub use node::Node;
pub use replies::{Replies, ReplySink, replies};
pub use start::StartError;
