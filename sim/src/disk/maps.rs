//! What is on a simulated disk: one sorted map per family, and batches of changes to them that can be
//! taken back.
//!
//! Invariant: applying a batch and then playing its [`Undo`] back leaves the maps as they were.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use flotilla_engine::storage::{Direction, Family, Read, Result, Visit};

/// One change of a batch.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Put(Family, Bytes, Bytes),
    Delete(Family, Bytes),
    /// From the first up to, and without, the second, which is larger.
    DeleteRange(Family, Bytes, Bytes),
}

/// The values that a batch replaced, in its order; `None` where there was none.
#[derive(Debug, Default)]
pub(super) struct Undo(Vec<(Family, Bytes, Option<Bytes>)>);

impl Undo {
    /// Whether it holds a key of this family, within the two and both included if they are given.
    pub(super) fn touches(&self, family: Family, within: Option<(&[u8], &[u8])>) -> bool {
        let inside = |key: &[u8]| within.is_none_or(|(first, last)| key >= first && key <= last);
        self.0.iter().any(|(of, key, _)| *of == family && inside(key))
    }
}

/// All families.
#[derive(Clone, Debug, Default)]
pub(super) struct Maps {
    families: [BTreeMap<Bytes, Bytes>; Family::ALL.len()],
}

type Span<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

fn span<'a>(start: &'a [u8], end: &'a [u8]) -> Span<'a> {
    (Bound::Included(start), Bound::Excluded(end))
}

impl Maps {
    fn family(&self, family: Family) -> &BTreeMap<Bytes, Bytes> {
        &self.families[family as usize]
    }

    pub(super) fn len(&self, family: Family) -> usize {
        self.family(family).len()
    }

    pub(super) fn nth_key(&self, family: Family, n: usize) -> Option<Bytes> {
        self.family(family).keys().nth(n).cloned()
    }

    pub(super) fn apply(&mut self, changes: Vec<Change>) -> Undo {
        let mut undo = Undo(Vec::with_capacity(changes.len()));
        for change in changes {
            match change {
                Change::Put(family, key, value) => {
                    let old = self.families[family as usize].insert(key.clone(), value);
                    undo.0.push((family, key, old));
                }
                Change::Delete(family, key) => {
                    if let Some(old) = self.families[family as usize].remove(&key) {
                        undo.0.push((family, key, Some(old)));
                    }
                }
                Change::DeleteRange(family, start, end) => {
                    let map = &mut self.families[family as usize];
                    let keys: Vec<Bytes> =
                        map.range::<[u8], Span<'_>>(span(&start, &end)).map(|(key, _)| key.clone()).collect();
                    for key in keys {
                        let old = map.remove(&key);
                        undo.0.push((family, key, old));
                    }
                }
            }
        }
        undo
    }

    pub(super) fn undo(&mut self, undo: Undo) {
        for (family, key, old) in undo.0.into_iter().rev() {
            let map = &mut self.families[family as usize];
            match old {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
    }
}

fn visit_all<'a>(pairs: impl Iterator<Item = (&'a Bytes, &'a Bytes)>, visit: &mut Visit<'_>) {
    for (key, value) in pairs {
        if let ControlFlow::Break(()) = visit(key, value) {
            return;
        }
    }
}

impl Read for Maps {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.family(family).get(key).cloned())
    }

    fn scan(
        &self,
        family: Family,
        start: &[u8],
        end: &[u8],
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<()> {
        // BTreeMap panics on a span that ends before it starts.
        if start < end {
            let pairs = self.family(family).range::<[u8], Span<'_>>(span(start, end));
            match direction {
                Direction::Forward => visit_all(pairs, visit),
                Direction::Reverse => visit_all(pairs.rev(), visit),
            }
        }
        Ok(())
    }
}
