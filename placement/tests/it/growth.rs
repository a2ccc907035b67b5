//! A cluster that grows, loses nodes and drains them: what it comes to, in how many moves.

use flotilla_placement::Request;
use flotilla_proto::v1;

use crate::toy::Toy;

/// A cluster of so many nodes, at rest.
pub fn grown(ranges: u32, nodes: u64, seed: u64) -> Toy {
    let mut toy = Toy::new(ranges, seed);
    for store in 2..=nodes {
        toy.join(100 + store);
    }
    toy.until("all ranges at their replicas", |toy| toy.at_rest(usize::min(nodes as usize, 3)));
    toy
}

fn rest_without_moves(toy: &mut Toy) {
    let (moves, transfers) = (toy.moves, toy.transfers);
    toy.steps(100);
    assert_eq!(toy.refused, 0, "a leader had to refuse an order");
    assert_eq!((toy.moves, toy.transfers), (moves, transfers), "something moves although nothing happened");
    toy.check_settled();
}

#[test]
fn three_fresh_nodes_soon_hold_three_replicas_of_every_range() {
    let mut toy = Toy::new(16, 1);
    toy.join(102);
    toy.join(103);
    let steps = toy.until("17 ranges with 3 replicas", |toy| toy.at_rest(3));
    // A change of replicas takes the toy five steps, a transfer one.
    assert!(steps <= 12, "{steps} steps");
    let led: Vec<usize> = (1..=3).map(|node| toy.led_by(node)).collect();
    assert!(led.iter().all(|led| (5..=7).contains(led)), "{led:?}");
    rest_without_moves(&mut toy);
}

/// A node that a person has given up is removed before anybody found it dead; what else it held has a majority, and is
/// rebuilt all the same.
#[test]
fn what_a_node_held_that_a_recovery_gives_up_is_rebuilt() {
    let mut toy = grown(8, 4, 1);
    let node = 4;
    assert!(toy.replicas_on(node) > 0);
    toy.nodes.get_mut(&node).expect("joined").up = false;
    let record = v1::RecordRecoveryRequest { plan_id: "p".into(), dead_nodes: vec![node], what: String::new() };
    // Refused as long as it counts as living.
    let mut steps = 0;
    while toy.ask(Request::RecordRecovery(record.clone())).is_err() {
        toy.step();
        steps += 1;
        assert!(steps < 100, "it is never believed to be gone");
    }
    assert!(toy.replicas_on(node) > 0, "it is not found dead yet");
    toy.until("replicas elsewhere", |toy| toy.replicas_on(node) == 0 && toy.at_rest(3));
}

#[test]
fn two_nodes_keep_one_replica_because_two_would_outlive_less() {
    let mut toy = Toy::new(4, 1);
    toy.join(102);
    toy.steps(50);
    assert!(toy.at_rest(1), "{}", toy.figures());
    toy.join(103);
    toy.until("three replicas", |toy| toy.at_rest(3));
}

#[test]
fn a_fourth_node_gets_its_share_and_then_nothing_moves() {
    let mut toy = grown(16, 3, 1);
    let before = toy.moves;
    let node = toy.join(104);
    toy.until("a share for the fourth", |toy| toy.replicas_on(node) >= 12 && toy.at_rest(3));
    toy.until("leaders on the fourth", |toy| toy.led_by(node) >= 3 && toy.at_rest(3));
    assert!(toy.moves - before <= 13, "{} moves for a share of 12 or 13", toy.moves - before);
    let counts: Vec<usize> = (1..=4).map(|node| toy.replicas_on(node)).collect();
    assert!(counts.iter().all(|count| (12..=14).contains(count)), "{counts:?}");
    rest_without_moves(&mut toy);
}

#[test]
fn a_short_absence_moves_no_replica() {
    let mut toy = grown(16, 4, 1);
    let moves = toy.moves;
    toy.nodes.get_mut(&2).expect("joined").up = false;
    toy.steps(50);
    toy.nodes.get_mut(&2).expect("joined").restart();
    toy.until("rest", |toy| toy.at_rest(3));
    assert_eq!(toy.moves, moves);
    toy.until("leaders again", |toy| toy.led_by(2) >= 3);
}

#[test]
fn a_dead_nodes_replicas_are_rebuilt_and_it_comes_back_to_none() {
    let mut toy = grown(16, 4, 1);
    toy.nodes.get_mut(&2).expect("joined").up = false;
    toy.steps(95);
    assert_ne!(toy.replicas_on(2), 0, "moved before the node was dead");
    toy.until("nothing on the dead node", |toy| toy.replicas_on(2) == 0 && toy.at_rest(3));
    // It missed that it was removed from its ranges: it is told.
    assert!(!toy.nodes[&2].replicas.is_empty());
    toy.nodes.get_mut(&2).expect("joined").restart();
    toy.until("a share again", |toy| toy.replicas_on(2) >= 12 && toy.at_rest(3));
    rest_without_moves(&mut toy);
}

#[test]
fn without_a_fourth_node_a_dead_ones_replicas_stay_until_there_is_one() {
    let mut toy = grown(8, 3, 1);
    toy.nodes.get_mut(&3).expect("joined").up = false;
    toy.steps(300);
    assert!(toy.groups.values().all(|group| group.voters().len() == 3), "{}", toy.figures());
    let node = toy.join(104);
    toy.until("rebuilt on the new node", |toy| toy.replicas_on(node) == 9 && toy.replicas_on(3) == 0);
    toy.until("rest", |toy| toy.at_rest(3));
}

