//! `debug range`.

use flotilla_engine::recover::RangeBoot;
use serde_json::{Value, json};

use super::{RangeArgs, copy, find, load};
use crate::cli::bytes::KeyStyle;
use crate::cli::failure::Result;
use crate::cli::global::Global;
use crate::cli::output::{self, Table, size};
use crate::cli::range::describe::descriptor_json;

pub fn run(args: &RangeArgs, global: &Global) -> Result {
    let opened = copy::Opened::open(&args.dir)?;
    let boot = load(&opened)?;
    let ranges: Vec<&RangeBoot> = match args.range {
        Some(range) => vec![find(&boot, range)?],
        None => boot.ranges.iter().collect(),
    };
    if global.json() {
        return output::json(&Value::Array(ranges.into_iter().map(to_json).collect()));
    }
    output::line(table(&ranges, args.style))
}

fn log_bytes(range: &RangeBoot) -> u64 {
    range.entry_bytes.iter().map(|bytes| u64::from(*bytes)).sum()
}

fn table(ranges: &[&RangeBoot], style: KeyStyle) -> Table {
    let heads = [
        ">range",
        "start",
        "end",
        "replicas on nodes",
        ">term",
        ">vote",
        "log",
        ">log size",
        ">commit",
        ">applied",
        "checksum",
    ];
    let mut table = Table::new(&heads);
    for range in ranges {
        let nodes: Vec<String> = range.descriptor.replicas.iter().map(|replica| replica.node_id.to_string()).collect();
        table.row(vec![
            range.descriptor.range_id.to_string(),
            style.show(&range.descriptor.start),
            style.show(&range.descriptor.end),
            nodes.join(","),
            range.raft.term.to_string(),
            range.raft.vote.to_string(),
            format!("{}-{}", range.raft.truncated_index + 1, range.last_index),
            size(log_bytes(range)),
            range.raft.commit.to_string(),
            range.applied.index.to_string(),
            format!("{:08x}", range.applied.checksum),
        ]);
    }
    table
}

fn to_json(range: &RangeBoot) -> Value {
    let mut value = descriptor_json(&range.descriptor);
    value["raft"] = json!({
        "term": range.raft.term,
        "vote": range.raft.vote,
        "commit": range.raft.commit,
        "truncated_index": range.raft.truncated_index,
        "truncated_term": range.raft.truncated_term,
        "last_index": range.last_index,
        "log_bytes": log_bytes(range),
    });
    value["applied"] = json!({
        "index": range.applied.index,
        "term": range.applied.term,
        "version_counter": range.applied.version_counter,
        "checksum": range.applied.checksum,
    });
    value
}
