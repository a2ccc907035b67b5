//! What a local cluster is: its nodes with their ports, directories and command lines.
//!
//! ```text
//! DATA/cluster.json    how many nodes, and whether the cluster was ever complete
//!      node-1/         the nodes' data directories
//!      node-1/log/     flotilla.log, stderr.log
//! ```
//! Node 1 begins the cluster, the others join it one after the other, so that each is given the id that it has here.
//! Once the cluster was complete, no node is told to begin one or to join again: a data directory that is gone then
//! is told, and not made anew in silence.

use std::fs;
use std::path::{Path, PathBuf};

use flotilla_store::{DirectoryState, StoreDirectory};
use serde_json::{Value, json};

use crate::cli::failure::{Failure, Result};
use crate::cli::run::NODES_MAX;

/// The cluster's name.
const CLUSTER_NAME: &str = "local";
/// Memory of a node's RocksDB.
pub const MEMORY_BYTES: u64 = 512 << 20;
/// Ranges that a new cluster begins with: enough for every node to lead some.
const RANGES: u32 = 16;
const HOST: &str = "127.0.0.1";
/// From one node's ports to the next one's.
const PORT_STEP: u32 = 100;

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlan {
    /// Its id, from 1.
    pub id: u64,
    /// Where clients connect.
    pub client: String,
    /// Where nodes connect.
    pub peer: String,
    /// Where metrics are.
    pub http: String,
    /// Its data directory.
    pub data: PathBuf,
    /// Its zone, if the cluster has any.
    pub zone: Option<String>,
}

impl NodePlan {
    /// Where it logs to.
    pub fn log_file(&self) -> PathBuf {
        self.data.join("log/flotilla.log")
    }

    /// Where its stderr goes: what does not come through the log, such as a panic.
    pub fn stderr_file(&self) -> PathBuf {
        self.data.join("log/stderr.log")
    }

    /// The three addresses that it listens on.
    pub fn addresses(&self) -> [(&'static str, &str); 3] {
        [("clients", &self.client), ("other nodes", &self.peer), ("http", &self.http)]
    }
}

/// The cluster.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The program that the nodes run.
    pub program: PathBuf,
    /// The cluster's directory.
    pub data: PathBuf,
    /// In order of their ids.
    pub nodes: Vec<NodePlan>,
    /// Whether the cluster was never complete before.
    pub fresh: bool,
    base_port: u16,
    /// 0: none.
    zones: u32,
}

impl Plan {
    /// What is to run, from the command line and from what the directory holds. Changes nothing.
    pub fn new(data: &Path, nodes: Option<u32>, zones: Option<u32>, base_port: u16) -> Result<Self> {
        let program = std::env::current_exe()
            .map_err(|error| Failure::failed(format!("cannot tell where this program is: {error}")))?;
        // Absolute, so that the lines that are printed hold anywhere.
        let data = std::path::absolute(data).map_err(|error| Failure::file("use", data, &error))?;
        let kept = Kept::read(&data)?;
        let count = match (&kept, nodes) {
            (Some(kept), Some(wanted)) if kept.nodes != wanted => {
                return Err(Failure::usage(format!(
                    "{} holds a cluster of {} nodes, not {wanted}",
                    data.display(),
                    kept.nodes
                ))
                .hint("leave --nodes out to go on with it, or name another directory with --data"));
            }
            (Some(kept), _) => kept.nodes,
            (None, wanted) => wanted.unwrap_or(3),
        };
        let zones = match (&kept, zones) {
            (Some(kept), Some(wanted)) if kept.zones != wanted => {
                return Err(Failure::usage(format!(
                    "{} holds a cluster of {} zones, not {wanted}",
                    data.display(),
                    kept.zones
                ))
                .hint("leave --zones out to go on with it, or name another directory with --data"));
            }
            (Some(kept), _) => kept.zones,
            (None, wanted) => wanted.unwrap_or(0),
        };
        let nodes = (1..=count).map(|id| node(id, base_port, zones, &data)).collect::<Result<Vec<_>>>()?;
        let plan = Self { program, data, nodes, fresh: kept.is_none_or(|kept| !kept.complete), base_port, zones };
        plan.check_stores()?;
        Ok(plan)
    }

    /// A store that is gone must not be made anew in silence.
    fn check_stores(&self) -> Result {
        for node in &self.nodes {
            let state = StoreDirectory::probe(&node.data).map_err(|error| Failure::failed(error.to_string()))?;
            if !self.fresh && !matches!(state, DirectoryState::Initialised(_)) {
                return Err(Failure::failed(format!(
                    "node {}'s store is gone: {} is empty",
                    node.id,
                    node.data.display()
                ))
                .hint("restore that directory, or begin anew with another --data"));
            }
        }
        Ok(())
    }

