//! Tests of the simulation itself: golden scenarios, a share of the seeds, and determinism.

mod growth;
mod placement;
mod scenario;
mod scenarios;
mod seeds;
