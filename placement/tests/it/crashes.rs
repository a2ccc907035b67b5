//! The service ends at every write, known or unknown whether it happened, and is made anew from the records.

use flotilla_placement::{Config, Outcome, Request, Response, Service};
use flotilla_proto::v1;

use crate::growth::grown;
use crate::toy::{CLUSTER, Toy, config};

#[test]
fn writes_of_unknown_outcome_lose_and_repeat_no_ids() {
    for seed in 1..=30 {
        let mut toy = Toy::new(8, seed);
        toy.faults.write_unknown = 30;
        for store in 2..=4 {
            toy.join(100 + store);
        }
        assert_eq!(toy.join(103), toy.join(103), "the same store got two ids");
        toy.until("rest", |toy| toy.groups.values().all(|group| group.is_simple() && group.voters().len() == 3));
        toy.faults.write_unknown = 0;
        toy.until("rest", |toy| toy.at_rest(3));
        toy.steps(20);
        toy.check_settled();
    }
}

fn join(store: u64) -> Request {
    Request::Join(v1::JoinRequest {
        store_id: store,
        peer_addr: format!("s{store}:1"),
        protocol_min: 1,
        protocol_max: 1,
        ..Default::default()
    })
}

/// A second service is loaded, and the first one still believes to be the one.
/// pd#3423, #4884, #8781, #8836, #9051: whoever was deposed gives nothing out any more, whatever it believes.
#[test]
fn a_stale_services_writes_are_refused_whatever_they_touch() {
    for same_term in [true, false] {
        let mut toy = grown(2, 3, 1);
        let mut fresh =
            Service::load(if same_term { 1 } else { 2 }, toy.records.all(), toy.now, config()).expect("valid");
        for write in fresh.take_effects().writes {
            assert!(toy.records.apply(&write.request));
            fresh.written(toy.now, write.id, Outcome::Applied);
        }
        let before = toy.records.all();
        toy.service.request(toy.now, 1_000_001, join(777));
        let effects = toy.service.take_effects();
        assert_eq!(effects.writes.len(), 1);
        assert!(!toy.records.apply(&effects.writes[0].request), "a stale write was applied");
        assert_eq!(toy.records.all(), before);
        toy.service.written(toy.now, effects.writes[0].id, Outcome::Refused);
        assert!(toy.service.stopped().is_some());
        let answers = toy.service.take_effects().answers;
        assert!(answers.iter().any(|answer| answer.token == 1_000_001 && answer.result.is_err()), "{answers:?}");
        // Whatever else is asked of it is refused, too.
        toy.service.request(toy.now, 1_000_002, join(778));
        let effects = toy.service.take_effects();
        assert!(effects.writes.is_empty() && effects.answers[0].result.is_err());
    }
}

/// Both were loaded from the same records: one of them takes them over.
#[test]
fn of_two_services_loaded_at_once_one_is_refused() {
    let toy = Toy::new(1, 1);
    let mut records = toy.records.clone();
    let mut applied = 0;
    for term in [2, 3] {
        let mut service = Service::load(term, toy.records.all(), toy.now, config()).expect("valid");
        for write in service.take_effects().writes {
            applied += usize::from(records.apply(&write.request));
        }
    }
    assert_eq!(applied, 1);
}

#[test]
fn nothing_leaves_before_its_write_is_acknowledged() {
    let mut toy = Toy::new(1, 1);
    toy.service.request(toy.now, 1_000_001, join(200));
    let first = toy.service.take_effects();
    assert!(first.answers.is_empty() && first.writes.len() == 1);
    toy.service.request(toy.now, 1_000_002, join(201));
    let second = toy.service.take_effects();
    assert!(second.answers.is_empty() && second.writes.is_empty(), "one write at a time");
    assert_eq!(toy.service.nodes().len(), 1);
    toy.service.written(toy.now, first.writes[0].id, Outcome::Applied);
    let third = toy.service.take_effects();
    let nodes = |answer: &flotilla_placement::Answer| match &answer.result {
        Ok(Response::Join(answer)) => (answer.node_id, answer.nodes.len(), answer.cluster_id),
        other => panic!("{other:?}"),
    };
    assert_eq!(third.answers.iter().map(nodes).collect::<Vec<_>>(), [(2, 2, CLUSTER)]);
    assert_eq!(third.writes.len(), 1);
    toy.service.written(toy.now, third.writes[0].id, Outcome::Applied);
    assert_eq!(toy.service.take_effects().answers.iter().map(nodes).collect::<Vec<_>>(), [(3, 3, CLUSTER)]);
}

#[test]
fn a_closed_service_answers_what_waited() {
    let mut toy = grown(1, 3, 1);
    toy.service.request(toy.now, 1_000_001, join(200));
    let service = std::mem::replace(
        &mut toy.service,
        Service::load(9, toy.records.all(), toy.now, Config::default()).expect("valid"),
    );
    let answers = service.close().answers;
    assert!(matches!(&answers[0].result, Err(flotilla_proto::Error::Ambiguous { .. })), "{answers:?}");
}

#[test]
fn damaged_and_missing_records_are_refused_in_words() {
    let toy = Toy::new(1, 1);
    let all = toy.records.all();
    for at in 0..all.len() {
        let key = String::from_utf8_lossy(&all[at].0).into_owned();
        let mut damaged = all.clone();
        damaged[at].1 = vec![0xFF; 9].into();
        assert!(Service::load(2, damaged, toy.now, config()).is_err(), "damaged {key:?}");
        if key.starts_with("next/") || key == "cluster" || key == "reign" {
            let mut missing = all.clone();
            missing.remove(at);
            let error = Service::load(2, missing, toy.now, config()).expect_err("missing");
            assert!(!error.is_empty());
        }
    }
    assert!(Service::load(0, all, toy.now, config()).is_err(), "a service of an older reign than the records'");
}

#[test]
fn orders_under_way_outlive_the_service() {
    let mut toy = grown(16, 3, 1);
    toy.join(104);
    toy.until("orders", |toy| !toy.service.orders().is_empty());
    let orders = toy.service.orders();
    toy.reload();
    toy.settle_effects();
    assert_eq!(toy.service.orders(), orders);
    toy.until("rest", |toy| toy.at_rest(3));
    toy.check_settled();
}
