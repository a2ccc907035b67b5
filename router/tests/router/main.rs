//! The router against fake clusters: its core in one thread from a seed, its shell over loopback.

mod fake_cluster;
mod fake_node;
mod property;
mod shell;
