//! The consistency check: what a replica holds at one index, in checksums that replicas can compare.
//!
//! Every so many records make a span. As long as two replicas hold the same, their spans are the same; the first
//! that differs says where to look.

use std::ops::ControlFlow;

use bytes::Bytes;
use flotilla_proto::{KeyspaceId, v1};

use crate::keys;
use crate::storage::{self, Family, Read};

/// Records in a span.
const SPAN_RECORDS: u64 = 256;

/// The checksums of all that belongs to a range: its data in spans, and one more for each kind of index beside it.
pub fn of_range<R: Read + ?Sized>(
    storage: &R,
    descriptor: &v1::RangeDescriptor,
) -> storage::Result<Vec<v1::SpanChecksum>> {
    let mut spans = Vec::new();
    let kinds = keys::range_spans(KeyspaceId(descriptor.keyspace_id), &descriptor.start, &descriptor.end);
    for (at, (start, end)) in kinds.iter().enumerate() {
        let mut open = Open::default();
        let most = if at == 0 { SPAN_RECORDS } else { u64::MAX };
        storage.scan_through(Family::State, start, end, &mut |key, value| {
            open.add(key, value);
            if open.records == most {
                spans.push(std::mem::take(&mut open).close(keys::user_key(key).unwrap_or_default()));
            }
            ControlFlow::Continue(())
        })?;
        spans.push(open.close(descriptor.end.clone()));
    }
    Ok(spans)
}

#[derive(Default)]
struct Open {
    hasher: crc32fast::Hasher,
    records: u64,
}

impl Open {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        for part in [key, value] {
            self.hasher.update(&(part.len() as u64).to_be_bytes());
            self.hasher.update(part);
        }
        self.records += 1;
    }

    fn close(self, last_key: Bytes) -> v1::SpanChecksum {
        v1::SpanChecksum { last_key, records: self.records, checksum: self.hasher.finalize() }
    }
}

/// Records and checksum of all spans together.
pub fn total(spans: &[v1::SpanChecksum]) -> (u64, u32) {
    let mut hasher = crc32fast::Hasher::new();
    for span in spans {
        hasher.update(&span.checksum.to_be_bytes());
        hasher.update(&span.records.to_be_bytes());
    }
    (spans.iter().map(|span| span.records).sum(), hasher.finalize())
}

/// The first span in which replicas differ, if they do, and the nodes that hold something else there than most.
pub fn first_difference(
    descriptor: &v1::RangeDescriptor,
    replicas: &[(u64, Vec<v1::SpanChecksum>)],
) -> Option<v1::DifferingSpan> {
    let (_, first) = replicas.first()?;
    let longest = replicas.iter().map(|(_, spans)| spans.len()).max()?;
    let at = (0..longest).find(|at| replicas.iter().any(|(_, spans)| spans.get(*at) != first.get(*at)))?;
    let start = at.checked_sub(1).and_then(|before| first.get(before)).map_or(&descriptor.start, |span| &span.last_key);
    let ends = replicas.iter().filter_map(|(_, spans)| spans.get(at)).map(|span| &span.last_key);
    // An empty key is the end of the keyspace.
    let end = ends.max_by_key(|key| (key.is_empty(), *key)).unwrap_or(&descriptor.end);
    let support = |spans: &[v1::SpanChecksum]| replicas.iter().filter(|(_, of)| of.get(at) == spans.get(at)).count();
    let most = replicas.iter().map(|(_, spans)| support(spans)).max()?;
    let alone = replicas.iter().filter(|(_, spans)| support(spans) < most || most * 2 <= replicas.len());
    Some(v1::DifferingSpan { start: start.clone(), end: end.clone(), node_ids: alone.map(|(node, _)| *node).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::rows::Rows;

    fn rows(change: impl Fn(usize, &mut Vec<u8>)) -> Rows {
        let row = |at: usize| {
            let mut value = vec![7; 10];
            change(at, &mut value);
            (keys::data(KeyspaceId(1), format!("key{at:05}").as_bytes()), value)
        };
        Rows((0..1_000).map(row).filter(|(_, value)| !value.is_empty()).collect())
    }

    #[test]
    fn the_first_difference_is_named_with_who_differs() {
        let descriptor = v1::RangeDescriptor { range_id: 2, keyspace_id: 1, ..Default::default() };
        let spans = |rows: &Rows| of_range(rows, &descriptor).expect("readable");
        let whole = spans(&rows(|_, _| {}));
        let replicas = |third: Vec<v1::SpanChecksum>| [(1, whole.clone()), (2, whole.clone()), (3, third)];
        assert_eq!(first_difference(&descriptor, &replicas(whole.clone())), None);
        assert_eq!(total(&whole).0, 1_000);
        let flipped = spans(&rows(|at, value| {
            if at == 300 {
                value[3] ^= 1
            }
        }));
        let found = first_difference(&descriptor, &replicas(flipped)).expect("it differs");
        assert!(found.start < "key00300" && found.end >= "key00300" && found.node_ids == [3], "{found:?}");
        let missing = spans(&rows(|at, value| {
            if at == 900 {
                value.clear()
            }
        }));
        let found = first_difference(&descriptor, &replicas(missing)).expect("it differs");
        assert!(found.start < "key00900" && found.end.is_empty() && found.node_ids == [3], "{found:?}");
    }
}
