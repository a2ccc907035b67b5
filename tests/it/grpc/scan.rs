//! Scan: over range borders, both ways, cut by each of its limits.

use bytes::Bytes;
use flotilla_proto::v1;
use tonic::transport::Channel;
use v1::kv_client::KvClient;

use super::{connect, details, kv, put_op};
use crate::support::shared::shared;
use crate::support::{eventually_async, runtime};

/// This test's own letters: twelve, over several ranges.
const START: &str = "G";
const END: &str = "S";
const KEYS_PER_LETTER: u32 = 20;

fn all_keys() -> Vec<String> {
    let letters = (b'G'..=b'R').map(char::from);
    letters.flat_map(|letter| (0..KEYS_PER_LETTER).map(move |number| format!("{letter}/{number:02}"))).collect()
}

fn span() -> v1::ScanRequest {
    v1::ScanRequest { start: START.into(), end: END.into(), ..Default::default() }
}

/// All pages of a scan, by their tokens.
async fn pages(kv: &mut KvClient<Channel>, mut request: v1::ScanRequest) -> Vec<v1::ScanResponse> {
    let mut pages = Vec::new();
    loop {
        let page = kv.scan(request.clone()).await.expect("it scans").into_inner();
        // The token holds the span: nothing else is needed to go on.
        let keep = (request.limit, request.limit_bytes, request.keys_only, request.count_only);
        request = v1::ScanRequest {
            header: request.header,
            token: page.next_token.clone(),
            limit: keep.0,
            limit_bytes: keep.1,
            keys_only: keep.2,
            count_only: keep.3,
            ..Default::default()
        };
        pages.push(page);
        if request.token.is_empty() {
            return pages;
        }
        assert!(pages.len() <= 1_000, "the scan goes on and on");
    }
}

fn keys_of(pages: &[v1::ScanResponse]) -> Vec<String> {
    let records = pages.iter().flat_map(|page| &page.records);
    records.map(|record| String::from_utf8(record.key.to_vec()).expect("our keys are text")).collect()
}

#[test]
fn scans_go_over_borders_in_both_directions() {
    runtime().block_on(async {
        let mut kv = kv(shared(), 2).await;
        let keys = all_keys();
        let ops = keys.iter().map(|key| put_op(key.clone(), format!("value of {key}"))).collect();
        kv.batch(v1::BatchRequest { header: None, ops, atomic: false }).await.expect("it writes");

        whole_span(&mut kv, &keys).await;
        cut_by_count(&mut kv, &keys).await;
        cut_by_bytes(&mut kv, &keys).await;
        without_values(&mut kv, &keys).await;
        stale(&keys).await;
        borders_of_the_span(&mut kv, &keys).await;
        bad_tokens(&mut kv).await;
    });
}

async fn whole_span(kv: &mut KvClient<Channel>, keys: &[String]) {
    let forward = pages(kv, span()).await;
    assert_eq!(keys_of(&forward), keys);
    for record in forward.iter().flat_map(|page| &page.records) {
        assert_eq!(record.value, format!("value of {}", String::from_utf8_lossy(&record.key)));
        assert!(record.version > 0);
    }
    let mut reverse = keys_of(&pages(kv, v1::ScanRequest { reverse: true, ..span() }).await);
    reverse.reverse();
    assert_eq!(reverse, keys);
}

async fn cut_by_count(kv: &mut KvClient<Channel>, keys: &[String]) {
    for (limit, reverse) in [(7, false), (7, true), (50, false), (1, true)] {
        let found = pages(kv, v1::ScanRequest { limit, reverse, ..span() }).await;
        for page in &found {
            assert!(page.records.len() <= limit as usize);
            assert_eq!(page.count, page.records.len() as u64);
        }
        let mut found = keys_of(&found);
        if reverse {
            found.reverse();
        }
        assert_eq!(found, keys, "limit {limit}, reverse {reverse}");
    }
}

async fn cut_by_bytes(kv: &mut KvClient<Channel>, keys: &[String]) {
    // A record has 4 bytes of key and 13 of value.
    for limit_bytes in [1, 100, 400] {
        let found = pages(kv, v1::ScanRequest { limit_bytes, ..span() }).await;
        for page in &found {
            let bytes: usize = page.records.iter().map(|record| record.key.len() + record.value.len()).sum();
            assert!(bytes <= limit_bytes as usize || page.records.len() == 1, "{bytes} bytes, limit {limit_bytes}");
        }
        assert_eq!(keys_of(&found), keys, "limit_bytes {limit_bytes}");
    }
}

async fn without_values(kv: &mut KvClient<Channel>, keys: &[String]) {
    let found = pages(kv, v1::ScanRequest { keys_only: true, limit: 33, ..span() }).await;
    assert_eq!(keys_of(&found), keys);
    assert!(found.iter().flat_map(|page| &page.records).all(|record| record.value.is_empty() && record.version > 0));
    let counted = pages(kv, v1::ScanRequest { count_only: true, ..span() }).await;
    assert!(counted.iter().all(|page| page.records.is_empty()));
    assert_eq!(counted.iter().map(|page| page.count).sum::<u64>(), keys.len() as u64);
}

/// Any replica's view: it may be behind, and catches up.
async fn stale(keys: &[String]) {
    for node in shared().nodes() {
        let channel = connect(&node.client).await;
        let header = Some(v1::RequestHeader { consistency: v1::ReadConsistency::Stale.into(), ..Default::default() });
        eventually_async("the replicas to have applied everything", || async {
            let mut kv = KvClient::new(channel.clone());
            keys_of(&pages(&mut kv, v1::ScanRequest { header: header.clone(), ..span() }).await) == keys
        })
        .await;
    }
}

async fn borders_of_the_span(kv: &mut KvClient<Channel>, keys: &[String]) {
    // The start belongs to the span, the end does not.
    let (first, last) = (&keys[3], &keys[9]);
    let request = v1::ScanRequest { start: first.clone().into(), end: last.clone().into(), ..Default::default() };
    assert_eq!(keys_of(&pages(kv, request.clone()).await), keys[3..9]);
    let empty = v1::ScanRequest { start: last.clone().into(), end: last.clone().into(), ..Default::default() };
    let answer = kv.scan(empty).await;
    if let Ok(answer) = answer {
        assert_eq!(answer.into_inner().records.len(), 0);
    }
}

async fn bad_tokens(kv: &mut KvClient<Channel>) {
    let page = kv.scan(v1::ScanRequest { limit: 5, ..span() }).await.expect("it scans").into_inner();
    let mut flipped = page.next_token.to_vec();
    flipped[5] ^= 1;
    for token in [Bytes::from_static(b"x"), flipped.into()] {
        let status = kv.scan(v1::ScanRequest { token, ..Default::default() }).await.expect_err("not a token");
        assert_eq!(details(&status).kind(), v1::ErrorKind::InvalidArgument);
    }
}
