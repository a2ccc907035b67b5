//! `kv`: keys and values.

mod cas;
mod delete;
mod export;
mod get;
pub mod import;
mod input;
mod put;
mod scan;
pub mod tree;

use flotilla_router::Record;
use serde_json::{Value, json};

use super::bytes::base64;
use super::failure::Result;
use super::global::Global;

#[derive(clap::Subcommand, Debug)]
pub enum KvCommand {
    /// Print a key's value, byte for byte
    Get(get::GetArgs),
    /// Write a key
    Put(put::PutArgs),
    /// Delete a key
    Delete(delete::DeleteArgs),
    /// Write or delete a key if it has a certain value or version
    Cas(cas::CasArgs),
    /// List keys in order
    Scan(scan::ScanArgs),
    /// Store a file tree, the rows of a table (CSV), or lines of JSON
    Import(import::ImportArgs),
    /// Write keys as files: the reverse of import. Not one point in time
    Export(export::ExportArgs),
}

pub async fn run(command: KvCommand, global: &Global) -> Result {
    match command {
        KvCommand::Get(args) => get::run(args, global).await,
        KvCommand::Put(args) => put::run(args, global).await,
        KvCommand::Delete(args) => delete::run(args, global).await,
        KvCommand::Cas(args) => cas::run(args, global).await,
        KvCommand::Scan(args) => scan::run(args, global).await,
        KvCommand::Import(args) => import::run(args, &global.client().await?, "default", global).await,
        KvCommand::Export(args) => export::run(args, global).await,
    }
}

fn record_json(record: &Record) -> Value {
    json!({ "key": base64(&record.key), "value": base64(&record.value), "version": record.version })
}
