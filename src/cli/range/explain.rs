//! `range explain`: why a range is where it is, what is under way, what was decided of late, and what would come next.
//!
//! The placement service knows all of it. Where it cannot be asked, the range's leader tells what it knows, and the
//! rest is said to be missing.

use std::time::Duration;

use flotilla_proto::{Error, RangeId, v1};
use serde_json::{Value, json};

use super::describe::{bounds, leader, load_json, status_json};
use super::failure;
use crate::cli::bytes::KeyStyle;
use crate::cli::failure::Result;
use crate::cli::global::Global;
use crate::cli::node::labels_json;
use crate::cli::output::{self, Table, count, duration, size};
use crate::cli::placement::{history, plan};
use crate::cli::time::utc;

#[derive(clap::Args, Debug)]
pub struct ExplainArgs {
    /// The range's id
    range: u64,
    /// Entries of its history at most
    #[arg(long, value_name = "N", default_value = "10", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    limit: u32,
    #[command(flatten)]
    style: KeyStyle,
}

pub async fn run(args: &ExplainArgs, global: &Global) -> Result {
    let client = global.client().await?;
    let answer = client.explain_range(RangeId(args.range), args.limit).await;
    // The leader's own word on what it waits for; that it cannot be asked is told by what is missing.
    let led = client.get_range(RangeId(args.range), None).await.ok();
    let explained = match answer {
        Ok(explained) => explained,
        Err(error @ (Error::Timeout { .. } | Error::Unavailable { .. })) => {
            let Some(led) = led else { return Err(failure(error)) };
            return without_placement(args, global, &led, &error);
        }
        Err(error) => return Err(failure(error)),
    };
    let replica = led.and_then(|led| led.replica);
    if global.json() {
        return output::json(&to_json(&explained, replica.as_ref()));
    }
    output::line(text(&explained, replica.as_ref(), args.style))
}

/// What the leader alone knows.
fn without_placement(args: &ExplainArgs, global: &Global, led: &v1::GetRangeResponse, error: &Error) -> Result {
    let status = led.status.clone().unwrap_or_default();
    let missing = format!("the placement service does not answer ({error}): why, and what comes next, is not known");
    if global.json() {
        let mut value = status_json(&status);
        value["missing"] = missing.into();
        return output::json(&value);
    }
    output::line(format_args!("{}\nmissing: {missing}", head(&status, None, args.style)))
}

fn head(status: &v1::RangeStatus, keyspace: Option<&v1::Keyspace>, style: KeyStyle) -> String {
    let descriptor = status.descriptor.clone().unwrap_or_default();
    let (start, end) = bounds(&descriptor, style);
    let of = keyspace.map(|keyspace| format!(" of keyspace \"{}\"", keyspace.name)).unwrap_or_default();
    let load = status.load.unwrap_or_default();
    format!(
        "range {}{of}: {start} to {end}, about {} of data\n\
         leader {}, term {}; {} reads/s ({}), {} writes/s ({})",
        descriptor.range_id,
        size(status.data_bytes),
        leader(status.leader_node_id),
        status.term,
        count(load.reads_per_s),
        size(load.read_bytes_per_s),
        count(load.writes_per_s),
        size(load.write_bytes_per_s),
    )
}

fn text(explained: &v1::RangeExplainResponse, replica: Option<&v1::ReplicaStatus>, style: KeyStyle) -> String {
    let status = explained.status.clone().unwrap_or_default();
    let mut lines = vec![head(&status, explained.keyspace.as_ref(), style)];
    lines.extend(explained.problems.iter().map(|problem| format!("problem: {problem}")));
    if !explained.standstill.is_empty() {
        let since = explained.standstill_since_unix_ms;
        let lasts = duration(Duration::from_millis(explained.now_unix_ms.saturating_sub(since)));
        lines.push(format!("merge under way, for {lasts}, since {} (UTC): {}", utc(since), explained.standstill));
    }
    lines.push(replicas(explained).to_string());
    lines.push(format!("leader: {}", explained.leader_why));
    lines.push(match &explained.order {
        Some(order) => under_way(order, replica, explained.now_unix_ms),
        None => "under way: nothing".into(),
    });
    lines.push(match (explained.next.as_str(), explained.not_now.as_str()) {
        ("", "") => "next: nothing".into(),
        ("", why) => format!("next: nothing now: {why}"),
        (next, "") => format!("next: {next}"),
        (next, why) => format!("next: {next}; not now: {why}"),
    });
    lines.push(match explained.history.is_empty() {
        true => "lately: nothing is kept of it".into(),
        false => format!("lately:\n{}", history::table(&explained.history)),
    });
    lines.join("\n")
}

