//! `kv`: keys and values.

mod cas;
mod delete;
mod delete_range;
mod export;
mod get;
pub mod import;
mod input;
pub mod put;
mod scan;
pub mod tree;

use bytes::Bytes;
use flotilla_proto::ids::DEFAULT_KEYSPACE_NAME;
use flotilla_router::{Client, Record};
use serde_json::{Value, json};

use super::bytes::{base64, from_base64};
use super::failure::{Failure, Result};
use super::global::Global;

#[derive(clap::Args, Debug)]
pub struct KvArgs {
    /// The keyspace that the keys are in
    #[arg(long, global = true, env = "FLOTILLA_KEYSPACE", value_name = "NAME", default_value = DEFAULT_KEYSPACE_NAME)]
    keyspace: String,
    #[command(subcommand)]
    command: KvCommand,
}

/// The keyspace that a command is for.
#[derive(Debug)]
pub struct Keyspace<'a> {
    /// How to reach it.
    pub global: &'a Global,
    name: String,
}

impl Keyspace<'_> {
    /// A client of it.
    pub async fn client(&self) -> Result<Client> {
        Ok(self.global.client().await?.keyspace(&self.name))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

#[derive(clap::Subcommand, Debug)]
enum KvCommand {
    /// Print a key's value, byte for byte
    Get(get::GetArgs),
    /// Write a key
    Put(put::PutArgs),
    /// Delete a key
    Delete(delete::DeleteArgs),
    /// Delete all keys of a span, part by part
    DeleteRange(delete_range::DeleteRangeArgs),
    /// Write or delete a key if it has a certain value or version
    Cas(cas::CasArgs),
    /// List keys in order
    Scan(scan::ScanArgs),
    /// Store a file tree, the rows of a table (CSV), or lines of JSON
    Import(import::ImportArgs),
    /// Write keys as files: the reverse of import. Not one point in time
    Export(export::ExportArgs),
}

pub async fn run(args: KvArgs, global: &Global) -> Result {
    let keyspace = Keyspace { global, name: args.keyspace };
    match args.command {
        KvCommand::Get(args) => get::run(args, &keyspace).await,
        KvCommand::Put(args) => put::run(args, &keyspace).await,
        KvCommand::Delete(args) => delete::run(args, &keyspace).await,
        KvCommand::DeleteRange(args) => delete_range::run(args, &keyspace).await,
        KvCommand::Cas(args) => cas::run(args, &keyspace).await,
        KvCommand::Scan(args) => scan::run(args, &keyspace).await,
        KvCommand::Import(args) => import::run(args, &keyspace).await,
        KvCommand::Export(args) => export::run(args, &keyspace).await,
    }
}

fn record_json(record: &Record) -> Value {
    let mut value = json!({ "key": base64(&record.key), "value": base64(&record.value), "version": record.version });
    if let Some(ttl) = record.ttl {
        value["ttl_ms"] = json!(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
    }
    value
}

/// A token that an earlier command printed.
fn token(text: &str, command: &str) -> Result<Bytes> {
    from_base64(text)
        .filter(|token| !token.is_empty())
        .ok_or_else(|| Failure::usage("the token is not one").hint(format!("an earlier `{command} --limit` prints it")))
}
