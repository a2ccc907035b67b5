//! Data directories that are not what the start assumes: refused in words, and left as they are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::support::cli::{at, flotilla, run_until_refused};
use crate::support::cluster::Cluster;

/// All files below a directory with their contents.
fn snapshot(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("the test's own directory") {
            let path = entry.expect("the test's own directory").path();
            match path.is_dir() {
                true => folders.push(path),
                false => drop(files.insert(path.clone(), std::fs::read(&path).expect("the test's own file"))),
            }
        }
    }
    files
}

#[test]
fn an_empty_directory_is_no_store_without_bootstrap() {
    let cluster = Cluster::new(1);
    let node = cluster.node(1);
    let data = node.data.to_str().expect("a plain path");
    let listen = ["--client-listen", &node.client, "--peer-listen", &node.peer, "--http-listen", &node.http];
    let words = [&["start", "--data", data][..], &listen].concat();
    flotilla(&words).fails(1, &[data, "holds no store", "--bootstrap", "--join", "--data"]);
    assert!(!node.data.exists(), "nothing was made");
}

#[test]
fn a_directory_of_somebody_else_is_left_alone() {
    let cluster = Cluster::new(1);
    let data = cluster.node(1).data.clone();
    std::fs::create_dir(&data).expect("the test's own directory");
    std::fs::write(data.join("thesis.txt"), "years of work").expect("the test's own file");
    let before = snapshot(&data);
    run_until_refused(&mut cluster.command(1)).fails(1, &["thesis.txt", "not a flotilla data directory"]);
    assert_eq!(snapshot(&data), before);
}

#[test]
fn a_store_that_is_locked_newer_or_of_another_cluster_is_refused_and_left_alone() {
    let mut cluster = Cluster::new(1);
    cluster.start_all();
    let address = cluster.node(1).client.clone();
    at(&address, &["kv", "put", "k", "v"]).exits(0);
    locked(&cluster);
    assert_eq!(cluster.terminate(1), Some(0));

    of_another_cluster(&mut cluster);
    newer(&cluster);
    cluster.start_all();
    assert_eq!(at(&address, &["kv", "get", "k"]).exits(0).stdout, b"v");
    assert!(cluster.log(1).contains("--bootstrap did nothing"), "{}", cluster.log(1));
}

/// A second process on the same directory, with ports of its own.
fn locked(cluster: &Cluster) {
    let node = cluster.node(1);
    let mut other = Cluster::new(1);
    other.set_args(&["--data", node.data.to_str().expect("a plain path")]);
    let pid = cluster.pid(1).expect("it runs").to_string();
    run_until_refused(&mut other.command(1)).fails(1, &["in use by another process", &pid]);
    flotilla(&["debug", "store", node.data.to_str().expect("a plain path")]).fails(1, &["in use", &pid]);
    at(&node.client, &["kv", "get", "k"]).exits(0);
}

fn of_another_cluster(cluster: &mut Cluster) {
    let data = cluster.node(1).data.display().to_string();
    cluster.set_args(&["--cluster-name", "other"]);
    run_until_refused(&mut cluster.command(1)).fails(1, &[&data, "cluster \"test\"", "cluster \"other\""]);
    cluster.set_args(&[]);
}

fn newer(cluster: &Cluster) {
    let data = &cluster.node(1).data;
    let identity = data.join("IDENTITY");
    let kept = std::fs::read_to_string(&identity).expect("the store has one");
    let (text, _) = kept.split_once("crc32 ").expect("it ends with a crc");
    let text = text.replace("format 1\n", "format 2\n");
    std::fs::write(&identity, format!("{text}crc32 {:08x}\n", crc32fast::hash(text.as_bytes()))).expect("a new one");
    let before = snapshot(data);
    run_until_refused(&mut cluster.command(1)).fails(1, &["has format 2", "newer program"]);
    assert!(snapshot(data) == before, "nothing may be changed in a newer directory");
    std::fs::write(&identity, kept).expect("as it was");
}
