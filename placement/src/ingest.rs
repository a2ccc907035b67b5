//! Reports: taken into the table of routes and the book of replicas; what they set off.

use flotilla_proto::{Error, Result, v1};

use crate::decide::holds;
use crate::records::{Change, Counter};
use crate::service::{Service, Token};
use crate::table::compact::Members;
use crate::waiters::{Waiter, Wants};
use crate::writes::UNIT_CHANGES_MAX;

/// Every replica of a range that there ever was or will be on a node: of a range that is gone for good.
const ALL_REPLICAS: u64 = u64::MAX >> 1;

impl Service {
    pub(crate) fn on_report(&mut self, token: Token, report: &v1::ReportRequest) -> Result<()> {
        let node = self.check_reporter(report)?;
        let staged = self.writer.last();
        let was_live = self.state.is_live(node);
        let taken = self.state.reports.take(self.state.now, self.reign, node, report);
        let mut range_ids = None;
        if !taken.stale {
            if !was_live {
                self.work.stir();
            }
            self.note_address(node, report);
            self.take_ranges(node, report, &taken.gone);
            self.state.settle();
            range_ids = report.wants_range_ids.then(|| self.block_of_range_ids());
            self.round();
        }
        // The answer waits for what this report set off, and for nothing else.
        let last = self.writer.last();
        let unit = if last > staged { last } else { 0 };
        let same_reign = report.reign == self.reign;
        self.waiters.push(Waiter {
            token,
            unit,
            wants: Wants::Report {
                node,
                deadline: self.state.now + self.state.config.answer_wait,
                table_sequence: same_reign.then_some(report.table_sequence),
                nodes_version: if same_reign { report.nodes_version } else { 0 },
                more: report.more,
                range_ids,
            },
        });
        Ok(())
    }

    /// Which node it is; refuses what does not belong here.
    fn check_reporter(&self, report: &v1::ReportRequest) -> Result<u64> {
        let mismatch = |what: String| Err(Error::ClusterMismatch { what });
        let cluster = &self.state.acked.cluster;
        let node = report.node.as_ref().map_or(0, |node| node.node_id);
        if report.cluster_id != cluster.cluster_id {
            return mismatch(format!(
                "node {node} belongs to cluster {:x}; this is cluster {:x} ({:?})",
                report.cluster_id, cluster.cluster_id, cluster.name
            ));
        }
        let Some(record) = self.state.ahead.nodes.get(&node) else {
            return mismatch(format!("the cluster has no node {node}: nodes get their ids when they join"));
        };
        if record.store_id != report.store_id {
            return mismatch(format!(
                "node {node} is store {:x}, not {:x}: a store that was lost or wiped joins as a new node",
                record.store_id, report.store_id
            ));
        }
        if record.removed {
            return mismatch(format!(
                "node {node} was removed for good: wipe its data directory to join as a new node"
            ));
        }
        if report.reign > self.reign {
            let reason = format!("a newer placement service, of reign {}, is at work", report.reign);
            return Err(Error::Unavailable { reason });
        }
        Ok(node)
    }

    /// A node may come back at other addresses, with other labels, or as another version.
    fn note_address(&mut self, node: u64, report: &v1::ReportRequest) {
        let (Some(info), Some(record)) = (&report.node, self.state.ahead.nodes.get(&node)) else { return };
        let mut now = record.clone();
        let pairs = [
            (&mut now.peer_addr, &info.peer_addr),
            (&mut now.client_addr, &info.client_addr),
            (&mut now.http_addr, &info.http_addr),
            (&mut now.version, &info.version),
        ];
        for (old, new) in pairs {
            if !new.is_empty() {
                old.clone_from(new);
            }
        }
        let moved = now.labels != info.labels;
        now.labels.clone_from(&info.labels);
        if now != *record {
            self.stage(vec![Change::Node(now)]);
        }
        if moved {
            self.effects.notes.push(format!("node {node} has other labels"));
            self.work.sweep();
        }
    }

    fn block_of_range_ids(&mut self) -> (u64, u32) {
        let first = self.next_id(Counter::Range);
        let count = self.state.config.range_ids_per_block;
        self.stage(vec![Change::Next(Counter::Range, first + u64::from(count))]);
        (first, count)
    }