    /// The node that comes next, if one is added.
    pub fn next_node(&self) -> Result<NodePlan> {
        let id = u32::try_from(self.nodes.len()).unwrap_or(NODES_MAX) + 1;
        if id > NODES_MAX {
            return Err(Failure::failed(format!("a local cluster has {NODES_MAX} nodes at most")));
        }
        node(id, self.base_port, self.zones, &self.data)
    }

    /// Writes down what this cluster is.
    pub fn keep(&self, complete: bool) -> Result {
        let path = self.data.join(Kept::FILE);
        let text = json!({ "nodes": self.nodes.len(), "complete": complete, "zones": self.zones }).to_string();
        let written = fs::create_dir_all(&self.data).and_then(|()| fs::write(&path, text + "\n"));
        written.map_err(|error| Failure::file("write", &path, &error))
    }

    /// All client addresses, with commas.
    pub fn client_addresses(&self) -> String {
        self.nodes.iter().map(|node| node.client.as_str()).collect::<Vec<_>>().join(",")
    }

    /// The arguments that start a node; `new`: its store may have to be made.
    pub fn arguments(&self, node: &NodePlan, new: bool) -> Vec<String> {
        let mut words = vec!["start".to_owned()];
        for (flag, value) in [
            ("--data", node.data.display().to_string()),
            ("--cluster-name", CLUSTER_NAME.into()),
            ("--client-listen", node.client.clone()),
            ("--peer-listen", node.peer.clone()),
            ("--http-listen", node.http.clone()),
            ("--memory-bytes", MEMORY_BYTES.to_string()),
            ("--log-file", node.log_file().display().to_string()),
            ("--stop-with", std::process::id().to_string()),
        ] {
            words.extend([flag.to_owned(), value]);
        }
        if let Some(zone) = &node.zone {
            words.extend(["--label".into(), format!("zone={zone}")]);
        }
        if new && node.id == 1 {
            words.extend(["--bootstrap".into(), "--initial-ranges".into(), RANGES.to_string()]);
        } else if new {
            let others = self.nodes.iter().filter(|other| other.id != node.id).map(|other| other.client.as_str());
            words.extend(["--join".into(), others.collect::<Vec<_>>().join(",")]);
        }
        words
    }

    /// A line to paste that runs our program.
    pub fn line<S: AsRef<str>>(&self, words: impl IntoIterator<Item = S>) -> String {
        let mut line = quote(&self.program.display().to_string());
        for word in words {
            line.push(' ');
            line.push_str(&quote(word.as_ref()));
        }
        line
    }

    /// The line that starts a node again.
    pub fn start_line(&self, node: &NodePlan) -> String {
        self.line(self.arguments(node, false))
    }
}

fn node(id: u32, base_port: u16, zones: u32, data: &Path) -> Result<NodePlan> {
    let first = u32::from(base_port) + PORT_STEP * (id - 1);
    if base_port == 0 || first + 2 > u32::from(u16::MAX) {
        return Err(Failure::usage(format!(
            "--base-port {base_port}: node {id} would listen at {first} to {}",
            first + 2
        ))
        .hint("choose a smaller one, such as 7300; each node takes the next hundred"));
    }
    let at = |port: u32| format!("{HOST}:{port}");
    Ok(NodePlan {
        id: id.into(),
        client: at(first),
        peer: at(first + 1),
        http: at(first + 2),
        data: data.join(format!("node-{id}")),
        zone: (id - 1).checked_rem(zones).map(|zone| format!("z{}", zone + 1)),
    })
}

/// What a cluster's directory says about it.
struct Kept {
    nodes: u32,
    complete: bool,
    zones: u32,
}

impl Kept {
    const FILE: &str = "cluster.json";

    fn read(data: &Path) -> Result<Option<Self>> {
        let path = data.join(Self::FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Self::check_new(data).map(|()| None),
            Err(error) => return Err(Failure::file("read", &path, &error)),
        };
        let kept = serde_json::from_slice(&text).ok().and_then(|value: Value| {
            let nodes = u32::try_from(value.get("nodes")?.as_u64()?).ok()?;
            let complete = value.get("complete")?.as_bool()?;
            // Clusters of before have none.
            let zones = value.get("zones").map_or(Some(0), |zones| u32::try_from(zones.as_u64()?).ok())?;
            (1..=NODES_MAX).contains(&nodes).then_some(Self { nodes, complete, zones })
        });
        kept.map(Some).ok_or_else(|| {
            Failure::failed(format!("{} is not what `flotilla run` writes", path.display()))
                .hint("restore it, for a cluster of three nodes: {\"nodes\":3,\"complete\":true}")
        })
    }

