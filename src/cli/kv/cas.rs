//! `kv cas`: compare and swap.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use flotilla_router::{Expect, WriteResult};

use super::{Keyspace, input, put};
use crate::cli::bytes::{KeyStyle, excerpt};
use crate::cli::failure::{Failure, Result};

#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("expectation").required(true)))]
pub struct CasArgs {
    /// The key
    key: OsString,
    /// The new value, as it stands; without it, --file and --delete it is read from stdin
    #[arg(allow_hyphen_values = true)]
    value: Option<OsString>,
    /// Read the new value from a file; `-` is stdin
    #[arg(long, value_name = "FILE", conflicts_with = "value")]
    file: Option<PathBuf>,
    /// Delete the key instead of writing a new value
    #[arg(long, conflicts_with_all = ["value", "file"])]
    delete: bool,
    /// Only if the key has this value
    #[arg(long, value_name = "VALUE", group = "expectation", allow_hyphen_values = true)]
    expect_value: Option<OsString>,
    /// Only if the key has this file's content as its value
    #[arg(long, value_name = "FILE", group = "expectation")]
    expect_file: Option<PathBuf>,
    /// Only if the key has this version
    #[arg(long, value_name = "VERSION", group = "expectation")]
    expect_version: Option<u64>,
    /// Only if the key is not there
    #[arg(long, group = "expectation")]
    expect_absent: bool,
    /// The key ends by itself after this time, such as 30s or 12h
    #[arg(long, value_name = "TIME", value_parser = put::parse_ttl, conflicts_with = "delete")]
    ttl: Option<Duration>,
    #[command(flatten)]
    style: KeyStyle,
}

pub async fn run(args: CasArgs, keyspace: &Keyspace<'_>) -> Result {
    let key = args.style.key(&args.key)?;
    let shown = args.style.show(&key);
    let expect = expectation(&args)?;
    let new_value =
        if args.delete { None } else { Some(input::value(args.value.as_ref(), args.file.as_deref(), args.style)?) };
    let client = keyspace.client().await?;
    let result = match (new_value, args.ttl) {
        (Some(value), Some(ttl)) => client.compare_and_swap_with_ttl(key, expect, value, ttl).await?,
        (new_value, _) => client.compare_and_swap(key, expect, new_value).await?,
    };
    put::report(&result, keyspace.global)?;
    if result.applied { Ok(()) } else { Err(refused(&shown, &result)) }
}

fn expectation(args: &CasArgs) -> Result<Expect> {
    Ok(match args.expect_version {
        Some(version) => Expect::Version(version),
        None if args.expect_absent => Expect::Absent,
        None => Expect::Value(input::value(args.expect_value.as_ref(), args.expect_file.as_deref(), args.style)?),
    })
}

fn refused(shown: &str, result: &WriteResult) -> Failure {
    let now = match &result.current {
        Some(record) => format!("it has version {} and value \"{}\"", record.version, excerpt(&record.value, 60)),
        None => "it is not there".into(),
    };
    Failure::absent(format!("the comparison failed for \"{shown}\": {now}; nothing was written"))
        .hint("read the key, and repeat with the version that was read")
}
