//! Scans over borders, both ways: the same records as from one range, whatever the page's limits.

use flotilla_proto::{KeyspaceId, NodeId};

use super::*;

/// Ranges at these borders, in one cache.
fn cache(borders: &[&'static str]) -> RouteCache {
    let mut cache = RouteCache::new(KeyspaceId(1), None);
    for (at, start) in borders.iter().enumerate() {
        let replicas = vec![v1::ReplicaDescriptor { replica_id: 1, node_id: 1, role: 0 }];
        let epoch = Some(v1::Epoch { conf_ver: 1, version: borders.len() as u64 });
        let descriptor = v1::RangeDescriptor {
            range_id: at as u64 + 2,
            keyspace_id: 1,
            start: (*start).into(),
            end: borders.get(at + 1).map_or("", |end| *end).into(),
            epoch,
            replicas,
            next_replica_id: 2,
        };
        assert!(cache.merge(&descriptor));
        cache.set_leader(flotilla_proto::RangeId(at as u64 + 2), NodeId(1), 1);
    }
    cache
}

const KEYS: [&str; 9] = ["a", "b", "bb", "c", "d", "m", "ma", "x", "z"];

/// What a leader answers.
fn leader(request: &v1::ScanRequest) -> v1::ScanResponse {
    let inside = |key: &&&str| {
        key.as_bytes() >= &request.start[..] && (request.end.is_empty() || key.as_bytes() < &request.end[..])
    };
    let mut keys: Vec<&str> = KEYS.iter().filter(inside).copied().collect();
    if request.reverse {
        keys.reverse();
    }
    let limit = if request.limit == 0 { usize::MAX } else { request.limit as usize };
    let mut answer = v1::ScanResponse::default();
    let mut bytes = 0;
    for (at, key) in keys.iter().enumerate() {
        let size = key.len() + 1;
        if at == limit || (at > 0 && !request.count_only && bytes + size > request.limit_bytes as usize) {
            answer.next_token = if request.reverse { keys[at - 1].into() } else { (*key).into() };
            break;
        }
        bytes += size;
        answer.count += 1;
        if !request.count_only {
            answer.records.push(v1::Record { key: (*key).into(), value: "v".into(), version: 1, ttl_remaining_ms: 0 });
        }
    }
    answer
}

/// One page, and the requests that it took.
fn page(cache: &RouteCache, request: &v1::ScanRequest) -> (v1::ScanResponse, Vec<String>) {
    let mut scan = Scan::new(request);
    let mut log = vec![];
    while !scan.is_done() {
        let route = scan.route(cache).expect("the ranges tile the keyspace");
        let request = scan.build(route, None);
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        log.push(format!("r{} [{}, {})", route.descriptor.range_id, text(&request.start), text(&request.end)));
        scan.absorb(leader(&request)).expect("a good answer");
    }
    (scan.finish(None), log)
}

fn request(start: &'static str, end: &'static str, reverse: bool) -> v1::ScanRequest {
    v1::ScanRequest { start: start.into(), end: end.into(), reverse, ..Default::default() }
}

fn keys(answer: &v1::ScanResponse) -> Vec<String> {
    answer.records.iter().map(|record| String::from_utf8_lossy(&record.key).into_owned()).collect()
}

#[test]
fn a_page_goes_over_borders_forward() {
    let (answer, log) = page(&cache(&["", "c", "m"]), &request("b", "n", false));
    assert_eq!(log, ["r2 [b, c)", "r3 [c, m)", "r4 [m, n)"]);
    assert_eq!(keys(&answer), ["b", "bb", "c", "d", "m", "ma"]);
    assert_eq!((answer.count, answer.next_token.len()), (6, 0));
}

#[test]
fn a_page_goes_over_borders_backwards() {
    let (answer, log) = page(&cache(&["", "c", "m"]), &request("b", "", true));
    assert_eq!(log, ["r4 [m, )", "r3 [c, m)", "r2 [b, c)"]);
    assert_eq!(keys(&answer), ["z", "x", "ma", "m", "d", "c", "bb", "b"]);
    assert!(answer.next_token.is_empty());
}

#[test]
fn every_limit_and_layout_gives_the_same_records() {
    let layouts: [&[&str]; 5] = [&[""], &["", "c"], &["", "b", "bb", "c", "m"], &["", "aa", "n", "y"], &["", "z"]];
    let spans = [("", ""), ("b", "m"), ("bb", "ma"), ("a\0", ""), ("", "a"), ("m", "m")];
    for (start, end) in spans {
        for reverse in [false, true] {
            let expected = keys(&leader(&v1::ScanRequest { limit_bytes: u32::MAX, ..request(start, end, reverse) }));
            let expected = if start == end && !start.is_empty() { vec![] } else { expected };
            for (limit, limit_bytes) in [(0, 0), (1, 0), (2, 0), (3, 0), (0, 1), (0, 4), (4, 7)] {
                for count_only in [false, true] {
                    let first = v1::ScanRequest { limit, limit_bytes, count_only, ..request(start, end, reverse) };
                    check_pages(&layouts, first, &expected);
                }
            }
        }
    }
}

/// Pages on to the end, the layout changing from page to page: the token outlives splits.
fn check_pages(layouts: &[&[&'static str]], first: v1::ScanRequest, expected: &[String]) {
    let mut next = first.clone();
    let (mut all, mut count) = (vec![], 0);
    for layout in layouts.iter().cycle() {
        let (answer, _) = page(&cache(layout), &next);
        assert!(first.limit == 0 || answer.count <= u64::from(first.limit));
        all.extend(keys(&answer));
        count += answer.count;
        if answer.next_token.is_empty() {
            break;
        }
        next = v1::ScanRequest { token: answer.next_token, start: "zzz".into(), end: "a".into(), ..next };
    }
    assert_eq!(count, expected.len() as u64, "{first:?}");
    if !first.count_only {
        assert_eq!(all, expected, "{first:?}");
    }
}

#[test]
fn a_range_that_answers_out_of_line_is_found_out() {
    let record =
        |key: &'static str| v1::Record { key: key.into(), value: Bytes::new(), version: 1, ttl_remaining_ms: 0 };
    let answer = |keys: &[&'static str], next: &'static str| v1::ScanResponse {
        count: keys.len() as u64,
        records: keys.iter().map(|key| record(key)).collect(),
        next_token: next.into(),
        ..Default::default()
    };
    let cache = cache(&["", "c", "m"]);
    let cases = [
        (false, answer(&["cc", "c"], "")),
        (false, answer(&["b"], "")),
        (false, answer(&["m"], "")),
        (false, answer(&["c", "cc", "d", "e"], "")),
        (false, answer(&["c"], "c")),
        (false, answer(&["c"], "mm")),
        (true, answer(&["c", "cc"], "")),
        (true, answer(&["d"], "m")),
        (true, answer(&["d"], "b")),
    ];
    for (reverse, bad) in cases {
        let mut scan = Scan::new(&v1::ScanRequest { limit: 3, ..request("c", "m", reverse) });
        let route = scan.route(&cache).expect("known");
        scan.build(route, None);
        assert!(matches!(scan.absorb(bad.clone()), Err(Error::Corruption { .. })), "{reverse} {bad:?}");
    }
}

#[test]
fn what_exceeds_the_pages_bytes_is_left_for_the_next_page() {
    let cache = cache(&["", "c"]);
    let big =
        |key: &'static str| v1::Record { key: key.into(), value: vec![0; 60].into(), version: 1, ttl_remaining_ms: 0 };
    for (reverse, keys) in [(false, ["a", "c"]), (true, ["c", "a"])] {
        let mut scan = Scan::new(&v1::ScanRequest { limit_bytes: 100, ..request("", "", reverse) });
        for key in keys {
            let route = scan.route(&cache).expect("known");
            scan.build(route, None);
            let one = v1::ScanResponse { records: vec![big(key)], count: 1, ..Default::default() };
            scan.absorb(one).expect("a good answer");
        }
        let answer = scan.finish(None);
        assert_eq!(answer.records.len(), 1);
        let next = token::decode(&answer.next_token).expect("a token");
        let second: &[u8] = if reverse { b"a\0" } else { b"c" };
        assert_eq!(if reverse { next.end } else { next.start }, second);
    }
}
