//! `range`: the ranges, who leads them, and orders to them.

mod check;
mod coverage;
pub mod describe;
mod events;
mod explain;
mod list;
mod merge;
mod movement;
mod show;
mod split;
mod top;

use flotilla_proto::{Error, NodeId, RangeId};
use serde_json::json;

use super::failure::{Failure, Result};
use super::global::Global;
use super::output;
pub use list::{find_leaders, of_keyspace};

#[derive(clap::Subcommand, Debug)]
pub enum RangeCommand {
    /// List the ranges in key order
    List(list::ListArgs),
    /// Show a range with the Raft state of its leader
    Show(show::ShowArgs),
    /// Why a range is where it is, what is under way, what was decided of late, and what would come next
    Explain(explain::ExplainArgs),
    /// Split a range, at keys or into parts of about equal size
    Split(split::SplitArgs),
    /// Merge a range with its right neighbour
    Merge(merge::MergeArgs),
    /// Move a range's replica from one node to another
    Move(movement::MoveArgs),
    /// Hand a range's leadership to another node
    TransferLeader(TransferArgs),
    /// Compare what all replicas of a range hold
    Check(check::CheckArgs),
    /// The ranges that are asked for most, or hold most
    Top(top::TopArgs),
    /// What happened to a range, on all nodes, by time
    Events(events::EventsArgs),
}

#[derive(clap::Args, Debug)]
pub struct TransferArgs {
    /// The range's id
    range: u64,
    /// The node that is to lead
    node: u64,
}

pub async fn run(command: RangeCommand, global: &Global) -> Result {
    match command {
        RangeCommand::List(args) => list::run(&args, global).await,
        RangeCommand::Show(args) => show::run(&args, global).await,
        RangeCommand::Split(args) => split::run(&args, global).await,
        RangeCommand::Move(args) => movement::run(&args, global).await,
        RangeCommand::TransferLeader(args) => transfer(&args, global).await,
        RangeCommand::Check(args) => check::run(&args, global).await,
        RangeCommand::Explain(args) => explain::run(&args, global).await,
        RangeCommand::Merge(args) => merge::run(&args, global).await,
        RangeCommand::Top(args) => top::run(&args, global).await,
        RangeCommand::Events(args) => events::run(&args, global).await,
    }
}

async fn transfer(args: &TransferArgs, global: &Global) -> Result {
    let client = global.client().await?;
    let answer = client.transfer_leader(RangeId(args.range), NodeId(args.node)).await.map_err(failure)?;
    if global.json() {
        let value = json!({ "range_id": args.range, "leader_node_id": answer.leader_node_id, "term": answer.term });
        return output::json(&value);
    }
    output::line(format_args!("range {} is led by node {} in term {}", args.range, answer.leader_node_id, answer.term))
}

/// An order or a question about a range that failed.
fn failure(error: Error) -> Failure {
    match error {
        Error::RangeNotFound { range } => {
            Failure::failed(format!("no node knows a range {}", range.0)).hint("`flotilla range list` lists the ranges")
        }
        error => Failure::order(error, "`flotilla range list` shows whether it happened"),
    }
}
