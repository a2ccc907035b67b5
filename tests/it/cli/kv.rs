//! `kv get|put|delete|cas|scan`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{cluster, cluster_stdin};

/// The version that a write printed.
fn version(text: &str) -> u64 {
    let number = text.strip_prefix("version ").and_then(|rest| rest.strip_suffix('\n'));
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no version: {text:?}"))
}

#[test]
fn values_come_from_arguments_files_and_stdin_and_go_out_byte_for_byte() {
    let folder = tempfile::tempdir().expect("a directory for the test");
    let path = folder.path().join("value");
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    std::fs::write(&path, &bytes).expect("a file for the test");
    let path = path.to_str().expect("a plain path");

    version(cluster(&["kv", "put", "tio/argument", "a\\n"]).exits(0).text());
    assert_eq!(cluster(&["kv", "get", "tio/argument"]).exits(0).stdout, b"a\\n", "values have no escapes");
    cluster(&["kv", "put", "tio/file", "--file", path]).exits(0);
    assert!(cluster(&["kv", "get", "tio/file"]).exits(0).stdout == bytes);
    cluster_stdin(&["kv", "put", "tio/stdin"], &bytes).exits(0);
    assert!(cluster(&["kv", "get", "tio/stdin"]).exits(0).stdout == bytes);
    cluster_stdin(&["kv", "put", "tio/dash", "--file", "-"], b"x").exits(0);
    assert_eq!(cluster(&["kv", "get", "tio/dash"]).exits(0).stdout, b"x");
    cluster(&["kv", "put", "tio/empty", ""]).exits(0);
    assert_eq!(cluster(&["kv", "get", "tio/empty"]).exits(0).stdout, b"");
    cluster(&["kv", "put", "tio/dashes", "--", "--file"]).exits(0);
    assert_eq!(cluster(&["kv", "get", "tio/dashes"]).exits(0).stdout, b"--file");

    let too_large = vec![0; (1 << 20) + 1];
    cluster_stdin(&["kv", "put", "tio/large"], &too_large).fails(1, &["1.0 MiB", "hint:"]);
    cluster(&["kv", "put", "tio/none", "--file", "/nowhere/value"]).fails(1, &["/nowhere/value"]);
    cluster(&["kv", "put", &"t".repeat(8193), "x"]).fails(1, &["8193", "8192"]);
    cluster(&["kv", "put", "", "x"]).fails(1, &["an empty key", "hint:"]);
}

#[test]
fn keys_of_any_bytes_are_written_and_printed_so_that_they_can_be_pasted() {
    cluster(&["kv", "put", r"tkey/\x00\xff\\\n", "1"]).exits(0);
    assert_eq!(cluster(&["kv", "get", r"tkey/\0\xFF\\\n"]).exits(0).stdout, b"1");
    assert_eq!(cluster(&["kv", "get", "--hex", "746b65792f00ff5c0a"]).exits(0).stdout, b"1");
    cluster(&["kv", "put", "--hex", "746b65792f01", "00ff"]).exits(0);
    assert_eq!(cluster(&["kv", "get", r"tkey/\x01"]).exits(0).stdout, b"\x00\xff");
    cluster(&["kv", "put", "tkey/größe", "2"]).exits(0);

    let list = cluster(&["kv", "scan", "--prefix", "tkey/", "--keys-only"]).exits(0);
    let printed: Vec<&str> = list.text().lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(printed, [r"tkey/\x00\xff\\\n", r"tkey/\x01", "tkey/größe"]);
    for key in printed {
        cluster(&["kv", "get", key]).exits(0);
    }
    let hex = cluster(&["kv", "scan", "--prefix", "746b65792f", "--keys-only", "--hex"]).exits(0);
    assert!(hex.text().contains("746b65792f00ff5c0a"), "{hex:?}");
}

