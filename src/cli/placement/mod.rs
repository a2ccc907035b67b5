//! `placement`: what the placement service decided, and what it would decide.

pub mod history;
pub mod plan;

use super::failure::Result;
use super::global::Global;

#[derive(clap::Subcommand, Debug)]
pub enum PlacementCommand {
    /// What was decided of late, when and why, and what became of it: newest first
    History(history::HistoryArgs),
    /// What would be decided now: nothing is decided by asking
    Plan(plan::PlanArgs),
}

pub async fn run(command: PlacementCommand, global: &Global) -> Result {
    match command {
        PlacementCommand::History(args) => history::run(&args, global).await,
        PlacementCommand::Plan(args) => plan::run(&args, global).await,
    }
}
