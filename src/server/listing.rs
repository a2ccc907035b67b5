//! Lists of ranges in parts: all of a large cluster's do not fit into one message.
//!
//! Each part goes on behind the last range of the one before, in the order of keyspaces and keys. What changes in
//! between shows in one part or the other; whoever puts them together keeps the newest of each span, as with any two lists.

use flotilla_proto::v1;
use prost::Message;

/// About how many bytes of ranges go into one answer: half of what a message may have.
const BYTES_MAX: usize = 2 << 20;

fn place(route: &v1::RangeStatus) -> Option<(u64, &[u8])> {
    route.descriptor.as_ref().map(|range| (range.keyspace_id, &range.start[..]))
}

/// Leaves of ranges in key order those behind `after`, and of these as many as fit.
pub(super) fn cut(list: &mut v1::ListRangesResponse, after: Option<&v1::RangePlace>) {
    if let Some(after) = after {
        let after = Some((after.keyspace_id, &after.start[..]));
        let first = list.ranges.partition_point(|route| place(route) <= after);
        list.ranges.drain(..first);
    }
    let mut bytes = 0;
    let fits = |route: &v1::RangeStatus| {
        bytes += route.encoded_len() + 4;
        bytes <= BYTES_MAX
    };
    let count = list.ranges.iter().map(fits).take_while(|fits| *fits).count().max(1);
    list.more = count < list.ranges.len();
    list.ranges.truncate(count);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(count: u64) -> v1::ListRangesResponse {
        let route = |at: u64| {
            let start = if at.is_multiple_of(1_000) { Vec::new() } else { vec![7; (at % 1_000) as usize] };
            let (keyspace_id, start) = (at / 1_000, start.into());
            let descriptor = v1::RangeDescriptor { range_id: at + 1, keyspace_id, start, ..Default::default() };
            v1::RangeStatus { descriptor: Some(descriptor), ..Default::default() }
        };
        v1::ListRangesResponse { ranges: (0..count).map(route).collect(), ..Default::default() }
    }

    #[test]
    fn parts_hold_each_range_once_and_end() {
        let all = routes(10_000);
        let mut seen = Vec::new();
        let mut after = None;
        loop {
            let mut part = all.clone();
            cut(&mut part, after.as_ref());
            assert!(part.encoded_len() <= BYTES_MAX + 64);
            let last = part.ranges.last().and_then(place).expect("no part is empty");
            after = Some(v1::RangePlace { keyspace_id: last.0, start: last.1.to_vec().into() });
            seen.extend(part.ranges);
            if !part.more {
                break;
            }
        }
        assert_eq!(seen, all.ranges);
    }

    #[test]
    fn a_list_that_fits_is_whole() {
        let mut list = routes(10);
        cut(&mut list, None);
        assert!(list == routes(10) && !list.more);
        let mut none = routes(0);
        cut(&mut none, None);
        assert!(!none.more);
    }
}
