//! What clients asked and what they were told: the input of every checker.
//!
//! A history is recorded by the workload (of the simulator, or of a test with real processes) and
//! read by [`super::linearizability`] and [`super::audit`]. Times are nanoseconds of any one
//! clock.
//!
//! Invariants:
//! - An operation's interval contains the moment at which it took effect: `invoke` is called before
//!   the request leaves, `complete` after the answer has come. Events with the same time count in
//!   the order in which they were recorded.
//! - An operation without a known outcome stays open for ever: it may take effect at any time after
//!   its invocation, or never. It is never recorded as a failure.
//! - [`Outcome::NotApplied`] is a promise that the operation did not and will not take effect.
//! - A value that was written with a ttl may end by itself, once: not before the ttl has passed since the request was
//!   made, in true time; and never again, so that what is seen gone stays gone until somebody writes.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::chapters::Cut;

/// A key of the `plain` data model.
pub type Key = Bytes;
/// A value of the `plain` data model.
pub type Value = Bytes;
/// The number a range gives to a write: strictly increasing for each key, but not dense. It starts
/// at 1; a key that was never written has none.
pub type Version = u64;

/// A value with the version under which it was written.
pub type Versioned = (Value, Version);

/// What a compare-and-swap expects to find.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expect {
    /// The key holds this value.
    Value(Value),
    /// The key holds a value that was written under this version.
    Version(Version),
    /// The key holds nothing.
    Absent,
}

/// What the client asked for. A batch is recorded as one operation for each of its keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// Reads the key.
    Get,
    /// Writes the value, whatever was there.
    Put(Value),
    /// Writes the value if the key holds nothing.
    PutIfAbsent(Value),
    /// Removes the key.
    Delete,
    /// Writes (or, with `None`, deletes) if the expectation holds.
    CompareAndSwap {
        /// What must hold for the swap to be done.
        expect: Expect,
        /// The new value; `None` deletes the key.
        new: Option<Value>,
    },
}

/// What the client was told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// Of a get: the value and its version, or nothing.
    Get(Option<Versioned>),
    /// Of a put: the version it was given.
    Put {
        /// The version of this write.
        version: Version,
    },
    /// Of a delete.
    Delete {
        /// Whether the key held a value.
        existed: bool,
        /// The version given to the deletion; `None` if none was given or reported.
        version: Option<Version>,
    },
    /// Of a put-if-absent or compare-and-swap that was done.
    Applied {
        /// The version of this write.
        version: Version,
    },
    /// Of a put-if-absent that found a value.
    Exists {
        /// The version of the value that is there.
        version: Version,
    },
    /// Of a compare-and-swap whose expectation did not hold.
    Failed {
        /// What the key held instead.
        current: Option<Versioned>,
    },
}

/// How an operation ended, as far as its client knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It took effect and this was the answer.
    Ok(Output),
    /// It surely did not take effect and never will.
    NotApplied,
    /// It may have taken effect, may still do so, or never.
    Unknown,
}

/// Names an operation of one history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub usize);

/// One operation on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Who asked; only shown to the reader, the order is taken from the times.
    pub client: u64,
    /// The key.
    pub key: Key,
    /// The question.
    pub input: Input,
    /// What it writes ends by itself, so long after the request at the earliest; 0: it stays.
    pub ttl_ns: u64,
    /// When the request was made.
    pub invoked_ns: u64,
    /// When the client stopped waiting, if it has.
    pub returned_ns: Option<u64>,
    /// The answer.
    pub outcome: Outcome,
}

/// A point in the order of all events: the time, then the order of recording.
pub(super) type Moment = (u64, u64);

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub operation: Operation,
    pub invoke_seq: u64,
    pub return_seq: u64,
}

/// All operations of a run. See the invariants at the head of this file.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub(super) entries: Vec<Entry>,
    pub(super) next_seq: u64,
    /// Where keys have gone back to what one replica had.
    pub(super) cuts: BTreeMap<Key, Vec<Cut>>,
}

