//! `keyspace`: named, separate sets of keys, and their settings.

mod create;
mod drop;
mod list;
mod map;
mod set;
pub mod settings;

use flotilla_proto::{Error, v1};
use flotilla_router::Client;

use super::failure::{Failure, Result};
use super::global::Global;

#[derive(clap::Subcommand, Debug)]
pub enum KeyspaceCommand {
    /// Make a keyspace
    Create(create::CreateArgs),
    /// List the keyspaces with their settings
    List,
    /// Show a keyspace
    Show(list::ShowArgs),
    /// Draw a keyspace's ranges from the first key to the last, by size and heat
    Map(map::MapArgs),
    /// Change a keyspace's settings; what is not named stays as it is
    Set(set::SetArgs),
    /// Drop a keyspace with all its keys. There is no way back
    Drop(drop::DropArgs),
}

pub async fn run(command: KeyspaceCommand, global: &Global) -> Result {
    match command {
        KeyspaceCommand::Create(args) => create::run(args, global).await,
        KeyspaceCommand::List => list::list(global).await,
        KeyspaceCommand::Show(args) => list::show(&args, global).await,
        KeyspaceCommand::Map(args) => map::run(&args, global).await,
        KeyspaceCommand::Set(args) => set::run(args, global).await,
        KeyspaceCommand::Drop(args) => drop::run(&args, global).await,
    }
}

/// The cluster's own keyspace: it has settings, and no keys for others.
const SYSTEM: &str = "system";

/// A keyspace by its name.
async fn find(client: &Client, name: &str) -> Result<v1::Keyspace> {
    if name == SYSTEM {
        return Err(Failure::failed("the system keyspace holds the cluster's own records, and nothing else").hint(
            "`flotilla range show 1` shows its range, `flotilla keyspace set system --replicas N` sets its replicas",
        ));
    }
    let keyspaces = client.list_keyspaces().await?;
    let found = keyspaces.into_iter().find(|keyspace| keyspace.name == name);
    found.ok_or_else(|| Error::KeyspaceNotFound { name: name.into() }.into())
}

/// An order whose outcome is unknown is looked up, not repeated.
fn order_failure(error: Error) -> Failure {
    Failure::order(error, "`flotilla keyspace list` shows whether it happened")
}

/// Tells people of a number of replicas that there are no nodes for yet.
async fn note_nodes(client: &Client, keyspace: &v1::Keyspace) {
    let Ok(nodes) = client.list_nodes().await else { return };
    if (keyspace.replicas as usize) > nodes.len() {
        eprintln!(
            "note: a node holds one replica of a range at most, and there are {}: its ranges get {} replicas when nodes \
             are added",
            super::output::plural(nodes.len() as u64, "node"),
            keyspace.replicas
        );
    }
}
