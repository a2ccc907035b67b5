//! The router's pure core: what is known of the routes, and one state machine per request.
//!
//! Place in the flow: gRPC server or client -> **router** -> range leader. Nothing here reads a
//! clock, draws a random number or touches a network: time and random numbers come in as
//! arguments, so that the simulator drives the very same code from one seed.
//!
//! - [`RouteCache`]: key -> range -> leader in one keyspace, never going back in epoch.
//! - [`Keyspaces`]: the keyspaces by name, and a cache for each.
//! - [`Call`]: one request on its way: cut by range, sent, repeated where that is safe, joined.
//! - [`DeleteRange`]: a span's keys deleted by one call after the other.
//! - [`mod@decide`]: what to do after each failure.
//! - [`Window`]: how many requests may be under way to one node.
//! - [`token`]: the paging token of scans.

// The order of a hash map is not that of the seed.
#![warn(clippy::iter_over_hash_type)]

mod cache;
mod call;
mod check;
mod decide;
mod delete_range;
mod fit;
#[cfg(test)]
mod hostile;
mod keyspaces;
mod places;
mod scan;
pub mod token;
mod window;
mod work;

pub use cache::{Route, RouteCache};
pub use call::{ANSWER_GRACE, Call, CallOutcome, Step};
pub use check::{SCAN_RECORDS_MAX, check, header_of};
pub(crate) use decide::backoff;
pub use decide::{Access, Attempt, Decision, Failure, Target, decide};
pub use delete_range::{DeleteRange, DeleteStep};
pub use fit::{ANSWER_BYTES_MAX, fit};
pub use keyspaces::Keyspaces;
pub use places::Places;
pub use window::{Delay, Window};

/// Time since an origin of the caller's choosing; never goes back.
pub type Time = std::time::Duration;

/// SplitMix64's output function: several unlike numbers from one random one.
pub(crate) fn mix(seed: u64) -> u64 {
    let mut mixed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}
