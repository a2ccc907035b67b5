//! What a benchmark prints.

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::BenchArgs;
use super::cost::Cost;
use super::load::Measured;
use crate::cli::failure::Result;
use crate::cli::global::Global;
use crate::cli::output::{self, Table, count};

const PERCENTILES: [(&str, f64); 4] = [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9)];

/// Prints the figures.
pub fn print(args: &BenchArgs, measured: &Measured, cost: Option<&Cost>, global: &Global) -> Result {
    if global.json() {
        return output::json(&to_json(args, measured, cost));
    }
    output::line(text(args, measured, cost))
}

fn per_second(measured: &Measured) -> f64 {
    measured.answered() as f64 / measured.elapsed.as_secs_f64().max(1e-9)
}

fn text(args: &BenchArgs, measured: &Measured, cost: Option<&Cost>) -> String {
    let mut text = format!(
        "{}: {} in {:.2} s, {} per second ({} clients, {} keys, values of {} bytes)\n\n",
        args.workload.name(),
        output::plural(measured.answered(), "operation"),
        measured.elapsed.as_secs_f64(),
        count(per_second(measured) as u64),
        count(args.clients.into()),
        count(args.keys.into()),
        args.value_bytes,
    );
    let mut table = Table::new(&["latency, µs", ">count", ">mean", ">p50", ">p90", ">p99", ">p99.9", ">max"]);
    for (name, histogram) in [("read", &measured.reads), ("write", &measured.writes)] {
        if histogram.is_empty() {
            continue;
        }
        let mut cells = vec![name.into(), count(histogram.len()), count(histogram.mean() as u64)];
        cells.extend(PERCENTILES.map(|(_, percent)| count(histogram.value_at_percentile(percent))));
        cells.push(count(histogram.max()));
        table.row(cells);
    }
    text.push_str(&format!("{table}\n\n{}", cost_text(measured, cost)));
    if measured.missing > 0 {
        text.push_str(&format!("\nreads of keys that are not there: {}", count(measured.missing)));
    }
    for (error, times) in &measured.errors {
        text.push_str(&format!("\nfailed: {} x {error}", count(*times)));
    }
    if measured.unknown > 0 {
        text.push_str(&format!("\nof these, writes with unknown outcome: {}", count(measured.unknown)));
    }
    text
}

fn cost_text(measured: &Measured, cost: Option<&Cost>) -> String {
    let Some(cost) = cost else {
        return "what it cost the servers is not known: a node came, went or started anew meanwhile".into();
    };
    let operations = measured.answered().max(1) as f64;
    let mut table = Table::new(&["all nodes together", ">per operation", ">in all"]);
    for (name, amount, digits) in [
        ("server CPU, µs", cost.cpu_micros, 1),
        ("fsyncs", cost.syncs, 4),
        ("bytes written", cost.disk_bytes, 0),
        ("Raft messages", cost.raft_messages, 3),
        ("log entries", cost.log_entries, 3),
        ("bytes between nodes", cost.peer_bytes, 0),
    ] {
        table.row(vec![name.into(), format!("{:.digits$}", amount as f64 / operations), count(amount)]);
    }
    table.to_string()
}

fn latency_json(histogram: &Histogram<u64>) -> Value {
    let mut value = json!({
        "count": histogram.len(),
        "mean": histogram.mean(),
        "min": if histogram.is_empty() { 0 } else { histogram.min() },
        "max": histogram.max(),
    });
    for (name, percent) in PERCENTILES {
        value[name] = histogram.value_at_percentile(percent).into();
    }
    value
}

fn to_json(args: &BenchArgs, measured: &Measured, cost: Option<&Cost>) -> Value {
    let operations = measured.answered().max(1) as f64;
    let cost = cost.map(|cost| {
        json!({
            "server_cpu_micros": cost.cpu_micros as f64 / operations,
            "fsyncs": cost.syncs as f64 / operations,
            "bytes_written": cost.disk_bytes as f64 / operations,
            "raft_messages": cost.raft_messages as f64 / operations,
            "log_entries": cost.log_entries as f64 / operations,
            "peer_bytes": cost.peer_bytes as f64 / operations,
        })
    });
    json!({
        "workload": args.workload.name(),
        "clients": args.clients,
        "keys": args.keys,
        "ranges": args.ranges,
        "value_bytes": args.value_bytes,
        "seed": args.seed,
        "seconds": measured.elapsed.as_secs_f64(),
        "operations": measured.answered(),
        "operations_per_second": per_second(measured),
        "read_micros": latency_json(&measured.reads),
        "write_micros": latency_json(&measured.writes),
        "missing": measured.missing,
        "errors": measured.errors,
        "unknown": measured.unknown,
        "per_operation": cost,
    })
}
