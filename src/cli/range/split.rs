//! `range split`.

use std::ffi::OsString;

use flotilla_proto::{RangeId, v1};
use flotilla_router::SplitAt;
use serde_json::{Value, json};

use super::describe::{bounds, descriptor_json, epoch, replicas};
use super::failure;
use crate::cli::bytes::KeyStyle;
use crate::cli::failure::Result;
use crate::cli::global::Global;
use crate::cli::output::{self, Table};

#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("where").required(true)))]
pub struct SplitArgs {
    /// The range's id
    range: u64,
    /// The first key of a new range; may be given several times
    #[arg(long, value_name = "KEY", group = "where")]
    at: Vec<OsString>,
    /// Into so many parts of about equal size
    #[arg(long, value_name = "N", group = "where", value_parser = clap::value_parser!(u32).range(2..))]
    count: Option<u32>,
    #[command(flatten)]
    style: KeyStyle,
}

pub async fn run(args: &SplitArgs, global: &Global) -> Result {
    let at = at(args)?;
    let client = global.client().await?;
    let ranges = client.split_range(RangeId(args.range), at).await.map_err(failure)?;
    if global.json() {
        return output::json(&json!({
            "range_id": args.range,
            "ranges": ranges.iter().map(descriptor_json).collect::<Vec<Value>>(),
        }));
    }
    output::line(format_args!("range {} is now\n{}", args.range, table(&ranges, args.style)))
}

fn at(args: &SplitArgs) -> Result<SplitAt> {
    Ok(match args.count {
        Some(parts) => SplitAt::Parts(parts),
        None => SplitAt::Keys(args.at.iter().map(|key| args.style.key(key)).collect::<Result<_>>()?),
    })
}

fn table(ranges: &[v1::RangeDescriptor], style: KeyStyle) -> Table {
    let mut table = Table::new(&[">range", "start", "end", "replicas on nodes", "epoch"]);
    for descriptor in ranges {
        let (start, end) = bounds(descriptor, style);
        table.row(vec![descriptor.range_id.to_string(), start, end, replicas(descriptor), epoch(descriptor)]);
    }
    table
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SplitArgs,
    }

    fn parse(words: &[&str]) -> Option<SplitArgs> {
        Line::try_parse_from([&["split"], words].concat()).ok().map(|line| line.args)
    }

    #[test]
    fn at_keys_or_into_parts() {
        let keys = |words: &[&str]| match at(&parse(words).expect("valid")) {
            Ok(SplitAt::Keys(keys)) => keys.iter().map(|key| key.to_vec()).collect::<Vec<_>>(),
            _ => panic!("keys were given"),
        };
        assert_eq!(keys(&["7", "--at", "a\\x00", "--at", "b"]), [&b"a\x00"[..], b"b"]);
        assert_eq!(keys(&["7", "--hex", "--at", "00ff"]), [&b"\x00\xff"[..]]);
        assert!(matches!(at(&parse(&["7", "--count", "4"]).expect("valid")), Ok(SplitAt::Parts(4))));
        for bad in [
            &["7"][..],
            &["7", "--count", "1"],
            &["7", "--count", "2", "--at", "a"],
            &["--at", "a"],
            &["x", "--at", "a"],
        ] {
            assert!(parse(bad).is_none(), "{bad:?}");
        }
        assert_eq!(at(&parse(&["7", "--at", "\\q"]).expect("valid")).err().map(|failure| failure.code()), Some(2));
    }
}
