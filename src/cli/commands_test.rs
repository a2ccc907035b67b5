//! Command lines against a real node inside of this process: what they print, store and exit with.

use std::fs;
use std::path::Path;

use clap::Parser;
use flotilla::Node;
use serde_json::Value;
use tempfile::TempDir;

use super::Cli;
use super::output::captured;

/// A cluster of one node.
struct Fixture {
    runtime: tokio::runtime::Runtime,
    node: Option<Node>,
    folder: TempDir,
    address: String,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("tempdir");
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let builder = Node::builder().data(folder.path().join("data"));
        let builder = builder.configure(|config| config.labels = "zone=a,rack=r1".into());
        let node = runtime.block_on(builder.start()).expect("node");
        let address = node.client_addr().to_string();
        Self { runtime, node: Some(node), folder, address }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Runs a command line; its exit code and what it printed.
    fn run(&self, words: &[&str]) -> (u8, String) {
        let (code, bytes) = self.run_bytes(words);
        (code, String::from_utf8(bytes).expect("text"))
    }

    fn run_bytes(&self, words: &[&str]) -> (u8, Vec<u8>) {
        let line = ["flotilla", "--addr", &self.address].into_iter().chain(words.iter().copied());
        let cli = Cli::try_parse_from(line).expect("valid command line");
        let code = super::execute(cli).map_or_else(|failure| failure.code(), |()| 0);
        (code, captured::take())
    }