    /// A directory that holds something else is not taken over.
    fn check_new(data: &Path) -> Result {
        let mut entries = match fs::read_dir(data) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Failure::file("read", data, &error)),
        };
        if entries.next().is_none() {
            return Ok(());
        }
        Err(Failure::failed(format!("{} is neither empty nor a cluster of `flotilla run`", data.display()))
            .hint("name another directory with --data"))
    }
}

/// A word as a shell reads it.
fn quote(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:=,@%+".contains(letter);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_follow_from_the_base_port() {
        let folder = tempfile::tempdir().expect("tempdir");
        let plan = Plan::new(folder.path(), None, None, 7300).expect("plan");
        assert_eq!(plan.client_addresses(), "127.0.0.1:7300,127.0.0.1:7400,127.0.0.1:7500");
        assert_eq!(plan.nodes[2].http, "127.0.0.1:7502");
        assert!(plan.fresh);
        assert_eq!(Plan::new(folder.path(), None, None, 65_400).expect_err("too high").code(), 2);
        assert_eq!(Plan::new(folder.path(), None, None, 0).expect_err("zero").code(), 2);
    }

    #[test]
    fn a_cluster_keeps_its_size_and_is_not_bootstrapped_twice() {
        let folder = tempfile::tempdir().expect("tempdir");
        let plan = Plan::new(folder.path(), Some(1), None, 7300).expect("plan");
        plan.keep(false).expect("keep");
        assert!(Plan::new(folder.path(), None, None, 7300).expect("again").fresh);
        plan.keep(true).expect("keep");
        assert_eq!(Plan::new(folder.path(), Some(3), None, 7300).expect_err("another size").code(), 2);
        let gone = Plan::new(folder.path(), None, None, 7300).expect_err("no store");
        assert!(gone.to_string().contains("node 1's store is gone"), "{gone}");
        assert!(plan.arguments(&plan.nodes[0], true).contains(&"--bootstrap".to_owned()));
        assert!(!plan.start_line(&plan.nodes[0]).contains("--bootstrap"));
    }

    #[test]
    fn zones_are_dealt_in_turn_and_kept() {
        let folder = tempfile::tempdir().expect("tempdir");
        let plan = Plan::new(folder.path(), Some(5), Some(3), 7300).expect("plan");
        let zones: Vec<&str> = plan.nodes.iter().filter_map(|node| node.zone.as_deref()).collect();
        assert_eq!(zones, ["z1", "z2", "z3", "z1", "z2"]);
        assert_eq!(plan.next_node().expect("room").zone.as_deref(), Some("z3"));
        assert!(plan.start_line(&plan.nodes[3]).contains("--label zone=z1"));
        plan.keep(false).expect("keep");
        let again = Plan::new(folder.path(), None, None, 7300).expect("again");
        assert_eq!(again.nodes[1].zone.as_deref(), Some("z2"));
        assert_eq!(Plan::new(folder.path(), None, Some(2), 7300).expect_err("another number").code(), 2);
        let plain = tempfile::tempdir().expect("tempdir");
        let plan = Plan::new(plain.path(), None, None, 7300).expect("plan");
        assert!(plan.nodes[0].zone.is_none() && !plan.start_line(&plan.nodes[0]).contains("--label"));
    }

    #[test]
    fn all_nodes_but_the_first_join_the_others() {
        let folder = tempfile::tempdir().expect("tempdir");
        let mut plan = Plan::new(folder.path(), None, None, 7300).expect("plan");
        let next = plan.next_node().expect("there is room");
        assert_eq!((next.id, &next.peer[..]), (4, "127.0.0.1:7601"));
        let words = plan.arguments(&next, true);
        assert_eq!(words[words.len() - 2..], ["--join", "127.0.0.1:7300,127.0.0.1:7400,127.0.0.1:7500"]);
        assert!(!words.contains(&"--bootstrap".to_owned()));
        assert!(!plan.start_line(&plan.nodes[1]).contains("--join"));
        while let Ok(next) = plan.next_node() {
            plan.nodes.push(next);
        }
        assert_eq!(plan.nodes.len(), NODES_MAX as usize);
    }

    #[test]
    fn foreign_directories_are_left_alone() {
        let folder = tempfile::tempdir().expect("tempdir");
        fs::write(folder.path().join("thesis.txt"), "x").expect("write");
        assert_eq!(Plan::new(folder.path(), None, None, 7300).expect_err("foreign").code(), 1);
        fs::write(folder.path().join("cluster.json"), "{}").expect("write");
        assert_eq!(Plan::new(folder.path(), None, None, 7300).expect_err("not ours").code(), 1);
    }

    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(quote("/a-b/c_1.0"), "/a-b/c_1.0");
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote(""), "''");
    }
}
