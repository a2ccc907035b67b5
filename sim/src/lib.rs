//! flotilla-sim: seeded simulation of whole clusters, and the checkers that judge what clients saw.
//!
//! Place in the flow: it runs the production cores in one thread and implements no protocol itself.
//! Invariant: the checkers know nothing of the engine, so that tests with real processes share them.
//!
//! [`run::run_seed`] is the whole of it: knobs and fault plan are drawn from the seed, three to five
//! production stores and the router's core run on a simulated network, disk and clock, invariants are
//! checked at every event and, after everything has healed, once more in full. A failure names its
//! seed and the command that repeats it.

// The order of a hash map is not that of the seed.
#![warn(clippy::iter_over_hash_type)]

mod carry_out;
pub mod checker;
mod client;
mod clock;
mod cluster;
pub mod disk;
mod ending;
mod expiring;
mod faulting;
mod faults;
mod gray;
mod invariants;
mod kept;
mod knobs;
mod marks;
mod mirror;
mod network;
mod node;
mod old_clients;
mod ops;
mod placement;
mod quiet;
mod recorder;
mod rng;
pub mod run;
mod schedule;
mod serve;
mod spans;
mod stages;
mod territory;
#[cfg(test)]
mod tests;
mod trace;
