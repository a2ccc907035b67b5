//! A map from ids to values, for ids that are given out in blocks: nearly all of its memory is the values.
//!
//! Ids that differ in their last bits alone share a page, which has a bit for each of its ids and the values that there
//! are, in order.

use std::collections::BTreeMap;

const BITS: u32 = 6;
const LOW: u64 = (1 << BITS) - 1;

#[derive(Clone, Debug)]
struct Page<T> {
    there: u64,
    values: Vec<T>,
}

impl<T> Page<T> {
    /// Where the value of the id lies, or would lie.
    fn place(&self, id: u64) -> usize {
        (self.there & (bit(id) - 1)).count_ones() as usize
    }

    fn has(&self, id: u64) -> bool {
        self.there & bit(id) != 0
    }
}

fn bit(id: u64) -> u64 {
    1 << (id & LOW)
}

/// See the file's head.
#[derive(Clone, Debug)]
pub(crate) struct Dense<T> {
    pages: BTreeMap<u64, Page<T>>,
}

impl<T> Default for Dense<T> {
    fn default() -> Self {
        Self { pages: BTreeMap::new() }
    }
}

impl<T> Dense<T> {
    pub fn get(&self, id: u64) -> Option<&T> {
        let page = self.pages.get(&(id >> BITS)).filter(|page| page.has(id))?;
        page.values.get(page.place(id))
    }

    pub fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        let page = self.pages.get_mut(&(id >> BITS)).filter(|page| page.has(id))?;
        let at = page.place(id);
        page.values.get_mut(at)
    }

    pub fn contains(&self, id: u64) -> bool {
        self.get(id).is_some()
    }

    pub fn insert(&mut self, id: u64, value: T) -> Option<T> {
        if let Some(place) = self.get_mut(id) {
            return Some(std::mem::replace(place, value));
        }
        let page = self.pages.entry(id >> BITS).or_insert_with(|| Page { there: 0, values: Vec::new() });
        let at = page.place(id);
        // Room for a few more, and not for as many again.
        if page.values.len() == page.values.capacity() {
            let len = page.values.len();
            page.values.reserve_exact((len / 4 + 1).min((1 << BITS) - len));
        }
        page.values.insert(at, value);
        page.there |= bit(id);
        None
    }

    pub fn remove(&mut self, id: u64) -> Option<T> {
        let page = self.pages.get_mut(&(id >> BITS)).filter(|page| page.has(id))?;
        let value = page.values.remove(page.place(id));
        page.there &= !bit(id);
        if page.values.is_empty() {
            self.pages.remove(&(id >> BITS));
        }
        Some(value)
    }

    /// All that have at least this id, in order.
    pub fn from(&self, id: u64) -> impl Iterator<Item = (u64, &T)> {
        let pages = self.pages.range(id >> BITS..);
        let all = pages.flat_map(|(high, page)| {
            let ids = (0..=LOW).filter(|low| page.there & (1 << low) != 0).map(move |low| (high << BITS) | low);
            ids.zip(&page.values)
        });
        all.skip_while(move |(other, _)| *other < id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_map_in_order() {
        let (mut dense, mut model) = (Dense::default(), BTreeMap::new());
        let mut number = 1_u64;
        for step in 0..5_000_u64 {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let id = (number >> 33) % 300 + if step % 7 == 0 { u64::MAX - 400 } else { 0 };
            if number >> 62 == 0 {
                assert_eq!(dense.remove(id), model.remove(&id));
            } else {
                assert_eq!(dense.insert(id, step), model.insert(id, step));
            }
            assert_eq!(dense.get(id), model.get(&id));
            let from = |from: u64| dense.from(from).map(|(id, value)| (id, *value)).collect::<Vec<_>>();
            if step % 100 == 0 {
                assert_eq!(from(id), model.range(id..).map(|(id, value)| (*id, *value)).collect::<Vec<_>>());
            }
        }
        assert!(!dense.contains(301));
    }
}
