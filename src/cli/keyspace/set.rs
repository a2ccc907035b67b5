//! `keyspace set`.

use flotilla_proto::v1;

use super::order_failure;
use super::settings::{self, Settings};
use crate::cli::failure::{Failure, Result};
use crate::cli::global::Global;
use crate::cli::output;

#[derive(clap::Args, Debug)]
pub struct SetArgs {
    /// Its name
    name: String,
    #[command(flatten)]
    settings: Settings,
}

pub async fn run(args: SetArgs, global: &Global) -> Result {
    let Settings { replicas, boundary, split_bytes } = args.settings;
    if replicas.is_none() && boundary.is_none() && split_bytes.is_none() {
        return Err(Failure::usage("nothing to change was named")
            .hint("name at least one of --replicas, --boundary and --split-bytes"));
    }
    let request = v1::SetKeyspaceRequest { name: args.name, replicas, boundary, split_bytes };
    let keyspace = global.client().await?.set_keyspace(request).await.map_err(order_failure)?;
    if global.json() {
        return output::json(&settings::to_json(&keyspace));
    }
    output::line(settings::line(&keyspace))
}
