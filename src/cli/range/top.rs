//! `range top`: the ranges that are asked for most, or hold most.

use std::cmp::Reverse;

use flotilla_proto::v1;
use serde_json::{Value, json};

use super::describe::{bounds, keyspace_name, leader, load_json, status_json};
use super::list::keyspace_of;
use super::of_keyspace;
use crate::cli::bytes::KeyStyle;
use crate::cli::failure::Result;
use crate::cli::global::Global;
use crate::cli::output::{self, Table, count, size};

#[derive(clap::Args, Debug)]
pub struct TopArgs {
    /// What counts
    #[arg(long, value_enum, value_name = "WHAT", default_value = "requests")]
    by: By,
    /// At most so many
    #[arg(long, value_name = "N", default_value = "10", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Only the ranges of this keyspace; `system` is the cluster's own
    #[arg(long, value_name = "NAME")]
    keyspace: Option<String>,
    #[command(flatten)]
    style: KeyStyle,
}

/// What ranges are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum By {
    /// Requests a second, reads and writes
    Requests,
    /// Reads a second
    Reads,
    /// Writes a second
    Writes,
    /// Bytes read and written a second
    Bytes,
    /// Bytes of data held
    Size,
}

impl By {
    fn of(self, status: &v1::RangeStatus) -> u64 {
        let load = status.load.unwrap_or_default();
        match self {
            Self::Requests => load.reads_per_s.saturating_add(load.writes_per_s),
            Self::Reads => load.reads_per_s,
            Self::Writes => load.writes_per_s,
            Self::Bytes => load.read_bytes_per_s.saturating_add(load.write_bytes_per_s),
            Self::Size => status.data_bytes,
        }
    }
}

pub async fn run(args: &TopArgs, global: &Global) -> Result {
    let client = global.client().await?;
    let (ranges, keyspaces) = match &args.keyspace {
        Some(name) => {
            let (ranges, routes) = of_keyspace(&client, name).await?;
            (ranges, routes.keyspaces)
        }
        None => {
            let routes = client.list_ranges().await?;
            (routes.ranges, routes.keyspaces)
        }
    };
    let top = select(ranges, args.by, args.limit as usize);
    if global.json() {
        let one = |status: &v1::RangeStatus| {
            let mut value = status_json(status);
            value["keyspace"] = json!(keyspace_name(keyspace_of(status), &keyspaces));
            value["load"] = load_json(status.load.as_ref());
            value
        };
        return output::json(&Value::Array(top.iter().map(one).collect()));
    }
    if top.is_empty() {
        return output::line("no range is asked for anything worth telling; --by size shows the largest");
    }
    output::line(table(&top, &keyspaces, args.style))
}

/// The first ones; those with nothing of it are left out.
fn select(mut ranges: Vec<v1::RangeStatus>, by: By, limit: usize) -> Vec<v1::RangeStatus> {
    ranges.retain(|status| by.of(status) > 0);
    let id = |status: &v1::RangeStatus| status.descriptor.as_ref().map_or(0, |descriptor| descriptor.range_id);
    ranges.sort_by_key(|status| (Reverse(by.of(status)), id(status)));
    ranges.truncate(limit);
    ranges
}

fn table(ranges: &[v1::RangeStatus], keyspaces: &[v1::Keyspace], style: KeyStyle) -> Table {
    let mut table = Table::new(&[
        ">range",
        "keyspace",
        ">reads/s",
        ">writes/s",
        ">read/s",
        ">written/s",
        ">size",
        "leader",
        "start",
        "end",
    ]);
    for status in ranges {
        let descriptor = status.descriptor.clone().unwrap_or_default();
        let load = status.load.unwrap_or_default();
        let (start, end) = bounds(&descriptor, style);
        table.row(vec![
            descriptor.range_id.to_string(),
            keyspace_name(descriptor.keyspace_id, keyspaces),
            count(load.reads_per_s),
            count(load.writes_per_s),
            size(load.read_bytes_per_s),
            size(load.write_bytes_per_s),
            size(status.data_bytes),
            leader(status.leader_node_id),
            start,
            end,
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(range_id: u64, reads: u64, writes: u64, bytes: u64) -> v1::RangeStatus {
        v1::RangeStatus {
            descriptor: Some(v1::RangeDescriptor { range_id, keyspace_id: 1, ..Default::default() }),
            leader_node_id: 2,
            data_bytes: bytes,
            load: (reads + writes > 0).then(|| v1::RangeLoad {
                reads_per_s: reads,
                writes_per_s: writes,
                read_bytes_per_s: reads * 10,
                write_bytes_per_s: writes * 100,
            }),
            ..Default::default()
        }
    }

    #[test]
    fn the_hottest_come_first_by_what_was_asked_for() {
        let ranges = [range(2, 100, 1, 5), range(3, 10, 50, 9_000), range(4, 0, 0, 7), range(5, 40, 61, 0)];
        let ids = |by, limit| -> Vec<u64> {
            let top = select(ranges.to_vec(), by, limit);
            top.iter().map(|status| status.descriptor.as_ref().expect("one").range_id).collect()
        };
        assert_eq!(ids(By::Requests, 9), [2, 5, 3], "equal ones by their ids, cold ones not at all");
        assert_eq!(ids(By::Reads, 2), [2, 5]);
        assert_eq!(ids(By::Writes, 9), [5, 3, 2]);
        assert_eq!(ids(By::Bytes, 1), [5]);
        assert_eq!(ids(By::Size, 9), [3, 4, 2]);
    }

    #[test]
    fn load_is_a_table() {
        let text = table(&[range(3, 1_234, 50, 1_536)], &[], KeyStyle::default()).to_string();
        let golden = "\
RANGE  KEYSPACE  READS/S  WRITES/S    READ/S  WRITTEN/S     SIZE  LEADER  START    END
    3  default     1,234        50  12.1 KiB    4.9 KiB  1.5 KiB  2       (first)  (last)";
        assert_eq!(text, golden);
    }
}
