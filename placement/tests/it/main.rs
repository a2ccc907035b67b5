//! The placement service in a toy cluster: nodes that carry out orders step by step over many reports.

mod answers;
mod crashes;
mod growth;
mod history;
mod keyspaces;
mod merges;
mod recovery;
mod refusals;
mod reports;
mod scale;
mod scenarios;
mod seeds;
mod toy;
mod world;
