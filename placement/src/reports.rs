//! What nodes last reported: that they live, how they are, and which replicas they have.
//!
//! Reports may be lost, repeated and overtaken: one that is not above the last of its process changes nothing, and a
//! node whose replicas are not all known to this reign is asked for all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flotilla_proto::v1;

use crate::dense::Dense;
use crate::small::Small;
use crate::table::epoch;

/// Processes of one node that are remembered: reports of others would have to be very late.
const PROCESSES_MAX: usize = 8;

/// A replica as its own node last described it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub replica_id: u64,
    pub conf_ver: u64,
    pub version: u64,
    pub keyspace: u64,
}

/// A node that has reported to this reign.
#[derive(Clone, Debug)]
pub(crate) struct NodeReport {
    pub heard: Duration,
    /// All its replicas are known.
    pub complete: bool,
    pub disk_full: bool,
    /// As the node last measured; `None`: it never said.
    pub health: Option<v1::NodeHealth>,
    pub info: v1::NodeInfo,
    /// Of the node's last processes, and the last report of each: which process is the newer one is known only by
    /// what comes of it.
    sequences: Vec<(u64, u64)>,
    /// A full listing has begun: what it has named up to now.
    listing: Option<BTreeSet<u64>>,
    ranges: BTreeSet<u64>,
}

/// See the file's head.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    nodes: BTreeMap<u64, NodeReport>,
    replicas: Replicas,
}

/// By range: of each node that has a replica its number, and the four of [`Seen`]; in few bytes, as there may be millions.
#[derive(Debug, Default)]
struct Replicas(Dense<Small>);

impl Replicas {
    fn of_range(&self, range: u64) -> impl Iterator<Item = (u64, Seen)> + '_ {
        self.0.get(range).into_iter().flat_map(|numbers| {
            let mut numbers = numbers.numbers();
            std::iter::from_fn(move || {
                let node = numbers.next()?;
                let (replica_id, conf_ver) = (numbers.next()?, numbers.next()?);
                let (version, keyspace) = (numbers.next()?, numbers.next()?);
                Some((node, Seen { replica_id, conf_ver, version, keyspace }))
            })
        })
    }

    fn get(&self, node: u64, range: u64) -> Option<Seen> {
        self.of_range(range).find(|(other, _)| *other == node).map(|(_, seen)| seen)
    }

    /// What the node's replica of the range is from now on; `None`: it has none.
    fn set(&mut self, node: u64, range: u64, seen: Option<Seen>) {
        let mut all: Vec<(u64, Seen)> = self.of_range(range).filter(|(other, _)| *other != node).collect();
        let at = all.partition_point(|(other, _)| *other < node);
        if let Some(seen) = seen {
            all.insert(at, (node, seen));
        }
        if all.is_empty() {
            self.0.remove(range);
            return;
        }
        let numbers =
            all.iter().flat_map(|(node, seen)| [*node, seen.replica_id, seen.conf_ver, seen.version, seen.keyspace]);
        self.0.insert(range, numbers.collect());
    }
}

/// What taking in a report came to.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Taken {
    /// It is old, or was taken in before.
    pub stale: bool,
    /// Ranges that the node has no replica of any more.
    pub gone: Vec<u64>,
}

impl Reports {
    pub fn node(&self, node: u64) -> Option<&NodeReport> {
        self.nodes.get(&node)
    }

    /// Whether the node has said that it has no replica of any range.
    pub fn is_empty(&self, node: u64) -> bool {
        self.nodes.get(&node).is_some_and(|report| report.complete && report.ranges.is_empty())
    }

    /// What was reported so far says nothing of what came since: every node is asked for all that it has once more.
    pub fn doubt(&mut self) {
        for report in self.nodes.values_mut() {
            (report.complete, report.listing) = (false, None);
        }
    }

