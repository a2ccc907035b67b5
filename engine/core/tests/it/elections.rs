//! Votes, leases and transfers.

use flotilla_engine::config::Config;
use flotilla_engine::store::{Envelope, Event, Input, Token, Write};
use flotilla_engine::time::BootTime;
use flotilla_proto::error::Action;
use flotilla_proto::{Error, NodeId, v1};
use raft::eraftpb::MessageType;

use crate::cluster::{Cluster, EPOCH, RANGE, put, request};

const NO_LEASE: BootTime = BootTime(0);

fn vote_request(cluster: &Cluster, from: u64, to: u64, term: u64) -> Input {
    let state = cluster.summary(from);
    let message = v1::PeerMessage {
        range_id: RANGE.0,
        from_replica: from,
        to_replica: to,
        message_type: MessageType::MsgRequestVote as u32,
        term,
        index: state.last_index,
        log_term: state.term,
        ..Default::default()
    };
    Input::Message(Envelope { from: NodeId(from), to: NodeId(to), message, disk_full: false, snapshot: None })
}

fn votes(cluster: &Cluster, from: u64, to: u64) -> usize {
    cluster.sent(from, to, MessageType::MsgRequestVoteResponse).iter().filter(|sent| !sent.reject).count()
}

#[test]
fn a_range_is_born_with_its_first_replica_as_the_leader() {
    let cluster = Cluster::led_by_1(Config::default());
    assert!(cluster.view(1).lease_covers(cluster.now));
    assert_eq!(cluster.view(2).leader, Some(NodeId(1)));
    assert!(!cluster.view(2).serves && cluster.view(2).lease_until == NO_LEASE);
}

#[test]
fn a_vote_leaves_only_after_it_is_durable() {
    let mut cluster = Cluster::new(Config::default(), 3);
    cluster.disk_held.insert(2);
    cluster.tick_until(|cluster| cluster.summary(2).vote == 1);
    assert_eq!(votes(&cluster, 2, 1), 0);
    let written = cluster.node(2).log[0].items[0].raft_state.expect("the vote is to be written");
    assert_eq!(written.vote, 1);
    cluster.persist(2);
    assert_eq!(votes(&cluster, 2, 1), 1);
}

#[test]
fn a_candidate_asks_only_after_its_own_vote_is_durable() {
    let mut cluster = Cluster::new(Config::default(), 3);
    cluster.disk_held.insert(1);
    cluster.tick_until(|cluster| cluster.summary(1).vote == 1);
    assert!(cluster.sent(1, 2, MessageType::MsgRequestVote).is_empty());
    cluster.disk_held.clear();
    cluster.settle();
    assert!(cluster.summary(1).leads && cluster.sent(1, 2, MessageType::MsgRequestVote).len() == 1);
}

#[test]
fn a_vote_is_remembered_over_a_restart() {
    let mut cluster = Cluster::new(Config::default(), 3);
    cluster.cut_off.insert(3);
    cluster.tick_until(|cluster| cluster.summary(2).vote == 1);
    let term = cluster.summary(2).term;
    cluster.restart(2);
    cluster.now = cluster.now + cluster.config.vote_silence();
    assert_eq!((cluster.summary(2).term, cluster.summary(2).vote), (term, 1));
    let request = vote_request(&cluster, 3, 2, term);
    cluster.turn(2, vec![request]);
    assert_eq!(votes(&cluster, 2, 3), 0);
}

#[test]
fn no_vote_for_one_lease_after_a_restart() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.cut_off.insert(1);
    cluster.restart(2);
    let restarted = cluster.now;
    // Even one that a transfer forces: who asks cannot know what was promised here.
    let request = |cluster: &Cluster| {
        let Input::Message(mut envelope) = vote_request(cluster, 3, 2, 9) else { panic!("it is a message") };
        envelope.message.context = "CampaignTransfer".into();
        Input::Message(envelope)
    };
    while cluster.now < restarted + cluster.config.vote_silence() {
        let input = request(&cluster);
        let effects = cluster.turn(2, vec![input, Input::Tick]);
        assert!(matches!(&effects.events[..], [Event::MessageRefused { reason, .. }] if reason.contains("restarted")));
        assert_ne!(cluster.summary(2).vote, 2, "nor does it campaign");
        cluster.now = cluster.now + cluster.config.tick / 2;
    }
    let input = request(&cluster);
    cluster.turn(2, vec![input]);
    cluster.persist(2);
    assert_eq!(votes(&cluster, 2, 3), 1);
}

