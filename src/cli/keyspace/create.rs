//! `keyspace create`.

use flotilla_proto::v1;

use super::settings::{self, Settings};
use super::{note_nodes, order_failure};
use crate::cli::failure::Result;
use crate::cli::global::Global;
use crate::cli::output;

#[derive(clap::Args, Debug)]
pub struct CreateArgs {
    /// Its name: letters, digits, `_`, `-` and `.`
    name: String,
    #[command(flatten)]
    settings: Settings,
    /// Begin with so many ranges, cut by the first characters of keys
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    ranges: u32,
}

pub async fn run(args: CreateArgs, global: &Global) -> Result {
    let places = &args.settings.places;
    let request = v1::CreateKeyspaceRequest {
        name: args.name,
        replicas: args.settings.replicas.unwrap_or(0),
        boundary: args.settings.boundary,
        split_bytes: args.settings.split_bytes,
        ranges: args.ranges,
        constraints: places.constraints(None),
        merge: places.merge_policy(None),
        nodes_will_come: places.nodes_will_come,
        split_queries_per_s: args.settings.split_queries,
        split_load_bytes_per_s: args.settings.split_load,
    };
    let client = global.client().await?;
    let keyspace = client.create_keyspace(request).await.map_err(order_failure)?;
    note_nodes(&client, &keyspace).await;
    if global.json() {
        return output::json(&settings::to_json(&keyspace));
    }
    output::line(settings::line(&keyspace))
}
