//! What is planned for ranges whose majority is lost, from what the living say.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flotilla_placement::recovery::{LEAP, Plan, Wish, committed, plan, unsettled};
use flotilla_placement::{Bootstrap, Change, Config, Counter, Outcome, Request, Service};
use flotilla_proto::v1::{self, ReplicaRole};

use crate::growth::grown;
use crate::toy::{Records, Toy};

/// A range of keyspace 1, version and conf_ver, with voters on these nodes, each under its node's id.
fn range(id: u64, (start, end): (&'static str, &'static str), epoch: (u64, u64), nodes: &[u64]) -> v1::RangeDescriptor {
    let replica = |node: &u64| v1::ReplicaDescriptor { replica_id: *node, node_id: *node, role: 0 };
    v1::RangeDescriptor {
        range_id: id,
        keyspace_id: 1,
        start: start.into(),
        end: end.into(),
        epoch: Some(v1::Epoch { version: epoch.0, conf_ver: epoch.1 }),
        replicas: nodes.iter().map(replica).collect(),
        next_replica_id: 9,
    }
}

fn replica(of: &v1::RangeDescriptor, node: u64, (last_term, last_index): (u64, u64)) -> v1::SurveyedReplica {
    v1::SurveyedReplica {
        descriptor: Some(of.clone()),
        replica_id: node,
        term: last_term,
        last_term,
        last_index,
        commit_index: 10,
        commit_term: 1,
        applied_index: 10,
        ..Default::default()
    }
}

fn node(id: u64, replicas: Vec<v1::SurveyedReplica>) -> v1::SurveyResponse {
    let nodes = (1..=5).map(|node_id| v1::SurveyedNode { node_id, live: node_id <= 2, ..Default::default() });
    let keyspaces = vec![v1::Keyspace { keyspace_id: 1, name: "default".into(), ..Default::default() }];
    v1::SurveyResponse {
        cluster_id: 7,
        node_id: id,
        boot_id: id,
        replicas,
        nodes: nodes.collect(),
        keyspaces,
        ..Default::default()
    }
}

fn wish() -> Wish {
    Wish { plan_id: "p".into(), dead: [3, 4, 5].into(), ..Wish::default() }
}

fn made(surveys: &[v1::SurveyResponse]) -> Plan {
    plan(&wish(), surveys).expect("a plan")
}

fn refused(wish: &Wish, surveys: &[v1::SurveyResponse], words: &str) {
    let refusals = plan(wish, surveys).expect_err(words);
    assert!(refusals.iter().any(|refusal| refusal.contains(words)), "\"{words}\" is not in {refusals:?}");
}

#[test]
fn the_newest_log_among_the_voters_goes_on_and_ranges_with_a_majority_stay() {
    let lost = range(2, ("", "m"), (3, 4), &[1, 2, 3, 4, 5]);
    let well = range(3, ("m", ""), (3, 2), &[1, 2, 3]);
    for (one, two, chosen) in [((5, 9), (5, 8), 1), ((5, 9), (6, 2), 2), ((5, 9), (5, 9), 1)] {
        let plan = made(&[
            node(1, vec![replica(&lost, 1, one), replica(&well, 1, (5, 5))]),
            node(2, vec![replica(&lost, 2, two), replica(&well, 2, (5, 5))]),
        ]);
        let [kept] = &plan.kept[..] else { panic!("{plan:?}") };
        assert_eq!((kept.node, kept.living_voters, plan.healthy), (chosen, (2, 5), 1));
        let after = kept.order.after.as_ref().expect("it says");
        assert_eq!(after.epoch, Some(v1::Epoch { version: 3, conf_ver: 4 + LEAP }));
        assert_eq!((after.replicas.len(), after.replicas[0].replica_id), (1, 9 + LEAP));
        assert!(kept.order.term > 6 && kept.order.before.as_ref() == Some(&lost));
        assert!(plan.gaps.is_empty() && plan.lost.is_empty() && kept.warnings.is_empty(), "{plan:?}");
    }
}