#[test]
fn a_drained_node_leads_nothing_until_the_draining_ends() {
    let mut toy = grown(16, 3, 1);
    let drain = |undo| Request::DrainNode(v1::DrainNodeRequest { node_id: 2, undo });
    toy.ask(drain(false)).expect("drained");
    toy.until("no leaders on it", |toy| toy.led_by(2) == 0 && toy.at_rest(3));
    rest_without_moves(&mut toy);
    toy.ask(drain(true)).expect("not drained");
    toy.until("leaders again", |toy| toy.led_by(2) >= 5 && toy.at_rest(3));
}

#[test]
fn the_draining_of_the_system_ranges_leader_moves_that_too() {
    let mut toy = grown(4, 3, 1);
    let leader = toy.groups[&1].leader;
    toy.ask(Request::DrainNode(v1::DrainNodeRequest { node_id: leader, undo: false })).expect("drained");
    toy.until("another leader", |toy| toy.led_by(leader) == 0);
}

#[test]
fn a_full_node_is_given_nothing() {
    let mut toy = grown(16, 3, 1);
    let node = toy.join(104);
    toy.nodes.get_mut(&node).expect("joined").full = true;
    toy.steps(100);
    assert_eq!(toy.replicas_on(node), 0);
    toy.nodes.get_mut(&node).expect("joined").full = false;
    toy.until("its share", |toy| toy.replicas_on(node) >= 12 && toy.at_rest(3));
}

#[test]
fn large_ranges_move_few_at_a_time() {
    let mut toy = Toy::new(16, 1);
    for group in toy.groups.values_mut() {
        group.bytes = 100 << 20;
    }
    toy.join(102);
    toy.join(103);
    toy.until("rest", |toy| {
        let orders = toy.service.orders();
        let sends = |record: &&v1::OrderRecord| record.order.as_ref().is_some_and(|order| !order.add_nodes.is_empty());
        assert!(orders.iter().filter(sends).count() <= 2, "node 1 sends more than two large ranges at once");
        toy.at_rest(3)
    });
}

#[test]
fn bytes_are_balanced_where_counts_are_equal() {
    let mut toy = grown(12, 3, 1);
    // Single replicas, so that where bytes lie is not decided by the number of nodes.
    let set = v1::SetKeyspaceRequest { name: "default".into(), replicas: Some(1), ..Default::default() };
    toy.ask(Request::SetKeyspace(set)).expect("set");
    toy.until("single replicas", |toy| {
        let of_default = |group: &&crate::toy::Group| group.descriptor.range_id != 1;
        toy.service.orders().is_empty() && toy.groups.values().filter(of_default).all(|g| g.voters().len() == 1)
    });
    for group in toy.groups.values_mut().filter(|group| group.leader == 1 && group.descriptor.range_id != 1) {
        group.bytes = 1 << 30;
    }
    let bytes = |toy: &Toy, node| -> u64 {
        toy.groups.values().filter(|group| group.holds(node)).map(|group| group.bytes).sum()
    };
    toy.until("bytes on other nodes too", |toy| (2..=3).all(|node| bytes(toy, node) >= 1 << 30));
    toy.until("rest", |toy| toy.service.orders().is_empty());
    rest_without_moves(&mut toy);
}

#[test]
fn balance_ends_whatever_the_sizes() {
    for seed in 1..=60 {
        let mut toy = grown(10 + (seed % 30) as u32, 3, seed);
        let set = v1::SetKeyspaceRequest {
            name: "default".into(),
            replicas: Some(1 + 2 * (seed % 2) as u32),
            ..Default::default()
        };
        toy.ask(Request::SetKeyspace(set)).expect("set");
        for range in toy.groups.keys().copied().collect::<Vec<_>>() {
            let bytes = [1_000, 40 << 20, 300 << 20, 2 << 30][toy.rng.below(4) as usize] + toy.rng.below(1 << 20);
            toy.groups.get_mut(&range).expect("a range").bytes = bytes;
        }
        for store in 104..=105 {
            toy.join(store);
        }
        let moves = toy.moves;
        toy.steps(400);
        toy.until("rest", |toy| toy.service.orders().is_empty());
        assert!(toy.moves - moves < 80, "seed {seed}: {} moves", toy.moves - moves);
        rest_without_moves(&mut toy);
    }
}

/// pd#11143: an order whose target is dead is not waited for.
#[test]
fn a_node_that_dies_in_the_middle_of_moves_leaves_no_order_and_no_learner_behind() {
    for seed in 1..20 {
        let mut toy = grown(16, 3, seed);
        let node = toy.join(104);
        toy.steps(seed as usize % 10);
        toy.nodes.get_mut(&node).expect("joined").up = false;
        toy.until("rest without it", |toy| toy.replicas_on(node) == 0 && toy.at_rest(3));
        rest_without_moves(&mut toy);
    }
}

#[test]
fn seven_replicas_and_back_to_one() {
    let mut toy = grown(6, 7, 1);
    for replicas in [7, 5, 2, 4, 1] {
        for name in ["default", "system"] {
            let set = v1::SetKeyspaceRequest { name: name.into(), replicas: Some(replicas), ..Default::default() };
            toy.ask(Request::SetKeyspace(set)).expect("set");
        }
        toy.until("as many replicas as asked for", |toy| toy.at_rest(replicas as usize));
    }
    rest_without_moves(&mut toy);
}

#[test]
fn split_ranges_are_found_and_balanced() {
    let mut toy = grown(1, 3, 1);
    while toy.groups.len() < 25 {
        let ranges: Vec<u64> = toy.groups.keys().copied().collect();
        let range = ranges[toy.rng.below(ranges.len() as u64) as usize];
        toy.split(range);
        toy.steps(3);
    }
    toy.until("rest", |toy| toy.at_rest(3));
    let led: Vec<usize> = (1..=3).map(|node| toy.led_by(node)).collect();
    assert!(led.iter().max().expect("three") - led.iter().min().expect("three") <= 3, "{led:?}");
    rest_without_moves(&mut toy);
}
