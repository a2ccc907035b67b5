//! `range events`: what happened to a range, as all nodes tell it, by time.

use flotilla_proto::{NodeId, RangeId, v1};
use serde_json::{Value, json};

use crate::cli::failure::{Failure, Result};
use crate::cli::global::Global;
use crate::cli::output::{self, Table};

#[derive(clap::Args, Debug)]
pub struct EventsArgs {
    /// The range's id
    range: u64,
}

pub async fn run(args: &EventsArgs, global: &Global) -> Result {
    let client = global.client().await?;
    let (mut events, mut silent) = (Vec::new(), Vec::new());
    for node in client.list_nodes().await? {
        match client.range_events(NodeId(node.node_id), RangeId(args.range)).await {
            Ok(found) => events.extend(found),
            // A node that never had a replica has nothing to tell.
            Err(flotilla_proto::Error::RangeNotFound { .. }) => {}
            Err(error) => silent.push((node.node_id, error.to_string())),
        }
    }
    if events.is_empty() && silent.is_empty() {
        return Err(Failure::failed(format!("no node remembers anything of range {}", args.range))
            .hint("nodes remember what happened since they started; `flotilla range list` lists the ranges"));
    }
    // Clocks differ between nodes; on one node, the order is its own.
    events.sort_by_key(|event| event.unix_ms);
    if global.json() {
        let silent: Vec<Value> = silent.iter().map(|(node, why)| json!({ "node_id": node, "why": why })).collect();
        return output::json(&json!({
            "range_id": args.range, "events": events.iter().map(to_json).collect::<Vec<_>>(), "silent": silent,
        }));
    }
    for (node, why) in silent {
        eprintln!("node {node} was not heard: {why}");
    }
    output::line(table(&events))
}

fn table(events: &[v1::RangeEvent]) -> Table {
    let mut table = Table::new(&["time (UTC)", "node", "what", "how"]);
    for event in events {
        table.row(vec![time(event.unix_ms), event.node_id.to_string(), event.kind.clone(), event.what.clone()]);
    }
    table
}

fn to_json(event: &v1::RangeEvent) -> Value {
    json!({
        "unix_ms": event.unix_ms,
        "time": time(event.unix_ms),
        "node_id": event.node_id,
        "kind": event.kind,
        "what": event.what,
    })
}

/// A time of UTC, to the millisecond.
fn time(unix_ms: u64) -> String {
    let (days, of_day) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let (year, month, day) = date(days);
    let (hours, minutes, seconds) = (of_day / 3_600_000, of_day / 60_000 % 60, of_day / 1_000 % 60);
    format!("{year:04}-{month:02}-{day:02} {hours:02}:{minutes:02}:{seconds:02}.{:03}", of_day % 1_000)
}

/// The date so many days after 1970-01-01.
fn date(mut days: u64) -> (u64, usize, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    // 400 years are always 146,097 days; what is left takes a few hundred steps at most.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month + 1, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (unix_ms, text) in [
            (0, "1970-01-01 00:00:00.000"),
            (951_782_399_999, "2000-02-28 23:59:59.999"),
            (951_782_400_000, "2000-02-29 00:00:00.000"),
            (1_709_251_199_000, "2024-02-29 23:59:59.000"),
            (1_735_689_599_001, "2024-12-31 23:59:59.001"),
            (4_107_542_400_000, "2100-03-01 00:00:00.000"),
            (32_503_680_000_000, "3000-01-01 00:00:00.000"),
        ] {
            assert_eq!(time(unix_ms), text);
        }
        assert!(!time(u64::MAX).is_empty());
    }

    #[test]
    fn events_have_a_line_each() {
        let event = v1::RangeEvent { unix_ms: 1, node_id: 2, kind: "split".into(), what: "at k".into() };
        let text = table(std::slice::from_ref(&event)).to_string();
        assert_eq!(text.lines().nth(1), Some("1970-01-01 00:00:00.001  2     split  at k"));
        assert_eq!(to_json(&event)["kind"], "split");
    }
}