#[test]
fn a_group_of_one_leads_again_without_waiting_for_itself() {
    let mut cluster = Cluster::new(Config::default(), 1);
    cluster.tick_until(|cluster| cluster.view(1).serves);
    cluster.put(1, 1, "k", "v");
    cluster.settle();
    cluster.restart(1);
    cluster.turn(1, vec![]);
    cluster.settle();
    assert!(cluster.view(1).serves, "at once: there is nobody to wait for");
    for _ in 0..30 {
        cluster.tick();
        assert!(cluster.view(1).lease_covers(cluster.now), "its lease does not lapse while nothing happens");
    }
}

#[test]
fn a_lease_is_over_before_anybody_else_leads() {
    for seed in 0..10 {
        let mut cluster = Cluster::led_by_1(Config { seed, ..Config::default() });
        cluster.cut_off.insert(1);
        let mut both = 0;
        for _ in 0..60 {
            cluster.tick();
            let elected = (2..=3).any(|id| cluster.summary(id).leads);
            assert!(!elected || !cluster.view(1).lease_covers(cluster.now));
            both += usize::from(elected && cluster.summary(1).leads);
        }
        assert!((2..=3).any(|id| cluster.summary(id).leads));
        let _ = both;
        cluster.cut_off.clear();
        cluster.tick_until(|cluster| !cluster.summary(1).leads);
    }
}

/// A replica asked for a pre-vote, heard the leader again, and acknowledged that; then the answer to what it had asked
/// comes, from a candidate that has gone on to the next term: it made the replica vote for that one (the simulation's
/// seed 50685).
#[test]
fn an_answer_of_a_higher_term_does_not_end_the_promise_to_the_leader() {
    for kind in [
        MessageType::MsgRequestPreVoteResponse,
        MessageType::MsgRequestVoteResponse,
        MessageType::MsgAppendResponse,
        MessageType::MsgHeartbeatResponse,
    ] {
        let mut cluster = Cluster::led_by_1(Config::default());
        cluster.tick();
        cluster.cut_off.insert(3);
        let term = cluster.summary(1).term + 1;
        let mut answer = vote_request(&cluster, 3, 2, term);
        let Input::Message(envelope) = &mut answer else { unreachable!("it is one") };
        (envelope.message.message_type, envelope.message.reject) = (kind as u32, true);
        let asks = |cluster: &Cluster| vote_request(cluster, 3, 2, term);
        let first = asks(&cluster);
        cluster.turn(2, vec![answer, first]);
        cluster.settle();
        assert!(cluster.view(1).lease_covers(cluster.clock(1)));
        assert_eq!((votes(&cluster, 2, 3), cluster.summary(2).term), (0, term - 1), "{kind:?}");

        cluster.cut_off.insert(1);
        (0..Config::default().election_ticks).for_each(|_| cluster.tick());
        assert!(!cluster.view(1).lease_covers(cluster.clock(1)));
        let again = asks(&cluster);
        cluster.turn(2, vec![again]);
        cluster.settle();
        assert_eq!(votes(&cluster, 2, 3), 1, "the promise is over");
    }
}

#[test]
fn a_transfer_ends_the_lease_before_the_message_leaves() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.cut_off.insert(2);
    let term = cluster.summary(1).term;
    let effects = cluster.transfer(1, 1, 2);
    let ordered = |message: &Envelope| message.message.message_type == MessageType::MsgTimeoutNow as u32;
    assert!(effects.messages.iter().any(ordered), "the target is level: it is told at once");
    assert_eq!(effects.views.last().map(|view| view.lease_until), Some(NO_LEASE));
    // The message may arrive whenever it likes: no lease for the rest of the term, though Raft has given up.
    for _ in 0..30 {
        cluster.tick();
        assert_eq!((cluster.summary(1).term, cluster.view(1).lease_until), (term, NO_LEASE));
    }
    assert!(cluster.view(1).serves, "it leads on, by barriers");
    assert_eq!(cluster.transfers.len(), 1);
    assert!(matches!(&cluster.transfers[0].1, Err(error) if error.action() == Action::Retry));
    cluster.put(1, 5, "k", "v");
    cluster.settle();
    assert!(cluster.answer(5).is_ok());
}

