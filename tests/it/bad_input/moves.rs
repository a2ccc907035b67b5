//! Moves of replicas, and settings, that cannot be or would lower safety: refused with the reason and with what would
//! be allowed. One cluster of four nodes; the one without a replica of the range gets one trouble after the other.

use serde_json::Value;

use crate::support::cli::{Ran, at};
use crate::support::cluster::Cluster;
use crate::support::eventually;

const ARGS: &[&str] = &["--initial-ranges", "1", "--node-dead-after-ms", "6000"];

/// A range with three replicas.
struct Scene {
    cluster: Cluster,
    range: String,
    /// Nodes that have one.
    voters: Vec<u64>,
    /// The one that has none.
    free: u64,
}

impl Scene {
    fn new() -> Self {
        let mut cluster = Cluster::new(4);
        cluster.set_args(ARGS);
        cluster.start_all();
        let mut scene = Self { cluster, range: String::new(), voters: vec![1], free: 0 };
        scene.run(&["keyspace", "create", "moved", "--replicas", "3"]).exits(0);
        let list = scene.run(&["range", "list", "--keyspace", "moved", "--output", "json"]).exits(0).json();
        scene.range = list[0]["range_id"].to_string();
        scene.settle();
        scene
    }

    /// Asks a node that has a replica.
    fn run(&self, words: &[&str]) -> Ran {
        at(&self.cluster.node(self.voters[0]).client, words)
    }

    fn show(&self) -> Value {
        let show = self.run(&["range", "show", &self.range, "--output", "json"]);
        if show.code == 0 { show.json() } else { Value::Null }
    }

    fn voters_now(&self) -> Vec<u64> {
        let replicas = self.show()["replicas"].as_array().cloned().unwrap_or_default();
        let voters = replicas.iter().filter(|replica| replica["role"] == "voter");
        let mut nodes: Vec<u64> = voters.filter_map(|replica| replica["node_id"].as_u64()).collect();
        nodes.sort_unstable();
        nodes
    }

    /// Waits until balance leaves the range alone.
    fn settle(&mut self) {
        let mut voters = Vec::new();
        eventually("three voters, and no order under way", || {
            voters = self.voters_now();
            let refused = self.move_it(voters.first().copied().unwrap_or(0), 9).stderr;
            voters.len() == 3 && refused.contains("node 9 is not known") && self.voters_now() == voters
        });
        self.free = (1..=4).find(|node| !voters.contains(node)).expect("of four nodes");
        self.voters = voters;
    }

    fn move_it(&self, from: u64, to: u64) -> Ran {
        let (from, to) = (from.to_string(), to.to_string());
        self.run(&["range", "move", &self.range, "--from", &from, "--to", &to, "--wait", "30s"])
    }

    fn restart_free(&mut self, args: &[&str]) {
        assert_eq!(self.cluster.terminate(self.free), Some(0));
        self.cluster.set_args(args);
        self.cluster.start(self.free);
        self.cluster.wait_node(self.free);
        self.cluster.set_args(ARGS);
    }
}

#[test]
fn moves_to_unknown_used_drained_full_silent_and_dead_nodes_are_refused() {
    let mut scene = Scene::new();
    let (from, used, free) = (scene.voters[0], scene.voters[1], scene.free);
    let held = "its replicas are on nodes ";
    scene.move_it(from, 9).fails(1, &["node 9 is not known", &format!("hint: it may go to node {free}")]);
    let already = format!("has a replica on node {used} already");
    scene.move_it(from, used).fails(1, &[&already, held, &format!("it may go to node {free}")]);
    scene.move_it(free, 9).fails(1, &[&format!("no replica on node {free}"), held]);
    let node = free.to_string();
    scene.run(&["node", "drain", &node]).exits(0);
    scene.move_it(from, free).fails(1, &[&format!("node {free} is being drained"), "hint: it may go to no node now"]);
    scene.run(&["node", "drain", &node, "--undo"]).exits(0);

    // No disk is that large.
    scene.restart_free(&[ARGS, &["--disk-margin-bytes", "1152921504606846976"]].concat());
    let full = format!("node {free} has no disk space to spare");
    eventually("the full disk to be the reason", || {
        let refused = scene.move_it(from, free);
        assert_eq!(refused.code, 1, "{refused:?}");
        refused.stderr.contains(&full)
    });
    scene.restart_free(ARGS);
    given_up(&mut scene);
    losing_replicas(&mut scene);
}

/// What was true when it was decided need not stay so: the caller is told.
fn given_up(scene: &mut Scene) {
    scene.settle();
    let (from, free) = (scene.voters[0], scene.free);
    eventually("the disk to count as free again", || !scene.move_it(from, 9).stderr.contains("no node now"));
    scene.cluster.signal(free, libc::SIGSTOP);
    let given_up = scene.move_it(from, free);
    let said = |words: String| given_up.stderr.contains(&words);
    let told = said(format!("given up: nothing is heard of node {free}")) || said(format!("node {free} is silent"));
    assert!(given_up.code == 1 && told && said("hint: ".into()), "{given_up:?}");
    // The learner that was made for it goes again, and its node counts as dead before long.
    let dead = format!("node {free} is dead");
    eventually("it to be dead", || scene.move_it(from, free).stderr.contains(&dead));
    scene.cluster.signal(free, libc::SIGCONT);
    eventually("it to be fit again", || !scene.move_it(from, 9).stderr.contains("no node now"));
}

/// Fewer replicas are an explicit wish; and while one of two is down, the other one stays where it is.
fn losing_replicas(scene: &mut Scene) {
    scene.settle();
    let words = ["keyspace", "set", "moved", "--replicas", "2"];
    scene.run(&words).fails(2, &["2 replicas instead of 3", "--yes", "nothing was done"]);
    scene.run(&[&words[..], &["--yes"]].concat()).exits(0);
    eventually("two voters", || scene.voters_now().len() == 2);
    let voters = scene.voters_now();
    let (kept, lost) = (voters[0], voters[1]);
    let free = (1..=4).find(|node| !voters.contains(node)).expect("of four nodes");
    scene.voters = vec![free];
    scene.cluster.kill(lost);
    let (from, to) = (kept.to_string(), free.to_string());
    let words = ["range", "move", &scene.range, "--from", &from, "--to", &to, "--wait", "2s", "--timeout", "2s"];
    let refused = scene.run(&words);
    // Before placement has heard of the death the order is taken; the range's leader has the last word.
    let reasons = ["no leader that could carry it out", "too few replicas live", "the move is not done"];
    assert!(refused.code == 1 && reasons.iter().any(|reason| refused.stderr.contains(reason)), "{refused:?}");
    assert!(refused.stderr.contains("hint: "), "{refused:?}");
    scene.cluster.start(lost);
    scene.cluster.wait_node(lost);
    eventually("the range to move once both are up", || {
        scene.voters_now().contains(&free) || scene.move_it(kept, free).code == 0
    });
}
