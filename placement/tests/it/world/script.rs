//! Scenario files: what the cluster is, what happens to it, and what must come of it. One command a line:
//!
//! ```text
//! cluster nodes=5 zones=a,b,c racks=2 ranges=100 bytes=1M replicas=3 split=64M seed=7   dead-after=30 borders-kept=60
//! run 60 | rest 600          seconds; rest: until nothing has moved for 20 of them, which must be within the time
//! kill 3 | start 3 | full 3 | roomy 3 | slow 3 50 (ms) | label 3 zone=b | join zone=a | split 4 900 KEY | move-service
//! heat 5-24 1000 | noise 20  reads a second of ranges; percent by which they vary
//! lead 7 3 | move 7 1 4     by hand: node 3 leads range 7, past the service; its replica on node 1 goes to node 4
//! constrain require=disk=ssd forbid=zone=a prefer=zone=b later | replicas 5 | merging off | merging min=4
//! decommission 3 | recommission 3 | drain 3 | maintain 3 600 | merge 2 3
//! refuse WORDS : COMMAND     it is refused, and the refusal has these words
//! until QUANTITY N SECONDS    steps until it is at most that, which must be within the time
//! mark                       counts of moves, transfers and merges begin anew
//! expect QUANTITY [ARGUMENT] <=|>=|= NUMBER
//! problem WORDS              a line of problems() has these words
//! ```

use std::time::Duration;

use flotilla_placement::{Config, Request};
use flotilla_proto::v1;

use super::judge::Judge;
use super::{JUDGED_ALL_MAX, Spec, World, label};

fn number(text: &str) -> u64 {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 1 << 10),
        Some(b'M') => (&text[..text.len() - 1], 1 << 20),
        Some(b'G') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    digits.parse::<u64>().unwrap_or_else(|_| panic!("{text:?} is no number")) * unit
}

/// `3`, or `3-7`.
fn span(text: &str) -> std::ops::RangeInclusive<u64> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    number(first)..=number(last)
}

fn a_label(text: &str) -> v1::Label {
    let (key, value) = text.split_once('=').unwrap_or_else(|| panic!("{text:?} is no label"));
    label(key, value)
}

/// What follows the word `cluster`.
pub fn spec(text: &str) -> Spec {
    let config = Config {
        node_dead_after: Duration::from_secs(30),
        // One route in each answer: what nodes are told of routes is not looked at here, and no node needs it.
        answer_routes_bytes: 1,
        order_time_limit: Duration::from_secs(60),
        ..Config::default()
    };
    let mut spec = Spec {
        nodes: 3,
        zones: Vec::new(),
        racks: 0,
        ranges: 30,
        bytes: 1 << 20,
        replicas: 3,
        split_bytes: 64 << 20,
        seed: 1,
        config,
    };
    for word in text.split_whitespace() {
        let (key, value) = word.split_once('=').unwrap_or_else(|| panic!("{word:?} is no setting"));
        match key {
            "nodes" => spec.nodes = number(value),
            "zones" => spec.zones = value.split(',').map(str::to_owned).collect(),
            "racks" => spec.racks = number(value),
            "ranges" => spec.ranges = number(value) as u32,
            "bytes" => spec.bytes = number(value),
            "replicas" => spec.replicas = number(value) as u32,
            "split" => spec.split_bytes = number(value),
            "seed" => spec.seed = number(value),
            "dead-after" => spec.config.node_dead_after = Duration::from_secs(number(value)),
            "borders-kept" => spec.config.borders_kept = Duration::from_secs(number(value)),
            "cold-for" => spec.config.merge_cold_for = Duration::from_secs(number(value)),
            other => panic!("there is no setting {other:?}"),
        }
    }
    spec
}

/// Runs a scenario; it panics with the line that fails. The world at its end.
pub fn run(text: &str) -> World {
    let mut world = None;
    for (at, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        // Shown if the test fails: the last one is the one.
        println!("line {}, second {}: {line}", at + 1, world.as_ref().map_or(0, |world: &World| world.steps));
        match line.split_once(' ') {
            Some(("cluster", rest)) => {
                let mut new = World::new(&spec(rest));
                (0..5).for_each(|_| new.step());
                world = Some(new);
            }
            _ => command(world.as_mut().expect("a scenario begins with a cluster"), line),
        }
    }
    world.expect("a scenario begins with a cluster")
}