#[test]
fn learners_go_on_only_where_no_voter_is_left_and_former_members_last_of_all() {
    let mut of = range(2, ("", ""), (1, 4), &[1, 2, 3, 4]);
    of.replicas[0].role = ReplicaRole::Learner.into();
    let kept = |surveys: &[v1::SurveyResponse]| made(surveys).kept[0].clone();
    let both = kept(&[node(1, vec![replica(&of, 1, (9, 9))]), node(2, vec![replica(&of, 2, (5, 5))])]);
    assert_eq!((both.node, both.warnings.len()), (2, 0), "a voter, however old");
    let learner = kept(&[node(1, vec![replica(&of, 1, (9, 9))]), node(2, vec![])]);
    assert!(learner.node == 1 && learner.warnings[0].contains("a learner goes on"));
    // Node 1 had been removed from the range, and does not know.
    let stale = range(2, ("", ""), (1, 2), &[1, 3, 4]);
    let mut others = node(2, vec![]);
    others.routes = vec![range(2, ("", ""), (1, 5), &[3, 4, 5])];
    let stray = kept(&[node(1, vec![replica(&stale, 1, (9, 9))]), others]);
    assert!(stray.warnings.iter().any(|words| words.contains("newer epoch 1.5")), "{:?}", stray.warnings);
    assert_eq!(stray.order.after.and_then(|of| of.epoch).map(|epoch| epoch.conf_ver), Some(5 + LEAP));
}

#[test]
fn in_a_joint_configuration_either_half_may_be_the_one_that_is_lost() {
    let mut of = range(2, ("", ""), (1, 4), &[1, 2, 3, 4]);
    for (at, role) in [(0, ReplicaRole::VoterIncoming), (3, ReplicaRole::VoterOutgoing)] {
        of.replicas[at].role = role.into();
    }
    // New: 1, 2, 3. Old: 2, 3, 4.
    let plan = made(&[node(1, vec![replica(&of, 1, (5, 5))]), node(2, vec![replica(&of, 2, (5, 5))])]);
    assert!(plan.kept[0].living_voters == (1, 3) && plan.kept[0].warnings[0].contains("half done"), "{plan:?}");
}

/// Node 1 has not applied the split that node 2 knows: the newer version has the span.
#[test]
fn a_split_that_one_survivor_has_not_applied_takes_its_part_all_the_same() {
    let whole = range(2, ("", ""), (1, 4), &[1, 3, 4]);
    let child = range(9, ("m", ""), (2, 4), &[2, 3, 4]);
    let plan = made(&[node(1, vec![replica(&whole, 1, (5, 5))]), node(2, vec![replica(&child, 2, (5, 5))])]);
    let [left, right] = &plan.kept[..] else { panic!("{plan:?}") };
    let after = left.order.after.as_ref().expect("it says");
    assert_eq!((&after.end[..], after.epoch.map(|epoch| epoch.version)), (&b"m"[..], Some(2 + LEAP)));
    assert!(left.warnings[0].contains("split into range 9"), "{:?}", left.warnings);
    assert_eq!(right.order.after.as_ref().map(|of| &of.start[..]), Some(&b"m"[..]));
    assert!(plan.gaps.is_empty(), "{plan:?}");
    // The whole span is another one's by now.
    let merged = range(1_000, ("", ""), (5, 4), &[2, 3, 4]);
    let plan = made(&[node(1, vec![replica(&whole, 1, (5, 5))]), node(2, vec![replica(&merged, 2, (5, 5))])]);
    assert!(plan.kept.len() == 1 && plan.left[0].contains("range 1000 is newer"), "{plan:?}");
}

