//! The whole table: every failure, read and write.

use flotilla_proto::{RangeId, v1};

use super::*;

const NOW: Time = Duration::from_secs(10);
const DEADLINE: Time = Duration::from_secs(15);
const ASKED: NodeId = NodeId(3);

fn attempt(access: Access) -> Attempt {
    Attempt { access, node: ASKED, failures: 0, learned: false, now: NOW, deadline: DEADLINE, rand: 0 }
}

/// What was decided, in words.
fn words(failure: &Failure, attempt: &Attempt) -> String {
    match decide(failure, attempt) {
        Decision::GiveUp(error) => format!("{:?}", error.kind()),
        Decision::Again { target, at, refresh } => {
            let who = match target {
                Target::Leader => "leader".to_string(),
                Target::Node(node) => node.to_string(),
                Target::Other(node) => format!("not {node}"),
            };
            let wait = at.saturating_sub(attempt.now).as_millis();
            format!("{who} in {wait} ms{}", if refresh { ", refreshed" } else { "" })
        }
    }
}

fn answers() -> Vec<(Error, &'static str, &'static str)> {
    let range = RangeId(7);
    let descriptors = || vec![v1::RangeDescriptor::default()];
    let not_leader = |leader| Error::NotLeader { range, leader, descriptors: vec![] };
    vec![
        (not_leader(Some(NodeId(2))), "n2 in 0 ms", "n2 in 0 ms"),
        (not_leader(Some(ASKED)), "not n3 in 1 ms", "not n3 in 1 ms"),
        (not_leader(None), "not n3 in 1 ms", "not n3 in 1 ms"),
        (
            Error::EpochMismatch { range, descriptors: descriptors() },
            "not n3 in 0 ms, refreshed",
            "not n3 in 0 ms, refreshed",
        ),
        (
            Error::KeyNotInRange { range, descriptors: descriptors() },
            "not n3 in 0 ms, refreshed",
            "not n3 in 0 ms, refreshed",
        ),
        (Error::RangeNotFound { range }, "not n3 in 0 ms, refreshed", "not n3 in 0 ms, refreshed"),
        (Error::ServerBusy { reason: "full".into(), retry_after_ms: 70 }, "leader in 71 ms", "leader in 71 ms"),
        (Error::Timeout { stage: "in the queue".into() }, "leader in 1 ms", "leader in 1 ms"),
        (Error::DiskFull { nodes: vec![] }, "leader in 1 ms", "leader in 1 ms"),
        (Error::Unavailable { reason: "stopping".into() }, "not n3 in 1 ms", "not n3 in 1 ms"),
        (Error::Ambiguous { reason: "x".into() }, "leader in 1 ms", "Ambiguous"),
        (Error::BatchSpansRanges { borders: vec![] }, "BatchSpansRanges", "BatchSpansRanges"),
        (Error::invalid("what", "hint"), "InvalidArgument", "InvalidArgument"),
        (Error::KeyspaceNotFound { name: "x".into() }, "KeyspaceNotFound", "KeyspaceNotFound"),
        (Error::Corruption { what: "x".into() }, "Corruption", "Corruption"),
        (Error::ClusterMismatch { what: "x".into() }, "not n3 in 1 ms, refreshed", "not n3 in 1 ms, refreshed"),
    ]
}

fn failures() -> Vec<(Failure, &'static str, &'static str)> {
    let answers = answers().into_iter().map(|(error, read, write)| (Failure::Answer(error), read, write));
    let mut all: Vec<_> = answers.collect();
    all.extend([
        (Failure::NotSent("refused".into()), "not n3 in 1 ms", "not n3 in 1 ms"),
        (Failure::NoAddress, "leader in 0 ms, refreshed", "leader in 0 ms, refreshed"),
        (Failure::Broken("reset".into()), "not n3 in 1 ms", "Ambiguous"),
        (Failure::NoAnswer, "not n3 in 0 ms", "Ambiguous"),
    ]);
    all
}

