//! `placement history`.

use std::time::Duration;

use flotilla_proto::v1;
use serde_json::{Value, json};

use crate::cli::failure::Result;
use crate::cli::global::{Global, parse_duration};
use crate::cli::output::{self, Table, count, duration, plural};
use crate::cli::time::utc;

#[derive(clap::Args, Debug)]
pub struct HistoryArgs {
    /// Only what concerns this range
    #[arg(long, value_name = "ID")]
    range: Option<u64>,
    /// Only what concerns this node
    #[arg(long, value_name = "ID")]
    node: Option<u64>,
    /// Only what is not older, such as 10m or 1h
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    since: Option<Duration>,
    /// At most so many entries
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

pub async fn run(args: &HistoryArgs, global: &Global) -> Result {
    let client = global.client().await?;
    let request = v1::PlacementHistoryRequest {
        range_id: args.range.unwrap_or(0),
        node_id: args.node.unwrap_or(0),
        within_ms: args.since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
        limit: args.limit,
    };
    let answer = client.placement_history(request).await?;
    if global.json() {
        return output::json(&json!({
            "entries": answer.entries.iter().map(to_json).collect::<Vec<_>>(),
            "more": answer.more,
            "now_unix_ms": answer.now_unix_ms,
            "kept": answer.kept,
            "since_unix_ms": answer.since_unix_ms,
        }));
    }
    if answer.entries.is_empty() {
        return output::line(nothing(&answer));
    }
    output::line(table(&answer.entries))?;
    if answer.more {
        eprintln!("there are older ones: --limit shows more");
    }
    Ok(())
}

/// What there is, where nothing fits.
fn nothing(answer: &v1::PlacementHistoryResponse) -> String {
    match answer.kept {
        0 => "nothing was decided yet".into(),
        kept => {
            format!("nothing of the kind among the {} kept, since {}", count(kept.into()), utc(answer.since_unix_ms))
        }
    }
}

/// The entries, a line each.
pub fn table(entries: &[v1::HistoryEntry]) -> Table {
    let mut table = Table::new(&["time (UTC)", "what", ">range", "nodes", "became", "why"]);
    for entry in entries {
        let range = if entry.range_id == 0 { "-".into() } else { entry.range_id.to_string() };
        table.row(vec![utc(entry.unix_ms), word(entry).into(), range, nodes(entry), became(entry), why(entry)]);
    }
    table
}

/// What an entry is, in one word.
pub fn word(entry: &v1::HistoryEntry) -> &str {
    if entry.kind != "order" {
        return &entry.kind;
    }
    if entry.order_kind == "merge" {
        return "merge";
    }
    match (entry.add_nodes.is_empty(), entry.remove_nodes.is_empty(), entry.leader_node_id) {
        (false, false, _) => "move",
        (false, true, _) => "add",
        (true, false, _) => "remove",
        (true, true, 0) => "order",
        (true, true, _) => "transfer",
    }
}

/// Which nodes get a replica (+), lose one (-), and which is to lead.
fn nodes(entry: &v1::HistoryEntry) -> String {
    let mut parts: Vec<String> = entry.add_nodes.iter().map(|node| format!("+{node}")).collect();
    parts.extend(entry.remove_nodes.iter().map(|node| format!("-{node}")));
    if entry.leader_node_id != 0 {
        parts.push(format!("lead:{}", entry.leader_node_id));
    }
    if parts.is_empty() {
        parts.extend(entry.node_ids.iter().map(u64::to_string));
    }
    if parts.is_empty() { "-".into() } else { parts.join(" ") }
}

/// What became of an order.
pub fn became(entry: &v1::HistoryEntry) -> String {
    match (entry.kind.as_str(), entry.outcome.as_str()) {
        ("order", "") => "under way".into(),
        ("order", outcome) => {
            let took = duration(Duration::from_millis(entry.outcome_unix_ms.saturating_sub(entry.unix_ms)));
            match outcome.split_once(": ") {
                Some((outcome, _)) => format!("{outcome} after {took}"),
                None => format!("{outcome} after {took}"),
            }
        }
        _ => "-".into(),
    }
}

fn why(entry: &v1::HistoryEntry) -> String {
    let mut text = entry.what.clone();
    if !entry.other_ranges.is_empty() {
        let others: Vec<String> = entry.other_ranges.iter().take(8).map(u64::to_string).collect();
        let all = plural(entry.other_ranges.len() as u64, "range");
        let cut = if others.len() < entry.other_ranges.len() { ", ..." } else { "" };
        text.push_str(&format!(" ({all}: {}{cut})", others.join(", ")));
    }
    if let Some((_, end)) = entry.outcome.split_once(": ") {
        text.push_str(&format!("; ended: {end}"));
    }
    text
}

/// An entry for programs.
pub fn to_json(entry: &v1::HistoryEntry) -> Value {
    json!({
        "id": entry.id,
        "unix_ms": entry.unix_ms,
        "time": utc(entry.unix_ms),
        "kind": entry.kind,
        "word": word(entry),
        "range_id": entry.range_id,
        "node_ids": entry.node_ids,
        "order_id": entry.order_id,
        "order_kind": entry.order_kind,
        "add_nodes": entry.add_nodes,
        "remove_nodes": entry.remove_nodes,
        "leader_node_id": entry.leader_node_id,
        "other_ranges": entry.other_ranges,
        "what": entry.what,
        "outcome": entry.outcome,
        "outcome_unix_ms": entry.outcome_unix_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: &str, what: &str) -> v1::HistoryEntry {
        v1::HistoryEntry { unix_ms: 1, kind: kind.into(), what: what.into(), ..Default::default() }
    }

    #[test]
    fn the_history_is_a_table() {
        let moved = v1::HistoryEntry {
            range_id: 7,
            order_id: 3,
            add_nodes: vec![4],
            remove_nodes: vec![1],
            outcome: "done".into(),
            outcome_unix_ms: 1_501,
            ..entry("order", "balance: node 1 has 9 replicas, node 4 has 2")
        };
        let lost = v1::HistoryEntry {
            outcome: "given-up: nothing is heard of node 4".into(),
            outcome_unix_ms: 60_001,
            ..moved.clone()
        };
        let lead = v1::HistoryEntry { range_id: 8, leader_node_id: 2, ..entry("order", "node 1 drains") };
        let split = v1::HistoryEntry { range_id: 8, other_ranges: vec![9], ..entry("split", "at \"k\"") };
        let dead = v1::HistoryEntry { node_ids: vec![3], ..entry("dead", "nothing is heard of it") };
        let text = table(&[moved, lost, lead, split, dead]).to_string();
        let golden = "\
TIME (UTC)               WHAT      RANGE  NODES   BECAME                 WHY
1970-01-01 00:00:00.001  move          7  +4 -1   done after 1.50 s      balance: node 1 has 9 replicas, node 4 has 2
1970-01-01 00:00:00.001  move          7  +4 -1   given-up after 60.00 s  balance: node 1 has 9 replicas, node 4 has 2; ended: nothing is heard of node 4
1970-01-01 00:00:00.001  transfer      8  lead:2  under way              node 1 drains
1970-01-01 00:00:00.001  split         8  -       -                      at \"k\" (1 range: 9)
1970-01-01 00:00:00.001  dead          -  3       -                      nothing is heard of it";
        // The widest cell of a column decides, whichever that is.
        let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeeze(&text), squeeze(golden));
    }

    #[test]
    fn nothing_is_said_in_words() {
        assert_eq!(nothing(&v1::PlacementHistoryResponse::default()), "nothing was decided yet");
        let some = v1::PlacementHistoryResponse { kept: 12, since_unix_ms: 1, ..Default::default() };
        assert_eq!(nothing(&some), "nothing of the kind among the 12 kept, since 1970-01-01 00:00:00.001");
    }
}
