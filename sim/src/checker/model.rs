//! The sequential meaning of the `plain` model for one key: what an operation needs, what it leaves.
//!
//! Every operation is brought to one form, a [`Need`] and a [`Then`], so that the search knows
//! nothing of gets and swaps.
//!
//! Versions. A write of unknown outcome has a version that nobody was told. All that is known of it
//! is a chain of strict inequalities: greater than what came before, less than what came after,
//! and equal to what a read shows. [`State::last`] is therefore the *least* number that the newest
//! version can have, and `exact` says that it is known. A chain of strict inequalities over whole
//! numbers has a solution if and only if the least choice at each step is one; so keeping the least
//! is neither too strict nor too lax.
//!
//! A ttl. That a value ends by itself is one more operation, of unknown outcome: a swap of that value for nothing, from
//! the moment on at which its ttl may be over. So the search has no notion of time but that of intervals. The end takes a
//! version, as any deletion does.
//!
//! Invariants: `last` never falls; `exact` only while a value is present (for an absent key the
//! version matters as a lower bound alone); while a value is present, `last` is that value's version.

use super::history::{Expect, Input, Output, Value, Version};

/// A value by its number in the problem's table.
pub(super) type ValueId = u32;

/// The number of every value that no operation names. Nobody can tell such values apart, so one
/// number does for all, which lets the search treat their writes as interchangeable.
pub(super) const UNNAMED: ValueId = 0;

/// What one key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub value: Option<ValueId>,
    pub last: Version,
    pub exact: bool,
}

impl State {
    /// A key that was never written.
    pub(super) const EMPTY: Self = Self { value: None, last: 0, exact: false };

    /// Whether every continuation that is possible from `other` is possible from `self`: the set
    /// of concrete states that `self` stands for includes that of `other`.
    pub(super) fn includes(&self, other: &Self) -> bool {
        self.value == other.value
            && if self.exact { other.exact && other.last == self.last } else { other.last >= self.last }
    }
}

/// What must hold for an operation to have its recorded outcome (or, if the outcome is unknown, to
/// have an effect at all).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Need {
    /// Nothing: a put overwrites blindly.
    Anything,
    /// The key holds no value.
    Absent,
    /// The key holds some value.
    Present,
    /// The key holds this value, of whatever version.
    Value(ValueId),
    /// The key holds some value of this version.
    Version(Version),
    /// The key holds this value with this version.
    Exactly(ValueId, Version),
    /// The answer contradicts its own question.
    Never,
}

/// What the operation leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Then {
    /// The state as it was.
    Keep,
    /// A write, or with `None` a deletion; its version if the client was told.
    Write(Option<ValueId>, Option<Version>),
}

/// An operation as the search sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Action {
    pub need: Need,
    pub then: Then,
}

impl Need {
    /// The state after the need was found to hold: a shown version becomes known.
    pub(super) fn bind(self, state: State) -> Option<State> {
        let holds = match self {
            Self::Anything => true,
            Self::Absent => state.value.is_none(),
            Self::Present => state.value.is_some(),
            Self::Value(value) => state.value == Some(value),
            Self::Version(_) => state.value.is_some(),
            Self::Exactly(value, _) => state.value == Some(value),
            Self::Never => false,
        };
        if !holds {
            return None;
        }
        match self {
            Self::Version(version) | Self::Exactly(_, version) => {
                let possible = if state.exact { state.last == version } else { state.last <= version };
                possible.then_some(State { last: version, exact: true, ..state })
            }
            _ => Some(state),
        }
    }
}

impl Action {
    /// The state after the operation, or `None` if it cannot have had this outcome here.
    pub(super) fn step(&self, state: State) -> Option<State> {
        let state = self.need.bind(state)?;
        match self.then {
            Then::Keep => Some(state),
            Then::Write(value, Some(version)) => {
                (version > state.last).then_some(State { value, last: version, exact: value.is_some() })
            }
            Then::Write(value, None) => Some(State { value, last: state.last + 1, exact: false }),
        }
    }

