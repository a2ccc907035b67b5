//! Rot while a node runs: the scrub finds it, the node stops, and does what its words say: it comes back with an empty
//! directory, and the others rebuild its replicas.

use std::collections::BTreeSet;
use std::fs;

use super::{Flip, Outcome, Scene, VICTIM};
use crate::support::cli::at;
use crate::support::eventually;
use crate::support::rng::{Rng, seed};

#[test]
fn a_table_that_rots_while_its_node_runs_is_found_and_the_replicas_are_rebuilt() {
    let mut rng = Rng::new(seed());
    let mut scene = Scene::new(&mut rng);
    // Tables of some size: a start flushes what the log holds.
    scene.start_sound();
    assert_eq!(scene.cluster.terminate(VICTIM), Some(0), "{}", scene.cluster.log(VICTIM));
    scene.start_sound();
    let tables = scene.files(|name| name.ends_with(".sst"));
    let before = scene.cluster.log(VICTIM).len();
    for file in &tables {
        // Compactions may have removed one since.
        Flip::anywhere(file, &mut rng).iter().for_each(Flip::apply);
    }
    assert_eq!(scene.cluster.wait_end(VICTIM), Some(1), "it stops by itself");
    let log = scene.cluster.log(VICTIM)[before..].to_owned();
    assert!(log.contains("the store is damaged") && log.contains(".sst"), "{log}");
    let mark = fs::read_to_string(scene.data().join("DAMAGED")).expect("it leaves a mark");
    assert!(mark.contains(".sst") && mark.contains("when "), "{mark}");

    // A supervisor starts it again: it says what to do, and does nothing.
    let words = match scene.outcome() {
        Outcome::Noticed(words) => words,
        Outcome::Harmless => panic!("it started on a damaged store"),
    };
    let data = scene.data().display().to_string();
    for word in [&data, ".sst", "was seen to be damaged on", "move the directory away", "--join", "DAMAGED"] {
        assert!(words.contains(word), "{word:?} is not in {words}");
    }
    as_told(&mut scene);
    scene.assert_equal();
    scene.end();
}

/// The directory is moved away, and the node started with `--join` and an empty one.
fn as_told(scene: &mut Scene) {
    fs::rename(scene.data(), scene.cluster.directory().join("kept")).expect("the test's own");
    scene.cluster.start(VICTIM);
    scene.cluster.wait_node(VICTIM);
    let address = scene.cluster.node(1).client.clone();
    eventually("every range to have three voters, none of them on the old node", || {
        let list = at(&address, &["range", "list", "--output", "json"]).exits(0).json();
        let ranges = list.as_array().cloned().unwrap_or_default();
        let whole = |range: &serde_json::Value| {
            let replicas = range["replicas"].as_array().cloned().unwrap_or_default();
            let nodes: BTreeSet<u64> = replicas.iter().filter_map(|replica| replica["node_id"].as_u64()).collect();
            replicas.iter().all(|replica| replica["role"] == "voter") && nodes == BTreeSet::from([1, 2, 4])
        };
        ranges.len() >= 5 && ranges.iter().all(whole)
    });
    let shown = at(&address, &["node", "show", "4", "--output", "json"]).exits(0).json();
    assert_eq!(shown["client_addr"], scene.cluster.node(VICTIM).client, "the same machine under a new id");
}
