//! What of the keyspaces a check of all ranges has still to look at: ranges split, merge and move while it goes on.
//!
//! Flow: [`super::check`] asks for one range after the other, lists the ranges again, and goes on with those that
//! [`still_open`] names, until there are none.

use flotilla_proto::v1;

/// A check that was tried.
pub struct Tried<'a> {
    /// The range as it was listed before.
    pub listed: &'a v1::RangeDescriptor,
    /// The range as it was compared; none if it was not.
    pub compared: Option<&'a v1::RangeDescriptor>,
    /// Another try may do better although the range stays as it is: it was not found where it was listed.
    pub again: bool,
}

/// The ranges of a newer list that have keys which nobody compared. One that failed as it is now would fail again, and
/// is left out.
pub fn still_open(tried: &[Tried<'_>], now: &[v1::RangeDescriptor]) -> Vec<v1::RangeDescriptor> {
    let is_open = |range: &&v1::RangeDescriptor| {
        let settled = tried.iter().any(|check| !check.again && is_same(check.listed, range));
        !settled && !is_covered(range, tried.iter().filter_map(|check| check.compared))
    };
    now.iter().filter(is_open).cloned().collect()
}

/// The same range, unchanged.
pub fn is_same(left: &v1::RangeDescriptor, right: &v1::RangeDescriptor) -> bool {
    (left.range_id, left.epoch) == (right.range_id, right.epoch)
}

/// Whether these together hold every key of a range.
fn is_covered<'a>(range: &v1::RangeDescriptor, by: impl Iterator<Item = &'a v1::RangeDescriptor>) -> bool {
    let mut spans: Vec<_> =
        by.filter(|of| of.keyspace_id == range.keyspace_id).map(|of| (&of.start, &of.end)).collect();
    spans.sort_unstable();
    let mut at = &range.start;
    for (start, end) in spans {
        if start > at {
            return false;
        }
        if end.is_empty() || (!range.end.is_empty() && *end >= range.end) {
            return true;
        }
        at = at.max(end);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(range_id: u64, start: &'static str, end: &'static str, version: u64) -> v1::RangeDescriptor {
        let epoch = Some(v1::Epoch { version, ..Default::default() });
        v1::RangeDescriptor {
            range_id,
            keyspace_id: 1,
            start: start.into(),
            end: end.into(),
            epoch,
            ..Default::default()
        }
    }

    fn done(listed: &v1::RangeDescriptor) -> Tried<'_> {
        Tried { listed, compared: Some(listed), again: false }
    }

    #[test]
    fn what_was_compared_is_done_whatever_it_is_called_now() {
        let (left, right) = (range(2, "", "m", 1), range(3, "m", "", 1));
        let tried = [done(&left), done(&right)];
        assert_eq!(still_open(&tried, &[left.clone(), right.clone()]), []);
        assert_eq!(still_open(&tried, &[range(2, "", "", 2)]), [], "they have become one since");
        assert_eq!(still_open(&tried, &[range(2, "", "f", 2), range(4, "f", "t", 2)]), []);
    }

    #[test]
    fn keys_that_came_to_a_range_behind_its_check_are_open() {
        let (left, right) = (range(2, "", "m", 1), range(3, "m", "", 1));
        let gone = Tried { listed: &right, compared: None, again: true };
        let whole = range(2, "", "", 2);
        assert_eq!(still_open(&[done(&left), gone], std::slice::from_ref(&whole)), [whole]);
    }

    #[test]
    fn children_of_a_split_before_the_check_are_open() {
        let (listed, compared) = (range(2, "", "", 1), range(2, "", "m", 2));
        let tried = [Tried { listed: &listed, compared: Some(&compared), again: false }];
        let child = range(3, "m", "", 1);
        assert_eq!(still_open(&tried, &[compared.clone(), child.clone()]), [child]);
    }

    #[test]
    fn a_failure_is_tried_again_only_where_something_changed() {
        let listed = range(2, "", "", 1);
        let failed = |again| [Tried { listed: &listed, compared: None, again }];
        assert_eq!(still_open(&failed(false), std::slice::from_ref(&listed)), []);
        assert_eq!(still_open(&failed(true), std::slice::from_ref(&listed)), std::slice::from_ref(&listed));
        let moved = range(2, "", "", 2);
        assert_eq!(still_open(&failed(false), std::slice::from_ref(&moved)), [moved]);
    }

    #[test]
    fn keyspaces_are_apart_and_a_dropped_one_is_nobodys() {
        let listed = range(2, "", "", 1);
        let other = v1::RangeDescriptor { keyspace_id: 2, ..range(3, "", "", 1) };
        assert_eq!(still_open(&[done(&listed)], std::slice::from_ref(&other)), [other]);
        assert_eq!(still_open(&[Tried { listed: &listed, compared: None, again: true }], &[]), []);
    }
}
