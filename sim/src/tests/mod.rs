//! Tests of the simulation itself: golden scenarios, a share of the seeds, and determinism.

mod scenario;
mod growth;
mod scenarios;
mod seeds;
