//! Tests of the simulation itself: golden scenarios, a share of the seeds, and determinism.

mod scenario;
mod scenarios;
mod seeds;
