//! The command line as scripts use it, against three real nodes: what is printed where, and the exit codes.

mod keyspaces;
mod kv;
mod operate;
mod ranges;
mod rows;
mod tree;
mod unknown;

use crate::support::cli::{Ran, at, with_stdin};
use crate::support::shared::shared;

/// Runs a command at all nodes of the shared cluster.
fn cluster(words: &[&str]) -> Ran {
    at(&shared().addresses().join(","), words)
}

/// The same, with something on stdin.
fn cluster_stdin(words: &[&str], stdin: &[u8]) -> Ran {
    with_stdin(&shared().addresses().join(","), words, stdin)
}
