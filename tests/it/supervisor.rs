//! `flotilla run`: a local cluster in one command, as scripts run it, without a terminal.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flotilla_router::{Client, ClientConfig};

use crate::support::cli::{at, run};
use crate::support::cluster::{BINARY, binary, end_with_this_thread};
use crate::support::ports::free_base_port;
use crate::support::supervisor::{Supervisor, runs};
use crate::support::{eventually, runtime};

/// A command in a directory of its own.
fn supervise(directory: &std::path::Path, base_port: u16) -> Command {
    let mut command = binary();
    command.current_dir(directory).args(["run", "--data", "data", "--base-port", &base_port.to_string()]);
    command
}

/// Types a printed line into a shell.
fn typed(line: &str) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", line]).stdin(std::process::Stdio::null());
    end_with_this_thread(&mut command);
    command
}

#[test]
fn the_whole_show_without_hands() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let ran = run(supervise(directory.path(), free_base_port()).arg("--once"), None).exits(0);
    assert!(ran.text().lines().any(|line| line.starts_with("ready: ")), "{}", ran.text());
    assert!(!ran.text().contains('\x1b'), "no colours without a terminal: {}", ran.text());
    assert_eq!(ran.stderr, "");
}

#[test]
fn a_cluster_is_shown_loses_a_node_takes_it_back_and_resumes() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let base_port = free_base_port();
    let mut supervisor = Supervisor::start(&mut supervise(directory.path(), base_port));
    let (mut pids, addresses) = supervisor.wait_ready();
    let expected: Vec<String> = (0..3).map(|node| format!("127.0.0.1:{}", base_port + 100 * node)).collect();
    assert_eq!(addresses, expected.join(","));
    assert_eq!(pids.len(), 3, "{:?}", supervisor.seen);
    assert!(pids.iter().all(|pid| runs(*pid)));
    supervisor.wait_line("the last line of the head", |line| line == "Ctrl-C ends all nodes.");
    assert!(!supervisor.seen.iter().any(|line| line.contains('\x1b')), "no colours without a terminal");

    // The lines to paste, with the binary's full path.
    let printed = supervisor.seen.clone();
    let find = |words: &str| printed.iter().find(|line| line.contains(words)).unwrap_or_else(|| panic!("{printed:?}"));
    assert!(find("kv put").starts_with(BINARY), "{}", find("kv put"));
    run(&mut typed(find("kv put")), None).exits(0);
    assert_eq!(run(&mut typed(find("kv get")), None).exits(0).stdout, b"world");
    assert_eq!(run(&mut typed(find("range list")), None).exits(0).text().lines().count(), 18);
    let mut second = supervise(directory.path(), base_port);
    run(&mut second, None).fails(1, &["error:", "is in use", "hint:"]);
    run(&mut typed(find("kill -9")), None).exits(0);

    supervisor.wait_line("word of the death", |line| line.contains("was killed (signal 9)"));
    supervisor.wait_line("announcement of the line", |line| line.contains("To start it again"));
    let start_line = supervisor.next_line();
    assert!(start_line.starts_with(BINARY) && start_line.contains(" start "), "{start_line}");
    supervisor.wait_line("word of the time without a leader", |line| line.contains("have leaders again"));
    assert_eq!(at(&addresses, &["kv", "get", "hello"]).exits(0).stdout, b"world");
    let mut again = typed(&format!("exec {start_line}")).spawn().expect("bash is there");
    supervisor.wait_line("word of its return", |line| line.contains("is up again"));
    supervisor.wait_line("word of its being level", |line| line.contains("is level with the others"));
    // A node that looked for it while it was gone looks again within a second.
    eventually("all to be well", || at(&addresses, &["status", "--check"]).code == 0);

    pids.push(again.id());
    assert_eq!(supervisor.end(libc::SIGTERM), Some(0), "{:?}", supervisor.seen);
    // Its pid is the test's to wait for; an orderly stop is one by its own exit code.
    let ended = again.wait().expect("the child is ours");
    assert_eq!(ended.code(), Some(0), "a node started by hand ends with the supervisor");
    for pid in &pids {
        assert!(!runs(*pid), "process {pid} was left behind");
    }
    resume_and_die(directory.path(), base_port);
}

