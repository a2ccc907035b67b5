//! Keys with a ttl, as the disks hold them: that the expiry index says what the records say, and that keys end in time.
//!
//! I14: on every replica that is level, a key has a record in the expiry index if and only if its value has a deadline,
//! with the same version and deadline, and none is below the bound in the applied state. When everything has healed and
//! leaders stay in place, no key outlives its ttl by more than [`Cluster::lateness`]; what that is made of, and what is
//! promised to clients, is told in `checker/expiry.rs`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use flotilla_engine::apply::{ApplyTask, ApplyWork};
use flotilla_engine::keys::{self, RangeRecord};
use flotilla_engine::storage::{Direction, Family, Read, StorageError};
use flotilla_engine::{command, record};
use flotilla_proto::{KeyspaceId, RangeId, v1};
use raft::eraftpb::{Entry, EntryType};

use crate::checker::Calm;
use crate::clock::{Clock, Nanos, ms};
use crate::cluster::Cluster;
use crate::disk::SimDisk;
use crate::invariants::Check;
use crate::ops::SHORT_TTL_MS;

/// The version and the deadline of each key that has one.
type Deadlines = BTreeMap<Bytes, (u64, u64)>;
/// Reads version and deadline in a record.
type Decode = fn(&[u8]) -> Result<(u64, u64), StorageError>;

/// Whether leaders have stayed where they were.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Of each range: who leads in which term, and the descriptor's epoch.
    leaders: BTreeMap<RangeId, (usize, u64, u64, u64)>,
    /// Since when nothing of that changed.
    pub calm_from: Nanos,
}

impl Cluster {
    /// Notes that now clients still write, or leaders have changed.
    pub(crate) fn watch_leaders(&mut self, busy: bool) {
        let processes = self.nodes.iter().filter_map(|node| Some((node.index, node.process.as_ref()?)));
        let led = processes.flat_map(|(index, process)| {
            let led = process.store.ranges().filter(|range| range.leads);
            led.map(move |range| {
                let epoch = range.descriptor.epoch.unwrap_or_default();
                (range.range, (index, range.term, epoch.version, epoch.conf_ver))
            })
        });
        let leaders: BTreeMap<_, _> = led.collect();
        if busy || leaders != self.expiring.leaders {
            self.expiring.leaders = leaders;
            self.expiring.calm_from = self.now;
        }
    }

    /// How long after its ttl a key may still be there: a second; and what the run's slow disks take to write an entry
    /// and to apply it, for each of the two before (the leader's first of its term, and the one under way). A merge may turn
    /// back the time of one half.
    pub(crate) fn lateness(&self) -> Nanos {
        let knobs = &self.knobs;
        let turned_back = ms(self.invariants.turned_back_ms) as f64 * self.slowest();
        ms(1_000) + 60 * (knobs.sync + knobs.write_delay + knobs.apply_delay) + turned_back as u64
    }

    /// How much true time passes at the most while a leader counts a unit of a ttl.
    fn slowest(&self) -> f64 {
        let (slow, _) = Clock::rates(self.knobs.config.clock_drift);
        (1.0 + self.knobs.config.expiry_clock_drift) * 1e6 / slow as f64
    }

    /// From when on no key with a short ttl may be there any more.
    pub(crate) fn all_over_at(&self) -> Nanos {
        let counted = (ms(SHORT_TTL_MS) as f64 * self.slowest()) as u64;
        self.expiring.calm_from + counted + self.lateness()
    }

    /// When values had to end in time.
    pub(crate) fn calm(&self) -> Calm {
        Calm { spans: vec![(self.expiring.calm_from, self.now)], slowest: self.slowest(), late_ns: self.lateness() }
    }