fn replicas(explained: &v1::RangeExplainResponse) -> Table {
    let mut table = Table::new(&[">node", "role", "state", "log", "since (UTC)", "why"]);
    for replica in &explained.replicas {
        let log = match (replica.level, replica.silent) {
            (_, true) => "silent",
            (true, _) => "level",
            (false, _) => "behind",
        };
        let since = if replica.since_unix_ms == 0 { "-".into() } else { utc(replica.since_unix_ms) };
        table.row(vec![
            replica.node_id.to_string(),
            role(replica).into(),
            replica.node_state.clone(),
            log.into(),
            since,
            replica.why.clone(),
        ]);
    }
    table
}

fn role(replica: &v1::ReplicaExplained) -> &'static str {
    match replica.role() {
        v1::ReplicaRole::Voter => "voter",
        v1::ReplicaRole::Learner => "learner",
        v1::ReplicaRole::VoterIncoming => "incoming",
        v1::ReplicaRole::VoterOutgoing => "outgoing",
    }
}

fn under_way(order: &v1::OrderUnderWay, replica: Option<&v1::ReplicaStatus>, now: u64) -> String {
    let nodes = plan::nodes(&order.add_nodes, &order.remove_nodes, order.leader_node_id, 0);
    let since = match order.since_unix_ms {
        0 => String::new(),
        since => format!(", for {}", duration(Duration::from_millis(now.saturating_sub(since)))),
    };
    let limit = duration(Duration::from_millis(order.time_limit_ms));
    // The leader knows best, and may have said so after its last report.
    let own = replica.filter(|replica| replica.order_id == order.order_id).map(|replica| replica.order_waits.as_str());
    let waits = match own.unwrap_or(&order.waits) {
        "" => String::new(),
        waits => format!("; it waits: {waits}"),
    };
    format!(
        "under way: order {} ({nodes}){since}, given up after {limit}: {}\n  step: {}{waits}",
        order.order_id, order.reason, order.step
    )
}

