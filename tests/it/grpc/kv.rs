//! Each unary method of Kv but Scan.

use bytes::Bytes;
use flotilla_proto::v1;
use v1::compare_and_swap::Expect;

use super::{admin, away, get_request, header, put_op, put_request, swap_op};
use crate::support::runtime;
use crate::support::shared::shared;

#[test]
fn an_answer_says_who_gave_it() {
    runtime().block_on(async {
        let (mut kv, place) = away("0header/a").await;
        let put = kv.put(v1::PutRequest { header: header(77), ..put_request("0header/a", "1") }).await;
        let written = put.expect("it writes").into_inner().header.expect("every answer has one");
        let get = kv.get(v1::GetRequest { header: header(78), ..get_request("0header/a") }).await;
        let read = get.expect("it reads").into_inner().header.expect("every answer has one");
        let status = admin(shared(), place.other).await.node_status(v1::NodeStatusRequest {}).await;
        let cluster_id = status.expect("it runs").into_inner().cluster_id;
        for (header, trace_id) in [(written, 77), (read, 78)] {
            assert_eq!(header.cluster_id, cluster_id);
            assert_eq!(header.node_id, place.leader, "the leader's answer, not that of the node asked");
            assert_eq!(header.range_id, place.descriptor.range_id);
            assert_eq!(header.trace_id, trace_id);
            assert!(header.term > 5, "the layout's term is 5: {header:?}");
        }
    });
}

#[test]
fn put_get_delete() {
    runtime().block_on(async {
        let (mut kv, _) = away("0put/a").await;
        let absent = kv.get(get_request("0put/a")).await.expect("it reads").into_inner();
        assert_eq!(absent.record, None);
        let first = kv.put(put_request("0put/a", "1")).await.expect("it writes").into_inner().result.expect("a result");
        assert!(first.applied && first.version > 0);
        let second =
            kv.put(put_request("0put/a", "2")).await.expect("it writes").into_inner().result.expect("a result");
        assert!(second.version > first.version);
        let record = kv.get(get_request("0put/a")).await.expect("it reads").into_inner().record.expect("it is there");
        assert_eq!((&record.value[..], record.version), (&b"2"[..], second.version));

        let unless_there = |key: &'static str| v1::PutRequest { if_absent: true, ..put_request(key, "3") };
        let refused = kv.put(unless_there("0put/a")).await.expect("it answers").into_inner().result.expect("a result");
        assert!(!refused.applied && refused.existed);
        assert_eq!(refused.version, second.version, "the version that is there");
        let made = kv.put(unless_there("0put/b")).await.expect("it answers").into_inner().result.expect("a result");
        assert!(made.applied && !made.existed);

        let delete = |key: &'static str| v1::DeleteRequest { header: None, key: key.into() };
        let gone = kv.delete(delete("0put/a")).await.expect("it deletes").into_inner().result.expect("a result");
        assert!(gone.applied && gone.existed && gone.version > second.version, "{gone:?}");
        let again = kv.delete(delete("0put/a")).await.expect("it answers").into_inner().result.expect("a result");
        assert!(!again.existed, "{again:?}");
        let anew = kv.put(put_request("0put/a", "4")).await.expect("it writes").into_inner().result.expect("a result");
        assert!(anew.version > gone.version, "versions do not repeat, deletion included");
    });
}

#[test]
fn keys_and_values_of_the_largest_size_and_of_any_bytes() {
    runtime().block_on(async {
        let (mut kv, _) = away("0size/").await;
        let mut key = b"0size/\x00\xff".to_vec();
        key.resize(8 << 10, 0xff);
        let value: Bytes = (0..1 << 20).map(|at| (at * 7 % 251) as u8).collect::<Vec<u8>>().into();
        kv.put(put_request(key.clone(), value.clone())).await.expect("as large as may be");
        let record = kv.get(get_request(key)).await.expect("it reads").into_inner().record.expect("it is there");
        assert!(record.value == value, "{} bytes came back", record.value.len());
        kv.put(put_request("0size/empty", "")).await.expect("an empty value is one");
        let record = kv.get(get_request("0size/empty")).await.expect("it reads").into_inner().record;
        assert_eq!(record.expect("it is there").value.len(), 0);
    });
}

#[test]
fn multi_get_answers_in_the_order_asked() {
    runtime().block_on(async {
        let (mut kv, _) = away("0multi/a").await;
        let keys = ["z/0multi", "0multi/a", "m/0multi", "0multi/c"];
        for key in keys {
            kv.put(put_request(key, format!("value of {key}"))).await.expect("it writes");
        }
        let asked = ["0multi/c", "m/0multi", "0multi/none", "z/0multi", "0multi/c", "0multi/a"];
        let request = v1::MultiGetRequest { header: header(5), keys: asked.map(Bytes::from).to_vec() };
        let answer = kv.multi_get(request).await.expect("it reads").into_inner();
        assert_eq!(answer.header.expect("it has one").trace_id, 5);
        let values: Vec<Option<Bytes>> =
            answer.results.into_iter().map(|result| result.record.map(|record| record.value)).collect();
        let expected: Vec<Option<Bytes>> =
            asked.iter().map(|key| (*key != "0multi/none").then(|| format!("value of {key}").into())).collect();
        assert_eq!(values, expected);
    });
}

