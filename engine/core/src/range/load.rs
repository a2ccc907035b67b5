//! Split by load: a range that is asked for more than its keyspace allows, for some seconds, is cut where its requests divide.
//!
//! ```text
//! hot ──▶ keys are looked at ──▶ still hot after SAMPLED_FOR ──▶ divides? ──▶ split; each part counts anew
//!  │ not hot any more: forgotten                                     └─ no: told, and not looked at for a while
//! ```
//! What keeps it from going on for ever: a part begins with its share of the load, is cut only if what it measures
//! itself is too much again, and not before `PAUSE`; what does not divide is left alone for `PAUSE_UNDIVIDED`.

use std::time::Duration;

use flotilla_proto::ids::SYSTEM_RANGE;
use flotilla_proto::v1;

use super::{Range, Turn};
use crate::load::{self, Load};
use crate::store::Event;

/// A range is split for its load beyond so many requests in a second, and so many bytes. TiKV's (3,000 and 30 MiB);
/// CockroachDB's is 2,500 requests.
const QUERIES_PER_S: u64 = 3_000;
const BYTES_PER_S: u64 = 30 << 20;
/// It must be hot for so long, with its keys looked at.
const SAMPLED_FOR: Duration = Duration::from_secs(6);
/// Between two splits of one range for its load, and after a look that found no key.
const PAUSE: Duration = Duration::from_secs(10);
const PAUSE_UNDIVIDED: Duration = Duration::from_secs(60);

impl Range {
    /// A reign begins: nothing is known of the load, but what a split has left.
    pub(super) fn begin_load(&mut self, turn: &Turn<'_>) {
        let inherited = self.inherited_load.take().unwrap_or_default();
        self.load = Some(Box::new(Load::new(turn.now, inherited)));
    }

    /// Looks at the load, and splits the range if it is too much and divides.
    pub(super) fn consider_load(&mut self, turn: &mut Turn<'_>) {
        let now = turn.now;
        let limits = turn.shared.keyspaces.get(&self.descriptor.keyspace_id).map(|keyspace| {
            let queries = keyspace.split_queries_per_s.unwrap_or(QUERIES_PER_S);
            (queries, keyspace.split_load_bytes_per_s.unwrap_or(BYTES_PER_S))
        });
        let Some(load) = &mut self.load else { return };
        load.fold(now);
        let Some((queries, bytes)) = limits.filter(|_| self.id != SYSTEM_RANGE) else { return };
        let too_much = |of: v1::RangeLoad| {
            let by_queries = queries > 0 && of.reads_per_s + of.writes_per_s > queries;
            by_queries || bytes > 0 && of.read_bytes_per_s + of.write_bytes_per_s > bytes
        };
        let rates = load.rates();
        if !too_much(rates) || now < load.quiet_until {
            if load.hot_since.is_some() {
                load.look(None);
            }
            return;
        }
        let Some(since) = load.hot_since else { return load.look(Some(now)) };
        // The average still remembers what is over.
        let over = !too_much(load.latest());
        if over || now.since(since) < SAMPLED_FOR || !turn.shared.range_ids.suffice() {
            return;
        }
        let asked = load.sampled();
        let Ok(boundary) = self.may_split(turn) else { return };
        if asked.len() < load::SAMPLE_MIN {
            return;
        }
        let divided = load::divide(&self.descriptor, &boundary, &asked);
        let proposed = divided
            .and_then(|key| self.propose_split(turn, vec![key], boundary, None).map_err(|error| error.to_string()));
        let pause = if proposed.is_ok() { PAUSE } else { PAUSE_UNDIVIDED };
        if let Some(load) = &mut self.load {
            load.quiet_until = now + pause;
            load.look(None);
        }
        if let Err(why) = proposed {
            turn.effects.events.push(Event::LoadStays {
                range: self.id,
                requests_per_s: rates.reads_per_s + rates.writes_per_s,
                why,
            });
        }
    }
}