#[test]
fn what_is_absent_or_compares_badly_exits_with_4() {
    cluster(&["kv", "get", "tcas/k"]).fails(4, &["tcas/k", "hint:"]);
    cluster(&["kv", "delete", "tcas/k"]).fails(4, &["tcas/k"]);
    let first = version(cluster(&["kv", "cas", "tcas/k", "1", "--expect-absent"]).exits(0).text());
    cluster(&["kv", "cas", "tcas/k", "x", "--expect-absent"])
        .fails(4, &["has version", "\"1\"", "nothing was written"]);
    cluster(&["kv", "put", "tcas/k", "x", "--if-absent"]).fails(4, &["there already"]);
    let second = version(cluster(&["kv", "cas", "tcas/k", "2", "--expect-value", "1"]).exits(0).text());
    assert!(second > first);
    cluster(&["kv", "cas", "tcas/k", "x", "--expect-value", "1"]).exits(4);
    cluster(&["kv", "cas", "tcas/k", "x", "--expect-version", &first.to_string()]).exits(4);
    let printed = cluster(&["kv", "get", "tcas/k", "--version-only"]).exits(0);
    assert_eq!(printed.text().trim().parse(), Ok(second));
    cluster(&["kv", "cas", "tcas/k", "--delete", "--expect-version", &second.to_string()]).exits(0);
    cluster(&["kv", "get", "tcas/k"]).exits(4);
    let json = cluster(&["kv", "cas", "tcas/k", "x", "--expect-value", "2", "--output", "json"]).exits(4).json();
    assert_eq!((&json["applied"], &json["existed"]), (&false.into(), &false.into()));
    cluster(&["kv", "put", "tcas/k", "3", "--if-absent"]).exits(0);
    cluster(&["kv", "delete", "tcas/k"]).exits(0);
}

#[test]
fn json_is_one_document_with_bytes_as_base64() {
    let put = cluster(&["kv", "put", r"tjson/\xff", "v", "--output", "json"]).exits(0).json();
    assert_eq!(put["applied"], true);
    let get = cluster(&["kv", "get", r"tjson/\xff", "--output", "json"]).exits(0).json();
    assert_eq!(get["key"], STANDARD.encode(b"tjson/\xff"));
    assert_eq!(get["value"], STANDARD.encode("v"));
    assert_eq!(get["version"], put["version"]);
    let scan = cluster(&["kv", "scan", "--prefix", "tjson/", "--output", "json"]).exits(0).json();
    assert_eq!(scan["records"], serde_json::json!([get]));
    assert_eq!((&scan["count"], &scan["next_token"]), (&1.into(), &"".into()));
    let none = cluster(&["kv", "scan", "--prefix", "tjson/none", "--output", "json"]).exits(0).json();
    assert_eq!(none["records"], serde_json::json!([]));
    let count = cluster(&["kv", "scan", "--prefix", "tjson/", "--count", "--output", "json"]).exits(0).json();
    assert_eq!(count["count"], 1);
}

#[test]
fn scans_go_both_ways_and_go_on_by_token() {
    for number in 0..30 {
        cluster(&["kv", "put", &format!("tscan/{number:02}"), &number.to_string()]).exits(0);
    }
    let keys = |words: &[&str]| -> (Vec<String>, String) {
        let ran = cluster(&[&["kv", "scan", "--output", "json"], words].concat()).exits(0).json();
        let decode = |key: &serde_json::Value| STANDARD.decode(key.as_str().expect("base64")).expect("base64");
        let records = ran["records"].as_array().expect("a list").iter();
        let keys = records.map(|record| String::from_utf8(decode(&record["key"])).expect("our keys are text"));
        (keys.collect(), ran["next_token"].as_str().expect("a text").to_owned())
    };
    let all: Vec<String> = (0..30).map(|number| format!("tscan/{number:02}")).collect();
    assert_eq!(keys(&["--prefix", "tscan/"]).0, all);
    assert_eq!(keys(&["--start", "tscan/03", "--end", "tscan/06"]).0, all[3..6]);
    assert_eq!(keys(&["--prefix", "tscan/", "--limit-bytes", "50"]).0, all, "pages are joined");
    for direction in [&[][..], &["--reverse"]] {
        let (mut found, mut token) = keys(&[&["--prefix", "tscan/", "--limit", "7"], direction].concat());
        while !token.is_empty() {
            let (more, next) = keys(&["--token", &token, "--limit", "7"]);
            found.extend(more);
            token = next;
        }
        if !direction.is_empty() {
            found.reverse();
        }
        assert_eq!(found, all);
    }
    let page = cluster(&["kv", "scan", "--prefix", "tscan/", "--limit", "2"]).exits(0);
    assert_eq!(page.text().lines().count(), 3, "a head and two records: {page:?}");
    assert!(page.stderr.contains("--token "), "records alone stand on stdout: {page:?}");
    assert_eq!(cluster(&["kv", "scan", "--prefix", "tscan/", "--count"]).exits(0).text(), "30\n");
}