    fn json(&self, words: &[&str]) -> (u8, Value) {
        let (code, text) = self.run(&[words, &["--output", "json"]].concat());
        (code, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(node) = self.node.take() {
            self.runtime.block_on(node.stop()).expect("stop");
        }
    }
}

#[test]
fn keys_and_values() {
    let cluster = Fixture::new();
    assert_eq!(cluster.run(&["kv", "get", "a"]).0, 4);
    let (code, text) = cluster.run(&["kv", "put", "a", "1"]);
    assert!(code == 0 && text.starts_with("version "), "{text}");
    // Byte for byte, without a line feed.
    assert_eq!(cluster.run(&["kv", "get", "a"]), (0, "1".into()));
    let (code, value) = cluster.json(&["kv", "get", "a"]);
    assert_eq!(
        (code, &value["key"], &value["value"], value["version"].is_u64()),
        (0, &"YQ==".into(), &"MQ==".into(), true)
    );
    assert_eq!(cluster.run(&["kv", "put", "a", "2", "--if-absent"]).0, 4);
    assert_eq!(cluster.run(&["kv", "cas", "a", "2", "--expect-value", "x"]).0, 4);
    assert_eq!(cluster.run(&["kv", "cas", "a", "2", "--expect-value", "1"]).0, 0);
    assert_eq!(cluster.run(&["kv", "cas", "b", "3", "--expect-absent"]).0, 0);
    let (code, refused) = cluster.json(&["kv", "cas", "b", "--delete", "--expect-version", "99"]);
    assert_eq!((code, &refused["applied"], &refused["current"]["value"]), (4, &false.into(), &"Mw==".into()));
    assert_eq!(cluster.run(&["kv", "delete", "b"]), (0, "deleted\n".into()));
    assert_eq!(cluster.run(&["kv", "delete", "b"]).0, 4);
    // Binary keys both ways, and values of any bytes.
    let file = cluster.path("value");
    fs::write(&file, b"\x00\xff\n").expect("write");
    assert_eq!(cluster.run(&["kv", "put", r"\x00\xff", "--file", &file]).0, 0);
    assert_eq!(cluster.run_bytes(&["kv", "get", "--hex", "00ff"]), (0, b"\x00\xff\n".to_vec()));
}

#[test]
fn bad_keys_and_values_are_refused_by_name() {
    let cluster = Fixture::new();
    let long = "k".repeat(flotilla_proto::limits::KEY_BYTES_MAX + 1);
    assert_eq!(cluster.run(&["kv", "put", &long, "v"]).0, 1);
    assert_eq!(cluster.run(&["kv", "put", "", "v"]).0, 1);
    assert_eq!(cluster.run(&["kv", "put", r"a\q", "v"]).0, 2);
    assert_eq!(cluster.run(&["kv", "get", "--hex", "abc"]).0, 2);
    let large = cluster.path("large");
    fs::write(&large, vec![0; flotilla_proto::limits::VALUE_BYTES_MAX + 1]).expect("write");
    assert_eq!(cluster.run(&["kv", "put", "k", "--file", &large]).0, 1);
    assert_eq!(cluster.run(&["kv", "scan", "--token", "AAAA"]).0, 1);
    assert_eq!(cluster.run(&["kv", "scan", "--token", "?"]).0, 2);
}

#[test]
fn scans() {
    let cluster = Fixture::new();
    for key in ["a", "p/1", "p/2", "p/3", "q"] {
        assert_eq!(cluster.run(&["kv", "put", key, "v\n"]).0, 0);
    }
    let (code, text) = cluster.run(&["kv", "scan", "--prefix", "p/"]);
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((code, lines.len()), (0, 4));
    assert_eq!(lines[0], ["KEY", "VERSION", "VALUE"]);
    assert_eq!((lines[1][0], lines[1][2]), ("p/1", "v\\n"));
    assert_eq!(cluster.run(&["kv", "scan", "--count"]), (0, "5\n".into()));
    let (_, page) = cluster.json(&["kv", "scan", "--reverse", "--limit", "2", "--keys-only"]);
    let keys = |page: &Value| -> Vec<String> {
        let records = page["records"].as_array().expect("records").iter();
        records.map(|record| record["key"].as_str().expect("key").to_owned()).collect()
    };
    assert_eq!(keys(&page), ["cQ==", "cC8z"]);
    let token = page["next_token"].as_str().expect("token");
    let (_, rest) = cluster.json(&["kv", "scan", "--token", token]);
    assert_eq!(keys(&rest), ["cC8y", "cC8x", "YQ=="]);
    assert_eq!(rest["next_token"], "");
    let (_, none) = cluster.json(&["kv", "scan", "--start", "x"]);
    assert_eq!((none["count"].as_u64(), keys(&none).len()), (Some(0), 0));
    assert_eq!(cluster.run(&["kv", "scan", "--start", "x"]).0, 0);
}

fn write_tree(root: &Path) {
    fs::create_dir_all(root.join("d/e")).expect("mkdir");
    for (name, content) in [("a", &b""[..]), ("d/b", b"\x00\xff"), ("d/e/gr\u{f6}\u{df}e \\ x", b"text\n")] {
        fs::write(root.join(name), content).expect("write");
    }
}

#[test]
fn a_tree_goes_in_and_comes_out_byte_for_byte() {
    let cluster = Fixture::new();
    let (tree, out) = (cluster.path("tree"), cluster.path("out"));
    write_tree(Path::new(&tree));
    let (code, text) = cluster.run(&["kv", "import", &tree, "--prefix", "t/"]);
    assert_eq!((code, text.as_str()), (0, "stored 3 files (7 B)\n"));
    assert_eq!(cluster.run(&["kv", "export", &out, "--prefix", "t/"]).0, 0);
    let same = std::process::Command::new("diff").args(["-r", &tree, &out]).status().expect("diff");
    assert!(same.success());
    // A second time the target is not empty.
    assert_eq!(cluster.run(&["kv", "export", &out, "--prefix", "t/"]).0, 1);
    assert_eq!(cluster.run(&["kv", "export", &out, "--prefix", "t/", "--force"]).0, 0);
}

#[test]
fn what_cannot_be_stored_is_listed_and_the_rest_is_stored() {
    let cluster = Fixture::new();
    let tree = cluster.path("tree");
    write_tree(Path::new(&tree));
    std::os::unix::fs::symlink("a", format!("{tree}/link")).expect("link");
    fs::write(format!("{tree}/large"), vec![0; (1 << 20) + 1]).expect("write");
    let (code, summary) = cluster.json(&["kv", "import", &tree]);
    assert_eq!((code, &summary["stored"]), (1, &3.into()));
    let refused = summary["refused"].as_array().expect("list");
    let names: Vec<_> = refused.iter().map(|one| one["path"].as_str().expect("path")).collect();
    assert_eq!(names, ["link", "large"]);
    assert_eq!(cluster.run(&["kv", "import", &tree, "--allow-refused"]).0, 0);
    assert_eq!(cluster.run(&["kv", "import", &cluster.path("none")]).0, 1);
    // A key that is no safe path is told, and everything else is exported.
    assert_eq!(cluster.run(&["kv", "put", "../evil", "x"]).0, 0);
    let (code, summary) = cluster.json(&["kv", "export", &cluster.path("out")]);
    assert_eq!((code, &summary["stored"], &summary["refused"][0]["key"]), (1, &3.into(), &"../evil".into()));
    assert!(!Path::new(&cluster.path("evil")).exists());
}

#[test]
fn the_cluster_tells_about_itself() {
    let cluster = Fixture::new();
    let (code, ranges) = cluster.json(&["range", "list"]);
    // The default keyspace's first range, and behind it the system range.
    assert_eq!((code, ranges.as_array().map(Vec::len)), (0, Some(2)));
    assert_eq!((&ranges[0]["keyspace"], &ranges[1]["keyspace"]), (&"default".into(), &"system".into()));
    assert_eq!(ranges[0]["leader_node_id"], 1);
    let id = ranges[0]["range_id"].to_string();
    let (code, range) = cluster.json(&["range", "show", &id]);
    assert_eq!((code, &range["replica"]["role"]), (0, &"leader".into()));
    assert_eq!(cluster.run(&["range", "show", &id, "--on", "1"]).0, 0);
    assert_ne!(cluster.run(&["range", "show", "9999"]).0, 0);
    assert_eq!(cluster.run(&["range", "list"]).1.lines().count(), 3);
    assert_eq!(cluster.run(&["range", "list", "--keyspace", "default"]).1.lines().count(), 2);
    let (_, nodes) = cluster.json(&["node", "list"]);
    assert_eq!((&nodes[0]["state"], &nodes[0]["leaders"]), (&"up".into(), &2.into()));
    let shown = cluster.run(&["node", "show", "1"]).1;
    assert!(shown.starts_with("node 1: up") && shown.contains("\nlabels zone=a,rack=r1\n"), "{shown}");
    assert_eq!(nodes[0]["labels"], serde_json::json!({ "zone": "a", "rack": "r1" }));
    assert!(cluster.run(&["node", "list"]).1.trim_end().ends_with("zone=a,rack=r1"));
    assert_eq!(cluster.run(&["node", "show", "2"]).0, 1);
    assert_eq!(cluster.run(&["status", "--check"]), (0, "ok: 1 node up, 2 ranges led, 1 replica each\n".into()));
    assert_eq!(cluster.json(&["status"]).1["ok"], true);
}

#[test]
fn keyspaces_are_apart_and_their_ranges_are_split_by_hand() {
    let cluster = Fixture::new();
    let (code, made) = cluster.json(&["keyspace", "create", "x", "--boundary", "prefix:1", "--split-bytes", "never"]);
    assert_eq!((code, &made["name"], &made["boundary"]["bytes"]), (0, &"x".into(), &1.into()));
    assert_eq!(cluster.run(&["keyspace", "create", "x"]).0, 1);
    assert_eq!(cluster.run(&["keyspace", "set", "x", "--replicas", "1", "--yes"]).0, 0);
    assert!(cluster.run(&["keyspace", "list"]).1.contains("prefix:1"));
    for (key, value) in [("a1", "1"), ("b1", "2"), ("c1", "3")] {
        assert_eq!(cluster.run(&["kv", "put", key, value, "--keyspace", "x"]).0, 0);
    }
    assert_eq!(cluster.run(&["kv", "get", "a1"]).0, 4);
    assert_eq!(cluster.run(&["kv", "--keyspace", "x", "get", "a1"]), (0, "1".into()));
    let (_, ranges) = cluster.json(&["range", "list", "--keyspace", "x"]);
    let id = ranges[0]["range_id"].to_string();
    assert_eq!(cluster.run(&["range", "split", &id, "--at", "b1"]).0, 1, "against the boundary");
    let (code, split) = cluster.json(&["range", "split", &id, "--at", "b", "--at", "c"]);
    assert_eq!((code, split["ranges"].as_array().map(Vec::len)), (0, Some(3)), "{split}");
    assert_eq!(split["ranges"][0]["range_id"].to_string(), id, "the left part keeps the id");
    assert_eq!(cluster.run(&["kv", "scan", "--keyspace", "x", "--count"]), (0, "3\n".into()));
    let (code, check) = cluster.json(&["range", "check", &id]);
    assert_eq!((code, &check[0]["ok"]), (0, &true.into()), "{check}");
    assert!(cluster.run(&["range", "events", &id]).1.contains("split"));
    assert_eq!(cluster.run(&["keyspace", "drop", "x", "--yes"]).0, 0);
    assert_eq!(cluster.run(&["keyspace", "show", "none"]).0, 1);
}

#[test]
fn placement_tells_what_it_did() {
    let cluster = Fixture::new();
    assert_eq!(cluster.run(&["keyspace", "create", "x", "--replicas", "1"]).0, 0);
    assert_eq!(cluster.run(&["keyspace", "drop", "x", "--yes"]).0, 0);
    let (code, history) = cluster.json(&["placement", "history", "--since", "1h"]);
    let kinds: Vec<&str> =
        history["entries"].as_array().expect("a list").iter().filter_map(|one| one["kind"].as_str()).collect();
    assert_eq!((code, &kinds[..]), (0, &["dropped", "created"][..]), "{history}");
    let (code, text) = cluster.run(&["placement", "history", "--limit", "1"]);
    assert!(code == 0 && text.contains("dropped") && text.lines().count() == 2, "{text}");
    let (code, text) = cluster.run(&["placement", "history", "--range", "77"]);
    assert!(code == 0 && text.starts_with("nothing of the kind among the 2 kept, since 20"), "{text}");
    let parsed = Cli::try_parse_from(["flotilla", "placement", "history", "--limit", "0"]);
    assert_eq!(parsed.expect_err("refused").exit_code(), 2);
}

#[test]
fn ranges_are_ranked_and_keyspaces_are_drawn() {
    let cluster = Fixture::new();
    assert_eq!(cluster.run(&["keyspace", "create", "x", "--replicas", "1", "--ranges", "3"]).0, 0);
    let (code, map) = cluster.run(&["keyspace", "map", "x", "--width", "60"]);
    assert!(code == 0 && map.starts_with("keyspace \"x\": 3 ranges, ") && map.lines().count() == 5, "{map}");
    let (code, map) = cluster.json(&["keyspace", "map", "x"]);
    assert_eq!((code, map["ranges"].as_array().map(Vec::len)), (0, Some(3)), "{map}");
    assert_eq!(cluster.run(&["keyspace", "map", "none"]).0, 1);
    let (code, top) = cluster.json(&["range", "top", "--by", "reads"]);
    assert!(code == 0 && top.is_array(), "{top}");
    assert_eq!(cluster.run(&["range", "top", "--keyspace", "none"]).0, 1);
    let parsed = Cli::try_parse_from(["flotilla", "range", "top", "--by", "colour"]);
    assert_eq!(parsed.expect_err("refused").exit_code(), 2);
}

#[test]
fn a_range_is_explained_and_a_plan_changes_nothing() {
    let cluster = Fixture::new();
    let (_, ranges) = cluster.json(&["range", "list", "--keyspace", "default"]);
    let id = ranges[0]["range_id"].to_string();
    let (code, page) = cluster.run(&["range", "explain", &id]);
    assert!(code == 0 && page.starts_with(&format!("range {id} of keyspace \"default\": (first) to (last)")), "{page}");
    for line in ["\nleader: ", "\nunder way: nothing\n", "\nnext: nothing now: ", "\nlately: "] {
        assert!(page.contains(line), "{page}");
    }
    let (code, told) = cluster.json(&["range", "explain", &id]);
    assert_eq!((code, &told["order"], &told["replicas"][0]["node_state"]), (0, &Value::Null, &"live".into()), "{told}");
    assert_eq!(told["replicas"][0]["labels"]["zone"], "a");
    assert_eq!(cluster.run(&["range", "explain", "9999"]).0, 1);
    assert_eq!(cluster.run(&["placement", "plan", "--dry-run"]), (0, "nothing: all is as it is asked for\n".into()));
    let (code, plan) = cluster.json(&["placement", "plan"]);
    assert_eq!((code, &plan["orders"], &plan["notes"]), (0, &serde_json::json!([]), &serde_json::json!([])));
}

#[test]
fn neighbours_are_merged_by_hand_and_others_are_not() {
    let cluster = Fixture::new();
    let words = ["keyspace", "create", "x", "--replicas", "1", "--merge", "off"];
    assert_eq!(cluster.run(&words).0, 0);
    for key in ["a1", "b1", "c1"] {
        assert_eq!(cluster.run(&["kv", "put", key, "v", "--keyspace", "x"]).0, 0);
    }
    let (_, ranges) = cluster.json(&["range", "list", "--keyspace", "x"]);
    let (_, split) = cluster.json(&["range", "split", &ranges[0]["range_id"].to_string(), "--at", "b", "--at", "c"]);
    let ids: Vec<String> = (0..3).map(|at| split["ranges"][at]["range_id"].to_string()).collect();
    let (_, ranges) = cluster.json(&["range", "list", "--keyspace", "default"]);
    let foreign = ranges[0]["range_id"].to_string();
    for (left, right) in [(&ids[0], &ids[2]), (&ids[1], &ids[0]), (&ids[0], &foreign), (&ids[0], &"9999".to_owned())] {
        assert_eq!(cluster.run(&["range", "merge", left, right]).0, 1, "{left} and {right}");
    }
    let (code, text) = cluster.run(&["range", "merge", &ids[0], &ids[1]]);
    assert_eq!((code, text), (0, format!("range {} has what range {} held\n", ids[0], ids[1])));
    assert_eq!(cluster.run(&["kv", "scan", "--keyspace", "x", "--count"]), (0, "3\n".into()));
    assert_eq!(cluster.run(&["kv", "get", "b1", "--keyspace", "x"]), (0, "v".into()));
    let (_, left) = cluster.json(&["range", "list", "--keyspace", "x"]);
    assert_eq!(left.as_array().map(Vec::len), Some(2), "{left}");
    assert_eq!(cluster.run(&["range", "explain", &ids[1]]).0, 1, "it is a part of another one");
    let (_, told) = cluster.json(&["placement", "history", "--range", &ids[1]]);
    assert!(told["entries"].as_array().is_some_and(|all| all.iter().any(|one| one["word"] == "merge")), "{told}");
}

#[test]
fn what_nodes_cannot_do_is_refused() {
    let cluster = Fixture::new();
    let refused = |words: &[&str], code: u8| {
        let line = ["flotilla", "--addr", &cluster.address].into_iter().chain(words.iter().copied());
        let failure = match Cli::try_parse_from(line) {
            Ok(cli) => super::execute(cli).expect_err("refused"),
            Err(error) => super::failure::Failure::usage(error.to_string()),
        };
        assert_eq!(failure.code(), code, "{words:?}: {failure}");
        failure.to_string()
    };
    let text = refused(&["node", "decommission", "1", "--yes"], 1);
    assert!(text.contains("node"), "{text}");
    assert!(refused(&["node", "decommission", "7", "--yes"], 1).contains("there is no node 7"));
    refused(&["node", "decommission", "1"], 2);
    assert!(refused(&["node", "maintenance", "1", "--for", "5m"], 1).contains("no other node could take over"));
    assert!(refused(&["node", "maintenance", "7", "--for", "5m"], 1).contains("there is no node 7"));
    refused(&["node", "maintenance", "1"], 2);
    let unknown = refused(&["keyspace", "set", "default", "--require-label", "zone=nowhere"], 1);
    assert!(unknown.contains("zone=nowhere"), "{unknown}");
    refused(&["keyspace", "set", "default", "--require-label", "zone"], 2);
    refused(&["keyspace", "set", "default"], 2);
    assert!(refused(&["keyspace", "set", "none", "--forbid-label", "zone=a"], 1).contains("none"));
    let set = ["keyspace", "set", "default", "--require-label", "zone=a", "--prefer-leaders", "rack=r1"];
    let (code, kept) = cluster.json(&set);
    assert_eq!((code, &kept["constraints"]["require"][0]), (0, &"zone=a".into()), "{kept}");
    assert!(cluster.run(&["keyspace", "show", "default"]).1.contains("require zone=a; prefer leaders in rack=r1"));
    let (_, kept) = cluster.json(&["keyspace", "set", "default", "--no-constraints"]);
    assert_eq!(kept["constraints"]["require"], serde_json::json!([]));
}

#[test]
fn rows_go_in_and_spans_go_out() {
    let cluster = Fixture::new();
    let rows = cluster.path("rows.csv");
    fs::write(&rows, "key,value\na,1\nb\nc,3\nd,4\na,5\n").expect("write");
    assert_eq!(cluster.run(&["kv", "import", &rows, "--resume"]), (1, "stored 4 rows (4 B), 1 left out\n".into()));
    assert_eq!(cluster.run(&["kv", "get", "a"]), (0, "5".into()));
    let (code, deleted) = cluster.json(&["kv", "delete-range", "a", "d", "--limit", "1", "--yes"]);
    assert_eq!((code, &deleted["deleted"], &deleted["complete"]), (0, &1.into(), &false.into()), "{deleted}");
    let token = deleted["next_token"].as_str().expect("a text");
    assert_eq!(cluster.run(&["kv", "delete-range", "--token", token, "--yes"]), (0, "deleted 1 key\n".into()));
    assert_eq!(cluster.run(&["kv", "scan", "--count"]), (0, "1\n".into()));
    assert_eq!(cluster.run(&["kv", "put", "t", "1", "--ttl", "1h"]).0, 0);
    let (_, record) = cluster.json(&["kv", "get", "t"]);
    assert!(record["ttl_ms"].as_u64().is_some_and(|left| left <= 3_600_000), "{record}");
}

#[test]
fn a_benchmark_measures() {
    let cluster = Fixture::new();
    for workload in ["put", "ycsb-a"] {
        let (code, figures) =
            cluster.json(&["bench", workload, "--ops", "400", "--clients", "8", "--keys", "50", "--value-bytes", "10"]);
        assert_eq!((code, &figures["operations"], &figures["missing"]), (0, &400.into(), &0.into()), "{figures}");
        assert!(figures["per_operation"]["fsyncs"].as_f64().is_some_and(|syncs| syncs > 0.0), "{figures}");
    }
    let (code, text) = cluster.run(&["bench", "get", "--ops", "100", "--clients", "4", "--keys", "10"]);
    assert!(code == 0 && text.starts_with("get: 100 operations in "), "{text}");
}

#[test]
fn without_a_cluster_there_is_an_error_and_no_wait() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("port");
    for words in [&["kv", "get", "a"][..], &["status", "--check"], &["range", "list"]] {
        let address = port.to_string();
        let line = ["flotilla", "--addr", &address].into_iter().chain(words.iter().copied());
        let failure = super::execute(Cli::try_parse_from(line).expect("valid")).expect_err("nobody there");
        assert_eq!(failure.code(), 1);
        assert!(failure.to_string().contains("flotilla run"), "{failure}");
    }
}