#[test]
fn what_is_lost_wholly_is_named_and_begins_again_only_on_request() {
    let of = range(2, ("", "f"), (3, 4), &[1, 3, 4]);
    let gone = range(3, ("f", "p"), (3, 4), &[3, 4, 5]);
    let older = range(4, ("f", ""), (2, 4), &[3, 4, 5]);
    let last = range(5, ("p", ""), (3, 4), &[1, 2, 3]);
    let mut second = node(2, vec![replica(&last, 2, (5, 5))]);
    second.routes = vec![gone, older, of.clone()];
    let surveys = [node(1, vec![replica(&of, 1, (5, 5)), replica(&last, 1, (5, 5))]), second];
    let plan = made(&surveys);
    assert_eq!(plan.gaps, [(1, "f".into(), "p".into())]);
    assert_eq!(plan.lost.iter().map(|of| of.range_id).collect::<Vec<_>>(), [3], "not what was before the split");
    assert!(plan.recreated.is_empty());
    let again = flotilla_placement::recovery::plan(&Wish { recreate_empty: true, ..wish() }, &surveys).expect("a plan");
    let [(node, born)] = &again.recreated[..] else { panic!("{again:?}") };
    assert!([1, 2].contains(node) && born.replicas[0].node_id == *node);
    assert_eq!((born.range_id, &born.start[..], born.epoch.map(|of| of.conf_ver)), (3, &b"f"[..], Some(4 + LEAP)));
}

#[test]
fn the_system_range_comes_first() {
    let of = range(2, ("", ""), (3, 4), &[1, 3, 4]);
    let mut system = range(1, ("", ""), (1, 4), &[1, 4, 5]);
    system.keyspace_id = flotilla_proto::ids::SYSTEM_KEYSPACE.0;
    let also = range(0, ("", ""), (1, 1), &[1, 4, 5]);
    let also = v1::RangeDescriptor { keyspace_id: 9, range_id: 1_000, ..also };
    let replicas = [of, also, system].iter().map(|of| replica(of, 1, (5, 5))).collect();
    let plan = made(&[node(1, replicas), node(2, vec![])]);
    assert_eq!(plan.kept.iter().map(|kept| kept.order.range_id).collect::<Vec<_>>(), [1, 2, 1_000]);
}

/// It may have joined just before the others were lost; not named, it would come back as a member like any.
#[test]
fn a_node_that_nobody_alive_has_heard_of_may_be_given_up_and_a_person_is_told() {
    let lost = range(2, ("", ""), (3, 4), &[1, 3, 4]);
    let surveys = [node(1, vec![replica(&lost, 1, (5, 5))]), node(2, vec![])];
    let made = plan(&Wish { dead: [3, 4, 5, 8].into(), ..wish() }, &surveys).expect("it is possible");
    assert!(made.warnings.len() == 1 && made.warnings[0].contains("heard of node 8"), "{:?}", made.warnings);
    assert!(made.wish.dead.contains(&8));
    assert_eq!(plan(&wish(), &surveys).expect("it is possible").warnings, [""; 0]);
}

#[test]
fn a_plan_is_refused_while_a_quorum_lives_or_somebody_is_missing() {
    let lost = range(2, ("", ""), (3, 4), &[1, 3, 4]);
    let well = range(2, ("", ""), (3, 4), &[1, 2, 3]);
    let lost_on_1 = || node(1, vec![replica(&lost, 1, (5, 5))]);
    let both = || vec![node(1, vec![replica(&well, 1, (5, 5))]), node(2, vec![replica(&well, 2, (5, 5))])];
    refused(&wish(), &both(), "have a quorum without nodes {3, 4, 5}");
    refused(&Wish { dead: BTreeSet::new(), ..wish() }, &both(), "no node is named dead");
    refused(&wish(), &[lost_on_1()], "node 2 does not answer, and is not named dead");
    refused(&Wish { dead: [2, 3, 4, 5].into(), ..wish() }, &both(), "node 2 is named dead, and answers");
    let mut other = node(2, vec![]);
    other.cluster_id = 8;
    refused(&wish(), &[lost_on_1(), other], "2 clusters");
    let mut connected = node(2, vec![]);
    connected.nodes[3].live = true;
    refused(&wish(), &[lost_on_1(), connected], "node 2 has a connection to it");
    let mut led = lost_on_1();
    led.replicas[0].leader_node_id = 3;
    refused(&wish(), &[led.clone(), node(2, vec![])], "follows node 3");
    assert_eq!(unsettled(&[led, node(2, vec![])]), [2]);
    assert!(unsettled(&[lost_on_1(), node(2, vec![])]).is_empty());
}

