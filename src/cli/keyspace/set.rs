//! `keyspace set`. Fewer replicas are a wish that is asked about first: whoever means it says so.

use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::v1;
use flotilla_router::Client;

use super::settings::{self, Settings};
use super::{SYSTEM, note_nodes, order_failure};
use crate::cli::confirm;
use crate::cli::failure::{Failure, Result};
use crate::cli::global::Global;
use crate::cli::output;

#[derive(clap::Args, Debug)]
pub struct SetArgs {
    /// Its name
    name: String,
    #[command(flatten)]
    settings: Settings,
    /// Do not ask before the number of replicas is lowered
    #[arg(long)]
    yes: bool,
}

pub async fn run(args: SetArgs, global: &Global) -> Result {
    if args.settings.is_empty() {
        return Err(Failure::usage("nothing to change was named").hint(
            "name at least one of --replicas, --boundary, --split-bytes, --split-queries, --split-load, \
             --require-label, --forbid-label, --prefer-leaders, --no-constraints and --merge",
        ));
    }
    let Settings { replicas, boundary, split_bytes, split_queries, split_load, places } = args.settings;
    let client = global.client().await?;
    let known = client.list_keyspaces().await?.into_iter().find(|keyspace| keyspace.name == args.name);
    let now = replicas_now(&client, &args.name, known.as_ref()).await?;
    if let (Some(fewer), Some(now)) = (replicas.filter(|wanted| Some(*wanted) < now), now) {
        let what = format!(
            "\"{}\" would have {fewer} replicas instead of {now}: {}",
            args.name,
            match (fewer - 1) / 2 {
                0 => "with one node down, keys could not be reached any more, or would be lost".to_owned(),
                1 => "it would outlive the loss of one node only".to_owned(),
                nodes => format!("it would outlive the loss of {nodes} nodes only"),
            }
        );
        if confirm::must_ask(args.yes, &what)? {
            confirm::ask(&format!("{what}. Type its name to go on:"), &args.name)?;
        }
    }
    let request = v1::SetKeyspaceRequest {
        name: args.name,
        replicas,
        boundary,
        split_bytes,
        constraints: places.constraints(known.as_ref().and_then(|keyspace| keyspace.constraints.as_ref())),
        merge: places.merge_policy(known.as_ref().and_then(|keyspace| keyspace.merge.as_ref())),
        nodes_will_come: places.nodes_will_come,
        split_queries_per_s: split_queries,
        split_load_bytes_per_s: split_load,
    };
    let keyspace = client.set_keyspace(request).await.map_err(order_failure)?;
    note_nodes(&client, &keyspace).await;
    if global.json() {
        return output::json(&settings::to_json(&keyspace));
    }
    output::line(settings::line(&keyspace))
}

/// How many replicas a keyspace asks for by now; `None`: there is none of this name.
async fn replicas_now(client: &Client, name: &str, known: Option<&v1::Keyspace>) -> Result<Option<u32>> {
    if name != SYSTEM {
        return Ok(known.map(|keyspace| keyspace.replicas));
    }
    // It is not listed; its one range tells.
    let status = client.get_range(SYSTEM_RANGE, None).await?.status.unwrap_or_default();
    let voter = |replica: &&v1::ReplicaDescriptor| replica.role() == v1::ReplicaRole::Voter;
    let voters = status.descriptor.iter().flat_map(|descriptor| &descriptor.replicas).filter(voter).count();
    Ok(u32::try_from(voters).ok())
}
