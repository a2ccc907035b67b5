//! Deletes of a span over a store that refuses, loses answers and carries deletes out late, while
//! others write.

use super::*;
use crate::core::mix;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 += 1;
        mix(self.0) % bound
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// Keys and versions.
#[derive(Default)]
struct Store {
    data: BTreeMap<Bytes, u64>,
    version: u64,
    /// Deletes whose answer was lost, and that may yet be applied.
    late: Vec<(Bytes, u64)>,
    faults: bool,
}

impl Store {
    fn put(&mut self, key: Bytes) {
        self.version += 1;
        self.data.insert(key, self.version);
    }

    fn scan(&self, scan: &v1::ScanRequest, random: &mut Random) -> v1::ScanResponse {
        assert!(scan.keys_only && !scan.reverse && (1..=1_024).contains(&scan.limit));
        let inside = |key: &&Bytes| **key >= scan.start && (scan.end.is_empty() || **key < scan.end);
        let limit = if random.percent(30) { 1 + random.below(5) } else { 20 }.min(u64::from(scan.limit));
        let mut keys: Vec<&Bytes> = self.data.keys().filter(inside).collect();
        let rest = keys.get(usize::try_from(limit).expect("small")).map(|key| (*key).clone());
        keys.truncate(usize::try_from(limit).expect("small"));
        let record = |key: &Bytes| v1::Record { key: key.clone(), version: self.data[key], ..Default::default() };
        v1::ScanResponse {
            records: keys.into_iter().map(record).collect(),
            next_token: rest
                .map_or_else(Bytes::new, |start| token::encode(&Span { start, end: scan.end.clone(), reverse: false })),
            ..Default::default()
        }
    }

    /// Deletes a key if it has this version; gives the version that it has.
    fn delete(&mut self, key: &Bytes, version: u64) -> (bool, u64) {
        let found = self.data.get(key).copied().unwrap_or(0);
        if found == version {
            self.data.remove(key);
        }
        (found == version, found)
    }

    fn write(&mut self, op: &v1::WriteOp, random: &mut Random) -> v1::BatchResult {
        let Some(Op::CompareAndSwap(swap)) = &op.op else { panic!("{op:?}") };
        let (Some(Expect::Version(version)), None) = (&swap.expect, &swap.new_value) else { panic!("{swap:?}") };
        let fate = if self.faults { random.below(100) } else { 100 };
        let lost = || Error::Ambiguous { reason: "the stream broke".into() };
        let outcome = match fate {
            0..8 => {
                self.delete(&swap.key, *version);
                Outcome::Error((&lost()).into())
            }
            8..12 => {
                self.late.push((swap.key.clone(), *version));
                Outcome::Error((&lost()).into())
            }
            12..20 => Outcome::Error((&Error::Unavailable { reason: "stopping".into() }).into()),
            _ => {
                let (applied, version) = self.delete(&swap.key, *version);
                Outcome::Result(v1::WriteResult { applied, version, ..Default::default() })
            }
        };
        v1::BatchResult { outcome: Some(outcome) }
    }

    fn serve(&mut self, body: &Body, random: &mut Random) -> Result<Answer> {
        if self.faults && random.percent(10) {
            return Err(Error::Timeout { stage: "in the queue".into() });
        }
        match body {
            Body::Scan(scan) => Ok(Answer::Scan(self.scan(scan, random))),
            Body::Write(batch) => {
                let results = batch.ops.iter().map(|op| self.write(op, random)).collect();
                Ok(Answer::Write(v1::BatchResponse { header: None, results }))
            }
            other => panic!("{other:?}"),
        }
    }
}

fn key(number: u64) -> Bytes {
    format!("k{number:03}").into()
}

fn request(limit: u64, token: Bytes) -> v1::DeleteRangeRequest {
    let header = Some(v1::RequestHeader { timeout_ms: 1_000, keyspace: "jobs".into(), ..Default::default() });
    v1::DeleteRangeRequest { header, start: key(50), end: key(250), limit, token }
}

/// Carries one request out; `meanwhile` is what others do.
fn run(
    store: &mut Store,
    request: v1::DeleteRangeRequest,
    random: &mut Random,
    mut meanwhile: impl FnMut(&mut Store, &mut Random),
) -> Result<v1::DeleteRangeResponse> {
    let mut now = Time::from_secs(7);
    let mut work = DeleteRange::new(request, now);
    loop {
        match work.next(now) {
            DeleteStep::Done(result) => {
                assert!(now <= Time::from_millis(8_100), "it ends late");
                return result;
            }
            DeleteStep::WaitUntil(time) => {
                assert!(time > now);
                now = time;
            }
            DeleteStep::Call(body) => {
                assert_eq!(check::header_of(&body).expect("a header").keyspace, "jobs");
                assert_eq!(check::check(&body), Ok(()));
                let answer = store.serve(&body, random);
                meanwhile(store, random);
                now += Duration::from_millis(random.below(60));
                work.on_answer(now, random.below(u64::MAX), answer);
            }
        }
    }
}

