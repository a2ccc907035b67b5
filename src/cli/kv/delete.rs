//! `kv delete`.

use std::ffi::OsString;

use super::{Keyspace, get, put};
use crate::cli::bytes::KeyStyle;
use crate::cli::failure::Result;
use crate::cli::output;

#[derive(clap::Args, Debug)]
pub struct DeleteArgs {
    /// The key
    key: OsString,
    #[command(flatten)]
    style: KeyStyle,
}

pub async fn run(args: DeleteArgs, keyspace: &Keyspace<'_>) -> Result {
    let key = args.style.key(&args.key)?;
    let shown = args.style.show(&key);
    let result = keyspace.client().await?.delete(key).await?;
    if keyspace.global.json() {
        put::report(&result, keyspace.global)?;
    } else if result.existed {
        output::line("deleted")?;
    }
    if result.existed { Ok(()) } else { Err(get::absent(&shown)) }
}