    /// A key that is still there at its range's leader, and will not be for long. (Others may lag: they become level
    /// afterwards.)
    pub(crate) fn short_lived(&self) -> Option<String> {
        let leads = |index: usize, range: RangeId| self.leader_of(range) == Some(index);
        self.replicas().filter(|(index, range)| leads(*index, RangeId(range.range_id))).find_map(|(index, range)| {
            let disk = &self.nodes[index].disk;
            let time_ms = applied(disk, RangeId(range.range_id)).ok()?.range_time_ms;
            let keys = indexed(disk, &range).ok()?;
            let (key, (_, deadline_ms)) =
                keys.into_iter().find(|(_, (_, deadline_ms))| *deadline_ms < time_ms + 10 * SHORT_TTL_MS)?;
            let id = range.range_id;
            Some(format!("n{} r{id}: {key:?} ends at {deadline_ms}, the range's time is {time_ms}", index + 1))
        })
    }

    /// I14: index and records agree on every replica.
    pub(crate) fn check_expiry_index(&self) -> Check {
        for (index, range) in self.replicas() {
            let disk = &self.nodes[index].disk;
            let which = format!("I14: n{} r{}", index + 1, range.range_id);
            let read = |error: StorageError| format!("{which}: {error}");
            let stored = stored(disk, &range).map_err(read)?;
            let indexed = indexed(disk, &range).map_err(read)?;
            if stored != indexed {
                return Err(format!("{which}: values with a deadline {stored:?}, in the expiry index {indexed:?}"));
            }
            let bound_ms = applied(disk, RangeId(range.range_id)).map_err(read)?.next_expiry_ms;
            let first = indexed.values().map(|(_, deadline_ms)| *deadline_ms).min();
            if first.is_some_and(|first| bound_ms == 0 || first < bound_ms) {
                return Err(format!("{which}: a key ends at {first:?}, before the bound {bound_ms}"));
            }
        }
        Ok(())
    }

    fn replicas(&self) -> impl Iterator<Item = (usize, v1::RangeDescriptor)> {
        (0..self.nodes.len())
            .flat_map(|index| self.invariants.territory.on_store(index).map(move |range| (index, (**range).clone())))
    }
}

fn applied(disk: &SimDisk, range: RangeId) -> Result<v1::AppliedState, StorageError> {
    let found = disk.get(Family::State, &keys::range_record(range, RangeRecord::Applied))?;
    found.map_or_else(|| Ok(v1::AppliedState::default()), |found| record::decode(&found, "applied state"))
}

/// What the values say.
fn stored(disk: &SimDisk, range: &v1::RangeDescriptor) -> Result<Deadlines, StorageError> {
    let span = keys::data_span(KeyspaceId(range.keyspace_id), &range.start, &range.end);
    deadlines(disk, &span, keys::user_key, record::value_head)
}

/// What the index says.
fn indexed(disk: &SimDisk, range: &v1::RangeDescriptor) -> Result<Deadlines, StorageError> {
    let span = keys::expiry_span(KeyspaceId(range.keyspace_id), &range.start, &range.end);
    deadlines(disk, &span, keys::expiry_user_key, record::decode_expiry)
}

fn deadlines(
    disk: &SimDisk,
    (start, end): &(Vec<u8>, Vec<u8>),
    user_key: fn(&[u8]) -> Option<Bytes>,
    decode: Decode,
) -> Result<Deadlines, StorageError> {
    let mut found = Deadlines::new();
    let mut failed = None;
    disk.scan(Family::State, start, end, Direction::Forward, &mut |key, value| {
        match (user_key(key), decode(value)) {
            (Some(_), Ok((_, 0))) => {}
            (Some(key), Ok(deadline)) => drop(found.insert(key, deadline)),
            (None, _) => failed = Some(StorageError::Corrupt { what: format!("key {key:02x?} cannot be read") }),
            (_, Err(error)) => failed = Some(error),
        }
        if failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    failed.map_or(Ok(found), Err)
}

/// Whether any of the entries ends keys.
pub(crate) fn ends_keys(task: &ApplyTask) -> bool {
    let ApplyWork::Entries(entries) = &task.work else { return false };
    let normal = |entry: &&Entry| entry.get_entry_type() == EntryType::EntryNormal && !entry.data.is_empty();
    entries.iter().filter(normal).any(|entry| {
        let command = command::decode(entry.data.clone());
        command.is_ok_and(|(command, _)| command.expire.is_some_and(|expire| !expire.keys.is_empty()))
    })
}
