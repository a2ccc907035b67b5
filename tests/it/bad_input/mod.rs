//! Bad input gets a clear error that names what was wrong and what to do, the right exit code, and nothing half-done.

mod directory;
mod files;
mod moves;
mod neighbours;

use crate::support::cli::{at, flotilla, run, run_until_refused};
use crate::support::cluster::{BINARY, Cluster, binary};
use crate::support::ports::free_port;

/// A port that nobody listens on.
fn nobody() -> String {
    format!("127.0.0.1:{}", free_port())
}

#[test]
fn wrong_command_lines_exit_with_2_and_say_what_is_right() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["--adr", "x", "status"], &["--adr", "--addr"]),
        (&["kv", "got", "k"], &["got", "get"]),
        (&["kv", "get"], &["<KEY>"]),
        (&["kv", "put", "k", "v", "w"], &["w"]),
        (&["kv", "get", "k", "--timeout", "0s"], &["time-out"]),
        (&["kv", "get", "k", "--timeout", "soon"], &["unit of time"]),
        (&["kv", "get", "k", "--output", "xml"], &["text", "json"]),
        (&["kv", "get", r"a\q"], &["escape", "--hex"]),
        (&["kv", "get", "0g", "--hex"], &["hexadecimal"]),
        (&["kv", "cas", "k", "v"], &["--expect-"]),
        (&["kv", "scan", "--token", "?"], &["token"]),
        (&["kv", "scan", "--limit", "0"], &["--limit"]),
        (&["range", "show", "seven"], &["seven"]),
        (&["bench", "everything"], &["put", "ycsb-a"]),
        (&["run", "--nodes", "0"], &["--nodes"]),
        (&["run", "--base-port", "70000"], &["70000"]),
        (&["run", "--base-port", "65500"], &["--base-port"]),
        (&["start", "--bogus"], &["--bogus"]),
        (&["start", "--initial-ranges", "many"], &["--initial-ranges"]),
        (&["start", "--bootstrap", "--initial-ranges", "0", "--data", "/nowhere"], &["initial-ranges", "1 to"]),
        (&["start", "--bootstrap", "--initial-replicas", "8", "--data", "/nowhere"], &["initial-replicas", "1 to 7"]),
        (&["start", "--bootstrap", "--join", "a:1", "--data", "/nowhere"], &["begin a new cluster, or join one"]),
        (&["start", "--join", "here", "--data", "/nowhere"], &["\"here\"", "HOST:PORT"]),
        (&["start", "--node-dead-after-ms", "1", "--data", "/nowhere"], &["node-dead-after-ms", "at least"]),
        (&["start", "--client-listen", "localhost", "--data", "/nowhere"], &["client-listen", "IP:PORT"]),
        (&["start", "--http-listen", "0.0.0.0:0", "--data", "/nowhere"], &["http-listen", "--plaintext-off-loopback"]),
        (&["config", "check", "--log-level", "loud=9"], &["log-level"]),
        (&["completions", "cmd.exe"], &["bash"]),
    ];
    for (words, expected) in cases {
        let ran = flotilla(words);
        assert_eq!(ran.code, 2, "{words:?}: {ran:?}");
        for word in *expected {
            assert!(ran.stderr.contains(word), "{words:?}: \"{word}\" is not in: {}", ran.stderr);
        }
        assert!(ran.stdout.is_empty(), "{words:?}: {ran:?}");
    }
}

#[test]
fn wrong_configuration_files_exit_with_2_and_are_named() {
    let folder = tempfile::tempdir().expect("a directory for the test");
    let path = folder.path().join("flotilla.toml");
    let name = path.to_str().expect("a plain path");
    for (content, expected) in [
        ("clister-name = \"x\"", ["clister-name", "did you mean \"cluster-name\""]),
        ("initial-ranges = \"many\"", ["initial-ranges", "a whole number"]),
        ("initial-ranges = ", [name, ""]),
    ] {
        std::fs::write(&path, content).expect("a file for the test");
        for command in [&["config", "check"][..], &["config", "show"], &["start"]] {
            flotilla(&[command, &["--config", name]].concat()).fails(2, &expected);
        }
    }
    flotilla(&["start", "--config", "/nowhere/flotilla.toml"]).fails(2, &["/nowhere/flotilla.toml"]);
    let wrong = run(binary().args(["config", "check"]).env("FLOTILLA_INITIAL_RANGES", "many"), None);
    wrong.fails(2, &["FLOTILLA_INITIAL_RANGES", "a whole number"]);
}