impl History {
    /// An empty history.
    pub fn new() -> Self {
        Self::default()
    }

    /// Records that a request is about to leave. Until it is completed, its outcome is unknown.
    pub fn invoke(&mut self, client: u64, now_ns: u64, key: Key, input: Input) -> OpId {
        let operation = Operation {
            client,
            key,
            input,
            ttl_ns: 0,
            invoked_ns: now_ns,
            returned_ns: None,
            outcome: Outcome::Unknown,
        };
        let invoke_seq = self.take_seq();
        self.entries.push(Entry { operation, invoke_seq, return_seq: u64::MAX });
        OpId(self.entries.len() - 1)
    }

    /// Records that what an operation writes has a ttl.
    ///
    /// # Panics
    /// If the operation is not of this history.
    pub fn ends_after(&mut self, id: OpId, ttl_ns: u64) {
        self.entries[id.0].operation.ttl_ns = ttl_ns;
    }

    /// Records that the client has stopped waiting, with what it knows then.
    ///
    /// # Panics
    /// If the operation is not of this history or was completed before: a bug of the recorder,
    /// which would make every verdict worthless.
    pub fn complete(&mut self, id: OpId, now_ns: u64, outcome: Outcome) {
        let return_seq = self.take_seq();
        let entry = &mut self.entries[id.0];
        assert!(entry.operation.returned_ns.is_none(), "operation {} was completed twice", id.0);
        entry.return_seq = return_seq;
        entry.operation.returned_ns = Some(now_ns.max(entry.operation.invoked_ns));
        entry.operation.outcome = outcome;
    }

    /// Adds an operation recorded elsewhere (by a thread or process of its own). Nothing is known
    /// of its order but the times: where those are equal, it counts as concurrent.
    pub fn push(&mut self, mut operation: Operation) -> OpId {
        operation.returned_ns = operation.returned_ns.map(|time| time.max(operation.invoked_ns));
        self.entries.push(Entry { operation, invoke_seq: 0, return_seq: u64::MAX });
        OpId(self.entries.len() - 1)
    }

    /// How many operations there are, of all outcomes.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// One operation.
    ///
    /// # Panics
    /// If the id is not of this history.
    pub fn operation(&self, id: OpId) -> &Operation {
        &self.entries[id.0].operation
    }

    /// All operations in the order of recording.
    pub fn operations(&self) -> impl Iterator<Item = (OpId, &Operation)> {
        self.entries.iter().enumerate().map(|(at, entry)| (OpId(at), &entry.operation))
    }

    /// The operations of each key, in the order of recording.
    pub fn by_key(&self) -> BTreeMap<&Key, Vec<OpId>> {
        let mut keys: BTreeMap<&Key, Vec<OpId>> = BTreeMap::new();
        for (id, operation) in self.operations() {
            keys.entry(&operation.key).or_default().push(id);
        }
        keys
    }

    pub(super) fn invoked_at(&self, id: OpId) -> Moment {
        let entry = &self.entries[id.0];
        (entry.operation.invoked_ns, entry.invoke_seq)
    }

    /// When what this operation writes may end by itself, at the earliest.
    pub(super) fn ends_at(&self, id: OpId) -> Option<Moment> {
        let operation = self.operation(id);
        (operation.ttl_ns > 0).then(|| (operation.invoked_ns.saturating_add(operation.ttl_ns), 0))
    }

    /// The end of the interval; an open operation ends after everything else, and so does an answer
    /// whose time was not recorded.
    pub(super) fn returned_at(&self, id: OpId) -> Moment {
        let entry = &self.entries[id.0];
        match (&entry.operation.outcome, entry.operation.returned_ns) {
            (Outcome::Ok(_) | Outcome::NotApplied, Some(time)) => (time, entry.return_seq),
            _ => (u64::MAX, u64::MAX),
        }
    }

    pub(super) fn take_seq(&mut self) -> u64 {
        self.next_seq += 1;
        self.next_seq
    }
}
