//! `node`: the cluster's nodes.

mod decommission;
mod drain;
mod list;
mod maintenance;
mod show;

use flotilla_proto::{Error, v1};
use flotilla_router::Client;

use super::failure::Result;
use super::global::Global;
pub use list::labels_json;

#[derive(clap::Subcommand, Debug)]
pub enum NodeCommand {
    /// List the nodes with their addresses and figures
    List,
    /// Show a node with all its figures
    Show(show::ShowArgs),
    /// Take a node's leaders away, and give it no new leaders and replicas; or end that
    Drain(drain::DrainArgs),
    /// Empty a node, and remove it from the cluster for good
    Decommission(decommission::DecommissionArgs),
    /// Let a node be away for a while without rebuilding what it has
    Maintenance(maintenance::MaintenanceArgs),
}

pub async fn run(command: NodeCommand, global: &Global) -> Result {
    match command {
        NodeCommand::List => list::run(global).await,
        NodeCommand::Show(args) => show::run(&args, global).await,
        NodeCommand::Drain(args) => drain::run(&args, global).await,
        NodeCommand::Decommission(args) => decommission::run(&args, global).await,
        NodeCommand::Maintenance(args) => maintenance::run(&args, global).await,
    }
}

/// A node by its id.
async fn find(client: &Client, id: u64) -> Result<v1::NodeInfo> {
    let nodes = client.list_nodes().await?;
    let known: Vec<String> = nodes.iter().map(|node| node.node_id.to_string()).collect();
    let found = nodes.into_iter().find(|node| node.node_id == id);
    found.ok_or_else(|| {
        Error::invalid(format!("there is no node {id}"), format!("the nodes are {}", known.join(", "))).into()
    })
}
