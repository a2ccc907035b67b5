//! `recover`: ranges whose majority is lost for good. A plan first, which a person reads; then that plan, and no other.

mod apply;
mod file;
#[cfg(test)]
mod hostile;
mod plan;

use clap::Subcommand;

use crate::cli::failure::Result;
use crate::cli::global::Global;

#[derive(Subcommand, Debug)]
pub enum RecoverCommand {
    /// Find out what can be kept without nodes that are gone for good, and what is lost; changes nothing
    Plan(plan::PlanArgs),
    /// Carry a plan out: ranges go on with one replica each, and the nodes that are given up never come back
    Apply(apply::ApplyArgs),
}

pub async fn run(command: RecoverCommand, global: &Global) -> Result {
    match command {
        RecoverCommand::Plan(args) => plan::run(&args, global).await,
        RecoverCommand::Apply(args) => apply::run(&args, global).await,
    }
}
