//! `keyspace drop`: asks first, but never a script.

use serde_json::json;

use super::list::extents;
use super::order_failure;
use crate::cli::confirm;
use crate::cli::failure::Result;
use crate::cli::global::Global;
use crate::cli::output::{self, plural, size};

#[derive(clap::Args, Debug)]
pub struct DropArgs {
    /// Its name
    name: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub async fn run(args: &DropArgs, global: &Global) -> Result {
    let ask = confirm::must_ask(args.yes, &format!("dropping \"{}\" deletes all its keys for good", args.name))?;
    let client = global.client().await?;
    let keyspace = super::find(&client, &args.name).await?;
    if ask {
        let extent = extents(&client).await?.get(&keyspace.keyspace_id).copied().unwrap_or_default();
        let holds = format!("{}, about {}", plural(extent.ranges, "range"), size(extent.bytes));
        let question =
            format!("All keys of \"{}\" ({holds}) will be gone for good. Type its name to drop it:", args.name);
        confirm::ask(&question, &args.name)?;
    }
    client.drop_keyspace(&args.name).await.map_err(order_failure)?;
    if global.json() {
        return output::json(&json!({ "dropped": args.name, "keyspace_id": keyspace.keyspace_id }));
    }
    output::line(format_args!("dropped \"{}\" (id {})", args.name, keyspace.keyspace_id))
}
