//! Everything at once, by seeds: nodes come, die and return, ranges split, keyspaces come and go, the service is
//! lost at any write, and the network is bad. In the end all is as it should be.

use flotilla_placement::Request;
use flotilla_proto::v1;

use crate::toy::{Faults, Toy};

fn trouble(toy: &mut Toy) {
    let nodes: Vec<u64> = toy.nodes.keys().copied().collect();
    let node = nodes[toy.rng.below(nodes.len() as u64) as usize];
    let down = toy.nodes.values().filter(|node| !node.up).count();
    match toy.rng.below(10) {
        0 if nodes.len() < 7 => drop(toy.join(100 + nodes.len() as u64 + 1)),
        1 if down == 0 && nodes.len() >= 3 => toy.nodes.get_mut(&node).expect("known").up = false,
        2 | 3 => toy.nodes.values_mut().filter(|node| !node.up).for_each(|node| node.restart()),
        4 | 5 => {
            let ranges: Vec<u64> = toy.groups.keys().copied().collect();
            let range = ranges[toy.rng.below(ranges.len() as u64) as usize];
            toy.split(range);
        }
        6 => {
            let name = format!("k{}", toy.rng.below(3));
            let ranges = 1 + toy.rng.below(4) as u32;
            let request = v1::CreateKeyspaceRequest { name, ranges, ..Default::default() };
            toy.send(Request::CreateKeyspace(request));
        }
        7 => {
            let name = format!("k{}", toy.rng.below(3));
            toy.send(Request::DropKeyspace(v1::DropKeyspaceRequest { name }));
        }
        8 => {
            let undo = toy.rng.percent(70);
            toy.send(Request::DrainNode(v1::DrainNodeRequest { node_id: node, undo }));
        }
        _ => {
            let range_id = 1 + toy.rng.below(8);
            let to_node_id = 1 + toy.rng.below(7);
            let request = v1::MoveReplicaRequest { range_id, from_node_id: node, to_node_id, timeout_ms: 0 };
            toy.send(Request::MoveReplica(request));
        }
    }
}

fn run(seed: u64) {
    let mut toy = Toy::new(1 + (seed % 5) as u32, seed);
    let percent = seed % 4 * 5;
    toy.faults = Faults {
        report_lost: percent,
        answer_lost: percent,
        report_late: percent,
        report_twice: percent,
        write_unknown: percent / 2,
        removal_missed: 50,
    };
    for store in 2..=3 {
        toy.join(100 + store);
    }
    for _ in 0..60 {
        trouble(&mut toy);
        let pause = toy.rng.below(25) as usize;
        toy.steps(pause);
    }
    toy.faults = Faults::default();
    for node in toy.nodes.values_mut().filter(|node| !node.up) {
        node.restart();
    }
    for node in toy.nodes.keys().copied().collect::<Vec<_>>() {
        toy.ask(Request::DrainNode(v1::DrainNodeRequest { node_id: node, undo: true })).expect("known");
    }
    toy.until("dropped keyspaces gone", |toy| {
        let keyspaces: Vec<u64> = toy.service.keyspaces().iter().map(|keyspace| keyspace.keyspace_id).collect();
        let dropped = |group: &&crate::toy::Group| {
            group.descriptor.keyspace_id < 1_000 && !keyspaces.contains(&group.descriptor.keyspace_id)
        };
        let mut dropped = toy.groups.values().filter(dropped);
        dropped.all(|group| toy.nodes.values().all(|node| !node.replicas.contains_key(&group.descriptor.range_id)))
    });
    let offered: Vec<u64> = toy.service.keyspaces().iter().map(|keyspace| keyspace.keyspace_id).collect();
    toy.groups
        .retain(|_, group| group.descriptor.keyspace_id >= 1_000 || offered.contains(&group.descriptor.keyspace_id));
    toy.until(&format!("rest, seed {seed}"), |toy| toy.at_rest(3) && toy.late.is_empty());
    toy.steps(50);
    toy.until(&format!("rest again, seed {seed}"), |toy| toy.at_rest(3));
    let moves = toy.moves;
    toy.steps(50);
    assert_eq!(toy.moves, moves, "seed {seed}: moves at rest");
    toy.check_settled();
}

#[test]
fn two_hundred_seeds_end_at_rest() {
    for seed in (1..=198).chain([1482, 1577]) {
        // Shown if the test fails: the last one is the one to look at. The two last have found something once.
        println!("seed {seed}");
        run(seed);
    }
}