#[test]
fn compare_and_swap_by_value_by_version_and_on_absence() {
    runtime().block_on(async {
        let (mut kv, _) = away("0cas/a").await;
        let mut swap = async |expect, new_value| {
            let op = Some(swap_op("0cas/a", expect, new_value));
            let answer = kv.compare_and_swap(v1::CompareAndSwapRequest { header: None, op }).await;
            answer.expect("it answers").into_inner().result.expect("a result")
        };
        let made = swap(Expect::Absent(true), Some("1")).await;
        assert!(made.applied && !made.existed);
        let refused = swap(Expect::Absent(true), Some("x")).await;
        let current = refused.current.expect("what is there");
        assert!(!refused.applied && refused.existed);
        assert_eq!((&current.value[..], current.version, refused.version), (&b"1"[..], made.version, made.version));
        let by_value = swap(Expect::Value("1".into()), Some("2")).await;
        assert!(by_value.applied && by_value.version > made.version);
        assert!(!swap(Expect::Value("1".into()), Some("x")).await.applied);
        let by_version = swap(Expect::Version(by_value.version), Some("3")).await;
        assert!(by_version.applied);
        let late = swap(Expect::Version(by_value.version), Some("x")).await;
        assert!(!late.applied);
        assert_eq!(&late.current.expect("what is there").value[..], b"3");
        let deleted = swap(Expect::Version(by_version.version), None).await;
        assert!(deleted.applied && deleted.existed);
        let nothing = swap(Expect::Value("3".into()), Some("x")).await;
        assert!(!nothing.applied && !nothing.existed && nothing.current.is_none());
        assert_eq!(nothing.version, 0, "it is not there");
    });
}

#[test]
fn a_batch_that_is_not_atomic_goes_over_ranges() {
    runtime().block_on(async {
        let (mut kv, _) = away("0batch/a").await;
        let missing = swap_op("b/0batch", Expect::Value("not there".into()), Some("x"));
        let ops = vec![
            put_op("z/0batch", "1"),
            v1::WriteOp { op: Some(v1::write_op::Op::CompareAndSwap(missing)) },
            put_op("0batch/a", "2"),
            v1::WriteOp { op: Some(v1::write_op::Op::Delete(v1::Delete { key: "m/0batch".into() })) },
        ];
        let answer = kv.batch(v1::BatchRequest { header: None, ops, atomic: false }).await.expect("it answers");
        let applied: Vec<bool> =
            answer.into_inner().results.into_iter().map(|result| result_of(result).applied).collect();
        assert_eq!(applied[..3], [true, false, true], "each stands for itself");
        assert_eq!(applied.len(), 4);
        for (key, value) in [("z/0batch", "1"), ("0batch/a", "2")] {
            let record = kv.get(get_request(key)).await.expect("it reads").into_inner().record.expect("it is there");
            assert_eq!(record.value, value);
        }
    });
}

#[test]
fn an_atomic_batch_is_all_or_nothing() {
    runtime().block_on(async {
        let (mut kv, _) = away("0atomic/a").await;
        let mut batch = async |condition: &'static str| {
            let swap = swap_op("0atomic/b", Expect::Value(condition.into()), Some("2"));
            let ops =
                vec![put_op("0atomic/a", condition), v1::WriteOp { op: Some(v1::write_op::Op::CompareAndSwap(swap)) }];
            let answer = kv.batch(v1::BatchRequest { header: None, ops, atomic: true }).await.expect("it answers");
            let results = answer.into_inner().results.into_iter().map(|result| result_of(result).applied);
            let a = kv.get(get_request("0atomic/a")).await.expect("it reads").into_inner().record;
            let b = kv.get(get_request("0atomic/b")).await.expect("it reads").into_inner().record;
            (results.collect::<Vec<_>>(), a.map(|record| record.value), b.map(|record| record.value))
        };
        assert_eq!(batch("1").await, (vec![false, false], None, None));
        let (mut kv, _) = away("0atomic/a").await;
        kv.put(put_request("0atomic/b", "1")).await.expect("it writes");
        assert_eq!(batch("1").await, (vec![true, true], Some("1".into()), Some("2".into())));
    });
}

fn result_of(result: v1::BatchResult) -> v1::WriteResult {
    match result.outcome {
        Some(v1::batch_result::Outcome::Result(result)) => result,
        other => panic!("{other:?}"),
    }
}
