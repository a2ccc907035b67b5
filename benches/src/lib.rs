//! flotilla-benches: what the benches share. A bench here answers one question about the layout and
//! prints a table of medians with the smallest and the largest of its repetitions; the answers, and
//! what they made us decide, stand in docs/performance.md.
//!
//! Repetitions of the variants of one bench are interleaved, so that a neighbour's load on the
//! machine falls on all of them and the ratios between them stay usable.

pub mod alloc;
pub mod args;
pub mod cluster;
pub mod db;
pub mod rpc;
pub mod stats;
pub mod usage;