fn command(world: &mut World, line: &str) {
    let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
    let words: Vec<&str> = rest.split_whitespace().collect();
    match (name, words.as_slice()) {
        ("run", [seconds]) => (0..number(seconds)).for_each(|_| world.step()),
        ("rest", [seconds]) => rest_within(world, number(seconds)),
        ("kill", [nodes]) => span(nodes).for_each(|node| world.kill(node)),
        ("start", [nodes]) => span(nodes).for_each(|node| world.start(node)),
        ("full", [node]) => world.hosts.get_mut(&number(node)).expect("a node").full = true,
        ("roomy", [node]) => world.hosts.get_mut(&number(node)).expect("a node").full = false,
        ("slow", [node, ms]) => slow(world, number(node), number(ms)),
        ("label", [node, labels @ ..]) => {
            let labels = labels.iter().map(|label| a_label(label)).collect();
            world.hosts.get_mut(&number(node)).expect("a node").labels = labels;
        }
        ("join", labels) => drop(world.join(labels.iter().map(|label| a_label(label)).collect())),
        ("split", [range, id, at]) => world.split(number(range), number(id), at),
        ("move-service", []) => world.move_service(),
        ("heat", [ranges, heat]) => span(ranges).for_each(|range| world.set_heat(range, number(heat))),
        ("lead", [range, node]) => world.lead(number(range), number(node)),
        ("noise", [percent]) => world.noise = number(percent),
        ("until", [quantity, most, seconds]) => {
            let begun = world.steps;
            loop {
                let now = world.quantity(quantity, "");
                if now <= number(most) as usize {
                    break;
                }
                assert!(world.steps - begun < number(seconds), "{quantity} is {now}");
                world.step();
            }
        }
        ("mark", []) => {
            (world.judge.moves, world.judge.transfers, world.judge.merges) = (0, 0, 0);
        }
        ("expect", [quantity, op, value]) => expect(world, quantity, "", op, value),
        ("expect", [quantity, argument, op, value]) => expect(world, quantity, argument, op, value),
        ("problem", _) => {
            let problems = world.service.problems();
            assert!(problems.iter().any(|line| line.contains(rest)), "{problems:#?}");
        }
        ("refuse", _) => {
            let (words, command) = rest.split_once(" : ").expect("refuse WORDS : COMMAND");
            let error = world.ask(request(command)).expect_err("it was to be refused");
            let said = format!("{error}; {}", error.hint());
            assert!(said.contains(words), "{said}");
        }
        _ => drop(world.ask(request(line)).unwrap_or_else(|error| panic!("{error}; {}", error.hint()))),
    }
}

fn slow(world: &mut World, node: u64, ms: u64) {
    for (id, host) in &mut world.hosts {
        host.sync_us = if *id == node { ms * 1_000 } else { host.sync_us.max(1_000) };
    }
}

fn request(line: &str) -> Request {
    let words: Vec<&str> = line.split_whitespace().collect();
    let set = v1::SetKeyspaceRequest { name: "default".into(), ..Default::default() };
    match words.as_slice() {
        ["decommission", node] => {
            Request::DecommissionNode(v1::DecommissionNodeRequest { node_id: number(node), undo: false })
        }
        ["recommission", node] => {
            Request::DecommissionNode(v1::DecommissionNodeRequest { node_id: number(node), undo: true })
        }
        ["drain", node] => Request::DrainNode(v1::DrainNodeRequest { node_id: number(node), undo: false }),
        ["maintain", node, seconds] => Request::MaintainNode(v1::MaintainNodeRequest {
            node_id: number(node),
            duration_ms: number(seconds) * 1_000,
        }),
        ["move", range, from, to] => Request::MoveReplica(v1::MoveReplicaRequest {
            range_id: number(range),
            from_node_id: number(from),
            to_node_id: number(to),
            timeout_ms: 300_000,
        }),
        ["merge", left, right] => Request::MergeRanges(v1::MergeRangesRequest {
            left_range_id: number(left),
            right_range_id: number(right),
            timeout_ms: 300_000,
        }),
        ["replicas", count] => {
            Request::SetKeyspace(v1::SetKeyspaceRequest { replicas: Some(number(count) as u32), ..set })
        }
        ["merging", "off"] => {
            let merge = Some(v1::MergePolicy { off: true, ..Default::default() });
            Request::SetKeyspace(v1::SetKeyspaceRequest { merge, ..set })
        }
        ["merging", least] => {
            let ranges_min = number(least.strip_prefix("min=").expect("min=N")) as u32;
            let merge = Some(v1::MergePolicy { ranges_min, ..Default::default() });
            Request::SetKeyspace(v1::SetKeyspaceRequest { merge, ..set })
        }
        ["constrain", rules @ ..] => {
            let mut constraints = v1::Constraints::default();
            for rule in rules.iter().filter(|rule| **rule != "later") {
                let (kind, label) = rule.split_once('=').expect("kind=key=value");
                match kind {
                    "require" => constraints.require.push(a_label(label)),
                    "forbid" => constraints.forbid.push(a_label(label)),
                    "prefer" => constraints.prefer_leaders_in.push(a_label(label)),
                    other => panic!("there is no constraint {other:?}"),
                }
            }
            let nodes_will_come = rules.contains(&"later");
            Request::SetKeyspace(v1::SetKeyspaceRequest { constraints: Some(constraints), nodes_will_come, ..set })
        }
        _ => panic!("there is no command {line:?}"),
    }
}

fn rest_within(world: &mut World, seconds: u64) {
    let begun = world.steps;
    world.quiet = 0;
    while world.quiet < 20 || !world.service.orders().is_empty() {
        assert!(world.steps - begun < seconds, "no rest within {seconds} s: {:#?}", world.service.orders());
        world.step();
    }
    // No range was passed over that something is to be done about.
    for range in world.groups.keys().take_while(|_| world.groups.len() <= JUDGED_ALL_MAX) {
        let thought = world.service.explain(*range);
        assert_eq!(thought.next, None, "range {range}: {thought}");
    }
}

fn expect(world: &World, quantity: &str, argument: &str, op: &str, value: &str) {
    let (found, value) = (world.quantity(quantity, argument), number(value) as usize);
    let holds = match op {
        "<=" => found <= value,
        ">=" => found >= value,
        "=" => found == value,
        other => panic!("there is no comparison {other:?}"),
    };
    if holds {
        return;
    }
    let lacking = world.lacking().into_iter().take(3);
    let shown: Vec<String> = lacking.map(|range| format!("{range}: {:?}", world.service.explain(range))).collect();
    panic!("{quantity} {argument} is {found}, not {op} {value}; {:?} {shown:#?}", world.judge_counts());
}

impl World {
    fn judge_counts(&self) -> (usize, usize, usize) {
        let Judge { moves, transfers, merges, .. } = &self.judge;
        (*moves, *transfers, *merges)
    }
}