#[test]
fn where_nobody_listens_commands_exit_with_1_and_say_how_to_start_a_cluster() {
    for words in [&["kv", "get", "k"][..], &["kv", "put", "k", "v"], &["status"], &["range", "list"], &["node", "list"]]
    {
        at(&nobody(), words).fails(1, &["error:", "hint:", "flotilla run", "--addr"]);
    }
    at("not an address", &["status"]).fails(2, &["error:", "hint:"]);
}

#[test]
fn a_port_in_use_is_named_before_anything_is_touched() {
    let cluster = Cluster::new(1);
    let node = cluster.node(1);
    for (setting, address) in
        [("client-listen", &node.client), ("peer-listen", &node.peer), ("http-listen", &node.http)]
    {
        let taken = std::net::TcpListener::bind(address).expect("it was free");
        run_until_refused(&mut cluster.command(1)).fails(1, &["error:", setting, address, "another process"]);
        drop(taken);
        assert!(!node.data.exists(), "nothing was made");
    }
}

#[test]
fn a_listener_off_loopback_is_refused_without_the_flag() {
    let mut cluster = Cluster::new(1);
    for setting in ["--client-listen", "--peer-listen", "--http-listen"] {
        cluster.set_args(&[setting, "0.0.0.0:0"]);
        let way = if setting == "--peer-listen" { "--tls-ca" } else { "--plaintext-off-loopback" };
        run_until_refused(&mut cluster.command(1)).fails(2, &[&setting[2..], "loopback", way]);
    }
    assert!(!cluster.node(1).data.exists(), "nothing was made");
}

#[test]
fn too_few_file_descriptors_are_told_with_the_number_needed() {
    let cluster = Cluster::new(1);
    let mut start = cluster.command(1);
    let words: Vec<_> = start.get_args().map(std::ffi::OsStr::to_owned).collect();
    start = std::process::Command::new("bash");
    start.args(["-c", "ulimit -n 64; exec \"$@\"", "bash", BINARY]).args(words);
    crate::support::cluster::end_with_this_thread(&mut start);
    run_until_refused(&mut start).fails(1, &["64 files", "1024", "ulimit -n"]);
}

#[test]
fn a_disk_at_its_margin_refuses_puts_and_serves_reads_and_deletes() {
    let mut cluster = Cluster::new(1);
    cluster.start_all();
    let address = cluster.node(1).client.clone();
    at(&address, &["kv", "put", "a", "1"]).exits(0);
    at(&address, &["kv", "put", "b", "2"]).exits(0);
    assert_eq!(cluster.terminate(1), Some(0));
    // No disk is that large.
    cluster.set_args(&["--disk-margin-bytes", &(1_u64 << 60).to_string()]);
    cluster.start_all();
    at(&address, &["kv", "put", "c", "3", "--timeout", "1s"]).fails(1, &["margin", "node 1", "hint:", "disk"]);
    at(&address, &["kv", "put", "a", "3", "--timeout", "1s"]).fails(1, &["margin"]);
    assert_eq!(at(&address, &["kv", "get", "a"]).exits(0).stdout, b"1");
    at(&address, &["kv", "get", "c"]).exits(4);
    at(&address, &["kv", "delete", "b"]).exits(0);
    at(&address, &["kv", "get", "b"]).exits(4);
    let status = at(&address, &["status"]).exits(0);
    assert!(status.text().contains("node 1: ") && status.text().contains("writes are refused"), "{status:?}");
    at(&address, &["status", "--check"]).exits(1);
    let list = at(&address, &["node", "list"]).exits(0);
    assert!(list.text().contains("disk full"), "{list:?}");
    assert_eq!(cluster.terminate(1), Some(0));
    // Room again: it ends by itself.
    cluster.set_args(&[]);
    cluster.start_all();
    at(&address, &["kv", "put", "c", "3"]).exits(0);
    at(&address, &["status", "--check"]).exits(0);
}