    /// The highest that [`State::last`] may be before this operation: once the key is past it, the
    /// operation is impossible.
    pub(super) fn last_before(&self) -> Option<Version> {
        match (self.need, self.then) {
            (Need::Version(version) | Need::Exactly(_, version), _) => Some(version),
            (_, Then::Write(_, version)) => version.map(|version| version.saturating_sub(1)),
            (_, Then::Keep) => None,
        }
    }

    /// An operation with a known outcome. `id_of` numbers the values.
    pub(super) fn of_answer<'a>(
        input: &'a Input,
        output: &'a Output,
        mut id_of: impl FnMut(&'a Value) -> ValueId,
    ) -> Self {
        let write = |value, version| Then::Write(value, Some(version));
        let (need, then) = match (input, output) {
            (Input::Get, Output::Get(None)) => (Need::Absent, Then::Keep),
            (Input::Get, Output::Get(Some((value, version)))) => (Need::Exactly(id_of(value), *version), Then::Keep),
            (Input::Put(value), Output::Put { version }) => (Need::Anything, write(Some(id_of(value)), *version)),
            (Input::PutIfAbsent(value), Output::Applied { version }) => {
                (Need::Absent, write(Some(id_of(value)), *version))
            }
            (Input::PutIfAbsent(_), Output::Exists { version }) => (Need::Version(*version), Then::Keep),
            (Input::Delete, Output::Delete { existed: true, version }) => (Need::Present, Then::Write(None, *version)),
            (Input::Delete, Output::Delete { existed: false, version: None }) => (Need::Absent, Then::Keep),
            (Input::Delete, Output::Delete { existed: false, version }) => (Need::Absent, Then::Write(None, *version)),
            (Input::CompareAndSwap { expect, new }, Output::Applied { version }) => {
                let new = new.as_ref().map(&mut id_of);
                (need_of(expect, id_of), write(new, *version))
            }
            (Input::CompareAndSwap { expect, .. }, Output::Failed { current }) => {
                let need = match (current, expect) {
                    (None, Expect::Absent) => Need::Never,
                    (None, _) => Need::Absent,
                    (Some((value, _)), Expect::Value(expected)) if value == expected => Need::Never,
                    (Some((_, version)), Expect::Version(expected)) if version == expected => Need::Never,
                    (Some((value, version)), _) => Need::Exactly(id_of(value), *version),
                };
                (need, Then::Keep)
            }
            _ => (Need::Never, Then::Keep),
        };
        Self { need, then }
    }

    /// An operation of unknown outcome, if it can have an effect. (One that had none is the same as
    /// one that never happened.)
    pub(super) fn of_unknown<'a>(input: &'a Input, mut id_of: impl FnMut(&'a Value) -> ValueId) -> Option<Self> {
        let (need, value) = match input {
            Input::Get => return None,
            Input::Put(value) => (Need::Anything, Some(id_of(value))),
            Input::PutIfAbsent(value) => (Need::Absent, Some(id_of(value))),
            Input::Delete => (Need::Present, None),
            Input::CompareAndSwap { expect: Expect::Absent, new: None } => return None,
            Input::CompareAndSwap { expect, new } => {
                let new = new.as_ref().map(&mut id_of);
                (need_of(expect, id_of), new)
            }
        };
        Some(Self { need, then: Then::Write(value, None) })
    }
}

/// The end of a value with a ttl, by itself: an operation of unknown outcome that nobody asked for. Under which version
/// the value was written may be known.
pub(super) fn end_of(value: ValueId, version: Option<Version>) -> Action {
    let need = version.map_or(Need::Value(value), |version| Need::Exactly(value, version));
    Action { need, then: Then::Write(None, None) }
}

fn need_of<'a>(expect: &'a Expect, mut id_of: impl FnMut(&'a Value) -> ValueId) -> Need {
    match expect {
        Expect::Value(value) => Need::Value(id_of(value)),
        Expect::Version(version) => Need::Version(*version),
        Expect::Absent => Need::Absent,
    }
}
