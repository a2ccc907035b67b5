//! Metrics in Prometheus' text format (exposition format 0.0.4). Units stand in the names.

use std::fmt::Write;

use flotilla_node::{Metric, MetricValue, Node};

/// All metrics of a node.
pub(super) fn render(node: &Node) -> String {
    let mut text = String::with_capacity(16 << 10);
    for metric in node.counters().values() {
        push(&mut text, &metric);
    }
    for metric in gauges(node) {
        push(&mut text, &metric);
    }
    text
}

fn gauge(name: &'static str, help: &'static str, value: f64) -> Metric {
    Metric { name, help, value: MetricValue::Gauge(value) }
}

fn counter(name: &'static str, help: &'static str, value: u64) -> Metric {
    Metric { name, help, value: MetricValue::Counter(value) }
}

#[allow(clippy::cast_precision_loss, reason = "Prometheus' values are floats")]
fn gauges(node: &Node) -> Vec<Metric> {
    let status = node.status();
    let properties = node.storage_properties();
    let statistics = node.storage_statistics();
    let health = node.health();
    let live = status.node.as_ref().map_or(0, |_| node.nodes().iter().filter(|node| node.live).count());
    vec![
        gauge("flotilla_uptime_seconds", "Time since the process started.", status.uptime_ms as f64 / 1e3),
        gauge("flotilla_ranges", "Replicas on this node.", f64::from(status.ranges)),
        gauge("flotilla_ranges_led", "Ranges that this node leads.", f64::from(status.ranges_led)),
        gauge(
            "flotilla_ranges_without_leader",
            "Replicas here that know no leader.",
            f64::from(status.ranges_without_leader),
        ),
        gauge("flotilla_nodes_live", "Nodes with a live connection, this one included.", live as f64),
        gauge("flotilla_problems", "Things that need a person; see `flotilla status`.", status.problems.len() as f64),
        gauge("flotilla_disk_free_bytes", "Free space on the data directory's disk.", status.disk_free_bytes as f64),
        gauge(
            "flotilla_disk_margin_bytes",
            "Free space below which writes are refused.",
            status.disk_margin_bytes as f64,
        ),
        gauge(
            "flotilla_slow",
            "1: this node finds itself slow against the others, and leads nothing.",
            f64::from(u8::from(health.slow)),
        ),
        gauge("flotilla_health_sync_seconds", "A log sync, on average of late.", health.sync_us as f64 / 1e6),
        gauge(
            "flotilla_health_apply_seconds",
            "A pass of the apply stage, on average of late.",
            health.apply_us as f64 / 1e6,
        ),
        gauge("flotilla_health_stall_seconds", "Pauses of the node of late, added up.", health.stall_us as f64 / 1e6),
        gauge(
            "flotilla_scrub_last_pass_timestamp_seconds",
            "When the scrub last ended a full pass, in seconds since 1970; 0: never.",
            node.last_scrub() as f64,
        ),
        gauge("flotilla_rocksdb_l0_files", "Files in level 0, of the family with most.", properties.l0_files as f64),
        gauge(
            "flotilla_rocksdb_immutable_memtables",
            "Write buffers that wait for a flush, of the family with most.",
            properties.immutable_memtables as f64,
        ),
        gauge(
            "flotilla_rocksdb_pending_compaction_bytes",
            "Bytes that compaction has still to rewrite, estimated.",
            properties.pending_compaction_bytes as f64,
        ),
        gauge("flotilla_rocksdb_memtable_bytes", "Memory in write buffers.", properties.memtable_bytes as f64),
        gauge("flotilla_rocksdb_block_cache_bytes", "Memory in the block cache.", properties.block_cache_bytes as f64),
        gauge("flotilla_rocksdb_sst_bytes", "Size of the table files.", properties.sst_bytes as f64),
        counter("flotilla_rocksdb_wal_bytes_total", "Bytes written to the WAL.", statistics.wal_bytes),
        counter("flotilla_rocksdb_flush_bytes_total", "Bytes written by flushes.", statistics.flush_bytes_written),
        counter(
            "flotilla_rocksdb_compaction_bytes_total",
            "Bytes written by compactions.",
            statistics.compaction_bytes_written,
        ),
    ]
}

fn push(text: &mut String, metric: &Metric) {
    let Metric { name, help, value } = metric;
    let kind = match value {
        MetricValue::Counter(_) => "counter",
        MetricValue::Gauge(_) => "gauge",
        MetricValue::Histogram { .. } => "histogram",
    };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    let _ = match value {
        MetricValue::Counter(value) => writeln!(text, "{name} {value}"),
        MetricValue::Gauge(value) => writeln!(text, "{name} {value}"),
        MetricValue::Histogram { buckets, count, sum_seconds } => {
            for (bound, cumulative) in buckets {
                let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {cumulative}");
            }
            writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum_seconds}\n{name}_count {count}")
        }
    };
}
