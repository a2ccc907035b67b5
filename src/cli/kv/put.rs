//! `kv put`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use flotilla_proto::limits::TTL_MS_MAX;
use flotilla_router::{Expect, WriteResult};
use serde_json::{Value, json};

use super::{Keyspace, input, record_json};
use crate::cli::bytes::KeyStyle;
use crate::cli::failure::{Failure, Result};
use crate::cli::global::{Global, parse_duration};
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
    /// The key ends by itself after this time, such as 30s or 12h; a later write without --ttl takes that away
    #[arg(long, value_name = "TIME", value_parser = parse_ttl)]
    ttl: Option<Duration>,
    #[command(flatten)]
    style: KeyStyle,
}

pub async fn run(args: PutArgs, keyspace: &Keyspace<'_>) -> Result {
    let key = args.style.key(&args.key)?;
    let shown = args.style.show(&key);
    let value = input::value(args.value.as_ref(), args.file.as_deref(), args.style)?;
    let client = keyspace.client().await?;
    let result = match (args.ttl, args.if_absent) {
        (None, false) => client.put(key, value).await?,
        (None, true) => client.put_if_absent(key, value).await?,
        (Some(ttl), false) => client.put_with_ttl(key, value, ttl).await?,
        (Some(ttl), true) => client.compare_and_swap_with_ttl(key, Expect::Absent, value, ttl).await?,
    };
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

/// How long a key lives.
pub fn parse_ttl(text: &str) -> std::result::Result<Duration, String> {
    let ttl = parse_duration(text)?;
    if ttl < Duration::from_millis(1) || ttl > Duration::from_millis(TTL_MS_MAX) {
        return Err("a ttl lies between 1ms and ten years (3650d)".into());
    }
    Ok(ttl)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_has_bounds() {
        assert_eq!(parse_ttl("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_ttl("3650d"), Ok(Duration::from_millis(TTL_MS_MAX)));
        for bad in ["0s", "0.1ms", "3651d", "-1s", "forever"] {
            assert!(parse_ttl(bad).is_err(), "{bad}");
        }
    }
}