/// Goes on with the data that is there; a supervisor that is killed takes its nodes with it.
fn resume_and_die(directory: &std::path::Path, base_port: u16) {
    let mut supervisor = Supervisor::start(&mut supervise(directory, base_port));
    let (pids, addresses) = supervisor.wait_ready();
    assert_eq!(at(&addresses, &["kv", "get", "hello"]).exits(0).stdout, b"world");
    assert_eq!(supervisor.end(libc::SIGKILL), None);
    eventually("the nodes to end with their supervisor", || !pids.iter().any(|pid| runs(*pid)));
    // Which harms nothing.
    let mut supervisor = Supervisor::start(&mut supervise(directory, base_port));
    let (_, addresses) = supervisor.wait_ready();
    assert_eq!(at(&addresses, &["kv", "get", "hello"]).exits(0).stdout, b"world");
    assert_eq!(supervisor.end(libc::SIGINT), Some(0), "{:?}", supervisor.seen);
}

#[test]
fn data_that_does_not_fit_the_command_line_is_left_alone() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let base_port = free_base_port();
    let mut supervisor = Supervisor::start(supervise(directory.path(), base_port).args(["--nodes", "1"]));
    let (pids, _) = supervisor.wait_ready();
    assert_eq!(pids.len(), 1);
    assert_eq!(supervisor.end(libc::SIGTERM), Some(0), "{:?}", supervisor.seen);
    run(supervise(directory.path(), base_port).args(["--nodes", "3"]), None).fails(2, &["1 node", "--data"]);
    // A store that is gone does not come back empty under its old id.
    std::fs::remove_dir_all(directory.path().join("data/node-1")).expect("the test's own");
    run(&mut supervise(directory.path(), base_port), None).fails(1, &["node-1", "hint:"]);
}

/// An order to the supervisor of the cluster in this directory.
fn order(directory: &std::path::Path, words: &[&str]) -> crate::support::cli::Ran {
    run(binary().current_dir(directory).arg("run").args(words).args(["--data", "data"]), None)
}

#[test]
fn a_node_is_added_and_all_are_restarted_by_order_under_load() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    order(directory.path(), &["add-node"]).fails(1, &["no cluster", "hint:", "flotilla run"]);
    let mut supervisor = Supervisor::start(&mut supervise(directory.path(), free_base_port()));
    let (_, addresses) = supervisor.wait_ready();
    supervisor.wait_line("the last line of the head", |line| line == "Ctrl-C ends all nodes.");
    let runtime = runtime();
    let (stop, writers) = write(&runtime, &addresses);

    let added = order(directory.path(), &["add-node"]).exits(0);
    assert!(added.text().contains("node 4 has joined"), "{added:?}");
    eventually("node 4 to get its share", || {
        let node = at(&addresses, &["node", "show", "4", "--output", "json"]).exits(0).json();
        node["replicas"].as_u64() >= Some(8) && node["leaders"].as_u64() > Some(0)
    });
    order(directory.path(), &["restart", "9"]).fails(1, &["no node 9", "1 to 4"]);
    for node in ["2", "4", "1", "3"] {
        let restarted = order(directory.path(), &["restart", node]).exits(0);
        for words in ["stopped in order", "is started again", "is level with the others"] {
            assert!(restarted.text().contains(&format!("node {node} {words}")), "\"{words}\": {restarted:?}");
        }
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        let written = runtime.block_on(writer).expect("no write failed");
        assert!(written > 0);
    }
    assert_eq!(supervisor.end(libc::SIGTERM), Some(0), "{:?}", supervisor.seen);
    assert!(!supervisor.seen.iter().any(|line| line.contains("To start it again")), "no death was told of");
    order(directory.path(), &["restart", "2"]).fails(1, &["no cluster", "hint:"]);
}

/// Clients that write and read what they wrote, until they are told to stop; how often, if nothing failed.
fn write(runtime: &tokio::runtime::Runtime, addresses: &str) -> (Arc<AtomicBool>, Vec<tokio::task::JoinHandle<u64>>) {
    let stop = Arc::new(AtomicBool::new(false));
    let addresses: Vec<String> = addresses.split(',').map(str::to_owned).collect();
    let writer = |writer: u64| {
        let (addresses, stop) = (addresses.clone(), Arc::clone(&stop));
        runtime.spawn(async move {
            let config = ClientConfig { timeout: Duration::from_secs(20), ..ClientConfig::default() };
            let client = Client::connect(addresses, config).await.expect("the cluster serves");
            let mut number = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                let key = format!("{}{writer}", char::from(b'A' + (number % 26) as u8));
                client.put(key.clone(), number.to_string()).await.expect("an order breaks no write");
                let record = client.get(key).await.expect("an order breaks no read").expect("it was written");
                assert_eq!(record.value, number.to_string());
            }
            number
        })
    };
    (Arc::clone(&stop), (0..4).map(writer).collect())
}
