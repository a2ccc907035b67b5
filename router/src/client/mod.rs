//! The async shell around [`crate::core`]: transport, time, the client library.
//!
//! ```text
//! Client (keys, options) -> Router (drives one core::Call per request) -> Transport -> node
//!                             ^ RouteSource (who has which range)
//! ```
//! In a node the same [`Router`] stands behind the gRPC server, with a transport that calls the
//! node's own store directly and others by [`GrpcTransport`].

// Time and tasks come in here.
#![allow(clippy::disallowed_methods, reason = "the shell is where the core is told the time")]

mod admin;
mod api;
mod connection;
mod delete_range;
mod endpoints;
mod grpc;
mod named;
mod placement;
mod recovery;
mod router;
mod rpc;
mod scan;
mod seek;
mod transport;
mod types;
mod waiting;

pub use admin::SplitAt;
pub use api::{Client, ClientConfig};
pub use delete_range::{DeleteOptions, DeleteParts, DeletedPart};
pub use grpc::{GrpcConfig, GrpcTransport};
pub use placement::PlacementClient;
pub use router::{Router, RouterConfig};
pub use scan::ScanPages;
pub use transport::{RouteSource, Transport};
pub use types::{Consistency, Expect, Record, ScanOptions, ScanPage, WriteOp, WriteResult};
