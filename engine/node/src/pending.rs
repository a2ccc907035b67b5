//! Who waits for what: the askers behind the store's tokens.
//!
//! A slab: a token names a place and how often it has been used, so that an answer that comes twice
//! finds nobody.

use flotilla_engine::store::Token;

/// Askers by token.
#[derive(Debug)]
pub(crate) struct Pending<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Place<T> {
    used: u32,
    asker: Option<T>,
}

impl<T> Default for Pending<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Pending<T> {
    /// Adds an asker.
    pub fn insert(&mut self, asker: T) -> Token {
        let at = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { used: 0, asker: None });
            u32::try_from(self.places.len() - 1).expect("requests under way are bounded by their bytes, far below 2^32")
        });
        let place = &mut self.places[at as usize];
        place.used = place.used.wrapping_add(1);
        place.asker = Some(asker);
        Token(u64::from(place.used) << 32 | u64::from(at))
    }

    /// Takes the asker that a token names.
    pub fn remove(&mut self, token: Token) -> Option<T> {
        let (used, at) = ((token.0 >> 32) as u32, token.0 as u32);
        let place = self.places.get_mut(at as usize).filter(|place| place.used == used)?;
        let asker = place.asker.take()?;
        self.free.push(at);
        Some(asker)
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.places.len()
    }

    /// Takes all.
    pub fn drain(&mut self) -> impl Iterator<Item = T> {
        self.free.clear();
        std::mem::take(&mut self.places).into_iter().filter_map(|place| place.asker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_finds_its_asker_once_and_never_a_later_one() {
        let mut pending = Pending::default();
        let (first, second) = (pending.insert("first"), pending.insert("second"));
        assert_eq!(pending.remove(first), Some("first"));
        assert_eq!(pending.remove(first), None);
        let third = pending.insert("third");
        assert_eq!(third.0 as u32, first.0 as u32, "the place is used again");
        assert_eq!(pending.remove(first), None);
        assert_eq!(pending.remove(Token(u64::MAX)), None);
        assert!(!pending.is_empty());
        assert_eq!(pending.remove(second), Some("second"));
        assert_eq!(pending.drain().collect::<Vec<_>>(), ["third"]);
        assert!(pending.is_empty());
    }
}
