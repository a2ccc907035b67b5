//! Settings that change what a running node does: from a file, read again on SIGHUP.

use flotilla_router::{Client, ClientConfig};

use crate::support::cli::{at, run_until_refused};
use crate::support::cluster::Cluster;
use crate::support::{eventually, runtime};

#[test]
fn a_file_sets_what_is_logged_and_how_reads_are_done_and_is_read_again_on_sighup() {
    let mut cluster = Cluster::new(1);
    let file = cluster.directory().join("flotilla.toml");
    let log = cluster.directory().join("flotilla.log");
    let settings = |level: &str, more: &str| {
        let text = format!("slow-request-ms = 0\nread-mode = \"quorum\"\nlog-level = \"{level}\"\n{more}");
        std::fs::write(&file, text).expect("a file for the test");
    };
    settings("info", "");
    let (file, log_file) = (file.to_str().expect("a plain path"), log.to_str().expect("a plain path"));
    cluster.set_args(&["--config", file, "--log-file", log_file]);
    cluster.start_all();
    let logged = |words: &[&str]| {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.lines().any(|line| words.iter().all(|word| line.contains(word)))
    };
    let address = cluster.node(1).client.clone();
    at(&address, &["kv", "put", "k", "v"]).exits(0);
    at(&address, &["kv", "get", "k"]).exits(0);

    // Every request is slow where nothing may take any time.
    eventually("a slow write with the time of each stage", || {
        logged(&["slow", "write", "total_micros=", "queue_micros=", "log_micros=", "commit_micros=", "apply_micros="])
    });
    eventually("a slow read", || logged(&["slow", "get", "total_micros="]));
    runtime().block_on(async {
        let client = Client::connect([address.clone()], ClientConfig::default()).await.expect("it serves");
        let counters = client.node_status_at(&address).await.expect("it answers").counters.expect("always there");
        assert!(counters.reads_quorum > 0 && counters.reads_lease == 0, "{counters:?}");
    });

    settings("debug", "cluster-name = \"test\"\nballast-bytes = 7\n");
    cluster.signal(1, libc::SIGHUP);
    eventually("word of the new level", || logged(&["log-level is now debug"]));
    // A flag still wins over the file, so the ballast has not changed.
    settings("warn,flotilla=info", "node-dead-after-ms = 400000\n");
    cluster.signal(1, libc::SIGHUP);
    eventually("word of what needs a restart", || logged(&["at the next start", "node-dead-after-ms"]));
    assert!(!logged(&["at the next start", "ballast-bytes"]), "{}", std::fs::read_to_string(&log).unwrap_or_default());
    settings("loud=9", "");
    cluster.signal(1, libc::SIGHUP);
    eventually("word of what is wrong", || logged(&["log-level", "loud=9"]));
    at(&address, &["kv", "get", "k"]).exits(0);
    assert_eq!(cluster.terminate(1), Some(0));
}

#[test]
fn a_log_file_that_cannot_be_written_is_named() {
    let mut cluster = Cluster::new(1);
    cluster.set_args(&["--log-file", "/nowhere/flotilla.log"]);
    run_until_refused(&mut cluster.command(1)).fails(1, &["/nowhere/flotilla.log"]);
    assert!(!cluster.node(1).data.exists(), "nothing was made");
}
