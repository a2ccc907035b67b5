//! flotilla-placement: decisions about where replicas live, and the service that takes them. Pure logic: what it
//! knows of the world it is told, and it does nothing itself.
//!
//! The [`Service`] runs where the system range is led. Nodes report to it; it keeps the routing table, gives out ids,
//! and decides which replicas and leaders move. Its records (nodes, keyspaces, ids, orders) lie in the system range
//! and change by ordinary writes there; nothing leaves the service that rests on a write not yet acknowledged, so
//! that a deposed service cannot act.

// The order of a hash map is not that of the input.
#![warn(clippy::iter_over_hash_type)]

mod answers;
mod birth;
mod borders;
mod config;
mod constraints;
mod decide;
mod dense;
mod explain;
mod gone;
mod health;
mod history;
#[cfg(test)]
mod hostile;
mod ingest;
mod layout;
mod learned;
mod merging;
pub mod names;
mod nodes;
mod places;
mod problems;
mod records;
pub mod recovery;
mod reporter;
mod reports;
mod requests;
mod rounds;
mod route;
mod route_map;
mod service;
mod small;
mod state;
mod table;
mod waiters;
mod work;
mod writes;

pub use birth::Bootstrap;
pub use borders::RANGES_MAX;
pub use config::Config;
pub use explain::{Explanation, Placed, Planned};
pub use layout::{layout, system_range};
pub use learned::Learned;
pub use records::{Change, Counter};
pub use reporter::Reporter;
pub use requests::CREATED_RANGES_MAX;
pub use route::Route;
pub use route_map::RouteMap;
pub use service::{Answer, Effects, Outcome, Request, Response, Service, Token, Write, WriteId};