#[test]
fn every_failure_has_its_reaction() {
    for (failure, read, write) in failures() {
        assert_eq!(words(&failure, &attempt(Access::Read)), read, "read: {failure:?}");
        assert_eq!(words(&failure, &attempt(Access::Write)), write, "write: {failure:?}");
    }
}

#[test]
fn a_write_is_never_repeated_after_an_ambiguous_failure() {
    for (failure, _, _) in failures() {
        let surely_not_applied = match &failure {
            Failure::Answer(error) => error.action() != Action::Ambiguous,
            Failure::NotSent(_) | Failure::NoAddress => true,
            Failure::Broken(_) | Failure::NoAnswer => false,
        };
        for failures in 0..12 {
            let decision = decide(&failure, &Attempt { failures, ..attempt(Access::Write) });
            match decision {
                Decision::Again { .. } => assert!(surely_not_applied, "{failure:?}"),
                Decision::GiveUp(error) => {
                    assert_eq!(error.action() == Action::Ambiguous, !surely_not_applied, "{failure:?} -> {error:?}");
                }
            }
        }
    }
}

#[test]
fn at_the_deadline_the_last_error_is_answered_or_named_in_a_timeout() {
    for (failure, _, _) in failures() {
        let late = Attempt { now: DEADLINE, failures: 6, ..attempt(Access::Read) };
        match (decide(&failure, &late), &failure) {
            (Decision::GiveUp(Error::Timeout { stage }), Failure::Answer(Error::Timeout { .. })) => {
                assert_eq!(stage, "in the queue", "the node's own words");
            }
            (Decision::GiveUp(Error::Timeout { stage }), _) => assert!(stage.contains("7 attempts"), "{stage}"),
            (Decision::GiveUp(error), Failure::Answer(last)) => assert_eq!(error, *last),
            (decision, _) => panic!("{failure:?} -> {decision:?}"),
        }
    }
    let busy = Failure::Answer(Error::ServerBusy { reason: "full".into(), retry_after_ms: 60_000 });
    assert_eq!(words(&busy, &attempt(Access::Write)), "ServerBusy", "waiting so long would be in vain");
}

#[test]
fn pauses_grow_to_their_bound_and_keep_within_their_jitter() {
    let wait = |failures, rand| backoff(failures, rand).as_millis();
    let shortest: Vec<u128> = (0..9).map(|failures| wait(failures, 0)).collect();
    assert_eq!(shortest, [1, 2, 4, 8, 16, 32, 64, 125, 125]);
    for rand in (0..1_000).map(super::super::mix) {
        let pause = backoff(3, rand);
        assert!((Duration::from_millis(8)..=Duration::from_millis(16)).contains(&pause), "{pause:?}");
    }
    assert!(backoff(u32::MAX, u64::MAX) <= PAUSE_MAX);
}

#[test]
fn nodes_that_point_at_each_other_cause_no_storm() {
    let error = Error::NotLeader { range: RangeId(7), leader: Some(NodeId(2)), descriptors: vec![] };
    let failure = Failure::Answer(error);
    let waits: Vec<String> =
        (0..5).map(|failures| words(&failure, &Attempt { failures, ..attempt(Access::Read) })).collect();
    assert_eq!(
        waits,
        ["n2 in 0 ms", "n2 in 0 ms", "n2 in 4 ms", "n2 in 8 ms, refreshed", "n2 in 16 ms"],
        "at once twice, then with growing pauses, and a look at the routes now and then"
    );
}

#[test]
fn a_newer_descriptor_in_the_answer_saves_the_refresh() {
    let failure = Failure::Answer(Error::EpochMismatch { range: RangeId(7), descriptors: vec![] });
    let learned = Attempt { learned: true, ..attempt(Access::Write) };
    assert_eq!(words(&failure, &learned), "leader in 0 ms");
}
