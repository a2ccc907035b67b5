//! I7: while one replica may serve reads by its lease, nobody else acknowledges writes of the same keys.

use flotilla_engine::store::ReadView;
use flotilla_engine::time::BootTime;
use flotilla_proto::RangeId;

use super::{Check, Invariants, fail};
use crate::territory;

impl Invariants {
    /// I7: while one replica may serve reads by its lease, no other may. `clocks` are all nodes' times now.
    pub(crate) fn view(&mut self, node: usize, view: &std::sync::Arc<ReadView>, clocks: &[BootTime]) -> Check {
        if self.is_outcast(node) {
            return Ok(());
        }
        let range = view.range();
        self.views.insert((range, node), view.clone());
        if view.lease_covers(clocks[node]) {
            // What takes a frozen range in serves its keys as soon as it can.
            if self.territory.merges.is_shut(range) && !self.black_box {
                return fail(format!("I7: n{} holds the lease of {range}, which is frozen or merged away", node + 1));
            }
            return self.no_older_lease(node, range, u64::MAX, clocks, "holds a lease too");
        }
        Ok(())
    }

    /// The replica can no longer be read.
    pub(crate) fn view_gone(&mut self, node: usize, range: RangeId) {
        self.views.remove(&(range, node));
    }

    /// I7, from the other side: nobody acknowledges a write while another replica may serve reads alone.
    /// A write of an older term than the lease's is in that leader's log, and applied there.
    pub(crate) fn write_answered(&self, node: usize, range: RangeId, term: u64, clocks: &[BootTime]) -> Check {
        if self.is_outcast(node) {
            return Ok(());
        }
        self.no_older_lease(node, range, term, clocks, "acknowledges a write")?;
        let Some(own) = self.views.get(&(range, node)).filter(|_| !self.black_box) else { return Ok(()) };
        // A range that was split on other nodes and not on that one must not be read there by its lease.
        let overlaps = |other: &ReadView| {
            other.range() != range
                && other.descriptor.epoch.unwrap_or_default().version < own.descriptor.epoch.unwrap_or_default().version
                && territory::overlap(&other.descriptor, &own.descriptor)
        };
        let leased = |(_, other): &(RangeId, usize), view: &ReadView| view.lease_covers(clocks[*other]);
        match self.views.iter().find(|(key, view)| key.1 != node && overlaps(view) && leased(key, view)) {
            Some(((_, other), view)) => fail(format!(
                "I7: n{} holds the lease of {} while n{} acknowledges a write to {}",
                other + 1,
                territory::words(&view.descriptor),
                node + 1,
                territory::words(&own.descriptor)
            )),
            None => Ok(()),
        }
    }

    fn no_older_lease(&self, node: usize, range: RangeId, term: u64, clocks: &[BootTime], what: &str) -> Check {
        if self.black_box {
            return Ok(());
        }
        for ((_, other), view) in self.views.range((range, 0)..=(range, usize::MAX)) {
            if *other != node && view.term < term && view.lease_covers(clocks[*other]) {
                return fail(format!(
                    "I7: n{} holds the lease of {range} in term {} while n{} {what}",
                    other + 1,
                    view.term,
                    node + 1
                ));
            }
        }
        Ok(())
    }
}
