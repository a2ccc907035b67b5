//! The trace: one line for each event, hashed always and printed if asked for.
//!
//! Invariant: the hash depends on everything that happened and on nothing else, so that one seed gives
//! one hash on every machine.

use std::fmt::Write;

use flotilla_engine::store::{Envelope, LogBatch, LogItem};
use flotilla_engine::wire;
use flotilla_proto::RangeId;

use crate::clock::Nanos;

#[derive(Debug, Default)]
pub(crate) struct Trace {
    hash: u64,
    print: bool,
    line: String,
}

impl Trace {
    pub(crate) fn new(print: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, print, line: String::new() }
    }

    /// Notes that `what` happened; `numbers` say to whom and with what.
    pub(crate) fn note(&mut self, now: Nanos, what: &'static str, numbers: &[u64]) {
        self.mix(now);
        self.bytes(what.as_bytes());
        for number in numbers {
            self.mix(*number);
        }
        if self.print {
            self.line.clear();
            let _ = write!(self.line, "{:>13.6} {what}", now as f64 / 1e9);
            for number in numbers {
                let _ = write!(self.line, " {number}");
            }
            println!("{}", self.line);
        }
    }

    /// Adds to the hash what is not worth a line of its own.
    pub(crate) fn note_words(&mut self, words: &[u64]) {
        for word in words {
            self.mix(*word);
        }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }

    /// Words for people, printed but not hashed.
    pub(crate) fn say(&self, now: Nanos, words: impl FnOnce() -> String) {
        if self.print {
            println!("{:>13.6} {}", now as f64 / 1e9, words());
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    fn mix(&mut self, word: u64) {
        self.hash = (self.hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

/// A log batch for people.
pub(crate) fn words(batch: &LogBatch) -> String {
    let item = |item: &LogItem| {
        let entries: Vec<(u64, u64)> = item.entries.iter().map(|entry| (entry.index, entry.term)).collect();
        let snapshot = item.snapshot.as_ref().map(|data| data.header.applied);
        format!(
            "{} {:?} entries {entries:?} remove {:?} snapshot {snapshot:?} begins {} destroy {:?}",
            item.range,
            item.raft_state,
            item.remove,
            item.begins.is_some(),
            item.destroy.as_ref().map(|destroy| destroy.tombstone.replica_id)
        )
    };
    batch.items.iter().map(item).collect::<Vec<_>>().join(", ")
}

/// A message for people.
pub(crate) fn message_words(envelope: &Envelope) -> String {
    let of = &envelope.message;
    let kind = wire::from_wire(of.clone()).map(|message| message.get_msg_type());
    format!(
        "{} to {} {} ({} to {}{}): {kind:?} term {} log term {} index {} entries {:?} commit {} reject {} stamp {} ack {}",
        envelope.from,
        envelope.to,
        RangeId(of.range_id),
        of.from_replica,
        of.to_replica,
        if of.removed.is_some() { ", removed" } else { "" },
        of.term,
        of.log_term,
        of.index,
        of.entries.iter().map(|entry| entry.index).collect::<Vec<_>>(),
        of.commit,
        of.reject,
        of.stamp,
        of.ack_stamp
    )
}