/// A replica sleeps, and follows a node that lives and has let its own go: its keyspace is dropped. It would hold up the
/// recovery for ever, for only placement could tell it (the simulation's seed 73200).
#[test]
fn whoever_follows_a_living_node_that_has_no_replica_is_not_led() {
    let lost = range(2, ("", ""), (3, 4), &[1, 2, 3]);
    let mut asleep = replica(&lost, 1, (5, 5));
    asleep.leader_node_id = 2;
    let surveys = [node(1, vec![asleep]), node(2, vec![])];
    assert!(unsettled(&surveys).is_empty());
    assert_eq!(made(&surveys).kept.iter().map(|of| of.node).collect::<Vec<_>>(), [1]);
}

#[test]
fn what_one_survivor_knows_to_be_committed_the_others_are_told() {
    let of = range(2, ("", ""), (3, 4), &[1, 2, 3, 4, 5]);
    let mut ahead = replica(&of, 1, (5, 14));
    (ahead.commit_index, ahead.commit_term) = (12, 5);
    let surveys = [node(1, vec![ahead.clone()]), node(2, vec![replica(&of, 2, (5, 14))])];
    let told = committed(&surveys);
    assert_eq!(told.keys().copied().collect::<Vec<_>>(), [2]);
    assert_eq!(told[&2], [v1::CommittedEntry { range_id: 2, index: 12, term: 5 }]);
    let without = [node(1, vec![ahead]), node(2, vec![replica(&of, 2, (5, 11))])];
    assert!(committed(&without).is_empty(), "its log does not reach so far");
}

/// Others have heard that the range was split, and one half of it merged again: routes with that version would never give way.
#[test]
fn what_is_behind_a_newer_version_of_its_span_is_raised_above_it() {
    let of = range(2, ("", "m"), (3, 4), &[1, 3, 4]);
    let mut other = node(2, vec![]);
    other.routes = vec![range(8, ("f", "z"), (6, 2), &[3, 4, 5])];
    let plan = made(&[node(1, vec![replica(&of, 1, (5, 5))]), other]);
    let [kept] = &plan.kept[..] else { panic!("{plan:?}") };
    let after = kept.order.after.clone().expect("it says");
    assert_eq!((&after.end[..], after.epoch.map(|epoch| epoch.version)), (&b"m"[..], Some(6 + LEAP)));
    assert!(kept.warnings.iter().any(|words| words.contains("version 6")), "{:?}", kept.warnings);
}

/// A frozen source goes on when it has the proof; if nothing is left of its target nobody has one, and the plan says so.
#[test]
fn a_frozen_range_is_told_when_nothing_is_left_of_its_target() {
    let (source, target) = (range(3, ("m", ""), (3, 4), &[1, 3, 4]), range(2, ("", "m"), (3, 4), &[1, 3, 4]));
    let frozen = v1::SurveyedReplica { frozen_for_range_id: 2, ..replica(&source, 1, (5, 5)) };
    for (lost, words) in [(true, "of which nothing is left"), (false, "once that one says")] {
        let beside = if lost { vec![] } else { vec![replica(&target, 1, (5, 5))] };
        let plan = made(&[node(1, [vec![frozen.clone()], beside].concat()), node(2, vec![])]);
        let kept = plan.kept.iter().find(|kept| kept.order.range_id == 3).expect("it goes on");
        assert_eq!(kept.order.merge_target_lost, lost);
        assert!(kept.warnings.iter().any(|said| said.contains(words)), "{:?}", kept.warnings);
    }
}

/// A service that is loaded for this reign, behind one of reign 7.
fn loaded(reign: u64) -> Service {
    let first = Bootstrap {
        cluster_id: 1,
        cluster_name: "c".into(),
        node: v1::NodeRecord { node_id: 1, ..Default::default() },
        replicas: 3,
        split_bytes: 0,
        ranges: 1,
    };
    let seventh = Change::Reign(v1::ReignRecord { reign: 7, loads: 1, ..Default::default() }).encode();
    let mut records: BTreeMap<_, _> = first.first_records().into_iter().collect();
    records.insert(seventh.0, seventh.1.expect("a record"));
    let records = records.into_iter().map(|(key, value)| (key, value, 1));
    Service::load(reign, records, Duration::ZERO, Config::default()).expect("valid")
}

