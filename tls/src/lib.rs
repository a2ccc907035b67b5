//! flotilla-tls: certificates, and connections under TLS.
//!
//! ```text
//! files (CA, certificate, key) -> Tls (what they hold now; reloaded) -> Accepted  at a port
//!                                                                    -> Connector towards one
//! ```
//! A certificate names an [`Identity`]: a node or a client of one cluster. The handshake proves that the other side's
//! certificate comes from the CA, is valid now and, where a node is called, is for its host. Whose it is, is then
//! known by [`Guest`] to whoever serves the connection: what each may call stands in flotilla-proto's `access`.
//!
//! Both sides take up what [`Tls`] holds at each new connection; a connection keeps what it began with.
//! This crate knows no RocksDB, and nothing of ranges.

pub mod accept;
pub mod connect;
mod explain;
pub mod identity;
pub mod issue;
mod material;
mod tls;

pub use accept::{Accepted, Guest, Port, Shown};
pub use connect::Connector;
pub use identity::{Identity, Role};
pub use material::{Files, TlsError};
pub use tls::{ClientAuth, Tls};
