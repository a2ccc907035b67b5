//! `kv import` of CSV and JSON lines, `kv delete-range`, and keys that end by themselves.

use std::fs;
use std::process::Stdio;

use super::{cluster, cluster_stdin};
use crate::support::cli::Ran;
use crate::support::cluster::{binary, signal};
use crate::support::eventually;
use crate::support::shared::shared;

fn value(key: &str) -> Vec<u8> {
    cluster(&["kv", "get", key]).exits(0).stdout
}

#[test]
fn rows_become_keys_and_malformed_ones_are_named_by_line() {
    let folder = tempfile::tempdir().expect("a directory for the test");
    let path = folder.path().join("rows.csv");
    let name = path.to_str().expect("a plain path");
    let csv = "id,value,key\n1,one,a\n2,\"two, and\n\"\"more\"\"\",b\n3,three\n4,four,\n5,five,c,d\n6,\u{fc}\u{20ac},e\n7,last,a\n";
    fs::write(&path, csv).expect("a file for the test");
    let ran = cluster(&["kv", "import", name, "--prefix", "trow/"])
        .fails(1, &["line 5: it has 2 fields instead of 3", "line 6: its key is empty", "line 7: ", "3 rows left out"]);
    assert!(ran.text().starts_with("stored 4 rows ("), "{ran:?}");
    assert_eq!(value("trow/a"), b"last", "the last row of a key wins");
    assert_eq!(value("trow/b"), b"two, and\n\"more\"");
    assert_eq!(value("trow/e"), "\u{fc}\u{20ac}".as_bytes());
    cluster(&["kv", "import", name, "--prefix", "trow/", "--allow-refused"]).exits(0);
    let json = cluster(&["kv", "import", name, "--prefix", "trow/", "--output", "json"]).exits(1).json();
    assert_eq!((&json["stored"], &json["skipped"], &json["refused"][0]["line"]), (&4.into(), &3.into(), &5.into()));
    cluster(&["kv", "import", name, "--key-column", "name"]).fails(2, &["\"name\"", "id, value, key"]);
    cluster(&["kv", "import", "/nowhere.csv"]).fails(1, &["/nowhere.csv"]);

    let lines = b"{\"k\":\"trow/j\",\"v\":{\"deep\":[1,2.50]}}\nnot json\n{\"k\":\"trow/n\",\"v\":null}\n";
    let words = ["kv", "import", "-", "--format", "jsonl", "--key-column", "k", "--value-column", "v"];
    cluster_stdin(&words, lines).fails(1, &["line 2: it is not a JSON object", "line 3: ", "null"]);
    assert_eq!(value("trow/j"), b"{\"deep\":[1,2.50]}");
    let words = ["kv", "import", "-", "--format", "csv", "--columns", "key,value", "--delimiter", "\\t", "--base64"];
    cluster_stdin(&words, b"dHJvdy9i\tAP8=\n").exits(0);
    assert_eq!(value("trow/b"), b"\x00\xff");
    cluster_stdin(&["kv", "import", "-"], b"").fails(2, &["--format"]);
    cluster_stdin(&["kv", "import", "-", "--format", "csv", "--resume"], b"").fails(2, &["stdin"]);
}

/// Each by its line, with what is wrong; what can be stored is.
#[test]
fn malformed_rows_of_every_kind_are_left_out_and_counted() {
    let csv = ["kv", "import", "-", "--format", "csv", "--prefix", "tbad/"];
    let rows = |input: &[u8], refused: u64, expected: &[&str]| {
        let ran = cluster_stdin(&csv, input).fails(1, expected);
        assert!(ran.stderr.contains(&format!("{refused} row")) && ran.stderr.contains("hint:"), "{ran:?}");
        ran
    };
    rows(b"key,value\na,1\nb,\"open\nc,3\n", 1, &["line 3: a quote is opened that is never closed"]);
    rows(b"key,value\n\"a\"x,1\nb,\"y\"z\nc,3\n", 2, &["line 2: ", "line 3: ", "closing quote"]);
    let long = format!("key,value\n{},1\nz,{}\nc,3\n", "k".repeat(8_193), "v".repeat((1 << 20) + 1));
    rows(long.as_bytes(), 2, &["line 2: its key has ", "8192", "line 3: its value has ", "1048576"]);
    assert_eq!(value("tbad/a"), b"1");
    assert_eq!(value("tbad/c"), b"3");
    let base64 = [&csv[..], &["--base64"]].concat();
    cluster_stdin(&base64, b"key,value\n!!,YQ==\nYQ==,Y\nYg==,YQ==\n")
        .fails(1, &["line 2: its key", "line 3: its value", "2 rows"]);
    cluster_stdin(&csv, b"").fails(2, &["empty", "--columns"]);
    cluster_stdin(&csv, b"key,value\n").exits(0);
    // CSV is bytes; JSON is text.
    cluster_stdin(&csv, b"key,value\nbytes,\xff\xfe\n").exits(0);
    assert_eq!(value("tbad/bytes"), b"\xff\xfe");
    let json = ["kv", "import", "-", "--format", "jsonl", "--prefix", "tbad/"];
    let lines = b"{\"key\":\"\xff\",\"value\":\"1\"}\n{\"key\":7,\"value\":\"1\"}\n{\"key\":\"k\"}\n[1]\n{\"key\":\"cut\n{\"key\":\"good\",\"value\":\"1\"}";
    let ran = cluster_stdin(&json, lines);
    let ran = ran
        .fails(1, &["line 1: ", "line 2: ", "not a string", "line 3: ", "\"value\"", "line 4: ", "line 5: ", "5 rows"]);
    assert!(ran.text().starts_with("stored 1 row "), "{ran:?}");
    assert_eq!(value("tbad/good"), b"1");
}