/// The records that the service's next write sets; it is acknowledged.
fn written(service: &mut Service) -> Vec<Change> {
    let writes = service.take_effects().writes;
    let [write] = &writes[..] else { panic!("{writes:?}") };
    let sets = write.request.ops.iter().map(|op| match op.op.clone() {
        Some(v1::write_op::Op::Put(put)) => (put.key, put.value),
        Some(v1::write_op::Op::CompareAndSwap(swap)) => (swap.key, swap.new_value.unwrap_or_default()),
        other => panic!("{other:?}"),
    });
    let changes = sets.map(|(key, value)| Change::decode(&key, &value).expect("a record")).collect();
    service.written(Duration::ZERO, write.id, Outcome::Applied);
    changes
}

#[test]
fn ids_that_a_lost_system_range_gave_out_are_not_given_out_again() {
    let reign = |changes: &[Change]| matches!(changes, [Change::Reign(_)]);
    assert!(reign(&written(&mut loaded(8))), "an election is no recovery");
    let [Change::Reign(_), leapt @ ..] = &written(&mut loaded(7 + LEAP))[..] else { panic!("the reign comes first") };
    assert_eq!(leapt.len(), 4);
    for change in leapt {
        let Change::Next(counter, next) = change else { panic!("{change:?}") };
        assert!(*next > if *counter == Counter::Node { 1_000 } else { LEAP }, "{change:?}");
    }
}

/// That it had joined was lost with the system range's majority.
#[test]
fn a_node_that_placement_has_forgotten_is_given_up_all_the_same() {
    let request = || {
        let dead_nodes = vec![6, 5_000];
        Request::RecordRecovery(v1::RecordRecoveryRequest { plan_id: "p".into(), dead_nodes, what: String::new() })
    };
    let mut service = loaded(8);
    written(&mut service);
    service.request(Duration::ZERO, 1, request());
    assert!(format!("{:?}", service.take_effects().answers).contains("there is no node 6"));
    let mut service = loaded(7 + LEAP);
    written(&mut service);
    service.request(Duration::ZERO, 1, request());
    let changes = written(&mut service);
    let removed =
        |id: u64| changes.iter().any(|of| matches!(of, Change::Node(node) if node.removed && node.node_id == id));
    assert!(removed(6) && removed(5_000) && changes.contains(&Change::Next(Counter::Node, 5_001)), "{changes:?}");
}

/// A keyspace whose only range is gone is known to placement alone, once the survivors have started again (the
/// simulation's seed 12541).
#[test]
fn a_person_is_told_that_survivors_do_not_know_the_keyspaces_yet() {
    let untold =
        |id: u64, replicas: Vec<v1::SurveyedReplica>| v1::SurveyResponse { keyspaces: vec![], ..node(id, replicas) };
    let lost = range(2, ("", ""), (3, 4), &[1, 3, 4]);
    let lost = [replica(&lost, 1, (5, 5))];
    let words = "plan again once placement runs";
    let made = made(&[untold(1, lost.to_vec()), untold(2, vec![])]);
    assert!(made.warnings.len() == 1 && made.warnings[0].contains(words), "{:?}", made.warnings);
    assert_eq!(self::made(&[untold(1, lost.to_vec()), node(2, vec![])]).warnings, [""; 0], "one that knows is enough");
    let well = range(2, ("", ""), (3, 4), &[1, 2, 3]);
    let well = [1, 2].map(|id| untold(id, vec![replica(&well, id, (5, 5))]));
    refused(&wish(), &well, words);
}

#[test]
fn what_is_left_of_a_dropped_keyspace_does_not_go_on() {
    let dropped = v1::Keyspace { keyspace_id: 1, state: v1::KeyspaceState::Dropped.into(), ..Default::default() };
    let [of_it, other] = [1, 2].map(|keyspace_id| {
        let of = range(1 + keyspace_id, ("", ""), (1, 1), &[1, 3, 4]);
        replica(&v1::RangeDescriptor { keyspace_id, ..of }, 1, (5, 5))
    });
    let mut survey = node(1, vec![of_it, other]);
    let kept = |plan: Plan| plan.kept.iter().map(|kept| kept.order.range_id).collect::<Vec<_>>();
    assert_eq!(kept(made(&[survey.clone(), node(2, vec![])])), [2, 3]);
    survey.keyspaces.push(dropped);
    assert_eq!(kept(made(&[survey, node(2, vec![])])), [3]);
}

