//! flotilla-proto: what the parts of Flotilla, and its clients, say to each other.
//!
//! The types generated from proto/flotilla/v1, the newtypes for ids, and the mapping of errors to
//! and from gRPC. Everything else depends on this crate; it depends on nothing of ours.

pub mod access;
pub mod cluster;
pub mod codec;
pub mod error;
pub mod ids;
pub mod limits;
pub mod memory;

pub use error::{Error, Result};
pub use ids::{KeyspaceId, NodeId, RangeId, ReplicaId};

/// The types and services generated from proto/flotilla/v1.
#[allow(missing_docs, reason = "generated; the .proto files carry the documentation")]
#[allow(clippy::all, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("flotilla.v1");

    /// The encoded descriptors of all our .proto files, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/flotilla_descriptor.bin"));
}