#[test]
fn what_was_there_throughout_goes_and_nothing_that_comes_later() {
    let mut lost = 0;
    for seed in 0..300 {
        let mut random = Random(seed * 1_000_003);
        let mut store = Store { faults: true, ..Store::default() };
        (0..300).for_each(|number| store.put(key(number)));
        let (mut count, mut token) = (0, Bytes::new());
        for part in 0.. {
            assert!(part < 300, "seed {seed}: it does not come to an end");
            let limit = [0, 0, 7, 60][usize::try_from(random.below(4)).expect("small")];
            let overwrite = |store: &mut Store, random: &mut Random| {
                let at = key(random.below(300));
                if store.data.contains_key(&at) {
                    store.put(at);
                }
            };
            match run(&mut store, request(limit, token.clone()), &mut random, overwrite) {
                Ok(answer) => {
                    assert!(limit == 0 || answer.count <= limit, "seed {seed}");
                    count += answer.count;
                    token = answer.next_token;
                    if token.is_empty() {
                        break;
                    }
                }
                Err(error) => assert!(error.action() != Action::Fail, "seed {seed}: {error}"),
            }
        }
        let left: Vec<&Bytes> = store.data.keys().collect();
        let outside: Vec<Bytes> = (0..50).chain(250..300).map(key).collect();
        assert_eq!(left, outside.iter().collect::<Vec<_>>(), "seed {seed}");
        assert!(count <= 200, "seed {seed}: {count}");
        lost += 200 - count;

        (50..250).for_each(|number| store.put(key(number)));
        for (key, version) in std::mem::take(&mut store.late) {
            store.delete(&key, version);
        }
        assert_eq!(store.data.len(), 300, "seed {seed}: a delete that came late took a newer value");
    }
    assert!(lost > 300, "answers were hardly lost");
}

#[test]
fn without_faults_the_count_is_exact_and_the_limit_kept() {
    let mut random = Random(1);
    let mut store = Store::default();
    (0..300).for_each(|number| store.put(key(number)));
    let mut delete = |limit, token| run(&mut store, request(limit, token), &mut random, |_, _| {}).expect("deleted");
    let first = delete(30, Bytes::new());
    assert_eq!(first.count, 30);
    assert_eq!(token::decode(&first.next_token).map(|span| span.start), Ok(key(80)));
    let mut token = first.next_token;
    let mut count = first.count;
    while !token.is_empty() {
        let part = delete(0, token);
        (count, token) = (count + part.count, part.next_token);
    }
    assert_eq!(count, 200);
}

#[test]
fn where_nothing_could_be_done_the_error_says_so() {
    let failing = |error: &Error| {
        let mut now = Time::ZERO;
        let mut work = DeleteRange::new(request(0, Bytes::new()), now);
        loop {
            match work.next(now) {
                DeleteStep::Done(result) => return result,
                DeleteStep::WaitUntil(time) => now = time,
                DeleteStep::Call(_) => work.on_answer(now, 0, Err(error.clone())),
            }
        }
    };
    let down = failing(&Error::Unavailable { reason: "all is dark".into() });
    assert!(matches!(&down, Err(Error::Timeout { stage }) if stage.contains("all is dark")), "{down:?}");
    let gone = Error::KeyspaceNotFound { name: "jobs".into() };
    assert_eq!(failing(&gone), Err(gone));
}

#[test]
fn a_bad_request_is_refused_before_anything_is_read() {
    let reverse = token::encode(&Span { start: key(1), end: key(2), reverse: true });
    let bad = [
        v1::DeleteRangeRequest { start: key(2), end: key(1), ..Default::default() },
        v1::DeleteRangeRequest { start: vec![0; 9_000].into(), ..Default::default() },
        request(0, "junk".into()),
        request(0, reverse),
    ];
    for bad in bad {
        let refused = DeleteRange::new(bad, Time::ZERO).next(Time::ZERO);
        assert!(matches!(refused, DeleteStep::Done(Err(Error::InvalidArgument { .. }))), "{refused:?}");
    }
    let empty = v1::DeleteRangeRequest { start: key(1), end: key(1), ..Default::default() };
    let done = DeleteRange::new(empty, Time::ZERO).next(Time::ZERO);
    assert!(matches!(done, DeleteStep::Done(Ok(answer)) if answer.next_token.is_empty()));
}
