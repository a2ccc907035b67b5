//! `range check`: all replicas of a range, compared at one log index.

use std::time::Duration;

use flotilla_proto::{Error, RangeId, v1};
use flotilla_router::Client;
use serde_json::{Value, json};

use super::coverage::{self, Tried};
use super::describe::{end, start};
use super::failure;
use crate::cli::bytes::{KeyStyle, base64};
use crate::cli::failure::{Failure, Result};
use crate::cli::global::Global;
use crate::cli::output::{self, Table, plural};

#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("which").required(true)))]
pub struct CheckArgs {
    /// The range's id
    #[arg(group = "which")]
    range: Option<u64>,
    /// All ranges, one after the other
    #[arg(long, group = "which")]
    all: bool,
    #[command(flatten)]
    style: KeyStyle,
}

/// How often all ranges are looked through, should they change all the time.
const PASSES: u32 = 10;
/// Before the next pass: news of what changed travel.
const PAUSE: Duration = Duration::from_millis(200);

/// What came of the check of a range.
struct Checked {
    range: u64,
    /// As it was listed; of a range that was named, only the id.
    listed: v1::RangeDescriptor,
    answer: std::result::Result<v1::CheckRangeResponse, Failure>,
    /// It was not found where it was listed.
    is_gone: bool,
}

pub async fn run(args: &CheckArgs, global: &Global) -> Result {
    let client = global.client().await?;
    let checks = match args.range {
        Some(range) => {
            let named = v1::RangeDescriptor { range_id: range, ..Default::default() };
            let checked = check(&client, named).await;
            vec![Checked { answer: Ok(checked.answer?), ..checked }]
        }
        None => check_all(&client).await?,
    };
    if global.json() {
        output::json(&Value::Array(checks.iter().map(|check| check.json()).collect()))?;
    } else {
        output::line(table(&checks))?;
    }
    verdict(&checks, args.style)
}

async fn check(client: &Client, listed: v1::RangeDescriptor) -> Checked {
    let answer = client.check_range(RangeId(listed.range_id)).await;
    let is_gone = matches!(answer, Err(Error::RangeNotFound { .. }));
    Checked { range: listed.range_id, listed, answer: answer.map_err(failure), is_gone }
}

/// Every key of every keyspace, although ranges split, merge and move meanwhile.
async fn check_all(client: &Client) -> Result<Vec<Checked>> {
    let mut checks: Vec<Checked> = Vec::new();
    let mut open = all(client).await?;
    for pass in 1..=PASSES {
        let bar = output::progress(if open.len() > 1 { open.len() as u64 } else { 0 }, "check");
        for range in open {
            checks.push(check(client, range).await);
            bar.inc(1);
        }
        bar.finish_and_clear();
        let now = all(client).await?;
        let tried: Vec<_> = checks.iter().map(Checked::tried).collect();
        open = coverage::still_open(&tried, &now);
        // A failure that another pass makes up for, or whose range is no more, tells nobody anything.
        let stands = |check: &Checked| {
            let is_there =
                |within: &[v1::RangeDescriptor]| within.iter().any(|of| coverage::is_same(of, &check.listed));
            check.is_good() || check.has_difference() || (is_there(&now) && !is_there(&open))
        };
        checks.retain(stands);
        if open.is_empty() {
            break;
        }
        if pass < PASSES {
            tokio::time::sleep(PAUSE * pass).await;
        }
    }
    checks.extend(open.into_iter().map(Checked::never));
    Ok(checks)
}

async fn all(client: &Client) -> Result<Vec<v1::RangeDescriptor>> {
    let ranges = client.list_ranges().await?.ranges;
    Ok(ranges.into_iter().filter_map(|status| status.descriptor).collect())
}

impl Checked {
    /// A range that went on changing.
    fn never(listed: v1::RangeDescriptor) -> Self {
        let answer = Err(Failure::failed("it changed whenever it was to be checked"));
        Self { range: listed.range_id, listed, answer, is_gone: true }
    }

    fn tried(&self) -> Tried<'_> {
        let answer = self.answer.as_ref().ok().filter(|_| self.is_good() || self.has_difference());
        // Nodes before this one's release do not say what they compared.
        let compared = answer.map(|answer| answer.descriptor.as_ref().unwrap_or(&self.listed));
        Tried { listed: &self.listed, compared, again: self.is_gone }
    }

    fn has_difference(&self) -> bool {
        self.answer.as_ref().is_ok_and(|answer| answer.difference.is_some())
    }

    /// Whether all replicas were compared and hold the same.
    fn is_good(&self) -> bool {
        self.answer.as_ref().is_ok_and(|answer| {
            answer.difference.is_none() && answer.replicas.iter().all(|replica| replica.problem.is_empty())
        })
    }

    fn json(&self) -> Value {
        let answer = match &self.answer {
            Ok(answer) => answer,
            Err(failure) => return json!({ "range_id": self.range, "ok": false, "error": failure.to_string() }),
        };
        let replica = |replica: &v1::CheckedReplica| {
            json!({
                "node_id": replica.node_id,
                "compared": replica.problem.is_empty(),
                "problem": replica.problem,
                "records": replica.records,
                "checksum": replica.checksum,
            })
        };
        let difference = answer
            .difference
            .as_ref()
            .map(|span| json!({ "start": base64(&span.start), "end": base64(&span.end), "node_ids": span.node_ids }));
        json!({
            "range_id": self.range,
            "ok": self.is_good(),
            "index": answer.index,
            "replicas": answer.replicas.iter().map(replica).collect::<Vec<_>>(),
            "difference": difference,
        })
    }
}

