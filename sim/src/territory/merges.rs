//! Merges, as the checkers see them: which ranges are frozen from where in their logs, what became of each freeze, and
//! which ranges are part of another one now.
//!
//! - A freeze ends once: by a merge in its target, or by a thaw. Never both.
//! - A frozen range writes nothing.
//! - What was merged away does not come back.

use std::collections::BTreeMap;

use flotilla_proto::RangeId;

use crate::invariants::Check;

/// What became of a freeze.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fate {
    #[default]
    Open,
    /// At this index of the source's log.
    Thawed(u64),
    /// By this range, at this index of its log.
    Merged(RangeId, u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Freeze {
    target: RangeId,
    fate: Fate,
}

impl Freeze {
    /// Its range goes on with what one replica had, and stands still no more.
    pub(super) fn goes_on(&mut self, applied: u64) {
        if !matches!(self.fate, Fate::Thawed(at) if at <= applied) {
            self.fate = Fate::Thawed(applied);
        }
    }

    /// The entry that merged is lost; true: it was one.
    pub(super) fn is_undone(&mut self, target: RangeId, applied: u64) -> bool {
        let undone = matches!(self.fate, Fate::Merged(by, at) if by == target && at > applied);
        if undone {
            self.fate = Fate::Open;
        }
        undone
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Merges {
    /// Of each range, its freezes by their indexes in its log.
    pub(super) freezes: BTreeMap<RangeId, BTreeMap<u64, Freeze>>,
    /// Ranges that are part of another one.
    pub(super) ended: BTreeMap<RangeId, RangeId>,
}

impl Merges {
    /// A replica has applied a freeze.
    pub(crate) fn frozen(&mut self, source: RangeId, index: u64, target: RangeId) -> Check {
        let of_source = self.freezes.entry(source).or_default();
        if let Some((at, before)) = of_source.range(..index).next_back()
            && !matches!(before.fate, Fate::Thawed(thawed) if thawed < index)
        {
            return Err(format!("I5: {source} is frozen at {index}, and was at {at} already: {before:?}"));
        }
        let freeze = Freeze { target, fate: Fate::Open };
        let known = of_source.entry(index).or_insert_with(|| freeze.clone());
        if known.target != target {
            return Err(format!("I4: {source} is frozen at {index} as {freeze:?}, and as {known:?} elsewhere"));
        }
        Ok(())
    }

    /// A replica has applied the end of a freeze that leads to nothing.
    pub(crate) fn thawed(&mut self, source: RangeId, index: u64) -> Check {
        let before = self.freezes.entry(source).or_default().range_mut(..index).next_back();
        let Some((at, freeze)) = before else {
            return Err(format!("I5: {source} is thawed at {index}, and was never frozen"));
        };
        match freeze.fate {
            Fate::Open => freeze.fate = Fate::Thawed(index),
            Fate::Thawed(known) if known == index => {}
            fate => return Err(format!("I5: {source}, frozen at {at}, is thawed at {index}, and {fate:?}")),
        }
        Ok(())
    }

    /// A replica of the target has applied a merge; `frozen_at`: where the source's log has ended.
    pub(crate) fn merged(&mut self, source: RangeId, frozen_at: u64, target: RangeId, index: u64) -> Check {
        let freeze = self.freezes.get_mut(&source).and_then(|of| of.get_mut(&frozen_at));
        let Some(freeze) = freeze else {
            return Err(format!("I5: {source} is merged into {target}, and was never frozen at {frozen_at}"));
        };
        if freeze.target != target {
            return Err(format!("I5: {source} is merged into {target}, and was frozen for {freeze:?}"));
        }
        match freeze.fate {
            Fate::Open => freeze.fate = Fate::Merged(target, index),
            Fate::Merged(_, known) if known == index => {}
            fate => return Err(format!("I5: {source} is merged into {target} at {index}, and is {fate:?}")),
        }
        self.ended.insert(source, target);
        Ok(())
    }

    /// Whether the range is part of another one.
    pub(crate) fn is_ended(&self, range: RangeId) -> bool {
        self.ended.contains_key(&range)
    }

    /// Whether the entry at this index stands behind a freeze that has not ended before it.
    pub(crate) fn is_frozen_at(&self, range: RangeId, index: u64) -> bool {
        let before = self.freezes.get(&range).and_then(|of| of.range(..index).next_back());
        before.is_some_and(|(_, freeze)| !matches!(freeze.fate, Fate::Thawed(at) if at <= index))
    }

    /// Whether some replica has applied a freeze of the range, and none what ends it.
    pub(crate) fn is_open(&self, range: RangeId) -> bool {
        let last = self.freezes.get(&range).and_then(|of| of.last_key_value());
        last.is_some_and(|(_, freeze)| freeze.fate == Fate::Open)
    }

    /// Whether the range is frozen, or was merged away.
    pub(crate) fn is_shut(&self, range: RangeId) -> bool {
        self.is_open(range) || self.is_ended(range)
    }

    /// Ranges that are part of another one.
    pub(crate) fn ended(&self) -> impl Iterator<Item = RangeId> {
        self.ended.keys().copied()
    }

    /// Ranges that are frozen, and wait for what comes of it.
    pub(crate) fn open(&self) -> impl Iterator<Item = RangeId> {
        self.freezes.keys().copied().filter(|range| self.is_open(*range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: RangeId = RangeId(3);
    const TARGET: RangeId = RangeId(2);

    #[test]
    fn a_freeze_ends_once() {
        let mut merges = Merges::default();
        assert_eq!(merges.frozen(SOURCE, 10, TARGET), Ok(()));
        assert!(merges.is_frozen_at(SOURCE, 11) && !merges.is_frozen_at(SOURCE, 10) && merges.is_shut(SOURCE));
        assert!(merges.frozen(SOURCE, 12, TARGET).is_err(), "frozen twice");
        assert_eq!(merges.merged(SOURCE, 10, TARGET, 40), Ok(()));
        assert_eq!(merges.merged(SOURCE, 10, TARGET, 40), Ok(()), "another replica");
        assert!(merges.thawed(SOURCE, 14).is_err(), "both");
        assert!(merges.is_ended(SOURCE) && merges.open().next().is_none());
    }

    #[test]
    fn a_thawed_range_can_be_frozen_again_and_an_old_merge_is_over() {
        let mut merges = Merges::default();
        assert_eq!(merges.frozen(SOURCE, 10, TARGET), Ok(()));
        assert_eq!(merges.thawed(SOURCE, 13), Ok(()));
        assert!(merges.is_frozen_at(SOURCE, 12) && !merges.is_frozen_at(SOURCE, 14));
        assert!(merges.merged(SOURCE, 10, TARGET, 40).is_err());
        assert_eq!(merges.frozen(SOURCE, 20, TARGET), Ok(()));
        assert!(merges.merged(SOURCE, 20, RangeId(9), 40).is_err(), "another target");
        assert_eq!(merges.open().collect::<Vec<_>>(), [SOURCE]);
        assert!(merges.thawed(TARGET, 3).is_err(), "never frozen");
    }
}