/// Nobody alive has heard of an earlier recovery: what it leapt to is not leapt to again.
#[test]
fn a_later_plan_leaps_further_even_if_it_knows_no_more() {
    let lost = range(2, ("", ""), (1, 1), &[1, 3, 4]);
    let surveys = [node(1, vec![replica(&lost, 1, (5, 5))]), node(2, vec![])];
    let leapt = |unix_ms: u64| {
        let plan = plan(&Wish { unix_ms, ..wish() }, &surveys).expect("a plan");
        let (term, after) = (plan.kept[0].order.term, plan.kept[0].order.after.clone().expect("it says"));
        [term, after.epoch.expect("it has one").conf_ver, after.replicas[0].replica_id]
    };
    let (first, second) = (leapt(1_700_000_000_000), leapt(1_700_000_060_000));
    assert!(first.iter().zip(second).all(|(first, second)| second >= first + 60_000), "{first:?} {second:?}");
    assert!(leapt(0).iter().all(|to| *to > LEAP), "whatever the clock says");
}

/// Four nodes, and a keyspace with eight ranges that was asked for while node 4 was silent: some are to begin there.
fn to_begin_on_a_silent_node() -> Toy {
    let mut toy = grown(1, 4, 1);
    toy.nodes.get_mut(&4).expect("joined").up = false;
    let ranges = v1::CreateKeyspaceRequest { name: "new".into(), ranges: 8, ..Default::default() };
    toy.send(Request::CreateKeyspace(ranges));
    toy
}

/// The system range goes on with what one survivor has of it.
fn goes_back(toy: &mut Toy, to: Records) {
    toy.records = to;
    toy.term += LEAP;
    toy.reload();
}

fn begun(toy: &Toy) -> Vec<u64> {
    let groups = toy.groups.values().filter(|group| group.descriptor.keyspace_id == 2);
    groups.map(|group| group.descriptor.range_id).collect()
}

/// Ranges of a silent node that was not told of them begin elsewhere, under their ids. That they did was lost with the
/// system range's majority, and the node is the first that the next service hears of (the simulation's seed 47021).
#[test]
fn a_range_that_may_have_begun_before_a_recovery_is_not_begun_again() {
    let mut toy = to_begin_on_a_silent_node();
    let survivors = toy.records.clone();
    toy.until("begun on the others", |toy| begun(toy).len() == 8);
    let before = begun(&toy);
    goes_back(&mut toy, survivors);
    toy.nodes.get_mut(&4).expect("joined").restart();
    // The toy itself fails where a range is born twice.
    toy.exchange(4);
    toy.until("rest", |toy| toy.at_rest(3));
    assert_eq!(begun(&toy), before);
    toy.check_settled();
}

/// Whoever was there may hold the only replica, however long it is silent; a node that came later holds none that is not
/// known. Under their old ids nothing begins any more: nobody can say what became of them.
#[test]
fn ranges_that_never_began_before_a_recovery_begin_once_all_nodes_of_that_time_were_heard() {
    let mut toy = to_begin_on_a_silent_node();
    let survivors = toy.records.clone();
    goes_back(&mut toy, survivors);
    let newcomer = toy.join(109);
    toy.nodes.get_mut(&newcomer).expect("joined").up = false;
    toy.steps(200);
    // The next service has it from the records that there was a recovery.
    toy.reload();
    toy.steps(200);
    assert_eq!(begun(&toy), []);
    let told = format!("{:?}", toy.ask(Request::Status(v1::PlacementStatusRequest {})));
    assert!(told.contains("nodes [4], of which nothing is heard, may hold them"), "{told}");
    toy.nodes.get_mut(&4).expect("joined").restart();
    toy.until("all begun", |toy| begun(toy).len() == 8 && toy.at_rest(3));
    assert!(begun(&toy).iter().all(|range| *range > LEAP), "{:?}", begun(&toy));
    toy.check_settled();
}
