//! flotilla-placement: decisions about where replicas live. Pure logic: what it knows of the world it is
//! told, and it does nothing itself.
//!
//! Today that is one decision, taken once: the layout of a new cluster. The engine is given the result
//! and does not know this crate; the two meet in src and sim.

// The order of a hash map is not that of the input.
#![warn(clippy::iter_over_hash_type)]

mod layout;

pub use layout::{RANGES_MAX, layout};
