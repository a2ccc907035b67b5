//! flotilla-router: key -> range -> leader; and the client library.
//!
//! [`core`] decides, without doing any input or output; [`Router`] carries out what it decides,
//! over a [`Transport`]. A node's server uses it to serve any request that any client sends it;
//! [`Client`] is the same code outside.

pub mod client;
pub mod core;

pub use client::{
    Client, ClientConfig, Consistency, DeleteOptions, DeleteParts, DeletedPart, Expect, GrpcConfig, GrpcTransport,
    PlacementClient, Record, RouteSource, Router, RouterConfig, ScanOptions, ScanPage, ScanPages, SplitAt, Transport,
    WriteOp, WriteResult,
};
pub use core::{CallOutcome, Places};
