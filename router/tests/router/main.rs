//! The router against fake clusters: its core in one thread from a seed, its shell over loopback.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "tests of the async shell")]

mod admin;
mod clusters;
mod fake_admin;
mod fake_cluster;
mod fake_node;
mod fake_truth;
mod growth;
mod property;
mod shell;
