//! Golden scripts: what a call wants done, step by step.

use bytes::Bytes;
use flotilla_proto::KeyspaceId;
use v1::batch_result::Outcome;
use v1::response::Body as Answer;
use v1::write_op::Op;

use super::*;

const SECOND: Time = Duration::from_secs(1);
const DEADLINE: Time = Duration::from_secs(5);

fn descriptor(id: u64, start: &'static str, end: &'static str, version: u64) -> v1::RangeDescriptor {
    let replica = |node| v1::ReplicaDescriptor { replica_id: node, node_id: node, role: 0 };
    v1::RangeDescriptor {
        range_id: id,
        keyspace_id: 1,
        start: start.into(),
        end: end.into(),
        epoch: Some(v1::Epoch { conf_ver: 1, version }),
        replicas: (1..=3).map(replica).collect(),
        next_replica_id: 4,
    }
}

/// r2 [, g) led by n1, r3 [g, p) led by n2, r4 [p, ) led by n3.
fn three_ranges() -> RouteCache {
    let mut cache = RouteCache::new(KeyspaceId(1), Some(NodeId(2)));
    for (id, start, end) in [(2, "", "g"), (3, "g", "p"), (4, "p", "")] {
        assert!(cache.merge(&descriptor(id, start, end, 1)));
        cache.set_leader(RangeId(id), NodeId(id - 1), 1);
    }
    cache
}

fn put(key: &'static str) -> v1::WriteOp {
    v1::WriteOp { op: Some(Op::Put(v1::Put { key: key.into(), value: "v".into(), if_absent: false, ttl_ms: 0 })) }
}

