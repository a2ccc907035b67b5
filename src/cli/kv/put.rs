//! `kv put`.

use std::ffi::OsString;
use std::path::PathBuf;

use flotilla_router::WriteResult;
use serde_json::{Value, json};

use super::{Keyspace, input, record_json};
use crate::cli::bytes::KeyStyle;
use crate::cli::failure::{Failure, Result};
use crate::cli::global::Global;
use crate::cli::output;

#[derive(clap::Args, Debug)]
pub struct PutArgs {
    /// The key
    key: OsString,
    /// The value, as it stands; without it and without --file it is read from stdin
    #[arg(allow_hyphen_values = true)]
    value: Option<OsString>,
    /// Read the value from a file; `-` is stdin
    #[arg(long, value_name = "FILE", conflicts_with = "value")]
    file: Option<PathBuf>,
    /// Write only if the key is not there
    #[arg(long)]
    if_absent: bool,
    #[command(flatten)]
    style: KeyStyle,
}

pub async fn run(args: PutArgs, keyspace: &Keyspace<'_>) -> Result {
    let key = args.style.key(&args.key)?;
    let shown = args.style.show(&key);
    let value = input::value(args.value.as_ref(), args.file.as_deref(), args.style)?;
    let client = keyspace.client().await?;
    let result = if args.if_absent { client.put_if_absent(key, value).await? } else { client.put(key, value).await? };
    report(&result, keyspace.global)?;
    if result.applied {
        return Ok(());
    }
    Err(Failure::absent(format!("\"{shown}\" is there already, with version {}; nothing was written", result.version))
        .hint(format!("to replace it: flotilla kv cas KEY VALUE --expect-version {}", result.version)))
}

/// Prints what a write did; on stdout only if it was applied, or for programs.
pub fn report(result: &WriteResult, global: &Global) -> Result {
    if global.json() {
        return output::json(&result_json(result));
    }
    if result.applied {
        return output::line(format_args!("version {}", result.version));
    }
    Ok(())
}

fn result_json(result: &WriteResult) -> Value {
    json!({
        "applied": result.applied,
        "version": result.version,
        "existed": result.existed,
        "current": result.current.as_ref().map(record_json),
    })
}
