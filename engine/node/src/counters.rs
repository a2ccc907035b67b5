//! What a node counts. Plain atomics, read by /metrics, `status` and the benches.

use std::sync::atomic::{AtomicU64, Ordering};

use flotilla_proto::v1;

use crate::clock;
use crate::histogram::Histogram;

/// A counter that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds.
    pub fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Histogram {
    fn value(&self) -> MetricValue {
        let (buckets, count, sum_seconds) = self.snapshot();
        MetricValue::Histogram { buckets, count, sum_seconds }
    }
}

/// One figure, for Prometheus.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Its full name, with the unit.
    pub name: &'static str,
    /// What it tells.
    pub help: &'static str,
    /// Its value.
    pub value: MetricValue,
}

/// See [`Metric`].
#[derive(Clone, Debug, PartialEq)]
pub enum MetricValue {
    /// Only grows.
    Counter(u64),
    /// Of the moment.
    Gauge(f64),
    /// Durations.
    Histogram {
        /// Upper bounds in seconds, each with the count of all samples up to it.
        buckets: Vec<(f64, u64)>,
        /// The count of all samples.
        count: u64,
        /// Their sum, in seconds.
        sum_seconds: f64,
    },
}

macro_rules! counters {
    (
        counters { $($(#[doc = $help:literal])+ $name:ident => $metric:literal,)* }
        histograms { $($(#[doc = $hhelp:literal])+ $hname:ident => $hmetric:literal,)* }
    ) => {
        /// All that a node counts since its process started.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[doc = $help])+ pub $name: Counter,)*
            $($(#[doc = $hhelp])+ pub $hname: Histogram,)*
        }

        impl Counters {
            /// Every figure, in a fixed order.
            pub fn values(&self) -> Vec<Metric> {
                vec![
                    $(Metric {
                        name: $metric,
                        help: concat!($($help),+).trim_ascii(),
                        value: MetricValue::Counter(self.$name.get()),
                    },)*
                    $(Metric {
                        name: $hmetric,
                        help: concat!($($hhelp),+).trim_ascii(),
                        value: self.$hname.value(),
                    },)*
                ]
            }
        }
    };
}

counters! {
    counters {
        /// Syncs of the write-ahead log by the log writer.
        wal_syncs => "flotilla_wal_syncs_total",
        /// Log batches of the store's loop that were made durable.
        log_batches => "flotilla_log_batches_total",
        /// Raft entries that were made durable.
        log_entries => "flotilla_log_entries_total",
        /// Bytes handed to the storage by the log writer.
        log_bytes => "flotilla_log_bytes_total",
        /// Turns of the store's loop.
        loop_turns => "flotilla_loop_turns_total",
        /// Inputs that the store's loop has taken.
        loop_inputs => "flotilla_loop_inputs_total",
        /// Raft messages handed to the network.
        raft_messages_sent => "flotilla_raft_messages_sent_total",
        /// Raft messages that came from other nodes.
        raft_messages_received => "flotilla_raft_messages_received_total",
        /// Raft messages dropped because a connection was down or its queue full.
        raft_messages_dropped => "flotilla_raft_messages_dropped_total",
        /// Raft messages of other nodes that this one refused.
        raft_messages_refused => "flotilla_raft_messages_refused_total",
        /// Frames sent to other nodes.
        peer_frames_sent => "flotilla_peer_frames_sent_total",
        /// Bytes of frames sent to other nodes.
        peer_bytes_sent => "flotilla_peer_bytes_sent_total",
        /// Bytes of frames that came from other nodes.
        peer_bytes_received => "flotilla_peer_bytes_received_total",
        /// Connections to other nodes that were made.
        peer_connects => "flotilla_peer_connects_total",
        /// Handshakes with other nodes that were refused, by either side.
        peer_refusals => "flotilla_peer_refusals_total",
        /// Write requests that were answered, whatever the answer.
        writes => "flotilla_writes_total",
        /// Write requests that were answered with an error.
        writes_refused => "flotilla_writes_refused_total",
        /// Reads answered under the leader's lease.
        reads_lease => "flotilla_reads_lease_total",
        /// Reads answered after a round to a quorum.
        reads_quorum => "flotilla_reads_quorum_total",
        /// Stale reads answered.
        reads_stale => "flotilla_reads_stale_total",
        /// Reads answered with an error.
        reads_refused => "flotilla_reads_refused_total",
        /// Requests refused because the loop's inbox was full.
        inbox_full => "flotilla_inbox_full_total",
        /// Writes refused at the door because more were under way than the node gets done in a short time.
        writes_shed => "flotilla_writes_shed_total",
        /// Requests slower than the threshold of the slow-request log.
        slow_requests => "flotilla_slow_requests_total",
        /// Elections that a replica here has won.
        elections_won => "flotilla_elections_won_total",
        /// Times that a replica here has ceased to lead.
        step_downs => "flotilla_step_downs_total",
        /// Snapshots sent whole to other nodes.
        snapshots_sent => "flotilla_snapshots_sent_total",
        /// Snapshots that could not be sent.
        snapshots_failed => "flotilla_snapshots_failed_total",
        /// Snapshots that replaced the state of a replica here.
        snapshots_applied => "flotilla_snapshots_applied_total",
        /// Splits applied here.
        splits => "flotilla_splits_total",
        /// Changes of a range's replicas applied here.
        replica_changes => "flotilla_replica_changes_total",
        /// Replicas that became their range's only one after the loss of its majority, by order of a person.
        recoveries => "flotilla_ranges_recovered_total",
        /// Replicas that were removed from their range and left this node.
        replicas_removed => "flotilla_replicas_removed_total",
        /// Entries read back from disk for followers that were behind.
        log_fetches => "flotilla_log_fetches_total",
        /// Full passes of the scrub over all table files.
        scrub_passes => "flotilla_scrub_passes_total",
        /// Bytes that the scrub has read.
        scrub_bytes => "flotilla_scrub_bytes_total",
        /// Ranges whose replicas this node, as their leader, has compared by itself.
        comparisons => "flotilla_range_comparisons_total",
        /// Times that damage was seen in the store: it stops at the first.
        damage_found => "flotilla_damage_found_total",
        /// Connections closed at once, at any port, because as many as may be were open.
        connections_refused => "flotilla_connections_refused_total",
        /// Connections closed, at any port, because they did not say in time what they are for, or took no answer.
        connections_timed_out => "flotilla_connections_timed_out_total",
    }
    histograms {
        /// Writes: from the request's arrival until the store's loop took it.
        write_queue => "flotilla_write_queue_seconds",
        /// Writes: from the loop until the entry was durable here.
        write_log => "flotilla_write_log_seconds",
        /// Writes: from durable here until committed, and its apply began.
        write_commit => "flotilla_write_commit_seconds",
        /// Writes: applying.
        write_apply => "flotilla_write_apply_seconds",
        /// Writes: from arrival to answer.
        write_total => "flotilla_write_seconds",
        /// Reads at once: under the lease, or stale.
        read_local => "flotilla_read_local_seconds",
        /// Reads with a round to a quorum: from arrival to answer.
        read_quorum => "flotilla_read_quorum_seconds",
        /// One write and sync of the log writer.
        log_sync => "flotilla_log_sync_seconds",
        /// One pass of the apply stage.
        apply_pass => "flotilla_apply_pass_seconds",
        /// One turn of the store's loop.
        loop_turn => "flotilla_loop_turn_seconds",
    }
}

impl Counters {
    /// As the Admin service tells them. `disk_bytes_written` is the storage's to know.
    pub fn to_wire(&self) -> v1::NodeCounters {
        v1::NodeCounters {
            wal_syncs: self.wal_syncs.get(),
            log_batches: self.log_batches.get(),
            log_entries: self.log_entries.get(),
            raft_messages_sent: self.raft_messages_sent.get(),
            raft_messages_received: self.raft_messages_received.get(),
            writes: self.writes.get(),
            reads_lease: self.reads_lease.get(),
            reads_quorum: self.reads_quorum.get(),
            elections_won: self.elections_won.get(),
            cpu_micros: u64::try_from(clock::process_cpu().as_micros()).unwrap_or(u64::MAX),
            disk_bytes_written: 0,
            peer_bytes_sent: self.peer_bytes_sent.get(),
            snapshots_sent: self.snapshots_sent.get(),
            snapshots_applied: self.snapshots_applied.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_has_a_unit_a_help_text_and_a_name_of_its_own() {
        let counters = Counters::default();
        counters.wal_syncs.add(3);
        let values = counters.values();
        assert_eq!(values[0].value, MetricValue::Counter(3));
        let mut names: Vec<&str> = values.iter().map(|metric| metric.name).collect();
        assert!(names.iter().all(|name| name.ends_with("_total") || name.ends_with("_seconds")));
        assert!(values.iter().all(|metric| metric.help.ends_with('.') && !metric.help.starts_with(' ')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), values.len());
    }
}