    /// The nodes' replicas of a range.
    pub fn of_range(&self, range: u64) -> impl Iterator<Item = (u64, Seen)> + '_ {
        self.replicas.of_range(range)
    }

    pub fn get(&self, node: u64, range: u64) -> Option<Seen> {
        self.replicas.get(node, range)
    }

    /// Ranges with replicas that say that they are of the keyspace.
    pub fn of_keyspace(&self, keyspace: u64) -> Vec<u64> {
        let of_it = |range: u64| self.of_range(range).any(|(_, seen)| seen.keyspace == keyspace);
        self.replicas.0.from(0).map(|(range, _)| range).filter(|range| of_it(*range)).collect()
    }

    /// Takes in a report of node `node`; `reign` is that of the service.
    pub fn take(&mut self, now: Duration, reign: u64, node: u64, report: &v1::ReportRequest) -> Taken {
        let info = report.node.clone().unwrap_or_default();
        let known = self.nodes.get(&node);
        let same_process = known.is_some_and(|known| known.info.boot_id == info.boot_id);
        let last = known.and_then(|known| known.sequences.iter().find(|(boot_id, _)| *boot_id == info.boot_id));
        if last.is_some_and(|(_, sequence)| report.sequence <= *sequence) {
            return Taken { stale: true, gone: Vec::new() };
        }
        let complete = known.is_some_and(|known| known.complete) && same_process && report.reign == reign;
        let entry = self.nodes.entry(node).or_insert_with(|| NodeReport {
            heard: now,
            complete: false,
            disk_full: false,
            health: None,
            info: v1::NodeInfo::default(),
            sequences: Vec::new(),
            listing: None,
            ranges: BTreeSet::new(),
        });
        if !same_process {
            entry.listing = None;
        }
        entry.heard = now;
        entry.complete = complete;
        entry.sequences.retain(|(boot_id, _)| *boot_id != info.boot_id);
        entry.sequences.push((info.boot_id, report.sequence));
        if entry.sequences.len() > PROCESSES_MAX {
            entry.sequences.remove(0);
        }
        entry.disk_full = info.disk_full || report.disk_free_bytes < report.disk_margin_bytes;
        entry.health = report.health.clone().or(entry.health.take());
        entry.info = info;
        let gone = self.take_ranges(node, report);
        Taken { stale: false, gone }
    }

    fn take_ranges(&mut self, node: u64, report: &v1::ReportRequest) -> Vec<u64> {
        let Some(entry) = self.nodes.get_mut(&node) else { return Vec::new() };
        if report.full {
            entry.listing = Some(BTreeSet::new());
        }
        for replica in &report.ranges {
            let Some(descriptor) = &replica.descriptor else { continue };
            let seen = Seen {
                replica_id: replica.replica_id,
                conf_ver: epoch(descriptor).1,
                version: epoch(descriptor).0,
                keyspace: descriptor.keyspace_id,
            };
            entry.ranges.insert(descriptor.range_id);
            if let Some(listing) = &mut entry.listing {
                listing.insert(descriptor.range_id);
            }
            if self.replicas.get(node, descriptor.range_id) != Some(seen) {
                self.replicas.set(node, descriptor.range_id, Some(seen));
            }
        }
        let mut gone = report.gone.clone();
        if let Some(listing) = entry.listing.take() {
            if report.more {
                entry.listing = Some(listing);
            } else {
                gone.extend(entry.ranges.difference(&listing).copied());
                entry.complete = true;
            }
        }
        gone.sort_unstable();
        gone.dedup();
        for range in &gone {
            entry.ranges.remove(range);
            self.replicas.set(node, *range, None);
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(boot_id: u64, sequence: u64, full: bool, more: bool, ranges: &[u64]) -> v1::ReportRequest {
        let ranges = ranges.iter().map(|range| v1::RangeReport {
            descriptor: Some(v1::RangeDescriptor { range_id: *range, ..Default::default() }),
            replica_id: 1,
            ..Default::default()
        });
        v1::ReportRequest {
            node: Some(v1::NodeInfo { node_id: 1, boot_id, ..Default::default() }),
            sequence,
            reign: 5,
            full,
            more,
            ranges: ranges.collect(),
            ..Default::default()
        }
    }

    fn take(reports: &mut Reports, report: &v1::ReportRequest) -> Taken {
        reports.take(Duration::from_secs(1), 5, 1, report)
    }

    #[test]
    fn a_full_listing_in_parts_counts_when_its_last_part_is_there() {
        let mut reports = Reports::default();
        take(&mut reports, &report(1, 1, true, true, &[7, 8]));
        assert!(!reports.node(1).expect("reported").complete);
        take(&mut reports, &report(1, 2, false, false, &[9]));
        assert!(reports.node(1).expect("reported").complete);
        let taken = take(&mut reports, &report(1, 3, true, false, &[8]));
        assert_eq!(taken.gone, [7, 9]);
        assert_eq!(reports.of_range(8).count(), 1);
    }

    #[test]
    fn what_is_doubted_is_told_once_more_from_its_beginning() {
        let mut reports = Reports::default();
        take(&mut reports, &report(1, 1, true, false, &[7]));
        take(&mut reports, &report(1, 2, true, true, &[7]));
        reports.doubt();
        for (sequence, full, complete) in [(3, false, false), (4, false, false), (5, true, true)] {
            take(&mut reports, &report(1, sequence, full, false, &[7]));
            assert_eq!(reports.node(1).expect("reported").complete, complete, "report {sequence}");
        }
    }

    #[test]
    fn repeated_and_overtaken_reports_change_nothing() {
        let mut reports = Reports::default();
        take(&mut reports, &report(1, 2, true, false, &[7]));
        assert!(take(&mut reports, &report(1, 2, true, false, &[])).stale);
        assert!(take(&mut reports, &report(1, 1, true, false, &[])).stale);
        assert_eq!(reports.of_range(7).count(), 1);
    }

    #[test]
    fn late_reports_of_two_processes_leave_the_newer_ones_word_standing() {
        let mut reports = Reports::default();
        take(&mut reports, &report(1, 9, true, false, &[7]));
        take(&mut reports, &report(2, 1, true, false, &[]));
        take(&mut reports, &report(2, 5, false, false, &[8]));
        take(&mut reports, &report(1, 10, false, false, &[]));
        assert!(take(&mut reports, &report(2, 1, true, false, &[])).stale);
        assert_eq!(reports.of_range(8).count(), 1);
        take(&mut reports, &report(2, 6, false, false, &[]));
        assert!(!reports.node(1).expect("reported").complete, "it is asked for everything");
    }

    #[test]
    fn another_process_is_asked_for_everything() {
        let mut reports = Reports::default();
        take(&mut reports, &report(1, 9, true, false, &[7]));
        take(&mut reports, &report(2, 1, false, false, &[]));
        assert!(!reports.node(1).expect("reported").complete);
        take(&mut reports, &report(2, 2, true, false, &[]));
        assert_eq!(reports.of_range(7).count(), 0);
    }
}
