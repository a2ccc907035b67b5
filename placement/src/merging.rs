//! Merges: asked for by people, found by the search, and what becomes of the pairs.

use std::time::Duration;

use flotilla_proto::ids::SYSTEM_KEYSPACE;
use flotilla_proto::{Error, Result, v1};

use crate::decide::merge;
use crate::service::{Service, Token};
use crate::state::{Pair, merge_target};
use crate::waiters::{Waiter, Wants};

/// How long a request waits that does not say.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// How often neighbours are looked for.
const SEARCH_PAUSE: Duration = Duration::from_millis(100);

impl Service {
    pub(crate) fn on_merge_ranges(&mut self, token: Token, request: &v1::MergeRangesRequest) -> Result<()> {
        let (left, right) = (request.left_range_id, request.right_range_id);
        let timeout = match request.timeout_ms {
            0 => TIMEOUT_DEFAULT,
            timeout => Duration::from_millis(timeout),
        };
        if !self.is_under_way(left, right) {
            self.check_merge(left, right)?;
            let until = self.state.now + self.state.config.order_time_limit;
            self.state.pairs.insert(right, Pair { left, until, asked: true });
            self.work.stir();
            self.round();
        }
        let deadline = self.state.now + timeout;
        let wants = Wants::Merged { left, right, deadline, ended: None };
        self.waiters.push(Waiter { token, unit: 0, wants });
        Ok(())
    }

    /// Whether just this is being done already: the first answer may have been lost.
    fn is_under_way(&self, left: u64, right: u64) -> bool {
        let paired = self.state.pairs.get(&right).is_some_and(|pair| pair.left == left);
        paired || self.state.ahead.orders.get(&right).and_then(merge_target) == Some(left)
    }

    fn check_merge(&self, left: u64, right: u64) -> Result<()> {
        let state = &self.state;
        for range in [left, right] {
            self.check_range(range)?;
        }
        let (Some(one), Some(other)) = (state.table.get(left), state.table.get(right)) else { return Ok(()) };
        if one.descriptor.keyspace_id == SYSTEM_KEYSPACE.0 || other.descriptor.keyspace_id == SYSTEM_KEYSPACE.0 {
            let hint = "ranges of any other keyspace can be merged";
            return Err(Error::invalid("the system range is never merged", hint));
        }
        if one.descriptor.keyspace_id != other.descriptor.keyspace_id {
            let name = |id: u64| state.ahead.keyspaces.get(&id).map_or("?".into(), |keyspace| keyspace.name.clone());
            let (this, that) = (name(one.descriptor.keyspace_id), name(other.descriptor.keyspace_id));
            let what = format!("range {left} is of keyspace {this:?}, range {right} of keyspace {that:?}");
            return Err(Error::invalid(what, "only neighbours of one keyspace can be merged"));
        }
        if state.ahead.keyspace(one.descriptor.keyspace_id).is_none() {
            return Err(Error::invalid("their keyspace was dropped", "`flotilla keyspace list` shows those there are"));
        }
        let next = state.table.right_of(one).map(|route| route.descriptor.range_id);
        if next != Some(right) {
            let hint = match next {
                Some(next) => format!("the right neighbour of range {left} is range {next}"),
                None => format!("range {left} is the last of its keyspace, as far as is known"),
            };
            return Err(Error::invalid(format!("ranges {left} and {right} are not neighbours in this order"), hint));
        }
        for range in [left, right] {
            if let Some(order) = state.ahead.orders.get(&range) {
                let what = format!("range {range} has an order under way ({})", order.reason);
                return Err(Error::invalid(what, "wait for its end: a range has one change at a time"));
            }
            if merge::is_paired(state, range) {
                let what = format!("range {range} is being merged with its other neighbour");
                return Err(Error::invalid(what, "wait for the end of that: a range has one change at a time"));
            }
        }
        Ok(())
    }

    /// The merge of this range is ordered now: the pair has done its part.
    pub(crate) fn merge_ordered(&mut self, right: u64) {
        self.state.pairs.remove(&right);
    }

    /// The two are not to be merged after all.
    pub(crate) fn unpair(&mut self, right: u64, why: &str) {
        let Some(pair) = self.state.pairs.remove(&right) else { return };
        self.effects.notes.push(format!("ranges {} and {right} are not merged: {why}", pair.left));
        self.merge_ended(right, Some(why));
    }

    /// Tells those who wait for the merge of this range what became of it.
    pub(crate) fn merge_ended(&mut self, range: u64, failed: Option<&str>) {
        for waiter in &mut self.waiters {
            let Wants::Merged { left, right, ended, .. } = &mut waiter.wants else { continue };
            if *right == range {
                let refused = |why: &str| {
                    let what = format!("ranges {left} and {right} were not merged: {why}");
                    Error::invalid(what, "`flotilla range list` shows what is there; ask again if it is still wanted")
                };
                *ended = Some(failed.map_or(Ok(()), |why| Err(refused(why))));
            }
        }
    }

    /// Looks on for neighbours that may be merged by themselves.
    pub(crate) fn search_merges(&mut self) {
        if !self.state.settled || self.state.now < self.work.merges_at {
            return;
        }
        self.work.merges_at = self.state.now + SEARCH_PAUSE;
        let (found, next) = merge::search(&self.state, self.work.merge_from.clone());
        self.work.merge_from = next;
        if !found.is_empty() {
            self.state.pairs.extend(found);
            self.work.stir();
        }
    }
}
