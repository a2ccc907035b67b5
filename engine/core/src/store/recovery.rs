//! Orders to go on without a lost majority: one replica takes the place of another (`range/recovery.rs`).

use flotilla_proto::{Error, RangeId, v1};

use super::{Effects, Recovered, Store, Token};
use crate::range::Range;
use crate::recover::RangeBoot;
use crate::time::BootTime;

impl Store {
    /// Carries an order out, or refuses it; answered when it is durable.
    pub(super) fn recover(&mut self, now: BootTime, token: Token, order: &v1::RecoverReplica, effects: &mut Effects) {
        let id = RangeId(order.range_id);
        self.rouse(now, id, false, effects);
        let mut outcome = Err(Error::RangeNotFound { range: id });
        self.with(now, id, effects, |range, turn| outcome = range.recover(turn, order));
        match outcome {
            Err(error) => effects.recoveries.push((token, Err(error))),
            Ok(Some(boot)) => self.begin_recovered(now, id, &boot, token, effects),
            Ok(None) => match self.recovering.iter().find(|(_, range, _)| *range == id) {
                Some((sequence, ..)) => self.recovering.push((*sequence, id, token)),
                None => effects.recoveries.push((token, Ok(Recovered::Before))),
            },
        }
    }

    /// Another replica in the place of the one that was there. It leads as soon as that is durable.
    fn begin_recovered(&mut self, now: BootTime, id: RangeId, boot: &RangeBoot, token: Token, effects: &mut Effects) {
        let sequence = self.last_sequence + 1;
        let mut range = match Range::new(&mut self.shared, boot, now) {
            Ok(range) => range,
            Err(what) => {
                effects.fatal = Some(what);
                return;
            }
        };
        if let Some(before) = self.ranges.remove(&id) {
            range.succeed(*before, sequence);
        }
        range.lead_if_alone(boot);
        effects.views.push(range.view().clone());
        self.ranges.insert(id, Box::new(range));
        self.dirty.insert(id);
        self.recovering.push((sequence, id, token));
    }

    /// A log batch is durable.
    pub(super) fn tell_recovered(&mut self, sequence: u64, effects: &mut Effects) {
        for (_, _, token) in self.recovering.extract_if(.., |(batch, ..)| *batch <= sequence) {
            effects.recoveries.push((token, Ok(Recovered::Done)));
        }
    }
}