#[test]
fn a_transfer_is_answered_when_its_target_leads() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.transfer(1, 1, 3);
    cluster.tick_until(|cluster| !cluster.transfers.is_empty());
    assert_eq!(cluster.transfers[0], (1, Ok((NodeId(3), cluster.summary(3).term))));
    cluster.tick_until(|cluster| cluster.view(3).lease_covers(cluster.now));
    cluster.transfer(3, 2, 3);
    cluster.transfer(3, 3, 9);
    cluster.transfer(1, 4, 2);
    let actions: Vec<_> =
        cluster.transfers[1..].iter().map(|(_, done)| done.as_ref().map_err(|error| error.action())).collect();
    assert!(matches!(actions[..], [Ok(_), Err(Action::Fail), Err(Action::RefreshRoute)]), "{actions:?}");
}

/// A write that meets a transfer waits for a moment, and is refused when the transfer takes longer.
#[test]
fn nothing_is_proposed_while_the_range_is_handed_over() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.cut_off.insert(2);
    cluster.transfer(1, 1, 2);
    let last = cluster.summary(1).last_index;
    cluster.put(1, 5, "k", "v");
    let soon = Write {
        token: Token(6),
        range: RANGE,
        epoch: EPOCH,
        request: request(vec![put("k", "v")]),
        deadline: cluster.now + cluster.config.tick * 2,
    };
    cluster.turn(1, vec![Input::Write(soon)]);
    let action = |cluster: &Cluster, token| cluster.answer(token).as_ref().map_err(Error::action).err();
    cluster.tick();
    assert!(cluster.writes.iter().all(|(token, _)| *token != 5), "it waits");
    cluster.tick();
    assert_eq!(action(&cluster, 5), Some(Action::Retry));
    cluster.put(1, 7, "k", "v");
    assert_eq!(action(&cluster, 6), Some(Action::Retry), "at once: its time is over sooner than that");
    assert_eq!(action(&cluster, 7), Some(Action::Retry), "at once: others have waited for long enough");
    assert_eq!(cluster.summary(1).last_index, last);
}

#[test]
fn a_write_that_comes_during_a_transfer_is_told_who_leads_then() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.transfer(1, 1, 3);
    cluster.put(1, 5, "k", "v");
    cluster.step_until(|cluster| !cluster.summary(1).leads);
    assert_eq!(cluster.view(1).leader, None, "it has voted, and does not know yet who leads");
    cluster.put(1, 6, "k", "v");
    assert!(cluster.writes.is_empty(), "both wait");
    cluster.settle();
    for token in [5, 6] {
        let Err(Error::NotLeader { leader, .. }) = cluster.answer(token) else { panic!("{:?}", cluster.answer(token)) };
        assert_eq!(*leader, Some(NodeId(3)));
    }
    cluster.put(3, 7, "k", "v");
    cluster.settle();
    assert!(cluster.answer(7).is_ok());
}

#[test]
fn a_store_that_stops_hands_its_ranges_over_and_leads_none() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.turn(1, vec![Input::Drain]);
    cluster.settle();
    let leader = cluster.leader().expect("handed over");
    assert_ne!(leader, 1);
    cluster.transfer(leader, 1, 1);
    for _ in 0..60 {
        cluster.tick();
        assert!(!cluster.summary(1).leads);
    }
}

#[test]
fn a_store_that_stops_still_lets_others_be_elected() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.turn(2, vec![Input::Drain]);
    cluster.cut_off.insert(1);
    cluster.tick_until(|cluster| cluster.summary(3).leads);
}

#[test]
fn a_target_that_did_not_hear_that_it_is_to_lead_is_told_again() {
    let mut cluster = Cluster::led_by_1(Config::default());
    cluster.transfer(1, 1, 3);
    cluster.network.retain(|sent| sent.message.message_type != MessageType::MsgTimeoutNow as u32);
    cluster.settle();
    assert!(cluster.summary(1).leads, "it was lost");
    cluster.tick();
    assert!(cluster.summary(3).leads);
}
