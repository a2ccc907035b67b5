//! flotilla-sim: seeded simulation of whole clusters, and the checkers that judge what clients saw.
//!
//! Place in the flow: it runs the production cores in one thread and implements no protocol itself.
//! Invariant: the checkers know nothing of the engine, so that tests with real processes share them.

pub mod checker;
pub mod disk;
