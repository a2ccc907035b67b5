//! `keyspace` and `--keyspace`: separate keys, settings, and what is refused with which words.

use super::cluster;
use crate::support::cli::at;
use crate::support::eventually;
use crate::support::shared::shared;

#[test]
fn a_keyspace_lives_from_create_to_drop() {
    let words = ["--replicas", "3", "--boundary", "after:/", "--split-bytes", "64MiB", "--ranges", "4"];
    let made = cluster(&[&["keyspace", "create", "tks.life", "--output", "json"][..], &words].concat()).exits(0).json();
    assert_eq!((&made["name"], &made["replicas"], &made["state"]), (&"tks.life".into(), &3.into(), &"normal".into()));
    assert_eq!((&made["boundary"]["byte"], &made["split_bytes"]), (&47.into(), &(64 << 20).into()));
    let listed = cluster(&["keyspace", "list"]).exits(0);
    assert!(listed.text().contains("tks.life") && listed.text().contains("after:/"), "{listed:?}");
    eventually("its four ranges to be known everywhere", || {
        cluster(&["keyspace", "show", "tks.life", "--output", "json"]).exits(0).json()["ranges"] == 4
    });

    // The same key, twice.
    cluster(&["kv", "put", "tks/key", "inside", "--keyspace", "tks.life"]).exits(0);
    cluster(&["kv", "put", "tks/key", "outside"]).exits(0);
    assert_eq!(cluster(&["kv", "--keyspace", "tks.life", "get", "tks/key"]).exits(0).stdout, b"inside");
    assert_eq!(cluster(&["kv", "get", "tks/key"]).exits(0).stdout, b"outside");
    assert_eq!(cluster(&["kv", "scan", "--count", "--keyspace", "tks.life"]).exits(0).text(), "1\n");

    let set = cluster(&["keyspace", "set", "tks.life", "--split-bytes", "never", "--output", "json"]).exits(0).json();
    assert_eq!((&set["split_bytes"], &set["boundary"]["byte"], &set["replicas"]), (&0.into(), &47.into(), &3.into()));
    for node in shared().addresses() {
        let show = at(&node, &["keyspace", "show", "tks.life"]).exits(0);
        assert!(show.text().contains("ranges split at never"), "{show:?}");
    }

    cluster(&["keyspace", "drop", "tks.life"]).fails(2, &["tks.life", "--yes", "nothing was done"]);
    cluster(&["keyspace", "drop", "tks.life", "--yes"]).exits(0);
    eventually("the keyspace to be gone", || cluster(&["kv", "get", "tks/key", "--keyspace", "tks.life"]).code == 1);
    cluster(&["kv", "get", "tks/key", "--keyspace", "tks.life"]).fails(1, &["tks.life", "keyspace list"]);
    assert_eq!(cluster(&["kv", "get", "tks/key"]).exits(0).stdout, b"outside", "other keyspaces keep their keys");
    let again = cluster(&["keyspace", "create", "tks.life", "--output", "json"]).exits(0).json();
    assert!(again["keyspace_id"].as_u64() > made["keyspace_id"].as_u64(), "{again} behind {made}");
}

/// Whichever node is asked, at once: that placement has answered is enough.
#[test]
fn a_keyspace_that_was_just_created_is_served_by_every_node() {
    let nodes = shared().addresses();
    for (round, node) in nodes.iter().cycle().take(6).enumerate() {
        let name = format!("tks.new{round}");
        at(&nodes[round % 2], &["keyspace", "create", &name, "--ranges", "3"]).exits(0);
        at(node, &["kv", "put", "k", "v", "--keyspace", &name]).exits(0);
        let next = &nodes[(round + 1) % nodes.len()];
        assert_eq!(at(next, &["kv", "get", "k", "--keyspace", &name]).exits(0).stdout, b"v");
        let last = &nodes[(round + 2) % nodes.len()];
        let list = at(last, &["range", "list", "--keyspace", &name, "--output", "json"]).exits(0).json();
        assert_eq!(list.as_array().map(Vec::len), Some(3), "{list}");
        // Dropped, it is not refused by a node that has not heard of that: what is there is gone all the same.
        at(node, &["keyspace", "drop", &name, "--yes"]).exits(0);
    }
}

#[test]
fn bad_names_and_settings_are_refused_with_what_would_be_allowed() {
    cluster(&["keyspace", "create", "tks.taken"]).exits(0);
    cluster(&["keyspace", "create", "tks.taken"]).fails(1, &["tks.taken", "hint: "]);
    cluster(&["keyspace", "create", "a/b"]).fails(1, &["'/'", "a-z"]);
    cluster(&["keyspace", "create", "system"]).fails(1, &["reserved", "another name"]);
    cluster(&["keyspace", "drop", "system", "--yes"]).fails(1, &["the cluster's own records", "hint: "]);
    cluster(&["keyspace", "set", "system", "--split-bytes", "never"]).fails(1, &["never split", "hint: "]);
    cluster(&["keyspace", "set", "tks.taken", "--replicas", "2"]).fails(2, &["2 replicas instead of 3", "--yes"]);
    cluster(&["keyspace", "create", "tks.many", "--ranges", "1001"]).fails(1, &["1001 ranges", "1 to 1000"]);
    let more = cluster(&["keyspace", "set", "tks.taken", "--replicas", "5"]).exits(0);
    assert!(more.stderr.contains("there are 3 nodes"), "{more:?}");
    cluster(&["keyspace", "create", &"x".repeat(65)]).fails(1, &["65", "64"]);
    cluster(&["keyspace", "set", "tks.taken", "--split-bytes", "10"]).fails(1, &["10 bytes", "1024"]);
    for words in [&["show"][..], &["drop", "--yes"], &["set", "--replicas", "1"]] {
        cluster(&[&["keyspace"], words, &["tks.none"]].concat()).fails(1, &["tks.none", "keyspace list"]);
    }
    for command in [&["get", "k"][..], &["put", "k", "v"], &["scan"], &["delete", "k"]] {
        cluster(&[&["kv", "--keyspace", "tks.none"], command].concat()).fails(1, &["tks.none", "keyspace list"]);
    }
    for (words, expected) in [
        (&["create", "x", "--replicas", "0"][..], &["1..=7"][..]),
        (&["create", "x", "--replicas", "8"], &["1..=7"]),
        (&["create", "x", "--ranges", "0"], &["--ranges"]),
        (&["create", "x", "--boundary", "prefix:0"], &["1 to 255"]),
        (&["create", "x", "--boundary", "after:ab"], &["one byte"]),
        (&["create", "x", "--boundary", "here"], &["any", "after:", "prefix:"]),
        (&["create", "x", "--split-bytes", "0"], &["never"]),
        (&["create", "x", "--split-bytes", "many"], &["MiB"]),
        (&["set", "x"], &["--replicas", "--boundary", "--split-bytes"]),
    ] {
        cluster(&[&["keyspace"], words].concat()).fails(2, expected);
    }
}