fn table(checks: &[Checked]) -> Table {
    let mut table = Table::new(&[">range", ">index", "node", ">records", "checksum", "result"]);
    for check in checks {
        let range = check.range.to_string();
        let answer = match &check.answer {
            Ok(answer) => answer,
            Err(failure) => {
                let dash = || "-".to_owned();
                table.row(vec![range, dash(), dash(), dash(), dash(), format!("not checked: {failure}")]);
                continue;
            }
        };
        for replica in &answer.replicas {
            let different = answer.difference.as_ref().is_some_and(|span| span.node_ids.contains(&replica.node_id));
            let compared = replica.problem.is_empty();
            let figure = |text: String| if compared { text } else { "-".into() };
            table.row(vec![
                range.clone(),
                answer.index.to_string(),
                replica.node_id.to_string(),
                figure(replica.records.to_string()),
                figure(format!("{:08x}", replica.checksum)),
                match (compared, different) {
                    (false, _) => format!("not compared: {}", replica.problem),
                    (true, true) => "DIFFERENT".into(),
                    (true, false) => "ok".into(),
                },
            ]);
        }
    }
    table
}

/// Fails unless all is the same; names range, node and span of each difference.
fn verdict(checks: &[Checked], style: KeyStyle) -> Result {
    let differences: Vec<String> = checks
        .iter()
        .filter_map(|check| {
            let span = check.answer.as_ref().ok()?.difference.as_ref()?;
            let nodes: Vec<String> = span.node_ids.iter().map(u64::to_string).collect();
            let word = if nodes.len() == 1 { "node" } else { "nodes" };
            Some(format!(
                "range {}: the replica on {word} {} differs first between {} and {}",
                check.range,
                nodes.join(" and "),
                start(&span.start, style),
                end(&span.end, style),
            ))
        })
        .collect();
    if !differences.is_empty() {
        return Err(Failure::failed(differences.join("\n")).hint(advice(checks)));
    }
    let rest = checks.iter().filter(|check| !check.is_good()).count() as u64;
    if rest > 0 {
        return Err(Failure::failed(format!("{} could not be checked on all nodes", plural(rest, "range")))
            .hint("see `flotilla status`, and check again when all nodes are up"));
    }
    Ok(())
}

/// What to do about the first difference. Copies are made of what the leader has, so a replica that is right must lead,
/// and stay the leader: of a single transfer the balance of leaders may make nothing at once.
fn advice(checks: &[Checked]) -> String {
    let wrong = checks.iter().find_map(|check| {
        let answer = check.answer.as_ref().ok()?;
        let wrong = &answer.difference.as_ref()?.node_ids;
        let sound = |of: &v1::CheckedReplica| of.problem.is_empty() && !wrong.contains(&of.node_id);
        answer.replicas.iter().any(sound).then(|| wrong.first().copied()).flatten()
    });
    let keep =
        "keep that node's data for inspection (`flotilla debug`), then have its replica rebuilt from one that is right";
    match wrong {
        Some(node) => format!(
            "{keep}: `flotilla node drain {node}`, as copies are made of what the leader has, then `flotilla range move` \
             to another node, then `flotilla node drain {node} --undo`"
        ),
        None => {
            format!("{keep}; here no majority of the replicas is the same, so which one that is only people can tell")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(difference: Option<v1::DifferingSpan>, problem: &str) -> Checked {
        let replica = |node_id: u64, problem: &str| v1::CheckedReplica {
            node_id,
            problem: problem.into(),
            records: 5,
            checksum: 0xab,
        };
        let replicas = vec![replica(1, ""), replica(2, ""), replica(3, problem)];
        let answer = v1::CheckRangeResponse { index: 12, replicas, difference, descriptor: None };
        Checked { answer: Ok(answer), ..Checked::never(v1::RangeDescriptor { range_id: 7, ..Default::default() }) }
    }

    #[test]
    fn a_difference_names_range_node_and_span() {
        let span = v1::DifferingSpan { start: "k\x01".into(), end: "".into(), node_ids: vec![2] };
        let checks = [checked(None, ""), checked(Some(span), "")];
        let failure = verdict(&checks, KeyStyle::default()).expect_err("different");
        assert_eq!(failure.code(), 1);
        let text = failure.to_string();
        assert!(text.starts_with("range 7: the replica on node 2 differs first between k\\x01 and (last)"), "{text}");
        assert!(text.contains("`flotilla node drain 2`"), "{text}");
        let table = table(&checks).to_string();
        assert_eq!(table.matches("DIFFERENT").count(), 1);
        assert!(table.lines().nth(5).is_some_and(|line| line.contains("DIFFERENT")), "{table}");
        assert_eq!(checks[1].json()["difference"]["node_ids"][0], 2);
    }

    #[test]
    fn where_all_differ_nobody_is_said_to_be_right() {
        let span = v1::DifferingSpan { node_ids: vec![1, 2, 3], ..Default::default() };
        let text = verdict(&[checked(Some(span), "")], KeyStyle::default()).expect_err("different").to_string();
        assert!(text.contains("no majority") && !text.contains("node drain"), "{text}");
    }

    #[test]
    fn what_was_not_compared_is_not_good() {
        assert_eq!(verdict(&[checked(None, "")], KeyStyle::default()), Ok(()));
        let checks = [checked(None, "no answer in time")];
        assert_eq!(verdict(&checks, KeyStyle::default()).expect_err("not compared").code(), 1);
        assert!(table(&checks).to_string().contains("not compared: no answer in time"));
        let failed = [Checked { answer: Err(Failure::failed("no leader")), ..checked(None, "") }];
        assert!(verdict(&failed, KeyStyle::default()).is_err());
        assert!(table(&failed).to_string().contains("not checked: no leader"));
        assert_eq!(failed[0].json()["ok"], false);
    }
}
