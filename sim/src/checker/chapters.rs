//! Histories with losses that were announced: where a range lost its majority for good, and went on with what one replica had.
//!
//! At such a moment a key goes back to what that replica holds, and whatever was acknowledged beyond that is gone, as the
//! plan of the recovery said. A key's history is cut there into chapters, each of which is judged as a key of its own:
//!
//! - a chapter begins with what was kept, which somebody must have written, under that version;
//! - within each chapter all that is asked of any history holds, versions and ends by ttl included;
//! - an operation of unknown outcome may take effect in its own chapter or in a later one; one that was answered
//!   behind a cut and asked before it counts as of unknown outcome on both sides: it may have been answered by either.
//!
//! Nothing else is forgiven. The last chapter has the key's own name, so that whoever looks for a final read finds it.

use std::collections::{BTreeMap, BTreeSet};

use super::audit::Finding;
use super::history::{Entry, History, Input, Key, Moment, OpId, Operation, Outcome, Output, Versioned};
use super::problem::had_effect;
use super::render;

/// A key's history ends here, and goes on with what was kept.
#[derive(Clone, Debug)]
pub(super) struct Cut {
    at: Moment,
    kept: Option<Versioned>,
}

/// A history, cut where losses were announced.
#[derive(Clone, Debug, Default)]
pub struct Chapters {
    /// Each chapter under a name of its own.
    pub history: History,
    /// The names of chapters that are not the last of their keys.
    pub closed: BTreeSet<Key>,
    /// What was kept, and had never been written.
    pub findings: Vec<Finding>,
}

impl History {
    /// The range of this key goes on with what one replica has: nothing, or this.
    pub fn lose(&mut self, now_ns: u64, key: &Key, kept: Option<Versioned>) {
        let at = (now_ns, self.take_seq());
        self.cuts.entry(key.clone()).or_default().push(Cut { at, kept });
    }

    /// How often keys have gone back to what one replica had.
    pub fn losses(&self) -> usize {
        self.cuts.values().map(Vec::len).sum()
    }

    /// The history, chapter by chapter.
    pub fn in_chapters(&self) -> Chapters {
        let mut chapters = Chapters::default();
        for (key, ids) in self.by_key() {
            match self.cuts.get(key) {
                None => ids.iter().for_each(|id| chapters.history.entries.push(self.entries[id.0].clone())),
                Some(cuts) => self.cut(key, &ids, cuts, &mut chapters),
            }
        }
        chapters.history.next_seq = self.next_seq;
        chapters
    }

    fn cut(&self, key: &Key, ids: &[OpId], cuts: &[Cut], into: &mut Chapters) {
        let chapter = |moment: Moment| cuts.iter().filter(|cut| cut.at <= moment).count();
        let name = |at: usize| if at == cuts.len() { key.clone() } else { Key::from([&key[..], &closed(at)].concat()) };
        into.closed.extend((0..cuts.len()).map(name));
        // Of each operation whose value was kept, where: it took effect before, and does not again.
        let mut settled: BTreeMap<OpId, usize> = BTreeMap::new();
        for (at, cut) in cuts.iter().enumerate() {
            let Some(kept) = &cut.kept else { continue };
            match ids.iter().copied().find(|id| self.may_have_written(*id, kept)) {
                Some(id) => {
                    settled.entry(id).or_insert(at);
                    into.history.entries.push(self.kept(id, name(at + 1), cut.at, kept));
                }
                None => into.findings.push(Finding {
                    key: key.clone(),
                    operations: Vec::new(),
                    what: format!(
                        "nobody had written version {}, {}, with which it goes on after a loss",
                        kept.1,
                        render::short(&kept.0)
                    ),
                }),
            }
        }
        for &id in ids {
            let (first, last) = (chapter(self.invoked_at(id)), chapter(self.returned_at(id)));
            let entry = &self.entries[id.0];
            let definite = matches!(entry.operation.outcome, Outcome::Ok(_) | Outcome::NotApplied);
            if definite && first == last || matches!(entry.operation.outcome, Outcome::NotApplied) {
                into.history.entries.push(renamed(entry, name(first)));
                continue;
            }
            let idle = matches!(&entry.operation.outcome, Outcome::Ok(output) if !had_effect(output));
            if idle || entry.operation.input == Input::Get {
                continue;
            }
            let last = settled.get(&id).copied().unwrap_or(last).min(last);
            for at in first..=last {
                let mut open = renamed(entry, name(at));
                open.operation.outcome = Outcome::Unknown;
                into.history.entries.push(open);
            }
        }
    }

