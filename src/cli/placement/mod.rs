//! `placement`: what the placement service decided, and what it would decide.

pub mod history;

use super::failure::Result;
use super::global::Global;

#[derive(clap::Subcommand, Debug)]
pub enum PlacementCommand {
    /// What was decided of late, when and why, and what became of it: newest first
    History(history::HistoryArgs),
}

pub async fn run(command: PlacementCommand, global: &Global) -> Result {
    match command {
        PlacementCommand::History(args) => history::run(&args, global).await,
    }
}