/// Starts an import and ends it by SIGTERM as soon as it has kept its state.
fn interrupted(name: &str, state: &std::path::Path) -> Ran {
    let mut command = binary();
    command.args(["--addr", &shared().addresses().join(","), "kv", "import", name, "--prefix", "trs/", "--resume"]);
    command.args(["--concurrency", "1"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("the binary starts");
    eventually("the state to be kept", || state.exists());
    signal(child.id(), libc::SIGTERM);
    let output = child.wait_with_output().expect("the child is ours");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Ran { code: output.status.code().unwrap_or(-1), stdout: output.stdout, stderr }
}

#[test]
fn an_interrupted_import_goes_on_and_a_changed_source_is_noticed() {
    let folder = tempfile::tempdir().expect("a directory for the test");
    let path = folder.path().join("rows.csv");
    let state = folder.path().join("rows.csv.import-state");
    let name = path.to_str().expect("a plain path");
    let rows: String = (0..200_000).map(|number| format!("{number:06},value of {number}\n")).collect();
    fs::write(&path, format!("key,value\n{rows}")).expect("a file for the test");
    interrupted(name, &state).fails(1, &["interrupted", "rows.csv.import-state", "goes on"]);
    assert!(state.exists());

    let mut changed = fs::read(&path).expect("the test's file");
    changed[20] ^= 1;
    fs::write(&path, &changed).expect("a file for the test");
    let words = ["kv", "import", name, "--prefix", "trs/", "--resume"];
    cluster(&words).fails(1, &["has changed", "rows.csv.import-state"]);
    changed[20] ^= 1;
    fs::write(&path, &changed).expect("a file for the test");
    cluster(&["kv", "import", name, "--prefix", "other/", "--resume"]).fails(2, &["settings"]);

    let ran = cluster(&words).exits(0);
    assert!(ran.text().starts_with("stored 200,000 rows ("), "earlier rows are counted: {ran:?}");
    assert!(!state.exists());
    assert_eq!(cluster(&["kv", "scan", "--prefix", "trs/", "--count", "--timeout", "30s"]).exits(0).text(), "200000\n");
    assert_eq!(value("trs/199999"), b"value of 199999");

    // The same keys serve for deleting many.
    cluster(&["kv", "delete-range", "--prefix", "trs/"]).fails(2, &["trs/", "--yes", "nothing was done"]);
    let part = cluster(&["kv", "delete-range", "--prefix", "trs/0", "--limit", "1500", "--yes"]).exits(0);
    assert_eq!(part.text(), "deleted 1,500 keys\n");
    let token = part.stderr.trim().rsplit(' ').next().expect("a word").to_owned();
    cluster(&["kv", "get", "trs/001499"]).exits(4);
    cluster(&["kv", "get", "trs/001500"]).exits(0);
    let rest = cluster(&["kv", "delete-range", "--token", &token, "--yes", "--timeout", "30s"]).exits(0);
    assert_eq!(rest.text(), "deleted 98,500 keys\n", "the token keeps the span's end");
    assert_eq!(cluster(&["kv", "delete-range", "trs/1", "trs/100010", "--yes"]).exits(0).text(), "deleted 10 keys\n");
    cluster(&["kv", "delete-range", "b", "a", "--yes"]).fails(2, &["END"]);
    cluster(&["kv", "delete-range", "--token", "?", "--yes"]).fails(2, &["token"]);
}

#[test]
fn a_key_with_a_ttl_ends_by_itself_and_a_later_write_keeps_it() {
    cluster(&["kv", "put", "tttl/a", "1", "--ttl", "1500ms"]).exits(0);
    cluster(&["kv", "put", "tttl/b", "1", "--ttl", "1h"]).exits(0);
    let record = cluster(&["kv", "get", "tttl/b", "--output", "json"]).exits(0).json();
    assert!(record["ttl_ms"].as_u64().is_some_and(|left| (1..=3_600_000).contains(&left)), "{record}");
    cluster(&["kv", "put", "tttl/b", "2"]).exits(0);
    assert!(cluster(&["kv", "get", "tttl/b", "--output", "json"]).exits(0).json()["ttl_ms"].is_null());
    cluster(&["kv", "cas", "tttl/b", "3", "--expect-value", "2", "--ttl", "1h"]).exits(0);
    cluster(&["kv", "put", "tttl/b", "4", "--if-absent", "--ttl", "1h"]).fails(4, &["there already"]);
    eventually("the key to end", || cluster(&["kv", "get", "tttl/a"]).code == 4);
    for bad in ["0s", "11000d", "soon"] {
        cluster(&["kv", "put", "tttl/c", "1", "--ttl", bad]).exits(2);
    }
}
