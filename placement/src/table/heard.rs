//! What one report of a replica says anew of its range.

use flotilla_proto::v1;

use super::{Descriptor, Led, Route, epoch};
use crate::recovery::LEAP;

/// What a report changes of a route.
pub(super) struct Heard {
    leader: u64,
    term: u64,
    data_bytes: u64,
    /// Changed, to this.
    pub led: Option<Option<Led>>,
    pub load: Option<Option<Box<v1::RangeLoad>>>,
}

impl Heard {
    pub fn seen(&self, route: &Route) -> bool {
        self.leader != route.leader || self.term != route.term || self.data_bytes != route.data_bytes
    }

    /// Another node leads now, or the same one anew; what is first heard of is no change.
    pub fn changes_leader(&self, route: &Route) -> bool {
        self.leader != 0 && self.leader != route.leader && route.term != 0
    }

    pub fn apply(self, route: &mut Route) {
        (route.leader, route.term, route.data_bytes) = (self.leader, self.term, self.data_bytes);
        if let Some(led) = self.led {
            route.led = led;
        }
        if let Some(load) = self.load {
            route.load = load;
        }
    }
}

/// Of two claims to lead, that of the larger term counts; what followers believe counts only where it is newer.
/// `descriptor` is what the route will have.
pub(super) fn hear(route: &Route, descriptor: &Descriptor, node: u64, report: &v1::RangeReport, now_s: u32) -> Heard {
    let mut heard =
        Heard { leader: route.leader, term: route.term, data_bytes: route.data_bytes, led: None, load: None };
    let unled = || route.led.is_some().then_some(None);
    let claims = report.leader_node_id == node;
    // A range of which nothing was left has begun again: its terms have, too.
    let conf_ver = report.descriptor.as_ref().map_or(0, |of| epoch(of).1);
    let begins_again = conf_ver >= route.descriptor.epoch().1 + LEAP;
    if claims && (report.term >= route.term || begins_again) {
        (heard.leader, heard.term) = (node, report.term);
        if size_moved(route.data_bytes, report.data_bytes) || route.led.is_none() {
            heard.data_bytes = report.data_bytes;
        }
        let led = Led::of(descriptor, report, route.led.as_ref(), now_s);
        if route.led.as_ref() != Some(&led) {
            heard.led = Some(Some(led));
        }
        if route.load.as_deref() != report.load.as_ref() {
            heard.load = Some(report.load.map(Box::new));
        }
        return heard;
    }
    let newer_hint = report.term > route.term || (report.term == route.term && route.leader == 0);
    if !claims && report.leader_node_id != 0 && newer_hint {
        (heard.leader, heard.term, heard.led) = (report.leader_node_id, report.term, unled());
    }
    let deposed = !claims && node == heard.leader && report.term >= heard.term;
    if deposed {
        (heard.leader, heard.led) = (0, unled());
    }
    heard
}

/// Sizes change with every write: only what is worth telling all nodes counts as a change.
fn size_moved(old: u64, new: u64) -> bool {
    old.abs_diff(new) > old / 16 + (64 << 10) || (old == 0) != (new == 0)
}
