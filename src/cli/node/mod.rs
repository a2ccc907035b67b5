//! `node`: the cluster's nodes.

mod drain;
mod list;
mod show;

use flotilla_proto::{Error, v1};
use flotilla_router::Client;

use super::failure::Result;
use super::global::Global;

#[derive(clap::Subcommand, Debug)]
pub enum NodeCommand {
    /// List the nodes with their addresses and figures
    List,
    /// Show a node with all its figures
    Show(show::ShowArgs),
    /// Take a node's leaders away, and give it no new leaders and replicas; or end that
    Drain(drain::DrainArgs),
}

pub async fn run(command: NodeCommand, global: &Global) -> Result {
    match command {
        NodeCommand::List => list::run(global).await,
        NodeCommand::Show(args) => show::run(&args, global).await,
        NodeCommand::Drain(args) => drain::run(&args, global).await,
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
