//! `kv delete`.

use std::ffi::OsString;

use super::{get, put};
use crate::cli::bytes::KeyStyle;
use crate::cli::failure::Result;
use crate::cli::global::Global;
use crate::cli::output;

#[derive(clap::Args, Debug)]
pub struct DeleteArgs {
    /// The key
    key: OsString,
    #[command(flatten)]
    style: KeyStyle,
}

pub async fn run(args: DeleteArgs, global: &Global) -> Result {
    let key = args.style.key(&args.key)?;
    let shown = args.style.show(&key);
    let result = global.client().await?.delete(key).await?;
    if global.json() {
        put::report(&result, global)?;
    } else if result.existed {
        output::line("deleted")?;
    }
    if result.existed { Ok(()) } else { Err(get::absent(&shown)) }
}