    fn may_have_written(&self, id: OpId, (value, version): &Versioned) -> bool {
        let operation = self.operation(id);
        let (Input::Put(new) | Input::PutIfAbsent(new) | Input::CompareAndSwap { new: Some(new), .. }) =
            &operation.input
        else {
            return false;
        };
        let told = match &operation.outcome {
            Outcome::Ok(Output::Put { version } | Output::Applied { version }) => *version,
            Outcome::Unknown => *version,
            Outcome::Ok(_) | Outcome::NotApplied => return false,
        };
        new == value && told == *version
    }

    /// The first operation of a chapter: what was kept, with the end that its writer gave it.
    fn kept(&self, writer: OpId, name: Key, at: Moment, (value, version): &Versioned) -> Entry {
        let entry = &self.entries[writer.0];
        let operation = Operation {
            key: name,
            input: Input::Put(value.clone()),
            returned_ns: Some(at.0),
            outcome: Outcome::Ok(Output::Put { version: *version }),
            ..entry.operation.clone()
        };
        Entry { operation, invoke_seq: entry.invoke_seq, return_seq: at.1 }
    }
}

fn closed(at: usize) -> Vec<u8> {
    format!(" (before loss {})", at + 1).into_bytes()
}

fn renamed(entry: &Entry, key: Key) -> Entry {
    let mut entry = entry.clone();
    entry.operation.key = key;
    entry
}

#[cfg(test)]
mod tests {
    use super::super::{Budget, check, nothing_invented, nothing_lost};
    use super::*;

    fn put(history: &mut History, at: u64, value: &str, version: u64) {
        let id = history.invoke(1, at, "k".into(), Input::Put(value.to_owned().into()));
        history.complete(id, at + 5, Outcome::Ok(Output::Put { version }));
    }

    fn get(history: &mut History, at: u64, found: Option<(&str, u64)>) {
        let id = history.invoke(2, at, "k".into(), Input::Get);
        let found = found.map(|(value, version)| (value.to_owned().into(), version));
        history.complete(id, at + 5, Outcome::Ok(Output::Get(found)));
    }

    fn lose(history: &mut History, at: u64, kept: Option<(&str, u64)>) {
        history.lose(at, &"k".into(), kept.map(|(value, version)| (value.to_owned().into(), version)));
    }

    fn is_fine(history: &History) -> bool {
        let chapters = history.in_chapters();
        let history = &chapters.history;
        check(history, Budget::default()).is_ok()
            && nothing_lost(history).findings.is_empty()
            && nothing_invented(history).is_empty()
            && chapters.findings.is_empty()
    }

    /// Two writes, and only the first was kept; its version comes again.
    fn gone_back() -> History {
        let mut history = History::new();
        put(&mut history, 10, "a", 1);
        put(&mut history, 20, "b", 2);
        get(&mut history, 30, Some(("b", 2)));
        lose(&mut history, 40, Some(("a", 1)));
        history
    }

    #[test]
    fn a_key_goes_back_to_what_was_kept_and_on_from_there() {
        let mut history = gone_back();
        assert_eq!(history.losses(), 1);
        get(&mut history, 50, Some(("a", 1)));
        put(&mut history, 60, "c", 2);
        get(&mut history, 70, Some(("c", 2)));
        assert!(is_fine(&history));
    }

    #[test]
    fn what_was_lost_does_not_come_back_and_what_was_kept_is_not_lost() {
        for found in [Some(("b", 2)), None, Some(("x", 9))] {
            let mut history = gone_back();
            get(&mut history, 50, found);
            assert!(!is_fine(&history), "{found:?}");
        }
    }

    #[test]
    fn what_was_kept_had_been_written() {
        for kept in [("x", 1), ("a", 2)] {
            let mut history = History::new();
            put(&mut history, 10, "a", 1);
            lose(&mut history, 40, Some(kept));
            assert!(!is_fine(&history), "{kept:?}");
        }
    }

    #[test]
    fn what_was_under_way_may_take_effect_on_either_side() {
        let mut history = gone_back();
        let unknown = history.invoke(3, 15, "k".into(), Input::Put("u".into()));
        history.complete(unknown, 45, Outcome::Unknown);
        get(&mut history, 50, Some(("u", 2)));
        assert!(is_fine(&history));
        let mut history = History::new();
        let spans = history.invoke(3, 35, "k".into(), Input::Put("s".into()));
        lose(&mut history, 40, None);
        history.complete(spans, 45, Outcome::Ok(Output::Put { version: 7 }));
        get(&mut history, 50, None);
        assert!(is_fine(&history), "it was answered by those who are lost");
    }
}
