//! `kv get`.

use std::ffi::OsString;
use std::io::Write;

use flotilla_router::Consistency;

use super::{Keyspace, record_json};
use crate::cli::bytes::KeyStyle;
use crate::cli::failure::{Failure, Result};
use crate::cli::output;

#[derive(clap::Args, Debug)]
pub struct GetArgs {
    /// The key
    key: OsString,
    /// Print the version instead of the value
    #[arg(long)]
    version_only: bool,
    /// Accept what any replica has applied, which may be old
    #[arg(long)]
    stale: bool,
    #[command(flatten)]
    style: KeyStyle,
}

pub async fn run(args: GetArgs, keyspace: &Keyspace<'_>) -> Result {
    let key = args.style.key(&args.key)?;
    let mut client = keyspace.client().await?;
    if args.stale {
        client = client.with_consistency(Consistency::Stale);
    }
    let shown = args.style.show(&key);
    let record = client.get(key).await?.ok_or_else(|| absent(&shown))?;
    if keyspace.global.json() {
        return output::json(&record_json(&record));
    }
    if args.version_only {
        return output::line(record.version);
    }
    // Exactly the value's bytes: no line feed is added.
    let mut out = output::out();
    out.write_all(&record.value)?;
    Ok(out.flush()?)
}

/// The key is not there.
pub fn absent(shown: &str) -> Failure {
    Failure::absent(format!("there is no key \"{shown}\"")).hint("`flotilla kv scan --prefix` lists keys")
}