fn to_json(explained: &v1::RangeExplainResponse, leader: Option<&v1::ReplicaStatus>) -> Value {
    let status = explained.status.clone().unwrap_or_default();
    let replica = |replica: &v1::ReplicaExplained| {
        json!({
            "node_id": replica.node_id,
            "replica_id": replica.replica_id,
            "role": role(replica),
            "why": replica.why,
            "since_unix_ms": replica.since_unix_ms,
            "node_state": replica.node_state,
            "level": replica.level,
            "silent": replica.silent,
            "labels": labels_json(&replica.labels),
        })
    };
    let order = |order: &v1::OrderUnderWay| {
        json!({
            "order_id": order.order_id,
            "add_nodes": order.add_nodes,
            "remove_nodes": order.remove_nodes,
            "leader_node_id": order.leader_node_id,
            "reason": order.reason,
            "step": order.step,
            "waits": order.waits,
            "since_unix_ms": order.since_unix_ms,
            "time_limit_ms": order.time_limit_ms,
        })
    };
    let mut value = status_json(&status);
    value["keyspace"] = json!(explained.keyspace.as_ref().map(|keyspace| keyspace.name.as_str()));
    value["load"] = load_json(status.load.as_ref());
    value["standstill"] = match explained.standstill.as_str() {
        "" => Value::Null,
        what => what.into(),
    };
    value["standstill_since_unix_ms"] = explained.standstill_since_unix_ms.into();
    value["replicas"] = explained.replicas.iter().map(replica).collect();
    value["leader_why"] = json!(explained.leader_why);
    value["order"] = explained.order.as_ref().map_or(Value::Null, order);
    value["leader_waits"] = json!(leader.map(|replica| replica.order_waits.as_str()));
    value["next"] = json!(explained.next);
    value["not_now"] = json!(explained.not_now);
    value["problems"] = json!(explained.problems);
    value["history"] = explained.history.iter().map(history::to_json).collect();
    value["now_unix_ms"] = json!(explained.now_unix_ms);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained() -> v1::RangeExplainResponse {
        let replica = |node_id: u64, why: &str| v1::ReplicaExplained {
            node_id,
            replica_id: node_id,
            node_state: "live".into(),
            level: node_id != 4,
            why: why.into(),
            ..Default::default()
        };
        v1::RangeExplainResponse {
            status: Some(v1::RangeStatus {
                descriptor: Some(v1::RangeDescriptor { range_id: 7, end: "m".into(), ..Default::default() }),
                leader_node_id: 2,
                term: 9,
                data_bytes: 12 << 20,
                load: Some(v1::RangeLoad { reads_per_s: 1_200, read_bytes_per_s: 2_048, ..Default::default() }),
            }),
            replicas: vec![
                replica(2, "any node may hold it; it leads"),
                v1::ReplicaExplained {
                    role: v1::ReplicaRole::Learner.into(),
                    since_unix_ms: 1,
                    ..replica(4, "it does not vote")
                },
            ],
            leader_why: "its replicas elected it".into(),
            order: Some(v1::OrderUnderWay {
                order_id: 12,
                add_nodes: vec![4],
                reason: "it has 2 of 3 replicas".into(),
                step: "the replica on node 4 gets the data, and then a vote".into(),
                waits: "as reported".into(),
                since_unix_ms: 1_000,
                time_limit_ms: 600_000,
                ..Default::default()
            }),
            not_now: "first its order ends".into(),
            problems: vec!["2 of its 3 voters are live".into()],
            keyspace: Some(v1::Keyspace { name: "default".into(), ..Default::default() }),
            now_unix_ms: 3_500,
            ..Default::default()
        }
    }

    #[test]
    fn everything_known_of_a_range_is_on_one_page() {
        let golden = "\
range 7 of keyspace \"default\": (first) to m, about 12.0 MiB of data
leader 2, term 9; 1,200 reads/s (2.0 KiB), 0 writes/s (0 B)
problem: 2 of its 3 voters are live
NODE  ROLE     STATE  LOG     SINCE (UTC)              WHY
   2  voter    live   level   -                        any node may hold it; it leads
   4  learner  live   behind  1970-01-01 00:00:00.001  it does not vote
leader: its replicas elected it
under way: order 12 (+4), for 2.50 s, given up after 10 min: it has 2 of 3 replicas
  step: the replica on node 4 gets the data, and then a vote; it waits: as the leader says
next: nothing now: first its order ends
lately: nothing is kept of it";
        let replica =
            v1::ReplicaStatus { order_id: 12, order_waits: "as the leader says".into(), ..Default::default() };
        assert_eq!(text(&explained(), Some(&replica), KeyStyle::default()), golden);
        let stale = v1::ReplicaStatus { order_id: 11, order_waits: "of another order".into(), ..Default::default() };
        assert!(text(&explained(), Some(&stale), KeyStyle::default()).contains("it waits: as reported"));
    }

    #[test]
    fn a_merge_under_way_has_a_line() {
        let frozen = v1::RangeExplainResponse {
            standstill: "it serves nothing".into(),
            standstill_since_unix_ms: 1_500,
            ..explained()
        };
        let line = "\nmerge under way, for 2.00 s, since 1970-01-01 00:00:01.500 (UTC): it serves nothing\nNODE";
        assert!(
            text(&frozen, None, KeyStyle::default()).contains(line),
            "{}",
            text(&frozen, None, KeyStyle::default())
        );
        assert_eq!(to_json(&frozen, None)["standstill"], "it serves nothing");
        assert!(to_json(&explained(), None)["standstill"].is_null());
    }

    #[test]
    fn a_range_at_rest_says_so() {
        let rest = v1::RangeExplainResponse { order: None, not_now: "it has all it needs".into(), ..explained() };
        let page = text(&rest, None, KeyStyle::default());
        assert!(page.contains("under way: nothing\nnext: nothing now: it has all it needs\n"), "{page}");
        let next = v1::RangeExplainResponse { next: "balance".into(), not_now: String::new(), ..rest };
        assert!(text(&next, None, KeyStyle::default()).contains("\nnext: balance\n"));
        let value = to_json(&explained(), None);
        assert_eq!((&value["order"]["order_id"], &value["replicas"][1]["role"]), (&12.into(), &"learner".into()));
    }
}