fn write(keys: &[&'static str], atomic: bool) -> Body {
    Body::Write(v1::BatchRequest { header: None, ops: keys.iter().map(|key| put(key)).collect(), atomic })
}

fn multi_get(keys: &[&'static str]) -> Body {
    Body::MultiGet(v1::MultiGetRequest { header: None, keys: keys.iter().map(|key| (*key).into()).collect() })
}

fn get(key: &'static str, consistency: v1::ReadConsistency) -> Body {
    let header = v1::RequestHeader { consistency: consistency.into(), trace_id: 77, ..Default::default() };
    Body::Get(v1::GetRequest { header: Some(header), key: key.into() })
}

fn keys_of(body: &Body) -> Vec<Bytes> {
    match body {
        Body::Get(get) => vec![get.key.clone()],
        Body::MultiGet(get) => get.keys.clone(),
        Body::Write(batch) => batch.ops.iter().filter_map(check::key_of).cloned().collect(),
        Body::Scan(_) => vec![],
    }
}

/// A call with its surroundings.
struct Script {
    call: Call,
    cache: RouteCache,
    now: Time,
}

impl Script {
    fn new(cache: RouteCache, body: Body) -> Self {
        Self { call: Call::new(body, Time::ZERO, DEADLINE), cache, now: Time::ZERO }
    }

    fn step(&mut self) -> Step {
        self.call.next(self.now, &self.cache, 0)
    }

    /// All steps until it waits or is done, in words.
    fn steps(&mut self) -> Vec<String> {
        let mut log = vec![];
        loop {
            match self.step() {
                Step::Send { node, request } => {
                    let body = request.body.expect("a body");
                    let range = check::header_of(&body).expect("a header").range_id;
                    let keys: Vec<String> =
                        keys_of(&body).iter().map(|key| String::from_utf8_lossy(key).into_owned()).collect();
                    log.push(format!("#{} {node} r{range} {}", request.id, keys.join(" ")));
                }
                Step::RefreshRoutes(_) => log.push("refresh".into()),
                Step::WaitUntil(until) => {
                    log.push(format!("wait {} ms", until.saturating_sub(self.now).as_millis()));
                    return log;
                }
                Step::Done(Err(error)) => {
                    log.push(format!("failed: {error}"));
                    return log;
                }
                Step::Done(Ok(answer)) => {
                    log.push(format!("done: {}", results(&answer).join(" ")));
                    return log;
                }
            }
        }
    }

    fn outcome(&mut self, id: u64, outcome: CallOutcome) {
        self.call.on_outcome(self.now, &mut self.cache, 0, id, outcome);
    }

    fn answer(&mut self, id: u64, body: Answer) {
        self.outcome(id, CallOutcome::Response(v1::Response { id: 0, body: Some(body) }));
    }

    fn refuse(&mut self, id: u64, error: &Error) {
        self.answer(id, Answer::Error(error.into()));
    }
}

/// Results in the caller's order, in words.
fn results(answer: &Answer) -> Vec<String> {
    match answer {
        Answer::Get(get) => vec![get.record.as_ref().map_or("none".into(), |record| format!("v{}", record.version))],
        Answer::MultiGet(get) => get
            .results
            .iter()
            .map(|result| result.record.as_ref().map_or("none".into(), |record| format!("v{}", record.version)))
            .collect(),
        Answer::Write(batch) => batch
            .results
            .iter()
            .map(|result| match &result.outcome {
                Some(Outcome::Result(result)) => format!("v{}", result.version),
                Some(Outcome::Error(error)) => format!("{:?}", error.kind()),
                None => "nothing".into(),
            })
            .collect(),
        Answer::Scan(scan) => vec![format!("{} records", scan.count)],
        Answer::Error(_) => vec!["error".into()],
    }
}

fn header(term: u64) -> Option<v1::ResponseHeader> {
    Some(v1::ResponseHeader { cluster_id: 9, term, ..Default::default() })
}

fn written(versions: &[u64]) -> Answer {
    let result = |version: &u64| v1::BatchResult {
        outcome: Some(Outcome::Result(v1::WriteResult { applied: true, version: *version, ..Default::default() })),
    };
    Answer::Write(v1::BatchResponse { header: header(1), results: versions.iter().map(result).collect() })
}

fn found(versions: &[u64]) -> Answer {
    let result = |version: &u64| v1::MultiGetResult {
        record: Some(v1::Record { key: Bytes::new(), value: "v".into(), version: *version, ttl_remaining_ms: 0 }),
    };
    Answer::MultiGet(v1::MultiGetResponse { header: header(1), results: versions.iter().map(result).collect() })
}

/// What a node of another cluster refuses was surely not applied, and the leader is looked for elsewhere.
#[test]
fn requests_name_their_cluster_and_go_on_elsewhere_when_another_one_answers() {
    let mut cache = three_ranges();
    cache.set_cluster(7);
    let mut script = Script::new(cache, write(&["a"], false));
    let Step::Send { node: NodeId(1), request } = script.step() else { panic!("n1 leads") };
    let header = request.body.as_ref().and_then(check::header_of).expect("a header");
    assert_eq!((header.cluster_id, header.range_id), (7, 2));
    script.refuse(1, &Error::ClusterMismatch { what: "this node belongs to cluster 8".into() });
    assert_eq!(script.cache.by_id(RangeId(2)).and_then(|route| route.leader), None, "it does not lead");
    script.now += Duration::from_millis(2);
    assert_eq!(script.steps()[0], "refresh");
    script.call.on_routes(script.now, 0, Ok(()));
    let Step::Send { node, .. } = script.step() else { panic!("somebody else is asked") };
    assert_ne!(node, NodeId(1));
}

#[test]
fn a_batch_is_cut_by_range_and_joined_in_the_callers_order() {
    let mut script = Script::new(three_ranges(), write(&["z", "a", "h", "b", "q"], false));
    assert_eq!(script.steps(), ["#1 n1 r2 a b", "#2 n2 r3 h", "#3 n3 r4 z q", "wait 5050 ms"]);
    script.answer(3, written(&[41, 42]));
    script.answer(1, written(&[21, 22]));
    assert_eq!(script.steps(), ["wait 5050 ms"]);
    script.answer(2, written(&[31]));
    assert_eq!(script.steps(), ["done: v41 v21 v31 v22 v42"]);
}

#[test]
fn a_multi_get_is_cut_and_joined_too() {
    let mut script = Script::new(three_ranges(), multi_get(&["z", "a", "z", "h"]));
    assert_eq!(script.steps(), ["#1 n1 r2 a", "#2 n2 r3 h", "#3 n3 r4 z z", "wait 1000 ms"]);
    script.answer(2, found(&[3]));
    script.answer(3, found(&[41, 42]));
    script.answer(1, found(&[2]));
    assert_eq!(script.steps(), ["done: v41 v2 v42 v3"]);
}

#[test]
fn what_is_sent_carries_range_epoch_and_the_time_left() {
    let mut script = Script::new(three_ranges(), get("h", v1::ReadConsistency::Linearizable));
    script.now = SECOND;
    let Step::Send { node, request } = script.step() else { panic!("nothing is sent") };
    let Some(Body::Get(get)) = request.body else { panic!("another request is sent") };
    let header = get.header.expect("a header");
    assert_eq!((node, header.range_id, header.timeout_ms, header.trace_id), (NodeId(2), 3, 4_000, 77));
    assert_eq!(header.epoch, Some(v1::Epoch { conf_ver: 1, version: 1 }));
}

#[test]
fn an_atomic_batch_over_a_border_is_refused_by_fresh_routes_only() {
    let mut script = Script::new(three_ranges(), write(&["z", "a", "b"], true));
    assert_eq!(script.steps(), ["refresh", "wait 5000 ms"]);
    script.call.on_routes(script.now, 0, Ok(()));
    let Step::Done(Err(error)) = script.step() else { panic!("not refused") };
    assert_eq!(error, Error::BatchSpansRanges { borders: vec!["p".into()] });

    let mut script = Script::new(three_ranges(), write(&["z", "a", "b"], true));
    assert_eq!(script.steps(), ["refresh", "wait 5000 ms"]);
    assert!(script.cache.merge(&descriptor(2, "", "", 2)), "meanwhile the ranges were merged");
    script.call.on_routes(script.now, 0, Ok(()));
    assert_eq!(script.steps(), ["#1 n1 r2 z a b", "wait 5050 ms"]);
}

#[test]
fn a_split_found_out_on_the_way_cuts_the_rest_again() {
    let mut cache = RouteCache::new(KeyspaceId(1), None);
    cache.merge(&descriptor(2, "", "", 1));
    cache.set_leader(RangeId(2), NodeId(1), 1);
    let mut script = Script::new(cache, write(&["z", "a"], false));
    assert_eq!(script.steps(), ["#1 n1 r2 z a", "wait 5050 ms"]);
    let descriptors = vec![descriptor(5, "p", "", 2), descriptor(2, "", "p", 2)];
    script.refuse(1, &Error::EpochMismatch { range: RangeId(2), descriptors });
    // The child's leader is not known: the parent's is the best guess.
    assert_eq!(script.steps(), ["#2 n1 r2 a", "#3 n1 r5 z", "wait 5050 ms"]);
    script.answer(2, written(&[8]));
    script.answer(3, written(&[9]));
    assert_eq!(script.steps(), ["done: v9 v8"]);
}

#[test]
fn a_redirect_is_followed_and_remembered() {
    let mut script = Script::new(three_ranges(), write(&["a"], false));
    assert_eq!(script.steps(), ["#1 n1 r2 a", "wait 5050 ms"]);
    script.refuse(1, &Error::NotLeader { range: RangeId(2), leader: Some(NodeId(3)), descriptors: vec![] });
    assert_eq!(script.steps(), ["#2 n3 r2 a", "wait 5050 ms"]);
    assert_eq!(script.cache.by_id(RangeId(2)).and_then(|route| route.leader), Some(NodeId(3)));
    script.answer(2, written(&[4]));
    assert_eq!(script.steps(), ["done: v4"]);
}

#[test]
fn only_the_operations_whose_answer_is_lost_are_ambiguous() {
    let mut script = Script::new(three_ranges(), write(&["a", "h", "z"], false));
    assert_eq!(script.steps().len(), 4);
    script.answer(1, written(&[2]));
    script.outcome(2, CallOutcome::Broken("reset".into()));
    script.outcome(3, CallOutcome::NotSent("refused".into()));
    assert_eq!(script.steps(), ["wait 1 ms"], "the last was not sent: again after a pause");
    script.now += Duration::from_millis(1);
    assert_eq!(script.steps(), ["#4 n2 r4 z", "wait 5049 ms"], "another replica");
    script.answer(4, written(&[4]));
    assert_eq!(script.steps(), ["done: v2 Ambiguous v4"]);
}

#[test]
fn a_single_write_whose_answer_is_lost_fails_as_ambiguous() {
    let answers = [
        CallOutcome::Broken("reset".into()),
        CallOutcome::Response(v1::Response { id: 0, body: None }),
        CallOutcome::Response(v1::Response { id: 0, body: Some(written(&[1, 2])) }),
        CallOutcome::Response(v1::Response { id: 0, body: Some(found(&[1])) }),
    ];
    for answer in answers {
        let mut script = Script::new(three_ranges(), write(&["a"], false));
        script.steps();
        script.outcome(1, answer);
        let steps = script.steps();
        assert!(steps[0].starts_with("failed: the outcome is unknown"), "{steps:?}");
    }
}

#[test]
fn an_operation_refused_alone_is_repeated_alone() {
    let mut script = Script::new(three_ranges(), write(&["a", "b", "c"], false));
    assert_eq!(script.steps(), ["#1 n1 r2 a b c", "wait 5050 ms"]);
    let mut answer = written(&[1, 0, 0]);
    if let Answer::Write(batch) = &mut answer {
        let busy = Error::ServerBusy { reason: "full".into(), retry_after_ms: 100 };
        batch.results[1].outcome = Some(Outcome::Error((&busy).into()));
        batch.results[2].outcome = Some(Outcome::Error((&Error::invalid("no", "hint")).into()));
    }
    script.answer(1, answer);
    assert_eq!(script.steps(), ["wait 101 ms"]);
    script.now += Duration::from_millis(101);
    assert_eq!(script.steps(), ["#2 n1 r2 b", "wait 4949 ms"]);
    script.answer(2, written(&[5]));
    assert_eq!(script.steps(), ["done: v1 v5 InvalidArgument"]);
}

#[test]
fn one_refusal_in_an_atomic_batch_is_everyones() {
    let mut script = Script::new(three_ranges(), write(&["a", "b"], true));
    script.steps();
    let mut answer = written(&[1, 0]);
    if let Answer::Write(batch) = &mut answer {
        batch.results[1].outcome = Some(Outcome::Error((&Error::Unavailable { reason: "x".into() }).into()));
    }
    script.answer(1, answer);
    script.now += Duration::from_millis(5);
    assert_eq!(script.steps(), ["#2 n3 r2 a b", "wait 5045 ms"], "the whole is sent again");
}

#[test]
fn a_read_without_an_answer_asks_another_replica_and_ignores_the_late_one() {
    let mut script = Script::new(three_ranges(), get("a", v1::ReadConsistency::Linearizable));
    assert_eq!(script.steps(), ["#1 n1 r2 a", "wait 1000 ms"]);
    script.now = SECOND;
    assert_eq!(script.steps(), ["#2 n3 r2 a", "wait 2000 ms"]);
    let record = Some(v1::Record { key: Bytes::new(), value: "v".into(), version: 6, ttl_remaining_ms: 0 });
    script.answer(1, Answer::Get(v1::GetResponse { header: header(1), record: None }));
    assert_eq!(script.steps(), ["wait 2000 ms"]);
    script.answer(2, Answer::Get(v1::GetResponse { header: header(2), record }));
    assert_eq!(script.steps(), ["done: v6"]);
}

#[test]
fn at_the_deadline_what_is_out_is_ambiguous_and_what_is_not_timed_out() {
    let mut script = Script::new(three_ranges(), write(&["a", "h", "z"], false));
    assert_eq!(script.steps().len(), 4);
    script.refuse(3, &Error::DiskFull { nodes: vec![NodeId(1)] });
    script.now = DEADLINE;
    assert_eq!(script.steps(), ["wait 50 ms"], "two answers are out: the nodes' verdicts may still come");
    script.refuse(2, &Error::Timeout { stage: "in the queue".into() });
    assert_eq!(script.steps(), ["wait 50 ms"]);
    script.now += ANSWER_GRACE;
    let steps = script.steps();
    assert_eq!(steps, ["done: Ambiguous Timeout DiskFull"]);
}

#[test]
fn routes_that_are_not_known_are_learned_first() {
    let mut script = Script::new(RouteCache::new(KeyspaceId(1), None), write(&["a"], false));
    assert_eq!(script.steps(), ["refresh", "wait 5000 ms"]);
    assert_eq!(script.steps(), ["wait 5000 ms"], "one refresh at a time");
    script.call.on_routes(script.now, 0, Err(Error::Unavailable { reason: "no node answers".into() }));
    assert_eq!(script.steps(), ["wait 4 ms"]);
    script.now += Duration::from_millis(4);
    assert_eq!(script.steps(), ["refresh", "wait 4996 ms"]);
    script.cache.merge(&descriptor(2, "", "", 1));
    script.call.on_routes(script.now, 0, Ok(()));
    assert_eq!(script.steps(), ["#1 n2 r2 a", "wait 5046 ms"]);
}

#[test]
fn routes_are_asked_for_wherever_they_are_missing_and_nowhere_else() {
    let mut cache = RouteCache::new(KeyspaceId(1), None);
    cache.merge(&descriptor(2, "g", "m", 1));
    let mut script = Script::new(cache, write(&["a", "h", "i", "p", "b"], false));
    let places = loop {
        match script.step() {
            Step::Send { request, .. } => assert_eq!(request.id, 1, "h and i"),
            Step::RefreshRoutes(places) => break places,
            step => panic!("{step:?}"),
        }
    };
    assert_eq!(places.keys.into_iter().collect::<Vec<_>>(), ["a", "b", "p"]);
    // What comes to want routes while others are asked for has its own turn.
    let refusal = Error::RangeNotFound { range: RangeId(2) };
    let refused = v1::Response { id: 1, body: Some(v1::response::Body::Error((&refusal).into())) };
    script.call.on_outcome(script.now, &mut script.cache, 0, 1, CallOutcome::Response(refused));
    script.cache.merge(&descriptor(1, "", "g", 1));
    script.cache.merge(&descriptor(3, "m", "", 1));
    script.call.on_routes(script.now, 0, Ok(()));
    let asked = std::iter::from_fn(|| match script.step() {
        Step::WaitUntil(_) => None,
        step => Some(step),
    });
    let asked: Vec<_> =
        asked.filter_map(|step| if let Step::RefreshRoutes(places) = step { Some(places) } else { None }).collect();
    let keys: Vec<_> = asked.iter().map(|places| places.keys.iter().cloned().collect::<Vec<_>>()).collect();
    assert_eq!(keys, [["h"]], "one place in each range");
}

#[test]
fn without_routes_the_time_runs_out_and_says_why() {
    let mut script = Script::new(RouteCache::new(KeyspaceId(1), None), write(&["a"], false));
    loop {
        match script.step() {
            Step::RefreshRoutes(_) => {
                script.call.on_routes(script.now, 0, Err(Error::Unavailable { reason: "all is dark".into() }));
            }
            Step::WaitUntil(until) => {
                assert!(until > script.now, "it waits for something");
                script.now = until;
            }
            Step::Done(Err(Error::Timeout { stage })) => {
                assert!(stage.contains("all is dark"), "{stage}");
                break;
            }
            step => panic!("{step:?}"),
        }
    }
    assert!(script.now <= DEADLINE);
}

#[test]
fn a_stale_read_prefers_the_local_replica_and_says_nothing_about_the_leader() {
    let mut script = Script::new(three_ranges(), get("a", v1::ReadConsistency::Stale));
    assert_eq!(script.steps(), ["#1 n2 r2 a", "wait 1000 ms"]);
    script.answer(1, Answer::Get(v1::GetResponse { header: header(9), record: None }));
    assert_eq!(script.steps(), ["done: none"]);
    assert_eq!(script.cache.by_id(RangeId(2)).and_then(|route| route.leader), Some(NodeId(1)));
}

#[test]
fn empty_and_bad_requests_are_done_at_once() {
    assert_eq!(Script::new(three_ranges(), write(&[], false)).steps(), ["done: "]);
    assert_eq!(Script::new(three_ranges(), multi_get(&[])).steps(), ["done: "]);
    assert_eq!(Script::new(three_ranges(), write(&[""], false)).steps(), ["failed: an empty key"]);
}

#[test]
fn answers_name_the_cluster_the_trace_and_the_range_if_it_was_one() {
    for (keys, range) in [(&["a", "b"][..], 2), (&["a", "z"][..], 0)] {
        let mut script = Script::new(three_ranges(), multi_get(keys));
        script.steps();
        let one_range = range != 0;
        if one_range {
            script.answer(1, found(&[1, 2]));
        } else {
            script.answer(1, found(&[1]));
            script.answer(2, found(&[2]));
        }
        let Step::Done(Ok(Answer::MultiGet(answer))) = script.step() else { panic!("not done") };
        let header = answer.header.expect("a header");
        assert_eq!((header.cluster_id, header.range_id), (9, range));
    }
}

#[test]
fn learners_are_not_asked_for_what_takes_a_leader() {
    let roles = [v1::ReplicaRole::Learner, v1::ReplicaRole::VoterOutgoing, v1::ReplicaRole::VoterIncoming];
    for (voter, consistency) in [(true, v1::ReadConsistency::Linearizable), (false, v1::ReadConsistency::Stale)] {
        let mut cache = RouteCache::new(KeyspaceId(1), Some(NodeId(1)));
        let mut joint = descriptor(2, "", "", 1);
        for (replica, role) in joint.replicas.iter_mut().zip(roles) {
            replica.role = role.into();
        }
        cache.merge(&joint);
        let asked: Vec<NodeId> = (0..64)
            .map(|rand| {
                let mut call = Call::new(get("a", consistency), Time::ZERO, DEADLINE);
                match call.next(Time::ZERO, &cache, rand) {
                    Step::Send { node, .. } => node,
                    step => panic!("{step:?}"),
                }
            })
            .collect();
        let among = |node: u64| asked.contains(&NodeId(node));
        assert_eq!([among(1), among(2), among(3)], [!voter, voter, voter], "a stale read prefers the local replica");
    }
}

#[test]
fn a_leader_that_the_descriptor_does_not_name_is_believed() {
    let mut script = Script::new(three_ranges(), write(&["a"], false));
    assert_eq!(script.steps(), ["#1 n1 r2 a", "wait 5050 ms"]);
    script.refuse(1, &Error::NotLeader { range: RangeId(2), leader: Some(NodeId(7)), descriptors: vec![] });
    assert_eq!(script.steps(), ["#2 n7 r2 a", "wait 5050 ms"]);
}

#[test]
fn a_replica_that_is_gone_is_not_asked_again_though_the_routes_still_name_it() {
    let mut script = Script::new(three_ranges(), write(&["a"], false));
    assert_eq!(script.steps(), ["#1 n1 r2 a", "wait 5050 ms"]);
    script.refuse(1, &Error::RangeNotFound { range: RangeId(2) });
    assert_eq!(script.steps(), ["refresh", "wait 5000 ms"]);
    script.cache.set_leader(RangeId(2), NodeId(1), 1);
    script.call.on_routes(script.now, 0, Ok(()));
    assert_eq!(script.steps(), ["#2 n3 r2 a", "wait 5050 ms"]);
}

#[test]
fn an_address_that_is_not_known_is_learned_with_the_routes() {
    let mut script = Script::new(three_ranges(), write(&["a"], false));
    assert_eq!(script.steps(), ["#1 n1 r2 a", "wait 5050 ms"]);
    script.outcome(1, CallOutcome::NoAddress);
    assert_eq!(script.steps(), ["refresh", "wait 5000 ms"]);
    script.call.on_routes(script.now, 0, Ok(()));
    assert_eq!(script.steps(), ["#2 n1 r2 a", "wait 5050 ms"], "the leader is still the leader");
}

#[test]
fn of_a_keyspace_that_is_gone_only_what_is_out_is_waited_for() {
    let mut script = Script::new(three_ranges(), write(&["a", "h"], false));
    assert_eq!(script.steps().len(), 3);
    script.refuse(2, &Error::RangeNotFound { range: RangeId(3) });
    script.call.abandon(&Error::KeyspaceNotFound { name: "jobs".into() });
    assert_eq!(script.steps(), ["wait 5050 ms"]);
    script.answer(1, written(&[4]));
    assert_eq!(script.steps(), ["done: v4 KeyspaceNotFound"]);
}

#[test]
fn a_split_that_another_call_was_told_of_needs_no_look_at_the_routes() {
    let mut script = Script::new(three_ranges(), write(&["a"], false));
    assert_eq!(script.steps(), ["#1 n1 r2 a", "wait 5050 ms"]);
    let descriptors = vec![descriptor(2, "", "c", 2), descriptor(5, "c", "g", 2)];
    script.cache.merge_each(&descriptors);
    script.refuse(1, &Error::EpochMismatch { range: RangeId(2), descriptors });
    assert_eq!(script.steps(), ["#2 n1 r2 a", "wait 5050 ms"]);
}

#[test]
fn a_replica_that_is_behind_is_not_taken_for_the_leader() {
    let mut cache = three_ranges();
    cache.merge_each(&[descriptor(2, "", "c", 2), descriptor(5, "c", "g", 2)]);
    let mut script = Script::new(cache, write(&["a"], false));
    assert_eq!(script.steps(), ["#1 n1 r2 a", "wait 5050 ms"]);
    script.refuse(1, &Error::EpochMismatch { range: RangeId(2), descriptors: vec![descriptor(2, "", "g", 1)] });
    assert_eq!(script.steps(), ["refresh", "wait 5000 ms"]);
    script.call.on_routes(script.now, 0, Ok(()));
    assert_eq!(script.steps(), ["#2 n3 r2 a", "wait 5050 ms"]);
}