    fn take_ranges(&mut self, node: u64, report: &v1::ReportRequest, gone: &[u64]) {
        let now = self.state.now_s();
        let mut changed = Vec::new();
        let mut born = Vec::new();
        for replica in &report.ranges {
            let Some(descriptor) = &replica.descriptor else { continue };
            let range = descriptor.range_id;
            let known = self.state.acked.keyspace(descriptor.keyspace_id).is_some();
            if known {
                self.look_for_cut(descriptor, report);
            }
            if known && self.state.table.report(now, node, replica) {
                changed.push(range);
            } else {
                self.find_stray(node, range);
            }
            if self.state.ahead.births.contains_key(&range) {
                born.push(Change::NoBirth(range));
            }
        }
        for range in gone {
            self.work.strays.remove(&(node, *range));
            if self.state.reports.of_range(*range).next().is_none() {
                self.state.table.forget_absorbed(*range);
            }
            if self.state.table.not_there(node, *range) {
                changed.push(*range);
            }
        }
        for part in born.chunks(UNIT_CHANGES_MAX) {
            self.stage(part.to_vec());
        }
        for range in &changed {
            self.find_strays(*range);
            // That it took them in may be the news; and where a replica was left behind nothing more is said of it.
            for ended in self.state.table.absorbed_by(*range) {
                self.find_strays(ended);
            }
        }
        self.end_fulfilled(&changed);
        self.end_merged();
        if !changed.is_empty() {
            self.work.look_at(&self.state, changed);
        }
    }

    pub(crate) fn find_strays(&mut self, range: u64) {
        let nodes: Vec<u64> = self.state.reports.of_range(range).map(|(node, _)| node).collect();
        for node in nodes {
            self.find_stray(node, range);
        }
    }

    /// A replica of a range that a merge ended may be needed for a while, and what ends that is news of other ranges, on
    /// other nodes perhaps: it is looked at again with each answer to its node.
    fn find_stray(&mut self, node: u64, range: u64) {
        let ended = self.state.reports.get(node, range).is_some() && self.state.table.absorbed(range).is_some();
        if ended || self.proven_gone(node, range).is_some() {
            self.work.strays.insert((node, range));
        } else {
            self.work.strays.remove(&(node, range));
        }
    }

    /// The highest id of the node's replicas of the range that surely are no part of it any more, if the one that it
    /// reported is. The proof is what was acknowledged or applied, and stays true whatever comes.
    pub(crate) fn proven_gone(&self, node: u64, range: u64) -> Option<u64> {
        let seen = self.state.reports.get(node, range)?;
        if self.state.acked.is_dropped(seen.keyspace) {
            return Some(ALL_REPLICAS);
        }
        if let Some((by, version)) = self.state.table.absorbed(range) {
            return self.is_swallowed(node, by, version, seen.version).then_some(ALL_REPLICAS);
        }
        let descriptor = &self.state.table.get(range)?.descriptor;
        // A replica with a larger id than the descriptor knows of was added after it.
        let newer = descriptor.conf_ver > seen.conf_ver && seen.replica_id < descriptor.next_replica_id;
        let named = |replica: v1::ReplicaDescriptor| replica.node_id == node && replica.replica_id == seen.replica_id;
        (newer && seen.replica_id != 0 && !descriptor.members().any(named)).then_some(seen.replica_id)
    }

    /// Whether a node's replica of a range that a merge ended is of no use any more: not to the merge either.
    ///
    /// That the range `by` has the other one's start at a newer version was applied somewhere, so the merge is committed,
    /// and the other's id is gone for good (tikv#15919). Yet where `by` has a replica that has not applied the merge, the
    /// other's replica beside it is what it will apply it from: it stays until that one reports the merge as done. It
    /// may also be that `by` is to get a replica there by a log that begins before the merge: so it stays as long as
    /// the descriptor names the node and the node has not reported.
    fn is_swallowed(&self, node: u64, by: u64, version: u64, seen_version: u64) -> bool {
        seen_version < version && self.is_past(node, by, version)
    }

    /// Whether a range has no replica on a node, and is to get none there, that is older than this version.
    fn is_past(&self, node: u64, range: u64, version: u64) -> bool {
        let table = &self.state.table;
        match (self.state.reports.get(node, range), table.get(range)) {
            (Some(own), _) => own.version >= version,
            (None, Some(route)) => !holds(&route.descriptor, node),
            // It was merged away itself: then the range that has its place tells.
            (None, None) => table.absorbed(range).is_some_and(|(next, version)| self.is_past(node, next, version)),
        }
    }
}
