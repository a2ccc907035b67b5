//! What a request needs routes for: keys, and ends of spans that are read downwards.

use std::collections::BTreeSet;

use bytes::Bytes;
use flotilla_proto::v1;

/// So many places go into one question, and about so many bytes.
const PLACES_MAX: usize = 1_024;
const BYTES_MAX: usize = 1 << 20;

/// Places in one keyspace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// The ranges that hold these keys.
    pub keys: BTreeSet<Bytes>,
    /// The ranges that hold the keys just below these; empty: the last range.
    pub before: BTreeSet<Bytes>,
}

impl Places {
    /// Adds others.
    pub fn merge(&mut self, other: &Self) {
        self.keys.extend(other.keys.iter().cloned());
        self.before.extend(other.before.iter().cloned());
    }

    /// The question after all of them.
    pub fn lookup(&self) -> v1::RangeLookup {
        v1::RangeLookup {
            keys: self.keys.iter().cloned().collect(),
            before: self.before.iter().cloned().collect(),
            range_id: 0,
        }
    }

    /// The same as questions that fit into a message each; there is always one.
    pub fn into_questions(self) -> Vec<Self> {
        let mut questions = vec![Self::default()];
        let mut taken = (0, 0);
        let places =
            self.keys.into_iter().map(|key| (key, true)).chain(self.before.into_iter().map(|end| (end, false)));
        for (place, is_key) in places {
            if taken.0 == PLACES_MAX || (taken.0 > 0 && taken.1 + place.len() > BYTES_MAX) {
                questions.push(Self::default());
                taken = (0, 0);
            }
            taken = (taken.0 + 1, taken.1 + place.len());
            if let Some(question) = questions.last_mut() {
                if is_key {
                    question.keys.insert(place)
                } else {
                    question.before.insert(place)
                };
            }
        }
        questions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_hold_each_place_once_and_are_bounded() {
        assert_eq!(Places::default().into_questions(), [Places::default()]);
        let key = |at: usize| Bytes::from(format!("{at:0>3000}"));
        let places = Places { keys: (0..2_000).map(key).collect(), before: (0..3).map(key).collect() };
        let questions = places.clone().into_questions();
        assert!(questions.len() > 2);
        let bytes = |of: &Places| of.keys.iter().chain(&of.before).map(Bytes::len).sum::<usize>();
        assert!(questions.iter().all(|of| bytes(of) <= BYTES_MAX && of.keys.len() + of.before.len() <= PLACES_MAX));
        let mut all = Places::default();
        questions.iter().for_each(|of| all.merge(of));
        assert_eq!(all, places);
        assert_eq!(questions.iter().map(|of| of.keys.len() + of.before.len()).sum::<usize>(), 2_003);
    }
}
